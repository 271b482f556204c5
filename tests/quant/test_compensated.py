"""Rounding with error compensation: the textbook loop in float64, its exact error, and no row worse than
nearest.
"""

from __future__ import annotations

import pytest
import torch

from mpsearch.quant import OBSERVERS, quantize
from mpsearch.quant.compensated import DAMPING, compensated


def problem(rows, columns, groups, samples, seed=0, spread=True):
    """A weight and the moments of correlated inputs; fewer samples than columns make them rank-deficient."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(groups, columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    x = torch.randn(groups, samples, columns, generator=generator) @ mix
    x = x * torch.linspace(0.2, 3, columns) if spread else x
    weight = torch.randn(rows, columns, generator=generator)
    return weight, x.transpose(1, 2) @ x / samples


def textbook(weight, params, moments):
    """GPTQ's loop, one row and column at a time, without blocks, in float64."""
    groups, columns = moments.shape[:2]
    rows = len(weight) // groups
    codes = torch.empty_like(weight, dtype=torch.int64)
    errors = torch.zeros(len(weight), dtype=torch.float64)
    scale = params.scale.double().expand(len(weight))
    for g in range(groups):
        held = moments[g].double()
        held = held + DAMPING * held.diagonal().mean() * torch.eye(columns)
        order = torch.argsort(moments[g].diagonal(), descending=True, stable=True)
        held = held[order][:, order]
        upper = torch.linalg.cholesky(torch.linalg.inv(held), upper=True)
        for r in range(g * rows, (g + 1) * rows):
            w = weight[r, order].double()
            for j in range(columns):
                code = torch.round(w[j] / scale[r]).clamp(params.qmin, params.qmax)
                error = (w[j] - code * scale[r]) / upper[j, j]
                w[j + 1 :] -= error * upper[j, j + 1 :]
                codes[r, order[j]], errors[r] = code, errors[r] + error**2
    return codes, errors


def output_error(weight, tensor, moments, damping=0.0):
    groups, columns = moments.shape[:2]
    held = moments.double()
    held = held + damping * held.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(columns)
    shift = (tensor.dequantize() - weight).double().reshape(groups, -1, columns)
    return ((shift @ held) * shift).sum(2).flatten()


SHAPES = [(6, 9, 1, 200), (8, 9, 8, 50), (8, 18, 2, 300), (4, 16, 1, 400), (5, 24, 1, 6)]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("rows", "columns", "groups", "samples"), SHAPES)
def test_it_is_the_textbook_loop(rows, columns, groups, samples, bits):
    """Dense, depthwise, grouped, 1 x 1, and rank-deficient moments. A row that nearest rounding serves better
    is that.
    """
    weight, moments = problem(rows, columns, groups, samples)
    params = OBSERVERS.create("mse").observe(weight, bits, symmetric=True, axis=0)
    (found,) = compensated(weight, [params], moments)
    expected, errors = textbook(weight, params, moments)
    near = quantize(weight, params)
    same = (found.codes == expected).all(1)
    nearest = (found.codes == near).all(1)
    assert (same | nearest).all() and same.any()
    # the error is exactly the sum of the squared steps of the loop, for the damped moments
    exact = output_error(weight, found, moments, DAMPING)
    assert torch.allclose(exact[same], errors[same], rtol=1e-4)
    ours, plain = (
        output_error(weight, tensor, moments, DAMPING) for tensor in (found, type(found)(near, params))
    )
    assert (ours <= plain * (1 + 1e-5)).all() and ours.sum() < plain.sum()


@pytest.mark.parametrize("bits", [4, 8])
def test_without_clipping_its_error_is_below_the_bound_of_its_factor(bits):
    """Each step errs by half a step of the grid at most, so the error is below a quarter of scale^2 sum 1 /
    U_jj^2.
    """
    weight, moments = problem(8, 20, 1, 400)
    params = OBSERVERS.create("minmax").observe(
        2 * weight, bits, symmetric=True, axis=0
    )  # room to compensate
    (found,) = compensated(weight, [params], moments)
    held = moments[0].double() + DAMPING * moments[0].diagonal().mean() * torch.eye(20)
    order = torch.argsort(moments[0].diagonal(), descending=True, stable=True)
    upper = torch.linalg.cholesky(torch.linalg.inv(held[order][:, order]), upper=True)
    bound = params.scale.double() ** 2 / 4 * (1 / upper.diagonal() ** 2).sum()
    assert (output_error(weight, found, moments, DAMPING) <= bound * (1 + 1e-6)).all()


def test_all_widths_at_once_are_each_alone_and_blocks_change_nothing(monkeypatch):
    weight, moments = problem(6, 40, 1, 300)
    params = [OBSERVERS.create("mse").observe(weight, bits, symmetric=True, axis=0) for bits in (2, 3, 5, 8)]
    together = compensated(weight, params, moments)
    for p, found in zip(params, together, strict=True):
        assert torch.equal(found.codes, compensated(weight, [p], moments)[0].codes)
        assert found.codes.dtype == torch.int16 and found.params is p
    monkeypatch.setattr("mpsearch.quant.compensated.BLOCK", 7)
    blocked = compensated(weight, params, moments)
    assert all(
        float((a.codes != b.codes).float().mean()) < 0.02 for a, b in zip(together, blocked, strict=True)
    )


def test_one_scale_for_the_tensor_zeros_and_other_targets():
    weight, moments = problem(6, 9, 1, 100)
    params = OBSERVERS.create("mse").observe(weight, 4, symmetric=True)
    (found,) = compensated(weight, [params], moments)
    assert found.codes.shape == weight.shape and int(found.codes.abs().max()) <= 8
    (dead,) = compensated(weight, [params], torch.zeros(1, 9, 9))
    assert torch.equal(dead.codes, quantize(weight, params))  # nothing to make up for where nothing is read
    (other,) = compensated(weight, [params], moments, weight + 0.5)
    assert torch.equal(other.codes, compensated(weight + 0.5, [params], moments)[0].codes)
    four = weight.reshape(6, 1, 3, 3)
    assert torch.equal(compensated(four, [params], moments)[0].codes.flatten(1), found.codes)


def test_columns_that_read_nothing_are_left_out():
    """Those of the other columns are as they would be without them, also where groups differ in which these
    are.
    """
    weight, moments = problem(8, 12, 2, 200)
    dead = torch.zeros(2, 12, dtype=torch.bool)
    dead[0, [1, 4, 7]] = dead[1, [0, 4, 9, 11]] = True
    moments[dead[:, :, None] | dead[:, None, :]] = 0.0
    params = OBSERVERS.create("mse").observe(weight, 4, symmetric=True)
    (found,) = compensated(weight, [params], moments)
    near = quantize(weight, params)
    for g, rows in enumerate((slice(0, 4), slice(4, 8))):
        left = ~dead[g]
        (alone,) = compensated(weight[rows][:, left], [params], moments[g][left][:, left][None])
        assert torch.equal(found.codes[rows][:, left], alone.codes)
        assert torch.equal(found.codes[rows][:, dead[g]], near[rows][:, dead[g]])
