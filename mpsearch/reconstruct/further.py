"""What a block reads beside its one tensor, such as an attention mask: the same in the float and in the
quantised network, and known for each image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mpsearch.errors import ModelError

Values = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Arguments and keyword arguments."""
Block = Callable[..., Tensor]


class Further:
    """The further arguments of a block over all images.

    A tensor with a row for each image of both streams, alike in both, is kept by image; one that is the same
    for all chunks is handed on.

    Args:
        block: Its name, for messages.
        given: For each chunk its further arguments.
        sizes: Images in each chunk; the tensors of a chunk that go by image have twice as many rows, the
            float stream's first.
    Raises: ModelError: An argument is neither, or is computed by quantised layers.
    """

    def __init__(self, block: str, given: Sequence[Values], sizes: Sequence[int]) -> None:
        leaves = [pytree.tree_flatten(values) for values in given]
        self._spec = leaves[0][1]
        if any(spec != self._spec for _, spec in leaves):
            raise ModelError(_refusal(block))
        self._by_image: dict[int, Tensor] = {}
        self._shared: list[Any] = list(leaves[0][0])
        self._starts = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
        for place, first in enumerate(leaves[0][0]):
            values = [found[place] for found, _ in leaves]
            if not isinstance(first, Tensor):
                if any(isinstance(value, Tensor) for value in values):
                    raise ModelError(_refusal(block))
            elif (rows := _rows(values, sizes)) is not None:
                self._by_image[place] = rows
            elif not _is_shared(values, sizes):
                raise ModelError(_refusal(block))

    @property
    def any_by_image(self) -> bool:
        """Whether there is something that goes by image."""
        return bool(self._by_image)

    def of(self, picked: Tensor) -> Values:
        """For the images of the given indices."""
        return self._values({place: rows[picked] for place, rows in self._by_image.items()})

    def chunk(self, number: int) -> Values:
        """For the images of a chunk."""
        return self._values(
            {
                place: rows[self._starts[number] : self._starts[number + 1]]
                for place, rows in self._by_image.items()
            }
        )

    def _values(self, rows: Mapping[int, Tensor]) -> Values:
        values: Values = pytree.tree_unflatten(
            [rows.get(place, value) for place, value in enumerate(self._shared)], self._spec
        )
        return values


def _rows(values: Sequence[Any], sizes: Sequence[int]) -> Tensor | None:
    """The rows of the float stream of every chunk, N x ...; None where the values are not alike in both
    streams, row by row.
    """
    found = []
    for value, size in zip(values, sizes, strict=True):
        if (
            not isinstance(value, Tensor)
            or value.ndim == 0
            or len(value) != 2 * size
            or not torch.equal(value[:size], value[size:])
        ):
            return None
        found.append(value[:size])
    return torch.cat(found)


def _is_shared(values: Sequence[Any], sizes: Sequence[int]) -> bool:
    """Whether all chunks were given the same. Of a lone chunk, a tensor with a row for each image of both
    streams is not taken for a table.
    """
    first = values[0]
    alike = all(isinstance(value, Tensor) and torch.equal(value, first) for value in values)
    return alike and (len(values) > 1 or first.ndim == 0 or len(first) != 2 * sizes[0])


def _refusal(block: str) -> str:
    return (
        f"Block {block!r} reads more than one tensor that quantised layers have a part in, or an "
        "argument that changes with the images. Use --method nearest."
    )
