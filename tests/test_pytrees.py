"""Nested values taken apart and put back; batches of several tensors."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch

from mpsearch.errors import ModelError
from mpsearch.pytrees import Batch, Structure, flatten, joined, leaves_of, like, shapes, split


@dataclass
class Held:
    boxes: Any
    more: Any = None


class Two(NamedTuple):
    a: Any
    b: Any


def test_nested_values_are_put_back():
    x, y, z = torch.zeros(1), torch.ones(2), torch.full((3,), 2.0)
    value = {"a": [x, (y, None)], "b": Held(Two(z, "text"), OrderedDict(k=x)), "c": 3}
    leaves, structure = flatten(value)
    assert [len(leaf) for leaf in leaves] == [1, 2, 3, 1]
    assert structure.names() == ("a.0", "a.1.0", "b.boxes.a", "b.more.k")
    back = structure.build(leaf + 1 for leaf in leaves)
    assert isinstance(back["b"], Held) and isinstance(back["b"].boxes, Two) and back["c"] == 3
    assert torch.equal(back["a"][1][0], y + 1) and back["b"].boxes.b == "text" and back["a"][1][1] is None
    assert isinstance(back["b"].more, OrderedDict)


def test_structures_are_plain_data_but_for_classes():
    _, structure = flatten(((torch.zeros(1), [torch.zeros(1), None]), {"mask": torch.zeros(1), "flag": True}))
    assert Structure.from_json(structure.to_json()) == structure
    with pytest.raises(ModelError, match="reads a Held, which a file cannot hold"):
        flatten(Held(torch.zeros(1)))[1].to_json()


def test_batches_are_cut_and_joined():
    batch = Batch([torch.arange(5), torch.arange(10.0).reshape(5, 2)])
    assert len(batch) == 5 and [len(part) for part in split(batch, 2)] == [2, 2, 1]
    back = joined(list(split(batch, 2)))
    assert all(map(torch.equal, leaves_of(back), batch.leaves))
    assert leaves_of(batch[torch.tensor([3, 0])])[0].tolist() == [3, 0]
    assert shapes(batch) == "5, 5 x 2" and isinstance(like(torch.zeros(1), [torch.ones(1)]), torch.Tensor)
