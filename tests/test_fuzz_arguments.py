"""Wrong types and values for everything that the package offers: refused in a sentence of ours, or done."""
import atexit, collections, datetime, functools, importlib, inspect, io, re, shutil, sys, tempfile
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
import huggingface_hub, numpy as np, pandas as pd, pytest, torch, typer
from matplotlib import pyplot as plt
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
import finetune_nb
from finetune_nb import cache, cli, data, depth, freezing, gradient, interpret, preflight, pretraining, saving, text
from finetune_nb import training, unlabelled, vision, widgets
from finetune_nb.engine import findings, targets
from finetune_nb.engine.commands import examples as examples_of
from finetune_nb.engine.explanations import Score
from finetune_nb.engine.families import open_backbone
from finetune_nb.engine.fractals import Recipe
from finetune_nb.engine.inputs import Example
from finetune_nb.engine.detection import Detection
from finetune_nb.engine.segmentation import Segmentation
from finetune_nb.engine.tagging import Tagging
from fuzzing import fuzz, ours

saved = Path(__file__).resolve().parent/"data"/"saved_by_7167351"


# What the calls begin with

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


@functools.cache
def few(): return data.Examples(torch.linspace(0, 1, 24).view(12, 2), [0, 1] * 6)


@functools.cache
def task(): return data.Task("small", "numbers", ["a", "b"], few(), few(), few())


@functools.cache
def report(): return preflight.Report("mood.csv", "text", [f"text {i}" for i in range(12)], ["a", "b"] * 6, [""] * 12,
                                      np.arange(12), [], 12)


@functools.cache
def files():
    "A table, and a folder of images"
    top = Path(tempfile.mkdtemp(prefix="arguments"))
    atexit.register(shutil.rmtree, top, ignore_errors=True)
    (top/"mood.csv").write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(12)))
    for i in range(8):
        (folder := top/"pets"/"cd"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 30 * i, np.uint8)).save(folder/f"{i}.png")
    return top


def examples():
    return [Example(f"text {i}", "ab"[i % 2], "", f"row {i}", "ab"[i % 2], f"text {i}") for i in range(4)]


@functools.cache
def reader(): return saving.load(saved/"text-mean")


@functools.cache
def score(): return Score(reader().model, "a good day")


@functools.cache
def fitted(): return training.fit(network(), task(), epochs=1, progress=False)


@functools.cache
def swept(): return depth.sweep(lambda seed: network(), task(), [0, 1], seeds=1, epochs=1, progress=False)


def guessing(): return dict(known=np.random.rand(6, 4), labels=np.arange(6) % 2, others=np.random.rand(9, 4))
def small_recipe(): return Recipe(2, 8, 8, 32, points=16)
def bowl(weights): return (weights**2).sum()
def right(): return {0: np.array([[1., 0, 1]]), 1: np.array([[1., 1, 1]])}


@pytest.fixture
def aside(monkeypatch, tmp_path):
    "In a folder of its own, without the network"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


# A call of each name that goes well; what is not said is as by default

def calls():
    "By name: what makes its arguments"
    quiet, seeded = dict(progress=False), dict(labels_per_class=2, validation_per_class=2, test_per_class=2)
    step = dict(parameter=torch.ones(2), gradient=torch.ones(2), learning_rate=0.1)
    def make(seed): return network()
    return {
        "preflight.check": lambda: dict(path=files()/"mood.csv") | quiet,
        "preflight.Report": lambda: dict(vars(report())),
        "preflight.resolve_copies": lambda: dict(examples=examples(), kind=targets.target_kind("classification"),
                                                 notes=findings.Notes()),
        "preflight.group_copies": lambda: dict(examples=examples(), near=[(0, 1)], strata=["a", "b"] * 2,
                                               notes=findings.Notes()),
        "preflight.check_classes": lambda: dict(labels=["a", "b"] * 6, parts=[""] * 12, groups=np.arange(12),
                                                notes=findings.Notes()),
        "preflight.inputs_in": lambda: dict(path=files()/"mood.csv", kind="text"),
        "preflight.Finding": lambda: dict(what="copy", then="notes", places=[("row 1", "a copy")]),
        "preflight.StoredImage": lambda: dict(read_bytes=bytes, place="row 1"),
        "preflight.Unreadable": lambda: dict(place="row 1", reason="it is empty"),
        "preflight.open_image": lambda: dict(file=files()/"pets"/"c"/"0.png"),
        "data.Examples": lambda: dict(inputs=["one", "two"], targets=[0, 1]),
        "data.Examples.subset": lambda: dict(self=few(), indices=[0, 3]),
        "data.Task": lambda: dict(name="small", kind="numbers", objective=["a", "b"], train=few(), validation=few(),
                                  test=few(), made={}),
        "data.split": lambda: dict(labels=[0, 1] * 12) | seeded,
        "data.near_duplicates": lambda: dict(texts=["one text", "one text", "another"]),
        "data.topics": lambda: dict(seeded),
        "data.digits": lambda: dict(seeded),
        "data.photographs": lambda: dict(labels_per_class=2, validation_per_class=2, test_per_class=2),
        "data.scenes": lambda: dict(num_train=1, num_validation=1, num_test=1),
        "data.patches": lambda: dict(num_train=1, num_validation=1, num_test=1),
        "data.citations": lambda: dict(num_train=2, num_validation=2, num_test=2),
        "data.software": lambda: dict(num_train=2, num_validation=2, num_test=2),
        "data.task_of": lambda: dict(report=report()),
        "data.image_folder": lambda: dict(path=files()/"pets"),
        "data.text_table": lambda: dict(path=files()/"mood.csv"),
        "data.from_datasets": lambda: dict(source="nowhere"),
        "data.baseline": lambda: dict(task=data.task_of(report())),
        "text.TextClassifier": lambda: dict(backbone=reader().model.backbone, tokenizer=reader().model.tokenizer,
                                            num_classes=2),
        "text.mean_of_tokens": lambda: dict(vectors=torch.ones(2, 3, 4), attention_mask=torch.ones(2, 3)),
        "text.classifier": lambda: dict(name=str(saved/"text-pooler"), num_classes=2, pretrained=False),
        "text.TextTagger": lambda: dict(backbone=reader().model.backbone, tokenizer=reader().model.tokenizer,
                                        wanted=Tagging(["PER"])),
        "text.tagger": lambda: dict(name=str(saved/"text-pooler"), wanted=Tagging(["PER"]), pretrained=False),
        "vision.Preprocessing": lambda: dict(image_size=32, resize_size=32),
        "vision.Preprocessing.sized": lambda: dict(self=vision.Preprocessing(), image_size=64),
        "vision.Preprocessing.__call__": lambda: dict(self=vision.Preprocessing(32, 32),
                                                      image=torch.zeros(1, 8, 8, dtype=torch.uint8)),
        "vision.ImageClassifier": lambda: dict(backbone=nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), num_classes=2),
        "vision.augmentation": dict,
        "vision.classifier": lambda: dict(name="mobilenet_v3_small", num_classes=2, image_size=32, pretrained=False),
        "vision.Segmenter": lambda: dict(backbone=open_backbone("mobilenet_v3_small", "image", False),
                                         wanted=Segmentation(["a", "b"]), preprocessing=dict(image_size=64)),
        "vision.DenseSegmenter": lambda: dict(backbone=open_backbone("lraspp_mobilenet_v3_large", "pixels", False),
                                              wanted=Segmentation(["a", "b"])),
        "vision.segmenter": lambda: dict(name="mobilenet_v3_small", wanted=Segmentation(["a", "b"]), image_size=64,
                                         pretrained=False),
        "vision.Detector": lambda: dict(backbone=open_backbone("mobilenet_v3_small", "image", False),
                                        wanted=Detection(["a", "b"]), preprocessing=dict(image_size=64)),
        "vision.detector": lambda: dict(name="mobilenet_v3_small", wanted=Detection(["a"]), image_size=64,
                                        pretrained=False),
        "adapters.lora": lambda: dict(model=network()),
        "adapters.adapted": lambda: dict(model=network()),
        "adapters.described": lambda: dict(model=network()),
        "adapters.merged": lambda: dict(model=network()),
        "adapters.save_adapter": lambda: dict(folder=files()/"adapter", model=network()),
        "adapters.load_adapter": lambda: dict(model=network(), folder=files()/"nowhere"),
        "adapters.biases": lambda: dict(model=network()),
        "adapters.norms": lambda: dict(model=network()),
        "compression.narrowed": lambda: dict(model=reader().model),
        "compression.shallower": lambda: dict(model=reader().model, layers=1),
        "compression.distil": lambda: dict(student=reader().model, teacher=reader().model, task=task()),
        "compression.pace": lambda: dict(model=reader().model, inputs=["good"], repeats=3),
        "compression.compress": lambda: dict(folder=files()/"nowhere", out=files()/"small"),
        "cache.Cut": lambda: dict(model=network(), depth=1, few=list(few().inputs[:2])),
        "freezing.Block": lambda: dict(name="head", modules=[nn.Linear(2, 2)], tensors={}),
        "freezing.has_parameters": lambda: dict(module=network()),
        "freezing.in_groups": lambda: dict(network=network()),
        "freezing.Sequentials": dict,
        "freezing.blocks": lambda: dict(model=network()),
        "freezing.guess_blocks": lambda: dict(model=network()),
        "freezing.fingerprint": lambda: dict(part=network()),
        "freezing.set_frozen": lambda: dict(block=freezing.Block("head", [nn.Linear(2, 2)]), frozen=True),
        "freezing.live_batchnorms": lambda: dict(model=network()),
        "freezing.drifts": lambda: dict(model=network()),
        "freezing.SummaryRow": lambda: dict(block="head", parameters=6, frozen=False, share=1.0),
        "freezing.FreezeSummary": lambda: dict(depth=0, rows=[freezing.SummaryRow("head", 6, False, 1.0)]),
        "freezing.check_depth": lambda: dict(depth=1, found=freezing.blocks(network())),
        "freezing.summarise": lambda: dict(found=freezing.blocks(network()), depth=1),
        "freezing.freeze": lambda: dict(model=network(), depth=1),
        "freezing.freeze_depth": lambda: dict(model=network()),
        "freezing.short_number": lambda: dict(n=1200),
        "freezing.draw_blocks": lambda: dict(model=network()),
        "freezing.trainable_parameters": lambda: dict(model=network()),
        "freezing.let_learn": lambda: dict(model=network(), names=["4.bias"]),
        "freezing.unfreeze": lambda: dict(model=network()),
        "freezing.blocks_with_head": lambda: dict(backbone=network()),
        "training.evaluate": lambda: dict(model=network(), examples=few()),
        "training.predict": lambda: dict(model=network(), inputs=few().inputs),
        "training.parameter_groups": lambda: dict(model=network(), depth=1, learning_rate=1e-3, head_learning_rate=0.1),
        "training.find_learning_rate": lambda: dict(model=network(), task=task(), steps=4) | quiet,
        "training.fit": lambda: dict(model=network(), task=task(), epochs=1) | quiet,
        "unlabelled.self_training": lambda: dict(guessing()),
        "unlabelled.label_spreading": lambda: dict(guessing()),
        "unlabelled.next_to_label": lambda: dict(model=network(), inputs=few().inputs, by="diversity") | quiet,
        "saving.save": lambda: dict(folder=files()/"model", model=network(), task=task(), history=fitted(),
                                    evaluation=training.evaluate(network(), few())),
        "saving.Predictor": lambda: dict(vars(reader())),
        "saving.Predictor.predict": lambda: dict(self=reader(), inputs=["good"]),
        "saving.Predictor.answers": lambda: dict(self=reader(), inputs=["good"]),
        "saving.Predictor.in_conll": lambda: dict(self=reader(), inputs=["good"], answers=[("O",)]),
        "saving.Predictor.masks": lambda: dict(self=reader(), inputs=["good"]),
        "saving.Predictor.boxes": lambda: dict(self=reader(), inputs=["good"]),
        "saving.load": lambda: dict(folder=saved/"text-mean"),
        "saving.with_classes": lambda: dict(model=reader().model, task=data.task_of(report())),
        "saving.export_onnx": lambda: dict(folder=files()/"nowhere"),
        "interpret.occlusion": lambda: dict(score=score()),
        "interpret.integrated_gradients": lambda: dict(score=score()),
        "interpret.grad_cam": lambda: dict(score=score()), # of a text, which has no map
        "interpret.explain": lambda: dict(model=reader().model, inputs="a good day"),
        "interpret.deletion": lambda: dict(score=score(), orders=[[0, 2, 1]]),
        "interpret.shuffled_head": lambda: dict(model=network()),
        "interpret.sanity_check": lambda: dict(model=reader().model, given="a good day", draws=1),
        "confidence.reliability": lambda: dict(probabilities=np.full((6, 2), .5), labels=[0, 1] * 3),
        "confidence.calibration_error": lambda: dict(probabilities=np.full((6, 2), .5), labels=[0, 1] * 3),
        "confidence.best_temperature": lambda: dict(probabilities=np.full((6, 2), .5), labels=[0, 1] * 3),
        "confidence.calibrate": lambda: dict(model=network(), task=task()),
        "sharing.files_of": lambda: dict(folder=files()/"nowhere"),
        "sharing.upload": lambda: dict(folder=files()/"nowhere", name="me/pets"),
        "sharing.application": lambda: dict(saved=reader()),
        "sharing.serve": lambda: dict(folder=files()/"nowhere"),
        "layers.probe": lambda: dict(model=network(), task=task()),
        "layers.cka": lambda: dict(a=np.eye(6, 3), b=np.eye(6, 2)),
        "layers.nearest": lambda: dict(model=network(), known=few().inputs, inputs=few().inputs),
        "confidence.strangeness": lambda: dict(model=network(), task=task(), inputs=few().inputs),
        "confidence.second_look": lambda: dict(model=network(), task=task()) | quiet,
        "pretraining.pretrain": lambda: dict(recipe=small_recipe(), folder=files()/"run", device="nowhere") | quiet,
        "pretraining.ship": lambda: dict(checkpoint=files()/"run", file=files()/"shipped.safetensors"),
        "pretraining.features": lambda: dict(model=network(), examples=few()),
        "pretraining.logme": lambda: dict(features=np.random.rand(6, 2), labels=[0, 1] * 3, rounds=10),
        "pretraining.choose": lambda: dict(task=task(), names=["nowhere"]),
        "depth.default_epochs": lambda: dict(task=task()),
        "depth.one_by_one": lambda: dict(make_model=make, task=task(), depths=[1], seeds=1, epochs=1) | quiet,
        "depth.rungs": lambda: dict(depths=4, seeds=3),
        "depth.difference": lambda: dict(ours=right()[0], theirs=right()[1]),
        "depth.cheapest": lambda: dict(right=right()),
        "depth.optimism": lambda: dict(right=right(), draws=3),
        "depth.Recommendation": lambda: dict(depth=1, gain_over_head_only=0.1, gain_over_full=0.1, interval=[0.0, 0.2],
                                             reason="It is best."),
        "depth.Sweep": lambda: dict(vars(swept())),
        "depth.Sweep.recommend": lambda: dict(self=swept()),
        "depth.Sweep.save": lambda: dict(self=swept(), file=files()/"sweep.json"),
        "depth.Sweep.load": lambda: dict(file=swept().save(files()/"sweep.json")),
        "depth.sweep": lambda: dict(make_model=make, task=task(), depths=[1], seeds=1, epochs=1) | quiet,
        "depth.train_only": lambda: dict(model=network(), block="head"),
        "widgets.FreezeExplorer": lambda: dict(model=network(), task=task(), steps=20),
        "widgets.UpdateExplorer": lambda: dict(loss=bowl, start=[1.0, 1.0], steps=3),
        "gradient.sgd_step": lambda: dict(step),
        "gradient.gradient_at": lambda: dict(loss=bowl, weights=torch.ones(2)),
        "gradient.momentum_step": lambda: dict(velocity=torch.zeros(2)) | step,
        "gradient.descend": lambda: dict(loss=bowl, start=[1.0, 1.0], learning_rate=0.1, steps=3),
        "gradient.map_bounds": lambda: dict(loss=bowl, paths=[torch.rand(3, 2)]),
        "gradient.plot_path": lambda: dict(loss=bowl, path=torch.rand(3, 2), resolution=4),
        "gradient.adam_step": lambda: dict(mean=torch.zeros(2), square=torch.zeros(2), step=1) | step,
        "gradient.BackwardCost": lambda: dict(forward_seconds=1.0, backward_seconds=1.0, saved_bytes=1),
        "gradient.backward_cost": lambda: dict(model=network(), batch=torch.rand(2, 2), repeats=1),
    }


def called(name):
    "What is offered under a name"
    module, *path = name.split(".")
    return functools.reduce(getattr, path, importlib.import_module(f"finetune_nb.{module}"))


def defaults(function):
    "All that a function need not be told"
    own = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in own if one.default is not one.empty}


# What may be given instead

def generator(): yield from (1, 2)


class Odd:
    "It is like nothing else"


odd_numbers = [0, -1, 1, 2, 7, 0.5, -0.5, float("nan"), float("inf"), -float("inf"), 1j, Decimal("0.1"), Fraction(1, 3),
               np.float64(0.5), np.int64(2), np.bool_(True), True, False, None, pd.NA, pd.NaT,
               np.datetime64("2020-01-01"), datetime.date(2020, 1, 1)]
odd_strings = ["", "3", "1e-3", "nope", "text", "label", "head", "a\0b", "\ud800", "~", "é" * 300, b"bytes",
               np.str_("a"), Path("nowhere"), Path(".")]
odd_lists = [(), (1, 2), ("a", "b"), [], [0, 1], [1.5, float("nan")], ["a", None], ["a", "b"], [[1], [2, 3]], [[0, 1]],
             [None], {}, {"a": 1}, {1: "a"}, {0: None}, set(), {1, 2}, frozenset("ab"), range(3), range(0), slice(2)]
odd_arrays = [np.array(3), np.array([]), np.array([0, 1]), np.array(["a", "b"]), np.array([None, 1]), np.zeros((2, 0)),
              np.zeros((2, 2)), np.full(2, np.nan), pd.Series([0, 1], index=[5, 6]), pd.Series([], dtype=float),
              pd.Series(["a", "b"], dtype="category"), pd.DataFrame(dict(text=["a", "b"], label=[0, 1])),
              torch.tensor(0.5), torch.tensor([]), torch.tensor([0, 1]), torch.rand(2, 2), torch.rand(2, 3, 4),
              torch.zeros(2, dtype=torch.bool), torch.zeros(2, dtype=torch.complex64), torch.full((2,), float("nan")),
              torch.zeros(2, 3, 8, 8, dtype=torch.uint8)]
odd_objects = [Ellipsis, NotImplemented, Odd(), ValueError("x"), datetime, nn.Linear(2, 2), nn.Identity(),
               nn.Sequential(), nn.ModuleList([nn.Linear(2, 2)]), nn.Parameter(torch.ones(2)), Image.new("RGB", (4, 4)),
               io.BytesIO(b"x"), DataLoader([1, 2])]
wrong = [lambda value=value: value for value in odd_numbers + odd_strings + odd_lists + odd_arrays + odd_objects]
wrong += [generator, lambda: iter([1]), lambda: map(str, [1]), lambda: (lambda *_: None), lambda: (lambda *_: "x"),
          network, few, task, report, examples, reader, lambda: reader().model, fitted, swept, findings.Notes,
          lambda: collections.defaultdict(list), small_recipe]
huge = [lambda value=value: value for value in [10**30, -10**30, 1e300, 2**62, np.int64(2**40)]]
works = {"epochs", "steps", "repeats", "rounds", "draws", "seeds", "depths", "resolution"} # where huge is only long
slow = dict(topics=0.1, digits=0.1, citations=0.1, software=0.1, scenes=0.3, patches=0.1, classifier=0.1, tagger=0.1,
            segmenter=0.1, Segmenter=0.2, DenseSegmenter=0.2, Detector=0.2, detector=0.1, FreezeExplorer=0.2,
            baseline=0.1, plot_path=0.3, sweep=0.3, one_by_one=0.3, draw_blocks=0.3, load=0.3, pretrain=0.3, lora=0.3,
            compress=0.3, distil=0.1, pace=0.3) # so much more rarely

no_calls = {"data.PARTS", "gradient.COLOURS", "gradient.Picture", # a figure of matplotlib
            "freezing.stay_in_eval", "training.prepared", "interpret.METHODS"} # the insides of a hook, and of `fit`
no_calls |= {"adapters.FASTER", "compression.Compressed", "compression.Distilled"} # what `compress` and `distil` make
no_calls |= {"unlabelled.WAYS", "unlabelled.BY"} # names
no_calls |= {"training.History", "training.Evaluation"} # what `fit` and `evaluate` give
no_calls |= {f"cli.{name}" for name in cli.__all__} # see the command line
offered = {f"{module}.{name}" for module in finetune_nb._names for name in
           {*importlib.import_module(f"finetune_nb.{module}").__all__, *finetune_nb._names[module]}}


def test_every_name_that_is_offered_has_a_call():
    known = {name for name in calls() if name.count(".") == 1}
    assert known | no_calls == offered, f"{sorted(offered - known - no_calls)} need a call that goes well"


@pytest.mark.parametrize("name", sorted(calls()))
def test_calls_go_well(name, aside):
    "Or are refused by us, where only a long one would"
    ours(lambda: called(name)(**calls()[name]()))


def some_wrong(rng, argument):
    if argument not in works and rng.random() < 0.05: return rng.choice(huge)()
    return rng.choice(wrong)()


@fuzz(3500)
def test_arguments(rng, aside):
    all_calls = calls()
    names = sorted(all_calls)
    name = rng.choices(names, [slow.get(name.split(".")[-1], 1) for name in names])[0]
    given = defaults(called(name)) | all_calls[name]()
    free = [argument for argument in given if argument != "self"]
    chosen = rng.sample(free, min(len(free), rng.choice([1, 1, 1, 1, 2, 9])))
    for argument in chosen: given[argument] = some_wrong(rng, argument)
    function, own = called(name), given.pop("self", None)
    if name.endswith("__call__"): function = type(own).__call__
    def call():
        result = function(**given) if own is None else function(own, **given)
        return list(result) if isinstance(result, Iterator) else result
    try: ours(call)
    except AssertionError as error:
        told = ", ".join(f"{argument}={given[argument]!r:.80}" for argument in chosen)
        raise AssertionError(f"{name}({told}): {error}") from error
    finally: plt.close("all")


# The command line

odd_words = ["", "-1", "0", "1e-3", "nan", "nope", "--", "-", "~", "é", "🙂", "a" * 300, "*", "$HOME", "nowhere.csv",
             "/dev/null", "text", "image", "regression", "9" * 24, "0x10", "1,5", "[]", "\udc80"]
missing = dict(text="nowhere.csv", image="nowhere", run="nowhere", depth="neither", pretrain="nowhere", check="nowhere",
               predict="nowhere", explain="nowhere", export="nowhere", compress="nowhere", next="nowhere")


def options_of(command):
    "What can be said to a command"
    group = typer.main.get_command(cli.app)
    return [name for own in group.commands[command].params for name in own.opts if name.startswith("-")]


def nothing_is_done(*_, **__): raise ValueError("Nothing is trained in this test.")


def named_examples(source, *others):
    return examples_of(source, *others) if source else nothing_is_done()


@fuzz(500)
def test_command_line(rng, capsys, tmp_path):
    command = rng.choice(sorted(missing))
    words = [missing[command]]
    for _ in range(rng.randrange(4)):
        words.append(rng.choice(options_of(command) or odd_words))
        if rng.random() < 0.8: words.append(rng.choice(odd_words))
    if rng.random() < 0.5: rng.shuffle(words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["finetune-nb", command, *words])
        patch.setattr(sys, "stdin", io.StringIO())
        patch.setattr(cli, "examples", named_examples)
        patch.setattr(data, "topics", nothing_is_done) # of `run`
        patch.setattr(pretraining, "pretrain", nothing_is_done)
        patch.chdir(tmp_path)
        with pytest.raises(SystemExit) as ended: cli.main()
    said = capsys.readouterr()
    assert ended.value.code in (0, 1, 2) and "Traceback" not in said.err + said.out
    told = re.search("^finetune-nb: ", said.err, re.M) or command == "check" and "Stops: " in said.out
    assert ended.value.code != 1 or told, said.err
