"""The grid of each tensor that does the least damage, measured at the output of its unit.

The damage of a grid is the sum over images of (squared gradient at the output of the unit) * (what the grid
moves there)^2, all else float: for logits the gradient of the cross entropy with labels drawn from the model
itself, whose second moment is their Fisher information. For a layer the candidates of two steps are the best
few by the error of the tensor. A function of activations has no output of its own and is judged at its
operand, where all pairs of steps can be tried.

References: after Tai and Wu, MPTQ-ViT, arXiv:2401.14895 (OPT-m, whose formulas were not seen), and Yuan et
al., PTQ4ViT, ECCV 2022, arXiv:2111.12293 (the Hessian-guided choice of a scale). Differs in: the candidates
are not a line search.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mpsearch.data import SampleSet
from mpsearch.objectives._grads import Call, Cotangents, mean_squares, nodes_of, only_these, recorded
from mpsearch.problem import Candidate
from mpsearch.quant import OBSERVERS, ActivationQuantizer, AffineParams, UnitState
from mpsearch.quant.devices import wide
from mpsearch.quant.region_search import least_weighted, named, two_region_shortlist
from mpsearch.quant.regions import SPLITS, Split
from mpsearch.reconstruct import Calibration
from mpsearch.reconstruct.ranges import Operand

Key = tuple[str, int, int]
"""Unit, bits, and which of its operands."""

BATCH = 16
DRAWS = 2
SHORTLIST = 3
"""Pairs of steps of each split that are judged at a layer's output."""
KEPT = 2**15
"""Values of an operand that are kept of a batch."""
UNIFORM: Mapping[str, tuple[str, bool]] = {
    "mse": ("mse", False),
    "mse, symmetric": ("mse", True),
    "minmax": ("minmax", False),
    "percentile 99.9": ("percentile:percent=99.9", False),
    "percentile 99.99": ("percentile:percent=99.99", False),
}
"""Name -> observer, and whether its grid is signed around zero."""


@dataclass
class Tried:
    """The grids that a tensor may have at one width.

    Args:
        values: Sample of the tensor, 1-D.
        bits: Width.
        uniform: Uniform grids by name.
        splits: Splits of two steps.
        roots: Logarithmic levels, by the root of their base.
    """

    values: Tensor
    bits: int
    uniform: dict[str, AffineParams]
    splits: tuple[Split, ...] = ()
    roots: tuple[int, ...] = ()
    seen: list[Tensor] = field(default_factory=list, repr=False)
    powers: list[Tensor] = field(default_factory=list, repr=False)

    def shortlist(self) -> dict[str, ActivationQuantizer]:
        """The uniform grids, and the best two steps by the error of the tensor."""
        found: dict[str, ActivationQuantizer] = dict(self.uniform)
        for split in self.splits:
            for params in two_region_shortlist(self.values, self.bits, split, SHORTLIST):
                found[named(params)] = params
        return found


def tried_grids(calibration: Calibration, widths: list[int], observer: str, softmax: str) -> dict[Key, Tried]:
    """The grids that are judged, for every tensor and width that leaves a choice.

    Args:
        calibration: What was seen of each tensor.
        widths: Bits.
        observer: `opt_m` (uniform by mse, and two steps), `auto` (all), or another, which leaves no choice.
        softmax: Of the probabilities of attention: `auto` tries logarithmic and two steps, `uniform` leaves
            them to the observer, any other leaves no choice.
    """
    seen: dict[tuple[str, int], Operand] = {
        (unit, 0): Operand(values) for unit, values in calibration.inputs.items()
    }
    seen |= {(u, i): each for u, known in calibration.products.items() for i, each in enumerate(known)}
    found: dict[Key, Tried] = {}
    for (unit, operand), each in seen.items():
        if calibration.twins.get(unit, unit) != unit:
            continue  # it has the grid of another
        kind = softmax if each.is_distribution and softmax != "uniform" else observer
        for bits in widths if kind in ("opt_m", "auto") else ():
            found[unit, bits, operand] = _tried(each, bits, kind, softmax)
    return found


def _tried(seen: Operand, bits: int, kind: str, softmax: str) -> Tried:
    names = UNIFORM if kind == "auto" else ["mse"]
    uniform = {
        name: OBSERVERS.create(UNIFORM[name][0]).observe(seen.values, bits, symmetric=UNIFORM[name][1])
        for name in names
    }
    few = seen.values
    if len(few) > KEPT:  # its extremes are the last two
        draw = torch.Generator("cpu").manual_seed(0)  # the same places on every device
        picked = torch.randint(len(few), (KEPT,), generator=draw, device="cpu").to(few.device)
        few = torch.cat([few[picked], few[-2:]])
    if not seen.is_distribution:
        return Tried(few, bits, uniform, SPLITS)
    uneven = softmax != "uniform"
    return Tried(few, bits, uniform, ("unsigned",) if uneven else (), (1, 2) if uneven else ())


def best_grids(
    module: nn.Module,
    tried: Mapping[Key, Tried],
    images: SampleSet,
    *,
    seed: int = 0,
    classes: bool = True,
    on_step: Callable[[int, int], None] | None = None,
) -> dict[Key, tuple[str, ActivationQuantizer]]:
    """For each tensor and width the grid of least damage, with its name; of equals the first.

    Args:
        module: Float model in eval mode.
        tried: Grids that are compared.
        images: What the damage is measured on.
        seed: Of the drawn labels.
        classes: Whether outputs are logits; else every output counts alike.
        on_step: Called with batches done, and how many there are.
    """
    units = sorted({unit for unit, _, _ in tried})
    cotangents = Cotangents("model" if classes else "rademacher", images, seed, DRAWS)
    judge = _Judge(tried, torch.Generator("cpu").manual_seed(seed))  # the same places on every device
    steps = -(-len(images) // BATCH)
    for done, (inputs, _) in enumerate(images.batches(BATCH)):
        with only_these(module), recorded(module, units, "output") as calls, torch.enable_grad():
            logits = module(inputs).flatten(1)
        powers = iter(mean_squares(logits, nodes_of(calls), cotangents.of(logits)))
        for unit, found in calls.items():
            for call in found:
                judge.look(unit, call, [next(powers) for _ in call.nodes])
        if on_step is not None:
            on_step(done + 1, steps)
    return judge.best()


class _Judge:
    """Adds up the damage of every grid, batch by batch.

    Args:
        tried: Grids by tensor and width.
        generator: Picks what is kept of operands.
    """

    def __init__(self, tried: Mapping[Key, Tried], generator: torch.Generator) -> None:
        self._tried, self._generator = tried, generator
        self._grids: dict[Key, dict[str, ActivationQuantizer]] = {}
        self._damage: dict[Key, dict[str, float]] = {}
        self._by_unit: dict[str, list[Key]] = {}
        for key in tried:
            self._by_unit.setdefault(key[0], []).append(key)

    @torch.no_grad()
    def look(self, unit: str, call: Call, powers: list[Tensor | None]) -> None:
        """One call of a unit, with the squared gradients at its nodes."""
        if call.reads:
            self._keep(unit, call, powers)
            return
        (power,) = powers
        if power is None:
            return
        for key in self._by_unit[unit]:
            grids = self._grids.setdefault(key, self._tried[key].shortlist())
            damage = self._damage.setdefault(key, dict.fromkeys(grids, 0.0))
            for name, grid in grids.items():
                (shift,) = call.shifts(UnitState(Candidate(None, key[1]), None, grid))
                damage[name] += float(wide(shift.square() * power).sum())

    def _keep(self, unit: str, call: Call, powers: list[Tensor | None]) -> None:
        """A sample of what the unit read, the same places for every width."""
        for operand, (node, power) in enumerate(zip(call.nodes, powers, strict=True)):
            keys = [key for key in self._by_unit[unit] if key[2] == operand]
            if not keys or power is None:
                continue
            x, weight = node.detach().flatten(), power.flatten()
            if len(x) > KEPT:
                picked = torch.randint(len(x), (KEPT,), generator=self._generator, device="cpu").to(x.device)
                x, weight = x[picked], weight[picked]
            for key in keys:
                self._tried[key].seen.append(x)
                self._tried[key].powers.append(weight)

    def best(self) -> dict[Key, tuple[str, ActivationQuantizer]]:
        """The grid of least damage for each tensor and width."""
        found: dict[Key, tuple[str, ActivationQuantizer]] = {}
        for key, tried in self._tried.items():
            if key in self._damage:
                name = min(self._damage[key], key=self._damage[key].__getitem__)
                found[key] = name, self._grids[key][name]
            elif tried.seen:
                x, weights = torch.cat(tried.seen), torch.cat(tried.powers)
                found[key] = least_weighted(x, tried.bits, weights, tried.uniform, tried.splits, tried.roots)
        return found
