"""The quantiser at one input of a layer, with all that reconstruction does to it: dropping, and a step size
that is learned.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mpsearch.quant.affine import ActivationQuantizer, AffineParams
from mpsearch.quant.devices import on_device
from mpsearch.quant.learned import LearnedStep, learned_regions, learned_step
from mpsearch.quant.pieces import Workspace, empty_like
from mpsearch.quant.regions import TwoRegionParams

__all__ = ["InputQuantizer", "LearnedStep", "keep_mask", "learned_regions", "learned_step"]


class InputQuantizer(nn.Module):
    """Fake-quantises the tensor that passes through.

    Attributes:
        params: The quantiser; None passes the tensor on in float.
        keep_prob: Probability that an element is quantised (QDrop's dropping); 1 but while a block is
            reconstructed.
        generator: Random generator of the dropping; must be set where `keep_prob` is below 1.
        dtype: Type that is computed in while the step is learned; that of the input where None.
        workspace: Where what is quantised lies while a block is reconstructed: it holds until the workspace
            begins anew.
        second_half: Whether only the second half of the rows is quantised: two streams, one of them float,
            pass through together.
        log_step: Logarithm of the factor on the scale, or on both steps of two regions, that is being
            learned; None where nothing is learned.
    """

    log_step: nn.Parameter | None

    def __init__(self, params: ActivationQuantizer | None = None) -> None:
        super().__init__()
        self.params = params
        self.keep_prob = 1.0
        self.generator: torch.Generator | None = None
        self.dtype: torch.dtype | None = None
        self.workspace: Workspace | None = None
        self.second_half = False
        self.register_parameter("log_step", None)

    def forward(self, x: Tensor) -> Tensor:
        """`x` with each element quantised with probability `keep_prob`, else as it is.

        References: Wei et al., QDrop, ICLR 2022, arXiv:2203.05740; `drop_prob` in its code is this keep
            probability.
        """
        if self.params is None:
            return x
        if self.second_half:
            rows = len(x) // 2
            return torch.cat([x[:rows], self._quantized(x[rows:], self.params)])
        return self._quantized(x, self.params)

    def _quantized(self, x: Tensor, params: ActivationQuantizer) -> Tensor:
        learned = self.log_step is not None and isinstance(
            params, AffineParams
        )  # the one that keeps bfloat16, which autocast makes
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) and not learned else x
        keep = None if self.keep_prob >= 1 else keep_mask(x, self.keep_prob, self.generator, self.workspace)
        if self.log_step is not None and isinstance(params, AffineParams):
            return learned_step(x, params, self.log_step.exp(), keep, self.workspace, self.dtype)
        if self.log_step is not None and isinstance(params, TwoRegionParams):
            quantized = learned_regions(x, params, self.log_step.exp())
        else:
            quantized = params.fake_quantize(x)
        return quantized if keep is None else torch.lerp(x, quantized, keep)

    def place(self, device: torch.device) -> None:
        """Move the quantiser's numbers to where the tensors are that it is to learn from."""
        self.params = on_device(self.params, device)

    def learn(self) -> nn.Parameter | None:
        """Make the step size a parameter, and return it: of two regions one factor on both. None where the
        input is float or has logarithmic levels.

        Those keep the scale that was calibrated: rounding in the exponent errs further upwards than
        downwards, so the straight-through gradient of their scale does not vanish at the best one, and
        descending along it leads away from it.
        """
        if isinstance(self.params, AffineParams | TwoRegionParams):
            self.log_step = nn.Parameter(torch.zeros_like(self.params.step))
        return self.log_step

    def settle(self) -> ActivationQuantizer | None:
        """Put what was learned into `params`, stop learning and dropping, and return the quantiser."""
        if self.log_step is not None and isinstance(self.params, AffineParams | TwoRegionParams):
            self.params = self.params.scaled(self.log_step.detach().exp())
        self.log_step = None
        self.keep_prob, self.generator, self.workspace, self.dtype = 1.0, None, None, None
        return self.params


def keep_mask(
    x: Tensor, keep_prob: float, generator: torch.Generator | None, workspace: Workspace | None = None
) -> Tensor:
    """1.0 with probability `keep_prob` (to the next 1/256), else 0.0, shape and memory layout of `x`.

    A byte decides each element: on a CPU this takes a tenth of the time of `torch.bernoulli`.
    """
    count = -(-x.numel() // 8)
    words = (
        torch.empty(count, dtype=torch.int64, device=x.device)
        if workspace is None
        else workspace.empty((count,), (1,), torch.int64, x.device)
    )
    words.random_(-(2**63), None, generator=generator)
    mask = empty_like(x, workspace)
    strides: tuple[int, ...] = mask.stride()
    flat = mask.permute(sorted(range(x.ndim), key=lambda axis: -strides[axis])).view(-1)
    torch.lt(words.view(torch.uint8)[: x.numel()], round(keep_prob * 256), out=flat)
    return mask
