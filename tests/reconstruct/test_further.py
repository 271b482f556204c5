"""Blocks that read a mask beside their tensor: images keep their own, in every chunk and every batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mpsearch.errors import ModelError
from mpsearch.evaluate import Embedding
from mpsearch.models import analyze
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import install
from mpsearch.reconstruct import ReconstructionConfig, calibrate, footprint, reconstruct
from mpsearch.reconstruct.further import Further
from mpsearch.testing.text import tiny_text, tiny_tokens


def two(rows):
    return torch.cat([rows, rows])


def test_rows_follow_their_images():
    masks = torch.arange(10.0).reshape(5, 2)
    table, flag = torch.ones(4, 3), "left"
    given = [((two(masks[:3]), table), {"flag": flag}), ((two(masks[3:]), table), {"flag": flag})]
    further = Further("block", given, [3, 2])
    (rows, shared), named = further.of(torch.tensor([4, 0, 4]))
    assert torch.equal(rows, masks[[4, 0, 4]]) and shared is table and named == {"flag": flag}
    assert torch.equal(further.chunk(1)[0][0], masks[3:]) and torch.equal(further.chunk(0)[0][0], masks[:3])
    assert further.any_by_image and not Further("block", [((), {}), ((), {})], [3, 2]).any_by_image


def test_nested_arguments_keep_their_form():
    pair = (torch.ones(2, 3), torch.zeros(2, 3))
    further = Further("block", [((pair,), {"none": None})], [1])
    (found,), named = further.of(torch.tensor([0, 0]))
    assert isinstance(found, tuple) and found[0].shape == (2, 3) and named == {"none": None}


@pytest.mark.parametrize(
    "given",
    [
        [((torch.ones(6, 2),), {}), ((torch.zeros(3, 2),), {})],  # neither by image nor the same
        [((torch.ones(6, 2),), {}), ((None,), {})],
        [((None,), {}), ((torch.ones(6, 2),), {})],
        [((torch.ones(6, 2),), {}), ((), {"mask": torch.ones(6, 2)})],
    ],
)
def test_what_changes_from_chunk_to_chunk_is_refused(given):
    with pytest.raises(ModelError, match="more than one tensor"):
        Further("block", given, [3, 3])


def quantized(model, tokens, bits="W3A8", iterations=20):
    graph = analyze(model, tokens.inputs([0]))
    units = [layer.name for layer in graph.layers]
    blocks = [(block.name, block.units) for block in graph.blocks]
    calibration = calibrate(model, units, [tokens.inputs()], bias_correction=False)
    start = calibration.states(Assignment(tuple((unit, Candidate.parse(bits)) for unit in units)))
    results = {}
    config = ReconstructionConfig(iterations=iterations, batch_size=16, method="qdrop:start=nearest")
    learned = reconstruct(
        model,
        blocks,
        start,
        tokens.inputs(),
        config,
        on_block=lambda name, _, result: results.update({name: result}),
    )
    return start, learned, results, blocks


def test_a_text_encoder_is_reconstructed_by_layers():
    """Over 64 texts there are several chunks; each layer is a block of eight units, products of attention
    among them.
    """
    model, tokens = tiny_text(), tiny_tokens(80)
    start, learned, results, blocks = quantized(model, tokens)
    assert [(name, len(units)) for name, units in blocks] == [
        ("encoder.layers.0", 8),
        ("encoder.layers.1", 8),
    ]
    assert all(result.kept and result.learned_mse < 0.9 * result.start_mse for result in results.values())
    with torch.no_grad():
        floats = model(tokens.inputs())
        before, after = (
            Embedding().loss(install(model, states)(tokens.inputs()), floats) for states in (start, learned)
        )
    assert after < 0.8 * before
    assert (
        footprint(model, blocks, start, tokens.inputs([0]), ReconstructionConfig()).images_within(10**8) > 1
    )


def test_padding_changes_nothing():
    """The start error of a block is that of the model's own forward: no text is masked as another."""
    model, tokens = tiny_text(), tiny_tokens(80)
    start, _, results, blocks = quantized(model, tokens, iterations=1)
    seen = {}
    for name, module in (("float", model), ("quantized", install(model, start))):
        layer = module.get_submodule(blocks[0][0])
        handle = layer.register_forward_hook(lambda _m, _x, y, name=name: seen.setdefault(name, y))
        with torch.no_grad():
            module(tokens.inputs())
        handle.remove()
    error = float((seen["quantized"] - seen["float"]).double().square().mean())
    assert results[blocks[0][0]].start_mse == pytest.approx(error, rel=1e-4)


def test_fisher_weights_of_a_model_that_reads_tokens():
    model, tokens = tiny_text(nn.Linear(16, 4)), tiny_tokens(16)
    graph = analyze(model, tokens.inputs([0]))
    units = [layer.name for layer in graph.layers]
    states = calibrate(model, units, [tokens.inputs()]).states(
        Assignment(tuple((unit, Candidate(4, 8)) for unit in units))
    )
    blocks = [(block.name, block.units) for block in graph.blocks]
    learned = reconstruct(
        model, blocks, states, tokens.inputs(), ReconstructionConfig(iterations=4, method="brecq:loss=fisher")
    )
    assert set(learned) == set(states)
