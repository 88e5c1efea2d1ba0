"""Which patches teach something? Variants of `data.patches`, over seeds, kept in nbs/measured/boxes.json.

`python tools/patches.py [VARIANT…] [--ways WAY…] [--seeds 0 1 2]`
"""
from functools import partial

from finetune_nb import evaluate, fit, freeze, vision
from finetune_nb.data import Examples, Task, baseline
from finetune_nb.engine.patches import draw_patches
from finetune_nb.freezing import blocks
from variants import compare

VARIANTS = { # images to learn from, epochs, the size at which they are seen, and how they are drawn
    "60 images": (60, 10, 128, {}),
    "20 images": (20, 30, 128, {}),
    "60 images, seen at 64 pixels": (60, 10, 64, {}),
    "60 images, with decoys": (60, 10, 128, dict(decoys=True)),
}


def task_of(variant, seed):
    num_train, _, _, how = VARIANTS[variant]
    objective, parts, made = draw_patches((num_train, 20, 60), seed, **how)
    return Task("patches", "image", objective, *(Examples(*part) for part in parts), made=made)


def learnt(task, variant, seed, learning=0, rate=None, pretrained=True):
    "mAP50 of validation and test part; `learning` blocks of the backbone"
    _, epochs, size, _ = VARIANTS[variant]
    model = vision.detector("efficientnet-lite0", task, size, pretrained=pretrained, seed=seed)
    freeze(model, max(0, len(blocks(model)) - 1 - learning))
    rates = dict(learning_rate=rate, head_learning_rate=rate)
    fit(model, task, epochs, batch_size=8, seed=seed, progress=False, **rates)
    return evaluate(model, task.validation).map50, evaluate(model, task.test).map50


def plain(task, variant, seed):
    found = baseline(task)
    return found.validation_scores["map50"], found.map50


WAYS = {"plain": plain, "frozen": learnt, "upper half": partial(learnt, learning=4),
        "everything": partial(learnt, learning=99),
        "scratch, 0.003": partial(learnt, learning=99, rate=3e-3, pretrained=False)}


if __name__ == "__main__": compare("boxes", VARIANTS, WAYS, task_of)
