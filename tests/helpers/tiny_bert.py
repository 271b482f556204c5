"""A BERT of a few thousand random weights and its tokenizer, as `save_pretrained` writes them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch


def write_tiny_bert(folder: Path, words: Iterable[str], classes: int, length: int = 16) -> Path:
    """The folder, filled.

    Args:
        folder: Where they go.
        words: What the tokenizer knows.
        classes: Of the head.
        length: Tokens of a text at most.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ["input_ids", "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=names,
        model_max_length=length,
    )
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=length,
        num_labels=classes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(folder)
    return folder
