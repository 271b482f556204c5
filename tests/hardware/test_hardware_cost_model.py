"""The cost model finds coefficients that are known here, states its error honestly, and says the same in rows
and conversions as in one number.
"""

import math
from itertools import product

import numpy as np
import pytest

from mpsearch.errors import UserError
from mpsearch.hardware import ModelRun
from mpsearch.hardware.bench import CpuBench
from mpsearch.hardware.cost_fit import fit_cost_model
from mpsearch.hardware.cost_model import FitError, Unit, fit_error
from mpsearch.hardware.whole import WholeModel, measure_models, mixed_kernels
from mpsearch.hardware.wires import Wire, model_key
from mpsearch.problem import Layer

KERNELS = ("W8A8", "float")
L = 12


def units(seed=0):
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(L):
        fast, weight = draw.uniform(100, 1000), int(draw.integers(10**4, 10**7))
        found.append(
            Unit({"W8A8": fast, "float": fast * draw.uniform(1.2, 4)}, {"W8A8": weight, "float": 4 * weight})
        )
    return found


WIRES = [Wire(i, i + 1, "direct" if i % 2 else "sum", 200_000) for i in range(L - 1)] + [
    Wire(0, 2, "join", 100_000)
]


def truth(parts, kernels):
    """What a runtime might take: weights fall out of the cache, and precision changes cost."""
    time = 700.0 + sum(
        0.9 * u.rows_us[k] + u.weight_bytes[k] / 9e3 for u, k in zip(parts, kernels, strict=True)
    )
    for wire in WIRES:
        a, b = kernels[wire.source], kernels[wire.target]
        if a != b:
            time += wire.numel * {"direct": 1e-3, "sum": 1.5e-3, "join": 5e-4}[wire.kind]
    return time


def runs(parts, count, seed, noise=0.0, model="m"):
    draw = np.random.default_rng(seed + 100)
    asked = mixed_kernels([KERNELS] * L, [[i] for i in range(L)], count, seed)
    times = [truth(parts, k) * (1 + noise * draw.standard_normal(2)) for k in asked]
    return [
        ModelRun(model, 1, k, tuple(map(float, t)), 1.0, 250.0, "ok", "cpu", "2026-01-01")
        for k, t in zip(asked, times, strict=True)
    ]


def test_known_coefficients_are_found():
    parts = units()
    model = fit_cost_model(parts, WIRES, runs(parts, 64, 0))
    by_name = dict(zip(model.names, model.values, strict=True))
    assert by_name["wire direct float>W8A8"] == pytest.approx(1e-3, rel=0.4)
    assert by_name["row float"] == pytest.approx(0.9, abs=0.15)
    test = runs(parts, 24, 1)
    assert fit_error([model.predict(r.kernels) for r in test], test).mape < 0.01


def test_predictions_are_as_good_as_measuring_and_better_than_sums_of_rows():
    parts = units()
    fitted, test = runs(parts, 24, 0, noise=0.01), runs(parts, 24, 1, noise=0.01)
    model = fit_cost_model(parts, WIRES, fitted)
    found = fit_error([model.predict(r.kernels) for r in test], test)
    sums = fit_error([sum(u.rows_us[k] for u, k in zip(parts, r.kernels, strict=True)) for r in test], test)
    assert found.mape < 0.02 < sums.mape and found.tau >= 0.8 * found.aa_tau
    assert model.error.trusted and model.error.runs == 24
    assert model.error.mape == pytest.approx(found.mape, abs=0.015)


def test_rows_conversions_and_the_rest_are_the_prediction():
    parts = units()
    model = fit_cost_model(parts, WIRES, runs(parts, 24, 0, noise=0.01))
    draw = np.random.default_rng(3)
    choices = [("float", "W8A8", "W8A8") if i % 3 else ("W8A8", "float") for i in range(L)]
    terms = model.conversions(choices)
    assert {term.layers for term in terms} <= {(w.source, w.target) for w in WIRES} and terms
    for _ in range(20):
        indices = [int(draw.integers(len(c))) for c in choices]
        kernels = [c[i] for c, i in zip(choices, indices, strict=True)]
        total = (
            model.other_us
            + sum(model.row(i, k) for i, k in enumerate(kernels))
            + sum(term.value(indices) for term in terms)
        )
        assert total == pytest.approx(model.predict(kernels), rel=1e-9)


def test_nothing_has_a_negative_cost():
    """Wires that speed things up would let a solver wander in circles; times without any pattern must not
    make them.
    """
    parts, draw = units(), np.random.default_rng(0)
    noise = [
        ModelRun("m", 1, r.kernels, tuple(draw.uniform(500, 5000, 2).tolist()), 1.0, 250.0, "ok", "cpu", "")
        for r in runs(parts, 24, 0)
    ]
    model = fit_cost_model(parts, WIRES, noise)
    assert all(
        v >= 0 for name, v in zip(model.names, model.values, strict=True) if not name.startswith("unit")
    )
    assert all(model.row(i, k) >= 0 for i, k in product(range(L), KERNELS))
    assert all(v >= 0 for term in model.conversions([KERNELS] * L) for v in term.values)


def test_times_without_a_pattern_are_not_trusted():
    parts, draw = units(), np.random.default_rng(0)
    times = draw.uniform(1000, 9000, 24)
    odd = [
        ModelRun("m", 1, r.kernels, (float(t), float(t) * 1.001), 1.0, 250.0, "ok", "cpu", "")
        for r, t in zip(runs(parts, 24, 0), times, strict=True)
    ]
    assert not fit_cost_model(parts, WIRES, odd).error.trusted


def test_few_runs_have_no_statement_of_the_error_but_meet_the_uniform_models():
    parts = units()
    few = runs(parts, 2, 0)
    model = fit_cost_model(parts, WIRES, few)
    assert model.error is None
    assert [model.predict(r.kernels) for r in few] == pytest.approx([r.latency_us for r in few], rel=0.02)


def test_a_kernel_without_a_row_is_not_predicted():
    parts = units()
    model = fit_cost_model(parts, WIRES, runs(parts, 12, 0))
    with pytest.raises(KeyError):
        model.predict(["W2A2"] * L)


@pytest.mark.parametrize(
    ("mape", "tau", "aa_mape", "aa_tau", "trusted"),
    [
        (0.02, 0.9, 0.01, 0.95, True),
        (0.02, 0.7, 0.01, 0.95, False),
        (0.02, 0.3, 0.03, 0.9, True),
        (0.2, 0.9, 0.01, 0.9, False),
        (0.2, 0.5, 0.15, 0.5, True),
    ],
)
def test_trust(mape, tau, aa_mape, aa_tau, trusted):
    assert FitError(mape, 0.3, tau, aa_mape, aa_tau, 24).trusted is trusted


def test_mixed_kernels_hold_the_uniform_ones_differ_and_keep_ties():
    choices = [("float", "W8A8")] * 5 + [("float",)]
    ties = [[0, 3], [1], [2], [4], [5]]
    found = mixed_kernels(choices, ties, 14, 0)
    assert len(found) == len(set(found)) == 14
    assert ("float",) * 6 in found[:2] and ("W8A8",) * 5 + ("float",) in found[:2]
    assert all(k[0] == k[3] and k[5] == "float" for k in found)
    assert found == mixed_kernels(choices, ties, 14, 0) != mixed_kernels(choices, ties, 14, 1)
    assert len(mixed_kernels(choices, ties, 40, 0)) == 16


def test_whole_models_are_measured_in_groups_and_fall_backs_are_told():
    built, alive = [], []

    def build(kernels):
        built.append(kernels)
        alive.append(len(built))
        return WholeModel(lambda: sum(range(2000)), as_asked=kernels != ("b",))

    found = list(measure_models("m-1", [("a",), ("b",), ("c",)], build, CpuBench(seconds=0.02), group=2))
    assert [run.kernels for run in found] == built == [("a",), ("b",), ("c",)]
    assert found[1].status == "fallback" and found[0].status != "fallback"
    assert all(
        len(run.passes_us) == 2 and run.latency_us > 0 and run.anchor_us > 0 and run.clock == "cpu"
        for run in found
    )


def test_a_wire_joins_two_units():
    with pytest.raises(UserError, match="two different"):
        Wire(1, 1, "direct", 5)
    with pytest.raises(UserError, match="'near'"):
        Wire(1, 2, "near", 5)


def test_the_key_of_a_model_is_of_its_shapes_and_wires_not_of_its_blocks():
    layer = Layer("a", "linear", (4, 8), ((1, 8),), (1, 4), 32, "b")
    one = model_key("net", [layer], [])
    assert one == model_key("net", [Layer("a", "linear", (4, 8), ((1, 8),), (1, 4), 99, "other")], [])
    assert one != model_key("net", [Layer("a", "linear", (4, 16), ((1, 16),), (1, 4), 32, "b")], [])
    assert one != model_key("net", [layer], [Wire(0, 1, "direct", 4)]) and one.startswith("net-")


def test_the_statement_of_the_error_is_readable():
    text = str(FitError(0.021, 0.05, 0.913, 0.011, 0.95, 24))
    assert text == "2.1% (worst 5.0%), tau 0.91; the same measured twice 1.1%, tau 0.95; 24 runs"
    assert math.isclose(FitError(0.021, 0.05, 0.913, 0.011, 0.95, 24).to_json()["mape"], 0.021)
