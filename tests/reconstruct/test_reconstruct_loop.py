"""Reconstruction: never worse than nearest rounding, repeatable, resumable, and the float model stays as it
was.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from mpsearch.errors import ModelError, UnknownNameError
from mpsearch.problem import Candidate
from mpsearch.quant import inputs, install, quantize
from mpsearch.reconstruct import ReconstructionConfig, calibrate, phase_walk, reconstruct
from mpsearch.reconstruct.channels_last import convolving_fast

SHORT = ReconstructionConfig(iterations=40, batch_size=8, learning_rate=3e-2, step_learning_rate=1e-2)
_done = {}


def run(net, config=SHORT, text="W3A8", **more):
    return reconstruct(
        net.module, net.blocks, net.calibration.states(net.uniform(text)), net.images.inputs(), config, **more
    )


def once(net, name):
    """The short reconstruction of a net, made once, with what it reported."""
    if name not in _done:
        reports = []
        _done[name] = run(net, on_block=lambda *report: reports.append(report)), reports
    return _done[name]


def equal(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[u].weight.codes, b[u].weight.codes) and same_input(a[u], b[u]) for u in a
    )


def same_input(a, b):
    return torch.equal(a.activation.scale, b.activation.scale) and torch.equal(
        a.activation.zero_point, b.activation.zero_point
    )


def block_error(net, states, block):
    """Mean squared error of a block's output when it reads what the quantised blocks before it give, against
    the float model's.
    """
    seen = []
    for module in (net.module, install(net.module, states)):
        handle = module.get_submodule(block).register_forward_hook(
            lambda _m, _a, out: seen.append(out.double())
        )
        with torch.no_grad():
            module(net.images.inputs())
        handle.remove()
    return float((seen[0] - seen[1]).square().mean())


@pytest.mark.parametrize("name", ["conv", "vit"])
def test_no_block_is_worse_than_nearest_rounding(tiny, name):
    net = tiny(name)
    learned, reports = once(net, name)
    now = net.calibration.states(net.uniform("W3A8"))
    assert [block for block, _, _ in reports] == [block for block, _ in net.blocks]
    better = 0
    for (block, units), (_, states, result) in zip(net.blocks, reports, strict=True):
        nearest = block_error(net, now, block)
        now = {**now, **{unit: learned[unit] for unit in units}}
        after = block_error(net, now, block)
        assert list(states) == units
        assert result.start_mse == pytest.approx(nearest, rel=1e-3)
        assert after == pytest.approx(min(result.start_mse, result.learned_mse), rel=1e-3)
        assert after <= nearest * (1 + 1e-6)
        better += after < 0.99 * nearest
    assert better >= len(net.blocks) - 1


@pytest.mark.parametrize("name", ["conv", "vit"])
def test_weights_stay_on_the_grid_next_to_the_float_weight(tiny, name):
    net = tiny(name)
    learned, _ = once(net, name)
    moved = 0
    for unit, state in learned.items():
        tensor, start = state.weight, net.calibration.state(unit, state.candidate)
        assert tensor.codes.dtype == torch.int16
        assert tensor.params.qmin <= int(tensor.codes.min()) <= int(tensor.codes.max()) <= tensor.params.qmax
        assert torch.equal(tensor.params.scale, start.weight.params.scale)
        scale, _ = tensor.params.expanded(tensor.codes.ndim)
        weight = net.module.get_submodule(unit).weight.clamp(
            tensor.params.qmin * scale, tensor.params.qmax * scale
        )
        assert ((tensor.dequantize() - weight).abs() <= 1.0001 * scale).all()
        moved += int((tensor.codes != quantize(net.module.get_submodule(unit).weight, tensor.params)).sum())
    assert moved > 10


@pytest.mark.parametrize("name", ["conv", "vit"])
def test_two_runs_of_a_seed_are_the_same_and_the_float_model_is_left_as_found(tiny, left_as_found, name):
    net = tiny(name)
    first, _ = once(net, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)  # nothing may come from the global state
        check = left_as_found(net.module)
        assert equal(run(net), first)
        check()


def test_another_seed_learns_another_rounding(tiny):
    net = tiny("conv")
    assert not equal(run(net, replace(SHORT, seed=1)), once(net, "conv")[0])


class StopError(Exception):
    pass


@pytest.mark.parametrize(
    ("name", "after"), [*(("conv", i) for i in range(3)), *(("vit", i) for i in range(4))]
)
def test_interrupted_after_any_block_it_resumes_to_the_same_result(tiny, left_as_found, name, after):
    net = tiny(name)
    check = left_as_found(net.module)
    known = {}

    def stop(block, states, result):
        known.update(states)
        if block == net.blocks[after][0]:
            raise StopError

    with pytest.raises(StopError):
        run(net, on_block=stop)
    check()
    assert list(known) == [unit for _, units in net.blocks[: after + 1] for unit in units]
    reports = []
    assert equal(
        run(net, known={0: known}, on_block=lambda *report: reports.append(report)), once(net, name)[0]
    )
    assert [result is None for _, _, result in reports] == [i <= after for i in range(len(net.blocks))]


@pytest.mark.parametrize("stopped", [False, True])
def test_nothing_is_dropped_afterwards(tiny, monkeypatch, stopped):
    net, wrapped = tiny("conv"), {}

    def spy(module, names):
        wrapped.update(real_wrap(module, names))
        return wrapped

    real_wrap = phase_walk.wrap_units
    monkeypatch.setattr(phase_walk, "wrap_units", spy)
    kept = []
    run(
        net,
        ReconstructionConfig(iterations=3, batch_size=8),
        on_block=lambda *_: kept.append([layer.input.keep_prob for layer in wrapped.values()]),
    )
    assert kept == [[1.0] * 4] * 3
    assert all(
        layer.input.generator is None and layer.input.log_step is None and "forward" not in layer.__dict__
        for layer in wrapped.values()
    )


def test_while_a_block_learns_its_units_drop_with_the_configured_probability(tiny, monkeypatch):
    net, seen, wrapped = tiny("conv"), set(), {}
    real_wrap, keep_mask = phase_walk.wrap_units, inputs.keep_mask

    def spy(module, names):
        wrapped.update(real_wrap(module, names))
        return wrapped

    def watched(*args):
        seen.add(tuple(layer.input.keep_prob for layer in wrapped.values()))
        return keep_mask(*args)

    monkeypatch.setattr(phase_walk, "wrap_units", spy)
    monkeypatch.setattr(inputs, "keep_mask", watched)
    run(net, ReconstructionConfig(iterations=2, batch_size=4, method="qdrop:keep_prob=0.25"))
    assert seen == {(0.25, 1.0, 1.0, 1.0), (1.0, 0.25, 0.25, 1.0), (1.0, 1.0, 1.0, 0.25)}


@pytest.mark.parametrize(
    "config", [ReconstructionConfig(iterations=0), ReconstructionConfig(iterations=5, method="nearest")]
)
def test_nothing_to_learn_returns_the_start(tiny, config):
    net = tiny("conv")
    states = net.calibration.states(net.uniform("W3A8"))
    found = reconstruct(net.module, net.blocks, states, net.images.inputs(), config)
    assert found is not states
    assert found == states


def test_float_units_stay_float(tiny):
    net = tiny("conv")
    assignment = {**net.uniform("W3A8"), "residual.conv1": net.uniform("float")["stem"]}
    states = {unit: net.calibration.state(unit, candidate) for unit, candidate in assignment.items()}
    reports = []
    config = ReconstructionConfig(iterations=3, batch_size=8)
    found = reconstruct(
        net.module, net.blocks, states, net.images.inputs(), config, on_block=lambda *r: reports.append(r)
    )
    assert found["residual.conv1"] is states["residual.conv1"]
    assert [list(units) for _, units, _ in reports] == [["stem"], ["residual.conv2"], ["head"]]


class Two(nn.Module):
    """A block that reads two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x, y):
        return self.fc(x) + y


class UsesTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.block = nn.Linear(4, 4), Two()

    def forward(self, x):
        return self.block(x, self.gate(x))


def test_a_block_that_reads_two_quantized_tensors_is_refused(left_as_found):
    net, x = UsesTwo(), torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    calibration = calibrate(net, ["gate", "block.fc"], [x])
    check = left_as_found(net)
    states = {unit: calibration.state(unit, Candidate(4, 8)) for unit in ("gate", "block.fc")}
    with pytest.raises(
        ModelError, match="'block' reads more than one tensor that quantised layers have a part in"
    ):
        reconstruct(net, [("gate", ["gate"]), ("block", ["block.fc"])], states, x, SHORT)
    check()


def test_an_unknown_method_is_named(tiny):
    with pytest.raises(UnknownNameError, match="Did you mean 'qdrop'"):
        run(tiny("conv"), ReconstructionConfig(method="qdrp"))


def test_the_channels_come_last_only_where_every_batch_norm_is_folded():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    normed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    assert convolving_fast(plain, torch.zeros(1, 3, 8, 8)) and not convolving_fast(
        normed, torch.zeros(1, 3, 8, 8)
    )
    assert (
        plain[0].weight.is_contiguous(memory_format=torch.channels_last) and normed[0].weight.is_contiguous()
    )
