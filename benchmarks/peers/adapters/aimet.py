"""AIMET: AdaRound at uniform bits (`aimet`), or its automatic mixed precision (`aimet+amp`).

Its mixed precision takes a drop of accuracy and no size, so the point of its path that fits the budget best
is what a row has.
"""

from __future__ import annotations

import math

import torch
from aimet_torch.adaround.adaround_weight import Adaround, AdaroundParameters
from aimet_torch.batch_norm_fold import fold_all_batch_norms
from aimet_torch.common.defs import QuantScheme
from aimet_torch.model_preparer import prepare_model
from aimet_torch.quantsim import QuantizationSimModel
from torch import nn

from benchmarks.peers.counting import Layer
from benchmarks.peers.job import CannotError, Made, Task

BATCH = 32
STEPS = 1000


def quantize(task: Task) -> Made:
    """Batch norms folded, weights rounded layer by layer by AdaRound, ranges by its default scheme.

    Raises: CannotError: A budget below 2 bits or a search.
    """
    job = task.job
    if job.peer != "aimet":
        raise CannotError(
            "Automatic mixed precision takes an allowed drop of accuracy; it has no size budget."
        )
    bits = math.floor(job.bits)
    model = prepare_model(task.model).eval()
    fold_all_batch_norms(model, tuple(task.calibration.inputs(0, 1).shape))
    example = task.calibration.inputs(0, 1)
    batches = [x for x, _ in task.calibration.batches(BATCH)]
    parameters = AdaroundParameters(batches, num_batches=len(batches), default_num_iterations=STEPS)
    task.folder.mkdir(exist_ok=True)
    with torch.enable_grad():
        rounded = Adaround.apply_adaround(
            model,
            example,
            parameters,
            path=str(task.folder),
            filename_prefix="adaround",
            default_param_bw=bits,
            default_quant_scheme=QuantScheme.post_training_tf_enhanced,
        )
    sim = QuantizationSimModel(
        rounded,
        example,
        quant_scheme=QuantScheme.post_training_tf_enhanced,
        default_output_bw=job.a_bits,
        default_param_bw=bits,
    )
    sim.set_and_freeze_param_encodings(str(task.folder / "adaround.encodings"))
    sim.compute_encodings(lambda model, _: [model(x) for x in batches], None)
    layers = counted_layers(sim.model, job.a_bits)
    return Made(sim.model.eval(), layers, {}, f"AdaRound, {STEPS} steps a layer, uniform {bits} bits")


def counted_layers(made: nn.Module, a_bits: int) -> list[Layer]:
    """Bits of each layer's weight quantiser."""
    layers = []
    for name, module in made.named_modules():
        quantizer = (
            getattr(module, "param_quantizers", {}).get("weight") if hasattr(module, "weight") else None
        )
        if quantizer is None or not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        scales = quantizer.get_scale().numel()
        layers.append(Layer.of(name, module.weight, int(quantizer.bitwidth), a_bits, scales=scales))
    return layers
