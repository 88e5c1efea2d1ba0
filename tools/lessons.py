"""Run the book's notebooks from top to bottom and store what they print; `make lessons` does it.

usage: lessons.py [NOTEBOOK ...]     run these notebooks, or all, one at a time, each in a fresh kernel
       lessons.py --slow NOTEBOOK    run its `#| slow` cells too
       lessons.py --check            say which notebooks no longer show what their cells would print

A notebook that ran gets a stamp in its metadata, under `run`: a hash of its code, the date, the seconds, and
the versions. The hash says whether the outputs on the page come from the code on the page, which cleaned
notebooks no longer show otherwise.
"""
import ast
import argparse
import datetime
import hashlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from tqdm import tqdm

tools = Path(__file__).resolve().parent
root = tools.parent
nbs = root/"nbs"
most_seconds = 60 # of a lesson, on two ordinary cores
ordinary_seconds = 0.00625 # an ordinary core needs for a hundred thousand additions in Python
without_bf16 = 2.2 # times as long: lesson 08 took 48 s on a processor with it, and 110 s on one without
widget_view = "application/vnd.jupyter.widget-view+json"
somebody_s_folder = r"(?:/home|/Users|[A-Z]:\\Users)[/\\]\w+|/root/"


def notebooks():
    "Every notebook of the book, in reading order"
    hidden = lambda path: any(part[0] in "._" for part in path.relative_to(nbs).parts)
    return sorted(path for path in nbs.rglob("*.ipynb") if not hidden(path))


def skip_flags():
    "The flags of cells that neither tests nor `make lessons` run"
    settings = ConfigParser(delimiters=["="])
    settings.read(root/"settings.ini", encoding="utf-8")
    return settings["DEFAULT"]["tst_flags"].split()


def directives(source):
    "The `#| name value` lines that a cell begins with: `{name: value}`"
    found = {}
    for line in source.lstrip().splitlines():
        if not (line := line.strip()).startswith("#"): break
        if match := re.match(r"#\s*\|\s*([\w-]+):?\s*(.*)", line): found[match[1]] = match[2].strip()
    return found


def runs(cell, flags=()):
    "Is `cell` code that runs, with none of the `flags` that keep it from running?"
    if cell.cell_type != "code" or not cell.source.strip(): return False
    if "nbdev_export(" in cell.source: return False
    given = directives(cell.source)
    return given.get("eval", "").lower() != "false" and not any(flag in given for flag in flags)


checking = re.compile(r"(?:test_(?:eq|ne|close|fail|warns|is)|assert\w*)$") # what a call is named that only checks


def checks(statement):
    "Is it an assert, a call of `test_eq` or the like, or a loop over these?"
    if isinstance(statement, ast.For): return all(map(checks, statement.body))
    call = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(statement, ast.Assert) or bool(checking.match(getattr(getattr(call, "func", None), "id", "")))


def kind_of(code):
    "What `code` only does, `imports` (and up to two lines beside many of them) or `checks`; else None"
    try: statements = ast.parse(re.sub(r"^[%!].*$", "pass", code, flags=re.M)).body
    except SyntaxError: return None
    others = [part for part in statements if not isinstance(part, (ast.Import, ast.ImportFrom))]
    if statements and all(map(checks, statements)): return "checks"
    few = len(others) <= 2 and all(part.lineno == part.end_lineno for part in others)
    if statements and (not others or few and len(statements) >= 5): return "imports"


def is_folded(cell):
    "Should JupyterLab show only the first line of `cell`?"
    if cell.cell_type != "code" or cell.outputs: return False
    return "\n" in cell.source.strip() and bool(kind_of(cell.source))


def fold(notebook):
    "JupyterLab shows one line of what only imports or checks"
    for cell in notebook.cells:
        cell.metadata.pop("jupyter", None)
        if is_folded(cell): cell.metadata["jupyter"] = {"source_hidden": True}


def cells_hash(notebook):
    "SHA-256 over the sources of the code cells, in order: prose may be mended without running the lesson again"
    sources = [cell.source.rstrip() for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def processor():
    "This machine's processor, as a person would name it"
    try: model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError): model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores"


class Slowness(threading.Thread):
    """How much slower this machine is than an ordinary one

    By the processor time of a little work now and then, for a machine may be shared; and where the processor does not
    multiply in bfloat16, most of what lessons compute takes about twice the time.
    """
    def __init__(self):
        super().__init__(daemon=True)
        self.seconds, self.ended = [], threading.Event()

    def run(self):
        while not self.ended.is_set():
            start, total = time.thread_time(), 0
            for i in range(100_000): total += i
            self.seconds.append(time.thread_time() - start)
            self.ended.wait(1)

    def end(self): # 1: as fast as an ordinary one; never less
        self.ended.set()
        self.join()
        return max(1., statistics.median(self.seconds) / ordinary_seconds) * (1 if has_bf16() else without_bf16)


def has_bf16():
    "Does the processor multiply in bfloat16?"
    try: return bool({"avx512_bf16", "amx_bf16"} & set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split()))
    except OSError: return False


def stamp(notebook, seconds, slower=1.):
    """What `notebook.metadata['run']` says about a run that took `seconds` on a core so much slower than ordinary

    `seconds` there are those of a machine with ordinary cores, `clock` those that passed: a machine that is shared with
    others may be several times slower than itself, and a lesson is held to its length, not to its neighbours.
    """
    return dict(
        cells=cells_hash(notebook),
        date=datetime.date.today().isoformat(),
        seconds=round(seconds / slower, 1),
        clock=round(seconds, 1),
        slower=round(slower, 2),
        python=platform.python_version(),
        torch=version("torch"),
        transformers=version("transformers"),
        cpu=processor())


def is_noise(output):
    "Progress bars, warnings and widgets without their kernel: nothing that a reader of the page can use"
    if output.output_type == "stream": return output.name == "stderr"
    return widget_view in output.get("data", {}) and "text/html" not in output.data


def quieten(notebook):
    "Keep of every output only what a page can show"
    for cell in notebook.cells:
        if cell.cell_type != "code": continue
        cell.outputs = [output for output in cell.outputs if not is_noise(output)]
        for output in cell.outputs: output.get("data", {}).pop(widget_view, None)


def output_text(output):
    "All that `output` says in words"
    texts = {kind: text for kind, text in output.get("data", {}).items() if not kind.startswith("image/")}
    return "\n".join(map(str, [output.get("text", ""), *output.get("traceback", []), *texts.values()]))


def output_problems(notebook):
    "What is wrong with the outputs of `notebook`, one sentence each"
    found, flags = [], skip_flags()
    here = "|".join([re.escape(str(root)), re.escape(str(Path.home())) + r"[/\\]", somebody_s_folder])
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error": found.append(f"cell {number} ends in {output.ename}: {output.evalue}")
            elif is_noise(output): found.append(f"cell {number} stores a widget or standard error")
            if match := re.search(here, output_text(output)):
                found.append(f"cell {number} prints a path of one machine: {match[0]}")
    code = [cell for cell in notebook.cells if runs(cell, flags)]
    if code and not is_room(notebook) and not any(cell.outputs for cell in code): found.append("no cell has an output")
    return found


def is_room(notebook):
    "Is it of the engine room, where a cell may have nothing to show?"
    return any(directives(cell.source).get("default_exp", "").startswith("engine.") for cell in notebook.cells)


def problems(path):
    "Why the notebook at `path` should run again: a list of sentences, empty if all is well"
    notebook = nbformat.read(path, 4)
    found = output_problems(notebook)
    run = notebook.metadata.get("run")
    if run is None: return found + ["it has no run stamp"]
    if run["cells"] != cells_hash(notebook): found.append(f"its code has changed since it ran, on {run['date']}")
    if run["seconds"] >= most_seconds and path.parent.name != "solutions": # which are no lessons
        found.append(f"it took {run['seconds']} s, and a lesson takes less than {most_seconds}")
    if any(("jupyter" in cell.metadata) != is_folded(cell) for cell in notebook.cells):
        found.append("its imports and checks are not folded: run it again")
    return found


class Lesson(NotebookClient):
    "Runs a notebook's cells, passes over those with `flags` and keeps their outputs"
    def __init__(self, notebook, flags, progress, **kwargs):
        super().__init__(notebook, timeout=None, record_timing=False, coalesce_streams=True,
                         store_widget_state=False, kernel_name="python3",
                         extra_arguments=["--log-level=ERROR", "--IPKernelApp.exec_lines=import alt_texts"], **kwargs)
        self.flags = flags
        self.progress = progress
        self.slow_seconds = 0.

    async def async_execute_cell(self, cell, cell_index, **kwargs):
        if not runs(cell, self.flags): return cell
        start = time.perf_counter()
        await super().async_execute_cell(cell, cell_index, **kwargs)
        if not runs(cell, skip_flags()): self.slow_seconds += time.perf_counter() - start
        self.progress.update()
        return cell


def kernel_environment():
    "Two threads, this tree's module and tools, no network"
    search = os.pathsep.join(filter(None, [str(root), str(tools), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2",
            "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONPATH": search}


def clean(path):
    "Make of the notebook at `path` what `nbdev_clean` makes of it"
    code = "import sys; from nbdev.clean import nbdev_clean; nbdev_clean.__wrapped__(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, check=True)


def run(path, slow=False):
    "Run the notebook at `path` and store it with its outputs and stamp; what went wrong, and then it is as it was"
    notebook = nbformat.read(path, 4)
    flags = [flag for flag in skip_flags() if not (slow and flag == "slow")]
    total = sum(runs(cell, flags) for cell in notebook.cells)
    with tqdm(total=total, desc=str(path.relative_to(nbs)), unit="cell", dynamic_ncols=True) as progress:
        lesson = Lesson(notebook, flags, progress, resources={"metadata": {"path": str(path.parent)}})
        slowness, start = Slowness(), time.perf_counter()
        slowness.start()
        try: lesson.execute(env=kernel_environment())
        except (CellExecutionError, DeadKernelError) as error: return [str(error)]
        seconds = time.perf_counter() - start - lesson.slow_seconds
        slower = slowness.end()
    quieten(notebook)
    if found := output_problems(notebook): return found
    notebook.metadata["run"] = stamp(notebook, seconds, slower)
    fold(notebook)
    nbformat.write(notebook, path)
    clean(path)
    seconds = notebook.metadata["run"]["seconds"]
    if seconds < most_seconds: return []
    return [f"it is stored, but it took {seconds:.0f} s, and a lesson takes less than {most_seconds}"]


def chosen(names):
    "The notebooks called `names`, or all: a path, a file name, or the start of one"
    there = notebooks()
    if not names: return there
    paths = []
    for name in names:
        exactly = [path for path in there if path == Path(name).resolve() or path.name == name]
        found = exactly or [path for path in there if path.name.startswith(name)]
        if not found:
            sys.exit(f"no notebook is called {name!r}; there are: {', '.join(str(p.relative_to(nbs)) for p in there)}")
        paths += found
    return paths


def main():
    options = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("notebooks", nargs="*", help=argparse.SUPPRESS)
    options.add_argument("--slow", action="store_true", help=argparse.SUPPRESS)
    options.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    asked = options.parse_args()
    failed, paths = 0, chosen(asked.notebooks)
    for path in paths:
        found = problems(path) if asked.check else run(path, asked.slow)
        failed += bool(found)
        for sentence in found: print(f"{path.relative_to(root)}: {sentence}", file=sys.stderr)
    if failed: sys.exit(f"{failed} of {len(paths)} notebooks need attention")


if __name__ == "__main__": main()
