"""Step 2: the table of what each candidate takes on this device, and what it lacks, measured now."""

from __future__ import annotations

from pathlib import Path

from mpsearch.errors import OptionError, TableError
from mpsearch.hardware import Backend, LatencyTable, profile
from mpsearch.hardware.profile import missing_cells
from mpsearch.hardware.table import require_writable
from mpsearch.pipeline.config import RunConfig, limits
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.energy import require_counter
from mpsearch.pipeline.steps.engines import given_table
from mpsearch.problem import FLOAT, Problem

MIXED_RUNS = 24
"""Whole-model runs that a latency budget is predicted from; without one the uniform models are enough."""


def latency_table(
    problem: Problem, config: RunConfig, progress: Progress, at_most: int | None = None
) -> tuple[LatencyTable, Path]:
    """The table that was asked for, or this device's, with what it lacks measured now (at most so many
    rows).
    """
    backend, folder = backend_of(config), Path(config.tables)
    if config.table is not None:
        return _given_table(config, backend), Path(config.table)
    table = LatencyTable.open(folder, backend.device(), backend.name, backend.version, config.threads)
    widths = tuple((*choices, FLOAT) for choices in problem.candidates)
    if at_most is not None and not backend.bench().predicts_rows:
        raise OptionError(
            f"--at-most picks rows by a model of CPUs, and --target {config.target} is a GPU. Leave it "
            "out: every row is measured."
        )
    with progress.task("measure latencies that the table lacks") as advance:
        profile(
            problem.layers,
            widths,
            backend,
            table,
            folder,
            batch=config.batch,
            isolate=True,
            at_most=at_most,
            on_row=lambda done, total, _: advance(done, total),
        )
    return table, folder / table.file_name


CELL_SECONDS, RUN_SECONDS = 0.4, 3.0
"""What a row and a whole model take to measure, about."""


def lacking_seconds(problem: Problem, config: RunConfig) -> float:
    """What it takes, about, to measure what the table lacks for a model; 0 for a table that was given."""
    if not has_backend(config) or config.table is not None or config.deployment.elsewhere:
        return 0.0
    backend, folder = backend_of(config), Path(config.tables)
    table = LatencyTable.open(folder, backend.device(), backend.name, backend.version, config.threads)
    widths = tuple((*choices, FLOAT) for choices in problem.candidates)
    lacking = missing_cells(problem.layers, widths, backend, table, config.batch)
    runs = mixed_runs(config) or 3
    return CELL_SECONDS * len(lacking) + (RUN_SECONDS * runs if lacking else 0.0)


def require_tables(config: RunConfig, *, written: bool = True) -> None:
    """Told before anything is loaded: that the target's device is missing, the table that was asked for
    cannot be used, or the folder of tables is none.

    Args:
        config: Settings.
        written: Whether rows are going to be saved; if so, the folder is made, and it is tried.

    Raises:
        TableError: The latter two.
        UserError: As `Backend.require`.
        BudgetError: A budget limits energy, and the device counts none.
    """
    if not has_backend(config):
        return
    if config.deployment.elsewhere:
        given_table(config)
        return
    backend_of(config).require()
    require_counter(config)
    folder = Path(config.tables)
    blocking = next(
        (place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), None
    )
    if config.table is None and blocking is not None:
        raise TableError(
            f"{blocking} is a file; the latency tables are kept in a folder. Name another with --tables."
        )
    if config.table is not None:
        _given_table(config, backend_of(config))
    elif written:
        require_writable(folder)


def _given_table(config: RunConfig, backend: Backend) -> LatencyTable:
    device = backend.device()
    here = LatencyTable(device, backend.name, backend.version, config.threads)
    return LatencyTable.load(Path(str(config.table)), device, fits=here, allow_estimate=config.allow_estimate)


def has_backend(config: RunConfig) -> bool:
    """Whether the target's units can be timed; `packed` has a size alone."""
    return config.deployment.backend(config.threads) is not None


def backend_of(config: RunConfig) -> Backend:
    """The backend of a target. Raises OptionError where it has none."""
    backend = config.deployment.backend(config.threads)
    if backend is None:
        raise OptionError(
            f"--target {config.target} has no runtime that could be timed. Take another, such as "
            "--target ort-cpu."
        )
    return backend


def timed(config: RunConfig) -> bool:
    """Whether there is a budget on latency or energy, which whole models are measured for."""
    return limits(config, "latency_us", "energy_mj")


def mixed_runs(config: RunConfig) -> int:
    """How many whole-model runs such a budget is predicted from; 0 without one."""
    return MIXED_RUNS if timed(config) else 0
