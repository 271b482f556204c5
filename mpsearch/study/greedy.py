"""Greedy MP: one notch at a time, whichever does the least measured damage for what it saves.

After Tai and Wu, MPTQ-ViT, arXiv:2401.14895, whose metric could not be read in full. Chosen here: damage is
the rise of the measured loss, over the saving in one resource to a power; a damage of nothing or less is
taken as `epsilon`, so that the saving decides.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Literal

from mpsearch.errors import BudgetError, MpsearchError, OptionError, UnknownNameError
from mpsearch.problem import PEAKS, Budget, Choices, Cost, Problem, Solution
from mpsearch.registry import Registry
from mpsearch.solvers.ask.pareto import non_dominated
from mpsearch.solvers.constraints import Constraints
from mpsearch.study.exchanges import Board, Measure, Step, moved, repair
from mpsearch.study.ladders import Ladders
from mpsearch.study.losses import Losses

_Key = tuple[float, float, int, int]


@dataclass(frozen=True)
class GreedyRun:
    """What a walk came to.

    Args:
        solution: The best of what keeps the budgets, as far as was seen; its score is the measured loss.
        trajectory: From the start on; cost strictly falling (`down`) or rising (`up`).
        measured: How often `measure` was called.
        resource: What was saved; of several the first.
    """

    solution: Solution
    trajectory: tuple[Step, ...]
    measured: int
    resource: str

    def front(self) -> tuple[Step, ...]:
        """The steps that no other dominates: an approximate front, which misses what only exchanges reach."""
        points = [(float(getattr(step.cost, self.resource)), step.loss) for step in self.trajectory]
        return tuple(self.trajectory[i] for i in non_dominated(points))


WALKS: Registry[GreedyMP] = Registry("sampler", "mpsearch.study")


@WALKS.register("greedy_mp")
@dataclass(frozen=True)
class GreedyMP:
    """The walk's options. With U super-layers and S steps, `static` measures each choice once and then S
    times, `lazy` a few a step, `fresh` U a step.

    Args:
        rescoring: `fresh` scores every notch again at every step; `lazy` only the best until it stays the
            best, right where damages grow on the way; `static` scores each notch once with all others at the
            start, right where damages add up.
        direction: `down` from the top until the budgets are kept, `up` from the bottom while they are, or the
            better of `both`.
        resource: What a notch saves; None for that of the budget, of several their sum as `Ladders` weighs
            it, or the size where there is none.
        power: Exponent of the saving in the score; 0 looks at the damage alone.
        repairs: Exchanges of one notch up and one down that are measured in a round of the repair; 0 for no
            repair.
        epsilon: Least damage of a notch, in units of the loss.
    """

    name: ClassVar[str]
    rescoring: Literal["fresh", "lazy", "static"] = "lazy"
    direction: Literal["down", "up", "both"] = "down"
    resource: str | None = None
    power: float = 1.0
    repairs: int = 16
    epsilon: float = 1e-9

    def __post_init__(self) -> None:
        if self.rescoring not in ("fresh", "lazy", "static") or self.direction not in ("down", "up", "both"):
            raise OptionError(
                "Greedy MP rescores fresh, lazy or static and goes down, up or both; not "
                f"{self.rescoring!r} and {self.direction!r}."
            )
        additive = [f.name for f in fields(Cost) if f.name not in PEAKS]
        if self.resource is not None and self.resource not in additive:
            raise UnknownNameError("resource of Greedy MP", self.resource, additive)
        if self.power < 0 or self.repairs < 0 or not 0 < self.epsilon < math.inf:
            raise OptionError(
                "Greedy MP needs a power and a number of repairs of at least 0 and an epsilon above 0, "
                f"not {self.power}, {self.repairs} and {self.epsilon}."
            )

    def solve(
        self,
        problem: Problem,
        budgets: Sequence[Budget],
        measure: Measure,
        *,
        losses: Losses | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> GreedyRun:
        """Walk. The same arguments and the same `measure` give the same run; one that was interrupted goes on
        from `losses`.

        Args:
            problem: Holds the costs; its scores are not looked at.
            budgets: Absolute limits; none, and the walk goes to the other end.
            measure: Loss of `L` choices, lower is better; one that is not finite is never taken.
            losses: Remembers what was measured; a `LossFile` outlives the process.
            on_step: Called with how many steps were taken, and the most that there can be.

        Raises:
            BudgetError: A resource without costs, or a relative budget.
            InfeasibleError: A budget is below the least reachable value.
            MpsearchError: The walk found nothing that keeps all budgets, or the start has no finite loss.
        """
        if not problem.costs:
            raise BudgetError(
                "The problem has no cost table, so there is nothing to save. Give it one, such as size_bytes."
            )
        constraints = Constraints.of(problem, budgets)
        resources = self._resources(problem, budgets)
        ladders = Ladders.of(problem, constraints.layers, *resources)
        board = Board(constraints, ladders, measure, {} if losses is None else losses)
        signs = {"down": [1], "up": [-1], "both": [1, -1]}[self.direction]
        runs = [
            _Walk(self, board, sign, bool(budgets), on_step or (lambda done, total: None)).run(resources[0])
            for sign in signs
        ]
        best = min(runs, key=lambda run: run.solution.score)
        return replace(best, measured=board.measured)

    def _resources(self, problem: Problem, budgets: Sequence[Budget]) -> list[str]:
        """What a notch saves: of peaks, which do not add up, nothing is."""
        if self.resource is not None:
            return [self.resource]
        limited = list(dict.fromkeys(b.resource for b in budgets if b.resource not in PEAKS))
        return limited or ["size_bytes" if "size_bytes" in problem.costs else next(iter(problem.costs))]


@dataclass
class _Walk:
    """One walk. `sign` is 1 downwards, -1 upwards."""

    options: GreedyMP
    board: Board
    sign: int
    limited: bool
    on_step: Callable[[int, int], None]
    at: Choices = field(init=False)
    start: Choices = field(init=False)
    path: list[Choices] = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.at = self.board.ladders.end(self.sign)
        self.path = [self.at]

    def run(self, resource: str) -> GreedyRun:
        if not math.isfinite(self.board.loss(self.start)):
            raise MpsearchError(
                f"The loss is not finite where Greedy MP starts, at {self._named(self.start)}. Check the "
                "model and the data."
            )
        if self.sign < 0 and not self.board.fits(self.start):
            raise MpsearchError(
                f"The cheapest choices in {resource} do not keep all budgets, so Greedy MP cannot go up "
                "from them. Go down, or use `solve`."
            )
        if self.options.rescoring == "fresh":
            self._fresh()
        else:
            self._queued()
        fitting = [choices for choices in self.path if self.board.fits(choices)]
        if not fitting:
            raise MpsearchError(
                f"Greedy MP came to {self._named(self.at)}, where no notch is left, without keeping all "
                "budgets. Use `solve` for them."
            )
        best = repair(self.board, min(fitting, key=self.board.loss), self.options.repairs)
        steps = tuple(map(self.board.step, self.path))
        found = self.board.step(best)
        by = f"greedy {'down' if self.sign > 0 else 'up'}, {self.options.rescoring}"
        return GreedyRun(
            Solution(found.indices, found.loss, found.cost, "feasible", None, by),
            steps,
            self.board.measured,
            resource,
        )

    def _done(self) -> bool:
        return self.sign > 0 and self.limited and self.board.fits(self.at)

    def _fresh(self) -> None:
        while not self._done():
            keys = [
                self._key(m, x) for m in range(len(self.at)) for x in self._next(m) if self._allowed(m, x)
            ]
            best = min(keys, default=None)
            if best is None or math.isinf(best[0]):
                return
            self._take(best[2], best[3])

    def _queued(self) -> None:
        queue = [
            (self._key(m, x), len(self.path), self.at[m]) for m in range(len(self.at)) for x in self._next(m)
        ]
        heapq.heapify(queue)
        while queue and not self._done():
            key, scored_at, origin = heapq.heappop(queue)
            m, x = key[2], key[3]
            if origin != self.at[m] or not self._allowed(m, x):
                continue
            if self.options.rescoring == "lazy" and scored_at < len(self.path):
                heapq.heappush(queue, (self._key(m, x), len(self.path), origin))
            elif math.isinf(key[0]):
                return
            else:
                self._take(m, x)
                for y in self._next(m):
                    heapq.heappush(queue, (self._key(m, y), len(self.path), x))

    def _next(self, m: int) -> list[int]:
        return (self.board.ladders.down if self.sign > 0 else self.board.ladders.up)[m][self.at[m]]

    def _allowed(self, m: int, x: int) -> bool:
        return self.sign > 0 or self.board.fits(moved(self.at, m, x))

    def _take(self, m: int, x: int) -> None:
        self.at = moved(self.at, m, x)
        self.path.append(self.at)
        self.on_step(len(self.path) - 1, self.board.ladders.most_steps)

    def _key(self, m: int, x: int) -> _Key:
        """Least first. Ties: the larger saving, then the earlier layer. Infinite where the loss is not
        finite.
        """
        others = self.start if self.options.rescoring == "static" else self.at
        costs = self.board.ladders.costs[m]
        saving = self.sign * float(costs[self.at[m]] - costs[x])
        before, after = (
            self.board.loss(moved(others, m, self.at[m])),
            self.board.loss(moved(others, m, x)),
        )
        if math.isinf(before) or math.isinf(after):
            return math.inf, -saving, m, x
        ratio = max(self.sign * (after - before), self.options.epsilon) / saving**self.options.power
        return self.sign * ratio, -saving, m, x

    def _named(self, choices: Choices) -> str:
        layers = self.board.constraints.layers
        assignment = self.board.constraints.problem.assignment(layers.expand(choices))
        shown = ", ".join(f"{name} {candidate}" for name, candidate in list(assignment.items())[:3])
        return shown + (", ..." if len(assignment) > 3 else "")
