"""The quick form of the fuzz test, the same calls on every run; and its oracles, one by another."""

from __future__ import annotations

import fuzz
import hypothesis
import naive
import numpy as np
import pytest
from hypothesis import given
from numpy.testing import assert_allclose, assert_array_equal
from strategies import ALL_MODES, Conv, convolutions


@pytest.mark.parametrize("name", fuzz.CHECKS)
def test_calls_by_chance(name: str) -> None:
    hypothesis.settings(max_examples=300)(fuzz.search(name))()


@given(case=convolutions(ALL_MODES))
def test_taps_are_seven_loops(case: Conv) -> None:
    arrays, out_hw = (case.x, case.weight), case.grad_out.shape[2:]
    out = naive.conv2d(*arrays, case.bias, *case.geometry)
    assert_array_equal(naive.conv2d_by_taps(*arrays, case.bias, out_hw, *case.geometry), out)
    for by_taps, known in zip(
        naive.conv2d_backward_by_taps(case.grad_out, *arrays, *case.geometry),
        naive.conv2d_backward(case.grad_out, *arrays, *case.geometry),
        strict=True,
    ):
        assert_array_equal(by_taps, known)


@pytest.mark.parametrize("given_stats", [False, True])
def test_gradients_of_formulas(given_stats: bool, rng: np.random.Generator) -> None:
    # What they multiply and divide is of size 1: some tens of roundings.
    x, grad_out = rng.standard_normal((2, 3, 2, 2, 3))
    weight, bias, mean = rng.standard_normal((3, 2))
    stats = (mean, weight**2) if given_stats else ()
    grads = naive.batch_norm2d_backward(grad_out, x, weight, *stats)
    h = 1e-6
    for array, grad in zip((x, weight, bias), grads, strict=True):
        for index in np.ndindex(*array.shape):
            before = array[index]
            sums = []
            for moved in (before + h, before - h):
                array[index] = moved
                sums.append((grad_out * naive.batch_norm2d(x, weight, bias, *stats)[0]).sum())
            array[index] = before
            # Central differences: h**2 from the third derivative, 1e-16 / h from the rounding.
            assert_allclose(grad[index], (sums[0] - sums[1]) / (2 * h), atol=1e-8)


@pytest.mark.parametrize("log", [False, True])
def test_gradients_of_softmax(log: bool, rng: np.random.Generator) -> None:
    x, grad_out = rng.standard_normal((2, 3, 5))
    known = naive.softmax_backward(grad_out, x, log)
    for index in np.ndindex(*x.shape):
        step = np.zeros(x.shape)
        step[index] = 1e-6
        change = naive.softmax(x + step, log) - naive.softmax(x - step, log)
        assert_allclose(known[index], (grad_out * change).sum() / 2e-6, atol=1e-8)  # as above
