"""The card's own instruments, through NVML (package nvidia-ml-py). Reads only: clocks and power limits are
never set.
"""

from __future__ import annotations

import os
from typing import Any

from mpsearch.errors import MissingExtraError, MpsearchError
from mpsearch.hardware.gpu.reading import CardState

_REASONS = {
    "idle": "nvmlClocksEventReasonGpuIdle",
    "clocks_set": "nvmlClocksEventReasonApplicationsClocksSetting",
    "sw_power_cap": "nvmlClocksEventReasonSwPowerCap",
    "hw_slowdown": "nvmlClocksThrottleReasonHwSlowdown",
    "sync_boost": "nvmlClocksEventReasonSyncBoost",
    "sw_thermal": "nvmlClocksEventReasonSwThermalSlowdown",
    "hw_thermal": "nvmlClocksThrottleReasonHwThermalSlowdown",
    "power_brake": "nvmlClocksThrottleReasonHwPowerBrakeSlowdown",
}


class NvmlMonitor:
    """The instruments of one card.

    Args:
        uuid: Identifier of the card, as torch or `nvidia-smi -L` gives it; an index counts cards that torch
            may not see.
        library: The module `pynvml`, or a fake in a test.
        processes: Ids of further processes of this run that hold the card.

    Raises:
        MissingExtraError: nvidia-ml-py is not installed.
        MpsearchError: NVML does not start, or has no such card.
    """

    def __init__(self, uuid: str, library: Any = None, processes: tuple[int, ...] = ()) -> None:
        self._nvml = library if library is not None else _library()
        self._own = {os.getpid(), *processes}
        try:
            self._nvml.nvmlInit()
            self._card = self._nvml.nvmlDeviceGetHandleByUUID(
                uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
            )
        except self._nvml.NVMLError as error:
            raise MpsearchError(
                f"NVML cannot read the card {uuid!r}: {error}. Without it no reading can be trusted; see "
                "that nvidia-smi runs."
            ) from None

    def state(self) -> CardState:
        """Clocks, temperature, power, reasons."""
        n, card = self._nvml, self._card
        mask = n.nvmlDeviceGetCurrentClocksEventReasons(card)
        return CardState(
            int(n.nvmlDeviceGetClockInfo(card, n.NVML_CLOCK_SM)),
            int(n.nvmlDeviceGetClockInfo(card, n.NVML_CLOCK_MEM)),
            int(n.nvmlDeviceGetTemperature(card, n.NVML_TEMPERATURE_GPU)),
            n.nvmlDeviceGetPowerUsage(card) / 1e3,
            tuple(name for name, constant in _REASONS.items() if mask & getattr(n, constant)),
        )

    def energy_mj(self) -> float | None:
        """Millijoules since the driver was loaded; None where the card does not count."""
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._card))
        except self._nvml.NVMLError_NotSupported:
            return None

    def foreign_processes(self) -> tuple[int, ...]:
        """Process ids that compute on the card and are not this run's.

        Inside a container NVML gives the host's ids, or none. This run's processes hold the card when they
        measure, so where none of their ids is listed, as many of the others are they.
        """
        found = sorted({int(p.pid) for p in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._card)})
        foreign = tuple(pid for pid in found if pid not in self._own)
        return foreign if len(foreign) < len(found) else foreign[len(self._own) :]

    def about(self) -> dict[str, Any]:
        """What belongs into a table's identity: driver, power limit, greatest clocks."""
        n, card = self._nvml, self._card
        return {
            "driver": _text(n.nvmlSystemGetDriverVersion()),
            "power_limit_w": n.nvmlDeviceGetEnforcedPowerLimit(card) / 1e3,
            "max_sm_mhz": int(n.nvmlDeviceGetMaxClockInfo(card, n.NVML_CLOCK_SM)),
            "max_memory_mhz": int(n.nvmlDeviceGetMaxClockInfo(card, n.NVML_CLOCK_MEM)),
        }


def _library() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise MissingExtraError("nvidia-ml-py", "cuda", "Measuring on a GPU", error) from None
    return pynvml


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
