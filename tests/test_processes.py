"""One script in one process and in two: the same losses, each example once, one checkpoint, one progress bar."""
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from finetune_nb.data import Examples
from finetune_nb.engine.batches import Batches
from finetune_nb.engine.labels import Classification
from finetune_nb.engine.models import as_model
from processes import free_port

script = '''
import json, sys
from pathlib import Path
import torch
from torch import nn
from accelerate import PartialState
from finetune_nb import evaluate, fit, freeze
from finetune_nb.data import Examples, Task
from finetune_nb.engine.batches import Batches
from finetune_nb.engine.run import Stages

out, layout = Path(sys.argv[1]), sys.argv[2:]
torch.set_num_threads(1)

def part(n, seed):
    points = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return Examples(points, points[:, :3].argmax(1))

parts = part(61, 0), part(33, 1), part(33, 2) # neither divides by two, nor by the batch
task = Task("corners", "points", ["x", "y", "z"], *parts)
torch.manual_seed(3)
below = nn.Sequential(nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU())
above = nn.Sequential(nn.Linear(24, 24), nn.LayerNorm(24), nn.ReLU())
model = nn.Sequential(below, above, nn.Linear(24, 3))
freeze(model, 2)

seen, batch_of = [], Batches.batch
def watched(self, positions, epoch=0):
    batch = batch_of(self, positions, epoch)
    if self.seed is None: return batch
    counts = slice(None) if batch.weights is None else batch.weights > 0
    seen.append([epoch, self.rank, batch.positions[counts].tolist()])
    return batch
Batches.batch = watched

foresee = Stages._foresee
def unwatched(self): # a batch is looked at before the first step, and nothing is learnt from it
    before = len(seen)
    foresee(self)
    del seen[before:]
Stages._foresee = unwatched

parts = dict(batch_size=4, accumulate=2) if "accumulate" in layout else dict(batch_size=8)
how = dict(**parts, epochs=6, learning_rate=1e-2, precision="fp32", cache="uncached" not in layout)
if "checkpoint" in layout: how |= dict(checkpoint=out/"checkpoints", every=5, resume="resume" in layout)
history = fit(model, task, unfreeze_at={3: 1, 5: 0} if "batchnorm" in layout else {3: 1}, **how)
rank = PartialState().process_index
validation = [[epoch["validation_loss"], epoch["validation_accuracy"]] for epoch in history.epochs]
told = dict(losses=history.train_loss, validation=validation, seen=seen, prefix=history.prefix)
told |= dict(accuracy=evaluate(model, task.test).accuracy)
told |= dict(weights=[p.double().sum().item() for p in model.parameters()])
(out/f"rank{rank}.json").write_text(json.dumps(told))
if torch.distributed.is_initialized(): # or a thread of it may outlive Python, and abort
    torch.distributed.destroy_process_group()
'''


accelerate = ("accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
              "--dynamo_backend no --main_process_port")
torchrun = "torch.distributed.run --nproc_per_node 2 --master_port"
launchers = {
    "one": lambda: [sys.executable],
    "accelerate": lambda: [sys.executable, "-m", *accelerate.split(), free_port()],
    "torchrun": lambda: [sys.executable, "-m", *torchrun.split(), free_port()],
}


def run(launcher, folder, quiet, *arguments, script=script):
    """What each process told in `rankN.json`, and standard error. `accelerate launch --cpu` would start a single
    process, without MPI; --multi_gpu starts two, with or without a GPU"""
    folder.mkdir(exist_ok=True)
    (folder/"script.py").write_text(script)
    env = {k: v for k, v in quiet.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env |= dict(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", CUDA_VISIBLE_DEVICES="")
    command = [*launchers[launcher](), str(folder/"script.py"), str(folder), *arguments]
    how = dict(capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600)
    done = subprocess.run(command, env=env, cwd=folder, **how)
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = [json.loads(file.read_text()) for file in sorted(folder.glob("rank*.json"))]
    assert len(ranks) == (1 if launcher == "one" else 2)
    return ranks, done.stderr


@pytest.fixture(scope="module")
def one(tmp_path_factory, quiet): return run("one", tmp_path_factory.mktemp("one"), quiet)


def test_two_processes_do_as_one_does(tmp_path, quiet, one):
    ((alone,), said_alone), (ranks, said) = one, run("accelerate", tmp_path, quiet, "checkpoint")
    for rank in ranks:
        np.testing.assert_allclose(rank["losses"], alone["losses"], rtol=1e-5)
        np.testing.assert_allclose(rank["validation"], alone["validation"], rtol=1e-5)
        np.testing.assert_allclose(rank["weights"], alone["weights"], rtol=1e-3, atol=1e-4)
    assert ranks[0]["weights"] == ranks[1]["weights"] and ranks[0]["accuracy"] == alone["accuracy"]
    for epoch in range(1, 7): # a position is one among a process's own examples, which are every second one
        owned = sorted(2 * p + rank for r in ranks for e, rank, positions in r["seen"] for p in positions if e == epoch)
        assert owned == list(range(61)), "no example is dropped or counted twice"
    shares = [f"blocks run once for {count} examples" for count in (48, 46)]
    assert all(share in rank["prefix"] for share, rank in zip(shares, ranks)), "each keeps its own share"
    assert said.count("48 examples") == 2 and "46 examples" not in said, "told once, by one of them"
    bar = "0/48 [00:00<?"
    assert said.count(bar) == said_alone.count(bar)
    assert len(list((tmp_path/"checkpoints").glob("step-*"))) == 2 and not list((tmp_path/"checkpoints").glob("*.part"))
    newest = max((tmp_path/"checkpoints").glob("step-*")) # as if killed before the end
    newest.unlink()
    again, _ = run("accelerate", tmp_path, quiet, "checkpoint", "resume")
    for name in "losses", "weights": assert [rank[name] for rank in again] == [rank[name] for rank in ranks]


def test_torchrun_without_a_cache(tmp_path, quiet, one):
    """Two halves of a batch are added up. In the last two epochs BatchNorm learns, from each process's part of a half:
    it goes on, with other losses"""
    ranks, _ = run("torchrun", tmp_path, quiet, "uncached", "batchnorm", "accumulate")
    for rank in ranks:
        np.testing.assert_allclose(rank["losses"][:4], one[0][0]["losses"][:4], rtol=1e-5)
        assert np.isfinite(rank["losses"]).all() and rank["losses"][5] != one[0][0]["losses"][5]


@pytest.mark.parametrize("count, world, batch_size", [(200, 2, 66), (200, 4, 97), (7, 4, 3)])
def test_each_example_is_judged_once(count, world, batch_size):
    "Also where a process owns one example of a batch, or none"
    examples = Examples(torch.arange(float(count))[:, None], torch.arange(count))
    asked = Classification(list(map(str, range(count))))
    model = as_model(nn.Identity())
    shares = [Batches(model, examples, asked, batch_size, rank=rank, world=world) for rank in range(world)]
    for share in shares:
        positions = [p for batch in share.epoch() for p in batch.positions.tolist()]
        assert sorted(positions) == list(range(len(share.examples)))
    labels = [label for share in shares for batch in share.epoch() for label in batch.targets.tolist()]
    assert sorted(labels) == list(range(count))


def test_the_losses_of_all_processes_weigh_as_much_as_those_of_one():
    examples = Examples(torch.arange(61.0)[:, None], torch.arange(61) % 3)
    model, asked = as_model(nn.Identity()), Classification(["a", "b", "c"])
    shares = [Batches(model, examples, asked, 6, seed=0, rank=rank, world=4).epoch(1) for rank in range(4)]
    for step in zip(*shares):
        weights = torch.cat([batch.weights for batch in step])
        assert weights.sum().item() / 4 == pytest.approx(1, rel=1e-15) and (weights > 0).sum() == step[0].count
