"""The search sees states in closed form, or those that a reconstruction has left, not those of rounding to
nearest.
"""

import json

import pytest
import torch

from mpsearch.errors import OptionError, UnknownNameError
from mpsearch.evaluate import FastEvaluator
from mpsearch.pipeline import run
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.search_states import SearchStates
from mpsearch.pipeline.steps import learned
from mpsearch.pipeline.steps.costs import sized_problem
from mpsearch.pipeline.steps.learned import searched_calibration
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pipeline.steps.ranges import calibrate_subject
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.problem import Assignment, Candidate, Problem


def prepared(config, folder):
    subject = load_subject(config, Silent())
    shop = Workshop(subject, calibrate_subject(subject, config, Silent()), config, Study(folder), Silent())
    return shop, sized_problem(subject, config)


def uniform(shop, bits):
    return Assignment(tuple((layer.name, Candidate(bits, 8)) for layer in shop.subject.graph.layers))


def test_every_candidate_is_learned_and_a_uniform_assignment_is_what_its_reconstruction_gave(
    settings, tmp_path
):
    shop, problem = prepared(
        settings(bits=(3, 5), search_states="reconstructed:steps=10", method="qdrop"), tmp_path
    )
    searched = searched_calibration(problem, shop)
    assert set(searched.learned) == {(unit, Candidate(b, 8)) for unit in shop.subject.units for b in (3, 5)}
    again = shop.reconstructed(uniform(shop, 3), "again", 10)
    states = searched.states(uniform(shop, 3))
    assert all(torch.equal(states[u].weight.codes, again[u].weight.codes) for u in states)
    nearest = shop.calibration.states(uniform(shop, 3))
    assert any(not torch.equal(states[u].weight.codes, nearest[u].weight.codes) for u in states)
    losses = [
        FastEvaluator(shop.subject.module, c, shop.subject.splits.search).measure(uniform(shop, 3))
        for c in (searched, shop.calibration)
    ]
    assert losses[0] == pytest.approx(float(shop.evaluation.search_losses(again).mean()), rel=1e-4)
    assert losses[0] < losses[1]


def test_fixed_ends_are_learned_at_their_own_candidate(settings, tmp_path):
    shop, problem = prepared(
        settings(bits=(3,), first_last_bits=8, search_states="reconstructed:steps=4", method="qdrop"),
        tmp_path,
    )
    states = searched_calibration(problem, shop).learned
    first, last = shop.subject.units[0], shop.subject.units[-1]
    assert {(u, str(c)) for u, c in states} == {
        (u, "W8A8" if u in (first, last) else "W3A8") for u in shop.subject.units
    }


def test_weights_and_inputs_are_learned_apart(settings, tmp_path, monkeypatch):
    shop, problem = prepared(
        settings(bits=(3, 4, 5), a_bits=(4, 6, 8), search_states="reconstructed:steps=4", method="qdrop"),
        tmp_path,
    )
    done, learn = [], Workshop.reconstructed
    monkeypatch.setattr(
        Workshop, "reconstructed", lambda *args: (done.append(args[2].split()[3][:-1]), learn(*args))[1]
    )
    searched = searched_calibration(problem, shop)
    assert done == ["W5A8", "W5A6", "W5A4", "W4A8", "W3A8"], "3 + 3 - 1 for 9 candidates"
    assert len(searched.learned) == 9 * len(shop.subject.units)
    for unit in shop.subject.units:
        composed, weight, read = (searched.state(unit, Candidate(*bits)) for bits in ((3, 4), (3, 8), (5, 4)))
        assert composed.candidate == Candidate(3, 4) and composed.weight is weight.weight
        assert composed.activation is read.activation and composed.activation.bits == 4


def test_states_in_closed_form_are_the_default_and_are_kept_unit_by_unit(settings, tmp_path, monkeypatch):
    shop, problem = prepared(settings(bits=(2, 5)), tmp_path)
    searched = searched_calibration(problem, shop)
    assert set(searched.rounded) == {(unit, b, "channel") for unit in shop.subject.units for b in (2, 5)}
    images = shop.subject.splits.calibration
    losses = [
        FastEvaluator(shop.subject.module, c, images).measure(uniform(shop, 2))
        for c in (searched, shop.calibration)
    ]
    assert losses[0] < losses[1]
    kept = sorted((tmp_path / "steps").glob("codes-*/*.safetensors"))
    assert len(kept) == len(shop.subject.units)
    kept[0].unlink()  # as if the run had ended before it
    asked = []
    real = learned.round_units
    monkeypatch.setattr(learned, "round_units", lambda *given, **rest: real(*_told(asked, given), **rest))
    again = searched_calibration(problem, shop)
    assert len(asked) == 1 and all(
        torch.equal(again.rounded[key], codes) for key, codes in searched.rounded.items()
    )
    assert (
        learned.states_digest(again)
        == learned.states_digest(searched)
        != learned.states_digest(shop.calibration)
    )


def _told(asked, given):
    asked.extend(given[2])
    return given


def test_what_the_search_sees_is_asked_for_by_name(settings, tmp_path):
    shop, problem = prepared(settings(search_states="nearest"), tmp_path)
    assert searched_calibration(problem, shop) is shop.calibration
    assert SearchStates.parse("reconstructed") == SearchStates("reconstructed", 20)
    with pytest.raises(UnknownNameError, match="'gptk'"):
        settings(search_states="gptk")
    for text in ("gptq:steps=3", "reconstructed:steps=0", "reconstructed:step=3"):
        with pytest.raises(OptionError, match="reconstructed:steps=20 with at least 1 step"):
            settings(search_states=text)


def test_biases_are_corrected_unless_it_is_left_out(settings, tmp_path):
    shop, _ = prepared(settings(), tmp_path)
    plain, _ = prepared(settings(bias_correction=False), tmp_path)
    unit, candidate = shop.subject.units[0], Candidate(3, 8)
    assert (
        shop.calibration.state(unit, candidate).bias is not None
        and plain.calibration.state(unit, candidate).bias is None
    )


def test_tables_of_all_states_are_kept_apart(settings, tmp_path):
    names = []
    for states in ("gptq", "nearest", "reconstructed:steps=2"):
        run(settings(search_states=states, method="qdrop", iterations=2), Study(tmp_path / states[:5]))
        names.append({p.name for p in (tmp_path / states[:5] / "steps").glob("score-output_mse*")})
    assert all(names) and len(set.union(*names)) == sum(map(len, names))


@pytest.mark.parametrize(
    "objectives", [("pairwise:images=8,scope=full", "weight_mse"), ("pairwise:images=8,scope=full",)]
)
def test_an_objective_with_interactions_leads_a_run(settings, tmp_path, objectives):
    result = run(settings(objectives=objectives, bits=(3, 4, 8), target="packed"), Study(tmp_path))
    name = objectives[0].partition(":")[0]
    problem = Problem.load(tmp_path / "problem.json")
    assert (
        list(problem.scores) == [text.partition(":")[0] for text in objectives] and problem.interactions[name]
    )
    row = next(row for row in result["rows"] if row["label"] == f"exact optimum of {name}")
    assert result["best"]["proxy"]["objective"] == name and row["fits"]
    front = json.loads((tmp_path / "front.json").read_text())
    assert front["objective"] == list(problem.scores)[-1]
    assert row["indices"] in [trial["indices"] for trial in front["measured"]]
