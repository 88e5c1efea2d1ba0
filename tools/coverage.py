"""Does the interval of a recommendation hold the gain on other examples? Sweeps of labelled subsets, tags and masks.

`python tools/coverage.py [VARIANT…] [--seeds 0 1 2]`: kept in nbs/measured/coverage.json, and goes on where it stopped.
The gain is that of the recommended freeze depth over the head alone, in the mean quality of an example. *test* is its
gain on the test part, *interval* what the sweep expected from the validation part, with 95 %; *half* is the same of
the smaller depth, recommended or not.
"""
import argparse
import json
import time
from functools import partial
from pathlib import Path

import numpy as np

from finetune_nb import data, depth, text, vision
from finetune_nb.engine.runs import Runs
from lessons import processor

saved = Path(__file__).parent.parent/"nbs"/"measured"/"coverage.json"
VARIANTS = { # how a subset is drawn, its model, the freeze depths, and what `fit` is told
    "citations": (partial(data.citations, num_train=100, num_validation=60, num_test=290),
                  partial(text.tagger, "minilm"), (7, 3), dict(epochs=6)),
    "scenes": (partial(data.scenes, num_train=20, num_validation=30, num_test=120),
               partial(vision.segmenter, "efficientnet-lite0", image_size=128), (9, 4), dict(batch_size=8)),
}


class Remembering(Runs):
    "Keeps how good each run is on the test part, example by example"
    def judge(self, depth, examples):
        found = super().judge(depth, examples)
        if examples is self.task.test: self.__dict__.setdefault("tests", {}).setdefault(depth, []).append(found.each)
        return found

    def about(self):
        kept.clear()
        kept.update({str(depth): round(float(np.mean(each)), 4) for depth, each in self.tests.items()})
        return super().about()


kept = {}
depth.Runs = Remembering


def tried(variant, seed):
    "A row: two runs of each depth"
    draw, make, depths, how = VARIANTS[variant]
    task, began = draw(seed=seed), time.process_time()
    swept = depth.sweep(lambda head: make(task, seed=head), task, depths, seeds=2, strategy="all",
                        progress=False, **how)
    told, gain = swept.recommend(), kept[str(swept.recommend().depth)] - kept[str(max(depths))]
    ours, theirs = (np.stack(list(swept.right(cut).values())) for cut in (min(depths), max(depths)))
    more, error = depth.difference(ours, theirs)
    half = dict(interval=[more - 1.96 * error, more + 1.96 * error],
                test=kept[str(min(depths))] - kept[str(max(depths))])
    return dict(variant=variant, seed=seed, depth=told.depth, expected=told.gain_over_head_only,
                interval=told.interval, test=gain, half=half, means=dict(kept), num_validation=len(task.validation),
                num_test=len(task.test), seconds=round(time.process_time() - began, 1))


if __name__ == "__main__":
    asked = argparse.ArgumentParser()
    asked.add_argument("variants", nargs="*", default=list(VARIANTS))
    asked.add_argument("--seeds", type=int, nargs="*", default=list(range(20)))
    told = asked.parse_args()
    rows = json.loads(saved.read_text())["rows"] if saved.exists() else []
    done = {(row["variant"], row["seed"]) for row in rows}
    for variant, seed in [(variant, seed) for variant in told.variants for seed in told.seeds]:
        if (variant, seed) in done: continue
        rows.append(tried(variant, seed))
        print(rows[-1], flush=True)
        saved.write_text(json.dumps(dict(machine=processor(), rows=rows), indent=1) + "\n")
