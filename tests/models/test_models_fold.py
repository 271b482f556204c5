"""Folding: the folded model computes the same, and what cannot be folded is left alone."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mpsearch.errors import ModelError
from mpsearch.models import analyze, find_foldable, fold_batch_norm, trace_model


def randomized(module: nn.Module) -> nn.Module:
    """Batch norms that do something."""
    torch.manual_seed(0)
    for m in module.modules():
        if isinstance(m, _BatchNorm):
            m.running_mean.normal_()
            m.running_var.uniform_(0.2, 2)
            if m.affine:
                nn.init.normal_(m.weight, 1, 0.3)
                nn.init.normal_(m.bias)
    return module.eval()


def assert_same(module: nn.Module, folded: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected, found = module(x), folded(x)
    assert expected.norm() > 0
    assert (expected - found).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_byobnet"])
def test_all_norms_of_a_cnn_fold(name: str):
    module = randomized(timm.create_model(name))
    x = torch.randn(2, 3, 64, 64)
    pairs = find_foldable(trace_model(module, x), module)
    folded = fold_batch_norm(module, pairs)
    assert len(pairs) == sum(isinstance(m, _BatchNorm) for m in module.modules()) > 10
    assert not any(isinstance(m, _BatchNorm) for m in folded.modules())
    assert_same(module, folded, x)


def test_the_model_itself_is_left_as_it_is():
    module = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    folded = fold_batch_norm(module, [("0", "1")])
    assert module.training and not folded.training
    assert (
        all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
        and module.state_dict().keys() == before.keys()
    )


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_plain_norms(affine: bool, bias: bool):
    module = randomized(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=bias), nn.BatchNorm1d(5, affine=affine), nn.ReLU())
    )
    x = torch.randn(3, 3, 2, 2)
    pairs = find_foldable(trace_model(module, x), module)
    assert pairs == (("1", "2"),)
    assert_same(module, fold_batch_norm(module, pairs), x)


def test_activation_of_a_norm_stays():
    module = randomized(timm.create_model("test_efficientnet"))
    pairs = find_foldable(trace_model(module, torch.zeros(1, 3, 64, 64)), module)
    after = fold_batch_norm(module, pairs).get_submodule(pairs[0][1])
    assert isinstance(after, nn.Sequential) and len(after) == 1
    assert type(after[0]) is type(module.get_submodule(pairs[0][1]).act)


def test_recorded_pairs_fold_a_new_model():
    module = randomized(timm.create_model("test_resnet"))
    pairs = find_foldable(trace_model(module, torch.zeros(1, 3, 64, 64)), module)
    folded, fresh = fold_batch_norm(module, pairs), fold_batch_norm(timm.create_model("test_resnet"), pairs)
    fresh.load_state_dict(folded.state_dict(), strict=True)
    assert_same(module, fresh, torch.randn(1, 3, 64, 64))


class Net(nn.Module):
    """A convolution and two norms, wired by the subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)


class SharedConv(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.conv(self.bn(self.conv(x))))


class SharedNorm(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(F.relu(self.bn(self.conv(x))))


class ReadTwice(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class TwoNorms(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + self.other(y)


class AfterActivation(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(F.relu(self.conv(x)))


class OtherWeight(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(F.conv2d(x, self.conv.weight, padding=1))


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Subclassed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.bn = OwnNorm(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class NoStatistics(Subclassed):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3, track_running_stats=False)


class SharedWeight(Net):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.bn(self.conv(x)))


class TokenNorm(nn.Module):
    """The norm's channels are tokens, not the outputs of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(5, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.linear(x.flatten(2)))


@pytest.mark.parametrize(
    "net",
    [
        SharedConv,
        SharedNorm,
        ReadTwice,
        TwoNorms,
        AfterActivation,
        OtherWeight,
        Subclassed,
        NoStatistics,
        SharedWeight,
        TokenNorm,
    ],
)
def test_what_would_change_the_function_is_not_folded(net: type[nn.Module]):
    module = net().eval()
    assert find_foldable(trace_model(module, torch.randn(1, 3, 5, 1)), module) == ()


class InPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(F.dropout(self.conv(x), 0.5, self.training)).add_(1.0))


def test_dropout_in_eval_mode_does_not_hide_the_layer():
    module = randomized(InPlace())
    x = torch.randn(2, 3, 5, 5)
    pairs = find_foldable(trace_model(module, x), module)
    assert pairs == (("conv", "bn"),)
    assert_same(module, fold_batch_norm(module, pairs), x)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("none", "1"), "no module 'none'"),
        (("1", "0"), "cannot be folded"),
        (("0", "2"), "cannot be folded"),
        (("0", "3"), "does not fit the 4 outputs"),
    ],
)
def test_pairs_of_another_model(pair: tuple[str, str], message: str):
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(5))
    with pytest.raises(ModelError, match=message):
        fold_batch_norm(module, [pair])


class Standardized(nn.Conv2d):
    """A convolution with a standardised weight and a gain, on an input that it pads itself."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, 3)
        self.gain = nn.Parameter(torch.full((out, 1, 1, 1), 0.7))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / weight.std((1, 2, 3), keepdim=True) * self.gain
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), weight, self.bias)


class Computing(nn.Module):
    """Convolutions whose weights are computed at every call, in three ways, and a norm behind the first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.n = Standardized(3, 4), nn.BatchNorm2d(4)
        self.b = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
        self.c = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the old form is deprecated, but there
            self.d = nn.utils.weight_norm(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.n(self.a(x)).relu()).mean((2, 3))).relu())


def test_weights_that_layers_compute_are_put_in_their_place():
    module, x = randomized(Computing()), torch.randn(2, 3, 8, 8)
    pairs = find_foldable(trace_model(module, x), module)
    assert pairs == (("a", "a.weight"), ("b", "b.weight"), ("c", "c.weight"), ("d", "d.weight"), ("a", "n"))
    folded = fold_batch_norm(module, pairs)
    assert_same(module, folded, x)
    graph = analyze(folded, x)
    assert [layer.name for layer in graph.layers] == ["a", "b", "c", "d"] and not graph.leftovers
    assert {name for name in folded.state_dict() if name[0] != "a"} == {
        f"{layer}.{kind}" for layer in "bcd" for kind in ("weight", "bias")
    }
    assert torch.equal(copy.deepcopy(folded)(x), folded(x))
    assert torch.equal(pickle.loads(pickle.dumps(folded.a))(x), folded.a(x))  # noqa: S301


def test_a_computed_weight_can_be_set():
    module, x = Computing().eval(), torch.randn(2, 3, 8, 8)
    folded = fold_batch_norm(module, [("a", "a.weight"), ("d", "d.weight")])
    with torch.no_grad():
        folded.a.weight.zero_(), folded.a.bias.fill_(3.0)
    assert torch.equal(folded.a(x), torch.full((2, 4, 8, 8), 3.0))
    assert torch.equal(
        fold_batch_norm(folded, [("a", "a.weight")]).a(x), folded.a(x)
    )  # what is in its place already stays there


def test_a_weight_that_others_have_a_part_in_is_left_alone():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.factor = nn.Linear(4, 4), nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.a.weight * self.factor)

    module = Scaled().eval()
    assert find_foldable(trace_model(module, torch.randn(1, 4)), module) == ()


def test_a_weight_that_differs_between_calls_is_not_computed_once():
    class Alternating(nn.Linear):
        def __init__(self):
            super().__init__(6, 6)
            self.register_buffer("one", torch.randn(6, 6))
            self.register_buffer("two", torch.randn(6, 6))

        def forward(self, x):
            return nn.functional.linear(
                x, self.weight * (self.one if x.shape[1] == 4 else self.two), self.bias
            )

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Alternating()

        def forward(self, x):
            return self.layer(self.layer(x)[:, :2])

    torch.manual_seed(0)
    module, x = Net().eval(), torch.randn(1, 4, 6)
    assert find_foldable(trace_model(module, x), module) == ()
