"""`profile --models` measures the whole models that a run with a latency budget measures, and such a run
finds them.
"""

import pytest

from mpsearch.errors import OptionError
from mpsearch.hardware import ModelRun
from mpsearch.pipeline import profile_model, run
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.steps import latency_model
from mpsearch.pipeline.steps.latency import MIXED_RUNS


class Told(Silent):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.mark.slow
def test_a_run_finds_the_whole_models_of_a_profile(tmp_path, settings, monkeypatch):
    measured = []

    def models(key, wanted, build, bench):
        """Each is built once, and said to take 10 us and 1 us for each unit in float."""
        for kernels in wanted:
            measured.append(kernels)
            built = build(kernels) if len(set(kernels)) == 1 else None
            took = 10.0 + kernels.count("float")
            yield ModelRun(
                key,
                1,
                kernels,
                (took, took),
                0.1,
                1.0,
                "ok" if built is None or built.as_asked else "fallback",
                "cpu",
                "2026-01-01",
            )

    monkeypatch.setattr(latency_model, "measure_models", models)
    given = {
        "target": "ort-cpu",
        "tables": str(tmp_path / "tables"),
        "bits": (8,),
        "trials": 1,
        "polish": 0,
        "iterations": 0,
        "objectives": ("weight_mse",),
    }
    told = Told()
    table, where = profile_model(
        settings(calibration_images=1, search_images=1, evaluation_images=1, **given), told, models=MIXED_RUNS
    )
    assert len(measured) == len(set(measured)) == len(table.models) > 2 and where.is_file()
    assert "Latency of mixed assignments is predicted" in told.lines[-1]
    count = len(measured)
    run(settings(**given, budgets=("1000ms",), allow_estimate=True), Study(tmp_path / "study"))
    assert len(measured) == count


def test_whole_models_need_every_row(settings):
    with pytest.raises(OptionError, match="--models and --at-most"):
        profile_model(settings(target="ort-cpu"), Silent(), at_most=1, models=4)
