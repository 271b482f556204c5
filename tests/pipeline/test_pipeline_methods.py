"""Reconstruction as `run` uses it: methods by name, fixed ends, a bound on memory, and resuming inside a
method of two phases.
"""

import re

import pytest
import torch

from mpsearch.errors import BudgetError, OptionError, UnknownNameError
from mpsearch.pipeline import run
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pipeline.steps.ranges import calibrate_subject
from mpsearch.pipeline.steps.workshop import Workshop


class Listening(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said = []

    def say(self, text: str) -> None:
        self.said.append(text)


def workshop(config, folder, progress=None):
    subject = load_subject(config, Silent())
    return Workshop(
        subject, calibrate_subject(subject, config, Silent()), config, Study(folder), progress or Silent()
    )


def uniform(shop, text="W4A4"):
    from mpsearch.problem import Assignment, Candidate

    return Assignment(tuple((unit, Candidate.parse(text)) for unit in shop.subject.units))


def test_first_and_last_unit_are_fixed_and_the_others_are_not(settings, tmp_path):
    result = run(settings(first_last_bits=8, budgets=("4bits",), a_bits=4), Study(tmp_path))
    assignment = result["best"]["assignment"]
    assert assignment["stem.0"] == assignment["head"] == "W8A8"
    assert {choice[-2:] for unit, choice in assignment.items() if unit not in ("stem.0", "head")} == {"A4"}
    assert any(not choice.startswith("W8") for choice in assignment.values())


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"first_last_bits": 9}, OptionError, "must be 2 to 8"),
        ({"method": "qdorp"}, UnknownNameError, "Did you mean 'qdrop'"),
        ({"method": "qdrop:keep_prob=2"}, OptionError, "over 0 and at most 1"),
        ({"reconstruction_memory": "2ms"}, OptionError, "must be a size"),
        ({"reconstruction_memory": "much"}, BudgetError, "not a quantity"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings, changes, error, text):
    with pytest.raises(error, match=text):
        settings(**changes)


def test_a_small_memory_uses_fewer_images_and_says_so(settings, tmp_path):
    heard = Listening()
    shop = workshop(settings(reconstruction_memory="800kB"), tmp_path, heard)
    learned = shop.reconstructed(uniform(shop), "small")
    assert set(learned) == set(shop.subject.units)
    assert len(heard.said) == 1
    pattern = (
        r"Reconstruction uses (\d+) of (\d+) calibration images, and takes up to ([\d.]+) MB "
        r"\(.*\) of memory; its bound is 800kB\."
    )
    used, of, taken = re.fullmatch(pattern, heard.said[0]).groups()
    assert 1 <= int(used) < int(of) == 16
    assert float(taken) <= 0.8


def test_a_memory_that_one_image_exceeds_is_refused_with_what_it_takes(settings, tmp_path):
    shop = workshop(settings(reconstruction_memory="60kB"), tmp_path)
    with pytest.raises(
        OptionError, match=r"takes .* with one image, and may take 60kB\. Raise --reconstruction-memory"
    ):
        shop.reconstructed(uniform(shop), "small")


@pytest.mark.parametrize(
    "changes", [{"method": "nearest"}, {"method": "qdrop:start=nearest", "iterations": 0}]
)
def test_what_is_not_learned_is_not_rehearsed(settings, tmp_path, changes):
    heard = Listening()
    shop = workshop(settings(reconstruction_memory="60kB", **changes), tmp_path, heard)
    shop.reconstructed(uniform(shop), "nearest")
    assert not heard.said


@pytest.mark.parametrize(("method", "after"), [("qdrop", 1), ("qdrop", 3), ("brecq", 3), ("brecq", 6)])
def test_interrupted_reconstruction_goes_on_to_the_same_states(
    settings, tmp_path, monkeypatch, method, after
):
    config = settings(method=method)
    whole = workshop(config, tmp_path / "whole")
    expected = whole.reconstructed(uniform(whole), "whole")
    from mpsearch import files

    written, save = [], files.replacing

    def stop(path):
        written.append(path)
        if len(written) > after:
            raise KeyboardInterrupt
        return save(path)

    cut = workshop(config, tmp_path / "cut")
    monkeypatch.setattr(files, "replacing", stop)
    with pytest.raises(KeyboardInterrupt):
        cut.reconstructed(uniform(cut), "cut")
    monkeypatch.setattr(files, "replacing", save)
    found = workshop(config, tmp_path / "cut").reconstructed(uniform(cut), "cut")
    assert len(written) == after + 1
    for unit, state in expected.items():
        assert torch.equal(found[unit].weight.codes, state.weight.codes)
        assert torch.equal(found[unit].activation.scale, state.activation.scale)


def test_an_objective_given_twice_is_refused(settings, tmp_path):
    with pytest.raises(OptionError, match="Give each once"):
        run(settings(objectives=("output_mse:images=8", "output_mse:images=4")), Study(tmp_path))
