"""`Budget`: a hard limit on one resource, read from what a user typed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mpsearch.errors import BudgetError
from mpsearch.units import format_quantity, parse_quantity

RESOURCES = ("size_bytes", "latency_us", "energy_mj", "memory_bytes", "bops")
_BY_DIMENSION = {"bytes": "size_bytes", "us": "latency_us", "mj": "energy_mj", "bops": "bops", "fraction": "size_bytes"}


@dataclass(frozen=True)
class Budget:
    """A limit that nothing written or measured may pass.

    Args:
        resource: A field of `Cost`.
        limit: In the unit of the resource; a share of the float model's where `relative`.
        text: As the user wrote it.
        relative: Whether `limit` is a share of what the float model uses.
    """

    resource: str
    limit: float
    text: str
    relative: bool = False

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `15MB`, `15MiB`, `2.5ms`, `3mJ`, `20GBOPs`, `40%` (of the float model's size) or `512MiB peak`.

        Raises:
            BudgetError: No unit, an unknown unit, or `peak` on something that is not a number of bytes.
        """
        body, peak = text.strip(), False
        if body.lower().endswith("peak"):
            body, peak = body[:-4].rstrip(), True
        value, dimension = parse_quantity(body)
        if peak and dimension != "bytes":
            raise BudgetError(f"{text!r} asks for a peak of {dimension}; only bytes of memory have one. Write 512MiB peak.")
        resource = "memory_bytes" if peak else _BY_DIMENSION[dimension]
        return cls(resource, value, text.strip(), relative=dimension == "fraction")

    def resolve(self, float_cost: float) -> Budget:
        """The same budget as an absolute limit, given what the float model uses of the resource."""
        return Budget(self.resource, self.limit * float_cost, self.text) if self.relative else self

    def __str__(self) -> str:
        """`size 15.00 MB (14.31 MiB)`."""
        label = self.resource.rsplit("_", 1)[0]
        return f"{label} {self.limit:.0%} of float" if self.relative else f"{label} {format_quantity(self.limit, self.resource)}"

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Budget:
        """Inverse of `to_json`."""
        return cls(**data)
