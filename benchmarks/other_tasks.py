"""Detection and segmentation: searched against uniform bits at the same bytes, and QDrop against nearest.

Run: python benchmarks/other_tasks.py [--seeds 3] [--steps 300]. The detector and the U-Net of examples/ are trained
on generated scenes for each seed; each is searched at 4 and 3 bits a weight and the uniform assignment of that many
bits is finished beside it. What was measured stands in results/other_tasks.jsonl, a line for each row, and is not
measured again; results/other_tasks.md is written from it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(EXAMPLES))
import data  # noqa: E402
import train  # noqa: E402

from mpsearch.hardware import identity  # noqa: E402
from mpsearch.pipeline import RunConfig, run  # noqa: E402
from mpsearch.pipeline.folder import Study  # noqa: E402

TASKS = {
    "yolo": ("Yolo", "coco:{}/scenes", f"detection:decode={EXAMPLES / 'yolo.py'}:decode", ("map", "map50")),
    "unet": ("UNet", "masks:{}/masks", "segmentation", ("miou", "pixel_accuracy")),
}
"""Example -> class of its file, data, task, scores."""
BITS = (4, 3)
RESULTS = ROOT / "benchmarks" / "results" / "other_tasks.jsonl"


def weights(name: str, seed: int, arguments: argparse.Namespace) -> Path:
    """File of a trained model, made where it is not there."""
    file = Path(arguments.folder) / f"{name}-{arguments.steps}-{seed}.safetensors"
    if not file.is_file():
        train.write_weights(train.trained(name, arguments.folder / "data", arguments.steps, seed), file)
    return file


def measured(name: str, seed: int, bits: int, arguments: argparse.Namespace) -> Iterable[dict[str, Any]]:
    """The rows of one study: nearest rounding first, then QDrop, where a row was finished."""
    kind, place, task, scores = TASKS[name]
    config = RunConfig(
        (f"{bits}bits",),
        model=f"{EXAMPLES / name}.py:{kind}",
        weights=str(weights(name, seed, arguments)),
        data=place.format(arguments.folder / "data"),
        task=task,
        input_size=(1, 64, 64),
        mean=(0.5,),
        std=(0.5,),
        calibration_images=arguments.calibration,
        search_images=arguments.search,
        evaluation_images=arguments.evaluation,
        a_bits=(arguments.a_bits,),
        objectives=("sketch",),
        trials=arguments.trials,
        polish=0,
        effort="quick",
        search_states="nearest",
        method="qdrop",
        iterations=arguments.iterations,
        target="packed",
        seed=seed,
    )
    result = run(config, Study(Path(arguments.folder) / f"{name}-{bits}-{seed}"))
    for row in result["rows"]:
        chosen = row["label"] == result["best"]["label"]
        for how, found in (("nearest", row["searched"]), ("qdrop", row.get("reconstructed"))):
            if found is not None:
                got = {score: found["metrics"]["scores"][score] for score in scores}
                about = {
                    "label": row["label"],
                    "chosen": chosen,
                    "finish": how,
                    "size_bytes": found["size_bytes"],
                }
                yield {"model": name, "seed": seed, "bits": bits, **about, **got}


def table(rows: list[dict[str, Any]], name: str) -> list[str]:
    """Lines of one model's table: mean and standard deviation over the seeds, of the float model, and at each
    budget of the uniform and of the chosen assignment.
    """
    scores = TASKS[name][3]
    held = [row for row in rows if row["model"] == name]
    if not held:
        return ["Not measured yet."]
    lines = [
        f"| budget | assignment | bytes | finish | {' | '.join(scores)} |",
        "|---" * (4 + len(scores)) + "|",
    ]
    floats = [r for r in held if r["label"] == "float" and r["bits"] == BITS[0]]
    lines += [_line("", "float", "", floats, scores)] if floats else []
    for bits in BITS:
        for label in (f"uniform W{bits}", "searched"):
            for finish in ("nearest", "qdrop"):
                of_seed = {
                    r["seed"]: r
                    for r in held
                    if r["bits"] == bits and r["finish"] == finish and _is(r, label, held)
                }
                lines += (
                    [_line(f"{bits}bits", label, finish, list(of_seed.values()), scores)] if of_seed else []
                )
    return lines


def _is(row: dict[str, Any], label: str, rows: list[dict[str, Any]]) -> bool:
    """Whether a row is the uniform assignment, or what the search gave beside it: its choice, or, where it chose
    the uniform one, the proxy's optimum.
    """
    if label != "searched":
        return str(row["label"]).startswith(label)
    same = [
        r for r in rows if (r["seed"], r["bits"], r["finish"]) == (row["seed"], row["bits"], row["finish"])
    ]
    own = [r for r in same if not str(r["label"]).startswith(("float", "uniform"))]
    return row in ([r for r in own if r["chosen"]] or [r for r in own if "optimum" in r["label"]])


def _line(budget: str, label: str, finish: str, rows: list[dict[str, Any]], scores: tuple[str, ...]) -> str:
    cells = []
    for score in scores:
        values = [100 * row[score] for row in rows]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.1f}{spread}")
    size = f"{statistics.mean(row['size_bytes'] for row in rows):,.0f}"
    return f"| {budget} | {label} | {size} | {finish} | {' | '.join(cells)} |"


def page(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """results/other_tasks.md."""
    seeds = sorted({row["seed"] for row in rows})
    names = ("steps", "count", "calibration", "search", "evaluation", "a_bits", "trials", "iterations")
    flags = " ".join(f"--{name.replace('_', '-')} {getattr(arguments, name)}" for name in names)
    chosen = [row for row in rows if row["chosen"] and row["finish"] == "qdrop"]
    kept = sum(str(row["label"]).startswith("uniform") for row in chosen)
    return "\n".join(
        [
            "# Detection and segmentation: searched against uniform, QDrop against nearest\n",
            f"`python benchmarks/other_tasks.py --seeds {len(seeds)} {flags}`; torch {torch.__version__}; {identity()}.\n",
            f"Mean ± standard deviation over the seeds {', '.join(map(str, seeds))} (weights, batches, samples), in "
            f"percent, over {arguments.evaluation} held-out scenes of 64 x 64. Sizes are of the packed checkpoint; inputs "
            f"have {arguments.a_bits} bits. `searched` is what the run chose, or, where it kept the uniform assignment "
            f"({kept} of {len(chosen)} times), the optimum of its proxy.\n",
            "## Detector (examples/yolo.py), average precision of COCO\n",
            *table(rows, "yolo"),
            "\n## U-Net (examples/unet.py), intersection over union\n",
            *table(rows, "unet"),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, usual in (("seeds", 3), ("steps", 300), ("count", 600), ("calibration", 64), ("search", 64)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    for name, usual in (
        ("evaluation", 150),
        ("a-bits", 8),
        ("trials", 8),
        ("iterations", 60),
        ("threads", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--folder", type=Path, default=ROOT / "studies" / "other_tasks")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not (arguments.folder / "data").is_dir():
        data.write_all(arguments.folder / "data", arguments.count)
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []
    done = {(row["model"], row["seed"], row["bits"]) for row in rows}
    for seed in range(arguments.seeds):
        for name in TASKS:
            for bits in BITS:
                if (name, seed, bits) in done:
                    continue
                found = list(measured(name, seed, bits, arguments))
                rows += found
                with RESULTS.open("a") as stream:
                    stream.writelines(json.dumps(row) + "\n" for row in found)
                RESULTS.with_suffix(".md").write_text(page(rows, arguments))


if __name__ == "__main__":
    main()
