"""Folders of boxes as people and accidents write them: what is whole is read, what is not is told of."""
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from finetune_nb import data, preflight
from fuzzing import fuzz, ours
from test_fuzz import damaged, sound

EVERYTHING = ["cat", "dog", "emu"]


@pytest.fixture(scope="module")
def top(tmp_path_factory): return tmp_path_factory.mktemp("boxes")


def boxes_of(rng, size):
    "Some boxes of three classes: a name, and left, top, right and bottom"
    def some():
        left, top = rng.randrange(size[1] - 1), rng.randrange(size[0] - 1)
        return rng.choice(EVERYTHING), (left, top, rng.randint(left + 1, size[1]), rng.randint(top + 1, size[0]))
    return list(dict.fromkeys(some() for _ in range(rng.randint(0, 4))))


def picture(rng, size, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.frombuffer(rng.randbytes(size[0] * size[1] * 3), np.uint8).reshape(*size, 3)
    Image.fromarray(pixels).save(file)


def as_voc(rng, top, told):
    images, xmls = rng.choice([("images", "annotations"), (".", "."), ("JPEGImages", "Annotations")])
    (top/xmls).mkdir(exist_ok=True)
    for name, (size, boxes) in told.items():
        picture(rng, size, top/images/f"{name}.png")
        objects = "".join(f"<object><name>{label}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>"
                          f"<ymax>{d}</ymax></bndbox></object>" for label, (a, b, c, d) in boxes)
        about = f"<filename>{name}.png</filename><size><width>{size[1]}</width><height>{size[0]}</height></size>"
        (top/xmls/f"{name}.xml").write_text(f"<annotation>{about}{objects}</annotation>", encoding="utf-8")


def as_coco(rng, top, told):
    ids = rng.sample(range(rng.choice([3, 90])), 3)
    value = dict(images=[], annotations=[], categories=[dict(id=n, name=name) for n, name in zip(ids, EVERYTHING)])
    for i, (name, (size, boxes)) in enumerate(told.items()):
        picture(rng, size, top/f"{name}.png")
        value["images"].append(dict(id=i, file_name=f"{name}.png", height=size[0], width=size[1]))
        for label, (a, b, c, d) in boxes:
            value["annotations"].append(dict(id=len(value["annotations"]), image_id=i, bbox=[a, b, c - a, d - b],
                                             category_id=ids[EVERYTHING.index(label)]))
    (top/"annotations.json").write_text(json.dumps(value), encoding=rng.choice(["utf-8", "utf-8-sig"]))


def as_yolo(rng, top, told):
    names = rng.choice([EVERYTHING, dict(enumerate(EVERYTHING))])
    (top/"data.yaml").write_text(f"names: {json.dumps(names) if isinstance(names, list) else names}\n")
    (top/"labels").mkdir()
    for name, ((height, width), boxes) in told.items():
        picture(rng, (height, width), top/"images"/f"{name}.png")
        rows = [(EVERYTHING.index(label), (a + c) / 2 / width, (b + d) / 2 / height, (c - a) / width, (d - b) / height)
                for label, (a, b, c, d) in boxes]
        text = "".join(" ".join(map(str, row)) + "\n" for row in rows)
        if text or rng.random() < .5: (top/"labels"/f"{name}.txt").write_text(text)


def as_table(rng, top, told):
    sized = rng.random() < .5
    rows = ["filename,label," + ("x,y,w,h" if sized else "xmin,ymin,xmax,ymax")]
    for name, (size, boxes) in told.items():
        picture(rng, size, top/"pictures"/f"{name}.png")
        for label, (a, b, c, d) in boxes:
            rows.append(",".join(map(str, (f"{name}.png", label, a, b, *((c - a, d - b) if sized else (c, d))))))
        if not boxes: rows.append(f"{name}.png,,,,,")
    (top/"boxes.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def folder_of(rng, top):
    "A folder, and what is where in its images, by name"
    folder = top/str(rng.randrange(10**9))
    folder.mkdir()
    sizes = [(rng.randint(2, 20), rng.randint(2, 20)) for _ in range(rng.randint(4, 8))]
    told = {f"{rng.choice('abé東')}{i}": (size, boxes_of(rng, size)) for i, size in enumerate(sizes)}
    first = next(iter(told))
    told[first] = (20, 20), [(name, (i, i, i + 5, i + 7)) for i, name in enumerate(EVERYTHING)]
    rng.choice([as_voc, as_coco, as_yolo, as_table])(rng, folder, told)
    return folder, told


@fuzz(1000)
def test_whole_folders_are_read(rng, top):
    folder, told = folder_of(rng, top)
    report = preflight.check(folder, most_bad=1, progress=False)
    sound(report)
    assert report.objective == "detection" and not report.skipped, report
    assert sorted(report.classes) == EVERYTHING and len(report.inputs) == len(told)
    for file, target in zip(report.inputs, report.targets):
        size, boxes = told[file.stem]
        corners = map(tuple, target.corners.round(6).tolist())
        found = sorted((target.classes[n], own) for n, own in zip(target.labels, corners))
        assert target.size == size and found == sorted(boxes)
    if report.ok: assert sum(len(getattr(data.task_of(report), part)) for part in data.PARTS) == len(told)
    shutil.rmtree(folder)


def spoilt(rng, value):
    "A JSON value with something else somewhere in it"
    odd = rng.choice([None, -1, 1e9, "x", [], {}, True, float("inf")])
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        if rng.random() < .1: return {other: own for other, own in value.items() if other != key}
        return {**value, key: spoilt(rng, value[key])}
    if isinstance(value, list) and value:
        i = rng.randrange(len(value))
        return [*value[:i], spoilt(rng, value[i]), *value[i + 1:]]
    return odd


@fuzz(2000)
def test_damaged_folders_are_read_or_told_of(rng, top):
    folder, told = folder_of(rng, top)
    for file in rng.sample(files := sorted(path for path in folder.rglob("*") if path.is_file()), min(3, len(files))):
        spoil = rng.choice(["bytes", "bytes", "gone", "another"])
        if file.suffix == ".json" and rng.random() < .7:
            file.write_text(json.dumps(spoilt(rng, json.loads(file.read_text(encoding="utf-8-sig")))))
        elif spoil == "bytes": file.write_bytes(damaged(file.read_bytes(), rng))
        elif spoil == "gone": file.unlink()
        else: file.write_bytes(other.read_bytes() if (other := rng.choice(files)).exists() else b"")
    how = dict(most_bad=1, progress=False, objective=rng.choice([None, "detection"]))
    report = ours(lambda: preflight.check(folder, **how))
    sound(report)
    if report is not None and report.objective == "detection":
        for own in report.targets:
            left, top_, right, bottom = own.corners.T
            assert ((0 <= left) & (left < right) & (right <= own.size[1]) & (0 <= top_) & (top_ < bottom)).all()
        if report.ok: ours(lambda: data.task_of(report))
    shutil.rmtree(folder, ignore_errors=True)
