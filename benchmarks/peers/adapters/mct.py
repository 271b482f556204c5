"""Sony Model Compression Toolkit: mixed precision under a limit of weight bytes; `mct+gptq` with its own
gradient-based rounding afterwards.

The platform is the library's IMX500 description with all widths 2 to 8 for a weight, per channel, and affine
inputs, so that the tool has the same choices as the others.
"""

from __future__ import annotations

import inspect
from typing import Any

import model_compression_toolkit as mct
import torch
from mct_quantizers import PytorchQuantizationWrapper, QuantizationMethod
from model_compression_toolkit.target_platform_capabilities.constants import KERNEL_ATTR, WEIGHTS_N_BITS
from model_compression_toolkit.target_platform_capabilities.schema.mct_current_schema import (
    OpQuantizationConfig,
)
from model_compression_toolkit.target_platform_capabilities.tpc_models.imx500_tpc.v1_0 import tpc as imx500
from torch import nn

from benchmarks.peers.counting import Layer, units
from benchmarks.peers.job import Made, Task

BATCH = 32
EPOCHS = 5


def quantize(task: Task) -> Made:
    """Ranges, sensitivities and rounding on calibration images."""
    _unfused(task.model)
    optional = len(inspect.signature(task.model.forward).parameters) > 1
    model, images = _OneInput(task.model) if optional else task.model, task.calibration

    def batches() -> Any:
        for x, _ in images.batches(BATCH):
            yield [x]

    total = sum(unit.weight.numel() for unit in units(task.model).values())
    limit = mct.core.ResourceUtilization(weights_memory=total * task.job.bits / 8)
    core = mct.core.CoreConfig(
        mixed_precision_config=mct.core.MixedPrecisionQuantizationConfig(num_of_images=32)
    )
    given = {
        "target_resource_utilization": limit,
        "core_config": core,
        "target_platform_capabilities": platform(task.job.a_bits),
    }
    if task.job.peer.endswith("+gptq"):
        config = mct.gptq.get_pytorch_gptq_config(n_epochs=EPOCHS)
        made, _ = mct.gptq.pytorch_gradient_post_training_quantization(
            model, batches, gptq_config=config, **given
        )
    else:
        made, _ = mct.ptq.pytorch_post_training_quantization(model, batches, **given)
    made = made.to("cpu").eval()
    layers, weights = counted_layers(made, task.job.a_bits)
    notes = f"IMX500 description with widths 2 to 8 and affine inputs; MSE ranges, {len(images)} images"
    notes += f"; {EPOCHS} epochs of gradient steps" if task.job.peer.endswith("+gptq") else ""
    return Made(made, layers, weights, notes)


def platform(a_bits: int) -> Any:
    """The IMX500's description with more widths."""
    linear, _, default = imx500.get_op_quantization_configs()

    def edited(config: OpQuantizationConfig, **changes: Any) -> OpQuantizationConfig:
        return config.clone_and_edit(
            activation_quantization_method=QuantizationMethod.UNIFORM, activation_n_bits=a_bits, **changes
        )

    base = edited(linear)
    widths = [edited(linear, attr_to_edit={KERNEL_ATTR: {WEIGHTS_N_BITS: b}}) for b in range(8, 1, -1)]
    return imx500.generate_tpc(
        default_config=edited(default),
        base_config=base,
        mixed_precision_cfg_list=widths,
        name="widths_2_to_8",
    )


def counted_layers(made: nn.Module, a_bits: int) -> tuple[list[Layer], dict[str, torch.Tensor]]:
    """Bits of each wrapped kernel, and its values."""
    layers, weights = [], {}
    for name, module in made.named_modules():
        if not isinstance(module, PytorchQuantizationWrapper) or "weight" not in module.weights_quantizers:
            continue
        if not isinstance(module.layer, nn.Conv2d | nn.Linear):
            continue
        bits = module.weights_quantizers["weight"].num_bits
        weight = module.get_quantized_weights()["weight"]
        layers.append(Layer.of(name, weight, bits, a_bits))
        weights[name] = weight
    return layers, weights


class _OneInput(nn.Module):
    """The model without its optional inputs, which the library takes for further ones."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, N x K."""
        return self.model(x)  # type: ignore[no-any-return]


def _unfused(model: nn.Module) -> None:
    """Attention as separate products: the library does not trace torch's fused one."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
