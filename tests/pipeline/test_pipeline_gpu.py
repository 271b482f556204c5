"""Runs for `triton-cuda` with a fake card: no GPU is here, and no time or energy below is one. The kernels
themselves run in Triton's interpreter.
"""

import dataclasses
import json
from datetime import UTC, datetime
from html import unescape

import pytest
import torch
from torch import nn

import mpsearch
from mpsearch.deploy.kernel_layer import KernelLayer
from mpsearch.deploy.kernels import kernel_layers
from mpsearch.deploy.targets.triton_cuda import OneImage
from mpsearch.errors import (
    BudgetError,
    DeviceMismatchError,
    InfeasibleError,
    MpsearchError,
    OptionError,
    TableError,
)
from mpsearch.hardware import ModelRun
from mpsearch.hardware.backends import Cell
from mpsearch.hardware.backends.triton_cuda import TritonCuda
from mpsearch.hardware.cell import CellTimer, IsolatedTimer
from mpsearch.hardware.gpu import card as cards
from mpsearch.hardware.gpu import probe
from mpsearch.hardware.gpu.bench import CudaBench
from mpsearch.hardware.gpu.card import Card
from mpsearch.hardware.gpu.reading import CardState, GpuSettings
from mpsearch.hardware.table import LatencyTable
from mpsearch.hardware.whole import WholeModel, measure_models
from mpsearch.models import load_model
from mpsearch.pipeline import profile_model, run
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Silent
from mpsearch.problem import Problem
from mpsearch.report import write_report

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the fake card stands for a machine without one"
)
H200 = probe.Gpu("NVIDIA H200", (9, 0), 132, 141 * 2**30, 50 * 2**20, 227 * 2**10)
STEADY = CardState(1980, 3201, 45, 300.0)
FLOAT_US, FLOAT_MJ, OTHER_US, OTHER_MJ = 20.0, 0.40, 10.0, 0.10


def price(bits):
    """Microseconds and millijoules of a unit whose weight has so many bits; None is float."""
    return (FLOAT_US, FLOAT_MJ) if bits is None else (2.0 + bits, 0.02 + 0.03 * bits)


class Priced:
    """A cell that costs what it says."""

    def __init__(self, bits):
        self.price = price(bits)

    def __call__(self):
        return None


def priced(bits):
    return Cell(Priced(bits), ("kernel",), True, 0.0, 0.1, 100, lambda: Priced(bits))


def price_of(call):
    if isinstance(call, Priced):
        return call.price
    assert isinstance(call, OneImage)
    layers = [m for m in call.module.modules() if isinstance(m, KernelLayer | nn.Conv2d | nn.Linear)]
    prices = [price(m.unit.weight.bits if isinstance(m, KernelLayer) else None) for m in layers]
    return OTHER_US + sum(us for us, _ in prices), OTHER_MJ + sum(mj for _, mj in prices)


class FakeTimer:
    """A launch takes what its calls cost; nothing is run."""

    l2_bytes = 1000

    def __init__(self, monitor):
        self.monitor, self.captured = monitor, []

    def capture(self, runs):
        self.captured.append(list(runs))
        return [sum(values) for values in zip(*map(price_of, runs), strict=True)]

    def times_us(self, launch, repeats):
        return [launch[0]] * repeats

    def run_for(self, launch, seconds):
        self.monitor.drawn_mj += 10 * launch[1]
        return 10


class FakeMonitor:
    """Counts what the timer draws."""

    def __init__(self, counts=True, states=()):
        self.drawn_mj, self.counts, self.states = 0.0, counts, list(states)

    def state(self):
        return self.states.pop(0) if self.states else STEADY

    def energy_mj(self):
        return self.drawn_mj if self.counts else None

    def foreign_processes(self):
        return ()


def fake_card(**options):
    monitor = FakeMonitor(**options)
    anchor = Cell(Priced(8), ("anchor",), True, 0.0, 0.1)
    return Card(H200, FakeTimer(monitor), monitor, anchor, "cpu", GpuSettings(copies=4, repeats=5))


@pytest.fixture
def gpu(monkeypatch):
    """`gpu(**options)`: this machine has the fake card."""

    def put(**options):
        card = fake_card(**options)
        monkeypatch.setattr(probe, "gpu", lambda: H200)
        monkeypatch.setattr(cards, "card", lambda: card)
        monkeypatch.setattr(
            IsolatedTimer, "measure", CellTimer.measure
        )  # another process would not have the fake
        monkeypatch.setattr(TritonCuda, "build", lambda _, layer, candidate, batch: priced(candidate.w_bits))
        return card

    return put


@pytest.fixture
def for_gpu(settings, tmp_path):
    """`for_gpu(**changes)`: a `RunConfig` with tables of its own."""

    def make(**changes):
        given = {
            "target": "triton-cuda",
            "tables": str(tmp_path / "tables"),
            "bits": (2, 4, 8),
            "trials": 2,
            "polish": 0,
            "iterations": 0,
        }
        return settings(**{**given, "objectives": ("weight_mse",), "evaluation_images": 4, **changes})

    return make


UNITS = 5  # of the net of this folder


def uniform_mj(bits):
    return OTHER_MJ + UNITS * price(bits)[1]


def test_an_energy_budget_is_solved_and_verified_by_measuring(gpu, for_gpu, tmp_path):
    gpu()
    limit = round((uniform_mj(4) + uniform_mj(8)) / 2, 3)
    study = Study(tmp_path / "study")
    best = run(for_gpu(budgets=("99%", f"{limit}mJ")), study)["best"]
    bits = [int(c[1]) for c in best["assignment"].values()]
    assert best["predicted"]["energy_mj"] == pytest.approx(best["measured"]["energy_mj"], rel=0.02)
    assert (
        best["measured"]["energy_mj"] == pytest.approx(OTHER_MJ + sum(price(b)[1] for b in bits))
        and best["measured"]["energy_mj"] <= limit
    )
    assert best["repairs"] == [] and len(set(bits)) > 1
    artifact = best["artifact"]
    assert (
        artifact["triton"].endswith("model.safetensors")
        and artifact["triton_bytes"] == artifact["size_bytes"] == best["measured"]["triton_bytes"]
    )
    assert artifact["triton_agreement"] >= 0.75 and "triton_fresh_latency_us" not in artifact
    problem, about = (
        Problem.load(study.path / "problem.json"),
        json.loads((study.path / "study.json").read_text())["hardware"],
    )
    assert (
        problem.constants["energy_mj"] == pytest.approx(OTHER_MJ, rel=0.2)
        and problem.costs["energy_mj"][0][0] > problem.costs["energy_mj"][0][-2] > 0
    )
    assert (
        about["float_energy_mj"] == pytest.approx(OTHER_MJ + UNITS * FLOAT_MJ)
        and about["energy"]["error"]["trusted"]
    )
    assert (
        about["device"]["name"] == "NVIDIA H200" and about["float_latency_us"] == OTHER_US + UNITS * FLOAT_US
    )
    assert 'kernels="triton-cuda"' in unescape(write_report(study.path).read_text())


def drawing(monkeypatch, factor):
    """Whole models that are written draw `factor` times what they drew when the cost model was fitted."""

    plain = CudaBench.measure_whole

    def measured(bench, call, passes=2):
        found = plain(bench, call, passes)
        return dataclasses.replace(found, energies_mj=tuple(mj * factor for mj in found.energies_mj))

    monkeypatch.setattr(CudaBench, "measure_whole", measured)


def test_an_energy_that_breaks_its_budget_when_measured_is_repaired(gpu, for_gpu, tmp_path, monkeypatch):
    gpu()
    drawing(monkeypatch, 1.15)
    limit = round((uniform_mj(4) + uniform_mj(8)) / 2, 3)
    best = run(for_gpu(budgets=("99%", f"{limit}mJ")), Study(tmp_path / "study"))["best"]
    assert best["measured"]["energy_mj"] <= limit < 1.15 * best["repairs"][0]["predicted"] * 1.02
    (first, *_), bits = best["repairs"], [int(c[1]) for c in best["assignment"].values()]
    assert first["resource"] == "energy_mj" and first["measured"] > limit >= first["predicted"]
    assert best["measured"]["energy_mj"] == pytest.approx(1.15 * (OTHER_MJ + sum(price(b)[1] for b in bits)))


def test_an_energy_that_nothing_keeps_when_measured_is_refused(gpu, for_gpu, tmp_path, monkeypatch):
    gpu()
    drawing(monkeypatch, 10.0)
    with pytest.raises(InfeasibleError) as caught:
        run(for_gpu(budgets=("99%", f"{uniform_mj(4):.3f}mJ")), Study(tmp_path / "study"))
    assert caught.value.exit_code == 3 and caught.value.least["energy_mj"] > 0
    with pytest.raises(InfeasibleError, match=r"0\.250 mJ is below the least reachable 0\.500 mJ"):
        run(for_gpu(budgets=(f"{uniform_mj(2) / 2:.3f}mJ",)), Study(tmp_path / "less"))


def test_a_latency_budget_and_the_table_that_a_second_run_finds(gpu, for_gpu, tmp_path, place):
    card = gpu()
    limit = OTHER_US + UNITS * price(6)[0]
    best = run(for_gpu(budgets=("99%", f"{limit}us")), Study(tmp_path / "study"))["best"]
    assert best["measured"]["latency_us"] <= limit and best["predicted"]["latency_us"] == pytest.approx(
        best["measured"]["latency_us"], rel=0.02
    )
    (path,) = (tmp_path / "tables").glob("*.csv")
    assert (
        "h200" in path.name
        and "triton-cuda" in path.name
        and json.loads(path.with_suffix(".json").read_text())["method"].startswith(
            "random data; a CUDA graph"
        )
    )
    table = LatencyTable.load(path, H200.identity)
    assert {row.clock for row in table.rows.values()} == {"gpu"} and all(
        row.energy_mj > 0 for row in table.rows.values()
    )
    assert all(run.clock == "gpu" and len(run.energies_mj) == 2 for run in table.models.values())
    card.timer.captured.clear()
    again, _ = profile_model(for_gpu(), Silent(), models=8)
    assert card.timer.captured == [] and again.models.keys() >= {
        key for key in table.models if set(key[2]) == {"float"}
    }
    model = load_model(f"{place / 'nets.py'}:make").module
    loaded = mpsearch.load(best["artifact"]["packed"], model, kernels="triton-cuda", device="cpu")
    assert len(kernel_layers(loaded)) == sum(c != "float" for c in best["assignment"].values())


def test_without_a_gpu_the_target_is_refused_before_the_model_is_loaded(for_gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "gpu", lambda: None)
    config = for_gpu(model="nowhere.py:make")
    with pytest.raises(
        DeviceMismatchError,
        match=r"--target triton-cuda cannot run here: .*CUDA.*NVIDIA GPU.*--target ort-cpu",
    ) as caught:
        run(config, Study(tmp_path / "study"))
    assert caught.value.exit_code == 2 and not (tmp_path / "study").exists()
    with pytest.raises(DeviceMismatchError, match="cannot run here"):
        profile_model(config, Silent())


def test_what_a_gpu_does_not_have_is_refused(gpu, for_gpu, tmp_path):
    gpu(counts=False)
    with pytest.raises(OptionError, match="threads is 2"):
        run(for_gpu(threads=2), Study(tmp_path / "study"))
    with pytest.raises(BudgetError, match="H200 has no counter of energy"):
        run(for_gpu(budgets=("3mJ",)), Study(tmp_path / "study"))
    with pytest.raises(BudgetError, match=r"measured for --target ort-cpu, not for triton-cuda"):
        run(for_gpu(budgets=("1MiB peak",)), Study(tmp_path / "study"))
    with pytest.raises(OptionError, match="--at-most"):
        profile_model(for_gpu(), Silent(), at_most=1)


def test_a_card_that_stops_counting_is_told_of(gpu, for_gpu, tmp_path, monkeypatch):
    gpu()
    plain = CudaBench.measure_whole
    monkeypatch.setattr(
        CudaBench, "measure_whole", lambda *given: dataclasses.replace(plain(*given), energies_mj=())
    )
    with pytest.raises(MpsearchError, match="counted no energy"):
        run(for_gpu(budgets=("99%", f"{uniform_mj(4):.3f}mJ")), Study(tmp_path / "study"))


def test_a_table_without_energies_is_no_use_for_an_energy_budget(gpu, for_gpu, tmp_path):
    gpu(counts=False)
    table, path = profile_model(for_gpu(), Silent(), models=8)
    assert not any(run.energies_mj for run in table.models.values())
    gpu()
    with pytest.raises(TableError, match=r"no energy of .*budget limits it"):
        run(for_gpu(budgets=("99%", f"{uniform_mj(4):.3f}mJ"), table=str(path)), Study(tmp_path / "study"))


def test_fake_card_whole_models_are_read_twice_and_again_where_the_card_is_slowed_down():
    module = nn.Sequential(nn.Linear(3, 3))
    call = OneImage(module, torch.zeros(1, 3))
    slow = dataclasses.replace(STEADY, reasons=("sw_power_cap",))
    card = fake_card(states=[STEADY, STEADY, slow])  # the anchor's two, then the first reading
    (found,) = measure_models("m", [("float",)], lambda _: WholeModel(call), CudaBench(card))
    assert (found.passes_us, found.status, found.clock, found.batch) == (
        (OTHER_US + FLOAT_US,) * 2,
        "ok",
        "gpu",
        1,
    )
    assert found.energies_mj == pytest.approx((OTHER_MJ + FLOAT_MJ,) * 2)
    assert (
        sum(runs == [call] for runs in card.timer.captured) == 2 * 3
    )  # three readings, cold and hot, one call in each graph
    throttled = fake_card(states=[STEADY, STEADY] + [slow] * 99)
    assert (
        next(measure_models("m", [("float",)], lambda _: WholeModel(call), CudaBench(throttled))).status
        == "unstable"
    )
    assert (
        next(
            measure_models("m", [("float",)], lambda _: WholeModel(call, False), CudaBench(fake_card()))
        ).status
        == "fallback"
    )
    reading = CudaBench(fake_card(counts=False)).measure_whole(call, 3)
    assert (
        reading.energy_mj is None
        and reading.timing.clock == "gpu"
        and len(reading.timing.passes_us) == 3
        and reading.trouble == ()
    )


def test_fake_card_a_model_that_cannot_be_captured_is_one_clear_error(monkeypatch):
    card, model = fake_card(), Priced(8)
    plain = card.timer.capture

    def capture(runs):
        if model not in runs:  # the anchor
            return plain(runs)
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(card.timer, "capture", capture)
    with pytest.raises(
        MpsearchError,
        match=(
            r"CUDA graph: CUDA error: operation not permitted when stream is capturing\. Its "
            r"forward.*--target packed"
        ),
    ):
        CudaBench(card).measure_whole(model)


def test_runs_without_energies_are_written_as_they_ever_were():
    run_ = ModelRun(
        "m", 1, ("float",), (1.0, 1.0), 0.0, 1.0, "ok", "cpu", datetime(2026, 1, 1, tzinfo=UTC).isoformat()
    )
    assert (
        "energies_mj" not in run_.to_json()
        and "energies_mj" in dataclasses.replace(run_, energies_mj=(2.0,)).to_json()
    )
