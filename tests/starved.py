"""Every call with ever less address space, in a process of its own: `test_limits` starts it.

A call that lacks memory must raise MemoryError, keep none, and leave the next one as right as ever.
The C library is told to ask the system for each block anew (MALLOC_MMAP_THRESHOLD_), so that each
block which a call takes, results, scratch, packed weights or a thread's stack, is refused in turn.
"""

from __future__ import annotations

import gc
import resource
from pathlib import Path

import numpy as np
from split import SPLIT, bits, random

import cnnx

ROOM = [0, *(2**e for e in range(17, 28))]  # bytes beyond those in use


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main(threads: int) -> None:
    """Print how many calls were refused memory, and how many got all that they asked for."""
    cnnx.set_num_threads(threads)
    jobs = [(call, random(call, np.float32)) for calls in SPLIT.values() for call in calls]
    refused = served = 0
    for call, arrays in jobs:
        expected, before = None, cnnx.memory_stats()["in_use"]
        for room in ROOM:
            cnnx.empty_cache()
            gc.collect()
            resource.setrlimit(resource.RLIMIT_AS, (address_space() + room, -1))
            try:
                results = call(arrays)
            except MemoryError:
                results = None
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
            if results is None:
                refused += 1
            else:
                served += 1
                found = bits(results)
                expected = expected or found
                assert found == expected, call.name
            del results
            kept = cnnx.memory_stats()["in_use"] - before
            assert kept == 0, f"{call.name} keeps {kept} bytes"
        assert bits(call(arrays)) == expected, call.name
    print(refused, served)
