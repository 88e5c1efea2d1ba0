"""Functions of tests in processes of their own, forked from one that has loaded the libraries."""
import json
import multiprocessing
import os
import signal
import socket
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from conftest import quiet_environment

heavy = ["nbdev.test", "pandas", "scipy.stats", "matplotlib.pyplot", "torchvision", "transformers", "sklearn.svm",
         "accelerate", "finetune_nb.widgets"]
ways = multiprocessing.get_all_start_methods()
processes = multiprocessing.get_context("forkserver" if "forkserver" in ways else "spawn")
processes.set_forkserver_preload(heavy)


def start(function, *args, **environment):
    "In a process that has no threads yet"
    process = processes.Process(target=_begin, args=(environment, function, args))
    with mock.patch.dict(os.environ, quiet_environment()): process.start() # the first of them passes these on
    return process


def _begin(environment, function, args):
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*args)


def exit_code(function, *args):
    process = start(function, *args)
    process.join()
    return process.exitcode


def killed_and_resumed(job, folder, kill_at, *args):
    "`job(*args, folder of checkpoints, file for its results, kill_at)` comes to the same as if it had not been killed"
    whole, killed = folder/"whole.json", folder/"killed.json"
    assert exit_code(job, *args, folder/"whole", whole, None) == 0
    assert exit_code(job, *args, folder/"killed", killed, kill_at) == -signal.SIGKILL
    assert not killed.exists() and list((folder/"killed").glob("step-*"))
    assert exit_code(job, *args, folder/"killed", killed, None) == 0
    assert killed.read_text() == whole.read_text()


def fit_to_the_kill(model, module, task, folder, out, kill_at, **how):
    "A job for `killed_and_resumed`: it ends when `module` is asked for the `kill_at`th time; None: when it is done"
    from finetune_nb import fit
    from finetune_nb.freezing import fingerprint
    asked = []
    def count(*_):
        asked.append(1)
        if len(asked) == kill_at: os.kill(os.getpid(), signal.SIGKILL)
    module.register_forward_pre_hook(count)
    history = fit(model, task, checkpoint=folder, every=3, resume=True, precision="fp32", **how)
    Path(out).write_text(json.dumps([fingerprint(model), history.train_loss]))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def alone_and_in_two(job, folder, *args):
    "What `job(*args)` returns: alone, and in each of two processes that share the work"
    def told(world):
        shared = dict(WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port(), CUDA_VISIBLE_DEVICES="")
        files = [folder/f"{rank} of {world}.json" for rank in range(world)]
        ranks = [{} if world == 1 else dict(shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(world)]
        ran = [start(_tell, job, args, file, **rank) for file, rank in zip(files, ranks)]
        for process in ran: process.join(600)
        assert [process.exitcode for process in ran] == [0] * world
        return [json.loads(file.read_text()) for file in files]
    return *told(1), *told(2)


def same_in_two(job, folder, *args):
    "The losses and scores of `job(*args)` are those of one process, and both processes know them"
    one, ours, theirs = alone_and_in_two(job, folder, *args)
    assert ours == theirs and ours[1] == pytest.approx(one[1], rel=1e-9)
    assert np.abs(np.array(ours[0]) / np.array(one[0]) - 1).max() < 1e-9


def _tell(job, args, file):
    file.write_text(json.dumps(job(*args)))
    if torch.distributed.is_initialized(): torch.distributed.destroy_process_group()
