"""The seven steps, from a model and budgets to an artifact that keeps them. Each step writes what the next
one reads.
"""

from mpsearch.pipeline.config import DEFAULT_OBJECTIVES, RunConfig
from mpsearch.pipeline.jobs.profile import profile_model
from mpsearch.pipeline.progress import Progress, Silent
from mpsearch.pipeline.runner import run, search

__all__ = ["DEFAULT_OBJECTIVES", "Progress", "RunConfig", "Silent", "profile_model", "run", "search"]
