"""What each layer knows: every kind of network gives one vector for each input and block."""
import numpy as np
import pytest
import torch
from torchvision import models
from finetune_nb import layers
from finetune_nb.data import Examples, Task
from finetune_nb.engine.seen import seen_by_blocks
from finetune_nb.freezing import blocks

small = {"vit": lambda: models.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=2),
         "swin": lambda: models.SwinTransformer([4, 4], 8, [1, 1, 2, 1], [2, 2, 2, 2], [2, 2], num_classes=2)}


@pytest.mark.parametrize("name", small)
def test_a_vector_of_each_input_from_each_block(name):
    "Whatever form the states have, and the same as for the input alone"
    torch.manual_seed(0)
    network, images = small[name]().eval(), torch.rand(3, 3, 32, 32)
    seen = seen_by_blocks(network, images, precision="fp32", progress=False)
    assert list(seen) == [block.name for block in blocks(network)[:-1]]
    alone = seen_by_blocks(network, images[1:2], precision="fp32", progress=False)
    for block, vectors in seen.items():
        assert vectors.ndim == 2 and len(vectors) == 3
        assert np.allclose(vectors[1], alone[block][0], atol=1e-5) and np.ptp(vectors, axis=0).max() > 0


def halves(count, generator):
    "Images whose class is the half that is bright"
    images, labels = torch.rand(count, 3, 32, 32, generator=generator) / 8, torch.arange(count) % 2
    for image, label in zip(images, labels): image[:, :, 16 * label:16 * label + 16] += .5
    return Examples(images, labels)


def test_a_probe_reads_what_is_there_and_no_more():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    task = Task("halves", "image", ["left", "right"], *(halves(count, generator) for count in (40, 20, 60)))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 16), torch.nn.Linear(16, 2))
    assert min(layers.probe(network, task).values()) == 1
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, 2, len(part)) for part in (task.train, task.validation, task.test)]
    assert max(layers.probe(network, task, drawn).values()) < .75
    with pytest.raises(ValueError, match=r"of \[40, 20, 60\] numbers; got \[40, 20\]"):
        layers.probe(network, task, [task.train.labels, task.validation.labels])


def test_what_is_known_is_nearest_to_itself():
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    points = torch.rand(6, 4)
    order, alike = layers.nearest(network, points, points, 2)
    assert (order[:, 0] == np.arange(6)).all() and np.allclose(alike[:, 0], 1, atol=1e-5)
    assert (alike[:, 0] >= alike[:, 1]).all()
