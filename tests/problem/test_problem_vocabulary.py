"""Layers, candidates, assignments, problems and solutions: what they refuse, and their JSON there and
back.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsearch.errors import StudyError, UserError
from mpsearch.files import write_json
from mpsearch.problem import (
    FLOAT,
    Assignment,
    Candidate,
    ConvAttributes,
    Cost,
    Interaction,
    Layer,
    Problem,
    Solution,
    mean_bits,
)

CANDIDATES = st.one_of(
    st.just(FLOAT),
    st.builds(
        Candidate, st.integers(2, 8), st.integers(2, 8), w_granularity=st.sampled_from(["channel", "tensor"])
    ),
)


def problem(**more) -> Problem:
    conv = ConvAttributes((2, 1), (1, 3), (1, 2), 4)
    layers = (
        Layer(
            "stem.conv",
            "conv2d",
            (8, 4, 3, 3),
            ((1, 16, 9, 9),),
            (1, 8, 4, 9),
            10368,
            "stem",
            None,
            True,
            conv,
            2,
        ),
        Layer("fc", "linear", (10, 8), ((1, 8),), (1, 10), 80, "head", "t"),
        Layer("attn.matmul0", "matmul", (), ((1, 2, 3), (1, 3, 2)), (1, 2, 2), 12, "head", "t"),
    )
    candidates = (
        (Candidate(2, 8), Candidate(4, 8), FLOAT),
        (Candidate(4, 8, w_granularity="tensor"), FLOAT),
        (FLOAT,),
    )
    tables = {
        "scores": {"proxy": ((4.0, 1.0, 0.0), (0.1, 0.0), (0.0,))},
        "costs": {
            "size_bytes": ((10.0, 20.0, 40.0), (5.0, 9.0), (0.0,)),
            "latency_us": ((0.1, 0.2, 0.3), (0.7, 0.1), (0.2,)),
        },
        "constants": {"size_bytes": 100.0},
        "estimated": ("latency_us",),
    }
    return Problem(layers, candidates, **{**tables, **more})


def test_json_round_trip_through_a_file(tmp_path):
    write_json(tmp_path / "problem.json", problem().to_json())
    assert Problem.load(tmp_path / "problem.json") == problem()
    assert Problem.from_json(problem().to_json()) == problem()


@pytest.mark.parametrize("schema", [0, 4, 5, "1", None])
def test_another_schema_is_refused(schema):
    with pytest.raises(StudyError, match=f"schema {schema!r}.*reads 1"):
        Problem.from_json({**problem().to_json(), "schema": schema})


def broken(**changes):
    return json.dumps({**problem().to_json(), **changes}).encode()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"3",
        b"\xff\xfe\x00",
        json.dumps({k: v for k, v in problem().to_json().items() if k != "layers"}).encode(),
        broken(layers=[{"name": "fc"}]),
        broken(layers=[{**layer, "colour": "red"} for layer in problem().to_json()["layers"]]),
        broken(layers=7),
        broken(scores=[1, 2]),
        broken(scores={"proxy": [["a", "b", "c"], [0, 0], [0]]}),
        broken(costs={"size_bytes": [1, 2, 3]}),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, text):
    path = tmp_path / "problem.json"
    path.write_bytes(text)
    with pytest.raises(StudyError, match=r"problem\.json is not a problem that mpsearch wrote"):
        Problem.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StudyError, match=r"There is no .*problem\.json"):
        Problem.load(tmp_path / "problem.json")


@pytest.mark.parametrize("kind", ["scores", "costs"])
@pytest.mark.parametrize(
    ("table", "message"),
    [
        (((1.0, 1.0, 1.0), (1.0, 1.0)), "one entry for each"),
        (((1.0, 1.0), (1.0, 1.0), (1.0,)), "one entry for each"),
        (((1.0, 1.0, 1.0), (1.0, float("nan")), (1.0,)), "not finite at layer 'fc'"),
        (((1.0, 1.0, float("inf")), (1.0, 1.0), (1.0,)), r"not finite at layer 'stem\.conv'"),
    ],
)
def test_a_bad_table_is_refused(kind, table, message):
    with pytest.raises(UserError, match=message):
        problem(**{kind: {"proxy": table}})


def test_layers_and_candidates_must_match():
    with pytest.raises(UserError, match="3 layers but 1 lists"):
        Problem(problem().layers, ((FLOAT,),))


def test_cost_score_and_ties_by_hand():
    p = problem()
    assert p.cost((1, 0, 0)) == Cost(size_bytes=125.0, latency_us=pytest.approx(1.1))
    assert p.score("proxy", (0, 0, 0)) == 4.1
    assert p.ties == [[0], [1, 2]]
    assert problem(constants={}).cost((1, 0, 0)).size_bytes == 25.0
    assert p.layers[0].weight_numel == 288 and p.layers[2].weight_numel == 0


def test_indices_and_assignment_are_inverse():
    p = problem()
    for indices in ((0, 0, 0), (2, 1, 0), (1, 0, 0)):
        assert p.indices(p.assignment(indices)) == indices
    assert dict(p.assignment((1, 0, 0))) == {
        "stem.conv": Candidate(4, 8),
        "fc": Candidate(4, 8, w_granularity="tensor"),
        "attn.matmul0": FLOAT,
    }
    with pytest.raises(UserError, match=r"differ in \['fc', 'other'\]"):
        p.indices(Assignment((("stem.conv", FLOAT), ("other", FLOAT), ("attn.matmul0", FLOAT))))
    with pytest.raises(UserError, match=r"'stem\.conv' has no candidate W8A8; it has W2A8, W4A8, float"):
        p.indices(Assignment((("stem.conv", Candidate(8, 8)), ("fc", FLOAT), ("attn.matmul0", FLOAT))))


def test_uniform_takes_the_only_choice_where_there_is_one():
    assert problem().uniform(FLOAT) == (2, 1, 0)
    assert problem().uniform(Candidate(2, 8)) is None


@given(
    st.lists(
        st.tuples(st.text(min_size=1, max_size=6), CANDIDATES), unique_by=lambda pair: pair[0], max_size=6
    )
)
def test_assignment_json_round_trip(choices):
    assignment = Assignment(tuple(choices))
    again = Assignment.from_json(json.loads(json.dumps(assignment.to_json())))
    assert again == assignment and hash(again) == hash(assignment)
    assert list(again) == [name for name, _ in choices]
    assert len(again) == len(choices)


@given(CANDIDATES)
def test_a_candidate_prints_and_parses(candidate):
    assert Candidate.parse(str(candidate)) == candidate


@pytest.mark.parametrize(
    "text",
    ["", "W4", "w4a8", "W1A8", "W9A8", "W4A1", "W44A8", "W4A8/row", "W4A8/", " W4A8", "float/tensor", "int8"],
)
def test_a_text_that_is_no_candidate_is_refused(text):
    with pytest.raises(UserError):
        Candidate.parse(text)


@pytest.mark.parametrize(
    "arguments",
    [
        (4, None),
        (None, 16),
        (1, 8),
        (8, 9),
        (4, 8, "fp8"),
        (4, 8, "float"),
        (None, None),
        (4, 8, "int", "group"),
    ],
    ids=str,
)
def test_a_candidate_that_cannot_be_is_refused(arguments):
    with pytest.raises(UserError):
        Candidate(*arguments)


@pytest.mark.parametrize("bound", [None, 1.5])
def test_solution_json_round_trip(bound):
    solution = Solution((0, 2, 1), 1.5, Cost(size_bytes=3.0, bops=9.0), "feasible", bound, "milp")
    assert Solution.from_json(json.loads(json.dumps(solution.to_json()))) == solution


def test_cost_json_holds_what_is_known():
    assert Cost(size_bytes=1.0, energy_mj=0.0).to_json() == {"size_bytes": 1.0, "energy_mj": 0.0}


def converted(resource="latency_us", layers=(1, 0), shape=(2, 3), values=(0.0, 1.0, 2.0, 3.0, 4.0, 5.0)):
    return problem(conversions={resource: (Interaction(layers, shape, values),)})


def test_a_conversion_adds_to_the_sum_of_its_resource_alone():
    plain, p = problem().cost((2, 1, 0)), converted().cost((2, 1, 0))
    assert p.latency_us == pytest.approx(plain.latency_us + 5.0) and p.size_bytes == plain.size_bytes
    assert converted().cost((1, 0, 0)).latency_us == pytest.approx(1.1 + 1.0)


def test_of_a_peak_the_greatest_row_counts():
    rows = ((10.0, 20.0, 40.0), (5.0, 30.0), (1.0,))
    p = problem(costs={"memory_bytes": rows}, constants={"memory_bytes": 100.0})
    assert [p.cost(x).memory_bytes for x in ((0, 0, 0), (1, 1, 0), (2, 1, 0))] == [110.0, 130.0, 140.0]


def test_conversions_are_written_and_read_and_problems_without_are_written_as_before():
    data = json.loads(json.dumps(converted().to_json()))
    assert data["schema"] == 3 and "interactions" not in data and Problem.from_json(data) == converted()
    assert problem().to_json()["schema"] == 1 and "conversions" not in problem().to_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resource": "bops"}, "no cost table of that name"),
        ({"layers": (0, 1, 2), "shape": (3, 2, 1)}, "must be between two"),
        ({"layers": (0, 3)}, "the layers 0 to 2"),
        ({"shape": (3, 2)}, r"between fc, stem\.conv has the shape \(3, 2\)"),
    ],
)
def test_a_conversion_that_cannot_be_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        converted(**changes)


def test_a_peak_has_no_conversions():
    memory = {"memory_bytes": ((1.0, 1.0, 1.0), (1.0, 1.0), (1.0,))}
    with pytest.raises(UserError, match="the greatest row counts"):
        problem(costs=memory, conversions={"memory_bytes": (Interaction((0, 1), (3, 2), (0.0,) * 6),)})


def test_mean_bits_are_weighted_by_the_weights():
    layers = [Layer(name, "linear", (1, n), ((1, 1),), (1, 1), 1, "b") for name, n in (("a", 30), ("b", 10))]
    layers.append(Layer("m", "matmul", (), (), (), 1, "b"))
    assert mean_bits(layers, {"a": Candidate(2, 8), "b": Candidate(6, 8), "m": FLOAT}) == 3.0
    assert (
        mean_bits(layers, {"a": FLOAT, "b": FLOAT, "m": FLOAT}) == 32.0
        and mean_bits(layers[2:], {"m": FLOAT}) == 0.0
    )
