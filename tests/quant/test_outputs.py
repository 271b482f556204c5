"""Outputs of modules as units without a weight: a tensor is quantised for all that read it, calibrated, stored,
measured, and only in the quantised stream of a reconstruction.
"""

import copy
import pickle

import pytest
import torch
from torch import nn

from mpsearch.data import ImageSet
from mpsearch.deploy.packed import PackedLayout, save_packed
from mpsearch.deploy.packed_reading import load_packed
from mpsearch.errors import ModelError, UnknownNameError
from mpsearch.evaluate import FastEvaluator
from mpsearch.models import ModelSource
from mpsearch.objectives import OBJECTIVES, ScoringContext, score
from mpsearch.problem import FLOAT, Assignment, Candidate, Layer
from mpsearch.quant import install, weightless_names
from mpsearch.quant.outputs import unwrap_outputs, wrap_outputs
from mpsearch.reconstruct import ReconstructionConfig, calibrate, reconstruct

W8A8 = Candidate(8, 8)
UNITS = ("first", "block.0", "block.1", "last")
TENSORS = ("block.output", "first.output")


class Net(nn.Module):
    """A convolution, a residual block of two, a pool and a linear layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1))
        self.last = nn.Linear(4, 5)

    def forward(self, x):
        x = self.first(x)
        return self.last((x + self.block(x)).relu().mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def samples():
    pixels = torch.randint(256, (16, 3, 6, 6), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    return ImageSet(pixels, None, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def images(samples):
    return samples.inputs()


def calibrated(net, images):
    return calibrate(net, (*UNITS, *TENSORS), [images], symmetric_inputs=True)


def assignment(**choices):
    held = {**dict.fromkeys((*UNITS, *TENSORS), FLOAT), **choices}
    return Assignment(tuple(held.items()))


def test_a_tensor_is_quantised_for_all_that_read_it(net, images):
    calibration = calibrated(net, images)
    quantized = install(net, calibration.states(assignment(**{"first.output": W8A8})))
    given = calibration.input_params("first.output", W8A8)
    x = given.fake_quantize(net.first(images))
    expected = net.last((x + net.block(x)).relu().mean((2, 3)))
    assert torch.equal(quantized(images), expected)
    assert not torch.equal(expected, net(images))
    for same in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):  # noqa: S301
        assert torch.equal(same(images), expected)


def test_units_that_read_the_tensor_share_its_grid(net, images):
    calibration = calibrated(net, images)
    assert calibration.twins == {"block.0": "first.output"}
    assert calibration.input_params("block.0", W8A8) == calibration.input_params("first.output", W8A8)
    alone = calibrate(net, UNITS, [images])
    assert not alone.twins and not alone.products


def test_the_hook_goes_with_its_name(net, images):
    before = net(images)
    wrapped = wrap_outputs(net, ["first.output"])
    assert torch.equal(net(images), before)
    unwrap_outputs(wrapped)
    assert not net.first._forward_hooks
    assert weightless_names(net, [*UNITS, *TENSORS]) == [*TENSORS]
    with pytest.raises(UnknownNameError, match=r"fist"):
        wrap_outputs(net, ["fist.output"])
    net.last.register_forward_hook(lambda *_: (before, before))
    wrap_outputs(net, ["last.output"])
    with pytest.raises(ModelError, match=r"returns a tuple, not one tensor"):
        net(images)


def test_a_trial_measures_the_damage_of_a_tensor(net, samples, images):
    calibration = calibrated(net, images)
    evaluator = FastEvaluator(net, calibration, samples)
    assert evaluator.measure(assignment()) == pytest.approx(0, abs=1e-9)
    choices = assignment(**{"block.output": Candidate(8, 2)})
    told = evaluator.logits(choices)
    assert torch.allclose(told, install(net, calibration.states(choices))(images), atol=1e-6)
    assert evaluator.measure(choices) > 1e-6


@pytest.mark.parametrize("name", ["sketch", "output_mse", "fisher", "kl", "gradient"])
def test_objectives_score_a_tensor(net, samples, images, name):
    shape = (1, 4, 6, 6)
    layers = tuple(Layer(tensor, "residual", (), (shape,), shape, 0, "") for tensor in TENSORS)
    rows = ((Candidate(8, 2), W8A8, FLOAT),) * 2
    context = ScoringContext(net, layers, rows, calibrated(net, images), samples)
    for coarse, fine, none in score(OBJECTIVES.create(name), context).rows:
        assert coarse > fine >= none == 0


def test_tensors_are_stored_to_the_byte_and_read_back(net, images, tmp_path):
    states = calibrated(net, images).states(assignment(**{"first.output": W8A8, "block.0": W8A8}))
    layout = PackedLayout.of(net, (*UNITS, *TENSORS), ModelSource("module", "net"), (), {})
    save_packed(tmp_path / "net.safetensors", layout, net, states)
    assert torch.equal(load_packed(tmp_path / "net.safetensors", Net())(images), install(net, states)(images))
    assert layout.unit_bytes("first.output", W8A8) == 8 and layout.unit_bytes("first.output", FLOAT) == 0


@pytest.mark.parametrize("method", ["gptq", "qdrop"])
def test_the_float_stream_of_a_reconstruction_stays_float(net, images, method):
    """With tensors of two bits and exact weights a block's float output is that of the float model."""
    calibration = calibrated(net, images)
    coarse = dict.fromkeys(TENSORS, Candidate(8, 2))
    choices = assignment(**coarse, **dict.fromkeys(UNITS, W8A8))
    blocks = [("first", ("first",)), ("block", ("block.0", "block.1")), ("last", ("last",))]
    seen = []
    net.last.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    net(images)
    expected = seen.pop()
    config = ReconstructionConfig(iterations=2, method=method, batch_size=8)
    reconstruct(net, blocks, calibration.states(choices), images, config)
    assert any(len(x) == len(expected) and torch.allclose(x, expected, atol=1e-5) for x in seen)
