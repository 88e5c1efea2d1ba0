"""The page that trains a head, in a real browser that can reach nothing but the site: is it what `fit` does?"""
import json
import re
import nbformat
import numpy as np
import pytest
import torch
from conftest import load, root
from finetune_nb import data, text, vision

files, address = root/"nbs"/"learn_here", "learn_here.html"
measured = json.loads((root/"nbs"/"measured"/"learn_here.json").read_text(encoding="utf-8"))["rows"]
controls = dict(labels_per_class="labelsPerClass", epochs="epochs", seed="seed")
button, refused, said = "[data-tasks] button", "#learn-refused", "[data-tasks] .said"
until_done = f"document.querySelector('{button}').textContent != 'Stop'"
last_run = """() => (({rows, best}) => ({loss: rows.map(row => row.trainLoss), chosen: best.epoch,
  accuracy: best.test.accuracy, answers: best.test.answers}))(learnHere.tried.at(-1))"""


@pytest.fixture(scope="module")
def lesson():
    "What the lesson's cells define: how Python reads the page's file, and trains on it"
    cells = [cell.source for cell in nbformat.read(root/"nbs"/"01d_learn_here.ipynb", 4).cells]
    names = dict(page=files)
    for start, end in {"import json, zlib": None, "def head_of": "of_one =", "class PageData": None,
                       "torch.set_num_threads": "digits, topics ="}.items():
        (source,) = (cell for cell in cells if cell.startswith(start))
        exec(source.partition(end)[0] if end else source, names)
    return names


def choose(page, row):
    "The controls, moved as a reader moves them; a slider has a place for each value"
    page.locator(f".learn-here input[value={row['task']}]").check()
    for name, control in controls.items(): page.locator(f"#learn-{control}").fill(str(row[name]))
    rate = page.locator("#learn-learningRate")
    rate.press("Home")
    for _ in range(20):
        if float(rate.get_attribute("aria-valuetext")) >= row["learning_rate"]: break
        rate.press("ArrowRight")
    assert float(rate.get_attribute("aria-valuetext")) == row["learning_rate"]


def run(page, row):
    "What came of a run with the settings of `row`"
    choose(page, row)
    page.locator(button).click()
    page.wait_for_function(until_done)
    assert not page.locator(refused).inner_text()
    return page.evaluate(last_run)


@pytest.fixture
def opened(visitor, base):
    def open_page(*how):
        page, wrong = visitor(*how)
        page.goto(base + address)
        return page, wrong
    return open_page


def test_a_browser_agrees_with_fit_to_a_point(opened, lesson):
    "With a fit of the whole network, which the lesson has saved; and on the very same numbers, step by step"
    page, wrong = opened()
    assert {(row["task"], row["learning_rate"]) for row in measured} >= {("digits", 0.01), ("topics", 0.002)}
    for row in measured:
        found = run(page, row)
        assert abs(found["accuracy"] - row["accuracy"]) <= 0.01, row
        assert len(found["loss"]) == row["epochs"]
        assert found["loss"][0] == pytest.approx(row["train_loss"][0], rel=0.01)
        if row["task"] == "digits": # sentences of like length go together, and a head alone knows no length
            own = lesson["PageData"](row["task"])
            head, task = own.head(), own.task(row["labels_per_class"])
            how = dict(head_learning_rate=row["learning_rate"], seed=row["seed"], progress=False)
            history = lesson["fit"](head, task, row["epochs"], **how)
            assert found["accuracy"] == pytest.approx(lesson["evaluate"](head, task.test).accuracy, abs=0.003)
            assert found["loss"] == pytest.approx([each["train_loss"] for each in history.epochs], rel=0.02, abs=1e-3)
        shown = f"{100 * found['accuracy']:.1f} %"
        assert shown in page.locator(".runs tbody tr").first.inner_text()
        assert shown in page.locator(said).inner_text()
    assert page.locator(".runs tbody tr").count() == len(measured)
    assert page.locator("svg.accuracy .earlier").count() == 1
    assert not wrong, "\n".join(wrong)


def test_from_a_disk_too_it_shows_what_the_head_answers(visitor, site):
    page, wrong = visitor(base="file:")
    page.goto((site/address).as_uri())
    found = run(page, measured[0])
    assert abs(found["accuracy"] - measured[0]["accuracy"]) <= 0.01
    cells = page.locator(".confusion td:not(:first-child), .confusion tbody td").all_inner_texts()
    table = np.array([cell for cell in cells if cell.strip()], int).reshape(10, 10)
    labels = page.evaluate("Array.from(learnHere.loaded.digits.labels).slice(400)")
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (labels, found["answers"]), 1)
    assert (table == expected).all() and table.trace() == round(1000 * found["accuracy"])
    assert f"of the {1000 - table.trace()} that it gets wrong" in page.locator(".wrong").inner_text()
    drawn = "canvas => canvas.getContext('2d').getImageData(0, 0, 28, 28).data.some(value => value < 200)"
    assert page.locator(".wrong canvas").count() == 12 and page.locator(".wrong canvas").first.evaluate(drawn)
    python = page.locator("[data-tasks] pre").text_content()
    assert "labels_per_class=5" in python and "epochs=20, head_learning_rate=0.01, seed=0" in python
    assert not wrong, "\n".join(wrong)


def test_the_dice_are_python_s(opened):
    page, _ = opened()
    seeds = [(0, 1), (7, 3), (2**32 - 1, 200)]
    expected = [int(np.random.SeedSequence(seed).generate_state(1)[0]) for seed in seeds]
    assert page.evaluate("seeds => seeds.map(seed => learnHere.seedOf(...seed))", seeds) == expected
    for seed in 0, 5, 2**32 - 1:
        generator = torch.Generator().manual_seed(seed)
        order = [torch.randperm(count, generator=generator).tolist() for count in (200, 700, 1)]
        twister = "seed => (twister => [200, 700, 1].map(count => learnHere.shuffled(count, twister)))"
        assert page.evaluate(f"{twister}(new learnHere.Twister(seed))", seed) == order


def test_a_run_is_stopped_and_the_next_one_is_whole(opened):
    page, wrong = opened()
    train = page.locator(button)
    assert re.fullmatch(r"Load 0\.\d MB and train", train.inner_text())
    page.locator("#learn-epochs").fill("200")
    train.click()
    page.wait_for_function("document.querySelector('.learn-here progress').value > 0")
    assert train.inner_text() == "Stop"
    train.click()
    page.wait_for_function(until_done)
    assert re.match(r"Stopped after epoch \d+ of 200: ", page.locator(said).inner_text())
    assert train.inner_text() == "Train"
    found = run(page, measured[0])
    assert len(found["loss"]) == measured[0]["epochs"] and abs(found["accuracy"] - measured[0]["accuracy"]) <= 0.01
    assert not wrong, "\n".join(wrong)


def test_by_keys_alone(opened):
    page, _ = opened()
    page.locator("#learn-labelsPerClass").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("label[for=learn-labelsPerClass] output").inner_text() == "6"
    for _ in range(2): page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type("3")
    page.keyboard.press("Enter") # in a field, as in any form
    page.wait_for_function("learnHere.tried.length == 1")
    assert page.evaluate("[learnHere.tried[0].epochs, learnHere.tried[0].labelsPerClass]") == [3, 6]


def test_a_bad_value_is_refused_in_words(opened):
    page, wrong = opened()
    for name, given, words in [
            ("epochs", "0", "Epochs must be a whole number from 1 to 200, got 0."), ("epochs", "ten", "got ten."),
            ("epochs", "", "got nothing."), ("epochs", "201", "got 201."), ("seed", "1.5", "got 1.5."),
            ("seed", "-1", "The seed must be a whole number from 0 to 9999, got -1.")]:
        field = page.locator(f"#learn-{name}")
        field.fill(given)
        page.locator(button).click()
        assert page.locator(refused).inner_text().endswith(words)
        assert field.get_attribute("aria-invalid") == "true"
        field.fill("7")
        assert not page.locator(refused).inner_text()
    assert page.evaluate("[Object.keys(learnHere.loaded).length, learnHere.tried.length]") == [0, 0] and not wrong


def test_data_that_are_not_there_are_told_of(opened):
    page, _ = opened()
    page.route("**/digits.js", lambda route: route.abort())
    page.locator(button).click()
    page.wait_for_function(f"document.querySelector('{refused}').textContent")
    assert "digits.js, cannot be loaded" in page.locator(refused).inner_text()
    assert "Load" in page.locator(button).inner_text()


def serious_faults(page):
    "In what the scripts have made"
    from axe_playwright_python.sync_playwright import Axe
    found = Axe().run(page, context=".learn-here").response["violations"]
    grave = [fault for fault in found if fault["impact"] in ("serious", "critical")]
    return "\n".join(f"{fault['help']}: {fault['nodes'][0]['html'][:200]}" for fault in grave)


def test_the_page_is_accessible_after_a_run(opened):
    page, wrong = opened()
    for row in measured[2], measured[0]: run(page, {**row, "epochs": 3})
    page.locator("[data-tasks] summary").click()
    assert not serious_faults(page) and not wrong, "\n".join(wrong)
    run(page, {**measured[2], "epochs": 3}) # with long names of classes
    page.set_viewport_size(dict(width=390, height=900))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_it_is_small_and_the_site_has_all_of_it(site):
    sizes = {file.name: file.stat().st_size for file in files.iterdir()}
    assert {"fit.js", "page.js", "page.css", "digits.js", "topics.js"} <= set(sizes)
    assert sum(sizes.values()) < 1_500_000
    for name in sizes: assert (site/"learn_here"/name).read_bytes() == (files/name).read_bytes()


@pytest.mark.parametrize("name, module, backbone, more", [
    ("digits", vision, "resnet18-fractal", {}), ("topics", text, "minilm", dict(dropout=0))])
def test_the_numbers_are_the_backbone_s(lesson, name, module, backbone, more):
    "Of a few test examples, within the rounding; and the head begins as `classifier` makes it"
    own, task = lesson["PageData"](name), getattr(data, name)(20)
    if task.made["fingerprint"] != own.about["made"]["fingerprint"]: pytest.skip("other libraries, other sentences")
    model, few = module.classifier(backbone, task, **more), range(0, 1000, 40)
    exact = lesson["states"](model, task.test.subset(list(few)).inputs)
    assert (exact - own.states[400:][list(few)]).abs().max() < 0.75 * own.about["scale"]
    assert own.labels[400:].equal(task.test.labels) and own.labels[:200].equal(task.train.labels)
    assert torch.equal(own.head()[0].weight, lesson["head_of"](model).weight)
    five = getattr(data, name)(5).train.labels
    assert own.task(5).train.labels.equal(five)


# Drawing

circle = [(0.5 + 0.2 * np.sin(turn), 0.5 - 0.35 * np.cos(turn)) for turn in np.linspace(0, 2 * np.pi, 25)]
drawings = {"0": [circle], "1": [[(0.52, 0.15), (0.5, 0.4), (0.48, 0.85)]],
            "7": [[(0.25, 0.2), (0.5, 0.2), (0.75, 0.2), (0.6, 0.5), (0.45, 0.85)]]}


def draw(page, strokes):
    "What the page says to strokes of the mouse; their points are shares of the paper's sides"
    page.locator(".clear").click()
    paper = page.locator(".paper")
    paper.scroll_into_view_if_needed()
    box = paper.bounding_box()
    for stroke in strokes:
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]: page.mouse.move(*place)
        page.mouse.up()
    return page.locator(".draw-here .said").inner_text()


def test_a_drawn_digit_is_read(opened, lesson):
    page, wrong = opened(390, "dark")
    run(page, measured[0])
    page.locator(".load").click()
    page.locator(".board").wait_for()
    for digit, strokes in drawings.items():
        assert f"The head with 5 labels per class answers {digit}, with" in draw(page, strokes)
        shares = [float(share.rstrip(" %")) for share in page.locator(".bars span").all_inner_texts()]
        assert len(shares) == 10 and abs(sum(shares) - 100) < 0.6 and shares[int(digit)] == max(shares)
    moved = [[(x / 3 + 0.6, y / 3 + 0.6) for x, y in circle]] # small, and in a corner
    assert "answers 0" in draw(page, moved)
    page.locator(".another").press("Enter") # for who cannot draw
    assert re.match(r"A \d of the test digits\. The head", page.locator(".draw-here .said").inner_text())
    assert not serious_faults(page) and page.evaluate("document.documentElement.scrollWidth") <= 390
    is_the_package_s_backbone(page, lesson)
    assert not wrong, "\n".join(wrong)


def is_the_package_s_backbone(page, lesson):
    "On its own images: the states differ by the rounding of the weights, and no more"
    few = data.digits(1).test.subset([0, 500])
    exact = lesson["states"](vision.classifier("resnet18-fractal", 10), few.inputs).numpy()
    for image, expected in zip(few.inputs, exact):
        pixels = image.flatten().tolist()
        found = np.array(page.evaluate("pixels => Array.from(learnHere.network().states(pixels))", pixels))
        alike = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
        assert alike > 0.9995 and np.abs(found - expected).max() < 0.03 * expected.max()


def test_nothing_is_drawn_before_something_has_learnt(opened, site):
    page, wrong = opened()
    megabytes = (site/"learn_here"/"body.js").stat().st_size / 1e6
    assert page.locator(".load").inner_text() == f"Load {megabytes:.0f} MB and draw" and megabytes < 15
    page.locator(".load").click()
    page.wait_for_function("document.querySelector('.draw-here .refused').textContent")
    assert "No head has learnt the digits yet" in page.locator(".draw-here .refused").inner_text() and not wrong


def test_a_folded_convolution_does_what_both_did():
    tensors = {name: torch.randn(4).double().numpy() for name in ("n.weight", "n.bias", "n.running_mean")}
    tensors |= {"n.running_var": np.full(4, 0.5), "c.weight": torch.randn(4, 3, 3, 3).double().numpy()}
    kernel, bias = load(root/"tools"/"body.py").folded(tensors, "c", "n")
    x, given = torch.randn(1, 3, 5, 5), {name: torch.from_numpy(own).float() for name, own in tensors.items()}
    between = torch.nn.functional.conv2d(x, given["c.weight"])
    both = torch.nn.functional.batch_norm(between, *(given[f"n.{name}"] for name in (
        "running_mean", "running_var", "weight", "bias")))
    once = torch.nn.functional.conv2d(x, torch.from_numpy(kernel), torch.from_numpy(bias))
    assert torch.allclose(once, both, atol=1e-5)
