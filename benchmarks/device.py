"""Seconds of each step of a run on the GPU beside the CPU's; where there is no GPU, the CPU's alone.

Run: python benchmarks/device.py [--devices cpu,cuda] [--model NAME --weights FILE --data FOLDER] [--out FILE]

The same settings on each device, in a study of its own: `--target packed` (nothing is timed for a table), the
closed form, four measured trials. Without --model it is the embedded example, which is fitted first and not
counted. The device is used once before (a first call of cuDNN takes seconds). What FILE has is not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from mpsearch.accelerator import describe_device, find_device
from mpsearch.allocator import keep_freed_memory
from mpsearch.errors import OptionError
from mpsearch.hardware import identity
from mpsearch.pipeline import RunConfig, run
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.steps.loading import load_subject


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", default="cpu,cuda", help="Those that are not here are left out.")
    for given in ("--model", "--weights", "--data"):
        parser.add_argument(given)
    parser.add_argument("--budget", default="5bits")
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--images", type=int, help="Of each split; those of --effort quick without it.")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    keep_freed_memory()
    held: dict[str, Any] = json.loads(given.out.read_text()) if given.out and given.out.is_file() else {}
    for device in given.devices.split(","):
        if device in held:
            continue
        try:
            find_device(device)
        except OptionError as error:
            print(f"left out: {error}", file=sys.stderr, flush=True)
            continue
        held[device] = seconds_of(device, given)
        if given.out:
            given.out.write_text(json.dumps(held, indent=1) + "\n")
    print(table(held))


def seconds_of(device: str, given: argparse.Namespace) -> dict[str, Any]:
    """Step -> seconds of one run, the whole of it, and what computed."""
    config = RunConfig(
        budgets=(given.budget,),
        model=given.model,
        weights=given.weights,
        data=given.data,
        target="packed",
        effort="quick",
        trials=given.trials,
        device=device,
        calibration_images=given.images,
        search_images=given.images,
    )
    load_subject(config, Silent())  # fits and caches the embedded example
    images = torch.rand(8, 16, 32, 32, device=find_device(device))
    torch.nn.functional.conv2d(images, images[:, :, :3, :3]).sum().item()
    with tempfile.TemporaryDirectory() as folder:
        plan = run(config, Study(Path(folder) / "study"), Silent())["plan"]
    about = {
        **describe_device(find_device(device)),
        "cpu": str(identity()),
        "threads": torch.get_num_threads(),
    }
    return {"steps": plan["took"], "all": plan["took_s"], "torch": torch.__version__, **about}


def table(held: dict[str, dict[str, Any]]) -> str:
    """A row for each step, a column for each device, and how many times as fast the last is as the first."""
    names, more = list(held), len(held) > 1
    steps = list(dict.fromkeys(step for found in held.values() for step in found["steps"]))
    rows = [[step, *(found["steps"].get(step, 0.0) for found in held.values())] for step in steps]
    rows.append(["all", *(found["all"] for found in held.values())])
    lines = [f"| step | {' | '.join(f'{name}, s' for name in names)} |{' ratio |' if more else ''}"]
    lines.append("|---" * (1 + len(names) + more) + "|")
    for step, *seconds in rows:
        ratio = f" {seconds[0] / seconds[-1]:.1f} |" if more and seconds[-1] else " |" if more else ""
        lines.append(f"| {step} | {' | '.join(f'{value:.2f}' for value in seconds)} |{ratio}")
    about = [
        f"{name}: {found.get('name', found['cpu'])}, torch {found['torch']}" for name, found in held.items()
    ]
    return "\n".join([*about, "", *lines])


if __name__ == "__main__":
    main()
