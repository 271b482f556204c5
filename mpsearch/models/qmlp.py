"""Q-MLP: ResMLP with what makes its activations fit a few bits. Models to be trained, or fine-tuned with
quantisation; no post-training method.

Of the five techniques three are here: layer norm in place of the affine "norm", bounded activation functions,
and several token-mixing MLPs side by side. The other two are choices of quantiser: percentile ranges
(`percentile:percent=99.99`) and asymmetric grids for sensitive units (`reconstruct.sensitivity`), as
`mpsearch finetune --preset q-mlp` sets them.

References: after Zhao, Dong, Keutzer, Q-MLP, arXiv:2209.06383, of which the abstract was read; what it leaves
    open is chosen here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

from mpsearch.errors import OptionError, UnknownNameError

__all__ = ["ClippedGELU", "QMlpBlock", "TokenMixing", "qmlp_cifar", "qmlp_s24_224"]

GELU_MINIMUM = -0.17  # of GELU, rounded outwards
BOUND = 6.0


class ClippedGELU(nn.Module):
    """min(GELU(x), 6): between -0.17 and 6, so that the range of its quantiser is known before any image is
    seen.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x`."""
        return F.gelu(x).clamp(GELU_MINIMUM, BOUND)


ACTIVATIONS: dict[str, type[nn.Module]] = {"clipped_gelu": ClippedGELU, "relu6": nn.ReLU6, "gelu": nn.GELU}
"""By the name that a model's `activation` takes; `gelu` is the unbounded one, for comparison."""


class TokenMixing(nn.Module):
    """K maps over the token axis, side by side, summed: sum over k of T_k(X). Experimental.

    A branch is one linear layer (ratio 0, ResMLP's own) or an MLP with `ratio` * N hidden units. Linear
    branches alone are one linear map in float; what they add is a finer grid once their weights are
    quantised.

    References: after Zhao, Dong, Keutzer, Q-MLP, arXiv:2209.06383 ("multiple token-mixing MLPs"; their form
        was not seen, this one is chosen here).

    Args:
        tokens: N.
        ratios: Hidden units of each branch as a multiple of N.
        act_layer: Activation of the branches that have hidden units.
    """

    def __init__(self, tokens: int, ratios: Sequence[float], act_layer: type[nn.Module]) -> None:
        super().__init__()
        if not ratios or min(ratios) < 0:
            raise OptionError(
                f"token_ratios is {list(ratios)}; it needs one number for each token-mixing branch, 0 or "
                "positive, such as [0, 0.5]."
            )
        self.branches = nn.ModuleList(
            Mlp(tokens, max(1, round(ratio * tokens)), act_layer=act_layer)
            if ratio
            else nn.Linear(tokens, tokens)
            for ratio in ratios
        )

    def forward(self, x: Tensor) -> Tensor:
        """B x N x C -> B x N x C."""
        x = x.transpose(1, 2)
        first, *rest = self.branches
        mixed: Tensor = first(x)
        for branch in rest:
            mixed = mixed + branch(x)
        return mixed.transpose(1, 2)


class QMlpBlock(nn.Module):
    """X + ls1 * sum over k of T_k(LN(X)), then X + ls2 * MLP(LN(X)); layer norm over channels in place of
    ResMLP's affine "norm".

    References: Touvron et al., ResMLP, arXiv:2105.03404 (the block); after Zhao, Dong, Keutzer, Q-MLP,
        arXiv:2209.06383 (what differs).

    Args:
        dim: C, channels.
        seq_len: N, tokens.
        mlp_ratio: Hidden channels of the channel MLP as a multiple of C.
        token_ratios: One number for each token-mixing branch; see `TokenMixing`.
        norm_layer: Over the channels.
        act_layer: Bounded activation function.
        init_values: Start of both layer scales.
        drop: Dropout probability in the channel MLP.
        drop_path: Probability that a residual branch is left out of an image in training.
        mlp_layer: Class of the channel MLP.
    """

    def __init__(
        self,
        dim: int,
        seq_len: int,
        mlp_ratio: float = 4.0,
        *,
        token_ratios: Sequence[float] = (0.0, 0.5),
        norm_layer: Any = nn.LayerNorm,
        act_layer: type[nn.Module] = ClippedGELU,
        init_values: float = 0.1,
        drop: float = 0.0,
        drop_path: float = 0.0,
        mlp_layer: Any = Mlp,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.mlp_tokens = TokenMixing(seq_len, token_ratios, act_layer)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = norm_layer(dim)
        self.mlp_channels = mlp_layer(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=drop)
        self.ls1, self.ls2 = (nn.Parameter(torch.full((dim,), init_values, device=device)) for _ in range(2))
        self.to(device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """B x N x C -> B x N x C."""
        x = x + self.drop_path(self.ls1 * self.mlp_tokens(self.norm1(x)))
        x = x + self.drop_path(self.ls2 * self.mlp_channels(self.norm2(x)))
        return x


default_cfgs = generate_default_cfgs(
    {
        "qmlp_s24_224": {
            "input_size": (3, 224, 224),
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "num_classes": 1000,
            "first_conv": "stem.proj",
            "classifier": "head",
        },
        "qmlp_cifar": {
            "input_size": (3, 32, 32),
            "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2470, 0.2435, 0.2616),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "num_classes": 10,
            "first_conv": "stem.proj",
            "classifier": "head",
        },
    }
)


@register_model
def qmlp_s24_224(pretrained: bool = False, **kwargs: Any) -> MlpMixer:
    """Q-MLP of the size of ResMLP-S24: 196 tokens of 16 x 16 pixels, width 384, 24 blocks. There are no
    trained weights.
    """
    return _create(
        "qmlp_s24_224",
        pretrained,
        {"patch_size": 16, "num_blocks": 24, "embed_dim": 384, "init_values": 1e-5, **kwargs},
    )


@register_model
def qmlp_cifar(pretrained: bool = False, **kwargs: Any) -> MlpMixer:
    """Q-MLP for 32 x 32 images: 64 tokens of 4 x 4 pixels, width 160, 6 blocks. There are no trained
    weights.
    """
    return _create(
        "qmlp_cifar",
        pretrained,
        {"img_size": 32, "patch_size": 4, "num_blocks": 6, "embed_dim": 160, "num_classes": 10, **kwargs},
    )


def _create(variant: str, pretrained: bool, options: dict[str, Any]) -> MlpMixer:
    """The options of timm's `MlpMixer`, with `activation`, `token_ratios` and `init_values` besides."""
    activation = options.pop("activation", "clipped_gelu")
    if activation not in ACTIVATIONS:
        raise UnknownNameError("activation of a Q-MLP", activation, ACTIVATIONS)
    block = partial(
        QMlpBlock,
        token_ratios=options.pop("token_ratios", (0.0, 0.5)),
        init_values=options.pop("init_values", 0.1),
    )
    norm = partial(nn.LayerNorm, eps=1e-6)
    options = {
        "mlp_ratio": 4,
        "block_layer": block,
        "norm_layer": norm,
        "act_layer": ACTIVATIONS[activation],
        **options,
    }
    model: MlpMixer = build_model_with_cfg(MlpMixer, variant, pretrained, **options)
    return model
