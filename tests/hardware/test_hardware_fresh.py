"""A file that is run in a process of its own."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from torch import nn

from mpsearch.deploy.onnx_float import export_float
from mpsearch.hardware.fresh import run_fresh


def test_tokens_stay_whole_numbers(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(48, 3)).eval()
    tokens = torch.randint(50, (4, 6))
    path = tmp_path / "text.onnx"
    onnx.save(export_float(module, tokens), path)
    fresh = run_fresh(path, tokens.numpy(), seconds=0.02)
    with torch.no_grad():
        np.testing.assert_allclose(fresh.outputs, module(tokens).numpy(), rtol=1e-4, atol=1e-5)
    assert fresh.timing.median_us > 0 and fresh.bytes_on_disk == path.stat().st_size


def test_numbers_of_twice_the_width_become_float32(tmp_path):
    torch.manual_seed(0)
    module, inputs = nn.Linear(6, 3).eval(), torch.randn(4, 6)
    onnx.save(export_float(module, inputs), tmp_path / "m.onnx")
    fresh = run_fresh(tmp_path / "m.onnx", inputs.double().numpy(), seconds=0.02)
    with torch.no_grad():
        np.testing.assert_allclose(fresh.outputs, module(inputs).numpy(), rtol=1e-4, atol=1e-5)
