"""Small stand-ins for the models, weights and images that the documentation's commands name, so that each command can
be carried out in seconds.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from doc_blocks import DATA, ROOT, all_blocks
from doc_place import MODEL
from PIL import Image
from safetensors.torch import save_file
from torch import nn

RESNET = """
import torch
from timm.models.resnet import BasicBlock, ResNet


def build():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=4, channels=(8, 8, 16, 16))
    model.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.25,) * 3, "crop_pct": 1.0}
    return model
"""
VIT = """
import torch
from timm.models.vision_transformer import VisionTransformer


def build():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=4)
    model.pretrained_cfg = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.25,) * 3, "crop_pct": 1.0}
    return model
"""
SEGMENTER = """
import torch
from torch import nn


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        self.head = nn.Conv2d(8, 4, 1)
        self.pretrained_cfg = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.25,) * 3, "crop_pct": 1.0}

    def forward(self, x):
        found = self.body(x)
        return {"out": self.head(found), "features": found}


def build():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Segmenter()
"""
FILES = {"my_model": MODEL, "my_resnet": RESNET, "my_vit": VIT, "my_segmenter": SEGMENTER}
FOR_MODEL = {"resnet18": "my_resnet", "resnet50": "my_resnet", "vit_tiny_patch16_224": "my_vit"}
INSTEAD = {
    "digits": "val.npz",
    "12MB": "4bits",
    "15MB": "5bits",
    "2.5bits": "3bits",
    "4bits": "5bits",
    "40%": "90%",
    "1000": "20",
    "400": "20",
    "10min": "90s",
}
"""The pages' budgets are those of a larger model, and their steps those of a patient person."""
CLASSES = ("cat", "dog", "emu", "fox")
HAWQ = {
    "quant_init_block_convbn": 8,
    "quant_input": 8,
    "quant_act_output": 8,
    "quant_output": 8,
    **{f"stage{s}.unit1.quant_{name}": 4 for s in (1, 2, 3, 4) for name in ("act", "act1")},
    **{f"stage{s}.unit1.quant_{name}": 4 for s in (1, 2, 3, 4) for name in ("convbn1", "convbn2")},
    **{f"stage{s}.unit1.quant_identity_convbn": 8 for s in (1, 2, 3, 4)},
}
_FEW = {"--calibration-images": "24", "--search-images": "24"}
SMALLER = {"run": _FEW, "import": _FEW, "finetune": {"--batch-size": "16"}, "score": {}, "profile": {}}
"""Commands that name a model -> options by which they take seconds."""
_SEARCHES = {"--trials", "--effort", "--assign", "--time-limit", "attention-round"}
"""Words that say how much is searched."""


def write_stand_ins(folder: Path) -> None:
    """Models with weights, folders and archives of images, the files that pages hold, and the bits of a study."""
    from examples.assets import cifar_resnet20  # imports timm, which most tests that import this do not need

    for name, text in FILES.items():
        (folder / f"{name}.py").write_text(text)
        save_file(_built(text).state_dict(), folder / f"{name}.safetensors")
    shutil.copy(folder / "my_model.safetensors", folder / "mine.safetensors")
    torch.save(_built(MODEL).state_dict(), folder / "mine.pt")
    _write_data(folder)
    shutil.copy(folder / "studies" / "default-15MB" / "artifact" / "assignment.json", folder)
    (folder / "bit_config.py").write_text(f"bit_config_dict = {{'NAME': {HAWQ!r}}}\n")
    for block in all_blocks():
        if block.title and block.page != "docs/tutorial.md" and block.language in ("python", *DATA):
            (folder / block.title).write_text(block.text)
    (folder / "examples").symlink_to(ROOT / "examples")
    save_file(cifar_resnet20().state_dict(), folder / "cifar10_resnet20.safetensors")


def _built(text: str) -> nn.Module:
    scope: dict[str, Any] = {}
    exec(text, scope)
    return scope["build"]()


def _write_data(folder: Path) -> None:
    draw = np.random.default_rng(1)
    for part, number, classes in (("val", 96, CLASSES), ("train", 64, CLASSES), ("plain", 96, ("",))):
        _write_images(folder / "images" / part, number, classes, draw)
    with zipfile.ZipFile(folder / "train.zip", "w") as archive:
        for path in sorted((folder / "images" / "train").rglob("*.png")):
            archive.write(path, path.relative_to(folder / "images" / "train"))
    pixels = draw.integers(0, 256, (96, 32, 32, 3)).astype(np.uint8)
    for name in ("test.npz", "cifar10_png_subset.npz"):
        np.savez(folder / name, x=pixels, y=np.arange(96) % 4)
    (folder / "classes.json").write_text('{"cat": 3, "dog": 2, "emu": 1, "fox": 0}')


def _write_images(folder: Path, number: int, classes: tuple[str, ...], draw: np.random.Generator) -> None:
    for i, picture in enumerate(draw.integers(0, 256, (number, 16, 16, 3)).astype(np.uint8)):
        path = folder / classes[i % len(classes)] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)


def stood_in(words: list[str], name: str) -> list[str]:
    """A command of the pages with stand-ins in the place of what is too large or not there.

    Args:
        words: Behind `mpsearch`.
        name: Of a study that is made, where the command gives none.
    Returns: The same command, with other models, data and budgets, and fewer images and trials.
    """
    command, *rest = (INSTEAD.get(word, word) for word in words)
    mine = Path("latency_tables/mine.csv")
    if str(mine) in rest and not mine.exists():  # the table of another device: the one that was just measured
        measured = next(mine.parent.glob("*ort-cpu*.csv"))
        for suffix in (".csv", ".json"):
            shutil.copy(measured.with_suffix(suffix), mine.with_suffix(suffix))
    if command not in SMALLER or "--resume" in rest:
        return [command, *rest]
    rest = _with_small_model(rest)
    for option, value in SMALLER[command].items():
        rest += [option, value]
    if command == "run":
        if "--model" not in rest and not rest[0].endswith(".toml"):  # the embedded example
            rest += ["--model", "my_resnet.py:build", "--weights", "my_resnet.safetensors"]
            rest += ["--data", "val.npz"]
        rest += [] if "--name" in rest else ["--name", name]
        rest += [] if _SEARCHES & set(rest) else ["--trials", "2", "--polish", "1"]
        rest += ["--iterations", "20"] if "--preset" in rest else []
        # what takes microseconds scatters too much to be predicted; what is chosen is measured whole all the same
        timed = any(word.endswith("ms") and word[0].isdigit() for word in rest)
        rest += ["--allow-estimate"] if timed and "--allow-estimate" not in rest else []
    return [command, *rest]


def _with_small_model(words: list[str]) -> list[str]:
    """The model that is named by a small one of its kind, with its weights."""
    kinds = [FOR_MODEL[word] for word in words if word in FOR_MODEL]
    if any(word.startswith("segmentation") for word in words):
        kinds, words = ["my_segmenter"], [{"images/val": "images/plain"}.get(w, w) for w in words]
    if not kinds:
        return words
    held = list(words)
    for option, value in (("--model", f"{kinds[0]}.py:build"), ("--weights", f"{kinds[0]}.safetensors")):
        if option in held:
            held[held.index(option) + 1] = value
    return held
