"""Smaller models: they load, answer, export and learn as before, or say in a sentence why not."""
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import finetune_nb
from conftest import tiny_bert
from finetune_nb import compression, data, evaluate, fit, freeze, saving, text, vision
from finetune_nb.compression import Distilled, compress, distil, narrowed, pace, shallower
from finetune_nb.data import Examples, Task
from finetune_nb.engine.labels import Classification
from finetune_nb.engine.objective import objective_of
from finetune_nb.engine.recalled import recalled
from finetune_nb.engine.widths import widths_of
from finetune_nb.freezing import blocks
from test_tagging import task_of_stories

for package in ("onnx", "onnxruntime", "onnxscript", "torch_pruning"): pytest.importorskip(package)
quiet_fit = dict(epochs=1, progress=False)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory): return tiny_bert(tmp_path_factory.mktemp("tiny"), layers=3)


def saved(model, task, folder):
    "Fine-tuned for an epoch, and saved"
    freeze(model, len(blocks(model)) - 2)
    history = fit(model, task, **quiet_fit)
    return saving.save(folder, model, task, history, evaluate(model, task.test))


@pytest.fixture(scope="session")
def moods(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moods")
    words = ["good", "fine", "happy", "sunny", "warm"], ["bad", "sad", "grim", "dark", "cold"]
    rows = [f"this {words[i % 2][i // 2 % 5]} day number {i} with {'xyz'[i % 3] * (i + 1)},{'gb'[i % 2]}"
            for i in range(60)]
    (folder/"moods.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return data.text_table(folder/"moods.csv")


@pytest.fixture(scope="session")
def pets(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pets"), np.random.default_rng(0)
    for name, shade in (("cat", 60), ("dog", 180)):
        (folder/name).mkdir()
        for i in range(10):
            pixels = np.clip(rng.normal(shade, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder/name/f"{i}.png")
    return data.image_folder(folder)


@pytest.fixture(scope="session")
def reader(tiny, moods, tmp_path_factory):
    model = text.classifier(tiny, moods, pooling="pooler", max_length=24)
    return saved(model, moods, tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="session")
def tagger(tiny, tmp_path_factory):
    task = task_of_stories((20, 8, 8))
    return saved(text.tagger(tiny, task, max_length=8), task, tmp_path_factory.mktemp("tagger")), task


@pytest.fixture(scope="session")
def seer(pets, tmp_path_factory):
    return saved(vision.classifier("resnet18-fractal", pets, image_size=32), pets, tmp_path_factory.mktemp("seer"))


def said_of(folder):
    "The card, and what `result.json` and `model.json` say"
    result, about = (json.loads((folder/name).read_text(encoding="utf-8")) for name in ("result.json", "model.json"))
    return (folder/"README.md").read_text(encoding="utf-8"), result, about


def whole(folder, out, found):
    "The folder of a smaller model has all its parts, and says what became of it"
    card, result, about = said_of(out)
    assert f"## Made smaller\n\n{found}" in card and result["compressed"]["bytes"] == list(found.bytes)
    assert about["compressed"] == result["compressed"] and not list(out.glob(".*"))
    return finetune_nb.load(out)


# Files

def test_int8_of_texts(reader, moods, tmp_path):
    found = compress(reader, tmp_path/"small", int8=True)
    again = whole(reader, tmp_path/"small", found)
    assert found.bytes[1] < 0.3 * found.bytes[0] and found.examples == len(moods.validation)
    old = finetune_nb.load(reader)
    asked = moods.test.inputs
    assert list(again.predict(asked, top=2).columns) == list(old.predict(asked, top=2).columns)
    gap = evaluate(again.model, moods.test).probabilities - evaluate(old.model, moods.test).probabilities
    assert np.abs(gap).max() < 0.05
    copy = saving.export_onnx(tmp_path/"small", tmp_path/"copy.onnx")
    assert copy.read_bytes() == (tmp_path/"small"/"model.onnx").read_bytes()
    assert not (tmp_path/"small"/"model.safetensors").exists() and not (tmp_path/"small"/"config.json").exists()
    with pytest.raises(ValueError, match="is an ONNX file already"):
        compress(tmp_path/"small", tmp_path/"no", int8=True)
    with pytest.raises(ValueError, match="has no blocks and does not learn"): freeze(again.model, 1)
    assert "onnxruntime.InferenceSession" in said_of(tmp_path/"small")[0]


def test_int8_of_tags(tagger, tmp_path):
    folder, task = tagger
    found = compress(folder, tmp_path/"small", int8=True, task=task)
    again, old = whole(folder, tmp_path/"small", found), finetune_nb.load(folder)
    said = [own.in_conll(task.test.inputs, own.answers(task.test.inputs)) for own in (old, again)]
    assert said[0].count("\n") == said[1].count("\n") > len(task.test)
    scores = [own.model.call(own.model.collate(own.model.encode(task.test.inputs))) for own in (old, again)]
    real = scores[0].isfinite() & (scores[0].abs() < 1e4)
    assert (scores[0] - scores[1])[real].abs().max() < 0.05


def test_fp16_halves_the_file_and_transformers_loads_it(reader, tmp_path):
    found = compress(reader, tmp_path/"small", fp16=True)
    whole(reader, tmp_path/"small", found)
    assert found.bytes[1] < 0.51 * found.bytes[0]
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path/"small", dtype=torch.float32).state_dict()
    ours = load_file(reader/"model.safetensors")
    assert all(torch.allclose(theirs[name], t, atol=1e-3) for name, t in ours.items())


def test_channels_of_images_and_then_int8(seer, pets, tmp_path):
    found = compress(seer, tmp_path/"small", prune=0.5, epochs=1, progress=False)
    narrow = whole(seer, tmp_path/"small", found)
    assert found.bytes[1] < 0.3 * found.bytes[0] and narrow.model.widths["layer4.1.conv2"][:2] == [256, 256]
    card, _, about = said_of(tmp_path/"small")
    assert about["widths"] == narrow.model.widths and "narrower than those of a `resnet18`" in card
    twice = compress(tmp_path/"small", tmp_path/"smaller", int8=True)
    assert twice.bytes[1] < 0.3 * found.bytes[1] and "scales from 12 examples" in twice.how
    gap = [evaluate(finetune_nb.load(folder).model, pets.test).probabilities
           for folder in (tmp_path/"small", tmp_path/"smaller")]
    assert np.abs(gap[0] - gap[1]).max() < 0.1


def test_the_command(command, reader, moods, tmp_path):
    def said(*words):
        code, out, err = command("compress", reader, *words, "--fp16", "--json")
        assert not code, err
        return json.loads(out.splitlines()[-1])
    found = said("--out", tmp_path/"small")
    assert found["examples"] == len(moods.validation) and found["bytes"][1] < 0.51 * found["bytes"][0]
    assert "finetune-nb compress" in said_of(tmp_path/"small")[0]
    named = said(moods.made["source"], "--out", tmp_path/"again")
    assert named["scores"] == found["scores"]


@pytest.mark.parametrize("kind", ["reader", "tagger"])
def test_layers_of_texts(kind, request, tmp_path):
    folder, task = request.getfixturevalue(kind) if kind == "tagger" else (request.getfixturevalue(kind), None)
    found = compress(folder, tmp_path/"small", layers=2, epochs=1, task=task, progress=False)
    again = whole(folder, tmp_path/"small", found)
    assert [block.name for block in blocks(again.model)] == ["embeddings", "layer.0", "layer.1", "head"]
    assert ("learnt from the larger" in found.how) == (kind == "reader")
    if kind == "tagger": return
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path/"small").config.num_hidden_layers == 2


# Networks

def test_which_layers_stay(tiny):
    model = text.classifier(tiny, 2)
    small = shallower(model, 2)
    first, last = small.backbone.encoder.layer
    assert len(model.backbone.encoder.layer) == 3, "the model itself stays"
    for ours, theirs in ((first, model.backbone.encoder.layer[0]), (last, model.backbone.encoder.layer[2])):
        assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))


def test_pruning_leaves_the_model_and_its_scores(pets):
    model = vision.classifier("resnet18-fractal", pets, image_size=32)
    before = widths_of(model)
    small = narrowed(model, 0.25)
    assert widths_of(model) == before and small.widths["conv1"][0] == 48
    assert small.eval()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 2)


def test_a_distilled_model_learns_scores(tiny):
    "Also where nothing is labelled: from the teacher alone"
    inputs = [f"{a} {b}" for a in ("good", "fine", "bad", "sad") for b in ("day", "night", "noon")]
    examples = Examples(inputs, [0, 1] * 6)
    task = Task("mood", "text", ["good", "bad"], examples.subset([0, 1]), examples, examples)
    teacher, student = (text.classifier(tiny, task, seed=seed, dropout=0.0) for seed in (1, 2))
    with torch.no_grad(): teacher.head.weight.mul_(50)
    def gap():
        scores = [compression._scores(own, task.objective, inputs) for own in (teacher, student)]
        return (scores[0] - scores[1]).square().mean().item()
    before = gap()
    history = distil(student, teacher, task, unlabelled=inputs[2:], epochs=30, head_learning_rate=0.05, progress=False)
    assert gap() < before / 4 and len(history.epochs) == 30
    assert type(student.objective) is Classification


def test_the_objective_of_distillation():
    objective = Distilled(Classification(["a", "b"]))
    assert objective_of(objective.to_json()) == objective
    outputs, known = torch.tensor([[1., 0.], [1., 0.]]), torch.tensor([True, False])
    targets = objective.collate(objective.check(dict(own=torch.tensor([0, 0]), scores=outputs + 1, known=known)))
    losses = objective.losses(outputs, targets)
    assert torch.allclose(losses[1], torch.tensor(1.)) and losses[0] > losses[1]


def test_pace_knows_its_units(reader):
    model, threads = finetune_nb.load(reader).model, torch.get_num_threads()
    one, other = pace(model, ["a day"], 5), pace(model, None, 5)
    assert 0 < one["latency"] < 5 and one["throughput"] > 1 and other["latency"] > 0
    assert torch.get_num_threads() == threads


# What is refused, and what is not known

def test_examples_that_are_gone(reader, moods, tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "recalled", lambda folder: (None, "they are gone"))
    found = compress(reader, tmp_path/"small", fp16=True)
    assert not found.scores and "What was lost is not known: they are gone." in said_of(tmp_path/"small")[0]
    with pytest.raises(ValueError, match=r"has to learn again, .* \(they are gone\): give it"):
        compress(reader, tmp_path/"other", layers=1)
    assert not (tmp_path/"other").exists()


def test_a_table_that_grew_is_another_one(reader, moods):
    source = moods.made["source"]
    assert recalled(reader)[1] == ""
    content = open(source).read()
    try:
        with open(source, "a") as file: file.write("".join(f"one more {'ab'[i % 2] * i} day,g\n" for i in range(9)))
        assert "other examples now" in recalled(reader)[1]
    finally: open(source, "w").write(content)


@pytest.mark.parametrize("told, sentence", [
    ({}, "Say one of int8, fp16, prune, layers, got none"),
    (dict(int8=True, prune=0.5), "got int8, prune"),
    (dict(layers=3), "layers must be between 1 and 2, got 3"),
    (dict(layers=0), "layers must be at least 1, got 0"),
    (dict(prune=0.5), "Channels are pruned in convolutional networks, and this TextClassifier is none"),
    (dict(prune="half"), "prune must be a number or None")])
def test_texts_refuse_in_a_sentence(reader, tmp_path, told, sentence):
    with pytest.raises(ValueError, match=sentence): compress(reader, tmp_path/"small", **told)
    assert not (tmp_path/"small").exists()


@pytest.mark.parametrize("told, sentence", [
    (dict(prune=1.0), "share must be above 0 and below 1"),
    (dict(layers=1), "No whole layers can be left out of a ResNet")])
def test_images_refuse_in_a_sentence(seer, tmp_path, told, sentence):
    with pytest.raises(ValueError, match=sentence): compress(seer, tmp_path/"small", **told)


def test_nothing_is_overwritten(reader, tmp_path):
    (tmp_path/"README.md").write_text("mine")
    with pytest.raises(FileExistsError, match="nothing is overwritten"): compress(reader, tmp_path, fp16=True)
    assert (tmp_path/"README.md").read_text() == "mine" and not (tmp_path/".part").exists()


def test_without_torch_pruning_it_says_what_to_install(seer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'finetune-nb\[compression\]'"):
        compress(seer, tmp_path/"small", prune=0.5)
