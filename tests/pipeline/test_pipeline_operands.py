"""Fully quantised runs of a tiny vision transformer: every tensor has bits, what is shipped is read back, and what
cannot be is refused early.
"""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import torch

from mpsearch.deploy.packed_reading import open_packed
from mpsearch.deploy.targets.states import refuse_products
from mpsearch.errors import ModelError, OptionError, UnknownNameError, UserError
from mpsearch.models import SpanHead, load_model
from mpsearch.pipeline import run, search
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.steps.costs import bit_operations
from mpsearch.problem import FLOAT, Candidate, Layer, Problem, Restrictions
from mpsearch.testing.text import tiny_text, tiny_tokens

FULL = {"quantize": "full", "smooth": "sqb", "input_observer": "auto", "softmax": "auto"}


def _json(study, name):
    return json.loads((study.path / name).read_text())


def test_every_tensor_of_a_transformer_has_bits_and_is_read_back(settings, vit, tmp_path):
    study = Study(tmp_path / "full")
    config = settings(
        model=vit, bits=(3, 5), a_bits=(4, 6), trials=2, polish=0, method="qdrop", iterations=3, **FULL
    )
    result = run(config, study)
    assignment = result["best"]["assignment"]
    ops = {layer["name"]: layer["op"] for layer in _json(study, "problem.json")["layers"]}
    counted = {op: list(ops.values()).count(op) for op in ops.values()}
    assert counted == {
        **{"conv2d": 1, "linear": 9, "matmul": 4, "softmax": 2, "gelu": 2, "layer_norm": 5, "add": 4}
    }
    assert set(assignment) == set(ops) and "float" not in assignment.values()
    assert {assignment[name] for name, op in ops.items() if op not in ("conv2d", "linear")} <= {"A4", "A6"}
    assert result["float_in_graph"] == [] and set(result["input_grids"]) == set(ops)
    assert result["best"]["artifact"]["reloaded_bit_for_bit"]
    packed = result["best"]["artifact"]["packed"]
    _, states = open_packed(packed, load_model(vit).module)
    assert all(state.activation is not None for state in states.values())
    assert all(
        (state.second is not None) == (ops[unit] in ("matmul", "add")) for unit, state in states.items()
    )
    schema = json.loads((Path(__file__).parents[2] / "docs" / "assignment.schema.json").read_text())
    jsonschema.validate(_json(study, "artifact/assignment.json"), schema)
    again = run(config, study)
    assert again["best"]["assignment"] == assignment and again["rows"] == result["rows"]
    with pytest.raises(UserError, match="export with --target packed"):
        refuse_products(SimpleNamespace(states=states), "onnx")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"quantize": "full", "target": "ort-cpu"}, OptionError, "--target packed"),
        ({"quantize": "everything"}, UnknownNameError, "quantize"),
        ({"smooth": "sq"}, UnknownNameError, "smooth"),
        ({"softmax": "log2"}, OptionError, "--quantize matmul"),
        ({"input_observer": "opt_m", "target": "openvino-cpu"}, OptionError, "uniform grids"),
        ({"input_observer": "medium"}, UnknownNameError, "medium"),
        ({"input_observer": "percentile:30"}, OptionError, "percentile"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(settings, changes, error, message):
    with pytest.raises(error, match=message):
        settings(**changes)


@pytest.mark.parametrize("changes", [{"quantize": "matmul"}, {"smooth": "sqb"}])
def test_a_convolutional_net_has_nothing_of_it(settings, tmp_path, changes):
    with pytest.raises(ModelError, match=rf"--{next(iter(changes))}"):
        run(settings(**changes), Study(tmp_path / "cnn"))


def test_only_products_beside_the_layers(settings, vit, tmp_path):
    config = settings(model=vit, bits=(4,), trials=0, polish=0, quantize="matmul", softmax="log2")
    result = run(config, Study(tmp_path / "matmul"))
    assert {name: bits for name, bits in result["best"]["assignment"].items() if "W" not in bits} == {
        f"blocks.{i}.attn.matmul{j}": "A8" for i in range(2) for j in range(2)
    }
    assert config == type(config).from_json(config.to_json())
    old = {k: v for k, v in config.to_json().items() if k not in FULL}
    assert type(config).from_json(old) == replace(config, quantize="linear", softmax="uniform")


LINEAR = Layer("block.fc", "linear", (4, 4), ((1, 4),), (1, 4), 16, "block")
PRODUCT = Layer("block.matmul0", "matmul", (), ((1, 2, 4), (1, 4, 2)), (1, 2, 2), 16, "block")
ROWS = ((Candidate(4, 8), Candidate(4, 4), FLOAT), (Candidate(None, 8), Candidate(None, 4), FLOAT))


def test_units_without_a_weight_in_the_vocabulary():
    assert [str(Candidate.parse(text)) for text in ("A4", "W4A8")] == ["A4", "W4A8"]
    problem = Problem((LINEAR, PRODUCT), ROWS)
    assert problem.uniform(Candidate(4, 4)) == (1, 1)
    assert problem.uniform(FLOAT) == (2, 2)
    assert bit_operations(PRODUCT, Candidate(None, 4)) == 16 * 16
    assert bit_operations(LINEAR, Candidate(4, 8)) == 16 * 32

    def left(fix=(), bits=()):
        return Restrictions.parse(fix, bits).choose((LINEAR, PRODUCT), ROWS)

    assert left(["block.*=W4A4"]) == ((Candidate(4, 4),), (Candidate(None, 4),))
    assert left(["block.matmul0=A8"])[1] == (Candidate(None, 8),)
    assert left(bits=["block.*=4"])[1] == ROWS[1]
    assert left(bits=["block.*=A4"]) == ((Candidate(4, 4),), (Candidate(None, 4),))


def test_the_choice_of_grids_is_kept(settings, vit, tmp_path):
    config = settings(model=vit, bits=(4,), a_bits=(4,), trials=0, polish=0, **FULL)
    first = run(config, Study(tmp_path / "first"))
    second = run(config, Study(tmp_path / "second"))
    assert first["input_grids"] == second["input_grids"]
    assert len(list((tmp_path / "first" / "steps").glob("inputs-*.json"))) == 1
    assert torch.isfinite(torch.tensor(first["best"]["metrics"]["kl"]))


@pytest.mark.parametrize("pooling", ["mean", "none"])
def test_a_text_encoder_with_masked_scores(tmp_path, pooling):
    model = tiny_text(SpanHead(16) if pooling == "none" else None, pooling)
    found = search(
        model,
        tiny_tokens(40),
        budgets=["6bits"],
        study=tmp_path / "text",
        task="embedding" if pooling == "mean" else "span",
        bits=(6, 8),
        trials=0,
        polish=0,
        target="packed",
        objectives=("output_mse",),
        **{**FULL, "smooth": "none"},
    )
    assert found["float_in_graph"] == [] and found["best"]["artifact"]["reloaded_bit_for_bit"]
    assert found["best"]["metrics"]["kl"] < 0.1
