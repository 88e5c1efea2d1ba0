"""The same fine-tuning side by side in finetune_nb and its peers; `make bench` runs it. `python benchmarks/bench.py --help` lists the options.

Needs only the standard library: the runs are processes of their own, in an environment of their own.
"""
import argparse, contextlib, hashlib, importlib, io, json, os, re, subprocess, sys, tempfile, time
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
WORKS = {"images, head only": ("image", 5, 1e-3), "images, depth 4": ("image", 4, 3e-4), "text, head only": ("text", 7, 3e-3), "text, depth 5": ("text", 5, 2e-4)}
# training, validation and test examples
SIZES = {"full": dict(image=(244, 50, 100), text=(2000, 100, 500)), "half": dict(image=(122, 50, 100), text=(1000, 100, 500)),
         "quick": dict(image=(40, 10, 40), text=(200, 50, 100)), "smoke": dict(image=(8, 4, 4), text=(20, 10, 10))}


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
        return asdict(self) | dict(task=dict(name=self.work, kind=kind, depth=depth, learning_rate=learning_rate, train=train, validation=validation, test=test,
                                             epochs=self.epochs, folder=str(Path(folder)/self.size), padded=self.mode == RECIPE))


# one run, in this process

def resident(peak=False):
    "Bytes of memory that this process holds, or the most it held"
    try: lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    except OSError:
        import psutil, resource # no Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) if peak else psutil.Process().memory_info().rss
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
    measured = dict(seconds=seconds, processor_seconds=time.process_time() - processor, memory_imports=before, memory_peak=resident(peak=True))
    if not spec["cut"]: return measured | dict(accuracy=float(found))
    train, validation, test = found
    around = seconds - sum(loader.seconds for loader in found)
    return measured | dict(seconds=around + task.epochs * (train.whole + validation.whole) + test.whole, measured_seconds=seconds)


def in_process(run, folder, timeout=None):
    "The same, and an error is a result too"
    try:
        with contextlib.redirect_stdout(io.StringIO()): return one(run.spec(folder))
    except Exception as error: return dict(error=told(type(error).__name__, str(error)))


def told(kind, message): return " ".join(f"{kind}: {message}".split()).replace(str(root), ".")[:300]


def in_child(run, folder, timeout):
    "The same in a fresh process, so that memory and imports are nobody else's"
    result, log = Path(folder)/"result.json", Path(folder)/"log.txt"
    result.unlink(missing_ok=True)
    with open(log, "w") as out:
        try: code = subprocess.run([sys.executable, str(here/"bench.py"), "--one", json.dumps(run.spec(folder)), "--result", str(result)], cwd=folder, env=environment(folder),
                                   stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, timeout=timeout).returncode
        except subprocess.TimeoutExpired: return dict(error=f"stopped after {timeout:.0f} s, when the time was up")
    if result.exists(): return json.loads(result.read_text())
    last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
    return dict(error=told(f"ended with code {code}", last[0]))


def environment(folder):
    "What every run gets: the processor alone, no network, and nothing written outside `folder`"
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "Agg", "KERAS_BACKEND": "torch",
            "KERAS_HOME": str(folder), "PYTHONPATH": str(root), "PYTHONWARNINGS": "ignore"}


# which runs, in which order

def plan(settings, done):
    "The runs, the most telling first, since the time may end before the list; it looks at what is done to find the fastest peers"
    s = settings
    def everyone(mode): return [*s.frameworks, *([UNCACHED, OURS] if mode == USER else [])]
    def fastest(work, mode, count):
        times = {}
        for run, result in done:
            if (run.work, run.mode, run.size) == (work, mode, s.size) and run.peer in s.frameworks and "seconds" in result: times.setdefault(run.epochs, {}).setdefault(run.peer, []).append(result["seconds"])
        screened = {peer: median(seconds) for peer, seconds in times.get(s.screen, {}).items()}
        return sorted(screened, key=screened.get)[:count]
    def runs(work, mode, epochs, peers, repeat=0, size=s.size): return [Run(peer, work, mode, epochs, size, repeat) for peer in peers]
    def both(work, count): return runs(work, USER, s.epochs, [OURS, *fastest(work, USER, count)]) + runs(work, BEST, s.epochs, fastest(work, BEST, count))

    # everyone once, briefly: who is fast?
    for mode in (USER, BEST):
        for work in s.works:
            if mode == USER: yield Run(LIMIT, work, USER, s.screen, s.size)
            yield from runs(work, mode, s.screen, everyone(mode))
    # the fastest at full length, then the article's recipe
    for work in s.works: yield from both(work, 1)
    if "text, head only" in s.works and s.recipe: yield Run(PLAIN, "text, head only", RECIPE, s.epochs, s.size, cut=True)
    # again, where it is closest: the fastest at its best settings
    for epochs in (s.epochs, s.screen):
        for repeat in range(1, s.repeats):
            for work in s.works:
                yield from runs(work, USER, epochs, [OURS], repeat) + runs(work, BEST, epochs, fastest(work, BEST, 1), repeat)
                if epochs == s.epochs: yield Run(LIMIT, work, USER, s.screen, s.size, repeat)
    # how it grows
    for epochs, size, count in s.growth:
        for work in s.works: yield from runs(work, USER, epochs, [OURS], size=size) + runs(work, BEST, epochs, fastest(work, BEST, count), size=size)
        if size != s.size: yield from (Run(LIMIT, work, USER, s.screen, size) for work in s.works)
    # the next fastest at full length, and the fastest again as a user gets them
    for work in s.works: yield from both(work, 2)
    for repeat in range(1, s.repeats):
        for work in s.works: yield from runs(work, USER, s.epochs, fastest(work, USER, 1), repeat)
    # everyone at full length, as often as the rest
    for repeat in range(s.repeats):
        for mode in (USER, BEST):
            for work in s.works: yield from runs(work, mode, s.epochs, everyone(mode), repeat)
    if "text, head only" in s.works and s.recipe: yield Run(PLAIN, "text, head only", RECIPE, s.epochs, s.size)


def guess(run, done):
    "Seconds that a run will take, from those that are done: itself shorter, its like, or its extrapolation; 0 where nothing is known"
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
    if form == "quick": return Settings("quick", 3, 3, repeats or 1, HEADS, FRAMEWORKS, [], 5 if minutes is None else minutes, False)
    return Settings("full", 1, 10, repeats or 3, HEADS + DEPTHS, FRAMEWORKS, [(3, "full", 2), (10, "half", 1), (30, "full", 1), (10, "half", 2), (30, "full", 2)], 60 if minutes is None else minutes)


# the environment of the peers

def make_environment(venv):
    "An environment with finetune_nb and its peers; one that fits already is reused"
    import install
    stamp, log, requirements = venv/"benchmarks.installed", root/"install.log", here/"requirements.txt"
    wanted = hashlib.sha256(b"".join(f.read_bytes() for f in (requirements, root/"settings.ini")) + str(root).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted: return
    install.venv = str(venv)
    install.check_python()
    if not venv.exists() and (free := install.free_gb(str(venv))) < install.needed_gb:
        install.stop(f"about {install.needed_gb} GB of free disk are needed for the peers and {free:.1f} are there: free some, or name a folder on another disk, as in "
                     "`python3 benchmarks/bench.py --venv /other/disk/venv`.")
    install.make_venv()
    (venv/".gitignore").write_text("*\n")
    print(f"Installing finetune_nb and its peers into {venv}: up to 5 GB, a few minutes. All that pip says is in {log}.", flush=True)
    with open(log, "w") as out:
        code = subprocess.call([install.python_of(str(venv)), "-m", "pip", "install", "--progress-bar", "off", "--retries", "2", "-e", ".[offline]", "-r", str(requirements)],
                               cwd=root, stdout=out, stderr=subprocess.STDOUT)
    if code:
        said = log.read_text(errors="replace")
        if "No space left on device" in said: install.stop(f"the disk filled up: free about {install.needed_gb} GB and type the same again (pip's log: {log}).")
        if re.search(install.offline_signs, said): install.stop(f"the peers cannot be fetched, because the network cannot be reached: connect it and type the same again (pip's log: {log}).")
        install.stop(f"pip could not install the peers; the reason is in the last lines of {log}.")
    stamp.write_text(wanted)


# the whole

def machine():
    import importlib.metadata as metadata, platform, torch
    from work import has_bf16
    names = ["finetune-nb", "torch", "torchvision", "transformers", "accelerate", "lightning", "fastai", "keras", "numpy", "pillow"]
    versions = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError): versions[name] = metadata.version(name)
    try: processor = next(line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    except (OSError, StopIteration): processor = platform.processor() or platform.machine()
    return dict(processor=processor, cores=os.cpu_count(), threads=torch.get_num_threads(), bf16=has_bf16(), vector_instructions=torch.backends.cpu.get_cpu_capability(),
                system=platform.system(), versions=versions)


def run_all(settings, folder, files, execute):
    import psutil, work
    from report import write
    print("Drawing images and reading sentences.", flush=True)
    sizes = {settings.size: SIZES[settings.size], **{size: SIZES[size] for _, size, _ in settings.growth}}
    for size in sizes:
        work.draw_images(Path(folder)/size, dict(zip(("train", "validation", "test"), SIZES[size]["image"])))
    work.Work("", "text", 0, 0, 10, 10, 10).task()
    load = psutil.cpu_percent(interval=2) / 100 * psutil.cpu_count() # of others: this process only waits
    if load > 0.5 and settings.size != "smoke":
        print(f"Other programs keep {load:.1f} processors busy: times will be too long, and not alike. Stop them, or read the result with that in mind.", flush=True)
    started, done, left_out, seen = time.monotonic(), [], [], set()
    results = dict(date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), machine=machine(), load_before=round(load, 2), settings=asdict(settings), sizes=sizes)
    def save():
        results.update(minutes=round((time.monotonic() - started) / 60, 1), runs=[asdict(run) | result for run, result in done], left_out=[asdict(run) for run in left_out])
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


def say(run, result, seconds):
    what = (f"{sum(result['parts'].values()):.1f} s" if "parts" in result else result.get("error") or
            f"{result['seconds']:.1f} s" + (" (extrapolated)" if run.cut else f", {result['accuracy']:.1%}, {(result['memory_peak'] - result['memory_imports']) / 1e6:.0f} MB"))
    print(f"{seconds / 60:5.1f} min  {run.work} · {run.peer} · {run.mode} · {run.epochs} epoch{'s' * (run.epochs > 1)}{' · ' + run.size if run.size == 'half' else ''}: {what}", flush=True)


def main():
    parser = argparse.ArgumentParser(description="Run the same fine-tuning in finetune_nb and its peers, and write a table and a figure.")
    parser.add_argument("--quick", action="store_true", help="small, in about 5 minutes")
    parser.add_argument("--smoke", action="store_true", help="a handful of examples, in this environment and process: does everything run?")
    parser.add_argument("--minutes", type=float, help="stop when they are over, the most telling runs done first; 0: run all, which takes hours (default: 60, with --quick 5)")
    parser.add_argument("--repeats", type=int, help="of each run (default: 3, with --quick 1)")
    parser.add_argument("--out", type=Path, default=here, help="folder of the results (default: benchmarks/)")
    parser.add_argument("--venv", type=Path, default=root/".venv-bench", help="environment of the peers, made if it is not there (default: .venv-bench)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        spec = json.loads(given.one)
        try: result = one(spec)
        except Exception as error:
            import traceback
            traceback.print_exc()
            result = dict(error=told(type(error).__name__, str(error)))
        given.result.write_text(json.dumps(result))
        return
    form = "smoke" if given.smoke else "quick" if given.quick else "results"
    if not (given.smoke or given.inside):
        venv = given.venv.absolute()
        make_environment(venv)
        import install
        inner = subprocess.Popen([install.python_of(str(venv)), str(here/"bench.py"), *sys.argv[1:], "--inside"])
        while True:
            with contextlib.suppress(KeyboardInterrupt): sys.exit(inner.wait()) # it has had the Ctrl-C too, and saves
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="finetune_nb_bench_") as folder:
        os.environ.update(environment(folder))
        run_all(settings_for(form, given.minutes, given.repeats), folder, given.out.absolute()/form, in_process if given.smoke else in_child)


if __name__ == "__main__":
    try: main()
    except KeyboardInterrupt: sys.exit("finetune_nb: interrupted; type the same again to start anew.")
