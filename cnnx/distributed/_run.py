"""The training loop on several ranks: who reads what, who reports and saves, and how it ends."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnx import _config
from cnnx._batches import Array, Batches
from cnnx._progress import Reporter, Step
from cnnx._run import VALIDATION_BATCH, CtrlC, Run
from cnnx.distributed._job import fail, from_root
from cnnx.distributed._parallel import DataParallel
from cnnx.distributed._step import described

_SAVE_SECONDS = 600.0  # what a rank's death may cost where an epoch takes hours


class ShardBatches(Batches):
    """Of every batch the shards that this rank computes.

    Image n belongs to shard n modulo the number of shards, in every epoch. So a rank never reads
    the images of others, which may stay in a file (``numpy.load(..., mmap_mode="r")``).
    """

    def __init__(self, whole: Batches, shards: int, mine: slice) -> None:
        super().__init__(
            whole.x,
            whole.y,
            batch_size=whole.batch_size,
            shuffle=whole.shuffle,
            seed=whole.seed,
            augment=whole.augment,
            prefetch=whole.prefetch,
        )
        require_whole_shards(self.batch_size, shards)
        self._shards, self._mine = shards, mine

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Batch by batch, and in each the shards one after the other."""
        share = self.batch_size // self._shards
        parts = [np.arange(shard, len(self.x), self._shards) for shard in range(self._shards)]
        if self.shuffle:
            for shard, part in enumerate(parts, 1):  # not 0, for the reason beside Batches.epoch
                np.random.default_rng((self.seed, epoch, shard)).shuffle(part)
        starts = range(0, len(parts[0]), share)
        return np.concatenate([part[start : start + share] for start in starts for part in parts])

    def _batch(self, epoch: int, order: NDArray[np.int64], batch: int) -> tuple[Any, Any]:
        """Inputs and targets of each of this rank's shards."""
        chosen = order[batch * self.batch_size :][: self.batch_size]
        shards = list(enumerate(np.array_split(chosen, self._shards), 1))[self._mine]
        prepared = [self._prepared(part, (self.seed, epoch, batch + 1, n)) for n, part in shards]
        return [x for x, _ in prepared], [y for _, y in prepared]


def require_whole_shards(batch_size: int, shards: int) -> None:
    """Raise unless a batch can be cut into so many shards of one size."""
    if batch_size % shards:
        raise ValueError(f"batch_size is {batch_size}, expected a multiple of the {shards} shards")


class DistributedRun(Run):
    """A run in which each rank computes its shards of every batch."""

    def __init__(self, parallel: DataParallel, **ingredients: Any) -> None:
        # The step is the optimizer's; what comes before it is `parallel`'s.
        super().__init__(**{**ingredients, "optimizer": parallel.optimizer})
        self._parallel, self._ranks = parallel, parallel.communicator
        self.leads = parallel.rank == 0
        self.batches = ShardBatches(self.batches, parallel.shards, parallel.mine)
        if (callback := self.callback) is not None:

            def heard(step: Step) -> None:
                try:
                    callback(step)
                except KeyboardInterrupt:
                    self._ctrl_c.noted = True

            self.callback = heard

    def begin(self, resume: bool) -> None:
        """Let every rank start from rank 0's state, which may come from the checkpoint."""
        self._compare()

        def state() -> dict[str, Any]:
            super(DistributedRun, self).begin(resume)
            return self._state()

        self._take(from_root(self._ranks, state))

    def _compare(self) -> None:
        """Raise ValueError unless all ranks run the same training on the same kernels."""
        facts, batches = _config.config(), self.batches
        mine = {
            "images": batches.x.shape[1:],
            "number of images": len(batches.x),
            "epochs": self.epochs,
            "batch size": batches.batch_size,
            "seed": batches.seed,
            "shuffle": batches.shuffle,
            "augment": batches.augment is not None,
            "validation": self.validation is not None and len(self.validation[0]),
            "kernels": f"{facts['backend']}, instruction set {facts.get('instruction set')}",
            "parallel": self._identity_of_parallel(),
            "bucket_bytes": self._parallel.bucket_bytes,
            "optimizer": type(self.optimizer).__name__,
            "model": described(self.model),
        }
        all_ranks = self._ranks.gather(mine)
        for rank, theirs in enumerate(all_ranks):
            for name, value in theirs.items():
                if value != all_ranks[0][name]:
                    raise ValueError(
                        f"rank {rank} has another {name} than rank 0: {value} and "
                        f"{all_ranks[0][name]}"
                        + ("; set CNNX_ISA to one that all have" if name == "kernels" else "")
                    )

    def train(self, report: Reporter, ctrl_c: CtrlC) -> None:
        """Train; where this rank fails, end the whole job, for the others wait for it."""
        self._ctrl_c, self._agreed = ctrl_c, _Agreed()
        try:
            if self.checkpoint is not None:
                self.save()  # from now on a rank may die, and there is something to go on from
            super().train(report, self._agreed)
        except KeyboardInterrupt:
            if not self._agreed.noted and self._ranks.size > 1:  # a second Ctrl-C
                self._ranks.abort(130)
            raise
        except Exception as error:
            if self._ranks.size == 1:
                raise
            saved = self.checkpoint
            rest = "" if saved is None else f"; {saved} holds the last state saved, to resume from"
            trace = "".join(traceback.format_exception(error))
            place = f"in epoch {self.epoch}, after batch {self.batch}"
            end = f"rank {self._ranks.rank} of {self._ranks.size} failed {place}, and the job ends"
            fail(self._ranks, f"{trace}{end}{rest}", 1)

    def _train_batch(self, batches: Iterator[tuple[Any, Any]]) -> None:
        super()._train_batch(batches)
        if self.checkpoint is not None and time.monotonic() - self._saved > _SAVE_SECONDS:
            self.save()

    def _gradients(self, x: Any, target: Any) -> tuple[float, int | None]:
        size, whole = self.batches.batch_size, len(self.batches.x)
        images = min(size, whole - self.batch * size)
        stop = self._ctrl_c.noted
        totals = self._parallel.totals(
            self.model, self.loss, zip(x, target, strict=True), images, stop
        )
        self._agreed.noted = totals.stop
        return totals.loss, totals.hits

    def _outputs(self, x: Array, ctrl_c: CtrlC) -> Array:
        """Each rank computes some of the batches, and all hear of all."""
        starts = range(0, len(x), VALIDATION_BATCH)
        self.model.eval()
        mine = {
            start: self.model.forward(x[start : start + VALIDATION_BATCH])
            for start in starts[self._ranks.rank :: self._ranks.size]
        }
        every: dict[int, Array] = {}
        for theirs in self._ranks.gather(mine):
            every.update(theirs)
        return np.concatenate([every[start] for start in starts])

    def save(self) -> None:
        """Write the checkpoint, on rank 0."""
        if self.leads:
            super().save()
        self._saved = time.monotonic()

    def interrupted(self) -> str:
        """Save on rank 0 if that makes sense, and say what is there on all; none leaves earlier."""
        return from_root(self._ranks, super().interrupted)

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "parallel": self._identity_of_parallel()}

    def _identity_of_parallel(self) -> dict[str, Any]:
        return {
            "shards": self._parallel.shards,
            "reduction": self._parallel.reduction,
            "sync_batch_norm": self._parallel.sync_batch_norm,
        }


class _Agreed(CtrlC):
    """Was any rank interrupted? All hear of it after the same batch."""
