"""An object detector through search, QDrop and export, with mean average precision before and after.

Run: python examples/detection/run.py [--epochs 6] [--budgets 4bits 3bits] [--threads 1]. The detector is
trained on generated scenes for some minutes, its weights kept in studies/detection; the study of each budget
is kept too, so that the script resumes where it was interrupted.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))
from detector import Detector, loss  # noqa: E402
from scenes import SceneSet, scenes  # noqa: E402

from mpsearch.hardware import identity  # noqa: E402
from mpsearch.pipeline import search  # noqa: E402


def trained(train: SceneSet, epochs: int, seed: int, path: Path, backbone: str = "test_resnet") -> Detector:
    """The detector of a weights file; where there is none it is trained and the file written. AdamW, one
    cycle, batches of 16.
    """
    torch.manual_seed(seed)
    model = Detector(backbone)
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model.eval()
    steps = epochs * (len(train) // 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    model.train()
    began = time.monotonic()
    for step in range(steps):
        picked = torch.randint(len(train), (16,))
        found = loss(model(train.inputs(picked)), train.labels[picked])
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
        schedule.step()
        if step % 25 == 0:
            print(
                f"step {step} of {steps}: loss {found.item():.3f}, {time.monotonic() - began:.0f} s",
                flush=True,
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return model.eval()


def searched(model: Detector, budget: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One study: inputs at `a_bits`, the first and the last layer at 8 bits."""
    return search(
        model,
        scenes(arguments.calibration + arguments.search, "train", arguments.seed + 1),
        evaluation=scenes(arguments.evaluation, "test", arguments.seed),
        budgets=[budget],
        study=arguments.folder / f"{budget}-A{arguments.a_bits}",
        task="detection",
        objectives=("output_mse", "weight_mse"),
        calibration_images=arguments.calibration,
        search_images=arguments.search,
        first_last_bits=8,
        a_bits=arguments.a_bits,
        trials=arguments.trials,
        iterations=arguments.iterations,
        threads=arguments.threads,
        seed=arguments.seed,
        target=arguments.target,
        tables=str(arguments.folder / "latency_tables"),
    )


def rows(budget: str, result: dict[str, Any]) -> list[str]:
    """Lines of the table: what a study measured, before and after reconstruction, and through the runtime."""
    found = []
    for row in result["rows"]:
        near, after = row["nearest"], row.get("reconstructed")
        chosen = row["label"] == result["best"]["label"]
        runtime = _precision(result["best"]["artifact"].get("onnx_scores")) if chosen else "| -"
        latency = f"{(after or near)['latency_us'] / 1e3:.2f}" if "latency_us" in near else "-"
        cells = [
            budget,
            row["label"] + (" (chosen)" if chosen else ""),
            f"{row['mean_bits']:.2f}",
            f"{(after or near)['size_bytes']:,.0f}",
            latency,
        ]
        line = (
            f"| {' | '.join(cells)} {_precision(near['metrics']['scores'])} "
            f"{_precision(after and after['metrics']['scores'])} {runtime} |"
        )
        found.append(line)
    return found


def _precision(scores: dict[str, float] | None) -> str:
    return "| -" if scores is None else f"| {scores['map50']:.1%}, {scores['map']:.1%}"


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--scenes", type=int, default=1200)
    parser.add_argument("--budgets", nargs="+", default=["4bits", "3bits"])
    parser.add_argument("--a-bits", type=int, default=4)
    parser.add_argument("--calibration", type=int, default=256)
    parser.add_argument("--search", type=int, default=128)
    parser.add_argument("--evaluation", type=int, default=400)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--target", default="ort-cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / "studies" / "detection")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "detection.md")
    return parser


def main() -> None:
    arguments = options().parse_args()
    torch.set_num_threads(arguments.threads)
    train = scenes(arguments.scenes, "train", arguments.seed)
    model = trained(
        train,
        arguments.epochs,
        arguments.seed,
        arguments.folder / f"detector-{arguments.scenes}-{arguments.epochs}-{arguments.seed}.safetensors",
    )
    lines = []
    for budget in arguments.budgets:
        lines += rows(budget, searched(model, budget, arguments))
        arguments.output.write_text(text(arguments, lines))
        print("\n".join(lines), flush=True)


def text(arguments: argparse.Namespace, lines: list[str]) -> str:
    """The page of results."""
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "timm", "onnxruntime"))
    names = (
        "epochs",
        "scenes",
        "a_bits",
        "calibration",
        "search",
        "evaluation",
        "trials",
        "iterations",
        "threads",
        "seed",
    )
    command = " ".join(f"--{name.replace('_', '-')} {getattr(arguments, name)}" for name in names)
    return "\n".join(
        [
            "# An object detector: search, QDrop, export\n",
            (
                f"`python examples/detection/run.py --budgets {' '.join(arguments.budgets)} {command}`, "
                f"{versions}. {identity()}.\n"
            ),
            (
                "test_resnet (timm) up to stride 8 and a head of three convolutions, trained on "
                f"{arguments.scenes} generated 64 x 64 scenes of digits;"
            ),
            (
                f"precision over {arguments.evaluation} scenes of other digits. Inputs at {arguments.a_bits} "
                "bits, first and last layer W8A8."
            ),
            (
                "Each cell: mAP at IoU 0.5, mAP at IoU 0.5 to 0.95. `ONNX` is the exported file, run by ONNX "
                "Runtime.\n"
            ),
            "| budget | assignment | bits | bytes | ms | nearest | QDrop | ONNX |",
            "|---" * 8 + "|",
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    main()
