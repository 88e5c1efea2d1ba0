"""The pre-flight: every accident of a collection has its own sentence, and nobody's file is changed."""
import io, os, struct, sys, tempfile, time, zlib
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
from finetune_nb import data, evaluate, fit, freeze, preflight, text, vision
from finetune_nb.cache import digest

noise = np.random.default_rng(0)


def picture(size=(96, 72)):
    return Image.fromarray(noise.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


def pets(folder, count=30, classes=("cat", "dog")):
    "A folder of pictures in order"
    for name in classes:
        (folder/name).mkdir(parents=True)
        for i in range(count): picture().save(folder/name/f"{i}.jpg")
    return folder


def moods(file, rows=(), count=40, header="text,label", encoding="utf-8"):
    "A table in order, and more rows"
    lines = [header, *(f"it is {word} {i},{label}" for i in range(count) for word, label in (("fine", "good"), ("poor", "bad"))), *rows]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes("\n".join(lines).encode(encoding))
    return file


def state(top): return {str(p): (p.lstat().st_mtime_ns, p.lstat().st_size, p.lstat().st_mode) for p in sorted(Path(top).rglob("*"))}


def found(report): return {f.what: (f.then, dict(f.places)) for f in report.findings}


def checked(path, **options):
    "The report, and nothing has been changed"
    before = state(Path(path).parent)
    report = preflight.check(path, progress=False, **options)
    assert state(Path(path).parent) == before
    assert report.verdict in repr(report) and report._repr_html_().count("<tr>") == 1 + len(report.findings)
    return report


def cut_short(file): file.write_bytes(file.read_bytes()[:-100])


def bomb(file, side=40_000):
    "A PNG of many pixels in a few bytes"
    def chunk(kind, data): return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))


# Images: each spoils one of 61, and is skipped

@pytest.mark.parametrize("name, spoil, what, reason", [
    ("page.jpg", lambda file: file.write_text("<html>404</html>"), "unreadable image", "its bytes are no BMP, GIF, JPEG"),
    ("zeros.png", lambda file: file.write_bytes(bytes(500)), "unreadable image", "its bytes are no BMP, GIF, JPEG"),
    ("torn.jpg", lambda file: (picture().save(file), cut_short(file)), "truncated image", "truncated"),
    ("torn.png", lambda file: (picture().save(file), cut_short(file)), "truncated image", "truncated"),
    ("torn.webp", lambda file: (picture().save(file), cut_short(file)), "truncated image", ""),
    ("torn.gif", lambda file: (picture().save(file), cut_short(file)), "truncated image", ""),
    ("torn.bmp", lambda file: (picture().save(file), cut_short(file)), "truncated image", "truncated"),
    ("torn.tif", lambda file: (picture().save(file), cut_short(file)), "truncated image", ""),
    ("nothing.png", lambda file: file.touch(), "empty file", "it has 0 bytes"),
    ("bomb.png", bomb, "decompression bomb", "Image size (1600000000 pixels) exceeds limit"),
    ("bomb.webp", lambda file: bomb(file, 10_000), "decompression bomb", "10000 x 10000 pixels, expected at most 89,478,485"),
    ("pipe.jpg", lambda file: os.mkfifo(file), "unreadable image", "it is no ordinary file"),
    ("lost.jpg", lambda file: file.symlink_to(file.with_name("gone.jpg")), "unreadable image", "it is a link that leads nowhere")],
    ids=lambda value: value if isinstance(value, str) and "." in value else "")
@pytest.mark.parametrize("thorough", [True, False], ids=["every pixel", "header and end"])
def test_a_bad_image_is_skipped_by_name(tmp_path, name, spoil, what, reason, thorough):
    folder = pets(tmp_path/"pets")
    spoil(folder/"cat"/name)
    report = checked(folder, thorough=thorough)
    then, places = found(report)[what]
    assert then == "skips" and list(places) == [f"cat/{name}"] and reason in places[f"cat/{name}"]
    assert report.ok and report.read == 61 and len(report.inputs) == 60 and report.skipped == [(f"cat/{name}", f"{what}: {places[f'cat/{name}']}")]
    task = data.image_folder(folder)
    assert sum(map(len, (task.train, task.validation, task.test))) == 60 and task.made["skipped"] == report.skipped


def test_one_picture_in_two_classes_is_in_neither(tmp_path):
    folder = pets(tmp_path/"pets")
    (folder/"dog"/"whose.jpg").write_bytes((folder/"cat"/"7.jpg").read_bytes())
    then, places = found(checked(folder))["one example in two classes"]
    assert then == "skips" and set(places) == {"cat/7.jpg", "dog/whose.jpg"} and "the same stands in cat and dog: one of them is mislabelled" in places["cat/7.jpg"]


def test_an_ending_that_lies_is_a_note(tmp_path):
    folder = pets(tmp_path/"pets")
    picture().save(folder/"cat"/"photo.png", format="WEBP")
    assert found(checked(folder))["ending that says otherwise"] == ("notes", {"cat/photo.png": "it is a WEBP, and is read as one"})


def test_only_formats_that_we_name_are_opened(tmp_path):
    "PostScript is a program: Pillow would start an interpreter for it"
    folder = pets(tmp_path/"pets")
    picture().save(folder/"cat"/"drawing.png", format="EPS")
    assert "unreadable image" in found(checked(folder))
    with pytest.raises(OSError, match="drawing.png' cannot be opened"): data.open_image(folder/"cat"/"drawing.png")


@pytest.mark.parametrize("many, ok", [(3, True), (4, False)])
def test_a_few_are_skipped_and_many_stop(tmp_path, many, ok):
    folder = pets(tmp_path/"pets")
    for i in range(many): cut_short(folder/"dog"/f"{i}.jpg")
    report = checked(folder)
    assert report.ok is ok and len(report.skipped) == many, "5 % of 60 are 3"
    if not ok:
        with pytest.raises(ValueError, match=r"4 of 60 examples \(6.7%\) cannot be used, and at most 5% may be: dog/0.jpg \(truncated image.* and 3 more"): data.image_folder(folder)
        assert len(data.image_folder(folder, most_bad=0.1).made["skipped"]) == 4


def test_copies_are_kept_on_one_side(tmp_path):
    folder = pets(tmp_path/"pets")
    for i in range(8):
        (folder/"cat"/f"copy of {i}.jpg").write_bytes((folder/"cat"/f"{i}.jpg").read_bytes())
        Image.open(folder/"dog"/f"{i}.jpg").resize((48, 36)).save(folder/"dog"/f"small {i}.png")
    notes = found(checked(folder))
    assert set(notes["copy"][1]) == {f"cat/copy of {i}.jpg" for i in range(8)} and "the same as cat/3.jpg" in notes["copy"][1]["cat/copy of 3.jpg"]
    assert set(notes["near copy"][1]) == {f"dog/small {i}.png" for i in range(8)} and "it looks like dog/3.jpg" in notes["near copy"][1]["dog/small 3.png"]
    for seed in range(10):
        task = data.image_folder(folder, seed=seed)
        stems = [{(f.parent.name, f.stem.split()[-1]) for f in part.inputs} for part in (task.train, task.validation, task.test)]
        assert not (stems[0] & stems[1] or stems[0] & stems[2] or stems[1] & stems[2])


def test_a_copy_in_two_parts_is_taken_from_the_lower_one(tmp_path):
    for part in ("train", "val", "test"): pets(tmp_path/"pets"/part, 20)
    (tmp_path/"pets"/"train"/"cat"/"seen.jpg").write_bytes((tmp_path/"pets"/"test"/"cat"/"3.jpg").read_bytes())
    Image.open(tmp_path/"pets"/"test"/"dog"/"4.jpg").save(tmp_path/"pets"/"train"/"dog"/"nearly.jpg", quality=50)
    notes = found(checked(tmp_path/"pets"))
    assert notes["copy in two parts"] == ("skips", {"train/cat/seen.jpg": "it is in train, and as test/cat/3.jpg in test, which keeps it"})
    (place, reason), = notes["near copy in two parts"][1].items()
    assert {place, *reason.split(", ")[:1]} <= {"train/dog/nearly.jpg", "it looks like test/dog/4.jpg", "test/dog/4.jpg", "it looks like train/dog/nearly.jpg"} and "flatters" in reason


def test_pictures_that_all_look_alike_can_still_be_split(tmp_path):
    "A camera on a tripod: near copies cannot be kept apart, and the report says so"
    folder = pets(tmp_path/"pets", 10, ("dog",))
    (folder/"cat").mkdir()
    scene = np.asarray(picture()).astype(int)
    for i in range(10): Image.fromarray((scene + noise.integers(-2, 3, scene.shape)).clip(0, 255).astype(np.uint8)).save(folder/"cat"/f"{i}.png")
    assert found(checked(folder))["class of near copies"][0] == "notes"
    assert len(data.image_folder(folder).test) == 4


# Folders

def test_a_folder_with_no_classes_stops(tmp_path):
    for i in range(3): picture().save(tmp_path/f"{i}.jpg")
    report = checked(tmp_path)
    assert not report.ok and found(report)["no classes"][0] == "stops" and found(report)["image in no class"][1] == {"0.jpg": "3 left out: they lie beside the class folders, in none of them"}
    with pytest.raises(ValueError, match="has images in it, expected a folder for each class, as in cat/1.jpg"): data.image_folder(tmp_path)


def test_a_folder_one_level_too_deep_says_which_to_give(tmp_path):
    pets(tmp_path/"download"/"pets", 5)
    with pytest.raises(ValueError, match="pets: it is the only folder with images, and holds them in 2 folders: if these are the classes, give .*download/pets'"): data.image_folder(tmp_path/"download")
    assert data.image_folder(tmp_path/"download"/"pets").classes == ["cat", "dog"]


def test_hidden_system_and_other_files_are_left_out(tmp_path):
    folder = pets(tmp_path/"pets")
    for name in ("cat/.DS_Store", "cat/Thumbs.db", "cat/._0.jpg", "dog/notes.md"): (folder/name).write_bytes(b"not yours")
    pets(folder, 2, (".trash", "__MACOSX"))
    picture().save(folder/"cat"/"_DSC1.jpg")
    report = checked(folder)
    assert report.ok and report.classes == ["cat", "dog"] and report.read == 61, "a camera's _DSC1.jpg is an example"
    assert set(found(report)["hidden or system file"][1]) == {"cat/.DS_Store", "cat/Thumbs.db", "cat/._0.jpg", ".trash", "__MACOSX"} and set(found(report)["other file"][1]) == {"dog/notes.md"}


def test_a_folder_beside_the_parts_is_mentioned(tmp_path):
    for part in ("train", "test"): pets(tmp_path/part, 5)
    pets(tmp_path, 3, ("extra",))
    assert found(checked(tmp_path))["folder beside the parts"][1] == {"extra": "left out: with a `train` folder, classes are looked for in the parts alone"}


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_links_are_followed_inside_only(tmp_path):
    folder, outside = pets(tmp_path/"pets"), pets(tmp_path/"elsewhere", 3)
    (folder/"cat"/"inside.jpg").symlink_to(folder/"cat"/"0.jpg")
    (folder/"cat"/"outside.jpg").symlink_to(outside/"cat"/"0.jpg")
    (folder/"cat"/"round").symlink_to(folder, target_is_directory=True)
    report = checked(folder)
    assert report.ok and found(report)["link that leaves the folder"] == ("skips", {"cat/outside.jpg": "it is a file somewhere else, and is not followed"})
    assert "cat/inside.jpg" in found(report)["copy"][1] or "cat/0.jpg" in found(report)["copy"][1]
    (folder/"dog"/"more").symlink_to(folder/"cat", target_is_directory=True)
    assert found(checked(folder))["link to a folder"] == ("stops", {"dog/more": "it is not followed: copy the folder here"})
    assert [lost.place for lost in preflight.inputs_in(folder, "image") if isinstance(lost, preflight.Unreadable)] == [str(folder/"dog"/"more"), str(folder/"cat"/"outside.jpg")]
    (folder/"dog"/"more").unlink()
    (folder/"bird").symlink_to(outside/"cat", target_is_directory=True)
    with pytest.raises(ValueError, match="bird: it is a folder somewhere else, and is not followed: copy it here"): data.image_folder(folder)


@pytest.fixture
def guarded(monkeypatch):
    "A folder that others may read, and a way to become one of them, where we are root: root may read everything"
    if sys.platform == "win32": pytest.skip("permissions are another thing there")
    before = os.umask(0o022)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        try: yield Path(folder), lambda: os.geteuid() or os.seteuid(65534)
        finally:
            if os.getuid() == 0: os.seteuid(0)
            os.umask(before)


def test_what_may_not_be_read_is_named(guarded):
    top, become_another = guarded
    folder, table = pets(top/"pets"), moods(top/"moods.csv")
    (folder/"cat"/"3.jpg").chmod(0)
    table.chmod(0)
    become_another()
    report = preflight.check(folder, progress=False)
    assert report.ok and found(report)["no permission"] == ("skips", {"cat/3.jpg": "this user may not read it"})
    with pytest.raises(OSError, match="moods.csv' cannot be read .*: check that this user may read it"): preflight.check(table)


def test_a_folder_that_may_not_be_listed_stops(guarded):
    top, become_another = guarded
    folder = pets(top/"pets", 5, ("cat", "dog", "secret"))
    (folder/"secret").chmod(0)
    become_another()
    report = preflight.check(folder, progress=False)
    assert not report.ok and found(report)["folder without permission"] == ("stops", {"secret": "this user may not list it, so nobody knows what is in it"})


def test_there_is_nothing_by_that_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder .*nowhere"): preflight.check(tmp_path/"nowhere", "image")
    with pytest.raises(FileNotFoundError, match="There is no file and no folder .*nowhere.csv'"): preflight.check(tmp_path/"nowhere.csv")
    with pytest.raises(ValueError, match="pets.docx is no table that we know: expected .csv, .jsonl"): (tmp_path/"pets.docx").touch(); preflight.check(tmp_path/"pets.docx")
    with pytest.raises(ValueError, match="most_bad must be between 0 and 1"): preflight.check(tmp_path, most_bad=2)
    with pytest.raises(ValueError, match='kind must be "image" or "text"'): preflight.check(tmp_path, "sound")


# Classes

def test_one_class_stops(tmp_path):
    assert found(checked(pets(tmp_path/"pets", 5, ("cat",))))["one class"] == ("stops", {"cat": "it is the only class, expected at least two, or there is nothing to tell apart"})
    table = tmp_path/"one.csv"
    table.write_text("text,label\n" + "".join(f"so {i},yes\n" for i in range(9)))
    assert "one class" in found(checked(table))


@pytest.mark.parametrize("given, count, sentence", [
    ((), 1, "it has 1 training example, expected at least 3"), ((), 2, "it has 2 training examples, expected at least 3"),
    (("train", "test"), 1, "it has 1 training example, expected at least 2"), (("train", "val", "test"), 1, None)])
def test_a_class_with_one_example_stops_unless_it_need_not_be_split(tmp_path, given, count, sentence):
    for part in given or ("",):
        pets(tmp_path/"pets"/part, 5)
        pets(tmp_path/"pets"/part, count, ("emu",))
    report = checked(tmp_path/"pets")
    if sentence is None: assert report.ok
    else: assert not report.ok and sentence in found(report)["class with too few examples"][1]["emu"]


def test_copies_do_not_count_as_examples(tmp_path):
    folder = pets(tmp_path/"pets", 5, ("cat", "emu"))
    for i in range(1, 5): (folder/"emu"/f"{i}.jpg").write_bytes((folder/"emu"/"0.jpg").read_bytes())
    assert "it has 1 training example that are no copies" in found(checked(folder))["class with too few examples"][1]["emu"]


def test_a_label_seen_in_validation_only_stops(tmp_path):
    pets(tmp_path/"train", 5); pets(tmp_path/"val", 5, ("cat", "dog", "emu"))
    then, places = found(checked(tmp_path))["class without training examples"]
    assert then == "stops" and places == {"emu": "it is seen in validation only, and nobody can learn it; the training part knows cat, dog"}
    pets(tmp_path/"train", 5, ("emu", "fox"))
    report = checked(tmp_path)
    assert report.ok and found(report)["class that is not judged"] == ("notes", {"fox": "validation has no example of it"})


def test_extreme_imbalance_is_a_note(tmp_path):
    table = tmp_path/"rare.csv"
    table.write_text("text,label\n" + "".join(f"all is well {i},fine\n" for i in range(100)) + "".join(f"alarm {i},fire\n" for i in range(4)))
    then, places = found(checked(table))["unequal classes"]
    assert then == "notes" and "4 training examples, and 100 of fine" in places["fire"] and "right 96% of the time" in places["fire"]


# Texts

@pytest.mark.parametrize("row, what, reason", [
    ("only one", "row with too few fields", "1 fields, the header has 2"), ("one,two,three", "row with too many fields", "3 fields, the header has 2"),
    (" ,good", "empty text", "there is nothing to read"), ("a text,", "missing label", "nobody says which class"),
    ("not writ\0\0,good", "NUL characters", "the text holds bytes of value 0")])
def test_a_bad_row_is_skipped_by_its_line(tmp_path, row, what, reason):
    report = checked(moods(tmp_path/"moods.csv", [row]))
    then, places = found(report)[what]
    assert report.ok and then == "skips" and list(places) == ["moods.csv, line 82"] and reason in places["moods.csv, line 82"] and len(report.inputs) == 80


@pytest.mark.parametrize("line, what", [('{"text": "a", "label": ', "line that is no JSON object"), ('["a", "b"]', "line that is no JSON object"), ('{"label": "good"}', "empty text"),
                                        ('{"text": null, "label": "good"}', "empty text"), ('{"text": "a", "label": null}', "missing label"), ('{"text": 3, "label": "good"}', "text that is no text"),
                                        ('{"text": "a", "label": ["good"]}', "label that is no name or number"), (r'{"text": "\ud800", "label": "good"}', "broken characters"),
                                        (r'{"text": "a\u0000", "label": "good"}', "NUL characters"), ("[" * 100_000, "line that is no JSON object")], ids=range(10))
def test_a_bad_line_of_json_is_skipped(tmp_path, line, what):
    file = tmp_path/"moods.jsonl"
    file.write_text("".join(f'{{"text": "it is {word} {i}", "label": "{label}"}}\n' for i in range(20) for word, label in (("fine", "good"), ("poor", "bad"))) + line + "\n")
    report = checked(file)
    assert report.ok and found(report)[what] == ("skips", found(report)[what][1]) and list(found(report)[what][1]) == ["moods.jsonl, line 41"] and report.classes == ["bad", "good"]


@pytest.mark.parametrize("encoding, what", [("cp1252", "other encoding"), ("utf-8-sig", "byte order mark"), ("utf-16", "byte order mark"), ("utf-8", None)])
def test_other_encodings_are_read_and_named(tmp_path, encoding, what):
    report = checked(moods(tmp_path/"moods.csv", ["schöne Grüße aus Köln, Übermut tut selten gut,good".replace(", ", " ")], encoding=encoding))
    assert report.ok and "schöne Grüße aus Köln Übermut tut selten gut" in report.inputs
    assert set(found(report)) == ({what} if what else set()) and (what is None or found(report)[what][0] == "notes")


def test_an_encoding_that_is_named_is_used(tmp_path):
    "In a short file a guess may be wrong: 日本 in Shift JIS is also something in other encodings"
    table, rows = tmp_path/"moods.csv", [f"日本の{i},良" for i in range(5)] + [f"天気 {i},悪" for i in range(5)]
    table.write_bytes("\n".join(["text,label", *rows]).encode("shift_jis"))
    report = checked(table, encoding="shift_jis")
    assert report.classes == sorted(["良", "悪"]) and "日本の3" in report.inputs and not report.findings
    assert data.text_table(table, encoding="Shift-JIS").classes == report.classes
    assert preflight.inputs_in(table, "text", encoding="shift_jis")[0] == "日本の0"
    with pytest.raises(ValueError, match="moods.csv is not in the encoding ascii: leave it out"): preflight.check(table, encoding="ascii")
    with pytest.raises(ValueError, match="encoding must be one that Python knows, .* got 'klingon'"): preflight.check(table, encoding="klingon")
    assert "日本の3" in checked(moods(tmp_path/"marked.csv", ["日本の3,good"], encoding="utf-8-sig"), encoding="utf-8").inputs, "a mark at the beginning is no part of the first column's name"
    for label in ("good", "bad"):
        (tmp_path/"files"/label).mkdir(parents=True)
        for i in range(20): (tmp_path/"files"/label/f"{i}.txt").write_bytes(f"schön {label} {i}".encode("cp850"))
    (tmp_path/"files"/"bad"/"other.txt").write_bytes("日本".encode("utf-16-le") + b"\x81")
    assert "schön good 3" in checked(tmp_path/"files", encoding="cp850").inputs
    assert found(checked(tmp_path/"files", encoding="utf-8", most_bad=1))["no text"][1]["bad/3.txt"] == "its bytes are no letters in utf-8"


def test_a_table_that_is_no_text_or_not_closed_is_refused(tmp_path):
    (tmp_path/"binary.csv").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(ValueError, match="binary.csv is no text in any encoding"): preflight.check(tmp_path/"binary.csv")
    with pytest.raises(ValueError, match="cannot be read as a table from line .*: most often a quotation mark"): preflight.check(moods(tmp_path/"open.csv", ['"and so,good']))
    (tmp_path/"empty.csv").touch()
    with pytest.raises(ValueError, match="empty.csv has no rows that can be read below its columns"): preflight.check(tmp_path/"empty.csv")


def test_the_line_of_an_open_quotation_mark_is_named_and_long_texts_are_read(tmp_path):
    rows = [f"a day number {i},good" for i in range(4)] + ['"and so,good'] + ["a night,bad"] * 900
    with pytest.raises(ValueError, match="cannot be read as a table from line 6 on"): preflight.check(moods(tmp_path/"open.csv", rows, count=0))
    book = "it was a long day and a good one " * 5000
    assert book.strip() in [words.strip() for words in checked(moods(tmp_path/"book.csv", [f"{book},good"])).inputs]


def test_a_row_of_no_part_is_skipped_and_the_parts_are_kept(tmp_path):
    rows = [f"{label} number {i} of {part},{label},{part}" for part in ("train", "validation", "test") for i in range(20) for label in ("good", "bad")]
    report = checked(moods(tmp_path/"parts.csv", [*rows, "one more,good,unlabelled"], count=0, header="text,label,split"))
    assert set(report.parts) == {"train", "validation", "test"} and report.ok
    assert found(report)["row of no part"] == ("skips", {"parts.csv, line 122": "its split is 'unlabelled', and not train, validation or test"})


def test_damaged_exif_costs_no_picture(tmp_path):
    folder = pets(tmp_path/"pets")
    picture().save(folder/"cat"/"odd.jpg", dpi=(72, 72), exif=b"Exif\0\0garbagegarbage")
    assert checked(folder).ok and preflight.open_image(folder/"cat"/"odd.jpg").size == (96, 72)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other file systems refuse such a name")
def test_a_class_whose_name_is_no_text_stops(tmp_path):
    folder = pets(tmp_path/"pets")
    os.rename(os.fsencode(folder/"cat"), os.fsencode(folder) + b"/caf\xe9")
    assert found(checked(folder))["folder name that is no text"][0] == "stops"


def test_copies_among_texts(tmp_path):
    table = tmp_path/"moods.csv"
    rows = [f"it is {word} {i},{label},{part}" for part, n in (("train", 20), ("test", 5)) for i in range(n) for word, label in ((f"fine {part}", "good"), (f"poor {part}", "bad"))]
    table.write_text("\n".join(["text,label,split", *rows, "It IS  fine test 3,good,train", "so so,good,train", "so so,bad,train"]))
    report = checked(table, most_bad=0.1)
    assert found(report)["copy in two parts"][1] == {"moods.csv, line 52": "it is in train, and as moods.csv, line 48 in test, which keeps it"}
    assert set(found(report)["one example in two classes"][1]) == {"moods.csv, line 53", "moods.csv, line 54"}
    task = data.text_table(table, most_bad=0.1)
    assert len(task.test) == 10 and len(task.train) + len(task.validation) == 40 and task.made["given"] == ["test", "train"]


def test_texts_longer_than_the_model_reads(tmp_path):
    model = text.classifier("minilm", 2, max_length=16)
    report = checked(moods(tmp_path/"moods.csv", ["word " * 100 + ",good"])).measure_texts(model)
    (f,) = [f for f in report.findings if f.what == "text longer than the model reads"]
    assert f.then == "notes" and "1 of 81 texts have more than 16 tokens, the longest 102: " in f.places[0][1] and "% of all tokens are cut" in f.places[0][1]
    assert not checked(moods(tmp_path/"short.csv")).measure_texts(model).findings


def test_a_folder_of_text_files(tmp_path):
    for label, word in (("good", "fine"), ("bad", "poor")):
        (tmp_path/"moods"/label).mkdir(parents=True)
        for i in range(20): (tmp_path/"moods"/label/f"{i}.txt").write_text(f"it is {word} {i}", encoding="utf-8")
    (tmp_path/"moods"/"good"/"none.txt").write_text(" \n")
    (tmp_path/"moods"/"bad"/"binary.txt").write_bytes(b"\0\xff\0\xfa" * 9)
    report = checked(tmp_path/"moods")
    assert report.kind == "text" and report.ok and report.classes == ["bad", "good"] and set(dict(report.skipped)) == {"good/none.txt", "bad/binary.txt"}
    assert len(data.text_table(tmp_path/"moods").test) == 8


@pytest.mark.parametrize("ending, write", [
    ("csv", lambda frame, file: frame.to_csv(file, index=False)), ("csv", lambda frame, file: frame.to_csv(file, index=False, sep=";")), ("tsv", lambda frame, file: frame.to_csv(file, index=False, sep="\t")),
    ("jsonl", lambda frame, file: frame.to_json(file, orient="records", lines=True)), ("parquet", lambda frame, file: (pytest.importorskip("pyarrow"), frame.to_parquet(file)))],
    ids=["comma", "semicolon", "tab", "jsonl", "parquet"])
@pytest.mark.parametrize("columns, options", [(("review", "sentiment"), {}), (("review", "stars"), {}), (("note", "label"), {}), (("a", "b"), dict(text_column="a", label_column="b")), (("label", "text"), dict(text_column="label", label_column="text"))])
def test_every_kind_of_table(tmp_path, ending, write, columns, options):
    frame = pd.DataFrame({columns[0]: [f'it is, say "{word}",\n{i}' for i in range(10) for word in ("fine", "poor")], columns[1]: [1, 0] * 10})
    write(frame, file := tmp_path/f"moods.{ending}")
    task = data.text_table(file, **options)
    assert task.kind == "text" and task.classes == ["0", "1"] and set(task.train.inputs) < set(frame[columns[0]])
    assert all(("fine" in words) == (label == 1) for part in (task.train, task.validation, task.test) for words, label in zip(part.inputs, part.labels.tolist()))


def test_columns_that_are_not_clear_are_asked_for(tmp_path):
    table = moods(tmp_path/"moods.csv", header="a,b")
    with pytest.raises(ValueError, match="Which columns of moods.csv are the text and the label is not clear. It has 'a', 'b'; its first row is a='it is fine 0', b='good'. Say --text-column"): data.text_table(table)
    with pytest.raises(ValueError, match="text_column='words' is no column in moods.csv, which has 'a', 'b'"): data.text_table(table, "words")


def test_parts_in_files(tmp_path):
    for part, count in (("train", 10), ("valid", 4), ("test", 3)):
        (tmp_path/f"{part}.csv").write_text("text,label\n" + "".join(f"{part} {label} {i},{label}\n" for i in range(count) for label in ("yes", "no")))
    task = data.text_table(tmp_path)
    assert [len(part) for part in (task.train, task.validation, task.test)] == [20, 8, 6]
    moods(tmp_path/"other.csv")
    with pytest.raises(ValueError, match="holds 4 tables, other.csv, test.csv, .*: name one of them, or call them train"): data.text_table(tmp_path)


def without(monkeypatch, *names):
    "As if these packages were not installed"
    for name in [n for n in sys.modules if n.split(".")[0] in names]: monkeypatch.delitem(sys.modules, name)
    for name in names: monkeypatch.setitem(sys.modules, name, None)


def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path/"moods.parquet").write_bytes(b"PAR1")
    without(monkeypatch, "pyarrow", "fastparquet", "datasets")
    with pytest.raises(ModuleNotFoundError, match=r"moods.parquet is a Parquet file, .*: pip install 'finetune-nb\[datasets\]'"): data.text_table(tmp_path/"moods.parquet")
    with pytest.raises(ModuleNotFoundError, match=r"'imdb' is a dataset of Hugging Face, or nothing that we know; .*: pip install 'finetune-nb\[datasets\]'"): data.from_datasets("imdb")


def test_a_damaged_parquet_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path/"moods.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(OSError, match="moods.parquet cannot be read as Parquet"): data.text_table(tmp_path/"moods.parquet")


def test_a_dataset_of_hugging_face(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(dict(idx=datasets.Value("int32"), sentence=datasets.Value("string"), label=datasets.ClassLabel(names=["poor", "fine"])))
    def rows(n, part): return datasets.Dataset.from_dict(dict(idx=range(n), sentence=[f"{part} {('poor', 'fine')[i % 2]} {i}" for i in range(n)], label=[i % 2 for i in range(n)]), features=features)
    datasets.DatasetDict(train=rows(20, "train"), validation=rows(6, "validation"), unsupervised=rows(4, "more")).save_to_disk(tmp_path/"saved")
    task = data.from_datasets(str(tmp_path/"saved"))
    assert task.classes == ["fine", "poor"] and len(task.validation) == 6 and len(task.train) + len(task.test) == 20
    assert all(task.classes[label] in words for words, label in zip(task.train.inputs, task.train.labels))
    assert found(preflight.check(tmp_path/"saved"))["other split"][1]["unsupervised"].startswith("left out")
    rows(20, "all").save_to_disk(tmp_path/"single")
    assert len(data.text_table(tmp_path/"single").test) == 4
    monkeypatch.setattr(datasets, "load_dataset", lambda *name: {("glue", "sst2"): datasets.DatasetDict(train=rows(20, "train"))}[name])
    assert data.from_datasets("glue:sst2").num_classes == 2
    with pytest.raises(OSError, match="The dataset 'nobody/knows' can neither be read as a folder .* nor found on the Hub"): data.from_datasets("nobody/knows")


def image_bytes(image, ending="PNG"):
    image.save(file := io.BytesIO(), ending)
    return file.getvalue()


@pytest.fixture
def image_dataset():
    "Makes rows of a dataset: pictures of two kinds, and more pictures as bytes"
    datasets = pytest.importorskip("datasets")
    def make(count, label=None, more=()):
        features = datasets.Features(dict(id=datasets.Value("int64"), image=datasets.Image(), species=label or datasets.ClassLabel(names=["cat", "dog"])))
        named = isinstance(features["species"], datasets.ClassLabel)
        pictures = [(image_bytes(picture(), ("PNG", "JPEG")[i % 2]), i % 2 if named else ("cat", "dog")[i % 2]) for i in range(count)]
        rows = [*pictures, *more]
        return datasets.Dataset.from_dict(dict(id=range(len(rows)), image=[None if image is None else dict(bytes=image, path=None) for image, _ in rows], species=[label for _, label in rows]), features=features)
    return make


def test_a_dataset_of_images(tmp_path, image_dataset):
    import datasets
    turned = Image.Exif(); turned[0x0112] = 6
    picture((70, 40)).save(upright := io.BytesIO(), "JPEG", exif=turned)
    datasets.DatasetDict(train=image_dataset(30, more=[(upright.getvalue(), 0)]), test=image_dataset(10), extra=image_dataset(2)).save_to_disk(tmp_path/"pets")
    report = checked(tmp_path/"pets")
    assert report.kind == "image" and report.ok and report.read == 41 and found(report)["other split"][1] == {"extra": "left out: it is none of " + ", ".join(preflight._part_of)}
    task = data.from_datasets(str(tmp_path/"pets"))
    assert (task.kind, task.classes, len(task.test), len(task.train) + len(task.validation)) == ("image", ["cat", "dog"], 10, 31) and task.made["given"] == ["test", "train"]
    last = report.inputs[30]
    assert data.open_image(last).size == (40, 70) and last.convert("RGB").size == (40, 70) and np.asarray(last).shape == (70, 40, 3) and str(last) == "train, row 31"
    assert data.image_folder(tmp_path/"pets").classes == task.classes
    again = data.from_datasets(str(tmp_path/"pets"))
    assert digest(task.train.inputs) == digest(again.train.inputs) != digest(task.validation.inputs), "what the frozen blocks gave is found again by content"


def test_a_model_learns_from_a_dataset_of_images(tmp_path, image_dataset):
    datasets = pytest.importorskip("datasets")
    image_dataset(24, datasets.Value("string")).save_to_disk(tmp_path/"pets")
    task = data.from_datasets(str(tmp_path/"pets"), label_column="species", labels_per_class=4)
    assert task.classes == ["cat", "dog"] and len(task.train) == 8
    model = vision.classifier("resnet18-fractal", 2, image_size=32)
    freeze(model, 5)
    assert len(fit(model, task, epochs=1, progress=False).epochs) == 1 and 0 <= evaluate(model, task.test).accuracy <= 1
    assert 0 <= data.baseline(task).accuracy <= 1


def test_bad_images_of_a_dataset_are_skipped_by_row(tmp_path, image_dataset):
    seen = image_bytes(picture())
    image_dataset(80, more=[(seen[:-50], 0), (b"<html>404</html>", 1), (None, 1), (image_bytes(picture()), -1), (seen, 0), (seen, 1)]).save_to_disk(tmp_path/"pets")
    report = checked(tmp_path/"pets", most_bad=0.1)
    assert {what: list(places) for what, (then, places) in found(report).items() if then == "skips"} == {
        "missing label": ["pets, row 84"], "truncated image": ["pets, row 81"], "unreadable image": ["pets, row 82"], "missing image": ["pets, row 83"],
        "one example in two classes": ["pets, row 85", "pets, row 86"]}
    with pytest.raises(ValueError, match=r"6 of 86 examples \(7.0%\) cannot be used"): data.from_datasets(str(tmp_path/"pets"))
    assert data.from_datasets(str(tmp_path/"pets"), most_bad=0.1).made["skipped"] == report.skipped


def test_what_a_dataset_lacks_is_said(tmp_path, image_dataset):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict(dict(text=["a", "b"] * 4, label=["x", "y"] * 4)).save_to_disk(tmp_path/"texts")
    with pytest.raises(ValueError, match="has no column of images, only 'text', 'label': for texts, say text"): data.image_folder(tmp_path/"texts")
    datasets.concatenate_datasets([image_dataset(8), image_dataset(8).select_columns("image").rename_column("image", "second")], axis=1).save_to_disk(tmp_path/"twice")
    with pytest.raises(ValueError, match="has several columns of images, 'image', 'second': leave one of them"): preflight.check(tmp_path/"twice")
    image_dataset(8).save_to_disk(tmp_path/"pets")
    with pytest.raises(ValueError, match="label_column='breed' is no column in .*, which has 'image', 'id', 'species'"): data.from_datasets(str(tmp_path/"pets"), label_column="breed")
    image_dataset(8, datasets.Value("string")).save_to_disk(tmp_path/"unclear")
    with pytest.raises(ValueError, match=r"Which column of .* is the label is not clear. It has 'image', 'id', 'species'; .* Say --label-column \(label_column=\)"): data.from_datasets(str(tmp_path/"unclear"))


def test_a_large_folder_is_scanned_at_a_rate_of_100_000_a_minute(tmp_path, capsys):
    "20,000 files, the processor's time, whatever else it does meanwhile; one is cut off, and a bar shows how far it is"
    for label in ("cat", "dog"):
        (tmp_path/label).mkdir()
        for i in range(20):
            picture((500, 375)).save(tmp_path/label/f"{i}.jpg")
            for j in range(500): os.link(tmp_path/label/f"{i}.jpg", tmp_path/label/f"{i}-{j}.jpg")
    cut_short((picture().save(torn := tmp_path/"cat"/"torn.jpg"), torn)[1])
    started = time.process_time()
    report = preflight.check(tmp_path)
    assert time.process_time() - started < 12
    assert "Checking images: 100%" in capsys.readouterr().err
    assert dict(report.skipped).keys() == {"cat/torn.jpg"} and report.read == 20 * 2 * 501 + 1 and len(set(report.groups)) == 40
    assert "of 20,041 images the header and the end were read, not every pixel" in found(report)["large folder"][1][str(tmp_path)]
