"""Engines that trtexec has told of: every layer is accounted for, rows and runs are those of the files, and a bad
file is one clear error.
"""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from trtexec_files import conv, edit, other, real_files, write_build

from mpsearch.errors import DeviceMismatchError, TableError
from mpsearch.hardware import LatencyTable, identity
from mpsearch.hardware.trtexec import (
    Network,
    account,
    fit_network,
    import_builds,
    read_builds,
    read_manifest,
    write_manifest,
)
from mpsearch.hardware.trtexec.engine import EngineLayer, EngineTensor
from mpsearch.hardware.trtexec.shapes import unit_layer
from mpsearch.hardware.wires import Wire
from mpsearch.problem import ConvAttributes, Layer

X = (4, 8, 16, 16)
DATE = "2026-01-02T03:04:05+00:00"
REAL = [
    ("examples", "pytorch", "resnet", "A100"),
    ("examples", "tensorflow", "resnet", "RTX-3090"),
    ("tests", "inputs"),
]


def unit(name):
    shape = (1, *X[1:])
    return Layer(
        name, "conv2d", (8, 8, 3, 3), (shape,), shape, 1, "", bias=True, conv=ConvAttributes(padding=(1, 1))
    )


def tensor_layer(name):
    shape = (1, *X[1:])
    return Layer(name, "residual", (), (shape,), shape, 0, "")


def network(**asked):
    wires = (Wire(0, 1, "direct", 2048), Wire(0, 2, "direct", 2048), Wire(1, 2, "join", 2048))
    return Network("net", (unit("a"), unit("b"), tensor_layer("a.output")), wires, asked)


def int8_layers(residual="int8", end="int8"):
    """a, then b with the sum; a is quantised once, and once more where its residual branch is float."""
    first = conv(
        "k1", ("x.q", X, "int8"), ("a", X, residual), metadata="[ONNX Layer: a]\x1e[ONNX Layer: relu]"
    )
    edge = other("q", "Reformat", ("a", X, "fp16"), ("a.q", X, "int8"), Origin="QDQ")
    last = conv(
        "k2", ("a.q" if residual == "fp16" else "a", X, "int8"), ("y", X, end),
        metadata="[ONNX Layer: b][ONNX Layer: add]", residual=("a", X, residual),
    )  # fmt: skip
    start = other("copy", "Reformat", ("x", X, "fp32"), ("x.q", X, "int8"), Origin="REFORMAT")
    return [start, first, *([edge] if residual == "fp16" else []), last]


def fp16_layers():
    nothing = other("view", "NoOp", ("a", X, "fp16"), ("a2", X, "fp16"))
    return [
        conv("k1", ("x", X, "fp16"), ("a", X, "fp16"), metadata="[ONNX Layer: a]"),
        nothing,
        conv(
            "k2", ("a2", X, "fp16"), ("y", X, "fp16"), metadata="[ONNX Layer: b]", residual=("a", X, "fp16")
        ),
    ]


@pytest.fixture
def folder(tmp_path):
    """Three engines of a net of two convolutions and a sum."""
    write_build(tmp_path, "fp16", fp16_layers(), [50, 0, 52], 100)
    write_build(tmp_path, "units", int8_layers("fp16", "fp16"), [5, 35, 20, 36], 98)
    write_build(tmp_path, "residual", int8_layers(), [5, 30, 32], 70)
    return tmp_path


def imported(folder, net=None, **options):
    return import_builds(read_builds(folder), net, date=DATE, **options)


def test_rows_edges_and_runs_are_those_of_the_files(folder):
    found = imported(folder, network())
    table = found.table
    assert (table.batch, table.version, str(table.device.name), table.device.cores) == (
        4,
        "10.9.0",
        "NVIDIA H200",
        132,
    )
    key = "conv2d 4x8x16x16 w8x8x3x3 s1,1 p1,1 d1,1 g1 bias"
    assert {k: table.rows[key, k].median_us for k in ("float", "W8A8", "W8A8>float")} == pytest.approx(
        {"float": 51, "W8A8": 31, "W8A8>float": 35.5}
    )
    assert "a + relu (int8>int8)" in table.rows[key, "W8A8"].executed
    assert table.rows["edge 4x8x16x16 fp16>int8", "quantize"].median_us == pytest.approx(20)
    assert found.accounts["units"].sums() == pytest.approx({"unit": 71, "group": 0, "edge": 20, "other": 5})
    assert found.runs["units"].kernels == ("W8A8", "W8A8", "float")
    assert found.runs["residual"].kernels == ("W8A8", "W8A8", "W8A8")
    assert found.runs["residual"].latency_us == pytest.approx(70)
    assert {row.status for row in table.rows.values()} == {"ok"}


def test_a_table_of_engines_is_saved_and_read_back_with_its_batch(folder, tmp_path):
    table = imported(folder, network()).table
    path = table.save(tmp_path / "tables")
    again = LatencyTable.load(path, table.device)
    assert (again.batch, again.rows, again.models) == (4, table.rows, table.models)


def test_the_fitted_model_tells_the_residual_form_from_units_alone(folder):
    found, net = imported(folder, network()), network()
    model = fit_network(net.layers, net.wires, found.table, list(found.table.models.values()))
    assert model.error is not None and model.error.runs == 3
    for name, run in found.runs.items():
        off = abs(model.predict(run.kernels) - run.latency_us) / run.latency_us
        assert off <= model.error.worst, name


def test_a_unit_that_ran_in_float_is_a_fallback_and_its_run_teaches_nothing(folder):
    found = imported(folder, network(fp16=("W8A8", "float", "float")))
    assert found.runs["fp16"].status == "fallback"
    key = "conv2d 4x8x16x16 w8x8x3x3 s1,1 p1,1 d1,1 g1 bias"
    assert found.table.rows[key, "W8A8"].status in ("ok", "fallback")
    assert found.runs["residual"].status == "ok"


def test_several_units_in_one_layer_are_a_group_that_is_not_divided(tmp_path):
    fused = conv("k", ("x", X, "fp16"), ("y", X, "fp16"), metadata="[ONNX Layer: a]\x1f[ONNX Layer: b]")
    write_build(tmp_path, "fused", [fused], [80], 75)
    found = imported(tmp_path, network())
    (row,) = found.table.rows.values()
    assert (row.kind, row.median_us) == ("group", 80) and row.key.count("conv2d") == 2
    assert found.accounts["fused"].sums()["group"] == pytest.approx(80)


def test_a_block_that_tells_nothing_is_a_block_row(tmp_path):
    block = other("{ForeignNode[a...b]}", "Myelin", ("x", X, "fp16"), ("y", X, "fp16"))
    write_build(tmp_path, "block", [block], [80], 75)
    (row,) = imported(tmp_path).table.rows.values()
    assert row.kind == "group" and row.key.startswith("block ")


@pytest.mark.parametrize(
    ("name", "metadata", "nodes"),
    [
        ("w + Q_1 + Conv_9 + PWN(Clip_16)", "", ("w", "Q_1", "Conv_9", "Clip_16")),
        ("k", "[ONNX Layer: /a/Conv]\x1e[ONNX Layer: /a/Relu]", ("/a/Conv", "/a/Relu")),
        ("k", "[ONNX Layer: a][ONNX Layer: b]", ("a", "b")),
        ("k", "[ONNX Layer: a]\x1f[ONNX Layer: a]", ("a",)),
    ],
)
def test_nodes_are_read_from_metadata_or_the_name(name, metadata, nodes):
    one = EngineTensor("x", X, "fp16")
    assert EngineLayer(name, "C", (one,), (one,), {"Metadata": metadata}, 1, 1, 1).nodes == nodes


def test_a_manifest_says_what_was_asked_for(tmp_path):
    net = network(fp16=("float",) * 3)
    write_manifest(tmp_path, net, 4)
    assert read_manifest(tmp_path) == (net, 4)
    edit(tmp_path / "builds.json", lambda data: data["builds"]["fp16"].pop())
    with pytest.raises(TableError, match=r"builds.json cannot be read"):
        read_manifest(tmp_path)


def cut(path):
    path.write_text(path.read_text()[:-30])


BAD = {
    "low verbosity": (
        lambda f: edit(f / "fp16.layers.json", lambda d: {"Layers": [x["Name"] for x in d["Layers"]]}),
        "--profilingVerbosity=detailed",
    ),
    "another engine's profile": (
        lambda f: (f / "fp16.profile.json").write_text((f / "residual.profile.json").read_text()),
        "of different engines: layer 1 is 'k1' in one and 'copy'",
    ),
    "cut off": (lambda f: cut(f / "units.layers.json"), "units.layers.json is not JSON"),
    "cut off times": (lambda f: cut(f / "units.times.json"), "units.times.json is not JSON"),
    "one iteration": (
        lambda f: write_build(f, "fp16", fp16_layers(), [50, 0, 52], 100, count=1),
        "profile of fp16 is of one iteration",
    ),
    "another batch": (
        lambda f: edit(
            f / "fp16.layers.json", lambda d: d["Layers"][0]["Inputs"][0]["Dimensions"].__setitem__(0, 8)
        ),
        r"differ in batch \(8 and 4\)",
    ),
    "no times": (lambda f: (f / "fp16.times.json").unlink(), "--exportTimes"),
    "few times": (lambda f: edit(f / "fp16.times.json", lambda d: d[:3]), "holds 3 times of the whole model"),
    "no device": (lambda f: [p.unlink() for p in f.glob("*.log")], "No file of fp16 tells the device"),
    "other version": (
        lambda f: (f / "fp16.log").write_text((f / "fp16.log").read_text().replace("10.9.0", "11.0.1")),
        "differ in TensorRT version",
    ),
    "no dimensions": (
        lambda f: edit(f / "fp16.layers.json", lambda d: d["Layers"][0]["Inputs"][0].pop("Format/Datatype")),
        "lacks Dimensions or Format/Datatype",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_profile_is_one_clear_error(folder, what):
    spoil, message = BAD[what]
    spoil(folder)
    with pytest.raises(TableError, match=message):
        imported(folder, network())


def test_an_engine_of_another_model_is_refused(folder):
    other_net = Network("net", (unit("p"), unit("q"), unit("r")), (), {})
    with pytest.raises(
        TableError, match=r"engine of another model: it has 2 units, and none that is left for 'r'"
    ):
        imported(folder, other_net)
    with pytest.raises(TableError, match=r"its layer 'k2' is none of the 1 units"):
        imported(folder, Network("net", (unit("p"),), (), {}))


def test_an_empty_folder_says_how_to_fill_it(tmp_path):
    with pytest.raises(TableError, match=r"--exportLayerInfo"):
        read_builds(tmp_path)


def test_forms_that_only_a_graph_tells_apart_need_the_model(folder):
    with pytest.raises(TableError, match=r"residual and units have the same kernels.*--model"):
        imported(folder)


@pytest.mark.parametrize("parts", REAL, ids=lambda parts: parts[-1])
def test_every_layer_of_a_real_profile_is_accounted_for(parts):
    for build in read_builds(real_files(*parts)):
        found = account(build.layers)
        assert [entry.layer.name for entry in found.entries] == [layer.name for layer in build.layers]
        sums = found.sums()
        assert math.fsum(sums.values()) == pytest.approx(build.total_us, rel=1e-12)
        assert sums["unit"] > 0.6 * build.total_us
        assert (sums["edge"] > 0) == (
            "qat" in build.name or (build.name.startswith("fp32") and "3090" in parts[-1])
        )


def test_resnet50_is_reproduced_within_the_stated_error():
    """RTX 3090: the fp16 engine names the units, and the others, one of them another exporter's, follow its shapes."""
    builds = read_builds(real_files(*REAL[1]))
    fp16 = next(build for build in builds if build.name.startswith("fp16"))
    shapes = [unit_layer(entry.layer) for entry in account(fp16.layers).of("unit")]
    layers = tuple(replace(shape, name=f"unit {i}") for i, shape in enumerate(shapes) if shape is not None)
    net = Network("resnet50", layers, (), {})
    found = import_builds(builds, net, date=DATE, allow_estimate=True)
    runs = {name.partition("/")[0]: run for name, run in found.runs.items()}
    assert {name: set(run.kernels) for name, run in runs.items()} == {
        "fp32": {"fp32"},
        "fp16": {"float"},
        "qat": {"W8A8"},
    }
    model = fit_network(layers, (), found.table, list(runs.values()))
    assert model.error is not None and model.error.worst < 0.1
    for name, median in (("fp16", 4022), ("qat", 2196)):
        assert runs[name].latency_us == pytest.approx(median, rel=0.002)
        assert abs(model.predict(runs[name].kernels) - median) / median <= model.error.worst
    assert {row.status for row in found.table.rows.values()} == {"unstable"}


def test_a_profile_of_many_iterations_is_stable():
    builds = [b for b in read_builds(real_files(*REAL[2])) if "residuals" in b.name]
    found = import_builds(builds, None, date=DATE)
    assert {row.status for row in found.table.rows.values()} == {"ok"}
    assert [len(found.of("unit")) for found in found.accounts.values()] == [53]


def test_a_table_of_a_gpu_does_not_fit_this_processor(folder, tmp_path):
    path = imported(folder, network()).table.save(tmp_path / "tables")
    with pytest.raises(TableError, match=r"measured on NVIDIA H200"):
        LatencyTable.load(path, identity())


PUBLISHED = sorted((Path(__file__).parents[2] / "latency_tables" / "published").glob("*.csv"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem[:24])
def test_published_tables_say_where_they_are_from_and_are_estimates_anywhere(path):
    table = LatencyTable.load(path, identity(), allow_estimate=True)
    assert table.estimated and table.published is not None
    told = ("repository", "commit", "path", "licence", "method", "samples")
    assert all(table.published[key] for key in told) and table.rows
    with pytest.raises(DeviceMismatchError, match=r"measured and published by others .*--allow-estimate"):
        LatencyTable.load(path, table.device)  # on the very same card too
    with pytest.raises(TableError, match=r"is an estimate here, and is not saved"):
        table.save(path.parent)


def test_a_published_table_is_never_merged_into_a_measured_one(folder, tmp_path):
    measured = imported(folder, network()).table
    theirs = replace(measured, published={"repository": "r", "commit": "c"})
    for first, second in ((measured, theirs), (theirs, measured)):
        place = tmp_path / str(first is theirs)
        path = first.save(place)
        before = path.read_text()
        with pytest.raises(TableError, match=r"never merged"):
            second.save(place)
        assert path.read_text() == before


def test_a_fall_back_in_one_engine_hides_no_row_of_another(folder):
    asked = {
        "fp16": ("float",) * 3,
        "units": ("W8A8", "W8A8", "float"),
        "residual": ("W8A8", "float", "W8A8"),
    }
    found = imported(folder, network(**asked))
    key = "conv2d 4x8x16x16 w8x8x3x3 s1,1 p1,1 d1,1 g1 bias"
    assert found.runs["residual"].status == "fallback"
    assert found.table.rows[key, "float"].status == "ok" and found.table.rows[key, "float"].median_us == 51
