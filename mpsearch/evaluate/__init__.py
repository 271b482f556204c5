"""Loss, accuracy and agreement with the float model, and the evaluator that makes a measured loss cheap."""

from mpsearch.evaluate.fast import FastEvaluator, Raced
from mpsearch.evaluate.metrics import Metrics, clearly_lower, compare, kl_by_image, predict
from mpsearch.evaluate.tasks import TASKS, Classification, Embedding, Span, Task

__all__ = [
    "TASKS",
    "Classification",
    "Embedding",
    "FastEvaluator",
    "Metrics",
    "Raced",
    "Span",
    "Task",
    "clearly_lower",
    "compare",
    "kl_by_image",
    "predict",
]
