"""A kind of task and a family that are defined in a test file: everything works with them, and nothing knows them."""
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
from finetune_nb import depth, evaluate, fit, freeze, saving
from finetune_nb.data import Examples, Task
from finetune_nb.freezing import blocks, fingerprint
from finetune_nb.training import predict
from points import H, Finder, Points
from test_processes import launchers

how = dict(epochs=4, batch_size=6, learning_rate=1e-2, head_learning_rate=1e-2, progress=False)


def stars(n, seed, dtype=torch.float32):
    "Pictures with up to three bright points on noise"
    rng = np.random.default_rng(seed)
    def point(): return int(rng.integers(H)), int(rng.integers(2 * H))
    points = [list({point() for _ in range(rng.integers(4))}) for _ in range(n)]
    pictures = 0.3 * torch.from_numpy(rng.standard_normal((n, H, 2 * H))).to(dtype)
    for picture, own in zip(pictures, points):
        for r, c in own: picture[r, c] += 1.5
    return Examples(pictures, points)


def sky(dtype=torch.float32):
    return Task("sky", "picture", Points(), stars(40, 0, dtype), stars(30, 1, dtype), stars(30, 2, dtype))


def finder(depth=1, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    model = Finder().to(dtype)
    freeze(model, depth)
    return model


def test_it_is_short():
    assert len((root/"tests"/"points.py").read_text().splitlines()) <= 70 and "points" not in "".join(
        file.read_text() for file in (root/"finetune_nb").rglob("*.py") if "class Points" in file.read_text())


def test_targets_are_checked():
    inside = stars(4, 0)
    outside = Examples(inside.inputs, [[(0, 99)], [], [], []])
    with pytest.raises(ValueError, match="Task 'sky': validation a point lies outside its picture"):
        Task("sky", "picture", Points(), inside, outside, inside)


@pytest.mark.parametrize("frozen", [1, 2])
def test_the_cache_is_exact(frozen):
    "In float64, for 50 steps and more, to 1e-9, though the loss draws at random and the forward pass looks at targets"
    def run(cache):
        model = finder(frozen, dtype=torch.float64)
        history = fit(model, sky(torch.float64), cache=cache, **how | dict(epochs=8))
        return np.array(history.train_loss), history.prefix, model
    (ours, prefix, model), (theirs, none, _) = run(True), run(False)
    assert "run once for 70 examples" in prefix and not none and not np.isnan(ours).any()
    assert np.abs(ours / theirs - 1).max() < 1e-9
    assert evaluate(model, sky(torch.float64).test).scores.keys() == {"f1"}


def test_frozen_blocks_stay():
    model = finder(2)
    before = [fingerprint(block) for block in blocks(model)]
    fit(model, sky(), **how)
    assert [fingerprint(block) == old for block, old in zip(blocks(model), before)] == [True, True, False]


def job(folder, out, kill_at=None):
    torch.set_num_threads(1)
    model, steps = finder(1), []
    def count(*_):
        steps.append(1)
        if kill_at and len(steps) == kill_at: os.kill(os.getpid(), signal.SIGKILL)
    model.head.register_forward_pre_hook(count)
    history = fit(model, sky(), checkpoint=folder, every=3, resume=True, precision="fp32", **how)
    Path(out).write_text(json.dumps([fingerprint(model), history.train_loss]))


def test_killed_and_resumed(tmp_path): # what is spawned, not forked, has autograd threads of its own
    def process(*args):
        child = multiprocessing.get_context("spawn").Process(target=job, args=args)
        child.start()
        child.join()
        return child.exitcode
    assert process(tmp_path/"whole", tmp_path/"whole.json") == 0
    assert process(tmp_path/"killed", tmp_path/"killed.json", 14) == -signal.SIGKILL
    assert not (tmp_path/"killed.json").exists() and list((tmp_path/"killed").glob("step-*"))
    assert process(tmp_path/"killed", tmp_path/"killed.json") == 0
    assert (tmp_path/"killed.json").read_text() == (tmp_path/"whole.json").read_text()


script = """
import json, sys
sys.path[:0] = sys.argv[2:]
import torch
torch.set_num_threads(1)
from test_kinds import evaluate, finder, fit, how, sky
model = finder(2, dtype=torch.float64) # each process draws its own masks of dropout, and has its own batch norms
history = fit(model, sky(torch.float64), **how)
from accelerate import PartialState
told = json.dumps([history.train_loss, history.validation_score])
open(f"{sys.argv[1]}/rank{PartialState().process_index}.json", "w").write(told)
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
    assert ours == theirs and np.abs(np.array(ours[0]) / np.array(one[0]) - 1).max() < 1e-9 and ours[1] == one[1]


def test_swept_over_depths():
    more = dict(epochs=2, strategy="all", precision="fp32", progress=False)
    swept = depth.sweep(lambda seed: finder(0, seed), sky(), seeds=2, **more)
    found = swept.recommend()
    assert swept.scores == ["f1"] and len(swept.rows) == 6 and len(found.interval) == 2
    again = depth.Sweep.from_json(swept.to_json())
    assert again.recommend() == found and list(again.right(0)[0]) == pytest.approx(list(swept.right(0)[0]), abs=1e-4)
    swept.plot()


def test_saved_loaded_and_predicted(tmp_path):
    model, task = finder(1), sky()
    history = fit(model, task, **how)
    saving.save(tmp_path/"m", model, task, history, evaluate(model, task.test))
    loaded = finetune_nb.load(tmp_path/"m")
    assert fingerprint(loaded.model) == fingerprint(model) and loaded.model.objective == model.objective
    expected = predict(model, task.test.inputs)
    assert loaded.predict(list(task.test.inputs[:3])).answer.tolist() == expected[:3]
    assert "f1" in (tmp_path/"m"/"README.md").read_text()


def test_the_explorer_shows_it():
    from finetune_nb.widgets import FreezeExplorer
    explorer = FreezeExplorer(finder(0), sky(), steps=6)
    trial = explorer.run(1)
    assert 0 <= trial.scores["f1"] <= 1 and "f1" in explorer.picture.value.lower()
