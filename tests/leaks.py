"""How much memory many small calls leave behind, of every operation, and of calls that raise.

``python -m tests.leaks --calls 100000`` prints what each added to the process, and fails above
1 MiB. `test_leaks` runs it with fewer.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from calls import CALLS, call_id

import cnnx

LIMIT = 2**20  # bytes
AVAILABLE = Path("/proc/self/statm").exists()


def resident() -> int:
    """Bytes of this process that are in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def raising(function: Callable[[], Any]) -> Callable[[], None]:
    """The call, which must raise each time."""

    def call() -> None:
        with suppress(ValueError, TypeError, MemoryError):
            function()
            raise AssertionError("nothing was raised")

    return call


def operations() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Small calls of everything: right ones, and wrong ones by argument, number and size."""
    for call in CALLS:
        arrays = call.arrays(np.float32)
        yield call_id(call), lambda call=call, arrays=arrays: call(arrays)
        for name, array in arrays.items():
            for what, bad in (("dtype", array.astype(np.int32)), ("shape", array[..., None])):
                if what == "shape" and (len(arrays) == 1 or name == "b"):
                    continue  # an activation takes any, and the classroom's bias may be a column
                wrong = {**arrays, name: bad}
                label = f"{call_id(call)} with {name} of a wrong {what}"
                yield label, raising(lambda call=call, wrong=wrong: call(wrong))

    ones = np.ones((1, 2, 3, 3), np.float32)
    far = np.full(ones.shape, 99)
    yield (
        "max_pool2d_backward with a wrong index",
        raising(lambda: cnnx.max_pool2d_backward(ones, far, (1, 2, 4, 4))),
    )
    yield (
        "global_avg_pool2d_backward beyond all memory",
        raising(lambda: cnnx.global_avg_pool2d_backward(ones[..., 0, 0], (1, 2, 2**19, 2**19))),
    )
    loss, scores, labels = cnnx.SoftmaxCrossEntropy(), np.ones((4, 3)), np.arange(4) % 3
    yield "cross entropy", lambda: (loss.forward(scores, labels), loss.backward())
    yield "cross entropy with a wrong label", raising(lambda: loss.forward(scores, labels + 1))

    net = cnnx.Sequential(
        cnnx.Conv2D(2, 4, 3, padding=1, activation="relu", rng=0),
        cnnx.BatchNorm2D(4),
        cnnx.MaxPool2D(),
        cnnx.Flatten(),
        cnnx.Dense(4, 3, rng=0),
    )
    for optimizer in (cnnx.SGD(1e-6, momentum=0.9), cnnx.Adam(1e-6)):

        def step(optimizer: Any = optimizer) -> None:
            loss.forward(net(ones), labels[:1])
            net.backward(loss.backward())
            optimizer.step(net)

        yield f"training by {type(optimizer).__name__}", step
    yield "a net given a wrong shape", raising(lambda: net(ones[:, :1]))
    frozen = cnnx.Conv2D(2, 4, 3, rng=0)

    def freeze() -> None:
        frozen.freeze()
        frozen(ones)
        frozen.unfreeze()

    yield "frozen weights", freeze


def growth(operation: Callable[[], Any], calls: int) -> int:
    """What so many calls add, after some that fill every cache."""
    for _ in range(200):
        operation()
    before = resident()
    for _ in range(calls):
        operation()
    return resident() - before


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.leaks", description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000)
    calls = parser.parse_args().calls
    cnnx.set_num_threads(2)
    found = 0
    for name, operation in operations():
        added = growth(operation, calls)
        found += added > LIMIT
        print(f"{added / 1024:9.0f} KiB  {name}{'  <- leaks' if added > LIMIT else ''}", flush=True)
    print(f"{found} leaks")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
