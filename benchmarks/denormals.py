"""What numbers too small to be normal cost: ``python -m benchmarks.denormals [--threads N]``.

Each line is a call's time on arrays of denormal numbers over its time on normal ones. First the
operations, forward and backward; then whole training steps with images, with weights, and with an
optimizer's memory of denormal numbers, each of which a step of the benchmark nets leaves behind in
practice: the moments of a unit that is never active decay to them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from math import prod

import numpy as np

import cnnx
from benchmarks.networks import NETS
from benchmarks.timing import best_times, cpu_name
from cnnx import functional as F

TINY = np.float32(2.0**-135)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(prod(shape)).standard_normal(shape, np.float32)


def operations() -> dict[str, tuple[Callable[..., object], list[np.ndarray]]]:
    """Each operation, and its arrays: the first may become denormal."""
    x = normal(8, 32, 32, 32)
    rows, wide, deep = normal(256, 256), normal(256, 256), normal(8, 128, 16, 16)
    around, taps = normal(128, 128, 3, 3), normal(128, 1, 3, 3)
    found: dict[str, tuple[Callable[..., object], list[np.ndarray]]] = {
        "conv 3x3": (lambda x, w: F.conv2d(x, w, padding=1), [deep, around]),
        "conv 3x3 backward": (
            lambda g, x, w: F.conv2d_backward(g, x, w, padding=1),
            [deep, deep, around],
        ),
        "conv 1x1": (F.conv2d, [deep, normal(128, 128, 1, 1)]),
        "depthwise": (lambda x, w: F.conv2d(x, w, padding=1, groups=128), [deep, taps]),
        "depthwise backward": (
            lambda g, x, w: F.conv2d_backward(g, x, w, padding=1, groups=128),
            [deep, deep, taps],
        ),
        "linear": (F.linear, [rows, wide]),
        "linear backward": (F.linear_backward, [rows, rows, wide]),
        "max_pool2d": (lambda x: F.max_pool2d(x, 2), [x]),
        "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), [x]),
        "avg_pool2d backward": (lambda g: F.avg_pool2d_backward(g, (8, 32, 64, 64), 2), [x]),
        "global_avg_pool2d": (F.global_avg_pool2d, [x]),
        "batch_norm2d": (F.batch_norm2d, [x]),
        "softmax": (F.softmax, [rows]),
    }
    for kind in ("relu", "leaky_relu", "relu6", "sigmoid", "tanh", "gelu", "silu"):
        found[kind] = (getattr(F, kind), [x])
        found[f"{kind} backward"] = (getattr(F, f"{kind}_backward"), [x, x])
    return found


def ratio(runs: dict[str, Callable[[], object]], seconds: float) -> float:
    best = best_times(runs, seconds)
    return best["denormal"] / best["normal"]


def step(name: str, optimizer: str, denormal: str) -> Callable[[], object]:
    """One training step of a net; `denormal` names what is of denormal numbers, if anything."""
    net = NETS[name]
    model, loss = net.build(), cnnx.SoftmaxCrossEntropy()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((net.batch, *net.image), np.float32)
    labels = rng.integers(0, net.classes, net.batch)
    # A step changes nothing, so that all steps are alike.
    move = {
        "SGD": lambda: cnnx.optim.SGD(0.0, momentum=0.9),
        "Adam": lambda: cnnx.optim.Adam(0.0),
    }[optimizer]()
    if denormal == "images":
        x *= TINY
    if denormal == "weights":
        for array in model.params.values():
            array *= TINY

    def run() -> None:
        loss(model.forward(x), labels)
        model.backward(loss.backward())
        if denormal == "memory":
            for array in model.grads.values():
                array[...] = TINY
        move.step(model)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.3, help="for each line")
    args = parser.parse_args()
    cnnx.set_num_threads(args.threads)
    print(f"{cpu_name()}, cnnx {cnnx.__version__}, {args.threads} threads")
    for name, (call, arrays) in operations().items():
        runs = {
            which: partial(call, arrays[0] * factor, *arrays[1:])
            for which, factor in (("normal", np.float32(1)), ("denormal", TINY))
        }
        print(f"{name:28}{ratio(runs, args.seconds):6.2f}")
    for name in ("classroom", "LeNet-5", "ResNet-20"):
        for optimizer in ("SGD", "Adam"):
            for denormal in ("images", "weights", "memory"):
                runs = {
                    "normal": step(name, optimizer, ""),
                    "denormal": step(name, optimizer, denormal),
                }
                print(f"{f'{name}, {optimizer}, {denormal}':28}{ratio(runs, args.seconds):6.2f}")


if __name__ == "__main__":
    main()
