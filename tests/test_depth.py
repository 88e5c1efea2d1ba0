"""A sweep does what runs would do one by one, chooses on validation alone, can be stopped, saved and asked again."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from conftest import tiny_bert
from finetune_nb import data, depth, evaluate, fit, freeze, text, vision
from finetune_nb.data import Examples, Task
from finetune_nb.depth import Sweep, difference, optimism, rungs, sweep, train_only
from finetune_nb.engine import runs as running
from finetune_nb.engine.history import History
from finetune_nb.freezing import blocks, fingerprint


@pytest.fixture(scope="module")
def digits(): return data.digits(3, validation_per_class=3, test_per_class=5)


@pytest.fixture(scope="module")
def topics(): return data.topics(2, validation_per_class=2, test_per_class=3)


def resnet(seed, backbone=0, **more):
    "Small, of the same weights for each seed of the head"
    model = vision.classifier("timm/test_resnet", 10, image_size=32, pretrained=False, seed=backbone, **more)
    torch.manual_seed(seed)
    model.head.reset_parameters()
    return model


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tiny_bert(tmp_path_factory.mktemp("bert"), layers=4)
    return lambda seed: text.classifier(folder, 10, seed=seed)


@pytest.mark.parametrize("task, depths", [("digits", [0, 2, 5]), ("topics", [2, 5])], ids=["images", "texts"])
def test_sharing_changes_no_result(request, bert, task, depths):
    "Put back, cut and cached, a run has the losses of a run alone"
    make_model, task = resnet if task == "digits" else bert, request.getfixturevalue(task)
    shared = sweep(make_model, task, depths, seeds=[3, 4], strategy="all", epochs=2, precision="fp32", progress=False)
    for row in shared.rows:
        model = make_model(row["seed"])
        freeze(model, row["depth"])
        history = fit(model, task, 2, seed=row["seed"], precision="fp32", progress=False)
        assert np.allclose([loss for _, loss, _ in row["curve"]], history.train_loss, rtol=1e-4)
        assert row["validation_accuracy"] == pytest.approx(history.validation_accuracy, abs=1.01 / len(task.validation))
        assert row["accuracy"] == pytest.approx(evaluate(model, task.test).accuracy, abs=1.01 / len(task.test))
        assert row["trainable_parameters"] == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_one_pass_serves_all(digits, monkeypatch):
    "Three passes of the prefix, one for each part, whatever the depths and seeds; `fit` finds the rest"
    passes, judged, fitted = [], [], []
    real_prefix, real_fit = running.run_prefix, running.fit
    def run_prefix(cuts, *args, **more):
        states = real_prefix(cuts, *args, **more)
        if isinstance(cuts, list): passes.append(sorted(cut.depth for cut in cuts))
        else: judged.append(states[0].where)
        return states
    def noted(*args, **more):
        fitted.append(real_fit(*args, **more))
        return fitted[-1]
    monkeypatch.setattr(running, "run_prefix", run_prefix)
    monkeypatch.setattr(running, "fit", noted)
    sweep(resnet, digits, [1, 3, 5], seeds=2, strategy="all", epochs=1, progress=False)
    assert passes == [[1, 3, 5]] * 3 and len(fitted) == 6
    assert all("found in" in history.prefix for history in fitted)
    assert len(judged) == 12 and all(where.startswith("found in") for where in judged), "validation and test"


def test_a_backbone_that_differs_by_seed_is_not_mixed_up(digits):
    "Random networks: each seed has its own states"
    def scratch(seed): return resnet(seed, backbone=seed)
    shared = sweep(scratch, digits, [5], seeds=2, strategy="all", epochs=2, precision="fp32", progress=False)
    for seed, row in enumerate(shared.rows):
        freeze(model := scratch(seed), 5)
        alone = fit(model, digits, 2, seed=seed, precision="fp32", progress=False)
        assert np.allclose([loss for _, loss, _ in row["curve"]], alone.train_loss, rtol=1e-4)


def test_halving_spends_what_it_says(digits):
    """The first seed closes in on the best depths, the better half has the second, half of these the third; the head
    alone has all"""
    halved = sweep(resnet, digits, seeds=[4, 1, 2], epochs=1, progress=False)
    seeds = {depth: list(halved.right(depth)) for depth in halved.depths}
    assert sorted(map(len, seeds.values())) in ([1, 1, 2, 3, 3], [1, 1, 1, 2, 3, 3])
    assert seeds[5] == [1, 2, 4] and all(4 in own for own in seeds.values())
    first = {depth: halved.right(depth)[4].mean() for depth in seeds if depth != 5}
    best = max((0, 2, 4), key=lambda depth: (first[depth], depth))
    assert {0, 2, 4} | {depth for depth in (best - 1, best + 1) if depth in range(5)} <= set(first)
    repeated, once = ([first[depth] for depth in first if (len(seeds[depth]) > 1) == again] for again in (True, False))
    assert min(repeated) >= max(once)
    for row in halved.rows:
        assert [point[0] for point in row["curve"]] == [1] and row["epochs"] == 1 and row["peak_memory"] > 0
        right = halved.right(row["depth"])[row["seed"]]
        assert row["validation_accuracy"] == pytest.approx(right.mean()) and 0 <= row["accuracy"] <= 1
    recommended = halved.recommend()
    lowest, highest = recommended.interval
    assert len(seeds[recommended.depth]) == 3 and lowest <= recommended.gain_over_head_only <= highest
    skipped = 6 - len(seeds)
    left = f"({f'{skipped} not tried, ' * skipped}{4 - skipped} given up after fewer seeds)"
    assert left in recommended.reason and recommended.gain_over_full is not None
    assert halved.summary().seeds.to_dict() == {depth: len(own) for depth, own in seeds.items()}


@pytest.mark.parametrize("count", range(1, 26))
def test_closing_in_climbs_a_hill(count):
    "Wherever the top is, it or its neighbour is found, and no run is done twice"
    for top in range(count):
        runs = SimpleNamespace(blocks=[None] * (count + 1), tried=[])
        def learn(depths, seed): runs.tried.extend((depth, seed) for depth in depths)
        runs.so_far = lambda depth: -abs(depth - top)
        depth._halving(runs, range(count, -1, -1), [7, 8], learn)
        first, second = [d for d, seed in runs.tried if seed == 7], [d for d, seed in runs.tried if seed == 8]
        assert first[0] == second[0] == count, "the head alone, with every seed"
        found, most = min(first[1:], key=lambda depth: abs(depth - top)), rungs(count, 2)
        assert 0 in first and abs(found - top) <= 1 and len(set(first)) == len(first) <= 1 + most[0]
        assert found in second and len(second) - 1 == min(most[1], len(first) - 1)


def test_halving_tries_what_all_tries(digits):
    "A run is the same run, whatever was tried before it"
    more = dict(seeds=2, epochs=1, precision="fp32", progress=False)
    halved, whole = (sweep(resnet, digits, [1, 4, 5], strategy=strategy, **more) for strategy in ("halving", "all"))
    def told(row): return [row["curve"], row["right"], row["accuracy"]]
    of_whole = {(row["depth"], row["seed"]): told(row) for row in whole.rows}
    assert len(halved.rows) == 5 < len(whole.rows) == 6
    assert all(told(row) == of_whole[row["depth"], row["seed"]] for row in halved.rows)


def test_the_test_examples_choose_nothing(digits):
    "With other test labels, the same is tried and recommended"
    others = Examples(digits.test.inputs, (digits.test.labels + 1) % 10)
    wrong = Task("digits", "image", digits.classes, digits.train, digits.validation, others)
    ours, theirs = (sweep(resnet, task, seeds=1, epochs=3, progress=False) for task in (digits, wrong))
    assert ours.recommend() == theirs.recommend()
    assert [r["right"] for r in ours.rows] == [r["right"] for r in theirs.rows]
    assert [r["accuracy"] for r in ours.rows] != [r["accuracy"] for r in theirs.rows]


def test_augmentation_and_networks_that_cannot_be_cut(digits):
    class Shortcut(nn.Sequential): # cut in two places
        def forward(self, x):
            x = x.float().flatten(1) / 255
            return self[2](self[1](self[0](x)) + self[0](x))
    class Looks(nn.Sequential): # into its own weights: it cannot be cut
        def forward(self, x):
            x = x.float().flatten(1) / 255
            return self[2](self[1](self[0](x))) * self[0].weight.abs().mean() + self[1].weight.mean()
    more = dict(strategy="all", epochs=1, progress=False)
    for kind in Shortcut, Looks:
        def make(seed):
            torch.manual_seed(0)
            layers = [nn.Linear(784, 8), nn.Linear(8, 8)]
            torch.manual_seed(seed)
            return kind(*layers, nn.Linear(8, 10))
        assert sweep(make, digits, seeds=2, **more).depths == [0, 1, 2]
    def turned(seed): return resnet(seed, augment=vision.augmentation())
    augmented = sweep(turned, digits, [3, 5], seeds=1, **more)
    assert augmented.depths == [3, 5]


def made_up(right, blocks=3):
    "A sweep whose runs have these validation examples right"
    def row(depth, seed, run):
        return dict(depth=depth, block=f"block{depth}", seed=seed, accuracy=0.5, macro_f1=0.5, seconds=1.0, epochs=10,
                    validation_accuracy=float(np.mean(run)), trainable_parameters=blocks - depth, peak_memory=1,
                    curve=[], right="".join(str(int(x)) for x in run))
    rows = [row(depth, seed, run) for depth, runs in right.items() for seed, run in enumerate(runs)]
    names, count = [f"block{i}" for i in range(blocks)], np.shape(right[max(right)])[1]
    return Sweep("made up", "none", "all", names, [1] * blocks, rows, budget=10, num_validation=count)


def test_recommends_the_cheapest_within_the_noise():
    rng = np.random.default_rng(0)
    good = (rng.random((3, 200)) < 0.9).astype(int)
    nearly, bad = good.copy(), good * (rng.random((3, 200)) < 0.8)
    nearly[0, 0] = 1 - good[0, 0]
    assert made_up({0: good, 1: good, 2: bad}).recommend().depth == 1
    found = made_up({0: good, 1: nearly, 2: bad}).recommend(noise=0.5)
    assert found.depth == 1
    assert found.gain_over_head_only == pytest.approx(nearly.mean() - bad.mean(), abs=0.005) and found.interval[0] > 0
    assert made_up({0: good, 2: bad}).recommend().depth == 0
    assert made_up({0: good, 1: bad, 2: good}).recommend().gain_over_head_only == 0
    assert made_up({0: good, 1: bad}).recommend().gain_over_head_only is None
    assert made_up({1: good, 2: bad}).recommend().gain_over_full is None
    fewer = made_up({0: good[:1], 1: bad, 2: bad}).recommend()
    assert fewer.depth != 0 and "1 given up after fewer seeds" in fewer.reason, "what had fewer seeds is no candidate"
    expected = bad[0].mean() - good[0].mean() # compared with the seeds that both had
    assert fewer.gain_over_full == pytest.approx(expected, abs=0.02)


def test_the_lucky_one_is_seen_through():
    "The best of six that are equally good has no gain; one that is better by far keeps its own"
    rng, seems, left = np.random.default_rng(0), [], []
    for _ in range(60):
        sweep = made_up({depth: (rng.random((1, 200)) < 0.9).astype(int) for depth in range(6)}, blocks=6)
        found = sweep.recommend(noise=0)
        seems.append(sweep.right(found.depth)[0].mean() - sweep.right(5)[0].mean())
        left.append(found.gain_over_head_only)
    assert np.mean(seems) > 0.02 and abs(np.mean(left)) < np.mean(seems) / 2
    good = (rng.random((3, 200)) < 0.95).astype(int)
    far = made_up({0: good * 0, 1: good, 2: good * (rng.random((3, 200)) < 0.7)})
    assert far.recommend().gain_over_head_only == pytest.approx(good.mean() - np.mean(list(far.right(2).values())))
    assert optimism({0: good[:, :1]}) == 0, "a single example cannot be left out"


def test_the_interval_holds_the_truth_where_the_truth_is_known():
    "Two classifiers with known accuracies that agree as networks do: 95 % means about 95 %"
    rng, held = np.random.default_rng(0), []
    for _ in range(400):
        hard = rng.random(200)
        def right(hard, shape, level): return (hard + 0.15 * rng.normal(size=shape) < level).astype(float)
        ours, theirs = (right(hard, (3, 200), level) for level in (0.92, 0.85))
        many = rng.random(20_000)
        truth = np.mean(right(many, 20_000, 0.92) - right(many, 20_000, 0.85))
        gain, error = difference(ours, theirs)
        held.append(abs(gain - truth) <= 1.96 * error)
    assert 0.92 <= np.mean(held) <= 1


def test_saved_and_asked_again(digits, tmp_path):
    swept = sweep(resnet, digits, [3, 5], seeds=1, epochs=1, name="ours", progress=False)
    file = swept.save(tmp_path/"new"/"sweep.json")
    assert Sweep.load(file) == swept and Sweep.load(file).recommend() == swept.recommend()
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert {"task", "model", "strategy", "blocks", "parameters", "labels_per_class", "rows",
            "recommendation"} <= saved.keys()
    assert {"depth", "block", "seed", "accuracy", "macro_f1", "validation_accuracy", "seconds",
            "trainable_parameters", "peak_memory", "epochs", "curve"} <= saved["rows"][0].keys()
    assert {"depth", "gain_over_head_only", "gain_over_full", "interval", "reason"} <= saved["recommendation"].keys()
    assert saved["labels_per_class"] == 3
    assert swept.plot()._repr_png_().startswith(b"\x89PNG") and "made up" in repr(made_up({0: np.ones((1, 4))}))
    for broken in ("", "[1]", '{"rows": []}'):
        file.write_text(broken)
        with pytest.raises(ValueError, match="no saved sweep"): Sweep.load(file)


def test_kept_states_are_found_by_the_next_sweep(digits, tmp_path):
    first = sweep(resnet, digits, [5], seeds=1, epochs=1, cache=tmp_path/"states", progress=False)
    files = {file: file.stat().st_mtime_ns for file in (tmp_path/"states").iterdir()}
    second = sweep(resnet, digits, [5], seeds=1, epochs=1, cache=tmp_path/"states", progress=False)
    assert len(files) == 3 and files == {file: file.stat().st_mtime_ns for file in (tmp_path/"states").iterdir()}
    assert first.rows[0]["curve"] == second.rows[0]["curve"]


def test_models_of_different_parts_are_refused(digits):
    def make(seed): return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 10)) if seed else resnet(0)
    with pytest.raises(ValueError, match="different parts"): sweep(make, digits, progress=False)


def test_ctrl_c_ends_a_sweep(digits, monkeypatch):
    monkeypatch.setattr(running, "fit", lambda *args, **more: History({}, stopped="interrupted"))
    with pytest.raises(KeyboardInterrupt): sweep(resnet, digits, [5], progress=False)


@pytest.mark.parametrize("block", ["stem", "layer2", "layer4"])
def test_one_block_alone(digits, block):
    "Nothing but the block and the head moves, buffers included"
    model = resnet(0)
    before = {b.name: fingerprint(b) for b in blocks(model)}
    summary = train_only(model, block)
    assert [row.block for row in summary.rows if not row.frozen] == [block, "head"]
    assert summary.trainable_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    fit(model, digits, 2, progress=False)
    assert {b.name for b in blocks(model) if fingerprint(b) != before[b.name]} == {block, "head"}


def test_the_command(command, monkeypatch, tmp_path, digits):
    monkeypatch.setattr("finetune_nb.data.digits", lambda labels, seed: digits)
    options = ["image", "--labels-per-class", 3, "--image-size", 32, "--seeds", 1, "--epochs", 1]
    code, printed, _ = command("depth", *options, "--compare", "--save", tmp_path/"sweep.json", "--json")
    result = json.loads(printed)
    assert code == 0 and len(printed.splitlines()) == 1 and result["labels_per_class"] == 3
    assert result["model"] == "resnet18-fractal" and {0, 2, 4, 5} <= {row["depth"] for row in result["rows"]}
    compare = result["compare"]
    assert compare["ratio"] == pytest.approx(compare["seconds"] / compare["seconds_one_by_one"], rel=0.1)
    assert len(compare["accuracy_one_by_one"]) == 6
    assert Sweep.from_json(printed) == Sweep.load(tmp_path/"sweep.json")
    assert (tmp_path/"sweep.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_in_words(command, monkeypatch, topics):
    monkeypatch.setattr("finetune_nb.data.topics", lambda labels, seed: topics)
    code, printed, _ = command("depth", "text", "--labels-per-class", 2, "--seeds", 1, "--epochs", 1)
    assert code == 0 and "learns from" in printed and "over the head alone" in printed and "layer.5" in printed


@pytest.mark.parametrize("options, sentence", [
    (["image", "--strategy", "best"], "strategy must be"), (["image", "--save", "sweep.txt"], "ends in .json"),
    (["image", "no such folder"], "no folder"), (["image", "--labels-per-class", "5000"], "too few"),
    (["text", "--pooling", "max"], "pooling must be")],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "")
def test_nonsense_costs_one_sentence(command, options, sentence):
    code, out, err = command("depth", *options)
    assert code == 1 and sentence in err and "Traceback" not in err and out == ""


def test_an_interrupted_command_has_no_result(command, monkeypatch):
    def interrupted(*args, **more): raise KeyboardInterrupt
    monkeypatch.setattr(depth, "sweep", interrupted)
    code, _, err = command("depth", "image", "--json")
    assert code == 130 and "no result" in err


def test_a_sweep_that_ended_can_be_saved_whatever_it_was_told():
    row = dict(seed=0, accuracy=0.5, macro_f1=0.5, validation_accuracy=0.5, seconds=1.0, trainable_parameters=1,
               peak_memory=1, epochs=2, curve=[], right="01")
    rows = [dict(depth=depth, block=str(depth)) | row for depth in (0, 1)]
    told = Sweep("digits", "small", "all", ["stem", "head"], [1, 1], rows, budget=2, settings=dict(clip=float("inf")))
    assert Sweep.from_json(told.to_json()).settings == dict(clip="inf")
