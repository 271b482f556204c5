"""Examples in docstrings give what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

import mpsearch

ROOT = Path(mpsearch.__file__).parent.parent
WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "mpsearch").rglob("*.py"))
    if ">>> " in path.read_text()
]
"""Modules whose source has an example."""


def test_the_documented_names_have_examples():
    assert {"mpsearch.problem.budget", "mpsearch.problem.assignment", "mpsearch.solvers.optimum"} <= set(
        WITH_EXAMPLES
    )


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module(name):
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried and not failed
