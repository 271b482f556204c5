"""Uniform assignments of a problem, and what they are called wherever they appear."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mpsearch.pipeline.config import RunConfig
from mpsearch.problem import Candidate, Problem


@dataclass(frozen=True)
class Uniform:
    """One candidate at every layer that has a choice.

    Args:
        candidate: That of these layers.
        label: `uniform W4A8`; where layers with a weight are fixed at something else, `uniform W4A8 but fixed
            layers`.
        indices: L choices.
    """

    candidate: Candidate
    label: str
    indices: tuple[int, ...]


def uniforms(problem: Problem, candidates: Iterable[Candidate]) -> list[Uniform]:
    """Those of the candidates that some layer and every layer with a choice has, in their order."""
    found = []
    for candidate in candidates:
        indices = problem.uniform(candidate)
        if indices is not None:
            rows = zip(problem.layers, problem.candidates, indices, strict=True)
            has = [row[i] == candidate for layer, row, i in rows if layer.weight_shape]
            if any(has):  # else everything is fixed, and at something else
                found.append(
                    Uniform(
                        candidate, f"uniform {candidate}" + ("" if all(has) else " but fixed layers"), indices
                    )
                )
    return found


def run_uniforms(problem: Problem, config: RunConfig) -> list[Uniform]:
    """Those of the bit-widths that a run searches: W8A8 and so on, widest first."""
    return uniforms(problem, pairs_of_bits(config))


def even_uniforms(problem: Problem, config: RunConfig) -> list[Uniform]:
    """Those of them whose inputs have the weight's bits, or as near as there is."""
    near = {w: min(config.a_bits, key=lambda a: (abs(a - w), -a)) for w in config.bits}
    return uniforms(problem, [c for c in pairs_of_bits(config) if c.a_bits == near[c.w_bits or 0]])


def pairs_of_bits(config: RunConfig) -> list[Candidate]:
    """Every weight width with every input width, the widest first: of those that the target multiplies."""
    held = config.deployment.widths
    return [
        Candidate(w, a)
        for w in sorted(config.bits, reverse=True)
        for a in sorted(config.a_bits, reverse=True)
        if not held or {w, a} <= set(held)
    ]
