"""A kind of task, and a family of backbones, that are defined in files of tests, and two heads: all works with them."""
from dataclasses import dataclass
from typing import Callable

import numpy as np
import pytest
import torch

import finetune_nb
from conftest import root
from finetune_nb import depth, evaluate, fit, freeze, saving, vision
from finetune_nb.data import Classification, Examples, Task
from finetune_nb.engine.numbers import Regression
from finetune_nb.engine.several import Several
from finetune_nb.freezing import blocks, fingerprint
from finetune_nb.training import predict
from mosaic import Mosaic # which registers its family
from points import H, Finder, Points
from processes import fit_to_the_kill, killed_and_resumed, same_in_two

how = dict(epochs=4, batch_size=6, learning_rate=1e-2, head_learning_rate=1e-2, progress=False)


def stars(n, seed, dtype=torch.float32):
    "Pictures with up to three bright points on noise"
    rng = np.random.default_rng(seed)
    def point(): return int(rng.integers(H)), int(rng.integers(2 * H))
    points = [list({point() for _ in range(rng.integers(4))}) for _ in range(n)]
    pictures = 0.3 * torch.from_numpy(rng.standard_normal((n, H, 2 * H))).to(dtype)
    for picture, own in zip(pictures, points):
        for r, c in own: picture[r, c] += 1.5
    return Examples(pictures, points)


def sky(dtype=torch.float32):
    return Task("sky", "picture", Points(), stars(40, 0, dtype), stars(30, 1, dtype), stars(30, 2, dtype))


def finder(frozen, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    model = Finder().to(dtype)
    freeze(model, frozen)
    return model


def halves(count, seed):
    "Bright left or bright right"
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 120, (count, 3, 32, 32), generator=random, dtype=torch.uint8)
    labels = torch.arange(count) % 2
    for image, label in zip(images, labels): image[:, :, 16 * label:16 * label + 16] += 60
    return Examples(images, labels)


def sides(dtype=None): return Task("sides", "image", ["left", "right"], halves(40, 0), halves(30, 1), halves(30, 2))


def tiny(frozen, seed=0, dtype=torch.float32, asked=2):
    torch.manual_seed(0)
    model = vision.classifier("mosaic-tiny", asked, seed=seed).to(dtype)
    freeze(model, frozen)
    return model


@dataclass
class Own:
    make: Callable # takes a depth, a seed and a type
    task: Callable # takes a type
    score: str
    blocks: list
    most_lines: int # of its class, in its file

owns = {"points": Own(finder, sky, "f1", ["first", "second", "head"], 70),
        "mosaic": Own(tiny, sides, "accuracy", ["stem", "layer1", "layer2", "head"], 50)}

asked_both = Several(dict(side=Classification(["left", "right"]), brightness=Regression()))


def two_questions(dtype=None):
    def both(part):
        return Examples(part.inputs, dict(side=part.targets, brightness=part.inputs.float().mean((1, 2, 3))))
    return Task("both", "image", asked_both, *map(both, (halves(40, 0), halves(30, 1), halves(30, 2))))


def two_heads(frozen, seed=0, dtype=torch.float32): return tiny(frozen, seed, dtype, asked_both)

all_of_them = owns | {"both": Own(two_heads, two_questions, "mean_score", owns["mosaic"].blocks, 0)}


@pytest.fixture(params=owns)
def own(request): return owns[request.param]


@pytest.mark.parametrize("name", owns)
def test_it_is_short_and_known_to_nobody(name):
    assert len((root/"tests"/f"{name}.py").read_text(encoding="utf-8").splitlines()) <= owns[name].most_lines
    ours = "".join(file.read_text(encoding="utf-8") for file in (root/"finetune_nb").rglob("*.py"))
    assert "mosaic" not in ours.lower() and "class Points" not in ours


def test_targets_are_checked():
    inside = stars(4, 0)
    outside = Examples(inside.inputs, [[(0, 99)], [], [], []])
    with pytest.raises(ValueError, match="Task 'sky': validation a point lies outside its picture"):
        Task("sky", "picture", Points(), inside, outside, inside)


@pytest.mark.parametrize("name, frozen", [(name, i) for name, own in all_of_them.items()
                                          for i in range(1, len(own.blocks))])
def test_the_cache_is_exact(name, frozen):
    "In float64, for 50 steps and more, to 1e-9, dropout, random losses and all; and what is frozen stays"
    own = all_of_them[name]
    def run(cache):
        model = own.make(frozen, dtype=torch.float64)
        before = [fingerprint(block) for block in blocks(model)]
        history = fit(model, own.task(torch.float64), cache=cache, precision="fp32", **how | dict(epochs=8))
        moved = [a != b for a, b in zip(before, map(fingerprint, blocks(model)))]
        assert moved == [i >= frozen for i in range(len(own.blocks))]
        return np.array(history.train_loss), history.prefix, model
    (ours, prefix, model), (theirs, none, _) = run(True), run(False)
    assert "run once for 70 examples" in prefix and not none and not np.isnan(ours).any()
    assert np.abs(ours / theirs - 1).max() < 1e-9
    assert own.score in evaluate(model, own.task(torch.float64).test).scores


def job(name, *where):
    model = all_of_them[name].make(1)
    fit_to_the_kill(model, blocks(model)[-1].modules[-1], all_of_them[name].task(), *where, **how)


@pytest.mark.parametrize("name", ["points", "both"])
def test_killed_and_resumed(tmp_path, name): killed_and_resumed(job, tmp_path, 14, name)


def learn_in_float64(name):
    "Of blocks each process has its own masks of dropout, and its own batch norms: the head alone"
    own = all_of_them[name]
    model = own.make(len(own.blocks) - 1, dtype=torch.float64)
    history = fit(model, own.task(torch.float64), **how)
    return history.train_loss, history.validation_score


@pytest.mark.parametrize("name", ["points", "both"])
def test_two_processes(tmp_path, name): same_in_two(learn_in_float64, tmp_path, name)


def test_swept_over_depths(own):
    more = dict(epochs=2, strategy="all", precision="fp32", progress=False)
    swept = depth.sweep(lambda seed: own.make(0, seed), own.task(), seeds=2, **more)
    found = swept.recommend()
    assert swept.scores[0] == own.score and swept.blocks == own.blocks and len(found.interval) == 2
    assert len(swept.rows) == 2 * len(own.blocks)
    again = depth.Sweep.from_json(swept.to_json())
    assert again.recommend() == found and list(again.right(0)[0]) == pytest.approx(list(swept.right(0)[0]), abs=1e-4)
    swept.plot()


def test_saved_loaded_and_predicted(own, tmp_path):
    model, task = own.make(1), own.task()
    history = fit(model, task, **how)
    saving.save(tmp_path/"m", model, task, history, evaluate(model, task.test))
    loaded = finetune_nb.load(tmp_path/"m")
    assert fingerprint(loaded.model) == fingerprint(model) and loaded.model.objective == model.objective
    again, expected = predict(loaded.model, task.test.inputs), predict(model, task.test.inputs)
    assert np.allclose(again, expected) if own.score == "accuracy" else again == expected
    if own.score == "f1": assert loaded.predict(list(task.test.inputs[:3])).answer.tolist() == expected[:3]
    else: assert isinstance(loaded.model.backbone, Mosaic) and loaded.model.name == "mosaic-tiny"
    assert own.score in (tmp_path/"m"/"README.md").read_text()


def test_the_explorer_shows_it(own):
    from finetune_nb.widgets import FreezeExplorer
    explorer = FreezeExplorer(own.make(0), own.task(), steps=6)
    trial = explorer.run(1)
    assert 0 <= trial.scores[own.score] <= 1 and own.score in explorer.picture.value.lower()
