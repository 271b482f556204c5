"""How tensors lie in a checkpoint: types that the format has no name for as plain bytes, and a digest over
the whole file.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import torch
from torch import Tensor

from mpsearch.errors import CheckpointError, ModelError

OPEN_SEAL = "0" * 64
"""What stands in the metadata while the digest is taken."""
DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
}
"""Types that lie in the file under their own name; every other one lies there as its bytes."""
_SEAL_KEY = b'\\"sha256\\":\\"'  # as it stands in the header: JSON inside a JSON string
_BLOCK = 2**20


def stored_form(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[torch.dtype, tuple[int, ...]]:
    """Type and shape of a tensor in the file."""
    return (dtype, shape) if dtype in DTYPES else (torch.uint8, (nbytes(dtype, shape),))


def nbytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor."""
    return dtype.itemsize * math.prod(shape)


def to_stored(name: str, value: Tensor) -> Tensor:
    """A copy of a tensor in the form that the file has.

    Raises: ModelError: It is sparse or quantised, so that its bytes are not all of it.
    """
    require_dense(name, value)
    plain = value.detach().cpu().contiguous().resolve_conj().resolve_neg()
    return plain.clone() if value.dtype in DTYPES else plain.reshape(-1).view(torch.uint8).clone()


def put_stored(into: Tensor, held: Tensor) -> None:
    """Write what the file holds into a tensor of the model, in place."""
    if into.dtype in DTYPES:
        into.copy_(held)
    elif into.is_contiguous():  # byte by byte, because torch has no copy of some types
        into.view(-1).view(torch.uint8).copy_(held)
    else:
        into.copy_(held.view(into.dtype).view(into.shape))


def require_dense(name: str, value: object) -> None:
    """Raise ModelError where what a model keeps under a name is not a plain tensor."""
    if not isinstance(value, Tensor):
        raise ModelError(
            f"The model keeps {name!r} as a {type(value).__name__}, which is no tensor. A checkpoint "
            "holds tensors alone; "
            "make it a buffer, or take get_extra_state away."
        )
    if value.layout is not torch.strided or value.is_quantized:
        what = "quantised" if value.is_quantized else "sparse"
        raise ModelError(
            f"The tensor {name!r} of the model is {what}. A checkpoint holds dense tensors; give the "
            "float model."
        )


def seal(data: bytes) -> bytes:
    """The file with its SHA-256 in the place of `OPEN_SEAL`."""
    end = _header_end(data[:8])
    opened = _SEAL_KEY + OPEN_SEAL.encode()
    sealed = data[:end].replace(opened, _SEAL_KEY + hashlib.sha256(data).hexdigest().encode(), 1)
    return sealed + data[end:]


def check_seal(path: Path, digest: object) -> None:
    """Compare a file with the digest in its metadata.

    Args:
        path: A safetensors file whose header was read.
        digest: `sha256` of its metadata; None in files of earlier versions, which have none.
    Raises: CheckpointError: A byte is not the one that was written.
    """
    if digest is None:
        return
    with path.open("rb") as file:
        first = file.read(8)
        header = first + file.read(_header_end(first) - 8)
        held = _SEAL_KEY + str(digest).encode()
        found = hashlib.sha256(header.replace(held, _SEAL_KEY + OPEN_SEAL.encode(), 1))
        while block := file.read(_BLOCK):
            found.update(block)
    if found.hexdigest() != digest:
        raise CheckpointError(
            f"{path} is damaged: its bytes are not those that were written (SHA-256 "
            f"{found.hexdigest()[:12]}..., not "
            f"{str(digest)[:12]}...). Copy it again, or write it again with mpsearch."
        )


def _header_end(first: bytes) -> int:
    return 8 + int.from_bytes(first, "little")
