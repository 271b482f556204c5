"""Small texts from templates, for models of sentences: plain ones, labelled ones, and questions whose answer
stands in a passage.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mpsearch.data import TokenSet, tokenize

WHO = [
    "Anna",
    "Peter",
    "the teacher",
    "the engineer",
    "Maria",
    "the young doctor",
    "David",
    "my neighbour",
    "the captain",
    "Laura",
]
DID = {
    "bought": "buy",
    "sold": "sell",
    "painted": "paint",
    "repaired": "repair",
    "found": "find",
    "lost": "lose",
    "described": "describe",
}
WHAT = [
    "a red bicycle",
    "the old house",
    "a small boat",
    "two books",
    "the broken clock",
    "a silver ring",
    "the long letter",
    "a black horse",
]
WHERE = [
    "in Paris",
    "in the garden",
    "near the river",
    "at the station",
    "in Cairo",
    "behind the school",
    "on the island",
    "in Oslo",
]
WHEN = [
    "on Monday",
    "last year",
    "in the morning",
    "after the war",
    "in 1987",
    "before dinner",
    "on Friday night",
    "in spring",
]
TOPICS = {
    "food": ["soup", "bread", "fish dinner", "dessert", "coffee"],
    "travel": ["flight", "train ride", "hotel room", "guided tour", "ferry"],
    "machines": ["laptop", "phone", "printer", "engine", "camera"],
    "shows": ["film", "concert", "play", "novel", "song"],
}
GOOD, BAD = (
    ["wonderful", "great", "delightful", "excellent", "brilliant"],
    ["awful", "terrible", "dreadful", "poor", "disappointing"],
)
SPEAKERS = ["my brother", "everybody", "our guide", "the critic", "a friend"]


def sentences(count: int, seed: int) -> list[str]:
    """Different plain sentences."""
    draw, found = random.Random(seed), {}
    while len(found) < count:
        found[
            (
                f"{draw.choice(WHO)} {draw.choice(list(DID))} {draw.choice(WHAT)} {draw.choice(WHERE)} "
                f"{draw.choice(WHEN)}."
            )
        ] = None
    return list(found)


def opinions(count: int, seed: int) -> tuple[list[str], list[int]]:
    """Different texts, and 8 classes: four topics, each liked or not. Half of the adjectives are negated, so
    no word alone tells.
    """
    draw, found = random.Random(seed), {}
    while len(found) < count:
        topic, liked, negated = draw.randrange(4), draw.randrange(2), draw.randrange(2)
        thing, word = (
            draw.choice(list(TOPICS.values())[topic]),
            draw.choice(GOOD if liked != negated else BAD),
        )
        said = f"was not {word}" if negated else f"was {word}"
        text = draw.choice(
            [
                "The {0} {1}, {2} said.",
                "{2} told us that the {0} {1}.",
                "Last week the {0} {1}, as {2} knows.",
            ]
        )
        found[text.format(thing, said, draw.choice(SPEAKERS))] = 2 * topic + liked
    return list(found), list(found.values())


def questions(count: int, seed: int, facts: int = 1) -> list[tuple[str, str, str]]:
    """Different (question, passage, answer): one or two facts in a passage, and one part of one of them is
    asked for.
    """
    draw, found = random.Random(seed), {}
    while len(found) < count:
        told = list(zip(*(draw.sample(list(x), facts) for x in (WHO, DID, WHAT, WHERE, WHEN)), strict=True))
        passage = " ".join(f"{' '.join(fact)}." for fact in told)
        who, did, what, where, when = draw.choice(told)
        asked = {
            who: f"who {did} {what}?",
            what: f"what did {who} {DID[did]}?",
            where: f"where did {who} {DID[did]} {what}?",
        }
        asked[when] = f"when did {who} {DID[did]} {what}?"
        answer = draw.choice(list(asked))
        found[asked[answer], passage] = answer
    return [(question, passage, answer) for (question, passage), answer in found.items()]


def opinion_tokens(tokenizer: Callable[..., Any], count: int, seed: int, length: int = 24) -> TokenSet:
    """`opinions` as tokens with N classes."""
    texts, labels = opinions(count, seed)
    return tokenize(tokenizer, texts, length=length, labels=torch.tensor(labels), name="opinions")


def question_tokens(tokenizer: Callable[..., Any], count: int, seed: int, length: int = 32) -> TokenSet:
    """`questions` as tokens with N x 2 spans; those cut off by the length are left out."""
    drawn = questions(count, seed)
    encoded = tokenizer(
        [q for q, _, _ in drawn],
        [p for _, p, _ in drawn],
        padding="max_length",
        truncation="only_second",
        max_length=length,
    )
    spans = [_span(encoded, i, passage, answer) for i, (_, passage, answer) in enumerate(drawn)]
    kept = [i for i, span in enumerate(spans) if None not in span]
    labels = torch.tensor([spans[i] for i in kept])
    return tokenize(
        tokenizer,
        [drawn[i][0] for i in kept],
        [drawn[i][1] for i in kept],
        length=length,
        labels=labels,
        name="questions",
    )


def _span(encoded: Any, index: int, passage: str, answer: str) -> Sequence[int | None]:
    at = passage.index(answer)
    return [encoded.char_to_token(index, place, sequence_index=1) for place in (at, at + len(answer) - 1)]
