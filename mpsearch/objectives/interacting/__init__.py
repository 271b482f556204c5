"""Objectives that score choices of several layers together; a registry of their own, since a table of single
choices is not all they give.

Write one by copying `pairwise.py`: a frozen dataclass whose fields are its options, decorated with
`@INTERACTING.register(name)`.
"""

from mpsearch.objectives.interacting._base import INTERACTING, Couplings, Interacting, couple

__all__ = ["INTERACTING", "Couplings", "Interacting", "couple"]
