"""The rules of the house, read from files and syntax trees; CONTRIBUTING.md tells them in words.

Each check takes a file of the tree, relative to its root, and its text, and gives one sentence for each breach.
"""
import ast
import functools
import json
import re
import nbformat
import pytest
from conftest import lessons, root, tree_files

most_columns = 120
most_lines_of_a_module = 400
most_lines_of_a_cell = {"nbs": 30, "engine": 60} # that exports, by the folder of its notebook

# A module imports from its own floor and from those below it. `engine.*_families` cannot be written here: name each.
FLOORS = [
    "gradient freezing preflight engine.arguments engine.objective engine.families engine.guessing engine.findings "
    "engine.pictures engine.delimited engine.conll engine.tags engine.frames engine.tables engine.inputs "
    "engine.folders engine.class_names engine.summaries engine.targets engine.hugging_face engine.readers "
    "engine.tagged engine.reports engine.parts engine.masks engine.mask_pictures engine.mask_files engine.mask_shapes "
    "engine.boxes engine.box_writers engine.box_files engine.box_formats engine.drawn_targets",
    "data engine.labels engine.numbers engine.several engine.tagging engine.baselines engine.tag_baselines "
    "engine.segmentation engine.detection engine.mask_baselines engine.box_baselines engine.segmentation_families "
    "engine.scenes engine.patches engine.docstrings engine.citations engine.software engine.splits engine.fractals "
    "engine.photographs engine.handwriting engine.torchvision_families engine.timm_families "
    "engine.transformers_families",
    "vision text cache adapters engine.widths engine.models engine.image_models engine.text_models engine.taggers "
    "engine.segmenters engine.dense_segmenters engine.detectors engine.twins engine.fast engine.memory engine.states "
    "engine.threads engine.batches engine.prefix engine.cutting engine.taps",
    "training unlabelled engine.settings engine.judging engine.seen engine.steps engine.history engine.callbacks "
    "engine.rates engine.checkpoints engine.run engine.guesses engine.explanations engine.second_look",
    "depth pretraining saving interpret confidence layers engine.runs engine.sweeps engine.places engine.answering "
    "engine.cards engine.pretrainer engine.choosing compression engine.onnx_models engine.continued "
    "engine.recalled",
    "widgets sharing engine.trials engine.drawing",
    "cli engine.commands engine.model_commands engine.options",
]
floor_of = {module: floor for floor, modules in enumerate(FLOORS) for module in modules.split()}

# The rooms that may call a kind of task, a kind of input or a family of backbones by its name
its_own_room = re.compile(
    r"engine\.(labels|numbers|several|tag\w+|mask\w+|segment\w+|box\w+|detect\w+|conll|citations|software|pictures"
    r"|tables|inputs|readers|\w+_families)|vision|text")
kinds = {"image", "text", "classification", "multi_label", "multi-label", "regression", "several", "tagging", "tagger",
         "segmentation", "segmenter", "detection", "detector"}
families = re.compile(
    r"(albert|alexnet|bert|camembert|convnext|densenet|distilbert|efficientnet|electra|gpt2|minilm|mobilenet|regnet"
    r"|resnet|roberta|swin|swintransformer|vgg|visiontransformer|vit|xlm)([\W_\d].*)?", re.IGNORECASE)

# What does not keep a rule yet. A file that keeps it must leave the list, and then a test says so.
PENDING = {rule: set() for rule in ("columns", "cells", "ends", "modules", "secrets", "floors", "kinds")}


# The files

notebooks = [path.relative_to(root).as_posix() for path in lessons.notebooks()]
scripts = [path.as_posix() for path in tree_files() if path.suffix == ".py"]
no_rooms = "_modidx.py", "__init__.py"
modules = [path for path in scripts if path.startswith("finetune_nb/") and not path.endswith(no_rooms)]


def module_of(path):
    "The name of the module that is at `path`, without the package's"
    return path.removeprefix("finetune_nb/").removesuffix(".py").replace("/", ".")


def code_cells(text):
    "The sources of a notebook's code cells"
    return ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]


# The checks of files

def too_wide(path, text):
    "Lines over the most columns, in a script or in the code cells of a notebook"
    parts = code_cells(text) if path.endswith(".ipynb") else [text]
    names = re.compile(r"^__all__ = \[.*?\]$", re.S | re.M) # of a module: nbdev writes and breaks them
    lines = [line for part in parts for line in names.sub("", part).splitlines()]
    return [f"{len(line)} columns: {line.strip()[:60]}…" for line in lines if len(line) > most_columns]


def too_long_a_cell(path, text):
    "Cells that export more lines than a reader can take in; its directives are no lines"
    most, found = most_lines_of_a_cell[path.split("/")[-2]], []
    for source in code_cells(text):
        if not {"export", "exports"} & lessons.directives(source).keys(): continue
        lines = [line for line in source.strip().splitlines() if not line.startswith("#|")]
        if len(lines) > most: found.append(f"{len(lines)} lines in the cell that begins with {lines[0]!r}")
    return found


def ends_with_its_code(path, text):
    "nbdev stops at a notebook whose last cell that a page shows exports"
    shown = [cell for cell in json.loads(text)["cells"] if "hide" not in lessons.directives("".join(cell["source"]))]
    exports = shown[-1]["cell_type"] == "code" and "exports" in lessons.directives("".join(shown[-1]["source"]))
    return ["ends with a cell that exports: let a sentence or an example follow it"] if exports else []


def too_long_a_module(path, text):
    lines = len(text.splitlines())
    return [f"{lines} lines"] if lines > most_lines_of_a_module else []


# The checks of syntax trees

def absolute(node, path):
    "The module that `from … import` in the file at `path` names, with the package's name"
    if not node.level: return node.module or ""
    package = path.removesuffix(".py").split("/")[:-node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


def imports(path, text):
    "`(module of ours, name or None, what it is called here)` for all that the file at `path` imports from our package"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            where = absolute(node, path)
            if where.split(".")[0] != "finetune_nb": continue
            for alias in node.names: yield where, alias.name, alias.asname or alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "finetune_nb": yield alias.name, None, alias.asname or alias.name


def imported_modules(path, text, there=frozenset(map(module_of, modules))):
    "The modules of ours that the file at `path` imports, anywhere in it"
    import finetune_nb
    found = set()
    for where, name, _ in imports(path, text):
        module = where.removeprefix("finetune_nb").lstrip(".")
        submodule = f"{module}.{name}".lstrip(".")
        if submodule in there: found.add(submodule)
        elif module: found.add(module)
        elif name in finetune_nb._module_of: found.add(finetune_nb._module_of[name]) # a name at the top level
    return found - {module_of(path)}


def private(name): return name.startswith("_") and not name.startswith("__")


def another_s_secret(path, text):
    "Underscore names of another module of ours, imported or reached through it"
    found, called = [], set()
    for where, name, alias in imports(path, text):
        called.add(alias)
        if name and private(name): found.append(f"imports {name} from {where}")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and private(node.attr) and ast.unparse(node.value) in called:
            found.append(f"uses {ast.unparse(node)}")
    return found


@functools.cache
def import_graph():
    "`{module: the modules of ours that it imports}`"
    return {module_of(path): imported_modules(path, (root/path).read_text(encoding="utf-8")) for path in modules}


def reachable(start, graph):
    "All modules that `start` imports, directly or not"
    seen, todo = set(), list(graph.get(start, ()))
    while todo:
        if (module := todo.pop()) in seen: continue
        seen.add(module)
        todo += graph.get(module, ())
    return seen


def upward(path, text, graph=None):
    "Imports from a higher floor, or in a circle"
    module, imported = module_of(path), imported_modules(path, text)
    graph = {**(graph or import_graph()), module: imported}
    missing = sorted(each for each in {module, *imported} if each not in floor_of)
    if missing: return [f"{each} is on no floor: add it to FLOORS in tests/test_house.py" for each in missing]
    found = [f"floor {floor_of[module]}, imports {other} of floor {floor_of[other]}"
             for other in sorted(imported) if floor_of[other] > floor_of[module]]
    if module in reachable(module, graph): found.append("imports itself by way of others")
    return found


def strings(node):
    "The strings in a constant, or in a tuple, list or set of constants"
    parts = node.elts if isinstance(node, (ast.Tuple, ast.List, ast.Set)) else [node]
    return [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def names_a_kind(node): return any(word in kinds or families.fullmatch(word) for word in strings(node))


def asks_for_the_kind(node):
    "Is this `….kind`, `…['kind']` or `….get('kind')`? An array's `dtype.kind` is something else"
    if isinstance(node, ast.Attribute):
        return node.attr == "kind" and not ast.unparse(node.value).endswith(("dtype", "parameter"))
    if isinstance(node, ast.Subscript): return strings(node.slice) == ["kind"]
    return isinstance(node, ast.Call) and ast.unparse(node).endswith(".get('kind')")


def is_a_first_input(node):
    "Is this `inputs[0]` or `….inputs[0]`?"
    return bool(re.search(r"(^|\.)inputs\[0\]$", ast.unparse(node)))


def compared(node):
    "What `node` compares, if it is a comparison: with ==, in or match, or the start or end of a string"
    if isinstance(node, ast.Compare): return [node.left, *node.comparators]
    if isinstance(node, ast.Match): return [node.subject]
    if isinstance(node, ast.MatchValue): return [node.value]
    if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("startswith", "endswith"): return node.args
    return []


def knows_a_kind(path, text):
    "Decisions by the name of a kind or family outside its own room"
    found = []
    for node in ast.walk(ast.parse(text)):
        parts = compared(node)
        if any(names_a_kind(part) or asks_for_the_kind(part) for part in parts):
            found.append(f"line {getattr(node, 'lineno', '?')} compares {', '.join(map(ast.unparse, parts))}"[:100])
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance" and is_a_first_input(node.args[0]):
            found.append(f"line {node.lineno} asks what a first input is: {ast.unparse(node)}")
    return found


# The rules

lessons_that_export = [path for path in notebooks if re.fullmatch(r"nbs/(engine/)?\w+\.ipynb", path)]
everyone_s_rooms = [path for path in modules if not its_own_room.fullmatch(module_of(path))]
written_by_hand = [path for path in scripts if not path.endswith("_modidx.py")]
RULES = {
    "columns": (too_wide, [*written_by_hand, *notebooks]),
    "cells": (too_long_a_cell, lessons_that_export),
    "ends": (ends_with_its_code, notebooks),
    "modules": (too_long_a_module, modules),
    "secrets": (another_s_secret, modules),
    "floors": (upward, modules),
    "kinds": (knows_a_kind, everyone_s_rooms),
}


def breaches(rule):
    "`{file: sentences}` for the files that do not keep `rule`"
    check, files = RULES[rule]
    found = {file: check(file, (root/file).read_text(encoding="utf-8")) for file in files}
    return {file: sentences for file, sentences in found.items() if sentences}


@pytest.mark.parametrize("rule", RULES)
def test_the_rules_are_kept(rule):
    "By all but the pending; and whoever keeps a rule is no longer pending"
    broken = breaches(rule)
    found = [f"{file}: {sentence}" for file in broken.keys() - PENDING[rule] for sentence in broken[file]]
    assert not found, "\n".join(sorted(found))
    kept = sorted(PENDING[rule] - broken.keys())
    assert not kept, f"take out of PENDING[{rule!r}] in tests/test_house.py, for they keep the rule: {', '.join(kept)}"


# The checks must be able to fail.

def notebook_of(*sources):
    "The text of a notebook with these code cells"
    return nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources]))


@pytest.mark.parametrize("path, text, reason", [
    ("tools/a.py", "x" * 121, "121 columns"),
    ("tools/a.py", "x" * 120, None),
    ("nbs/01_a.ipynb", notebook_of("1", "x" * 121), "121 columns"),
    ("nbs/01_a.ipynb", notebook_of("x" * 120), None)])
def test_a_wide_line_is_noticed(path, text, reason): assert said(too_wide(path, text), reason)


@pytest.mark.parametrize("path, source, reason", [
    ("nbs/01_a.ipynb", "#| export\n" + "x\n" * 31, "31 lines"),
    ("nbs/01_a.ipynb", "#| exports\n" + "x\n" * 31, "31 lines"),
    ("nbs/01_a.ipynb", "#| exports\n" + "x\n" * 30, None),
    ("nbs/01_a.ipynb", "x\n" * 31, None),
    ("nbs/engine/01_a.ipynb", "#| exports\n" + "x\n" * 60, None),
    ("nbs/engine/01_a.ipynb", "#| exports\n" + "x\n" * 61, "61 lines")])
def test_a_long_cell_is_noticed(path, source, reason): assert said(too_long_a_cell(path, notebook_of(source)), reason)


@pytest.mark.parametrize("sources, reason", [
    (["#| exports\nx = 1", "#| hide\nexport()"], "ends with a cell that exports"),
    (["#| exports\nx = 1", "x"], None)])
def test_a_page_that_nbdev_cannot_make_is_noticed(sources, reason):
    assert said(ends_with_its_code("nbs/01_a.ipynb", notebook_of(*sources)), reason)


@pytest.mark.parametrize("lines, reason", [(401, "401 lines"), (400, None)])
def test_a_long_module_is_noticed(lines, reason):
    assert said(too_long_a_module("finetune_nb/data.py", "x\n" * lines), reason)


def said(found, reason):
    "Is `reason` among the sentences `found`, or is there none as expected?"
    return reason in "\n".join(found) if reason else not found


@pytest.mark.parametrize("source, reason", [
    ("from finetune_nb.cache import _plan", "imports _plan from finetune_nb.cache"),
    ("from .cache import fit, _plan as plan", "imports _plan"),
    ("def f():\n    from finetune_nb.cache import (fit,\n        _plan)", "imports _plan"),
    ("from finetune_nb import cache\ncache._plan()", "uses cache._plan"),
    ("from . import cache as store\nstore._plan()", "uses store._plan"),
    ("import finetune_nb.cache\nfinetune_nb.cache._plan()", "uses finetune_nb.cache._plan"),
    ("from finetune_nb import __version__\nfrom torch import _C\nself._plan()", None)])
def test_another_s_secret_is_noticed(source, reason):
    assert said(another_s_secret("finetune_nb/training.py", source), reason)


@pytest.mark.parametrize("path, source, reason", [
    ("finetune_nb/data.py", "from finetune_nb.training import fit", "floor 1, imports training of floor 3"),
    ("finetune_nb/data.py", "def f():\n    from .training import fit", "imports training"),
    ("finetune_nb/data.py", "from finetune_nb import fit", "imports training"),
    ("finetune_nb/data.py", "import finetune_nb.training", "imports training"),
    ("finetune_nb/data.py", "from . import training", "imports training"),
    ("finetune_nb/engine/labels.py", "from ..training import fit", "imports training"),
    ("finetune_nb/engine/labels.py", "from .steps import step", "imports engine.steps"),
    ("finetune_nb/data.py", "from finetune_nb.gradient import descend\nimport torch", None),
    ("finetune_nb/novel.py", "import torch", "novel is on no floor: add it to FLOORS")])
def test_an_upward_import_is_noticed(path, source, reason):
    assert said(upward(path, source, {"gradient": set()}), reason)


def test_a_circle_is_noticed():
    graph = {"gradient": {"freezing"}, "freezing": {"preflight"}}
    assert said(upward("finetune_nb/preflight.py", "from .gradient import descend", graph), "imports itself")
    assert said(upward("finetune_nb/data.py", "from .gradient import descend", graph), None)


@pytest.mark.parametrize("source, reason", [
    ("task.kind == 'image'", "compares task.kind, 'image'"),
    ("'one' if about['kind'] != other else 'two'", "about['kind']"),
    ("about.get('kind') == other", "about.get('kind')"),
    ("kind in ('image', 'text')", "compares kind"),
    ("'ResNet' in classes", "'ResNet'"),
    ("name == 'resnet18-fractal'", "'resnet18-fractal'"),
    ("name.startswith('bert')", "'bert'"),
    ("match objective:\n    case 'multi_label': pass", "'multi_label'"),
    ("match task.kind:\n    case other: pass", "task.kind"),
    ("isinstance(inputs[0], str)", "first input"),
    ("isinstance(task.train.inputs[0], str)", "first input"),
    ("array.dtype.kind == 'f'; name == 'text_column'; isinstance(labels[0], str); {'image': 1}[kind]", None)])
def test_a_decision_by_kind_is_noticed(source, reason):
    assert said(knows_a_kind("finetune_nb/training.py", source), reason)


def test_a_kind_has_a_room_of_its_own():
    named = {module for module in floor_of if its_own_room.fullmatch(module)}
    assert named == {"vision", "text", "engine.labels", "engine.numbers", "engine.several", "engine.pictures",
                     "engine.tags", "engine.tagging", "engine.tag_baselines", "engine.tagged", "engine.taggers",
                     "engine.conll", "engine.citations", "engine.software", "engine.masks", "engine.mask_pictures",
                     "engine.mask_files", "engine.mask_shapes", "engine.mask_baselines",
                     "engine.boxes", "engine.box_baselines", "engine.box_writers", "engine.box_files",
                     "engine.box_formats",
                     "engine.detection", "engine.detectors",
                     "engine.segmentation", "engine.segmenters", "engine.segmentation_families",
                     "engine.tables", "engine.inputs", "engine.readers", "engine.torchvision_families",
                     "engine.timm_families", "engine.transformers_families"}
