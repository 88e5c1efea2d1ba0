"""Adapters: every contract that a model without them keeps, and a file that PEFT loads."""
import copy
import json
import multiprocessing
import os
import pickle
import signal
import sys

import pytest
import torch
import torchvision
from safetensors import safe_open
from torch import nn

import finetune_nb
from conftest import tiny_bert
from finetune_nb import depth, evaluate, fit, freeze, saving, text, vision
from finetune_nb.adapters import biases, load_adapter, lora, merged, norms, save_adapter
from finetune_nb.data import Examples, Task
from finetune_nb.engine.steps import Steps
from finetune_nb.freezing import blocks, fingerprint, freeze_depth, unfreeze

peft = pytest.importorskip("peft")
how = dict(epochs=3, batch_size=4, progress=False)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory): return tiny_bert(tmp_path_factory.mktemp("tiny"))


def moods():
    good = [f"a {word} day" for word in ("good", "fine", "happy", "sunny")]
    bad = [f"the {word} night of it, that was {word}" for word in ("bad", "sad", "grim", "dark")]
    examples = Examples(good + bad, [0] * 4 + [1] * 4)
    return Task("mood", "text", ["good", "bad"], examples, examples, examples)


def noise():
    images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    examples = Examples(images, [0, 1] * 4)
    return Task("noise", "image", ["a", "b"], examples, examples, examples)


def reader(folder, **options): return text.classifier(folder, 2, max_length=12, **options)


def seer():
    torch.manual_seed(0)
    network = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    return vision.ImageClassifier(network, 2, vision.Preprocessing(32, 32))


makers = {"text": reader, "pooler": lambda folder: reader(folder, pooling="pooler"), "image": lambda _: seer()}


@pytest.fixture(params=makers)
def make(request, tiny): return lambda: makers[request.param](tiny)


def task_for(model): return noise() if model.inputs == "image" else moods()


def stirred(model):
    "With adapters that do something"
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name: p.normal_(std=0.1)
    return model


def answers(model):
    with torch.no_grad(): return model.eval().call(model.collate(model.samples(2)))


# What learns

@pytest.mark.parametrize("frozen", [0, 2])
def test_nothing_learns_but_adapters_and_head(make, frozen):
    model = lora(make(), rank=2)
    freeze(model, frozen)
    head = {p for p in blocks(model)[-1].parameters()}
    before = {name: t.clone() for name, t in model.named_tensors()}
    fit(model, task_for(model), **how, learning_rate=0.1)
    moved = {name for name, t in model.named_tensors() if not torch.equal(t, before[name])}
    assert any(".lora_" in name for name in moved) and any("num_batches" in name for name in before) == (
        model.inputs == "image")
    strange = {name for name in moved if ".lora_" not in name and dict(model.named_tensors())[name] not in head}
    assert not strange, f"{strange} moved"
    assert freeze_depth(model) == max(frozen, next(i for i, b in enumerate(blocks(model)) if b.learnable()))


def test_adapters_stand_in_the_blocks_that_are_not_frozen(tiny):
    model = reader(tiny)
    freeze(model, 2)
    lora(model, rank=2)
    assert freeze_depth(model) == 2 and not any("layer.0." in n for n, _ in model.named_parameters() if ".lora_" in n)
    unfreeze(model)
    assert freeze_depth(model) == 2, "there is nothing below that could learn"


def test_a_copy_learns_the_same(make):
    model = lora(make(), rank=2)
    learning = [p.requires_grad for p in model.parameters()]
    for twin in copy.deepcopy(model), pickle.loads(pickle.dumps(model)):
        freeze(twin, 0)
        assert [p.requires_grad for p in twin.parameters()] == learning


class Around(nn.Module):
    "Has a tensor of its own, and layers inside of it, as the attention of a GPT-2 has"
    def __init__(self):
        super().__init__()
        self.layer, self.dropout = nn.Linear(4, 4), nn.Dropout()
        self.register_buffer("mask", torch.ones(4))

    def forward(self, x): return self.dropout(self.layer(x) * self.mask)


def test_what_is_around_an_adapter_drops_out_as_before():
    model = lora(nn.Sequential(Around(), nn.Linear(4, 2)), rank=2).train()
    model(torch.ones(1, 4))
    assert model[0].dropout.training and not model[0].layer.base_layer.training


@pytest.mark.parametrize("only, kept", [(biases, "bias"), (norms, "LayerNorm")])
def test_only_biases_or_norms_learn(tiny, only, kept):
    model = reader(tiny)
    only(model)
    before = {name: t.clone() for name, t in model.named_tensors()}
    history = fit(model, moods(), **how)
    moved = {name for name, t in model.named_tensors() if not torch.equal(t, before[name])}
    assert len(moved) > 4 and all(kept in name or name.startswith("head") for name in moved)
    assert history.settings["freeze_depth"] == 0


# The cache, resuming, the sweep

@pytest.mark.parametrize("frozen", [1, 2])
def test_the_cache_is_exact(make, frozen):
    found = []
    for cache in (True, False):
        model = make().double()
        freeze(model, frozen)
        history = fit(lora(model, rank=2), task_for(model), **how, precision="fp32", cache=cache)
        assert ("run once" in history.prefix) == cache, history.prefix
        found.append(torch.tensor(history.train_loss))
    assert torch.allclose(*found, rtol=1e-9)


def learnt(folder, tiny, kill_at=None):
    "Each block's fingerprint afterwards"
    torch.set_num_threads(1)
    step, steps = Steps.step, []
    def watched(self):
        step(self)
        steps.append(self)
        if len(steps) == kill_at: os.kill(os.getpid(), signal.SIGKILL)
    if kill_at: Steps.step = watched # in a process of its own
    model = lora(reader(tiny), rank=2, dropout=0.1)
    freeze(model, 2)
    fit(model, moods(), **how, checkpoint=folder, every=2, resume=True)
    return [fingerprint(block) for block in blocks(model)]


def test_killed_and_resumed_bit_for_bit(tiny, tmp_path): # what is spawned, not forked, has autograd threads of its own
    child = multiprocessing.get_context("spawn").Process(target=learnt, args=(tmp_path/"killed", tiny, 4))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL and list((tmp_path/"killed").glob("step-*"))
    assert learnt(tmp_path/"killed", tiny) == learnt(tmp_path/"whole", tiny)


def test_checkpoints_hold_what_learns(tiny, tmp_path):
    fit(lora(reader(tiny), rank=2), moods(), **how, checkpoint=tmp_path/"lora")
    with safe_open(next((tmp_path/"lora").glob("step-*")), "pt") as opened: names = list(opened.keys())
    assert any(".lora_A" in name for name in names) and not any(".base_layer." in name for name in names)
    with pytest.raises(ValueError, match="belongs to another run"):
        fit(lora(reader(tiny), rank=3), moods(), **how, checkpoint=tmp_path/"lora", resume=True)


def test_a_sweep_counts_what_learns(tiny):
    def model(seed): return lora(text.classifier(tiny, 2, max_length=12, seed=seed), rank=2)
    swept = depth.sweep(model, moods(), [1, 3], seeds=2, epochs=1, progress=False)
    learnt = {row["depth"]: row["trainable_parameters"] for row in swept.rows}
    freeze(one := model(0), 1)
    assert learnt == {1: sum(p.numel() for p in one.parameters() if p.requires_grad), 3: 34}


# Files

def test_saved_with_its_adapters(make, tmp_path):
    model = stirred(lora(make(), rank=2))
    if model.inputs == "image": model.architecture = "resnet18" # which it is not, so it is not loaded below
    task = task_for(model)
    history = fit(model, task, **how | dict(epochs=1))
    saving.save(tmp_path, model, task, history, evaluate(model, task.test))
    card = (tmp_path/"README.md").read_text(encoding="utf-8")
    assert "in adapters of rank 2 beside" in card and (tmp_path/"adapter_config.json").exists()
    assert torch.allclose(answers(merged(model)), answers(model), atol=1e-5)
    if model.inputs == "image": return
    assert torch.allclose(answers(finetune_nb.load(tmp_path).model), answers(model), atol=1e-5)
    small, large = ((tmp_path/name).stat().st_size for name in ("adapter_model.safetensors", "model.safetensors"))
    assert small < large / 5


def test_peft_loads_it_with_the_head(make, tmp_path):
    model = stirred(lora(make(), rank=2))
    with torch.no_grad():
        for p in blocks(model)[-1].parameters(): p.add_(0.1)
    save_adapter(tmp_path, model)
    base, _ = make().saved_as()
    theirs, batch = peft.PeftModel.from_pretrained(base, tmp_path).eval(), model.collate(model.samples(2))
    with torch.no_grad():
        found = theirs(model.normalise(batch)) if model.inputs == "image" else theirs(**batch)
    assert torch.allclose(getattr(found, "logits", found), answers(model), atol=1e-5)
    again = load_adapter(make(), tmp_path)
    assert torch.equal(answers(again), answers(model)) and again.learning_rate == model.learning_rate
    fit(again, task_for(again), **how | dict(epochs=1))


def test_the_command(command, tiny, tmp_path):
    (tmp_path/"moods.csv").write_text("text,label\n" + "".join(
        f"{'abcde'[i % 5] * (i // 5 + 2)} {'good' if i % 2 else 'bad'} day,{i % 2}\n" for i in range(40)))
    words = [tmp_path/"moods.csv", "--backbone", tiny, "--lora", 2, "--freeze-depth", 2, "--epochs", 1]
    out = ["--out", tmp_path/"out", "--json"]
    code, said, err = command("text", *words, *out)
    assert not code, err
    result = json.loads(said.splitlines()[-1])
    assert result["adapters"]["rank"] == 2 and result["trainable_parameters"] < result["total_parameters"] / 10
    assert (tmp_path/"out"/"adapter_model.safetensors").exists()


@pytest.mark.parametrize("call, sentence", [
    (lambda model, folder: lora(lora(model)), "has adapters already: merge them first"),
    (lambda model, folder: lora(model, depth=9), "depth must be at most 3, got 9"),
    (lambda model, folder: lora(model, depth=3), "No block from number 3 up to the head has a linear layer"),
    (lambda model, folder: lora(model, rank=0), "rank must be at least 1"),
    (lambda model, folder: save_adapter(folder, model), "has no adapters: give what lora"),
    (lambda model, folder: load_adapter(model, folder), "holds no adapters that can be read"),
    (lambda model, folder: load_adapter(seer(), save_adapter(folder, lora(model))), "do not fit this ImageClassifier"),
    (lambda model, folder: load_adapter(reader_of(3, model), save_adapter(folder, lora(model))), "of another shape")])
def test_refused_in_a_sentence(tiny, tmp_path, call, sentence):
    with pytest.raises(ValueError, match=sentence): call(reader(tiny), tmp_path)


def reader_of(classes, model): return text.TextClassifier(copy.deepcopy(model.backbone), model.tokenizer, classes)


def test_without_peft_it_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'finetune-nb\[adapters\]'"): lora(reader(tiny))
