"""`score` and `score --validate` on a small net: tables, what is kept, who is trusted, and what an
interruption costs.
"""

import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import mpsearch.pipeline.steps.scores as scores
from mpsearch.cli import main
from mpsearch.errors import InfeasibleError, OptionError, StudyError, UnknownNameError
from mpsearch.evaluate import TASKS, FastEvaluator
from mpsearch.objectives import OBJECTIVES, ScoringContext
from mpsearch.objectives.interacting import INTERACTING, couple
from mpsearch.pipeline import run
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.jobs.score import claim, score_model
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.validation.agreement import agreement, regret, regret_with_error
from mpsearch.pipeline.validation.losses import LossBook
from mpsearch.pipeline.validation.sampling import nudged, spread_assignments
from mpsearch.pipeline.validation.scorecard import card, markdown
from mpsearch.pipeline.validation.validate import Effort, validate_objectives
from mpsearch.problem import Assignment, Budget, Candidate, Layer, Problem
from mpsearch.solvers import solve
from mpsearch.solvers.tables.groups import SuperLayers
from mpsearch.study.losses import LossFile

THREE = ("weight_mse", "coding_length", "output_mse:images=8")
FEW = Effort(samples=14, budgets="3", local_steps=6)


def _never(*_, **__):
    raise AssertionError("computed again")


def _problem(layers=12, tied=()):
    """Bits 2 to 8 on layers of log-normal sizes, in mixed order of candidates."""
    rng = np.random.default_rng(0)
    numel = np.exp(rng.normal(8, 1, layers)).astype(int)
    candidates = tuple(Candidate(b, 8) for b in (5, 2, 8, 3, 7, 4, 6))
    found = [
        Layer(f"l{i}", "linear", (1, int(n)), ((1, 1),), (1, 1), 1, "b", tie="t" if i in tied else None)
        for i, n in enumerate(numel)
    ]
    size = tuple(tuple(float(n * c.w_bits) for c in candidates) for n in numel)
    return Problem(
        tuple(found), (candidates,) * layers, costs={"size_bytes": size}, constants={"size_bytes": 100.0}
    )


class TestSampling:
    def test_one_assignment_in_each_part_of_the_range_of_sizes(self):
        problem = _problem(40)
        sizes = [problem.cost(i).size_bytes for i in spread_assignments(problem, 20, 0)]
        low, high = (100.0 + sum(pick(row) for row in problem.costs["size_bytes"]) for pick in (min, max))
        parts = [(size - low) / (high - low) * 20 for size in sizes]
        largest = max(row[2] - row[0] for row in problem.costs["size_bytes"]) / 3 / (high - low) * 20
        assert len(parts) == 20 and all(
            k - largest <= part <= k + 1 + largest for k, part in enumerate(parts)
        )

    def test_bits_vary_within_an_assignment_and_the_seed_decides(self):
        problem = _problem()
        found = spread_assignments(problem, 15, 3)
        assert found == spread_assignments(problem, 15, 3) != spread_assignments(problem, 15, 4)
        assert all(len(set(indices)) >= 3 for indices in found[3:12])

    def test_ties_are_kept(self):
        problem = _problem(tied=(1, 4, 7))
        for indices in spread_assignments(problem, 15, 0):
            assert indices[1] == indices[4] == indices[7]

    def test_an_exchange_keeps_the_limit_and_raises_one(self):
        problem, rng = _problem(), np.random.default_rng(1)
        layers = SuperLayers.of([7] * 12, problem.ties)
        start = problem.uniform(Candidate(5, 8))
        limit = problem.cost(start).size_bytes
        for _ in range(20):
            found = nudged(problem, layers, start, limit, rng)
            changes = [problem.candidates[i][c].w_bits - 5 for i, c in enumerate(found)]
            assert changes.count(1) == 1 and min(changes) < 0 and max(changes) == 1
            assert problem.cost(found).size_bytes <= limit
        assert nudged(problem, layers, problem.uniform(Candidate(8, 8)), math.inf, rng) is None
        assert (
            nudged(
                problem,
                layers,
                problem.uniform(Candidate(2, 8)),
                problem.cost(problem.uniform(Candidate(2, 8))).size_bytes,
                rng,
            )
            is None
        )


class TestAgreement:
    def test_order_alone_counts(self):
        found = agreement([1, 10, 11, 50], [0.1, 0.2, 4.0, 4.1], [9, 5, 7, 1])
        assert (found.count, found.spearman, found.kendall) == (4, pytest.approx(1), pytest.approx(1))
        assert agreement([4, 3, 2, 1], [1, 2, 3, 4], [1, 3, 2, 5]).spearman == pytest.approx(-1)

    def test_the_partial_correlation_is_that_of_the_residuals_of_ranks(self):
        rng = np.random.default_rng(0)
        size = rng.random(50)
        predicted, measured = -size + 0.5 * rng.random(50), -size + 0.5 * rng.random(50)
        ranks = [stats.rankdata(values) for values in (predicted, measured, size)]
        left = [r - np.polyval(np.polyfit(ranks[2], r, 1), ranks[2]) for r in ranks[:2]]
        found = agreement(predicted.tolist(), measured.tolist(), size.tolist())
        assert found.at_equal_size == pytest.approx(np.corrcoef(*left)[0, 1])
        assert abs(found.at_equal_size) < 0.4 < found.spearman

    def test_an_infinite_loss_is_the_worst(self):
        assert agreement([1, 2, 3], [0.1, 0.2, math.inf], [3, 2, 1]).spearman == pytest.approx(1)

    @pytest.mark.parametrize(
        ("predicted", "measured"), [([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [2, 2, 2])]
    )
    def test_nothing_is_said_where_nothing_can_be(self, predicted, measured):
        assert agreement(predicted, measured, measured).spearman is None

    def test_regret(self):
        assert [regret(0.3, 0.2), regret(0.2, 0.2), regret(0.0, 0.0)] == [pytest.approx(0.5), 0.0, 0.0]
        assert regret(math.inf, 0.2) == regret(0.1, 0.0) == regret(math.inf, math.inf) == math.inf

    def test_the_error_of_a_regret_is_that_of_many_draws(self):
        rng = np.random.default_rng(0)
        found, errors = [], []
        for _ in range(2000):
            best = rng.exponential(1.0, 200)
            one, error = regret_with_error(1.2 * best + rng.exponential(0.1, 200), best)  # 1.3 on average
            found.append(one)
            errors.append(error)
        assert np.mean(found) == pytest.approx(0.3, abs=0.002)
        assert np.mean(errors) == pytest.approx(np.std(found), rel=0.05)

    def test_regrets_that_have_no_error(self):
        one, other = np.array([0.1, 0.3]), np.array([0.3, 0.1])
        assert regret_with_error(one, other) == regret_with_error(0 * one, 0 * one) == (0.0, 0.0)
        assert (
            regret_with_error(one, 0 * one)
            == regret_with_error(np.array([1.0, math.inf]), one)
            == (math.inf, 0.0)
        )


class TestEffort:
    @pytest.mark.parametrize(
        ("text", "bits", "levels"),
        [
            ("5", range(2, 9), [7, 6, 5, 4, 3]),
            ("1", (4, 8), [6]),
            ("3", (4, 8), [7, 6, 5]),
            ("4,7.5,4", (2, 8), [7.5, 4]),
            ("4,", (2, 8), [4]),
        ],
    )
    def test_levels(self, text, bits, levels):
        if text == "4,":
            with pytest.raises(OptionError, match="are no budgets"):
                Effort(budgets=text).levels(bits)
        else:
            assert Effort(budgets=text).levels(bits) == pytest.approx(levels)

    @pytest.mark.parametrize("text", ["", "0", "-1", "many", "5,x", "5,0.5", "4,nan"])
    def test_other_texts_are_refused(self, text):
        with pytest.raises(OptionError, match=r"are no budgets\. Write how many"):
            Effort(budgets=text).levels(range(2, 9))

    def test_too_few_samples_are_refused(self):
        with pytest.raises(OptionError, match="2 samples"):
            Effort(samples=2)


def test_a_loss_is_measured_once_and_kept(tmp_path):
    calls = []
    book = LossBook(
        LossFile(tmp_path / "losses.jsonl", ["x"]),
        lambda i: (calls.append(i), math.nan if i == (1,) else 0.25)[1],
    )
    assert [book.loss((0,), "a"), book.loss((1,), "b"), book.loss((0,), "c")] == [0.25, math.inf, 0.25]
    assert calls == [(0,), (1,)] and book.asked[(0,)].found_by == "a" and book.seconds_for_each >= 0
    again = LossBook(LossFile(tmp_path / "losses.jsonl", ["x"]), _never)
    assert again.asked == {} and again.seconds_for_each is None
    assert [again.loss((1,), "d"), again.loss((0,), "e")] == [math.inf, 0.25]


class TestScore:
    def test_the_tables_are_those_of_the_objectives_and_solve_reads_them(self, settings, tmp_path):
        study = Study(tmp_path / "study")
        scored = score_model(settings(objectives=(*THREE, "output_mse:images=4")), study)
        assert list(scored.problem.scores) == list(scored.about) == [*THREE, "output_mse:images=4"]
        assert scored.problem.scores["output_mse:images=8"] != scored.problem.scores["output_mse:images=4"]
        with_one = score_model(settings(objectives=("weight_mse",)), Study(tmp_path / "one")).problem.scores[
            "weight_mse"
        ]
        assert scored.problem.scores["weight_mse"] == with_one
        written = json.loads((study.path / "scores.json").read_text())
        assert written["objectives"]["output_mse:images=8"].keys() >= {"violations", "seconds", "unit"}
        assert Problem.load(study.path / "scores.json") == scored.problem

    def test_a_table_is_computed_once(self, settings, tmp_path, monkeypatch):
        study = Study(tmp_path / "study")
        first = score_model(settings(objectives=("weight_mse", "coding_length")), study)
        real, calls = scores.score, []
        monkeypatch.setattr(
            scores,
            "score",
            lambda objective, context: (calls.append(objective.name), real(objective, context))[1],
        )
        second = score_model(settings(objectives=THREE), study)
        assert calls == ["output_mse"]
        assert second.problem.scores["coding_length"] == first.problem.scores["coding_length"]

    def test_the_folder_of_a_run_lends_its_tables_and_stays_a_run(self, settings, tmp_path, monkeypatch):
        config, study = (
            settings(trials=2, iterations=0, objectives=("output_mse:images=8", "weight_mse")),
            Study(tmp_path / "study"),
        )
        run(config, study)
        held = {
            name: (study.path / name).read_bytes() for name in ("study.json", "problem.json", "best.json")
        }
        monkeypatch.setattr(scores, "score", _never)
        scored = score_model(settings(objectives=("weight_mse", "output_mse:images=8")), study)
        assert (
            scored.problem.scores["weight_mse"]
            == Problem.load(study.path / "problem.json").scores["weight_mse"]
        )
        assert {name: (study.path / name).read_bytes() for name in held} == held

    @pytest.mark.parametrize(
        "change", [{"seed": 1}, {"bits": (4, 8)}, {"calibration_images": 17}, {"a_bits": 6}]
    )
    def test_a_folder_of_something_else_is_refused(self, settings, tmp_path, change):
        study = Study(tmp_path / "study")
        claim(study, settings())
        study.cached("step", [], int)
        claim(study, settings(objectives=("weight_mse",), budgets=("3bits",), trials=9))
        with pytest.raises(StudyError, match=rf"other settings \({next(iter(change))}\).*--name"):
            claim(study, settings(**change))

    def test_interactions_come_with_their_rows_and_are_kept(self, settings, tmp_path, monkeypatch):
        study, text = Study(tmp_path / "study"), "pairwise:images=8,scope=full"
        config = settings(objectives=("weight_mse", text), bits=(2, 4, 8))
        scored = score_model(config, study)
        problem = scored.problem
        images = scored.subject.splits.calibration
        direct = couple(
            INTERACTING.create(text),
            ScoringContext(
                scored.subject.module, problem.layers, problem.candidates, scored.calibration, images
            ),
        )
        assert problem.scores[text] == direct.rows and problem.interactions == {text: direct.interactions}
        assert scored.about[text]["interactions"] == len(direct.interactions) > 0
        assert Problem.load(study.path / "scores.json") == problem
        monkeypatch.setattr(scores, "couple", _never)
        assert score_model(config, study).problem == problem

    def test_interactions_are_those_of_the_task_and_kept_apart_by_it(self, settings, tmp_path):
        text, found = "pairwise:images=8,scope=full", {}
        for task in ("classification", "embedding"):
            config = settings(objectives=(text,), bits=(2, 4, 8), task=task)
            scored = score_model(config, Study(tmp_path / task))
            context = ScoringContext(
                scored.subject.module,
                scored.problem.layers,
                scored.problem.candidates,
                scored.calibration,
                scored.subject.splits.calibration,
                task=TASKS.create(task),
            )
            assert scored.problem.scores[text] == couple(INTERACTING.create(text), context).rows
            found[task] = {path.name for path in (tmp_path / task / "steps").glob("score-pairwise-*")}
        assert (
            all(len(names) == 1 for names in found.values())
            and not found["classification"] & found["embedding"]
        )

    @pytest.mark.parametrize("text", ["pairwise:images=8,scope=full", "output_mse:images=8"])
    def test_symmetric_inputs_and_another_revision_have_tables_of_their_own(
        self, settings, tmp_path, monkeypatch, text
    ):
        config, study = settings(objectives=(text,), bits=(2, 8)), Study(tmp_path)
        scored = score_model(config, study)
        assert len(list((tmp_path / "steps").glob("score-*"))) == 1
        calibration = replace(scored.calibration, symmetric_inputs=True)
        scores.add_scores(scored.problem, scored.subject, calibration, config, study, Silent())
        assert len(list((tmp_path / "steps").glob("score-*"))) == 2
        monkeypatch.setattr(
            type((INTERACTING if scores.interacts(text) else OBJECTIVES).create(text)), "revision", 99
        )
        scores.add_scores(scored.problem, scored.subject, calibration, config, study, Silent())
        assert len(list((tmp_path / "steps").glob("score-*"))) == 3

    def test_an_unknown_objective_is_told_before_anything_is_loaded(self, settings, tmp_path):
        with pytest.raises(UnknownNameError, match="hesian"):
            score_model(settings(objectives=("hesian",), model="no.py:net"), Study(tmp_path / "study"))
        with pytest.raises(OptionError, match="no option 'sharp=1'"):
            score_model(
                settings(objectives=("pairwise:sharp=1",), model="no.py:net"), Study(tmp_path / "study")
            )


@pytest.fixture(scope="session")
def validated(place):
    """A finished validation, shared by the tests that only read it."""
    return {"study": Study(place / "validated")}


@pytest.fixture
def result(validated, settings):
    if "result" not in validated:
        validated["result"] = validate_objectives(settings(objectives=THREE), validated["study"], FEW)
    return validated["result"]


def _lasting(result):
    """All of a result that must not depend on the clock or on what befell the run."""
    found = json.loads(json.dumps(result))
    found.pop("seconds_for_each_loss")
    for objective in found["objectives"]:
        objective.pop("seconds")
    return found


class TestValidate:
    def test_the_files_are_written(self, result, validated):
        folder = validated["study"].path
        assert json.loads((folder / "validation.json").read_text()) == json.loads(json.dumps(result))
        assert (folder / "validation.md").read_text() == markdown(result)
        assert {p.name.partition("-")[0] for p in (folder / "steps").iterdir()} == {
            "blocks",
            "codes",
            "finished",
            "losses",
            "score",
            "unseen",
        }

    def test_losses_regrets_and_ranks_are_what_they_are_said_to_be(self, result, settings, tmp_path):
        scored = score_model(settings(objectives=THREE), Study(tmp_path / "other"))
        problem, images = scored.problem, scored.subject.splits.search
        truth = FastEvaluator(scored.subject.module, scored.calibration, images)
        losses = [sample["loss"] for sample in result["samples"]]
        assert losses == pytest.approx(
            [truth.measure(problem.assignment(s["indices"])) for s in result["samples"]], rel=1e-6, abs=1e-12
        )
        for objective in result["objectives"]:
            predicted = [problem.score(objective["objective"], s["indices"]) for s in result["samples"]]
            assert objective["overall"]["spearman"] == pytest.approx(
                stats.spearmanr(predicted, losses).statistic
            )
            assert objective["overall"]["kendall"] == pytest.approx(
                stats.kendalltau(predicted, losses).statistic
            )
            low = [k for k, s in enumerate(result["samples"]) if s["bits"] <= 4]
            assert objective["low_bits"]["count"] == len(low) >= 3
            assert objective["low_bits"]["spearman"] == pytest.approx(
                stats.spearmanr([predicted[k] for k in low], [losses[k] for k in low]).statistic
            )
            for optimum, budget in zip(objective["optima"], result["budgets"], strict=True):
                at = problem.indices(
                    type(problem.assignment(result["samples"][0]["indices"])).from_json(optimum["assignment"])
                )
                assert (
                    problem.cost(at).size_bytes == optimum["size_bytes"] <= budget["limit_bytes"]
                    and optimum["status"] == "optimal"
                )
                assert optimum["loss"] == pytest.approx(truth.measure(problem.assignment(at)), rel=1e-6)
                assert optimum["regret"] == pytest.approx(optimum["loss"] / budget["best_loss"] - 1, abs=1e-9)
                assert optimum["regret"] >= 0

    def test_the_best_known_is_below_everything_that_fits(self, result):
        assert [budget["bits"] for budget in result["budgets"]] == pytest.approx([6.5, 5, 3.5])
        for budget in result["budgets"]:
            fits = [s["loss"] for s in result["samples"] if s["size_bytes"] <= budget["limit_bytes"]]
            assert budget["best_loss"] <= min([*fits, budget["uniform_loss"]])
        best = [budget["best_loss"] for budget in result["budgets"]]
        assert best == sorted(best), "fewer bytes cannot be better than more"

    def test_unseen_regrets_are_those_on_the_evaluation_images(self, result, settings, tmp_path):
        scored = score_model(settings(objectives=THREE), Study(tmp_path / "other"))
        images = scored.subject.splits.evaluation
        assert result["images"]["unseen"] == len(images)
        truth = FastEvaluator(scored.subject.module, scored.calibration, images)
        for objective in result["objectives"]:
            for optimum, budget in zip(objective["optima"], result["budgets"], strict=True):
                losses, best = (
                    truth.losses(
                        Assignment.from_json(held["assignment" if "assignment" in held else "best"])
                    ).numpy()
                    for held in (optimum, budget)
                )
                assert optimum["unseen"]["loss"] == pytest.approx(losses.mean(), rel=1e-6)
                assert optimum["unseen"]["regret"] == pytest.approx(losses.mean() / best.mean() - 1, abs=1e-6)
                assert optimum["unseen"]["error"] == pytest.approx(
                    regret_with_error(losses, best)[1], rel=1e-4, abs=1e-9
                )
            assert objective["worst_unseen"] == max(o["unseen"]["regret"] for o in objective["optima"][:2])

    def test_fewer_unseen_images_can_be_asked_for(self, settings, tmp_path):
        config = settings(objectives=("weight_mse",))
        assert (
            validate_objectives(config, Study(tmp_path / "study"), replace(FEW, unseen_images=5))["images"][
                "unseen"
            ]
            == 5
        )
        with pytest.raises(OptionError, match="2 or more"):
            replace(FEW, unseen_images=1)

    def test_one_unseen_image_has_regrets_without_errors_and_no_verdict(self, settings, tmp_path):
        config = settings(objectives=("weight_mse",), evaluation_images=1)
        result = validate_objectives(config, Study(tmp_path / "study"), FEW)
        (objective,) = result["objectives"]
        moved = [o["unseen"] for o in objective["optima"] if o["unseen"]["regret"] != 0]
        assert result["images"]["unseen"] == 1 and moved and all(u["error"] is None for u in moved)
        assert f"| {moved[0]['regret']:+.1%} |" in markdown(result)
        assert "no objective's exact optimum" in markdown(result)

    def test_the_verdict_is_by_the_unseen_images_and_their_errors(self, result):
        told = json.loads(json.dumps(result))
        for objective, (regret_, error) in zip(
            told["objectives"], ((0.05, 0.5), (0.3, 0.11), (0.3, 0.09)), strict=True
        ):
            for optimum in objective["optima"][:2]:
                optimum["unseen"] = {"loss": 1.0, "regret": regret_, "error": error}
        names = [objective["objective"] for objective in told["objectives"]]
        said = (
            f"down to 4 bits a weight: {names[0]}. Above it by less than two standard errors: {names[1]}.\n"
        )
        assert said in markdown(told)

    def test_worst_regret_counts_budgets_of_four_bits_and_more(self, result):
        for objective in result["objectives"]:
            assert objective["worst_regret"] == max(o["regret"] for o in objective["optima"][:2])

    def test_again_it_measures_nothing_and_gives_the_same(self, result, validated, settings, monkeypatch):
        monkeypatch.setattr(FastEvaluator, "measure", _never)
        monkeypatch.setattr(scores, "score", _never)
        again = validate_objectives(settings(objectives=THREE), validated["study"], FEW)
        assert again["seconds_for_each_loss"] is None
        assert _lasting(again) == _lasting(result)

    def test_interrupted_and_torn_it_goes_on_to_the_same_result(
        self, result, settings, tmp_path, monkeypatch
    ):
        study, real, calls = Study(tmp_path / "study"), FastEvaluator.measure, []

        def measure(self, assignment):
            calls.append(assignment)
            if len(calls) in (5, 19):
                raise KeyboardInterrupt
            return real(self, assignment)

        monkeypatch.setattr(FastEvaluator, "measure", measure)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                validate_objectives(settings(objectives=THREE), study, FEW)
            with next((study.path / "steps").glob("losses-*.jsonl")).open("a") as file:
                file.write('{"indices": [1, 2')
        again = validate_objectives(settings(objectives=THREE), study, FEW)
        assert _lasting(again) == _lasting(result)
        assert len(calls) == result["measured"] + 2

    def test_an_objective_that_is_the_truth_is_trusted_and_another_is_not(
        self, settings, tmp_path, monkeypatch
    ):
        study, config = Study(tmp_path / "study"), settings(objectives=("coding_length", "weight_mse"))
        problem = score_model(config, study).problem
        monkeypatch.setattr(
            FastEvaluator, "measure", lambda self, a: problem.score("weight_mse", problem.indices(a))
        )
        result = validate_objectives(config, study, FEW)
        other, true = result["objectives"]
        assert true["overall"]["spearman"] == pytest.approx(1) and true["overall"][
            "at_equal_size"
        ] == pytest.approx(1)
        assert true["worst_regret"] == 0.0 and all(optimum["regret"] == 0.0 for optimum in true["optima"])
        assert other["overall"]["spearman"] < 1 and other["worst_regret"] > 0.1
        _, rows = card(result)
        assert [row[0] for row in rows] == ["weight_mse", "coding_length", "(uniform bits)"]
        assert [b["best_loss"] for b in result["budgets"]] == pytest.approx(
            [solve(problem, "weight_mse", [_limit(b)]).score for b in result["budgets"]]
        )

    def test_an_objective_with_interactions_is_judged_by_its_own_sum(self, settings, tmp_path):
        text = "pairwise:images=16,scope=full"
        config = settings(objectives=("weight_mse", text), bits=(2, 4, 8))
        result = validate_objectives(config, Study(tmp_path / "study"), replace(FEW, budgets="5,4"))
        problem = score_model(config, Study(tmp_path / "study")).problem
        found = next(o for o in result["objectives"] if o["objective"] == text)
        predicted = [problem.score(text, s["indices"]) for s in result["samples"]]
        rows_alone = [
            sum(row[i] for row, i in zip(problem.scores[text], s["indices"], strict=True))
            for s in result["samples"]
        ]
        assert predicted != rows_alone
        assert found["overall"]["spearman"] == pytest.approx(
            stats.spearmanr(predicted, [s["loss"] for s in result["samples"]]).statistic
        )
        assert found["interactions"] > 0 and all(optimum["regret"] >= 0 for optimum in found["optima"])

    def test_a_model_that_breaks_down_has_no_finite_regret(self, settings, tmp_path, monkeypatch):
        monkeypatch.setattr(FastEvaluator, "measure", lambda self, a: math.nan)
        monkeypatch.setattr(FastEvaluator, "losses", lambda self, a: torch.full([16], math.nan))
        result = validate_objectives(settings(objectives=("weight_mse",)), Study(tmp_path / "study"), FEW)
        (objective,) = result["objectives"]
        assert objective["worst_regret"] is None and objective["overall"]["spearman"] is None
        assert {s["loss"] for s in result["samples"]} == {None}
        assert "| weight_mse | - | - |" in markdown(result) and "no objective's exact optimum" in markdown(
            result
        )
        assert objective["worst_unseen"] is None and "| weight_mse | - | - | - | - |" in markdown(result)

    def test_budgets_that_cannot_be_kept_are_named(self, settings, tmp_path):
        config = settings(objectives=("weight_mse",), first_last_bits=8)
        result = validate_objectives(config, Study(tmp_path / "study"), replace(FEW, budgets="7,2.01,2"))
        assert [b["bits"] for b in result["budgets"]] == [7] and result["unreachable"] == [2.01, 2]
        assert "left out: 2.01, 2 bits a weight" in markdown(result)
        with pytest.raises(InfeasibleError, match=r"any of the budgets of 2\.01, 2 bits"):
            validate_objectives(config, Study(tmp_path / "study"), replace(FEW, budgets="2,2.01"))


def _limit(budget):

    return Budget("size_bytes", budget["limit_bytes"], "")


class TestCommand:
    @pytest.fixture
    def call(self, place, tmp_path, monkeypatch, capsys):
        """Run `mpsearch score` in a folder of its own: exit code, stdout, stderr."""
        monkeypatch.chdir(tmp_path)
        given = [
            "--model",
            f"{place / 'nets.py'}:make",
            "--random-weights",
            "--data",
            str(place / "images.npz"),
        ]
        given += ["--calibration-images", "16", "--search-images", "16"]

        def score(*arguments):
            monkeypatch.setattr(sys, "argv", ["mpsearch", "score", *given, *arguments])
            code = 0
            try:
                main()
            except SystemExit as stop:
                code = int(stop.code or 0)
            return (code, *capsys.readouterr())

        return score

    def test_tables_alone_go_to_stdout(self, call, tmp_path):
        code, out, told = call(
            "--objective", "weight_mse", "--objective", "coding_length", "--bits", "2,4,8", "--format", "json"
        )
        assert code == 0, told
        found = json.loads(out)
        assert Problem.from_json(found) == Problem.load(tmp_path / "studies" / "make-score" / "scores.json")
        assert (
            list(found["scores"]) == ["weight_mse", "coding_length"]
            and "weight_mse (noise-to-signal ratio): 0 entries repaired" in told
        )
        _, out, _ = call("--objective", "weight_mse", "--bits", "2,4,8", "--format", "csv")
        lines = out.splitlines()
        assert lines[0] == "objective,layer,candidate,score,weights,activations" and len(lines) == 1 + 5 * 3
        assert float(lines[1].split(",")[3]) == found["scores"]["weight_mse"][0][0]
        _, out, _ = call("--objective", "weight_mse", "--bits", "2,4,8")
        assert "W4A8" in out and "stem.0" in out

    def test_interacting_objectives_are_listed(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["mpsearch", "list", "interacting"])
        main()
        assert {"pairwise"} <= set(capsys.readouterr().out.split())

    def test_every_registered_objective_is_meant_where_none_is_named(self, call, monkeypatch):
        OBJECTIVES.names()
        for name in set(OBJECTIVES.names()) - {"weight_mse", "coding_length"}:
            monkeypatch.delitem(OBJECTIVES._members, name)
        code, out, told = call("--format", "json")
        assert code == 0, told
        assert list(json.loads(out)["scores"]) == ["coding_length", "weight_mse"]

    def test_validation_prints_the_card(self, call, tmp_path):
        arguments = (
            "--objective",
            "weight_mse",
            "--validate",
            "--samples",
            "6",
            "--budgets",
            "6,4",
            "--local-steps",
            "2",
        )
        code, out, told = call(*arguments)
        assert code == 0, told
        assert (
            "weight_mse" in out
            and "regret 4b" in out
            and "(uniform bits)" in out
            and "rank correlation" in told
        )
        code, out, _ = call(*arguments, "--format", "json")
        assert json.loads(out) == json.loads(
            (tmp_path / "studies" / "make-score" / "validation.json").read_text()
        )

    def test_an_interruption_says_how_to_go_on(self, call, monkeypatch):
        def stop(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(FastEvaluator, "measure", stop)
        code, out, told = call("--objective", "weight_mse", "--validate")
        assert (code, out) == (130, "") and "The same command goes on" in told

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (["--objective", "hesian"], "hesian"),
            (["--validate", "--budgets", "none"], "are no budgets"),
            (["--validate", "--samples", "1"], "1 samples"),
        ],
    )
    def test_a_slip_is_one_clear_error(self, call, arguments, text):
        code, out, told = call(*arguments)
        assert (code, out) == (2, "") and text in told and "Traceback" not in told
