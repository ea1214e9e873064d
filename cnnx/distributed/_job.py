"""What ranks do as one job: read once, share the CPUs, and end with one message."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from cnnx import _threads
from cnnx.distributed._communicator import Communicator, world

__all__ = ["Communicator", "fail", "from_root", "together"]

T = TypeVar("T")

_LET_LOWER_RANKS_SPEAK = 0.2  # seconds


def from_root(ranks: Communicator, function: Callable[[], T]) -> T:
    """Return what a function returns on rank 0, or raise what it raises there, on every rank."""
    result: Any = None
    error: Exception | None = None
    if ranks.rank == 0:
        try:
            result = function()
        except Exception as caught:
            error = caught
    result, error = ranks.gather((result, error))[0]
    if error is not None:
        raise error
    value: T = result
    return value


def fail(ranks: Communicator, message: str, status: int) -> NoReturn:
    """Say what went wrong on this rank, and end the job.

    Where several ranks fail by the same cause, the first one speaks, and the others are ended.
    """
    time.sleep(_LET_LOWER_RANKS_SPEAK * min(ranks.rank, 20))
    print(message, file=sys.stderr, flush=True)
    ranks.abort(status)
    raise SystemExit(status)


def together(work: Callable[[Communicator], int], prefix: str, *, share_cpus: bool) -> int:
    """Do a command's work on all ranks, and return its exit status.

    An error of the kinds that a command reports ends the job, with status 2. After Ctrl-C, rank 0
    alone raises KeyboardInterrupt: mpiexec would end it in the midst of its message if another rank
    came to a bad end before.
    """
    ranks = world()
    if share_cpus:
        _share_cpus(ranks)
    try:
        return work(ranks)
    except KeyboardInterrupt:
        if ranks.rank == 0:
            raise
        return 0
    except (ValueError, OSError) as error:
        if ranks.size == 1:
            raise
        fail(ranks, f"{prefix}{error}", 2)


def _share_cpus(ranks: Communicator) -> None:
    """Divide the CPUs among the ranks that may use the same ones, unless the user has."""
    mine = (platform.node(), _cpus())
    sharing = ranks.gather(mine).count(mine)
    if "CNNX_NUM_THREADS" not in os.environ and "OMP_NUM_THREADS" not in os.environ:
        _threads.set_num_threads(max(1, _threads.usable_cpus() // sharing))


def _cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
