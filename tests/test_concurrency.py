"""Many Python threads at once: each gets its own result, and none waits for another."""

from __future__ import annotations

import threading
import time
from types import ModuleType

import numpy as np
import pytest
from calls import call_id
from conftest import in_threads, needs_kernels
from split import CONVOLUTIONS, SPLIT, bits, random

import cnnx


@pytest.mark.parametrize("count", [1, 3])
def test_one_function_from_many_threads(count: int, backend: str) -> None:
    cnnx.set_num_threads(count)
    call = CONVOLUTIONS["winograd"][1]
    inputs = [
        {name: array * np.float32(2.0**i) for name, array in random(call, np.float32).items()}
        for i in range(6)
    ]
    expected = [bits(call(arrays)) for arrays in inputs]
    assert len(set(map(tuple, expected))) == 6  # one thread's results cannot pass for another's

    def job(i: int) -> None:
        for _ in range(5):
            assert bits(call(inputs[i])) == expected[i]

    in_threads([lambda i=i: job(i) for i in range(6)])


@pytest.mark.parametrize("count", [1, 2])
def test_all_functions_from_many_threads(count: int, backend: str) -> None:
    cnnx.set_num_threads(count)
    calls = [call for calls in SPLIT.values() for call in calls]
    if backend == "numpy":  # slow, and it has no state to race on
        calls = [call for call in calls if not call.name.startswith("conv")]
    work = [(call, random(call, np.float32)) for call in calls]
    expected = [bits(call(arrays)) for call, arrays in work]

    def job(first: int) -> None:
        for i in range(len(work)):
            call, arrays = work[(first + i) % len(work)]
            assert bits(call(arrays)) == expected[(first + i) % len(work)], call_id(call)

    in_threads([lambda i=i: job(i * len(work) // 6) for i in range(6)])


def test_a_net_for_each_thread(backend: str) -> None:
    def net(seed: int) -> cnnx.Sequential:
        return cnnx.Sequential(
            cnnx.Conv2D(3, 12, 3, padding=1, activation="relu", rng=seed),
            cnnx.MaxPool2D(3, 2),
            cnnx.Conv2D(12, 8, 3, padding=1, rng=seed),
            cnnx.BatchNorm2D(8),
            cnnx.ReLU(),
            cnnx.AvgPool2D(2),
            cnnx.Flatten(),
            cnnx.Dense(8 * 7 * 7, 10, rng=seed),
        )

    def train(seed: int) -> list[bytes]:
        rng, layer, loss = np.random.default_rng(seed), net(seed), cnnx.SoftmaxCrossEntropy()
        optimizer = cnnx.SGD(0.01, momentum=0.9)
        for _ in range(3):
            x = rng.normal(size=(4, 3, 30, 30)).astype(np.float32)
            loss.forward(layer(x), rng.integers(0, 10, 4))
            layer.backward(loss.backward())
            optimizer.step(layer)
        return [array.tobytes() for array in layer.state_dict().values()]

    cnnx.set_num_threads(2)
    expected = [train(seed) for seed in range(4)]
    actual: dict[int, list[bytes]] = {}
    in_threads([lambda s=s: actual.update({s: train(s)}) for s in range(4)])
    assert [actual[seed] for seed in range(4)] == expected


@needs_kernels
def test_number_of_threads_changed_meanwhile(compiled: ModuleType) -> None:
    call = CONVOLUTIONS["gemm"][1]
    arrays = random(call, np.float32)
    expected, stop = bits(call(arrays)), threading.Event()

    def change() -> None:
        while not stop.wait(0.0005):
            cnnx.set_num_threads(1 + time.perf_counter_ns() % 4)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(40):
            assert bits(call(arrays)) == expected
    finally:
        stop.set()
        thread.join()


@needs_kernels
def test_the_interpreter_is_free_meanwhile(compiled: ModuleType) -> None:
    # Another thread notes the time every millisecond. With the interpreter locked it could do so
    # only before and after the convolution, never in its middle.
    notes: list[float] = []
    stop = threading.Event()

    def note() -> None:
        while not stop.wait(0.001):
            notes.append(time.perf_counter())

    cnnx.set_num_threads(1)
    x, weight = np.ones((2, 64, 96, 96)), np.ones((64, 64, 5, 5))
    thread = threading.Thread(target=note)
    thread.start()
    try:
        for _ in range(10):  # a busy machine may let the other thread sleep through one of them
            start = time.perf_counter()
            cnnx.conv2d(x, weight)
            end = time.perf_counter()
            margin = 0.2 * (end - start)
            within = [t for t in notes if start + margin < t < end - margin]
            if within:
                return
    finally:
        stop.set()
        thread.join()
    pytest.fail(f"no other thread ran within ten convolutions of {end - start:.2f} s")
