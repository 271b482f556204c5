"""Where models compute, no tensor is made without saying on which device: the default is the CPU, which a GPU's
tensors refuse to meet. `zeros_like`, `new_zeros` and their like take that of a tensor.
"""

import ast
from pathlib import Path

import pytest

import mpsearch

PACKAGES = ("quant", "models", "reconstruct", "objectives", "evaluate")
MAKERS = {
    *(
        "arange",
        "as_tensor",
        "asarray",
        "empty",
        "empty_strided",
        "eye",
        "full",
        "linspace",
        "logspace",
        "ones",
    ),
    *(
        "rand",
        "randint",
        "randn",
        "randperm",
        "scalar_tensor",
        "tensor",
        "tril_indices",
        "triu_indices",
        "zeros",
    ),
    *("bartlett_window", "hann_window", "from_numpy", "frombuffer", "Generator"),
}
ALLOWED = {
    ("quant/compensated.py", "from_numpy"): "LAPACK's own routine, for what lies in the CPU's memory alone",
    ("quant/packing.py", "from_numpy"): "bits are packed and unpacked by numpy, for files",
    ("reconstruct/rows.py", "frombuffer"): "memory that is mapped outside of the heap, of a CPU alone",
}
"""Without a device, and why."""


def _made_without(source: str) -> set[tuple[int, str]]:
    """Line and name of each call that makes a tensor, or a generator, and names no device."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        func, given = node.func, list(node.args)
        if isinstance(func, ast.Name) and func.id == "partial" and given:  # partial(torch.zeros, ...)
            func = given.pop(0)
        if not (isinstance(func, ast.Attribute) and func.attr in MAKERS):
            continue
        if not (isinstance(func.value, ast.Name) and func.value.id == "torch"):
            continue
        placed = any(k.arg == "device" for k in node.keywords) or (func.attr == "Generator" and given)
        if not placed:
            found.add((node.lineno, func.attr))
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_no_tensor_is_made_without_a_device(package):
    root = Path(mpsearch.__file__).parent
    files = sorted((root / package).rglob("*.py"))
    assert files
    odd = [
        f"{file.relative_to(root)}:{line}: torch.{name}"
        for file in files
        for line, name in sorted(_made_without(file.read_text()))
        if (str(file.relative_to(root)), name) not in ALLOWED
    ]
    assert not odd, f"Give them device=, or take zeros_like, new_zeros, ...: {odd}"


def test_the_look_at_the_source_sees_what_it_should():
    source = """
torch.zeros(3)
torch.zeros(3, device=x.device)
torch.Generator()
torch.Generator("cpu")
partial(torch.ones, 2)
partial(torch.ones, 2, device=d)
x.new_zeros(3)
"""
    assert _made_without(source) == {(2, "zeros"), (4, "Generator"), (6, "ones")}


def test_what_is_allowed_is_still_there():
    root = Path(mpsearch.__file__).parent
    for file, name in ALLOWED:
        assert any(found == name for _, found in _made_without((root / file).read_text()))
