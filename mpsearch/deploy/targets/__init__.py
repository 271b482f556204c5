"""Deployment targets: one file for each runtime or tool. The registry finds them."""

from mpsearch.deploy.targets._base import MODEL_FILE, TARGETS, Job, Layout, Run, Target, TargetRun

__all__ = ["MODEL_FILE", "TARGETS", "Job", "Layout", "Run", "Target", "TargetRun"]
