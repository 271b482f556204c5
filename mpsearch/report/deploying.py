"""How the files of a study are used: code to paste for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from mpsearch.report.reads import OWN_SAMPLES, Reads, reads_of
from mpsearch.report.saved import Saved


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
    return 'prepared("picture.jpg")' if reads is not None and reads.pictures is not None else OWN_SAMPLES


def _about(reads: Reads | None) -> str:
    """A comment on inputs that the code cannot prepare."""
    if reads is None:
        return f"# {OWN_SAMPLES}: what the float model reads, as an array\n"
    if reads.pictures is not None:
        return ""
    shapes = ", ".join(f"{name} N x {' x '.join(map(str, s))} {kind}" for name, s, kind in reads.inputs)
    return f"# {OWN_SAMPLES}: {shapes}, as you gave them\n"


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
    inputs = f"torch.from_numpy({_example(reads)})" if _example(reads) != OWN_SAMPLES else OWN_SAMPLES
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
