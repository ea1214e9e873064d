"""The optimizer of a training on several processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cnnx._batches import require_pair
from cnnx._run import Loss, Optimizer
from cnnx.distributed._communicator import Array, communicator_of
from cnnx.distributed._reduction import any_order_sum, tree_sum
from cnnx.distributed._step import Totals, Worker
from cnnx.functional import _arguments as check

REDUCTIONS = {"deterministic": tree_sum, "fast": any_order_sum}
_SHARDS, _MOST_SHARDS = 4, 2**16
_NET = "cnnx.Sequential(...)"
_BUCKET_BYTES = 1 << 18


class DataParallel:
    """An optimizer whose gradients come from all ranks.

    A batch is cut into shards, and every rank computes its share of them: forward, backward, and
    the sum of their gradients over all shards, which travels in buckets while backward still runs.
    Then each rank makes the same step.

    Parameters
    ----------
    optimizer : optimizer
        What makes the steps, such as ``cnnx.Adam()``.
    communicator : mpi4py communicator, optional
        The ranks that take part. Default: all that mpiexec has started.
    shards : int, optional
        Into how many parts a batch is cut: a power of two, at least the number of ranks. Default 4,
        or with the fast reduction, and always then, the number of ranks.
    reduction : {"deterministic", "fast"}
        "deterministic" adds in a fixed order: the same bits for every number of ranks, which must
        be a power of two. "fast" leaves the order to MPI.
    sync_batch_norm : bool
        Whether a BatchNorm2D takes mean and variance over the whole batch, rather than over each
        shard by itself.
    bucket_bytes : int
        Gradients travel together until they are so many bytes.

    Attributes
    ----------
    rank, size : int
        The number of this process, and how many there are.
    mine : slice
        Which of the shards are this rank's.

    Notes
    -----
    The loss must be a mean over the images of a batch, as the library's are. Running statistics
    become the mean of the shards', and dropout draws from a generator for each shard and step.

    Examples
    --------
    >>> import cnnx
    >>> from cnnx.distributed import DataParallel
    >>> optimizer = DataParallel(cnnx.SGD(0.1), shards=8)  # doctest: +SKIP
    >>> cnnx.fit(net, x, y, batch_size=64, optimizer=optimizer)  # doctest: +SKIP
    """

    def __init__(
        self,
        optimizer: Optimizer,
        communicator: Any = None,
        *,
        shards: int | None = None,
        reduction: str = "deterministic",
        sync_batch_norm: bool = False,
        bucket_bytes: int = _BUCKET_BYTES,
    ) -> None:
        check.methods(optimizer, "optimizer", {"step": ("layer",)}, "cnnx.Adam()")
        if isinstance(optimizer, DataParallel):
            raise TypeError("optimizer is a DataParallel, expected the optimizer inside it")
        self.reduction: str = check.choice(reduction, "reduction", tuple(REDUCTIONS))
        self.sync_batch_norm = check.flag(sync_batch_norm, "sync_batch_norm")
        self.bucket_bytes = check.integer(bucket_bytes, "bucket_bytes", 1)
        if shards is not None:
            check.integer(shards, "shards", 1, _MOST_SHARDS)
        self.optimizer = optimizer
        self.communicator = communicator_of(communicator)
        self.rank, self.size = self.communicator.rank, self.communicator.size
        self.shards = self._shards(shards)
        own = self.shards // self.size
        self.mine = slice(own * self.rank, own * (self.rank + 1))
        self._worker: Worker | None = None

    def _shards(self, shards: int | None) -> int:
        if self.reduction == "fast":
            if shards not in (None, self.size):
                raise ValueError(
                    f"shards is {shards}, expected the number of ranks, {self.size}: the fast "
                    "reduction has one shard a rank"
                )
            return self.size
        shards = _SHARDS if shards is None else shards
        if shards & (shards - 1):
            raise ValueError(f"shards is {shards}, expected a power of two")
        if shards % self.size:
            raise ValueError(
                f"shards is {shards} on {self.size} ranks, expected a power of two of ranks, "
                "at most as many; give more shards, or reduction='fast', which takes any number"
            )
        return shards

    @property
    def lr(self) -> float:
        """The learning rate."""
        return self.optimizer.lr

    @lr.setter
    def lr(self, lr: float) -> None:
        self.optimizer.lr = lr

    def gradients(
        self, model: Any, loss: Loss, batches: Iterable[tuple[Array, Array]], images: int
    ) -> float:
        """Leave in ``model.grads`` the gradients of the mean loss over all shards; return it.

        The next call writes into the same arrays.

        For a loop of your own; every rank must call it. :func:`cnnx.fit` does all this by itself.

        Parameters
        ----------
        model : layer
            In training mode, with the same parameters on every rank.
        loss : object with forward and backward
            A mean over images.
        batches : iterable of pairs of ndarrays
            Inputs and targets of the shards `mine`, one after the other; load them as they are
            asked for. ``numpy.array_split(batch, shards)[mine]`` are such shards.
        images : int
            How many images all shards have together, on all ranks.

        Returns
        -------
        float
            The mean loss.

        Raises
        ------
        ValueError
            If `batches` has not one pair for each shard, the arrays of a pair differ in length, or
            all shards together have not so many `images`.
        TypeError
            If an argument is something else than said above.
        """
        check.methods(model, "model", {"forward": ("x",), "backward": ("grad_out",)}, _NET)
        methods = {"forward": ("pred", "target"), "backward": ()}
        check.methods(loss, "loss", methods, "cnnx.MSELoss()")
        images = check.integer(images, "images", 1)
        totals = self.totals(model, loss, self._pairs(batches), images, stop=False)
        if totals.images != images:
            raise ValueError(
                f"images is {images}, but the shards of all ranks have {totals.images} images"
            )
        return totals.loss / images

    def _pairs(self, batches: Iterable[tuple[Array, Array]]) -> Iterator[tuple[Array, Array]]:
        """Pass the pairs on, one for each of this rank's shards, or say which one is none."""
        expected, number = self.shards // self.size, -1
        if not isinstance(batches, Iterable):
            raise TypeError(
                f"batches is {check.described(batches)}, expected a pair of arrays for each shard"
            )
        for number, pair in enumerate(batches):
            if number == expected:
                break
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise TypeError(
                    f"batches[{number}] is {check.described(pair)}, expected a pair of arrays: "
                    "inputs and targets"
                )
            x_name, y_name = f"batches[{number}][0]", f"batches[{number}][1]"
            require_pair(x_name, pair[0], y_name, pair[1], least=0)  # a shard may have no image
            yield pair[0], pair[1]
        if number + 1 != expected:
            raise ValueError(
                f"batches has {'more' if number == expected else number + 1} pairs, expected "
                f"{expected}: one for each shard of rank {self.rank}"
            )

    def totals(
        self,
        model: Any,
        loss: Loss,
        batches: Iterable[tuple[Array, Array]],
        images: int,
        stop: bool,
    ) -> Totals:
        """Do what `gradients` says, and return all that the ranks have summed up."""
        if self._worker is None or not self._worker.fits(model):
            self._worker = Worker(
                model,
                self.communicator,
                self.shards,
                REDUCTIONS[self.reduction],
                self.bucket_bytes,
                self.sync_batch_norm,
            )
        return self._worker.run(loss, batches, images, stop)

    def step(self, layer: Any) -> None:
        """Make the optimizer's step, from gradients that are the same on every rank."""
        self.optimizer.step(layer)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give the optimizer a state."""
        self.optimizer.load_state_dict(dict(state))
