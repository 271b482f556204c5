"""The fast evaluator: the true loss of an assignment at about the price of a float forward pass.

The weight of each unit at each candidate is quantised once and kept; an assignment is then a swap of pointers.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mpsearch.data import SampleSet
from mpsearch.evaluate.metrics import predict
from mpsearch.evaluate.tasks import Classification, Task
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import ActivationQuantizer, QuantLayer, UnitState, wrap_units


class Quantizers(Protocol):
    """What the evaluator needs to know of a model's quantisers; `reconstruct.Calibration` is one."""

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Unit -> float weight."""

    @property
    def products(self) -> Mapping[str, Any]:
        """Products of two activations that may be quantised, by name."""

    def input_params(self, unit: str, candidate: Candidate) -> ActivationQuantizer:
        """Quantiser of a unit's input."""

    def state(self, unit: str, candidate: Candidate) -> UnitState:
        """The unit at a candidate."""


class FastEvaluator:
    """Measures assignments by the damage of a task, such as KL(float || quantised), on fixed images, with weights rounded to nearest.

    Args:
        module: Float model in eval mode; not changed.
        calibration: Quantisers of its units.
        images: What the loss is measured on.
        memory_limit_bytes: Bound on the quantised weights that are kept; the least recently used are dropped and made again when needed.
        task: What damage is; classification where None.
    """

    def __init__(self, module: nn.Module, calibration: Quantizers, images: SampleSet, *, memory_limit_bytes: int = 2 * 2**30, task: Task | None = None) -> None:
        self._calibration, self._images, self._limit, self._task = calibration, images, memory_limit_bytes, task or Classification()
        self.float_logits = predict(module, images)
        self._module = copy.deepcopy(module)
        self._layers = wrap_units(self._module, [*calibration.weights, *calibration.products])
        self._kept: OrderedDict[tuple[str, Candidate], Tensor] = OrderedDict()
        self._bytes = 0

    @property
    def kept_bytes(self) -> int:
        """Memory of the quantised weights held now."""
        return self._bytes

    def measure(self, assignment: Assignment) -> float:
        """Mean damage, for classification the KL divergence to the float model in nats; NaN where the quantised model's output is not finite."""
        return self._task.loss(self.logits(assignment), self.float_logits)

    @torch.no_grad()
    def logits(self, assignment: Assignment) -> Tensor:
        """N x K float32 logits (or other outputs) of the model at an assignment."""
        self._load(assignment, self._layers)
        return torch.cat([self._module(inputs).float() for inputs, _ in self._images.batches(64)])

    def _load(self, assignment: Assignment, units: Iterable[str]) -> None:
        for unit in units:
            candidate, layer = assignment[unit], self._layers[unit]
            if isinstance(layer, QuantLayer):
                layer.input.params = None if candidate.is_float else self._calibration.input_params(unit, candidate)
                layer.set_weight(self._weight(unit, candidate))
            else:
                layer.set_state(self._calibration.state(unit, candidate))

    def _weight(self, unit: str, candidate: Candidate) -> Tensor:
        if candidate.is_float:
            return self._calibration.weights[unit]
        key = (unit, Candidate(candidate.w_bits, 8, w_granularity=candidate.w_granularity))  # the weight does not depend on a_bits
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        state: UnitState = self._calibration.state(unit, candidate)
        weight = self._calibration.weights[unit] if state.weight is None else state.weight.dequantize()
        self._kept[key] = weight
        self._bytes += weight.nbytes
        while self._bytes > self._limit and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return weight
