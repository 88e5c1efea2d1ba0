"""Files as people have them: quotation marks, class names, images that a table names, parts without labels."""
import json, os, shutil, sys
import numpy as np, pandas as pd, pytest
from PIL import Image
from finetune_nb import cli, data, preflight, text
from finetune_nb.engine.class_names import class_name
from finetune_nb.engine.inputs import little_known, unknown_texts
from test_preflight import checked, found, moods, pets, picture


def written(file, lines):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def rows(count=20, mark=","): return [f"it is {word} {i}{mark}{label}" for i in range(count)
                                      for word, label in (("fine", "good"), ("poor", "bad"))]


# Quotation marks

def inches(file):
    "Two lone quotation marks, lines apart: the text between them looks like one field"
    lines = rows(20, "\t")
    lines[4], lines[19] = '"Fine, said one\tgood', 'a screen of 5"\tbad'
    return written(file, ["text\tlabel", *lines])


def test_a_field_that_swallows_rows_stops(tmp_path):
    table = inches(tmp_path/"tv.tsv")
    two_ways = ("tv.tsv can be read in two ways from line 6 on: a field in quotation marks runs on to line 21; "
                "without .* a row of 2 fields. If .* --quoting none .* --quoting double")
    with pytest.raises(ValueError, match=two_ways): preflight.check(table)
    plain = checked(table, quoting="none")
    assert len(plain.inputs) == 40 and '"Fine, said one' in plain.inputs and not plain.findings
    assert len(data.text_table(table, quoting="none").train) == 24
    assert len(preflight.inputs_in(table, "text", quoting="none")) == 40
    enclosed = checked(table, quoting="double")
    assert len(enclosed.inputs) == 25
    (place, reason), = found(enclosed)["row of several lines"][1].items()
    assert place == "tv.tsv, line 6" and "runs on to line 21" in reason


@pytest.mark.parametrize("line, why", [
    ('"nice" phone,good', "text follows a closing quotation mark"),
    ('"nice phone,good', "a quotation mark is opened, and never closed")])
def test_marks_that_belong_to_the_text_are_asked_for_or_cost_their_row(tmp_path, line, why):
    table = written(tmp_path/"a.csv", ["text,label", line, *rows()])
    with pytest.raises(ValueError, match=f"a.csv can be read in two ways from line 2 on: {why}"): preflight.check(table)
    assert line.split(",")[0] in checked(table, quoting="none").inputs
    mixed = checked(written(tmp_path/"b.csv", ["text,label", '"fine, really",good', line, *rows()]))
    assert found(mixed)["row that cannot be read"] == ("skips", {"b.csv, line 3": why})
    assert len(mixed.inputs) == 41 and "fine, really" in mixed.inputs and mixed.ok


def test_escaped_quotation_marks_are_read_and_said(tmp_path):
    lines = [r'"it is \"fine\", they say",good', r'"C:\temp, and \"more\"",bad', r'"\"",good']
    report = checked(written(tmp_path/"a.csv", ["text,label", *lines, *rows()]))
    assert report.inputs[:3] == ['it is "fine", they say', r'C:\temp, and "more"', '"']
    assert list(found(report)) == ["escaped quotation marks"]
    unescaped = checked(written(tmp_path/"b.csv", ["text,label", '"C:\\",good', *rows()]))
    assert unescaped.inputs[0] == "C:\\" and not unescaped.findings


def test_texts_of_several_lines_are_read_and_noted(tmp_path):
    frame = pd.DataFrame(dict(text=[f'say "{word}",\nagain, {i}' for word in ("fine", "poor") for i in range(20)],
                              label=["good"] * 20 + ["bad"] * 20))
    frame.to_csv(tmp_path/"a.csv", index=False)
    report = checked(tmp_path/"a.csv")
    assert report.inputs == frame.text.tolist() and list(found(report)) == ["row of several lines"]
    assert "a field in quotation marks runs on to line 5" in found(report)["row of several lines"][1]["a.csv, line 4"]


def test_a_file_full_of_faults_accounts_for_every_line(tmp_path):
    lines = ['"a" b,"c, d"', '"a'] * 20_000
    report = checked(written(tmp_path/"a.csv", ["text,label", *rows(), *lines]), most_bad=1)
    assert report.read == 40_040 and len(report.skipped) == 40_000


@pytest.mark.parametrize("delimiter", [":", "tab", "\t", ";"])
def test_a_delimiter_that_is_named_is_used(tmp_path, delimiter):
    mark = "\t" if delimiter == "tab" else delimiter
    table = written(tmp_path/"a.csv", [f"text, or so{mark}label", *rows(20, mark)])
    assert checked(table, delimiter=delimiter, text_column="text, or so").classes == ["bad", "good"]


@pytest.mark.parametrize("option, sentence", [
    (dict(delimiter="::"), "delimiter must be one character"), (dict(delimiter='"'), "delimiter must be one character"),
    (dict(delimiter=""), "delimiter must be"), (dict(quoting="all"), "quoting must be one of double, backslash, none")])
def test_how_a_table_is_written_is_checked(tmp_path, option, sentence):
    for call in (preflight.check, lambda path, **how: preflight.inputs_in(path, "text", **how)):
        with pytest.raises(ValueError, match=sentence): call(moods(tmp_path/"a.csv"), **option)


@pytest.mark.parametrize("words, code", [((), 1), (("--quoting", "none"), 0), (("--quoting", "double"), 0),
                                         (("--quoting", "all"), 1), (("--delimiter", "::"), 1)])
def test_the_command_is_told_how_a_table_is_written(tmp_path, monkeypatch, capsys, words, code):
    monkeypatch.setattr(sys, "argv", ["finetune-nb", "check", str(inches(tmp_path/"tv.tsv")), "--json", *words])
    monkeypatch.setattr(preflight.Report, "measure", lambda report, open_model: report)
    try: ended = cli.main()
    except SystemExit as stopped: ended = stopped.code
    assert (ended or 0) == code
    if code == 0: assert json.loads(capsys.readouterr().out)["usable"] == (40 if "none" in words else 25)


# What stands before the header, and in it

@pytest.mark.parametrize("first, mark, noted", [
    ([""], ",", []), (["", "  "], ",", []), (["sep=;"], ";", []), (["\ufeffsep=;"], ";", ["byte order mark"]),
    (['"sep=\t"'], "\t", []), (["# made in 2020, by me"], ",", ["line before the header"]),
    (["#made by me", "", "# and you"], ",", ["line before the header"])])
def test_lines_before_the_header(tmp_path, first, mark, noted):
    report = checked(written(tmp_path/"a.csv", [*first, f"text{mark}label", *rows(20, mark), "alone"]))
    assert report.classes == ["bad", "good"] and len(report.inputs) == 40
    assert [what for what in found(report) if what != "row with too few fields"] == noted
    assert list(found(report)["row with too few fields"][1]) == [f"a.csv, line {len(first) + 42}"]


@pytest.mark.parametrize("header", ["#,text,label", "#id,text,label"])
def test_a_header_may_begin_with_a_hash(tmp_path, header):
    report = checked(written(tmp_path/"a.csv", [header, *(f"{i},{row}" for i, row in enumerate(rows()))]))
    assert len(report.inputs) == 40 and not report.findings


@pytest.mark.parametrize("header, twice", [
    ("text,text,label", "text"), ("text,label,label", "label"), (" text,text ,label", "text"), ("a,a,label", "a"),
    ("text,b,b", "b"), ("id,id,text,label", None)])
def test_a_column_that_is_there_twice_is_taken_by_nobody(tmp_path, header, twice):
    width = header.count(",") + 1
    lines = [",".join([f"number {i}"] * (width - 1) + [("good", "bad")[i % 2]]) for i in range(40)]
    table = written(tmp_path/"a.csv", [header, *lines])
    if twice is None: assert checked(table).ok
    else:
        with pytest.raises(ValueError, match=f"a.csv has 2 columns called '{twice}': give each a name of its own"):
            preflight.check(table)
    if twice == "text":
        with pytest.raises(ValueError, match="2 columns called 'text'"): preflight.inputs_in(table, "text")
        with pytest.raises(ValueError, match="2 columns called 'text'"): preflight.check(table, text_column="text")


def test_a_key_that_is_there_twice_costs_its_line(tmp_path):
    lines = [json.dumps(dict(text=f"it is {i}", label=("good", "bad")[i % 2])) for i in range(40)]
    report = checked(written(tmp_path/"a.jsonl", [*lines, '{"text": "a", "text": "b", "label": "good"}']))
    assert found(report)["line that is no JSON object"][1] == {
        "a.jsonl, line 41": "it is no JSON (the key 'text' is there twice)"}


def test_two_columns_of_parts_are_asked_about(tmp_path):
    lines = [f"{row},{part},{part}" for part in ("train", "test") for row in rows()]
    with pytest.raises(ValueError, match="several columns that say which part a row is of, 'split', 'set': keep one"):
        preflight.check(written(tmp_path/"a.csv", ["text,label,split,set", *lines]))


# Class names

@pytest.mark.parametrize("one, other", [
    ("café", "cafe\u0301"), ("good", "good\u200b"), ("good", "\ufeffgood"), ("very good", "very\xa0good"),
    ("very good", "very  good"), ("good", "go\u00adod"), ("good", "good\u200d")], ids=ascii)
@pytest.mark.parametrize("form", ["table", "several", "folders"])
def test_what_cannot_be_seen_makes_no_class(tmp_path, one, other, form):
    names = [one] * 10 + [other] * 10 + ["bad"] * 20
    if form == "folders":
        for i, name in enumerate(names): written(tmp_path/"moods"/name/f"{i}.txt", [f"number {i}"])
        report = checked(tmp_path/"moods", kind="text")
    else:
        lines = [json.dumps(dict(text=f"number {i}", label=name, more="ab"[i % 2])) for i, name in enumerate(names)]
        columns = dict(label_column=["label", "more"]) if form == "several" else {}
        report = checked(written(tmp_path/"a.jsonl", lines), **columns)
    classes = report.classes["label"] if form == "several" else report.classes
    assert sorted(classes) == sorted(["bad", one]) and report.ok
    then, places = found(report)["label with what cannot be seen"]
    assert then == "notes" and len(places) == (1 if form == "folders" else 10)
    assert f"{ascii(other)} is read as {ascii(one)}" in places.values()


def test_what_cannot_be_seen_in_a_list_is_said_too(tmp_path):
    lines = [json.dumps(dict(text=f"number {i}", label=["a\u200b", "b"][: 1 + i % 2])) for i in range(20)]
    report = checked(written(tmp_path/"a.jsonl", [*lines, json.dumps(dict(text="more", label=["a"]))]))
    assert report.classes == ["a", "b"] and len(found(report)["label with what cannot be seen"][1]) == 20


def test_joiners_inside_a_word_are_letters():
    for name in ("می\u200cخواهم", "क\u094d\u200dष", "👨\u200d👩"): assert class_name(name) == name


@pytest.mark.parametrize("names", [
    ("bad", "Bad"), ("1", "1.0"), ("1", "01"), ("True", "TRUE"), ("New York", "new_york"), ("good", "good."),
    ("A", "Ａ"), ("good", '"good"')])
def test_classes_that_are_nearly_alike_are_noted(tmp_path, names):
    lines = [f"number {i}\t{name}" for i, name in enumerate([*names, "other"] * 10)]
    report = checked(written(tmp_path/"a.tsv", ["text\tlabel", *lines]), quoting="none", objective="classification")
    (place, reason), = found(report)["classes nearly alike"][1].items()
    assert len(report.classes) == 3 and report.ok
    assert all(f"{name!r} (10)" in reason for name in names) and "are 2 classes: if they are one" in reason


@pytest.mark.parametrize("names", [("good", "bad"), ("C", "C++"), ("1", "11"), ("a", "b")])
def test_classes_that_differ_are_not_noted(tmp_path, names):
    lines = [f"number {i},{name}" for i, name in enumerate([*names] * 10)]
    assert not checked(written(tmp_path/"a.csv", ["text,label", *lines])).findings


@pytest.mark.parametrize("cell", ["nan", "NaN", " NAN ", "<NA>", "#N/A", "", "\u200b"])
@pytest.mark.parametrize("others", [("good", "bad"), ("1.5", "2.5"), ("good;bad", "good", "bad")], ids=len)
def test_nan_is_no_label(tmp_path, cell, others):
    lines = [f"number {i},{label}" for i, label in enumerate(others * 20)]
    report = checked(written(tmp_path/"a.csv", ["text,label", *lines, f"one more,{cell}"]))
    assert list(found(report)["missing label"][1]) == [f"a.csv, line {len(lines) + 2}"] and report.ok
    assert "nan" not in report.classes


def test_nan_of_json_and_columns_is_no_label(tmp_path):
    lines = [json.dumps(dict(text=f"number {i}", label=float("nan") if i == 3 else "ab"[i % 2])) for i in range(40)]
    assert list(found(checked(written(tmp_path/"a.jsonl", lines)))["missing label"][1]) == ["a.jsonl, line 4"]
    binary = [f"number {i},{i % 2},{i // 2 % 2}" for i in range(40)]
    report = checked(written(tmp_path/"a.csv", ["text,rude,funny", *binary, "more,nan,1"]),
                     label_column=["rude", "funny"], objective="multi_label")
    assert found(report)["missing label"][1] == {"a.csv, line 42": "nobody says whether it is rude"}


@pytest.mark.parametrize("name", ["None", "n/a", "NULL", "?"])
def test_a_class_that_may_be_none_is_kept_and_noted(tmp_path, name):
    lines = [f"number {i},{label}" for i, label in enumerate(["good", name] * 10)]
    report = checked(written(tmp_path/"a.csv", ["text,label", *lines]))
    assert sorted(report.classes) == sorted([name, "good"])
    assert list(found(report)["class that may be none"][1]) == [name]


@pytest.mark.parametrize("joined", ["a;b", "a|b", "a, b", "a/b", "a & b"])
def test_a_class_that_joins_others_is_noted(tmp_path, joined):
    lines = [f"number {i}\t{label}" for i, label in enumerate(["a", "b"] * 20 + [joined] * 4)]
    report = checked(written(tmp_path/"a.tsv", ["text\tlabel", *lines]))
    assert report.classes[:1] == ["a"] and len(report.classes) == 3
    assert "'a' and 'b' are classes too" in found(report)["class that joins others"][1][joined]


def test_two_columns_without_a_usable_row_stop_by_words(tmp_path):
    table = written(tmp_path/"a.csv", ["text,mood,topic", "one,,x", "two,y,"])
    assert not checked(table, label_column=["mood", "topic"], most_bad=1).ok


# Their order

def test_numbers_stand_by_size_and_keep_their_number(tmp_path):
    lines = [f"number {i},{i % 12}" for i in range(120)]
    task = data.text_table(written(tmp_path/"a.csv", ["text,label", *lines]))
    assert task.classes == [str(i) for i in range(12)]
    for part in (task.train, task.validation, task.test):
        assert [int(words.split()[1]) % 12 for words in part.inputs] == part.labels.tolist()
    assert preflight.check(tmp_path/"a.csv").classes == task.classes


@pytest.mark.parametrize("names, wanted", [
    (["-1", "10", "9", "0"], ["-1", "0", "9", "10"]), (["page 10", "page 2"], ["page 2", "page 10"]),
    (["b", "a", "7"], ["7", "a", "b"]), (["2.5", "10.5"], ["2.5", "10.5"])])
@pytest.mark.parametrize("form", ["table", "tags", "folders"])
def test_classes_stand_as_people_sort_them(tmp_path, names, wanted, form):
    if form == "folders":
        for name in names:
            for i in range(4): written(tmp_path/"a"/name/f"{i}.txt", [f"{name}, number {i}"])
        report = checked(tmp_path/"a", kind="text")
    else:
        lines = [f"number {i},{name}" for i, name in enumerate(names * 10)]
        objective = "multi_label" if form == "tags" else "classification"
        report = checked(written(tmp_path/"a.csv", ["text,label", *lines]), objective=objective)
    assert report.classes == wanted and data.task_of(report).classes == wanted


def test_columns_of_zeros_and_ones_keep_their_order(tmp_path):
    lines = [f"number {i},{i % 2},{i // 2 % 2}" for i in range(40)]
    report = checked(written(tmp_path/"a.csv", ["text,rude,funny", *lines]))
    task = data.task_of(report)
    assert report.classes == task.classes == ["rude", "funny"]
    assert all(int(words.split()[1]) % 2 == row[0] for words, row in zip(task.test.inputs, task.test.targets))


def test_the_order_of_a_dataset_s_classes_is_kept(tmp_path):
    datasets = pytest.importorskip("datasets")
    moods_, colours = datasets.ClassLabel(names=["poor", "so so", "fine"]), datasets.ClassLabel(names=["red", "blue"])
    types = datasets.Features(dict(text=datasets.Value("string"), label=moods_, colour=colours,
                                   tags=datasets.Sequence(colours)))
    numbers = range(60)
    columns = dict(text=[f"number {i}" for i in numbers], label=[i % 3 for i in numbers],
                   colour=[i % 2 for i in numbers], tags=[[i % 2] for i in numbers])
    datasets.Dataset.from_dict(columns, features=types).save_to_disk(tmp_path/"all")
    task = data.from_datasets(str(tmp_path/"all"), label_column="label")
    assert task.classes == ["poor", "so so", "fine"]
    assert [int(words.split()[1]) % 3 for words in task.test.inputs] == task.test.labels.tolist()
    first = datasets.load_from_disk(tmp_path/"all").filter(lambda row: row["label"] != 1)
    first.save_to_disk(tmp_path/"some")
    report = preflight.check(tmp_path/"some", label_column="label")
    assert report.classes == ["poor", "fine"]
    assert "'so so': there is no example of it" in found(report)["class without an example"][1]["label"]
    several = data.task_of(preflight.check(tmp_path/"all", label_column=["label", "colour"]))
    assert {name: asked.classes for name, asked in several.objective.parts.items()} == dict(
        label=["poor", "so so", "fine"], colour=["red", "blue"])
    assert preflight.check(tmp_path/"all", label_column="tags").classes == ["red", "blue"]


def test_the_order_of_a_frame_s_categories_is_kept(tmp_path):
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame(dict(text=[f"number {i}" for i in range(40)],
                              label=pd.Categorical(["low", "high"] * 20, ["low", "high"], ordered=True)))
    frame.to_parquet(tmp_path/"a.parquet")
    assert checked(tmp_path/"a.parquet").classes == ["low", "high"]


# Images that a table names

def listed_pets(folder, column="file_name", label="label", table="metadata.csv", where="", count=10, at=""):
    "Pictures, and a table with a row for each"
    (folder/where).mkdir(parents=True, exist_ok=True)
    names = [f"{i}.png" for i in range(2 * count)]
    for name in names: picture().save(folder/where/name)
    frame = pd.DataFrame({column: [f"{at}{name}" for name in names], label: ["cat", "dog"] * count})
    (folder/table).parent.mkdir(parents=True, exist_ok=True)
    if table.endswith(".csv"): frame.to_csv(folder/table, index=False)
    else: frame.to_json(folder/table, orient="records", lines=True)
    return folder


@pytest.mark.parametrize("options", [
    {}, dict(table="metadata.jsonl"), dict(column="image"), dict(column="filename"), dict(column="path"),
    dict(table="labels.csv", where="images"), dict(table="labels.csv", where="images", at="images/"),
    dict(at="/data/pets/"), dict(at="./"), dict(table="labels.csv", where="a/b", at="b\\"),
    dict(at="pets/"), dict(at="C:\\photos\\"), dict(column="Image_Path", label="species")], ids=str)
def test_images_with_a_table_of_labels(tmp_path, options):
    folder = listed_pets(tmp_path/"pets", **options)
    report = checked(folder)
    assert (report.kind, report.classes, len(report.inputs)) == ("image", ["cat", "dog"], 20) and report.ok
    assert {int(file.stem) % 2: label for file, label in zip(report.inputs, report.labels)} == {0: "cat", 1: "dog"}
    assert not report.findings
    task = data.image_folder(folder)
    assert task.kind == "image" and sum(map(len, (task.train, task.validation, task.test))) == 20
    assert checked(folder/options.get("table", "metadata.csv")).labels == report.labels, "the table itself"


def test_a_table_beside_the_folder_of_images(tmp_path):
    listed_pets(tmp_path/"data", table="labels.csv", where="pets")
    assert checked(tmp_path/"data"/"pets").classes == ["cat", "dog"]
    shutil.move(tmp_path/"data"/"labels.csv", tmp_path/"data"/"other.csv")
    assert not checked(tmp_path/"data"/"pets").ok, "what is called otherwise is not asked"


def test_tables_in_the_folders_of_the_parts(tmp_path):
    for part, count in (("train", 10), ("test", 4)): listed_pets(tmp_path/"pets"/part, count=count)
    report = checked(tmp_path/"pets")
    assert (report.parts.count("train"), report.parts.count("test"), report.ok) == (20, 8, True)


def test_tables_of_parts_and_tables_of_folders_of_parts(tmp_path):
    folder = tmp_path/"pets"
    for part in ("train", "test"): listed_pets(folder, table=f"{part}.csv", where=f"images/{part}", at=f"{part}/")
    assert sorted(set(checked(folder).parts)) == ["test", "train"]
    both = pd.concat([pd.read_csv(folder/f"{part}.csv") for part in ("train", "test")])
    for part in ("train", "test"):
        (folder/f"{part}.csv").unlink()
        (folder/"images"/part).rename(folder/part)
    both.to_csv(folder/"metadata.csv", index=False)
    report = checked(folder)
    assert all(file.parent.name == part for file, part in zip(report.inputs, report.parts)) and len(report.parts) == 40


def test_rows_without_an_image_and_images_without_a_row(tmp_path):
    folder = listed_pets(tmp_path/"pets", count=20)
    (folder/"more").mkdir()
    picture().save(folder/"more"/"3.png") # and so two are called 3.png
    picture().save(folder/"more"/"nobody.png")
    cut = folder/"5.png"
    cut.write_bytes(cut.read_bytes()[:200])
    with open(folder/"metadata.csv", "a") as opened: opened.write("gone.png,cat\n,dog\nmore/3.png,cat\n../7.png,cat\n")
    report = checked(folder, most_bad=0.2)
    assert report.read == 44
    assert dict(report.skipped) == {
        "metadata.csv, line 42": "missing image: there is no image 'gone.png' below the folder",
        "metadata.csv, line 43": "missing image: the row names none",
        "metadata.csv, line 45": "missing image: there is no image '../7.png' below the folder",
        "5.png": f"truncated image: {found(report)['truncated image'][1]['5.png']}"}
    unnamed = {"more/nobody.png": "1 left out: the table does not name them"}
    assert found(report)["image in no row"] == ("notes", unnamed)
    for inner in ("a", "b"): listed_pets(tmp_path/"twice", where=inner, table="labels.csv", count=2)
    picture().save(tmp_path/"twice"/"a"/"only.png")
    with open(tmp_path/"twice"/"labels.csv", "a") as opened: opened.write("only.png,cat\n")
    seen = found(checked(tmp_path/"twice", most_bad=1))["image that is not clear"]
    assert seen[1]["labels.csv, line 2"] == "2 files are called '0.png'" and len(seen[1]) == 4


def test_a_table_of_file_names_is_no_table_of_texts(tmp_path):
    folder = listed_pets(tmp_path/"pets")
    for source in (folder, folder/"metadata.csv"):
        with pytest.raises(ValueError, match="The column 'file_name' of .* names image files, .* say image"):
            preflight.check(source, "text")
    captions = pd.read_csv(folder/"metadata.csv").assign(text=[f"a picture of {i}" for i in range(20)])
    captions.to_csv(folder/"metadata.csv", index=False)
    assert checked(folder).kind == "image"
    assert checked(folder, kind="text").inputs[0] == checked(folder, text_column="text").inputs[0] == "a picture of 0"
    with pytest.raises(ValueError, match="moods.csv' names no image files that are there"):
        preflight.check(moods(tmp_path/"moods.csv"), "image")


def test_folders_of_classes_need_no_table(tmp_path):
    "A list of files that says nothing of classes changes nothing"
    folder = pets(tmp_path/"pets", 5)
    written(folder/"sizes.csv", ["path,width", *(f"cat/{i}.jpg,96" for i in range(5))])
    report = checked(folder)
    assert (report.kind, report.classes, len(report.inputs)) == ("image", ["cat", "dog"], 10)


def test_images_of_several_classes_and_numbers(tmp_path):
    folder = listed_pets(tmp_path/"pets")
    frame = pd.read_csv(folder/"metadata.csv")
    frame["label"] = [["cat", "dog", "cat;dog"][i % 3] for i in range(20)]
    frame.to_csv(folder/"metadata.csv", index=False)
    assert checked(folder).objective == "multi_label"
    frame["label"] = np.arange(20) / 4
    frame.to_csv(folder/"metadata.csv", index=False)
    assert checked(folder).objective == "regression"


# Parts without labels

@pytest.mark.parametrize("header", ["id,text", "id,text,label"], ids=["no column", "no label"])
def test_a_test_part_without_labels_is_left_out(tmp_path, header):
    written(tmp_path/"train.csv", ["id,text,label", *(f"{i},{row}" for i, row in enumerate(rows()))])
    last = "," * (header.count(",") - 1)
    written(tmp_path/"test.csv", [header, *(f"{i},who knows {i}{last}" for i in range(38))])
    report = checked(tmp_path)
    assert report.ok and report.classes == ["bad", "good"] and set(report.parts) == {"train"} and not report.skipped
    assert found(report)["part without labels"][1]["test"].startswith("38 rows left out: ")
    assert len(data.text_table(tmp_path).test) == 8


def test_labels_that_a_dataset_keeps_secret_leave_the_part_out(tmp_path):
    datasets = pytest.importorskip("datasets")
    types = datasets.Features(dict(sentence=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"])))
    def part(name, labels):
        columns = dict(sentence=[f"{name} {i}" for i in range(len(labels))], label=labels)
        return datasets.Dataset.from_dict(columns, features=types)
    parts = datasets.DatasetDict(train=part("train", [0, 1] * 20), test=part("test", [-1] * 20))
    parts.save_to_disk(tmp_path/"sst2")
    report = checked(tmp_path/"sst2")
    assert report.ok and set(report.parts) == {"train"} and len(report.inputs) == 40
    assert found(report)["part without labels"][1] == {"test": "20 rows left out: none of them has a label"}


def test_the_columns_of_the_training_part_are_those_of_all(tmp_path):
    written(tmp_path/"train.csv", ["review,stars", *rows()])
    written(tmp_path/"test.csv", ["stars,review", *(f"{('good', 'bad')[i % 2]},new {i}" for i in range(10))])
    assert data.text_table(tmp_path, "review", "stars").test.inputs == [f"new {i}" for i in range(10)]
    written(tmp_path/"test.csv", ["words,stars", *rows(5)])
    with pytest.raises(ValueError, match="text_column='review' is no column in"):
        data.text_table(tmp_path, "review", "stars")


# Datasets

@pytest.mark.parametrize("kind, values, objective", [
    ("float32", [i / 2 for i in range(40)], "regression"), ("float64", [0.0, 1.0] * 20, "classification"),
    ("tags", [["a"], ["a", "b"]] * 20, "multi_label"), ("bool", [True, False] * 20, "classification")])
@pytest.mark.parametrize("named", [True, False], ids=["named", "clear"])
def test_numbers_and_lists_are_labels_of_a_dataset(tmp_path, kind, values, objective, named):
    datasets = pytest.importorskip("datasets")
    feature = datasets.Sequence(datasets.Value("string")) if kind == "tags" else datasets.Value(kind)
    types = datasets.Features(dict(sentence=datasets.Value("string"), verdict=feature))
    columns = dict(sentence=[f"number {i}" for i in range(40)], verdict=values)
    datasets.Dataset.from_dict(columns, features=types).save_to_disk(tmp_path/"all")
    report = checked(tmp_path/"all", **dict(label_column="verdict") if named else {})
    assert (report.objective, len(report.inputs)) == (objective, 40)


def test_a_column_that_can_be_no_label_says_its_type(tmp_path):
    datasets = pytest.importorskip("datasets")
    types = datasets.Features(dict(text=datasets.Value("string"), label=datasets.Value("string"),
                                   box=datasets.Array2D((2, 2), "float32")))
    columns = dict(text=["a", "b"] * 4, label=["x", "y"] * 4, box=[[[0., 1.], [2., 3.]]] * 8)
    datasets.Dataset.from_dict(columns, features=types).save_to_disk(tmp_path/"all")
    with pytest.raises(ValueError, match="label_column='box' is of the type Array2D, expected names, classes, numbers"):
        data.from_datasets(str(tmp_path/"all"), label_column="box")


# What is no example

@pytest.mark.parametrize("name", ["unsup", "Unlabeled", "unsupervised"])
def test_a_folder_of_texts_without_class_is_no_class(tmp_path, name):
    for label in ("pos", "neg", name):
        for i in range(10): written(tmp_path/"train"/label/f"{i}.txt", [f"{label} {i}"])
    for label in ("pos", "neg"): written(tmp_path/"test"/label/"0.txt", [f"tested {label}"])
    report = checked(tmp_path, kind="text")
    assert report.ok and report.classes == ["neg", "pos"]
    assert found(report)["folder without labels"][1] == {
        f"train/{name}": "10 text files that only a training with --unlabelled (unlabelled=) learns from"}
    assert len(report.unlabelled) == 10


@pytest.mark.parametrize("weights", ["model.safetensors", "checkpoint.safetensors"])
def test_a_model_that_is_saved_among_the_examples_is_no_class(tmp_path, weights):
    folder = pets(tmp_path/"pets", 5)
    for where in (folder/"mine", folder/"cat"/"mine"):
        where.mkdir()
        for name in (weights, "model.json", "vocab.txt"): (where/name).write_text("{}")
        for name in ("curves.png", "confusion.png"): picture().save(where/name)
    report = checked(folder)
    assert report.ok and report.classes == ["cat", "dog"] and len(report.inputs) == 10
    assert set(found(report)["saved model"][1]) == {"mine", "cat/mine"}
    assert len(preflight.inputs_in(folder, "image")) == 10
    for label in ("good", "bad"):
        for i in range(4): written(tmp_path/"moods"/label/f"{i}.txt", [f"{label} {i}"])
    shutil.copytree(folder/"mine", tmp_path/"moods"/"mine")
    report = checked(tmp_path/"moods")
    assert (report.kind, report.classes) == ("text", ["bad", "good"])


@pytest.mark.parametrize("name", ["data.xml", "page.html", "letter.docx", "scan.pdf"])
def test_a_file_of_another_kind_is_not_read_as_one_text(tmp_path, name):
    file = written(tmp_path/name, ['[{"text": "so so"}]'])
    unreadable, = preflight.inputs_in(file, "text")
    assert unreadable.place == str(file) and "neither one text nor a table of texts, expected .csv" in unreadable.reason


@pytest.mark.parametrize("name", ["letter.txt", "letter", "LETTER.TXT", "notes.md"])
def test_a_file_of_letters_is_one_text(tmp_path, name):
    assert preflight.inputs_in(written(tmp_path/name, ["so", "so"]), "text") == ["so\nso\n"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes of that kind there")
@pytest.mark.parametrize("name", ["moods.csv", "moods.jsonl", "63"])
def test_a_pipe_is_refused_by_words_and_nobody_waits_for_it(tmp_path, name):
    os.mkfifo(tmp_path/name)
    with pytest.raises(OSError, match="it is a pipe or a device: write what comes from it to a file"):
        preflight.check(tmp_path/name)
    with pytest.raises(OSError, match="it is a pipe or a device"): preflight.check("/dev/null")
    try: unreadable, = preflight.inputs_in(tmp_path/name, "text")
    except OSError as error: assert "it is a pipe or a device" in str(error)
    else: assert "it is a pipe or a device" in unreadable.reason
    for label in ("good", "bad"):
        for i in range(4): written(tmp_path/"files"/label/f"{i}.txt", [f"{label} {i}"])
    os.mkfifo(tmp_path/"files"/"bad"/"pipe.txt")
    assert "pipe or a device" in found(checked(tmp_path/"files", most_bad=1))["unreadable file"][1]["bad/pipe.txt"]


# Texts that a model cannot read

def test_texts_that_say_nothing_to_the_tokenizer_are_counted(tmp_path):
    model = text.classifier("minilm", 2)
    strange = ["ሰላም ለዓለም" + "!" * i for i in range(1, 7)]
    lines = [f"{words},{label}" for words, label in zip(strange, ["good", "bad"] * 3)]
    report = checked(written(tmp_path/"a.csv", ["text,label", *rows(), *lines])).measure_texts(model)
    (place, reason), = found(report)["text that the model cannot read"][1].items()
    assert "of 6 of 46 texts, written in Ethiopic letters, the tokenizer knows at most half, of 6 nothing" in reason
    assert "xlm-roberta-base" in reason
    assert not checked(written(tmp_path/"b.csv", ["text,label", *rows()])).measure_texts(model).findings


def test_texts_without_a_letter_and_empty_ones_count_too():
    class Tokenizer:
        unk_token_id, all_special_ids = 1, [0, 1]
        def convert_ids_to_tokens(token): return {5: "so", 6: "!"}[token]
    tokens = [[0, 1, 6, 6], [0, 0], [0, 5, 6], [0, 5, 1, 0]]
    seen, = unknown_texts(little_known(["👍!!", "\u200b", "so!", "so 👍"], tokens, Tokenizer), 4)
    assert "of 3 of 4 texts, written in Latin letters, the tokenizer knows at most half, of 2" in seen.places[0][1]
    seen, = unknown_texts(little_known(["👍"], [[1]], Tokenizer), 1)
    assert "of 1 of 1 texts, without a letter" in seen.places[0][1]
    Tokenizer.unk_token_id = None # one of bytes knows everything
    assert not little_known(["👍"], [[7, 8]], Tokenizer)
