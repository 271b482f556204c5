"""What is smallest within a drop, where there is no budget: how much the solver may spend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mpsearch.errors import InfeasibleError
from mpsearch.pipeline.results import Choice
from mpsearch.pipeline.steps.finalists import Chosen, choose
from mpsearch.pipeline.steps.measured_search import Crew
from mpsearch.pipeline.steps.scoring import Floor
from mpsearch.pipeline.steps.search import Found, additive, search_assignments
from mpsearch.pipeline.steps.tightening import REPAIRS, proxy_of
from mpsearch.pipeline.steps.uniforms import run_uniforms
from mpsearch.pipeline.steps.walk import Indices, Judge, path_of, walk
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.problem import Budget, Drop, Problem, told
from mpsearch.reconstruct import Calibration
from mpsearch.units import format_quantity


def floor_of(workshop: Workshop) -> Floor | None:
    """The least score that the settings allow, told; None where they ask for no drop."""
    text = workshop.config.max_drop
    if text is None:
        return None
    floor = workshop.scoring.floor(Drop.parse(text))
    images = len(workshop.subject.splits.search)
    workshop.progress.say(
        f"--max-drop {text}: on the {images} search images float has {told(floor.name, floor.floats)}; "
        f"{told(floor.name, floor.least)} or more is to be kept."
    )
    return floor


@dataclass(frozen=True)
class Limit:
    """What the solver may spend.

    Args:
        budget: On the resource that is to be least.
        kept: Whether what it was measured by, with the states that the search sees, keeps the floor.
    """

    budget: Budget
    kept: bool


@dataclass
class Smallest:
    """Finds the least of a resource within a floor, by the states that the search sees.

    Args:
        problem: With the tables of the objectives.
        searched: Those states.
        workshop: Model, images, settings.
        floor: The least score.
    """

    problem: Problem
    searched: Calibration
    workshop: Workshop
    floor: Floor

    def limit(self, shortfall: float = 0.0) -> Limit:
        """Of the points of the proxy's exact front the cheapest that was measured to keep the floor, or a
        uniform assignment that is cheaper still; the widest where not even that keeps it.

        Args:
            shortfall: By how much what was finished fell below the floor; so much more is asked for.
        """
        problem, workshop, resource = self.problem, self.workshop, self.workshop.minimized
        base = additive(problem, proxy_of(workshop.config))[0]
        path = path_of(replace(problem, interactions={}), base, [], resource)
        judge = Judge(problem, self.searched, workshop.scoring)
        least = self.floor.least + shortfall
        with workshop.progress.task(f"walk the front by {self.floor.name}") as advance:
            found, trail = walk(path, judge, lambda score: score >= least, advance)
        if found is None:
            return self._limit(trail[0].indices, False)
        found = self._cheaper_uniform(found, judge, least) or found
        score = judge.score(found)
        budget = self._limit(found, True)
        workshop.progress.say(
            f"{format_quantity(budget.budget.limit, resource)} is the least measured to keep it, of "
            f"{len(trail)} points of the front: {self.floor.below(score)} on the search images. "
            "It is searched and finished within that."
        )
        return budget

    def _cheaper_uniform(self, found: Indices, judge: Judge, least: float) -> Indices | None:
        """The cheapest uniform assignment that costs less than `found` and keeps the floor."""
        cost = self._cost(found)
        uniform = [u.indices for u in run_uniforms(self.problem, self.workshop.config)]
        cheaper = sorted((u for u in uniform if self._cost(u) < cost), key=self._cost)
        return next((u for u in cheaper if judge.score(u) >= least), None)

    def _cost(self, indices: Indices) -> float:
        return float(getattr(self.problem.cost(indices), self.workshop.minimized))

    def _limit(self, indices: Indices, kept: bool) -> Limit:
        resource, cost = self.workshop.minimized, self._cost(indices)
        room = cost if resource.endswith("_bytes") else cost * (1 + 1e-9)  # times are no whole numbers
        return Limit(Budget(resource, room, f"--max-drop {self.floor.drop.text}"), kept)


def within_drop(
    problem: Problem,
    floor: Floor,
    searched: Calibration,
    workshop: Workshop,
    crew: Crew,
    hardware: Mapping[str, Any],
) -> tuple[Chosen, Found, tuple[Budget, ...]]:
    """Steps 4 and 5 of `--max-drop` without a budget: within what the cheapest point of the front takes that
    keeps the drop, and within more where what is finished does not keep it.

    Args:
        problem: With the tables of the objectives.
        floor: The least score.
        searched: The states that the search sees.
        workshop: Model, images, settings.
        crew: Who measures the trials.
        hardware: What step 2 told of the float model.
    Returns: A choice that keeps it, what it was found among, and the limit that the solver was given.
    Raises: InfeasibleError: Nothing that was finished keeps it.
    """
    smallest, shortfall = Smallest(problem, searched, workshop, floor), 0.0
    config, advice = workshop.config, "Allow more, or add wider candidates with --bits."
    for _ in range(REPAIRS):
        with workshop.clock.step("trials"):
            limit = smallest.limit(shortfall)
            # where nothing narrower is left there is nothing to search for
            plain = config if limit.kept else replace(config, trials=0, polish=0)
            here = replace(workshop, config=plain)
            found = search_assignments(problem, (limit.budget,), searched, here, crew)
        with workshop.clock.step("finalists"):
            chosen = choose(problem, (), found, searched, workshop, hardware, floor=floor)
        best = chosen.best
        if best.kept:
            return chosen, found, (limit.budget,)
        if not limit.kept:
            raise unreachable(best, floor, f"That is the widest there is. {advice}")
        score = (best.drop or {})["search"]
        shortfall += floor.least - score if score is not None else abs(floor.least)
        workshop.progress.say(
            f"{best.label} is finished and does not keep the drop: so much more is asked of the front."
        )
    raise unreachable(best, floor, f"{REPAIRS} sizes were finished. {advice}")


def unreachable(best: Choice, floor: Floor, why: str) -> InfeasibleError:
    """The error where nothing that was finished keeps a drop.

    Args:
        best: The finalist of the highest score.
        floor: The least score.
        why: What was tried, and what to do.
    """
    held: Mapping[str, float | None] = best.drop or {}
    score = held.get("search")
    reached = floor.below(float("-inf") if score is None else score)
    return InfeasibleError(
        f"A drop of {floor.drop.text} is not kept: the least reached is {reached}, by {best.label}, on the "
        f"search images. {why}"
    )
