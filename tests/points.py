"""A kind of task that the engine does not know: points to be found in a picture, which is seen in two halves."""
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
from finetune_nb.engine.models import Model, network_inputs
from finetune_nb.engine.objective import Evaluation, Objective
from finetune_nb.freezing import Block

H = 8 # a picture is `float[8, 16]`; its target a list of cells (row, column), of any length


@dataclass
class Points(Objective):
    negatives: int = 20 # cells without a point that the loss looks at, drawn at random
    random = True

    def check(self, targets):
        if any(not (0 <= r < H and 0 <= c < 2 * H) for points in targets for r, c in points):
            raise ValueError("a point lies outside its picture.")
        return [[tuple(map(int, point)) for point in points] for points in targets]
    def strata(self, targets): return np.array([len(points) for points in targets])
    def collate(self, targets, seeds=None):
        wanted = torch.zeros(len(targets), H, 2 * H)
        for heat, points in zip(wanted, targets):
            for r, c in points: heat[r, c] = 1
        return dict(wanted=wanted, seeds=seeds)
    def losses(self, outputs, targets):
        scores, cells = outputs["scores"], outputs["cells"]
        losses = cross_entropy(scores, targets["wanted"].to(scores), reduction="none") * cells
        return losses.flatten(1).sum(1) / cells.flatten(1).sum(1)
    def fits(self, outputs): return "" if "cells" in outputs else "finds no points"
    def answers(self, outputs, batch):
        return [[tuple(point) for point in (own > 0).nonzero().tolist()] for own in outputs["scores"]]
    def judge(self, answers, targets, losses):
        found = zip(map(set, answers), map(set, targets))
        each = np.array([2 * len(ours & true) / max(1, len(ours) + len(true)) for ours, true in found])
        return Evaluation(answers, targets, losses, each, dict(f1=float(each.mean())))


class Finder(Model):
    kind, objective = "points", Points()
    def __init__(self):
        super().__init__()
        def block(n, m):
            return nn.Sequential(nn.Conv2d(n, m, 3, padding=1), nn.BatchNorm2d(m), nn.ReLU(), nn.Dropout(0.1))
        self.first, self.second, self.head = block(1, 6), block(6, 6), nn.Conv2d(7, 1, 1)
    def blocks(self): return [Block(name, [getattr(self, name)]) for name in ("first", "second", "head")]
    def encode(self, pictures): # two network inputs an example: a half, and which half it is
        return [[(half[None], torch.tensor(float(i))) for i, half in enumerate(p.chunk(2, 1))] for p in pictures]
    def collate(self, encoded, length=None): return tuple(map(torch.stack, zip(*network_inputs(encoded))))
    def forward(self, halves, side, targets=None): # the side goes round the backbone, to the head
        x = self.second(self.first(halves.to(self.head.weight)))
        beside = side[:, None, None, None].to(x).expand(-1, 1, H, H)
        scores = self.head(torch.cat([x, beside], 1)).view(-1, 2, H, H).transpose(1, 2).flatten(2)
        if targets is None: return dict(scores=scores, cells=torch.ones_like(scores))
        seeds = map(torch.Generator().manual_seed, targets["seeds"].tolist()) # of each example in this epoch
        drawn = (torch.rand(H, 2 * H, generator=generator) for generator in seeds)
        sampled = torch.stack([noise >= noise.flatten().topk(Points.negatives).values[-1] for noise in drawn])
        return dict(scores=scores, cells=((targets["wanted"] > 0) | sampled).to(scores))
    def save(self, folder): return self.state_dict(), {}
    @classmethod
    def load(cls, folder, about, tensors):
        (model := cls()).load_state_dict(tensors)
        return model
