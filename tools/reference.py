"""The reference: a page for each module, read from its source alone; `make docs` writes them.

A parameter's meaning is the comment that stands behind it, as everywhere in nbdev (docments).
"""
import ast, html, io, json, re, tokenize
from pathlib import Path

root = Path(__file__).resolve().parent.parent
package = root/"finetune_nb"


def modules():
    "The modules of the package, by name"
    return sorted(p.stem for p in package.glob("*.py") if p.stem[0] != "_")


def public(tree):
    "The names in a module's `__all__`"
    found = [node.value for node in tree.body if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"]
    return ast.literal_eval(found[0]) if found else []


def public_names():
    "`{module: its public names}`"
    return {module: public(ast.parse((package/f"{module}.py").read_text(encoding="utf-8"))) for module in modules()}


def lesson_of(source):
    "The notebook that a module's source was exported from, relative to nbs/"
    found = re.search(r"# File to edit: \.\./nbs/(\S+\.ipynb)|# %% \.\./nbs/(\S+\.ipynb)", source)
    return found and (found[1] or found[2]).rstrip(".")


def comments(source):
    "`{line number: the comment on it}`"
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ").strip() for token in tokens if token.type == tokenize.COMMENT}


def is_record(node): return any("dataclass" in ast.unparse(d) for d in node.decorator_list) or any(ast.unparse(b).endswith("NamedTuple") for b in node.bases)


def methods(node): return [item for item in node.body if isinstance(item, ast.FunctionDef)]


def annotation(node):
    "`(type, meaning)` of an annotation; the option of a command says in it what it means"
    if node is None: return "", ""
    if isinstance(node, ast.Call): return ast.unparse(node.args[0]), next((a.value for a in node.args[1:] if isinstance(a, ast.Constant) and isinstance(a.value, str)), "")
    return ast.unparse(node).replace("'", "").replace(" | ", "|"), ""


def written(default):
    "A default as one would write it in a call"
    text = ast.unparse(default) if default else ""
    return re.sub(r"^field\(default_factory=(\w+)\)$", r"\1()", text)


def parameters(node, said):
    "The rows of the table of what a function or class takes: `(name, type, default, meaning)`"
    if isinstance(node, ast.ClassDef):
        if is_record(node):
            fields = [item for item in node.body if isinstance(item, ast.AnnAssign) and "init=False" not in ast.unparse(item)]
            return [(f.target.id, annotation(f.annotation)[0], written(f.value), said.get(f.end_lineno, "")) for f in fields]
        starts = [method for method in methods(node) if method.name == "__init__"]
        return parameters(starts[0], said) if starts else []
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    rows = list(zip(positional, [None] * (len(positional) - len(given.defaults)) + given.defaults))
    if given.vararg: rows.append((given.vararg, None))
    rows += zip(given.kwonlyargs, given.kw_defaults)
    if given.kwarg: rows.append((given.kwarg, None))
    stars, found = {id(given.vararg): "*", id(given.kwarg): "**"}, []
    for arg, default in rows:
        if arg.arg in ("self", "cls"): continue
        kind, meaning = annotation(arg.annotation)
        end = (default or arg).end_lineno
        alone = not (node.returns and node.returns.lineno == end)
        found.append((stars.get(id(arg), "") + arg.arg, kind, written(default), meaning or (said.get(end, "") if alone else "")))
    return found


def returned(node, said):
    "`(type, meaning)` of what a function returns"
    if not isinstance(node, ast.FunctionDef): return "", ""
    line = node.returns.end_lineno if node.returns else node.body[0].lineno - 1
    inner = {(d or a).end_lineno for a, d in [(a, None) for a in node.args.args] + [(None, d) for d in node.args.defaults]}
    return annotation(node.returns)[0], said.get(line, "") if node.returns or line not in inner else ""


def in_html(text): return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def code(text): return f"<code>{html.escape(text, quote=False)}</code>" if text else ""


def table(rows, result):
    "The docments as a table, without the columns that would be empty"
    cells = [[code(name), code(kind), code(default), in_html(meaning)] for name, kind, default, meaning in rows]
    if any(result): cells.append(["returns", code(result[0]), "", in_html(result[1])])
    titles = ["parameter" if rows else "", "type", "default", "meaning"]
    shown = [i for i in range(4) if not i or any(row[i] for row in cells)]
    def line(row, *tags): return "<tr>" + "".join(f"<{tags[i]}>{row[i]}</{tags[i].split()[0]}>" for i in shown) + "</tr>"
    head = line(titles, *["th scope='col'"] * 4) if rows else ""
    body = [line(row, "th scope='row'", "td", "td class='default'", "td class='meaning'") for row in cells]
    return "\n".join(["```{=html}", f"<div class='wide'><table class='docments'><thead>{head}</thead><tbody>", *body, "</tbody></table></div>", "```"]) if cells else ""


def entry(name, node, said, address, level=2):
    "The Markdown about one name: how it is called, what it does, what it takes and returns"
    title = name.rpartition(".")[2]
    heading = f"{'#' * level} {name} {{#{name.replace('__', '')}}}"
    link = f"[source]({address}#L{node.lineno}){{.source-link}}"
    if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): return [heading, link, f"```python\n{ast.unparse(node)}\n```", said.get(node.lineno, "")]
    rows = parameters(node, said)
    is_property = isinstance(node, ast.FunctionDef) and any("property" in ast.unparse(d) for d in node.decorator_list)
    call = title if is_property else f"{title}({', '.join(name + ('=' + default if default else '') for name, _, default, _ in rows)})"
    lines = [heading, link, f"```python\n{call}\n```", ast.get_docstring(node) or "", table(rows, returned(node, said))]
    if isinstance(node, ast.ClassDef):
        for method in methods(node):
            if method.name[0] != "_": lines += entry(f"{name}.{method.name}", method, said, address, level + 1)
    return lines


def defined(tree):
    "`{name: its definition}` at the top of a module"
    found = {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    return found | {node.targets[0].id: node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)}


def page(module, repository):
    "The Markdown page about `module`, whose source is shown at `repository`"
    source = (package/f"{module}.py").read_text(encoding="utf-8")
    tree, said, lesson = ast.parse(source), comments(source), lesson_of(source)
    names, address = defined(tree), f"{repository}/finetune_nb/{module}.py"
    for node in ast.walk(tree): # a private name for an annotation, as the options of a command have, tells a reader nothing
        option = isinstance(node, ast.arg) and names.get(getattr(node.annotation, "id", None))
        if isinstance(option, ast.Assign) and node.annotation.id[0] == "_": node.annotation = option.value
    front = ["---", f"title: finetune_nb.{module}", f"description: {json.dumps(ast.get_docstring(tree).splitlines()[0], ensure_ascii=False)}", "---"]
    body = [f"Made step by step in [the lesson](../{lesson}), where every line is explained and tested." if lesson else ""]
    for name in public(tree): body += entry(name, names[name], said, address)
    return "\n".join(front) + "\n\n" + "\n\n".join(filter(None, body)) + "\n"
