"""What the units of a model read and give while images pass through it, seen by hooks that are gone after."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from mpsearch.models.reads import Read, Reads
from mpsearch.quant.weightless import operands_of, unwrap_weightless, wrap_weightless
from mpsearch.reconstruct.ranges import RunningMean, RunningSample


class Watched:
    """Bounded samples of what each unit reads and gives, the mean rows that its weight meets, and which units
    read one tensor.

    Args:
        modules: Unit -> its layer.
        weightless: Units without a weight.
        seed: Of the samples.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], weightless: Sequence[str], seed: int, squares: bool = False
    ) -> None:
        self._modules, self._weightless, self._same = modules, weightless, _Same()
        self.read = {unit: RunningSample(seed + i) for i, unit in enumerate(modules)}
        self.given = {unit: Given(seed + i) for i, unit in enumerate(modules)}
        self.operands = {
            unit: [RunningSample(seed + 2 * i + j) for j in range(operands_of(unit))]
            for i, unit in enumerate(weightless, len(modules))
        }
        self.means = {unit: RunningMean() for unit in modules}
        self.squares = {unit: RunningMean(square=True) for unit in modules if squares}

    @property
    def known_means(self) -> dict[str, Tensor]:
        """Unit -> G x n mean of the rows that met its weight, where there was one."""
        return _known(self.means)

    @property
    def known_squares(self) -> dict[str, Tensor]:
        """Unit -> G x n mean square of them, where it was asked for."""
        return _known(self.squares)

    def _met(self, unit: str, read: Read) -> None:
        self.means[unit].add(read)
        if unit in self.squares:
            self.squares[unit].add(read)

    def begin(self) -> None:
        """A pass begins."""
        for sample in self.given.values():
            sample.begin()

    def twins(self) -> dict[str, str]:
        """Unit -> the first that reads what it reads; those that read what no other does are left out."""
        return self._same.twins()

    @contextlib.contextmanager
    def units_of(self, module: nn.Module) -> Iterator[None]:
        """While it lasts, what passes through the model is taken; the model is left as found."""
        wrapped = wrap_weightless(module, self._weightless)
        handles = list[RemovableHandle]()
        for unit, layer in self._modules.items():
            handles.append(layer.register_forward_pre_hook(_reads(self.read[unit].take)))
            handles.append(layer.register_forward_hook(_gives(self.given[unit].take)))
        try:
            for unit, held in wrapped.items():
                for operand, sample in zip(held.inputs(), self.operands[unit], strict=True):
                    operand.register_forward_pre_hook(_reads(sample.take_operand))
            single = {unit: held for unit, held in wrapped.items() if operands_of(unit) == 1}
            for unit, reader in ({**self._modules, **single} if single else {}).items():
                handles.append(reader.register_forward_pre_hook(self._same.reads(unit)))
            weights = {unit: layer.get_parameter("weight") for unit, layer in self._modules.items()}
            with Reads(weights, self._met):
                yield
        finally:
            unwrap_weightless(module, wrapped)
            for handle in handles:
                handle.remove()


def _known(means: Mapping[str, RunningMean]) -> dict[str, Tensor]:
    return {unit: mean.value for unit, mean in means.items() if mean.value is not None}


class _Same:
    """Which units read one tensor at every call: they are to share a grid, so that a runtime quantises it
    once.
    """

    def __init__(self) -> None:
        self._read: dict[str, list[tuple[int, int]]] = {}
        self._numbers: Any = WeakIdKeyDictionary()
        self._count = 0

    def reads(self, unit: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        """A hook before a forward."""

        def take(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if args[0] not in self._numbers:
                self._count += 1
                self._numbers[args[0]] = self._count
            # an operation in place makes another tensor of it
            self._read.setdefault(unit, []).append((self._numbers[args[0]], args[0]._version))

        return take

    def twins(self) -> dict[str, str]:
        """Unit -> the first that reads what it reads; those that read what no other does are left out."""
        first: dict[tuple[tuple[int, int], ...], str] = {}
        return {
            unit: found
            for unit, read in self._read.items()
            if (found := first.setdefault(tuple(read), unit)) != unit
        }


class Given:
    """What a unit gives, over all of its calls and, where a pass calls it more than once, at each.

    Args:
        seed: Of the samples.
    """

    def __init__(self, seed: int) -> None:
        self.whole, self.calls = RunningSample(seed), list[RunningSample]()
        self._seed, self._call, self._passes = seed, 0, 0

    def begin(self) -> None:
        """A pass begins: the next call is the first."""
        self._call, self._passes = 0, self._passes + 1

    def take(self, values: Tensor) -> None:
        """The output of the next call."""
        if self._passes == 1 and self._call == 1:
            self.calls.append(self.whole.copy())  # the first call was the only one so far
        self.whole.take(values)
        if self._passes == 1 and self._call:
            self.calls.append(RunningSample(self._seed))
        if self.calls:
            self.calls[self._call].take(values)
        self._call += 1

    def of_calls(self, unit: str) -> tuple[Tensor, ...]:
        """The sample of each call, 1-D."""
        return tuple(sample.values(unit) for sample in self.calls)


def _reads(take: Callable[[Tensor], None]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda _, args: take(args[0])


def _gives(take: Callable[[Tensor], None]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    return lambda _, args, output: take(output)
