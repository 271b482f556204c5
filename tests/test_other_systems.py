"""What Linux alone has is not needed to import, to solve, or to run for the packed checkpoint: such modules are
hidden from a new process, and the locks are those of Windows.
"""

import json
import subprocess
import sys
import textwrap

PROGRAM = """
import os, sys, types

import numpy, psutil, scipy.optimize, torch, timm, onnx, onnxruntime, optuna, sqlalchemy, greenlet
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
for name in ("sched_setaffinity", "sched_getaffinity", "kill", "getuid"):
    delattr(os, name)
held = {}  # file -> who has its first byte

class Locking(types.ModuleType):
    LK_NBLCK = 2

    def locking(self, number, kind, size):
        assert (kind, size) == (2, 1)
        key = os.fstat(number).st_ino
        other = held.get(key)
        if other is not None and other != number:
            try:
                if os.fstat(other).st_ino == key:
                    raise PermissionError(13, "Permission denied")
            except PermissionError:
                raise
            except OSError:
                pass  # it was closed
        held[key] = number

sys.modules["msvcrt"] = Locking("msvcrt")

import importlib, pkgutil
import mpsearch
for found in pkgutil.walk_packages(mpsearch.__path__, "mpsearch."):
    if not found.name.startswith(("mpsearch.__main__", "mpsearch.testing", "mpsearch.hardware.kernels")):
        importlib.import_module(found.name)

import pathlib
assert mpsearch.files._unix is None
from mpsearch import files
with open("a", "w") as one, open("a", "w") as two:
    assert files.lock(one) and not files.lock(two)

real = pathlib.Path.read_text
def elsewhere(path, *arguments, **named):
    if str(path).startswith("/proc/"):
        raise FileNotFoundError(path)
    return real(path, *arguments, **named)
pathlib.Path.read_text = elsewhere
is_file = pathlib.Path.is_file
pathlib.Path.is_file = lambda path: not str(path).startswith("/proc/") and is_file(path)

from mpsearch.cli import main
def call(*arguments):
    sys.argv = ["mpsearch", *arguments]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, arguments

common = ["--model", "net.py:net", "--data", "images.npz", "--calibration-images", "16", "--search-images", "8"]
call("run", "--budget", "5bits", "--target", "packed", "--trials", "2", "--polish", "0", *common, "--name", "x")
call("solve", "studies/x", "--budget", "4bits")
call("score", *common, "--objective", "weight_mse")
"""
NET = """
from torch import nn
def net():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    model.pretrained_cfg = {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0,
                            "interpolation": "bilinear"}
    return model
"""


def test_a_system_without_what_linux_has_solves_scores_and_runs_for_the_packed_checkpoint(tmp_path):
    import numpy as np

    (tmp_path / "net.py").write_text(textwrap.dedent(NET))
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x=images, y=np.arange(60) % 4)
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    best = json.loads((tmp_path / "studies" / "x" / "best.json").read_text())
    assert (tmp_path / "studies" / "x" / "artifact" / "model.safetensors").stat().st_size == best["measured"][
        "size_bytes"
    ]
