"""Many Python threads compute at once while others change what they run on; all bits stay the same.

Workers call every function on large arrays, share frozen layers, train nets of their own, and make
wrong calls. Meanwhile one thread changes the number of threads, and another throws recycled memory
away. Whatever a worker gets must be, bit by bit, what the call gave alone.

`test_stress` does so for some seconds; ``python -m tests.stress --minutes 10`` for longer.
"""

from __future__ import annotations

import argparse
import faulthandler
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from split import SPLIT, bits, random

import cnnx

Job = Callable[[], list[bytes]]


def _net(seed: int) -> cnnx.Sequential:
    return cnnx.Sequential(
        cnnx.Conv2D(3, 16, 3, padding=1, activation="relu", rng=seed),
        cnnx.MaxPool2D(),
        cnnx.Conv2D(16, 24, 3, padding=1, rng=seed),
        cnnx.BatchNorm2D(24, activation="relu"),
        cnnx.AvgPool2D(2),
        cnnx.Flatten(),
        cnnx.Dense(24 * 8 * 8, 10, rng=seed),
    )


def _training(seed: int) -> Job:
    """Three steps of a net of the worker's own, from the same start each time."""

    def job() -> list[bytes]:
        rng, net, loss = np.random.default_rng(seed), _net(seed), cnnx.SoftmaxCrossEntropy()
        optimizer = cnnx.Adam(1e-3) if seed % 2 else cnnx.SGD(0.01, momentum=0.9)
        for _ in range(3):
            x = rng.standard_normal((6, 3, 32, 32), np.float32)
            loss.forward(net(x), rng.integers(0, 10, 6))
            net.backward(loss.backward())
            optimizer.step(net)
        return [array.tobytes() for array in net.state_dict().values()]

    return job


def jobs() -> list[tuple[str, Job]]:
    """What the workers do, each by its name."""
    found: list[tuple[str, Job]] = []
    for dtype in (np.float32, np.float64):
        for call in (call for calls in SPLIT.values() for call in calls):
            arrays = random(call, dtype)
            found.append((call.name, lambda call=call, arrays=arrays: bits(call(arrays))))
    found += [(f"training {seed}", _training(seed)) for seed in range(4)]
    # One layer for all of them: it keeps packed weights, and the sizes of images differ.
    shared = _net(9).eval()
    shared.freeze()
    conv = cnnx.Conv2D(8, 24, 3, padding=1, rng=0)
    conv.freeze()
    rng = np.random.default_rng(0)
    for images in (1, 5):
        x = rng.standard_normal((images, 3, 32, 32), np.float32)
        found.append((f"a shared net, {images} images", lambda x=x: bits([shared(x)])))
        y = rng.standard_normal((images, 8, 30 + images, 30), np.float32)
        found.append((f"a shared layer, {images} images", lambda y=y: bits([conv(y)])))

    def wrong() -> list[bytes]:
        x = np.ones((2, 3, 40, 40), np.float32)
        try:
            cnnx.max_pool2d_backward(x, np.full(x.shape, 10_000), (2, 3, 80, 80))
        except ValueError as error:
            return [str(error).encode()]
        raise AssertionError("an index outside the image was believed")

    return [*found, ("a wrong index", wrong)]


def stress(seconds: float, workers: int = 6, seed: int = 0) -> Counter[str]:
    """Calls that were made, by name; raises where a result differs from what it was alone."""
    work = [(name, job, job()) for name, job in jobs()]
    until, failures, counts = time.monotonic() + seconds, [], Counter[str]()
    before = cnnx.get_num_threads()

    def work_on(rng: np.random.Generator) -> None:
        while time.monotonic() < until and not failures:
            name, job, expected = work[rng.integers(len(work))]
            try:
                if job() != expected:
                    raise AssertionError(f"{name}: other bits than alone")
            except BaseException as error:
                failures.append(error)
            counts[name] += 1

    def change(rng: np.random.Generator) -> None:
        while time.monotonic() < until and not failures:
            cnnx.set_num_threads(int(rng.integers(1, 7)))
            time.sleep(0.0005)

    def empty(rng: np.random.Generator) -> None:
        while time.monotonic() < until and not failures:
            cnnx.empty_cache()
            cnnx.memory_stats()
            time.sleep(0.01)

    threads = [
        threading.Thread(target=target, args=(np.random.default_rng([seed, i]),))
        for i, target in enumerate([change, empty] + [work_on] * workers)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        cnnx.set_num_threads(before)
    if failures:
        raise failures[0]
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    given = parser.parse_args()
    faulthandler.enable()
    print(f"--seed {given.seed}", flush=True)
    counts = stress(60 * given.minutes, given.workers, given.seed)
    print(f"{sum(counts.values())} calls of {len(counts)} kinds, each with the bits it had alone")
    return 0


if __name__ == "__main__":
    sys.exit(main())
