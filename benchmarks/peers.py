"""The same fine-tuning in each framework, as short as its users write it.

Each returns the accuracy on the test examples.
"""
import os
os.environ["KERAS_BACKEND"] = "torch" # before Keras is imported

import torch
from torch import nn
from torch.nn import functional as F
from finetune_nb import evaluate, fit, freeze
from work import EVALUATION_BATCH, Cut

PEERS = {} # by name: the function, and what it imports before the clock starts


def peer(name, *imports):
    def register(function):
        PEERS[name] = function, imports
        return function
    return register


def correct(logits, labels): return (logits.argmax(1) == labels).float().mean()


@peer("plain PyTorch")
def plain_pytorch(work, best, seed, cut=False):
    "The article's loop."
    network, *loaders = work.loaders(best, seed)
    train, validation, test = map(Cut, loaders) if cut else loaders
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=work.learning_rate)
    def accuracy(loader):
        network.eval()
        with torch.no_grad(): right = [network(inputs).argmax(1) == labels for inputs, labels in loader]
        return torch.cat(right).float().mean().item()
    for _ in range(1 if cut else work.epochs):
        network.train()
        for inputs, labels in train:
            optimizer.zero_grad()
            loss = F.cross_entropy(network(inputs), labels)
            loss.backward()
            optimizer.step()
        accuracy(validation)
    found = accuracy(test)
    return (train, validation, test) if cut else found


@peer("Hugging Face Trainer", "transformers.trainer", "transformers.data.data_collator")
def hugging_face(work, best, seed):
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    class WithLoss(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network
        def forward(self, pixels=None, input_ids=None, attention_mask=None, labels=None):
            tokens = dict(input_ids=input_ids, attention_mask=attention_mask)
            logits = self.network(tokens if pixels is None else pixels)
            return dict(loss=F.cross_entropy(logits, labels), logits=logits)

    network, *parts, batch = work.prepare(best)
    if work.kind == "image": collate = lambda rows: dict(zip(("pixels", "labels"), batch(rows)))
    else:
        parts = [[dict(input_ids=ids, labels=label) for ids, label in part] for part in parts]
        collate = DataCollatorWithPadding(network.body.tokenizer)
    arguments = TrainingArguments(
        "trainer",
        num_train_epochs=work.epochs,
        per_device_train_batch_size=work.batch_size,
        per_device_eval_batch_size=EVALUATION_BATCH,
        learning_rate=work.learning_rate,
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=seed,
        remove_unused_columns=False,
        dataloader_num_workers=work.workers(best),
        dataloader_persistent_workers=work.workers(best) > 0,
        train_sampling_strategy="group_by_length" if best and work.kind == "text" else "random")
    def accuracy(found): return dict(accuracy=(found.predictions.argmax(1) == found.label_ids).mean().item())
    trainer = Trainer(WithLoss(network), arguments, data_collator=collate, train_dataset=parts[0],
                      eval_dataset=parts[1], compute_metrics=accuracy)
    trainer.train()
    # With persistent workers, `evaluate(parts[2])` would judge the validation examples again.
    return trainer.predict(parts[2]).metrics["test_accuracy"]


@peer("Lightning", "lightning")
def lightning(work, best, seed):
    import lightning as L

    class Classifier(L.LightningModule):
        def __init__(self, network):
            super().__init__()
            self.network = network
        def training_step(self, batch, _): return F.cross_entropy(self.network(batch[0]), batch[1])
        def validation_step(self, batch, _):
            inputs, labels = batch
            self.log("accuracy", correct(self.network(inputs), labels), batch_size=len(labels))
        test_step = validation_step
        def configure_optimizers(self):
            learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
            return torch.optim.AdamW(learning, lr=work.learning_rate)

    network, train, validation, test = work.loaders(best, seed)
    module = Classifier(network.train())
    trainer = L.Trainer(max_epochs=work.epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(module, train, validation)
    return trainer.test(module, test, verbose=False)[0]["accuracy"]


@peer("fastai", "fastai.learner", "fastai.callback.training", "fastai.callback.schedule")
def fastai(work, best, seed):
    from fastai.callback.schedule import Learner # which patches it with fit_one_cycle
    from fastai.callback.training import BnFreeze
    from fastai.data.core import DataLoaders
    from fastai.metrics import accuracy

    network, train, validation, test = work.loaders(best, seed)
    learner = Learner(DataLoaders(train, validation), network, loss_func=F.cross_entropy, metrics=accuracy,
                      splitter=lambda network: [network.prefix, network.suffix], train_bn=not best,
                      cbs=BnFreeze if best else None)
    learner.freeze()
    with learner.no_bar(), learner.no_logging(): learner.fit_one_cycle(work.epochs, work.learning_rate)
    with learner.no_bar(): return learner.validate(dl=test)[1]


@peer("Keras 3 on PyTorch", "keras")
def keras(work, best, seed):
    import keras

    class Classifier(keras.Model):
        def __init__(self, network):
            super().__init__()
            self.network = keras.layers.TorchModuleWrapper(network)
        def call(self, inputs, training=None): return self.network(inputs, training=training)

    network, train, validation, test = work.loaders(best, seed)
    model = Classifier(network)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(work.learning_rate), loss, metrics=["accuracy"])
    model.fit(train, validation_data=validation, epochs=work.epochs, verbose=0)
    return model.evaluate(test, verbose=0)[1]


def _ours(work, seed, cache):
    task, model = work.task(), work.model()
    freeze(model, work.depth)
    fit(model, task, epochs=work.epochs, batch_size=work.batch_size, learning_rate=work.learning_rate,
        head_learning_rate=work.learning_rate, seed=seed, cache=cache, progress=False)
    return evaluate(model, task.test).accuracy


@peer("finetune_nb, no cache")
def ours_uncached(work, best, seed): return _ours(work, seed, cache=False)


@peer("finetune_nb")
def ours(work, best, seed): return _ours(work, seed, cache=True)
