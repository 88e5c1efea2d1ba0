"""Files as people keep them: links, telephones' photographs, large images, workbooks, compressed tables, many files."""
import gc, gzip, itertools, json, os, pathlib, subprocess, sys
import pandas as pd, psutil, pytest
from PIL import Image
from finetune_nb import data, freeze, preflight, training, vision
from finetune_nb.engine import findings, inputs, pictures, readers, tables
from conftest import tiny_bert
from test_preflight import checked, found, pets, picture

no_links = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")


# Links

def linked(top, where):
    "Images that lie elsewhere, and a folder that leads there"
    pets(top/"elsewhere", 20)
    for link, to in {"classes": [("pets/cat", "cat"), ("pets/dog", "dog")], "parts": [("pets/train", "")],
                     "files": [(f"pets/{c}/{i}.jpg", f"{c}/{i}.jpg") for c in ("cat", "dog") for i in range(20)],
                     "table": [("pets/images", "")]}[where]:
        (top/link).parent.mkdir(parents=True, exist_ok=True)
        (top/link).symlink_to(top/"elsewhere"/to, target_is_directory=where != "files")
    if where == "table":
        rows = [f"images/{c}/{i}.jpg,{c}" for c in ("cat", "dog") for i in range(20)]
        (top/"pets"/"labels.csv").write_text("\n".join(["file_name,label", *rows]))
    return top/"pets"


@no_links
@pytest.mark.parametrize("where, link", [("classes", "cat"), ("parts", "train"), ("files", "cat/0.jpg"),
                                         ("table", "images")])
def test_links_that_lead_out_are_followed_if_somebody_says_so(tmp_path, where, link):
    folder = linked(tmp_path, where)
    refused = "somewhere else, and is not followed: copy it here, .*or say --follow-links"
    if where == "table": assert not preflight.check(folder, "image").ok
    else:
        with pytest.raises(ValueError, match=f"{link}[^:]*: (link that leaves the folder: )?.*{refused}|{refused}"):
            preflight.check(folder).require()
        assert link in found(preflight.check(folder))["link that leaves the folder"][1]
    report = checked(folder, follow_links=True)
    assert report.ok and report.read == 40 and report.classes == ["cat", "dog"] and not report.findings
    data.open_image(report.inputs[0])
    assert len(preflight.inputs_in(folder, "image", follow_links=True)) == 40
    lost = [given for given in preflight.inputs_in(folder, "image") if isinstance(given, preflight.Unreadable)]
    assert len(lost) == (40 if where == "files" else 2 if where == "classes" else 1)


@no_links
def test_loops_of_links_end(tmp_path):
    folder, outside = pets(tmp_path/"pets"), pets(tmp_path/"elsewhere", 3, ("cat",))
    (folder/"cat"/"more").symlink_to(outside, target_is_directory=True)
    (outside/"up").symlink_to(tmp_path, target_is_directory=True)
    (outside/"back").symlink_to(folder, target_is_directory=True)
    (outside/"self").symlink_to(outside/"self")
    (folder/"dog"/"again").symlink_to(outside, target_is_directory=True)
    report = preflight.check(folder, follow_links=True)
    told = found(report)["link to a folder"]
    assert told == ("notes", {place: "left out: what is in that folder is read already"
                              for place in ("cat/more/back", "dog/again")})
    assert report.read == 60 + 3 and folder/"cat"/"more"/"cat"/"0.jpg" in report.inputs


@no_links
def test_the_command_follows_links(command, tmp_path):
    folder = linked(tmp_path, "classes")
    code, out, _ = command("check", folder)
    assert code == 1 and "--follow-links" in out
    code, out, _ = command("check", folder, "--follow-links", "--json")
    assert code == 0 and json.loads(out)["usable"] == 40


# Images

def telephone(top, form, ending):
    "Photographs as a telephone writes them"
    if form == "HEIF": pytest.importorskip("pillow_heif").register_heif_opener()
    for label, i in itertools.product(("cat", "dog"), range(10)):
        (top/label).mkdir(parents=True, exist_ok=True)
        picture().save(top/label/f"{i}{ending}", format=form)
    return top


@pytest.mark.parametrize("form, ending", [("HEIF", ".heic"), ("HEIF", ".heif"), ("HEIF", ".JPG"), ("AVIF", ".avif")])
def test_photographs_of_telephones_are_read(tmp_path, form, ending):
    report = checked(telephone(tmp_path/"pets", form, ending))
    assert report.ok and report.read == 20 and data.open_image(report.inputs[0]).size == (96, 72)
    assert ("ending that says otherwise" in found(report)) == (ending == ".JPG")
    torn = (tmp_path/"pets"/"cat"/f"0{ending}")
    torn.write_bytes(torn.read_bytes()[:-40])
    assert "image" in " ".join(found(preflight.check(tmp_path/"pets"))), "one that was cut off is noticed"


def test_what_heic_needs_is_said(tmp_path, monkeypatch):
    folder = telephone(tmp_path/"pets", "HEIF", ".heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None) # as if it were not installed
    monkeypatch.delitem(Image.OPEN, "HEIF")
    monkeypatch.setattr(pictures, "image_formats", pictures.image_formats.__wrapped__) # without what it has kept
    needs = "it is HEIC, which needs pillow-heif: pip install 'finetune-nb\\[heic\\]'"
    with pytest.raises(OSError, match=f"0.heic' cannot be opened .{needs}"): data.open_image(folder/"cat"/"0.heic")
    with pytest.raises(ValueError, match=needs): preflight.check(folder).require()
    (folder/"cat"/"0.heic").write_bytes(b"....ftypavif")
    assert "its bytes are no AVIF" in found(preflight.check(folder, most_bad=1))["unreadable image"][1]["cat/0.heic"]


def test_large_images_are_read_if_somebody_says_so(command, tmp_path, monkeypatch):
    folder = pets(tmp_path/"pets", 5)
    for most, size in ((6_000, "96 x 72 pixels"), (3_000, "Image size .6912 pixels.")):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        refused = f"{size}, expected at most {most:,} in all; to read it all the same, say --max-pixels"
        with pytest.raises(ValueError, match=refused): preflight.check(folder).require()
        with pytest.raises(OSError, match=refused): data.open_image(folder/"cat"/"0.jpg")
    code, out, _ = command("check", folder)
    assert code == 1 and "--max-pixels" in out and command("check", folder, "--max-pixels", 7_000)[0] == 0
    assert data.open_image(folder/"cat"/"0.jpg").size == (96, 72)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None) # as Pillow says it: no limit
    assert preflight.check(folder).ok


# Tables

def some(count=20, start=0):
    "Texts, and what they say, with a copy and a row without a text"
    rows = [(f"it is {word} {i}", label) for i in range(start, start + count)
            for word, label in (("fine", "good"), ("poor", "bad"))]
    return pd.DataFrame([*rows, ("it is fine 3", "good"), (None, "bad")], columns=["text", "label"])


def records(frame): return frame.to_json(orient="records")


def in_lines(frame): return frame.to_json(orient="records", lines=True)


WRITE = {
    ".csv": lambda frame, file: frame.to_csv(file, index=False),
    ".xlsx": lambda frame, file: frame.to_excel(file, index=False),
    ".parquet": lambda frame, file: frame.to_parquet(file),
    ".json": lambda frame, file: file.write_text(records(frame)),
    ".csv.gz": lambda frame, file: frame.to_csv(file, index=False),
    ".tsv.gz": lambda frame, file: frame.to_csv(file, index=False, sep="\t"),
    ".json.gz": lambda frame, file: file.write_bytes(gzip.compress(records(frame).encode())),
    ".jsonl.gz": lambda frame, file: file.write_bytes(gzip.compress(in_lines(frame).encode()))}
BESIDE = {".xlsx": "openpyxl", ".parquet": "pyarrow"}


def write(frame, file):
    "A table by its ending"
    ending = next(ending for ending in (*list(WRITE)[4:], *WRITE) if file.name.lower().endswith(ending))
    if ending in BESIDE: pytest.importorskip(BESIDE[ending])
    file.parent.mkdir(parents=True, exist_ok=True)
    WRITE[ending](frame, file)
    return file


def places(report): return {what: (then, len(told)) for what, (then, told) in found(report).items()}


@pytest.mark.parametrize("ending", WRITE)
@pytest.mark.parametrize("parts", [False, True])
def test_every_table_says_the_same(tmp_path, ending, parts):
    expected = write(some(), tmp_path/"plain"/"train.csv")
    table = write(some(), tmp_path/"own"/f"train{ending}")
    if parts:
        for file in (expected, table):
            write(some(5, 20), file.with_name(file.name.replace("train", "test")))
        expected, table = expected.parent, table.parent
    usual, report = checked(expected), checked(table)
    for own in ("inputs", "labels", "parts", "classes", "read", "ok"):
        assert getattr(report, own) == getattr(usual, own), own
    assert places(report) == places(usual) and report.ok == (not parts or report.ok)
    empty = next(iter(found(report)["empty text"][1]))
    counted = {"csv": "line 13", "tsv": "line 13", "xlsx": "row 13", "parquet": "row 12", "json": "entry 12",
               "jsonl": "line 12"}[ending.split(".")[1]] # of the last table, with its header where there is one
    assert empty.endswith(counted if parts else counted.replace(" 1", " 4"))
    task = data.text_table(table, most_bad=0.1)
    assert len(task.test) and task.classes == ["bad", "good"]
    texts = [given for given in preflight.inputs_in(table, "text") if isinstance(given, str)] if not parts else []
    assert parts or texts == usual.inputs


@pytest.mark.parametrize("names, counts", [
    (["part-0000.parquet", "part-0001.parquet"], {"": 80}),
    (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"],
     {"train": 80, "test": 40}),
    (["train/0.parquet", "train/1.parquet", "validation/0.parquet", "test/0.parquet"],
     {"train": 80, "validation": 40, "test": 40})])
def test_a_folder_of_parquet_files_is_one_table(tmp_path, names, counts):
    for i, name in enumerate(names): write(some(20, 20 * i).iloc[:40], tmp_path/"moods"/name)
    (tmp_path/"moods"/"_SUCCESS").touch()
    report = checked(tmp_path/"moods")
    assert report.ok and {part: report.parts.count(part) for part in counts} == counts == dict(pd.Series(
        report.parts).value_counts())


def test_parquet_files_of_which_some_say_their_part_are_asked_about(tmp_path):
    for name in ("train.parquet", "more.parquet"): write(some(), tmp_path/"moods"/name)
    with pytest.raises(ValueError, match="holds 2 tables, more.parquet, train.parquet: name one of them"):
        preflight.check(tmp_path/"moods")


def test_sheets_that_are_left_out_are_named(tmp_path):
    pytest.importorskip("openpyxl")
    with pd.ExcelWriter(tmp_path/"moods.xlsx") as book:
        for name in ("this", "last", "ever"): some().to_excel(book, sheet_name=name, index=False)
    report = checked(tmp_path/"moods.xlsx")
    (place, reason), = found(report)["other sheets"][1].items()
    assert place == "moods.xlsx" and "the first sheet is read, and 'last', 'ever' left out" in reason


torn = gzip.compress(b"text,label\n" * 99, mtime=0)[:-9]
spoilt = gzip.compress(b"", mtime=0)[:10] + b"\xff" * 40


@pytest.mark.parametrize("name, content, sentence", [
    ("a.xlsx", b"no zip", "a.xlsx cannot be read as a workbook of Excel .File is not a zip file.: write it again"),
    ("a.csv.gz", b"text,label\n", r"a.csv.gz cannot be unpacked .Not a gzipped file .*: fetch it, or write it, again"),
    ("a.csv.gz", torn, "a.csv.gz cannot be unpacked .Compressed file ended before"),
    ("a.csv.gz", spoilt, "a.csv.gz cannot be unpacked .Error -3"),
    ("a.json", b'{"text": ["a"]}', "a.json holds one dict, expected a list of records, as in "),
    ("a.json", b'[{"text": "a"},', "a.json is no JSON .Expecting value: .*, expected a list of records"),
    ("a.json", b'["a", "b"]', "a.json has no rows that can be read")])
def test_a_table_that_cannot_be_read_is_refused_in_a_sentence(tmp_path, name, content, sentence):
    if name.endswith(".xlsx"): pytest.importorskip("openpyxl")
    (tmp_path/name).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=sentence): preflight.check(tmp_path/name)


def test_what_a_workbook_needs_is_said(tmp_path, monkeypatch):
    table = write(some(), tmp_path/"moods.xlsx")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ModuleNotFoundError, match=r"moods.xlsx is a workbook of Excel, which pandas reads with .*, "
                                                  r"and that is not installed: pip install 'finetune-nb\[excel\]'"):
        preflight.check(table)


@pytest.mark.parametrize("content, is_table", [
    ('[{"text": "a"}]', True), ('\ufeff \n[ {"a": 1}]', True), ('{"a": 1}\n{"a": 2}\n', True),
    ('{"images": [{}], "annotations": []}', False), ('["cat", "dog"]', False), ('{\n "a": {\n}}', False)])
def test_json_in_a_folder_is_a_table_if_it_holds_records(tmp_path, content, is_table):
    folder = pets(tmp_path/"pets", 5)
    (folder/"about.json").write_text(content, encoding="utf-8")
    assert tables.is_table(folder/"about.json") == is_table
    report = checked(folder)
    assert report.kind == "image" and report.ok and report.read == 10


def test_records_name_images(tmp_path):
    folder = pets(tmp_path/"pets", 10, ("all",))
    rows = pd.DataFrame(dict(file_name=[f"all/{i}.jpg" for i in range(10)], label=["cat", "dog"] * 5))
    for ending in (".json", ".csv.gz", ".xlsx"):
        write(rows, table := folder/f"labels{ending}")
        report = checked(folder)
        assert report.kind == "image" and report.read == 10 and report.classes == ["cat", "dog"], ending
        table.unlink()


# More than fits into memory

@pytest.fixture
def memory():
    "Bytes of memory that this process has taken since"
    process = psutil.Process()
    def held():
        gc.collect()
        return process.memory_info().rss
    before = held()
    return lambda: held() - before


@no_links
def test_a_hundred_thousand_images_take_no_memory(tmp_path, memory):
    top, count = tmp_path/"pets", 50_000
    for label in ("cat", "dog"):
        (top/label).mkdir(parents=True)
        for i in range(10): picture((500, 500)).save(tmp_path/f"{label}{i}.jpg")
        for i in range(count): os.link(tmp_path/f"{label}{i % 10}.jpg", top/label/f"{i}.jpg")
    found = readers.reader_of(top, "image").read(inputs.Request(str(top)), "image", findings.Notes())
    assert len(found.examples) == 2 * count and memory() < 2_000 * len(found.examples), "of 750,000 bytes each"
    pictures = data.Examples([own.input for own in found.examples], [int(own.label == "dog") for own in found.examples])
    few = pictures.subset(range(0, 2 * count, 4_000))
    model = vision.classifier("resnet18-fractal", 2, image_size=32)
    freeze(model, 5)
    def learn(test): training.fit(model, data.Task("pets", "image", ["cat", "dog"], few, few, test), 1, progress=False)
    learn(few)
    with_few = memory()
    learn(pictures)
    assert memory() < with_few + 50e6, "those that nobody asks for stay on the disk"


def test_a_table_of_many_short_texts_takes_memory_by_its_rows(tmp_path, memory):
    count = 100_000 # of two million, which take twenty times as long, and as much
    rows = (f"it is fine {i},good\nit is poor {i},bad\n" for i in range(count // 2))
    (tmp_path/"moods.csv").write_text("text,label\n" + "".join(rows))
    task = data.text_table(tmp_path/"moods.csv")
    assert (len(task.train), len(task.validation), len(task.test)) == (60_000, 20_000, 20_000)
    assert memory() < 1_200 * count


rows_of_a_large_table = int(os.environ.get("ROWS", 12_000)) # two million, if somebody says so: it takes many minutes

look_twice = """
import json, sys, time
from finetune_nb import cli, data, evaluate, fit, freeze, saving, text

def run(*words):
    sys.argv = ["finetune-nb", *words]
    started = time.perf_counter()
    try: cli.main()
    except SystemExit as end: assert not end.code, end.code
    return time.perf_counter() - started

def peak(): # of this process alone, and not of the one that has started it
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

task, model = data.text_table("few.csv"), text.classifier("bert", 2)
freeze(model, 3)
saving.save("moods", model, task, fit(model, task, epochs=1, progress=False), evaluate(model, task.test))
for file in "few.csv", "many.csv":
    for words in ["check", "--backbone", "bert"], ["predict", "moods"]:
        print(json.dumps([words[0], run(*words, file), peak()]), file=sys.stderr)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="only Linux tells what a process has taken at most")
def test_the_commands_take_little_more_memory_than_the_texts(tmp_path, quiet):
    "A row of 33 letters: two objects and a few numbers of it are kept; its tokens, its answer and the file are not"
    for name, count in ("few.csv", 1_000), ("many.csv", rows_of_a_large_table):
        rows = (f"it is fine and well made {i},good\nit is poor and badly made {i},bad\n" for i in range(count // 2))
        (tmp_path/name).write_text("text,label\n" + "".join(rows))
    tiny_bert(tmp_path/"bert")
    ran = subprocess.run([sys.executable, "-c", look_twice], cwd=tmp_path, env=quiet, capture_output=True, text=True,
                         stdin=subprocess.DEVNULL)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert f"Goes on with {rows_of_a_large_table} of" in ran.stdout
    assert len(ran.stdout.split("input,class,probability\n")[-1].splitlines()) == rows_of_a_large_table
    *_, before, check, predict = [json.loads(line) for line in ran.stderr.splitlines() if line.startswith('["')]
    for what, seconds, most in check, predict: # what has been freed is taken again, so the second may need no more
        more = (most - before[2] - 12e6) / rows_of_a_large_table # what the libraries take for any table of more rows
        print(f"{what}: {rows_of_a_large_table:,} rows, {seconds:.0f} s, {most >> 20} MiB, {more:.0f} bytes more a row")
        assert more < 1_500


# What nobody means, and what everybody does

def test_what_unpacks_to_far_more_is_refused(tmp_path, monkeypatch):
    "A file of a few kilobytes may hold gigabytes of zeros"
    monkeypatch.setattr(tables, "MOST_UNPACKED", 10_000)
    write(some(), tmp_path/"moods.csv.gz")
    assert preflight.check(tmp_path/"moods.csv.gz").ok
    for name in "large.csv.gz", "large.json.gz":
        (tmp_path/name).write_bytes(gzip.compress(b"text,label\n" + b"0" * 10_000_000))
        with pytest.raises(ValueError, match=f"{name} has .* bytes, and unpacks to more than 10,000: if it is meant"):
            preflight.check(tmp_path/name)


def test_the_home_folder_may_be_written_in_short(tmp_path, monkeypatch):
    for name in "HOME", "USERPROFILE": monkeypatch.setenv(name, str(tmp_path))
    pets(tmp_path/"pets")
    write(some(), tmp_path/"moods.csv")
    report = preflight.check("~/pets")
    assert report.read == 60 and report.source == str(tmp_path/"pets")
    assert data.image_folder("~/pets").name == "pets"
    assert data.text_table("~/moods.csv", most_bad=0.1).name == "moods.csv"
    assert data.open_image("~/pets/cat/0.jpg").size == (96, 72)
    for given in "~/moods.csv", tmp_path/"moods.csv":
        assert len(preflight.inputs_in(pathlib.Path(given), "text")) == 42
    with pytest.raises(FileNotFoundError, match="no file and no folder '.*nobody"): preflight.check("~/nobody/here.csv")


def test_a_piece_is_named_with_its_folder(tmp_path):
    for part in "train", "validation", "test": write(some(), tmp_path/"moods"/part/"0.parquet")
    empty = found(preflight.check(tmp_path/"moods", most_bad=1))["empty text"][1]
    assert sorted(empty) == [f"{part}/0.parquet, row 42" for part in ("test", "train", "validation")]
    write(some(), tmp_path/"flat"/"0.parquet")
    assert list(found(preflight.check(tmp_path/"flat"))["empty text"][1]) == ["0.parquet, row 42"]
