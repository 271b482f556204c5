"""`--sampler greedy_mp`: Greedy MP over weights and inputs apart, beside the exact optimum and the study; it goes
on where it was ended.
"""

import itertools
import json

import pytest

from mpsearch.errors import OptionError, UnknownNameError
from mpsearch.evaluate import FastEvaluator
from mpsearch.pipeline import run
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.results import Results
from mpsearch.pipeline.workers.crew import Crew
from mpsearch.problem import Problem
from mpsearch.report import write_report

BUDGETS = ("5bits", "1.2MBOPs")


@pytest.fixture
def asked(monkeypatch):
    """What was measured, in order; with `end` set, the process is ended at that measurement."""

    class Asked(list):
        end = None

    found, measure = Asked(), FastEvaluator.measure

    def counted(self, assignment):
        if found.end == len(found):
            raise KeyboardInterrupt
        found.append(assignment)
        return measure(self, assignment)

    monkeypatch.setattr(FastEvaluator, "measure", counted)
    return found


def test_a_run_by_greedy_mp_lowers_weights_and_inputs_and_is_shown_beside_the_others(
    settings, tmp_path, asked
):
    config = settings(
        sampler="greedy_mp:repairs=4", budgets=BUDGETS, bits=(2, 4, 6, 8), a_bits=(4, 6, 8), trials=3
    )
    whole = Study(tmp_path / "whole")
    result = run(config, whole)
    labels = [row["label"] for row in result["rows"]]
    assert {"Greedy MP", "exact optimum of output_mse"} <= set(labels) and labels[-1].startswith("best ")
    assert {"uniform W8A8", "uniform W6A6", "uniform W4A4"} <= set(labels)
    problem = Problem.load(whole.path / "problem.json")
    front = json.loads((whole.path / "front.json").read_text())["measured"]
    path = [problem.assignment(t["indices"]) for t in front if t["proposed_by"] == "greedy MP"]
    assert [t["number"] for t in front] == list(range(len(front)))
    assert all(str(c) == "W8A8" for c in path[0].values()), "it starts at the top"
    moves = [
        {
            (b[unit].w_bits != a[unit].w_bits, b[unit].a_bits != a[unit].a_bits)
            for unit in a
            if b[unit] != a[unit]
        }
        for a, b in itertools.pairwise(path[:-1])  # the last one may be a repair of many exchanges
    ]
    assert {(True, False)} in moves and {(False, True)} in moves, (
        "weights and inputs are notches of their own"
    )
    assert {(True, True)} not in moves
    row = next(row for row in result["rows"] if row["label"] == "Greedy MP")
    assert row["fits"] and "reconstructed" in row
    assert "Greedy MP" in write_report(whole.path).read_text()
    assert Results.from_json(result).to_json() == result

    once = len(asked)
    asked.clear()
    asked.end = once - 10
    ended = Study(tmp_path / "ended")
    with pytest.raises(KeyboardInterrupt):
        run(config, ended)
    asked.end = None
    assert run(config, ended)["rows"] == result["rows"]
    assert len(asked) == once, "nothing is measured twice"


def test_what_greedy_mp_cannot_do_is_told_at_once(settings, tmp_path):
    with pytest.raises(UnknownNameError, match="greedy_mp"):
        settings(sampler="greedy")
    with pytest.raises(OptionError, match="no option 'step=2'"):
        settings(sampler="greedy_mp:step=2")
    with pytest.raises(UnknownNameError, match="size_bytes"):
        settings(sampler="greedy_mp:resource=size")
    with pytest.raises(OptionError, match="in the run's own process"):
        run(settings(sampler="greedy_mp"), Study(tmp_path), crew=Crew(None, 2))
