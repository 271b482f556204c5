"""The command line: parse, call the pipeline, print, exit code; nothing else.

Data goes to stdout, talk and progress to stderr. Exit codes: 0, 1 (failed), 2 (usage), 3 (infeasible), 130 (interrupted, resumable).
Over 400 lines for the options of its commands.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from mpsearch.errors import MpsearchError, OptionError
from mpsearch.problem import Budget, Problem
from mpsearch.units import format_bytes, format_quantity

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Find how many bits each layer should have, and get the quantised model that keeps the promise."
)
talk = Console(stderr=True)
MARK = "chosen"


class Format(StrEnum):
    """How results are printed."""

    table = "table"
    json = "json"
    csv = "csv"


class _Bars:
    """Progress bars on stderr; plain lines where it is no terminal."""

    @contextlib.contextmanager
    def task(self, label: str) -> Iterator[Any]:
        """A bar while the task runs."""
        columns = (SpinnerColumn(), TextColumn("{task.description:<52}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        start = time.monotonic()
        with Bars(*columns, console=talk, disable=not talk.is_terminal) as bars:
            bar = bars.add_task(label, total=None)

            def advance(done: int, total: int | None = None) -> None:
                bars.update(bar, completed=done, total=total)

            yield advance
        if not talk.is_terminal:
            _say(f"  {label}: {time.monotonic() - start:.1f} s")

    def say(self, text: str) -> None:
        """A line."""
        _say(text)


def _say(text: str) -> None:
    """One line on stderr, as it is: not wrapped, not coloured, no markup read."""
    talk.print(text, highlight=False, markup=False, soft_wrap=True)


@app.command()
def run(  # long for its options alone
    budget: Annotated[
        list[str] | None, typer.Option(help="Hard limit: 15MB, 15MiB, 40%, 5bits (a weight, on average), 2.5ms, 20GBOPs. May be repeated.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="timm name, or file.py:function (which is run). Without it: resnet34 fitted on digits.")] = None,
    model_arg: Annotated[list[str] | None, typer.Option(help="KEY=VALUE for the model's constructor; VALUE is JSON. May be repeated.")] = None,
    weights: Annotated[str | None, typer.Option(help="Safetensors file; without it timm's pretrained weights are downloaded.")] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="Keep the random weights of timm's constructor.")] = False,
    data: Annotated[str | None, typer.Option(help="Folder, .zip, .npz, timm dataset name or digits: evaluation images, or all images.")] = None,
    calibration_data: Annotated[str | None, typer.Option(help="Source of the calibration and search images.")] = None,
    calibration_images: Annotated[int, typer.Option(help="For ranges and reconstruction.")] = 512,
    search_images: Annotated[int, typer.Option(help="For the loss that the search measures.")] = 256,
    evaluation_images: Annotated[int | None, typer.Option(help="For what is reported; all that are left without it.")] = None,
    bits: Annotated[str, typer.Option(help="Weight bits a unit may have: 2-8, or a list such as 2,4,8.")] = "2-8",
    a_bits: Annotated[int, typer.Option(help="Bits of every unit's input.")] = 8,
    objective: Annotated[list[str] | None, typer.Option(help="NAME[:option=value,...]; the first is solved exactly. May be repeated.")] = None,
    trials: Annotated[int, typer.Option(help="Assignments whose loss is measured.")] = 48,
    first_last_bits: Annotated[int | None, typer.Option(help="Fix the first and the last unit, weights and inputs, at these bits.")] = None,
    method: Annotated[str, typer.Option(help="Reconstruction: qdrop, brecq, adaround, attention_round or nearest, with :option=value.")] = "qdrop",
    reconstruction_memory: Annotated[
        str, typer.Option(help="Bound on the activations that the reconstruction stores; it uses fewer images to keep it.")
    ] = "8GiB",
    iterations: Annotated[
        int | None, typer.Option(help="Reconstruction steps for each block; 0 for nearest rounding. 200, or 16 on the embedded default.")
    ] = None,
    target: Annotated[str, typer.Option(help="ort-cpu (checkpoint, ONNX, latency) or packed (checkpoint alone).")] = "ort-cpu",
    tables: Annotated[str, typer.Option(help="Folder of latency tables.")] = "latency_tables",
    table: Annotated[str | None, typer.Option(help="Read this latency table instead of measuring.")] = None,
    allow_estimate: Annotated[bool, typer.Option("--allow-estimate", help="Take a table of another device as an estimate.")] = False,
    threads: Annotated[int, typer.Option(help="Of the runtime whose latency is measured.")] = 1,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    name: Annotated[str | None, typer.Option(help="Of the study's folder below studies/.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Finish the study in this folder, with its settings.")] = None,
    output: Annotated[Format, typer.Option("--format", help="Of the results on stdout.")] = Format.table,
) -> None:
    """Search, quantise, write the artifact, and report: all seven steps."""
    for text in budget or ():
        Budget.parse(text)  # before torch is imported: a slip is told at once
    from mpsearch.pipeline import DEFAULT_OBJECTIVES, RunConfig
    from mpsearch.pipeline import run as run_study
    from mpsearch.pipeline.study import Study

    if resume is not None:
        study = Study(resume)
        config = study.config()
        if budget:
            config = replace(config, budgets=tuple(budget))
    else:
        config = RunConfig(
            budgets=tuple(budget or ()),
            model=model,
            model_args=_model_args(model_arg or []),
            weights=weights,
            pretrained=not random_weights,
            data=data,
            calibration_data=calibration_data,
            calibration_images=calibration_images,
            search_images=search_images,
            evaluation_images=evaluation_images,
            bits=_bits(bits),
            a_bits=a_bits,
            objectives=tuple(objective or DEFAULT_OBJECTIVES),
            trials=trials,
            first_last_bits=first_last_bits,
            method=method,
            iterations=iterations,
            reconstruction_memory=reconstruction_memory,
            target=target,
            tables=tables,
            table=table,
            allow_estimate=allow_estimate,
            threads=threads,
            seed=seed,
        )
        study = Study(Path("studies") / (name or _study_name(config.model, config.budgets)))
    if study.claim(config):
        _say(f"Continuing the study in {study.path}: what it holds already is used.")
    try:
        result = run_study(config, study, _Bars())
    except KeyboardInterrupt:
        _say(f"\nInterrupted. Finish it with: mpsearch run --resume {study.path}")
        raise
    from mpsearch.report import write_report

    report = write_report(study.path)
    _print_result(result, output)
    _tell(result, report)


@app.command()
def solve(
    study: Annotated[Path, typer.Argument(help="Folder of a study, or a problem.json.")],
    budget: Annotated[list[str], typer.Option(help="As in run, absolute: 15MB, 2.5ms. May be repeated.")],
    objective: Annotated[str | None, typer.Option(help="Score table to minimise; the study's first without it.")] = None,
    output: Annotated[Format, typer.Option("--format", help="Of the assignment on stdout.")] = Format.table,
) -> None:
    """The exact optimum of a saved problem for any budgets, in milliseconds and without torch."""
    from mpsearch.search import solve as solve_problem

    problem = Problem.load(study if study.suffix == ".json" else study / "problem.json")
    budgets = [Budget.parse(text) for text in budget]
    solution = solve_problem(problem, objective or next(iter(problem.scores)), budgets)
    assignment = problem.assignment(solution.indices)
    if output is Format.json:
        print(json.dumps({"assignment": assignment.to_json(), **solution.to_json()}, indent=1))
        return
    rows = [(layer.name, str(assignment[layer.name]), layer.weight_numel) for layer in problem.layers]
    _print_rows(("layer", "candidate", "weights"), rows, output)
    found = ", ".join(f"{r.rsplit('_', 1)[0]} {format_quantity(v, r)}" for r, v in solution.cost.to_json().items())
    _say(f"{solution.status} ({solution.found_by}): damage {solution.score:.6g}; predicted {found}.")


@app.command()
def score(  # long for its options alone
    model: Annotated[str | None, typer.Option(help="As in run.")] = None,
    model_arg: Annotated[list[str] | None, typer.Option(help="As in run.")] = None,
    weights: Annotated[str | None, typer.Option(help="As in run.")] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="As in run.")] = False,
    data: Annotated[str | None, typer.Option(help="As in run.")] = None,
    calibration_data: Annotated[str | None, typer.Option(help="As in run.")] = None,
    calibration_images: Annotated[int, typer.Option(help="That ranges and objectives look at.")] = 512,
    search_images: Annotated[int, typer.Option(help="For the true loss.")] = 256,
    evaluation_images: Annotated[int | None, typer.Option(help="Kept apart, so that the others are those of a run with the same number.")] = None,
    bits: Annotated[str, typer.Option(help="As in run.")] = "2-8",
    a_bits: Annotated[int, typer.Option(help="As in run.")] = 8,
    first_last_bits: Annotated[int | None, typer.Option(help="As in run.")] = None,
    objective: Annotated[list[str] | None, typer.Option(help="NAME[:option=value,...]. May be repeated; every additive one without it.")] = None,
    validate: Annotated[bool, typer.Option("--validate", help="Compare each objective with the true loss, and its exact optimum with the best known.")] = False,
    samples: Annotated[int, typer.Option(help="With --validate: assignments spread over the range of sizes.")] = 60,
    budgets: Annotated[str, typer.Option(help="With --validate: how many, or bits a weight such as 7,6,4.")] = "5",
    local_steps: Annotated[int, typer.Option(help="With --validate: measurements of the local search at each budget.")] = 24,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    name: Annotated[str | None, typer.Option(help="Of the study's folder below studies/; MODEL-score without it.")] = None,
    output: Annotated[Format, typer.Option("--format", help="Of the tables on stdout.")] = Format.table,
) -> None:
    """Score every bit-width of every layer with each objective; with --validate, say which of them to trust."""
    from mpsearch.objectives import OBJECTIVES
    from mpsearch.pipeline import RunConfig
    from mpsearch.pipeline.score import score_model
    from mpsearch.pipeline.study import Study
    from mpsearch.pipeline.validate import Effort, validate_objectives

    config = RunConfig(
        budgets=("8bits",),
        model=model,
        model_args=_model_args(model_arg or []),
        weights=weights,
        pretrained=not random_weights,
        data=data,
        calibration_data=calibration_data,
        calibration_images=calibration_images,
        search_images=search_images,
        evaluation_images=evaluation_images,
        bits=_bits(bits),
        a_bits=a_bits,
        first_last_bits=first_last_bits,
        objectives=tuple(objective or OBJECTIVES.names()),
        target="packed",
        seed=seed,
    )
    study = Study(Path("studies") / (name or _study_name(model, ("score",))))
    try:
        if validate:
            _print_validation(validate_objectives(config, study, Effort(samples, budgets, local_steps), _Bars()), study.path, output)
        else:
            _print_scores(score_model(config, study, _Bars()), study.path, output)
    except KeyboardInterrupt:
        _say("\nInterrupted. The same command goes on where this one stopped.")
        raise


@app.command()
def profile(
    model: Annotated[str, typer.Option(help="As in run.")],
    data: Annotated[str, typer.Option(help="As in run: gives the input's size.")],
    model_arg: Annotated[list[str] | None, typer.Option(help="As in run.")] = None,
    tables: Annotated[str, typer.Option(help="Folder of latency tables.")] = "latency_tables",
    threads: Annotated[int, typer.Option(help="Of the runtime.")] = 1,
    output: Annotated[Format, typer.Option("--format", help="Of the rows on stdout.")] = Format.table,
) -> None:
    """Measure the rows that this device's latency table lacks for a model's shapes. Weights do not matter."""
    from mpsearch.pipeline import RunConfig, profile_model

    config = RunConfig(
        budgets=("8bits",),
        model=model,
        model_args=_model_args(model_arg or []),
        pretrained=False,
        data=data,
        tables=tables,
        threads=threads,
        calibration_images=1,
        search_images=1,
        evaluation_images=1,
    )
    table, path = profile_model(config, _Bars())
    rows = [(r.key, r.kernel, r.status, f"{r.median_us:.1f}", f"{r.iqr_us:.1f}", r.executed) for _, r in sorted(table.rows.items())]
    _print_rows(("unit", "kernel", "status", "median_us", "iqr_us", "executed"), rows, output)
    _say(f"{len(table.rows)} rows in {path}.")


@app.command()
def report(study: Annotated[Path, typer.Argument(help="Folder of a study.")]) -> None:
    """Write report.html again, from a study's saved results."""
    from mpsearch.report import write_report

    print(write_report(study))


@app.command(name="list")
def list_members(
    what: Annotated[
        str, typer.Argument(help="objectives, interacting (objectives, for score alone), observers, backends, roundings, methods, budgets or models.")
    ],
    pattern: Annotated[str, typer.Argument(help="Of the models, such as 'resnet*'.")] = "*",
) -> None:
    """What can be named on the command line."""
    print("\n".join(_members(what, pattern)))


def _members(what: str, pattern: str) -> list[str]:
    if what == "objectives":
        from mpsearch.objectives import OBJECTIVES

        return OBJECTIVES.names()
    if what == "interacting":
        from mpsearch.objectives.interacting import INTERACTING

        return INTERACTING.names()
    if what in ("observers", "roundings"):
        from mpsearch.quant.observers import OBSERVERS
        from mpsearch.quant.rounding import ROUNDINGS

        return OBSERVERS.names() if what == "observers" else ROUNDINGS.names()
    if what == "methods":
        from mpsearch.reconstruct import METHODS

        return METHODS.names()
    if what == "backends":
        from mpsearch.hardware import BACKENDS

        return BACKENDS.names()
    if what == "models":
        import timm

        return list(timm.list_models(pattern))
    if what == "budgets":
        return [
            "15MB   10^6 bytes",
            "15MiB  2^20 bytes",
            "40%    of the float model",
            "5bits  a weight, on average",
            "2.5ms  latency",
            "20GBOPs  bit operations",
        ]
    raise OptionError(f"There is no list of {what!r}. It may be objectives, interacting, observers, backends, roundings, methods, budgets or models.")


def _model_args(pairs: list[str]) -> dict[str, Any]:
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise OptionError(f"{pair!r} is no model argument. Write KEY=VALUE, such as --model-arg num_classes=10.")
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    return found


def _bits(text: str) -> tuple[int, ...]:
    try:
        if match := re.fullmatch(r"(\d+)-(\d+)", text):
            return tuple(range(int(match[1]), int(match[2]) + 1))
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise OptionError(f"{text!r} are no bits. Write 2-8 or 2,4,8.") from None


def _study_name(model: str | None, budgets: tuple[str, ...]) -> str:
    base = "default" if model is None else model.rpartition(":")[2]
    return re.sub(r"[^A-Za-z0-9.%_-]+", "-", "-".join((base, *budgets)))


def _print_result(result: dict[str, Any], output: Format) -> None:
    if output is Format.json:
        print(json.dumps(result, indent=1))
        return
    timed = any("latency_us" in row["nearest"] for row in result["rows"])
    header = [
        "",
        "bits",
        "size predicted",
        "size on disk",
        *(["ms predicted", "ms measured"] if timed else []),
        "top-1",
        "KL",
        "top-1 reconstructed",
        "KL reconstructed",
    ]
    _print_rows(tuple(header), [_cells(row, timed, result["best"]["label"]) for row in result["rows"]], output)


def _cells(row: dict[str, Any], timed: bool, chosen: str) -> tuple[str, ...]:
    near, after, said = row["nearest"], row.get("reconstructed"), row["predicted"]
    written = after or near
    size = f"{near['size_bytes']:,.0f} B" if row["label"] != "float" else f"({near['size_bytes']:,.0f} B)"
    cells = [row["label"] + (f" [{MARK}]" if row["label"] == chosen else ""), f"{row['mean_bits']:.2f}", f"{said['size_bytes']:,.0f} B" if said else "", size]
    if timed:
        cells += [f"{said['latency_us'] / 1e3:.3f}" if said else "", f"{written['latency_us'] / 1e3:.3f}"]
    for measured in (near, after):
        metrics = measured["metrics"] if measured else None
        cells += ["" if metrics is None or metrics["top1"] is None else f"{metrics['top1']:.2%}", "" if metrics is None else f"{metrics['kl']:.5f}"]
    return tuple(cells)


def _print_rows(header: tuple[str, ...], rows: list[tuple[Any, ...]], output: Format) -> None:
    if output is Format.table:
        table = Table(*header)
        for row in rows:
            table.add_row(*(Text(str(value)) for value in row))
        Console(width=None if sys.stdout.isatty() else 200).print(table)
    elif output is Format.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([header, *rows])
    else:
        print(json.dumps([dict(zip(header, row, strict=True)) for row in rows], indent=1))


def _print_scores(scored: Any, folder: Path, output: Format) -> None:
    from mpsearch.pipeline.score import LONG, long_rows, score_rows

    if output is Format.json:
        print(json.dumps(scored.to_json(), indent=1))
    elif output is Format.csv:
        _print_rows(LONG, long_rows(scored), output)
    for text, about in scored.about.items():
        _say(f"{text} ({about['unit']}): {about['violations']} entries repaired, {about['seconds']:.1f} s.")
        if "interactions" in about:
            _say(f"  and {about['interactions']} interactions, which are not in the rows that are printed.")
        for note in about.get("notes", ()):
            _say(f"  {note}")
        if output is Format.table:
            header, rows = score_rows(scored, text)
            _print_rows(header, [(row[0], *("" if v is None else f"{v:.4g}" for v in row[1:])) for row in rows], output)
    _say(f"Tables: {folder / 'scores.json'}; `mpsearch solve` reads it.")


def _print_validation(result: dict[str, Any], folder: Path, output: Format) -> None:
    from mpsearch.pipeline.scorecard import LEGEND, card

    if output is Format.json:
        print(json.dumps(result, indent=1))
    else:
        header, rows = card(result)
        _print_rows(header, list(rows), output)
        _say(LEGEND)
    _say(f"{result['measured']} assignments measured. Everything: {folder / 'validation.json'}; for people: {folder / 'validation.md'}.")


def _tell(result: dict[str, Any], report: Path) -> None:
    best = result["best"]
    for b in best["budgets"]:
        budget, got = Budget.from_json(b), best["measured"].get(b["resource"])
        kept = "predicted" if got is None else "measured"
        value = best["predicted"][budget.resource] if got is None else got
        _say(f"Budget {budget.text}: {kept} {format_quantity(value, budget.resource)} of {format_quantity(budget.limit, budget.resource)}.")
    artifact, metrics = best["artifact"], best["metrics"]
    _say(f"Chosen: {best['label']} ({best['reason']}); the proxy's optimum is {best['proxy']['status']} ({best['proxy']['found_by']}).")
    _say(f"Packed checkpoint: {artifact['packed']}, {format_bytes(artifact['size_bytes'])}; open it with mpsearch.load.")
    if "onnx" in artifact:
        units = f"8-bit containers, {format_bytes(artifact['onnx_bytes'])}"
        _say(
            f"ONNX: {artifact['onnx']} ({units}); its top class is the checkpoint's on {artifact['onnx_agreement']:.2%} of {metrics['images']} images.",
        )
    _say(f"Not quantised: {format_bytes(sum(result['not_quantized'].values()))} in {len(result['not_quantized'])} tensors, named in {report}.")
    _say(f"Report: {report}")


def main() -> None:
    """Entry point: errors become one line and an exit code."""
    try:
        code = app(standalone_mode=False)
        if isinstance(code, int) and code:  # typer returns the code of an interruption that it has caught
            sys.exit(code)
    except MpsearchError as error:
        talk.print(f"Error: {error}", style="bold red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # click's usage errors know how to show themselves
            error.show()
            sys.exit(error.exit_code)
        raise


__all__ = ["app", "main"]
