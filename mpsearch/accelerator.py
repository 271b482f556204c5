"""The device that a search computes on: what may be asked for, what is there, and how it is to calculate.

torch is imported when a device is looked for, so that a slip is told before it is loaded.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mpsearch.errors import OptionError

if TYPE_CHECKING:
    import torch

AUTO = "auto"
_NAME = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_CHOICES = "auto, cpu, cuda, cuda:1 or mps"


def require_device_name(text: str) -> None:
    """Raises OptionError where a text names no device, here or anywhere."""
    if not _NAME.fullmatch(text):
        raise OptionError(f"There is no device {text!r} to compute on. Write --device {_CHOICES}.")


def find_device(text: str) -> torch.device:
    """The device of a name; of `auto` CUDA where there is one, else the CPU.

    Raises: OptionError: It is no name of a device, or this machine has no such device.
    """
    require_device_name(text)  # before torch is imported: a slip costs nothing
    import torch

    if text == AUTO:
        text = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(text)
    if device.type == "cuda":
        _require_cuda(text, device.index)
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise OptionError(
            "--device mps is asked for, and torch finds no Apple GPU here. Use --device cpu, or auto, which "
            "takes CUDA where there is one."
        )
    return device


def _require_cuda(text: str, index: int | None) -> None:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        built = torch.version.cuda is not None
        why = "finds no CUDA device here" if built else f"{torch.__version__} is built without CUDA"
        raise OptionError(
            f"--device {text} is asked for, and torch {why}. Use --device cpu, or auto, which takes CUDA "
            "where there is one."
        )
    if index is not None and index >= count:
        raise OptionError(
            f"--device {text} is asked for, and there is {count} CUDA device here, cuda:0. Use that."
            if count == 1
            else f"--device {text} is asked for, and there are {count} CUDA devices here, cuda:0 to "
            f"cuda:{count - 1}. Use one of them."
        )


def describe_device(device: torch.device) -> dict[str, str]:
    """What a study records: the `type`, and the name of a GPU."""
    import torch

    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device)}
    return {"type": device.type}


def free_bytes(device: torch.device) -> int | None:
    """Memory of a device that is not taken, what torch holds and does not use counted as free; None for a
    CPU, whose memory is bounded by what is asked for.
    """
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return None


def within_free(most_bytes: int, device: torch.device) -> int:
    """A bound on memory, lowered to half of what a device has free: the rest is for what passes need."""
    free = free_bytes(device)
    return most_bytes if free is None else min(most_bytes, max(free, 0) // 2)


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """While it lasts, a GPU computes float32 as float32 (no TF32), and convolutions the same way each time.

    TF32 keeps 10 bits of mantissa, which is coarser than the steps of an 8-bit grid are to each other.
    """
    import torch

    switches: tuple[tuple[Any, str, bool], ...] = (
        (torch.backends.cuda.matmul, "allow_tf32", False),
        (torch.backends.cudnn, "allow_tf32", False),
        (torch.backends.cudnn, "deterministic", True),
        (torch.backends.cudnn, "benchmark", False),
    )
    before = [getattr(place, name) for place, name, _ in switches]
    try:
        for place, name, value in switches:
            setattr(place, name, value)
        yield
    finally:
        for (place, name, _), value in zip(switches, before, strict=True):
            setattr(place, name, value)
