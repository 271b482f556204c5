"""The memory of a reconstruction: what is counted, and what is foreseen of it."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from mpsearch.reconstruct import METHODS, ReconstructionConfig, footprint, phase_walk, reconstruct
from mpsearch.reconstruct.memory import ALLOWANCE, counting, section

LEARNED = [name for name in METHODS.names() if METHODS.create(name).phases()]


def test_tensors_count_until_they_are_freed_and_views_not_at_all():
    given = torch.zeros(1000)
    with counting() as count:
        x = torch.ones(250)  # 1,000 bytes
        y = x.view(10, 25)[2:] + 1  # 900, of which 100 is not there
        x.add_(1)
        given[:10].mul_(2)
        del y
        section("step")
        torch.empty(100).add_(1)
    assert count.peaks == [("chunk", 1800), ("step", 1400)]


def test_a_section_outside_of_a_count_is_nothing():
    section("step")
    with counting() as count:
        pass
    assert count.peaks == [("chunk", 0)]


@pytest.mark.parametrize("name", ["conv", "vit"])
@pytest.mark.parametrize("method", [*LEARNED, "qdrop:loss=fisher", "brecq:loss=fisher"])
@pytest.mark.parametrize("few", [False, True])
def test_what_is_counted_is_what_was_foreseen(tiny, left_as_found, name, method, few):
    net = tiny(name)
    states, images = net.calibration.states(net.uniform("W4A8")), net.images.inputs()
    config = ReconstructionConfig(iterations=3, batch_size=6, chunk_size=7, tolerance=0, method=method)
    check = left_as_found(net.module)
    need = footprint(net.module, net.blocks, states, images[:1] if few else images[:8], config)
    check()
    for inputs in (images[:5], images):
        with counting() as count:
            reconstruct(net.module, net.blocks, states, inputs, config)
        foreseen = need.bytes_with(len(inputs)) / ALLOWANCE
        assert (
            0.9 * foreseen <= max(peak for _, peak in count.peaks) <= 1.05 * foreseen
        )  # within a section another operation may take most


def test_the_images_that_fit_are_the_most_that_do(tiny):
    net = tiny("conv")
    need = footprint(
        net.module,
        net.blocks,
        net.calibration.states(net.uniform("W4A4")),
        net.images.inputs(),
        ReconstructionConfig(),
    )
    for images in (1, 2, 31, 64, 65, 1000):
        assert need.images_within(need.bytes_with(images)) == images
        assert need.images_within(need.bytes_with(images) - 1) == images - 1


def test_a_method_that_learns_nothing_takes_nothing(tiny):
    net = tiny("conv")
    need = footprint(
        net.module,
        net.blocks,
        net.calibration.states(net.uniform("W4A4")),
        net.images.inputs(),
        ReconstructionConfig(method="nearest"),
    )
    assert need.bytes_with(1000) == 0


@pytest.mark.parametrize("name", ["conv", "vit"])
def test_no_rows_are_left(tiny, monkeypatch, name):
    net, live, made = tiny(name), weakref.WeakSet(), []

    class Counted(phase_walk.Rows):
        def __init__(self, example, count):
            super().__init__(example, count)
            live.add(self)
            made.append(count)

    monkeypatch.setattr(phase_walk, "Rows", Counted)
    reconstruct(
        net.module,
        net.blocks,
        net.calibration.states(net.uniform("W4A4")),
        net.images.inputs(),
        ReconstructionConfig(iterations=2),
    )
    gc.collect()
    assert len(made) == 2 * len(net.blocks) and not live
