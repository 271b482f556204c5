"""The one reconstruction loop: each block of the network, in order, learns against the float block's output.

The whole calibration set walks through the network once for each phase of the method (`phase_walk`). A layer
is a block of one.

References: Li et al., BRECQ, ICLR 2021 (blocks); Wei et al., QDrop, ICLR 2022, arXiv:2203.05740 (input
    mixing, dropping).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from mpsearch.errors import DataError
from mpsearch.pytrees import Inputs
from mpsearch.quant import UnitState, in_integers
from mpsearch.quant.devices import on_device
from mpsearch.reconstruct.fisher import fisher_weights
from mpsearch.reconstruct.learn import ReconstructionConfig
from mpsearch.reconstruct.memory import Footprint, rehearsed
from mpsearch.reconstruct.methods import METHODS
from mpsearch.reconstruct.phase_walk import Blocks, OnBlock, PhaseWalk


def reconstruct(
    module: nn.Module,
    blocks: Blocks,
    states: Mapping[str, UnitState],
    inputs: Inputs,
    config: ReconstructionConfig,
    *,
    known: Mapping[int, Mapping[str, UnitState]] | None = None,
    on_block: OnBlock | None = None,
) -> dict[str, UnitState]:
    """Learn codes and step sizes of every unit, as the method of `config` says.

    Args:
        module: Float model in eval mode; left as found.
        blocks: (module name, names of its units), in order of execution. A unit with a weight that is in none
            is not learned, and stays float while the others learn.
        states: Where to start: each unit rounded to nearest.
        inputs: N x C x H x W normalised calibration images, or what else the model reads.
        config: How long and how.
        known: Phase -> units that an interrupted call with the same arguments had learned in it: their blocks
            are not learned again.
        on_block: Called after each block with its name, the states of its units, and what it gained (None
            where it was known or has no units).
    Returns: The learned states, where the images are.

    Raises:
        DataError: There is no image.
        ModelError: A block reads something else than one tensor with the images on axis 0 (and `Further`), or
            gives NaN or infinity.
    """
    method = METHODS.create(config.method)
    phases = [phase for phase in method.phases() if phase.closed or config.iterations]
    if not len(inputs):
        raise DataError("Reconstruction got no images. Give at least one calibration image.")
    if not phases:
        return dict(states)
    states = on_device(dict(states), inputs.device)
    learned = dict(states)
    known = on_device({n: dict(held) for n, held in (known or {}).items()}, inputs.device)
    each = [
        (unit, [unit]) for _, units in blocks for unit in units if states[unit].weight is not None
    ]  # a product of activations is no module
    weights = (
        fisher_weights(module, [name for name, _ in blocks], inputs, config.seed, config.batch_size)
        if method.loss == "fisher"
        else {}
    )
    corrected = {unit for unit, state in states.items() if state.bias is not None}
    for number, phase in enumerate(phases):
        held, parts = known.get(number, {}), each if method.layerwise or phase.closed else blocks
        if {u for _, units in parts for u in units if not states[u].candidate.is_float} <= set(
            held
        ):  # nothing is left to walk for
            learned |= held
            _tell_known(parts, learned, on_block)
            continue
        learned = PhaseWalk(
            module, parts, learned, phase, number, config, weights, held, on_block, corrected
        ).run(inputs)
    return {unit: in_integers(state) for unit, state in learned.items()}


def footprint(
    module: nn.Module,
    blocks: Blocks,
    states: Mapping[str, UnitState],
    inputs: Inputs,
    config: ReconstructionConfig,
) -> Footprint:
    """The memory that `reconstruct` takes with these arguments and any number of images: block inputs and
    outputs, passes of chunks, and learning steps.

    Rehearses it on a few of the images, which are repeated where there are fewer.
    """
    brief = replace(config, iterations=min(2, config.iterations), tolerance=0, capture=False)

    def rehearse(images: Inputs, at_once: int) -> None:
        reconstruct(module, blocks, states, images, replace(brief, batch_size=at_once, chunk_size=at_once))

    return rehearsed(rehearse, inputs, {"chunk": config.chunk_size, "step": config.batch_size})


def _tell_known(blocks: Blocks, states: Mapping[str, UnitState], on_block: OnBlock | None) -> None:
    if on_block is None:
        return
    for name, units in blocks:
        on_block(name, {unit: states[unit] for unit in units if not states[unit].candidate.is_float}, None)
