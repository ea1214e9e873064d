"""The homework's names do what the homework's tests expect, held against loops in its own style.

`conv_forward`, `conv_backward`, `MaxPool2D`, `AvgPool2D`, `max_indices` and
`eval_numerical_gradient`: their arguments by position, float64 arrays whose elements a gradient
check moves in place between the calls, and small float32 matrices of whole numbers. Two errors of
that homework stand here too, each beside the right answer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from tolerances import assert_close

import cnnx

# The homework's worked example.
MATRIX = np.array([[1, 3, 2, 1], [4, 2, 0, 5], [3, 1, 4, 2], [2, 0, 3, 6]])
UPSTREAM = np.array([[0.5, 1.2], [0.8, -0.3]])

ACTIVATIONS = ["relu", "sigmoid", "tanh", None]
# stride, pad
STEPS = [(1, 0), (1, 1), (2, 0), (2, 1), (3, 2)]

each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
each_step = pytest.mark.parametrize(("stride", "pad"), STEPS)


# ---------------------------------------------------------------------------- the homework's loops


def with_zeros_around(X: Any, pad: int) -> Any:
    N, C, H, W = X.shape
    padded = np.zeros((N, C, H + 2 * pad, W + 2 * pad))
    padded[:, :, pad : pad + H, pad : pad + W] = X
    return padded


def conv_forward_loops(X: Any, W: Any, b: Any, stride: int, pad: int) -> Any:
    """The sums before the activation."""
    padded = with_zeros_around(X, pad)
    F, _, KH, KW = W.shape
    N, _, H, width = padded.shape
    Z = np.zeros((N, F, (H - KH) // stride + 1, (width - KW) // stride + 1))
    for n, f, i, j in np.ndindex(*Z.shape):
        window = padded[n, :, i * stride : i * stride + KH, j * stride : j * stride + KW]
        Z[n, f, i, j] = np.sum(window * W[f]) + b[f]
    return Z


def conv_backward_loops(dZ: Any, X: Any, W: Any, stride: int, pad: int) -> tuple[Any, Any, Any]:
    padded = with_zeros_around(X, pad)
    _, _, KH, KW = W.shape
    d_padded, dW, db = np.zeros(padded.shape), np.zeros(W.shape), np.zeros(W.shape[0])
    for n, f, i, j in np.ndindex(*dZ.shape):
        rows, columns = slice(i * stride, i * stride + KH), slice(j * stride, j * stride + KW)
        d_padded[n, :, rows, columns] += W[f] * dZ[n, f, i, j]
        dW[f] += padded[n, :, rows, columns] * dZ[n, f, i, j]
        db[f] += dZ[n, f, i, j]
    H, width = X.shape[2:]
    return d_padded[:, :, pad : pad + H, pad : pad + width], dW, db


def activated(Z: Any, activation: str | None) -> tuple[Any, Any]:
    """The activation of Z and its derivative there."""
    if activation == "relu":
        return np.maximum(Z, 0), (Z > 0).astype(float)
    if activation == "sigmoid":
        s = 1 / (1 + np.exp(-Z))
        return s, s * (1 - s)
    if activation == "tanh":
        return np.tanh(Z), 1 / np.cosh(Z) ** 2
    return Z, np.ones(Z.shape)


def max_pool_loops(x: Any, size: int, stride: int) -> tuple[Any, Any]:
    """The maxima, and row and column of each."""
    N, C, H, W = x.shape
    out = np.zeros((N, C, (H - size) // stride + 1, (W - size) // stride + 1))
    max_indices = np.zeros((*out.shape, 2), int)
    for n, c, i, j in np.ndindex(*out.shape):
        best = -np.inf
        for row in range(i * stride, i * stride + size):
            for column in range(j * stride, j * stride + size):
                if x[n, c, row, column] > best:
                    best = x[n, c, row, column]
                    max_indices[n, c, i, j] = row, column
        out[n, c, i, j] = best
    return out, max_indices


def max_pool_backward_loops(
    dout: Any, max_indices: Any, shape: tuple[int, ...], assign: bool = False
) -> Any:
    """Each gradient at its maximum; `assign` makes the homework's mistake."""
    dX = np.zeros(shape)
    for n, c, i, j in np.ndindex(*dout.shape):
        row, column = max_indices[n, c, i, j]
        before = 0.0 if assign else dX[n, c, row, column]
        dX[n, c, row, column] = before + dout[n, c, i, j]
    return dX


def avg_pool_loops(x: Any, size: int, stride: int) -> Any:
    N, C, H, W = x.shape
    out = np.zeros((N, C, (H - size) // stride + 1, (W - size) // stride + 1))
    for n, c, i, j in np.ndindex(*out.shape):
        rows, columns = slice(i * stride, i * stride + size), slice(j * stride, j * stride + size)
        out[n, c, i, j] = x[n, c, rows, columns].sum() / size**2
    return out


def avg_pool_backward_loops(dout: Any, shape: tuple[int, ...], size: int, stride: int) -> Any:
    dX = np.zeros(shape)
    for n, c, i, j in np.ndindex(*dout.shape):
        rows, columns = slice(i * stride, i * stride + size), slice(j * stride, j * stride + size)
        dX[n, c, rows, columns] += dout[n, c, i, j] / size**2
    return dX


def whole(rng: np.random.Generator, *shape: int, dtype: Any = np.float64) -> Any:
    """Whole numbers: their sums of products are exact, so results compare by bits."""
    return rng.integers(-3, 4, shape).astype(dtype)


# ---------------------------------------------------------------------------- the worked example


def test_max_of_the_worked_matrix(backend: str, dtype: Any) -> None:
    pool = cnnx.MaxPool2D(2, 2)
    out = pool.forward(MATRIX.astype(dtype)[None, None])
    assert out.dtype == dtype
    assert_array_equal(out[0, 0], [[4, 5], [3, 6]])
    assert_array_equal(pool.max_indices[0, 0], [[[1, 0], [1, 3]], [[2, 0], [3, 3]]])


def test_max_gradient_of_the_worked_matrix(backend: str, dtype: Any) -> None:
    # The homework's own matrix shows the 1.2 in row 0, one row above the 5.
    pool = cnnx.MaxPool2D(2, 2)
    pool.forward(MATRIX.astype(dtype)[None, None])
    upstream = UPSTREAM.astype(dtype)
    dX = pool.backward(upstream[None, None])[0, 0]
    right = np.zeros((4, 4), dtype)
    right[1, 0], right[1, 3], right[2, 0], right[3, 3] = upstream.ravel()
    assert_array_equal(dX, right)
    assert MATRIX[1, 3] == 5 and dX[1, 3] == upstream[0, 1]
    assert dX[0, 3] == 0


def test_average_of_the_worked_matrix(backend: str, dtype: Any) -> None:
    pool = cnnx.AvgPool2D(2, 2)
    out = pool.forward(MATRIX.astype(dtype)[None, None])
    assert out.dtype == dtype
    assert_array_equal(out[0, 0], [[2.5, 2], [1.5, 3.75]])
    dX = pool.backward(UPSTREAM.astype(dtype)[None, None])
    # Exact: a quarter of a number is the number with another exponent.
    quarters = np.array([[0.5, 1.2], [0.8, -0.3]], dtype) / 4
    assert_array_equal(dX[0, 0], np.kron(quarters, np.ones((2, 2))))
    assert_close(dX[0, 0, ::2, ::2], np.array([[0.125, 0.3], [0.2, -0.075]]), roundings=1)


# ---------------------------------------------------------------------------- convolution


@each_step
@each_activation
def test_conv_against_loops(
    activation: Any, stride: int, pad: int, backend: str, dtype: Any, rng: np.random.Generator
) -> None:
    X, W, b = whole(rng, 2, 3, 7, 6), whole(rng, 4, 3, 3, 2), whole(rng, 4)
    Z = conv_forward_loops(X, W, b, stride, pad)
    expected, slope = activated(Z, activation)
    out, cache = cnnx.conv_forward(
        X.astype(dtype), W.astype(dtype), b.astype(dtype), stride, pad, activation
    )
    assert out.dtype == dtype
    if activation in (None, "relu"):
        assert_array_equal(out, expected)
    else:
        # The sums are exact; what is left is the exponential's error and three roundings around it.
        assert_close(out, expected, roundings=8)

    dout = whole(rng, *Z.shape)
    gradients: Any = cnnx.conv_backward(dout.astype(dtype), cache)
    known = conv_backward_loops(dout * slope, X, W, stride, pad)
    for gradient, reference, array in zip(gradients, known, (X, W, b), strict=True):
        assert gradient.dtype == dtype
        assert gradient.shape == array.shape
        if activation in (None, "relu"):
            assert_array_equal(gradient, reference)
        else:
            # y*(1 - y) and 1 - y*y of a rounded y are off by units of 1, not of themselves; each
            # gradient adds up at most 2*7*6 of them times |dout|*|W| <= 9, seldom with one sign.
            assert_close(gradient, reference, roundings=8, scale=9 * np.sqrt(84))


def test_relu_is_what_is_left_out(backend: str, rng: np.random.Generator) -> None:
    X, W, b = whole(rng, 1, 2, 5, 5), whole(rng, 3, 2, 3, 3), whole(rng, 3)
    out, _ = cnnx.conv_forward(X, W, b)  # nor stride 1 and pad 0
    assert_array_equal(out, np.maximum(conv_forward_loops(X, W, b, 1, 0), 0))


def test_names_of_the_arguments(backend: str, rng: np.random.Generator) -> None:
    X, W, b = whole(rng, 1, 2, 5, 5), whole(rng, 3, 2, 3, 3), whole(rng, 3)
    by_name, cache = cnnx.conv_forward(X=X, W=W, b=b, stride=2, pad=1, activation=None)
    assert_array_equal(by_name, conv_forward_loops(X, W, b, 2, 1))
    dX, _, _ = cnnx.conv_backward(dout=np.ones_like(by_name), cache=cache)
    assert_array_equal(dX, conv_backward_loops(np.ones(by_name.shape), X, W, 2, 1)[0])


def test_whole_numbers_in_float32(backend: str) -> None:
    # One window of a matrix, by hand: 1*1 - 3*1 + 4*2 = 6, and so on.
    X = MATRIX.astype(np.float32)[None, None]
    W = np.array([[[[1, -1], [2, 0]]]], np.float32)
    out, cache = cnnx.conv_forward(X, W, np.array([10], np.float32), 2, 0, None)
    assert out.dtype == np.float32
    assert_array_equal(out[0, 0], [[1 - 3 + 8 + 10, 2 - 1 + 0 + 10], [3 - 1 + 4 + 10, 18]])
    dX, dW, db = cnnx.conv_backward(np.array([[[[1, 0], [0, 2]]]], np.float32), cache)
    assert_array_equal(dX[0, 0], [[1, -1, 0, 0], [2, 0, 0, 0], [0, 0, 2, -2], [0, 0, 4, 0]])
    assert_array_equal(dW[0, 0], [[1 + 8, 3 + 4], [4 + 6, 2 + 12]])
    assert_array_equal(db, [3])


@pytest.mark.parametrize(
    "shape", [(3,), (3, 1), (1, 3), (3, 1, 1), (1, 3, 1, 1), (3, 1, 1, 1)], ids=str
)
def test_bias_of_any_shape(shape: tuple[int, ...], backend: str, rng: np.random.Generator) -> None:
    X, W, b = whole(rng, 2, 2, 4, 4), whole(rng, 3, 2, 2, 2), whole(rng, 3)
    out, cache = cnnx.conv_forward(X, W, b.reshape(shape), 1, 0, None)
    assert_array_equal(out, conv_forward_loops(X, W, b, 1, 0))
    _, _, db = cnnx.conv_backward(out, cache)
    assert_array_equal(db, conv_backward_loops(out, X, W, 1, 0)[2].reshape(shape))


def test_without_bias(backend: str, rng: np.random.Generator) -> None:
    X, W = whole(rng, 2, 2, 4, 4), whole(rng, 3, 2, 2, 2)
    out, cache = cnnx.conv_forward(X, W, None, 1, 0, None)
    assert_array_equal(out, conv_forward_loops(X, W, np.zeros(3), 1, 0))
    dX, dW, db = cnnx.conv_backward(out, cache)
    known = conv_backward_loops(out, X, W, 1, 0)
    assert_array_equal(dX, known[0])
    assert_array_equal(dW, known[1])
    assert db is None


def test_out_written_over(backend: str, rng: np.random.Generator) -> None:
    # The gradient of a loss is often worked out in the very array that holds the predictions.
    X, W, b = whole(rng, 2, 2, 4, 4), whole(rng, 3, 2, 2, 2), whole(rng, 3)
    out, cache = cnnx.conv_forward(X, W, b)
    slope = (conv_forward_loops(X, W, b, 1, 0) > 0).astype(float)
    out -= 5
    for gradient, known in zip(
        cnnx.conv_backward(out, cache), conv_backward_loops(out * slope, X, W, 1, 0), strict=True
    ):
        assert_array_equal(gradient, known)


def test_caches_of_several_calls(backend: str, rng: np.random.Generator) -> None:
    # Backward goes through a net's layers in the reverse order, and may go twice.
    W, b = whole(rng, 3, 2, 2, 2), whole(rng, 3)
    images = [whole(rng, 2, 2, 4, 4) for _ in range(3)]
    calls = [cnnx.conv_forward(X, W, b, 1, 0, None) for X in images]
    for _ in range(2):
        for X, (out, cache) in reversed(list(zip(images, calls, strict=True))):
            known = conv_backward_loops(out, X, W, 1, 0)
            for gradient, reference in zip(cnnx.conv_backward(out, cache), known, strict=True):
                assert_array_equal(gradient, reference)


# ---------------------------------------------------------------------------- moved in place


def test_elements_moved_in_place(backend: str, rng: np.random.Generator) -> None:
    # What a gradient check does: nothing derived from an array may outlive its call.
    X, W, b = whole(rng, 2, 2, 5, 5), whole(rng, 3, 2, 3, 3), whole(rng, 3)
    for array in (X, W, b):
        for index in np.ndindex(array.shape):
            kept = array[index]
            for step in (0.5, -0.5):  # exact in binary
                array[index] = kept + step
                out, _ = cnnx.conv_forward(X, W, b, 2, 1, None)
                assert_array_equal(out, conv_forward_loops(X, W, b, 2, 1))
            array[index] = kept


def test_pools_of_an_array_moved_in_place(backend: str, rng: np.random.Generator) -> None:
    x, highest, mean = whole(rng, 1, 2, 4, 4), cnnx.MaxPool2D(2, 1), cnnx.AvgPool2D(2, 1)
    for index in np.ndindex(x.shape):
        x[index] += 4
        out, max_indices = max_pool_loops(x, 2, 1)
        assert_array_equal(highest.forward(x), out)
        assert_array_equal(highest.max_indices, max_indices)
        assert_array_equal(mean.forward(x), avg_pool_loops(x, 2, 1))


def test_parameters_moved_in_place(backend: str, rng: np.random.Generator) -> None:
    layer = cnnx.Conv2D(2, 3, 3, dtype="float64")
    x = whole(rng, 1, 2, 5, 5)
    W, b = layer.params["weight"], layer.params["bias"]
    for _ in range(3):
        W[...], b[...] = whole(rng, *W.shape), whole(rng, *b.shape)
        assert_array_equal(layer.forward(x), conv_forward_loops(x, W, b, 1, 0))


@pytest.mark.parametrize("cache_first", [True, False])
@each_activation
def test_numerical_gradient(
    activation: Any, cache_first: bool, backend: str, rng: np.random.Generator
) -> None:
    # As the homework's tests have it: the function under the lambda sees the moved array itself.
    X, W, b = rng.normal(size=(2, 2, 5, 5)), rng.normal(size=(3, 2, 3, 3)), rng.normal(size=3)
    arrays = {"X": X, "W": W, "b": b}
    before = {name: array.copy() for name, array in arrays.items()}
    assert np.abs(conv_forward_loops(X, W, b, 2, 1)).min() > 1e-2  # no step reaches ReLU's kink

    out, cache = cnnx.conv_forward(X, W, b, 2, 1, activation)
    dout = rng.normal(size=out.shape)
    analytic: Any = cnnx.conv_backward(dout, cache) if cache_first else None
    numeric = [
        cnnx.eval_numerical_gradient(
            lambda _: cnnx.conv_forward(X, W, b, 2, 1, activation)[0], array, dout
        )
        for array in arrays.values()
    ]
    for name, array in arrays.items():
        assert array.tobytes() == before[name].tobytes()
    if analytic is None:
        analytic = cnnx.conv_backward(dout, cache)
    for claimed, measured in zip(analytic, numeric, strict=True):
        # Central differences with a step of 1e-5: 1e-10 from the third derivative, and 1e-11 for
        # each rounding of an output, times up to 54 outputs.
        np.testing.assert_allclose(claimed, measured, rtol=0, atol=1e-8)


@pytest.mark.parametrize("pool", [cnnx.MaxPool2D(2, 1), cnnx.AvgPool2D(2, 1)], ids=repr)
def test_numerical_gradient_of_pools(pool: Any, backend: str, rng: np.random.Generator) -> None:
    x = rng.permutation(np.arange(50.0)).reshape(1, 2, 5, 5)  # no two alike: no ties
    out = pool.forward(x)
    dout = rng.normal(size=out.shape)
    analytic = pool.backward(dout)
    numeric = cnnx.eval_numerical_gradient(pool.forward, x, dout)
    # Pools are piecewise linear: only roundings of numbers up to 50, 4e-15, over the step of 1e-5.
    np.testing.assert_allclose(analytic, numeric, rtol=0, atol=1e-8)


def test_numerical_gradient_of_known_functions() -> None:
    x, df = np.array([[1.0, -2.0], [0.5, 3.0]]), np.array([[1.0, 2.0], [-1.0, 0.5]])
    # For x**3 central differences give 3*x**2 + h**2: the error is known.
    np.testing.assert_allclose(
        cnnx.eval_numerical_gradient(lambda x: x**3, x, df, 1e-3), df * (3 * x**2 + 1e-6), atol=1e-9
    )
    np.testing.assert_allclose(
        cnnx.eval_numerical_gradient(lambda x: x**3, x, df), df * 3 * x**2, atol=1e-8
    )
    # A loss, which is a number and has no upstream gradient.
    np.testing.assert_allclose(
        cnnx.eval_numerical_gradient(lambda x: (x**2).sum(), x), 2 * x, atol=1e-8
    )


# ---------------------------------------------------------------------------- pooling


@pytest.mark.parametrize(("size", "stride"), [(2, 2), (2, 1), (3, 2), (3, 1), (2, 3)])
def test_max_pool_against_loops(
    size: int, stride: int, backend: str, dtype: Any, rng: np.random.Generator
) -> None:
    x = whole(rng, 2, 3, 7, 6, dtype=dtype)  # many ties: the first in reading order wins
    out, max_indices = max_pool_loops(x, size, stride)
    pool = cnnx.MaxPool2D(size, stride)
    assert_array_equal(pool.forward(x), out)
    assert pool.max_indices.shape == (*out.shape, 2)
    assert pool.max_indices.dtype == np.int64
    assert_array_equal(pool.max_indices, max_indices)
    dout = whole(rng, *out.shape, dtype=dtype)
    assert_array_equal(pool.backward(dout), max_pool_backward_loops(dout, max_indices, x.shape))


def test_max_indices_pick_the_maxima(backend: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 6, 8))
    pool = cnnx.MaxPool2D(2)
    out = pool.forward(x)
    rows, columns = np.moveaxis(pool.max_indices, -1, 0)
    n, c = np.ogrid[:2, :3]
    assert_array_equal(x[n[..., None, None], c[..., None, None], rows, columns], out)


def test_overlapping_windows_accumulate(backend: str, dtype: Any) -> None:
    # The homework assigns, and so keeps only the last of the gradients that meet in one pixel. The
    # 9 is the maximum of all four windows.
    x = np.array([[1, 2, 3], [4, 9, 5], [6, 7, 8]], dtype)[None, None]
    dout = np.array([[1, 10], [100, 1000]], dtype)[None, None]
    pool = cnnx.MaxPool2D(2, 1)
    pool.forward(x)
    dX = pool.backward(dout)
    right = np.zeros((1, 1, 3, 3))
    right[0, 0, 1, 1] = 1111
    assert_array_equal(dX, right)
    wrong = max_pool_backward_loops(dout, pool.max_indices, x.shape, assign=True)
    assert wrong[0, 0, 1, 1] == 1000  # the mistake, so that this test is seen to tell them apart
    assert dX.sum() == dout.sum()  # each output's gradient arrives somewhere


def test_assigning_is_right_only_side_by_side(backend: str, rng: np.random.Generator) -> None:
    # Why the mistake goes unnoticed: with windows side by side there is nothing to accumulate.
    x = rng.permutation(np.arange(72.0)).reshape(1, 2, 6, 6)
    pool = cnnx.MaxPool2D(2, 2)
    dout = whole(rng, *pool.forward(x).shape)
    assigned = max_pool_backward_loops(dout, pool.max_indices, x.shape, assign=True)
    assert_array_equal(pool.backward(dout), assigned)


@pytest.mark.parametrize(("size", "stride"), [(2, 2), (2, 1), (4, 2), (4, 1), (2, 3)])
def test_avg_pool_against_loops(
    size: int, stride: int, backend: str, dtype: Any, rng: np.random.Generator
) -> None:
    # Windows of 4 and 16 pixels: the division is exact.
    x = whole(rng, 2, 3, 7, 6, dtype=dtype)
    pool = cnnx.AvgPool2D(size, stride)
    out = avg_pool_loops(x, size, stride)
    assert_array_equal(pool.forward(x), out)
    dout = whole(rng, *out.shape, dtype=dtype)
    assert_array_equal(pool.backward(dout), avg_pool_backward_loops(dout, x.shape, size, stride))


def test_pools_are_two_by_two_when_nothing_is_said(backend: str) -> None:
    x = MATRIX.astype(float)[None, None]
    assert_array_equal(cnnx.MaxPool2D().forward(x)[0, 0], [[4, 5], [3, 6]])
    assert_array_equal(cnnx.AvgPool2D()(x)[0, 0], [[2.5, 2], [1.5, 3.75]])
    # Stride follows the size of the window.
    assert_array_equal(cnnx.MaxPool2D(pool_size=4).forward(x)[0, 0], [[6]])


def test_cache_of_something_else(backend: str) -> None:
    with pytest.raises(TypeError, match=r"cache is a tuple, expected the second result of conv_f"):
        cnnx.conv_backward(np.zeros((1, 1, 2, 2)), (np.zeros((1, 1, 2, 2)),))
