"""Rows that were not measured: a roofline, and a Gaussian process on what it gets wrong.

For each family (operator and kernel) the time is a roofline t0 = a + MACs / P + bytes / B with coefficients
of at least zero, times exp of a Gaussian process over logarithmic features of the shape (Matern 3/2, one
length for each feature). The process gives its own variance, so it says what is worth measuring next. A
prediction is never a row of a table, is never made across operators or kernels, and carries its standard
deviation everywhere.

References: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, ch. 2 and 5; the choice of
what to measure next is the greatest variance (after MacKay, Information-based objective functions for active
data selection, 1992). Weighting it with the time at stake was tried and was worse than choosing at random:
early on it takes the largest shapes alone, and the rest is extrapolated.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from mpsearch.errors import TableError
from mpsearch.hardware.rows import Row, row_key
from mpsearch.problem import Candidate, ConvAttributes, Layer

Array = NDArray[np.float64]
Cell = tuple[Layer, Candidate]
LEAST_ROWS = 6
"""Rows of a family, below which nothing is predicted."""
_KEY = re.compile(
    r"(\w+) (\S+)(?: w(\S+))?(?: s(\d+),(\d+) p(\d+),(\d+) d(\d+),(\d+) g(\d+))? (bias|no bias)"
)


@dataclass(frozen=True)
class Predicted:
    """A latency that was not measured.

    Args:
        median_us: For one call.
        spread: Standard deviation of its logarithm: 0.1 is about 10%.
    """

    median_us: float
    spread: float


def layer_of_key(key: str) -> Layer:
    """The unit that a row was measured on, batch included in its shapes: inverse of `row_key`. Raises
    TableError on another text.
    """
    match = _KEY.fullmatch(key)
    if match is None:
        raise TableError(
            f"{key!r} is not the key of a row, such as 'linear 1x8 w4x8 bias'. Remove its line, or "
            "measure again."
        )
    op, inputs, weight, *numbers, bias = match.groups()
    shapes = tuple(tuple(map(int, text.split("x"))) for text in inputs.split("+"))
    weight_shape = tuple(map(int, weight.split("x"))) if weight else ()
    conv = None
    if numbers[0] is not None:
        sy, sx, py, px, dy, dx, groups = map(int, numbers)
        conv = ConvAttributes((sy, sx), (py, px), (dy, dx), groups)
    output = _output_shape(op, shapes, weight_shape, conv)
    return Layer(
        key,
        op,
        weight_shape,
        shapes,
        output,
        _macs(op, shapes, weight_shape, output),
        "",
        bias=bias == "bias",
        conv=conv,
    )


def _output_shape(
    op: str, shapes: Sequence[tuple[int, ...]], weight: tuple[int, ...], conv: ConvAttributes | None
) -> tuple[int, ...]:
    if op == "conv2d":
        c = conv or ConvAttributes()
        sides = [
            (s + 2 * p - d * (k - 1) - 1) // t + 1
            for s, p, d, k, t in zip(shapes[0][2:], c.padding, c.dilation, weight[2:], c.stride, strict=True)
        ]
        return shapes[0][0], weight[0], *sides
    return (*shapes[0][:-1], weight[0] if op == "linear" else shapes[1][-1])


def _macs(
    op: str, shapes: Sequence[tuple[int, ...]], weight: tuple[int, ...], output: tuple[int, ...]
) -> int:
    return math.prod(output) * (math.prod(weight[1:]) if op != "matmul" else shapes[0][-1])


def family(layer: Layer, kernel: str) -> tuple[str, str]:
    """Rows that are predicted from each other: one operator, depthwise convolutions apart, in one kernel."""
    depthwise = (
        layer.conv is not None and layer.conv.groups > 1 and layer.conv.groups == layer.weight_shape[0]
    )
    return "depthwise" if depthwise else layer.op, kernel


def _traffic(layer: Layer, kernel: str) -> tuple[float, float]:
    """MACs, and bytes read and written: float tensors on both sides, the weight as the kernel holds it."""
    numel = sum(math.prod(s) for s in layer.input_shapes) + math.prod(layer.output_shape)
    return float(
        _macs(layer.op, layer.input_shapes, layer.weight_shape, layer.output_shape)
    ), 4.0 * numel + layer.weight_numel * (4 if kernel == "float" else 1)


def _features(layer: Layer, kernel: str) -> list[float]:
    """Logarithms of what a kernel's loops run over, and how ragged they are."""
    macs, moved = _traffic(layer, kernel)
    inner = math.prod(layer.weight_shape[1:]) if layer.weight_shape else layer.input_shapes[0][-1]
    outer = layer.weight_shape[0] if layer.weight_shape else layer.output_shape[-1]
    places = math.prod(layer.output_shape) / outer
    ragged = [float(v % 16 != 0) for v in (inner, outer)]
    stride = layer.conv.stride[0] if layer.conv is not None else 1
    window = layer.weight_shape[-1] if layer.conv is not None else 1
    return [
        math.log(macs),
        math.log(moved),
        math.log(inner),
        math.log(outer),
        math.log(places),
        *ragged,
        math.log(stride),
        math.log(window),
    ]


class _Family:
    """Fitted to the rows of one family."""

    def __init__(self, cells: Sequence[tuple[Layer, str]], times: Array) -> None:
        from sklearn.exceptions import ConvergenceWarning  # takes a second, which only predictions need
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        traffic = np.array([_traffic(layer, kernel) for layer, kernel in cells])
        self._roof, _ = nnls(
            np.column_stack([np.ones(len(times)), traffic]) / times[:, None], np.ones(len(times))
        )
        x, y = (
            np.array([_features(layer, kernel) for layer, kernel in cells]),
            np.log(times / self._roofline(traffic)),
        )
        self._mean, self._width = x.mean(0), np.where(x.std(0) > 1e-9, x.std(0), 1.0)
        scale = max(float(np.var(y)), 1e-4)
        shape = ConstantKernel(scale, (1e-4, 1e1)) * Matern(
            np.full(x.shape[1], 3.0), (0.3, 1e2), nu=1.5
        ) + WhiteKernel(scale / 20, (1e-5, 1e-1))
        self._process = GaussianProcessRegressor(shape, random_state=0)
        with warnings.catch_warnings():  # a length at its bound means that the feature does not matter
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._process.fit(self._scaled(x), y)

    def predict(self, cells: Sequence[tuple[Layer, str]]) -> list[Predicted]:
        mean, spread = self._process.predict(
            self._scaled(np.array([_features(*cell) for cell in cells])), return_std=True
        )
        roof = self._roofline(np.array([_traffic(*cell) for cell in cells]))
        return [
            Predicted(float(r * math.exp(m)), float(s)) for r, m, s in zip(roof, mean, spread, strict=True)
        ]

    def gains(self, cells: Sequence[tuple[Layer, str]], seen: Sequence[tuple[Layer, str]]) -> Array:
        """Standard deviation of each cell once `seen` were measured too: of a Gaussian process it does not
        depend on what they would give.
        """
        x = self._scaled(np.array([_features(*cell) for cell in cells]))
        known = self._process.X_train_
        if seen:
            known = np.vstack([known, self._scaled(np.array([_features(*cell) for cell in seen]))])
        kernel = self._process.kernel_
        cross = kernel(x, known)
        explained = np.einsum("ij,ji->i", cross, np.linalg.solve(kernel(known), cross.T))
        return np.asarray(np.sqrt(np.maximum(kernel.diag(x) - explained, 0.0)), float)

    def _roofline(self, traffic: Array) -> Array:
        return np.asarray(np.maximum(self._roof[0] + traffic @ self._roof[1:], 1e-3), float)

    def _scaled(self, x: Array) -> Array:
        return np.asarray((x - self._mean) / self._width, float)


class RowPredictor:
    """Predicts rows from the usable ones of a table.

    Args:
        rows: By (key, kernel).
    """

    def __init__(self, rows: Mapping[tuple[str, str], Row]) -> None:
        held: dict[tuple[str, str], list[tuple[Layer, str, float]]] = {}
        for (key, kernel), row in sorted(rows.items()):
            if row.usable and row.kind == "layer":
                layer = layer_of_key(key)
                held.setdefault(family(layer, kernel), []).append((layer, kernel, row.median_us))
        self._families = {
            name: _Family([(layer, kernel) for layer, kernel, _ in found], np.array([us for *_, us in found]))
            for name, found in held.items()
            if len(found) >= LEAST_ROWS
        }

    def predict(self, layer: Layer, kernel: Candidate, batch: int = 1) -> Predicted | None:
        """The latency of one call of a unit; None where its family has too few rows."""
        cell = layer_of_key(row_key(layer, batch)), str(kernel)
        found = self._families.get(family(*cell))
        return None if found is None else found.predict([cell])[0]

    def next_to_measure(self, cells: Iterable[Cell], count: int, batch: int = 1) -> list[Cell]:
        """The cells whose measuring takes most uncertainty away, the first the most urgent.

        A cell that cannot be predicted comes first. Then, again and again, the one with the greatest relative
        standard deviation, as it is once those before it are known.
        """
        waiting = list(cells)
        urgent = [cell for cell in waiting if self.predict(*cell, batch) is None]
        chosen, waiting = urgent[:count], [cell for cell in waiting if cell not in urgent]
        while waiting and len(chosen) < count:
            doubts = [self.doubt(cell, chosen, batch) for cell in waiting]
            chosen.append(waiting.pop(int(np.argmax(doubts))))
        return chosen

    def doubt(self, cell: Cell, known: Sequence[Cell], batch: int = 1) -> float:
        """Standard deviation of the logarithm of a cell's time once others were measured too."""
        named = [(layer_of_key(row_key(layer, batch)), str(kernel)) for layer, kernel in (cell, *known)]
        name = family(*named[0])
        return float(
            self._families[name].gains(named[:1], [other for other in named[1:] if family(*other) == name])[0]
        )
