"""The seeded order in which images are taken from a source."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def seeded_order(count: int, labels: npt.NDArray[np.int64] | None, seed: int) -> list[int]:
    """A random order of `count` images; with labels, every run of consecutive places holds the classes in
    proportion.

    The j-th of a class's n shuffled images gets the key (j + u) / n with u uniform in 0 to 1, and the keys
    are sorted: each class is spread evenly, so a prefix of any length, or the window after it, is a
    stratified sample (to about one image a class). Sources are often sorted by class: their first images
    would hold one class only.
    """
    generator = np.random.default_rng(seed)
    if labels is None:
        return [int(i) for i in generator.permutation(count)]
    keys = np.empty(count)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        keys[members] = (np.arange(len(members)) + generator.random(len(members))) / len(members)
    return [int(i) for i in np.argsort(keys, kind="stable")]
