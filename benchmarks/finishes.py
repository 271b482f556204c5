"""How an assignment is best finished: seconds against KL of the closed form, of learning behind it, and of
learning alone.

Run: python benchmarks/finishes.py resnet20 vit [--cases 3x8,3x4] [--finishes
gptq,qdrop/60,qdrop/200,qdrop:start=nearest/200] Needs the assets folder (MPSEARCH_ASSETS, else
../shared/assets). A case is bits of a weight x bits of an input, the same for every unit; a finish is a
method and its steps. Rows are added to benchmarks/results/finishes.jsonl. Images as in few_bits.py.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from few_bits import MODELS, machine, settings, standard_error, top1

from mpsearch.evaluate import predict
from mpsearch.evaluate.metrics import kl_by_image
from mpsearch.pipeline import Silent
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pipeline.steps.ranges import calibrate_subject
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import install
from mpsearch.reconstruct import ReconstructionConfig, reconstruct

RESULTS = Path(__file__).resolve().parent / "results" / "finishes.jsonl"
FINISHES = "nearest/0,gptq/0,qdrop/60,qdrop/200,qdrop/1000,qdrop:start=nearest/200,qdrop:start=nearest/1000"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--cases", default="4x8,3x8,4x4,3x4")
    parser.add_argument("--finishes", default=FINISHES)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name in arguments.models:
        config = settings(name, arguments.seed, arguments.cases.split(",")[0])
        subject = load_subject(config, Silent())
        calibration = calibrate_subject(subject, config, Silent())
        inputs = subject.splits.calibration.inputs(slice(0, len(subject.splits.calibration)))
        images, floats = subject.splits.evaluation, predict(subject.module, subject.splits.evaluation)
        for case in arguments.cases.split(","):
            w_bits, _, a_bits = case.partition("x")
            candidate = Candidate(int(w_bits), int(a_bits))
            start = calibration.states(Assignment(tuple((unit, candidate) for unit in subject.units)))
            for finish in arguments.finishes.split(","):
                method, _, steps = finish.rpartition("/")
                began = time.process_time()
                learning = ReconstructionConfig(iterations=int(steps), method=method, seed=arguments.seed)
                states = reconstruct(subject.module, subject.blocks, start, inputs, learning)
                seconds = time.process_time() - began
                outputs = predict(install(subject.module, states), images)
                losses = kl_by_image(outputs, floats)
                row = {
                    "model": name,
                    "case": case,
                    "finish": finish,
                    "seed": arguments.seed,
                    "cpu_seconds": round(seconds, 1),
                }
                row |= {
                    "kl": round(float(losses.mean()), 5),
                    "kl_error": round(standard_error(losses), 5),
                    "images": len(images),
                }
                row |= {
                    "top1": top1(outputs, images.labels),
                    "float_top1": top1(floats, images.labels),
                    **machine(),
                }
                print(json.dumps(row), flush=True)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
