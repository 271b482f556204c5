"""`Problem` and `Solution`: everything a solver needs, in plain numbers, with its JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mpsearch.errors import StudyError, UserError
from mpsearch.problem.assignment import Assignment, Candidate, Cost
from mpsearch.problem.budget import PEAKS
from mpsearch.problem.interaction import Interaction
from mpsearch.problem.layer import Layer

SCHEMA = 1
SCHEMA_INTERACTIONS = 2
"""Schema of a problem with interactions; one without is written as before."""
SCHEMA_CONVERSIONS = 3
"""Schema of a problem with conversions; likewise."""
FLOAT_BYTES = "float_bytes"
"""Entry of `constants`: size of the file if nothing were quantised."""
Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Problem:
    """L layers with their candidates, the damage and the cost of each, and what costs beside them.

    Args:
        layers: L units.
        candidates: For each layer its choices; C_l may differ from layer to layer.
        scores: Objective name -> `L x C_l` damage, lower is better, 0 is unquantised.
        costs: Resource -> `L x C_l` cost of each choice; the total is their sum, or of a resource of `PEAKS`
            the greatest.
        constants: Resource -> cost of everything that is not a layer (header, biases, norms; the rest of the
            latency). And `FLOAT_BYTES`, where known.
        estimated: Resources of which at least one row was estimated, not measured.
        interactions: Objective name -> what joint choices add to its table of scores.
        conversions: Resource -> what the choices of two layers together add to its total, in its unit; such
            as the latency of changing the number format between neighbours.
    """

    layers: tuple[Layer, ...]
    candidates: tuple[tuple[Candidate, ...], ...]
    scores: dict[str, Table] = field(default_factory=dict)
    costs: dict[str, Table] = field(default_factory=dict)
    constants: dict[str, float] = field(default_factory=dict)
    estimated: tuple[str, ...] = ()
    interactions: dict[str, tuple[Interaction, ...]] = field(default_factory=dict)
    conversions: dict[str, tuple[Interaction, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.candidates):
            raise UserError(f"{len(self.layers)} layers but {len(self.candidates)} lists of candidates.")
        for what, tables in (("score", self.scores), ("cost", self.costs)):
            for name, table in tables.items():
                if [len(row) for row in table] != [len(c) for c in self.candidates]:
                    raise UserError(
                        f"The {what} table {name!r} does not have one entry for each layer and candidate."
                    )
                bad = next((i for i, row in enumerate(table) if not all(math.isfinite(v) for v in row)), None)
                if bad is not None:
                    raise UserError(
                        f"The {what} table {name!r} is not finite at layer {self.layers[bad].name!r}: "
                        f"{table[bad]}."
                    )
        for name, terms in self.interactions.items():
            if name not in self.scores:
                raise UserError(
                    f"There are interactions of {name!r} but no score table of that name; give it one, "
                    "of zeros where there is nothing to add."
                )
            self._check_terms(f"interaction of {name!r}", terms)
        for resource, terms in self.conversions.items():
            self._check_conversions(resource, terms)

    def _check_conversions(self, resource: str, terms: Sequence[Interaction]) -> None:
        if resource not in self.costs:
            raise UserError(
                f"There are conversions of {resource!r} but no cost table of that name; give it one, of "
                "zeros where there is nothing to add."
            )
        if resource in PEAKS:
            raise UserError(
                f"There are conversions of {resource!r}, of which the greatest row counts and no sum. "
                "Put what they use into the rows."
            )
        wide = next((term for term in terms if len(term.layers) > 2), None)
        if wide is not None:
            raise UserError(
                f"A conversion of {resource!r} is between the layers {wide.layers}; it must be between two."
            )
        self._check_terms(f"conversion of {resource!r}", terms)

    def _check_terms(self, what: str, terms: Sequence[Interaction]) -> None:
        for term in terms:
            if not all(0 <= i < len(self.layers) for i in term.layers):
                raise UserError(
                    f"An {what} names the layers {term.layers}; the problem has the layers 0 to "
                    f"{len(self.layers) - 1}."
                )
            if term.shape != tuple(len(self.candidates[i]) for i in term.layers):
                names = ", ".join(self.layers[i].name for i in term.layers)
                raise UserError(
                    f"The {what} between {names} has the shape {term.shape}, which is not their numbers "
                    "of candidates."
                )

    @property
    def ties(self) -> list[list[int]]:
        """Groups of layer indices that share a choice; a free layer is a group of one. In the order of first
        members.
        """
        groups: dict[object, list[int]] = {}
        for i, layer in enumerate(self.layers):
            groups.setdefault(("tie", layer.tie) if layer.tie is not None else ("free", i), []).append(i)
        return list(groups.values())

    def assignment(self, indices: Sequence[int]) -> Assignment:
        """The assignment that takes choice `indices[l]` at layer l."""
        return Assignment(
            tuple(
                (layer.name, c[i]) for layer, c, i in zip(self.layers, self.candidates, indices, strict=True)
            )
        )

    def indices(self, assignment: Assignment) -> tuple[int, ...]:
        """Inverse of `assignment`. Raises UserError where a layer or candidate is not in the problem."""
        if set(assignment) != {layer.name for layer in self.layers}:
            odd = sorted(set(assignment) ^ {layer.name for layer in self.layers})
            raise UserError(
                f"The assignment and the problem do not have the same layers; they differ in {odd[:5]}."
            )
        found = []
        for layer, candidates in zip(self.layers, self.candidates, strict=True):
            if assignment[layer.name] not in candidates:
                raise UserError(
                    f"Layer {layer.name!r} has no candidate {assignment[layer.name]}; it has "
                    f"{', '.join(map(str, candidates))}."
                )
            found.append(candidates.index(assignment[layer.name]))
        return tuple(found)

    def cost(self, indices: Sequence[int]) -> Cost:
        """Predicted cost, for each known resource: the constant and the sum of rows and conversions; of a
        peak the constant and the greatest row.
        """
        return Cost(**{resource: self._total(resource, indices) for resource in self.costs})

    def _total(self, resource: str, indices: Sequence[int]) -> float:
        rows = [row[i] for row, i in zip(self.costs[resource], indices, strict=True)]
        constant = self.constants.get(resource, 0.0)
        if resource in PEAKS:
            return constant + max(rows, default=0.0)
        return (
            math.fsum([*rows, *(term.value(indices) for term in self.conversions.get(resource, ()))])
            + constant
        )

    def score(self, objective: str, indices: Sequence[int]) -> float:
        """Predicted damage: the sum of the rows and of the interactions."""
        rows = [row[i] for row, i in zip(self.scores[objective], indices, strict=True)]
        return math.fsum([*rows, *(term.value(indices) for term in self.interactions.get(objective, ()))])

    def only(self, kept: Sequence[Sequence[int]]) -> Problem:
        """The same with fewer candidates: at layer l those at the positions `kept[l]`, in that order."""

        def pick(table: Table) -> Table:
            return tuple(tuple(row[c] for c in at) for row, at in zip(table, kept, strict=True))

        return replace(
            self,
            candidates=tuple(
                tuple(row[c] for c in at) for row, at in zip(self.candidates, kept, strict=True)
            ),
            scores={name: pick(table) for name, table in self.scores.items()},
            costs={name: pick(table) for name, table in self.costs.items()},
            interactions={
                name: tuple(term.only(kept) for term in terms) for name, terms in self.interactions.items()
            },
            conversions={
                name: tuple(term.only(kept) for term in terms) for name, terms in self.conversions.items()
            },
        )

    def uniform(self, candidate: Candidate) -> tuple[int, ...] | None:
        """Indices of `candidate` at every layer that has more than one choice; None if one of these lacks
        it. A layer without a weight has its input bits.
        """
        found = []
        for candidates in self.candidates:
            place = next(
                (candidates.index(c) for c in (candidate, candidate.of_inputs) if c in candidates), None
            )
            if place is None and len(candidates) > 1:
                return None
            found.append(place or 0)
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`."""
        terms = {
            what: {name: [term.to_json() for term in found] for name, found in getattr(self, what).items()}
            for what in ("interactions", "conversions")
        }
        schemas = ((self.conversions, SCHEMA_CONVERSIONS), (self.interactions, SCHEMA_INTERACTIONS))
        return {
            "schema": next((schema for held, schema in schemas if held), SCHEMA),
            "layers": [layer.to_json() for layer in self.layers],
            "candidates": [[str(c) for c in row] for row in self.candidates],
            "scores": self.scores,
            "costs": self.costs,
            "constants": self.constants,
            "estimated": list(self.estimated),
            **{what: found for what, found in terms.items() if found},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Problem:
        """Inverse of `to_json`. Raises StudyError on another schema."""
        if data.get("schema") not in (SCHEMA, SCHEMA_INTERACTIONS, SCHEMA_CONVERSIONS):
            known = f"{SCHEMA} to {SCHEMA_CONVERSIONS}"
            raise StudyError(
                f"The problem has schema {data.get('schema')!r}; this version of mpsearch reads {known}. "
                "Run the study again."
            )

        def tables(found: dict[str, list[list[float]]]) -> dict[str, Table]:
            return {name: tuple(tuple(row) for row in table) for name, table in found.items()}

        def terms(what: str) -> dict[str, tuple[Interaction, ...]]:
            return {
                name: tuple(Interaction.from_json(d) for d in found)
                for name, found in data.get(what, {}).items()
            }

        return cls(
            tuple(Layer.from_json(d) for d in data["layers"]),
            tuple(tuple(Candidate.parse(c) for c in row) for row in data["candidates"]),
            tables(data["scores"]),
            tables(data["costs"]),
            dict(data["constants"]),
            tuple(data["estimated"]),
            terms("interactions"),
            terms("conversions"),
        )

    @classmethod
    def load(cls, path: Path) -> Problem:
        """Read a `problem.json`. Raises StudyError where it is missing or not one."""
        try:
            return cls.from_json(json.loads(path.read_text()))
        except OSError:  # no file, no folder, or one that may not be read
            raise StudyError(f"There is no {path}. Name a study folder that `mpsearch run` wrote.") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StudyError(
                f"{path} is not a problem that mpsearch wrote ({type(error).__name__}: {error}). Run the "
                "study again."
            ) from None


def mean_bits(layers: Sequence[Layer], assignment: Mapping[str, Candidate]) -> float:
    """Bits of a weight on average over all weights of these layers; a float weight has 32."""
    total = sum(layer.weight_numel for layer in layers)
    return math.fsum(layer.weight_numel * (assignment[layer.name].w_bits or 32) for layer in layers) / max(
        total, 1
    )


@dataclass(frozen=True)
class Solution:
    """A chosen assignment.

    Args:
        indices: Choice of each layer.
        score: Predicted damage.
        cost: Predicted cost.
        status: `optimal` only where proven, else `feasible`.
        bound: Lower bound of the damage; equals `score` where optimal.
        found_by: Who found it.
    """

    indices: tuple[int, ...]
    score: float
    cost: Cost
    status: str
    bound: float | None = None
    found_by: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`."""
        return {**self.__dict__, "indices": list(self.indices), "cost": self.cost.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Solution:
        """Inverse of `to_json`."""
        return cls(**{**data, "indices": tuple(data["indices"]), "cost": Cost(**data["cost"])})
