"""The freeze contract, for every family at every depth; each trap of the lesson; and a test of these tests."""
import copy, json, pickle, subprocess, sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from finetune_nb.engine import families
from finetune_nb.freezing import (Block, FreezeSummary, Sequentials, blocks, blocks_with_head, draw_blocks,
                                  fingerprint, freeze, freeze_depth, trainable_parameters, unfreeze)

package = Path(__file__).resolve().parent.parent/"finetune_nb"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    "These models are so small that a second thread costs more than it brings, above all on a busy machine"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small():
    "Three blocks with all that can go wrong: BatchNorm, dropout, weights"
    torch.manual_seed(0)
    below = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5)
    return nn.Sequential(*below, nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 3))


def in_three(model):
    "The blocks of `small`, by hand"
    return [list(model[:4]), list(model[4:6]), [model[6]]]


def batch(): return torch.randn(16, 6) * 3 + 1, torch.randint(3, (16,))


def backward(model, *, x=None):
    inputs, labels = batch()
    F.cross_entropy(model(inputs if x is None else x), labels).backward()


def optimizers(parameters):
    parameters = list(parameters)
    return {"sgd": torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
            "adamw": torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)}


# The traps of the lesson. They need torch alone: the test of the tests at the end runs them against broken modules.
def test_trap_batchnorm_statistics_drift():
    naive, frozen = small(), small()
    naive.requires_grad_(False)
    freeze(frozen, 2, in_three(frozen))
    before = fingerprint(naive[1]), fingerprint(frozen[1])
    for model in naive, frozen:
        model.train()
        model(batch()[0])
    assert fingerprint(naive[1]) != before[0], "requires_grad=False alone lets the statistics move"
    assert fingerprint(frozen[1]) == before[1]


def test_trap_outputs_depend_on_batch_mates():
    model = small()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d): m.track_running_stats, m.running_mean, m.running_var = False, None, None
    x = batch()[0]
    model.eval()
    assert not torch.allclose(model(x)[:2], model(x[:2])), "without statistics it normalises by the batch, always"
    model = small()
    freeze(model, 2, in_three(model))
    model.train()
    assert torch.allclose(model(x)[:2], model(x[:2]), atol=1e-6)


def test_trap_eval_is_undone_by_train():
    model, x = small(), batch()[0]
    model[:4].eval()
    model.train()
    assert not torch.equal(model[:4](x), model[:4](x)), "the next train() brings the dropout back"
    freeze(model, 1, in_three(model))
    model.train()
    assert torch.equal(model[:4](x), model[:4](x))
    model.train()
    inner = nn.Sequential.forward(model[:4], x)
    assert torch.equal(inner, model[:4](x)), "whoever calls an inner module directly gets eval mode too"
    assert not model[1].training and model[4].training


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_trap_optimizer_moves_frozen_parameters(name):
    naive, frozen = small(), small()
    for model, ours in (naive, False), (frozen, True):
        optimizer = optimizers(model.parameters())[name]
        backward(model)
        optimizer.step()
        backward(model)  # gradients are left behind, as in a notebook that was run to here
        if ours: freeze(model, 2, in_three(model))
        else: model[:6].requires_grad_(False)
        before = fingerprint(model[:6])
        optimizer.step()
        assert (fingerprint(model[:6]) == before) is ours


def test_trap_zero_gradients_are_not_no_gradients():
    for zeros in True, False:
        model = small()
        optimizer = optimizers(model.parameters())["sgd"]
        backward(model)
        optimizer.step()
        model[:6].requires_grad_(False)
        optimizer.zero_grad(set_to_none=not zeros)
        before = fingerprint(model[0])
        optimizer.step()
        assert (fingerprint(model[0]) != before) is zeros


def test_trap_head_keeps_learning():
    model = small()
    summary = freeze(model, 2, in_three(model))
    assert [row.frozen for row in summary.rows] == [True, True, False]
    assert list(trainable_parameters(model)) == list(model[6].parameters())
    before = fingerprint(model[6])
    optimizer = torch.optim.SGD(trainable_parameters(model), lr=0.1)
    backward(model)
    optimizer.step()
    assert fingerprint(model[6]) != before


def test_trap_frozen_parameters_get_no_gradient():
    model = small()
    freeze(model, 2, in_three(model))
    backward(model)
    assert all(p.grad is None and not p.requires_grad for p in model[:6].parameters())
    assert all(p.grad is not None for p in model[6].parameters())


def test_trap_gradients_left_behind_are_dropped():
    model = small()
    backward(model)
    freeze(model, 1, in_three(model))
    assert all(p.grad is None for p in model[:4].parameters())
    assert all(p.grad is not None for p in model[4:].parameters())


def test_trap_everything_frozen():
    model = small().requires_grad_(False)
    with pytest.raises(RuntimeError, match="does not require grad"): backward(model)
    with pytest.raises(ValueError, match="between 0 and 2, got 3: .*nothing would be left to learn"):
        freeze(model, 3, in_three(model))


def test_trap_shared_weights_are_refused():
    shared = nn.Linear(6, 6)
    twice = nn.Sequential(nn.Linear(6, 6), shared, nn.ReLU(), nn.Sequential(shared))
    with pytest.raises(ValueError, match="one set of weights"): freeze(twice, 1)
    tied = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="weight is shared between block '0' and block 'head'"): blocks(tied)


# Copies, pickles, freezing twice, unfreezing
def hooks(model): return sum(len(m._forward_pre_hooks) for m in model.modules())


def test_copies_stay_frozen(tmp_path):
    model = small()
    freeze(model, 2, in_three(model))
    torch.save(model, tmp_path/"model.pt")
    again = torch.load(tmp_path/"model.pt", weights_only=False)
    for twin in copy.deepcopy(model), pickle.loads(pickle.dumps(model)), again:
        assert freeze_depth(twin) == 2
        before = fingerprint(twin[:6])
        twin.train()
        twin(batch()[0])
        assert fingerprint(twin[:6]) == before == fingerprint(model[:6])
        unfreeze(twin)
        assert freeze_depth(twin) == hooks(twin) == 0 and all(m.training for m in twin.modules())
        twin(batch()[0])
        assert fingerprint(twin[:6]) != before
    assert freeze_depth(model) == 2 and hooks(model) > 0


def test_freezing_twice_changes_nothing():
    model = small()
    freeze(model, 2, in_three(model))
    once = hooks(model)
    freeze(model, 2)
    assert hooks(model) == once
    freeze(model, 1)
    assert freeze_depth(model) == 1 and 0 < hooks(model) < once
    assert all(p.requires_grad for p in model[4:].parameters())


@pytest.mark.parametrize("training", [True, False])
def test_unfreeze_restores_the_mode(training):
    model = small().train(training)
    freeze(model, 2, in_three(model))
    assert not any(m.training for m in model[:6])
    assert unfreeze(model, 1).depth == 1
    assert not any(m.training for m in model[:4]) and all(m.training is training for m in model[4:])
    unfreeze(model)
    assert all(m.training is training for m in model.modules()) and hooks(model) == 0
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="must not grow"): unfreeze(model, 2)


def test_other_hooks_are_left_alone():
    model = small()
    calls = []
    model[0].register_forward_pre_hook(lambda module, inputs: calls.append(1))
    freeze(model, 1, in_three(model))
    model(batch()[0])
    unfreeze(model)
    model(batch()[0])
    assert len(calls) == 2


@pytest.mark.parametrize("depth", [-1, 4, 7, True, False, 1.0, 1.5, "1", None])
def test_bad_depth(depth):
    model = small()
    with pytest.raises(ValueError, match=f"depth must be between 0 and 3, got {depth!r}: "): freeze(model, depth)
    assert freeze_depth(model) == 0 and all(p.requires_grad for p in model.parameters())


def test_depth_may_be_any_whole_number():
    numpy = pytest.importorskip("numpy")
    model = small()
    assert freeze(model, numpy.int64(2)).depth == 2 and type(freeze(model, torch.tensor(1)).depth) is int


# Blocks
def names(model): return [block.name for block in blocks(model)]


def test_sequential():
    model = small()
    assert names(model) == ["0", "1", "4", "head"]
    assert [len(block.modules) for block in blocks(model)] == [1, 3, 2, 1]
    assert names(nn.Sequential(nn.Flatten(), nn.Linear(2, 2))) == ["head"]


def test_by_hand():
    model = small()
    given = [Block("below", list(model[:4])), Block("above", list(model[4:]))]
    assert freeze(model, 1, given).rows[0].block == "below"
    assert names(model) == names(copy.deepcopy(model)) == ["below", "above"]
    assert names(small()) == ["0", "1", "4", "head"]
    with pytest.raises(ValueError, match="belong to no block"): freeze(small(), 0, [])
    for cut, sentence in (([list(model[:4]), [model[6]]], r"4.weight, 4.bias \(2 of 11 .*belong to no block"),
                          ([list(model[:2]), [model[2]], list(model[3:])], "no parameters"),
                          ([[nn.Linear(2, 2)], list(model)], "no module of this Sequential"),
                          ([[nn.Parameter(torch.ones(1))], list(model)], "no module of this Sequential"),
                          ([["0"], list(model)], "must be a list of networks, got")):
        with pytest.raises(ValueError, match=sentence): freeze(model, 0, cut)
    assert names(model) == ["below", "above"], "a refused list is not remembered"


class Wrapped(nn.Module):
    def __init__(self, backbone, features):
        super().__init__()
        self.backbone, self.dropout, self.head = backbone, nn.Dropout(0.1), nn.Linear(features, 3)

    def blocks(self): return blocks_with_head(self.backbone, self.dropout, self.head)


class Strange(nn.Module):
    "Two layers, and a parameter and a buffer that belong to neither"
    def __init__(self):
        super().__init__()
        self.lower, self.upper, self.scale = nn.Linear(6, 4), nn.Linear(4, 3), nn.Parameter(torch.ones(1))
        self.register_buffer("shift", torch.zeros(4))

    def forward(self, x): return self.upper(self.lower(x) * self.scale + self.shift)


def test_unknown_model():
    supported = r"got a Strange.*Supported: (?=.*ResNet, )(?=.*BERT, ).*blocks=\[\[model.lower\], \[model.upper\]\]"
    with pytest.raises(ValueError, match=supported): blocks(Strange())
    model = Strange()
    with pytest.raises(ValueError, match=r"scale, shift \(2 of 6 .*belong to no block"):
        freeze(model, 1, [model.lower, model.upper])


def test_a_family_that_is_there_twice_is_named_once(monkeypatch):
    monkeypatch.setattr(families, "_families", [Sequentials(), *families.families()])
    with pytest.raises(ValueError, match="Supported:") as refused: blocks(Strange())
    assert str(refused.value).count("nn.Sequential,") == 1


def test_bare_parameters_freeze_too():
    model = Strange()
    freeze(model, 1, [[model.lower, model.scale, model.shift], model.upper])
    backward(model)
    for twin in model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)):
        first, last = blocks(twin)
        assert list(first.tensors) == ["scale", "shift"] and first.num_parameters() == 29
        assert first.buffers() == [twin.shift]
        assert freeze_depth(twin) == 1 and not twin.scale.requires_grad and twin.scale.grad is None
        before = fingerprint(first)
        with torch.no_grad(): twin.scale += 1
        assert fingerprint(first) != before
        twin.scale.requires_grad = True
        assert freeze_depth(twin) == 0, "a block with a parameter that learns is not frozen"
        assert unfreeze(twin).trainable_parameters == 44 and twin.scale.requires_grad
    with pytest.raises(ValueError, match="scale is shared between"):
        freeze(model, 0, [[model.lower, model.scale, model.shift], [model.upper, model.scale]])


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_resnet_names(name):
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"): model = getattr(torchvision.models, name)()
    assert names(model) == ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
    assert {model.conv1, model.bn1} <= set(blocks(model)[0].modules) and model.fc in blocks(model)[-1].modules
    for depth in range(6): assert freeze(model, depth).depth == freeze_depth(model) == depth


@pytest.mark.parametrize("name", ["vgg11", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19"])
def test_vgg_names(name):
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"): model = getattr(torchvision.models, name)()
    found = blocks(model)
    assert names(model) == ["block1", "block2", "block3", "block4", "block5", "fc6", "fc7", "head"]
    assert all(any(isinstance(m, nn.MaxPool2d) for m in block.modules) for block in found[:5])
    assert [block.modules[0] for block in found[5:]] == [model.classifier[i] for i in (0, 3, 6)]


def tiny_transformer(kind, head):
    transformers = pytest.importorskip("transformers")
    words = dict(vocab_size=50, max_position_embeddings=40)
    common = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, **words)
    config = {"Electra": dict(common, embedding_size=8), "Albert": dict(common, embedding_size=8),
              "DistilBert": dict(dim=16, n_layers=3, n_heads=2, hidden_dim=32, **words),
              "GPT2": dict(n_embd=16, n_layer=3, n_head=2, vocab_size=50, n_positions=40,
                           pad_token_id=0, bos_token_id=1, eos_token_id=2)}.get(kind, common)
    torch.manual_seed(0)
    return getattr(transformers, kind + head)(getattr(transformers, kind + "Config")(**config))


kinds = ["Bert", "Roberta", "XLMRoberta", "Camembert", "Electra", "DistilBert", "GPT2"]


@pytest.mark.parametrize("kind", kinds)
def test_transformer_names(kind):
    body = ["embeddings", "layer.0", "layer.1", "layer.2"]
    assert names(tiny_transformer(kind, "ForSequenceClassification")) == [*body, "head"]
    bare = tiny_transformer(kind, "Model")
    assert names(bare) == body + ["head"] * (kind not in ("DistilBert", "Electra"))
    assert names(Wrapped(bare, 16)) == [*body, "head"]


def test_all_of_the_embeddings():
    model = tiny_transformer("Electra", "Model")
    assert model.embeddings_project in blocks(model)[0].modules
    model = tiny_transformer("GPT2", "ForSequenceClassification")
    assert blocks(model)[0].modules[:2] == [model.transformer.wte, model.transformer.wpe]
    assert set(blocks(model)[-1].modules) == {model.transformer.ln_f, model.score}


def test_shared_layers_and_tied_embeddings_are_refused():
    for head in "Model", "ForSequenceClassification":
        with pytest.raises(ValueError, match="are one set of weights"): blocks(tiny_transformer("Albert", head))
    model = tiny_transformer("Albert", "Model")
    assert freeze(model, 1, [model.embeddings, [model.encoder], model.pooler]).depth == 1
    for kind, head in ("GPT2", "LMHeadModel"), ("Bert", "ForMaskedLM"):
        shared = "is shared between block 'embeddings' and block 'head'"
        with pytest.raises(ValueError, match=shared): blocks(tiny_transformer(kind, head))


# A real fit, for every family at every depth
def small_vgg(models, batch_norm=False):
    model = models.VGG(models.vgg.make_layers([4, "M", 4, "M", 8, "M", 8, "M", 8, "M"], batch_norm), num_classes=3)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    connected = nn.Linear(8, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 8), nn.ReLU(), nn.Dropout()
    model.classifier = nn.Sequential(*connected, nn.Linear(8, 3))
    return model


def small_vit(models):
    return models.VisionTransformer(image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32,
                                    dropout=0.1, num_classes=3)


def small_convnext(models):
    stages = [models.convnext.CNBlockConfig(*widths, 1) for widths in ((8, 8), (8, 16), (16, 16), (16, None))]
    return models.ConvNeXt(stages, stochastic_depth_prob=0.1, num_classes=3)


def small_swin(models):
    return models.SwinTransformer([4, 4], 8, [1, 1, 2, 1], [2, 2, 2, 2], [2, 2], num_classes=3)


small_images = { # a network of each family of torchvision's, most of them smaller than any that is published
    "resnet18": lambda models: models.resnet18(num_classes=3),
    "resnet50": lambda models: models.resnet50(num_classes=3),
    "vgg": small_vgg, "vgg_bn": lambda models: small_vgg(models, True), "vit": small_vit, "convnext": small_convnext,
    "efficientnet": lambda models: models.efficientnet_b0(num_classes=3),
    "mobilenet": lambda models: models.mobilenet_v3_small(num_classes=3),
    "densenet": lambda models: models.DenseNet(4, (1, 1, 1, 1), 8, num_classes=3),
    "regnet": lambda models: models.regnet_y_400mf(num_classes=3), "swin": small_swin}


def image_model(kind):
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    return small_images[kind](models)


def family(kind):
    if kind[0].islower(): return image_model(kind), lambda: torch.rand(4, 3, 32, 32)
    wrapped = kind.endswith("/wrapped")
    if wrapped: model = Wrapped(tiny_transformer(kind.split("/")[0], "Model"), 16)
    else: model = tiny_transformer(kind, "ForSequenceClassification")
    return model, lambda: torch.randint(3, 50, (4, 9))


def logits(model, x):
    if isinstance(model, Wrapped): return model.head(model.dropout(model.backbone(x)[0].mean(1)))
    output = model(x)
    return output if isinstance(output, torch.Tensor) else output.logits


@pytest.mark.parametrize("kind", [*small_images, *kinds, "Bert/wrapped", "GPT2/wrapped"])
def test_contract_in_a_fit(kind):
    model, images = family(kind)
    for depth in range(len(blocks(model))):
        summary = freeze(model, depth)
        assert freeze_depth(model) == depth
        before = [fingerprint(block) for block in blocks(model)]
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)  # with everything in it
        for step in range(2):
            model.train()
            optimizer.zero_grad()
            F.cross_entropy(logits(model, images()), torch.tensor([0, 1, 1, 0])).backward()
            optimizer.step()
        after = [fingerprint(block) for block in blocks(model)]
        stayed = [a == b for a, b in zip(after, before)]
        assert stayed == [row.frozen for row in summary.rows] == [i < depth for i in range(len(before))]
        assert summary.trainable_parameters == sum(p.numel() for p in trainable_parameters(model))
        assert summary.total_parameters == sum(p.numel() for p in model.parameters())
    assert unfreeze(model).depth == freeze_depth(model) == 0 and hooks(model) == 0


def test_asking_the_families_loads_neither_torchvision_nor_transformers(quiet):
    code = ("import sys, torch; from finetune_nb import freezing; freezing.families(); "
            "sys.exit(' '.join({'torchvision', 'transformers'} & set(sys.modules)) or 0)")
    ran = subprocess.run([sys.executable, "-c", code], env=quiet, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


# What is no model, and what is one in a wrapper
@pytest.mark.parametrize("call", [lambda x: freeze(x, 1), unfreeze, blocks, fingerprint, freeze_depth, draw_blocks,
                                  trainable_parameters, blocks_with_head])
@pytest.mark.parametrize("given", [None, "resnet18", 3, nn.Linear, {}], ids=str)
def test_what_is_no_network_is_refused(call, given):
    with pytest.raises(ValueError, match="(model|backbone) must be a network, a torch.nn.Module, got"): call(given)


@pytest.mark.parametrize("by_hand", [3, "ab", [None, None], [3], {}], ids=str)
def test_what_names_no_blocks_is_refused(by_hand):
    with pytest.raises(ValueError, match="must be a list, an array or a column"): freeze(small(), 1, blocks=by_hand)


@pytest.mark.parametrize("first", ["compiled", "frozen"])
def test_the_contract_holds_for_a_compiled_model(first):
    "freeze(torch.compile(model), 1), whether it ran before or not"
    model = small()
    compiled = torch.compile(model, backend="eager")
    x = batch()[0]
    if first == "compiled": compiled.train()(x)
    assert freeze(compiled, 2, in_three(model)).depth == freeze_depth(model) == freeze_depth(compiled) == 2
    before = fingerprint(blocks(model)[0])
    for _ in range(3):
        compiled.train()
        F.cross_entropy(compiled(x), torch.randint(3, (16,))).backward()
    assert fingerprint(blocks(compiled)[0]) == before and fingerprint(model) == fingerprint(compiled)
    assert [p.grad is None for p in model.parameters()] == [True] * 6 + [False] * 2
    unfreeze(compiled)
    compiled.train()(x)
    assert fingerprint(blocks(model)[0]) != before, "and it can be thawed"


# What a reader sees
def test_summary():
    model = small()
    text, table = repr(freeze(model, 2)), freeze(model, 2)._repr_html_()
    assert "freeze depth 2 (0 to 3): 99 of 171 parameters learn" in text
    assert text.count("frozen\n") == 2 and text.count("learns") == 2
    assert table.count("frozen</td>") == 2 and "scope='row'" in table and "<caption" in table
    for seen in (text, table): assert "no dropout; requires_grad=False alone is only the first of these" in seen
    assert "requires_grad" not in repr(freeze(model, 0)), "nothing is frozen"
    wicked = nn.Sequential()
    wicked.add_module("<b>", nn.Linear(1, 1))
    wicked.add_module("last", nn.Linear(1, 1))
    assert "<b></th>" not in freeze(wicked, 1)._repr_html_()


def test_summary_of_other_blocks_than_the_first():
    first, second, *others = freeze(small(), 0).rows
    summary = FreezeSummary(None, [first, second._replace(frozen=True), *others])
    for seen in (repr(summary), summary._repr_html_()):
        assert "155 of 171 parameters learn" in seen and "depth" not in seen and "no BatchNorm update" in seen


def test_picture():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    model = small()
    freeze(model, 2)
    ax = draw_blocks(model, figure.subplots())
    assert [bool(bar.get_hatch()) for bar in ax.patches] == [True, True, False, False]


def test_fingerprint():
    model = small()
    whole = fingerprint(model)
    assert whole == fingerprint(copy.deepcopy(model)) and len(whole) == 64
    model[1].num_batches_tracked += 1
    assert fingerprint(model) != whole
    assert fingerprint(model.to(torch.bfloat16)) != fingerprint(model.float())


# The test of the tests
broken = {  # what is broken: the line, the line in its place, the test that has to see it
    "forgets the evaluation hook": ("    module.eval() # whatever happened before", "    pass",
                                    {"test_trap_batchnorm_statistics_drift", "test_trap_outputs_depend_on_batch_mates",
                                     "test_trap_eval_is_undone_by_train"}),
    "forgets requires_grad": ("parameter.requires_grad_(parameter in learns)", "pass",
                              {"test_trap_frozen_parameters_get_no_gradient", "test_trap_head_keeps_learning"}),
    "freezes one block too many": (": set_frozen(block, i < depth", ": set_frozen(block, i <= depth",
                                   {"test_trap_head_keeps_learning"}),
    "leaves old gradients": ("if parameter not in learns: parameter.grad = None", "pass",
                             {"test_trap_gradients_left_behind_are_dropped",
                              "test_trap_optimizer_moves_frozen_parameters[sgd]"}),
    "accepts shared weights": ("if owner is not block:", "if False:", {"test_trap_shared_weights_are_refused"}),
}
run_broken = """
import json, sys, types, pytest
import finetune_nb

class Seen:
    def pytest_runtest_logreport(self, report):
        if report.when == "call": seen[report.nodeid.split("::")[1]] = report.outcome

results = {}
for what, source in json.load(sys.stdin).items():
    module = finetune_nb.freezing = sys.modules["finetune_nb.freezing"] = types.ModuleType("finetune_nb.freezing")
    exec(compile(source, "freezing.py", "exec"), module.__dict__)
    sys.modules.pop("test_freezing", None)
    seen = results[what] = {}
    quietly = ["-q", "--tb=no", "--noconftest", "-p", "no:cacheprovider", "-n0"]
    pytest.main([sys.argv[1], "-k", "test_trap_", *quietly], plugins=[Seen()])
print("\\n" + json.dumps(results))
"""


def test_the_tests(quiet):
    source = (package/"freezing.py").read_text(encoding="utf-8")
    sources = {"nothing": source}
    for what, (line, instead, _) in broken.items():
        assert source.count(line) == 1, f"{line!r} is no longer in freezing.py: give the mutation a line that is"
        sources[what] = source.replace(line, instead)
    run = subprocess.run([sys.executable, "-c", run_broken, __file__], input=json.dumps(sources), env=quiet,
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout.splitlines()[-1])
    assert set(results["nothing"].values()) == {"passed"}, "the tests must pass on the module as it is"
    assert len(results["nothing"]) > 9
    for what, (_, _, expected) in broken.items():
        red = {name for name, outcome in results[what].items() if outcome == "failed"}
        assert expected <= red, f"a module that {what} should turn {expected} red, but {red or 'nothing'} went red"
        assert len(results[what]) == len(results["nothing"]), what
        assert len(red) < len(results[what]), f"too much breaks when a module {what}: {red}"
