"""The measured loss: what is tried next, by whom it is measured, and what it teaches. Plain numbers and
callbacks, no torch.

`explore` is an Optuna study that starts from the exact front and corrects its table by what was measured;
`polish` exchanges around its best. `GreedyMP` and the samplers of `explore_by` are baselines.
"""

from mpsearch.members import SAMPLERS
from mpsearch.study.baselines import explore_by
from mpsearch.study.exchanges import Step
from mpsearch.study.greedy import WALKS, GreedyMP, GreedyRun
from mpsearch.study.losses import LossFile
from mpsearch.study.optuna_study import Trial, explore
from mpsearch.study.polish import polish
from mpsearch.study.sampler import CorrectedTableSampler

__all__ = [
    "SAMPLERS",
    "WALKS",
    "CorrectedTableSampler",
    "GreedyMP",
    "GreedyRun",
    "LossFile",
    "Step",
    "Trial",
    "explore",
    "explore_by",
    "polish",
]
