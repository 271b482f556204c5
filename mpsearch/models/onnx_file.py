"""ONNX files as modules: read by onnx2torch, with convolutions and linear layers under the names of their
weights, so that they can be quantised.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from mpsearch.errors import MissingExtraError, ModelError
from mpsearch.foreign import first_line, one_message, reason_of
from mpsearch.models.program import plain
from mpsearch.pytrees import flatten

if TYPE_CHECKING:
    from onnx import ModelProto

_OPSETS = (20, 18, 17, 16, 13)
"""Versions of the operators that a file is rewritten to where its own are not known to the converter."""
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization")
_SAME = 1e-3
"""Relative distance of the outputs of the file and of the module."""
_HINT = "Give the PyTorch model that the file was made from, or export it without them."


def load_onnx(path: Path) -> nn.Module:
    """The module of an ONNX file, in eval mode.

    Linear layers that are written as products with a constant are layers again; outputs of a file with
    several are a dict by name.

    Raises:
        ModelError: There is no such file, it is no ONNX model, or it has operators that are not converted;
            names
            them.
        MissingExtraError: onnx2torch is not installed.
    """
    model = _read(path)
    convert, known = _converter()
    model = _known_version(path, model, known)
    _plain_reshapes(model)
    _name_nodes(model)
    outputs = [value.name for value in model.graph.output]
    try:
        found: fx.GraphModule = convert(model, save_input_names=_are_names(model))
    except Exception as error:  # a converter of other people's files
        raise ModelError(
            f"{path} cannot be made a module: {type(error).__name__}: {first_line(error)} {_HINT}"
        ) from error
    _as_linear(found)
    _as_hierarchy(found)
    _as_outputs(found, outputs)
    found.graph.eliminate_dead_code()
    found.recompile()
    return plain(found, path.stem).eval()


def onnx_image_size(path: Path) -> tuple[int, int, int] | None:
    """Channels, height and width of the one input of a file, where it says them."""
    inputs = _inputs(_read(path))
    sizes = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim] if len(inputs) == 1 else []
    return (sizes[1], sizes[2], sizes[3]) if len(sizes) == 4 and all(sizes[1:]) else None


def require_same_as_file(path: Path, module: nn.Module, leaves: Sequence[Tensor]) -> None:
    """Raises ModelError where the module computes something else than ONNX Runtime does of its file.

    Args:
        path: The file.
        module: What `load_onnx` made of it.
        leaves: Its inputs in order, N x ... each.
    """
    import onnxruntime

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    with one_message(f"ONNX Runtime cannot open {path}"):
        session = onnxruntime.InferenceSession(path, quiet, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    if len(names) != len(leaves):
        raise ModelError(
            f"{path} reads {len(names)} tensors ({', '.join(names)}), and a sample holds {len(leaves)}. "
            "Give one "
            "for each, in that order."
        )
    with torch.no_grad():
        for row in range(len(leaves[0])):
            given = [leaf[row : row + 1] for leaf in leaves]
            try:
                wanted = session.run(None, {n: x.numpy() for n, x in zip(names, given, strict=True)})
            except Exception as error:  # the runtime's errors have no common class
                shapes = ", ".join(str(tuple(x.shape)) for x in given)
                raise ModelError(
                    f"{path} does not take a sample of shape {shapes}: {reason_of(error)} Give inputs of "
                    "the size "
                    "that it was exported for (--input-size)."
                ) from error
            found, _ = flatten(module(*given))
            for output, mine, theirs in zip(
                session.get_outputs(), found, map(torch.from_numpy, wanted), strict=True
            ):
                apart = float(
                    (mine.double() - theirs.double()).norm() / theirs.double().norm().clamp(min=1e-12)
                )
                if not apart < _SAME:
                    raise ModelError(
                        f"The module that was made of {path} computes something else than the file: the "
                        "output "
                        f"{output.name!r} differs by {apart:.2g} of its norm. {_HINT}"
                    )


def _read(path: Path) -> ModelProto:
    import onnx

    if not path.is_file():
        raise ModelError(f"There is no file {path}. Give an ONNX model.")
    try:
        model = onnx.load(path)
        if not model.graph.node:
            raise ValueError("it has no operators.")
    except Exception as error:  # protobuf, and what reads data beside the file
        raise ModelError(f"{path} is no readable ONNX model: {first_line(error)} Export it again.") from error
    return model


def _converter() -> tuple[Callable[..., fx.GraphModule], Callable[..., Any]]:
    try:
        from onnx2torch import convert
        from onnx2torch.node_converters.registry import get_converter
    except ImportError as error:
        raise MissingExtraError("onnx2torch", "onnx-input", "Reading an ONNX model", error) from None
    return convert, get_converter


def _known_version(path: Path, model: ModelProto, known: Callable[..., Any]) -> ModelProto:
    """The model with operators of versions that the converter knows. Raises ModelError, which names those
    that it does not.
    """
    from onnx import version_converter

    missing = _unknown(model, known)
    for version in _OPSETS if missing else ():
        try:
            other = version_converter.convert_version(model, version)
        except Exception:
            continue
        if not _unknown(other, known):
            return other
    if missing:
        quantized = " It is quantised already." if any("Quantize" in name for name in missing) else ""
        raise ModelError(
            f"{path} has operators that cannot be converted: {', '.join(missing)}.{quantized} {_HINT}"
        )
    return model


def _unknown(model: ModelProto, known: Callable[..., Any]) -> list[str]:
    versions = {one.domain: one.version for one in model.opset_import}
    found = set[str]()
    for node in model.graph.node:
        version = versions.get(node.domain, 1)
        try:
            known(domain=node.domain, operation_type=node.op_type, version=version)
        except NotImplementedError:
            found.add(f"{node.domain + '.' if node.domain else ''}{node.op_type} (opset {version})")
    return sorted(found)


def _plain_reshapes(model: ModelProto) -> None:
    """Reshapes to sizes of which none is 0 do not depend on what 0 stands for; the converter takes one
    meaning.
    """
    from onnx import numpy_helper

    held = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        size = held.get(node.input[1]) if node.op_type == "Reshape" else None
        if node.op_type == "Reshape" and (size is None or 0 not in numpy_helper.to_array(size)):
            for attribute in [a for a in node.attribute if a.name == "allowzero"]:
                node.attribute.remove(attribute)


def _name_nodes(model: ModelProto) -> None:
    """Name each node after its weight, else after its operator and place; no name twice."""
    held, used = {tensor.name for tensor in model.graph.initializer}, set[str]()
    for place, node in enumerate(model.graph.node):
        name = f"{node.op_type}_{place}"
        weight = node.input[1] if len(node.input) > 1 and node.op_type in _WEIGHTED else ""
        if weight in held and re.fullmatch(r"[\w.]+\.(weight|W)", weight):
            name = weight.rpartition(".")[0]
        name = name if name not in used else f"{name}.{node.op_type}_{place}"
        used.add(name)
        node.name = name


def _are_names(model: ModelProto) -> bool:
    return all(value.name.isidentifier() for value in _inputs(model))


def _inputs(model: ModelProto) -> list[Any]:
    held = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in held]


def _as_linear(module: fx.GraphModule) -> None:
    """Put a linear layer in the place of each product with a constant matrix."""
    for node in list(module.graph.nodes):
        if node.op != "call_module" or type(module.get_submodule(node.target)).__name__ != "OnnxMatMul":
            continue
        given, factor = node.args
        if not isinstance(factor, fx.Node) or factor.op != "get_attr":
            continue
        matrix = module.get_buffer(str(factor.target))
        if matrix.ndim != 2 or not matrix.is_floating_point():
            continue
        layer = nn.Linear(matrix.shape[0], matrix.shape[1], bias=False)
        layer.weight.data = matrix.detach().T.contiguous()
        setattr(module, str(node.target), layer)
        node.args = (given,)


def _as_hierarchy(module: fx.GraphModule) -> None:
    """Modules `layer1/0/conv1` become `layer1.0.conv1`, with modules in between."""
    renamed = {}
    for name, child in list(module.named_children()):
        if "/" in name:
            delattr(module, name)
            renamed[name] = name.replace("/", ".")
            module.add_submodule(renamed[name], child)
    for node in module.graph.nodes:
        if node.op == "call_module":
            node.target = renamed.get(node.target, node.target)


def _as_outputs(module: fx.GraphModule, names: Sequence[str]) -> None:
    """Outputs of a file that has several, by name."""
    (last,) = (node for node in module.graph.nodes if node.op == "output")
    given = last.args[0]
    if isinstance(given, list | tuple) and len(given) == len(names):
        last.args = (dict(zip(names, given, strict=True)),)
