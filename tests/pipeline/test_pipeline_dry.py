"""The target's exporter is tried on one sample before anything costly."""

from __future__ import annotations

import pytest
import torch

from mpsearch.deploy.targets.onnx import Onnx
from mpsearch.errors import MpsearchError, UserError
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.steps.costs import limited
from mpsearch.pipeline.steps.dry import try_export, widest
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.problem import FLOAT, Candidate


def test_the_widest_file_is_written_and_run_once_and_a_fault_names_the_way_out(
    settings, tmp_path, monkeypatch
):
    config, study = settings(target="onnx", bits=(3, 6)), Study(tmp_path / "study")
    subject = load_subject(config, Silent())
    problem, _ = limited(subject, config)
    written, write = [], Onnx.write

    def kept(target, job, folder):
        written.append({str(state.candidate) for state in job.states.values()})
        return write(target, job, folder)

    monkeypatch.setattr(Onnx, "write", kept)
    try_export(subject, problem, config, study, Silent())
    assert written == [{"W6A8"}]
    assert not study.path.exists()  # a run that is refused later leaves nothing behind
    monkeypatch.setattr(Onnx, "reload", lambda *_: lambda inputs: torch.zeros(1, 7))
    with pytest.raises(UserError, match=r"gives \(1, 7\) for one sample, where the model gives \(1, 4\)"):
        try_export(subject, problem, config, study, Silent())
    monkeypatch.setattr(Onnx, "write", lambda *_: [].pop())
    with pytest.raises(MpsearchError, match=r"--target onnx cannot write this model: pop.*--target packed"):
        try_export(subject, problem, config, study, Silent())
    (study.path / "steps").mkdir(parents=True)
    (study.path / "study.json").write_text("{}")
    try_export(subject, problem, config, study, Silent())  # a study that goes on has passed
    packed = settings(target="packed")
    try_export(load_subject(packed, Silent()), problem, packed, Study(tmp_path / "other"), Silent())


def test_the_widest_candidate():
    row = tuple(map(Candidate.parse, ("W2A8", "W8A4", "float", "W8A8", "W3A8")))
    assert str(widest(row)) == "W8A8" and widest((FLOAT,)) is FLOAT
