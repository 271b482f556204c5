"""Codes in closed form, without a gradient: every unit at every width on what the float model gives it, or
one on what a quantised prefix does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.models.reads import Read, Reads, ReadsOnly
from mpsearch.problem import Candidate
from mpsearch.pytrees import Inputs
from mpsearch.quant import QuantizedTensor, QuantLayer, UnitState, in_integers
from mpsearch.quant.compensated import DAMPING, compensated, factored, mean_power, picked, read_columns
from mpsearch.quant.devices import wide
from mpsearch.quant.weighted import FEW_BITS, weighted
from mpsearch.reconstruct.block import BlockData, Run
from mpsearch.reconstruct.calibrate import Calibration, mean_matched
from mpsearch.reconstruct.further import Values
from mpsearch.reconstruct.memory import rehearsing
from mpsearch.reconstruct.moments import Moments, Sums, gather_moments
from mpsearch.reconstruct.ranges import RunningMean

Codes = dict[tuple[int, str], Tensor]
"""(weight bits, granularity) -> codes, int8, shape of the weight."""


def round_units(
    module: nn.Module,
    calibration: Calibration,
    candidates: Mapping[str, Iterable[Candidate]],
    batches: Callable[[], Iterable[Inputs]],
    images: int,
    *,
    memory_bytes: int = 2**30,
    seed: int = 0,
) -> Iterator[tuple[str, Codes]]:
    """The codes of every unit at every width, on the inputs that the float model gives it.

    Work: a float pass over the images, or a few where the moments of all units do not fit, and for each unit
    one loop over its columns for all widths together. Memory: the moments that are held at a time, and those
    of the widest unit three times more in float64; of the codes a byte for each weight and width.

    Args:
        module: Float model in eval mode.
        calibration: Grids.
        candidates: Unit -> its choices; float ones and products of activations are left out.
        batches: Gives the normalised inputs, from the first on, at each call.
        images: How many there are in all.
        memory_bytes: Bound on the moments that are held at a time.
        seed: Of the places of the inputs that are looked at.
    Returns: Unit and codes, one after the other. A unit whose layer does not multiply its weight as it is (a
        standardised one, say) has none, and stays rounded to nearest.
    """
    rows = {
        unit: [c for c in row if c.w_bits is not None and not c.is_float]
        for unit, row in candidates.items()
        if unit in calibration.weights
    }
    wanted = [unit for unit, row in rows.items() if row]
    for unit, found in gather_moments(module, wanted, batches, images, memory_bytes=memory_bytes, seed=seed):
        if found is None:
            yield unit, {}
            continue
        params = _grids(calibration, unit, rows[unit])
        weight = calibration.weights[unit]
        rounded = compensated(weight, list(params.values()), about(found, weight, calibration.corrects(unit)))
        yield unit, {kind: each.codes.to(torch.int8) for kind, each in zip(params, rounded, strict=True)}


def about(moments: Moments, weight: Tensor, corrected: bool) -> Tensor:
    """The moments that rounding lowers the error by: G x n x n.

    Of a linear layer whose bias is corrected the covariance, because that makes up for the mean. A
    convolution's rows at the border have another mean, for the zeros around the image, and there the error of
    the mean is best kept small too.
    """
    return moments.covariance if corrected and weight.ndim == 2 else moments.second


def _grids(calibration: Calibration, unit: str, row: Iterable[Candidate]) -> dict[tuple[int, str], Any]:
    return {(c.w_bits or 0, c.w_granularity): calibration.weight_params(unit, c) for c in row}


@torch.no_grad()
def round_on_prefix(
    unit: str, layer: QuantLayer, original: nn.Module, state: UnitState, run: Run, data: BlockData, seed: int
) -> UnitState:
    """One unit rounded on what the quantised network before it gives it, so that its output is what the float
    one's is.

    The codes stand for the least-squares weight W + W (E[x x_q^T] - H) (H + ridge)^-1, H = E[x_q x_q^T], in
    place of W, and the bias makes the mean of the output that of the float network. The ridge grows where
    there are few rows for the columns, and draws towards W. At few bits scales are chosen anew, for these
    inputs and that weight (`quant.weighted`).

    Args:
        unit: Its name.
        layer: The quantised layer, computing `state`.
        original: The float layer.
        state: Grids; its codes are what the better ones are compared with by the caller.
        run: The layer's forward in the quantised network.
        data: Inputs in both networks.
        seed: Of the places of the inputs that are looked at.
    Returns: The state with other codes and bias; `state` itself where the layer does not multiply its weight
        as it is.
    References: the asymmetric calibration of Li et al., GPTAQ, ICML 2025, arXiv:2504.02692, known
        second-hand; here as a regression in front of GPTQ's loop, with a ridge.
    """
    weight, bias = original.get_parameter("weight"), original._parameters.get("bias")
    seen = _Seen(sum(data.sizes), seed, weight.detach(), getattr(original, "groups", 1))
    start = 0
    for number, size in enumerate(data.sizes):
        more = data.further.chunk(number)
        middle, stop = 2 * start + size, 2 * (start + size)
        ours = _reads(unit, layer.inner, run, data.x.read(middle, stop), more)
        theirs = _reads(unit, original, partial(_call, original), data.x.read(2 * start, middle), more)
        seen.add(ours, theirs)
        start += size
    if state.weight is None or not seen.own.rows:
        return state
    if rehearsing():  # the memory of what follows, not its work
        own = seen.own.moments()
        assert own is not None
        like = wide(own.covariance)
        held = [torch.empty_like(like) for _ in range(5)] + [
            weight.new_empty((8, weight.numel()), dtype=like.dtype)
        ]
        del held
        return state
    second, wanted = seen.problem(state.bias is not None)
    params = state.weight.params
    if params.bits <= FEW_BITS:
        params = weighted(wanted, params, torch.diagonal(second, dim1=1, dim2=2))
    rounded = compensated(weight, [params], second, wanted)[0]
    corrected = None if state.bias is None else seen.bias(bias, rounded)
    return in_integers(replace(state, weight=rounded, bias=corrected))


class _Seen:
    """The inputs of one unit in the quantised network, beside those in the float one.

    The products of both are only needed times the weight, W E[x x_q^T]: rows of the float network are
    multiplied by it at once, unless it has so many of its own that the product afterwards is less work.
    """

    def __init__(self, images: int, seed: int, weight: Tensor, groups: int) -> None:
        self._weight = weight
        self._rows = weight.float().reshape(groups, len(weight) // groups, -1)
        self._at_once = 2 * self._rows.shape[1] < self._rows.shape[2]
        self.own = Sums(images, seed)
        self._cross = Sums(images, seed, self._rows if self._at_once else None)
        self._mean, self._float_mean = RunningMean(), RunningMean()

    def add(self, ours: Sequence[Read], theirs: Sequence[Read]) -> None:
        for read, given in zip(ours, theirs, strict=True):
            self.own.add(read)
            self._cross.add(read, given)
            self._mean.add(read)
            self._float_mean.add(given)

    def means(self) -> tuple[Tensor, Tensor]:
        """G x n float64, in the quantised and in the float network."""
        ours, theirs = self._mean.value, self._float_mean.value
        assert ours is not None and theirs is not None
        return wide(ours), wide(theirs)

    def problem(self, corrected: bool) -> tuple[Tensor, Tensor]:
        """The moments, G x n x n, and the least-squares weight, shape of the weight."""
        own, cross = self.own.moments(), self._cross.moments()
        assert own is not None and cross is not None
        second, flat = about(own, self._weight, corrected).float(), self._rows

        def of_float(x: Tensor) -> Tensor:
            return x if self._at_once else flat @ x

        less = of_float(cross.covariance) - flat @ own.covariance  # W (E[x x_q^T] - H), both without means
        if second is not own.covariance:
            less += (of_float(cross.other[:, :, None]) - flat @ own.mean[:, :, None]) * own.mean[:, None, :]
        order = read_columns(second)
        read = picked(second, order)
        factor = factored(read, (DAMPING + order.shape[1] / own.rows) * mean_power(read))
        across = order[:, None, :].expand(-1, flat.shape[1], -1)
        wanted = less.gather(2, across).to(factor.dtype).transpose(1, 2)
        shift = torch.cholesky_solve(wanted, factor).transpose(1, 2).float()
        return second, flat.scatter_add(2, across, shift).reshape(self._weight.shape)

    def bias(self, bias: Tensor | None, quantized: QuantizedTensor) -> Tensor | None:
        """[C_out]: the output has the mean that it has in the float network."""
        if bias is None or not self._float_mean.adds(bias):  # there is none, or another is computed from it
            return None
        ours, theirs = self.means()
        return mean_matched(bias, self._weight, theirs, quantized, ours)


def _reads(unit: str, layer: nn.Module, run: Run, x: Tensor, more: Values) -> list[Read]:
    """What meets the weight of a layer, which is not multiplied where nothing but the product is done."""
    found: list[Read] = []
    reads = ReadsOnly if type(layer) in (nn.Conv2d, nn.Linear) else Reads
    with reads({unit: layer.get_parameter("weight")}, lambda _, read: found.append(read)):
        run(x, more)
    return found


def _call(block: nn.Module, x: Tensor, more: Values) -> Tensor:
    return block(x, *more[0], **more[1])  # type: ignore[no-any-return]


def round_block(
    unit: str, layer: QuantLayer, original: nn.Module, state: UnitState, run: Run, data: BlockData, seed: int
) -> tuple[dict[str, UnitState], float, float]:
    """The better of a unit's start and `round_on_prefix`, which the layer is left computing; the errors of
    its output before and after.
    """
    before = data.error(run)
    found = round_on_prefix(unit, layer, original, state, run, data, seed)
    layer.set_state(found)
    after = data.error(run, keep=True)
    if after < before:
        return {unit: found}, before, after
    data.given, kept = None, in_integers(state)
    layer.set_state(kept)
    return {unit: kept}, before, after


@torch.no_grad()
def match_means(
    layers: Mapping[str, QuantLayer],
    originals: Mapping[str, nn.Module],
    states: Mapping[str, UnitState],
    run: Run,
    float_run: Run,
    data: BlockData,
    error: float,
) -> tuple[dict[str, UnitState], float]:
    """The states of a block's units with biases that give each output the mean that it has in the float
    network, where that lowers the block's error.

    Args:
        layers: Quantised layers by unit, computing `states`; they are left computing what is returned.
        originals: The float layers of those units that have a weight.
        states: By unit.
        run: The block's forward in the quantised network.
        float_run: In the float one.
        data: Inputs in both networks.
        error: Of the block as it is.
    Returns: States, and the error of the block with them.
    References: Nagel et al., Data-Free Quantization, ICCV 2019, arXiv:1906.04721, appendix D (empirical
        correction), of all units of a block at once.
    """
    held = {
        u: o
        for u, o in originals.items()
        if o._parameters.get("bias") is not None and states[u].weight is not None
    }
    ours, theirs = ({unit: RunningMean() for unit in held} for _ in range(2))
    start = 0
    for number, size in enumerate(data.sizes):
        more = data.further.chunk(number)
        middle, stop = 2 * start + size, 2 * (start + size)
        quantized, plain = data.x.read(middle, stop), data.x.read(2 * start, middle)
        with Reads({unit: layers[unit].inner.get_parameter("weight") for unit in held}, partial(_add, ours)):
            run(quantized, more)
        with Reads({unit: o.get_parameter("weight") for unit, o in held.items()}, partial(_add, theirs)):
            float_run(plain, more)
        start += size
    found = dict(states)
    for unit, original in held.items():
        weight, mean, float_mean = states[unit].weight, ours[unit].value, theirs[unit].value
        if (
            weight is not None
            and mean is not None
            and float_mean is not None
            and theirs[unit].adds(original._parameters.get("bias"))
        ):
            bias = mean_matched(
                original.get_parameter("bias"), original.get_parameter("weight"), float_mean, weight, mean
            )
            found[unit] = in_integers(replace(states[unit], bias=bias))
            layers[unit].set_bias(found[unit].bias)
    after = data.error(run) if held else error
    if after < error:
        return found, after
    for unit in held:
        layers[unit].set_bias(states[unit].bias)
    return dict(states), error


def _add(means: Mapping[str, RunningMean], unit: str, read: Read) -> None:
    means[unit].add(read)
