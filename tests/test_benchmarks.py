"""The benchmark runs, on a handful of examples: finetune_nb and the peers that are installed here."""
import json
import subprocess
import sys
from conftest import root


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
