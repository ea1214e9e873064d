"""Whole nets against PyTorch and ONNX Runtime: ``python -m benchmarks.nets [--threads 2]``.

A training step is forward, loss, backward and SGD with momentum; inference is the forward of the
net made ready for it (``freeze()``, ``eval()``). PyTorch runs in NCHW and in channels_last, and the
better counts; "converted" is PyTorch's net with cnnx's kernels in it, by `cnnx.torch.convert`.
Losses, weights after a step, and outputs are compared before any clock starts. A
ratio over 1 means that cnnx is faster. ONNX Runtime joins the inference where ``onnxruntime`` and
``onnx``, which writes its file, are installed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cnnx.torch
from benchmarks.networks import NETS, Net, to_onnx, to_torch
from benchmarks.timing import best_times, cpu_name

try:
    import onnx  # noqa: F401  (what PyTorch's exporter needs)
    import onnxruntime
except ImportError:
    onnxruntime = None

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
LR, MOMENTUM = 1e-3, 0.9


def batch_of(net: Net, n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, *net.image), np.float32), rng.integers(0, net.classes, n)


def cnnx_step(model: Any, lr: float = LR) -> Callable[[np.ndarray, np.ndarray], float]:
    """One training step: takes images and labels, returns the loss."""
    loss, optimizer = cnnx.SoftmaxCrossEntropy(), cnnx.SGD(lr, MOMENTUM)
    model.needs_input_grad = False

    def step(x: np.ndarray, y: np.ndarray) -> float:
        value = loss(model(x), y)
        model.backward(loss.backward())
        optimizer.step(model)
        return value

    return step


def torch_step(
    model: torch.nn.Module, lr: float = LR
) -> Callable[[torch.Tensor, torch.Tensor], float]:
    """The same in PyTorch."""
    optimizer = torch.optim.SGD(model.parameters(), lr, MOMENTUM)

    def step(x: torch.Tensor, y: torch.Tensor) -> float:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(model(x), y)
        value.backward()
        optimizer.step()
        return float(value.detach())

    return step


def training_runs(net: Net, n: int) -> dict[str, Callable[[], object]]:
    model = net.build()
    twins = {name: to_torch(model).to(memory_format=layout) for name, layout in LAYOUTS.items()}
    twins["converted"] = cnnx.torch.convert(to_torch(model))
    x, y = batch_of(net, n)
    runs: dict[str, Callable[[], object]] = {"cnnx": partial(cnnx_step(model), x, y)}
    for name in twins:
        layout = LAYOUTS.get(name, torch.contiguous_format)
        tx = torch.from_numpy(x).contiguous(memory_format=layout)
        runs[name] = partial(torch_step(twins[name]), tx, torch.from_numpy(y))
    before = {name: param.copy() for name, param in model.params.items()}
    mine, *theirs = (run() for run in runs.values())
    # float32 through up to 53 layers, which sum in different orders
    assert np.allclose(mine, theirs, rtol=1e-3), f"losses are {mine} and {theirs}"
    others = zip(twins["nchw"].parameters(), twins["converted"].parameters(), strict=True)
    for (name, param), both in zip(model.params.items(), others, strict=True):
        moved = np.linalg.norm(param - before[name])
        arrays = [other.detach().numpy() for other in both]
        error = max(np.linalg.norm(param - (a.T if a.ndim == 2 else a)) for a in arrays)
        # A ReLU whose input is all but zero may go either way, and with it one image's gradient.
        # A bias that a normalisation takes off again has no gradient: both move by roundings alone.
        assert error < 0.05 * moved + 1e-6, (
            f"the steps of {name}, {moved:.1e}, differ by {error:.1e}"
        )
    return runs


def inference_runs(net: Net, n: int, threads: int) -> dict[str, Callable[[], object]]:
    model = net.build().freeze()
    x, _ = batch_of(net, n)
    runs: dict[str, Callable[[], object]] = {"cnnx": lambda: model(x)}
    for name, layout in LAYOUTS.items():
        twin = to_torch(model).eval().to(memory_format=layout)
        tx = torch.from_numpy(x).contiguous(memory_format=layout)

        def run(twin=twin, tx=tx):  # type: ignore[no-untyped-def]
            with torch.inference_mode():
                return twin(tx).numpy()

        runs[name] = run
    if onnxruntime is not None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(to_onnx(to_torch(model).eval(), x), options)
        feed = {session.get_inputs()[0].name: x}
        runs["onnxruntime"] = lambda: session.run(None, feed)[0]
    mine, *theirs = (run() for run in runs.values())
    for other in theirs:
        error = np.abs(mine - other).max() / np.abs(other).max()
        assert error < 1e-3, f"outputs differ by {error:.1e}"  # as for the losses
    return runs


def measure(runs: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    # Turns of three runs and 30 ms: by then the threads of the one before have stopped to wait for
    # work, and its data has left the caches.
    best = best_times(runs, seconds, turn=0.03)
    row = {"cnnx ms": 1e3 * best["cnnx"], "torch ms": 1e3 * min(best["nchw"], best["nhwc"])}
    row["ratio"] = row["torch ms"] / row["cnnx ms"]
    if "converted" in best:
        row["converted ms"] = 1e3 * best["converted"]
        row["converted ratio"] = row["torch ms"] / row["converted ms"]
    if "onnxruntime" in best:
        row["onnxruntime ms"] = 1e3 * best["onnxruntime"]
        row["onnxruntime ratio"] = row["onnxruntime ms"] / row["cnnx ms"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each line")
    parser.add_argument("--only", default="", help="nets whose name contains this")
    parser.add_argument("--what", choices=("all", "training", "inference"), default="all")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    cnnx.set_num_threads(args.threads)
    torch.set_num_threads(args.threads)
    rival = "without ONNX Runtime (needs onnxruntime and onnx)"
    if onnxruntime is not None:
        rival = f"onnxruntime {onnxruntime.__version__}"
    print(
        f"{cpu_name()}, {args.threads} threads, torch {torch.__version__}, {rival}, "
        f"cnnx {cnnx.__version__} ({cnnx.config().get('instruction set')})"
    )
    print(f"{'':34}{'cnnx ms':>9}{'torch ms':>9}{'ratio':>7}{'converted / ort':>16}{'ratio':>7}")
    results: dict[str, dict[str, float]] = {}
    for name, net in NETS.items():
        if args.only not in name:
            continue
        todo: list[tuple[str, Callable[[], dict[str, Callable[[], object]]]]] = []
        if args.what != "inference":
            todo.append(
                (
                    f"{name}, training, batch {net.batch}",
                    lambda net=net: training_runs(net, net.batch),
                )
            )
        if args.what != "training":
            for n in (net.batch, 1):
                run = lambda net=net, n=n: inference_runs(net, n, args.threads)  # noqa: E731
                todo.append((f"{name}, inference, batch {n}", run))
        for title, prepare in todo:
            row = results[title] = measure(prepare(), args.seconds)
            print(f"{title:34}", end="")
            for key, form in (
                ("cnnx ms", "9.2f"),
                ("torch ms", "9.2f"),
                ("ratio", "7.2f"),
                ("converted ms", "16.2f"),  # of training; onnxruntime only infers
                ("converted ratio", "7.2f"),
                ("onnxruntime ms", "16.2f"),
                ("onnxruntime ratio", "7.2f"),
            ):
                print(format(row[key], form) if key in row else "", end="")
            print(flush=True)
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "nets": results}, indent=1))


if __name__ == "__main__":
    main()
