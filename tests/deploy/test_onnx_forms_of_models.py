"""Forms of models that the exporter rewrites or that one unit is called in several times: the artifact is
still the fake-quantised model.
"""

import pytest
from odd_nets import MAKERS, Pyramid, job_of, relative

from mpsearch.deploy.targets import TARGETS
from mpsearch.reconstruct import calibrate

TARGETS_OF = ("onnx", "openvino", "onnx-tensorrt")


@pytest.mark.parametrize("text", TARGETS_OF)
@pytest.mark.parametrize("name", MAKERS)
def test_every_unit_is_found_and_computes_what_it_stands_for(name, text, tmp_path):
    if text == "openvino":
        pytest.importorskip("openvino")
    job, images = job_of(name, MAKERS[name])
    assert relative(TARGETS.create(text), job, images, tmp_path) < 0.02


@pytest.mark.parametrize("name", [name for name in MAKERS if "inputs" not in name])
def test_every_unit_runs_in_integers(name, tmp_path):
    job, _ = job_of(name, MAKERS[name])
    target = TARGETS.create("onnx")
    target.write(job, tmp_path)
    ran = target.executed(tmp_path, 1)
    assert sum(op in ("QLinearConv", "MatMulIntegerToFloat") for op in ran) >= len(job.states)
    assert not {"Conv", "FusedConv", "MatMul", "Gemm"} & set(ran)


def test_each_call_of_a_unit_has_an_output_grid_of_its_own():
    job, images = job_of("a head on three levels", Pyramid)
    samples = job.calibration.call_outputs
    assert {unit: len(given) for unit, given in samples.items()} == {"tower": 3, "head": 3}
    for unit, given in samples.items():
        ends = [float(sample.max()) for sample in given]
        assert ends[2] > 5 * ends[1] > 5 * ends[0]
        whole = job.calibration.outputs[unit]
        assert max(ends) == float(whole.max()) and min(float(sample.min()) for sample in given) == float(
            whole.min()
        )
    again = calibrate(job.module, list(job.states), images.split(10))
    assert [float(s.max()) for s in again.call_outputs["tower"]] == pytest.approx(
        [float(s.max()) for s in samples["tower"]], rel=1e-4
    )
