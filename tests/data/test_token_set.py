"""Texts as the pipeline sees them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mpsearch.data import TokenSet, make_splits, tokenize
from mpsearch.errors import DataError
from mpsearch.testing.text import tiny_tokens


def test_inputs_batches_and_subsets():
    texts = replace(tiny_tokens(10, fields=3), labels=torch.arange(10))
    assert texts.inputs().shape == (10, 3, 12) and texts.inputs().dtype == torch.int64
    assert torch.equal(torch.cat([x for x, _ in texts.batches(4)]), texts.inputs())
    assert [len(y) for _, y in texts.batches(4)] == [4, 4, 2]
    part = texts.subset([7, 2])
    assert torch.equal(part.inputs(), texts.inputs()[[7, 2]]) and part.labels.tolist() == [7, 2]
    window = texts.subset(slice(3, 5))
    assert window.tokens.data_ptr() == texts.tokens[3:].data_ptr() and window.labels.tolist() == [3, 4]
    assert torch.equal(part.joined([window]).inputs(), texts.inputs()[[7, 2, 3, 4]])


def test_hashes_tell_texts_and_sets_apart():
    texts = tiny_tokens(10)
    twice = texts.subset([1, 1, 2])
    a, b, c = twice.sample_hashes
    assert a == b != c
    assert texts.content_hash == replace(texts, name="other").content_hash
    assert texts.content_hash != replace(texts, labels=torch.zeros(10, dtype=torch.int64)).content_hash
    assert texts.content_hash != texts.subset(range(9, -1, -1)).content_hash


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": torch.zeros(3, 2, 4, dtype=torch.int64)}, "int32"),
        ({"tokens": torch.zeros(3, 4, dtype=torch.int32)}, r"N x F x T"),
        ({"tokens": torch.zeros(3, 2, 4, dtype=torch.int32)}, "no token that counts"),
        ({"tokens": torch.full((3, 2, 4), 7, dtype=torch.int32)}, "something else than 0 and 1"),
        ({"labels": torch.zeros(3, 3, dtype=torch.int64)}, "labels are"),
        ({"labels": torch.zeros(3)}, "labels are"),
    ],
)
def test_what_is_no_token_set_is_refused(change, said):
    with pytest.raises(DataError, match=said):
        replace(tiny_tokens(3), **change)


def test_labels_are_asked_for_by_name():
    texts = tiny_tokens(3)
    with pytest.raises(DataError, match="has no labels"):
        texts.require_labels()
    labelled = replace(texts, labels=torch.tensor([0, 2, 1]))
    assert labelled.require_labels(3).tolist() == [0, 2, 1]
    with pytest.raises(DataError, match="labels 0 to 2"):
        labelled.require_labels(2)


def test_splits_share_no_text_and_leave_copies_out():
    texts = tiny_tokens(60)
    doubled = texts.joined([texts.subset(range(20))])
    made = make_splits(doubled, calibration_images=10, search_images=10)
    parts = [set(part.sample_hashes) for part in made.parts.values()]
    assert set.union(*parts) == set(texts.sample_hashes) and sum(map(len, parts)) == 60
    assert made.duplicates_removed == 20
    assert isinstance(made.evaluation, TokenSet)


def test_splits_of_spans_are_not_stratified():
    spans = torch.stack([torch.arange(40), torch.arange(40) + 1], 1)
    made = make_splits(replace(tiny_tokens(40), labels=spans), calibration_images=8, search_images=8)
    whole = dict(zip(tiny_tokens(40).sample_hashes, spans.tolist(), strict=True))
    for part in made.parts.values():
        assert [whole[h] for h in part.sample_hashes] == part.labels.tolist()


def test_sets_of_two_lengths_do_not_go_together():
    short = TokenSet(tiny_tokens(20).tokens[:, :, :6])
    with pytest.raises(DataError, match="prepared differently"):
        make_splits(tiny_tokens(20), calibration=short, calibration_images=4, search_images=4)


class Letters:
    """A tokenizer: one token for each letter, 1 in front."""

    def __call__(self, texts, pairs=None, *, padding, truncation, max_length):
        assert padding == "max_length" and truncation == (True if pairs is None else "only_second")
        found = {"input_ids": [], "token_type_ids": [], "attention_mask": []}
        for i, text in enumerate(texts):
            first = [1, *(ord(c) for c in text)]
            second = [] if pairs is None else [ord(c) for c in pairs[i]]
            ids = (first + second)[:max_length]
            rest = max_length - len(ids)
            found["input_ids"].append(ids + [0] * rest)
            found["token_type_ids"].append(([0] * len(first) + [1] * len(second))[:max_length] + [0] * rest)
            found["attention_mask"].append([1] * len(ids) + [0] * rest)
        return found


def test_texts_and_pairs_are_tokenized():
    alone = tokenize(Letters(), ["ab", "c"], length=4)
    assert alone.tokens.tolist() == [[[1, 97, 98, 0], [1, 1, 1, 0]], [[1, 99, 0, 0], [1, 1, 0, 0]]]
    both = tokenize(Letters(), ["a"], ["bcd"], length=4, labels=torch.tensor([[2, 3]]))
    assert both.tokens.tolist() == [[[1, 97, 98, 99], [1, 1, 1, 1], [0, 0, 1, 1]]]
    assert np.array_equal(both.labels, [[2, 3]])
    with pytest.raises(DataError, match="no texts"):
        tokenize(Letters(), [], length=4)
    with pytest.raises(DataError, match="attention_mask, token_type_ids are needed"):
        tokenize(lambda *a, **k: {"input_ids": [[1]]}, ["a"], ["b"], length=4)
