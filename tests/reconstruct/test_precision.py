"""bfloat16 is taken where the device has units for it and the grids are coarse; the quantiser's own
arithmetic stays float32.
"""

import pytest
import torch

from mpsearch.quant.affine import affine_params, fake_quantize
from mpsearch.quant.learned import learned_step
from mpsearch.reconstruct import ReconstructionConfig, learn, precision, reconstruct
from mpsearch.reconstruct.precision import has_matrix_units, in_bfloat16
from mpsearch.reconstruct.step import Step

CPU = torch.device("cpu")


def test_the_processor_is_asked_whether_it_has_matrix_units(monkeypatch):
    for has in (True, False):
        monkeypatch.setattr(
            torch.cpu,
            "get_capabilities",
            lambda has=has: {"amx_bf16": has, "avx512_bf16": True},
            raising=False,
        )
        assert has_matrix_units(CPU) is has
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not has_matrix_units(CPU) and not has_matrix_units(torch.device("meta"))


@pytest.mark.parametrize(
    ("text", "expected"), [("W4A4", True), ("W2A4", True), ("W4A16", True), ("W8A4", False), ("W4A8", False)]
)
def test_blocks_with_fine_grids_learn_in_float32(tiny, monkeypatch, text, expected):
    net = tiny("conv")
    states = net.calibration.states(net.uniform(text)).values()
    monkeypatch.setattr(precision, "has_matrix_units", lambda _: True)
    assert in_bfloat16(None, states, CPU) is expected
    assert in_bfloat16(True, states, CPU) and not in_bfloat16(False, states, CPU)
    monkeypatch.setattr(precision, "has_matrix_units", lambda _: False)
    assert not in_bfloat16(None, states, CPU)


def test_the_choice_reaches_the_products_of_a_step(tiny, monkeypatch):
    net, seen = tiny("conv"), []
    real = torch.nn.Conv2d._conv_forward
    monkeypatch.setattr(precision, "has_matrix_units", lambda _: True)
    monkeypatch.setattr(
        torch.nn.Conv2d,
        "_conv_forward",
        lambda self, x, w, b: (seen.append((x.dtype, w.dtype)), real(self, x, w, b))[1],
    )
    for text, dtype in (("W4A4", torch.bfloat16), ("W4A8", torch.float32)):
        seen.clear()
        states = net.calibration.states(net.uniform(text))
        learn_one(net, states)
        steps = [dtypes for dtypes in seen if dtypes != (torch.float32, torch.float32)]
        assert (len(steps) == 2 and set(steps) == {(dtype, dtype)}) if dtype == torch.bfloat16 else not steps


def learn_one(net, states):
    reconstruct(
        net.module,
        net.blocks[:1],
        states,
        net.images.inputs(),
        ReconstructionConfig(iterations=2, batch_size=4),
    )


def test_two_runs_in_bfloat16_are_the_same(tiny):
    net = tiny("vit")
    config = ReconstructionConfig(iterations=12, batch_size=8, learning_rate=3e-2, bfloat16=True)
    first, second = (
        reconstruct(
            net.module, net.blocks, net.calibration.states(net.uniform("W3A4")), net.images.inputs(), config
        )
        for _ in range(2)
    )
    for unit, state in first.items():
        assert torch.equal(state.weight.codes, second[unit].weight.codes) and torch.equal(
            state.activation.scale, second[unit].activation.scale
        )


def test_steps_ask_for_the_chosen_precision_once_for_each_block(tiny, monkeypatch):
    net, found = tiny("conv"), []
    monkeypatch.setattr(precision, "has_matrix_units", lambda _: True)

    class Spy(Step):
        def __init__(self, *args):
            super().__init__(*args)
            found.append(self._low)

    monkeypatch.setattr(learn, "Step", Spy)
    states = net.calibration.states({**net.uniform("W4A4"), net.units[0]: net.uniform("W8A8")[net.units[0]]})
    reconstruct(
        net.module, net.blocks, states, net.images.inputs(), ReconstructionConfig(iterations=2, batch_size=4)
    )
    assert found == [False, True, True]


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropped", [False, True])
def test_a_learned_step_of_bfloat16_is_the_float32_one_rounded(given, dropped):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 700, 20, generator=generator).to(given)
    params = affine_params(x.min() / 2, x.max() / 2, 4, symmetric=False)
    keep = (torch.rand(x.shape, generator=generator) < 0.5).to(given) if dropped else None
    weight = torch.randn(x.shape, generator=generator).bfloat16()
    results = []
    for value, dtype in ((x.float(), None), (x, torch.bfloat16)):
        value, factor = value.clone().requires_grad_(), torch.ones((), requires_grad=True)
        output = learned_step(
            value, params, factor, None if keep is None else keep.to(value.dtype), None, dtype
        )
        output.backward(weight.to(output.dtype))
        results.append((output.detach(), value.grad, factor.grad))
    (exact, grad, step), (rough, rough_grad, rough_step) = results
    assert rough.dtype == torch.bfloat16 and rough_grad.dtype == given
    assert torch.equal(rough, exact.bfloat16()) and torch.equal(rough_grad.float(), grad)
    assert float(rough_step) == pytest.approx(float(step), rel=0.05)
    if keep is None:
        assert torch.equal(exact, fake_quantize(x.float(), params))
