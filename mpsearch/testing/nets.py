"""Two tiny float nets with seeded weights, their units, blocks, images and quantisers: a convolutional one
and a vision transformer.
"""

from __future__ import annotations

from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn

from mpsearch.data import ImageSet
from mpsearch.reconstruct import Calibration, calibrate

NETS = ("conv", "vit")
Blocks = list[tuple[str, list[str]]]


class Residual(nn.Module):
    """Two convolutions, the second grouped, around which the input goes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        """N x 8 x H x W -> the same."""
        return torch.relu(x + self.conv2(torch.relu(self.conv1(x))))


class TinyConv(nn.Module):
    """A stem, a residual block, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.residual, self.head = (
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            Residual(),
            nn.Linear(8, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x H x W -> N x 10."""
        logits: Tensor = self.head(self.residual(torch.relu(self.stem(x))).mean((2, 3)))
        return logits


@dataclass(frozen=True)
class TinyNet:
    """A float net with what a test needs to know of it.

    Args:
        module: In eval mode.
        blocks: Name and units of each block.
        images: 24 of noise, with labels.
        calibration: Quantisers of all units.
    """

    module: nn.Module
    blocks: Blocks
    images: ImageSet
    calibration: Calibration

    @property
    def units(self) -> list[str]:
        """Units of all blocks, in order."""
        return [unit for _, units in self.blocks for unit in units]


def tiny_net(name: str) -> TinyNet:
    """`conv` or `vit`, the same at every call; torch's own generator is left as found."""
    generator = torch.Generator().manual_seed(7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, blocks = _MAKERS[name]()
    module.eval()
    _fill(module, generator)
    size = 32 if name == "vit" else 12
    pixels = torch.randint(256, (24, 3, size, size), generator=generator, dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(24) % 10, (0.5, 0.4, 0.3), (0.25, 0.3, 0.35), "noise")
    units = [unit for _, inside in blocks for unit in inside]
    return TinyNet(module, blocks, images, calibrate(module, units, [images.inputs()]))


@torch.no_grad()
def _fill(module: nn.Module, generator: torch.Generator) -> None:
    """He's initialisation for what has rows, small biases, norms as they are."""
    for key, value in module.state_dict().items():
        if value.ndim >= 2:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif key.endswith("bias"):
            value.normal_(0, 0.1, generator=generator)


def _vit() -> tuple[nn.Module, Blocks]:
    module = timm.create_model("test_vit", pretrained=False, img_size=32, num_classes=10)
    inside = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    blocks = [(f"blocks.{i}", [f"blocks.{i}.{unit}" for unit in inside]) for i in range(2)]
    return module, [("patch_embed.proj", ["patch_embed.proj"]), *blocks, ("head", ["head"])]


def _conv() -> tuple[nn.Module, Blocks]:
    return TinyConv(), [
        ("stem", ["stem"]),
        ("residual", ["residual.conv1", "residual.conv2"]),
        ("head", ["head"]),
    ]


_MAKERS = {"conv": _conv, "vit": _vit}
