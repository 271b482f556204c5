"""The words of the verdict follow from the figures."""

from pathlib import Path

import pytest
from saved_study import save, study_files

from mpsearch.report.saved import Saved, read_saved
from mpsearch.report.verdict import Loss, gains_of, loss_of, verdict_of


def judged(path: Path, **told: float) -> Saved:
    """A study whose choice has these metrics and measurements."""
    contents = study_files(timed=True, labelled=True)
    best = contents["best.json"]
    best["metrics"] |= {k: v for k, v in told.items() if k in best["metrics"]}
    best["measured"] |= {k: v for k, v in told.items() if k.endswith(("_bytes", "_us"))}
    contents["results.json"]["best"] = best
    contents["results.json"]["rows"][0]["searched"]["metrics"]["images"] = best["metrics"]["images"]
    return read_saved(save(path, contents))


def test_error_of_a_paired_difference() -> None:
    """1000 images, 20 decisions changed, half a point lost: sqrt((21/1002 - 0.005²) / 1002) = 0.457 points."""
    loss = Loss(0.5, 0.02, 1000)
    assert loss.error == pytest.approx(0.457, abs=1e-3)
    assert (loss.low, loss.high) == pytest.approx((-0.396, 1.396), abs=2e-3)
    assert loss.tie and loss.images_needed == 3300  # (1.96 * 0.457 / 0.5)² * 1000, to the next hundred


def test_no_change_in_few_images_is_no_proof() -> None:
    assert Loss(0.0, 0.0, 100).high > 1.5 and Loss(0.0, 0.0, 10000).high < 0.03


@pytest.mark.parametrize(
    ("told", "level", "words"),
    [
        ({"top1": 0.91, "agreement": 0.999, "images": 5000}, "yes", "no loss of accuracy can be told"),
        ({"top1": 0.906, "agreement": 0.994, "images": 5000}, "yes", "the loss of accuracy is at most"),
        ({"top1": 0.86, "agreement": 0.93, "images": 5000}, "no", "Only if you can spare 4."),
        ({"top1": 0.90, "agreement": 0.98, "images": 5000}, "maybe", "If you can spare a little"),
        ({"top1": 0.905, "agreement": 0.97, "images": 100}, "maybe", "100 images are too few"),
        ({"top1": 0.93, "agreement": 0.975, "images": 5000}, "yes", "accuracy did not fall"),
        ({"top1": 0.91, "agreement": 1.0, "images": 5000, "size_bytes": 1600}, "no", "1.5kB is not kept"),
    ],
)
def test_levels(tmp_path: Path, told: dict, level: str, words: str) -> None:
    found = verdict_of(judged(tmp_path / "s", **told))
    assert found.level == level and words in found.words


def test_neither_smaller_nor_faster(tmp_path: Path) -> None:
    slow = judged(tmp_path / "slow", latency_us=4000.0)
    assert [gain.better for gain in gains_of(slow)] == [True, False]
    assert any("1.20 times slower" in note for note in verdict_of(slow).because)
    contents = study_files(timed=True, labelled=True)
    contents["results.json"]["rows"][0]["searched"] |= {"size_bytes": 1400, "latency_us": 900.0}
    nothing = verdict_of(read_saved(save(tmp_path / "nothing", contents)))
    assert nothing.level == "no" and "neither smaller nor faster" in nothing.words


def test_a_slow_process_of_its_own_counts(tmp_path: Path) -> None:
    contents = study_files(timed=True, labelled=True)
    contents["best.json"]["artifact"]["onnx_fresh_latency_us"] = 3500.0
    gains = gains_of(read_saved(save(tmp_path / "s", contents)))
    assert not gains[1].better and "In a process of its own it took 3.500 ms" in gains[1].told()


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("a tie with best of the study, which ...", "mixed bits were not better by more than chance"),
        ("least loss on the search images", "no mixed one that was finished had less loss"),
    ],
)
def test_a_uniform_choice_is_said(tmp_path: Path, reason: str, says: str) -> None:
    contents = study_files(timed=True, labelled=True)
    contents["best.json"] |= {"label": "uniform W8A8", "indices": [0, 0, 0], "reason": reason}
    assert any(says in note for note in verdict_of(read_saved(save(tmp_path / "s", contents))).because)


def test_without_labels(tmp_path: Path) -> None:
    saved = read_saved(save(tmp_path / "s", study_files(timed=False, labelled=False)))
    assert loss_of(saved) is None and "Without labels" in verdict_of(saved).words
