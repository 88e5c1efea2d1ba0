"""Which scenes teach something? Variants of `data.scenes`, over seeds; one line each, kept in nbs/measured/scenes.json.

`python tools/scenes.py [VARIANT…] [--seeds 3]`: what is measured already is not measured again.
"""
import argparse
import json
import time
from pathlib import Path

from finetune_nb import evaluate, fit, freeze, vision
from finetune_nb.data import Examples, Task, baseline
from finetune_nb.engine.scenes import GROUNDS, draw_scenes
from finetune_nb.engine.segmentation import Segmentation
from finetune_nb.freezing import blocks
from lessons import processor

SAVED = Path(__file__).parent.parent/"nbs"/"measured"/"scenes.json"
VARIANTS = {
    "three grounds": GROUNDS,
    "two grounds": ("grass", "gravel"),
    "five pictures": (*GROUNDS, "ihc", "coins"),
}
COUNTS, EPOCHS = (100, 30, 60), 15


def task_of(names, seed):
    classes, parts, made = draw_scenes(COUNTS, seed, names)
    return Task("scenes", "image", Segmentation(classes), *(Examples(*part) for part in parts), made=made)


def learnt(task, depth, seed, rate=None, pretrained=True):
    "Validation and test scores, and seconds of all processors; `depth` counted from the head"
    model = vision.segmenter("efficientnet-lite0", task, 128, pretrained=pretrained, seed=seed)
    freeze(model, len(blocks(model)) - depth if depth else 0)
    began = time.process_time()
    history = fit(model, task, EPOCHS, 8, rate, rate, seed=seed, progress=False)
    return history.validation_score, evaluate(model, task.test).iou, time.process_time() - began


def row(variant, seed):
    task = task_of(VARIANTS[variant], seed)
    found = dict(variant=variant, seed=seed, forest=baseline(task).iou)
    for name, depth in (("decoder alone", 1), ("upper half", 5)):
        _, found[name], found[f"{name}, seconds"] = learnt(task, depth, seed)
    scratch = [learnt(task, 0, seed, rate, False) for rate in (1e-3, 3e-3)]
    return found | dict(scratch=max(scratch)[1])


if __name__ == "__main__":
    asked = argparse.ArgumentParser()
    asked.add_argument("variants", nargs="*", default=list(VARIANTS))
    asked.add_argument("--seeds", type=int, default=3)
    told = asked.parse_args()
    rows = json.loads(SAVED.read_text())["rows"] if SAVED.exists() else []
    for variant in told.variants:
        for seed in range(told.seeds):
            if any((own["variant"], own["seed"]) == (variant, seed) for own in rows): continue
            rows.append(row(variant, seed))
            print(rows[-1], flush=True)
            about = dict(machine=processor(), counts=COUNTS, epochs=EPOCHS)
            SAVED.write_text(json.dumps(about | dict(rows=rows), indent=1) + "\n")
