"""Softmax and its logarithm, with their gradients, and the cross-entropy of labels."""

from __future__ import annotations

import numpy as np

from cnnx import _dispatch
from cnnx.functional._arguments import Array, empty, floats, integer, require_shape

_FLOAT64 = np.empty(0)
_X = (("x", None, "", True),)
_GRAD_AND_X = (("grad_out", None, "", True), ("x", None, "", True))
_GRAD_AND_Y = (("grad_out", None, "", True), ("y", None, "", True))


def _check_axis(x: Array, axis: int) -> int:
    """Return the axis of the classes, counted from the front."""
    axis = integer(axis, "axis", -(2**31))
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis is {axis}, expected an axis of x, which has shape {x.shape}")
    if not x.shape[axis] or 0 in x.shape[1:]:
        raise ValueError(
            f"x has shape {x.shape}, expected every size but the batch's at least 1 "
            f"(the classes lie along axis {axis})"
        )
    return axis % x.ndim


def _to_rows(x: Array, axis: int) -> Array:
    """Return x as (rows, classes)."""
    return np.ascontiguousarray(np.moveaxis(x, axis, -1)).reshape(-1, x.shape[axis])


def _from_rows(rows: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Undo `_to_rows`."""
    moved = rows.reshape(*shape[:axis], *shape[axis + 1 :], shape[axis])
    return np.ascontiguousarray(np.moveaxis(moved, -1, axis))


def _forward(log: bool, x: Array, axis: int) -> Array:
    (x,) = floats(_X, x)
    axis = _check_axis(x, axis)
    rows = _to_rows(x, axis)
    out = empty(rows.shape, x)
    if x.size:
        _dispatch.backend().softmax(rows, log, out)
    return _from_rows(out, x.shape, axis)


def softmax_backward_from_output(grad_out: Array, y: Array, axis: int, log: bool) -> Array:
    """Return the gradient through `softmax` (or `log_softmax`) of which the output y was kept."""
    grad_out, y = floats(_GRAD_AND_Y, grad_out, y)
    require_shape("grad_out", grad_out, y.shape, "the shape of x")
    axis = _check_axis(y, axis)
    rows = _to_rows(y, axis)
    grad_x = empty(rows.shape, y)
    if y.size:
        _dispatch.backend().softmax_backward(_to_rows(grad_out, axis), rows, log, grad_x)
    return _from_rows(grad_x, y.shape, axis)


def _backward(log: bool, grad_out: Array, x: Array, axis: int) -> Array:
    grad_out, x = floats(_GRAD_AND_X, grad_out, x)
    _check_axis(x, axis)
    require_shape("grad_out", grad_out, x.shape, "the shape of x")
    return softmax_backward_from_output(grad_out, _forward(log, x, axis), axis, log)


def cross_entropy(pred: Array, target: Array, smoothing: float) -> tuple[Array, Array]:
    """Return each row's loss, in float64, and the gradient of their mean.

    The target is labels (rows,), of any integer dtype, or a table of pred's shape.
    """
    losses, grad = empty(pred.shape[:1], _FLOAT64), empty(pred.shape, pred)
    wanted = np.require(target, np.int64 if target.ndim == 1 else pred.dtype, ["C", "A", "E"])
    wrong = _dispatch.backend().cross_entropy(pred, wanted, smoothing, losses, grad)
    if wrong >= 0:
        raise ValueError(
            f"target[{wrong}] is {target[wrong]}, expected a class from 0 to {pred.shape[1] - 1}"
        )
    return losses, grad


def softmax(x: Array, axis: int = -1) -> Array:
    """Return exp(x) / sum of exp(x) along an axis: scores turned into probabilities.

    Parameters
    ----------
    x : ndarray
        The scores, float32 or float64, of any shape.
    axis : int
        Along which the classes lie.

    Returns
    -------
    ndarray of x's shape
        Positive numbers that sum to 1 along the axis, whatever the size of the scores.

    Raises
    ------
    TypeError
        If x is not a NumPy array of float32 or float64, or axis no integer.
    ValueError
        If x has no such axis, or a dimension other than the first is zero.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.softmax(np.array([[1000.0, 1000.0], [0.0, -1000.0]]))
    array([[0.5, 0.5],
           [1. , 0. ]])
    """
    return _forward(False, x, axis)


def softmax_backward(grad_out: Array, x: Array, axis: int = -1) -> Array:
    """Return the gradient of `softmax` with respect to x: y * (grad_out - sum of grad_out * y).

    Parameters
    ----------
    grad_out : ndarray of x's shape
        Gradient of the loss with respect to the output y.
    x, axis
        What `softmax` was given.

    Returns
    -------
    ndarray of x's shape

    Raises
    ------
    TypeError, ValueError
        As `softmax`; also if the shapes differ.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.softmax_backward(np.array([[4.0, 0.0]]), np.array([[0.0, 0.0]]))
    array([[ 1., -1.]])
    """
    return _backward(False, grad_out, x, axis)


def log_softmax(x: Array, axis: int = -1) -> Array:
    """Return the logarithm of `softmax`, x - log(sum of exp(x)), with all its digits.

    Parameters
    ----------
    x : ndarray
        The scores, float32 or float64, of any shape.
    axis : int
        Along which the classes lie.

    Returns
    -------
    ndarray of x's shape

    Raises
    ------
    TypeError, ValueError
        As `softmax`.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.log_softmax(np.array([[0.0, -1000.0]]))
    array([[    0., -1000.]])
    """
    return _forward(True, x, axis)


def log_softmax_backward(grad_out: Array, x: Array, axis: int = -1) -> Array:
    """Return the gradient of `log_softmax` with respect to x: grad_out - softmax * sum of grad_out.

    Parameters
    ----------
    grad_out : ndarray of x's shape
        Gradient of the loss with respect to the output.
    x, axis
        What `log_softmax` was given.

    Returns
    -------
    ndarray of x's shape

    Raises
    ------
    TypeError, ValueError
        As `log_softmax`; also if the shapes differ.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.log_softmax_backward(np.array([[4.0, 0.0]]), np.array([[0.0, 0.0]]))
    array([[ 2., -2.]])
    """
    return _backward(True, grad_out, x, axis)
