"""A strict device that is none: its tensors say `cuda:0` (or `mps:0`), compute on the CPU, and refuse to meet
tensors of the CPU as a GPU's do. What runs on it mixes no devices, whether there is a GPU or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mpsearch.reconstruct import capture
from mpsearch.testing.fake_tensor import FakeDeviceTensor, bare, mapped, tensors_in

MEMORY = 2**30
"""Bytes that the device says are free, and has in all."""
_Generator = torch.Generator


class _Move(torch.autograd.Function):
    """A copy on the other side."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.held.clone() if isinstance(x, FakeDeviceTensor) else FakeDeviceTensor(x.detach().clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        moved: Tensor = _Move.apply(grads[0])
        return moved


class _GeneratorSomewhere(_Generator):
    """A random generator that says where it is."""

    place: torch.device

    def __new__(cls, device: Any = "cpu") -> _GeneratorSomewhere:
        made = super().__new__(cls, "cpu")  # type: ignore[call-arg]
        made.place = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place


class _Moves(TorchFunctionMode):
    """Sees to moves between the devices, to tensors that are made, and to generators."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ("to", "cpu", "cuda") and args and isinstance(args[0], Tensor):
            return _moved(func, name, args, kwargs)
        if name == "__set__" and len(args) == 2 and isinstance(args[1], FakeDeviceTensor):
            _require_same_place(*args)
        there = any(isinstance(t, FakeDeviceTensor) for t in tensors_in((args, kwargs)))
        asked = kwargs.get("device")
        if asked is not None:
            there = _is_fake(asked)
        if isinstance(generator := kwargs.get("generator"), _Generator):
            _require_generator(generator, there)
        if asked is None or torch.device(asked).type == "meta":
            return _called(func, args, kwargs, making=there)
        kwargs = {**mapped(kwargs, bare), "device": "cpu"}
        result = _called(func, mapped(args, bare), kwargs, making=False)
        return FakeDeviceTensor(result) if there and isinstance(result, Tensor) else result


def _called(func: Callable[..., Any], args: Any, kwargs: dict[str, Any], *, making: bool) -> Any:
    before, FakeDeviceTensor.making = FakeDeviceTensor.making, making
    try:
        return func(*args, **kwargs)
    finally:
        FakeDeviceTensor.making = before


def _require_same_place(tensor: Tensor, value: Tensor) -> None:
    """Raises RuntimeError where the data of one is set to that of another elsewhere."""
    if not isinstance(tensor, FakeDeviceTensor):
        raise RuntimeError("Attempted to call `variable.set_data(tensor)`, but the types are incompatible.")


def _is_fake(device: Any) -> bool:
    return torch.device(device).type == FakeDeviceTensor.place.type


def _require_generator(generator: torch.Generator, there: bool) -> None:
    wanted = FakeDeviceTensor.place.type if there else "cpu"
    if generator.device.type != wanted:
        raise RuntimeError(
            f"Expected a {wanted!r} device type for generator but found {generator.device.type!r}"
        )


def _moved(func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A tensor on the device that `to`, `cpu` or `cuda` asks for."""
    x, device, rest = args[0], kwargs.pop("device", None), list[Any]()
    for value in (*args[1:], *([kwargs.pop("other")] if "other" in kwargs else [])):
        if isinstance(value, Tensor):
            device = value.device
            kwargs["dtype"] = value.dtype
        elif isinstance(value, str | torch.device):
            device = torch.device(value)
        elif isinstance(value, torch.dtype):
            kwargs["dtype"] = value
        elif value is not None and not isinstance(value, bool):
            rest.append(value)
    device = {"cpu": torch.device("cpu"), "cuda": torch.device("cuda", 0)}.get(name, device)
    if device is not None and torch.device(device).type == "meta":
        return func(x, device=device, **kwargs)
    if device is not None and _is_fake(device) != isinstance(x, FakeDeviceTensor):
        FakeDeviceTensor.syncs += [] if _is_fake(device) else [f"{name}(cpu)"]
        x = _Move.apply(x)
    kept = {key: kwargs[key] for key in ("dtype", "memory_format", "copy") if kwargs.get(key) is not None}
    return Tensor.to(x, *rest, **kept) if kept or rest else x


class _Inside(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Puts on the device what an operation makes for itself of nothing, such as the classes of `one_hot`."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made = FakeDeviceTensor.making and isinstance(result, Tensor) and not tensors_in((args, kwargs))
        return FakeDeviceTensor(result) if made else result


class _RunAsIs:
    """In the place of CUDA graphs: a step is what it is."""

    def __init__(self, generator: torch.Generator) -> None:
        pass

    def warm(self, function: Callable[[], None]) -> None:
        function()

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        return function


@contextmanager
def fake_device(kind: str = "cuda") -> Iterator[list[str]]:
    """While it lasts, there is one device `cuda:0` (or `mps:0`) with `MEMORY` bytes.

    Args:
        kind: `cuda`, or `mps`, which has no float64.
    Gives: What the CPU waited for; it grows.
    """
    cuda = kind == "cuda"
    replaced: list[tuple[Any, str, Any]] = [
        (torch, "Generator", _GeneratorSomewhere),
        (torch.cuda, "is_available", lambda: cuda),
        (torch.cuda, "device_count", lambda: int(cuda)),
        (torch.cuda, "get_device_name", lambda device=None: "a fake device"),
        (torch.cuda, "is_bf16_supported", lambda including_emulation=True: False),
        (torch.cuda, "mem_get_info", lambda device=None: (MEMORY, MEMORY)),
        (torch.cuda, "memory_reserved", lambda device=None: 0),
        (torch.cuda, "memory_allocated", lambda device=None: 0),
        (torch.backends.mps, "is_available", lambda: not cuda),
        (torch.mps, "recommended_max_memory", lambda: MEMORY),
        (torch.mps, "driver_allocated_memory", lambda: 0),
        (capture, "CudaGraphs", _RunAsIs),
        (torch.__future__, "_overwrite_module_params_on_conversion", True),  # `Module.to`: parameters are new
    ]
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        if hasattr(torch.optim.Optimizer, name):  # it asks the driver
            replaced.append((torch.optim.Optimizer, name, lambda self: None))
    with ExitStack() as stack:
        for place, name, value in replaced:
            stack.enter_context(mock.patch.object(place, name, value))
        stack.enter_context(mock.patch.object(FakeDeviceTensor, "place", torch.device(kind, 0)))
        syncs: list[str] = []
        stack.enter_context(mock.patch.object(FakeDeviceTensor, "syncs", syncs))
        stack.enter_context(_Inside())  # type: ignore[no-untyped-call]
        moves, engine = stack.enter_context(_Moves()), torch.autograd.graph._engine_run_backward

        def run_backward(*args: Any, **kwargs: Any) -> Any:
            with moves:  # which is left where a function of torch runs, and Python runs again in this one
                return engine(*args, **kwargs)

        stack.enter_context(mock.patch.object(torch.autograd, "_engine_run_backward", run_backward))
        yield syncs
