"""Which way of learning a task is how good? Variants, ways and seeds, kept in a file of nbs/measured.

What is measured already is not measured again, so a long comparison can be made in pieces.
"""
import argparse
import json
import time
from pathlib import Path

from lessons import processor

MEASURED = Path(__file__).parent.parent/"nbs"/"measured"


def compare(name, # of the file
            variants, # names; more is up to `task_of`
            ways, # by name; each takes a task, the variant's name and a seed, and gives validation and test scores
            task_of): # of a variant and a seed
    "The command of a script; its arguments choose variants, ways and seeds"
    asked, saved = argparse.ArgumentParser(), MEASURED/f"{name}.json"
    asked.add_argument("variants", nargs="*", default=list(variants))
    asked.add_argument("--ways", nargs="*", default=list(ways))
    asked.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    told = asked.parse_args()
    rows = json.loads(saved.read_text())["rows"] if saved.exists() else []
    done = {(own["variant"], own["seed"], own["way"]) for own in rows}
    wanted = [(variant, seed, way) for variant in told.variants for seed in told.seeds for way in told.ways]
    for variant, seed, way in wanted:
        if (variant, seed, way) in done: continue
        task, began = task_of(variant, seed), time.process_time()
        validation, test = ways[way](task, variant, seed)
        rows.append(dict(variant=variant, seed=seed, way=way, validation=round(validation, 4), test=round(test, 4),
                         seconds=round(time.process_time() - began, 1)))
        print(rows[-1], flush=True)
        saved.write_text(json.dumps(dict(machine=processor(), rows=rows), indent=1) + "\n")
