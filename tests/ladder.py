"""A family of tiny convolutional networks, whose blocks give maps of strides 4 to 32."""
from torch import nn
from finetune_nb.engine.families import Backbone, Family, Rates, register
from finetune_nb.freezing import Block


class Ladder(nn.Module):
    def __init__(self):
        super().__init__()
        def step(a, b, stride): return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), nn.GroupNorm(2, b), nn.ReLU())
        self.stem, self.last = step(3, 8, 4), nn.Linear(16, 5)
        self.steps = nn.ModuleList([step(8, 8, 1), step(8, 12, 2), step(12, 16, 2), step(16, 16, 2)])
    def forward(self, images):
        x = self.stem(images)
        for step in self.steps: x = step(x)
        return self.last(x.mean((2, 3)))


@register
class Ladders(Family):
    title, inputs = "Ladder", "image"
    def names(self): return ["ladder-tiny"]
    def knows(self, network): return isinstance(network, Ladder)
    def rates(self, network): return Rates(3e-3, 1e-2, 1e-2)
    def blocks(self, network):
        steps = [Block(f"step{i}", [step]) for i, step in enumerate(network.steps, 1)]
        return [Block("stem", [network.stem]), *steps, Block("head", [network.last])]
    def open(self, name, pretrained=True, **options):
        return Backbone(name, Ladder(), self, preprocessing=dict(image_size=32, resize_size=32))
    def rebuild(self, about, folder):
        return Backbone(about["name"], Ladder(), self, "ladder-tiny", about["preprocessing"])
    def constructor(self, about, outputs=1000): return "from ladder import Ladder", "Ladder()"
