import os
import platform
import subprocess
import sys

import pytest

GLIBC = platform.libc_ver()[0] == "glibc"
PROGRAM = """
import sys
import numpy as np
from mpsearch.allocator import give_freed_memory_back, keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

told = keep_freed_memory() if sys.argv[1] == "kept" else None
block = np.ones(2**27, np.uint8)
held = resident()
del block
print(told, held - resident() > 2**26)
blocks = [np.ones(2**24, np.uint8) for _ in range(8)]
held = resident()
del blocks[:-1]  # the last one stays: the heap cannot shrink below it
give_freed_memory_back()
print(held - resident() > 2**26)
"""


def _run(asked, **environment):
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"
    }
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, asked],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_a_freed_block_stays_with_the_process():
    assert _run("kept")[:2] == ["True", "False"]
    assert _run("plain")[:2] == ["None", "True"]


@pytest.mark.skipif(not GLIBC, reason="another C library")
@pytest.mark.parametrize("asked", ["kept", "plain"])
def test_what_lies_free_between_used_blocks_is_given_back(asked):
    assert _run(asked)[2] == "True"


@pytest.mark.parametrize("name", ["MALLOC_MMAP_MAX_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_what_the_environment_says_of_memory_is_not_changed(name):
    value = "glibc.malloc.arena_max=2" if name == "GLIBC_TUNABLES" else "2"
    assert _run("kept", **{name: value})[0] == "False"
