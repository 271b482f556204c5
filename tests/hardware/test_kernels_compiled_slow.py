"""Every kernel is compiled for GPUs that are not there: down to the machine code of sm_80, sm_90 and sm_100,
with the matrix instructions that are meant.
"""

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

COMPILE = """
import json, re, subprocess, sys, tempfile
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from mpsearch.hardware.kernels import device_code

def build(arch, kernel, constants, kinds, options):
    function = getattr(device_code, kernel)
    signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in function.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(function.arg_names) if signature[name].startswith("*")}
    built = compile(ASTSource(function, signature, constants, aligned), target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"]); file.flush()
        sass = subprocess.run([triton.knobs.nvidia.nvdisasm.path, "-c", file.name], capture_output=True, text=True, check=True).stdout
    names = sorted(set(re.findall(r"\\b(IMMA|IGMMA|UTCIMMA|HMMA|HGMMA|UTCHMMA)\\b", sass)))
    return {"mma": names, "shared": built.metadata.shared, "spills": "STL" in sass, "lines": sass.count(";")}

for line in sys.stdin:
    name, request = json.loads(line)
    print(json.dumps([name, build(*request)]), flush=True)
"""
INTEGER = {80: "IMMA", 90: "IGMMA", 100: "UTCIMMA"}
FLOAT = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
GEOMETRY = {
    "STRIDE_H": 1,
    "STRIDE_W": 1,
    "PAD_H": 1,
    "PAD_W": 1,
    "DILATION_H": 1,
    "DILATION_W": 1,
    "TAPS_W": 3,
}
POINTERS = {"w": "*u8", "scale": "*fp32", "bias": "*fp32", "corr": "*i32", "zero": "*i32"}


def product(arch, bits, integer, conv, *, zero=False, even=True, split=1, tile=(128, 128, 64), warps=8):
    constants = {
        "BITS": bits,
        "INTEGER": integer,
        "ZERO": zero,
        "BIAS": True,
        "CONV": conv,
        "EVEN": even,
        "GROUP_CHANNELS": 64 if conv else 1,
        **GEOMETRY,
    }
    constants |= {"BLOCK_M": tile[0], "BLOCK_N": tile[1], "BLOCK_K": tile[2], "SPLIT_K": split, "GROUP_M": 8}
    kinds = {
        **POINTERS,
        "a": "*i8" if integer else "*fp16",
        "y": "*fp16",
        "partial": "*i32" if integer else "*fp32",
    }
    return [arch, "product_kernel", constants, kinds, {"num_warps": warps, "num_stages": 3}]


def others(arch, integer):
    """Depthwise, sum and quantise."""
    constants = {
        "BITS": 5,
        "INTEGER": integer,
        "ZERO": True,
        "BIAS": True,
        "TAPS_H": 3,
        "BLOCK_P": 16,
        "BLOCK_C": 64,
        **GEOMETRY,
    }
    yield (
        "depthwise",
        [
            arch,
            "depthwise_kernel",
            constants,
            {**POINTERS, "a": "*i8" if integer else "*bf16", "y": "*bf16"},
            {},
        ],
    )
    constants = {"INTEGER": integer, "BIAS": True, "SPLIT_K": 4, "BLOCK_M": 32, "BLOCK_N": 64}
    yield (
        "sum",
        [
            arch,
            "sum_kernel",
            constants,
            {**POINTERS, "partial": "*i32" if integer else "*fp32", "y": "*fp16"},
            {},
        ],
    )
    floats = dict.fromkeys(("scale", "zero", "top", "HALF"), "fp32")
    yield (
        "quantize",
        [
            arch,
            "quantize_kernel",
            {"PAD_H": 1, "PAD_W": 1, "BLOCK": 1024},
            {"x": "*fp16", "codes": "*i8", **floats},
            {},
        ],
    )


def requests(arch):
    found = {}
    for integer in (True, False):
        kind = "int8" if integer else "fp16"
        for bits in range(1, 9):
            found[f"gemm w{bits} {kind}"] = product(arch, bits, integer, False)
            found[f"conv w{bits} {kind}"] = product(arch, bits, integer, True)
        found[f"ragged {kind}"] = product(
            arch, 5, integer, True, zero=True, even=False, split=4, tile=(16, 64, 128), warps=4
        )
        found |= {f"{name} {kind}": request for name, request in others(arch, integer)}
    return found


@pytest.fixture(scope="module", params=[80, 90, 100], ids="sm_{}".format)
def built(request, tmp_path_factory):
    """By name what each kernel became on one architecture."""
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
    }
    lines = "".join(json.dumps(pair) + "\n" for pair in requests(request.param).items())
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        input=lines,
        capture_output=True,
        text=True,
        env=environment,
        timeout=1700,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return request.param, dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize("conv", ["gemm", "conv"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_products_use_the_matrix_units(built, bits, conv):
    arch, kernels = built
    for kind, meant in (("int8", INTEGER[arch]), ("fp16", FLOAT[arch])):
        kernel = kernels[f"{conv} w{bits} {kind}"]
        assert kernel["mma"] == [meant], kernel
        assert kernel["shared"] <= 163 * 1024
        assert arch != 90 or not kernel["spills"]  # at this tile the others spill some


def test_zero_points_masks_and_parts_compile_to_products_too(built):
    _, kernels = built
    assert kernels["ragged int8"]["mma"] and kernels["ragged fp16"]["mma"]


def test_kernels_without_products(built):
    _, kernels = built
    for kind in ("int8", "fp16"):
        for name in ("depthwise", "sum", "quantize"):
            assert kernels[f"{name} {kind}"]["mma"] == [] and kernels[f"{name} {kind}"]["lines"] > 10
