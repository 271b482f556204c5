"""Solvers and the search on the measured loss: plain numbers and callbacks, no torch.

`solve` and `exact_front` are exact on an additive problem; `explore` drives an Optuna study on what is really measured.
"""

from mpsearch.search.constraints import reachable
from mpsearch.search.front import Front, exact_front, problem_front
from mpsearch.search.milp import solve
from mpsearch.search.pareto import hypervolume, non_dominated
from mpsearch.search.sampler import CorrectedTableSampler
from mpsearch.search.study import Trial, explore

__all__ = ["CorrectedTableSampler", "Front", "Trial", "exact_front", "explore", "hypervolume", "non_dominated", "problem_front", "reachable", "solve"]
