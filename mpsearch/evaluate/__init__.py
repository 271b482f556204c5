"""Loss, accuracy and agreement with the float model, and the evaluator that makes a measured loss cheap."""

from mpsearch.evaluate.choosing import AUTO, made, task_for
from mpsearch.evaluate.fast import FastEvaluator
from mpsearch.evaluate.metrics import Metrics, clearly_lower, compare, kl_by_image, predict
from mpsearch.evaluate.tasks import TASKS, Classification, Embedding, Outputs, Span, Task

__all__ = [
    "AUTO",
    "TASKS",
    "Classification",
    "Embedding",
    "FastEvaluator",
    "Metrics",
    "Outputs",
    "Span",
    "Task",
    "clearly_lower",
    "compare",
    "kl_by_image",
    "made",
    "predict",
    "task_for",
]
