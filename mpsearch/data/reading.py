"""From a Dataset, a DataLoader or any iterable of samples to a `NestedSet`: what is input and what is label
is told apart by what the model takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from mpsearch.data.nested import NestedSet
from mpsearch.data.samples import SampleSet
from mpsearch.data.sampling import seeded_order
from mpsearch.data.sources.truths import as_boxes
from mpsearch.errors import DataError, UserError
from mpsearch.pytrees import Batch, Inputs, Structure, flatten, shape_text

Takes = Callable[[Inputs, Structure], None]
"""Raises UserError where the model does not take a batch with these arguments."""
LABELS = ("labels", "label", "target", "targets")
"""Keys of a sample that are what is true of it, and no input."""
MOST = 20_000
"""Samples that are read of an iterable that does not say how many it has."""
_FORMS = (
    "Give samples as (inputs, label), a dict of the model's arguments (with a label under 'labels'), or a "
    "tensor"
)


@dataclass(frozen=True)
class Samples:
    """Samples that can be drawn from, read when they are.

    Args:
        name: For messages.
        count: How many.
        read: Gives the sample of an index.
    """

    name: str
    count: int
    read: Callable[[int], Any]

    def drawn(self, indices: Sequence[int], takes: Takes) -> NestedSet:
        """The samples at `indices`. Raises DataError where they are no tensors of one shape, and what `takes`
        raises where the model takes none of their forms.
        """
        samples = [_tensors(self.read(index), f"{self.name}, sample {index}") for index in indices]
        apart = told_apart(samples[0], takes, self.name)
        inputs, targets = zip(*(apart(sample) for sample in samples), strict=True)
        flat = [flatten(each) for each in inputs]
        if any(structure != flat[0][1] for _, structure in flat):
            raise DataError(f"{self.name}: samples are not nested alike. {_FORMS}, all of one form.")
        leaves = tuple(
            _stacked(column, f"{self.name}: the input {name}")
            for name, column in zip(flat[0][1].names(), zip(*(x for x, _ in flat), strict=True), strict=True)
        )
        return NestedSet(leaves, flat[0][1], *_labels(targets), self.name)


def opened(source: Any, name: str, seed: int = 0) -> Samples | SampleSet:
    """What a user has as samples.

    A DataLoader's samples are those of its dataset, each through its `collate_fn` alone; its own order and
    batches do not matter. An iterable without length is read to its end, or to `MOST` samples.

    Args:
        source: A `SampleSet`, a DataLoader, a Dataset or list, a tensor, or an iterable.
        name: For messages.
        seed: Unused where the source says its length.
    Raises: DataError: It is none of these, or empty.
    """
    if hasattr(source, "sample_hashes"):
        return cast(SampleSet, source)
    if isinstance(source, DataLoader):
        collate, dataset = source.collate_fn, source.dataset
        if not isinstance(dataset, IterableDataset) and source.batch_size is not None and collate is not None:
            held = cast(Any, dataset)
            return Samples(name, len(held), lambda i: _first(collate([held[i]]), name))
        source = _unbatched(source, name) if source.batch_size is not None else source
    if isinstance(source, str | bytes) or not (hasattr(source, "__iter__") or hasattr(source, "__getitem__")):
        raise DataError(
            f"{name} is a {type(source).__name__}. Give a Dataset, a DataLoader, a list or another iterable "
            "of "
            "samples."
        )
    if hasattr(source, "__len__") and hasattr(source, "__getitem__") and not isinstance(source, Mapping):
        rows = source
    else:
        rows = list(islice(iter(source), MOST))
    if not len(rows):
        raise DataError(f"{name} has no samples. Give at least one.")
    return Samples(name, len(rows), lambda i: rows[i])


def drawn(
    source: Any, takes: Takes, *, name: str = "samples", limit: int | None = None, seed: int = 0
) -> SampleSet:
    """Samples of a source, at most `limit` of them, in random order.

    Args and Raises: As `opened` and `Samples.drawn`.
    """
    found = opened(source, name, seed)
    if not isinstance(found, Samples):
        return found
    return found.drawn(seeded_order(found.count, None, seed)[:limit], takes)


def told_apart(sample: Any, takes: Takes, name: str) -> Callable[[Any], tuple[Any, Any]]:
    """How a sample becomes ((args, kwargs), target): the first of the forms that it may have which the model
    takes.

    Raises: DataError: It holds no tensor. UserError: The model takes none of them; as `takes` raises of the
        first.
    """
    refusals = list[UserError]()
    for form in _forms(sample):
        leaves, structure = flatten(form(sample)[0])
        if not leaves:
            continue
        try:
            takes(Batch(leaf.unsqueeze(0) for leaf in leaves), structure)
        except UserError as error:
            refusals.append(error)
            continue
        return form
    if not refusals:
        raise DataError(f"{name}: a sample is {_told(sample)}, which holds no tensor. {_FORMS}.")
    raise DataError(f"{name}: a sample is {_told(sample)}. {refusals[0]} {_FORMS}.")


def _forms(sample: Any) -> Iterator[Callable[[Any], tuple[Any, Any]]]:
    if isinstance(sample, Mapping):
        key = next((key for key in LABELS if key in sample), None)

        def rest(s: Any) -> dict[str, Any]:
            return {k: v for k, v in s.items() if k != key}

        def target(s: Any) -> Any:
            return None if key is None else s[key]

        yield lambda s: (((), rest(s)), target(s))
        yield lambda s: (((rest(s),), {}), target(s))
        if len(rest(sample)) == 1:
            yield lambda s: ((tuple(rest(s).values()), {}), target(s))
    elif isinstance(sample, tuple | list) and not hasattr(sample, "_fields"):
        yield lambda s: (_arguments(s[0]), _target(s[1:]))
        for count in range(1, len(sample) + 1):
            yield lambda s, count=count: ((tuple(s[:count]), {}), _target(s[count:]))  # type: ignore[misc]
        yield lambda s: (((s,), {}), None)
    else:
        yield lambda s: (((s,), {}), None)


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def _target(rest: Sequence[Any]) -> Any:
    return None if not rest else rest[0] if len(rest) == 1 else tuple(rest)


def _labels(targets: Sequence[Any]) -> tuple[Tensor | None, tuple[Any, ...]]:
    """As one tensor where they are numbers, tensors of one shape or boxes, and one by one."""
    if any(target is None for target in targets):
        return None, ()
    if (boxes := as_boxes(targets)) is not None:
        return boxes, tuple(targets)
    tensors = [torch.as_tensor(t) if isinstance(t, bool | int | float) else t for t in targets]
    first = tensors[0]
    if not isinstance(first, Tensor) or any(
        not isinstance(t, Tensor) or (t.shape, t.dtype) != (first.shape, first.dtype) for t in tensors
    ):
        return None, tuple(targets)
    stacked = torch.stack(tensors)
    return stacked.float() if stacked.is_floating_point() else stacked.to(torch.int64), tuple(targets)


def _stacked(column: Sequence[Tensor], what: str) -> Tensor:
    if len({(tuple(leaf.shape), leaf.dtype) for leaf in column}) > 1:
        sizes = sorted({shape_text(leaf.shape) for leaf in column})
        raise DataError(
            f"{what.rstrip()} has samples of several shapes: {', '.join(sizes[:3])}. Give all the same: "
            "resize, "
            "crop, or pad texts to one length (padding='max_length')."
        )
    found = torch.stack(list(column))
    return found.float() if found.is_floating_point() else found


def _tensors(sample: Any, where: str) -> Any:
    """With arrays as tensors. Raises DataError where a picture is no tensor yet."""
    if type(sample).__module__.startswith("PIL."):
        raise DataError(
            f"{where} is a picture ({type(sample).__name__}), not a tensor. Add the model's transforms to "
            "the "
            "dataset, such as torchvision.transforms.ToTensor, or give --data the folder."
        )
    if isinstance(sample, np.ndarray | np.generic):
        return torch.as_tensor(sample)
    if isinstance(sample, Mapping):
        return {key: _tensors(value, where) for key, value in sample.items()}
    if isinstance(sample, list | tuple) and not hasattr(sample, "_fields"):
        parts = [_tensors(value, where) for value in sample]
        return tuple(parts) if isinstance(sample, tuple) else parts
    return sample


def _first(batch: Any, name: str) -> Any:
    """The sample of a batch of one."""
    if isinstance(batch, Mapping):
        return {key: _first(value, name) for key, value in batch.items()}
    if isinstance(batch, list | tuple) and not hasattr(batch, "_fields"):
        found = [_first(value, name) for value in batch]
        return found[0] if len(found) == 1 else tuple(found)
    return batch[0] if isinstance(batch, Tensor | np.ndarray) and batch.ndim else batch


def _unbatched(loader: Iterable[Any], name: str) -> Iterator[Any]:
    """The samples of a loader's batches."""
    for batch in loader:
        leaves, structure = flatten(_tensors(batch, name))
        for row in range(min((len(leaf) for leaf in leaves), default=0)):
            yield structure.build(leaf[row] for leaf in leaves)


def _told(sample: Any) -> str:
    leaves, structure = flatten(sample)
    if isinstance(sample, Tensor):
        return f"a tensor {shape_text(sample.shape)}"
    inside = ", ".join(
        f"{name} {shape_text(leaf.shape)}" for name, leaf in zip(structure.names(), leaves, strict=True)
    )
    return f"a {type(sample).__name__} of {inside or 'no tensors'}"
