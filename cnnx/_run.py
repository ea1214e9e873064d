"""The loop behind :func:`cnnx.fit`, and its checkpoint.

``Run.train`` goes through epochs and batches and tells a reporter of each; ``Run.save`` and
``Run.restore`` are the checkpoint; :class:`CtrlC` lets a batch finish before an interrupt counts.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any, Protocol

import numpy as np

from cnnx import optim as cnnx_optim
from cnnx._batches import Array, Batches
from cnnx._checkpoint import read_tree, write_tree
from cnnx._progress import Reporter, Step
from cnnx.functional import _arguments as check
from cnnx.layers import Layer
from cnnx.losses import SoftmaxCrossEntropy

VALIDATION_BATCH = 256  # enough to keep the threads busy, and little memory


class Loss(Protocol):
    """What :func:`fit` asks of a loss."""

    def forward(self, pred: Array, target: Array) -> float: ...

    def backward(self) -> Array: ...


class Optimizer(Protocol):
    """What :func:`fit` asks of an optimizer."""

    lr: float

    def step(self, layer: Any) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Schedule(Protocol):
    """What :func:`fit` asks of a learning-rate schedule."""

    def step(self) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class History:
    """What a training has seen: one number an epoch in each list.

    Attributes
    ----------
    loss, accuracy : list of float
        Means over the epoch's images, measured while the model learned. No accuracy where the
        targets are not classes.
    val_loss, val_accuracy : list of float
        The same on the validation data after the epoch; empty where there are none.
    lr : list of float
        Learning rate at the end of the epoch.
    seconds : list of float
        Time spent in the epoch's batches. Not compared by ``==``, since no two runs take the same.

    Examples
    --------
    >>> from cnnx import History
    >>> History(loss=[1.5, 0.5]).loss[-1]
    0.5
    """

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list, compare=False)


@dataclass
class Run:
    """One training: its ingredients, and how far it has come."""

    model: Layer
    batches: Batches
    epochs: int
    loss: Loss
    optimizer: Optimizer
    schedule: Schedule | None
    validation: tuple[Array, Array] | None
    callback: Callable[[Step], object] | None
    checkpoint: str | os.PathLike[str] | None

    history: History = field(default_factory=History)
    epoch: int = 1  # the one under way
    batch: int = 0  # how many of its batches are done
    loss_sum: float = 0.0  # over the images of those batches
    hits: int | None = 0  # likewise; None where there are no classes
    seconds: float = 0.0  # spent on them
    consistent: bool = True  # false from a batch's first change of state to its last
    leads: bool = True  # of several processes, one reports and saves

    def train(self, report: Reporter, ctrl_c: CtrlC) -> None:
        """Go on from the present position to the end of the last epoch."""
        wanted, self.model.needs_input_grad = self.model.needs_input_grad, False
        try:
            self._train(report, ctrl_c)
        finally:
            self.model.needs_input_grad = wanted

    def _train(self, report: Reporter, ctrl_c: CtrlC) -> None:
        while self.epoch <= self.epochs:
            self.model.train()
            with closing(self.batches.epoch(self.epoch, self.batch)) as batches:
                while self.batch < len(self.batches):
                    self._train_batch(batches)
                    report.batch(self._step())
                    if self.callback is not None:
                        self.callback(self._step())
                    ctrl_c.check()
            self._end_epoch(report, ctrl_c)
            if self.checkpoint is not None:
                self.save()
            ctrl_c.check()

    def _train_batch(self, batches: Iterator[tuple[Array, Array]]) -> None:
        started = time.perf_counter()
        x, target = next(batches)
        self.consistent = False
        loss, hits = self._gradients(x, target)
        self.optimizer.step(self.model)
        if self.schedule is not None:
            self.schedule.step()
        self.batch += 1
        self.loss_sum += loss
        self.hits = None if self.hits is None or hits is None else self.hits + hits
        self.seconds += time.perf_counter() - started
        self.consistent = True

    def _gradients(self, x: Any, target: Any) -> tuple[float, int | None]:
        """Fill the model's grads for a batch, and return its summed loss and its hits."""
        out = self.model.forward(x)
        loss = float(self.loss.forward(out, target))
        hits = count_hits(out, target, self.loss)
        self.model.backward(self.loss.backward())
        return loss * len(target), hits

    def _step(self) -> Step:
        images = min(self.batch * self.batches.batch_size, len(self.batches.x))
        return Step(
            epoch=self.epoch,
            epochs=self.epochs,
            batch=self.batch,
            batches=len(self.batches),
            loss=self.loss_sum / images,
            accuracy=None if self.hits is None else self.hits / images,
            images_per_second=images / self.seconds,
        )

    def _end_epoch(self, report: Reporter, ctrl_c: CtrlC) -> None:
        step = self._step()
        val_loss, val_accuracy = self._validate(ctrl_c)
        for values, value in (
            (self.history.loss, step.loss),
            (self.history.accuracy, step.accuracy),
            (self.history.val_loss, val_loss),
            (self.history.val_accuracy, val_accuracy),
            (self.history.lr, float(self.optimizer.lr)),
            (self.history.seconds, self.seconds),
        ):
            if value is not None:
                values.append(value)
        self.epoch, self.batch = self.epoch + 1, 0
        self.loss_sum, self.hits, self.seconds = 0.0, 0, 0.0
        report.epoch(step, val_loss, val_accuracy)

    def _validate(self, ctrl_c: CtrlC) -> tuple[float | None, float | None]:
        if self.validation is None:
            return None, None
        x, y = self.validation
        out = self._outputs(x, ctrl_c)
        hits = count_hits(out, y, self.loss)
        return float(self.loss.forward(out, y)), None if hits is None else hits / len(x)

    def _outputs(self, x: Array, ctrl_c: CtrlC) -> Array:
        parts = []
        for part in outputs(self.model, x, VALIDATION_BATCH):
            ctrl_c.check()  # changes no state, and is done again after a resume
            parts.append(part)
        return np.concatenate(parts)

    def save(self) -> None:
        """Write the checkpoint."""
        assert self.checkpoint is not None  # or nobody would call  # nosec B101
        write_tree(self.checkpoint, {"training": self._identity(), **self._state()})

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "generators": {name: g.bit_generator.state for name, g in generators_of(self.model)},
            "history": asdict(self.history),
            "position": {name: getattr(self, name) for name in _POSITION},
        }

    def begin(self, resume: bool) -> None:
        """Take the state of the checkpoint where there is one to resume from."""
        if resume and self.checkpoint is not None and os.path.exists(self.checkpoint):
            self.restore()

    def restore(self) -> None:
        """Take the state of the checkpoint, or change nothing.

        ValueError where the file is damaged, or not of such a run.
        """
        assert self.checkpoint is not None  # or nobody would call  # nosec B101
        tree = read_tree(self.checkpoint)
        where = f"checkpoint {os.fsdecode(self.checkpoint)}"
        mine, theirs = self._identity(), tree.get("training")
        if not isinstance(theirs, dict) or theirs.keys() != mine.keys():
            raise ValueError(f"{where} is not one of this version's")
        for name, value in mine.items():
            if theirs[name] != value:
                raise ValueError(
                    f"{where}: its {name} was {theirs[name]!r}, and here it is {value!r}"
                )
        before = self._state()
        try:
            self._take(tree)
        except Exception as error:
            self._take(before)
            if isinstance(error, MemoryError):
                raise
            kind = "" if isinstance(error, ValueError) else f"damaged ({type(error).__name__}), "
            raise ValueError(f"{where}: {kind}{error}") from error

    def _take(self, tree: dict[str, Any]) -> None:
        if set(tree["generators"]) != {name for name, _ in generators_of(self.model)}:
            raise ValueError(
                f"it has states for the random generators {sorted(tree['generators'])}, "
                f"the model has {sorted(name for name, _ in generators_of(self.model))}"
            )
        if (tree["schedule"] is None) != (self.schedule is None):
            raise ValueError(
                f"it was made {'without' if tree['schedule'] is None else 'with'} a schedule"
            )
        position, history = tree["position"], History(**tree["history"])
        check.integer(position["epoch"], "epoch", 1)
        check.integer(position["batch"], "batch", 0, len(self.batches))
        check.number(position["seconds"], "seconds", 0)
        if position["hits"] is not None:
            check.integer(position["hits"], "hits", 0)
        for number in (position["loss_sum"], *itertools.chain(*vars(history).values())):
            if not isinstance(number, int | float):  # a NaN too may go on
                raise TypeError(f"{number!r} stands in place of a number")
        self.model.load_state_dict(tree["model"])
        self.optimizer.load_state_dict(tree["optimizer"])
        if isinstance(self.optimizer, cnnx_optim.Optimizer):
            self.optimizer.check_memory(self.model.params)
        if self.schedule is not None:
            self.schedule.load_state_dict(tree["schedule"])
        for name, generator in generators_of(self.model):
            generator.bit_generator.state = tree["generators"][name]
        self.history = history
        for name in _POSITION:
            setattr(self, name, position[name])

    def interrupted(self) -> str:
        """Save if that makes sense, and say what is there."""
        place = f"interrupted in epoch {self.epoch}, after batch {self.batch}"
        if self.checkpoint is None:
            return f"{place}; nothing saved, for there is no checkpoint"
        if not self.consistent:
            return f"{place} and inside the next; not saved, the last checkpoint still stands"
        self.save()
        return (
            f"{place}; saved to {os.fsdecode(self.checkpoint)}: "
            "the same call with resume=True goes on from there"
        )

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a resumed run to be the same run."""
        batches = self.batches
        checksum = zlib.crc32(np.ascontiguousarray(batches.x).data)
        return {
            "format": 2,
            "images": list(batches.x.shape),
            "data": zlib.crc32(np.ascontiguousarray(batches.y).data, checksum),
            "batch_size": batches.batch_size,
            "seed": batches.seed,
            "shuffle": batches.shuffle,
            "augment": batches.augment is not None,
        }


_POSITION = ("epoch", "batch", "loss_sum", "hits", "seconds")


class CtrlC:
    """Inside ``with``, the first Ctrl-C is only noted, for :meth:`check`; the second is immediate.

    It leaves alone a program that handles the signal its own way, and threads other than the main
    one, which never get it.
    """

    def __init__(self) -> None:
        self.noted = False
        self._mine = False

    def __enter__(self) -> CtrlC:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            signal.signal(signal.SIGINT, self._note)
            self._mine = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._mine:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.noted:
            raise KeyboardInterrupt
        self.noted = True

    def check(self) -> None:
        """Raise KeyboardInterrupt if there was a Ctrl-C."""
        if self.noted:
            raise KeyboardInterrupt


def outputs(model: Any, x: Array, batch_size: int) -> Iterator[Array]:
    """The model's outputs in ``eval()`` mode, batch by batch; an empty batch where `x` is empty."""
    if hasattr(model, "eval"):
        model.eval()
    for first in range(0, max(len(x), 1), batch_size):
        yield model.forward(x[first : first + batch_size])


def count_hits(out: Array, target: Array, loss: Loss) -> int | None:
    """How often the largest output is that of the target's class; None without classes."""
    if out.ndim != 2:
        return None
    if target.ndim == 1 and target.dtype.kind in "iu":
        labels = target
    elif isinstance(loss, SoftmaxCrossEntropy) and target.shape == out.shape:
        labels = target.argmax(axis=1)
    else:
        return None
    return int(np.count_nonzero(out.argmax(axis=1) == labels))


def generators_of(layer: Any, name: str = "") -> Iterator[tuple[str, np.random.Generator]]:
    """The random generators that a layer and those inside it keep as attributes."""
    for attribute, value in vars(layer).items():
        if isinstance(value, np.random.Generator):
            yield name + attribute, value
    children = layer.children() if hasattr(layer, "children") else {}
    for child_name, child in children.items():
        yield from generators_of(child, f"{name}{child_name}.")
