"""The loop, whatever is asked: it learns, chooses by the first score or the user's own, and refuses in a sentence."""
import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.metrics import balanced_accuracy_score
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from finetune_nb import blocks, evaluate, fit, freeze
from finetune_nb.data import Examples, Task
from finetune_nb.engine import run
from finetune_nb.engine.batches import Batches, drawn_evenly
from finetune_nb.engine.callbacks import Callback
from finetune_nb.engine.labels import Classification, MultiLabel
from finetune_nb.engine.memory import kept_for_backward
from finetune_nb.engine.models import as_model
from finetune_nb.engine.numbers import Regression
from finetune_nb.engine.run import Run
from finetune_nb.engine.several import Several
from finetune_nb.engine.steps import Steps, TrainingDiverged
from finetune_nb.freezing import fingerprint
from finetune_nb.training import find_learning_rate, predict

names = ["x", "y", "z"]
how = dict(batch_size=16, learning_rate=1e-2, head_learning_rate=2e-2, progress=False)


def targets(points, kind):
    "What the first three numbers of a point say"
    largest = points[:, :3].argmax(1)
    if kind == "classification": return largest
    if kind == "multi_label": return (points[:, :3] > 0).long()
    if kind == "regression": return 300 + 20 * points[:, 0] + 10 * points[:, 1]
    return dict(where=largest, much=targets(points, "regression"))


objectives = {
    "classification": Classification(names),
    "multi_label": MultiLabel(names),
    "regression": Regression(),
    "several": Several(dict(where=Classification(names), much=Regression()), dict(where=2)),
}
first = dict(classification="accuracy", multi_label="micro_f1", regression="r2", several="mean_score")


def part(count, seed, kind):
    points = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return Examples(points, targets(points, kind))


def task(kind="classification", asked=None):
    return Task("corners", "points", asked or objectives[kind], *(part(n, i, kind) for i, n in enumerate((96, 40, 60))))


def network(asked, seed=0):
    "Two blocks, the first with a norm, and the head that the objective wants"
    torch.manual_seed(seed)
    first = nn.Sequential(nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU())
    return nn.Sequential(first, nn.Sequential(nn.Linear(24, 24), nn.ReLU()), asked.head(24))


# It learns

@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("kind", objectives)
def test_it_learns_whatever_is_asked(kind, depth):
    given = task(kind)
    model = network(given.objective)
    freeze(model, depth)
    before, frozen = evaluate(model, given.test, objective=given.objective), fingerprint(blocks(model)[0])
    history = fit(model, given, epochs=16, **how | dict(head_learning_rate=5e-2 if depth == 2 else 2e-2))
    after = evaluate(model, given.test)
    assert after.score_name == history.score == first[kind] and history.stopped == "all epochs done"
    assert after.loss < before.loss and after.score > before.score + 0.1
    assert (fingerprint(blocks(model)[0]) == frozen) == (depth > 0)
    assert len(after) == 60 and after.each.min() >= 0 and after.each.max() <= 1
    rows = history.table()
    assert list(rows.columns) == ["train_loss", "validation_loss", f"validation_{first[kind]}", "seconds"]
    assert history.best_epoch == _best(rows, first[kind]) and history.plot().axes and repr(after) and repr(history)


def _best(rows, score):
    "Of the best score; of equals the smallest loss; of these the first"
    order = zip(rows[f"validation_{score}"], -rows.validation_loss, -rows.index, rows.index)
    return max(order)[-1]


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("kind", objectives)
def test_batches_that_are_added_up_learn_as_one(kind, cache):
    "To the last digits, in a last and smaller group of 16 of the 96 examples too"
    def exact(examples): return replace(examples, inputs=examples.inputs.double())
    given, ended = task(kind), []
    given = replace(given, train=exact(given.train), validation=exact(given.validation))
    for told in dict(batch_size=40), dict(batch_size=8, accumulate=5), dict(batch_size=13, accumulate=4):
        freeze(model := network(given.objective).double(), 1) # BatchNorm that learns would see each part by itself
        history = fit(model, given, epochs=4, cache=cache, precision="fp32", **how | told)
        ended.append((history.train_loss, [p.detach().numpy() for p in model.parameters()]))
    (losses, weights), (accumulated, same), (other, _) = ended
    np.testing.assert_allclose(accumulated, losses, rtol=1e-9)
    for ours, theirs in zip(same, weights): np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    assert not np.allclose(other, losses, rtol=1e-6), "batches of another size are others"


@pytest.mark.parametrize("kind", objectives)
def test_the_model_has_the_weights_of_the_best_epoch(kind):
    given = task(kind)
    freeze(model := network(given.objective), 1)
    history = fit(model, given, epochs=8, precision="fp32", **how)
    again = evaluate(model, given.validation, precision="fp32")
    assert again.score == pytest.approx(history.validation_score, abs=1e-6)
    assert again.loss == pytest.approx(history.table().validation_loss[history.best_epoch], rel=1e-5)


@pytest.mark.parametrize("kind", objectives)
def test_predicted_is_what_is_evaluated(kind):
    given = task(kind)
    freeze(model := network(given.objective), 2)
    fit(model, given, epochs=2, **how)
    for size in (None, 1, 7, 1000):
        answers = predict(model, given.test.inputs, batch_size=size)
        judged = evaluate(model, given.test, batch_size=size)
        assert len(answers) == 60
        if kind == "several":
            assert [set(answer) for answer in answers] == [{"where", "much"}] * 60
            answers, expected = ([np.append(own["where"], own["much"]) for own in x] for x in (answers, judged.answers))
        else: expected = judged.answers
        assert np.allclose(np.array(answers), np.array(expected), rtol=1e-5, atol=1e-6)
    assert model.training, "the model's own mode is put back"


def test_thresholds_are_chosen_by_validation():
    given = task("multi_label")
    freeze(model := network(given.objective), 1)
    history = fit(model, given, epochs=6, precision="fp32", **how)
    chosen = model.objective.thresholds
    assert len(chosen) == 3 and chosen != [0.5] * 3 and given.objective.thresholds is None
    told = model.objective.judge(*(lambda e: (e.answers, e.targets, e.losses))(evaluate(model, given.validation)))
    assert told.micro_f1 == pytest.approx(history.validation_score, abs=1e-6)


def test_numbers_come_back_in_their_own_units():
    given = task("regression")
    freeze(model := network(given.objective), 0)
    fit(model, given, epochs=20, **how)
    assert model.objective.centre == pytest.approx(float(given.train.targets.mean()))
    assert evaluate(model, given.test).mean_absolute_error < 8 and predict(model, given.test.inputs).mean() > 250


# What can be asked of a classification

def rare_task():
    "A class of one in ten"
    def rare(count, seed):
        points = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
        return Examples(points, (points[:, 0] + 0.7 * points[:, 1] > 1.55).long())
    return Task("rare", "points", ["often", "rare"], rare(200, 0), rare(80, 1), rare(400, 2))


def test_balanced_classes_help_the_rare():
    "It is found more often, with weights in the loss or drawn more often; either way in as many steps"
    given, recall = rare_task(), {}
    for weights, balance in (None, False), ("balanced", False), (None, True):
        asked = Classification(["often", "rare"], class_weights=weights)
        freeze(model := network(asked), 2)
        fit(model, given, epochs=6, objective=asked, balance=balance, **how)
        confusion = evaluate(model, given.test).confusion
        recall[weights, balance] = confusion[1, 1] / confusion[1].sum()
        if weights: counted = model.objective.class_weights
    assert min(recall["balanced", False], recall[None, True]) > recall[None, False] + 0.1
    assert counted == pytest.approx((200 / (2 * np.bincount(given.train.labels))).tolist())


def test_weights_and_smoothing_are_in_the_loss():
    given = task()
    freeze(model := network(given.objective), 0)
    logits, labels = torch.tensor([[2.0, -1.0, 0.5]] * 2), torch.tensor([0, 2])
    plain, weighted = (Classification(names, class_weights=w).losses(logits, labels) for w in (None, [1, 1, 4]))
    assert weighted[0] == plain[0] and weighted[1] == pytest.approx(4 * plain[1].item())
    smooth = Classification(names, label_smoothing=0.3)
    expected = 0.7 * plain + 0.3 * -logits.log_softmax(1).mean(1)
    assert torch.allclose(smooth.losses(logits, labels), expected)
    fit(model, given, epochs=12, objective=smooth, **how)
    sure = predict(model, given.test.inputs).max(1).mean()
    freeze(other := network(given.objective), 0)
    fit(other, given, epochs=12, **how)
    assert sure < predict(other, given.test.inputs).max(1).mean() - 0.05, "smoothed, it is less sure"


@pytest.mark.parametrize("asked", [Classification(names), Classification(names, [1, 2, 3], 0.1), objectives["several"]],
                         ids=["plain", "weighted", "several"])
def test_the_loss_of_a_batch_is_the_mean_of_its_losses(asked):
    outputs, kind = asked.head(6)(torch.randn(9, 6)), "several" if asked.kind == "several" else "classification"
    batch = asked.collate(asked.check(part(9, 0, kind).targets))
    assert asked.loss(outputs, batch).item() == pytest.approx(asked.losses(outputs, batch).mean().item(), rel=1e-6)


# Chosen by

def balanced(judged): return balanced_accuracy_score(judged.labels, judged.predicted)


@pytest.mark.parametrize("depth", [0, 2])
def test_a_score_of_the_users_chooses(depth):
    given = task()
    freeze(model := network(given.objective), depth)
    history = fit(model, given, epochs=6, score=balanced, precision="fp32", **how)
    rows = history.table()
    assert history.score == "balanced" and history.best_epoch == _best(rows, "balanced")
    assert history.validation_score == pytest.approx(balanced(evaluate(model, given.validation, precision="fp32")))
    assert "balanced" in repr(history) and history.plot()


def test_a_score_is_chosen_by_its_name():
    "Macro F1, where accuracy comes first"
    given = task()
    told = how | dict(epochs=6, score="macro_f1", patience=2, precision="fp32")
    history = fit(model := network(given.objective), given, **told)
    assert history.score == "macro_f1" and history.best_epoch == _best(history.table(), "macro_f1")
    assert history.validation_score == pytest.approx(evaluate(model, given.validation, precision="fp32").macro_f1)
    assert history.settings["score"] == "macro_f1"


def test_a_loss_ends_a_fit():
    "A score of one's own counts for the patience too; it falls from the first epoch on"
    given, seen = task(), iter(range(9, 0, -1))
    history = fit(network(given.objective), given, epochs=9, patience=3, score=lambda judged: next(seen), **how)
    assert history.best_epoch == 1 and len(history.epochs) == 4 and history.stopped.startswith("no improvement")


# Each class equally often

@pytest.mark.parametrize("counts", [(90, 9, 1), (34, 33, 33), (60, 40), (5, 5, 5, 5)])
def test_each_class_is_drawn_equally_often(counts):
    "Of the common class other examples in each epoch; of the rare one each as often as any other, but for one"
    strata, drawn = np.repeat(np.arange(len(counts)) * 3, counts), []
    for epoch in range(5):
        drawn.append(drawn_evenly(strata, torch.Generator().manual_seed(epoch)))
        found = np.bincount(strata[drawn[-1]])[::3]
        assert found.sum() == sum(counts) and np.ptp(found) <= 1
        for number in range(len(counts)):
            times = np.bincount(drawn[-1], minlength=len(strata))[strata == 3 * number]
            assert np.ptp(times) <= 1, "without replacement, as long as there are others"
    if counts[0] > 50: assert set(drawn[0]) != set(drawn[1])


def test_numbers_have_no_classes_to_balance():
    with pytest.raises(ValueError, match="task 'corners' asks for regression: leave it out"):
        fit(network(Regression()), task("regression"), balance=True, **how)


class Killed(Callback):
    def step(self, run, loss):
        if run.step == 11: raise SystemExit


def test_balanced_and_accumulated_runs_go_on_bit_for_bit(tmp_path):
    "In the middle of an epoch of 13 steps, the last of which is smaller"
    given, ended = rare_task(), []
    told = how | dict(epochs=4, batch_size=4, accumulate=4, balance=True, checkpoint=tmp_path/"run", every=3)
    for callbacks in [Killed()], []:
        freeze(model := network(given.objective), 1)
        try: history = fit(model, given, resume=True, callbacks=callbacks, **told)
        except SystemExit: pass
    freeze(whole := network(given.objective), 1)
    expected = fit(whole, given, **told | dict(checkpoint=None))
    assert fingerprint(model) == fingerprint(whole) and history.train_loss == expected.train_loss
    with pytest.raises(ValueError, match="are: accumulate 4, now 2; balance True, now False; score None, now 'macro"):
        fit(model, given, resume=True, **told | dict(accumulate=2, balance=False, score="macro_f1"))


# Which learning rate?

@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("kind", objectives)
def test_a_range_test_leaves_the_model_as_it_was(kind, depth):
    "And finds rates with which it learns; one that goes too far ends early, without an error"
    given = task(kind)
    freeze(model := network(given.objective), depth)
    before, asked, steps = fingerprint(model), model.__dict__.get("objective"), []
    for highest in 1e9, 1e2:
        found = find_learning_rate(model, given, 60, highest=highest, progress=False)
        assert fingerprint(model) == before and model.__dict__.get("objective") is asked
        assert len(found.factors) == 60 and found.plot().axes and found.reason in repr(found)
        steps.append(len(found.losses))
        backbone, head = (rate / own for rate, own in zip(found.suggestion.values(), found.own))
        assert 1e-5 < backbone < 1e2 and head == pytest.approx(backbone)
    assert steps[0] < 60 >= steps[1], "it blew up"
    untrained = evaluate(model, given.test, objective=given.objective)
    fit(model, given, 8, progress=False, **found.suggestion)
    assert evaluate(model, given.test).loss < untrained.loss


def test_a_loss_that_never_falls_suggests_nothing_new():
    "At rates that are all too large, or without a step"
    given, model = task(), network(objectives["classification"])
    found = find_learning_rate(model, given, 12, lowest=1e8, highest=1e9, progress=False)
    assert tuple(found.suggestion.values()) == found.own and "the loss fell at no rate" in found.reason


def test_an_interrupted_range_test_puts_the_weights_back(monkeypatch):
    given, model = task(), network(objectives["classification"])
    before, step, steps = fingerprint(model), Steps.step, []
    def interrupted(self):
        steps.append(step(self))
        if len(steps) == 5: raise KeyboardInterrupt
    monkeypatch.setattr(Steps, "step", interrupted)
    with pytest.raises(KeyboardInterrupt): find_learning_rate(model, given, progress=False)
    assert fingerprint(model) == before and len(steps) == 5


@pytest.mark.parametrize("told, sentence", [
    (dict(steps=1), "steps must be at least 2, got 1"), (dict(lowest=0), "lowest must be at least 1e-09, got 0"),
    (dict(lowest=1, highest=0.5), "highest must be at least 1, got 0.5"), (dict(batch_size=0), "batch_size must be at"),
    (dict(cache=3), "cache must be yes, no, or a folder, got 3"), (dict(precision="half"), "precision must be")])
def test_a_range_that_cannot_be_meant(told, sentence):
    given = task()
    with pytest.raises(ValueError, match=sentence): find_learning_rate(network(given.objective), given, **told)


def test_the_worst_can_be_chosen_on_purpose():
    "The user's score decides, and not ours"
    given, told = task(), []
    def early(judged):
        told.append(judged.accuracy)
        return -len(told)
    freeze(model := network(given.objective), 1)
    history = fit(model, given, epochs=5, score=early, **how)
    assert history.best_epoch == 1 and len(told) == 5 and history.validation_score == -1
    unnamed = type("Unnamed", (), {"__call__": lambda self, judged: judged.accuracy})()
    freeze(model := network(given.objective), 1)
    assert fit(model, given, epochs=1, score=unnamed, **how).score == "score"


@pytest.mark.parametrize("depth", [0, 1])
def test_the_memory_of_a_step_is_told_and_right(depth, monkeypatch, capsys):
    "What the first step holds, as counted while it is made; to be told costs nothing: no random number, no statistic"
    given, held, losses, ended = task(), [], Steps.losses, []
    def counted(steps, *rest):
        tensors = list(model.parameters()) + list(model.buffers())
        with kept_for_backward(tensors) as kept: loss = losses(steps, *rest)
        learnt = sum(p.nbytes for p in model.parameters() if p.requires_grad)
        held.append(sum(t.nbytes for t in tensors) + 3 * learnt + sum(kept.values())) # gradients, and two moments
        return loss
    for progress in False, True: # counting within counting would find nothing, so the second run counts by itself
        monkeypatch.setattr(Steps, "losses", losses if progress else counted)
        model = network(given.objective)
        model[1].append(nn.Dropout(0.2))
        freeze(model, depth)
        history = fit(model, given, epochs=2, accumulate=2, **how | dict(progress=progress))
        ended.append(fingerprint(model))
        assert (history.memory is not None) == progress
    assert ended[0] == ended[1] and history.memory == pytest.approx(held[0], rel=0.03)
    said = capsys.readouterr().err
    assert said.count("a step needs about ") == 1 and " to go back through 16 examples" in said
    assert "foreseen" not in said and "Warning" not in said and (f"; beside it, " in said) == (depth == 1)


class Pairs(nn.Module):
    "Compares each example with each: what that keeps grows with the square of the batch"
    def forward(self, x): return x + 0 * (x[:, None] - x[None]).pow(2).exp().mean(dim=(1, 2))[:, None]


def test_a_step_that_needs_more_than_was_foreseen_is_told(monkeypatch, capsys):
    given = task()
    model = nn.Sequential(nn.Linear(6, 8), nn.Sequential(Pairs(), nn.Linear(8, 3)))
    history = fit(model, given, epochs=2, **how | dict(progress=True, batch_size=48))
    said = capsys.readouterr().err
    assert said.count(", as was foreseen") == 1 and history.memory > 48 * 48 * 8 * 4


def test_too_little_memory_is_told_before_there_is_a_step(monkeypatch, capsys):
    said = []
    class Told(Callback):
        def step(self, run, loss): said.append(capsys.readouterr().err)
    monkeypatch.setattr("finetune_nb.engine.run.free_memory", lambda device: 1000)
    given = task()
    fit(network(given.objective), given, epochs=1, callbacks=[Told()], **how | dict(progress=True))
    assert "Warning: 1 kB of memory is free, and a step adds about " in said[0] and "smaller batch_size" in said[0]
    assert not any("Warning" in later for later in said[1:])


# The time that is left

class Timed(tqdm):
    "A bar that writes down what it said: its name, when, how far it was, the seconds that are left, and the whole"
    said = []
    def display(self, *more, **how):
        about = self.format_dict
        done = self.n - self.initial
        if done and not self.disable:
            rate = about["rate"] or done / about["elapsed"]
            self.said.append((self.desc, time.perf_counter(), self.n, (self.total - self.n) / rate, self.total))


class Slow(nn.Module):
    "Takes its time for each example"
    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.weight = seconds, nn.Parameter(torch.ones(1))

    def forward(self, x):
        time.sleep(self.seconds * len(x))
        return self.weight * x


def test_the_time_left_is_right_from_the_start(monkeypatch):
    "A prefix that takes long has a bar of its own, and what it took is no step's"
    monkeypatch.setattr(run, "tqdm", Timed)
    monkeypatch.setattr("finetune_nb.engine.prefix.tqdm", Timed)
    Timed.said.clear()
    points = torch.randn(136, 60_000) # large, so that few of them go through the prefix together
    large = [Examples(points[a:b], targets(points[a:b], "classification")) for a, b in ((0, 96), (96, 116), (116, 136))]
    below, above = nn.Sequential(nn.Linear(60_000, 8), Slow(0.02)), nn.Sequential(nn.Linear(8, 8), Slow(0.004))
    freeze(model := nn.Sequential(below, above, nn.Linear(8, 3)), 1)
    fit(model, Task("corners", "points", names, *large), epochs=4, **how | dict(progress=True))
    for name, most in ("Frozen prefix, 1 block", 96), ("Training", 24):
        bar = [(when, done, left) for own, when, done, left, total in Timed.said if own == name and total == most]
        early = [(left, bar[-1][0] - when) for when, done, left in bar if done <= most / 2]
        assert early and all(0.5 < left / needed < 2 for left, needed in early), (name, early)


def test_patience_ends_a_fit():
    given = task()
    freeze(model := network(given.objective), 1)
    still = how | dict(learning_rate=0.0, head_learning_rate=0.0)
    history = fit(model, given, epochs=9, patience=2, score=lambda judged: 0.0, **still)
    assert history.stopped == "no improvement on validation for 2 epochs" and len(history.epochs) == 3


# What is refused

@pytest.mark.parametrize("kind, head, sentence", [
    ("classification", 4, "The model gives 4 scores, and 3 are asked for: make the head with num_classes=3"),
    ("multi_label", 2, "The model gives 2 scores, and 3 are asked for"),
    ("regression", 2, "The model gives 2 scores, and 1 are asked for: make the head with the task's objective"),
    ("several", 3, "The model has no head for each of where, much: make it for this objective")])
@pytest.mark.parametrize("depth", [0, 2])
def test_a_head_of_the_wrong_size_is_refused(kind, head, sentence, depth):
    given = task(kind)
    model = network(given.objective)
    model[2] = nn.Linear(24, head)
    freeze(model, depth)
    with pytest.raises(ValueError, match=sentence): fit(model, given, epochs=1, **how)


def test_a_part_of_several_of_the_wrong_size_is_named():
    given = task("several")
    model = network(given.objective)
    model[2]["where"] = nn.Linear(24, 5)
    with pytest.raises(ValueError, match=r"The model gives 5 scores, and 3 are asked for: .* \(where\)"):
        fit(model, given, epochs=1, **how)


def test_a_model_made_for_another_kind_is_refused():
    given = task("regression")
    model = network(given.objective)
    model.objective = objectives["multi_label"]
    sentence = ("The model was made to answer multi label, task 'corners' asks for regression: "
                "make the model with the task's objective")
    with pytest.raises(ValueError, match=sentence): fit(model, given, epochs=1, **how)


def test_what_is_asked_of_numbers_has_to_be_said():
    given = task("regression")
    model = network(given.objective)
    with pytest.raises(ValueError, match="What is asked of this model is not known: fit it first, or say it"):
        evaluate(model, given.test)
    assert evaluate(model, given.test, objective=Regression()).score_name == "r2"
    with pytest.raises(ValueError, match="labels run from 0 to 2, but the 2 classes are numbered 0 to 1"):
        evaluate(network(objectives["classification"]), task().test, objective=Classification(["a", "b"]))


def test_nothing_to_judge_is_refused():
    given = task()
    model = network(given.objective)
    for run, sentence in ((lambda: evaluate(model, given.test.subset([])), "evaluate got no examples"),
                          (lambda: predict(model, []), "predict got no inputs"),
                          (lambda: predict(model, "one text"), "takes a list of inputs, got one text: write predict")):
        with pytest.raises(ValueError, match=sentence): run()


@pytest.mark.parametrize("settings, sentence", [
    (dict(epochs=0), "epochs must be at least 1, got 0"), (dict(batch_size=0), "batch_size must be at least 1"),
    (dict(accumulate=0), "accumulate must be at least 1, got 0"), (dict(accumulate=1.5), "accumulate must be a whole"),
    (dict(patience=0), "patience must be at least 1"), (dict(learning_rate=-1), "learning_rate must be at least 0"),
    (dict(head_learning_rate="fast"), "head_learning_rate must be a number, got 'fast'"),
    (dict(learning_rate="1e-3"), "learning_rate must be a number, got '1e-3'"),
    (dict(learning_rate=float("nan")), "learning_rate must be a number, got nan"),
    (dict(seed=None), "seed must be a whole number, got None"), (dict(seed=-1), "seed must be at least 0, got -1"),
    (dict(seed=2**32), "seed must be at most 4294967295"), (dict(epochs=True), "epochs must be a whole number"),
    (dict(epochs=1.5), "epochs must be a whole number, got 1.5"), (dict(epochs=None), "whole number, got None"),
    (dict(batch_size="4"), "batch_size must be a whole number, got '4'"), (dict(patience=1.5), "patience must be a"),
    (dict(batch_size=1), "BatchNorm cannot learn from one example at a time, .* take batch_size=2 or more, or freeze"),
    (dict(views="2"), "views must be a whole number"), (dict(memory_budget="1GB"), "memory_budget must be a number"),
    (dict(layer_decay=-0.1), "layer_decay must be at least 0"), (dict(layer_decay=2), "layer_decay must be at most 1"),
    (dict(weight_decay=None), "weight_decay must be a number, got None"), (dict(clip="1"), "clip must be a number"),
    (dict(warmup=2), "warmup must be at most 1"), (dict(warmup="0.1"), "warmup must be a number, got '0.1'"),
    (dict(unfreeze_at=3), r"a dictionary of epochs and freeze depths, as in \{3: 0\}, got 3"),
    (dict(unfreeze_at={1: "a"}), "depth must be between 0 and 2, got 'a'"),
    (dict(unfreeze_at={1: -1}), "depth must be between 0 and 2, got -1"),
    (dict(score=3), "score must be a function of an Evaluation, or one of its scores by name, got 3"),
    (dict(score="acuracy"), "score must be one of accuracy, macro_f1, or a function of an Evaluation, got 'acuracy'"),
    (dict(balance="yes"), "balance must be yes or no, got 'yes'"),
    (dict(balance=True, objective=Classification(names, class_weights="balanced")), "leave one of them out, or they"),
    (dict(objective="regression"), r"objective must be an Objective, as in Regression\(\), got 'regression'"),
    (dict(cache=3), "cache must be yes, no, or a folder, got 3"), (dict(checkpoint=True), "must be a folder, got True"),
    (dict(weight_decay=-1), "weight_decay must be at least 0"), (dict(keep_last=0), "keep_last must be at least 1"),
    (dict(clip=0), r"clip must be positive, got 0: .* give float\('inf'\)"),
    (dict(every=0), "every must be at least 1"),
    (dict(precision="half"), "precision must be \"auto\" or \"fp32\", got 'half'"),
    (dict(unfreeze_at={9: 0}), r"unfreeze_at names epochs from 1 to 2, got \[9\]"),
    (dict(unfreeze_at={1: 0, "2": 0}), "an epoch of unfreeze_at must be a whole number, got '2'"),
    (dict(unfreeze_at={1: 2}), "unfreeze_at must go from deep to shallow"),
    (dict(views=2, cache=False), "views=2 says how many .* leave one of them out"),
    (dict(resume=True), "resume=True goes on from checkpoints: say in which folder")],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "")
def test_settings_that_cannot_be_meant(settings, sentence):
    "And the model is left as it was"
    given = task()
    freeze(model := network(given.objective), 0 if settings.get("batch_size") == 1 else 1)
    before = fingerprint(model)
    with pytest.raises(ValueError, match=sentence): fit(model, given, **how | dict(epochs=2) | settings)
    assert fingerprint(model) == before


@pytest.mark.parametrize("call, sentence", [
    (lambda model, given: fit(model, DataLoader([1])), "task must be a Task, as .*, got DataLoader"),
    (lambda model, given: fit(model, given.train), "task must be a Task, .*, got Examples"),
    (lambda model, given: fit("resnet18", given), "model must be a network, a torch.nn.Module, got 'resnet18'"),
    (lambda model, given: fit(nn.Linear, given), "model must be a network, .*, got the class Linear"),
    (lambda model, given: evaluate(model, given), r"must be Examples, .* evaluate\(model, task.test\), got Task"),
    (lambda model, given: evaluate(given.test, model), "model must be a network, .*, got Examples"),
    (lambda model, given: evaluate(model, given.test, objective="accuracy"), "objective must be an Objective"),
    (lambda model, given: evaluate(model, given.test, batch_size=0), "batch_size must be at least 1, got 0"),
    (lambda model, given: evaluate(model, given.test, batch_size="all"), "batch_size must be a whole number"),
    (lambda model, given: evaluate(model, replace(given.test, targets=given.test.targets + 5)),
     "The model gives 3 scores, and 8 are asked for"),
    (lambda model, given: predict(model, None), "inputs must be a list, an array or a column, got None"),
    (lambda model, given: predict(model, dict(x=[1])), "inputs must be a list, an array or a column, got {'x'"),
    (lambda model, given: predict(model, DataLoader([1])), "inputs must be a list, .*, got DataLoader"),
    (lambda model, given: predict(model, ["a", "b"]), "inputs must be numbers, N times in one shape, got .'a', 'b'"),
    (lambda model, given: predict(model, [torch.ones(6), torch.ones(5)]), r"of one shape, got \(6,\) and \(5,\)")])
def test_what_is_something_else_is_refused(call, sentence):
    given = task()
    with pytest.raises(ValueError, match=sentence): call(network(given.objective), given)


def test_inputs_in_any_sequence():
    points = part(8, 0, "classification").inputs
    model = network(objectives["classification"])
    whole = predict(model, points)
    for given in (points.numpy(), points.numpy()[::-1].copy()[::-1], points.tolist(), list(points), iter(points)):
        assert np.array_equal(predict(model, given), whole)


def test_a_model_may_know_more_classes_than_are_seen():
    points = part(8, 0, "classification")
    few = points.subset(points.targets < 2)
    assert evaluate(network(objectives["classification"]), few).probabilities.shape == (len(few), 3)


@pytest.mark.parametrize("rough", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("frozen_only", [False, True])
def test_rough_numbers_do_not_learn(rough, frozen_only):
    "a loss of 63, and no word, was what came of it"
    given = task()
    freeze(model := network(given.objective), 1)
    (model[0] if frozen_only else model).to(rough)
    with pytest.raises(ValueError, match=f"numbers are {rough}, in which small steps are lost: call model.float"):
        fit(model, given, epochs=1, **how)


def test_one_example_at_a_time():
    "is enough where no BatchNorm learns; a batch may be of one because there are no more"
    given, one = task("multi_label"), Examples(torch.ones(1, 6), torch.ones(1, 3))
    for some, more in ((given, dict(batch_size=1)), (replace(given, train=one), {})):
        model = network(given.objective)
        with pytest.raises(ValueError, match="BatchNorm cannot learn from one example at a time"):
            fit(model, some, epochs=1, **how | more)
        freeze(model, 1)
        assert fit(model, some, epochs=1, **how | more).epochs


def test_batchnorm_that_moves_though_nothing_learns_is_told():
    "whoever set requires_grad in a loop of his own"
    given = task()
    by_hand, frozen = network(given.objective), network(given.objective)
    by_hand[0].requires_grad_(False)
    freeze(frozen, 1)
    told = fit(by_hand, given, epochs=1, **how).prefix
    assert told == "0 do not learn, but their BatchNorm moves: freeze(model, depth) stops it"
    assert "moves" not in fit(frozen, given, epochs=1, **how).prefix


def test_a_compiled_network_is_trained_itself():
    given = task()
    plain, model = network(given.objective), network(given.objective)
    compiled = torch.compile(model, backend="eager")
    for own in (plain, compiled): assert freeze(own, 1).depth == 1
    expected = fit(plain, given, epochs=2, **how)
    assert fit(compiled, given, epochs=2, **how).train_loss == expected.train_loss
    assert fingerprint(model) == fingerprint(compiled) == fingerprint(plain)
    assert evaluate(compiled, given.test).loss == evaluate(plain, given.test).loss


def test_home_is_found_in_python_too(monkeypatch, tmp_path):
    given = task()
    freeze(model := network(given.objective), 1)
    for name in ("HOME", "USERPROFILE"): monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fit(model, given, epochs=1, checkpoint="~/steps", cache="~/states", every=1, **how)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["states", "steps"]


def test_a_checkpoint_that_cannot_be_written_costs_no_training(monkeypatch, tmp_path):
    "of a disk that fills up; one that cannot be written to at all is noticed at once"
    given = task()
    expected = fit(network(given.objective), given, epochs=2, **how).train_loss
    def full(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr("os.fsync", full)
    history = fit(network(given.objective), given, epochs=2, checkpoint=tmp_path/"steps", every=2, **how)
    assert history.train_loss == expected and history.prefix.count("No space left on device") == 1
    assert not list((tmp_path/"steps").iterdir())
    (tmp_path/"file").touch()
    with pytest.raises(OSError, match="No checkpoint can be written to .*file' .*: name a folder on a disk"):
        fit(network(given.objective), given, epochs=2, checkpoint=tmp_path/"file", **how)


@pytest.mark.parametrize("given_back", ["best", None, float("nan")])
def test_a_score_that_is_no_number_is_refused(given_back):
    given = task()
    with pytest.raises(ValueError, match="score must give a number, more is better, got"):
        fit(network(given.objective), given, epochs=1, score=lambda judged: given_back, **how)


def test_nothing_that_learns_is_refused():
    given = task()
    model = network(given.objective).requires_grad_(False)
    sentence = r"Nothing can learn: .* Call freeze\(model, depth\), which leaves the head free"
    with pytest.raises(ValueError, match=sentence): fit(model, given, epochs=1, **how)


# When things go wrong

@pytest.mark.parametrize("depth", [0, 2])
def test_a_loss_that_is_no_number_is_told(depth):
    given = task()
    model = network(given.objective)
    freeze(model, depth)
    inputs = given.train.inputs.clone()
    inputs[5] = float("nan")
    broken = replace(given, train=Examples(inputs, given.train.targets))
    sentence = r"The loss became nan at step \d+ \(epoch 1\); this batch's inputs hold values that are not finite"
    with pytest.raises(TrainingDiverged, match=sentence): fit(model, broken, epochs=1, **how)
    assert all(p.isfinite().all() for p in model.parameters()), "it has its best weights so far"


def test_a_rate_that_is_too_large_is_named():
    given = task("regression")
    freeze(model := network(given.objective), 0)
    rates = dict(learning_rate=1e30, head_learning_rate=1e30)
    sentence = r"the learning rate \(backbone 1e\+30, head 1e\+30\) is probably too large"
    with pytest.raises(TrainingDiverged, match=sentence): fit(model, given, epochs=5, **how | rates)


@pytest.mark.parametrize("depth", [0, 2])
def test_an_interruption_keeps_the_best_weights(depth):
    given, model = task(), network(objectives["classification"])
    freeze(model, depth)
    steps = []
    def press(module, inputs):
        if torch.is_grad_enabled(): steps.append(1)
        if len(steps) == 15: raise KeyboardInterrupt # in the third epoch of six steps each
    hook = model[2].register_forward_pre_hook(press)
    history = fit(model, given, epochs=9, precision="fp32", **how)
    hook.remove()
    assert history.stopped == "interrupted" and len(history.epochs) == 2 and history.best_epoch in (1, 2)
    judged = evaluate(model, given.validation, precision="fp32")
    assert judged.score == pytest.approx(history.validation_score)
    assert model.objective.kind == "classification"


# Checkpoints

@pytest.mark.parametrize("kind", objectives)
def test_what_is_asked_is_in_a_checkpoint_and_comes_back(kind, tmp_path, monkeypatch):
    "Killed after its third epoch, it ends as the one that was not"
    given = task(kind)
    def run(folder):
        freeze(model := network(given.objective), 1)
        return model, fit(model, given, epochs=5, checkpoint=folder, every=4, resume=True, precision="fp32", **how)
    expected, whole = run(tmp_path/"whole")
    judge = Run.judge
    def dies(self):
        judge(self)
        if self.epoch == 3: raise RuntimeError("killed")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "judge", dies)
        with pytest.raises(RuntimeError, match="killed"): run(tmp_path/"killed")
    found, history = run(tmp_path/"killed")
    assert fingerprint(found) == fingerprint(expected) and history.train_loss == whole.train_loss
    assert found.objective == expected.objective and found.objective.to_json() == expected.objective.to_json()
    assert history.score == whole.score == first[kind] and history.best_epoch == whole.best_epoch
    again, same = run(tmp_path/"killed") # it was over already
    assert same.epochs == history.epochs and again.objective == expected.objective
    newest = max((tmp_path/"killed").glob("step-*"))
    with safe_open(newest, "pt") as opened: about = json.loads(opened.metadata()["fit"])
    assert about["best_objective"] == json.loads(json.dumps(expected.objective.to_json()))
    assert about["identity"]["objective"]["kind"] == kind


def test_another_objective_is_another_run(tmp_path):
    given = task()
    def run(asked, **more):
        freeze(model := network(asked), 1)
        return fit(model, given, epochs=2, checkpoint=tmp_path, objective=asked, **how | more)
    run(Classification(names))
    with pytest.raises(ValueError, match="belongs to another run; different are: objective"):
        run(Classification(names, label_smoothing=0.1), resume=True)


# Batches

@pytest.mark.parametrize("kind", objectives)
def test_batches_hold_each_example_once_with_its_target(kind):
    given = task(kind)
    batches = Batches(as_model(network(given.objective)), given.train, given.objective, 16, seed=0)
    for epoch in 1, 2:
        seen = []
        for batch in batches.epoch(epoch):
            own = given.train.subset(batch.positions)
            assert torch.equal(batch.inputs, own.inputs) and batch.count == len(own) and batch.states is None
            pairs = [(batch.targets, own.targets)]
            if kind == "several": pairs = [(batch.targets[name], own.targets[name]) for name in own.targets]
            assert all(torch.equal(ours.float(), theirs.float()) for ours, theirs in pairs)
            seen += batch.positions.tolist()
        assert sorted(seen) == list(range(96))
