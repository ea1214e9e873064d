"""Where the layers stand under the machine's roof: ``python -m benchmarks.roofline FIGURES.json``.

The file is what ``python -m benchmarks.layers --json`` wrote. The roof is measured here, with as
many threads: multiply-adds in registers, and a sum of arrays too large for any cache (a C compiler
must be there). A layer's intensity is its operations, counted as the direct algorithm's, by the
bytes of its input, weights and output, each gone past once. Winograd's algorithm does fewer, and
may pierce the roof. Needs ``matplotlib``; writes ``roofline.png``.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np

from benchmarks.problems import CONVS, DESIGN, Conv
from benchmarks.timing import cpu_name

matplotlib.use("Agg")
from matplotlib import pyplot

_ARRAY = 1 << 24  # numbers: 64 MiB, beyond any cache


def compiled() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "peak.so"
        source = Path(__file__).with_name("peak.c")
        compiler = os.environ.get("CC", "cc")
        flags = ["-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
        subprocess.run([compiler, *flags, str(source), "-o", str(target)], check=True)
        library = ctypes.CDLL(str(target))
    library.multiply_adds.restype = ctypes.c_double
    return library


def seconds_on(threads: int, work: Callable[[int], object]) -> float:
    """Shortest of seven runs of the work on that many threads at once."""
    best = math.inf
    for _ in range(7):
        workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = min(best, time.perf_counter() - start)
    return best


def roof(threads: int) -> tuple[float, float]:
    """Operations and bytes a second."""
    library = compiled()
    rounds, operations = 20_000_000, [0.0] * threads

    def multiply(i: int) -> None:
        result = ctypes.c_float()
        operations[i] = library.multiply_adds(ctypes.c_long(rounds), ctypes.byref(result))

    peak = seconds_on(threads, multiply)
    arrays = [[np.ones(_ARRAY // threads, np.float32) for _ in range(3)] for _ in range(threads)]

    def add(i: int) -> None:
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays[i]]
        library.add(*pointers, ctypes.c_size_t(arrays[i][0].size))

    stream = seconds_on(threads, add)
    return sum(operations) / peak, 12 * (_ARRAY // threads) * threads / stream


def intensity(conv: Conv) -> float:
    """Operations for each byte of a forward pass."""
    numbers = conv.n * conv.c * conv.h * conv.w + math.prod(conv.out_shape)
    numbers += conv.f * (conv.c // conv.groups) * math.prod(conv.kernel)
    return conv.flops / (4 * numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", type=Path, help="JSON file of benchmarks.layers")
    parser.add_argument("--output", type=Path, default=Path("roofline.png"))
    args = parser.parse_args()
    figures = json.loads(args.figures.read_text())
    threads = figures["threads"]
    operations, bandwidth = roof(threads)
    print(
        f"{cpu_name()}, {threads} threads: {operations / 1e9:.0f} GFLOP/s, "
        f"{bandwidth / 1e9:.1f} GB/s"
    )
    convs = {str(conv): conv for conv in (*DESIGN, *(c for group in CONVS.values() for c in group))}
    figure, axes = pyplot.subplots(figsize=(9, 6))
    x = np.logspace(-1, 3, 200)
    roofline = np.minimum(operations, bandwidth * x) / 1e9
    axes.loglog(x, roofline, color="black", label="the machine")
    for i, (name, rows) in enumerate(figures["layers"].items()):
        points = [(intensity(convs[layer]), row) for layer, row in rows.items() if layer in convs]
        if not points:
            continue
        at = [p for p, _ in points]
        for library, marker in (("cnnx", "o"), ("torch", "x")):
            speed = [row[f"forward {library} GFLOP/s"] for _, row in points]
            label = name if library == "cnnx" else None
            axes.scatter(at, speed, marker=marker, color=f"C{i}", label=label)
    axes.set_xlabel("operations for each byte of input, weights and output")
    axes.set_ylabel("GFLOP/s of the direct algorithm")
    axes.set_title(f"Forward, {threads} threads: cnnx (o), PyTorch (x)")
    axes.legend(fontsize="small")
    figure.savefig(args.output, dpi=120, bbox_inches="tight")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
