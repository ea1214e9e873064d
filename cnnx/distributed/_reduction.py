"""Sums over shards and ranks, always added in the order of one binary tree.

The leaves of the tree are the shards of a batch, in their order. A rank owns as many neighbouring
ones as a whole branch has, adds those itself (:class:`TreeSum`), and then the ranks add what they
have (:func:`tree_sum`). So every number comes from the same additions for any number of ranks::

    1 rank    ((0 + 1) + (2 + 3))
    2 ranks   ((0 + 1)   (2 + 3))   and then one addition between them
    4 ranks   ((0) (1)   (2) (3))   and then two

Gradients travel in :class:`Buckets`, each on its way while those of earlier layers are still being
computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from cnnx.distributed._communicator import Array, Communicator, Pending

Reduction = Callable[[Array, Array, Communicator, int], Iterator[Pending]]


class TreeSum:
    """The sum of arrays that come one after the other, 2**n of them in all."""

    def __init__(self) -> None:
        self._count = 0
        self._partial: list[Array] = []  # of ever smaller branches

    def add(self, array: Array) -> None:
        """Take the next one. A layer may write its next gradient into the same array."""
        self._count += 1
        branch, total = self._count, array
        while branch % 2 == 0:  # it completes a branch, and perhaps the one around that
            self._partial[-1] += total
            total = self._partial.pop()
            branch //= 2
        self._partial.append(total.copy() if total is array else total)

    def result(self) -> Array:
        """Return the sum."""
        (total,) = self._partial
        return total


def room(array: Array) -> Array:
    """What :func:`tree_sum` needs beside an array; memory that is new each time takes long."""
    return np.empty((len(array) + 1) // 2, array.dtype)


def tree_sum(array: Array, spare: Array, communicator: Communicator, tag: int) -> Iterator[Pending]:
    """Replace an array by its sum over 2**n ranks; yield what must arrive before each next step.

    Recursive halving and doubling (Thakur, Rabenseifner and Gropp 2005, section 4): with its
    neighbour a rank exchanges halves of the array, and adds in the half that it keeps; with the
    next but one it halves that again, and so on. The sums are then collected the same way back.
    Each rank sends 2 * (1 - 1 / ranks) times the array, as little as is possible.
    """
    first, last = 0, len(array)
    way: list[tuple[int, Array, Array]] = []
    distance = 1
    while distance < communicator.size:
        partner = communicator.rank ^ distance
        middle = (first + last) // 2
        if communicator.rank & distance:
            kept, given, first = array[middle:last], array[first:middle], middle
        else:
            kept, given, last = array[first:middle], array[middle:last], middle
        received = spare[: len(kept)]
        yield communicator.exchange(given, received, partner, tag)
        kept += received  # of two numbers, the sum does not depend on which comes first
        way.append((partner, kept, given))
        distance *= 2
    for partner, kept, given in reversed(way):
        yield communicator.exchange(kept, given, partner, tag)


def any_order_sum(
    array: Array, spare: Array, communicator: Communicator, tag: int
) -> Iterator[Pending]:
    """Replace an array by its sum over the ranks, as the MPI thinks best."""
    yield communicator.allreduce(array)


@dataclass
class _Slot:
    """Where a parameter's gradient has its place."""

    bucket: _Bucket
    place: Array  # in the bucket's array, with the parameter's shape
    sum: TreeSum = field(default_factory=TreeSum)
    came: int = 0


@dataclass
class _Bucket:
    """Gradients that travel together."""

    tag: int
    slots: int
    array: Array
    spare: Array
    missing: int = 0
    steps: Iterator[Pending] = field(default_factory=lambda: iter(()))
    pending: Pending | None = None


class Buckets:
    """The gradients of one model, in the order in which backward finds them.

    Parameters
    ----------
    params : mapping of str to ndarray
        The model's.
    shards : int
        How many gradients of each this rank adds up by itself.
    bucket_bytes : int
        A bucket is full with the gradient that reaches this size.
    """

    def __init__(
        self,
        params: Mapping[str, Array],
        shards: int,
        bucket_bytes: int,
        reduction: Reduction,
        communicator: Communicator,
    ) -> None:
        self._shards = shards
        self._reduction, self._communicator = reduction, communicator
        self._slots: dict[str, _Slot] = {}
        self._buckets: list[_Bucket] = []
        group: dict[str, Array] = {}
        for name in reversed(list(params)):  # the last layer's gradients come first
            if group and params[name].dtype != next(iter(group.values())).dtype:
                group = self._close(group)
            group[name] = params[name]
            if sum(param.nbytes for param in group.values()) >= bucket_bytes:
                group = self._close(group)
        self._close(group)

    def __len__(self) -> int:
        return len(self._buckets)

    def _close(self, group: dict[str, Array]) -> dict[str, Array]:
        if group:
            sizes = [param.size for param in group.values()]
            array = np.empty(sum(sizes), next(iter(group.values())).dtype)
            bucket = _Bucket(len(self._buckets), len(group), array, room(array))
            places = np.split(array, np.cumsum(sizes)[:-1])
            for (name, param), place in zip(group.items(), places, strict=True):
                self._slots[name] = _Slot(bucket, place.reshape(param.shape))
            self._buckets.append(bucket)
        return {}

    def begin(self) -> None:
        """Forget the last step's gradients."""
        for slot in self._slots.values():
            slot.sum, slot.came = TreeSum(), 0
        for bucket in self._buckets:
            bucket.missing = bucket.slots
        self._started = 0

    def put(self, name: str, shard: int, grad: Array) -> None:
        """Take a gradient of this rank's shard so and so, unless it is there already."""
        slot = self._slots.get(name)
        if slot is None or slot.came > shard:
            return
        if grad.shape != slot.place.shape:
            raise ValueError(
                f"grads[{name!r}] is of shape {grad.shape}, expected shape {slot.place.shape}"
            )
        slot.came += 1
        if self._shards > 1:
            slot.sum.add(grad.astype(slot.place.dtype, copy=False))
        if slot.came == self._shards:
            slot.place[...] = slot.sum.result() if self._shards > 1 else grad
            slot.bucket.missing -= 1

    def progress(self) -> bool:
        """Send off what is complete, let what is on its way go on, and say whether all is done.

        Buckets leave in their order, which all ranks share, also where a model computes its
        gradients in another.
        """
        while self._started < len(self._buckets) and not self._buckets[self._started].missing:
            bucket = self._buckets[self._started]
            bucket.steps = self._reduction(
                bucket.array, bucket.spare, self._communicator, bucket.tag
            )
            bucket.pending = next(bucket.steps, None)
            self._started += 1
        done = self._started == len(self._buckets)
        for bucket in self._buckets[: self._started]:
            while bucket.pending is not None and bucket.pending.test():
                bucket.pending = next(bucket.steps, None)
            done = done and bucket.pending is None
        return done

    def finish(self) -> Iterator[tuple[str, Array]]:
        """Wait for all buckets; yield the gradients, whose arrays the next step uses again."""
        for name, slot in self._slots.items():
            if slot.came != self._shards:
                raise ValueError(f"grads[{name!r}] is missing, expected shape {slot.place.shape}")
        while not self.progress():
            time.sleep(0)  # where ranks share a core, the others need it to come here
        for name, slot in self._slots.items():
            yield name, slot.place


def summed(array: Array, reduction: Reduction, communicator: Communicator, tag: int) -> Array:
    """Return an array, after replacing it by its sum over the ranks."""
    for pending in reduction(array, room(array), communicator, tag):
        pending.wait()
    return array
