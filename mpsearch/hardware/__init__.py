"""Hardware: what a unit costs on a real device, measured through the nodes that the exported model will hold.
Knows no model and no torch.
"""

from mpsearch.hardware.backends import BACKENDS, Backend, Bench, Cell, Measured, Support
from mpsearch.hardware.check import TableCheck, check_tables
from mpsearch.hardware.device import DeviceIdentity, identity
from mpsearch.hardware.measure import Timing, time_callable, time_interleaved
from mpsearch.hardware.profile import LatencyCosts, energy_costs, latency_costs, profile
from mpsearch.hardware.rows import ModelRun, Row
from mpsearch.hardware.table import LatencyTable

__all__ = [
    "BACKENDS",
    "Backend",
    "Bench",
    "Cell",
    "DeviceIdentity",
    "LatencyCosts",
    "LatencyTable",
    "Measured",
    "ModelRun",
    "Row",
    "Support",
    "TableCheck",
    "Timing",
    "check_tables",
    "energy_costs",
    "identity",
    "latency_costs",
    "profile",
    "time_callable",
    "time_interleaved",
]
