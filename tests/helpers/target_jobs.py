"""Small nets with random mixed assignments, as the jobs that deployment targets are given."""

import random

import torch
from timm.layers import Mlp
from timm.models.mlp_mixer import MixerBlock
from timm.models.vision_transformer import Block
from torch import nn

from mpsearch.deploy import PackedLayout
from mpsearch.deploy.targets import Job
from mpsearch.models import ModelSource
from mpsearch.problem import Assignment, Candidate
from mpsearch.reconstruct import calibrate
from mpsearch.testing.nets import TinyConv

CHOICES = (*(f"W{b}A8" for b in range(2, 9)), "W8A6", "W4A5", "W4A8/tensor", "float")


class Patches(nn.Module):
    """3 x 16 x 16 -> patches of 4 x 4 through a convolution, one block, a head."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.embed, self.block, self.norm, self.head = (
            nn.Conv2d(3, 24, 4, 4),
            block,
            nn.LayerNorm(24),
            nn.Linear(24, 10),
        )

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.block(tokens)).mean(1))


MAKERS = {
    "cnn": TinyConv,
    "vit": lambda: Patches(Block(24, 3, qkv_bias=True)),
    "mixer": lambda: Patches(MixerBlock(24, 16, mlp_layer=Mlp)),
}
_held = {}


def net(name):
    """Module, units, calibration, images, layout and float graphs; made once."""
    if name not in _held:
        generator = torch.Generator().manual_seed(3)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            module = MAKERS[name]().eval()
            for key, value in module.state_dict().items():
                if value.ndim >= 2:
                    value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
                elif key.endswith("bias"):
                    value.normal_(0, 0.1, generator=generator)
        images = torch.randn(24, 3, 16, 16, generator=generator)
        units = [n for n, m in module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        layout = PackedLayout.of(module, units, ModelSource("module", name), (), {"input_size": (3, 16, 16)})
        _held[name] = (module, units, calibrate(module, units, [images]), images, layout, {})
    return _held[name]


def job_of(name, seed, choices=CHOICES):
    module, units, calibration, images, layout, graphs = net(name)
    draw = random.Random(seed)
    assignment = Assignment(tuple((unit, Candidate.parse(draw.choice(choices))) for unit in units))
    return (
        Job(module, layout, calibration.states(assignment), calibration, images[:1], {}, graphs),
        assignment,
        images,
    )
