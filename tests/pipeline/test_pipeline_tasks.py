"""Models that are no image classifiers go through the whole pipeline, and results carry the figures of their
task.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mpsearch
from mpsearch.errors import OptionError
from mpsearch.evaluate import Embedding, predict
from mpsearch.models import SpanHead
from mpsearch.pipeline import RunConfig, search
from mpsearch.report import write_report
from mpsearch.testing.text import tiny_text, tiny_tokens

SETTINGS = {
    "calibration_images": 24,
    "search_images": 8,
    "trials": 4,
    "iterations": 10,
    "objectives": ("output_mse:images=8", "weight_mse"),
    "bits": (3, 8),
    "target": "packed",
}


def test_an_encoder_is_searched_by_its_embeddings(tmp_path):
    model, tokens = tiny_text(), tiny_tokens(60)
    result = search(model, tokens, budgets=["5bits"], study=tmp_path / "study", task="embedding", **SETTINGS)
    best = result["best"]
    assert (
        best["measured"]["size_bytes"]
        == best["predicted"]["size_bytes"]
        == Path(best["artifact"]["packed"]).stat().st_size
    )
    floats = result["rows"][0]["searched"]["metrics"]
    assert floats["scores"]["cosine"] == pytest.approx(1) and floats["top1"] is None
    assert 0.5 < best["metrics"]["scores"]["cosine"] < 1 and best["metrics"]["kl"] == pytest.approx(
        1 - best["metrics"]["scores"]["cosine"]
    )
    loaded = mpsearch.load(best["artifact"]["packed"], model=model)
    assert Embedding().compare(predict(loaded, tokens), predict(model, tokens)).scores["cosine"] > 0.5
    page = write_report(tmp_path / "study").read_text()
    assert "1 - cosine to float" in page and "spearman" in page and "KL to float" not in page
    assert json.loads((tmp_path / "study" / "results.json").read_text())["measure"] == "1 - cosine"


def test_an_encoder_runs_in_onnx_runtime_in_a_process_of_its_own(tmp_path):
    settings = {**SETTINGS, "target": "ort-cpu", "iterations": 0, "tables": str(tmp_path / "tables")}
    result = search(
        tiny_text(),
        tiny_tokens(60),
        budgets=["5bits"],
        study=tmp_path / "study",
        task="embedding",
        **settings,
    )
    artifact = result["best"]["artifact"]
    assert (
        artifact["onnx_scores"]["cosine"] > 0.98
        and artifact["onnx_bytes"] == Path(artifact["onnx"]).stat().st_size
    )
    assert result["best"]["measured"]["latency_us"] > 0


def test_a_reader_is_searched_by_its_spans(tmp_path):
    model, tokens = tiny_text(SpanHead(16), "none"), tiny_tokens(60, fields=3)
    spans = torch.tensor([[2, 3]]).expand(60, 2).contiguous()
    settings = {**SETTINGS, "objectives": ("kl:images=4",)}
    result = search(
        model,
        replace(tokens, labels=spans),
        budgets=["5bits"],
        study=tmp_path / "study",
        task="span",
        **settings,
    )
    assert set(result["best"]["metrics"]["scores"]) == {"exact", "f1"}
    assert result["best"]["metrics"]["kl"] > 0


def test_what_draws_classes_is_refused_for_other_tasks(tmp_path):
    with pytest.raises(OptionError, match=r"brecq.*has none"):
        RunConfig(("5bits",), task="embedding", method="brecq:loss=fisher")
    with pytest.raises(OptionError, match="'fisher' takes the outputs for logits of classes"):
        search(
            tiny_text(),
            tiny_tokens(60),
            budgets=["5bits"],
            study=tmp_path / "study",
            task="embedding",
            **{**SETTINGS, "objectives": ("fisher",)},
        )


def test_settings_from_before_tasks_had_names_are_read():
    data = RunConfig(("5bits",)).to_json()
    assert data.pop("task") == "auto"
    assert RunConfig.from_json(data) == RunConfig(("5bits",), task="classification")
