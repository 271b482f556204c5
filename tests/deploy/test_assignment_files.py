"""`assignment.json` and CSV: what is written is what the schema says and what is read, and other tools' files
become the same vocabulary.
"""

import json
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mpsearch.deploy.imports import IMPORTERS
from mpsearch.errors import UserError
from mpsearch.problem import (
    Assignment,
    Candidate,
    Layer,
    assignment_csv,
    assignment_document,
    read_assignment,
)

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "assignment.schema.json").read_text())
RESNET = [
    "conv1",
    "layer1.0.conv1",
    "layer1.0.conv2",
    "layer2.0.conv1",
    "layer2.0.conv2",
    "layer2.0.downsample.0",
    "fc",
]
HAWQ = {
    "quant_input": 8,
    "quant_init_block_convbn": 8,
    "quant_act_int32": 16,
    "stage1.unit1.quant_act": 8,
    "stage1.unit1.quant_convbn1": 4,
    "stage1.unit1.quant_act1": 4,
    "stage1.unit1.quant_convbn2": 8,
    "stage1.unit1.quant_act_int32": 16,
    "stage2.unit1.quant_act": 4,
    "stage2.unit1.quant_convbn1": 4,
    "stage2.unit1.quant_act1": 8,
    "stage2.unit1.quant_convbn2": 4,
    "stage2.unit1.quant_identity_convbn": 8,
    "quant_act_output": 8,
    "quant_output": 8,
}
WANTED = {
    "conv1": "W8A8",
    "layer1.0.conv1": "W4A8",
    "layer1.0.conv2": "W8A4",
    "layer2.0.conv1": "W4A4",
    "layer2.0.conv2": "W4A8",
    "layer2.0.downsample.0": "W8A4",
    "fc": "W8A8",
}


def layers(names):
    return [
        Layer(
            name,
            "linear" if name == "fc" else "conv2d",
            (4, 3, 3, 3),
            ((1, 3, 8, 8),),
            (1, 4, 8, 8),
            100,
            "block",
        )
        for name in names
    ]


PRODUCT = Layer("attn.matmul0", "matmul", (), ((1, 4, 8, 8), (1, 4, 8, 8)), (1, 4, 8, 8), 100, "block")
MIXED = Assignment(
    tuple(
        (n, Candidate.parse(t))
        for n, t in zip(RESNET, ["W2A8", "float", "W5A3/tensor", "W8A8", "W4A4", "W3A8", "W8A8"], strict=True)
    )
)


def document(**about):
    return assignment_document(layers(RESNET), MIXED, size_bytes={"conv1": 31.0}, about=about)


def test_the_document_is_what_the_schema_describes():
    about = {
        "model": {"kind": "timm", "name": "resnet18", "kwargs": {}},
        "predicted": {"size_bytes": 10.0},
        "metrics": {"images": 3, "kl": 0.1, "agreement": 1.0, "top1": None, "loss": None},
        "budgets": [{"resource": "size_bytes", "limit": 10.0}],
    }
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads(json.dumps(document(**about))), SCHEMA)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda d: d["assignment"].update(conv1="W9A8"), "assignment"),
        (lambda d: d["assignment"].update(conv1="W4A8/row"), "assignment"),
        (lambda d: d.pop("layers"), ""),
        (lambda d: d.update(schema=2), "schema"),
        (lambda d: d.update(format="other"), "format"),
        (lambda d: d["layers"][0].update(w_bits=1), "layers"),
        (lambda d: d["layers"][0].update(odd=1), "layers"),
        (lambda d: d["layers"][0].pop("op"), "layers"),
        (lambda d: d.update(metrics={"top1": 2}), "metrics"),
    ],
)
def test_the_schema_refuses_what_is_not_one(change, path):
    data = json.loads(json.dumps(document(metrics={"images": 1})))
    change(data)
    with pytest.raises(jsonschema.ValidationError) as caught:
        jsonschema.validate(data, SCHEMA)
    assert not path or caught.value.absolute_path[0] == path


@pytest.mark.parametrize("form", ["json", "csv", "bare"])
def test_reading_gives_back_what_was_written(tmp_path, form):
    path = tmp_path / f"a.{'csv' if form == 'csv' else 'json'}"
    data = document()
    path.write_text(
        {"json": json.dumps(data), "csv": assignment_csv(data), "bare": json.dumps(data["assignment"])}[form]
    )
    assert read_assignment(path) == MIXED
    found = IMPORTERS.create("mpsearch").read(path, [*layers(RESNET), PRODUCT])
    assert dict(found.assignment) == {**MIXED, "attn.matmul0": Candidate.parse("float")}


@pytest.mark.parametrize(
    ("name", "text", "pattern"),
    [
        ("a.json", "{", "not an assignment"),
        ("a.json", "[]", "no object of layer names"),
        ("a.json", "{}", "no object of layer names"),
        ("a.json", '{"a": 4}', "no object of layer names"),
        ("a.json", '{"a": "W9A8"}', "w_bits is 9|not a candidate"),
        ("a.json", '{"a": "W4A8", "a": "W8A8"}', "'a' is in it twice"),
        ("a.json", '{"format": "other", "assignment": {"a": "W4A8"}}', "format is 'other'"),
        (
            "a.json",
            '{"format": "mpsearch-assignment", "schema": 9, "assignment": {"a": "W4A8"}}',
            "schema is 9",
        ),
        ("a.json", "[" * 100_000, "not an assignment"),
        ("a.csv", "name,bits\nconv1,4\n", "columns layer and candidate"),
        ("a.csv", "layer,candidate\nconv1,W4A8\nconv1,W8A8\n", "'conv1' is in it twice"),
        ("a.csv", "layer,candidate\nconv1\n", "lacks its candidate"),
    ],
)
def test_what_is_no_assignment_is_refused(tmp_path, name, text, pattern):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=pattern) as caught:
        read_assignment(tmp_path / name)
    assert name in str(caught.value) or "W9" in text


def test_an_assignment_of_another_model_is_refused(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(MIXED.to_json()))
    for names in (RESNET[1:], [*RESNET, "extra"]):
        with pytest.raises(UserError, match="another model"):
            IMPORTERS.create("mpsearch").read(tmp_path / "a.json", layers(names))


@pytest.mark.parametrize("form", ["py", "json"])
def test_hawq(tmp_path, form):
    path = tmp_path / f"bit_config.{form}"
    held = {"bit_config_resnet18_bops_0.5": HAWQ, "bit_config_resnet18_uniform8": dict.fromkeys(HAWQ, 8)}
    path.write_text(f"# HAWQ\nbit_config_dict = {held!r}\n" if form == "py" else json.dumps(held))
    found = IMPORTERS.create("hawq:config=bit_config_resnet18_bops_0.5").read(
        path, [*layers(RESNET), PRODUCT]
    )
    assert found.assignment.to_json() == {**WANTED, "attn.matmul0": "float"} and not found.notes
    with pytest.raises(UserError, match="Name one: --from hawq:config=NAME"):
        IMPORTERS.create("hawq").read(path, layers(RESNET))
    with pytest.raises(UserError, match="no configuration 'x'"):
        IMPORTERS.create("hawq:config=x").read(path, layers(RESNET))


def test_hawq_for_a_model_with_names_of_its_own(tmp_path):
    (tmp_path / "c.json").write_text(
        json.dumps({"quant_init_convbn": 4, "quant_input": 8, "quant_output": 8, "quant_act_output": 4})
    )
    (tmp_path / "names.json").write_text(json.dumps({"quant_init_convbn": "stem", "quant_output": "head"}))
    found = IMPORTERS.create(f"hawq:names={tmp_path / 'names.json'}").read(
        tmp_path / "c.json", layers(["stem", "middle", "head"])
    )
    assert found.assignment.to_json() == {"stem": "W4A8", "middle": "float", "head": "W8A4"}
    assert "1 layers are not in the file and stay float, such as middle." in found.notes


@pytest.mark.parametrize(
    "code",
    [
        "bit_config_dict = open('x')",
        "import os\nbit_config_dict = {os.name: 1}",
        "bit_config_dict = {",
        "x = 1",
    ],
)
def test_code_in_a_bit_config_is_not_run(tmp_path, code):
    (tmp_path / "bit_config.py").write_text(code)
    with pytest.raises(UserError, match="JSON"):
        IMPORTERS.create("hawq").read(tmp_path / "bit_config.py", layers(RESNET))


def quant_cfg(form):
    weights = {"layer1.0.conv1": 4, "fc": 16}
    if form == "list":
        entries = [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 8, "axis": 0}},
            {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": 8, "axis": None}},
            {
                "quantizer_name": "layer2*weight_quantizer",
                "parent_class": "nn.Conv2d",
                "cfg": {"num_bits": 3},
            },
            {"quantizer_name": "*weight_quantizer", "parent_class": "nn.Linear", "cfg": {"num_bits": 5}},
            *(
                {"quantizer_name": f"{n}.weight_quantizer", "cfg": {"num_bits": b}}
                for n, b in weights.items()
            ),
            {"quantizer_name": "conv1.*", "enable": False},
            {"quantizer_name": "layer1.0.conv2.input_quantizer", "enable": False},
        ]
        return {"quant_cfg": entries, "algorithm": "max"}
    return {
        "quant_cfg": {
            "*weight_quantizer": {"num_bits": 8, "axis": 0},
            "*input_quantizer": {"num_bits": 8},
            "layer2*weight_quantizer": {"num_bits": 3},
            "nn.Linear": {"*weight_quantizer": {"num_bits": 5}},
            **{f"{n}.weight_quantizer": {"num_bits": b} for n, b in weights.items()},
            "conv1.*": {"enable": False},
            "layer1.0.conv2.input_quantizer": {"enable": False},
        }
    }


@pytest.mark.parametrize("form", ["list", "dict"])
def test_modelopt(tmp_path, form):
    (tmp_path / "cfg.json").write_text(json.dumps(quant_cfg(form)))
    found = IMPORTERS.create("modelopt").read(tmp_path / "cfg.json", layers(RESNET))
    wanted = {"conv1": "float", "layer1.0.conv1": "W4A8", "layer1.0.conv2": "W8A16", "fc": "float"}
    assert found.assignment.to_json() == {**dict.fromkeys(RESNET, "W3A8"), **wanted}
    assert any("fc" in note for note in found.notes)


@pytest.mark.parametrize(
    "data",
    [
        '{"quant_cfg": 5}',
        "[]",
        '[{"quantizer_name": 3}]',
        '{"*weight_quantizer": {"num_bits": [4, 3]}}',
        '{"a": 1}',
        "x",
    ],
)
def test_a_strange_quant_cfg_is_refused(tmp_path, data):
    (tmp_path / "cfg.json").write_text(data)
    with pytest.raises(UserError, match=r"cfg\.json"):
        IMPORTERS.create("modelopt").read(tmp_path / "cfg.json", layers(RESNET))


def mctq(path, bits):
    """A chain as the toolkit writes it: an activation quantiser, a weight quantiser and a layer, with a
    Transpose between where it has one.
    """
    nodes, constants, x = [], [], "input"
    for i, (name, (w, a)) in enumerate(bits.items()):
        constants += [
            numpy_helper.from_array(np.zeros((3, 3, 1, 1), np.float32), f"{name}.weight"),
            numpy_helper.from_array(np.ones(3, np.float32), f"t{i}"),
        ]
        nodes.append(
            helper.make_node(
                "ActivationPOTQuantizer",
                [x],
                [f"a{i}"],
                domain="mct_quantizers",
                num_bits=a,
                signed=1,
                threshold=1.0,
            )
        )
        nodes.append(helper.make_node("Identity", [f"a{i}"], [f"b{i}"]))
        nodes.append(
            helper.make_node(
                "WeightsSymmetricQuantizer",
                [f"{name}.weight", f"t{i}"],
                [f"w{i}"],
                domain="mct_quantizers",
                num_bits=w,
            )
        )
        nodes.append(helper.make_node("Conv", [f"b{i}", f"w{i}"], [f"y{i}"]))
        x = f"y{i}"
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("input", x)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    onnx.save(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("mct_quantizers", 1)]
        ),
        path,
    )


def test_mct(tmp_path):
    mctq(tmp_path / "m.onnx", {"conv1": (4, 8), "layer1_0_conv1": (2, 16), "fc": (16, 8)})
    found = IMPORTERS.create("mct").read(
        tmp_path / "m.onnx", layers(["conv1", "layer1.0.conv1", "fc", "other"])
    )
    assert found.assignment.to_json() == {
        "conv1": "W4A8",
        "layer1.0.conv1": "W2A16",
        "fc": "float",
        "other": "float",
    }
    assert len(found.notes) == 2
    with pytest.raises(UserError, match="does not have, such as"):
        IMPORTERS.create("mct").read(tmp_path / "m.onnx", layers(["conv1", "fc"]))


def test_an_onnx_file_without_quantisers_is_refused(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        *([helper.make_tensor_value_info(n, 1, [1])] for n in "xy"),
    )
    onnx.save(helper.make_model(graph), tmp_path / "plain.onnx")
    (tmp_path / "text.onnx").write_bytes(b"\xff\xfe not a model")
    for name, pattern in (
        ("plain.onnx", "no quantiser nodes"),
        ("text.onnx", "not an ONNX file"),
        ("none.onnx", "not an ONNX file"),
    ):
        with pytest.raises(UserError, match=pattern):
            IMPORTERS.create("mct").read(tmp_path / name, layers(["conv1"]))
