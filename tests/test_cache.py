"""The cache contract, on every family of networks: exact where it says so, whatever the rest of a network reads of
what is frozen, refused where it cannot be, and safe on a full disk and under a `kill -9`."""
import multiprocessing
import os
import shutil
import signal
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.deeplabv3 import ASPP, DeepLabV3
from torchvision.ops import FeaturePyramidNetwork
from transformers import (BertConfig, BertForSequenceClassification, BertModel, DistilBertConfig, DistilBertModel,
                          ElectraConfig, ElectraModel, GPT2Config, GPT2Model, RobertaConfig, RobertaModel)

from finetune_nb import blocks, evaluate, fit, freeze, text, vision
from finetune_nb.cache import Cut
from finetune_nb.data import Examples, Task
from finetune_nb.engine import fast, judging, prefix
from finetune_nb.engine.batches import Batches
from finetune_nb.engine.labels import Classification
from finetune_nb.engine.models import as_model, tensors_in
from finetune_nb.engine.numbers import Regression
from finetune_nb.engine.objective import Evaluation, Objective
from finetune_nb.engine.prefix import run_prefix
from finetune_nb.engine.several import Several
from finetune_nb.engine.states import digest
from finetune_nb.engine.twins import CannotCut, alike
from finetune_nb.freezing import Block, fingerprint
from finetune_nb.vision import Preprocessing

cpu = torch.device("cpu")
small = dict(vocab_size=30522, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
             intermediate_size=32) # with dropout, as they come
families = {
    "bert": lambda: BertModel(BertConfig(**small), add_pooling_layer=False),
    "roberta": lambda: RobertaModel(RobertaConfig(**small, pad_token_id=0), add_pooling_layer=False),
    "electra": lambda: ElectraModel(ElectraConfig(**small, embedding_size=8)),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(vocab_size=30522, dim=16, n_layers=2, n_heads=2, hidden_dim=32)),
    "gpt2": lambda: GPT2Model(GPT2Config(vocab_size=30522, n_embd=16, n_layer=2, n_head=2)),
}


def same(examples, asked, kind): return Task("small", kind, asked, examples, examples, examples)
def seeded(seed=0): return torch.Generator().manual_seed(seed)
def values(states): return [rows.values for kept in states.places for rows in kept.rows]
def starts(states): return [rows.starts for kept in states.places for rows in kept.rows]
def paths(cut): return [source.place[0] for source in cut.sources]


@pytest.fixture(scope="module")
def tokenizer(): return text.classifier("minilm", 2).tokenizer


@pytest.fixture(scope="module")
def mood():
    good = [f"a {word} day" for word in ("good", "fine", "happy", "sunny")]
    bad = [f"the {word} night of it, that was {word}" for word in ("bad", "sad", "grim", "dark")]
    return same(Examples(good + bad, [0] * 4 + [1] * 4), ["good", "bad"], "text")


@pytest.fixture(scope="module")
def noise():
    images = torch.randint(256, (10, 3, 40, 40), dtype=torch.uint8, generator=seeded())
    return same(Examples(images, [0, 1] * 5), ["a", "b"], "image")


# Networks

class Narrow(torchvision.models.resnet.Bottleneck): expansion = 1


def restless(network):
    "Norms that have seen something"
    with torch.no_grad():
        for name, tensor in network.named_buffers():
            if name.endswith("mean"): tensor.uniform_(-0.5, 0.5)
            if name.endswith("var"): tensor.uniform_(0.5, 1.5)
    return network


def narrow(**more): return torchvision.models.ResNet(Narrow, [1, 1, 1, 1], width_per_group=8, **more)


def residual(seed=0, wanted=2, **more):
    "A ResNet of torchvision's, but small"
    torch.manual_seed(seed)
    return vision.ImageClassifier(restless(narrow()), wanted, Preprocessing(32, 32), **more)


def written(family, tokenizer):
    torch.manual_seed(0)
    return text.TextClassifier(families[family](), tokenizer, 2)


class Floats(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("like", torch.empty(0))
    def forward(self, images): return images.to(self.like.dtype) / 255


class Pyramid(nn.Module):
    "A ResNet whose head reads four of its maps"
    def __init__(self):
        super().__init__()
        self.floats, self.body = Floats(), narrow()
        self.body.fc, channels = nn.Identity(), [self.body.layer1[-1].conv3.out_channels]
        channels += [getattr(self.body, f"layer{i}")[-1].conv3.out_channels for i in (2, 3, 4)]
        self.pyramid, self.head = FeaturePyramidNetwork(channels, 6), nn.Linear(24, 2)

    def blocks(self):
        body = self.body
        stem = Block("stem", [self.floats, body.conv1, body.bn1, body.relu, body.maxpool])
        layers = [Block(name, [getattr(body, name)]) for name in ("layer1", "layer2", "layer3", "layer4")]
        return [stem, *layers, Block("head", [self.pyramid, self.head])]

    def forward(self, images):
        body, maps = self.body, {}
        x = body.maxpool(body.relu(body.bn1(body.conv1(self.floats(images)))))
        for name in ("layer1", "layer2", "layer3", "layer4"): x = maps[name] = getattr(body, name)(x)
        return self.head(torch.cat([x.mean((2, 3)) for x in self.pyramid(maps).values()], 1))


class Pixels(Objective):
    "Which of two classes is each pixel? The network gives a dictionary"
    def losses(self, outputs, targets):
        main, beside = (F.cross_entropy(outputs[name], targets, reduction="none") for name in ("out", "aux"))
        return (main + 0.5 * beside).mean((1, 2))
    def fits(self, outputs): return "" if isinstance(outputs, dict) else "gives no dictionary"
    def answers(self, outputs, batch): return outputs["out"].argmax(1).cpu().numpy()
    def judge(self, answers, targets, losses):
        each = (answers == np.asarray(targets)).mean((1, 2))
        return Evaluation(answers, targets, losses, each, dict(accuracy=float(each.mean())))


class DeepLab(DeepLabV3):
    "As torchvision builds it, but small"
    whole = False # is the backbone, which gives a dictionary, one block?
    def __init__(self):
        body = narrow(replace_stride_with_dilation=[False, True, True])
        wide = [getattr(body, name)[-1].conv3.out_channels for name in ("layer3", "layer4")]
        head = nn.Sequential(ASPP(wide[1], [1, 2], 8), nn.Conv2d(8, 2, 1))
        body = IntermediateLayerGetter(body, {"layer3": "aux", "layer4": "out"})
        super().__init__(body, head, nn.Conv2d(wide[0], 2, 1))
        self.floats = Floats()

    def blocks(self):
        head = Block("head", [self.classifier, self.aux_classifier])
        if self.whole: return [Block("backbone", [self.floats, self.backbone]), head]
        *stem, one, two, three, four = self.backbone.values()
        layers = enumerate((one, two, three, four), 1)
        return [Block("stem", [self.floats, *stem]), *[Block(f"layer{i}", [layer]) for i, layer in layers], head]

    def forward(self, images): return super().forward(self.floats(images))


class WholeDeepLab(DeepLab): whole = True


def transformer():
    "A vision transformer of torchvision's, whose class token belongs to no module"
    network = torchvision.models.VisionTransformer(16, 4, num_layers=3, num_heads=2, hidden_dim=8, mlp_dim=16,
                                                   dropout=0.1)
    nn.init.normal_(network.class_token)
    return vision.ImageClassifier(network, 2, Preprocessing(16, 16))


both = Several(dict(side=Classification(["a", "b"]), much=Regression()), dict(side=3))


def seen(count=10, size=32):
    "Images of which some are brighter, and on one side"
    images = torch.randint(200, (count, 3, size, size), dtype=torch.uint8, generator=seeded())
    for i, image in enumerate(images): image[:, :, :size // (1 + i % 2)] += 5 * i
    return images


def marked(): # with a class for each pixel
    images = seen()
    return same(Examples(images, (images.float().mean(1) > 120).long()), Pixels(), "image")


def questioned():
    targets = dict(side=[0, 1] * 5, much=[float(i % 4) for i in range(10)])
    return same(Examples(seen(), targets), both, "image")


others = { # what the suffix reads lies in several places, or is no tensor
    "pyramid": (lambda: restless(Pyramid()), lambda: same(Examples(seen(), [0, 1] * 5), ["a", "b"], "image")),
    "transformer": (transformer, lambda: same(Examples(seen(size=16), [0, 1] * 5), ["a", "b"], "image")),
    "deeplab": (lambda: restless(DeepLab()), marked),
    "deeplab, whole backbone": (lambda: restless(WholeDeepLab()), marked),
    "two heads": (lambda: residual(wanted=both), questioned),
}


def made(name):
    torch.manual_seed(0)
    return others[name][0]()


def losses(model, task, depth, double=False, steps=20, precision="fp32", **how):
    "One batch an epoch, so that every step's loss is told"
    freeze(model.double() if double else model, depth)
    return fit(model, task, epochs=steps, batch_size=len(task.train), progress=False, precision=precision, **how)


# Exact

@pytest.mark.parametrize("double", [True, False], ids=["float64", "float32"])
@pytest.mark.parametrize("name", ["resnet", *others, *families])
def test_losses_are_those_of_the_uncached_run(name, double, tokenizer, mood, noise):
    if name in others: make, task = lambda: made(name), others[name][1]()
    elif name == "resnet": make, task = residual, noise
    else: make, task = lambda: written(name, tokenizer), mood
    last = len(blocks(make())) - 1
    for depth in {1, last} if name in others else range(1, last + 1): # each depth of these is seen to below
        ways = dict(cache=False), dict()
        whole, kept = (losses(make(), task, depth, double, steps=50 if double else 20, **how) for how in ways)
        assert whole.prefix == "" and "run once" in kept.prefix, f"depth {depth}: {kept.prefix}"
        tolerance = 1e-9 if double else 1e-4
        np.testing.assert_allclose(kept.train_loss, whole.train_loss, rtol=tolerance, err_msg=f"depth {depth}")
        assert kept.validation_score == pytest.approx(whole.validation_score, rel=tolerance)


@pytest.mark.parametrize("name", others)
def test_the_halves_are_the_whole_at_every_depth(name):
    "Outputs, and the gradients of all that learns, on a batch of another size than the cut was tried on"
    task = others[name][1]()
    for depth in range(1, len(blocks(made(name)))):
        model = as_model(made(name).double())
        freeze(model, depth)
        objective = task.objective.fitted(task.train.targets)
        encoded = model.encode(task.train.inputs)
        cut, batch = Cut(model, depth, encoded[:2]), model.collate(encoded[2:9])
        with torch.no_grad(): states = cut.states(batch)
        inputs, part = batch if cut.needs_inputs else None, task.train.subset(range(2, 9)).targets
        found = []
        for train in False, True:
            for network, run in (model, lambda: model.call(batch)), (cut.suffix, lambda: cut.suffix(states, inputs)):
                network.train(train)
                model.zero_grad()
                torch.manual_seed(1)
                outputs = run()
                objective.loss(outputs, objective.collate(part)).backward()
                learnt = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
                found.append(({name: out.detach() for name, out in outputs.items()} if isinstance(outputs, dict)
                              else outputs.detach(), learnt))
        for whole, halves in (found[:2], found[2:]):
            assert alike(halves[0], whole[0], 1e-12) and halves[1].keys() == whole[1].keys() and whole[1], depth
            assert alike(halves[1], whole[1], 1e-9), depth


def test_the_places_that_are_read_are_kept_and_no_others():
    def cuts(name):
        model = as_model(made(name))
        few = model.encode(others[name][1]().train.inputs[:2])
        return [Cut(model, depth, few) for depth in range(1, len(blocks(model)))]
    pyramid = [[path.rpartition(".")[2] for path in paths(cut)] for cut in cuts("pyramid")]
    layers = ["layer1", "layer2", "layer3", "layer4"]
    assert pyramid == [["maxpool"], layers[:1], layers[:2], layers[:3], layers]
    assert [len(cut.sources) for cut in cuts("transformer")] == [1] * 4
    assert [len(cut.sources) for cut in cuts("two heads")] == [1] * 5
    deep = cuts("deeplab")
    assert [len(cut.sources) for cut in deep] == [1, 1, 1, 1, 2]
    (whole,) = cuts("deeplab, whole backbone")
    (tree,) = whole.states(torch.zeros(3, 3, 32, 32))
    assert paths(whole) == ["network.backbone"] and list(tree) == ["aux", "out"]


@pytest.mark.parametrize("name", others)
@pytest.mark.parametrize("how", ["in memory", "in a temporary file", "in files"])
def test_states_of_several_places_are_kept_wherever_they_go(name, how, tmp_path):
    "And what is rounded is a little rounded"
    task, model = others[name][1](), as_model(made(name))
    depth = len(blocks(model)) - 1
    cut = Cut(model, depth, model.encode(task.train.inputs[:2]))
    where = {"in files": dict(folder=tmp_path), "in a temporary file": dict(memory_budget=0)}.get(how, {})
    at = torch.tensor([7, 2, 5])
    batch = model.collate(model.encode(task.train.subset(at).inputs))
    model.eval()
    with torch.no_grad(): expected = cut.states(batch)
    for precision, tolerance in ("fp32", 1e-5), ("auto", 0.05):
        (states,) = run_prefix(cut, task.train.inputs, precision=precision, progress=False, **where)
        assert alike(states.of(at), expected, tolerance), precision
        assert how == "in files" or states.where == how
        assert len(states.places) == len(cut.sources)
        if how != "in files": continue
        (again,) = run_prefix(cut, task.train.inputs, precision=precision, progress=False, **where)
        assert again.where.startswith("found in") and alike(again.of(at), states.of(at), 0)
        assert len(list(tmp_path.glob("*.npy"))) == len(tensors_in(expected)) * (1 + (precision == "auto"))


@pytest.mark.parametrize("name", others)
def test_frozen_blocks_of_any_network_stay_as_they_are(name):
    "A class token is frozen like anything else"
    task, last = others[name][1](), len(blocks(made(name))) - 1
    for depth in {1, last}:
        model = made(name)
        freeze(model, depth)
        before = [fingerprint(block) for block in blocks(model)]
        fit(model, task, epochs=3, batch_size=4, progress=False)
        moved = [fingerprint(block) != old for block, old in zip(blocks(model), before)]
        assert moved == [i >= depth for i in range(last + 1)]


@pytest.mark.parametrize("pooling", ["mean", "pooler"])
def test_sentences_of_many_lengths(pooling, mood, tokenizer, monkeypatch):
    "Each in a batch of its own when the prefix runs, all in one when they are learnt from"
    monkeypatch.setattr(prefix, "in_batches", lambda lengths, most: [[i] for i in range(len(lengths))])
    def make():
        torch.manual_seed(0)
        return text.TextClassifier(BertModel(BertConfig(**small)), tokenizer, 2, pooling=pooling)
    for depth in (1, 2, 3):
        whole, cached = (losses(make(), mood, depth, **how) for how in (dict(cache=False), dict()))
        assert "run once" in cached.prefix
        np.testing.assert_allclose(cached.train_loss, whole.train_loss, rtol=1e-4, err_msg=f"depth {depth}")


def test_texts_to_learn_from_have_few_lengths(mood, tokenizer):
    model = written("bert", tokenizer)
    learning, judging = (Batches(model, mood.train, mood.objective, 3, seed=seed) for seed in (0, None))
    widths = {True: [], False: []}
    for batches in (learning, judging):
        for batch in batches.epoch(1):
            ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
            real = [row[kept == 1].tolist() for row, kept in zip(ids, mask)]
            assert real == [batches.encoded[i].tolist() for i in batch.positions]
            assert (ids[mask == 0] == tokenizer.pad_token_id).all()
            widths[batches is learning].append((ids.shape[1], int(mask.sum(1).max())))
    most = max(learning.lengths)
    assert all(width == min(-(-longest // 4) * 4, most) for width, longest in widths[True])
    assert any(width > longest for width, longest in widths[True])
    assert all(width == longest for width, longest in widths[False])


@pytest.mark.parametrize("as_tokens", [False, True], ids=["vectors", "a tensor of tokens"])
def test_texts_that_a_model_prepares_in_its_own_way(as_tokens, mood):
    class Own(nn.Sequential):
        def encode(self, texts):
            if as_tokens: return [torch.tensor([*x.encode()]) for x in texts]
            return [torch.tensor([float(x.count(letter)) for letter in "abcde"]) for x in texts]
        def collate(self, encoded):
            if not as_tokens: return torch.stack(encoded)
            return F.one_hot(nn.utils.rnn.pad_sequence(encoded, batch_first=True), 128).float().mean(1)
        def blocks(self): return [Block("lower", [self[0]]), Block("head", [self[1]])]
    for depth in (0, 1):
        model = Own(nn.Linear(128 if as_tokens else 5, 8), nn.Linear(8, 2))
        freeze(model, depth)
        assert fit(model, mood, epochs=2, batch_size=3, progress=False).stopped == "all epochs done"


def test_in_double_precision_nothing_is_rounded(noise):
    ways = "fp32", "auto"
    exact, auto = (losses(residual(), noise, 4, double=True, precision=way).train_loss for way in ways)
    assert exact == auto


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_cached_blocks_do_not_change(depth, noise):
    model = residual()
    freeze(model, depth)
    before = [fingerprint(block) for block in blocks(model)]
    fit(model, noise, epochs=3, progress=False)
    assert [a == b for a, b in zip(before, map(fingerprint, blocks(model)))] == [i < depth for i in range(6)]


def test_unfreezing_moves_the_cut(noise):
    def run(**how): return losses(residual(), noise, 5, steps=9, unfreeze_at={4: 4, 7: 2, 9: 0}, **how)
    whole, cached = run(cache=False), run()
    np.testing.assert_allclose(cached.train_loss, whole.train_loss, rtol=1e-4)
    assert cached.prefix.count("run once") == 3


def test_a_model_of_transformers_with_its_own_head(tokenizer, mood):
    for depth in (1, 2, 3):
        def make():
            torch.manual_seed(1)
            model, ours = BertForSequenceClassification(BertConfig(**small)), written("bert", tokenizer)
            model.encode, model.collate = ours.encode, ours.collate
            return model
        runs = [losses(make(), mood, depth, **how) for how in (dict(cache=False), dict())]
        assert "run once" in runs[1].prefix
        np.testing.assert_allclose(runs[1].train_loss, runs[0].train_loss, rtol=1e-4)


class Shortcut(nn.Sequential):
    "What comes out of the first block is used again after the third"
    def forward(self, x): return self[3](self[2](self[1](self[0](x))) + self[0](x))


def shortcut():
    torch.manual_seed(0)
    return Shortcut(*(nn.Linear(4, 4) for _ in range(3)), nn.Linear(4, 2))


def test_a_shortcut_past_the_cut_is_kept_too():
    points = torch.randn(12, 4, generator=seeded())
    task = same(Examples(points, [0, 1] * 6), ["a", "b"], "points")
    few = list(points[:2])
    assert [paths(Cut(shortcut(), depth, few)) for depth in (1, 2, 3)] == [
        ["network.0"], ["network.0", "network.1"], ["network.3"]], "the head alone reads their sum"
    for depth in (1, 2, 3):
        whole, kept = (losses(shortcut(), task, depth, **how) for how in (dict(cache=False), dict()))
        assert "run once" in kept.prefix and kept.train_loss == pytest.approx(whole.train_loss, rel=1e-4)


class Remembers(nn.Linear):
    "A layer that keeps what it gave"
    def forward(self, x):
        self.given = super().forward(x)
        return self.given


class Looks(nn.Sequential):
    "A network that looks at what a layer of it keeps"
    def forward(self, x): return self[1](self[0](x)) * self[0].given.mean()


class Weighs(nn.Sequential):
    "A network that takes a layer twice, and looks at its weights"
    def forward(self, x): return self[2](self[1](self[0](self[0](x)))) * self[0].weight.mean()


def test_frozen_layers_are_asked_for_weights_and_called_twice():
    task = same(Examples(torch.randn(12, 4), [0, 1] * 6), ["a", "b"], "points")
    def make():
        torch.manual_seed(0)
        return Weighs(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    assert paths(Cut(make(), 2, list(task.train.inputs[:2]))) == ["network.1"]
    whole, kept = (losses(make(), task, 2, **how) for how in (dict(cache=False), dict()))
    assert "run once" in kept.prefix and kept.train_loss == pytest.approx(whole.train_loss, rel=1e-4)


def test_dropout_that_is_no_module_is_not_cut_away():
    task = same(Examples(torch.randn(12, 4), [0, 1] * 6), ["a", "b"], "points")
    class Drops(nn.Sequential):
        def forward(self, x): return self[1](F.dropout(self[0](x), 0.5, self.training))
    def make():
        torch.manual_seed(0)
        return Drops(nn.Linear(4, 8), nn.Linear(8, 2))
    whole, kept = (losses(make(), task, 1, **how) for how in (dict(cache=False), dict()))
    assert "run once" in kept.prefix and kept.train_loss == pytest.approx(whole.train_loss, rel=1e-4)


def test_what_cannot_be_cut_trains_all_the_same():
    torch.manual_seed(0)
    task = same(Examples(torch.randn(12, 4), [0, 1] * 6), ["a", "b"], "points")
    freeze(model := Looks(Remembers(4, 4), nn.Linear(4, 2)), 1)
    history = fit(model, task, epochs=2, progress=False)
    assert len(history.epochs) == 2 and "cannot be cut at depth 1" in history.prefix
    class Joined(nn.Linear):
        def forward(self, x): return super().forward(x).sum(0)
    class Sums(nn.Sequential):
        def forward(self, x): return self[2](self[1](self[0](x).expand(len(x), -1)))
    points = torch.randn(2, 4)
    sums = Sums(Joined(4, 3), nn.Linear(3, 3), nn.Linear(3, 2)) # what it gives depends on who is in the batch
    for network, why in (model, "not all that the rest of it looks at"), (sums, r"shape \(3,\).* no row for each"):
        with pytest.raises(CannotCut, match=f"cannot be cut at depth 1: .*{why}"): Cut(network, 1, points)
    with pytest.raises(ValueError, match="depth must be between 1 and 1, got 2"): Cut(model, 2, points)


def test_a_head_that_answers_nothing_yet_hides_no_wrong_cut():
    "All scores are zero at first: what the head gets to see is compared as well"
    model, few = shortcut(), torch.randn(5, 4)
    nn.init.zeros_(model[3].weight), nn.init.zeros_(model[3].bias)
    assert len(Cut(model, 2, few).sources) == 2
    class Beside(nn.Sequential):
        def forward(self, x): return self[2](self[1](self[0](x)) + x)
    model = Beside(Remembers(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    nn.init.zeros_(model[2].weight), nn.init.zeros_(model[2].bias)
    assert Cut(model, 1, few).needs_inputs
    class Hidden(nn.Sequential):
        def forward(self, x): return self[2](self[1](self[0](x)) + self[0].given.sum())
    model = Hidden(*model)
    with pytest.raises(CannotCut): Cut(model, 1, few)


# Rounded

def test_auto_rounds_a_little_and_halves_the_memory(noise):
    model, images = residual(), noise.train.inputs
    cut = Cut(model, 4, model.encode(images[:2]))
    (exact,), (auto,) = (run_prefix(cut, images, precision=way, progress=False) for way in ("fp32", "auto"))
    at = torch.arange(len(images))
    (ours,), (theirs,) = auto.of(at), exact.of(at)
    assert auto.bytes * 2 == exact.bytes and values(auto)[0].dtype == torch.float16 and ours.dtype == torch.float32
    rounding = 3e-2 if fast.has_bf16(cpu) else 2e-3 # of computing in bfloat16, or of keeping in half precision alone
    assert (ours - theirs).abs().max() < rounding * theirs.abs().max() and not torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="precision must be .*, got 'half'"): run_prefix(cut, images, precision="half")


def test_auto_multiplies_in_bfloat16_and_keeps_the_weights_whole(noise):
    model, seen = residual(), []
    def note(module, inputs, output): seen.append((output.dtype, torch.is_grad_enabled()))
    model.backbone.layer4.register_forward_hook(note)
    quick = torch.bfloat16 if fast.has_bf16(cpu) else torch.float32
    freeze(model, 3)
    for precision, dtype in (("fp32", torch.float32), ("auto", quick)):
        seen.clear()
        fit(model, noise, epochs=2, batch_size=5, precision=precision, progress=False)
        assert {kind for kind, learning in seen if learning} == {dtype}
        assert all(p.dtype == torch.float32 for p in model.parameters())
        seen.clear()
        evaluate(model, noise.test, precision=precision)
        assert seen == [(dtype, False)]


def test_a_head_that_learns_alone_gains_nothing_by_bfloat16_and_does_without(noise):
    model, seen = residual(), []
    model.backbone.fc.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    freeze(model, 5)
    fit(model, noise, epochs=1, progress=False)
    assert set(seen) == {torch.float32}


def test_many_are_evaluated_without_norms(monkeypatch):
    monkeypatch.setattr(fast, "has_bf16", lambda device: False)
    monkeypatch.setattr(judging, "PAYS", 1)
    model, seen = residual(), []
    model.backbone.bn1.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=seeded())
    examples = Examples(images, [0, 1] * 20)
    auto = evaluate(model, examples)
    assert seen == [1], "one example, to see that nothing has changed"
    exact = evaluate(model, examples, precision="fp32")
    assert np.allclose(auto.probabilities, exact.probabilities, atol=1e-5)
    assert model.training and model.backbone.bn1.training, "the model is in the mode in which it was"


def test_folding_leaves_no_norm_and_the_same_states(noise):
    model = residual().eval()
    images = model.collate(model.encode(noise.train.inputs))
    cut = Cut(model, 4, list(images[:2]))
    still = [module for block in cut.blocks for module in block.modules]
    twin = fast.folded(model, still)
    def norms(network): return sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    frozen = sum(norms(m) for block in blocks(model)[:4] for m in block.modules)
    assert norms(model) - norms(twin) == frozen > 0
    with torch.no_grad(): assert torch.allclose(cut.states(images, twin)[0], cut.states(images)[0], atol=1e-4)
    model.backbone.layer1[0].bn1.track_running_stats = False # such a norm uses the batch's own statistics
    assert norms(fast.folded(model, still)) == norms(twin) + 1


def test_fast_dropout_hides_its_share_and_the_suffix_shares_what_learns(mood, tokenizer):
    model = written("bert", tokenizer)
    suffix = Cut(model, 2, model.encode(mood.train.inputs[:2])).suffix
    found = fast.fast_learner(suffix)
    def plain(network): return any(type(module) is nn.Dropout for module in network.modules())
    assert plain(suffix) and not plain(found)
    assert [id(p) for p in found.parameters()] == [id(p) for p in suffix.parameters()]
    torch.manual_seed(0)
    for share, shape in ((0.1, (1000, 1001)), (0.5, (333, 3333))): # no multiples of four
        dropout, x = fast.fast_learner(nn.Sequential(nn.Linear(1, 1), nn.Dropout(share)))[1], torch.ones(shape)
        y = dropout(x.requires_grad_())
        y.sum().backward()
        assert torch.equal(x.grad, y.detach()), "what is hidden learns nothing"
        assert abs((y == 0).float().mean() - share) < 0.002
        assert torch.allclose(y[y != 0], torch.tensor(1 / (1 - share))), "the mean stays"
        assert torch.equal(dropout.eval()(x), x)
        assert abs((fast.dropped(x, share) == 0).float().mean() - share) < 0.002


@pytest.mark.parametrize("shape, how", [
    ((512, 2, 2), dict(kernel_size=3, padding=1)), ((256, 4, 4), dict(kernel_size=3, padding=1, stride=2)),
    ((128, 4, 4), dict(kernel_size=1, stride=2)), ((128, 7, 7), dict(kernel_size=3, padding=1)),
    ((128, 3, 5), dict(kernel_size=(2, 4), padding=(0, 1), stride=(2, 3), bias=True))])
def test_a_convolution_of_a_tiny_map_is_a_product_of_matrices(shape, how):
    torch.manual_seed(0)
    plain = nn.Conv2d(shape[0], 96, **{"bias": False} | how).to(memory_format=torch.channels_last)
    quick, x = fast.fast_learner(nn.Sequential(plain))[0], torch.randn(5, *shape)
    assert type(quick) is fast._Convolution and quick.weight is plain.weight and type(plain) is nn.Conv2d
    (ours, theirs), weights = [layer(x.requires_grad_()) for layer in (quick, plain)], list(plain.parameters())
    assert ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-5)
    there = torch.randn_like(theirs)
    for a, b in zip(*(torch.autograd.grad(y, [x, *weights], there) for y in (ours, theirs))):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", [dict(groups=2), dict(dilation=2), dict(padding="same"),
                                 dict(padding_mode="circular"), dict(in_channels=64)])
def test_other_convolutions_stay_as_they_are(how):
    layer = nn.Conv2d(**dict(in_channels=128, out_channels=8, kernel_size=3, padding=1) | how)
    assert fast.fast_learner(nn.Sequential(layer))[0] is layer


needs_bf16 = pytest.mark.skipif(not fast.has_bf16(cpu), reason="this processor does not multiply in bfloat16")


@needs_bf16
@pytest.mark.parametrize("kind", ["image", "text"])
def test_packing_leaves_what_learns_and_the_same_states(kind, noise, mood, tokenizer):
    if kind == "image": model, task, depth = residual(), noise, 4
    else: model, task, depth = written("bert", tokenizer), mood, 2
    freeze(model.eval(), depth) # which puts a hook of its own on every layer
    encoded = model.encode(task.train.inputs[:6])
    batch, cut = model.collate(encoded), Cut(model, depth, encoded)
    learning = {m for block in blocks(model)[depth:] for part in block.modules for m in part.modules()}
    twin = fast.packed(model, learning)
    plain = [module for module in twin.modules() if type(module) in (nn.Linear, nn.Conv2d)]
    assert set(plain) <= learning and any(isinstance(module, fast._Packed) for module in twin.modules())
    if kind == "text":
        after = twin.backbone.encoder.layer[0].intermediate.intermediate_act_fn
        assert isinstance(after, nn.Identity), "GELU is part of the layer before it"
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        packed, unpacked = (cut.states(batch, network)[0].float() for network in (twin, model))
    assert torch.allclose(packed, unpacked, rtol=0.03, atol=0.03 * unpacked.abs().max().item())


@needs_bf16
def test_a_model_that_looks_into_its_weights_is_not_packed():
    model, points = Looks(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(3, 4)
    def quick(network): return fast.fast_twin(network, [network], lambda network: [network(points)])
    with torch.no_grad():
        assert quick(model) is model
        ordinary = nn.Sequential(*model)
        assert isinstance(quick(ordinary)[0], fast._Packed)
        ordinary[0].register_forward_hook(lambda module, inputs, output: output * 1.001) # too little to be seen
        assert quick(ordinary)[0] is ordinary[0]


@needs_bf16
@pytest.mark.parametrize("family", families)
def test_every_family_is_packed(family, tokenizer, mood):
    "Also where a GELU is listed after a layer that it does not follow"
    model = written(family, tokenizer).eval()
    batch = model.collate(model.encode(mood.train.inputs))
    with torch.no_grad(): twin = fast.fast_twin(model, [model], lambda network: [network(**batch)])
    assert not any(type(module) is nn.Linear for module in twin.modules())


@needs_bf16
@pytest.mark.parametrize("name", others)
def test_networks_that_are_cut_in_several_places_are_packed_too(name):
    model = as_model(made(name)).eval()
    task = others[name][1]()
    encoded = model.encode(task.train.inputs[:4])
    batch, depth = model.collate(encoded), len(blocks(model)) - 1
    cut = Cut(model, depth, encoded[:2])
    still = [module for block in cut.blocks for module in block.modules]
    with torch.no_grad():
        twin = fast.fast_twin(model, still, lambda network: cut.states(batch, network))
        with torch.autocast("cpu", torch.bfloat16): ours = cut.states(batch, twin)
        assert alike(ours, cut.states(batch), 0.05)
    assert any(isinstance(module, fast._Packed) for module in twin.modules())


def attention(T, S, mask, dtype=torch.float32):
    torch.manual_seed(0)
    shape = dict(none=None, real=(3, 1, 1, S), each=(3, 1, T, S), causal=None, added=(3, 1, T, S))[mask]
    attn_mask = None if shape is None else torch.rand(shape) < 0.7
    if attn_mask is not None: attn_mask[..., 0] = True # each query has a key
    if mask == "added": attn_mask = torch.zeros(shape).masked_fill(~attn_mask, -torch.inf)
    sizes = T, S, S
    query, key, value = (torch.randn(3, n, 2, 8, dtype=dtype).transpose(1, 2).requires_grad_() for n in sizes)
    return [query, key, value], dict(attn_mask=attn_mask, is_causal=mask == "causal")


@pytest.mark.parametrize("mask", ["none", "real", "each", "causal", "added"])
@pytest.mark.parametrize("T, S", [(1, 1), (15, 15), (16, 16), (7, 33), (40, 128), (20, 129)])
def test_attention_of_short_texts_is_attention(T, S, mask):
    inputs, how = attention(T, S, mask)
    ours, theirs = fast.attention(*inputs, **how), F.scaled_dot_product_attention(*inputs, **how)
    assert torch.allclose(ours, theirs, atol=1e-5)
    there = torch.randn_like(theirs)
    for a, b in zip(*(torch.autograd.grad(y, inputs, there) for y in (ours, theirs))):
        assert torch.allclose(a, b, atol=1e-5)


def test_attention_hides_as_much_as_it_should():
    inputs, _ = attention(32, 32, "none")
    inputs[2] = torch.ones(3, 2, 32, 8)
    assert abs(fast.attention(*inputs, dropout_p=0.25).mean() - 1) < 0.05, "what is left is made larger"
    (query, key, _), value = inputs, torch.eye(32).expand(3, 2, 32, 32) # shows the shares
    shares = fast.attention(query, key, value, dropout_p=0.25)
    assert abs((shares == 0).float().mean() - 0.25) < 0.03


def test_attention_without_any_key_is_a_number():
    inputs, _ = attention(4, 20, "none")
    assert fast.attention(*inputs, attn_mask=torch.zeros(3, 1, 4, 20, dtype=torch.bool)).isfinite().all()


@pytest.mark.parametrize("family", families)
def test_attention_is_ours_within_the_context_only(family, tokenizer, mood, monkeypatch):
    model, calls, ours = written(family, tokenizer).eval(), [], fast.attention
    def counted(*inputs, **how):
        calls.append(how)
        return ours(*inputs, **how)
    monkeypatch.setattr(fast, "attention", counted)
    batch, context = model.collate(model.encode(mood.train.inputs)), fast.autocast(model)
    with torch.no_grad():
        before = model(**batch)
        for _ in range(2): # the same context again
            with context: assert torch.allclose(model(**batch).float(), before, atol=0.05)
        assert len(calls) == 4, "two layers, twice"
        assert torch.equal(model(**batch), before) and len(calls) == 4
    for other in (fast.autocast(model, "fp32"), fast.autocast(residual())):
        assert not isinstance(other, fast._ShortAttention)


def test_numbers_too_large_for_half_precision_are_kept_whole():
    network = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
    nn.init.constant_(network[0].weight, 1e6)
    points = torch.ones(70, 4)
    points[:69] *= 1e-4 # the last one alone is too large
    (states,) = run_prefix(Cut(network, 1, points[:2]), points, progress=False)
    assert values(states)[0].dtype == torch.float32 and states.of(torch.tensor([69]))[0].isfinite().all()


# Where it is kept

def test_past_the_budget_states_go_to_a_file_with_the_same_losses(noise, mood, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for make, task, depth in ((residual, noise, 3), (lambda: written("bert", tokenizer), mood, 2)):
        memory, file = (losses(make(), task, depth, memory_budget=budget) for budget in (None, 0))
        assert "in memory" in memory.prefix and "in a temporary file" in file.prefix
        assert memory.train_loss == file.train_loss
    assert os.name == "nt" or not list(tmp_path.iterdir()), "a file without a name is gone with the process"


@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_named_cache_is_used_again_only_if_nothing_has_changed(kind, tmp_path, noise, mood, tokenizer):
    folder = tmp_path/"states"
    def run(change=lambda model: None, inputs=None, **how):
        task = noise if kind == "image" else mood
        if inputs is not None: task = same(Examples(inputs, task.train.labels), task.classes, kind)
        model = residual() if kind == "image" else written("bert", tokenizer)
        with torch.no_grad(): change(model)
        freeze(model, 2)
        before = {f.name for f in folder.glob("*")}
        history = fit(model, task, epochs=2, cache=folder, progress=False, **how)
        new = {f.name for f in folder.glob("*")} - before
        assert ("found" in history.prefix.split(" and ")[0]) == (not new), history.prefix
        return len(new), history.train_loss
    first, again = run(), run()
    assert first[0] == 1 and again == (0, first[1]), "training and validation examples are the same here: one file"
    assert run(precision="fp32")[0] == 1 and run(precision="fp32")[0] == 0
    if kind == "image":
        other = noise.train.inputs.clone()
        other[3, 0, 0, 0] += 1
        darker = Preprocessing(32, 32, mean=(0.5, 0.5, 0.5))
        assert run(lambda m: m.backbone.conv1.weight[0, 0, 0, 0].add_(1e-3))[0] == 1
        assert run(lambda m: m.backbone.layer1[0].bn1.running_mean[0].add_(1e-3))[0] == 1
        assert run(lambda m: setattr(m, "preprocessing", Preprocessing(32, 40)))[0] == 1
        assert run(lambda m: setattr(m, "preprocessing", darker))[0] == 1
        assert run(lambda m: m.backbone.fc.weight[0, 0].add_(1))[0] == 0, "the head is not part of the prefix"
        assert run(inputs=other)[0] == 1
    else:
        def learns(model): model.backbone.encoder.layer[1].attention.self.query.weight[0, 0].add_(1)
        assert run(lambda m: m.backbone.embeddings.LayerNorm.weight[0].add_(1e-3))[0] == 1
        assert run(learns)[0] == 0, "nor is a block that learns"
        assert run(inputs=[*mood.train.inputs[:-1], "a dark night"])[0] == 1


def test_files_are_known_by_what_is_in_them(tmp_path):
    from PIL import Image
    for i in range(4): Image.new("RGB", (40, 40), (60 * i, 0, 0)).save(tmp_path/f"{i}.png")
    files = sorted(tmp_path.glob("*.png"))
    before = digest(files)
    moved = [shutil.copy(f, tmp_path/f"moved_{f.name}") for f in files]
    assert digest(moved) == before
    Image.new("RGB", (40, 40), (1, 0, 0)).save(files[0])
    assert digest(files) != before
    assert digest(["ab", "c"]) != digest(["a", "bc"])
    with pytest.raises(ValueError, match="no known content"): digest([object()])


@contextmanager
def disk(folder, size):
    "A real disk of that size"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try: yield folder
    finally: subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount a disk")
def test_a_full_disk_is_told_and_left_clean(tmp_path, noise, monkeypatch):
    told = "states of the frozen prefix need .* free: free some, name a folder on another disk"
    with disk(tmp_path/"small", "64k") as folder:
        model = residual()
        freeze(model, 2)
        for free in (None, 10**9): # what the disk says is free, and a disk that says more than it has
            if free: monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(free, 0, free))
            with pytest.raises(OSError, match=told): fit(model, noise, cache=folder, progress=False)
            assert not list(folder.iterdir())
            monkeypatch.undo()


@pytest.mark.parametrize("name, places", [("resnet", 1), ("pyramid", 2)])
def test_killed_while_writing(name, places, tmp_path, noise):
    "A real `kill -9` in the middle: nobody finds half a file, and the next run clears it away"
    def die():
        torch.set_num_threads(1)
        counted, real = [], prefix.watch
        def watch(*args):
            counted.extend([1] * any(tmp_path.glob("*.part")))
            if len(counted) == 3: os.kill(os.getpid(), signal.SIGKILL)
            return real(*args)
        prefix.watch = watch
        prefix.in_batches = lambda lengths, most: [[i] for i in range(len(lengths))]
        run()
    def run():
        model = residual() if name == "resnet" else made(name)
        freeze(model, places + 1)
        task = noise if name == "resnet" else others[name][1]()
        return fit(model, task, epochs=2, cache=tmp_path, progress=False)
    child = multiprocessing.get_context("fork").Process(target=die)
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL and [f.suffix for f in tmp_path.iterdir()] == [".part"] * places
    history = run()
    assert "found" not in history.prefix.split(" and ")[0]
    assert [f.suffix for f in tmp_path.iterdir()] == [".npy"] * places
    assert run().train_loss == history.train_loss


# Augmentation

@pytest.fixture
def counted():
    "An augmentation that counts how often it is asked, and depends on torch's random numbers"
    def augment(image):
        augment.times += 1
        return (image + torch.randint(50, (1,))).to(torch.uint8)
    augment.times = 0
    return augment


def test_augmented_afresh_unless_views_are_asked_for(noise, counted):
    model = residual(augment=counted)
    freeze(model, 5)
    history = fit(model, noise, epochs=6, progress=False)
    assert counted.times == 6 * 10 and "augmented afresh in each epoch" in history.prefix
    counted.times = 0
    history = fit(model, noise, epochs=6, views=2, progress=False)
    assert counted.times == 2 * 10 and "2 views of each" in history.prefix
    nonsense = (dict(views=0), "views must be at least 1, got 0"), (dict(views=2, cache=False), "leave one of them out")
    for bad, message in nonsense:
        with pytest.raises(ValueError, match=message): fit(model, noise, progress=False, **bad)
    with pytest.raises(ValueError, match="the model has no augment"): losses(residual(), noise, 5, views=2)


def test_views_take_turns_and_follow_the_seed(noise, counted):
    model = residual(augment=counted)
    cut = Cut(model, 3, model.encode(noise.train.inputs[:2]))
    def states(seed): return run_prefix(cut, noise.train.inputs, views=3, seed=seed, progress=False)[0]
    one, again, other = states(0), states(0), states(1)
    at = torch.arange(10)
    (first,), (second,), (third,) = map(values, (one, again, other))
    assert torch.equal(first, second) and not torch.equal(first, third)
    views = [one.of(at, view)[0] for view in (1, 4, 2)]
    assert torch.equal(*views[:2]) and not torch.equal(*views[1:])


@pytest.mark.parametrize("name", ["resnet", "electra", *others])
def test_one_pass_serves_several_cuts(name, noise, mood, tokenizer):
    if name in others: model, task = made(name), others[name][1]()
    else: model, task = (residual(), noise) if name == "resnet" else (written(name, tokenizer), mood)
    encoded = as_model(model).encode(task.train.inputs)
    cuts = [Cut(model, depth, encoded[:2]) for depth in range(1, len(blocks(model)))]
    cuts = cuts[1:] + cuts[:1] # in any order
    together = run_prefix(cuts, task.train.inputs, encoded, precision="fp32", progress=False)
    for cut, states in zip(cuts, together):
        (alone,) = run_prefix(cut, task.train.inputs, encoded, precision="fp32", progress=False)
        assert len(values(alone)) == len(values(states)) >= len(cut.sources)
        assert all(map(torch.equal, values(alone), values(states)))
        assert all(map(torch.equal, starts(alone), starts(states)))


def test_a_model_in_bfloat16_spills_too():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).bfloat16()
    points = torch.randn(9, 4, dtype=torch.bfloat16)
    cut = Cut(model, 1, points[:2])
    memory, file = (run_prefix(cut, points, memory_budget=most, progress=False)[0] for most in (None, 0))
    (ours,), (theirs,) = (states.of(torch.arange(9)) for states in (memory, file))
    assert ours.dtype == torch.bfloat16 and torch.equal(ours, theirs)


def test_ctrl_c_while_the_prefix_runs_leaves_a_history(noise, monkeypatch):
    def interrupted(*args, **how): raise KeyboardInterrupt
    monkeypatch.setattr("finetune_nb.engine.run.run_prefix", interrupted)
    history = losses(residual(), noise, 3)
    assert history.stopped == "interrupted" and not history.epochs


def test_cuts_between_a_convolution_and_its_norm_are_right_together_too(noise):
    "A plain Sequential has a block a layer; folded for the deepest cut, a shallower one would have the norm twice"
    torch.manual_seed(0)
    def convolved(*channels): return [nn.Conv2d(*channels, 3), nn.BatchNorm2d(6), nn.ReLU()]
    model = nn.Sequential(*convolved(3, 6), *convolved(6, 6), nn.Flatten(), nn.Linear(6 * 36 * 36, 2)).eval()
    for norm in (model[1], model[4]): norm.running_mean.fill_(-0.5); norm.running_var.fill_(0.1)
    images = noise.train.inputs.float() / 255
    cuts = [Cut(model, depth, images[:2]) for depth in range(1, len(blocks(model)))]
    for cut, states in zip(cuts, run_prefix(cuts, images, progress=False)):
        (exact,), (kept,) = cut.states(images), states.of(torch.arange(len(images)))
        assert (kept - exact).abs().max() < 0.05 * exact.abs().max(), cut.depth


def test_states_of_another_forward_are_not_found(tmp_path):
    "What a network's own code does, and what an augmentation is, no weight tells"
    class Own(nn.Module):
        bend = staticmethod(torch.relu)
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.middle, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        def forward(self, x): return self.head(self.middle(self.bend(self.stem(x))))
        def blocks(self): return [Block(name, [getattr(self, name)]) for name in ("stem", "middle", "head")]
    points, model = torch.randn(20, 6, generator=seeded()), Own()
    def where(**how):
        (states,) = run_prefix(Cut(model, 2, points[:2]), points, folder=tmp_path, progress=False, **how)
        return states.where
    assert where().startswith("in ") and where().startswith("found in ")
    Own.bend = staticmethod(torch.tanh)
    assert where().startswith("in ") and where().startswith("found in ")
    class Change(nn.Module):
        def __init__(self, by): super().__init__(); self.by = by
        def forward(self, x): return x * self.by
    for by, expected in ((2, "in "), (2, "found in "), (-1, "in ")):
        model.augment = Change(by)
        assert where(views=2).startswith(expected)


def test_a_shortcut_from_the_input_is_cut_and_trained():
    "What learns looks at the image once more, beside the states"
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.body, self.head = nn.Linear(6, 6), nn.Linear(12, 8), nn.Linear(8, 2)
        def forward(self, x): return self.head(self.body(torch.cat([self.stem(x).relu(), x], 1)).relu())
        def blocks(self): return [Block(name, [getattr(self, name)]) for name in ("stem", "body", "head")]
    points = torch.randn(20, 6, generator=seeded())
    task = same(Examples(points, (points[:, 0] > 0).long()), ["a", "b"], "points")
    def losses(**how):
        torch.manual_seed(0)
        freeze(model := Beside(), 1)
        return fit(model, task, 3, precision="fp32", progress=False, **how)
    kept = losses()
    assert "run once for 40 examples" in kept.prefix
    assert kept.train_loss == pytest.approx(losses(cache=False).train_loss, abs=1e-6)
