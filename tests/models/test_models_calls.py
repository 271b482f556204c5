"""How modules are called: what a trace does not show must not end a run, nor change what is computed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpsearch.data import ImageSet
from mpsearch.errors import ModelError
from mpsearch.evaluate import FastEvaluator, predict
from mpsearch.models import analyze, fold_batch_norm, from_module
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import install
from mpsearch.reconstruct import ReconstructionConfig, calibrate, reconstruct

W4 = Candidate(4, 4)


class Flow(nn.Module):
    """A module whose forward is the function that it is given."""

    def __init__(self, forward: Callable[..., Any], **members: nn.Module) -> None:
        super().__init__()
        self._run = forward
        for name, member in members.items():
            self.add_module(name, member)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self, *args, **kwargs)


def conv(i: int = 4, o: int = 4) -> nn.Conv2d:
    return nn.Conv2d(i, o, 3, padding=1)


def images(count: int = 6) -> ImageSet:
    pixels = torch.randint(
        256, (count, 4, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    return ImageSet(pixels, None, (0.5,) * 4, (0.25,) * 4)


def head(s: Flow, x: Tensor) -> Tensor:
    return s.fc(x.mean((2, 3)))


def passes(module: nn.Module, iterations: int = 2) -> tuple[list[str], list[str]]:
    """Everything that a run does to a model; the names of its units and of those that were learned."""
    torch.manual_seed(0)
    module = module.eval()
    graph, data = analyze(module, images().inputs([0])), images()
    units = [layer.name for layer in graph.layers if layer.op != "matmul"]
    calibration = calibrate(module, units, [data.inputs()])
    assignment = Assignment(tuple((unit, W4) for unit in units))
    states = calibration.states(assignment)
    quantized = predict(install(module, states), data)
    assert not torch.equal(quantized, predict(module, data))
    assert torch.equal(FastEvaluator(module, calibration, data).logits(assignment), quantized)
    learned: list[str] = []
    blocks = [(b.name, [u for u in b.units if u in units]) for b in graph.blocks if b.learns]
    config = ReconstructionConfig(iterations=iterations, method="qdrop:start=nearest")
    reconstruct(
        module, blocks, states, data.inputs(), config, on_block=lambda _, found, __: learned.extend(found)
    )
    return units, learned


def test_a_block_that_reads_a_list_gives_way_to_its_units():
    class Joined(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.a, self.b = conv(channels), conv()

        def forward(self, xs: list[Tensor]) -> Tensor:
            return self.b(self.a(torch.cat(xs, 1)).relu())

    def forward(s: Flow, x: Tensor) -> Tensor:
        first = s.one([x])
        return head(s, s.two([x, first]))

    module = Flow(forward, one=Joined(4), two=Joined(8), fc=nn.Linear(4, 5))
    units = ["one.a", "one.b", "two.a", "two.b", "fc"]
    assert [b.units for b in analyze(module, images().inputs([0])).blocks] == [(unit,) for unit in units]
    assert passes(module) == (units, units)


def test_a_block_that_gives_more_than_a_tensor_gives_way_to_its_units():
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(), conv()

        def forward(self, x: Tensor) -> tuple[Tensor, torch.Size]:
            return x + self.b(self.a(x).relu()), x.shape

    module = Flow(lambda s, x: head(s, s.two(s.one(x)[0])[0]), one=Sized(), two=Sized(), fc=nn.Linear(4, 5))
    units, learned = passes(module)
    assert learned == units == ["one.a", "one.b", "two.a", "two.b", "fc"]


def test_a_block_that_is_given_what_it_does_not_read_gives_way_to_its_units():
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(), conv()

        def forward(self, x: Tensor, unread: list[Tensor] | None = None) -> Tensor:
            return x + self.b(self.a(x).relu())

    def forward(s: Flow, x: Tensor) -> Tensor:
        first = s.one(x)
        return head(s, s.two(first, [first]))

    module = Flow(forward, one=Spare(), two=Spare(), fc=nn.Linear(4, 5))
    found = {b.name: b.units for b in analyze(module, images().inputs([0])).blocks}
    assert found == {"one": ("one.a", "one.b"), "two.a": ("two.a",), "two.b": ("two.b",), "fc": ("fc",)}
    assert len(passes(module)[1]) == 5


class Around(nn.Module):
    """A residual of its own, and a module that it shares with others."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.shared, self.a, self.b = shared, conv(), conv()

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(x)
        return x + self.b(self.a(x).relu())


def test_a_block_that_calls_a_unit_of_another_place_gives_way_to_its_units():
    shared = nn.Sequential(conv(), nn.ReLU(), conv())
    module = Flow(
        lambda s, x: head(s, s.two(s.one(s.first(x)))),
        first=shared,
        one=Around(shared),
        two=Around(shared),
        fc=nn.Linear(4, 5),
    )
    units, learned = passes(module)
    assert units == ["first.0", "first.2", "one.a", "one.b", "two.a", "two.b", "fc"]
    assert learned == units


class Grid(nn.Module):
    """A positional encoding that a linear layer makes of numbers that no image has a part in."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(2, 4)

    def forward(self, size: int) -> Tensor:
        axis = torch.linspace(0, 1, size)
        return self.proj(torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)).permute(2, 0, 1)


def test_a_layer_that_sees_no_image_stays_float_and_is_named():
    module = Flow(lambda s, x: head(s, s.a(x + s.grid(8)).relu()), grid=Grid(), a=conv(), fc=nn.Linear(4, 5))
    units, learned = passes(module)
    assert units == learned == ["a", "fc"]
    assert analyze(module, images().inputs([0])).leftovers == ("grid.proj.weight",)


def test_a_unit_whose_images_are_on_another_axis_is_quantised_but_not_learned():
    module = Flow(
        lambda s, x: s.fc(s.p(s.a(x).flatten(2).permute(2, 0, 1)).mean(0)),
        a=conv(),
        p=nn.Linear(4, 4),
        fc=nn.Linear(4, 5),
    )
    units, learned = passes(module)
    assert units == ["a", "p", "fc"] and learned == ["a", "fc"]
    assert [b.name for b in analyze(module, images().inputs([0])).blocks if not b.learns] == ["p"]


def test_a_layer_that_is_called_by_keyword_stays_float_and_is_named():
    module = Flow(lambda s, x: s.fc(input=s.a(x).mean((2, 3))), a=conv(), fc=nn.Linear(4, 5))
    assert passes(module)[0] == ["a"]
    assert analyze(module, images().inputs([0])).leftovers == ("fc.weight",)


def test_the_fused_path_of_a_transformer_layer_does_not_pass_quantised_layers_by():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    module = Flow(
        lambda s, x: s.fc(s.t(x.flatten(2).transpose(1, 2)).mean(1)), t=layer, fc=nn.Linear(4, 5)
    ).eval()
    assert passes(module)[0] == ["t.linear1", "t.linear2", "fc"]
    data = images()
    calibration = calibrate(module, ["t.linear1", "t.linear2"], [data.inputs()])
    one = calibration.states(Assignment((("t.linear1", W4), ("t.linear2", Candidate(4, 8)))))
    other = calibration.states(Assignment((("t.linear1", W4), ("t.linear2", W4))))
    assert not torch.equal(
        predict(install(module, one), data), predict(install(module, other), data)
    )  # the input of linear2 is quantised at all


def test_recurrent_layers_are_named():
    module = Flow(
        lambda s, x: s.fc(s.l(s.a(x).flatten(2).transpose(1, 2))[0].mean(1)),
        a=conv(),
        l=nn.LSTM(4, 4, batch_first=True),
        fc=nn.Linear(4, 5),
    )
    assert passes(module)[0] == ["a", "fc"]
    assert set(analyze(module, images().inputs([0])).leftovers) == {
        f"l.{name}" for name, _ in module.l.named_parameters()
    }


@pytest.mark.parametrize(
    "flatten",
    [
        lambda x: x.view(-1, 256),
        lambda x: torch.view_as_real(torch.view_as_complex(x.view(-1, 128, 2))).flatten(1),
    ],
)
def test_a_model_that_takes_one_memory_layout_alone_is_reconstructed(flatten: Callable[[Tensor], Tensor]):
    module = Flow(lambda s, x: s.fc(flatten(s.a(x).relu())), a=conv(), fc=nn.Linear(256, 5))
    units, learned = passes(module)
    assert learned == units


def test_weights_of_five_axes_do_not_stop_the_reconstruction():
    module = Flow(
        lambda s, x: head(s, s.c(s.a(x).unsqueeze(2)).squeeze(2)),
        a=conv(),
        c=nn.Conv3d(4, 4, 3, padding=1),
        fc=nn.Linear(4, 5),
    )
    units, learned = passes(module)
    assert learned == units == ["a", "fc"]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            Flow(lambda s, x: s.fc(s.a(x).reshape(1, 256)), a=conv(), fc=nn.Linear(256, 5)),
            "does not take 2 images at once",
        ),
        (nn.Linear(8, 4), "below its root"),
    ],
)
def test_what_cannot_be_run_is_refused_with_a_reason(module: nn.Module, message: str):
    with pytest.raises(ModelError, match=message):
        analyze(module, images().inputs([0]))


def test_wrappers_are_taken_off():
    inner = nn.Sequential(conv(), nn.Flatten(), nn.Linear(256, 5))
    for wrapped in (torch.compile(inner), nn.DataParallel(inner)):
        assert list(dict(from_module(wrapped).module.named_modules())) == list(dict(inner.named_modules()))


def test_torchscript_and_lazy_layers_are_refused():
    with pytest.raises(ModelError, match="TorchScript"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, but there
            scripted = torch.jit.trace(nn.Linear(4, 2), torch.zeros(1, 4))
        from_module(scripted)
    with pytest.raises(ModelError, match="no shape yet"):
        from_module(nn.LazyLinear(4))


def test_the_model_is_left_as_found():
    module = Flow(lambda s, x: head(s, F.relu(s.a(x))), a=conv(), fc=nn.Linear(4, 5)).train()
    analyze(fold_batch_norm(module, []), images().inputs([0]))
    graph = analyze(module, images().inputs([0]))
    assert module.training and not any(m._forward_hooks for m in module.modules())
    assert [b.learns for b in graph.blocks] == [True, True]
