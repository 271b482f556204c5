"""What the search finds, in measured loss, beside what is simpler: at 3.5, 4, 5 and 6 bits a weight on
average, on real weights and images.

Run: python benchmarks/search_quality.py resnet20 vit mobilenet [--bits 4,3.5,5,6] [--seeds 3] [--plain-seeds
3] [--equal-seeds 3] [--trials 64,512] [--minutes 30] [--without-search]. Needs the assets folder
(MPSEARCH_ASSETS, else ../shared/assets). Every measured loss and every finished cell is kept below
studies/search_quality, so the script resumes; it takes one seed of everything before the next, ends after
--minutes, and writes what there is.

All methods measure the same loss (KL to the float model on the search images, weights rounded to nearest).
The uniform assignment and the exact optima need one evaluation, Greedy MP takes what it takes; the search is
run with each number of `--trials`, plain Optuna with the first.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import torch
from validate_objectives import MODELS, settings

from mpsearch.allocator import keep_freed_memory
from mpsearch.evaluate import FastEvaluator
from mpsearch.files import digest
from mpsearch.hardware import identity
from mpsearch.objectives import OBJECTIVES as ALL
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.steps.costs import resolve_budgets, sized_problem
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pipeline.steps.ranges import calibrate_subject
from mpsearch.pipeline.steps.scores import add_scores
from mpsearch.problem import Budget, Candidate, Problem
from mpsearch.solvers import hypervolume, non_dominated, reachable, solve
from mpsearch.solvers.tables.groups import SuperLayers
from mpsearch.study import GreedyMP, LossFile, explore, polish

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "studies" / "search_quality"
RESULTS = ROOT / "benchmarks" / "results" / "search_quality.md"
SEARCHED = ("kl", "output_mse", "weight_mse")  # what a run asks for by default
OBJECTIVES = (*SEARCHED, *(name for name in ALL.names() if name not in SEARCHED))
SEARCH, EQUAL, GREEDY = "full search", "full search, as many", "Greedy MP"
PLAIN = {"plain NSGA-II": optuna.samplers.NSGAIISampler, "plain TPE": optuna.samplers.TPESampler}
IMAGES = {
    "resnet20": (128, 256),
    "vit": (64, 256),
    "mobilenet": (16, 64),
}  # the loss is measured on, and the ranges come from
OPTIONS = {"mobilenet": {"kl": "kl:images=32"}}  # where it is dear
Indices = tuple[int, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--bits", default="4,3.5,5,6")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plain-seeds", type=int, default=3, help="Of plain Optuna.")
    parser.add_argument(
        "--equal-seeds", type=int, default=3, help="Of the search with as many evaluations as Greedy MP took."
    )
    parser.add_argument(
        "--trials",
        default="64,512",
        help=(
            "Evaluations of the search, which keeps half or more for its polish; plain Optuna has the first."
        ),
    )
    parser.add_argument(
        "--without-search",
        action="store_true",
        help="The other methods alone; what they find does not depend on the search.",
    )
    parser.add_argument("--minutes", type=float, default=math.inf)
    arguments = parser.parse_args()
    arguments.trials = [int(count) for count in arguments.trials.split(",")]
    keep_freed_memory()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    start = time.monotonic()
    grounds: dict[str, Ground] = {}
    cells = [
        (seed, name, bits)
        for seed in range(arguments.seeds)
        for name in arguments.models
        for bits in arguments.bits.split(",")
    ]
    for seed, name, bits in cells:
        if time.monotonic() - start > 60 * arguments.minutes:
            break
        grounds[name] = grounds.get(name) or Ground.of(name, *IMAGES.get(name, IMAGES["resnet20"]))
        grounds[name].fill(
            bits,
            seed,
            arguments.trials,
            not arguments.without_search,
            seed < arguments.plain_seeds,
            seed < arguments.equal_seeds,
        )
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(report(grounds, arguments))
        print(f"{name}, {bits} bits, seed {seed}: done after {time.monotonic() - start:.0f} s", flush=True)


@dataclass
class Ground:
    """One network: its problem, its losses, and the cells that are done.

    Args:
        name: Of the network.
        problem: With a table for each objective.
        budget: Bits -> budget in bytes.
        losses: Kept on disk.
        measure: Loss of L choices.
        cells: Method, bits, seed and trials -> result.
    """

    name: str
    problem: Problem
    budget: Callable[[str], Budget]
    losses: LossFile
    measure: Callable[[Indices], float]
    cells: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, name: str, images: int, calibration_images: int) -> Ground:
        """Load, calibrate, score."""
        objectives = tuple(OPTIONS.get(name, {}).get(objective, objective) for objective in OBJECTIVES)
        config = replace(
            settings(name, objectives), search_images=images, calibration_images=calibration_images
        )
        subject = load_subject(config, Silent())
        calibration = calibrate_subject(subject, config, Silent())
        problem, _ = add_scores(
            sized_problem(subject, config), subject, calibration, config, Study(KEPT / name), Silent()
        )
        fast = FastEvaluator(subject.module, calibration, subject.splits.search)
        inputs = [
            subject.hashes,
            config.calibration_images,
            calibration.weight_observer,
            calibration.input_observer,
            importlib.metadata.version("torch"),
        ]
        losses = LossFile(KEPT / name / f"losses-{digest(inputs)}.jsonl", inputs)

        def measure(indices: Indices) -> float:
            known = losses.get(tuple(indices))
            if known is None:
                known = fast.measure(problem.assignment(indices))
                losses[tuple(indices)] = known
            return known

        def budget(bits: str) -> Budget:
            return resolve_budgets(problem, replace(config, budgets=(f"{bits}bits",)))[0]

        return cls(
            name, problem, budget, losses, measure, _read(KEPT / name / f"cells-{digest(inputs)}.jsonl")
        )

    def fill(self, bits: str, seed: int, trials: list[int], search: bool, plain: bool, equal: bool) -> None:
        """Every method at one budget; those without a seed once."""
        budget = self.budget(bits)
        self._cell("uniform", bits, 0, 0, lambda m: self._uniform(budget, m))
        for objective in OBJECTIVES:
            self._cell(
                f"exact optimum of {objective}",
                bits,
                0,
                0,
                lambda m, o=objective: m(solve(self.problem, o, [budget]).indices),
            )  # type: ignore[misc]
        self._cell(GREEDY, bits, 0, 0, lambda m: GreedyMP().solve(self.problem, [budget], m))
        for count in trials if search else ():
            self._cell(SEARCH, bits, seed, count, lambda m, n=count: self._search(budget, seed, n, m))  # type: ignore[misc]
        if equal:
            many = self.cells[json.dumps([GREEDY, bits, 0, 0])]["evaluations"]
            self._cell(EQUAL, bits, seed, 0, lambda m: self._search(budget, seed, many, m))
        for name, sampler in PLAIN.items() if plain else ():
            self._cell(
                name,
                bits,
                seed,
                trials[0],
                lambda m, s=sampler: self._plain(s(seed=seed), budget, trials[0], m),
            )  # type: ignore[misc]

    def _cell(
        self,
        method: str,
        bits: str,
        seed: int,
        trials: int,
        run: Callable[[Callable[[Indices], float]], object],
    ) -> None:
        key = json.dumps([method, bits, seed, trials])
        if key in self.cells:
            return
        asked: dict[Indices, float] = {}

        def measure(indices: Indices) -> float:
            asked[tuple(indices)] = self.measure(tuple(indices))
            return asked[tuple(indices)]

        run(measure)
        limit = self.budget(bits).limit
        sizes = {indices: float(self.problem.cost(indices).size_bytes or 0.0) for indices in asked}
        fitting = {i: loss for i, loss in asked.items() if sizes[i] <= limit and math.isfinite(loss)}
        points = [(sizes[i], loss) for i, loss in fitting.items()]
        self.cells[key] = {
            "loss": min(fitting.values(), default=None),
            "evaluations": len(asked),
            "points": [points[k] for k in non_dominated(points)],
        }
        path = KEPT / self.name / f"cells-{self._digest()}.jsonl"
        with path.open("a") as file:
            file.write(json.dumps({"key": key, **self.cells[key]}) + "\n")

    def _digest(self) -> str:
        return self.losses.path.stem.removeprefix("losses-")

    def _uniform(self, budget: Budget, measure: Callable[[Indices], float]) -> None:
        uniforms = [self.problem.uniform(Candidate(b, 8)) for b in range(8, 1, -1)]
        measure(
            next(
                u
                for u in uniforms
                if u is not None and float(self.problem.cost(u).size_bytes or 0.0) <= budget.limit
            )
        )

    def _search(self, budget: Budget, seed: int, trials: int, measure: Callable[[Indices], float]) -> None:
        (objective, *others), journal = (
            SEARCHED,
            KEPT / self.name / f"journal-{budget.limit:.0f}-{seed}-{trials}.log",
        )
        journal.unlink(
            missing_ok=True
            # a cell that was cut off starts again: its losses are kept, and `measure` must be asked for all
            # of them
        )
        explored = max(min(32, trials // 2), trials // 4)
        found = explore(self.problem, objective, [budget], measure, journal, explored, seed, others=others)
        polish(self.problem, objective, [budget], measure, found, trials - explored)

    def _plain(
        self,
        sampler: optuna.samplers.BaseSampler,
        budget: Budget,
        trials: int,
        measure: Callable[[Indices], float],
    ) -> None:
        """As a user of Optuna would: one index for each unit, no warm start, the budget a constraint."""
        layers = SuperLayers.of([len(c) for c in self.problem.candidates], self.problem.ties)

        def objective(trial: optuna.Trial) -> tuple[float, float]:
            indices = layers.expand(
                [trial.suggest_int(f"unit {m}", 0, width - 1) for m, width in enumerate(layers.widths)]
            )
            size = float(self.problem.cost(indices).size_bytes or 0.0)
            trial.set_constraint("size", size - budget.limit)
            return math.log10(max(measure(indices), 1e-12)), size

        optuna.create_study(directions=["minimize", "minimize"], sampler=sampler).optimize(
            objective, n_trials=trials
        )


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return {line.pop("key"): line for line in lines}


def report(grounds: dict[str, Ground], arguments: argparse.Namespace) -> str:
    """The tables, and what they say."""
    versions = ", ".join(
        f"{package} {importlib.metadata.version(package)}"
        for package in ("torch", "timm", "optuna", "scipy", "numpy")
    )
    about = f"`python benchmarks/search_quality.py {' '.join(sys.argv[1:])}`, {versions}. {identity()}."
    rows, verdicts = [], []
    for ground in grounds.values():
        for bits in arguments.bits.split(","):
            table = _table(ground, bits, arguments)
            rows += [
                f"| {ground.name} | {bits} | {method} | {' | '.join(cells)} |\n" for method, cells, _ in table
            ]
            losses = {method: values for method, _, values in table}
            verdicts += [
                _verdict(ground.name, bits, method, losses) for method in losses if method.startswith(SEARCH)
            ]
    shown = len(arguments.models) * len(arguments.bits.split(",")) * arguments.seeds * len(arguments.trials)
    keys = [json.loads(key) for ground in grounds.values() for key in ground.cells]
    done = sum(
        method == SEARCH and trials in arguments.trials and seed < arguments.seeds
        for method, _, seed, trials in keys
    )
    about += "".join(
        f" For {name} {', '.join(OPTIONS[name].values())}." for name in arguments.models if name in OPTIONS
    )
    images = "; ".join(
        f"{name} on {IMAGES.get(name, IMAGES['resnet20'])[0]} images" for name in arguments.models
    )
    about += (
        f" {images}. {done} of {shown} runs of the search are done; the last column says of how "
        "many seeds a row is the mean."
    )
    header = (
        "| network | bits | method | evaluations | KL: mean (least to greatest) | hypervolume | seeds |\n"
        + "|---" * 7
        + "|\n"
    )
    return (
        f"# Quality of the search\n\n{about}\n{_EXPLAINED}\n{header}{''.join(rows)}\n## What the "
        f"table says\n\n{''.join(verdicts)}"
    )


_EXPLAINED = """
KL to the float model on the search images, weights rounded to nearest, of the best assignment within the budget. Weight bits 2 to 8, input bits 8. Methods
with a seed show the mean over the seeds that are done. `hypervolume`: area that what a method measured dominates in log10 KL over size, between the least
size and the budget and below the KL of all units at 2 bits, divided by that of all methods and seeds together. `full search`: the
study on `kl`, warm with the optima of `output_mse` and `weight_mse` too, as a run does by default, with so many evaluations: 32 or, if that is more, a
quarter of all, and the rest for the polish. `as many`: as many as Greedy MP took. Plain: Optuna's own defaults, one index for each unit, no warm start,
as many trials as the search's first number. `evaluations` counts assignments that differ; plain Optuna tries some again.
"""


def _table(
    ground: Ground, bits: str, arguments: argparse.Namespace
) -> list[tuple[str, list[str], list[float]]]:
    limit, least = ground.budget(bits).limit, reachable(ground.problem)["size_bytes"][0]
    top = math.log10(ground.measure(tuple(len(c) - 1 for c in ground.problem.candidates)))
    found: dict[str, list[dict[str, Any]]] = {}
    for key, cell in ground.cells.items():
        method, at, seed, trials = json.loads(key)
        if (
            at == bits
            and seed < arguments.seeds
            and trials in (0, arguments.trials[0], *(arguments.trials if method == SEARCH else ()))
        ):
            found.setdefault(f"{method}, {trials}" if method == SEARCH else method, []).append(cell)

    def area(points: list[list[float]]) -> float:
        return hypervolume(
            [(size, math.log10(max(loss, 1e-12))) for size, loss in points],
            (limit + 1e-3 * (limit - least), top),
        )

    whole = area([point for cells in found.values() for cell in cells for point in cell["points"]])
    table = []
    for method, cells in found.items():
        losses = [math.inf if cell["loss"] is None else cell["loss"] for cell in cells]
        shown = f"{statistics.mean(losses):.5f}" + (
            f" ({min(losses):.5f} to {max(losses):.5f})" if len(losses) > 1 else ""
        )
        volume = statistics.mean(area(cell["points"]) for cell in cells) / whole
        counts = statistics.mean(cell["evaluations"] for cell in cells)
        table.append(
            (
                method,
                [f"{counts:.0f}", shown.replace("inf", "none fits"), f"{volume:.3f}", str(len(cells))],
                losses,
            )
        )
    return table


def _verdict(name: str, bits: str, search: str, losses: dict[str, list[float]]) -> str:
    """Whether the worst seed of a search is at least as good as the best of everything else."""
    worst = max(losses[search])
    others = {method: min(values) for method, values in losses.items() if not method.startswith(SEARCH)}
    best = min(others, key=lambda method: others[method])
    beaten = [method for method, value in others.items() if value < worst]
    text = (
        f"- {name}, {bits} bits, {search}: {statistics.mean(losses[search]):.5f} on average; the next "
        f"best is {best} ({others[best]:.5f})"
    )
    return (
        f"{text}. Its worst seed ({worst:.5f}) loses to {', '.join(beaten)}.\n"
        if beaten
        else f"{text}, and no seed loses to any.\n"
    )


if __name__ == "__main__":
    main()
