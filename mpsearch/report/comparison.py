"""`compare`: the choices of several studies of one model beside each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpsearch.efforts import format_duration
from mpsearch.errors import StudyError, UserError
from mpsearch.report.page import DAMAGE
from mpsearch.report.saved import Saved, damaged, read_saved
from mpsearch.report.verdict import brief, gains_of, loss_of, signed


@dataclass(frozen=True)
class Comparison:
    """S studies.

    Args:
        names: S names that tell them apart.
        facts: Of each study what `_FACTS` names, plain values; None where it is not known.
        bits: Layer -> S candidates as printed; None where a study has no such layer.
    """

    names: tuple[str, ...]
    facts: tuple[dict[str, Any], ...]
    bits: dict[str, tuple[str | None, ...]]

    @property
    def differing(self) -> dict[str, tuple[str | None, ...]]:
        """The layers that do not have the same everywhere."""
        return {layer: held for layer, held in self.bits.items() if len(set(held)) > 1}

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`."""
        rows = zip(self.names, self.facts, strict=True)
        return {
            "studies": [{"name": name, **facts} for name, facts in rows],
            "layers": [
                {"layer": layer, **dict(zip(self.names, held, strict=True))}
                for layer, held in self.bits.items()
            ],
        }


def compare(paths: Sequence[Path]) -> Comparison:
    """Read finished studies and put their choices beside each other.

    Args:
        paths: Their folders, two at least.

    Raises:
        UserError: Fewer than two are named, or one twice.
        StudyError: One is missing, unfinished or damaged; or two are of different models or different
            evaluation images, so that nothing they say can be compared.
    """
    if len(paths) < 2:
        raise UserError("There is nothing to compare with. Name two studies or more.")
    resolved = [Path(path).resolve() for path in paths]
    twice = next((p for i, p in enumerate(paths) if resolved.index(resolved[i]) < i), None)
    if twice is not None:
        raise UserError(f"{twice} is named twice. Name each study once.")
    held = [read_saved(Path(path)) for path in paths]
    for other in held[1:]:
        _require_comparable(held[0], other)
    names, facts = _names(paths), []
    for study in held:
        try:
            facts.append(_facts(study))
        except DAMAGE as error:
            raise damaged(study.path, error) from error
    assignments = [study.problem.assignment(study.best["indices"]) for study in held]
    layers = dict.fromkeys(name for assignment in assignments for name in assignment)
    bits = {layer: tuple(str(a[layer]) if layer in a else None for a in assignments) for layer in layers}
    return Comparison(tuple(names), tuple(facts), bits)


def _require_comparable(first: Saved, other: Saved) -> None:
    """Raises StudyError where layers, weights or evaluation images differ."""
    shapes = [
        {layer.name: layer.weight_shape for layer in study.problem.layers if layer.weight_shape}
        for study in (first, other)
    ]
    pair = f"{first.path} and {other.path} cannot be compared: "
    if shapes[0] != shapes[1]:
        odd = sorted(n for n in {**shapes[0], **shapes[1]} if shapes[0].get(n) != shapes[1].get(n))
        raise StudyError(
            f"{pair}they are of different models ({first.model} and {other.model}; layers differ, such as "
            f"{odd[0]!r}). Name studies of one model."
        )
    smooth = {str(study.study["config"].get("smooth", "none")) for study in (first, other)}
    if len(smooth) == 1 and first.study["hashes"]["weights"] != other.study["hashes"]["weights"]:
        raise StudyError(
            f"{pair}their models have different weights. Name studies that were run with the same weights."
        )
    images = [study.study["splits"]["parts"]["evaluation"] for study in (first, other)]
    if images[0]["content_hash"] != images[1]["content_hash"]:
        told = " and ".join(f"{part['images']:,} of {part['source']}" for part in images)
        raise StudyError(
            f"{pair}they were evaluated on different images ({told}), so their accuracies are not of one "
            "kind. Run both with the same --data, --seed and numbers of images."
        )


def _names(paths: Sequence[Path]) -> list[str]:
    """Names of the folders; the paths as they were typed where two folders have one name."""
    short = [Path(path).name or str(path) for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _facts(saved: Saved) -> dict[str, Any]:
    """Of the choice."""
    best, loss = saved.best, loss_of(saved)
    gains = {gain.resource: gain for gain in gains_of(saved)}
    size, latency = gains.get("size_bytes"), gains.get("latency_us")
    metrics = best["metrics"]
    return {
        "model": saved.model,
        "budgets": [b.text for b in saved.budgets],
        "target": saved.target,
        "objective": saved.front["objective"],
        "chosen": best["label"],
        "reason": best.get("reason"),
        "mean_bits": saved.chosen["mean_bits"],
        "size_predicted_bytes": best["predicted"].get("size_bytes"),
        "size_bytes": best["artifact"]["size_bytes"],
        "size_ratio": size and size.ratio,
        "latency_predicted_us": best["predicted"].get("latency_us"),
        "latency_us": best["measured"].get("latency_us"),
        "latency_ratio": latency and latency.ratio,
        "energy_mj": best["measured"].get("energy_mj"),
        "bops": best["predicted"].get("bops"),
        "images": metrics["images"],
        "top1": metrics["top1"],
        "points_lost": loss and loss.points,
        "points_lost_low": loss and loss.low,
        "points_lost_high": loss and loss.high,
        "measure": saved.measure,
        "damage": metrics["kl"],
        "agreement": metrics["agreement"],
        "scores": metrics.get("scores", {}),
        "budgets_kept": all(b.kept(best["measured"]) for b in saved.budgets),
        "trials": len(saved.front["measured"]),
        "took_s": saved.took_s,
    }


_FACTS: tuple[tuple[str, Callable[[dict[str, Any]], str | None]], ...] = (
    ("model", lambda f: f["model"]),
    ("budget", lambda f: ", ".join(f["budgets"]) or "none"),
    ("budgets kept", lambda f: "yes" if f["budgets_kept"] else "NO"),
    ("target", lambda f: f["target"]),
    ("objective", lambda f: f["objective"]),
    ("chosen", lambda f: f["chosen"]),
    ("bits a weight", lambda f: f"{f['mean_bits']:.2f}"),
    ("size on disk", lambda f: brief(f["size_bytes"], "size_bytes")),
    ("smaller than float", lambda f: f["size_ratio"] and f"{f['size_ratio']:.2f}x"),
    ("latency predicted", lambda f: _quantity(f["latency_predicted_us"], "latency_us")),
    ("latency measured", lambda f: _quantity(f["latency_us"], "latency_us")),
    ("faster than float", lambda f: f["latency_ratio"] and f"{f['latency_ratio']:.2f}x"),
    ("energy", lambda f: _quantity(f["energy_mj"], "energy_mj")),
    ("bit operations", lambda f: _quantity(f["bops"], "bops")),
    ("top-1", lambda f: None if f["top1"] is None else f"{f['top1']:.2%}"),
    ("points lost", lambda f: None if f["points_lost"] is None else f"{f['points_lost']:.2f}"),
    (
        "  95% interval",
        lambda f: (
            None
            if f["points_lost"] is None
            else f"{signed(f['points_lost_low'])} to {signed(f['points_lost_high'])}"
        ),
    ),
    ("damage to float", lambda f: f"{f['damage']:.5f} {f['measure']}"),
    ("decisions as float", lambda f: f"{f['agreement']:.2%}"),
    ("trials", lambda f: f"{f['trials']:,}"),
    ("took", lambda f: f["took_s"] and format_duration(f["took_s"])),
)
"""Rows of the table, and how a study fills them; a row that no study fills is left out."""


def _quantity(value: float | None, resource: str) -> str | None:
    return None if value is None else brief(value, resource)


def told(comparison: Comparison) -> list[tuple[str, ...]]:
    """The rows of the table: name and S texts; empty where a study does not say."""
    scores = dict.fromkeys(name for facts in comparison.facts for name in facts["scores"])
    rows = [(name, [make(facts) for facts in comparison.facts]) for name, make in _FACTS]
    for score in scores:
        held = [facts["scores"].get(score) for facts in comparison.facts]
        rows.append((score, [None if value is None else f"{value:.4f}" for value in held]))
    return [(name, *(text or "" for text in texts)) for name, texts in rows if any(texts)]
