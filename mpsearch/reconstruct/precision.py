"""Which blocks learn in bfloat16: where the device has matrix units for it, and no grid is so fine that
bfloat16 would blur it.

bfloat16 has 8 bits of mantissa: the highest level of a grid of b bits is off by up to 2^(b - 9) steps, half a
step at 8 bits. At 4 bits what a block ends at is the same within what another seed changes; a block at W8A8
ended at 1.4 times the error (benchmarks/results/reconstruct_bfloat16.md).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from mpsearch.quant import UnitState

FINEST = 4  # bits of weights and activations up to which bfloat16 was measured to be as good


def in_bfloat16(wanted: bool | None, states: Iterable[UnitState], device: torch.device) -> bool:
    """Whether the steps of a block are taken in bfloat16.

    Args:
        wanted: What was asked for, as in `ReconstructionConfig.bfloat16`.
        states: States of the block's units.
        device: Where it computes.
    """
    if wanted is not None:
        return wanted
    return has_matrix_units(device) and all(bits <= FINEST for state in states for bits in _bits(state))


def has_matrix_units(device: torch.device) -> bool:
    """Whether products in bfloat16 have units of their own: a GPU's, or AMX. False where torch cannot tell
    (before it had `torch.cpu.get_capabilities`).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    ask = getattr(torch.cpu, "get_capabilities", None)
    return device.type == "cpu" and ask is not None and bool(ask().get("amx_bf16", False))


def _bits(state: UnitState) -> list[int]:
    weight = [] if state.weight is None else [state.weight.params.bits]
    return weight + [
        quantizer.bits for quantizer in (state.activation, state.second) if quantizer is not None
    ]
