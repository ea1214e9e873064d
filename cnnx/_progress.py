"""What a training says while it runs: a live bar with rich in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

_SILENCE = 10.0  # seconds after which a long epoch gets a line of its own


@dataclass(frozen=True)
class Step:
    """Where a training stands after a batch.

    Attributes
    ----------
    epoch, epochs : int
        The epoch, from 1, and how many there will be.
    batch, batches : int
        The batch of this epoch, from 1, and how many there are.
    loss : float
        Mean over this epoch's images so far.
    accuracy : float or None
        Likewise; None where the targets are no classes.
    images_per_second : float
        Training speed in this epoch.
    """

    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float
    accuracy: float | None
    images_per_second: float


class Reporter(Protocol):
    """Hears of every batch and every epoch."""

    def __enter__(self) -> Reporter: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def batch(self, step: Step) -> None: ...

    def epoch(self, step: Step, val_loss: float | None, val_accuracy: float | None) -> None: ...


def reporter(wanted: bool) -> Reporter:
    """The best one for where standard output goes."""
    if not wanted:
        return _Silent()
    if sys.stdout.isatty():
        try:
            return _Bar()
        except ImportError:
            pass
    return _Lines()


class _Silent:
    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def batch(self, step: Step) -> None:
        pass

    def epoch(self, step: Step, val_loss: float | None, val_accuracy: float | None) -> None:
        pass


class _Lines(_Silent):
    """A line an epoch, and one every few seconds in an epoch that takes long."""

    def __enter__(self) -> Reporter:
        self._last = time.monotonic()
        return self

    def batch(self, step: Step) -> None:
        if time.monotonic() - self._last > _SILENCE:
            self._print(f"{_place(step)}  batch {step.batch}/{step.batches}  {_numbers(step)}")

    def epoch(self, step: Step, val_loss: float | None, val_accuracy: float | None) -> None:
        self._print(_epoch_line(step, val_loss, val_accuracy))

    def _print(self, line: str) -> None:
        print(line, flush=True)
        self._last = time.monotonic()


class _Bar(_Silent):
    """The same lines, and below them a bar for the epoch under way."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress: Any = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}  {task.fields[numbers]}"),
            transient=True,
            console=Console(),  # rich's common one is what it was when somebody first used it
        )
        self._task = self._progress.add_task("", total=None, numbers="", visible=False)

    def __enter__(self) -> Reporter:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def batch(self, step: Step) -> None:
        self._progress.update(
            self._task,
            description=_place(step),
            completed=step.batch,
            total=step.batches,
            numbers=_numbers(step),
            visible=True,
        )

    def epoch(self, step: Step, val_loss: float | None, val_accuracy: float | None) -> None:
        line = _epoch_line(step, val_loss, val_accuracy)
        self._progress.console.print(line, highlight=False, soft_wrap=True)


def _place(step: Step) -> str:
    return f"epoch {step.epoch:{len(str(step.epochs))}}/{step.epochs}"


def _numbers(step: Step) -> str:
    return f"{_scores(step.loss, step.accuracy)}  {step.images_per_second:7,.0f} images/s"


def _epoch_line(step: Step, val_loss: float | None, val_accuracy: float | None) -> str:
    held_out = "" if val_loss is None else f"  held out: {_scores(val_loss, val_accuracy)}"
    return f"{_place(step)}  {_numbers(step)}{held_out}"


def _scores(loss: float, accuracy: float | None) -> str:
    return f"loss {loss:.4f}" + ("" if accuracy is None else f"  accuracy {accuracy:6.2%}")
