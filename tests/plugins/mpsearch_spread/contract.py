"""The package's own test: the contract that mpsearch hands out. Run by tests/plugins/test_plugin_package.py,
where the package is installed.
"""

from mpsearch.testing import ObjectiveContract


class TestWeightSpread(ObjectiveContract):
    objectives = ("weight_spread", "weight_spread:power=1")
