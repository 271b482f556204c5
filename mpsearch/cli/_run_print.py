"""What `mpsearch run` prints: the results table, and what was chosen and written."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mpsearch.cli._show import Format, print_rows, say
from mpsearch.efforts import format_duration
from mpsearch.problem import Budget, below, told_of
from mpsearch.units import format_bytes, format_pair, format_quantity


def print_result(result: dict[str, Any], output: Format) -> None:
    """The results table, or the same as data, on stdout.

    Args:
        result: What `results.json` holds.
        output: Its form.
    """
    if output is Format.json:
        print(json.dumps(result, indent=1))
        return
    timed = bool(result.get("latencies")) or any("latency_us" in row["searched"] for row in result["rows"])
    labelled = any(row["searched"]["metrics"]["top1"] is not None for row in result["rows"])
    compared = [*(["top-1"] if labelled else []), result["measure"]]
    beside = result["best"]["artifact"]["file"] != result["best"]["artifact"]["packed"]
    call = "" if result.get("batch", 1) == 1 else f" of {result['batch']} images"
    times = [
        *([f"ms{call} {'ESTIMATED' if _is_estimate(result) else 'predicted'}"] if timed else []),
        *([f"ms{call} measured"] if timed else []),
        *([f"mJ{call} predicted", f"mJ{call} measured"] if _has_energy(result) else []),
    ]
    header = (
        "",
        "bits",
        "size predicted",
        "size on disk",
        *(["checkpoint"] if beside else []),
        *times,
        *compared,
        *(f"{name} finished" for name in compared),
        *([result["metric"]["name"]] if result.get("metric") else []),
    )
    own = result.get("metric") is not None
    shown = _Shown(beside, timed, _has_energy(result), labelled, own, result["best"]["label"])
    rows = [_cells(row, shown) for row in result["rows"]]
    if output is Format.table:
        _print_table(header, rows)
    else:
        print_rows(header, rows, output)


WIDTH = 100
"""Columns of a terminal that the table takes at most."""
_TOLD_ELSEWHERE = ("size predicted", "checkpoint")
"""Columns that the table leaves out: sizes are predicted to the byte, or the run fails; the checkpoint is
told of below it.
"""


def _print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Numbers whole, labels folded where there is no room for them."""
    kept = [i for i, name in enumerate(header) if name not in _TOLD_ELSEWHERE]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for i in kept:
        title = Text("\n".join(header[i].rsplit(" ", 1)))
        table.add_column(title, justify="right" if i else "left", no_wrap=bool(i), overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[i]) for i in kept))
    wide = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH
    Console(width=min(wide, WIDTH)).print(table)


@dataclass(frozen=True)
class _Shown:
    """Which columns there are (size of a checkpoint beside the file that the budget limits, latency, energy,
    top-1, the user's metric), and the label of the choice.
    """

    checkpoint: bool
    timed: bool
    energy: bool
    labelled: bool
    metric: bool
    chosen: str


def _is_estimate(result: dict[str, Any]) -> bool:
    """Whether latencies are by a table that others have published, and not measured."""
    return str(result.get("latencies") or "").startswith("ESTIMATED")


def _has_energy(result: dict[str, Any]) -> bool:
    """Whether the energy of the rows was predicted and measured."""
    return any("energy_mj" in row["searched"] for row in result["rows"])


def _cells(row: dict[str, Any], shown: _Shown) -> tuple[str, ...]:
    near, after, said = row["searched"], row.get("reconstructed"), row["predicted"]
    written = after or near
    sizes = [f"{near[key]:,.0f} B" for key in ("size_bytes", *(["packed_bytes"] if shown.checkpoint else []))]
    cells = [
        row["label"] + (" [chosen]" if row["label"] == shown.chosen else ""),
        f"{row['mean_bits']:.2f}",
        f"{said['size_bytes']:,.0f} B" if said else "",
        *([f"({size})" for size in sizes] if row["label"].startswith("float") else sizes),
    ]
    if shown.timed:
        cells += [
            f"{known['latency_us'] / 1e3:.3f}" if known.get("latency_us") is not None else ""
            for known in (said, written)
        ]
    if shown.energy:
        cells += [
            f"{known['energy_mj']:.3f}" if known.get("energy_mj") is not None else ""
            for known in (said, written)
        ]
    for measured in (near, after):
        metrics = measured["metrics"] if measured else None
        if shown.labelled:
            cells.append("" if metrics is None or metrics["top1"] is None else f"{metrics['top1']:.2%}")
        cells.append("" if metrics is None else f"{metrics['kl']:.5f}")
    if shown.metric:
        metrics = written["metrics"]
        value = metrics.get("metric")
        cells.append("" if "metric" not in metrics else "not finite" if value is None else f"{value:.6g}")
    return tuple(cells)


def tell_result(result: dict[str, Any], report: Path) -> None:
    """Which budgets are kept, what was chosen and written, on stderr.

    Args:
        result: What `results.json` holds.
        report: The page about it.
    """
    best = result["best"]
    for b in best["budgets"]:
        budget, got = Budget.from_json(b), best["measured"].get(b["resource"])
        kept = "predicted" if got is None else "measured"
        value = best["predicted"][budget.resource] if got is None else got
        used, limit = format_pair(value, budget.limit, budget.resource)
        where = (
            f", {result['latencies']}" if result.get("latencies") and b["resource"] == "latency_us" else ""
        )
        if result.get("batch", 1) != 1 and b["resource"] in ("latency_us", "energy_mj"):
            where += f", for a call of {result['batch']} images"
        say(f"Budget {budget.text}: {kept} {used} of {limit}{_in_new_processes(budget, best)}{where}.")
    if best.get("drop"):
        say(f"{told_of(best['drop'])} {_drop_held_out(result)}")
    for r in best.get("repairs", []):
        got, limit = format_pair(r["measured"], r["limit"], r["resource"])
        predicted = format_quantity(r["predicted"], r["resource"])
        say(f"Repaired: an earlier choice broke {limit} (measured {got}, predicted {predicted}).")
    proxy = best["proxy"]
    optimum = f"the proxy's optimum is {proxy['status']} ({proxy['found_by']})"
    say(f"Chosen: {best['label']} ({best['reason']}); {optimum}.")
    _tell_files(best["artifact"], best["metrics"]["images"])
    plan = result["plan"]
    if "seconds" in plan:
        took, meant = format_duration(plan["took_s"]), format_duration(plan["seconds"])
        say(f"Took {took}; the plan of the steps was {meant}.")
    left = result["not_quantized"]
    say(f"Not quantised: {format_bytes(sum(left.values()))} in {len(left)} tensors, named in {report}.")
    say(f"Report: {report}")


def _drop_held_out(result: dict[str, Any]) -> str:
    """The same score on the images that nothing was chosen by."""
    name, own = result["best"]["drop"]["score"], result.get("metric")

    def score(metrics: dict[str, Any]) -> float:
        held = {**metrics, **metrics.get("scores", {})}
        value = held["metric" if own else name]
        return math.nan if value is None else float(value)

    best, floats = result["best"]["metrics"], result["rows"][0]["searched"]["metrics"]
    return f"On the {best['images']:,} evaluation images: {below(name, score(floats), score(best))}."


def _tell_files(artifact: dict[str, Any], images: int) -> None:
    """What was written, and how it agrees with the checkpoint on so many images."""
    say(
        f"Packed checkpoint: {artifact['packed']}, {format_bytes(artifact['packed_bytes'])}; open it with "
        "mpsearch.load."
    )
    for key, title in (("onnx", "ONNX"), ("openvino", "OpenVINO")):
        if key not in artifact:
            continue
        form = "bit-packed weights" if artifact[key] == artifact["file"] else "8-bit containers"
        units = f"{form}, {format_bytes(artifact[f'{key}_bytes'])}"
        agreement = f"it decides as the checkpoint on {artifact[f'{key}_agreement']:.2%} of {images} images"
        if "latency" not in artifact:
            agreement += f"; {artifact[f'{key}_fresh_latency_us'] / 1e3:.3f} ms in a process of its own"
        say(f"{title}: {artifact[key]} ({units}); {agreement}.")
        fallbacks = ", ".join(f"{unit} ({ran})" for unit, ran in artifact[f"{key}_fallbacks"].items())
        if fallbacks:
            say(f"Not in the kernel they were written for: {fallbacks}.")
    if "tensorrt" in artifact:
        script = Path(artifact["tensorrt"]).with_name("build.sh")
        agreement = f"{artifact['tensorrt_agreement']:.2%} of {images} images"
        say(
            f"For TensorRT: {artifact['tensorrt']} (strongly typed float16 and int8), which ONNX Runtime "
            f"decides as the checkpoint on {agreement}. Build and time it where the GPU is with {script}, "
            f"then compare: mpsearch profile --from trtexec:{script.parent}."
        )
    if "triton" in artifact:
        agreement = f"{artifact['triton_agreement']:.2%} of {images} images"
        say(f"On the kernels of triton-cuda it decides as the fake-quantised model on {agreement}.")


def _in_new_processes(budget: Budget, best: dict[str, Any]) -> str:
    """What a latency was measured by, where new processes were asked."""
    timing = best["artifact"].get("latency")
    if budget.resource != "latency_us" or timing is None:
        return ""
    readings = sorted(timing["latency_readings_us"])
    least, most, high = (
        format_quantity(v, budget.resource) for v in (readings[0], readings[-1], timing["latency_high_us"])
    )
    return (
        f" in {len(readings)} new processes ({least} to {most}); {timing['latency_high_share']:.0%} "
        f"of further ones stay below {high}"
    )
