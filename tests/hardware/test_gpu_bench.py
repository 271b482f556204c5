"""What decides about a GPU reading, with a fake NVML and a fake CUDA timer: no GPU is here, and no time below
is one.
"""

import dataclasses
import itertools
import math
import os
import types

import pytest

from mpsearch.errors import MissingExtraError, MpsearchError, TableError
from mpsearch.hardware import LatencyTable, energy_costs, latency_costs, profile
from mpsearch.hardware.backends import Backend, Cell, Support
from mpsearch.hardware.bench import TRIES, CpuBench
from mpsearch.hardware.gpu import card as cards
from mpsearch.hardware.gpu import probe
from mpsearch.hardware.gpu.bench import CudaBench
from mpsearch.hardware.gpu.card import Card
from mpsearch.hardware.gpu.nvml import NvmlMonitor
from mpsearch.hardware.gpu.probe import Gpu
from mpsearch.hardware.gpu.reading import CardState, ForeignProcessError, GpuSettings, read_cell
from mpsearch.problem import Candidate, Layer

STEADY = CardState(1980, 3201, 45, 300.0)
SETTINGS = GpuSettings(copies=4, repeats=5)
FLOAT, W8A8, W4A8, FP8 = (Candidate.parse(t) for t in ("float", "W8A8", "W4A8", "fp8"))


class FakeMonitor:
    """Plays states one after the other, then the last for ever; counts 50 mJ for each launch of the timer."""

    def __init__(self, timer=None, states=(STEADY,), foreign=(), energy=True):
        self.timer, self.states, self.foreign, self.energy = timer, list(states), list(foreign), energy

    def state(self):
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def energy_mj(self):
        return 50.0 * self.timer.launches if self.energy else None

    def foreign_processes(self):
        return self.foreign.pop(0) if self.foreign else ()


class FakeTimer:
    """A launch of n calls takes n times the microseconds of its first run; `noise` is added to launches in
    turn.
    """

    l2_bytes = 1000

    def __init__(self, noise=(0.0,)):
        self.noise, self.launches, self.captured = itertools.cycle(noise), 0, []

    def capture(self, runs):
        self.captured.append(list(runs))
        return lambda: sum(run() for run in runs)

    def times_us(self, launch, repeats):
        return [launch() + next(self.noise) for _ in range(repeats)]

    def run_for(self, launch, seconds):
        self.launches += 10
        return 10


def cell(us=8.0, touched=100, **options):
    fresh = itertools.count()
    values = {"executed": ("kernel",), "as_asked": True, "relative_error": 0.0, "tolerance": 0.1, **options}
    return Cell(lambda: us, bytes_touched=touched, another=lambda: (next(fresh), lambda: us)[1], **values)


def read(states=(STEADY,), noise=(0.0,), settings=SETTINGS, made=None, **options):
    timer = FakeTimer(noise)
    monitor = FakeMonitor(timer, states, **options)
    return read_cell(made or cell(), timer, monitor, settings), timer


def test_fake_timer_copies_rotate_over_twice_the_l2_and_the_hot_graph_repeats_one():
    reading, timer = read()
    cold, hot = timer.captured
    assert (
        len(set(cold)) == len(cold) == 21 and len(set(hot)) == 1 and len(hot) == 21
    )  # 21 x 100 bytes are the first above 2 x 1000
    assert reading.rotated_bytes == 2100 and reading.copies == 21
    assert (reading.median_us, reading.hot_us, reading.trouble) == (8.0, 8.0, ())


@pytest.mark.parametrize(
    ("touched", "copies"), [(10_000, 4), (1, 64), (0, 4)], ids=["large", "tiny", "unknown"]
)
def test_fake_timer_number_of_copies(touched, copies):
    _, timer = read(settings=dataclasses.replace(SETTINGS, most_copies=64), made=cell(touched=touched))
    assert len(timer.captured[0]) == copies


def test_fake_timer_a_cell_may_have_fewer_copies():
    _, timer = read(made=cell(touched=10, most_copies=32))
    assert len(timer.captured[0]) == 32


@pytest.mark.parametrize("phase", [0.0, 0.031, 0.077])
def test_fake_nvml_a_counter_that_moves_every_100_ms_is_read_to_3_percent(phase):
    """A card of 500 W, with a clock that runs while it works."""
    timer, seconds = FakeTimer(), [phase]
    each = 21 * 8e-6

    def run_for(launch, least):
        launches = max(8, 8 * math.ceil(least / each / 8))
        seconds[0] += launches * each
        return launches

    timer.run_for = run_for
    monitor = FakeMonitor(timer)
    monitor.energy_mj = lambda: 500e3 * 0.1 * math.floor(seconds[0] / 0.1)
    assert read_cell(cell(), timer, monitor, SETTINGS).energy_mj == pytest.approx(500e3 * 8e-6, rel=0.03)


def test_fake_nvml_energy_is_that_of_one_call():
    reading, _ = read()
    assert reading.energy_mj == pytest.approx(50.0 * 10 / (10 * 21))
    assert read(energy=False)[0].energy_mj is None
    assert read(settings=dataclasses.replace(SETTINGS, energy_seconds=0))[0].energy_mj is None


@pytest.mark.parametrize("reason", ["sw_power_cap", "hw_slowdown", "sw_thermal", "hw_thermal", "power_brake"])
@pytest.mark.parametrize("where", [0, 1], ids=["before", "after"])
def test_fake_nvml_a_card_that_is_slowed_down_gives_no_reading(reason, where):
    states = [STEADY, STEADY]
    states[where] = dataclasses.replace(STEADY, reasons=("idle", reason))
    assert read(states)[0].trouble == (reason,)


def test_fake_nvml_reasons_that_do_not_slow_down_are_none():
    assert read([dataclasses.replace(STEADY, reasons=("idle", "clocks_set"))])[0].trouble == ()


@pytest.mark.parametrize(
    ("after", "trouble"),
    [
        ({"sm_mhz": 1945}, ()),
        ({"sm_mhz": 1935}, ("processor clock 1980 to 1935 MHz",)),
        ({"memory_mhz": 1600}, ("memory clock 3201 to 1600 MHz",)),
    ],
)
def test_fake_nvml_a_clock_that_moves_gives_no_reading(after, trouble):
    assert read([STEADY, dataclasses.replace(STEADY, **after)])[0].trouble == trouble


def test_fake_timer_a_wide_spread_is_trouble():
    reading, _ = read(noise=(0.0, 21.0 * 8))
    assert [t.split()[0] for t in reading.trouble] == ["spread"]
    assert read(noise=(0.0, 21.0 * 0.3))[0].trouble == ()


@pytest.mark.parametrize("foreign", [[(77,)], [(), (77,)]], ids=["before", "after"])
def test_fake_nvml_a_foreign_process_stops_everything(foreign):
    with pytest.raises(ForeignProcessError, match="77"):
        read(foreign=foreign)


@dataclasses.dataclass(frozen=True)
class Recorder(Backend):
    """Notes what it builds; its bench is a fake card's."""

    threads: int = 1
    card: Card = None
    built: list = dataclasses.field(default_factory=list)
    made: dict = dataclasses.field(default_factory=dict)
    name = "recorder"
    version = "1"

    def supports(self, layer, candidate):
        if candidate == FP8:
            return Support("no", "has none", None)
        return Support("storage-only", "", W8A8) if candidate == W4A8 else Support("ok", "", candidate)

    def build(self, layer, candidate, batch):
        self.built.append((layer.name, str(candidate)))
        made = self.made.get(str(candidate), cell)
        return made()

    def bench(self, seconds=0.25):
        return CudaBench(self.card)


LINEAR = Layer("fc", "linear", (5, 8), ((1, 8),), (1, 5), 40, "b", calls=3)
TWIN = dataclasses.replace(LINEAR, name="twin", calls=1)
GPU = Gpu("NVIDIA H200", (9, 0), 132, 141 * 2**30, 50 * 2**20, 227 * 2**10)
SLOW = dataclasses.replace(STEADY, reasons=("sw_power_cap",))


def fake_card(timer=None, states=(STEADY,), anchor=None, **options):
    timer = timer or FakeTimer()
    return Card(GPU, timer, FakeMonitor(timer, states, **options), anchor or cell(5.0), "cpu", SETTINGS)


def measured(tmp_path, card=None, candidates=(FLOAT, W8A8), layers=(LINEAR, TWIN), **made):
    backend = Recorder(card=card or fake_card(), made=made)
    table = LatencyTable.open(tmp_path, GPU.identity, "recorder", "1", 1)
    profile(layers, [candidates] * len(layers), backend, table, tmp_path)
    return table, backend


def test_fake_timer_every_shape_is_read_twice_and_kept(tmp_path):
    table, backend = measured(tmp_path)
    assert sorted(backend.built) == [("fc", "W8A8"), ("fc", "float")]
    each = 50.0 / 21
    for row in table.rows.values():
        assert (row.status, row.median_us, row.rounds, row.anchor_us, row.clock, row.repeats) == (
            "ok",
            8.0,
            "8 8",
            5.0,
            "gpu",
            10,
        )
        assert row.energy_mj == pytest.approx(each) and row.aa_error == 0
    assert table.method.startswith("random data; a CUDA graph")
    again, backend = measured(tmp_path)
    assert again.rows == table.rows and backend.built == []


def test_fake_nvml_a_throttled_reading_is_taken_again(tmp_path):
    states = (
        [STEADY] * 2 + [STEADY, SLOW] + [STEADY]
    )  # the anchor's two, the first reading's two, then steady
    table, backend = measured(tmp_path, fake_card(states=states), (W8A8,), [LINEAR])
    assert [row.status for row in table.rows.values()] == ["ok"] and len(backend.built) == 2
    trouble = CudaBench(fake_card(states=[STEADY] * 2 + [STEADY, SLOW] + [STEADY])).measure(cell())
    assert trouble.trouble == ("sw_power_cap",) and not trouble.steady


def test_fake_nvml_three_strikes_are_unstable(tmp_path):
    table, backend = measured(tmp_path, fake_card(states=[SLOW]), (W8A8,), [LINEAR])
    (row,) = table.rows.values()
    assert row.status == "unstable" and row.usable and len(backend.built) == TRIES


def test_fake_timer_a_cell_is_measured_again_when_the_anchor_moves(tmp_path):
    times = iter([5.0, 5.5, 5.5, 5.5])

    def anchored():
        timer = FakeTimer()
        moving, plain = cell(5.0), timer.capture

        def capture(runs):
            if moving.run not in runs or len(set(runs)) == 1:
                return plain(runs)
            value = next(times)
            return lambda: value * len(runs)

        timer.capture = capture
        return fake_card(timer, anchor=moving)

    table, backend = measured(tmp_path, anchored(), (W8A8,), [LINEAR])
    (row,) = table.rows.values()
    assert row.status == "ok" and row.anchor_us == 5.5 and len(backend.built) == 2


@pytest.mark.parametrize(
    ("made", "status"),
    [
        (lambda: cell(as_asked=False), "fallback"),
        (lambda: cell(relative_error=0.5), "wrong"),
        (lambda: cell(relative_error=float("nan")), "wrong"),
        (lambda: (_ for _ in ()).throw(RuntimeError("CUDA error: no kernel image\nmore")), "crash"),
    ],
    ids=["fallback", "wrong", "nan", "crash"],
)
def test_what_is_not_right_is_no_latency(tmp_path, made, status):
    table, backend = measured(tmp_path, layers=[LINEAR], W8A8=made)
    row = table.get(LINEAR, W8A8)
    assert (row.status, row.usable) == (status, False)
    assert "no kernel image" in row.executed or status != "crash"
    costs = latency_costs([LINEAR], [(FLOAT, W8A8)], backend, table)
    assert (
        costs.rows == ((24.0, float("inf")),)
        and costs.unusable[0][:2] == ("fc", "W8A8")
        and status in costs.unusable[0][2]
    )
    assert energy_costs([LINEAR], [(W8A8,)], backend, table) == ((float("inf"),),)


def test_energy_is_known_beside_latency_and_survives_the_file(tmp_path):
    _, backend = measured(tmp_path)
    table = LatencyTable.open(tmp_path, GPU.identity, "recorder", "1", 1)
    choices = [(FLOAT, W4A8, FP8), (W8A8,)]
    each = 50.0 / 21
    assert latency_costs([LINEAR, TWIN], choices, backend, table).rows == ((24.0, 24.0, float("inf")), (8.0,))
    energies = energy_costs([LINEAR, TWIN], choices, backend, table)
    assert energies[0] == pytest.approx((3 * each, 3 * each, float("inf"))) and energies[1] == pytest.approx(
        (each,)
    )


def test_a_table_without_energies_has_no_column_for_them(tmp_path):
    measured(tmp_path, fake_card(energy=False))
    (path,) = tmp_path.glob("*.csv")
    assert "energy_mj" not in path.read_text()
    assert {row.energy_mj for row in LatencyTable.load(path, GPU.identity).rows.values()} == {None}


@pytest.mark.parametrize("value", ["-1", "nan", "much"])
def test_an_energy_that_is_none_is_one_clear_error(tmp_path, value):
    table, _ = measured(tmp_path, candidates=(W8A8,), layers=[LINEAR])
    (row,) = table.rows.values()
    (path,) = tmp_path.glob("*.csv")
    path.write_text(path.read_text().replace(f",{row.energy_mj}", f",{value}"))
    with pytest.raises(TableError, match=f"line 2.*{value}"):
        LatencyTable.load(path, GPU.identity)


def test_fake_nvml_energy_is_counted_between_two_steps_of_the_counter():
    """A counter that moves by 100 mJ for every fourth look: what lies between two steps is exact, where a
    fixed stretch would miss up to a step.
    """
    timer = FakeTimer()

    class Stepping(FakeMonitor):
        def energy_mj(self):
            return 100.0 * (self.timer.launches // 40)

    reading = read_cell(cell(), timer, Stepping(timer), SETTINGS)
    assert reading.energy_mj == pytest.approx(100.0 / (40 * 21))


def test_fake_nvml_a_counter_that_stands_still_gives_no_energy():
    timer = FakeTimer()
    monitor = FakeMonitor(timer)
    monitor.energy_mj = lambda: 7.0
    assert read_cell(cell(), timer, monitor, SETTINGS).energy_mj is None


def test_fake_nvml_the_card_is_warm_before_its_clocks_are_read():
    timer = FakeTimer()
    monitor = FakeMonitor(timer)
    seen = []
    monitor.state = lambda: seen.append(timer.launches) or STEADY
    read_cell(cell(), timer, monitor, SETTINGS)
    assert len(seen) == 2 and seen[0] > 0


@dataclasses.dataclass(frozen=True)
class Breaking(Recorder):
    """Its W8A8 kernel breaks the process for all that come after it, as an illegal access does."""

    def build(self, layer, candidate, batch):
        if candidate == W8A8:
            _BROKEN.append(True)
        if _BROKEN:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return Cell(lambda: None, ("kernel",), True, 0.0, 0.1)

    def bench(self, seconds=0.25):
        return CpuBench(1, 0.001)


_BROKEN = []


def test_what_breaks_a_process_costs_its_own_row_and_no_other(tmp_path):
    backend = Breaking()
    table = LatencyTable.open(tmp_path, GPU.identity, "recorder", "1", 1)
    profile([LINEAR], [(W8A8, FLOAT)], backend, table, tmp_path, isolate=True)
    assert table.get(LINEAR, W8A8).status == "crash" and table.get(LINEAR, FLOAT).usable


def fake_library(**changes):
    class NVMLError(Exception):
        pass

    class NotSupportedError(NVMLError):
        pass

    import pynvml

    names = [n for n in dir(pynvml) if n.startswith(("nvmlClocks", "NVML_"))]
    library = types.SimpleNamespace(
        **{n: getattr(pynvml, n) for n in names},
        NVMLError=NVMLError,
        NVMLError_NotSupported=NotSupportedError,
    )
    values = {
        "nvmlInit": None,
        "nvmlDeviceGetHandleByUUID": "card",
        "nvmlDeviceGetClockInfo": 1980,
        "nvmlDeviceGetTemperature": 40,
        "nvmlDeviceGetPowerUsage": 250_500,
        "nvmlDeviceGetCurrentClocksEventReasons": library.nvmlClocksEventReasonSwPowerCap
        | library.nvmlClocksEventReasonGpuIdle,
        "nvmlDeviceGetTotalEnergyConsumption": 12345,
        "nvmlDeviceGetComputeRunningProcesses": [],
        "nvmlSystemGetDriverVersion": b"580.1",
        "nvmlDeviceGetEnforcedPowerLimit": 700_000,
        "nvmlDeviceGetMaxClockInfo": 1980,
        **changes,
    }

    def call(value):
        def answer(*_):
            if value in (NVMLError, NotSupportedError) or isinstance(value, type):
                raise value("no")
            return value

        return answer

    for name, value in values.items():
        setattr(
            library,
            name,
            call(
                {"error": NVMLError, "unsupported": NotSupportedError}.get(value, value)
                if isinstance(value, str)
                else value
            ),
        )
    return library


def test_fake_nvml_library_is_read_in_the_units_that_are_named():
    monitor = NvmlMonitor("GPU-1", fake_library())
    assert monitor.state() == CardState(1980, 1980, 40, 250.5, ("idle", "sw_power_cap"))
    assert monitor.energy_mj() == 12345.0
    assert monitor.about() == {
        "driver": "580.1",
        "power_limit_w": 700.0,
        "max_sm_mhz": 1980,
        "max_memory_mhz": 1980,
    }


def test_fake_nvml_library_without_a_counter_or_a_card():
    assert (
        NvmlMonitor("GPU-1", fake_library(nvmlDeviceGetTotalEnergyConsumption="unsupported")).energy_mj()
        is None
    )
    with pytest.raises(MpsearchError, match="GPU-9"):
        NvmlMonitor("GPU-9", fake_library(nvmlDeviceGetHandleByUUID="error"))


@pytest.mark.parametrize(
    ("held", "foreign"),
    [([], ()), ([10], ()), ([10, 20], ()), ([1, 10], (1,)), ([1, 2], ()), ([1, 2, 3], (3,)), ([1], ())],
)
def test_fake_nvml_library_foreign_processes(monkeypatch, held, foreign):
    monkeypatch.setattr("os.getpid", lambda: 10)
    library = fake_library(nvmlDeviceGetComputeRunningProcesses=[types.SimpleNamespace(pid=p) for p in held])
    assert NvmlMonitor("GPU-1", library, (20,)).foreign_processes() == foreign


def test_without_nvidia_ml_py_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    with pytest.raises(MissingExtraError, match=r"mpsearch\[cuda\]"):
        NvmlMonitor("GPU-1")


@dataclasses.dataclass(frozen=True)
class Telling(Recorder):
    """Its cells name the process that they are measured for."""

    def shared(self):
        return os.getpid()

    def join(self, told):
        _TOLD.append(told)

    def build(self, layer, candidate, batch):
        return Cell(lambda: None, (f"for {_TOLD[0]}",), True, 0.0, 0.1)

    def bench(self, seconds=0.25):
        return CpuBench(1, 0.001)


_TOLD = []


def test_the_process_of_cells_is_told_for_whom_it_measures(tmp_path):
    table = LatencyTable.open(tmp_path, GPU.identity, "recorder", "1", 1)
    profile([LINEAR], [(FLOAT,)], Telling(), table, tmp_path, isolate=True)
    assert table.get(LINEAR, FLOAT).executed == f"for {os.getpid()}" and not _TOLD


def test_fake_nvml_the_process_that_is_measured_for_is_not_foreign(monkeypatch):
    """It has opened the card too; and of several cards its own is measured on."""
    current, held = [0], [types.SimpleNamespace(pid=p) for p in (10, 20)]
    monkeypatch.setattr("os.getpid", lambda: 10)
    monkeypatch.setattr(cards, "_SHARED", [])
    monkeypatch.setattr("torch.cuda.set_device", lambda index: current.__setitem__(0, index))
    monkeypatch.setattr("torch.cuda.current_device", lambda: current[0])
    monkeypatch.setattr(
        "torch.cuda.get_device_properties", lambda index: types.SimpleNamespace(uuid=f"GPU-{index}")
    )
    monkeypatch.setattr(probe, "gpu", lambda: GPU)
    monkeypatch.setattr("mpsearch.hardware.gpu.cells.float_cell", lambda *_: cell())
    library = fake_library(nvmlDeviceGetComputeRunningProcesses=held)
    monkeypatch.setattr("mpsearch.hardware.gpu.nvml._library", lambda: library)
    assert cards.card.__wrapped__().monitor.foreign_processes() == (20,)
    cards.join(cards.Shared(1, (20,)))
    assert cards.card.__wrapped__().monitor.foreign_processes() == () and current == [1]
    assert cards.shared() == cards.Shared(1, (10, 20))
