"""Which backbone suits a task, when nobody says: by what heads make of frozen features."""
import importlib.metadata

import numpy as np
import pytest
import torch
from types import SimpleNamespace
from finetune_nb import data, pretraining
from finetune_nb.data import Examples, Task
from finetune_nb.engine import commands
from finetune_nb.engine.choosing import Choice, some_of
from finetune_nb.engine.families import embedded
from finetune_nb.engine.numbers import Regression
from finetune_nb.pretraining import choose

fractal, lite0 = "resnet18-fractal", "efficientnet-lite0"


def task_of(targets, objective):
    examples = Examples(torch.zeros(len(targets), 3, 32, 32, dtype=torch.uint8), targets)
    return Task("noise", "image", objective, examples, examples, examples)


@pytest.mark.parametrize("make, name", [
    (lambda: data.digits(8), fractal), (lambda: data.photographs(5, 0, 1, 1), lite0)], ids=["digits", "photographs"])
def test_writing_and_photographs_call_for_different_backbones(make, name):
    choice = choose(make())
    assert choice.name == name and choice.accuracies.keys() == choice.evidence.keys() == {fractal, lite0}
    assert max(choice.accuracies, key=choice.accuracies.get) == name
    assert 0 < choice.seconds and f"Backbone {name}, " in str(choice) and "%" in str(choice)


def test_what_is_embedded(monkeypatch):
    assert embedded("image") == [fractal, lite0] and embedded("text") == ["minilm"] and embedded("sound") == []
    def missing(name): raise importlib.metadata.PackageNotFoundError(name)
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert embedded("image") == [fractal] and embedded("text") == []


def test_nothing_is_run_where_there_is_nothing_to_compare(monkeypatch):
    def never(*_): raise AssertionError("a backbone was run")
    monkeypatch.setattr(pretraining, "frozen", never)
    task = task_of([0, 1] * 5, ["a", "b"])
    assert str(choose(task, [lite0])) == f"Backbone {lite0}: there was nothing to compare."
    assert choose(task_of([0.1, 0.2, 0.9], Regression())).name == fractal, "three numbers are one stratum"
    monkeypatch.setattr(pretraining, "embedded", lambda inputs: [])
    with pytest.raises(ValueError, match=r"No image backbone is installed: .*\[offline\]"): choose(task)


def seen(monkeypatch, **features):
    "What frozen backbones make of the examples, by the backbone's name"
    monkeypatch.setattr(pretraining, "frozen", lambda task, name, *_: name)
    monkeypatch.setattr(pretraining, "features", lambda name, examples: features[name](examples))


def noise(examples): return np.random.default_rng(0).normal(size=(len(examples), 8))
def telling(examples): return noise(examples) + 4 * examples.targets.numpy()[:, None]


def test_the_better_head_is_chosen(monkeypatch):
    seen(monkeypatch, bad=noise, good=telling)
    choice = choose(task_of([0, 1] * 20, ["a", "b"]), ["bad", "good"])
    assert choice.name == "good" and choice.accuracies["good"] > 0.9 > choice.accuracies["bad"]


def test_between_equals_the_evidence_decides(monkeypatch):
    seen(monkeypatch, first=telling, second=lambda examples: 2 * telling(examples))
    monkeypatch.setattr(pretraining, "logme", lambda features, labels: abs(features).mean())
    assert choose(task_of([0, 1] * 20, ["a", "b"]), ["first", "second"]).name == "second"


def test_one_example_of_each_class_is_too_few_for_a_head(monkeypatch):
    seen(monkeypatch, bad=noise, good=telling)
    choice = choose(task_of([0, 1], ["a", "b"]), ["bad", "good"])
    assert choice.accuracies == {} and "%" not in str(choice) and choice.evidence.keys() == {"bad", "good"}


@pytest.mark.parametrize("targets, objective", [
    ([0] * 90 + [1] * 10, ["a", "b"]), (np.linspace(0, 1, 100), Regression()),
    (range(100), [str(i) for i in range(100)])],
    ids=["a rare class", "numbers", "many classes"])
def test_few_examples_stand_for_all(targets, objective):
    examples, strata = some_of(task_of(list(targets), objective), 40)
    assert len(examples) == len(strata) <= 40
    if len(np.unique(targets)) == 2: assert np.bincount(strata).tolist() == [20, 10]
    else: assert len(np.unique(strata)) >= 10


def test_the_command_chooses_for_a_folder(monkeypatch, capsys):
    monkeypatch.setattr(pretraining, "choose", lambda task, image_size: Choice(lite0, {}, {}, 0, 0.0))
    task = SimpleNamespace(kind="image", objective=SimpleNamespace(backbone=""))
    def asked(source, told): return commands.backbone_for(task, source, told, fractal, None)
    assert asked(None, None) == fractal and asked("pets", "resnet50") == "resnet50" and not capsys.readouterr().err
    assert asked("pets", None) == lite0 and lite0 in capsys.readouterr().err
