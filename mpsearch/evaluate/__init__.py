"""Loss, accuracy and agreement with the float model, and the evaluator that makes a measured loss cheap."""

from mpsearch.evaluate.choosing import AUTO, in_file, made, task_for
from mpsearch.evaluate.fast import FastEvaluator
from mpsearch.evaluate.metrics import Metrics, clearly_lower, compare, kl_by_image, predict
from mpsearch.evaluate.tasks import TASKS, Classification, Embedding, Outputs, Span, Task
from mpsearch.evaluate.user_metric import MetricSamples, UserMetric, metric_of

__all__ = [
    "AUTO",
    "TASKS",
    "Classification",
    "Embedding",
    "FastEvaluator",
    "MetricSamples",
    "Metrics",
    "Outputs",
    "Span",
    "Task",
    "UserMetric",
    "clearly_lower",
    "compare",
    "in_file",
    "kl_by_image",
    "made",
    "metric_of",
    "predict",
    "task_for",
]
