"""Reconstruction methods: what is learned, against what, and with which quantisers on. Small policies; the
loop is one.

A method is a list of phases. Each phase walks once through the network, block by block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from mpsearch.errors import OptionError
from mpsearch.quant.attention_round import AttentionRound as AttentionRounding
from mpsearch.quant.attention_round import Init
from mpsearch.quant.rounding import AdaRound as AdaRounding
from mpsearch.quant.rounding import RoundingPolicy
from mpsearch.registry import Registry

Loss = Literal["mse", "fisher"]
Start = Literal["gptq", "nearest"]
"""Where the codes stand before they are learned: in closed form on the quantised network before them, or as
they are given.
"""


@dataclass(frozen=True)
class Phase:
    """One walk through the network.

    Args:
        rounding: How weights learn their codes; None leaves them.
        steps: Whether the step sizes of activations are learned, of two regions one factor on both;
            logarithmic levels stay as calibrated.
        activations: Whether activations are quantised in this phase.
        keep_prob: Probability that an element of the block's input, and of each quantised activation in it,
            is quantised (1 drops nothing).
        closed: Whether each unit is rounded in closed form instead (`reconstruct.closed_form`), layer by
            layer.
        asymmetric: Whether a block reads what the quantised network before it gives, whose errors it then
            learns to make up for; else what the float one does.
    """

    rounding: RoundingPolicy | None
    steps: bool = False
    activations: bool = True
    keep_prob: float = 1.0
    asymmetric: bool = True
    closed: bool = False


CLOSED = Phase(None, closed=True)


def started(start: Start, *phases: Phase) -> list[Phase]:
    """The phases behind what the codes start from."""
    return [CLOSED, *phases] if start == "gptq" else list(phases)


class Method(ABC):
    """A way to turn calibrated units into learned ones."""

    name: ClassVar[str]
    layerwise: ClassVar[bool] = False
    """Whether each layer is a block of its own."""
    loss: Loss = "mse"
    start: Start = "gptq"

    @abstractmethod
    def phases(self) -> list[Phase]:
        """In order; none for a method that learns nothing."""

    @property
    def goes_on(self) -> bool:
        """Whether it learns behind a first walk in closed form."""
        first, *others = self.phases() or [Phase(None)]
        return first.closed and bool(others)


METHODS: Registry[Method] = Registry("reconstruction method", "mpsearch.reconstruct")


@METHODS.register("nearest")
@dataclass(frozen=True)
class Nearest(Method):
    """Every weight to the nearest level; nothing is learned."""

    def phases(self) -> list[Phase]:
        """None."""
        return []


@METHODS.register("gptq")
@dataclass(frozen=True)
class Gptq(Method):
    """Codes and biases in closed form, layer by layer, so that each output is what the float network's is; no
    gradients.

    References: Frantar et al., GPTQ, ICLR 2023, arXiv:2210.17323, and those of `reconstruct.closed_form`.
    """

    def phases(self) -> list[Phase]:
        """One."""
        return [CLOSED]


@METHODS.register("adaround")
@dataclass(frozen=True)
class AdaRound(Method):
    """Rounding up or down, layer by layer, against the float layer's output, all quantisers on.

    References: Nagel et al., Up or Down?, ICML 2020, arXiv:2004.10568. Differs in: a unit's quantiser sits on
        its input and is on while it learns.

    Args:
        reg: Factor of the rounding regulariser (lambda).
        asymmetric: Each layer reads the quantised network's activations (the paper's eq. 25); False for the
            float one's (eq. 21), so that what a layer learns does not depend on the bits of others.
        start: As `Start`.
    """

    reg: float = 0.1
    asymmetric: bool = True
    start: Start = "gptq"
    layerwise: ClassVar[bool] = True

    def phases(self) -> list[Phase]:
        """One, behind what the codes start from."""
        return started(self.start, Phase(AdaRounding(weight=self.reg), asymmetric=self.asymmetric))


@METHODS.register("brecq")
@dataclass(frozen=True)
class Brecq(Method):
    """Rounding by blocks with float activations, then the step sizes of activations by blocks.

    References: Li et al., BRECQ, ICLR 2021, arXiv:2102.05426.

    Args:
        reg: Factor of the rounding regulariser (lambda).
        loss: `mse`, or `fisher` for errors weighted by the diagonal of the Fisher information
            (`reconstruct.fisher`).
        start: As `Start`.
    """

    reg: float = 0.1
    loss: Loss = "mse"
    start: Start = "gptq"

    def phases(self) -> list[Phase]:
        """Weights, then steps, behind what the codes start from."""
        return started(
            self.start, Phase(AdaRounding(weight=self.reg), activations=False), Phase(None, steps=True)
        )


@METHODS.register("qdrop")
@dataclass(frozen=True)
class QDrop(Method):
    """Rounding and step sizes together, by blocks, while quantisation is dropped at random in the block and
    on its input.

    References: Wei et al., QDrop, ICLR 2022, arXiv:2203.05740. Differs in: a unit's quantiser sits on its
    input, so the block's output is not quantised; what is learned of a step is its logarithm; a block that is
    no better than its start on the calibration images keeps its start.

    Args:
        keep_prob: Probability that an element is quantised (`drop_prob` in the paper's code).
        reg: Factor of the rounding regulariser (lambda).
        loss: `mse` or `fisher`.
        start: As `Start`.
    """

    keep_prob: float = 0.5
    reg: float = 0.1
    loss: Loss = "mse"
    start: Start = "gptq"

    def __post_init__(self) -> None:
        _check_keep(self.keep_prob)

    def phases(self) -> list[Phase]:
        """One, behind what the codes start from."""
        return started(self.start, Phase(AdaRounding(weight=self.reg), steps=True, keep_prob=self.keep_prob))


@METHODS.register("attention_round")
@dataclass(frozen=True)
class AttentionRound(Method):
    """QDrop's walk with the rounding of Attention Round, where a weight may go to any level.

    References: after Diao et al., Attention Round, arXiv:2207.03088; see `quant.attention_round` for what is
        chosen here.

    Args:
        tau: Width of the Gaussian, in steps of the grid.
        init: Where the offsets start: at `zero`, or at a sample of that Gaussian. A block that ends no better
            than its start without the sample keeps that start.
        keep_prob: Probability that an element is quantised.
        loss: `mse` or `fisher`.
        start: As `Start`.
    """

    tau: float = 0.5
    init: Init = "zero"
    keep_prob: float = 0.5
    loss: Loss = "mse"
    start: Start = "gptq"
    _rounding: AttentionRounding = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_keep(self.keep_prob)
        object.__setattr__(self, "_rounding", AttentionRounding(self.tau, self.init))

    def phases(self) -> list[Phase]:
        """One, behind what the codes start from."""
        return started(self.start, Phase(self._rounding, steps=True, keep_prob=self.keep_prob))


def _check_keep(keep_prob: float) -> None:
    if not 0 < keep_prob <= 1:
        raise OptionError(f"keep_prob is {keep_prob}; it must be over 0 and at most 1 (1 drops nothing).")
