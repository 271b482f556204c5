"""`detection`: boxes, which a function of the user's makes of what the model gives."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpsearch.data import SampleSet, are_boxes
from mpsearch.errors import DataError, MissingExtraError, OptionError
from mpsearch.evaluate.metrics import Metrics
from mpsearch.evaluate.tasks._base import TASKS
from mpsearch.evaluate.tasks.outputs import Output, Outputs
from mpsearch.foreign import first_line
from mpsearch.usercode import load_code

Found = Sequence[Mapping[str, Any]]
"""For each sample `boxes` K x 4 (left, top, right, bottom in pixels of the model's input), `scores` K and
`labels` K.
"""
_KEYS = {"boxes": 4, "scores": 1, "labels": 1}


@TASKS.register("detection")
@dataclass(frozen=True)
class Detection(Outputs):
    """Outputs are what a detector's heads give, before boxes are chosen among them; the damage is that of
    `outputs`: the squared error of each of them over the variance of the float model's. Labels are boxes, N
    x M x 6.

    The scores are `map` and `map50`, COCO's average precision over IoU 0.5 to 0.95 and at 0.5, of the boxes
    that `decode` makes of the outputs. `agreement` is as of `outputs`.

    Args:
        decode: `file.py:function`, called with the outputs of N samples as the model gives them (one tensor,
            or a
            dict of several by name); returns N dicts with `boxes`, `scores` and `labels`.

    References: Lin et al., Microsoft COCO, ECCV 2014, arXiv:1405.0312; pycocotools computes it.
    """

    decode: str = ""

    def seen(self, parts: tuple[Output, ...]) -> Detection:
        """The same for a model of which it is known what it gives. Raises OptionError without `decode`."""
        if not self.decode:
            raise OptionError(
                "The task detection needs the function that makes boxes of what the model gives: "
                "detection:decode=file.py:function. Without one leave --task out; every output counts then."
            )
        if importlib.util.find_spec("pycocotools") is None:
            raise MissingExtraError("pycocotools", "detection", "Average precision")
        return KnownDetection(self.decode, parts)

    def compare(self, outputs: Tensor, reference: Tensor, labels: Tensor | None = None) -> Metrics:
        """Average precision, and the signal-to-noise ratios."""
        found = super().compare(outputs, reference, labels)
        if labels is None:
            return found
        return replace(found, scores={**average_precision(self.boxes(outputs), labels), **found.scores})

    def require_labels(self, samples: SampleSet, outputs: Tensor) -> None:
        """Labels are boxes, and `decode` takes the outputs."""
        self.boxes(outputs)
        if samples.labels is not None and not are_boxes(samples.labels):
            raise DataError(
                f"{samples.name} has labels of shape {tuple(samples.labels.shape)}; the task detection "
                "takes boxes: a "
                "folder with COCO's or VOC's annotations, or samples (image, {'boxes': M x 4, 'labels': M})."
            )

    def boxes(self, outputs: Tensor) -> Found:
        """What `decode` makes of N outputs. Raises OptionError where it fails, or gives no boxes."""
        parts = self.known(outputs)
        pieces = torch.split(outputs.flatten(1), [part.numel for part in parts], 1)
        by_name = {
            part.name: piece.reshape(len(piece), *part.shape)
            for part, piece in zip(parts, pieces, strict=True)
        }
        decode = load_code(self.decode, "a function that makes boxes of the model's outputs", OptionError)
        try:
            with torch.no_grad():
                found = list(decode(by_name if len(parts) > 1 else next(iter(by_name.values()))))
        except Exception as error:  # the user's own code may raise anything
            raise OptionError(
                f"{self.decode} failed on outputs of shape {_shapes(by_name)}: {type(error).__name__}: "
                f"{first_line(error)} Mend the function."
            ) from error
        if len(found) != len(outputs) or any(not _fits(each) for each in found):
            raise OptionError(
                f"{self.decode} must return, for each of {len(outputs)} samples, a dict of boxes K x 4 "
                "(left, top, "
                "right, bottom), scores K and labels K. Mend the function."
            )
        return found


@dataclass(frozen=True)
class KnownDetection(Detection):
    """`detection` of a model that was seen.

    Args:
        parts: What is joined, in order.
    """

    parts: tuple[Output, ...] = ()

    def known(self, reference: Tensor) -> tuple[Output, ...]:
        """Those that were seen, whatever the reference."""
        return self.parts


def average_precision(found: Found, labels: Tensor) -> dict[str, float]:
    """COCO's `map` and `map50`, at most 100 boxes a sample; 0 where there are no true boxes.

    Args:
        found: Boxes of N samples.
        labels: N x M x 6: class, left, top, right, bottom, and 1 where a box does not count; class -1 behind
            them.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, guesses = _truth(labels), _guesses(found)
    if not truth or not len(guesses):
        return {"map": 0.0, "map50": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        known = COCO()
        known.dataset = {
            "info": {},
            "images": [{"id": i + 1} for i in range(len(labels))],
            "annotations": truth,
            "categories": [{"id": c} for c in sorted({each["category_id"] for each in truth})],
        }
        known.createIndex()
        judged = COCOeval(known, known.loadRes(guesses), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return {"map": max(float(judged.stats[0]), 0.0), "map50": max(float(judged.stats[1]), 0.0)}


def _truth(labels: Tensor) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for i, sample in enumerate(labels.tolist(), start=1):
        for kind, left, top, right, bottom, crowd in sample:
            if kind >= 0:
                box, area = [left, top, right - left, bottom - top], (right - left) * (bottom - top)
                about = {
                    "image_id": i,
                    "category_id": int(kind),
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                }
                found.append({"id": len(found) + 1, **about})
    return found


def _guesses(found: Found) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """K x 7, as pycocotools reads them: sample, left, top, width, height, score, class."""
    rows = []
    for i, each in enumerate(found, start=1):
        boxes, scores, labels = (
            torch.as_tensor(each[key], device="cpu").double().reshape(-1, width)
            for key, width in _KEYS.items()
        )
        sizes = boxes[:, 2:] - boxes[:, :2]
        rows.append(
            torch.cat([torch.full((len(boxes), 1), i, device="cpu"), boxes[:, :2], sizes, scores, labels], 1)
        )
    return np.asarray(torch.cat(rows).numpy(), dtype=np.float64)


def _fits(found: Any) -> bool:
    if not isinstance(found, Mapping) or not set(_KEYS) <= found.keys():
        return False
    count = len(found["boxes"])
    return (
        len(found["scores"]) == len(found["labels"]) == count
        and torch.as_tensor(found["boxes"], device="cpu").numel() == 4 * count
    )


def _shapes(outputs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(part.shape)}".strip() for name, part in outputs.items())
