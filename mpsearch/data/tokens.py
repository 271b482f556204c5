"""`TokenSet`: texts as a text encoder reads them, cut or padded to one length, with their masks and what is true of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpsearch.data.samples import Indices
from mpsearch.errors import DataError

FIELDS = ("input_ids", "attention_mask", "token_type_ids")
"""What the rows of a sample hold, by the names that Hugging Face's tokenizers and models use."""


@dataclass(frozen=True, eq=False)
class TokenSet:
    """N texts as token numbers.

    A model that reads them takes one tensor, `N x F x T` int64, and unstacks it (`mpsearch.models.TextModel` does).

    Args:
        tokens: `N x F x T` int32: for each text the first F of `FIELDS`, 2 or 3, of T tokens each. The mask is 1 where a token counts.
        labels: `N` classes or `N x 2` spans (first and last token), int64; None where nothing is known.
        name: Where the texts came from.
    """

    tokens: Tensor
    labels: Tensor | None = None
    name: str = "texts"

    def __post_init__(self) -> None:
        shape = tuple(self.tokens.shape)
        if self.tokens.dtype != torch.int32 or self.tokens.ndim != 3 or shape[1] not in (2, 3):
            raise DataError(f"{self.name}: tokens are {self.tokens.dtype} of shape {shape}; they must be int32 N x F x T with F 2 or 3: {', '.join(FIELDS)}.")
        if self.labels is not None and (self.labels.dtype != torch.int64 or tuple(self.labels.shape) not in {(shape[0],), (shape[0], 2)}):
            found = f"{self.labels.dtype} of shape {tuple(self.labels.shape)}"
            raise DataError(f"{self.name}: labels are {found}; they must be int64 of shape ({shape[0]},) or ({shape[0]}, 2).")
        mask = self.tokens[:, 1]
        if len(mask) and not (((mask == 0) | (mask == 1)).all() and (mask.sum(1) > 0).all()):
            raise DataError(f"{self.name}: a mask holds something else than 0 and 1, or a text has no token that counts. Leave empty texts out.")

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """Memory held by tokens and labels."""
        return self.tokens.nbytes + (0 if self.labels is None else self.labels.nbytes)

    @property
    def form(self) -> tuple[int, ...]:
        """F and T."""
        return tuple(self.tokens.shape[1:])

    def inputs(self, indices: Indices | None = None) -> Tensor:
        """`N x F x T` int64."""
        return (self.tokens if indices is None else self.tokens[_index(indices)]).to(torch.int64)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """`(inputs, labels)` of `size` texts at a time, the last batch shorter."""
        if size < 1:
            raise DataError(f"Batch size {size} is not positive.")
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield self.inputs(part), None if self.labels is None else self.labels[part]

    def subset(self, indices: Indices) -> TokenSet:
        """The texts at `indices`, in that order."""
        at = _index(indices)
        return replace(self, tokens=self.tokens[at], labels=None if self.labels is None else self.labels[at])

    def joined(self, others: Sequence[TokenSet]) -> TokenSet:
        """These texts, then those of the other sets; the set itself where there is no other."""
        if not others:
            return self
        labels = [s.labels for s in (self, *others) if s.labels is not None]
        return replace(self, tokens=torch.cat([s.tokens for s in (self, *others)]), labels=torch.cat(labels) if labels else None)

    def require_labels(self, classes: int | None = None) -> Tensor:
        """The labels. Raises DataError where there are none, or a class is not below `classes`."""
        if self.labels is None:
            raise DataError(f"{self.name} has no labels. Give them to TokenSet or tokenize.")
        if classes is not None and len(self) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < classes:
            low, high = int(self.labels.min()), int(self.labels.max())
            odd = int(((self.labels < 0) | (self.labels >= classes)).flatten().nonzero()[0])
            raise DataError(
                f"{self.name} has labels {low} to {high}; the model has {classes} classes, 0 to {classes - 1}. The first that is none "
                f"of them is {int(self.labels[odd])}, of text {odd}. Give the texts it was trained for."
            )
        return self.labels

    @cached_property
    def sample_hashes(self) -> tuple[str, ...]:
        """SHA-256 of the tokens of each text; equal only for exact duplicates."""
        return tuple(hashlib.sha256(text.contiguous().numpy().data).hexdigest() for text in self.tokens)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over shape, tokens and labels; the name does not count."""
        head = json.dumps([list(self.tokens.shape), None if self.labels is None else self.labels.tolist()])
        digest = hashlib.sha256(head.encode())
        digest.update(self.tokens.contiguous().numpy().data)
        return digest.hexdigest()


def _index(indices: Indices) -> Any:
    return indices if isinstance(indices, slice) else torch.as_tensor(indices, dtype=torch.long)


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
        tokenizer: Tokenizer, as `transformers.AutoTokenizer` gives it. Of a pair the second text is cut first.
        texts: N.
        pairs: The second text of each, such as the passage behind a question; its tokens have type 1.
        length: T, special tokens included.
        labels: Labels, as in `TokenSet`.
        name: Where the texts came from.
    Raises: DataError: No texts, or the tokenizer gives no mask.
    """
    if not texts:
        raise DataError(f"{name}: there are no texts. Give at least one.")
    options: dict[str, Any] = {"padding": "max_length", "truncation": True if pairs is None else "only_second", "max_length": length}
    found = tokenizer(list(texts), **options) if pairs is None else tokenizer(list(texts), list(pairs), **options)
    fields = FIELDS[:2] if pairs is None else FIELDS
    if not set(fields) <= set(found.keys()):
        raise DataError(f"{name}: the tokenizer gives {', '.join(found.keys())}; {', '.join(fields)} are needed. Use a tokenizer of a BERT-like encoder.")
    stacked = np.stack([np.asarray(found[field], dtype=np.int32) for field in fields], axis=1)
    return TokenSet(torch.from_numpy(stacked), labels, name)
