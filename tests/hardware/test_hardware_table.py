"""A latency table comes back as it was, and nothing malformed or foreign is taken."""

import csv
import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from mpsearch.errors import DeviceMismatchError, TableError
from mpsearch.hardware import DeviceIdentity, LatencyTable, ModelRun, Row, identity
from mpsearch.hardware.rows import row_key
from mpsearch.hardware.table import models_path
from mpsearch.problem import Candidate, ConvAttributes, Layer

HERE = DeviceIdentity("CPU one", "x86_64", 2, ("avx2",), "Linux")
THERE = replace(HERE, name="CPU two")
LAYER = Layer(
    "a",
    "conv2d",
    (8, 4, 3, 3),
    ((1, 4, 9, 9),),
    (1, 8, 9, 9),
    1,
    "b",
    bias=True,
    conv=ConvAttributes((1, 1), (1, 1), (1, 1), 1),
)
W8A8 = Candidate(8, 8)
SHIPPED = Path(__file__).parents[2] / "latency_tables"
ROW = Row(
    row_key(LAYER, 1),
    "W8A8",
    "ok",
    12.5,
    0.25,
    21,
    320,
    "QuantizeLinear QLinearConv",
    0.0037,
    "2026-01-02T03:04:05+00:00",
)

RUN = ModelRun(
    "net-1", 1, ("float", "W8A8"), (1000.0, 1020.0), 12.0, 250.0, "ok", "cpu", "2026-01-02T03:04:05+00:00"
)


def table_of(*rows, device=HERE):
    return LatencyTable(device, "ort-cpu", "1.2.3", 1, {(r.key, r.kernel): r for r in rows})


@pytest.fixture
def saved(tmp_path):
    return table_of(ROW, replace(ROW, kernel="float", status="fallback")).save(tmp_path)


def edit(path, **values):
    """Rewrite the first row of a table with other values."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0].update(values)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_round_trip(saved):
    back = LatencyTable.load(saved, HERE)
    assert back == table_of(ROW, replace(ROW, kernel="float", status="fallback"))
    assert back.get(LAYER, W8A8) == ROW
    assert saved.name == "cpu-one-2c-avx2__ort-cpu__1.2.3.csv"


def test_open_gives_what_is_there_or_an_empty_table(saved, tmp_path):
    assert len(LatencyTable.open(tmp_path, HERE, "ort-cpu", "1.2.3", 1).rows) == 2
    assert LatencyTable.open(tmp_path, HERE, "ort-cpu", "1.2.4", 1).rows == {}
    assert LatencyTable.open(tmp_path, HERE, "ort-cpu", "1.2.3", 2).rows == {}


@pytest.mark.parametrize("runtime", ["ort-cpu__1.31.1", "openvino-cpu__2026.4.1"])
def test_a_shipped_table_has_a_latency_of_every_unit_of_its_models(runtime):
    path = SHIPPED / f"intel-r-xeon-r-processor-6-167-1-2c-amx-bf16__{runtime}.csv"
    table = LatencyTable.load(
        path, DeviceIdentity.from_json(json.loads(path.with_suffix(".json").read_text())["device"])
    )
    shapes = json.loads((SHIPPED.parent / "benchmarks" / "gpu_shapes.json").read_text())
    layers = [Layer.from_json(layer) for model in shapes.values() for layer in model]
    wanted = [
        (layer, kernel, batch)
        for layer in layers
        if layer.weight_shape
        for kernel in (Candidate.parse("float"), W8A8)
        for batch in (1, 8)
    ]
    missing = [
        (layer.name, str(kernel), batch)
        for layer, kernel, batch in wanted
        if not ((row := table.get(layer, kernel, batch)) and row.usable)
    ]
    assert len(wanted) > 400 and not missing


def test_the_name_of_a_layer_is_not_in_the_key():
    assert row_key(replace(LAYER, name="z", block="y", tie="t", calls=3), 1) == ROW.key


@pytest.mark.parametrize(
    "other",
    [
        replace(LAYER, weight_shape=(16, 4, 3, 3)),
        replace(LAYER, input_shapes=((1, 4, 8, 9),)),
        replace(LAYER, bias=False),
        replace(LAYER, conv=ConvAttributes((2, 1), (1, 1), (1, 1), 1)),
        replace(LAYER, conv=ConvAttributes((1, 1), (1, 0), (1, 1), 1)),
        replace(LAYER, conv=ConvAttributes((1, 1), (1, 1), (2, 1), 1)),
        replace(LAYER, conv=ConvAttributes((1, 1), (1, 1), (1, 1), 2)),
        replace(LAYER, op="linear", conv=None),
    ],
)
def test_what_decides_a_kernel_is_in_the_key(other):
    assert row_key(other, 1) != ROW.key and row_key(LAYER, 2) != ROW.key


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"median_us": "nan"}, "median_us is nan"),
        ({"median_us": "-1"}, "median_us is -1"),
        ({"median_us": "0"}, "median_us is 0"),
        ({"median_us": "inf"}, "median_us is inf"),
        ({"iqr_us": "-0.5"}, "iqr_us is -0.5"),
        ({"median_us": "fast"}, "fast"),
        ({"repeats": "2.5"}, "2.5"),
        ({"weight_bytes": "-3"}, "weight_bytes is -3"),
        ({"status": "perhaps"}, "perhaps"),
        ({"kind": "thing"}, "thing"),
        ({"clock": "sun"}, "sun"),
        ({"rounds": "1 two"}, "two"),
        ({"anchor_us": "nan"}, "anchor_us is nan"),
    ],
)
def test_a_malformed_value_is_named_with_its_line(saved, values, message):
    edit(saved, **values)
    with pytest.raises(TableError, match=f"line 2.*{message}"):
        LatencyTable.load(saved, HERE)


def test_a_cut_off_file_is_named_with_its_line(saved):
    saved.write_text(saved.read_text()[:-60])
    with pytest.raises(TableError, match=r"line 3.*cut off"):
        LatencyTable.load(saved, HERE)


@pytest.mark.parametrize("column", ["median_us", "status", "executed"])
def test_a_missing_column_is_named(saved, column):
    with saved.open(newline="") as file:
        rows = [{k: v for k, v in record.items() if k != column} for record in csv.DictReader(file)]
    with saved.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(TableError, match=f"column '{column}'"):
        LatencyTable.load(saved, HERE)


def test_a_number_that_lost_its_last_digits_is_not_taken(saved):
    """Cut within the last field there are as many fields as before."""
    saved.write_text(saved.read_text()[:-2])
    with pytest.raises(TableError, match=r"line 3.*cut off"):
        LatencyTable.load(saved, HERE)


@pytest.mark.parametrize("cut", range(0, 700, 23))
def test_wherever_a_table_is_cut_it_is_refused_or_whole(saved, cut):
    whole = saved.read_text()
    saved.write_text(whole[:cut])
    try:
        table = LatencyTable.load(saved, HERE)
    except TableError:
        return
    assert cut >= len(whole) or all(
        row in (ROW, replace(ROW, kernel="float", status="fallback")) for row in table.rows.values()
    )


def test_an_empty_or_missing_file_is_refused(saved, tmp_path):
    saved.write_text("")
    with pytest.raises(TableError, match="lacks the column 'key'"):
        LatencyTable.load(saved, HERE)
    saved.unlink()
    with pytest.raises(TableError, match="mpsearch profile"):
        LatencyTable.load(saved, HERE)


def test_a_binary_file_is_refused(saved):
    saved.write_bytes(b"\xff\xfe\x00\x01" * 9)
    with pytest.raises(TableError, match="not a CSV"):
        LatencyTable.load(saved, HERE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about | {"schema": 99}, "schema 99"),
        (lambda about: {k: v for k, v in about.items() if k != "schema"}, "schema"),
        (lambda about: {k: v for k, v in about.items() if k != "version"}, "version"),
        (lambda about: about | {"device": {}}, "lacks 'architecture'"),
        (lambda about: [about], "not the identity"),
    ],
)
def test_a_malformed_identity_is_refused(saved, change, message):
    path = saved.with_suffix(".json")
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(TableError, match=message):
        LatencyTable.load(saved, HERE)


@pytest.mark.parametrize(
    "change", [{"threads": "two"}, {"device": {**HERE.to_json(), "cores": "two"}}], ids=["threads", "cores"]
)
def test_a_number_that_is_none_in_the_identity_is_refused(saved, change):
    path = saved.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(TableError):
        LatencyTable.load(saved, HERE)


@pytest.mark.parametrize("text", [None, "{", "\x00"])
def test_a_missing_or_broken_identity_is_refused(saved, text):
    path = saved.with_suffix(".json")
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(TableError, match=path.name):
        LatencyTable.load(saved, HERE)


def test_another_device_is_refused_by_both_names(saved):
    with pytest.raises(DeviceMismatchError, match=r"CPU one.*CPU two"):
        LatencyTable.load(saved, THERE)


def test_another_version_or_thread_count_is_refused_and_may_be_an_estimate(saved):
    here = LatencyTable(HERE, "ort-cpu", "9.9.9", 1)
    with pytest.raises(DeviceMismatchError, match=r"ort-cpu 1\.2\.3; the version here is 9\.9\.9"):
        LatencyTable.load(saved, HERE, fits=here)
    assert LatencyTable.load(saved, HERE, fits=here, allow_estimate=True).estimated
    with pytest.raises(DeviceMismatchError, match="1 threads; 2 were asked for"):
        LatencyTable.load(saved, HERE, fits=LatencyTable(HERE, "ort-cpu", "1.2.3", 2))
    assert not LatencyTable.load(saved, HERE, fits=LatencyTable(HERE, "ort-cpu", "1.2.3", 1)).estimated


def test_a_table_of_another_backend_is_never_taken(saved):
    with pytest.raises(TableError, match="backend ort-cpu; openvino-cpu was asked for"):
        LatencyTable.load(
            saved, HERE, fits=LatencyTable(HERE, "openvino-cpu", "1.2.3", 1), allow_estimate=True
        )


def test_another_device_may_be_an_estimate_that_cannot_be_saved(saved, tmp_path):
    table = LatencyTable.load(saved, THERE, allow_estimate=True)
    assert table.estimated and table.get(LAYER, W8A8) == ROW
    with pytest.raises(TableError, match="estimate"):
        table.save(tmp_path)
    assert not LatencyTable.load(saved, HERE, allow_estimate=True).estimated


def test_two_writers_keep_the_rows_of_both(tmp_path):
    first, second = table_of(ROW), table_of(replace(ROW, kernel="float"))
    path = first.save(tmp_path)
    second.save(tmp_path)
    assert {kernel for _, kernel in LatencyTable.load(path, HERE).rows} == {"W8A8", "float"}
    assert len(second.rows) == 2


def _write_rows(folder, writer, count):
    for i in range(count):
        table = LatencyTable(HERE, "ort-cpu", "1.2.3", 1)
        row = replace(ROW, key=f"writer {writer} row {i}")
        run = replace(RUN, model=f"net-{writer}", kernels=(f"k{i}",))
        table.rows[row.key, row.kernel] = row
        table.models[run.key] = run
        table.save(folder)


def test_writers_at_once_lose_nothing(tmp_path):
    """Each saves a table of one row again and again, which is what two `profile` at once do."""
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_rows, args=(tmp_path, w, 12)) for w in range(3)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(30)
    table = LatencyTable.open(tmp_path, HERE, "ort-cpu", "1.2.3", 1)
    assert {row.key for row in table.rows.values()} == {
        f"writer {w} row {i}" for w in range(3) for i in range(12)
    }
    assert {run.key for run in table.models.values()} == {
        (f"net-{w}", 1, (f"k{i}",)) for w in range(3) for i in range(12)
    }


def test_whole_model_runs_come_back(tmp_path):
    table = table_of(ROW)
    table.models = {RUN.key: RUN}
    back = LatencyTable.load(table.save(tmp_path), HERE)
    assert back.models == {RUN.key: RUN}
    assert RUN.latency_us == 1010.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line[:-9], "line 1, is not JSON"),
        (lambda line: line.replace("1000.0", "-1000.0"), "line 1: the times"),
        (lambda line: line.replace("1000.0", "NaN"), "line 1: the times"),
        (lambda line: line.replace('"anchor_us"', '"anchor"'), "line 1, is not a whole-model run"),
        (lambda line: line.replace('"ok"', '"fine"'), "status 'fine'"),
    ],
)
def test_a_malformed_run_is_named_with_its_line(tmp_path, change, message):
    table = table_of(ROW)
    table.models = {RUN.key: RUN}
    path = table.save(tmp_path)
    runs = models_path(path)
    runs.write_text(change(runs.read_text().strip()) + "\n")
    with pytest.raises(TableError, match=message):
        LatencyTable.load(path, HERE)


def test_a_row_of_a_crash_has_no_time_and_is_read(tmp_path):
    crash = replace(ROW, status="crash", median_us=0.0, iqr_us=0.0, repeats=0, executed="SIGSEGV")
    assert LatencyTable.load(table_of(crash).save(tmp_path), HERE).rows[crash.key, "W8A8"] == crash
    assert not crash.usable and ROW.usable and replace(ROW, status="unstable").usable


def test_passes_tell_the_error_of_the_same_measured_twice():
    assert replace(ROW, rounds="9 11").aa_error == pytest.approx(0.2)
    assert ROW.aa_error is None


def test_of_two_rows_of_a_cell_the_later_writer_has_its_own(tmp_path):
    table_of(ROW).save(tmp_path)
    path = table_of(replace(ROW, median_us=99.0)).save(tmp_path)
    assert LatencyTable.load(path, HERE).rows[ROW.key, "W8A8"].median_us == 99.0


def test_a_save_leaves_nothing_beside_the_table(saved, tmp_path):
    assert {p.name for p in tmp_path.iterdir()} == {saved.name, saved.with_suffix(".json").name, ".lock"}


def test_two_generations_under_one_name_are_two_devices(tmp_path):
    """Virtual machines hide the model's name; family, model and stepping tell them apart."""
    found = []
    for number in (1, 17):
        cpuinfo = tmp_path / f"cpuinfo{number}"
        cpuinfo.write_text(
            f"cpu family\t: 25\nmodel\t\t: {number}\nmodel name\t: AMD EPYC\nstepping\t: 1\nflags\t\t: avx2\n"
        )
        found.append(identity(cpuinfo))
    assert found[0].name == "AMD EPYC 25-1-1"
    assert found[0] != found[1]
