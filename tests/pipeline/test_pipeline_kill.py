"""kill -9 at any moment: what is there afterwards is finished to the same result as if nothing had
happened.
"""

import json
import multiprocessing
import random
import shutil
import time

import pytest

from mpsearch.pipeline import run
from mpsearch.pipeline.folder import Study


@pytest.fixture(scope="module")
def context():
    """Processes that start with everything imported."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["mpsearch.pipeline"])
    first = server.Process(target=str)  # waits for the imports, so that no run has to
    first.start()
    first.join()
    return server


def _finish(context, config, study):
    """Seconds of a whole run in a process of its own."""
    started = time.monotonic()
    process = context.Process(target=run, args=(config, study))
    process.start()
    process.join(240)
    assert process.exitcode == 0
    return time.monotonic() - started


def _killed(context, config, study, after):
    """Whether the run was still going when it was killed."""
    process = context.Process(target=run, args=(config, study))
    process.start()
    process.join(after)
    process.kill()
    process.join()
    return process.exitcode == -9


def _result(study):
    """All that must not depend on what befell the run."""
    best = json.loads((study.path / "best.json").read_text())
    front = json.loads((study.path / "front.json").read_text())
    return {
        "front.csv": (study.path / "front.csv").read_bytes(),
        "points": [(p["size_bytes"], p["score"], p["indices"]) for p in front["points"]],
        "measured": [
            (t["number"], t["indices"], t["loss"], t["fits"], t["proposed_by"], t["on_front"])
            for t in front["measured"]
        ],
        "best": (best["label"], best["assignment"], best["metrics"], best["measured"]["size_bytes"]),
        "artifact": (study.artifact / "model.safetensors").read_bytes(),
    }


def _half_written(study):
    return [p for p in study.path.rglob(".*") if p.is_file() and p.name != ".busy"]


def test_killed_three_times_it_ends_with_the_same_result(context, settings, tmp_path):
    config, calm, study = settings(), Study(tmp_path / "calm"), Study(tmp_path / "killed")
    seconds = _finish(context, config, calm)
    draw, kills = random.Random(0), 0
    for attempt in range(12):
        kills += _killed(context, config, study, draw.uniform(0.1, 0.7) * seconds / (1 + attempt // 4))
        if kills == 3:
            break
    assert kills == 3
    _finish(context, config, study)
    assert _result(study) == _result(calm)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("target", ["packed", "ort-cpu"])
def test_killed_at_ten_random_moments_every_run_ends_with_the_same_result(
    context, settings, tmp_path, target
):
    config, calm = settings(iterations=150, trials=16, target=target), Study(tmp_path / "calm")
    _finish(context, config, calm)
    timed = Study(tmp_path / "timed")
    seconds = _finish(context, config, timed)
    want, draw, kills, left = _result(calm), random.Random(1), 0, 0
    assert _result(timed) == want
    while kills < 10:
        study = Study(tmp_path / "killed")
        shutil.rmtree(study.path, ignore_errors=True)
        after = draw.uniform(0.02, 0.98) * seconds
        if not _killed(context, config, study, after):
            continue
        kills += 1
        left += len(_half_written(study))
        reached = (
            sorted({p.name.partition("-")[0] for p in (study.path / "steps").glob("[!.]*")})
            if (study.path / "steps").is_dir()
            else []
        )
        _finish(context, config, study)
        assert _result(study) == want, f"killed after {after:.3f} of {seconds:.3f} s"
        print(
            f"{target}: killed after {after:.2f} of {seconds:.2f} s; steps begun: "
            f"{', '.join(reached) or 'none'}"
        )
    print(f"{target}: {kills} kills, {left} unfinished files left beside")
