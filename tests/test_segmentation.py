"""Masks, from files to files: pictures, shapes, scores, and every contract that an objective has to keep."""
import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

import finetune_nb
import ladder # which registers its family
from conftest import root
from finetune_nb import data, depth, evaluate, fit, freeze, preflight, saving, vision
from finetune_nb.cache import Cut
from finetune_nb.data import Examples, Task, baseline
from finetune_nb.engine.batches import example_seed, varied
from finetune_nb.engine.commands import backbone_for
from finetune_nb.engine.families import embedded
from finetune_nb.engine.masks import as_mask, fitted, off_canvas, onto_canvas
from finetune_nb.engine.segmentation import Segmentation
from finetune_nb.engine.segmentation_families import TorchvisionSegmenters
from finetune_nb.freezing import blocks, fingerprint
from finetune_nb.interpret import explain
from finetune_nb.training import predict, prepared
from finetune_nb.widgets import FreezeExplorer
from processes import fit_to_the_kill, killed_and_resumed, same_in_two

how = dict(epochs=6, batch_size=6, learning_rate=1e-2, head_learning_rate=1e-2, progress=False)
CLASSES = ["background", "red", "green"]


def scene(rng, size=(48, 64)):
    "A dark picture with a red and perhaps a green rectangle, and what is where"
    pixels, mask = rng.integers(60, size=(*size, 3), dtype=np.uint8), np.zeros(size, np.uint8)
    for number in (1, 2)[:1 + rng.integers(2)]:
        top, left = (rng.integers(0, side // 2) for side in size)
        area = slice(top, top + size[0] // 3), slice(left, left + size[1] // 3)
        pixels[area] = pixels[area] // 4 + np.array([190, 20, 20] if number == 1 else [20, 190, 20], np.uint8)
        mask[area] = number
    return pixels, mask


def scenes(count, seed=0, size=(48, 64)):
    rng = np.random.default_rng(seed)
    return [scene(rng, size) for _ in range(count)]


def examples(count, seed):
    drawn = scenes(count, seed)
    pictures = torch.stack([torch.from_numpy(pixels).movedim(2, 0) for pixels, _ in drawn])
    return Examples(pictures, [mask for _, mask in drawn])


def task_of_scenes(sizes=(36, 16, 16)):
    return Task("rectangles", "image", Segmentation(CLASSES), *map(examples, sizes, range(3)))


def segmenter(frozen=0, dtype=torch.float32, **options):
    model = vision.segmenter("ladder-tiny", Segmentation(CLASSES), 64, width=8, **options).to(dtype)
    freeze(model, frozen)
    return model


# Masks and scores

def test_a_mask_goes_onto_a_canvas_and_comes_back():
    rng = np.random.default_rng(0)
    for _ in range(200):
        size, longer = tuple(rng.integers(1, 40, 2)), int(rng.integers(40, 200))
        values = rng.integers(4, size=size, dtype=np.uint8)
        canvas = (longer, longer)
        assert np.array_equal(off_canvas(onto_canvas(values, canvas), size), values)
        height, width = fitted(size, canvas)
        there = onto_canvas(values, canvas)
        assert (there[:height, :width] < 4).all() and (there[height:] == 255).all() and (there[:, width:] == 255).all()


@pytest.mark.parametrize("ignore", [255, 0])
def test_scores_are_those_of_torchmetrics(ignore):
    metrics = pytest.importorskip("torchmetrics.classification")
    rng, objective = np.random.default_rng(1), Segmentation(["a", "b", "c", "nowhere"], ignore)
    for _ in range(10):
        answers, targets = rng.integers(3, size=(2, 5, 9, 7)).astype(np.uint8)
        targets[rng.random(targets.shape) < .2] = ignore
        ours = objective.judge(answers, objective.check(targets), np.zeros(5))
        def theirs(metric, average):
            own = getattr(metrics, f"Multiclass{metric}")(4, average=average, ignore_index=ignore)
            return own(torch.from_numpy(answers).long(), torch.from_numpy(targets).long())
        rows = ours.details()["per_class"]
        known = [i for i, row in enumerate(rows) if row["IoU"] is not None]
        for name, metric in (("IoU", "JaccardIndex"), ("Dice", "F1Score")):
            expected = theirs(metric, "none")[known].tolist()
            assert [rows[i][name] for i in known] == pytest.approx(expected)
        assert ours.iou == pytest.approx(np.mean([rows[i]["IoU"] for i in known])) and "nowhere" in ours.absent
        if ignore == 255: assert ours.iou == pytest.approx(float(theirs("JaccardIndex", "macro")))
        assert ours.pixel_accuracy == pytest.approx(float(theirs("Accuracy", "micro")))


def test_a_class_that_is_found_and_is_not_there_has_no_share():
    found = Segmentation(CLASSES).judge([np.full((4, 4), 2)], [as_mask(np.eye(4, dtype=int))], np.zeros(1))
    assert found.details()["per_class"][2]["IoU"] == 0 and found.absent == [] and found.iou == 0


def test_the_loss_of_an_image_does_not_depend_on_its_batch():
    random = torch.Generator().manual_seed(0)
    objective, outputs = Segmentation(CLASSES), torch.randn(4, 3, 8, 9, generator=random, dtype=torch.float64)
    targets = torch.randint(0, 3, (4, 8, 9), generator=random).to(torch.uint8)
    targets[0, :3], targets[3] = 255, 255
    together = objective.losses(outputs, targets)
    alone = torch.cat([objective.losses(*own) for own in zip(outputs.split(1), targets.split(1))])
    assert torch.allclose(together, alone) and together[3] == 0
    changed = outputs.clone()
    changed[0, :, :3] = 99
    assert torch.allclose(objective.losses(changed, targets)[0], together[0]), "nobody asks there"
    changed[0, :, 5] = 99
    assert not torch.allclose(objective.losses(changed, targets)[0], together[0])


# The model

def marked(size=(40, 60)):
    "A white spot on black, and the same as a mask"
    mask = np.zeros(size, np.uint8)
    mask[5:25, 10:40] = 1
    return torch.from_numpy(mask * 255).expand(3, -1, -1), mask


@pytest.mark.parametrize("shape, canvas", [((48, 64), (48, 64)), ((40, 60), (48, 80)), ((60, 40), (80, 48))])
def test_masks_follow_images(shape, canvas):
    "Resized, with a margin, and mirrored, turned and enlarged"
    pixels, mask = marked(shape)
    task = Task("marked", "image", Segmentation(CLASSES), *[Examples([pixels, pixels], [mask, mask])] * 3)
    moved = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomAffine(30, (.1, .1), (.8, 1.2)), v2.ColorJitter(.1)])
    model = vision.segmenter("ladder-tiny", task, 48, augment=moved)
    assert model.preprocessing.canvas == canvas
    (image,), (target,) = model.encode_pairs([pixels], [mask])
    seen = 0
    for seed in range(20):
        torch.manual_seed(seed)
        image_moved, target_moved = model.vary(image, target)
        known = target_moved != 255
        agree = (image_moved[0] > 127) == (target_moved == 1)
        assert agree[known].float().mean() > .97, "but for the border"
        seen += bool((target_moved == 255).any())
    assert seen and (image_moved != image).any()


@pytest.mark.parametrize("frozen", range(6))
def test_the_cache_is_exact_with_four_places(frozen):
    "In float64, for 30 steps and more"
    def run(cache, **more):
        model = segmenter(frozen, torch.float64)
        before = [fingerprint(block) for block in blocks(model)]
        history = fit(model, task_of_scenes(), cache=cache, **how | more)
        assert [a == b for a, b in zip(before, map(fingerprint, blocks(model)))] == [i < frozen for i in range(6)]
        return np.array(history.train_loss), history.prefix
    (ours, prefix), (theirs, none) = run(True), run(False)
    assert np.abs(ours / theirs - 1).max() < 1e-9 and bool(prefix) == (frozen > 0) and not none
    if frozen == 5: # past its budget, in a file
        spilled, where = run(True, memory_budget=1)
        assert np.array_equal(spilled, ours) and "in a temporary file" in where


def test_what_a_decoder_reads_is_kept_at_its_places():
    model = segmenter()
    few = model.encode(task_of_scenes().train.inputs[:2])
    assert [len(Cut(model, frozen, few).sources) for frozen in range(1, 6)] == [1, 1, 2, 3, 4]


def test_views_are_kept_with_their_masks():
    "As if each epoch had drawn them anew"
    def run(views, cache=True):
        model = segmenter(5, torch.float64, augment=v2.RandomAffine(20, (.1, .1)))
        return fit(model, task_of_scenes(), views=views, cache=cache, **how)
    kept = run(2)
    assert "2 views of each" in kept.prefix and "fresh" in run(None).prefix
    model, task = segmenter(5, torch.float64, augment=v2.RandomAffine(20, (.1, .1))), task_of_scenes()
    told = {name: own.default for name, own in inspect.signature(fit).parameters.items()}
    learner = prepared(model, task, told | dict(batch_size=6, views=2, precision="fp32", progress=False))
    learner.stage(None)
    batch = next(learner.train.epoch(1))
    image, mask = model.encode_pairs(task.train.inputs, task.train.targets)
    positions = batch.positions.tolist()
    seen, moved = varied(model, [image[i] for i in positions], [mask[i] for i in positions],
                         [example_seed(0, 1, i) for i in positions])
    assert torch.equal(batch.targets, torch.stack(moved))
    with torch.no_grad(): expected = model.eval()(torch.stack(seen))
    assert torch.allclose(batch.run(learner.learner).detach(), expected)


def test_another_number_may_stand_for_what_nobody_knows():
    pixels, mask = marked((40, 40))
    task = Task("marked", "image", Segmentation(["spot", "dark", "nowhere"], ignore=0), *[
        Examples([pixels, pixels], [1 + (mask == 0), 1 + (mask == 0)])] * 3)
    model = vision.segmenter("ladder-tiny", task, 64, augment=v2.RandomAffine(30))
    (image,), (target,) = model.encode_pairs([pixels[:, :, :30]], [1 + (mask[:, :30] == 0)])
    assert target.unique().tolist() == [0, 1, 2] and model.vary(image, target)[1].unique().tolist() == [0, 1, 2]
    fit(model, task, **how | dict(epochs=1, batch_size=2))


def test_it_learns():
    task, model = task_of_scenes(), segmenter()
    before = evaluate(model, task.test)
    fit(model, task, **how | dict(epochs=12))
    judged = evaluate(model, task.test)
    assert judged.iou > before.iou + .2 and judged.score_name == "iou" and len(judged) == 16
    shown = judged.show(task.test.inputs, 2)
    assert str(shown).count("Dice") == 2 and shown._repr_html_().count("<img") == 6
    judged.plot()


def test_a_forest_is_a_baseline():
    classical = baseline(task_of_scenes((5, 2, 2)))
    assert classical.iou > .6 and classical.always["iou"] == 0 and classical.always["pixel_accuracy"] > .6


def job(*where):
    model = segmenter(5)
    fit_to_the_kill(model, model.head.scores, task_of_scenes(), *where, **how)


def test_killed_and_resumed(tmp_path): killed_and_resumed(job, tmp_path, 20)


def learnt_in_float64():
    history = fit(segmenter(3, torch.float64), task_of_scenes(), **how | dict(epochs=3))
    return history.train_loss, history.validation_score


def test_two_processes(tmp_path): same_in_two(learnt_in_float64, tmp_path)


def test_swept_over_depths():
    swept = depth.sweep(lambda seed: segmenter(seed=0), task_of_scenes((24, 12, 12)), seeds=1, epochs=2, strategy="all",
                        progress=False)
    assert swept.scores[0] == "iou" and len(swept.rows) == 6 and len(swept.recommend().interval) == 2
    swept.plot()


def test_a_class_of_a_mask_is_explained():
    task = Task("wide", "image", Segmentation(CLASSES), *[examples(4, 0)] * 3)
    model = vision.segmenter("ladder-tiny", task, 48, width=8)
    image, answer = task.test.inputs[0], np.asarray(predict(model, task.test.inputs[:1])[0])
    assert answer.shape == (48, 64), "no square"
    found = np.flatnonzero(np.bincount(answer.ravel(), minlength=3))
    for method in ("occlusion", "grad_cam"):
        own = explain(model, image, int(found[-1]), method)
        assert own.target == CLASSES[found[-1]] and own.values.shape == (48 * 64,) and own.values.any()
    asked = Segmentation(CLASSES).output_target(np.array([[0, 0, 0], [0, 2, 1], [0, 2, 0]]))
    assert asked.name == "green", "the largest that is no background"
    outputs = torch.arange(27.).reshape(1, 3, 3, 3)
    assert asked.score(outputs) == (outputs[0, 2, 1, 1] + outputs[0, 2, 2, 1]) / 2
    for target in (1, "red", 3, -1, True, "cat", [0]):
        with pytest.raises(ValueError, match="found are background, green, got"):
            Segmentation(CLASSES).output_target(np.array([[0, 2]]), target)


def test_the_explorer_shows_a_mask_and_what_it_depends_on():
    explorer = FreezeExplorer(segmenter(), task_of_scenes((6, 4, 4)), steps=2)
    explorer.run(5)
    assert "<th>true</th>" in explorer.looked_at.value and "grad cam" in explorer.looked_at.value


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "regnet_y_400mf", "shufflenet_v2_x0_5", "squeezenet1_0",
                                  "swin_t", "densenet121", "timm/resnet10t"])
def test_every_family_of_maps(name):
    "In landscape format, frozen but for the decoder"
    task = Task("wide", "image", Segmentation(CLASSES), *[examples(2, 0)] * 3)
    model = vision.segmenter(name, task, 64, pretrained=False).eval()
    few = model.encode(task.train.inputs)
    with torch.no_grad(): outputs = model(model.collate(few))
    assert outputs.shape == (2, 3, 64, 96) and 2 <= len(model.places) <= 4
    own = {id(p) for block in blocks(model) for p in block.parameters()}
    assert own == {id(p) for p in model.parameters()}
    freeze(model, len(blocks(model)) - 1)
    model(model.collate(few)).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad), "nothing that learns lies idle"
    cut = Cut(model, len(blocks(model)) - 1, few)
    assert len(cut.sources) == len(model.places) and not cut.needs_inputs


@pytest.mark.parametrize("name", ["vit_b_16", "timm/vit_tiny_patch16_224"])
def test_tokens_of_patches_become_maps(name):
    "Of four strides, in a square, for that is what these networks are made for"
    task = Task("wide", "image", Segmentation(CLASSES), *[examples(2, 0)] * 3)
    model = vision.segmenter(name, task, 64, pretrained=False).eval()
    assert model.preprocessing.canvas == (64, 64)
    few = model.encode(task.train.inputs)
    with torch.no_grad(): assert model(model.collate(few)).shape == (2, 3, 64, 64)
    freeze(model, len(blocks(model)) - 1)
    assert len(Cut(model, len(blocks(model)) - 1, few).sources) == 1
    tensors, about = model.save(None)
    again = type(model).load(None, about | dict(classes=CLASSES), tensors)
    assert fingerprint(again) == fingerprint(model) and "ONNX" in model.usage(about)


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "fcn_resnet50", "deeplabv3_mobilenet_v3_large"])
def test_networks_that_segment_are_found_in_the_cache(tmp_path, monkeypatch, name):
    "Their weights lie where torch.hub keeps them, an auxiliary head among them; only the last layer is new"
    from torchvision.models import get_model, get_model_weights
    theirs = get_model(name, weights=None, weights_backbone=None).eval()
    weights = get_model_weights(name).DEFAULT
    (tmp_path/"checkpoints").mkdir()
    aux = {"aux_classifier.0.weight": torch.zeros(1)}
    torch.save(theirs.state_dict() | aux, tmp_path/"checkpoints"/Path(weights.url).name)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    model = vision.segmenter(name, Segmentation(CLASSES), 64).eval()
    assert [block.name for block in blocks(model)][-2:] == ["decoder", "head"]
    ours, published = model.backbone.state_dict(), theirs.state_dict()
    heads = [name for name in published if not torch.equal(ours[name], published[name])]
    assert {name.rpartition(".")[0] for name in heads} == set(TorchvisionSegmenters().heads(theirs))
    freeze(model, len(blocks(model)) - 1)
    task = task_of_scenes((4, 2, 2))
    before = fingerprint(blocks(model)[-2])
    history = fit(model, task, **how | dict(epochs=1, batch_size=4))
    assert "run once" in history.prefix and fingerprint(blocks(model)[-2]) == before
    saving.save(tmp_path/"m", model, task, history, evaluate(model, task.test))
    assert fingerprint(finetune_nb.load(tmp_path/"m").model) == fingerprint(model)
    assert name in (tmp_path/"m"/"README.md").read_text()


# Files of a model

def test_saved_loaded_and_exported(tmp_path):
    task, model = task_of_scenes(), segmenter()
    history = fit(model, task, **how)
    saving.save(tmp_path/"m", model, task, history, evaluate(model, task.test))
    loaded = finetune_nb.load(tmp_path/"m")
    assert fingerprint(loaded.model) == fingerprint(model) and loaded.model.preprocessing == model.preprocessing
    inputs = list(task.test.inputs[:3])
    expected = predict(model, task.test.inputs[:3])
    masks = loaded.masks(inputs)
    for own, mask in zip(np.asarray(expected), masks):
        assert np.array_equal(off_canvas(own, (48, 64)), np.asarray(mask))
    areas = loaded.predict(inputs).areas[0]
    assert areas == {CLASSES[n]: masks[0].counts[n] / 48 / 64 for n in masks[0].present} and "background" in str(areas)
    card = (tmp_path/"m"/"README.md").read_text()
    assert "pipeline_tag: image-segmentation" in card and "| red |" in card and "<img" in card
    pytest.importorskip("onnxscript")
    assert saving.export_onnx(tmp_path/"m").exists() # it compares, to 1e-4


@pytest.mark.parametrize("name", ["resnet18-fractal", "efficientnet-lite0", "ladder-tiny"])
def test_the_card_s_lines_run_without_us(tmp_path, name, monkeypatch):
    "And find what we find, but for pixels that the two ways to resize see differently"
    task = task_of_scenes((8, 4, 4))
    model = vision.segmenter(name, task, 64)
    freeze(model, len(blocks(model)) - 1)
    history = fit(model, task, **how | dict(epochs=2))
    saving.save(tmp_path/"m", model, task, history, evaluate(model, task.test))
    pixels = scenes(1, 7, (96, 120))[0][0]
    Image.fromarray(pixels).save(tmp_path/"a.png")
    card = (tmp_path/"m"/"README.md").read_text()
    lines = card[card.index("import numpy"):].split("```")[0]
    scope = {}
    exec(lines.replace("DIR", str(tmp_path/"m")).replace("IMAGE", str(tmp_path/"a.png")), scope)
    with torch.no_grad(): ours = model.eval()(model.collate(model.encode([tmp_path/"a.png"])))[0]
    theirs, (height, width) = scope["scores"], scope["found"].shape
    assert (ours.argmax(0)[:height, :width] == scope["found"]).float().mean() > .98
    assert (ours - theirs)[:, :height, :width].abs().median() < .1 * ours.std()


# People's files

def draw(folder, name, size=(48, 64), seed=0, ending="jpg", exif=None):
    pixels, mask = scenes(1, seed, size)[0]
    folder.mkdir(parents=True, exist_ok=True)
    more = dict(exif=exif) if exif else {}
    Image.fromarray(pixels).save(folder/f"{name}.{ending}", **more)
    return mask


def put(mask, file, palette=None, **how):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    if palette: image.putpalette(palette)
    image.save(file, **how)


def binary(mask): return np.uint8(mask > 0)
colours = np.array([[0, 0, 0], [200, 0, 0], [0, 200, 0]], np.uint8)
voc = [0, 0, 0, 128, 0, 0, 0, 128, 0] + [9] * 759


def bordered(mask):
    mask = mask.copy()
    mask[0] = 255
    return mask


def polygons(mask): # of rectangles
    for number in np.unique(mask[mask > 0]).tolist():
        rows, columns = np.nonzero(mask == number)
        yield number, [(int(x), int(y)) for x, y in ((columns.min(), rows.min()), (columns.max(), rows.min()),
                                                     (columns.max(), rows.max()), (columns.min(), rows.max()))]


def runs(mask): # bool[H, W]
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *ends, len(flat)]).tolist()
    return [0, *lengths] if flat[0] else lengths


def packed(lengths):
    "As COCO's own program packs them"
    text = ""
    for i, value in enumerate(lengths):
        value -= lengths[i - 2] if i > 2 else 0
        more = True
        while more:
            letter, value = value & 31, value >> 5
            more = value != -1 if letter & 16 else value != 0
            text += chr((letter | 32 if more else letter) + 48)
    return text


def folder_of(write, images="images", masks="masks", ending="png", mark=""):
    def form(top, i):
        mask = draw(top/images, f"{i:02}", seed=i)
        write(mask, top/masks/f"{i:02}{mark}.{ending}")
        return mask
    return form


def with_legend(write, name, text):
    form = folder_of(write)
    def whole(top, i):
        (top/name).write_text(text)
        return form(top, i)
    return whole


def labelme(top, i):
    mask = draw(top, f"{i:02}", seed=i)
    shapes = [dict(label=CLASSES[n], points=points, shape_type="polygon") for n, points in polygons(mask)]
    told = dict(shapes=shapes, imagePath=f"{i:02}.jpg", imageHeight=48, imageWidth=64)
    (top/f"{i:02}.json").write_text(json.dumps(told))
    return mask


def coco(how):
    def form(top, i):
        mask, file = draw(top/"images", f"{i:02}", seed=i), top/"annotations.json"
        told = json.loads(file.read_text()) if file.exists() else dict(images=[], annotations=[], categories=[
            dict(id=7, name="red"), dict(id=9, name="green")])
        told["images"].append(dict(id=i, file_name=f"{i:02}.jpg", height=48, width=64))
        for number, points in polygons(mask):
            own = dict(size=[48, 64], counts=runs(mask == number))
            if how == "packed": own["counts"] = packed(own["counts"])
            segmentation = [[n for point in points for n in point]] if how == "polygons" else own
            told["annotations"].append(dict(image_id=i, category_id=(7, 9)[number - 1], segmentation=segmentation,
                                            area=1000 - number, iscrowd=int(how != "polygons")))
        file.write_text(json.dumps(told))
        return mask
    return form


csv = "name,r,g,b\nbackground,0,0,0\nred,200,0,0\ngreen,0,200,0\n"
numbers = json.dumps({"0": "background", "1": "red", "2": "green"})
legend = json.dumps(dict(red=[200, 0, 0], green="#00c800"))
forms = { # how it is written, the names of the classes, and what of the mask comes back
    "0 and 255": (folder_of(lambda m, f: put(binary(m) * 255, f)), ["background", "foreground"], binary),
    "0 and 1": (folder_of(lambda m, f: put(binary(m), f)), ["background", "foreground"], binary),
    "bool": (folder_of(lambda m, f: Image.fromarray(m > 0).save(mkdir(f))), ["background", "foreground"], binary),
    "grey as colours": (folder_of(lambda m, f: put(np.repeat(binary(m)[..., None] * 255, 3, 2), f)),
                        ["background", "foreground"], binary),
    "numbers": (folder_of(put), ["background", "class 1", "class 2"], None),
    "16 bits": (folder_of(lambda m, f: put(m.astype(np.uint16), f)), ["background", "class 1", "class 2"], None),
    "palette": (folder_of(lambda m, f: put(m, f, voc)), ["background", "class 1", "class 2"], None),
    "VOC": (folder_of(lambda m, f: put(bordered(m), f, voc), "JPEGImages", "SegmentationClass"),
            ["background", "class 1", "class 2"], bordered),
    "palette of one colour": (folder_of(lambda m, f: put(m, f, [7] * 768)), ["background", "class 1", "class 2"], None),
    "named numbers": (with_legend(put, "classes.json", numbers), CLASSES, None),
    "names in lines": (with_legend(put, "codes.txt", "background\nred\ngreen\n"), CLASSES, None),
    "colours": (folder_of(lambda m, f: put(colours[m], f)), ["background", "#00c800", "#c80000"],
                lambda m: np.uint8([0, 2, 1])[m]),
    "colours in csv": (with_legend(lambda m, f: put(colours[m], f), "class_dict.csv", csv), CLASSES, None),
    "colours in json": (with_legend(lambda m, f: put(colours[m], f), "legend.json", legend), CLASSES, None),
    "opaque": (with_legend(lambda m, f: put(np.dstack([colours[m], np.full_like(m, 255)]), f), "class_dict.csv", csv),
               CLASSES, None),
    "other names": (folder_of(put, "train_images", "train_masks", "tif", "_segmentation"),
                    ["background", "class 1", "class 2"], None),
    "beside": (folder_of(put, ".", ".", "png", "_mask"), ["background", "class 1", "class 2"], None),
    "gif": (folder_of(lambda m, f: put(m, f, voc), "imgs", "labels", "gif", "_mask"),
            ["background", "class 1", "class 2"], None),
    "LabelMe": (labelme, ["background", "green", "red"], lambda m: np.uint8([0, 2, 1])[m]),
    "COCO": (coco("polygons"), ["background", "green", "red"], lambda m: np.uint8([0, 2, 1])[m]),
    "COCO runs": (coco("runs"), ["background", "green", "red"], lambda m: np.uint8([0, 2, 1])[m]),
    "COCO packed": (coco("packed"), ["background", "green", "red"], lambda m: np.uint8([0, 2, 1])[m]),
}


def mkdir(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


@pytest.mark.parametrize("form", forms)
def test_every_form_is_found_and_read_to_the_pixel(tmp_path, form):
    write, classes, of = forms[form]
    drawn = [write(tmp_path, i) for i in range(12)]
    report = preflight.check(tmp_path, progress=False)
    assert report.ok and report.objective == "segmentation" and list(report.classes) == classes, report
    assert not report.skipped and len(report.inputs) == 12 and [Path(own).stem for own in report.inputs] == sorted(
        f"{i:02}" for i in range(12))
    for target, mask in zip(report.targets, drawn):
        assert np.array_equal(np.asarray(target), of(mask) if of else mask)
    task = data.image_folder(tmp_path)
    assert [len(getattr(task, part)) for part in data.PARTS] == [8, 2, 2] and task.objective == Segmentation(classes)
    report.counts()


def parts_above(top, i):
    part = ("train", "val", "test")[i // 4]
    return folder_of(put, f"{part}/images", f"{part}/masks")(top, i)


def parts_below(top, i):
    part = ("train", "val", "test")[i // 4]
    return folder_of(put, f"images/{part}", f"masks/{part}")(top, i)


def parts_in_lists(top, i):
    (top/"ImageSets"/"Segmentation").mkdir(parents=True, exist_ok=True)
    for part, start in (("train", 0), ("val", 4), ("test", 8)):
        names = "\n".join(f"{j:02}" for j in range(start, start + 4))
        (top/"ImageSets"/"Segmentation"/f"{part}.txt").write_text(names)
    return folder_of(put, "JPEGImages", "SegmentationClass")(top, i)


@pytest.mark.parametrize("write", [parts_above, parts_below, parts_in_lists])
def test_given_parts_are_kept(tmp_path, write):
    for i in range(12): write(tmp_path, i)
    report = preflight.check(tmp_path, progress=False)
    assert report.ok, report
    number = {"train": 0, "validation": 1, "test": 2}
    assert all(int(Path(own).stem) // 4 == number[part] for own, part in zip(report.inputs, report.parts))
    assert [report.parts.count(part) for part in ("train", "validation", "test")] == [4, 4, 4]


def findings(report): return {finding.what: finding for finding in report.findings}


def spoilt(tmp_path, spoil, count=40):
    "A good folder, and something wrong with its first mask"
    for i in range(count): folder_of(lambda m, f: put(binary(m) * 255, f))(tmp_path, i)
    spoil(tmp_path, tmp_path/"images"/"00.jpg", tmp_path/"masks"/"00.png")
    return preflight.check(tmp_path, progress=False)


def smoothed(image, mask):
    Image.fromarray(np.uint8(np.linspace(0, 255, 48 * 64)).reshape(48, 64)).save(mask)


def soft(mask):
    "A mask that was resized with smooth edges"
    image = Image.open(mask).resize((640, 480), 0).resize((256, 192), Image.Resampling.LANCZOS)
    image.save(mask)
    assert len(np.unique(np.asarray(image))) > 10


faults = { # what is done, what is found, what then, and what the message names
    "another size": (lambda top, image, mask: Image.open(mask).resize((32, 24), 0).save(mask),
                     "mask of another size", "notes", "of another size: 32 x 24, and its image 64 x 48 pixels"),
    "another shape": (lambda top, image, mask: Image.open(mask).resize((64, 64), 0).save(mask),
                      "mask of another shape", "skips", "it has 64 x 64, and its image 64 x 48 pixels"),
    "unknown value": (lambda top, image, mask: ((top/"legend.csv").write_text("name,value\nthing,255\n"),
                      Image.fromarray(np.full((48, 64), 7, np.uint8)).save(mask)), "value that no class has", "skips",
                      "it holds 7, which the legend does not name"),
    "JPEG": (lambda top, image, mask: (Image.open(mask).save(mask.with_suffix(".jpg")), mask.unlink()), "lossy mask",
             "skips", "masks/00.jpg: lossy mask: its format is JPEG"),
    "alpha": (lambda top, image, mask: Image.merge("RGBA", [Image.open(mask)] * 4).save(mask), "mask with transparency",
              "skips", "without an alpha channel"),
    "16 bits": (lambda top, image, mask: put(np.full((48, 64), 3000, np.uint16), mask), "mask of 16 bits", "skips",
                "3,000"),
    "smoothed": (lambda top, image, mask: smoothed(image, mask), "mask with too many values", "skips",
                 "256 different numbers"),
    "soft edges": (lambda top, image, mask: soft(mask), "mask with smoothed edges", "notes", "nearer to white"),
    "damaged": (lambda top, image, mask: mask.write_bytes(mask.read_bytes()[:60]), "unreadable mask", "skips",
                "00.png"),
    "no mask": (lambda top, image, mask: mask.unlink(), "image without mask", "skips", "images/00.jpg"),
    "no image": (lambda top, image, mask: image.unlink(), "mask without image", "skips", "masks/00.png"),
    "empty": (lambda top, image, mask: put(np.zeros((48, 64), np.uint8), mask), "mask without anything", "notes",
              "1 of 40"),
    "two of a colour": (lambda top, image, mask: (top/"legend.csv").write_text("name,value\na,255\nb,255\n"),
                        "two classes of one colour", "stops", "'a' and 'b' both have 255"),
    "odd legend": (lambda top, image, mask: (top/"legend.csv").write_text("colour\nred\n"),
                   "legend that cannot be read", "stops", "expected the columns"),
    "no legend": (lambda top, image, mask: None, "classes without names", "notes", "background, foreground"),
}


@pytest.mark.parametrize("fault", faults)
def test_what_is_wrong_is_named(tmp_path, fault):
    spoil, what, then, says = faults[fault]
    report = spoilt(tmp_path, spoil)
    assert findings(report)[what].then == then, report
    told = [f"{place}: {what}: {reason}" for place, reason in findings(report)[what].places] + [
        f"{place}: {reason}" for place, reason in findings(report)[what].places]
    assert any(says in own for own in told), told
    assert report.ok == (then != "stops"), report


def test_a_class_in_the_test_part_alone_is_named(tmp_path):
    for i in range(12): parts_above(tmp_path, i)
    put(np.full((48, 64), 3, np.uint8), tmp_path/"test"/"masks"/"11.png")
    found = findings(preflight.check(tmp_path, progress=False))["class without training examples"]
    assert found.places[0][0] == "class 3" and found.then == "notes"


def test_nothing_but_background_stops(tmp_path):
    for i in range(8): folder_of(lambda m, f: put(m * 0, f))(tmp_path, i)
    assert "nothing to find" in findings(preflight.check(tmp_path, progress=False))


@pytest.mark.parametrize("turn", [5, 6, 7, 8])
@pytest.mark.parametrize("drawn_upright", [True, False])
def test_masks_stand_as_their_images_do(tmp_path, turn, drawn_upright):
    "Where EXIF turns an image, a mask that was drawn on the stored one is turned with it"
    exif = Image.Exif()
    exif[0x0112] = turn
    for i in range(8):
        pixels, mask = scenes(1, i)[0]
        (tmp_path/"images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path/"images"/f"{i}.png", exif=exif)
        upright = Image.fromarray(mask)
        upright.getexif()[0x0112] = turn
        upright = np.asarray(ImageOps.exif_transpose(upright))
        put(upright if drawn_upright else mask, tmp_path/"masks"/f"{i}.png")
        if i == 0: expected = upright
    report = preflight.check(tmp_path, progress=False)
    assert np.array_equal(np.asarray(report.targets[0]), expected)
    assert ("mask turned as EXIF says of its image" in findings(report)) != drawn_upright


def test_folders_of_classes_are_no_masks(tmp_path):
    "Not even if they are called so"
    for name in ("images", "masks"):
        for i in range(6): draw(tmp_path/name, f"{name}{i}", seed=10 * len(name) + i)
    assert preflight.check(tmp_path, progress=False).objective == "classification"


def test_things_that_are_too_small_are_counted(tmp_path):
    def dots(mask, file):
        mask = np.zeros((48, 64), np.uint8)
        mask[4:6, 4:6], mask[20:40, 20:40] = 1, 1
        put(mask, file)
    for i in range(8): folder_of(dots)(tmp_path, i)
    report = preflight.check(tmp_path, progress=False)
    report.measure(lambda: vision.segmenter("ladder-tiny", Segmentation(["background", "foreground"]), 32))
    assert "8 of 16 connected parts have fewer than 4 pixels in the 32 x 32" in findings(report)[
        "thing that is too small to see"].places[0][1]


# The command

@pytest.fixture
def folder(tmp_path):
    (tmp_path/"scenes").mkdir()
    for i in range(40): with_legend(put, "classes.json", numbers)(tmp_path/"scenes", i)
    return tmp_path/"scenes"


def test_from_a_folder_to_masks(command, folder, tmp_path):
    fast = "--backbone", "ladder-tiny", "--image-size", 48, "--freeze-depth", 0, "--epochs", 12, "--learning-rate", 0.01
    code, out, err = command("image", folder, *fast, "--out", tmp_path/"m", "--json")
    result = json.loads(out)
    assert code == 0 and result["objective"] == "segmentation" and result["iou"] > .5 and result["num_test"] == 6, err
    images = folder/"images"/"00.jpg", folder/"images"/"01.jpg"
    predict = "predict", tmp_path/"m", *images
    code, out, err = command(*predict, "--json", "--masks", tmp_path/"found")
    assert code == 0 and json.loads(out.splitlines()[0])["areas"]["background"] > .5
    assert sorted(file.name for file in (tmp_path/"found").iterdir()) == [
        "00.png", "00_overlay.jpg", "01.png", "01_overlay.jpg"]
    written = Image.open(tmp_path/"found"/"00.png")
    assert written.mode == "P" and written.size == (64, 48) and set(np.unique(np.asarray(written))) <= {0, 1, 2}
    code, out, err = command(*predict, "--json", "--windows", 40, "--masks", tmp_path/"more")
    areas, found = json.loads(out.splitlines()[0])["areas"], np.asarray(Image.open(tmp_path/"more"/"00.png"))
    assert areas["background"] == (found == 0).mean()
    code, _, err = command(*predict, "--masks", tmp_path/"found")
    assert code == 1 and "is there already, and nothing is overwritten" in err
    code, out, _ = command(*predict)
    assert code == 0 and "background" in out.splitlines()[1]
    told = "--target", "background", "--method", "grad_cam", "--out", tmp_path/"why.png", "--json"
    code, out, err = command("explain", tmp_path/"m", images[0], *told)
    assert code == 0 and json.loads(out)["target"] == "background" and (tmp_path/"why.png").exists(), err
    code, out, err = command("check", folder, "--json")
    assert code == 0 and json.loads(out)["objective"] == "segmentation" and json.loads(out)["pixels"]["red"] > 0


def test_a_large_image_is_read_in_windows():
    "Whose answers are put together without a seam"
    model, pixels = segmenter(), torch.arange(100 * 70, dtype=torch.int32).reshape(1, 100, 70) % 251
    seen = []
    def answer(parts): # what it is asked, which it could answer if it knew the pixels
        seen.extend(parts)
        return [part[0] % 3 for part in parts]
    for side in (32, 50, 64, 100, 200):
        found = model.in_windows(pixels.to(torch.uint8), side, answer)
        assert np.array_equal(found, (pixels[0] % 3).numpy())
    assert max(max(part.shape) for part in seen[:5]) == 32


large = """
import resource, sys
sys.path[:0] = sys.argv[2:]
import ladder
from pathlib import Path
from finetune_nb import data, evaluate, fit, freeze, load, saving, vision
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6 # gigabytes
top, before = Path(sys.argv[1]), peak()
task = data.image_folder(top/"maps")
model = vision.segmenter("ladder-tiny", task, 64)
history = fit(model, task, epochs=1, batch_size=2, progress=False)
saving.save(top/"m", model, task, history, evaluate(model, task.test))
file = next((top/"maps"/"images").iterdir())
(mask,) = load(top/"m").masks([file], windows=1500)
load(top/"m").predict([file], masks=top/"found")
print(mask.shape, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in other units there")
def test_images_of_24_megapixels_need_less_than_2_gigabytes(tmp_path, quiet):
    "Above the imports: read, learnt, judged, saved, and answered, whole and in windows"
    for folder in "images", "masks": (tmp_path/"maps"/folder).mkdir(parents=True)
    for i in range(6):
        mask = np.zeros((4000, 6000), np.uint8)
        mask[500 * i:500 * i + 1000, :3000] = 255
        Image.fromarray(mask // 2 + 50 + i).convert("RGB").save(tmp_path/"maps"/"images"/f"{i}.jpg")
        Image.fromarray(mask).save(tmp_path/"maps"/"masks"/f"{i}.png")
    command = [sys.executable, "-c", large, str(tmp_path), str(root), str(root/"tests")]
    done = subprocess.run(command, env={**quiet, "OMP_NUM_THREADS": "2"}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    shape, _, gigabytes = done.stdout.rpartition(" ")
    assert shape == "(4000, 6000)" and float(gigabytes) < 2


def test_a_broken_image_is_named_and_the_others_are_answered(command, tmp_path):
    task, model = task_of_scenes((8, 4, 4)), segmenter(5)
    history = fit(model, task, **how | dict(epochs=1))
    saving.save(tmp_path/"m", model, task, history, evaluate(model, task.test))
    draw(tmp_path, "good")
    (tmp_path/"bad.jpg").write_bytes(b"no image")
    told = "predict", tmp_path/"m", tmp_path/"good.jpg", tmp_path/"bad.jpg", "--masks", tmp_path/"found"
    code, out, err = command(*told)
    assert code == 1 and "bad.jpg" in err and "Traceback" not in err
    assert [file.name for file in sorted((tmp_path/"found").iterdir())] == ["good.png", "good_overlay.jpg"]


def test_the_backbone_that_has_seen_photographs_is_chosen(folder):
    task = data.image_folder(folder)
    chosen = backbone_for(task, folder, None, "resnet18-fractal", 64)
    assert chosen == ("efficientnet-lite0" if "efficientnet-lite0" in embedded("image") else "resnet18-fractal")
    assert backbone_for(task, folder, "resnet50", "resnet18-fractal", 64) == "resnet50"
