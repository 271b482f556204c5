"""A tensor that claims to be on a GPU, computes on the CPU, and refuses to meet tensors of the CPU: what
`fake_device` is made of.

It wraps one on the CPU, which no operation but a move reaches. Torch's own code is shown a CPU; Python, which
is where a device is asked for and named, is shown the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

_aten = torch.ops.aten
_INDEXED = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}
_JOINED = {_aten.stack.default, _aten.cat.default}
_SYNCS = {
    _aten._local_scalar_dense.default,
    _aten.equal.default,
    _aten.nonzero.default,
    _aten.is_nonzero.default,
}


class FakeDeviceTensor(Tensor):
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
    def __new__(cls, held: Tensor) -> FakeDeviceTensor:
        """On the device, sharing the memory of a tensor of the CPU."""
        made: FakeDeviceTensor = torch.Tensor._make_wrapper_subclass(
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

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

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
        if not isinstance(value, FakeDeviceTensor):
            raise RuntimeError(
                "Attempted to call `variable.set_data(tensor)`, but the types are incompatible."
            )
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

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"FakeDeviceTensor({self.held!r}, device={str(self.place)!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> FakeDeviceTensor:
        if id(self) not in memo:
            copy = FakeDeviceTensor(self.held.clone())
            copy._is_param = getattr(self, "_is_param", False)
            memo[id(self)] = copy.requires_grad_(self.requires_grad)
        found: FakeDeviceTensor = memo[id(self)]
        return found

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """The operation on what the tensors hold. Raises RuntimeError where devices are mixed."""
        kwargs = kwargs or {}
        _require_one_device(func, args, kwargs)
        if func in _SYNCS:
            cls.syncs.append(str(func))
        wrappers = {id(t.held): t for t in tensors_in((args, kwargs)) if isinstance(t, FakeDeviceTensor)}
        result = func(*mapped(args, bare), **mapped(kwargs, bare))
        return mapped(result, lambda tensor: _wrapped(tensor, wrappers))


def tensors_in(value: Any) -> list[Tensor]:
    """Those in nested arguments."""
    if isinstance(value, Tensor):
        return [value]
    if type(value) not in (tuple, list, dict):
        return []
    found = list[Tensor]()
    for part in value.values() if type(value) is dict else value:
        if isinstance(part, Tensor):
            found.append(part)
        elif type(part) in (tuple, list, dict):
            found += tensors_in(part)
    return found


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Nested arguments or results with other tensors."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) is dict:
        return {key: mapped(part, change) for key, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(mapped(part, change) for part in value)
    return value


def bare(tensor: Tensor) -> Tensor:
    """What a tensor on the device holds; any other as it is."""
    return tensor.held if isinstance(tensor, FakeDeviceTensor) else tensor


def _wrapped(value: Tensor, wrappers: Mapping[int, FakeDeviceTensor]) -> Tensor:
    """On the device; what was written to in place is what it was."""
    if value.device.type != "cpu":
        return value
    if FakeDeviceTensor.place.type == "mps" and value.dtype == torch.float64:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework has no float64.")
    known = wrappers.get(id(value))
    if known is not None and known.shape != value.shape:
        raise NotImplementedError("An operation in place gave a tensor of the fake device another shape.")
    return FakeDeviceTensor(value) if known is None else known


def _require_one_device(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raises RuntimeError as CUDA does: numbers (0-d) of the CPU may be there, and so may indices."""
    if func is _aten.copy_.default:
        return
    checked: Any = (args[0], *args[2:]) if func in _INDEXED else (args, kwargs)
    here = [t for t in tensors_in(checked) if not isinstance(t, FakeDeviceTensor)]
    if any((t.ndim or func in _JOINED) and t.device.type == "cpu" for t in here):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{FakeDeviceTensor.place} and cpu! (when computing {func})"
        )
