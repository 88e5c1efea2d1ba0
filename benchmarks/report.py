"""The table and the figure of a result; `python benchmarks/report.py benchmarks/results.json` writes them again."""
import json
import sys
from math import hypot
from pathlib import Path
from statistics import median

OURS, UNCACHED, LIMIT = "finetune_nb", "finetune_nb, no cache", "limit"
USER, BEST, RECIPE = "as a user gets them", "best settings", "the article's text recipe"


class Results:
    "What was measured, looked up by peer, work, settings, epochs and size."
    def __init__(self, results):
        self.all = results
        self.size = results["settings"]["size"]
        self.epochs = results["settings"]["epochs"]
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
        ours = {run["repeat"]: run[key] for run in self.runs(OURS, work, key=key)}
        theirs = {run["repeat"]: run[key] for run in self.runs(peer, work, mode, key=key)}
        both = ours.keys() & theirs.keys()
        if not both: return None, 0
        return median(ours[i] for i in both) - median(theirs[i] for i in both), len(both)

    def limit(self, work, epochs=None, size=None):
        "Median over the repeats of: decode once, prefix once, so many epochs of the suffix, the test examples"
        epochs, wanted = epochs or self.epochs, (LIMIT, work, size or self.size)
        parts = [run["parts"] for run in self.all["runs"]
                 if (run["peer"], run["work"], run["size"]) == wanted and "parts" in run]
        if not parts: return None
        return median(part["decode"] + part["prefix"] + epochs * part["epoch"] + part["test"] for part in parts)

    def fastest(self, work, mode, epochs=None):
        times = {peer: self.median(peer, work, mode, epochs) for peer in self.all["settings"]["frameworks"]}
        return min((peer for peer in times if times[peer]), key=times.get, default=None)

    def columns(self): # (epochs, size) of all that was measured
        measured = {(run["epochs"], run["size"]) for run in self.all["runs"]
                    if "seconds" in run and run["mode"] != RECIPE}
        return sorted(measured, key=lambda column: (column[1] != self.size, column[0]))


def seconds(values):
    if not values: return "–"
    middle = f"{median(values):.1f} s"
    return middle if len(values) == 1 else f"{middle} ({min(values):.1f} to {max(values):.1f})"


def ratio(a, b, sign="×"): return f"{a / b:.{2 if a < 10 * b else 1}f}{sign}" if a and b else "–"


def table(head, rows):
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows))


def sizes(r, work, size): # training, validation, test
    return r.all["sizes"][size]["image" if work.startswith("images") else "text"]


def described(r, work, size):
    train, validation, test = sizes(r, work, size)
    what = "JPEGs at 224 px, ResNet-18" if work.startswith("images") else "sentences, MiniLM"
    return f"{train} {what}; {validation} for validation after each epoch, {test} for the test"


def early_ratio(r, work, mode):
    "The same ratio in the shortest runs, whose fastest peer may be another"
    short = min((run["epochs"] for run in r.all["runs"]), default=1)
    if short == r.epochs: return "–"
    peer = r.fastest(work, mode, short)
    return ratio(peer and r.median(peer, work, mode, short), r.median(OURS, work, epochs=short))


def against(r, work, mode, peer):
    "finetune_nb beside the fastest peer: a row"
    ours, theirs = r.median(OURS, work), r.median(peer, work, mode)
    accuracy, runs = r.beside(work, peer, mode, "accuracy")
    memory, _ = r.beside(work, peer, mode, "memory_peak")
    points = "–"
    if accuracy is not None:
        tested = sizes(r, work, r.size)[-1]
        each = r.median(OURS, work, key="accuracy"), r.median(peer, work, mode, key="accuracy")
        error = 100 * hypot(*(error_of(one, tested) for one in each))
        points = f"{round(100 * accuracy, 1) + 0:+.1f} ± {error:.1f} points ({count(runs, 'run')})"
    megabytes = "–" if memory is None else f"{memory / 1e6:+.0f} MB"
    return [work, mode, peer, ratio(theirs, ours), points, early_ratio(r, work, mode), ratio(ours, r.limit(work), ""),
            megabytes]


def summary(r):
    head = ["work", "peers", "the fastest of them", f"peer's time ÷ finetune_nb's, {count(r.epochs)}",
            "accuracy: finetune_nb's − peer's, ± standard error", "peer's time ÷ finetune_nb's, 1 epoch",
            "finetune_nb's time ÷ limit", "peak memory: finetune_nb's − peer's"]
    fastest = [(work, mode, r.fastest(work, mode)) for work in r.works for mode in (USER, BEST)]
    return table(head, [against(r, *which) for which in fastest if which[-1]])


def count(number, name="epoch"): return f"{number} {name}{'s' * (number > 1)}"


def error_of(accuracy, tested):
    """The standard error of one run on so few test examples.

    It is of one right and one wrong more than were seen, or 100 % would be certain.
    """
    p, n = (accuracy * tested + 1) / (tested + 2), tested + 2
    return (p * (1 - p) / n) ** .5


def correct(runs, tested):
    "Median accuracy, and its standard error"
    middle = median(run["accuracy"] for run in runs)
    return f"{middle:.1%} ± {100 * error_of(middle, tested):.1f}"


def settings_of(peer, mode): return "" if peer in (OURS, UNCACHED) else mode # ours has only one way


def measured(r, work, mode, peer, runs):
    "What the runs of one peer came to: a row"
    times, tested = [run["seconds"] for run in runs], sizes(r, work, r.size)[-1]
    peak = median(run["memory_peak"] for run in runs) / 1e6
    before = median(run["memory_imports"] for run in runs) / 1e6
    return [peer, settings_of(peer, mode), seconds(times), len(times),
            ratio(median(times), r.median(OURS, work)), ratio(median(times), r.limit(work), ""),
            f"{peak:.0f} MB ({before:.0f} + {peak - before:.0f})", correct(runs, tested)]


def detail(r, work):
    head = ["framework", "settings", "time: median (range)", "runs", "time ÷ finetune_nb's", "time ÷ limit",
            "peak memory (after imports + work)", "test accuracy ± its standard error"]
    rows, limit = [], r.limit(work)
    for mode in (USER, BEST):
        for peer in r.peers:
            runs = r.runs(peer, work, mode)
            if runs: rows.append(measured(r, work, mode, peer, runs))
    if limit: rows.append(["limit", "", f"{limit:.1f} s", "", "", "", "", ""])
    return table(head, rows)


def growth(r, work):
    columns = r.columns()
    def title(epochs, size): return count(epochs) + (f", {size} the data" if size != r.size else "")
    def cell(peer, mode, *column): return seconds([run["seconds"] for run in r.runs(peer, work, mode, *column)])
    rows = []
    for mode in (USER, BEST):
        for peer in r.peers:
            cells = [cell(peer, mode, *column) for column in columns]
            if set(cells) - {"–"}: rows.append([peer, settings_of(peer, mode), *cells])
    limits = [r.limit(work, *column) for column in columns]
    rows.append(["limit", "", *(f"{limit:.1f} s" if limit else "–" for limit in limits)])
    return table(["framework", "settings", *(title(*column) for column in columns)], rows)


def opening(r):
    "Where and when it was measured"
    about = r.all["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    bf16 = "with" if about["bf16"] else "without"
    return (f"{about['processor']}, {about['cores']} cores, {bf16} bf16 ({about['vector_instructions']}), "
            f"{about['system']}; {versions}. {r.all['minutes']:.0f} minutes in all; "
            f"other programs kept {r.all['load_before']:.1f} processors busy at the start. "
            "`benchmarks/README.md` says what is compared, and how.")


def recipe(r, run):
    "What the article's text recipe came to"
    times = ratio(run["seconds"], r.median(OURS, run["work"]))
    said = (f"Text, head only, {count(run['epochs'])}, every sentence padded to 512 tokens: {run['seconds']:.0f} s, "
            f"{times} the time of finetune_nb.")
    if not run["cut"]: return f"{said} Test accuracy {run['accuracy']:.1%}."
    return (f"{said} Extrapolated from three batches of each kind, the first of them aside; "
            f"{run['measured_seconds']:.0f} s were measured.")


def failures(failed):
    rows = [[run["peer"], run["work"], run["mode"], count(run["epochs"]), run["error"].replace("|", "\\|")]
            for run in failed]
    return table(["framework", "work", "settings", "run", "error"], rows)


def markdown(r):
    lines = [f"# Side by side, {r.all['date']}", "", opening(r), ""]
    if len(r.columns()) and any(r.runs(OURS, work) for work in r.works):
        lines += ["## Against the fastest peer", "", summary(r), ""]
    for work in r.works:
        lines += [f"## {work[0].upper()}{work[1:]}: {count(r.epochs)}", ""]
        lines += [described(r, work, r.size) + ".", "", detail(r, work), ""]
        if len(r.columns()) > 1: lines += ["How it grows:", "", growth(r, work), ""]
    for cut in (False, True):
        followed = [run for run in r.all["runs"] if run["mode"] == RECIPE and "seconds" in run and run["cut"] == cut]
        title = f"## The article's text recipe{', extrapolated' if cut else ''}"
        if followed: lines += [title, "", recipe(r, followed[0]), ""]
    failed = [run for run in r.all["runs"] if "error" in run]
    if failed: lines += ["## What failed", "", failures(failed), ""]
    if r.all["left_out"]:
        left_out, minutes = len(r.all["left_out"]), r.all["settings"]["minutes"]
        lines += [f"{left_out} runs were left out, because the {minutes:.0f} minutes were over; "
                  "`make bench MINUTES=0` does them all.", ""]
    return "\n".join(lines)


def figure(r, file):
    "A row for each work: bars of the whole runs, and how they grow with the epochs"
    from matplotlib.figure import Figure
    works = [work for work in r.works if r.runs(OURS, work) or r.fastest(work, USER)]
    grows = len(r.columns()) > 1
    if not works: return
    picture = Figure(figsize=(10 if grows else 6.5, 3.1 * len(works)), layout="constrained", facecolor="white")
    axes = picture.subplots(len(works), 1 + grows, squeeze=False, width_ratios=[1.5, 1] if grows else None)
    for row, work in zip(axes, works):
        _bars(r, work, row[0])
        if grows: _lines(r, work, row[1])
    picture.savefig(file, dpi=110)


_BLUE, _ORANGE, _GREY = "#0072B2", "#E69F00", "#777777" # peers, finetune_nb, the limit


def _called(peer, mode): return peer + ", best settings" * (mode == BEST)


def _bars(r, work, ax):
    bars = [] # name, seconds, colour, hatch
    for mode in (USER, BEST):
        for peer in r.peers:
            times = [run["seconds"] for run in r.runs(peer, work, mode)]
            color, hatch = _ORANGE if peer in (OURS, UNCACHED) else _BLUE, "//" if mode == BEST else None
            if times: bars.append((_called(peer, mode), times, color, hatch))
    if r.limit(work): bars.append(("limit", [r.limit(work)], _GREY, None))
    for y, (_, times, color, hatch) in enumerate(bars):
        middle = median(times)
        whiskers = [[middle - min(times)], [max(times) - middle]]
        ax.barh(y, middle, color=color, hatch=hatch, edgecolor="white", xerr=whiskers, ecolor="black")
        ax.text(max(times), y, f"  {middle:.1f}", va="center", fontsize=8)
    ax.set_yticks(range(len(bars)), [name for name, *_ in bars], fontsize=8)
    ax.invert_yaxis()
    ax.margins(x=.12)
    times = [r.median(peer, work, mode) for mode in (USER, BEST) if (peer := r.fastest(work, mode))]
    found, title = "", f"{work}, {count(r.epochs)}"
    if r.runs(OURS, work): found = ", at best settings ".join(ratio(time, r.median(OURS, work)) for time in times)
    if found: title += f": the fastest peer takes {found} the time of finetune_nb"
    ax.set_title(title, fontsize=9, loc="left")
    ax.set_xlabel("seconds, whole run", fontsize=8)


def _lines(r, work, ax):
    epochs = sorted({e for e, size in r.columns() if size == r.size})
    lines = [
        (r.fastest(work, USER), USER, dict(color=_BLUE, marker="s")),
        (r.fastest(work, BEST), BEST, dict(color=_BLUE, marker="s", ls=":", mfc="white")),
        (OURS, USER, dict(color=_ORANGE, marker="o"))]
    for peer, mode, style in lines:
        points = [(e, r.median(peer, work, mode, e)) for e in epochs if peer and r.median(peer, work, mode, e)]
        if points: ax.plot(*zip(*points), label=_called(peer, mode), **style)
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
    if len(sys.argv) != 2:
        sys.exit("finetune_nb: give the result to draw, as in `python benchmarks/report.py benchmarks/results.json`.")
    file = Path(sys.argv[1])
    write(json.loads(file.read_text(encoding="utf-8")), file.with_suffix(""))
