"""A model of three heads and no task: boxes, a map and an embedding count by their squared error."""

import torch
from torch import nn


class ThreeHeads(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
        self.boxes, self.map, self.embedding = nn.Linear(32, 4), nn.Conv2d(32, 3, 1), nn.Linear(32, 16)

    def forward(self, images):
        x = self.body(images)
        pooled = x.mean((2, 3))
        return {"boxes": self.boxes(pooled), "map": self.map(x), "embedding": self.embedding(pooled)}
