"""Samples as people have them: what is input and what is label is told by what the model takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from mpsearch.data import drawn, make_splits
from mpsearch.errors import DataError, ModelError
from mpsearch.pytrees import Batch, leaves_of

ROWS = torch.arange(24.0).reshape(8, 3)


def takes_of(*names: str):
    """A model of these arguments, all needed."""

    def forward(**given):
        missing = set(names) ^ set(given)
        if missing:
            raise ModelError(f"The model reads {', '.join(names)}.")

    def takes(batch, call):
        args, kwargs = call.build(leaves_of(batch))
        if len(args) > len(names):
            raise ModelError(f"The model reads {', '.join(names)}.")
        if any(not isinstance(arg, torch.Tensor) for arg in args):
            raise ModelError("The model reads tensors.")
        forward(**dict(zip(names, args, strict=False)), **kwargs)

    return takes


class Rows(Dataset):
    def __init__(self, make) -> None:
        self.make = make

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int):
        return self.make(i)


class Stream(IterableDataset):
    def __iter__(self):
        return ((ROWS[i], i % 2) for i in range(8))


def generated():
    yield from ((ROWS[i], i % 2) for i in range(8))


@pytest.mark.parametrize(
    "source",
    [
        Rows(lambda i: (ROWS[i], i % 2)),
        Rows(lambda i: (ROWS[i].numpy(), np.int64(i % 2))),
        Rows(lambda i: {"x": ROWS[i], "label": i % 2}),
        DataLoader(Rows(lambda i: (ROWS[i], i % 2)), batch_size=3, shuffle=True),
        DataLoader(Rows(lambda i: {"x": ROWS[i], "labels": i % 2}), batch_size=3),
        DataLoader(TensorDataset(ROWS, torch.arange(8) % 2), batch_size=4),
        DataLoader(Stream(), batch_size=3),
        [(ROWS[i], i % 2) for i in range(8)],
        generated(),
    ],
)
def test_one_input_and_a_label(source):
    found = drawn(source, takes_of("x"))
    rows = found.inputs()
    rows = rows.leaves[0] if isinstance(rows, Batch) else rows
    order = (rows[:, 0] / 3).long()
    assert sorted(order.tolist()) == list(range(8)) and torch.equal(rows, ROWS[order])
    assert torch.equal(found.labels, order % 2) and len(found.targets) == 8


def test_two_inputs_and_other_labels():
    pairs = drawn([((ROWS[i], ROWS[i, :1]), {"boxes": ROWS[: i + 1]}) for i in range(8)], takes_of("x", "y"))
    assert len(leaves_of(pairs.inputs([0, 1]))) == 2 and pairs.labels is None
    assert [len(t["boxes"]) for t in pairs.subset(slice(0, 3)).targets] == [
        int(row[0] / 3) + 1 for row in pairs.leaves[0][:3]
    ]
    unlabelled = drawn([(ROWS[i], ROWS[i, :1]) for i in range(8)], takes_of("x", "y"))
    assert unlabelled.labels is None and not unlabelled.targets
    both = drawn([(ROWS[i], ROWS[i, :1], 1) for i in range(8)], takes_of("x", "y"))
    assert both.labels.tolist() == [1] * 8
    named = drawn([{"x": ROWS[i], "y": ROWS[i], "target": 0.5} for i in range(8)], takes_of("x", "y"))
    assert named.call.names() == ("1.x", "1.y") and named.labels.dtype == torch.float32


def test_what_cannot_be_samples_is_told():
    with pytest.raises(DataError, match=r"tuple of 0 3, 1 1\. The model reads a, b, c"):
        drawn([(ROWS[0], ROWS[0, :1])], takes_of("a", "b", "c"))
    with pytest.raises(DataError, match=r"several shapes: 1, 2, 3.*pad"):
        drawn([ROWS[0, : 1 + i % 3] for i in range(8)], takes_of("x"))
    with pytest.raises(DataError, match=r"is a picture \(Image\).*ToTensor"):
        drawn([(Image.new("L", (4, 4)), 0)], takes_of("x"))
    with pytest.raises(DataError, match=r"is a int\. Give a Dataset"):
        drawn(3, takes_of("x"))
    with pytest.raises(DataError, match="has no samples"):
        drawn([], takes_of("x"))
    with pytest.raises(DataError, match="which holds no tensor"):
        drawn([("a", "b")], takes_of("x"))


def test_splits_of_samples_and_of_a_function(tmp_path):
    rows = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    splits = make_splits([(row, i % 3) for i, row in enumerate(rows)], takes=takes_of("x"))
    seen = torch.cat([part.inputs() for part in splits.parts.values()])
    assert len({tuple(row) for row in seen.tolist()}) == 60 and splits.warning
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def samples():\n"
        "    return [(torch.full((3,), float(i)), i % 2) for i in range(12)]\n"
        "def broken():\n"
        "    raise RuntimeError('no disk')\n"
    )
    named = make_splits(f"{tmp_path / 'mine.py'}:samples", takes=takes_of("x"))
    assert sum(map(len, named.parts.values())) == 12 and named.to_json()["parts"]["search"]["images"] >= 1
    with pytest.raises(DataError, match="broken failed: RuntimeError: no disk"):
        make_splits(f"{tmp_path / 'mine.py'}:broken", takes=takes_of("x"))
