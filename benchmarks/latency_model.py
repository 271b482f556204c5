"""Predicted against measured latency of whole models at random mixed assignments, and isolated sums beside
it.

    OMP_NUM_THREADS=1 python benchmarks/latency_model.py [--models resnet18 deit_tiny_patch16_224] [--runs 24]
    [--fit 24] [--folder DIR] [--report FILE]

Two sets of assignments are drawn with different seeds: one fits the coefficients, the other only tests them.
Weights are random: they do not decide a latency. What is measured is kept in the folder's latency table, so
that an interrupted benchmark goes on. One thread, process CPU time.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mpsearch.deploy.packed import PackedLayout
from mpsearch.deploy.targets import TARGETS, Job
from mpsearch.deploy.wiring import find_wires
from mpsearch.hardware import BACKENDS, Backend, LatencyTable, identity, profile
from mpsearch.hardware.bench import CpuBench
from mpsearch.hardware.cost_fit import fit_cost_model
from mpsearch.hardware.cost_model import Unit, fit_error
from mpsearch.hardware.qdq import OPSET
from mpsearch.hardware.whole import WholeModel, measure_models, mixed_kernels
from mpsearch.hardware.wires import model_key
from mpsearch.models import analyze, find_foldable, fold_batch_norm, load_model, trace_model
from mpsearch.problem import Candidate, Problem
from mpsearch.reconstruct import calibrate

FLOAT = Candidate.parse("float")


class Subject:
    """A timm model with random weights, its problem in float and the backend's widest integers, and what
    builds its whole graphs.
    """

    def __init__(self, name: str, backend: Backend) -> None:
        torch.manual_seed(0)
        loaded = load_model(name)
        self.example = torch.randn(2, 3, 224, 224)
        pairs = find_foldable(trace_model(loaded.module, self.example[:1]), loaded.module)
        module = fold_batch_norm(loaded.module, pairs).eval()
        graph = analyze(module, self.example[:1])
        self.name, self.units = name, [layer.name for layer in graph.layers if layer.weight_shape]
        choices = tuple(
            (FLOAT, widest(backend, layer)) if layer.weight_shape else (FLOAT,) for layer in graph.layers
        )
        self.target = TARGETS.create(backend.name)
        self.problem = Problem(graph.layers, choices)
        self.calibration = calibrate(module, self.units, [self.example])
        layout = PackedLayout.of(module, self.units, loaded.source, pairs, loaded.data_config)
        self.job = Job(module, layout, {}, self.calibration, self.example[:1])
        self.wires = find_wires(self.job.float_onnx(OPSET), graph.layers)
        self.key = model_key(name, graph.layers, self.wires)

    def build(self, kernels):
        states = {
            layer.name: self.calibration.state(layer.name, Candidate.parse(k))
            for layer, k in zip(self.problem.layers, kernels, strict=True)
            if layer.weight_shape
        }
        with tempfile.TemporaryDirectory() as folder:
            job = replace(self.job, states=states)
            self.target.write(job, Path(folder))
            run, quantized = self.target.one_call(job, Path(folder), 1)
        return WholeModel(run, quantized == sum(k != "float" for k in kernels))


def widest(backend, layer):
    """The integer candidate of most weight bits that the backend has a kernel for."""
    return next(
        c for c in (Candidate(bits, 8) for bits in range(8, 1, -1)) if backend.supports(layer, c).kernel == c
    )


def gather(subject, backend, table, folder, count, seed):
    """The whole-model runs of one seed, measured where the table lacks them."""
    kernels = [[str(c) for c in row] for row in subject.problem.candidates]
    wanted = mixed_kernels(kernels, subject.problem.ties, count, seed)
    lacking = [k for k in wanted if (subject.key, 1, k) not in table.models]
    for run in measure_models(subject.key, lacking, subject.build, CpuBench(seconds=1.0), seed=seed):
        table.models[run.key] = run
        table.save(folder)
        passes = ", ".join(f"{p / 1e3:.2f}" for p in run.passes_us)
        print(
            f"{subject.name} seed {seed}: {passes} ms, {run.status}, anchor {run.anchor_us:.0f} us",
            file=sys.stderr,
        )
    return [table.models[subject.key, 1, k] for k in wanted]


def units_of(subject, table, backend):
    """Rows of the table, as the cost model takes them."""
    found = []
    for layer, row in zip(subject.problem.layers, subject.problem.candidates, strict=True):
        found.append(
            Unit(
                {str(c): table.get(layer, c).median_us * layer.calls for c in row},
                {str(c): backend.packed_bytes(layer, c) for c in row},
            )
        )
    return found


def compare(subject, table, backend, fitted, tested):
    """Lines of the report: isolated sums, sums and a constant, and the cost model, on runs that it was not
    fitted to.
    """
    units, known = units_of(subject, table, backend), {run.kernels for run in fitted}
    tested = [run for run in tested if run.kernels not in known and run.status != "fallback"]
    sums = np.array(
        [
            math.fsum(u.rows_us[k] for u, k in zip(units, run.kernels, strict=True))
            for run in (*fitted, *tested)
        ]
    )
    constant = float(np.median([run.latency_us - s for run, s in zip(fitted, sums, strict=False)]))
    model = fit_cost_model(units, subject.wires, fitted)
    sums = sums[len(fitted) :]
    predictions = {
        "isolated rows, summed": sums,
        "isolated rows, summed, and a constant": sums + constant,
        "cost model": np.array([model.predict(run.kernels) for run in tested]),
    }
    errors = {label: fit_error(p, tested) for label, p in predictions.items()}
    aa = errors["cost model"]
    spread = (
        f"{min(r.latency_us for r in tested) / 1e3:.1f} to {max(r.latency_us for r in tested) / 1e3:.1f} ms"
    )
    head = f"{subject.name}, {len(tested)} assignments, {spread}"
    lines = [
        f"| {head} | {label} | {e.mape:.1%} | {e.worst:.1%} | {e.tau:.2f} |" for label, e in errors.items()
    ]
    lines.append(f"| {head} | the same measured twice (A/A) | {aa.aa_mape:.1%} | | {aa.aa_tau:.2f} |")
    own, what = model.error, f"cost model, cross-validated on the {len(fitted)} runs it is fitted to"
    lines.append(f"| {head} | {what} | {own.mape:.1%} | {own.worst:.1%} | {own.tau:.2f} |")
    return lines


def report(path, lines, backend, device):
    """Write the results with the command and the machine."""
    load = " ".join(f"{v:.1f}" for v in os.getloadavg())
    text = [
        f"# Predicted against measured latency of whole models: {backend.name} {backend.version}",
        "",
        f"`OMP_NUM_THREADS=1 python {' '.join(sys.argv)}` on {device};",
        f"one thread, process CPU time, two interleaved passes; load of the machine at the end {load}.",
        (
            "Assignments are random mixes of float and the backend's widest integers (W8A8; W7A8 for "
            "OpenVINO without VNNI): two thirds independent draws, one"
        ),
        "third contiguous runs. Random weights, batch 1.",
        (
            "The coefficients were fitted to other assignments (seed 0) than these (seed 1). MAPE: mean of "
            "|predicted - measured| / measured, measured being the"
        ),
        (
            "mean of the two passes; A/A: mean of |first - second| / mean; tau: Kendall's. Raw runs are in "
            "the table beside this file."
        ),
        "",
        "| model | prediction | MAPE | worst | tau |",
        "|---|---|---:|---:|---:|",
        *lines,
        "",
    ]
    path.write_text("\n".join(text))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["resnet18", "deit_tiny_patch16_224"])
    parser.add_argument("--backend", default="ort-cpu")
    parser.add_argument("--runs", type=int, default=24)
    parser.add_argument("--fit", type=int, default=24)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/results/latency_model"))
    parser.add_argument("--report", type=Path, default=Path("benchmarks/results/latency_model.md"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    backend, device = BACKENDS.create(given.backend), identity()
    lines = []
    table = LatencyTable.open(given.folder, device, backend.name, backend.version, 1)
    for name in given.models:
        subject = Subject(name, backend)
        print(name, len(subject.units), "units", subject.wires, file=sys.stderr)
        profile(
            subject.problem.layers,
            subject.problem.candidates,
            backend,
            table,
            given.folder,
            on_row=lambda *a: print(*a, file=sys.stderr),
        )
        fitted = gather(subject, backend, table, given.folder, given.fit, 0)
        tested = gather(
            subject, backend, table, given.folder, given.runs + 2, 1
        )  # the two uniform ones are in both
        lines += compare(subject, table, backend, [r for r in fitted if r.status != "fallback"], tested)
        report(given.report, lines, backend, device)


if __name__ == "__main__":
    main()
