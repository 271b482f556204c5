"""Quantisers of operands: what is sampled of a product, what is known of it, and which quantiser it gets."""

from __future__ import annotations

import copy

import pytest
import torch

from mpsearch.models import analyze
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import OBSERVERS, AffineParams
from mpsearch.quant.products import wrap_products
from mpsearch.quant.regions import LogParams, TwoRegionParams
from mpsearch.reconstruct import calibrate
from mpsearch.reconstruct.ranges import MAX_INPUT_VALUES, Operand, RunningSample, input_quantizer


def products_of(net) -> list[str]:
    return [
        layer.name for layer in analyze(net.module, net.images.inputs([0])).layers if layer.op == "matmul"
    ]


@pytest.fixture
def calibrated(tiny):
    net = tiny("vit")
    products = products_of(net)
    return (
        net,
        products,
        calibrate(net.module, [*net.units, *products], [net.images.inputs()], input_observer="opt_m"),
    )


def test_operands_are_sampled_whole_and_the_model_left_as_found(tiny, left_as_found):
    net = tiny("vit")
    check = left_as_found(net.module)
    products = products_of(net)
    found = calibrate(net.module, [*net.units, *products], [net.images.inputs()])
    check()
    assert list(found.products) == products and list(found.weights) == net.units
    seen = {}
    copied = copy.deepcopy(net.module)
    for unit, product in wrap_products(copied, products[:2]).items():
        product.register_forward_pre_hook(lambda _, args, unit=unit: seen.update({unit: args}))
    with torch.no_grad():
        copied(net.images.inputs())
    for unit in products[:2]:
        for operand, values in zip(found.products[unit], seen[unit], strict=True):
            assert torch.allclose(operand.values[:-2], values.flatten(), atol=1e-6)
            assert operand.values[-2:].tolist() == pytest.approx(
                [float(values.min()), float(values.max())], abs=1e-6
            )


def test_a_softmax_is_known_by_its_values(calibrated):
    _, products, found = calibrated
    flags = [tuple(operand.is_distribution for operand in found.products[unit]) for unit in products]
    assert flags == [(False, False), (True, False)] * (len(products) // 2)


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ([torch.rand(2, 3, 4).softmax(-1)], True),
        ([torch.rand(2, 3, 4).softmax(-2)], True),
        ([torch.rand(2, 3, 4).softmax(-1), torch.rand(2, 3, 4).softmax(-1) * 0.9], False),
        ([torch.rand(2, 3, 4) * 0.9, torch.rand(2, 3, 4).softmax(-1)], False),
        ([torch.tensor([[1.5, -0.5], [0.5, 0.5]])], False),
    ],
)
def test_rows_or_columns_of_every_batch_must_sum_to_one(batches, expected):
    sample = RunningSample(0)
    for batch in batches:
        sample.take_operand(batch)
    assert sample.operand("p").is_distribution is expected


def test_a_sample_is_bounded():
    sample = RunningSample(0)
    for _ in range(3):
        sample.take(torch.rand(2**17 + 5))
    assert MAX_INPUT_VALUES // 4 < len(sample.values("u")) <= MAX_INPUT_VALUES + 2


def test_a_product_gets_both_operands_at_its_bits(calibrated):
    net, products, found = calibrated
    assignment = Assignment(
        tuple((unit, Candidate(4, 6 if unit in products else 8)) for unit in (*net.units, *products))
    )
    states = found.states(assignment)
    assert list(states) == [*net.units, *products]
    for unit in products:
        state = states[unit]
        assert state.weight is None
        assert (state.activation.bits, state.second.bits) == (6, 6)
        assert state.activation is not state.second
        assert found.state(unit, Candidate(2, 6)).activation is state.activation
    assert found.state(products[0], Candidate(None, None, "float")).activation is None
    assert all(states[unit].second is None for unit in net.units)


def test_a_named_observer_gives_uniform_grids_signed_or_not():
    operand = Operand(torch.randn(4096, generator=torch.Generator().manual_seed(0)) - 1)
    for symmetric in (False, True):
        given = input_quantizer("percentile:percent=99", operand, 5, symmetric=symmetric)
        wanted = OBSERVERS.create("percentile:percent=99").observe(operand.values, 5, symmetric=symmetric)
        assert isinstance(given, AffineParams)
        assert (given.symmetric, float(given.scale), int(given.zero_point)) == (
            symmetric,
            float(wanted.scale),
            int(wanted.zero_point),
        )


def test_opt_m_tries_logarithms_for_distributions_alone():
    values = 2.0 ** -torch.arange(15.0).repeat(50)
    assert isinstance(input_quantizer("opt_m", Operand(values, True), 4, symmetric=False), LogParams)
    assert isinstance(
        input_quantizer("opt_m", Operand(values, False), 4, symmetric=False), AffineParams | TwoRegionParams
    )


def test_symmetric_inputs_reach_every_unit(tiny):
    net = tiny("vit")
    products = products_of(net)
    found = calibrate(net.module, [*net.units, *products], [net.images.inputs()], symmetric_inputs=True)
    states = found.states(Assignment(tuple((unit, Candidate(8, 8)) for unit in (*net.units, *products))))
    grids = [q for state in states.values() for q in (state.activation, state.second) if q is not None]
    assert len(grids) == len(net.units) + 2 * len(products)
    assert all(q.symmetric and int(q.zero_point) == 0 for q in grids)
    assert not any(net.calibration.input_params(unit, Candidate(8, 8)).symmetric for unit in net.units)
