"""The gate that a backbone has to pass, and the table of those that were tried: `python tools/backbones.py`.

It tries every classifier of torchvision, and one network of each of 60 modules of timm, with random weights, and writes
`nbs/measured/backbones.json` row by row; started again, it goes on where it stopped. Names that are given are tried
again. Each network is tried in a process of its own.
"""
import json
import multiprocessing
import os
import platform
import random
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import finetune_nb
from finetune_nb import blocks, cache, evaluate, fit, freeze, saving, vision
from finetune_nb.data import Examples, Task
from finetune_nb.engine.models import tensors_in
from finetune_nb.engine.twins import CannotCut
from finetune_nb.freezing import fingerprint, guess_blocks

root = Path(__file__).resolve().parent.parent
file = root/"nbs"/"measured"/"backbones.json"
most_seconds = 900 # for one network
most_parameters = 100_000_000 # of the networks that are drawn from timm
sizes = 64, 96, 128, 192, 224, 240, 256, 299, 384, 512


# The gate: each part raises an AssertionError that says what is wrong

def in_one_block(model):
    "Every parameter and buffer is in exactly one block, and the new head is in the last"
    found = blocks(model)
    owned = [id(t) for block in found for t in [*block.parameters(), *block.buffers()]]
    every = [*model.parameters(), *model.buffers()]
    assert sorted(owned) == sorted(map(id, every)), "a tensor is in no block, or in two"
    assert len(found) > 2 and len({block.name for block in found}) == len(found), f"{len(found)} blocks"
    assert all(module in {m for top in found[-1].modules for m in top.modules()} for module in model.head.modules())


def keeps_the_contract(model, labels=torch.tensor([0, 1, 1])):
    "At every depth a step moves what learns, and nothing that is frozen"
    batch, found = model.collate(model.samples(3)), blocks(model)
    now = [fingerprint(block) for block in found]
    for depth in range(len(found)):
        freeze(model, depth)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, weight_decay=0.1) # with everything in it
        model.train()
        F.cross_entropy(model.call(batch), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        before, now = now, [fingerprint(block) for block in found]
        wrong = [block.name for i, block in enumerate(found) if (before[i] != now[i]) != (i >= depth)]
        assert not wrong, f"at depth {depth} a step is wrong about {', '.join(wrong[:3])}"


def is_cut_at_every_depth(model):
    "The two halves give the whole model's scores, and the gradients of all that learns"
    few = model.samples(3)
    batch = model.collate(few)
    def gradients(scores):
        (scores * torch.arange(scores.numel()).view_as(scores)).sum().backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        model.zero_grad()
        return found
    for depth in range(1, len(blocks(model))):
        freeze(model, depth)
        model.eval()
        whole = model.call(batch)
        wanted = gradients(whole)
        try: cut = cache.Cut(model, depth, few)
        except CannotCut as error: raise AssertionError(str(error)) from error
        with torch.no_grad(): states = cut.states(batch)
        halves = cut.suffix(states, batch if cut.needs_inputs else None)
        assert close(halves, whole), f"at depth {depth} the halves give other scores"
        other = [name for name, grad in gradients(halves).items() if not close(grad, wanted[name])]
        assert not other, f"at depth {depth} {other[0]} has another gradient"


def close(ours, theirs):
    if ours is None or theirs is None: return ours is theirs
    return torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())


def learns(make, task):
    "Fitted at two depths, with layer-wise rates; from the cache as without it"
    how = dict(epochs=1, batch_size=4, layer_decay=0.8, precision="fp32", progress=False)
    last = len(blocks(make())) - 1
    for depth in (last // 2, last):
        losses = []
        for cached in (True, False):
            model = make()
            freeze(model, depth)
            history = fit(model, task, cache=cached, **how)
            losses.append(history.train_loss)
        ours, theirs = losses
        assert np.allclose(ours, theirs, rtol=1e-3), f"at depth {depth} the loss is {ours}, without the cache {theirs}"
    return model, history


def is_saved(model, task, history, folder, elsewhere=True):
    "What is loaded gives the same scores, here and by the lines of its card"
    saving.save(folder, model, task, history, evaluate(model, task.test, precision="fp32"))
    batch = model.collate(model.samples(3))
    with torch.no_grad():
        expected = model.eval().call(batch)
        assert close(finetune_nb.load(folder).model.call(batch), expected), "loaded, it gives other scores"
        if not elsewhere: return
        made = {}
        exec(lines_of_the_card(folder), made)
        theirs = made["model"].eval()
        found = theirs(model.normalise(batch)) if torch.is_tensor(batch) else theirs(**batch)
        assert close(found, expected), "by the lines of its card it gives other scores"


def lines_of_the_card(folder):
    "How a saved model is loaded without finetune_nb: the last lines of Python on its card"
    *_, lines = re.findall(r"```python\n(.*?)```", (Path(folder)/"README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert "finetune_nb" not in lines, "its card says nothing of other tools"
    return lines.replace("DIR", str(folder))


def can_be_guessed(model):
    "The tree of its modules alone gives blocks that can be cut"
    freeze(model.backbone, 0, blocks=guess_blocks(model.backbone))
    in_one_block(model)
    is_cut_at_every_depth(model)


def gate(make, task, onnx=True, elsewhere=True, guess=False):
    "What is wrong with each part, by its name; empty: nothing. `make` gives the same model each time"
    model = make()
    with tempfile.TemporaryDirectory() as folder:
        kept = {}
        def fitted(): kept["fit"] = learns(make, task)
        parts = {"blocks": lambda: in_one_block(model), "contract": lambda: keeps_the_contract(model),
                 "cuts": lambda: is_cut_at_every_depth(make()), "fit": fitted,
                 "saved": lambda: is_saved(kept["fit"][0], task, kept["fit"][1], Path(folder)/"model", elsewhere)}
        if onnx: parts["onnx"] = lambda: saving.export_onnx(Path(folder)/"model")
        if guess: parts["guess"] = lambda: can_be_guessed(make())
        return {name: fault(part) for name, part in parts.items()}


def fault(part):
    "In a line"
    try: part()
    except Exception as error: return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
    return ""


# Images

def noise(size):
    "Pictures of nothing, in two classes"
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 3, size, size), dtype=torch.uint8, generator=random)
    examples = Examples(images, [0, 1] * 4)
    return Task("noise", "image", ["a", "b"], examples, examples, examples)


def smallest(name):
    "The smallest of some sizes that a network takes"
    for size in sizes:
        try: vision_of(name, size)
        except ValueError: continue
        return size
    return None


def vision_of(name, size=None): return vision.classifier(name, 2, image_size=size, pretrained=False)


def costs(model):
    "Millions of parameters, megabytes that an image leaves in all layers, and milliseconds that it takes on one thread"
    seen = []
    def count(module, _, output): seen.extend(t.numel() * t.element_size() for t in tensors_in(output))
    leaves = [m for m in model.modules() if not list(m.children())]
    hooks = [m.register_forward_hook(count) for m in leaves]
    batch = model.eval().collate(model.samples(3))
    with torch.no_grad(): model.call(batch)
    for hook in hooks: hook.remove()
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        with torch.no_grad(): model.call(batch)
        seconds.append(time.perf_counter() - started)
    parameters = sum(p.numel() for p in model.backbone.parameters())
    return dict(parameters=round(parameters / 1e6, 1), megabytes=round(sum(seen) / len(batch) / 1e6, 1),
                milliseconds=round(1000 * sorted(seconds)[1] / len(batch), 1))


def tried(name):
    "The row of a network"
    started = time.perf_counter()
    try: size = smallest(name)
    except Exception as error: return dict(faults=dict(opened=f"{type(error).__name__}: {error}"[:300]))
    if size is None: return dict(faults=dict(opened=f"takes no images of {sizes[0]} to {sizes[-1]} pixels"))
    def make(): return vision_of(name, size)
    model = make()
    try: row = dict(size=size, blocks=len(blocks(model)), **costs(model))
    except ValueError as error: return dict(size=size, faults=dict(blocks=f"{type(error).__name__}: {error}"[:300]))
    faults = {part: said for part, said in gate(make, noise(size), guess=True).items() if said}
    return row | dict(faults=faults, seconds=round(time.perf_counter() - started))


# The table

def names():
    "Every classifier of torchvision, and a network of each of 60 modules of timm"
    import timm
    from torchvision import models
    drawn, draw = [], random.Random(0)
    for module in draw.sample(sorted(timm.list_modules()), 60):
        able = sorted(timm.list_models(module=module))
        draw.shuffle(able)
        drawn.append(f"timm/{next((name for name in able if parameters_of(name) <= most_parameters), able[0])}")
    return [*models.list_models(module=models), *sorted(drawn)]


def parameters_of(name):
    import timm
    with torch.device("meta"): return sum(p.numel() for p in timm.create_model(name).parameters())


def child(name, connection):
    torch.set_num_threads(1)
    connection.send(tried(name))


def in_a_process(name):
    "The row of a network that may need more memory or time than there is"
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(name, theirs))
    process.start()
    theirs.close()
    try:
        if ours.poll(most_seconds): return ours.recv()
        return dict(faults=dict(time=f"more than {most_seconds} s"))
    except EOFError: return dict(faults=dict(memory="its process was ended: there was not enough memory"))
    finally:
        process.kill()
        process.join()


def main(wanted):
    "Rows for what has none, or for what is wanted"
    os.environ["HF_HUB_OFFLINE"] = "1"
    table = json.loads(file.read_text()) if file.exists() else dict(names=names(), rows={})
    for name in wanted or [name for name in table["names"] if name not in table["rows"]]:
        table["rows"][name] = in_a_process(name)
        print(name, json.dumps(table["rows"][name]), flush=True)
        import timm, torchvision
        table |= dict(torch=torch.__version__, torchvision=torchvision.__version__, timm=timm.__version__,
                      processor=platform.processor() or platform.machine())
        part = file.with_suffix(".part")
        part.write_text(json.dumps(table, indent=1) + "\n")
        part.replace(file)


if __name__ == "__main__": main(sys.argv[1:])
