"""`Candidate`, `Assignment` and `Cost`: what is chosen for a unit, for a model, and what it uses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

from mpsearch.errors import UserError

_PRINTED = re.compile(r"(?:W(\d))?A(\d|16)")

FLOAT_INPUT = 16
"""`a_bits` of a candidate that quantises the weight alone."""


@dataclass(frozen=True, order=True)
class Candidate:
    """One choice for one unit; prints as `W4A8`, with float inputs as `W4A16`, that of a unit without a
    weight as `A8`, the float choice as `float`.

    Args:
        w_bits: Bits of the weight, 2 to 8; None for float, and where there is no weight.
        a_bits: Bits of the unit's input, 2 to 8; 16 where the weight alone is quantised and the input stays
            in the runtime's float; None for float.
        number_format: `int`, `float`, or `fp8` (e4m3 weights and inputs; prints as `fp8`).
        w_granularity: `channel` (one scale for each output channel) or `tensor`.

    Examples:
        >>> Candidate.parse("W4A8")
        Candidate(w_bits=4, a_bits=8, number_format='int', w_granularity='channel')
        >>> print(Candidate(5, 8), Candidate.parse("float").is_float)
        W5A8 True
    """

    w_bits: int | None
    a_bits: int | None
    number_format: str = "int"
    w_granularity: str = "channel"

    def __post_init__(self) -> None:
        if self.number_format == "float":
            if (self.w_bits, self.a_bits) != (None, None):
                raise UserError(f"A float candidate has no bit-widths, not {self.w_bits}, {self.a_bits}.")
        elif self.number_format == "int":
            for what, bits in (("w_bits", self.w_bits), ("a_bits", self.a_bits)):
                if what == "w_bits" and bits is None and self.a_bits != FLOAT_INPUT:
                    continue  # a unit without a weight
                if bits is None or not (2 <= bits <= 8 or (what == "a_bits" and bits == FLOAT_INPUT)):
                    raise UserError(
                        f"{what} is {bits}; an integer candidate has 2 to 8 bits, or a_bits 16 for an "
                        "input that stays float."
                    )
        elif self.number_format != "fp8":
            raise UserError(
                f"Number format {self.number_format!r} is not known; it may be 'int', 'float' or 'fp8'."
            )
        elif (self.w_bits, self.a_bits) != (8, 8):
            raise UserError(
                f"An fp8 candidate has 8 bits in weights and inputs, not {self.w_bits}, {self.a_bits}."
            )
        if self.w_granularity not in ("channel", "tensor"):
            raise UserError(
                f"Weight granularity {self.w_granularity!r} is not known; it may be 'channel' or 'tensor'."
            )

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantised."""
        return self.number_format == "float"

    @property
    def weight_only(self) -> bool:
        """Whether the weight is quantised and the input is not."""
        return self.a_bits == FLOAT_INPUT

    @property
    def of_inputs(self) -> Candidate:
        """The same for a unit without a weight: `A8` of `W4A8`; float where inputs stay float."""
        if self.is_float or self.weight_only:
            return FLOAT
        return Candidate(None, self.a_bits) if self.number_format == "int" else self

    def __str__(self) -> str:
        """`W4A8`, `W4A8/tensor` or `float`."""
        if self.is_float:
            return "float"
        if self.number_format == "fp8":
            return "fp8"
        weight = "" if self.w_bits is None else f"W{self.w_bits}"
        return f"{weight}A{self.a_bits}" + ("" if self.w_granularity == "channel" else "/tensor")

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """Inverse of `str`. Raises UserError on anything else."""
        if text == "float":
            return FLOAT
        if text == "fp8":
            return FP8
        body, slash, granularity = text.partition("/")
        match = _PRINTED.fullmatch(body)
        if match is None:
            raise UserError(
                f"{text!r} is not a candidate. Write W4A8 (weight bits 2 to 8, input bits 2 to 8), W4A16 "
                "(float input), A8 (a unit without a weight) or float."
            )
        bits = None if match[1] is None else int(match[1])
        return cls(bits, int(match[2]), w_granularity=granularity if slash else "channel")


Choices = tuple[int, ...]
"""The position of a candidate for each of L layers, or for each of M groups of layers that share a choice."""
FLOAT = Candidate(None, None, "float")
FP8 = Candidate(8, 8, "fp8")


@dataclass(frozen=True)
class Assignment(Mapping[str, Candidate]):
    """One candidate for each layer, by layer name, in the order of the problem.

    Examples:
        >>> mine = Assignment.from_json({"conv1": "W8A8", "fc": "W4A8"})
        >>> mine["fc"].w_bits
        4
        >>> list(mine)
        ['conv1', 'fc']
    """

    choices: tuple[tuple[str, Candidate], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", dict(self.choices))

    def __getitem__(self, name: str) -> Candidate:
        """The candidate of a layer. Raises KeyError."""
        by_name: dict[str, Candidate] = self._by_name  # type: ignore[attr-defined]
        return by_name[name]

    def __iter__(self) -> Iterator[str]:
        """Layer names in order."""
        return (name for name, _ in self.choices)

    def __len__(self) -> int:
        """Number of layers."""
        return len(self.choices)

    def to_json(self) -> dict[str, str]:
        """`{"conv1": "W8A8", ...}`."""
        return {name: str(c) for name, c in self.choices}

    @classmethod
    def from_json(cls, data: Mapping[str, str]) -> Assignment:
        """Inverse of `to_json`."""
        return cls(tuple((name, Candidate.parse(text)) for name, text in data.items()))


@dataclass(frozen=True)
class Cost:
    """What an assignment uses of each resource; None where it is not known."""

    size_bytes: float | None = None
    latency_us: float | None = None
    energy_mj: float | None = None
    memory_bytes: float | None = None
    bops: float | None = None

    def to_json(self) -> dict[str, float]:
        """The known resources."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
