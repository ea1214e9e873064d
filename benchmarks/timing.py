"""Paired timing: candidates take turns in one process, and each keeps its fastest run.

A machine that others share slows down and speeds up by a third within seconds. Taking turns puts
the candidates through the same weather, and the minimum is the run with the least of it.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path


def best_times(
    candidates: dict[str, Callable[[], object]], seconds: float, turn: float = 0.0
) -> dict[str, float]:
    """Fastest run of each candidate, in seconds, over at least `seconds` and three rounds.

    A turn is three runs, and more until it has lasted `turn` seconds. Its first run wakes the
    library's threads, which slept while another library's ran: were a turn one run, of two
    candidates of one library the second would never pay for that.
    """
    for run in candidates.values():
        run()
    best = dict.fromkeys(candidates, float("inf"))
    start, rounds = time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - start < seconds:
        for name, run in candidates.items():
            until, runs = time.perf_counter() + turn, 0
            while runs < 3 or time.perf_counter() < until:
                begin = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - begin)
                runs += 1
        rounds += 1
    return best


def cpu_name() -> str:
    """Name of the processor, for the head of a table."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()
