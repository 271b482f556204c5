"""Whether blocks that learn in bfloat16 end as low as in float32: every block learns twice from the same
inputs, and the float32 result goes on.

Run: python benchmarks/reconstruct_bfloat16.py resnet20 W4A4 [--images 256] [--iterations 100] [--first 0].
Needs the assets folder. A row is added to benchmarks/results/reconstruct_bfloat16.md. First and last layer
are W8A8; by default such blocks learn in float32 (`reconstruct.precision`).
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace

import reconstruct as benchmark
import torch

from mpsearch.hardware import identity
from mpsearch.problem import Assignment, Candidate
from mpsearch.reconstruct import ReconstructionConfig, calibrate, reconstruct
from mpsearch.reconstruct import phase_walk as ours

OUTPUT = benchmark.ROOT / "benchmarks" / "results" / "reconstruct_bfloat16.md"
HEAD = """# Final loss in bfloat16 against float32

Ratio of a block's mean squared error on the calibration images behind its steps, bfloat16 / float32; QDrop, one thread, seed 0, batch 32, crops off, no early
stop. Seconds of one processor. `python benchmarks/reconstruct_bfloat16.py MODEL BITS --images N --iterations STEPS --first BLOCK`.

| model | bits | images | steps | blocks | geometric mean, grids up to 4 bits | worst | W8A8 blocks | float32 s | bfloat16 s | machine |
|---|---|---|---|---|---|---|---|---|---|---|
"""


class Twice:
    """Stands in for `learn_block`."""

    def __init__(self, first: int) -> None:
        self.first, self.index, self.learn, self.found = first, -1, ours.learn_block, []
        self.seconds = {True: 0.0, False: 0.0}

    def __call__(self, run, layers, weights, start, data, phase, config, seed):
        self.index += 1
        if self.index < self.first:
            return dict(start), 1.0, 1.0, 0
        results = {}
        for low in (True, False):
            ours.install(layers, start)
            began = time.process_time()
            results[low] = self.learn(
                run, layers, weights, start, data, phase, replace(config, bfloat16=low), seed
            )
            self.seconds[low] += time.process_time() - began
        fine = any(state.weight.params.bits > 4 for state in start.values())
        self.found.append((fine, results[True][2] / results[False][2]))
        print(
            ", ".join(layers), f"float32 {results[False][2]:.4g}, ratio {self.found[-1][1]:.4f}", flush=True
        )
        return results[False]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=["resnet20", "mobilenet"])
    parser.add_argument("bits")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="blocks before this one stay rounded to nearest")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    module, blocks, states, inputs = benchmark.prepared(arguments.model, arguments.images)
    choice = {
        u: s.candidate if s.candidate == Candidate(8, 8) else Candidate.parse(arguments.bits)
        for u, s in states.items()
    }
    states = calibrate(module, list(choice), torch.split(inputs[:256], 64)).states(
        Assignment(tuple(choice.items()))
    )
    twice = ours.learn_block = Twice(arguments.first)
    reconstruct(
        module, blocks, states, inputs, ReconstructionConfig(iterations=arguments.iterations, tolerance=0)
    )
    coarse, fine = (
        [ratio for is_fine, ratio in twice.found if is_fine == wanted] for wanted in (False, True)
    )
    mean = math.exp(sum(map(math.log, coarse)) / len(coarse))
    cells = [
        arguments.model,
        arguments.bits,
        len(inputs),
        arguments.iterations,
        len(coarse),
        f"{mean:.4f}",
        f"{max(coarse):.3f}",
    ]
    cells += [
        ", ".join(f"{r:.3f}" for r in fine),
        f"{twice.seconds[False]:.0f}",
        f"{twice.seconds[True]:.0f}",
        identity(),
    ]
    text = OUTPUT.read_text() if OUTPUT.exists() else HEAD
    OUTPUT.write_text(text + f"| {' | '.join(map(str, cells))} |\n")


if __name__ == "__main__":
    main()
