"""Tags, from files to files: schemes, spans, windows, scores, and every contract that an objective has to keep."""
import itertools
import json
import random
import re

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification, pipeline

import finetune_nb
from conftest import tiny_bert
from finetune_nb import data, depth, evaluate, fit, freeze, preflight, saving, text
from finetune_nb.data import Examples, Task
from finetune_nb.engine.conll import as_conll
from finetune_nb.engine.tagging import Tagging, likeliest, may_follow
from finetune_nb.engine.tags import Entity, Words, as_iob2, as_words, entities, scheme_of, spans_of, tags_of
from finetune_nb.freezing import blocks, fingerprint
from processes import fit_to_the_kill, killed_and_resumed, same_in_two

how = dict(epochs=8, batch_size=6, learning_rate=1e-2, head_learning_rate=1e-2, progress=False)
NAMES, PLACES = ["Ada", "Bo Li", "Cy", "Di Mann", "Ed"], ["Paris", "New York", "Oslo", "Bern"]


def story(rng):
    "Words and tags, as somebody would tell where somebody lives"
    words, tags = [], []
    for part, kind in ((rng.choice(NAMES), "PER"), ("lives in", ""), (rng.choice(PLACES), "LOC"),
                       (f"since {rng.randint(1900, 1999)}", "")):
        for i, word in enumerate(part.split()):
            words.append(word)
            tags.append(f"{'I' if i else 'B'}-{kind}" if kind else "O")
    return words, tags


def stories(count, seed=0):
    rng = random.Random(seed)
    return [story(rng) for _ in range(count)]


def task_of_stories(sizes=(40, 20, 20)):
    parts = [Examples([Words.of(words) for words, _ in told], [tags for _, tags in told])
             for told in map(stories, sizes, itertools.count())]
    return Task("stories", "text", Tagging(["LOC", "PER"]), *parts)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    "A BERT that learns in a second: its folder"
    return tiny_bert(tmp_path_factory.mktemp("tiny"), add_pooling_layer=False)


def tagger(folder, frozen=0, dtype=torch.float32, **options):
    model = text.tagger(folder, Tagging(["LOC", "PER"]), max_length=8, **options).to(dtype) # most are two windows
    freeze(model, frozen)
    return model


# Tags and words

def drawn_entities(rng, words):
    "Entities that do not overlap, some of which touch"
    found, at = [], 0
    while at < words:
        start = at + rng.choice([0, 0, 1, 2])
        end = start + rng.randint(1, 3)
        if end <= words: found.append(Entity(start, end, rng.choice("XY")))
        at = end
    return found


def written(found, words, scheme):
    "The same in a scheme"
    tags, before = ["O"] * words, None
    for start, end, kind in found:
        touches = before is not None and before[1] == start and before[2] == kind
        first = "B" if scheme != "IOB1" or touches else "I"
        marks = [first] + ["I"] * (end - start - 1)
        if scheme == "BIOES": marks = ["S"] if len(marks) == 1 else ["B", *marks[1:-1], "E"]
        tags[start:end] = [f"{mark}-{kind}" for mark in marks]
        before = start, end, kind
    return tags


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "BIOES"])
def test_schemes_are_told_apart_and_mean_the_same(scheme):
    rng = random.Random(0)
    found = [drawn_entities(rng, 12) for _ in range(50)]
    tags = [written(own, 12, scheme) for own in found]
    assert scheme_of(tags) == (scheme, [])
    assert [entities(as_iob2(own, scheme)[0]) for own in tags] == found


def test_spans_of_letters_come_back():
    rng = random.Random(1)
    for _ in range(200):
        words = as_words(["".join(rng.choice("ab.,é東 \ufe0f") for _ in range(rng.randint(1, 4))) for _ in range(8)])
        tags = written(drawn_entities(rng, 8), 8, "IOB2")
        assert tags_of(words, spans_of(words, tags))[0] == tags


def test_the_likeliest_legal_tags_are_found():
    labels = Tagging(["X", "Y"]).labels
    allowed = may_follow(labels)
    scores = torch.randn(20, 4, 5, generator=torch.Generator().manual_seed(0))
    legal = [row for row in itertools.product(range(5), repeat=4)
             if all(allowed[a, b] for a, b in zip((-1, *row), row))]
    for own, found in zip(scores, likeliest(scores, allowed)):
        best = max(legal, key=lambda row: sum(own[i, label] for i, label in enumerate(row)))
        assert found.tolist() == list(best)


def by_pattern(tags):
    "Strict entities, found in the tags written one after the other"
    row = "".join(tag.ljust(4) for tag in tags)
    return {(found.start(), found.end(), found[1]) for found in re.finditer(r"B-(.) (?:I-\1 )*", row)}


def f1(said, true): return 2 * len(said & true) / max(1, len(said) + len(true))


def drawn_scores(seed, objective):
    "Tags that break their scheme against true ones, and what `judge` says of them"
    rng = random.Random(seed)
    answers = [[rng.choice(objective.labels) for _ in range(8)] for _ in range(30)]
    targets = [written(drawn_entities(rng, 8), 8, "IOB2") for _ in range(30)]
    return answers, targets, objective.judge(answers, targets, np.zeros(30))


@pytest.mark.parametrize("seed", range(20))
def test_scores_are_strict(seed):
    answers, targets, ours = drawn_scores(seed, Tagging(["X", "Y"]))
    said, true = ({(i, *own) for i, tags in enumerate(rows) for own in by_pattern(tags)} for rows in (answers, targets))
    by_type = [f1(*({own for own in part if own[-1] == kind} for part in (said, true))) for kind in "XY"]
    assert ours.span_f1 == pytest.approx(f1(said, true)) and ours.macro_f1 == pytest.approx(np.mean(by_type))
    assert ours.span_precision == pytest.approx(len(said & true) / len(said))
    assert ours.span_recall == pytest.approx(len(said & true) / len(true))
    assert [row["F1"] for row in ours.details()["per_class"]] == pytest.approx(by_type)


def test_scores_are_those_of_seqeval(): # whose package pip cannot always build
    metrics = pytest.importorskip("seqeval.metrics")
    from seqeval.scheme import IOB2
    strict = dict(mode="strict", scheme=IOB2, zero_division=0)
    for seed in range(20):
        answers, targets, ours = drawn_scores(seed, Tagging(["X", "Y"]))
        for average, name in (("micro", "span_f1"), ("macro", "macro_f1")):
            assert ours.scores[name] == pytest.approx(metrics.f1_score(targets, answers, average=average, **strict))


# The model

def test_no_word_is_lost(tiny):
    "In a long text, and where the tokenizer knows nothing of a word"
    model = tagger(tiny).eval()
    words = ["\ufe0f" if i % 7 == 3 else f"word{i}" for i in range(500)]
    encoded = model.encode([words])
    batch = model.collate(encoded)
    assert len(encoded[0]) > 100 and batch["word_counts"].tolist() == [500]
    ids = batch["input_ids"].flatten()
    for i, at in enumerate(batch["words"][0].tolist()):
        assert (at == -1) == (i % 7 == 3)
        if at >= 0: assert model.tokenizer.decode(ids[at]) == "word"
    answer, = finetune_nb.training.predict(model, [words])
    assert len(answer) == 500 and all(answer[i] == "O" for i in range(3, 500, 7))


def test_one_window_and_several_agree_where_they_see_the_same(tiny):
    "A batch changes nothing; padding neither"
    model = tagger(tiny, word_shape=True).eval()
    texts = ["Ada lives in Paris", "Bo", " ".join(words for words, _ in [("Cy lives in New York now", 0)] * 4)]
    with torch.no_grad():
        alone = [model(**model.collate(model.encode([own])))[0] for own in texts]
        together = model(**model.collate(model.encode(texts), length=16))
    for own, others in zip(alone, together): assert torch.allclose(own, others[:len(own)], atol=1e-5)


@pytest.mark.parametrize("frozen", [0, 1, 2, 3])
def test_the_cache_is_exact(tiny, frozen):
    "In float64, for 50 steps and more"
    def run(cache):
        model = tagger(tiny, frozen, torch.float64)
        before = [fingerprint(block) for block in blocks(model)]
        history = fit(model, task_of_stories(), cache=cache, **how)
        assert [a == b for a, b in zip(before, map(fingerprint, blocks(model)))] == [i < frozen for i in range(4)]
        return np.array(history.train_loss), history.prefix
    (ours, prefix), (theirs, none) = run(True), run(False)
    assert np.abs(ours / theirs - 1).max() < 1e-9 and bool(prefix) == (frozen > 0) and not none


def test_it_learns(tiny):
    task, model = task_of_stories(), tagger(tiny)
    fit(model, task, **how)
    judged = evaluate(model, task.test)
    assert judged.span_f1 > .9 and len(judged) == 20 and judged.score_name == "span_f1"
    assert "PER" in str(judged.show(task.test.inputs, 1)) and "PER" in judged.show(task.test.inputs, 1)._repr_html_()


def job(tiny, *where):
    model = tagger(tiny, 1)
    fit_to_the_kill(model, model.head, task_of_stories(), *where, **how)


def test_killed_and_resumed(tiny, tmp_path): killed_and_resumed(job, tmp_path, 20, tiny)


def learn_in_float64(tiny):
    model = tagger(tiny, 2, torch.float64, dropout=0.0)
    for module in model.modules(): # each process has its own masks
        if isinstance(module, torch.nn.Dropout): module.p = 0.0
    history = fit(model, task_of_stories(), **how | dict(epochs=3))
    return history.train_loss, history.validation_score


def test_two_processes(tiny, tmp_path): same_in_two(learn_in_float64, tmp_path, tiny)


def test_swept_over_depths(tiny):
    swept = depth.sweep(lambda seed: tagger(tiny), task_of_stories(), seeds=2, epochs=2, strategy="all", progress=False)
    assert swept.scores[0] == "span_f1" and len(swept.rows) == 8 and len(swept.recommend().interval) == 2
    swept.plot()


# Files of a model

def saved(folder, tiny, **options):
    task, model = task_of_stories(), tagger(tiny, **options)
    history = fit(model, task, **how)
    saving.save(folder, model, task, history, evaluate(model, task.test))
    return task, model


def test_transformers_loads_it_with_the_same_scores(tiny, tmp_path):
    task, model = saved(tmp_path/"m", tiny, word_shape=False)
    theirs = AutoModelForTokenClassification.from_pretrained(tmp_path/"m").eval()
    given = model.arguments(model.encode(task.test.inputs[:3]))
    with torch.no_grad(): assert torch.allclose(theirs(**given).logits, model.eval()(**given), atol=1e-6)
    assert theirs.config.id2label == dict(enumerate(model.objective.labels))
    run = pipeline("token-classification", str(tmp_path/"m"), aggregation_strategy="first")
    ours = finetune_nb.load(tmp_path/"m").predict(["Ada lives now"]).entities[0] # one window
    assert [(own["start"], own["end"], own["entity_group"]) for own in run("Ada lives now")] == [
        (own["start"], own["end"], own["label"]) for own in ours] == [(0, 3, "PER")]


def test_the_card_s_decoding_is_ours(tiny, tmp_path):
    "The ten lines in it run, and find what we find"
    _, model = saved(tmp_path/"m", tiny, word_shape=False)
    card = (tmp_path/"m"/"README.md").read_text()
    scope = {}
    exec(card[card.index("def decode"):].split("```")[0], scope)
    labels = model.objective.labels
    for scores in torch.randn(20, 6, 5, generator=torch.Generator().manual_seed(0)):
        ours = likeliest(scores.log_softmax(1)[None], may_follow(labels))[0]
        assert scope["decode"](scores, labels) == [labels[i] for i in ours]
    assert "pipeline_tag: token-classification" in card and "span F1" in card


@pytest.mark.parametrize("shape", [False, True])
def test_saved_loaded_and_exported(tiny, tmp_path, shape):
    task, model = saved(tmp_path/"m", tiny, word_shape=shape)
    loaded = finetune_nb.load(tmp_path/"m")
    assert fingerprint(loaded.model) == fingerprint(model) and loaded.model.word_shape == shape
    expected = finetune_nb.training.predict(model, task.test.inputs[:5])
    table = loaded.predict(task.test.inputs[:5])
    assert [list(own) for own in table.entities] == [
        model.objective.said(answer, given=given)["entities"] for given, answer in zip(task.test.inputs, expected)]
    assert (tmp_path/"m"/"config.json").exists() != shape
    pytest.importorskip("onnxscript")
    assert saving.export_onnx(tmp_path/"m").exists() # it compares, to 1e-4


# People's files

def spans(words, tags): return [[*span[:2], span[2]] for span in spans_of(Words.of(words), tags)]
def objects(words, tags, start="start", end="end", label="label", wrap=lambda value: value):
    return [wrap({start: a, end: b, label: kind}) for a, b, kind in spans(words, tags)]


def as_bioes(tags): return written(entities(tags), len(tags), "BIOES")
def as_iob1(tags): return written(entities(tags), len(tags), "IOB1")


lines = {
    "doccano": lambda w, t: dict(id=1, text=" ".join(w), label=spans(w, t)),
    "doccano 1.6": lambda w, t: dict(text=" ".join(w), entities=objects(w, t, "start_offset", "end_offset")),
    "prodigy": lambda w, t: dict(text=" ".join(w), spans=objects(w, t), answer="accept", tokens=[]),
    "spacy": lambda w, t: dict(text=" ".join(w), entities=spans(w, t)),
    "tokens": lambda w, t: dict(tokens=w, ner_tags=t),
}
label_studio = lambda w, t: dict(data=dict(text=" ".join(w)), annotations=[dict(result=objects(
    w, t, wrap=lambda own: dict(type="labels", value=own | dict(labels=[own.pop("label")]))))])
files = {
    "tabs": (".conll", as_conll),
    "spaces": (".txt", lambda told: as_conll(told).replace("\t", " ")),
    "four columns": (".conll", lambda told: "-DOCSTART- -X- -X- O\n\n" + "".join(
        "".join(f"{word} NN B-NP {tag}\n" for word, tag in zip(words, as_iob1(tags))) + "\n" for words, tags in told)),
    "windows": (".bio", lambda told: as_conll(told).replace("\n", "\r\n")),
    "blank lines with tabs": (".annotated", lambda told: "\n" + as_conll(told).replace("\n\n", "\n \t\n\n")),
    "comments and numbers": (".conllu", lambda told: "".join(
        f"# sent_id = {i}\n# text = {' '.join(words)}\n" + "".join(
            f"{j}\t{word}\t{tag}\n" for j, (word, tag) in enumerate(zip(words, as_bioes(tags)), 1)) + "\n"
        for i, (words, tags) in enumerate(told))),
    "tag first": (".bio", lambda told: as_conll([(tags, words) for words, tags in told])),
    "label studio": (".json", lambda told: json.dumps([label_studio(*own) for own in told])),
    **{name: (".jsonl", lambda told, one=one: "".join(json.dumps(one(*own)) + "\n" for own in told))
       for name, one in lines.items()},
}


@pytest.mark.parametrize("form", files)
def test_every_form_is_found_and_read(tmp_path, form):
    "Three files, as people call them"
    ending, write = files[form]
    parts = dict(zip(("wnut17train", "emerging.dev", "emerging.test"), ((12, 0), (6, 1), (5, 2))))
    for name, told in parts.items(): (tmp_path/f"{name}{ending}").write_bytes(write(stories(*told)).encode())
    report = preflight.check(tmp_path)
    assert report.ok and report.objective == "tagging" and report.classes == ["LOC", "PER"], report
    assert report.parts == ["train"] * 12 + ["validation"] * 6 + ["test"] * 5
    told = {" ".join(words): tags for own in parts.values() for words, tags in stories(*own)}
    assert all(list(tags) == told[words] for words, tags in zip(report.inputs, report.targets))
    task = data.task_of(report)
    assert len(task.test) == 5 and task.objective == Tagging(["LOC", "PER"])


def test_a_dataset_of_words_and_tags(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = Tagging(["LOC", "PER"]).labels
    kind = datasets.Features(dict(id=datasets.Value("string"), tokens=datasets.Sequence(datasets.Value("string")),
                                  ner_tags=datasets.Sequence(datasets.ClassLabel(names=names))))
    def part(told):
        rows = dict(id=list(map(str, range(len(told)))), tokens=[words for words, _ in told],
                    ner_tags=[list(map(names.index, tags)) for _, tags in told])
        return datasets.Dataset.from_dict(rows, features=kind)
    datasets.DatasetDict(train=part(stories(12)), test=part(stories(5, 2))).save_to_disk(tmp_path/"set")
    report = preflight.check(tmp_path/"set")
    assert report.objective == "tagging" and report.targets[0] == stories(1)[0][1]
    assert data.from_datasets(str(tmp_path/"set")).objective.classes == ["LOC", "PER"]


def report_of(folder, **parts):
    for name, said in parts.items(): (folder/f"{name}.conll").write_text(said)
    return preflight.check(folder)


def findings(report): return {finding.what: finding.then for finding in report.findings}


def test_what_may_be_wrong_is_told(tmp_path):
    train = "\n".join(["Ada B-PER\nin O\nParis B-LOC\n", "Ada B-PER\nin O\nParis O\n"] + [
        f"w{i} B-PER\nx{i} I-PER\n" for i in range(20)] + ["odd I-PER\n", "a O\nb\n"])
    found = findings(report_of(tmp_path, train=train, test="Ed B-ORG\n"))
    assert found == {"line with other fields": "skips", "tag that breaks its scheme": "notes",
                     "text tagged in two ways": "notes", "type that occurs once": "notes", "copy": "notes",
                     "type without training examples": "notes"}


def test_mixed_schemes_are_refused_by_line(tmp_path):
    report = report_of(tmp_path, train="Ada B-PER\nLi E-PER\n\nBo B-PER\nLi I-PER\n\nCy S-PER\n")
    assert "train.conll, line 5: 1 of 5 tags break BIOES, the first is 'I-PER'" in report.stops[0]


def test_tags_without_marks_are_judged_word_by_word(tmp_path, tiny):
    told = "\n".join(f"the DET\n{noun} NOUN\nruns VERB\n" for noun in ("cat", "dog", "cow", "hen", "pig", "fox", "owl"))
    report = report_of(tmp_path, all=told)
    task = data.task_of(report)
    assert report.ok and task.objective == Tagging(["DET", "NOUN", "VERB"], spans=False)
    model = text.tagger(tiny, task)
    fit(model, task, **how)
    assert evaluate(model, task.test).accuracy == 1


# The command

@pytest.fixture
def folder(tmp_path):
    for name, told in (("train", (40, 0)), ("dev", (10, 1)), ("test", (12, 2))):
        (tmp_path/"stories"/name).parent.mkdir(exist_ok=True)
        (tmp_path/"stories"/f"{name}.conll").write_text(as_conll(stories(*told)))
    return tmp_path/"stories"


def test_from_a_folder_to_predictions(command, folder, tiny, tmp_path):
    fast = "--backbone", tiny, "--learning-rate", "0.01", "--freeze-depth", "0", "--epochs", "8"
    code, out, err = command("text", folder, *fast, "--out", tmp_path/"m", "--json")
    result = json.loads(out)
    assert code == 0 and result["objective"] == "tagging" and result["span_f1"] > .9 and result["num_test"] == 12, err
    assert result["word_shape"] is True and "pooling" not in result
    predict = "predict", tmp_path/"m"
    code, out, _ = command(*predict, "--json", given="Ada lives in New York now\n")
    assert json.loads(out)["entities"] == [dict(start=0, end=3, label="PER", text="Ada"),
                                           dict(start=13, end=21, label="LOC", text="New York")]
    code, out, _ = command(*predict, given="Ada lives in New York now\n")
    assert out.splitlines()[1] == "Ada lives in New York now,Ada (PER); New York (LOC)"
    code, out, _ = command(*predict, folder/"test.conll", "--conll")
    said = [[line.split("\t")[0] for line in own.splitlines()] for own in out.strip().split("\n\n")]
    assert said == [words for words, _ in stories(12, 2)]
    code, out, err = command("check", folder, "--json")
    assert code == 0 and json.loads(out)["objective"] == "tagging"


def test_pooling_does_not_apply(command, folder, tiny):
    code, _, err = command("text", folder, "--backbone", tiny, "--pooling", "pooler")
    assert code == 1 and "--pooling does not apply, for task 'stories' asks for tagging: leave it out." in err


def test_an_objective_overrides_what_it_looks_like(command, tmp_path, tiny):
    rows = [dict(text=f"{word} {i}", label=[[0, 1, "PER"]], topic=word) for i in range(12) for word in ("up", "down")]
    (tmp_path/"a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = "--objective", "classification", "--label-column", "topic"
    for told, objective in (((), "tagging"), (other, "classification")):
        code, out, err = command("check", tmp_path/"a.jsonl", "--json", *told)
        assert json.loads(out)["objective"] == objective, err


def test_the_embedded_task(command, tiny):
    fast = "--backbone", tiny, "--freeze-depth", "3", "--epochs", "1", "--labels-per-class", "20"
    code, out, err = command("text", "--task", "citations", *fast, "--json")
    assert code == 0 and json.loads(out)["labels_per_class"] == 20 and "f1" in out, err
    code, _, err = command("text", "a.csv", "--task", "citations")
    assert code == 1 and "leave one of them out" in err
    code, _, err = command("text", "--task", "haiku")
    assert code == 1 and "--task must be one of topics, citations, software" in err


def test_software_gives_nothing_away():
    task = data.software(num_train=100)
    everything = [*task.train.inputs, *task.test.inputs]
    assert len(task.test) >= 900 and all(own == own.lower() and not set("`*_") & set(own) for own in everything)
    assert {own.type for tags in task.test.targets for own in entities(tags)} == set(task.classes)


def test_citations_are_what_they_say():
    task = data.citations()
    assert len(task.train) == 200 and len(task.validation) >= 40 and len(task.test) >= 150
    def persons(part):
        return {own[a:b] for own, tags in zip(part.inputs, part.targets)
                for a, b, kind in spans_of(own, tags) if kind == "PERSON"}
    seen, unseen = persons(task.train), persons(task.test)
    assert len(seen & unseen) < .15 * len(unseen)
    assert all('"' not in own and "doi" not in own.lower() for own in task.test.inputs)
    for tags in task.train.targets:
        kinds = [own.type for own in entities(tags)]
        assert kinds.count("YEAR") == kinds.count("TITLE") == kinds.count("VENUE") == 1 <= kinds.count("PERSON")
