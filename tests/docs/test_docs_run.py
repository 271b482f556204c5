"""Commands of the documentation are carried out, on a small study under the name that the pages use and with small
models in the place of large ones.

Not here: the tutorial (test_tutorial_slow.py), the first command as it is written (tests/test_readme_slow.py), and
blocks above which a reason stands.
"""

import importlib.util
import sys
import time
import types

import pytest
from doc_blocks import COMMANDS, all_blocks, commands
from doc_place import run_command
from doc_stand_ins import stood_in

from mpsearch.cli import run as run_module
from mpsearch.objectives import OBJECTIVES

CHEAP = ("solve", "report", "compare", "list", "run --resume")
ELSEWHERE = ("openvino", "list models")
"""Need a package that may be absent, or are as slow as importing all of timm."""


def typed():
    """Page -> the command lines of mpsearch on it, in their order, and where each stands."""
    found = {}
    for block in all_blocks():
        if block.language in COMMANDS and not block.reason and block.page != "docs/tutorial.md":
            for program, *words in commands(block):
                if program == "mpsearch":
                    found.setdefault(block.page, []).append((words, str(block)))
    return found


TYPED = typed()


@pytest.fixture
def registered(monkeypatch):
    """Objectives that a page shows are there, as files of the package would be."""
    members = dict(OBJECTIVES._members)
    module = types.ModuleType("shown")
    monkeypatch.setitem(sys.modules, "shown", module)  # where dataclasses look for their annotations
    for block in all_blocks():
        if "\n@OBJECTIVES.register" in block.text:
            exec(compile(block.text, str(block), "exec"), vars(module))
    yield
    OBJECTIVES._members.clear()
    OBJECTIVES._members.update(members)


@pytest.mark.filterwarnings("default")
def test_the_cheap_commands_do_what_they_say(place):
    lines = {" ".join(words): (words, where) for page in TYPED.values() for words, where in page}
    cheap = [
        lines[line] for line in lines if line.startswith(CHEAP) and not any(x in line for x in ELSEWHERE)
    ]
    assert len(cheap) >= 12
    _run(cheap)
    assert (
        place / "studies/default-15MB/earlier/5bits"
    ).is_dir()  # what --resume with another budget promises


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", TYPED)
def test_the_commands_of_a_page_are_carried_out_in_order(page, furnished, registered, monkeypatch):
    lines = TYPED[page]
    if any("openvino" in word for words, _ in lines for word in words) and not importlib.util.find_spec(
        "openvino"
    ):
        pytest.skip("needs openvino")
    monkeypatch.setattr(run_module, "began", time.monotonic)  # else a time limit counts from pytest's start
    _run(lines)


def _run(lines):
    for number, (words, where) in enumerate(lines):
        try:
            out = run_command(stood_in(words, f"made-{number}"))
        except AssertionError as error:
            raise AssertionError(f"{where}: {error}") from error
        assert out.strip() or words[0] in ("report", "run"), where
