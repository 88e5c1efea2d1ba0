"""The same fine-tuning side by side in finetune_nb and its peers; `make bench` runs it.

`python benchmarks/bench.py --help` lists the options. Needs only the standard library: the runs are processes of
their own, in an environment of their own.
"""
import argparse
import contextlib
import hashlib
import importlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

here = Path(__file__).resolve().parent
root = here.parent
sys.path[:0] = [str(here), str(root)]

USER, BEST, RECIPE = "as a user gets them", "best settings", "the article's text recipe"
OURS, UNCACHED, PLAIN, LIMIT = "finetune_nb", "finetune_nb, no cache", "plain PyTorch", "limit"
FRAMEWORKS = [PLAIN, "Hugging Face Trainer", "Lightning", "fastai", "Keras 3 on PyTorch"]
HEADS, DEPTHS = ["images, head only", "text, head only"], ["images, depth 4", "text, depth 5"]

# name: kind, blocks that are frozen, learning rate
WORKS = {
    "images, head only": ("image", 5, 1e-3),
    "images, depth 4": ("image", 4, 3e-4),
    "text, head only": ("text", 7, 3e-3),
    "text, depth 5": ("text", 5, 2e-4)}
# training, validation and test examples
SIZES = {
    "full": dict(image=(244, 50, 100), text=(2000, 100, 500)),
    "half": dict(image=(122, 50, 100), text=(1000, 100, 500)),
    "quick": dict(image=(40, 10, 40), text=(200, 50, 100)),
    "smoke": dict(image=(8, 4, 4), text=(20, 10, 10))}


@dataclass(frozen=True)
class Run:
    "One process: who does what, how, and for how long."
    peer: str
    work: str
    mode: str # USER, BEST or RECIPE
    epochs: int
    size: str
    repeat: int = 0
    cut: bool = False # a few batches only, the rest extrapolated

    def spec(self, folder):
        kind, depth, learning_rate = WORKS[self.work]
        train, validation, test = SIZES[self.size][kind]
        task = dict(name=self.work, kind=kind, depth=depth, learning_rate=learning_rate, train=train,
                    validation=validation, test=test, epochs=self.epochs, folder=str(Path(folder)/self.size),
                    padded=self.mode == RECIPE)
        return asdict(self) | dict(task=task)


# one run, in this process

def resident(peak=False):
    "Bytes of memory that this process holds, or the most it held"
    try: lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    except OSError: # no Linux
        import psutil, resource
        if not peak: return psutil.Process().memory_info().rss
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(lines["VmHWM" if peak else "VmRSS"].split()[0]) * 1024


def forget_peak():
    with contextlib.suppress(OSError): Path("/proc/self/clear_refs").write_text("5")


def one(spec):
    "Do a run; the clock starts after the imports and stops after the test examples."
    import torch, work, peers
    task = work.Work(**spec["task"])
    torch.manual_seed(spec["repeat"])
    if spec["peer"] == LIMIT:
        from limit import limit
        return dict(parts=limit(task, spec["repeat"]))
    function, imports = peers.PEERS[spec["peer"]]
    for module in imports: importlib.import_module(module)
    before = resident()
    forget_peak()
    started, processor = time.perf_counter(), time.process_time()
    options = dict(cut=True) if spec["cut"] else {}
    found = function(task, spec["mode"] == BEST, spec["repeat"], **options)
    seconds = time.perf_counter() - started
    measured = dict(seconds=seconds, processor_seconds=time.process_time() - processor,
                    memory_imports=before, memory_peak=resident(peak=True))
    if not spec["cut"]: return measured | dict(accuracy=float(found))
    train, validation, test = found
    around = seconds - sum(loader.seconds for loader in found)
    whole = around + task.epochs * (train.whole + validation.whole) + test.whole
    return measured | dict(seconds=whole, measured_seconds=seconds)


def in_process(run, folder, timeout=None):
    "The same, and an error is a result too"
    try:
        with contextlib.redirect_stdout(io.StringIO()): return one(run.spec(folder))
    except Exception as error: return dict(error=told(type(error).__name__, str(error)))


def told(kind, message): return " ".join(f"{kind}: {message}".split()).replace(str(root), ".")[:300]


def in_child(run, folder, timeout):
    "The same in a fresh process, so that memory and imports are nobody else's"
    result = Path(folder)/"result.json"
    command = [sys.executable, str(here/"bench.py"), "--one", json.dumps(run.spec(folder)), "--result", str(result)]
    return result_of(command, result, folder, environment(folder), timeout)


def result_of(command, result, folder, environment, timeout):
    "What a command writes to the file `result`; how it ended, if it writes nothing"
    log = Path(folder)/"log.txt"
    result.unlink(missing_ok=True)
    with open(log, "w") as out:
        try: ended = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out,
                                    stderr=subprocess.STDOUT, timeout=timeout)
        except subprocess.TimeoutExpired: return dict(error=f"stopped after {timeout:.0f} s, when the time was up")
    if result.exists(): return json.loads(result.read_text())
    last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
    return dict(error=told(f"ended with code {ended.returncode}", last[0]))


def environment(folder):
    "What every run gets: the processor alone, no network, and nothing written outside `folder`"
    return {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "MPLBACKEND": "Agg",
        "KERAS_BACKEND": "torch",
        "KERAS_HOME": str(folder),
        "PYTHONPATH": str(root),
        "PYTHONWARNINGS": "ignore"}


# which runs, in which order

def plan(settings, done):
    """The runs, the most telling first, since the time may end before the list.

    It looks at what is done to find the fastest peers.
    """
    s = settings
    recipe = s.recipe and "text, head only" in s.works
    def everyone(mode): return [*s.frameworks, *([UNCACHED, OURS] if mode == USER else [])]
    def fastest(work, mode, count):
        times = {}
        for run, result in done:
            like = (run.work, run.mode, run.size, run.epochs) == (work, mode, s.size, s.screen)
            if like and run.peer in s.frameworks and "seconds" in result:
                times.setdefault(run.peer, []).append(result["seconds"])
        screened = {peer: median(seconds) for peer, seconds in times.items()}
        return sorted(screened, key=screened.get)[:count]
    def runs(work, mode, epochs, peers, repeat=0, size=s.size):
        return [Run(peer, work, mode, epochs, size, repeat) for peer in peers]
    def ours_and_best(work, epochs, count=1, repeat=0, size=s.size):
        best = runs(work, BEST, epochs, fastest(work, BEST, count), repeat, size)
        return [Run(OURS, work, USER, epochs, size, repeat), *best]
    def both(work, count):
        as_is = runs(work, USER, s.epochs, [OURS, *fastest(work, USER, count)])
        return as_is + runs(work, BEST, s.epochs, fastest(work, BEST, count))

    # everyone once, briefly: who is fast?
    for mode in (USER, BEST):
        for work in s.works:
            if mode == USER: yield Run(LIMIT, work, USER, s.screen, s.size)
            yield from runs(work, mode, s.screen, everyone(mode))
    # the fastest at full length, then the article's recipe
    for work in s.works: yield from both(work, 1)
    if recipe: yield Run(PLAIN, "text, head only", RECIPE, s.epochs, s.size, cut=True)
    # again, where it is closest: the fastest at its best settings
    for epochs in (s.epochs, s.screen):
        for repeat in range(1, s.repeats):
            for work in s.works:
                yield from ours_and_best(work, epochs, repeat=repeat)
                if epochs == s.epochs: yield Run(LIMIT, work, USER, s.screen, s.size, repeat)
    # how it grows
    for epochs, size, count in s.growth:
        for work in s.works: yield from ours_and_best(work, epochs, count, size=size)
        if size != s.size: yield from (Run(LIMIT, work, USER, s.screen, size) for work in s.works)
    # the next fastest at full length, and the fastest again as a user gets them
    for work in s.works: yield from both(work, 2)
    for repeat in range(1, s.repeats):
        for work in s.works: yield from runs(work, USER, s.epochs, fastest(work, USER, 1), repeat)
    # everyone at full length, as often as the rest
    for repeat in range(s.repeats):
        for mode in (USER, BEST):
            for work in s.works: yield from runs(work, mode, s.epochs, everyone(mode), repeat)
    if recipe: yield Run(PLAIN, "text, head only", RECIPE, s.epochs, s.size)


def guess(run, done):
    "Seconds that a run will take, from those of its peer that are done, shorter or longer; 0 where nothing is known"
    def amount(r): return r.epochs * SIZES[r.size][WORKS[r.work][0]][0]
    if run.cut or run.peer == LIMIT: return 0
    known = [(r, x) for r, x in done if "seconds" in x and r.work == run.work and r.mode == run.mode]
    own = [x["seconds"] * max(1, amount(run) / amount(r)) for r, x in known if r.peer == run.peer]
    return min(own) if own else 0


@dataclass
class Settings:
    size: str
    screen: int # epochs of the first, brief round
    epochs: int
    repeats: int
    works: list
    frameworks: list
    growth: list # (epochs, size, how many of the fastest peers)
    minutes: float # 0: no limit
    recipe: bool = True


def settings_for(form, minutes, repeats):
    if form == "smoke": return Settings("smoke", 1, 1, 1, HEADS, [PLAIN, "Hugging Face Trainer"], [], 0, False)
    if form == "quick":
        return Settings("quick", 3, 3, repeats or 1, HEADS, FRAMEWORKS, [], 5 if minutes is None else minutes, False)
    growth = [(3, "full", 2), (10, "half", 1), (30, "full", 1), (10, "half", 2), (30, "full", 2)]
    minutes = 60 if minutes is None else minutes
    return Settings("full", 1, 10, repeats or 3, HEADS + DEPTHS, FRAMEWORKS, growth, minutes)


# the environment of the peers

def make_environment(venv):
    "An environment with finetune_nb and its peers; one that fits already is reused"
    import install
    stamp, log, requirements = venv/"benchmarks.installed", root/"install.log", here/"requirements.txt"
    described = requirements.read_bytes() + (root/"settings.ini").read_bytes()
    wanted = hashlib.sha256(described + str(root).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted: return
    install.venv = str(venv)
    install.check_python()
    if not venv.exists() and (free := install.free_gb(str(venv))) < install.needed_gb:
        install.stop(f"about {install.needed_gb} GB of free disk are needed for the peers and {free:.1f} are there: "
                     "free some, or name a folder on another disk, as in "
                     "`python3 benchmarks/bench.py --venv /other/disk/venv`.")
    install.make_venv()
    (venv/".gitignore").write_text("*\n")
    print(f"Installing finetune_nb and its peers into {venv}: 8 GB on Linux, a few minutes. All that pip says is in "
          f"{log}.", flush=True)
    pip = [install.python_of(str(venv)), "-m", "pip", "install", "--progress-bar", "off", "--retries", "2"]
    with open(log, "w") as out:
        code = subprocess.call([*pip, "-e", ".[offline]", "-r", str(requirements)],
                               cwd=root, stdout=out, stderr=subprocess.STDOUT)
    if code:
        said = log.read_text(errors="replace")
        if "No space left on device" in said:
            install.stop(f"the disk filled up: free about {install.needed_gb} GB and type the same again "
                         f"(pip's log: {log}).")
        if re.search(install.offline_signs, said):
            install.stop("the peers cannot be fetched, because the network cannot be reached: connect it and type the "
                         f"same again (pip's log: {log}).")
        install.stop(f"pip could not install the peers; the reason is in the last lines of {log}.")
    stamp.write_text(wanted)


# the whole

def processor():
    "This machine's processor, as a person would name it"
    import platform
    try: return re.search(r"^model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(), re.M)[1].strip()
    except (OSError, TypeError): return platform.processor() or platform.machine()


def machine():
    "What the runs ran on"
    import importlib.metadata as metadata, platform, torch
    from work import has_bf16
    names = ["finetune-nb", "torch", "torchvision", "transformers", "accelerate", "lightning", "fastai", "keras",
             "numpy", "pillow"]
    versions = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError): versions[name] = metadata.version(name)
    return dict(
        processor=processor(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        bf16=has_bf16(),
        vector_instructions=torch.backends.cpu.get_cpu_capability(),
        system=platform.system(),
        versions=versions)


def prepare(sizes, folder):
    "Draw the images of each size, and read the sentences once"
    import work
    print("Drawing images and reading sentences.", flush=True)
    for size in sizes:
        work.draw_images(Path(folder)/size, dict(zip(("train", "validation", "test"), SIZES[size]["image"])))
    work.Work("", "text", 0, 0, 10, 10, 10).task()


def run_all(settings, folder, files, execute):
    import psutil
    from report import write
    sizes = {settings.size: SIZES[settings.size], **{size: SIZES[size] for _, size, _ in settings.growth}}
    prepare(sizes, folder)
    load = psutil.cpu_percent(interval=2) / 100 * psutil.cpu_count() # of others: this process only waits
    if load > 0.5 and settings.size != "smoke":
        print(f"Other programs keep {load:.1f} processors busy: times will be too long, and not alike. Stop them, or "
              "read the result with that in mind.", flush=True)
    started, done, left_out, seen = time.monotonic(), [], [], set()
    results = dict(
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        machine=machine(),
        load_before=round(load, 2),
        settings=asdict(settings),
        sizes=sizes)
    def save():
        results.update(
            minutes=round((time.monotonic() - started) / 60, 1),
            runs=[asdict(run) | result for run, result in done],
            left_out=[asdict(run) for run in left_out])
        write(results, files)
    try:
        for run in plan(settings, done):
            if run in seen: continue
            seen.add(run)
            left = settings.minutes * 60 - (time.monotonic() - started) if settings.minutes else None
            if left is not None and guess(run, done) + 15 > left:
                left_out.append(run)
                continue
            result = execute(run, folder, left and max(left, 30))
            done.append((run, result))
            say(run, result, time.monotonic() - started)
            if settings.size != "smoke": save()
    except KeyboardInterrupt: print("\nInterrupted; the results so far are kept.", flush=True)
    save()
    print(f"\n{files.with_suffix('.md').read_text()}\nSee {files}.md, .json and .png.", flush=True)


def in_words(run, result):
    "The result of a run in a few words"
    if "parts" in result: return f"{sum(result['parts'].values()):.1f} s"
    if "error" in result: return result["error"]
    if run.cut: return f"{result['seconds']:.1f} s (extrapolated)"
    memory = (result["memory_peak"] - result["memory_imports"]) / 1e6
    return f"{result['seconds']:.1f} s, {result['accuracy']:.1%}, {memory:.0f} MB"


def say(run, result, seconds):
    which = [run.work, run.peer, run.mode, f"{run.epochs} epoch{'s' * (run.epochs > 1)}"]
    if run.size == "half": which.append(run.size)
    print(f"{seconds / 60:5.1f} min  {' · '.join(which)}: {in_words(run, result)}", flush=True)


def options():
    "What was asked for"
    parser = argparse.ArgumentParser(
        description="Run the same fine-tuning in finetune_nb and its peers, and write a table and a figure.")
    def option(name, help, **more): parser.add_argument(name, help=help, **more)
    option("--quick", "small, in about 5 minutes", action="store_true")
    option("--smoke", "a handful of examples, in this environment and process: does everything run?",
           action="store_true")
    option("--minutes", "stop when they are over, the most telling runs done first; 0: run all, which takes hours "
           "(default: 60, with --quick 5)", type=float)
    option("--repeats", "of each run (default: 3, with --quick 1)", type=int)
    option("--out", "folder of the results (default: benchmarks/)", type=Path, default=here)
    option("--venv", "environment of the peers, made if it is not there (default: .venv-bench)",
           type=Path, default=root/".venv-bench")
    option("--one", argparse.SUPPRESS)
    option("--result", argparse.SUPPRESS, type=Path)
    option("--inside", argparse.SUPPRESS, action="store_true")
    return parser.parse_args()


def write_result(do, spec, file):
    "Do the run that `spec` describes, and write its result to `file`; an error is a result too"
    try: result = do(spec)
    except Exception as error:
        import traceback
        traceback.print_exc()
        result = dict(error=told(type(error).__name__, str(error)))
    file.write_text(json.dumps(result))


def again_inside(venv, script=here/"bench.py"):
    "The same command in the environment `venv`, which is made first; ends with it"
    make_environment(venv)
    import install
    inner = subprocess.Popen([install.python_of(str(venv)), str(script), *sys.argv[1:], "--inside"])
    while True:
        with contextlib.suppress(KeyboardInterrupt): sys.exit(inner.wait()) # it has had the Ctrl-C too, and saves


def main():
    given = options()
    if given.one: return write_result(one, json.loads(given.one), given.result)
    form = "smoke" if given.smoke else "quick" if given.quick else "results"
    if not (given.smoke or given.inside): again_inside(given.venv.absolute())
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="finetune_nb_bench_") as folder:
        os.environ.update(environment(folder))
        settings, execute = settings_for(form, given.minutes, given.repeats), in_process if given.smoke else in_child
        run_all(settings, folder, given.out.absolute()/form, execute)


if __name__ == "__main__":
    try: main()
    except KeyboardInterrupt: sys.exit("finetune_nb: interrupted; type the same again to start anew.")
