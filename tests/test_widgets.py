"""The explorer, dragged for real: live in JupyterLab, and its twin on the built site, in a browser that can reach nothing else."""
import json, os, shutil, socket, subprocess, sys, time, urllib.request
import nbformat, pytest
from conftest import lessons, root, tree_files

lesson, page_of_lesson = "08b_explorer.ipynb", "explorer.html"


# Without a browser

@pytest.fixture(scope="module")
def explorer():
    "Two classes of tiny digits, so that every depth takes a moment"
    from finetune_nb import data, vision
    from finetune_nb.widgets import FreezeExplorer
    return FreezeExplorer(vision.classifier("resnet18-fractal", 10, image_size=32), data.digits(labels_per_class=4, validation_per_class=1, test_per_class=2), steps=20)


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def test_a_moved_slider_cancels_what_runs_and_starts_anew(explorer):
    explorer.run(5)
    with explorer._quietly(): explorer.steps.max = explorer.steps.value = 10_000
    explorer.depth.value = 0
    until(lambda: "step" in explorer.status.value)
    first, asked = explorer._job, time.monotonic()
    with explorer._quietly(): explorer.steps.value = 20
    explorer.depth.value = 5
    assert time.monotonic() - asked < 2, "the kernel is not kept waiting"
    trial = explorer._job.result(60)
    assert type(first.result(0)).__name__ == "Stopped" and (trial.depth, trial.step) == (5, 20)
    assert "Depth 5" in explorer.status.value and not {row["depth"] for rows in explorer._tried.values() for row in rows.values()} - {5}


def test_a_run_can_be_stopped_and_taken_up_again(explorer):
    with explorer._quietly(): explorer.steps.value = 10_000
    explorer.depth.value = 1
    until(lambda: "step" in explorer.status.value)
    assert not explorer.stop.disabled
    explorer.stop.click()
    explorer._job.result(60)
    assert "Stopped" in explorer.status.value and explorer.stop.disabled
    with explorer._quietly(): explorer.steps.value = 20
    assert explorer.run(4).accuracy is not None


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
        assert explorer._job.result(60).depth == 5
    finally: explorer._train = began
    assert ran == [5], "the others were given up"


def test_fewer_labels_reuse_the_states_of_the_test_examples(explorer):
    explorer.run(5)
    trials = explorer._trials["digits"]
    before = dict(trials._kept)
    explorer.labels_per_class.options = [2, 4]
    explorer.labels_per_class.value = 2
    assert explorer._job.result(60).accuracy is not None
    assert len(trials.task.train) == 20 and len(trials._kept) == len(before) + 1, "only the training examples are new"
    explorer.labels_per_class.value = 4
    explorer._job.result(60)
    assert set(trials._kept) >= set(before) and len(trials.task.train) == 40


def test_the_labels_that_are_shown_are_those_it_learns_from():
    "Changed before anything has run"
    from finetune_nb import data, vision
    from finetune_nb.widgets import FreezeExplorer
    task = data.digits(labels_per_class=4, validation_per_class=1, test_per_class=2)
    early = FreezeExplorer(vision.classifier("resnet18-fractal", 10, image_size=32), task, steps=20)
    with early._quietly(): early.labels_per_class.options, early.labels_per_class.value = [2, 4], 2
    early.run(5)
    assert len(early._trials["digits"].task.train) == 20
    two = FreezeExplorer(vision.classifier("resnet18-fractal", 2, image_size=32), task, steps=20)
    with pytest.raises(ValueError, match="gives 2 scores, task 'digits' has 10 classes"): two.run(5)
    assert "⚠" in two.status.value


def test_another_kind_of_task_brings_its_own_network(explorer):
    "And what is missing is said in words"
    explorer._tasks["topics"] = lambda labels: (_ for _ in ()).throw(ValueError("topics need <more> libraries"))
    explorer.task.value = "topics"
    explorer._job.result(60)
    assert "topics need &lt;more&gt; libraries" in explorer.status.value
    explorer.task.value = "digits"
    assert explorer._job.result(60).accuracy is not None


def test_text_trains_from_its_boundary():
    from finetune_nb import data, text
    from finetune_nb.widgets import Trials
    trials = Trials(text.classifier("minilm", 10), data.topics(labels_per_class=2, validation_per_class=1, test_per_class=2))
    for depth in 6, 7:
        trial = list(trials.run(depth, steps=4))[-1]
        assert trial.accuracy is not None and trial.peak_memory > 0 and len(trial.curve) == 4


def test_a_twin_of_a_bert_is_small():
    from finetune_nb.widgets import twin
    names = ["embeddings", *(f"layer.{i}" for i in range(12)), "head"]
    curve = [[epoch, 0.123456789, 0.5 + epoch / 100] for epoch in range(1, 21)]
    rows = [dict(depth=d, block=n, seed=s, accuracy=0.5 + d / 50, macro_f1=0.5, validation_accuracy=0.5, seconds=3.0, trainable_parameters=10**7, peak_memory=10**8, epochs=20, curve=curve,
                 right="01" * 500) for d, n in enumerate(names) for s in range(5)]
    whole = twin(dict(task="topics", model="bert-base-uncased", blocks=names, parameters=[10**7] * 14, rows=rows, recommendation=None))
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
    assert facts(other) != before and facts(one) == untouched and slider.get_attribute("aria-valuetext").startswith("5: head alone learns")
    assert other.locator("ol.blocks .frozen").count() == 5 and other.locator("tr.chosen").get_attribute("data-depth") == "5"
    slider.click() # in the middle
    assert slider.input_value() in ("2", "3") and "%" in facts(other)[0]
    other.locator("ol.blocks li").first.click()
    assert slider.input_value() == "0" and "Recommended" in other.inner_text()
    other.locator("summary").click()
    with page.expect_download() as saved: other.locator("a[download]").click()
    assert json.loads(saved.value.path().read_text())["blocks"][-1] == "head"
    assert not wrong, "\n".join(wrong)


def test_the_twin_is_whole_where_scripts_do_not_run(browser, base):
    page = browser.new_page(java_script_enabled=False)
    page.goto(base + page_of_lesson)
    other = page.locator(".depth-twin").last
    assert not other.locator("input").is_visible() and "Recommended" in other.inner_text() and other.locator("svg").first.is_visible()
    page.close()


@pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 1280), ("light", 390)])
def test_the_twin_is_accessible(visitor, base, scheme, width):
    from axe_playwright_python.sync_playwright import Axe
    page, _ = visitor(width, scheme)
    page.goto(base + page_of_lesson)
    faults = [f"{fault['help']}: {fault['nodes'][0]['html'][:200]}" for fault in Axe().run(page).response["violations"] if fault["impact"] in ("serious", "critical")]
    assert not faults, "\n".join(faults)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_cleaning_leaves_both_outputs(tree, quiet):
    "The live view, which `make lessons` takes away, and the twin"
    path = tree/"nbs"/lesson
    notebook = nbformat.read(path, 4)
    twins = [output for cell in notebook.cells for output in cell.get("outputs", []) if "depth-twin" in output.get("data", {}).get("text/html", "")]
    assert len(twins) >= 2 and all(lessons.widget_view not in output.data and "twin" in output.data["text/html"] for output in twins)
    twins[-1].data[lessons.widget_view] = {"model_id": "0", "version_major": 2, "version_minor": 0}
    nbformat.write(notebook, path)
    subprocess.run([sys.executable, "-c", "from nbdev.clean import nbdev_clean; nbdev_clean.__wrapped__()"], cwd=tree, env=quiet, check=True, stdin=subprocess.DEVNULL)
    cleaned = nbformat.read(path, 4)
    assert [output.data for cell in cleaned.cells for output in cell.get("outputs", []) if "depth-twin" in output.get("data", {}).get("text/html", "")] == [output.data for output in twins]


# The explorer in JupyterLab

@pytest.fixture(scope="module")
def lab(tmp_path_factory, quiet):
    "The address of a JupyterLab that serves a copy of the lessons"
    folder = tmp_path_factory.mktemp("lab")
    for path in tree_files():
        if path.parts[0] != "nbs": continue
        (folder/path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root/path, folder/path)
    settings = folder/"settings"/"@jupyterlab"
    for name, value in {"notebook-extension/tracker": {"windowingMode": "none"}, "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False}}.items():
        (settings/name).parent.mkdir(parents=True, exist_ok=True)
        (settings/f"{name}.jupyterlab-settings").write_text(json.dumps(value))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{name}_DIR": str(folder/name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")} | {"IPYTHONDIR": str(folder/"ipython"), "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=secret",
               f"--ServerApp.root_dir={folder/'nbs'}", "--LabApp.expose_app_in_browser=True", f"--LabApp.user_settings_dir={folder/'settings'}", "--ServerApp.open_browser=False"]
    with open(folder/"log", "w") as log: server = subprocess.Popen(command, env=quiet | own, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    base = f"http://127.0.0.1:{port}/"
    def answers():
        assert server.poll() is None, (folder/"log").read_text()
        try: return urllib.request.urlopen(f"{base}api?token=secret", timeout=2).status == 200
        except OSError: return False
    until(answers, 120)
    yield base
    server.terminate()
    try: server.wait(20)
    except subprocess.TimeoutExpired: server.kill()


class Live:
    "The explorer on a page of JupyterLab"
    def __init__(self, page):
        self.page, self.whole = page, page.locator(".jp-OutputArea-output .widget-vbox", has=page.locator(".depth-explorer")).last
        self.handle = self.whole.locator(".widget-hslider", has_text="Freeze depth").get_by_role("slider")

    def says(self, *words, seconds=120):
        for word in words: self.whole.locator("[role=status]", has_text=word).wait_for(timeout=1000 * seconds)

    def drag(self, depth):
        "With the mouse; the time of its release"
        seen = None
        while seen != (seen := self.handle.bounding_box()): # JupyterLab goes on rendering cells above, which moves those below
            self.handle.scroll_into_view_if_needed()
            self.page.wait_for_timeout(300)
        self.handle.hover()
        self.page.mouse.down()
        track = self.whole.locator(".widget-hslider", has_text="Freeze depth").locator(".noUi-base").bounding_box()
        self.page.mouse.move(track["x"] + track["width"] * depth / 5, track["y"] + track["height"] / 2, steps=8)
        self.page.mouse.up()
        return time.perf_counter()


def test_the_lesson_in_jupyterlab(lab, browser, tmp_path):
    page, foreign = browser.new_page(viewport={"width": 1280, "height": 1100}), []
    page.set_default_timeout(60_000)
    def only_ours(route):
        if route.request.url.startswith((lab, "data:", "blob:")): return route.continue_()
        foreign.append(route.request.url)
        route.abort()
    page.route("**/*", only_ours)
    page.goto(f"{lab}lab/tree/{lesson}?token=secret")
    page.locator(".jp-Notebook .depth-twin, .jp-Notebook .jp-RenderedHTMLCommon", has_text="Recommended").first.wait_for() # before anything has run, and not trusted
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady && jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status == 'idle'")
    page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")
    error = page.locator("[data-mime-type='application/vnd.jupyter.error']")
    page.locator(".jp-OutputArea-output .widget-hslider", has_text="Freeze depth").or_(error).last.wait_for(timeout=240_000)
    page.wait_for_function("![...document.querySelectorAll('.jp-InputPrompt')].some(prompt => prompt.textContent.includes('*'))", timeout=240_000) # the kernel is idle between cells, too
    assert not error.count(), error.first.inner_text()
    live = Live(page)
    seconds = {}
    for depth in 4, 5, 3, 2:
        before = facts(live.whole)
        released = live.drag(depth)
        live.says(f"Depth {depth}:", "test examples right")
        seconds[depth] = time.perf_counter() - released
        assert facts(live.whole) != before and "predicted" in facts(live.whole)[2] and "%" in facts(live.whole)[0]
    print("from the slider's release to the finished curve:", {depth: f"{s:.1f} s" for depth, s in seconds.items()})
    page.screenshot(path=os.environ.get("SCREENSHOT", tmp_path/"explorer.png"))
    assert max(seconds.values()) < 90
    live.drag(1) # and away again, in the middle
    live.says("step")
    live.drag(4)
    live.says("Depth 4:", "test examples right")
    live.drag(1)
    live.says("step")
    live.whole.get_by_role("button", name="Stop").click()
    live.says("Stopped")
    live.handle.focus()
    page.keyboard.press("End")
    live.says("Depth 5:", "test examples right")
    assert live.whole.locator(".point:not(.saved)").count() == 4, "the depths that ended, and none that was given up"
    assert not foreign, foreign
    page.close()


def test_every_lesson_is_a_click_from_the_index(lab, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 1100})
    page.set_default_timeout(60_000)
    page.goto(f"{lab}lab/workspaces/clicks/tree/index.ipynb?token=secret") # tabs are remembered, and are nobody else's here
    names = [path.name for path in lessons.notebooks() if path.parent.name == "nbs" and path.name != "index.ipynb"]
    for name in names:
        page.locator(".lm-DockPanel-tabBar .lm-TabBar-tab", has_text="index.ipynb").click()
        page.locator(f".jp-NotebookPanel:not(.lm-mod-hidden) .jp-OutputArea-output td:first-child a[href*='/{name}']").click()
        page.locator(".lm-DockPanel-tabBar .lm-TabBar-tab.lm-mod-current", has_text=name).wait_for()
        page.wait_for_function("jupyterapp.shell.currentWidget.context?.model?.cells?.length > 5") # it is there, and no empty tab
    page.evaluate("() => jupyterapp.serviceManager.sessions.shutdownAll()")
    page.close()
