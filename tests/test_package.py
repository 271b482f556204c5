"""The package itself: its short public surface, and what importing it does not do."""

import subprocess
import sys

import mpsearch
from mpsearch.api import search
from mpsearch.deploy import load
from mpsearch.result import Result


def test_the_public_surface_is_short():
    assert mpsearch.__all__ == ["Result", "__version__", "load", "search"]
    assert mpsearch.load is load and mpsearch.search is search and mpsearch.Result is Result


def test_the_solvers_import_no_torch_and_importing_starts_no_cuda():
    code = """
import mpsearch.solvers, mpsearch.study, sys
assert "torch" not in sys.modules
import mpsearch.pipeline, torch
assert not torch.cuda.is_initialized()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
