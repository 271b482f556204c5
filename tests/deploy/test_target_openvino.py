"""The deployment target `openvino`: random mixed assignments of a small net, a transformer block and a mixer
block, loaded back as an artifact is.
"""

import pytest
import torch
from target_jobs import MAKERS, job_of
from torch.nn.functional import cosine_similarity

from mpsearch.deploy.artifact import open_artifact, write_artifact
from mpsearch.deploy.process import run_apart
from mpsearch.deploy.targets import TARGETS
from mpsearch.errors import CheckpointError
from mpsearch.hardware import identity
from mpsearch.hardware.openvino_nodes import ran_nodes

pytest.importorskip("openvino")
CHOICES = ("float", "W7A8", "W5A8", "W4A8", "W3A6", "W2A8", "W6A4", "W8A16", "W4A16", "W3A16")


def check(name, seed, folder):
    job, _, images = job_of(name, seed, CHOICES)
    target = TARGETS.create("openvino")
    folder.mkdir()
    assert target.write(job, folder) == []
    with torch.no_grad():
        want, got = target.reference(job)(images), target.load(folder, 1)(images)
    found = float(cosine_similarity(want, got).median())
    assert found > 0.999, (name, seed, found)


@pytest.mark.parametrize("name", MAKERS)
def test_random_assignments(name, tmp_path):
    for seed in range(6):
        check(name, seed, tmp_path / str(seed))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", MAKERS)
def test_two_hundred_random_assignments(name, tmp_path):
    for seed in range(100, 167):
        check(name, seed, tmp_path / str(seed))


@pytest.mark.parametrize("name", MAKERS)
def test_packed_weights_run_in_the_same_kernels_and_give_the_same_results(name, tmp_path):
    """As stock OpenVINO runs the file too, without any setting of ours."""
    import openvino

    job, _, images = job_of(name, 1, ("W2A8", "W3A8", "W4A8", "W5A8", "W6A8", "W7A8", "W4A16", "float"))
    ran = {}
    for weights in ("plain", "packed"):
        target, folder = TARGETS.create(f"openvino:weights={weights}"), tmp_path / weights
        folder.mkdir()
        assert target.write(job, folder) == []
        live = openvino.Core().compile_model(folder / "model.xml", "CPU")
        nodes = tuple((node.kind, node.precision, node.primitive) for node in ran_nodes(live))
        ran[weights] = (target.load(folder, 1)(images), target.executed(folder, 1), nodes)
    (plain, *kernels), (packed, *same) = ran["plain"], ran["packed"]
    assert torch.equal(plain, packed) and kernels == same
    assert any(node.endswith("I8") for node in same[0])
    sizes = [(tmp_path / weights / "model.bin").stat().st_size for weights in ran]
    assert sizes[1] < sizes[0]


def test_packed_weights_take_their_bits(tmp_path):
    sizes = {}
    for bits in range(2, 9):
        job, _, _ = job_of("cnn", 0, (f"W{bits}A8",))
        codes = [state.weight.codes.numel() for state in job.states.values()]
        for weights in ("plain", "packed"):
            TARGETS.create(f"openvino:weights={weights},overflow_fix=off").write(job, tmp_path)
            sizes[bits, weights] = (tmp_path / "model.bin").stat().st_size
        spared = sizes[bits, "plain"] - sizes[bits, "packed"]
        assert spared == pytest.approx(sum(codes) * (8 - bits) / 8, abs=16 * len(codes))


def test_an_artifact_runs_in_a_process_of_its_own(tmp_path):
    job, _, images = job_of("cnn", 0, CHOICES)
    artifact = write_artifact(tmp_path / "a", "openvino", job, {"label": "point"})
    assert set(artifact.manifest["files"]) == {"model.xml", "model.bin"}
    torch.testing.assert_close(
        run_apart(open_artifact(tmp_path / "a"), images[:4]),
        artifact.target.load(tmp_path / "a", 1)(images[:4]),
        rtol=1e-3,
        atol=1e-4,
    )
    assert any(op.startswith("Convolution:") for op in artifact.target.executed(tmp_path / "a", 1))
    (tmp_path / "a" / "model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="model"):
        open_artifact(tmp_path / "a")


@pytest.mark.parametrize("name", MAKERS)
def test_weights_that_overflow_without_vnni_are_stored_with_seven_bits(name, tmp_path):
    job, assignment, images = job_of(name, 0, ("W8A8",))
    target = TARGETS.create("openvino:overflow_fix=on")
    (note,) = target.write(job, tmp_path)
    assert (
        note.startswith(f"{len(assignment)} units, such as")
        and "overflow 16 bits" in note
        and note.endswith("they are stored with 7 bits.")
    )
    assert all(int(state.weight.codes.abs().max()) <= 64 for state in target.states(job).values())
    with torch.no_grad():
        got, want, eight = (
            target.load(tmp_path, 1)(images),
            target.reference(job)(images),
            TARGETS.create("packed").reference(job)(images),
        )
    assert float(cosine_similarity(want, got).median()) > 0.999
    assert float((want - eight).abs().max()) > 0 and float(cosine_similarity(want, eight).median()) > 0.99


def test_weights_that_overflow_elsewhere_are_told(tmp_path):
    job, _, _ = job_of("cnn", 0, ("W8A8",))
    target = TARGETS.create("openvino:overflow_fix=off")
    (note,) = target.write(job, tmp_path)
    assert ("such as this one" in note) == identity().saturates and note.endswith(
        "overflow_fix=on stores them with 7 bits."
    )
    assert target.states(job) == dict(job.states)
