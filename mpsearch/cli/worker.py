"""`mpsearch worker`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mpsearch.cli._app import command
from mpsearch.cli._options import CalibrationData, ClassMap, Data, Storage
from mpsearch.cli._reading import device_name
from mpsearch.cli._show import ProgressBars, say
from mpsearch.errors import OptionError


@command(
    "mpsearch worker --study default-15MB",
    "mpsearch worker --study default-15MB --storage postgresql://me@host/db",
)
def worker(
    study: Annotated[str, typer.Option(help="Name of the run's study; without --storage, its folder.")],
    storage: Storage = None,
    model: Annotated[
        str | None,
        typer.Option(help="Where the model is on this host, if elsewhere: timm name, or file.py:function."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Where its weights are on this host, if elsewhere.")
    ] = None,
    data: Data = None,
    calibration_data: CalibrationData = None,
    class_map: ClassMap = None,
    device: Annotated[
        str | None,
        typer.Option(
            callback=device_name, help="What computes here; of the run's kind. The run's own without it."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="JSON with model, weights, data, calibration_data or class_map of this host."),
    ] = None,
    wait: Annotated[float, typer.Option(help="Seconds in which the run must have begun to search.")] = 600.0,
) -> None:
    """Measure trials for a run, beside it and beside other workers on any host, until it is finished."""
    if not wait >= 0:
        raise OptionError(f"--wait is {wait}; it must be 0 or more seconds.")
    from mpsearch.pipeline.workers.worker import LOCATIONS, work

    given = {
        "model": model,
        "weights": weights,
        "data": data,
        "calibration_data": calibration_data,
        "class_map": class_map,
        "device": device,
    }
    locations = {**_read(config, LOCATIONS), **{k: v for k, v in given.items() if v is not None}}
    folder = Path(study) if Path(study).is_dir() else Path("studies") / study
    where = storage or str(folder)
    try:
        with ProgressBars().task("measure trials") as advance:
            count = work(
                where,
                folder.name,
                locations,
                ProgressBars(),
                wait_s=wait,
                on_trial=lambda done: advance(done),
            )
    except KeyboardInterrupt:
        say("\nInterrupted. The trial that was being measured is tried again by another process.")
        raise
    say(f"The study {folder.name} is finished. Trials measured here: {count}.")


def _read(path: Path | None, known: tuple[str, ...]) -> dict[str, str]:
    if path is None:
        return {}
    try:
        data = json.loads(path.read_text())
        held = data.get("config", data)  # a study.json has its settings below `config`
        return {k: str(held[k]) for k in known if held.get(k) is not None}
    except (OSError, ValueError, AttributeError) as error:
        raise OptionError(
            f'{path} cannot be read as JSON settings ({error}). Write an object such as {{"data": '
            '"images.npz"}.'
        ) from None
