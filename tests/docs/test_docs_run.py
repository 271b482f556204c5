"""Cheap commands of the documentation are carried out, on a small study under the name that the pages use."""

import pytest
from doc_blocks import COMMANDS, all_blocks, commands
from doc_place import run_command

CHEAP = ("solve", "report", "compare", "list", "run --resume")
INSTEAD = {
    "digits": "val.npz",
    "12MB": "4bits",
    "15MB": "5bits",
    "2.5bits": "3bits",
}
"""The pages' budgets are those of a larger model."""
ELSEWHERE = ("openvino", "modelopt", "nncf", "list models")
"""Need packages that may be absent, or are as slow as importing all of timm."""


def lines_of(begins):
    """Command lines that begin so, each once, in the order of the pages -> where they stand."""
    found = {}
    for block in all_blocks():
        if block.language not in COMMANDS or block.reason:
            continue
        for words in commands(block):
            line = " ".join(words[1:])
            if words[0] == "mpsearch" and line.startswith(begins) and not any(x in line for x in ELSEWHERE):
                found[tuple(INSTEAD.get(word, word) for word in words[1:])] = str(block)
    return found


@pytest.mark.filterwarnings("default")
def test_the_cheap_commands_do_what_they_say(place):
    lines = lines_of(CHEAP)
    assert len(lines) >= 12
    _run(lines)
    assert (
        place / "studies/default-15MB/earlier/5bits"
    ).is_dir()  # what --resume with another budget promises


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_commands_that_write_artifacts_do_what_they_say(place):
    best = place / "studies/default-15MB/artifact/assignment.json"
    (place / "assignment.json").write_bytes(best.read_bytes())
    _run(lines_of(("export", "materialize")))
    assert (place / "studies/default-15MB/export/onnx/best/model.onnx").is_file()
    _run(lines_of(("bench", "eval")))


def _run(lines):
    for words, where in lines.items():
        try:
            out = run_command(list(words))
        except AssertionError as error:
            raise AssertionError(f"{where}: {error}") from error
        assert out.strip() or words[0] in ("report", "run"), where
