import functools
import http.server
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import threading

# Several tests run at once; set before torch is imported.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

from pathlib import Path
import pytest
from filelock import FileLock

root = Path(__file__).resolve().parent.parent
not_ours = {
    ".git", ".gitconfig", ".venv", ".venv-bench", "_proc", "_docs", "build", "dist", "__pycache__", ".pytest_cache",
    ".ipynb_checkpoints", "install.log", "finetune_nb_run"}


def tree_files(top=root):
    "The files of the tree that are committed, relative to `top`"
    return sorted(p.relative_to(top) for p in _walk(top))


def _walk(folder):
    for path in folder.iterdir():
        if path.name in not_ours or path.suffix in (".egg-info", ".pyc"): continue
        if (path/"pyvenv.cfg").exists() or path.is_symlink(): continue
        if path.is_dir(): yield from _walk(path)
        else: yield path


def load(path):
    "The module that the script at `path` is"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lessons = load(root/"tools"/"lessons.py")


long_ones = ["test_widgets", "test_notebooks", "test_command_line", "test_site"]


def pytest_collection_modifyitems(items):
    "The longest tests first: what one process has left at the end is short, and another takes it over"
    place = {stem: i for i, stem in enumerate(long_ones)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def tiny_bert(folder, layers=2, **options):
    "A BERT with random weights that learns in a second: its folder"
    import torch # only where it is asked for
    from transformers import BertConfig, BertModel
    from finetune_nb import text
    torch.manual_seed(0)
    shape = dict(hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32)
    BertModel(BertConfig(vocab_size=30522, **shape), **options).save_pretrained(folder)
    text.classifier("minilm", 2).tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tree(tmp_path):
    "A copy of the tree, to change at will"
    return copy_tree(tmp_path)


def quiet_environment():
    "What every child process gets: one thread, no network for models, this tree's module"
    given = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    return {**given, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
            "MPLBACKEND": "Agg", "PYTHONPATH": str(root)}


@pytest.fixture(scope="session")
def quiet(): return quiet_environment()


@pytest.fixture
def command(monkeypatch, capsys):
    "`command(*words)`: the exit code of `finetune-nb`, in this process, and what it says on its two streams"
    def run(*words, given=None): # given: on standard input
        from finetune_nb import cli # only where it is asked for
        if given is not None:
            stream = io.TextIOWrapper(io.BytesIO(given.encode()), encoding="utf-8")
            monkeypatch.setattr(sys, "stdin", stream)
        monkeypatch.setattr(sys, "argv", ["finetune-nb", *map(str, words)])
        try: code = cli.main()
        except SystemExit as end: code = end.code
        return code or 0, *capsys.readouterr()
    return run


def copy_tree(target):
    "The tree's files, and nothing else, in the folder `target`"
    for path in tree_files():
        (target/path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root/path, target/path)
    return target


def processor_seconds():
    "Seconds that processors worked for the ended child processes of this one: no other program makes them more"
    times = os.times() # on Windows, children count nothing
    return times.children_user + times.children_system


# The site, and one browser for all who ask: Playwright can start only once in a process

def build_site(tree, env):
    "What building the site of `tree` came to"
    before = processor_seconds()
    ran = subprocess.run([sys.executable, tree/"tools"/"pages.py"], env={**env, "PYTHONPATH": ""},
                         capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return dict(folder=str(tree/"_docs"), processor_seconds=processor_seconds() - before, code=ran.returncode,
                said=ran.stdout + ran.stderr)


@pytest.fixture(scope="session")
def built(tmp_path_factory, worker_id, quiet):
    "What building the site came to; the first process that asks builds it, from the tree's files, the others wait"
    if os.environ.get("SITE"): return dict(folder=os.environ["SITE"], processor_seconds=0, code=0)
    if sys.version_info < (3, 11) and not shutil.which("quarto"):
        pytest.skip("smalldocs, which builds the site where there is no Quarto, needs Python 3.11")
    shared = tmp_path_factory.getbasetemp()
    if worker_id != "master": shared = shared.parent
    result = shared/"site.json"
    with FileLock(shared/"site.lock"):
        if not result.exists(): result.write_text(json.dumps(build_site(copy_tree(shared/"site"), quiet)))
    return json.loads(result.read_text())


@pytest.fixture(scope="session")
def site(built):
    if built["code"]: pytest.fail(built["said"], pytrace=False)
    return Path(built["folder"])


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_): pass


def serve(folder):
    "The address of `folder` on this machine, while the tests run"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/"


@pytest.fixture(scope="session")
def base(site): return serve(site)


@pytest.fixture(scope="session")
def browser():
    "Debian's Chromium, or Playwright's own"
    from playwright.sync_api import Error, sync_playwright
    system = shutil.which("chromium") or shutil.which("chromium-browser")
    flags = ["--disable-background-networking", "--disable-component-update"]
    if getattr(os, "geteuid", lambda: 1)() == 0: flags.append("--no-sandbox") # it refuses to run as root otherwise
    with sync_playwright() as play:
        try: chromium = play.chromium.launch(executable_path=system, args=flags)
        except Error as error:
            stop = pytest.fail if os.environ.get("CI") else pytest.skip
            stop("no browser to test the site with: type `python -m playwright install chromium`, or install your "
                 f"system's chromium ({str(error).splitlines()[0]})")
        yield chromium
        chromium.close()


@pytest.fixture
def visitor(browser, base):
    "`visitor(width, scheme)`: a page of that width, and what went wrong on it; everything but the site is refused"
    opened = []
    def open_page(width=1280, scheme="light", base=base):
        page, wrong = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), []
        page.set_default_timeout(300_000) # against hanging, not slowness: other programs may keep the machine busy
        page.set_default_navigation_timeout(300_000)
        def failed(request): wrong.append(f"{page.url}: {request.url} failed")
        def said(message):
            if message.type in ("error", "warning"): wrong.append(f"{page.url}: {message.text}")
        def answered(response):
            if response.status >= 400: wrong.append(f"{page.url}: {response.status} for {response.url}")
        def only_ours(route):
            if route.request.url.startswith((base, "data:", "blob:")): return route.continue_()
            wrong.append(f"{page.url} fetches {route.request.url}")
            route.abort()
        page.route("**/*", only_ours)
        page.on("console", said)
        page.on("pageerror", lambda error: wrong.append(f"{page.url}: {error}"))
        page.on("requestfailed", failed)
        page.on("response", answered)
        opened.append(page)
        return page, wrong
    yield open_page
    for page in opened: page.close()
