"""OpenVINO's model files (IR: XML and, beside it, a binary of constants) as mpsearch writes them: sealed by a
digest, with what was asked of every unit.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpsearch.errors import CheckpointError
from mpsearch.hardware.openvino_nodes import RanNode, openvino, ran_nodes
from mpsearch.hardware.ports import Ports, openvino_ports

PREFIX = "unit:"
"""Prefix of the names of the nodes that compute a unit."""
_KEY = "mpsearch"
_OPEN_SEAL = "0" * 64
_AGAIN = "Write it again with mpsearch."


@dataclass(frozen=True)
class Ir:
    """A model file that was read and is whole.

    Args:
        model: openvino.Model.
        precision: What its float layers compute in, `f32` or `bf16`.
        asked: Unit -> arithmetic it was written for, as `RanNode.arithmetic` names it.
        ports: What it reads and gives.
    """

    model: Any
    precision: str
    asked: Mapping[str, str]
    ports: Ports


def write_ir(path: Path, model: Any, precision: str, asked: Mapping[str, str]) -> int:
    """Write `path` (.xml) and the .bin beside it. Both are whole before either takes its name; the bytes of
    both.

    Should the process die between the two renames, the seal does not fit, and reading says so.
    """
    about = json.dumps(
        {"seal": _OPEN_SEAL, "precision": precision, "asked": dict(asked)}, separators=(",", ":")
    )
    model.set_rt_info(
        about.encode().hex(), _KEY
    )  # hexadecimal: quotes and angles would be escaped, and the seal could not be set
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        xml = folder / "model.xml"
        openvino().save_model(model, str(xml), compress_to_fp16=False)
        binary = xml.with_suffix(".bin")
        text = xml.read_bytes()
        sealed = text.replace(_OPEN_SEAL.encode().hex().encode(), _seal(text, binary).encode().hex().encode())
        xml.write_bytes(sealed)
        for written in (binary, xml):
            with written.open("rb+") as file:
                os.fsync(file.fileno())
            written.chmod(0o644)
        binary.replace(path.with_suffix(".bin"))
        xml.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ir_bytes(path)


def ir_bytes(path: Path) -> int:
    """Bytes of the XML and the binary together."""
    return path.stat().st_size + path.with_suffix(".bin").stat().st_size


def read_ir(path: Path, batch: int | None = None) -> Ir:
    """Read and check a model file.

    Args:
        path: The .xml.
        batch: Images in a call; None leaves it to each call.

    Raises:
        CheckpointError: A file is missing, damaged, not of the other, or not from mpsearch.
        MissingExtraError: OpenVINO is not installed.
    """
    binary, runtime = path.with_suffix(".bin"), openvino()
    for file in (path, binary):
        if not file.is_file():
            raise CheckpointError(
                f"There is no {file}. A model of OpenVINO is an .xml and a .bin of the same name."
            )
    about = _about(path, binary)
    try:
        model = runtime.Core().read_model(str(path), str(binary))
        ports = openvino_ports(model)
        if batch is not None:
            reads = zip(model.inputs, ports.reads, strict=True)
            model.reshape({port: _with_batch(port, axis, batch) for port, axis in reads})
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1]
        raise CheckpointError(
            f"{path} is whole, but OpenVINO {runtime.__version__} cannot read it: {first} {_AGAIN}"
        ) from None
    return Ir(model, about["precision"], about["asked"], ports)


def ran_units(live: Any, asked: Mapping[str, str]) -> dict[str, RanNode | None]:
    """Unit -> the node of the runtime graph that computes it; None where no node says so."""
    found: dict[str, RanNode | None] = dict.fromkeys(asked)
    for node in ran_nodes(live):
        if node.computes:
            for origin in (node.name, *node.origins):
                unit = origin.removeprefix(PREFIX).partition("#")[0]
                if origin.startswith(PREFIX) and unit in found:
                    found[unit] = node
    return found


def fallbacks(live: Any, asked: Mapping[str, str]) -> dict[str, str]:
    """Units that run in another arithmetic than they were written for -> the kernel that runs."""
    ran = ran_units(live, asked)
    return {
        unit: str(node or "no node of its own")
        for unit, node in ran.items()
        if node is None or node.arithmetic != asked[unit]
    }


def _about(path: Path, binary: Path) -> dict[str, Any]:
    text = path.read_bytes()
    start = f'<{_KEY} value="'.encode()
    at = text.rfind(start)
    try:
        if at < 0:
            raise ValueError("it has no seal")
        at += len(start)
        about = json.loads(bytes.fromhex(text[at : text.index(b'"', at)].decode()))
        seal, precision, asked = about["seal"], about["precision"], about["asked"]
        if not isinstance(seal, str) or precision not in ("f32", "bf16") or not isinstance(asked, dict):
            raise ValueError("its seal is not one of mpsearch")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} was not written by mpsearch, or is damaged: {error}. {_AGAIN}"
        ) from None
    opened = text.replace(seal.encode().hex().encode(), _OPEN_SEAL.encode().hex().encode())
    if _seal(opened, binary) != seal:
        raise CheckpointError(
            f"{path} and {binary.name} are damaged, or not of the same model: their contents do not fit "
            f"the seal. {_AGAIN}"
        )
    return {"precision": precision, "asked": asked}


def _seal(text: bytes, binary: Path) -> str:
    """SHA-256 of both files, the seal itself left open."""
    digest = hashlib.sha256(text)
    with binary.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _with_batch(port: Any, axis: int, batch: int) -> Any:
    shape = port.get_partial_shape()
    shape[axis] = openvino().Dimension(batch)
    return shape
