"""A family that is defined in a test file, in at most 30 lines: everything works with it."""
import json
import multiprocessing
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import finetune_nb
from conftest import root
from finetune_nb import depth, evaluate, fit, freeze, saving, vision
from finetune_nb.data import Examples, Task
from finetune_nb.freezing import blocks, fingerprint
from mosaic import Mosaic # which registers its family
from test_processes import launchers

how = dict(epochs=4, batch_size=6, progress=False)


def part(count, seed):
    "Bright left or bright right"
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 120, (count, 3, 32, 32), generator=random, dtype=torch.uint8)
    labels = torch.arange(count) % 2
    for image, label in zip(images, labels): image[:, :, 16 * label:16 * label + 16] += 60
    return Examples(images, labels)


def sides(): return Task("sides", "image", ["left", "right"], part(40, 0), part(30, 1), part(30, 2))


def tiny(frozen, seed=0, dtype=torch.float32):
    torch.manual_seed(0)
    model = vision.classifier("mosaic-tiny", 2, seed=seed).to(dtype)
    freeze(model, frozen)
    return model


def test_it_is_short():
    lines = (root/"tests"/"mosaic.py").read_text(encoding="utf-8").partition("@register")[2].splitlines()
    assert len(lines) <= 30
    everything = "".join(file.read_text(encoding="utf-8") for file in (root/"finetune_nb").rglob("*.py"))
    assert "mosaic" not in everything.lower()


@pytest.mark.parametrize("frozen", [1, 2, 3])
def test_the_cache_is_exact(frozen):
    "In float64, for 56 steps, to 1e-9, dropout and all; and what is frozen stays"
    def run(cache):
        model = tiny(frozen, dtype=torch.float64)
        before = [fingerprint(block) for block in blocks(model)]
        history = fit(model, sides(), cache=cache, precision="fp32", **how | dict(epochs=8))
        assert [a != b for a, b in zip(before, map(fingerprint, blocks(model)))] == [i >= frozen for i in range(4)]
        return np.array(history.train_loss), history.prefix
    (ours, prefix), (theirs, none) = run(True), run(False)
    assert "run once for 70 examples" in prefix and not none
    assert np.abs(ours / theirs - 1).max() < 1e-9


def job(folder, out, kill_at=None):
    torch.set_num_threads(1)
    model, steps = tiny(2), []
    def count(*_):
        steps.append(1)
        if kill_at and len(steps) == kill_at: os.kill(os.getpid(), signal.SIGKILL)
    model.head.register_forward_pre_hook(count)
    history = fit(model, sides(), checkpoint=folder, every=3, resume=True, precision="fp32", **how)
    Path(out).write_text(json.dumps([fingerprint(model), history.train_loss]))


def test_killed_and_resumed(tmp_path):
    def process(*args):
        child = multiprocessing.get_context("fork").Process(target=job, args=args)
        child.start()
        child.join()
        return child.exitcode
    assert process(tmp_path/"whole", tmp_path/"whole.json") == 0
    assert process(tmp_path/"killed", tmp_path/"killed.json", 16) == -signal.SIGKILL
    assert not (tmp_path/"killed.json").exists() and list((tmp_path/"killed").glob("step-*"))
    assert process(tmp_path/"killed", tmp_path/"killed.json") == 0
    assert (tmp_path/"killed.json").read_text() == (tmp_path/"whole.json").read_text()


script = """
import json, sys
sys.path[:0] = sys.argv[2:]
import torch
torch.set_num_threads(1)
from accelerate import PartialState
from test_families import fit, how, sides, tiny
history = fit(tiny(3, dtype=torch.float64), sides(), **how)
with open(f"{sys.argv[1]}/rank{PartialState().process_index}.json", "w") as file: json.dump(history.train_loss, file)
if torch.distributed.is_initialized(): torch.distributed.destroy_process_group()
"""


def test_two_processes(tmp_path, quiet):
    found = {}
    for launcher in "one", "torchrun":
        folder = tmp_path/launcher
        folder.mkdir()
        (folder/"script.py").write_text(script)
        command = [*launchers[launcher](), str(folder/"script.py"), str(folder), str(root), str(root/"tests")]
        env = {**quiet, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        found[launcher] = [json.loads(file.read_text()) for file in sorted(folder.glob("rank*.json"))]
    (one,), (ours, theirs) = found["one"], found["torchrun"]
    assert ours == theirs and np.abs(np.array(ours) / np.array(one) - 1).max() < 1e-9


def test_swept_saved_loaded_and_explored(tmp_path):
    from finetune_nb.widgets import FreezeExplorer
    swept = depth.sweep(lambda seed: tiny(0, seed), sides(), seeds=2, epochs=2, strategy="all", progress=False)
    assert swept.blocks == ["stem", "layer1", "layer2", "head"] and len(swept.recommend().interval) == 2
    model, task = tiny(2), sides()
    history = fit(model, task, **how)
    evaluation = evaluate(model, task.test)
    saving.save(tmp_path/"m", model, task, history, evaluation)
    again = finetune_nb.load(tmp_path/"m")
    assert isinstance(again.model.backbone, Mosaic) and again.model.name == "mosaic-tiny"
    assert np.allclose(evaluate(again.model, task.test).probabilities, evaluation.probabilities, atol=1e-6)
    explorer = FreezeExplorer(tiny(0), task, steps=4)
    assert 0 <= explorer.run(2).scores["accuracy"] <= 1
