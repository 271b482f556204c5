"""The table of deployed files: its rows, what it says of all of them, and the head of the page, which stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import deployed_files


def row(form: str, bits: int | None = 4, **more: Any) -> dict[str, Any]:
    times = {"load_ms": 40.6, "load_cpu_ms": 30.2, "call_ms": 4.126, "call_cpu_ms": 2.5}
    memory = {"peak_mb": 90.4, "before_mb": 41.2}
    about = {"versions": {"torch": "2.15.0"}, "device": "a processor", "load": 3.04, "images": 540}
    key = {"network": "digits", "bits": bits, "form": form}
    return {**key, "bytes": 1234567, **times, **memory, "top1": 0.975, "same": 0.99815, **about, **more}


PAIR = {"call_ms_ratio": 1.021, "call_cpu_ms_ratio": 0.998, "equal": True}


def test_a_row_has_a_cell_for_each_column():
    found = deployed_files.line(row("onnx", **PAIR))
    cells = [
        "W4A8",
        "`onnx`",
        "1,234,567",
        "41 (30)",
        "90 (41)",
        "4.13 (2.50)",
        "1.02 (1.00)",
        "97.5%",
        "99.8%",
    ]
    assert found == f"| {' | '.join(cells)} |"
    assert "| W4A8 | `packed` |" in deployed_files.line(row("packed"))
    plain, refused = row("onnx:weights=plain", None), row("openvino", refused="it has no 4 bits")
    assert deployed_files.line(plain).startswith("| float | `onnx` | 1,234,567 |")
    assert "| it has no 4 bits |" in deployed_files.line(refused)
    counts = {text.count("|") for text in map(deployed_files.line, (plain, refused, row("packed")))}
    assert counts == {len(deployed_files.COLUMNS) + 1}


def test_points_follow_from_float_down_and_unequal_pairs_are_counted():
    rows = [row("packed", 3), row("onnx", 3, **PAIR | {"equal": False}), row("openvino", 8, load=7.0, **PAIR)]
    text = deployed_files.tables([*rows, row("onnx:weights=plain", None)])
    places = [
        text.index(f"| {start} |") for start in ("float | `onnx`", "W8A8 | `openvino`", "W3A8 | `onnx`")
    ]
    assert [*places, text.index("| W3A8 | `packed` |")] == sorted(
        [*places, text.index("| W3A8 | `packed` |")]
    )
    assert "### resnet34 on digits, 540 images" in text and "MobileNet" not in text
    assert "torch 2.15.0. a processor. Load average at the points: 3.0 to 7.0." in text
    assert "bit for bit, in 1 of 2 pairs. Not measured yet: digits W5A8, digits W4A8, mobilenet W8A8" in text


def test_the_tables_are_written_behind_the_head_of_the_page(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\nSaid by hand.\n\n{deployed_files.MARK}\nold\n")
    deployed_files.write([row("packed")], page)
    assert page.read_text().startswith("# Title\n\nSaid by hand.\n\n## Files\n\ntorch 2.15.0.")
    assert "old" not in page.read_text()


def test_latency_is_compared_round_by_round_and_outputs_bit_for_bit():
    def measured(packed: float, plain: float) -> dict[str, Any]:
        times = {"onnx": packed, "onnx:weights=plain": plain}
        return {form: {"call_ms": ms, "call_cpu_ms": ms / 2} for form, ms in times.items()}

    rounds = [measured(10, 5), measured(6, 5), measured(1, 1)]
    outputs = {"onnx": torch.tensor([[0.0, 1.0]]), "onnx:weights=plain": torch.tensor([[0.0, 1.0 + 1e-7]])}
    found = deployed_files.beside_plain("onnx", rounds, outputs)
    assert found == {"call_ms_ratio": 1.2, "call_cpu_ms_ratio": 1.2, "equal": False}
    assert deployed_files.same(*outputs.values()) == 1.0
    assert deployed_files.same(torch.eye(4), torch.eye(4)[[0, 1, 3, 2]]) == pytest.approx(0.5)
