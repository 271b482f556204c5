"""What a run finds, as data: the rows of the results table, the choice, and what `results.json` and
`best.json` hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from mpsearch.problem import Assignment, Budget, Cost
from mpsearch.reconstruct import BlockResult

Readings = Mapping[str, Any]
"""What was measured of a model: `metrics`, `search_kl`, `size_bytes` (of the target's file, which budgets
limit), `packed_bytes` (of the checkpoint beside it), and what it takes of other resources.
"""
MEASURED = (
    *("size_bytes", "packed_bytes", "latency_us", "latency_high_us", "energy_mj", "memory_bytes"),
    *("onnx_bytes", "openvino_bytes", "triton_bytes", "tensorrt_bytes"),
)
"""Readings that are told of the choice."""


@dataclass(frozen=True)
class Row:
    """A row of the results table.

    Args:
        label: For people.
        mean_bits: Mean bits of a weight.
        searched: Measured with the states that the search saw; its metrics are on some of the evaluation
            images alone.
        fits: Whether it is predicted to keep the budgets.
        indices: `L` choices; none for the float model.
        assignment: The same by name.
        predicted: Costs.
        reconstructed: Measured as it would be delivered, finished by the method, for finalists.
        gained: What each block gained by it.
    """

    label: str
    mean_bits: float
    searched: Readings
    fits: bool = False
    indices: tuple[int, ...] = ()
    assignment: Assignment | None = None
    predicted: Cost | None = None
    reconstructed: Readings | None = None
    gained: tuple[BlockResult, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`; what a row has not is left out."""
        data: dict[str, Any] = {
            "label": self.label,
            "mean_bits": self.mean_bits,
            "fits": self.fits,
            "predicted": {},
        }
        if self.assignment is not None:
            data |= {"indices": list(self.indices), "assignment": self.assignment.to_json()}
        if self.predicted is not None:
            data["predicted"] = self.predicted.to_json()
        data["searched"] = dict(self.searched)
        if self.reconstructed is not None:
            data["reconstructed"] = dict(self.reconstructed)
        if self.gained:
            data["gained"] = [_gain_json(gain) for gain in self.gained]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        """Inverse of `to_json`."""
        return cls(
            data["label"],
            data["mean_bits"],
            data["searched"],
            data["fits"],
            tuple(data.get("indices", ())),
            Assignment.from_json(data["assignment"]) if "assignment" in data else None,
            Cost(**data["predicted"]) if data["predicted"] else None,
            data.get("reconstructed"),
            tuple(_gain(held) for held in data.get("gained", ())),
        )


def _gain_json(gain: BlockResult) -> dict[str, Any]:
    return {**asdict(gain), "calibrated": list(gain.calibrated), "kept": gain.kept}


def _gain(data: Mapping[str, Any]) -> BlockResult:
    held = {name: value for name, value in data.items() if name != "kept"}
    return BlockResult(**{**held, "calibrated": tuple(held["calibrated"])})


@dataclass(frozen=True)
class Proxy:
    """What the search started from.

    Args:
        objective: That was solved.
        status: `optimal` or `feasible`.
        found_by: The solver.
    """

    objective: str
    status: str
    found_by: str


@dataclass(frozen=True)
class Repair:
    """A budget that was broken when it was measured, whose limit was therefore tightened.

    Args:
        resource: Resource of the budget.
        limit: Limit of the budget.
        predicted: For what was measured.
        measured: What it takes.
    """

    resource: str
    limit: float
    predicted: float
    measured: float


@dataclass(frozen=True)
class Choice:
    """The finalist that is shipped: `best.json`.

    Args:
        label: Label of its row.
        reason: Why it and no other.
        assignment: A candidate for each layer.
        indices: The same as `L` choices.
        budgets: Absolute limits.
        predicted: Costs.
        measured: What it takes, those of `MEASURED` that are known.
        metrics: On the evaluation images.
        proxy: What the search started from.
        artifact: Files, and how what was read back agrees; empty before they are written.
        repairs: Budgets that earlier choices broke.
        drop: What was allowed of a drop and measured on the search images (`steps.scoring.Floor.to_json`);
            None where none was asked for.
    """

    label: str
    reason: str
    assignment: Assignment
    indices: tuple[int, ...]
    budgets: tuple[Budget, ...]
    predicted: Cost
    measured: Readings
    metrics: Mapping[str, Any]
    proxy: Proxy
    artifact: Mapping[str, Any]
    repairs: tuple[Repair, ...] = ()
    drop: Mapping[str, Any] | None = None

    @property
    def kept(self) -> bool:
        """Whether every budget is kept as measured, and the drop."""
        return all(b.kept(self.measured) for b in self.budgets) and (self.drop is None or self.drop["kept"])

    def shipped(self, artifact: Mapping[str, Any]) -> Choice:
        """The same as written: what the files take in new processes is what counts from here on."""
        written = {**artifact, **artifact.get("latency", {})}
        measured = {**self.measured, **{k: written[k] for k in MEASURED if k in written}}
        return replace(self, artifact=artifact, measured=measured)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`."""
        return {
            "label": self.label,
            "reason": self.reason,
            "assignment": self.assignment.to_json(),
            "indices": list(self.indices),
            "budgets": [b.to_json() for b in self.budgets],
            "predicted": self.predicted.to_json(),
            "measured": dict(self.measured),
            "metrics": dict(self.metrics),
            "proxy": asdict(self.proxy),
            "artifact": dict(self.artifact),
            "repairs": [asdict(repair) for repair in self.repairs],
            **({} if self.drop is None else {"drop": dict(self.drop)}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Choice:
        """Inverse of `to_json`."""
        return cls(
            data["label"],
            data["reason"],
            Assignment.from_json(data["assignment"]),
            tuple(data["indices"]),
            tuple(Budget.from_json(b) for b in data["budgets"]),
            Cost(**data["predicted"]),
            data["measured"],
            data["metrics"],
            Proxy(**data["proxy"]),
            data["artifact"],
            tuple(Repair(**repair) for repair in data["repairs"]),
            data.get("drop"),
        )


@dataclass(frozen=True)
class Results:
    """All that a run found: `results.json`, which the report and the command line read.

    Args:
        rows: The float model first.
        best: The choice.
        journal: Name of the trials' journal, or of their study in the database.
        study: Folder.
        measure: What the damage is, such as KL.
        solver_limits: The limits that the last search was given.
        model: What of the model is not searched: `not_quantized`, `header_bytes`, `unused`, `float_in_graph`,
            `rounded_to_nearest`, `blocks`, and by unit the `input_grids` that were chosen by damage. Beside
            it `plan`, `latencies`, `batch` (images in a call of the latencies that were measured here), and
            `metric`: name and text of the user's, None where there is none.
    """

    rows: tuple[Row, ...]
    best: Choice
    journal: str
    study: str
    measure: str
    solver_limits: tuple[Budget, ...]
    model: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "best": self.best.to_json(),
            "journal": self.journal,
            "study": self.study,
            "measure": self.measure,
            **self.model,
            "solver_limits": [b.to_json() for b in self.solver_limits],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Results:
        """Inverse of `to_json`."""
        own = ("rows", "best", "journal", "study", "measure", "solver_limits")
        return cls(
            tuple(Row.from_json(row) for row in data["rows"]),
            Choice.from_json(data["best"]),
            data["journal"],
            data["study"],
            data["measure"],
            tuple(Budget.from_json(b) for b in data["solver_limits"]),
            {name: value for name, value in data.items() if name not in own},
        )
