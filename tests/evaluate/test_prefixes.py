"""Passes that start behind a shared prefix give the same bits, and nothing is passed by that the rest depends
on; races end early for losers alone.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mpsearch.evaluate import FastEvaluator
from mpsearch.evaluate.prefixes import PrefixRunner
from mpsearch.evaluate.scratch import Scratch, ScratchGrid
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import wrap_units
from mpsearch.quant.affine import affine_params


def runner(module, units, example, room=2**30):
    wrapped = copy.deepcopy(module).eval()
    wrap_units(wrapped, units)
    return PrefixRunner(wrapped, units, example, room, 1)


class Skip(nn.Module):
    """The first layer's output is read again at the end, so nothing but the last sum cuts it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        first = self.a(x.flatten(1))
        return self.d(self.c(self.b(first)) + first)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        return self.c(self.b(self.a(x.flatten(1)).relu_()).add_(1.0))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.b(self.a(self.a(x.flatten(1))))


class Chooses(nn.Module):
    """What the first layer gives decides by its order, which NaN does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        first = self.a(x.flatten(1))
        return self.c(self.b(first) * torch.where(first > 0, 1.0, 2.0))


def units_of(found, place):
    return next(cut.units for cut in found.cuts if cut.place == place)


@pytest.mark.parametrize(
    ("net", "expected"), [(Skip, [("a",)]), (InPlace, [("a",), ("a", "b")]), (Twice, []), (Chooses, [("a",)])]
)
def test_cuts_are_where_the_rest_depends_on_one_output(net, expected):
    torch.manual_seed(0)
    module, x = net().eval(), torch.randn(2, 6, 1, 1)
    units = [name for name, m in module.named_modules() if isinstance(m, nn.Linear)]
    found = runner(module, units, x)
    assert [cut.units for cut in found.cuts] == expected
    kept = {}
    full = found.run(x, None, None, lambda cut, out: kept.update({cut.place: out}))
    with torch.no_grad():
        assert torch.equal(full, module(x))
    for cut in found.cuts:
        held = kept[cut.place].clone()
        for _ in range(2):  # and what is kept is not written to
            assert torch.equal(found.run(torch.full_like(x, 1e3), cut, kept[cut.place]), full)
        assert torch.equal(kept[cut.place], held)


def test_cuts_that_would_not_fit_are_left_out():
    module, x = InPlace().eval(), torch.randn(2, 6, 1, 1)
    assert len(runner(module, ["a", "b", "c"], x, 24).cuts) == 1
    assert not runner(module, ["a", "b", "c"], x, 23).cuts


def changed(assignment, unit, text):
    return Assignment(tuple((u, Candidate.parse(text) if u == unit else assignment[u]) for u in assignment))


@pytest.mark.parametrize("name", ["conv", "vit"])
def test_a_neighbour_runs_what_is_behind_the_change_alone_and_gives_the_same_bits(tiny, name):
    net = tiny(name)
    fast = FastEvaluator(net.module, net.calibration, net.images)
    base = net.uniform("W4A8")
    fast.logits(base)
    for unit in net.units:
        found = fast.logits(changed(base, unit, "W2A4"))
        assert torch.equal(
            found, FastEvaluator(net.module, net.calibration, net.images).logits(changed(base, unit, "W2A4"))
        )
        ran = fast._runner._started
        assert unit in ran
    assert net.units[0] not in ran and len(ran) < len(net.units)  # after the last change, the head's
    fast.logits(base)
    fast.logits(changed(base, net.units[0], "W3A8"))
    assert fast._runner._started == net.units


def test_weights_and_outputs_keep_to_one_bound(tiny):
    net = tiny("conv")
    free = FastEvaluator(net.module, net.calibration, net.images)
    for limit in (400_000, 60_000, 1):
        tight = FastEvaluator(net.module, net.calibration, net.images, memory_limit_bytes=limit)
        for seed in range(6):
            assignment = net.mixed(seed, ("W2A8", "W4A8", "W8A4"))
            assert torch.equal(tight.logits(assignment), free.logits(assignment))
            held = sum(w.nbytes for w in tight._kept.values()) + sum(
                o.nbytes for o in tight._outputs.values()
            )
            assert (
                tight.kept_bytes
                == held
                <= max(limit, max(w.nbytes for w in net.calibration.weights.values()))
            )
    assert free._outputs


@pytest.mark.parametrize("symmetric", [True, False])
def test_quantising_in_scratch_memory_is_the_quantiser_itself(symmetric):
    x = 3 * torch.randn(4, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    params = affine_params(torch.tensor(-2.0), torch.tensor(1.5), 4, symmetric=symmetric)
    grid = ScratchGrid(params, Scratch())
    for tensor in (
        x,
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(0, 2),
        x[:, ::2],
        x[:0],
        x[:1].expand(3, 5, 6, 7),
    ):
        found = grid.fake_quantize(tensor)
        assert torch.equal(found, params.fake_quantize(tensor)) and found.shape == tensor.shape
    assert grid.fake_quantize(x).data_ptr() == grid.fake_quantize(x + 1).data_ptr()
    assert grid.bits == 4
