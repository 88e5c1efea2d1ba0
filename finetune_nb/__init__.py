__version__ = "0.2.0"

# `import finetune_nb` is instant: a name below is imported when it is first used (PEP 562), and torch with it.
# To offer a name at the top level, add it to its module's line.
_names = {
    "preflight": ["check"],
    "data": ["baseline", "Task"],
    "text": [],
    "vision": [],
    "cache": [],
    "adapters": ["lora"],
    "freezing": ["freeze", "unfreeze", "blocks", "FreezeSummary"],
    "training": ["fit", "evaluate", "History", "Evaluation"],
    "unlabelled": [],
    "saving": ["load"],
    "compression": ["compress"],
    "interpret": ["explain"],
    "confidence": ["calibrate"],
    "layers": [],
    "sharing": [],
    "pretraining": [],
    "depth": ["sweep"],
    "widgets": ["FreezeExplorer"],
    "gradient": [],
    "cli": [],
}
# Rooms that hold families of backbones: they are imported when somebody first asks which family knows a network.
family_rooms = ["engine.torchvision_families", "engine.segmentation_families", "engine.timm_families",
                "engine.transformers_families"]
# Rooms that read kinds of targets of their own: they are imported when somebody first asks what can be learnt.
kind_rooms = ["engine.tagged", "engine.mask_files", "engine.mask_shapes", "engine.box_files",
              "engine.box_formats"]
# The rooms whose models can be saved, by the kind of model: `load` imports them when it meets one.
model_rooms = {"image": "vision", "text": "text", "tagger": "text", "segmenter": "vision",
               "dense_segmenter": "vision", "detector": "vision", "onnx": "engine.onnx_models"}
# What makes a new model, by the inputs of a task and by what its objective reads of a backbone.
model_makers = {("image", "pooled"): "vision.classifier", ("text", "pooled"): "text.classifier",
                ("text", "words"): "text.tagger", ("image", "maps"): "vision.segmenter",
                ("image", "boxes"): "vision.detector"}

_module_of = {name: module for module, names in _names.items() for name in names}
__all__ = [*_names, *_module_of]


def __getattr__(name):
    from importlib import import_module
    if name in _names: return import_module(f"{__name__}.{name}")
    if name in _module_of:
        value = getattr(import_module(f"{__name__}.{_module_of[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")


def __dir__(): return sorted({*globals(), *__all__})
