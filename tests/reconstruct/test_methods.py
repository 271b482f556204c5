"""Every reconstruction method: what it promises, on a small net."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mpsearch.errors import DataError, ModelError, OptionError
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import AffineParams, LogParams, TwoRegionParams, install
from mpsearch.reconstruct import METHODS, ReconstructionConfig, calibrate, phase_walk, reconstruct

LEARNED = [name for name in METHODS.names() if METHODS.create(name).phases()]
VARIANTS = [*LEARNED, "qdrop:loss=fisher", "brecq:loss=fisher", "qdrop:keep_prob=1.0"]


def run(net, method, text="W3A4", images=None, **more):
    config = ReconstructionConfig(
        **{
            "iterations": 15,
            "batch_size": 8,
            "learning_rate": 3e-2,
            "step_learning_rate": 1e-2,
            "method": method,
            **more,
        }
    )
    reports = []
    inputs = net.images.inputs() if images is None else images
    found = reconstruct(
        net.module,
        net.blocks,
        net.calibration.states(net.uniform(text)),
        inputs,
        config,
        on_block=lambda *r: reports.append(r),
    )
    return found, reports


def test_the_papers_methods_are_there():
    assert {"nearest", "adaround", "brecq", "qdrop", "attention_round"} <= set(METHODS.names())


@pytest.mark.parametrize("name", ["conv", "vit"])
@pytest.mark.parametrize("method", VARIANTS)
def test_contract(tiny, left_as_found, name, method):
    net = tiny(name)
    check = left_as_found(net.module)
    found, reports = run(net, method)
    check()
    again, _ = run(net, method)
    phases = METHODS.create(method).phases()
    layerwise = METHODS.create(method).layerwise
    assert len(reports) == sum(
        len(net.units if layerwise or phase.closed else net.blocks) for phase in phases
    )
    assert {result.phase for _, _, result in reports} == set(range(len(phases)))
    assert any(result.kept for _, _, result in reports)
    learns_steps = any(phase.steps for phase in phases)
    moved = 0
    for unit, start in net.calibration.states(net.uniform("W3A4")).items():
        state = found[unit]
        assert torch.equal(state.weight.codes, again[unit].weight.codes)
        assert torch.equal(state.activation.scale, again[unit].activation.scale)
        assert (
            state.weight.params.qmin
            <= int(state.weight.codes.min())
            <= int(state.weight.codes.max())
            <= state.weight.params.qmax
        )
        ratio = state.weight.params.scale / start.weight.params.scale
        if any(phase.closed for phase in phases):  # the closed form chooses the scales of 3 bits anew
            assert torch.equal(state.weight.params.scale, again[unit].weight.params.scale)
            assert (ratio > 0.59).all() and (ratio < 1.41).all()
        else:
            assert (ratio == 1).all()
        assert (
            state.weight.codes.is_contiguous()
        )  # as a loaded checkpoint has them: the layout chooses the kernel, and with it the last bits
        assert torch.equal(state.activation.zero_point, start.activation.zero_point)
        moved += int(not torch.equal(state.activation.scale, start.activation.scale))
    assert bool(moved) == learns_steps
    finished = install(net.module, found)
    for unit, state in found.items():
        assert torch.equal(
            finished.get_submodule(unit).inner.weight, state.weight.dequantize()
        )  # the model holds grid weights alone
        assert finished.get_submodule(unit).input.keep_prob == 1.0


@pytest.mark.parametrize("method", VARIANTS)
def test_no_block_gets_worse(tiny, method):
    for _, _, result in run(tiny("conv"), method)[1]:
        assert result.kept == (result.learned_mse < result.start_mse)
        assert result.steps <= 15


def test_brecq_learns_weights_with_float_activations_then_steps(tiny):
    net = tiny("conv")
    start = net.calibration.states(net.uniform("W3A4"))
    _, reports = run(net, "brecq")
    first, second = reports[: len(net.blocks)], reports[len(net.blocks) :]
    assert all(
        torch.equal(states[u].activation.scale, start[u].activation.scale)
        for _, states, _ in first
        for u in states
    )
    assert any(
        not torch.equal(states[u].weight.codes, start[u].weight.codes)
        for _, states, _ in first
        for u in states
    )
    held = {u: s for _, states, _ in first for u, s in states.items()}
    assert all(
        torch.equal(states[u].weight.codes, held[u].weight.codes) for _, states, _ in second for u in states
    )


def test_adaround_takes_one_of_the_two_levels_next_to_a_weight(tiny):
    net = tiny("conv")
    found, _ = run(net, "adaround", "W5A8", iterations=40, learning_rate=0.3)
    for unit, state in found.items():
        params = state.weight.params
        scaled = net.module.get_submodule(unit).weight.detach() / params.expanded(state.weight.codes.ndim)[0]
        assert float((state.weight.codes - scaled.clamp(params.qmin, params.qmax)).abs().max()) <= 1.0001


@pytest.mark.parametrize(
    "method", ["qdrop:keep_prob=0", "qdrop:keep_prob=1.5", "attention_round:keep_prob=-1"]
)
def test_a_keep_probability_outside_0_to_1_is_refused(method):
    with pytest.raises(OptionError, match="over 0 and at most 1"):
        METHODS.create(method)


def test_a_converged_block_stops_early_and_a_tolerance_of_zero_does_not(tiny):
    net = tiny("conv")
    steps = {}
    for tolerance in (0.0, 0.5):
        steps[tolerance] = [
            r.steps for _, _, r in run(net, "attention_round", iterations=300, tolerance=tolerance)[1]
        ]
    assert steps[0.0] == [300] * 3
    assert max(steps[0.5]) == 200  # one window to compare with, and three without progress


def test_one_image_and_a_batch_larger_than_the_set(tiny):
    net = tiny("conv")
    for images in (net.images.inputs()[:1], net.images.inputs()[:5]):
        found, reports = run(net, "qdrop", images=images, batch_size=32)
        assert set(found) == set(net.units)
        assert all(r.steps > 0 for _, _, r in reports)


def test_without_an_image_there_is_one_clear_error(tiny):
    with pytest.raises(DataError, match="no images"):
        run(tiny("conv"), "qdrop", images=tiny("conv").images.inputs()[:0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_name_the_block(tiny, value):
    net = tiny("conv")
    images = net.images.inputs().clone()
    images[3, 0, 0, 0] = value
    with pytest.raises(ModelError, match="'stem' gives NaN or infinity"):
        run(net, "qdrop", images=images)


def test_a_dead_channel_and_a_constant_weight_are_learned_around(tiny):
    net = tiny("conv")
    weight = net.module.stem.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[0].zero_()
            weight[1].fill_(0.25)
        net.calibration._weight_params.clear()
        found, reports = run(net, "qdrop")
    finally:
        with torch.no_grad():
            weight.copy_(kept)
        net.calibration._weight_params.clear()
    value = found["stem"].weight.dequantize()
    assert torch.isfinite(value).all()
    assert (value[0].abs() < 1e-6).all()
    assert all(torch.isfinite(torch.tensor([r.start_mse, r.learned_mse])).all() for _, _, r in reports)


def test_a_phase_that_was_known_is_not_learned_again(tiny):
    net = tiny("conv")
    full, reports = run(net, "brecq")
    known = {0: {u: s for _, states, _ in reports[: len(net.blocks)] for u, s in states.items()}}
    seen = []
    config = ReconstructionConfig(
        iterations=15, batch_size=8, learning_rate=3e-2, step_learning_rate=1e-2, method="brecq"
    )
    found = reconstruct(
        net.module,
        net.blocks,
        net.calibration.states(net.uniform("W3A4")),
        net.images.inputs(),
        config,
        known=known,
        on_block=lambda *r: seen.append(r[2]),
    )
    assert [r is None for r in seen] == [True] * 3 + [False] * 3
    for unit, state in full.items():
        assert torch.equal(found[unit].weight.codes, state.weight.codes)
        assert torch.equal(found[unit].activation.scale, state.activation.scale)


def test_bfloat16_steps_learn_as_well_within_a_few_percent(tiny):
    net = tiny("conv")
    exact, rough = (run(net, "qdrop", iterations=60, bfloat16=b)[1] for b in (False, True))
    for (_, _, a), (_, _, b) in zip(exact, rough, strict=True):
        assert min(b.learned_mse, b.start_mse) <= 1.15 * a.learned_mse


@pytest.mark.parametrize("method", ["qdrop", "brecq", "adaround"])
def test_products_of_activations_learn_their_steps_with_the_block(tiny, left_as_found, method):
    net = tiny("vit")
    products = [f"blocks.{i}.attn.matmul{k}" for i in range(2) for k in range(2)]
    calibration = calibrate(net.module, [*net.units, *products], [net.images.inputs()])
    states = calibration.states(
        Assignment(tuple((unit, Candidate(4, 3)) for unit in (*net.units, *products)))
    )
    blocks = [(name, [*units, *(p for p in products if p.startswith(name))]) for name, units in net.blocks]
    config = ReconstructionConfig(iterations=15, batch_size=8, step_learning_rate=2e-2, method=method)
    check = left_as_found(net.module)
    found = reconstruct(net.module, blocks, states, net.images.inputs(), config)
    check()
    assert set(found) == set(states)
    moved = sum(
        not torch.equal(getattr(found[p], side).scale, getattr(states[p], side).scale)
        for p in products
        for side in ("activation", "second")
    )
    assert moved == 0 if method == "adaround" else moved >= 4
    with torch.no_grad():
        exact = net.module(net.images.inputs())
        before, after = (
            float((install(net.module, s)(net.images.inputs()) - exact).square().mean())
            for s in (states, found)
        )
    assert after < before


def test_the_steps_of_two_regions_are_learned_and_a_logarithm_is_named_as_kept(tiny):
    net = tiny("vit")
    calibration = calibrate(net.module, net.units, [net.images.inputs()], input_observer="opt_m")
    states = calibration.states(net.uniform("W4A4"))
    other = [unit for unit, state in states.items() if not isinstance(state.activation, AffineParams)]
    assert other
    assert {type(states[unit].activation) for unit in other} == {TwoRegionParams}
    fixed = next(unit for unit in states if unit not in other)
    states[fixed] = replace(states[fixed], activation=LogParams(states[fixed].activation.scale * 8, 4))
    told = {}
    found = reconstruct(
        net.module,
        net.blocks,
        states,
        net.images.inputs(),
        ReconstructionConfig(iterations=10, batch_size=8),
        on_block=lambda name, _, result: told.setdefault(name, result.calibrated),
    )
    assert [unit for units in told.values() for unit in units] == [fixed] and found[
        fixed
    ].activation is states[fixed].activation
    moved = [
        unit for unit in other if not torch.equal(found[unit].activation.step, states[unit].activation.step)
    ]
    assert moved and all(found[unit].activation.shift == states[unit].activation.shift for unit in other)


@pytest.mark.parametrize("method", ["qdrop", "brecq"])
def test_what_is_known_wholly_is_not_walked_again(tiny, monkeypatch, method):
    net = tiny("conv")
    full, reports = run(net, method)
    known = {}
    for _, states, result in reports:
        known.setdefault(result.phase, {}).update(states)
    monkeypatch.setattr(phase_walk, "walk", lambda *_: pytest.fail("walked"))
    seen = []
    states = net.calibration.states(net.uniform("W3A4"))
    config = ReconstructionConfig(iterations=15, method=method)
    found = reconstruct(
        net.module,
        net.blocks,
        states,
        net.images.inputs(),
        config,
        known=known,
        on_block=lambda *r: seen.append(r[2]),
    )
    assert seen == [None] * len(reports)
    assert all(found[u].weight is full[u].weight and found[u].activation is full[u].activation for u in full)
