"""What a call costs beside its arithmetic: ``python -m benchmarks.overhead [--busy]``.

First conv2d on one small image, the call beside the compiled kernel that it ends in. Then small
calls on one thread and on two. With ``--busy`` another process keeps one CPU busy meanwhile,
as on a shared machine: threads that wait for each other must not wait for milliseconds then.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import numpy as np

import cnnx
from benchmarks.timing import best_times, cpu_name
from cnnx import _dispatch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", action="store_true", help="beside a busy process")
    args = parser.parse_args()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"])] if args.busy else []
    print(f"{cpu_name()}, cnnx {cnnx.__version__}{', beside a busy process' if busy else ''}")
    try:
        beside_the_kernel()
        print(f"{'x':>14}  {'us':14}{'1 thread':>9}{'2':>9}")
        for n, channels, size in ((1, 3, 8), (1, 16, 16), (4, 16, 16), (8, 16, 32)):
            measure(n, channels, size)
    finally:
        for process in busy:
            process.kill()


def beside_the_kernel() -> None:
    """Check, geometry, result: what `conv2d` does before the kernel starts."""
    cnnx.set_num_threads(1)
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(s, np.float32) for s in ((1, 3, 8, 8), (8, 3, 3, 3)))
    bias, out = np.zeros(8, np.float32), np.empty((1, 8, 8, 8), np.float32)
    kernel = _dispatch.backend().conv2d
    geometry = ((1, 1), (1, 1, 1, 1), (1, 1), 1, None)
    runs = {
        "call": lambda: [cnnx.conv2d(x, weight, bias, 1, 1) for _ in range(100)],
        "kernel": lambda: [kernel(x, weight, bias, *geometry, out) for _ in range(100)],
    }
    best = {name: 1e4 * seconds for name, seconds in best_times(runs, 0.5).items()}
    print(
        f"conv2d of 1,3,8,8: {best['call']:.2f} us, its kernel {best['kernel']:.2f} us, "
        f"the rest {best['call'] - best['kernel']:.2f} us"
    )


def measure(n: int, channels: int, size: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, channels, size, size), np.float32)
    weight = rng.standard_normal((channels, channels, 3, 3), np.float32)
    runs = {
        "conv2d": lambda: cnnx.conv2d(x, weight, padding=1),
        "  backward": lambda: cnnx.conv2d_backward(x, x, weight, padding=1),
        "max_pool2d": lambda: cnnx.max_pool2d(x, 2),
        "relu": lambda: cnnx.relu(x),
        "tanh": lambda: cnnx.tanh(x),
    }
    times = []
    for threads in (1, 2):
        cnnx.set_num_threads(threads)
        times.append(best_times(runs, 0.5))
    for name in runs:
        one, two = (f"{1e6 * best[name]:9.1f}" for best in times)
        print(f"{n},{channels},{size},{size}".rjust(14) + f"  {name:14}{one}{two}")


if __name__ == "__main__":
    main()
