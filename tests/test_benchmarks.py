"""The benchmark runs, on a handful of examples: finetune_nb and the peers that are installed here."""
import json
import subprocess
import sys
import pytest
from conftest import load, root


def test_everybody_does_the_same_work(tmp_path, quiet):
    command = [sys.executable, str(root/"benchmarks"/"bench.py"), "--smoke", "--out", str(tmp_path)]
    ran = subprocess.run(command, env=quiet, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                         timeout=1800) # against hanging, not slowness
    assert ran.returncode == 0, ran.stderr[-3000:]
    runs = json.loads((tmp_path/"smoke.json").read_text())["runs"]
    expected = {"plain PyTorch", "Hugging Face Trainer", "finetune_nb", "finetune_nb, no cache", "limit"}
    assert expected <= {run["peer"] for run in runs}
    assert not [run for run in runs if "error" in run]
    assert all(0 <= run["accuracy"] <= 1 and run["seconds"] > 0 for run in runs if "accuracy" in run)
    assert (tmp_path/"smoke.md").exists() and (tmp_path/"smoke.png").exists()


# The listings of the lesson on tools

folder = root/"benchmarks"/"tools"
listings = sorted(path.stem for path in folder.glob("*_*.py") if path.stem.startswith(("image_", "text_")))


@pytest.fixture
def tools(monkeypatch):
    "The script that runs them; it puts folders in the path, which are taken out again"
    monkeypatch.setattr(sys, "path", sys.path[:])
    return load(folder/"run.py")


@pytest.mark.parametrize("name", listings)
def test_a_listing_has_the_five_steps(name, tools):
    source = (folder/f"{name}.py").read_text(encoding="utf-8")
    compile(source, name, "exec")
    opening, *parts = tools.steps(source)
    assert opening[0] == [] and sorted(step for own, _, _ in parts for step in own) == [1, 2, 3, 4, 5]
    lines = source.splitlines()
    assert all(text.strip() and lines[first] == text.splitlines()[0] for _, first, text in parts)
    assert "accuracy =" in parts[-1][2] and parts[-1][0] == [5]


def test_steps_are_found(tools):
    "A step that is missing is noticed, and two marks above one line share it"
    source = '"A listing"\nimport a\n\n# 1 choose\n# 3 add a head\nb()\n\n# 4 train\nc() # 5 evaluate\n'
    assert tools.steps(source) == [([], 0, '"A listing"\nimport a\n\n'), ([1, 3], 5, "b()\n\n"),
                                   ([4], 8, "c() # 5 evaluate\n")]


def test_every_listing_is_run(tools):
    assert {name for task in (tools.IMAGE, tools.TEXT) for name, _ in task.values()} == set(listings)


def test_the_listing_for_here_runs(tools, tmp_path, quiet):
    "On a handful of examples, as `make tools` runs it"
    job = dict(what="listing", name="image_finetune_nb", backend="torch", seed=0)
    command = [sys.executable, str(folder/"run.py"), "--one", json.dumps(job), "--result", str(tmp_path/"found.json")]
    environment = {**quiet, "TOOLS_TINY": "1", "TOOLS_FOLDER": str(tmp_path)}
    ran = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True,
                         stdin=subprocess.DEVNULL, timeout=600)
    found = json.loads((tmp_path/"found.json").read_text())
    assert "error" not in found and 0 <= found["accuracy"] <= 1, ran.stderr[-3000:]
    assert set(found["processor_seconds"]) == {"1", "2", "4", "5"} and found["memory_peak"] > 1e7


def test_what_the_lesson_draws_was_measured(tools):
    "By the very files that are there: every tool on each task, every conversion, every setting of BatchNorm"
    found = json.loads((root/"nbs"/"measured"/"tools.json").read_text(encoding="utf-8"))
    assert not [row for row in found["rows"] if "error" in row["result"]]
    measured = {tools.key(row["job"]) for row in found["rows"]}
    missing = [job for job in tools.jobs(1) if tools.key(job) not in measured]
    assert not missing, f"type `make tools`: {missing}"
    assert found["shared"]["classes"] * found["shared"]["test_per_class"] >= 1000
