"""The table that `run` prints fits a terminal of 100 columns, whatever is in it."""

import csv
import io

import pytest
from saved_study import study_files

from mpsearch.cli._run_print import WIDTH, print_result
from mpsearch.cli._show import Format


def results(label: str, timed: bool) -> dict:
    found = study_files(timed=timed, labelled=True)["results.json"] | {"measure": "KL"}
    best = found["best"]
    found["rows"][2]["label"] = best["label"] = label
    for row in found["rows"]:
        for held in (row["searched"], row.get("reconstructed", {})):
            if held:
                held |= {"size_bytes": 123_456_789, "packed_bytes": 123_456_789, "energy_mj": 123.456}
    return found


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize(
    "label", ["exact optimum of sketch", "uniform W8A8 at unit inputs alone but fixed layers"]
)
def test_it_fits(label: str, timed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    print_result(results(label, timed), Format.table)
    lines = capsys.readouterr().out.splitlines()
    text = " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= WIDTH
    for number in ("123,456,789 B", "88.75%", "90.25%", "0.00567", *(("0.988",) if timed else ())):
        assert number in text  # whole, not cut
    assert "…" not in text


def test_csv_has_every_column(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(results("best", True), Format.csv)
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    assert {"size predicted", "size on disk", "checkpoint", "ms measured", "KL finished"} <= set(header)
    assert len(rows) == 3 and rows[2][0] == "best [chosen]"
