"""`mpsearch doctor`: what is here, what can be measured here, and how fast it is."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Mapping

import psutil

from mpsearch import __version__
from mpsearch.cli import _options as common
from mpsearch.cli._app import command
from mpsearch.cli._show import Format, print_rows, say
from mpsearch.units import format_bytes

EXTRAS: Mapping[str, tuple[str, str]] = {
    "cuda": ("triton", "target triton-cuda: latency and energy on an NVIDIA GPU"),
    "dashboard": ("optuna_dashboard", "mpsearch dashboard"),
    "detection": ("pycocotools", "average precision of the task detection"),
    "hf": ("transformers", "--model hf:ID_OR_FOLDER, and texts as --data"),
    "modelopt": ("modelopt", "export for NVIDIA ModelOpt, run here"),
    "nncf": ("nncf", "export for NNCF, run here"),
    "onnx-input": ("onnx2torch", "ONNX files as --model"),
    "openvino": ("openvino", "target openvino: latency on this CPU, and its files"),
    "postgresql": ("psycopg", "--storage postgresql://, for workers on several hosts"),
    "tensorrt": ("tensorrt", "engines timed on an NVIDIA GPU"),
    "text": ("transformers", "examples of text models"),
    "torchao": ("torchao", "export for torchao, run here"),
}
"""Extra -> the module that it brings, and what it adds."""
_PACKAGES = ("torch", "timm", "onnx", "onnxruntime", "optuna", "numpy", "scipy", "safetensors")
_SIDE = 512
_FLOATS = 1 << 24
_RESNET18_MACS = 1.8e9


@command("mpsearch doctor", "mpsearch doctor --format json")
def doctor(output: common.Output = Format.table) -> None:
    """Tell versions, devices, what can be measured here, what extras add, and how fast this machine is."""
    rows = [*_versions(), *_devices(), *_measurable(), *_extras(), *_speed()]
    print_rows(("about", "what", "found"), rows, output)
    say("Nothing was written. `mpsearch run --budget 15MB` is the example that needs nothing else.")


def _versions() -> list[tuple[str, str, str]]:
    found = [("versions", "mpsearch", __version__), ("versions", "Python", platform.python_version())]
    for package in _PACKAGES:
        try:
            found.append(("versions", package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            found.append(("versions", package, f"NOT INSTALLED: pip install {package}"))
    return found


def _devices() -> list[tuple[str, str, str]]:
    import torch

    from mpsearch.accelerator import find_device
    from mpsearch.hardware.device import identity

    memory = psutil.virtual_memory()
    free = shutil.disk_usage(".").free
    rows = [
        ("device", "processor", str(identity())),
        ("device", "memory", f"{format_bytes(memory.total)}, {format_bytes(memory.available)} free"),
        ("device", "disk here", f"{format_bytes(free)} free"),
        ("device", "--device auto is", str(find_device("auto"))),
    ]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        of = torch.cuda.get_device_properties(index)
        about = f"{of.name}, {format_bytes(of.total_memory)}, compute capability {of.major}.{of.minor}"
        rows.append(("device", f"cuda:{index}", about))
    if not count:
        why = "none found" if torch.version.cuda else "this torch is built without CUDA"
        rows.append(("device", "NVIDIA GPU", why))
    return rows


def _measurable() -> list[tuple[str, str, str]]:
    """What a budget may limit here."""
    import torch

    card = torch.cuda.is_available() and importlib.util.find_spec("triton") is not None
    openvino = importlib.util.find_spec("openvino") is not None
    pinned = hasattr(os, "sched_setaffinity")
    linux = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    gpu = "yes, with --target triton-cuda" if card else "no: needs an NVIDIA GPU and the extra cuda"
    yes = "yes" if pinned else "yes, less steadily: this system pins no process to a core"
    return [
        ("measured here", "size, bit operations", "yes, with every target"),
        ("measured here", "latency in ONNX Runtime", yes),
        ("measured here", "latency in OpenVINO", yes if openvino else "no: needs the extra openvino"),
        ("measured here", "latency and energy of a GPU", gpu),
        ("measured here", "peak memory in ONNX Runtime", "yes" if linux else "no: needs Linux with glibc"),
    ]


def _extras() -> list[tuple[str, str, str]]:
    rows = []
    for extra, (module, adds) in EXTRAS.items():
        here = importlib.util.find_spec(module) is not None
        state = "installed" if here else f"pip install 'mpsearch[{extra}]'"
        rows.append(("extras", extra, f"{state}; {adds}"))
    return rows


def _speed() -> list[tuple[str, str, str]]:
    """A product of matrices and a copy, best of three: what the plan of a run is made from."""
    import torch

    a = torch.rand(_SIDE, _SIDE)
    vector = torch.rand(_FLOATS)
    into = torch.empty_like(vector)
    multiply = min(_timed(lambda: torch.mm(a, a)) for _ in range(4)) / _SIDE**3
    copy = min(_timed(lambda: into.copy_(vector)) for _ in range(3)) / vector.nbytes
    threads = torch.get_num_threads()
    image = f"{_RESNET18_MACS * multiply * 1e3:.0f} ms at least"
    return [
        ("speed", "float32 products", f"{2e-9 / multiply:.0f} GFLOP/s, {threads} threads"),
        ("speed", "copies of memory", f"{1e-9 / copy:.1f} GB/s"),
        ("speed", "a pass of ResNet18, 224 pixels", f"{image} for an image"),
    ]


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
