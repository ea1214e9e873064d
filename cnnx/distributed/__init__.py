"""Training on several processes, on one machine or many, over MPI.

Every rank holds the whole model and computes a part of every batch; the gradients are summed over
the ranks, so that all make the same step. :class:`DataParallel` around an optimizer is all that
:func:`cnnx.fit` needs for it::

    optimizer = cnnx.distributed.DataParallel(cnnx.Adam())
    cnnx.fit(net, x, y, optimizer=optimizer)                   # mpiexec -n 4 python train.py

**The same bits for 1, 2 and 4 ranks.** A sum of floats depends on the order of the additions. So a
batch is cut into a fixed number of shards, whoever computes them, and their gradients are added in
the order of one binary tree (``_reduction``). Order of the images, dropout and running statistics
belong to the shards too. ``reduction="fast"`` gives that up: one shard a rank, and MPI's own sum.

``_step`` is what a rank does with its shards, ``_run`` the training loop, ``_norm`` and
``_lockstep`` batch normalisation over all shards, ``_communicator`` the only file that knows MPI.
"""

from __future__ import annotations

from cnnx.distributed._parallel import DataParallel

__all__ = ["DataParallel"]
