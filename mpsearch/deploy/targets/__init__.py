"""Deployment targets: one file for each runtime or tool. The registry finds them."""

from mpsearch.deploy.targets._base import TARGETS, Job, Run, Target, TargetRun

__all__ = ["TARGETS", "Job", "Run", "Target", "TargetRun"]
