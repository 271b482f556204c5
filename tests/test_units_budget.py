"""Budgets and quantities: every way to write one, and every way to write none."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsearch.errors import BudgetError
from mpsearch.problem import RESOURCES, Budget, Cost
from mpsearch.units import SCALES, format_bytes, format_pair, format_quantity, parse_quantity

FORMS = [
    ("15MB", "size_bytes", 15e6, "absolute", "size 15.00 MB (14.31 MiB)"),
    ("15MiB", "size_bytes", 15 * 2**20, "absolute", "size 15.73 MB (15.00 MiB)"),
    ("2.5ms", "latency_us", 2500.0, "absolute", "latency 2.500 ms"),
    ("3mJ", "energy_mj", 3.0, "absolute", "energy 3.000 mJ"),
    ("40%", "size_bytes", 0.4, "float", "size 40% of the float model's"),
    ("512MiB peak", "memory_bytes", 512 * 2**20, "absolute", "memory 536.87 MB (512.00 MiB)"),
    ("512MiBpeak", "memory_bytes", 512 * 2**20, "absolute", "memory 536.87 MB (512.00 MiB)"),
    ("2GB PEAK", "memory_bytes", 2e9, "absolute", "memory 2000.00 MB (1907.35 MiB)"),
    ("20GBOPs", "bops", 20e9, "absolute", "bops 20.000 GBOPs"),
    ("5bits", "size_bytes", 5.0, "bits", "size of 5 bits a weight"),
    ("4.5 bits", "size_bytes", 4.5, "bits", "size of 4.5 bits a weight"),
    (" 1e3 kB ", "size_bytes", 1e6, "absolute", "size 1.00 MB (0.95 MiB)"),
    (".5s", "latency_us", 5e5, "absolute", "latency 500.000 ms"),
]


@pytest.mark.parametrize(("text", "resource", "limit", "scale", "printed"), FORMS)
def test_every_form(text, resource, limit, scale, printed):
    budget = Budget.parse(text)
    assert budget == Budget(resource, pytest.approx(limit, rel=1e-12), text.strip(), scale)
    assert budget.relative is (scale != "absolute")
    assert str(budget) == printed
    assert Budget.from_json(json.loads(json.dumps(budget.to_json()))) == budget
    assert budget.resolve(7.0) == Budget(resource, 7.0, text.strip())
    assert not budget.resolve(7.0).relative


def test_a_latency_counts_as_new_processes_take_it_where_they_were_asked():
    budget = Budget.parse("10us")
    assert (
        budget.spent({"latency_us": 9.0}) == 9.0
        and budget.kept({"latency_us": 10.0})
        and not budget.kept({"latency_us": 10.1})
    )
    assert budget.spent({"latency_us": 9.0, "latency_high_us": 10.5}) == 10.5 and not budget.kept(
        {"latency_us": 9.0, "latency_high_us": 10.5}
    )
    assert budget.spent({"size_bytes": 3}) is None and budget.kept({"size_bytes": 3})
    assert Budget.parse("2B").spent({"size_bytes": 3, "latency_high_us": 1.0}) == 3.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("15", "no unit.*15MB"),
        ("0.5", "no unit"),
        ("", "not a quantity"),
        ("peak", "not a quantity"),
        ("MB", "not a quantity"),
        ("-3MB", "not a quantity"),
        ("1.2.3MB", "not a quantity"),
        ("1,5MB", "not a quantity"),
        ("nanMB", "not a quantity"),
        ("15MB 2ms", "not a quantity"),
        ("15XB", "unknown unit 'XB'.*MiB"),
        ("15mb", "unknown unit 'mb'"),
        ("15Mb", "unknown unit 'Mb'"),
        ("5bit", "unknown unit 'bit'"),
        ("0MB", "not a positive"),
        ("0%", "not a positive"),
        ("1e999MB", "not a positive, finite"),
        ("3ms peak", "peak of us"),
        ("40% peak", "peak of fraction"),
        ("5bits peak", "peak of bits"),
    ],
)
def test_every_error(text, message):
    with pytest.raises(BudgetError, match=message) as caught:
        Budget.parse(text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("unit", SCALES)
def test_every_unit_is_a_budget_of_a_known_resource(unit):
    dimension, factor = SCALES[unit]
    assert parse_quantity(f"3{unit}") == (pytest.approx(3 * factor), dimension)
    assert Budget.parse(f"3{unit}").resource in RESOURCES


def test_the_factors():
    values = {unit: parse_quantity(f"1{unit}")[0] for unit in SCALES}
    assert [values[u] for u in ("B", "kB", "KB", "MB", "GB", "KiB", "MiB", "GiB")] == [
        1,
        1e3,
        1e3,
        1e6,
        1e9,
        1024,
        1048576,
        1073741824,
    ]
    assert [values[u] for u in ("us", "ms", "s", "uJ", "mJ", "J")] == [1, 1e3, 1e6, 1e-3, 1, 1e3]
    assert [values[u] for u in ("BOPs", "MBOPs", "GBOPs", "TBOPs", "%", "bits")] == [
        1,
        1e6,
        1e9,
        1e12,
        0.01,
        1,
    ]


@given(st.floats(1e-6, 1e9), st.sampled_from(list(SCALES)), st.sampled_from(["", " ", "  "]))
def test_any_positive_number_is_read(value, unit, space):
    found, dimension = parse_quantity(f"{value!r}{space}{unit}")
    assert math.isclose(found, value * SCALES[unit][1], rel_tol=1e-12)
    assert dimension == SCALES[unit][0]


def test_resources_are_the_fields_of_cost():
    assert Cost(**dict.fromkeys(RESOURCES, 1.0)).to_json() == dict.fromkeys(RESOURCES, 1.0)


def test_quantities_are_printed_in_units_that_people_read():
    assert format_bytes(15e6) == "15.00 MB (14.31 MiB)"
    assert [format_bytes(n) for n in (0, 1024, 99_999, 100_000)] == [
        "0 B",
        "1,024 B",
        "99,999 B",
        "0.10 MB (0.10 MiB)",
    ]
    assert format_quantity(15e6, "memory_bytes") == format_bytes(15e6)
    assert [format_quantity(2500.0, r) for r in ("latency_us", "energy_mj", "bops", "other")] == [
        "2.500 ms",
        "2500.000 mJ",
        "0.000 GBOPs",
        "2500",
    ]


@pytest.mark.parametrize(
    ("value", "limit", "resource", "shown"),
    [
        (180_012, 180_345, "size_bytes", ("180,012 B", "180,345 B")),
        (150_012, 180_345, "size_bytes", ("0.15 MB (0.14 MiB)", "0.18 MB (0.17 MiB)")),
        (180_012, 180_012, "memory_bytes", ("0.18 MB (0.17 MiB)", "0.18 MB (0.17 MiB)")),
        (2500.04, 2500.0, "latency_us", ("2.50004 ms", "2.5 ms")),
        (3.0004, 3.0, "energy_mj", ("3.0004 mJ", "3 mJ")),
        (1e9, 1.0001e9, "bops", ("1 GBOPs", "1.0001 GBOPs")),
    ],
)
def test_two_values_that_differ_never_look_alike(value, limit, resource, shown):
    assert format_pair(value, limit, resource) == shown
