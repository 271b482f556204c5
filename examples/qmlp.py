"""Float weights for Q-MLP on CIFAR-10, from those of a trained ResMLP: `mpsearch finetune` goes on from them.

Run: python examples/qmlp.py cifar10_resmlp_d160x6.safetensors train.zip qmlp_cifar.safetensors

There are no published weights of Q-MLP. It takes the stem, the head, the first token-mixing branch, the
channel MLPs and the layer scales of ResMLP; the second branch starts at zero, and each layer norm is fitted,
channel by channel, to what ResMLP's affine layer gives there. Then it learns for an epoch from ResMLP's
outputs and the labels. The script may be stopped, and goes on where it was.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import mpsearch.models  # noqa: F401  (adds Q-MLP to timm's models)
from mpsearch.data import load_images
from mpsearch.data.augment import augment_of
from mpsearch.models import load_model
from mpsearch.problem import FLOAT
from mpsearch.quant import UnitState
from mpsearch.reconstruct.finetune import FinetuneConfig, finetune

FACTORY = f"{Path(__file__).resolve().parent / 'assets.py'}:resmlp_cifar"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("resmlp", type=Path, help="weights of resmlp_cifar, safetensors")
    parser.add_argument("data", help="labelled training images: a folder, .zip or .npz")
    parser.add_argument("output", type=Path, help="where the weights go")
    parser.add_argument("--images", type=int, default=12800, help="a stratified random subset")
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args()
    loaded = load_model(FACTORY, weights=options.resmlp)
    images = load_images(options.data, loaded.data_config, limit=options.images)
    start = from_resmlp(loaded.module, images.inputs(slice(0, 512)))
    units = [name for name, m in start.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    done = finetune(
        start,
        {unit: UnitState(FLOAT) for unit in units},
        images,
        FinetuneConfig(epochs=options.epochs, batch_size=64, learning_rate=1e-3, label_weight=0.5),
        teacher=loaded.module,
        augment=augment_of(("flip", "shift")),
        checkpoint=options.output.with_suffix(".part.safetensors"),
        on_step=teller(),
    )
    save_file({name: value.contiguous() for name, value in done.module.state_dict().items()}, options.output)
    print(f"Written to {options.output}.")


def teller():
    """A line now and then, with the time that is left."""
    began: list[tuple[int, float]] = []

    def tell(step: int, total: int, loss: float) -> None:
        began.append((step, time.monotonic()))
        if step % 20 == 0 or step == total:
            (first, start), (_, now) = began[0], began[-1]
            left = (now - start) / max(1, step - first) * (total - step)
            print(f"step {step} of {total}, loss {loss:.4f}, about {left:.0f} s left", flush=True)

    return tell


def from_resmlp(resmlp: nn.Module, inputs: Tensor) -> nn.Module:
    """Q-MLP with ResMLP's weights, second branches at zero and norms fitted on N x C x H x W inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("qmlp_cifar").eval()
    weights = {
        key.replace("linear_tokens", "mlp_tokens.branches.0"): value
        for key, value in resmlp.state_dict().items()
    }
    own = model.state_dict()
    model.load_state_dict({key: weights.get(key, own[key]) for key in own})
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    handles = [
        resmlp.get_submodule(name).register_forward_hook(fitting(norm)) for name, norm in norms.items()
    ]
    with torch.no_grad():
        resmlp(inputs)
        for block in model.blocks:
            nn.init.zeros_(block.mlp_tokens.branches[1].fc2.weight)
    for handle in handles:
        handle.remove()
    return model


def fitting(norm: nn.LayerNorm):
    """A forward hook that fits the norm's weight and bias to the module's output."""

    def fit(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        n = F.layer_norm(args[0], norm.normalized_shape, eps=norm.eps).flatten(0, -2)
        y = output.flatten(0, -2)
        slope = ((n - n.mean(0)) * (y - y.mean(0))).mean(0) / n.var(0, unbiased=False).clamp(min=1e-8)
        norm.weight.copy_(slope)
        norm.bias.copy_(y.mean(0) - slope * n.mean(0))

    return fit


if __name__ == "__main__":
    main()
