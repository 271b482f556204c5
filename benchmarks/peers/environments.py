"""A virtual environment for each tool, layered on the one that runs this.

What is installed here (torch, timm, numpy) is seen there through a .pth file, so only what is missing or
must have another version is installed: seconds and megabytes, not minutes and gigabytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

REQUIREMENTS: dict[str, list[str]] = {
    "mpsearch": [],
    "mct": ["model-compression-toolkit==2.6.1"],
    "modelopt": ["nvidia-modelopt==0.47.0", "requests"],
    "nncf": ["nncf==3.4.0"],
    "aimet": ["aimet-torch==2.42.0"],
    "torchao": ["torchao==0.18.0"],
    "onnxruntime": ["onnx", "onnxruntime"],
}


def interpreter(peer: str, folder: Path) -> Path:
    """The Python of a peer's environment, which is made or completed first.

    Args:
        peer: Adapter, without its variant.
        folder: Where the environments are.

    Raises: subprocess.CalledProcessError: pip failed; its output is printed.
    """
    wanted = REQUIREMENTS[peer]
    if peer == "mpsearch":
        return Path(sys.executable)
    home = folder / peer
    python, ready = home / "bin" / "python", home / "ready.json"
    if ready.is_file() and json.loads(ready.read_text()) == wanted:
        return python
    print(f"environment of {peer}: {home}", file=sys.stderr, flush=True)
    if not python.exists():
        venv.create(home)  # pip is seen through the .pth file
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base = home / "lib" / version / "site-packages" / "base.pth"
    base.write_text(sysconfig.get_paths()["purelib"] + "\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True, stdout=sys.stderr)
    ready.write_text(json.dumps(wanted))
    return python
