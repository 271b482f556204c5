"""What is quantised beside the weights, and by which grids: the settings `quantize`, `smooth`,
`input_observer` and `softmax`.
"""

from __future__ import annotations

from collections.abc import Mapping

from mpsearch.deploy.targets import Target
from mpsearch.errors import OptionError
from mpsearch.quant import OBSERVERS
from mpsearch.quant.operands import FUNCTIONS

QUANTIZED: Mapping[str, tuple[str, ...]] = {"linear": (), "matmul": ("matmul",), "full": FUNCTIONS}
"""Setting -> the functions of activations that are quantised beside the inputs of layers."""
MEASURED = ("opt_m", "auto")
"""Input observers that choose by the damage at each unit's output."""


def functions_of(quantize: str, target: Target) -> tuple[str, ...]:
    """The functions that are quantised: those of the setting that the target runs."""
    return tuple(op for op in QUANTIZED[quantize] if op in target.functions)


def observer_of(text: str) -> str:
    """An input observer as it is registered: `percentile:99.9` is short for `percentile:percent=99.9`."""
    name, colon, option = text.partition(":")
    return f"{name}:percent={option}" if name == "percentile" and colon and "=" not in option else text


def check_operands(quantize: str, input_observer: str, softmax: str, target: str, deployment: Target) -> None:
    """Raises UnknownNameError or OptionError where an observer is not known, or the target has no such
    numbers.
    """
    if input_observer not in MEASURED:
        OBSERVERS.create(observer_of(input_observer))
    if quantize != "linear" and not functions_of(quantize, deployment):
        raise OptionError(
            f"--quantize {quantize} quantises functions of activations, and --target {target} runs all of "
            f"them "
            "in float. Take --target packed, or leave --quantize out."
        )
    uneven = [
        flag
        for flag, is_other in (
            (f"--input-observer {input_observer}", input_observer in MEASURED),
            (f"--softmax {softmax}", softmax != "uniform"),
        )
        if is_other
    ]
    if uneven and not deployment.uneven_grids:
        raise OptionError(
            f"{uneven[0]} may choose two steps or logarithmic levels, and --target {target} has uniform "
            f"grids "
            "alone. Take --target packed, or leave it out."
        )
    if softmax != "uniform" and quantize == "linear":
        raise OptionError(
            f"--softmax {softmax} is about the probabilities of attention, which --quantize linear leaves "
            "in float. Add --quantize matmul or --quantize full."
        )
