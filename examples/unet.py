"""A U-Net: a class for each pixel."""

import torch
import torch.nn.functional as F
from torch import nn


def block(i, o):
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())


class UNet(nn.Module):
    def __init__(self, classes=11, width=8):
        super().__init__()
        self.down = nn.ModuleList(block(i * width or 1, o * width) for i, o in ((0, 1), (1, 2), (2, 4)))
        self.up = nn.ModuleList(block(i * width, o * width) for i, o in ((6, 2), (3, 1)))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images):
        one = self.down[0](images)
        two = self.down[1](F.max_pool2d(one, 2))
        four = self.down[2](F.max_pool2d(two, 2))
        two = self.up[0](torch.cat([two, F.interpolate(four, scale_factor=2.0)], 1))
        return self.head(self.up[1](torch.cat([one, F.interpolate(two, scale_factor=2.0)], 1)))
