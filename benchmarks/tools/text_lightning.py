"MiniLM sorts sentences, with Lightning"
import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer

from mean_pooling import Network
from shared import BATCH, CLASSES, EPOCHS, SEED, TEXT_RATE, minilm, topics

L.seed_everything(SEED, verbose=False)
train, test = ([*zip(texts, labels)] for texts, labels in topics())

# 1 choose
tokenizer = AutoTokenizer.from_pretrained(minilm())
encoder = AutoModel.from_pretrained(minilm(), add_pooling_layer=False)

# 2 freeze
frozen = nn.ModuleList([encoder.embeddings, *encoder.encoder.layer[:4]])
frozen.requires_grad_(False)

# 3 add a head
network = Network(encoder, nn.Linear(384, CLASSES))

# 4 train
class Classifier(L.LightningModule):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def training_step(self, batch, index): return self.network(*batch)["loss"]

    def test_step(self, batch, index):
        ids, mask, labels = batch
        right = self.network(ids, mask)["logits"].argmax(1) == labels
        self.log("accuracy", right.float().mean(), batch_size=len(labels))

    def configure_optimizers(self):
        learning = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(learning, lr=TEXT_RATE)

def batch_of(rows):
    texts, labels = zip(*rows)
    tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=128, return_tensors="pt")
    return tokens["input_ids"], tokens["attention_mask"], torch.tensor(labels)

network.train() # Transformers loads a network in evaluation mode, and from 2.2 on Lightning would leave it there
frozen.eval()
classifier = Classifier(network)
trainer = L.Trainer(max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False,
                    enable_progress_bar=False, enable_model_summary=False)
trainer.fit(classifier, DataLoader(train, BATCH, shuffle=True, collate_fn=batch_of))

# 5 evaluate
accuracy = trainer.test(classifier, DataLoader(test, 64, collate_fn=batch_of), verbose=False)[0]["accuracy"]
print(f"{accuracy:.1%}")
