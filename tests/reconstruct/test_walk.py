"""The walk: every block sees what the network would give it, nothing runs twice, and the network is left as
found.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mpsearch.errors import ModelError
from mpsearch.reconstruct.rows import Rows
from mpsearch.reconstruct.walk import walk


def observed(net, chunks):
    """What each block reads in a walk whose blocks compute as ever, by block."""
    names = [name for name, _ in net.blocks]
    forwards = [net.module.get_submodule(name).forward for name in names]
    seen = {}

    def at_block(index, halts):
        seen[names[index]] = [halt.x.clone() for halt in halts]
        return lambda number: forwards[index](halts[number].x)

    walk(net.module, names, chunks, at_block)
    return seen


@pytest.mark.parametrize("name", ["conv", "vit"])
def test_blocks_read_what_a_plain_forward_gives_them(tiny, left_as_found, name):
    net = tiny(name)
    images = net.images.inputs()
    check = left_as_found(net.module)
    seen = observed(net, list(images.split(7)))
    check()
    assert list(seen) == [block for block, _ in net.blocks]
    for block, _ in net.blocks:
        plain = []
        handle = net.module.get_submodule(block).register_forward_pre_hook(
            lambda _m, args, plain=plain: plain.append(args[0])
        )
        with torch.no_grad():
            net.module(images)
        handle.remove()
        torch.testing.assert_close(torch.cat(seen[block]), plain[0])


def test_each_block_runs_once_for_each_chunk(tiny):
    net, calls = tiny("conv"), []
    handle = net.module.residual.conv1.register_forward_hook(lambda *_: calls.append(1))
    observed(net, list(net.images.inputs().split(6)))
    handle.remove()
    assert len(calls) == 4


class Fork(nn.Module):
    """Takes another way for bright images."""

    def __init__(self) -> None:
        super().__init__()
        self.dark, self.bright = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.dark(x) if x.mean() < 0 else self.bright(x)


def test_chunks_that_take_different_ways_are_refused():
    net = Fork()
    with pytest.raises(ModelError, match="different ways"):
        walk(
            net,
            ["dark", "bright"],
            [torch.ones(2, 4), -torch.ones(2, 4)],
            lambda i, halts: lambda n: halts[n].x,
        )
    assert "forward" not in net.dark.__dict__


def test_an_error_in_a_block_leaves_no_chunk_hanging(tiny, left_as_found):
    net = tiny("conv")
    check = left_as_found(net.module)

    def fail(index, halts):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        walk(net.module, ["stem", "residual"], list(net.images.inputs().split(8)), fail)
    check()


@pytest.mark.parametrize("last", [False, True])
def test_rows_keep_the_layout_and_adopt_memory(last):
    parts = [torch.randn(n, 3, 4, 5) for n in (2, 4)]
    if last:
        parts = [p.contiguous(memory_format=torch.channels_last) for p in parts]
    rows, whole = Rows(parts[0], 6), torch.cat(parts)
    rows.write(0, parts[0])
    rows.adopt(2, parts[1])
    picked = torch.tensor([5, 0, 3])
    assert torch.equal(rows.read(0, 6), whole)
    assert torch.equal(rows.take(picked), whole[picked])
    assert rows.take(picked).is_contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )
    assert parts[1].data_ptr() == rows.read(2, 6).data_ptr()
    assert rows.shape == (6, 3, 4, 5)
