"""Seconds and passes of every objective: all units of ResNet56 and MobileNet at six bit-widths.

Run: python benchmarks/objectives.py [resnet56 mobilenet] [--images 128] [--threads 2] [--objective
NAME[:option=value,...] ...]. Needs the assets folder (MPSEARCH_ASSETS, else ../shared/assets). Passes are
counted while the objective runs and compared with what it states; the script ends with exit code 1 where one
made more than that.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mpsearch.data import make_splits
from mpsearch.hardware import identity
from mpsearch.models import analyze, find_foldable, fold_batch_norm, trace_model
from mpsearch.objectives import OBJECTIVES, Objective, Passes, ScoringContext, score
from mpsearch.problem import Candidate
from mpsearch.reconstruct import calibrate

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("MPSEARCH_ASSETS", ROOT.parent / "shared" / "assets"))
sys.path.insert(0, str(ROOT / "examples"))
MODELS = {
    "resnet56": ("cifar_resnet56", "cifar10_resnet56", "cifar10_png_subset.npz"),
    "mobilenet": ("mobilenetv1_075", "mobilenetv1_075_in1k", "imagenet_calib_1000.zip"),
}
CANDIDATES = tuple(Candidate(bits, 8) for bits in (2, 3, 4, 5, 6, 8))
LIMIT_S = 90
MEASURED = ("kl",)  # a pass for every unit and candidate, so it has no limit
COLUMNS = (
    "model",
    "objective",
    "seconds",
    "forward made / stated",
    "backward made / stated",
    "units made / stated",
    "scores repaired",
    "notes",
    "peak GiB so far",
)


class Counter:
    """Images that went forward through the whole model, backward, and through single units beside the passes
    of the whole model.

    A gradient of gradients, for which several outputs are given at once, counts twice.
    """

    def __init__(self) -> None:
        self.forward = self.backward = self.units = self._batch = 0

    @contextmanager
    def watch(self, context: ScoringContext) -> Iterator[None]:
        """Counts calls of the classes' own forwards, so that copies of the model and calls past the hooks are
        counted too.
        """
        calls = sum(layer.calls for layer in context.layers if layer.op != "matmul")
        kinds = {
            type(context.module.get_submodule(layer.name)) for layer in context.layers if layer.op != "matmul"
        }
        kept = {cls: cls.forward for cls in {type(context.module), *kinds}}
        grad = torch.autograd.grad
        torch.autograd.grad = self._counted_grad(grad)
        for cls, forward in kept.items():
            cls.forward = self._whole(forward) if cls not in kinds else self._single(forward)
        try:
            yield
            self.units = max(
                0, self.units - calls * self.forward
            )  # passes that start behind a cut leave units out
        finally:
            torch.autograd.grad = grad
            for cls, forward in kept.items():
                cls.forward = forward

    def _whole(self, forward: object) -> object:
        def counted(module: nn.Module, x: Tensor) -> Tensor:
            self.forward, self._batch = self.forward + len(x), len(x)
            return forward(module, x)

        return counted

    def _single(self, forward: object) -> object:
        def counted(module: nn.Module, x: Tensor, *args: object, **kwargs: object) -> Tensor:
            self.units += len(x)
            return forward(module, x, *args, **kwargs)

        return counted

    def _counted_grad(self, grad: object) -> object:
        def counted(outputs: object, *args: object, **kwargs: object) -> object:
            self.backward += self._batch * (1 if isinstance(outputs, Tensor) else 2)
            return grad(outputs, *args, **kwargs)

        return counted


def prepared(name: str, images: int) -> ScoringContext:
    """The folded model with its calibrated units."""
    import assets

    factory, weights, data = MODELS[name]
    module = getattr(assets, factory)().eval()
    module.load_state_dict(
        {k: v.float() for k, v in load_file(ASSETS / "weights" / f"{weights}.safetensors").items()}
    )
    splits = make_splits(
        str(ASSETS / "images" / data),
        module.pretrained_cfg,
        calibration_images=images,
        search_images=1,
        evaluation_images=1,
        seed=0,
    )
    inputs = splits.calibration.inputs()
    module = fold_batch_norm(module, find_foldable(trace_model(module, inputs[:1]), module))
    layers = tuple(layer for layer in analyze(module, inputs[:1]).layers if layer.op != "matmul")
    calibration = calibrate(module, [layer.name for layer in layers], torch.split(inputs, 32))
    context = ScoringContext(module, layers, (CANDIDATES,) * len(layers), calibration, splits.calibration)
    for (
        layer
    ) in layers:  # the quantisers of the weights belong to the calibration, which all objectives share
        for candidate in CANDIDATES:
            calibration.state(layer.name, candidate)
    return context


def row(name: str, objective: Objective, context: ScoringContext) -> tuple[str, bool]:
    """One line of the table, and whether the objective kept to what it states."""
    counter, stated = Counter(), objective.passes(context) or Passes()
    with counter.watch(context):
        report = score(objective, context)
    made = Passes(counter.forward, counter.backward, counter.units)
    pairs = [(getattr(made, f.name), getattr(stated, f.name)) for f in dataclasses.fields(Passes)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    slow = " (above the limit)" if report.seconds > LIMIT_S and objective.name not in MEASURED else ""
    cells = [
        name,
        f"`{objective.name}`",
        f"{report.seconds:.1f}{slow}",
        *(f"{a} / {b}" for a, b in pairs),
        f"{report.violations}",
        " ".join(report.notes) or "-",
    ]
    return f"| {' | '.join([*cells, f'{peak:.2f}'])} |", all(a <= b for a, b in pairs)


def with_images(text: str, images: int) -> Objective:
    """The objective on that many images, where it takes any."""
    objective = OBJECTIVES.create(text)
    return (
        dataclasses.replace(objective, images=images)
        if any(f.name == "images" for f in dataclasses.fields(objective))
        else objective
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--objective",
        action="append",
        help="may be repeated; all registered ones without it, those that measure last",
    )
    parser.add_argument("--output", type=Path, help="markdown file to write beside what is printed")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    texts = arguments.objective or sorted(OBJECTIVES.names(), key=lambda name: (name in MEASURED, name))
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "timm"))
    lines = [
        "# Cost of the objectives",
        "",
        f"`python benchmarks/objectives.py {' '.join(sys.argv[1:])}`, {versions}, {identity()}.",
        "",
    ]
    lines += [
        (
            f"All units, weights at 2, 3, 4, 5, 6 and 8 bits, inputs at 8, {arguments.images} images, "
            f"{arguments.threads} threads. Passes in images."
        ),
        "",
    ]
    lines += [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    print("\n".join(lines), flush=True)
    kept = True
    for name in arguments.models:
        context = prepared(name, arguments.images)
        for text in texts:
            line, within = row(name, with_images(text, arguments.images), context)
            print(line, flush=True)
            lines.append(line)
            kept &= within
            if arguments.output:
                arguments.output.write_text("\n".join(lines) + "\n")
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
