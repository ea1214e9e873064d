"""Where the choice of algorithm was not the best: ``python -m benchmarks.choices [--threads 1]``.

Each layer of the table, and some between them, runs by the algorithm that its shape chooses and by
every other that accepts it, in turns: the forward pass, the gradient of the input and that of the
weights. A line names the choice and the fastest, and is marked where the choice took more than
``--margin`` times as long. Needs nothing beside cnnx.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np

import cnnx
from benchmarks.problems import CONVS, Conv
from benchmarks.timing import best_times, cpu_name
from cnnx import _kernels

# Between the classes of the table, where a rule of the choice could be wrong and no figure show it.
BETWEEN = [
    Conv(n, c, hw, hw, f, (k, k), s, (k // 2, k // 2))
    for n in (1, 16)
    for c, f in ((3, 8), (4, 4), (6, 6), (8, 8), (12, 24), (48, 48))
    for hw in (8, 30)
    for k, s in ((1, 1), (3, 1), (3, 2), (5, 1))
]


def ways(conv: Conv) -> dict[str, Callable[[], object]]:
    """The three passes of a layer."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((conv.n, conv.c, conv.h, conv.w), np.float32)
    weight = rng.standard_normal((conv.f, conv.c // conv.groups, *conv.kernel), np.float32)
    grad = rng.standard_normal(conv.out_shape, np.float32)
    options = (conv.stride, conv.padding, conv.dilation, conv.groups)
    backward = partial(cnnx.conv2d_backward, grad, x, weight, *options)
    return {
        "forward": partial(cnnx.conv2d, x, weight, None, *options),
        "grad_x": partial(backward, need=(True, False, False)),
        "grad_weight": partial(backward, need=(False, True, False)),
    }


def by(name: str, run: Callable[[], object]) -> None:
    _kernels.use_algorithm(name)
    try:
        run()
    finally:
        _kernels.use_algorithm("by shape")


def compare(run: Callable[[], object], seconds: float) -> tuple[str, dict[str, float]]:
    """The choice, and the time of each algorithm that accepts the problem."""
    by("by shape", run)
    choice = _kernels.last_algorithm()
    accepted = {}
    for name in _kernels.ALGORITHMS[1:]:
        by(name, run)
        if _kernels.last_algorithm() == name:
            accepted[name] = partial(by, name, run)
    return choice, best_times(accepted, seconds, turn=seconds / 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.2, help="for each layer and pass")
    parser.add_argument("--margin", type=float, default=1.1, help="mark choices slower than this")
    parser.add_argument("--only", default="", help="classes whose name contains this")
    args = parser.parse_args()
    cnnx.set_num_threads(args.threads)
    print(f"{cpu_name()}, {args.threads} threads, {_kernels.isa()}; times in microseconds")
    chosen = wrong = 0
    for name, problems in {**CONVS, "between": BETWEEN}.items():
        if args.only not in name:
            continue
        print(name)
        for conv in problems:
            for way, run in ways(conv).items():
                choice, times = compare(run, args.seconds)
                slower = times[choice] / min(times.values())
                chosen, wrong = chosen + 1, wrong + (slower > args.margin)
                mark = f"  <- {slower:.2f} of the best" if slower > args.margin else ""
                figures = ", ".join(f"{n} {t * 1e6:.0f}" for n, t in times.items())
                print(f"  {conv!s:28}{way:12}{choice:10} of {figures}{mark}", flush=True)
    print(f"{wrong} of {chosen} choices took more than {args.margin} times as long as the best")


if __name__ == "__main__":
    main()
