"""Who was measured: the identity that a latency table is tied to."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16", "asimddp", "i8mm")


@dataclass(frozen=True)
class DeviceIdentity:
    """A processor as far as it decides which kernels run and how fast.

    Args:
        name: Model of the processor, with its family, model and stepping numbers where the system tells them.
        architecture: Such as `x86_64`.
        cores: Logical cores that this process sees.
        flags: Instruction sets that integer kernels look for.
        system: Operating system.
    """

    name: str
    architecture: str
    cores: int
    flags: tuple[str, ...]
    system: str

    @property
    def slug(self) -> str:
        """The identity as part of a file name."""
        best = self.flags[-1] if self.flags else self.architecture
        return re.sub(r"[^a-z0-9]+", "-", f"{self.name} {self.cores}c {best}".lower()).strip("-")

    @property
    def saturates(self) -> bool:
        """Whether the fast u8 x s8 product adds pairs in 16 bits, which overflow: x86 without VNNI or AMX."""
        return self.architecture.lower() in ("x86_64", "amd64") and not {
            "avx512_vnni",
            "avx_vnni",
            "amx_int8",
        } & set(self.flags)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`."""
        return {**asdict(self), "flags": list(self.flags)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> DeviceIdentity:
        """Inverse of `to_json`."""
        return cls(
            str(data["name"]),
            str(data["architecture"]),
            int(data["cores"]),
            tuple(map(str, data["flags"])),
            str(data["system"]),
        )

    def __str__(self) -> str:
        """For people."""
        return (
            f"{self.name} ({self.architecture}, {self.cores} cores, "
            f"{', '.join(self.flags) or 'no known flags'})"
        )


def identity(cpuinfo: Path = Path("/proc/cpuinfo")) -> DeviceIdentity:
    """The processor that this process runs on."""
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    held = set(flags[1].split()) if flags else set()
    name = model[1].strip() if model else platform.processor() or platform.machine()
    numbers = [
        re.search(rf"^{field}\s*:\s*(\S+)", text, re.MULTILINE)
        for field in ("cpu family", "model", "stepping")
    ]
    if all(numbers):  # virtual machines hide the model's name, not these
        name += " " + "-".join(number[1] for number in numbers if number)
    return DeviceIdentity(
        name,
        platform.machine(),
        os.cpu_count() or 1,
        tuple(f for f in _FLAGS if f in held),
        platform.system(),
    )
