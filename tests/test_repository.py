"""The tree says the same thing everywhere: notebooks, module, README and site."""
import re
import subprocess
import sys
from collections import Counter
from configparser import ConfigParser
import nbformat
import pytest
import yaml
from conftest import lessons, load, root, tree_files

notebooks = [p.relative_to(root).as_posix() for p in lessons.notebooks()]
text_files = [p for p in tree_files() if p.suffix not in (".safetensors", ".png", ".jpg", ".svg", ".woff2", ".npz")]


def nbdev(call, tree, env):
    module, name = call.split(":")
    code = f"from {module} import {name}; getattr({name}, '__wrapped__', {name})()"
    subprocess.run([sys.executable, "-c", code], cwd=tree, env={**env, "PYTHONPATH": str(tree)},
                   check=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("call", [
    "nbdev.doclinks:nbdev_export", "nbdev.clean:nbdev_clean", "nbdev.quarto:refresh_quarto_yml"])
def test_nbdev_would_change_nothing(call, tree, quiet):
    before = {path: (tree/path).read_bytes() for path in tree_files(tree)}
    nbdev(call, tree, quiet)
    after = {path: (tree/path).read_bytes() for path in tree_files(tree)}
    changed = sorted(str(path) for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    assert not changed, f"{call.split(':')[1]} changes {', '.join(changed)}: type `make export`"


@pytest.mark.parametrize("notebook", notebooks)
def test_notebook_shows_what_its_cells_print(notebook):
    found = lessons.problems(root/notebook)
    assert not found, f"{notebook}: {'; '.join(found)}: type `make lessons NOTEBOOKS={notebook}`"


def prose(notebook): return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def points(text): return re.findall("^- ", text, flags=re.M)


def is_picture(output):
    data = output.get("data", {})
    return "image/png" in data or any(sign in data.get("text/html", "") for sign in ("<svg", "data:image/png"))


def solved_in(path):
    "The numbers of the exercises that the notebook at `path` solves"
    return re.findall(r"^## (\d+)", prose(nbformat.read(path, 4)), flags=re.M) if path.exists() else []


def answers_of(words):
    "To each exercise under a lesson's `words`, the answers to click on: `[(what one may have found, what is said)]`"
    exercises = re.split(r"^\d+\. ", words.partition("\n## Exercises\n")[2], flags=re.M)[1:]
    answer = re.compile(r"^   <details><summary>(.+)</summary>(.+)</details>$", re.M)
    return [answer.findall(exercise) for exercise in exercises]


def answer_problems(answers):
    "What the answers to one exercise lack, one sentence each"
    found = []
    if len(answers) < 2: found.append(f"{len(answers)} answers to click on")
    verdicts = [said.partition(": ")[0] for _, said in answers]
    if answers and (verdicts.count("Right"), verdicts.count("Wrong")) != (1, len(answers) - 1):
        found.append(f"they begin with {', '.join(verdicts)}: one is Right, each other one Wrong")
    for shown, said in answers:
        shown = re.sub(r"<[^>]*>", "", shown)
        if len(shown) > 90: found.append(f"{shown!r} has {len(shown)} characters, and 90 are the most")
        if len(said.partition(": ")[2].split()) < 5: found.append(f"{shown!r} has no reason")
    return found


def form_problems(name, next_name):
    "What a lesson of the book lacks, one sentence each"
    page, file, found = nbformat.read(root/name, 4), root/name, []
    def says(condition, sentence): found.extend([] if condition else [sentence])
    words, opening = prose(page), page.cells[0].source
    exercises = words.partition("\n## Exercises\n")[2]
    says(re.match(r"# .+\n+> .+[.?!]\n", opening), "it does not open with `# a title` and `> a sentence`")
    learn = "**You will learn**" in opening and len(points(opening)) == 3
    says(learn, "it does not say in three points what you will learn")
    takes = re.search(r"\*\*Needs\*\* .+\*\*Takes\*\* about (\d+) s", opening, flags=re.S)
    says(takes, "it does not say what it needs, and how many seconds it takes")
    took = page.metadata.get("run", {}).get("seconds")
    if takes: says(took <= 1.25 * int(takes[1]), f"it says {takes[1]} s, and took {took}")
    says(re.search(r"^#+ .*Pitfall", words, flags=re.M) or "pitfalls" in name, "it has no pitfall")
    says("<details" in words, "it has no question with a folded answer")
    says(any(is_picture(output) for cell in page.cells for output in cell.get("outputs", [])), "it has no picture")
    recap = words.partition("\n## Recap\n")[2].partition("\n## ")[0]
    says(len(points(recap)) == 3, "it does not end in a recap of three points")
    asked, solved = re.findall(r"^(\d+)\. ", exercises, flags=re.M), solved_in(file.parent/"solutions"/file.name)
    says(3 <= len(asked) <= 5 and asked == solved,
         f"it has exercises {', '.join(asked)}, and solutions to {', '.join(solved)}")
    says(f"](solutions/{file.name})" in exercises, "it does not lead to the solutions")
    leads_on = re.search(rf"\*\*Next:\*\* \[[^]]+\]\({re.escape(next_name)}\)", exercises)
    says(leads_on, f"it does not lead to {next_name} at its end")
    return found


def sidebar(contents=None):
    "The pages of the sidebar, in order, relative to nbs/"
    whole = yaml.safe_load((root/"nbs"/"sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    for item in whole if contents is None else contents:
        if isinstance(item, str): yield item
        elif "href" in item: yield item["href"]
        else: yield from sidebar(item["contents"])


order = [page for page in sidebar() if re.fullmatch(r"\d\w+\.ipynb", page)] # the engine room is in a folder of its own
book = list(zip(order, order[1:]))[:order.index("90_faq.ipynb")] # those before it are lessons


@pytest.mark.parametrize("name, next_name", book)
def test_a_lesson_has_all_its_parts(name, next_name):
    found = form_problems(f"nbs/{name}", next_name)
    assert not found, f"nbs/{name}: {'; '.join(found)}"


@pytest.mark.parametrize("name", [name for name, _ in book])
def test_an_exercise_has_answers_to_click_on(name):
    answers = answers_of(prose(nbformat.read(root/"nbs"/name, 4)))
    found = [f"exercise {i}: {'; '.join(own)}" for i, own in enumerate(map(answer_problems, answers), 1) if own]
    assert answers and not found, f"nbs/{name}: {'; '.join(found)}"


def places(all_answers):
    "Where the right one stands, how often each place"
    return Counter(next((i for i, (_, said) in enumerate(own) if said.startswith("Right: ")), None)
                   for own in all_answers)


def test_the_right_answer_has_no_place_of_its_own():
    found = places(own for name, _ in book for own in answers_of(prose(nbformat.read(root/"nbs"/name, 4))) if own)
    assert len(found) > 2 and max(found.values()) < .6 * found.total(), found


@pytest.mark.parametrize("said, reason", [
    (["Right: it has a reason of words", "Wrong: it has a reason of words"], ""),
    (["Right: it has a reason of words"], "1 answers"), ([], "0 answers"),
    (["Right: it has a reason of words"] * 2, "begin with Right, Right"),
    (["Wrong: it has a reason of words"] * 2, "begin with Wrong, Wrong"),
    (["Right: it has a reason of words", "Maybe: it has a reason of words"], "begin with Right, Maybe"),
    (["Right: it has a reason of words", "Wrong: no."], "no reason")])
def test_answers_that_do_not_say_why_are_noticed(said, reason):
    lines = "".join(f"   <details><summary>It is so.</summary>{own}</details>\n" for own in said)
    answers, = answers_of(f"\n## Exercises\n\n1. Is it so?\n{lines}\n[Solutions](a)")
    found = "; ".join(answer_problems(answers))
    assert found == "" if not reason else reason in found
    assert places([answers])[0] == (1 if said and said[0].startswith("Right") else 0)


def test_a_page_without_these_parts_is_noticed():
    assert len(form_problems("nbs/index.ipynb", "01_transfer_learning.ipynb")) > 6


def readme(): return (root/"README.md").read_text(encoding="utf-8")


def test_readme_is_the_index():
    text, pictures = load(root/"tools"/"readme.py").readme()
    assert readme() == text, "type `make export`"
    stored = {f"images/{file.name}": file.read_bytes() for file in (root/"nbs"/"images").iterdir()}
    assert stored == pictures, "type `make export`"


def test_readme_knows_how_long_the_lessons_take():
    rows = re.findall(r"^\| \[.+?\]\((nbs/\w+\.ipynb)\) \| .+? \| (\d+ s|no time) \|", readme(), flags=re.M)
    assert [name for name, _ in rows] == [f"nbs/{name}" for name in order]
    openings = [nbformat.read(root/name, 4).cells[0].source for name, _ in rows]
    said = [re.search(r"\*\*Takes\*\* (?:about )?(\d+ s|no time)", opening)[1] for opening in openings]
    assert [takes for _, takes in rows] == said, "type `make lessons NOTEBOOKS=nbs/index.ipynb` and `make export`"


def test_the_lines_in_the_readme_run(monkeypatch):
    "Word for word, but on a handful of images"
    from finetune_nb import data
    digits = data.digits
    monkeypatch.setattr(data, "digits", lambda labels_per_class: digits(1, validation_per_class=1, test_per_class=2))
    lines, ran = re.findall(r"```python\n(.*?)```", readme(), flags=re.S), {}
    exec("".join(lines), ran)
    assert len(ran["history"].epochs) == 10 and ran["model"].backbone.fc.out_features == ran["task"].num_classes == 10


def test_readme_links_lead_somewhere():
    links = re.findall(r"\]\(([^)\s#]+)", readme())
    missing = [link for link in links if "://" not in link and not (root/link).exists()]
    assert links and not missing, missing


def heading_ids(notebook):
    "The identifiers of a page's headings, by the rules of Pandoc, which both builders follow"
    words = re.sub(r"```.*?```", "", prose(notebook), flags=re.S)
    def identifier(title):
        kept = re.sub(r"[^\w\s.-]", "", title.lower())
        return re.sub(r"\s+", "-", re.sub(r"^[^a-z]+", "", kept))
    return {identifier(title) for title in re.findall(r"^#+ +(.+)$", words, flags=re.M)}


def test_links_between_lessons_lead_to_headings_that_are_there():
    found = []
    for name in notebooks:
        for link in re.findall(r"\]\(([^)\s]+\.ipynb(?:#[^)\s]+)?)\)", prose(nbformat.read(root/name, 4))):
            target, _, part = link.partition("#")
            there = ((root/name).parent/target).resolve()
            if not there.exists(): found.append(f"{name}: {link}")
            elif part and part not in heading_ids(nbformat.read(there, 4)):
                found.append(f"{name}: {link}: no such heading")
    assert not found, found


def test_sidebar_lists_every_notebook_but_solutions():
    "Exercises lead to their solutions"
    listed = [page for page in sidebar() if page.endswith(".ipynb")]
    there = [name.removeprefix("nbs/") for name in notebooks if "/solutions/" not in name]
    assert sorted(listed) == sorted(there)


def test_the_glossary_has_the_words_of_the_book():
    terms = list(load(root/"tools"/"pages.py").glossary())
    words = {"answers of a model", "backbone", "block", "freeze depth", "frozen prefix", "full fine-tuning", "head",
             "linear probe", "objective", "states", "targets", "trainable suffix"}
    assert words <= set(terms) and len(terms) > 80
    assert terms == sorted(terms, key=str.lower)


def test_a_term_is_used_where_the_glossary_says():
    said = re.findall(r"^#### (.+)\n\n.+\]\(([\w.]+)#", prose(nbformat.read(root/"nbs"/"91_glossary.ipynb", 4)), re.M)
    lost = [f"{term}: {name}" for term, name in said
            if term.lower().removesuffix(" of a model") not in (root/"nbs"/name).read_text(encoding="utf-8").lower()]
    assert len(said) > 80 and not lost, lost


def test_sidebar_lists_every_module():
    listed = [page for page in sidebar() if page.endswith(".qmd")]
    assert sorted(listed) == [f"reference/{module}.qmd" for module in load(root/"tools"/"reference.py").modules()]


def test_site_has_one_configuration():
    pointer = yaml.safe_load((root/"nbs"/"_quarto.yml").read_text())
    assert pointer == {"project": {"type": "website"}, "metadata-files": ["../_quarto.yml", "nbdev.yml", "sidebar.yml"]}


def test_one_configuration_is_read_by_all():
    "Through nbs/, a builder gets what the root says, the title of settings.ini and the sidebar, and knows every key"
    read = pytest.importorskip("smalldocs.config").load(root/"nbs")
    whole = yaml.safe_load((root/"_quarto.yml").read_text(encoding="utf-8"))
    settings = ConfigParser(delimiters=["="])
    settings.read(root/"settings.ini", encoding="utf-8")
    assert read.warnings == [] and read.config["format"] == whole["format"]
    website = read.config["website"]
    assert website["title"] == settings["DEFAULT"]["title"]
    assert website["repo-url"] == settings["DEFAULT"]["git_url"]
    assert "contents" in website["sidebar"]
    assert whole["website"].items() <= (website | {"sidebar": whole["website"]["sidebar"]}).items()


def mentions(pattern):
    "The places in the tree that `pattern` matches"
    found = []
    for path in text_files:
        match = pattern.search((root/path).read_text(encoding="utf-8", errors="ignore"))
        if match: found.append(f"{path}: {match[0]}")
    return found


def test_the_newest_changes_are_those_of_this_version():
    version = re.search(r"^version = (.+)$", (root/"settings.ini").read_text(encoding="utf-8"), re.M)[1]
    newest = re.search(r"^## (.+)$", (root/"CHANGELOG.md").read_text(encoding="utf-8"), re.M)[1]
    assert re.fullmatch(rf"{re.escape(version)}, (\d{{4}}-\d\d-\d\d|not yet released)", newest)


def test_no_page_needs_the_network():
    hosts = ["cdn" + ".jsdelivr.net", "unpkg" + ".com", "cdn" + "js.cloudflare.com",
             "ajax" + ".googleapis.com", "fonts" + ".googleapis.com"]
    assert not mentions(re.compile("|".join(map(re.escape, hosts))))


def test_no_path_of_one_machine():
    folders = [re.escape(str(root)) + r"\b", "/" + r"root/\w", "/" + r"home/\w+/", "/" + r"Users/\w+/"]
    assert not mentions(re.compile("|".join(folders)))


# The checks above must be able to fail.

@pytest.fixture
def page(tmp_path):
    "A lesson that is in order"
    cells = [nbformat.v4.new_markdown_cell("# A lesson"), nbformat.v4.new_code_cell("1 + 1")]
    book = nbformat.v4.new_notebook(cells=cells)
    book.cells[1].outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "2"})]
    book.metadata["run"] = lessons.stamp(book, 1.0)
    return book


def problems(page, tmp_path):
    nbformat.write(page, tmp_path/"lesson.ipynb")
    return " ".join(lessons.problems(tmp_path/"lesson.ipynb"))


def test_a_page_in_order_passes(page, tmp_path): assert problems(page, tmp_path) == ""


def test_mended_prose_passes(page, tmp_path):
    page.cells[0].source += ", mended"
    assert problems(page, tmp_path) == ""


def print_to(name, text):
    "A change of a page: its code cell prints `text`, too"
    return lambda page: page.cells[1].outputs.append(nbformat.v4.new_output("stream", name=name, text=text))


def fail(page):
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
    page.cells[1].outputs.append(error)


@pytest.mark.parametrize("spoil, reason", [
    (lambda page: page.cells[1].update(source="1 + 2"), "changed since"),
    (lambda page: page.metadata.pop("run"), "no run stamp"),
    (lambda page: page.metadata.run.update(seconds=61), "less than 60"),
    (lambda page: page.cells[1].update(outputs=[]), "no cell has an output"),
    (fail, "ValueError"),
    (lambda page: page.cells.append(nbformat.v4.new_code_cell("import os\nimport sys")), "not folded"),
    (print_to("stderr", "50%|"), "standard error"),
    (print_to("stdout", f"{root}/nbs"), "path of one machine"),
], ids=["changed code", "no stamp", "too slow", "no output", "error", "wall of imports", "standard error", "path"])
def test_a_spoilt_page_fails(page, tmp_path, spoil, reason):
    spoil(page)
    assert reason in problems(page, tmp_path)


@pytest.mark.parametrize("source, expected", [
    ("1", True), ("#| export\n1", True), ("# slow\n1", True), ("x = 1\n#| slow", True),
    ("  ", False), ("#| slow\n1", False), ("# | slow\n1", False), ("#| eval: false\n1", False),
    ("#| export\n#| slow\n1", False)])
def test_which_cells_run(source, expected):
    assert lessons.runs(nbformat.v4.new_code_cell(source), lessons.skip_flags()) is expected


@pytest.mark.parametrize("source, expected", [
    ("#| exports\nimport os\nfrom a import (b,\n    c)", "imports"), ("assert a\ntest_fail(b, contains='c')", "checks"),
    ("for a in b: assert a", "checks"), ("import os\nprint(os)", None), ("a = 1\nassert a", None), ("", None),
    ("!ls", None), ("def a(: 1", None)])
def test_what_only_imports_or_checks_is_known(source, expected): assert lessons.kind_of(source) == expected


def test_a_failing_lesson_is_left_as_it_was(page, tmp_path, monkeypatch):
    monkeypatch.setattr(lessons, "nbs", tmp_path)
    page.cells.append(nbformat.v4.new_code_cell("1 / 0"))
    path = tmp_path/"lesson.ipynb"
    nbformat.write(page, path)
    before = path.read_bytes()
    assert "ZeroDivisionError" in " ".join(lessons.run(path))
    assert path.read_bytes() == before


def test_a_lesson_is_run_stored_and_stamped(page, tree):
    for old in (tree/"nbs").rglob("*.ipynb"): old.unlink()
    path = tree/"nbs"/"lesson.ipynb"
    slow = nbformat.v4.new_code_cell("#| slow\nraise Exception")
    slow.outputs = [nbformat.v4.new_output("stream", name="stdout", text="an old run")]
    noisy = nbformat.v4.new_code_cell("import os, sys\nprint('tired', file=sys.stderr)\n"
                                      "print(os.environ['OMP_NUM_THREADS'], 'threads')")
    page.cells += [slow, noisy]
    page.metadata.pop("run")
    nbformat.write(page, path)
    command = [sys.executable, str(tree/"tools"/"lessons.py")]
    subprocess.run([*command, "lesson"], check=True, stdin=subprocess.DEVNULL)
    subprocess.run([*command, "--check"], check=True)
    ran = nbformat.read(path, 4)
    assert [cell.get("outputs", [{}])[0].get("text") for cell in ran.cells[2:]] == ["an old run", "2 threads\n"]
    assert ran.metadata.run.cells == lessons.cells_hash(page) and ran.cells[1].execution_count is None
    before = path.read_bytes()
    clean = "from nbdev.clean import nbdev_clean; nbdev_clean.__wrapped__()"
    subprocess.run([sys.executable, "-c", clean], cwd=tree, check=True)
    assert path.read_bytes() == before
