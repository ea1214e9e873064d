"""Layer by layer against PyTorch: ``python -m benchmarks.layers [--threads 1] [--design]``.

For each convolution: forward, and backward with all three gradients. PyTorch is timed with its
tensors in NCHW and in channels_last already, and the better counts; cnnx takes NCHW NumPy arrays
and allocates its results. Both results are compared before any clock starts. A ratio over 1 means
that cnnx is faster. Needs ``torch``.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import cnnx
from benchmarks.problems import CONVS, DESIGN, Conv
from benchmarks.timing import best_times


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()


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


def measure(conv: Conv, seconds: float) -> dict[str, float]:
    row = {}
    for name, runs in zip(("forward", "backward"), candidates(conv), strict=True):
        best = best_times(runs, seconds)
        torch_best = min(best["nchw"], best["nhwc"])
        work = conv.flops * (1 if name == "forward" else 2)
        row[f"{name} ratio"] = torch_best / best["cnnx"]
        row[f"{name} cnnx GFLOP/s"] = work / best["cnnx"] / 1e9
        row[f"{name} torch GFLOP/s"] = work / torch_best / 1e9
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

    classes = {"design": DESIGN} if args.design else CONVS
    results: dict[str, dict[str, dict[str, float]]] = {}
    print(
        f"{cpu_name()}, {args.threads} threads, torch {torch.__version__}, "
        f"cnnx {cnnx.__version__} ({cnnx.config().get('instruction set')})"
    )
    print(
        f"{'layer':36}{'forward':>9}{'cnnx':>7}{'torch':>7}"
        f"   {'backward':>9}{'cnnx':>7}{'torch':>7}"
    )
    for name, convs in classes.items():
        if args.only not in name:
            continue
        rows = results[name] = {}
        print(name)
        for conv in convs:
            row = rows[str(conv)] = measure(conv, args.seconds)
            print(f"  {conv!s:34}", end="")
            for way in ("forward", "backward"):
                print(
                    f"{row[way + ' ratio']:9.2f}{row[way + ' cnnx GFLOP/s']:7.0f}"
                    f"{row[way + ' torch GFLOP/s']:7.0f}   ",
                    end="",
                )
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
