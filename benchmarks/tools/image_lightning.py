"ResNet-18 reads digits, with Lightning"
import lightning as L
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from shared import BATCH, CLASSES, EPOCHS, FRACTAL, IMAGE_RATE, SEED, digits

L.seed_everything(SEED, verbose=False)
train, test = (TensorDataset(*map(torch.from_numpy, part)) for part in digits())

# 1 choose
network = resnet18()
network.load_state_dict(load_file(FRACTAL), strict=False) # it has no head

# 2 freeze
frozen = nn.ModuleList([network.conv1, network.bn1, network.layer1, network.layer2, network.layer3])
frozen.requires_grad_(False).eval() # from 2.2 on, Lightning leaves each module in the mode that it is in

# 3 add a head
network.fc = nn.Linear(512, CLASSES)

# 4 train
class Classifier(L.LightningModule):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def training_step(self, batch, index):
        images, labels = batch
        return F.cross_entropy(self.network(images), labels)

    def test_step(self, batch, index):
        images, labels = batch
        self.log("accuracy", (self.network(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        learning = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(learning, lr=IMAGE_RATE)

classifier = Classifier(network)
trainer = L.Trainer(max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False,
                    enable_progress_bar=False, enable_model_summary=False)
trainer.fit(classifier, DataLoader(train, BATCH, shuffle=True))

# 5 evaluate
accuracy = trainer.test(classifier, DataLoader(test, 64), verbose=False)[0]["accuracy"]
print(f"{accuracy:.1%}")
