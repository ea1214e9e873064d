"""Activations, softmax and batch normalisation: their formulas, their extremes, their gradients.

Forward passes are held against the formula written with Python's math module, element by element;
gradients against the complex step, which is exact to rounding.
"""

from __future__ import annotations

import math
from typing import Any

import naive
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from tolerances import ACTIVATION_ROUNDINGS, assert_close

import cnnx
from cnnx.functional._activation import activation_backward_from_output

INF, NAN = float("inf"), float("nan")


each_activation = pytest.mark.parametrize("name", naive.ACTIVATIONS)


def call(name: str, *arrays: Any, **options: Any) -> Any:
    return getattr(cnnx, name)(*arrays, **options)


def samples(dtype: Any, size: int) -> Any:
    """Both signs, small and moderate, and zero, in an order no vector lane can guess."""
    rng = np.random.default_rng(size)
    values = rng.standard_normal(size) * rng.choice([0.01, 1.0, 4.0], size)
    values[size // 2] = 0.0
    return values.astype(dtype)


@each_activation
@pytest.mark.parametrize("size", [1, 7, 8, 9, 31, 1000])
def test_value(name: str, size: int, implementation: str, dtype: Any) -> None:
    x = samples(dtype, size)
    out = call(name, x)
    assert out.dtype == dtype and out.shape == x.shape
    expected = np.array([naive.ACTIVATIONS[name][0](float(v)) for v in x])
    scale = max(1.0, float(np.abs(x).max()))
    assert_close(out, expected, ACTIVATION_ROUNDINGS[name], scale)


@each_activation
@pytest.mark.parametrize("size", [1, 7, 8, 9, 31, 1000])
def test_slope(name: str, size: int, implementation: str, dtype: Any) -> None:
    x = samples(dtype, size)
    grad_out = samples(dtype, size)[::-1].copy()
    grad_x = call(f"{name}_backward", grad_out, x)
    assert grad_x.dtype == dtype and grad_x.shape == x.shape
    slope = np.array([naive.ACTIVATIONS[name][1](float(v)) for v in x])
    scale = max(1.0, float(np.abs(x).max())) * float(np.abs(grad_out).max())
    assert_close(
        grad_x, grad_out.astype(np.float64) * slope, 2 * ACTIVATION_ROUNDINGS[name] + 2, scale
    )


@each_activation
@pytest.mark.parametrize("shape", [(3,), (2, 5), (2, 3, 4), (2, 3, 4, 5), (1, 1, 1, 1, 7)])
def test_any_shape(name: str, shape: tuple[int, ...], backend: str, rng: Any) -> None:
    x = naive.integers(rng, shape)
    flat = call(name, x.ravel())
    assert_array_equal(call(name, x), flat.reshape(shape))
    grads = call(f"{name}_backward", x, x)
    assert grads.shape == shape


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0, -0.5, 3.0])
def test_leaky_slope(slope: float, implementation: str, dtype: Any) -> None:
    x = np.array([-2.0, -0.5, 0.0, 0.5, 2.0], dtype)
    expected = [-2 * slope, -0.5 * slope, 0, 0.5, 2]
    # One product, with a slope that was rounded to the dtype.
    assert_close(cnnx.leaky_relu(x, slope), np.array(expected), roundings=3)
    grad_x = cnnx.leaky_relu_backward(np.ones(5, dtype), x, slope)
    assert_close(grad_x, np.array([slope, slope, slope, 1, 1]), roundings=3)


def test_slopes_at_the_kinks(implementation: str, dtype: Any) -> None:
    # A kink has no slope; the convention is the one of every framework: the left side's.
    ones = np.ones(2, dtype)
    kinks = np.array([0.0, -0.0], dtype)
    assert_array_equal(cnnx.relu_backward(ones, kinks), [0, 0])
    assert_array_equal(cnnx.leaky_relu_backward(ones, kinks, 0.25), [0.25, 0.25])
    assert_array_equal(cnnx.relu6_backward(ones, np.array([0.0, 6.0], dtype)), [0, 0])


def test_extremes_neither_warn_nor_overflow(implementation: str, dtype: Any) -> None:
    # pytest turns NumPy's overflow warnings into errors.
    x = np.array([-INF, -1e30, -1000, -100, 100, 1000, 1e30, INF], dtype)
    zeros, ones = [0] * 4, [1] * 4
    assert_array_equal(cnnx.relu(x), [*zeros, *x[4:]])
    assert_array_equal(cnnx.relu6(x), [*zeros, 6, 6, 6, 6])
    assert_array_equal(cnnx.tanh(x), [-1, -1, -1, -1, *ones])
    y = cnnx.sigmoid(x)
    assert_array_equal(y[4:], ones)
    assert_array_equal(y[:3], zeros[:3])
    # exp(-100) is 4e-44: a float32 denormal, which may be flushed, and 8 roundings in float64.
    assert_close(y[3:4], np.array([math.exp(-100)]), roundings=8)
    finite = x[1:7]
    for name in ("gelu", "silu"):
        out = call(name, finite)
        assert_array_equal(out[3:], finite[3:])
        np.testing.assert_allclose(out[:3], 0, atol=1e-40)  # 100 exp(-100) = 4e-42, or flushed
    for name in ("sigmoid", "tanh", "gelu", "silu"):
        grad = call(f"{name}_backward", np.ones(6, dtype), finite)
        flat = [0, 0, 0, 1, 1, 1] if name in ("gelu", "silu") else [0] * 6
        np.testing.assert_allclose(grad, flat, atol=1e-40)  # the tails are below exp(-90)


@each_activation
def test_nan_stays_nan_and_alone(name: str, implementation: str, dtype: Any) -> None:
    for size in (1, 9, 40):
        x = samples(dtype, size)
        clean = call(name, x)
        x[size // 2] = NAN
        out = call(name, x)
        assert np.isnan(out[size // 2])
        others = np.arange(size) != size // 2
        assert_array_equal(out[others], clean[others])


def test_fused_relu_keeps_nan(implementation: str, dtype: Any) -> None:
    x = np.array([[[[1.0, NAN, -1.0]]]], dtype)
    out = cnnx.conv2d(x, np.ones((1, 1, 1, 1), dtype), activation="relu")
    assert_array_equal(out, [[[[1, NAN, 0]]]])


@pytest.mark.parametrize("value", [5.0, INF, -INF, NAN])
def test_what_a_relu_stops_is_zero_whatever_it_is(
    value: float, implementation: str, dtype: Any
) -> None:
    x = np.tile(np.array([NAN, -INF, -1, -0.0, 0, 5, 6, INF], dtype), 5)[:-1]  # vectors and a rest
    grad = np.full_like(x, value)
    for name, passes in (("relu", x > 0), ("relu6", (x > 0) & (x < 6))):
        expected = np.zeros_like(x)
        expected[passes] = value
        assert_array_equal(call(f"{name}_backward", grad, x), expected)
        # A normalisation by mean 0 and variance 1 that has the ReLU in it.
        image, one = (1, 1, 1, len(x)), np.ones(1, dtype)
        arrays = (grad.reshape(image), x.reshape(image), one, 0 * one, one, 0)
        found = cnnx.batch_norm2d_backward(*arrays, batch_stats=False, activation=name)[0]
        assert_array_equal(found.ravel(), expected)
    passed = cnnx.leaky_relu_backward(grad, x, 0.5)
    assert_array_equal(passed, np.where(x > 0, grad, grad / 2))
    fused = activation_backward_from_output(grad, np.maximum(x, 0), "relu")
    assert_array_equal(fused, np.where(x > 0, grad, 0))


# ---------------------------------------------------------------------------- softmax


def softmax_formula(x: Any, log: bool) -> Any:
    """Over the last axis; takes complex numbers."""
    shifted = x - x.real.max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True)
    return shifted - np.log(total) if log else np.exp(shifted) / total


def test_softmax_by_hand(implementation: str, dtype: Any) -> None:
    x = np.log(np.array([[1, 2, 5], [3, 3, 2]], dtype))
    expected = np.array([[1 / 8, 2 / 8, 5 / 8], [3 / 8, 3 / 8, 2 / 8]])
    # log 5 is rounded by half a unit of 1.6, an exponential turns that into a relative error.
    assert_close(cnnx.softmax(x), expected, roundings=12)
    assert_close(cnnx.log_softmax(x), np.log(expected), roundings=12, scale=3.0)


@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (5, 10), (2, 17), (4, 1000)])
def test_softmax(shape: Any, log: bool, implementation: str, dtype: Any, rng: Any) -> None:
    x = (rng.standard_normal(shape) * 3).astype(dtype)
    name = "log_softmax" if log else "softmax"
    out = call(name, x)
    assert out.dtype == dtype
    expected = softmax_formula(x.astype(np.float64), log)
    # The shift x - max rounds at the scale of the largest |x| ~ 12, an exponential and the sum of
    # positive numbers add a few relative roundings: sqrt(classes) of them, like a random walk.
    scale = 12.0 if log else float(expected.max())
    assert_close(out, expected, roundings=16 + math.sqrt(shape[1]), scale=scale)

    grad_out = rng.standard_normal(shape).astype(dtype)
    grad_x = call(f"{name}_backward", grad_out, x)
    assert grad_x.dtype == dtype
    if shape[1] <= 17:
        exact = naive.complex_step(
            lambda z: softmax_formula(z, log), x.astype(np.float64), grad_out.astype(np.float64)
        )
        # A sum over the classes of terms of the size of grad_out * probability.
        scale = float(np.abs(grad_out).max()) * (shape[1] if log else 1)
        assert_close(grad_x, exact, roundings=32, scale=scale)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2, -4])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_axis(name: str, axis: int, backend: str, rng: np.random.Generator) -> None:
    x, grad_out = rng.standard_normal((2, 2, 3, 4, 5))
    moved = np.ascontiguousarray(np.moveaxis(x, axis, -1))
    expected = np.moveaxis(call(name, moved), -1, axis)
    assert_array_equal(call(name, x, axis=axis), expected)
    moved_grad = np.ascontiguousarray(np.moveaxis(grad_out, axis, -1))
    grad = np.moveaxis(call(f"{name}_backward", moved_grad, moved), -1, axis)
    assert_array_equal(call(f"{name}_backward", grad_out, x, axis=axis), grad)


def test_softmax_of_one_axis(backend: str) -> None:
    assert_array_equal(cnnx.softmax(np.zeros(4)), [0.25] * 4)


def test_softmax_extremes(implementation: str, dtype: Any) -> None:
    # Nothing overflows, however large the scores, for the largest is taken off first.
    x = np.array([[1e30, 1e30, -1e30], [-1e30, -1e30, -1e30], [0, -INF, 0]], dtype)
    expected = [[0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0, 0.5]]
    assert_close(cnnx.softmax(x), np.array(expected), roundings=4)  # one quotient
    logs = cnnx.log_softmax(x)
    assert logs[2, 1] == -INF
    # The logarithm of the exact number 2 or 3, within 2 units of the last place.
    assert_close(logs[:, 0], -np.log([2.0, 3.0, 2.0]), roundings=4)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_nan_spoils_its_row_only(name: str, implementation: str, dtype: Any) -> None:
    x = np.zeros((3, 11), dtype)
    x[1, 4] = NAN
    out = call(name, x)
    assert np.isnan(out[1]).all()
    assert np.isfinite(out[[0, 2]]).all()


# ---------------------------------------------------------------------------- batch normalisation


def batch_norm_formula(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    """With the batch's own statistics, the biased variance; takes complex numbers."""
    out = np.zeros_like(x)
    for c in range(x.shape[1]):
        mean = x[:, c].mean()
        var = ((x[:, c] - mean) ** 2).mean()
        out[:, c] = weight[c] * (x[:, c] - mean) / np.sqrt(var + eps) + bias[c]
    return out


def norm_inputs(rng: np.random.Generator, dtype: Any, shape: Any = (4, 3, 5, 6)) -> list[Any]:
    """x with unlike channels, weight, bias, grad_out."""
    channels = shape[1]
    offset = rng.standard_normal((channels, 1, 1)) * 3
    x = (rng.standard_normal(shape) * rng.uniform(0.5, 2, (channels, 1, 1)) + offset).astype(dtype)
    weight, bias = rng.standard_normal((2, channels)).astype(dtype)
    return [x, weight, bias, rng.standard_normal(shape).astype(dtype)]


def test_batch_norm_by_hand(implementation: str, dtype: Any) -> None:
    # Channel 0: mean 3, variance 4; channel 1: mean 10, variance 0. eps 12 makes the root 4.
    x = np.array([[[[1.0]], [[10.0]]], [[[5.0]], [[10.0]]]], dtype)
    out, mean, var = cnnx.batch_norm2d(
        x, np.array([2, 7], dtype), np.array([1, -1], dtype), eps=12.0, return_stats=True
    )
    assert_array_equal(mean, [3, 10])
    assert_array_equal(var, [4, 0])
    assert_close(out, np.array([0.0, -1, 2, -1]).reshape(2, 2, 1, 1), roundings=8, scale=2.0)
    assert out.dtype == mean.dtype == var.dtype == dtype
    # The same statistics given, and others.
    again = cnnx.batch_norm2d(x, None, None, mean, var, eps=12.0)
    assert_close(again, np.array([-0.5, 0, 0.5, 0]).reshape(2, 2, 1, 1), roundings=8, scale=1.0)


# The last three: two pieces of a batch; more channels than a task takes; both.
@pytest.mark.parametrize(
    "shape",
    [
        (4, 3, 5, 6),
        (1, 2, 3, 3),
        (9, 1, 1, 1),
        (2, 5, 17, 19),
        (10, 3, 8, 8),
        (2, 70, 4, 4),
        (9, 131, 8, 8),
    ],
)
def test_batch_norm(shape: Any, implementation: str, dtype: Any, rng: np.random.Generator) -> None:
    x, weight, bias, _ = norm_inputs(rng, dtype, shape)
    wide = x.astype(np.float64)
    out, mean, var = cnnx.batch_norm2d(x, weight, bias, return_stats=True)
    # Means and variances of up to 646 numbers of size ~5: sqrt(646) ~ 25 roundings if summed one
    # by one, at the scale of the largest number (its square for the variance).
    size = float(np.abs(x).max())
    assert_close(mean, wide.mean(axis=(0, 2, 3)), roundings=25, scale=size)
    assert_close(var, wide.var(axis=(0, 2, 3)), roundings=50, scale=size**2)
    # x - mean cancels: its error is that of the numbers before, times weight / deviation.
    deviation = float(np.sqrt(wide.var(axis=(0, 2, 3)).min() + 1e-5))
    scale = size * max(1, float(np.abs(weight).max())) / deviation + float(np.abs(bias).max())
    expected = batch_norm_formula(wide, weight.astype(np.float64), bias.astype(np.float64))
    assert_close(out, expected, roundings=60, scale=scale)


# More than one block of 4096 numbers, of a plane and of many small ones; seven pieces of a batch.
@pytest.mark.parametrize(
    "shape", [(8, 2, 16, 16), (2, 2, 70, 71), (1400, 3, 3, 1), (20, 2, 11, 13)]
)
def test_batch_norm_does_not_cancel(shape: Any, implementation: str, dtype: Any, rng: Any) -> None:
    # mean(x**2) - mean**2 would lose all digits here: the mean is 1000 deviations off zero.
    x = rng.standard_normal(shape) + 1000
    x = x.astype(dtype)
    _, mean, var = cnnx.batch_norm2d(x, return_stats=True)
    # float32 keeps 1000 to 6e-5, which averages out over 2048 numbers; the mean itself is rounded
    # to 3e-5, and enters the variance squared.
    np.testing.assert_allclose(var, x.astype(np.float64).var(axis=(0, 2, 3)), rtol=1e-5)
    assert_close(mean, x.astype(np.float64).mean(axis=(0, 2, 3)), roundings=45)  # sqrt(2048)


# Rows of a vector and a bit; of less than one; more than a block of 4096 numbers of each; pieces.
@pytest.mark.parametrize(
    "shape",
    [(4, 3, 5, 6), (3, 2, 1, 2), (2, 2, 70, 71), (1400, 3, 3, 1), (2, 3, 7, 9), (20, 70, 5, 5)],
)
@pytest.mark.parametrize("kind", ["relu", "relu6"])
def test_batch_norm_with_activation(
    kind: str, shape: Any, implementation: str, dtype: Any, rng: Any
) -> None:
    x, weight, bias, grad_out = norm_inputs(rng, dtype, shape)
    weight *= 4  # beyond ReLU6's ceiling
    plain, mean, var = cnnx.batch_norm2d(x, weight, bias, return_stats=True)
    fused = cnnx.batch_norm2d(x, weight, bias, activation=kind)
    assert_array_equal(fused, getattr(cnnx, kind)(plain))
    assert_array_equal(cnnx.batch_norm2d(x, weight, bias, mean, var, activation=kind), fused)
    by_plain = getattr(cnnx, f"{kind}_backward")(grad_out, plain)
    for grad, known in zip(
        cnnx.batch_norm2d_backward(grad_out, x, weight, bias=bias, activation=kind),
        cnnx.batch_norm2d_backward(by_plain, x, weight),
        strict=True,
    ):
        assert_array_equal(grad, known)


@pytest.mark.parametrize(
    "shape", [(4, 3, 5, 6), (1, 2, 3, 3), (2, 3, 7, 9), (40, 2, 1, 2), (6, 2, 4, 4), (9, 2, 8, 8)]
)
def test_batch_norm_gradients(shape: Any, implementation: str, dtype: Any, rng: Any) -> None:
    x, weight, bias, grad_out = norm_inputs(rng, dtype, shape)
    grads = cnnx.batch_norm2d_backward(grad_out, x, weight)
    wide = [a.astype(np.float64) for a in (x, weight, bias, grad_out)]
    expected = [
        naive.complex_step(lambda z: batch_norm_formula(z, *wide[1:3]), wide[0], wide[3]),
        naive.complex_step(
            lambda z: batch_norm_formula(wide[0] + 0j, z, wide[2]), wide[1], wide[3]
        ),
        naive.complex_step(
            lambda z: batch_norm_formula(wide[0] + 0j, wide[1], z), wide[2], wide[3]
        ),
    ]
    count = x.size // x.shape[1]
    for name, grad, known in zip(("x", "weight", "bias"), grads, expected, strict=True):
        assert grad.dtype == dtype
        # Sums over `count` numbers of the size of grad_out times the normalised x (below 4), then
        # divided by deviations not below 0.3; cancellation leaves the scale of the terms.
        terms = math.sqrt(count) * 4 * float(np.abs(grad_out).max())
        scale = terms * 3 if name == "x" else terms
        assert_close(grad, known, roundings=40, scale=scale)


def test_batch_norm_gradients_with_given_statistics(
    implementation: str, dtype: Any, rng: np.random.Generator
) -> None:
    x, weight, _, grad_out = norm_inputs(rng, dtype)
    mean, var = np.array([0.5, -1, 2], dtype), np.array([1, 4, 0.25], dtype)
    grad_x, grad_weight, grad_bias = cnnx.batch_norm2d_backward(grad_out, x, weight, mean, var)
    root = np.sqrt(var.astype(np.float64) + 1e-5)[:, None, None]
    column = weight.astype(np.float64)[:, None, None]
    wide_x, wide_grad = x.astype(np.float64), grad_out.astype(np.float64)
    # Constants: the gradient is a plain scaling, a root and two products.
    assert_close(grad_x, wide_grad * column / root, roundings=8)
    centred = (wide_x - mean.astype(np.float64)[:, None, None]) / root
    # Sums of 120 products: sqrt(120) ~ 11 roundings at the scale of their partial sums.
    scale = float(np.abs(wide_grad * centred).sum(axis=(0, 2, 3)).max())
    assert_close(grad_weight, (wide_grad * centred).sum(axis=(0, 2, 3)), roundings=11, scale=scale)
    scale = float(np.abs(wide_grad).sum(axis=(0, 2, 3)).max())
    assert_close(grad_bias, wide_grad.sum(axis=(0, 2, 3)), roundings=11, scale=scale)


def test_batch_norm_statistics_handed_back(backend: str, rng: np.random.Generator) -> None:
    # batch_stats=True says that mean and var came from x: the same gradients, a pass saved.
    x, weight, _, grad_out = norm_inputs(rng, np.float64)
    _, mean, var = cnnx.batch_norm2d(x, weight, return_stats=True)
    saved = cnnx.batch_norm2d_backward(grad_out, x, weight, mean, var, batch_stats=True)
    for grad, expected in zip(saved, cnnx.batch_norm2d_backward(grad_out, x, weight), strict=True):
        assert_array_equal(grad, expected)


def test_batch_norm_without_weight(backend: str, rng: np.random.Generator) -> None:
    x, _, _, grad_out = norm_inputs(rng, np.float64)
    ones, zeros = np.ones(3), np.zeros(3)
    assert_array_equal(cnnx.batch_norm2d(x), cnnx.batch_norm2d(x, ones, zeros))
    plain = cnnx.batch_norm2d_backward(grad_out, x)
    weighted = cnnx.batch_norm2d_backward(grad_out, x, ones)
    for grad, expected in zip(plain, weighted, strict=True):
        assert_array_equal(grad, expected)


def test_batch_norm_nan_spoils_its_channel_only(implementation: str, dtype: Any, rng: Any) -> None:
    x, weight, bias, _ = norm_inputs(rng, dtype)
    x[2, 1, 3, 3] = NAN
    out = cnnx.batch_norm2d(x, weight, bias)
    assert np.isnan(out[:, 1]).all()
    assert np.isfinite(out[:, [0, 2]]).all()
