"""The seven steps, from a model and budgets to an artifact that keeps them. Each step writes what the next
one reads.

Nothing here is imported before it is asked for: settings and progress need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpsearch.pipeline.config import RunConfig
    from mpsearch.pipeline.jobs.profile import profile_model
    from mpsearch.pipeline.progress import Progress, Silent
    from mpsearch.pipeline.runner import run, search
    from mpsearch.pipeline.settings import DEFAULT_OBJECTIVES

_WHERE = {
    "DEFAULT_OBJECTIVES": "settings",
    "Progress": "progress",
    "RunConfig": "config",
    "Silent": "progress",
    "profile_model": "jobs.profile",
    "run": "runner",
    "search": "runner",
}
"""Public name -> the module that has it."""

__all__ = ["DEFAULT_OBJECTIVES", "Progress", "RunConfig", "Silent", "profile_model", "run", "search"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'mpsearch.pipeline' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mpsearch.pipeline.{_WHERE[name]}"), name)
