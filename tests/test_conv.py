"""conv2d and its three gradients: hand-computed values, then every geometry against plain loops.

The inputs are whole numbers, so a right answer is right to the last bit in either dtype.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import naive
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from strategies import called
from tolerances import assert_close

import cnnx
from cnnx.functional import _conv

MATRIX = [[1, 3, 2, 1], [4, 2, 0, 5], [3, 1, 4, 2], [2, 0, 3, 6]]


def image(rows: Any, dtype: Any) -> Any:
    """One image of one channel."""
    return np.array(rows, dtype)[None, None]


# ---------------------------------------------------------------------------- by hand


def test_cross_correlation_by_hand(implementation: str, dtype: Any) -> None:
    # Each output is the pixel less its lower right neighbour: the kernel is not flipped.
    out = cnnx.conv2d(image(MATRIX, dtype), image([[1, 0], [0, -1]], dtype))
    assert out.dtype == dtype
    assert_array_equal(out, image([[-1, 3, -3], [3, -2, -2], [3, -2, -2]], dtype))


def test_stride_and_padding_by_hand(implementation: str, dtype: Any) -> None:
    weight = image([[1, 2], [3, 4]], dtype)
    out = cnnx.conv2d(image(MATRIX, dtype), weight, stride=2, padding=1)
    # The middle: 1*2 + 2*0 + 3*1 + 4*4. The corners see one pixel each: 4*1, 3*1, 2*2, 1*6.
    assert_array_equal(out, image([[4, 17, 3], [20, 21, 11], [4, 6, 6]], dtype))


def test_dilation_by_hand(implementation: str, dtype: Any) -> None:
    out = cnnx.conv2d(image(MATRIX, dtype), image([[1, 2], [3, 4]], dtype), dilation=2)
    # Upper left: 1*1 + 2*2 + 3*3 + 4*4.
    assert_array_equal(out, image([[30, 16], [22, 36]], dtype))


def test_channels_filters_and_bias_by_hand(implementation: str, dtype: Any) -> None:
    x = np.array([[[[1, 2]], [[10, 20]]]], dtype)  # one image, two channels of 1 x 2
    weight = np.array([[[[1]], [[2]]], [[[3]], [[-1]]], [[[0]], [[1]]]], dtype)  # three filters
    out = cnnx.conv2d(x, weight, np.array([100, 200, 300], dtype))
    assert_array_equal(out, np.array([[[[121, 142]], [[193, 186]], [[310, 320]]]], dtype))


def test_groups_by_hand(implementation: str, dtype: Any) -> None:
    x = np.array([[[[1]], [[2]], [[3]], [[4]]]], dtype)
    weight = np.array([[[[1]], [[10]]], [[[1]], [[-1]]]], dtype)  # (2, 4 / 2, 1, 1)
    # The first filter sees channels 0 and 1, the second 2 and 3.
    assert_array_equal(cnnx.conv2d(x, weight, groups=2).ravel(), [21, -1])
    # Depthwise with two filters a channel: filters 0, 1 see channel 0; filters 2, 3 channel 1.
    depthwise = np.array([1, 2, 3, 4], dtype).reshape(4, 1, 1, 1)
    assert_array_equal(cnnx.conv2d(x[:, :2], depthwise, groups=2).ravel(), [1, 2, 6, 8])


def test_gradients_by_hand(implementation: str, dtype: Any) -> None:
    grad_out = image([[1, -1], [2, 0.5]], dtype)
    weight = image([[1, 2], [3, 4]], dtype)
    grad_x, grad_weight, grad_bias = cnnx.conv2d_backward(
        grad_out, image(MATRIX, dtype), weight, stride=2
    )
    # The windows do not overlap, so each block of grad_x is the weight times its upstream number.
    rows = [[1, 2, -1, -2], [3, 4, -3, -4], [2, 4, 0.5, 1], [6, 8, 1.5, 2]]
    assert_array_equal(grad_x, image(rows, dtype))
    # Upper left: 1*1 - 1*2 + 2*3 + 0.5*4.
    assert_array_equal(grad_weight, image([[7, 5], [9.5, 0]], dtype))
    assert_array_equal(grad_bias, np.array([2.5], dtype))
    assert grad_x.dtype == grad_weight.dtype == grad_bias.dtype == dtype


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("zeros", [[0, 1, 2], [1, 2, 3], [2, 3, 0]]),
        ("replicate", [[1, 1, 2], [1, 2, 3], [2, 3, 3]]),
        ("reflect", [[2, 1, 2], [1, 2, 3], [2, 3, 2]]),
        ("circular", [[3, 1, 2], [1, 2, 3], [2, 3, 1]]),
    ],
)
def test_padding_modes_by_hand(implementation: str, mode: str, expected: Any) -> None:
    # Three filters pick the left neighbour, the pixel and the right neighbour out of 1 2 3.
    out = cnnx.conv2d(
        np.array([[[[1.0, 2, 3]]]]),
        np.eye(3).reshape(3, 1, 1, 3),
        padding=(0, 1),
        padding_mode=mode,
    )
    assert_array_equal(out[0, :, 0].T, np.array(expected, float))


# ---------------------------------------------------------------------------- against loops


class Case(NamedTuple):
    """A geometry; the images are two of 4 channels, 6 filters, unless it says otherwise."""

    name: str
    hw: naive.Pair = (7, 6)
    kernel: naive.Pair = (3, 3)
    stride: naive.Pair = (1, 1)
    pads: naive.Pads = (0, 0, 0, 0)
    dilation: naive.Pair = (1, 1)
    groups: int = 1
    mode: str = "zeros"
    channels: int = 4
    filters: int = 6
    images: int = 2

    @property
    def options(self) -> dict[str, Any]:
        """As conv2d wants them."""
        return called(self, "stride", "dilation", "groups", padding_mode=self.mode)


CASES = [
    Case("plain"),
    Case("one_pixel_kernel", kernel=(1, 1)),
    Case("one_pixel_kernel_strided", kernel=(1, 1), stride=(2, 3)),
    Case("one_pixel_kernel_padded", kernel=(1, 1), pads=(1, 0, 2, 1)),
    Case("one_pixel_kernel_grouped", kernel=(1, 1), groups=2),
    Case("one_row_kernel", kernel=(1, 4)),
    Case("one_column_kernel", kernel=(5, 1), pads=(2, 2, 0, 0)),
    Case("even_kernel", kernel=(2, 4), pads=(1, 1, 2, 2)),
    Case("five_by_five", kernel=(5, 5), pads=(2, 2, 2, 2)),
    Case("kernel_of_the_image", kernel=(7, 6)),
    Case("kernel_larger_than_the_image", hw=(3, 2), kernel=(5, 4), pads=(2, 2, 1, 1)),
    Case("padding_beyond_the_kernel", hw=(2, 3), kernel=(2, 2), pads=(4, 3, 3, 5)),
    Case("same", pads=(1, 1, 1, 1)),
    Case("stride_two", stride=(2, 2), pads=(1, 1, 1, 1)),
    Case("stride_three", stride=(3, 3)),
    Case("stride_unequal", stride=(1, 3), pads=(0, 0, 1, 1)),
    Case("stride_beyond_the_kernel", kernel=(2, 1), stride=(3, 4)),
    Case("stride_beyond_the_image", stride=(9, 9)),
    Case("stride_leaves_pixels_over", hw=(8, 8), stride=(3, 3)),
    Case("pads_unequal", pads=(2, 0, 0, 1)),
    Case("pads_unequal_strided", pads=(0, 2, 1, 0), stride=(2, 2)),
    Case("dilation_two", hw=(9, 8), dilation=(2, 2)),
    Case("dilation_unequal", hw=(9, 7), dilation=(3, 1), pads=(2, 1, 0, 0)),
    Case("dilation_strided", hw=(9, 9), dilation=(2, 3), stride=(2, 2), pads=(3, 3, 3, 3)),
    Case("groups_two", groups=2, pads=(1, 1, 1, 1)),
    Case("groups_two_strided", groups=2, stride=(2, 1), pads=(0, 1, 1, 0)),
    Case("depthwise", groups=4, filters=4, pads=(1, 1, 1, 1)),
    Case("depthwise_strided", groups=4, filters=4, stride=(2, 2), pads=(1, 1, 1, 1)),
    Case("depthwise_dilated", groups=4, filters=4, dilation=(2, 1), pads=(2, 2, 0, 0)),
    Case("depthwise_five", groups=4, filters=4, kernel=(5, 5), pads=(2, 2, 2, 2)),
    Case("depthwise_multiplier", groups=4, filters=8, pads=(1, 0, 1, 0)),
    Case("one_channel", channels=1, pads=(1, 1, 1, 1)),
    Case("three_channels", channels=3, filters=5, images=3, pads=(1, 1, 1, 1)),
    Case("one_filter", filters=1),
    Case("one_image", images=1, pads=(1, 1, 1, 1)),
    Case("one_pixel_image", hw=(1, 1), pads=(1, 1, 1, 1)),
    Case("one_row_image", hw=(1, 9), kernel=(1, 3), pads=(0, 0, 1, 1)),
    Case("five_images", images=5, channels=2, filters=3),
    Case("reflect", mode="reflect", pads=(1, 1, 1, 1)),
    Case("reflect_unequal", mode="reflect", hw=(5, 6), pads=(4, 0, 2, 5)),
    Case("reflect_strided", mode="reflect", stride=(2, 3), pads=(2, 1, 1, 2)),
    Case("replicate", mode="replicate", pads=(1, 1, 1, 1)),
    Case("replicate_beyond_the_image", mode="replicate", hw=(2, 3), pads=(3, 4, 5, 2)),
    Case("replicate_dilated", mode="replicate", dilation=(2, 2), pads=(2, 2, 2, 2)),
    Case("circular", mode="circular", pads=(1, 1, 1, 1)),
    Case("circular_whole_image", mode="circular", hw=(3, 4), pads=(3, 3, 4, 0)),
    Case("circular_grouped", mode="circular", groups=2, pads=(2, 0, 1, 1), stride=(2, 1)),
]
# Depthwise by 3, 5 and 7 has kernels of its own: tiles of 4 and 7 rows and of a vector, 2 to 16
# numbers, with the last one moved back; beyond the end of a short row they write ahead.
CASES += [
    Case(
        f"depthwise_{k}x{k}_stride_{stride}_{hw[0]}_by_{hw[1]}",
        hw,
        (k, k),
        (stride, stride),
        (k // 2,) * 4,
        groups=2,
        channels=2,
        filters=2,
    )
    for k in (3, 5, 7)
    for stride in (1, 2)
    for hw in ((1, 1), (2, 3), (4, 5), (5, 7), (7, 8), (8, 9), (11, 15), (3, 16), (15, 17), (2, 33))
] + [
    Case(f"depthwise_{name}", (8, 9), (k, k), stride, pads, groups=3, channels=3, filters=3)
    for name, k, stride, pads in (
        ("valid", 3, (1, 1), (0, 0, 0, 0)),
        ("valid_strided", 5, (2, 2), (0, 0, 0, 0)),
        ("same_strided", 3, (2, 2), (0, 1, 0, 1)),
        ("odd_and_even_pads", 3, (2, 2), (1, 0, 2, 1)),
        ("three_pads", 3, (2, 2), (3, 2, 3, 4)),
        ("pads_beyond_the_kernel", 3, (1, 1), (4, 5, 3, 4)),
        ("stride_unequal", 5, (1, 2), (2, 2, 2, 2)),
        ("stride_three", 3, (3, 3), (1, 1, 1, 1)),
    )
]
# Tall planes are cut into blocks of rows: none may write ahead into the next plane's first.
CASES += [
    Case(
        f"depthwise_tall_{hw[0]}_by_{hw[1]}", hw, stride=(2, 2), pads=(1, 1, 1, 1),
        groups=2, channels=2, filters=2,
    )
    for hw in ((1362, 6), (290, 28))
]  # fmt: skip
# Small images of enough channels have these in the lanes: whole vectors, and two that are left
# over. A gradient of stride 2 goes through its rows by their phases.
CASES += [
    Case(
        f"depthwise_channels_{k}x{k}_stride_{stride}_{hw[0]}_by_{hw[1]}", hw, (k, k),
        (stride, stride), (k // 2,) * 4, groups=18, channels=18, filters=18,
    )
    for k in (3, 5, 7)
    for stride in (1, 2)
    for hw in ((4, 3), (7, 7), (9, 13))
]  # fmt: skip
# The weight gradient's tiles: 6, 8 or 12 numbers of the input by one or two vectors, of 2 to 16
# channels; 1x1 transposes the fewer channels. Where few channels are left pixels go into the lanes,
# 2 or 4 channels by 6 numbers, and a row's last vector overlaps the one before. Chunks of 256
# pixels end inside a row, an image or the batch.
CASES += [
    Case(f"gradient_1x1_{c}_to_{f}", (9, 31), (1, 1), channels=c, filters=f)
    for c, f in ((5, 33), (33, 5), (17, 16), (8, 31), (13, 40), (2, 1))
] + [
    Case(
        f"gradient_lanes_{c}_to_{f}_{w}_wide",
        (5, w),
        stride=(stride, stride),
        pads=(1, 1, 1, 1),
        groups=2,
        channels=2 * c,
        filters=2 * f,
    )
    for c, f, w, stride in (
        (1, 3, 16, 1),
        (2, 1, 17, 1),
        (1, 4, 31, 1),
        (3, 5, 33, 1),
        (1, 7, 65, 2),
        (2, 2, 40, 2),
        (4, 4, 49, 3),
    )
]
CASES += [
    Case("gradient_long_rows", (2, 517), (1, 3), pads=(0, 0, 1, 1), channels=5, filters=9),
    Case("gradient_small_images", (5, 4), (2, 3), channels=5, filters=17, images=31),
    Case("gradient_1x1_stride_two", (9, 35), (1, 1), (2, 2), channels=5, filters=18),
    Case("gradient_1x1_stride_three", (10, 37), (1, 1), (3, 3), channels=5, filters=18),
    Case("gradient_columns_of_a_step", (9, 67), (1, 2), (1, 4), channels=5, filters=18),
]
# As many outputs as pixels all the same, for the stride goes on into the padding.
CASES += [
    Case(
        f"1x1_stride_two_into_the_padding_{c}_to_{f}", (5, 6), (1, 1), (2, 2), (0, 4, 0, 5),
        channels=c, filters=f,
    )
    for c, f in ((5, 18), (40, 24))
]  # fmt: skip
# An image one column wide whose phases lie apart in it: no plane is one long row then. The tiles
# read copied rows that run on into the next, or rows of whole vectors, in blocks that begin inside
# an image, by a depth that is cut or not; a dense 1x1 convolution is cut at 512.
CASES += [
    Case("one_column_image_1x1", (9, 1), (1, 1), (1, 3), channels=40, filters=20),
    Case("one_column_image_1x1_stride_two", (9, 1), (1, 1), (2, 2), channels=40, filters=20),
    Case("rows_running_on", (21, 37), stride=(2, 2), pads=(1, 1, 1, 1), channels=9, images=5),
    Case("rows_running_on_deep", (23, 50), (5, 4), (2, 2), (2, 2, 1, 1), channels=17, filters=9),
    Case(
        "rows_of_whole_vectors", (9, 64), stride=(2, 2), pads=(1, 1, 1, 1), channels=9, filters=11
    ),
    Case("rows_of_whole_vectors_and_four", (9, 71), (3, 4), (2, 2), channels=9, filters=8),
    Case("1x1_deep", (5, 7), (1, 1), channels=530, filters=9, images=3),
    Case("1x1_deep_at_once", (5, 7), (1, 1), channels=300, filters=17, images=8),
]
# Taps so far apart that the rows between them are not copied: patches are packed pixel by pixel, in
# blocks of the depth that begin inside a channel.
CASES += [
    Case("far_taps", (13, 90), (3, 3), (2, 35), (2, 2, 41, 40), (2, 40), channels=9, filters=9),
    Case(
        "far_taps_deep", (19, 90), (17, 17), (1, 40), (1, 2, 3, 4), (1, 3),
        channels=2, filters=3, images=1,
    ),
    Case(
        "gradient_of_far_taps", (30, 40), (3, 3), (1, 1), (82, 83, 80, 80), (95, 95),
        channels=25, images=1,
    ),
]  # fmt: skip
each_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@cache
def solved(case: Case) -> dict[str, Any]:
    """Whole-number inputs for a case, and what the loops make of them."""
    rng = np.random.default_rng(len(case.name))
    x = naive.integers(rng, (case.images, case.channels, *case.hw))
    weight = naive.integers(rng, (case.filters, case.channels // case.groups, *case.kernel))
    bias = naive.integers(rng, (case.filters,))
    geometry = (case.stride, case.pads, case.dilation, case.groups, case.mode)
    out = naive.conv2d(x, weight, bias, *geometry)
    grad_out = naive.integers(rng, out.shape)
    grads = naive.conv2d_backward(grad_out, x, weight, *geometry)
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
    out = cnnx.conv2d(x, weight, bias, **case.options)
    assert out.dtype == dtype
    assert_array_equal(out, known["out"])


@each_case
def test_backward(case: Case, implementation: str, dtype: Any) -> None:
    known = solved(case)
    grad_out, x, weight = (known[name].astype(dtype) for name in ("grad_out", "x", "weight"))
    grads = cnnx.conv2d_backward(grad_out, x, weight, **case.options)
    for name, grad, expected in zip(("x", "weight", "bias"), grads, known["grads"], strict=True):
        assert grad.dtype == dtype
        assert_array_equal(grad, expected, err_msg=f"grad_{name}")


# ---------------------------------------------------------------------------- arguments


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (3, 2), (4, 5)])
@pytest.mark.parametrize("hw", [(7, 6), (8, 9), (1, 5)])
def test_same_padding(
    hw: naive.Pair, kernel: naive.Pair, dilation: int, stride: int, backend: str
) -> None:
    rng = np.random.default_rng(0)
    x, weight = naive.integers(rng, (1, 2, *hw)), naive.integers(rng, (3, 2, *kernel))
    out = cnnx.conv2d(x, weight, stride=stride, padding="same", dilation=dilation)
    assert out.shape == (1, 3, -(-hw[0] // stride), -(-hw[1] // stride))
    vertical, horizontal = (
        naive.same_pads(size, k, stride, dilation) for size, k in zip(hw, kernel, strict=True)
    )
    geometry = ((stride, stride), (*vertical, *horizontal), (dilation, dilation))
    assert_array_equal(out, naive.conv2d(x, weight, None, *geometry))
    grads = cnnx.conv2d_backward(out, x, weight, stride, "same", dilation)
    for grad, expected in zip(grads, naive.conv2d_backward(out, x, weight, *geometry), strict=True):
        assert_array_equal(grad, expected)


def test_same_puts_the_odd_pixel_at_bottom_and_right(backend: str) -> None:
    # A 2 x 2 kernel that picks its lower right pixel sees zeros only in the last row and column.
    out = cnnx.conv2d(np.ones((1, 1, 3, 3)), image([[0, 0], [0, 1]], float), padding="same")
    assert_array_equal(out[0, 0], [[1, 1, 0], [1, 1, 0], [0, 0, 0]])


def test_valid_is_no_padding(backend: str, rng: np.random.Generator) -> None:
    x, weight = naive.integers(rng, (2, 3, 6, 5)), naive.integers(rng, (4, 3, 3, 2))
    assert_array_equal(cnnx.conv2d(x, weight, padding="valid"), naive.conv2d(x, weight))


@pytest.mark.parametrize(
    ("padding", "pads"),
    [
        (2, (2, 2, 2, 2)),
        ((1, 2), (1, 1, 2, 2)),
        ((0, 1), (0, 0, 1, 1)),
        (((1, 2), (0, 3)), (1, 2, 0, 3)),
        ([1, 2], (1, 1, 2, 2)),
        (np.int64(1), (1, 1, 1, 1)),
    ],
)
def test_forms_of_padding(padding: Any, pads: naive.Pads, backend: str) -> None:
    x, weight = np.arange(12.0).reshape(1, 1, 3, 4), image([[1, 2], [3, 4]], float)
    assert_array_equal(cnnx.conv2d(x, weight, padding=padding), naive.conv2d(x, weight, pads=pads))


def test_int_means_both_directions(backend: str, rng: np.random.Generator) -> None:
    x, weight = naive.integers(rng, (1, 2, 9, 9)), naive.integers(rng, (2, 2, 3, 3))
    once = cnnx.conv2d(x, weight, None, 2, 1, 3)
    assert_array_equal(once, cnnx.conv2d(x, weight, None, (2, 2), (1, 1), (3, 3)))
    assert_array_equal(once, naive.conv2d(x, weight, None, (2, 2), (1, 1, 1, 1), (3, 3)))


ACTIVATIONS = {
    "relu": lambda z: np.maximum(z, 0),
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "tanh": np.tanh,
    "relu6": lambda z: np.clip(z, 0, 6),  # from here on those of frozen layers alone
    "relu1": lambda z: np.clip(z, 0, 1),
    "silu": lambda z: z / (1 + np.exp(-z)),
    "hard_swish": lambda z: z * np.clip(z + 3, 0, 6) / 6,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize(
    ("groups", "kernel", "channels", "filters"),
    [
        (1, 3, 4, 8), (1, 1, 4, 8), (2, 3, 4, 8), (4, 3, 4, 8), (1, 3, 64, 8),
        (3, 3, 3, 3), (21, 3, 21, 21),  # depthwise: vectors of pixels, and of channels
    ],
)  # fmt: skip
def test_fused_activation(
    groups: int, kernel: int, channels: int, filters: int, with_bias: bool, activation: str,
    implementation: str, dtype: Any, rng: np.random.Generator,
) -> None:  # fmt: skip
    # 64 channels of 3 x 3 take more than one pass over K: the activation must come after the last.
    x = naive.integers(rng, (2, channels, 5, 6), dtype, high=1)
    weight = naive.integers(rng, (filters, channels // groups, kernel, kernel), dtype, high=1)
    bias = naive.integers(rng, (filters,), dtype) if with_bias else None
    plain = cnnx.conv2d(x, weight, bias, padding=1, groups=groups)
    fused = _conv.forward(x, weight, bias, 1, 1, 1, groups, "zeros", activation)
    assert fused.dtype == dtype
    if activation in _conv.ACTIVATIONS:
        public = cnnx.conv2d(x, weight, bias, padding=1, groups=groups, activation=activation)
        assert_array_equal(public, fused)
    # The plain sums are exact; an exponential, a sum and a quotient are within 4 roundings each,
    # and a vectorised exp or tanh may take 2 units of the last place (SLEEF's and SVML's bound).
    assert_close(fused, ACTIVATIONS[activation](plain.astype(np.float64)), roundings=8)


def test_no_bias_is_a_bias_of_zero(backend: str, rng: np.random.Generator) -> None:
    x, weight = naive.integers(rng, (2, 3, 5, 5)), naive.integers(rng, (4, 3, 3, 3))
    assert_array_equal(cnnx.conv2d(x, weight), cnnx.conv2d(x, weight, np.zeros(4)))


@pytest.mark.parametrize("mask", range(8))
def test_need(mask: int, implementation: str, rng: np.random.Generator) -> None:
    need = tuple(bool(mask >> bit & 1) for bit in range(3))
    x, weight = naive.integers(rng, (2, 3, 5, 5)), naive.integers(rng, (4, 3, 3, 3))
    grad_out = naive.integers(rng, (2, 4, 5, 5))
    grads = cnnx.conv2d_backward(grad_out, x, weight, padding=1, need=need)
    expected = naive.conv2d_backward(grad_out, x, weight, pads=(1, 1, 1, 1))
    for grad, wanted, known in zip(grads, need, expected, strict=True):
        if wanted:
            assert_array_equal(grad, known)
        else:
            assert grad is None


def test_out_is_filled_and_returned(implementation: str, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x, weight = naive.integers(rng, (2, 3, 6, 5), dtype), naive.integers(rng, (4, 3, 3, 3), dtype)
    out = np.full((2, 4, 4, 3), np.nan, dtype)  # what stood there must not matter
    assert cnnx.conv2d(x, weight, out=out) is out
    assert_array_equal(out, naive.conv2d(x, weight))


def test_mixed_dtypes_are_promoted(backend: str, rng: np.random.Generator) -> None:
    x, weight = naive.integers(rng, (2, 3, 5, 5)), naive.integers(rng, (4, 3, 3, 3))
    grad_out = naive.integers(rng, (2, 4, 3, 3))
    out = cnnx.conv2d(x.astype(np.float32), weight)
    assert out.dtype == np.float64
    assert_array_equal(out, naive.conv2d(x, weight))
    grads = cnnx.conv2d_backward(grad_out, x, weight.astype(np.float32))
    for grad, expected in zip(grads, naive.conv2d_backward(grad_out, x, weight), strict=True):
        assert grad.dtype == np.float64
        assert_array_equal(grad, expected)


def test_arrays_changed_in_place_count(backend: str, rng: np.random.Generator) -> None:
    # Nothing derived from an array is kept from one call to the next.
    x, weight = naive.integers(rng, (1, 3, 6, 6)), naive.integers(rng, (4, 3, 3, 3))
    for _ in range(3):
        assert_array_equal(cnnx.conv2d(x, weight), naive.conv2d(x, weight))
        weight[1, 2, 0, 1] += 1
        x[0, 1, 2, 3] -= 1


def test_results_are_new_arrays(backend: str, rng: np.random.Generator) -> None:
    # Buffers are recycled when a result dies, and not before.
    x, weight = naive.integers(rng, (1, 3, 6, 6)), naive.integers(rng, (4, 3, 3, 3))
    kept = [cnnx.conv2d(x * k, weight) for k in range(6)]
    view = cnnx.conv2d(x * 6, weight)[0, 1]  # keeps its buffer alive without the array itself
    later = [cnnx.conv2d(x * -k, weight) for k in range(6)]
    expected = naive.conv2d(x, weight)
    for k in range(6):
        assert_array_equal(kept[k], expected * k)
        assert_array_equal(later[k], expected * -k)
    assert_array_equal(view, expected[0, 1] * 6)


@pytest.mark.parametrize(("stride", "width"), [(1, 35), (2, 68)])
@pytest.mark.parametrize("filters", [2, 20])
def test_infinity_only_in_the_weight_gradients_that_see_it(
    filters: int, stride: int, width: int, implementation: str, rng: np.random.Generator
) -> None:
    # Vectors that reach over a row's end meet zeros, and zero times infinity is not zero. The last
    # column is seen by the last tap alone with stride 1, and by none with stride 2.
    x, grad_out = (
        naive.integers(rng, (2, 2, 12, width)),
        naive.integers(rng, (2, filters, 10 // stride, 33)),
    )
    weight = np.zeros((filters, 2, 3, 3))
    x[..., -1] = 0
    expected = naive.conv2d_backward(grad_out, x, weight, (stride, stride))[1]
    x[..., -1] = np.inf
    with np.errstate(invalid="ignore"):
        grad = cnnx.conv2d_backward(
            grad_out.astype(np.float32), x.astype(np.float32), weight.astype(np.float32), stride
        )[1]
    taps = 2 if stride == 1 else 3
    assert_array_equal(grad[..., :taps], expected[..., :taps])
    assert not np.isfinite(grad[..., taps:]).any()


def test_scratch_is_bounded(implementation: str, dtype: Any) -> None:
    # A kernel of two rows a million apart: only patches can be packed, not the rows between.
    if cnnx.config()["backend"] == "numpy":
        pytest.skip("the fallback pads, and is slow and large")
    x, far = np.arange(1024, dtype=dtype).reshape(1, 1, 1, 1024), (2**20, 1)
    weight = np.array([2, 5], dtype).reshape(1, 1, 2, 1)
    out = cnnx.conv2d(x, weight, stride=far, padding=((2**20, 2**20), (0, 0)), dilation=far)
    np.testing.assert_array_equal(out[0, 0], [5 * x[0, 0, 0], 2 * x[0, 0, 0]])
