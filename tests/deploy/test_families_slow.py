"""Every family goes from random weights to files that keep the budget and compute what was written."""

import json

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from mpsearch.deploy import load_packed, run_onnx
from mpsearch.errors import InfeasibleError
from mpsearch.models import build_model, load_model
from mpsearch.pipeline import RunConfig, run
from mpsearch.pipeline.folder import Study

FAMILIES = (
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "resmlp_12_224",
    "mobilenetv2_100",
    "resnet50",
    "regnetx_002",
)
IMAGES = 28  # 8 for ranges, 8 for the search, 12 to report


def random_weights(name, path):
    """Weights as of a trained net in one respect: no layer is zero, so every unit says something."""
    generator = torch.Generator().manual_seed(0)
    state = load_model(name).module.state_dict()
    for key, value in state.items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif key.endswith("running_mean"):
            value.normal_(0, 0.1, generator=generator)
        elif value.is_floating_point() and value.ndim >= 2 and key.endswith("weight"):
            value.normal_(0, value[0].numel() ** -0.5, generator=generator)
        elif key.endswith("bias"):
            value.normal_(0, 0.05, generator=generator)
    save_file({k: v.contiguous() for k, v in state.items()}, path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_passes_every_step(name, tmp_path):
    random_weights(name, tmp_path / "weights.safetensors")
    pixels = (
        np.random.default_rng(0)
        .integers(0, 256, (IMAGES, 56, 56, 3), dtype=np.uint8)
        .repeat(4, 1)
        .repeat(4, 2)
    )
    np.savez(tmp_path / "images.npz", x=pixels, y=np.arange(IMAGES) % 7)
    config = RunConfig(
        budgets=("5bits",),
        model=name,
        weights=str(tmp_path / "weights.safetensors"),
        data=str(tmp_path / "images.npz"),
        calibration_images=8,
        search_images=8,
        objectives=("output_mse:images=8",),
        trials=4,
        polish=2,
        iterations=0,
        tables=str(tmp_path / "tables"),
    )
    study = Study(tmp_path / "study")
    result = run(config, study)
    best = result["best"]
    artifact, limit = best["artifact"], best["budgets"][0]["limit"]

    packed = tmp_path / "study/artifact/model.safetensors"
    assert (
        packed.stat().st_size
        == artifact["size_bytes"]
        == best["predicted"]["size_bytes"]
        == best["measured"]["size_bytes"]
        <= limit
    )
    for row in result["rows"][1:]:
        assert row["searched"]["size_bytes"] == row["predicted"]["size_bytes"]
    assert artifact["reloaded_bit_for_bit"]
    assert set(best["assignment"].values()) - {"float"}

    inputs = torch.from_numpy(pixels[:4].transpose(0, 3, 1, 2).copy()).float().div(255).sub(0.5).div(0.25)
    source = load_model(name).source
    with torch.no_grad():
        logits = load_packed(packed)(inputs)
        assert torch.equal(logits, load_packed(packed, build_model(source))(inputs))

    path = tmp_path / "study/artifact/model.onnx"
    assert path.stat().st_size == artifact["onnx_bytes"] == best["measured"]["onnx_bytes"]
    onnx.checker.check_model(str(path))
    quantized = sum(text != "float" for text in best["assignment"].values())
    assert (
        next(r for r in result["rows"] if r["label"] == best["label"])["reconstructed"]["integer_units"]
        >= quantized
    )
    cosine = torch.nn.functional.cosine_similarity(run_onnx(path)(inputs), logits)
    figures = {k: artifact[k] for k in ("size_bytes", "onnx_agreement", "top1", "onnx_top1")} | {
        "limit": limit,
        "cosine": cosine.tolist(),
    }
    print(json.dumps({"model": name, "units": quantized, **figures}))
    # weak for the convolutional families: with random weights their logits hardly depend on the image (1 to
    # 6% of the norm), so these two bounds catch a broken graph, not a lossy one; test_onnx_graph.py is what
    # holds the arithmetic
    assert cosine.min() > 0.98
    assert artifact["onnx_agreement"] >= 0.75

    assert len(result["blocks"]) > 3
    measured = json.loads((tmp_path / "study/front.json").read_text())["measured"]
    assert [t["number"] for t in measured] == list(range(len(measured)))
    assert 4 <= len(measured) <= 6


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", FAMILIES)
def test_less_than_two_bits_is_infeasible(name, tmp_path):
    np.savez(
        tmp_path / "images.npz", x=np.random.default_rng(0).integers(0, 256, (6, 224, 224, 3), dtype=np.uint8)
    )
    config = RunConfig(
        budgets=("1.5bits",),
        model=name,
        pretrained=False,
        data=str(tmp_path / "images.npz"),
        calibration_images=2,
        search_images=2,
    )
    with pytest.raises(InfeasibleError) as caught:
        run(config, Study(tmp_path / "study"))
    assert caught.value.least["size_bytes"] > 0
