"""Measured losses on disk, one line each: what a search that measures is resumed from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol

from mpsearch.errors import StudyError
from mpsearch.files import digest


class Losses(Protocol):
    """What remembers losses by assignment; a dict does."""

    def get(self, indices: tuple[int, ...], /) -> float | None:
        """The loss of `L` choices, if it was measured."""

    def __setitem__(self, indices: tuple[int, ...], loss: float, /) -> None:
        """Remember it."""


class LossFile:
    """Losses in a file that is appended to, one JSON line each; a line that was torn by a sudden end is
    dropped.

    Args:
        path: Made if it is not there.
        inputs: Plain data that the losses depend on, such as hashes of weights, images and quantisers.

    Raises:
        StudyError: The file holds losses of other inputs, or is no such file.
    """

    def __init__(self, path: Path, inputs: Any) -> None:
        self.path, self._held = path, dict[tuple[int, ...], float]()
        head = {"losses_of": digest(inputs)}
        whole = path.read_bytes() if path.exists() else b""
        lines = whole[: whole.rfind(b"\n") + 1].splitlines()
        try:
            if lines and json.loads(lines[0]) != head:
                raise StudyError(
                    f"{path} holds losses of another model, data or quantisers. Name another file, or "
                    "remove it."
                )
            for line in lines[1:]:
                data = json.loads(line)
                self._held[tuple(data["indices"])] = math.inf if data["loss"] is None else float(data["loss"])
        except (ValueError, KeyError, TypeError) as error:
            raise StudyError(
                f"{path} is not a file of measured losses ({type(error).__name__}: {error}). Name "
                "another file, or remove it."
            ) from None
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.truncate(sum(len(line) + 1 for line in lines))
        if not lines:
            self._append(head)

    def __len__(self) -> int:
        """How many losses are known."""
        return len(self._held)

    def get(self, indices: tuple[int, ...], /) -> float | None:
        """The loss of `L` choices, if it was measured; infinite where it was not finite."""
        return self._held.get(indices)

    def __setitem__(self, indices: tuple[int, ...], loss: float, /) -> None:
        """Remember it here and on disk."""
        self._held[indices] = loss if math.isfinite(loss) else math.inf
        self._append({"indices": list(indices), "loss": loss if math.isfinite(loss) else None})

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
