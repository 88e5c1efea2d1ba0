"""The command, as a user runs it: in a process of its own, with the network off, interrupted, and given nonsense."""
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
import finetune_nb
import finetune_nb.text
from conftest import tiny_bert
from finetune_nb import cli, data, evaluate, freeze, saving, training, vision
from finetune_nb.engine.checkpoints import Checkpoints
from finetune_nb.engine.recalled import recalled
from finetune_nb.engine.run import Run

program = str(Path(sys.executable).with_name("finetune-nb"))
text_command = ["text", "--labels-per-class", "5", "--freeze-depth", "7", "--json"]
image_command = ["image", "--labels-per-class", "5", "--freeze-depth", "5", "--json"]
small_images = ["--image-size", "32", "--epochs", "1", "--freeze-depth", "5", "--json"]
pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)


def allow_interruption():
    "For a child process: a job in the background inherits a Ctrl-C that is ignored"
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def standard_input(monkeypatch, said, encoding="utf-8"):
    "What a pipe gives a process whose terminal is set to `encoding`: a text in UTF-8, or bytes"
    content = said.encode() if isinstance(said, str) else said
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding=encoding))


def saved_in(folder):
    "What `result.json` says"
    return json.loads((folder/"result.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("command, task, backbone", [
    (text_command, data.topics, "minilm"), (image_command, data.digits, "resnet18-fractal")], ids=["text", "image"])
def test_offline_from_start_to_saved_model(quiet, tmp_path, command, task, backbone):
    "No interface but loopback, and no setting that says so: the embedded backbones need none"
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
        pytest.skip("this system cannot take the network away from a process (unshare -rn)")
    env = {k: v for k, v in quiet.items() if k != "HF_HUB_OFFLINE"}
    out = tmp_path/"model"
    alone = ["unshare", "-rn", "sh", "-c", 'ip link set lo up 2>/dev/null; exec "$@"', "sh"]
    ran = subprocess.run([*alone, program, *command, "--epochs", "2", "--baseline", "--out", str(out)],
                         env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout.splitlines()[-1])
    assert {"task", "objective", "backbone", "freeze_depth", "blocks", "trainable_parameters", "total_parameters",
            "epochs", "seconds", "train_loss", "validation_accuracy", "accuracy", "macro_f1", "loss", "num_test",
            "seed", "labels_per_class", "stopped", "baseline_accuracy", "baseline_macro_f1"} <= result.keys()
    task = task(5)
    names = "task", "objective", "backbone", "epochs", "labels_per_class"
    assert [result[name] for name in names] == [task.name, "classification", backbone, 2, 5]
    assert result["freeze_depth"] == len(result["blocks"]) - 1 and result["blocks"][-1] == "head"
    assert result["num_test"] >= 1000 and result["train_loss"][1] < result["train_loss"][0]
    assert 0.1 < result["accuracy"] < 1
    assert len(ran.stdout.splitlines()) == 1, "standard output is for the result alone"

    model = finetune_nb.load(out).model
    again = evaluate(model, task.test).accuracy
    assert again == pytest.approx(result["accuracy"], abs=1e-6), "the saved weights give the reported accuracy"
    saved = saved_in(out)
    assert saved["classes"] == list(task.classes) and saved["backbone"] == backbone
    if task.kind == "image":
        assert saved["preprocessing"]["image_size"] == saved["image_size"] == model.preprocessing.image_size == 64
    assert all((out/name).read_bytes().startswith(b"\x89PNG") for name in ("curves.png", "confusion.png"))
    assert saved["command"].startswith(f"finetune-nb {' '.join(command)}")
    assert saved["command"] in (out/"README.md").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is another thing there")
def test_interrupted_run_keeps_its_best(quiet):
    "Ctrl-C once training is under way: the best weights so far are judged and the result is printed"
    command = [program, *text_command, "--epochs", "500"]
    process = subprocess.Popen(command, env=quiet, preexec_fn=allow_interruption, **pipes)
    seen = ""
    while "validation accuracy" not in seen:
        seen += process.stderr.read(1)
        assert process.poll() is None, seen
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    result = json.loads(printed.splitlines()[-1])
    assert process.returncode == 0 and result["stopped"] == "interrupted" and 1 <= result["epochs"] < 500


def main(monkeypatch, *options):
    "The command in this process, which has paid for its imports already: its exit status"
    monkeypatch.setattr(sys, "argv", [program, *map(str, options)])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True) # or it tries five times
    with pytest.raises(SystemExit) as stopped: cli.main()
    return stopped.value.code


def test_interrupted_before_the_first_epoch_there_is_no_result(monkeypatch, capsys, tmp_path):
    def interrupted(*args, **settings): return training.History({}, stopped="interrupted")
    monkeypatch.setattr("finetune_nb.training.fit", interrupted)
    assert main(monkeypatch, *image_command, "--out", tmp_path/"new") == 130
    printed = capsys.readouterr()
    assert "nothing was learnt" in printed.err and printed.out == "" and not list((tmp_path/"new").glob("*"))


@pytest.mark.parametrize("command, options, sentence, status", [
    (text_command, ["--freeze-depth", "8"], "depth must be between 0 and 7, got 8", 1),
    (text_command, ["--labels-per-class", "5000"], "too few for 5000", 1),
    (text_command, ["--pooling", "max"], 'pooling must be "mean", "cls", "last" or "pooler", got \'max\'', 1),
    (text_command, ["--backbone", "no/such-backbone"], "minilm` needs no network", 1),
    (text_command, ["--epochs", "0"], "'--epochs'", 2),
    (image_command, ["--freeze-depth", "6"], "depth must be between 0 and 5, got 6", 1),
    (image_command, ["--labels-per-class", "5000"], "too few for 5000", 1),
    (image_command, ["--image-size", "16"], "image_size must be at least 32 pixels, got 16", 1),
    (image_command, ["--backbone", "resnet99"], "no image backbone and no file 'resnet99'", 1),
    (image_command, ["no such folder"], "There is no folder 'no such folder'", 1),
    (image_command, ["--class-weights", "heavy"], 'class_weights must be "balanced"', 1),
    (image_command, ["--learning-rate", "fast"], "'--learning-rate'", 2)],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "")
def test_nonsense_costs_one_sentence(monkeypatch, capsys, command, options, sentence, status):
    assert main(monkeypatch, *command, *options) == status
    printed = capsys.readouterr()
    assert sentence in printed.err and "Traceback" not in printed.err and printed.out == ""
    if status == 1: assert printed.err.startswith("finetune-nb: ") and len(printed.err.splitlines()) == 1, printed.err


@pytest.mark.parametrize("command", [text_command, image_command], ids=["text", "image"])
def test_a_folder_with_something_in_it_is_refused(monkeypatch, capsys, tmp_path, command):
    (tmp_path/"precious").write_text("mine")
    assert main(monkeypatch, *command, "--out", tmp_path) == 1
    assert "nothing is overwritten" in capsys.readouterr().err and (tmp_path/"precious").read_text() == "mine"


@pytest.mark.parametrize("command, option", [("text", "--pooling"), ("image", "--image-size"), ("run", "--out")])
def test_help_comes_at_once(quiet, command, option):
    started = time.perf_counter()
    ran = subprocess.run([program, command, "--help"], env=quiet, capture_output=True, text=True)
    assert ran.returncode == 0 and option in ran.stdout and time.perf_counter() - started < 3
    assert command == "run" or f"finetune-nb {command} --" in ran.stdout, "it has an example"


@pytest.fixture
def photographs(tmp_path):
    "Two classes of pictures as cameras, scanners and designers leave them: light on the left, or light on the right"
    rng = np.random.default_rng(0)
    for name, side in (("left", 1), ("right", -1)):
        (folder := tmp_path/"photographs"/name).mkdir(parents=True)
        def picture(height, width):
            light = np.linspace(230, 20, width)[None, ::side, None]
            return Image.fromarray((light + rng.integers(0, 20, (height, width, 3))).astype(np.uint8))
        picture(40, 60).save(folder/"photo.jpg")
        picture(33, 200).convert("L").save(folder/"grey.png")
        picture(64, 48).convert("CMYK").save(folder/"print.jpg")
        picture(50, 50).quantize(8).save(folder/"palette.png", transparency=0)
        Image.fromarray(np.asarray(picture(40, 40).convert("L")).astype(np.uint16) * 256).save(folder/"scan.png")
        turned = Image.Exif()
        turned[0x0112] = 6 # the camera was held upright
        picture(40, 70).transpose(Image.Transpose.ROTATE_90).save(folder/"upright.jpg", exif=turned)
        picture(45, 45).convert("RGBA").save(folder/"cut out.webp")
    return tmp_path/"photographs"


def test_a_folder_of_pictures_of_every_kind(monkeypatch, capsys, photographs, tmp_path):
    out = tmp_path/"out"
    options = ["--freeze-depth", "4", "--batch-size", "4", "--flip", "--out", out, "--baseline"]
    assert main(monkeypatch, "image", photographs, *small_images, *options) == 0
    result = json.loads(capsys.readouterr().out)
    names = "task", "num_test", "labels_per_class", "image_size", "flip", "augment"
    assert [result[name] for name in names] == ["photographs", 2, None, 32, True, True]
    saved = saved_in(out)
    assert saved["classes"] == ["left", "right"] and saved["made"]["source"] == str(photographs)
    assert vision.classifier(str(out/"model.safetensors"), 2).preprocessing.image_size == 32


def test_damaged_pictures_are_named(monkeypatch, capsys, photographs):
    photo = photographs/"left"/"photo.jpg"
    for damaged in photographs.rglob("left/*"): damaged.write_bytes(photo.read_bytes()[:200])
    assert main(monkeypatch, "image", photographs, "--epochs", "1") == 1
    printed = capsys.readouterr().err
    assert re.search(r"truncated image +7 +skips +left/", printed) and "Traceback" not in printed
    assert re.search(r"finetune-nb: The pre-flight of '.*' stops. 7 of 14 examples", printed)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    "A table of which one row is damaged"
    file = tmp_path_factory.mktemp("reviews")/"reviews.csv"
    pairs = ("fine", "good"), ("poor", "bad")
    rows = [f"it is {word} {i},{label}" for i in range(15) for word, label in pairs]
    file.write_text("\n".join(["review,verdict", *rows, "what,is,this\n"]), encoding="utf-8")
    return file


head_alone = ["--freeze-depth", "7", "--epochs", "1", "--json"]


def test_from_a_table_to_a_model_that_is_used_and_exported(monkeypatch, capsys, reviews, tmp_path):
    "check, text, predict and export, each by its command"
    assert main(monkeypatch, "check", reviews) == 0
    printed = capsys.readouterr().out
    assert "reviews.csv, line 32: 3 fields, the header has 2" in printed
    assert "Goes on with 30 of 31 examples in 2 classes" in printed
    out = tmp_path/"out"
    assert main(monkeypatch, "text", reviews, *head_alone, "--pooling", "pooler", "--out", out) == 0
    printed = capsys.readouterr()
    assert "row with too many fields" in printed.err, "the pre-flight comes by itself"
    result = json.loads(printed.out)
    assert (result["task"], result["num_test"], result["labels_per_class"]) == ("reviews.csv", 6, None)
    reason = "row with too many fields: 3 fields, the header has 2"
    assert saved_in(out)["made"]["skipped"] == [["reviews.csv, line 32", reason]]
    assert main(monkeypatch, "text", reviews, *head_alone, "--out", out) == 1
    assert "say --overwrite" in capsys.readouterr().err
    standard_input(monkeypatch, "it is fine\nit is, well, poor\n")
    assert main(monkeypatch, "predict", out, "--top", "2") == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert list(table.columns) == ["input", "class", "probability", "class_2", "probability_2"]
    assert list(table.input) == ["it is fine", "it is, well, poor"]
    (note := tmp_path/"note.txt").write_text("all is\nfine")
    assert main(monkeypatch, "predict", out, note, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["input"] == "all is\nfine" and answer["class"] in ("good", "bad")
    assert 0.5 <= answer["probability"] <= 1
    assert main(monkeypatch, "export", out) == 1 and "Say --onnx" in capsys.readouterr().err


def test_predicting_images_of_a_folder(monkeypatch, capsys, photographs, tmp_path):
    assert main(monkeypatch, "image", photographs, *small_images, "--out", tmp_path/"out") == 0
    capsys.readouterr()
    photo = photographs/"left"/"photo.jpg"
    assert main(monkeypatch, "predict", tmp_path/"out", photographs/"right", photo) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert len(table) == 8 and table.input.iloc[-1] == str(photo) and set(table["class"]) <= {"left", "right"}
    assert main(monkeypatch, "predict", tmp_path/"out") == 1
    assert "There is nothing to predict: give image files" in capsys.readouterr().err
    assert main(monkeypatch, "predict", tmp_path/"out", tmp_path/"gone.png") == 1
    assert "There is no file and no folder" in capsys.readouterr().err
    assert main(monkeypatch, "export", tmp_path/"out", "--onnx", "--file", tmp_path/"model.onnx") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path/"model.onnx")
    assert (tmp_path/"model.onnx").stat().st_size > 40_000_000


def test_broken_images_are_named_and_the_others_predicted(monkeypatch, capsys, photographs, tmp_path):
    assert main(monkeypatch, "image", photographs, *small_images, "--out", tmp_path/"out") == 0
    capsys.readouterr()
    (torn := tmp_path/"torn.jpg").write_bytes((photographs/"left"/"photo.jpg").read_bytes()[:200])
    words = ["predict", tmp_path/"out", photographs/"left", torn]
    assert main(monkeypatch, *words) == 1
    printed = capsys.readouterr()
    table = pd.read_csv(io.StringIO(printed.out))
    assert len(table) == 8 and list(table.columns) == ["input", "class", "probability", "error"]
    assert table["class"].isna().tolist() == [False] * 7 + [True]
    first, second = printed.err.splitlines()
    assert first == "finetune-nb: 1 of 8 could not be read." and "Traceback" not in printed.err
    assert second.startswith(f"{torn}: The image ")
    assert main(monkeypatch, *words, "--json") == 1
    answers = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert answers[0]["error"] is None and answers[0]["class"] in ("left", "right")
    assert answers[-1]["class"] is None and "torn.jpg' cannot be opened" in answers[-1]["error"]
    assert main(monkeypatch, "predict", tmp_path/"out", torn) == 1 and "could not be read" in capsys.readouterr().err


def test_a_table_in_a_named_encoding(monkeypatch, capsys, tmp_path):
    rows = [f"{words}{i},{label}" for words, label in (("日本の", "good"), ("天気 ", "bad")) for i in range(6)]
    (table := tmp_path/"moods.csv").write_bytes("\n".join(["text,label", *rows]).encode("shift_jis"))
    assert main(monkeypatch, "check", table, "--encoding", "shift_jis", "--json") == 0
    assert json.loads(capsys.readouterr().out)["classes"] == {"good": 6, "bad": 6}
    assert main(monkeypatch, "check", table, "--encoding", "utf-8") == 1
    assert "moods.csv is not in the encoding utf-8: leave it out" in capsys.readouterr().err
    out = tmp_path/"out"
    assert main(monkeypatch, "text", table, "--encoding", "shift_jis", *head_alone, "--out", out) == 0
    assert saved_in(out)["classes"] == ["bad", "good"]
    assert "--encoding shift_jis" in (out/"README.md").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(monkeypatch, "predict", out, table, "--encoding", "shift_jis", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["input"] == "日本の0"


def test_a_dataset_of_images_from_the_command(monkeypatch, capsys, photographs, tmp_path):
    datasets = pytest.importorskip("datasets")
    files = sorted(photographs.rglob("*.*"))
    features = datasets.Features(dict(photo=datasets.Image(), side=datasets.Value("string")))
    columns = dict(photo=list(map(str, files)), side=[file.parent.name for file in files])
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path/"saved")
    assert main(monkeypatch, "check", tmp_path/"saved") == 0 and "14 images" in capsys.readouterr().out
    command = ["image", tmp_path/"saved", "--label-column", "side", *small_images, "--out", tmp_path/"out"]
    assert main(monkeypatch, *command) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["task"], result["num_test"]) == ("saved", 2)
    assert finetune_nb.load(tmp_path/"out").classes == ["left", "right"]


def test_a_folder_of_photographs_is_learnt(quiet, tmp_path):
    "Of 500 pixels, by the command"
    rng = np.random.default_rng(0)
    for name, grain in (("near", 12), ("far", 24)):
        (folder := tmp_path/"photographs"/name).mkdir(parents=True)
        for i in range(60):
            drawn = Image.fromarray(rng.integers(0, 256, (grain, grain, 3), dtype=np.uint8))
            scene = np.asarray(drawn.resize((500, 375), Image.Resampling.BICUBIC))
            noisy = (scene + rng.normal(0, 12, (375, 500, 1))).clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder/f"{i}.jpg", quality=90)
    options = ["--image-size", "64", "--freeze-depth", "4", "--epochs", "6", "--json"]
    command = [program, "image", str(tmp_path/"photographs"), *options]
    ran = subprocess.run(command, env=quiet, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["epochs"] == 6 and result["num_test"] == 24 and result["accuracy"] > 0.8


def test_check_says_whether_a_training_would_stop(monkeypatch, capsys, photographs):
    (photographs/"left"/"empty.png").touch()
    assert main(monkeypatch, "check", photographs, "--json") == 1
    summary = json.loads(capsys.readouterr().out)
    assert summary["stops"][0].startswith("1 of 15 examples (6.7%)") and summary["usable"] == 14 and not summary["ok"]
    assert main(monkeypatch, "check", photographs, "--most-bad", "0.1") == 0
    assert "left/empty.png: it has 0 bytes" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is another thing there")
def test_interrupted_training_of_your_own_is_saved_and_a_second_run_is_refused(quiet, reviews, tmp_path):
    "two runs into one folder: the second is refused while the first trains; Ctrl-C then saves what there is"
    out = tmp_path/"out"
    command = [program, "text", str(reviews), "--freeze-depth", "7", "--epochs", "100000", "--out", str(out), "--json"]
    process = subprocess.Popen(command, env=quiet, preexec_fn=allow_interruption, **pipes)
    seen = ""
    while "validation accuracy" not in seen:
        seen += process.stderr.read(1)
        assert process.poll() is None, seen
    second = subprocess.Popen([*command, "--overwrite"], env=quiet, **pipes)
    assert "Another run writes to" in second.communicate(timeout=120)[1] and second.returncode == 1
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    assert json.loads(printed)["stopped"] == "interrupted"
    assert finetune_nb.load(out).predict("it is fine").shape == (1, 3)
    assert not (out/".lock").exists() and "(interrupted)" in (out/"README.md").read_text(encoding="utf-8")


@pytest.fixture
def small_run(monkeypatch):
    "`run` on a handful of examples, two epochs"
    few = dict(labels_per_class=2, validation_per_class=1, test_per_class=2)
    def make_few(make, labels_per_class, seed): return make(**few, seed=seed)
    for name in ("topics", "digits", "photographs"):
        monkeypatch.setattr(data, name, partial(make_few, getattr(data, name)))
    fit = training.fit
    monkeypatch.setattr(training, "fit", lambda model, task, epochs, **settings: fit(model, task, epochs=2, **settings))


def test_run_compares_three_examples(monkeypatch, capsys, tmp_path, small_run):
    "One table, and three figures, which replace those of an earlier run"
    (tmp_path/"digits.png").write_bytes(b"of an earlier run")
    assert main(monkeypatch, "run", "--out", tmp_path) == 0
    printed = capsys.readouterr().out
    head, *rows = [line for line in printed.splitlines() if line.startswith("  ")]
    examples = "topics, minilm", "digits, resnet18-fractal", "photographs, efficientnet-lite0"
    assert re.fullmatch(r"\s+" + " +".join(f"{example} +seconds" for example in examples), head)
    ways = ["untrained", "classical baseline, tuned", "head only", "fine-tuned"]
    assert [re.match(r"  (\D+?)  ", row)[1] for row in rows] == ways
    assert all(len(re.findall(r"[\d.]+%", row)) == 3 for row in rows)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["digits.png", "photographs.png", "topics.png"]
    for name in ("digits", "photographs", "topics"):
        figure = np.asarray(Image.open(tmp_path/f"{name}.png").convert("L"))
        assert figure.shape[1] > 1000 and len(np.unique(figure)) > 50 and str(tmp_path/f"{name}.png") in printed


def test_run_ends_when_interrupted(monkeypatch, capsys, tmp_path, small_run):
    "or Ctrl-C would only lead on to its next part"
    fit, begun = training.fit, []
    def interrupted(model, task, **settings):
        begun.append(task.name)
        history = fit(model, task, **settings)
        history.stopped = "interrupted"
        return history
    monkeypatch.setattr(training, "fit", interrupted)
    assert main(monkeypatch, "run", "--out", tmp_path) != 0
    assert begun == ["topics"] and capsys.readouterr().out == ""


def test_pretraining_stops_goes_on_and_is_used(monkeypatch, capsys, tmp_path):
    "A recipe in a file, a run in two parts, and the backbone that it ships as `--backbone`"
    recipe = dict(classes=3, images=32, batch_size=8, image_size=32, points=256, precision="fp32")
    (tmp_path/"recipe.json").write_text(json.dumps(recipe))
    folder, backbone = tmp_path/"run", tmp_path/"mine.safetensors"
    assert main(monkeypatch, "pretrain", folder, "--recipe", tmp_path/"recipe.json", "--steps", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    assert main(monkeypatch, "pretrain", folder, "--recipe", tmp_path/"recipe.json") == 1
    assert "holds a checkpoint already" in capsys.readouterr().err
    assert main(monkeypatch, "pretrain", folder, "--resume", "--ship", tmp_path/"mine.bin") == 1
    assert "must name a file that ends in .safetensors" in capsys.readouterr().err
    assert main(monkeypatch, "pretrain", folder, "--resume", "--ship", backbone, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["steps"], result["images_seen"], result["precision"]) == (4, 32, "fp32")
    assert main(monkeypatch, *image_command, "--backbone", backbone, "--labels-per-class", "1", "--epochs", "1") == 0
    assert json.loads(capsys.readouterr().out)["image_size"] == 32


def test_interrupted_pretraining_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    def interrupted(*args, **how): raise KeyboardInterrupt
    monkeypatch.setattr("finetune_nb.pretraining.pretrain", interrupted)
    assert main(monkeypatch, "pretrain", tmp_path/"run") == 130
    assert "go on with --resume" in capsys.readouterr().err


def test_a_training_is_taken_up_again(monkeypatch, capsys, tmp_path):
    "Stopped in its third epoch, resumed, and the result is that of a run that was not; kept states are found again"
    words = ["image", "--labels-per-class", "2", *small_images, "--epochs", "4", "--batch-size", "5",
             "--cache-folder", tmp_path/"states"]
    assert main(monkeypatch, *words) == 0
    whole = json.loads(capsys.readouterr().out)
    begin, judge, judged = Checkpoints.__init__, Run.judge, []
    def often(self, folder, every, keep_last): begin(self, folder, 2, keep_last)
    monkeypatch.setattr(Checkpoints, "__init__", often)
    def stopped(run):
        judged.append(1)
        if len(judged) == 3: raise RuntimeError("a power cut")
        judge(run)
    monkeypatch.setattr(Run, "judge", stopped)
    with pytest.raises(RuntimeError, match="power cut"): main(monkeypatch, *words, "--checkpoint", tmp_path/"steps")
    monkeypatch.setattr(Run, "judge", judge)
    assert main(monkeypatch, *words, "--checkpoint", tmp_path/"steps") == 1
    assert "holds checkpoints already" in capsys.readouterr().err
    assert main(monkeypatch, *words, "--checkpoint", tmp_path/"steps", "--resume") == 0
    resumed = json.loads(capsys.readouterr().out)
    names = "train_loss", "accuracy", "macro_f1", "epochs", "stopped"
    assert all(resumed[name] == whole[name] for name in names) and "found" in resumed["frozen_prefix"]
    assert main(monkeypatch, "image", "--resume") == 1
    assert "say in which folder they are" in capsys.readouterr().err


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "A BERT that learns in a second"
    folder = tiny_bert(tmp_path_factory.mktemp("tiny"))
    return ["--backbone", folder, "--freeze-depth", "0", "--learning-rate", "0.01"]


def table_of(file, header, rows):
    file.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def predictor(tmp_path_factory, reviews, tiny):
    "A saved model of texts: its folder"
    folder = tmp_path_factory.mktemp("predictor")
    task = data.text_table(reviews)
    model = finetune_nb.text.classifier(tiny[1], task)
    history = training.fit(model, task, epochs=1, progress=False)
    return saving.save(folder, model, task, history, evaluate(model, task.test))


@pytest.fixture(scope="module")
def photographer(tmp_path_factory):
    "A saved model of images: its folder"
    rng, top = np.random.default_rng(0), tmp_path_factory.mktemp("photographer")
    images = torch.from_numpy(rng.integers(0, 256, (8, 3, 32, 32), np.uint8))
    part = data.Examples(images, [0, 1] * 4)
    task = data.Task("noise", "image", ["left", "right"], part, part, part)
    model = vision.classifier("resnet18-fractal", task, 32)
    freeze(model, 5)
    history = training.fit(model, task, epochs=1, progress=False)
    return saving.save(top, model, task, history, evaluate(model, task.test))


def answered(capsys):
    "What `predict --json` printed, a dictionary a line"
    return list(map(json.loads, capsys.readouterr().out.rstrip("\n").split("\n"))) # U+2028 ends no line


def test_each_file_has_its_answer_or_its_error(monkeypatch, capsys, photographer, tmp_path):
    "a name that is mistyped costs no answer"
    for name in ("good", "good2"): Image.new("RGB", (40, 40)).save(tmp_path/f"{name}.png")
    (tmp_path/"empty").mkdir()
    given = [tmp_path/name for name in ("good.png", "nope.png", "good2.png", "empty", "no/where")]
    assert main(monkeypatch, "predict", photographer, *given, "--json") == 1
    rows = answered(capsys)
    assert [row["input"] for row in rows] == list(map(str, given))
    assert [row["error"] is None for row in rows] == [True, False, True, False, False]
    assert [row["class"] in ("left", "right") for row in rows] == [True, False, True, False, False]
    assert "There is no file and no folder" in rows[1]["error"] and "has no image files" in rows[3]["error"]
    assert main(monkeypatch, "predict", photographer, given[1]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("finetune-nb: 1 of 1 could not be read.\n") and "nope.png" in printed.out


def test_tables_that_cannot_be_read_cost_no_answer(monkeypatch, capsys, predictor, reviews, tmp_path):
    (tmp_path/"other.csv").write_text("id,words\n1,fine\n")
    standard_input(monkeypatch, "it is fine\n")
    assert main(monkeypatch, "predict", predictor, tmp_path/"other.csv", reviews, "-", "--json") == 1
    rows = answered(capsys)
    assert len(rows) == 1 + 31 + 1 and "Which column of other.csv is the text?" in rows[0]["error"]
    assert rows[-1]["input"] == "it is fine" and rows[-1]["error"] is None
    assert main(monkeypatch, "predict", predictor, reviews, "--encoding", "klingon") == 1
    assert "encoding must be one that Python knows" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names of files are text there")
def test_a_name_that_is_no_text(monkeypatch, capsys, photographer, tmp_path):
    (folder := tmp_path/"pictures").mkdir()
    files = [os.fsencode(folder) + name for name in (b"/caf\xe9.png", b"/plain.png")]
    for file in files: Image.new("RGB", (40, 40)).save(os.fsdecode(file))
    assert main(monkeypatch, "predict", photographer, folder, "--json") == 0
    rows = answered(capsys)
    assert [row["input"] for row in rows] == [rf"{folder}/caf\udce9.png", f"{folder}/plain.png"]
    assert main(monkeypatch, "predict", photographer, folder) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert table.input[0].endswith(r"caf\udce9.png") and set(table["class"]) <= {"left", "right"}


lines = ["it is fine", "", "   ", "smile \U0001f600", "caf\xe9", "tab\tand, \"quotes\"", "one\x0bline\u2028only",
         "poor\r"]


@pytest.mark.parametrize("terminal", ["utf-8", "cp1252", "ascii"])
def test_each_line_has_its_answer_or_its_error(monkeypatch, capsys, predictor, terminal):
    "blank ones too, or answers would no longer match lines; whatever the terminal is set to"
    content = "\n".join(lines).encode() + b"\nbytes \xff\xfe\n\xef\xbb\xbfmark\nlast, without an end"
    standard_input(monkeypatch, content, terminal)
    assert main(monkeypatch, "predict", predictor, "--json") == 1
    rows = answered(capsys)
    said = [line.removesuffix("\r") for line in lines] + [r"bytes \udcff\udcfe", "\ufeffmark", "last, without an end"]
    assert [row["input"] for row in rows] == said
    assert [row["error"] is None for row in rows] == [True, False, False] + [True] * 5 + [False, True, True]
    assert [row["class"] in ("good", "bad") for row in rows] == [row["error"] is None for row in rows]
    standard_input(monkeypatch, content, terminal)
    assert main(monkeypatch, "predict", predictor) == 1
    printed = capsys.readouterr()
    table = pd.read_csv(io.StringIO(printed.out), keep_default_na=False)
    assert list(table.input) == said
    assert "finetune-nb: 3 of 11 could not be read.\na blank line: empty text" in printed.err


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "shift_jis"])
def test_standard_input_in_a_named_encoding(monkeypatch, capsys, predictor, encoding):
    text = "caf\xe9" if encoding == "latin-1" else "日本"
    standard_input(monkeypatch, f"{text}\r\nit is fine\r\n".encode(encoding))
    assert main(monkeypatch, "predict", predictor, "--encoding", encoding, "--json") == 0
    assert [row["input"] for row in answered(capsys)] == [text, "it is fine"]


@pytest.mark.parametrize("stdin", [None, b""], ids=["closed", "empty"])
def test_no_standard_input_is_one_sentence(monkeypatch, capsys, predictor, stdin):
    if stdin is None: monkeypatch.setattr(sys, "stdin", None)
    else: standard_input(monkeypatch, stdin)
    assert main(monkeypatch, "predict", predictor) == 1
    assert capsys.readouterr().err == "finetune-nb: predict got no inputs: give at least one.\n"


@pytest.mark.parametrize("in_a_terminal", [True, False])
def test_what_a_terminal_cannot_show_is_replaced(monkeypatch, predictor, in_a_terminal):
    "and a file or a pipe gets UTF-8"
    standard_input(monkeypatch, "smile \U0001f600\n")
    printed = io.BytesIO()
    stream = io.TextIOWrapper(printed, encoding="cp1252", write_through=True)
    stream.isatty = lambda: in_a_terminal
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(monkeypatch, "predict", predictor) == 0
    row = printed.getvalue().splitlines()[1]
    assert row.startswith(b"smile ?," if in_a_terminal else "smile \U0001f600,".encode())


ordinary_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", # who may read what root may
                 "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
surroundings = {"a home that is read only": dict(LC_ALL="C", HOME="/proc"),
                "an ordinary user": dict(PYTHONIOENCODING="cp1252", HOME="/nonexistent")}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have other users and homes")
@pytest.mark.parametrize("around", surroundings)
def test_whatever_is_around(quiet, tiny, around):
    "check, text, predict with texts and names that are not English, in one process"
    who = ordinary_user if around == "an ordinary user" and os.geteuid() == 0 else []
    if who and subprocess.run([*who, sys.executable, "-c", ""], capture_output=True).returncode:
        pytest.skip("here root cannot become somebody else (setpriv)")
    with tempfile.TemporaryDirectory() as top:
        folder = Path(shutil.copytree(tiny[1], f"{top}/données"))
        for each in (Path(top), folder): each.chmod(0o777)
        pairs = ("schön", "gut"), ("öde", "übel")
        rows = [f"{word} \U0001f600 {i},{label}" for i in range(12) for word, label in pairs]
        table = table_of(folder/"größe.csv", "text,label", rows)
        model, words = folder/"modèle", ["--backbone", folder, "--freeze-depth", "3", "--epochs", "1"]
        commands = [["check", table], ["text", table, *words, "--out", model],
                    ["predict", model], ["predict", model, table]]
        code = ("import json, sys\nfrom finetune_nb import cli\nfor words in json.loads(sys.argv.pop()):\n"
                "    sys.argv[1:] = words\n    try: cli.main()\n    except SystemExit as end: print('ended', end.code)")
        env = {name: value for name, value in quiet.items() if not name.startswith(("XDG_", "MPLCONFIG", "HF_HOME"))}
        ran = subprocess.run([*who, sys.executable, "-c", code, json.dumps(commands, default=str)],
                             input="süß \U0001f600\n".encode() + b"\xff\n", env=env | surroundings[around],
                             capture_output=True, cwd=top)
    printed = ran.stdout.decode("utf-8")
    codes = [line for line in printed.splitlines() if line.startswith("ended")]
    assert codes == ["ended 0", "ended 0", "ended 1", "ended 0"], ran.stderr.decode()
    assert "süß \U0001f600,gut" in printed or "süß \U0001f600,übel" in printed
    assert printed.count("schön \U0001f600") == 12 and b"Traceback" not in ran.stderr + ran.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_result_that_cannot_be_printed_is_saved_all_the_same(monkeypatch, capsys, reviews, tiny, tmp_path):
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))
    out = tmp_path/"out"
    assert main(monkeypatch, "text", reviews, *tiny, "--epochs", "1", "--out", out, "--json") == 1
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert 0 <= saved_in(out)["accuracy"] <= 1 and finetune_nb.load(out).classes == ["bad", "good"]


@pytest.fixture
def tags(tmp_path):
    "A table whose cells name several classes"
    told = [("the parser fails", "parser"), ("it is slow", "speed"), ("parsing is slow", "parser; speed")]
    return table_of(tmp_path/"tags.csv", "text,tags", [f"{said} in {i},{tag}" for i in range(10) for said, tag in told])


@pytest.fixture
def stars(tmp_path):
    "A table with numbers as labels"
    rows = [f"{word} {i},{base + i / 50}" for i in range(14) for word, base in (("fine", 4), ("so so", 3), ("poor", 1))]
    return table_of(tmp_path/"stars.csv", "text,stars", rows)


def test_a_table_of_several_classes_each(monkeypatch, capsys, tiny, tags, tmp_path):
    "trains, is saved, loaded, and predicts, by the command alone"
    out = tmp_path/"out"
    assert main(monkeypatch, "check", tags, "--json") == 0
    assert json.loads(capsys.readouterr().out)["objective"] == "multi_label"
    command = ["text", tags, *tiny, "--epochs", "10", "--baseline", "--out", out, "--json"]
    assert main(monkeypatch, *command) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["objective"] == "multi_label" and "learnt as multi-label" in printed.err
    assert {"micro_f1", "macro_f1", "validation_micro_f1", "baseline_micro_f1", "loss"} <= result.keys()
    assert "accuracy" not in result and result["train_loss"][-1] < result["train_loss"][0]
    model = finetune_nb.load(out)
    task = data.text_table(tags)
    assert evaluate(model.model, task.test).micro_f1 == pytest.approx(result["micro_f1"], abs=1e-6)
    assert main(monkeypatch, "predict", out, tags) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out), keep_default_na=False)
    assert list(table.columns) == ["input", "classes", "probabilities"] and len(table) == 30
    alone, both = {"", "parser", "speed"}, {"parser; speed", "speed; parser"}
    assert set(table.classes) <= alone | both and {"[", "'"}.isdisjoint("".join(table.probabilities))
    assert main(monkeypatch, "predict", out, tags, "--json") == 0
    answers = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert ["; ".join(answer["classes"]) for answer in answers] == list(table.classes)
    assert main(monkeypatch, *command, "--overwrite", "--class-weights", "balanced") == 1
    assert "task 'tags.csv' asks for multi label: leave it out" in capsys.readouterr().err


def test_a_table_of_numbers(monkeypatch, capsys, tiny, stars, tmp_path):
    out = tmp_path/"out"
    assert main(monkeypatch, "text", stars, *tiny, "--epochs", "10", "--baseline", "--out", out) == 0
    printed = capsys.readouterr().out
    assert re.search(r"fine-tuned +classical baseline\n +test r2 +-?\d\.\d{3} +-?\d\.\d{3}\n", printed)
    assert "test mean absolute error" in printed and "%" not in printed
    result = saved_in(out)
    assert result["objective"] == "regression" and {"r2", "mean_absolute_error", "baseline_r2"} <= result.keys()
    standard_input(monkeypatch, "fine 3\npoor 3\n")
    assert main(monkeypatch, "predict", out) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert list(table.columns) == ["input", "value"] and table.value[0] > table.value[1]


def test_two_columns_are_two_questions(monkeypatch, capsys, tiny, tmp_path):
    kinds = [("the parser fails", "bug", "high"), ("a faster parser", "wish", "low"), ("it is slow", "bug", "low")]
    rows = [f"{said} {i},{kind},{how}" for i in range(10) for said, kind, how in kinds]
    table = table_of(tmp_path/"issues.csv", "text,sort,urgency", rows)
    columns = ["--label-column", "sort", "--label-column", "urgency"]
    assert main(monkeypatch, "check", table, *columns) == 0
    assert "2 classes of sort and 2 classes of urgency" in capsys.readouterr().out
    out = tmp_path/"out"
    assert main(monkeypatch, "text", table, *columns, *tiny, "--epochs", "2", "--out", out, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["objective"] == "several"
    assert {"mean_score", "sort_accuracy", "urgency_accuracy", "validation_mean_score"} <= result.keys()
    standard_input(monkeypatch, "it is slow\n")
    assert main(monkeypatch, "predict", out, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["sort_class"] in ("bug", "wish") and answer["urgency_class"] in ("high", "low")


def test_the_objective_can_be_said(monkeypatch, capsys, tags, tiny):
    assert main(monkeypatch, "check", tags, "--objective", "classification") == 0
    assert "in 3 classes" in capsys.readouterr().out
    command = ["text", tags, *tiny, "--epochs", "1", "--objective", "classification", "--json"]
    assert main(monkeypatch, *command) == 0
    assert json.loads(capsys.readouterr().out)["objective"] == "classification"
    assert main(monkeypatch, "check", tags, "--objective", "ranking") == 1
    assert 'or None: as it looks; got \'ranking\'' in capsys.readouterr().err


def test_each_class_counts_the_same(monkeypatch, capsys, tiny, tmp_path):
    rows = [*(f"it is fine {i},good" for i in range(24)), *(f"it is poor {i},bad" for i in range(6))]
    table, out = table_of(tmp_path/"reviews.csv", "text,label", rows), tmp_path/"out"
    command = ["text", table, *tiny, "--epochs", "1", "--class-weights", "balanced", "--out", out, "--json"]
    assert main(monkeypatch, *command) == 0
    bad, good = json.loads((out/"model.json").read_text(encoding="utf-8"))["objective"]["class_weights"]
    assert bad > 2 * good > 0 and "--class-weights balanced" in saved_in(out)["command"]


def test_going_on_with_more_classes(monkeypatch, capsys, reviews, tiny, tmp_path):
    "A saved model learns a class that it did not know, and can be judged again by those that chose it"
    first, second = tmp_path/"first", tmp_path/"second"
    rows = [f"it is {word} {i},{word}" for i in range(9) for word in ("odd", "good")]
    more = table_of(tmp_path/"more.csv", "review,verdict", rows)
    learn = [*tiny[2:], "--epochs", "1", "--json"]
    assert main(monkeypatch, "text", reviews, *tiny, "--epochs", "1", "--out", first) == 0
    how = ["--continue", first, "--balance", "--accumulate", "2", "--score", "macro_f1", "--out", second]
    assert main(monkeypatch, "text", more, *learn, *how) == 0
    assert "which knows 2 classes; new ones: odd" in capsys.readouterr().err
    assert finetune_nb.load(second).classes == ["bad", "good", "odd"]
    result = saved_in(second)
    assert result["made"]["continued"] == ["bad", "good"] and result["settings"]["balance"]
    assert "validation_macro_f1" in result["history"][0]
    assert recalled(second)[0].train.labels.unique().tolist() == [1, 2]
    assert main(monkeypatch, "text", more, *tiny, "--continue", first) == 1
    assert "--backbone is the saved model's own, with --continue: leave one out" in capsys.readouterr().err


def test_a_sweep_of_numbers(monkeypatch, capsys, tiny, stars, tmp_path):
    command = ["depth", "text", stars, *tiny[:2], "--seeds", "1", "--epochs", "1", "--save", tmp_path/"sweep.json"]
    assert main(monkeypatch, *command) == 0
    assert re.search(r"validation r2 +test r2 +seconds a run", capsys.readouterr().out)
    assert json.loads((tmp_path/"sweep.json").read_text())["scores"][0] == "r2" and (tmp_path/"sweep.png").exists()


def test_home_is_found_where_no_shell_has_replaced_it(monkeypatch, capsys, reviews, tiny, tmp_path):
    "as in --out=~/model"
    for name in ("HOME", "USERPROFILE"): monkeypatch.setenv(name, str(tmp_path))
    places = ["--out=~/model", "--checkpoint=~/steps", "--cache-folder=~/states"]
    monkeypatch.chdir(tmp_path)
    assert main(monkeypatch, "text", reviews, *tiny[:2], "--freeze-depth", "3", "--epochs", "1", *places) == 0
    assert {"model", "steps", "states"} <= {file.name for file in tmp_path.iterdir()} and not (tmp_path/"~").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_full_disk_does_not_cost_the_result(monkeypatch, capsys, reviews, tiny, tmp_path, error):
    "it is printed before anything is written"
    def full(*args, **more): raise error
    monkeypatch.setattr("finetune_nb.saving.save_file", full)
    out = tmp_path/"out"
    assert main(monkeypatch, "text", reviews, *tiny, "--epochs", "1", "--out", out, "--json") == 1
    printed = capsys.readouterr()
    assert 0 <= json.loads(printed.out)["accuracy"] <= 1 and "Traceback" not in printed.err
    assert printed.err.splitlines()[-1].startswith(f"finetune-nb: The model could not be saved in {str(out)!r}")
    assert "No space left on device" in printed.err and not out.exists()


def test_a_full_disk_does_not_cost_a_sweep(monkeypatch, capsys, reviews, tiny, tmp_path):
    def full(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr("finetune_nb.depth.Sweep.save", full)
    command = ["depth", "text", reviews, *tiny[:2], "--seeds", "1", "--epochs", "1", "--save", tmp_path/"sweep.json"]
    assert main(monkeypatch, *command, "--json") == 1
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)["rows"]) >= 2 and printed.err.splitlines()[-1].startswith("finetune-nb: ")
