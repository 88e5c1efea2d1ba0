"""Which scenes teach something? Variants of `data.scenes`, over seeds, kept in nbs/measured/scenes.json.

`python tools/scenes.py [VARIANT…] [--ways WAY…] [--seeds 0 1 2]`
"""
from functools import partial

from finetune_nb import evaluate, fit, freeze, vision
from finetune_nb.data import Examples, Task, baseline
from finetune_nb.engine.scenes import draw_scenes
from finetune_nb.freezing import blocks
from variants import compare

VARIANTS = { # scenes to learn from, epochs, and how they are drawn
    "one light, 100 scenes": (100, 12, {}),
    "one light, 60 scenes": (60, 12, {}),
    "one light, 20 scenes": (20, 30, {}),
    "a light for each region, 20 scenes": (20, 30, dict(own_light=True)),
}
RATES = 3e-3, 1e-2, 3e-2


def task_of(variant, seed):
    num_train, _, how = VARIANTS[variant]
    objective, parts, made = draw_scenes((num_train, 30, 60), seed, **how)
    return Task("scenes", "image", objective, *(Examples(*part) for part in parts), made=made)


def learnt(task, variant, seed, learning=0, rate=None, pretrained=True):
    "Validation and test scores; `learning` blocks of the backbone"
    model = vision.segmenter("efficientnet-lite0", task, 128, pretrained=pretrained, seed=seed)
    freeze(model, len(blocks(model)) - 1 - learning)
    rates = dict(learning_rate=rate, head_learning_rate=rate)
    history = fit(model, task, VARIANTS[variant][1], batch_size=8, seed=seed, progress=False, **rates)
    return history.validation_score, evaluate(model, task.test).iou


def forest(task, variant, seed):
    found = baseline(task)
    return found.validation_scores["iou"], found.iou


WAYS = {"forest": forest, "decoder alone": learnt, "upper half": partial(learnt, learning=4),
        "everything": partial(learnt, learning=9)}
WAYS |= {f"scratch, {rate:g}": partial(learnt, learning=9, rate=rate, pretrained=False) for rate in RATES}


if __name__ == "__main__": compare("scenes", VARIANTS, WAYS, task_of)
