"""The packed checkpoint: as large as predicted, bit for bit the same when read back, and refused with one
clear error when damaged.
"""

import json
import math
import random
import subprocess
import sys

import pytest
import torch
from odd_nets import TwoPlaces, job_of, relative
from safetensors.torch import load_file, save, save_file

from mpsearch.deploy import load_packed, read_description, save_packed
from mpsearch.deploy.targets import TARGETS
from mpsearch.errors import CheckpointError
from mpsearch.quant import install

MIXED = (
    *(f"W{b}A{a}" for b in range(2, 9) for a in (4, 8)),
    "W5A8/tensor",
    "W2A8/tensor",
    "W2A16",
    "W4A16",
    "W7A16/tensor",
    "float",
)
NETS = ("mobile", "test_resnet", "test_efficientnet", "test_vit")


@pytest.fixture
def written(prepared, tmp_path):
    """`written("mobile", seed)`: path, states and model of a mixed checkpoint."""

    def make(name, seed=0, choices=MIXED):
        net = prepared(name)
        states = net.calibration.states(net.mixed(seed, choices))
        path = tmp_path / f"{name}-{seed}.safetensors"
        save_packed(path, net.layout, net.module, states)
        return path, states, net

    return make


@pytest.mark.parametrize("name", NETS)
def test_the_file_is_as_large_as_predicted(prepared, tmp_path, name):
    net, path = prepared(name), tmp_path / "best.safetensors"
    for seed in range(6):
        assignment = net.mixed(seed, MIXED)
        said = save_packed(path, net.layout, net.module, net.calibration.states(assignment))
        assert said == path.stat().st_size == net.layout.size_bytes(assignment)
        assert net.layout.size_bytes(assignment) == net.layout.constant_bytes + sum(
            net.layout.unit_bytes(u, assignment[u]) for u in net.units
        )


@pytest.mark.parametrize(
    "text", ["W2A8", "W3A8", "W5A2", "W8A8", "W8A8/tensor", "W4A16", "W3A16/tensor", "float"]
)
def test_a_row_wastes_less_than_a_byte(prepared, text):
    net = prepared("mobile")
    for unit in net.units:
        weight, candidate = net.calibration.weights[unit], net.uniform(text)[unit]
        bits = candidate.w_bits or 32
        scales = (
            0
            if candidate.is_float
            else (0 if candidate.weight_only else 8)
            + 4 * (len(weight) if candidate.w_granularity == "channel" else 1)
        )
        dense = weight.numel() * bits / 8
        assert dense <= net.layout.unit_bytes(unit, candidate) - scales < dense + len(weight)


@pytest.mark.parametrize("name", NETS[1:])
def test_reading_back_gives_the_same_logits_bit_for_bit(written, name):
    path, states, net = written(name)
    with torch.no_grad():
        assert torch.equal(load_packed(path)(net.images), install(net.module, states)(net.images))
    assert {u: str(s.candidate) for u, s in states.items()} == read_description(path)["assignment"]


def test_a_new_process_computes_the_same_logits_bit_for_bit(written, tmp_path):
    path, states, net = written("test_resnet", 3)
    with torch.no_grad():
        save_file(
            {"images": net.images, "logits": install(net.module, states)(net.images)},
            tmp_path / "seen.safetensors",
        )
    code = (
        "import sys, torch, mpsearch; from safetensors.torch import load_file; "
        "torch.set_num_threads(int(sys.argv[3]));"
        "seen = load_file(sys.argv[2]); model = mpsearch.load(sys.argv[1]);"
        "torch.set_grad_enabled(False); sys.exit(0 if torch.equal(model(seen['images']), seen['logits']) "
        "else 9)"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            str(path),
            str(tmp_path / "seen.safetensors"),
            str(torch.get_num_threads()),
        ],
        check=False,
    )
    assert done.returncode == 0


def test_a_float_unit_keeps_its_weight_to_the_last_bit(written):
    path, states, net = written("mobile", 1, ("float", "W4A8"))
    loaded = load_packed(path, net.unfolded)
    floats = [u for u, s in states.items() if s.weight is None]
    assert floats and len(floats) < len(states)
    for unit in floats:
        assert torch.equal(loaded.get_submodule(unit).weight, net.module.get_submodule(unit).weight)


def test_a_factory_model_must_be_passed_and_its_own_weights_do_not_matter(written, mobile_net):
    path, states, net = written("mobile")
    with pytest.raises(CheckpointError, match=r"nets\.py:mobile.*mpsearch\.load\(.*model=\.\.\.\)"):
        load_packed(path)
    other = mobile_net()
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(load_packed(path, other)(net.images), install(net.module, states)(net.images))
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


def test_another_architecture_is_refused(written, prepared):
    path, _, _ = written("mobile")
    with pytest.raises(CheckpointError, match=str(path)):
        load_packed(path, prepared("test_resnet").unfolded)


def test_saving_twice_replaces_the_file_and_leaves_nothing_beside_it(written):
    path, _, _ = written("mobile", 0)
    again, _, net = written("mobile", 0)
    assert path == again and [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.stat().st_size == net.layout.size_bytes(net.mixed(0, MIXED))


def _refused(path, model, pattern):
    with pytest.raises(CheckpointError, match=pattern) as caught:
        load_packed(path, model)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    _refused(tmp_path / "none.safetensors", None, "There is no checkpoint")


def test_a_file_of_something_else_is_refused(written, tmp_path):
    path, _, net = written("mobile")
    held = path.read_bytes()
    (tmp_path / "text").write_text("not a checkpoint at all")
    (tmp_path / "empty").write_bytes(b"")
    save_file({"a": torch.zeros(3)}, tmp_path / "plain")
    for name, pattern in (("text", "damaged"), ("empty", "damaged"), ("plain", "mpsearch did not write")):
        _refused(tmp_path / name, net.unfolded, pattern)
    for cut in (
        1,
        7,
        8,
        9,
        100,
        net.layout.header_bytes - 1,
        net.layout.header_bytes,
        len(held) // 2,
        len(held) - 1,
    ):
        path.write_bytes(held[:cut])
        _refused(path, net.unfolded, "damaged")
    path.write_bytes(held + b"\0")
    _refused(path, net.unfolded, "damaged")


def _changed(path, change_tensors=None, change_metadata=None):
    from safetensors import safe_open

    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["mpsearch"])
    if change_tensors is not None:
        change_tensors(tensors)
    if change_metadata is not None:
        metadata = change_metadata(metadata) or metadata
    path.write_bytes(save(tensors, {"mpsearch": json.dumps(metadata)}))


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda t: t.pop("head.codes"), "'head.codes' is missing"),
        (lambda t: t.pop("head.bias"), "'head.bias' is missing"),
        (lambda t: t.update(odd=torch.zeros(2)), "no place for"),
        (lambda t: t.update({"head.codes": torch.zeros(10, 3, dtype=torch.uint8)}), r"\(10, 3\)"),
        (lambda t: t.update({"head.codes": t["head.codes"].float()}), "float32"),
        (lambda t: t.update({"head.bias": torch.zeros(11)}), r"\(11,\)"),
        (lambda t: t.update({"head.scale": -t["head.scale"]}), "scale of unit 'head'"),
        (lambda t: t.update({"head.scale": t["head.scale"] * math.inf}), "scale of unit 'head'"),
        (lambda t: t["head.scale"].__setitem__(0, 0.0), "scale of unit 'head'"),
        (lambda t: t["head.input"].__setitem__(0, math.nan), "scale of unit 'head'"),
        (lambda t: t["head.input"].__setitem__(1, 256.0), "zero point 256"),
        (lambda t: t["head.input"].__setitem__(1, -1.0), "zero point -1"),
        (lambda t: t["head.input"].__setitem__(1, 3.5), r"zero point 3\.5"),
        (lambda t: t["head.input"].__setitem__(1, 1e30), "zero point"),
    ],
)
def test_a_wrong_tensor_is_named(written, change, pattern):
    path, _, net = written("mobile", 0, ("W4A8",))
    _changed(path, change_tensors=change)
    _refused(path, net.unfolded, pattern)


def _set(key, value):
    return lambda m: m.update({key: value})


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (_set("schema", 99), "schema 99"),
        (lambda m: m.pop("schema"), "schema None"),
        (lambda m: [1], "schema 'list'"),
        (lambda m: m.pop("assignment"), "lacks"),
        (_set("assignment", None), "damaged"),
        (_set("assignment", ["W4A8"]), "damaged"),
        (_set("assignment", {}), "weight' is missing"),
        (lambda m: m["assignment"].update(head=4), "damaged"),
        (lambda m: m["assignment"].update(head="W9A8"), "w_bits is 9"),
        (lambda m: m["assignment"].update(head="W0A8"), "w_bits is 0"),
        (lambda m: m["assignment"].update(head="W4A1"), "a_bits is 1"),
        (lambda m: m["assignment"].update(head="W4A8/row"), "granularity 'row'"),
        (lambda m: m["assignment"].update(head="W8A8"), "head.codes"),
        (lambda m: m["assignment"].update(head="float"), "'head.weight' is missing"),
        (lambda m: m["assignment"].update(tail="W4A8"), "no unit 'tail'"),
        (lambda m: m["assignment"].update({"stem.1": "W4A8"}), r"no unit 'stem\.1'"),
        (_set("folded", None), "damaged"),
        (_set("folded", [["stem.0"]]), "damaged"),
        (_set("folded", [["stem.0", "none"]]), "no module 'none'"),
        (_set("folded", [[1, 2]]), "damaged"),
    ],
)
def test_wrong_metadata_is_refused(written, change, pattern):
    path, _, net = written("mobile", 0, ("W4A8",))
    _changed(path, change_metadata=lambda m: x if isinstance(x := change(m), list) else None)
    _refused(path, net.unfolded, pattern)


@pytest.mark.parametrize(
    ("source", "pattern"),
    [
        (None, "damaged"),
        ({"kind": "timm"}, "damaged"),
        ({"kind": "timm", "name": "no_such_model", "kwargs": {}}, "no_such_model"),
        ({"kind": "timm", "name": 7, "kwargs": {}}, "damaged"),
        ({"kind": "timm", "name": "test_resnet", "kwargs": {"num_classes": "ten"}}, "timm cannot build"),
        ({"kind": "timm", "name": "test_resnet", "kwargs": 5}, "damaged"),
        ({"kind": "timm", "name": "test_resnet", "kwargs": {"num_classes": 11}}, "fc"),
        ({"kind": "timm", "name": "test_vit", "kwargs": {}}, "no module|cannot be folded"),
        ({"kind": "module", "name": "Net", "kwargs": {}}, "pass it"),
    ],
)
def test_a_wrong_source_is_refused(written, source, pattern):
    path, _, _ = written("test_resnet", 0, ("W4A8",))
    _changed(path, change_metadata=_set("source", source))
    _refused(path, None, pattern)


def _with_header(path, change):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize(
    ("held", "claimed", "pattern"),
    [("W4A8", "W4A16", "no place for, such as 'head.input'"), ("W4A16", "W4A8", "'head.input' is missing")],
)
def test_an_input_that_is_quantised_and_one_that_is_not_are_not_taken_for_each_other(
    written, held, claimed, pattern
):
    path, _, net = written("mobile", 0, (held,))

    def lie(header):
        about = json.loads(header["__metadata__"]["mpsearch"])
        about["assignment"]["head"] = claimed
        header["__metadata__"]["mpsearch"] = json.dumps(about)

    _with_header(path, lie)
    _refused(path, net.unfolded, pattern)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("text", ["W4A16", "W3A16/tensor"])
def test_weights_alone_are_saved_to_the_byte_and_read_back_to_the_bit(written, name, text):
    path, states, net = written(name, 0, (text,))
    assert path.stat().st_size == net.layout.size_bytes(net.uniform(text))
    assert not [key for key in load_file(path) if key.endswith(".input")]
    with torch.no_grad():
        found = load_packed(path, net.unfolded)(net.images)
        assert torch.equal(found, install(net.module, states)(net.images)) and not torch.equal(
            found, net.module(net.images)
        )


@pytest.mark.parametrize("shape", [[2**40, 2**20], [2**63], [2**62, 4], [10**30], [-1, -24], [0], []])
def test_hostile_shapes_are_refused_without_allocating(written, shape):
    path, _, net = written("mobile", 0, ("W4A8",))
    _with_header(path, lambda h: h["head.codes"].update(shape=shape))
    _refused(path, net.unfolded, "damaged|head.codes")


def test_hostile_lengths_are_refused_without_allocating(written):
    path, _, net = written("mobile", 0, ("W4A8",))
    data = path.read_bytes()
    for length in (2**63, 2**40, len(data), 0):
        path.write_bytes(length.to_bytes(8, "little") + data[8:])
        _refused(path, net.unfolded, "damaged")


def test_deeply_nested_metadata_is_refused(written):
    path, _, net = written("mobile", 0, ("W4A8",))
    path.write_bytes(save(load_file(path), {"mpsearch": "[" * 100_000}))
    _refused(path, net.unfolded, "damaged")


def test_two_hundred_damaged_files_load_or_are_refused_but_never_crash(written, tmp_path):
    path, _, net = written("mobile", 0)
    data, draw, refused = path.read_bytes(), random.Random(0), 0
    header = net.layout.header_bytes
    target = tmp_path / "damaged.safetensors"
    for k in range(200):
        changed = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(header if k % 4 else len(changed))
            if draw.random() < 0.7:
                changed[at] = draw.choice(
                    [
                        changed[at] ^ (1 << draw.randrange(8)),
                        draw.randrange(256),
                        ord(draw.choice('0987,:{}[]"')),
                    ]
                )
            else:
                del changed[at : at + draw.randint(1, 40)]
        target.write_bytes(changed)
        try:
            loaded = load_packed(target, net.unfolded)
        except CheckpointError as error:
            assert str(target) in str(error)
            refused += 1
        else:
            with torch.no_grad():
                assert loaded(net.images[:1]).shape == (1, 10)
    assert 100 < refused <= 200


def test_a_layer_with_two_places_is_stored_once_with_its_corrected_bias(tmp_path):
    images = torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    job, _ = job_of("a layer with two places", TwoPlaces, "W3A8", images)
    assert "common.0" in job.states and job.states["common.0"].bias is not None
    assert not [name for name in job.layout.leftovers if name.startswith("blocks") and ".0." in name[7:]]
    save_packed(tmp_path / "model.safetensors", job.layout, job.module, job.states)
    module = TwoPlaces()
    again = load_packed(tmp_path / "model.safetensors", module)
    assert torch.equal(again(images), install(job.module, job.states)(images))
    assert relative(TARGETS.create("onnx"), job, images, tmp_path) < 0.02  # its nodes have the unit's name
