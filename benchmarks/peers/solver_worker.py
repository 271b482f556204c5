"""A tool's own solver class on given tables: JSON on the standard input, JSON as the last line of the output.

Run by benchmarks/peers/solvers.py with the Python of the tool's environment; imports nothing of mpsearch.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any


def modelopt(scores: list[list[float]], costs: list[list[float]], limit: float) -> list[int] | None:
    """As `auto_quantize` calls it: again with a lower bound where it finds nothing."""
    from modelopt.torch.opt.searcher import LPS

    for share in (None, 0.99, 0.90):
        bounds = limit if share is None else (share * limit, limit)
        found, status = LPS("AutoQuantize", {"size": bounds}, {"size": costs}, scores)()
        if status == "Optimal":
            return [int(i) for i in found]
    return None


def mct(scores: list[list[float]], costs: list[list[float]], limit: float) -> list[int] | None:
    """As its search manager calls it, without the greedy refinement that follows there."""
    import numpy as np
    from model_compression_toolkit.core.common.mixed_precision.resource_utilization_tools.resource_utilization import (
        RUTarget,
    )
    from model_compression_toolkit.core.common.mixed_precision.search_methods.linear_programming import (
        MixedPrecisionIntegerLPSolver,
    )

    flat = np.array([c for row in costs for c in row])[:, None]
    solver = MixedPrecisionIntegerLPSolver(
        dict(enumerate(scores)), {RUTarget.WEIGHTS: flat}, {RUTarget.WEIGHTS: np.array([limit])}
    )
    try:
        found = solver.run()
    except (RuntimeError, ValueError):
        return None
    return [int(found[i]) for i in range(len(scores))]


def seconds() -> float:
    """CPU time of this process and of the solver's."""
    used = [resource.getrusage(kind) for kind in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def main() -> None:
    given: dict[str, Any] = json.load(sys.stdin)
    tool = {"modelopt": modelopt, "mct": mct}[given["peer"]]
    problems = given["problems"]
    tool(
        problems[0]["scores"], problems[0]["costs"], problems[0]["limits"][-1]
    )  # imports are not the solver's time
    answers = []
    for problem in problems:
        start = seconds()
        choices = [tool(problem["scores"], problem["costs"], limit) for limit in problem["limits"]]
        answers.append({"choices": choices, "seconds": seconds() - start})
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
