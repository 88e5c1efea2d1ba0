"""Ten thousand damaged files: the readers and the pre-flight answer each with success or an error of our own, never somebody else's traceback, never a hang."""
import io, json
from datetime import timedelta
from pathlib import Path
import numpy as np, pandas as pd, pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from finetune_nb import data, preflight, saving

cases = dict(images=4500, tables=2500, json=1000, text_files=1000, bytes=500, folders=300, parquet=300, models=300)
assert sum(cases.values()) >= 10_000


def fuzz(name, **given_):
    "So many cases, the same in each run, each with time enough on a busy machine"
    def wrap(test): return settings(max_examples=cases[name], derandomize=True, database=None, deadline=timedelta(seconds=20), suppress_health_check=list(HealthCheck))(given(**given_)(test))
    return wrap


@pytest.fixture(scope="module")
def top(tmp_path_factory): return tmp_path_factory.mktemp("fuzz")


def ours(call):
    "What `call` gives, or None if it raises an error of ours: raised in our code, in a sentence"
    try: return call()
    except (ValueError, OSError) as error:
        trace = error.__traceback__
        while trace.tb_next: trace = trace.tb_next
        assert "finetune_nb" in Path(trace.tb_frame.f_code.co_filename).parts, f"{type(error).__name__} from {trace.tb_frame.f_code.co_filename}: {error}"
        assert len(str(error)) > 20, error


def sound(report, read=None):
    "The report of a pre-flight is whole, and its task, if it goes on, can be made"
    if report is None: return
    assert len(report.inputs) == len(report.labels) == len(report.parts) == len(report.groups) == report.read - len(report.skipped)
    assert report.verdict in repr(report) and report._repr_html_() and json.dumps(report.summary())
    assert {f.then for f in report.findings} <= {"skips", "stops", "notes"}
    if report.ok:
        task = data.task_of(report)
        assert len(task.train) + len(task.validation) + len(task.test) == len(report.inputs) and task.num_classes >= 2
    else: assert ours(report.require) is None


# Images

def encoded():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
    exif = Image.Exif(); exif[0x0112] = 6; exif[0x010E] = "a picture"
    for ending, image, options in (("jpg", picture, dict(exif=exif)), ("jpg", picture.convert("CMYK"), {}), ("jpg", picture, dict(progressive=True)), ("png", picture, dict(exif=exif)), ("png", picture.quantize(8), dict(transparency=0)),
                                   ("png", Image.fromarray(np.arange(768, dtype=np.uint16).reshape(24, 32)), {}), ("gif", picture, {}), ("bmp", picture, {}), ("bmp", picture.quantize(16), {}), ("tif", picture, {}), ("tif", picture, dict(compression="tiff_lzw")),
                                   ("tif", picture.convert("F"), {}), ("webp", picture, dict(exif=exif)), ("webp", picture.convert("RGBA"), dict(lossless=True))):
        image.save(file := io.BytesIO(), format=dict(jpg="JPEG", tif="TIFF").get(ending, ending.upper()), **options)
        yield ending, file.getvalue()


whole_images = list(encoded())
damage = st.lists(st.tuples(st.sampled_from(["flip", "cut", "insert", "zero", "repeat"]), st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4)


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
    fault, reason, remark, thumbnail = preflight._look(file, decode)
    assert fault in ("", "unreadable image", "truncated image", "empty file", "decompression bomb") and bool(fault) == bool(reason)
    opened = ours(lambda: data.open_image(file))
    if opened is not None: assert opened.mode == "RGB" and np.asarray(opened).dtype == np.uint8
    if decode and not fault: assert opened is not None and thumbnail.shape == (16, 16), "what the pre-flight passes, training can open"


@fuzz("images", which=st.integers(0, len(whole_images) - 1), how=damage, decode=st.booleans())
def test_images(top, which, how, decode): one_image(top, which, how, decode)


@fuzz("folders", spoilt=st.lists(st.tuples(st.integers(0, len(whole_images) - 1), damage, st.sampled_from(["cat", "dog", "cat/deep", "", ".hidden", "train/cat", "val/emu"])), min_size=1, max_size=6))
def test_folders_of_images(tmp_path_factory, spoilt):
    top = tmp_path_factory.mktemp("folder", numbered=True)
    for i, (which, how, where) in enumerate(spoilt):
        (top/where).mkdir(parents=True, exist_ok=True)
        (top/where/f"{i}.{whole_images[which][0]}").write_bytes(damaged(whole_images[which][1], how) if i % 2 else whole_images[which][1])
    sound(ours(lambda: preflight.check(top, "image", most_bad=0.5, progress=False)))


# Tables

cell = st.one_of(st.sampled_from(["good", "bad", "1", "0", "", " ", "a text", '"', ",", "\n", "\0", "ü", "\u2028", "\ufeff", "nan", "NULL"]), st.text(max_size=12))
usual = st.one_of(st.just(["text", "label"]), st.just(["id", "label", "review"]), st.just(["split", "text", "class"]), st.lists(st.sampled_from(["text", "label", "review", "class", "split", "id", "", "Text", "ü"]), max_size=4))
wide = usual.flatmap(lambda names: st.tuples(st.just(names), st.lists(st.one_of(st.lists(cell, min_size=len(names), max_size=len(names)), st.lists(cell, max_size=4)), max_size=12)))
sane = st.sampled_from([0, 0, 4, 8]) # rows in order before them, so that some tables go on


def in_order(names, count): return [[dict(label="ab"[i % 2], split=("train", "test", "val", "train")[i // 2 % 4]).get("label" if name in ("label", "class") else name, f"{name} number {i}") for name in names] for i in range(count)]
encodings = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "latin-1", "shift_jis", "cp437"])


@fuzz("tables", table=wide, count=sane, delimiter=st.sampled_from([",", ";", "\t", "|"]), quote=st.sampled_from([True, True, True, False]), encoding=encodings, how=st.one_of(st.just([]), st.just([]), damage), ending=st.sampled_from([".csv", ".tsv"]))
def test_tables(top, table, count, delimiter, quote, encoding, how, ending):
    names, rows = table
    def written(value): return '"' + value.replace('"', '""') + '"' if quote else value
    content = "\n".join(delimiter.join(map(written, row)) for row in [names, *in_order(names, count), *rows])
    (file := top/f"table{ending}").write_bytes(damaged(content.encode(encoding, errors="replace"), how))
    sound(ours(lambda: preflight.check(file, most_bad=0.5)))


value = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)), lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2), max_leaves=3)
row = st.one_of(st.dictionaries(st.sampled_from(["text", "label", "split", "more"]), st.one_of(value, st.sampled_from(["good", "bad", "train", "test"])), max_size=4), value)


@fuzz("json", rows=st.lists(row, max_size=12), count=sane, encoding=encodings, how=st.one_of(st.just([]), damage))
def test_json_lines(top, rows, count, encoding, how):
    whole = [dict(zip(("text", "label"), r)) for r in in_order(["text", "label"], count)]
    (file := top/"table.jsonl").write_bytes(damaged("\n".join(map(json.dumps, whole + rows)).encode(encoding), how))
    sound(ours(lambda: preflight.check(file, most_bad=0.5)))


@fuzz("bytes", content=st.binary(max_size=300), ending=st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet", ".txt", ".docx"]))
def test_any_bytes(top, content, ending):
    (file := top/f"any{ending}").write_bytes(content)
    sound(ours(lambda: preflight.check(file)))
    ours(lambda: preflight.inputs_in(file, "text"))


@fuzz("text_files", content=st.one_of(st.binary(max_size=60), st.text(max_size=40).flatmap(lambda t: encodings.map(lambda e: t.encode(e, errors="replace")))))
def test_text_files(top, content):
    notes = preflight._Notes()
    text = preflight._decoded(content, "a.txt", notes)
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

@fuzz("models", about=st.one_of(value, st.fixed_dictionaries(dict(kind=st.sampled_from(["text", "image", "sound"]) | value, classes=st.lists(st.text(max_size=3), max_size=3) | value, sha256=value),
                                                              optional=dict(backbone=value, options=value, pooling=value, max_length=value))))
def test_models(top, about):
    (folder := top/"model").mkdir(exist_ok=True)
    (folder/"model.safetensors").write_bytes(b"no weights")
    (folder/"model.json").write_text(json.dumps(about))
    assert ours(lambda: saving.load(folder)) is None
