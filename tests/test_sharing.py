"""Sharing a model: the Hub's interface is stood in for, the server and the browser are real."""
import base64, http.client, http.server, json, signal, subprocess, sys, threading, time, urllib.error, urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from conftest import tiny_bert
from finetune_nb import data, evaluate, fit, freeze, saving, sharing, text, vision
from finetune_nb.engine.objective import Evaluation
from finetune_nb.engine.places import KEPT


def saved(model, task, folder):
    freeze(model, depth=len(model.blocks()) - 1)
    history = fit(model, task, epochs=1, progress=False)
    saving.save(folder, model, task, history, evaluate(model, task.test))
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    "A saved model of texts: its folder"
    top = tmp_path_factory.mktemp("texts")
    task = data.topics(2, validation_per_class=1, test_per_class=1)
    return saved(text.classifier(tiny_bert(top/"tiny"), task), task, top/"model")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    "A saved model of images: its folder"
    task = data.digits(2, validation_per_class=1, test_per_class=1)
    model = vision.classifier("resnet18-fractal", task, image_size=32)
    return saved(model, task, tmp_path_factory.mktemp("images")/"model")


# The Hub

class Hub(http.server.BaseHTTPRequestHandler):
    "What the Hub answers while a folder is uploaded"
    def log_message(self, *words): pass

    def do_GET(self):
        if self.path.startswith("/api/models/"): self.do_POST() # without a body
        else: self.send_error(404)

    def do_POST(self):
        got = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        status, answer = self.answer(got)
        said = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def answer(self, got):
        if self.server.refuses: return self.server.refuses, {"error": "no such user may write here"}
        address = f"http://127.0.0.1:{self.server.server_port}"
        if self.path == "/api/validate-yaml": return 200, dict(errors=[], warnings=[])
        if self.path == "/api/repos/create":
            there, self.server.made = self.server.there, json.loads(got)
            return 409 if there else 200, {"url": f"{address}/me/pets", "name": "me/pets", "id": "1"}
        if self.path == "/api/models/me/pets":
            asked = self.server.made.get("visibility") or self.server.made.get("private") and "private"
            return 200, dict(id="me/pets", private=(self.server.there or asked) == "private", tags=[], siblings=[])
        if "/preupload/" in self.path:
            files = json.loads(got)["files"]
            return 200, {"files": [dict(path=file["path"], uploadMode="regular", shouldIgnore=False) for file in files]}
        if "/commit/" in self.path:
            for line in map(json.loads, got.splitlines()):
                if line["key"] == "file": self.server.files[line["value"]["path"]] = line["value"]["content"]
            return 200, {"commitUrl": f"{address}/me/pets/commit/{'0' * 40}", "commitOid": "0" * 40}
        return 404, {"error": f"nothing is at {self.path}"}


@pytest.fixture
def hub(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.files, server.made, server.refuses = [], {}, None, None
    server.there = None # "private" or "public", of a repository that somebody has made before
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for module in ("huggingface_hub.constants", "huggingface_hub.hf_api"):
        monkeypatch.setattr(f"{module}.ENDPOINT", address, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.shutdown()


STRANGERS = ("step-00000100.safetensors", "checkpoint.safetensors", "last.ckpt", "secrets.json", "notes.txt",
             "cat.png", "large.onnx", ".env", "labels/model.json", "labels/step-00000100.safetensors")


@pytest.fixture
def beside(tmp_path): # a copy in it is there until all is taken away
    "Puts files of somebody else beside a model, and takes them away again"
    folders = []
    def put(folder):
        folders.append(folder)
        (folder/"labels").mkdir()
        for name in STRANGERS: (folder/name).write_text("mine")
    yield put
    for folder in folders:
        for name in STRANGERS: (folder/name).unlink()
        (folder/"labels").rmdir()


def files_in(folder): return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_a_model_and_nothing_else_is_sent(command, hub, texts, beside):
    own = files_in(texts)
    beside(texts)
    code, out, err = command("push", texts, "me/pets")
    assert code == 0, err
    assert out.strip() == f"http://127.0.0.1:{hub.server_port}/me/pets"
    assert hub.files.keys() == own >= {"model.safetensors", "model.json", "README.md", "tokenizer.json"}
    assert base64.b64decode(hub.files["model.safetensors"]) == (texts/"model.safetensors").read_bytes()
    assert hub.made.get("private") or hub.made["visibility"] == "private"
    assert {token for _, token in hub.asked} == {"Bearer hf_secret"}
    card = base64.b64decode(hub.files["README.md"]).decode()
    assert card.startswith("---\n")
    assert "library_name: finetune_nb" in card and "pipeline_tag: text-classification" in card


def test_all_files_of_a_model_are_sent_and_no_other(images, texts, beside, tmp_path):
    "With what `export` and adapters add; and every picture that `save` draws is known by its name"
    for folder in (images, texts):
        (copy := tmp_path/folder.parent.name).mkdir()
        for file in folder.iterdir(): (copy/file.name).write_bytes(file.read_bytes())
        for name in ("model.onnx", "adapter_model.safetensors"): (copy/name).write_text("made of it")
        own = files_in(copy)
        beside(copy)
        assert {*sharing.files_of(copy)} == own
    drawn, todo = set(), [Evaluation]
    while todo:
        drawn.add(f"{(kind := todo.pop()).figure}.png")
        todo += kind.__subclasses__()
    assert {"confusion.png", "answers.png", "boxes.png", "entities.png", "masks.png"} <= drawn <= {*KEPT}


def test_what_everybody_sees_is_asked_for(command, hub, texts):
    "The Hub leaves a repository that is there as public as it is"
    hub.there = "public"
    code, _, err = command("push", texts, "me/pets")
    assert code == 1 and not hub.files and "Traceback" not in err
    assert "Everybody can see 'me/pets'" in err and "--public" in err
    code, _, err = command("push", texts, "me/pets", "--public")
    assert code == 0 and "model.safetensors" in hub.files, err
    hub.files, hub.there = {}, "private"
    code, _, err = command("push", texts, "me/pets")
    assert code == 0 and "model.safetensors" in hub.files, err


@pytest.mark.parametrize("status, words", [(401, "hf auth login"), (403, "hf auth login"), (500, "try again later")])
def test_a_refusal_is_one_sentence(command, hub, texts, status, words):
    hub.refuses = status
    code, out, err = command("push", texts, "me/pets", "--public")
    assert code == 1 and words in err and "Traceback" not in err and not hub.files


def test_without_a_token_a_name_or_a_network(command, hub, texts, monkeypatch, tmp_path):
    code, _, err = command("push", tmp_path, "me/pets")
    assert code == 1 and "holds no saved model" in err and not hub.asked
    code, _, err = command("push", texts, "me/my pets")
    assert code == 1 and "my pets" in err and not hub.files
    hub.shutdown()
    hub.server_close()
    code, _, err = command("push", texts, "me/pets")
    assert code == 1 and "cannot be reached" in err and "Traceback" not in err


# The server

class Served:
    "`finetune-nb serve` in a process of its own"
    def __init__(self, folder, quiet, *options):
        command = [Path(sys.executable).parent/"finetune-nb", "serve", folder, "--port", "0", *options]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.process = subprocess.Popen(command, env=quiet, **pipes)
        self.address = self.process.stdout.readline().strip()
        assert self.address, self.process.stderr.read()

    def ask(self, body, **headers):
        "The status, and what is answered"
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(self.address + "predict", sent, headers)) as got:
                return got.status, json.load(got)
        except urllib.error.HTTPError as error:
            said = error.read()
            return error.code, json.loads(said) if said.startswith(b"{") else said.decode()

    def stop(self):
        if self.process.poll() is None: self.process.send_signal(signal.SIGINT)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


@pytest.fixture(scope="module")
def served(texts, quiet):
    server = Served(texts, quiet, "--most-inputs", "5", "--most-bytes", "10000")
    yield server
    server.stop()


def test_a_thousand_requests_are_all_answered(served, texts):
    model = saving.load(texts)
    sentences = [f"Draw {i} lines on the axes." for i in range(10)]
    expected = model.predict(sentences)["class"].tolist()
    def one(i): return i, served.ask(dict(inputs=[sentences[i % 10]]))
    with ThreadPoolExecutor(8) as pool: answers = list(pool.map(one, range(1000)))
    assert all(status == 200 and found["answers"][0]["class"] == expected[i % 10] for i, (status, found) in answers)


@pytest.mark.parametrize("body, status, words", [
    (b"{", 400, "is not"), (b"\xff\xfe", 400, "is not"), ([], 422, "A request is"), ({}, 422, "A request is"),
    (dict(inputs=[]), 422, "at least one"), (dict(inputs="good"), 422, "A request is"),
    (dict(inputs=["good"] * 6), 422, "may have 5 inputs, and this one has 6"),
    (dict(inputs=["good " * 10_000]), 413, "may have 10,000 bytes"),
    (dict(inputs=["good"], top=0), 422, "top"), (dict(inputs=["good"], top="many"), 422, "top")])
def test_what_cannot_be_meant_is_refused_in_words(served, body, status, words):
    got, said = served.ask(body)
    assert got == status and words in said["error"]
    assert served.ask(dict(inputs=["well made"]))[0] == 200, "and it goes on"


def test_a_bad_input_beside_good_ones(served):
    status, found = served.ask(dict(inputs=["well made", "", None]))
    good, empty, none = found["answers"]
    assert status == 200 and good["error"] is None and 0 < good["probability"] <= 1
    assert empty["class"] is none["class"] is None and "no string" in none["error"] and empty["error"]


def test_it_comes_under_its_own_name_alone(served):
    "or any page in a browser could ask it; a server in front of it sends on that name"
    assert served.ask(dict(inputs=["good"]), Host="evil.example") == (400, "Invalid host header")
    assert served.ask(dict(inputs=["good"]), Host="localhost")[0] == 200


def opened(browser, address, width):
    "A page, and what went wrong on it"
    page, wrong = browser.new_page(viewport={"width": width, "height": 900}), []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: request.url.startswith((address, "data:")) or wrong.append(request.url))
    page.goto(address)
    return page, wrong


def test_people_try_it_on_a_page(served, images, quiet, browser, tmp_path):
    page, wrong = opened(browser, served.address, 1280)
    page.get_by_label("Texts, one a line").fill("Draw a line.\n\nShortest path")
    page.get_by_role("button", name="Ask").click()
    rows = page.locator("#answers tr")
    rows.nth(2).wait_for()
    assert rows.count() == 3 and "Shortest path" in rows.nth(2).inner_text()
    assert f"{served.address}predict" in page.locator("pre").inner_text()
    page.get_by_label("Texts, one a line").fill("\n".join("abcdef"))
    page.get_by_role("button", name="Ask").click()
    page.locator("[role=status]", has_text="may have 5 inputs").wait_for()
    assert all("422" in said for said in wrong), wrong
    other = Served(images, quiet)
    try:
        page, wrong = opened(browser, other.address, 390)
        Image.fromarray(np.zeros((28, 28, 3), np.uint8)).save(tmp_path/"black.png")
        (tmp_path/"torn.png").write_bytes((tmp_path/"black.png").read_bytes()[:60])
        page.get_by_label("Image files").set_input_files([tmp_path/"black.png", tmp_path/"torn.png"])
        page.get_by_role("button", name="Ask").click()
        rows = page.locator("#answers tr")
        rows.nth(2).wait_for()
        assert "black.png" in rows.nth(1).inner_text() and "torn.png" in rows.nth(2).inner_text()
        assert not wrong, wrong
    finally: ended = other.stop()
    assert ended[0] == 0 and "Traceback" not in ended[1]


def test_a_request_that_is_under_way_is_answered_before_it_ends(texts, quiet):
    server = Served(texts, quiet)
    def sent(line, count):
        line.request("POST", "/predict", json.dumps(dict(inputs=["well made " * 50] * count)))
        return line
    line = http.client.HTTPConnection(server.address.split("/")[2])
    assert sent(line, 1).getresponse().read() # it listens on this line now
    sent(line, 100)
    time.sleep(1)
    server.process.send_signal(signal.SIGINT)
    found = line.getresponse()
    assert found.status == 200 and len(json.loads(found.read())["answers"]) == 100
    code, err = server.stop()
    assert code == 0 and "Traceback" not in err


def test_a_port_that_is_taken(command, texts, served):
    port = served.address.rstrip("/").rpartition(":")[2]
    code, _, err = command("serve", texts, "--port", port)
    assert code == 1 and f"Port {port} is taken" in err


def test_what_is_missing_is_said(texts, quiet):
    "Where the library of a model is not installed"
    code = ("import sys\nsys.modules['transformers'] = None\nfrom finetune_nb import saving\n"
            f"try: saving.load({str(texts)!r})\nexcept ModuleNotFoundError as error: print(error)")
    ran = subprocess.run([sys.executable, "-c", code], env=quiet, capture_output=True, text=True)
    assert "needs the package transformers" in ran.stdout, ran.stdout + ran.stderr
