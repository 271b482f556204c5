import os
import subprocess
import sys

import pytest

PROGRAM = "import sys, os; from mpsearch.spinning import spin_briefly; {}; print(spin_briefly(), {})"
TOLD = "os.environ.get('GOMP_SPINCOUNT')"


def _said(first, **environment):
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", PROGRAM.format(first, TOLD)]
    return subprocess.run(
        command, env=kept | environment, capture_output=True, text=True, check=True
    ).stdout.split()


def test_threads_are_told_to_sleep_before_torch_is_loaded():
    assert _said("pass") == ["True", "1000"]
    assert _said("sys.modules['torch'] = None") == ["False", "None"]


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "7")])
def test_what_the_environment_says_of_waiting_is_not_changed(name, value):
    found = _said("pass", **{name: value})
    assert found == ["False", value if name == "GOMP_SPINCOUNT" else "None"]


def test_the_command_line_tells_it():
    program = (
        "import os, sys; sys.argv = ['mpsearch', '--version']\n"
        "from mpsearch.cli import main\n"
        "try: main()\n"
        f"finally: print({TOLD})"
    )
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=kept, capture_output=True, text=True, check=False
    )
    assert done.stdout.split()[-1] == "1000", done.stderr
