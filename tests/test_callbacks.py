"""Who is told how a run goes, and a real TensorBoard that reads what a tracker wrote."""
import pytest
import torch
from torch import nn
from finetune_nb import evaluate, fit
from finetune_nb.data import Examples, Task
from finetune_nb.engine.callbacks import Callback, Tracked
from finetune_nb.engine.options import Learning


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(2, 8), nn.ReLU()), nn.Linear(8, 2))


@pytest.fixture
def task():
    points = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    labels = (points.sum(dim=1) > 1).long()
    part = [Examples(points[a:b], labels[a:b]) for a, b in ((0, 24), (24, 32), (32, 40))]
    return Task("halves", "points", ["low", "high"], *part)


class Diary(Callback):
    def __init__(self, stop_at=None): self.said, self.stop_at = [], stop_at
    def begin(self, run): self.said.append(("begin", run.step))
    def epoch(self, run): self.said.append(("epoch", run.history.epochs[-1]["epoch"]))
    def end(self, run): self.said.append(("end", run.step))

    def step(self, run, loss):
        self.said.append(("step", run.step, loss))
        if run.step == self.stop_at: run.stop("enough is enough")


def test_everything_is_told_in_order(task):
    history = fit(network(), task, epochs=2, batch_size=12, progress=False, callbacks=[diary := Diary()])
    assert [(*said, None)[:2] for said in diary.said] == [
        ("begin", 0), ("step", 1), ("step", 2), ("epoch", 1), ("step", 3), ("step", 4), ("epoch", 2), ("end", 4)]
    losses = [said[2] for said in diary.said if said[0] == "step"]
    assert history.train_loss == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2])


@pytest.mark.parametrize("stop_at", (1, 2, 3))
def test_a_run_that_is_stopped_is_judged_and_has_its_best_weights(task, stop_at):
    model = network()
    history = fit(model, task, epochs=5, batch_size=12, progress=False, callbacks=[diary := Diary(stop_at)])
    assert history.stopped == "enough is enough" and diary.said[-1] == ("end", stop_at)
    last = [said[2] for said in diary.said if said[0] == "step"][stop_at - 1]
    if stop_at != 2: assert history.train_loss[-1] == pytest.approx(last), "the mean of the steps that were made"
    assert evaluate(model, task.validation).accuracy == history.validation_accuracy


def test_the_end_is_told_after_an_interruption_and_an_error(task):
    class Breaking(Diary):
        def epoch(self, run): raise self.error
    diary = Breaking()
    diary.error = KeyboardInterrupt()
    assert fit(network(), task, epochs=2, progress=False, callbacks=[diary]).stopped == "interrupted"
    diary.error = RuntimeError("the callback's own")
    with pytest.raises(RuntimeError, match="own"): fit(network(), task, epochs=2, progress=False, callbacks=[diary])
    assert [said[0] for said in diary.said].count("end") == 2


def test_a_run_that_is_taken_up_again_goes_on_counting(task, tmp_path):
    kept = dict(epochs=3, batch_size=12, checkpoint=tmp_path, every=1, progress=False)
    class Cut(Callback):
        def step(self, run, loss):
            if run.step == 3: raise KeyboardInterrupt
    fit(network(), task, callbacks=[Cut()], **kept)
    fit(network(), task, callbacks=[diary := Diary()], resume=True, **kept)
    assert diary.said[0] == ("begin", 3) and diary.said[-1] == ("end", 6)


def test_tensorboard_reads_the_curve(task, tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracked = Tracked("tensorboard", tmp_path, "first")
    history = fit(network(), task, epochs=2, batch_size=12, progress=False, callbacks=[tracked])
    curve = reading.EventAccumulator(str(tmp_path/"first"))
    curve.Reload()
    assert [event.step for event in curve.Scalars("loss")] == [1, 2, 3, 4]
    seen = [event.value for event in curve.Scalars("validation_loss")]
    assert seen == pytest.approx([row["validation_loss"] for row in history.epochs])


def test_the_command_tracks():
    assert "callbacks" not in Learning().settings()
    (tracked,) = Learning(track="tensorboard").settings()["callbacks"]
    assert (tracked.name, str(tracked.folder)) == ("tensorboard", "runs")


def test_what_is_no_callback_is_refused(task):
    with pytest.raises(ValueError, match="a Callback"): fit(network(), task, callbacks=[print], progress=False)
    with pytest.raises(ValueError, match="tensorboard.*got 'nobody'"): Tracked("nobody")
    with pytest.raises(ModuleNotFoundError, match="pip install wandb"): Tracked("wandb")
