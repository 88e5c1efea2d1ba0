"""What each tool does with a frozen BatchNorm: the body of a ResNet-18 is frozen, and only the head learns.

A setting gives the accuracy on the test examples, and hashes of the body's BatchNorm before and after.
"""
import hashlib

import numpy as np

from shared import BATCH, CLASSES, EPOCHS, FRACTAL, SEED, digits

RATE = 3e-3 # of the head, which learns alone

SETTINGS = {} # by tool and name


def setting(tool, name):
    def register(function):
        SETTINGS[tool, name] = function
        return function
    return register


def told(arrays):
    "A short hash of all these numbers"
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()[:12]


# PyTorch, and what stands on it

def of_torch(body):
    "What a body's BatchNorm has counted, and what it has learnt"
    counted = "running_mean", "running_var"
    state = body.state_dict().items()
    tensors = {name: t.numpy() for name, t in state if "bn" in name or "downsample.1" in name}
    return dict(statistics=told(t for name, t in tensors.items() if name.endswith(counted)),
                weights=told(t for name, t in tensors.items() if name.endswith(("weight", "bias"))))


def torch_parts():
    "The data sets, the body and the whole network"
    import torch
    from safetensors.torch import load_file
    from torch import nn
    from torch.utils.data import TensorDataset
    from torchvision.models import resnet18
    torch.manual_seed(SEED)
    body = resnet18()
    body.load_state_dict(load_file(FRACTAL), strict=False)
    body.fc = nn.Identity()
    train, test = (TensorDataset(*map(torch.from_numpy, part)) for part in digits())
    return train, test, body, nn.Sequential(body, nn.Linear(512, CLASSES))


def judged(network, test):
    import torch
    from torch.utils.data import DataLoader
    network.eval()
    with torch.no_grad(): right = [network(x).argmax(1) == y for x, y in DataLoader(test, 64)]
    return torch.cat(right).float().mean().item()


def in_plain_torch(frozen_in_eval):
    import torch
    from torch.nn import functional as F
    from torch.utils.data import DataLoader
    train, test, body, network = torch_parts()
    body.requires_grad_(False)
    before = of_torch(body)
    optimizer = torch.optim.AdamW(network[1].parameters(), lr=RATE)
    for _ in range(EPOCHS):
        network.train()
        if frozen_in_eval: body.eval()
        for images, labels in DataLoader(train, BATCH, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
    return judged(network, test), before, of_torch(body)


@setting("plain PyTorch", "requires_grad = False")
def _(): return in_plain_torch(frozen_in_eval=False)


@setting("plain PyTorch", "and body.eval() after network.train()")
def _(): return in_plain_torch(frozen_in_eval=True)


def in_trainer(frozen_in_eval):
    from torch import nn
    from torch.nn import functional as F
    from transformers import Trainer, TrainingArguments, set_seed
    set_seed(SEED)
    train, test, body, network = torch_parts()
    body.requires_grad_(False)
    before = of_torch(body)

    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network
        def forward(self, images, labels): return dict(loss=F.cross_entropy(network(images), labels))
        def train(self, mode=True):
            super().train(mode)
            if frozen_in_eval: body.eval()
            return self

    rows = [dict(images=x, labels=y) for x, y in train]
    arguments = TrainingArguments("trainer", num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH, seed=SEED,
                                  learning_rate=RATE, save_strategy="no", report_to="none", disable_tqdm=True,
                                  use_cpu=True)
    Trainer(WithLoss(), arguments, train_dataset=rows).train()
    return judged(network, test), before, of_torch(body)


@setting("Trainer", "requires_grad = False")
def _(): return in_trainer(frozen_in_eval=False)


@setting("Trainer", "and a train() that leaves the body in eval()")
def _(): return in_trainer(frozen_in_eval=True)


def in_lightning(train_bn, frozen_in_eval=False):
    import lightning as L
    import torch
    from lightning.pytorch.callbacks import BaseFinetuning
    from torch.nn import functional as F
    from torch.utils.data import DataLoader
    train, test, body, network = torch_parts()
    before = of_torch(body)

    class Classifier(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network
        def training_step(self, batch, index): return F.cross_entropy(self.network(batch[0]), batch[1])
        def configure_optimizers(self):
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=RATE)

    class Frozen(BaseFinetuning):
        def freeze_before_training(self, module): self.freeze(body, train_bn=train_bn)
        def finetune_function(self, module, epoch, optimizer): pass

    if frozen_in_eval: body.eval()
    trainer = L.Trainer(max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False, callbacks=[Frozen()])
    trainer.fit(Classifier(), DataLoader(train, BATCH, shuffle=True))
    return judged(network, test), before, of_torch(body)


@setting("Lightning", "BaseFinetuning.freeze(body)")
def _(): return in_lightning(train_bn=True)


@setting("Lightning", "BaseFinetuning.freeze(body, train_bn=False)")
def _(): return in_lightning(train_bn=False)


@setting("Lightning", "and body.eval() before fit")
def _(): return in_lightning(train_bn=False, frozen_in_eval=True)


def in_fastai(train_bn, *callbacks):
    from fastai.callback.schedule import Learner # which gives it fit_one_cycle
    from fastai.data.core import DataLoaders
    from fastai.torch_core import params
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, Subset
    train, test, body, network = torch_parts()
    before = of_torch(body)
    few = Subset(test, range(BATCH)) # fastai looks at validation examples after each epoch: these are for nothing
    loaders = DataLoaders(DataLoader(train, BATCH, shuffle=True), DataLoader(few, BATCH))
    learner = Learner(loaders, network, loss_func=F.cross_entropy, train_bn=train_bn, cbs=list(callbacks),
                      splitter=lambda network: [params(network[0]), params(network[1])])
    learner.freeze()
    with learner.no_bar(), learner.no_logging(): learner.fit_one_cycle(EPOCHS, RATE)
    return judged(network, test), before, of_torch(body)


@setting("fastai", "learner.freeze()")
def _(): return in_fastai(train_bn=True)


@setting("fastai", "train_bn=False")
def _(): return in_fastai(train_bn=False)


@setting("fastai", "train_bn=False and the callback BnFreeze")
def _():
    from fastai.callback.training import BnFreeze
    return in_fastai(False, BnFreeze)


@setting("finetune_nb", "freeze(model, depth=5)")
def _():
    from finetune_nb import data, evaluate, fit, freeze, vision
    from shared import LABELS, TEST
    task = data.digits(LABELS, SEED, validation_per_class=TEST // 5 or 1, test_per_class=TEST)
    model = vision.classifier("resnet18-fractal", task, seed=SEED)
    before = of_torch(model.backbone)
    freeze(model, depth=5)
    fit(model, task, EPOCHS, BATCH, head_learning_rate=RATE, seed=SEED, progress=False)
    return evaluate(model, task.test).accuracy, before, of_torch(model.backbone)


# Keras

def in_keras(frozen, subclass=False, **mode):
    import keras

    class Classifier(keras.Model):
        def __init__(self, body, head):
            super().__init__()
            self.body, self.head = body, head
        def call(self, images): return self.head(self.body(images, **mode))

    from keras_resnet import resnet18, take_weights
    from safetensors.numpy import load_file
    keras.utils.set_random_seed(SEED)
    train, test = digits(channels_last=True)
    body = resnet18(size=64)
    take_weights(body, load_file(FRACTAL))
    norms = [layer for layer in body.layers if isinstance(layer, keras.layers.BatchNormalization)]
    def counted(): # gamma and beta, mean and variance
        arrays = [layer.get_weights() for layer in norms]
        return dict(weights=told(a for own in arrays for a in own[:2]),
                    statistics=told(a for own in arrays for a in own[2:]))
    before = counted()
    body.trainable = not frozen
    images, head = keras.Input((64, 64, 3)), keras.layers.Dense(CLASSES)
    network = Classifier(body, head) if subclass else keras.Model(images, head(body(images, **mode)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.AdamW(RATE if frozen else RATE / 30), loss, metrics=["accuracy"])
    network.fit(*train, batch_size=BATCH, epochs=EPOCHS if frozen else 1, verbose=0)
    accuracy = network.evaluate(*test, batch_size=64, verbose=0)[1] if frozen else None # that would be other work
    return accuracy, before, counted()


@setting("Keras", "body.trainable = False")
def _(): return in_keras(frozen=True)


@setting("Keras", "and body(images, training=False)")
def _(): return in_keras(frozen=True, training=False)


@setting("Keras", "nothing frozen, body(images)")
def _(): return in_keras(frozen=False)


@setting("Keras", "nothing frozen, body(images, training=False)")
def _(): return in_keras(frozen=False, training=False)


@setting("Keras", "nothing frozen, the same in the call() of a class")
def _(): return in_keras(frozen=False, subclass=True, training=False)


def one(tool, name):
    accuracy, before, after = SETTINGS[tool, name]()
    both = {part: [before[part], after[part]] for part in ("statistics", "weights")}
    return dict(name=name, accuracy=accuracy and float(accuracy)) | both


def measured(tool):
    "All settings of a tool, for one seed"
    return dict(settings=[one(*own) for own in SETTINGS if own[0] == tool])
