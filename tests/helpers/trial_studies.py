"""A small problem with a loss that its proxy knows in part, and how a study of it is read back."""

from __future__ import annotations

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from search_problems import interacting

from mpsearch.problem import Budget
from mpsearch.solvers import reachable
from mpsearch.study.sharing.storage import STUDY_NAME

TRIALS = 30


def setting(count=12, seed=0, share=0.35):
    p, loss = interacting(count, seed)
    low, high = reachable(p)["size_bytes"]
    return p, loss, [Budget("size_bytes", low + share * (high - low), "budget")]


def load(path):
    return optuna.load_study(study_name=STUDY_NAME, storage=JournalStorage(JournalFileBackend(str(path))))
