"""Nothing beyond an array is touched: each stands directly before or behind an unmapped page.

A kernel that reads or writes one byte too far ends the test run with a segmentation fault, and
pytest shows in which test. Results begin as NaN, so that a number nobody wrote shows as well.
"""

from __future__ import annotations

import signal
from typing import Any

import guard
import numpy as np
import pytest
from calls import CALLS, Call, call_id
from conftest import KERNELS
from numpy.testing import assert_array_equal

import cnnx
from cnnx import functional as F

pytestmark = [
    pytest.mark.skipif(not guard.AVAILABLE, reason="mprotect is called as Linux has it"),
    pytest.mark.skipif(KERNELS is None, reason="the compiled kernels are missing"),
]


@pytest.fixture(params=[False, True], ids=["before", "behind"])
def behind(request: pytest.FixtureRequest) -> bool:
    """On which side of the page the arrays stand."""
    side: bool = request.param
    return side


def assert_same(call: Call, arrays: dict[str, Any], behind: bool) -> None:
    expected = call(arrays)
    moved = {name: guard.guarded(array, behind) for name, array in arrays.items()}
    with guard.results_on_guard_pages((behind,)):
        results = call(moved)
    for result, known in zip(results, expected, strict=True):
        assert_array_equal(result, known)


def test_the_page_is_there(tmp_path: Any, behind: bool) -> None:
    # One byte too far, in a process of its own.
    from fresh import python

    tests = str(guard.__file__).rpartition("/")[0]
    code = f"""
import sys; sys.path.insert(0, {tests!r})
import ctypes, guard, numpy as np
array = guard.guarded(np.arange(3.0), {behind})
assert array.tolist() == [0, 1, 2]
ctypes.string_at(array.ctypes.data, 24)
print("inside", flush=True)
ctypes.string_at(array.ctypes.data + ({-1 if behind else 24}), 1)
"""
    done = python(code, tmp_path)
    assert done.stdout == "inside\n", done.stderr
    assert done.returncode in (-signal.SIGSEGV, -signal.SIGABRT), done.stderr  # a sanitizer aborts


@pytest.mark.parametrize("call", CALLS, ids=call_id)
def test_every_function(call: Call, isa: str, dtype: Any, behind: bool) -> None:
    assert_same(call, call.arrays(dtype), behind)


WIDTHS = [*range(1, 36), 47, 48, 49, 63, 64, 65]  # around the vectors and tiles of each set
_IMAGE = (2, 4, 5)
CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "one_by_one": (_IMAGE, (6, 4, 1, 1), {}),
    "three_by_three": (_IMAGE, (6, 4, 3, 3), {"padding": 1}),
    "strided": (_IMAGE, (6, 4, 3, 3), {"padding": 1, "stride": 2}),
    "few_filters": (_IMAGE, (2, 4, 2, 5), {"padding": 2}),
    "depthwise": (_IMAGE, (4, 1, 3, 3), {"padding": 1, "groups": 4}),
    "depthwise_strided": (_IMAGE, (4, 1, 3, 3), {"padding": 1, "groups": 4, "stride": 2}),
    "depthwise_large": (_IMAGE, (4, 1, 5, 5), {"padding": 2, "groups": 4}),
    # Vectors of channels: of depthwise images up to 7 wide, and of filters.
    "depthwise_channels": ((2, 21, 5), (21, 1, 3, 3), {"padding": 1, "groups": 21}),
    "depthwise_channels_strided": (
        (2, 21, 5),
        (21, 1, 5, 5),
        {"padding": 2, "groups": 21, "stride": 2},
    ),
    "one_by_one_strided": (_IMAGE, (33, 4, 1, 1), {"stride": 2}),
    "grouped_dilated": (_IMAGE, (6, 2, 3, 3), {"padding": 2, "groups": 2, "dilation": 2}),
    "far_taps": (
        (2, 3, 4),
        (5, 3, 2, 3),
        {"padding": (5, 41), "stride": (2, 35), "dilation": (5, 40)},
    ),
    "small_images": ((31, 5, 5), (17, 5, 2, 3), {}),  # of which a chunk takes several
    "many_channels": ((1, 40, 3), (40, 40, 3, 3), {"padding": 1}),
}


@pytest.mark.parametrize("algorithm", KERNELS.ALGORITHMS if KERNELS else [])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name: str, algorithm: str, isa: str, dtype: Any, behind: bool) -> None:
    assert KERNELS is not None
    image, weight, options = CONVOLUTIONS[name]
    KERNELS.use_algorithm(algorithm)
    try:
        for width in WIDTHS[:: 1 if algorithm == "by shape" else 3]:
            if width < weight[3] - 2 * np.max(options.get("padding", 0)):
                continue
            x = (*image, width)
            call = Call("conv2d", {"x": x, "weight": weight, "bias": weight[:1]}, options)
            arrays = call.arrays(dtype)
            assert_same(call, arrays, behind)
            out = call(arrays)[0].shape
            shapes = {"grad_out": out, "x": x, "weight": weight}
            back = Call("conv2d_backward", shapes, options)
            assert_same(back, back.arrays(dtype), behind)
    finally:
        KERNELS.use_algorithm("by shape")


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_pooling(window: int, stride: int, isa: str, dtype: Any, behind: bool) -> None:
    for width in WIDTHS:
        x = (3, 2, 6, width)
        options = {"pool_size": window, "stride": stride, "padding": window // 2}
        call = Call("max_pool2d", {"x": x}, {**options, "return_indices": True})
        arrays = call.arrays(dtype)
        assert_same(call, arrays, behind)
        assert_same(Call("max_pool2d", {"x": x}, options), arrays, behind)
        out, indices = call(arrays)
        indices = guard.guarded(indices, behind)
        rest = {"indices": indices, "input_shape": x}
        back = Call("max_pool2d_backward", {"grad_out": out.shape}, rest)
        assert_same(back, back.arrays(dtype), behind)
        average = Call("avg_pool2d", {"x": x}, options)
        assert_same(average, arrays, behind)
        back = Call("avg_pool2d_backward", {"grad_out": out.shape}, {"input_shape": x, **options})
        assert_same(back, back.arrays(dtype), behind)


ROWS = [*range(1, 36), 64, 65, 129]


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "relu6", "sigmoid", "tanh", "gelu", "silu"])
def test_activation(name: str, isa: str, dtype: Any, behind: bool) -> None:
    for size in ROWS:
        for call in (
            Call(name, {"x": (size,)}),
            Call(f"{name}_backward", {"grad_out": (size,), "x": (size,)}),
        ):
            assert_same(call, call.arrays(dtype), behind)


@pytest.mark.parametrize("rows", [1, 3, 9])
def test_rows(rows: int, isa: str, dtype: Any, behind: bool) -> None:
    # Softmax, its gradient, the matrix product, and batch normalisation of one pixel a channel.
    for size in ROWS:
        shape = (rows, size)
        images = {"x": (rows, 3, 1, size), "weight": (3,), "bias": (3,)}
        for call in (
            Call("softmax", {"x": shape}),
            Call("log_softmax_backward", {"grad_out": shape, "x": shape}),
            Call("linear", {"x": shape, "weight": (size, 5), "bias": (5,)}),
            Call("linear", {"x": (rows, 5), "weight": (5, size), "bias": (size,)}),
            Call("linear_backward", {"grad_out": shape, "x": (rows, 5), "weight": (5, size)}),
            Call("linear_backward", {"grad_out": (rows, 5), "x": shape, "weight": (size, 5)}),
            Call("batch_norm2d", images),
            Call("batch_norm2d_backward", {"grad_out": images["x"], **images}),
            Call("global_avg_pool2d", {"x": (rows, 2, 1, size)}),
        ):
            assert_same(call, call.arrays(dtype), behind)


def test_loss_and_optimizers(isa: str, dtype: Any, behind: bool, rng: np.random.Generator) -> None:
    for size in ROWS:
        scores = rng.standard_normal((3, size)).astype(dtype)
        labels = guard.guarded(rng.integers(0, size, 3), behind)
        loss, same = cnnx.SoftmaxCrossEntropy(0.1), cnnx.SoftmaxCrossEntropy(0.1)
        known = same.forward(scores, labels), same.backward()
        with guard.results_on_guard_pages((behind,)):
            assert loss.forward(guard.guarded(scores, behind), labels) == known[0]
            assert_array_equal(loss.backward(), known[1])
        arrays = [np.abs(rng.standard_normal(size)).astype(dtype) for _ in range(4)]
        moved = [guard.guarded(array, behind) for array in arrays]
        for param, grad, mean, square in (arrays, moved):
            F._optim.sgd(param, grad, mean, 0.1, 0.9, 0.01, True)
            F._optim.adam(param, grad, mean, square, 0.1, (0.9, 0.99), 1e-8, 0.01, True, 1)
        for array, copy in zip(arrays, moved, strict=True):
            assert_array_equal(copy, array)
