"""The frozen backbone of the digits, for a page that draws: `learn_here/body.js` of the site, made when it is built.

Each BatchNorm is folded into the convolution before it, and each filter is rounded to eight bits, the largest of
its weights to 127. The weights are those that come with the package.
"""
import json
import zlib
from base64 import b64encode
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

weights = Path(__file__).resolve().parent.parent/"finetune_nb"/"weights"/"resnet18-fractal.safetensors"


def convolutions():
    "The names of a ResNet-18's convolutions and of the BatchNorms behind them, in the order in which a page runs them"
    yield "conv1", "bn1"
    for block in (f"layer{layer}.{i}" for layer in (1, 2, 3, 4) for i in (0, 1)):
        yield f"{block}.conv1", f"{block}.bn1"
        yield f"{block}.conv2", f"{block}.bn2"
        if block.endswith(".0") and block != "layer1.0": yield f"{block}.downsample.0", f"{block}.downsample.1"


def folded(tensors, convolution, norm, eps=1e-5):
    "Weights `float32[O, I, K, K]` and biases `float32[O]` that do what a convolution and its BatchNorm do"
    names = "weight", "bias", "running_mean", "running_var"
    own = {name: tensors[f"{norm}.{name}"].astype(np.float32) for name in names}
    times = own["weight"] / np.sqrt(own["running_var"] + eps)
    kernel = tensors[f"{convolution}.weight"].astype(np.float32) * times[:, None, None, None]
    return kernel, own["bias"] - own["running_mean"] * times


def text_of(array): return b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 6)).decode()


def body(file=weights):
    "What the page loads: a script that hands over the layers and their weights"
    tensors, layers, kernels, others = load_file(file), [], [], []
    for convolution, norm in convolutions():
        kernel, bias = folded(tensors, convolution, norm)
        scale = np.abs(kernel).max((1, 2, 3)) / 127
        kernels.append(np.round(kernel / scale[:, None, None, None]).astype(np.int8).ravel())
        others += [scale, bias]
        layers.append([convolution, *kernel.shape[:3]])
    about = dict(layers=layers, weights=text_of(np.concatenate(kernels)), others=text_of(np.concatenate(others)))
    return f"learnHere.receive({json.dumps(about, separators=(',', ':'))})\n"
