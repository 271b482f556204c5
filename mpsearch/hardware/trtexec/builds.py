"""The builds of a folder: what trtexec has written of each engine, read and checked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpsearch.errors import OptionError, TableError
from mpsearch.hardware.device import DeviceIdentity
from mpsearch.hardware.trtexec.engine import EngineLayer, joined, read_layers, read_profile

LAYERS = (".layers.json", ".graph.json")
"""Ends of the names of files of --exportLayerInfo: our own, and NVIDIA's engine explorer's."""
_PROFILE = (".profile.json",)
_TIMES = (".times.json", ".timing.json")
_LOGS = (".log", ".profile.metadata.json")
_FLAGS = "--exportLayerInfo, --exportProfile and --exportTimes"
_LEAST_TIMES = 10


def source_folder(text: str) -> Path:
    """The folder of `trtexec:DIR`. Raises OptionError on anything else."""
    kind, colon, folder = text.partition(":")
    if kind != "trtexec" or not colon or not folder:
        raise OptionError(f"--from is {text!r}; write trtexec:DIR, the folder of trtexec's JSON files.")
    return Path(folder)


@dataclass(frozen=True)
class Build:
    """One engine, profiled and timed.

    Args:
        name: The files' common name, with the folders above it below the one that was asked for.
        layers: In order of execution.
        times_us: Time of the whole model in each iteration, in order.
        device: What it ran on; None where no file tells.
        version: Of TensorRT; `unknown` where no file tells.
    """

    name: str
    layers: tuple[EngineLayer, ...]
    times_us: tuple[float, ...]
    device: DeviceIdentity | None
    version: str

    @property
    def total_us(self) -> float:
        """Sum over all layers of one call, by the profile."""
        return math.fsum(layer.average_us for layer in self.layers)

    @property
    def median_us(self) -> float:
        """Of the whole model."""
        return float(np.median(self.times_us))

    @property
    def count(self) -> int:
        """Iterations of the profile."""
        return self.layers[0].count

    @property
    def batch(self) -> int:
        """Images in a call: the first dimension of what the engine reads."""
        return next((t.dims[0] for layer in self.layers for t in layer.inputs if t.dims), 1)


def read_builds(folder: Path) -> list[Build]:
    """Every build of a folder and the folders below it, by name.

    Raises:
        TableError: There is none; a file is missing, cut off, or another; builds are of different devices,
            versions or batches.
    """
    if not folder.is_dir():
        raise TableError(f"There is no folder {folder}. Name the one that holds trtexec's JSON files.")
    found = sorted(p for end in LAYERS for p in folder.rglob(f"*{end}"))
    if not found:
        raise TableError(
            f"{folder} holds no file of layers (*{LAYERS[0]}). Run the script of `mpsearch profile --target "
            f"tensorrt --write`, or trtexec with {_FLAGS}."
        )
    builds = [_read_build(folder, path) for path in found]
    _require_alike(builds)
    return builds


def _read_build(folder: Path, path: Path) -> Build:
    stem = path.parent / path.name.removesuffix(next(end for end in LAYERS if path.name.endswith(end)))
    name = str(stem.relative_to(folder))
    profile, times = _beside(stem, _PROFILE, "--exportProfile"), _beside(stem, _TIMES, "--exportTimes")
    count, entries = read_profile(str(profile), _json(profile))
    layers = joined(str(stem), read_layers(str(path), _json(path)), entries, count)
    log = next((p for end in _LOGS if (p := stem.parent / f"{stem.name}{end}").is_file()), None)
    device, version = (None, "unknown") if log is None else _told(log)
    return Build(name, tuple(layers), _times(times, _json(times)), device, version)


def _beside(stem: Path, ends: Sequence[str], flag: str) -> Path:
    for end in ends:
        if (path := stem.parent / f"{stem.name}{end}").is_file():
            return path
    raise TableError(f"There is no {stem}{ends[0]} beside its layers. Profile again with {flag}.")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise TableError(
            f"{path} is not JSON ({error}): it was cut off or edited. Copy it again, or profile again."
        ) from None


def _times(path: Path, data: Any) -> tuple[float, ...]:
    found = [entry.get("computeMs") if isinstance(entry, dict) else None for entry in data or ()]
    good = [1e3 * t for t in found if isinstance(t, int | float) and math.isfinite(t) and t > 0]
    if len(good) < max(_LEAST_TIMES, len(found)):
        raise TableError(
            f"{path} holds {len(good)} times of the whole model, and {_LEAST_TIMES} are needed (computeMs "
            "of every iteration). Write it again with --exportTimes."
        )
    return tuple(good)


def _told(path: Path) -> tuple[DeviceIdentity | None, str]:
    """Device and version from trtexec's log, or from the metadata that NVIDIA's engine explorer makes of
    it.
    """
    text = path.read_text(errors="replace")
    if path.suffix == ".json":
        held = _json(path).get("device_information", {})
        text = "\n".join(f"{key}: {value}" for key, value in held.items())
    lines = {
        key: value.strip()
        for key, value in re.findall(r"(?:\] )?([A-Z][A-Za-z ]+): (.+)$", text, re.MULTILINE)
    }
    version = re.search(r"\d+\.\d+[.\d]*", lines.get("TensorRT version", ""))
    name, numbers = lines.get("Selected Device"), []
    for key in ("SMs", "Device Global Memory", "Compute Capability"):
        number = re.search(r"[\d.]+", lines.get(key, ""))
        numbers.append(float(number[0]) if number else 0.0)
    if name is None or not numbers[0]:
        return None, version[0] if version else "unknown"
    processors, mebibytes, capability = numbers
    return card_identity(name, int(processors), mebibytes * 2**20, f"{capability:.1f}"), version[
        0
    ] if version else "unknown"


def card_identity(name: str, processors: int, memory_bytes: float, capability: str) -> DeviceIdentity:
    """A GPU as a table of TensorRT is tied to it: by what trtexec tells of it.

    Args:
        name: Such as `NVIDIA H200`.
        processors: Streaming multiprocessors.
        memory_bytes: Memory of the device.
        capability: Compute capability, such as `9.0`.
    """
    flags = (f"{round(memory_bytes / 2**30)}gib", f"sm{capability.replace('.', '')}")
    return DeviceIdentity(name, "cuda", processors, flags, "Linux")


def _require_alike(builds: Sequence[Build]) -> None:
    first = builds[0]
    for build in builds[1:]:
        for what, ours, theirs in (
            ("batch", first.batch, build.batch),
            ("device", first.device, build.device),
            ("TensorRT version", first.version, build.version),
        ):
            if ours != theirs:
                raise TableError(
                    f"{first.name} and {build.name} differ in {what} ({ours} and {theirs}), and one table "
                    "is of one. Give each a folder of its own."
                )
