"""Output sizes: literal tables, worked out by hand, and the formulas against counting windows."""

from __future__ import annotations

from typing import Any

import naive
import numpy as np
import pytest

import cnnx
from cnnx import _shapes

CONV_SIZES = [
    # size, kernel, stride, padding, dilation -> output
    (5, 3, 1, 0, 1, 3),
    (5, 3, 1, 1, 1, 5),
    (5, 5, 1, 0, 1, 1),
    (5, 3, 2, 0, 1, 2),
    (6, 3, 2, 0, 1, 2),  # a row is left over
    (7, 3, 2, 1, 1, 4),
    (224, 7, 2, 3, 1, 112),
    (27, 5, 1, 2, 1, 27),
    (7, 3, 1, 0, 3, 1),
    (8, 3, 1, 2, 2, 8),
    (1, 1, 5, 0, 9, 1),
    (1, 3, 1, 1, 1, 1),
    (2, 2, 100, 0, 1, 1),
]
POOL_SIZES = [
    # size, window, stride, (before, after), dilation -> floor, ceil
    (4, 2, 2, (0, 0), 1, 2, 2),
    (5, 2, 2, (0, 0), 1, 2, 3),
    (112, 3, 2, (1, 1), 1, 56, 57),
    (6, 3, 2, (0, 0), 1, 2, 3),
    (7, 3, 3, (1, 1), 1, 3, 3),
    (5, 2, 3, (1, 1), 1, 2, 2),  # ceil's third would start at pixel 5, behind the image
    (4, 2, 3, (0, 1), 1, 2, 2),  # the second stands half in the padding
    (2, 2, 2, (1, 1), 1, 2, 2),
    (3, 2, 2, (1, 1), 1, 2, 2),
    (7, 2, 2, (0, 0), 3, 2, 3),
    (9, 2, 5, (0, 0), 1, 2, 2),
    (6, 2, 5, (0, 0), 1, 1, 2),  # the second holds one pixel
]
TRANSPOSED_SIZES = [
    # size, kernel, stride, padding, output_padding, dilation -> output
    (4, 2, 2, 0, 0, 1, 8),
    (4, 4, 2, 1, 0, 1, 8),
    (4, 3, 2, 1, 1, 1, 8),
    (4, 3, 2, 1, 0, 1, 7),
    (1, 3, 1, 0, 0, 1, 3),
    (3, 3, 1, 2, 0, 2, 3),
    (2, 1, 3, 0, 2, 1, 6),
]


def row(size: int) -> Any:
    return np.zeros((1, 1, 1, size))


@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "dilation", "out"), CONV_SIZES)
def test_conv(
    size: int, kernel: int, stride: int, padding: int, dilation: int, out: int, backend: str
) -> None:
    options = {"stride": (1, stride), "padding": (0, padding), "dilation": (1, dilation)}
    weight = np.zeros((1, 1, 1, kernel))
    assert cnnx.conv2d(row(size), weight, **options).shape == (1, 1, 1, out)
    # The same along the height.
    options = {name: value[::-1] for name, value in options.items()}
    tall = cnnx.conv2d(row(size).transpose(0, 1, 3, 2), weight.transpose(0, 1, 3, 2), **options)
    assert tall.shape == (1, 1, out, 1)


@pytest.mark.parametrize(
    ("size", "window", "stride", "pads", "dilation", "floor", "ceil"), POOL_SIZES
)
def test_pool(
    size: int, window: int, stride: int, pads: Any, dilation: int, floor: int, ceil: int,
    backend: str,
) -> None:  # fmt: skip
    options: dict[str, Any] = {
        "pool_size": (1, window), "stride": (1, stride), "padding": ((0, 0), pads)
    }  # fmt: skip
    for mode, out in ((False, floor), (True, ceil)):
        maxima = cnnx.max_pool2d(row(size), **options, dilation=(1, dilation), ceil_mode=mode)
        assert maxima.shape == (1, 1, 1, out)
        if dilation == 1:
            assert cnnx.avg_pool2d(row(size), **options, ceil_mode=mode).shape == (1, 1, 1, out)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "output_padding", "dilation", "out"), TRANSPOSED_SIZES
)
def test_conv_transpose(
    size: int, kernel: int, stride: int, padding: int, output_padding: int, dilation: int, out: int,
    backend: str,
) -> None:  # fmt: skip
    result = cnnx.conv_transpose2d(
        row(size),
        np.zeros((1, 1, 1, kernel)),
        stride=(1, stride),
        padding=(0, padding),
        output_padding=(0, output_padding),
        dilation=(1, dilation),
    )
    assert result.shape == (1, 1, 1, out)


def test_batch_and_channels(backend: str) -> None:
    x = np.zeros((3, 6, 5, 4), np.float32)
    assert cnnx.conv2d(x, np.zeros((8, 3, 2, 2), np.float32), groups=2).shape == (3, 8, 4, 3)
    weight = np.zeros((6, 5, 2, 2), np.float32)
    assert cnnx.conv_transpose2d(x, weight, groups=2).shape == (3, 10, 6, 5)
    assert cnnx.max_pool2d(x, 2).shape == cnnx.avg_pool2d(x, 2).shape == (3, 6, 2, 2)
    assert cnnx.global_avg_pool2d(x).shape == (3, 6)


# The package's formulas against windows counted one by one, over every small geometry.

SIZES = range(1, 9)


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_output_size_counts_windows(kernel: int, dilation: int) -> None:
    for size in SIZES:
        for stride in (1, 2, 3, 7):
            for before, after in ((0, 0), (1, 0), (0, 2), (3, 3)):
                counted = naive.conv_size(size, kernel, stride, before, after, dilation)
                formula = _shapes.output_size(size, kernel, stride, before, after, dilation)
                assert max(formula, 0) == counted, (size, stride, before, after)


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_same_padding_is_the_least_that_serves(kernel: int, dilation: int) -> None:
    for size in SIZES:
        for stride in (1, 2, 3, 7):
            expected = naive.same_pads(size, kernel, stride, dilation)
            assert _shapes.same_padding(size, kernel, stride, dilation) == expected, (size, stride)


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_transposed_size_inverts_output_size(kernel: int, dilation: int) -> None:
    for size in SIZES:
        for stride in (1, 2, 3):
            for extra in range(stride):
                geometry = (kernel, stride, 1, 1, dilation)
                grown = _shapes.transposed_size(size, *geometry, extra)
                if grown >= 1:
                    assert _shapes.output_size(grown, *geometry) == size


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_every_window_sees_a_pixel(window: int, ceil_mode: bool) -> None:
    # For every padding that is allowed, smaller than the window.
    for size in SIZES:
        for stride in (1, 2, 3, 5):
            for before in range(window):
                for after in range(window):
                    geometry = (size, window, stride, before, after, 1)
                    count = _shapes.output_size(*geometry, ceil_mode)
                    assert count == naive.pool_size(*geometry, ceil_mode)
                    for index in range(count):
                        start = index * stride - before
                        assert max(start, 0) < min(start + window, size), geometry


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_index(mode: str) -> None:
    for size in (1, 2, 3, 5):
        most = {"reflect": size - 1, "circular": size, "replicate": 7}[mode]
        for before in range(most + 1):
            for after in range(most + 1):
                index = _shapes.padding_index(size, before, after, mode)
                expected = [naive.source(p, size, mode) for p in range(-before, size + after)]
                assert index.tolist() == expected
