"""What the search looks at: each unit at each candidate as a reconstruction leaves it, not as rounding to nearest does.

Rounding to nearest overstates the damage of few bits by an order of magnitude, and not by the same factor for every unit, so an assignment that is
best for it need not be best once it is reconstructed. A short reconstruction at each uniform bit-width tells more: a unit's states are taken from the run
at its own candidate. In an assignment of mixed bits they were learned behind other neighbours, which is the approximation made.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from torch import Tensor

from mpsearch.pipeline.steps.finalists import Workshop
from mpsearch.problem import Assignment, Candidate, Problem
from mpsearch.quant import AffineParams, TwoRegionParams, UnitState
from mpsearch.reconstruct import Calibration


def searched_calibration(problem: Problem, workshop: Workshop) -> Calibration:
    """The quantisers with learned states for every integer candidate of a unit with a weight; as they are where the settings ask for no steps.

    The work is that of as many reconstructions as there are candidates, at `search_steps`; an interrupted one goes on behind its last block.
    """
    steps = workshop.config.search_steps
    if not steps:
        return workshop.calibration
    learned: dict[tuple[str, Candidate], UnitState] = {}
    for wanted in sorted({c for choices in problem.candidates for c in choices if not c.is_float}, key=_width, reverse=True):
        assignment = Assignment(tuple((layer.name, _nearest(choices, wanted)) for layer, choices in zip(problem.layers, problem.candidates, strict=True)))
        states = workshop.reconstructed(assignment, f"every layer at {wanted}, for the search", steps)
        learned |= {(unit, wanted): state for unit, state in states.items() if assignment[unit] == wanted}
    return replace(workshop.calibration, learned=learned)


def states_digest(calibration: Calibration) -> str:
    """Of what was learned; that of nothing where nothing was."""
    digest = hashlib.sha256()
    for (unit, candidate), state in sorted(calibration.learned.items(), key=str):
        digest.update(f"{unit} {candidate}\n".encode())
        for value in _numbers(state):
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _numbers(state: UnitState) -> list[Tensor]:
    codes = [] if state.weight is None else [state.weight.codes, state.weight.params.scale]
    return [*codes, *([state.activation.step] if isinstance(state.activation, AffineParams | TwoRegionParams) else [])]


def _nearest(choices: tuple[Candidate, ...], wanted: Candidate) -> Candidate:
    """The choice itself where there is it, else the integer one of most similar bits; float where there is no other."""
    integers = [c for c in choices if not c.is_float]
    return min(integers, key=lambda c: (c != wanted, *(abs(a - b) for a, b in zip(_width(c), _width(wanted), strict=True)))) if integers else choices[0]


def _width(candidate: Candidate) -> tuple[int, int]:
    return candidate.w_bits or 32, candidate.a_bits or 32
