"""Exact clustering of numbers, bit-widths without a budget, and the tables of the coding length."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from mpsearch.errors import OptionError, UserError
from mpsearch.objectives import OBJECTIVES, Passes
from mpsearch.objectives._clusters import cluster
from mpsearch.objectives.coding_length import CodingLength, cluster_bits, excess
from mpsearch.problem import Candidate, Layer
from mpsearch.quant import OBSERVERS
from mpsearch.reconstruct import Calibration


def cost(values, labels) -> float:
    values, labels = np.asarray(values, float), np.asarray(labels)
    return float(
        sum(((values[labels == c] - values[labels == c].mean()) ** 2).sum() for c in set(labels.tolist()))
    )


def least_cost(values, k: int) -> float:
    """Over every partition into at most k groups, intervals or not."""
    return min(cost(values, labels) for labels in itertools.product(range(k), repeat=len(values)))


def weight_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def context_of(weights: dict[str, torch.Tensor], candidates: tuple[Candidate, ...]) -> SimpleNamespace:
    layers = tuple(
        Layer(name, "conv2d", tuple(w.shape), ((1,),), (1,), w.numel(), name) for name, w in weights.items()
    )
    calibration = Calibration(weights, {}, {}, weight_observer="minmax")
    return SimpleNamespace(
        layers=layers,
        candidates=(candidates,) * len(layers),
        calibration=calibration,
        on_step=lambda done, total: None,
    )


class TestCluster:
    @pytest.mark.parametrize("seed", range(40))
    @pytest.mark.parametrize("k", [1, 2, 3])
    def test_is_the_optimum(self, seed, k):
        draw = np.random.default_rng(seed)
        values = (
            draw.normal(size=7) if seed % 2 else draw.integers(0, 5, size=7) * 1.0
        )  # ties in every other one
        labels = cluster(list(values), k)
        assert cost(values, labels) == pytest.approx(least_cost(values, k), abs=1e-12)
        assert len(set(labels)) == min(k, len(set(values.tolist())))

    @pytest.mark.parametrize("seed", range(5))
    def test_is_never_worse_than_scikit_learn_and_mostly_equal_to_it(self, seed):
        values = np.random.default_rng(seed).lognormal(size=60)
        theirs = KMeans(5, n_init=50, random_state=0).fit(values[:, None])
        found = cost(values, cluster(list(values), 5))
        assert found <= theirs.inertia_ * (1 + 1e-9)
        assert found == pytest.approx(theirs.inertia_, rel=0.02)

    @pytest.mark.parametrize(("shift", "factor"), [(1e6, 1.0), (0.0, 1e-9), (-3.0, 1e9)])
    def test_shift_and_scale_change_nothing(self, shift, factor):
        values = np.random.default_rng(3).normal(size=30)
        assert cluster(list(values * factor + shift), 4) == cluster(list(values), 4)

    def test_labels_ascend_and_equal_values_stay_together(self):
        assert cluster([5.0, 1.0, 1.0, 9.0, 5.1, 1.0], 3) == [1, 0, 0, 2, 1, 0]
        assert cluster([2.0, 2.0, 2.0], 3) == [0, 0, 0]
        assert cluster([], 3) == []

    @pytest.mark.parametrize(("values", "k"), [([1.0], 0), ([1.0, float("nan")], 1), ([float("inf")], 2)])
    def test_what_cannot_be_clustered_is_refused(self, values, k):
        with pytest.raises(UserError, match="Cannot cluster"):
            cluster(values, k)


class TestClusterBits:
    def test_larger_scores_get_more_bits(self):
        assert cluster_bits([0.1, 7.0, 3.0, 2.9, 0.2], [8, 2, 4]) == [2, 8, 4, 4, 2]

    def test_fewer_scores_than_bit_widths_take_the_largest(self):
        assert cluster_bits([1.0, 1.0], [2, 4, 8]) == [8, 8]
        assert cluster_bits([1.0, 2.0], [2, 4, 8]) == [4, 8]
        assert cluster_bits([], [2, 4]) == []

    @pytest.mark.parametrize("bits", [[], [4, 4]])
    def test_bit_widths_that_cannot_be_given_are_refused(self, bits):
        with pytest.raises(OptionError, match="Give at least one, and each once"):
            cluster_bits([1.0], bits)


class TestReadings:
    def test_noise_has_no_excess_whatever_its_shape_while_its_rate_follows_the_shape(self):
        noises = [weight_of(*shape, seed=9) for shape in ((64, 16), (16, 256), (128, 9), (40, 40))]
        assert max(abs(excess(w, "mse")) for w in noises) < 0.3
        rates = [CodingLength(reading="rate").rate(w) for w in noises]
        assert max(rates) - min(rates) > 3

    def test_rows_of_few_directions_fall_short_of_noise_and_even_ones_exceed_it(self):
        narrow = weight_of(64, 2) @ weight_of(2, 64, seed=1)
        even = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) - 0.5
        assert excess(narrow, "mse") < -1 < 0 < excess(even, "mse")
        assert excess(torch.ones(4, 5), "mse") == 0.0

    def test_neither_the_unit_of_the_weights_nor_of_a_channel_counts(self):
        w = weight_of(20, 30, seed=3) ** 3
        factors = 1 + torch.arange(20.0)[:, None]
        assert excess(w * factors, "minmax") == pytest.approx(excess(w, "minmax"), abs=1e-5)


class TestTables:
    CANDIDATES = tuple(Candidate.parse(text) for text in ("W2A8", "W4A8", "W8A8", "W4A8/tensor", "float"))
    WEIGHTS: ClassVar = {
        "depthwise": weight_of(32, 1, 3, 3),
        "grouped": weight_of(8, 4, 3, 3, seed=1) ** 3,
        "linear": weight_of(10, 40, seed=2),
        "flat": torch.ones(6, 5),
    }

    def test_of_clusters_has_its_own_assignment_as_optimum(self):
        candidates = tuple(Candidate(bits, 8) for bits in (2, 4, 8))
        context = context_of(self.WEIGHTS, candidates)
        rows = OBJECTIVES.create("coding_length:mode=cluster").score(context)
        rates = [CodingLength().level(context.calibration, unit) for unit in self.WEIGHTS]
        chosen = [(2, 4, 8).index(b) for b in cluster_bits(rates, [2, 4, 8])]
        assert len(set(chosen)) == 3
        sizes = [w.numel() for w in self.WEIGHTS.values()]

        def total(table, choice):
            return sum(table[at][c] for at, c in enumerate(choice))

        size = [[n * b for b in (2, 4, 8)] for n in sizes]
        fitting = [c for c in itertools.product(range(3), repeat=4) if total(size, c) <= total(size, chosen)]
        assert min(fitting, key=lambda c: total(rows, c)) == tuple(chosen)
        assert total(rows, chosen) == sum(sizes)

    def test_of_clusters_says_its_assignment(self):
        parts = OBJECTIVES.create("coding_length:mode=cluster,reading=rate").parts(
            context_of(self.WEIGHTS, tuple(Candidate(bits, 8) for bits in (2, 4, 8)))
        )
        given = dict(
            zip(
                self.WEIGHTS,
                cluster_bits([CodingLength().rate(w) for w in self.WEIGHTS.values()], [2, 4, 8]),
                strict=True,
            )
        )
        mean = sum(given[unit] * w.numel() for unit, w in self.WEIGHTS.items()) / sum(
            w.numel() for w in self.WEIGHTS.values()
        )
        (note,) = parts.notes
        assert note.startswith(f"Clustered without a budget, {mean:.2f} bits a weight: 8 bits: ")
        assert all(
            unit in note.partition(f"{bits} bits: ")[2].partition(";")[0] for unit, bits in given.items()
        )
        assert (
            OBJECTIVES.create("coding_length").parts(context_of(self.WEIGHTS, (Candidate(4, 8),))).notes == ()
        )

    def test_of_distortion_is_the_length_lost(self):
        rows = OBJECTIVES.create("coding_length:mode=distortion").score(
            context_of(self.WEIGHTS, self.CANDIDATES)
        )
        for row, weight in zip(rows, self.WEIGHTS.values(), strict=True):
            rest = weight.flatten(1).double().numpy()
            for value, candidate in zip(row[:-1], self.CANDIDATES, strict=False):
                axis = 0 if candidate.w_granularity == "channel" else None
                scale = (
                    OBSERVERS.create("minmax")
                    .observe(weight, candidate.w_bits, symmetric=True, axis=axis)
                    .scale.double()
                    .numpy()
                )
                v = (rest / (scale[:, None] if scale.ndim else scale)).T
                v -= v.mean(1, keepdims=True)
                n, m = v.shape

                def bits(eps2, v=v, n=n, m=m):
                    return (
                        (m + n) / 2 * np.linalg.slogdet(np.eye(n) + n / (eps2 * m) * v @ v.T)[1] / math.log(2)
                    )

                expected = bits(4.0 ** (candidate.w_bits - 16) / 12) - bits(1 / 12)
                assert value == pytest.approx(
                    expected, rel=1e-6, abs=1e-9
                )  # determinants near 1e12 in float64
            assert row[-1] == 0.0
            assert row[0] >= row[1] >= row[2]
        assert rows[0][0] > rows[0][1] > rows[0][2] > 0
        assert rows[3] == [0.0] * 5, "a constant weight loses nothing"

    def test_of_distortion_does_not_depend_on_the_unit_of_the_weights(self):
        first = OBJECTIVES.create("coding_length:mode=distortion").score(
            context_of(self.WEIGHTS, self.CANDIDATES)
        )
        scaled = {name: 1e3 * w for name, w in self.WEIGHTS.items()}
        second = OBJECTIVES.create("coding_length:mode=distortion").score(context_of(scaled, self.CANDIDATES))
        assert np.allclose(first, second, rtol=1e-5)

    def test_budget_is_the_default_and_needs_no_pass(self):
        context = context_of(self.WEIGHTS, self.CANDIDATES)
        rows = OBJECTIVES.create("coding_length:mode=budget").score(context)
        assert rows == CodingLength().score(context)
        rows = CodingLength(reading="rate").score(context)
        assert rows[0][1] == pytest.approx(288 * 4 ** (CodingLength().rate(self.WEIGHTS["depthwise"]) - 4))
        assert CodingLength().passes(context) == Passes(0, 0, 0)

    def test_another_mode_is_refused(self):
        with pytest.raises(OptionError, match="'budget', 'cluster', 'distortion'"):
            OBJECTIVES.create("coding_length:mode=kmeans")
