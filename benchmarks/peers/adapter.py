"""Run one adapter in the environment of its tool: `python -m benchmarks.peers.adapter FOLDER`, by `run`."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.job import Images, Job, Task, carry_out
from benchmarks.peers.networks import float_model, plainly_padded


def read_images(path: Path, part: str, most: int | None = None) -> Images:
    """The first of a part of the images that `images.prepare` wrote."""
    with np.load(path) as held:
        return Images(held[f"{part}_pixels"][:most], held[f"{part}_labels"][:most], held["mean"], held["std"])


def main(folder: Path) -> None:
    given = json.loads((folder / "job.json").read_text())
    torch.set_num_threads(1)
    job, images, weights = Job(**given["job"]), Path(given["images"]), Path(given["weights"])
    model = float_model(job.network, weights)
    calibration = read_images(images, "calibration", given["most_images"])
    if not job.peer.startswith("mpsearch"):
        model = plainly_padded(model, calibration.inputs(0, 1))
    task = Task(
        job,
        model,
        calibration,
        read_images(images, "search", given["most_images"]),
        folder,
        given["budget_bytes"],
        weights,
    )
    tool = importlib.import_module(f"benchmarks.peers.adapters.{job.peer.partition('+')[0]}")
    carry_out(tool.quantize, task, read_images(images, "judged"), folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
