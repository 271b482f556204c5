"""A one-stage detector of one's own, ten classes and a box for each cell of 8 x 8, and how these become
boxes."""

import torch
from torch import nn
from torchvision.ops import batched_nms


class Yolo(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        sizes = ((1, 16, 2), (16, 32, 2), (32, width, 2), (width, width, 1), (width, width, 1))
        layers = ((nn.Conv2d(i, o, 3, s, 1, bias=False), nn.BatchNorm2d(o), nn.SiLU()) for i, o, s in sizes)
        self.body = nn.Sequential(*(layer for group in layers for layer in group), nn.Conv2d(width, 14, 1))

    def forward(self, images):
        return self.body(images)


def decode(outputs):
    cells = torch.stack(torch.meshgrid(*map(torch.arange, outputs.shape[:1:-1]), indexing="xy"))
    centre, half = outputs[:, 10:12] + cells + 0.5, outputs[:, 12:].clamp(-3, 3).exp()
    boxes = (torch.cat([centre - half, centre + half], 1) * 8).flatten(2).movedim(1, 2)
    found = zip(boxes, *outputs[:, :10].sigmoid().flatten(2).max(1), strict=True)
    kept = ((batched_nms(b, s, c, 0.5)[:30], b, s, c) for b, s, c in found)
    return [{"boxes": b[k], "scores": s[k], "labels": c[k]} for k, b, s, c in kept]
