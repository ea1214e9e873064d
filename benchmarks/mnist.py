"""A real training: ``python -m benchmarks.mnist --data FILE.npz [--threads 2]``.

The classroom net learns handwritten digits for two epochs, in cnnx and in PyTorch (NCHW, its faster
format for one channel), from the same weights, in the same order, with SGD and momentum at batch
64. The file has the arrays that :func:`cnnx.data.load` reads: x_train, y_train, x_test and y_test.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

import cnnx
from benchmarks.nets import cnnx_step, torch_step
from benchmarks.networks import NETS, to_torch
from benchmarks.timing import cpu_name
from cnnx.data import load
from cnnx.training import evaluate

EPOCHS, BATCH, LR = 2, 64, 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="npz file of 28x28 images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    cnnx.set_num_threads(args.threads)
    torch.set_num_threads(args.threads)
    data = load(args.data)
    model = NETS["classroom"].build()
    twin = to_torch(model)
    steps = {"cnnx": cnnx_step(model, LR), "torch": torch_step(twin, LR)}
    print(f"{cpu_name()}, {args.threads} threads, {len(data.x_train):,} images, batch {BATCH}")
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {"cnnx": [], "torch": []}
    for epoch in range(1, EPOCHS + 1):
        order = rng.permutation(len(data.x_train))
        for name, step in steps.items():
            started = time.perf_counter()
            for first in range(0, len(order), BATCH):
                chosen = order[first : first + BATCH]
                x, y = data.x_train[chosen], data.y_train[chosen]
                if name == "cnnx":
                    step(x, y)
                else:
                    step(torch.from_numpy(x), torch.from_numpy(y))
            seconds[name].append(time.perf_counter() - started)
        times = ", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items())
        print(f"epoch {epoch}: {times}", flush=True)
    _, accuracy = evaluate(model, data.x_test, data.y_test)
    with torch.inference_mode():
        guesses = twin.eval()(torch.from_numpy(data.x_test)).numpy().argmax(axis=1)
    result = {
        "threads": args.threads,
        "cnnx s": min(seconds["cnnx"]),
        "torch s": min(seconds["torch"]),
        "ratio": min(seconds["torch"]) / min(seconds["cnnx"]),
        "cnnx accuracy": accuracy,
        "torch accuracy": float((guesses == data.y_test).mean()),
    }
    print(", ".join(f"{name} {value:.4g}" for name, value in result.items()))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
