"""Text backbones of every family, from a folder, from the Hub's cache, and damaged."""
import importlib.metadata, json, subprocess, sys
from dataclasses import dataclass
import pytest, torch
from safetensors.torch import load_file, save_file
from transformers import (AutoConfig, AutoModelForSequenceClassification, BertConfig, BertModel, DistilBertConfig,
                          DistilBertModel, ElectraConfig, ElectraModel, GPT2Config, GPT2Model, RobertaConfig,
                          RobertaModel)
from finetune_nb import blocks, data, evaluate, fit, freeze, text
from finetune_nb.data import Examples, Task
from finetune_nb.engine.families import Backbone
from finetune_nb.engine.objective import Objective
from finetune_nb.freezing import fingerprint

small = dict(vocab_size=30522, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
families = {
    "bert": lambda: BertModel(BertConfig(**small)),
    "roberta": lambda: RobertaModel(RobertaConfig(**small, pad_token_id=0)),
    "electra": lambda: ElectraModel(ElectraConfig(**small, embedding_size=8)),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(vocab_size=30522, dim=16, n_layers=2, n_heads=2, hidden_dim=32)),
    "gpt2": lambda: GPT2Model(GPT2Config(vocab_size=30522, n_embd=16, n_layer=2, n_head=2)),
}


@pytest.fixture(scope="module")
def tokenizer(): return text.classifier("minilm", 2).tokenizer


def save(name, folder, tokenizer):
    torch.manual_seed(0)
    families[name]().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def mood():
    good = [f"a {word} day" for word in ("good", "fine", "happy", "sunny")]
    bad = [f"the {word} night of it" for word in ("bad", "sad", "grim", "dark")]
    examples = Examples(good + bad, [0] * 4 + [1] * 4)
    return Task("mood", "text", ["good", "bad"], examples, examples, examples)


@pytest.mark.parametrize("pooling", ["mean", "pooler"])
@pytest.mark.parametrize("name", families)
def test_every_family_fine_tunes_from_a_folder(name, pooling, tmp_path, tokenizer, mood):
    save(name, tmp_path, tokenizer)
    if pooling == "pooler" and name not in ("bert", "roberta"):
        with pytest.raises(ValueError, match='use pooling="mean"'): text.classifier(str(tmp_path), 2, pooling=pooling)
        return
    for depth in range(4):
        model = text.classifier(str(tmp_path), 2, pooling=pooling)
        freeze(model, depth)
        before = [fingerprint(block) for block in blocks(model)]
        history = fit(model, mood, epochs=15, learning_rate=1e-2, head_learning_rate=1e-2, progress=False)
        moved = [a != b for a, b in zip(before, map(fingerprint, blocks(model)))]
        assert moved == [i >= depth for i in range(4)], "exactly the blocks that learn have changed"
        if depth: continue # a random frozen prefix this small says next to nothing
        assert history.train_loss[-1] < 0.8 * history.train_loss[0]


def test_padding_changes_no_score(tmp_path, tokenizer):
    for name in families:
        save(name, tmp_path/name, tokenizer)
        model = text.classifier(str(tmp_path/name), 2).eval()
        short, long = model.encode(["a day", "a much longer day than the one before it"])
        with torch.no_grad():
            alone, beside = model(**model.collate([short])), model(**model.collate([short, long]))[:1]
        assert torch.allclose(alone, beside, atol=1e-5), name


def test_a_name_is_found_where_the_hub_keeps_its_files(tmp_path, tokenizer, quiet):
    "`bert-base-uncased`, with files laid where huggingface_hub looks for downloaded ones"
    revision = "0" * 40
    repository = tmp_path/"models--bert-base-uncased"
    save("bert", repository/"snapshots"/revision, tokenizer)
    (repository/"refs").mkdir()
    (repository/"refs"/"main").write_text(revision)
    code = ("from finetune_nb import blocks, text; m = text.classifier('bert-base-uncased', 3); "
            "print([b.name for b in blocks(m)], m.backbone.config.hidden_size)")
    env = {**quiet, "HF_HUB_CACHE": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert ran.stdout.strip() == "['embeddings', 'layer.0', 'layer.1', 'head'] 16", ran.stderr


def test_random_weights_are_reproducible():
    one, same, other = (text.classifier("minilm", 2, pretrained=False, seed=seed) for seed in (0, 0, 1))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    pretrained = text.classifier("minilm", 2), text.classifier("minilm", 2, seed=1)
    assert fingerprint(pretrained[0].backbone) == fingerprint(pretrained[1].backbone) != fingerprint(one.backbone)


class Elsewhere:
    "An installed package whose files are in another folder"
    def __init__(self, folder): self.folder = folder
    def locate_file(self, path): return self.folder


def test_damaged_weights_are_refused_by_name(monkeypatch, tmp_path):
    (tmp_path/"model.safetensors").write_bytes(b"not what was shipped")
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Elsewhere(tmp_path))
    with pytest.raises(ValueError, match="model.safetensors of minilm .* has SHA-256 .*, expected 53aa5117"):
        text.classifier("minilm", 2)


def test_a_checkpoint_with_missing_weights_is_refused(tmp_path, tokenizer):
    "or they would be random, and nobody would know"
    save("bert", tmp_path, tokenizer)
    weights = load_file(tmp_path/"model.safetensors")
    renamed = {name.replace("encoder.layer.1", "encoder.renamed"): tensor for name, tensor in weights.items()}
    save_file(renamed, tmp_path/"model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 16 of the network's weights \(encoder.layer.1"):
        text.classifier(str(tmp_path), 2)


def test_a_truncated_checkpoint_is_refused(tmp_path, tokenizer):
    save("bert", tmp_path, tokenizer)
    weights = (tmp_path/"model.safetensors").read_bytes()
    (tmp_path/"model.safetensors").write_bytes(weights[:len(weights) // 2])
    with pytest.raises(OSError, match="in the folder .* cannot be loaded"): text.classifier(str(tmp_path), 2)


def test_a_missing_tokenizer_is_refused(tmp_path):
    families["bert"]().save_pretrained(tmp_path)
    with pytest.raises((ValueError, OSError), match="tokenizer"): text.classifier(str(tmp_path), 2)


def test_without_the_package_the_same_name_asks_the_hub(monkeypatch):
    def missing(name): raise importlib.metadata.PackageNotFoundError(name)
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = []
    def offline(source):
        asked.append(source)
        raise OSError("offline")
    monkeypatch.setattr(AutoConfig, "from_pretrained", offline)
    with pytest.raises(OSError, match="minilm` needs no network after"): text.classifier("minilm", 2)
    assert asked == ["sentence-transformers/all-MiniLM-L6-v2"]


def test_long_texts_are_cut(tokenizer):
    model = text.classifier("minilm", 2, max_length=16)
    assert [len(ids) for ids in model.encode(["word " * 1000, "word"])] == [16, 3]


def test_a_batch_is_padded_as_far_as_it_is_told(tokenizer):
    model = text.classifier("minilm", 2)
    encoded = model.encode(["a day", "a long and sunny day"])
    for length, expected in ((None, 7), (5, 7), (12, 12)):
        batch = model.collate(encoded, length=length)
        assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, expected)
        assert batch["attention_mask"].sum(1).tolist() == [4, 7]
    assert model.lengths(encoded) == [4, 7] and torch.equal(model.mask(batch), batch["attention_mask"].bool())
    windows = model.collate([[encoded[0], encoded[1]], encoded[0]])
    assert windows["input_ids"].shape == (3, 7), "an example of two windows is two network inputs"


def test_learning_rates_go_by_the_width():
    def rate(width):
        config = BertConfig(hidden_size=width, num_hidden_layers=1, num_attention_heads=2)
        with torch.device("meta"): network = BertModel(config)
        return Backbone("", network).rates
    assert rate(384) == (2e-4, 3e-3, 1e-2) and rate(768) == (5e-5, 3e-3, 1e-2) and rate(1024) == (2e-5, 3e-3, 1e-2)
    model = text.classifier("minilm", 2)
    assert (model.learning_rate, model.head_learning_rate, model.head_only_learning_rate) == (2e-4, 3e-3, 1e-2)
    assert (model.name, model.family) == ("minilm", "Transformers")


@dataclass
class Tags(Objective):
    "Asks which of these are there"
    names: tuple = ("new", "good", "loud")
    problem_type = "multi_label_classification"

    @property
    def classes(self): return self.names


@pytest.mark.parametrize("pooling", ["mean", "pooler"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_saved_model_comes_back_and_one_of_before_too(family, pooling, tmp_path, tokenizer):
    save(family, tmp_path/"backbone", tokenizer)
    model = text.classifier(str(tmp_path/"backbone"), Tags(), pooling=pooling, max_length=20).eval()
    (folder := tmp_path/"saved").mkdir()
    tensors, about = model.save(folder)
    about = json.loads(json.dumps(about))
    batch = model.collate(model.encode(["a day", "a long and sunny day"]))
    known = "kind", "pooling", "max_length", "backbone", "options"
    before = {key: about[key] for key in known} | dict(classes=["a", "b", "c"])
    for said, objective in ((about, Tags(["new", "good", "loud"])), (before, None)):
        again = text.TextClassifier.load(folder, said, tensors).eval()
        assert again.objective == objective and again.max_length == 20
        with torch.no_grad(): assert torch.equal(again(**batch), model(**batch))
        assert ("import pipeline" in again.usage(said)) == (pooling == "pooler") == (folder/"config.json").exists()
    if pooling == "mean": return
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder/"model.safetensors", {"format": "pt"})
    theirs, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert theirs.config.problem_type == "multi_label_classification" and theirs.config.id2label[1] == "good"
    with torch.no_grad(): assert torch.equal(theirs.eval()(**batch).logits, model(**batch))
