"""Write README.md from index.ipynb, with nbdev's own processing of the notebook and no other program; `make export` does it."""
import posixpath, re
from pathlib import Path

import nbformat
from execnb.nbio import nb2str, read_nb
from nbconvert import MarkdownExporter
from nbdev.processors import FilterDefaults, add_links, exec_show_docs, insert_warning

root = Path(__file__).resolve().parent.parent
nbs = root/"nbs"


class ReadmeFilter(FilterDefaults):
    "nbdev's processing, less what needs a kernel or another library's documentation"
    def base_procs(self): return [p for p in super().base_procs() if p not in (exec_show_docs, add_links, insert_warning)]
    def xtra_procs(self): return [] # those are the site's


def title(notebook):
    "`# title`, `> description`: nbdev makes front matter of them, which a README cannot show"
    front = notebook.frontmatter_
    return f"# {front['title']}\n\n> {front['description']}\n"


def from_root(text):
    "Links that are relative to nbs/, written relative to the root"
    def moved(match): return f"]({posixpath.normpath('nbs/' + match[1])})"
    return re.sub(r"\]\((?![a-z]+:|[#/])([^)\s]+)\)", moved, text)


def readme(path=nbs/"index.ipynb"):
    "The text of README.md, and its pictures by their names in nbs/"
    notebook = read_nb(path)
    ReadmeFilter()(notebook)
    heading = title(notebook)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type != "raw" and cell.get("source")]
    for cell in notebook.cells:
        if re.match(r"#\|\s*echo:\s*false", cell.source): cell.metadata["transient"] = {"remove_source": True} # which nbconvert understands
        cell.source = re.sub(r"^#\|.*\n", "", cell.source, flags=re.M)
    notebook.metadata["language_info"] = {"name": "python"}
    body, resources = MarkdownExporter().from_notebook_node(nbformat.reads(nb2str(notebook), 4))
    pictures = {f"images/index_{number}.png": picture for number, picture in enumerate(resources["outputs"].values(), 1)}
    for drawn, name in zip(resources["outputs"], pictures):
        before = body[:body.index(f"![png]({drawn})")]
        body = body.replace(f"![png]({drawn})", f"![{re.findall(r'^#+ (.+)$', before, re.M)[-1]}]({name})") # who cannot see it hears the heading
    lines = [line.rstrip() for line in from_root(heading + "\n" + body).splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n", pictures


if __name__ == "__main__":
    text, pictures = readme()
    (root/"README.md").write_text(text, encoding="utf-8", newline="\n")
    (nbs/"images").mkdir(exist_ok=True)
    for name, picture in pictures.items(): (nbs/name).write_bytes(picture)
