"""The files of a network beside each other: bytes, time of loading, peak memory, latency, top-1, and how often
their top class is the packed checkpoint's.

Run: python -m benchmarks.deployed_files [digits mobilenet vit] [--bits 8,5,4,3]. MobileNet and ViT need the
assets folder (MPSEARCH_ASSETS, else ../shared/assets); images as in few_bits.py. An assignment is uniform, with
8-bit inputs, and finished in closed form on the calibration images of `--effort quick`. Rows are added to
benchmarks/results/deployed_files.jsonl, and those that are there are not made again; the tables of
deployed_files.md, behind the line `## Files`, are written anew.

Bytes are those of the artifact without its manifest. Loading, memory and latency are of `file_probe.py`: three
processes for each file, which take turns with those of the other files of a point, so that what else the
machine does hits them alike. The first of a runtime's runs all judged images, one by one; the checkpoint's outputs are
computed here.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.few_bits import ROOT, settings, top1
from mpsearch.deploy import load
from mpsearch.deploy.artifact import Artifact, write_artifact
from mpsearch.errors import UserError
from mpsearch.evaluate import predict
from mpsearch.hardware import identity
from mpsearch.hardware.openvino_nodes import CONFIG
from mpsearch.pipeline import RunConfig, Silent
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.jobs.export import Deployer, slug
from mpsearch.pipeline.jobs.imported import open_workshop
from mpsearch.pipeline.jobs.points import Point, uniform
from mpsearch.problem import FLOAT, Candidate

RESULTS = ROOT / "benchmarks" / "results" / "deployed_files.md"
MARK = "## Files\n"
JUDGED = {"digits": None, "mobilenet": 500, "vit": 1000}
TITLES = {
    "digits": "resnet34 on digits",
    "mobilenet": "MobileNetV1 0.75 on ImageNet",
    "vit": "ViT on CIFAR-10",
}
FORMS = ("onnx", "onnx:weights=plain", "openvino", "openvino:weights=plain", "packed")
PLAIN = ":weights=plain"
FLOAT_FORM = "onnx:weights=plain"
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "packed": "mpsearch"}
ROUNDS, CALLS = 3, 40
WIDTHS = (8, 5, 4, 3)
IMAGES, OUTPUTS = "images.npy", "outputs.npy"
PACKAGES = ("mpsearch", "torch", "timm", "onnxruntime", "openvino")
COLUMNS = (
    *(
        "weights",
        "form",
        "bytes",
        "load, ms (CPU time)",
        "peak memory, MB (before loading)",
        "latency, ms (CPU time)",
    ),
    *("packed / plain (CPU time)", "top-1", "class as the checkpoint"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", choices=[*JUDGED, []])
    parser.add_argument("--bits", default=",".join(map(str, WIDTHS)))
    arguments = parser.parse_args()
    rows = read()
    for bits in (None, *map(int, arguments.bits.split(","))):
        for name in arguments.networks or JUDGED:
            held = {row["form"] for row in rows if (row["network"], row["bits"]) == (name, bits)}
            if held >= set(forms(bits)):
                continue
            found = measured(name, bits)
            rows += found
            with RESULTS.with_suffix(".jsonl").open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in found)
            print("\n".join(map(line, found)), flush=True)
            write(rows, RESULTS)


def read() -> list[dict[str, Any]]:
    held = RESULTS.with_suffix(".jsonl")
    return [json.loads(text) for text in held.read_text().splitlines()] if held.is_file() else []


def forms(bits: int | None) -> tuple[str, ...]:
    """What is written of a point; of the float model, None, one file."""
    return (FLOAT_FORM,) if bits is None else FORMS


@functools.cache
def opened(name: str) -> Deployer:
    """Model, images and ranges of a network, its judged images in a file."""
    if name == "digits":
        config = RunConfig(budgets=("4bits",), effort="quick", trials=0)
    else:
        few = {"calibration_images": None, "search_images": 1, "evaluation_images": JUDGED[name]}
        config = replace(settings(name, 0, "4x8"), effort="quick", trials=0, **few)
    study = Study(ROOT / "studies" / f"deployed-files-{name}")
    deployer = Deployer(open_workshop(config, study, Silent()), study.path / "export")
    deployer.folder.mkdir(parents=True, exist_ok=True)
    np.save(deployer.folder / IMAGES, deployer.workshop.subject.splits.evaluation.inputs().numpy())
    return deployer


def measured(name: str, bits: int | None) -> list[dict[str, Any]]:
    """Rows of a point."""
    deployer, busy = opened(name), os.getloadavg()[0]
    subject = deployer.workshop.subject
    candidate = FLOAT if bits is None else Candidate(bits, 8)
    point = Point(str(candidate), uniform(subject, candidate), bits is not None)
    job = deployer.workshop.deployment.job(deployer.states_of(point))
    artifacts, rows = dict[str, Artifact](), dict[str, dict[str, Any]]()
    for form in forms(bits):
        rows[form] = {"network": name, "bits": bits, "form": form}
        try:
            folder = deployer.folder / slug(form) / point.label
            artifacts[form] = write_artifact(folder, form, job, {"label": point.label})
        except UserError as error:
            rows[form]["refused"] = str(error)
    images, model = subject.splits.evaluation, None if subject.source.kind == "timm" else subject.source.name
    given, rounds = deployer.folder / IMAGES, list[dict[str, dict[str, float]]]()
    for turn in range(ROUNDS):
        order = list(artifacts.items())[:: (-1) ** turn]
        rounds.append({form: probed(held, given, model, whole=turn == 0) for form, held in order})
    packed = artifacts.get("packed")
    module = subject.module if packed is None else load(packed.folder / packed.target.file, model)
    expected = predict(module, images)
    outputs = {
        form: expected if held is packed else torch.from_numpy(np.load(held.folder / OUTPUTS))
        for form, held in artifacts.items()
    }
    for form, held in artifacts.items():
        rows[form] |= {"bytes": held.size_bytes, "notes": held.manifest["notes"], "images": len(images)}
        rows[form] |= {
            key: round(statistics.median(r[form][key] for r in rounds), 3) for key in rounds[0][form]
        }
        rows[form] |= {"top1": top1(outputs[form], images.labels), "same": same(outputs[form], expected)}
        if form + PLAIN in artifacts:
            rows[form] |= beside_plain(form, rounds, outputs)
    about = {
        "load": round(max(busy, os.getloadavg()[0]), 2),
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
    }
    return [{**row, **about, "device": str(identity())} for row in rows.values()]


def same(outputs: Tensor, expected: Tensor) -> float:
    """Share of images with the same top class."""
    return float((outputs.argmax(1) == expected.argmax(1)).double().mean())


def beside_plain(form: str, rounds: list[dict[str, Any]], outputs: dict[str, Tensor]) -> dict[str, Any]:
    """Latency over that of the plain form, in the median round, and whether outputs are equal bit for bit."""
    ratios = {
        f"{key}_ratio": round(statistics.median(r[form][key] / r[form + PLAIN][key] for r in rounds), 3)
        for key in ("call_ms", "call_cpu_ms")
    }
    return {**ratios, "equal": torch.equal(outputs[form], outputs[form + PLAIN])}


def probed(artifact: Artifact, images: Path, model: str | None, *, whole: bool) -> dict[str, float]:
    """What one process of its own says of a file; with all images, unless it is the checkpoint, whose outputs
    need no runtime.
    """
    target = artifact.target
    whole = whole and not target.needs_model
    job = {"images": str(images), "count": None if whole else CALLS, "model": model}
    job |= {"outputs": str(artifact.folder / OUTPUTS) if whole else None}
    job |= {"config": {**CONFIG, "INFERENCE_NUM_THREADS": "1", "INFERENCE_PRECISION_HINT": "f32"}}
    script = Path(__file__).with_name("file_probe.py")
    command = [sys.executable, str(script), RUNTIMES[target.name], str(artifact.folder / target.file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, json.dumps(job)], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    return dict(json.loads(done.stdout))


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """The tables behind the head that the page has."""
    head = path.read_text().partition(MARK)[0] if path.is_file() else ""
    path.write_text(f"{head}{MARK}\n{tables(rows)}")


def tables(rows: list[dict[str, Any]]) -> str:
    """Markdown: who measured, and a table for each network."""
    said = [about(rows)]
    for name, title in TITLES.items():
        own = [row for row in rows if row["network"] == name]
        own.sort(key=lambda row: (-(row["bits"] or 32), forms(row["bits"]).index(row["form"])))
        if own:
            images = next(row["images"] for row in own if "images" in row)
            head = f"### {title}, {images} images"
            said.append(
                "\n".join(
                    [head, "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", *map(line, own)]
                )
            )
    return "\n\n".join(said) + "\n"


def about(rows: list[dict[str, Any]]) -> str:
    """Versions, device, how busy it was, equal outputs, and what is missing."""
    versions = dict.fromkeys(", ".join(f"{k} {v}" for k, v in row["versions"].items()) for row in rows)
    devices = dict.fromkeys(row["device"] for row in rows)
    loads = [row["load"] for row in rows]
    pairs = [row for row in rows if "equal" in row]
    equal = sum(row["equal"] for row in pairs)
    held = {(row["network"], row["bits"]) for row in rows}
    gaps = [f"{name} W{bits}A8" for name in JUDGED for bits in WIDTHS if (name, bits) not in held]
    missing = f" Not measured yet: {', '.join(gaps)}." if gaps else ""
    return (
        f"{'; '.join(versions)}. {'; '.join(devices)}. Load average at the points: {min(loads):.1f} to "
        f"{max(loads):.1f}. Packed and plain give equal outputs, bit for bit, in {equal} of {len(pairs)} pairs.{missing}"
    )


def line(row: dict[str, Any]) -> str:
    weights = "float" if row["bits"] is None else f"W{row['bits']}A8"
    form = "`onnx`" if row["bits"] is None else f"`{row['form']}`"
    if "refused" in row:
        return f"| {weights} | {form} | {row['refused']} |{' |' * (len(COLUMNS) - 3)}"
    cells = [
        f"{row['bytes']:,}",
        f"{row['load_ms']:.0f} ({row['load_cpu_ms']:.0f})",
        f"{row['peak_mb']:.0f} ({row['before_mb']:.0f})",
        f"{row['call_ms']:.2f} ({row['call_cpu_ms']:.2f})",
        f"{row['call_ms_ratio']:.2f} ({row['call_cpu_ms_ratio']:.2f})" if "equal" in row else "",
        f"{row['top1']:.1%}",
        f"{row['same']:.1%}",
    ]
    return f"| {weights} | {form} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
