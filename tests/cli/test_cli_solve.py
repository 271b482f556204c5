"""`mpsearch solve` and what it answers, from the outside and without torch."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace

import pytest

from mpsearch.files import write_json
from mpsearch.problem import Candidate, Interaction, Layer, Problem, bytes_at, float_bytes

WIDTHS = tuple(Candidate(b, 8) for b in (8, 6, 4, 2))


@pytest.fixture
def saved(tmp_path):
    names = ("stem", "body.0", "body.1", "fc")
    layers = tuple(Layer(n, "linear", (10, 10), ((1, 10),), (1, 10), 100, "b") for n in names)
    damage = tuple((0.0, 0.1 * s, 0.5 * s, 2.0 * s) for s in (4.0, 1.0, 2.0, 3.0))
    costs = {
        "size_bytes": tuple((8e6, 6e6, 4e6, 2e6) for _ in names),
        "latency_us": ((400.0, 390.0, 300.0, 295.0),) * 4,
        "energy_mj": ((4.0, 3.0, 2.0, 1.0),) * 4,
        "memory_bytes": ((9e5, 7e5, 5e5, 3e5),) * 4,
        "bops": ((64e9, 48e9, 32e9, 16e9),) * 4,
    }
    differ = tuple(float(30 * (a != b)) for a in range(4) for b in range(4))
    p = Problem(layers, (WIDTHS,) * 4, {"proxy": damage}, costs, {"size_bytes": 1e6})
    p = replace(
        p, conversions={"latency_us": tuple(Interaction((i, i + 1), (4, 4), differ) for i in range(3))}
    )
    write_json(tmp_path / "problem.json", p.to_json())
    return p, tmp_path / "problem.json"


@pytest.fixture
def call(call, saved):
    """`mpsearch solve` of the saved problem; what it says, in one line."""

    def run(*arguments):
        code, out, err = call("solve", str(saved[1]), *arguments)
        assert "Traceback" not in err
        return code, out, " ".join(err.split())

    return run


def solved(result):
    code, out, err = result
    assert code == 0, err
    return json.loads(out)


def test_every_kind_of_budget_alone_and_together(call, saved):
    for text, resource, limit in (
        ("20MB", "size_bytes", 20e6),
        ("1.4ms", "latency_us", 1400),
        ("9mJ", "energy_mj", 9),
        ("150GBOPs", "bops", 150e9),
    ):
        found = solved(call("--budget", text, "--format", "json"))
        assert found["status"] == "optimal" and found["cost"][resource] <= limit
    peak = solved(call("--budget", "0.5MB peak", "--format", "json"))
    assert peak["cost"]["memory_bytes"] == 5e5 and set(peak["assignment"].values()) == {"W4A8"}
    every = [
        "--budget",
        "20MB",
        "--budget",
        "1.4ms",
        "--budget",
        "9mJ",
        "--budget",
        "700kB peak",
        "--budget",
        "150GBOPs",
    ]
    found = solved(call(*every, "--format", "json"))
    cost = found["cost"]
    assert (
        found["status"] == "optimal"
        and cost["size_bytes"] <= 20e6
        and cost["latency_us"] <= 1400
        and cost["energy_mj"] <= 9
    )
    assert cost["memory_bytes"] <= 7e5 and cost["bops"] <= 150e9


def test_budgets_that_depend_on_the_model_are_read_from_the_table(call, saved):
    for text, limit in (("4bits", "17MB"), ("5bits", "21MB"), ("7.5bits", "31MB"), ("8bits", "33MB")):
        found = solved(call("--budget", text, "--format", "json"))
        assert found == solved(call("--budget", limit, "--format", "json"))
    p = saved[0]
    assert [bytes_at(p, b) for b in (2, 4, 5, 7.5, 1)] == [9e6, 17e6, 21e6, 31e6, 5e6]
    assert float_bytes(p) == 1e6 + 4 * 400


def test_layers_are_fixed_and_bounded(call):
    found = solved(call("--budget", "20MB", "--fix", "fc=W2A8", "--bits", "body.*=4..6", "--format", "json"))[
        "assignment"
    ]
    assert found["fc"] == "W2A8" and {found["body.0"], found["body.1"]} <= {"W6A8", "W4A8"}
    assert set(
        solved(call("--budget", "20MB", "--bits", "4", "--format", "json"))["assignment"].values()
    ) == {"W4A8"}
    for arguments, words in (
        (["--fix", "head=W8A8"], "No layer is called 'head'"),
        (["--fix", "fc=W8A4"], "nothing is left for the layer 'fc' of its candidates W8A8, W6A8, W4A8, W2A8"),
        (["--bits", "fc=3"], "nothing is left for the layer 'fc'"),
    ):
        code, out, err = call("--budget", "20MB", *arguments)
        assert (code, out) == (2, "") and words in err


LEAST = ("9.00 MB", "1.180 ms", "4.000 mJ", "memory 0.30 MB", "bops 64.000 GBOPs")


@pytest.mark.parametrize(
    ("budgets", "code", "words"),
    [
        (["8MB"], 3, "Budget 8.00 MB (7.63 MiB) is below the least reachable"),
        (["20MB", "1ms"], 3, "Budget 1.000 ms is below the least reachable"),
        (["9.5MB", "500GBOPs", "1.5ms", "8mJ", "1ms"], 3, "Budget 1.000 ms"),
        (["15"], 2, "'15' has no unit"),
        (["15mb"], 2, "unknown unit 'mb'"),
        (["40%"], 3, "Budget 0.40 MB (0.38 MiB) is below the least reachable"),
        ([], 2, "There is no budget"),
    ],
)
def test_a_budget_that_cannot_be_names_the_least_of_each_resource(call, budgets, code, words):
    found, out, err = call(*(part for b in budgets for part in ("--budget", b)))
    assert (found, out) == (code, "") and words in err
    assert all(least in err for least in LEAST)


def test_budgets_that_contradict_each_other_name_the_least_of_each_resource(call, saved):
    p = saved[0]
    opposed = tuple(tuple(reversed(row)) for row in p.costs["energy_mj"])
    write_json(saved[1], replace(p, costs={**p.costs, "energy_mj": opposed}).to_json())
    code, out, err = call("--budget", "12MB", "--budget", "6mJ")
    assert (code, out) == (3, "") and "No assignment keeps all budgets together" in err
    assert all(least in err for least in LEAST)


def test_the_best_that_differ(call):
    found = solved(call("--budget", "20MB", "--k-best", "3", "--distance", "2", "--format", "json"))
    assert len(found) == 3 and [s["score"] for s in found] == sorted(s["score"] for s in found)
    assert all(
        sum(a != b for a, b in zip(x["indices"], y["indices"], strict=True)) >= 2
        for x in found
        for y in found
        if x is not y
    )
    code, out, _ = call("--budget", "20MB", "--k-best", "2")
    assert code == 0 and "#1" in out and "#2" in out


def rows(result):
    code, out, err = result
    assert code == 0, err
    return list(csv.DictReader(io.StringIO(out)))


def test_ranges_prices_and_fronts(call, saved):
    ranges = {row["resource"]: row for row in rows(call("--ranges", "--budget", "1.3ms", "--format", "csv"))}
    assert (
        float(ranges["size"]["least"]) == 9e6
        and float(ranges["size"]["greatest"]) == 33e6
        and float(ranges["memory"]["least"]) == 3e5
    )
    assert float(ranges["latency"]["least within the budgets"]) == 1180
    prices = rows(call("--prices", "--resource", "latency", "--format", "csv"))
    rates = [float(row["saved for 1 ms"]) for row in prices]
    assert rates == sorted(rates, reverse=True) and all(row["layers"] for row in prices)
    assert float(prices[0]["from"]) == 1180 and float(prices[-1]["from"]) + float(prices[-1]["more"]) == 1600
    front = rows(call("--front", "--budget", "20MB", "--format", "csv"))
    assert [float(r["size_bytes"]) for r in front] == sorted(float(r["size_bytes"]) for r in front) and float(
        front[-1]["size_bytes"]
    ) <= 20e6
    assert len(rows(call("--front", "--points", "3", "--format", "csv"))) == 3
    three = rows(
        call("--front", "--resource", "size", "--resource", "latency", "--points", "4", "--format", "csv")
    )
    assert {"damage", "size_bytes", "latency_us"} == set(three[0]) and len(three) > 3
    assert (
        json.loads(call("--front", "--points", "2", "--format", "json")[1])[0]["assignment"]["fc"] == "W2A8"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ranges", "--prices"], "--ranges and --prices were asked for at once"),
        (["--prices", "--resource", "colour"], "no costs called 'colour'"),
        (
            ["--prices", "--budget", "20MB", "--budget", "1.4ms"],
            "--prices takes budgets on size alone, not 1.4ms",
        ),
        (["--front", "--resource", "memory"], "is a peak"),
        (["--budget", "20MB", "--k-best", "2", "--distance", "9"], "No two assignments differ in 9 layers"),
        (["--max-drop", "2ms"], "is no drop"),
    ],
)
def test_what_cannot_be_asked_is_one_clear_error(call, arguments, words):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "") and words in err


def test_nothing_of_it_imports_torch(saved):
    asks = [
        ["--budget", "20MB"],
        ["--budget", "20MB", "--k-best", "2"],
        ["--ranges"],
        ["--prices"],
        ["--front"],
        ["--budget", "20MB", "--fix", "fc=W8A8"],
    ]
    code = f"""
import contextlib, io, sys
from mpsearch.cli import main
for ask in {asks!r}:
    sys.argv[1:] = ['solve', {str(saved[1])!r}, *ask]
    with contextlib.redirect_stdout(io.StringIO()):
        main()
print('torch' in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.strip() == "False", done.stderr
