"""Codes in closed form: every unit better than rounded to nearest, biases that keep the mean, and a finish
that follows the quantised prefix.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from mpsearch.evaluate import predict
from mpsearch.evaluate.metrics import kl_divergence
from mpsearch.models.reads import Read
from mpsearch.problem import Candidate
from mpsearch.quant import QuantizedTensor, install
from mpsearch.reconstruct import ReconstructionConfig, calibrate, footprint, reconstruct
from mpsearch.reconstruct.calibrate import mean_matched
from mpsearch.reconstruct.closed_form import about, round_units
from mpsearch.reconstruct.memory import ALLOWANCE, counting
from mpsearch.reconstruct.moments import FEWEST_COLUMNS, ROWS_PER_COLUMN, Sums, gather_moments

WIDTHS = tuple(Candidate(bits, 8) for bits in (2, 3, 4, 8))
ASSETS = Path(os.environ.get("MPSEARCH_ASSETS", Path(__file__).parents[3] / "shared" / "assets"))
NETS = ("cifar_resnet20", "cifar_resnet56", "vit_cifar", "resmlp_cifar", "mobilenetv1_075")


def batches(net):
    return lambda: (inputs for inputs, _ in net.images.batches(8))


def rounded(net, **options):
    rows = dict.fromkeys(net.units, WIDTHS)
    return dict(round_units(net.module, net.calibration, rows, batches(net), len(net.images), **options))


def closed(net):
    codes = {(unit, *kind): each for unit, found in rounded(net).items() for kind, each in found.items()}
    return replace(net.calibration, rounded=codes)


def no_worse(module, calibration, units, inputs, images, widths):
    """Squared error of every unit's output, for the moments that were rounded for, of closed form and of
    nearest.
    """
    rows = dict.fromkeys(units, widths)
    codes = dict(round_units(module, calibration, rows, inputs, images))
    for unit, moments in gather_moments(module, units, inputs, images):
        weight = calibration.weights[unit]
        held = about(moments, weight, calibration.corrects(unit)).double()
        for candidate in widths:
            near = calibration.state(unit, candidate).weight
            ours = QuantizedTensor(codes[unit][candidate.w_bits, "channel"].to(torch.int16), near.params)
            ends = []
            for tensor in (ours, near):
                shift = (tensor.dequantize() - weight).double().reshape(len(held), -1, held.shape[1])
                ends.append(float(((shift @ held) * shift).sum()))
            yield unit, candidate, ends


@pytest.mark.parametrize("name", ["conv", "vit"])
def test_every_unit_has_less_output_error_than_rounded_to_nearest(tiny, name):
    net = tiny(name)
    found = list(no_worse(net.module, net.calibration, net.units, batches(net), len(net.images), WIDTHS))
    assert len(found) == len(net.units) * len(WIDTHS)
    assert all(ours <= near * (1 + 1e-6) for _, _, (ours, near) in found)
    assert sum(ours for _, _, (ours, _) in found) < 0.8 * sum(near for _, _, (_, near) in found)


@pytest.mark.assets
@pytest.mark.parametrize("name", NETS)
def test_every_unit_of_real_nets_has_less_output_error(name):
    if not ASSETS.is_dir():
        pytest.skip("the folder of real weights and images is not there (MPSEARCH_ASSETS)")
    from mpsearch.pipeline import RunConfig
    from mpsearch.pipeline.progress import Silent
    from mpsearch.pipeline.steps.loading import load_subject
    from mpsearch.pipeline.steps.ranges import calibrate_subject

    weights = {
        "vit_cifar": "cifar10_vit_d128x6",
        "resmlp_cifar": "cifar10_resmlp_d160x6",
        "mobilenetv1_075": "mobilenetv1_075_in1k",
    }
    images = "imagenet_calib_1000.zip" if name == "mobilenetv1_075" else "cifar10_jpeg_test_5000.zip"
    config = RunConfig(
        budgets=("8bits",),
        model=f"{Path(__file__).parents[2] / 'examples' / 'assets.py'}:{name}",
        weights=str(
            ASSETS / "weights" / f"{weights.get(name, name.replace('cifar', 'cifar10'))}.safetensors"
        ),
        data=str(ASSETS / "images" / images),
        calibration_images=16,
        search_images=4,
        evaluation_images=4,
        target="packed",
    )
    subject = load_subject(config, Silent())
    calibration = calibrate_subject(subject, config, Silent())
    parts = partial(lambda images: (inputs for inputs, _ in images.batches(8)), subject.splits.calibration)
    found = list(
        no_worse(subject.module, calibration, subject.units, parts, 16, (Candidate(3, 8), Candidate(5, 8)))
    )
    assert len(found) == 2 * len(subject.units)
    assert all(ours < near for _, _, (ours, near) in found)


def test_it_is_deterministic_and_groups_of_units_give_the_same(tiny):
    net = tiny("conv")
    first, again, one_by_one = rounded(net), rounded(net), rounded(net, memory_bytes=1)
    for unit in net.units:
        assert first[unit].keys() == {(c.w_bits, "channel") for c in WIDTHS}
        for kind, codes in first[unit].items():
            assert codes.dtype == torch.int8 and codes.shape == net.calibration.weights[unit].shape
            assert torch.equal(codes, again[unit][kind]) and torch.equal(codes, one_by_one[unit][kind])


def test_the_moments_are_those_of_the_windows_and_many_places_are_sampled():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4))
    few, many = torch.randn(5, 2, 8, 8), torch.randn(5, 2, 64, 64)
    for inputs, all_seen in ((few, True), (many, False)):
        found = dict(gather_moments(net, ["0", "2"], lambda inputs=inputs: [inputs[:2], inputs[2:]], 5))
        x = nn.functional.unfold(inputs, 3, padding=1).transpose(0, 1).flatten(1)
        second, mean = x @ x.T / x.shape[1], x.mean(1)
        assert found["0"].rows == x.shape[1] if all_seen else found["0"].rows < x.shape[1] / 2
        assert found["0"].rows >= min(x.shape[1], ROWS_PER_COLUMN * FEWEST_COLUMNS)
        assert torch.allclose(found["0"].second[0].float(), second, atol=1e-5 if all_seen else 0.2)
        assert torch.allclose(found["0"].mean[0], mean, atol=1e-5 if all_seen else 0.1)
        assert found["2"].second.shape == (4, 9, 9) and found["2"].mean.shape == (4, 9)
        covariance = found["0"].covariance[0]
        assert torch.allclose(covariance, second - mean[:, None] * mean, atol=1e-4 if all_seen else 0.3)


@pytest.mark.parametrize("groups", [1, 2])
def test_products_with_the_float_network_are_the_same_multiplied_by_the_weight_before_or_behind(groups):
    torch.manual_seed(0)
    weight = torch.randn(groups, 3, 12 // groups * 9)
    before, behind = Sums(400, 0, weight), Sums(400, 0)
    for _ in range(2):
        ours = 5 + torch.randn(2, 12, 30, 30)
        reads = [
            Read(x, (3, 3), groups=groups, pads=(1, 1, 1, 1))
            for x in (ours, ours + torch.randn(2, 12, 30, 30))
        ]
        before.add(*reads)
        behind.add(*reads)
    found, plain = before.moments(), behind.moments()
    torch.testing.assert_close(found.covariance, weight @ plain.covariance, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.other, (weight @ plain.other[:, :, None])[:, :, 0], rtol=1e-4, atol=1e-3)
    assert before.rows == behind.rows < 2 * 2 * 900  # the same places


def test_a_standardised_weight_is_not_met_and_stays_nearest():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return nn.functional.conv2d(x, weight, self.bias, padding=1)

    net = nn.Sequential(Standardised(3, 4, 3), nn.Conv2d(4, 4, 1)).eval()
    images = [torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))]
    calibration = calibrate(net, ["0", "1"], images)
    found = dict(round_units(net, calibration, {"0": WIDTHS, "1": WIDTHS}, lambda: images, 6))
    assert found["0"] == {} and set(found["1"]) == {(c.w_bits, "channel") for c in WIDTHS}
    assert "0" not in calibration.means and calibration.state("0", WIDTHS[0]).bias is None


@pytest.mark.parametrize("name", ["conv", "vit"])
def test_biases_keep_the_mean_of_every_output(tiny, name):
    """Of each unit alone, on the images of the calibration; without the correction the means are off."""
    net = tiny(name)
    inputs = net.images.inputs()
    for unit in net.units:
        state = replace(net.calibration.state(unit, Candidate(3, 16)), activation=None)
        means = []
        for tried in (None, replace(state, bias=None), state):
            module = install(net.module, {} if tried is None else {unit: tried})
            seen = []
            module.get_submodule(unit).register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
            with torch.no_grad():
                module(inputs)
            out = seen[0]
            means.append(out.mean((0, 2, 3)) if out.ndim == 4 else out.flatten(0, -2).mean(0))
        floats, plain, corrected = means
        if net.module.get_submodule(unit).bias is None:
            assert state.bias is None
            continue
        assert float((corrected - floats).abs().max()) < 1e-4 < float((plain - floats).abs().max())


def test_it_can_be_left_out_and_a_unit_without_a_bias_has_none():
    net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 3)).eval()
    images = [torch.randn(20, 6, generator=torch.Generator().manual_seed(0)) + 1]
    on, off = calibrate(net, ["0", "2"], images), calibrate(net, ["0", "2"], images, bias_correction=False)
    candidate = Candidate(3, 8)
    assert on.state("0", candidate).bias is None and on.state("2", candidate).bias is not None
    assert off.state("2", candidate).bias is None
    state = on.state("2", candidate)
    expected = mean_matched(net[2].bias, net[2].weight, on.means["2"], state.weight, on.means["2"])
    assert torch.equal(state.bias, expected.detach())
    module = install(net, {"2": state})
    module.get_submodule("2").set_bias(None)
    assert torch.equal(module.get_submodule("2").inner.bias, net[2].bias)


@pytest.mark.parametrize("bits", ["W3A8", "W4A4"])
@pytest.mark.parametrize("name", ["conv", "vit"])
def test_the_finish_follows_the_quantised_prefix(tiny, name, bits):
    """It is better than the states it starts from, and than nearest; the model is as found."""
    net = tiny(name)
    calibration, floats = closed(net), predict(net.module, net.images)
    assignment = net.uniform(bits)
    weights = {unit: net.module.get_submodule(unit).weight.clone() for unit in net.units}
    told = []
    states = reconstruct(
        net.module,
        net.blocks,
        calibration.states(assignment),
        net.images.inputs(),
        ReconstructionConfig(method="gptq"),
        on_block=lambda block, found, gained: told.append((block, gained)),
    )
    assert [name for name, _ in told] == net.units and all(
        gained.learned_mse <= gained.start_mse or not gained.kept for _, gained in told
    )
    ends = [calibrate_free(net).states(assignment), calibration.states(assignment), states]
    nearest, start, finished = (
        kl_divergence(predict(install(net.module, found), net.images), floats) for found in ends
    )
    assert finished < start and finished < 0.7 * nearest
    assert all(torch.equal(net.module.get_submodule(unit).weight, kept) for unit, kept in weights.items())
    again = reconstruct(
        net.module,
        net.blocks,
        calibration.states(assignment),
        net.images.inputs(),
        ReconstructionConfig(method="gptq"),
    )
    assert all(torch.equal(states[unit].weight.codes, again[unit].weight.codes) for unit in net.units)


def calibrate_free(net):
    """Rounding to nearest without corrected biases."""
    return calibrate(net.module, net.units, [net.images.inputs()], bias_correction=False)


@pytest.mark.parametrize("method", ["gptq", "qdrop"])
def test_the_bias_of_a_convolution_is_one_that_integer_kernels_have(tiny, method):
    net = tiny("conv")
    start = closed(net).states(net.uniform("W2A4"))
    config = ReconstructionConfig(method=method, iterations=3)
    finished = reconstruct(net.module, net.blocks, start, net.images.inputs(), config)
    looked_at = 0
    for state in finished.values():
        if state.bias is not None and state.weight.codes.ndim == 4:
            steps = state.bias / (state.activation.scale * state.weight.params.scale.flatten())
            torch.testing.assert_close(steps, steps.round(), rtol=1e-6, atol=1e-3)
            looked_at += 1
    assert looked_at > 2


def test_learning_may_start_from_the_closed_form(tiny, monkeypatch):
    """With no steps the learned method keeps the start; from gptq it does not end worse on the blocks it
    learns.
    """
    net = tiny("conv")
    assignment = net.uniform("W2A8")
    start = net.calibration.states(assignment)
    inputs = net.images.inputs()

    def run(method, steps):
        return reconstruct(
            net.module, net.blocks, start, inputs, ReconstructionConfig(iterations=steps, method=method)
        )

    closed_form = run("gptq", 0)
    for method in ("qdrop", "brecq", "adaround", "attention_round"):
        kept = run(method, 0)
        assert all(torch.equal(kept[unit].weight.codes, closed_form[unit].weight.codes) for unit in net.units)
        plain = run(f"{method}:start=nearest", 0)
        assert all(torch.equal(plain[unit].weight.codes, start[unit].weight.codes) for unit in net.units)
    monkeypatch.setattr("mpsearch.reconstruct.learn.PATIENCE", 10**6)
    learned = run("qdrop", 60)
    assert any(
        not torch.equal(learned[unit].weight.codes, closed_form[unit].weight.codes) for unit in net.units
    )


@pytest.mark.parametrize("name", ["conv", "vit"])
def test_its_memory_is_foreseen(tiny, name):
    """By a rehearsal that rounds nothing; what tensors then hold is within a tenth of it."""
    net = tiny(name)
    states = net.calibration.states(net.uniform("W4A8"))
    config = ReconstructionConfig(method="gptq", chunk_size=8)
    images = net.images.inputs()
    foreseen = footprint(net.module, net.blocks, states, images[:4], config)
    with counting() as count:
        reconstruct(net.module, net.blocks, states, images, config)
    held = max(peak for _, peak in count.peaks)
    assert held <= foreseen.bytes_with(len(images)) <= 2 * ALLOWANCE * held


def test_inputs_far_from_zero_that_hardly_vary_are_rounded_too():
    """Sums of squares in float32 would lose what they do; then the moments are no longer positive."""
    net = nn.Sequential(nn.Linear(300, 4)).eval()
    generator = torch.Generator().manual_seed(0)
    inputs = 1000 + torch.randn(40, 300, generator=generator) * torch.linspace(0.01, 0.1, 300)
    calibration = calibrate(net, ["0"], [inputs])
    (found,) = dict(gather_moments(net, ["0"], lambda: [inputs[:20], inputs[20:]], 40)).values()
    exact = torch.cov(inputs.double().T, correction=0)
    assert torch.allclose(found.covariance[0].double(), exact, atol=1e-3 * float(exact.max()))
    (codes,) = dict(
        round_units(net, calibration, {"0": WIDTHS}, lambda: [inputs[:20], inputs[20:]], 40)
    ).values()
    assert set(codes) == {(c.w_bits, "channel") for c in WIDTHS}


def test_without_a_corrected_bias_the_mean_counts():
    """A linear layer that has no bias, or keeps it, is rounded for the whole error of its output, and
    finished so too.
    """
    net = nn.Sequential(nn.Linear(32, 16, bias=False)).eval()
    inputs = 5 + torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    calibration = calibrate(net, ["0"], [inputs])
    candidate = Candidate(3, 8)
    (codes,) = dict(round_units(net, calibration, {"0": (candidate,)}, lambda: [inputs], 200)).values()
    near = calibration.state("0", candidate)
    rounded = replace(near, weight=replace(near.weight, codes=codes[3, "channel"].to(torch.int16)))
    config = ReconstructionConfig(method="gptq")
    finished = reconstruct(net, [("0", ["0"])], {"0": near}, inputs, config)["0"]
    assert not calibration.corrects("0") and finished.bias is None
    with torch.no_grad():
        errors = [
            float((install(net, {"0": s})(inputs) - net(inputs)).square().mean())
            for s in (near, rounded, finished)
        ]
    assert max(errors[1:]) < 0.5 * errors[0]
