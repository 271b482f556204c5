"""TensorRT engines that were built and timed elsewhere, read from the files that trtexec writes."""

from mpsearch.hardware.trtexec.account import Account, Entry, account
from mpsearch.hardware.trtexec.align import TENSORS, aligned, kernels_of_build
from mpsearch.hardware.trtexec.builds import Build, card_identity, read_builds, source_folder
from mpsearch.hardware.trtexec.command import script, trtexec_call
from mpsearch.hardware.trtexec.manifest import read_manifest, read_predictions, write_manifest
from mpsearch.hardware.trtexec.model import KERNELS, fit_network, fit_runs, network_units
from mpsearch.hardware.trtexec.table import Imported, Network, import_builds

__all__ = [
    "KERNELS",
    "TENSORS",
    "Account",
    "Build",
    "Entry",
    "Imported",
    "Network",
    "account",
    "aligned",
    "card_identity",
    "fit_network",
    "fit_runs",
    "import_builds",
    "kernels_of_build",
    "network_units",
    "read_builds",
    "read_manifest",
    "read_predictions",
    "script",
    "source_folder",
    "trtexec_call",
    "write_manifest",
]
