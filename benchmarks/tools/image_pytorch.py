"ResNet-18 reads digits, in plain PyTorch"
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from shared import BATCH, CLASSES, EPOCHS, FRACTAL, IMAGE_RATE, SEED, digits

torch.manual_seed(SEED)
train, test = (TensorDataset(*map(torch.from_numpy, part)) for part in digits())

# 1 choose
network = resnet18()
network.load_state_dict(load_file(FRACTAL), strict=False) # it has no head

# 2 freeze
frozen = nn.ModuleList([network.conv1, network.bn1, network.layer1, network.layer2, network.layer3])
frozen.requires_grad_(False)

# 3 add a head
network.fc = nn.Linear(512, CLASSES)

# 4 train
learning = [p for p in network.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(learning, lr=IMAGE_RATE)
for _ in range(EPOCHS):
    network.train()
    frozen.eval() # else its BatchNorm follows the new images
    for images, labels in DataLoader(train, BATCH, shuffle=True):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

# 5 evaluate
network.eval()
with torch.no_grad():
    right = [network(images).argmax(1) == labels for images, labels in DataLoader(test, 64)]
accuracy = torch.cat(right).float().mean().item()
print(f"{accuracy:.1%}")
