"""`--assign coding_length`: bits without a budget, materialised and shown beside what a search would give at the
same bytes.
"""

import json
from dataclasses import replace

import pytest

import mpsearch
from mpsearch.cli import app
from mpsearch.errors import BudgetError, OptionError, UnknownNameError
from mpsearch.evaluate import predict
from mpsearch.models import load_model
from mpsearch.objectives.coding_length import CodingLength, cluster_bits
from mpsearch.pipeline import run
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.steps.assigned import clustered
from mpsearch.pipeline.steps.costs import sized_problem
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pipeline.steps.ranges import calibrate_subject
from mpsearch.problem import Candidate
from mpsearch.report import write_report


@pytest.fixture
def assigning(settings):
    """Settings without a budget."""
    return lambda **changes: settings(budgets=(), assign="coding_length", bits=(3, 4, 6), **changes)


def test_a_run_delivers_the_clustered_assignment(assigning, tmp_path):
    config, study = assigning(first_last_bits=8), Study(tmp_path)
    result = run(config, study)
    best = result["best"]
    subject = load_subject(config, Silent())
    calibration = calibrate_subject(subject, config, Silent())
    inner = subject.units[1:-1]
    levels = [CodingLength().level(calibration, unit) for unit in inner]
    bits = dict(zip(inner, cluster_bits(levels, (3, 4, 6)), strict=True))
    assert best["assignment"] == {
        unit: f"W{bits[unit]}A8" if unit in bits else "W8A8" for unit in subject.units
    }
    assert len(set(bits.values())) == 3
    assert best["label"] == "coding length" and best["reason"] == "asked for by --assign coding_length"
    assert best["budgets"] == [] and best["artifact"]["reloaded_bit_for_bit"]
    size = best["predicted"]["size_bytes"]
    assert (study.artifact / "model.safetensors").stat().st_size == size
    rows = {row["label"]: row for row in result["rows"]}
    beside = rows["exact optimum of output_mse"]
    assert beside["predicted"]["size_bytes"] <= size and "reconstructed" in beside
    page = write_report(study.path).read_text()
    assert "with bits by coding_length" in page and "coding length" in page
    loaded = mpsearch.load(study.artifact / "model.safetensors", model=load_model(config.model).module)
    assert predict(loaded, subject.splits.search).isfinite().all()
    assert run(config, study)["best"]["assignment"] == best["assignment"]


def test_ties_share_a_width_and_a_unit_without_it_takes_the_nearest(assigning):
    config = assigning(layer_bits=("body.0=3..4",), a_bits=(4, 8))
    subject = load_subject(config, Silent())
    calibration, problem = calibrate_subject(subject, config, Silent()), sized_problem(subject, config)
    tied = replace(
        problem,
        layers=tuple(
            replace(layer, tie="t" if layer.name in ("body.2", "down.0") else None)
            for layer in problem.layers
        ),
    )
    found = tied.assignment(clustered(tied, calibration, CodingLength()))
    assert found["body.2"] == found["down.0"] and {c.a_bits for c in found.values()} == {8}
    assert found["body.0"] in (Candidate(3, 8), Candidate(4, 8))


def test_what_does_not_go_with_it_is_told_at_once(settings, assigning):
    with pytest.raises(OptionError, match="--budget 5bits is given"):
        settings(assign="coding_length")
    with pytest.raises(UnknownNameError, match="coding_length"):
        settings(assign="kmeans", budgets=())
    with pytest.raises(OptionError, match="reading"):
        settings(budgets=(), assign="coding_length:reading=other")
    with pytest.raises(BudgetError, match="no budget"):
        settings(budgets=())
    with pytest.raises(OptionError, match="--trials is given"):
        app(["run", "--assign", "coding_length", "--trials", "3"], standalone_mode=False)


def test_the_study_reads_its_settings_again(assigning):
    config = assigning()
    data = json.loads(json.dumps(config.to_json()))
    assert type(config).from_json(data) == config
    before = {k: v for k, v in {**data, "budgets": ["5bits"], "a_bits": 8}.items() if k != "assign"}
    assert type(config).from_json(before).assign is None and type(config).from_json(before).a_bits == (8,)
