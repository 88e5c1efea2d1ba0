"""The command, as a user runs it: in a process of its own, with the network off, interrupted, and given nonsense."""
import json, shutil, signal, subprocess, sys, time
from pathlib import Path
import pytest
from finetune_nb import cli, training

command = [str(Path(sys.executable).with_name("finetune-nb")), "text", "--labels-per-class", "5", "--freeze-depth", "7", "--json"]


def test_offline_from_start_to_saved_model(quiet, tmp_path):
    "No interface but loopback, and no setting that says so: the embedded backbone needs none"
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
        pytest.skip("this system cannot take the network away from a process (unshare -rn)")
    env = {k: v for k, v in quiet.items() if k != "HF_HUB_OFFLINE"}
    out = tmp_path/"model"
    ran = subprocess.run(["unshare", "-rn", "sh", "-c", 'ip link set lo up 2>/dev/null; exec "$@"', "sh", *command, "--epochs", "2", "--baseline", "--out", str(out)],
                         env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout.splitlines()[-1])
    assert {"task", "backbone", "freeze_depth", "blocks", "trainable_parameters", "total_parameters", "epochs", "seconds", "train_loss", "accuracy", "macro_f1",
            "num_test", "baseline_accuracy"} <= result.keys()
    assert (result["task"], result["backbone"], result["freeze_depth"], result["epochs"]) == ("topics", "minilm", 7, 2)
    assert result["num_test"] >= 1000 and result["train_loss"][1] < result["train_loss"][0] and 0.1 < result["accuracy"] < 1
    assert len(ran.stdout.splitlines()) == 1, "standard output is for the result alone"

    from safetensors.torch import load_model
    from finetune_nb import data, evaluate, text
    model = text.classifier("minilm", 10, seed=9)
    load_model(model, out/"model.safetensors")
    assert evaluate(model, data.topics(5).test).accuracy == pytest.approx(result["accuracy"], abs=1e-6), "the saved weights give the reported accuracy"
    assert json.loads((out/"result.json").read_text())["classes"] == list(data.topics(5).classes)
    assert all((out/name).read_bytes().startswith(b"\x89PNG") for name in ("curves.png", "confusion.png"))


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is another thing there")
def test_interrupted_run_keeps_its_best(quiet):
    "Ctrl-C once training is under way: the best weights so far are judged and the result is printed"
    process = subprocess.Popen([*command, "--epochs", "500"], env=quiet, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) # a job in the background inherits a Ctrl-C that is ignored
    seen = ""
    while "validation=" not in seen:
        seen += process.stderr.read(1)
        assert process.poll() is None, seen
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    result = json.loads(printed.splitlines()[-1])
    assert process.returncode == 0 and result["stopped"] == "interrupted" and 1 <= result["epochs"] < 500


def main(monkeypatch, *options):
    "The command in this process, which has paid for its imports already: its exit status"
    monkeypatch.setattr(sys, "argv", [*command, *options])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True) # or it tries five times
    with pytest.raises(SystemExit) as stopped: cli.main()
    return stopped.value.code


def test_interrupted_before_the_first_epoch_there_is_no_result(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("finetune_nb.training.fit", lambda *args, **settings: training.History({}, stopped="interrupted"))
    assert main(monkeypatch, "--out", str(tmp_path/"new")) == 130
    printed = capsys.readouterr()
    assert "nothing was learnt" in printed.err and printed.out == "" and not list((tmp_path/"new").glob("*"))


@pytest.mark.parametrize("options, sentence, status", [
    (["--freeze-depth", "8"], "depth must be between 0 and 7, got 8", 1),
    (["--labels-per-class", "5000"], "too few for 5000", 1),
    (["--pooling", "max"], 'pooling must be "mean" or "pooler", got \'max\'', 1),
    (["--backbone", "no/such-backbone"], "minilm` needs no network", 1),
    (["--epochs", "0"], "'--epochs'", 2)], ids=lambda value: "-".join(value) if isinstance(value, list) else "")
def test_nonsense_costs_one_sentence(monkeypatch, capsys, options, sentence, status):
    assert main(monkeypatch, *options) == status
    printed = capsys.readouterr()
    assert sentence in printed.err and "Traceback" not in printed.err and printed.out == ""


def test_a_folder_with_something_in_it_is_refused(monkeypatch, capsys, tmp_path):
    (tmp_path/"precious").write_text("mine")
    assert main(monkeypatch, "--out", str(tmp_path)) == 1
    assert "nothing is overwritten" in capsys.readouterr().err and (tmp_path/"precious").read_text() == "mine"


def test_help_comes_at_once(quiet):
    started = time.perf_counter()
    ran = subprocess.run([command[0], "text", "--help"], env=quiet, capture_output=True, text=True)
    assert ran.returncode == 0 and "--labels-per-class" in ran.stdout and time.perf_counter() - started < 3
