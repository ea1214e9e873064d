"""Where sizes and memory end: more elements than 32 bits count, and no memory to be had."""

from __future__ import annotations

import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from calls import Call
from conftest import in_threads, needs_kernels, needs_tight_memory
from fresh import python
from numpy.testing import assert_allclose, assert_array_equal
from split import SPLIT, random

import cnnx

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux's")

# ---------------------------------------------------------------------------- no memory


@needs_kernels
@needs_linux
@needs_tight_memory
@pytest.mark.parametrize("count", [1, 4])
def test_out_of_memory(count: int, tmp_path: Path) -> None:
    # With 4 threads, their stacks lack as well: GNU OpenMP by itself would end the process.
    code = f"import starved; starved.main({count})"
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(cnnx.__file__).parents[1])])
    malloc = {"MALLOC_MMAP_THRESHOLD_": "4096", "MALLOC_TOP_PAD_": "0"}
    done = python(code, tmp_path, PYTHONPATH=path, OPENBLAS_NUM_THREADS="1", **malloc)
    assert (done.returncode, done.stderr) == (0, "")
    refused, served = map(int, done.stdout.split())
    assert refused > 200 and served > 200  # of some 900: neither is for want of trying


@needs_kernels
@needs_linux
@needs_tight_memory
@pytest.mark.parametrize(
    "own",
    [{}, {"OMP_STACKSIZE": "200M"}, {"OMP_STACKSIZE": "65536"}, {"GOMP_STACKSIZE": "200M"}],
    ids=["", "200M", "65536", "GNU"],
)
def test_fewer_threads_than_asked_for(own: dict[str, str], tmp_path: Path) -> None:
    # A container may start no more threads, however much memory there is.
    code = """
import resource, threading, numpy as np, cnnx
x = np.random.default_rng(0).normal(size=(8, 8, 64, 64))
cnnx.set_num_threads(1)
alone = cnnx.relu(x)
cnnx.set_num_threads(1000)
space = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (space + (1 << 28), -1))  # room for some stacks
for _ in range(3):
    print(np.array_equal(cnnx.relu(x), alone), end=" ")
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
print(np.array_equal(cnnx.relu(x), alone), len(threading.enumerate()))
"""
    done = python(code, tmp_path, OPENBLAS_NUM_THREADS="1", **own)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["True"] * 4 + ["1"]


def broadcast(*shape: int) -> Any:
    """An array of many equal numbers in the memory of one."""
    return np.broadcast_to(np.float32(1), shape)


@pytest.mark.parametrize(
    "call",
    [
        lambda: cnnx.relu(broadcast(2**50)),
        lambda: cnnx.conv2d(broadcast(1, 1, 2**25, 2**25), np.ones((1, 1, 3, 3), np.float32)),
        lambda: cnnx.conv2d(np.ones((1, 1, 3, 3), np.float32), broadcast(1, 1, 2**25, 2**25)),
        lambda: cnnx.linear(broadcast(2**30, 2**20), broadcast(2**20, 2**30)),
        lambda: cnnx.max_pool2d(broadcast(2**25, 2**25, 1, 1), 1),
        lambda: cnnx.batch_norm2d(broadcast(2**25, 2**25, 1, 1)),
    ],
)
def test_arrays_larger_than_any_memory(call: Callable[[], Any], backend: str) -> None:
    # Their strides are zero, so that they exist; what kernels read would be a petabyte.
    with pytest.raises((MemoryError, ValueError)):
        call()


# What a task copies and looks up must not grow with what lies beside the image: see CNNX_SCRATCH.
WIDE = {
    "depthwise": ((1, 2, 8, 8), (2, 1, 5, 5), {"groups": 2, "padding": (2, 2**19)}),
    "depthwise stride 2": (
        (1, 2, 8, 8),
        (2, 1, 3, 3),
        {"groups": 2, "padding": (1, 2**20), "stride": 2},
    ),
    "one channel": ((1, 1, 8, 8), (1, 1, 7, 7), {"padding": (3, 2**20)}),
    "few channels": ((1, 3, 8, 8), (5, 3, 3, 3), {"padding": (1, 2**17)}),
}


@needs_kernels
@needs_linux
@pytest.mark.parametrize("name", WIDE)
def test_scratch_is_bounded(name: str, tmp_path: Path) -> None:
    x, weight, options = WIDE[name]
    code = f"""
import numpy as np, cnnx
cnnx.set_num_threads(1)
x, weight = np.ones({x}, np.float32), np.ones({weight}, np.float32)
y = cnnx.conv2d(x, weight, **{options})
forward = cnnx.memory_stats()["peak"] - y.nbytes
cnnx.conv2d_backward(y, x, weight, **{options})
print(forward, cnnx.memory_stats()["peak"] - y.nbytes)
"""
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    for peak in map(int, done.stdout.split()):
        assert peak < 1.25 * (64 << 20)  # blocks of memory have a fifth of slack


def test_a_kernel_of_many_taps(backend: str) -> None:
    # As large as the image, it has as many taps as pixels: no work may grow with their square.
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (1, 2, 151, 151)).astype(np.float32)
    weight = rng.integers(-3, 4, (5, 2, 151, 151)).astype(np.float32)
    y = cnnx.conv2d(x, weight)
    assert_array_equal(y.ravel(), (x * weight).sum((1, 2, 3), np.float64))
    grad = np.arange(1, 6, dtype=np.float32).reshape(1, 5, 1, 1)
    _, grad_weight, _ = cnnx.conv2d_backward(grad, x, weight, need=(False, True, False))
    assert_array_equal(grad_weight, grad.reshape(5, 1, 1, 1) * x)


# ---------------------------------------------------------------------------- the smallest numbers

TINY = {np.float32: np.float32(2.0**-149), np.float64: 2.0**-1074}  # the smallest of all


flushing = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64", "aarch64", "arm64"),
    reason="the mode of this CPU is not known",
)


def flushes() -> bool:
    """Whether this thread takes denormal numbers for zero, or makes zeros of them."""
    # Bits tell, not comparisons: those of a thread that flushes take them for zero as well.
    return not all(
        result.view(np.uint8).any()
        for dtype, tiny in TINY.items()
        for result in (
            np.array([tiny, tiny]) + dtype(0),  # denormals in
            np.array([np.finfo(dtype).tiny] * 2) * dtype(0.5),  # and out
        )
    )


@pytest.mark.parametrize("count", [1, 3])
def test_denormals_stay_the_callers_affair(count: int, backend: str) -> None:
    # To flush them to zero is a mode of the CPU, of each thread its own. None is left changed.
    cnnx.set_num_threads(count)
    work = [(call, random(call, np.float32)) for calls in SPLIT.values() for call in calls]
    if backend == "numpy":
        work = [(call, arrays) for call, arrays in work if not call.name.startswith("conv")]

    def job() -> None:
        assert not flushes()
        for call, arrays in work:
            call(arrays)
            assert not flushes(), call.name

    job()
    in_threads([job, job])


@needs_kernels
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="Windows has no timers that signal")
def test_handlers_compute_in_the_callers_mode() -> None:
    seen = []
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append((time.monotonic(), flushes())))
    x, weight = np.ones((1, 256, 32, 32)), np.ones((256, 256, 7, 7))
    start = time.monotonic()
    cnnx.conv2d(x, weight)
    count = int(1 / (time.monotonic() - start)) + 1  # signals are looked for five times a second
    x = np.ones((count, *x.shape[1:]))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        start = time.monotonic()
        cnnx.conv2d(x, weight)
        end = time.monotonic()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert any(start + 0.1 < moment < end - 0.1 for moment, _ in seen)
    assert not any(flushed for _, flushed in seen)


def strewn(call: Call, dtype: Any, small: Any) -> dict[str, Any]:
    """Random arrays, every second number of which is `small`, or its negative."""
    rng = np.random.default_rng(0)
    return {
        name: np.where(rng.random(array.shape) < 0.5, rng.choice([small, -small]), array)
        for name, array in random(call, dtype).items()
    }


COMPARISONS = [SPLIT["max_pool2d"][0], *SPLIT["relu"], *SPLIT["relu6"]]
# A leaky ReLU moves positive numbers, and multiplies negative ones.
ARITHMETIC = [
    call
    for calls in SPLIT.values()
    for call in calls
    if call not in COMPARISONS and call.name != "leaky_relu"
]


@flushing
@pytest.mark.parametrize("call", ARITHMETIC, ids=lambda call: call.name)
def test_denormals_are_zero_to_arithmetic(call: Call, dtype: Any, isa: str) -> None:
    largest = np.nextafter(np.finfo(dtype).tiny, dtype(0))
    zeros = call(strewn(call, dtype, dtype(0)))
    for small in (TINY[dtype], largest):
        for found, expected in zip(call(strewn(call, dtype, small)), zeros, strict=True):
            assert_array_equal(found, expected)


def test_an_eps_too_small_to_be_normal_still_divides(dtype: Any, implementation: str) -> None:
    # Nothing was seen yet, or nothing varies: 0 / eps, which must not become 0 / 0.
    eps = float(np.finfo(dtype).tiny) / 8
    dense = cnnx.Dense(40, 1, bias=False, dtype=dtype, rng=0)
    before = dense.params["weight"].copy()
    cnnx.Adam(eps=eps).step(dense)
    assert_array_equal(dense.params["weight"], before)
    if dtype == np.float64:  # an image's numbers are normalised in that
        x = np.ones((2, 3, 4, 5))
        assert_array_equal(cnnx.batch_norm2d(x, eps=eps), np.zeros_like(x))
        grad_x, *_ = cnnx.batch_norm2d_backward(x, x, eps=eps)
        assert_array_equal(grad_x, np.zeros_like(x))


@pytest.mark.parametrize("call", COMPARISONS, ids=lambda call: call.name)
def test_denormals_are_numbers_to_comparisons(call: Call, dtype: Any, implementation: str) -> None:
    whole = {name: np.rint(1000 * array) for name, array in random(call, dtype).items()}
    large, small = (
        {name: array * factor for name, array in whole.items()}
        for factor in (dtype(2.0**-20), TINY[dtype])
    )
    for found, expected in zip(call(small), call(large), strict=True):
        factor = 1 if expected.dtype == np.int64 else TINY[dtype] * dtype(2.0**20)
        assert_array_equal(found, expected * factor)


# ---------------------------------------------------------------------------- 2**31 and more

SIDE = 46_400  # SIDE**2 is 2**31 + 5 million
SPOTS = (
    (0, 0),
    (17, 46_399),
    (46_300, 23_000),
    (46_389, 100),
    (46_399, 46_399),
)  # three beyond 2**31


def available() -> int:
    """Bytes of memory that can be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return 0


@pytest.fixture
def gigabytes(compiled: ModuleType) -> None:
    """Room for one array of 9 GB. (Zeros that nobody writes take none.)"""
    if sys.platform != "linux" or available() < 11 * 2**30:
        pytest.skip("no 11 GiB are free")


def speckled(shape: tuple[int, ...], spots: Any, values: Any) -> Any:
    """Zeros, and a few numbers at flat positions."""
    x = np.zeros(shape, np.float32)
    x.ravel()[np.asarray(spots)] = values
    return x


def image() -> Any:
    return speckled((1, 1, SIDE, SIDE), [h * SIDE + w for h, w in SPOTS], [1, 2, 3, 4, 5])


def numbers_of(x: Any) -> dict[int, float]:
    """What is not zero, by flat position."""
    flat, found = x.reshape(-1), {}
    for start in range(0, flat.size, 2**26):
        part = flat[start : start + 2**26]
        found.update({start + int(q): float(part[q]) for q in np.flatnonzero(part)})
    return found


@pytest.mark.slow
def test_large_elementwise(gigabytes: None) -> None:
    n = 2**31 + 4099
    spots = [5, 2**31 - 1, 2**31, 2**31 + 1, n - 1]
    x = speckled((n,), spots, [-1, 2, 3, -4, 5])
    assert numbers_of(cnnx.relu(x)) == {spots[1]: 2, spots[2]: 3, spots[4]: 5}
    ones = speckled((n,), [n - 1, n - 2, 2**31], [7, 8, 9])
    assert numbers_of(cnnx.relu_backward(ones, x)) == {n - 1: 7, 2**31: 9}


@pytest.mark.slow
def test_large_image_pooled(gigabytes: None) -> None:
    x = image()
    y, indices = cnnx.max_pool2d(x, 4, return_indices=True)
    wide = SIDE // 4
    expected = {h // 4 * wide + w // 4: float(v) for v, (h, w) in enumerate(SPOTS, 1)}
    assert numbers_of(y) == expected
    found = [int(indices.ravel()[q]) for q in expected]
    assert found == [h * SIDE + w for h, w in SPOTS]
    assert numbers_of(cnnx.max_pool2d(x, 4)) == expected
    grad = speckled(y.shape, list(expected), [6, 7, 8, 9, 10])
    grad_x = cnnx.max_pool2d_backward(grad, indices, x.shape)
    assert numbers_of(grad_x) == dict(zip(found, [6, 7, 8, 9, 10], strict=True))
    del grad_x
    assert numbers_of(cnnx.avg_pool2d(x, 4)) == {q: v / 16 for q, v in expected.items()}
    grad_x = numbers_of(cnnx.avg_pool2d_backward(grad, x.shape, 4))
    assert len(grad_x) == 5 * 16 and sum(grad_x.values()) == 6 + 7 + 8 + 9 + 10
    assert grad_x[SIDE * SIDE - 1] == 10 / 16


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 6])
def test_large_image_convolved(channels: int, gigabytes: None) -> None:
    # A pixel of the output sees at most one of the spots, and three of them are seen.
    x = image()
    rng = np.random.default_rng(0)
    weight = rng.integers(1, 9, (channels, 1, 3, 3)).astype(np.float32)
    y = cnnx.conv2d(x, weight, stride=4, padding=1)
    size = SIDE // 4
    expected = {}
    for value, (h, w) in enumerate(SPOTS, 1):
        i, j, k, m = (h + 1) // 4, (w + 1) // 4, (h + 1) % 4, (w + 1) % 4
        if k < 3 and m < 3 and i < size and j < size:
            for c in range(channels):
                expected[(c * size + i) * size + j] = value * float(weight[c, 0, k, m])
    assert len(expected) == 3 * channels and numbers_of(y) == expected
    del y

    far = (46_301 // 4, 23_001 // 4)  # the pixel whose middle tap is the third spot
    grad = speckled((1, channels, size, size), [0, far[0] * size + far[1]], [1, 2])
    grad_x, grad_weight, _ = cnnx.conv2d_backward(grad, x, weight, stride=4, padding=1)
    by_hand = np.zeros((channels, 1, 3, 3), np.float32)
    by_hand[0, 0, 1, 1] = 1 * 1 + 2 * 3
    assert_array_equal(grad_weight, by_hand)
    assert numbers_of(grad_x) == {
        (4 * i - 1 + k) * SIDE + 4 * j - 1 + m: value * float(weight[0, 0, k, m])
        for value, i, j in ((1, 0, 0), (2, *far))
        for k in range(3)
        for m in range(3)
        if min(4 * i - 1 + k, 4 * j - 1 + m) >= 0
    }


@pytest.mark.slow
def test_large_row(gigabytes: None) -> None:
    n = 2**31 + 64
    x = speckled((1, 1, 1, n), [3, 2**31 - 1, n - 1], [1, 2, 3])
    weight = np.arange(1, 65, dtype=np.float32).reshape(1, 1, 1, 64)
    found = numbers_of(cnnx.conv2d(x, weight, stride=64))
    assert found == {0: 4.0, 2**25 - 1: 128.0, 2**25: 192.0}
    grad = speckled((1, 1, 1, n // 64), [0, 2**25], [1, 2])
    _, grad_weight, _ = cnnx.conv2d_backward(grad, x, weight, stride=64, need=(False, True, False))
    assert numbers_of(grad_weight) == {3: 1.0, 63: 6.0}
    assert numbers_of(cnnx.max_pool2d(x, (1, 64))) == {0: 1.0, 2**25 - 1: 2.0, 2**25: 3.0}


@pytest.mark.slow
def test_large_batch(gigabytes: None) -> None:
    images = 2**15 + 8  # of 64 Ki numbers
    shape = (images, 4, 128, 128)
    last = images * 4 * 128 * 128 - 1
    x = speckled(shape, [0, last - 15 * 128 - 13], [1, 2])  # the second in row 112, column 114
    assert numbers_of(cnnx.global_avg_pool2d(x)) == {0: 2.0**-14, 4 * images - 1: 2.0**-13}
    y = cnnx.conv2d(x, np.full((1, 4, 3, 3), 3, np.float32), stride=16)
    assert numbers_of(y) == {0: 3.0, images * 64 - 1: 6.0}
    del y
    y, mean, var = cnnx.batch_norm2d(x, return_stats=True)
    count = images * 128 * 128
    assert_allclose(mean, [1 / count, 0, 0, 2 / count], rtol=1e-6)  # a few roundings of float32
    assert_allclose(var, [1 / count - mean[0] ** 2, 0, 0, 4 / count - mean[3] ** 2], rtol=1e-6)
    assert y[-1, 3, 112, 114] > 500 and y[-1, 3, -1, -1] < 0 and y[0, 0, 0, 0] > 300
    del y
    grad = speckled(shape, [1, last], [5, 7])
    _, grad_weight, grad_bias = cnnx.batch_norm2d_backward(
        grad, x, None, mean, var, batch_stats=False
    )
    assert_array_equal(grad_bias, [5, 0, 0, 7])
    scale = np.sqrt(np.array([1, 4]) / count + 1e-5)
    expected = -np.array([5, 7 * 2]) / count / scale  # of pixels that are 0
    assert_allclose(grad_weight, [expected[0], 0, 0, expected[1]], rtol=1e-5)


@pytest.mark.slow
def test_large_linear(gigabytes: None) -> None:
    rows, wide = 2**21 + 3, 1024
    x = speckled((rows, wide), [1, rows * wide - 1], [1, 2])
    weight = np.arange(wide * 3, dtype=np.float32).reshape(wide, 3)
    y = numbers_of(cnnx.linear(x, weight))
    assert y == {
        **{j: 3.0 + j for j in range(3)},
        **{3 * (rows - 1) + j: 2.0 * (3 * (wide - 1) + j) for j in range(3)},
    }
    grad = speckled((rows, 3), [0, 3 * rows - 1], [1, 1])
    _, grad_weight, _ = cnnx.linear_backward(grad, x, weight, need=(False, True, False))
    assert numbers_of(grad_weight) == {3: 1.0, 3 * wide - 1: 2.0}
