"""How sure a model is: by hand, with planted temperatures, saved and loaded, and in the command."""
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax

import finetune_nb
from conftest import tiny_bert
from finetune_nb import evaluate, fit, freeze, saving, text, vision
from finetune_nb.confidence import best_temperature, calibrate, calibration_error, reliability, strangeness
from finetune_nb.data import Examples, Task
from finetune_nb.engine.labels import Classification
from finetune_nb.engine.numbers import Regression
from finetune_nb.training import predict
from mosaic import Mosaic # which registers its family


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    "A model of texts that has learnt words, and a task where many validation labels are wrong"
    tiny, rng = tiny_bert(tmp_path_factory.mktemp("tiny")), np.random.default_rng(0)
    def part(n, wrong=0.0):
        labels = np.arange(n) % 2
        inputs = [f"it is {('dull', 'bright')[label]} {i}" for i, label in enumerate(labels)]
        return Examples(inputs, np.where(rng.random(n) < wrong, 1 - labels, labels))
    task = Task("words", "text", Classification(["dull", "bright"]), part(40), part(20), part(20))
    model = text.classifier(tiny, task)
    history = fit(model, task, epochs=8, learning_rate=1e-2, head_learning_rate=1e-2, progress=False)
    return model, replace(task, validation=part(40, wrong=.4)), history


def told(rng, n, temperature, classes=4):
    "Labels drawn from probabilities, and what is said by scores that are too large by a temperature"
    scores = rng.standard_normal((n, classes)) * 2
    labels = [rng.choice(classes, p=p) for p in softmax(scores, 1)]
    return softmax(scores * temperature, 1), np.array(labels)


@pytest.mark.parametrize("planted", [0.5, 1, 3])
def test_a_planted_temperature_is_found(planted):
    probabilities, labels = told(np.random.default_rng(0), 4000, planted)
    found = best_temperature(probabilities, labels)
    mended = softmax(np.log(probabilities) / found, 1)
    assert found == pytest.approx(planted, rel=.1) and calibration_error(mended, labels) < .03
    if planted != 1: assert calibration_error(probabilities, labels) > .08


def test_by_hand():
    sure = np.array([[.9, .1], [.9, .1], [.3, .7], [.45, .55]])
    rows = reliability(sure, [0, 1, 1, 0], bins=10)
    assert rows.examples.tolist() == [1, 1, 2] and rows.certainty.tolist() == pytest.approx([.55, .7, .9])
    assert rows.accuracy.tolist() == [0, 1, .5]
    assert calibration_error(sure, [0, 1, 1, 0], bins=10) == pytest.approx((.55 + .3 + 2 * .4) / 4)
    assert reliability([[0, 1.]], [1]).index.tolist() == [9], "certain is in the last bin"


def test_calibrated_saved_and_loaded(reader, tmp_path):
    model, task, history = reader
    before = evaluate(model, task.validation)
    found = calibrate(model, task)
    after = evaluate(model, task.validation)
    assert found > 1 and (after.answers.argmax(1) == before.answers.argmax(1)).all()
    assert calibration_error(after.answers, after.targets) < calibration_error(before.answers, before.targets) / 2
    assert after.loss == before.loss, "the loss is of the scores"
    assert calibrate(model, task) == pytest.approx(found), "and not of a temperature on top of the other"
    saved = finetune_nb.load(saving.save(tmp_path/"m", model, task, history, evaluate(model, task.test)))
    assert np.allclose(predict(saved.model, task.test.inputs), predict(model, task.test.inputs))
    model.objective = task.objective


def test_only_a_classifier_has_a_temperature():
    model = vision.classifier("mosaic-tiny", Regression(["stars"]))
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    part = Examples(images, [1., 2., 3., 4.])
    with pytest.raises(ValueError, match="temperature is for one class an example, and this model answers regression"):
        calibrate(model, Task("t", "image", Regression(["stars"]), part, part, part))
    with pytest.raises(ValueError, match="temperature must be above 0"): Classification(["a", "b"], temperature=0)


@pytest.mark.parametrize("labels", [[0, 1], [], [[0, 1, 0]]])
def test_shapes_must_fit(labels):
    with pytest.raises(ValueError,
                       match="float.N, C. and labels int.N., N at least 1"
                             "|labels must have 1 dimensions and not be empty"):
        best_temperature(np.full((3, 2), .5), labels)


def test_it_abstains_below_a_limit(command, reader, tmp_path):
    model, task, history = reader
    folder = saving.save(tmp_path/"m", model, task, history, evaluate(model, task.test))
    saved, asked = finetune_nb.load(folder), ["it is dull", "who knows"]
    free = saved.predict(asked)
    limit = float(free.probability.mean())
    rows = saved.predict(asked, abstain=limit)
    assert rows.probability.tolist() == free.probability.tolist()
    named = rows["class"].notna().tolist()
    assert named == (free.probability >= limit).tolist() and not all(named)
    with pytest.raises(ValueError, match="abstain must be"): saved.predict(asked, abstain=2)
    (tmp_path/"asked.csv").write_text("\n".join(["text", *asked]))
    code, out, _ = command("predict", folder, tmp_path/"asked.csv", "--abstain", limit, "--json")
    printed = [json.loads(line)["class"] for line in out.splitlines()]
    assert not code and [name is not None for name in printed] == named


def test_the_command_calibrates(command, tmp_path):
    "The result, the card and the saved model know the temperature, and abstaining counts on it"
    rng, tiny = np.random.default_rng(0), tiny_bert(tmp_path/"tiny")
    def row(part, i):
        wrong = rng.random() < .3 # so nobody can be as sure as it gets
        return f"it is {('dull', 'bright')[i % 2]} {i},{('sad', 'glad')[i % 2 ^ wrong]},{part}"
    parts = ["train"] * 40 + ["validation"] * 40 + ["test"] * 20
    (tmp_path/"own.csv").write_text("\n".join(["text,label,split", *(row(*own[::-1]) for own in enumerate(parts))]))
    how = ["text", tmp_path/"own.csv", "--backbone", tiny, "--epochs", "4", "--freeze-depth", "0", "--label-column",
           "label", "--learning-rate", "1e-2", "--head-learning-rate", "1e-2"]
    code, out, err = command(*how, "--calibrate", "--out", tmp_path/"mine")
    assert code == 0, err
    result, card = (json.loads((tmp_path/"mine"/"result.json").read_text()), (tmp_path/"mine"/"README.md").read_text())
    temperature = result["temperature"]
    assert abs(np.log(temperature)) > .05, "it has something to do"
    assert re.search(rf"temperature +{temperature:.2f}", out) and re.search(r"test calibration error .*without it", out)
    assert f"temperature of {temperature:.2f}, found on the 40 validation examples" in card and "points apart" in card
    code, out, _ = command(*how, "--out", tmp_path/"plain", "--json")
    assert "temperature" not in json.loads(out) and "temperature" not in (tmp_path/"plain"/"README.md").read_text()

    (tmp_path/"asked.csv").write_text("text\nit is dull 7")
    def told(model, *more):
        code, out, _ = command("predict", tmp_path/model, tmp_path/"asked.csv", "--json", *more)
        return json.loads(out)
    plain, mine = told("plain")["probability"], told("mine")["probability"]
    scores = np.log([plain, 1 - plain]) / temperature
    assert mine == pytest.approx(softmax(scores)[0], abs=1e-3) and abs(mine - plain) > .001
    limit = (mine + plain) / 2
    named = {model: told(model, "--abstain", limit)["class"] is not None for model in ("plain", "mine")}
    assert named == dict(plain=plain > mine, mine=mine > plain)


def test_the_command_refuses_to_calibrate_numbers_before_it_learns(command, tmp_path):
    (tmp_path/"stars.csv").write_text("\n".join(["text,stars", *(f"word {i},{i}.5" for i in range(40))]))
    code, out, err = command("text", tmp_path/"stars.csv", "--calibrate", "--backbone", tiny_bert(tmp_path/"tiny"))
    assert code == 1 and not out and "--calibrate is for tasks where each example has one of the classes" in err
    assert "regression: leave it out" in err and "epoch" not in err


@pytest.mark.parametrize("depth", [0, 2])
def test_what_was_learnt_is_not_strange(reader, depth):
    model, task, _ = reader
    freeze(model, depth)
    known = strangeness(model, task, task.train.inputs)
    other = strangeness(model, task, ["Import the module!", "quarterly earnings, 1912"])
    assert known.max() < 1e-3 < other.min() and other.max() <= 2
    assert (strangeness(model, task, task.test.inputs, neighbour=5) >= strangeness(model, task, task.test.inputs)).all()
    with pytest.raises(ValueError, match="neighbour must be"): strangeness(model, task, ["a"], neighbour=41)
