"""Contract suites for members of the extension points, for packages that add their own, and the small nets
that they run on.

Needs pytest to run, not to import.
"""

from mpsearch.testing.fake_device import fake_device
from mpsearch.testing.nets import NETS, TinyNet, tiny_net
from mpsearch.testing.objectives import ObjectiveContract
from mpsearch.testing.state import left_as_found

__all__ = ["NETS", "ObjectiveContract", "TinyNet", "fake_device", "left_as_found", "tiny_net"]
