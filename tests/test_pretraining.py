"""A recipe does the same thing every time, also when its process is killed."""
import json, os, signal, subprocess, sys, time
from pathlib import Path
import pytest, torch
from safetensors.torch import load_file
from finetune_nb import vision
from finetune_nb.engine import pretrainer
from finetune_nb.pretraining import Pretraining, Recipe, draw_batch, features, pretrain, sample_systems, ship

small = dict(classes=3, images=16 * 8, batch_size=8, image_size=32, points=512, pairs=0.5, precision="fp32")


@pytest.fixture(scope="module")
def run(tmp_path_factory): return pretrain(Recipe(**small), tmp_path_factory.mktemp("whole"), progress=False)


def same(a, b):
    a, b = load_file(a), load_file(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_killed_and_resumed(run, tmp_path, quiet):
    "Killed without warning, a run goes on from its last checkpoint and ends with the same weights, bit for bit"
    code = ("from finetune_nb.pretraining import Recipe, pretrain; "
            f"pretrain(Recipe(**{small}), {str(tmp_path)!r}, checkpoint_every=2, progress=False)")
    child = subprocess.Popen([sys.executable, "-c", code], env=quiet, stdin=subprocess.DEVNULL)
    deadline, written = time.monotonic() + 60, tmp_path/"pretraining.json"
    while not written.exists() and child.poll() is None and time.monotonic() < deadline: time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert 2 <= Pretraining.load(tmp_path).step < 16
    again = pretrain(Recipe(**small), tmp_path, resume=True, progress=False)
    assert again.loss == run.loss and again.accuracy == run.accuracy
    assert same(run.checkpoint, again.checkpoint)


def test_a_half_written_checkpoint_is_passed_over(run, tmp_path):
    "What a process killed while writing leaves behind is not the checkpoint"
    recipe = Recipe(**small)
    pretrain(recipe, tmp_path, steps=1, progress=False)
    (tmp_path/"checkpoint.part").write_bytes(b"half")
    assert pretrain(recipe, tmp_path, steps=2, resume=True, progress=False).loss == run.loss[:2]


def test_resume_without_a_checkpoint_begins(run, tmp_path):
    assert pretrain(Recipe(**small), tmp_path, resume=True, steps=1, progress=False).loss == run.loss[:1]


def test_resume_of_a_finished_run_changes_nothing(run):
    before = run.checkpoint.read_bytes()
    assert pretrain(run.recipe, run.checkpoint.parent, resume=True, progress=False).loss == run.loss
    assert run.checkpoint.read_bytes() == before


def test_the_global_random_state_is_left_alone(tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    pretrain(Recipe(**small), tmp_path, steps=1, progress=False)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("options", [{}, dict(pairs=1.), dict(grey=1.), dict(dead_leaves=1.),
                                     dict(grain=0, background=0), dict(turn=0, jitter=(1, 1)), dict(image_size=48)])
def test_images(options):
    recipe = Recipe(classes=20, batch_size=32, **{"image_size": 32} | options)
    images, target = draw_batch(recipe, sample_systems(20), 3)
    assert images.shape == (32, 3, recipe.image_size, recipe.image_size) and 0 <= images.min() and images.max() <= 1
    assert torch.allclose(target.sum(1), torch.ones(32))
    assert images.flatten(1).std(1).min() > 0.01, "in every image there is something to see"
    if recipe.grey == 1: assert torch.allclose(images[:, 0], images[:, 2], atol=0.2)


def test_the_same_images_on_any_number_of_threads():
    recipe, systems = Recipe(classes=20, batch_size=32, image_size=32), sample_systems(20)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = draw_batch(recipe, systems, 0)[0]
        torch.set_num_threads(2)
        assert (one - draw_batch(recipe, systems, 0)[0]).abs().mean() < 1e-5
    finally: torch.set_num_threads(threads)


@pytest.mark.parametrize("has, expected", [(True, "bf16"), (False, "fp32")])
def test_auto_precision(monkeypatch, tmp_path, has, expected):
    monkeypatch.setattr(pretrainer, "has_bf16", lambda device: has)
    run = pretrain(Recipe(**small | dict(precision="auto")), tmp_path, steps=1, progress=False)
    assert run.precision == Pretraining.load(tmp_path).precision == expected
    monkeypatch.setattr(pretrainer, "has_bf16", lambda device: not has)
    again = pretrain(run.recipe, tmp_path, steps=2, resume=True, progress=False)
    assert again.precision == expected, "a run keeps its precision on another machine"


def test_shipped_is_the_checkpoint_rounded(run, tmp_path):
    about = ship(run.checkpoint.parent, tmp_path/"a.safetensors")
    assert ship(run.checkpoint, tmp_path/"b.safetensors") == about, "the same checkpoint, the same hash"
    kept, shipped = load_file(run.checkpoint), load_file(tmp_path/"a.safetensors")
    assert set(shipped) == {n.removeprefix("network.") for n in kept if n.startswith("network.") and ".fc." not in n}
    assert all(torch.equal(t, kept[f"network.{n}"].to(t.dtype)) for n, t in shipped.items())
    assert shipped["conv1.weight"].dtype == torch.float16
    assert json.loads((tmp_path/"a.json").read_text()) == about and Recipe(**about["recipe"]) == run.recipe
    assert about["images_seen"] == 128 and about["curve"]["first_steps"] == [round(x, 6) for x in run.loss]
    assert vision.classifier(str(tmp_path/"a.safetensors"), 2).preprocessing.image_size == 32
    with pytest.raises(ValueError, match="must end in .safetensors"): ship(run.checkpoint, tmp_path/"a.pt")


def test_the_curve_is_short_and_covers_every_step():
    run = Pretraining(Recipe(classes=3), "fp32", "", loss=list(range(1000)), accuracy=[0.] * 1000)
    curve = run.curve()
    assert curve["first_steps"] == list(range(50))
    assert curve["averages"][-1][0] == 1000 and 50 < len(curve["averages"]) <= 100
    assert Pretraining(Recipe(classes=3), "fp32", "").curve() == dict(first_steps=[], averages=[])


def test_damaged(tmp_path):
    (tmp_path/"checkpoint.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="is no checkpoint of pretrain, or is damaged"):
        Pretraining.load(tmp_path)


def test_divergence_is_named(tmp_path):
    recipe = Recipe(**small | dict(learning_rate=1e20))
    with pytest.raises(FloatingPointError, match="learning rate"): pretrain(recipe, tmp_path, progress=False)


def test_features_keep_the_order_of_the_examples():
    from finetune_nb import text
    from finetune_nb.data import Examples
    model = text.classifier("minilm", 2)
    texts = ["a longer sentence about nothing at all, to be sure", "short", "of middling length, this one"]
    together = features(model, Examples(texts, [0, 1, 0]), batch_size=2)
    alone = features(model, Examples(texts[1:2], [1]))
    assert together.shape == (3, 384) and abs(together[1] - alone[0]).max() < 1e-4


shipped = json.loads((Path(vision.__file__).parent/"weights"/"resnet18-fractal.json").read_text(encoding="utf-8"))


def test_the_recorded_recipe_begins_as_recorded(tmp_path):
    "The first steps of the recipe that made `resnet18-fractal` match its curve"
    run = pretrain(Recipe(**shipped["recipe"]), tmp_path, steps=3, device="cpu", progress=False)
    worst = max(abs(a - b) for a, b in zip(run.loss, shipped["curve"]["first_steps"][:3], strict=True))
    assert worst < 1e-3, f"they differ by {worst:.5f}"


def test_a_rise_of_one_step(tmp_path):
    "torch's schedule would divide by nothing"
    recipe = Recipe(classes=2, images=20, batch_size=2, image_size=32, points=256, warmup=0.1)
    assert pretrain(recipe, tmp_path, steps=2, progress=False).step == 2
