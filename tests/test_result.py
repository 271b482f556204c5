"""`mpsearch.search` from a program: what it returns, prints, exports, and says of a wrong keyword."""

import pytest
import torch
from torch import nn

import mpsearch
from mpsearch.data import ImageSet
from mpsearch.errors import OptionError, StudyError, UserError


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    ).eval()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A result, its model, and what was said meanwhile."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=generator)
    samples = ImageSet(images, torch.arange(60) % 4, mean=(0.5,) * 3, std=(0.5,) * 3)
    model, said = net(), []
    quick = {"target": "packed", "trials": 2, "polish": 0, "objectives": ("weight_mse",)}
    quick |= {"calibration_images": 16, "search_images": 8, "search_states": "nearest", "method": "nearest"}

    class Heard(mpsearch.pipeline.Silent):
        def say(self, text):
            said.append(text)

    place = tmp_path_factory.mktemp("study") / "mine"
    result = mpsearch.search(model, samples, budgets=["5bits"], study=place, progress=Heard(), **quick)
    return result, model, said


def test_the_result_has_the_choice_and_the_front_as_records(found):
    result, _, said = found
    assert result.best.label in {row["label"] for row in result.rows} and said
    sizes = [record["size_bytes"] for record in result.front]
    damages = [record["damage"] for record in result.front]
    assert sizes == sorted(sizes) and damages == sorted(damages, reverse=True) and len(sizes) > 1
    assert result.front[0]["point"] == "front:0"
    assert result.assignment() == result.best.assignment
    assert {str(c) for c in result.assignment("W4A8").values()} == {"W4A8"}
    assert result.report.is_file() and result.data["best"]["label"] == result.best.label


def test_it_prints_as_text_and_as_a_table_for_notebooks(found):
    result, _, _ = found
    assert "[chosen]" in repr(result) and "5bits" in repr(result) and str(result.report) in repr(result)
    page = result._repr_html_()
    assert page.count("<tr>") == len(result.rows) + 1 and "[chosen]" in page
    assert result.plot().data and result.plot("bits").data
    with pytest.raises(OptionError, match=r"no figure 'fornt'.*front"):
        result.plot("fornt")


def test_it_gives_the_quantised_model_of_any_point(found):
    result, model, _ = found
    images = torch.rand(4, 3, 8, 8)
    best, wide = result.materialize(), result.materialize("W8A8", progress=False)
    with torch.no_grad():
        exact = model(images)
        off = [float((each(images) - exact).abs().max()) for each in (best, wide)]
    assert 0 < off[1] < 0.1 and off[0] > 0
    folder = result.export("packed", "front:0", progress=False)
    assert (folder / "model.safetensors").is_file()
    with pytest.raises(OptionError, match="is the model itself"):
        result.materialize("float")
    with pytest.raises(UserError, match="99999 is not one"):
        result.assignment("front:99999")


def test_a_finished_study_is_a_result_too(found, tmp_path):
    result, _, _ = found
    assert mpsearch.Result(result.path).rows == result.rows
    with pytest.raises(StudyError):
        mpsearch.Result(tmp_path / "none")


def test_a_wrong_keyword_is_told_with_the_nearest(tmp_path):
    with pytest.raises(OptionError, match=r"'trails' is no setting of search. Did you mean 'trials'\?"):
        mpsearch.search(net(), [], budgets=["5bits"], trails=3, study=tmp_path)


def test_progress_is_told_by_default(capsys):
    from mpsearch.pipeline.progress import Lines, Silent

    with Lines.of(True).task("think") as advance:
        advance(1, 2)
    assert capsys.readouterr().err.startswith("  think: ")
    assert isinstance(Lines.of(False), Silent)
    lines = Lines(every=-1.0)
    assert Lines.of(lines) is lines
    with lines.task("think") as advance:
        advance(1, 2)
    assert "think: 1 of 2 after" in capsys.readouterr().err


def test_what_comes_before_the_first_part_is_not_counted_in_what_is_left(capsys, monkeypatch):
    from mpsearch.pipeline import progress

    now = iter([0, 100, 102, 102])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with progress.Lines(every=5.0).task("think") as advance:
        advance(0, 4)
        advance(1, 4)
    assert capsys.readouterr().err.startswith("  think: 1 of 4 after 102 s, about 6 s left")
