"""What all listings share: the same examples, weights, epochs and rates.

Nothing here imports a framework: the examples are written to files once, by a process of its own.
"""
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

root = Path(__file__).resolve().parents[2]
FRACTAL = root/"finetune_nb"/"weights"/"resnet18-fractal.safetensors"

SEED = int(os.environ.get("TOOLS_SEED", 0)) # of the labelled subset, the head and the order of the examples
LABELS, TEST, EPOCHS = (2, 2, 1) if os.environ.get("TOOLS_TINY") else (10, 100, 6) # examples of each class
CLASSES, BATCH, IMAGE_RATE, TEXT_RATE = 10, 10, 1e-3, 5e-4

_folder = Path(os.environ.get("TOOLS_FOLDER") or Path(tempfile.gettempdir())/"finetune_nb_tools")


def _file(kind): return _folder/f"{kind}-{SEED}-{LABELS}-{TEST}.npz"


def _read(kind):
    "What the task has in its file; a process of its own makes that, so that this one need not import PyTorch"
    if not _file(kind).exists():
        subprocess.run([sys.executable, __file__, kind], env={**os.environ, "PYTHONPATH": str(root)}, check=True)
    with np.load(_file(kind)) as found: return dict(found)


def digits(channels_last=False):
    "Training and test images, `float32[N, 3, 64, 64]`, normalised as the network wants them, each with its labels"
    found = _read("digits")
    def pixels(part): return np.ascontiguousarray(part.transpose(0, 2, 3, 1)) if channels_last else part
    return [(pixels(found[part]), found[f"{part}_labels"]) for part in ("train", "test")]


def topics():
    "Training and test sentences, each with its labels"
    found = _read("topics")
    return [(found[part].tolist(), found[f"{part}_labels"]) for part in ("train", "test")]


def minilm():
    "The folder of the embedded text network, as Transformers takes it"
    from finetune_nb.engine.transformers_families import minilm_source
    return minilm_source()


def write(kind):
    "The task's examples to its file"
    from finetune_nb import data, vision
    task = getattr(data, kind)(LABELS, SEED, validation_per_class=TEST // 5 or 1, test_per_class=TEST)
    parts = {}
    for name in ("train", "test"):
        part = getattr(task, name)
        parts[f"{name}_labels"] = part.labels.numpy()
        if task.kind == "text": parts[name] = np.array(list(part.inputs))
        else:
            model = vision.classifier("resnet18-fractal", task)
            images = [model.preprocessing.normalise(image) for image in model.encode(part.inputs)]
            parts[name] = np.stack([image.numpy() for image in images])
    _folder.mkdir(parents=True, exist_ok=True)
    unfinished = _folder/f"{kind}.{os.getpid()}.npz"
    np.savez(unfinished, **parts)
    unfinished.replace(_file(kind))


if __name__ == "__main__": write(sys.argv[1])
