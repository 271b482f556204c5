"""`mpsearch run`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from mpsearch.cli._app import app
from mpsearch.cli._options import (
    Bits,
    CalibrationData,
    CalibrationImages,
    ClassMap,
    Data,
    EvaluationImages,
    FirstLastBits,
    Fix,
    InputBits,
    Model,
    ModelArguments,
    Name,
    Output,
    RandomWeights,
    SearchImages,
    Seed,
    Storage,
    Tables,
    TaskName,
    Threads,
    Weights,
    model_arguments,
    split_bits,
    study_folder,
    study_name,
)
from mpsearch.cli._show import Format, ProgressBars, print_rows, say
from mpsearch.errors import OptionError
from mpsearch.problem import Budget
from mpsearch.units import format_bytes, format_pair, format_quantity

_WITH_RESUME = {"resume", "budget", "allow_estimate", "storage", "workers", "output"}


@app.command()
def run(  # long for its options alone
    context: typer.Context,
    budget: Annotated[
        list[str] | None, typer.Option(help="Hard limit: 15MB, 15MiB, 40%, 5bits (a weight, on average), 2.5ms, '512MiB peak', 20GBOPs. May be repeated.")
    ] = None,
    model: Model = None,
    model_arg: ModelArguments = None,
    weights: Weights = None,
    random_weights: RandomWeights = False,
    data: Data = None,
    calibration_data: CalibrationData = None,
    class_map: ClassMap = None,
    calibration_images: CalibrationImages = None,
    search_images: SearchImages = None,
    evaluation_images: EvaluationImages = None,
    bits: Bits = None,
    fix: Fix = None,
    a_bits: InputBits = 8,
    objective: Annotated[
        list[str] | None,
        typer.Option(help="NAME[:option=value,...]; the first is solved exactly. May be repeated. sketch and weight_mse without it."),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Assignments whose loss is measured. 12, or 6 on the embedded default.")] = None,
    sampler: Annotated[str, typer.Option(help="Who proposes them: mpsearch, or a baseline, tpe, nsga2 or random.")] = "mpsearch",
    polish: Annotated[int | None, typer.Option(help="Exchanges around the best that are measured afterwards. 4, or 2 on the embedded default.")] = None,
    first_last_bits: FirstLastBits = None,
    method: Annotated[str, typer.Option(help="Finish: gptq (closed form), qdrop, brecq, adaround, attention_round or nearest, with :option=value.")] = "gptq",
    reconstruction_memory: Annotated[str, typer.Option(help="Bound on the memory that the reconstruction takes; it uses fewer images to keep it.")] = "8GiB",
    iterations: Annotated[int | None, typer.Option(help="Gradient steps for each block, of methods that learn. 200 without it.")] = None,
    search_states: Annotated[
        str, typer.Option(help="What the search measures: weights rounded in closed form (gptq), to nearest, or reconstructed:steps=20.")
    ] = "gptq",
    bias_correction: Annotated[
        bool, typer.Option("--bias-correction/--no-bias-correction", help="Let biases make up for the mean error of quantised weights.")
    ] = True,
    target: Annotated[
        str,
        typer.Option(help="What the search is for: onnx or ort-cpu (latency), openvino-cpu[-bf16] (latency), triton-cuda (latency, energy) or packed (size)."),
    ] = "ort-cpu",
    tables: Tables = "latency_tables",
    table: Annotated[str | None, typer.Option(help="Read this latency table instead of measuring.")] = None,
    allow_estimate: Annotated[
        bool, typer.Option("--allow-estimate", help="Go on with a table of another device or version, and with latencies that are predicted badly.")
    ] = False,
    threads: Threads = 1,
    seed: Seed = 0,
    task: TaskName = "classification",
    name: Name = None,
    storage: Storage = None,
    workers: Annotated[
        int, typer.Option(help="Processes of this machine that measure: 1 is this one, more are started, 0 leaves all to `mpsearch worker`.")
    ] = 1,
    resume: Annotated[
        Path | None, typer.Option(help="Finish the study in this folder, with its settings; --budget and --allow-estimate may be given anew.")
    ] = None,
    output: Output = Format.table,
) -> None:
    """Search, quantise, write the artifact, and report: all seven steps."""
    for text in budget or ():
        Budget.parse(text)  # before torch is imported: a slip is told at once
    from mpsearch.pipeline import DEFAULT_OBJECTIVES, RunConfig
    from mpsearch.pipeline import run as run_study
    from mpsearch.pipeline.folder import Study
    from mpsearch.pipeline.workers.crew import Crew

    crew = Crew(storage, workers)
    if resume is not None:
        study = Study(resume)
        config = study.config()
        _require_unchanged(context)
        if allow_estimate:
            config = replace(config, allow_estimate=True)
        if budget:
            config = replace(config, budgets=tuple(budget))
    else:
        widths, rules = split_bits(bits)
        usual, refined = (6, 2) if model is None else (12, 4)
        config = RunConfig(
            budgets=tuple(budget or ()),
            model=model,
            model_args=model_arguments(model_arg or []),
            weights=weights,
            pretrained=not random_weights,
            data=data,
            calibration_data=calibration_data,
            class_map=class_map,
            calibration_images=calibration_images,
            search_images=search_images,
            evaluation_images=evaluation_images,
            bits=widths,
            layer_bits=rules,
            fix=tuple(fix or ()),
            a_bits=a_bits,
            objectives=tuple(objective or DEFAULT_OBJECTIVES),
            trials=usual if trials is None else trials,
            sampler=sampler,
            polish=refined if polish is None else polish,
            first_last_bits=first_last_bits,
            method=method,
            iterations=iterations,
            search_states=search_states,
            bias_correction=bias_correction,
            reconstruction_memory=reconstruction_memory,
            target=target,
            tables=tables,
            table=table,
            allow_estimate=allow_estimate,
            threads=threads,
            seed=seed,
            task=task,
        )
        study = Study(study_folder(name or study_name(config.model, config.budgets)))
    if study.holds(config):
        say(f"Continuing the study in {study.path}: what it holds already is used.")
    try:
        result = run_study(config, study, ProgressBars(), crew)
    except KeyboardInterrupt:
        say(f"\nInterrupted. Finish it with: mpsearch run --resume {study.path}")
        raise
    from mpsearch.report import write_report

    report = write_report(study.path)
    _print_result(result, output)
    _tell(result, report)


def _require_unchanged(context: typer.Context) -> None:
    """Raises OptionError where a setting is given that a study which goes on would pass over."""
    given = [name for name in context.params if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE" and name not in _WITH_RESUME]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise OptionError(f"--resume goes on with the study's own settings, and {flags} would change them. Leave it out, or start another study with --name.")


def _print_result(result: dict[str, Any], output: Format) -> None:
    if output is Format.json:
        print(json.dumps(result, indent=1))
        return
    timed = any("latency_us" in row["searched"] for row in result["rows"])
    labelled = any(row["searched"]["metrics"]["top1"] is not None for row in result["rows"])
    compared = [*(["top-1"] if labelled else []), result["measure"]]
    times = [*(["ms predicted", "ms measured"] if timed else []), *(["mJ predicted", "mJ measured"] if _has_energy(result) else [])]
    header = ("", "bits", "size predicted", "size on disk", *times, *compared, *(f"{name} finished" for name in compared))
    print_rows(header, [_cells(row, timed, _has_energy(result), labelled, result["best"]["label"]) for row in result["rows"]], output)


def _has_energy(result: dict[str, Any]) -> bool:
    """Whether the energy of the rows was predicted and measured."""
    return any("energy_mj" in row["searched"] for row in result["rows"])


def _cells(row: dict[str, Any], timed: bool, energy: bool, labelled: bool, chosen: str) -> tuple[str, ...]:
    near, after, said = row["searched"], row.get("reconstructed"), row["predicted"]
    written = after or near
    size = f"{near['size_bytes']:,.0f} B" if row["label"] != "float" else f"({near['size_bytes']:,.0f} B)"
    cells = [row["label"] + (" [chosen]" if row["label"] == chosen else ""), f"{row['mean_bits']:.2f}", f"{said['size_bytes']:,.0f} B" if said else "", size]
    if timed:
        cells += [f"{said['latency_us'] / 1e3:.3f}" if said else "", f"{written['latency_us'] / 1e3:.3f}"]
    if energy:
        cells += [f"{known['energy_mj']:.3f}" if known.get("energy_mj") is not None else "" for known in (said, written)]
    for measured in (near, after):
        metrics = measured["metrics"] if measured else None
        if labelled:
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
        said = f"Budget {budget.text}: {kept} {used} of {limit}"
        say(f"{said}{_in_new_processes(budget, best)}.")
    for r in best.get("repairs", []):
        got, limit = format_pair(r["measured"], r["limit"], r["resource"])
        say(f"Repaired: an earlier choice broke {limit} (measured {got}, predicted {format_quantity(r['predicted'], r['resource'])}).")
    artifact, metrics = best["artifact"], best["metrics"]
    say(f"Chosen: {best['label']} ({best['reason']}); the proxy's optimum is {best['proxy']['status']} ({best['proxy']['found_by']}).")
    say(f"Packed checkpoint: {artifact['packed']}, {format_bytes(artifact['size_bytes'])}; open it with mpsearch.load.")
    for key, title in (("onnx", "ONNX"), ("openvino", "OpenVINO")):
        if key in artifact:
            units = f"8-bit containers, {format_bytes(artifact[f'{key}_bytes'])}"
            agreement = f"it decides as the checkpoint on {artifact[f'{key}_agreement']:.2%} of {metrics['images']} images"
            fresh = "" if "latency" in artifact else f"; {artifact[f'{key}_fresh_latency_us'] / 1e3:.3f} ms in a process of its own"
            say(f"{title}: {artifact[key]} ({units}); {agreement}{fresh}.")
            if artifact[f"{key}_fallbacks"]:
                say(f"Not in the kernel they were written for: {', '.join(f'{unit} ({ran})' for unit, ran in artifact[f'{key}_fallbacks'].items())}.")
    if "triton" in artifact:
        say(f"On the kernels of triton-cuda it decides as the fake-quantised model on {artifact['triton_agreement']:.2%} of {metrics['images']} images.")
    say(f"Not quantised: {format_bytes(sum(result['not_quantized'].values()))} in {len(result['not_quantized'])} tensors, named in {report}.")
    say(f"Report: {report}")


def _in_new_processes(budget: Budget, best: dict[str, Any]) -> str:
    """What a latency was measured by, where new processes were asked."""
    timing = best["artifact"].get("latency")
    if budget.resource != "latency_us" or timing is None:
        return ""
    readings = sorted(timing["latency_readings_us"])
    least, most, high = (format_quantity(v, budget.resource) for v in (readings[0], readings[-1], timing["latency_high_us"]))
    return f" in {len(readings)} new processes ({least} to {most}); {timing['latency_high_share']:.0%} of further ones stay below {high}"
