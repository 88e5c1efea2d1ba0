"""The site, in a real browser that can reach nothing else.

SITE=folder tests one that is built already, as Quarto's is before it is published.
"""
import functools
import html
import io
import posixpath
import re
from urllib.parse import unquote, urldefrag
import nbformat
import pytest
import yaml
from conftest import lessons, load, root, serve

reference = load(root/"tools"/"reference.py")


def address(path):
    "The page of the notebook at `path`, relative to nbs/: its number is dropped"
    return path.with_name(re.sub(r"^[0-9]+[a-z]*_", "", path.stem) + ".html").as_posix()


names = [path.relative_to(root/"nbs") for path in lessons.notebooks()]
addresses = {name.as_posix(): address(name) for name in names}
modules = [f"reference/{module}.html" for module in reference.modules()]
representative = ["index.html", "solutions/bert.html", "reference/text.html", "solutions/gradient_update.html"]


def pages(site):
    found = [path for path in site.rglob("*.html") if "site_libs" not in path.parts]
    return sorted(path.relative_to(site).as_posix() for path in found)


beyond = "document.documentElement.scrollWidth - document.documentElement.clientWidth" # the window's edge
what_is_there = """() => ({
  links: [...document.querySelectorAll("a[href]")].map(link => link.href),
  ids: [...document.querySelectorAll("[id]")].map(part => part.id),
  nameless: [...document.images].filter(image => !image.alt).length,
  broken: [...document.images].filter(image => !image.complete || !image.naturalWidth).length,
  formulas: [...document.querySelectorAll("math")]
    .filter(formula => !formula.closest("details:not([open])"))
    .map(formula => formula.getBoundingClientRect()).map(box => box.width * box.height),
  raw: [...document.querySelectorAll("main p, main li, main td")].map(part => part.innerText)
    .filter(text => /\\\\\\(|\\\\\\[|\\$\\$|\\\\(?:theta|frac|alpha|nabla)/.test(text)),
})"""


unfold = "document.querySelectorAll('main li > details').forEach(answer => { answer.open = true })"


def problems(page, wrong, base, names, widths=(1280,)):
    "All that is wrong with the pages called `names` of the site at `base`, in windows of these widths"
    found = {}
    for name in names:
        page.goto(base + name)
        found[base + name] = seen = page.evaluate(what_is_there)
        for width in widths:
            page.set_viewport_size(dict(width=width, height=900))
            if (over := page.evaluate(beyond)) > 0: wrong.append(f"{name} is {over} px wider than its window")
        if seen["nameless"]: wrong.append(f"{name}: {seen['nameless']} pictures without a description")
        if seen["broken"]: wrong.append(f"{name}: {seen['broken']} pictures that do not show")
        if min(seen["formulas"], default=1) <= 0: wrong.append(f"{name}: a formula that does not show")
        if seen["raw"]: wrong.append(f"{name}: mathematics in raw form: {seen['raw'][0]}")
    @functools.cache # each page's sidebar leads to all
    def is_missing(target): return page.request.get(target).status >= 400

    for name, seen in found.items():
        for link in set(seen["links"]):
            target, part = urldefrag(link)
            if not target.startswith(base): continue
            if target.endswith("/"): target += "index.html"
            if target in found: missing = part and unquote(part) not in found[target]["ids"]
            else: missing = is_missing(target)
            if missing: wrong.append(f"{name}: broken link {link.removeprefix(base)}")
    return wrong


def test_the_site_is_built_within_a_minute(built, site):
    "Of a processor's work: what else keeps the machine busy is not counted"
    assert built["processor_seconds"] < 60


def test_builders_read_the_one_configuration(built, site):
    "Quarto and smalldocs run in _proc, nbdev in nbs: both lead to the file at the root"
    prepared = site.parent/"_proc"
    if not prepared.is_dir(): pytest.skip("the site was built elsewhere")
    for name in "_quarto.yml", "nbdev.yml", "sidebar.yml", "styles.css":
        assert (prepared/name).read_bytes() == (root/"nbs"/name).read_bytes()
    assert (prepared/"../_quarto.yml").resolve() == site.parent/"_quarto.yml"


def test_every_notebook_and_module_has_a_page(site): assert pages(site) == sorted([*addresses.values(), *modules])


def test_every_page_is_whole(visitor, site, base):
    "No error, no failed request, no broken link, nothing beyond the window's edge, mathematics and pictures visible"
    rooms = [name for name in pages(site) if name.startswith(("reference/engine.", "engine/"))] # of two templates
    found = problems(*visitor(), base, sorted({*pages(site)} - {*rooms} | {*rooms[::4]}), widths=(1280, 390))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("spoilt, reason", [
    ("<script>console.error('oh')</script>", "oh"),
    ("<script>nothing()</script>", "nothing is not defined"),
    ("<img alt='a' src='none.png'>", "404"),
    ("<a href='none.html'>a</a>", "broken link none.html"),
    ("<a href='#none'>a</a>", "broken link index.html#none"),
    ("<img alt='a' src='http://localhost:9/a.png'>", "fetches"),
    ("<div style='width: 2000px'>a</div>", "wider than its window"),
    ("<img src='data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA='>", "without a description"),
    ("<math style='display: none'><mi>x</mi></math>", "formula that does not show"),
    (r"<main><p>so $\theta$</p></main>", "raw form")])
def test_a_spoilt_page_is_noticed(visitor, tmp_path, spoilt, reason):
    (tmp_path/"index.html").write_text(f"<!doctype html><link rel=icon href='data:,'><body>{spoilt}</body>")
    base = serve(tmp_path)
    assert reason in "\n".join(problems(*visitor(base=base), base, ["index.html"]))


def listed(contents):
    "The pages of the sidebar, in order"
    for item in contents:
        if isinstance(item, dict) and "contents" in item: yield from listed(item["contents"])
        else:
            source = item["href"] if isinstance(item, dict) else item
            yield addresses.get(source, source.replace(".qmd", ".html"))


def test_next_leads_through_the_whole_book(site):
    walked = ["index.html"]
    while found := re.search(r'nav-page-next">\s*<a[^>]*href="([^"]+)"', (site/walked[-1]).read_text(encoding="utf-8")):
        walked.append(posixpath.normpath(posixpath.join(posixpath.dirname(walked[-1]), found[1])))
        assert walked.count(walked[-1]) == 1
    sidebar = yaml.safe_load((root/"nbs"/"sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]
    order = list(listed(sidebar["contents"]))
    solutions = [page for page in pages(site) if page.startswith("solutions/")] # their exercises lead to them
    assert walked == order and sorted(order + solutions) == pages(site)


def test_a_solution_is_reached_from_its_exercises_and_leads_back(site):
    for page in pages(site):
        if not page.startswith("solutions/"): continue
        lesson = page.removeprefix("solutions/")
        assert f'href="./{page}"' in (text := (site/lesson).read_text(encoding="utf-8")) or f'href="{page}"' in text
        assert f'href="../{lesson}"' in (site/page).read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [390, 1280])
def test_search_finds_batchnorm(visitor, base, width):
    from playwright.sync_api import expect
    page, wrong = visitor(width)
    page.goto(base + "index.html")
    if width < 992: page.locator(".quarto-btn-toggle").first.click()
    box = page.locator("#quarto-search input").first
    box.click()
    box.press_sequentially("BatchNorm")
    result = page.locator("#quarto-search .search-result, .aa-Panel a, .aa-DetachedContainer a").first
    expect(result).to_contain_text("BatchNorm", timeout=60_000) # while somebody types, others come first
    result.click()
    page.wait_for_url(lambda url: "index.html" not in url)
    assert "BatchNorm" in page.locator("main").inner_text() and not wrong


@pytest.mark.parametrize("asked, expected", [
    ("imbalance", "Imbalance: my"), ("small images", "Small images: should"), ("long texts", "Long texts: what")])
@pytest.mark.parametrize("on_disk", [False, True])
def test_search_answers_what_people_ask(visitor, site, base, asked, expected, on_disk):
    "Also where the page is a file, which may not fetch"
    from playwright.sync_api import expect
    place = f"{site.resolve().as_uri()}/" if on_disk else base
    page, wrong = visitor(base=place)
    page.goto(place + "index.html")
    page.locator("#quarto-search input").first.press_sequentially(asked)
    expect(page.locator("#quarto-search .search-result, .aa-Panel a").first).to_contain_text(expected, timeout=60_000)
    assert not wrong


@pytest.mark.parametrize("notebook", [name for name in addresses if name != "index.ipynb"])
def test_every_notebook_says_where_to_run_it(site, notebook):
    page = (site/addresses[notebook]).read_text(encoding="utf-8")
    links = list(dict.fromkeys(re.findall(r'href="([^"]*\.ipynb)"', page[page.index("<main"):])))[:3]
    for link, place in zip(links, (f"notebooks/{notebook}", "mybinder", "colab"), strict=True): assert place in link
    ours = nbformat.read(site/"notebooks"/notebook, 4)
    nbformat.validate(ours)
    assert "pip install" in ours.cells[0].source
    theirs = [cell.source for cell in nbformat.read(root/"nbs"/notebook, 4).cells]
    assert [cell.source for cell in ours.cells[1:]] == [source for source in theirs if "nbdev_export" not in source]


def test_a_lesson_shows_all_that_its_first_cell_says(site):
    "nbdev alone keeps only its title and the line under it"
    for notebook, address in addresses.items():
        first = nbformat.read(root/"nbs"/notebook, 4).cells[0].source
        first = re.sub(r"\[([^]]*)\]\([^)]*\)|[*_]", r"\1", first).replace("\n", " ")
        page = re.sub(r"<[^>]*>", "", (site/address).read_text(encoding="utf-8"))
        shown = " ".join(html.unescape(page).split())
        for words in re.findall(r"[A-Za-z ]{20,}", first):
            assert " ".join(words.split()) in shown, f"{address} does not say {words!r}"


def test_the_reference_has_every_name_and_lessons_link_to_it(site):
    linked = {}
    for address in addresses.values():
        here = re.findall(r'<a class="reference" href="(?:\.\./)*([^"]+)"', (site/address).read_text(encoding="utf-8"))
        assert len(here) == len(set(here)), f"{address} links to a name more than once"
        linked |= dict.fromkeys(here)
    for module, names in reference.public_names().items():
        page = (site/"reference"/f"{module}.html").read_text(encoding="utf-8")
        for name in names:
            there = f'id="{name}"' in page or f'data-anchor-id="{name}"' in page
            assert there, f"{module}.{name} is not in the reference"
    expected = "freezing.html#freeze", "data.html#digits", "training.html#fit", "text.html#classifier"
    assert {f"reference/{name}" for name in expected} <= set(linked)


def test_the_reference_tells_what_the_docments_say(visitor, base):
    page, _ = visitor()
    page.goto(base + "reference/freezing.html")
    row = page.locator("table.docments tr", has_text="counted from the input").first
    assert "depth" in row.inner_text() and "int" in row.inner_text()
    assert page.locator("table.docments tr", has_text="returns").first.is_visible()


@pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 1280), ("light", 390)])
def test_no_serious_accessibility_fault(visitor, base, scheme, width):
    from axe_playwright_python.sync_playwright import Axe
    found, (page, _) = [], visitor(width, scheme)
    for name in [*representative, "sharing.html"]: # which has answers to choose
        page.goto(base + name)
        page.evaluate(unfold)
        faults = Axe().run(page).response["violations"]
        faults = [fault for fault in faults if fault["impact"] in ("serious", "critical")]
        found += [f"{name}: {fault['help']}: {fault['nodes'][0]['html'][:200]}" for fault in faults]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("width", [390, 1280])
def test_answers_to_choose_unfold_and_fit(visitor, base, width):
    page, wrong = visitor(width)
    page.goto(base + "sharing.html")
    exercises = page.locator("main ol > li", has=page.locator("details"))
    assert exercises.count() == page.locator("main ol:has(details) > li").count() >= 3, "one list, of 1, 2, 3"
    first = exercises.first.locator("details").first
    said = first.evaluate("answer => answer.innerText")
    first.locator("summary").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert re.match("(Right|Wrong): ", first.inner_text().removeprefix(said).strip())
    page.evaluate(unfold)
    assert page.evaluate(beyond) <= 0 and not wrong


def test_dark_is_dark(visitor, base):
    def brightness(scheme):
        page, _ = visitor(scheme=scheme)
        page.goto(base + "index.html")
        return sum(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]))
    assert brightness("dark") < 150 and brightness("light") > 700


def test_a_button_makes_it_dark_and_it_stays_so(visitor, base):
    page, wrong = visitor()
    page.goto(base + "index.html")
    def paper(): return page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = paper()
    page.get_by_title("Light or dark").click()
    dark = paper()
    page.goto(base + "bert.html")
    assert paper() == dark != light and not wrong
    page.get_by_title("Light or dark").click()
    assert paper() == light


def test_charts_are_dark_in_the_dark_and_pictures_keep_their_colours(visitor, base):
    from PIL import Image
    page, _ = visitor(scheme="dark")
    page.goto(base + "what_a_resnet_computes.html")
    chart, picture = (page.locator(f'main img[alt^="{kind}:"]').first for kind in ("Chart", "Picture"))
    shown = Image.open(io.BytesIO(chart.screenshot())).convert("L")
    darkest, brightest = shown.getextrema()
    assert shown.getpixel((20, 20)) < 60 and darkest < 60 and brightest > 180
    assert picture.evaluate("image => getComputedStyle(image).filter") == "none"
    page.emulate_media(color_scheme="light")
    assert chart.evaluate("image => getComputedStyle(image).filter") == "none"


rows_and_lines = """() => [...document.querySelectorAll("pre.sourceCode")]
  .filter(pre => !pre.closest("details:not([open])"))
  .map(pre => [pre.querySelector("code").getBoundingClientRect().height / parseFloat(getComputedStyle(pre).lineHeight),
               pre.textContent.trimEnd().split("\\n").length])"""


@pytest.mark.parametrize("width", [1280, 1600])
def test_on_a_desktop_no_line_of_code_wraps(visitor, base, width):
    page, _ = visitor(width)
    page.goto(base + "training.html") # has lines of 120 columns
    listings = page.evaluate(rows_and_lines)
    assert len(listings) > 20 and sum(lines for _, lines in listings) > 300
    assert all(rows < lines + .5 for rows, lines in listings), listings


def test_imports_and_checks_are_folded(site):
    "A reader sees the idea first; what is folded says what it is"
    for page in ("frozen_layers.html", "bert.html", "named_entities.html"):
        found = re.findall(r"<summary>(Imports|Checked): \d+ lines?</summary>", (site/page).read_text(encoding="utf-8"))
        assert {"Imports", "Checked"} == set(found), page


def test_twice_as_large_it_still_fits(visitor, base):
    "Zoom of 200 % on a desktop leaves half the width"
    page, wrong = visitor(640)
    found = [sentence for sentence in problems(page, wrong, base, representative, (640,)) if "wider" in sentence]
    assert not found, "\n".join(found)


def test_the_keyboard_gets_to_the_text(visitor, base):
    page, _ = visitor()
    page.goto(base + "frozen_layers.html")
    page.keyboard.press("Tab")
    link = page.locator(":focus")
    assert link.inner_text() == "Skip to the text" and link.bounding_box()["x"] >= 0
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    link.press("Enter")
    assert page.url.endswith("#quarto-document-content")


@functools.cache
def pages_py(): return load(root/"tools"/"pages.py")


@pytest.mark.parametrize("markdown", ["`$x$` costs", "```\n$x$\n```", "from $5 to $6", r"a \$x\$ b", "no formula"])
def test_what_is_no_formula_stays(markdown): assert pages_py().mathml(markdown) == markdown


@pytest.mark.parametrize("markdown, display", [
    ("so $x^2$.", "inline"), ("$$\nx\n$$", "block"), ("| $|x|$ |", "inline")])
def test_formulas_become_mathml(markdown, display):
    made = pages_py().mathml(markdown)
    assert f'display="{display}"' in made and "$" not in made and made.count("|") == (2 if markdown[0] == "|" else 0)


freeze, digits = '<a class="reference" href="r#freeze">freeze</a>', '<a class="reference" href="d#digits">'
dot, bracket = '<span class="op">.</span>', '<span class="op">(</span>'


@pytest.mark.parametrize("page, expected", [
    ("<main>no <code>freeze</code>, <code>freeze</code></main>",
     f"<main>no <code>{freeze}</code>, <code>freeze</code></main>"),
    ('<main><span class="st">"freeze()"</span>freeze(</main>',
     f'<main><span class="st">"freeze()"</span>{freeze}(</main>'),
    (f"<main>data{dot}digits{bracket}</main>", f"<main>{digits}data{dot}digits</a>{bracket}</main>"),
    ("<main>model.freeze( unfreeze( <h2><code>freeze</code></h2><a><code>freeze</code></a></main>", None),
    ('<main><span class="kw">def</span> freeze(</main>', None),
    ("<main><summary><code>freeze</code></summary></main>", None),
    ("<nav><code>freeze</code></nav><main></main>", None)])
def test_a_name_is_linked_once_and_only_where_it_is_used(page, expected):
    assert pages_py().link_names(page, {"freeze": "r#freeze", "data.digits": "d#digits"}) == (expected or page)


term = '<a class="term" href="glossary.html#frozen-prefix" title="What is &lt; the cut">'


@pytest.mark.parametrize("page, expected", [
    ("<main><p>Frozen prefixes, a frozen prefix</p></main>",
     f"<main><p>{term}Frozen prefixes</a>, a frozen prefix</p></main>"),
    ("<main><ul><li><em>frozen prefix</em></li></ul></main>",
     f"<main><ul><li><em>{term}frozen prefix</a></em></li></ul></main>"),
    ("<main><p><code>frozen prefix</code> <a>frozen prefix</a> unfrozen prefix, frozen prefix-es</p></main>", None),
    ("<main><h2>frozen prefix</h2><pre>frozen prefix</pre><p class='run-line'>frozen prefix</p></main>", None),
    ("<main><li><details><summary>frozen prefix</summary></details></li></main>", None),
    ("<main><p>a map of maps</p></main>", None),
    ("<nav><p>frozen prefix</p></nav><main></main>", None)])
def test_a_term_is_linked_once_and_only_in_prose(page, expected):
    terms = {"frozen prefix": "What is < the cut", "mAP": "A mean"}
    assert pages_py().link_terms(page, terms) == (expected or page)


def test_lessons_link_terms_to_the_glossary(site):
    for name, page in addresses.items():
        text = (site/page).read_text(encoding="utf-8")
        here = re.findall(r'<a class="term" href="(?:\.\./)*glossary.html#([^"]+)"', text)
        assert len(here) == len(set(here)), f"{page} links to a term more than once"
        lesson = re.fullmatch(r"\d\w+\.ipynb", name) and page != "glossary.html"
        assert len(here) >= 3 or not lesson, f"{page} links to {here} only"


@pytest.mark.parametrize("code, expected", [
    ("from finetune_nb.freezing import freeze", {"freeze": "freezing.html#freeze"}),
    ("from finetune_nb import freeze as still", {"still": "freezing.html#freeze"}),
    ("from finetune_nb.freezing import (freeze, # why\n    blocks)", {"blocks": "freezing.html#blocks"}),
    ("from finetune_nb import data as given", {"given.digits": "data.html#digits"}),
    ("#| default_exp freezing", {"unfreeze": "freezing.html#unfreeze"})])
def test_names_are_known_by_what_a_notebook_imports(code, expected):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    found = pages_py().names_in(notebook)
    assert {name: found.get(name) for name in expected} == {name: f"reference/{to}" for name, to in expected.items()}


def test_the_engine_room_has_a_reference_and_links(tmp_path, monkeypatch):
    "A room's page is called engine.name, its source and its notebook are in folders of their own"
    (tmp_path/"engine").mkdir()
    (tmp_path/"engine"/"room.py").write_text(
        '"""A room."""\n\n# AUTOGENERATED! DO NOT EDIT! File to edit: ../../nbs/engine/13_room.ipynb.\n\n'
        '__all__ = ["enter"]\n\ndef enter(): "Come in."\n')
    for module in reference, pages_py().reference: monkeypatch.setattr(module, "package", tmp_path)
    assert reference.modules() == ["engine.room"]
    page = reference.page("engine.room", "https://here")
    assert "(../engine/13_room.ipynb)" in page and "(https://here/finetune_nb/engine/room.py#L7)" in page
    for code in "from finetune_nb.engine.room import enter", "#| default_exp engine.room":
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
        assert pages_py().names_in(notebook)["enter"] == "reference/engine.room.html#enter"
