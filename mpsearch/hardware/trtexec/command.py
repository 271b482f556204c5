"""The call of trtexec that builds, times and profiles an engine, and leaves the files that `read_builds`
reads.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

FLAGS = (
    *("--stronglyTyped", "--profilingVerbosity=detailed", "--separateProfileRun"),
    *("--useCudaGraph", "--noDataTransfers", "--useSpinWait"),
    *("--warmUp=500", "--iterations=100", "--duration=5", "--avgRuns=1"),
)
"""Types as the file has them; layers named; times of whole calls in one CUDA graph without copies from the
host, and of layers in a run of their own.
"""
_HEAD = """#!/bin/sh
# Builds and times {what}; run it where TensorRT 10 or later is installed (trtexec in the path).
# Then, where mpsearch is: mpsearch profile --from trtexec:DIR, with the folder of this script.
cd "$(dirname "$0")" || exit 1
"""


def trtexec_call(
    name: str, model: str, reads: Mapping[str, Sequence[int]], batch: int, most: int | None = None
) -> list[str]:
    """Arguments of trtexec for one engine.

    Args:
        name: Of the build: its files are `<name>.engine`, `<name>.layers.json` and so on.
        model: ONNX file.
        reads: Name of each tensor that the model reads -> its shape for one sample, such as C x H x W.
        batch: Images in a call, which is timed.
        most: Greatest batch that the engine takes; None for `batch` alone.
    """
    sizes = {"min": 1 if most else batch, "opt": batch, "max": most or batch}
    shapes = [f"--{which}Shapes={_shapes(reads, size)}" for which, size in sizes.items()]
    timed = f"--shapes={_shapes(reads, batch)}"
    return [
        *("trtexec", f"--onnx={model}", *FLAGS, *shapes, timed, f"--saveEngine={name}.engine"),
        *(f"--exportTimes={name}.times.json", f"--exportProfile={name}.profile.json"),
        f"--exportLayerInfo={name}.layers.json",
    ]


def _shapes(reads: Mapping[str, Sequence[int]], batch: int) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, (batch, *shape)))}" for name, shape in reads.items())


def script(calls: Sequence[tuple[str, Sequence[str]]], what: str) -> str:
    """A shell script of several calls; one that fails is told, and the others go on.

    Args:
        calls: Name of a build, and its arguments.
        what: What is built, for people.
    """
    lines = []
    for name, arguments in calls:
        done, failed = shlex.quote(f"{name}: built and timed"), shlex.quote(f"{name}: failed, see {name}.log")
        call = f"{shlex.join(arguments)} > {shlex.quote(f'{name}.log')} 2>&1"
        lines.append(f"if {call}; then echo {done}; else echo {failed} >&2; failed=1; fi")
    return _HEAD.format(what=what) + "failed=0\n" + "\n".join(lines) + "\nexit $failed\n"
