"""Measures the latency tables that are shipped for a CPU: every unit shape of the models of
benchmarks/gpu_shapes.json, in every kernel of a backend.

Run: python benchmarks/cpu_tables.py [--backends ort-cpu openvino-cpu] [--batches 1 8] [--models resnet18 ...]
on a quiet machine; one thread, process CPU time. Rows go to latency_tables/ as they are measured, so the
script resumes; `mpsearch profile --check latency_tables` tells whether they fit a machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mpsearch.hardware import BACKENDS, Backend, LatencyTable, identity, profile
from mpsearch.problem import Candidate, Layer

ROOT = Path(__file__).resolve().parent.parent
KERNELS = tuple(Candidate.parse(text) for text in ("float", "W8A8", "W7A8", "W8A16", "W4A16"))


def kernels(backend: Backend, layer: Layer) -> tuple[Candidate, ...]:
    """The candidates of a unit that have kernels of their own."""
    return tuple(c for c in KERNELS if backend.supports(layer, c).kernel == c)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backends", nargs="+", default=["ort-cpu", "openvino-cpu"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--folder", type=Path, default=ROOT / "latency_tables")
    parser.add_argument("--seconds", type=float, default=0.25, help="Of measuring for each row.")
    given = parser.parse_args()
    shapes = json.loads(Path(__file__).with_name("gpu_shapes.json").read_text())
    for name in given.backends:
        backend, device = BACKENDS.create(name), identity()
        table = LatencyTable.open(given.folder, device, backend.name, backend.version, backend.threads)
        for batch in given.batches:
            for model in given.models or shapes:
                layers = [Layer.from_json(layer) for layer in shapes[model]]
                choices = [kernels(backend, layer) for layer in layers]
                profile(
                    layers,
                    choices,
                    backend,
                    table,
                    given.folder,
                    batch=batch,
                    seconds=given.seconds,
                    isolate=True,
                )
                usable = sum(row.usable for row in table.rows.values())
                print(
                    f"{name}, batch {batch}, {model}: {len(table.rows)} rows in all, {usable} of them usable",
                    flush=True,
                )


if __name__ == "__main__":
    main()
