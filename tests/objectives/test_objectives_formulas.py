"""Each objective against its formula worked by hand, and the repair of a table."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from mpsearch.data import ImageSet
from mpsearch.errors import ModelError, MpsearchError, OptionError, UnknownNameError
from mpsearch.objectives import OBJECTIVES, Objective, ScoringContext, score
from mpsearch.objectives._base import monotone
from mpsearch.objectives.coding_length import CodingLength, coding_length
from mpsearch.problem import Candidate, Layer
from mpsearch.reconstruct import Calibration, calibrate

FLOAT = Candidate(None, None, "float")


def matrix(n: int, m: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_det_bits(v: np.ndarray, eps2: float) -> float:
    """The formula as it is written, with the n x n determinant."""
    n, m = v.shape
    v = v - v.mean(1, keepdims=True)
    return (m + n) / 2 * np.linalg.slogdet(np.eye(n) + n / (eps2 * m) * v @ v.T)[1] / math.log(2)


class TestCodingLength:
    @pytest.mark.parametrize(("n", "m"), [(3, 20), (20, 3), (7, 7), (1, 5), (5, 1), (64, 8)])
    @pytest.mark.parametrize("eps2", [1e-4, 0.1, 10.0])
    def test_either_gram_matrix_gives_the_formula(self, n, m, eps2):
        v = matrix(n, m)
        found = coding_length(v, eps2)
        assert found == pytest.approx(log_det_bits(v.numpy(), eps2), rel=1e-9, abs=1e-9)
        centered = (v - v.mean(1, keepdim=True)).numpy()
        other = (
            (m + n)
            / 2
            * np.linalg.slogdet(np.eye(m) + n / (eps2 * m) * centered.T @ centered)[1]
            / math.log(2)
        )
        assert found == pytest.approx(other, rel=1e-9, abs=1e-9)

    def test_by_hand(self):
        v = torch.tensor([[3.0, -3.0]])  # n = 1, m = 2, V V^T = 18
        assert coding_length(v, 1.0) == pytest.approx(1.5 * math.log2(1 + 0.5 * 18))

    @pytest.mark.parametrize("axis", [0, 1])
    def test_order_of_rows_and_columns_does_not_matter(self, axis):
        v = matrix(6, 9)
        turned = v.index_select(
            axis, torch.randperm(v.shape[axis], generator=torch.Generator().manual_seed(1))
        )
        assert not torch.equal(turned, v)
        assert coding_length(turned, 0.1) == pytest.approx(coding_length(v, 0.1), rel=1e-12)

    @pytest.mark.parametrize("factor", [1e-3, 2.0, -5.0, 1e4])
    def test_scale_law(self, factor):
        v = matrix(6, 9)
        assert coding_length(factor * v, factor**2 * 0.1) == pytest.approx(coding_length(v, 0.1), rel=1e-9)

    def test_falls_when_more_distortion_is_allowed(self):
        lengths = [coding_length(matrix(6, 9), 10.0**k) for k in range(-6, 5)]
        assert all(a > b > 0 for a, b in itertools.pairwise(lengths))

    def test_zero_and_equal_vectors_need_nothing(self):
        assert coding_length(torch.zeros(4, 6), 0.1) == 0.0
        assert coding_length(torch.arange(4.0)[:, None].expand(4, 6), 0.1) == pytest.approx(0.0, abs=1e-9)
        assert CodingLength().rate(torch.full((4, 3), 2.0)) == 0.0

    def test_nan_is_not_a_good_score(self):
        v = matrix(4, 6)
        v[1, 2] = float("nan")
        assert math.isnan(coding_length(v, 0.1))

    @pytest.mark.parametrize("factor", [1e-4, 3.0, 1e4])
    def test_rate_is_for_each_weight_and_blind_to_scale(self, factor):
        weight = matrix(8, 12).float().reshape(8, 3, 2, 2)
        rows = weight.flatten(1).double().numpy()
        expected = log_det_bits(rows.T, 0.01 * rows.var()) / rows.size
        assert CodingLength().rate(weight) == pytest.approx(expected, rel=1e-6)
        assert CodingLength().rate(factor * weight) == pytest.approx(expected, rel=1e-5)

    def test_a_bit_less_costs_four_times(self):
        weight = matrix(8, 12).float()
        candidates = (Candidate(3, 8), Candidate(4, 8), Candidate(5, 4), FLOAT)
        coding = CodingLength(reading="rate")
        (row,) = coding.score(context_of(weight, candidates))
        assert row[1] == pytest.approx(96 * 4 ** (coding.rate(weight) - 4))
        assert row == pytest.approx([4 * row[1], row[1], row[1] / 4, 0.0])

    @pytest.mark.parametrize("value", ["0", "-1", "nan"])
    def test_a_distortion_that_is_not_positive_is_refused(self, value):
        with pytest.raises(OptionError, match="must be positive"):
            OBJECTIVES.create(f"coding_length:eps2={value}")


def context_of(
    weight: torch.Tensor, candidates: tuple[Candidate, ...], observer: str = "minmax"
) -> ScoringContext:
    """One linear layer, on 3 x 1 x 1 images where its width fits them."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], weight.shape[0])).eval()
    net[1].weight.data = weight
    pixels = torch.randint(
        256, (40, weight.shape[1], 1, 1), generator=torch.Generator().manual_seed(3), dtype=torch.uint8
    )
    images = ImageSet(pixels, None, (0.3,) * weight.shape[1], (0.25,) * weight.shape[1])
    calibration = calibrate(net, ["1"], [images.inputs()], weight_observer=observer, input_observer=observer)
    layer = Layer(
        "1", "linear", tuple(weight.shape), ((1, weight.shape[1]),), (1, weight.shape[0]), weight.numel(), "1"
    )
    return ScoringContext(net, (layer,), (candidates,), calibration, images)


@torch.no_grad()
def rows_of(text: str, context: ScoringContext) -> list[list[float]]:
    return OBJECTIVES.create(text).score(context)


class TestWeightMse:
    """[3.5, 1.2] at 3 bits: step 1, codes 3 (clamped from 4) and 1. [-7, 2.6]: step 2, codes -4 (a tie to
    even) and 1.
    """

    WEIGHT: ClassVar = torch.tensor([[3.5, 1.2], [-7.0, 2.6]])
    ERROR = 0.5**2 + 0.2**2 + 1.0**2 + 0.6**2

    def test_by_hand(self):
        context = context_of(self.WEIGHT, (Candidate(3, 8), Candidate(3, 2), FLOAT))
        (row,) = rows_of("weight_mse:normalize=none", context)
        assert row == pytest.approx([self.ERROR, self.ERROR, 0.0], rel=1e-5)
        power = 3.5**2 + 1.2**2 + 7**2 + 2.6**2
        (row,) = rows_of("weight_mse", context)
        assert row == pytest.approx([self.ERROR / power, self.ERROR / power, 0.0], rel=1e-5)

    def test_one_scale_for_the_tensor_by_hand(self):
        (row,) = rows_of(
            "weight_mse:normalize=none", context_of(self.WEIGHT, (Candidate(3, 8, w_granularity="tensor"),))
        )
        assert row == pytest.approx(
            [0.5**2 + 0.8**2 + 1.0**2 + 0.6**2], rel=1e-5
        )  # step 2: codes 2, 1, -4, 1

    def test_a_zero_weight_has_no_error(self):
        assert rows_of("weight_mse", context_of(torch.zeros(2, 3), (Candidate(2, 8),))) == [[0.0]]

    def test_another_norm_is_refused(self):
        with pytest.raises(OptionError, match="'power', 'none'"):
            OBJECTIVES.create("weight_mse:normalize=max")


class TestOutputMse:
    @pytest.mark.parametrize("text", ["output_mse", "output_mse:batch_size=7", "output_mse:images=16"])
    def test_is_the_layer_quantised_by_hand(self, text):
        weight = matrix(5, 3).float()
        weight *= weight.gather(
            1, weight.abs().argmax(1, keepdim=True)
        ).sign()  # a negative extreme would lie half-way between two codes
        context = context_of(weight, (Candidate(3, 5), Candidate(8, 5), FLOAT))
        used = context.images.inputs().flatten(1).numpy().astype(np.float64)
        every, bias = used, context.module[1].bias.detach().double().numpy()
        used = used[:16] if "images" in text else used
        (row,) = rows_of(text, context)
        w, low, high = weight.numpy().astype(np.float64), every.min(), every.max()
        step = (high - low) / 31
        x_hat = (np.clip(np.round(used / step) + np.round(-low / step), 0, 31) - np.round(-low / step)) * step
        y = used @ w.T + bias
        for found, bits in zip(row, (3, 8), strict=False):
            scale = np.abs(w).max(1, keepdims=True) / ((2**bits - 1) / 2)
            w_hat = np.clip(np.round(w / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale
            corrected = bias + (w - w_hat) @ every.mean(0)  # what the bias of the quantised unit is
            assert found == pytest.approx(
                ((x_hat @ w_hat.T + corrected - y) ** 2).sum() / ((y - y.mean()) ** 2).sum(), rel=1e-4
            )
        assert row[2] == 0.0
        assert row[0] > row[1] > 0

    def test_an_output_that_does_not_vary_is_named(self):
        context = context_of(matrix(2, 3).float(), (Candidate(4, 8),))
        context.module[1].weight.data, context.module[1].bias.data = torch.zeros(2, 3), torch.zeros(2)
        with pytest.raises(ModelError, match="'1' gives a constant output"):
            rows_of("output_mse", context)
        assert not context.module[1]._forward_hooks

    @pytest.mark.parametrize("text", ["output_mse:images=0", "output_mse:batch_size=0"])
    def test_bad_options_are_refused(self, text):
        with pytest.raises(OptionError, match="at least 1"):
            OBJECTIVES.create(text)


@dataclass(frozen=True)
class Given(Objective):
    """Gives the table that it was given; not registered."""

    name: ClassVar[str] = "given"
    rows: tuple[tuple[float, ...], ...] = ()

    def score(self, context: ScoringContext) -> list[list[float]]:
        return [list(row) for row in self.rows]


def given_context(candidates: tuple[Candidate, ...]) -> ScoringContext:
    layer = Layer("fc", "linear", (2, 2), ((1, 2),), (1, 2), 4, "fc")
    return ScoringContext(nn.Identity(), (layer,), (candidates,), Calibration({}, {}, {}), None)


class TestRepair:
    ROW_OF_3 = tuple(Candidate(bits, 8) for bits in (2, 4, 8))

    def test_a_falling_row_is_left_alone(self):
        assert monotone(self.ROW_OF_3, [3.0, 2.0, 2.0]) == ([3.0, 2.0, 2.0], 0)

    def test_a_rising_pair_becomes_its_mean_and_is_counted(self):
        assert monotone(self.ROW_OF_3, [3.0, 1.0, 2.0]) == ([3.0, 1.5, 1.5], 2)
        assert monotone(self.ROW_OF_3, [1.0, 2.0, 3.0]) == ([2.0, 2.0, 2.0], 2)

    def test_the_order_of_candidates_does_not_matter(self):
        assert monotone(self.ROW_OF_3[::-1], [2.0, 1.0, 3.0]) == ([1.5, 1.5, 3.0], 2)

    def test_input_bits_granularity_and_float_are_not_mixed(self):
        candidates = (
            Candidate(4, 8),
            Candidate(4, 4),
            Candidate(8, 8, w_granularity="tensor"),
            Candidate(4, 8, w_granularity="tensor"),
            FLOAT,
        )
        row = [1.0, 5.0, 2.0, 3.0, 0.0]
        assert monotone(candidates, row) == (row, 0)
        assert monotone((Candidate(2, 4), Candidate(8, 4), *candidates), [1.0, 6.0, *row])[0][2:] == [
            1.0,
            pytest.approx(4.0),
            *row[2:],
        ]

    def test_score_reports_what_it_moved(self):
        report = score(Given(((3.0, 1.0, 2.0),)), given_context(self.ROW_OF_3))
        assert (report.rows, report.violations) == (((3.0, 1.5, 1.5),), 2)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e-9])
    def test_a_bad_score_names_unit_and_candidate(self, bad):
        with pytest.raises(MpsearchError, match=r"'given' gives .* for 'fc' at W4A8"):
            score(Given(((3.0, bad, 2.0),)), given_context(self.ROW_OF_3))

    def test_a_table_of_another_shape_is_refused(self):
        with pytest.raises(ValueError, match="zip"):
            score(Given(((3.0, 1.0),)), given_context(self.ROW_OF_3))


def test_an_unknown_objective_names_the_closest():
    with pytest.raises(UnknownNameError, match="Did you mean 'weight_mse'"):
        OBJECTIVES.create("weigth_mse")
