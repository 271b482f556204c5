"""`mpsearch run`."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import typer

from mpsearch.cli import _run_options as options
from mpsearch.cli._app import app
from mpsearch.cli._options import (
    BatchAxis,
    Bits,
    CalibrationData,
    CalibrationImages,
    ClassMap,
    Data,
    Device,
    EvaluationImages,
    FirstLastBits,
    Fix,
    InputBits,
    InputObserver,
    InputSize,
    Interpolation,
    Mean,
    Model,
    ModelArguments,
    Name,
    Output,
    Quantize,
    RandomWeights,
    SearchImages,
    Seed,
    Smooth,
    Softmax,
    Std,
    Storage,
    Tables,
    TaskName,
    Threads,
    Weights,
    config_of,
    study_folder,
    study_name,
)
from mpsearch.cli._show import Format, ProgressBars, print_rows, say
from mpsearch.efforts import effort_of, format_duration, parse_duration
from mpsearch.errors import OptionError
from mpsearch.presets import preset_of
from mpsearch.problem import Budget
from mpsearch.units import format_bytes, format_pair, format_quantity

if TYPE_CHECKING:
    from mpsearch.pipeline import RunConfig
    from mpsearch.pipeline.folder import Study
    from mpsearch.pipeline.workers.crew import Crew

ASSIGNED_BITS = (3, 4, 5, 6)
"""What --assign divides the layers among where --bits does not say: a group at 2 bits ruins most networks."""

_WITH_RESUME = {"resume", "budget", "allow_estimate", "device", "storage", "workers", "output"}


@app.command()
def run(
    context: typer.Context,
    budget: options.Budgets = None,
    model: Model = None,
    model_arg: ModelArguments = None,
    weights: Weights = None,
    random_weights: RandomWeights = False,
    data: Data = None,
    calibration_data: CalibrationData = None,
    class_map: ClassMap = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    interpolation: Interpolation = None,
    calibration_images: CalibrationImages = None,
    search_images: SearchImages = None,
    evaluation_images: EvaluationImages = None,
    bits: Bits = None,
    fix: Fix = None,
    a_bits: InputBits = "8",
    quantize: Quantize = "linear",
    smooth: Smooth = "none",
    input_observer: InputObserver = "mse",
    softmax: Softmax = "uniform",
    objective: options.RunObjectives = None,
    assign: options.Assign = None,
    trials: options.Trials = None,
    sampler: options.Sampler = "mpsearch",
    polish: options.Polish = None,
    preset: options.PresetName = None,
    effort: options.EffortName = "balanced",
    time_limit: options.TimeLimit = None,
    first_last_bits: FirstLastBits = None,
    method: options.Method = "gptq",
    reconstruction_memory: options.ReconstructionMemory = "8GiB",
    iterations: options.Iterations = None,
    search_states: options.SearchStates = "gptq",
    bias_correction: options.BiasCorrection = True,
    target: options.Target = "ort-cpu",
    tables: Tables = "latency_tables",
    table: options.Table = None,
    allow_estimate: options.AllowEstimate = False,
    threads: Threads = 1,
    device: Device = "auto",
    seed: Seed = 0,
    task: TaskName = "auto",
    batch_axis: BatchAxis = 0,
    name: Name = None,
    storage: Storage = None,
    workers: options.Workers = 1,
    resume: options.Resume = None,
    output: Output = Format.table,
) -> None:
    """Search, quantise, write the artifact, and report: all seven steps."""
    for text in budget or ():
        Budget.parse(text)  # before torch is imported: a slip is told at once
    effort_of(effort)
    if preset is not None:
        _expand(context, preset)
    if time_limit is not None:
        parse_duration(time_limit)
    from mpsearch.pipeline.workers.crew import Crew

    crew = Crew(storage, workers)
    config, study = _started(context) if resume is None else _resumed(context, resume)
    _finish(config, study, crew, output)


def _expand(context: typer.Context, name: str) -> None:
    """Set what a preset stands for, where the command line says nothing."""
    found = preset_of(name)
    alone = {} if context.params["budget"] else found.without_budget
    for option, value in {**found.options, **alone}.items():
        if not _is_given(context, option):
            context.params[option] = list(value) if isinstance(value, tuple) else value
    say(f"Preset {name}: {found.typed(with_budget=bool(context.params['budget']))}")


def _started(context: typer.Context) -> tuple[RunConfig, Study]:
    """Settings and folder of a new study."""
    from mpsearch.pipeline import DEFAULT_OBJECTIVES
    from mpsearch.pipeline.folder import Study

    given = context.params
    if given["assign"] is not None:
        _require_no_search(context)
    said = any("=" not in text for text in given["bits"] or ())
    narrow = {"bits": ASSIGNED_BITS} if given["assign"] is not None and not said else {}
    config = config_of(
        context,
        **narrow,
        budgets=tuple(given["budget"] or ()),
        objectives=tuple(given["objective"] or DEFAULT_OBJECTIVES),
    )
    about = config.budgets if config.assign is None else (config.assign,)
    return config, Study(study_folder(given["name"] or study_name(config.model, about)))


def _require_no_search(context: typer.Context) -> None:
    """Raises OptionError where an option of the search is given beside --assign, which makes none."""
    for name in ("trials", "sampler", "polish", "storage", "workers"):
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE":
            raise OptionError(f"--assign makes no search, and --{name} is given. Leave one of them out.")


def _resumed(context: typer.Context, folder: Path) -> tuple[RunConfig, Study]:
    """Settings and folder of a study that goes on, with another budget where one is given."""
    from mpsearch.pipeline.folder import Study

    study = Study(folder)
    config = study.config()
    _require_unchanged(context)
    if _is_given(context, "device"):
        config = replace(config, device=context.params["device"])
    if context.params["allow_estimate"]:
        config = replace(config, allow_estimate=True)
    if context.params["budget"]:
        config = replace(config, budgets=tuple(context.params["budget"]))
    return config, study


def _finish(config: RunConfig, study: Study, crew: Crew, output: Format) -> None:
    """All steps, and what is told of them."""
    from mpsearch.pipeline import run as run_study
    from mpsearch.report import write_report

    if study.holds(config):
        say(f"Continuing the study in {study.path}: what it holds already is used.")
    try:
        result = run_study(config, study, ProgressBars(), crew, started=_began())
    except KeyboardInterrupt:
        say(f"\nInterrupted. Finish it with: mpsearch run --resume {study.path}")
        raise
    report = write_report(study.path)
    _print_result(result, output)
    _tell(result, report)


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether an option was typed."""
    return getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"


def _began() -> float:
    """When this process began, as `time.monotonic()` counts: imports take part of a time limit too."""
    return time.monotonic() - (time.time() - float(psutil.Process().create_time()))


def _require_unchanged(context: typer.Context) -> None:
    """Raises OptionError where a setting is given that a study which goes on would pass over."""
    given = [name for name in context.params if _is_given(context, name) and name not in _WITH_RESUME]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise OptionError(
            f"--resume goes on with the study's own settings, and {flags} would change them. Leave it "
            "out, or start another study with --name."
        )


def _print_result(result: dict[str, Any], output: Format) -> None:
    if output is Format.json:
        print(json.dumps(result, indent=1))
        return
    timed = bool(result.get("latencies")) or any("latency_us" in row["searched"] for row in result["rows"])
    labelled = any(row["searched"]["metrics"]["top1"] is not None for row in result["rows"])
    compared = [*(["top-1"] if labelled else []), result["measure"]]
    beside = result["best"]["artifact"]["file"] != result["best"]["artifact"]["packed"]
    times = [
        *([f"ms {'ESTIMATED' if _is_estimate(result) else 'predicted'}", "ms measured"] if timed else []),
        *(["mJ predicted", "mJ measured"] if _has_energy(result) else []),
    ]
    header = (
        "",
        "bits",
        "size predicted",
        "size on disk",
        *(["checkpoint"] if beside else []),
        *times,
        *compared,
        *(f"{name} finished" for name in compared),
    )
    shown = _Shown(beside, timed, _has_energy(result), labelled, result["best"]["label"])
    print_rows(header, [_cells(row, shown) for row in result["rows"]], output)


@dataclass(frozen=True)
class _Shown:
    """Which columns there are (size of a checkpoint beside the file that the budget limits, latency, energy,
    top-1), and the label of the choice.
    """

    checkpoint: bool
    timed: bool
    energy: bool
    labelled: bool
    chosen: str


def _is_estimate(result: dict[str, Any]) -> bool:
    """Whether latencies are by a table that others have published, and not measured."""
    return str(result.get("latencies") or "").startswith("ESTIMATED")


def _has_energy(result: dict[str, Any]) -> bool:
    """Whether the energy of the rows was predicted and measured."""
    return any("energy_mj" in row["searched"] for row in result["rows"])


def _cells(row: dict[str, Any], shown: _Shown) -> tuple[str, ...]:
    near, after, said = row["searched"], row.get("reconstructed"), row["predicted"]
    written = after or near
    sizes = [f"{near[key]:,.0f} B" for key in ("size_bytes", *(["packed_bytes"] if shown.checkpoint else []))]
    cells = [
        row["label"] + (" [chosen]" if row["label"] == shown.chosen else ""),
        f"{row['mean_bits']:.2f}",
        f"{said['size_bytes']:,.0f} B" if said else "",
        *([f"({size})" for size in sizes] if row["label"].startswith("float") else sizes),
    ]
    if shown.timed:
        cells += [
            f"{known['latency_us'] / 1e3:.3f}" if known.get("latency_us") is not None else ""
            for known in (said, written)
        ]
    if shown.energy:
        cells += [
            f"{known['energy_mj']:.3f}" if known.get("energy_mj") is not None else ""
            for known in (said, written)
        ]
    for measured in (near, after):
        metrics = measured["metrics"] if measured else None
        if shown.labelled:
            cells.append("" if metrics is None or metrics["top1"] is None else f"{metrics['top1']:.2%}")
        cells.append("" if metrics is None else f"{metrics['kl']:.5f}")
    return tuple(cells)


def _tell(result: dict[str, Any], report: Path) -> None:
    best = result["best"]
    for b in best["budgets"]:
        budget, got = Budget.from_json(b), best["measured"].get(b["resource"])
        kept = "predicted" if got is None else "measured"
        value = best["predicted"][budget.resource] if got is None else got
        used, limit = format_pair(value, budget.limit, budget.resource)
        where = (
            f", {result['latencies']}" if result.get("latencies") and b["resource"] == "latency_us" else ""
        )
        say(f"Budget {budget.text}: {kept} {used} of {limit}{_in_new_processes(budget, best)}{where}.")
    for r in best.get("repairs", []):
        got, limit = format_pair(r["measured"], r["limit"], r["resource"])
        predicted = format_quantity(r["predicted"], r["resource"])
        say(f"Repaired: an earlier choice broke {limit} (measured {got}, predicted {predicted}).")
    proxy = best["proxy"]
    optimum = f"the proxy's optimum is {proxy['status']} ({proxy['found_by']})"
    say(f"Chosen: {best['label']} ({best['reason']}); {optimum}.")
    _tell_files(best["artifact"], best["metrics"]["images"])
    plan = result["plan"]
    if "seconds" in plan:
        took, meant = format_duration(plan["took_s"]), format_duration(plan["seconds"])
        say(f"Took {took}; the plan of the steps was {meant}.")
    left = result["not_quantized"]
    say(f"Not quantised: {format_bytes(sum(left.values()))} in {len(left)} tensors, named in {report}.")
    say(f"Report: {report}")


def _tell_files(artifact: dict[str, Any], images: int) -> None:
    """What was written, and how it agrees with the checkpoint on so many images."""
    say(
        f"Packed checkpoint: {artifact['packed']}, {format_bytes(artifact['packed_bytes'])}; open it with "
        "mpsearch.load."
    )
    for key, title in (("onnx", "ONNX"), ("openvino", "OpenVINO")):
        if key not in artifact:
            continue
        form = "bit-packed weights" if artifact[key] == artifact["file"] else "8-bit containers"
        units = f"{form}, {format_bytes(artifact[f'{key}_bytes'])}"
        agreement = f"it decides as the checkpoint on {artifact[f'{key}_agreement']:.2%} of {images} images"
        if "latency" not in artifact:
            agreement += f"; {artifact[f'{key}_fresh_latency_us'] / 1e3:.3f} ms in a process of its own"
        say(f"{title}: {artifact[key]} ({units}); {agreement}.")
        fallbacks = ", ".join(f"{unit} ({ran})" for unit, ran in artifact[f"{key}_fallbacks"].items())
        if fallbacks:
            say(f"Not in the kernel they were written for: {fallbacks}.")
    if "tensorrt" in artifact:
        script = Path(artifact["tensorrt"]).with_name("build.sh")
        agreement = f"{artifact['tensorrt_agreement']:.2%} of {images} images"
        say(
            f"For TensorRT: {artifact['tensorrt']} (strongly typed float16 and int8), which ONNX Runtime "
            f"decides as the checkpoint on {agreement}. Build and time it where the GPU is with {script}, "
            f"then compare: mpsearch profile --from trtexec:{script.parent}."
        )
    if "triton" in artifact:
        agreement = f"{artifact['triton_agreement']:.2%} of {images} images"
        say(f"On the kernels of triton-cuda it decides as the fake-quantised model on {agreement}.")


def _in_new_processes(budget: Budget, best: dict[str, Any]) -> str:
    """What a latency was measured by, where new processes were asked."""
    timing = best["artifact"].get("latency")
    if budget.resource != "latency_us" or timing is None:
        return ""
    readings = sorted(timing["latency_readings_us"])
    least, most, high = (
        format_quantity(v, budget.resource) for v in (readings[0], readings[-1], timing["latency_high_us"])
    )
    return (
        f" in {len(readings)} new processes ({least} to {most}); {timing['latency_high_share']:.0%} "
        f"of further ones stay below {high}"
    )
