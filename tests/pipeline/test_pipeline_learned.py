"""The search sees states that a reconstruction has left, not those of rounding to nearest."""

import json

import pytest
import torch

from mpsearch.errors import OptionError
from mpsearch.evaluate import FastEvaluator
from mpsearch.pipeline import run
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.steps.costs import sized_problem
from mpsearch.pipeline.steps.finalists import Workshop
from mpsearch.pipeline.steps.learned import searched_calibration
from mpsearch.pipeline.steps.subject import calibrate_subject, load_subject
from mpsearch.problem import Assignment, Candidate, Problem


def prepared(config, folder):
    subject = load_subject(config, Silent())
    shop = Workshop(subject, calibrate_subject(subject, config, Silent()), config, Study(folder), Silent())
    return shop, sized_problem(subject, config)


def uniform(shop, bits):
    return Assignment(tuple((layer.name, Candidate(bits, 8)) for layer in shop.subject.graph.layers))


def test_every_candidate_is_learned_and_a_uniform_assignment_is_what_its_reconstruction_gave(settings, tmp_path):
    shop, problem = prepared(settings(bits=(3, 5), search_iterations=10), tmp_path)
    searched = searched_calibration(problem, shop)
    assert set(searched.learned) == {(unit, Candidate(b, 8)) for unit in shop.subject.units for b in (3, 5)}
    again = shop.reconstructed(uniform(shop, 3), "again", 10)
    states = searched.states(uniform(shop, 3))
    assert all(torch.equal(states[u].weight.codes, again[u].weight.codes) for u in states)
    nearest = shop.calibration.states(uniform(shop, 3))
    assert any(not torch.equal(states[u].weight.codes, nearest[u].weight.codes) for u in states)
    losses = [FastEvaluator(shop.subject.module, c, shop.subject.splits.search).measure(uniform(shop, 3)) for c in (searched, shop.calibration)]
    assert losses[0] == pytest.approx(float(shop.search_losses(again).mean()), rel=1e-4)
    assert losses[0] < losses[1]


def test_fixed_ends_are_learned_at_their_own_candidate(settings, tmp_path):
    shop, problem = prepared(settings(bits=(3,), first_last_bits=8, search_iterations=4), tmp_path)
    learned = searched_calibration(problem, shop).learned
    first, last = shop.subject.units[0], shop.subject.units[-1]
    assert {(u, str(c)) for u, c in learned} == {(u, "W8A8" if u in (first, last) else "W3A8") for u in shop.subject.units}


def test_no_steps_leave_rounding_to_nearest(settings, tmp_path):
    shop, problem = prepared(settings(search_iterations=0), tmp_path)
    assert searched_calibration(problem, shop) is shop.calibration
    with pytest.raises(OptionError, match="search_iterations is -1; it must be 0 or more"):
        settings(search_iterations=-1)


def test_the_default_is_a_quarter_of_the_steps_and_tables_of_both_kinds_are_kept_apart(settings, tmp_path):
    assert (settings(iterations=20).search_steps, settings(model=None, data=None).search_steps) == (5, 0)
    run(settings(), Study(tmp_path))
    before = set((tmp_path / "steps").glob("score-output_mse*"))
    assert settings().learning and before
    run(settings(search_iterations=0), Study(tmp_path / "other"))
    others = {p.name for p in (tmp_path / "other" / "steps").glob("score-output_mse*")}
    assert others and not others & {p.name for p in before}


@pytest.mark.parametrize("objectives", [("pairwise:images=8,scope=full", "weight_mse"), ("pairwise:images=8,scope=full",)])
def test_an_objective_with_interactions_leads_a_run(settings, tmp_path, objectives):
    result = run(settings(objectives=objectives, bits=(3, 4, 8), target="packed"), Study(tmp_path))
    name = objectives[0].partition(":")[0]
    problem = Problem.load(tmp_path / "problem.json")
    assert list(problem.scores) == [text.partition(":")[0] for text in objectives] and problem.interactions[name]
    row = next(row for row in result["rows"] if row["label"] == f"exact optimum of {name}")
    assert result["best"]["proxy"]["objective"] == name and row["fits"]
    front = json.loads((tmp_path / "front.json").read_text())
    assert front["objective"] == list(problem.scores)[-1]
    assert row["indices"] in [trial["indices"] for trial in front["measured"]]
