"""The gate: what every backbone has to pass, of images or of texts, on small networks with random weights."""
import json
import re
import subprocess
import sys

import pytest
import timm
import torch
import torchvision.models as models
import transformers
from safetensors.torch import save as serialize, save_file
from torch import nn

from conftest import load, root
from finetune_nb import blocks, cache, evaluate, fit, freeze, saving, text, vision
from finetune_nb.data import Examples, Task
from finetune_nb.engine.families import families, open_backbone
from finetune_nb.engine.tagging import Tagging
from finetune_nb.engine.tags import Words
from finetune_nb.freezing import guess_blocks

gates = load(root/"tools"/"backbones.py")


# Small networks

def small_vgg():
    network = models.VGG(models.vgg.make_layers([4, "M", 4, "M", 8, "M", 8, "M", 8, "M"], True))
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    connected = nn.Linear(8, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 8), nn.ReLU(), nn.Dropout()
    network.classifier = nn.Sequential(*connected, nn.Linear(8, 3))
    return network


def small_convnext():
    stages = [models.convnext.CNBlockConfig(*widths, 1) for widths in ((8, 8), (8, 16), (16, 16), (16, None))]
    return models.ConvNeXt(stages, stochastic_depth_prob=0.1)


def small_maxvit():
    return models.MaxVit((64, 64), 8, 2, [8, 16], [1, 1], 4, 0.1)


def small_efficientnet():
    stage = models.efficientnet.MBConvConfig
    return models.EfficientNet([stage(1, 3, 1, 8, 8, 1), stage(6, 3, 2, 8, 16, 2)], 0.2, last_channel=32)


def small_mobilenet():
    stage = models.mobilenetv3.InvertedResidualConfig
    return models.MobileNetV3([stage(8, 3, 8, 8, True, "RE", 2, 1, 1), stage(8, 3, 24, 16, False, "HS", 2, 1, 1)], 32)


smaller = { # than any that is published: they stand in where the family makes the network of that name
    "resnet18": lambda: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1]),
    "efficientnet_b0": small_efficientnet, "mobilenet_v3_small": small_mobilenet,
    "vgg11_bn": small_vgg, "convnext_tiny": small_convnext, "maxvit_t": small_maxvit,
    "vit_b_16": lambda: models.VisionTransformer(32, 16, 2, 2, 16, 32, dropout=0.1),
    "densenet121": lambda: models.DenseNet(4, (1, 1, 1, 1), 8),
    "swin_t": lambda: models.SwinTransformer([4, 4], 8, [1, 1, 2, 1], [2, 2, 2, 2], [2, 2])}
sizes = {"maxvit_t": 64, "timm/test_vit": 64, "timm/test_maxvit": 64, "timm/test_nfnet": 64, "timm/levit_128s": 64}
exported = "timm/test_resnet", "timm/test_vit", "timm/test_nfnet"
images = [*smaller, "regnet_y_400mf", "squeezenet1_1", "shufflenet_v2_x0_5",
          "googlenet", "efficientnet-lite0", "timm/test_resnet", "timm/test_vit", "timm/test_nfnet",
          "timm/deit_tiny_distilled_patch16_224"]


@pytest.mark.parametrize("name", images)
def test_images(name, monkeypatch):
    size = sizes.get(name, 32)
    if name in smaller:
        family = next(type(own) for own in families() if own.inputs == "image" and own.opens(name))
        monkeypatch.setattr(family, "make", lambda self, name, image_size: smaller[name]())
    def make(): return gates.vision_of(name, size)
    faults = gates.gate(make, gates.noise(size), onnx=name in exported, elsewhere=name not in smaller)
    assert not any(faults.values()), faults


sentences = ["a good day", "a fine and sunny day, all in all", "the bad night of it", "dark", "the end", "a sad end"]
encoders = "Bert", "Roberta", "XLMRoberta", "Camembert", "Electra", "DebertaV2", "MPNet", "DistilBert", "ModernBert"
decoders = "GPT2", "Llama", "Qwen2", "Qwen3", "Gemma", "Phi"
as_published = dict(relative_attention=True, position_biased_input=False, pos_att_type=["p2c", "c2p"],
                    norm_rel_ebd="layer_norm") # a DeBERTa-v3
small = dict(vocab_size=30522, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
             intermediate_size=32, head_dim=8, max_position_embeddings=64, pad_token_id=0, bos_token_id=101,
             eos_token_id=102, cls_token_id=101, sep_token_id=102)


@pytest.fixture(scope="module")
def tokenizer(): return text.classifier("minilm", 2).tokenizer


@pytest.fixture(scope="module")
def mood():
    examples = Examples(sentences, [0, 1] * 3)
    return Task("mood", "text", ["good", "bad"], examples, examples, examples)


def network_of(kind):
    torch.manual_seed(0)
    own = as_published if kind == "DebertaV2" else {}
    return getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**small | own))


@pytest.mark.parametrize("kind", [*encoders, *decoders])
def test_texts(kind, tokenizer, mood):
    def make(): return text.TextClassifier(network_of(kind), tokenizer, 2)
    faults = gates.gate(make, mood, onnx=kind in ("Bert", "GPT2"))
    assert not any(faults.values()), faults


def xlnet():
    torch.manual_seed(0)
    about = dict(vocab_size=30522, d_model=16, n_layer=2, n_head=2, d_inner=32, pad_token_id=0)
    return transformers.XLNetModel(transformers.XLNetConfig(**about))


def test_xlnet_passes_but_for_the_cache(tokenizer, mood):
    "It has no longest text, its class token is the last one, and its layers hand on `[T, B, H]`"
    def make(): return text.TextClassifier(xlnet(), tokenizer, 2)
    model = make()
    assert (model.pooling, model.max_length) == ("last", 128)
    assert text.TextClassifier(xlnet(), tokenizer, 2, max_length=4000).max_length == 4000
    faults = gates.gate(make, mood, onnx=False)
    assert "which has no row for each example" in faults.pop("cuts") and not any(faults.values()), faults
    freeze(model, 2)
    said = fit(model, mood, epochs=1, progress=False).prefix
    assert re.search("2 frozen blocks run in every epoch: .* has no row for each example", said)


# Elsewhere

only_theirs = """
import json, sys, torch
from safetensors.torch import load_file
sys.modules["finetune_nb"] = None # whoever asks for it gets an error
for folder, lines in json.load(sys.stdin).items():
    made = {}
    exec(lines, made)
    given = load_file(f"{folder}/given.safetensors")
    expected = given.pop("expected")
    model = made["model"].eval()
    with torch.no_grad(): found = model(**given) if "input_ids" in given else model(*given.values())
    print(folder, (found - expected).abs().max().item())
    assert torch.allclose(found, expected, 1e-4, 1e-4), folder
"""


def saved(model, task, folder):
    "A model that learnt its head, in a folder, with inputs and what it says of them"
    freeze(model, len(blocks(model)) - 1)
    history = fit(model, task, epochs=1, progress=False)
    saving.save(folder, model, task, history, evaluate(model, task.test))
    batch = model.eval().collate(model.samples(3))
    given = dict(batch) if isinstance(batch, dict) else dict(images=model.normalise(batch).contiguous())
    with torch.no_grad(): save_file(given | dict(expected=model.call(batch)), folder/"given.safetensors")


def test_saved_models_load_where_there_is_only_their_library(tmp_path, quiet, tokenizer, mood):
    "By the lines of their cards, with the same scores: heads that are convolutions, two heads, sizes, poolings"
    for name in "squeezenet1_1", "googlenet", "timm/test_vit", "timm/deit_tiny_distilled_patch16_224", \
                "timm/resnetv2_50x1_bit":
        saved(gates.vision_of(name, size := sizes.get(name, 32)), gates.noise(size), tmp_path/name.replace("/", "-"))
    for kind, pooling in ("Bert", "mean"), ("DebertaV2", "cls"), ("GPT2", None):
        saved(text.TextClassifier(network_of(kind), tokenizer, 2, pooling=pooling), mood, tmp_path/kind)
    cards = {str(folder): gates.lines_of_the_card(folder) for folder in tmp_path.iterdir()}
    ran = subprocess.run([sys.executable, "-c", only_theirs], input=json.dumps(cards), env=quiet, capture_output=True,
                         text=True, timeout=600)
    assert ran.returncode == 0 and len(ran.stdout.splitlines()) == len(cards) == 8, ran.stdout + ran.stderr[-2000:]


# Images of a size

@pytest.mark.parametrize("name, size, said", [
    ("alexnet", 32, "image_size can be 64 or 224"), ("maxvit_t", 100, "image_size can be 224"),
    ("inception_v3", 64, "image_size can be 84 or 299"), ("vit_b_16", 100, "image_size can be 96 or 112 or 224"),
    ("timm/levit_128s", 100, "image_size can be ")])
def test_a_size_that_a_network_cannot_take_is_refused(name, size, said):
    with pytest.raises(ValueError, match=f"^{name} cannot read images of {size} x {size} pixels .*{said}") as refused:
        vision.classifier(name, 2, image_size=size, pretrained=False)
    able = re.findall(r"\d+", str(refused.value).rpartition("can be")[2])
    model = vision.classifier(name, 2, image_size=int(able[0]), pretrained=False)
    assert model.preprocessing.image_size == int(able[0])


def test_every_classifier_of_torchvision_has_a_name():
    able = [family for family in families() if family.inputs == "image"]
    for name in models.list_models(module=models):
        found = [family for family in able if family.opens(name)]
        assert len(found) == 1, name


def test_timm_says_how_images_are_prepared():
    wanted = timm.get_pretrained_cfg("vit_small_patch14_dinov2.lvd142m")
    ours = open_backbone("timm/vit_small_patch14_dinov2.lvd142m", "image", False, image_size=70)
    assert ours.preprocessing == dict(image_size=518, resize_size=518, mean=wanted.mean, std=wanted.std,
                                      interpolation="bicubic")
    assert ours.architecture == "vit_small_patch14_dinov2.lvd142m" and ours.features == 384


# Weights of timm, where it looks for them

@pytest.fixture
def hub(tmp_path, monkeypatch):
    "`hub(name, content)`: a file of weights where huggingface_hub keeps those of a network of timm; no network"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    def lay(name, content):
        repository = tmp_path/f"models--timm--{name}"
        folder = repository/"snapshots"/("0" * 40)
        folder.mkdir(parents=True)
        (repository/"refs").mkdir()
        (repository/"refs"/"main").write_text("0" * 40)
        (folder/"model.safetensors").write_bytes(content)
    return lay


tiny = "test_resnet.r160_in1k"


def test_weights_of_timm_are_found_in_the_cache_of_the_hub(hub):
    torch.manual_seed(7)
    network = timm.create_model(tiny)
    hub(tiny, serialize(network.state_dict()))
    model = vision.classifier(f"timm/{tiny}", 3)
    theirs = {name: t for name, t in network.state_dict().items() if not name.startswith("fc.")}
    assert all(torch.equal(model.backbone.state_dict()[name], t) for name, t in theirs.items()) and len(theirs) > 20
    assert model.head.out_features == 3


def whole(): return serialize(timm.create_model(tiny).state_dict())
def other_shapes(): return serialize({n: t[None] for n, t in timm.create_model(tiny).state_dict().items()})


@pytest.mark.parametrize("content, said", [
    (None, "neither where timm keeps them.*nor to be had from the network"),
    (lambda: whole()[:9000], "are damaged, or do not fit.*delete them"), (lambda: b"", "are damaged"),
    (lambda: b"<html>404</html>", "are damaged"), (other_shapes, "are damaged, or do not fit")],
    ids=["offline", "half", "empty", "web page", "shapes"])
def test_weights_of_timm_that_cannot_be_loaded(content, said, hub):
    if content: hub(tiny, content())
    with pytest.raises(OSError, match=f"^timm/{tiny}: its weights .*{said}") as refused:
        vision.classifier(f"timm/{tiny}", 2)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name, said", [
    ("timm/resnet50.nowhere", "has no network 'resnet50.nowhere'. Nearest are resnet50"),
    ("timm/convnxt_tiny", "Nearest are .*convnext_tiny")])
def test_wrong_names_of_timm(name, said):
    with pytest.raises(ValueError, match=said): vision.classifier(name, 2, pretrained=False)


# Weights of texts, where the Hub keeps them

@pytest.fixture
def lay(tmp_path, monkeypatch, tokenizer):
    "`lay(spoil)`: a small BERT in the Hub's cache, its weights as `spoil` leaves them; no network"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    def laid(spoil):
        repository = tmp_path/"models--somebody--small-bert"
        folder = repository/"snapshots"/("0" * 40)
        folder.mkdir(parents=True)
        (repository/"refs").mkdir()
        (repository/"refs"/"main").write_text("0" * 40)
        network_of("Bert").save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        spoil(folder/"model.safetensors")
    return laid


def of_other_shapes(file):
    network = transformers.BertModel(transformers.BertConfig(**small | dict(intermediate_size=48)))
    save_file(network.state_dict(), file, {"format": "pt"})


def test_texts_are_found_in_the_cache_of_the_hub(lay):
    lay(lambda file: None)
    model, wanted = text.classifier("somebody/small-bert", 2), network_of("Bert").state_dict()
    assert all(torch.equal(t, wanted[name]) for name, t in model.backbone.state_dict().items())


@pytest.mark.parametrize("spoil, said", [
    (lambda file: file.unlink(), "was found neither in a folder of that name, nor in the Hugging Face cache"),
    (lambda file: file.write_bytes(file.read_bytes()[:9000]), "are damaged.*delete them"),
    (lambda file: file.write_bytes(b""), "are damaged"),
    (lambda file: file.write_bytes(b"<html>404</html>"), "are damaged"),
    (of_other_shapes, r"intermediate.dense.bias .* has the shape \(48,\) in its weights, and \(32,\) in")],
    ids=["offline", "half", "empty", "web page", "shapes"])
def test_texts_whose_weights_cannot_be_loaded(spoil, said, lay):
    lay(spoil)
    with pytest.raises((OSError, ValueError), match=said) as refused: text.classifier("somebody/small-bert", 2)
    assert "somebody/small-bert" in str(refused.value) and "\n" not in str(refused.value)


# Texts: the last real token, and the pooling that a network was trained with

@pytest.mark.parametrize("kind", decoders)
def test_padding_on_either_side_changes_nothing(kind, tokenizer):
    model = text.TextClassifier(network_of(kind), tokenizer, 3).eval()
    ids = model.encode([sentences[1]])[0]
    def scores(before, after):
        row = torch.cat([torch.full((before,), 7), ids, torch.full((after,), 7)])[None] # filled up with any token
        mask = torch.tensor([[0] * before + [1] * len(ids) + [0] * after])
        with torch.no_grad(): return model(row, mask)
    assert model.pooling == "last"
    for before, after in ((4, 0), (0, 4), (2, 3)):
        assert torch.allclose(scores(before, after), scores(0, 0), atol=1e-5), (before, after)


def test_a_decoder_needs_no_padding_token(tmp_path, tokenizer):
    network_of("GPT2").save_pretrained(tmp_path)
    bare = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="[SEP]")
    assert bare.pad_token is None
    bare.save_pretrained(tmp_path)
    model = text.classifier(str(tmp_path), 2).eval()
    short, long = model.encode(sentences[:2])
    with torch.no_grad():
        assert torch.allclose(model(**model.collate([short, long]))[:1], model(**model.collate([short])), atol=1e-5)


@pytest.mark.parametrize("about, expected", [
    (dict(pooling_mode_cls_token=True, pooling_mode_mean_tokens=False), "cls"),
    (dict(pooling_mode="lasttoken"), "last"),
    (dict(pooling_mode_mean_tokens=True, word_embedding_dimension=16), "mean"), (None, "mean"),
    (dict(pooling_mode_max_tokens=True), "was trained with the pooling max, which is not known here")])
def test_a_folder_of_sentence_transformers_says_its_pooling(about, expected, tmp_path, tokenizer):
    network_of("Bert").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path/"1_Pooling").mkdir()
    if about is not None: (tmp_path/"1_Pooling"/"config.json").write_text(json.dumps(about))
    if expected in ("cls", "last", "mean"): assert text.classifier(str(tmp_path), 2).pooling == expected
    else:
        with pytest.raises(ValueError, match=expected): text.classifier(str(tmp_path), 2)
    assert text.classifier(str(tmp_path), 2, pooling="mean").pooling == "mean"


@pytest.mark.parametrize("kind, said", [
    ("Albert", "its 2 layers are one set of weights"), ("T5", "whose blocks are not known"),
    ("XLM", "are no row of equal modules")])
def test_layers_that_are_no_row_are_refused(kind, said):
    with pytest.raises(ValueError, match=said): blocks(network_of(kind))


# Taggers

def tags_of(count): return [["B-DAY", "O", "O"][i % 3] for i in range(count)]


@pytest.fixture(scope="module")
def days():
    told = Examples([Words.of(sentence.split()) for sentence in sentences],
                    [tags_of(len(sentence.split())) for sentence in sentences])
    return Task("days", "text", Tagging(["DAY"]), told, told, told)


def decoding_tagger(kind, tokenizer):
    model = text.TextTagger(network_of(kind), tokenizer, Tagging(["DAY"]), max_length=8) # the longest is two windows
    torch.manual_seed(1)
    with torch.no_grad():
        for table in (model.shapes.states, model.shapes.scores): table.weight.normal_(std=0.02)
    return model


def padded(batch, before, after):
    "The same windows, with more padding on either side"
    def more(rows, value): return torch.nn.functional.pad(rows, (before, after), value=value)
    words, width = batch["words"], batch["input_ids"].shape[1]
    moved = torch.where(words < 0, words, words + words // width * (before + after) + before)
    return batch | dict(input_ids=more(batch["input_ids"], 7), attention_mask=more(batch["attention_mask"], 0),
                        shapes=more(batch["shapes"], 0), words=moved)


@pytest.mark.parametrize("kind", decoders)
def test_a_decoder_tags(kind, tokenizer, days):
    "Cut at every depth, padded on either side or not at all, and fitted from the cache as without it"
    model = decoding_tagger(kind, tokenizer)
    gates.in_one_block(model)
    gates.is_cut_at_every_depth(decoding_tagger(kind, tokenizer))
    batch = model.eval().collate(model.encode(sentences))
    with torch.no_grad():
        expected = model(**batch)
        for before, after in ((4, 0), (0, 4), (2, 3)):
            assert torch.allclose(model(**padded(batch, before, after)), expected, atol=1e-5), (before, after)
        for own, sentence in zip(expected, sentences): # alone, with no padding
            alone = model(**model.collate(model.encode([sentence])))[0]
            assert torch.allclose(own[:len(alone)], alone, atol=1e-5), sentence
    gates.learns(lambda: decoding_tagger(kind, tokenizer), days)


def test_a_decoder_s_words_know_nothing_of_those_behind_them(tokenizer):
    "What the documentation says of decoders as taggers; an encoder's words do"
    def moved(kind):
        model = decoding_tagger(kind, tokenizer).eval()
        with torch.no_grad(): ours, theirs = (model(**model.collate(model.encode([said])))[0] for said in
                                              ("a fine day", "a fine end"))
        return (ours - theirs).abs().amax(1) > 1e-6
    assert moved("GPT2").tolist() == [False, False, True] and moved("Bert").tolist() == [True] * 3


loaded_afresh = """
import json, sys, torch, finetune_nb
from safetensors.torch import load_file
for folder in json.load(sys.stdin):
    model = finetune_nb.load(folder).model.eval()
    given = load_file(f"{folder}/given.safetensors")
    expected = given.pop("expected")
    with torch.no_grad(): assert torch.allclose(model(**given), expected, 1e-4, 1e-5), folder
    print(folder)
"""


def test_saved_decoders_tag_in_a_fresh_process(tmp_path, quiet, tokenizer, days):
    for kind in decoders:
        model = decoding_tagger(kind, tokenizer)
        freeze(model, 1)
        history = fit(model, days, epochs=1, progress=False)
        saving.save(tmp_path/kind, model, days, history, evaluate(model, days.test))
        batch = model.eval().collate(model.encode(sentences))
        with torch.no_grad(): save_file(batch | dict(expected=model(**batch)), tmp_path/kind/"given.safetensors")
    folders = [str(tmp_path/kind) for kind in decoders]
    ran = subprocess.run([sys.executable, "-c", loaded_afresh], input=json.dumps(folders), env=quiet,
                         capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0 and ran.stdout.split() == folders, ran.stdout + ran.stderr[-2000:]


# Networks that no family knows

class Strange(nn.Module):
    "Lists its parts in another order than they run"
    def __init__(self):
        super().__init__()
        self.late, self.early, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
    def forward(self, x): return self.last(self.late(self.early(x).relu()).relu())


def test_an_unknown_network_says_how_it_can_be_cut():
    with pytest.raises(ValueError, match=r"by hand.*blocks=\[.*\[model.early\].*freezing.guess_blocks\(model\)"):
        blocks(Strange())
    network = models.video.r3d_18(num_classes=2)
    assert [block.name for block in guess_blocks(network)] == ["stem", *(f"layer{i}" for i in range(1, 5)), "head"]
    assert freeze(network, 3, blocks=guess_blocks(network)).depth == 3


def test_what_runs_after_something_that_learns_is_not_kept():
    "Its output would not follow what is learnt"
    network, points = Strange(), torch.randn(4, 4)
    freeze(network, 1, blocks=guess_blocks(network))
    with pytest.raises(cache.CannotCut, match="none of its frozen modules runs before what learns"):
        cache.Cut(network, 1, list(points))
    freeze(network, 2)
    cut = cache.Cut(network, 2, list(points))
    assert torch.allclose(cut.suffix(cut.states(points)), network(points), atol=1e-6)


@pytest.mark.parametrize("name", ["selecsls42b", "efficientformer_l1"])
def test_a_part_called_head_may_stand_before_the_head(name):
    "No two blocks have the same name, of timm's own order or guessed"
    with torch.device("meta"): network = timm.create_model(name)
    for found in blocks(network), guess_blocks(network):
        named = [block.name for block in found]
        assert named[0] == "stem" and named[-1] == "head" and len(set(named)) == len(named), named


known = "resnet18", "mobilenet_v2", "vit_b_16", "swin_t", "timm/test_vit", "timm/test_convnext", "timm/test_byobnet", \
        "timm/test_maxvit", "timm/test_nfnet", "timm/test_efficientnet"


@pytest.mark.parametrize("name", known)
def test_blocks_are_guessed(name, monkeypatch):
    "And can be cut, as if a family knew them"
    if name in smaller:
        family = next(type(own) for own in families() if own.inputs == "image" and own.opens(name))
        monkeypatch.setattr(family, "make", lambda self, name, image_size: smaller[name]())
    gates.can_be_guessed(gates.vision_of(name, 64 if name.startswith("timm") else 32))
