"""The float graph of a model as ONNX, by torch's exporter: exported once, for each assignment to rewrite."""

from __future__ import annotations

import ast
import contextlib
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from onnx import ModelProto
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from mpsearch.deploy.graph import SCOPES, keep_pads
from mpsearch.errors import ModelError
from mpsearch.hardware.qdq import OPSET
from mpsearch.models import Form, apart, form_of
from mpsearch.pytrees import Inputs, joined, leaves_of

_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


class _FourAxes(TorchFunctionMode):
    """Fused attention of other than four axes (windows beside images and heads, say) as one of four, the only
    ones that the exporter takes.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        given = dict(zip(_ATTENTION, args, strict=False)) | (kwargs or {})
        ahead, mask = given["query"].shape[:-2], given.get("attn_mask")
        if len(ahead) == 2:
            return func(**given)
        if mask is not None:
            given["attn_mask"] = mask.expand(*ahead, *mask.shape[-2:])

        def four(x: Tensor) -> Tensor:
            return x.flatten(0, -4) if len(ahead) > 1 else x[:, None]

        attend: Any = func
        found = attend(**{name: four(x) if isinstance(x, Tensor) else x for name, x in given.items()})
        return found.unflatten(0, ahead[:-1]) if len(ahead) > 1 else found[:, 0]


def export_float(module: nn.Module, example: Inputs, opset: int = OPSET) -> ModelProto:
    """The float graph of a folded model, dynamic batch, by torch's exporter.

    Args:
        module: One batch in, one tensor out, eval mode; of one that was bound to a form, the file has the
            inputs and outputs of its own, by name.
        example: 1 x C x H x W or more, or what else it reads.
        opset: Version of the operators; 21 has 4-bit and blockwise DequantizeLinear.
    Raises: ModelError: torch cannot export it.
    """
    one, form = example[:1], form_of(module)
    two = joined([one, one])  # a batch of one would be fixed by the exporter
    named: dict[str, Any] = {} if form is None else _port_names(form)
    axis, two = (0, two) if form is None else (form.batch_axis, form.placed(two))
    try:
        # fused attention with a mask is traced with the strides of one kernel and decomposed with those of
        # another, which the exporter refuses
        with (
            warnings.catch_warnings(),
            sdpa_kernel(SDPBackend.MATH),
            _FourAxes(),
            contextlib.nullcontext() if form is None else apart(module),
        ):
            warnings.simplefilter("ignore")  # the exporter's advice to itself
            each = [{axis: torch.export.Dim.DYNAMIC} for _ in leaves_of(two)]
            dynamic: Any = (each[0] if isinstance(two, Tensor) else each,)
            program = torch.onnx.export(
                module,
                (two,),
                **named,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=dynamic,
                verbose=False,
                optimize=False,
            )
            if program is not None:
                _optimize(program)
    except Exception as error:  # torch's exporter has no common base class for its errors
        raise ModelError(
            f"The model cannot be exported to ONNX: {_reason(error).rstrip('.')}. Run with --target packed "
            "for the packed checkpoint alone."
        ) from error
    if program is None:
        raise ModelError(
            "torch's exporter returned nothing. Run with --target packed for the packed checkpoint alone."
        )
    proto: ModelProto = program.model_proto
    keep_pads(proto)
    _name_scopes(proto, module)
    return proto


def _reason(error: BaseException) -> str:
    """The first line of what went wrong in the first place; the exporter's own says only in which step."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__


def _name_scopes(proto: ModelProto, module: nn.Module) -> None:
    """Nodes of a module that has several places in the tree are told to be at the first of them, which is its
    name everywhere else.
    """
    first = {id(each): path for path, each in module.named_modules()}
    every = module.named_modules(remove_duplicate=False)
    other = {path: first[id(each)] for path, each in every if first[id(each)] != path}
    for node in proto.graph.node if other else ():
        for entry in node.metadata_props:
            if entry.key == SCOPES:
                entry.value = repr([other.get(path, path) for path in ast.literal_eval(entry.value)])


def _port_names(form: Form) -> dict[str, list[str]]:
    """Names of the file's inputs and outputs, none twice."""
    given = [leaf.name or "input" for leaf in form.inputs]
    result = [leaf.name or "output" for leaf in form.outputs]
    return {
        "input_names": given,
        "output_names": [f"output.{name}" if name in given or name.isdigit() else name for name in result],
    }


def _optimize(program: torch.onnx.ONNXProgram) -> None:
    """The exporter's own optimiser, which must not merge the batch norms that are left into units: a unit's
    weight stays its own.
    """
    norms = [node for node in program.model.graph.all_nodes() if node.op_type == "BatchNormalization"]
    for node in norms:
        node.domain = "mpsearch"  # which no rule of the optimiser knows
    program.optimize()
    for node in norms:
        node.domain = ""
