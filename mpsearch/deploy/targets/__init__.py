"""Deployment targets: one file for each runtime or tool. The registry finds them."""

from mpsearch.deploy.targets._base import TARGETS, Job, Layout, Run, Target, TargetRun

__all__ = ["TARGETS", "Job", "Layout", "Run", "Target", "TargetRun"]
