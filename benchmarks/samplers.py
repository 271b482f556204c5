"""Other searches beside the default run: the same measured loss, states, budget, finish and judged images.

Run: python benchmarks/samplers.py resnet20 vit resmlp [--seeds 0,1,2] [--cases 4x8,3x8,4x4,3x4] [--trials 64].
Needs the assets folder (MPSEARCH_ASSETS, else ../shared/assets). The default run comes first, from whose codes
and tables the others start: NSGA-II and TPE measure `--trials` assignments, which takes longer than all of its
own search, first the exact optimum of `weight_mse` (so that something keeps the budget); Greedy MP measures
what it takes, `evaluations`. Each method's best is finished in closed form and judged on images that nothing
has seen. Rows are added to benchmarks/results/samplers.jsonl and printed as a table with --table.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from few_bits import ROOT, machine, settings, standard_error, top1
from torch import Tensor

from mpsearch.evaluate import FastEvaluator, predict
from mpsearch.evaluate.metrics import kl_by_image
from mpsearch.pipeline import RunConfig, Silent, run
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.steps.costs import resolve_budgets
from mpsearch.pipeline.steps.learned import searched_calibration
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pipeline.steps.ranges import calibrate_subject
from mpsearch.pipeline.steps.tightening import proxy_of
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.problem import Assignment, Problem, mean_bits
from mpsearch.quant import install
from mpsearch.solvers import solve
from mpsearch.study import GreedyMP, explore_by

RESULTS = ROOT / "benchmarks" / "results" / "samplers.jsonl"
Indices = tuple[int, ...]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--cases", default="4x8,3x8,4x4,3x4")
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--table", action="store_true", help="print the table of all rows that there are")
    arguments = parser.parse_args()
    there = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []
    for name in arguments.models:
        for seed in map(int, arguments.seeds.split(",")):
            for case in arguments.cases.split(","):
                key = {"model": name, "seed": seed, "case": case, "trials": arguments.trials}
                if any({k: row[k] for k in key} == key for row in there):
                    continue
                row = {**key, **measured(name, seed, case, arguments.trials), **machine()}
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
    if arguments.table or not arguments.models:
        print(table())


def measured(name: str, seed: int, case: str, trials: int) -> dict[str, Any]:
    """The methods of a row, by name: evaluations, CPU seconds of the search, KL and top-1 once finished, and
    the paired difference of KL to the default run's choice.
    """
    config = settings(name, seed, case)
    with tempfile.TemporaryDirectory() as folder:
        study = Study(Path(folder) / "study")
        start = time.process_time()
        result = run(config, study)
        whole = time.process_time() - start
        subject = load_subject(config, Silent())
        workshop = Workshop(subject, calibrate_subject(subject, config, Silent()), config, study, Silent())
        problem = Problem.from_json(json.loads((study.path / "problem.json").read_text()))
        images, floats = subject.splits.evaluation, predict(subject.module, subject.splits.evaluation)
        losses, found = dict[str, Tensor](), dict[str, dict[str, Any]]()
        for method, (indices, evaluations, seconds) in methods(
            config, problem, workshop, trials, result, Path(folder), seed
        ).items():
            assignment = problem.assignment(indices)
            outputs = predict(install(subject.module, workshop.reconstructed(assignment, method)), images)
            losses[method] = kl_by_image(outputs, floats)
            difference = losses[method] - losses["default run"]
            found[method] = {
                "evaluations": evaluations,
                "cpu_seconds": round(seconds, 1),
                "bits": round(mean_bits(problem.layers, assignment), 3),
                "kl": round(float(losses[method].mean()), 5),
                "top1": top1(outputs, images.labels),
                "less_default": [round(float(difference.mean()), 5), round(standard_error(difference), 5)],
            }
    return {"run_cpu_seconds": round(whole, 1), "images": len(images), "methods": found}


def methods(
    config: RunConfig,
    problem: Problem,
    workshop: Workshop,
    trials: int,
    result: dict[str, Any],
    folder: Path,
    seed: int,
) -> dict[str, tuple[Indices, int, float]]:
    """Choices, evaluations and CPU seconds of each method."""
    limits, proxy = resolve_budgets(problem, config), proxy_of(config)
    took = sum(result["plan"]["took"][step] for step in ("scores", "trials"))
    chosen = next(row for row in result["rows"] if row["label"] == result["best"]["label"])
    searched, search = searched_calibration(problem, workshop), workshop.subject.placed.search
    evaluator = FastEvaluator(workshop.subject.placed.module, searched, search, task=workshop.task)

    def measure(indices: Indices) -> float:
        return evaluator.measure(problem.assignment(indices))

    def timed(work: Callable[[], tuple[Indices, int]]) -> tuple[Indices, int, float]:
        start = time.process_time()
        indices, evaluations = work()
        return tuple(indices), evaluations, time.process_time() - start

    def sampled(sampler: str) -> tuple[Indices, int]:
        path = folder / f"{sampler}.log"
        done = explore_by(sampler, problem, "weight_mse", limits, measure, path, trials, seed)
        best = min((t for t in done if t.feasible), key=lambda t: t.loss)
        return best.indices, len(done)

    def walked() -> tuple[Indices, int]:
        seen: set[Indices] = set()

        def counted(indices: Indices) -> float:
            seen.add(tuple(indices))
            return measure(indices)

        return GreedyMP().solve(problem, limits, counted).solution.indices, len(seen)

    found = {
        "default run": (
            problem.indices(Assignment.from_json(chosen["assignment"])),
            config.trial_count + config.polish_count,
            took,
        )
    }
    found["exact optimum"] = timed(lambda: (solve(problem, proxy, limits).indices, 0))
    found["Greedy MP"] = timed(walked)
    return found | {
        title: timed(lambda name=name: sampled(name))
        for title, name in (("NSGA-II", "nsga2"), ("TPE", "tpe"))
    }


def table() -> str:
    """Markdown of all rows."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    names = list(rows[0]["methods"])
    lines = [
        "| model | bits x inputs | seed | " + " | ".join(f"{n}: KL (evaluations)" for n in names) + " |",
        "|---" * (3 + len(names)) + "|",
    ]
    for row in rows:
        cells = []
        for name in names:
            method = row["methods"][name]
            mean, error = method["less_default"]
            mark = " +" if mean > 2 * error else " -" if mean < -2 * error else ""
            cells.append(f"{method['kl']:.4f} ({method['evaluations']}){mark}")
        lines.append(f"| {row['model']} | {row['case']} | {row['seed']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
