"""Damaged, odd and hostile files, and bytes on standard input.

Each is answered with success or an error of our own, never with somebody else's traceback, never with a hang; and each
row that was written is read, or told of.
"""
import csv, functools, gzip, importlib.util, io, json, re, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
from finetune_nb import cli, data, preflight, saving
from finetune_nb.engine import findings, pictures, tables
from finetune_nb.freezing import freeze
from fuzzing import foreign, fuzz, ours

here = Path(__file__).resolve().parent
csv.field_size_limit(10_000_000) # the texts may be long


@pytest.fixture(scope="module")
def top(tmp_path_factory): return tmp_path_factory.mktemp("fuzz")


# The rule can fail

def raised(call):
    with pytest.raises(Exception) as caught: call()
    return caught.value


@pytest.mark.parametrize("call, why", [
    (lambda: int("x"), "it comes from"),
    (lambda: pd.read_csv(io.StringIO("")), "it comes from"),
    (lambda: data.PARTS["train"], "it comes from"),
    (lambda: findings.told(3, "skips"), "no `raise` of ours"),
    (lambda: findings.letters_fault(None, "text"), "no `raise` of ours"),
    (lambda: data.Examples(range(2), dict(a=[1, 2])).subset({}[3]), "KeyError is no error that we foresee"),
    (lambda: tables.known_encoding("klingon"), ""), # with another's error as its cause
    (lambda: freeze(3, 1), ""),
], ids=["Python", "library", "this file", "our loop", "our operator", "another kind", "cause", "ours"])
def test_errors_of_others_are_told_from_ours(call, why):
    found = foreign(raised(call))
    assert why in found if why else not found


def sound(report):
    "The report of a pre-flight is whole, and its task, if it goes on, can be made"
    if report is None: return
    each = report.inputs, report.labels, report.targets, report.parts, report.groups
    assert {len(values) for values in each} == {report.read - len(report.skipped)}
    assert report.verdict in repr(report) and report._repr_html_() and json.dumps(report.summary())
    assert report.counts() is not None
    assert {f.then for f in report.findings} <= {"skips", "stops", "notes"}
    if not report.ok: assert ours(report.require) is None
    elif report.objective == "classification":
        task = data.task_of(report)
        assert sum(map(len, (task.train, task.validation, task.test))) == len(report.inputs) and task.num_classes >= 2


# Damage

def damaged(content, rng, most=4):
    "Up to so many accidents: bits flip, ends are lost, zeros are written, pieces come twice"
    content = bytearray(content)
    for _ in range(rng.randint(1, most)):
        if not content: break
        i, value = rng.randrange(len(content)), rng.randrange(256)
        kind = rng.choice(["flip", "cut", "insert", "zero", "repeat"])
        if kind == "flip": content[i] ^= value or 1
        elif kind == "cut": del content[i:]
        elif kind == "insert": content[i:i] = bytes([value]) * (value % 9)
        elif kind == "zero": content[i:i + value] = bytes(len(content[i:i + value]))
        else: content[i:i] = content[i:i + value]
    return bytes(content)


# Images

modes = dict(PNG="1 L LA P RGB RGBA I;16", JPEG="L RGB CMYK", GIF="1 L P", BMP="1 L P RGB",
             TIFF="1 L LA P RGB RGBA CMYK YCbCr LAB I;16 I F", WEBP="RGB RGBA", AVIF="L RGB RGBA")
endings = dict(PNG=".png", JPEG=".jpg", GIF=".gif", BMP=".bmp", TIFF=".tif", WEBP=".webp", AVIF=".avif", HEIF=".heic")
special = dict(JPEG=("progressive", True), TIFF=("compression", "tiff_lzw"), WEBP=("lossless", True),
               PNG=("transparency", 0), GIF=("transparency", 0), AVIF=("quality", 30),
               HEIF=("quality", 30)) # how some are written
if importlib.util.find_spec("pillow_heif"):
    import pillow_heif
    pillow_heif.register_heif_opener()
    modes["HEIF"] = "RGB"
sizes = (32, 24), (1, 1), (1, 40), (40, 1), (17, 16)


def drawn(mode, size):
    "A picture of noise"
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    if mode == "I;16": return Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    if mode == "LAB": return Image.frombytes("LAB", size, noise.tobytes())
    return Image.fromarray(noise).convert(mode)


def exif_of(rng):
    "What a camera says, right or wrong"
    exif = Image.Exif()
    exif[0x0112] = rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 65535])
    exif[0x010E] = "a picture"
    return exif


@functools.cache
def encoded(form, mode, size, frames, option):
    "A whole image file"
    image, options = drawn(mode, size), dict(option)
    more = [image.rotate(90 * i) for i in range(1, frames)]
    if more: options |= dict(save_all=True, append_images=more)
    image.save(file := io.BytesIO(), format=form, **options)
    return file.getvalue()


def one_image(rng):
    "The bytes of an image, and its right ending"
    form = rng.choice(list(modes))
    mode, size = rng.choice(modes[form].split()), rng.choice(sizes)
    usual = form == "BMP" or form == "PNG" and mode not in ("L", "P") or rng.random() < 0.7
    option = () if usual else (special[form],)
    frames = rng.choice([1, 1, 1, 3]) if form in ("GIF", "PNG", "TIFF", "WEBP") and size != (1, 1) else 1
    content = encoded(form, mode, size, frames, option)
    if form in ("JPEG", "PNG", "WEBP") and frames == 1 and rng.random() < 0.3:
        image = Image.open(io.BytesIO(content))
        image.save(file := io.BytesIO(), format=form, exif=exif_of(rng))
        content = file.getvalue()
    return content, endings[form]


def spoilt(content, ending, rng):
    "The same, as accidents leave it, and perhaps with another ending"
    chance = rng.random()
    if chance < 0.03: content = b""
    elif chance < 0.06: content = bytes(len(content))
    elif chance < 0.09: content = rng.choice([b"<html>", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0"])
    elif chance < 0.7: content = damaged(content, rng)
    if rng.random() < 0.1: ending = rng.choice(list(endings.values()))
    return content, ending


@fuzz(5000)
def test_images(rng, top):
    whole, ending = one_image(rng)
    content, ending = spoilt(whole, ending, rng)
    (file := top/f"image{ending}").write_bytes(content)
    decode = rng.random() < 0.6
    seen = pictures.look(file, decode)
    assert seen.fault in ("", "unreadable image", "truncated image", "empty file", "decompression bomb")
    assert bool(seen.fault) == bool(seen.reason)
    if content == whole: assert not seen.fault, seen
    opened = ours(lambda: data.open_image(file))
    if opened is not None: assert opened.mode == "RGB" and np.asarray(opened).dtype == np.uint8
    if decode and not seen.fault:
        assert opened is not None and seen.thumbnail.shape == (16, 16), "what the pre-flight passes, training can open"


@fuzz(400)
def test_folders_of_images(rng, tmp_path_factory):
    top, count = tmp_path_factory.mktemp("folder", numbered=True), rng.randint(1, 6)
    for i in range(count):
        folder = top/rng.choice(["cat", "dog", "cat/deep", "", ".hidden", "train/cat", "val/emu"])
        folder.mkdir(parents=True, exist_ok=True)
        content, ending = one_image(rng)
        if i % 2: content, ending = spoilt(content, ending, rng)
        (folder/f"{i}{ending}").write_bytes(content)
    report = ours(lambda: preflight.check(top, "image", most_bad=0.5, progress=False))
    sound(report)
    if report is None: return
    places = [place for finding in report.findings for place, _ in finding.places]
    told = {*places, *(name for place in places for name in place.split(", "))} # folders are told together
    loose = {str(Path(place).parent) for f in report.findings if f.what == "image in no class" for place, _ in f.places}
    for file in top.rglob("*.*"):
        if file.is_dir() or str(file) in map(str, report.inputs): continue
        place = file.relative_to(top)
        known = str(place) in told or str(place.parent) in loose or any(str(above) in told for above in place.parents)
        assert known, f"{place} is neither read nor told of: {places}"


# Tables

odd = ["", " ", '"', '""', "'", 'a "quoted" word', '5"', "\\", '\\"', "nan", "NULL", "None", "0.5", "1e999", "=1+1",
       "good;bad", "good|bad", "['good']", "[]", "{}", "\ufeff", "\u200b", "\u2028", "\x85", "\x0b", "\x1a", "\x1c",
       "\0", "café", "cafe\u0301", "ß", "Ω", "日本語", "🙂", "\u202eabc", "true", "TRUE", "1", "1.0", "01", "²", "١"]
broken = [",", ";", "\t", "|", "\n", "\r\n", "\r", 'a\n"b', "one, two"] # what only quotation marks can hold
encodings = ["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "latin-1", "shift_jis", "cp437"]
objectives = [None] * 6 + ["classification", "multi_label", "regression", "several"]


def some_text(rng, quoted):
    "A cell, as people write them, or as nobody does"
    chance = rng.random()
    if chance < 0.4: return rng.choice(["well made", "broken on arrival", "not bad at all"])
    if chance < 0.8: return rng.choice(odd + broken * quoted)
    if chance < 0.804: return "far too long " * 20_000
    letters = (chr(rng.choice([rng.randrange(32, 127), rng.randrange(160, 0xd800), rng.randrange(0x10000, 0x11000)]))
               for _ in range(rng.randrange(12)))
    return "".join(letter for letter in letters if letter != "#" and (quoted or letter not in ',;\t|"'))


def some_label(rng, usual):
    return rng.choice(usual) if rng.random() < 0.95 else some_text(rng, False)


def some_rows(rng, quoted):
    "Names of columns, and rows: each has a number in its text, by which it is found again"
    names = rng.choice([["text", "label"], ["label", "text"], ["id", "label", "review"], ["split", "text", "class"]])
    kinds = [["good", "bad"], ["0", "1"], ["1", "2", "3"], ["0.5", "1.5", "2.25"], ["a", "a; b", "b"]]
    usual = rng.choice(kinds[:4 + quoted])
    odds = rng.choice([0, 0, 0.1, 0.5])
    def cell(name, i):
        if name in ("text", "review"): return f"{some_text(rng, quoted) if rng.random() < odds else 'text'} #{i}#"
        if name in ("label", "class"): return some_label(rng, usual) if rng.random() < odds else usual[i % len(usual)]
        return ("train", "test", "val", "train")[i // 2 % 4] if name == "split" else f"#{i}#"
    rows = [[cell(name, i) for name in names] for i in range(rng.choice([0, 1, 2, 12, 20]))]
    ragged = rng.random() < 0.2
    def torn(row, i): return row[:rng.randrange(1, 4)] + [f"more #{i}#"] * rng.choice([0, 0, 2])
    return names, [torn(row, i) if ragged else row for i, row in enumerate(rows)]


def line_after(text):
    "On which line comes what is written next?"
    return len(io.StringIO(text + "x", newline="").readlines())


def as_csv(rows, quoted, delimiter, end, rng):
    "A table as text, and on which line each row begins"
    text, starts = rng.choice([f"sep={delimiter}{end}", f"# a remark{end}", end]) if rng.random() < 0.05 else "", []
    for row in rows:
        if rng.random() < 0.02: text += end
        starts.append(line_after(text))
        if quoted:
            quoting = csv.QUOTE_ALL if rng.random() < 0.5 or "\r" in "".join(row) else csv.QUOTE_MINIMAL
            how = dict(delimiter=delimiter, lineterminator=end, quoting=quoting)
            csv.writer(line := io.StringIO(newline=""), **how).writerow(row)
            text += line.getvalue()
        else: text += delimiter.join(row) + end
    return text, starts


def account(report, starts, name):
    "Every row that was written is one of the inputs, by itself, or its line is told"
    places = " ".join(f"{place}: {reason}; " for finding in report.findings for place, reason in finding.places)
    rows = [f"{text} {label}" for text, label in zip(report.inputs, report.labels)] # a comma may cut a text in two
    numbers = [{part for part in row.split("#")[1::2] if part.isdecimal()} for row in rows]
    read = {number for own in numbers if len(own) == 1 for number in own}
    lost = [i for i, line in enumerate(starts) if str(i) not in read and not re.search(rf"lines? {line}\b", places)]
    together = sum(map(int, re.findall(r"(\d+) rows left out", places))) # of a part without labels
    assert len(lost) == together, f"rows {lost} of {name} are neither read nor told of: {places[:500]}"


def to_be_read(top, name, content, starts, objective, must):
    "Look at a table that was written so; `must`: nothing about it is a reason to refuse it"
    (file := top/name).write_bytes(content)
    report = ours(lambda: preflight.check(file, most_bad=1, objective=objective))
    assert report is not None or not must
    sound(report)
    if report is not None: account(report, starts, name)


@fuzz(3600)
def test_tables(rng, top):
    quoted, ending = rng.random() < 0.7, rng.choice([".csv", ".csv", ".tsv"])
    delimiter, encoding, objective = rng.choice(",;\t|"), rng.choice(encodings), rng.choice(objectives)
    names, rows = some_rows(rng, quoted)
    if ending == ".tsv": delimiter = "\t"
    text, (first, *starts) = as_csv([names, *rows], quoted, delimiter, rng.choice(["\n", "\n", "\r\n", "\r"]), rng)
    if rng.random() < 0.1: text = text.rstrip("\r\n")
    whole = any(len(row) == len(names) for row in rows)
    must = quoted and encoding.startswith("utf-8") and first == 1 and whole and objective is None
    to_be_read(top, f"table{ending}", text.encode(encoding, errors="replace"), starts, objective, must)


@fuzz(1500)
def test_damaged_tables(rng, top):
    names, rows = some_rows(rng, True)
    text, _ = as_csv([names, *rows], True, rng.choice(",;\t|"), "\n", rng)
    content = damaged(text.encode(rng.choice(encodings), errors="replace"), rng)
    (file := top/f"damaged{rng.choice(['.csv', '.tsv', '.json', '.jsonl', '.txt'])}").write_bytes(content)
    sound(ours(lambda: preflight.check(file, most_bad=0.5, objective=rng.choice(objectives))))
    ours(lambda: preflight.inputs_in(file, "text"))


def some_value(rng, depth=2):
    "Anything that JSON can say"
    if depth and rng.random() < 0.3:
        return rng.choice([[some_value(rng, depth - 1)], {"a": some_value(rng, depth - 1)}, [], {}])
    return rng.choice([None, True, False, 0, -1, 10**30, 0.5, 1e300, float("nan"), float("inf"), "", "good", "\ud800",
                       "\0"])


@fuzz(1200)
def test_json_lines(rng, top):
    names, rows = some_rows(rng, True)
    lines, odds = [], rng.choice([0, 0, 0.2])
    for i, row in enumerate(rows):
        cells = dict(zip(names, row))
        value = some_value(rng)
        if isinstance(value, str): value += f" #{i}#"
        if i and rng.random() < odds: cells[rng.choice([*names, "more"])] = value
        if i and rng.random() < odds: del cells[rng.choice(list(cells))]
        if i and rng.random() < odds / 2: cells = rng.choice([some_value(rng), [cells]])
        lines.append(json.dumps(cells, ensure_ascii=rng.random() < 0.5))
    content = "".join(line + rng.choice(["\n", "\n", "\r\n"]) for line in lines)
    content = content.encode(rng.choice(encodings), errors="backslashreplace")
    to_be_read(top, f"table{rng.choice(['.jsonl', '.ndjson'])}", content, range(1, len(rows) + 1), None, False)


def some_bytes(rng, most=60):
    "Letters in some encoding, or none"
    if rng.random() < 0.5: return rng.randbytes(rng.randrange(most))
    text = "".join(some_text(rng, True)[:40] for _ in range(rng.randrange(4)))
    return text.encode(rng.choice(encodings), errors="replace")


@fuzz(2000)
def test_any_bytes(rng, top):
    content = some_bytes(rng, 300)
    text = tables.decoded(content, "a.txt", findings.Notes())
    assert text is None or isinstance(text, str)
    ending = rng.choice([".csv", ".tsv", ".json", ".jsonl.gz", ".parquet", ".xlsx", ".txt", ".docx"])
    (file := top/f"any{ending}").write_bytes(content)
    sound(ours(lambda: preflight.check(file)))
    ours(lambda: preflight.inputs_in(file, "text"))


@functools.cache
def packed(ending):
    "A whole table in a format that is no text"
    frame, buffer = pd.DataFrame(dict(text=["one", "two", "three"] * 4, label=[0, 1] * 6)), io.BytesIO()
    if ending == ".parquet": frame.to_parquet(buffer)
    elif ending == ".xlsx": frame.to_excel(buffer, index=False)
    else: buffer.write(gzip.compress(frame.to_csv(index=False).encode(), mtime=0))
    return buffer.getvalue()


@pytest.mark.parametrize("ending, reader", [(".parquet", "pyarrow"), (".xlsx", "openpyxl"), (".csv.gz", "gzip")])
@fuzz(200)
def test_packed_tables(rng, top, ending, reader):
    pytest.importorskip(reader)
    (file := top/f"table{ending}").write_bytes(damaged(packed(ending), rng))
    sound(ours(lambda: preflight.check(file, most_bad=0.5)))


# Saved models

@fuzz(500)
def test_models(rng, top):
    about = some_value(rng)
    if rng.random() < 0.8:
        about = dict(kind=rng.choice(["text", "image", "sound", some_value(rng)]), sha256=some_value(rng),
                     classes=rng.choice([["good", "bad"], some_value(rng)]))
        for name in ("backbone", "options", "pooling", "max_length", "objective"):
            if rng.random() < 0.3: about[name] = some_value(rng)
    (folder := top/"model").mkdir(exist_ok=True)
    (folder/"model.safetensors").write_bytes(b"no weights")
    (folder/"model.json").write_text(json.dumps(about))
    assert ours(lambda: saving.load(folder)) is None


# Standard input

@pytest.fixture(scope="module")
def reads_texts(): return saving.load(here/"data"/"saved_by_7167351"/"text-mean")


def answered(content, arguments, encoding):
    "The exit code of `finetune-nb predict`, what it prints, and what it says, for bytes on standard input"
    streams = [io.TextIOWrapper(io.BytesIO(given), encoding) for given in (content, b"", b"")]
    with pytest.MonkeyPatch.context() as patch:
        for name, stream in zip(("stdin", "stdout", "stderr"), streams): patch.setattr(sys, name, stream)
        patch.setattr(sys, "argv", ["finetune-nb", "predict", "model", *arguments])
        with pytest.raises(SystemExit) as ended: cli.main()
    for stream in streams[1:]: stream.flush()
    return ended.value.code or 0, *(stream.buffer.getvalue().decode("utf-8", "replace") for stream in streams[1:])


def some_lines(rng):
    "Lines as programs write them, or as nobody does"
    def line():
        if rng.random() < 0.3: return rng.randbytes(rng.randrange(20)).translate(None, b"\r\n")
        text = some_text(rng, True).translate({10: None, 13: None})
        return text.encode(rng.choice(["utf-8"] * 8 + ["cp1252", "shift_jis"]), errors="replace")
    content = b"".join(line() + rng.choice([b"\n", b"\n", b"\r\n"]) for _ in range(rng.randrange(6)))
    if rng.random() < 0.1: content = content.rstrip(b"\r\n")
    if rng.random() < 0.05: content = b"\xef\xbb\xbf" + content
    return content


@fuzz(1500)
def test_standard_input(rng, reads_texts, monkeypatch):
    monkeypatch.setattr(saving, "load", lambda folder: reads_texts)
    content, as_json = some_lines(rng), rng.random() < 0.5
    code, printed, said = answered(content, ["--json"] if as_json else [], rng.choice(["utf-8", "ascii", "cp1252"]))
    assert code in (0, 1) and "Traceback" not in said
    lines = content.removeprefix(b"\xef\xbb\xbf")
    count = lines.count(b"\n") + (lines[-1:] not in (b"", b"\n"))
    if not count: return
    rows = list(map(json.loads, printed.split("\n")[:-1])) if as_json else list(csv.DictReader(io.StringIO(printed)))
    assert len(rows) == count, f"{len(rows)} answers for {count} lines"
    assert all(bool(row["class"]) != bool(row.get("error")) for row in rows), "an answer or an error, for each line"
    assert code == any(row.get("error") for row in rows)
