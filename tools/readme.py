"""Write README.md from index.ipynb, with nbdev's own processing of the notebook; `make export` does it."""
import posixpath
import re
from pathlib import Path

import nbformat
from execnb.nbio import nb2str, read_nb
from nbconvert import MarkdownExporter
from nbdev.processors import FilterDefaults, add_links, exec_show_docs, insert_warning

root = Path(__file__).resolve().parent.parent
nbs = root/"nbs"


class ReadmeFilter(FilterDefaults):
    "nbdev's processing, less what needs a kernel or another library's documentation"
    def base_procs(self):
        left_out = exec_show_docs, add_links, insert_warning
        return [step for step in super().base_procs() if step not in left_out]

    def xtra_procs(self): return [] # those are the site's


def title(notebook):
    "`# title`, `> description`: nbdev makes front matter of them, which a README cannot show"
    front = notebook.frontmatter_
    return f"# {front['title']}\n\n> {front['description']}\n"


def from_root(text):
    "Links that are relative to nbs/, written relative to the root"
    def moved(match): return f"]({posixpath.normpath('nbs/' + match[1])})"
    return re.sub(r"\]\((?![a-z]+:|[#/])([^)\s]+)\)", moved, text)


def prepared(path):
    "The notebook at `path` as nbconvert is to see it, and its heading"
    notebook = read_nb(path)
    ReadmeFilter()(notebook)
    heading = title(notebook)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type != "raw" and cell.get("source")]
    for cell in notebook.cells:
        hidden = re.match(r"#\|\s*echo:\s*false", cell.source)
        if hidden: cell.metadata["transient"] = {"remove_source": True} # which nbconvert understands
        cell.source = re.sub(r"^#\|.*\n", "", cell.source, flags=re.M)
    notebook.metadata["language_info"] = {"name": "python"}
    return nbformat.reads(nb2str(notebook), 4), heading


def with_pictures(body, drawn):
    "`body`, each of the pictures `drawn` in it described by the heading above it; and the pictures, by their names"
    pictures = {}
    for number, (name, picture) in enumerate(drawn.items(), 1):
        file = f"images/index_{number}.png"
        before = body[:body.index(f"![png]({name})")]
        heading = re.findall(r"^#+ (.+)$", before, re.M)[-1]
        body = body.replace(f"![png]({name})", f"![{heading}]({file})")
        pictures[file] = picture
    return body, pictures


def readme(path=nbs/"index.ipynb"):
    "The text of README.md, and its pictures by their names in nbs/"
    notebook, heading = prepared(path)
    body, resources = MarkdownExporter().from_notebook_node(notebook)
    body, pictures = with_pictures(body, resources["outputs"])
    lines = [line.rstrip() for line in from_root(heading + "\n" + body).splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n", pictures


if __name__ == "__main__":
    text, pictures = readme()
    (root/"README.md").write_text(text, encoding="utf-8", newline="\n")
    (nbs/"images").mkdir(exist_ok=True)
    for name, picture in pictures.items(): (nbs/name).write_bytes(picture)
