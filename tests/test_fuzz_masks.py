"""Folders of masks as people and accidents write them: what is whole is read to the pixel, what is not is told of."""
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from finetune_nb import data, preflight
from fuzzing import fuzz, ours
from test_fuzz import damaged, sound
from test_segmentation import packed, runs

EVERYTHING = ["background", "cat", "dog", "emu"]


@pytest.fixture(scope="module")
def top(tmp_path_factory): return tmp_path_factory.mktemp("masks")


def mask_of(rng, size):
    "Some rectangles of three classes"
    mask = np.zeros(size, np.uint8)
    for _ in range(rng.randint(0, 4)):
        top, left = (rng.randrange(side) for side in size)
        mask[top:top + rng.randint(1, size[0]), left:left + rng.randint(1, size[1])] = rng.randint(1, 3)
    return mask


def picture(rng, size, mode, file):
    pixels = np.frombuffer(rng.randbytes(size[0] * size[1] * 3), np.uint8).reshape(*size, 3)
    Image.fromarray(pixels).convert(mode).save(file)


def as_numbers(rng, mask, file, codes):
    values = np.array(codes, np.uint16 if rng.random() < .2 else np.uint8)[mask]
    image = Image.fromarray(values)
    if values.dtype == np.uint8 and rng.random() < .5: image.putpalette(rng.randbytes(768))
    image.save(file)


def as_colours(rng, mask, file, codes):
    values = np.array(codes, np.uint8)[mask]
    if rng.random() < .3: values = np.dstack([values, np.full(mask.shape, 255, np.uint8)])
    Image.fromarray(values).save(file)


def with_pictures(rng, top, names, masks):
    "A folder of masks, as numbers or as colours, with a legend in one of the styles"
    images, drawn, mark = rng.choice([("images", "masks", ""), ("img", "labels", "_mask"), (".", ".", "_seg"),
                                      ("JPEGImages", "SegmentationClass", "")])
    for folder in (images, drawn): (top/folder).mkdir(exist_ok=True)
    if rng.random() < .5:
        write, codes = as_numbers, [0, *rng.sample(range(1, 255), 3)]
        told = dict(zip(EVERYTHING, codes))
        csv = "".join(f"{name},{code}\n" for name, code in told.items())
        legend = rng.choice([("legend.csv", "name,value\n" + csv), ("classes.json", json.dumps(told)),
                             ("classes.json", json.dumps({str(code): name for name, code in told.items()}))])
    else:
        write, codes = as_colours, [(0, 0, 0), (200, 0, 0), (0, 200, 9), (7, 7, 7)]
        told = dict(zip(EVERYTHING, codes))
        csv = "".join(f"{name},{','.join(map(str, code))}\n" for name, code in told.items())
        text = "".join(f"{name}:{','.join(map(str, code))}::\n" for name, code in told.items())
        legend = rng.choice([("class_dict.csv", "name, r, g, b\n" + csv), ("legend.json", json.dumps(told)),
                             ("labelmap.txt", text)])
    (top/legend[0]).write_text(legend[1], encoding=rng.choice(["utf-8", "utf-8-sig"]))
    for name, mask in zip(names, masks):
        picture(rng, mask.shape, rng.choice(["RGB", "L"]), top/images/f"{name}.{rng.choice(['jpg', 'png', 'bmp'])}")
        write(rng, mask, top/drawn/f"{name}{mark}.{rng.choice(['png', 'tif'])}", codes)


def with_runs(rng, top, names, masks):
    "A file of COCO, with runs as numbers or as letters"
    images, annotations = [], []
    for i, (name, mask) in enumerate(zip(names, masks)):
        picture(rng, mask.shape, "RGB", top/f"{name}.png")
        images.append(dict(id=i, file_name=f"{name}.png", height=mask.shape[0], width=mask.shape[1]))
        for number in np.unique(mask[mask > 0]).tolist():
            counts = runs(mask == number)
            own = dict(size=list(mask.shape), counts=packed(counts) if rng.random() < .5 else counts)
            annotations.append(dict(image_id=i, category_id=number, segmentation=own, area=int((mask == number).sum())))
    categories = [dict(id=i, name=name) for i, name in enumerate(EVERYTHING) if i]
    told = dict(images=images, annotations=annotations, categories=categories)
    (top/"annotations.json").write_text(json.dumps(told))


def folder_of(rng, top):
    "A folder, and the masks in it by name"
    folder = top/str(rng.randrange(10**9))
    folder.mkdir()
    names = [f"{rng.choice('abé東')}{i} {rng.choice('xy')}" for i in range(rng.randint(4, 8))]
    masks = [mask_of(rng, (rng.randint(1, 20), rng.randint(1, 20))) for _ in names]
    masks[0] = np.array([[0, 1, 2, 3]], np.uint8)
    rng.choice([with_pictures, with_pictures, with_runs])(rng, folder, names, masks)
    return folder, dict(zip(names, masks))


@fuzz(1000)
def test_whole_folders_are_read_to_the_pixel(rng, top):
    folder, told = folder_of(rng, top)
    report = preflight.check(folder, most_bad=1, progress=False)
    sound(report)
    assert report.objective == "segmentation" and not report.skipped, report
    assert sorted(report.classes) == EVERYTHING and len(report.inputs) == len(told)
    for file, target in zip(report.inputs, report.targets):
        names = np.array([report.classes[number] for number in range(4)])
        assert np.array_equal(names[np.asarray(target)], np.array(EVERYTHING)[told[file.stem]])
    task = ours(lambda: data.task_of(report)) # none, if by chance there is one class alone to learn from
    if task: assert sum(len(getattr(task, part)) for part in data.PARTS) == len(told)
    shutil.rmtree(folder)


@fuzz(1000)
def test_damaged_folders_are_read_or_told_of(rng, top):
    folder, told = folder_of(rng, top)
    for file in rng.sample(files := sorted(path for path in folder.rglob("*") if path.is_file()), min(3, len(files))):
        spoil = rng.choice(["bytes", "bytes", "gone", "another"])
        if spoil == "bytes": file.write_bytes(damaged(file.read_bytes(), rng))
        elif spoil == "gone": file.unlink()
        elif (another := rng.choice(files)).exists() and another != file: shutil.copy(another, file)
        else: file.write_bytes(b"")
    how = dict(most_bad=1, progress=False, objective=rng.choice([None, "segmentation"]))
    report = ours(lambda: preflight.check(folder, **how))
    sound(report)
    if report is not None and report.objective == "segmentation":
        assert all(set(target.present) <= {*range(len(report.classes))} for target in report.targets)
        if report.ok: ours(lambda: data.task_of(report))
    shutil.rmtree(folder, ignore_errors=True)
