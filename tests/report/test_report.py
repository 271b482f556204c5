"""The page says what the saved results say, loads nothing, escapes everything, and refuses what is not a
finished study.
"""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mpsearch.errors import StudyError
from mpsearch.problem import Budget, Candidate, Layer, Problem
from mpsearch.report import write_report
from mpsearch.report.figures import MAX_POINTS, thinned

EVIL = "<script>alert(1)</script>"
LIMIT = 1500.0


def metrics(top1: float | None, kl: float) -> dict:
    return {"images": 400, "kl": kl, "agreement": 0.99, "top1": top1, "loss": None if top1 is None else 0.2}


def problem(timed: bool) -> Problem:
    layers = (
        Layer(EVIL, "conv2d", (8, 3, 3, 3), ((1, 3, 8, 8),), (1, 8, 8, 8), 13824, "stem"),
        Layer("head", "linear", (10, 8), ((1, 8),), (1, 10), 80, "head"),
        Layer("attn.matmul0", "matmul", (), ((1, 4, 4), (1, 4, 4)), (1, 4, 4), 64, "head"),
    )
    pair = (Candidate(8, 8), Candidate(4, 8))
    costs = {"size_bytes": ((800.0, 500.0), (400.0, 250.0), (0.0,))}
    if timed:
        costs["latency_us"] = ((900.0, 900.0), (100.0, 100.0), (50.0,))
    return Problem(
        layers,
        (pair, pair, (Candidate.parse("float"),)),
        scores={"weight_mse": ((0.01, 0.2), (0.02, 0.3), (0.0,))},
        costs=costs,
        constants={"size_bytes": 600.0} | ({"latency_us": 0.0} if timed else {}),
    )


def row(table: Problem, label: str, indices: list[int], timed: bool, labelled: bool) -> dict:
    cost = table.cost(indices).to_json()
    written = {"size_bytes": int(cost["size_bytes"]), "packed_bytes": 1400, "search_kl": 0.011}
    if timed:
        written |= {"latency_us": 987.6, "latency_iqr_us": 12.0, "onnx_bytes": 2000}
    return {
        "label": label,
        "indices": indices,
        "assignment": table.assignment(indices).to_json(),
        "predicted": cost,
        "mean_bits": 5.5,
        "fits": cost["size_bytes"] <= LIMIT,
        "searched": {"metrics": metrics(0.8875 if labelled else None, 0.01234), **written},
        "reconstructed": {"metrics": metrics(0.9025 if labelled else None, 0.00567), **written},
    }


def study_files(timed: bool, labelled: bool) -> dict[str, object]:
    table = problem(timed)
    uniform, chosen = (
        row(table, "uniform W8A8", [0, 0, 0], timed, labelled),
        row(table, f"best {EVIL}", [1, 0, 0], timed, labelled),
    )
    budget = Budget("size_bytes", LIMIT, "1.5kB").to_json()
    artifact = {
        "packed": "/elsewhere/artifact/model.safetensors",
        "packed_bytes": 1500 - 100 * timed,
        "file": f"/elsewhere/artifact/{'model.onnx' if timed else 'model.safetensors'}",
        "size_bytes": 1500,
        "reloaded_bit_for_bit": True,
    }
    if timed:
        artifact |= {"onnx": "/elsewhere/artifact/model.onnx", "onnx_bytes": 2000, "onnx_agreement": 0.995}
    best = {
        "label": chosen["label"],
        "assignment": chosen["assignment"],
        "indices": chosen["indices"],
        "budgets": [budget],
        "predicted": chosen["predicted"],
        "measured": {"size_bytes": 1500} | ({"latency_us": 987.6} if timed else {}),
        "metrics": chosen["reconstructed"]["metrics"],
        "proxy": {"objective": "weight_mse", "status": "optimal", "found_by": "exact dynamic programme"},
        "artifact": artifact,
    }
    base = {"metrics": metrics(0.91 if labelled else None, 0.0), "size_bytes": 4321, "packed_bytes": 4200} | (
        {"latency_us": 3333.0} if timed else {}
    )
    whole = {"label": "float", "mean_bits": 32.0, "fits": False, "predicted": {}, "searched": base}
    results = {
        "rows": [whole, uniform, chosen],
        "best": best,
        "not_quantized": {f"bias{i}": 4 * (i + 1) for i in range(25)} | {f"{EVIL}.bias": 3000},
        "header_bytes": 123,
        "unused": [EVIL],
        "float_in_graph": ["attn.matmul0"],
        "blocks": [["stem", [EVIL]]],
    }
    trial = {
        "number": 0,
        "indices": [1, 0, 0],
        "loss": 0.02,
        "predicted": chosen["predicted"],
        "fits": True,
        "proposed_by": EVIL,
        "on_front": True,
    }
    over = {
        **trial,
        "number": 1,
        "indices": [0, 0, 0],
        "predicted": uniform["predicted"],
        "fits": False,
        "proposed_by": "warm",
        "on_front": False,
    }
    part = {"source": "digits", "images": 400, "bytes": 1, "content_hash": "c0ffee" * 10}
    study = {
        "schema": 1,
        "config": {
            "budgets": ["1.5kB"],
            "model": EVIL,
            "seed": 7,
            "target": "ort-cpu" if timed else "packed",
        },
        "versions": {"python": "3.12.1", "torch": "2.15.0"},
        "hashes": {"weights": "feedbeef" * 8},
        "splits": {"parts": {"search": part, "evaluation": part}},
    }
    if timed:
        device = {
            "name": "Some CPU",
            "architecture": "x86_64",
            "cores": 2,
            "flags": ["avx2"],
            "system": "Linux",
        }
        study["hardware"] = {
            "device": device,
            "backend": "ort-cpu",
            "version": "1.31.1",
            "threads": 1,
            "table": "t.csv",
            "estimated": False,
        }
    front = {
        "schema": 1,
        "objective": "weight_mse",
        "exact": True,
        "points_in_all": 3,
        "measured": [trial, over],
    }
    return {
        "problem.json": table.to_json(),
        "results.json": results,
        "best.json": best,
        "study.json": study,
        "front.json": front,
    }


def save(path: Path, contents: dict[str, object]) -> Path:
    path.mkdir(exist_ok=True)
    for name, data in contents.items():
        (path / name).write_text(json.dumps(data))
    (path / "front.csv").write_text("size_bytes,weight_mse\n1350,0.5\n1500,0.22\n1800,0.03\n")
    return path


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
    for expected in (
        "88.75%",
        "0.01234",
        "0.00567",
        "1,800 B",
        "0.988 ms",
        "1.050 ms",
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


def test_three_figures(study: Path) -> None:
    ids = [attrs.get("id") for tag, attrs in parsed(study).tags if tag == "div"]
    assert {"figure-front", "figure-trials", "figure-bits"} <= set(ids)


def test_packed_target_has_no_latency_column(tmp_path: Path) -> None:
    text = parsed(save(tmp_path / "packed", study_files(timed=False, labelled=True))).text
    assert "latency" not in text and "onnxruntime" not in text
    assert "mpsearch.load" in text and "90.25%" in text


def test_without_labels_there_is_no_top1(tmp_path: Path) -> None:
    text = parsed(save(tmp_path / "unlabelled", study_files(timed=True, labelled=False))).text
    assert "top-1" not in text and "KL divergence to the float model is 0.00567 nats" in text


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
    assert sum(tag == "details" for tag, _ in page.tags) == 2


def test_rows_that_are_evaluated_on_few_images_say_so(study: Path, tmp_path: Path) -> None:
    assert "Nearest rounding is evaluated on" not in parsed(study).text
    contents = study_files(timed=True, labelled=True)
    for row in contents["results.json"]["rows"][1:]:  # type: ignore[index]
        row["searched"]["metrics"]["images"] = 100
    text = parsed(save(tmp_path / "few", contents)).text
    assert "Nearest rounding is evaluated on 100 of the 400 evaluation images." in text


def test_thinning_keeps_the_ends() -> None:
    points = [(i, 1.0 / (i + 1)) for i in range(14846)]
    drawn = thinned(points)
    assert len(drawn) == MAX_POINTS and (drawn[0], drawn[-1]) == (points[0], points[-1])
    assert drawn == sorted(set(drawn)) and thinned(points[:7]) == points[:7]


@pytest.mark.parametrize(
    "name", ["study.json", "results.json", "best.json", "front.json", "front.csv", "problem.json"]
)
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
