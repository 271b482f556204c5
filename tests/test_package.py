"""The package itself: its short public surface, and what importing it does not do."""

import subprocess
import sys

import mpsearch
import mpsearch.search
from mpsearch.deploy import load


def test_the_public_surface_is_short():
    assert mpsearch.__all__ == ["__version__", "load", "search"]
    assert mpsearch.load is load


def test_search_is_a_package_and_a_function():
    assert mpsearch.search.solve is not None
    assert callable(mpsearch.search)


def test_the_solvers_import_no_torch_and_importing_starts_no_cuda():
    code = "import mpsearch.search, sys; assert 'torch' not in sys.modules; import mpsearch.pipeline, torch; assert not torch.cuda.is_initialized()"
    subprocess.run([sys.executable, "-c", code], check=True)
