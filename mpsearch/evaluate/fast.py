"""The fast evaluator: the true loss of an assignment at about the price of a float forward pass, or less.

The weight of each unit at each candidate is quantised once and kept; an assignment is then a swap of
pointers. Outputs of the first part of the network are kept too, and a pass starts behind what it shares with
an earlier one. Clear losers may be left after a part of the images.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Container, Hashable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mpsearch.accelerator import within_free
from mpsearch.data import SampleSet
from mpsearch.evaluate.metrics import predict
from mpsearch.evaluate.prefixes import PrefixRunner, prefix_key
from mpsearch.evaluate.scratch import Scratch, ScratchGrid
from mpsearch.evaluate.tasks import Classification, Task
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import ActivationQuantizer, AffineParams, QuantLayer, UnitState, wrap_units
from mpsearch.quant.devices import device_of


class Quantizers(Protocol):
    """What the evaluator needs to know of a model's quantisers; `reconstruct.Calibration` is one."""

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Unit -> float weight."""

    @property
    def products(self) -> Mapping[str, Any]:
        """Units without a weight that may be quantised, by name."""

    @property
    def learned(self) -> Container[tuple[str, Candidate]]:
        """Units and candidates whose weight was learned for both bit widths; any other weight depends on its
        own bits alone.
        """

    def input_params(self, unit: str, candidate: Candidate) -> ActivationQuantizer:
        """Quantiser of a unit's input."""

    def state(self, unit: str, candidate: Candidate) -> UnitState:
        """The unit at a candidate."""


_BATCH = 32
_ANY = 16  # input bits in the key of a weight that does not depend on them
_PREFIX_SHARE = 4  # the outputs that one assignment leaves take at most this part of the memory


class FastEvaluator:
    """Measures assignments by the damage of a task, such as KL(float || quantised), on fixed images, with the
    states that the quantisers give.

    Args:
        module: Float model in eval mode; not changed.
        calibration: Quantisers of its units.
        images: What the loss is measured on.
        memory_limit_bytes: Bound on the quantised weights and the outputs of shared prefixes that are kept,
            beside one weight and one batch; on a GPU half of what it has free, where that is less. Outputs go
            first, then weights, the least recently used first; both are made again when needed.
        task: What damage is; classification where None.
    """

    def __init__(
        self,
        module: nn.Module,
        calibration: Quantizers,
        images: SampleSet,
        *,
        memory_limit_bytes: int = 2 * 2**30,
        task: Task | None = None,
    ) -> None:
        self._calibration, self._images, self._limit, self._task = (
            calibration,
            images,
            within_free(memory_limit_bytes, device_of(module)),
            task or Classification(),
        )
        self.float_logits = predict(module, images)
        self._module = copy.deepcopy(module)
        self._layers = wrap_units(self._module, [*calibration.weights, *calibration.products])
        self._kept: OrderedDict[tuple[str, Candidate], Tensor] = OrderedDict()
        self._biases: dict[tuple[str, Candidate], Tensor | None] = {}
        self._outputs: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._weight_bytes = self._output_bytes = 0
        self._scratch = Scratch()
        products = set(calibration.products)  # they have no module of their own at which a pass could start
        runs = PrefixRunner(
            self._module,
            list(calibration.weights),
            images.inputs([0, len(images) - 1]),
            self._limit // _PREFIX_SHARE,
            len(images),
        )
        self._runner = runs
        self._cuts = [] if products else runs.cuts

    @property
    def kept_bytes(self) -> int:
        """Memory of the quantised weights and prefix outputs held now."""
        return self._weight_bytes + self._output_bytes

    def measure(self, assignment: Assignment) -> float:
        """Mean damage, for classification the KL divergence to the float model in nats; NaN where the
        quantised model's output is not finite.
        """
        return self._task.loss(self.logits(assignment), self.float_logits)

    def losses(self, assignment: Assignment) -> Tensor:
        """Damage on each image, for classification the KL divergence to the float model; N float64."""
        return self._task.damage(self.logits(assignment), self.float_logits)

    def logits(self, assignment: Assignment) -> Tensor:
        """N x K float32 logits (or other outputs) of the model at an assignment, in the CPU's memory."""
        self._load(assignment, self._layers)
        found = [self._batch(assignment, start) for start in range(0, len(self._images), _BATCH)]
        return torch.cat(found).cpu()

    def _batch(self, assignment: Assignment, start: int) -> Tensor:
        """Logits of the images from `start`, from behind the last cut whose output is known."""
        choices: dict[str, Hashable] = {unit: assignment[unit] for unit in self._layers}
        inputs = self._images.inputs(slice(start, start + _BATCH))
        for cut in reversed(self._cuts):
            key = (start, prefix_key(cut, choices))
            if key in self._outputs:
                self._outputs.move_to_end(key)
                return self._runner.run(
                    inputs,
                    cut,
                    self._outputs[key],
                    lambda c, out: self._keep((start, prefix_key(c, choices)), out),
                )
        if not self._cuts:
            return self._runner.run(inputs, None, None)
        return self._runner.run(
            inputs, None, None, lambda c, out: self._keep((start, prefix_key(c, choices)), out)
        )

    def _keep(self, key: Hashable, output: Tensor) -> None:
        self._outputs[key] = output
        self._output_bytes += output.nbytes
        self._trim()

    def _trim(self) -> None:
        while self._outputs and self.kept_bytes > self._limit:
            self._output_bytes -= self._outputs.popitem(last=False)[1].nbytes
        while self.kept_bytes > self._limit and len(self._kept) > 1:
            self._weight_bytes -= self._kept.popitem(last=False)[1].nbytes

    def _load(self, assignment: Assignment, units: Iterable[str]) -> None:
        for unit in units:
            candidate, layer = assignment[unit], self._layers[unit]
            if isinstance(layer, QuantLayer):
                layer.input.params = (
                    None
                    if candidate.is_float or candidate.weight_only
                    else self._fast(self._calibration.input_params(unit, candidate))
                )
                layer.set_weight(self._weight(unit, candidate))
                layer.set_bias(
                    None if candidate.is_float else self._biases[self._weight_key(unit, candidate)]
                )
            else:
                layer.set_state(self._calibration.state(unit, candidate))

    def _fast(self, params: ActivationQuantizer) -> ActivationQuantizer:
        return (
            ScratchGrid(params, self._scratch)
            if isinstance(params, AffineParams) and params.axis is None
            else params
        )

    def _weight_key(self, unit: str, candidate: Candidate) -> tuple[str, Candidate]:
        return unit, candidate if (unit, candidate) in self._calibration.learned else replace(
            candidate, a_bits=_ANY
        )

    def _weight(self, unit: str, candidate: Candidate) -> Tensor:
        if candidate.is_float:
            return self._calibration.weights[unit]
        key = self._weight_key(unit, candidate)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        state: UnitState = self._calibration.state(unit, candidate)
        weight = self._calibration.weights[unit] if state.weight is None else state.weight.dequantize()
        self._kept[key], self._biases[key] = weight, state.bias
        self._weight_bytes += weight.nbytes
        self._trim()
        return weight
