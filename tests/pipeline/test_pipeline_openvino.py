"""A run for OpenVINO: its own table, its own file, measured as written and in a process of its own; the
budget is kept.
"""

import json
from pathlib import Path

import pytest

from mpsearch.hardware import identity
from mpsearch.pipeline import run
from mpsearch.pipeline.folder import Study
from mpsearch.report import write_report

pytest.importorskip("openvino")


@pytest.mark.timeout(900)  # a machine whose clock moves is asked again and again
def test_a_run_for_openvino_keeps_a_latency_budget_in_its_own_file(settings, place):
    # a busy machine may be too unsteady to predict; what is chosen is measured whole all the same
    config, study = (
        settings(target="openvino-cpu", budgets=("80%", "20ms"), trials=4, iterations=0, allow_estimate=True),
        Study(place / "study-openvino"),
    )
    result = run(config, study)
    best, artifact = result["best"], result["best"]["artifact"]
    assert best["measured"]["latency_us"] <= 20e3 and best["predicted"]["latency_us"] > 0
    xml = Path(artifact["openvino"])
    assert xml.suffix == ".xml" and artifact["openvino_bytes"] == best["measured"]["openvino_bytes"] == sum(
        xml.with_suffix(s).stat().st_size for s in (".xml", ".bin")
    )
    assert (
        artifact["openvino_agreement"] >= 0.9
        and artifact["openvino_fallbacks"] == {}
        and artifact["openvino_fresh_latency_us"] > 0
    )
    about = json.loads((study.path / "study.json").read_text())["hardware"]
    assert about["backend"] == "openvino-cpu" and "openvino-cpu" in about["table"]
    if identity().saturates:
        refused = [u for u in about["unusable"] if u[1] == "W8A8"]
        assert refused and all("overflow 16 bits" in why for _, _, why in refused)
        assert not any(c == "W8A8" for c in best["assignment"].values())
    assert "openvino.Core().compile_model(" in write_report(study.path).read_text()
