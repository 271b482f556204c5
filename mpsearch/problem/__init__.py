"""The vocabulary: frozen dataclasses of plain numbers, and their JSON. Nothing here knows torch."""

from mpsearch.problem.assignment import FLOAT, FLOAT_INPUT, Assignment, Candidate, Choices, Cost
from mpsearch.problem.budget import PEAKS, RESOURCES, Budget
from mpsearch.problem.document import assignment_csv, assignment_document, read_assignment
from mpsearch.problem.drop import POINT, Drop, below, told, told_of
from mpsearch.problem.interaction import Interaction
from mpsearch.problem.layer import ConvAttributes, Layer
from mpsearch.problem.problem import FLOAT_BYTES, Problem, Solution, Table, mean_bits
from mpsearch.problem.restrictions import Restrictions
from mpsearch.problem.sizes import absolute, bytes_at, float_bytes

__all__ = [
    "FLOAT",
    "FLOAT_BYTES",
    "FLOAT_INPUT",
    "PEAKS",
    "POINT",
    "RESOURCES",
    "Assignment",
    "Budget",
    "Candidate",
    "Choices",
    "ConvAttributes",
    "Cost",
    "Drop",
    "Interaction",
    "Layer",
    "Problem",
    "Restrictions",
    "Solution",
    "Table",
    "absolute",
    "assignment_csv",
    "assignment_document",
    "below",
    "bytes_at",
    "float_bytes",
    "mean_bits",
    "read_assignment",
    "told",
    "told_of",
]
