"""How fast the work could be done at all: decode once, run the frozen prefix once, train what learns from memory.

Nothing else is counted.
"""
import copy
import time

import numpy as np
import torch
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from finetune_nb.engine.batches import TOKENS, batch_order, fast_batch, in_batches
from finetune_nb.engine.fast import autocast, packed
from work import EVALUATION_BATCH, has_bf16


def limit(work, seed): # seconds of each part; `epoch` is one pass of training and one of validation
    "Measured on this processor with the work's own shapes, in bf16 where the processor has it."
    task, model = work.task(), work.model().eval()
    dtype = torch.bfloat16 if has_bf16() else torch.float32
    parts = [task.train, task.validation, task.test]
    started = time.perf_counter()
    encoded = [model.encode(part.inputs) for part in parts]
    decode = time.perf_counter() - started
    halves = _halves_of_resnet if work.kind == "image" else _halves_of_bert
    prefix, prepare, suffix, assemble = halves(model, work.depth, dtype)
    lengths = [[len(x) for x in part] for part in encoded]

    def run(batch): # the clock runs for the network alone
        inputs = prepare(batch)
        started = time.perf_counter()
        with autocast(model): states = prefix(*inputs)
        return states, time.perf_counter() - started
    def batches(part, long): # positions of what goes through the prefix together
        if work.kind == "image": return batch_order(long, fast_batch(part[0]))
        return in_batches(long, TOKENS)
    with torch.inference_mode():
        run(encoded[0][:work.batch_size]) # warm
        seconds, states = 0.0, [[None] * len(part) for part in encoded]
        for part, kept, long in zip(encoded, states, lengths):
            for positions in batches(part, long):
                found, took = run([part[i] for i in positions])
                seconds += took
                for i, state in zip(positions, found): kept[i] = state.clone()
    states = [[state.clone() for state in part] for part in states] # ordinary tensors again
    labels, lengths = [part.labels for part in parts], [[len(state) for state in part] for part in states]
    epoch, test = _train(suffix, assemble, states, labels, lengths, work, seed)
    return dict(decode=decode, prefix=seconds, epoch=epoch, test=test)


def _laid_out(network, dtype):
    "Its weights as the processor multiplies them, once."
    return packed(network, set()) if dtype == torch.bfloat16 else network.to(memory_format=torch.channels_last)


def _halves_of_resnet(model, depth, dtype):
    "The prefix, its input; the suffix, its input. For the head alone the prefix ends after the average over the image."
    blocks = model.blocks()
    modules = [module for block in blocks for module in block.modules][1:] # less the normalisation, which is prepared
    if depth == len(blocks) - 1: cut = len(modules) - 1
    else: cut = sum(len(block.modules) for block in blocks[:depth]) - 1
    modules.insert(-1, nn.Flatten())
    cut += cut == len(modules) - 2 # the flattening goes with the average
    prefix = _laid_out(fuse(nn.Sequential(*modules[:cut])), dtype)
    suffix = nn.Sequential(*modules[cut:])
    def prepare(batch):
        images = model.preprocessing.normalise(torch.stack(batch))
        return [images.to(dtype, memory_format=torch.channels_last)]
    def assemble(states):
        states = torch.stack(states).float()
        return states.contiguous(memory_format=torch.channels_last) if states.ndim == 4 else states
    return prefix, prepare, suffix, assemble


class _States(nn.Module):
    "Stands in for the embeddings: the states are there already."
    def forward(self, inputs_embeds=None, **others): return inputs_embeds


class _Upper(nn.Module):
    "The learning layers, the mean over tokens, the head."
    def __init__(self, model, depth):
        super().__init__()
        self.backbone, self.dropout, self.head = copy.deepcopy(model.backbone), model.dropout, model.head
        self.backbone.embeddings = _States()
        self.backbone.encoder.layer = self.backbone.encoder.layer[depth - 1:]
    def forward(self, states):
        padded, mask = states
        states = self.backbone(inputs_embeds=padded, attention_mask=mask).last_hidden_state
        return self.head(self.dropout(_mean(states, mask)))


def _mean(states, mask): return (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)


def _halves_of_bert(model, depth, dtype):
    "The same for BERT. For the head alone the prefix ends after the mean over the text."
    layers, alone = model.backbone.encoder.layer, depth == len(model.blocks()) - 1
    lower = copy.deepcopy(model.backbone)
    lower.encoder.layer = lower.encoder.layer[:min(depth - 1, len(layers))]
    lower = _laid_out(lower, dtype)
    def prefix(inputs):
        states, mask = lower(**inputs).last_hidden_state, inputs["attention_mask"]
        return _mean(states, mask) if alone else [state[:n] for state, n in zip(states, mask.sum(1))]
    def prepare(batch): return [model.collate(batch)]
    if alone:
        suffix = nn.Sequential(model.dropout, model.head)
        return prefix, prepare, suffix, lambda states: torch.stack(states).float()
    def assemble(states):
        lengths = torch.tensor([len(state) for state in states])
        return pad_sequence(states, batch_first=True).float(), (torch.arange(lengths.max()) < lengths[:, None]).long()
    return prefix, prepare, _Upper(model, depth), assemble


def _train(suffix, assemble, states, labels, lengths, work, seed):
    "Seconds of an epoch, and of the test examples: a bare loop, the first epoch only warms."
    generator = torch.Generator().manual_seed(seed)
    for parameter in suffix.parameters(): parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(suffix.parameters(), lr=work.learning_rate, fused=True)
    def batches(part, *how):
        for positions in batch_order(lengths[part], *how):
            yield assemble([states[part][i] for i in positions]), labels[part][positions]
    @torch.inference_mode()
    def judge(part):
        suffix.eval()
        with autocast(suffix):
            for inputs, _ in batches(part, EVALUATION_BATCH): suffix(inputs).argmax(1)
    def epoch():
        suffix.train()
        for inputs, target in batches(0, work.batch_size, generator):
            optimizer.zero_grad()
            with autocast(suffix): scores = suffix(inputs)
            F.cross_entropy(scores.float(), target).backward()
            optimizer.step()
        judge(1)
    def seconds(do):
        started = time.perf_counter()
        do()
        return time.perf_counter() - started
    epoch()
    return min(seconds(epoch) for _ in range(2)), seconds(lambda: judge(2))
