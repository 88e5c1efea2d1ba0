"""The explorer, dragged for real: live in JupyterLab, and its twin on the built site.

The browser can reach nothing else.
"""
import json, os, shutil, socket, subprocess, sys, time, urllib.request
import nbformat, pytest
from conftest import lessons, root, tree_files

lesson, page_of_lesson, explorer_alone = "08b_explorer.ipynb", "explorer.html", "explorer_alone.ipynb"
deadline = 600 # seconds, against hanging: a machine with one busy core is several times slower


# Without a browser

@pytest.fixture(scope="module")
def explorer():
    "Two classes of tiny digits, so that every depth takes a moment"
    from finetune_nb.widgets import FreezeExplorer
    return FreezeExplorer(small_model(), small_task(), steps=20)


def small_task():
    from finetune_nb import data
    return data.digits(labels_per_class=4, validation_per_class=1, test_per_class=2)


def small_model(classes=10):
    from finetune_nb import vision
    return vision.classifier("resnet18-fractal", classes, image_size=32)


def until(true, seconds=deadline):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def test_a_moved_slider_cancels_what_runs_and_starts_anew(explorer):
    explorer.run(5)
    with explorer._quietly(): explorer.steps.max = explorer.steps.value = 10_000
    explorer.depth.value = 0
    until(lambda: "step" in explorer.status.value)
    first, asked = explorer._jobs.last, time.monotonic()
    with explorer._quietly(): explorer.steps.value = 20
    explorer.depth.value = 5
    assert time.monotonic() - asked < 20, "the kernel is not kept waiting for 10,000 steps"
    trial = explorer._jobs.last.result(deadline)
    assert type(first.result(0)).__name__ == "Stopped" and (trial.depth, trial.step) == (5, 20)
    assert "Depth 5" in explorer.status.value
    tried = {row["depth"] for rows in explorer._tried.values() for row in rows.values()}
    assert tried == {5}, "and not the depth that was given up"


def test_a_run_can_be_stopped_and_taken_up_again(explorer):
    with explorer._quietly(): explorer.steps.value = 10_000
    explorer.depth.value = 1
    until(lambda: "step" in explorer.status.value)
    assert not explorer.stop.disabled
    explorer.stop.click()
    explorer._jobs.last.result(deadline)
    assert "Stopped" in explorer.status.value and explorer.stop.disabled
    with explorer._quietly(): explorer.steps.value = 20
    assert explorer.run(4).scores["accuracy"] is not None


def test_what_the_network_looks_at_moves_with_the_slider(explorer):
    with explorer._quietly(): explorer.steps.value = 20
    shown = []
    for depth in 5, 3, 5:
        explorer.run(depth)
        shown.append(explorer.looked_at.value)
    assert all("grad cam: " in own and "data:image/png" in own for own in shown)
    assert shown[0] == shown[2] != shown[1], "it is of the network that was trained last"


def test_five_moves_at_once_train_only_for_the_last(explorer):
    ran = []
    began = explorer._train
    def to_the_end(*asked):
        trial = began(*asked)
        ran.append(trial.depth)
        return trial
    explorer._train = to_the_end
    try:
        for depth in 0, 1, 2, 3, 5: explorer.depth.value = depth
        assert explorer._jobs.last.result(deadline).depth == 5
    finally: explorer._train = began
    assert ran == [5], "the others were given up"


def test_fewer_labels_reuse_the_states_of_the_test_examples(explorer):
    explorer.run(5)
    trials = explorer._bench.trials["digits"]
    kept = trials._prefixes.kept
    before = dict(kept)
    explorer.labels_per_class.options = [2, 4]
    explorer.labels_per_class.value = 2
    assert explorer._jobs.last.result(deadline).scores
    assert len(trials.task.train) == 20 and len(kept) == len(before) + 1, "only the training examples are new"
    explorer.labels_per_class.value = 4
    explorer._jobs.last.result(deadline)
    assert set(kept) >= set(before) and len(trials.task.train) == 40


def test_the_labels_that_are_shown_are_those_it_learns_from():
    "Changed before anything has run"
    from finetune_nb.widgets import FreezeExplorer
    early = FreezeExplorer(small_model(), small_task(), steps=20)
    with early._quietly(): early.labels_per_class.options, early.labels_per_class.value = [2, 4], 2
    early.run(5)
    assert len(early._bench.trials["digits"].task.train) == 20
    two = FreezeExplorer(small_model(classes=2), small_task(), steps=20)
    with pytest.raises(ValueError, match="gives 2 scores, and 10 are asked for"): two.run(5)
    assert "⚠" in two.status.value


def test_another_kind_of_task_brings_its_own_network(explorer):
    "And what is missing is said in words"
    def missing(labels): raise ValueError("topics need <more> libraries")
    explorer._bench.tasks.makers["topics"] = missing
    explorer.task.value = "topics"
    explorer._jobs.last.result(deadline)
    assert "topics need &lt;more&gt; libraries" in explorer.status.value
    explorer.task.value = "digits"
    assert explorer._jobs.last.result(deadline).scores


def test_text_trains_from_its_boundary():
    from finetune_nb import data, text
    from finetune_nb.widgets import Trials
    few = data.topics(labels_per_class=2, validation_per_class=1, test_per_class=2)
    trials = Trials(text.classifier("minilm", 10), few)
    for depth in 6, 7:
        trial = list(trials.run(depth, steps=4))[-1]
        assert list(trial.scores) == ["accuracy", "macro_f1"]
        assert trial.peak_memory > 0 and len(trial.curve) == 4


def test_a_twin_of_a_bert_is_small():
    from finetune_nb.widgets import twin
    names = ["embeddings", *(f"layer.{i}" for i in range(12)), "head"]
    curve = [[epoch, 0.123456789, 0.5 + epoch / 100] for epoch in range(1, 21)]
    measured = dict(macro_f1=0.5, validation_accuracy=0.5, seconds=3.0, trainable_parameters=10**7,
                    peak_memory=10**8, epochs=20, curve=curve, right="01" * 500)
    rows = [dict(depth=d, block=name, seed=seed, accuracy=0.5 + d / 50, **measured)
            for d, name in enumerate(names) for seed in range(5)]
    about = dict(task="topics", model="bert-base-uncased", blocks=names, parameters=[10**7] * 14)
    whole = twin(about | dict(rows=rows, recommendation=None))
    assert len(whole.encode()) < 200_000 and "01" * 500 not in whole


# The twin on the site

def facts(part): return part.locator("dd").all_inner_texts()


def test_the_twin_is_driven_without_a_kernel_or_a_network(visitor, base):
    page, wrong = visitor()
    page.goto(base + page_of_lesson)
    twins = page.locator(".depth-twin")
    assert twins.count() >= 2, "several on one page do not clash"
    one, other = twins.first, twins.last
    slider, untouched = other.locator("input[type=range]"), facts(one)
    slider.focus()
    slider.press("Home")
    before = facts(other)
    slider.press("End")
    assert facts(other) != before and facts(one) == untouched
    assert slider.get_attribute("aria-valuetext").startswith("5: head alone learns; test accuracy ")
    assert other.locator("ol.blocks .frozen").count() == 5
    assert other.locator("tr.chosen").get_attribute("data-depth") == "5"
    slider.click() # in the middle
    assert slider.input_value() in ("2", "3") and "%" in facts(other)[0]
    other.locator("ol.blocks li").first.click()
    assert slider.input_value() == "0" and "Recommended" in other.inner_text()
    other.locator("summary").click()
    with page.expect_download() as saved: other.locator("a[download]").click()
    assert json.loads(saved.value.path().read_text())["blocks"][-1] == "head"
    assert not wrong, "\n".join(wrong)


def test_the_twin_stands_at_the_top_of_its_page_and_on_the_front_page(site):
    page, front = ((site/name).read_text(encoding="utf-8") for name in (page_of_lesson, "index.html"))
    text = page[page.index("<main"):]
    assert text.index("depth-explorer depth-twin") < text.index("<h2") and "depth-twin" in front
    assert "depth-twin" not in (root/"README.md").read_text(encoding="utf-8") # which has no scripts


def test_the_twin_is_whole_where_scripts_do_not_run(browser, base):
    page = browser.new_page(java_script_enabled=False)
    page.goto(base + page_of_lesson)
    other = page.locator(".depth-twin").last
    assert not other.locator("input").is_visible() and other.locator("svg").first.is_visible()
    assert "Recommended" in other.inner_text()
    page.close()


@pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 1280), ("light", 390)])
def test_the_twin_is_accessible(visitor, base, scheme, width):
    from axe_playwright_python.sync_playwright import Axe
    page, _ = visitor(width, scheme)
    page.goto(base + page_of_lesson)
    found = Axe().run(page).response["violations"]
    grave = [fault for fault in found if fault["impact"] in ("serious", "critical")]
    faults = [f"{fault['help']}: {fault['nodes'][0]['html'][:200]}" for fault in grave]
    assert not faults, "\n".join(faults)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def twins_in(notebook):
    "The outputs of a notebook that are twins"
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output for output in outputs if "depth-twin" in output.get("data", {}).get("text/html", "")]


def test_cleaning_leaves_both_outputs(tree, quiet):
    "The live view, which `make lessons` takes away, and the twin"
    path = tree/"nbs"/lesson
    notebook = nbformat.read(path, 4)
    twins = twins_in(notebook)
    assert len(twins) >= 2 and not any(lessons.widget_view in output.data for output in twins)
    twins[-1].data[lessons.widget_view] = {"model_id": "0", "version_major": 2, "version_minor": 0}
    nbformat.write(notebook, path)
    clean = [sys.executable, "-c", "from nbdev.clean import nbdev_clean; nbdev_clean.__wrapped__()"]
    subprocess.run(clean, cwd=tree, env=quiet, check=True, stdin=subprocess.DEVNULL)
    assert [output.data for output in twins_in(nbformat.read(path, 4))] == [output.data for output in twins]


# The explorer in JupyterLab

lab_settings = {"notebook-extension/tracker": {"windowingMode": "none"},
                "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False}}


def prepared(folder):
    "A copy of the lessons in `folder`, the explorer's cells alone, and the settings of JupyterLab"
    for path in tree_files():
        if path.parts[0] != "nbs": continue
        (folder/path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root/path, folder/path)
    whole = nbformat.read(folder/"nbs"/lesson, 4)
    live = [cell for cell in whole.cells if cell.source.split(" = ")[0] in ("sweep", "explorer")]
    imports = ("from IPython.display import Markdown\nfrom finetune_nb.depth import Sweep\n"
               "from finetune_nb.widgets import FreezeExplorer")
    whole.cells = [nbformat.v4.new_code_cell(imports), *live]
    nbformat.write(whole, folder/"nbs"/explorer_alone)
    for name, value in lab_settings.items():
        file = folder/"settings"/"@jupyterlab"/f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory, quiet):
    "The address of a JupyterLab that serves a copy of the lessons"
    folder, port = tmp_path_factory.mktemp("lab"), free_port()
    prepared(folder)
    own = {f"JUPYTER_{name}_DIR": str(folder/name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    own["IPYTHONDIR"] = str(folder/"ipython")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
               "--ServerApp.open_browser=False",
               f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=secret",
               f"--ServerApp.root_dir={folder/'nbs'}", f"--LabApp.user_settings_dir={folder/'settings'}",
               "--LabApp.expose_app_in_browser=True"]
    how = dict(env=quiet | own, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    with open(folder/"log", "w") as log: server = subprocess.Popen(command, stdout=log, **how)
    base = f"http://127.0.0.1:{port}/"
    def answers():
        assert server.poll() is None, (folder/"log").read_text()
        try: return urllib.request.urlopen(f"{base}api?token=secret", timeout=2).status == 200
        except OSError: return False
    until(answers)
    yield base
    server.terminate()
    try: server.wait(20)
    except subprocess.TimeoutExpired: server.kill()


class Live:
    "The explorer on a page of JupyterLab"
    def __init__(self, page):
        outputs = page.locator(".jp-OutputArea-output .widget-vbox", has=page.locator(".depth-explorer"))
        self.page, self.whole = page, outputs.last
        self.slider = self.whole.locator(".widget-hslider", has_text="Freeze depth")
        self.handle = self.slider.get_by_role("slider")

    def says(self, *words):
        said = self.whole.locator("[role=status]")
        for word in words: said.filter(has_text=word).wait_for(timeout=1000 * deadline)

    def drag(self, depth):
        "With the mouse; the time of its release"
        seen = None
        while seen != (seen := self.handle.bounding_box()): # JupyterLab goes on rendering cells above
            self.handle.scroll_into_view_if_needed()
            self.page.wait_for_timeout(300)
        self.handle.hover()
        self.page.mouse.down()
        track = self.slider.locator(".noUi-base").bounding_box()
        x, y = track["x"] + track["width"] * depth / 5, track["y"] + track["height"] / 2
        self.page.mouse.move(x, y, steps=8)
        self.page.mouse.up()
        return time.perf_counter()

    def trains(self, depth):
        "Drag there; the seconds from the release to the finished curve"
        before, released = facts(self.whole), self.drag(depth)
        self.says(f"Depth {depth}:", "test examples right")
        seconds, after = time.perf_counter() - released, facts(self.whole)
        assert after != before and "predicted" in after[2] and "%" in after[0]
        return seconds


idle = "jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status == 'idle'"
ready = f"window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady && {idle}"
all_ran = "![...document.querySelectorAll('.jp-InputPrompt')].some(prompt => prompt.textContent.includes('*'))"


def all_cells_run(page):
    "Run all cells of the notebook that is open, to the explorer and to the end"
    page.wait_for_function(ready)
    page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")
    error = page.locator("[data-mime-type='application/vnd.jupyter.error']")
    explorer = page.locator(".jp-OutputArea-output .widget-hslider", has_text="Freeze depth")
    explorer.or_(error).last.wait_for(timeout=1000 * deadline)
    page.wait_for_function(all_ran, timeout=1000 * deadline) # the kernel is idle between cells, too
    assert not error.count(), error.first.inner_text()


def test_the_lesson_in_jupyterlab(lab, browser, tmp_path):
    page, foreign = browser.new_page(viewport={"width": 1280, "height": 1100}), []
    page.set_default_timeout(1000 * deadline)
    def only_ours(route):
        if route.request.url.startswith((lab, "data:", "blob:")): return route.continue_()
        foreign.append(route.request.url)
        route.abort()
    page.route("**/*", only_ours)
    page.goto(f"{lab}lab/tree/{lesson}?token=secret")
    twins = ".jp-Notebook .depth-twin, .jp-Notebook .jp-RenderedHTMLCommon"
    page.locator(twins, has_text="Recommended").first.wait_for() # before anything has run, and not trusted
    # The lesson runs in a test of its own; in a workspace of its own no other tab comes to the front
    page.goto(f"{lab}lab/workspaces/alone/tree/{explorer_alone}?token=secret")
    all_cells_run(page)
    live = Live(page)
    seconds = {depth: f"{live.trains(depth):.1f} s" for depth in (4, 5)}
    print("from the slider's release to the finished curve:", seconds)
    page.screenshot(path=os.environ.get("SCREENSHOT", tmp_path/"explorer.png"))
    live.drag(1)
    live.says("step")
    live.whole.get_by_role("button", name="Stop").click()
    live.says("Stopped")
    live.handle.focus()
    page.keyboard.press("End")
    live.says("Depth 5:", "test examples right")
    ended = live.whole.locator(".point:not(.saved)")
    assert ended.count() == 2, "the depths that ended, and none that was given up"
    assert not foreign, foreign
    page.close()


def test_every_lesson_is_a_click_from_the_index(lab, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 1100})
    page.set_default_timeout(1000 * deadline)
    page.goto(f"{lab}lab/workspaces/clicks/tree/index.ipynb?token=secret") # tabs are remembered, and nobody else's
    names = [path.name for path in lessons.notebooks() if path.parent.name == "nbs"]
    names.remove("index.ipynb")
    tabs, shown = ".lm-DockPanel-tabBar .lm-TabBar-tab", ".jp-NotebookPanel:not(.lm-mod-hidden)"
    def link(name): return page.locator(f"{shown} .jp-OutputArea-output td:first-child a[href*='/{name}']")
    link(names[0]).wait_for()
    assert all(link(name).count() == 1 for name in names)
    for name in names[::16]:
        page.locator(tabs, has_text="index.ipynb").click()
        link(name).click()
        page.locator(f"{tabs}.lm-mod-current", has_text=name).wait_for()
        # It is there, and no empty tab
        page.wait_for_function("jupyterapp.shell.currentWidget.context?.model?.cells?.length > 5")
    page.evaluate("() => jupyterapp.serviceManager.sessions.shutdownAll()")
    page.close()
