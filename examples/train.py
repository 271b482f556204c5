"""Train the models of the examples on their data: `python examples/train.py NAME [--data example-data]
[--steps 400]`.

NAME is resnet, two_inputs, unet or yolo, whose weights go to `example-data/NAME.safetensors`, or minilm, a
folder. `examples/data.py` writes the data first.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from resnet import build
from safetensors.torch import save_file
from torch import Tensor, nn
from two_inputs import Answers, samples
from unet import UNet
from yolo import Yolo

from mpsearch.data import load_images, read_texts

CONFIG = {"crop_pct": 1.0, "crop_mode": "center", "interpolation": "bilinear"}
COLOUR = {**CONFIG, "input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
GREY = {**CONFIG, "input_size": (1, 64, 64), "mean": (0.5,), "std": (0.5,)}
Loss = Callable[[nn.Module, Tensor], Tensor]
"""Of a model on the samples at some indices."""


def resnet(data: Path) -> tuple[nn.Module, Loss, int]:
    """Model, loss and number of samples."""
    drawn = load_images(str(data / "digits"), COLOUR, split="train")
    inputs, labels = drawn.inputs(), drawn.require_labels()
    return build(), lambda model, at: F.cross_entropy(model(inputs[at]), labels[at]), len(drawn)


def two_inputs(data: Path) -> tuple[nn.Module, Loss, int]:
    drawn = list(samples())
    images, questions = (torch.stack(column) for column in zip(*(x for x, _ in drawn), strict=True))
    labels = torch.tensor([y for _, y in drawn])
    return (
        Answers(),
        lambda model, at: F.cross_entropy(model(images[at], questions[at]), labels[at]),
        len(drawn),
    )


def unet(data: Path) -> tuple[nn.Module, Loss, int]:
    drawn = load_images(f"masks:{data / 'masks'}", GREY, split="train")
    inputs, labels = drawn.inputs(), drawn.require_labels().long()
    weight = torch.tensor([0.2, *[1.0] * 10])  # most pixels are ground
    return UNet(), lambda model, at: F.cross_entropy(model(inputs[at]), labels[at], weight), len(drawn)


def yolo(data: Path) -> tuple[nn.Module, Loss, int]:
    drawn = load_images(f"coco:{data / 'scenes'}", GREY, split="train")
    inputs, labels = drawn.inputs(), drawn.require_labels()
    model = Yolo()
    nn.init.constant_(model.body[-1].bias[:10], -4.0)  # nearly every cell is empty
    return model, lambda model, at: boxes_loss(model(inputs[at]), labels[at]), len(drawn)


def boxes_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Focal loss of the classes (gamma 2) plus L1 of the boxes where there are some, over the number of
    boxes.

    Args:
        outputs: N x 14 x 8 x 8.
        labels: N x M x 6 boxes; class -1 where there are fewer than M.
    """
    classes, boxes = torch.zeros_like(outputs[:, :10]), torch.zeros_like(outputs[:, 10:])
    held = torch.zeros_like(outputs[:, 0])
    for i, place in (labels[:, :, 0] >= 0).nonzero().tolist():
        kind, left, top, right, bottom = labels[i, place, :5].tolist()
        x, y = (left + right) / 16, (top + bottom) / 16
        column, row = min(int(x), 7), min(int(y), 7)
        size = torch.tensor([right - left, bottom - top]) / 16
        classes[i, int(kind), row, column] = held[i, row, column] = 1.0
        boxes[i, :, row, column] = torch.cat([torch.tensor([x - column - 0.5, y - row - 0.5]), size.log()])
    logits = outputs[:, :10]
    entropy = F.binary_cross_entropy_with_logits(logits, classes, reduction="none")
    focal = (entropy * (classes - logits.sigmoid()).square()).sum()
    off = ((outputs[:, 10:] - boxes).abs().sum(1) * held).sum()
    return (focal + off) / held.sum().clamp(min=1)


EXAMPLES = {"resnet": resnet, "two_inputs": two_inputs, "unet": unet, "yolo": yolo}


def trained(name: str, data: Path, steps: int, seed: int = 0, batch: int = 16) -> nn.Module:
    """The model of an example: AdamW, one cycle.

    Args:
        name: Of the example.
        data: Folder of the data.
        steps: Batches.
        seed: Of weights and batches.
        batch: Samples in each.
    """
    torch.manual_seed(seed)
    model, loss, count = EXAMPLES[name](data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    model.train()
    for at in batches(count, batch, steps):
        optimizer.zero_grad()
        loss(model, at).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def batches(count: int, size: int, steps: int) -> Iterator[Tensor]:
    """Indices: every sample once, then all of them anew."""
    left = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(left) < size:
            left = torch.cat([left, torch.randperm(count)])
        yield left[:size]
        left = left[size:]


def write_weights(model: nn.Module, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)


def write_classifier(folder: Path, texts: Path, steps: int, encoder: str | None = None) -> None:
    """An encoder with a new head for the classes of the texts, fitted on every second one of them, and its
    tokenizer.

    Args:
        folder: Where they go, as `save_pretrained` writes them.
        texts: CSV file of texts and labels.
        steps: Of the head, which alone learns.
        encoder: Folder of the encoder; None for MiniLM's.
    """
    import minilm
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    place = encoder or minilm.folder()
    read = read_texts(str(texts), place)
    rows = [read[i] for i in range(0, len(read), 2)]
    labels = torch.tensor([row.pop("labels") for row in rows])
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(place, num_labels=int(labels.max()) + 1).eval()
    with torch.no_grad():
        arguments = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        pooled = model.base_model(**arguments).pooler_output
    optimizer = torch.optim.AdamW(model.classifier.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model.classifier(pooled), labels).backward()
        optimizer.step()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(place).save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[*sorted(EXAMPLES), "minilm"])
    parser.add_argument("--data", type=Path, default=Path("example-data"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.name == "minilm":
        write_classifier(given.data / "minilm", given.data / "texts.csv", given.steps)
    else:
        model = trained(given.name, given.data, given.steps, given.seed)
        write_weights(model, given.data / f"{given.name}.safetensors")
