"""How the files of a study are used: what they read, and code to paste for each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from mpsearch.report.saved import Saved

_OWN_SAMPLES = "samples"
"""What code calls the inputs that it cannot prepare."""


@dataclass(frozen=True)
class Pictures:
    """How pictures become inputs.

    Args:
        size: C, H, W.
        mean: C means of values in 0 to 1.
        std: C standard deviations.
        interpolation: Of resizing.
        crop_pct: Share of the resized picture that is kept.
        crop_mode: `center` or another of timm's.
    """

    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str

    @property
    def resized(self) -> int:
        """What the short side becomes before the middle is cut out."""
        return math.floor(self.size[1] / self.crop_pct)

    @property
    def plain(self) -> bool:
        """Whether resizing and cutting out a square is all there is to it."""
        return self.crop_mode in ("center", "squash") and self.size[1] == self.size[2]

    @property
    def told(self) -> str:
        """How a picture is resized and cut, for people."""
        channels, high, wide = self.size
        colour = "RGB" if channels == 3 else "grey"
        size = f"{high} × {wide}"
        if not self.plain:
            return f"{colour}, {self.crop_mode} to {size}, crop {self.crop_pct:g} ({self.interpolation})"
        whole = f"{self.resized} × {self.resized}"
        how = (
            f"its short side resized to {self.resized}"
            if self.crop_mode == "center"
            else f"resized to {whole}"
        )
        cut = "" if self.crop_mode == "squash" and self.crop_pct == 1 else f", the middle {size} cut out"
        return f"{colour}, {how} ({self.interpolation}){cut}"

    def code(self) -> str:
        """`prepared(path)`: one picture as the model reads it, 1 x C x H x W."""
        return self._with_pillow() if self.plain else self._with_timm()

    def _with_pillow(self) -> str:
        channels, side, _ = self.size
        mode = "RGB" if channels == 3 else "L"
        mean, std = (list(values) for values in (self.mean, self.std))
        larger = (
            f"({self.resized} * width // short, {self.resized} * height // short)"
            if self.crop_mode == "center"
            else f"({self.resized}, {self.resized})"
        )
        return f"""\
import numpy as np
from PIL import Image


def prepared(path):  # 1 x {channels} x {side} x {side}, float32
    image = Image.open(path).convert("{mode}")
    width, height, short = *image.size, min(image.size)
    image = image.resize({larger}, Image.Resampling.{self.interpolation.upper()})
    left, top = round((image.width - {side}) / 2), round((image.height - {side}) / 2)
    pixels = np.asarray(image.crop((left, top, left + {side}, top + {side})), np.float32)
    pixels = pixels.reshape({side}, {side}, {channels}) / 255
    pixels = (pixels - np.float32({mean})) / np.float32({std})
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
"""

    def _with_timm(self) -> str:
        mode = "RGB" if self.size[0] == 3 else "L"
        return f"""\
from PIL import Image
from timm.data import create_transform

transform = create_transform(
    {self.size}, is_training=False, interpolation={self.interpolation!r}, crop_pct={self.crop_pct},
    crop_mode={self.crop_mode!r}, mean={self.mean}, std={self.std},
)


def prepared(path):  # 1 x {" x ".join(map(str, self.size))}, float32
    return transform(Image.open(path).convert("{mode}"))[None].numpy()
"""


@dataclass(frozen=True)
class Reads:
    """What the model reads.

    Args:
        inputs: Name, shape of one sample and type of each tensor.
        pictures: How pictures become that; None where the samples were given as they are.
    """

    inputs: tuple[tuple[str, tuple[int, ...], str], ...]
    pictures: Pictures | None


def reads_of(saved: Saved) -> Reads | None:
    """By the manifest of the artifact; None where that was removed."""
    manifest = saved.manifest
    if not manifest:
        return None
    if "form" in manifest:
        leaves = manifest["form"]["inputs"]
        return Reads(tuple((name, tuple(shape), dtype) for name, shape, dtype, _ in leaves), None)
    shape, held = tuple(manifest["input_shape"]), manifest["data_config"]
    one = (("images" if len(shape) == 3 else _OWN_SAMPLES, shape, "float32"),)
    given = manifest["source"]["kind"] == "module" or ".py:" in (saved.study["config"].get("data") or "")
    if given or tuple(held.get("input_size", ())) != shape:
        return Reads(one, None)
    pictures = Pictures(
        (shape[0], shape[1], shape[2]),
        tuple(held["mean"]),
        tuple(held["std"]),
        held["interpolation"],
        held["crop_pct"],
        held["crop_mode"],
    )
    return Reads(one, pictures)


@dataclass(frozen=True)
class Snippet:
    """Code that runs one of the files.

    Args:
        title: The runtime.
        file: The file, as seen from where the study was run.
        size_bytes: Of it.
        told: What to know, a sentence each.
        code: To be pasted.
        language: `python` or `sh`.
    """

    title: str
    file: str
    size_bytes: int
    told: tuple[str, ...]
    code: str
    language: str = "python"


def snippets_of(saved: Saved) -> list[Snippet]:
    """The target's own files first, the checkpoint last."""
    artifact, reads = saved.best["artifact"], reads_of(saved)
    makers = {"onnx": _onnx, "openvino": _openvino, "tensorrt": _tensorrt, "triton": _triton}
    own = [make(saved, artifact, reads) for key, make in makers.items() if key in artifact]
    return [*own, _packed(saved, artifact, reads)]


def _file(saved: Saved, path: str) -> str:
    return f"{saved.folder}/artifact/{PurePath(path).name}"


def _head(imports: str, reads: Reads | None) -> str:
    """Imports, and the preparation of a picture where it is known."""
    if reads is None or reads.pictures is None:
        return f"{imports}\n\n"
    first, _, rest = reads.pictures.code().partition("\n\n\n")
    return f"{imports}\n{first}\n\n\n{rest}\n\n"


def _example(reads: Reads | None) -> str:
    """The expression of one input."""
    return 'prepared("picture.jpg")' if reads is not None and reads.pictures is not None else _OWN_SAMPLES


def _about(reads: Reads | None) -> str:
    """A comment on inputs that the code cannot prepare."""
    if reads is None:
        return f"# {_OWN_SAMPLES}: what the float model reads, as an array\n"
    if reads.pictures is not None:
        return ""
    shapes = ", ".join(f"{name} N x {' x '.join(map(str, s))} {kind}" for name, s, kind in reads.inputs)
    return f"# {_OWN_SAMPLES}: {shapes}, as you gave them\n"


def _feed(reads: Reads | None) -> str:
    if reads is not None and len(reads.inputs) > 1:
        return "{" + ", ".join(f"{name!r}: {name.replace('.', '_')}" for name, *_ in reads.inputs) + "}"
    return f"{{session.get_inputs()[0].name: {_example(reads)}}}"


def _agrees(artifact: Mapping[str, Any], key: str, whose: str, images: int) -> str:
    return f"It decides as the {whose} on {artifact[f'{key}_agreement']:.2%} of {images:,} images."


def _onnx(saved: Saved, artifact: Mapping[str, Any], reads: Reads | None) -> Snippet:
    file = _file(saved, artifact["onnx"])
    code = _head("import onnxruntime", reads) + _about(reads)
    code += f"file = {file!r}\n"
    code += 'session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])\n'
    code += f"outputs = session.run(None, {_feed(reads)})[0]\n"
    form = "bit-packed weights" if saved.checkpoint_beside else "8-bit containers"
    told = (
        f"ONNX, {form}.",
        _agrees(artifact, "onnx", "checkpoint", saved.best["metrics"]["images"]),
        "Latencies are those of this session, ONNX Runtime's default one.",
    )
    return Snippet("ONNX Runtime", file, artifact["onnx_bytes"], told, code + _shown(saved))


def _openvino(saved: Saved, artifact: Mapping[str, Any], reads: Reads | None) -> Snippet:
    file = _file(saved, artifact["openvino"])
    precision = "bf16" if "bf16" in saved.target else "f32"
    code = _head("import openvino", reads) + _about(reads)
    code += f"""\
live = openvino.Core().compile_model({file!r}, "CPU", {{
    "INFERENCE_PRECISION_HINT": "{precision}", "NUM_STREAMS": "1", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}})
outputs = live({_example(reads)})[0]
"""
    told = (
        _agrees(artifact, "openvino", "checkpoint", saved.best["metrics"]["images"]),
        "Latencies are those of these settings and a fixed batch; without the hint a processor with bf16 "
        "computes its float layers in it.",
    )
    return Snippet("OpenVINO", file, artifact["openvino_bytes"], told, code + _shown(saved))


def _tensorrt(saved: Saved, artifact: Mapping[str, Any], reads: Reads | None) -> Snippet:
    file, folder = _file(saved, artifact["tensorrt"]), f"{saved.folder}/artifact"
    code = f"sh {folder}/build.sh\n"
    code += f"mpsearch profile --from trtexec:{folder}\nmpsearch run --resume {saved.folder}\n"
    told = (
        "Strongly typed ONNX: float16, and int8 behind Q/DQ pairs.",
        _agrees(artifact, "tensorrt", "checkpoint", saved.best["metrics"]["images"])
        + " That is ONNX Runtime's answer; no engine was built here.",
        "Where the GPU is, build.sh builds and times it; then compare what it takes with what was predicted, "
        "and search again with what was learned.",
    )
    return Snippet("TensorRT", file, artifact["tensorrt_bytes"], told, code, "sh")


def _triton(saved: Saved, artifact: Mapping[str, Any], reads: Reads | None) -> Snippet:
    file = _file(saved, artifact["packed"])
    code = _head("import torch\n\nimport mpsearch", reads) + _about(reads)
    code += _load(saved, file, ', kernels="triton-cuda", device="cuda"')
    code += f"outputs = model(torch.from_numpy({_example(reads)}).cuda())\n"
    told = (
        "The checkpoint on the Triton kernels, fp16 between units.",
        _agrees(artifact, "triton", "fake-quantised model", saved.best["metrics"]["images"]),
        "Latencies are those of one call in a CUDA graph, energies those of the whole board.",
    )
    return Snippet("Triton kernels", file, artifact["packed_bytes"], told, code + _shown(saved))


def _packed(saved: Saved, artifact: Mapping[str, Any], reads: Reads | None) -> Snippet:
    file = _file(saved, artifact["packed"])
    code = _head("import torch\n\nimport mpsearch", reads) + _about(reads) + _load(saved, file)
    inputs = f"torch.from_numpy({_example(reads)})" if _example(reads) != _OWN_SAMPLES else _OWN_SAMPLES
    code += f"with torch.no_grad():\n    outputs = model({inputs})\n"
    same = artifact.get("reloaded_bit_for_bit")
    told = (
        "The packed checkpoint, for PyTorch: it computes in float with the quantised values.",
        *(("Read back in this run, it gave the same outputs bit for bit.",) if same else ()),
    )
    return Snippet("PyTorch", file, artifact["packed_bytes"], told, code + _shown(saved))


def _load(saved: Saved, file: str, options: str = "") -> str:
    """The call of `mpsearch.load`, with the float model that it needs unless timm has it."""
    source = saved.manifest.get("source", {"kind": "timm", "name": "", "kwargs": {}})
    kind, name, kwargs = source["kind"], source["name"], source["kwargs"]
    if kind == "module":
        comment = f"# float_model: a {name} built as the one that was searched; its weights do not matter\n"
        return f"{comment}model = mpsearch.load({file!r}, model=float_model{options})\n"
    if kind == "factory" and kwargs:
        path, _, function = name.rpartition(":")
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        return (
            f"import sys\n\nsys.path.insert(0, {str(PurePath(path).parent)!r})\n"
            f"from {PurePath(path).stem} import {function}\n\n"
            f"model = mpsearch.load({file!r}, model={function}({given}){options})\n"
        )
    built = "" if kind == "timm" else f", model={name!r}"
    return f"model = mpsearch.load({file!r}{built}{options})\n"


def _shown(saved: Saved) -> str:
    return "print(outputs.argmax(1))\n" if saved.whole["searched"]["metrics"]["top1"] is not None else ""
