"Examples without labels: where they come from, what is guessed, when guesses are left out, what to label next."
import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from finetune_nb import data, evaluate, fit, freeze, preflight, text
from finetune_nb.data import Examples, Task
from finetune_nb.freezing import fingerprint
from finetune_nb.unlabelled import WAYS, next_to_label
from conftest import tiny_bert

how = dict(learning_rate=1e-2, head_learning_rate=3e-2, precision="fp32", progress=False)


def clouds(seed=0, count=300, right=True):
    "Three clouds of points, one example of each with a label; or with guesses that no validation example confirms"
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    points = torch.tensor(rng.normal(np.array([[0, 3], [3, 0], [-3, -2]])[labels], 1), dtype=torch.float32)
    parts = [Examples(points[own], labels[own]) for own in (slice(0, 6), slice(6, 60), slice(60, 150))]
    return Task("clouds", "points", list("abc"), *parts, unlabelled=points[150:] if right else -points[150:])


def network(depth=1, dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3)).to(dtype)
    freeze(model, depth)
    return model


@pytest.mark.parametrize("way", WAYS.values())
def test_guesses_are_right_and_keep_the_shares(way):
    task = clouds()
    known, others = task.train.inputs.numpy(), task.unlabelled.numpy()
    believed, guesses = way(known, task.train.targets.numpy(), others)
    assert (guesses == (np.arange(150, 300) % 3)[believed]).mean() > .9
    counts = np.bincount(guesses, minlength=3)
    assert counts.max() - counts.min() <= .15 * counts.sum()


@pytest.mark.parametrize("way", WAYS)
def test_a_fit_keeps_what_does_better(way):
    alone, model = network(), network()
    plain = fit(alone, clouds(), 20, **how)
    history = fit(model, clouds(), 20, unlabelled=way, **how)
    assert history.validation_score >= plain.validation_score and way in history.unlabelled
    again = evaluate(model, clouds().validation, precision="fp32").accuracy
    assert again == pytest.approx(history.validation_score)
    if "left out" in history.unlabelled: assert fingerprint(model) == fingerprint(alone)
    assert fingerprint(model[0]) == fingerprint(network()[0]), "what is frozen stays"


def test_bad_guesses_are_left_out(monkeypatch):
    monkeypatch.setitem(WAYS, "self-training", lambda known, labels, others: (np.arange(len(others)),
                                                                              np.zeros(len(others), int)))
    alone, model = network(), network()
    fit(alone, clouds(), 20, **how)
    history = fit(model, clouds(), 20, unlabelled="self-training", **how)
    assert history.unlabelled.endswith("so they are left out") and fingerprint(model) == fingerprint(alone)


def test_a_fit_with_guesses_goes_on(tmp_path):
    "From the checkpoints of both of its parts, to the same weights"
    whole, again = network(), network()
    fit(whole, clouds(), 6, unlabelled="label-spreading", checkpoint=tmp_path/"a", every=2, **how)
    shutil.copytree(tmp_path/"a", tmp_path/"b")
    for file in sorted((tmp_path/"b"/"guesses").iterdir())[1:]: file.unlink() # as if it was killed there
    fit(again, clouds(), 6, unlabelled="label-spreading", checkpoint=tmp_path/"b", resume=True, every=2, **how)
    assert fingerprint(whole) == fingerprint(again)


@pytest.mark.parametrize("task, way, says", [
    (clouds(), "magic", "must be one of self-training, label-spreading, got 'magic'"),
    (clouds(), 3, "got 3"),
    (Task("few", "points", list("abc"), *[clouds().train] * 3), "self-training", "has none")])
def test_what_cannot_be_guessed_is_refused(task, way, says):
    with pytest.raises(ValueError, match=says): fit(network(), task, 1, unlabelled=way, **how)


@pytest.mark.parametrize("make", [data.topics, data.digits])
def test_what_is_left_has_no_label(make):
    task = make(2, validation_per_class=2, test_per_class=2)
    parts = [own for part in (task.train, task.validation, task.test) for own in part.inputs]
    def key(x): return x if isinstance(x, str) else x.numpy().tobytes()
    assert len(task.unlabelled) > 1000
    if make is data.topics: assert not set(map(key, parts)) & set(map(key, task.unlabelled))


def rows(count, label="{}"):
    moods = [("bad", "good")[i % 2] for i in range(count)]
    return [f"text number {i} is {mood},{label.format(mood)}" for i, mood in enumerate(moods)]


def test_rows_and_folders_without_labels(tmp_path):
    lines = ["text,label", *rows(40), *(row.replace(",", " again,") for row in rows(60, "")), *rows(1, "")]
    (tmp_path/"a.csv").write_text("\n".join(lines))
    report = preflight.check(tmp_path/"a.csv", progress=False)
    assert report.ok and len(report.inputs) == 40 and len(report.unlabelled) == 60, "a copy of a labelled one is none"
    assert "60 without labels" in report.verdict and len(data.task_of(report).unlabelled) == 60
    for part in ("train/good", "train/bad", "unlabelled", "train/unsup"):
        (tmp_path/"f"/part).mkdir(parents=True)
        for i in range(10): (tmp_path/"f"/part/f"{i}.txt").write_text(f"{part} {i}")
    task = data.text_table(tmp_path/"f")
    assert len(task.unlabelled) == 20 and task.classes == ["bad", "good"]


@pytest.mark.parametrize("by", ["uncertainty", "diversity", "both"])
def test_next_to_label(by):
    model, task = network(), clouds()
    fit(model, task, 10, **how)
    chosen = next_to_label(model, task.unlabelled, 5, by, task.train.inputs, progress=False)
    assert len(set(chosen)) == 5 and set(chosen) <= set(range(150))
    if by != "uncertainty": return
    with torch.no_grad(): ordered = model(task.unlabelled).softmax(1).sort(1).values
    assert set(chosen) == set((ordered[:, 2] - ordered[:, 1]).argsort()[:5].tolist())


def test_on_the_command_line(command, tmp_path):
    (tmp_path/"a.csv").write_text("\n".join(["text,label", *rows(40), *rows(60, "")]))
    folder = tiny_bert(tmp_path/"tiny")
    def said(*words):
        code, out, err = command(*words)
        assert not code, err
        return out
    told = said("text", tmp_path/"a.csv", "--backbone", folder, "--epochs", 2, "--unlabelled", "label-spreading",
                "--out", tmp_path/"m", "--json")
    assert "guesses" in json.loads(told.splitlines()[-1])["unlabelled"]
    (tmp_path/"more.csv").write_text("\n".join(["text", *(row.split(",")[0] for row in rows(30))]))
    listed = said("next", tmp_path/"m", tmp_path/"more.csv", "--count", 3).splitlines()
    assert listed[0] == "input,class,probability" and len(listed) == 4
