"""mpsearch as a user runs it: one command, from files to the artifact, with its defaults.

The target is `packed`, because the others' results are judged as fake-quantised models too, and no latency
is measured.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import torch
from torch import Tensor

import mpsearch
from benchmarks.peers.counting import Layer, units
from benchmarks.peers.job import Made, Task, cpu_seconds
from benchmarks.peers.networks import ASSETS, FACTORIES, NETWORKS, factory

NAME = "row"


def quantize(task: Task) -> Made:
    """Calibration and search images are drawn by the command itself: those that the others are given.

    Raises: RuntimeError: The command failed; its last words.
    """
    job, study = task.job, task.folder / "studies" / NAME
    shutil.rmtree(study, ignore_errors=True)  # what an earlier try has done is not this row's time
    before = cpu_seconds()
    ran = subprocess.run(command(task), capture_output=True, text=True, check=False, cwd=task.folder)
    (task.folder / "output.txt").write_text(ran.stdout + ran.stderr)
    if ran.returncode:
        raise RuntimeError(ran.stderr[-400:])
    spent = cpu_seconds() - before
    best = json.loads((study / "best.json").read_text())
    made = mpsearch.load(study / "artifact" / "model.safetensors", factory(job.network)())
    modules = units(task.model)
    layers, weights = [], {}
    for name, choice in best["assignment"].items():
        if name not in modules:  # a product of activations, float here
            continue
        w, _, a = choice.removeprefix("W").partition("A")
        layers.append(Layer.of(name, modules[name].weight, int(w), int(a)))
        weights[name] = made.get_submodule(name).weight
    notes = f"mpsearch run, defaults, --target packed; chosen: {best['label']}"
    notes += f"; {job.peer.partition('+')[2]}" if "+" in job.peer else ""
    size = (study / "artifact" / "model.safetensors").stat().st_size

    def predict(x: Tensor) -> Tensor:
        return torch.as_tensor(made(x))

    return Made(predict, layers, weights, notes, size, spent)


def command(task: Task) -> list[str]:
    """What a user would type; a variant `mpsearch+1min` adds a time limit."""
    job, network = task.job, NETWORKS[task.job.network]
    options = {
        "--model": f"{FACTORIES}:{network.factory}",
        "--weights": task.weights,
        "--data": ASSETS / network.data,
        "--calibration-images": network.calibration,
        "--search-images": network.search,
        "--evaluation-images": network.judged,
        "--target": "packed",
        "--budget": f"{job.bits:g}bits",
        "--a-bits": job.a_bits,
        "--seed": job.seed,
        "--name": NAME,
    }
    if network.calibration_data is not None:
        options["--calibration-data"] = ASSETS / network.calibration_data
    if "+" in job.peer:
        options["--time-limit"] = job.peer.partition("+")[2]
    return [sys.executable, "-m", "mpsearch", "run", *(str(x) for pair in options.items() for x in pair)]
