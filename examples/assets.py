"""Factories of small models for which trained weights exist, for use as `--model
examples/assets.py:cifar_resnet20 --weights FILE.safetensors`.

Each builds the architecture alone, under the parameter names of its weights file, and says in
`pretrained_cfg` what its images look like.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from timm import create_model
from timm.models.efficientnet import _gen_mobilenet_v1
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem, HybridEmbed
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def mobilenetv1_075() -> nn.Module:
    """MobileNetV1 of width 0.75 with TensorFlow's `same` padding, ImageNet, 224 pixels. Expects pixels in
    [-1, 1].
    """
    model = _gen_mobilenet_v1("mobilenetv1_100", 0.75, pad_type="same", bn_eps=1e-3)
    half = (0.5, 0.5, 0.5)
    return _described(model, (3, 224, 224), half, half, num_classes=1000, crop_pct=0.875)


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0, ImageNet, 224 pixels. Expects pixels in [-1, 1]."""
    model = create_model("tf_efficientnet_lite0", pretrained=False)
    half = (0.5, 0.5, 0.5)
    settings = {"num_classes": 1000, "crop_pct": 0.875, "interpolation": "bicubic"}
    return _described(model, (3, 224, 224), half, half, **settings)


def cifar_resnet20() -> nn.Module:
    """ResNet20 of He et al. 2015 for CIFAR-10."""
    return _described(CifarResNet(20), (3, 32, 32), IMAGENET_MEAN, IMAGENET_STD)


def cifar_resnet56() -> nn.Module:
    """ResNet56 of He et al. 2015 for CIFAR-10."""
    return _described(CifarResNet(56), (3, 32, 32), IMAGENET_MEAN, IMAGENET_STD)


def vit_cifar() -> nn.Module:
    """Vision transformer on 64 tokens of a convolutional stem: 6 blocks, width 128, 4 heads, mean pooling."""
    stem = ConvStem(in_chans=3, depth=3, channels=(32, 64, 128), kernel_size=3, stride=(1, 2, 2), padding="")
    model = VisionTransformer(
        img_size=32,
        patch_size=1,
        num_classes=10,
        embed_dim=128,
        depth=6,
        num_heads=4,
        class_token=False,
        global_pool="avg",
        embed_layer=partial(HybridEmbed, backbone=stem, proj=False),
    )
    return _described(model, (3, 32, 32), CIFAR_MEAN, CIFAR_STD)


def resmlp_cifar() -> nn.Module:
    """ResMLP on 64 tokens of 4 x 4 pixels: 6 blocks, width 160."""
    block = partial(ResBlock, init_values=0.1)
    model = MlpMixer(
        img_size=32,
        patch_size=4,
        num_classes=10,
        embed_dim=160,
        num_blocks=6,
        mlp_ratio=4,
        block_layer=block,
        norm_layer=Affine,
    )
    return _described(model, (3, 32, 32), CIFAR_MEAN, CIFAR_STD)


class CifarBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut without parameters: every other pixel, and zeros for the
    channels that are new.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W -> N x D x H/stride x W/stride."""
        residual = F.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            before = self.new_channels // 2
            x = F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))
        return F.relu(residual + x)


class CifarResNet(nn.Module):
    """Residual network for 32 x 32 images, depth 6n + 2: three stages of n blocks at 16, 32 and 64
    channels.
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, blocks)
        self.layer2 = _stage(16, 32, 2, blocks)
        self.layer3 = _stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x 32 x 32 -> N x classes."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


def _stage(in_channels: int, out_channels: int, stride: int, blocks: int) -> nn.Sequential:
    first = CifarBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(CifarBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


def _described(
    model: nn.Module,
    input_size: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    num_classes: int = 10,
    crop_pct: float = 1.0,
    interpolation: str = "bilinear",
) -> nn.Module:
    """Say, as timm does, what the model's images look like. Images are resized so that `input_size` is
    `crop_pct` of the short side, then cropped.
    """
    model.pretrained_cfg = {
        "input_size": input_size,
        "mean": mean,
        "std": std,
        "interpolation": interpolation,
        "crop_pct": crop_pct,
        "crop_mode": "center",
        "num_classes": num_classes,
    }
    return model
