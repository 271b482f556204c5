"""Q-MLP and plain ResMLP on CIFAR-10: quantisation-aware fine-tuning at 8 and at 4 bits, from one trained
ResMLP.

Run: python benchmarks/qmlp.py qmlp resmlp. Needs the assets folder (MPSEARCH_ASSETS, else ../shared/assets).
Every stage has a checkpoint below studies/qmlp/, and measured rows are kept there, so the script resumes; the
table is written after every row.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpsearch.data import ImageSet, load_images
from mpsearch.evaluate.metrics import compare, predict
from mpsearch.files import write_json, write_text
from mpsearch.hardware import identity
from mpsearch.models import load_model
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import UnitState, install
from mpsearch.reconstruct import calibrate
from mpsearch.reconstruct.finetune import FinetuneConfig, Finetuned, finetune
from mpsearch.reconstruct.sensitivity import mixed_states, sensitive_units

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("MPSEARCH_ASSETS", ROOT.parent / "shared" / "assets"))
WEIGHTS = ASSETS / "weights" / "cifar10_resmlp_d160x6.safetensors"
BITS = (8, 4)
OBSERVERS = {"qmlp": "percentile:percent=99.99", "resmlp": "minmax"}
HEADER = (
    (
        "| model | bits | asymmetric inputs | top-1 before fine-tuning | top-1 after | loss to W8A8 | KL to "
        "float | seconds |\n"
    )
    + "|---" * 8
    + "|\n"
)


@dataclass
class Bench:
    """What every stage needs."""

    options: argparse.Namespace
    train: ImageSet
    test: ImageSet
    folder: Path

    def learn(
        self,
        name: str,
        module: nn.Module,
        states: dict[str, UnitState],
        config: FinetuneConfig,
        teacher: nn.Module,
    ) -> Finetuned:
        start = time.monotonic()

        def tell(step: int, total: int, loss: float) -> None:
            if step % 20 == 0 or step == total:
                print(
                    f"{name}: step {step} of {total}, loss {loss:.4f}, {time.monotonic() - start:.0f} s",
                    flush=True,
                )

        file = self.folder / f"{name}.safetensors"
        return finetune(
            module,
            states,
            self.train,
            config,
            teacher=teacher,
            augment=shift_and_flip,
            checkpoint=file,
            on_step=tell,
        )

    def config(self, **changes: float) -> FinetuneConfig:
        settings = {
            "epochs": self.options.epochs,
            "batch_size": 64,
            "learning_rate": 5e-4,
            "step_learning_rate": 5e-3,
            "label_weight": 0.3,
            "seed": 0,
        }
        return FinetuneConfig(**{**settings, **changes})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variants", nargs="+", choices=OBSERVERS)
    parser.add_argument(
        "--images", type=int, default=12800, help="training images, a stratified random subset"
    )
    parser.add_argument("--epochs", type=int, default=1, help="of each fine-tuning stage")
    parser.add_argument(
        "--float-epochs", type=int, default=1, help="of Q-MLP in float, after it took the weights of ResMLP"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=1e-3,
        help="nats of KL above which a unit's input has an asymmetric grid",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "qmlp.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    resmlp = load_model(f"{ROOT / 'examples' / 'assets.py'}:resmlp_cifar", weights=WEIGHTS)
    train = load_images(
        str(ASSETS / "images" / "cifar10_jpeg_train_50000.zip"), resmlp.data_config, limit=options.images
    )
    test = load_images(str(ASSETS / "images" / "cifar10_jpeg_test_5000.zip"), resmlp.data_config)
    bench = Bench(
        options,
        train,
        test,
        ROOT / "studies" / "qmlp" / f"{options.images}x{options.epochs}-{options.float_epochs}",
    )
    rows: list[dict[str, object]] = []
    for variant in options.variants:
        for row in study(bench, variant, resmlp.module):
            rows.append(row)
            write_text(options.output, page(options, rows))
            print(rows[-1], flush=True)


def study(bench: Bench, variant: str, resmlp: nn.Module):
    """Rows of one model: float, then each number of bits."""
    module, stages = resmlp, ()
    if variant == "qmlp":
        start = from_resmlp(resmlp, bench.train.inputs(slice(0, 512)))
        units = [name for name, m in start.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        states = {unit: UnitState(Candidate.parse("float")) for unit in units}
        begin = time.monotonic()
        config = bench.config(epochs=bench.options.float_epochs, learning_rate=1e-3, label_weight=0.5)
        module = bench.learn("qmlp-float", start, states, config, resmlp).module
        stages = (start, time.monotonic() - begin)
    logits = predict(module, bench.test)
    yield measured(bench, f"{variant}-float", lambda: float_row(bench, variant, logits, stages))
    eight = None
    for bits in BITS:
        row = measured(
            bench, f"{variant}-{bits}", lambda bits=bits: quantised_row(bench, variant, module, logits, bits)
        )
        eight = row["after"] if eight is None else eight
        yield {**row, "loss": eight - row["after"]}


def float_row(bench: Bench, variant: str, logits: Tensor, stages: tuple) -> dict[str, object]:
    before = compare(predict(stages[0], bench.test), logits, bench.test.labels).top1 if stages else None
    after = compare(logits, logits, bench.test.labels)
    return {
        "model": variant,
        "bits": "float",
        "asymmetric": "",
        "before": before,
        "after": after.top1,
        "kl": 0.0,
        "seconds": stages[1] if stages else 0.0,
    }


def quantised_row(
    bench: Bench, variant: str, module: nn.Module, logits: Tensor, bits: int
) -> dict[str, object]:
    begin = time.monotonic()
    states, asymmetric = starting_states(bench, variant, module, bits)
    before = compare(predict(install(module, states), bench.test), logits, bench.test.labels)
    done = bench.learn(f"{variant}-w{bits}a{bits}", module, states, bench.config(), module)
    after = compare(predict(install(done.module, done.states), bench.test), logits, bench.test.labels)
    return {
        "model": variant,
        "bits": f"W{bits}A{bits}",
        "asymmetric": asymmetric,
        "before": before.top1,
        "after": after.top1,
        "kl": after.kl,
        "seconds": time.monotonic() - begin,
    }


def starting_states(
    bench: Bench, variant: str, module: nn.Module, bits: int
) -> tuple[dict[str, UnitState], str]:
    """Calibrated states, the first and the last unit at 8 bits; ResMLP's inputs all symmetric, Q-MLP's
    asymmetric where that matters.
    """
    units = [name for name, m in module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    ends = {units[0], units[-1]}
    assignment = Assignment(
        tuple((unit, Candidate(8, 8) if unit in ends else Candidate(bits, bits)) for unit in units)
    )
    inputs = bench.train.inputs(slice(0, 256))
    calibration = calibrate(module, units, inputs.split(64), input_observer=OBSERVERS[variant])
    if variant == "resmlp":
        return mixed_states(calibration, assignment, dict.fromkeys(units, 0.0), 0.0), f"0 of {len(units)}"
    found = sensitive_units(module, calibration, assignment, inputs[:128])
    print("; ".join(f"{unit} {kl:.5f}" for unit, kl in found.items()), flush=True)
    states = mixed_states(calibration, assignment, found, bench.options.threshold)
    return states, f"{sum(kl > bench.options.threshold for kl in found.values())} of {len(units)}"


def from_resmlp(resmlp: nn.Module, inputs: Tensor) -> nn.Module:
    """Q-MLP with ResMLP's stem, head, first token-mixing branch, channel MLPs and layer scales; the second
    branch starts at zero.

    Each layer norm's weight and bias are the least-squares fit, channel by channel, to what ResMLP's affine
    layer gives there.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("qmlp_cifar").eval()
    weights = {
        key.replace("linear_tokens", "mlp_tokens.branches.0"): value
        for key, value in resmlp.state_dict().items()
    }
    own = model.state_dict()
    missing = [key for key in own if key not in weights]
    assert all("branches.1" in key or "norm" in key for key in missing), missing
    model.load_state_dict({key: weights.get(key, own[key]) for key in own})
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    handles = [
        resmlp.get_submodule(name).register_forward_hook(fitting(norm)) for name, norm in norms.items()
    ]
    with torch.no_grad():
        resmlp(inputs)
        for block in model.blocks:
            nn.init.zeros_(block.mlp_tokens.branches[1].fc2.weight)
    for handle in handles:
        handle.remove()
    return model


def fitting(norm: nn.LayerNorm):
    """A forward hook that fits the norm's weight and bias to the module's output."""

    def fit(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        n, y = (
            F.layer_norm(args[0], norm.normalized_shape, eps=norm.eps).flatten(0, -2),
            output.flatten(0, -2),
        )
        slope = ((n - n.mean(0)) * (y - y.mean(0))).mean(0) / n.var(0, unbiased=False).clamp(min=1e-8)
        norm.weight.copy_(slope)
        norm.bias.copy_(y.mean(0) - slope * n.mean(0))

    return fit


def shift_and_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored with probability 1/2 and shifted by up to 4 pixels; what comes in is the mean
    colour.
    """
    x = torch.where(torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5, x.flip(3), x)
    places = torch.randint(9, (len(x), 2), generator=generator).tolist()
    padded, (height, width) = F.pad(x, (4, 4, 4, 4)), x.shape[2:]
    return torch.stack(
        [image[:, i : i + height, j : j + width] for image, (i, j) in zip(padded, places, strict=True)]
    )


def measured(bench: Bench, name: str, make) -> dict:
    """A row, made once."""
    file = bench.folder / f"{name}.json"
    if not file.exists():
        write_json(file, make())
    return json.loads(file.read_text())


def page(options: argparse.Namespace, rows: list[dict]) -> str:
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "timm"))
    command = (
        f"python benchmarks/qmlp.py {' '.join(options.variants)} --images {options.images} "
        f"--epochs {options.epochs}"
    )
    command += (
        f" --float-epochs {options.float_epochs} --threshold {options.threshold} --threads {options.threads}"
    )
    lines = []
    for row in rows:
        before = "" if row["before"] is None else f"{row['before']:.2%}"
        loss = f"{100 * row['loss']:+.2f} points" if "loss" in row else ""
        cells = [
            row["model"],
            row["bits"],
            row["asymmetric"],
            before,
            f"{row['after']:.2%}",
            loss,
            f"{row['kl']:.4f}",
            f"{row['seconds']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |\n")
    return (
        f"# Q-MLP: quantisation-aware fine-tuning on CIFAR-10\n\n`{command}`, seed 0, {versions}. "
        f"{identity()}.\n\n{about(options)}\n\n{HEADER}{''.join(lines)}"
        "\nTop-1 on all 5000 test JPEGs; its standard error is 0.6 points.\n"
    )


def about(options: argparse.Namespace) -> str:
    return (
        f"Training data: {options.images} of the 50,000 training JPEGs (stratified random subset), "
        "shifted and flipped, batches of 64. "
        "Q-MLP takes the stem, the head, the first token-mixing branch, the channel MLPs and the layer "
        "scales of the trained ResMLP; its layer "
        f"norms are fitted to ResMLP's affine layers, and it is trained {options.float_epochs} epoch(s) "
        "in float with ResMLP as teacher: its row "
        "`float` has the start in the column before. Then each bit-width is fine-tuned from that float "
        "model for "
        f"{options.epochs} epoch(s), with the float model as teacher. The stem and the head are at 8 "
        "bits throughout. Q-MLP: layer norm, "
        "clipped GELU, two token-mixing branches, percentile ranges (99.99), asymmetric grids for inputs "
        "whose symmetric grid costs over "
        f"{options.threshold} nats. ResMLP: affine layers, GELU, min-max ranges, symmetric grids; it had "
        "no further float training. "
        "This is training, not post-training quantisation, and the figures are not those of the Q-MLP "
        "paper, whose models and data are others."
    )


if __name__ == "__main__":
    main()
