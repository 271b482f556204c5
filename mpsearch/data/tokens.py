"""`TokenSet`: texts as a text encoder reads them, cut or padded to one length, with their masks and what is
true of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mpsearch.data.samples import HeldSamples, Indices, at
from mpsearch.errors import DataError

FIELDS = ("input_ids", "attention_mask", "token_type_ids")
"""What the rows of a sample hold, by the names that Hugging Face's tokenizers and models use."""


@dataclass(frozen=True, eq=False)
class TokenSet(HeldSamples):
    """N texts as token numbers.

    A model that reads them takes one tensor, `N x F x T` int64, and unstacks it (`mpsearch.models.TextModel`
    does).

    Args:
        tokens: `N x F x T` int32: for each text the first F of `FIELDS`, 2 or 3, of T tokens each. The mask
            is 1 where a token counts.
        labels: `N` classes or `N x 2` spans (first and last token), int64; None where nothing is known.
        name: Where the texts came from.
    """

    tokens: Tensor
    labels: Tensor | None = None
    name: str = "texts"
    held: ClassVar[str] = "tokens"
    one: ClassVar[str] = "text"
    unlabelled: ClassVar[str] = "Give them to TokenSet or tokenize."

    def __post_init__(self) -> None:
        shape = tuple(self.tokens.shape)
        if self.tokens.dtype != torch.int32 or self.tokens.ndim != 3 or shape[1] not in (2, 3):
            raise DataError(
                f"{self.name}: tokens are {self.tokens.dtype} of shape {shape}; they must be int32 N x F "
                f"x T with F 2 or 3: {', '.join(FIELDS)}."
            )
        if self.labels is not None and (
            self.labels.dtype != torch.int64 or tuple(self.labels.shape) not in {(shape[0],), (shape[0], 2)}
        ):
            found = f"{self.labels.dtype} of shape {tuple(self.labels.shape)}"
            raise DataError(
                f"{self.name}: labels are {found}; they must be int64 of shape ({shape[0]},) or "
                f"({shape[0]}, 2)."
            )
        mask = self.tokens[:, 1]
        if len(mask) and not (((mask == 0) | (mask == 1)).all() and (mask.sum(1) > 0).all()):
            raise DataError(
                f"{self.name}: a mask holds something else than 0 and 1, or a text has no token that "
                "counts. Leave empty texts out."
            )

    @property
    def form(self) -> tuple[int, ...]:
        """F and T."""
        return tuple(self.tokens.shape[1:])

    def inputs(self, indices: Indices | None = None) -> Tensor:
        """`N x F x T` int64."""
        return (self.tokens if indices is None else self.tokens[at(indices)]).to(torch.int64)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over shape, tokens and labels; the name does not count."""
        head = json.dumps([list(self.tokens.shape), None if self.labels is None else self.labels.tolist()])
        digest = hashlib.sha256(head.encode())
        digest.update(self.tokens.contiguous().numpy().data)
        return digest.hexdigest()


def tokenize(
    tokenizer: Callable[..., Mapping[str, Any]],
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    length: int,
    labels: Tensor | None = None,
    name: str = "texts",
) -> TokenSet:
    """Texts, or pairs of texts, through a Hugging Face tokenizer, padded and cut to one length.

    Args:
        tokenizer: Tokenizer, as `transformers.AutoTokenizer` gives it. Of a pair the second text is cut
            first.
        texts: N.
        pairs: The second text of each, such as the passage behind a question; its tokens have type 1.
        length: T, special tokens included.
        labels: Labels, as in `TokenSet`.
        name: Where the texts came from.
    Raises: DataError: No texts, or the tokenizer gives no mask.
    """
    if not texts:
        raise DataError(f"{name}: there are no texts. Give at least one.")
    options: dict[str, Any] = {
        "padding": "max_length",
        "truncation": True if pairs is None else "only_second",
        "max_length": length,
    }
    found = (
        tokenizer(list(texts), **options) if pairs is None else tokenizer(list(texts), list(pairs), **options)
    )
    fields = FIELDS[:2] if pairs is None else FIELDS
    if not set(fields) <= set(found.keys()):
        raise DataError(
            f"{name}: the tokenizer gives {', '.join(found.keys())}; {', '.join(fields)} are needed. Use "
            "a tokenizer of a BERT-like encoder."
        )
    stacked = np.stack([np.asarray(found[field], dtype=np.int32) for field in fields], axis=1)
    return TokenSet(torch.from_numpy(stacked), labels, name)
