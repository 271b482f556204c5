"""Figures as files, drawn by an installed browser; clear words where there is none or it fails."""

from pathlib import Path

import pytest
from browser import missing
from saved_study import save, study_files

from mpsearch.errors import MpsearchError, UserError
from mpsearch.report import pictures, write_pictures


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return save(tmp_path / "study", study_files(timed=True, labelled=True))


def test_without_a_browser(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"nowhere is no program.*--browser FILE"):
        write_pictures(study, tmp_path / "figures", tmp_path / "nowhere")
    monkeypatch.setattr(pictures, "BROWSERS", ("no-such-browser",))
    with pytest.raises(UserError, match=r"neither is on the path"):
        write_pictures(study, tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize("body", ["exit 3", "echo '<pre id=\"drawn\"></pre>'", "echo broken >&2; exit 1"])
def test_a_browser_that_draws_nothing(study: Path, tmp_path: Path, body: str) -> None:
    program = tmp_path / "browser"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    with pytest.raises(MpsearchError, match=r"browser drew no figures \((exit code [03]|broken)\)"):
        write_pictures(study, tmp_path / "figures", program)


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_svg_and_png(study: Path, tmp_path: Path) -> None:
    files = write_pictures(study, tmp_path / "figures")
    names = ["front", "bits", "sensitivity", "time", "latency", "history"]
    assert [path.name for path in files] == [f"{name}.{form}" for name in names for form in ("svg", "png")]
    for path in files:
        if path.suffix == ".svg":
            assert path.read_text().startswith("<svg")
        else:
            assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
    assert "best so far" in files[-2].read_text()
