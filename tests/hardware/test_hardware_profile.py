"""Only missing rows are measured, each shape once, and a row that is not what was asked is never a
latency.
"""

import math
import os
import signal
from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest

from mpsearch.hardware import (
    BACKENDS,
    Backend,
    Cell,
    DeviceIdentity,
    LatencyTable,
    Measured,
    Support,
    Timing,
    latency_costs,
    profile,
)
from mpsearch.hardware.bench import CpuBench
from mpsearch.hardware.predict import RowPredictor
from mpsearch.problem import Candidate, ConvAttributes, Layer

FLOAT, W8A8, W4A8, W2A2 = Candidate.parse("float"), Candidate(8, 8), Candidate(4, 8), Candidate(2, 2)
HERE = DeviceIdentity("CPU one", "x86_64", 2, (), "Linux")
CONV = Layer("conv", "conv2d", (8, 4, 3, 3), ((1, 4, 6, 6),), (1, 8, 4, 4), 1, "b", conv=ConvAttributes())
TWIN = replace(CONV, name="twin", calls=3)
LINEAR = Layer("fc", "linear", (5, 8), ((1, 8),), (1, 5), 40, "b", bias=True)
MATMUL = Layer("qk", "matmul", (), ((1, 2, 3, 4), (1, 2, 4, 3)), (1, 2, 3, 3), 1, "b")


@dataclass(frozen=True)
class Recorder(Backend):
    """Builds cells that do nothing, notes them, and may fail at one of them."""

    name: ClassVar[str] = "recorder"
    version: ClassVar[str] = "1"
    threads: int = 1
    as_asked: bool = True
    relative_error: float = 0.0
    stop_at: int = 10**9
    fails: str = ""
    built: list = field(default_factory=list)

    def supports(self, layer, candidate):
        if layer.op == "matmul" and not candidate.is_float:
            return Support("no", "float only", None)
        if candidate in (FLOAT, W8A8):
            return Support("ok", "", candidate)
        return Support("storage-only", "", W8A8)

    def build(self, layer, candidate, batch):
        if len(self.built) == self.stop_at:
            raise KeyboardInterrupt
        self.built.append((layer.name, str(candidate), batch))
        if self.fails == str(candidate):
            raise RuntimeError("no such kernel\nat line 1")
        return Cell(lambda: None, ("Op",), self.as_asked, self.relative_error, 0.1)

    def bench(self, seconds=0.25):
        return CpuBench(self.threads, seconds)


@dataclass(frozen=True)
class Dying(Backend):
    """Its integer kernel ends the process."""

    name: ClassVar[str] = "recorder"
    version: ClassVar[str] = "1"
    threads: int = 1

    def supports(self, layer, candidate):
        return Support("ok", "", candidate)

    def build(self, layer, candidate, batch):
        if candidate == W8A8:
            os.kill(os.getpid(), signal.SIGSEGV)
        return Cell(lambda: sum(range(3000)), ("Op",), True, 0.0, 0.1)

    def bench(self, seconds=0.25):
        return CpuBench(self.threads, seconds)


@pytest.fixture(autouse=True)
def steady(monkeypatch):
    """What the bench finds of each cell, in turns; a machine that holds still if a test says nothing."""
    readings = []

    def measure(self, cell):
        cell.run()
        median, iqr, held = readings.pop(0) if readings else (5.0, 0.1, True)
        return Measured(Timing(median, iqr, 14, "cpu", median, (median, median)), 250.0, held)

    monkeypatch.setattr("mpsearch.hardware.bench.CpuBench.measure", measure)
    return readings


def empty():
    return LatencyTable(HERE, "recorder", "1", 1)


def measure(backend, layers, candidates, table, folder, **options):
    return profile(layers, [candidates] * len(layers), backend, table, folder, seconds=0.001, **options)


def test_identical_shapes_and_shared_kernels_are_measured_once(tmp_path):
    backend, seen = Recorder(), []
    measure(
        backend,
        [CONV, TWIN, LINEAR],
        [FLOAT, W8A8, W4A8, W2A2],
        empty(),
        tmp_path,
        on_row=lambda *a: seen.append(a),
    )
    assert backend.built == [("conv", "float", 1), ("conv", "W8A8", 1), ("fc", "float", 1), ("fc", "W8A8", 1)]
    assert [(done, total) for done, total, _ in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert seen[-1][2] == "fc W8A8"


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        measure(Recorder(stop_at=2), [CONV, LINEAR], [FLOAT, W8A8], empty(), tmp_path)
    table, backend = LatencyTable.open(tmp_path, HERE, "recorder", "1", 1), Recorder()
    assert len(table.rows) == 2
    measure(backend, [CONV, LINEAR], [FLOAT, W8A8], table, tmp_path)
    assert backend.built == [("fc", "float", 1), ("fc", "W8A8", 1)]
    again = Recorder()
    measure(
        again, [CONV, LINEAR], [FLOAT, W8A8], LatencyTable.open(tmp_path, HERE, "recorder", "1", 1), tmp_path
    )
    assert again.built == []


def test_a_row_that_spreads_is_measured_again_after_the_others(tmp_path, steady):
    steady += [(9.0, 5.0, False), (5.0, 0.1, True), (6.0, 0.1, True)]
    backend = Recorder()
    table = measure(backend, [CONV], [FLOAT, W8A8], empty(), tmp_path)
    assert [kernel for _, kernel, _ in backend.built] == ["float", "W8A8", "float"]
    assert (table.get(CONV, FLOAT).median_us, table.get(CONV, FLOAT).status) == (6.0, "ok")


def test_after_three_tries_the_steadiest_is_kept_and_called_unstable(tmp_path, steady):
    steady += [(9.0, 5.0, False), (7.0, 1.0, False), (8.0, 4.0, False)]
    table = measure(Recorder(), [CONV], [FLOAT], empty(), tmp_path)
    assert (table.get(CONV, FLOAT).median_us, table.get(CONV, FLOAT).status) == (7.0, "unstable")
    costs = latency_costs([CONV], [[FLOAT]], Recorder(), table)
    assert (costs.rows, costs.unstable) == (((7.0,),), (("conv", "float"),))


def test_a_kernel_that_raises_is_a_crash_and_costs_one_row(tmp_path):
    backend = Recorder(fails="W8A8")
    table = measure(backend, [LINEAR], [FLOAT, W8A8], empty(), tmp_path)
    assert (table.get(LINEAR, FLOAT).status, table.get(LINEAR, W8A8).status) == ("ok", "crash")
    assert table.get(LINEAR, W8A8).executed == "RuntimeError: no such kernel"
    assert latency_costs([LINEAR], [[W8A8]], backend, table).rows == ((math.inf,),)


def test_a_process_that_dies_costs_one_row(tmp_path):
    """The child is ended by a signal in the middle of a cell; another takes its place."""
    table = measure(Dying(), [LINEAR], [W8A8, FLOAT], empty(), tmp_path, isolate=True)
    assert table.get(LINEAR, W8A8).status == "crash" and "SIGSEGV" in table.get(LINEAR, W8A8).executed
    assert table.get(LINEAR, FLOAT).usable and table.get(LINEAR, FLOAT).rounds


def test_a_part_of_the_rows_is_measured_and_the_rest_predicted_and_flagged(tmp_path):
    layers = [
        replace(
            LINEAR, name=f"l{n}", weight_shape=(8 * n, 64), input_shapes=((1, 64),), output_shape=(1, 8 * n)
        )
        for n in range(1, 15)
    ]
    backend, seen = Recorder(), []
    table = measure(
        backend, layers, [FLOAT], empty(), tmp_path, at_most=9, on_row=lambda *a: seen.append(a[:2])
    )
    assert len(backend.built) == len(table.rows) == 9 and seen == [(i, 9) for i in range(1, 10)]
    missing = {layer.name for layer in layers} - {name for name, *_ in backend.built}
    plain = latency_costs(layers, [[FLOAT]] * 14, backend, table)
    assert {name for name, *_ in plain.unusable} == missing and not plain.estimated
    costs = latency_costs(layers, [[FLOAT]] * 14, backend, table, predictor=RowPredictor(table.rows))
    assert {name for name, *_ in costs.predicted} == missing and costs.estimated and costs.unusable == ()
    assert all(row == (pytest.approx(5.0, rel=0.05),) for row in costs.rows)
    assert len(table.rows) == 9


def test_another_batch_is_another_cell(tmp_path):
    backend = Recorder()
    table = measure(backend, [LINEAR], [W8A8], empty(), tmp_path)
    measure(backend, [LINEAR], [W8A8], table, tmp_path, batch=4)
    assert backend.built == [("fc", "W8A8", 1), ("fc", "W8A8", 4)]
    assert table.get(LINEAR, W8A8, 4) is not table.get(LINEAR, W8A8, 1)


def test_costs_count_every_call_and_the_kernel_that_runs(tmp_path):
    backend = Recorder()
    table = measure(backend, [CONV], [FLOAT, W8A8], empty(), tmp_path)
    costs = latency_costs([CONV, TWIN], [[FLOAT, W8A8], [W8A8, W4A8, FLOAT]], backend, table)
    once = {kernel: table.get(CONV, kernel).median_us for kernel in (FLOAT, W8A8)}
    assert costs.rows == ((once[FLOAT], once[W8A8]), (3 * once[W8A8], 3 * once[W8A8], 3 * once[FLOAT]))
    assert (costs.unusable, costs.estimated) == ((), False)


@pytest.mark.parametrize(
    ("backend", "status"),
    [(Recorder(as_asked=False), "fallback"), (Recorder(relative_error=0.5), "wrong")],
    ids=["fallback", "wrong"],
)
def test_a_row_that_is_not_what_was_asked_is_no_latency(tmp_path, backend, status):
    table = measure(backend, [LINEAR], [W8A8], empty(), tmp_path)
    assert table.get(LINEAR, W8A8).status == status
    costs = latency_costs([LINEAR], [[W8A8]], backend, table)
    assert costs.rows == ((math.inf,),)
    assert costs.unusable == (("fc", "W8A8", f"{status}: ran Op"),)


def test_a_kernel_that_gives_nan_is_wrong(tmp_path):
    table = empty()
    try:
        measure(Recorder(relative_error=math.nan), [LINEAR], [W8A8], table, tmp_path)
    finally:
        assert table.get(LINEAR, W8A8).status == "wrong"


def test_what_was_not_measured_or_cannot_run_says_so():
    costs = latency_costs([MATMUL, LINEAR], [[W8A8], [W8A8]], Recorder(), empty())
    assert costs.rows == ((math.inf,), (math.inf,))
    assert costs.unusable == (("qk", "W8A8", "float only"), ("fc", "W8A8", "not measured"))


def test_costs_of_a_foreign_table_are_estimates(tmp_path):
    path = tmp_path / measure(Recorder(), [LINEAR], [W8A8], empty(), tmp_path).file_name
    foreign = LatencyTable.load(path, replace(HERE, cores=64), allow_estimate=True)
    assert latency_costs([LINEAR], [[W8A8]], Recorder(), foreign).estimated


def test_onnx_runtime_fills_a_table_with_usable_rows(tmp_path):
    backend = BACKENDS.create("ort-cpu")
    layers, choices = [CONV, LINEAR, MATMUL], [[FLOAT, W8A8], [FLOAT, W8A8, W4A8], [FLOAT]]
    table = LatencyTable.open(tmp_path, HERE, backend.name, backend.version, 1)
    profile(layers, choices, backend, table, tmp_path, seconds=0.005)
    costs = latency_costs(
        layers, choices, backend, LatencyTable.open(tmp_path, HERE, backend.name, backend.version, 1)
    )
    assert costs.unusable == () and all(0 < us < math.inf for row in costs.rows for us in row)
    assert costs.rows[1][1] == costs.rows[1][2]
    assert (
        "QLinearConv" in table.get(CONV, W8A8).executed
        and "MatMulIntegerToFloat" in table.get(LINEAR, W8A8).executed
    )
    assert table.get(CONV, W8A8).weight_bytes == 8 * 4 * 9 + 5 * 8


def test_a_cell_that_crashed_is_measured_again_and_one_that_was_measured_is_not(tmp_path):
    table = measure(Recorder(fails="W8A8"), [LINEAR], [FLOAT, W8A8], empty(), tmp_path)
    again = Recorder(fails="W8A8")
    held = LatencyTable.open(tmp_path, HERE, "recorder", "1", 1)
    measure(again, [LINEAR], [FLOAT, W8A8], held, tmp_path)
    assert again.built == [("fc", "W8A8", 1)] and held.get(LINEAR, W8A8).status == "crash"
    healed = Recorder()
    measure(healed, [LINEAR], [FLOAT, W8A8], LatencyTable.open(tmp_path, HERE, "recorder", "1", 1), tmp_path)
    assert healed.built == [("fc", "W8A8", 1)]
    after = LatencyTable.open(tmp_path, HERE, "recorder", "1", 1)
    assert after.get(LINEAR, W8A8).status == "ok" and after.get(LINEAR, FLOAT) == table.get(LINEAR, FLOAT)
