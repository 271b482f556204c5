"""What an import may bring with it: no torch for the solvers, no CUDA for anything."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mpsearch


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "name", ["mpsearch", "mpsearch.solvers", "mpsearch.study", "mpsearch.problem", "mpsearch.hardware"]
)
def test_numbers_import_no_torch(name):
    assert run(f"import sys, {name}; print('torch' in sys.modules, {name}.__name__)") == f"False {name}"


def test_search_is_a_plain_function_that_is_found_when_it_is_asked_for():
    """No module is in its place, whatever was imported before."""
    code = """
import sys, types
import mpsearch, mpsearch.solvers, mpsearch.study
before = "torch" in sys.modules
print(before, isinstance(mpsearch.search, types.FunctionType), mpsearch.search.__module__.split(".")[:2], "torch" in sys.modules)
"""
    assert run(code) == "False True ['mpsearch', 'api'] True"


def test_the_solvers_need_numpy_and_scipy_alone():
    code = """
import importlib.metadata, sys
import mpsearch.solvers
outside = {name.partition(".")[0] for name in sys.modules} & {"torch", "optuna", "sqlalchemy", "sklearn", "onnx", "timm", "typer"}
print(sorted(outside))
"""
    assert run(code) == "[]"


def test_importing_everything_does_not_start_cuda():
    code = """
import importlib, pkgutil, sys
import torch
started = []
torch.cuda._lazy_init = torch.cuda.init = lambda: started.append("init")
import mpsearch
names = [m.name for m in pkgutil.walk_packages(mpsearch.__path__, "mpsearch.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
mpsearch.load, mpsearch.search
print(len(names) > 40, started, torch.cuda.is_initialized())
"""
    assert run(code) == "True [] False"


def test_the_public_names_are_these():
    assert mpsearch.__all__ == ["Result", "__version__", "load", "search"]
    assert all(getattr(mpsearch, name) is not None for name in mpsearch.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mpsearch.nothing  # noqa: B018
