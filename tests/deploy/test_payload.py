"""Tensors of any type are stored and read back, and a checkpoint with one wrong byte is not opened."""

import json
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

from mpsearch.deploy import PackedLayout, load_packed, save_packed
from mpsearch.errors import CheckpointError, ModelError
from mpsearch.models import ModelSource, analyze
from mpsearch.models.weights import check_finite, weights_hash
from mpsearch.problem import Assignment, Candidate
from mpsearch.reconstruct import calibrate

DTYPES = sorted(
    {d for d in vars(torch).values() if isinstance(d, torch.dtype) and not str(d).startswith("torch.q")},
    key=str,
)


class Net(nn.Module):
    """A linear layer behind a buffer that its forward does not read."""

    def __init__(self, buffer):
        super().__init__()
        self.fc = nn.Linear(12, 5)
        self.register_buffer("table", buffer)

    def forward(self, x):
        return self.fc(x.flatten(1))


def _buffer(dtype, *shape):
    """Bytes of all kinds, read as a type."""
    count = dtype.itemsize * torch.Size(shape).numel()
    data = (
        torch.arange(count, dtype=torch.int64)
        .mul(37)
        .remainder(2 if dtype is torch.bool else 120)
        .to(torch.uint8)
    )
    return data.view(dtype).view(shape)


def _written(path, buffer):
    module = Net(buffer).eval()
    images = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    layout = PackedLayout.of(module, ["fc"], ModelSource("module", "net"), (), {})
    assignment = Assignment((("fc", Candidate(4, 8)),))
    size = save_packed(path, layout, module, calibrate(module, ["fc"], [images]).states(assignment))
    assert size == path.stat().st_size == layout.size_bytes(assignment)
    return module, images


def _bytes(value):
    return value.detach().contiguous().resolve_conj().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 4), (), (0,)], ids=str)
def test_buffers_of_every_type_are_read_back_to_the_bit(tmp_path, dtype, shape):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's word that half-precision complex numbers are new
        module, images = _written(tmp_path / "a.safetensors", _buffer(dtype, *shape))
        fresh = Net(
            torch.zeros(dtype.itemsize * module.table.numel(), dtype=torch.uint8).view(dtype).view(shape)
        ).eval()
        loaded = load_packed(tmp_path / "a.safetensors", fresh)
        assert loaded.table.dtype == dtype and loaded.table.shape == shape
        assert torch.equal(_bytes(loaded.table), _bytes(module.table))
        assert loaded(images).shape == (8, 5)
        check_finite(module)
        assert weights_hash(module) == weights_hash(module)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_conjugated_and_transposed_views_keep_their_values(tmp_path, dtype):
    table = torch.randn(3, 4, dtype=dtype).t().conj()
    _written(tmp_path / "a.safetensors", table)
    for fresh in (torch.zeros(4, 3, dtype=dtype), torch.zeros(3, 4, dtype=dtype).t()):
        assert torch.equal(load_packed(tmp_path / "a.safetensors", Net(fresh).eval()).table, table)


def test_a_rotary_embedding_of_complex_numbers_is_analysed_and_stored(tmp_path):
    class Rotary(Net):
        def forward(self, x):
            pairs = torch.view_as_complex(x.flatten(1).unflatten(1, (6, 2)).contiguous()) * self.table
            return self.fc(torch.view_as_real(pairs).flatten(1))

    torch.manual_seed(0)
    module = Rotary(torch.polar(torch.ones(6), torch.arange(6.0))).eval()
    images = torch.randn(8, 3, 2, 2)
    units = [layer.name for layer in analyze(module, images[:1]).layers]
    layout = PackedLayout.of(module, units, ModelSource("module", "net"), (), {})
    save_packed(
        tmp_path / "a.safetensors",
        layout,
        module,
        calibrate(module, units, [images]).states(Assignment((("fc", Candidate(8, 8)),))),
    )
    loaded = load_packed(tmp_path / "a.safetensors", Rotary(torch.zeros(6, dtype=torch.complex64)).eval())
    assert torch.equal(loaded.table, module.table)
    torch.testing.assert_close(loaded(images), module(images), rtol=0, atol=0.05)


def test_what_is_no_plain_tensor_is_refused_by_name():
    class Extra(Net):
        def get_extra_state(self):
            return {"step": 3}

        def set_extra_state(self, state):
            pass

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8)
    given = [
        (Net(torch.eye(3).to_sparse()), "'table' of the model is sparse"),
        (Net(quantized), "'table' of the model is quantised"),
    ]
    for module, pattern in [*given, (Extra(torch.zeros(2)), "'_extra_state' as a dict")]:
        with pytest.raises(ModelError, match=pattern):
            PackedLayout.of(module, ["fc"], ModelSource("module", "net"), (), {})


def test_no_wrong_byte_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    module, _ = _written(path, torch.arange(24.0).view(4, 6))
    held = path.read_bytes()
    load_packed(path, module)
    end = 8 + int.from_bytes(held[:8], "little")
    places = [*range(8, end, 11), *range(end, len(held))]
    for place in places:
        for bit in (0, 5):
            changed = bytearray(held)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(CheckpointError, match=str(path)):
                load_packed(path, module)


def test_a_file_of_an_earlier_version_has_no_digest_and_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    module, images = _written(path, torch.zeros(3))
    wanted = load_packed(path, module)(images)
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["mpsearch"])
    assert len(about.pop("sha256")) == 64
    path.write_bytes(save(load_file(path), {"mpsearch": json.dumps(about)}))
    assert torch.equal(load_packed(path, module)(images), wanted)
