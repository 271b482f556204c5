"""A small finished study as a run leaves it on disk: plain files, whose names of layers and models are hostile."""

import json
import random
from pathlib import Path

from mpsearch.problem import Budget, Candidate, Layer, Problem

EVIL = "<script>alert(1)</script>"
LIMIT = 1500.0
MANIFEST = {
    "source": {"kind": "factory", "name": "nets.py:small", "kwargs": {"width": 8}},
    "data_config": {
        "input_size": [3, 8, 8],
        "mean": [0.4, 0.5, 0.6],
        "std": [0.25, 0.25, 0.25],
        "interpolation": "bilinear",
        "crop_pct": 0.875,
        "crop_mode": "center",
    },
    "input_shape": [3, 8, 8],
}


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
        "reason": "least loss on the search images",
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
    points = [
        {"indices": i, "predicted": table.cost(i).to_json(), "score": table.score("weight_mse", i)}
        for i in ([1, 1, 0], [1, 0, 0], [0, 0, 0])
    ]
    front = {
        "schema": 1,
        "objective": "weight_mse",
        "exact": True,
        "points_in_all": 3,
        "points": points,
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
    (path / "artifact").mkdir(exist_ok=True)
    (path / "artifact" / "artifact.json").write_text(json.dumps(MANIFEST))
    return path


def large_study(layers: int, trials: int, seed: int = 0) -> dict[str, object]:
    """As many layers with 14 candidates each and as many trials; the front has all its 512 points."""
    draw = random.Random(seed)
    candidates = tuple(Candidate(w, a) for w in range(2, 9) for a in (4, 8))
    held = tuple(
        Layer(
            f"stages.{i // 6}.blocks.{i % 6}.conv",
            "conv2d",
            (64, 32, 3, 3),
            ((1, 32, 14, 14),),
            (1, 64, 14, 14),
            3612672,
            f"stages.{i // 6}",
        )
        for i in range(layers)
    )
    sizes = tuple(tuple(18432.0 * (c.w_bits or 0) / 8 for c in candidates) for _ in held)
    damage = tuple(
        tuple(scale * (4.0 ** -(c.w_bits or 0) + 4.0 ** -(c.a_bits or 0)) for c in candidates)
        for scale in (draw.lognormvariate(0, 1) for _ in held)
    )
    table = Problem(
        held,
        (candidates,) * layers,
        scores={"sketch": damage, "weight_mse": damage},
        costs={"size_bytes": sizes, "latency_us": sizes, "bops": sizes},
        constants={"size_bytes": 5000.0, "latency_us": 100.0, "bops": 0.0},
    )

    def drawn() -> list[int]:
        return [draw.randrange(len(candidates)) for _ in held]

    contents = study_files(timed=True, labelled=True)
    points = sorted((table.cost(i).size_bytes, i) for i in (drawn() for _ in range(512)))
    front = [
        {"indices": i, "predicted": table.cost(i).to_json(), "score": table.score("sketch", i)}
        for _, i in points
    ]
    measured = [
        {
            "number": number,
            "indices": indices,
            "loss": table.score("sketch", indices) * draw.lognormvariate(0, 0.2),
            "predicted": table.cost(indices).to_json(),
            "fits": bool(draw.randrange(4)),
            "proposed_by": draw.choice(("warm", "exact front", "neighbour", "thompson", "front")),
            "on_front": False,
        }
        for number, indices in enumerate(drawn() for _ in range(trials))
    ]
    uniform, chosen = (
        row(table, label, [c] * layers, True, True) for label, c in (("uniform W4A8", 5), ("best", 7))
    )
    best = contents["best.json"] | {
        key: chosen[key] for key in ("label", "assignment", "indices", "predicted")
    }
    results = contents["results.json"] | {
        "rows": [contents["results.json"]["rows"][0], uniform, chosen],
        "best": best,
    }
    kept = {
        "schema": 1,
        "objective": "sketch",
        "exact": True,
        "points_in_all": 9000,
        "points": front,
        "measured": measured,
    }
    return contents | {
        "problem.json": table.to_json(),
        "best.json": best,
        "results.json": results,
        "front.json": kept,
    }
