"""linear and its gradients: a hand value, then three plain loops over awkward sizes."""

from __future__ import annotations

from typing import Any

import naive
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from tolerances import assert_close

import cnnx

SIZES = [(1, 1, 1), (1, 7, 3), (5, 1, 4), (4, 24, 24), (3, 25, 23), (17, 13, 11), (64, 65, 10)]


def test_by_hand(implementation: str, dtype: Any) -> None:
    # weight is (in, out), as in x @ W + b
    x = np.array([[1, 2, 3], [4, 5, 6]], dtype)
    weight = np.array([[1, -1], [10, 0], [100, 2]], dtype)
    out = cnnx.linear(x, weight, np.array([0.5, -0.5], dtype))
    assert out.dtype == dtype
    assert_array_equal(out, np.array([[321.5, 4.5], [654.5, 7.5]], dtype))


def test_gradients_by_hand(implementation: str, dtype: Any) -> None:
    x = np.array([[1, 2], [3, 4]], dtype)
    weight = np.array([[1, 2, 3], [4, 5, 6]], dtype)
    grad_out = np.array([[1, 0, -1], [0, 2, 0]], dtype)
    grad_x, grad_weight, grad_bias = cnnx.linear_backward(grad_out, x, weight)
    assert_array_equal(grad_x, [[-2, -2], [4, 10]])  # grad_out @ weight.T
    assert_array_equal(grad_weight, [[1, 6, -1], [2, 8, -2]])  # x.T @ grad_out
    assert_array_equal(grad_bias, [1, 2, -1])
    assert grad_x.dtype == grad_weight.dtype == grad_bias.dtype == dtype


@pytest.mark.parametrize(("rows", "inner", "columns"), SIZES)
def test_against_loops(
    rows: int, inner: int, columns: int, implementation: str, dtype: Any, rng: np.random.Generator
) -> None:
    x, weight = naive.integers(rng, (rows, inner)), naive.integers(rng, (inner, columns))
    bias, grad_out = naive.integers(rng, (columns,)), naive.integers(rng, (rows, columns))
    x_, weight_, bias_, grad_out_ = (a.astype(dtype) for a in (x, weight, bias, grad_out))
    assert_array_equal(cnnx.linear(x_, weight_, bias_), naive.linear(x, weight, bias))
    assert_array_equal(cnnx.linear(x_, weight_), naive.linear(x, weight))
    grad_x, grad_weight, grad_bias = cnnx.linear_backward(grad_out_, x_, weight_)
    assert_array_equal(grad_x, naive.linear(grad_out, weight.T))
    assert_array_equal(grad_weight, naive.linear(x.T, grad_out))
    assert_array_equal(grad_bias, naive.linear(np.ones((1, rows)), grad_out)[0])


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("inner", [5, 600])
def test_fused_activation(
    inner: int, activation: str, implementation: str, dtype: Any, rng: np.random.Generator
) -> None:
    # 600 inputs take several passes over K: the activation must come after the last.
    x = naive.integers(rng, (6, inner), dtype, high=1)
    weight = naive.integers(rng, (inner, 9), dtype, high=1)
    bias = naive.integers(rng, (9,), dtype)
    z = cnnx.linear(x, weight, bias).astype(np.float64)
    fused = cnnx.linear(x, weight, bias, activation)
    with np.errstate(over="ignore"):
        expected = {
            "relu": np.maximum(z, 0),
            "sigmoid": 1 / (1 + np.exp(-z)),
            "tanh": np.tanh(z),
        }[activation]
    # z is exact; an exponential, a sum and a quotient are a few roundings (see test_conv).
    assert_close(fused, expected, roundings=8)


@pytest.mark.parametrize("mask", range(8))
def test_need(mask: int, backend: str, rng: np.random.Generator) -> None:
    need = tuple(bool(mask >> bit & 1) for bit in range(3))
    arrays = [naive.integers(rng, shape) for shape in ((5, 3), (5, 4), (4, 3))]
    grads = cnnx.linear_backward(*arrays, need=need)
    for grad, wanted, expected in zip(grads, need, cnnx.linear_backward(*arrays), strict=True):
        if wanted:
            assert_array_equal(grad, expected)
        else:
            assert grad is None


def test_mixed_dtypes_are_promoted(backend: str, rng: np.random.Generator) -> None:
    x, weight = naive.integers(rng, (5, 4)), naive.integers(rng, (4, 3))
    out = cnnx.linear(x.astype(np.float32), weight)
    assert out.dtype == np.float64
    assert_array_equal(out, naive.linear(x, weight))


def test_bias_gradient_of_many_rows_and_columns(implementation: str, dtype: Any, rng: Any) -> None:
    # Whole numbers: their sums are exact. 600 rows and 70 columns are more than a block of either.
    grad_out = rng.integers(-9, 10, (600, 70)).astype(dtype)
    x, weight = np.zeros((600, 2), dtype), np.zeros((2, 70), dtype)
    _, _, grad_bias = cnnx.linear_backward(grad_out, x, weight)
    assert grad_bias.dtype == dtype
    np.testing.assert_array_equal(grad_bias, grad_out.sum(axis=0))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 9, 257])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 31), (15, 32), (257, 33), (17, 23)])
def test_at_the_edges_of_the_tiles(
    implementation: str, dtype: Any, rng: np.random.Generator, rows: int, inputs: int, outputs: int
) -> None:
    # Tiles are 4 or 8 rows by 8 to 32 columns, 256 deep; up to 4 rows nothing is packed. Sums of
    # small whole numbers are exact, so any order of them gives the same bits.
    x, weight = (rng.integers(-4, 5, s).astype(dtype) for s in ((rows, inputs), (inputs, outputs)))
    bias, grad = (rng.integers(-4, 5, s).astype(dtype) for s in (outputs, (rows, outputs)))
    assert_array_equal(cnnx.linear(x, weight, bias), np.einsum("ni,io->no", x, weight) + bias)
    grad_x, grad_weight, _ = cnnx.linear_backward(grad, x, weight)
    assert_array_equal(grad_x, np.einsum("no,io->ni", grad, weight))
    assert_array_equal(grad_weight, np.einsum("ni,no->io", x, grad))
