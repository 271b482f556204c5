"""What decides about a GPU reading, with a fake NVML and a fake CUDA timer: no GPU is here, and no time below is one."""

import dataclasses
import itertools
import json
import types
from datetime import UTC, datetime

import pytest

from mpsearch.errors import MissingExtraError, MpsearchError, TableError
from mpsearch.hardware.backends import Backend, Cell, Support
from mpsearch.hardware.gpu.measure import CardState, ForeignProcessError, GpuSettings, read_cell
from mpsearch.hardware.gpu.nvml import NvmlMonitor
from mpsearch.hardware.gpu.profile import GpuLog, GpuProfiler, cells_of, gpu_costs
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
    """A launch of n calls takes n times the microseconds of its first run; `noise` is added to launches in turn."""

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
    assert len(set(cold)) == len(cold) == 21 and len(set(hot)) == 1 and len(hot) == 21  # 21 x 100 bytes are the first above 2 x 1000
    assert reading.rotated_bytes == 2100 and reading.copies == 21
    assert (reading.median_us, reading.hot_us, reading.trouble) == (8.0, 8.0, ())


@pytest.mark.parametrize(("touched", "copies"), [(10_000, 4), (1, 64), (0, 4)], ids=["large", "tiny", "unknown"])
def test_fake_timer_number_of_copies(touched, copies):
    _, timer = read(settings=dataclasses.replace(SETTINGS, most_copies=64), made=cell(touched=touched))
    assert len(timer.captured[0]) == copies


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
    [({"sm_mhz": 1945}, ()), ({"sm_mhz": 1935}, ("processor clock 1980 to 1935 MHz",)), ({"memory_mhz": 1600}, ("memory clock 3201 to 1600 MHz",))],
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
    threads: int = 1
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


LINEAR = Layer("fc", "linear", (5, 8), ((1, 8),), (1, 5), 40, "b", calls=3)
TWIN = dataclasses.replace(LINEAR, name="twin", calls=1)


def profiler(backend, timer=None, monitor=None, **settings):
    timer = timer or FakeTimer()
    settings = dataclasses.replace(SETTINGS, **settings)
    return GpuProfiler(backend, timer, monitor or FakeMonitor(timer), cell(5.0), settings, clock=lambda: datetime(2026, 1, 1, tzinfo=UTC))


def run(tmp_path, backend=None, candidates=(FLOAT, W8A8), layers=(LINEAR, TWIN), **options):
    backend = backend or Recorder()
    log = GpuLog.open(tmp_path / "log.jsonl")
    left = profiler(backend, **options).profile(cells_of(layers, candidates, backend, 1), log, 1)
    return log, backend, left


def test_fake_timer_every_shape_is_read_twice_and_logged(tmp_path):
    log, backend, left = run(tmp_path)
    assert left == 0 and sorted(backend.built) == [("fc", "W8A8"), ("fc", "float")]
    assert {(r.status, len(r.readings), r.median_us, r.anchor_us) for r in log.rows.values()} == {("ok", 2, 8.0, 5.0)}
    assert GpuLog.open(tmp_path / "log.jsonl").rows == log.rows
    assert run(tmp_path)[1].built == []


def test_fake_nvml_a_throttled_reading_is_taken_again_and_kept_as_rejected(tmp_path):
    slow = dataclasses.replace(STEADY, reasons=("sw_power_cap",))
    states = [STEADY] * 2 + [STEADY, slow] + [STEADY]  # the anchor's two, the first reading's two, then steady
    timer = FakeTimer()
    log, _, _ = run(tmp_path, candidates=(W8A8,), timer=timer, monitor=FakeMonitor(timer, states))
    (row,) = log.rows.values()
    assert row.status == "ok" and len(row.readings) == 2 and [r.trouble for r in row.rejected] == [("sw_power_cap",)]


def test_fake_nvml_three_strikes_are_unstable(tmp_path):
    timer = FakeTimer()
    slow = dataclasses.replace(STEADY, reasons=("hw_thermal",))
    log, _, _ = run(tmp_path, candidates=(W8A8,), timer=timer, monitor=FakeMonitor(timer, [slow]))
    (row,) = log.rows.values()
    assert row.status == "unstable" and row.usable and len(row.readings) + len(row.rejected) == SETTINGS.tries + 1  # two passes, the second at the limit


def test_fake_timer_cells_are_measured_again_when_the_anchor_moves(tmp_path):
    timer = FakeTimer()
    steps = iter([5.0] + [5.5] * 99)
    moving = Cell(lambda: 0.0, ("anchor",), True, 0.0, 0.1, 100, lambda: lambda: 0.0)
    measured = profiler(Recorder(), timer)
    measured.anchor = moving
    plain = timer.capture

    def capture(runs):
        if runs[0] is not moving.run or len(set(runs)) == 1:
            return plain(runs)
        value = next(steps)
        return lambda: value * len(runs)

    timer.capture = capture
    backend, log = measured.backend, GpuLog(tmp_path / "log.jsonl")
    measured.profile(cells_of([LINEAR], [W8A8], backend, 1), log, 1)
    (row,) = log.rows.values()
    assert row.status == "ok" and row.anchor_us == 5.5 and len(row.rejected) == 2 and len(backend.built) == 2


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
def test_what_is_not_right_is_not_timed(tmp_path, made, status):
    backend = Recorder(made={"W8A8": made})
    log, _, _ = run(tmp_path, backend, layers=[LINEAR])
    row = next(r for r in log.rows.values() if r.kernel == "W8A8")
    assert (row.status, row.readings, row.usable) == (status, (), False)
    assert "no kernel image" in row.executed or status != "crash"
    costs = gpu_costs([LINEAR], [(FLOAT, W8A8)], backend, log, 1)
    assert costs.latency_us == ((24.0, float("inf")),) and costs.unusable[0][:2] == ("fc", "W8A8") and status in costs.unusable[0][2]


def test_energy_is_a_column_of_the_costs_beside_latency(tmp_path):
    log, backend, _ = run(tmp_path)
    costs = gpu_costs([LINEAR, TWIN], [(FLOAT, W4A8, FP8), (W8A8,)], backend, log, 1)
    each = 50.0 / 21
    assert costs.latency_us == ((24.0, 24.0, float("inf")), (8.0,))
    assert costs.energy_mj[0][:2] == pytest.approx((3 * each, 3 * each)) and costs.energy_mj[1] == pytest.approx((each,))
    assert costs.unusable == (("fc", "fp8", "has none"),)


def test_a_deadline_keeps_what_is_measured(tmp_path):
    backend, log = Recorder(), GpuLog(tmp_path / "log.jsonl")
    layers = [dataclasses.replace(LINEAR, weight_shape=(5, 8 + i), input_shapes=((1, 8 + i),)) for i in range(6)]
    up = iter([False] * 8 + [True] * 99)
    cells = cells_of(layers, [W8A8], backend, 1)
    left = profiler(backend, anchor_every=2).profile(cells, log, 1, deadline=lambda: next(up))
    assert 0 < left < 6 and len(log.rows) == 6 - left
    assert profiler(backend).profile(cells, GpuLog.open(log.path), 1) == 0


@pytest.mark.parametrize("damage", ["{", '{"schema": 2}', '{"schema": 1, "key": "x"}', "[]"])
def test_a_damaged_log_is_one_clear_error(tmp_path, damage):
    log, _, _ = run(tmp_path)
    log.path.write_text(log.path.read_text() + damage + "\n")
    with pytest.raises(TableError, match="line 3"):
        GpuLog.open(log.path)


def fake_library(**changes):
    class NVMLError(Exception):
        pass

    class NotSupportedError(NVMLError):
        pass

    import pynvml

    names = [n for n in dir(pynvml) if n.startswith(("nvmlClocks", "NVML_"))]
    library = types.SimpleNamespace(**{n: getattr(pynvml, n) for n in names}, NVMLError=NVMLError, NVMLError_NotSupported=NotSupportedError)
    values = {
        "nvmlInit": None,
        "nvmlDeviceGetHandleByUUID": "card",
        "nvmlDeviceGetClockInfo": 1980,
        "nvmlDeviceGetTemperature": 40,
        "nvmlDeviceGetPowerUsage": 250_500,
        "nvmlDeviceGetCurrentClocksEventReasons": library.nvmlClocksEventReasonSwPowerCap | library.nvmlClocksEventReasonGpuIdle,
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
        setattr(library, name, call({"error": NVMLError, "unsupported": NotSupportedError}.get(value, value) if isinstance(value, str) else value))
    return library


def test_fake_nvml_library_is_read_in_the_units_that_are_named():
    monitor = NvmlMonitor("GPU-1", fake_library())
    assert monitor.state() == CardState(1980, 1980, 40, 250.5, ("idle", "sw_power_cap"))
    assert monitor.energy_mj() == 12345.0
    assert monitor.about() == {"driver": "580.1", "power_limit_w": 700.0, "max_sm_mhz": 1980, "max_memory_mhz": 1980}


def test_fake_nvml_library_without_a_counter_or_a_card():
    assert NvmlMonitor("GPU-1", fake_library(nvmlDeviceGetTotalEnergyConsumption="unsupported")).energy_mj() is None
    with pytest.raises(MpsearchError, match="GPU-9"):
        NvmlMonitor("GPU-9", fake_library(nvmlDeviceGetHandleByUUID="error"))


@pytest.mark.parametrize(("held", "foreign"), [([], ()), ([10], ()), ([10, 20], ()), ([1, 10], (1,)), ([1, 2], (2,)), ([1], ())])
def test_fake_nvml_library_foreign_processes(monkeypatch, held, foreign):
    monkeypatch.setattr("os.getpid", lambda: 10)
    library = fake_library(nvmlDeviceGetComputeRunningProcesses=[types.SimpleNamespace(pid=p) for p in held])
    assert NvmlMonitor("GPU-1", library, (20,)).foreign_processes() == foreign


def test_without_nvidia_ml_py_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    with pytest.raises(MissingExtraError, match=r"mpsearch\[cuda\]"):
        NvmlMonitor("GPU-1")


def test_rows_are_plain_json(tmp_path):
    log, _, _ = run(tmp_path)
    lines = log.path.read_text().splitlines()
    assert all(json.loads(line)["schema"] == 1 for line in lines) and len(lines) == 2
