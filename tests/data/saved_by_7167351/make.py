"""Writes what lies beside it, with the code of 7167351: `OMP_NUM_THREADS=1 PYTHONPATH=TREE python make.py`."""
import json, lzma, multiprocessing, os, shutil, signal, sys, tempfile
from dataclasses import asdict
from pathlib import Path

import torch, torchvision
from safetensors.torch import save_file

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent.parent))
import test_compatibility as made
from finetune_nb import blocks, evaluate, fit, freeze, saving, vision
from finetune_nb.depth import sweep
from finetune_nb.freezing import fingerprint
from finetune_nb.training import predict

needed = ["model.json", "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]


def patterned():
    "A ResNet whose weights are one pattern again and again, which packs to a thousandth"
    pattern = (torch.arange(61) * 37 % 61 - 30).double()
    network = torchvision.models.resnet18()
    for name, parameter in network.named_parameters():
        if parameter.ndim < 2: continue
        again = pattern.repeat(-(-parameter.numel() // 61))[:parameter.numel()].view_as(parameter)
        scale = 2.0 ** round(float(torch.tensor(parameter[0].numel() * 200.0).log2()) / -2) # a power of two is exact
        with torch.no_grad(): parameter.copy_(again * scale)
    return network


def keep(file, folder):
    "A copy, packed if it is large"
    folder.mkdir(parents=True, exist_ok=True)
    if file.stat().st_size < 30_000: shutil.copy(file, folder)
    else: (folder/f"{file.name}.xz").write_bytes(lzma.compress(file.read_bytes(), preset=9))


def image_model(folder):
    save_file(patterned().state_dict(), folder/"patterned.safetensors")
    return vision.classifier(str(folder/"patterned.safetensors"), 2, image_size=32)


def saved_model(name, folder):
    "Train the head, save, and keep what `load` reads; the answers to the test examples"
    task = made.saved[name]()
    model = image_model(folder) if name == "image" else made.mood_model(folder, name.removeprefix("text-"))
    freeze(model, len(blocks(model)) - 1)
    history = fit(model, task, epochs=8, precision="fp32", progress=False)
    saving.save(folder/"saved", model, task, history, evaluate(model, task.test))
    again = saving.load(folder/"saved").model
    for file in filter(Path.exists, (folder/"saved"/n for n in needed)): keep(file, here/name)
    return predict(again, task.test.inputs, precision="fp32").tolist()


def job(begin, folder, deadly):
    "What a process does; where it is deadly, it kills itself in its 12th step, when 10 are in a checkpoint"
    model, task = begin()
    calls = []
    def kill(module, inputs):
        calls.append(module.training)
        if sum(calls) == 12: os.kill(os.getpid(), signal.SIGKILL)
    if deadly: blocks(model)[1].modules[0].register_forward_pre_hook(kill)
    fit(model, task, checkpoint=folder, every=2, **made.settings)


def killed_run(name, folder):
    "A checkpoint of a run that was killed, and how the run ends that was not, and the one that went on"
    begin = made.runs(folder)[name]
    model, task = begin()
    history = fit(model, task, **made.settings)
    child = multiprocessing.get_context("fork").Process(target=job, args=(begin, folder/"run", True))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    newest = max((folder/"run").glob("step-*"))
    assert newest.stem.endswith("10")
    keep(newest, here/"checkpoints"/name)
    again, _ = begin()
    resumed = fit(again, task, checkpoint=folder/"run", every=2, resume=True, **made.settings)
    assert fingerprint(again) == fingerprint(model) and resumed.train_loss == history.train_loss
    save_file(made.learnt(model), here/"checkpoints"/f"{name}-weights.safetensors")
    return dict(train_loss=history.train_loss, resumed_train_loss=resumed.train_loss, best_epoch=history.best_epoch,
                frozen=fingerprint(blocks(model)[0]), weights=fingerprint(model))


def saved_sweep():
    "The file, and what is read out of it"
    settings = dict(epochs=10, learning_rate=1e-2, precision="fp32", progress=False)
    found = sweep(made.points_model, made.points_task(), **settings)
    found.save(here/"sweep.json")
    table, advice = found.table(), found.recommend()
    return dict(runs=[list(map(int, key)) for key in table.index], accuracy=table.accuracy.tolist(),
                macro_f1=table.macro_f1.tolist(), validation_accuracy=found.summary().validation_accuracy.tolist(),
                recommendation=asdict(advice), said=[repr(advice), repr(found)])


if __name__ == "__main__":
    for old in here.iterdir():
        if old.is_dir() and old.name != "__pycache__": shutil.rmtree(old)
    def fresh(name):
        Path(name).mkdir()
        return Path(name)
    os.chdir(work := tempfile.mkdtemp()) # names of folders are kept in what is saved
    about = dict(machine=made.machine(), mkl=made.has_mkl())
    about["saved"] = {name: saved_model(name, fresh(name)) for name in made.saved}
    about["runs"] = {name: killed_run(name, fresh(name)) for name in made.runs(None)}
    about["sweep"] = saved_sweep()
    about["results"] = {f"{name} {depth}": made.result(name, depth) for name, depth in made.results}
    (here/"results.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(work)
