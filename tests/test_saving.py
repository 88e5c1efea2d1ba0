"""A saved model: what other tools make of it, what it refuses, and what happens to the folder when things go wrong."""
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms import v2
from transformers import (AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel, RobertaConfig,
                          RobertaModel)

import finetune_nb
from finetune_nb import data, evaluate, fit, freeze, saving, text, training, vision
from finetune_nb.data import Examples, Task
from finetune_nb.engine.labels import ClassEvaluation
from finetune_nb.engine.numbers import Regression
from finetune_nb.engine.places import reserved
from finetune_nb.preflight import inputs_in

small = dict(vocab_size=30522, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
families = {"bert": lambda: BertModel(BertConfig(**small)),
            "roberta": lambda: RobertaModel(RobertaConfig(**small, pad_token_id=0))}
sentences = ["a good day", "a fine and sunny day, all in all", "the bad night of it", "dark", "the sad end"] * 4


@pytest.fixture(scope="module")
def tokenizer(): return text.classifier("minilm", 2).tokenizer


@pytest.fixture(scope="module")
def mood():
    examples = Examples(sentences, [0, 0, 1, 1, 2] * 4)
    skipped = [("moods.csv, line 9", "empty text: there is nothing to read")]
    made = dict(source="moods.csv", skipped=skipped)
    return Task("mood", "text", ["good", "bad", "sad"], examples, examples, examples, made)


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pets"), np.random.default_rng(0)
    for name in ("cat", "dog", "emu"):
        (folder/name).mkdir()
        for i in range(6):
            pixels = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((60, 45)).save(folder/name/f"{i}.png")
    return data.image_folder(folder)


def trained(model, task, folder, depth=2, **more):
    "Fine-tuned for an epoch and saved: what it says of the test examples"
    freeze(model, depth)
    history = fit(model, task, epochs=1, progress=False)
    evaluation = evaluate(model, task.test)
    saving.save(folder, model, task, history, evaluation, more)
    return evaluation


kinds = [(family, pooling) for family in families for pooling in ("mean", "pooler")]


@pytest.fixture(scope="module", params=kinds, ids="-".join)
def saved_text(request, tmp_path_factory, tokenizer, mood):
    family, pooling = request.param
    backbone, folder = tmp_path_factory.mktemp("backbone"), tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    families[family]().save_pretrained(backbone)
    tokenizer.save_pretrained(backbone)
    model = text.classifier(str(backbone), 3, pooling=pooling, max_length=12)
    more = dict(backbone="tiny", command="finetune-nb text moods.csv --out mine")
    return folder, model, pooling, trained(model, mood, folder, **more)


def resnet(**more): return vision.classifier("resnet18-fractal", 3, image_size=32, **more)


@pytest.fixture(scope="module")
def saved_image(tmp_path_factory, pets):
    folder = tmp_path_factory.mktemp("saved")
    model = resnet()
    return folder, model, trained(model, pets, folder, 4, backbone="resnet18-fractal")


def test_a_text_model_comes_back(saved_text, mood):
    folder, model, pooling, evaluation = saved_text
    again = finetune_nb.load(folder)
    assert np.allclose(evaluate(again.model, mood.test).probabilities, evaluation.probabilities, atol=1e-6)
    table = again.predict(sentences, top=3, batch_size=3)
    columns = ["input", "class", "probability", "class_2", "probability_2", "class_3", "probability_3"]
    assert list(table.columns) == columns and list(table.input) == sentences
    assert list(table["class"]) == [mood.classes[i] for i in evaluation.predicted]
    assert np.allclose(table.filter(like="probability").sum(axis=1), 1, atol=1e-5)
    assert again.predict("a good day").shape == (1, 3) and "3 classes for texts: good, bad, sad" in repr(again)


def test_transformers_loads_a_pooler_and_refuses_a_mean(saved_text):
    folder, model, pooling, _ = saved_text
    if pooling == "mean":
        with pytest.raises((ValueError, OSError)): AutoModelForSequenceClassification.from_pretrained(folder)
        card = (folder/"README.md").read_text(encoding="utf-8")
        assert "No class of Transformers for sequence classification does" in card
        return
    theirs, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert theirs.config.id2label == {0: "good", 1: "bad", 2: "sad"}
    batch = AutoTokenizer.from_pretrained(folder)(sentences, padding=True, truncation=True, return_tensors="pt")
    assert batch["input_ids"].shape[1] <= 12, "it cuts where we do"
    with torch.no_grad():
        ours = model.eval()(**model.collate(model.encode(sentences)))
        assert torch.equal(theirs.eval()(**batch).logits, ours)


def test_an_image_model_comes_back_and_torchvision_loads_it(saved_image, pets):
    folder, model, evaluation = saved_image
    again = finetune_nb.load(folder)
    assert np.allclose(evaluate(again.model, pets.test).probabilities, evaluation.probabilities, atol=1e-6)
    assert list(again.predict(pets.test.inputs)["class"]) == [pets.classes[i] for i in evaluation.predicted]
    assert list(again.predict(Image.open(pets.test.inputs[0]))["class"]) == [pets.classes[evaluation.predicted[0]]]
    plain = torchvision.models.resnet18(num_classes=3)
    plain.load_state_dict(load_file(folder/"model.safetensors"))
    about = json.loads((folder/"model.json").read_text(encoding="utf-8"))["preprocessing"]
    prepare = v2.Compose([v2.PILToTensor(), v2.Resize(about["resize_size"]), v2.CenterCrop(about["image_size"]),
                          v2.ToDtype(torch.float32, scale=True), v2.Normalize(about["mean"], about["std"])])
    images = torch.stack([prepare(data.open_image(file)) for file in pets.test.inputs])
    with torch.no_grad(): theirs = plain.eval()(images).softmax(1)
    assert np.allclose(theirs.numpy(), evaluate(model, pets.test, precision="fp32").probabilities, atol=1e-5)


def test_a_test_set_without_one_of_the_classes_is_saved_too(pets, tmp_path):
    part = pets.test.subset([i for i, label in enumerate(pets.test.labels) if label < 2])
    task = Task("part", "image", pets.classes, pets.train, pets.validation, part)
    trained(resnet(), task, tmp_path/"out", 5)
    rows = json.loads((tmp_path/"out"/"result.json").read_text(encoding="utf-8"))["per_class"]
    assert rows[2]["test examples"] == 0 and rows[2]["recall"] is None
    assert "| emu | 0 | – |" in (tmp_path/"out"/"README.md").read_text(encoding="utf-8")


def rows_of(model): return torch.cat([model.head.weight, model.head.bias[:, None]], 1).detach()


def test_a_model_learns_more_classes(saved_text, tokenizer, tmp_path):
    "Of the new task one class is known already. What it knew it says as before, until it learns; saved, it comes back"
    old, again = finetune_nb.load(saved_text[0]).model, Examples(sentences, [0, 0, 1, 1, 0] * 4)
    before = rows_of(old)
    model, task = saving.with_classes(old, Task("more", "text", ["sad", "glad"], again, again, again))
    assert task.classes == model.objective.classes == ["good", "bad", "sad", "glad"]
    assert task.train.labels[:5].tolist() == [2, 2, 3, 3, 2]
    assert torch.equal(rows_of(model)[:3], before) and torch.equal(rows_of(old), before)
    scores = [own.eval()(**own.collate(own.encode(sentences))) for own in (old, model)]
    assert torch.allclose(scores[0], scores[1][:, :3], atol=1e-6)
    evaluation = trained(model, task, tmp_path/"out")
    loaded = finetune_nb.load(tmp_path/"out")
    assert np.allclose(evaluate(loaded.model, task.test).probabilities, evaluation.probabilities, atol=1e-6)
    assert loaded.predict(sentences, top=4).shape == (20, 9) and not torch.equal(rows_of(loaded.model)[:3], before)


def test_an_image_model_learns_more_classes(saved_image, pets):
    "None is new, or all are; torchvision's names stay"
    old, bears = finetune_nb.load(saved_image[0]).model, replace(pets, objective=["bear", "fox", "owl"])
    same, task = saving.with_classes(old, pets)
    assert same.objective.classes == pets.classes and torch.equal(task.train.labels, pets.train.labels)
    model, task = saving.with_classes(old, bears)
    assert task.num_classes == 6 and model.backbone.fc.out_features == 6
    assert not torch.equal(saving.with_classes(old, bears, seed=1)[0].head.weight[3:], model.head.weight[3:])
    freeze(model, 5)
    assert fit(model, task, epochs=1, progress=False).epochs


@pytest.mark.parametrize("model, objective, sentence", [
    (lambda old: torch.nn.Linear(2, 2), ["a", "b"], "Classes are added to a classifier that has learnt some, and"),
    (lambda old: resnet(), ["a", "b"], "and this ImageClassifier is none: train one with fit, or load one"),
    (lambda old: old, Regression(), "The model answers one class, and task 'more' asks for regression")])
def test_classes_cannot_be_added_to_everything(saved_text, model, objective, sentence):
    few, old = Examples(sentences[:4], [0, 1, 0, 1]), finetune_nb.load(saved_text[0]).model
    task = Task("more", "text", objective, few, few, few)
    with pytest.raises(ValueError, match=sentence): saving.with_classes(model(old), task)


def test_the_card_is_one_of_the_hub(saved_text, saved_image):
    for folder, kind in ((saved_text[0], "text-classification"), (saved_image[0], "image-classification")):
        _, head, body = (folder/"README.md").read_text(encoding="utf-8").split("---\n", 2)
        about = yaml.safe_load(head)
        metrics = {m["type"]: m["value"] for m in about["model-index"][0]["results"][0]["metrics"]}
        result = json.loads((folder/"result.json").read_text(encoding="utf-8"))
        expected = {"accuracy": round(result["accuracy"], 4), "f1": round(result["macro_f1"], 4)}
        assert about["pipeline_tag"] == kind and metrics == expected
        figures = re.findall(r"\((\w+\.png)\)", body)
        assert "curves.png" in figures
        assert all((folder/name).read_bytes().startswith(b"\x89PNG") for name in figures)
        for code in re.findall(r"```python\n(.*?)```", body, flags=re.S):
            if "torchvision" in code or "transformers" in code: exec(code.replace("DIR", folder.as_posix()), {})
    body = (saved_text[0]/"README.md").read_text(encoding="utf-8")
    assert "finetune-nb text moods.csv --out mine" in body and "read from `moods.csv`" in body
    assert "`moods.csv, line 9` (empty text: there is nothing to read)" in body


def exported(folder):
    for package in ("onnx", "onnxruntime", "onnxscript"): pytest.importorskip(package)
    import onnxruntime
    file = saving.export_onnx(folder, folder/"elsewhere.onnx")
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def test_onnxruntime_agrees_on_texts(saved_text):
    folder, model, _, _ = saved_text
    session = exported(folder)
    for texts in (["dark"], sentences, ["a good day"] * 3):
        batch = model.collate(model.encode(texts))
        with torch.no_grad(): expected = model.eval()(**batch)
        found = session.run(None, {name: t.numpy() for name, t in batch.items()})[0]
        assert np.abs(found - expected.numpy()).max() < 1e-4


def test_onnxruntime_agrees_on_images(saved_image, pets):
    folder, model, _ = saved_image
    session = exported(folder)
    for files in (pets.test.inputs, pets.test.inputs[:1]):
        batch = model.collate(model.encode(files))
        with torch.no_grad(): expected = model.eval()(batch)
        assert np.abs(session.run(None, {"images": batch.numpy()})[0] - expected.numpy()).max() < 1e-4


def test_exporting_without_onnx_is_one_sentence(saved_image, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    sentence = r"needs the package onnxscript: pip install 'finetune-nb\[export\]'"
    with pytest.raises(ModuleNotFoundError, match=sentence): saving.export_onnx(saved_image[0])


# What is refused

def copy(saved, tmp_path): return Path(shutil.copytree(saved[0], tmp_path/"copy"))


def test_damaged_or_changed_models_are_refused(saved_image, tmp_path):
    folder = copy(saved_image, tmp_path)
    weights = load_file(folder/"model.safetensors")
    save_file(weights | {"fc.bias": weights["fc.bias"] + 1}, folder/"model.safetensors")
    changed = "model.safetensors in .* has SHA-256 .*, expected .*: the file is damaged or was changed"
    with pytest.raises(ValueError, match=changed): finetune_nb.load(folder)
    (folder/"model.safetensors").unlink()
    with pytest.raises(OSError, match="The model in .* cannot be loaded: .*No such file"): finetune_nb.load(folder)
    lacks = "lacks kind, classes or sha256"
    for content, sentence in (("{", "model.json in .* cannot be read"), ('{"kind": "text"}', lacks), ("[]", lacks)):
        (folder/"model.json").write_text(content)
        with pytest.raises(ValueError, match=sentence): finetune_nb.load(folder)
    (folder/"model.json").unlink()
    with pytest.raises(FileNotFoundError, match="holds no saved model .*: give a folder that --out"):
        finetune_nb.load(folder)


def test_loading_runs_no_code(saved_text, tmp_path):
    "A folder that somebody has laced: the code beside the weights, and a pickle, are not touched"
    folder = copy(saved_text, tmp_path)
    (folder/"evil.py").write_text(f"open({str(tmp_path/'ran')!r}, 'w')\nclass Evil: pass\n")
    pickled = b"cbuiltins\nexec\n(S'open(%r, \"w\")'\ntR." % str(tmp_path/"ran").encode()
    (folder/"pytorch_model.bin").write_bytes(pickled)
    lace = {"auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil"] * 2}}
    for name in ("config.json", "tokenizer_config.json", "model.json"):
        file = folder/name
        if file.exists(): file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | lace))
    about = json.loads((folder/"model.json").read_text(encoding="utf-8"))
    about["backbone"]["auto_map"] = about["auto_map"]
    (folder/"model.json").write_text(json.dumps(about))
    try: finetune_nb.load(folder).predict("a good day")
    except (OSError, ValueError): pass
    assert not (tmp_path/"ran").exists()


@pytest.fixture(scope="module")
def reader(saved_text): return finetune_nb.load(saved_text[0])


@pytest.mark.parametrize("form", [
    lambda texts: pd.Series(texts, index=range(19, -1, -1)), lambda texts: pd.DataFrame(dict(text=texts)), np.array,
    lambda texts: np.array(texts, object), tuple, iter], ids=["column", "frame", "array", "objects", "tuple", "iter"])
def test_texts_in_any_sequence(reader, form):
    "and never the word that a column is called by"
    assert reader.predict(form(sentences)).equals(reader.predict(sentences))


@pytest.mark.parametrize("given, sentence", [
    (dict(text=sentences), "inputs must be a list, an array or a column, got {'text'"), (None, "a column, got None"),
    (pd.DataFrame(dict(id=[1], text=["a"])), r"must be one column, got a table of 2 \(id, text\): choose one"),
    (b"a good day", "a column, got b'a good day'"), (3, "a column, got 3"), ({"a"}, "a column, got {'a'}")], ids=str)
def test_what_is_no_sequence_is_refused(reader, given, sentence):
    with pytest.raises(ValueError, match=sentence): reader.predict(given)


@pytest.mark.parametrize("given, reason", [
    (None, "This model reads texts, got NoneType"), (3, "reads texts, got int"), (np.nan, "reads texts, got float"),
    (["a"], "reads texts, got list"), (b"a", "reads texts, got bytes"), ("", "empty text: there is nothing to read"),
    (" \n", "empty text"), ("caf\udce9", "broken characters"), ("a\0b", "NUL characters")], ids=repr)
def test_one_that_cannot_be_read_costs_no_answer(reader, given, reason):
    table, alone = reader.predict(["a good day", given, "dark"]), reader.predict([given])
    assert table.error.isna().tolist() == [True, False, True] and reason in table.error[1] and reason in alone.error[0]
    good = reader.predict(["a good day", "dark"])
    assert table["class"].dropna().tolist() == list(good["class"]) and alone["class"].isna().all()


@pytest.mark.parametrize("more, sentence", [
    (dict(top="2"), "top must be a whole number, got '2'"), (dict(top=None), "top must be a whole number, got None"),
    (dict(batch_size=0), "batch_size must be at least 1, got 0"), (dict(batch_size=1.5), "batch_size must be a whole")])
def test_how_many_is_a_whole_number(reader, more, sentence):
    with pytest.raises(ValueError, match=sentence): reader.predict("a", **more)


@pytest.mark.parametrize("call, sentence", [
    (lambda saved, task: finetune_nb.load(None), "folder must be a path, got None"),
    (lambda saved, task: saving.save(saved[1], task, "out", None, None), "folder must be a path, got ImageClassifier"),
    (lambda saved, task: saving.save("out", "resnet18", task, None, None), "must be a network, .* got 'resnet18'"),
    (lambda saved, task: saving.save("out", saved[1], task.test, None, None), "task must be the Task that it learnt"),
    (lambda saved, task: saving.save("out", saved[1], task, None, None), "history must be what fit gave, got None"),
    (lambda saved, task: saving.save("out", saved[1], task, training.History({}), 0.9), "what evaluate gave, got 0.9"),
    (lambda saved, task: saving.export_onnx(3), "folder must be a path, got 3")])
def test_what_cannot_be_saved_or_loaded_is_named(saved_image, pets, tmp_path, monkeypatch, call, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=sentence): call(saved_image, pets)


def test_nonsense_to_predict_is_refused(saved_text, saved_image):
    texts, images = (finetune_nb.load(saved[0]) for saved in (saved_text, saved_image))
    for top in (0, 4):
        sentence = f"top must be between 1 and the 3 classes, got {top}"
        with pytest.raises(ValueError, match=sentence): texts.predict("a", top=top)
    told = texts.predict([3, "a good day", None])
    assert told.error[0] == "This model reads texts, got int: give a list of strings."
    assert told["class"].isna().tolist() == [True, False, True]
    with pytest.raises(ValueError, match="This model reads texts, got int"): texts.model.encode(["a", 3])
    with pytest.raises(OSError, match="The image 'gone.png' cannot be opened"): images.predict("gone.png")
    with pytest.raises(ValueError, match="predict got no inputs"): images.predict([])


def test_what_is_no_model_of_ours_is_not_saved(pets, tmp_path):
    model, sentence = torch.nn.Linear(1, 1), "save takes a classifier of vision or text, got Linear"
    with pytest.raises(ValueError, match=sentence): saving.save(tmp_path/"out", model, pets, None, None)
    assert not list((tmp_path/"out").iterdir())


def test_of_many_the_broken_are_named_and_the_others_predicted(saved_image, saved_text, pets, tmp_path):
    folder, _, evaluation = saved_image
    (torn := tmp_path/"torn.png").write_bytes(Path(pets.test.inputs[0]).read_bytes()[:200])
    files = [torn, *pets.test.inputs, tmp_path/"gone.png"]
    for size in (1, 2, 64):
        table = finetune_nb.load(folder).predict(files, top=2, batch_size=size)
        assert list(table.columns) == ["input", "class", "probability", "class_2", "probability_2", "error"]
        assert list(table.input) == list(map(str, files)) and table.iloc[0, 1:5].isna().all()
        assert list(table["class"])[1:-1] == [pets.classes[i] for i in evaluation.predicted]
        assert table.error.isna().tolist() == [False] + [True] * len(pets.test) + [False]
        for name, row in ("torn", 0), ("gone", -1): assert f"{name}.png' cannot be opened" in table.error.iloc[row]
    alone = finetune_nb.load(folder).predict([torn])
    assert list(alone.columns) == ["input", "class", "probability", "error"]
    assert json.loads(alone.to_json(orient="records"))[0]["class"] is None
    (table := tmp_path/"new.csv").write_text("text,id\na good day,1\n ,2\nthe sad end,3,4\ndark,5\n")
    answers = finetune_nb.load(saved_text[0]).predict(inputs_in(table, "text"))
    assert list(answers.input) == ["a good day", "new.csv, line 3", "dark", "new.csv, line 4"]
    assert answers["class"].isna().tolist() == [False, True, False, True]
    empty, long = answers.error.dropna()
    assert empty == "empty text: there is nothing to read"
    assert long == "row with too many fields: 3 fields, the header has 2"


# The folder

def test_a_folder_is_kept_for_one_run(tmp_path):
    with reserved(tmp_path/"new") as folder:
        with pytest.raises(FileExistsError, match="Another run writes to .*new' now: wait for it"):
            with reserved(folder): pass
        code = f"from finetune_nb.engine.places import reserved\nwith reserved({str(folder)!r}, overwrite=True): pass"
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "Another run writes to" in ran.stderr
    assert not folder.exists(), "nothing was saved, so nothing is left"


def test_what_is_there_is_refused_and_stays(tmp_path):
    (tmp_path/"precious").write_text("mine")
    sentence = "already holds something, and nothing is overwritten: name a new folder, or say --overwrite"
    with pytest.raises(FileExistsError, match=sentence):
        with reserved(tmp_path): pass
    with pytest.raises(FileExistsError, match="precious' is a file"):
        with reserved(tmp_path/"precious", overwrite=True): pass
    assert [f.name for f in tmp_path.iterdir()] == ["precious"]


def test_overwriting_replaces_a_model_and_nothing_else(saved_image, pets, tmp_path):
    folder = copy(saved_image, tmp_path)
    (folder/"notes.txt").write_text("mine")
    (folder/"config.json").write_text("of a text model that was here")
    before = (folder/"model.safetensors").read_bytes()
    with reserved(folder, overwrite=True): trained(resnet(seed=5), pets, folder, 5)
    assert (folder/"notes.txt").read_text() == "mine" and not (folder/"config.json").exists()
    assert (folder/"model.safetensors").read_bytes() != before and not (folder/".lock").exists()
    assert finetune_nb.load(folder).predict(pets.test.inputs).shape == (len(pets.test), 3)


def test_files_of_somebody_are_never_replaced(saved_image, pets, tmp_path):
    "A project's README.md is called like a part of a model"
    (tmp_path/"README.md").write_text("mine")
    with pytest.raises(FileExistsError, match="holds README.md, and no model of finetune_nb: nothing is overwritten"):
        with reserved(tmp_path, overwrite=True): pass
    with pytest.raises(FileExistsError, match="holds README.md"): trained(resnet(), pets, tmp_path, 5)
    (tmp_path/"theirs.onnx").write_text("mine")
    if importlib.util.find_spec("onnxruntime"):
        with pytest.raises(FileExistsError, match="theirs.onnx' is there already"):
            saving.export_onnx(saved_image[0], tmp_path/"theirs.onnx")
    assert {f.name: f.read_text() for f in tmp_path.iterdir()} == {"README.md": "mine", "theirs.onnx": "mine"}


def test_a_name_that_is_no_text_and_many_classes_cost_no_model(pets, tmp_path):
    "Card and figure are made all the same"
    odd = replace(pets, made=pets.made | dict(skipped=[(os.fsdecode(b"caf\xe9.jpg"), "12 bytes are missing")]))
    trained(resnet(), odd, tmp_path/"odd", 5)
    assert r"caf\udce9.jpg" in (tmp_path/"odd"/"README.md").read_text(encoding="utf-8")
    names = list(map(str, range(1000)))
    sure, right = np.full((1000, 1000), 1e-3), np.zeros(1000)
    many = ClassEvaluation(sure, np.arange(1000), np.full(1000, 6.9), right, dict(accuracy=0.0), names)
    assert max(many.plot(names).get_size_inches()) < 40


def test_a_failed_save_leaves_the_old_model(saved_image, pets, tmp_path, monkeypatch):
    folder = copy(saved_image, tmp_path)
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    def full(self, *args, **options): raise OSError(28, "No space left on device")
    monkeypatch.setattr("finetune_nb.gradient.Picture.savefig", full)
    sentence = r"could not be saved in .* \(No space left on device\): make room there"
    with pytest.raises(OSError, match=sentence): trained(resnet(), pets, folder, 5)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize("limit", [20_000, 150_000, 800_000], ids=lambda limit: f"{limit // 1000} kB")
def test_a_disk_that_fills_up_is_told_of_in_a_sentence(saved_text, mood, tmp_path, monkeypatch, limit):
    "while a configuration, the tokenizer or the weights are written, by three libraries"
    import resource
    model = saved_text[1]
    history, evaluation = fit(model, mood, epochs=1, progress=False), evaluate(model, mood.test)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match=r"The model could not be saved in .*out' \(.*File too large.*\): make room"):
            saving.save(tmp_path/"out", model, mood, history, evaluation)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path/"out").iterdir())


def test_a_compiled_model_is_saved_itself(saved_image, pets, tmp_path):
    history, evaluation = fit(saved_image[1], pets, epochs=1, progress=False), saved_image[2]
    saving.save(tmp_path/"out", torch.compile(saved_image[1], backend="eager"), pets, history, evaluation)
    assert finetune_nb.load(tmp_path/"out").classes == pets.classes


def test_home_is_found(saved_image, tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"): monkeypatch.setenv(name, str(tmp_path))
    folder = copy(saved_image, tmp_path)
    assert folder == tmp_path/"copy" and finetune_nb.load("~/copy").classes == ["cat", "dog", "emu"]
    with reserved("~/new") as new: assert new == tmp_path/"new"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs mount")
def test_a_read_only_and_a_full_disk_are_noticed_before_training(tmp_path):
    "Real ones: mounted in a namespace of their own"
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount (unshare -rm)")
    code = ("import sys\nfrom finetune_nb import vision\n"
            "from finetune_nb.engine.places import require_room, reserved\ntry:\n"
            "    with reserved(sys.argv[1]) as folder:\n"
            "        require_room(folder, vision.classifier('resnet18-fractal', 2))\n"
            "except OSError as error: print(error)")
    (tmp_path/"disk").mkdir()
    script = 'mount -t tmpfs -o "$1" none "$2" && exec "$3" -c "$4" "$2/new"'
    disks = [("size=1m", "MB free, and the model needs 55 MB: make room"),
             ("ro", "cannot be written to (Read-only file system): name a folder on a disk that is writable")]
    for options, sentence in disks:
        given = options, str(tmp_path/"disk"), sys.executable, code
        ran = subprocess.run(["unshare", "-rm", "sh", "-c", script, "sh", *given], capture_output=True, text=True)
        assert sentence in ran.stdout, ran.stdout + ran.stderr
