"""Recycled memory: nothing that lives is overwritten, what died is used again, within bounds."""

from __future__ import annotations

import gc
import threading
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import in_threads, needs_kernels
from numpy.testing import assert_array_equal

import cnnx


def test_as_many_dimensions_as_numpy_has(compiled: ModuleType) -> None:
    most = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32
    shape = (2,) * 5 + (1,) * (most - 5)
    array = compiled.empty(shape, "float32")
    assert array.shape == shape
    assert array.strides == np.empty(shape, np.float32).strides
    assert cnnx.relu(array).shape == shape
    with pytest.raises(ValueError, match="65 dimensions"):
        compiled.empty((1,) * 65, "float32")


def test_live_arrays_share_no_memory(backend: str) -> None:
    # Many results of few sizes; some die, and what takes their memory must be nobody else's.
    rng = np.random.default_rng(0)
    alive: list[tuple[Any, float]] = []
    for value in np.arange(400.0):
        shape = [(7,), (64, 3), (5, 5, 41)][rng.integers(3)]
        alive.append((cnnx.relu(np.full(shape, value)), value))
        if len(alive) > 30:
            del alive[int(rng.integers(len(alive)))]
    for array, value in alive:
        assert_array_equal(array, np.full(array.shape, value))


def test_views_keep_their_memory(backend: str) -> None:
    # Of each result only a view is kept: the memory must live as long as the last of them.
    views = []
    for value in range(60):
        result = cnnx.relu(np.full((4, 50, 3), float(value)))
        views.append([result[1:3, ::7], result.T, result.reshape(-1)[5:]][value % 3])
        del result
    for value, view in enumerate(views):
        assert_array_equal(view, np.full(view.shape, float(value)))


@needs_kernels
def test_memory_is_used_again(compiled: ModuleType) -> None:
    cnnx.empty_cache()
    x = np.ones((3, 5000))
    first = cnnx.relu(x)
    address, before = first.ctypes.data, cnnx.memory_stats()
    view = first[1:]
    del first
    other = cnnx.relu(x)
    assert other.ctypes.data != address  # the view still stands on it
    del view
    again = cnnx.relu(x)
    assert again.ctypes.data == address
    after = cnnx.memory_stats()
    assert after["hits"] == before["hits"] + 1
    assert after["in_use"] > before["in_use"]
    del other, again
    cnnx.empty_cache()
    assert cnnx.memory_stats()["cached"] == 0


@needs_kernels
def test_memory_from_many_threads(compiled: ModuleType) -> None:
    def job(seed: int) -> None:
        rng, alive = np.random.default_rng(seed), []
        for step in range(300):
            value = float(1000 * seed + step)
            alive.append((cnnx.relu(np.full((rng.integers(1, 4), 400), value)), value))
            if len(alive) > 10:
                del alive[int(rng.integers(10))]
        for array, value in alive:
            assert_array_equal(array, np.full(array.shape, value))

    before = cnnx.memory_stats()["in_use"]
    in_threads([lambda s=s: job(s) for s in range(6)])
    gc.collect()
    assert cnnx.memory_stats()["in_use"] == before


@needs_kernels
def test_memory_dies_in_another_thread(compiled: ModuleType) -> None:
    arrays = [cnnx.relu(np.full(1000, float(i))) for i in range(50)]
    before = cnnx.memory_stats()["in_use"]
    thread = threading.Thread(target=arrays.clear)
    thread.start()
    thread.join()
    assert cnnx.memory_stats()["in_use"] < before


@needs_kernels
def test_kept_memory_is_bounded(compiled: ModuleType) -> None:
    cnnx.empty_cache()
    limit = cnnx.memory_stats()["limit"]
    for part in (16, 5, 3, 2) * 2:  # never written to, so that no page of it is real
        compiled.empty((limit // part // 4,), "float32")
        assert 0 < cnnx.memory_stats()["cached"] <= limit
    compiled.empty((limit // 2,), "float32")  # of twice the limit
    assert cnnx.memory_stats()["cached"] <= limit
    assert cnnx.memory_stats()["peak"] >= 2 * limit
    cnnx.empty_cache()


@needs_kernels
def test_sizes_no_longer_used_make_room(compiled: ModuleType) -> None:
    cnnx.empty_cache()
    limit = cnnx.memory_stats()["limit"]
    old, new = limit // 4 // 4, limit // 5 // 4
    kept = [compiled.empty((old,), "float32") for _ in range(4)]
    del kept  # all four, or with their headers three of them
    assert cnnx.memory_stats()["cached"] > limit // 2
    for _ in range(10):
        pair = [compiled.empty((new,), "float32") for _ in range(2)]
        del pair
    before = cnnx.memory_stats()
    pair = [compiled.empty((new,), "float32") for _ in range(2)]
    assert cnnx.memory_stats()["misses"] == before["misses"]
    del pair
    cnnx.empty_cache()
