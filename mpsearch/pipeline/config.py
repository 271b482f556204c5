"""`RunConfig`: everything that decides the result of a run, as plain data in `study.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, cast

from mpsearch.deploy.targets import TARGETS, Target
from mpsearch.efforts import Effort, effort_of, parse_duration
from mpsearch.errors import OptionError, StudyError, UnknownNameError
from mpsearch.evaluate import AUTO, in_file, made
from mpsearch.objectives import OBJECTIVES
from mpsearch.objectives.coding_length import CodingLength
from mpsearch.objectives.interacting import INTERACTING
from mpsearch.pipeline.operands import check_operands, functions_of
from mpsearch.pipeline.search_states import SearchStates
from mpsearch.pipeline.settings import DEFAULT_TARGET, Settings
from mpsearch.problem import Budget
from mpsearch.reconstruct import METHODS
from mpsearch.study import SAMPLERS, WALKS, GreedyMP
from mpsearch.usercode import require_code

USUAL_EVALUATION = 256
"""Evaluation images, at least, where nothing is said and there are as many."""


@dataclass(frozen=True)
class RunConfig(Settings):
    """What a user asked for, and what it stands for. The fields are those of `Settings`.

    Raises:
        UnknownNameError: No target, objective, method, sampler or task has the name.
        OptionError: A setting cannot be used, alone or beside the others.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.assigner
        self._check_task()
        self._check_target()
        if self.sampler not in SAMPLERS and self.greedy is None:
            raise UnknownNameError("sampler", self.sampler, [*SAMPLERS, *WALKS.names()])
        self._check_objectives()

    def _check_target(self) -> None:
        """Raises OptionError where no run can search for the target, or it has no such numbers."""
        check_operands(self.quantize, self.input_observer, self.softmax, self.target, self.deployment)
        if not self.deployment.in_run:
            raise OptionError(
                f"--target {self.target} is written but not measured by mpsearch, so a run cannot search "
                f"for it. Run with --target {DEFAULT_TARGET}, "
                f"then write it with `mpsearch export STUDY --target {self.target}`."
            )
        held = set(self.deployment.widths)
        if held and not (held & set(self.bits) and held & set(self.a_bits)):
            raise OptionError(
                f"--target {self.target} multiplies {', '.join(map(str, sorted(held)))} bits alone, beside "
                f"float, and neither is left by --bits {list(self.bits)} with --a-bits {list(self.a_bits)}. "
                "Give 8 to both."
            )

    def _check_objectives(self) -> None:
        """Raises UnknownNameError or OptionError before anything is measured."""
        known = {name: registry for registry in (OBJECTIVES, INTERACTING) for name in registry.names()}
        for text in self.objectives:
            name = text.partition(":")[0].strip()
            if name not in known:
                raise UnknownNameError("objective", name, known)
            known[name].create(text)

    def _check_task(self) -> None:
        """Raises OptionError where the method draws labels from the model, and the model has no classes;
        what is known by the outputs alone is asked when they are there.
        """
        method = METHODS.create(self.method)
        if in_file(self.task):
            require_code(self.task, OptionError)
            return
        task = made(self.task)
        if self.task != AUTO and method.loss == "fisher" and not task.classes:
            raise OptionError(
                f"The method {self.method!r} draws classes from the model, and the task {self.task!r} "
                "has none. Add loss=mse, or use qdrop."
            )

    @property
    def effort_settings(self) -> Effort:
        """What the effort stands for."""
        return effort_of(self.effort)

    @property
    def usual_images(self) -> tuple[int, int, int]:
        """Calibration and search images, and evaluation images at least, where nothing is said."""
        return self.effort_settings.calibration, self.effort_settings.search, USUAL_EVALUATION

    @property
    def trial_count(self) -> int:
        """Trials: as given, else of the effort."""
        return self.effort_settings.trials if self.trials is None else self.trials

    @property
    def polish_count(self) -> int:
        """Exchanges around the best trials, as `trial_count`; none behind no trials."""
        usual = self.effort_settings.polish if self.trial_count else 0
        return usual if self.polish is None else self.polish

    @property
    def asked(self) -> tuple[str, ...]:
        """What is to be kept, as typed: budgets, and a drop."""
        return (*self.budgets, *([] if self.max_drop is None else [f"{self.max_drop} drop"]))

    @property
    def limit_s(self) -> float | None:
        """The time limit in seconds."""
        return None if self.time_limit is None else parse_duration(self.time_limit)

    @property
    def assigner(self) -> CodingLength | None:
        """What gives bits without a budget; None for a search. Raises UnknownNameError or OptionError."""
        if self.assign is None:
            return None
        if self.assign.partition(":")[0] != CodingLength.name:
            raise UnknownNameError("way to --assign bits", self.assign, [CodingLength.name])
        return cast(CodingLength, OBJECTIVES.create(self.assign))

    @property
    def greedy(self) -> GreedyMP | None:
        """The walk that is asked for; None where the sampler is another. Raises OptionError."""
        return WALKS.create(self.sampler) if self.sampler.partition(":")[0] in WALKS.names() else None

    @property
    def deployment(self) -> Target:
        """The target."""
        return TARGETS.create(self.target)

    @property
    def functions(self) -> tuple[str, ...]:
        """The functions of activations that are quantised, as `quant.operands` names them."""
        return functions_of(self.quantize, self.deployment)

    @property
    def steps(self) -> int:
        """Reconstruction steps for each block."""
        return self.iterations if self.iterations is not None else 200

    @property
    def states(self) -> SearchStates:
        """What the search sees."""
        return SearchStates.parse(self.search_states)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunConfig:
        """Inverse of `to_json`. Raises StudyError where a field is unknown or missing."""
        data = {
            "task": "classification",
            "class_map": None,
            "device": "cpu",
            "batch_axis": 0,
            "batch": 1,
            **dict.fromkeys(("input_size", "mean", "std", "interpolation")),
            **dict.fromkeys(("time_limit", "kept_images", "assign", "metric", "max_drop")),
            "effort": "balanced",
            **{"quantize": "linear", "smooth": "none", "input_observer": "mse", "softmax": "uniform"},
            "floats": False,
            **data,
        }  # what studies had before these had names
        known = {f.name for f in fields(cls)}
        if set(data) != known:
            raise StudyError(
                "The study was written by another version of mpsearch; its settings differ in "
                f"{sorted(set(data) ^ known)}. Start a new study."
            )
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**settings)


def limits(config: RunConfig, *resources: str) -> bool:
    """Whether a budget limits one of these resources."""
    return any(Budget.parse(text).resource in resources for text in config.budgets)
