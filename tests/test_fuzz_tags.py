"""Files of tags as people and accidents write them: what is whole is read to the letter, what is not is told of."""
import json

import pytest

from finetune_nb import data, preflight
from finetune_nb.engine.tags import Words, as_iob2, entities, spans_of
from fuzzing import fuzz, ours
from test_fuzz import damaged, sound
from test_tagging import drawn_entities, lines, written

letters = "aZé9#@.-'東न\u0301\ufe0f\u2028\xa0🙂"


@pytest.fixture(scope="module")
def top(tmp_path_factory): return tmp_path_factory.mktemp("tags")


def drawn(rng):
    "Sentences of odd words, with entities"
    told = []
    for _ in range(rng.randint(3, 12)):
        words = ["".join(rng.choice(letters) for _ in range(rng.randint(1, 6))) for _ in range(rng.randint(1, 9))]
        words = [word.strip().replace("\xa0", "") or "x" for word in words]
        told.append((words, written(drawn_entities(rng, len(words)), len(words), "IOB2")))
    return told + [(["Ada", "left"], ["B-X", "O"]), (["Bo"], ["B-Y"]), (["so", "it", "goes"], ["O", "O", "O"])]


def conll(rng, told):
    "A file in one of the schemes, with columns, blank lines, ends of lines and comments as they come"
    scheme, mark, end = rng.choice(["IOB1", "IOB2", "BIOES"]), rng.choice("\t "), rng.choice(["\n", "\r\n"])
    more, blank = rng.choice([[], ["NN"], ["NN", "I-NP"]]), rng.choice(["", " ", "\t"] if mark == "\t" else [""])
    rows = ["-DOCSTART-" + mark + "O", ""] if rng.random() < .3 else []
    for words, tags in told:
        if rng.random() < .3: rows.append(f"# a comment of {rng.randint(1, 9)} words or so")
        tags = written(entities(tags), len(tags), scheme)
        rows += [mark.join([word, *more, tag]) for word, tag in zip(words, tags)]
        rows += [blank] * rng.randint(1, 3)
    return end.join(rows) + end * rng.randint(0, 2)


def json_lines(rng, told):
    "A file of spans, in one of the styles"
    one = lines[rng.choice(sorted(lines))]
    return "".join(json.dumps(one(words, tags), ensure_ascii=rng.random() < .5) + "\n" for words, tags in told)


def file_of(rng, top):
    "A file, and what is in it"
    told, write = drawn(rng), rng.choice([conll, json_lines])
    file = top/f"{rng.randrange(10**9)}{'.conll' if write is conll else '.jsonl'}"
    file.write_bytes(write(rng, told).encode("utf-8-sig" if rng.random() < .2 else "utf-8"))
    return file, told


@fuzz(2500)
def test_whole_files_are_read_to_the_letter(rng, top):
    file, told = file_of(rng, top)
    report = preflight.check(file, most_bad=1)
    sound(report)
    assert report.objective == "tagging" and not report.skipped, report
    for text, tags, (words, expected) in zip(report.inputs, report.targets, told, strict=True):
        spans = spans_of(text, tags)
        assert text == " ".join(words) and spans == spans_of(Words.of(words), expected)
    if report.ok: assert sum(len(getattr(data.task_of(report), part)) for part in data.PARTS) == len(told)
    file.unlink()


@fuzz(2500)
def test_damaged_files_are_read_or_told_of(rng, top):
    file, _ = file_of(rng, top)
    file.write_bytes(damaged(file.read_bytes(), rng))
    report = ours(lambda: preflight.check(file, most_bad=1, objective=rng.choice([None, "tagging"])))
    sound(report)
    if report is not None and report.objective == "tagging":
        assert all(len(text.words) == len(tags) for text, tags in zip(report.inputs, report.targets))
        assert all(as_iob2(tags, "IOB2")[1] == [] for tags in report.targets if any(tag[:2] == "B-" for tag in tags))
        if report.ok: ours(lambda: data.task_of(report))
    file.unlink(missing_ok=True)
