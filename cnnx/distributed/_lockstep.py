"""Several jobs that meet: for shards of one rank that need a number from each other.

A batch normalisation over all shards needs the sum over them in the midst of the net. So each shard
runs in a thread, one at a time, until it comes to such a sum and hands over to the next; when the
last has come, all go on with the result. The order is always the same, and with it every bit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from cnnx.distributed._communicator import Array
from cnnx.distributed._reduction import TreeSum

Meet = Callable[[Array], Array]  # gives one's own, waits for the others, returns the sum of all


class _Left(Exception):
    """Another job failed, and nobody will come to the meeting."""


class Lockstep:
    """Runs jobs that meet.

    Parameters
    ----------
    over_ranks : function of an array
        Returns the sum over the ranks of what was summed up here.
    """

    def __init__(self, over_ranks: Callable[[Array], Array]) -> None:
        self._over_ranks = over_ranks

    def run(self, jobs: Sequence[Callable[[Meet], None]]) -> None:
        """Run each job with its way to meet the others; raise what the first of them raises."""
        self._turns = [threading.Semaphore(0) for _ in jobs]
        self._sum, self._failed = TreeSum(), False
        if len(jobs) == 1:  # it meets other ranks only
            jobs[0](partial(self._meet, 0))
            return
        with ThreadPoolExecutor(len(jobs)) as pool:
            futures = [pool.submit(self._job, number, job) for number, job in enumerate(jobs)]
            self._turns[0].release()
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, _Left)):
            raise error

    def _job(self, number: int, job: Callable[[Meet], None]) -> None:
        try:
            self._await(number)
            job(partial(self._meet, number))
        except BaseException:
            self._failed = True
            raise
        finally:
            self._hand_over(number)

    def _meet(self, number: int, array: Array) -> Array:
        self._sum.add(array)
        if number == len(self._turns) - 1:
            self._total, self._sum = self._over_ranks(self._sum.result()), TreeSum()
        self._hand_over(number)
        self._await(number)
        return self._total

    def _hand_over(self, number: int) -> None:
        self._turns[(number + 1) % len(self._turns)].release()

    def _await(self, number: int) -> None:
        self._turns[number].acquire()
        if self._failed:
            raise _Left
