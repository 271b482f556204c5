"""`check_tables` tells whether a table fits, is another's, or is damaged; the command says so with an exit
code.
"""

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from mpsearch.cli import app
from mpsearch.errors import TableError
from mpsearch.hardware import BACKENDS, LatencyTable, Row, check_tables, identity
from mpsearch.hardware.gpu import probe
from mpsearch.hardware.gpu.probe import Gpu

BACKEND = BACKENDS.create("ort-cpu")
ROW = Row(
    "linear 1x8 w4x8 bias",
    "W8A8",
    "ok",
    12.5,
    0.25,
    21,
    48,
    "MatMulIntegerToFloat",
    0.003,
    "2026-01-02T03:04:05+00:00",
    rounds="12 13",
)


def save(folder, device=None, version=BACKEND.version, backend="ort-cpu", **changes):
    row = replace(ROW, **changes)
    return LatencyTable(device or identity(), backend, version, 1, {(row.key, row.kernel): row}).save(folder)


def test_a_table_of_this_device_and_version_fits(tmp_path):
    (found,) = check_tables(save(tmp_path), identity())
    assert (found.verdict, found.reasons, found.rows, found.aa_error) == (
        "fits",
        (),
        {"ok": 1},
        pytest.approx(0.08),
    )


def test_a_table_of_a_gpu_is_compared_with_the_gpu(tmp_path, monkeypatch):
    h200 = Gpu("NVIDIA H200", (9, 0), 132, 141 * 2**30, 50 * 2**20, 227 * 2**10)
    path = save(tmp_path, h200.identity, BACKENDS.create("triton-cuda").version, "triton-cuda", clock="gpu")
    monkeypatch.setattr(probe, "gpu", lambda: None)
    assert "measured on NVIDIA H200" in " ".join(check_tables(path, identity())[0].reasons)
    monkeypatch.setattr(probe, "gpu", lambda: h200)
    assert check_tables(path, identity())[0].verdict == "fits"


def test_every_table_of_a_folder_is_checked(tmp_path):
    save(tmp_path)
    save(tmp_path, version="0.0.1")
    save(tmp_path, device=replace(identity(), name="Another"))
    save(tmp_path, version="1", backend="nothing-cpu")
    verdicts = {
        c.path.name.split("__", 1)[0][:7] + c.path.name.split("__", 1)[1]: (c.verdict, " ".join(c.reasons))
        for c in check_tables(tmp_path, identity())
    }
    reasons = [reason for verdict, reason in verdicts.values() if verdict == "estimate"]
    assert len(verdicts) == 4 and len(reasons) == 3
    assert (
        any("0.0.1; the version here" in r for r in reasons)
        and any("Another" in r for r in reasons)
        and any("nothing-cpu" in r for r in reasons)
    )


def test_a_damaged_table_is_told_with_its_line(tmp_path):
    path = save(tmp_path)
    path.write_text(path.read_text().replace("12.5", "-12.5"))
    (found,) = check_tables(path, identity())
    assert found.verdict == "damaged" and "line 2" in found.reasons[0] and "-12.5" in found.reasons[0]


def test_no_table_is_an_error(tmp_path):
    with pytest.raises(TableError, match="no latency table"):
        check_tables(tmp_path, identity())


def test_the_command_prints_a_line_for_each_table_and_fails_where_one_does_not_fit(tmp_path):
    save(tmp_path)
    ran = CliRunner().invoke(app, ["profile", "--check", str(tmp_path), "--format", "csv"])
    assert ran.exit_code == 0 and ",fits," in ran.stdout
    save(tmp_path, version="0.0.1")
    ran = CliRunner().invoke(app, ["profile", "--check", str(tmp_path), "--format", "csv"])
    assert "0.0.1" in str(ran.exception) and ran.exception.exit_code == 2 and ",estimate," in ran.stdout


def test_the_command_asks_for_shapes_or_a_table():
    ran = CliRunner().invoke(app, ["profile"])
    assert "--check" in str(ran.exception)
