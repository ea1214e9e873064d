"""Ranks without MPI: threads of this process that exchange arrays as MPI's ranks do.

A message is not copied before it is received, so one that is changed on its way arrives changed.
"""

from __future__ import annotations

import pickle
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

PATIENCE = 20.0  # seconds for what takes milliseconds


class Aborted(BaseException):
    """What ends the other ranks when one has called abort."""


class Pending:
    """Something that `poll` sees arrive."""

    def __init__(self, team: Team, poll: Callable[[], bool]) -> None:
        self.team, self.poll, self.done = team, poll, False
        self.end = time.monotonic() + PATIENCE

    def test(self) -> bool:
        if self.team.aborted.is_set():
            raise Aborted
        self.done = self.done or self.poll()
        assert self.done or time.monotonic() < self.end, "nothing came"
        return self.done

    def wait(self) -> None:
        while not self.test():
            time.sleep(0)


class Rank:
    """One thread's communicator."""

    def __init__(self, team: Team, rank: int) -> None:
        self.team, self.rank, self.size = team, rank, team.size
        self.sums = 0
        self.sent = 0  # numbers

    def exchange(self, send: np.ndarray, receive: np.ndarray, partner: int, tag: int) -> Pending:
        assert send.ndim == receive.ndim == 1
        taken = threading.Event()
        self.team.place((self.rank, partner, tag), queue.Queue).put((send, taken))
        self.sent += send.size
        inbox = self.team.place((partner, self.rank, tag), queue.Queue)
        received = threading.Event()

        def poll() -> bool:
            if not received.is_set():
                try:
                    message, their_taken = inbox.get_nowait()
                except queue.Empty:
                    return False
                assert message.shape == receive.shape
                receive[...] = message
                their_taken.set()
                received.set()
            return taken.is_set()

        return Pending(self.team, poll)

    def allreduce(self, array: np.ndarray) -> Pending:
        self.sums += 1
        box = self.team.place(self.sums, list)
        box.append(array.copy())

        def poll() -> bool:
            if len(box) < self.size:
                return False
            array[...] = np.sum(box, axis=0)
            return True

        return Pending(self.team, poll)

    def gather(self, value: Any) -> list[Any]:
        try:
            self.team.table[self.rank] = value
            self.team.barrier.wait(PATIENCE)
            values = pickle.loads(pickle.dumps(self.team.table))  # a process has copies too
            self.team.barrier.wait(PATIENCE)
        except threading.BrokenBarrierError:
            raise Aborted from None
        return values

    def abort(self, status: int) -> None:
        self.team.status = status
        self.team.aborted.set()
        self.team.barrier.abort()


class Team:
    """`size` ranks."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.places: dict[Any, Any] = {}
        self.table: list[Any] = [None] * size
        self.lock, self.barrier = threading.Lock(), threading.Barrier(size)
        self.aborted, self.status = threading.Event(), 0
        self.ranks = [Rank(self, rank) for rank in range(size)]

    def place(self, name: Any, kind: Callable[[], Any]) -> Any:
        """Where ranks meet, whoever comes first."""
        with self.lock:
            return self.places.setdefault(name, kind())

    def run(self, function: Callable[[Any], Any]) -> list[Any]:
        """What a function of the communicator returns on each rank; or the exceptions it raises."""

        def guarded(rank: Rank) -> Any:
            try:
                return function(rank)
            except BaseException as error:
                return error

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(guarded, self.ranks))


def on_ranks(size: int, function: Callable[[Any], Any]) -> list[Any]:
    """Each rank's result; what a rank raised is raised."""
    results = Team(size).run(function)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, Aborted):
            raise result
    return results
