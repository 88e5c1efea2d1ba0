"""A run that is killed with `kill -9` and resumed ends with the same weights, bit for bit, as one that was not."""
import json
import multiprocessing
import os
import random
import shutil
import signal
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from finetune_nb import fit, freeze
from finetune_nb.data import Examples, Task
from finetune_nb.engine import checkpoints, prefix, run
from finetune_nb.freezing import fingerprint

settings = dict(epochs=14, batch_size=7, unfreeze_at={5: 1, 10: 0}, learning_rate=1e-2, patience=9, every=4,
                progress=False)


def make():
    "BatchNorm and dropout in every block"
    torch.manual_seed(3)
    def block(n, m): return nn.Sequential(nn.Linear(n, m), nn.BatchNorm1d(m), nn.ReLU(), nn.Dropout(0.2))
    model = nn.Sequential(block(6, 24), block(24, 24), nn.Linear(24, 3))
    model.augment = lambda x: x + 0.1 * torch.randn(6)
    freeze(model, 2)
    return model


@pytest.fixture(scope="module")
def task():
    def part(n, seed):
        points = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
        return Examples(points, points[:, :3].argmax(1))
    return Task("corners", "points", ["x", "y", "z"], part(60, 0), part(40, 1), part(40, 2))


def job(task, folder, out, sabotage=lambda: None, views=2):
    "What a process does: go on from what is there, and write down how it ended"
    torch.set_num_threads(1)
    sabotage()
    model = make()
    history = fit(model, task, checkpoint=folder, resume=True, cache=folder/"states", views=views, **settings)
    save_file(model.state_dict(), out/"model.safetensors")
    (out/"history.json").write_text(json.dumps([history.train_loss, history.best_epoch, history.stopped]))


def process(*args):
    child = multiprocessing.get_context("fork").Process(target=job, args=args)
    child.start()
    return child


def ended(out): return fingerprint_of(out/"model.safetensors"), json.loads((out/"history.json").read_text())


def fingerprint_of(file):
    model = make()
    model.load_state_dict(load_file(file))
    return fingerprint(model)


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory):
    "How it ends if nobody kills it, and how long that takes"
    out, started = tmp_path_factory.mktemp("whole"), time.perf_counter()
    child = process(task, out/"checkpoints", out)
    child.join()
    assert child.exitcode == 0
    return *ended(out), time.perf_counter() - started


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_moments(seed, task, whole, tmp_path):
    "Five times each; where it had got to, nobody knows"
    moments = random.Random(seed)
    for _ in range(5):
        child = process(task, tmp_path/"checkpoints", tmp_path)
        child.join(moments.uniform(0.02, 0.8) * whole[2])
        if child.is_alive(): os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        if child.exitcode == 0: # done before it was killed: the next one has only to say so
            (tmp_path/"model.safetensors").unlink()
    last = process(task, tmp_path/"checkpoints", tmp_path)
    last.join()
    assert last.exitcode == 0 and ended(tmp_path) == whole[:2]
    assert len(list((tmp_path/"checkpoints").glob("step-*"))) == 2, "the last two are kept"


def dies(module, name, time_of_death, before=True):
    "Sabotage: the process kills itself at that call of `module.name`"
    def sabotage():
        real, calls = getattr(module, name), []
        def fatal(*args, **more):
            calls.append(1)
            if before and len(calls) == time_of_death: os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args, **more)
            if len(calls) == time_of_death: os.kill(os.getpid(), signal.SIGKILL)
            return result
        setattr(module, name, fatal)
    return sabotage


@pytest.mark.parametrize("sabotage", [
    # while the cache is filled
    dies(prefix, "watch", 5), dies(prefix.Store, "finish", 1), dies(prefix.Store, "finish", 2, before=False),
    # while a checkpoint is written
    dies(checkpoints, "save", 3), dies(os, "fsync", 5), dies(os, "replace", 6), dies(os, "replace", 6, before=False),
    # at an unfreezing
    dies(run, "freeze", 1), dies(run, "freeze", 1, before=False), dies(run, "freeze", 2),
    # around the validation
    dies(run.Run, "judge", 6), dies(run.Run, "judge", 6, before=False),
])
def test_killed_at_the_worst_moments(sabotage, task, whole, tmp_path):
    child = process(task, tmp_path/"checkpoints", tmp_path, sabotage)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    last = process(task, tmp_path/"checkpoints", tmp_path)
    last.join()
    assert last.exitcode == 0 and ended(tmp_path) == whole[:2]
    assert not list((tmp_path/"checkpoints").rglob("*.part"))


def test_a_checkpoint_holds_all_that_the_contract_names(task, tmp_path):
    fit(make(), task, checkpoint=tmp_path, cache=False, **settings)
    with safe_open(max(tmp_path.iterdir()), "pt") as opened:
        names, about = set(opened.keys()), json.loads(opened.metadata()["fit"])
    averages = {f"optimizer.2.weight.{name}" for name in ("exp_avg", "exp_avg_sq", "step")}
    assert averages | {"now.2.weight", "best.2.weight", "now.0.1.running_mean"} <= names
    assert {"epoch", "batch", "step", "total", "scheduler", "randomness", "history", "best_score", "best_objective",
            "identity"} <= set(about)
    assert {"what learns", "objective", "training examples", "frozen prefix"} <= set(about["identity"])


def resume(task, folder, model=None, **changed):
    return fit(model or make(), task, checkpoint=folder, resume=True, views=2, **settings | changed)


@pytest.fixture
def begun(task, tmp_path):
    "A run that was stopped in the middle"
    child = process(task, tmp_path/"run", tmp_path, dies(run.Run, "judge", 7))
    child.join()
    return tmp_path/"run"


def test_a_foreign_or_damaged_checkpoint_is_refused_whole(task, begun):
    newest = max(begun.glob("step-*"))
    good = newest.read_bytes()
    moved = Examples(task.train.inputs + 1, task.train.labels)
    other = Task("corners", "points", task.classes, moved, task.validation, task.test)
    deeper = make()
    deeper[1].append(nn.Linear(24, 24))
    foreign = [(task, dict(seed=1), "seed 0, now 1"), (task, dict(epochs=15), "epochs 14, now 15"),
               (task, dict(batch_size=6), "batch_size 7, now 6"), (other, {}, "different are: training examples"),
               (task, dict(model=deeper), "different are: .*tensors"),
               (task, dict(unfreeze_at={5: 1}), "unfreeze_at")]
    for given, changed, message in foreign:
        with pytest.raises(ValueError, match=message): resume(given, begun, **changed)
    flipped, renamed = good[:-20] + bytes([good[-20] ^ 1]) + good[-19:], good.replace(b"epoch", b"Epoch", 1)
    for damage in (good[:-100], good[:50], b"", flipped, renamed, b"not safetensors"):
        newest.write_bytes(damage)
        model = make()
        before = fingerprint(model)
        with pytest.raises(ValueError, match=newest.name): resume(task, begun, model)
        assert fingerprint(model) == before, "not half loaded"
    newest.unlink()
    assert resume(task, begun).stopped, "and from the one before it goes on"


def test_checkpoints_are_not_written_over(task, begun):
    with pytest.raises(FileExistsError, match="holds checkpoints already: go on from them with resume=True"):
        fit(make(), task, checkpoint=begun, views=2, **settings)


def test_a_finished_run_is_not_run_again(task, tmp_path, monkeypatch):
    first = resume(task, tmp_path)
    monkeypatch.setattr(run.Run, "learn", None)
    model = make()
    again = resume(task, tmp_path, model)
    assert again.epochs == first.epochs and again.stopped == first.stopped and again.best_epoch == first.best_epoch


def test_other_layers_that_learn_are_another_run(task, tmp_path):
    "One block alone learns, and then, after a restart, all above the cut would"
    def part(alone, **how):
        model = make()
        freeze(model, 1)
        model[1].requires_grad_(not alone)
        return fit(model, task, epochs=2, checkpoint=tmp_path, progress=False, **how)
    part(True)
    with pytest.raises(ValueError, match="belongs to another run; different are: what learns"): part(False, resume=True)


def test_how_weights_lie_in_memory_is_not_part_of_a_checkpoint(tmp_path):
    "Convolutions channels last: resumed so, the same bit for bit; in another layout, a checkpoint of the same shapes"
    images = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    part = Examples(images, images.mean((1, 2, 3)).gt(0).long())
    task = Task("bright", "image", ["no", "yes"], part, part, part)
    def made(layout):
        torch.manual_seed(1)
        below = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        above = nn.Sequential(nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(below, above, nn.Linear(8, 2)).to(memory_format=layout)
    how = dict(epochs=4, batch_size=8, precision="fp32", every=2, keep_last=9, resume=True, progress=False)
    def run(layout, folder):
        model = made(layout)
        history = fit(model, task, checkpoint=folder, **how)
        return fingerprint(model), history.train_loss
    expected = run(torch.channels_last, tmp_path/"whole")
    middle = sorted((tmp_path/"whole").glob("step-*.safetensors"))[2]
    weight = load_file(middle)["optimizer.1.0.weight.exp_avg"]
    assert weight.shape == (8, 8, 3, 3) and weight.abs().max() > 0
    for layout in (torch.channels_last, torch.contiguous_format):
        folder = tmp_path/str(layout)
        folder.mkdir()
        shutil.copy(middle, folder)
        weights, losses = run(layout, folder)
        if layout == torch.channels_last: assert (weights, losses) == expected
        else: assert losses == pytest.approx(expected[1], rel=1e-4)
