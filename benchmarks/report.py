"""The table and the figure of a result; `python benchmarks/report.py benchmarks/results.json` writes them again."""
import json, sys
from pathlib import Path
from statistics import median

OURS, UNCACHED, LIMIT = "finetune_nb", "finetune_nb, no cache", "limit"
USER, BEST, RECIPE = "as a user gets them", "best settings", "the article's text recipe"


class Results:
    "What was measured, looked up by peer, work, settings, epochs and size."
    def __init__(self, results):
        self.all, self.size, self.epochs = results, results["settings"]["size"], results["settings"]["epochs"]
        self.works = list(dict.fromkeys(run["work"] for run in results["runs"]))
        self.peers = [*results["settings"]["frameworks"], UNCACHED, OURS]

    def runs(self, peer, work, mode=USER, epochs=None, size=None, key="seconds", cut=False):
        wanted = dict(peer=peer, work=work, mode=mode, epochs=epochs or self.epochs, size=size or self.size, cut=cut)
        return [run for run in self.all["runs"] if key in run and all(run[k] == v for k, v in wanted.items())]

    def median(self, *which, key="seconds", **more):
        values = [run[key] for run in self.runs(*which, **more)]
        return median(values) if values else None

    def beside(self, work, peer, mode, key):
        "Median of finetune_nb less the peer's, in the repeats (same seeds) that both have, and how many these are"
        ours, theirs = ({run["repeat"]: run[key] for run in self.runs(*which, key=key)} for which in ((OURS, work), (peer, work, mode)))
        both = ours.keys() & theirs.keys()
        return median(ours[i] for i in both) - median(theirs[i] for i in both) if both else None, len(both)

    def limit(self, work, epochs=None, size=None):
        "Median over the repeats of: decode once, prefix once, so many epochs of the suffix, the test examples"
        parts = [run["parts"] for run in self.all["runs"] if run["peer"] == LIMIT and run["work"] == work and run["size"] == (size or self.size) and "parts" in run]
        return median(p["decode"] + p["prefix"] + (epochs or self.epochs) * p["epoch"] + p["test"] for p in parts) if parts else None

    def fastest(self, work, mode, epochs=None):
        times = {peer: self.median(peer, work, mode, epochs) for peer in self.all["settings"]["frameworks"]}
        return min((peer for peer in times if times[peer]), key=times.get, default=None)

    def columns(self): # (epochs, size) of all that was measured
        return sorted({(run["epochs"], run["size"]) for run in self.all["runs"] if "seconds" in run and run["mode"] != RECIPE}, key=lambda c: (c[1] != self.size, c[0]))


def seconds(values):
    if not values: return "–"
    middle = f"{median(values):.1f} s"
    return middle if len(values) == 1 else f"{middle} ({min(values):.1f} to {max(values):.1f})"


def ratio(a, b, sign="×"): return f"{a / b:.{2 if a < 10 * b else 1}f}{sign}" if a and b else "–"


def table(head, rows): return "\n".join(["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)])


def sizes(r, work, size): return r.all["sizes"][size]["image" if work.startswith("images") else "text"] # training, validation, test


def described(r, work, size):
    train, validation, test = sizes(r, work, size)
    return f"{train} {'JPEGs at 224 px, ResNet-18' if work.startswith('images') else 'sentences, MiniLM'}; {validation} for validation after each epoch, {test} for the test"


def summary(r):
    rows = []
    for work in r.works:
        ours = r.median(OURS, work)
        for mode in (USER, BEST):
            peer = r.fastest(work, mode)
            if not peer: continue
            theirs, (accuracy, runs), (memory, _) = r.median(peer, work, mode), r.beside(work, peer, mode, "accuracy"), r.beside(work, peer, mode, "memory_peak")
            short = min((run["epochs"] for run in r.all["runs"]), default=1)
            early = r.fastest(work, mode, short)
            rows.append([work, mode, peer, ratio(theirs, ours), f"{round(100 * accuracy, 1) + 0:+.1f} points ({count(runs, 'run')})" if accuracy is not None else "–",
                         ratio(early and r.median(early, work, mode, short), r.median(OURS, work, epochs=short)) if short != r.epochs else "–",
                         ratio(ours, r.limit(work), ""), f"{memory / 1e6:+.0f} MB" if memory is not None else "–"])
    return table(["work", "peers", "the fastest of them", f"its time ÷ finetune_nb's, {count(r.epochs)}", "accuracy of finetune_nb less its accuracy", "its time ÷ finetune_nb's, 1 epoch", "finetune_nb's time ÷ limit", "peak memory of finetune_nb less its"], rows)


def count(number, name="epoch"): return f"{number} {name}{'s' * (number > 1)}"


def correct(runs, tested):
    "Median accuracy, and the standard error of one run on so few test examples: of one right and one wrong more than were seen, or 100 % would be certain"
    middle = median(run["accuracy"] for run in runs)
    p, n = (middle * tested + 1) / (tested + 2), tested + 2
    return f"{middle:.1%} ± {100 * (p * (1 - p) / n) ** .5:.1f}"


def detail(r, work):
    rows, tested = [], sizes(r, work, r.size)[-1]
    for mode in (USER, BEST):
        for peer in r.peers:
            runs = r.runs(peer, work, mode)
            if not runs: continue
            times, peak, before = [run["seconds"] for run in runs], median(run["memory_peak"] for run in runs) / 1e6, median(run["memory_imports"] for run in runs) / 1e6
            rows.append([peer, "" if peer in (OURS, UNCACHED) else mode, seconds(times), len(times), ratio(median(times), r.median(OURS, work)), ratio(median(times), r.limit(work), ""),
                         f"{peak:.0f} MB ({before:.0f} + {peak - before:.0f})", correct(runs, tested)])
    limit = r.limit(work)
    if limit: rows.append(["limit", "", f"{limit:.1f} s", "", "", "", "", ""])
    return table(["framework", "settings", "time: median (range)", "runs", "time ÷ finetune_nb's", "time ÷ limit", "peak memory (after imports + work)", "test accuracy ± its standard error"], rows)


def growth(r, work):
    columns = r.columns()
    def row(peer, mode): return [seconds([run["seconds"] for run in r.runs(peer, work, mode, epochs, size)]) for epochs, size in columns]
    rows = [[peer, mode if peer not in (OURS, UNCACHED) else "", *row(peer, mode)] for mode in (USER, BEST) for peer in r.peers if any(cell != "–" for cell in row(peer, mode))]
    rows.append(["limit", "", *(f"{r.limit(work, *c):.1f} s" if r.limit(work, *c) else "–" for c in columns)])
    return table(["framework", "settings", *(count(epochs) + (f", {size} the data" if size != r.size else "") for epochs, size in columns)], rows)


def markdown(r):
    about, settings = r.all["machine"], r.all["settings"]
    lines = [f"# Side by side, {r.all['date']}", "",
             f"{about['processor']}, {about['cores']} cores, {'with' if about['bf16'] else 'without'} bf16 ({about['vector_instructions']}), {about['system']}; "
             f"{', '.join(f'{name} {version}' for name, version in about['versions'].items())}. {r.all['minutes']:.0f} minutes in all; "
             f"other programs kept {r.all['load_before']:.1f} processors busy at the start. `benchmarks/README.md` says what is compared, and how.", ""]
    if len(r.columns()) and any(r.runs(OURS, work) for work in r.works): lines += ["## Against the fastest peer", "", summary(r), ""]
    for work in r.works:
        lines += [f"## {work[0].upper()}{work[1:]}: {count(r.epochs)}", "", described(r, work, r.size) + ".", "", detail(r, work), ""]
        if len(r.columns()) > 1: lines += ["How it grows:", "", growth(r, work), ""]
    for cut in (False, True):
        recipe = [run for run in r.all["runs"] if run["mode"] == RECIPE and "seconds" in run and run["cut"] == cut]
        if recipe:
            ours, run = r.median(OURS, recipe[0]["work"]), recipe[0]
            lines += [f"## The article's text recipe{', extrapolated' if cut else ''}", "",
                      f"Text, head only, {count(run['epochs'])}, every sentence padded to 512 tokens: {run['seconds']:.0f} s, {ratio(run['seconds'], ours)} the time of finetune_nb."
                      + (f" Extrapolated from three batches of each kind, the first of them aside; {run['measured_seconds']:.0f} s were measured." if cut else f" Test accuracy {run['accuracy']:.1%}."), ""]
    failed = [run for run in r.all["runs"] if "error" in run]
    if failed: lines += ["## What failed", "", table(["framework", "work", "settings", "run", "error"], [[run["peer"], run["work"], run["mode"], count(run["epochs"]), run["error"].replace("|", "\\|")] for run in failed]), ""]
    if r.all["left_out"]: lines += [f"{len(r.all['left_out'])} runs were left out, because the {settings['minutes']:.0f} minutes were over; `make bench MINUTES=0` does them all.", ""]
    return "\n".join(lines)


def figure(r, file):
    "A row for each work: bars of the whole runs, and how they grow with the epochs"
    from matplotlib.figure import Figure
    works, grows = [work for work in r.works if r.runs(OURS, work) or r.fastest(work, USER)], len(r.columns()) > 1
    if not works: return
    picture = Figure(figsize=(10 if grows else 6.5, 3.1 * len(works)), layout="constrained", facecolor="white")
    for row, work in zip(picture.subplots(len(works), 1 + grows, squeeze=False, width_ratios=[1.5, 1] if grows else None), works):
        _bars(r, work, row[0])
        if grows: _lines(r, work, row[1])
    picture.savefig(file, dpi=110)


_BLUE, _ORANGE, _GREY = "#0072B2", "#E69F00", "#777777" # peers, finetune_nb, the limit


def _bars(r, work, ax):
    bars = [(peer + ", best settings" * (mode == BEST), [run["seconds"] for run in r.runs(peer, work, mode)], _ORANGE if peer in (OURS, UNCACHED) else _BLUE, "//" if mode == BEST else None)
            for mode in (USER, BEST) for peer in r.peers] + [("limit", [r.limit(work)] if r.limit(work) else [], _GREY, None)]
    bars = [bar for bar in bars if bar[1]]
    for y, (_, times, color, hatch) in enumerate(bars):
        middle = median(times)
        ax.barh(y, middle, color=color, hatch=hatch, edgecolor="white", xerr=[[middle - min(times)], [max(times) - middle]], ecolor="black")
        ax.text(max(times), y, f"  {middle:.1f}", va="center", fontsize=8)
    ax.set_yticks(range(len(bars)), [name for name, *_ in bars], fontsize=8)
    ax.invert_yaxis()
    ax.margins(x=.12)
    times = [r.median(peer, work, mode) for mode in (USER, BEST) if (peer := r.fastest(work, mode))]
    found = ", at best settings ".join(ratio(t, r.median(OURS, work)) for t in times) if r.runs(OURS, work) else ""
    ax.set_title(f"{work}, {count(r.epochs)}" + (f": the fastest peer takes {found} the time of finetune_nb" if found else ""), fontsize=9, loc="left")
    ax.set_xlabel("seconds, whole run", fontsize=8)


def _lines(r, work, ax):
    epochs = sorted({e for e, size in r.columns() if size == r.size})
    for peer, mode, style in ((r.fastest(work, USER), USER, dict(color=_BLUE, marker="s")), (r.fastest(work, BEST), BEST, dict(color=_BLUE, marker="s", ls=":", mfc="white")), (OURS, USER, dict(color=_ORANGE, marker="o"))):
        points = [(e, r.median(peer, work, mode, e)) for e in epochs if peer and r.median(peer, work, mode, e)]
        if points: ax.plot(*zip(*points), label=peer + ", best settings" * (mode == BEST), **style)
    if r.limit(work): ax.plot(epochs, [r.limit(work, e) for e in epochs], color=_GREY, ls="--", label="limit")
    ax.set(xscale="log", yscale="log", xticks=epochs, xticklabels=epochs)
    lowest, highest = ax.get_ylim()
    ax.set_ylim(lowest, highest * (highest / lowest) ** .55) # room for the legend
    ax.minorticks_off()
    ax.set_xlabel("epochs", fontsize=8)
    ax.set_ylabel("seconds", fontsize=8)
    ax.legend(fontsize=7, loc="upper left")


def write(results, files):
    "`files` with the endings .json, .md and .png"
    files.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    found = Results(results)
    files.with_suffix(".md").write_text(markdown(found), encoding="utf-8")
    figure(found, files.with_suffix(".png"))


if __name__ == "__main__":
    if len(sys.argv) != 2: sys.exit("finetune_nb: give the result to draw, as in `python benchmarks/report.py benchmarks/results.json`.")
    write(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[1]).with_suffix(""))
