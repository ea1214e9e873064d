"""conv_transpose2d and its gradients: hand values, plain loops, and conv2d's own input gradient."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import naive
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from strategies import called

import cnnx


def image(rows: Any, dtype: Any) -> Any:
    """One image of one channel."""
    return np.array(rows, dtype)[None, None]


def test_overlaps_add_up_by_hand(implementation: str, dtype: Any) -> None:
    out = cnnx.conv_transpose2d(image([[1, 2], [3, 4]], dtype), np.ones((1, 1, 2, 2), dtype))
    assert out.dtype == dtype
    assert_array_equal(out, image([[1, 3, 2], [4, 10, 6], [3, 7, 4]], dtype))


def test_stride_and_output_padding_by_hand(implementation: str, dtype: Any) -> None:
    x, weight = image([[1, -1], [2, 0.5]], dtype), image([[1, 2], [3, 4]], dtype)
    painted = [[1, 2, -1, -2], [3, 4, -3, -4], [2, 4, 0.5, 1], [6, 8, 1.5, 2]]
    assert_array_equal(cnnx.conv_transpose2d(x, weight, stride=2), image(painted, dtype))
    # output_padding grows the result at bottom and right, where only the bias reaches.
    bias = np.array([10], dtype)
    out = cnnx.conv_transpose2d(x, weight, bias, stride=2, output_padding=1)
    assert_array_equal(out[0, 0, :4, :4], np.array(painted, dtype) + 10)
    assert_array_equal(out[0, 0, 4], [10] * 5)
    assert_array_equal(out[0, 0, :, 4], [10] * 5)
    # padding cuts the rim off.
    cut = cnnx.conv_transpose2d(x, weight, stride=2, padding=1)
    assert_array_equal(cut, image([[4, -3], [4, 0.5]], dtype))


def test_padding_and_output_padding_meet_by_hand(implementation: str, dtype: Any) -> None:
    # With padding, output_padding uncovers rim that padding had cut off: no zeros are put there.
    x, weight = image([[1, -1], [2, 0.5]], dtype), image([[1, 2], [3, 4]], dtype)
    out = cnnx.conv_transpose2d(x, weight, stride=2, padding=1, output_padding=1)
    assert_array_equal(out, image([[4, -3, -4], [4, 0.5, 1], [8, 1.5, 2]], dtype))


class Case(NamedTuple):
    """A geometry; two images of 4 channels."""

    name: str
    hw: naive.Pair = (4, 3)
    kernel: naive.Pair = (3, 3)
    stride: naive.Pair = (1, 1)
    pads: naive.Pads = (0, 0, 0, 0)
    output_padding: naive.Pair = (0, 0)
    groups: int = 1
    dilation: naive.Pair = (1, 1)
    group_filters: int = 3

    @property
    def options(self) -> dict[str, Any]:
        """As conv_transpose2d wants them."""
        return called(self, "stride", "output_padding", "groups", "dilation")


CASES = [
    Case("plain"),
    Case("one_pixel_kernel", kernel=(1, 1)),
    Case("one_pixel_kernel_strided", kernel=(1, 1), stride=(2, 3), output_padding=(1, 2)),
    Case("upsample_two", kernel=(2, 2), stride=(2, 2)),
    Case("upsample_two_overlapping", kernel=(4, 4), stride=(2, 2), pads=(1, 1, 1, 1)),
    Case("output_padding", stride=(2, 2), pads=(1, 1, 1, 1), output_padding=(1, 1)),
    Case("output_padding_unequal", stride=(3, 2), pads=(1, 1, 0, 0), output_padding=(2, 1)),
    Case("output_padding_by_dilation", dilation=(3, 2), output_padding=(2, 1)),
    Case("stride_beyond_the_kernel", kernel=(2, 1), stride=(3, 4), output_padding=(1, 3)),
    Case("pads_unequal", pads=(2, 0, 0, 1)),
    Case("pads_cut_whole_pixels_off", kernel=(1, 1), pads=(1, 0, 1, 0)),
    Case("dilation", dilation=(2, 3), pads=(2, 2, 1, 1)),
    Case("dilation_strided", dilation=(2, 2), stride=(3, 2), pads=(1, 2, 3, 0)),
    Case("groups_two", groups=2, stride=(2, 1), pads=(1, 1, 1, 1)),
    Case("depthwise", groups=4, group_filters=1, stride=(2, 2), output_padding=(1, 0)),
    Case("depthwise_multiplier", groups=4, group_filters=2, pads=(1, 0, 0, 1)),
    Case("one_filter", group_filters=1),
    Case("one_pixel_image", hw=(1, 1), kernel=(3, 2)),
    # Most of the image is cut off, so that copies of its rows are shorter than the rows themselves.
    Case("pads_cut_most_off", hw=(9, 70), pads=(3, 5, 25, 30), group_filters=2),
    Case("pads_cut_most_off_strided", (9, 50), (4, 4), (2, 2), (5, 5, 40, 37), group_filters=2),
]
each_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@cache
def solved(case: Case) -> dict[str, Any]:
    """Whole-number inputs for a case, and what the loops make of them."""
    rng = np.random.default_rng(len(case.name))
    x = naive.integers(rng, (2, 4, *case.hw))
    weight = naive.integers(rng, (4, case.group_filters, *case.kernel))
    bias = naive.integers(rng, (case.group_filters * case.groups,))
    out = naive.conv_transpose2d(
        x, weight, bias, case.stride, case.pads, case.output_padding, case.groups, case.dilation
    )
    grad_out = naive.integers(rng, out.shape)
    grads = naive.conv_transpose2d_backward(
        grad_out, x, weight, case.stride, case.pads, case.groups, case.dilation
    )
    return {
        "x": x,
        "weight": weight,
        "bias": bias,
        "out": out,
        "grad_out": grad_out,
        "grads": grads,
    }


@each_case
def test_forward(case: Case, implementation: str, dtype: Any) -> None:
    known = solved(case)
    x, weight, bias = (known[name].astype(dtype) for name in ("x", "weight", "bias"))
    out = cnnx.conv_transpose2d(x, weight, bias, **case.options)
    assert out.dtype == dtype
    assert_array_equal(out, known["out"])
    without = cnnx.conv_transpose2d(x, weight, **case.options)
    assert_array_equal(without, known["out"] - known["bias"][:, None, None])


@each_case
def test_backward(case: Case, implementation: str, dtype: Any) -> None:
    known = solved(case)
    grad_out, x, weight = (known[name].astype(dtype) for name in ("grad_out", "x", "weight"))
    grads = cnnx.conv_transpose2d_backward(grad_out, x, weight, **case.options)
    for name, grad, expected in zip(("x", "weight", "bias"), grads, known["grads"], strict=True):
        assert grad.dtype == dtype
        assert_array_equal(grad, expected, err_msg=f"grad_{name}")


@pytest.mark.parametrize("mask", range(8))
def test_need(mask: int, backend: str) -> None:
    need = tuple(bool(mask >> bit & 1) for bit in range(3))
    known = solved(CASES[0])
    grads = cnnx.conv_transpose2d_backward(
        known["grad_out"], known["x"], known["weight"], need=need
    )
    for grad, wanted, expected in zip(grads, need, known["grads"], strict=True):
        if wanted:
            assert_array_equal(grad, expected)
        else:
            assert grad is None


def test_is_conv2ds_input_gradient(backend: str, rng: np.random.Generator) -> None:
    # The weight of one is the weight of the other: (F, C, KH, KW) read as (C, F, KH, KW).
    weight = naive.integers(rng, (5, 3, 3, 2))
    grad_out = naive.integers(rng, (2, 5, 4, 3))
    x = np.zeros((2, 3, 8, 5))  # (8 + 2 - 3) // 2 + 1 = 4 rows, one row over: output_padding 1
    grad_x, _, _ = cnnx.conv2d_backward(grad_out, x, weight, (2, 3), (1, 2))
    transposed = cnnx.conv_transpose2d(
        grad_out, weight, stride=(2, 3), padding=(1, 2), output_padding=(1, 1)
    )
    assert_array_equal(transposed, grad_x)


def test_mixed_dtypes_are_promoted(backend: str) -> None:
    known = solved(CASES[0])
    out = cnnx.conv_transpose2d(known["x"].astype(np.float32), known["weight"], known["bias"])
    assert out.dtype == np.float64
    assert_array_equal(out, known["out"])
