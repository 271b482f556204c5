"""Step 1: the model, folded and analysed, its images, and the quantisers of every unit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpsearch.data import Splits, make_splits, require_source
from mpsearch.deploy.packed import PackedLayout
from mpsearch.errors import ModelError
from mpsearch.models import (
    LoadedModel,
    ModelGraph,
    ModelSource,
    analyze,
    find_foldable,
    fold_batch_norm,
    load_model,
    require_weights,
    trace_model,
    weights_hash,
)
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.embedded import default_model
from mpsearch.problem import Candidate
from mpsearch.reconstruct import Calibration, calibrate

BATCH = 32


@dataclass(frozen=True)
class Subject:
    """A model ready to be searched.

    Args:
        source: How the float model is built.
        module: Float, batch norms folded.
        graph: Its units, blocks and ties.
        layout: Of its packed checkpoint.
        splits: Images.
        hashes: Of weights and images.
    """

    source: ModelSource
    module: Any
    graph: ModelGraph
    layout: PackedLayout
    splits: Splits
    hashes: dict[str, str]

    @property
    def units(self) -> tuple[str, ...]:
        """Units that have a weight."""
        return tuple(self.layout.weights)

    @property
    def blocks(self) -> list[tuple[str, tuple[str, ...]]]:
        """Blocks that can be reconstructed and hold a unit with a weight, with those units."""
        held = set(self.units)
        blocks = [(b.name, tuple(u for u in b.units if u in held)) for b in self.graph.blocks if b.learns]
        return [(name, units) for name, units in blocks if units]

    @property
    def unlearned(self) -> list[str]:
        """Units that no block holds which can be reconstructed: their weights are rounded to nearest."""
        held = {unit for _, units in self.blocks for unit in units}
        return [unit for unit in self.units if unit not in held]

    def float_bytes(self) -> float:
        """Size of the packed file if nothing were quantised."""
        float_unit = Candidate.parse("float")
        return self.layout.constant_bytes + sum(self.layout.unit_bytes(unit, float_unit) for unit in self.units)


def load_subject(config: RunConfig, progress: Progress) -> Subject:
    """Load model and images, fold, and analyse; what names no file is told before anything is downloaded or fitted."""
    _require_files(config)
    if config.model is None:
        loaded = default_model(progress)
    else:
        weights = None if config.weights is None else Path(config.weights)
        loaded = load_model(config.model, weights=weights, pretrained=_downloads(config), kwargs=dict(config.model_args))
    with progress.task("read the images") as advance:
        splits = make_splits(
            config.data or "digits",
            loaded.data_config,
            calibration=config.calibration_data,
            calibration_images=config.calibration_images,
            search_images=config.search_images,
            evaluation_images=config.evaluation_images,
            seed=config.seed,
            on_image=advance,
        )
    return make_subject(loaded, splits)


def require_same_weights(config: RunConfig) -> None:
    """Raises ModelError where the model has other weights each time it is built: another process would measure another model."""
    if config.model is None or config.weights is not None or _downloads(config):
        return
    first, second = (weights_hash(load_model(config.model, kwargs=dict(config.model_args)).module) for _ in range(2))
    if first != second:
        raise ModelError(
            f"{config.model} has other random weights each time it is built, so workers would measure other models than the run. "
            "Set a seed in the factory, or save its weights once and name them with --weights; or run without --workers."
        )


def _downloads(config: RunConfig) -> bool:
    """Whether the weights are timm's own."""
    return config.pretrained and config.weights is None and not str(config.model).partition(":")[0].endswith(".py")


def _require_files(config: RunConfig) -> None:
    """Raises ModelError or DataError."""
    if config.weights is not None:
        require_weights(Path(config.weights))
    for source in (config.data, config.calibration_data):
        if source is not None:
            require_source(source)


def make_subject(loaded: LoadedModel, splits: Splits) -> Subject:
    """Fold and analyse a loaded model."""
    example = splits.calibration.inputs([0])
    pairs = find_foldable(trace_model(loaded.module, example), loaded.module)
    module = fold_batch_norm(loaded.module, pairs)
    graph = analyze(module, example)
    units = [layer.name for layer in graph.layers if layer.op != "matmul"]
    layout = PackedLayout.of(module, units, loaded.source, pairs, loaded.data_config)
    hashes = {"weights": weights_hash(module), **{name: part.content_hash for name, part in splits.parts.items()}}
    return Subject(loaded.source, module, graph, layout, splits, hashes)


def calibrate_subject(subject: Subject, config: RunConfig, progress: Progress) -> Calibration:
    """Ranges of every unit on the calibration images."""
    images = subject.splits.calibration
    with progress.task("calibrate ranges") as advance:
        return calibrate(
            subject.module,
            subject.units,
            (inputs for inputs, _ in images.batches(BATCH)),
            seed=config.seed,
            on_batch=lambda done: advance(done, len(images)),
        )
