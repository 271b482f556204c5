"""`--batch N`: latencies are of a call of N images, through tables, whole models, new processes and results."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mpsearch.cli._run_print import print_result
from mpsearch.cli._show import Format
from mpsearch.deploy.artifact import open_artifact
from mpsearch.deploy.onnx_run import load_onnx
from mpsearch.errors import OptionError, TableError
from mpsearch.hardware import LatencyTable, fresh_process, identity
from mpsearch.hardware.backends import BACKENDS
from mpsearch.hardware.profile import latency_costs, missing_cells
from mpsearch.hardware.rows import ModelRun, Row, row_key
from mpsearch.pipeline import search
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.steps import engines, latency_model
from mpsearch.problem import Candidate, Layer
from mpsearch.pytrees import Batch, repeated
from mpsearch.report import write_report

LAYER = Layer("fc", "linear", (4, 8), ((1, 8),), (1, 4), 32, "b")
KERNELS = (Candidate(8, 8), Candidate.parse("float"))


def row(kernel, batch, us):
    return Row(row_key(LAYER, batch), kernel, "ok", us, 0.1, 9, 32, "X", 0.0, "2026-01-01")


def table_of(batch, us):
    table = LatencyTable(identity(), "ort-cpu", BACKENDS.create("ort-cpu").version, 1)
    for kernel in ("W8A8", "float"):
        found = row(kernel, batch, us)
        table.rows[found.key, kernel] = found
    return table


def test_rows_of_another_batch_are_no_rows_of_this_one():
    backend, table = BACKENDS.create("ort-cpu"), table_of(1, 5.0)
    asked = [LAYER], [KERNELS], backend, table
    assert not missing_cells(*asked) and len(missing_cells(*asked, 4)) == 2
    assert latency_costs(*asked).rows == ((5.0, 5.0),)
    assert latency_costs(*asked, batch=4).unusable[0][2] == "not measured"
    table.rows |= table_of(4, 20.0).rows
    assert latency_costs(*asked, batch=4).rows == ((20.0, 20.0),) and latency_costs(*asked).rows == (
        (5.0, 5.0),
    )


def test_whole_models_of_another_batch_are_measured_anew(monkeypatch, settings, tmp_path):
    measured = []

    def measure(key, asked, build, bench, *, batch):
        measured.append((batch, len(asked)))
        for kernels in asked:
            yield ModelRun(key, batch, kernels, (10.0 * batch,) * 2, 0.1, 1.0, "ok", "cpu", "2026-01-01")

    monkeypatch.setattr(latency_model, "measure_models", measure)
    table, units = table_of(1, 5.0), [SimpleNamespace(rows_us={"W8A8": 5.0, "float": 5.0})]
    problem = SimpleNamespace(layers=[LAYER], ties=[(0,)])
    plan = latency_model.Architecture("net", (), None)

    def runs(batch):
        config = settings(target="ort-cpu", batch=batch)
        return latency_model.whole_runs(problem, units, table, tmp_path, plan, config, Silent())

    assert [r.latency_us for r in runs(1)] == [10.0, 10.0] and measured == [(1, 2)]
    assert [r.latency_us for r in runs(3)] == [30.0, 30.0] and measured == [(1, 2), (3, 2)]
    assert [r.latency_us for r in runs(1)] == [10.0, 10.0] and len(measured) == 2  # both are kept
    held = LatencyTable.load(tmp_path / table.file_name, identity())
    assert {r.batch for r in held.models.values()} == {1, 3}


def test_a_new_process_times_a_call_of_so_many(tmp_path):
    calls = []

    def double(x):
        calls.append(len(x))
        return 2 * x

    given = tmp_path / "inputs.npz"
    np.savez(given, np.arange(6.0, dtype=np.float32).reshape(3, 2))
    job = {"inputs": str(given), "threads": 1, "seconds": 0.001, "batch": 5}
    outputs, told = fresh_process._time(fresh_process.Loaded(double), job, 0)
    assert np.array_equal(outputs, 2 * np.arange(6.0).reshape(3, 2)) and told["timing"]["median_us"] > 0
    assert calls[:3] == [1, 1, 1] and set(calls[3:]) == {5}
    pair = repeated(Batch([torch.arange(3), torch.arange(6).view(3, 2)]), 4)
    assert pair.leaves[0].tolist() == [0, 1, 2, 0] and pair.leaves[1].shape == (4, 2)


def test_settings_that_do_not_go_with_it(settings, monkeypatch, place):
    with pytest.raises(OptionError, match="batch is 0; it must be 1 or more"):
        settings(batch=0)
    with pytest.raises(OptionError, match="--batch 4 is for budgets on latency and energy"):
        settings(batch=4, target="ort-cpu", budgets=("512MiB peak",))
    table = LatencyTable(identity(), "tensorrt", "11", 1, batch=8)
    monkeypatch.setattr(engines.LatencyTable, "load", lambda *_, **__: table)
    config = settings(target="tensorrt", table=str(place / "t.csv"), batch=8)
    assert engines.given_table(config) is table
    with pytest.raises(
        TableError, match=r"measured with 8 images in a call, and --batch 4.*Leave --batch out"
    ):
        engines.given_table(settings(target="tensorrt", table=str(place / "t.csv"), batch=4))


def test_a_run_of_calls_of_two_images(tmp_path, capsys):
    tables, study = tmp_path / "tables", Study(tmp_path / "study")
    draw = torch.Generator().manual_seed(0)
    data = [(torch.randn(8, generator=draw), i % 4) for i in range(40)]
    settings = {"trials": 0, "polish": 0, "bits": (4, 8), "target": "ort-cpu", "tables": str(tables)}
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 4))
    result = search(net, data, budgets=["6bits"], study=study.path, batch=2, effort="quick", **settings)
    (csv,) = tables.glob("*.csv")
    table = LatencyTable.load(csv, identity())
    assert {key.split()[1] for key, _ in table.rows} == {"2x8"}
    assert {r.batch for r in table.models.values()} == {2}
    about = json.loads((study.path / "study.json").read_text())["hardware"]
    assert about["batch"] == result["batch"] == 2
    artifact = open_artifact(study.artifact)
    assert artifact.manifest["batch"] == 2 and result["best"]["measured"]["latency_us"] > 0
    call, _ = load_onnx(study.artifact / "model.onnx", torch.zeros(1, 8), batch=2)
    assert call()[0].shape == (2, 4)
    print_result(result, Format.csv)
    assert "ms of 2 images predicted,ms of 2 images measured" in capsys.readouterr().out
    page = write_report(study.path).read_text()
    assert "latency of 2 images" in page and "2 image(s) in a call" in page
