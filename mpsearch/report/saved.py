"""`Saved`: what a finished study left on disk, read and checked for belonging together."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpsearch.errors import StudyError, UserError
from mpsearch.problem import Budget, Problem

SCHEMA = 1


@dataclass(frozen=True)
class Saved:
    """A finished study.

    Args:
        path: Its folder.
        problem: Layers, candidates and tables.
        results: `results.json`.
        study: `study.json`: settings, versions, hashes, device.
        front: `front.json`: points of the exact front, measured trials, and what the front is of.
        budgets: Absolute limits.
        manifest: `artifact/artifact.json`: what the files of the artifact read; empty where they were
        removed.
    """

    path: Path
    problem: Problem
    results: dict[str, Any]
    study: dict[str, Any]
    front: dict[str, Any]
    budgets: tuple[Budget, ...]
    manifest: dict[str, Any]

    @property
    def best(self) -> dict[str, Any]:
        """The chosen assignment with its costs and metrics."""
        return self.results["best"]  # type: ignore[no-any-return]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of the results table, the float model first."""
        return self.results["rows"]  # type: ignore[no-any-return]

    @property
    def whole(self) -> dict[str, Any]:
        """The row of the float model."""
        return self.rows[0]

    @property
    def chosen(self) -> dict[str, Any]:
        """The row of the choice."""
        return next(row for row in self.rows if row["label"] == self.best["label"])

    @property
    def model(self) -> str:
        """What the model is called by people: timm's name, the function of a factory, the file of a
        program.
        """
        name = self.study["config"]["model"]
        if name is None:
            return "ResNet34 on scikit-learn's digits"
        return Path(name).stem if name.endswith(".pt2") else str(name).rpartition(":")[2]

    @property
    def folder(self) -> str:
        """The study's folder as it was typed, from where the run was started; as it is named now, where it
        was moved.
        """
        typed = str(self.results.get("study", self.path))
        return typed if Path(typed).name == self.path.name else str(self.path)

    @property
    def target(self) -> str:
        """The target with its options."""
        return str(self.study["config"]["target"])

    @property
    def took_s(self) -> float | None:
        """Seconds that the run took; None of studies that do not say."""
        took = self.results.get("plan", {}).get("took_s")
        return None if took is None else float(took)

    @property
    def measure(self) -> str:
        """What the key `kl` of metrics holds: the damage of the study's task."""
        return str(self.results.get("measure", "KL"))  # studies of before tasks had names hold no other

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of what else the task measures."""
        return tuple(self.rows[0]["searched"]["metrics"].get("scores", {}))

    @property
    def call(self) -> str:
        """` of 8 images` where that many are in a call that was timed; nothing where it is one."""
        batch = int(self.results.get("batch", 1))
        return "" if batch == 1 else f" of {batch} images"

    @property
    def metric(self) -> str | None:
        """Name of the user's metric; None where there is none."""
        told = self.results.get("metric")
        return None if told is None else str(told["name"])

    @property
    def resource(self) -> str:
        """What the front is over: `size_bytes` or `latency_us`."""
        return str(self.front.get("resource", "size_bytes"))

    @property
    def latencies(self) -> str | None:
        """Where latencies are from that were not measured here."""
        return self.results.get("latencies")

    @property
    def file(self) -> str:
        """Name of the file that budgets of bytes limit."""
        return Path(self.best["artifact"]["file"]).name

    @property
    def checkpoint_beside(self) -> bool:
        """Whether that is another file than the packed checkpoint."""
        return bool(self.best["artifact"]["file"] != self.best["artifact"]["packed"])

    @property
    def timed(self) -> bool:
        """Whether latency was measured, here or elsewhere."""
        return self.latencies is not None or any("latency_us" in row["searched"] for row in self.rows)


def read_saved(path: Path) -> Saved:
    """Read a study's files.

    Raises:
        StudyError: A file is missing or damaged, or the files are of different runs.
    """
    if not path.is_dir():
        raise StudyError(
            f"There is no study in {path}. Name a folder that `mpsearch run` made, such as studies/NAME."
        )
    study = _read(path, "study.json", ("schema", "config"))
    if study["schema"] != SCHEMA:
        raise StudyError(
            f"{path} has schema {study['schema']!r}; this version of mpsearch reads {SCHEMA}. Start a "
            "new study."
        )
    results = _read(
        path,
        "results.json",
        ("rows", "best", "not_quantized", "header_bytes", "unused", "float_in_graph", "blocks"),
    )
    best = _read(
        path,
        "best.json",
        ("label", "indices", "budgets", "predicted", "measured", "metrics", "proxy", "artifact"),
    )
    front = _read(path, "front.json", ("objective", "exact", "points_in_all", "points", "measured"))
    held = path / "artifact" / "artifact.json"
    manifest = _read(held.parent, held.name, ("data_config", "source")) if held.is_file() else {}
    try:
        problem = Problem.from_json(_read(path, "problem.json", ("layers", "candidates")))
        budgets = tuple(Budget.from_json(b) for b in best["budgets"])
        asked = [str(text).strip() for text in study["config"]["budgets"]]
    except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path, error) from None
    if (
        best != results["best"]
        or [b.text for b in budgets] != asked
        or not {"versions", "hashes", "splits"} <= set(study)
    ):
        raise StudyError(
            f"The run in {path} is not finished: its settings and its results are not of the same run. "
            f"Run: mpsearch run --resume {path}"
        )
    return Saved(path, problem, results, study, front, budgets, manifest)


def damaged(path: Path, error: Exception, name: str = "") -> StudyError:
    """The error for files of a study's folder that do not hold what a study has."""
    return StudyError(
        f"The saved results in {path / name} are damaged ({type(error).__name__}: {error}). Write them "
        f"again: mpsearch run --resume {path}"
    )


def _read(path: Path, name: str, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        data = json.loads((path / name).read_text())
    except FileNotFoundError:
        raise StudyError(
            f"{path} has no {name}: the run is not finished. Run: mpsearch run --resume {path}"
        ) from None
    except (ValueError, OSError) as error:
        raise damaged(path, error, name) from None
    if not isinstance(data, dict):
        raise damaged(path, TypeError(f"{type(data).__name__} where an object should be"), name)
    missing = [key for key in keys if key not in data]
    if missing:
        raise damaged(path, KeyError(", ".join(missing)), name)
    return data
