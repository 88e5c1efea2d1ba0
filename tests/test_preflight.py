"""The pre-flight: every accident of a collection has its own sentence, and nobody's file is changed."""
import io, json, os, struct, sys, tempfile, time, zlib
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
from finetune_nb import data, evaluate, fit, freeze, preflight, text, vision
from finetune_nb.cache import digest
from finetune_nb.engine import findings, readers
from finetune_nb.engine.targets import TARGET_KINDS, Columns, targets_of

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
    words = (("fine", "good"), ("poor", "bad"))
    lines = [header, *(f"it is {word} {i},{label}" for i in range(count) for word, label in words), *rows]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes("\n".join(lines).encode(encoding))
    return file


def state(top):
    return {str(p): (p.lstat().st_mtime_ns, p.lstat().st_size, p.lstat().st_mode) for p in sorted(Path(top).rglob("*"))}


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
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))


# Images: each spoils one of 61, and is skipped

@pytest.mark.parametrize("name, spoil, what, reason", [
    ("page.jpg", lambda file: file.write_text("<html>404</html>"),
     "unreadable image", "its bytes are no AVIF, BMP, GIF"),
    ("zeros.png", lambda file: file.write_bytes(bytes(500)), "unreadable image", "its bytes are no AVIF, BMP, GIF"),
    ("torn.jpg", lambda file: (picture().save(file), cut_short(file)), "truncated image", "truncated"),
    ("torn.png", lambda file: (picture().save(file), cut_short(file)), "truncated image", "truncated"),
    ("torn.webp", lambda file: (picture().save(file), cut_short(file)), "truncated image", ""),
    ("torn.gif", lambda file: (picture().save(file), cut_short(file)), "truncated image", ""),
    ("torn.bmp", lambda file: (picture().save(file), cut_short(file)), "truncated image", "truncated"),
    ("torn.tif", lambda file: (picture().save(file), cut_short(file)), "truncated image", ""),
    ("nothing.png", lambda file: file.touch(), "empty file", "it has 0 bytes"),
    ("bomb.png", bomb, "decompression bomb", "Image size (1600000000 pixels), expected at most 89,478,485 in all"),
    ("bomb.webp", lambda file: bomb(file, 10_000),
     "decompression bomb", "10000 x 10000 pixels, expected at most 89,478,485"),
    ("pipe.jpg", lambda file: os.mkfifo(file), "unreadable image", "it is no ordinary file"),
    ("lost.jpg", lambda file: file.symlink_to(file.with_name("gone.jpg")),
     "unreadable image", "it is a link that leads nowhere")],
    ids=lambda value: value if isinstance(value, str) and "." in value else "")
@pytest.mark.parametrize("thorough", [True, False], ids=["every pixel", "header and end"])
def test_a_bad_image_is_skipped_by_name(tmp_path, name, spoil, what, reason, thorough):
    folder = pets(tmp_path/"pets")
    spoil(folder/"cat"/name)
    report = checked(folder, thorough=thorough)
    then, places = found(report)[what]
    assert then == "skips" and list(places) == [f"cat/{name}"] and reason in places[f"cat/{name}"]
    assert report.ok
    assert report.read == 61
    assert len(report.inputs) == 60
    assert report.skipped == [(f"cat/{name}", f"{what}: {places[f'cat/{name}']}")]
    task = data.image_folder(folder)
    assert sum(map(len, (task.train, task.validation, task.test))) == 60 and task.made["skipped"] == report.skipped


def test_one_picture_in_two_classes_is_in_neither(tmp_path):
    folder = pets(tmp_path/"pets")
    (folder/"dog"/"whose.jpg").write_bytes((folder/"cat"/"7.jpg").read_bytes())
    then, places = found(checked(folder))["one example in two classes"]
    assert then == "skips"
    assert set(places) == {"cat/7.jpg", "dog/whose.jpg"}
    assert "the same stands in cat and dog: one of them is mislabelled" in places["cat/7.jpg"]


def test_an_ending_that_lies_is_a_note(tmp_path):
    folder = pets(tmp_path/"pets")
    picture().save(folder/"cat"/"photo.png", format="WEBP")
    seen = found(checked(folder))["ending that says otherwise"]
    assert seen == ("notes", {"cat/photo.png": "its format is WEBP, and is read as that"})


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
        too_many = (r"4 of 60 examples \(6.7%\) cannot be used, and at most 5% may be: "
                    r"dog/0.jpg \(truncated image.* and 3 more")
        with pytest.raises(ValueError, match=too_many):
            data.image_folder(folder)
        assert len(data.image_folder(folder, most_bad=0.1).made["skipped"]) == 4


def test_copies_are_kept_on_one_side(tmp_path):
    folder = pets(tmp_path/"pets")
    for i in range(8):
        (folder/"cat"/f"copy of {i}.jpg").write_bytes((folder/"cat"/f"{i}.jpg").read_bytes())
        Image.open(folder/"dog"/f"{i}.jpg").resize((48, 36)).save(folder/"dog"/f"small {i}.png")
    notes = found(checked(folder))
    assert set(notes["copy"][1]) == {f"cat/copy of {i}.jpg" for i in range(8)}
    assert "the same as cat/3.jpg" in notes["copy"][1]["cat/copy of 3.jpg"]
    assert set(notes["near copy"][1]) == {f"dog/small {i}.png" for i in range(8)}
    assert "it looks like dog/3.jpg" in notes["near copy"][1]["dog/small 3.png"]
    for seed in range(10):
        task = data.image_folder(folder, seed=seed)
        parts = task.train, task.validation, task.test
        stems = [{(f.parent.name, f.stem.split()[-1]) for f in part.inputs} for part in parts]
        assert not (stems[0] & stems[1] or stems[0] & stems[2] or stems[1] & stems[2])


def test_a_copy_in_two_parts_is_taken_from_the_lower_one(tmp_path):
    for part in ("train", "val", "test"): pets(tmp_path/"pets"/part, 20)
    (tmp_path/"pets"/"train"/"cat"/"seen.jpg").write_bytes((tmp_path/"pets"/"test"/"cat"/"3.jpg").read_bytes())
    Image.open(tmp_path/"pets"/"test"/"dog"/"4.jpg").save(tmp_path/"pets"/"train"/"dog"/"nearly.jpg", quality=50)
    notes = found(checked(tmp_path/"pets"))
    seen = {"train/cat/seen.jpg": "it is in train, and as test/cat/3.jpg in test, which keeps it"}
    assert notes["copy in two parts"] == ("skips", seen)
    (place, reason), = notes["near copy in two parts"][1].items()
    pair = "train/dog/nearly.jpg", "test/dog/4.jpg"
    assert place in pair and reason.split(", ")[0] in [f"it looks like {other}" for other in pair]
    assert "flatters" in reason


def test_pictures_that_all_look_alike_can_still_be_split(tmp_path):
    "A camera on a tripod: near copies cannot be kept apart, and the report says so"
    folder = pets(tmp_path/"pets", 10, ("dog",))
    (folder/"cat").mkdir()
    scene = np.asarray(picture()).astype(int)
    for i in range(10):
        shot = (scene + noise.integers(-2, 3, scene.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(shot).save(folder/"cat"/f"{i}.png")
    assert found(checked(folder))["class of near copies"][0] == "notes"
    assert len(data.image_folder(folder).test) == 4


# Folders

def test_a_folder_with_no_classes_stops(tmp_path):
    for i in range(3): picture().save(tmp_path/f"{i}.jpg")
    report = checked(tmp_path)
    assert not report.ok
    assert found(report)["no classes"][0] == "stops"
    loose = "3 left out: they lie beside the class folders, in none of them"
    assert found(report)["image in no class"][1] == {"0.jpg": loose}
    with pytest.raises(ValueError, match="has images in it, expected a folder for each class, as in cat/1.jpg"):
        data.image_folder(tmp_path)


def test_a_folder_one_level_too_deep_says_which_to_give(tmp_path):
    pets(tmp_path/"download"/"pets", 5)
    too_deep = ("pets: it is the only folder with images, and holds them in 2 folders: "
                "if these are the classes, give .*download/pets'")
    with pytest.raises(ValueError, match=too_deep):
        data.image_folder(tmp_path/"download")
    assert data.image_folder(tmp_path/"download"/"pets").classes == ["cat", "dog"]


def test_hidden_system_and_other_files_are_left_out(tmp_path):
    folder = pets(tmp_path/"pets")
    for name in ("cat/.DS_Store", "cat/Thumbs.db", "cat/._0.jpg", "dog/notes.md"):
        (folder/name).write_bytes(b"not yours")
    pets(folder, 2, (".trash", "__MACOSX"))
    picture().save(folder/"cat"/"_DSC1.jpg")
    report = checked(folder)
    assert report.ok and report.classes == ["cat", "dog"] and report.read == 61, "a camera's _DSC1.jpg is an example"
    hidden = {"cat/.DS_Store", "cat/Thumbs.db", "cat/._0.jpg", ".trash", "__MACOSX"}
    assert set(found(report)["hidden or system file"][1]) == hidden
    assert set(found(report)["other file"][1]) == {"dog/notes.md"}


def test_a_folder_beside_the_parts_is_mentioned(tmp_path):
    for part in ("train", "test"): pets(tmp_path/part, 5)
    pets(tmp_path, 3, ("extra",))
    beside = {"extra": "left out: with a `train` folder, classes are looked for in the parts alone"}
    assert found(checked(tmp_path))["folder beside the parts"][1] == beside


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_links_are_followed_inside_only(tmp_path):
    folder, outside = pets(tmp_path/"pets"), pets(tmp_path/"elsewhere", 3)
    (folder/"cat"/"inside.jpg").symlink_to(folder/"cat"/"0.jpg")
    (folder/"cat"/"outside.jpg").symlink_to(outside/"cat"/"0.jpg")
    (folder/"cat"/"round").symlink_to(folder, target_is_directory=True)
    report = checked(folder)
    assert report.ok
    say = "or say --follow-links (check(…, follow_links=True))"
    outside_link = {"cat/outside.jpg": f"it is a file somewhere else, and is not followed: copy it here, {say}"}
    assert found(report)["link that leaves the folder"] == ("skips", outside_link)
    assert "cat/inside.jpg" in found(report)["copy"][1] or "cat/0.jpg" in found(report)["copy"][1]
    (folder/"dog"/"more").symlink_to(folder/"cat", target_is_directory=True)
    seen = found(checked(folder))["link to a folder"]
    assert seen == ("stops", {"dog/more": f"it is not followed: copy the folder here, {say}"})
    lost = [given.place for given in preflight.inputs_in(folder, "image") if isinstance(given, preflight.Unreadable)]
    assert lost == [str(folder/"dog"/"more"), str(folder/"cat"/"outside.jpg")]
    (folder/"dog"/"more").unlink()
    (folder/"bird").symlink_to(outside/"cat", target_is_directory=True)
    with pytest.raises(ValueError, match="bird: it is a folder somewhere else, and is not followed: copy it here"):
        data.image_folder(folder)


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
    with pytest.raises(OSError, match="moods.csv' cannot be read .*: check that this user may read it"):
        preflight.check(table)


def test_a_folder_that_may_not_be_listed_stops(guarded):
    top, become_another = guarded
    folder = pets(top/"pets", 5, ("cat", "dog", "secret"))
    (folder/"secret").chmod(0)
    become_another()
    report = preflight.check(folder, progress=False)
    assert not report.ok
    secret = {"secret": "this user may not list it, so nobody knows what is in it"}
    assert found(report)["folder without permission"] == ("stops", secret)


def test_there_is_nothing_by_that_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder .*nowhere"):
        preflight.check(tmp_path/"nowhere", "image")
    with pytest.raises(FileNotFoundError, match="There is no file and no folder .*nowhere.csv'"):
        preflight.check(tmp_path/"nowhere.csv")
    with pytest.raises(ValueError, match="pets.docx is no table that we know: expected .csv, .json, .jsonl"):
        (tmp_path/"pets.docx").touch()
        preflight.check(tmp_path/"pets.docx")
    with pytest.raises(ValueError, match="most_bad must be between 0 and 1"): preflight.check(tmp_path, most_bad=2)
    with pytest.raises(ValueError, match='kind must be "image" or "text"'): preflight.check(tmp_path, "sound")


# Classes

def test_one_class_stops(tmp_path):
    one = {"cat": "it is the only class, expected at least two, or there is nothing to tell apart"}
    assert found(checked(pets(tmp_path/"pets", 5, ("cat",))))["one class"] == ("stops", one)
    table = tmp_path/"one.csv"
    table.write_text("text,label\n" + "".join(f"so {i},yes\n" for i in range(9)))
    assert "one class" in found(checked(table))


@pytest.mark.parametrize("given, count, sentence", [
    ((), 1, "it has 1 training example, expected at least 3"),
    ((), 2, "it has 2 training examples, expected at least 3"),
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
    too_few = found(checked(folder))["class with too few examples"]
    assert "it has 1 training example that are no copies" in too_few[1]["emu"]


def test_a_label_seen_in_validation_only_stops(tmp_path):
    pets(tmp_path/"train", 5); pets(tmp_path/"val", 5, ("cat", "dog", "emu"))
    then, places = found(checked(tmp_path))["class without training examples"]
    assert then == "stops"
    assert places == {"emu": "it is seen in validation only, and nobody can learn it; the training part knows cat, dog"}
    pets(tmp_path/"train", 5, ("emu", "fox"))
    report = checked(tmp_path)
    assert report.ok
    assert found(report)["class that is not judged"] == ("notes", {"fox": "validation has no example of it"})


def test_extreme_imbalance_is_a_note(tmp_path):
    table = tmp_path/"rare.csv"
    rows = [f"all is well {i},fine\n" for i in range(100)] + [f"alarm {i},fire\n" for i in range(4)]
    table.write_text("text,label\n" + "".join(rows))
    then, places = found(checked(table))["unequal classes"]
    assert then == "notes"
    assert "4 training examples, and 100 of fine" in places["fire"]
    assert "right 96% of the time" in places["fire"]


# Targets: what labels come to

def table_of(file, rows, header="text,label"):
    file.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return file


def note_of(report, what):
    "What the pre-flight says of labels, and no more than once"
    then, places = found(report)[what]
    (reason,) = places.values()
    assert then == "notes"
    return reason


@pytest.mark.parametrize("cells, objective", [
    (["good", "bad"] * 5, "classification"),
    (["R&B; soul", "pop; rock", "pop"] * 5, "classification"), # a mark in a name
    (["a;b"] + ["a", "b"] * 5, "classification"), # too few are cut
    (["a;b", "a", "b", "a", "b"], "multi_label"), # exactly a fifth
    (["a|b", "a", "b"], "multi_label"),
    (["a;c", "a", "b"], "classification"), # c is never alone
    ([["a", "b"], ["a"], []], "multi_label"),
    (["['a', 'b']", "['a']", '["b"]'], "multi_label"), # as pandas writes lists
    (["[a]", "[b]"], "classification"),
    ([str(i) for i in range(20)] * 2, "classification"),
    ([str(i) for i in range(21)], "regression"),
    (["1", "2.5", "3"], "regression"),
    ([1.0, 2.0, 1.0], "classification"),
    ([1, 2.5, None], "regression"),
    (["1.5"] * 19 + ["n/a"], "regression"),
    (["1.5"] * 18 + ["n/a"], "classification"),
    (["1e999", "nan", "1_000", "inf"], "classification"),
    ([True, False], "classification"),
    ([Columns(a="x", b="y"), Columns(a="z", b="y")], "several"),
    ([Columns(a=0, b="1"), Columns(a="1.0", b=False)], "multi_label"),
    ([Columns(a=0, b=2), Columns(a=1, b=1)], "several"),
    ([], "classification")])
def test_the_rule_for_tables(cells, objective):
    assert targets_of(cells).objective == objective


def test_an_objective_that_is_given_overrides_the_rule():
    assert targets_of(["a;b", "a", "b"], "classification").classes == ["a", "a;b", "b"]
    assert targets_of(["x;y", "z"], "multi_label").targets == [("x", "y"), ("z",)]
    assert targets_of(["1", "3"], "regression").targets == [1.0, 3.0]
    assert targets_of([Columns(a=0, b=1)], "several").targets == [dict(a="0", b="1")]
    assert targets_of([1.5, 2.5], "classification").targets[0].what == "label that is no name or number"
    two = [Columns(a=1, b=2)]
    for cells, objective in ((two, "classification"), (two, "regression"), (["a"], "several")):
        with pytest.raises(ValueError, match=f"objective='{objective}' needs .* label column"):
            targets_of(cells, objective)
    with pytest.raises(ValueError, match='objective must be "multi_label" or .* got .ranking.'):
        targets_of([], "ranking")
    with pytest.raises(ValueError, match="The label column 'price' holds numbers that are not whole"):
        targets_of([Columns(mood="good", price="1.5")])


def test_several_classes_an_example(tmp_path):
    rows = [f"{word} {i},{label}" for i in range(10) for word, label in (("a", "fun"), ("b", "sad"), ("c", "sad;fun"))]
    report = checked(table_of(tmp_path/"tags.csv", [*rows, "none, ", "odd,;"]), most_bad=0.1)
    assert (report.ok, report.objective, report.classes) == (True, "multi_label", ["fun", "sad"])
    assert report.targets[:3] == [("fun",), ("sad",), ("fun", "sad")] and report.labels[2] == "sad;fun"
    assert set(found(report)["missing label"][1]) == {"tags.csv, line 32", "tags.csv, line 33"}
    assert "as in 'sad;fun': learnt as multi-label; if " in note_of(report, "several classes an example")
    assert report.counts()["examples"].to_dict() == {"fun": 20, "sad": 20}
    assert report.summary()["classes"] == {"fun": 20, "sad": 20} and report.summary()["objective"] == "multi_label"
    assert "any number of them each; 1 skipped, at most 10% may be; 1 without labels" in report.verdict
    plain = checked(tmp_path/"tags.csv", objective="classification", most_bad=0.1)
    assert plain.classes == [";", "fun", "sad", "sad;fun"] and "several classes an example" not in found(plain)


def test_columns_of_zeros_and_ones(tmp_path):
    rows = [f"{i},number {i},{i % 2},{i // 2 % 2},0" for i in range(12)]
    table = table_of(tmp_path/"rude.csv", rows, "id,comment,rude,funny,long")
    report = checked(table)
    assert (report.objective, report.targets[:4]) == ("multi_label", [(), ("rude",), ("funny",), ("funny", "rude")])
    assert "of 0 and 1 in 2 columns" in note_of(report, "several classes an example") and report.ok
    assert report.labels[1] == dict(rude="1", funny="0")
    named = checked(table, label_column=["rude", "long"])
    assert found(named)["class without training examples"][0] == "stops", "nobody is long"
    assert set(found(named)["class without training examples"][1]) == {"long"}
    bad = checked(table_of(tmp_path/"bad.csv", [*rows, "12,one more,2,0,0"], "id,comment,rude,funny,long"),
                  label_column=["rude", "funny"], objective="multi_label", most_bad=0.1)
    assert found(bad)["label that is no 0 or 1"][1] == {"bad.csv, line 14": "its rude is '2'"}


def test_every_tag_needs_an_example_to_learn_from(tmp_path):
    rows = [f"{part} {word} {i},{label},{part}" for part in ("train", "test") for i in range(5)
            for word, label in (("a", "fun"), ("b", "sad"), ("c", "sad;fun"))]
    rows += ["odd,odd,test", "odd fun,odd;fun,test", "rare,rare,train", "rare fun,rare;fun,train"]
    report = checked(table_of(tmp_path/"tags.csv", rows, "text,label,split"))
    assert list(found(report)["class without training examples"][1]) == ["odd"] and not report.ok
    assert found(report)["class that is not judged"][1] == {"rare": "test has no example of it"}
    same = checked(table_of(tmp_path/"same.csv", [f"number {i},a;b" for i in range(9)]), objective="multi_label")
    assert found(same)["one class"][0] == "stops"
    few = checked(table_of(tmp_path/"few.csv", ["one,a;b", "two,a"]), objective="multi_label")
    assert "2 training examples that are no copies, expected at least 3" in found(few)["too few examples"][1][""]


def test_numbers_are_regression(tmp_path):
    rows = [f"a box of {i},{i / 4}" for i in range(40)] + ["a box of what,n/a", "A box of 3,0.9"]
    report = checked(table_of(tmp_path/"sizes.csv", rows))
    assert (report.ok, report.objective, report.classes) == (True, "regression", [])
    assert report.targets[:3] == [0.0, 0.25, 0.5] and report.labels[1] == "0.25"
    assert found(report)["label that is no number"] == ("skips", {"sizes.csv, line 42": "it is 'n/a'"})
    assert "41 different ones, from 0 to 9.75: learnt as numbers; if" in note_of(report, "numbers as labels")
    assert set(found(report)["copy"][1]) == {"sizes.csv, line 43"}, "two that measured, on one side of a split"
    assert report.groups[3] == report.groups[-1] and len(set(report.groups)) == 40
    assert report.counts().loc[["count", "min", "max"], "examples"].tolist() == [41, 0, 9.75]
    assert report.summary()["classes"] == {} and report.summary()["range"] == [0, 9.75]
    assert "Goes on with 41 of 42 examples with numbers from 0 to 9.75; 1 skipped" in report.verdict
    flat = checked(table_of(tmp_path/"flat.csv", [f"number {i},1.5" for i in range(9)]))
    assert found(flat)["one number"] == ("stops", {"1.5": "all training examples have it: there is nothing to learn"})
    few = checked(table_of(tmp_path/"few.csv", ["one,1.5", "two,2.5"]))
    assert "2 training examples that are no copies, expected at least 3" in found(few)["too few examples"][1][""]
    none = checked(table_of(tmp_path/"none.csv", ["one,", "two,"]), objective="regression", most_bad=1)
    assert found(none)["no classes"] == ("stops", {"": "no example can be used"}) and none.verdict.startswith("Stops")


def test_several_columns_of_classes(tmp_path):
    rows = [f"number {i},{('good', 'bad')[i % 2]},{('a', 'b', 'c')[i % 3]}" for i in range(18)]
    rows += ["one more,good,d", "and more,,a", "number 0,bad,a", "NUMBER 1,bad,b"]
    table = table_of(tmp_path/"two.csv", rows, "text,mood,topic")
    report = checked(table, label_column=["mood", "topic"], most_bad=0.2)
    assert (report.objective, report.classes) == ("several", dict(mood=["bad", "good"], topic=["a", "b", "c", "d"]))
    assert report.targets[0] == dict(mood="bad", topic="b") and report.labels == report.targets
    assert found(report)["missing label"][1] == {"two.csv, line 21": "mood: nobody says which class it is"}
    disagree = found(report)["one example in two classes"][1]
    assert set(disagree) == {"two.csv, line 2", "two.csv, line 22"}
    assert "the same stands in mood bad, topic a and mood good, topic a" in disagree["two.csv, line 2"]
    assert set(found(report)["copy"][1]) == {"two.csv, line 23"}
    assert list(found(report)["class with too few examples"][1]) == ["topic: d"] and not report.ok
    assert report.counts().loc[("topic", "d"), "examples"] == 1
    assert report.summary()["classes"]["topic"]["c"] == 6 and json.dumps(report.summary())
    whole = checked(table_of(tmp_path/"whole.csv", rows[:18], "text,mood,topic"), label_column=["mood", "topic"])
    assert whole.ok and "examples in 2 classes of mood and 3 classes of topic." in whole.verdict
    assert checked(tmp_path/"whole.csv", label_column=["mood"]).objective == "classification"
    with pytest.raises(ValueError, match="label_column='colour' is no column in whole.csv"):
        preflight.check(tmp_path/"whole.csv", label_column=["mood", "colour"])
    with pytest.raises(ValueError, match="objective='classification' needs one label column, and got 2 label columns"):
        preflight.check(tmp_path/"whole.csv", label_column=["mood", "topic"], objective="classification")


def test_folders_say_one_class_each(tmp_path):
    folder = pets(tmp_path/"pets", 5, [str(i) for i in range(21)])
    assert checked(folder).objective == "classification", "folders may be called by numbers"
    for objective, reason in (("regression", "needs a table"), ("guess", 'objective must be "multi_label" or')):
        with pytest.raises(ValueError, match=reason): checked(folder, objective=objective)


def test_lists_and_numbers_of_json_and_parquet(tmp_path):
    rows = [dict(text=f"number {i}", label=[["a"], ["b", "a"], []][i % 3]) for i in range(12)]
    (tmp_path/"tags.jsonl").write_text("\n".join(map(json.dumps, [*rows, dict(text="odd", label=[["a"]])])))
    report = checked(tmp_path/"tags.jsonl", most_bad=0.1)
    assert report.targets[:3] == [("a",), ("a", "b"), ()] and report.classes == ["a", "b"]
    assert "tags.jsonl, line 13" in found(report)["label that is no name or number"][1]
    pytest.importorskip("pyarrow")
    pd.DataFrame(rows).to_parquet(tmp_path/"tags.parquet")
    assert checked(tmp_path/"tags.parquet").targets == report.targets
    sizes = pd.DataFrame(dict(text=[f"number {i}" for i in range(9)], label=[0.5, 1, None] * 3))
    sizes.to_parquet(tmp_path/"n.parquet")
    numbers = checked(tmp_path/"n.parquet", most_bad=0.5)
    assert numbers.targets == [0.5, 1.0] * 3 and len(found(numbers)["missing label"][1]) == 3


@pytest.mark.parametrize("objective", [None, *TARGET_KINDS])
def test_an_object_of_json_is_no_label(tmp_path, objective):
    rows = ['{"text": "good", "label": {"": null}}', '{"text": "bad", "label": {"a": 1}}', '{"text": "worse"}']
    (tmp_path/"odd.jsonl").write_text("\n".join(rows))
    if objective == "several":
        with pytest.raises(ValueError, match="needs several label columns, and got one"):
            preflight.check(tmp_path/"odd.jsonl", objective=objective)
        return
    report = checked(tmp_path/"odd.jsonl", objective=objective)
    assert not report.ok and len(report.skipped) == 3 and report.counts().empty and report.targets == []


def test_datasets_with_tags_numbers_and_named_classes(tmp_path):
    datasets = pytest.importorskip("datasets")
    digits, words = datasets.ClassLabel(names=[str(i) for i in range(25)]), [f"number {i}" for i in range(75)]
    types = dict(text=datasets.Value("string"), label=digits, tags=datasets.Sequence(digits),
                 size=datasets.Value("float32"))
    columns = dict(text=words, label=[i % 25 for i in range(75)], tags=[[i % 3, 5] for i in range(75)],
                   size=[i / 2 for i in range(75)])
    datasets.Dataset.from_dict(columns, features=datasets.Features(types)).save_to_disk(tmp_path/"all")
    assert checked(tmp_path/"all").objective == "classification", "these numbers are names"
    tags, sizes = checked(tmp_path/"all", label_column="tags"), checked(tmp_path/"all", label_column="size")
    assert tags.targets[1] == ("1", "5") and (sizes.objective, sizes.targets[1]) == ("regression", 0.5)


# Readers: a new form is one class

def test_a_new_reader_is_one_class(tmp_path, monkeypatch):
    "Sentences of words with a tag each, which the pre-flight has never heard of"
    class Tagged(readers.Reader):
        kinds = "text",
        def owns(self, path): return path.suffix == ".tagged"
        def read(self, request, kind, notes):
            lines = [line.split("\t") for line in request.path.read_text().splitlines()]
            examples = [readers.Example(words, tags, "", f"line {i}", tuple(tags.split()))
                        for i, (words, tags) in enumerate(lines, 1)]
            return readers.Found(readers.kind_of("text"), examples, TARGET_KINDS["multi_label"], ["noun", "verb"])
    monkeypatch.setattr(readers, "READERS", [*readers.READERS])
    readers.register(Tagged())
    rows = [f"dogs {i}\tnoun" for i in range(5)] + [f"bark {i}\tverb" for i in range(5)] + ["they bark\tnoun verb"]
    (tmp_path/"words.tagged").write_text("\n".join(rows))
    report = checked(tmp_path/"words.tagged")
    assert report.ok and (report.kind, report.classes, report.labels[-1]) == ("text", ["noun", "verb"], "noun verb")
    assert checked(moods(tmp_path/"moods.csv")).objective == "classification"


def test_what_a_kind_of_input_knows(tmp_path):
    images, texts = readers.kind_of("image"), readers.kind_of("text")
    assert texts.of_lines(iter(["one", "", "two"])) == ["one", "", "two"], "a blank line is one, too"
    with pytest.raises(ValueError, match="There is nothing to predict: give image files"): images.of_lines(["one"])
    report = checked(pets(tmp_path/"pets", 5))
    assert report.measure(lambda: pytest.fail("no model is opened for images")) is report


# Texts

@pytest.mark.parametrize("row, what, reason", [
    ("only one", "row with too few fields", "1 field, the header has 2"),
    ("one,two,three", "row with too many fields", "3 fields, the header has 2"),
    (" ,good", "empty text", "there is nothing to read"), ("a text,", "missing label", "nobody says which class"),
    ("not writ\0\0,good", "NUL characters", "the text holds bytes of value 0")])
def test_a_bad_row_is_skipped_by_its_line(tmp_path, row, what, reason):
    report = checked(moods(tmp_path/"moods.csv", [row]))
    then, places = found(report)[what]
    assert report.ok
    assert then == "skips"
    assert list(places) == ["moods.csv, line 82"]
    assert reason in places["moods.csv, line 82"]
    assert len(report.inputs) == 80


@pytest.mark.parametrize("line, what", [
    ('{"text": "a", "label": ', "line that is no JSON object"),
    ('["a", "b"]', "line that is no JSON object"),
    ('{"label": "good"}', "empty text"),
    ('{"text": null, "label": "good"}', "empty text"),
    ('{"text": "a", "label": null}', "missing label"),
    ('{"text": 3, "label": "good"}', "text that is no text"),
    ('{"text": "a", "label": ["good"]}', "label that is no name or number"),
    (r'{"text": "\ud800", "label": "good"}', "broken characters"),
    (r'{"text": "a\u0000", "label": "good"}', "NUL characters"),
    ("[" * 100_000, "line that is no JSON object")], ids=range(10))
def test_a_bad_line_of_json_is_skipped(tmp_path, line, what):
    file = tmp_path/"moods.jsonl"
    words = (("fine", "good"), ("poor", "bad"))
    rows = [json.dumps(dict(text=f"it is {word} {i}", label=label)) for i in range(20) for word, label in words]
    file.write_text("\n".join([*rows, line]) + "\n")
    report = checked(file)
    assert report.ok
    assert found(report)[what] == ("skips", found(report)[what][1])
    assert list(found(report)[what][1]) == ["moods.jsonl, line 41"]
    assert report.classes == ["bad", "good"]


@pytest.mark.parametrize("encoding, what", [
    ("cp1252", "other encoding"), ("utf-8-sig", "byte order mark"), ("utf-16", "byte order mark"), ("utf-8", None)])
def test_other_encodings_are_read_and_named(tmp_path, encoding, what):
    greeting = "schöne Grüße aus Köln Übermut tut selten gut,good"
    report = checked(moods(tmp_path/"moods.csv", [greeting], encoding=encoding))
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
    with pytest.raises(ValueError, match="moods.csv is not in the encoding ascii: leave it out"):
        preflight.check(table, encoding="ascii")
    with pytest.raises(ValueError, match="encoding must be one that Python knows, .* got 'klingon'"):
        preflight.check(table, encoding="klingon")
    marked = moods(tmp_path/"marked.csv", ["日本の3,good"], encoding="utf-8-sig")
    assert "日本の3" in checked(marked, encoding="utf-8").inputs, "a mark is no part of the first column's name"
    for label in ("good", "bad"):
        (tmp_path/"files"/label).mkdir(parents=True)
        for i in range(20): (tmp_path/"files"/label/f"{i}.txt").write_bytes(f"schön {label} {i}".encode("cp850"))
    (tmp_path/"files"/"bad"/"other.txt").write_bytes("日本".encode("utf-16-le") + b"\x81")
    assert "schön good 3" in checked(tmp_path/"files", encoding="cp850").inputs
    no_text = found(checked(tmp_path/"files", encoding="utf-8", most_bad=1))["no text"]
    assert no_text[1]["bad/3.txt"] == "its bytes are no letters in utf-8"


def test_a_table_that_is_no_text_or_not_closed_is_refused(tmp_path):
    (tmp_path/"binary.csv").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(ValueError, match="binary.csv is no text in any encoding"):
        preflight.check(tmp_path/"binary.csv")
    with pytest.raises(ValueError, match="open.csv can be read in two ways from line 82 on: a quotation mark"):
        preflight.check(moods(tmp_path/"open.csv", ['"and so,good']))
    (tmp_path/"empty.csv").touch()
    with pytest.raises(ValueError, match="empty.csv has no rows that can be read below its columns"):
        preflight.check(tmp_path/"empty.csv")


def test_the_line_of_an_open_quotation_mark_is_named_and_long_texts_are_read(tmp_path):
    rows = [f"a day number {i},good" for i in range(4)] + ['"and so,good'] + ["a night,bad"] * 900
    with pytest.raises(ValueError, match="open.csv can be read in two ways from line 6 on"):
        preflight.check(moods(tmp_path/"open.csv", rows, count=0))
    book = "it was a long day and a good one " * 5000
    assert book.strip() in [words.strip() for words in checked(moods(tmp_path/"book.csv", [f"{book},good"])).inputs]


def test_a_row_of_no_part_is_skipped_and_the_parts_are_kept(tmp_path):
    parts, labels = ("train", "validation", "test"), ("good", "bad")
    rows = [f"{label} number {i} of {part},{label},{part}" for part in parts for i in range(20) for label in labels]
    rows.append("one more,good,unlabelled")
    report = checked(moods(tmp_path/"parts.csv", rows, count=0, header="text,label,split"))
    assert set(report.parts) == {"train", "validation", "test"} and report.ok
    unlabelled = {"parts.csv, line 122": "its split is 'unlabelled', and not train, validation or test"}
    assert found(report)["row of no part"] == ("skips", unlabelled)


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
    rows = [f"it is {word} {part} {i},{label},{part}" for part, n in (("train", 20), ("test", 5)) for i in range(n)
            for word, label in (("fine", "good"), ("poor", "bad"))]
    more = ["It IS  fine test 3,good,train", "so so,good,train", "so so,bad,train"]
    table.write_text("\n".join(["text,label,split", *rows, *more]))
    report = checked(table, most_bad=0.1)
    copy = {"moods.csv, line 52": "it is in train, and as moods.csv, line 48 in test, which keeps it"}
    assert found(report)["copy in two parts"][1] == copy
    assert set(found(report)["one example in two classes"][1]) == {"moods.csv, line 53", "moods.csv, line 54"}
    task = data.text_table(table, most_bad=0.1)
    assert len(task.test) == 10
    assert len(task.train) + len(task.validation) == 40
    assert task.made["given"] == ["test", "train"]


def test_texts_longer_than_the_model_reads(tmp_path):
    model = text.classifier("minilm", 2, max_length=16)
    report = checked(moods(tmp_path/"moods.csv", ["word " * 100 + ",good"])).measure_texts(model)
    (f,) = [f for f in report.findings if f.what == "text longer than the model reads"]
    assert f.then == "notes"
    assert "1 of 81 texts have more than 16 tokens, the longest 102: " in f.places[0][1]
    assert "% of all tokens are cut" in f.places[0][1]
    assert not checked(moods(tmp_path/"short.csv")).measure_texts(model).findings


def test_a_folder_of_text_files(tmp_path):
    for label, word in (("good", "fine"), ("bad", "poor")):
        (tmp_path/"moods"/label).mkdir(parents=True)
        for i in range(20): (tmp_path/"moods"/label/f"{i}.txt").write_text(f"it is {word} {i}", encoding="utf-8")
    (tmp_path/"moods"/"good"/"none.txt").write_text(" \n")
    (tmp_path/"moods"/"bad"/"binary.txt").write_bytes(b"\0\xff\0\xfa" * 9)
    report = checked(tmp_path/"moods")
    assert report.kind == "text"
    assert report.ok
    assert report.classes == ["bad", "good"]
    assert set(dict(report.skipped)) == {"good/none.txt", "bad/binary.txt"}
    assert len(data.text_table(tmp_path/"moods").test) == 8


@pytest.mark.parametrize("ending, write", [
    ("csv", lambda frame, file: frame.to_csv(file, index=False)),
    ("csv", lambda frame, file: frame.to_csv(file, index=False, sep=";")),
    ("tsv", lambda frame, file: frame.to_csv(file, index=False, sep="\t")),
    ("jsonl", lambda frame, file: frame.to_json(file, orient="records", lines=True)),
    ("parquet", lambda frame, file: (pytest.importorskip("pyarrow"), frame.to_parquet(file)))],
    ids=["comma", "semicolon", "tab", "jsonl", "parquet"])
@pytest.mark.parametrize("columns, options", [
    (("review", "sentiment"), {}), (("review", "stars"), {}), (("note", "label"), {}),
    (("a", "b"), dict(text_column="a", label_column="b")),
    (("label", "text"), dict(text_column="label", label_column="text"))])
def test_every_kind_of_table(tmp_path, ending, write, columns, options):
    said = [f'it is, say "{word}",\n{i}' for i in range(10) for word in ("fine", "poor")]
    frame = pd.DataFrame({columns[0]: said, columns[1]: [1, 0] * 10})
    write(frame, file := tmp_path/f"moods.{ending}")
    task = data.text_table(file, **options)
    assert task.kind == "text" and task.classes == ["0", "1"] and set(task.train.inputs) < set(frame[columns[0]])
    for part in (task.train, task.validation, task.test):
        assert all(("fine" in words) == label for words, label in zip(part.inputs, part.labels.tolist()))


def test_columns_that_are_not_clear_are_asked_for(tmp_path):
    table = moods(tmp_path/"moods.csv", header="a,b")
    question = ("Which columns of moods.csv are the text and the label is not clear. It has 'a', 'b'; "
                "its first row is a='it is fine 0', b='good'. Say --text-column")
    with pytest.raises(ValueError, match=question):
        data.text_table(table)
    with pytest.raises(ValueError, match="text_column='words' is no column in moods.csv, which has 'a', 'b'"):
        data.text_table(table, "words")


def test_parts_in_files(tmp_path):
    for part, count in (("train", 10), ("valid", 4), ("test", 3)):
        rows = [f"{part} {label} {i},{label}\n" for i in range(count) for label in ("yes", "no")]
        (tmp_path/f"{part}.csv").write_text("text,label\n" + "".join(rows))
    task = data.text_table(tmp_path)
    assert [len(part) for part in (task.train, task.validation, task.test)] == [20, 8, 6]
    moods(tmp_path/"other.csv")
    which = "holds 4 tables, other.csv, test.csv, .*: name one of them, or call them train"
    with pytest.raises(ValueError, match=which):
        data.text_table(tmp_path)


def without(monkeypatch, *names):
    "As if these packages were not installed"
    for name in [n for n in sys.modules if n.split(".")[0] in names]: monkeypatch.delitem(sys.modules, name)
    for name in names: monkeypatch.setitem(sys.modules, name, None)


def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path/"moods.parquet").write_bytes(b"PAR1")
    without(monkeypatch, "pyarrow", "fastparquet", "datasets")
    no_parquet = r"moods.parquet is a Parquet file, .*: pip install 'finetune-nb\[datasets\]'"
    with pytest.raises(ModuleNotFoundError, match=no_parquet):
        data.text_table(tmp_path/"moods.parquet")
    no_datasets = (r"'imdb' is a dataset of Hugging Face, or nothing that we know; .*: "
                   r"pip install 'finetune-nb\[datasets\]'")
    with pytest.raises(ModuleNotFoundError, match=no_datasets):
        data.from_datasets("imdb")


def test_a_damaged_parquet_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path/"moods.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(OSError, match="moods.parquet cannot be read as a Parquet file"):
        data.text_table(tmp_path/"moods.parquet")


def test_a_dataset_of_hugging_face(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    moods_ = datasets.ClassLabel(names=["poor", "fine"])
    features = datasets.Features(dict(idx=datasets.Value("int32"), sentence=datasets.Value("string"), label=moods_))
    def rows(n, part):
        said = [f"{part} {('poor', 'fine')[i % 2]} {i}" for i in range(n)]
        columns = dict(idx=range(n), sentence=said, label=[i % 2 for i in range(n)])
        return datasets.Dataset.from_dict(columns, features=features)
    parts = dict(train=rows(20, "train"), validation=rows(6, "validation"), unsupervised=rows(4, "more"))
    datasets.DatasetDict(parts).save_to_disk(tmp_path/"saved")
    task = data.from_datasets(str(tmp_path/"saved"))
    assert task.classes == ["poor", "fine"] and len(task.validation) == 6 and len(task.train) + len(task.test) == 20
    assert all(task.classes[label] in words for words, label in zip(task.train.inputs, task.train.labels))
    assert found(preflight.check(tmp_path/"saved"))["other split"][1]["unsupervised"].startswith("left out")
    rows(20, "all").save_to_disk(tmp_path/"single")
    assert len(data.text_table(tmp_path/"single").test) == 4
    hub = {("glue", "sst2"): datasets.DatasetDict(train=rows(20, "train"))}
    monkeypatch.setattr(datasets, "load_dataset", lambda *name: hub[name])
    assert data.from_datasets("glue:sst2").num_classes == 2
    nowhere = "The dataset 'nobody/knows' can neither be read as a folder .* nor found on the Hub"
    with pytest.raises(OSError, match=nowhere):
        data.from_datasets("nobody/knows")


def image_bytes(image, ending="PNG"):
    image.save(file := io.BytesIO(), ending)
    return file.getvalue()


@pytest.fixture
def image_dataset():
    "Makes rows of a dataset: pictures of two kinds, and more pictures as bytes"
    datasets = pytest.importorskip("datasets")
    def make(count, label=None, more=()):
        species = label or datasets.ClassLabel(names=["cat", "dog"])
        features = datasets.Features(dict(id=datasets.Value("int64"), image=datasets.Image(), species=species))
        named = isinstance(features["species"], datasets.ClassLabel)
        def name(i): return i % 2 if named else ("cat", "dog")[i % 2]
        pictures = [(image_bytes(picture(), ("PNG", "JPEG")[i % 2]), name(i)) for i in range(count)]
        rows = [*pictures, *more]
        images = [None if image is None else dict(bytes=image, path=None) for image, _ in rows]
        columns = dict(id=range(len(rows)), image=images, species=[label for _, label in rows])
        return datasets.Dataset.from_dict(columns, features=features)
    return make


def test_a_dataset_of_images(tmp_path, image_dataset):
    import datasets
    turned = Image.Exif(); turned[0x0112] = 6
    picture((70, 40)).save(upright := io.BytesIO(), "JPEG", exif=turned)
    train = image_dataset(30, more=[(upright.getvalue(), 0)])
    parts = dict(train=train, test=image_dataset(10), extra=image_dataset(2))
    datasets.DatasetDict(parts).save_to_disk(tmp_path/"pets")
    report = checked(tmp_path/"pets")
    assert report.kind == "image"
    assert report.ok
    assert report.read == 41
    assert found(report)["other split"][1] == {"extra": "left out: it is none of " + ", ".join(findings.PART_OF)}
    task = data.from_datasets(str(tmp_path/"pets"))
    assert (task.kind, task.classes, len(task.test)) == ("image", ["cat", "dog"], 10)
    assert len(task.train) + len(task.validation) == 31
    assert task.made["given"] == ["test", "train"]
    last = report.inputs[30]
    assert data.open_image(last).size == (40, 70)
    assert last.convert("RGB").size == (40, 70)
    assert np.asarray(last).shape == (70, 40, 3)
    assert str(last) == "train, row 31"
    assert data.image_folder(tmp_path/"pets").classes == task.classes
    again = data.from_datasets(str(tmp_path/"pets"))
    seen = [digest(inputs) for inputs in (task.train.inputs, again.train.inputs, task.validation.inputs)]
    assert seen[0] == seen[1] != seen[2], "what the frozen blocks gave is found again by content"


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
    torn, page, none = (seen[:-50], 0), (b"<html>404</html>", 1), (None, 1)
    more = [torn, page, none, (image_bytes(picture()), -1), (seen, 0), (seen, 1)]
    image_dataset(80, more=more).save_to_disk(tmp_path/"pets")
    report = checked(tmp_path/"pets", most_bad=0.1)
    assert {what: list(places) for what, (then, places) in found(report).items() if then == "skips"} == {
        "missing label": ["pets, row 84"], "truncated image": ["pets, row 81"],
        "unreadable image": ["pets, row 82"], "missing image": ["pets, row 83"],
        "one example in two classes": ["pets, row 85", "pets, row 86"]}
    with pytest.raises(ValueError, match=r"5 of 86 examples \(5.8%\) cannot be used"):
        data.from_datasets(str(tmp_path/"pets"))
    assert data.from_datasets(str(tmp_path/"pets"), most_bad=0.1).made["skipped"] == report.skipped


def test_what_a_dataset_lacks_is_said(tmp_path, image_dataset):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict(dict(text=["a", "b"] * 4, label=["x", "y"] * 4)).save_to_disk(tmp_path/"texts")
    with pytest.raises(ValueError, match="has no column of images, only 'text', 'label': for texts, say text"):
        data.image_folder(tmp_path/"texts")
    second = image_dataset(8).select_columns("image").rename_column("image", "second")
    datasets.concatenate_datasets([image_dataset(8), second], axis=1).save_to_disk(tmp_path/"twice")
    with pytest.raises(ValueError, match="has several columns of images, 'image', 'second': leave one of them"):
        preflight.check(tmp_path/"twice")
    image_dataset(8).save_to_disk(tmp_path/"pets")
    with pytest.raises(ValueError, match="label_column='breed' is no column in .*, which has 'image', 'id', 'species'"):
        data.from_datasets(str(tmp_path/"pets"), label_column="breed")
    image_dataset(8, datasets.Value("string")).save_to_disk(tmp_path/"unclear")
    question = (r"Which column of .* is the label is not clear. It has 'image', 'id', 'species'; .* "
                r"Say --label-column \(label_column=\)")
    with pytest.raises(ValueError, match=question):
        data.from_datasets(str(tmp_path/"unclear"))


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
    assert dict(report.skipped).keys() == {"cat/torn.jpg"}
    assert report.read == 20 * 2 * 501 + 1
    assert len(set(report.groups)) == 40
    (reason,) = found(report)["large folder"][1].values()
    assert "of 20,041 images the header and the end were read, not every pixel" in reason
