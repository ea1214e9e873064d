"""Training: :func:`fit`, which shows its progress, and can be interrupted and resumed.

An epoch visits the images in an order that the seed and the number of the epoch decide, and every
other chance (dropout) comes from generators that belong to the layers. So the same seed gives the
same bits, for any number of threads, and a checkpoint needs only the model, the optimizer, the
generators and the position: a resumed run ends in the very bits of an uninterrupted one.

Here is the public face. The loop and the checkpoint are in ``_run``, the bar in ``_progress``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from cnnx._batches import Array, Augment, Batches, require_images, require_pair
from cnnx._files import require_writable
from cnnx._progress import Step, reporter
from cnnx._run import CtrlC, History, Loss, Optimizer, Run, Schedule, count_hits, outputs
from cnnx.distributed import DataParallel
from cnnx.distributed._run import DistributedRun
from cnnx.functional import _arguments as check
from cnnx.layers import Layer, Sequential
from cnnx.losses import SoftmaxCrossEntropy
from cnnx.optim import Adam

_FORWARD = {"forward": ("pred", "target")}  # a loss's
_NET = "cnnx.Sequential(...)"

__all__ = ["History", "Step", "evaluate", "fit", "predict"]


def fit(
    model: Any,
    x: Array,
    y: Array,
    *,
    epochs: int = 10,
    batch_size: int = 32,
    loss: Loss | None = None,
    optimizer: Optimizer | None = None,
    schedule: Schedule | None = None,
    validation: tuple[Array, Array] | None = None,
    shuffle: bool = True,
    seed: int = 0,
    augment: Augment | None = None,
    progress: bool = True,
    callback: Callable[[Step], object] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> History:
    """Train a model, show the progress, and return what was seen.

    Ctrl-C ends the training after the batch under way (a second one at once). With `checkpoint`,
    that moment is saved, and the same call with ``resume=True`` goes on from there to the very
    result, bit for bit, of a run that was never interrupted.

    Parameters
    ----------
    model : Layer
        The net, or any object with forward, backward, params and grads. It is trained in place and
        left in ``eval()`` mode.
    x : ndarray, shape (N, ...), float32 or float64
        Inputs.
    y : ndarray, shape (N, ...)
        Targets, in the form that the loss takes: for the default loss integer classes (N,).
    epochs : int
        How often to go through all of `x`.
    batch_size : int
        Images a step. The last batch of an epoch may be smaller.
    loss : object with forward and backward, optional
        Default ``SoftmaxCrossEntropy()``.
    optimizer : object with step, optional
        Default ``Adam()``. A :class:`cnnx.distributed.DataParallel` spreads every batch over the
        processes that mpiexec has started.
    schedule : object with step, optional
        A learning-rate schedule of that optimizer; it makes a step after every batch.
    validation : pair of ndarrays, optional
        Inputs and targets to evaluate after each epoch.
    shuffle : bool
        Whether every epoch has an order of its own. Otherwise all take the order of `x`.
    seed : int
        Decides the orders, and what `augment` leaves to chance. (The weights' and dropout's seeds
        are the layers' affair.)
    augment : callable, optional
        Takes a batch's inputs and a NumPy generator and returns the inputs to train on, such as
        ``lambda x, rng: cnnx.data.random_flip(x, rng)``. It runs in a thread of its own, two
        batches ahead, on the terms of :class:`cnnx.data.Batches`.
    progress : bool
        Whether to show loss, accuracy and images per second: a bar where standard output is a
        terminal and rich is installed, plain lines otherwise.
    callback : callable, optional
        Called after every batch with a :class:`cnnx.training.Step`. It may raise,
        ``KeyboardInterrupt`` too.
    checkpoint : path, optional
        File (npz, no pickle) to save to after every epoch and when interrupted; it appears whole
        or not at all.
    resume : bool
        Whether to start from `checkpoint` where that file exists. It must come from a call with
        the same data, batch size, seed and `augment`, and a model and optimizer of the same kind;
        `epochs` may differ.

    Returns
    -------
    History
        Loss and accuracy of each epoch, from the first one, also after a resume.

    Raises
    ------
    ValueError
        If `x` and `y` differ in length or are empty, a number is out of range, `resume` has no
        `checkpoint`, or the checkpoint is damaged or belongs to another training.
    TypeError
        If an argument is something else than said above.
    OSError
        If the checkpoint cannot be written, at once where that can be known.
    KeyboardInterrupt
        When the training was interrupted. The message names the checkpoint.

    Examples
    --------
    >>> import cnnx
    >>> from cnnx.data import digits
    >>> from cnnx.models import classroom
    >>> data = digits()
    >>> net = classroom(data.input_shape, data.classes, rng=0)
    >>> history = cnnx.fit(net, data.x_train, data.y_train, epochs=2, progress=False)
    >>> history.loss[1] < history.loss[0]
    True
    """
    check.integer(epochs, "epochs", 1)
    for name, value in (("progress", progress), ("resume", resume)):
        check.flag(value, name)
    batches = Batches(
        x,
        y,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        augment=augment,
    )
    if validation is not None:
        if not isinstance(validation, tuple | list) or len(validation) != 2:
            raise TypeError(
                f"validation is {check.described(validation)}, expected a pair of arrays: inputs "
                "and targets"
            )
        require_pair("validation[0]", validation[0], "validation[1]", validation[1])
    check.methods(model, "model", {"forward": ("x",), "backward": ("grad_out",)}, _NET)
    if loss is not None:
        check.methods(loss, "loss", {**_FORWARD, "backward": ()}, "cnnx.MSELoss()")
    if optimizer is not None:
        check.methods(optimizer, "optimizer", {"step": ("layer",)}, "cnnx.Adam()")
    if schedule is not None:
        check.methods(schedule, "schedule", {"step": ()}, "cnnx.CosineLR(optimizer, 1000)")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback is {check.described(callback)}, expected a function of a Step")
    if checkpoint is not None:
        check.path(checkpoint, "checkpoint")
    if resume and checkpoint is None:
        raise ValueError("resume is True but checkpoint is None, expected the file to resume from")

    parallel = optimizer if isinstance(optimizer, DataParallel) else None
    run = (Run if parallel is None else partial(DistributedRun, parallel))(
        # A Sequential of one gives any object the whole surface of a layer.
        model=model if isinstance(model, Layer) else Sequential(model),
        batches=batches,
        epochs=epochs,
        loss=SoftmaxCrossEntropy() if loss is None else loss,
        optimizer=Adam() if optimizer is None else optimizer,
        schedule=schedule,
        validation=validation,
        callback=callback,
        checkpoint=checkpoint,
    )
    if checkpoint is not None and parallel is None:
        require_writable(checkpoint)  # or the first epoch would be for nothing
    run.begin(resume)
    with CtrlC() as ctrl_c, reporter(progress and run.leads) as report:
        try:
            run.train(report, ctrl_c)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(run.interrupted()) from error
    run.model.eval()
    return run.history


def predict(model: Any, x: Array, *, batch_size: int = 256) -> Array:
    """Return a model's outputs, computed in batches, in ``eval()`` mode.

    Parameters
    ----------
    model : Layer
        The net; it is left in ``eval()`` mode.
    x : ndarray, shape (N, ...)
        Inputs.
    batch_size : int
        Images at a time.

    Returns
    -------
    ndarray, shape (N, ...)
        What the model makes of `x`.

    Raises
    ------
    ValueError
        If `batch_size` is below 1.
    TypeError
        If `batch_size` is no integer.

    Examples
    --------
    >>> import numpy as np
    >>> import cnnx
    >>> from cnnx.training import predict
    >>> predict(cnnx.Flatten(), np.zeros((3, 2, 2, 2), np.float32)).shape
    (3, 8)
    """
    check.integer(batch_size, "batch_size", 1)
    check.methods(model, "model", {"forward": ("x",)}, _NET)
    require_images("x", x)
    return np.concatenate(list(outputs(model, x, batch_size)))


def evaluate(
    model: Any, x: Array, y: Array, *, loss: Loss | None = None, batch_size: int = 256
) -> tuple[float, float | None]:
    """Return a model's loss and accuracy on some data, in ``eval()`` mode.

    Parameters
    ----------
    model : Layer
        The net; it is left in ``eval()`` mode.
    x : ndarray, shape (N, ...)
        Inputs.
    y : ndarray, shape (N, ...)
        Targets, as for :func:`cnnx.fit`.
    loss : object with forward, optional
        Default ``SoftmaxCrossEntropy()``.
    batch_size : int
        Images at a time.

    Returns
    -------
    loss : float
        Mean over the data.
    accuracy : float or None
        Share of images whose largest output is that of their class; None where the targets are
        not classes.

    Raises
    ------
    ValueError
        If `x` and `y` differ in length or are empty, or `batch_size` is below 1.
    TypeError
        If `batch_size` is no integer.

    Examples
    --------
    >>> import numpy as np
    >>> import cnnx
    >>> from cnnx.training import evaluate
    >>> logits = np.array([[9.0, 0.0], [8.0, 0.0]])
    >>> loss, accuracy = evaluate(cnnx.Flatten(), logits, np.array([0, 1]))
    >>> accuracy
    0.5
    """
    require_pair("x", x, "y", y)
    if loss is not None:
        check.methods(loss, "loss", _FORWARD, "cnnx.MSELoss()")
    out = predict(model, x, batch_size=batch_size)
    loss = SoftmaxCrossEntropy() if loss is None else loss
    hits = count_hits(out, y, loss)
    return float(loss.forward(out, y)), None if hits is None else hits / len(x)
