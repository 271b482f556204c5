"""A thousand damaged and hostile checkpoints: each loads or is refused with one clear error, in little
memory, and none ends the process.
"""

import json
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from mpsearch.deploy import PackedLayout, load_packed, save_packed
from mpsearch.errors import CheckpointError
from mpsearch.models import ModelSource, analyze, build_model, find_foldable, fold_batch_norm, trace_model
from mpsearch.problem import Assignment, Candidate
from mpsearch.reconstruct import calibrate

COUNT, ROOM = (
    1000,
    1 << 30,
)  # address space beyond what the process has when it starts: far below what a hostile shape asks for
HUGE = [2**31, 2**40, 2**62, 2**63, 10**30, -1, 0]


def write(folder):
    """A mixed checkpoint of timm's test_resnet with random weights."""
    source = ModelSource("timm", "test_resnet", {"num_classes": 10})
    torch.manual_seed(0)
    module = build_model(source)
    images = torch.randn(4, 3, 32, 32)
    pairs = find_foldable(trace_model(module, images[:1]), module)
    folded = fold_batch_norm(module, pairs)
    units = [layer.name for layer in analyze(folded, images[:1]).layers if layer.op != "matmul"]
    layout = PackedLayout.of(folded, units, source, pairs, {"input_size": (3, 32, 32)})
    draw = random.Random(1)
    assignment = Assignment(
        tuple(
            (unit, Candidate.parse(draw.choice(["W2A8", "W4A4", "W8A8", "W5A8/tensor", "float"])))
            for unit in units
        )
    )
    save_packed(
        folder / "good.safetensors", layout, folded, calibrate(folded, units, [images]).states(assignment)
    )
    return folder / "good.safetensors"


class Mutator:
    """Damaged copies of a checkpoint."""

    def __init__(self, path):
        self.data, self.tensors = path.read_bytes(), load_file(path)
        with safe_open(path, "pt") as file:
            self.about = json.loads(file.metadata()["mpsearch"])
        self.length = int.from_bytes(self.data[:8], "little")

    def one(self, k, draw):
        return (self.bytes_, self.cut, self.header, self.metadata, self.tensor, self.source)[k % 6](draw)

    def bytes_(self, draw):
        data = bytearray(self.data)
        for _ in range(draw.randint(1, 8)):
            at = draw.randrange(8 + self.length if draw.random() < 0.8 else len(data))
            data[at] = draw.choice(
                [data[at] ^ 1 << draw.randrange(8), draw.randrange(256), ord(draw.choice('0987,:{}[]"'))]
            )
        return bytes(data)

    def cut(self, draw):
        at = draw.randrange(len(self.data))
        return draw.choice(
            [
                self.data[:at],
                self.data[:at] + self.data[at + draw.randint(1, 64) :],
                self.data + bytes(draw.randint(1, 10_000)),
            ]
        )

    def header(self, draw):
        found = json.loads(self.data[8 : 8 + self.length])
        name = draw.choice([n for n in found if n != "__metadata__"])
        change = draw.randrange(5)
        if change == 0:
            found[name]["shape"] = [draw.choice(HUGE) for _ in range(draw.randint(1, 4))]
        elif change == 1:
            found[name]["dtype"] = draw.choice(["F64", "I8", "BOOL", "F8_E4M3", "U4", "", 5])
        elif change == 2:
            found[name]["data_offsets"] = [draw.choice([0, *HUGE]), draw.choice([1, *HUGE])]
        elif change == 3:
            found[draw.choice(["extra", "__metadata__", f"{name}x" * 500])] = found[name]
        else:
            del found[name]
        text = json.dumps(found).encode()
        length = draw.choice([len(text)] * 4 + [2**63, 2**40])
        return length.to_bytes(8, "little") + text + self.data[8 + self.length :]

    def metadata(self, draw):
        about = json.loads(json.dumps(self.about))
        unit, odd = (
            draw.choice(list(about["assignment"])),
            [None, -1, 2**70, 1e300, "", "W8A8", "W16A16", "W4A8/row", [], {}, "x" * 100_000, [[[]]]],
        )
        change = draw.randrange(5)
        if change == 0:
            about["assignment"][unit] = draw.choice(odd)
        elif change == 1:
            about["assignment"][
                draw.choice(["", ".", "fc.", "no.such", "fc.matmul0", "bn1", unit + ".weight"])
            ] = "W4A8"
        elif change == 2:
            about[draw.choice(["schema", "folded", "assignment", "source", "data_config"])] = draw.choice(odd)
        elif change == 3:
            about["folded"][draw.randrange(len(about["folded"]))] = draw.choice(
                [["fc", "conv1"], [unit, ""], odd, [unit]]
            )
        else:
            del about["assignment"][unit]
        return save(self.tensors, {"mpsearch": json.dumps(about)})

    def tensor(self, draw):
        tensors = {k: v.clone() for k, v in self.tensors.items()}
        name = draw.choice(list(tensors))
        value = tensors[name]
        change = draw.randrange(5)
        if change == 0:
            tensors[name] = value.reshape(-1)[: draw.randrange(value.numel() + 1)]
        elif change == 1:
            tensors[name] = value.double() if value.is_floating_point() else value.float()
        elif change == 2 and value.is_floating_point() and value.numel():
            value.view(-1)[draw.randrange(value.numel())] = draw.choice(
                [float("nan"), float("inf"), -1.0, 0.0, 1e38]
            )
        elif change == 3:
            del tensors[name]
        else:
            tensors[draw.choice(["extra", name + ".extra"])] = torch.zeros(draw.choice([0, 1, 4096]))
        return save(tensors, {"mpsearch": json.dumps(self.about)})

    def source(self, draw):
        """Another model, or arguments that would build an enormous one."""
        about = json.loads(json.dumps(self.about))
        name, arguments = draw.choice(
            [
                ("test_resnet", {"num_classes": draw.choice([2**20, 2**31, 10**12, -5])}),
                ("test_resnet", {"in_chans": draw.choice([2**16, 2**40])}),
                (
                    "test_vit",
                    {"embed_dim": draw.choice([2**14, 2**24, 2**40]), "depth": draw.choice([1, 10_000])},
                ),
                ("test_vit", {"depth": 100_000}),
                ("test_vit", {"img_size": draw.choice([2**12, 2**20])}),
                ("vit_giant_patch14_224", {}),
                ("resnet152", {"num_classes": 10}),
                ("test_resnet", {"pretrained": True}),
                ("test_resnet", {"checkpoint_path": "/etc/passwd"}),
                ("file.py:function", {}),
            ]
        )
        about["source"] = {
            "kind": draw.choice(["timm", "timm", "timm", "factory", "module"]),
            "name": name,
            "kwargs": arguments,
        }
        return save(self.tensors, {"mpsearch": json.dumps(about)})


def attack(path, count, seed):
    """Load `count` damaged copies under a limit on memory; how many loaded and were refused, and what went
    otherwise.
    """
    mutator, draw, target = Mutator(path), random.Random(seed), path.parent / "bad.safetensors"
    load_packed(path)
    held = (
        int(
            next(
                line
                for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith("VmSize")
            ).split()[1]
        )
        * 1024
    )
    resource.setrlimit(resource.RLIMIT_AS, (held + ROOM, held + ROOM))
    loaded, refused, odd = 0, 0, []
    for k in range(count):
        target.write_bytes(mutator.one(k, draw))
        try:
            load_packed(target)
            loaded += 1
        except CheckpointError as error:
            refused += 1
            if str(target) not in str(error):
                odd.append([k, "the file is not named", str(error)[:200]])
        except BaseException as error:
            odd.append([k, type(error).__name__, str(error)[:300]])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"loaded": loaded, "refused": refused, "odd": odd, "peak": peak}


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads this process's memory from /proc")
@pytest.mark.timeout(600)
def test_a_thousand_damaged_files_are_refused_or_load_and_none_crashes_the_process(tmp_path):
    path = write(tmp_path)
    done = subprocess.run(
        [sys.executable, __file__, str(path), str(COUNT)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["odd"] == []
    assert found["loaded"] + found["refused"] == COUNT and found["refused"] > 0.8 * COUNT


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_giant_patch14_224", {}),
        ("test_vit", {"embed_dim": 2**14}),
        ("test_vit", {"depth": 100_000}),
        ("resnet152", {}),
    ],
)
def test_a_model_that_the_file_cannot_fill_is_not_built(tmp_path, name, arguments):
    path = write(tmp_path)
    mutator = Mutator(path)
    mutator.about["source"] = {"kind": "timm", "name": name, "kwargs": arguments}
    path.write_bytes(save(mutator.tensors, {"mpsearch": json.dumps(mutator.about)}))
    with pytest.raises(CheckpointError, match=r"more than .* parameters, and holds"):
        load_packed(path)


if __name__ == "__main__":
    print(json.dumps(attack(Path(sys.argv[1]), int(sys.argv[2]), 0)))
