"""Convolution with output channels in the lanes: forced, held exactly against the fallback.

Numbers are small integers, so every order of the sums gives the same float, and bits are compared.
Only AVX-512 has this algorithm; the other instruction sets run the same cases by the implicit
matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import KERNELS

import cnnx

FAST: Any = KERNELS

# x, filters, kernel, and stride, padding, dilation, groups where they are not plain. Tiles have 8,
# 11 or 14 columns, panels 32 channels of float32 and 16 of float64.
CASES: list[tuple[Any, int, tuple[int, int], dict[str, Any]]] = [
    *(
        ((2, 3, 5, stride * (cols - 1) + 3), 33, (3, 3), {"stride": stride})
        for stride in (2, 4)
        for cols in (1, 7, 8, 9, 11, 13, 14, 15, 22, 29)
    ),
    *(((2, 5, 9, 30), filters, (1, 1), {"stride": 2}) for filters in (1, 15, 16, 31, 32, 65)),
    ((1, 3, 7, 27), 32, (1, 1), {"stride": 2}),  # a tile would run past the end of x
    ((3, 4, 12, 28), 32, (1, 1), {"stride": (1, 2)}),
    ((2, 4, 12, 25), 32, (1, 1), {"stride": 2, "padding": ((0, 0), (0, 5))}),
    ((2, 4, 12, 25), 32, (1, 1), {"stride": 2, "padding": ((0, 5), (0, 0))}),
    ((2, 3, 23, 25), 40, (11, 11), {"stride": 4, "padding": 2}),
    ((2, 3, 16, 17), 32, (7, 7), {"stride": 2, "padding": ((0, 3), (5, 1))}),
    ((2, 6, 15, 16), 32, (3, 3), {"stride": 2, "padding": 4, "dilation": 3}),
    ((2, 12, 15, 16), 36, (3, 3), {"stride": 2, "padding": 1, "groups": 3}),
    ((1, 2, 3, 3), 8, (3, 3), {"stride": 4, "padding": 8}),  # windows wholly outside
    ((1, 300, 16, 19), 40, (3, 3), {"stride": 2, "padding": 1}),  # several blocks of the depth
    ((1, 64, 70, 90), 64, (3, 3), {"stride": 2, "padding": 1}),  # several blocks of rows
    # many weights for few pixels: tasks share the panels, not the rows
    ((1, 160, 14, 14), 120, (3, 3), {"stride": 2, "padding": 1}),
    ((2, 320, 7, 14), 480, (1, 1), {"stride": 2}),
    ((1, 512, 6, 13), 576, (3, 3), {"stride": 2, "padding": 1, "groups": 2}),
]


@pytest.fixture
def forced_broadcast(isa: str) -> Iterator[str]:
    threads = cnnx.get_num_threads()
    FAST.use_algorithm("broadcast")
    yield isa
    FAST.use_algorithm("by shape")
    cnnx.set_num_threads(threads)


def integers(rng: np.random.Generator, shape: Any, dtype: Any) -> Any:
    return rng.integers(-3, 4, shape).astype(dtype)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits(
    case: Any, activation: Any, dtype: Any, forced_broadcast: str, rng: np.random.Generator
) -> None:
    shape, filters, kernel, options = case
    x = integers(rng, shape, dtype)
    weight = integers(rng, (filters, shape[1] // options.get("groups", 1), *kernel), dtype)
    bias = integers(rng, filters, dtype)
    with cnnx.use_backend("numpy"):
        known = cnnx.conv2d(x, weight, bias, **options, activation=activation)
    for threads in (1, 2, 3, 16):
        cnnx.set_num_threads(threads)
        actual = cnnx.conv2d(x, weight, bias, **options, activation=activation)
        assert FAST.last_algorithm() == ("broadcast" if forced_broadcast == "avx512" else "gemm")
        assert np.array_equal(actual, known)


@pytest.mark.parametrize("width", [256, 250])  # rows of whole cache lines, and others
def test_results_stored_past_the_caches(
    width: int, dtype: Any, forced_broadcast: str, rng: np.random.Generator
) -> None:
    # x and y of more than 24 MiB in all
    x, weight = integers(rng, (1, 1, 512, 2 * width), dtype), integers(rng, (112, 1, 1, 1), dtype)
    known = x[:, :, ::2, ::2] * weight.reshape(1, -1, 1, 1)
    assert x.nbytes + known.nbytes > 24 << 20
    assert np.array_equal(cnnx.conv2d(x, weight, stride=2), known)


def test_chosen_by_shape(isa: str) -> None:
    x, weight = np.zeros((1, 3, 64, 64), np.float32), np.zeros((32, 3, 7, 7), np.float32)
    cnnx.conv2d(x, weight, stride=2, padding=3)
    assert FAST.last_algorithm() == ("broadcast" if isa == "avx512" else "gemm")
    cnnx.conv2d(x, weight[:20], stride=2, padding=3)  # a third of the lanes would be empty
    assert FAST.last_algorithm() == "gemm"
