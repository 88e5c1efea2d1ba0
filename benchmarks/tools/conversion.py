"""Do the converted networks answer alike? Each computes the scores of the test examples with one and the same head."""
import numpy as np

from shared import CLASSES, FRACTAL, digits, minilm, topics

MOST = 64 # examples


def head(features):
    "Weights `float32[features, CLASSES]` for everybody"
    return np.random.default_rng(0).normal(0, 0.05, (features, CLASSES)).astype(np.float32)


def torch_head(features):
    import torch
    from torch import nn
    layer = nn.Linear(features, CLASSES, bias=False)
    with torch.no_grad(): layer.weight.copy_(torch.from_numpy(head(features).T))
    return layer


def image_pytorch():
    import torch
    from safetensors.torch import load_file
    from torchvision.models import resnet18
    network = resnet18()
    network.load_state_dict(load_file(FRACTAL), strict=False)
    network.fc = torch_head(512)
    with torch.no_grad(): return network.eval()(torch.from_numpy(digits()[1][0][:MOST])).numpy()


def image_keras():
    import keras
    from keras_resnet import resnet18, take_weights
    from safetensors.numpy import load_file
    body = resnet18(size=64)
    take_weights(body, load_file(FRACTAL))
    network = keras.Sequential([body, keras.layers.Dense(CLASSES, use_bias=False)])
    network.layers[-1].set_weights([head(512)])
    return network.predict(digits(channels_last=True)[1][0][:MOST], verbose=0)


def image_finetune_nb():
    import torch
    from finetune_nb import data, vision
    from shared import LABELS, SEED, TEST
    task = data.digits(LABELS, SEED, validation_per_class=TEST // 5 or 1, test_per_class=TEST)
    model = vision.classifier("resnet18-fractal", CLASSES)
    model.backbone.fc = torch_head(512)
    batch = model.collate(model.encode(task.test.inputs[:MOST]))
    with torch.no_grad(): return model.eval().call(batch).numpy()


def text_pytorch():
    import torch
    from mean_pooling import Network
    from transformers import AutoModel, AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    network = Network(AutoModel.from_pretrained(minilm(), add_pooling_layer=False), torch_head(384)).eval()
    tokens = tokenizer(topics()[1][0][:MOST], padding=True, truncation=True, max_length=128, return_tensors="pt")
    with torch.no_grad(): return network(tokens["input_ids"], tokens["attention_mask"])["logits"].numpy()


def text_finetune_nb():
    import torch
    from finetune_nb import data, text
    from shared import LABELS, SEED, TEST
    task = data.topics(LABELS, SEED, validation_per_class=TEST // 5 or 1, test_per_class=TEST)
    model = text.classifier("minilm", CLASSES)
    model.head = torch_head(384)
    batch = model.collate(model.encode(list(task.test.inputs[:MOST])))
    with torch.no_grad(): return model.eval().call(batch).numpy()


def measured(name):
    "The scores, as lists"
    return dict(scores=globals()[name]().astype(float).tolist())
