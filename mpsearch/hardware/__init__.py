"""Hardware: what a unit costs on a real device, measured through the nodes that the exported model will hold. Knows no model and no torch."""

from mpsearch.hardware.backends import BACKENDS, Backend, Cell, Support
from mpsearch.hardware.check import TableCheck, check_tables
from mpsearch.hardware.device import DeviceIdentity, identity
from mpsearch.hardware.measure import Timing, time_callable, time_interleaved
from mpsearch.hardware.profile import LatencyCosts, latency_costs, profile
from mpsearch.hardware.rows import ModelRun, Row
from mpsearch.hardware.table import LatencyTable

__all__ = [
    "BACKENDS",
    "Backend",
    "Cell",
    "DeviceIdentity",
    "LatencyCosts",
    "LatencyTable",
    "ModelRun",
    "Row",
    "Support",
    "TableCheck",
    "Timing",
    "check_tables",
    "identity",
    "latency_costs",
    "profile",
    "time_callable",
    "time_interleaved",
]
