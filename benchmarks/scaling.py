"""How speed grows with threads and with the batch: ``python -m benchmarks.scaling [--net NAME]``.

Images a second of inference and of training, for each batch and number of threads, and the ratio
to PyTorch, the better of its two formats. The checks are those of :mod:`benchmarks.nets`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import cnnx
from benchmarks.nets import inference_runs, measure, training_runs
from benchmarks.networks import NETS
from benchmarks.timing import cpu_name
from cnnx._threads import usable_cpus

BATCHES = (1, 4, 16, 64, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=sorted(NETS), default="ResNet-20")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each number")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    cpus = usable_cpus()
    counts = sorted({*(2**k for k in range(cpus.bit_length())), cpus})
    print(f"{cpu_name()}, {args.net}, torch {torch.__version__}: images/s (ratio to torch)")
    print(f"{'threads':>26}" + "".join(f"{count:>18}" for count in counts))
    results: dict[str, list[dict[str, float]]] = {}
    for what in ("inference", "training"):
        for batch in BATCHES:
            if what == "training" and batch == 1:
                continue  # batch normalisation needs more than one number a channel
            row = results[f"{what}, batch {batch}"] = []
            print(f"{what + ', batch ' + str(batch):>26}", end="", flush=True)
            for count in counts:
                cnnx.set_num_threads(count)
                torch.set_num_threads(count)
                net = NETS[args.net]
                if what == "training":
                    runs = training_runs(net, batch)
                else:
                    runs = inference_runs(net, batch, count)
                    runs.pop("onnxruntime", None)
                cell = measure(runs, args.seconds)
                row.append({"threads": count, "batch": batch, **cell})
                rate = 1e3 * batch / cell["cnnx ms"]
                print(f"{rate:10.0f} ({cell['ratio']:.2f})", end="", flush=True)
            print()
    if args.json:
        args.json.write_text(json.dumps({"net": args.net, "results": results}, indent=1))


if __name__ == "__main__":
    main()
