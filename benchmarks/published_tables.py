"""Makes the tables of latency_tables/published from what others have measured on GPUs and published.

Run: python benchmarks/published_tables.py FOLDER
FOLDER holds `trex/`, the folder tools/experimental/trt-engine-explorer of NVIDIA/TensorRT, and
`aiconfigurator/`, the folder src/aiconfigurator/systems/data of ai-dynamo/aiconfigurator, each at the commit
below (the GEMM tables need pyarrow). Facts alone are taken over: times, shapes, sample counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpsearch.hardware import LatencyTable
from mpsearch.hardware.rows import Row, row_key
from mpsearch.hardware.trtexec import Build, Network, account, card_identity, import_builds, read_builds
from mpsearch.hardware.trtexec.shapes import unit_layer
from mpsearch.pipeline import RunConfig
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pipeline.steps.network import network_of
from mpsearch.problem import Layer

ROOT = Path(__file__).resolve().parent.parent
TREX = {
    "repository": "https://github.com/NVIDIA/TensorRT",
    "commit": "93842ac9",
    "licence": "Apache-2.0",
    "path": "tools/experimental/trt-engine-explorer/",
}
CONFIGURATOR = {
    "repository": "https://github.com/ai-dynamo/aiconfigurator",
    "commit": "095f58a5",
    "licence": "Apache-2.0",
    "path": "src/aiconfigurator/systems/data/",
}
CARDS = {
    "a100_sxm/gemm/trtllm/1.0.0": ("NVIDIA A100-SXM4-80GB", 108, 80, "8.0"),
    "l40s/gemm/trtllm/1.0.0": ("NVIDIA L40S", 142, 48, "8.9"),
    "h200_sxm/gemm/trtllm/1.2.0rc5": ("NVIDIA H200", 132, 141, "9.0"),
}
KERNELS = {"bfloat16": "float", "sq": "W8A8", "int8_wo": "W8A16", "int4_wo": "W4A16"}
BYTES = {"bfloat16": 2.0, "sq": 1.0, "int8_wo": 1.0, "int4_wo": 0.5}
TOKENS = (1, 16, 64, 192, 512, 2048, 8192)
WIDTHS = (768, 1024, 2048, 3072, 4096, 8192)
TRUSTED_US = 50.0
"""Below it the two methods differ by launches, and a row is marked `unstable`."""
DATE = "published"
ENGINES = (
    "trtexec --separateProfileRun --useCudaGraph --noDataTransfers --useSpinWait, exported for NVIDIA's engine "
    "explorer, Q/DQ models built with the precision flags of TensorRT 8. Rows are of ONE profiled iteration; "
    "whole-model runs are medians of the two halves of the timing run."
)
GEMMS = (
    "One number for each shape: bfloat16 by CUDA graph replays over several copies of the weight, integer "
    "formats by one reading of TensorRT-LLM's plugin profiler, without quantising the input and without bias. "
    "Ratios can be trusted from about 50 us up; shorter rows are marked unstable."
)


def samples_of(builds: Sequence[Build]) -> str:
    """`fp16 3468, ...`: whole-model times of each build."""
    return ", ".join(f"{b.name.partition('/')[0]} {len(b.times_us)}" for b in builds)


def engine_table(folder: Path, where: str, network: Network) -> LatencyTable:
    """ResNet18 on an A100, or ResNet50 on an RTX 3090."""
    builds = read_builds(folder / "trex" / where)
    table = import_builds(builds, network, date=DATE, allow_estimate=True).table
    samples = f"1 iteration of each layer; whole-model times: {samples_of(builds)}"
    about = {**TREX, "path": TREX["path"] + where, "method": ENGINES, "samples": samples}
    return replace(table, published=about)


def resnet18() -> Network:
    """The units and tensors of timm's ResNet18."""
    few = {f"{what}_images": 1 for what in ("calibration", "search", "evaluation")}
    config = RunConfig(("8bits",), model="resnet18", data="digits", pretrained=False, target="packed", **few)
    return network_of(load_subject(config, Silent()))


def resnet50(folder: Path, where: str) -> Network:
    """ResNet50 in its first form (the strides in the 1 x 1 convolutions), by the shapes of its fp16 engine."""
    fp16 = next(b for b in read_builds(folder / "trex" / where) if b.name.startswith("fp16"))
    shapes = [unit_layer(entry.layer) for entry in account(fp16.layers).of("unit")]
    layers = [replace(shape, name=f"unit{i}") for i, shape in enumerate(shapes) if shape is not None]
    return Network("resnet50-v1", tuple(layers), (), {})


def gemm_table(folder: Path, where: str) -> LatencyTable:
    """Linear layers by tokens, inputs and outputs."""
    import pyarrow.parquet

    data = pyarrow.parquet.read_table(folder / "aiconfigurator" / where / "gemm_perf.parquet").to_pylist()
    name, processors, gibibytes, capability = CARDS[where]
    device = card_identity(name, processors, gibibytes * 2.0**30, capability)
    held = [gemm_row(found) for found in data if is_kept(found)]
    samples = f"1 number for each of {len(held)} cells (of {len(data)} published)"
    about = {**CONFIGURATOR, "path": CONFIGURATOR["path"] + where, "method": GEMMS, "samples": samples}
    rows = {(row.key, row.kernel): row for row in held}
    version = f"trtllm-{where.rpartition('/')[2]}"
    return LatencyTable(device, "tensorrt", version, 1, rows, method=GEMMS, published=about)


def is_kept(found: dict[str, Any]) -> bool:
    """A grid that is coarse enough for a repository."""
    return (
        found["gemm_dtype"] in KERNELS
        and found["m"] in TOKENS
        and found["n"] in WIDTHS
        and found["k"] in WIDTHS
    )


def gemm_row(found: dict[str, Any]) -> Row:
    """The row of a linear layer; of `kernel` float its bfloat16."""
    m, n, k = (int(found[axis]) for axis in "mnk")
    kind, us = found["gemm_dtype"], 1e3 * float(found["latency"])
    layer = Layer("gemm", "linear", (n, k), ((1, m, k),), (1, m, n), m * n * k, "")
    status = "ok" if us >= TRUSTED_US else "unstable"
    size = int(BYTES[kind] * n * k)
    return Row(
        row_key(layer, 1), KERNELS[kind], status, us, 0.0, 1, size, f"gemm {kind}", 0.0, DATE, clock="gpu"
    )


def main() -> None:
    """Every table, or those that the folder has the files of."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--to", type=Path, default=ROOT / "latency_tables" / "published")
    given = parser.parse_args()
    a100, rtx = "examples/pytorch/resnet/A100", "examples/tensorflow/resnet/RTX-3090"
    tables = [
        engine_table(given.folder, a100, resnet18()),
        engine_table(given.folder, rtx, resnet50(given.folder, rtx)),
        *(gemm_table(given.folder, where) for where in CARDS),
    ]
    for table in tables:
        path = table.save(given.to)
        print(f"{path}: {len(table.rows)} rows, {len(table.models)} whole engines")


if __name__ == "__main__":
    main()
