"""Models from timm, from a factory in a Python file, from an exported program, or from an `nn.Module`: in
eval mode, float32, weights checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mpsearch.errors import ModelError, UnknownNameError
from mpsearch.foreign import first_line
from mpsearch.models.hugging_face import hugging_face_images, load_hugging_face
from mpsearch.models.onnx_file import load_onnx, onnx_image_size
from mpsearch.models.program import load_program
from mpsearch.models.tree import copied
from mpsearch.models.weights import check_finite, load_weights
from mpsearch.named import HUB, HUGGING_FACE, require_model_name
from mpsearch.usercode import call_code, names_code, require_code

DataConfig = dict[str, Any]


@dataclass(frozen=True)
class ModelSource:
    """How a model is built anew.

    Args:
        kind: `timm`, `factory` (`path/to/file.py:function`), `program` (a `.pt2` file), `onnx` (an `.onnx`
            file), `hf` (of transformers, `hf:ID_OR_FOLDER`) or `module` (given as an object, so it cannot be
            built from this).
        name: Name in timm, the factory or file as it was typed, or the class of the module.
        kwargs: Arguments of the model; plain JSON values.
    """

    kind: str
    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelSource:
        """Inverse of `to_json`."""
        return cls(data["kind"], data["name"], dict(data["kwargs"]))


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be analysed.

    Args:
        module: In eval mode, float32, all weights finite.
        source: How it was built.
        data_config: What its images must look like, in timm's words: input_size (C, H, W), mean, std,
            interpolation, crop_pct, crop_mode.
    """

    module: nn.Module
    source: ModelSource
    data_config: DataConfig


def load_model(
    spec: str, *, weights: Path | None = None, pretrained: bool = False, kwargs: dict[str, Any] | None = None
) -> LoadedModel:
    """Build a model and load its weights.

    Without `weights` and `pretrained` the weights are whatever the constructor leaves: random for timm, the
    factory's own for a factory. A factory says what its images look like by setting `model.pretrained_cfg`;
    where it does not, timm's ImageNet defaults hold.

    Args:
        spec: Name in timm, `path/to/file.py:function`, a program of `torch.export.save` (`.pt2`), an ONNX
            file, or a model of transformers (`hf:ID_OR_FOLDER`).
        weights: Safetensors file or state dict with the model's parameter names.
        pretrained: Download timm's weights.
        kwargs: Arguments for the model's constructor or the factory; plain JSON values.

    Raises:
        UnknownNameError: timm has no model of this name.
        ModelError: The model cannot be built or downloaded, or its weights do not fit or are not finite.
    """
    source = ModelSource(kind_of(spec), spec, dict(kwargs or {}))
    if pretrained and weights is not None:
        raise ModelError(f"Both pretrained weights and {weights} are asked for. Give one of them.")
    module = build_model(source, pretrained=pretrained)
    if weights is not None:
        load_weights(module, Path(weights))
    check_finite(module)
    config = _data_config(module, source.kwargs)
    if source.kind == "onnx" and (size := onnx_image_size(Path(spec))) is not None:
        config |= {"input_size": size, "crop_pct": 1.0}
    if source.kind == "hf" and (images := hugging_face_images(spec)):
        config |= images
        module.pretrained_cfg = images  # type: ignore[assignment]
    return LoadedModel(module, source, config)


def from_module(module: nn.Module, data_config: DataConfig | None = None) -> LoadedModel:
    """Take a model that exists already; it is copied, and the copy put in eval mode and float32.

    Args:
        module: One tensor in, one tensor out.
        data_config: What its images look like, over what `module.pretrained_cfg` or timm's ImageNet defaults
            say.
    Raises: ModelError: It is not a module, or its weights are not finite.
    """
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"The model is a {type(module).__name__}. Give an nn.Module, a timm name or "
            "path/to/file.py:function."
        )
    module = unwrapped(module)
    check_finite(module)
    return LoadedModel(
        as_float(module),
        ModelSource("module", type(module).__name__),
        {**_data_config(module, {}), **(data_config or {})},
    )


def build_model(source: ModelSource, *, pretrained: bool = False) -> nn.Module:
    """The model of a source with the weights of its constructor (or timm's), in eval mode and float32.

    Raises:
        UnknownNameError: timm has no model of this name.
        ModelError: It cannot be built or downloaded, or its kind is `module`.
    """
    try:
        json.dumps(source.kwargs, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"The model arguments {source.kwargs} are not plain values ({error}). Use numbers, texts, "
            "lists and true/false."
        ) from None
    if source.kind == "timm":
        module = _build_timm(source, pretrained)
    elif source.kind == "factory":
        module = _build_factory(source, pretrained)
    elif source.kind == "program":
        module = load_program(Path(source.name))
    elif source.kind == "onnx":
        module = load_onnx(Path(source.name))
    elif source.kind == "hf":
        module = load_hugging_face(source.name, source.kwargs)
    else:
        raise ModelError(
            f"The model {source.name!r} was given as an object and cannot be built from its name. Pass "
            "the module again, or write a factory."
        )
    return module.float().eval()


def kind_of(spec: str) -> str:
    """The kind of `ModelSource` that a text names."""
    if names_code(spec):
        return "factory"
    if spec.startswith(HUGGING_FACE):
        return "hf"
    return {".pt2": "program", ".onnx": "onnx"}.get(Path(spec).suffix, "timm")


def _build_timm(source: ModelSource, pretrained: bool) -> nn.Module:
    name = source.name
    if not timm.is_model(name) and not name.startswith(HUB):
        require_model_name(name)
        raise UnknownNameError("timm model", name, timm.list_models())
    try:
        module: nn.Module = timm.create_model(name, pretrained=False, **source.kwargs)
    except Exception as error:  # a constructor may raise anything on arguments that it does not take
        raise ModelError(
            f"timm cannot build {name!r} with {source.kwargs}: {first_line(error)} Check the arguments "
            "of the model."
        ) from error
    if not pretrained:
        return module
    try:
        return timm.create_model(name, pretrained=True, **source.kwargs)
    except Exception as error:  # the hub raises errors of several libraries
        raise ModelError(
            f"The pretrained weights of {name!r} cannot be had: {first_line(error)} Download them "
            "elsewhere and pass them with --weights FILE.safetensors."
        ) from error


def _build_factory(source: ModelSource, pretrained: bool) -> nn.Module:
    require_code(source.name, ModelError)
    if pretrained:
        raise ModelError(
            f"The factory {source.name!r} has no pretrained weights to download. Pass them with "
            "--weights FILE.safetensors."
        )
    module = call_code(source.name, "a function that returns an nn.Module", ModelError, **source.kwargs)
    if not isinstance(module, nn.Module):
        raise ModelError(f"{source.name} returned a {type(module).__name__}. It must return an nn.Module.")
    return unwrapped(module)


def unwrapped(module: nn.Module) -> nn.Module:
    """The model inside `torch.compile` and `nn.DataParallel`, whose copies could not be traced. Raises
    ModelError on TorchScript.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(
            f"The model is TorchScript ({type(module).__name__}), whose layers cannot be exchanged. Give "
            "the nn.Module that it was made from."
        )
    inner = getattr(module, "_orig_mod", None) or (
        module.module if isinstance(module, nn.DataParallel | DistributedDataParallel) else None
    )
    return unwrapped(inner) if isinstance(inner, nn.Module) else module


def as_float(module: nn.Module) -> nn.Module:
    """A copy in float32, in eval mode and in the CPU's memory: what a module that was given as an object is
    taken for, whenever it is given.
    """
    return copied(unwrapped(module)).cpu().float().eval()


def as_stored(module: nn.Module, dtypes: Mapping[str, torch.dtype]) -> nn.Module:
    """A copy in eval mode whose numbers have the types of a file: float32, but where the file has a tensor of
    another type.
    """
    copy = copied(unwrapped(module)).eval()
    for name, tensor in (*copy.named_parameters(), *copy.named_buffers()):
        dtype = dtypes.get(name, torch.float32)
        if tensor.is_floating_point() and dtype.is_floating_point:
            tensor.data = tensor.data.to(dtype)
    return copy


def _data_config(module: nn.Module, kwargs: Mapping[str, Any]) -> DataConfig:
    size = {key: kwargs[key] for key in ("img_size", "in_chans") if isinstance(kwargs.get(key), int)}
    config = dict(resolve_data_config(size, model=module))  # type: ignore[no-untyped-call]
    return {key: tuple(value) if isinstance(value, list | tuple) else value for key, value in config.items()}
