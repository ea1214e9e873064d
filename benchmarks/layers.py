"""Layer by layer against PyTorch: ``python -m benchmarks.layers [--threads 1] [--design]``.

For each convolution: forward, and backward with all three gradients. For each pooling: forward (a
maximum with its indices) and backward, in GB/s of the image and the pooled image together. PyTorch
is timed with its tensors in NCHW and in channels_last already, and the better counts; cnnx takes
NCHW NumPy arrays and allocates its results. Both results are compared before any clock starts. A
ratio over 1 means that cnnx is faster. Needs ``torch``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

import cnnx
from benchmarks.problems import CONVS, DESIGN, POOLS, Conv, Pool
from benchmarks.timing import best_times, cpu_name


def candidates(conv: Conv) -> tuple[dict[str, Callable[[], object]], ...]:
    """Forward and backward runs of one layer, checked against each other."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((conv.n, conv.c, conv.h, conv.w), np.float32)
    weight = rng.standard_normal((conv.f, conv.c // conv.groups, *conv.kernel), np.float32)
    bias = rng.standard_normal(conv.f, np.float32)
    grad = rng.standard_normal(conv.out_shape, np.float32)
    options = (conv.stride, conv.padding, conv.dilation, conv.groups)
    forward: dict[str, Callable[[], object]] = {
        "cnnx": lambda: cnnx.conv2d(x, weight, bias, *options)
    }
    backward: dict[str, Callable[[], object]] = {
        "cnnx": lambda: cnnx.conv2d_backward(grad, x, weight, *options)
    }
    for name, layout in (("nchw", torch.contiguous_format), ("nhwc", torch.channels_last)):
        tx, tw, tg = (torch.from_numpy(a).to(memory_format=layout) for a in (x, weight, grad))
        tb = torch.from_numpy(bias)

        def run_forward(tx=tx, tw=tw, tb=tb):  # type: ignore[no-untyped-def]
            with torch.no_grad():
                return torch.nn.functional.conv2d(tx, tw, tb, *options)

        def run_backward(tx=tx, tw=tw, tg=tg):  # type: ignore[no-untyped-def]
            return torch.ops.aten.convolution_backward(
                tg,
                tx,
                tw,
                [conv.f],
                [conv.stride] * 2,
                list(conv.padding),
                [conv.dilation] * 2,
                False,
                [0, 0],
                conv.groups,
                [True, True, True],
            )

        forward[name], backward[name] = run_forward, run_backward
    ours = (forward["cnnx"](), *backward["cnnx"]())
    theirs = (forward["nchw"](), *backward["nchw"]())
    for mine, other in zip(ours, theirs, strict=True):
        error = np.abs(mine - other.numpy()).max() / np.abs(other.numpy()).max()
        # float32 sums of up to 1e5 terms in different orders: no timing of a wrong result
        assert error < 1e-4, f"{conv}: results differ by {error:.1e}"
    return forward, backward


def pool_candidates(pool: Pool) -> tuple[dict[str, Callable[[], object]], ...]:
    """Forward and backward runs of one pooling, checked against each other."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((pool.n, pool.c, pool.hw, pool.hw), np.float32)
    options = (pool.size, pool.stride, pool.padding)
    aten = torch.ops.aten
    forward: dict[str, Callable[[], object]] = {}
    backward: dict[str, Callable[[], object]] = {}
    if pool.kind == "max":
        forward["cnnx"] = lambda: cnnx.max_pool2d(x, *options, return_indices=True)
        out, indices = cnnx.max_pool2d(x, *options, return_indices=True)
        backward["cnnx"] = lambda: cnnx.max_pool2d_backward(grad, indices, x.shape)
    elif pool.size:
        forward["cnnx"] = lambda: cnnx.avg_pool2d(x, *options)
        out = cnnx.avg_pool2d(x, *options)
        backward["cnnx"] = lambda: cnnx.avg_pool2d_backward(grad, x.shape, *options)
    else:
        forward["cnnx"] = lambda: cnnx.global_avg_pool2d(x)
        out = cnnx.global_avg_pool2d(x)
        backward["cnnx"] = lambda: cnnx.global_avg_pool2d_backward(grad, x.shape)
    grad = rng.standard_normal(out.shape, np.float32)
    for name, layout in (("nchw", torch.contiguous_format), ("nhwc", torch.channels_last)):
        tx = torch.from_numpy(x).to(memory_format=layout)
        tg = torch.from_numpy(grad.reshape(*grad.shape[:2], *grad.shape[2:] or (1, 1)))
        tg = tg.to(memory_format=layout)
        window, step, border = ([option] * 2 for option in options)
        if pool.kind == "max":
            forward[name] = partial(
                aten.max_pool2d_with_indices, tx, window, step, border, [1, 1], False
            )
            backward[name] = partial(
                aten.max_pool2d_with_indices_backward,
                *(tg, tx, window, step, border, [1, 1], False, forward[name]()[1]),
            )
        elif pool.size:
            more = (window, step, border, False, True, None)
            forward[name] = partial(aten.avg_pool2d, tx, *more)
            backward[name] = partial(aten.avg_pool2d_backward, tg, tx, *more)
        else:
            forward[name] = partial(aten._adaptive_avg_pool2d, tx, [1, 1])
            backward[name] = partial(aten._adaptive_avg_pool2d_backward, tg, tx)
    for runs in (forward, backward):
        mine, other = runs["cnnx"](), runs["nchw"]()
        if isinstance(mine, tuple):
            assert (mine[1] == other[1].numpy()).all(), f"{pool}: indices differ"
            mine, other = mine[0], other[0]
        # float32 averages of up to 49 terms in different orders
        error = np.abs(mine - other.numpy().reshape(mine.shape)).max()
        assert error < 1e-5, f"{pool}: results differ by {error:.1e}"
    return forward, backward


def measure(problem: Conv | Pool, seconds: float) -> dict[str, float]:
    row = {}
    unit, *amounts = problem.rate
    both = candidates(problem) if isinstance(problem, Conv) else pool_candidates(problem)
    for name, runs, amount in zip(("forward", "backward"), both, amounts, strict=True):
        best = best_times(runs, seconds)
        torch_best = min(best["nchw"], best["nhwc"])
        row[f"{name} ratio"] = torch_best / best["cnnx"]
        row[f"{name} cnnx {unit}"] = amount / best["cnnx"]
        row[f"{name} torch {unit}"] = amount / torch_best
    return row


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each layer and direction")
    parser.add_argument("--design", action="store_true", help="the design's nine layers only")
    parser.add_argument("--only", default="", help="classes whose name contains this")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    cnnx.set_num_threads(args.threads)
    torch.set_num_threads(args.threads)

    classes: dict[str, Sequence[Conv | Pool]]
    classes = {"design": DESIGN} if args.design else {**CONVS, "pooling": POOLS}
    results: dict[str, dict[str, dict[str, float]]] = {}
    print(
        f"{cpu_name()}, {args.threads} threads, torch {torch.__version__}, "
        f"cnnx {cnnx.__version__} ({cnnx.config().get('instruction set')})"
    )
    print(
        f"{'layer':36}{'forward':>9}{'cnnx':>7}{'torch':>7}"
        f"   {'backward':>9}{'cnnx':>7}{'torch':>7}"
    )
    for name, problems in classes.items():
        if args.only not in name:
            continue
        rows = results[name] = {}
        print(name)
        for problem in problems:
            row = rows[str(problem)] = measure(problem, args.seconds)
            print(f"  {problem!s:34}", end="")
            for way in ("forward", "backward"):
                ratio, ours, theirs = (row[key] for key in row if key.startswith(way))
                print(f"{ratio:9.2f}{ours:7.0f}{theirs:7.0f}   ", end="")
            print(flush=True)
        summarise(name, list(rows.values()))
    summarise("all", [row for rows in results.values() for row in rows.values()])
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "layers": results}, indent=1))


def summarise(name: str, rows: list[dict[str, float]]) -> None:
    for way in ("forward", "backward"):
        ratios = [row[f"{way} ratio"] for row in rows]
        print(
            f"  {name}, {way}: geometric mean {geometric_mean(ratios):.2f}, worst {min(ratios):.2f}"
        )


if __name__ == "__main__":
    main()
