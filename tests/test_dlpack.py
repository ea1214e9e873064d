"""Other libraries' arrays by DLPack: in without a copy, and out, where they outlive our own."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import needs_kernels

import cnnx
from cnnx.functional._arguments import shared


class Foreign:
    """An array of a library that has DLPack's two methods and nothing else."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


class Elsewhere(Foreign):
    """An array on a graphics card."""

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("the memory is on a graphics card")

    def __dlpack_device__(self) -> Any:
        return (2, 0)


def torch_tensor(array: Any) -> Any:
    return pytest.importorskip("torch").from_numpy(array)


def jax_array(array: Any) -> Any:
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    return jax.numpy.asarray(array)


LIBRARIES: dict[str, Callable[[Any], Any]] = {
    "foreign": Foreign,
    "torch": torch_tensor,
    "jax": jax_array,
}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:jax.*")

RNG = np.random.default_rng(0)
X, WEIGHT, BIAS = RNG.standard_normal((2, 4, 7, 6)), RNG.standard_normal((6, 4, 3, 3)), np.ones(6)
GRAD, ROWS, TABLE = RNG.standard_normal((2, 6, 5, 4)), X.reshape(2, -1), np.ones((168, 3))
POOLED, INDICES = cnnx.max_pool2d(X, 2, return_indices=True)
CHANNEL = np.linspace(1, 2, 4)

CALLS: dict[str, tuple[Any, ...]] = {
    "conv2d": (X, WEIGHT, BIAS),
    "conv2d_backward": (GRAD, X, WEIGHT),
    "conv_transpose2d": (GRAD, WEIGHT, CHANNEL),
    "conv_transpose2d_backward": (X, GRAD, WEIGHT),
    "max_pool2d": (X, 2),
    "max_pool2d_backward": (POOLED, INDICES, X.shape),
    "avg_pool2d": (X, 2),
    "avg_pool2d_backward": (POOLED, X.shape, 2),
    "global_avg_pool2d": (X,),
    "linear": (ROWS, TABLE),
    "linear_backward": (np.ones((2, 3)), ROWS, TABLE),
    "batch_norm2d": (X, CHANNEL, CHANNEL),
    "batch_norm2d_backward": (X, X, CHANNEL),
    "relu": (X,),
    "sigmoid_backward": (X, X),
    "softmax": (X, 1),
    "log_softmax_backward": (X, X, 1),
    "conv_forward": (X, WEIGHT, BIAS),
}


def flat(results: Any) -> list[Any]:
    """The arrays of a call, in their order."""
    if isinstance(results, np.ndarray):
        return [results]
    return (
        [array for result in results for array in flat(result)]
        if isinstance(results, tuple)
        else []
    )


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", CALLS)
def test_same_as_numpys(name: str, library: str) -> None:
    function, make = getattr(cnnx, name), LIBRARIES[library]
    foreign = [make(a) if isinstance(a, np.ndarray) else a for a in CALLS[name]]
    mine, expected = flat(function(*foreign)), flat(function(*CALLS[name]))
    assert len(mine) == len(expected) > 0
    for a, b in zip(mine, expected, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.parametrize("library", LIBRARIES)
def test_no_copy_on_the_way_in(library: str) -> None:
    value = LIBRARIES[library](X)
    array = shared(value, "x")
    address = np.from_dlpack(value).ctypes.data
    assert array.ctypes.data == address
    (taken,) = cnnx.functional._arguments.floats((("x", 4, "", True),), value)
    assert taken.ctypes.data == address and taken.flags.c_contiguous
    if library == "torch":
        assert address == value.data_ptr()
    if library == "jax":
        assert address == value.unsafe_buffer_pointer()


def test_layers_take_them() -> None:
    torch = pytest.importorskip("torch")
    net = cnnx.Sequential(
        cnnx.Conv2D(4, 6, 3, activation="relu", rng=0), cnnx.MaxPool2D(2), cnnx.BatchNorm2D(6),
        cnnx.AvgPool2D(1), cnnx.Flatten(), cnnx.Dense(24, 3, rng=1),
    )  # fmt: skip
    upstream = np.ones((2, 3))
    expected = net(X).copy(), net.backward(upstream).copy()
    assert np.array_equal(net(torch.from_numpy(X)), expected[0])
    assert np.array_equal(net.backward(torch.from_numpy(upstream)), expected[1])


def test_strided_and_mixed() -> None:
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(X).contiguous(memory_format=torch.channels_last)
    assert np.array_equal(cnnx.conv2d(x, WEIGHT), cnnx.conv2d(X, WEIGHT))
    every_other = torch.from_numpy(X)[:, :, ::2]
    assert np.array_equal(cnnx.relu(every_other), cnnx.relu(X[:, :, ::2]))
    half = cnnx.conv2d(torch.from_numpy(X).float(), WEIGHT)
    assert half.dtype == np.float64  # as of NumPy's arrays, the larger dtype


def test_out_must_not_be_an_inputs_memory() -> None:
    torch = pytest.importorskip("torch")
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="out shares memory with an input"):
        cnnx.conv2d(x, np.ones((1, 1, 1, 1)), out=x.numpy())


# ---------------------------------------------------------------------------- out


@needs_kernels  # the fallback's results lie in NumPy's memory
def test_a_result_lives_as_long_as_its_reader() -> None:
    """Its memory is recycled, but not while somebody reads it."""
    gc.collect()
    before = cnnx.memory_stats()["in_use"]
    result = cnnx.relu(np.full((1, 1, 64, 64), 3.0))
    held = cnnx.memory_stats()["in_use"]
    reader = np.from_dlpack(Foreign(result))[0, 0, 1:]
    del result
    assert cnnx.memory_stats()["in_use"] == held > before
    for value in range(20):
        cnnx.relu(np.full((1, 1, 64, 64), float(value)))
    assert (reader == 3).all()
    del reader
    assert cnnx.memory_stats()["in_use"] == before


@pytest.mark.parametrize("way", ["from_dlpack", "from_numpy"])
def test_torch_reads_results(way: str) -> None:
    torch = pytest.importorskip("torch")
    result = cnnx.relu(np.full((1, 1, 64, 64), 3.0))
    address = result.ctypes.data
    tensor = getattr(torch, way)(result)[0, 0, 1]
    del result
    gc.collect()
    for value in range(20):
        cnnx.relu(np.full((1, 1, 64, 64), float(value)))
    assert tensor.data_ptr() == address + 64 * 8
    assert bool((tensor == 3).all())


def test_jax_reads_results() -> None:
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    result = cnnx.relu(np.full((1, 1, 64, 64), 3.0))
    address = result.ctypes.data
    array = jax.numpy.from_dlpack(result, copy=False)
    del result
    gc.collect()
    for value in range(20):
        cnnx.relu(np.full((1, 1, 64, 64), float(value)))
    assert array.unsafe_buffer_pointer() == address
    assert bool((array == 3).all())


# ---------------------------------------------------------------------------- refusals


def test_what_cannot_be_shared() -> None:
    with pytest.raises(TypeError, match=r"^x is an Elsewhere, whose numbers NumPy cannot have: .+"):
        cnnx.relu(Elsewhere(X))
    with pytest.raises(TypeError, match=r"^weight is an array of int64, expected float32 or flo"):
        cnnx.conv2d(X, Foreign(np.ones((6, 4, 3, 3), np.int64)))
    with pytest.raises(ValueError, match=r"^weight has shape \(6, 4\), expected 4 dimensions"):
        cnnx.conv2d(X, Foreign(np.ones((6, 4))))
    with pytest.raises(TypeError, match=r"^indices is an array of float64, expected a NumPy array"):
        cnnx.max_pool2d_backward(POOLED, Foreign(INDICES.astype(float)), X.shape)
    with pytest.raises(TypeError, match=r"^x is the class Foreign, expected a NumPy array"):
        cnnx.relu(Foreign)


def test_tensors_that_cannot_be_shared() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.ones(2, 3)
    with pytest.raises(
        TypeError, match=r"^x is a .*Tensor, whose numbers .* use tensor.detach\(\)"
    ):
        cnnx.relu(tensor.repeat(9, 9).requires_grad_())
    for wrong in (tensor.bfloat16(), tensor.half(), tensor.int(), tensor.to("meta")):
        with pytest.raises(TypeError, match=r"^x is .*(expected float32 or float64|cannot have)"):
            cnnx.relu(wrong.repeat(9, 9))
