"MiniLM sorts sentences, with Transformers' Trainer"
from torch import nn
from transformers import (AutoModel, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments,
                          set_seed)

from mean_pooling import Network
from shared import BATCH, CLASSES, EPOCHS, SEED, TEXT_RATE, minilm, topics

set_seed(SEED)
train, test = topics()

# 1 choose
tokenizer = AutoTokenizer.from_pretrained(minilm())
encoder = AutoModel.from_pretrained(minilm(), add_pooling_layer=False)

# 2 freeze
for part in (encoder.embeddings, *encoder.encoder.layer[:4]): part.requires_grad_(False) # its dropout goes on

# 3 add a head
network = Network(encoder, nn.Linear(384, CLASSES))

# 4 train
def rows(texts, labels):
    tokens = tokenizer(texts, truncation=True, max_length=128)["input_ids"]
    return [dict(input_ids=ids, labels=int(label)) for ids, label in zip(tokens, labels)]

def accuracy_of(found): return dict(accuracy=(found.predictions.argmax(1) == found.label_ids).mean().item())

arguments = TrainingArguments("trainer", num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH,
                              per_device_eval_batch_size=64, learning_rate=TEXT_RATE, weight_decay=0.01, seed=SEED,
                              save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True)
trainer = Trainer(network, arguments, train_dataset=rows(*train), eval_dataset=rows(*test),
                  data_collator=DataCollatorWithPadding(tokenizer), compute_metrics=accuracy_of)
trainer.train()

# 5 evaluate
accuracy = trainer.evaluate()["eval_accuracy"]
print(f"{accuracy:.1%}")
