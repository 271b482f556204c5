"""The diagonal of the Fisher information at the output of each block, as weights of its reconstruction
error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mpsearch.pytrees import Inputs, leaves_of, like, split
from mpsearch.reconstruct.memory import section

FLOOR = 0.1
"""Share of the mean that every weight has at least, so that no output is free."""


def fisher_weights(
    module: nn.Module, blocks: Sequence[str], images: Inputs, seed: int, chunk: int
) -> dict[str, Tensor]:
    """E[(d log p(y|x) / dz)^2] for every element z of every block's output, y drawn from the model's own
    softmax.

    One forward and one backward pass for all blocks. Each result has mean 1 and shape 1 x ..., the mean over
    the images.

    References: Li et al., BRECQ, ICLR 2021, eq. 10, arXiv:2102.05426. Differs in: the Fisher information is
    that of the float model, with labels drawn from its own prediction, and is averaged over the images;
    BRECQ's code takes the gradient of KL(float || quantised so far) of each image, and adds 1 to its
    magnitude where this adds a floor.

    Args:
        module: Float, in eval mode, N x K logits out; left as found.
        blocks: Module names.
        images: N x C x H x W, or what else the model reads.
        seed: Random seed of the labels.
        chunk: Images of a pass.
    """
    totals: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    required = [p.requires_grad for p in module.parameters()]
    handles = [module.get_submodule(name).register_forward_hook(_keep(outputs, name)) for name in blocks]
    generator = torch.Generator(device=leaves_of(images)[0].device).manual_seed(seed)
    section("step")
    try:
        module.requires_grad_(False)
        for part in split(images, chunk):
            with torch.enable_grad():
                logits = module(_differentiable(part))
            chance = logits.detach().flatten(1).softmax(1)
            drawn = torch.multinomial(chance, 1, generator=generator)
            with torch.enable_grad():
                score = logits.flatten(1).log_softmax(1).gather(1, drawn).sum()
                reached = [name for name in outputs if outputs[name].requires_grad]
                for name, grad in zip(
                    reached,
                    torch.autograd.grad(score, [outputs[n] for n in reached], allow_unused=True),
                    strict=True,
                ):
                    if grad is not None:
                        totals[name] = totals.get(
                            name, torch.zeros((), device=grad.device)
                        ) + grad.detach().square().sum(0, keepdim=True)
            outputs.clear()
    finally:
        for handle in handles:
            handle.remove()
        for parameter, needed in zip(module.parameters(), required, strict=True):
            parameter.requires_grad_(needed)
    section("chunk")
    return {name: _normalised(total) for name, total in totals.items()}


def _differentiable(part: Inputs) -> Inputs:
    return like(part, (x.detach().requires_grad_(x.is_floating_point()) for x in leaves_of(part)))


def _keep(outputs: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(_: nn.Module, __: object, output: Tensor) -> None:
        # token numbers have no gradient: there, the first block's output is where it ends
        outputs[name] = output if output.requires_grad else output.requires_grad_()

    return hook


def _normalised(total: Tensor) -> Tensor:
    mean = total.mean()
    return torch.ones_like(total) if mean <= 0 else (total / mean + FLOOR) / (1 + FLOOR)
