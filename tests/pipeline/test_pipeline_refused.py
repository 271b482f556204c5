"""Combinations that cannot work are refused by the command line before anything is computed, with the option
to change.
"""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mpsearch.cli._app import app
from mpsearch.errors import MpsearchError
from mpsearch.pipeline import flow
from mpsearch.pipeline.jobs import finetune as job

WRONG = {
    "a transformer's preset on a convolutional net": ("run --budget 5bits --preset mptq-vit", "--smooth"),
    "the same without smoothing": (
        "run --budget 5bits --preset mptq-vit --smooth none --quantize matmul",
        "--quantize matmul",
    ),
    "everything on a target that cannot": (
        "run --budget 5bits --quantize full --target ort-cpu",
        "--target packed",
    ),
    "the preset on such a target": (
        "run --budget 5bits --preset mptq-vit --target openvino-cpu",
        "--target packed",
    ),
    "uneven grids on such a target": (
        "run --budget 5bits --input-observer opt_m --target ort-cpu",
        "--target packed",
    ),
    "logarithms of what stays float": (
        "run --budget 5bits --softmax log2 --target packed",
        "--quantize matmul",
    ),
    "a latency that nothing measures": (
        "run --budget 3ms --preset mptq-vit --smooth none",
        "--target ort-cpu",
    ),
    "classes that the task has not": (
        "run --budget 5bits --preset brecq --task outputs --target packed",
        "qdrop",
    ),
    "an objective of such": (
        "run --budget 5bits --objective fisher --task outputs --target packed",
        "--objective sketch",
    ),
    "a budget beside an assignment": ("run --budget 5bits --assign coding_length", "--budget 5bits"),
    "a preset of another command": ("run --budget 5bits --preset q-mlp", "mpsearch finetune"),
    "fine-tuning by a preset of run": ("finetune --bits 4 --preset qdrop", "mpsearch run"),
    "fine-tuning without classes": ("finetune --bits 4 --preset q-mlp --task outputs", "--task"),
    "fine-tuning for a target that cannot": (
        "finetune --bits 4 --quantize full --target ort-cpu",
        "--target packed",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_it_is_refused_with_the_option_to_change(place, tmp_path, monkeypatch, name):
    def computed(*_, **__):
        raise AssertionError("Something was computed.")

    monkeypatch.chdir(tmp_path)
    for module in (flow, job):
        monkeypatch.setattr(module, "calibrate_subject", computed)
    words, option = WRONG[name]
    data = f"--data {place / 'images.npz'} --evaluation-images 24"
    result = CliRunner().invoke(app, f"{words} --model {place / 'nets.py'}:make {data}".split())
    assert isinstance(result.exception, MpsearchError), result.exception
    assert option in result.exception.as_flags()
    assert result.exception.exit_code == 2
    assert not Path("studies").exists()
