"""How much should be frozen? The embedded tasks of classes and tags, at three freeze depths, over labelled subsets.

`python tools/every_task.py [TASK…] [--ways SHARE…] [--seeds 0 1 2]`: kept in nbs/measured/every_task.json. *seconds*
are those of one processor; the pass over the frozen blocks and both evaluations are included. Scenes and patches have
scripts of their own.
"""
from functools import partial

from finetune_nb import data, evaluate, fit, freeze, text, vision
from finetune_nb.freezing import blocks
from variants import compare


def made_by(build, name, **options):
    "How a model of a task is made"
    def make(task, seed): return build(name, task, seed=seed, **options)
    return make


def of_classes(make):
    "For models that ask how many classes there are"
    def build(name, task, **options): return make(name, task.num_classes, **options)
    return build


of_images, of_texts = of_classes(vision.classifier), of_classes(text.classifier)
VARIANTS = { # how the task is drawn, and its model
    "digits": (data.digits, made_by(of_images, "resnet18-fractal")),
    "topics": (data.topics, made_by(of_texts, "minilm")),
    "citations": (data.citations, made_by(text.tagger, "minilm")),
    "photographs": (data.photographs, made_by(of_images, "efficientnet-lite0", image_size=96)),
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
