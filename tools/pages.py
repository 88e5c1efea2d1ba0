"""Build the site in _docs; `make docs` does it. nbdev prepares the pages, Quarto lays them out, or smalldocs
where there is no Quarto.

The notebooks are shown as they are stored, none is run. Their mathematics becomes MathML here, before either
builder sees it, so no page has to fetch a script to draw it. `settings.ini` names the steps (`procs`) that nbdev
takes besides its own.
"""
import base64
import functools
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
import yaml
from execnb.nbio import mk_cell, read_nb
from latex2mathml.converter import convert
from nbdev.doclinks import _nbpath2html
from nbdev.process import Processor
from PIL import Image

tools = Path(__file__).resolve().parent
root = tools.parent
nbs = root/"nbs"
sys.path.insert(0, str(tools)) # nbdev imports this file by its name: `procs` in settings.ini
import body
import lessons
import reference

settings = ConfigParser(delimiters=["="])
settings.read(root/"settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]
repository = settings["git_url"]
most_lines = 30 # of a listing that is shown at once
most_colours = 4000 # of a chart


# What nbdev does to every notebook, besides its own

code_in_prose = r"(```[\s\S]*?```|`[^`\n]+`)"
block_formula = r"\$\$([\s\S]+?)\$\$"
inline_formula = r"(?<![\\$])\$(?=\S)([^$\n]+?)(?<=\S)\$(?![\d$])" # not the sum of $5


def mathml(text):
    "Markdown, with the formulas between dollars as MathML; code is left alone"
    def moved(match):
        code, block, inline = match.groups()
        return code or convert((block or inline).strip(), display="block" if block else "inline")
    return re.sub(f"{code_in_prose}|{block_formula}|{inline_formula}", moved, text)


def mathematics(cell):
    "Formulas as MathML, in prose and in outputs"
    if cell.cell_type == "markdown": cell.source = mathml(cell.source)
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "text/markdown" in data: data["text/markdown"] = mathml("".join(data["text/markdown"]))


def is_chart(png):
    "Is the picture (base64) lines and letters on white, so that a dark page may show it inverted?"
    drawn = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    colours = drawn.getcolors(most_colours) or [] # a photograph has more
    return 2 * sum(count for count, colour in colours if colour == (255, 255, 255)) > drawn.width * drawn.height


class figures(Processor):
    "For who cannot see it, a figure is described by its title, or by the heading that it stands under"
    heading = ""
    def cell(self, cell):
        if cell.cell_type == "markdown":
            for heading in re.findall(r"^#+ (.+)$", cell.source, re.M): self.heading = re.sub(r"[*_`]", "", heading)
            return
        shown = [output for output in cell.get("outputs", []) if output.get("data", {}).get("image/png")]
        if not shown: return
        drawn = [output["data"]["image/png"] for output in shown]
        kept = filter(None, (output.metadata.get("image/png", {}).get("alt") for output in shown))
        given = re.search(r"^#\| fig-alt: (.+)\n", cell.source, re.M)
        said = given[1] if given else "; ".join(dict.fromkeys(kept)) or self.heading
        said = f"{'Chart' if all(map(is_chart, drawn)) else 'Picture'}: {said}" # nbs/styles.css asks which
        if given: cell.source = cell.source.replace(given[0], "")
        cell.source = f"#| fig-alt: {json.dumps(said, ensure_ascii=False)}\n{cell.source}"


def summary(code):
    "What a listing defines, by name"
    names = re.findall(r"^(?:def|class) (\w+)", code, re.M)
    names = [name for name in names if name[0] != "_"] or names
    return f"The code of {', '.join(names)}" if names else "The code"


class folding(Processor):
    "Imports, checks, a long listing and what ran once and was saved are folded, and say what is in them"
    def cell(self, cell):
        if cell.cell_type != "code": return
        lines = len(re.sub(r"^#\|.*\n", "", cell.source.strip(), flags=re.M).splitlines())
        slow = "slow" in (getattr(cell, "directives_", None) or {})
        if slow and lines > 5: said = "The code that ran once"
        elif lines > most_lines: said = summary(cell.source)
        elif cell.get("outputs") or not (kind := lessons.kind_of(cell.source)): return
        elif kind == "checks": said = "Checked"
        elif lines > 1: said = "Imports"
        else: return
        lines = f"{lines} lines" if lines > 1 else "1 line"
        cell.source = f"#| code-fold: true\n#| code-summary: {json.dumps(f'{said}: {lines}')}\n{cell.source}"


def raw_html(text):
    "Markdown that both builders take over as it is"
    return f"```{{=html}}\n{text}\n```"


def last_run(run):
    "When the notebook with the stamp `run` last ran, and on what"
    if not run: return ""
    said = f'The outputs are of {run["date"]}: {run.get("clock", run["seconds"]):.0f} s on {html.escape(run["cpu"])}.'
    return f' <span class="last-run">{said}</span>'


def run_line_of(name, run, up=""):
    "Where the notebook `name` (relative to nbs/) can be run, and when it last was"
    colab = repository.replace("https://github.com", "https://colab.research.google.com/github")
    binder = repository.replace("https://github.com", "https://mybinder.org/v2/gh")
    download = f'<a href="{up}notebooks/{name}" download>download the notebook</a>'
    in_binder = f'<a href="{binder}/{settings["branch"]}?urlpath=lab/tree/nbs/{name}">open it in Binder</a>'
    in_colab = f'<a href="{colab}/blob/gh-pages/notebooks/{name}">in Colab</a>'
    links = f"{download}, {in_binder} or {in_colab}."
    return raw_html(f'<p class="run-line"><strong>Run this page</strong>: {links}{last_run(run)}</p>')


@functools.cache
def explorer_s_twin():
    "The slider that needs no kernel, as the explorer's own page has it stored"
    cells = nbformat.read(nbs/"08b_explorer.ipynb", 4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    shown = ["".join(output.get("data", {}).get("text/html", "")) for output in outputs]
    return raw_html([text for text in shown if "depth-twin" in text][-1])


def twins(cell):
    "The slider also stands where a comment asks for it: a comment, for where there are no scripts it is nothing"
    if cell.cell_type != "markdown": return
    cell.source = cell.source.replace("<!-- the explorer's twin -->", explorer_s_twin())


class opening(Processor):
    "Under the title, where to run the page, and what else its first cell says: nbdev keeps only its first two lines"
    def end(self):
        path = Path(self.nb.path_).resolve().relative_to(nbs)
        first = read_nb(nbs/path).cells[0].source
        run = self.nb.metadata.get("run")
        where = "" if path.name == "index.ipynb" else run_line_of(path.as_posix(), run, up(path))
        said = re.sub(r"^(# |> ).*\n*", "", first, flags=re.M).strip()
        self.nb.cells[1:1] = [mk_cell(text, "markdown") for text in (where, said) if text]
        front = self.nb.frontmatter_
        front = {key: front[key] for key in front if re.fullmatch(r"[\w-]+", key)} # not a list's items with a colon
        self.nb.cells[0].source = f"---\n{yaml.safe_dump(front, allow_unicode=True)}---\n"


# The pages

def address(path):
    "The page of the notebook at `path`, relative to nbs/: nbdev drops the number"
    return path.relative_to(nbs).parent/_nbpath2html(path).name


def up(path):
    "The way from the page of a notebook (`path` is relative to nbs/) to the top of the site"
    return "../" * (len(path.parts) - 1)


def prepare():
    "Notebooks and reference, ready for a builder, in _proc"
    from nbdev.serve import proc_nbs
    folder = proc_nbs(force=True, n_workers=0)
    (folder/"reference").mkdir()
    source = f"{repository}/blob/{settings['branch']}"
    for module in reference.modules():
        (folder/"reference"/f"{module}.qmd").write_text(reference.page(module, source), encoding="utf-8")
    return folder


def with_quarto(folder):
    "Pages by Quarto, whose version was checked with this configuration is named in CONTRIBUTING.md"
    subprocess.run(["quarto", "render", "--no-cache"], cwd=folder, check=True, stdin=subprocess.DEVNULL)


def with_smalldocs(folder):
    "Pages by smalldocs; a warning is an error"
    try: from smalldocs import config, highlight, site
    except ImportError:
        sys.exit("The site needs Quarto (https://quarto.org), or Python 3.11 and smalldocs: `pip install -e '.[dev]'`.")
    highlight.css_class = functools.cache(highlight.css_class) # it is asked half a million times

    class Site(site.Site):
        def read(self, src):
            "A page, at the address that nbdev gives it"
            page = super().read(src)
            page.out = src.with_name(page.front.get("output-file", page.out.name))
            return page
        def warn(self, msg):
            if "output-file" not in msg: super().warn(msg)

    built = Site(config.load(folder), quiet=True)
    built.build()
    if built.warnings: sys.exit("\n".join(["The site was not built:", *built.warnings]))


# What happens to the pages that either builder made

def imports(code):
    "The lines of `code` that import names of ours: `(module, \"\" at the top; name; what it is called here)`"
    for module, names in re.findall(r"^[ \t]*from finetune_nb(?:\.([\w.]+))? import (\([^)]*\)|.+)", code, re.M):
        for written in re.split(r",\s*", re.sub(r"#.*", "", names).strip(" ()\n,")):
            name, _, alias = written.strip().partition(" as ")
            yield module, name, alias or name


def names_in(notebook):
    "`{name as this notebook writes it: the reference about it}`, for what it exports or imports"
    public, found = reference.public_names(), {}
    homes = reference.homes(public)
    def offer(module, name, alias): found[alias] = f"reference/{module}.html#{name}"
    def offer_module(module, alias):
        for name in public[module]: offer(module, name, f"{alias}.{name}")

    for module in public: offer_module(module, module)
    for cell in notebook.cells:
        if cell.cell_type != "code": continue
        if own := re.search(r"^#\|\s*default_exp ([\w.]+)", cell.source, re.M):
            for name in public.get(own[1], []): offer(own[1], name, name)
        for module, name, alias in imports(cell.source):
            submodule = f"{module}.{name}".lstrip(".")
            if submodule in public: offer_module(submodule, alias)
            elif name in public.get(module, []): offer(module, name, alias)
            elif name in homes: offer(homes[name], name, alias)
    return found


# What the builders mark in code where no name is linked: strings, comments and the like; what `def` defines; output
marked = "st|co|ss|sc|im|fu|va|vs|er|dv|fl|do"
left_alone = "|".join([
    r"<h\d[\s\S]*?</h\d>",
    r"<summary\b[\s\S]*?</summary>", # a click unfolds it
    r"<a\b[\s\S]*?</a>",
    rf'<span class="(?:{marked})">[\s\S]*?</span>',
    r'<span class="kw">(?:def|class)</span>\s*\w+',
    r'<div class="cell-output[\s\S]*?</div>'])


any_name = r'(\w+(?:(?:<span class="op">)?\.(?:</span>)?\w+)*)'
in_prose = rf"(?<=<code>){any_name}(?=(?:\(\))?</code>)"
called = rf'(?<![\w./="#-])(?<!\.</span>){any_name}(?=(?:<span class="[a-z]+">)?\()'
uses = re.compile(f"({left_alone})|{in_prose}|{called}") # what to leave alone, or a name in prose or called in code


def link_names(page, names, up=""):
    "The HTML of a page, each of `names` linked to the reference where the text first uses it, in prose or in code"
    start, end = page.index("<main"), page.index("</main>")
    seen = set()
    def linked(match):
        text = match[2] or match[3]
        target = text and names.get(re.sub(r"<[^>]*>", "", text))
        if not target or target in seen: return match[0]
        seen.add(target)
        return f'<a class="reference" href="{up}{target}">{text}</a>'
    return page[:start] + uses.sub(linked, page[start:end]) + page[end:]


def glossary():
    "`{term: what it means}`"
    cells = nbformat.read(nbs/"91_glossary.ipynb", 4).cells
    return dict(re.findall(r"^#### (.+)\n\n(.+) \[", "\n".join(cell.source for cell in cells), re.M))


# What stays as it is in a paragraph, and what else a tag says
no_prose = r"<(?P<tag>a|code|math|pre|script|summary)\b[\s\S]*?</(?P=tag)>|<[^>]*>"


def link_terms(page, terms, up=""):
    "The HTML of a page, each of `terms` linked to the glossary where a paragraph or a list first uses it"
    start, end = page.index("<main"), page.index("</main>")
    meant = {term.lower(): (term, said) for term, said in terms.items()}
    def pattern(term): return re.escape(term) if term[1:].islower() else f"(?-i:{re.escape(term)})" # a map is no mAP
    words = "|".join(map(pattern, sorted(terms, key=len, reverse=True)))
    uses = re.compile(rf"{no_prose}|(?<![\w-])(?P<term>{words})(?:e?s)?(?![\w-])", re.I)
    def linked(match):
        used = (match["term"] or "").lower()
        if used not in meant: return match[0]
        term, said = meant.pop(used)
        place = f"{up}glossary.html#{term.lower().replace(' ', '-')}"
        return f'<a class="term" href="{place}" title="{html.escape(said)}">{match[0]}</a>'
    def paragraph(match): return uses.sub(linked, match[0])
    return page[:start] + re.sub(r"<(p|li)\b(?! class)[\s\S]*?</\1>", paragraph, page[start:end]) + page[end:]


install_line = f"""\
# In Colab, say, where the book is not installed yet, this installs it, and takes a few minutes
from importlib.util import find_spec
if not find_spec({settings["lib_name"]!r}):
    !git clone --quiet --depth 1 {repository}
    %pip install --quiet './{settings["repo"]}[offline]' 'fastcore<2'
    %cd {settings["repo"]}/nbs"""


def runnable(notebook):
    "`notebook`, with a cell before it that installs the book where it is missing, and without the one that exports"
    cells = [cell for cell in notebook.cells if "nbdev_export(" not in cell.source]
    notebook.cells = [nbformat.v4.new_code_cell(install_line, id="install"), *cells]
    return notebook


def short_search(folder):
    "Lessons are found by every word, reference, rooms and solutions by headings; once more for a page on disk"
    index = json.loads((folder/"search.json").read_text(encoding="utf-8"))
    for entry in index:
        if "/" in entry["href"]: entry["text"] = ""
    text = json.dumps(index, ensure_ascii=False)
    (folder/"search.json").write_text(text, encoding="utf-8")
    (folder/"search.js").write_text(f"var searchIndex = {text}\n", encoding="utf-8")


def finish(folder):
    "Names linked to the reference, terms to the glossary, a shorter search, and the notebooks to download"
    short_search(folder)
    terms = glossary()
    for path in lessons.notebooks():
        name, notebook, page = path.relative_to(nbs), nbformat.read(path, 4), folder/address(path)
        linked = link_names(page.read_text(encoding="utf-8"), names_in(notebook), up(name))
        if page.name != "glossary.html": linked = link_terms(linked, terms, up(name))
        page.write_text(linked, encoding="utf-8")
        (folder/"notebooks"/name).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(runnable(notebook), folder/"notebooks"/name)
    shutil.copytree(nbs/"learn_here", folder/"learn_here", dirs_exist_ok=True) # what the page that trains loads
    (folder/"learn_here"/"body.js").write_text(body.body(), encoding="utf-8") # and what it draws with
    (folder/".nojekyll").touch() # GitHub Pages serves the files as they are


def main():
    os.chdir(root)
    folder, target = prepare(), root/settings["doc_path"]
    builder = with_quarto if shutil.which("quarto") else with_smalldocs
    builder(folder)
    finish(folder/target.name)
    shutil.rmtree(target, ignore_errors=True)
    shutil.move(folder/target.name, target)
    print(f"{target.name}: {len(list(target.rglob('*.html')))} pages, by {builder.__name__.removeprefix('with_')}")


if __name__ == "__main__": main()
