"""What `--fix` and `--bits` leave to each layer, and the one error where they leave nothing."""

from __future__ import annotations

import itertools

import pytest

from mpsearch.errors import OptionError, UserError
from mpsearch.problem import Candidate, Interaction, Layer, Problem, Restrictions

FLOAT = Candidate(None, None, "float")
EVERY = tuple(Candidate(w, a) for w in range(8, 1, -1) for a in range(8, 1, -1))
WEIGHTS = tuple(Candidate(w, 8) for w in range(8, 1, -1))


def layers(ties=(None, "t", "t", None)):
    names = ("stem", "body.0", "body.1", "fc")
    units = [
        Layer(n, "linear", (2, 2), ((1, 2),), (1, 2), 4, "b", tie) for n, tie in zip(names, ties, strict=True)
    ]
    return (*units, Layer("attn.matmul0", "matmul", (), ((2, 2), (2, 2)), (2, 2), 8, "b"))


def chosen(fix=(), bits=(), default=(*(WEIGHTS,) * 4, (FLOAT,)), possible=None, ties=(None, "t", "t", None)):
    found = Restrictions.parse(fix, bits).choose(layers(ties), default, possible)
    return [" ".join(map(str, row)) for row in found]


FREE = " ".join(map(str, WEIGHTS))


def test_later_rules_win_and_a_fixed_candidate_wins_over_bits():
    assert chosen(bits=["*=2..4", "fc=8"]) == ["W4A8 W3A8 W2A8"] * 3 + ["W8A8", "float"]
    assert chosen(bits=["fc=8", "*=2..4"])[3] == "W4A8 W3A8 W2A8"
    assert chosen(fix=["*=W2A8", "fc=W8A8"], bits=["fc=3"])[2:] == ["W2A8", "W8A8", "float"]
    may = (*((*WEIGHTS, FLOAT),) * 4, (FLOAT,))
    assert chosen(bits=["fc=4,8,float", "stem=8"], default=may)[::3] == ["W8A8", "W8A8 W4A8 float"]
    assert chosen(bits=["fc=A4..8,float"], possible=may)[3] == f"{FREE} float"
    assert chosen(bits=["stem=2,4,8"]) == ["W8A8 W4A8 W2A8", FREE, FREE, FREE, "float"]
    assert chosen(bits=["s?em=5-6"])[0] == "W6A8 W5A8"


def test_members_of_a_tie_share_what_is_left():
    assert chosen(bits=["body.0=2..4"])[1:3] == ["W4A8 W3A8 W2A8"] * 2
    assert chosen(bits=["body.0=2..4", "body.1=4..8"])[1:3] == ["W4A8"] * 2
    with pytest.raises(
        OptionError,
        match=(
            r"--fix body\.0=W2A8 and --fix body\.1=W8A8: nothing is left for the layers 'body\.0', "
            r"'body\.1', which share"
        ),
    ):
        chosen(fix=["body.0=W2A8", "body.1=W8A8"])


def test_rules_pick_from_what_is_possible_and_leave_the_other_side_as_it_is_by_default():
    possible = (*((*EVERY, FLOAT),) * 4, (FLOAT,))
    narrow = (*((Candidate(4, 8),),) * 4, (FLOAT,))
    more = {"default": narrow, "possible": possible}
    assert chosen(bits=["fc=6..8"], **more) == ["W4A8"] * 3 + ["W8A8 W7A8 W6A8", "float"]
    assert chosen(bits=["fc=A4..5"], **more)[3] == "W4A5 W4A4"
    assert chosen(bits=["fc=2,8", "fc=A4"], **more)[3] == "W8A4 W2A4"
    assert chosen(fix=["fc=W2A2", "stem=float"], **more) == ["float", "W4A8", "W4A8", "W2A2", "float"]


@pytest.mark.parametrize(
    ("fix", "bits", "message"),
    [
        (["fcc=W8A8"], [], r"No layer is called 'fcc'\. Did you mean 'fc'\?.*--fix fcc=W8A8 is about none"),
        ([], ["layer9.*=4"], r"'layer9\.\*'.*attn\.matmul0, body\.0, body\.1, fc, stem"),
        (["fc=W8A4"], [], r"--fix fc=W8A4: nothing is left for the layer 'fc' of its candidates W8A8, W7A8"),
        ([], ["attn.matmul0=4"], "nothing is left for the layer 'attn.matmul0' of its candidates float"),
        (["fc"], [], "--fix 'fc' cannot be read. Write NAME=W8A8"),
        (["=W8A8"], [], "cannot be read"),
        (["fc=8"], [], "'8' is not a candidate"),
        ([], ["fc"], "--bits 'fc' cannot be read. Write NAME=2..6"),
        ([], ["fc=2..x"], "'2..x' is no range of bit-widths"),
        ([], ["fc=6..2"], "bits are 2 to 8, the lower first"),
        ([], ["fc=1..4"], "bits are 2 to 8"),
        ([], ["fc=2,9"], "bits are 2 to 8"),
    ],
)
def test_what_cannot_be_is_one_clear_error(fix, bits, message):
    with pytest.raises(UserError, match=message) as caught:
        chosen(fix, bits)
    assert caught.value.exit_code == 2


def test_a_restricted_problem_is_the_same_problem_with_fewer_candidates():
    units, names = layers()[3:4] + layers()[:1], ("fc", "stem")
    rows = tuple(tuple(float(10 * i + c) for c in range(3)) for i in range(2))
    term = Interaction((1, 0), (3, 3), tuple(float(v) for v in range(9)))
    p = Problem(
        units,
        (WEIGHTS[:3],) * 2,
        {"proxy": rows},
        {"latency_us": rows},
        {},
        (),
        {"proxy": (term,)},
        {"latency_us": (term,)},
    )
    cut = Restrictions.parse((), ["stem=6..7", "fc=8"]).apply(p)
    assert [layer.name for layer in cut.layers] == list(names)
    every = {
        str(p.assignment(x).to_json()): (p.score("proxy", x), p.cost(x))
        for x in itertools.product(range(3), range(3))
    }
    for x in itertools.product(range(1), range(2)):
        assert every[str(cut.assignment(x).to_json())] == (cut.score("proxy", x), cut.cost(x))
    assert Restrictions().apply(p) is p


@pytest.mark.parametrize(
    "rule",
    [
        {"bits": ["*matmul*=A4..8"]},
        {"bits": ["attn.*=4"]},
        {"fix": ["attn.*=W8A8"]},
        {"bits": ["*=4", "a*.matmul?=2"]},
    ],
)
def test_a_pattern_about_layers_that_can_only_be_float_is_not_passed_over(rule):
    with pytest.raises(OptionError, match=r"is about attn\.matmul0, which can only be float here"):
        chosen(**rule)


def test_a_pattern_that_leaves_such_layers_float_is_welcome():
    assert chosen(fix=["attn.*=float"])[4] == "float"
