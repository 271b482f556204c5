"""`Settings`: what a user may ask for, and what is wrong with it by itself: no model, no image, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mpsearch.accelerator import AUTO as AUTO_DEVICE
from mpsearch.accelerator import require_device_name
from mpsearch.efforts import effort_of, parse_duration
from mpsearch.errors import BudgetError, OptionError, UnknownNameError
from mpsearch.pipeline.search_states import SearchStates
from mpsearch.problem import FLOAT_INPUT, Budget, Drop, Restrictions
from mpsearch.units import parse_quantity
from mpsearch.usercode import OBJECT, names_code

DEFAULT_TARGET = "ort-cpu"
DEFAULT_OBJECTIVES = ("sketch", "weight_mse")
QUANTIZE = ("linear", "matmul", "full")
SMOOTH = ("none", "smoothquant", "sqb")
SOFTMAX = ("uniform", "log2", "two_region", "auto")
_MOST_SEED = 2**31 - 1
_LEAST = {
    **dict.fromkeys(
        ("threads", "batch", "text_length", "calibration_images", "search_images", "evaluation_images"), 1
    ),
    **dict.fromkeys(("trials", "polish", "iterations", "seed", "batch_axis"), 0),
}


@dataclass(frozen=True)
class Settings:
    """What a user asked for.

    Args:
        budgets: As typed, such as `15MB`.
        model: timm name or `file.py:function`; None for the embedded default.
        model_args: Arguments of the model.
        weights: Safetensors file; None for the constructor's (or pretrained) weights.
        pretrained: Download timm's weights where `weights` is None; False leaves the constructor's random
            ones.
        data: Source of the evaluation images, or of all; None for the embedded digits.
        calibration_data: Source of the calibration and search images.
        tokenizer: Folder or id of the tokenizer of texts.
        text_length: Tokens of each text; None for those of the longest, 128 at most.
        class_map: File that says which class a folder of images stands for, JSON or CSV; None for the order
            of the names.
        calibration_images: Images for ranges and reconstruction; None for 512, or a share of few images.
        search_images: Images for the loss that the search measures; None for 256, or a share of few images.
        evaluation_images: Images for what is reported; None for all that are left.
        bits: Weight bits that a unit may have.
        floats: Whether a unit may stay float, under any budget; under one of latency or energy it always may.
        a_bits: Input bits that a unit may have, beside each of `bits`; 16 leaves its input float and
            quantises the weight alone. A single number may be given as such.
        quantize: `linear` (the inputs of layers), `matmul` (both products of attention too) or `full` (also
            what softmax, GELU and layer norms read, and residual sums).
        smooth: `smoothquant` or `sqb` moves outlier channels behind layer norms into the weights of the float
            model; `none`.
        input_observer: Registered observer of inputs, or `opt_m` or `auto`, which choose by the damage at
            each unit's output.
        softmax: Grid of the probabilities of attention: `uniform`, `log2`, `two_region` or `auto`.
        layer_bits: Rules for single units, such as `head=6..8`; they count above `bits` and `a_bits`.
        fix: Units that have one choice, such as `head=W8A8`; above all others.
        objectives: Registered objectives; the first is the proxy that is solved exactly.
        trials: Assignments whose loss is measured; None for those of the effort.
        assign: `coding_length`, with options, gives bits without a budget or a search; then there are no
            `budgets`, and `bits` are what it divides the units among.
        sampler: Who proposes them: `mpsearch`, or a baseline, `tpe`, `nsga2` or `random`. `greedy_mp`, with
            options, walks down from the widest bits beside the trials of `mpsearch`.
        polish: Exchanges around the best of them whose loss is measured afterwards.
        first_last_bits: Weight and input bits of the first and the last unit; None leaves them to the search.
        method: Registered reconstruction method, with options.
        iterations: Gradient steps for each block of a method that learns; 0 keeps what it starts from; None
            for 200.
        search_states: What the search sees of each unit: `gptq`, `nearest` or `reconstructed:steps=20` (see
            `SearchStates`).
        bias_correction: Whether the biases of quantised units make up for the mean error of their weights.
        reconstruction_memory: Bound on the memory that a reconstruction takes beside the model and the
            images, such as `8GiB`; it uses fewer images to keep it.
        target: Registered deployment target that a run can measure, with options: `ort-cpu` (ONNX, whose
            size a budget limits, and packed checkpoint), `openvino-cpu` or `openvino-cpu-bf16` (checkpoint
            and OpenVINO's IR), `triton-cuda` (checkpoint on the Triton kernels, latency and energy), or
            `packed` (checkpoint alone, no latency).
        tables: Folder of latency tables.
        table: A table of another place to read instead; None for this device's own.
        allow_estimate: Take a table of another device or version as an estimate, and keep a latency budget by
            predictions that are known to be poor.
        threads: Of the runtime whose latency is measured.
        batch: Images in a call whose latency and energy are measured and limited.
        seed: Of everything random.
        task: Registered task, with options, or `file.py:Class`: how outputs are compared with the float
            model's and with labels; `auto` goes by the outputs (see `mpsearch.evaluate.task_for`).
        metric: `file.py:function`, (model, samples) -> number, higher is better: reported of the float model
            and of what is finished; `python:NAME` of a function that was given as an object. None for none.
        max_drop: How far the metric, or the task's own score, of what is delivered may be below the float
            model's on the search images: `1%` of it, or `0.5` points. Without a budget what is smallest
            within it is searched for.
        device: What computes: `auto` (CUDA where there is one, else the CPU), `cpu`, `cuda`, `cuda:1` or
            `mps`. A study may go on with another: what depends on it is kept for each kind of device.
        batch_axis: Axis of the samples in what the model reads and gives.
        input_size: Channels, height and width of the images that the model reads, or one number for height
            and width; None for what the model says.
        mean: Of the normalisation, for each channel, of values in 0 to 1; None for what the model says.
        std: Standard deviations there.
        interpolation: With which images are resized, such as `bilinear`; None for what the model says.
        effort: How much is done where nothing else is said: `quick`, `balanced` or `thorough` (`efforts`).
        time_limit: Time that the run may take, such as `10min`: images, trials and finalists are as many as
            fit; None for no limit.
        kept_images: Calibration, search and evaluation images that are used of those drawn; set by the plan,
            None for all.
    """

    budgets: tuple[str, ...]
    model: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    pretrained: bool = True
    data: str | None = None
    calibration_data: str | None = None
    class_map: str | None = None
    tokenizer: str | None = None
    text_length: int | None = None
    calibration_images: int | None = None
    search_images: int | None = None
    evaluation_images: int | None = None
    bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    floats: bool = False
    a_bits: tuple[int, ...] = (8,)
    quantize: str = "linear"
    smooth: str = "none"
    input_observer: str = "mse"
    softmax: str = "uniform"
    layer_bits: tuple[str, ...] = ()
    fix: tuple[str, ...] = ()
    first_last_bits: int | None = None
    objectives: tuple[str, ...] = DEFAULT_OBJECTIVES
    trials: int | None = None
    assign: str | None = None
    sampler: str = "mpsearch"
    polish: int | None = None
    method: str = "gptq"
    iterations: int | None = None
    search_states: str = "gptq"
    bias_correction: bool = True
    reconstruction_memory: str = "8GiB"
    target: str = DEFAULT_TARGET
    tables: str = "latency_tables"
    table: str | None = None
    allow_estimate: bool = False
    threads: int = 1
    batch: int = 1
    seed: int = 0
    task: str = "auto"
    device: str = field(default=AUTO_DEVICE, compare=False)
    batch_axis: int = 0
    input_size: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    effort: str = "balanced"
    time_limit: str | None = None
    kept_images: tuple[int, ...] | None = None
    metric: str | None = None
    max_drop: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "a_bits", _tuple(self.a_bits))
        self._check_budgets()
        self._check_metric()
        require_device_name(self.device)
        self._check_numbers()
        self._check_choices()
        effort_of(self.effort)
        if self.time_limit is not None:
            parse_duration(self.time_limit)
        Restrictions.parse(self.fix, self.layer_bits)
        SearchStates.parse(self.search_states)
        if not self.objectives:
            raise OptionError("There is no objective. Give at least one, such as --objective output_mse.")
        self._check_sources()

    def _check_budgets(self) -> None:
        """Raises BudgetError where there is none, or one cannot be read; OptionError where it stands beside
        `assign`.
        """
        if not self.budgets and self.assign is None and self.max_drop is None:
            raise BudgetError(
                "There is no budget. Give at least one, such as --budget 15MB, or --max-drop 1%."
            )
        if self.budgets and self.assign is not None:
            raise OptionError(
                f"--assign {self.assign} gives bits without a budget, and --budget {self.budgets[0]} is "
                "given. Leave one of them out."
            )
        resources = [Budget.parse(text).resource for text in self.budgets]
        if self.batch > 1 and "memory_bytes" in resources:
            raise OptionError(
                f"--batch {self.batch} is for budgets on latency and energy; peak memory is predicted and "
                "measured for one image. Leave one of them out."
            )

    def _check_metric(self) -> None:
        """Raises OptionError or BudgetError where the metric or the drop cannot be read."""
        if self.max_drop is not None:
            Drop.parse(self.max_drop)
            if self.assign is not None:
                raise OptionError(
                    f"--assign {self.assign} gives bits without a search, and --max-drop {self.max_drop} "
                    "asks for one. Leave one of them out."
                )
        if self.metric is not None and not self.metric.startswith(OBJECT) and not names_code(self.metric):
            raise OptionError(
                f"The metric is {self.metric!r}. Write path/to/file.py:function, which is called with "
                "(model, samples) and returns a number, higher is better.",
                ("metric",),
            )

    def _check_choices(self) -> None:
        """Raises UnknownNameError where a setting is none of its choices."""
        for kind, given, known in (
            ("set of tensors to --quantize", self.quantize, QUANTIZE),
            ("way to --smooth", self.smooth, SMOOTH),
            ("grid of --softmax", self.softmax, SOFTMAX),
        ):
            if given not in known:
                raise UnknownNameError(kind, given, known)

    def _check_sources(self) -> None:
        """Raises OptionError where a model is given without data, or what belongs to a model without one."""
        lost = [
            flag for flag, given in (("--weights", self.weights), ("--model-arg", self.model_args)) if given
        ]
        if self.model is None and lost:
            raise OptionError(
                f"{lost[0]} is given without --model: the embedded model has its own. Name the model, or "
                f"leave {lost[0]} out."
            )
        if (self.model is None) != (self.data is None):
            given, lacking = ("--model", "--data") if self.data is None else ("--data", "--model")
            raise OptionError(
                f"{given} is given without {lacking}. Give both, or neither for the embedded model and "
                "digits."
            )

    def _check_numbers(self) -> None:
        """Raises OptionError where a number is out of its range."""
        if (
            not self.bits
            or not set(self.bits) <= set(range(2, 9))
            or not self.a_bits
            or not set(self.a_bits) <= {*range(2, 9), FLOAT_INPUT}
        ):
            raise OptionError(
                f"Bits are {list(self.bits)} for weights and {list(self.a_bits)} for inputs; each must "
                "be 2 to 8, or 16 for inputs that stay float."
            )
        if self.first_last_bits is not None and not 2 <= self.first_last_bits <= 8:
            raise OptionError(
                f"first_last_bits is {self.first_last_bits}; it must be 2 to 8, such as 8.",
                ("first_last_bits",),
            )
        if self.memory_bytes < 1:
            raise OptionError(
                f"reconstruction_memory is {self.reconstruction_memory!r}; it must be a size such as 8GiB.",
                ("reconstruction_memory",),
            )
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise OptionError(f"{name} is {value}; it must be {least} or more.", (name,))
        if self.input_size is not None and (len(self.input_size) not in (1, 3) or min(self.input_size) < 1):
            raise OptionError(
                f"input_size is {self.input_size}; it must be channels, height and width, such as 3,32,32, "
                "or one "
                "number for both sides.",
                ("input_size",),
            )
        if self.seed > _MOST_SEED:
            raise OptionError(
                f"seed is {self.seed}; it must be at most {_MOST_SEED}, which every generator takes.",
                ("seed",),
            )

    @property
    def memory_bytes(self) -> int:
        """`reconstruction_memory` in bytes."""
        value, dimension = parse_quantity(self.reconstruction_memory)
        return int(value) if dimension == "bytes" else 0


def _tuple(widths: object) -> tuple[int, ...]:
    """Bit-widths, one of which may be given as a number."""
    return (widths,) if isinstance(widths, int) else tuple(widths)  # type: ignore[arg-type]
