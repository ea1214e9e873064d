"""How exact results are: issue 2's bounds for convolution, against wider arithmetic.

float32 is held against float64, float64 against np.longdouble. The reference is a loop over the
taps with one product of matrices each, in the wider type. Also: what NaN and infinity do to a
convolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import naive
import numpy as np
import pytest
from conftest import KERNELS
from numpy.testing import assert_array_equal
from tolerances import assert_conv_close

import cnnx

WIDER = {np.float32: np.float64, np.float64: np.longdouble}


@pytest.fixture(params=[False, True], ids=["direct", "winograd"])
def winograd(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Winograd's algorithm forbidden, then allowed: the bounds are the same."""
    if KERNELS is None:
        if request.param:
            pytest.skip("the fallback has no Winograd")
        yield False
        return
    before = KERNELS.set_winograd(request.param)
    yield request.param
    KERNELS.set_winograd(before)


class Case(NamedTuple):
    """Layers of the design's table, fewer images and filters."""

    name: str
    images: int
    channels: int
    size: int
    filters: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    positive: bool = False


CASES = [
    Case("three_by_three", 2, 128, 14, 24, 3, 1, 1),
    Case("three_by_three_unpadded", 1, 40, 17, 17, 3),
    Case("three_by_three_few_channels", 3, 8, 12, 8, 3, 1, 1),
    Case("three_by_three_deep", 1, 512, 7, 32, 3, 1, 1),
    Case("three_by_three_strided", 1, 64, 15, 16, 3, 2, 1),
    Case("after_a_relu", 2, 64, 14, 24, 3, 1, 1, positive=True),
    Case("one_by_one", 1, 1024, 7, 32, 1),
    Case("five_by_five", 1, 64, 13, 24, 5, 1, 2),
    Case("first_layer_seven", 1, 3, 48, 16, 7, 2, 3),
    Case("first_layer_three", 1, 3, 40, 16, 3, 1, 1),
    Case("grey_image", 2, 1, 28, 6, 5),
    Case("depthwise", 2, 32, 28, 32, 3, 1, 1, groups=32),
    Case("grouped", 1, 64, 14, 32, 3, 1, 1, groups=4),
]


def padded(x: Any, case: Case) -> Any:
    pad = (case.padding, case.padding)
    return np.pad(x, ((0, 0), (0, 0), pad, pad))


def taps(case: Case, out: int) -> Iterator[tuple[int, int, tuple[Any, ...]]]:
    """Each tap of the kernel, and the pixels of the padded image it meets."""
    for ki, kj in np.ndindex(case.kernel, case.kernel):
        rows = slice(ki, ki + (out - 1) * case.stride + 1, case.stride)
        columns = slice(kj, kj + (out - 1) * case.stride + 1, case.stride)
        yield ki, kj, (slice(None), slice(None), slice(None), rows, columns)


def product(formula: str, a: Any, b: Any) -> Any:
    return np.einsum(formula, a, b, optimize=a.dtype != np.longdouble)


@cache
def solved(case: Case, dtype: Any) -> dict[str, Any]:
    """Inputs that are numbers of `dtype`, and results in the wider one."""
    rng = np.random.default_rng(len(case.name))
    group = (case.groups, case.channels // case.groups)
    outer = case.filters // case.groups
    x = rng.standard_normal((case.images, case.channels, case.size, case.size)).astype(dtype)
    if case.positive:
        x = np.maximum(x, 0)
    shape = (case.filters, group[1], case.kernel, case.kernel)
    weight = rng.standard_normal(shape).astype(dtype)
    wide = WIDER[dtype]
    # Groups as an axis of their own: x (n, g, c, h, w), weight (g, f, c, k, l).
    wide_x = padded(x.astype(wide), case)
    wide_x = wide_x.reshape(case.images, *group, *wide_x.shape[2:])
    wide_w = weight.astype(wide).reshape(case.groups, outer, *shape[1:])
    out_size = (wide_x.shape[-1] - case.kernel) // case.stride + 1
    out = np.zeros((case.images, case.groups, outer, out_size, out_size), wide)
    grad_out = rng.standard_normal((case.images, case.filters, out_size, out_size)).astype(dtype)
    wide_grad = grad_out.astype(wide).reshape(out.shape)
    grad_x, grad_w = np.zeros_like(wide_x), np.zeros_like(wide_w)
    for ki, kj, pixels in taps(case, out_size):
        tap = wide_w[..., ki, kj]
        out += product("ngchw,gfc->ngfhw", wide_x[pixels], tap)
        grad_x[pixels] += product("ngfhw,gfc->ngchw", wide_grad, tap)
        grad_w[..., ki, kj] = product("ngfhw,ngchw->gfc", wide_grad, wide_x[pixels])
    inside = slice(case.padding, case.padding + case.size)
    return {
        "x": x,
        "weight": weight,
        "grad_out": grad_out,
        "out": out.reshape(grad_out.shape),
        "grad_x": grad_x[..., inside, inside].reshape(x.shape),
        "grad_weight": grad_w.reshape(weight.shape),
        "grad_bias": wide_grad.sum(axis=(0, 3, 4)).ravel(),
    }


each_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def test_reference_is_right() -> None:
    # The taps agree with the seven loops.
    case = Case("small", 2, 4, 7, 6, 3, 2, 1, 2)
    known = solved(case, np.float64)
    geometry = ((2, 2), (1, 1, 1, 1), (1, 1), 2)
    # Sums of 18 products of numbers of size 1: 1e-13 is three digits above their rounding.
    out = naive.conv2d(known["x"], known["weight"], None, *geometry)
    np.testing.assert_allclose(known["out"].astype(float), out, atol=1e-13)
    grads = naive.conv2d_backward(known["grad_out"], known["x"], known["weight"], *geometry)
    for name, grad in zip(("grad_x", "grad_weight", "grad_bias"), grads, strict=True):
        np.testing.assert_allclose(known[name].astype(float), grad, atol=1e-13)


@each_case
def test_conv(case: Case, implementation: str, winograd: bool, dtype: Any) -> None:
    known = solved(case, dtype)
    options = {"stride": case.stride, "padding": case.padding, "groups": case.groups}
    out = cnnx.conv2d(known["x"], known["weight"], **options)
    per_output = case.channels // case.groups * case.kernel**2
    assert_conv_close(out, known["out"], per_output)
    grads = cnnx.conv2d_backward(known["grad_out"], known["x"], known["weight"], **options)
    per_pixel = case.filters // case.groups * case.kernel**2
    per_weight = case.images * known["out"].shape[2] ** 2
    for name, grad, terms in zip(
        ("grad_x", "grad_weight", "grad_bias"),
        grads,
        (per_pixel, per_weight, per_weight),
        strict=True,
    ):
        assert_conv_close(grad, known[name], terms)


@pytest.mark.parametrize("inner", [3, 64, 257, 1000])
def test_linear(inner: int, implementation: str, dtype: Any, rng: np.random.Generator) -> None:
    x, weight, grad_out = (
        rng.standard_normal(shape).astype(dtype) for shape in ((33, inner), (inner, 25), (33, 25))
    )
    wide_x, wide_w, wide_grad = (a.astype(WIDER[dtype]) for a in (x, weight, grad_out))
    assert_conv_close(cnnx.linear(x, weight), product("ni,io->no", wide_x, wide_w), inner)
    grad_x, grad_weight, grad_bias = cnnx.linear_backward(grad_out, x, weight)
    assert_conv_close(grad_x, product("no,io->ni", wide_grad, wide_w), 25)
    assert_conv_close(grad_weight, product("ni,no->io", wide_x, wide_grad), 33)
    assert_conv_close(grad_bias, wide_grad.sum(axis=0), 33)


@pytest.mark.parametrize("size", [(1, 1, 200, 200), (64, 2, 30, 30)])
def test_long_sums(size: tuple[int, ...], implementation: str, dtype: Any) -> None:
    # Tens of thousands of numbers of one sign, summed one by one in float32, lose three digits:
    # reductions over pixels must be cut into pieces, or run in float64.
    rng = np.random.default_rng(0)
    x = rng.uniform(0.5, 1.5, size).astype(dtype)
    wide = x.astype(WIDER[dtype])
    count = size[0] * size[2] * size[3]
    weight = np.ones((1, size[1], 1, 1), dtype)
    _, grad_weight, grad_bias = cnnx.conv2d_backward(x[:, :1].copy(), x, weight)
    assert_conv_close(grad_bias, wide[:, :1].sum(axis=(0, 2, 3)), count)
    expected = (wide[:, :1] * wide).sum(axis=(0, 2, 3)).reshape(weight.shape)
    assert_conv_close(grad_weight, expected, count)
    average = cnnx.global_avg_pool2d(x)
    assert_conv_close(average, wide.mean(axis=(2, 3)), size[2] * size[3])


def test_long_sums_of_one_tap(isa: str, dtype: Any) -> None:
    # Where a sum has passed 2**24, adding 4097 adds 4096 in float32, every time: half a million of
    # them in a few lanes are 2e-4 too small, unless the lanes are emptied in between. (The fallback
    # leaves its sums to BLAS.)
    x = np.full((1, 2, 700, 700), 4097, dtype)
    _, grad_weight, _ = cnnx.conv2d_backward(
        np.ones_like(x), x, np.ones((2, 1, 3, 3), dtype), padding=1, groups=2
    )
    seen = np.array([699, 700, 699], WIDER[dtype])
    expected = np.broadcast_to(4097 * np.outer(seen, seen), grad_weight.shape)
    assert_conv_close(grad_weight, expected, 700 * 700)


# ---------------------------------------------------------------------------- NaN and infinity


def windows_that_see(shape: Any, place: tuple[int, int], padding: int) -> Any:
    """Which outputs of a 3 x 3 convolution of stride 1 have that pixel in their window."""
    seen = np.zeros(shape, bool)
    for i, j in np.ndindex(*shape):
        row, column = place[0] - i + padding, place[1] - j + padding
        seen[i, j] = 0 <= row < 3 and 0 <= column < 3
    return seen


@pytest.mark.parametrize(("channels", "filters"), [(1, 1), (3, 5), (16, 16), (64, 9)])
@pytest.mark.parametrize("place", [(0, 0), (4, 7), (9, 30)])
def test_nan_stays_in_its_windows(
    place: Any, channels: int, filters: int, implementation: str, dtype: Any
) -> None:
    rng = np.random.default_rng(0)
    x = naive.integers(rng, (2, channels, 10, 31), dtype)
    weight = naive.integers(rng, (filters, channels, 3, 3), dtype)
    clean = cnnx.conv2d(x, weight, padding=1)
    x[(1, channels // 2, *place)] = np.nan
    out = cnnx.conv2d(x, weight, padding=1)
    seen = np.zeros(out.shape, bool)
    seen[1] = windows_that_see(out.shape[2:], place, 1)
    assert_array_equal(np.isnan(out), seen)  # a weight of zero does not hide a NaN
    assert_array_equal(out[~seen], clean[~seen])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("hw", [(7, 7), (15, 33)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_nan_stays_in_its_depthwise_windows(
    kernel: int, hw: Any, stride: int, implementation: str, dtype: Any
) -> None:
    # In the corner, which not every tap sees, and beside it the next row, plane and image.
    rng = np.random.default_rng(0)
    x = naive.integers(rng, (2, 3, *hw), dtype)
    weight = naive.integers(rng, (3, 1, kernel, kernel), dtype)
    x[0, 1, -1, -1] = x[1, 2, 0, 0] = np.nan
    geometry = ((stride, stride), (kernel // 2,) * 4, (1, 1), 3)
    out = cnnx.conv2d(x, weight, None, stride, kernel // 2, groups=3)
    assert_array_equal(out, naive.conv2d(x, weight, None, *geometry))
    grad_out = naive.integers(rng, out.shape, dtype)
    grad_out[0, 0, out.shape[2] // 2, out.shape[3] // 2] = (
        np.nan
    )  # sees no border, whose zeros hide none
    grads = cnnx.conv2d_backward(grad_out, x, weight, stride, kernel // 2, groups=3)
    for grad, expected in zip(
        grads, naive.conv2d_backward(grad_out, x, weight, *geometry), strict=True
    ):
        assert_array_equal(grad, expected)


@pytest.mark.parametrize("channels", [1, 16])
def test_infinity_as_ieee_has_it(channels: int, implementation: str, dtype: Any) -> None:
    x = np.ones((1, channels, 8, 9), dtype)
    x[0, 0, 3, 3] = np.inf
    weight = np.ones((8, channels, 3, 3), dtype)
    weight[1] = -1
    weight[2, 0, 1, 1] = 0
    out = cnnx.conv2d(x, weight)
    seen = windows_that_see(out.shape[2:], (3, 3), 0)
    assert np.isposinf(out[0, 0][seen]).all()
    assert np.isneginf(out[0, 1][seen]).all()
    assert np.isfinite(out[0, :2, ~seen]).all()
    assert np.isnan(out[0, 2, 2, 2])  # infinity times zero
    x[0, 0, 3, 4] = -np.inf
    out = cnnx.conv2d(x, weight)
    both = seen & windows_that_see(out.shape[2:], (3, 4), 0)
    assert np.isnan(out[0, 0][both]).all()


def test_winograd_keeps_nan_near(implementation: str, rng: np.random.Generator) -> None:
    # It mixes the outputs of a 4 x 4 tile, so a NaN may reach 3 pixels beyond its windows; but
    # every window that sees it is NaN, and the other images and far pixels stay as they were.
    if KERNELS is None or implementation == "numpy":
        pytest.skip("the fallback has no Winograd")
    x = rng.standard_normal((3, 16, 24, 24)).astype(np.float32)
    weight = rng.standard_normal((16, 16, 3, 3)).astype(np.float32)
    KERNELS.set_winograd(True)  # the fixture puts it back
    clean = cnnx.conv2d(x, weight, padding=1)
    x[1, 5, 10, 12] = np.nan
    out = cnnx.conv2d(x, weight, padding=1)
    near = np.zeros(out.shape, bool)
    near[1, :, 10 - 4 : 10 + 5, 12 - 4 : 12 + 5] = True
    assert np.isnan(out[1][:, windows_that_see((24, 24), (10, 12), 1)]).all()
    assert_array_equal(out[~near], clean[~near])
