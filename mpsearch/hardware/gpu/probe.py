"""Whether there is a GPU, and which: asked once, without starting CUDA before somebody asks."""

from __future__ import annotations

import importlib.util
import platform
from dataclasses import dataclass
from functools import cache

from mpsearch.errors import DeviceMismatchError, MissingExtraError, OptionError
from mpsearch.hardware.device import DeviceIdentity


@dataclass(frozen=True)
class Gpu:
    """What decides which kernels a GPU has.

    Args:
        name: Such as `NVIDIA H200`.
        capability: Compute capability.
        processors: Streaming multiprocessors.
        memory_bytes: Memory of the device.
        l2_bytes: Bytes of its level-2 cache.
        shared_bytes: Shared memory that a program may have.
    """

    name: str
    capability: tuple[int, int]
    processors: int
    memory_bytes: int
    l2_bytes: int
    shared_bytes: int

    @property
    def identity(self) -> DeviceIdentity:
        """As a latency table is tied to it; the processors are its cores."""
        sizes = (
            f"{round(self.memory_bytes / 2**30)}gib",
            f"l2-{round(self.l2_bytes / 2**20)}mib",
            "sm{}{}".format(*self.capability),
        )
        return DeviceIdentity(self.name, "cuda", self.processors, sizes, platform.system())


@cache
def gpu() -> Gpu | None:
    """The current CUDA device; None where torch sees none."""
    import torch

    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Gpu(
        found.name,
        (found.major, found.minor),
        found.multi_processor_count,
        found.total_memory,
        found.L2_cache_size,
        found.shared_memory_per_block_optin,
    )


def needed() -> Gpu:
    """The device. Raises DeviceMismatchError where there is none."""
    found = gpu()
    if found is None:
        raise DeviceMismatchError(
            f"{missing()} Run on a machine with an NVIDIA GPU, or take a CPU backend such as ort-cpu."
        )
    return found


def missing() -> str:
    """Why there is no device, for people."""
    import torch

    if torch.version.cuda is None:
        return f"This torch ({torch.__version__}) is built without CUDA."
    return f"torch {torch.__version__} (CUDA {torch.version.cuda}) sees no CUDA device."


def why_not(least: tuple[int, int], what: str, packages: tuple[str, ...] = ()) -> str | None:
    """Why a kernel does not run here; None where it does.

    Args:
        least: Compute capability that it needs.
        what: The kernel, for people.
        packages: Python packages that it needs.
    """
    found = gpu()
    if found is None:
        return missing()
    if found.capability < least:
        return (
            f"{what} needs compute capability {least[0]}.{least[1]}; {found.name} has "
            f"{found.capability[0]}.{found.capability[1]}"
        )
    lacking = [p for p in packages if importlib.util.find_spec(p) is None]
    return f"{what} needs the package {lacking[0]!r}, which is not installed" if lacking else None


def require(target: str, threads: int, what: str, least: tuple[int, int], package: str, extra: str) -> None:
    """What a target on a GPU needs, asked before anything is loaded.

    Args:
        target: Its name.
        threads: Threads that were asked for.
        what: The kernels that it runs, for people.
        least: Compute capability that they need.
        package: Python package that has them.
        extra: Extra of mpsearch that installs the package.

    Raises:
        DeviceMismatchError: There is no GPU that runs the kernels.
        MissingExtraError: The package is missing.
        OptionError: More than one thread, which a GPU has no pool for.
    """
    why = why_not(least, what)
    if why is not None:
        raise DeviceMismatchError(
            f"--target {target} cannot run here: {why.rstrip('.')}. Run it on a machine with an NVIDIA "
            f"GPU of compute capability {least[0]}.{least[1]} or more, or take a CPU target such as "
            "--target ort-cpu."
        )
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(package, extra, f"--target {target}")
    if threads != 1:
        raise OptionError(
            f"threads is {threads}, and --target {target} runs on a GPU, which has no pool of them. "
            "Leave --threads out."
        )
