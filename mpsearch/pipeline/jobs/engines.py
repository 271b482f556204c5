"""`mpsearch profile --target tensorrt --write DIR`: inputs of engines that tell what a model's units,
tensors and changes of precision take, for a machine with a GPU.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mpsearch import files
from mpsearch.deploy.targets.onnx_tensorrt import COMMAND, OnnxTensorRt
from mpsearch.errors import OptionError
from mpsearch.hardware.trtexec import KERNELS, Network, script, write_manifest
from mpsearch.hardware.whole import Kernels, mixed_kernels
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.costs import sized_problem
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pipeline.steps.network import network_of
from mpsearch.pipeline.steps.ranges import calibrate_subject
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.problem import Candidate, Layer

LEAST_MIXED = 8
"""Mixed engines that a latency budget needs beside the uniform ones."""
UNIFORM = ("float", "int8", "int8-units")


def write_engines(
    config: RunConfig, folder: Path, progress: Progress, count: int = 16, batch: int = 1
) -> dict[str, Kernels]:
    """Write strongly typed ONNX files, `builds.json`, which says what they are, and one script that builds
    and times them.

    Args:
        config: Model and images; the target is TensorRT.
        folder: Where they go; an earlier `builds.json` there is replaced, another file is not touched.
        progress: Where progress goes.
        count: Engines in all: half precision, all int8, int8 at unit inputs alone, and mixed ones.
        batch: Images in a call.
    Returns: Build -> kernels of the network's layers.
    Raises: OptionError: Too few engines, or a batch below 1.
    """
    if count < len(UNIFORM) + LEAST_MIXED:
        raise OptionError(
            f"--models is {count}; {len(UNIFORM)} uniform engines and {LEAST_MIXED} mixed ones are needed to "
            f"predict others, which is {len(UNIFORM) + LEAST_MIXED}."
        )
    if batch < 1:
        raise OptionError(f"--batch is {batch}; it must be 1 or more.")
    require_empty(folder)
    subject = load_subject(config, progress, labelled=False)
    network = network_of(subject)
    calibration = calibrate_subject(subject, config, progress)
    builds = planned_builds(network.layers, sized_problem(subject, config).ties, count, config.seed)
    target = config.deployment
    assert isinstance(target, OnnxTensorRt)
    calls = []
    with tempfile.TemporaryDirectory() as name, progress.task("write engines' inputs") as advance:
        workshop = Workshop(subject, calibration, config, Study(Path(name)), progress)
        for done, (build, kernels) in enumerate(builds.items(), start=1):
            pairs = zip(network.layers, kernels, strict=True)
            asked = {layer.name: Candidate.parse(kernel) for layer, kernel in pairs}
            states = {unit: calibration.state(unit, asked[unit]) for unit in subject.layout.units}
            calls.append(
                (build, target.write_model(workshop.deployment.job(states, batch=batch), folder, build))
            )
            advance(done, len(builds))
    write_manifest(folder, Network(network.name, network.layers, network.wires, builds), batch)
    files.write_text(folder / COMMAND, script(calls, f"{len(calls)} engines of {network.name}"))
    return builds


def planned_builds(
    layers: Sequence[Layer], ties: Sequence[Sequence[int]], count: int, seed: int
) -> dict[str, Kernels]:
    """Which engines to build.

    Args:
        layers: Units and tensors of a network.
        ties: Groups of layers that share a choice; every layer is in one.
        count: How many; fewer where no more differ.
        seed: Random seed of the mixed ones.
    """
    choices = [KERNELS[:1] if layer.op == "matmul" else KERNELS for layer in layers]
    units = tuple("W8A8" if layer.weight_shape else "float" for layer in layers)
    float_engine, int8 = (tuple(kernel if kernel in row else row[0] for row in choices) for kernel in KERNELS)
    found = dict(zip(UNIFORM, (float_engine, int8, units), strict=True))
    mixed = [k for k in mixed_kernels(choices, ties, count + 1, seed) if k not in found.values()]
    mixed = mixed[: count - len(found)]
    return found | {f"mixed-{i:02d}": kernels for i, kernels in enumerate(mixed, start=1)}


def require_empty(folder: Path) -> None:
    """Raises OptionError where the folder holds something that was not written by this command."""
    if folder.is_file():
        raise OptionError(f"{folder} is a file. Name a folder with --write.")
    try:
        ours = "builds" in json.loads((folder / "builds.json").read_text())
    except (OSError, ValueError, TypeError):
        ours = False
    if folder.is_dir() and any(folder.iterdir()) and not ours:
        raise OptionError(f"{folder} holds other files. Name a new folder with --write.")
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
