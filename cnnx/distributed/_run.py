"""The training loop on several ranks: who reads what, who reports and saves, and how it ends."""

from __future__ import annotations

import traceback
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnx import _config
from cnnx._progress import Reporter, Step
from cnnx._run import VALIDATION_BATCH, Array, CtrlC, Run
from cnnx.distributed._job import fail, from_root
from cnnx.distributed._parallel import DataParallel
from cnnx.distributed._step import described


class DistributedRun(Run):
    """A run in which each rank computes its shards of every batch.

    Image n belongs to shard n modulo the number of shards, in every epoch. So a rank never reads
    the images of others, which may stay in a file (``numpy.load(..., mmap_mode="r")``).
    """

    def __init__(self, parallel: DataParallel, **ingredients: Any) -> None:
        # The step is the optimizer's; what comes before it is `parallel`'s.
        super().__init__(**{**ingredients, "optimizer": parallel.optimizer})
        self._parallel, self._ranks = parallel, parallel.communicator
        self.leads = parallel.rank == 0
        if self.batch_size % parallel.shards:
            raise ValueError(
                f"batch_size is {self.batch_size}, expected a multiple of the {parallel.shards} "
                "shards"
            )
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
        # From now on a rank may die, and with it the job: there is something to go on from.
        if self.checkpoint is not None:
            self.save()

    def _compare(self) -> None:
        """Raise ValueError unless all ranks run the same training on the same kernels."""
        facts = _config.config()
        mine = {
            "images": self.x.shape[1:],
            "number of images": len(self.x),
            "epochs": self.epochs,
            "batch size": self.batch_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
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

    def _order(self) -> NDArray[np.int64]:
        """Batch by batch, and in each the shards one after the other."""
        shards, share = self._parallel.shards, self.batch_size // self._parallel.shards
        parts = [np.arange(shard, len(self.x), shards) for shard in range(shards)]
        if self.shuffle:
            for shard, part in enumerate(parts, 1):  # not 0, for the reason beside Run._order
                np.random.default_rng((self.seed, self.epoch, shard)).shuffle(part)
        starts = range(0, len(parts[0]), share)
        return np.concatenate([part[start : start + share] for start in starts for part in parts])

    def _gradients(self, chosen: NDArray[np.int64]) -> tuple[float, int | None]:
        shards = np.array_split(chosen, self._parallel.shards)[self._parallel.mine]
        batches = ((self.x[shard], self.y[shard]) for shard in shards)
        stop = self._ctrl_c.noted
        totals = self._parallel.totals(self.model, self.loss, batches, len(chosen), stop)
        self._agreed.noted = totals.stop
        return totals.loss / len(chosen), totals.hits

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

    def interrupted(self) -> str:
        """Save if that makes sense, say what is there, and leave no earlier than the others."""
        message = super().interrupted()
        self._ranks.gather(None)
        return message

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
