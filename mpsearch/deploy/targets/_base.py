"""The interface of a deployment target: what it is given, what it writes, and how what was written is run and
measured.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from mpsearch.deploy.onnx_float import export_float
from mpsearch.deploy.packed import PackedLayout
from mpsearch.errors import UserError
from mpsearch.hardware import Backend, Timing
from mpsearch.hardware.device import identity
from mpsearch.hardware.fresh import Program
from mpsearch.problem import Assignment, Candidate
from mpsearch.pytrees import Inputs
from mpsearch.quant import UnitState, install
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
