"""Predicted against measured latency of whole models at random mixed assignments, and isolated sums beside it.

    OMP_NUM_THREADS=1 python benchmarks/latency_model.py [--models resnet18 deit_tiny_patch16_224] [--runs 24] [--fit 24] [--folder DIR] [--report FILE]

Two sets of assignments are drawn with different seeds: one fits the coefficients, the other only tests them. Weights are random: they do not decide a latency.
What is measured is kept in the folder's latency table, so that an interrupted benchmark goes on. One thread, process CPU time.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from mpsearch.data import ImageSet  # noqa: F401
from mpsearch.deploy.onnx import export_float, quantize_onnx
from mpsearch.deploy.wiring import find_wires
from mpsearch.hardware import BACKENDS, LatencyTable, identity, profile
from mpsearch.hardware.backends.ort_cpu import executed, session
from mpsearch.hardware.whole import WholeModel, measure_models, mixed_kernels
from mpsearch.hardware.wires import model_key
from mpsearch.models import analyze, find_foldable, fold_batch_norm, load_model, trace_model
from mpsearch.problem import Candidate, Problem
from mpsearch.reconstruct import calibrate

FLOAT, W8A8 = Candidate.parse("float"), Candidate(8, 8)
_INTEGER = {"QLinearConv", "MatMulIntegerToFloat"}


class Subject:
    """A timm model with random weights, its problem in float and W8A8, and what builds its whole graphs."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        loaded = load_model(name)
        self.example = torch.randn(2, 3, 224, 224)
        pairs = find_foldable(trace_model(loaded.module, self.example[:1]), loaded.module)
        module = fold_batch_norm(loaded.module, pairs).eval()
        graph = analyze(module, self.example[:1])
        self.name, self.units = name, [layer.name for layer in graph.layers if layer.weight_shape]
        choices = tuple((FLOAT, W8A8) if layer.weight_shape else (FLOAT,) for layer in graph.layers)
        self.problem = Problem(graph.layers, choices)
        self.calibration = calibrate(module, self.units, [self.example])
        self.float_onnx = export_float(module, self.example)
        self.wires = find_wires(self.float_onnx, graph.layers)
        self.key = model_key(name, graph.layers, self.wires)

    def build(self, kernels):
        states = {
            layer.name: self.calibration.state(layer.name, Candidate.parse(k))
            for layer, k in zip(self.problem.layers, kernels, strict=True)
            if layer.weight_shape
        }
        data = quantize_onnx(self.float_onnx, states, self.calibration).SerializeToString()
        live = session(data)
        feeds = {live.get_inputs()[0].name: self.example[:1].numpy()}
        ran = sum(op in _INTEGER for op in executed(data))
        return WholeModel(lambda: live.run(None, feeds), ran == sum(k != "float" for k in kernels))


def gather(subject, backend, table, folder, count, seed):
    """The whole-model runs of one seed, measured where the table lacks them."""
    kernels = [[str(c) for c in row] for row in subject.problem.candidates]
    wanted = mixed_kernels(kernels, subject.problem.ties, count, seed)
    lacking = [k for k in wanted if (subject.key, 1, k) not in table.models]
    for run in measure_models(subject.key, lacking, subject.build, seconds=1.0, seed=seed):
        table.models[run.key] = run
        table.save(folder)
        print(
            f"{subject.name} seed {seed}: {run.latency_us / 1e3:.2f} ms {[round(p / 1e3, 2) for p in run.passes_us]} {run.status} anchor {run.anchor_us:.0f} us",
            file=sys.stderr,
        )
    return [table.models[subject.key, 1, k] for k in wanted]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "deit_tiny_patch16_224"])
    parser.add_argument("--backend", default="ort-cpu")
    parser.add_argument("--runs", type=int, default=24)
    parser.add_argument("--fit", type=int, default=24)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/results/latency_model"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    backend, device = BACKENDS.create(given.backend), identity()
    table = LatencyTable.open(given.folder, device, backend.name, backend.version, 1)
    for name in given.models:
        subject = Subject(name)
        print(name, len(subject.units), "units", subject.wires, file=sys.stderr)
        profile(subject.problem.layers, subject.problem.candidates, backend, table, given.folder, on_row=lambda *a: print(*a, file=sys.stderr))
        gather(subject, backend, table, given.folder, given.fit, 0)
        gather(subject, backend, table, given.folder, given.runs, 1)


if __name__ == "__main__":
    main()
