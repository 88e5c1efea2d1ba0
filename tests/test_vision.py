"""Image backbones by every name, by torchvision's own route, from files, and damaged; a family of one's own; and the
freeze contract while they learn."""
import hashlib, json, pickle, re, shutil
from dataclasses import asdict, dataclass
from email.message import Message
from io import BytesIO
from pathlib import Path
from urllib.error import URLError

import numpy as np, pytest, torch, torchvision
from PIL import Image
from safetensors.torch import save_file, save_model
from finetune_nb import blocks, evaluate, fit, freeze, vision
from finetune_nb.data import Examples, Task
from finetune_nb.engine import families
from finetune_nb.engine.families import Backbone, Family, Map, Rates, open_backbone, register
from finetune_nb.engine.objective import Objective
from finetune_nb.engine.torchvision_families import Embedded, ViTs
from finetune_nb.freezing import Block, fingerprint

names = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
every_block = ["stem", "layer1", "layer2", "layer3", "layer4", "head"]


@pytest.fixture(autouse=True)
def no_litter(tmp_path):
    "Each file of weights is 45 MB, and pytest would keep them"
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)


def body(model): return [fingerprint(block) for block in blocks(getattr(model, "backbone", model))[:-1]]


@pytest.fixture(scope="module")
def network():
    "A resnet18 with weights that nobody else has, running statistics too"
    torch.manual_seed(7)
    network = torchvision.models.resnet18()
    with torch.no_grad():
        for name, tensor in network.named_buffers():
            if name.endswith(("mean", "var")): tensor.uniform_(0.5, 1.5)
    return network


@pytest.fixture(scope="module")
def expected(network): return [fingerprint(block) for block in blocks(network)[:-1]]


@pytest.fixture
def stripes():
    "Upright or lying stripes, `uint8[12, 3, 32, 32]`"
    upright = (torch.arange(32) // 4 % 2 * 200).to(torch.uint8).expand(6, 3, 32, 32)
    noise = torch.randint(50, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = torch.cat([upright, upright.transpose(2, 3)]) + noise
    examples = Examples(images, [0] * 6 + [1] * 6)
    return Task("stripes", "image", ["upright", "lying"], examples, examples, examples)


# By name

@pytest.mark.parametrize("name", names)
def test_every_name_builds(name):
    model, wanted = vision.classifier(name, 3, pretrained=False), published(name).transforms()
    assert [block.name for block in blocks(model)] == every_block
    assert sum(block.num_parameters() for block in blocks(model)) == sum(p.numel() for p in model.parameters())
    assert [model.preprocessing.image_size] == wanted.crop_size
    assert [model.preprocessing.resize_size] == wanted.resize_size
    with torch.no_grad(): assert model.eval()(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 3)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    "Where torch.hub looks for files, and a network that is not there: the folder"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    def unreachable(request): raise URLError("no route to host")
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    (tmp_path/"hub"/"checkpoints").mkdir(parents=True)
    return tmp_path/"hub"/"checkpoints"


def published(name): return torchvision.models.get_model_weights(name).DEFAULT
def file_of(name): return Path(published(name).url).name


def test_weights_are_found_where_torch_hub_keeps_them(hub, network, expected):
    torch.save(network.state_dict(), hub/file_of("resnet18"))
    model = vision.classifier("resnet18", 3)
    assert body(model) == expected and model.backbone.fc.out_features == 3


def test_files_from_before_batches_were_counted_are_whole(hub, network):
    "torchvision's oldest files have no `num_batches_tracked`; nothing is computed from it"
    torch.save({n: t for n, t in network.state_dict().items() if "num_batches" not in n}, hub/file_of("resnet18"))
    loaded = vision.classifier("resnet18", 3).backbone
    assert torch.equal(loaded.layer4[1].bn2.running_var, network.layer4[1].bn2.running_var)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_preprocessing_is_that_of_the_weights(name):
    transforms, ours = published(name).transforms(), vision.classifier(name, 2, pretrained=False).preprocessing
    rng = np.random.default_rng(0)
    for height, width in ((900, 700), (123, 457), (64, 64)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        tensor = torchvision.transforms.functional.pil_to_tensor(image)
        step = 1.01 / 255 / min(ours.std)
        for given in (image, tensor):
            assert torch.allclose(ours.normalise(ours(given)), transforms(given), atol=step), "a step of the 256 apart"
        assert torch.equal(ours(image), ours(tensor)), "and an image is what its tensor is"


def test_without_network_it_says_what_it_looked_for(hub):
    with pytest.raises(OSError) as refused: vision.classifier("resnet34", 2)
    for words in ("resnet34", file_of("resnet34"), str(hub), "no route to host", "resnet18-fractal"):
        assert words in str(refused.value)
    assert not list(hub.iterdir())


def test_a_download_with_the_wrong_hash_is_refused(hub, monkeypatch):
    class Response(BytesIO):
        def info(self): return Message()
    monkeypatch.setattr("torch.hub.urlopen", lambda request: Response(b"not what was published"))
    with pytest.raises((ValueError, OSError), match="resnet18"): vision.classifier("resnet18", 2)
    assert not list(hub.iterdir())


def sha256(file): return hashlib.sha256(file.read_bytes()).hexdigest()


class Harmful:
    "Writes a file when it is unpickled"
    def __init__(self, marker): self.marker = marker
    def __reduce__(self): return open, (str(self.marker), "w")


@pytest.mark.parametrize("where", ["torch.hub", "a file"])
def test_code_in_a_file_of_weights_does_not_run(where, hub, tmp_path):
    marker, name = tmp_path/"code ran", "resnet18" if where == "torch.hub" else str(tmp_path/"shared.pth")
    file = hub/file_of("resnet18") if where == "torch.hub" else Path(name)
    torch.save({"conv1.weight": Harmful(marker)}, file)
    with pytest.raises(ValueError, match=file.name): vision.classifier(name, 2)
    assert not marker.exists()
    torch.load(file, weights_only=False)
    assert marker.exists(), "the file is as harmful as this test needs it to be"


damages = {"half": lambda whole: whole[:len(whole) // 2], "empty": lambda whole: b"",
           "web page": lambda whole: b"<html>404</html>", "pickle": pickle.dumps}


@pytest.mark.parametrize("damage", damages.values(), ids=damages)
def test_a_damaged_file_of_torch_hub_is_named(damage, hub, network):
    torch.save(network.state_dict(), file := hub/file_of("resnet18"))
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises((OSError, ValueError), match=f"{file.name}.*delete it"): vision.classifier("resnet18", 2)


def test_weights_of_another_shape_are_refused_by_name(hub, network):
    wrong = network.state_dict() | {"layer1.0.conv1.weight": torch.zeros(8, 8, 3, 3)}
    torch.save(wrong, file := hub/file_of("resnet18"))
    with pytest.raises(ValueError, match=f"{file.name}.*layer1.0.conv1.weight") as refused:
        vision.classifier("resnet18", 2)
    assert "\n" not in str(refused.value)


# The other families of torchvision's

others = {"resnet18": ("fc", 6, 1e-3), "vgg11": ("classifier.6", 8, 1e-4), "vit_b_16": ("heads.head", 14, 1e-4),
          "convnext_tiny": ("classifier.2", 6, 1e-4), "efficientnet_b0": ("classifier.1", 10, 1e-3),
          "mobilenet_v3_small": ("classifier.3", 15, 1e-3), "densenet121": ("classifier", 6, 1e-3),
          "regnet_y_400mf": ("fc", 6, 1e-3), "swin_t": ("head", 6, 1e-4)}


@pytest.mark.parametrize("name", others)
def test_every_family_is_a_classifier(name):
    model, (head, parts, rate) = vision.classifier(name, 3, image_size=32, pretrained=False), others[name]
    found = blocks(model)
    owned = [id(t) for block in found for t in [*block.parameters(), *block.buffers()]]
    assert sorted(owned) == sorted(map(id, [*model.parameters(), *model.buffers()])), "each in exactly one block"
    assert len(found) == parts and found[-1].name == "head" and len({block.name for block in found}) == parts
    assert model.head_path == head and model.head.out_features == 3 and model.head in found[-1].modules[-1].modules()
    assert (model.learning_rate, model.head_learning_rate, model.head_only_learning_rate) == (rate, 5e-3, 1e-2)
    assert model.name == model.architecture == name and model.normalise in found[0].modules
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    tensors, about = model.save(None)
    again = vision.ImageClassifier.load(None, json.loads(json.dumps(about)) | dict(classes=["a", "b", "c"]), tensors)
    with torch.no_grad(): assert torch.equal(again.eval()(images), model.eval()(images))
    plain = re.search(r"^model = (.+)$", again.usage(about), re.M)[1]
    theirs = eval(plain, vars(torchvision.models))
    theirs.load_state_dict(tensors)


def test_maps_have_channels_and_strides():
    maps = open_backbone("resnet18-fractal", "image").maps
    assert list(maps.items())[1:] == [(f"layer{i}", Map(32 * 2**i, 2 * 2**i)) for i in range(1, 5)]
    maps = open_backbone("swin_t", "image", pretrained=False).maps
    assert maps["stage3"] == Map(384, 16, channels_last=True)


def test_a_densenet_of_torch_hub_has_older_names(hub):
    torch.manual_seed(7)
    network = torchvision.models.densenet121()
    older = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", n): t for n, t in network.state_dict().items()}
    assert older.keys() != network.state_dict().keys()
    torch.save(older, hub/file_of("densenet121"))
    assert body(vision.classifier("densenet121", 3)) == [fingerprint(block) for block in blocks(network)[:-1]]


def test_a_vit_reads_images_of_other_sizes():
    def small(size): return torchvision.models.VisionTransformer(size, 16, 1, 2, 8, 16)
    tensors, smaller = small(64).state_dict(), small(32)
    adapted = ViTs().adapted(dict(tensors), smaller)
    smaller.load_state_dict(adapted)
    assert adapted["encoder.pos_embedding"].shape == (1, 5, 8)
    assert torch.equal(adapted["encoder.pos_embedding"][:, 0], tensors["encoder.pos_embedding"][:, 0])


# A family of one's own

@pytest.fixture
def mine(monkeypatch):
    "Registered for one test"
    monkeypatch.setattr(families, "_families", list(families.families()))

    class Tiny(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.body = torch.nn.Conv2d(3, 8, 4, 4), torch.nn.Conv2d(8, 16, 2, 2)
            self.shift, self.last = torch.nn.Parameter(torch.zeros(16)), torch.nn.Linear(16, 1000)

        def forward(self, images): return self.last(self.body(self.stem(images).relu()).mean((2, 3)) + self.shift)

    @register
    class Mine(Family):
        title, inputs = "Tiny", "image"
        def names(self): return ["tiny"]
        def knows(self, network): return isinstance(network, Tiny)
        def rates(self, network): return Rates(3e-4, 2e-3, 7e-3)

        def blocks(self, network):
            body = Block("body", [network.body], {"shift": network.shift})
            return [Block("stem", [network.stem]), body, Block("head", [network.last])]

        def open(self, name, pretrained=True, **options):
            return Backbone(name, Tiny(), self, preprocessing=dict(image_size=32, resize_size=40))


def test_one_class_is_enough_for_a_family(mine, stripes):
    model = vision.classifier("tiny", 2)
    for cut in blocks(model), blocks(model.backbone): assert [block.name for block in cut] == ["stem", "body", "head"]
    assert (model.learning_rate, model.head_learning_rate, model.head_only_learning_rate) == (3e-4, 2e-3, 7e-3)
    assert model.preprocessing == vision.Preprocessing(32, 40) and model.head_path == "last"
    assert open_backbone("tiny", "image").maps == {"stem": (8, 4, False), "body": (16, 8, False)}
    for depth in range(3):
        freeze(model, depth)
        before = [fingerprint(block) for block in blocks(model)]
        fit(model, stripes, epochs=1, batch_size=6, cache=False, progress=False)
        assert [a != b for a, b in zip(before, map(fingerprint, blocks(model)))] == [i >= depth for i in range(3)]
    tensors, about = model.save(None)
    again = vision.ImageClassifier.load(None, about | dict(classes=stripes.classes), tensors)
    images = torch.stack(model.encode(stripes.test.inputs))
    with torch.no_grad(): assert torch.equal(again.eval()(images), model.eval()(images))
    assert "torchvision" not in again.usage(about)


def test_a_family_that_is_not_registered_is_named(stripes):
    model = vision.classifier("resnet18-fractal", 2)
    tensors, about = model.save(None)
    with pytest.raises(ValueError, match="family 'Theirs' is not known here: import the module that registers it"):
        vision.ImageClassifier.load(None, about | dict(family="Theirs", classes=stripes.classes), tensors)


# Heads and files

@dataclass
class Amount(Objective):
    "Asks for a number"
    num_outputs = 1
    unit: str = "grams"


def test_an_objective_brings_its_head():
    model = vision.classifier("resnet18-fractal", Amount("litres"))
    assert model.objective == Amount("litres") and model.head.out_features == 1
    assert 0.005 < model.head.weight.std() < 0.015 and model.head.bias.abs().max() == 0
    tensors, about = model.save(None)
    again = vision.ImageClassifier.load(None, json.loads(json.dumps(about)), tensors)
    assert again.objective == Amount("litres") and fingerprint(again) == fingerprint(model)


def test_a_task_brings_its_classes(stripes):
    assert vision.classifier("resnet18-fractal", stripes).head.out_features == 2


def test_a_model_of_before_is_loaded():
    "Its description says the architecture alone"
    model = vision.classifier("resnet18-fractal", 2)
    tensors, _ = model.save(None)
    about = dict(kind="image", architecture="resnet18", preprocessing=asdict(model.preprocessing), classes=["a", "b"])
    again = vision.ImageClassifier.load(None, about, tensors)
    assert fingerprint(again) == fingerprint(model) and again.preprocessing == model.preprocessing
    assert "model = resnet18(num_classes=2)" in again.usage(about)


def test_a_network_that_nobody_can_build_again_is_not_saved(network):
    assert vision.ImageClassifier(network, 3).save(None)[1]["architecture"] == "resnet18", "its shapes say it"
    with pytest.raises(ValueError, match="This Sequential was not opened by a name, .*: save its state dict"):
        vision.ImageClassifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 9)), 3).save(None)


# From a file

def as_safetensors(network, file):
    file = file.with_suffix(".safetensors")
    save_file({n: t.contiguous() for n, t in network.state_dict().items()}, file)
    return file


def as_state_dict(network, file): torch.save(network.state_dict(), file); return file
def wrapped(network): return {f"module.{n}": t for n, t in network.state_dict().items()}
def as_distributed(network, file): torch.save(wrapped(network), file); return file
def as_checkpoint(network, file): torch.save({"state_dict": wrapped(network), "epoch": 90}, file); return file
def as_model_key(network, file): torch.save({"model": network.state_dict()}, file); return file

def as_our_own(network, file):
    model = vision.classifier("resnet18", 5, pretrained=False)
    body = {n: t for n, t in network.state_dict().items() if not n.startswith("fc.")}
    model.backbone.load_state_dict(body, strict=False)
    save_model(model, file := str(file.with_suffix(".safetensors")))
    return file


forms = as_safetensors, as_state_dict, as_distributed, as_checkpoint, as_model_key, as_our_own


@pytest.mark.parametrize("save", forms)
def test_a_file_of_any_form_is_loaded(save, network, expected, tmp_path):
    model = vision.classifier(str(save(network, tmp_path/"mine.pth")), 3)
    assert body(model) == expected and model.backbone.fc.out_features == 3
    assert model.preprocessing == vision.Preprocessing(), "that of ImageNet, unless a file beside it says otherwise"


@pytest.mark.parametrize("name", ["resnet34", "resnet50"])
def test_the_architecture_is_recognised(name, tmp_path):
    with torch.device("meta"): shapes = torchvision.models.get_model(name).state_dict()
    def filled(like):
        return torch.full(like.shape, 0.01, dtype=torch.float16 if like.is_floating_point() else like.dtype)
    save_file({n: filled(t) for n, t in shapes.items()}, tmp_path/"mine.safetensors")
    model = vision.classifier(str(tmp_path/"mine.safetensors"), 2)
    expected = vision.classifier(name, 2, pretrained=False)
    for ours, theirs in zip(blocks(model), blocks(expected)): assert ours.num_parameters() == theirs.num_parameters()
    assert model.architecture == name
    assert model.backbone.conv1.weight.dtype == torch.float32


def test_a_description_beside_the_file_is_used(network, tmp_path):
    file = as_safetensors(network, tmp_path/"mine")
    about = dict(sha256=sha256(file), preprocessing=dict(image_size=64, resize_size=72))
    file.with_suffix(".json").write_text(json.dumps(about))
    assert vision.classifier(str(file), 2).preprocessing == vision.Preprocessing(64, 72)
    assert vision.classifier(str(file), 2, image_size=128).preprocessing == vision.Preprocessing(128, 144)


@pytest.mark.parametrize("spoil, sentence", [
    (lambda t: t.update({"layer3.0.conv1.weight": torch.zeros(2, 2)}),
     r"Nearest is resnet18, but layer3.0.conv1.weight has shape \(2, 2\), expected \(256, 128, 3, 3\)\.$"),
    (lambda t: t.pop("layer4.1.bn2.running_var"), r"layer4.1.bn2.running_var is missing\.$"),
    (lambda t: (t.pop("conv1.weight"), t.pop("bn1.weight")), r"conv1.weight is missing, and 1 more\.$"),
    (lambda t: t.update(surprise=torch.zeros(1)), r"surprise is not part of it\.$")],
    ids=["shape", "missing", "two missing", "too many"])
def test_weights_that_do_not_fit_are_refused(spoil, sentence, network, tmp_path):
    tensors = dict(network.state_dict())
    spoil(tensors)
    torch.save(tensors, tmp_path/"mine.pth")
    with pytest.raises(ValueError, match=f"mine.pth.*{sentence}"): vision.classifier(str(tmp_path/"mine.pth"), 2)


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize("size", [100_000, 0], ids=["truncated", "empty"])
def test_a_truncated_file_is_refused(size, ending, network, tmp_path):
    file = (as_safetensors if ending == ".safetensors" else as_state_dict)(network, tmp_path/f"mine{ending}")
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises((OSError, ValueError), match=f"mine{ending}"): vision.classifier(str(file), 2)


def test_what_is_no_state_dict_is_refused(tmp_path):
    torch.save([torch.zeros(1)], tmp_path/"mine.pth")
    file = str(tmp_path/"mine.pth")
    with pytest.raises(ValueError, match="mine.pth.* holds list, expected a state dict"): vision.classifier(file, 2)
    sentence = "no image backbone and no file 'resnet19': give one of .*resnet18-fractal, resnet18, "
    with pytest.raises(ValueError, match=sentence): vision.classifier("resnet19", 2)


def flipped(file):
    "Turn over one bit in the middle of a file"
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)


def test_a_file_with_another_hash_is_refused(network, tmp_path):
    file = as_safetensors(network, tmp_path/"mine")
    file.with_suffix(".json").write_text(json.dumps(dict(sha256=sha256(file))))
    vision.classifier(str(file), 2)
    flipped(file)
    with pytest.raises(ValueError, match="mine.safetensors in .* has SHA-256 .*, expected"):
        vision.classifier(str(file), 2)


def test_damaged_embedded_weights_are_refused(monkeypatch, tmp_path):
    for file in Embedded.folder.glob("resnet18-fractal.*"): shutil.copyfile(file, tmp_path/file.name)
    monkeypatch.setattr(Embedded, "folder", tmp_path)
    vision.classifier("resnet18-fractal", 2)
    flipped(tmp_path/"resnet18-fractal.safetensors")
    with pytest.raises(ValueError, match="resnet18-fractal.safetensors in .* has SHA-256 .*, expected"):
        vision.classifier("resnet18-fractal", 2)


# Learning

@pytest.mark.parametrize("depth", range(6))
def test_exactly_the_blocks_that_are_not_frozen_move(depth, stripes):
    "Parameters, running statistics and counters"
    model = vision.classifier("resnet18-fractal", 2, image_size=32)
    freeze(model, depth)
    before = [fingerprint(block) for block in blocks(model)]
    history = fit(model, stripes, epochs=1, batch_size=6, progress=False)
    assert history.best_epoch == 1
    assert [a != b for a, b in zip(before, map(fingerprint, blocks(model)))] == [i >= depth for i in range(6)]


def test_it_learns(stripes):
    model = vision.classifier("resnet18-fractal", 2, image_size=32)
    freeze(model, 4)
    history = fit(model, stripes, epochs=6, batch_size=6, progress=False)
    assert history.train_loss[-1] < 0.7 * history.train_loss[0] and evaluate(model, stripes.test).accuracy > 0.9


@pytest.mark.parametrize("depth", [0, 5])
def test_augmentation_is_for_training_alone(depth, stripes):
    seen = []
    def watched(image): seen.append(image); return image
    model = vision.classifier("resnet18-fractal", 2, image_size=32, augment=watched)
    freeze(model, depth)
    fit(model, stripes, epochs=2, batch_size=6, progress=False)
    assert len(seen) == 2 * len(stripes.train), "each training image once an epoch; validation images never"
    assert all(image.dtype == torch.uint8 and image.shape == (3, 32, 32) for image in seen)
    evaluate(model, stripes.test)
    assert len(seen) == 2 * len(stripes.train)


def test_augmentation_moves_a_little_and_mirrors_if_asked():
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    image[:, 8:24, 4:10] = 255 # a stroke on the left
    def changed(**options):
        torch.manual_seed(0)
        return torch.stack([vision.augmentation(**options)(image) for _ in range(40)])
    moved, mirrored = changed(), changed(flip=True)
    assert moved.dtype == torch.uint8 and moved.shape == (40, 3, 32, 32) and torch.equal(moved, changed())
    assert len({m.sum().item() for m in moved}) > 20
    def weight(images): return images.float().sum((1, 2, 3))
    def on_the_left(images): return (weight(images[..., :16]) > weight(images[..., 16:])).float().mean()
    assert on_the_left(moved) == 1 and 0.25 < on_the_left(mirrored) < 0.75
    assert torch.equal(changed(turn=0, shift=0, zoom=0), image.expand(40, -1, -1, -1))


def test_first_weights_follow_the_seed():
    random = torch.get_rng_state()
    one, same, other = (vision.classifier("resnet18", 2, pretrained=False, seed=seed) for seed in (0, 0, 1))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    fresh = vision.classifier("resnet18-fractal", 2, pretrained=False)
    assert body(fresh) != body(vision.classifier("resnet18-fractal", 2))
    one, same, other = (vision.classifier("resnet18-fractal", 2, seed=seed) for seed in (0, 0, 1))
    assert body(one) == body(same) == body(other)
    assert fingerprint(one) == fingerprint(same) != fingerprint(other), "the head alone is drawn"
    assert torch.equal(random, torch.get_rng_state()), "nobody else's random numbers were used up"


def test_files_are_read_in_order(tmp_path):
    "by several threads"
    for i in range(70): Image.new("L", (33, 40), i * 3).save(tmp_path/f"{i:02}.png")
    encoded = vision.classifier("resnet18", 2, image_size=32, pretrained=False).encode(sorted(tmp_path.iterdir()))
    assert [image.float().mean().item() for image in encoded] == [i * 3 for i in range(70)]
    assert encoded[0].shape == (3, 32, 32)


def empty(*shape): return torch.zeros(*shape, dtype=torch.uint8)


no_images = {"float": torch.zeros(3, 8, 8), "no channel": empty(8, 8), "four channels": empty(4, 8, 8),
             "array": np.zeros((3, 8, 8), np.uint8), "number": 5}


@pytest.mark.parametrize("image", no_images.values(), ids=no_images)
def test_what_is_no_image_is_refused(image):
    with pytest.raises(ValueError, match="An image must be a file, a PIL image or a tensor"):
        vision.Preprocessing()(image)


def test_nonsense_is_refused():
    for sentence, classes, size in (("image_size must be at least 32 pixels, got 31", 2, 31),
                                    ("num_classes must be at least 2, got 1", 1, None)):
        with pytest.raises(ValueError, match=sentence):
            vision.classifier("resnet18", classes, image_size=size, pretrained=False)
