"""A strict device that is none: its tensors say `cuda:0` (or `mps:0`), compute on the CPU, and refuse to meet
tensors of the CPU as a GPU's do. What runs on it mixes no devices, wherever there is a GPU or not.

A tensor on it wraps one on the CPU, which no operation but a move reaches. Torch's own code is shown a CPU;
Python, which is where a device is asked for and named, is shown the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

MEMORY = 2**30
"""Bytes that the device says are free, and has in all."""
_aten = torch.ops.aten
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
_SYNCS = {
    _aten._local_scalar_dense.default,
    _aten.equal.default,
    _aten.nonzero.default,
    _aten.is_nonzero.default,
}
_Generator = torch.Generator


class FakeTensor(Tensor):
    """A tensor on the device.

    Attributes:
        held: What it computes with, on the CPU.
        place: The device, while it is in use.
        syncs: Operations that a CPU waits for, in order, since the device came into use.
    """

    held: Tensor
    place: ClassVar[torch.device] = torch.device("cuda", 0)
    syncs: ClassVar[list[str]] = []
    making: ClassVar[bool] = False
    """Whether what torch's own code makes now is made for a tensor on the device."""

    @staticmethod
    def __new__(cls, held: Tensor) -> FakeTensor:
        made: FakeTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=held.device,
        )
        made.held = held.detach()
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The device that it claims."""
        return self.place

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """As `device` says."""
        return self.place.type == "cuda"

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        """Never."""
        return False

    @property
    def data(self) -> Tensor:
        """The same values, without a history."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, FakeTensor):
            raise RuntimeError("Attempted to call `variable.set_data(tensor)`, but the types are incompatible.")
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.held = value.held

    def numpy(self, *, force: bool = False) -> Any:
        """Refused, as by a GPU."""
        raise TypeError(
            f"can't convert {self.place} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to "
            "host memory first."
        )

    def tolist(self) -> Any:
        """Its numbers."""
        self.syncs.append("tolist")
        return self.held.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        """The memory behind it."""
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        """Where that is."""
        return self.held.data_ptr()

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"FakeTensor({self.held!r}, device={str(self.place)!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> FakeTensor:
        if id(self) not in memo:
            copy = FakeTensor(self.held.clone())
            copy._is_param = getattr(self, "_is_param", False)  # type: ignore[attr-defined]
            memo[id(self)] = copy.requires_grad_(self.requires_grad)
        found: FakeTensor = memo[id(self)]
        return found

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The operation on what the tensors hold. Raises RuntimeError where devices are mixed."""
        kwargs = kwargs or {}
        _require_one_device(func, args, kwargs)
        if func in _SYNCS:
            cls.syncs.append(str(func))
        wrappers = {id(t.held): t for t in tree_leaves((args, kwargs)) if isinstance(t, FakeTensor)}
        result = func(*tree_map(_bare, args), **tree_map(_bare, dict(kwargs)))
        return tree_map(lambda value: _wrapped(value, wrappers), result)


def _bare(value: Any) -> Any:
    return value.held if isinstance(value, FakeTensor) else value


def _wrapped(value: Any, wrappers: Mapping[int, FakeTensor]) -> Any:
    """On the device; what was written to in place is what it was."""
    if not isinstance(value, Tensor) or value.device.type != "cpu":
        return value
    if FakeTensor.place.type == "mps" and value.dtype == torch.float64:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework has no float64.")
    known = wrappers.get(id(value))
    if known is not None and known.shape != value.shape:
        raise NotImplementedError("An operation in place gave a tensor of the fake device another shape.")
    return FakeTensor(value) if known is None else known


def _require_one_device(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raises RuntimeError as CUDA does: numbers (0-d) of the CPU may be there, and so may indices."""
    if func is _aten.copy_.default:
        return
    checked: Any = (args[0], *args[2:]) if func in _INDEXED else (args, kwargs)
    here = [t for t in tree_leaves(checked) if isinstance(t, Tensor) and not isinstance(t, FakeTensor)]
    if any(t.ndim and t.device.type == "cpu" for t in here):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{FakeTensor.place} and cpu! (when computing {func})"
        )


class _Move(torch.autograd.Function):
    """A copy on the other side."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.held.clone() if isinstance(x, FakeTensor) else FakeTensor(x.detach().clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        moved: Tensor = _Move.apply(grads[0])
        return moved


class _GeneratorSomewhere(_Generator):
    """A random generator that says where it is."""

    place: torch.device

    def __new__(cls, device: Any = "cpu") -> _GeneratorSomewhere:
        made = super().__new__(cls, "cpu")
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
        if name == "__set__" and len(args) == 2 and isinstance(args[1], FakeTensor):
            _require_same_place(*args)
        there = any(isinstance(t, FakeTensor) for t in tree_leaves((args, kwargs)))
        asked = kwargs.get("device")
        if asked is not None:
            there = _is_fake(asked)
        if isinstance(generator := kwargs.get("generator"), _Generator):
            _require_generator(generator, there)
        if asked is None or torch.device(asked).type == "meta":
            before, FakeTensor.making = FakeTensor.making, there
            try:
                return func(*args, **kwargs)
            finally:
                FakeTensor.making = before
        result = func(*tree_map(_bare, args), **{**tree_map(_bare, kwargs), "device": "cpu"})
        return FakeTensor(result) if there and isinstance(result, Tensor) else result


def _require_same_place(tensor: Tensor, value: Tensor) -> None:
    """Raises RuntimeError where the data of one is set to that of another elsewhere."""
    if not isinstance(tensor, FakeTensor):
        raise RuntimeError("Attempted to call `variable.set_data(tensor)`, but the types are incompatible.")


def _is_fake(device: Any) -> bool:
    return torch.device(device).type == FakeTensor.place.type


def _require_generator(generator: torch.Generator, there: bool) -> None:
    wanted = FakeTensor.place.type if there else "cpu"
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
    if device is not None and _is_fake(device) != isinstance(x, FakeTensor):
        FakeTensor.syncs += [] if _is_fake(device) else [f"{name}(cpu)"]
        x = _Move.apply(x)
    kept = {key: kwargs[key] for key in ("dtype", "memory_format", "copy") if kwargs.get(key) is not None}
    return Tensor.to(x, *rest, **kept) if kept or rest else x


class _Inside(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Puts on the device what an operation makes for itself from nothing, such as the classes of `one_hot`."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        from_nothing = not any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs)))
        made = FakeTensor.making and from_nothing and isinstance(result, Tensor)
        return FakeTensor(result) if made else result


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
    from mpsearch.reconstruct import capture

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
        stack.enter_context(mock.patch.object(FakeTensor, "place", torch.device(kind, 0)))
        syncs: list[str] = []
        stack.enter_context(mock.patch.object(FakeTensor, "syncs", syncs))
        stack.enter_context(_Inside())
        stack.enter_context(_Moves())
        yield syncs
