"""Q-MLP and plain ResMLP on CIFAR-10 at 8 and at 4 bits by `mpsearch finetune`, one of them killed and gone on
with.

Run: python benchmarks/qmlp.py qmlp resmlp. Needs the assets folder (MPSEARCH_ASSETS, else ../shared/assets).
Float weights of Q-MLP are made by examples/qmlp.py. All of it may be stopped, and goes on where it was; the page
is written after every row.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from mpsearch.files import write_text
from mpsearch.hardware import identity

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("MPSEARCH_ASSETS", ROOT.parent / "shared" / "assets"))
TRAIN, TEST = (ASSETS / "images" / f"cifar10_jpeg_{part}.zip" for part in ("train_50000", "test_5000"))
RESMLP = ASSETS / "weights" / "cifar10_resmlp_d160x6.safetensors"
PLAIN = "--input-observer minmax --input-grids symmetric"
"""What a ResMLP has in the place of Q-MLP's ranges and grids."""
HEADER = (
    "| model | bits | top-1 | loss to W8A8 | KL to float | size | top-1 before | KL before |\n"
    + "|---" * 8
    + "|\n"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variants", nargs="+", choices=("qmlp", "resmlp"))
    parser.add_argument("--images", type=int, default=12800, help="to learn from, a stratified random subset")
    parser.add_argument("--steps", type=int, help="of each fine-tuning; an epoch without it")
    parser.add_argument(
        "--kill", action="store_true", help="kill the last run at its first checkpoint, and go on"
    )
    parser.add_argument("--weights", type=Path, default=ROOT / "studies" / "qmlp_cifar.safetensors")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "qmlp.md")
    options = parser.parse_args()
    if "qmlp" in options.variants and not options.weights.exists():
        script = ROOT / "examples" / "qmlp.py"
        words = [script, RESMLP, TRAIN, options.weights, "--images", options.images]
        subprocess.run([sys.executable, *map(str, words)], check=True)
    lines, said = list[str](), list[str]()
    for variant in options.variants:
        eight = None
        for bits in (8, 4):
            command = command_of(options, variant, bits)
            last = (variant, bits) == (options.variants[-1], 4)
            if options.kill and last:
                killed(command, ROOT / "studies" / f"bench-{variant}")
            found = made(command)
            said.append(" ".join(command))
            top1 = found["rows"][2]["metrics"]["top1"]
            eight = top1 if eight is None else eight
            lines += rows_of(variant, bits, found, eight)
            write_text(options.output, page(lines, said, options))


def command_of(options: argparse.Namespace, variant: str, bits: int) -> list[str]:
    """The command, as words; paths are those of this machine."""
    model = "qmlp_cifar" if variant == "qmlp" else f"{ROOT / 'examples' / 'assets.py'}:resmlp_cifar"
    weights = options.weights if variant == "qmlp" else RESMLP
    words = (
        f"mpsearch finetune --preset q-mlp --bits {bits} --a-bits {bits} --model {model} --weights {weights}"
    )
    words += f" --data {TRAIN} --evaluation-data {TEST} --images {options.images} --name bench-{variant}"
    words += "" if options.steps is None else f" --steps {options.steps}"
    return [*words.split(), *(PLAIN.split() if variant == "resmlp" else ())]


def made(command: list[str]) -> dict:
    """What the command found; its progress goes to stderr."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*command, "--format", "json"], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{seconds:.0f} s of CPU", file=sys.stderr)
    return json.loads(done.stdout)


def killed(command: list[str], study: Path) -> None:
    """Start the command, and kill it when it has written another checkpoint."""
    known = set((study / "steps").glob("finetune-*.safetensors"))
    process = subprocess.Popen([*command, "--format", "json"], stdout=subprocess.DEVNULL, cwd=ROOT)
    while process.poll() is None and set((study / "steps").glob("finetune-*.safetensors")) <= known:
        time.sleep(1)
    process.kill()
    print(f"Killed; exit code {process.wait()}.", file=sys.stderr)


def rows_of(variant: str, bits: int, found: dict, eight: float) -> list[str]:
    """Of the table: the float model where it is the first of its kind, and a width."""
    plain, before, after = ({**row["metrics"], "size": row["size_bytes"]} for row in found["rows"])
    cells = [f"{after['top1']:.2%}", f"{100 * (eight - after['top1']):+.2f} points", f"{after['kl']:.4f}"]
    cells += [f"{after['size']:,.0f} B", f"{before['top1']:.2%}", f"{before['kl']:.4f}"]
    row = f"| {variant} | W{bits}A{bits} | {' | '.join(cells)} |\n"
    if bits != 8:
        return [row]
    return [f"| {variant} | float | {plain['top1']:.2%} | | 0 | {plain['size']:,.0f} B | | |\n", row]


def page(lines: list[str], commands: list[str], options: argparse.Namespace) -> str:
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "timm"))
    shown = "\n".join(commands).replace(str(ASSETS), "ASSETS").replace(f"{ROOT}/", "")
    resumed = (
        " The last was killed (SIGKILL) at its first checkpoint and started again, which went on from there."
        if options.kill
        else ""
    )
    return (
        "# Q-MLP: quantisation-aware fine-tuning on CIFAR-10\n\nFloat weights: `python examples/qmlp.py` with "
        f"{options.images:,} images. Then\n\n```\n{shown}\n```\n\n`python benchmarks/qmlp.py` runs these; {versions}, "
        f"{identity()}.{resumed}\n\n{HEADER}{''.join(lines)}\nTop-1 on all 5,000 test JPEGs, which nothing was "
        "learned from; its standard error is 0.6 points. `before` is the start: closed form (GPTQ), no training. This "
        "is training, not post-training quantisation, and the figures are not those of the paper, whose models and "
        "data are others.\n"
    )


if __name__ == "__main__":
    main()
