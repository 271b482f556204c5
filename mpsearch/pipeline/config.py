"""`RunConfig`: everything that decides the result of a run, as plain data in `study.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mpsearch.errors import BudgetError, OptionError, StudyError

TARGETS = ("ort-cpu", "packed")
DEFAULT_OBJECTIVES = ("output_mse", "weight_mse", "coding_length")


@dataclass(frozen=True)
class RunConfig:
    """What a user asked for.

    Args:
        budgets: As typed, such as `15MB`.
        model: timm name or `file.py:function`; None for the embedded default.
        model_args: Arguments of the model.
        weights: Safetensors file; None for the constructor's (or pretrained) weights.
        pretrained: Download timm's weights where `weights` is None; False leaves the constructor's random ones.
        data: Source of the evaluation images, or of all; None for the embedded digits.
        calibration_data: Source of the calibration and search images.
        calibration_images: For ranges and reconstruction.
        search_images: For the loss that the search measures.
        evaluation_images: For what is reported; None for all that are left.
        bits: Weight bits that a unit may have.
        a_bits: Input bits.
        objectives: Registered objectives; the first is the proxy that is solved exactly.
        trials: Assignments whose loss is measured.
        iterations: Reconstruction steps for each block; 0 for nearest rounding; None for 200, or 80 on the embedded default.
        target: `ort-cpu` (packed checkpoint and ONNX) or `packed` (checkpoint alone, no latency).
        tables: Folder of latency tables.
        table: A table of another place to read instead; None for this device's own.
        allow_estimate: Take a table of another device as an estimate.
        threads: Of the runtime whose latency is measured.
        seed: Of everything random.
    """

    budgets: tuple[str, ...]
    model: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    pretrained: bool = True
    data: str | None = None
    calibration_data: str | None = None
    calibration_images: int = 512
    search_images: int = 256
    evaluation_images: int | None = None
    bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    a_bits: int = 8
    objectives: tuple[str, ...] = DEFAULT_OBJECTIVES
    trials: int = 48
    iterations: int | None = None
    target: str = "ort-cpu"
    tables: str = "latency_tables"
    table: str | None = None
    allow_estimate: bool = False
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.budgets:
            raise BudgetError("There is no budget. Give at least one, such as --budget 15MB.")
        if not self.bits or not set(self.bits) <= set(range(2, 9)) or not 2 <= self.a_bits <= 8:
            raise OptionError(f"Bits are {list(self.bits)} for weights and {self.a_bits} for inputs; each must be 2 to 8.")
        if self.target not in TARGETS:
            raise OptionError(f"The target {self.target!r} is not known; it may be {' or '.join(TARGETS)}.")
        if not self.objectives:
            raise OptionError("There is no objective. Give at least one, such as --objective output_mse.")
        for name, least in (("trials", 1), ("iterations", 0), ("threads", 1), ("seed", 0), ("calibration_images", 1), ("search_images", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be {least} or more.")
        if (self.model is None) != (self.data is None):
            given, lacking = ("--model", "--data") if self.data is None else ("--data", "--model")
            raise OptionError(f"{given} is given without {lacking}. Give both, or neither for the embedded model and digits.")

    @property
    def steps(self) -> int:
        """Reconstruction steps for each block."""
        return self.iterations if self.iterations is not None else 80 if self.model is None else 200

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunConfig:
        """Inverse of `to_json`. Raises StudyError where a field is unknown or missing."""
        known = {f.name for f in fields(cls)}
        if set(data) != known:
            raise StudyError(f"The study was written by another version of mpsearch; its settings differ in {sorted(set(data) ^ known)}. Start a new study.")
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**settings)
