"""The page says what the saved results say, loads nothing, escapes everything, and refuses what is not a
finished study.
"""

from html.parser import HTMLParser
from pathlib import Path

import pytest
from saved_study import EVIL, save, study_files

from mpsearch.errors import StudyError
from mpsearch.problem import Budget
from mpsearch.report import write_report


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return save(tmp_path / "study", study_files(timed=True, labelled=True))


class Tags(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data


def parsed(path: Path) -> Tags:
    return Tags(write_report(path).read_text())


def test_says_the_saved_numbers(study: Path) -> None:
    text = parsed(study).text
    # 1500 bytes of 1500; 90.25 % of 400: standard error sqrt(0.9025 * 0.0975 / 400) = 1.483 points; float 91
    # %: 0.75 points above
    assert "Budget 1.5kB kept: measured 1,500 bytes, 0 bytes (0.00%) under the limit" in text
    assert "90.25% ± 1.48" in text and "0.75 points below the float model's 91.00% ± 1.43" in text
    # size 4321 / 1500 = 2.88, latency 3333 / 987.6 = 3.37
    assert "2.9×\nsmaller than float" in text and "3.4×\nfaster than float" in text
    for expected in (
        "88.75%",
        "0.01234",
        "0.00567",
        "1,800 B",
        "0.988 ms",
        "predicted 1.050 ms",
        "3.333 ms",
        "over 1.5kB",
        "Some CPU",
        "feedbeef",
        "c0ffee",
    ):
        assert expected in text


def test_one_chosen_row_and_the_largest_leftovers(study: Path) -> None:
    page = parsed(study)
    assert sum(tag == "mark" for tag, _ in page.tags) == 1
    # 26 tensors: the 20 largest by name, the other 6 (4 + 8 + ... + 24 bytes) as one row; 4 * 325 + 3000 +
    # 123 in all
    assert "6 smaller tensors84" in page.text and "sum4,423" in page.text and "bias24" in page.text
    assert "attn.matmul0" in page.text


def test_a_broken_budget_is_said(study: Path) -> None:
    contents = study_files(timed=True, labelled=True)
    contents["best.json"]["measured"]["size_bytes"] = 1600  # type: ignore[index]
    assert "BROKEN: measured 1,600 bytes, 100 bytes (6.67%) over" in parsed(save(study, contents)).text


def test_a_latency_counts_as_further_processes_take_it(study: Path) -> None:
    contents = study_files(timed=True, labelled=True)
    best, rows = contents["best.json"], contents["results.json"]["rows"]  # type: ignore[index]
    contents["study.json"]["config"]["budgets"].append("1ms")  # type: ignore[index]
    best["budgets"].append(Budget.parse("1ms").to_json())
    best["artifact"]["latency"] = {
        "latency_us": 950.0,
        "latency_readings_us": [940.0, 950.0, 960.0],
        "latency_high_us": 990.0,
        "latency_high_share": 0.95,
    }
    best["measured"] |= {"latency_us": 950.0, "latency_high_us": 990.0}
    rows[1]["reconstructed"]["latency_high_us"] = 1010.0
    text = parsed(save(study, contents)).text
    assert (
        "Budget 1ms kept: measured 0.950 ms in 3 new processes, 95% of further ones below 0.990 ms, "
        "0.010 ms (1.00%) under the limit"
    ) in text
    assert (
        text.count("over 1.5kB, 1ms") == 2
    )  # the float model, and a row whose median of 0.988 ms is below the limit


def test_nothing_untrusted_becomes_markup(study: Path) -> None:
    page = parsed(study)
    assert "alert(1)" in page.text and "<script>alert" not in write_report(study).read_text()
    assert all("alert" not in (value or "") for _, attrs in page.tags for value in attrs.values())


def test_loads_nothing(study: Path) -> None:
    page = parsed(study)
    assert not [
        (tag, attrs) for tag, attrs in page.tags if {"src", "href", "srcset", "data", "action"} & set(attrs)
    ]
    assert not {"link", "iframe", "img", "object", "base"} & {tag for tag, _ in page.tags}
    assert write_report(study).read_text().count("plotly.js v") == 1


def test_figures_of_what_there_is(study: Path, tmp_path: Path) -> None:
    def drawn(path: Path) -> list[str | None]:
        return [a["data-figure"] for tag, a in parsed(path).tags if "data-figure" in a]

    # two trials are too few to compare predictions with, and nothing was learned
    assert drawn(study) == ["front", "bits", "sensitivity", "time", "latency", "history"]
    bare = study_files(timed=False, labelled=True)
    bare["front.json"]["measured"] = []  # type: ignore[index]
    assert drawn(save(tmp_path / "bare", bare)) == ["front", "bits", "sensitivity"]


def test_packed_target_has_no_latency_column(tmp_path: Path) -> None:
    text = parsed(save(tmp_path / "packed", study_files(timed=False, labelled=True))).text
    assert "latency" not in text and "onnxruntime" not in text
    assert "mpsearch.load" in text and "90.25%" in text


def test_without_labels_there_is_no_top1(tmp_path: Path) -> None:
    text = parsed(save(tmp_path / "unlabelled", study_files(timed=True, labelled=False))).text
    assert "top-1" not in text and "KL divergence to the float model is 0.00567 nats" in text
    assert "Without labels accuracy cannot be told" in text


def test_what_blocks_gained_is_folded(study: Path, tmp_path: Path) -> None:
    assert "What reconstruction gained" not in parsed(study).text  # a study of before does not say
    contents = study_files(timed=True, labelled=True)
    chosen = contents["results.json"]["rows"][2]  # type: ignore[index]
    gain = {
        "block": "stem",
        "phase": 0,
        "start_mse": 0.5,
        "learned_mse": 0.125,
        "steps": 1200,
        "calibrated": [],
        "kept": True,
    }
    chosen["gained"] = [gain, {**gain, "block": EVIL, "learned_mse": 0.75, "kept": False}]
    page = parsed(save(tmp_path / "gained", contents))
    assert "1 of 2 blocks are better than where they started, and keep what they learned" in page.text
    for expected in ("stem0.50.12525.0%kept1,200", f"{EVIL}0.50.75150.0%reverted1,200"):
        assert expected in page.text
    assert [a["data-figure"] for _, a in page.tags if "data-figure" in a].count("gains") == 1


def test_rows_that_are_evaluated_on_few_images_say_so(study: Path, tmp_path: Path) -> None:
    assert "What was not finished is evaluated on" not in parsed(study).text
    contents = study_files(timed=True, labelled=True)
    for row in contents["results.json"]["rows"][1:]:  # type: ignore[index]
        row["searched"]["metrics"]["images"] = 100
    text = parsed(save(tmp_path / "few", contents)).text
    assert "What was not finished is evaluated on 100 of the 400 evaluation images." in text


@pytest.mark.parametrize("name", ["study.json", "results.json", "best.json", "front.json", "problem.json"])
@pytest.mark.parametrize("damage", [None, "", "{", "[]", "\x00"])
def test_missing_and_damaged_files(study: Path, name: str, damage: str | None) -> None:
    (study / name).unlink() if damage is None else (study / name).write_text(damage)
    with pytest.raises(StudyError, match=name.replace(".", r"\.")):
        write_report(study)
    assert not (study / "report.html").exists()


def test_no_study(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="There is no study"):
        write_report(tmp_path / "nowhere")


def test_results_of_another_budget_are_refused(study: Path) -> None:
    contents = study_files(timed=True, labelled=True)
    contents["study.json"]["config"]["budgets"] = ["1kB"]  # type: ignore[index]
    with pytest.raises(StudyError, match="not finished"):
        write_report(save(study, contents))


def test_a_row_without_metrics_is_damage(study: Path) -> None:
    contents = study_files(timed=True, labelled=True)
    del contents["results.json"]["rows"][1]["searched"]["metrics"]  # type: ignore[index]
    with pytest.raises(StudyError, match="damaged"):
        write_report(save(study, contents))


def test_same_results_give_the_same_page(study: Path) -> None:
    first = write_report(study).read_bytes()
    assert write_report(study).read_bytes() == first
