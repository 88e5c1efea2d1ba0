"MiniLM sorts sentences, in plain PyTorch"
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer

from mean_pooling import Network
from shared import BATCH, CLASSES, EPOCHS, SEED, TEXT_RATE, minilm, topics

torch.manual_seed(SEED)
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
def batch_of(rows):
    texts, labels = zip(*rows)
    tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=128, return_tensors="pt")
    return tokens["input_ids"], tokens["attention_mask"], torch.tensor(labels)

learning = [p for p in network.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(learning, lr=TEXT_RATE)
for _ in range(EPOCHS):
    network.train()
    frozen.eval() # else its dropout goes on
    for batch in DataLoader(train, BATCH, shuffle=True, collate_fn=batch_of):
        optimizer.zero_grad()
        network(*batch)["loss"].backward()
        optimizer.step()

# 5 evaluate
network.eval()
with torch.no_grad():
    judged = DataLoader(test, 64, collate_fn=batch_of)
    right = [network(ids, mask)["logits"].argmax(1) == labels for ids, mask, labels in judged]
accuracy = torch.cat(right).float().mean().item()
print(f"{accuracy:.1%}")
