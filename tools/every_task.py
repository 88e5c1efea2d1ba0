"""How much should be frozen? Every embedded task, at three freeze depths, over labelled subsets.

`python tools/every_task.py [TASK…] [--ways SHARE…] [--seeds 0 1 2]`: kept in nbs/measured/every_task.json. *seconds*
are those of one processor, the frozen blocks' own pass and both evaluations included. Scenes and patches have scripts of
their own.
"""
from functools import partial

from finetune_nb import data, evaluate, fit, freeze, text, vision
from finetune_nb.freezing import blocks
from variants import compare


def images(build, name, size=None):
    "How a model of `task` is made"
    def make(task, seed): return build(name, task, seed=seed, **({} if size is None else dict(image_size=size)))
    return make


def texts(build):
    def make(task, seed): return build("minilm", task, seed=seed)
    return make


def of_classes(make):
    "For models that ask how many classes there are"
    def build(name, task, **options): return make(name, task.num_classes, **options)
    return build


classifier = of_classes(vision.classifier)
VARIANTS = { # how the task is drawn, and its model
    "digits": (data.digits, images(classifier, "resnet18-fractal")),
    "topics": (data.topics, texts(of_classes(text.classifier))),
    "citations": (data.citations, texts(text.tagger)),
    "photographs": (data.photographs, images(classifier, "efficientnet-lite0", 96)),
    "photographs, fractal backbone": (data.photographs, images(classifier, "resnet18-fractal", 96)),
    "digits, photographic backbone": (data.digits, images(classifier, "efficientnet-lite0", 64)),
}
SHARES = {"everything learns": 0, "half is frozen": 1 / 2, "the head alone learns": 1}


def learnt(task, variant, seed, share):
    "The first score of validation and test part; `share` of the blocks below the head are frozen"
    model = VARIANTS[variant][1](task, seed)
    freeze(model, int(share * (len(blocks(model)) - 1)))
    history = fit(model, task, **model.suggested(len(task.train)), seed=seed, progress=False)
    return history.validation_score, evaluate(model, task.test).score


if __name__ == "__main__":
    compare("every_task", VARIANTS, {way: partial(learnt, share=share) for way, share in SHARES.items()},
            lambda variant, seed: VARIANTS[variant][0](seed=seed))
