"MiniLM sorts sentences, here"
from finetune_nb import data, evaluate, fit, freeze, text

from shared import BATCH, EPOCHS, LABELS, SEED, TEST, TEXT_RATE

task = data.topics(LABELS, SEED, validation_per_class=TEST // 5 or 1, test_per_class=TEST)

# 1 choose
# 3 add a head
model = text.classifier("minilm", task.num_classes, seed=SEED)

# 2 freeze
freeze(model, depth=5)

# 4 train
fit(model, task, EPOCHS, BATCH, learning_rate=TEXT_RATE, head_learning_rate=TEXT_RATE, seed=SEED, progress=False)

# 5 evaluate
accuracy = evaluate(model, task.test).accuracy
print(f"{accuracy:.1%}")
