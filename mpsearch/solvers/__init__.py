"""Solvers: tables of plain numbers in, exact answers out; numpy and scipy alone.

`solve` gives the least predicted damage under budgets and says whether that is proven; `problem_front` gives
the whole front over one resource.
"""

from mpsearch.solvers.ask.k_best import apart, solve_best
from mpsearch.solvers.ask.pareto import hypervolume, non_dominated
from mpsearch.solvers.ask.prices import Price, marginal_prices
from mpsearch.solvers.ask.ranges import least_within
from mpsearch.solvers.ask.swept_front import swept_front
from mpsearch.solvers.ask.two_resource_front import front_of_three
from mpsearch.solvers.exact.front import Front
from mpsearch.solvers.optimum import problem_front, solve
from mpsearch.solvers.reach import describe_least, reachable

__all__ = [
    "Front",
    "Price",
    "apart",
    "describe_least",
    "front_of_three",
    "hypervolume",
    "least_within",
    "marginal_prices",
    "non_dominated",
    "problem_front",
    "reachable",
    "solve",
    "solve_best",
    "swept_front",
]
