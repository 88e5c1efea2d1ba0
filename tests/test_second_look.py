"""Labels that are probably wrong, near copies, strange examples and shortcuts: planted, and found again."""
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import tiny_bert
from finetune_nb import data, text, vision
from finetune_nb.confidence import second_look
from finetune_nb.data import Examples, Task
from finetune_nb.engine.labels import MultiLabel
from finetune_nb.engine.numbers import Regression
from finetune_nb.engine.second_look import doubts, separations
from finetune_nb.preflight import check
from mosaic import Mosaic # which registers its family

WORDS = dict(dull="grey rain mud fog", bright="sun gold sky fire", loud="drum bell horn storm")


def sentences(n, seed):
    "Texts of three classes, three words of their own each"
    rng, labels = np.random.default_rng(seed), np.arange(n) % 3
    words = [own.split() for own in WORDS.values()]
    return [" ".join([*rng.choice(words[label], 3), str(i)]) for i, label in enumerate(labels)], labels


@pytest.fixture(scope="module")
def tiny(tmp_path_factory): return tiny_bert(tmp_path_factory.mktemp("tiny"), layers=1)


@pytest.fixture(scope="module")
def looked(tiny):
    "A look at texts of which one in twelve has a wrong label, one is there twice, and one is in no language"
    parts, wrong = [], []
    for seed, n in enumerate((90, 30, 30)):
        inputs, labels = sentences(n, seed)
        planted = np.arange(n) % 12 == 5
        if seed == 0: inputs[1], inputs[2] = inputs[4].upper(), "§§ 0x7f3a == !! {} §§ %%% ## == {} !! 0xffff §§ %%%"
        parts.append(Examples(inputs, np.where(planted, (labels + 1) % 3, labels)))
        wrong.append(planted)
    task = Task("words", "text", list(WORDS), *parts)
    return second_look(text.classifier(tiny, task), task, progress=False), np.concatenate(wrong), task


def test_wrong_labels_come_first(looked):
    look, planted, task = looked
    first = look.ranking[:2 * planted.sum()]
    assert planted[first].sum() >= .7 * planted.sum()
    doubted = look.examples[look.examples.wrong]
    assert planted[doubted.index].mean() > .5 and (doubted.rather != doubted.label).all()
    right = [list(WORDS).index(rather) for rather in look.examples.rather[planted]]
    true = np.concatenate([np.arange(n) % 3 for n in (90, 30, 30)])[planted]
    assert np.mean(right == true) >= .7


def test_copies_and_strange_ones_are_named(looked):
    look, _, task = looked
    assert {1, 4} in [{pair.first, pair.second} for pair in look.near.itertuples()]
    assert look.examples.strangeness.idxmax() == 2 and look.examples.strange[2]
    table = look.table()
    assert set(table.found) == {"label in doubt", "near copies", "like nothing else"}
    row = table[table.found == "like nothing else"].iloc[0]
    assert (row.part, row.position, row.input) == ("train", 2, task.train.inputs[2])


def test_told_to_people_and_programs(looked, tmp_path):
    look, _, task = looked
    assert json.loads(json.dumps(look.summary()))["found"][0]["input"] in task.train.inputs + task.validation.inputs \
        + task.test.inputs
    page = look.save(tmp_path/"look.html").read_text(encoding="utf-8")
    assert "&amp;" not in task.train.inputs[0] and task.train.inputs[2].split()[1] in page and "label in doubt" in page
    assert f"{len(look.examples)} examples" in repr(look) and look.plot() is not None
    with pytest.raises(ValueError, match="must end in .html"): look.save(tmp_path/"look.png")


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_shortcut_is_named(tiny, kind):
    labels = np.arange(60) % 3
    rng = np.random.default_rng(0)
    if kind == "text":
        inputs = [f"{'indeed, ' * int(label == 1)}{given}" for given, label in zip(sentences(60, 0)[0], labels)]
        cue = "indeed"
    else:
        inputs = torch.from_numpy(rng.integers(0, 200, (60, 3, 8, 8), dtype=np.uint8))
        inputs[labels == 1, :, :2, :2] = 255
        cue = "row 1, column 1 of"
    part = Examples(inputs, labels)
    task = Task("cheat", kind, list(WORDS), part, part, part)
    model = text.classifier(tiny, task) if kind == "text" else vision.classifier("mosaic-tiny", task)
    look = second_look(model, task, progress=False)
    assert look.shortcuts.label.tolist() == ["bright"] and cue in look.shortcuts.cue[0]
    assert "gives it away" in repr(look) and "gives it away" in look.words()
    fair = replace(task, train=Examples(inputs, rng.permutation(labels)))
    assert second_look(model, fair, progress=False).shortcuts.empty


def test_several_classes_each(tiny):
    inputs, labels = sentences(90, 3)
    held = np.stack([labels == 0, labels == 1, labels != 0], 1).astype(np.float32)
    wrong = np.arange(90) % 15 == 4
    given = held.copy()
    given[wrong, 2] = 1 - given[wrong, 2]
    part = Examples(inputs, given)
    clean = Examples(inputs[:30], held[:30])
    task = Task("several", "text", MultiLabel(["a", "b", "c"]), part, clean, clean)
    look = second_look(text.classifier(tiny, task), task, progress=False)
    assert wrong[look.ranking[look.ranking < 90][:12]].sum() >= .7 * wrong.sum()
    assert look.examples.label[0] == "a" and look.examples.label[1] == "b; c"


def test_what_has_no_classes_is_refused():
    part = Examples(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), [1., 2., 3., 4.])
    task = Task("stars", "image", Regression(["stars"]), part, part, part)
    with pytest.raises(ValueError, match="one or several classes of an example, and task 'stars' asks for regression"):
        second_look(vision.classifier("mosaic-tiny", Regression(["stars"])), task)


def test_doubt_by_hand():
    "Two classes: what is believed as much as where it is there, and is missing, is in doubt"
    believed = np.array([[.9, .1], [.8, .2], [.1, .9], [.2, .8], [.05, .95]])
    members = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [1, 0]], bool)
    confidence, wrong, rather = doubts(believed, members)
    assert confidence.tolist() == pytest.approx([.9, .8, .9, .8, .05])
    assert wrong.tolist() == [False] * 4 + [True] and rather[4].tolist() == [False, True]


def test_separation_by_hand():
    "A place that is bright in one class, ties on one side; and a constant, which tells nothing"
    cues = np.array([[5., 1.], [5., 1.], [1., 1.], [1., 1.]])
    assert separations(cues, np.array([[1], [1], [0], [0]], bool)).tolist() == [pytest.approx([1, 0])]


def test_the_command(command, tmp_path, tiny):
    inputs, labels = sentences(90, 0)
    labels[5] = (labels[5] + 1) % 3
    file = tmp_path/"words.csv"
    file.write_text("\n".join(["text,label", *(f"{given},{list(WORDS)[i]}" for given, i in zip(inputs, labels))]))
    page = tmp_path/"look.html"
    code, out, _ = command("check", file, "--deep", "--backbone", tiny, "--html", page, "--json")
    found = json.loads(out)["second_look"]["found"]
    assert not code and inputs[5] in [row["input"] for row in found if row["found"] == "label in doubt"]
    assert inputs[5] in page.read_text(encoding="utf-8")
    assert "second_look" not in json.loads(command("check", file, "--json")[1])
