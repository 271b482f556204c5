"""Objectives: how much damage a candidate does to a unit. One file each; the registry finds them.

Write one by copying `weight_mse.py`: a frozen dataclass whose fields are its options, decorated with
`@OBJECTIVES.register(name)`.
"""

from mpsearch.objectives._base import OBJECTIVES, Objective, Parts, Passes, ScoreReport, ScoringContext, score

__all__ = ["OBJECTIVES", "Objective", "Parts", "Passes", "ScoreReport", "ScoringContext", "score"]
