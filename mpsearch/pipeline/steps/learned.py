"""What the search sees: each unit at each candidate as it is delivered, or nearly so, and not as rounding to
nearest leaves it.

Rounding to nearest overstates the damage of few bits by an order of magnitude, and not by the same factor for
every unit, so an assignment that is best for it need not be best once it is finished. Rounding in closed form
(`reconstruct.closed_form`) takes seconds for all widths of all units, and comes near enough to what is
delivered to choose by. A short reconstruction at each uniform bit-width is the other way; in an assignment of
mixed bits its states were learned behind other neighbours.
"""

from __future__ import annotations

from dataclasses import replace

from safetensors.torch import load_file, save
from torch import Tensor

from mpsearch import files
from mpsearch.pipeline.steps.states import digest_of
from mpsearch.pipeline.steps.subject import BATCH
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.problem import Assignment, Candidate, Problem
from mpsearch.quant import UnitState
from mpsearch.quant.devices import on_device
from mpsearch.reconstruct import Calibration
from mpsearch.reconstruct.closed_form import Codes, round_units


def searched_calibration(problem: Problem, workshop: Workshop) -> Calibration:
    """The quantisers with the states that the settings ask for, of every integer candidate of a unit with a
    weight.

    An interrupted call goes on behind its last unit, or block.
    """
    wanted = workshop.config.states
    if wanted.name == "gptq":
        return _rounded(problem, workshop)
    return (
        workshop.calibration if wanted.name == "nearest" else _reconstructed(problem, workshop, wanted.steps)
    )


def _rounded(problem: Problem, workshop: Workshop) -> Calibration:
    """With codes in closed form; those of each unit are kept in a file of their own."""
    calibration, subject = workshop.calibration, workshop.subject
    rows = {
        layer.name: row
        for layer, row in zip(problem.layers, problem.candidates, strict=True)
        if layer.name in calibration.weights
    }
    images = subject.placed.calibration
    kinds = {
        unit: sorted({(c.w_bits, c.w_granularity) for c in row if not c.is_float})
        for unit, row in rows.items()
    }
    hashes = [subject.hashes["weights"], subject.hashes["calibration"], *subject.arithmetic]
    folder = workshop.study.step_path(
        "codes",
        [hashes, calibration.weight_grids, workshop.config.seed, kinds, workshop.config.bias_correction],
        "",
    )
    paths = {unit: folder / f"{files.digest(unit)}.safetensors" for unit in rows}
    missing = {unit: row for unit, row in rows.items() if not paths[unit].is_file()}
    with workshop.progress.task("round every unit at every width") as advance:
        found = round_units(
            subject.placed.module,
            calibration,
            missing,
            lambda: (inputs for inputs, _ in images.batches(BATCH)),
            len(images),
            seed=workshop.config.seed,
        )
        for done, (unit, codes) in enumerate(found):  # the first comes behind a pass over the images
            with files.replacing(paths[unit]) as beside:
                beside.write_bytes(save(_named(codes)))
            advance(done, len(missing))
    rounded: dict[tuple[str, int, str], Tensor] = {}
    for unit, path in paths.items():
        if path.is_file():  # a unit whose candidates are all float has none
            rounded |= {(unit, *_kind(name)): codes for name, codes in load_file(path).items()}
    return replace(calibration, rounded=on_device(rounded, subject.device))


def _named(codes: Codes) -> dict[str, Tensor]:
    return {f"{bits}/{granularity}": each.cpu() for (bits, granularity), each in codes.items()}


def _kind(name: str) -> tuple[int, str]:
    bits, _, granularity = name.partition("/")
    return int(bits), granularity


def _reconstructed(problem: Problem, workshop: Workshop, steps: int) -> Calibration:
    """With learned states. Weights and inputs apart: one reconstruction for each width of weights, at the
    widest inputs, and one for each width of inputs, at the widest weights; a candidate that is neither takes
    its weight from the one and its input's step from the other.
    """
    wide = [[c for c in choices if not c.is_float] for choices in problem.candidates]
    by_weight = [{_kind_of(c): c for c in sorted(choices, key=_width)} for choices in wide]
    by_input = [{c.a_bits: c for c in sorted(choices, key=_width)} for choices in wide]
    found: dict[tuple[str, Candidate], UnitState] = {}
    apart = {c for rows in (by_weight, by_input) for row in rows for c in dict(row).values()}
    for wanted in sorted(apart, key=_width, reverse=True):
        pairs = zip(problem.layers, problem.candidates, strict=True)
        assignment = Assignment(tuple((layer.name, _nearest(choices, wanted)) for layer, choices in pairs))
        states = workshop.reconstructed(assignment, f"every layer at {wanted}, for the search", steps)
        states = on_device(states, workshop.subject.device)
        found |= {(unit, wanted): state for unit, state in states.items() if assignment[unit] == wanted}
    learned = {
        (layer.name, c): found.get((layer.name, c))
        or replace(
            found[layer.name, weights[_kind_of(c)]],
            candidate=c,
            activation=found[layer.name, inputs[c.a_bits]].activation,
        )
        for layer, choices, weights, inputs in zip(problem.layers, wide, by_weight, by_input, strict=True)
        for c in choices
        if layer.weight_shape
    }
    return replace(workshop.calibration, learned=learned)


def _kind_of(candidate: Candidate) -> tuple[int | None, str]:
    """What of a candidate the weight depends on."""
    return candidate.w_bits, candidate.w_granularity


def states_digest(calibration: Calibration) -> str:
    """Of all that the states of units are made from beside the observers: what was learned or rounded, and
    the means.
    """
    learned = {f"{unit} {candidate}": state for (unit, candidate), state in calibration.learned.items()}
    rounded = {" ".join(map(str, key)): codes for key, codes in calibration.rounded.items()}
    about = {"learned": learned, "rounded": rounded, "means": calibration.means}
    grids = {" ".join(map(str, key)): grid for key, (_, grid) in calibration.chosen.items()}
    other = {"softmax": calibration.softmax} if calibration.softmax != "uniform" else {}
    return digest_of(about | ({"grids": grids} if grids else {}) | other)


def _nearest(choices: tuple[Candidate, ...], wanted: Candidate) -> Candidate:
    """The choice itself where there is it, else the integer one of most similar bits; float where there is no
    other.
    """
    integers = [c for c in choices if not c.is_float]
    return (
        min(
            integers,
            key=lambda c: (
                c != wanted,
                *(abs(a - b) for a, b in zip(_width(c), _width(wanted), strict=True)),
            ),
        )
        if integers
        else choices[0]
    )


def _width(candidate: Candidate) -> tuple[int, int]:
    return candidate.w_bits or 32, candidate.a_bits or 32
