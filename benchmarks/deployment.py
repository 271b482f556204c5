"""Deployment on real weights and images: for each target and budget, bytes and latency predicted and
measured, and accuracy through the runtime itself.

Run: python benchmarks/deployment.py resnet56 vit mobilenet [--bits 8,6,4] [--targets packed,onnx,...]. Needs
the assets folder (MPSEARCH_ASSETS, else ../shared/assets). An assignment is the exact optimum of `output_mse`
within the bytes of the uniform width; weights are rounded to nearest, or learned with --iterations. Every
artifact is run in a process of its own; the table is written after every row, and rows that it has are not
made again.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mpsearch.allocator import keep_freed_memory
from mpsearch.data import ImageSet
from mpsearch.deploy.artifact import open_artifact
from mpsearch.deploy.process import bench_apart
from mpsearch.errors import UserError
from mpsearch.hardware import identity
from mpsearch.pipeline import RunConfig, Silent
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.jobs.export import Deployer
from mpsearch.pipeline.jobs.imported import open_workshop
from mpsearch.pipeline.jobs.points import Point
from mpsearch.pipeline.steps.costs import resolve_budgets, sized_problem
from mpsearch.pipeline.steps.latency import latency_table
from mpsearch.pipeline.steps.latency_model import add_latency
from mpsearch.pipeline.steps.scores import add_scores
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.problem import Assignment, Problem
from mpsearch.solvers import solve

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("MPSEARCH_ASSETS", ROOT.parent / "shared" / "assets"))
JPEG = {"data": "images/cifar10_jpeg_test_5000.zip", "calibration_data": "images/cifar10_jpeg_train_1000.zip"}
IMAGENET = {"data": "images/imagenet_val_1000.zip", "calibration_data": "images/imagenet_calib_1000.zip"}
MODELS: dict[str, dict[str, Any]] = {
    "resnet56": {
        "model": "cifar_resnet56",
        "weights": "cifar10_resnet56",
        "evaluation_images": 4000,
        "data": JPEG["data"],
    },
    "vit": {"model": "vit_cifar", "weights": "cifar10_vit_d128x6", "evaluation_images": 4000, **JPEG},
    "resmlp": {
        "model": "resmlp_cifar",
        "weights": "cifar10_resmlp_d160x6",
        "evaluation_images": 4000,
        **JPEG,
    },
    "mobilenet": {
        "model": "mobilenetv1_075",
        "weights": "mobilenetv1_075_in1k",
        "evaluation_images": 936,
        **IMAGENET,
    },
}
VIEWED = ("mobilenet",)  # few images: each counts four times, as in `views`
BACKEND_OF = {"onnx": "ort-cpu", "openvino": "openvino-cpu"}
COLUMNS = (
    *(
        "model",
        "budget",
        "target",
        "bits",
        "packed bytes predicted",
        "artifact bytes",
        "latency predicted, ms",
        "latency measured, ms (p50, p99)",
    ),
    *(
        "top-1 float",
        "top-1 fake-quantised",
        "top-1 through the runtime",
        "difference, points (± at most)",
        "cosine (mean, least)",
        "notes",
    ),
)


@dataclass(frozen=True)
class Ready:
    """A model with its tables; `timed` has the problem with latencies for each target that a backend
    predicts.
    """

    name: str
    workshop: Workshop
    problem: Problem
    timed: dict[str, Problem]
    deployer: Deployer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--bits", default="8,6,4")
    parser.add_argument(
        "--targets", default="packed,onnx,onnx:four_bit=matmulnbits,openvino,onnx-tensorrt,torchao"
    )
    parser.add_argument("--calibration-images", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=0)
    parser.add_argument(
        "--images", type=int, default=None, help="Evaluation images; each model's own number without it."
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="Of timing, for each artifact.")
    parser.add_argument("--studies", type=Path, default=ROOT / "studies")
    parser.add_argument("--tables", type=Path, default=ROOT / "latency_tables")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "deployment.md")
    arguments = parser.parse_args()
    keep_freed_memory()
    held = arguments.output.with_suffix(".json")
    rows: list[dict[str, Any]] = json.loads(held.read_text()) if held.is_file() else []
    rows = [
        r for r in rows if r["model"] not in arguments.models or r["device"] == str(identity())
    ]  # a model's rows are of one device
    done = {(r["model"], r["budget"], r["target"]) for r in rows}
    for name in arguments.models:
        wanted = [
            (b, t)
            for b in arguments.bits.split(",")
            for t in arguments.targets.split(",")
            if (name, f"{b}bits", t) not in done
        ]
        ready = prepared(name, arguments) if wanted else None
        for bits, target in wanted:
            point = Point(f"{bits}bits", _optimum(ready, bits), arguments.iterations > 0)
            rows.append(
                {
                    **row(ready, point, target, arguments),
                    "command": _command(arguments),
                    "device": str(identity()),
                }
            )
            print(" | ".join(_cells(rows[-1])), flush=True)
            _write(rows, arguments)


def _command(arguments: argparse.Namespace) -> str:
    command = (
        f"python benchmarks/deployment.py {' '.join(arguments.models)} --bits {arguments.bits} "
        f"--targets {arguments.targets}"
    )
    command += f" --calibration-images {arguments.calibration_images} --iterations {arguments.iterations}"
    return command if arguments.images is None else f"{command} --images {arguments.images}"


def prepared(name: str, arguments: argparse.Namespace) -> Ready:
    """Images, ranges, scores and the latency table of a model."""
    settings = dict(MODELS[name])
    paths = {key: str(ASSETS / settings.pop(key)) for key in ("data", "calibration_data") if key in settings}
    factory, weights = settings.pop("model"), settings.pop("weights")
    config = RunConfig(
        budgets=("8bits",),
        model=f"{ROOT / 'examples' / 'assets.py'}:{factory}",
        weights=str(ASSETS / "weights" / f"{weights}.safetensors"),
        calibration_images=arguments.calibration_images,
        search_images=64,
        evaluation_images=arguments.images or settings.pop("evaluation_images"),
        objectives=("output_mse:images=32",),
        iterations=arguments.iterations,
        tables=str(arguments.tables),
        **paths,
    )
    study = Study(arguments.studies / f"deployment-{name}")
    workshop = open_workshop(config, study, Silent())
    if name in VIEWED:
        splits = workshop.subject.splits
        workshop.subject = replace(
            workshop.subject, splits=replace(splits, evaluation=views(splits.evaluation))
        )
    problem = sized_problem(workshop.subject, config)
    targets = {target.partition(":")[0] for target in arguments.targets.split(",")}
    timed = {
        target: _timed(problem, workshop, backend)
        for target, backend in BACKEND_OF.items()
        if target in targets
    }
    problem, _ = add_scores(problem, workshop.subject, workshop.calibration, config, study, Silent())
    return Ready(name, workshop, problem, timed, Deployer(workshop, study.path / "export"))


def views(images: ImageSet) -> ImageSet:
    """Each image, its mirror image, and both shifted by two pixels: how a runtime rounds differs from one to
    the other, so 0.3 points can be told.
    """
    pixels = torch.cat([images.images, images.images.flip(-1)])
    shifted = torch.nn.functional.pad(pixels.float(), (2, 0, 2, 0), mode="replicate")[..., :-2, :-2].to(
        torch.uint8
    )
    labels = None if images.labels is None else images.labels.repeat(4)
    return replace(
        images, images=torch.cat([pixels, shifted]), labels=labels, name=f"{images.name}, four views"
    )


def _timed(problem: Problem, workshop: Workshop, backend: str) -> Problem:
    """The problem with what each candidate takes in a runtime; candidates that it has no kernel for are
    gone.
    """
    config = replace(workshop.config, target=backend)
    table, where = latency_table(problem, config, Silent())
    return add_latency(
        problem,
        config,
        table,
        where,
        replace(workshop, config=config).deployment.architecture(problem),
        Silent(),
    )[0]


def _predicted_us(ready: Ready, point: Point, target: str) -> float | None:
    """None where the target has no backend here, or the backend has no kernel for a layer at its bits."""
    problem = ready.timed.get(target)
    if problem is None or any(
        point.assignment[layer.name] not in row
        for layer, row in zip(problem.layers, problem.candidates, strict=True)
        if len(row) > 1
    ):
        return None
    return problem.cost(problem.indices(point.assignment)).latency_us


def _optimum(ready: Ready, bits: str) -> Assignment:
    config = RunConfig(**{**ready.workshop.config.__dict__, "budgets": (f"{bits}bits",)})
    budgets = resolve_budgets(ready.problem, config)
    return ready.problem.assignment(solve(ready.problem, "output_mse", budgets).indices)


def row(ready: Ready, point: Point, target: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One artifact: exported, run, timed."""
    start = time.monotonic()
    found: dict[str, Any] = {"model": ready.name, "budget": point.label, "target": target}
    try:
        found |= ready.deployer.export(point, target)
    except UserError as error:
        return found | {"error": str(error)}
    found["predicted_latency_us"] = _predicted_us(ready, point, target)
    found["float_metrics"] = _float_top1(ready)
    source = ready.workshop.subject.source
    try:
        found["bench"] = bench_apart(
            open_artifact(found["folder"]),
            seconds=arguments.seconds,
            model=source if source.kind == "factory" else None,
        )
    except UserError as error:
        found["bench_error"] = str(error)
    found["seconds"] = time.monotonic() - start
    del found["folder"]
    return found


def _float_top1(ready: Ready) -> float:
    images = ready.workshop.subject.splits.evaluation
    return float(
        (ready.workshop.evaluation.reference()["evaluation"].argmax(1) == images.labels).float().mean()
    )


def _write(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    rows.sort(
        key=lambda found: (found["model"], -float(found["budget"].removesuffix("bits")), found["target"])
    )
    packages = ("torch", "timm", "onnx", "onnxruntime", "torchao", "openvino")
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    commands = ", ".join(f"`{command}`" for command in dict.fromkeys(r["command"] for r in rows))
    machines = "; ".join(dict.fromkeys(f"{r['model']} on {r['device']}" for r in rows))
    about = (
        f"{commands}, seed 0, {', '.join(versions)}. {machines}. {torch.get_num_threads()} threads "
        "of torch, 1 of a timed runtime. "
    )
    about += (
        f"Reconstruction steps for each block: {arguments.iterations}. Latency: batch 1, wall clock "
        "of single calls, with other work on the machine. "
    )
    about += (
        "Difference: of the top-1 through the runtime from the fake-quantised model's on the same "
        "images, 4,000 of CIFAR-10 or 936 of ImageNet in four "
    )
    about += "views each (mirrored, shifted by two pixels: all top-1 of the MobileNet are of these), with a "
    about += "bound on its standard error from how many images are decided otherwise. "
    about += (
        "Predicted latency: rows of single layers and whole-model runs of the target's own runtime, "
        "CPU time; packed and torchao have none, as there is "
    )
    about += (
        "no table of torch's kernels on a CPU, and no run takes a latency budget for them. Bits of inputs: 8."
    )
    lines = "".join(f"| {' | '.join(_cells(found))} |\n" for found in rows)
    arguments.output.write_text(
        f"# Deployment\n\n{about}\n\n| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n{lines}"
    )
    arguments.output.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")


def _error(ran: dict[str, Any]) -> float:
    """Greatest standard error of the difference in points: each image that is decided otherwise counts at
    most one way.
    """
    return 100 * math.sqrt((1 - ran["same_decision"]) / ran["images"])


def _cells(found: dict[str, Any]) -> list[str]:
    head = [found["model"], found["budget"], found["target"]]
    if "error" in found:
        return [*head, *[""] * 10, found["error"]]
    ran, fake = found["runtime"], found["fake_quantized"]
    timed = found["bench"]["batches"][0]["latency_us"] if "bench" in found else None
    predicted = "" if found["predicted_latency_us"] is None else f"{found['predicted_latency_us'] / 1e3:.3f}"
    latency = "" if timed is None else f"{timed['p50'] / 1e3:.3f}, {timed['p99'] / 1e3:.3f}"
    accuracy = (
        ["", "", ""]
        if ran is None
        else [
            f"{ran['top1']:.2%}",
            f"{(ran['top1'] - fake['top1']) * 100:+.2f} ± {_error(ran):.2f}",
            f"{ran['cosine_mean']:.6f}, {ran['cosine_least']:.6f}",
        ]
    )
    sizes = [f"{found['mean_bits']:.2f}", f"{found['predicted_bytes']:,}", f"{found['artifact_bytes']:,}"]
    notes = " ".join([*found["notes"], *([found["reason"]] if ran is None else [])])
    return [
        *head,
        *sizes,
        predicted,
        latency,
        f"{found['float_metrics']:.2%}",
        f"{fake['top1']:.2%}",
        *accuracy,
        notes,
    ]


if __name__ == "__main__":
    main()
