"""Range calibration: a bounded sample with the extremes in it, and a model left as found."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mpsearch.errors import DataError, ModelError
from mpsearch.problem import Candidate
from mpsearch.quant import OBSERVERS, quantize
from mpsearch.reconstruct import calibrate
from mpsearch.reconstruct.calibrate import MAX_INPUT_VALUES


class Inputs:
    """What each unit reads and gives, kept whole."""

    def __init__(self, net) -> None:
        self.read, self.given = {}, {}
        modules = {unit: net.module.get_submodule(unit) for unit in net.units}
        handles = [m.register_forward_hook(self._hook(unit)) for unit, m in modules.items()]
        with torch.no_grad():
            net.module(net.images.inputs())
        for handle in handles:
            handle.remove()

    def _hook(self, unit):
        def hook(_, args, output):
            self.read[unit], self.given[unit] = args[0].flatten(), output.flatten()

        return hook


@pytest.mark.parametrize("name", ["conv", "vit"])
def test_a_small_sample_is_everything(tiny, name):
    net = tiny(name)
    whole = Inputs(net)
    for unit in net.units:
        assert len(whole.read[unit]) < MAX_INPUT_VALUES
        for kept, seen in (
            (net.calibration.inputs[unit], whole.read[unit]),
            (net.calibration.outputs[unit], whole.given[unit]),
        ):
            assert torch.equal(kept[:-2], seen)
            assert kept[-2:].tolist() == [float(seen.min()), float(seen.max())]
        assert torch.equal(net.calibration.weights[unit], net.module.get_submodule(unit).weight)


def test_a_long_sample_is_bounded_and_holds_the_extremes():
    net = nn.Sequential(nn.Linear(1024, 2))
    batches = [torch.randn(600, 1024, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    batches[1][3, 5], batches[2][7, 9] = -50.0, 60.0
    done = []
    found = calibrate(net, ["0"], batches, on_batch=done.append)
    kept = found.inputs["0"]
    assert done == [600, 1200, 1800]
    assert MAX_INPUT_VALUES // 4 < len(kept) <= MAX_INPUT_VALUES + 2
    assert (float(kept.min()), float(kept.max())) == (-50.0, 60.0)
    assert float(kept[:-2].std()) == pytest.approx(1, abs=0.05)
    assert torch.equal(calibrate(net, ["0"], batches).inputs["0"], kept)
    assert not torch.equal(calibrate(net, ["0"], batches, seed=1).inputs["0"], kept)
    every = torch.cat(batches)
    shares = [float(torch.isin(kept, batch.flatten()).float().mean()) for batch in batches]
    assert all(0.2 < share < 0.5 for share in shares), f"{shares} of {len(every)}"


@pytest.mark.parametrize("failing", [False, True])
def test_the_model_is_left_as_found(tiny, left_as_found, failing):
    net = tiny("conv")
    check = left_as_found(net.module)
    if failing:
        with pytest.raises(RuntimeError):
            calibrate(net.module, net.units, [net.images.inputs(), torch.zeros(1, 5, 12, 12)])
    else:
        calibrate(net.module, net.units, [net.images.inputs()])
    check()


def test_no_images_are_refused(tiny):
    with pytest.raises(DataError, match="no images"):
        calibrate(tiny("conv").module, ["stem"], [])


class Unreached(nn.Module):
    """A model with a layer that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.used(x)


def test_a_unit_that_is_never_called_is_named():
    with pytest.raises(ModelError, match="'spare' was never called"):
        calibrate(Unreached(), ["used", "spare"], [torch.zeros(2, 4)])


def test_a_unit_that_is_not_there_is_named():
    with pytest.raises(ModelError, match="no units \\['spear'\\]"):
        calibrate(Unreached(), ["used", "spear"], [torch.zeros(2, 4)])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("batch", [0, 1])
def test_values_that_are_not_finite_name_the_unit(bad, batch):
    batches = [torch.zeros(2, 4), torch.zeros(2, 4)]
    batches[batch][1, 2] = bad
    with pytest.raises(ModelError, match="'used' meets NaN or infinity"):
        calibrate(Unreached(), ["used"], batches)


def test_states_are_nearest_rounding_by_the_named_observers(tiny):
    net = tiny("conv")
    found = calibrate(
        net.module,
        net.units,
        [net.images.inputs()],
        weight_observer="minmax",
        input_observer="percentile:percent=99",
    )
    for text, axis in (("W3A5", 0), ("W3A5/tensor", None)):
        candidate = Candidate.parse(text)
        state = found.state("residual.conv1", candidate)
        weight = net.module.residual.conv1.weight
        params = OBSERVERS.create("minmax").observe(weight, 3, symmetric=True, axis=axis)
        given = OBSERVERS.create("percentile:percent=99").observe(
            found.inputs["residual.conv1"], 5, symmetric=False
        )
        assert state.candidate == candidate
        assert torch.equal(state.weight.codes, quantize(weight, params))
        assert torch.equal(state.weight.params.scale, params.scale)
        assert (state.activation.bits, float(state.activation.scale), int(state.activation.zero_point)) == (
            5,
            float(given.scale),
            int(given.zero_point),
        )


def test_quantisers_are_made_once_and_a_float_unit_has_none(tiny):
    net = tiny("conv")
    assert net.calibration.weight_params("stem", Candidate(4, 8)) is net.calibration.weight_params(
        "stem", Candidate(4, 4)
    )
    assert net.calibration.weight_params("stem", Candidate(4, 8)) is not net.calibration.weight_params(
        "stem", Candidate(4, 8, w_granularity="tensor")
    )
    assert net.calibration.input_params("stem", Candidate(4, 8)) is net.calibration.input_params(
        "stem", Candidate(2, 8)
    )
    state = net.calibration.state("stem", Candidate(None, None, "float"))
    assert (state.weight, state.activation) == (None, None)
    with pytest.raises(ValueError, match="float candidate"):
        net.calibration.weight_params("stem", Candidate(None, None, "float"))
    assert list(net.calibration.states(net.uniform("W4A8"))) == net.units
