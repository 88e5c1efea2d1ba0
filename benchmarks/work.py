"""The same work for everyone: images and sentences, weights, batches, and the network that every peer trains."""
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from finetune_nb import cache, data, text, vision
from finetune_nb.engine.batches import batch_order

EVALUATION_BATCH = 64 # examples judged at once


has_bf16 = partial(cache.has_bf16, torch.device("cpu"))


def draw_images(folder, counts, seed=0):
    "Two classes of JPEGs around 500 px, `folder/part/class/*.jpg`: stripes, or spots, on a background of any colours"
    rng = np.random.default_rng(seed)
    for part, count in counts.items():
        for i in range(count):
            file = Path(folder)/part/("spots", "stripes")[i % 2]/f"{i:04}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            _texture(rng, i % 2).save(file, quality=90)


def _texture(rng, striped):
    width, height = rng.integers(400, 641, 2)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period = rng.uniform(0, math.pi), rng.uniform(10, 24)
    def wave(angle): # the phase at each pixel
        return 2 * math.pi / period * (x * math.cos(angle) + y * math.sin(angle)) + rng.uniform(0, 6)
    along, across = wave(angle), wave(angle + math.pi / 2)
    pattern = np.sin(along) if striped else (np.sin(along) + np.sin(across)) / 2
    colours = Image.fromarray(rng.integers(40, 216, (6, 8, 3), dtype=np.uint8))
    background = colours.resize((int(width), int(height)), Image.Resampling.BICUBIC)
    ink = rng.uniform(60, 110) * rng.choice([-1, 1], 3)
    grain = 5 * rng.standard_normal((height, width, 3), dtype=np.float32)
    pixels = np.asarray(background, np.float32) + pattern[..., None] * ink + grain
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Work:
    "What is to be done; everybody gets the same."
    name: str # "images, head only"
    kind: str # "image" or "text"
    depth: int # blocks that are frozen
    learning_rate: float # of all that learns, for everybody
    train: int # examples to learn from
    validation: int # judged after each epoch
    test: int # judged at the end
    epochs: int = 10
    folder: str = "" # where the images are
    padded: bool = False # the article's recipe: every text padded to 512 tokens
    batch_size: int = 32

    def task(self) -> data.Task:
        if self.kind == "image": return data.image_folder(self.folder)
        return data.topics(self.train // 10, validation_per_class=self.validation // 10, test_per_class=self.test // 10)

    def model(self) -> nn.Module:
        if self.kind == "image": return vision.classifier("resnet18-fractal", 2, image_size=224)
        return text.classifier("minilm", 10)

    def prepare(self, best:bool # the best settings for this processor, or those that a user gets
               ): # network, training, validation and test data sets, a function that makes a batch of their rows
        "What a peer needs. Images are decoded when they are asked for; texts are tokenised here, once."
        model = self.model()
        network = Network(model, self, best)
        parts, batch = self._images(model, best) if self.kind == "image" else self._texts(model)
        return network, *parts, batch

    def _images(self, model, best):
        wanted = model.preprocessing
        cut = [v2.Resize(wanted.resize_size, antialias=True), v2.CenterCrop(wanted.image_size)]
        # A tensor is resized in a fifth of the time that Pillow takes.
        tensor = [v2.PILToTensor(), *cut] if best else [*cut, v2.PILToTensor()]
        numbers = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(wanted.mean, wanted.std)]
        transform = v2.Compose([*tensor, *numbers])
        parts = [ImageFolder(Path(self.folder)/part, transform) for part in ("train", "validation", "test")]
        return parts, torch.utils.data.default_collate

    def _texts(self, model):
        task, options = self.task(), dict(max_length=model.max_length)
        if self.padded: options = dict(padding="max_length", max_length=512)
        def rows(part):
            tokens = model.tokenizer(list(part.inputs), truncation=True, **options)["input_ids"]
            return [(torch.tensor(ids), label) for ids, label in zip(tokens, part.labels)]
        def batch(rows):
            inputs = model.collate([ids for ids, _ in rows])
            if self.padded: inputs["attention_mask"] = (inputs["input_ids"] != model.tokenizer.pad_token_id).long()
            return inputs, torch.stack([label for _, label in rows])
        return [rows(part) for part in (task.train, task.validation, task.test)], batch

    def workers(self, best:bool) -> int:
        "Processes that decode images; texts are tokenised already."
        return os.cpu_count() if best and self.kind == "image" else 0

    def loaders(self, best:bool, seed:int): # network, training, validation and test batches
        "What a peer needs that takes PyTorch's loaders."
        network, train, validation, test, batch = self.prepare(best)
        workers = self.workers(best)
        options = dict(collate_fn=batch, num_workers=workers, persistent_workers=workers > 0)
        if best and self.kind == "text":
            def grouped(rows, *how): return DataLoader(rows, batch_sampler=_Grouped(rows, *how), **options)
            learned = grouped(train, self.batch_size, seed)
            judged = [grouped(rows, EVALUATION_BATCH) for rows in (validation, test)]
        else:
            learned = DataLoader(train, self.batch_size, shuffle=True, **options)
            judged = [DataLoader(rows, EVALUATION_BATCH, **options) for rows in (validation, test)]
        return network, learned, *judged


class _Grouped:
    "Texts of like length in one batch, in finetune_nb's own order."
    def __init__(self, rows, batch_size, seed=None):
        self.lengths, self.batch_size = [len(ids) for ids, _ in rows], batch_size
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)
    def __len__(self): return -(-len(self.lengths) // self.batch_size)
    def __iter__(self): return iter(batch_order(self.lengths, self.batch_size, self.generator))


class Network(nn.Module):
    """finetune_nb's classifier as a plain module.

    At best: frozen blocks in evaluation mode, channels_last, bf16 where the processor has it.
    """
    def __init__(self, model:nn.Module, work:Work, best:bool):
        super().__init__()
        self.images = work.kind == "image"
        self.best = best
        self.bf16 = best and has_bf16()
        self.padding = getattr(getattr(model, "tokenizer", None), "pad_token_id", None)
        self.order = torch.channels_last if best else torch.contiguous_format
        self.body = (model.backbone if self.images else model).to(memory_format=self.order)
        frozen = model.blocks()[:work.depth]
        self.frozen = [module for block in frozen for module in block.modules]
        for block in frozen:
            for parameter in block.parameters(): parameter.requires_grad = False

    @property
    def prefix(self): return [p for p in self.parameters() if not p.requires_grad]
    @property
    def suffix(self): return [p for p in self.parameters() if p.requires_grad]

    def train(self, mode=True):
        super().train(mode)
        if self.best:
            for module in self.frozen: module.eval()
        return self

    def forward(self, inputs):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            if isinstance(inputs, Mapping): return self.body(**inputs).float()
            return self.body(inputs.contiguous(memory_format=self.order)).float()


class Cut:
    "The first batches of a loader, and how long the whole would have taken at their pace, the first of them aside."
    def __init__(self, loader, batches=3):
        self.loader, self.batches = loader, batches
        self.seconds = self.whole = 0.0
    def __len__(self): return min(len(self.loader), self.batches)
    def __iter__(self):
        times = [time.perf_counter()]
        for batch in islice(self.loader, self.batches):
            yield batch
            times.append(time.perf_counter())
        steps = np.diff(times)
        self.seconds = float(steps.sum())
        self.whole = float(steps[-max(1, len(steps) - 1):].mean()) * len(self.loader)
