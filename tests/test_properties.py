"""Identities that hold for every geometry, tried on geometries that hypothesis makes up.

Whole numbers again, so each identity holds to the last bit: plain loops, adjointness, linearity,
translation, and what the padding modes, groups and dilations are worth in terms of simpler calls.
"""

from __future__ import annotations

from typing import Any

import naive
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from strategies import (
    ALL_MODES,
    Conv,
    Pool,
    Transposed,
    convolutions,
    poolings,
    transposed_convolutions,
)
from tolerances import assert_close

import cnnx


@given(case=convolutions(ALL_MODES))
def test_conv_is_seven_loops(case: Conv, implementation: str) -> None:
    expected = naive.conv2d(case.x, case.weight, case.bias, *case.geometry)
    for dtype in (np.float32, np.float64):
        x, weight, bias = (a.astype(dtype) for a in (case.x, case.weight, case.bias))
        assert_array_equal(cnnx.conv2d(x, weight, bias, **case.options), expected)


@given(case=convolutions(ALL_MODES))
def test_conv_gradients_are_seven_loops(case: Conv, implementation: str) -> None:
    known = naive.conv2d_backward(case.grad_out, case.x, case.weight, *case.geometry)
    for dtype in (np.float32, np.float64):
        arrays = [a.astype(dtype) for a in (case.grad_out, case.x, case.weight)]
        for grad, expected in zip(
            cnnx.conv2d_backward(*arrays, **case.options), known, strict=True
        ):
            assert_array_equal(grad, expected)


@given(case=convolutions(ALL_MODES))
def test_backward_is_adjoint(case: Conv, implementation: str) -> None:
    # <conv(x, w), g> = <x, grad_x> = <w, grad_w>: convolution is linear in each of the two.
    out = cnnx.conv2d(case.x, case.weight, **case.options)
    grads = cnnx.conv2d_backward(case.grad_out, case.x, case.weight, **case.options)
    grad_x, grad_weight, grad_bias = grads
    product = np.vdot(out, case.grad_out)
    assert product == np.vdot(case.x, grad_x) == np.vdot(case.weight, grad_weight)
    assert np.vdot(case.bias, grad_bias) == np.vdot(
        np.broadcast_to(case.bias[:, None, None], out.shape), case.grad_out
    )


@given(case=convolutions())
def test_transposed_conv_is_adjoint(case: Conv, implementation: str) -> None:
    # <conv(x), y> = <x, conv^T(y)>, once output_padding has picked x's size among those that fit.
    options = {name: v for name, v in case.options.items() if name != "padding_mode"}
    smallest = [
        (case.grad_out.shape[2 + a] - 1) * case.stride[a]
        + case.dilation[a] * (case.weight.shape[2 + a] - 1)
        + 1
        - case.pads[2 * a]
        - case.pads[2 * a + 1]
        for a in (0, 1)
    ]
    extra = tuple(case.x.shape[2 + a] - smallest[a] for a in (0, 1))
    back = cnnx.conv_transpose2d(case.grad_out, case.weight, output_padding=extra, **options)
    assert back.shape == case.x.shape
    assert np.vdot(cnnx.conv2d(case.x, case.weight, **options), case.grad_out) == np.vdot(
        case.x, back
    )
    # And its own gradients are the convolution, and the weight's gradient with the roles changed.
    grad_x, grad_weight, _ = cnnx.conv_transpose2d_backward(
        case.x, case.grad_out, case.weight, output_padding=extra, **options
    )
    assert_array_equal(grad_x, cnnx.conv2d(case.x, case.weight, **options))
    assert np.vdot(grad_weight, case.weight) == np.vdot(back, case.x)


@given(case=convolutions(ALL_MODES), a=st.integers(-3, 3), b=st.integers(-3, 3))
def test_conv_is_linear(case: Conv, a: int, b: int, implementation: str) -> None:
    other = np.roll(case.x, 1, axis=3)[:, :, ::-1]
    together = cnnx.conv2d(a * case.x + b * other, case.weight, **case.options)
    first = cnnx.conv2d(case.x, case.weight, **case.options)
    second = cnnx.conv2d(other, case.weight, **case.options)
    assert_array_equal(together, a * first + b * second)


@given(case=convolutions(), shift=st.tuples(st.integers(0, 6), st.integers(0, 6)))
def test_conv_commutes_with_translation(
    case: Conv, shift: tuple[int, int], implementation: str
) -> None:
    # On a torus: circular padding that keeps the size, stride 1.
    reach = [case.dilation[a] * (case.weight.shape[2 + a] - 1) for a in (0, 1)]
    assume(all(reach[a] <= case.x.shape[2 + a] for a in (0, 1)))
    options = {
        "padding": ((0, reach[0]), (0, reach[1])),
        "padding_mode": "circular",
        "dilation": case.dilation,
        "groups": case.groups,
    }
    moved = cnnx.conv2d(np.roll(case.x, shift, (2, 3)), case.weight, **options)
    assert_array_equal(moved, np.roll(cnnx.conv2d(case.x, case.weight, **options), shift, (2, 3)))


@given(case=convolutions(ALL_MODES))
def test_padding_is_padding_the_image(case: Conv, backend: str) -> None:
    top, bottom, left, right = case.pads
    mode: Any = {"zeros": "constant", "replicate": "edge", "circular": "wrap"}
    padded = np.pad(
        case.x, ((0, 0), (0, 0), (top, bottom), (left, right)), mode.get(case.mode, case.mode)
    )
    out = cnnx.conv2d(padded, case.weight, None, case.stride, 0, case.dilation, case.groups)
    assert_array_equal(cnnx.conv2d(case.x, case.weight, **case.options), out)


@given(case=convolutions())
def test_groups_are_separate_convolutions(case: Conv, backend: str) -> None:
    options = {**case.options, "groups": 1}
    parts = [
        cnnx.conv2d(x, weight, bias, **options)
        for x, weight, bias in zip(
            np.split(case.x, case.groups, axis=1),
            np.split(case.weight, case.groups),
            np.split(case.bias, case.groups),
            strict=True,
        )
    ]
    whole = cnnx.conv2d(case.x, case.weight, case.bias, **case.options)
    assert_array_equal(whole, np.concatenate(parts, axis=1))


@given(case=convolutions())
def test_dilation_is_a_kernel_with_zeros(case: Conv, backend: str) -> None:
    kernel = case.weight.shape[2:]
    spans = [case.dilation[a] * (kernel[a] - 1) + 1 for a in (0, 1)]
    spread = np.zeros((*case.weight.shape[:2], *spans))
    spread[:, :, :: case.dilation[0], :: case.dilation[1]] = case.weight
    out = cnnx.conv2d(case.x, spread, **{**case.options, "dilation": 1})
    assert_array_equal(cnnx.conv2d(case.x, case.weight, **case.options), out)


@given(case=convolutions())
def test_stride_is_a_selection(case: Conv, backend: str) -> None:
    every = cnnx.conv2d(case.x, case.weight, **{**case.options, "stride": 1})
    some = cnnx.conv2d(case.x, case.weight, **case.options)
    assert_array_equal(some, every[:, :, :: case.stride[0], :: case.stride[1]])


@given(case=convolutions())
def test_images_do_not_mix(case: Conv, implementation: str) -> None:
    whole = cnnx.conv2d(case.x, case.weight, case.bias, **case.options)
    for n in range(len(case.x)):
        alone = cnnx.conv2d(case.x[n : n + 1], case.weight, case.bias, **case.options)
        assert_array_equal(whole[n : n + 1], alone)


# ---------------------------------------------------------------------------- transposed


@given(case=transposed_convolutions())
def test_transposed_conv_is_loops(case: Transposed, implementation: str) -> None:
    x, weight, bias, grad_out = case.x, case.weight, case.bias, case.grad_out
    expected = naive.conv_transpose2d(x, weight, bias, *case.geometry)
    assert_array_equal(cnnx.conv_transpose2d(x, weight, bias, **case.options), expected)
    known = naive.conv_transpose2d_backward(
        grad_out, x, weight, case.stride, case.pads, case.groups, case.dilation
    )
    for grad, wanted in zip(
        cnnx.conv_transpose2d_backward(grad_out, x, weight, **case.options), known, strict=True
    ):
        assert_array_equal(grad, wanted)


# ---------------------------------------------------------------------------- pooling


@given(case=poolings(most_dilation=3), with_nan=st.booleans())
def test_max_pool_is_loops(case: Pool, with_nan: bool, implementation: str) -> None:
    x = np.where(case.x == 3, np.nan, case.x) if with_nan else case.x
    expected, where = naive.max_pool2d(
        x, case.window, case.stride, case.pads, case.dilation, case.ceil_mode
    )
    for dtype in (np.float32, np.float64):
        out, indices = cnnx.max_pool2d(
            x.astype(dtype), **case.options, dilation=case.dilation, return_indices=True
        )
        assert_array_equal(out, expected)
        assert_array_equal(indices, where)
        grad_out = np.arange(1, out.size + 1, dtype=dtype).reshape(out.shape)
        grad_x = cnnx.max_pool2d_backward(grad_out, indices, x.shape)
        assert_array_equal(grad_x, naive.max_pool2d_backward(grad_out, where, x.shape))


@given(case=poolings(), include_pad=st.booleans())
def test_avg_pool_is_loops(case: Pool, include_pad: bool, implementation: str) -> None:
    rest = (case.window, case.stride, case.pads, case.ceil_mode, include_pad)
    expected = naive.avg_pool2d(case.x, *rest)
    for dtype in (np.float32, np.float64):
        out = cnnx.avg_pool2d(case.x.astype(dtype), **case.options, count_include_pad=include_pad)
        # An exact sum and a division, or a product with a rounded reciprocal.
        assert_close(out, expected, roundings=3)


@given(case=poolings(), include_pad=st.booleans())
def test_avg_pool_backward_is_adjoint(case: Pool, include_pad: bool, implementation: str) -> None:
    options = {**case.options, "count_include_pad": include_pad}
    out = cnnx.avg_pool2d(case.x, **options)
    grad_out = np.roll(np.round(out * 3), 1, axis=1)
    grad_x = cnnx.avg_pool2d_backward(grad_out, case.x.shape, **options)
    left, right = np.vdot(out, grad_out), np.vdot(case.x, grad_x)
    # Two sums of at most 2 * 2 * 9 * 20 products below 27, in another order each.
    assert left == pytest.approx(right, rel=0, abs=720 * 27 * np.finfo(float).eps)


@given(case=poolings(most_dilation=3))
def test_max_pool_pads_with_minus_infinity(case: Pool, backend: str) -> None:
    # What a maximum does with padding can be seen from an image framed by minus infinities.
    top, bottom, left, right = case.pads
    framed = np.pad(case.x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=-np.inf)
    assume(not case.ceil_mode)
    out = cnnx.max_pool2d(case.x, **case.options, dilation=case.dilation)
    assert_array_equal(out, cnnx.max_pool2d(framed, case.window, case.stride, 0, case.dilation))


# ---------------------------------------------------------------------------- the rest


@given(
    rows=st.integers(1, 9), inner=st.integers(1, 40), columns=st.integers(1, 30),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_linear_is_a_1x1_convolution(
    rows: int, inner: int, columns: int, seed: int, implementation: str
) -> None:
    rng = np.random.default_rng(seed)
    x, weight = naive.integers(rng, (rows, inner)), naive.integers(rng, (inner, columns))
    bias = naive.integers(rng, (columns,))
    pixels, filters = x[:, :, None, None], weight.T[:, :, None, None]
    out = cnnx.linear(x, weight, bias)
    assert_array_equal(out, naive.linear(x, weight, bias))
    assert_array_equal(out, cnnx.conv2d(pixels, filters, bias)[:, :, 0, 0])


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 5), classes=st.integers(1, 40))
def test_softmax_is_a_distribution(seed: int, rows: int, classes: int, implementation: str) -> None:
    x = np.random.default_rng(seed).normal(0, 5, (rows, classes))
    y = cnnx.softmax(x)
    assert (y > 0).all()
    assert_close(y.sum(axis=1), np.ones(rows), roundings=2 * classes)  # `classes` roundings a row
    # Adding a number to all scores changes nothing; a power of two keeps the sums exact.
    shifted = cnnx.softmax(np.round(x * 1024) / 1024 + 64)
    assert_array_equal(shifted, cnnx.softmax(np.round(x * 1024) / 1024))
    # Its gradient has no part along the ones: each row of it sums to nothing.
    grad = cnnx.softmax_backward(x, x)
    bound = classes * np.finfo(float).eps * np.abs(x).max()  # a sum of `classes` such terms
    assert np.abs(grad.sum(axis=1)).max() <= bound
