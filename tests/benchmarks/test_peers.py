"""The comparison with other tools: what is counted, judged, kept and printed. Tools themselves run in the slow test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from benchmarks.peers import page, rows
from benchmarks.peers.chart import chart
from benchmarks.peers.counting import Layer, check_levels, counted, uniform_bytes, units
from benchmarks.peers.job import CannotError, Images, Job, Made, Task, carry_out
from benchmarks.peers.judging import judge, paired
from benchmarks.peers.networks import NETWORKS, plainly_padded, renamed
from benchmarks.peers.solvers import Table, drawn, problem_of, row_of
from mpsearch.problem import Budget
from mpsearch.solvers import solve

ROOT = Path(__file__).resolve().parents[2]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 10),
    ).eval()


def images(count: int = 6) -> Images:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    return Images(pixels, np.arange(count) % 10, np.full(3, 0.5), np.full(3, 0.25))


def row(peer: str, kl: float, **more: object) -> dict[str, object]:
    key = {"peer": peer, "network": "resnet20", "bits": 4.0, "a_bits": 8, "seed": 0}
    figures = {"kl_error": 0.001, "top1": 0.8, "mean_bits": 4.0, "cpu_seconds": 9.0, "device": "a processor"}
    return {**key, "kl": kl, "float_top1": 0.81, "images": 2000, **figures, **more}


def test_bytes_are_those_that_the_rules_give_by_hand():
    model = net()
    layers = [Layer.of("0", model[0].weight, 3, 8), Layer.of("4", model[4].weight, 32, 32)]
    # 4 rows of 27 weights of 3 bits: 11 bytes each; 4 scales; the input's 5; linear float; biases 4 + 10
    assert counted(layers, model)["size_bytes"] == 4 * 11 + 16 + 5 + 160 + 56
    assert counted(layers, model)["mean_bits"] == pytest.approx((108 * 3 + 40 * 32) / 148, abs=1e-4)
    assert counted(layers[:1], model)["size_bytes"] == counted(layers, model)["size_bytes"]
    assert uniform_bytes(model, 2.5) == round((uniform_bytes(model, 2) + uniform_bytes(model, 3)) / 2)


def test_a_tool_that_reports_more_weights_than_there_are_is_refused():
    model = net()
    with pytest.raises(ValueError, match="216 weights; the model has 148"):
        counted([Layer.of("a", model[0].weight, 3, 8)] * 2, model)


def test_bits_that_are_not_those_computed_with_are_found():
    weight = torch.linspace(-1, 1, 32).reshape(2, 16)
    check_levels("fc", weight, 4)
    with pytest.raises(ValueError, match="fc: 16 values in a row of a weight that is said to have 3 bits"):
        check_levels("fc", weight, 3)


def test_a_tool_that_fails_is_a_row_with_the_reason(tmp_path: Path):
    def refuses(task: Task) -> Made:
        raise CannotError("it has no 3 bits")

    def breaks(task: Task) -> Made:
        raise KeyError("conv1")

    task = Task(Job("x", "resnet20", 3, 8, 0), net(), images(), images(), tmp_path, 0, tmp_path)
    for tool, reason in ((refuses, "it has no 3 bits"), (breaks, "KeyError: 'conv1'")):
        carry_out(tool, task, images(), tmp_path)
        assert json.loads((tmp_path / "made.json").read_text())["failed"] == reason


def test_logits_of_a_tool_are_judged_here_and_paired_image_by_image(tmp_path: Path):
    model, some = net(), images()

    def same(task: Task) -> Made:
        return Made(task.model, [Layer.of("0", model[0].weight, 32, 32)])

    carry_out(
        same, Task(Job("x", "resnet20", 3, 8, 0), model, some, some, tmp_path, 0, tmp_path), some, tmp_path
    )
    with torch.no_grad():
        plain = model(some.inputs()).numpy()
    held = tmp_path / "images.npz"
    np.savez(held, float_logits=plain, judged_labels=plain.argmax(1))
    found = judge(tmp_path / "logits.npz", held)
    assert (found["top1"], found["kl"], found["images"]) == (1.0, 0.0, 6)
    np.savez(tmp_path / "other.npz", logits=plain * 0.5)
    apart = paired(tmp_path / "other.npz", tmp_path / "logits.npz", held)
    assert apart["kl"][0] == judge(tmp_path / "other.npz", held)["kl"] > 0
    assert apart["top1"] == [0.0, 0.0]
    np.savez(tmp_path / "broken.npz", logits=plain * np.nan)
    with pytest.raises(ValueError, match="not finite"):
        judge(tmp_path / "broken.npz", held)


def test_tensors_are_renamed_by_order_and_shape():
    model = net()
    given = {f"old{i}.{name.rpartition('.')[2]}": t for i, (name, t) in enumerate(model.state_dict().items())}
    assert renamed(given, model).keys() == model.state_dict().keys()
    given["old0.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"old0.weight \(1,\) does not fit 0.weight"):
        renamed(given, model)


def test_convolutions_that_pad_as_tensorflow_does_are_given_to_tools_as_plain_ones():
    torch.manual_seed(0)
    model = nn.Sequential(Conv2dSame(3, 4, 3, 2), nn.ReLU(), Conv2dSame(4, 6, 5, 2, bias=False)).eval()
    x = torch.randn(2, 3, 15, 10)
    with torch.no_grad():
        wanted = model(x)
        plain = plainly_padded(model, x[:1])
        assert torch.equal(plain(x), wanted)
    assert {type(m) for m in units(plain).values()} == {nn.Conv2d} and len(units(plain)) == 2


def test_a_finished_row_is_found_and_rows_of_few_bits_fill_gaps_alone(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    assert rows.find(Job("mct", "resnet20", 4.0, 8, 0).key, path) is None
    rows.append(row("mct", 0.1, failed="once"), path)
    rows.append(row("mct", 0.2), path)
    assert rows.find(Job("mct", "resnet20", 4.0, 8, 0).key, path)["kl"] == 0.2
    ours = rows.few_bits()
    assert {r["network"] for r in ours} <= set(NETWORKS)
    held = rows.joined([row("mpsearch", 0.5)], ours)
    mine = [r for r in held if (r["network"], r["bits"], r["a_bits"], r["seed"]) == ("resnet20", 4.0, 8, 0)]
    assert [r["kl"] for r in mine] == [0.5]
    assert len(held) == len(ours)


def test_who_is_ahead_needs_two_standard_errors():
    ours, near, far = row("mpsearch", 0.010), row("mct", 0.012), row("modelopt", 0.020)
    assert page.beyond(far, ours)
    assert not page.beyond(near, ours)
    close = {**near, "less_mpsearch": {"kl": [0.002, 0.0001], "top1": [0.0, 0.01]}}
    assert page.beyond(close, ours)  # paired: the same difference, a smaller error
    assert "in 1, is level with the best other in 0, and behind it in 0" in page.verdicts([ours, close, far])
    behind = page.verdicts([row("mpsearch", 0.05), far])
    assert "behind it in 1" in behind and "ResNet20, 4 x 8: behind NVIDIA ModelOpt" in behind


def test_tables_and_reasons_name_every_row():
    some = [row("mpsearch", 0.01), row("mct", 0.2), row("nncf", 0, failed="no | 4 bits")]
    table = page.tables(some)
    assert "**0.0100 ± 0.0010**" in table and "| +0.1900 ± 0.0014 |" in table
    assert page.failures(some).splitlines()[-1] == "| NNCF | ResNet20 4 x 8 | no / 4 bits |"
    assert "a processor: rows of peers.jsonl" in page.machines(some)


def test_the_picture_is_xml_with_a_point_for_each_row():
    some = [row("mpsearch", 0.01), row("mpsearch", 0.1, mean_bits=3.0), row("mct", 0.2)]
    found = ET.fromstring(chart(some, page.NAMES, page.TITLES))
    circles = [e for e in found.iter() if e.tag.endswith("circle")]
    assert len(circles) == 3 + 2  # and the legend's


def test_gaps_of_a_solver_are_counted_from_the_proven_optimum():
    scores, costs = drawn(6, 7)
    table = Table.of("six layers", scores, costs["size_bytes"])
    assert table.proven == len(table.limits) == 59
    problem = problem_of(scores, {"size_bytes": costs["size_bytes"]})
    best = [list(solve(problem, "proxy", [Budget("size_bytes", x, "")]).indices) for x in table.limits]
    assert "| 59 of 59 | 0.0, 0 | 0 |" in row_of("mct", 1.0, {"choices": best, "seconds": 1.0}, table)
    most = np.argmax(costs["size_bytes"], axis=1).tolist()
    wrong = [None, most, best[0], *best[3:]]
    text = row_of("modelopt", 1e6, {"choices": wrong, "seconds": 1.0}, table)
    assert "x 1e6 | 56 of 59 |" in text and "| 2 | 1.0 |" in text


@pytest.mark.slow
@pytest.mark.assets
@pytest.mark.timeout(3600)
def test_the_quick_form_ends_with_a_row_for_each_tool(tmp_path: Path):
    folders = {
        "--rows": tmp_path / "rows.jsonl",
        "--work": tmp_path,
        "--environments": tmp_path / "environments",
    }
    given = [str(part) for pair in folders.items() for part in pair]
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", "--quick", "--judged", "500", *given],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = {(r["peer"], r["bits"]): r for r in rows.read(tmp_path / "rows.jsonl")}
    assert set(found) == {(p, b) for p in ("mpsearch", "mct", "modelopt", "onnxruntime") for b in (4.0, 3.0)}
    refused = {key: r["failed"] for key, r in found.items() if "failed" in r}
    assert set(refused) == {("onnxruntime", 3.0)}, refused
    for key, made in found.items():
        if key not in refused:
            assert made["size_bytes"] <= made["budget_bytes"] * 1.02 and made["images"] == 500
