"""`builds.json`: what engines were asked for, written beside their ONNX files and read back with their
profiles.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpsearch import files
from mpsearch.errors import TableError
from mpsearch.hardware.trtexec.table import Network
from mpsearch.hardware.wires import Wire
from mpsearch.problem import Layer

NAME = "builds.json"
SCHEMA = 1


def write_manifest(
    folder: Path, network: Network, batch: int, predicted_us: Mapping[str, float] | None = None
) -> Path:
    """Say in a folder what its builds are of.

    Args:
        folder: Where the ONNX files lie.
        network: Model, and the kernels of each build.
        batch: Images in a call.
        predicted_us: Build -> latency that it is expected to have, where one is.
    """
    data: dict[str, Any] = {"schema": SCHEMA, "model": network.name, "key": network.key, "batch": batch}
    data["layers"] = [layer.to_json() for layer in network.layers]
    data["wires"] = [wire.to_json() for wire in network.wires]
    data["builds"] = {name: list(kernels) for name, kernels in network.asked.items()}
    data["predicted_us"] = dict(predicted_us or {})
    files.write_json(folder / NAME, data)
    return folder / NAME


def read_manifest(folder: Path) -> tuple[Network, int] | None:
    """What `write_manifest` said, and the batch; None where there is no such file. Raises TableError where it
    cannot be read.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text())
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']!r}")
        layers = tuple(map(Layer.from_json, data["layers"]))
        wires = tuple(Wire(**wire) for wire in data["wires"])
        asked = {str(name): tuple(map(str, kernels)) for name, kernels in data["builds"].items()}
        network = Network(str(data["model"]), layers, wires, asked)
        if network.key != data["key"] or any(len(kernels) != len(layers) for kernels in asked.values()):
            raise ValueError("its layers and its key or its builds do not fit")
        return network, int(data["batch"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TableError(
            f"{path} cannot be read ({type(error).__name__}: {error}). Copy it again from where the ONNX "
            "files were written."
        ) from None


def read_predictions(folder: Path) -> dict[str, float]:
    """Build -> latency in microseconds that was predicted when it was written; none where nothing was.

    Raises: TableError: As `read_manifest`.
    """
    if read_manifest(folder) is None:
        return {}
    held = json.loads((folder / NAME).read_text()).get("predicted_us", {})
    return {str(name): float(us) for name, us in held.items()}
