"""Files as trtexec writes them, of an engine that is told layer by layer."""

import json
import os
from pathlib import Path

import pytest

FORMATS = {
    "int8": "Thirty-two wide channel vectorized row major Int8 format",
    "fp16": "Channel major FP16 format where channel % 8 == 0",
    "fp32": "Row major linear FP32",
}
LOG = """[I] === Device Information ===
[I] Selected Device: NVIDIA H200
[I] Compute Capability: 9.0
[I] SMs: 132
[I] Device Global Memory: 143771 MiB
[I] TensorRT version: 10.9.0
"""


def tensor(name, dims, dtype):
    return {"Name": name, "Dimensions": list(dims), "Format/Datatype": FORMATS[dtype]}


def conv(name, reads, writes, channels=8, *, metadata=None, residual=None, **about):
    """A 3 x 3 convolution; `reads` and `writes` are (tensor, dims, type)."""
    size = channels * reads[1][1] * 9
    held = "Int8" if reads[2] == "int8" else "Half" if reads[2] == "fp16" else "Float"
    return {
        "Name": name,
        "LayerType": "CaskConvolution",
        "Inputs": [tensor(*reads), *([tensor(*residual)] if residual else [])],
        "Outputs": [tensor(*writes)],
        "ParameterType": "Convolution",
        "Kernel": [3, 3],
        "PrePadding": [1, 1],
        "PostPadding": [1, 1],
        "Stride": [1, 1],
        "Dilation": [1, 1],
        "OutMaps": channels,
        "Groups": 1,
        "Weights": {"Type": held, "Count": size},
        "Bias": {"Type": "Float", "Count": channels},
        "HasBias": 1,
        "TacticName": "sm90_xmma_fprop_implicit_gemm",
        **({"Metadata": metadata} if metadata else {}),
        **about,
    }


def other(name, kind, reads, writes, **about):
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [tensor(*reads)],
        "Outputs": [tensor(*writes)],
        "ParameterType": kind,
        **about,
    }


def write_build(folder, name, layers, times_us, whole_us, *, count=100, log=LOG):
    """`<name>.layers.json`, `.profile.json`, `.times.json` and `.log`; `times_us` has one time for each layer."""
    folder.mkdir(parents=True, exist_ok=True)
    profile = [{"count": count}]
    for layer, us in zip(layers, times_us, strict=True):
        ms = us / 1e3
        entry = {"timeMs": ms * count, "averageMs": ms, "medianMs": ms, "percentage": 1.0}
        profile.append({"name": layer["Name"], **entry})
    spread = [whole_us * (1 + 0.001 * (i % 5 - 2)) for i in range(100)]
    held = {
        ".layers.json": {"Layers": layers, "Bindings": ["x", "y"]},
        ".profile.json": profile,
        ".times.json": [{"computeMs": us / 1e3, "latencyMs": us / 1e3} for us in spread],
    }
    for end, data in held.items():
        (folder / f"{name}{end}").write_text(json.dumps(data))
    (folder / f"{name}.log").write_text(log)


def edit(path, change):
    """Change the JSON of a file in place."""
    data = json.loads(path.read_text())
    changed = change(data)
    path.write_text(json.dumps(changed if isinstance(changed, dict | list) else data))


def real_files(*parts):
    """A folder of real exports of NVIDIA's engine explorer, or a skip."""
    default = Path(__file__).parents[3] / "shared" / "assets"
    folder = Path(os.environ.get("MPSEARCH_ASSETS", default)).parent / "gpu_latency" / "trex"
    folder = folder.joinpath(*parts)
    if not folder.is_dir():
        pytest.skip(f"no real profiles in {folder}; set MPSEARCH_ASSETS to the folder beside gpu_latency/")
    return folder
