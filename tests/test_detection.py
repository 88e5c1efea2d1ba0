"""Boxes, from files to files: scores, the model, and every contract that an objective has to keep."""
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

import finetune_nb
import ladder # which registers its family
from conftest import root
from finetune_nb import data, depth, evaluate, fit, freeze, interpret, preflight, saving, vision
from finetune_nb.cache import Cut
from finetune_nb.data import Examples, Task
from finetune_nb.engine.boxes import Boxes, matched, overlaps
from finetune_nb.engine.box_writers import in_coco
from finetune_nb.engine.detection import Detection, counted
from finetune_nb.freezing import blocks, fingerprint
from finetune_nb.training import predict
from processes import fit_to_the_kill, killed_and_resumed, same_in_two

how = dict(epochs=5, batch_size=6, learning_rate=1e-2, head_learning_rate=3e-3, progress=False)
CLASSES = ["red", "green"]


def scene(rng, size=(48, 64), most=3):
    "A dark picture with up to so many rectangles, and what is where"
    pixels, corners, labels = rng.integers(60, size=(*size, 3), dtype=np.uint8), [], []
    for _ in range(rng.integers(most + 1)):
        height, width = (int(side * rng.uniform(.2, .4)) for side in size)
        top, left, label = *(rng.integers(0, side - own) for side, own in zip(size, (height, width))), rng.integers(2)
        area = slice(top, top + height), slice(left, left + width)
        pixels[area] = pixels[area] // 4 + np.array([[190, 20, 20], [20, 190, 20]][label], np.uint8)
        corners.append([left, top, left + width, top + height])
        labels.append(label)
    return pixels, Boxes(corners, labels, size)


def examples(count, seed, **more):
    rng = np.random.default_rng(seed)
    drawn = [scene(rng, **more) for _ in range(count)]
    return Examples(torch.stack([torch.from_numpy(pixels).movedim(2, 0) for pixels, _ in drawn]), [b for _, b in drawn])


def task_of_scenes(sizes=(36, 16, 16)):
    return Task("rectangles", "image", Detection(CLASSES), *map(examples, sizes, range(3)))


def detector(frozen=0, dtype=torch.float32, **options):
    model = vision.detector("ladder-tiny", task_of_scenes(), 48, width=8, **options).to(dtype)
    model.proposals = model.head.regions.proposals = 60 # fewer are faster
    freeze(model, frozen)
    return model


# Scores

def crowded(rng, count=6, most=30):
    "Images with true boxes and some that were found, crowds among them"
    def some(n):
        corners = rng.uniform(0, 200, (n, 4))
        return np.concatenate([np.minimum(*corners.reshape(n, 2, 2).swapaxes(0, 1)),
                               np.maximum(*corners.reshape(n, 2, 2).swapaxes(0, 1)) + 1], 1)
    for _ in range(count):
        n, m = rng.integers(most + 1, size=2)
        true = Boxes(some(n), rng.integers(3, size=n), (202, 202), rng.random(n) < .1)
        near = np.concatenate([true.corners + rng.normal(0, 4, (n, 4)), some(m)]).clip(0)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        labels = np.concatenate([true.labels, rng.integers(3, size=m)])
        yield true, Boxes(near, labels, (202, 202), scores=rng.random(n + m))


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_pycocotools(seed, capsys):
    pycocotools, evaluator = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    true, found = zip(*crowded(np.random.default_rng(seed)))
    ours = counted(found, true, ["a", "b", "c"])
    theirs = pycocotools.COCO()
    theirs.dataset = in_coco(true, ["a", "b", "c"])
    theirs.createIndex()
    scored = theirs.loadRes([own for own in in_coco(found, ["a", "b", "c"])["annotations"]])
    judge = evaluator.COCOeval(theirs, scored, "bbox")
    judge.evaluate(), judge.accumulate(), judge.summarize()
    expected = judge.stats # mAP, mAP50, mAP75, by size, recall of 1, 10 and 100, by size
    told = [ours.ap(), ours.ap(overlap=0), ours.ap(overlap=5), *map(ours.ap, (1, 2, 3)), ours.recall[..., 0]]
    for own, other in zip(told, [*expected[:6], expected[8]]): assert abs(np.nanmean(own) - other) < 1e-6


def test_all_of_500_boxes_count():
    "In one image, of which COCO would look at a hundred"
    corners = [[x, y, x + 8, y + 8] for x in range(0, 250, 10) for y in range(0, 200, 10)]
    true = Boxes(corners, [0] * 500, (200, 250))
    found = Boxes(corners, [0] * 500, (200, 250), scores=np.linspace(1, .6, 500))
    judged = Detection(["cell"]).judge([found], [true], np.zeros(1))
    assert judged.map == 1 and judged.recall == .2 and judged.each.tolist() == [1]
    every = Examples([torch.zeros(3, 200, 250, dtype=torch.uint8)], [true])
    task = Task("full", "image", Detection(["cell"]), every, every, every)
    model = vision.detector("ladder-tiny", task, 200, width=8)
    assert model.proposals == 1500 and task.objective.fitted(task.train.targets).most == 1000
    fit(model, task, **how | dict(epochs=1))


def test_a_box_is_found_once_by_the_surest():
    rng = np.random.default_rng(0)
    for true, found in crowded(rng, 30, 12):
        which = matched(found, true)
        hits = which[which >= 0]
        assert len({*hits}) == len(hits) and not true.ignored[hits].any()
        share = overlaps(found, true)
        assert all(share[i, j] >= .5 and found.labels[i] == true.labels[j] for i, j in enumerate(which) if j >= 0)


# The model

def test_the_loss_of_an_image_does_not_depend_on_its_batch():
    "Nor on where it stands in it; an image without boxes has one, too"
    model, task = detector(dtype=torch.float64).eval(), task_of_scenes()
    encoded, targets = model.encode_pairs(task.train.inputs[:6], task.train.targets[:6])
    assert any(len(own) == 0 for own in targets)
    def losses(which):
        batch = task.objective.collate([targets[i] for i in which], torch.tensor(which) + 7)
        with torch.no_grad(): return model(model.collate([encoded[i] for i in which]), batch)["losses"]
    together = losses([0, 1, 2, 3, 4, 5])
    for which in ([3], [5, 2], [4, 0, 1]): assert torch.allclose(losses(which), together[which], rtol=1e-6)
    assert torch.isfinite(together).all() and (together[:, 0] > 0).all()


def test_boxes_follow_images():
    "Resized, mirrored, turned and enlarged; what leaves the picture goes, and an empty image stays"
    pixels = torch.zeros(3, 40, 60, dtype=torch.uint8)
    pixels[:, 5:25, 10:40] = 255
    drawn = Boxes([[10, 5, 40, 25], [0, 30, 6, 40]], [1, 0], (40, 60), [False, True])
    task = Task("marked", "image", Detection(CLASSES), *[Examples([pixels, pixels], [drawn, drawn])] * 3)
    moved = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomAffine(0, (.4, .4), (.8, 1.2)), v2.ColorJitter(.1)])
    model = vision.detector("ladder-tiny", task, 48, augment=moved)
    assert model.preprocessing.canvas == (48, 80)
    (image,), (target,) = model.encode_pairs([pixels], [drawn])
    gone = 0
    for seed in range(40):
        torch.manual_seed(seed)
        seen, own = model.vary(image, target)
        gone += len(own) < 2
        for label, (left, top, right, bottom) in zip(own.labels, own.corners.round().astype(int)):
            if label == 1:
                spot = (seen[0] > 200).nonzero()
                assert np.abs([*spot.amin(0), *(spot.amax(0) + 1)] - np.array([top, left, bottom, right])).max() <= 2
    assert gone and own.ignored.tolist() == (own.labels == 0).tolist()
    empty = Boxes([], [], (40, 60))
    assert len(model.vary(image, empty.onto((48, 80)))[1]) == 0


def test_boxes_come_back_in_pixels_of_the_image():
    model = detector()
    outputs = dict(boxes=torch.tensor([[8., 12, 32, 24]]), scores=torch.tensor([.9]), labels=torch.tensor([1]),
                   image=torch.tensor([0]), canvas=torch.tensor([48, 64]))
    class Batch: positions = [0]
    (answer,) = model.objective.answers(outputs, Batch)
    given = Image.new("RGB", (128, 96))
    assert model.objective.full_size(answer, given).corners.tolist() == [[16, 24, 64, 48]]
    assert model.objective.said(answer, given=given)["boxes"][0] == dict(
        {"class": "green"}, score=0.9, box=[16, 24, 64, 48], id=2)


@pytest.mark.parametrize("frozen", [2, 5])
def test_the_cache_is_exact_with_four_places(frozen):
    "In float64, for 18 steps"
    def run(cache, **more):
        model = detector(frozen, torch.float64)
        before = [fingerprint(block) for block in blocks(model)]
        history = fit(model, task_of_scenes(), cache=cache, **how | dict(epochs=3) | more)
        assert [a == b for a, b in zip(before, map(fingerprint, blocks(model)))] == [i < frozen for i in range(6)]
        return np.array(history.train_loss), history.prefix
    (ours, prefix), (theirs, none) = run(True), run(False)
    assert np.abs(ours / theirs - 1).max() < 1e-9 and prefix and not none
    if frozen == 5: # past its budget, in a file
        spilled, where = run(True, memory_budget=1)
        assert np.array_equal(spilled, ours) and "in a temporary file" in where


def test_what_is_looked_at_is_kept_at_its_places():
    model = detector()
    assert model.strides == [4, 8, 16, 32]
    few = model.encode(task_of_scenes().train.inputs[:2])
    assert [len(Cut(model, frozen, few).sources) for frozen in range(1, 6)] == [1, 1, 2, 3, 4]


def test_views_are_kept_with_their_boxes():
    history = fit(detector(5, augment=v2.RandomAffine(20, (.1, .1))), task_of_scenes(), views=2, **how | dict(epochs=2))
    assert "2 views of each" in history.prefix and np.isfinite(history.train_loss).all()


@pytest.fixture(scope="module")
def learnt():
    task, model = task_of_scenes((72, 16, 16)), detector()
    history = fit(model, task, **how | dict(epochs=14))
    return task, model, history, evaluate(model, task.test)


def test_it_learns(learnt):
    task, model, history, judged = learnt
    assert judged.map50 > .3 and judged.score_name == "map" and len(judged) == 16
    shown = judged.show(task.test.inputs, 2)
    assert str(shown).count("F1") == 2 and shown._repr_html_().count("<img") == 4
    assert sum(judged.errors().values()) and judged.details()["per_class"][0]["boxes"] > 3
    judged.plot()


def test_a_box_is_explained(learnt):
    "What is found depends on the pixels in it"
    _, model, _, _ = learnt
    pixels = torch.zeros(3, 48, 64, dtype=torch.uint8)
    pixels[0, 12:30, 16:40] = 220
    found = interpret.explain(model, pixels, method="occlusion")
    assert found.target.startswith("red")
    values = found.values.reshape(48, 64)
    assert values[12:30, 16:40].mean() > 2 * np.abs(values).mean()
    with pytest.raises(ValueError, match="target must be a class that was found: found are"):
        interpret.explain(model, pixels, "blue")
    nothing = Boxes([], [], (48, 64), scores=[])
    with pytest.raises(ValueError, match="there is no box to explain"): model.objective.output_target(nothing)


def job(*where):
    model = detector(5)
    fit_to_the_kill(model, model.head.look, task_of_scenes(), *where, **how | dict(epochs=3))


def test_killed_and_resumed(tmp_path): killed_and_resumed(job, tmp_path, 18)


def learnt_in_float64():
    history = fit(detector(3, torch.float64), task_of_scenes(), **how | dict(epochs=2))
    return history.train_loss, history.validation_score


def test_two_processes(tmp_path): same_in_two(learnt_in_float64, tmp_path)


def test_swept_over_depths():
    swept = depth.sweep(lambda seed: detector(), task_of_scenes((12, 8, 8)), seeds=1, epochs=1, strategy="all",
                        progress=False)
    assert swept.scores[0] == "map" and len(swept.rows) == 6 and len(swept.recommend().interval) == 2
    swept.plot()


@pytest.mark.parametrize("name", ["swin_t", "timm/vit_tiny_patch16_224"]) # convolutions: all other tests
def test_every_family_of_maps(name):
    task = task_of_scenes((2, 2, 2))
    model = vision.detector(name, task, 64, pretrained=False).eval()
    few = model.encode(task.train.inputs)
    with torch.no_grad(): outputs = model(model.collate(few))
    assert task.objective.fits(outputs) == "" and outputs["boxes"].shape[1] == 4
    own = {id(p) for block in blocks(model) for p in block.parameters()}
    assert own == {id(p) for p in model.parameters()}
    tensors, about = model.save(None)
    again = type(model).load(None, json.loads(json.dumps(about)) | dict(classes=CLASSES), tensors)
    assert fingerprint(again) == fingerprint(model) and again.strides == model.strides


# Files of a model

def test_saved_loaded_and_exported(learnt, tmp_path):
    task, model, history, judged = learnt
    saving.save(tmp_path/"m", model, task, history, judged)
    loaded = finetune_nb.load(tmp_path/"m")
    assert fingerprint(loaded.model) == fingerprint(model) and loaded.model.objective == model.objective
    assert loaded.model.anchors == model.anchors and loaded.model.preprocessing == model.preprocessing
    inputs = list(task.test.inputs[:3])
    assert loaded.answers(inputs) == predict(model, task.test.inputs[:3])
    card = (tmp_path/"m"/"README.md").read_text()
    assert "pipeline_tag: object-detection" in card and "| red |" in card and "<img" in card
    pytest.importorskip("onnxscript")
    assert saving.export_onnx(tmp_path/"m").exists() # it compares, to 1e-4


def test_other_programs_may_differ_by_the_least_sure_boxes():
    model, canvas = detector(), torch.tensor([48, 64])
    boxes, none = torch.tensor([[8., 8, 32, 24], [0, 0, 9, 9]]), torch.zeros(2, dtype=torch.int64)
    def given(scores, boxes=boxes): return [boxes, torch.tensor(scores), none, none, canvas]
    same, fewer = given([.9, .011]), [own[:1] for own in given([.9, .011])[:4]] + [canvas]
    assert model.gap(same, fewer) < 1e-6 and model.gap(fewer, same) < 1e-6
    assert model.gap(same, given([.8, .011])) == pytest.approx(.1) and model.gap(same, given([.9, .5])) > .3
    assert model.gap(same, given([.9, .011], boxes + 6.4)) > .09


# People's files

def draw(folder, name, seed=0, size=(48, 64), most=3, exif=None):
    pixels, boxes = scene(np.random.default_rng(seed), size, most)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder/name, **(dict(exif=exif) if exif else {}))
    return boxes


def put(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def voc(top, i, images="images", xml="annotations", change=lambda own: own, size=(64, 48), count=12):
    boxes = draw(top/images, f"{i:02}.jpg", i)
    objects = "".join(f"<object><name>{CLASSES[label]}</name><difficult>0</difficult><bndbox>" + "".join(
        f"<{side}>{x:.0f}</{side}>" for side, x in zip(("xmin", "ymin", "xmax", "ymax"), change(corners)))
        + "</bndbox></object>" for label, corners in zip(boxes.labels, boxes.corners.tolist()))
    sides = "<size><width>{}</width><height>{}</height></size>".format(*size)
    put(top/xml/f"{i:02}.xml", f"<annotation><filename>{i:02}.jpg</filename>{sides}{objects}</annotation>")
    return boxes


def coco(top, i, file="annotations.json", ids=(7, 3), folder="images", change=lambda own: own):
    boxes = draw(top/folder, f"{i:02}.jpg", i)
    told = dict(images=[], annotations=[], categories=[dict(id=n, name=name) for n, name in zip(ids, CLASSES)])
    if (top/file).exists(): told = json.loads((top/file).read_text())
    told["images"].append(dict(id=i * 5, file_name=f"{i:02}.jpg", height=48, width=64))
    for label, (left, top_, right, bottom) in zip(boxes.labels.tolist(), boxes.corners.tolist()):
        box = change([left, top_, right - left, bottom - top_])
        told["annotations"].append(dict(id=len(told["annotations"]), image_id=i * 5, category_id=ids[label], bbox=box,
                                        area=1, iscrowd=0, segmentation=[]))
    put(top/file, json.dumps(told))
    return boxes


def yolo(top, i, images="images", labels="labels"):
    boxes = draw(top/images, f"{i:02}.jpg", i)
    put(top/"data.yaml", "names: [red, green]\nnc: 2\n")
    centred = [(label, (a + c) / 128, (b + d) / 96, (c - a) / 64, (d - b) / 48)
               for label, (a, b, c, d) in zip(boxes.labels, boxes.corners.tolist())]
    put(top/labels/f"{i:02}.txt", "".join(" ".join(map(str, row)) + "\n" for row in centred))
    return boxes


def table(top, i, columns="filename,class,xmin,ymin,xmax,ymax", change=lambda own: own):
    boxes, file = draw(top/"images", f"{i:02}.jpg", i), top/"boxes.csv"
    if not file.exists(): put(file, columns + "\n")
    rows = [f"{i:02}.jpg,{CLASSES[label]},{','.join(map(str, change(corners)))}"
            for label, corners in zip(boxes.labels, boxes.corners.tolist())]
    with open(file, "a") as opened: opened.write("".join(f"{row}\n" for row in rows or [f"{i:02}.jpg,,,,,"]))
    return boxes


def sized(own): return [own[0], own[1], own[2] - own[0], own[3] - own[1]]
def parted(write, **where): # in folders of parts
    def form(top, i):
        part = ("train", "val", "test")[i // 4]
        return write(top, i, **{name: own.format(part) for name, own in where.items()})
    return form


def listed(top, i):
    put(top/"ImageSets"/"Main"/f"{('train', 'val', 'test')[i // 4]}.txt", "".join(f"{j:02}\n" for j in range(
        i // 4 * 4, i // 4 * 4 + 4)))
    return voc(top, i, "JPEGImages", "Annotations")


forms = {"VOC": voc, "VOC beside": lambda top, i: voc(top, i, ".", "."), "COCO": coco, "YOLO": yolo, "CSV": table,
         "CSV sized": lambda top, i: table(top, i, "image,label,x,y,w,h", sized)}
given = {"VOC lists": listed, "VOC folders": parted(voc, images="{}", xml="{}"),
         "YOLO below": parted(yolo, images="images/{}", labels="labels/{}"),
         "YOLO above": parted(yolo, images="{}/images", labels="{}/labels"),
         "COCO files": parted(coco, file="annotations/instances_{}.json", folder="{}")}


@pytest.mark.parametrize("form", [*forms, *given])
def test_every_form_is_found_and_read(tmp_path, form):
    write = (forms | given)[form]
    drawn = [write(tmp_path, i) for i in range(12)]
    report = preflight.check(tmp_path, progress=False)
    assert report.ok and report.objective == "detection" and not report.skipped and len(report.inputs) == 12, report
    for file, own in zip(report.inputs, report.targets):
        true = drawn[int(Path(file).stem)]
        assert np.abs(own.corners - true.corners).max(initial=0) < .01 and own.size == (48, 64)
        assert [own.classes[n] for n in own.labels] == [CLASSES[n] for n in true.labels]
        if form in given: assert report.parts[report.inputs.index(file)] == ("train", "validation", "test")[
            int(Path(file).stem) // 4]
    task = data.task_of(report)
    assert task.objective.kind == "detection" and sorted(task.classes) == sorted(CLASSES)
    if "COCO" in form: assert dict(zip(task.classes, task.objective.ids)) == dict(red=7, green=3)
    report.counts()


def findings(report): return {finding.what: finding for finding in report.findings}


def xml(top, numbers, name="red", image="00.jpg", size=(64, 48), more=""):
    sides = "".join(f"<{side}>{x}</{side}>" for side, x in zip(("xmin", "ymin", "xmax", "ymax"), numbers))
    put(top/"annotations"/"00.xml", f"<annotation><filename>{image}</filename><size><width>{size[0]}</width><height>"
        f"{size[1]}</height></size><object><name>{name}</name>{more}<bndbox>{sides}</bndbox></object></annotation>")


def again(top): # the annotation of another image, and of this one
    (top/"annotations"/"00b.xml").write_text((top/"annotations"/"00.xml").read_text())


faults = { # what is done to the first of twelve, what is found, what then, and what the message names
    "zero": (lambda top: xml(top, (9, 9, 9, 20)), "box that cannot be used", "skips",
             "object 1, 'red': its size is zero"),
    "inverted": (lambda top: xml(top, (30, 9, 9, 20)), "box that cannot be used", "skips", "inverted or negative"),
    "nothing": (lambda top: xml(top, (0, 0, 0, 0)), "box that cannot be used", "skips", "leave the box out"),
    "no number": (lambda top: xml(top, ("a", 0, 9, 9)), "box that cannot be used", "skips", "a, 0, 9, 9 are not four"),
    "outside": (lambda top: xml(top, (70, 9, 90, 20)), "box that cannot be used", "skips",
                "outside the picture of 64 x 48"),
    "over the edge": (lambda top: xml(top, (40, 9, 90, 20)), "box over the edge", "notes", "by up to 26 pixels"),
    "no class": (lambda top: xml(top, (4, 9, 9, 20), ""), "missing label", "skips", "nobody says which class"),
    "no image": (lambda top: (top/"images"/"00.jpg").unlink(), "annotation without image", "skips", "'00.jpg'"),
    "no annotation": (lambda top: (top/"annotations"/"00.xml").unlink(), "image without annotation", "notes", "00.jpg"),
    "two": (again, "two annotations of one image", "skips", "annotations/00.xml"),
    "twice": (lambda top: xml(top, (4, 9, 9, 20), more="<bndbox><xmin>4</xmin><ymin>9</ymin><xmax>9</xmax>"
              "<ymax>20</ymax></bndbox></object><object><name>red</name>"),
              "box that is there twice", "notes", "kept once"),
    "another size": (lambda top: xml(top, (8, 18, 18, 40), size=(128, 96)), "image of another size", "notes",
                     "128 x 96"),
    "another shape": (lambda top: xml(top, (8, 8, 18, 20), size=(64, 64)), "image of another size", "skips",
                      "proportions"),
    "damaged": (lambda top: put(top/"annotations"/"00.xml", "<annot"), "annotation that cannot be read",
                "skips", "00.xml"),
    "difficult": (lambda top: xml(top, (4, 9, 9, 20), more="<difficult>1</difficult>"),
                  "box that nobody is asked about", "notes", "1 are crowds"),
    "other case": (lambda top: (top/"images"/"00.jpg").rename(top/"images"/"00.JPG"), None, "", ""),
    "other folder": (lambda top: xml(top, (4, 9, 9, 20), image="C:\\\\pictures\\\\00.jpg"), None, "", ""),
}


@pytest.mark.parametrize("fault", faults)
def test_what_is_wrong_is_named(tmp_path, fault):
    spoil, what, then, says = faults[fault]
    for i in range(12): voc(tmp_path, i)
    spoil(tmp_path)
    report = preflight.check(tmp_path, most_bad=.2, progress=False)
    if what is None: assert not report.skipped and len(report.inputs) == 12, report
    else:
        assert findings(report)[what].then == then, report
        assert any(says in f"{place}: {reason}" for place, reason in findings(report)[what].places), report
    assert report.ok


@pytest.mark.parametrize("write, says", [
    (lambda top, i: table(top, i, change=sized), "read as left, top, width, height all of them do"),
    (lambda top, i: table(top, i, "image,label,x,y,w,h"), "read as left, top, right, bottom all of them do"),
    (lambda top, i: table(top, i, change=lambda own: [x / 64 for x in own]), "shares of the image, expected pixels"),
    (lambda top, i: coco(top, i, change=lambda own: [*own[:2], own[0] + own[2], own[1] + own[3]]), "all of them do")])
def test_numbers_that_are_meant_otherwise(tmp_path, write, says):
    for i in range(12): write(tmp_path, i)
    report = preflight.check(tmp_path, progress=False)
    assert not report.ok and any(says in why for why in report.stops), report


@pytest.mark.parametrize("turn", [3, 6, 8])
def test_boxes_in_the_picture_as_it_is_stored(tmp_path, turn):
    for i in range(8): voc(tmp_path, i)
    exif = Image.Exif()
    exif[274] = turn
    boxes = draw(tmp_path/"images", "00.jpg", 3, exif=exif)
    label = np.zeros((48, 64), np.uint8)
    left, top, right, bottom = boxes.corners[0].astype(int)
    label[top:bottom, left:right] = 255
    marked = Image.fromarray(label)
    marked.getexif()[274] = turn
    upright = np.asarray(ImageOps.exif_transpose(marked))
    xml(tmp_path, (left, top, right, bottom))
    target = preflight.check(tmp_path, progress=False).targets[0]
    rows, columns = np.nonzero(upright)
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    if turn != 3: assert target.corners[0].tolist() == expected # upside down, nobody can tell which is meant
    assert target.size == upright.shape


def test_boxes_that_are_too_small_are_counted(tmp_path):
    for i in range(8): voc(tmp_path, i)
    xml(tmp_path, (4, 9, 8, 20))
    report = preflight.check(tmp_path, progress=False)
    report.measure(lambda: vision.detector("ladder-tiny", Detection(CLASSES), 32))
    told = findings(report)["box that is too small to see"].places[0][1]
    assert told.startswith("1 of") and "less than 4 pixels wide or high in the 32 x 32" in told


def test_outlines_stay_masks(tmp_path):
    "Unless boxes are asked for"
    for i in range(8): coco(tmp_path, i)
    told = json.loads((tmp_path/"annotations.json").read_text())
    for own in told["annotations"]: own["segmentation"] = [[1, 1, 20, 3, 30, 20, 9, 30, 2, 9]]
    put(tmp_path/"annotations.json", json.dumps(told))
    assert preflight.check(tmp_path, progress=False).objective == "segmentation"
    assert preflight.check(tmp_path, progress=False, objective="detection").objective == "detection"


# The command

def test_from_a_folder_to_boxes(command, tmp_path):
    for i in range(20): coco(tmp_path/"scenes", i)
    folder, model = tmp_path/"scenes", tmp_path/"m"
    fast = "--backbone", "ladder-tiny", "--image-size", 48, "--epochs", 2, "--learning-rate", 0.01
    code, out, err = command("image", folder, *fast, "--out", model, "--json")
    result = json.loads(out)
    assert code == 0 and result["objective"] == "detection" and 0 <= result["map50"] <= 1, err
    about = json.loads((model/"model.json").read_text())
    about["objective"]["threshold"] = 0.02
    (model/"model.json").write_text(json.dumps(about))
    told = "predict", model, folder/"images"/"00.jpg", folder/"images"/"01.jpg"
    code, out, err = command(*told, "--json", "--boxes", tmp_path/"found.json")
    rows, written = [json.loads(line) for line in out.splitlines()], json.loads((tmp_path/"found.json").read_text())
    assert code == 0 and {own["id"]: own["name"] for own in written["categories"]} == {7: "red", 3: "green"}
    assert len(written["annotations"]) == sum(len(row["boxes"]) for row in rows) > 0
    assert {own["category_id"] for own in written["annotations"]} <= {3, 7}
    code, out, err = command(*told, "--boxes", tmp_path/"found.csv")
    assert code == 0 and (tmp_path/"found.csv").read_text().startswith("filename,width,height,class,xmin")
    code, out, err = command(*told, "--boxes", tmp_path/"found")
    names = sorted(file.name for file in (tmp_path/"found").iterdir())
    assert names == ["00.xml", "00_boxes.jpg", "01.xml", "01_boxes.jpg"]
    assert ElementTree.parse(tmp_path/"found"/"00.xml").findtext("filename") == "00.jpg"
    refused = {"nothing is overwritten": ("--boxes", tmp_path/"found.csv"), "Masks are for models of": ("--masks", "m"),
               "Windows are for models of masks": ("--windows", 32)}
    for says, words in refused.items():
        code, _, err = command(*told, *words)
        assert code == 1 and says in err and "Traceback" not in err
    code, _, err = command("image", folder, "--task", "patches")
    assert code == 1 and "--task patches is built in" in err


raccoons = root.parent.parent/"shared"/"data"/"raccoons"


@pytest.mark.skipif(not raccoons.exists(), reason="real files that are no part of the project")
def test_real_boxes_are_read():
    report = preflight.check(raccoons, progress=False)
    assert report.ok and report.objective == "detection" and len(report.inputs) == 200 and not report.skipped
