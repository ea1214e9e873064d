"""Arrays of every memory layout give the answer of plain ones, and no input is ever modified.

Each public function (the table in `calls`) is called with each of its arrays in turn transposed,
negatively strided, strided, read-only, misaligned, byte-swapped, broadcast or a subclass.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from calls import CALLS, Call, call_id
from layouts import LAYOUTS
from numpy.testing import assert_array_equal

import cnnx

each_call = pytest.mark.parametrize("call", CALLS, ids=call_id)


def test_table_is_complete() -> None:
    missing = set(cnnx.functional.__all__) - {call.name for call in CALLS}
    # conv_backward takes no arrays but dout and a cache that only conv_forward can make.
    assert missing == {"conv_backward"}


@pytest.mark.parametrize("layout", LAYOUTS)
@each_call
def test_layout(call: Call, layout: str, backend: str, dtype: Any) -> None:
    arrays = call.arrays(dtype)
    expected = call(arrays)
    for argument, array in arrays.items():
        moved = LAYOUTS[layout](array)
        assert_array_equal(moved, array)  # the layout is another, the numbers are not
        for result, known in zip(call({**arrays, argument: moved}), expected, strict=True):
            assert type(result) is np.ndarray
            assert result.dtype == known.dtype
            assert result.dtype.isnative
            assert_array_equal(result, known, err_msg=argument)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_the_kernels_are_given(layout: str, dtype: Any) -> None:
    # On x86 they would bear a misaligned array, but C has no such thing.
    array = LAYOUTS[layout](np.arange(24, dtype=dtype).reshape(2, 3, 4))
    (given,) = cnnx.functional._arguments.floats((("x", 3, "", True),), array)
    assert given.flags.c_contiguous and given.flags.aligned and given.dtype.isnative
    assert_array_equal(given, array)


@each_call
def test_all_at_once(call: Call, backend: str, dtype: Any) -> None:
    arrays = call.arrays(dtype)
    moved = dict(arrays)
    for layout in ("every_second_element", "negative_strides", "byte_swapped"):
        moved = {name: LAYOUTS[layout](array) for name, array in moved.items()}
    for result, known in zip(call(moved), call(arrays), strict=True):
        assert_array_equal(result, known)


@each_call
def test_broadcast(call: Call, backend: str, dtype: Any) -> None:
    # Strides of zero: all images, or all filters, are one.
    arrays = call.arrays(dtype)
    for argument, array in arrays.items():
        broadcast = np.broadcast_to(array[:1], array.shape)
        assert broadcast.strides[0] == 0
        expected = call({**arrays, argument: broadcast.copy()})
        for result, known in zip(call({**arrays, argument: broadcast}), expected, strict=True):
            assert_array_equal(result, known, err_msg=argument)


@each_call
def test_inputs_are_not_modified(call: Call, backend: str, dtype: Any) -> None:
    arrays = call.arrays(dtype)
    before = {name: array.tobytes() for name, array in arrays.items()}
    results = call(arrays)
    for name, array in arrays.items():
        assert array.tobytes() == before[name], name
        for result in results:
            assert not np.shares_memory(array, result), f"a result shares memory with {name}"
    for result in results:
        assert result.flags.writeable
        result.fill(0)  # what a caller does with a result cannot reach the inputs
    for name, array in arrays.items():
        assert array.tobytes() == before[name], name


@each_call
def test_repeatable(call: Call, backend: str, dtype: Any) -> None:
    arrays = call.arrays(dtype)
    for first, second in zip(call(arrays), call(arrays), strict=True):
        assert first.tobytes() == second.tobytes()
        assert not np.shares_memory(first, second)


@pytest.mark.parametrize("layout", ["fortran", "negative_strides", "misaligned", "byte_swapped"])
def test_indices_of_any_layout(layout: str, backend: str) -> None:
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 30, (2, 3, 3, 2))
    grad_out = rng.integers(-3, 4, (2, 3, 3, 2)).astype(float)
    expected = cnnx.max_pool2d_backward(grad_out, indices, (2, 3, 5, 6))
    moved = LAYOUTS[layout](indices)
    assert_array_equal(cnnx.max_pool2d_backward(grad_out, moved, (2, 3, 5, 6)), expected)
    broadcast = np.broadcast_to(indices[:1], indices.shape)
    expected = cnnx.max_pool2d_backward(grad_out, broadcast.copy(), (2, 3, 5, 6))
    assert_array_equal(cnnx.max_pool2d_backward(grad_out, broadcast, (2, 3, 5, 6)), expected)


def test_the_same_array_twice(backend: str) -> None:
    # grad_out and x, or x and weight, may be one array.
    x = np.arange(-4.0, 5.0).reshape(1, 1, 3, 3)
    assert_array_equal(cnnx.relu_backward(x, x), cnnx.relu_backward(x.copy(), x))
    assert_array_equal(cnnx.conv2d(x, x), cnnx.conv2d(x, x.copy()))


def test_classroom_cache_survives_changes_of_layout(backend: str) -> None:
    rng = np.random.default_rng(0)
    x, weight = (rng.integers(-3, 4, shape).astype(float) for shape in ((2, 3, 5, 5), (4, 3, 3, 3)))
    dout = rng.integers(-3, 4, (2, 4, 5, 5)).astype(float)
    _, cache = cnnx.conv_forward(x, weight, np.zeros(4), 1, 1)
    expected = cnnx.conv_backward(dout, cache)
    for change in LAYOUTS.values():
        for result, known in zip(cnnx.conv_backward(change(dout), cache), expected, strict=True):
            assert_array_equal(result, known)
