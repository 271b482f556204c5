"""Q-MLP: found by timm, bounded where it says so, and with the units, ties and blocks that the search
expects.
"""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from mpsearch.errors import ModelError, OptionError, UnknownNameError
from mpsearch.models import analyze, load_model
from mpsearch.models.qmlp import BOUND, GELU_MINIMUM, ClippedGELU, QMlpBlock, TokenMixing


def made(**options) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = timm.create_model("qmlp_cifar", **{"num_blocks": 2, "embed_dim": 16, **options})
    with torch.no_grad():
        nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(4))
    return model.eval()


@pytest.mark.parametrize(
    ("name", "parameters", "classes", "tokens"),
    [("qmlp_s24_224", 30_949_720, 1000, 196), ("qmlp_cifar", 1_299_242, 10, 64)],
)
def test_timm_finds_the_models_and_their_size(name, parameters, classes, tokens):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert (model.num_classes, model.stem.num_patches) == (classes, tokens)
    assert name in timm.list_models("qmlp*", module="qmlp")


def test_it_loads_by_name_with_its_own_data_config_and_arguments():
    loaded = load_model("qmlp_cifar", kwargs={"token_ratios": [0.25], "activation": "relu6", "num_blocks": 1})
    assert loaded.data_config["input_size"] == (3, 32, 32)
    assert loaded.data_config["mean"] == (0.4914, 0.4822, 0.4465)
    assert loaded.module.blocks[0].mlp_tokens.branches[0].fc1.weight.shape == (16, 64)
    assert isinstance(loaded.module.blocks[0].mlp_channels.act, nn.ReLU6)
    with pytest.raises(ModelError, match="pretrained"):
        load_model("qmlp_cifar", pretrained=True)


def test_units_ties_and_blocks_are_found():
    graph = analyze(made(), torch.zeros(1, 3, 32, 32))
    inside = (
        "mlp_tokens.branches.0",
        "mlp_tokens.branches.1.fc1",
        "mlp_tokens.branches.1.fc2",
        "mlp_channels.fc1",
        "mlp_channels.fc2",
    )
    blocks = {f"blocks.{i}": tuple(f"blocks.{i}.{unit}" for unit in inside) for i in range(2)}
    assert {b.name: b.units for b in graph.blocks} == {
        "stem.proj": ("stem.proj",),
        **blocks,
        "head": ("head",),
    }
    ties = {layer.name: layer.tie for layer in graph.layers if layer.tie is not None}
    assert ties == {f"blocks.{i}.{unit}": f"blocks.{i}.{inside[0]}" for i in range(2) for unit in inside[:2]}
    assert (graph.unused, graph.leftovers) == ((), ())
    token = next(layer for layer in graph.layers if layer.name == "blocks.0.mlp_tokens.branches.0")
    assert (token.weight_shape, token.input_shapes) == ((64, 64), ((1, 16, 64),))


def test_clipped_gelu_is_gelu_within_its_bounds():
    x = torch.linspace(-20, 20, 4001)
    y = ClippedGELU()(x)
    assert GELU_MINIMUM <= float(y.min()) < -0.16
    assert float(y.max()) == BOUND
    low = x < BOUND
    assert torch.equal(y[low], nn.functional.gelu(x[low]))


@pytest.mark.parametrize("activation", ["clipped_gelu", "relu6"])
def test_what_enters_the_second_linear_of_each_mlp_is_bounded(activation):
    model, seen = made(activation=activation), []
    for name, module in model.named_modules():
        if name.endswith("fc2"):
            module.register_forward_pre_hook(
                lambda _, args: seen.append((float(args[0].min()), float(args[0].max())))
            )
    with torch.no_grad():
        model(300 * torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        for block in model.blocks:
            block.mlp_channels.fc1.weight.mul_(100)
        model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert len(seen) == 8
    assert all(low >= GELU_MINIMUM and high <= BOUND for low, high in seen)
    assert max(high for _, high in seen) == BOUND


def test_token_mixing_is_the_sum_of_its_branches_over_the_token_axis():
    torch.manual_seed(0)
    mixing, x = TokenMixing(6, (0.0, 0.5, 0.0), nn.ReLU6), torch.randn(2, 6, 4)
    assert [type(b).__name__ for b in mixing.branches] == ["Linear", "Mlp", "Linear"]
    expected = sum(torch.stack([branch(x[:, :, c]) for c in range(4)], dim=2) for branch in mixing.branches)
    torch.testing.assert_close(mixing(x), expected)


def test_the_block_normalises_each_token_over_its_channels():
    block, x = (
        QMlpBlock(8, 4, init_values=1.0).eval(),
        torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0)),
    )
    with torch.no_grad():
        once = block(x) - x
        first = block.mlp_tokens(nn.functional.layer_norm(x, (8,)))
        expected = first + block.mlp_channels(nn.functional.layer_norm(x + first, (8,)))
    torch.testing.assert_close(once, expected)


@pytest.mark.parametrize("ratios", [[], [0.5, -1.0]])
def test_ratios_that_mean_nothing_are_refused(ratios):
    with pytest.raises(OptionError, match="one number for each token-mixing branch"):
        made(token_ratios=ratios)


def test_an_unknown_activation_names_the_known_ones():
    with pytest.raises(UnknownNameError, match="relu6"):
        made(activation="relu7")
