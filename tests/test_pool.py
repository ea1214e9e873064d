"""Max, average and global average pooling with their gradients: hand values, then plain loops."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import naive
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from tolerances import assert_close

import cnnx

INF, NAN = float("inf"), float("nan")
MATRIX = [[1, 3, 2, 1], [4, 2, 0, 5], [3, 1, 4, 2], [2, 0, 3, 6]]
UPSTREAM = [[0.5, 1.2], [0.8, -0.3]]


def image(rows: Any, dtype: Any) -> Any:
    """One image of one channel."""
    return np.array(rows, dtype)[None, None]


# ---------------------------------------------------------------------------- by hand


def test_max_by_hand(implementation: str, dtype: Any) -> None:
    out, indices = cnnx.max_pool2d(image(MATRIX, dtype), 2, return_indices=True)
    assert out.dtype == dtype and indices.dtype == np.int64
    assert_array_equal(out, image([[4, 5], [3, 6]], dtype))
    assert_array_equal(indices, image([[4, 7], [8, 15]], np.int64))


def test_max_gradient_by_hand(implementation: str, dtype: Any) -> None:
    # The 5 stands in row 1: a worked homework that shows its gradient in row 0 is wrong.
    _, indices = cnnx.max_pool2d(image(MATRIX, dtype), 2, return_indices=True)
    grad_x = cnnx.max_pool2d_backward(image(UPSTREAM, dtype), indices, (1, 1, 4, 4))
    assert grad_x.dtype == dtype
    rows = [[0, 0, 0, 0], [0.5, 0, 0, 1.2], [0.8, 0, 0, 0], [0, 0, 0, -0.3]]
    assert_array_equal(grad_x, image(rows, dtype))


def test_overlapping_windows_accumulate_by_hand(implementation: str, dtype: Any) -> None:
    # The 9 in the middle is the maximum of all four windows: 1 + 2 + 3 + 4.
    x = image([[1, 2, 1], [2, 9, 2], [1, 2, 1]], dtype)
    out, indices = cnnx.max_pool2d(x, 2, stride=1, return_indices=True)
    assert_array_equal(out, np.full((1, 1, 2, 2), 9))
    grad_x = cnnx.max_pool2d_backward(image([[1, 2], [3, 4]], dtype), indices, x.shape)
    assert_array_equal(grad_x, image([[0, 0, 0], [0, 10, 0], [0, 0, 0]], dtype))


def test_average_by_hand(implementation: str, dtype: Any) -> None:
    out = cnnx.avg_pool2d(image(MATRIX, dtype), 2)
    assert out.dtype == dtype
    assert_array_equal(out, image([[2.5, 2], [1.5, 3.75]], dtype))


def test_average_gradient_by_hand(implementation: str, dtype: Any) -> None:
    grad_x = cnnx.avg_pool2d_backward(image(UPSTREAM, dtype), (1, 1, 4, 4), 2)
    rows = [
        [0.125, 0.125, 0.3, 0.3],
        [0.125, 0.125, 0.3, 0.3],
        [0.2, 0.2, -0.075, -0.075],
        [0.2, 0.2, -0.075, -0.075],
    ]
    # A quarter is exact, so each is the nearest number of its dtype to the decimal above.
    assert_array_equal(grad_x, image(rows, dtype))


def test_average_divisors_by_hand(implementation: str, dtype: Any) -> None:
    # 3 x 3 ones, padding 1, windows of 2 with stride 2: the first window sees one pixel of 4.
    ones = np.ones((1, 1, 3, 3), dtype)
    out = cnnx.avg_pool2d(ones, 2, padding=1)
    assert_array_equal(out, image([[0.25, 0.5], [0.5, 1]], dtype))
    out = cnnx.avg_pool2d(ones, 2, padding=1, count_include_pad=False)
    assert_array_equal(out, np.ones((1, 1, 2, 2)))


def test_ceil_mode_divisors_by_hand(implementation: str, dtype: Any) -> None:
    # One row of 4 ones, padding 1 on both sides: 0 1 1 1 1 0. Windows of 4 start at 0 and 3; the
    # second holds 1 1 0 and would reach one pixel beyond, which no divisor counts.
    x = np.ones((1, 1, 1, 4), dtype)
    out = cnnx.avg_pool2d(x, (1, 4), stride=(1, 3), padding=(0, 1), ceil_mode=True)
    expected = np.array([3 / 4, 2 / 3], dtype)
    assert_array_equal(out.ravel(), expected)


def test_ceil_mode_drops_a_window_that_starts_in_the_padding(backend: str) -> None:
    # 2 pixels, padding 1: starts at -1 and 1 fit; ceil_mode would add one at 3, behind the image.
    x = np.array([[[[5.0, 7.0]]]])
    out = cnnx.max_pool2d(x, (1, 2), stride=(1, 2), padding=(0, 1), ceil_mode=True)
    assert_array_equal(out.ravel(), [5, 7])
    # 3 pixels: starts at -1, 1; the next would be 3, in the padding.
    x = np.array([[[[5.0, 7.0, 9.0]]]])
    out = cnnx.avg_pool2d(x, (1, 2), stride=(1, 2), padding=(0, 1), ceil_mode=True)
    assert_array_equal(out.ravel(), [2.5, 8])


def test_ceil_mode_keeps_a_partial_first_window(backend: str) -> None:
    # ceil((2 - 3) / 2) + 1 = 1: a window larger than the image, all of which it sees.
    x = np.array([[[[5.0, 7.0]]]])
    assert_array_equal(cnnx.max_pool2d(x, (1, 3), stride=2, ceil_mode=True).ravel(), [7])
    assert_array_equal(cnnx.avg_pool2d(x, (1, 3), stride=2, ceil_mode=True).ravel(), [6])


def test_global_average_by_hand(implementation: str, dtype: Any) -> None:
    x = np.array([[MATRIX, [[8] * 4] * 4]], dtype)
    out = cnnx.global_avg_pool2d(x)
    assert out.dtype == dtype and out.shape == (1, 2)
    assert_array_equal(out, np.array([[39 / 16, 8]], dtype))
    grad_x = cnnx.global_avg_pool2d_backward(np.array([[16, -4]], dtype), (1, 2, 4, 4))
    assert grad_x.dtype == dtype
    assert_array_equal(grad_x[0, 0], np.ones((4, 4)))
    assert_array_equal(grad_x[0, 1], np.full((4, 4), -0.25))


# ---------------------------------------------------------------------------- ties, NaN, infinity


def test_first_of_equals_wins(implementation: str, dtype: Any) -> None:
    x = image([[1, 7, 7], [7, 7, 2], [7, 0, 7]], dtype)
    _, indices = cnnx.max_pool2d(x, 3, return_indices=True)
    assert indices.ravel() == [1]
    _, indices = cnnx.max_pool2d(x, 2, stride=1, return_indices=True)
    assert_array_equal(indices[0, 0], [[1, 1], [3, 4]])


@pytest.mark.parametrize("first", [0.0, -0.0])
def test_first_of_two_zeros_wins(first: float, implementation: str, dtype: Any) -> None:
    # +0 equals -0, so the first is taken, sign and all.
    x = np.array([[[[first, -first]]]], dtype)
    out, indices = cnnx.max_pool2d(x, (1, 2), return_indices=True)
    assert np.signbit(out.item()) == np.signbit(first)
    assert indices.item() == 0


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("other", [0.0, INF, -INF])
def test_nan_wins(place: int, other: float, implementation: str, dtype: Any) -> None:
    x = np.full((1, 1, 2, 3), other, dtype)
    x.flat[place] = np.nan
    out, indices = cnnx.max_pool2d(x, (2, 3), return_indices=True)
    assert np.isnan(out).all()
    assert indices.item() == place


def test_first_nan_wins(implementation: str, dtype: Any) -> None:
    out, indices = cnnx.max_pool2d(image([[1, NAN, 3, NAN]], dtype), (1, 4), return_indices=True)
    assert np.isnan(out).all() and indices.item() == 1


def test_nan_stays_in_its_windows(implementation: str, dtype: Any, rng: Any) -> None:
    x = rng.standard_normal((2, 3, 9, 11)).astype(dtype)
    x[1, 2, 4, 5] = NAN
    out = cnnx.max_pool2d(x, 3, stride=2, padding=1)
    average = cnnx.avg_pool2d(x, 3, stride=2, padding=1)
    expected = np.zeros(out.shape, bool)
    expected[1, 2, 2, 2:4] = True  # rows 3..5 and columns 3..5, 5..7
    assert_array_equal(np.isnan(out), expected)
    assert_array_equal(np.isnan(average), expected)


@pytest.mark.parametrize("size", [(3, 3), (9, 40)])
def test_padding_loses_even_to_minus_infinity(size: Any, implementation: str, dtype: Any) -> None:
    # Padding is minus infinity and no pixel: an image of minus infinities keeps its own indices.
    x = np.full((1, 2, *size), -INF, dtype)
    out, indices = cnnx.max_pool2d(x, 3, stride=2, padding=1, return_indices=True)
    expected, where = naive.max_pool2d(x, (3, 3), (2, 2), (1, 1, 1, 1))
    assert_array_equal(out, expected)
    assert_array_equal(indices, where)


def test_padding_is_not_zero_for_the_maximum(implementation: str, dtype: Any) -> None:
    out = cnnx.max_pool2d(np.full((1, 1, 3, 3), -5, dtype), 3, stride=1, padding=1)
    assert_array_equal(out, np.full((1, 1, 3, 3), -5))


def test_infinities_are_averaged_as_ieee_has_it(implementation: str, dtype: Any) -> None:
    out = cnnx.avg_pool2d(image([[INF, 1, -INF, 1, INF, -INF]], dtype), (1, 2))
    assert_array_equal(out, image([[INF, -INF, NAN]], dtype))


def test_gradient_of_a_nan_goes_to_its_place(implementation: str, dtype: Any) -> None:
    grad_x = cnnx.max_pool2d_backward(
        image([[NAN, INF]], dtype), np.array([[[[1, 2]]]]), (1, 1, 1, 4)
    )
    assert_array_equal(grad_x, image([[0, NAN, INF, 0]], dtype))


# ---------------------------------------------------------------------------- against loops


class Case(NamedTuple):
    """A geometry; the images are 2 of 3 channels."""

    name: str
    hw: naive.Pair = (7, 6)
    window: naive.Pair = (2, 2)
    stride: naive.Pair = (2, 2)
    pads: naive.Pads = (0, 0, 0, 0)
    dilation: naive.Pair = (1, 1)
    ceil_mode: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """As the functions want them."""
        top, bottom, left, right = self.pads
        options = {
            "pool_size": self.window,
            "stride": self.stride,
            "padding": ((top, bottom), (left, right)),
            "ceil_mode": self.ceil_mode,
        }
        return options | ({"dilation": self.dilation} if self.dilation != (1, 1) else {})


CASES = [
    Case("plain"),
    Case("even_image", hw=(8, 8)),
    Case("one_pixel_window", window=(1, 1), stride=(1, 1)),
    Case("one_pixel_window_strided", window=(1, 1)),
    Case("overlapping", window=(3, 3), stride=(1, 1)),
    Case("overlapping_strided", window=(3, 3)),
    Case("overlapping_unequal", window=(3, 2), stride=(1, 2)),
    Case("stride_beyond_the_window", stride=(3, 4)),
    Case("window_of_the_image", window=(7, 6)),
    Case("padded", window=(3, 3), pads=(1, 1, 1, 1)),
    Case("padded_fully", window=(3, 3), stride=(1, 1), pads=(2, 2, 2, 2)),
    Case("pads_unequal", window=(3, 4), pads=(2, 0, 1, 3)),
    Case("ceil", window=(3, 3), hw=(8, 7), ceil_mode=True),
    Case("ceil_even", ceil_mode=True),
    Case("ceil_padded", window=(3, 3), stride=(3, 3), pads=(1, 1, 1, 1), ceil_mode=True),
    Case("ceil_dropped", hw=(5, 5), stride=(3, 3), pads=(1, 1, 1, 1), ceil_mode=True),
    Case("ceil_unequal", window=(3, 2), stride=(2, 3), pads=(0, 2, 1, 0), ceil_mode=True),
    Case("ceil_stride_beyond", hw=(9, 8), stride=(5, 4), ceil_mode=True),
    Case("ceil_window_beyond_the_image", hw=(3, 2), window=(4, 3), stride=(3, 2), ceil_mode=True),
    Case("one_row", hw=(1, 13), window=(1, 3), stride=(1, 2)),
    Case("wide", hw=(6, 45), window=(3, 3), pads=(1, 1, 1, 1)),
    Case("wide_stride_one", hw=(4, 37), window=(2, 3), stride=(1, 1), pads=(0, 1, 1, 1)),
]
# Vectors run along rows of windows, 2 to 16 of them, the last moved back; beyond the end of a short
# row they write ahead. 2x2 windows side by side and 3x3 windows have kernels of their own.
CASES += [
    Case(f"{k}x{k}_stride_{stride}_{h}_by_{w}", (h, w), (k, k), (stride, stride), (p,) * 4)
    for k, stride, p in ((2, 2, 0), (3, 1, 1), (3, 2, 1), (5, 1, 2))
    for h, w in ((2, 2), (3, 4), (4, 6), (5, 14), (6, 16), (2, 18), (3, 31), (4, 32), (3, 34))
    if h + 2 * p >= k
]
DILATED = [
    Case("dilated", dilation=(2, 2)),
    Case("dilated_unequal", window=(3, 2), dilation=(2, 3), stride=(1, 1)),
    Case("dilated_padded", window=(3, 3), dilation=(2, 2), pads=(2, 2, 1, 3)),
    Case("dilated_ceil", window=(3, 2), dilation=(2, 3), pads=(1, 0, 2, 2), ceil_mode=True),
    Case("dilated_wide", hw=(7, 41), window=(3, 3), dilation=(1, 2), stride=(1, 1)),
]


@cache
def pixels(case: Case) -> Any:
    """Few whole numbers, so that ties are many."""
    rng = np.random.default_rng(len(case.name))
    return naive.integers(rng, (2, 3, *case.hw), high=6)


@cache
def solved_max(case: Case) -> dict[str, Any]:
    """What the loops make of a maximum pooling."""
    out, indices = naive.max_pool2d(
        pixels(case), case.window, case.stride, case.pads, case.dilation, case.ceil_mode
    )
    grad_out = naive.integers(np.random.default_rng(0), out.shape)
    grad_x = naive.max_pool2d_backward(grad_out, indices, pixels(case).shape)
    return {"out": out, "indices": indices, "grad_out": grad_out, "grad_x": grad_x}


@cache
def solved_average(case: Case, include_pad: bool) -> dict[str, Any]:
    """What the loops make of an average pooling."""
    rest = (case.window, case.stride, case.pads, case.ceil_mode, include_pad)
    out = naive.avg_pool2d(pixels(case), *rest)
    grad_out = naive.integers(np.random.default_rng(0), out.shape)
    grad_x = naive.avg_pool2d_backward(grad_out, pixels(case).shape, *rest)
    return {"out": out, "grad_out": grad_out, "grad_x": grad_x}


@pytest.mark.parametrize("case", CASES + DILATED, ids=[case.name for case in CASES + DILATED])
def test_max(case: Case, implementation: str, dtype: Any) -> None:
    known = solved_max(case)
    x = pixels(case).astype(dtype)
    out, indices = cnnx.max_pool2d(x, **case.options, return_indices=True)
    assert_array_equal(out, known["out"])
    assert_array_equal(indices, known["indices"])
    assert_array_equal(cnnx.max_pool2d(x, **case.options), known["out"])
    grad_x = cnnx.max_pool2d_backward(known["grad_out"].astype(dtype), indices, x.shape)
    assert out.dtype == grad_x.dtype == dtype
    assert_array_equal(grad_x, known["grad_x"])


@pytest.mark.parametrize("include_pad", [True, False], ids=["include_pad", "exclude_pad"])
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_average(case: Case, include_pad: bool, implementation: str, dtype: Any) -> None:
    known = solved_average(case, include_pad)
    x = pixels(case).astype(dtype)
    out = cnnx.avg_pool2d(x, **case.options, count_include_pad=include_pad)
    grad_x = cnnx.avg_pool2d_backward(
        known["grad_out"].astype(dtype), x.shape, **case.options, count_include_pad=include_pad
    )
    assert out.dtype == grad_x.dtype == dtype
    # The sums are exact; a division, or a multiplication by a rounded reciprocal, rounds twice.
    assert_close(out, known["out"], roundings=3)
    # A gradient adds up to window / stride quotients, at most 9 here, of either sign.
    scale = np.abs(known["grad_out"]).max()
    assert_close(grad_x, known["grad_x"], roundings=3 * 9, scale=scale)


@pytest.mark.parametrize("hw", [(1, 1), (2, 3), (7, 7), (13, 17)])
def test_global_average(hw: naive.Pair, implementation: str, dtype: Any, rng: Any) -> None:
    x = naive.integers(rng, (3, 5, *hw), dtype)
    pixels_each = hw[0] * hw[1]
    # The sum is exact; dividing, or multiplying by a rounded reciprocal, rounds twice.
    sums = np.array([[sum(x[n, c].ravel().tolist()) for c in range(5)] for n in range(3)])
    assert_close(cnnx.global_avg_pool2d(x), sums / pixels_each, roundings=3)
    grad_out = naive.integers(rng, (3, 5), dtype)
    grad_x = cnnx.global_avg_pool2d_backward(grad_out, x.shape)
    expected = np.zeros(x.shape)
    for n, c, i, j in np.ndindex(*x.shape):
        expected[n, c, i, j] = grad_out[n, c] / pixels_each
    assert_close(grad_x, expected, roundings=3)


@pytest.mark.parametrize("size", [(1, 6), (4, 4), (6, 34)])
def test_indices_of_another_window(size: naive.Pair, implementation: str, dtype: Any) -> None:
    # Sizes of 2x2 windows side by side, but each index names the pixel behind its window, or, the
    # last, the first pixel of the image: they add up wherever they point.
    grad_out = np.arange(1, 7 * size[0] * size[1] + 1, dtype=dtype).reshape(1, 7, *size)
    shape = (1, 7, 2 * size[0], 2 * size[1])
    indices = (np.arange(grad_out[0].size).reshape(1, 7, *size) * 4 + 9) % (4 * size[0] * size[1])
    expected = naive.max_pool2d_backward(grad_out, indices, shape)
    assert_array_equal(cnnx.max_pool2d_backward(grad_out, indices, shape), expected)


@pytest.mark.parametrize("bad", [-1, -(2**40), 8 * 34, 8 * 34 + 1, 2**40])
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (1, 1, 3, 16), (1, 2, 2, 5)])
def test_index_just_outside_the_image(place: Any, bad: int, implementation: str) -> None:
    indices = np.arange(4 * 17).reshape(1, 1, 4, 17) * 4 % (8 * 34) + np.zeros((2, 3, 1, 1), int)
    indices[place] = bad
    grad_out = np.ones(indices.shape)
    with pytest.raises(ValueError, match=f"indices holds {bad} at "):
        cnnx.max_pool2d_backward(grad_out, indices, (2, 3, 8, 34))


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("hw", [(7, 9), (8, 40), (9, 67), (33, 33)])
@pytest.mark.parametrize("shift", [None, -1, 1, -2, 2, "row"])
def test_indices_beside_windows_of_stride_two(
    implementation: str, dtype: Any, padding: int, hw: tuple[int, int], shift: Any
) -> None:
    """One index of a plane moved, over the image's edge too, where rows meet in memory."""
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (2, 3, *hw)).astype(dtype)
    _, indices = cnnx.max_pool2d(x, 3, 2, padding, return_indices=True)
    grad_out = rng.integers(-9, 10, indices.shape).astype(dtype)  # integers: sums are exact
    rows, cols = indices.shape[2:]
    for i, j in [
        (0, 0),
        (0, cols - 1),
        (rows // 2, 0),
        (rows // 2, cols - 1),
        (rows - 1, cols - 1),
    ]:
        moved = indices.copy()
        if shift is not None:
            step = hw[1] if shift == "row" else shift
            moved[:, 1, i, j] = np.clip(moved[:, 1, i, j] + step, 0, hw[0] * hw[1] - 1)
        expected = naive.max_pool2d_backward(grad_out, moved, x.shape)
        assert_array_equal(cnnx.max_pool2d_backward(grad_out, moved, x.shape), expected)


def test_long_double_survives(implementation: str, dtype: Any) -> None:
    # A kernel that touches an MMX register and does not say so breaks the x87 unit for the process.
    indices = np.arange(4 * 12).reshape(1, 4, 3, 4) % 48
    cnnx.max_pool2d_backward(np.ones((1, 4, 3, 4), dtype), indices, (1, 4, 6, 8))
    assert np.array([1, 2], np.longdouble).sum() == 3


@pytest.mark.parametrize("planes", [1, 2, 15, 16, 17, 33])
@pytest.mark.parametrize("hw", [(1, 1), (7, 7), (5, 13), (40, 17)])
def test_global_average_of_many(
    planes: int, hw: naive.Pair, implementation: str, dtype: Any, rng: Any
) -> None:
    x = naive.integers(rng, (1, planes, *hw), dtype)
    sums = [[sum(plane.ravel().tolist()) for plane in x[0]]]
    # The sum is exact; dividing, or multiplying by a rounded reciprocal, rounds twice.
    expected = np.array(sums) / (hw[0] * hw[1])
    assert_close(cnnx.global_avg_pool2d(x), expected, roundings=3)
    grad_x = cnnx.global_avg_pool2d_backward(x[:, :, 0, 0].copy(), x.shape)
    expected = np.broadcast_to(x[:, :, :1, :1].astype(float) / (hw[0] * hw[1]), x.shape)
    assert_close(grad_x, expected, roundings=3)


# ---------------------------------------------------------------------------- arguments


def test_stride_is_the_window_unless_given(backend: str, rng: np.random.Generator) -> None:
    x = naive.integers(rng, (1, 2, 9, 8))
    assert_array_equal(cnnx.max_pool2d(x, (3, 2)), cnnx.max_pool2d(x, (3, 2), (3, 2)))
    assert_array_equal(cnnx.avg_pool2d(x, (3, 2)), cnnx.avg_pool2d(x, (3, 2), (3, 2)))
    grad_out = naive.integers(rng, (1, 2, 3, 4))
    assert_array_equal(
        cnnx.avg_pool2d_backward(grad_out, x.shape, (3, 2)),
        cnnx.avg_pool2d_backward(grad_out, x.shape, (3, 2), (3, 2)),
    )


@pytest.mark.parametrize(
    ("padding", "pads"), [(1, (1,) * 4), ((0, 1), (0, 0, 1, 1)), (((1, 2), (0, 1)), (1, 2, 0, 1))]
)
def test_forms_of_padding(padding: Any, pads: naive.Pads, backend: str) -> None:
    x = np.arange(30.0).reshape(1, 1, 5, 6)
    out = cnnx.max_pool2d(x, 3, 2, padding)
    assert_array_equal(out, naive.max_pool2d(x, (3, 3), (2, 2), pads)[0])


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_named_padding(padding: str, backend: str, rng: np.random.Generator) -> None:
    # Design 2.5: pool padding takes the same forms as convolution's.
    x = naive.integers(rng, (1, 2, 7, 8))
    vertical = naive.same_pads(7, 3, 2, 1) if padding == "same" else (0, 0)
    horizontal = naive.same_pads(8, 3, 2, 1) if padding == "same" else (0, 0)
    pads = (*vertical, *horizontal)
    out = cnnx.max_pool2d(x, 3, 2, padding)
    assert_array_equal(out, naive.max_pool2d(x, (3, 3), (2, 2), pads)[0])
    average = cnnx.avg_pool2d(x, 3, 2, padding)
    # Ninths and sixths of exact sums: a division, or a product with a rounded reciprocal.
    assert_close(average, naive.avg_pool2d(x, (3, 3), (2, 2), pads), roundings=3)


@pytest.mark.parametrize("index_dtype", [np.int32, np.int64])
def test_indices_of_other_integer_types(index_dtype: Any, backend: str) -> None:
    indices = np.array([[[[3, 1]]]], index_dtype)
    grad_x = cnnx.max_pool2d_backward(np.array([[[[1.0, 2.0]]]]), indices, (1, 1, 2, 2))
    assert_array_equal(grad_x.ravel(), [0, 2, 0, 1])


@pytest.mark.parametrize("size", [9, 2**15, 2**30])
def test_window_larger_than_the_padded_image(implementation: str, dtype: Any, size: int) -> None:
    # Only ceil_mode has such a window, and then no other: taps beside the image are not walked.
    x = np.arange(12, dtype=dtype).reshape(1, 1, 3, 4)
    padding = ((1, 0), (0, 2))
    out, indices = cnnx.max_pool2d(x, size, padding=padding, ceil_mode=True, return_indices=True)
    assert_array_equal(out, image([[11]], dtype))
    assert_array_equal(indices, image([[11]], np.int64))
    for count_include_pad, pixels in ((True, 4 * 6), (False, 12)):
        option = (size, None, padding, True, count_include_pad)
        assert_array_equal(cnnx.avg_pool2d(x, *option), image([[66 / pixels]], dtype))
        grad_x = cnnx.avg_pool2d_backward(image([[24]], dtype), x.shape, *option)
        assert_array_equal(grad_x, np.full_like(x, 24 / pixels))


def test_scratch_is_bounded(implementation: str, dtype: Any) -> None:
    # Padding makes two pixels 32 thousand squared, and so would be a copy of the rows read.
    if cnnx.config()["backend"] == "numpy":
        pytest.skip("the fallback pads, and is slow and large")
    x = np.array([[[[1, 3]]]], dtype)
    out = cnnx.avg_pool2d(x, 2**14, stride=2**13, padding=2**14 - 1)
    # Windows begin at columns 1 - 2**14, 1 - 2**13 and 1: one pixel, both, the other.
    assert out.shape == (1, 1, 2, 3)
    for line in out[0, 0] * 2**28:
        assert_array_equal(line, np.array([1, 4, 3], dtype))
