"""The embedded default: resnet34 fitted on scikit-learn's digits, so that the first command works anywhere,
without a network.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import nn

from mpsearch import files
from mpsearch.data import load_images
from mpsearch.models import LoadedModel, load_model
from mpsearch.pipeline.progress import Progress

NAME = "resnet34"
MODEL_ARGS = {"num_classes": 10, "in_chans": 1}
DATA_CONFIG: dict[str, Any] = {
    "input_size": (1, 32, 32),
    "mean": (0.5,),
    "std": (0.5,),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "crop_mode": "squash",
}
EPOCHS, BATCH, RATE, SHIFT = 3, 32, 2e-3, 2
_RECIPE = {
    "epochs": EPOCHS,
    "batch": BATCH,
    "rate": RATE,
    "shift": SHIFT,
    "model": NAME,
    "args": MODEL_ARGS,
    "data": DATA_CONFIG,
    "recipe": 3,
}


def cache_folder() -> Path:
    """`MPSEARCH_CACHE`, else `mpsearch` in the user's cache folder."""
    given = os.environ.get("MPSEARCH_CACHE")
    return (
        Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mpsearch"
    )


def default_model(progress: Progress) -> LoadedModel:
    """The fitted model, from the cache, or fitted now: 30 s on two AVX512 cores, 73 s on two AVX2 ones."""
    path = cache_folder() / f"{NAME}-digits-{files.digest(_RECIPE)}.safetensors"
    if path.is_file():
        progress.say(f"Embedded model: {NAME} fitted on scikit-learn's digits, from {path}.")
    else:
        progress.say(
            f"Embedded model: {NAME} has no weights here, so it is fitted now on 1,257 of scikit-learn's "
            f"digits: half a minute on two fast cores, a little over one on slow ones (cached in {path})."
        )
        fitted = _fit(progress)
        with files.replacing(path) as beside:
            beside.write_bytes(save({k: v.contiguous() for k, v in fitted.state_dict().items()}))
    loaded = load_model(NAME, weights=path, kwargs=dict(MODEL_ARGS))
    return LoadedModel(loaded.module, loaded.source, dict(DATA_CONFIG))


def _fit(progress: Progress) -> nn.Module:
    """AdamW, one cycle, label smoothing 0.1, shifts of up to 2 pixels; the seed is fixed and torch's own
    generator left as found.
    """
    images = load_images("digits", DATA_CONFIG, split="train")
    inputs, labels = images.inputs().to(memory_format=torch.channels_last), images.require_labels(10)
    steps = len(images) // BATCH
    with torch.random.fork_rng(devices=[]), progress.task("fit the embedded model") as advance:
        torch.manual_seed(0)
        model = load_model(NAME, kwargs=dict(MODEL_ARGS)).module.train().to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps)
        for epoch in range(EPOCHS):
            order = torch.randperm(len(images))
            for step in range(steps):
                picked = order[step * BATCH : (step + 1) * BATCH]
                moved = torch.roll(inputs[picked], torch.randint(-SHIFT, SHIFT + 1, (2,)).tolist(), (2, 3))
                loss = F.cross_entropy(model(moved), labels[picked], label_smoothing=0.1)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
                advance(epoch * steps + step + 1, EPOCHS * steps)
    return model.eval()
