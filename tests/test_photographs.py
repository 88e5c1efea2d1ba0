"""Tiles of photographs: where they are from, what no two parts share, and what gives nothing away."""
import importlib.metadata

import numpy as np
import pytest
import torch
from PIL import Image
from finetune_nb import data
from finetune_nb.engine import photographs


def parts(task): return [task.train, task.validation, task.test]
def rows(examples): return {image.numpy().tobytes() for image in examples.inputs}


@pytest.fixture
def plain(monkeypatch):
    "Two pictures instead of the packages'"
    random = np.random.default_rng(0)
    made = {name: Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8))
            for name, size in (("high", (500, 300)), ("wide", (410, 820)))}
    monkeypatch.setattr(photographs, "pictures", lambda: made)
    return made


def test_a_thousand_tiles_to_be_judged_on():
    task = data.photographs(labels_per_class=2)
    assert task.num_classes == 17 and {"astronaut", "china", "grace_hopper"} <= set(task.classes)
    assert [part.labels.bincount().tolist() for part in parts(task)] == [[2] * 17, [20] * 17, [60] * 17]
    assert all(part.inputs.dtype == torch.uint8 and part.inputs.shape[1:] == (1, 96, 96) for part in parts(task))
    assert len(task.test) > 1000 and set(task.made["versions"]) == {*photographs._FILES, "pillow"}


def test_they_follow_the_seed():
    few = dict(validation_per_class=1, test_per_class=2)
    one, more, again, other = [data.photographs(*how, **few) for how in ((1,), (3,), (1,), (1, 1))]
    assert rows(one.test) == rows(more.test) and rows(one.train) < rows(more.train), "more labels, same test"
    assert torch.equal(one.train.inputs, again.train.inputs)
    assert rows(one.train).isdisjoint(rows(other.train)) and one.made["fingerprint"] == other.made["fingerprint"]


@pytest.mark.parametrize("name", ["high", "wide"])
def test_bands_share_no_pixel(name, plain, monkeypatch):
    picture = plain[name]
    monkeypatch.setattr(photographs, "_LONGEST", max(picture.size)) # so that nothing is resized
    bands = [np.asarray(band) for band in photographs._bands(picture)]
    assert len(bands) == 6
    assert np.array_equal(np.concatenate(bands, int(name == "wide")), np.asarray(picture.convert("L")))


def test_no_two_parts_have_a_band_in_common(plain, monkeypatch):
    seen = []
    def tile(band, rng): return seen.append(band) or np.zeros((96, 96), np.uint8)
    monkeypatch.setattr(photographs, "_tile", tile)
    photographs.draw_tiles([4, 4, 4])
    shares = [{id(band) for band in seen[i:i + 4]} for i in range(0, 24, 4)]
    assert [len(own) for own in shares] == [2] * 6 and len(set().union(*shares)) == 12


@pytest.mark.parametrize("size", [(136, 300), (500, 136)])
def test_a_tile_shows_nothing_but_its_band(size):
    "Beyond a band all is black, and no tile of a grey one has an edge"
    band = Image.new("L", size, 200)
    for seed in range(100): assert np.ptp(photographs._tile(band, np.random.default_rng(seed))) == 0


def test_a_histogram_says_little():
    from sklearn.linear_model import LogisticRegression
    task = data.photographs(labels_per_class=10, validation_per_class=1, test_per_class=10)
    def histogram(images): return np.stack([np.bincount(image.flatten() // 8, minlength=32) for image in images]) / 9216
    seen, unseen = histogram(task.train.inputs), histogram(task.test.inputs)
    guesses = LogisticRegression(C=100, max_iter=1000).fit(seen, task.train.labels).predict(unseen)
    assert (guesses == task.test.labels.numpy()).mean() < 0.3


def test_nonsense_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="labels_per_class must be at least 1, got 0"): data.photographs(0)
    with pytest.raises(ValueError, match="no validation examples"): data.photographs(1, validation_per_class=0)
    own = importlib.metadata.distribution
    def missing(name):
        if name == "scikit-image": raise importlib.metadata.PackageNotFoundError(name)
        return own(name)
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ModuleNotFoundError, match="scikit-image is not installed: pip install 'finetune-nb.offline.'"):
        data.photographs(1)
