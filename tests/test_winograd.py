"""Winograd's algorithm beyond plain 3x3 kernels: dilated, strided, long and large ones.

Each case is forced to it, in every instruction set, and held against float64 on the fallback, which
knows no Winograd. The bound is what set_winograd's docstring promises: the transforms of
F(4x4, 3x3) and its kin multiply by numbers up to 5, and were measured at less than half of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import KERNELS, has_winograd
from tolerances import ACTIVATION_ROUNDINGS, assert_close

import cnnx

BOUND = 2e-5
FAST: Any = KERNELS
NO_WINOGRAD = "this build has no Winograd (its compiler has no vector shuffles)"

# x, filters, kernel, and stride, padding, dilation, groups where they are not plain. Tiles have 4,
# 5 or 3 pixels a side: sizes stand around their multiples, channels around those of the vectors.
CASES: list[tuple[Any, int, tuple[int, int], dict[str, Any]]] = [
    *(
        ((2, 17, size, size + 1), 20, (3, 3), {"padding": d, "dilation": d})
        for size in (7, 8, 9, 13)
        for d in (2, 3)
    ),
    *(
        ((2, 17, size, size + 1), 20, (k, k), {"padding": k // 2})
        for size in (7, 8, 9, 13)
        for k in (5, 7)
    ),
    *(((2, 17, 8, 13), 20, (1, k), {"padding": (0, k // 2)}) for k in (3, 5, 7, 9)),
    *(((2, 20, 13, 8), 17, (k, 1), {"padding": (k // 2, 0)}) for k in (3, 5, 7, 9)),
    *(
        ((2, 33, size, size + 1), 40, (k, k), {"padding": k // 2, "stride": 2})
        for size in (9, 16, 19)
        for k in (3, 5)
    ),
    ((1, 32, 12, 7), 64, (4, 4), {"padding": 1}),
    ((1, 16, 12, 7), 64, (3, 5), {"padding": ((0, 2), (3, 1))}),
    ((1, 12, 16, 11), 7, (1, 5), {"dilation": 2}),
    ((2, 20, 5, 5), 33, (2, 2), {}),
    ((2, 32, 13, 15), 32, (5, 5), {"padding": 2, "groups": 2}),
    ((1, 32, 41, 50), 32, (20, 5), {"padding": (10, 2), "stride": 2}),
    ((1, 6, 20, 130), 8, (3, 3), {"dilation": 4}),
    # Several blocks of tiles and several parts of the kernel: the order of the sums must not
    # depend on how many threads there are for the blocks.
    ((8, 1200, 10, 9), 8, (5, 5), {"padding": 2}),
]


@pytest.fixture
def forced_winograd(isa: str) -> Iterator[None]:
    if not has_winograd():
        pytest.skip(NO_WINOGRAD)
    threads = cnnx.get_num_threads()
    FAST.use_algorithm("winograd")
    yield
    FAST.use_algorithm("by shape")
    cnnx.set_num_threads(threads)


def passes(x: Any, weight: Any, grad_out: Any, options: dict[str, Any]) -> list[Any]:
    """Forward, grad_x and grad_weight; in float32 each must have run by Winograd."""
    results: list[Any] = []
    for need in (None, (True, False, False), (False, True, False)):
        if need is None:
            results.append(cnnx.conv2d(x, weight, **options))
        else:
            gradients = cnnx.conv2d_backward(grad_out, x, weight, **options, need=need)
            results.append(gradients[need.index(True)])
        assert x.dtype != np.float32 or FAST.last_algorithm() == "winograd", need
    return results


@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_and_bits(case: Any, forced_winograd: None, rng: np.random.Generator) -> None:
    shape, filters, kernel, options = case
    x = rng.standard_normal(shape, np.float32)
    channels = shape[1] // options.get("groups", 1)
    weight = rng.standard_normal((filters, channels, *kernel), np.float32)
    cnnx.set_num_threads(1)
    out = cnnx.conv2d(x, weight, **options)
    assert FAST.last_algorithm() == "winograd"
    grad_out = rng.standard_normal(out.shape, np.float32)
    one = passes(x, weight, grad_out, options)
    with cnnx.use_backend("numpy"):
        exact = passes(*(a.astype(np.float64) for a in (x, weight, grad_out)), options)
    for actual, known in zip(one, exact, strict=True):
        assert np.abs(actual - known).max() <= BOUND * np.abs(known).max()
    for threads in (2, 3, 16):
        cnnx.set_num_threads(threads)
        for mine, first in zip(passes(x, weight, grad_out, options), one, strict=True):
            assert np.array_equal(mine, first)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_fused_activation(activation: str, forced_winograd: None, rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 17, 9, 10), np.float32)
    weight = rng.standard_normal((20, 17, 3, 3), np.float32) / 12  # sums of about 1
    plain = cnnx.conv2d(x, weight, padding=1).astype(np.float64)
    fused = cnnx.conv2d(x, weight, padding=1, activation=activation)
    assert FAST.last_algorithm() == "winograd"
    expected = {
        "relu": np.maximum(plain, 0),
        "sigmoid": 1 / (1 + np.exp(-plain)),
        "tanh": np.tanh(plain),
    }[activation]
    # Both have rounded in the same way before the activation.
    assert_close(fused, expected, ACTIVATION_ROUNDINGS[activation])


def test_chosen_by_shape(rng: np.random.Generator) -> None:
    # The layers it was made for take it unasked, and leave it where it is off.
    if not has_winograd():
        pytest.skip(NO_WINOGRAD)
    x = rng.standard_normal((4, 64, 27, 27), np.float32)
    before = FAST.set_winograd(True)
    try:
        for kernel, options in (
            ((5, 5), {"padding": 2}),
            ((3, 3), {"padding": 2, "dilation": 2}),
            ((1, 7), {"padding": (0, 3)}),
            ((7, 1), {"padding": (3, 0)}),
        ):
            weight = rng.standard_normal((64, 64, *kernel), np.float32)
            cnnx.set_winograd(True)
            cnnx.conv2d(x, weight, **options)
            assert FAST.last_algorithm() == "winograd"
            cnnx.set_winograd(False)
            cnnx.conv2d(x, weight, **options)
            assert FAST.last_algorithm() == "gemm"
    finally:
        FAST.set_winograd(before)


def test_many_threads_do_not_change_the_algorithm() -> None:
    # 289 tiles are 17 blocks. As one or two, whose output channels 24 threads could share,
    # they would need more scratch than there may be.
    if not has_winograd():
        pytest.skip(NO_WINOGRAD)
    x, weight = np.ones((1, 4096, 66, 66), np.float32), np.ones((512, 4096, 3, 3), np.float32)
    for count in (1, 24):
        cnnx.set_num_threads(count)
        cnnx.conv2d(x, weight, padding=1)
        assert FAST.last_algorithm() == "winograd", count
