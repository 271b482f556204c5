"""mpsearch beside other tools on the same weights, images, bytes and processor.

    python -m benchmarks.peers --networks resnet20,vit --peers mpsearch,mct,modelopt --bits 4,3 --a-bits 8
    python -m benchmarks.peers --quick        one network, two budgets: under fifteen minutes of CPU time
    python -m benchmarks.peers --table        the page docs/results.md and its pictures from the rows

Needs the assets folder (MPSEARCH_ASSETS, else ../shared/assets). Each tool runs in a virtual environment of
its own below `--environments`, which is made when it is first needed. A row of (tool, network, bits, bits of
inputs, seed) is appended to benchmarks/results/peers.jsonl and not run again; `--again` runs those that
failed once more. Logits stay below `--work`, so that differences can be paired.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers import page, rows
from benchmarks.peers.counting import RULES, uniform_bytes
from benchmarks.peers.environments import interpreter
from benchmarks.peers.images import float_top1, prepare
from benchmarks.peers.job import Job
from benchmarks.peers.judging import judge, paired
from benchmarks.peers.networks import ASSETS, NETWORKS, ROOT, float_model, weights_file
from mpsearch.hardware import identity

PEERS = ("mpsearch", "mct", "modelopt", "onnxruntime", "nncf", "torchao", "aimet")
QUICK = {"networks": "resnet20", "bits": "4,3", "peers": "mpsearch,mct,modelopt,onnxruntime"}
SECONDS = 3600


def main() -> None:
    arguments = parsed()
    if arguments.table:
        page.write(rows.joined(rows.read(arguments.rows), rows.few_bits()))
        return
    print(f"Counting: {RULES}\n", file=sys.stderr)
    for job in jobs(arguments):
        row = rows.find(job.key, arguments.rows)
        if row is None or (arguments.again and "failed" in row):
            row = carry_out(job, arguments)
            rows.append(row, arguments.rows)
        print(said(row), flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--peers", default=",".join(PEERS), help="variants: mct+gptq, modelopt+mse, ...")
    parser.add_argument("--bits", default="6,5,4,3,2.5")
    parser.add_argument("--a-bits", default="8")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--quick", action="store_true", help=f"the same as {QUICK}")
    parser.add_argument("--again", action="store_true", help="run rows that failed once more")
    parser.add_argument(
        "--table", action="store_true", help="write docs/results.md from the rows; run nothing"
    )
    parser.add_argument("--rows", type=Path, default=rows.ROWS)
    parser.add_argument("--work", type=Path, default=ROOT / "studies" / "peers")
    parser.add_argument("--environments", type=Path, default=ROOT / "studies" / "peers" / "environments")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="wall-clock limit of one row")
    parser.add_argument("--judged", type=int, help="judge fewer images")
    parser.add_argument("--most-images", type=int, help="for a trial: give the other tools fewer images")
    arguments = parser.parse_args()
    if arguments.quick:
        for key, value in QUICK.items():
            setattr(arguments, key, value)
    unknown = set(arguments.networks.split(",")) - set(NETWORKS)
    unknown |= {peer.partition("+")[0] for peer in arguments.peers.split(",")} - set(PEERS)
    if unknown:
        known = f"networks: {', '.join(NETWORKS)}; peers: {', '.join(PEERS)}"
        parser.error(f"not known: {', '.join(sorted(unknown))}. There are {known}.")
    return arguments


def jobs(arguments: argparse.Namespace) -> list[Job]:
    """Network by network, budget by budget, so that a reader of unfinished rows compares the most."""
    lists = (
        str(getattr(arguments, name)).split(",") for name in ("networks", "seeds", "a_bits", "bits", "peers")
    )
    product = itertools.product(*lists)
    return [Job(peer, network, float(bits), int(a), int(seed)) for network, seed, a, bits, peer in product]


def carry_out(job: Job, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the adapter in its environment, judge its logits here, and give the row."""
    images = prepare(job.network, job.seed, arguments.work, arguments.judged)
    weights = weights_file(job.network, arguments.work)
    budget = uniform_bytes(float_model(job.network, weights), job.bits, job.a_bits)
    row: dict[str, Any] = {**job.key, "budget_bytes": budget, "float_top1": round(float_top1(images), 4)}
    folder = (arguments.work / job.label).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    given = {"job": job.key, "images": str(images), "weights": str(weights), "budget_bytes": budget}
    given["most_images"] = arguments.most_images
    (folder / "job.json").write_text(json.dumps(given))
    (folder / "made.json").unlink(missing_ok=True)
    try:
        python = interpreter(job.peer.partition("+")[0], arguments.environments)
    except subprocess.CalledProcessError as error:
        return (
            row | {"failed": f"pip: exit code {error.returncode}"} | machine(Path(sys.executable), job.peer)
        )
    made = run_adapter(python, folder, arguments.seconds)
    layers = made.pop("layers", None)
    if layers is not None:
        (folder / "layers.json").write_text(json.dumps(layers))
        row |= judge(folder / "logits.npz", images)
        reference = arguments.work / Job("mpsearch", job.network, job.bits, job.a_bits, job.seed).label
        if job.peer != "mpsearch" and (reference / "logits.npz").is_file():
            row["less_mpsearch"] = paired(folder / "logits.npz", reference / "logits.npz", images)
    return row | made | machine(python, job.peer)


def run_adapter(python: Path, folder: Path, seconds: int) -> dict[str, Any]:
    """The adapter's process; one that dies without a word is a row with the reason too."""
    environment = os.environ | {
        "MPSEARCH_ASSETS": str(ASSETS.resolve()),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    with (folder / "log.txt").open("w") as log:
        try:
            code: int | str = subprocess.run(
                [python, "-m", "benchmarks.peers.adapter", folder],
                env=environment,
                cwd=folder,
                stdout=log,
                stderr=log,
                timeout=seconds,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return {"failed": f"not finished in {seconds} s of wall-clock time"}
    made = folder / "made.json"
    if not made.is_file():
        last = (folder / "log.txt").read_text().strip().splitlines()[-1:] or [""]
        return {"failed": f"the process ended with exit code {code}: {last[0][:300]}"}
    found: dict[str, Any] = json.loads(made.read_text())
    return found


def machine(python: Path, peer: str) -> dict[str, Any]:
    """Where the row was made and with which versions."""
    packages = {"mct": "model-compression-toolkit", "modelopt": "nvidia-modelopt", "aimet": "aimet-torch"}
    package = packages.get(peer.partition("+")[0], peer.partition("+")[0])
    code = (
        "import importlib.metadata as m, json;"
        f"print(json.dumps({{p: m.version(p) for p in ('{package}', 'torch', 'timm')}}))"
    )
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    versions = (
        json.loads(found.stdout) if found.returncode == 0 else {"torch": importlib.metadata.version("torch")}
    )
    return {"versions": versions, "threads": 1, "device": str(identity())}


def said(row: dict[str, Any]) -> str:
    head = f"{row['network']} {row['bits']:g}x{row['a_bits']} {row['peer']}: "
    if "failed" in row:
        return f"{head}failed: {row['failed']}"
    return (
        f"{head}KL {row['kl']:.4f} +- {row['kl_error']:.4f}, top-1 {row['top1']:.1%}, {row['mean_bits']:.2f} "
        f"bits, {row['size_bytes']:,} of {row['budget_bytes']:,} B, {row['cpu_seconds']:.0f} CPU s, "
        f"{row['peak_mib']} MiB"
    )


if __name__ == "__main__":
    main()
