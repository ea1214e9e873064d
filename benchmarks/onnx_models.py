"""ONNX models against ONNX Runtime: ``python -m benchmarks.onnx_models [--threads 2] [files]``.

Without files, the light models that the `onnx` package ships run, which have the nodes of known
nets. Outputs are compared before any clock starts. A ratio below 1 means that cnnx is faster; the
last line is the geometric mean.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

import cnnx
from benchmarks.timing import best_times, cpu_name

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


def input_of(graph: Any, size: tuple[int, int]) -> np.ndarray:
    """Random images for the only input; `size` is what a free height and width are set to."""
    (shape,) = graph.input_shapes.values()
    free = (1, 3, *size)
    sizes = [free[axis] if given is None else given for axis, given in enumerate(shape)]
    return np.random.default_rng(0).random(sizes, np.float32)


def measure(path: Path, size: tuple[int, int], threads: int, seconds: float) -> dict[str, float]:
    graph = cnnx.onnx.load(path).freeze()
    x = input_of(graph, size)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # without its warnings about old files
    session = onnxruntime.InferenceSession(path, options)
    feed = {session.get_inputs()[0].name: x}
    mine, other = graph(x), session.run(None, feed)
    for one, two in zip(mine if isinstance(mine, tuple) else (mine,), other, strict=True):
        error = np.abs(one - two).max() / max(1.0, np.abs(two).max())
        assert error < 1e-4, f"{path.name}: outputs differ by {error:.1e}"
    runs = {"cnnx": lambda: graph(x), "onnxruntime": lambda: session.run(None, feed)}
    return best_times(runs, seconds, turn=0.03)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="models of one input of images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each model")
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 320), help="where it is free")
    args = parser.parse_args()
    cnnx.set_num_threads(args.threads)
    print(
        f"{cpu_name()}, {args.threads} threads, onnxruntime {onnxruntime.__version__}, "
        f"cnnx {cnnx.__version__} ({cnnx.config().get('instruction set')})"
    )
    print(f"{'batch 1':36}{'cnnx ms':>10}{'ort ms':>10}{'ratio':>8}")
    ratios = []
    for path in args.files or sorted(LIGHT.glob("*.onnx")):
        if args.only not in path.name:
            continue
        best = measure(path, tuple(args.size), args.threads, args.seconds)
        ratios.append(best["cnnx"] / best["onnxruntime"])
        print(
            f"{path.stem:36}{1e3 * best['cnnx']:10.2f}{1e3 * best['onnxruntime']:10.2f}"
            f"{ratios[-1]:8.2f}",
            flush=True,
        )
    if ratios:
        print(f"{'geometric mean':36}{'':20}{np.exp(np.mean(np.log(ratios))):8.2f}")


if __name__ == "__main__":
    main()
