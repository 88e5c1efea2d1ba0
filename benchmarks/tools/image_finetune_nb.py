"ResNet-18 reads digits, here"
from finetune_nb import data, evaluate, fit, freeze, vision

from shared import BATCH, EPOCHS, IMAGE_RATE, LABELS, SEED, TEST

task = data.digits(LABELS, SEED, validation_per_class=TEST // 5 or 1, test_per_class=TEST)

# 1 choose
# 3 add a head
model = vision.classifier("resnet18-fractal", task.num_classes, seed=SEED)

# 2 freeze
freeze(model, depth=4)

# 4 train
fit(model, task, EPOCHS, BATCH, learning_rate=IMAGE_RATE, head_learning_rate=IMAGE_RATE, seed=SEED, progress=False)

# 5 evaluate
accuracy = evaluate(model, task.test).accuracy
print(f"{accuracy:.1%}")
