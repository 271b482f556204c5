"""Studies beside each other, and what cannot be compared."""

import csv
import io
import json
from pathlib import Path

import pytest
from saved_study import EVIL, save, study_files

from mpsearch.cli._show import Format
from mpsearch.cli.compare import WIDTH
from mpsearch.cli.compare import compare as command
from mpsearch.errors import StudyError, UserError
from mpsearch.report import compare


def another(path: Path, indices: list[int], **config: object) -> Path:
    """The same study with another choice."""
    contents = study_files(timed=True, labelled=True)
    problem = contents["problem.json"]
    best = contents["best.json"]
    best["indices"] = indices
    layers = zip(problem["layers"], problem["candidates"], indices, strict=True)
    best["assignment"] = {layer["name"]: row[i] for layer, row, i in layers}
    contents["study.json"]["config"] |= config
    return save(path, contents)


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    return [another(tmp_path / "wide", [0, 0, 0]), another(tmp_path / "narrow", [1, 0, 0])]


def test_facts_and_bits(pair: list[Path]) -> None:
    found = compare(pair)
    assert found.names == ("wide", "narrow")
    assert found.bits[EVIL] == ("W8A8", "W4A8") and list(found.differing) == [EVIL]
    first = found.facts[0]
    # float 91 %, chosen 90.25 %; 4321 bytes in float and 1500 on disk
    assert first["points_lost"] == pytest.approx(0.75) and first["size_ratio"] == pytest.approx(4321 / 1500)
    assert first["points_lost_low"] < 0.75 < first["points_lost_high"]


def test_the_table_fits(pair: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = [*pair, *(another(tmp_path / f"study-of-a-long-name-{i}", [1, 1, 0]) for i in range(5))]
    command(many, all_layers=True, output=Format.table)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= WIDTH
    assert text.count("top-1") == 2 and "90.25%" in text and "W4A8" in text  # seven studies: two tables
    command(pair, all_layers=False, output=Format.table)
    text = capsys.readouterr().out
    assert "2 of 3 layers have the same" in text and "head" not in text


def test_as_data(pair: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    command(pair, all_layers=False, output=Format.json)
    held = json.loads(capsys.readouterr().out)
    assert [study["name"] for study in held["studies"]] == ["wide", "narrow"]
    assert held["layers"][0] == {"layer": EVIL, "wide": "W8A8", "narrow": "W4A8"}
    command(pair, all_layers=False, output=Format.csv)
    rows = {name: texts for name, *texts in csv.reader(io.StringIO(capsys.readouterr().out))}
    assert rows["head"] == ["W8A8", "W8A8"] and rows["top-1"] == ["90.25%", "90.25%"]


def test_one_study_is_not_compared(pair: list[Path]) -> None:
    with pytest.raises(UserError, match="two studies or more"):
        compare(pair[:1])
    with pytest.raises(UserError, match="named twice"):
        compare([pair[0], pair[0] / ".." / "wide"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["study.json"]["hashes"].update(weights="0ther"), "different weights"),
        (
            lambda c: c["study.json"]["splits"]["parts"].update(
                evaluation={"source": "more", "images": 900, "content_hash": "0ther"}
            ),
            r"evaluated on different images \(400 of digits and 900 of more\)",
        ),
        (lambda c: c["problem.json"]["layers"][1].update(weight_shape=[12, 8]), "different models .*'head'"),
    ],
)
def test_what_cannot_be_compared_is_refused(pair: list[Path], tmp_path: Path, change, says: str) -> None:
    contents = study_files(timed=True, labelled=True)
    change(contents)
    with pytest.raises(StudyError, match=says):
        compare([pair[0], save(tmp_path / "odd", contents)])


def test_an_unfinished_study_is_named(pair: list[Path], tmp_path: Path) -> None:
    (pair[1] / "best.json").unlink()
    with pytest.raises(StudyError, match=r"narrow has no best\.json"):
        compare(pair)
