"""Solvers and the search on the measured loss: plain numbers and callbacks, no torch.

`solve` and `exact_front` are exact on an additive problem, and on one whose interactions stay within blocks; `GreedyMP` and `explore`, an Optuna
study, go by what is really measured.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

from mpsearch.search.alternatives import apart, solve_best
from mpsearch.search.baselines import SAMPLERS, explore_by
from mpsearch.search.front import Front, exact_front
from mpsearch.search.greedy import GreedyMP, GreedyRun, Step
from mpsearch.search.losses import LossFile
from mpsearch.search.optimum import solve
from mpsearch.search.pareto import hypervolume, non_dominated
from mpsearch.search.polish import polish
from mpsearch.search.prices import Price, marginal_prices
from mpsearch.search.problem_front import problem_front
from mpsearch.search.ranges import least_within
from mpsearch.search.reach import describe_least, reachable
from mpsearch.search.sampler import CorrectedTableSampler
from mpsearch.search.study import Trial, explore
from mpsearch.search.surface import front_of_three

__all__ = [
    "SAMPLERS",
    "CorrectedTableSampler",
    "Front",
    "GreedyMP",
    "GreedyRun",
    "LossFile",
    "Price",
    "Step",
    "Trial",
    "apart",
    "describe_least",
    "exact_front",
    "explore",
    "explore_by",
    "front_of_three",
    "hypervolume",
    "least_within",
    "marginal_prices",
    "non_dominated",
    "polish",
    "problem_front",
    "reachable",
    "solve",
    "solve_best",
]


class _Package(ModuleType):
    """The package is also what `mpsearch.search(model, ...)` calls: the function of that name and the package share an attribute."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`mpsearch.pipeline.search`, found when it is called: nothing here depends on it, and torch is not imported before."""
        return importlib.import_module("mpsearch.pipeline").search(*args, **kwargs)


sys.modules[__name__].__class__ = _Package
