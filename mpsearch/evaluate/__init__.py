"""Loss, accuracy and agreement with the float model, and the evaluator that makes a measured loss cheap."""

from mpsearch.evaluate.fast import FastEvaluator
from mpsearch.evaluate.metrics import Metrics, compare, predict

__all__ = ["FastEvaluator", "Metrics", "compare", "predict"]
