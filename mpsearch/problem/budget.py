"""`Budget`: a hard limit on one resource, read from what a user typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mpsearch.errors import BudgetError
from mpsearch.units import format_quantity, parse_quantity

RESOURCES = ("size_bytes", "latency_us", "energy_mj", "memory_bytes", "bops")
PEAKS = ("memory_bytes",)
"""Resources that layers use one after the other and give back: a model needs the most that any layer needs,
not the sum.
"""
_BY_DIMENSION = {
    "bytes": "size_bytes",
    "us": "latency_us",
    "mj": "energy_mj",
    "bops": "bops",
    "fraction": "size_bytes",
    "bits": "size_bytes",
}


@dataclass(frozen=True)
class Budget:
    """A limit that nothing written or measured may pass.

    Args:
        resource: A field of `Cost`.
        limit: In the unit of the resource, or as `scale` says.
        text: Text as the user wrote it.
        scale: What `limit` is: `absolute`; `float`, a share of what the float model uses; or `bits`, bits for
            each weight on average.

    Examples:
        >>> budget = Budget.parse("15MB")
        >>> budget.resource, budget.limit
        ('size_bytes', 15000000.0)
        >>> budget.kept({"size_bytes": 14_992_841})
        True
        >>> Budget.parse("5bits").relative  # what it is in bytes depends on the model
        True
    """

    resource: str
    limit: float
    text: str
    scale: str = "absolute"

    @property
    def relative(self) -> bool:
        """Whether the limit depends on the model and is not resolved yet."""
        return self.scale != "absolute"

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `15MB`, `15MiB`, `2.5ms`, `3mJ`, `20GBOPs`, `40%` (of the float model's size), `5bits` (for
        each weight, on average) or `512MiB peak`.

        Raises:
            BudgetError: No unit, an unknown unit, or `peak` on something that is not a number of bytes.
        """
        body, peak = text.strip(), False
        if body.lower().endswith("peak"):
            body, peak = body[:-4].rstrip(), True
        value, dimension = parse_quantity(body)
        if peak and dimension != "bytes":
            raise BudgetError(
                f"{text!r} asks for a peak of {dimension}; only bytes of memory have one. Write 512MiB peak."
            )
        resource = "memory_bytes" if peak else _BY_DIMENSION[dimension]
        return cls(
            resource, value, text.strip(), {"fraction": "float", "bits": "bits"}.get(dimension, "absolute")
        )

    def spent(self, measured: Mapping[str, Any]) -> float | None:
        """What a measurement counts against the budget, None where it was not measured: of a latency what new
        processes stay below, where they were asked.
        """
        value = (
            measured.get("latency_high_us", measured.get("latency_us"))
            if self.resource == "latency_us"
            else measured.get(self.resource)
        )
        return None if value is None else float(value)

    def kept(self, measured: Mapping[str, Any]) -> bool:
        """Whether nothing that was measured breaks it."""
        return (self.spent(measured) or 0.0) <= self.limit

    def resolve(self, limit: float) -> Budget:
        """The same budget with an absolute limit."""
        return Budget(self.resource, limit, self.text)

    def __str__(self) -> str:
        """`size 15.00 MB (14.31 MiB)`."""
        label = self.resource.rsplit("_", 1)[0]
        if self.scale == "float":
            return f"{label} {self.limit:.0%} of the float model's"
        return (
            f"{label} of {self.limit:g} bits a weight"
            if self.scale == "bits"
            else f"{label} {format_quantity(self.limit, self.resource)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Budget:
        """Inverse of `to_json`."""
        return cls(**data)
