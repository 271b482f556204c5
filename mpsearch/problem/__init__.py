"""The vocabulary: frozen dataclasses of plain numbers, and their JSON. Nothing here knows torch."""

from mpsearch.problem.assignment import Assignment, Candidate, Cost
from mpsearch.problem.budget import PEAKS, RESOURCES, Budget
from mpsearch.problem.interaction import Interaction
from mpsearch.problem.layer import ConvAttributes, Layer
from mpsearch.problem.problem import Problem, Solution

__all__ = ["PEAKS", "RESOURCES", "Assignment", "Budget", "Candidate", "ConvAttributes", "Cost", "Interaction", "Layer", "Problem", "Solution"]
