"""Explanations: sums that are known, every kind of answer at every freeze depth, and what cheating networks look at."""
import json
import random

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from conftest import tiny_bert
from finetune_nb import data, evaluate, explain, fit, freeze, saving, text, vision
from finetune_nb.data import Examples, Task
from finetune_nb.engine.explanations import Checked, Explanation, Score
from finetune_nb.engine.labels import Classification, MultiLabel
from finetune_nb.engine.masks import fitted
from finetune_nb.engine.numbers import Regression
from finetune_nb.engine.segmentation import Segmentation
from finetune_nb.engine.several import Several
from finetune_nb.engine.tagging import Tagging
from finetune_nb.engine.taps import maps_in
from finetune_nb.freezing import blocks, fingerprint
from finetune_nb.interpret import METHODS, deletion, grad_cam, integrated_gradients, occlusion, sanity_check
from finetune_nb.interpret import shuffled_head
from finetune_nb.training import predict
import ladder # which registers its family
from mosaic import Mosaic # likewise
from points import Finder

side = 32


def picture(seed=0):
    return torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def convolutions(classes=2, seed=0):
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, stride=2, padding=1),
                         nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))
    return vision.ImageClassifier(body, Classification(list("abcdef"[:classes])), vision.Preprocessing(side, side))


def patches(classes=2):
    torch.manual_seed(0)
    return vision.classifier("mosaic-tiny", Classification(list("abcdef"[:classes])))


def segmenter():
    torch.manual_seed(0)
    return vision.segmenter("ladder-tiny", Segmentation(["background", "red", "green"]), 2 * side, width=8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory): return tiny_bert(tmp_path_factory.mktemp("tiny"))


def reader(folder): return text.classifier(folder, Classification(["dull", "bright"]), seed=1)
def tagger(folder, **more): return text.tagger(folder, Tagging(["PER", "LOC"]), max_length=8, seed=1, **more)


sentence = "An unbelievably bright and colourful afternoon."
long_one = "Ada Lovelace lives unbelievably well in Oslo since 1912." # two windows


# What is known

@pytest.mark.parametrize("frozen", [False, True])
def test_of_a_linear_network_everything_is_known(frozen):
    torch.manual_seed(0)
    linear = nn.Linear(3 * side**2, 2)
    model = vision.ImageClassifier(nn.Sequential(nn.Flatten(), linear), Classification(["a", "b"]),
                                   vision.Preprocessing(side, side))
    linear = model.head
    for p in model.parameters(): p.requires_grad_(not frozen)
    score = Score(model.eval(), picture(), "b")
    now, then = (model.normalise(own[None])[0] for own in (score.parts.image, score.parts.empty))
    expected = (linear.weight[1].detach().view(3, side, side) * (now - then)).sum(0).flatten()
    values, details = integrated_gradients(score)
    assert torch.allclose(values, expected, atol=1e-5)
    assert details["completeness_error"] < 1e-3 and details["steps"] == 32
    groups = score.parts.by_group(expected.numpy())
    assert np.allclose(score.parts.by_group(occlusion(score)[0].numpy()), groups, atol=1e-4)
    order = np.argsort(-groups)
    shares, (curve,) = deletion(score, [order], 64)
    assert np.allclose(curve, score.values(score.all) - [0, *np.cumsum(groups[order])], atol=1e-3)
    assert list(shares[[0, -1]]) == [0, 1]
    with pytest.raises(ValueError, match="block must be one of"): grad_cam(score)


def test_grad_cam_is_captum_s():
    model = convolutions().eval()
    score = Score(model, picture(), 1)
    (last, module, size), *_ = maps_in(model, lambda: score(score.all))
    expected = LayerGradCam(score, module).attribute(score.all)[0, 0].detach()
    freeze(model, len(blocks(model)) - 1)
    values, about = grad_cam(score)
    assert expected.abs().max() > 0 and about == dict(block=last) and size == side // 2
    assert torch.allclose(values, score.parts.of_map(expected.relu()), atol=1e-6)


def test_more_steps_are_taken_where_the_sum_is_off():
    model = convolutions().eval()
    score = Score(model, picture(), 1)
    few = integrated_gradients(score, most_error=1.0)[1]
    many = integrated_gradients(score, most_error=few["completeness_error"] / 2)[1]
    assert few["steps"] == 32 < many["steps"] and many["completeness_error"] < few["completeness_error"]


# Every kind, at every depth

@pytest.mark.parametrize("make", [convolutions, patches])
def test_images_at_every_depth(make):
    found = []
    for depth in range(len(blocks(make()))):
        model = make()
        freeze(model, depth)
        model.train()
        before, modes = fingerprint(model), [m.training for m in model.modules()]
        own = {method: explain(model, picture(), "b", method) for method in METHODS}
        assert fingerprint(model) == before and [m.training for m in model.modules()] == modes
        assert all(p.grad is None for p in model.parameters())
        assert own["integrated_gradients"].details["completeness_error"] < .05
        found.append({method: explanation.groups for method, explanation in own.items()})
        if make is patches: assert own["grad_cam"].details["block"] == "layer1", "of the last only a token is read"
    for method in METHODS: assert all(np.allclose(own[method], found[0][method], atol=1e-5) for own in found)
    assert all(np.ptp(groups) > 0 for groups in found[0].values())


def test_masks_at_every_depth():
    "A class, and a region of the image; what is beside the image is never meant"
    wide, found = torch.cat([picture(0), picture(1)], 2), []
    for depth in range(len(blocks(segmenter()))):
        model = segmenter()
        freeze(model, depth)
        model.train()
        before = fingerprint(model)
        (answer,) = predict(model, [wide])
        height, width = fitted((side, 2 * side), answer.shape)
        x, y = 50, 20
        there = int(answer[y * height // side, x * width // (2 * side)])
        other = (there + 1) % 3
        own = {method: explain(model, wide, (other, x, y), method) for method in METHODS}
        assert fingerprint(model) == before and all(p.grad is None for p in model.parameters())
        for explanation in own.values():
            where = explanation.parts.where
            assert explanation.target.endswith(f"at 50, 20, which is called {model.objective.classes[there]}")
            assert where[y * height // side, x * width // (2 * side)] and (np.asarray(answer)[where] == there).all()
            assert not where[height:].any() and not where[:, width:].any()
            with torch.no_grad(): outputs = model.eval()(model.collate(model.encode([wide])))[0]
            assert explanation.score == pytest.approx(outputs[other].numpy()[where].mean(), rel=1e-4)
            model.train()
        added = own["integrated_gradients"]
        assert added.details["completeness_error"] < .05 and "completeness error" in repr(added)
        assert abs(added.values.sum() - (added.score - added.empty)) <= .05 * abs(added.score - added.empty) + 1e-6
        assert "with a line around it" in repr(added) and added._repr_html_().count("<img") == 1
        found.append([explanation.values for explanation in own.values()])
    assert all(np.allclose(own, found[0], atol=1e-5) for own in found)
    assert all(np.ptp(values) > 0 for values in found[0])


def test_what_can_be_asked_of_masks():
    asked = Segmentation(["background", "cat", "cat 1 0"])
    answer = np.array([[1, 1, 0, 2], [1, 0, 0, 1], [0, 0, 0, 1], [1, 0, 0, 0]])
    sizes = {None: 6, "cat": 6, 1: 6, ("cat", 0, 1): 3, (np.int64(1), 0, 1): 3, "cat 3 2": 2, "cat  0 3": 1,
             ("background", 0, 2): 9, (None, 0, 0): 3, "cat 1 0": 1, "cat 1 0 3 0": 1}
    for target, size in sizes.items(): assert asked.output_target(answer, target).where.sum() == size, target
    assert asked.output_target(answer, (2, 0, 0)).name == "cat 1 0 at 0, 0, which is called cat"
    image = np.zeros((3, 20, 40), np.uint8) # the answer's lower half is beside it
    assert asked.output_target(answer, "cat", image).where.tolist() == [[1, 1, 0, 0], [1, 0, 0, 1], [0] * 4, [0] * 4]
    assert asked.output_target(answer, "cat 39 19", image).where.sum() == 1
    for target in "dog", "cat 40 0", "cat 0 20", (1, -1, 0), (1, 0.5, 0), (1, True, None), ("dog", 0, 0), (1, 2), [1]:
        with pytest.raises(ValueError, match="target must be|a place must be"):
            asked.output_target(answer, target, image)


def test_a_region_depends_on_what_is_in_it():
    "A class that is each pixel's own colour: what is elsewhere says nothing"
    class Colours(nn.Module):
        def forward(self, images): return images.float()
    bright = torch.zeros(3, 8, 8)
    bright[1, 1:3, 1:3] = bright[1, 5:7, 5:7] = 200
    asked = Segmentation(["background", "green", "blue"])
    outputs = Colours()(bright[None])
    answer = asked.answers(outputs, None)[0]
    one, both = asked.output_target(answer, ("green", 5, 5)), asked.output_target(answer, "green")
    dark = bright.clone()
    dark[1, 1:3, 1:3] = 0
    assert one.score(dark[None]) == 200 and both.score(dark[None]) == 100


@pytest.mark.parametrize("make", [reader, tagger])
def test_texts_at_every_depth(make, tiny):
    given, target = (sentence, 1) if make is reader else (long_one, (0, 2, "PER"))
    found = []
    for depth in range(len(blocks(make(tiny)))):
        model = make(tiny)
        freeze(model, depth)
        own = {method: explain(model, given, target, method) for method in ("integrated_gradients", "occlusion")}
        added = own["integrated_gradients"]
        assert added.details["completeness_error"] < .05
        assert abs(added.values.sum() - (added.score - added.empty)) <= .05 * abs(added.score - added.empty) + 1e-6
        found.append([explanation.values for explanation in own.values()])
    assert all(np.allclose(own, found[0], atol=1e-4) for own in found)
    assert np.ptp(found[0][0]) > 0 and np.ptp(found[0][1]) > 0


def test_words_are_words(tiny):
    "Sub-words are added up, and what stands around a text stands apart"
    found = explain(reader(tiny), sentence, 1)
    assert found.parts.text.words[1] == "unbelievably" and found.parts.num_groups == 7
    assert len(found.parts.owners[0]) > 9 and found.parts.beside == ["[CLS]", "[SEP]"]
    assert len(found.groups) == 7 and found.values[7:].any()
    assert not explain(reader(tiny), sentence, 1, "occlusion").values[7:].any()
    assert "[CLS]" in repr(found) and found.suffix == ".html" and "unbelievably</span>" in found._repr_html_()


def test_a_hidden_word_is_hidden_in_every_window(tiny):
    model = tagger(tiny, word_shape=True).eval()
    nn.init.normal_(model.shapes.scores.weight)
    parts = model.parts(long_one)
    (whole,) = model.encode([long_one])
    assert len(whole) > 1
    word = parts.text.words.index("well")
    (hidden,) = parts.hidden((torch.arange(len(parts)) != word)[None])
    changed = [(a != b).nonzero().flatten().tolist() for (a, *_), (b, *_) in zip(hidden, whole)]
    assert changed == [(own == word).nonzero().flatten().tolist() for own in parts.owners] and any(changed)
    for (ids, shapes, firsts), (_, before, same) in zip(hidden, whole):
        assert (shapes[ids == model.hidden_token] == 0).all() and torch.equal(firsts, same)


def test_what_can_be_asked_of_tags(tiny):
    asked = Tagging(["PER", "LOC"])
    answer = ["B-PER", "I-PER", "O", "B-LOC"]
    given = "Ada Lovelace in Oslo"
    names = {None: "Ada Lovelace", 1: "Oslo", "LOC": "Oslo", (2, 4, "LOC"): "in Oslo"}
    for target, name in names.items():
        assert asked.output_target(answer, target, given).name.startswith(f"{name} (")
    outputs = torch.rand(2, 4, 5)
    score = asked.output_target(answer, None, given).score(outputs)
    assert torch.allclose(score, (outputs[:, 0, 1] + outputs[:, 1, 2]) / 2)
    for target in (2, "DATE", (3, 3, "LOC"), (0, 9, "LOC"), (0, 1, "DATE")):
        with pytest.raises(ValueError, match="found are"): asked.output_target(answer, target, given)
    with pytest.raises(ValueError, match="found are nothing"): asked.output_target(["O"] * 4, None, given)


def test_what_can_be_asked_of_others():
    both = Several(dict(size=Regression(centre=10., scale=2.), hue=MultiLabel(["red", "green"])))
    answer = dict(size=12., hue=np.array([.2, .9]))
    outputs = dict(size=torch.tensor([[1.]]), hue=torch.tensor([[3., 4.]]))
    asked = {target: both.output_target(answer, target) for target in (None, "hue", ("hue", "red"))}
    assert [own.name for own in asked.values()] == ["size: the number", "hue: green", "hue: red"]
    assert [own.score(outputs).item() for own in asked.values()] == [12., 4., 3.]
    for target in ("weight", ("hue", "blue"), 3):
        with pytest.raises(ValueError, match="target must"): both.output_target(answer, target)


def test_several_at_once_and_errors():
    model = convolutions()
    pair = explain(model, torch.stack([picture(0), picture(1)]))
    assert len(pair) == 2 and np.allclose(pair[1].values, explain(model, picture(1)).values)
    with pytest.raises(ValueError, match="method must be one of"): explain(model, picture(), method="magic")
    with pytest.raises(ValueError, match="target must be a class"): explain(model, picture(), "z")
    with pytest.raises(ValueError, match="method parts"): explain(Finder(), torch.rand(8, 16))


# Is it worth anything?

def test_the_checks_can_fail():
    model = convolutions(3).eval()
    checked = sanity_check(model, picture(), "b", "occlusion")
    assert checked.beats_random and checked.deletion[0] < checked.deletion[1]
    own = checked.explanation
    upside_down = Explanation("mine", "b", own.parts, -own.values, own.score, own.empty)
    score = Score(model, picture(), "b")
    _, curves = deletion(score, [np.argsort(-upside_down.groups)])
    worse = Checked(upside_down, checked.shares, curves[0], checked.random, upside_down)
    assert not worse.beats_random and not worse.notices and "NO FASTER" in repr(worse) and "NEARLY" in repr(worse)


def test_a_shuffled_head_is_put_back(tiny):
    for model in convolutions(), reader(tiny):
        before, head = fingerprint(model), blocks(model)[-1]
        *body, _ = map(fingerprint, blocks(model))
        with pytest.raises(KeyError), shuffled_head(model):
            assert fingerprint(head) != before and [fingerprint(own) for own in blocks(model)[:-1]] == body
            assert fingerprint(model) != before
            raise KeyError
        assert fingerprint(model) == before


# Networks that cheat

def test_a_planted_mark_is_found():
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(60, 160, (40, 3, side, side), dtype=torch.uint8, generator=rng)
    labels = torch.arange(40) % 2
    images[labels == 1, :, 4:12, 4:12] = 255 # four whole squares
    part, model = Examples(images, labels), convolutions()
    fit(model, Task("marks", "image", ["a", "b"], part, part, part), epochs=30, learning_rate=1e-2, progress=False)
    assert evaluate(model, part).accuracy == 1
    mark = torch.zeros(side, side, dtype=torch.bool)
    mark[4:12, 4:12] = True
    for method in ("integrated_gradients", "occlusion"):
        found = explain(model, images[1::2][:10], "b", method)
        top = [np.argsort(-own.values, kind="stable")[:side**2 // 100] for own in found]
        assert sum(mark.flatten().numpy()[own].mean() >= .5 for own in top) >= 8, method


def test_a_planted_word_is_first(tiny):
    rng, words = random.Random(0), "the roots of this matrix are sums over rows and columns".split()
    def said(label): return " ".join([("hence", "indeed")[label], *rng.sample(words, 6)])
    part = Examples([said(i % 2) for i in range(60)], torch.arange(60) % 2)
    model = reader(tiny)
    task = Task("said", "text", ["dull", "bright"], part, part, part)
    fit(model, task, epochs=20, learning_rate=1e-2, progress=False)
    assert evaluate(model, part).accuracy > .95
    for method in ("integrated_gradients", "occlusion"):
        found = explain(model, part.inputs[1:21:2], "bright", method)
        assert sum(own.top(1)[0][0] == "indeed" for own in found) >= 8, method


# The command

@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    top = tmp_path_factory.mktemp("saved")
    part = Examples(["good", "bad"] * 4, [1, 0] * 4)
    task, model = Task("mood", "text", ["dull", "bright"], part, part, part), reader(tiny)
    history = fit(model, task, epochs=1, progress=False)
    saving.save(top/"text", model, task, history, evaluate(model, task.test))
    part = Examples(torch.stack([picture(i) for i in range(8)]), [0, 1] * 4)
    task, model = Task("noise", "image", ["a", "b"], part, part, part), patches()
    history = fit(model, task, epochs=1, progress=False)
    saving.save(top/"image", model, task, history, evaluate(model, task.test))
    part = Examples(part.inputs, [np.arange(side * side).reshape(side, side) % 3] * 8)
    model = segmenter()
    task = Task("stripes", "image", model.objective, part, part, part)
    history = fit(model, task, epochs=1, progress=False)
    saving.save(top/"masks", model, task, history, evaluate(model, task.test))
    return top


def test_the_command_explains_a_text(command, monkeypatch, saved, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, said, _ = command("explain", saved/"text", "a <good> day", "--target", "bright")
    assert code == 0
    assert "integrated gradients: bright" in said and "completeness error" in said and "random order" in said
    assert said.rstrip().endswith("explanation.html") and "&lt;" in (tmp_path/"explanation.html").read_text()
    (note := tmp_path/"note.txt").write_text("a good day")
    more = "--json", "--out", "mine.html", "--method", "occlusion"
    code, said, _ = command("explain", saved/"text", note, *more)
    told = json.loads(said)
    assert code == 0 and told["file"] == "mine.html" and {row["word"] for row in told["top"]} == {"a", "good", "day"}


def test_the_command_explains_an_image(command, monkeypatch, saved, tmp_path):
    from PIL import Image
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture().permute(1, 2, 0).numpy()).save("mine.png")
    code, said, _ = command("explain", saved/"image", "mine.png", "--method", "grad_cam", "--json")
    told = json.loads(said)
    assert code == 0 and told["block"] == "layer1"
    assert Image.open(told["file"]).width > 500 and "rows" in told["top"][0]["square"]


def test_the_command_explains_a_region(command, monkeypatch, saved, tmp_path):
    from PIL import Image
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture().permute(1, 2, 0).numpy()).resize((64, 64)).save("mine.png")
    code, said, _ = command("explain", saved/"masks", "mine.png", "--target", "red 63 40")
    assert code == 0 and "integrated gradients: red at 63, 40" in said and "completeness error" in said
    assert "with a line around it" in said and Image.open("explanation.png").width > 500
    code, _, err = command("explain", saved/"masks", "mine.png", "--target", "red 64 40")
    assert code == 1 and "x from 0 to 63 and y from 0 to 63, got 64 and 40" in err


@pytest.mark.parametrize("kind, given, more, sentence", [
    ("image", "gone.png", [], "no file"), ("text", " ", [], "empty text"), ("text", "good", ["--target", "sad"], "sad"),
    ("text", "good", ["--method", "grad_cam"], "method must be one of integrated_gradients, occlusion"),
    ("text", "good", ["--out", "mine.png"], "must end in .html"), ("text", "two.csv", [], "holds 2 texts")])
def test_the_command_refuses_in_a_sentence(command, monkeypatch, saved, tmp_path, kind, given, more, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path/"two.csv").write_text("text\ngood\nbad\n")
    code, _, err = command("explain", saved/kind, given, *more)
    assert code == 1 and sentence in err and "Traceback" not in err and len(err.splitlines()) == 1
