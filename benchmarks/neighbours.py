"""What cnnx and another library with threads cost each other: ``python -m benchmarks.neighbours``.

Both take turns in one process, as in a pipeline. A library's time is given alone, while no other
threads are awake, and in turns as a ratio to that: beside the other on one thread, which shares
caches and memory and no more, and beside the other on as many threads, which may still spin when
the next call starts. What the threads cost each other lies between the two. A ratio is that of the
lower quartiles, which other processes touch little, then that of the fastest calls.

A line is a process of its own, once with either library imported first: that one loads OpenMP.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

# The small one is done in 0.1 ms, while threads still spin; the large one takes milliseconds.
SHAPES = {"small": ((8, 16, 28, 28), 16), "large": ((8, 32, 56, 56), 64)}
CALLS = 5
ASLEEP = 0.03  # seconds after which no threads spin any more
IMPORTS = {
    "numpy": "threadpoolctl",
    "torch": "torch",
    "onnxruntime": "onnxruntime, onnx",
    "sklearn": "sklearn.cluster, threadpoolctl",
    "cv2": "cv2",
}
Run = Callable[[], object]
SetThreads = Callable[[int], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=IMPORTS, nargs="+", default=list(IMPORTS))
    parser.add_argument("--seconds", type=float, default=2.0, help="for each line")
    parser.add_argument("--threads", type=int, default=2, help="of each library")
    parser.add_argument("--line", nargs=3, help=argparse.SUPPRESS)  # name, who is first, size
    args = parser.parse_args()
    if args.line:
        print(line(*args.line, args.threads, args.seconds))
        return
    print(f"{'':32}{'ms':>8}{'beside 1 thread':>16}{'beside ' + str(args.threads):>16}")
    for name, size in itertools.product(args.only, SHAPES):
        if not all(importlib.util.find_spec(m.split(".")[0]) for m in IMPORTS[name].split(", ")):
            print(f"{name} is not installed")
            continue
        for first in ("cnnx", name):
            options = ["--seconds", str(args.seconds), "--threads", str(args.threads)]
            options += ["--line", name, first, size]
            child = [sys.executable, "-m", "benchmarks.neighbours", *options]
            print(subprocess.run(child, check=True, capture_output=True, text=True).stdout, end="")


def line(name: str, first: str, size: str, threads: int, seconds: float) -> str:
    """The figures of both, in a process that has imported neither of the two yet."""
    imports = ["cnnx", IMPORTS[name]] if first == "cnnx" else [IMPORTS[name], "cnnx"]
    for module in ", ".join(imports).split(", "):
        importlib.import_module(module)
    import numpy as np

    import cnnx

    rng = np.random.default_rng(0)
    shape, filters = SHAPES[size]
    x = rng.standard_normal(shape, np.float32)
    weight = rng.standard_normal((filters, shape[1], 3, 3), np.float32)
    run, set_threads = NEIGHBOURS[name](x, weight)
    runs: dict[str, Run] = {"cnnx": lambda: cnnx.conv2d(x, weight, padding=1), name: run}
    times = measure(runs, {"cnnx": cnnx.set_num_threads, name: set_threads}, threads, seconds)
    text = ""
    for who in runs:
        alone = times[who, "alone"]
        text += f"{name + ', ' + size + ', ' + first + ' first':24}{who:>12}{1e3 * min(alone):8.3f}"
        for how in ("one", "turns"):
            quartile, fastest = (f(times[who, how]) / f(alone) for f in (lower_quartile, min))
            text += f"{quartile:10.2f}{fastest:6.2f}"
        text += "\n"
    return text[:-1]


def lower_quartile(values: list[float]) -> float:
    return statistics.quantiles(values, n=4)[0]


def measure(
    runs: dict[str, Run],
    set_threads: dict[str, Callable[[int], object]],
    threads: int,
    seconds: float,
) -> dict[tuple[str, str], list[float]]:
    """Seconds of every call: alone, beside the other on one thread ("one"), and in turns."""
    us, other = runs
    # who runs, whose calls count, who has one thread
    parts = [([us], [us], "alone", ""), ([other], [other], "alone", "")]
    parts += [([us, other], [us], "one", other), ([us, other], [other], "one", us)]
    parts += [([us, other], [us, other], "turns", "")]
    times: dict[tuple[str, str], list[float]] = {}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for turn, counted, how, single in parts:
            for who in runs:
                set_threads[who](1 if who == single else threads)
            time.sleep(ASLEEP)
            for call, who in itertools.product(range(CALLS + 1), turn):
                begin = time.perf_counter()
                runs[who]()
                if call and who in counted:  # the first wakes the threads
                    times.setdefault((who, how), []).append(time.perf_counter() - begin)
    return times


# ------------------------------------------------- the neighbours: a call, and its threads


def numpy(x: Any, weight: Any) -> tuple[Run, SetThreads]:
    import threadpoolctl

    square = x.reshape(-1)[: 300 * 300].reshape(300, 300).copy()
    blas = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
    return lambda: square @ square, lambda n: [library.set_num_threads(n) for library in blas]


def torch(x: Any, weight: Any) -> tuple[Run, SetThreads]:
    import torch

    tensors = torch.from_numpy(x), torch.from_numpy(weight)
    return lambda: torch.nn.functional.conv2d(*tensors, padding=1), torch.set_num_threads


def onnxruntime(x: Any, weight: Any) -> tuple[Run, SetThreads]:
    """A session of one convolution. Its number of threads is for life, so there is one for each."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node("Conv", ["x", "weight"], ["y"], pads=[1, 1, 1, 1])
    given, got = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    weights = [numpy_helper.from_array(weight, "weight")]
    graph = helper.make_graph([node], "conv", [given], [got], weights)
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
    sessions = {}
    chosen = 1

    def set_threads(n: int) -> None:
        nonlocal chosen
        chosen = n
        if n not in sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = n
            sessions[n] = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])

    return lambda: sessions[chosen].run(None, {"x": x}), set_threads


def sklearn(x: Any, weight: Any) -> tuple[Run, SetThreads]:
    import sklearn.cluster
    import threadpoolctl

    means = sklearn.cluster.KMeans(8, n_init=1, max_iter=5, random_state=0)
    libraries = threadpoolctl.ThreadpoolController().lib_controllers
    own = [library for library in libraries if "scikit_learn" in library.filepath]
    return lambda: means.fit(x.reshape(-1, 8)), lambda n: [lib.set_num_threads(n) for lib in own]


def cv2(x: Any, weight: Any) -> tuple[Run, SetThreads]:
    import cv2

    image = x.reshape(-1, 28, 1).repeat(3, axis=2)
    return lambda: cv2.GaussianBlur(image, (5, 5), 1), cv2.setNumThreads


NEIGHBOURS = {f.__name__: f for f in (numpy, torch, onnxruntime, sklearn, cv2)}

if __name__ == "__main__":
    main()
