"""The five steps in each tool, side by side: runs every listing of this folder, and what is measured beside them.

`make tools` runs it; what is done already is not done again. Each run is a process of its own, in the environment of
the peers. Writes `nbs/measured/tools.json`, which the lesson on tools shows.
"""
import argparse
import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

here = Path(__file__).resolve().parent
root = here.parents[1]
sys.path[:0] = [str(here), str(here.parent), str(root)]

import bench

TENSORFLOW, TORCH = "tensorflow", "torch"
MOST = 1800 # seconds of one run
THREADS = 1 # of each run: programs beside it then disturb it least, and everybody alike
# name: listing, Keras's backend
IMAGE = {
    "plain PyTorch": ("image_pytorch", TORCH),
    "Keras 3 on TensorFlow": ("image_keras", TENSORFLOW),
    "Keras 3 on PyTorch": ("image_keras", TORCH),
    "Lightning": ("image_lightning", TORCH),
    "finetune_nb": ("image_finetune_nb", TORCH)}
TEXT = {
    "plain PyTorch": ("text_pytorch", TORCH),
    "Trainer": ("text_trainer", TORCH),
    "Lightning": ("text_lightning", TORCH),
    "finetune_nb": ("text_finetune_nb", TORCH)}
CONVERTED = [("image_finetune_nb", TORCH), ("image_pytorch", TORCH), ("image_keras", TENSORFLOW),
             ("image_keras", TORCH), ("text_finetune_nb", TORCH), ("text_pytorch", TORCH)]
# Is it the head's first weights? Each of two listings, with those of the other: what is replaced, by what
OTHER_HEAD = {
    "image_pytorch": ("network.fc = nn.Linear(512, CLASSES)", "network.fc = nn.Linear(512, CLASSES)\n"
                      "nn.init.zeros_(network.fc.bias), nn.init.xavier_uniform_(network.fc.weight)"),
    "image_keras": ("Dense(CLASSES)", "Dense(CLASSES, kernel_initializer=keras.initializers.RandomUniform("
                    "-512 ** -.5, 512 ** -.5))")}
BESIDE = {"image_keras": ["keras_resnet"], "text_pytorch": ["mean_pooling"], "text_trainer": ["mean_pooling"],
          "text_lightning": ["mean_pooling"]} # what a listing imports of this folder, `shared` aside
marker = re.compile(r"^# ([1-5]) (choose|freeze|add a head|train|evaluate)$")


def steps(source):
    "A listing in parts, `[(its steps, its first line from 0, text)]`; what comes before the first has no steps"
    lines, parts = source.splitlines(keepends=True), [([], 0, [])]
    for number, line in enumerate(lines):
        found = marker.match(line.rstrip())
        if not found: parts[-1][2].append(line)
        elif parts[-1][0] and not "".join(parts[-1][2]).strip(): # two at once
            parts[-1] = ([*parts[-1][0], int(found[1])], number + 1, [])
        else: parts.append(([int(found[1])], number + 1, []))
    return [(own, first, "".join(text)) for own, first, text in parts]


def fingerprint(*names):
    "Of files in this folder: a run belongs to the very text that ran"
    return hashlib.sha256(b"".join((here/f"{name}.py").read_bytes() for name in ("shared", *names))).hexdigest()[:16]


# one run, in this process

def run_listing(name, replaced=("", "")):
    "Run a listing, step by step; the clock starts at the first, when imports are made and examples are read"
    source = (here/f"{name}.py").read_text(encoding="utf-8")
    assert replaced[0] in source, f"{name} has no {replaced[0]}"
    (_, _, opening), *parts = steps(source.replace(*replaced) if replaced[0] else source)
    ran, seconds, processor = {"__name__": "__main__"}, {}, {}
    exec(compile(opening, f"{name}.py", "exec"), ran)
    before = bench.resident()
    bench.forget_peak()
    for own, first, text in parts:
        started, busy = time.perf_counter(), time.process_time()
        exec(compile("\n" * first + text, f"{name}.py", "exec"), ran)
        seconds[own[0]] = time.perf_counter() - started
        processor[own[0]] = time.process_time() - busy
    return dict(accuracy=float(ran["accuracy"]), seconds=seconds, processor_seconds=processor,
                memory_before=before, memory_peak=bench.resident(peak=True))


def one(job):
    "Do a job in this process"
    with contextlib.redirect_stdout(io.StringIO()):
        if job["what"] == "listing": return run_listing(job["name"])
        if job["what"] == "other head": return run_listing(job["name"], OTHER_HEAD[job["name"]])
        if job["what"] == "conversion":
            import conversion
            return conversion.measured(job["name"])
        import batchnorm
        return batchnorm.measured(job["name"])


# the whole

def jobs(seeds):
    "All that is to be done, in the order of what it tells"
    for name, backend in CONVERTED:
        yield dict(what="conversion", name=name, backend=backend, seed=0,
                   files=fingerprint("conversion", *BESIDE.get(name, ())))
    import batchnorm
    for seed in range(seeds):
        for task, tools in (("image", IMAGE), ("text", TEXT)):
            for tool, (name, backend) in tools.items():
                yield dict(what="listing", task=task, tool=tool, name=name, backend=backend, seed=seed,
                           files=fingerprint(name, *BESIDE.get(name, ())))
        for name, backend in (("image_pytorch", TORCH), ("image_keras", TENSORFLOW)):
            yield dict(what="other head", name=name, backend=backend, seed=seed,
                       files=fingerprint(name, *BESIDE.get(name, ())))
        for name in dict.fromkeys(tool for tool, _ in batchnorm.SETTINGS):
            keras = ["keras_resnet"] if name == "Keras" else []
            yield dict(what="batchnorm", name=name, backend=TENSORFLOW if keras else TORCH, seed=seed,
                       files=fingerprint("batchnorm", *keras))


def in_child(job, folder, data, timeout=None):
    "Do a job in a process of its own"
    result = Path(folder)/"result.json"
    command = [sys.executable, str(here/"run.py"), "--one", json.dumps(job), "--result", str(result)]
    environment = bench.environment(folder) | {
        "KERAS_BACKEND": job["backend"],
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **{name: str(THREADS) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS",
                                           "TF_NUM_INTEROP_THREADS")},
        "TOOLS_SEED": str(job["seed"]),
        "TOOLS_FOLDER": str(data)}
    return bench.result_of(command, result, folder, environment, timeout)


def machine():
    names = ["finetune-nb", "torch", "tensorflow-cpu", "keras", "transformers", "lightning", "fastai", "numpy"]
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return dict(processor=bench.processor(), cores=os.cpu_count(), date=time.strftime("%Y-%m-%d"), versions=versions)


def known(file):
    "What was measured already: `{job: result}`"
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    return {key(row["job"]): row for row in rows}


def key(job): return json.dumps(job, sort_keys=True)


def in_words(result):
    if "error" in result: return result["error"]
    if "scores" in result: return "scores of the test examples"
    if "settings" in result:
        return ", ".join("stayed" if len(set(own["statistics"])) == 1 else "moved" for own in result["settings"])
    clock, busy = (sum(result[name].values()) for name in ("seconds", "processor_seconds"))
    return f"{result['accuracy']:.1%}, {clock:.1f} s, {busy:.1f} of the processor, {result['memory_peak'] / 1e6:.0f} MB"


def run_all(given):
    started, found = time.monotonic(), known(given.out)
    wanted = [job for job in jobs(given.seeds) if given.only in key(job)]
    def save():
        there = {key(job) for job in jobs(given.seeds)}
        rows = [row for own, row in found.items() if own in there]
        about = dict(machine=machine(), shared=settings(), rows=rows)
        given.out.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    data = Path(tempfile.gettempdir())/"finetune_nb_tools"
    for job in wanted:
        if "error" not in found.get(key(job), {}).get("result", {"error": "not done"}): continue
        if given.minutes and time.monotonic() - started > 60 * given.minutes:
            print("The time is up: type the same again to go on.", flush=True)
            break
        with tempfile.TemporaryDirectory(prefix="finetune_nb_tools_") as folder:
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
            result = in_child(job, folder, data, MOST)
        found[key(job)] = dict(job=job, load=load, result=result)
        name = " · ".join(map(str, [job["what"], job.get("task", ""), job.get("tool", job["name"]), job["seed"]]))
        print(f"{(time.monotonic() - started) / 60:5.1f} min  {name}: {in_words(result)}", flush=True)
        save()
    save()
    print(f"See {given.out}.", flush=True)


def settings():
    import batchnorm, shared
    return dict(labels_per_class=shared.LABELS, test_per_class=shared.TEST, classes=shared.CLASSES,
                epochs=shared.EPOCHS, batch_size=shared.BATCH, image_rate=shared.IMAGE_RATE,
                text_rate=shared.TEXT_RATE, batchnorm_rate=batchnorm.RATE, threads=THREADS)


def options():
    parser = argparse.ArgumentParser(description="Run the five steps in each tool, and write what was measured.")
    def option(name, help, **more): parser.add_argument(name, help=help, **more)
    option("--minutes", "begin no run after so many; the next call goes on (default: no limit)", type=float)
    option("--seeds", "labelled subsets, each with its own seed (default: 3)", type=int, default=3)
    option("--only", "the jobs whose description has this text in it", default="")
    option("--out", "where the results go (default: nbs/measured/tools.json)", type=Path,
           default=root/"nbs"/"measured"/"tools.json")
    option("--venv", "environment of the tools, made if it is not there (default: .venv-bench)", type=Path,
           default=root/".venv-bench")
    option("--one", argparse.SUPPRESS, type=json.loads)
    option("--result", argparse.SUPPRESS, type=Path)
    option("--inside", argparse.SUPPRESS, action="store_true")
    return parser.parse_args()


def main():
    given = options()
    if given.one: return bench.write_result(one, given.one, given.result)
    if not given.inside: bench.again_inside(given.venv.absolute(), here/"run.py")
    run_all(given)


if __name__ == "__main__":
    try: main()
    except KeyboardInterrupt: sys.exit("finetune_nb: interrupted; type the same again to go on.")
