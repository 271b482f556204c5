"""What an adapter is given and what it gives back."""

from __future__ import annotations

import json
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.peers.counting import Layer, check_levels, counted

BATCH = 64


class CannotError(Exception):
    """The tool cannot do what is asked; the reason becomes the row."""


@dataclass(frozen=True)
class Job:
    """One row to be made.

    Args:
        peer: Name of the adapter, and its variant: `mct`, `mct+gptq`.
        network: Of `NETWORKS`.
        bits: Mean bits of a weight that may not be exceeded.
        a_bits: Bits of inputs.
        seed: Random seed of the tool and of the draw of images.
    """

    peer: str
    network: str
    bits: float
    a_bits: int
    seed: int

    @property
    def key(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def label(self) -> str:
        return f"{self.peer}-{self.network}-w{self.bits:g}a{self.a_bits}-seed{self.seed}"


@dataclass(frozen=True)
class Images:
    """N images as the network reads them, made from uint8 batch by batch.

    Args:
        pixels: `N x C x H x W` uint8.
        labels: `N` int64.
        mean, std: `C` values.
    """

    pixels: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    mean: np.ndarray[Any, Any]
    std: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.pixels)

    def inputs(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Normalised, float32."""
        x = torch.from_numpy(self.pixels[start:stop]).float() / 255
        mean, std = (torch.from_numpy(v).float()[:, None, None] for v in (self.mean, self.std))
        return (x - mean) / std

    def batches(self, size: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels."""
        for start in range(0, len(self), size):
            labels = torch.from_numpy(self.labels[start : start + size])
            yield self.inputs(start, start + size), labels


@dataclass(frozen=True)
class Task:
    """A job with what it needs.

    Args:
        job: What is asked.
        model: The float network, eval mode, batch norms not folded.
        calibration: Images that the tool may use, with labels.
        search: More of them, disjoint, for a tool that measures a held-out loss.
        folder: For the tool's files.
        budget_bytes: The budget by the counting rules.
        weights: The network's weights file.
    """

    job: Job
    model: nn.Module
    calibration: Images
    search: Images
    folder: Path
    budget_bytes: int
    weights: Path


@dataclass
class Made:
    """What a tool made.

    Args:
        predict: Inputs to logits.
        layers: For the counting.
        weights: Fake-quantised weights by the layer's name; their values are counted against the bits said.
        notes: What a reader of the row must know.
        artifact_bytes: The tool's own file, where it writes one whose size follows the bits.
        cpu_seconds: Where the tool ran in another process; else what this one took is measured.
    """

    predict: Callable[[Tensor], Tensor]
    layers: list[Layer]
    weights: dict[str, Tensor] = field(default_factory=dict)
    notes: str = ""
    artifact_bytes: int | None = None
    cpu_seconds: float | None = None


def cpu_seconds() -> float:
    """User and system time of this process and of those that it has waited for."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def peak_mib() -> float:
    """Greatest resident memory of this process or of one that it has waited for."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1024


def carry_out(quantize: Callable[[Task], Made], task: Task, judged: Images, output: Path) -> None:
    """Run a tool and write `logits.npz` and `made.json`, or the reason why not, into `output`."""
    wall = time.monotonic()
    torch.manual_seed(task.job.seed)
    try:
        made = quantize(task)
        cost = {"cpu_seconds": round(made.cpu_seconds or cpu_seconds(), 1), "peak_mib": round(peak_mib())}
        bits = {layer.name: layer for layer in made.layers}
        for name, weight in made.weights.items():
            layer = bits[name]
            check_levels(name, weight, layer.w_bits, layer.scales if layer.scales != layer.rows else None)
        with torch.no_grad():
            logits = torch.cat([made.predict(x) for x, _ in judged.batches()])
    except Exception as error:  # whatever a tool raises is the row's reason
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, CannotError) else str(error)
        found: dict[str, Any] = {"failed": reason.strip()[:500], "cpu_seconds": round(cpu_seconds(), 1)}
    else:
        np.savez(output / "logits.npz", logits=logits.float().numpy())
        found = {
            **cost,
            **counted(made.layers, task.model),
            "checked_weights": len(made.weights),
            "artifact_bytes": made.artifact_bytes,
            "notes": made.notes,
            "layers": [layer.to_json() for layer in made.layers],
        }
    found |= {"wall_seconds": round(time.monotonic() - wall, 1), "python": sys.version.split()[0]}
    (output / "made.json").write_text(json.dumps(found))
