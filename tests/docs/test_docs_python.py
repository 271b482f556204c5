"""Python of the README and the documentation is run, page by page, on a small model."""

import re
import shutil
import sys
import types

import pytest
from doc_blocks import PAGES, ROOT, all_blocks, blocks

import mpsearch
from mpsearch.objectives import OBJECTIVES

BY_PAGE = [path for path in PAGES if any(b.language == "python" for b in blocks(path))]
WRITTEN = ("docs/tutorial.md",)
"""Pages whose blocks are files that a script runs: tests/docs/test_tutorial_slow.py."""


@pytest.mark.parametrize("block", [b for b in all_blocks() if b.language == "python"], ids=str)
def test_a_block_is_python(block):
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("path", BY_PAGE, ids=lambda path: path.relative_to(ROOT).as_posix())
@pytest.mark.filterwarnings("default")
def test_the_blocks_of_a_page_run_in_order(path, place, names, monkeypatch):
    page = path.relative_to(ROOT).as_posix()
    if page in WRITTEN:
        return
    members = dict(OBJECTIVES._members)
    monkeypatch.setattr(mpsearch, "search", _short(mpsearch.search), raising=False)
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # where dataclasses look for their annotations
    scope = vars(module)
    scope |= names
    try:
        for block in blocks(path):
            if block.language == "python" and not block.reason:
                for study in re.findall(r'study="([^"]+)"', block.text):
                    shutil.rmtree(study, ignore_errors=True)  # a page begins where no other has been
                exec(compile(block.text, str(block), "exec"), scope)
        for name, value in list(scope.items()):
            if name.startswith("test_"):  # a test that the page shows
                value()
    finally:
        OBJECTIVES._members.clear()
        OBJECTIVES._members.update(members)


def _short(search):
    """With fewer images and trials, and nothing timed, where a block does not say so; else as written."""
    few = {"calibration_images": 24, "search_images": 24, "trials": 3, "polish": 1, "target": "packed"}

    def short(*args, **settings):
        if settings.get("effort") == "quick":
            return search(*args, **{"calibration_images": 24, "search_images": 24, **settings})
        return search(*args, **{**few, **settings})

    return short
