"""Loading: where models come from, and every way in which weights can be wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from mpsearch.errors import ModelError, UnknownNameError
from mpsearch.models import (
    ModelSource,
    analyze,
    build_model,
    find_foldable,
    fold_batch_norm,
    from_module,
    load_model,
    require_weights,
    trace_model,
    weights_hash,
)
from mpsearch.named import OWN, require_model_name, timm_names

FACTORY = """
from torch import nn

def build(width=4):
    model = nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2)).double()
    model.pretrained_cfg = {"input_size": (3, 16, 16), "mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0), "crop_pct": 1.0}
    return model

def nothing():
    return 3

def broken():
    raise KeyError("inside")

not_a_function = 4
"""


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    path = tmp_path / "timm.py"  # the name of an installed package
    path.write_text(FACTORY)
    return path


@pytest.fixture
def saved(factory: Path, tmp_path: Path) -> Path:
    path = tmp_path / "w.safetensors"
    torch.manual_seed(3)
    save_file(build_model(ModelSource("factory", f"{factory}:build")).state_dict(), path)
    return path


def test_timm_model_is_float_eval_and_described():
    loaded = load_model("test_resnet", kwargs={"num_classes": 7})
    assert not loaded.module.training
    assert loaded.module(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert loaded.source == ModelSource("timm", "test_resnet", {"num_classes": 7})
    assert loaded.data_config["input_size"] == (3, 160, 160)
    assert set(loaded.data_config) >= {"input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode"}


def test_image_size_argument_reaches_the_data_config():
    assert load_model("test_vit", kwargs={"img_size": 64}).data_config["input_size"] == (3, 64, 64)


def test_unknown_timm_name_names_the_closest():
    with pytest.raises(UnknownNameError, match="Did you mean 'resnet18'"):
        load_model("resnet1i8")


def test_argument_the_model_lacks():
    with pytest.raises(ModelError, match=r"cannot build 'test_resnet'.*no_such"):
        load_model("test_resnet", kwargs={"no_such": 1})


def test_pretrained_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch):
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **kwargs: object) -> nn.Module:
        if pretrained:
            raise OSError("no connection\nmore")
        return create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ModelError, match=r"no connection\. .*--weights FILE.safetensors"):
        load_model("test_resnet", pretrained=True)


def test_factory(factory: Path):
    loaded = load_model(f"{factory}:build", kwargs={"width": 6})
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}
    assert loaded.module[0].out_channels == 6
    assert loaded.data_config["input_size"] == (3, 16, 16)
    assert loaded.data_config["mean"] == (0.1, 0.2, 0.3)
    assert loaded.source.kind == "factory"
    assert timm.create_model is not None  # the installed package is still the one that is imported


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        (":missing", "has no function 'missing'"),
        (":not_a_function", "has no function 'not_a_function'"),
        (":nothing", "returned a int"),
        (":broken", "KeyError: 'inside'"),
        ("", "names no function"),
        (":", "names no function"),
    ],
)
def test_factory_that_is_wrong(factory: Path, suffix: str, message: str):
    with pytest.raises(ModelError, match=message):
        load_model(f"{factory}{suffix}")


def test_factory_file_that_is_missing_or_broken(tmp_path: Path):
    with pytest.raises(ModelError, match="There is no file"):
        load_model(f"{tmp_path}/none.py:build")
    (tmp_path / "bad.py").write_text("import no_such_package_at_all\n")
    with pytest.raises(ModelError, match=r"bad\.py cannot be imported: ModuleNotFoundError"):
        load_model(f"{tmp_path}/bad.py:build")
    with pytest.raises(ModelError, match="no pretrained weights"):
        load_model(f"{tmp_path}/bad.py:build", pretrained=True)


def test_arguments_must_be_plain():
    with pytest.raises(ModelError, match="not plain values"):
        load_model("test_resnet", kwargs={"act_layer": nn.ReLU})


def test_weights_round_trip(factory: Path, saved: Path):
    torch.manual_seed(3)
    expected = weights_hash(build_model(ModelSource("factory", f"{factory}:build")))
    assert weights_hash(load_model(f"{factory}:build", weights=saved).module) == expected
    assert weights_hash(load_model(f"{factory}:build").module) != expected


def test_half_precision_weights_become_float32(factory: Path, saved: Path, tmp_path: Path):
    module = load_model(f"{factory}:build", weights=saved).module
    save_file({k: v.half() for k, v in module.state_dict().items()}, tmp_path / "half.safetensors")
    loaded = load_model(f"{factory}:build", weights=tmp_path / "half.safetensors").module
    assert loaded[0].weight.dtype == torch.float32
    assert torch.equal(loaded[0].weight, module[0].weight.half().float())


def test_batch_counters_may_be_missing(tmp_path: Path):
    state = timm.create_model("test_resnet").state_dict()
    save_file({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "w.safetensors")
    loaded = load_model("test_resnet", weights=tmp_path / "w.safetensors")
    assert torch.equal(loaded.module.state_dict()["fc.weight"], state["fc.weight"])


def test_every_misfit_is_named(factory: Path, saved: Path, tmp_path: Path):
    state = load_model(f"{factory}:build", weights=saved).module.state_dict()
    state["extra"] = torch.zeros(1)
    state["3.bias"] = torch.zeros(5)
    del state["0.weight"]
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(ModelError) as caught:
        load_model(f"{factory}:build", weights=tmp_path / "bad.safetensors")
    for part in ("3 places", "missing '0.weight'", "unexpected 'extra'", "'3.bias' has shape (5,), not (2,)"):
        assert part in str(caught.value)


def test_many_misfits_are_cut_short(factory: Path, tmp_path: Path):
    save_file({f"extra{i}": torch.zeros(1) for i in range(20)}, tmp_path / "bad.safetensors")
    with pytest.raises(ModelError, match=r"\.\.\. \(24 in all\)"):
        load_model(f"{factory}:build", weights=tmp_path / "bad.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(factory: Path, saved: Path, tmp_path: Path, value: float):
    state = load_model(f"{factory}:build", weights=saved).module.state_dict()
    state["3.bias"][1] = value
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(ModelError, match=r"NaN or infinity in '3\.bias'"):
        load_model(f"{factory}:build", weights=tmp_path / "nan.safetensors")


@pytest.mark.parametrize("name", ["w.pth", "w.PT", "w.bin", "w.ckpt"])
def test_state_dicts_of_torch_save(factory: Path, saved: Path, tmp_path: Path, name: str):
    module = load_model(f"{factory}:build", weights=saved).module
    state = module.state_dict()
    for held in (
        state,
        {"state_dict": state, "epoch": 3},
        {"model": {f"module.{key}": value for key, value in state.items()}},
    ):
        torch.save(held, tmp_path / name)
        loaded = load_model(f"{factory}:build", weights=tmp_path / name)
        assert weights_hash(loaded.module) == weights_hash(module)


class Evil:
    def __reduce__(self):
        return (Path("/tmp/never").touch, ())


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (b"cos\nsystem\n", "is not a file of torch.save|needs code to be read"),
        ({"w": Evil()}, r"needs code to be read.*torch.save\(model.state_dict"),
        (nn.Linear(2, 2), r"needs code to be read \(torch.nn.modules.linear.Linear\)"),
        ({"epoch": 3, "lr": [0.1]}, "holds no state dict but the keys epoch, lr"),
        ([torch.zeros(1)], "holds no state dict but no dict"),
    ],
)
def test_no_file_of_weights_runs_code(tmp_path: Path, held: object, message: str):
    path = tmp_path / "w.pth"
    path.write_bytes(held) if isinstance(held, bytes) else torch.save(held, path)
    with pytest.raises(ModelError, match=message):
        require_weights(path)
    with pytest.raises(ModelError, match=message):
        load_model("test_resnet", weights=path)


def test_names_are_told_without_torch():
    known = timm_names()
    assert set(timm.list_models()) <= known | set(OWN) and len(known) > 1000
    for good in ("resnet18", "resnet50.a1_in1k", "hf-hub:timm/resnet18.a1_in1k", OWN[0]):
        require_model_name(good)
    for bad, message in (
        ("resnet1i8", "Did you mean 'resnet18'"),
        ("google/vit-base-patch16-224", "hf-hub:timm/NAME"),
        ("net.onnx", "no file net.onnx"),
        ("w.pth", "--weights w.pth"),
        ("none.pt2", "There is no file"),
    ):
        with pytest.raises((ModelError, UnknownNameError), match=message):
            require_model_name(bad)
    code = (
        "import sys, mpsearch.cli._options\n"
        "from mpsearch.named import require_model_name\n"
        "try: require_model_name('resnet1i8')\n"
        "except Exception: pass\n"
        "print(sorted({'torch', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_exported_program_has_its_layers_again(tmp_path: Path):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=7).eval()
    x = torch.randn(2, 3, 32, 32)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, tmp_path / "net.pt2")
    loaded = load_model(str(tmp_path / "net.pt2")).module
    torch.testing.assert_close(loaded(x), model(x))
    assert set(loaded.state_dict()) == set(model.state_dict())
    pairs = find_foldable(trace_model(loaded, x), loaded)
    assert pairs == find_foldable(trace_model(model, x), model)
    named = {layer.name for layer in analyze(fold_batch_norm(loaded, pairs), x).layers}
    assert named == {layer.name for layer in analyze(fold_batch_norm(model, pairs), x).layers}
    (tmp_path / "bad.pt2").write_bytes(b"PK")
    with pytest.raises(ModelError, match=r"bad\.pt2 is no program of torch\.export\.save"):
        load_model(str(tmp_path / "bad.pt2"))


def test_weights_file_missing_or_damaged(tmp_path: Path):
    with pytest.raises(ModelError, match="There is no weights file"):
        load_model("test_resnet", weights=tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(ModelError, match="damaged"):
        load_model("test_resnet", weights=tmp_path / "bad.safetensors")
    with pytest.raises(ModelError, match="Give one of them"):
        load_model("test_resnet", weights=tmp_path / "bad.safetensors", pretrained=True)


def test_module_is_copied():
    module = nn.Sequential(nn.Linear(2, 2)).double().train()
    loaded = from_module(module, {"input_size": (1, 1, 2)})
    assert module.training and module[0].weight.dtype == torch.float64
    assert not loaded.module.training and loaded.module[0].weight.dtype == torch.float32
    assert loaded.data_config["input_size"] == (1, 1, 2)
    assert loaded.source == ModelSource("module", "Sequential")
    with pytest.raises(ModelError, match="given as an object"):
        build_model(loaded.source)


def test_module_that_is_none_or_not_finite():
    with pytest.raises(ModelError, match="is a int"):
        from_module(3)  # type: ignore[arg-type]
    module = nn.Linear(2, 2)
    module.weight.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match="'weight'"):
        from_module(module)


def test_source_survives_json():
    source = ModelSource("timm", "test_vit", {"img_size": 64})
    assert ModelSource.from_json(json.loads(json.dumps(source.to_json()))) == source


def test_hash_sees_names_shapes_and_values():
    torch.manual_seed(0)
    base = nn.Linear(2, 3)
    seen = {weights_hash(base), weights_hash(nn.Sequential(base)), weights_hash(nn.Linear(3, 2))}
    again = weights_hash(base)
    base.weight.data[0, 0] += 1e-3
    assert again in seen and weights_hash(base) not in seen and len(seen) == 3
