"ResNet-18 reads digits, with Keras 3; KERAS_BACKEND says on what"
import keras
from safetensors.numpy import load_file

from keras_resnet import resnet18, take_weights
from shared import BATCH, CLASSES, EPOCHS, FRACTAL, IMAGE_RATE, SEED, digits

keras.utils.set_random_seed(SEED)
(images, labels), test = digits(channels_last=True)

# 1 choose
body = resnet18(size=64)
take_weights(body, load_file(FRACTAL))

# 2 freeze
for layer in body.layers: layer.trainable = layer.name.startswith("layer4") # a frozen BatchNorm stays as it is

# 3 add a head
network = keras.Sequential([body, keras.layers.Dense(CLASSES)])

# 4 train
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
network.compile(keras.optimizers.AdamW(IMAGE_RATE, weight_decay=0.01), loss, metrics=["accuracy"])
network.fit(images, labels, batch_size=BATCH, epochs=EPOCHS, verbose=0)

# 5 evaluate
accuracy = network.evaluate(*test, batch_size=64, verbose=0)[1]
print(f"{accuracy:.1%}")
