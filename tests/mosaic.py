"""A family of backbones that the engine does not know: transformers of patches, with a bare class token."""
import torch
from torch import nn
from finetune_nb.engine.families import Backbone, Family, Rates, register
from finetune_nb.freezing import Block


class Mosaic(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 16, 8, stride=8), nn.Parameter(torch.randn(1, 1, 16))
        def layer(): return nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.layers, self.norm, self.head = nn.ModuleList([layer(), layer()]), nn.LayerNorm(16), nn.Linear(16, 5)
    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        for layer in self.layers: x = layer(x)
        return self.head(self.norm(x[:, 0]))


@register
class Mosaics(Family):
    title, inputs = "Mosaic", "image"
    def names(self): return ["mosaic-tiny"]
    def knows(self, network): return isinstance(network, Mosaic)
    def rates(self, network): return Rates(3e-3, 1e-2, 1e-2)
    def blocks(self, network):
        layers = [Block(f"layer{i}", [layer]) for i, layer in enumerate(network.layers, 1)]
        stem = Block("stem", [network.patches], {"token": network.token})
        return [stem, *layers, Block("head", [network.norm, network.head])]
    def open(self, name, pretrained=True, **options):
        return Backbone(name, Mosaic(), self, preprocessing=dict(image_size=32, resize_size=32))
