"""Kept buffers and pieces: what a step is given is its own, in the layout that was asked for."""

import torch

from mpsearch.quant.pieces import PIECE, Workspace, empty_like, pieces


def test_a_request_gets_the_memory_of_the_same_request_of_the_step_before():
    workspace, x = Workspace(), torch.zeros(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    addresses = []
    for _ in range(3):
        workspace.begin()
        first, second = empty_like(x, workspace), empty_like(x, workspace)
        other = empty_like(x, workspace, torch.bfloat16)
        assert (
            first.data_ptr() != second.data_ptr()
            and first.stride() == x.stride()
            and other.dtype == torch.bfloat16
        )
        addresses.append((first.data_ptr(), second.data_ptr(), other.data_ptr()))
    assert len(set(addresses)) == 1


def test_another_shape_gets_other_memory_and_the_first_shape_its_own_again():
    workspace = Workspace()
    addresses = []
    for shape in ((3, 4), (2, 4), (3, 4)):
        workspace.begin()
        addresses.append(empty_like(torch.zeros(shape), workspace).data_ptr())
    assert addresses[0] == addresses[2] != addresses[1]


def test_autograd_takes_a_buffer_for_new_in_every_step():
    workspace, weight = Workspace(), torch.ones(4, requires_grad=True)
    for _ in range(2):
        workspace.begin()
        buffer = empty_like(weight.detach(), workspace)
        assert not buffer.requires_grad and buffer.grad_fn is None
        (weight * buffer.fill_(2.0)).sum().backward()
    assert torch.equal(weight.grad, torch.full((4,), 4.0))


def test_pieces_are_written_in_place_whatever_the_layout():
    shape = (3, 5, 97, 151)
    assert 3 * PIECE < 3 * 5 * 97 * 151
    plain = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    last = plain.contiguous(memory_format=torch.channels_last)
    for like in (torch.empty(shape), torch.empty(shape).contiguous(memory_format=torch.channels_last)):
        sizes = []
        for into, a, b in pieces(like, plain, last):
            assert into.ndim == 1
            torch.add(a, b, out=into)
            sizes.append(len(into))
        assert torch.equal(like, 2 * plain) and max(sizes) == PIECE
