"""`block_tuples`: every tuple of bits of a block, measured at the block's output: exact inside the block, additive from block to block."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mpsearch.errors import ModelError, OptionError
from mpsearch.objectives._base import Passes, ScoringContext, require_positive
from mpsearch.objectives._grads import Cotangents, logits_of, mean_squares, only_these
from mpsearch.objectives._local import first_images
from mpsearch.objectives.interacting._base import INTERACTING, Couplings, Interacting
from mpsearch.objectives.interacting._groups import Group, groups_of, raised, table_of
from mpsearch.problem import Interaction
from mpsearch.quant import QuantLayer, UnitState, wrap_units


@INTERACTING.register("block_tuples")
@dataclass(frozen=True)
class BlockTuples(Interacting):
    """Half of E[sum (z_hat - z)^2 g^2] at the output z of each block, all other blocks float, g the gradient of log p(y|x) with y drawn from the model.

    After BRECQ, whose search measures all permutations within a block, of its 2-bit layers alone, and explores them with a genetic algorithm. Here each block
    is one multiple-choice group, so the sum over blocks is minimised exactly. g^2 is the diagonal of the Fisher information; with it the error is
    the second-order estimate of the KL divergence, in nats, so that blocks are comparable.

    References: Li et al., BRECQ, ICLR 2021, section 3.4 and eq. 10, arXiv:2102.05426.

    Args:
        weight: `fisher`; or `none`: squared error over the variance of z, a noise-to-signal ratio.
        images: Calibration images used.
        batch_size: Images of one pass.
        draws: Labels drawn for each image, one backward pass each.
        most_tuples: Of one block; more are refused.
    """

    unit: ClassVar[str] = "nats"
    weight: Literal["fisher", "none"] = "fisher"
    images: int = 32
    batch_size: int = 32
    draws: int = 4
    most_tuples: int = 4096

    def __post_init__(self) -> None:
        require_positive("block_tuples", images=self.images, batch_size=self.batch_size, draws=self.draws, most_tuples=self.most_tuples)

    def passes(self, context: ScoringContext) -> Passes:
        """Forward twice, backward once for each draw; each block alone once for each of its tuples."""
        count, fisher = min(self.images, len(context.images)), self.weight == "fisher"
        tuples = sum(math.prod(len(g.candidates) for g in groups) for groups in _blocks(context).values())
        return Passes(count * (2 if fisher else 1), count * self.draws if fisher else 0, count * tuples)

    def couple(self, context: ScoringContext) -> Couplings:
        """One table for each block; a block with one choice of units has a row."""
        probes = self._probes(context)
        images = first_images(context, self.images)
        cotangents = Cotangents("model", images, context.seed, self.draws)
        steps = -(-len(images) // self.batch_size)
        for done, (inputs, _) in enumerate(images.batches(self.batch_size), start=1):
            powers = _output_powers(context.module, list(probes), inputs, cotangents) if self.weight == "fisher" else {}
            with _watched(context.module, probes, powers):
                context.module(inputs)
            context.on_step(done, steps)
        rows, terms, moved = dict[int, Sequence[float]](), list[Interaction](), 0
        for probe in probes.values():
            table, count = raised(probe.damages(self.weight), [g.candidates for g in probe.groups])
            moved += count
            if len(probe.groups) == 1:
                rows[probe.groups[0].first] = table.tolist()
            else:
                terms.append(Interaction(tuple(g.first for g in probe.groups), table.shape, tuple(table.ravel().tolist())))
        return Couplings(table_of(context, rows), tuple(terms), moved)

    def _probes(self, context: ScoringContext) -> dict[str, _Probe]:
        modules = dict(context.module.named_modules())
        probes = {}
        for block, groups in _blocks(context).items():
            tuples = math.prod(len(g.candidates) for g in groups)
            if tuples > self.most_tuples:
                raise OptionError(
                    f"Block {block!r} has {len(groups)} units with {tuples} tuples of choices; at most {self.most_tuples} are measured. "
                    "Give fewer bits, raise the option most_tuples, or use pairwise."
                )
            if block not in modules:
                raise ModelError(f"The block {block!r} is no module of the model, so its output cannot be measured. Use pairwise.")
            probes[block] = _Probe.of(block, modules[block], groups, context)
        return probes


def _blocks(context: ScoringContext) -> dict[str, list[Group]]:
    """Block -> its groups; of a tie that reaches across blocks each has its own members."""
    found: dict[str, list[Group]] = {}
    for group in groups_of(context):
        for block in sorted(group.blocks):
            own = [i for i in group.layers if context.layers[i].block == block]
            found.setdefault(block, []).append(Group(tuple(own), tuple(context.layers[i].name for i in own), group.candidates, frozenset({block})))
    return found


@dataclass
class _Probe:
    """A copy of a block that computes with quantised units, and the errors of its outputs so far, [C_1, ..., C_n]."""

    groups: list[Group]
    block: nn.Module
    units: dict[str, Any]
    states: dict[str, list[UnitState]]
    weights: dict[str, Tensor]
    errors: np.ndarray[Any, np.dtype[np.float64]]
    images: int = 0
    elements: int = 0
    mean: float = 0.0
    spread: float = 0.0
    inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, module: nn.Module, groups: list[Group], context: ScoringContext) -> _Probe:
        holder = nn.ModuleDict({"block": copy.deepcopy(module)})
        local = {unit: "block" + unit.removeprefix(name) for group in groups for unit in group.names}
        wrapped = wrap_units(holder, local.values())
        states = {unit: [context.calibration.state(unit, c) for c in group.candidates] for group in groups for unit in group.names}
        weights = {unit: context.calibration.weights[unit] for unit in local if unit in context.calibration.weights}
        units = {unit: wrapped[at] for unit, at in local.items()}
        return cls(groups, holder.eval()["block"], units, states, weights, np.zeros([len(g.candidates) for g in groups]))

    def add(self, output: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], power: Tensor | None) -> None:
        """All tuples on one call of the block; `power` is g^2, of the shape of the output."""
        held: list[int | None] = [None] * len(self.groups)
        for choices in itertools.product(*(range(len(g.candidates)) for g in self.groups)):
            for at, choice in enumerate(choices):
                if choice != held[at]:
                    self._load(self.groups[at], choice)
                    held[at] = choice
            square = (self.block(_fresh(args[0]), *args[1:], **kwargs) - output).square()
            self.errors[choices] += float((square if power is None else square * power).double().sum())
        self._add_spread(output.double())

    def _load(self, group: Group, choice: int) -> None:
        for unit in group.names:
            state, layer = self.states[unit][choice], self.units[unit]
            if isinstance(layer, QuantLayer):
                layer.set_weight(self.weights[unit])  # a float state leaves the weight as it is
            layer.set_state(state)

    def _add_spread(self, output: Tensor) -> None:
        """Sum of squares about the mean of all calls (Chan's formula), so that the batch size does not matter."""
        mean, total = float(output.mean()), self.elements + output.numel()
        self.spread += float((output - mean).square().sum()) + (mean - self.mean) ** 2 * self.elements * output.numel() / total
        self.mean += (mean - self.mean) * output.numel() / total
        self.elements = total

    def damages(self, weight: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        return self.errors / max(self.spread, 1e-30) if weight == "none" else self.errors / 2 / max(self.images, 1)


def _fresh(x: Any) -> Any:
    """A copy of what is read: a block may write to its input."""
    return x.clone() if isinstance(x, Tensor) else x


@contextmanager
def _watched(module: nn.Module, probes: dict[str, _Probe], powers: dict[str, list[Tensor | None]]) -> Iterator[None]:
    """While it lasts, each call of a block is measured."""
    calls = dict.fromkeys(probes, 0)

    def before(name: str) -> Any:
        return lambda _, args, kwargs: probes[name].inputs.append(((_fresh(args[0]), *args[1:]), kwargs))

    def after(name: str) -> Any:
        def measure(_: nn.Module, __: tuple[Any, ...], ___: dict[str, Any], output: Tensor) -> None:
            probe, power = probes[name], powers[name][calls[name]] if name in powers else None
            probe.images += 0 if calls[name] else len(output)
            calls[name] += 1
            probe.add(output, *probe.inputs.pop(), torch.zeros(()) if name in powers and power is None else power)

        return measure

    handles = [module.get_submodule(name).register_forward_pre_hook(before(name), with_kwargs=True) for name in probes]
    handles += [module.get_submodule(name).register_forward_hook(after(name), with_kwargs=True) for name in probes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _output_powers(module: nn.Module, blocks: Sequence[str], inputs: Tensor, cotangents: Cotangents) -> dict[str, list[Tensor | None]]:
    """g^2 at the output of every call of each block, the mean over draws; None where the logits do not depend on it."""
    nodes: list[tuple[str, Tensor]] = []

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            with torch.enable_grad():
                nodes.append((name, output if output.requires_grad else output.detach().requires_grad_()))
                return nodes[-1][1].clone()  # what is behind may write in place

        return hook

    handles = [module.get_submodule(name).register_forward_hook(keep(name)) for name in blocks]
    try:
        with only_these(module):
            logits = logits_of(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, list[Tensor | None]] = {name: [] for name in blocks}
    for (name, _), square in zip(nodes, mean_squares(logits, [node for _, node in nodes], cotangents.of(logits)), strict=True):
        found[name].append(square)
    return found
