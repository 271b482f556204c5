"""Float as a choice under a budget of bytes: a net whose answer is known, and the words of the command line."""

import pytest

from mpsearch.cli._reading import split_bits
from mpsearch.errors import OptionError
from mpsearch.pipeline import run
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.steps.costs import sized_problem
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.problem import FLOAT, Candidate

FACTORY = """
import torch
from torch import nn


class Shift(nn.Module):
    def forward(self, x):
        return torch.cat([x[:, :-1], x[:, -1:] + 4000], 1)


class Sensitive(nn.Conv2d):
    '''Reads one channel so far off zero that 8 bits of a shared grid hold nothing of the others.'''

    def __init__(self):
        super().__init__(16, 16, 1)
        with torch.no_grad():
            self.bias.sub_(4000 * self.weight[:, -1, 0, 0])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU())
        self.b = nn.Sequential(Shift(), Sensitive(), nn.ReLU())
        self.c = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU())
        self.d = nn.Sequential(Shift(), Sensitive(), nn.ReLU())
        self.e = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU())
        self.head = nn.Linear(16, 64)
        self.pretrained_cfg = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.25,) * 3}
        self.pretrained_cfg |= {"crop_pct": 1.0, "crop_mode": "center", "interpolation": "bilinear"}

    def forward(self, x):
        return self.head(self.e(self.d(self.c(self.b(self.a(x))))).mean((2, 3)))


def make():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()
"""
SENSITIVE = {"b.1", "d.1"}


@pytest.mark.parametrize("target", ["packed", "ort-cpu"])
def test_exactly_the_sensitive_units_stay_float_under_a_budget_of_bytes(target, tmp_path, settings):
    (tmp_path / "shifted.py").write_text(FACTORY)
    config = settings(model=f"{tmp_path / 'shifted.py'}:make", target=target, floats=True)
    subject = load_subject(config, Silent())
    problem = sized_problem(subject, config)
    known = [FLOAT if layer.name in SENSITIVE else Candidate(8, 8) for layer in problem.layers]
    size = problem.cost([row.index(c) for row, c in zip(problem.candidates, known, strict=True)]).size_bytes

    study = Study(tmp_path / "study")
    best = run(settings(**{**vars(config), "budgets": (f"{int(size)}B",)}), study)["best"]
    assert {unit for unit, c in best["assignment"].items() if c == "float"} == SENSITIVE
    assert best["measured"]["size_bytes"] == best["predicted"]["size_bytes"] <= size


def test_the_word_float_behind_the_bits():
    assert split_bits(["2..8,float", "head=4..8,float"]) == (tuple(range(2, 9)), True, ("head=4..8,float",))
    assert split_bits(["2,4"]) == ((2, 4), False, ())
    with pytest.raises(OptionError, match=r"2\.\.8,float"):
        split_bits(["float,8"])
