"""Nested inputs and outputs: tensors in tuples, lists, dicts and dataclasses, as leaves in a fixed order and
a structure that puts them back.

torch's own pytrees know a dataclass only once it is registered; here every one is taken apart, Hugging Face's
`ModelOutput` included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from mpsearch.errors import ModelError


class Batch:
    """What a model of several inputs reads: tensors that have a row for each of N samples.

    Args:
        leaves: N x ... each, in the order of the model's `Structure`.
    """

    def __init__(self, leaves: Iterable[Tensor]) -> None:
        self.leaves = tuple(leaves)

    def __len__(self) -> int:
        """N."""
        return len(self.leaves[0])

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.leaves[0].device

    def __getitem__(self, rows: Any) -> Batch:
        """The samples of a slice, a list or a tensor of indices."""
        return Batch(leaf[rows] for leaf in self.leaves)

    def detach(self) -> Batch:
        """The same without a graph."""
        return Batch(leaf.detach() for leaf in self.leaves)

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """Every leaf moved, as `Tensor.to`."""
        return Batch(leaf.to(*args, **kwargs) for leaf in self.leaves)


Inputs = Tensor | Batch
"""What a model reads: one tensor, or several."""

_pytree.register_pytree_node(
    Batch,
    lambda batch: (list(batch.leaves), None),
    lambda leaves, _: Batch(leaves),
    serialized_type_name="mpsearch.pytrees.Batch",
    flatten_with_keys_fn=lambda batch: (
        [(_pytree.SequenceKey(place), leaf) for place, leaf in enumerate(batch.leaves)],
        None,
    ),
)


def leaves_of(inputs: Inputs) -> tuple[Tensor, ...]:
    """Every tensor, N x ... each."""
    return inputs.leaves if isinstance(inputs, Batch) else (inputs,)


def repeated(inputs: Inputs, count: int) -> Inputs:
    """So many samples: those of `inputs`, again and again."""
    return inputs[[row % len(inputs) for row in range(count)]]


def arrays_of(inputs: Inputs) -> tuple[Any, ...]:
    """Every tensor as a numpy array."""
    return tuple(leaf.detach().cpu().numpy() for leaf in leaves_of(inputs))


def sizes_of(inputs: Inputs) -> list[tuple[tuple[int, ...], str]]:
    """Shape and type of every tensor, such as `float32`."""
    return [(tuple(leaf.shape), str(leaf.dtype).removeprefix("torch.")) for leaf in leaves_of(inputs)]


def like(inputs: Inputs, leaves: Iterable[Tensor]) -> Inputs:
    """Other tensors in the form of `inputs`."""
    found = tuple(leaves)
    return Batch(found) if isinstance(inputs, Batch) else found[0]


def joined(parts: Sequence[Inputs]) -> Inputs:
    """Samples of several parts behind each other."""
    columns = zip(*(leaves_of(part) for part in parts), strict=True)
    return like(parts[0], (torch.cat(column) for column in columns))


def split(inputs: Inputs, size: int) -> Iterator[Inputs]:
    """Parts of `size` samples, the last one smaller: views."""
    for start in range(0, len(inputs), size):
        yield inputs[start : start + size]


def shapes(inputs: Inputs) -> str:
    """For messages: `1 x 3 x 32 x 32`, several joined by commas."""
    return ", ".join(shape_text(leaf.shape) for leaf in leaves_of(inputs))


def shape_text(shape: Sequence[int]) -> str:
    """`3 x 32 x 32`, or `one number`."""
    return " x ".join(map(str, shape)) or "one number"


class Named(dict[str, Any]):
    """What stands for an object whose class is not known: its parts by key, as attributes, and by place."""

    def __getattr__(self, name: str) -> Any:
        """The part of that name."""
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, key: Any) -> Any:
        """The part of a key, or at a place."""
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


@dataclasses.dataclass(frozen=True)
class Structure:
    """How leaves are nested.

    Args:
        kind: `leaf`, `constant`, `list`, `tuple`, `dict`, `object`: a named tuple, a dataclass, or a mapping
            of a class of its own; or `named`, an object whose class is not known.
        keys: Of the parts of a `dict` or an `object`.
        parts: Nested structures.
        value: The constant, or what builds the object from its parts by keyword.
    """

    kind: str
    keys: tuple[Any, ...] = ()
    parts: tuple[Structure, ...] = ()
    value: Any = None

    def build(self, leaves: Iterable[Any]) -> Any:
        """The nested value with these leaves, taken in order."""
        return self._build(iter(leaves))

    def _build(self, leaves: Iterator[Any]) -> Any:
        if self.kind == "leaf":
            return next(leaves)
        if self.kind == "constant":
            return self.value
        found = [part._build(leaves) for part in self.parts]
        if self.kind in ("list", "tuple"):
            return found if self.kind == "list" else tuple(found)
        named = dict(zip(self.keys, found, strict=True))
        if self.kind == "named":
            return Named({str(key): value for key, value in named.items()})
        return named if self.kind == "dict" else self.value(**named)

    def names(self, prefix: str = "") -> tuple[str, ...]:
        """A name for each leaf: keys and places, joined by dots."""
        if self.kind == "leaf":
            return (prefix,)
        keys = self.keys or range(len(self.parts))
        return tuple(
            name
            for key, part in zip(keys, self.parts, strict=True)
            for name in part.names(f"{prefix}.{key}" if prefix else str(key))
        )

    def without_classes(self) -> Structure:
        """The same as plain data can hold it: objects by the names of their parts, and None where a constant
        is no plain value.
        """
        parts = tuple(part.without_classes() for part in self.parts)
        if self.kind == "object":
            return Structure("named", self.keys, parts)
        plain = self.value if isinstance(self.value, str | int | float | bool) else None
        return dataclasses.replace(self, parts=parts, value=plain)

    def to_json(self) -> Any:
        """Plain data. Raises ModelError where an object is needed, which data cannot hold."""
        if self.kind == "object":
            raise ModelError(
                f"The model reads a {getattr(self.value, '__name__', 'class of its own')}, which a file "
                "cannot hold. Give it the tensors as arguments, a tuple or a dict."
            )
        found: dict[str, Any] = {"kind": self.kind}
        if self.parts:
            found["parts"] = [part.to_json() for part in self.parts]
        if self.keys:
            found["keys"] = list(self.keys)
        return found if self.value is None else found | {"value": self.value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Structure:
        """Inverse of `to_json`."""
        parts = tuple(cls.from_json(part) for part in data.get("parts", ()))
        return cls(str(data["kind"]), tuple(data.get("keys", ())), parts, data.get("value"))


LEAF = Structure("leaf")
_NOTHING = Structure("constant")


def flatten(value: Any, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[Any], Structure]:
    """The leaves of a nested value, tensors where nothing else is said, and how to put them back.

    What is neither a leaf nor a container is a constant of the structure: None, numbers, texts, other
    objects.

    Args:
        value: Any mix of tuples, lists, dicts, named tuples and dataclasses.
        is_leaf: What counts as a leaf.
    """
    leaves: list[Any] = []
    return leaves, _taken_apart(value, leaves, is_leaf or _is_tensor)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _taken_apart(value: Any, leaves: list[Any], is_leaf: Callable[[Any], bool]) -> Structure:
    if is_leaf(value):
        leaves.append(value)
        return LEAF

    def inside(values: Iterable[Any]) -> tuple[Structure, ...]:
        return tuple(_taken_apart(each, leaves, is_leaf) for each in values)

    if isinstance(value, Mapping):
        plain = type(value) is dict
        return Structure(
            "dict" if plain else "object",
            tuple(value),
            inside(value.values()),
            None if plain else _maker(type(value)),
        )
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return Structure("object", tuple(value._fields), inside(value), type(value))
    if isinstance(value, list | tuple):
        return Structure("list" if isinstance(value, list) else "tuple", (), inside(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        keys = tuple(field.name for field in dataclasses.fields(value) if field.init)
        return Structure("object", keys, inside(getattr(value, key) for key in keys), type(value))
    return _NOTHING if value is None else Structure("constant", value=value)


def _maker(kind: type) -> Callable[..., Any]:
    """What builds a mapping of a class from keywords: `ModelOutput` and its like take them; others, such as
    `BatchEncoding`, are a dict to whoever reads them.
    """
    return kind if dataclasses.is_dataclass(kind) or issubclass(kind, dict) else dict
