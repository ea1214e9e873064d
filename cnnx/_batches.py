"""An epoch's batches, prepared by a thread of their own while the net learns from the last one.

:class:`Batches` is public as :class:`cnnx.data.Batches`, and what :func:`cnnx.fit` goes through.

What a batch holds depends on the seed, the epoch and its number alone. So it is the same however
far the preparation runs ahead, and an epoch can be entered in the middle.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from functools import partial
from inspect import signature
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cnnx.functional import _arguments as check

if TYPE_CHECKING:
    from concurrent.futures import Future

Array = NDArray[Any]
Augment = Callable[[Array, np.random.Generator], Array]
T = TypeVar("T")
R = TypeVar("R")


class Batches:
    """Shuffled, augmented batches of images and targets.

    Parameters
    ----------
    x : ndarray, shape (N, ...)
        Inputs. A memory-mapped array is read batch by batch.
    y : ndarray, shape (N, ...)
        Targets.
    batch_size : int
        Images a batch. The last one of an epoch may be smaller.
    shuffle : bool
        Whether every epoch has an order of its own. Otherwise all take the order of `x`.
    seed : int
        Decides the orders, and what augmentation leaves to chance.
    augment : callable, optional
        Takes a batch's inputs and a NumPy generator, and returns the inputs to use. Whatever it
        leaves to chance it must draw from that generator.
    prefetch : int, optional
        How many batches to prepare ahead, in one thread that lives as long as the iteration; 0
        prepares each when it is asked for, without a thread. The batches are the same. Default: 2
        where there is something to prepare, an augmentation or a memory-mapped `x`; else 0.

    Raises
    ------
    ValueError
        If `x` and `y` differ in length or are empty, or a number is out of range.
    TypeError
        If an argument is something else than said above.

    Examples
    --------
    >>> from cnnx.data import Batches, digits, random_crop
    >>> data = digits()
    >>> batches = Batches(
    ...     data.x_train,
    ...     data.y_train,
    ...     batch_size=100,
    ...     augment=lambda x, rng: random_crop(x, rng, padding=1),
    ... )
    >>> for x, y in batches.epoch(1):
    ...     pass
    >>> len(batches), x.shape, y.shape
    (15, (38, 1, 8, 8), (38,))
    """

    def __init__(
        self,
        x: Array,
        y: Array,
        *,
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int = 0,
        augment: Augment | None = None,
        prefetch: int | None = None,
    ) -> None:
        require_pair("x", x, "y", y)
        if augment is not None:
            _require_augment(augment)
        self.x = x
        self.y = y
        self.batch_size = check.integer(batch_size, "batch_size", 1)
        self.shuffle = check.flag(shuffle, "shuffle")
        self.seed = check.integer(seed, "seed", 0, math.inf)
        self.augment = augment
        if prefetch is None:
            # Of LeNet-5, batches of 64 with crops and flips, a step took 0.92 of its time where the
            # kernels leave a core free, and 0.92 to 1.03 where they do not.
            prefetch = 2 if augment is not None or isinstance(x, np.memmap) else 0
        self.prefetch = check.integer(prefetch, "prefetch", 0)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-len(self.x) // self.batch_size)

    def epoch(self, number: int, start: int = 0) -> Generator[tuple[Array, Array], None, None]:
        """Return an iterator over the batches of an epoch.

        An error in the preparation comes out of the iterator. Who leaves early ends the thread with
        the iterator's ``close()``, or by forgetting it.

        Parameters
        ----------
        number : int
            Of the epoch, from 1.
        start : int
            How many batches to leave out.

        Returns
        -------
        generator
            Of pairs: inputs and targets.

        Raises
        ------
        ValueError
            If a number is out of range.
        TypeError
            If a number is no integer.

        Examples
        --------
        >>> import numpy as np
        >>> from cnnx.data import Batches
        >>> batches = Batches(np.arange(6.0), np.arange(6), batch_size=4, shuffle=False)
        >>> [x.tolist() for x, y in batches.epoch(1)]
        [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0]]
        """
        # Epochs count from 1: NumPy takes the seed (n, 0) for n, the stream of somebody's weights.
        check.integer(number, "number", 1)
        check.integer(start, "start", 0, len(self))
        prepare = partial(self._batch, number, self._order(number))
        return _ahead(prepare, range(start, len(self)), self.prefetch)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(len(self.x))
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.x))

    def _batch(self, epoch: int, order: NDArray[np.int64], batch: int) -> tuple[Any, Any]:
        # From 1, as the epochs: (seed, epoch, 0) is the stream of the epoch's order.
        chosen = order[batch * self.batch_size :][: self.batch_size]
        return self._prepared(chosen, (self.seed, epoch, batch + 1))

    def _prepared(self, chosen: NDArray[np.int64], seed: tuple[int, ...]) -> tuple[Array, Array]:
        x, y = self.x[chosen], self.y[chosen]
        if self.augment is not None and len(chosen):
            x = self.augment(x, np.random.default_rng(seed))
            if not isinstance(x, np.ndarray) or x.shape[:1] != y.shape[:1]:
                what = f"shape {x.shape}" if isinstance(x, np.ndarray) else check.described(x)
                raise ValueError(
                    f"augment returned {what}, expected an array of the batch's {len(y)} images"
                )
        return x, y


def require_pair(x_name: str, x: Any, y_name: str, y: Any, *, least: int = 1) -> None:
    """Raise unless two arrays are inputs and their targets."""
    require_images(x_name, x)
    require_images(y_name, y)
    if len(x) != len(y) or len(x) < least:
        raise ValueError(
            f"{x_name} has shape {x.shape} and {y_name} has shape {y.shape}, "
            "expected the same first dimension" + (f", at least {least}" if least else "")
        )


def require_images(name: str, array: Any) -> None:
    """Raise unless it is an array with a first dimension."""
    if not isinstance(array, np.ndarray) or array.ndim == 0:
        raise TypeError(f"{name} is {check.described(array)}, expected an array of shape (N, ...)")


def _require_augment(augment: Any) -> None:
    try:
        signature(augment).bind("x", "rng")
    except ValueError:  # a function in C that does not tell
        pass
    except TypeError:
        raise TypeError(
            f"augment is {check.described(augment)}, expected a function of a batch's inputs and a "
            "generator, such as lambda x, rng: random_flip(x, rng)"
        ) from None


def _ahead(function: Callable[[T], R], items: Iterable[T], depth: int) -> Generator[R, None, None]:
    """Yield the function of each item, in order, computed at most `depth` items ahead.

    The thread is never blocked on its side, for a result has a place before it is begun. So it ends
    after the result under way, when it is told to by this generator's end or by the interpreter's.
    """
    if depth == 0:
        for item in items:  # not by map: it would take a StopIteration for its own end
            yield function(item)
        return
    from concurrent.futures import ThreadPoolExecutor  # late: import cnnx passes here

    home, rest = os.getpid(), iter(items)
    executor = ThreadPoolExecutor(1, "cnnx-batches")
    ahead: deque[tuple[T, Future[R]]] = deque()
    try:
        while True:
            here = os.getpid() == home  # a fork's child has not got the thread
            if here:
                for item in islice(rest, depth + 1 - len(ahead)):
                    ahead.append((item, executor.submit(function, item)))
            if not ahead:
                break
            item, future = ahead.popleft()
            yield future.result() if here else function(item)
        for item in rest:  # none, but in such a child
            yield function(item)
    finally:
        if os.getpid() == home:
            executor.shutdown(cancel_futures=True)
