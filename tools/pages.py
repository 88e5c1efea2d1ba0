"""Build the site in _docs: nbdev prepares the pages, Quarto lays them out, or smalldocs where there is no Quarto; `make docs` does it.

The notebooks are shown as they are stored, none is run. Their mathematics becomes MathML here, before either builder sees it, so no
page has to fetch a script to draw it. `settings.ini` names the three steps (`procs`) that nbdev takes besides its own.
"""
import ast, html, json, os, re, shutil, subprocess, sys
from configparser import ConfigParser
from pathlib import Path

import nbformat, yaml
from execnb.nbio import mk_cell, read_nb
from latex2mathml.converter import convert
from nbdev.doclinks import _nbpath2html
from nbdev.process import Processor

tools = Path(__file__).resolve().parent
root = tools.parent
nbs = root/"nbs"
sys.path.insert(0, str(tools)) # nbdev imports this file by its name: `procs` in settings.ini
import lessons, reference

settings = ConfigParser(delimiters=["="])
settings.read(root/"settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]
repository = settings["git_url"]
most_lines = 30 # of a listing that is shown at once


# What nbdev does to every notebook, besides its own

def mathml(text):
    "Markdown, with the formulas between dollars as MathML; code is left alone"
    def moved(match):
        code, block, inline = match.groups()
        return code or convert((block or inline).strip(), display="block" if block else "inline")
    return re.sub(r"(```[\s\S]*?```|`[^`\n]+`)|\$\$([\s\S]+?)\$\$|(?<![\\$])\$(?=\S)([^$\n]+?)(?<=\S)\$(?![\d$])", moved, text)


def mathematics(cell):
    "Formulas as MathML, in prose and in outputs"
    if cell.cell_type == "markdown": cell.source = mathml(cell.source)
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "text/markdown" in data: data["text/markdown"] = mathml("".join(data["text/markdown"]))


def titles(code):
    "What the figures that `code` draws are called, as far as it is written there"
    def words(node):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in parts) if isinstance(parts[0], (ast.Constant, ast.FormattedValue)) else ""
    try: calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    except SyntaxError: return []
    given = [call.args[0] for call in calls if getattr(call.func, "attr", "") in ("set_title", "suptitle") and call.args]
    given += [keyword.value for call in calls for keyword in call.keywords if keyword.arg == "title"]
    return [text for node in given if (text := words(node).strip("… "))]


class figures(Processor):
    "For who cannot see it, a figure is described by its title, or by the heading that it stands under"
    heading = ""
    def cell(self, cell):
        if cell.cell_type == "markdown":
            for words in re.findall(r"^#+ (.+)$", cell.source, re.M): self.heading = re.sub(r"[*_`]", "", words)
        elif any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])) and "fig-alt:" not in cell.source:
            cell.source = f"#| fig-alt: {json.dumps('Figure: ' + ('; '.join(titles(cell.source)) or self.heading), ensure_ascii=False)}\n{cell.source}"


class folding(Processor):
    "A long listing is folded, and says what is in it; so is what ran once and was saved"
    def cell(self, cell):
        lines, slow = cell.source.count("\n") + 1, "slow" in (getattr(cell, "directives_", None) or {})
        if cell.cell_type != "code" or lines <= (5 if slow else most_lines): return
        names = re.findall(r"^(?:def|class) ([a-zA-Z]\w*)", cell.source, re.M) or re.findall(r"^(?:def|class) (\w+)", cell.source, re.M)
        said = "The code that ran once" if slow else f"The code of {', '.join(names)}" if names else "The code"
        cell.source = f"#| code-fold: true\n#| code-summary: {json.dumps(f'{said}: {lines} lines')}\n{cell.source}"


def run_line_of(name, run, up=""):
    "Where the notebook `name` (relative to nbs/) can be run, and when it last was"
    colab, binder = repository.replace("https://github.com", "https://colab.research.google.com/github"), repository.replace("https://github.com", "https://mybinder.org/v2/gh")
    links = [f'<a href="{up}notebooks/{name}" download>download the notebook</a>',
             f'<a href="{binder}/{settings["branch"]}?urlpath=lab/tree/nbs/{name}">open it in Binder</a>',
             f'<a href="{colab}/blob/gh-pages/notebooks/{name}">in Colab</a>']
    ran = f' <span class="last-run">The outputs are of {run["date"]}: {run["seconds"]:.0f} s on {html.escape(run["cpu"])}.</span>' if run else ""
    return f'```{{=html}}\n<p class="run-line"><strong>Run this page</strong>: {", ".join(links[:-1])} or {links[-1]}.{ran}</p>\n```'


class opening(Processor):
    "Under the title of a lesson, where to run it, and what else its first cell says: nbdev keeps only the title and the line under it"
    def end(self):
        path = Path(self.nb.path_).resolve().relative_to(nbs)
        first = read_nb(nbs/path).cells[0].source
        said = re.sub(r"^(# |> ).*\n*", "", first, flags=re.M).strip()
        run = [] if path.name == "index.ipynb" else [run_line_of(path.as_posix(), self.nb.metadata.get("run"), "../" * (len(path.parts) - 1))]
        self.nb.cells[1:1] = [mk_cell(text, "markdown") for text in [*run, said] if text]
        front = {key: value for key, value in self.nb.frontmatter_.items() if re.fullmatch(r"[\w-]+", key)} # not a list's items with a colon
        self.nb.cells[0].source = f"---\n{yaml.safe_dump(front, allow_unicode=True)}---\n"


# The pages

def prepare():
    "Notebooks and reference, ready for a builder, in _proc"
    from nbdev.serve import proc_nbs
    folder = proc_nbs(force=True, n_workers=0)
    (folder/"reference").mkdir()
    source = f"{repository}/blob/{settings['branch']}"
    for module in reference.modules(): (folder/"reference"/f"{module}.qmd").write_text(reference.page(module, source), encoding="utf-8")
    return folder


def with_quarto(folder):
    "Pages by Quarto, whose version was checked with this configuration is named in CONTRIBUTING.md"
    subprocess.run(["quarto", "render", "--no-cache"], cwd=folder, check=True, stdin=subprocess.DEVNULL)


def with_smalldocs(folder):
    "Pages by smalldocs; a warning is an error"
    try: from smalldocs import config, site
    except ImportError: sys.exit("The site needs Quarto (https://quarto.org), or Python 3.11 and smalldocs: `pip install -e '.[dev]'`.")

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


def address(path):
    "The page of the notebook at `path`, relative to nbs/: nbdev drops the number"
    return path.relative_to(nbs).parent/_nbpath2html(path).name


# What happens to the pages that either builder made

def names_in(notebook):
    "`{name as this notebook writes it: the reference about it}`, for what it exports or imports"
    public, found = reference.public_names(), {}
    def offer(module, name=None, alias=None):
        for each in public[module] if name is None else [name]:
            if each in public[module]: found[(alias or each) if name else f"{alias or module}.{each}"] = f"reference/{module}.html#{each}"
    top = {name: module for module, names in public.items() if module != "cli" for name in names if sum(name in other for other in public.values()) == 1}
    for module in public: offer(module)
    for cell in notebook.cells:
        if cell.cell_type != "code": continue
        if own := re.search(r"^#\|\s*default_exp (\w+)", cell.source, re.M):
            for name in public.get(own[1], []): offer(own[1], name)
        for module, names in re.findall(r"^\s*from finetune_nb(?:\.(\w+))? import ([\w, ]+)", cell.source, re.M):
            for name in re.split(r",\s*", names.strip()):
                name, _, alias = name.partition(" as ")
                if not module and name in public: offer(name, alias=alias)
                elif (module or top.get(name)) in public: offer(module or top[name], name, alias)
    return found


def link_names(page, names, up=""):
    "The HTML of a page, with each of `names` linked to the reference where the text first uses it, in prose or in code"
    start, end = page.index("<main"), page.index("</main>")
    open_dot = {name: re.escape(name).replace(r"\.", r'(?:<span class="op">)?\.(?:</span>)?') for name in names}
    any_name = "|".join(open_dot[name] for name in sorted(names, key=len, reverse=True))
    skipped = r'(<h\d[\s\S]*?</h\d>|<a\b[\s\S]*?</a>|<span class="(?:st|co|ss|sc|im|fu|va|vs|er|dv|fl|do)">[\s\S]*?</span>|<span class="kw">(?:def|class)</span>\s*\w+|<div class="cell-output[\s\S]*?</div>)'
    used = re.compile(rf'{skipped}|(?<=<code>)({any_name})(?=(?:\(\))?</code>)|(?<![\w./="#-])(?<!\.</span>)({any_name})(?=(?:<span class="[a-z]+">)?\()')
    seen = set()
    def linked(match):
        text = match[2] or match[3]
        name = text and re.sub(r"<[^>]*>", "", text)
        if name is None or names[name] in seen: return match[0]
        seen.add(names[name])
        return f'<a class="reference" href="{up}{names[name]}">{text}</a>'
    return page[:start] + used.sub(linked, page[start:end]) + page[end:]


def runnable(notebook):
    "`notebook`, with a cell before it that installs the book where it is missing, and without the one that exports the module"
    install = ("# In Colab, say, where the book is not installed yet, this installs it, and takes a few minutes\n"
               "from importlib.util import find_spec\n"
               f"if not find_spec({settings['lib_name']!r}):\n"
               f"    !git clone --quiet --depth 1 {repository}\n"
               f"    %pip install --quiet './{settings['repo']}[offline]' 'fastcore<2'\n"
               f"    %cd {settings['repo']}/nbs")
    notebook.cells = [nbformat.v4.new_code_cell(install, id="install"), *[cell for cell in notebook.cells if "nbdev_export(" not in cell.source]]
    return notebook


def finish(folder):
    "Names linked to the reference, and the notebooks to download"
    for path in lessons.notebooks():
        name, notebook, page = path.relative_to(nbs), nbformat.read(path, 4), folder/address(path)
        page.write_text(link_names(page.read_text(encoding="utf-8"), names_in(notebook), "../" * (len(name.parts) - 1)), encoding="utf-8")
        (folder/"notebooks"/name).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(runnable(notebook), folder/"notebooks"/name)
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
