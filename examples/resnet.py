"""torchvision's ResNet, cut short for small pictures of ten classes."""

from torch import nn
from torchvision.models import resnet18


def build():
    net = resnet18(num_classes=10)
    net.layer3, net.layer4, net.fc = nn.Identity(), nn.Identity(), nn.Linear(128, 10)
    return net
