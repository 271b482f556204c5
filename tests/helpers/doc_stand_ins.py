"""Small stand-ins for the models, weights and images that the documentation's commands name, so that each command can
be carried out in seconds.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import torch
from doc_blocks import DATA, ROOT, all_blocks
from doc_place import MODEL
from PIL import Image
from safetensors.torch import save_file

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
_SEARCHES = ("--trials", "--effort", "--assign", "--time-limit", "attention-round")
"""What says how much is searched."""


def write_stand_ins(folder: Path) -> None:
    """Models with weights, folders and archives of images, the files that pages hold, and the bits of a study."""
    for name, text in FILES.items():
        scope: dict[str, object] = {}
        exec(text, scope)
        (folder / f"{name}.py").write_text(text)
        save_file(scope["build"]().state_dict(), folder / f"{name}.safetensors")  # type: ignore[operator]
    shutil.copy(folder / "my_model.safetensors", folder / "mine.safetensors")
    scope = {}
    exec(MODEL, scope)
    torch.save(scope["build"]().state_dict(), folder / "mine.pt")  # type: ignore[operator]
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
    shutil.copy(folder / "studies" / "default-15MB" / "artifact" / "assignment.json", folder)
    (folder / "bit_config.py").write_text(f"bit_config_dict = {{'NAME': {HAWQ!r}}}\n")
    for block in all_blocks():
        if block.title and block.page != "docs/tutorial.md" and block.language in ("python", *DATA):
            (folder / block.title).write_text(block.text)
    (folder / "examples").symlink_to(ROOT / "examples")
    _write_resnet20(folder)


def _write_images(folder: Path, number: int, classes: tuple[str, ...], draw: np.random.Generator) -> None:
    for i, picture in enumerate(draw.integers(0, 256, (number, 16, 16, 3)).astype(np.uint8)):
        path = folder / classes[i % len(classes)] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)


def _write_resnet20(folder: Path) -> None:
    """Weights by chance for the model of examples/assets.py."""
    from examples.assets import cifar_resnet20

    save_file(cifar_resnet20().state_dict(), folder / "cifar10_resnet20.safetensors")


def stood_in(words: list[str], name: str) -> list[str]:
    """A command of the pages with stand-ins in the place of what is too large or not there.

    Args:
        words: Behind `mpsearch`.
        name: Of a study that is made, where the command gives none.
    Returns: The same command, with other models, data and budgets, and fewer images and trials.
    """
    command, *rest = (INSTEAD.get(word, word) for word in words)
    if command not in ("run", "score", "import", "profile", "finetune"):
        return [command, *rest]
    model = "my_segmenter" if any("segmentation" in word for word in rest) else None
    for place, word in enumerate(rest):
        if word in FOR_MODEL:
            model = FOR_MODEL[word]
            rest[place] = f"{model}.py:build"
        elif word == "my_model.py:build" and model:
            rest[place] = f"{model}.py:build"
    if model == "my_segmenter":
        rest[rest.index("--data") + 1] = "images/plain"
    if model and "--weights" in rest:
        rest[rest.index("--weights") + 1] = f"{model}.safetensors"
    if command == "run" and "--resume" in rest:
        return [command, *rest]
    if command == "run" and "--model" not in rest and not rest[0].endswith(".toml"):
        rest += ["--model", "my_resnet.py:build", "--weights", "my_resnet.safetensors", "--data", "val.npz"]
    if command == "run" or command == "import":
        rest += ["--calibration-images", "24", "--search-images", "24"]
    if command in ("run", "import", "finetune") and not {"--name", "--resume", "--study"} & set(rest):
        rest += [] if command == "finetune" and "--model" not in rest else ["--name", name]
    if command == "run" and not set(_SEARCHES) & set(rest):
        rest += ["--trials", "2", "--polish", "1"]
    if "--preset" in rest and "--iterations" not in rest:
        rest += ["--iterations", "20"]
    if command == "finetune":
        rest += ["--batch-size", "16"]
    return [command, *rest]
