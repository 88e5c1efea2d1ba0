"ResNet-18 from Keras's layers, with the numbers of PyTorch's in it"
from keras import Input, Model, layers


def convolution(x, filters, size, stride, name):
    if size > 1: x = layers.ZeroPadding2D(size // 2)(x) # "same" would pad one side more when the stride is 2
    return layers.Conv2D(filters, size, stride, use_bias=False, name=name)(x)


def norm(x, name): return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x) # PyTorch's 0.1, 1e-5


def basic_block(x, filters, stride, name):
    y = layers.ReLU()(norm(convolution(x, filters, 3, stride, f"{name}_conv1"), f"{name}_bn1"))
    y = norm(convolution(y, filters, 3, 1, f"{name}_conv2"), f"{name}_bn2")
    if stride > 1: x = norm(convolution(x, filters, 1, stride, f"{name}_downsample_0"), f"{name}_downsample_1")
    return layers.ReLU()(layers.Add()([x, y]))


def resnet18(size):
    "Images `float32[B, size, size, 3]` to 512 numbers each"
    images = Input((size, size, 3))
    x = layers.ReLU()(norm(convolution(images, 64, 7, 2, "conv1"), "bn1"))
    x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
    for number, filters in enumerate((64, 128, 256, 512), 1):
        for i in range(2):
            stride = 2 if number > 1 and i == 0 else 1
            x = basic_block(x, filters, stride, f"layer{number}_{i}")
    return Model(images, layers.GlobalAveragePooling2D()(x), name="resnet18")


def take_weights(body, numbers):
    "Put `numbers`, arrays by torchvision's names, into the layers; `layer1.0.conv1` is called `layer1_0_conv1` here"
    numbers = {name.replace(".", "_"): array for name, array in numbers.items()}
    for layer in body.layers:
        if isinstance(layer, layers.Conv2D):
            layer.set_weights([numbers[f"{layer.name}_weight"].transpose(2, 3, 1, 0)]) # height, width, in, out
        if isinstance(layer, layers.BatchNormalization):
            parts = "weight", "bias", "running_mean", "running_var"
            layer.set_weights([numbers[f"{layer.name}_{part}"] for part in parts])
