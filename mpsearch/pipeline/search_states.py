"""`SearchStates`: the option --search-states, read."""

from __future__ import annotations

from dataclasses import dataclass

from mpsearch.errors import OptionError, UnknownNameError

_NAMES = ("gptq", "nearest", "reconstructed")


@dataclass(frozen=True)
class SearchStates:
    """What the search sees of a unit at a candidate.

    Args:
        name: `gptq` (rounded in closed form, for every width at once), `nearest`, or `reconstructed` (as the
            method leaves it after a few steps, with every unit at that candidate).
        steps: Of `reconstructed`, for each block.
    """

    name: str
    steps: int = 20

    @classmethod
    def parse(cls, text: str) -> SearchStates:
        """From `gptq`, `nearest` or `reconstructed:steps=20`. Raises UnknownNameError or OptionError."""
        name, _, rest = text.partition(":")
        if name not in _NAMES:
            raise UnknownNameError("kind of search states", name, _NAMES)
        key, _, value = rest.partition("=")
        if not rest:
            return cls(name)
        if name != "reconstructed" or key != "steps" or not value.isdigit() or int(value) < 1:
            raise OptionError(
                f"Search states {text!r} cannot be read. Write gptq, nearest, or reconstructed:steps=20 "
                "with at least 1 step."
            )
        return cls(name, int(value))
