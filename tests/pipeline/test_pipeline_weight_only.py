"""Weights alone are quantised where the inputs are given 16 bits: searched, weighed, written and read back as
any other candidate.
"""

from pathlib import Path

import pytest
import torch

import mpsearch
from mpsearch.errors import OptionError
from mpsearch.evaluate import predict
from mpsearch.models import load_model
from mpsearch.pipeline import run
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.jobs.export import Deployer, export_points
from mpsearch.pipeline.jobs.imported import open_workshop
from mpsearch.pipeline.jobs.points import points_of
from mpsearch.pipeline.progress import Silent


def test_a_run_on_weights_alone_keeps_its_promise(tmp_path, settings, monkeypatch):
    config = settings(
        a_bits=16,
        bits=(2, 4, 8),
        fix=("head=W8A8",),
        method="qdrop",
        iterations=4,
        search_states="reconstructed:steps=2",
        trials=4,
        objectives=("output_mse:images=8", "kl:images=4"),
    )
    study = Study(tmp_path / "study")
    result = run(config, study)
    best = result["best"]
    assert {a[-3:] for name, a in best["assignment"].items() if name != "head"} == {"A16"} and best[
        "assignment"
    ]["head"] == "W8A8"
    packed = Path(best["artifact"]["packed"])
    assert packed.stat().st_size == best["predicted"]["size_bytes"] == best["measured"]["size_bytes"]
    assert best["artifact"]["reloaded_bit_for_bit"]
    assert "uniform W4A16 but fixed layers" in [row["label"] for row in result["rows"]]
    workshop = open_workshop(config, study, Silent())
    loaded = mpsearch.load(packed, model=load_model(config.model).module)
    assert torch.isfinite(predict(loaded, workshop.subject.splits.evaluation)).all()

    def here(artifact, inputs, *, model=None, threads=1):
        with torch.no_grad():
            return artifact.target.load(
                artifact.folder, torch.get_num_threads(), load_model(config.model).module
            )(inputs).float()

    monkeypatch.setattr("mpsearch.pipeline.jobs.export.run_apart", here)
    points = points_of(workshop, ["best", "W4A16"], reconstruct=False)
    rows, failed = export_points(
        Deployer(workshop, tmp_path / "export"), points, ["packed", "packed:integer_arithmetic=true"]
    )
    assert not failed
    for row in rows:
        assert row["predicted_bytes"] + 0 == row["artifact_bytes"] and row["runtime"][
            "cosine_least"
        ] == pytest.approx(1, abs=1e-4)


def test_other_input_bits_are_refused(settings):
    with pytest.raises(OptionError, match="or 16 for inputs that stay float"):
        settings(a_bits=9)
