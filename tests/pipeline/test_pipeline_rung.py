"""Finalists that are clearly worse in closed form do not learn; those that learn go on from it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mpsearch.pipeline import run
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.steps import reconstruction
from mpsearch.pipeline.steps.rung import worth_finishing, worth_learning

LOSSES = {
    (0,): torch.tensor([1.0, 1.1, 0.9, 1.0]),
    (1,): torch.tensor([1.4, 0.5, 1.2, 0.8]),  # level with the first: better by less than chance
    (2,): torch.tensor([2.0, 2.2, 1.9, 2.1]),
}
LABELS = {"exact optimum": (2,), "uniform": (0,), "best of the study": (1,)}


class Told(Silent):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def shop(progress, method="qdrop", time_limit=None):
    settings = SimpleNamespace(method=method, steps=20, time_limit=time_limit)
    evaluation = SimpleNamespace(search_losses=LOSSES.__getitem__)
    return SimpleNamespace(
        config=settings,
        evaluation=evaluation,
        progress=progress,
        reconstructed=lambda assignment, label, steps: assignment,
    )


def ahead(workshop, asked_for=None):
    problem = SimpleNamespace(assignment=lambda indices: indices)
    return worth_learning(
        problem, LABELS, list(LABELS.values()), SimpleNamespace(asked_for=asked_for), workshop
    )


def test_what_is_clearly_worse_in_closed_form_is_left_behind_and_named():
    told = Told()
    assert ahead(shop(told)) == [(1,), (0,)]
    assert told.said == [
        "In closed form best of the study is clearly better on the search images than exact optimum, which "
        "does not learn."
    ]


@pytest.mark.parametrize(
    "all_go_on",
    [{"method": "gptq"}, {"method": "qdrop:start=nearest"}, {"time_limit": "2min"}],
    ids=["closed", "not from the closed form", "time limit"],
)
def test_otherwise_all_are_finished_as_they_come(all_go_on):
    told = Told()
    assert ahead(shop(told, **all_go_on)) == list(LABELS.values())
    assert ahead(shop(told), asked_for="--assign") == list(LABELS.values())
    assert not told.said


def finished(ties, rival, **found):
    told = Told()
    workshop = shop(told)
    workshop.config.effort_settings = SimpleNamespace(ties=ties)
    searched = SimpleNamespace(states=lambda indices: indices)
    problem = SimpleNamespace(assignment=lambda indices: indices)
    about = {"rivals": {"best": rival}, "greedy": None, "asked_for": None, **found}
    of = SimpleNamespace(optimum=SimpleNamespace(indices=(2,)), **about)
    order = [(2,), (3,), rival]
    return worth_finishing(problem, order, of, searched, workshop), told.said


def test_of_the_study_what_is_clearly_better_than_the_optimum_is_finished():
    assert finished(False, (0,)) == ([(2,), (3,), (0,)], [])


def test_what_is_better_by_chance_is_not_finished_unless_it_was_asked_for(monkeypatch):
    monkeypatch.setitem(LOSSES, (4,), LOSSES[2,] + torch.tensor([0.3, -0.4, 0.2, -0.2]))
    kept, said = finished(False, (4,))
    assert kept == [(2,), (3,)] and said == [
        "The best of the study is not clearly better than the exact optimum on the search images, and is not "
        "finished."
    ]
    everything = ([(2,), (3,), (4,)], [])
    assert finished(True, (4,)) == finished(False, (4,), asked_for="--assign") == everything
    assert finished(False, (4,), greedy=(4,)) == everything


def test_learning_goes_on_from_the_codes_of_the_closed_form(settings, tmp_path, monkeypatch):
    calls, real = [], reconstruction.reconstruct

    def spy(module, blocks, states, inputs, config, *, known, on_block):
        calls.append((config.iterations, sorted(known)))
        return real(module, blocks, states, inputs, config, known=known, on_block=on_block)

    monkeypatch.setattr(reconstruction, "reconstruct", spy)
    config = settings(budgets=("5bits",), trials=2, polish=0, method="qdrop", iterations=2)
    result = run(config, Study(tmp_path / "a"))
    closed = [known for steps, known in calls if steps == 0]
    learned = [known for steps, known in calls if steps == 2]
    assert len(closed) >= 2 and not any(closed)
    assert learned and all(known == [0] for known in learned)
    monkeypatch.undo()
    alone = replace(config, time_limit="10min")  # nothing is rounded beforehand
    other = run(alone, Study(tmp_path / "b"))
    same = {row["label"]: row.get("reconstructed", {}).get("search_kl") for row in other["rows"]}
    for row in result["rows"]:
        if "reconstructed" in row:
            assert row["reconstructed"]["search_kl"] == same[row["label"]]
