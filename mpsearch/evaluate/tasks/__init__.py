"""What a model is for: how its output is compared with the float model's, and with what is true."""

from mpsearch.evaluate.tasks._base import TASKS, Task
from mpsearch.evaluate.tasks.classification import Classification
from mpsearch.evaluate.tasks.detection import Detection
from mpsearch.evaluate.tasks.embedding import Embedding
from mpsearch.evaluate.tasks.outputs import Outputs
from mpsearch.evaluate.tasks.regression import Regression
from mpsearch.evaluate.tasks.segmentation import Segmentation
from mpsearch.evaluate.tasks.span import Span

__all__ = [
    "TASKS",
    "Classification",
    "Detection",
    "Embedding",
    "Outputs",
    "Regression",
    "Segmentation",
    "Span",
    "Task",
]
