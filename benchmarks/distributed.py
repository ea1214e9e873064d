"""How training speed grows with ranks: ``python -m benchmarks.distributed [--net NAME]``.

Starts itself under mpiexec for each number of ranks and threads. A step is what
:class:`cnnx.distributed.DataParallel` does for a batch, and SGD with momentum. Three things take
turns, and of each the fastest round counts, a round being as slow as its slowest rank:

- the step;
- the same without a message, which is what the shards cost;
- the gradients' messages alone, with nothing to hide behind.

"seen" is what the step takes over the second, as a part of the third: what overlap did not hide.
Weak scaling gives every rank a batch of its own size, strong scaling divides one batch. On one
machine a message is a copy, made by the very cores that compute, and copying cannot be hidden;
``--gigabits X`` lets each message arrive no sooner than over a network of that speed, which can.
With the net "sleepers", whose layers sleep rather than compute, the overlap can be measured on a
busy machine. ``--ping`` measures instead what the model in docs/scaling.md needs: the cost of a
message by its size.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import cnnx
from benchmarks.nets import cnnx_step
from benchmarks.networks import NETS, Net
from benchmarks.timing import cpu_name
from cnnx._threads import usable_cpus
from cnnx.distributed import DataParallel
from cnnx.distributed._communicator import Communicator, Pending, world

RUNS = ((1, 1), (1, 2), (2, 1), (4, 1))  # ranks and threads of each
LATENCY = 5e-6  # seconds, of the network that --gigabits describes
WAYS = {
    "4 shards": {"shards": 4},
    "1 shard a rank": {"shards": None},
    "fast": {"reduction": "fast"},
}


class Sleeper(cnnx.Layer):
    """A layer of 1.25 MB of gradients that sleeps for 10 ms in backward, and as long in forward."""

    def __init__(self) -> None:
        self.params["weight"] = np.zeros(312_500, np.float32)

    def forward(self, x: Any) -> Any:
        time.sleep(0.01)
        return x

    def backward(self, grad_out: Any) -> Any:
        time.sleep(0.01)
        self.grads["weight"] = self.params["weight"]
        return grad_out


def sleepers() -> cnnx.Sequential:
    return cnnx.Sequential(*(Sleeper() for _ in range(8)), cnnx.Flatten(), cnnx.Dense(4, 10))


ALL = {**NETS, "sleepers": Net(sleepers, 4, (1, 2, 2))}


class Arrived:
    """A message that nobody sent."""

    def test(self) -> bool:
        return True

    def wait(self) -> None:
        pass


class Mute:
    """A communicator of as many ranks that sends nothing."""

    def __init__(self, ranks: Communicator) -> None:
        self.rank, self.size = ranks.rank, ranks.size
        self.gather, self.abort = ranks.gather, ranks.abort

    def exchange(self, send: Any, receive: Any, partner: int, tag: int) -> Arrived:
        receive[...] = 0
        return Arrived()

    def allreduce(self, array: Any) -> Arrived:
        return Arrived()


class Network:
    """A communicator whose messages also take the time of a link, one after the other."""

    def __init__(self, ranks: Communicator, gigabits: float) -> None:
        self._ranks, self._seconds_a_byte, self._free = ranks, 8e-9 / gigabits, 0.0
        self.rank, self.size = ranks.rank, ranks.size
        self.gather, self.abort = ranks.gather, ranks.abort

    def exchange(self, send: Any, receive: Any, partner: int, tag: int) -> Late:
        return self._late(send.nbytes, self._ranks.exchange(send, receive, partner, tag))

    def allreduce(self, array: Any) -> Late:
        sent = round(2 * (1 - 1 / self.size) * array.nbytes)
        return self._late(sent, self._ranks.allreduce(array))

    def _late(self, sent: int, pending: Pending) -> Late:
        self._free = max(self._free, time.perf_counter()) + sent * self._seconds_a_byte
        return Late(pending, self._free + LATENCY)


class Late:
    """A message that arrives at a given time, or later."""

    def __init__(self, pending: Pending, due: float) -> None:
        self._pending, self._due = pending, due

    def test(self) -> bool:
        return self._pending.test() and time.perf_counter() >= self._due

    def wait(self) -> None:
        self._pending.wait()
        while time.perf_counter() < self._due:
            pass


def step_of(
    net: str, batch: int, ranks: Any, options: dict[str, Any]
) -> tuple[Callable[[], None], Callable[[], None]]:
    """A training step, and its messages alone."""
    model = ALL[net].build()
    model.needs_input_grad = False
    options = dict(options)
    if options.get("shards", 0) is None:
        options["shards"] = ranks.size
    parallel = DataParallel(cnnx.SGD(1e-3, momentum=0.9), ranks, **options)
    rng, loss = np.random.default_rng(0), cnnx.SoftmaxCrossEntropy()
    share = batch // parallel.shards
    own = range(parallel.mine.start, parallel.mine.stop)
    x = [rng.standard_normal((share, *ALL[net].image), np.float32) for _ in own]
    y = [rng.integers(0, ALL[net].classes, share) for _ in own]

    def step() -> None:
        parallel.totals(model, loss, zip(x, y, strict=True), batch, stop=False)
        parallel.step(model)

    step()

    def messages() -> None:
        buckets = parallel._worker._buckets  # type: ignore[union-attr]
        buckets.begin()
        for slot in buckets._slots.values():
            slot.came = buckets._shards
        for bucket in buckets._buckets:
            bucket.missing = 0
        dict(buckets.finish())

    return step, messages


def measured(ranks: Communicator, net: str, batch: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of each way to take a step, on all ranks."""
    candidates: dict[str, Callable[[], object]] = {}
    if ranks.size == 1:  # what all of this costs
        rng = np.random.default_rng(0)
        x = rng.standard_normal((batch, *ALL[net].image), np.float32)
        y = rng.integers(0, ALL[net].classes, batch)
        candidates["plain"] = partial(cnnx_step(ALL[net].build()), x, y)
    for way, options in WAYS.items():
        if way == "4 shards" and ranks.size == 4:
            continue  # that is one a rank
        step, messages = step_of(net, batch, ranks, options)
        candidates[way] = step
        candidates[f"{way}, mute"] = step_of(net, batch, Mute(ranks), options)[0]
        candidates[f"{way}, messages"] = messages
    best = dict.fromkeys(candidates, float("inf"))
    for _ in rounds(ranks, seconds):
        for name, run in candidates.items():
            run()  # once for the caches
            ranks.gather(None)
            started = time.perf_counter()
            run()
            slowest = max(ranks.gather(time.perf_counter() - started))
            best[name] = min(best[name], slowest)
    return {name: 1e3 * value for name, value in best.items()}


def rounds(ranks: Communicator, seconds: float) -> Iterator[None]:
    """At least three, until rank 0 says that the time is over."""
    start, count = time.perf_counter(), 0
    while count < 3 or ranks.gather(time.perf_counter() - start < seconds)[0]:
        count += 1
        yield


def ping(ranks: Communicator) -> dict[int, float]:
    """Microseconds of an exchange between two ranks, by bytes each way."""
    costs = {}
    for size in (8, 1 << 10, 1 << 14, 1 << 17, 1 << 20, 1 << 23):
        send, receive = np.zeros(size // 8), np.zeros(size // 8)
        best = float("inf")
        for _ in range(200 if size < 1 << 20 else 30):
            ranks.gather(None)
            started = time.perf_counter()
            ranks.exchange(send, receive, 1 - ranks.rank, 0).wait()
            best = min(best, max(ranks.gather(time.perf_counter() - started)))
        costs[size] = 1e6 * best
    return costs


def worker(args: argparse.Namespace) -> None:
    """What one rank does; rank 0 prints the figures."""
    cnnx.set_num_threads(args.threads)
    ranks = world()
    figures: Any
    if args.ping:
        figures = ping(ranks)
    else:
        figures = {}
        for what, batch in (("strong", args.batch), ("weak", args.batch * ranks.size)):
            if what == "strong" or ranks.size > 1:
                way = Network(ranks, args.gigabits) if args.gigabits else ranks
                figures[what] = measured(way, args.net, batch, args.seconds)
    if ranks.rank == 0:
        print(json.dumps(figures))


def started(ranks: int, *options: str) -> Any:
    """The figures of this file's worker on so many ranks."""
    beside = Path(sys.executable).parent / "mpiexec"
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if mpiexec is None:
        raise SystemExit("there is no mpiexec: pip install mpich")
    command = [mpiexec, "-n", str(ranks), sys.executable, "-m", __spec__.name, "--worker", *options]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=sorted(ALL), default="ResNet-20")
    parser.add_argument(
        "--batch", type=int, default=128, help="images; weak scaling: for each rank"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="for each table")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--gigabits", type=float, default=0, help="a second, of such a network")
    parser.add_argument("--ping", action="store_true", help="measure messages instead")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    results: dict[str, Any] = {}
    if args.ping:
        results = started(2, "--ping")
        for size, cost in results.items():
            print(f"{size:>9} bytes {cost:9.1f} us")
    else:
        print(f"{cpu_name()}, {usable_cpus()} CPUs, {args.net}, batch {args.batch}")
        print(
            f"{'':34}{'images/s':>9}{'step ms':>9}{'shards ms':>11}{'messages ms':>13}{'seen':>6}"
        )
        options = ("--net", args.net, "--batch", str(args.batch), "--seconds", str(args.seconds))
        options += ("--gigabits", str(args.gigabits))
        for ranks, threads in RUNS[2:] if args.gigabits else RUNS:
            figures = started(ranks, *options, "--threads", str(threads))
            results[f"{ranks} ranks, {threads} threads"] = figures
            for what, times in figures.items():
                batch = args.batch * (ranks if what == "weak" else 1)
                for way in ("plain", *WAYS):
                    if way in times and (ranks > 1 or way != "fast"):
                        head = f"{ranks} x {threads}, {what}, {way}"
                        print(f"{head:34}" + row(batch, times, way), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


def row(batch: int, times: dict[str, float], way: str) -> str:
    step = times[way]
    figures = f"{1e3 * batch / step:9.0f}{step:9.2f}"
    if "plain" in times:  # one rank, no messages
        return figures
    mute, messages = times[f"{way}, mute"], times[f"{way}, messages"]
    figures += f"{mute:11.2f}{messages:13.2f}"
    # Where messages are a small part of the step, the difference of two steps is noise.
    return figures if messages < step / 20 else figures + f"{(step - mute) / messages:6.0%}"


if __name__ == "__main__":
    main()
