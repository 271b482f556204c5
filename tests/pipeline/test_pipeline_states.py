"""Digests of unit states, and what a run evaluates on which images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mpsearch.pipeline import run
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.steps import evaluation
from mpsearch.pipeline.steps.learned import states_digest
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pipeline.steps.states import digest_of_states
from mpsearch.problem import Candidate
from mpsearch.quant import AffineParams, LogParams, QuantizedTensor, TwoRegionParams, UnitState
from mpsearch.reconstruct import Calibration

W8A8 = Candidate.parse("W8A8")


def affine(scale, zero_point=0, symmetric=False):
    return AffineParams(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), 8, symmetric)


def weight(first=1, scale=0.1):
    codes = torch.tensor([[first, 2], [3, 4]], dtype=torch.int16)
    return QuantizedTensor(codes, affine(scale, symmetric=True))


STATES = {
    "affine input": UnitState(W8A8, weight(), affine(0.5)),
    "another step": UnitState(W8A8, weight(), affine(0.25)),
    "another zero point": UnitState(W8A8, weight(), affine(0.5, 3)),
    "another code": UnitState(W8A8, weight(first=2), affine(0.5)),
    "another scale": UnitState(W8A8, weight(scale=0.2), affine(0.5)),
    "two regions": UnitState(W8A8, weight(), TwoRegionParams(torch.tensor(0.5), 2, 8, "sign")),
    "regions of another step": UnitState(W8A8, weight(), TwoRegionParams(torch.tensor(0.25), 2, 8, "sign")),
    "regions of another shift": UnitState(W8A8, weight(), TwoRegionParams(torch.tensor(0.5), 3, 8, "sign")),
    "regions of another split": UnitState(
        W8A8, weight(), TwoRegionParams(torch.tensor(0.5), 2, 8, "magnitude")
    ),
    "product": UnitState(W8A8, None, affine(0.5), affine(0.5)),
    "product, another left step": UnitState(W8A8, None, affine(0.25), affine(0.5)),
    "product, another right step": UnitState(W8A8, None, affine(0.5), affine(0.25)),
    "product of levels": UnitState(W8A8, None, LogParams(torch.tensor(0.5), 8), affine(0.5)),
    "float": UnitState(Candidate.parse("float")),
}


@pytest.mark.parametrize(
    "of", [digest_of_states, lambda states: states_digest(learned(states))], ids=["states", "learned"]
)
def test_states_that_compute_differently_have_digests_of_their_own(of):
    found = {name: of({"unit": state}) for name, state in STATES.items()}
    assert len(set(found.values())) == len(STATES)
    again = {name: of({"unit": replace(state)}) for name, state in STATES.items()}
    assert again == found


def learned(states):
    held = {(unit, state.candidate): state for unit, state in states.items()}
    return Calibration({}, {}, {}, learned=held)


class Listening(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def test_only_finalists_and_the_artifact_are_evaluated_on_all_evaluation_images(
    settings, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluation, "FEW", 10)
    subject = load_subject(settings(budgets=("5bits",)), Silent())
    images, right = subject.splits.evaluation, []
    for inputs, labels in images.batches(40):
        right = (subject.module(inputs).argmax(1) == labels).double()
    seen, real = [], evaluation.predict
    monkeypatch.setattr(
        evaluation,
        "predict",
        lambda module, images, **rest: (seen.append(len(images)), real(module, images, **rest))[1],
    )
    heard = Listening()
    result = run(settings(budgets=("5bits",), trials=3, iterations=2), Study(tmp_path), heard)
    floats, *rows = result["rows"]
    assert floats["searched"]["metrics"]["images"] == 40
    assert {row["searched"]["metrics"]["images"] for row in rows} == {10}
    for row in rows:  # on those 10 images a whole number is right
        found = 10 * (row["searched"]["metrics"]["top1"] - float(right.mean()) + float(right[:10].mean()))
        assert found == pytest.approx(round(found), abs=1e-4) and 0 <= round(found) <= 10
    done = [row for row in rows if "reconstructed" in row]
    assert {row["reconstructed"]["metrics"]["images"] for row in done} == {40}
    assert seen.count(40) == 1 + len(done)  # the float model, once, and each finalist
    assert result["best"]["metrics"]["images"] == 40
    told = [line for line in heard.said if "goes over 40 evaluation images" in line]
    assert [line.partition(" goes")[0] for line in told] == [
        "The float model",
        *["An assignment"] * len(done),
    ]  # the artifact's outputs are those of the finalist, and what is read back is compared on the first
    assert told[-1].startswith("An assignment goes over 40 evaluation images, which takes about ")
    assert float(told[-1].split()[-2]) >= 0 and told[-1].endswith(" s.")


def test_what_each_block_gained_is_in_the_results_and_survives_an_interruption(settings, tmp_path):
    config = settings(trials=2, polish=0, method="qdrop:start=nearest", iterations=3, search_states="nearest")
    result = run(config, Study(tmp_path))
    done = [row for row in result["rows"] if "reconstructed" in row]
    assert done and all("gained" not in row for row in result["rows"] if row not in done)
    for row in done:
        assert [gain["block"] for gain in row["gained"]] == [name for name, _ in result["blocks"]]
        assert all(
            gain["kept"] == (gain["learned_mse"] < gain["start_mse"]) and gain["start_mse"] > 0
            for gain in row["gained"]
        )
        assert {gain["steps"] for gain in row["gained"]} == {3}
    for path in list((tmp_path / "steps").glob("blocks-*/0/*.safetensors"))[::2]:
        path.unlink()  # as if the run had ended before them
    assert [row.get("gained") for row in run(config, Study(tmp_path))["rows"]] == [
        row.get("gained") for row in result["rows"]
    ]
