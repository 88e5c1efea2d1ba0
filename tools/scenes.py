"""Which scenes teach something? Variants of `data.scenes`, over seeds, kept in nbs/measured/scenes.json.

`python tools/scenes.py [VARIANT…] [--seeds 3]`: what is measured already is not measured again.
"""
import argparse
import json
import time
from pathlib import Path

from finetune_nb import evaluate, fit, freeze, vision
from finetune_nb.data import Examples, Task, baseline
from finetune_nb.engine.scenes import GROUNDS, draw_scenes
from finetune_nb.freezing import blocks
from lessons import processor

SAVED = Path(__file__).parent.parent/"nbs"/"measured"/"scenes.json"
VARIANTS = {
    "three grounds, one light": dict(names=GROUNDS),
    "three grounds, a light for each region": dict(names=GROUNDS, own_light=True),
    "five pictures": dict(names=(*GROUNDS, "coins", "ihc")),
}
COUNTS, EPOCHS, RATES = (100, 30, 60), 12, (1e-3, 3e-3, 1e-2)


def task_of(variant, seed):
    objective, parts, made = draw_scenes(COUNTS, seed, **VARIANTS[variant])
    return Task("scenes", "image", objective, *(Examples(*part) for part in parts), made=made)


def learnt(task, seed, learning=0, rate=None, pretrained=True):
    "Validation and test scores; `learning` blocks of the backbone"
    model = vision.segmenter("efficientnet-lite0", task, 128, pretrained=pretrained, seed=seed)
    freeze(model, len(blocks(model)) - 1 - learning)
    history = fit(model, task, EPOCHS, 8, rate, rate, seed=seed, progress=False)
    return history.validation_score, evaluate(model, task.test).iou


def forest(task, seed):
    found = baseline(task)
    return found.validation_scores["iou"], found.iou


WAYS = {"forest": forest, "decoder alone": learnt,
        "upper half": lambda task, seed: learnt(task, seed, 4)}
WAYS |= {f"scratch, {rate:g}": lambda task, seed, rate=rate: learnt(task, seed, 9, rate, False) for rate in RATES}


if __name__ == "__main__":
    asked = argparse.ArgumentParser()
    asked.add_argument("variants", nargs="*", default=list(VARIANTS))
    asked.add_argument("--seeds", type=int, default=3)
    told = asked.parse_args()
    rows = json.loads(SAVED.read_text())["rows"] if SAVED.exists() else []
    for variant in told.variants:
        for seed in range(told.seeds):
            task = None
            for way, measure in WAYS.items():
                if any((own["variant"], own["seed"], own["way"]) == (variant, seed, way) for own in rows): continue
                task, began = task or task_of(variant, seed), time.process_time()
                validation, test = measure(task, seed)
                rows.append(dict(variant=variant, seed=seed, way=way, validation=round(validation, 4),
                                 test=round(test, 4), seconds=round(time.process_time() - began, 1)))
                print(rows[-1], flush=True)
                about = dict(machine=processor(), counts=COUNTS, epochs=EPOCHS)
                SAVED.write_text(json.dumps(about | dict(rows=rows), indent=1) + "\n")
