"""Fine-tuning: learns, gives grid weights that compute what was trained, repeats itself, and resumes to the
same result.
"""

from __future__ import annotations

import copy
import importlib
from dataclasses import replace

import pytest
import torch
from torch import nn

from mpsearch.errors import CheckpointError, DataError, MpsearchError, OptionError
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import QuantizedTensor, UnitState, install, quantize
from mpsearch.quant.affine import affine_params
from mpsearch.reconstruct.finetune import FinetuneConfig, finetune, rate
from mpsearch.reconstruct.sensitivity import mixed_grids, sensitive_units
from mpsearch.reconstruct.student import start_weight

FLOAT = Candidate(None, None, "float")
package = importlib.import_module("mpsearch.reconstruct.finetune")
SHORT = FinetuneConfig(epochs=3, batch_size=8, chunk=8, learning_rate=2e-3, step_learning_rate=1e-2)


def rounded(net, text="W3A4"):
    """States without corrected biases."""
    return {
        unit: replace(state, bias=None) for unit, state in net.calibration.states(net.uniform(text)).items()
    }


def run(net, config=SHORT, text="W3A4", states=None, **more):
    return finetune(net.module, states or rounded(net, text), net.images, config, **more)


def outputs(module, net):
    with torch.no_grad():
        return module(net.images.inputs())


def same(a, b) -> bool:
    values = a.module.state_dict(), b.module.state_dict()
    states = all(
        torch.equal(a.states[u].weight.codes, b.states[u].weight.codes)
        and torch.equal(a.states[u].weight.params.scale, b.states[u].weight.params.scale)
        and torch.equal(a.states[u].activation.scale, b.states[u].activation.scale)
        for u in a.states
    )
    return states and all(torch.equal(values[0][key], values[1][key]) for key in values[0])


@pytest.mark.parametrize("name", ["conv", "vit"])
def test_it_learns_and_the_float_model_is_left_as_found(tiny, left_as_found, name):
    net = tiny(name)
    check = left_as_found(net.module)
    losses = []
    done = run(
        net, replace(SHORT, epochs=12), on_step=lambda step, total, loss: losses.append((step, total, loss))
    )
    check()
    assert [(step, total) for step, total, _ in losses] == [(i + 1, 36) for i in range(36)]
    wanted = outputs(net.module, net).log_softmax(1)

    def kl(module):
        return float((wanted.exp() * (wanted - outputs(module, net).log_softmax(1))).sum(1).mean())

    assert kl(install(done.module, done.states)) < 0.5 * kl(install(net.module, rounded(net)))


def test_a_corrected_bias_is_where_learning_starts_and_learns_too(tiny):
    net = tiny("conv")
    states = net.calibration.states(net.uniform("W3A4"))
    assert any(state.bias is not None for state in states.values())
    still, done = (run(net, replace(SHORT, epochs=epochs), states=states) for epochs in (0, 3))
    assert torch.allclose(
        outputs(install(still.module, still.states), net),
        outputs(install(net.module, states), net),
        atol=1e-6,
    )
    assert all(state.bias is None for state in done.states.values())
    assert not torch.equal(done.module.get_submodule("head").bias, still.module.get_submodule("head").bias)


@pytest.mark.parametrize("name", ["conv", "vit"])
@pytest.mark.parametrize("text", ["W2A8", "W8A2", "W4A4/tensor"])
def test_what_comes_out_computes_what_was_trained(tiny, monkeypatch, name, text):
    net, made = tiny(name), []
    student = package.student_of
    monkeypatch.setattr(package, "student_of", lambda *args: made.append(student(*args)) or made[-1])
    settle, trained = package.float_module, []
    monkeypatch.setattr(
        package, "float_module", lambda *args: trained.append(outputs(made[0][0], net)) or settle(*args)
    )
    done = run(net, text=text)
    torch.testing.assert_close(outputs(install(done.module, done.states), net), trained[0], rtol=0, atol=1e-5)
    moved = []
    for unit, state in done.states.items():
        start = net.calibration.state(unit, state.candidate)
        params = state.weight.params
        assert (str(state.candidate), params.bits, state.activation.bits) == (
            text,
            Candidate.parse(text).w_bits,
            Candidate.parse(text).a_bits,
        )
        assert params.qmin <= int(state.weight.codes.min()) <= int(state.weight.codes.max()) <= params.qmax
        assert torch.equal(
            state.weight.codes, quantize(done.module.get_submodule(unit).weight.detach(), params)
        )
        assert params.scale.shape == start.weight.params.scale.shape
        moved += [
            not torch.equal(params.scale, start.weight.params.scale),
            not torch.equal(state.activation.scale, start.activation.scale),
        ]
    assert all(moved)


def test_all_other_parameters_train_except_the_frozen_ones(tiny):
    net = tiny("vit")
    module = copy.deepcopy(net.module)
    module.pos_embed.requires_grad_(False)
    done = finetune(module, net.calibration.states(net.uniform("W4A4")), net.images, SHORT)
    before, after = dict(module.named_parameters()), dict(done.module.named_parameters())
    still = [key for key in before if torch.equal(before[key], after[key])]
    assert still == ["pos_embed"]


def test_two_runs_of_a_seed_are_the_same_and_another_seed_is_not(tiny):
    net = tiny("conv")
    first = run(net)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)  # nothing may come from the global state
        assert same(run(net), first)
    assert not same(run(net, replace(SHORT, seed=1)), first)


def test_chunks_do_not_change_the_gradient(tiny):
    net = tiny("conv")
    config = replace(SHORT, epochs=1, batch_size=24, learning_rate=1e-4, step_learning_rate=1e-4)
    whole, parts = (run(net, replace(config, chunk=chunk)) for chunk in (24, 7))
    torch.testing.assert_close(
        dict(whole.module.named_parameters()), dict(parts.module.named_parameters()), rtol=0, atol=1e-6
    )


class StopError(Exception):
    pass


def stop_at(number):
    def on_step(step, total, loss):
        if step == number:
            raise StopError

    return on_step


def flip(x, generator):
    return torch.where(torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5, x.flip(3), x)


@pytest.mark.parametrize("name", ["conv", "vit"])
@pytest.mark.parametrize("step", [2, 4, 8])
def test_interrupted_anywhere_it_resumes_to_the_same_result(tiny, tmp_path, name, step):
    net, file = tiny(name), tmp_path / "run.safetensors"
    with pytest.raises(StopError):
        run(net, checkpoint=file, on_step=stop_at(step), augment=flip, every=0.0)
    steps = []
    resumed = run(net, checkpoint=file, on_step=lambda step, total, loss: steps.append(step), augment=flip)
    assert steps == list(range(step + 1, 10))
    assert same(resumed, run(net, augment=flip))
    assert same(run(net, checkpoint=file, on_step=stop_at(1), augment=flip), resumed)
    assert not same(run(net), resumed)


def test_a_checkpoint_is_written_when_its_time_has_come(tiny, tmp_path):
    net, file = tiny("conv"), tmp_path / "run.safetensors"
    with pytest.raises(StopError):
        run(net, checkpoint=file, on_step=stop_at(8))
    assert not file.exists()  # within the first minute there is none


def test_steps_count_in_place_of_epochs(tiny):
    net, seen = tiny("conv"), []
    run(net, replace(SHORT, steps=5), on_step=lambda step, total, loss: seen.append((step, total)))
    assert seen == [(i + 1, 5) for i in range(5)]


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(tiny, tmp_path):
    net, file = tiny("conv"), tmp_path / "run.safetensors"
    run(net, checkpoint=file)
    for other in ({"config": replace(SHORT, seed=5)}, {"text": "W4A4"}):
        with pytest.raises(CheckpointError, match="belongs to another fine-tuning"):
            run(net, checkpoint=file, **other)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="damaged"):
        run(net, checkpoint=file)


def test_learned_codes_are_the_start(tiny):
    net = tiny("conv")
    generator = torch.Generator().manual_seed(0)
    states = {}
    for unit, state in net.calibration.states(net.uniform("W4A8")).items():
        params = state.weight.params
        moved = (
            (state.weight.codes + torch.randint(-1, 2, state.weight.codes.shape, generator=generator))
            .clamp(params.qmin, params.qmax)
            .to(torch.int16)
        )
        states[unit] = replace(state, weight=replace(state.weight, codes=moved))
    done = finetune(net.module, states, net.images, replace(SHORT, epochs=0))
    for unit, state in states.items():
        assert torch.equal(done.states[unit].weight.codes, state.weight.codes)
        scale, _ = state.weight.params.expanded(state.weight.codes.ndim)
        weight = net.module.get_submodule(unit).weight.detach()
        start = done.module.get_submodule(unit).weight.detach()
        kept = quantize(weight, state.weight.params) == state.weight.codes
        assert float(((start - weight) / scale).abs()[kept].max()) <= 0.0011
        assert not kept.all()


def test_start_weight_outside_the_range_is_the_float_weight():
    params = affine_params(torch.tensor(-1.0), torch.tensor(1.0), 3, symmetric=True)
    weight = torch.tensor([-5.0, -0.3, 0.0, 0.4, 7.0])
    tensor = QuantizedTensor(quantize(weight, params), params)
    torch.testing.assert_close(start_weight(weight, tensor), weight)


def test_float_units_train_in_float_and_labels_alone_suffice(tiny):
    net = tiny("conv")
    states = {**net.calibration.states(net.uniform("W4A4")), "head": UnitState(FLOAT)}
    teacher = nn.Module()  # has no forward: distillation would fail
    losses = []
    config = replace(SHORT, label_weight=1.0, epochs=20, learning_rate=1e-2)
    done = finetune(
        net.module,
        states,
        net.images,
        config,
        teacher=teacher,
        on_step=lambda s, t, loss: losses.append(loss),
    )
    assert done.states["head"] == states["head"]
    assert not torch.equal(done.module.head.weight, net.module.head.weight)
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])


def test_labels_that_are_missing_are_refused(tiny):
    net = tiny("conv")
    images = replace(net.images, labels=None)
    with pytest.raises(DataError, match="no labels"):
        finetune(
            net.module, net.calibration.states(net.uniform("W4A4")), images, replace(SHORT, label_weight=0.5)
        )
    assert finetune(
        net.module, net.calibration.states(net.uniform("W4A4")), images, replace(SHORT, epochs=1)
    ).states


def test_a_loss_that_is_nan_stops_at_its_step(tiny):
    net = tiny("conv")
    steps = []

    def spoil(x, generator):
        return x * float("nan") if len(steps) == 2 else x

    with pytest.raises(MpsearchError, match="loss is nan at step 3 of 9"):
        run(net, augment=spoil, on_step=lambda step, total, loss: steps.append(step))
    assert steps == [1, 2]


def test_the_rate_rises_then_falls():
    rates = [rate(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[10] == pytest.approx(0.9755, abs=1e-3)
    assert rates[-1] < 1e-3


def test_the_steps_follow_the_rate(tiny):
    net = tiny("conv")
    still = run(net, replace(SHORT, epochs=1, warmup=1.0, learning_rate=0.0, step_learning_rate=0.0))
    assert torch.equal(still.module.head.bias, net.module.head.bias)
    first, full = (
        run(net, replace(SHORT, epochs=1, batch_size=24, chunk=24, warmup=warmup)) for warmup in (0.0, 1.0)
    )
    assert same(first, full)  # one step of one: warm already
    early, late = (
        run(net, replace(SHORT, epochs=1, warmup=warmup)).module.head.bias - net.module.head.bias
        for warmup in (0.0, 1.0)
    )
    assert float(late.detach().abs().sum()) < 0.9 * float(early.detach().abs().sum())


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": -1},
        {"chunk": 0},
        {"learning_rate": -1.0},
        {"temperature": 0.0},
        {"label_weight": 1.1},
        {"warmup": -0.1},
    ],
)
def test_settings_that_mean_nothing_are_refused(bad):
    with pytest.raises(OptionError):
        FinetuneConfig(**bad)


def test_sensitive_units_are_those_a_symmetric_grid_hurts(tiny, left_as_found):
    net = tiny("conv")
    check = left_as_found(net.module)
    choices = {unit: Candidate(8, 3) for unit in net.units} | {"head": FLOAT}
    assignment = Assignment(tuple(choices.items()))
    found = sensitive_units(net.module, net.calibration, assignment, net.images.inputs())
    check()
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert found.keys() == set(net.units) - {"head"}
    wanted = outputs(net.module, net).double().log_softmax(1)
    symmetric = mixed_grids(net.calibration, assignment, found, float("inf")).states(assignment)
    for unit, kl in found.items():
        alone = install(net.module, {unit: replace(symmetric[unit], weight=None, bias=None)})
        assert float(
            (wanted.exp() * (wanted - outputs(alone, net).double().log_softmax(1))).sum(1).mean()
        ) == pytest.approx(kl, rel=1e-6)
    middle = sorted(found.values())[1]
    grids = {
        unit: state.activation.symmetric
        for unit, state in mixed_grids(net.calibration, assignment, found, middle).states(assignment).items()
        if unit != "head"
    }
    assert grids == {unit: kl <= middle for unit, kl in found.items()}
    assert {True, False} <= set(grids.values())
