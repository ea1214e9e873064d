"""Losses: one number for a prediction and its target, and the gradient of that number.

``loss.forward(pred, target)`` returns a float; ``loss.backward()`` the gradient of that float by
`pred`, which is what the last layer's ``backward`` takes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnx.functional import _arguments as check
from cnnx.functional._softmax import cross_entropy

__all__ = ["MSELoss", "SoftmaxCrossEntropy"]

Array = NDArray[Any]

_SCORES = (("pred", 2, "(N, K)", True),)
_PRED = (("pred", None, "", True),)
_TARGET = (("target", None, "", True),)


class _Loss(ABC):
    """What the losses share: a call is a forward, and backward needs one."""

    _saved: Array | None = None  # what backward needs

    @abstractmethod
    def forward(self, pred: Array, target: Array) -> float:
        """Return the loss."""

    def __call__(self, pred: Array, target: Array) -> float:
        """Return the loss: the same as :meth:`forward`."""
        return self.forward(pred, target)

    def _recall(self) -> Array:
        if self._saved is None:
            name = type(self).__name__
            raise RuntimeError(f"{name}.backward came before forward: there is no loss yet")
        return self._saved


class SoftmaxCrossEntropy(_Loss):
    """Cross-entropy of scores (logits) and classes, the mean over the batch.

    ::

        loss = - mean over n of sum over k of t[n, k] * log_softmax(pred)[n, k]

    where t is the target as probabilities, and with label smoothing s of K classes
    t = (1 - s) * target + s / K (Szegedy et al. 2016, arXiv:1512.00567, section 7).

    Parameters
    ----------
    label_smoothing : float
        s, from 0 to 1.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> loss = cnnx.SoftmaxCrossEntropy()
    >>> scores = np.log(np.array([[1.0, 3.0], [1.0, 1.0]]))
    >>> round(loss(scores, np.array([1, 0])), 4)  # mean of -log(3/4) and -log(1/2)
    0.4904
    >>> loss.backward()
    array([[ 0.125, -0.125],
           [-0.25 ,  0.25 ]])
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = check.number(label_smoothing, "label_smoothing", 0, 1)

    def forward(self, pred: Array, target: Array) -> float:
        """Return the loss; 0 for an empty batch.

        Parameters
        ----------
        pred : ndarray, shape (N, K), float32 or float64
            Scores, not probabilities: the softmax is part of the loss.
        target : ndarray, shape (N,) of any integer dtype, or (N, K)
            The class of each image, 0 to K - 1; or a row of probabilities for each.

        Raises
        ------
        ValueError
            If the shapes do not fit, or a label is not a class.
        TypeError
            If `pred` is not float32 or float64, or labels are not integers.
        """
        (pred,) = check.floats(_SCORES, pred)
        if pred.shape[1] == 0:
            raise ValueError(f"pred has shape {pred.shape}, expected (N, K) with K classes")
        target = _checked(check.unmasked("target", target), pred)
        losses, self._saved = cross_entropy(pred, target, self.label_smoothing)
        return float(losses.sum() / max(len(pred), 1))

    def backward(self) -> Array:
        """Return grad_pred (N, K): (softmax(pred) - t) / N where the rows of t sum to 1."""
        return self._recall().copy()  # which its owner may scale, and ask for again


class MSELoss(_Loss):
    """The mean squared error, over all elements: mean((pred - target)**2).

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> loss = cnnx.MSELoss()
    >>> loss(np.array([[1.0, 2.0]]), np.array([[1.0, 5.0]]))
    4.5
    >>> loss.backward()
    array([[ 0., -3.]])
    """

    def forward(self, pred: Array, target: Array) -> float:
        """Return the loss; 0 for an empty batch.

        Parameters
        ----------
        pred : ndarray of any shape, float32 or float64
            The prediction.
        target : ndarray of the same shape
            What it should have been; taken in the dtype of `pred`.

        Raises
        ------
        ValueError
            If the shapes differ; nothing is broadcast.
        TypeError
            If an array is not float32 or float64.
        """
        (pred,), (target,) = check.floats(_PRED, pred), check.floats(_TARGET, target)
        check.require_shape("target", target, pred.shape)
        error = pred - target.astype(pred.dtype, copy=False)
        self._saved = error
        return float(np.square(error).sum(dtype=np.float64) / max(error.size, 1))

    def backward(self) -> Array:
        """Return grad_pred: 2 * (pred - target) / (number of elements)."""
        error = self._recall()
        return error * (2 / max(error.size, 1))


def _checked(target: Array, pred: Array) -> Array:
    """The target, if it can be a row of probabilities or a label for each row of `pred`."""
    if target.shape == pred.shape:
        if target.dtype.kind not in "fiub":
            raise TypeError(f"target has dtype {target.dtype}, expected probabilities")
        return target
    count, classes = pred.shape
    if target.shape != (count,):
        raise ValueError(
            f"target has shape {target.shape}, expected ({count},) labels or ({count}, {classes}) "
            "probabilities"
        )
    if target.dtype.kind not in "iu":
        raise TypeError(
            f"target has dtype {target.dtype}, expected integer labels: target.astype(np.int64)"
        )
    return target
