"""The sections of the page but for the figures: verdict, results, what stays float, deployment, provenance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from mpsearch.problem import Budget
from mpsearch.report.markup import share, share_cell, table, text, two_sizes
from mpsearch.report.saved import Saved
from mpsearch.units import format_bytes, format_quantity

LARGEST = 20
_DASH = '<span class="none" title="not done for this row">–</span>'


def verdict(saved: Saved) -> str:
    """One sentence: the budgets, by how much, and the accuracy beside the float model's."""
    best, metrics, base = saved.best, saved.best["metrics"], saved.rows[0]["searched"]["metrics"]
    budgets = "; ".join(_kept(b, best) for b in saved.budgets)
    if saved.scores:
        found = ", ".join(f"{text(name)} {metrics['scores'][name]:.4f} (float {base['scores'][name]:.4f})" for name in saved.scores)
        return f"{budgets}; {found} on {metrics['images']:,} samples kept out of the search."
    if metrics["top1"] is None:
        images = f"the KL divergence to the float model is {metrics['kl']:.3g} nats on {metrics['images']:,} images without labels"
        return f"{budgets}; {images}, where {metrics['agreement']:.2%} keep their top class."
    lost = 100 * (base["top1"] - metrics["top1"])
    against = f"{abs(lost):.2f} points {'below' if lost > 0 else 'above'}" if abs(lost) >= 0.005 else "equal to"
    ours, theirs = share(metrics["top1"], metrics["images"]), share(base["top1"], base["images"])
    return f"{budgets}; top-1 is {ours} points (standard error) on {metrics['images']:,} images kept out of the search, {against} the float model's {theirs}."


def _kept(budget: Budget, best: dict[str, Any]) -> str:
    spent = budget.spent(best["measured"])
    value, how = (best["predicted"][budget.resource], "predicted") if spent is None else (spent, "measured")
    timing = best["artifact"].get("latency")
    if timing is not None and budget.resource == "latency_us":
        median = format_quantity(timing["latency_us"], budget.resource)
        how = f"measured {median} in {len(timing['latency_readings_us'])} new processes, {timing['latency_high_share']:.0%} of further ones below"
    left = budget.limit - value
    state, side = ("kept", "under") if left >= 0 else ("BROKEN", "over")
    exact = f"{value:,.0f} bytes" if budget.resource.endswith("_bytes") else format_quantity(value, budget.resource)
    room = f"{abs(left):,.0f} bytes" if budget.resource.endswith("_bytes") else format_quantity(abs(left), budget.resource)
    return f"Budget {text(budget.text)} {state}: {how} {exact}, {room} ({abs(left) / budget.limit:.2%}) {side} the limit"


def results(saved: Saved) -> str:
    """The results table; the chosen row is marked. Columns of what was not measured are absent."""
    labelled = any(row["searched"]["metrics"]["top1"] is not None for row in saved.rows)
    header = ["assignment", "mean bits", "size predicted", "size on disk"]
    header += ["latency predicted", "latency measured"] if saved.timed else []
    for stage in ("in the search", "finished"):
        header += ([f"top-1<small>{stage}</small>"] if labelled else []) + [f"{text(name)}<small>{stage}</small>" for name in saved.scores]
        header.append(f"{text(saved.measure)} to float<small>{stage}</small>")
    rows = [_row(saved, row, labelled) for row in saved.rows]
    return table([*header, "fits the budget"], rows, "results")


def _row(saved: Saved, row: dict[str, Any], labelled: bool) -> list[str]:
    near, after, said = row["searched"], row.get("reconstructed"), row["predicted"]
    written = after or near
    badge = '<mark class="chosen">chosen</mark>' if row["label"] == saved.best["label"] else ""
    size = two_sizes(written["size_bytes"]) if said else f"{two_sizes(written['size_bytes'])}<small>as float32, not written</small>"
    cells = [text(row["label"]) + badge, f"{row['mean_bits']:.2f}", two_sizes(said["size_bytes"]) if said else _DASH, size]
    if saved.timed:
        spread = f"<small>IQR {written['latency_iqr_us'] / 1e3:.3f}</small>" if "latency_iqr_us" in written else ""
        cells += [f"{said['latency_us'] / 1e3:.3f} ms" if "latency_us" in said else _DASH, f"{written['latency_us'] / 1e3:.3f} ms{spread}"]
    for measured in (near, after):
        metrics = measured["metrics"] if measured else None
        cells += [share_cell(metrics["top1"], metrics["images"]) if metrics else _DASH] if labelled else []
        cells += [f"{metrics['scores'][name]:.4f}" if metrics else _DASH for name in saved.scores]
        cells.append(f"{metrics['kl']:.5f}" if metrics else _DASH)
    return [*cells, _fits(saved.budgets, said, written)]


def reconstructions(saved: Saved) -> str:
    """What each block gained, folded, for every row that was reconstructed; empty where no row says so."""
    return "".join(
        f"<details><summary>{text(row['label'])}: {_gained(row['gained'])}</summary>{_gains(row['gained'])}</details>"
        for row in saved.rows
        if row.get("gained")
    )


def _gained(gains: Sequence[dict[str, Any]]) -> str:
    kept = sum(gain["kept"] for gain in gains)
    return f"{kept} of {len(gains)} blocks are better than where they started, and keep what they learned"


def _gains(gains: Sequence[dict[str, Any]]) -> str:
    """A line for each block; of a method of several phases, for each phase."""
    phases = len({gain["phase"] for gain in gains}) > 1
    rows = []
    for gain in gains:
        before, after = gain["start_mse"], gain["learned_mse"]
        name = f"<code>{text(gain['block'])}</code>" + (f"<small>phase {gain['phase'] + 1}</small>" if phases else "")
        used = '<span class="yes">kept</span>' if gain["kept"] else '<span class="none">reverted</span>'
        rows.append([name, f"{before:.3g}", f"{after:.3g}", f"{after / before:.1%}" if before > 0 else _DASH, used, f"{gain['steps']:,}"])
    return table(["block", "error before", "error after", "after, of before", "what was learned is", "steps"], rows)


def _fits(budgets: Sequence[Budget], predicted: dict[str, float], written: dict[str, Any]) -> str:
    """Measured values decide; predicted ones where nothing was measured."""
    spent = [(b.spent({**predicted, **written}), b) for b in budgets]
    over = [b.text for value, b in spent if value is not None and value > b.limit]
    if over:
        return f'<span class="no">no<small>over {text(", ".join(over))}</small></span>'
    return '<span class="yes">yes</span>' if all(value is not None for value, _ in spent) else "not measured"


def not_quantized(saved: Saved) -> str:
    """Bytes that no bit-width changes, by name, and what else runs in float."""
    held, found = saved.results["not_quantized"], saved.results
    largest = sorted(held.items(), key=lambda item: (-item[1], item[0]))
    rows = [[f"<code>{text(name)}</code>", f"{size:,}"] for name, size in largest[:LARGEST]]
    rest = largest[LARGEST:]
    rows += [[f"{len(rest)} smaller tensors", f"{sum(size for _, size in rest):,}"]] if rest else []
    rows += [["header of the file (names, shapes, assignment; padded to one length for all assignments)", f"{found['header_bytes']:,}"]]
    total = sum(held.values()) + found["header_bytes"]
    rows += [["<b>sum</b>", f"<b>{total:,}</b>"]]
    whole = saved.best["measured"]["size_bytes"]
    said = f"<p>{len(held)} tensors are stored as they are: {format_bytes(sum(held.values()))}. With the header that is {total / whole:.2%} of the file.</p>"
    said += _names("Convolutions and linear layers whose weight no forward pass reads", found["unused"])
    said += _names("Activation products computed in float", found["float_in_graph"])
    return said + table(["tensor", "bytes"], rows, "bytes")


def _names(label: str, names: Sequence[str]) -> str:
    return f"<p>{label}: {', '.join(f'<code>{text(n)}</code>' for n in names) or 'none'}.</p>"


def deploy(saved: Saved) -> str:
    """Snippets that open what was written."""
    artifact = saved.best["artifact"]
    packed = f"artifact/{PurePath(artifact['packed']).name}"
    snippet = f"import mpsearch\n\nmodel = mpsearch.load({packed!r})  # a model that is not timm's: mpsearch.load(path, model=your_float_model)"
    checked = "Read back in this run, it gave the same logits bit for bit. " if artifact.get("reloaded_bit_for_bit") else ""
    parts = [
        f"<p>The packed checkpoint, {two_inline(artifact['size_bytes'])}. {checked}Images are preprocessed as for the float model; "
        "paths are relative to the study.</p>",
        f"<pre>{text(snippet)}\nlogits = model(images)</pre>",
    ]
    if "onnx" in artifact:
        name = f"artifact/{PurePath(artifact['onnx']).name}"
        code = (
            "import onnxruntime\n\n"
            f"session = onnxruntime.InferenceSession({name!r}, providers=['CPUExecutionProvider'])\n"
            "logits = session.run(None, {session.get_inputs()[0].name: images})[0]  # images: float32, N x C x H x W"
        )
        agreement = f"Its top class is the checkpoint's on {artifact['onnx_agreement']:.2%} of {saved.best['metrics']['images']:,} images."
        why = "The latencies above are those of this session, ONNX Runtime's default one."
        parts.append(f"<p>The ONNX file for ONNX Runtime, 8-bit containers, {two_inline(artifact['onnx_bytes'])}. {agreement} {why}</p><pre>{text(code)}</pre>")
    if "openvino" in artifact:
        parts.append(_openvino(saved))
    if "triton" in artifact:
        code = f"import mpsearch\n\nmodel = mpsearch.load({packed!r}, kernels='triton-cuda', device='cuda')  # model=your_float_model as above\n"
        agreement = f"Its top class is the fake-quantised model's on {artifact['triton_agreement']:.2%} of {saved.best['metrics']['images']:,} images."
        why = "The latencies above are those of one call in a CUDA graph, energies those of the whole board."
        parts.append(f"<p>The same file on the Triton kernels, fp16 between units. {agreement} {why}</p><pre>{text(code)}logits = model(images.cuda())</pre>")
    return "".join(parts)


def _openvino(saved: Saved) -> str:
    """How OpenVINO opens its file."""
    artifact = saved.best["artifact"]
    name = f"artifact/{PurePath(artifact['openvino']).name}"
    precision = "bf16" if saved.study["config"]["target"].endswith("bf16") else "f32"
    code = (
        "import openvino\n\n"
        f"live = openvino.Core().compile_model({name!r}, 'CPU', {{\n"
        f"    'INFERENCE_PRECISION_HINT': {precision!r}, 'NUM_STREAMS': '1', 'DYNAMIC_QUANTIZATION_GROUP_SIZE': '0',\n}})\n"
        "logits = live(images)[0]  # images: float32, N x C x H x W"
    )
    agreement = f"Its top class is the checkpoint's on {artifact['openvino_agreement']:.2%} of {saved.best['metrics']['images']:,} images."
    why = "The latencies above were measured with these settings and a fixed batch; without the hint, a processor with bf16 computes its float layers in it."
    return f"<p>OpenVINO's files, {two_inline(artifact['openvino_bytes'])}. {agreement} {why}</p><pre>{text(code)}</pre>"


def two_inline(size: float) -> str:
    """Exact bytes with MB and MiB on one line."""
    return f"{size:,.0f} bytes, {format_bytes(size)}"


def provenance(saved: Saved) -> str:
    """Where every figure comes from."""
    study, proxy = saved.study, saved.best["proxy"]
    facts: list[tuple[str, str]] = []
    if "hardware" in study:
        held = study["hardware"]
        device = held["device"]
        flags = ", ".join(device["flags"])
        facts.append(("device", f"{device['name']}, {device['architecture']}, {device['cores']} cores, {device['system']}; {flags}"))
        facts.append(("runtime", f"{held['backend']} {held['version']}, {held['threads']} thread(s)"))
        facts.append(("latency table", f"{PurePath(held['table']).name}{' — ESTIMATED: of another device' if held['estimated'] else ''}"))
    facts.append(("proxy", f"{proxy['objective']}: {proxy['status']} ({proxy['found_by']})"))
    facts += [(f"{part} images", f"{held['images']:,} of {held['source']}, {held['content_hash'][:16]}") for part, held in study["splits"]["parts"].items()]
    facts += [("weights", study["hashes"]["weights"][:16]), ("seed", str(study["config"]["seed"]))]
    facts.append(("versions", ", ".join(f"{name} {version}" for name, version in study["versions"].items())))
    again = f"mpsearch run --resume {saved.path.name}"
    facts.append(("resume", f"{again} (from the folder that holds it)"))
    rows = [[text(name), text(value)] for name, value in facts]
    settings = text(json.dumps(study["config"], indent=1))
    return table(["", ""], rows, "facts") + f"<details><summary>All settings (study.json)</summary><pre>{settings}</pre></details>"
