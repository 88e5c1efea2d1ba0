"""Ten thousand damaged files.

The readers and the pre-flight answer each with success or an error of our own: never with somebody else's traceback,
never with a hang.
"""
import io, json
from datetime import timedelta
from pathlib import Path
import numpy as np, pandas as pd, pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from finetune_nb import data, preflight, saving
from finetune_nb.engine import findings, pictures, tables

cases = dict(images=4500, tables=2500, json=1000, text_files=1000, bytes=500, folders=300, parquet=300, models=300)
assert sum(cases.values()) >= 10_000


def fuzz(name, **given_):
    "So many cases, the same in each run, each with time enough on a busy machine"
    often = settings(max_examples=cases[name], derandomize=True, database=None, deadline=timedelta(seconds=20),
                     suppress_health_check=list(HealthCheck))
    return lambda test: often(given(**given_)(test))


@pytest.fixture(scope="module")
def top(tmp_path_factory): return tmp_path_factory.mktemp("fuzz")


def ours(call):
    "What `call` gives, or None if it raises an error of ours: raised in our code, in a sentence"
    try: return call()
    except (ValueError, OSError) as error:
        trace = error.__traceback__
        while trace.tb_next: trace = trace.tb_next
        file = trace.tb_frame.f_code.co_filename
        assert "finetune_nb" in Path(file).parts, f"{type(error).__name__} from {file}: {error}"
        assert len(str(error)) > 20, error


def sound(report, read=None):
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


# Images

def encoded():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    sixteen_bits = Image.fromarray(np.arange(768, dtype=np.uint16).reshape(24, 32))
    kinds = [
        ("jpg", picture, dict(exif=exif)), ("jpg", picture.convert("CMYK"), {}),
        ("jpg", picture, dict(progressive=True)), ("png", picture, dict(exif=exif)),
        ("png", picture.quantize(8), dict(transparency=0)), ("png", sixteen_bits, {}),
        ("gif", picture, {}), ("bmp", picture, {}), ("bmp", picture.quantize(16), {}),
        ("tif", picture, {}), ("tif", picture, dict(compression="tiff_lzw")), ("tif", picture.convert("F"), {}),
        ("webp", picture, dict(exif=exif)), ("webp", picture.convert("RGBA"), dict(lossless=True))]
    for ending, image, options in kinds:
        image.save(file := io.BytesIO(), format=dict(jpg="JPEG", tif="TIFF").get(ending, ending.upper()), **options)
        yield ending, file.getvalue()


whole_images = list(encoded())
accident = st.tuples(st.sampled_from(["flip", "cut", "insert", "zero", "repeat"]), st.floats(0, 1), st.integers(0, 255))
damage = st.lists(accident, min_size=1, max_size=4)
maybe_damage = st.one_of(st.just([]), damage)


def damaged(content, how):
    content = bytearray(content)
    for kind, where, value in how:
        i = int(where * max(0, len(content) - 1))
        if not content: break
        if kind == "flip": content[i] ^= value or 1
        elif kind == "cut": del content[i:]
        elif kind == "insert": content[i:i] = bytes([value]) * (value % 9)
        elif kind == "zero": content[i:i + value] = bytes(len(content[i:i + value]))
        else: content[i:i] = content[i:i + value]
    return bytes(content)


def one_image(top, which, how, decode):
    ending, content = whole_images[which]
    (file := top/f"image.{ending}").write_bytes(damaged(content, how))
    seen = pictures.look(file, decode)
    assert seen.fault in ("", "unreadable image", "truncated image", "empty file", "decompression bomb")
    assert bool(seen.fault) == bool(seen.reason)
    opened = ours(lambda: data.open_image(file))
    if opened is not None: assert opened.mode == "RGB" and np.asarray(opened).dtype == np.uint8
    if decode and not seen.fault:
        assert opened is not None and seen.thumbnail.shape == (16, 16), "what the pre-flight passes, training can open"


which_image = st.integers(0, len(whole_images) - 1)


@fuzz("images", which=which_image, how=damage, decode=st.booleans())
def test_images(top, which, how, decode): one_image(top, which, how, decode)


places = st.sampled_from(["cat", "dog", "cat/deep", "", ".hidden", "train/cat", "val/emu"])


@fuzz("folders", spoilt=st.lists(st.tuples(which_image, damage, places), min_size=1, max_size=6))
def test_folders_of_images(tmp_path_factory, spoilt):
    top = tmp_path_factory.mktemp("folder", numbered=True)
    for i, (which, how, where) in enumerate(spoilt):
        (top/where).mkdir(parents=True, exist_ok=True)
        ending, content = whole_images[which]
        (top/where/f"{i}.{ending}").write_bytes(damaged(content, how) if i % 2 else content)
    sound(ours(lambda: preflight.check(top, "image", most_bad=0.5, progress=False)))


# Tables

cell = st.one_of(
    st.sampled_from(["good", "bad", "1", "0", "", " ", "a text", '"', ",", "\n", "\0", "ü", "\u2028", "\ufeff", "nan",
                     "NULL", "good;bad", "['good']", "0.5", "1e999"]),
    st.text(max_size=12))
column = st.sampled_from(["text", "label", "review", "class", "split", "id", "", "Text", "ü"])
usual = st.one_of(st.just(["text", "label"]), st.just(["id", "label", "review"]), st.just(["split", "text", "class"]),
                  st.lists(column, max_size=4))
wide = usual.flatmap(lambda names: st.tuples(st.just(names), st.lists(st.one_of(
    st.lists(cell, min_size=len(names), max_size=len(names)), st.lists(cell, max_size=4)), max_size=12)))
sane = st.sampled_from([0, 0, 4, 8]) # rows in order before them, so that some tables go on


encodings = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "latin-1", "shift_jis",
                             "cp437"])
objectives = st.sampled_from([None, None, None, "classification", "multi_label", "regression", "several"])


def in_order(names, count):
    def cell_of(name, i):
        if name in ("label", "class"): return "ab"[i % 2]
        if name == "split": return ("train", "test", "val", "train")[i // 2 % 4]
        return f"{name} number {i}"
    return [[cell_of(name, i) for name in names] for i in range(count)]


@fuzz("tables", table=wide, count=sane, delimiter=st.sampled_from([",", ";", "\t", "|"]),
      quote=st.sampled_from([True, True, True, False]), encoding=encodings, how=st.one_of(st.just([]), maybe_damage),
      ending=st.sampled_from([".csv", ".tsv"]), objective=objectives)
def test_tables(top, table, count, delimiter, quote, encoding, how, ending, objective):
    names, rows = table
    def written(value): return '"' + value.replace('"', '""') + '"' if quote else value
    content = "\n".join(delimiter.join(map(written, row)) for row in [names, *in_order(names, count), *rows])
    (file := top/f"table{ending}").write_bytes(damaged(content.encode(encoding, errors="replace"), how))
    sound(ours(lambda: preflight.check(file, most_bad=0.5, objective=objective)))


leaf = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
value = st.recursive(leaf, lambda inner: st.lists(inner, max_size=2)
                     | st.dictionaries(st.text(max_size=3), inner, max_size=2), max_leaves=3)
good_value = st.sampled_from(["good", "bad", "train", "test"])
keys = st.sampled_from(["text", "label", "split", "more"])
row = st.one_of(st.dictionaries(keys, st.one_of(value, good_value), max_size=4), value)


@fuzz("json", rows=st.lists(row, max_size=12), count=sane, encoding=encodings, how=maybe_damage, objective=objectives)
def test_json_lines(top, rows, count, encoding, how, objective):
    whole = [dict(zip(("text", "label"), r)) for r in in_order(["text", "label"], count)]
    (file := top/"table.jsonl").write_bytes(damaged("\n".join(map(json.dumps, whole + rows)).encode(encoding), how))
    sound(ours(lambda: preflight.check(file, most_bad=0.5, objective=objective)))


@fuzz("bytes", content=st.binary(max_size=300),
      ending=st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet", ".txt", ".docx"]))
def test_any_bytes(top, content, ending):
    (file := top/f"any{ending}").write_bytes(content)
    sound(ours(lambda: preflight.check(file)))
    ours(lambda: preflight.inputs_in(file, "text"))


encoded_text = st.text(max_size=40).flatmap(lambda text: encodings.map(lambda e: text.encode(e, errors="replace")))


@fuzz("text_files", content=st.one_of(st.binary(max_size=60), encoded_text))
def test_text_files(top, content):
    text = tables.decoded(content, "a.txt", findings.Notes())
    assert text is None or isinstance(text, str)
    (file := top/"a.txt").write_bytes(content)
    ours(lambda: preflight.inputs_in(file, "text"))


@fuzz("parquet", how=damage)
def test_parquet(top, how):
    pytest.importorskip("pyarrow")
    pd.DataFrame(dict(text=["one", "two", "three"] * 4, label=[0, 1] * 6)).to_parquet(buffer := io.BytesIO())
    (file := top/"table.parquet").write_bytes(damaged(buffer.getvalue(), how))
    sound(ours(lambda: preflight.check(file, most_bad=0.5)))


# Saved models

usual_model = st.fixed_dictionaries(
    dict(kind=st.sampled_from(["text", "image", "sound"]) | value, sha256=value,
         classes=st.lists(st.text(max_size=3), max_size=3) | value),
    optional=dict(backbone=value, options=value, pooling=value, max_length=value))


@fuzz("models", about=st.one_of(value, usual_model))
def test_models(top, about):
    (folder := top/"model").mkdir(exist_ok=True)
    (folder/"model.safetensors").write_bytes(b"no weights")
    (folder/"model.json").write_text(json.dumps(about))
    assert ours(lambda: saving.load(folder)) is None
