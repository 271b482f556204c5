"""Bytes of a quantised model, counted alike for all tools. The rules are printed above the table."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

RULES = (
    "A weight of b bits takes b / 8 bytes, each output channel's row filled up to a whole byte. Each scale of a "
    "weight takes 4 bytes, each zero point of a weight 1, scale and zero point of a layer's input 5. A weight "
    "that stays float takes 4 bytes, and so does everything else (biases after folding batch norms, norms, "
    "embeddings), which is the same for all tools."
)
FLOAT_BITS = 16  # and more: counted as float32


@dataclass(frozen=True)
class Layer:
    """What a tool made of one convolution or linear layer.

    Args:
        name: As the tool calls it.
        rows, columns: Output channels, and weights of each.
        w_bits: Bits of a weight; 32 where it stays float.
        a_bits: Bits of its input; 32 where it stays float.
        scales: Scales of the weight.
        zero_points: Zero points of the weight.
    """

    name: str
    rows: int
    columns: int
    w_bits: int
    a_bits: int
    scales: int
    zero_points: int = 0

    @classmethod
    def of(cls, name: str, weight: Tensor, w_bits: int, a_bits: int, **counts: int) -> Layer:
        """Of a weight whose first dimension is output channels; a scale for each unless `scales` says else."""
        return cls(name, len(weight), weight[0].numel(), w_bits, a_bits, **{"scales": len(weight), **counts})

    @property
    def numel(self) -> int:
        return self.rows * self.columns

    @property
    def size_bytes(self) -> int:
        """By the rules."""
        if self.w_bits >= FLOAT_BITS:
            return 4 * self.numel
        codes = self.rows * math.ceil(self.columns * self.w_bits / 8)
        return codes + 4 * self.scales + self.zero_points + (5 if self.a_bits < FLOAT_BITS else 0)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def units(model: nn.Module) -> dict[str, nn.Module]:
    """Convolutions and linear layers by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def counted(layers: list[Layer], model: nn.Module) -> dict[str, Any]:
    """Bytes and mean bits of a tool's result.

    Args:
        layers: What the tool quantised; weights of the model that are not among them count as float.
        model: The float model, batch norms not folded.

    Raises: ValueError: More weights than the model has.
    """
    total = sum(unit.weight.numel() for unit in units(model).values())
    named = sum(layer.numel for layer in layers)
    if named > total:
        raise ValueError(f"The tool reports {named:,} weights; the model has {total:,}.")
    rest = total - named
    held = sum(layer.numel * min(layer.w_bits, 32) for layer in layers)
    size = sum(layer.size_bytes for layer in layers) + 4 * rest + 4 * others(model)
    low = sum(layer.numel for layer in layers if layer.a_bits < FLOAT_BITS)
    return {
        "size_bytes": size,
        "mean_bits": round((held + 32 * rest) / total, 4),
        "float_weights": rest + sum(layer.numel for layer in layers if layer.w_bits >= FLOAT_BITS),
        "quantized_inputs": round(low / total, 4),
    }


def others(model: nn.Module) -> int:
    """Parameters beside the weights of convolutions and linear layers, batch norms folded to biases."""
    normed = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    inside = {id(p) for m in normed for p in m.parameters()} | {id(u.weight) for u in units(model).values()}
    plain = sum(p.numel() for p in model.parameters() if id(p) not in inside)
    return plain + sum(m.num_features for m in normed)


def uniform_bytes(model: nn.Module, bits: float, a_bits: int = 8) -> int:
    """Bytes at the same bits for each weight; between whole bits on the line between them."""
    low, high = math.floor(bits), math.ceil(bits)

    def size(b: int) -> int:
        layers = [Layer.of(name, unit.weight, b, a_bits) for name, unit in units(model).items()]
        return int(counted(layers, model)["size_bytes"])

    return round(size(low) + (bits - low) * (size(high) - size(low)))


def check_levels(name: str, weight: Tensor, bits: int, groups: int | None = None) -> None:
    """A fake-quantised weight has no more values in a row than its bits can tell apart.

    Args:
        name: Layer.
        weight: Output channels first.
        bits: Said by the tool.
        groups: Rows of equal scale in `weight.reshape(groups, -1)`; None for a scale for each output channel.

    Raises: ValueError: It has more, so the tool's bits are not what it computes with.
    """
    if bits >= FLOAT_BITS:
        return
    rows = weight.detach().reshape(len(weight) if groups is None else groups, -1)
    most = max(len(torch.unique(row)) for row in rows)
    if most > 2**bits:
        raise ValueError(f"{name}: {most} values in a row of a weight that is said to have {bits} bits.")
