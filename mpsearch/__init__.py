"""mpsearch finds how many bits each layer of a trained model should have on a real device, and hands back the
model that keeps the promise.

`search` runs everything on an `nn.Module` and returns a `Result`, which any finished study can be made into;
`load` opens a packed checkpoint. They import torch when they are first used, so that the solvers can be used
without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpsearch.api import search
    from mpsearch.deploy import load
    from mpsearch.result import Result

__version__ = "0.1.0"
_WHERE = {"Result": "mpsearch.result", "load": "mpsearch.deploy", "search": "mpsearch.api"}
"""Public name -> the module that has it."""

__all__ = ["Result", "__version__", "load", "search"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'mpsearch' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
