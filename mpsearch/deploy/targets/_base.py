"""The interface of a deployment target: what it is given, what it writes, and how what was written is run and
measured.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from mpsearch.deploy.onnx import export_float
from mpsearch.deploy.packed import PackedLayout, save_packed
from mpsearch.deploy.packed_reading import load_packed
from mpsearch.errors import UserError
from mpsearch.hardware import Backend, Timing
from mpsearch.hardware.device import identity
from mpsearch.hardware.fresh import Program
from mpsearch.problem import FLOAT, Assignment, Candidate
from mpsearch.pytrees import Inputs
from mpsearch.quant import UnitState, affine_input, install
from mpsearch.reconstruct import Calibration
from mpsearch.registry import Registry

Run = Callable[[Inputs], Tensor]
"""From N x C x H x W, or what else the model reads, to N x K logits."""

MODEL_FILE = "model.safetensors"
_NOT_MEASURED = (
    "The target {} is written and run, and has no backend that times its units. Use "
    "`mpsearch bench` on an export."
)


@dataclass(frozen=True)
class Job:
    """What is to be written.

    Args:
        module: Float model, batch norms folded.
        layout: Layout of its packed checkpoint.
        states: Every unit's codes and quantisers.
        calibration: Where a target needs other ranges than `states` has.
        example: 1 x C x H x W, or what else the model reads.
        calls: Unit -> how often one forward pass calls it, where more than once.
        graphs: Float ONNX graphs by opset, exported at the first use and shared between the jobs of a model.
        batch: Images in a call that is timed, and that a target is to be built for where it has to know.
    """

    module: nn.Module
    layout: PackedLayout
    states: Mapping[str, UnitState]
    calibration: Calibration
    example: Inputs
    calls: Mapping[str, int] = field(default_factory=dict)
    graphs: dict[int, Any] = field(default_factory=dict, repr=False)
    batch: int = 1

    def float_onnx(self, opset: int) -> Any:
        """The float graph at an opset."""
        if opset not in self.graphs:
            self.graphs[opset] = export_float(self.module, self.example, opset)
        return self.graphs[opset]

    @property
    def quantized(self) -> dict[str, UnitState]:
        """The units whose weight is quantised."""
        return {unit: state for unit, state in self.states.items() if state.weight is not None}


class Layout(Protocol):
    """What the file of a model takes, known to the byte before it is written: a constant and a sum over
    units.
    """

    @property
    def constant_bytes(self) -> int:
        """Bytes of all that no choice changes."""

    def unit_bytes(self, unit: str, candidate: Candidate) -> int:
        """Bytes of one unit at a candidate."""

    def size_bytes(self, assignment: Assignment) -> int:
        """Size of the file of an assignment."""


@dataclass(frozen=True)
class TargetRun:
    """A whole model as a target has run it.

    Args:
        timing: Time of one call.
        integer_kernels: How many units run quantised.
        energy_mj: Energy of one call; None where the device counts none.
        trouble: Why a reading is no good, after every try.
    """

    timing: Timing
    integer_kernels: int
    energy_mj: float | None = None
    trouble: tuple[str, ...] = ()


class Target(ABC):
    """A runtime or tool; a frozen dataclass whose fields are the options of what is written.

    `export` writes and runs every target. `run` searches for those that it can measure: the ones with a
    `backend`, and `packed`, which has a size alone.

    Class attributes:
        file: Name of the file that `write` makes, or of the first of them.
        runs_with: What `load` computes with, for people.
        needs_model: Whether `load` needs the float architecture beside the files.
        integer: Whether the runtime multiplies integers, so that results differ from the fake-quantised model
            by roundings of its own.
        key: Prefix of what results of `run` say of its file, such as `onnx_bytes`.
        title: Name of the runtime, for people.
        file_alone: Whether the files are all that is needed to time it in a process of its own.
        measures_memory: Whether the peak memory of its activations is measured.
        measures_energy: Whether it runs on a device that may count energy.
        functions: Functions of activations that it quantises, as `quant.operands` names them; others stay
            float.
        uneven_grids: Whether inputs may have two steps or logarithmic levels.
        elsewhere: Whether it is built and timed on another machine: a table alone tells its latencies.
        float_label: What the model is called in which nothing is quantised.
        tensors: Whether the precision of residual operands and of what pools read is a choice of its own.
        signed_inputs: Whether the grids of inputs are signed around zero.
        widths: Weight bits that it multiplies, of those that a run may have; all where empty.
    """

    name: ClassVar[str]
    file: ClassVar[str]
    runs_with: ClassVar[str]
    needs_model: ClassVar[bool] = False
    integer: ClassVar[bool] = False
    key: ClassVar[str] = ""
    title: ClassVar[str] = ""
    file_alone: ClassVar[bool] = False
    measures_memory: ClassVar[bool] = False
    measures_energy: ClassVar[bool] = False
    functions: ClassVar[tuple[str, ...]] = ()
    uneven_grids: ClassVar[bool] = False
    elsewhere: ClassVar[bool] = False
    float_label: ClassVar[str] = "float"
    tensors: ClassVar[bool] = False
    signed_inputs: ClassVar[bool] = False
    widths: ClassVar[tuple[int, ...]] = ()

    @property
    def in_run(self) -> bool:
        """Whether `run` can search for it with these options; `export` writes it in any case."""
        return False

    def backend(self, threads: int = 1) -> Backend | None:
        """What says which candidates a unit can have on it, and times them; None where `run` cannot measure
        it.

        Args:
            threads: Threads of the runtime.
        """
        return None

    def states(self, job: Job) -> Mapping[str, UnitState]:
        """The states that the target computes with; they differ from the job's where it cannot express
        these.
        """
        return job.states

    @property
    def budgeted(self) -> str:
        """Name of the file that a budget of bytes limits, whose size `layout` tells: the packed checkpoint
        where the target does not tell its own.
        """
        return MODEL_FILE

    def layout(self, packed: PackedLayout, float_onnx: Callable[[int], Any]) -> Layout:
        """What the file `budgeted` takes.

        Args:
            packed: Layout of the packed checkpoint.
            float_onnx: Opset -> the float graph.
        """
        return packed

    def reference(self, job: Job) -> nn.Module:
        """The fake-quantised module that the artifact stands for."""
        return install(job.module, self.states(job))

    @abstractmethod
    def write(self, job: Job, folder: Path) -> list[str]:
        """Write the files of the artifact into an empty folder.

        Returns: What a user should know of them, a sentence each.

        Raises:
            UserError: The target cannot express the states.
            MissingExtraError: A package is missing.
        """

    @abstractmethod
    def load(self, folder: Path, threads: int, model: nn.Module | None = None) -> Run:
        """What was written, ready to run on this machine.

        Args:
            folder: Folder of the artifact.
            threads: Threads of the runtime.
            model: Float architecture, batch norms not folded; its weights do not matter. Needed where
                `needs_model`, unless timm has it.
        """

    def reload(self, job: Job, folder: Path, threads: int) -> Run:
        """As `load`, in the process that has written it and has the float model at hand."""
        return self.load(folder, threads)

    def one_call(self, job: Job, folder: Path, threads: int) -> tuple[Callable[[], object], int]:
        """What was written, ready to be timed on the job's example, and how many calls of its units run
        quantised.

        Raises: UserError: The target has no `backend`.
        """
        raise UserError(_NOT_MEASURED.format(self.name))

    def measure(self, job: Job, folder: Path, threads: int, rounds: int = 1) -> TargetRun:
        """Time what was written on `batch` images of the job.

        Args:
            job: What was written.
            folder: Where it is.
            threads: Threads of the runtime.
            rounds: Passes over the measurement, where it does not hold still.
        Raises: UserError: The target has no `backend`.
        """
        raise UserError(_NOT_MEASURED.format(self.name))

    def program(self, folder: Path, model: Mapping[str, Any] | None = None) -> Program:
        """What a process of its own loads.

        Args:
            folder: Folder of the artifact.
            model: How the float model is built, as `ModelSource.to_json` says it; for targets that need it.
        """
        return Program("mpsearch.deploy.process:load", folder, {"model": model})

    def bytes_of(self, folder: Path) -> int:
        """Bytes of its files."""
        return (folder / self.file).stat().st_size

    def executed(self, folder: Path, threads: int) -> tuple[str, ...]:
        """Operators that the runtime really runs, in order; empty where it does not tell."""
        return ()

    def device(self) -> str:
        """What it runs on, for people."""
        return str(identity())

    def energy_counter(self) -> Callable[[], float | None] | None:
        """Reads the counter of the device that it runs on, in millijoules (None where that has none); None
        for a CPU, whose energy is not measured.
        """
        return None


TARGETS: Registry[Target] = Registry("deployment target", "mpsearch.deploy.targets")


def refuse_products(job: Job, target: str, *, tensors: bool = False) -> None:
    """Raise UserError where a unit without a weight is quantised that the target has no form for.

    Args:
        job: What is to be written.
        target: Its name.
        tensors: Whether it has one for tensors that modules return; none has one for functions.
    """
    for unit, state in job.states.items():
        if state.weight is not None or state.candidate.is_float or state.candidate.weight_only:
            continue
        if not unit.endswith(".output"):
            raise UserError(
                f"The target {target} has no quantised functions of activations, such as {unit!r}. Leave "
                "them float, or export with --target packed."
            )
        if not tensors:
            raise UserError(
                f"The target {target} has no quantised residual operands or pool inputs, such as {unit!r}. "
                "Export with --target tensorrt or packed."
            )


def save_on_grid(job: Job, path: Path) -> None:
    """A checkpoint of float weights that lie on their grids, so that a tool which rounds to nearest on the
    same grid finds the learned codes again.
    """
    weights = {unit: UnitState(FLOAT) for unit in job.layout.units}
    module = bare(job.module, job.states)
    save_packed(path, job.layout, module, weights)


def bare(module: nn.Module, states: Mapping[str, UnitState]) -> nn.Module:
    """A copy of the float module with dequantised weights, the biases beside them, and float inputs, its
    layers not wrapped.
    """
    copied = install(module, {})
    with torch.no_grad():
        for unit, state in states.items():
            if state.weight is not None:
                copied.get_submodule(unit).get_parameter("weight").copy_(state.weight.dequantize())
            if state.bias is not None:
                copied.get_submodule(unit).get_parameter("bias").copy_(state.bias)
    return copied


def load_on_grid(folder: Path, model: nn.Module | None) -> nn.Module:
    """What `save_on_grid` wrote."""
    return load_packed(folder / MODEL_FILE, model)


def signed(job: Job, *, keep_unsigned: bool = False) -> dict[str, UnitState]:
    """The job's states with inputs on grids without a zero point.

    A grid whose zero point is half its codes is signed already; any other is calibrated anew, signed, from
    the same sample. Weights keep their learned codes.

    Args:
        job: Its inputs must be uniform.
        keep_unsigned: Leave grids alone that start at 0, for tools that have unsigned integers.
    """
    calibration = replace(job.calibration, symmetric_inputs=True, chosen={}, _input_params={})
    return {
        unit: _signed_state(unit, state, calibration, keep_unsigned) for unit, state in job.states.items()
    }


def _signed_state(unit: str, state: UnitState, calibration: Calibration, keep_unsigned: bool) -> UnitState:
    if state.activation is None or state.second is not None:
        return state
    params = affine_input(unit, state)
    zero = int(params.zero_point)
    if params.symmetric or (keep_unsigned and zero == 0):
        return state
    if zero == 1 << (params.bits - 1):
        return replace(
            state, activation=replace(params, zero_point=torch.zeros_like(params.zero_point), symmetric=True)
        )
    found = replace(calibration, input_observer=calibration.uniform_observer, _input_params={}).input_params(
        unit, Candidate(8, params.bits)
    )
    return replace(state, activation=found)
