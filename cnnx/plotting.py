"""One picture of a training: loss and accuracy curves, learned filters, confusion matrix.

Needs matplotlib (``pip install "cnnx[demo]"``), which is imported only when a picture is drawn. The
figure is drawn without pyplot, so a user's own figures and backend stay as they are.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cnnx._files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cnnx.training import History

__all__ = ["confusion_matrix", "training_figure"]

_MOST_FILTERS = 64  # more are too small to see
_MOST_NUMBERS = 20  # a confusion matrix of more classes shows colours only


def confusion_matrix(
    labels: NDArray[np.integer[Any]], predicted: NDArray[np.integer[Any]], classes: int
) -> NDArray[np.int64]:
    """Count how often each class was taken for each.

    Parameters
    ----------
    labels, predicted : ndarray of integers, shape (N,)
        The true classes and the predicted ones, 0 to classes - 1.
    classes : int
        Number of classes.

    Returns
    -------
    ndarray, shape (classes, classes), int64
        Row: true class; column: predicted class.

    Raises
    ------
    ValueError
        If the shapes differ, or a class is outside 0..classes-1.

    Examples
    --------
    >>> import numpy as np
    >>> from cnnx.plotting import confusion_matrix
    >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)
    array([[1, 1],
           [0, 1]])
    """
    for name, array in (("labels", labels), ("predicted", predicted)):
        if array.size and not 0 <= int(array.min()) <= int(array.max()) < classes:
            raise ValueError(
                f"{name} has classes {array.min()} to {array.max()}, expected 0 to {classes - 1}"
            )
    if labels.ndim != 1 or labels.shape != predicted.shape:
        raise ValueError(
            f"labels has shape {labels.shape} and predicted {predicted.shape}, "
            "expected the same shape (N,)"
        )
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def training_figure(
    history: History,
    filters: NDArray[Any] | None = None,
    confusion: NDArray[np.int64] | None = None,
    *,
    title: str = "",
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draw the curves of a training, and beside them its filters and confusion matrix.

    Parameters
    ----------
    history : History
        What :func:`cnnx.fit` returned.
    filters : ndarray, shape (F, C, KH, KW), optional
        Weights of a convolution; a filter of several channels is shown as their mean.
    confusion : ndarray, shape (classes, classes), optional
        What :func:`confusion_matrix` returned.
    title : str
        Text above the picture.
    path : path, optional
        Where to write the picture as PNG. The file appears whole or not at all.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.

    Raises
    ------
    ImportError
        If matplotlib is not installed; the message says how to get it.

    Examples
    --------
    >>> from cnnx.plotting import training_figure
    >>> from cnnx import History
    >>> history = History(loss=[1.2, 0.4], accuracy=[0.6, 0.9])
    >>> len(training_figure(history).axes)
    2
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('drawing needs matplotlib: pip install "cnnx[demo]"') from error

    panels = 2 + (filters is not None) + (confusion is not None)
    figure = Figure(figsize=(9, 3.8 * math.ceil(panels / 2)), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(math.ceil(panels / 2), 2)).flat)
    _curves(axes[0], "loss", history.loss, history.val_loss)
    _curves(axes[1], "accuracy", history.accuracy, history.val_accuracy)
    if filters is not None:
        _filters(axes[2], filters)
    if confusion is not None:
        _confusion(axes[panels - 1], confusion)
    for unused in axes[panels:]:
        unused.remove()
    figure.suptitle(title)
    if path is not None:
        with atomic_write(path) as file:
            figure.savefig(file, format="png", dpi=130)
    return figure


def _curves(axes: Axes, name: str, training: list[float], validation: list[float]) -> None:
    for label, values in (("training", training), ("test", validation)):
        if values:
            axes.plot(range(1, len(values) + 1), values, marker=".", label=label)
    axes.set(title=name, xlabel="epoch")
    axes.grid(alpha=0.3)
    if training or validation:
        axes.legend()


def _filters(axes: Axes, weight: NDArray[Any]) -> None:
    """All filters as one image: tiles with a frame of empty pixels between them."""
    shown = weight[:_MOST_FILTERS].mean(axis=1)
    count, height, width = shown.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    mosaic = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1), np.nan)
    for i, tile in enumerate(shown):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        mosaic[top : top + height, left : left + width] = tile
    limit = float(np.abs(shown).max()) or 1.0  # white is zero, whatever the filters
    image = axes.imshow(mosaic, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.figure.colorbar(image, ax=axes, shrink=0.8)
    part = "" if len(weight) == count else f"first {count} of "
    axes.set(title=f"{part}{len(weight)} filters of the first convolution", xticks=[], yticks=[])
    axes.set_frame_on(False)


def _confusion(axes: Axes, counts: NDArray[np.int64]) -> None:
    classes = len(counts)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    wrong = int(counts.sum() - np.trace(counts))
    title = f"confusion matrix: {wrong} of {counts.sum()} wrong"
    axes.set(title=title, ylabel="true", xlabel="predicted")
    if classes > _MOST_NUMBERS:
        return
    axes.set(xticks=range(classes), yticks=range(classes))
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
