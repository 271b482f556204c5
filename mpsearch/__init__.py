"""mpsearch finds how many bits each layer of a trained model should have on a real device, and hands back the
model that keeps the promise.

`search` runs everything on an `nn.Module`; `load` opens a packed checkpoint. Both import torch when they are
first used, so that the solvers can be used without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpsearch.deploy import load
    from mpsearch.pipeline import search

__version__ = "0.1.0"
__all__ = ["__version__", "load", "search"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from mpsearch.deploy import load

        return load
    if name == "search":
        from mpsearch.pipeline import search

        return search
    raise AttributeError(f"module 'mpsearch' has no attribute {name!r}")
