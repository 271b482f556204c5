"""A study's model after fine-tuning: its biases, norms and embeddings have learned, and its states with
them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from mpsearch.deploy.packed_reading import open_packed
from mpsearch.deploy.targets import MODEL_FILE
from mpsearch.models import weights_hash
from mpsearch.models.tree import copied
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.float_graphs import FloatGraphs
from mpsearch.pipeline.steps.states import States
from mpsearch.pipeline.steps.subject import Subject

FOLDER = "finetuned"
"""Folder of a study that holds an artifact for each fine-tuning, by its label, and a JSON file beside it."""
POINT = "finetuned:"
"""What the label of one is written behind, where points of a study are named."""


def tuned_subject(subject: Subject, module: nn.Module, progress: Progress) -> Subject:
    """The same model with other parameters.

    Args:
        subject: Model and images.
        module: Of the same form as `subject.module`, in the CPU's memory.
        progress: Where progress goes.
    """
    graphs = FloatGraphs(module, subject.splits.calibration.inputs([0]), progress)
    hashes = {**subject.hashes, "weights": weights_hash(module)}
    return replace(subject, module=module, graphs=graphs, hashes=hashes)


def read_tuned(subject: Subject, folder: Path, progress: Progress) -> tuple[Subject, States]:
    """What a fine-tuning has written: the model, and the states of its units.

    Args:
        subject: The study's model and images.
        folder: Of the artifact.
        progress: Where progress goes.
    Raises: CheckpointError: It is not there, or damaged.
    """
    module, states = open_packed(folder / MODEL_FILE, copied(subject.module), folded=True)
    return tuned_subject(subject, module, progress), states
