"""The fully connected layer's matrix product, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cnnx import _dispatch
from cnnx.functional._arguments import Array, choice, empty, floats, needed, require_shape
from cnnx.functional._conv import ACTIVATIONS, Activation, Gradients

_X = ("x", 2, "(N, in)", True)
_WEIGHT = ("weight", 2, "(in, out)", True)
_FORWARD = (_X, _WEIGHT, ("bias", 1, "(out,)", False))
_BACKWARD = (("grad_out", 2, "(N, out)", True), _X, _WEIGHT)


def _check_shapes(x: Array, weight: Array) -> None:
    if 0 in weight.shape or x.shape[1] != weight.shape[0]:
        raise ValueError(
            f"x has shape {x.shape} and weight {weight.shape}, expected (N, in) and (in, out) with "
            "the same in, and in and out at least 1"
        )


def linear(
    x: Array, weight: Array, bias: Array | None = None, activation: Activation = None
) -> Array:
    """Return activation(x @ weight + bias).

    Parameters
    ----------
    x : ndarray of shape (N, in)
        The features of N samples, float32 or float64.
    weight : ndarray of shape (in, out)
        One column for each output feature.
    bias : ndarray of shape (out,), optional
        Added to every row.
    activation : {None, "relu", "sigmoid", "tanh"}
        Applied to the result while it is stored.

    Returns
    -------
    ndarray of shape (N, out)

    Raises
    ------
    TypeError
        If an array is not a NumPy array of float32 or float64.
    ValueError
        If shapes do not fit each other, or the activation is unknown.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> x, weight = np.array([[1.0, 2.0]]), np.array([[1.0, 0.0, -1.0], [1.0, 1.0, -1.0]])
    >>> cnnx.linear(x, weight, np.array([0.5, 0.5, 0.5]), activation="relu")
    array([[3.5, 2.5, 0. ]])
    """
    return forward(x, weight, bias, activation)


def forward(
    x: Array, weight: Array, bias: Array | None, activation: Activation, transposed: bool = False
) -> Array:
    """Do what `linear` says; a transposed weight is (out, in), as PyTorch has it."""
    x, weight, bias = floats(_FORWARD, x, weight, bias)
    if transposed:
        weight = weight.T  # a view, which matmul takes as it is
    _check_shapes(x, weight)
    if bias is not None:
        require_shape("bias", bias, weight.shape[1:], "one number for each output feature")
    choice(activation, "activation", ACTIVATIONS)
    out = empty((x.shape[0], weight.shape[1]), x)
    if x.shape[0]:
        _dispatch.backend().matmul(x, weight, bias, activation, out)
    return out


def linear_backward(
    grad_out: Array, x: Array, weight: Array, need: Sequence[bool] = (True, True, True)
) -> Gradients:
    """Return the gradients of `linear` with respect to x, weight and bias.

    Parameters
    ----------
    grad_out : ndarray of shape (N, out)
        Gradient of the loss with respect to x @ weight + bias, before any activation.
    x, weight
        What `linear` was given.
    need : three bool
        Which gradients to compute; the others are None.

    Returns
    -------
    grad_x : ndarray of shape (N, in) or None
        grad_out @ weight.T
    grad_weight : ndarray of shape (in, out) or None
        x.T @ grad_out
    grad_bias : ndarray of shape (out,) or None
        The sum of grad_out's rows.

    Raises
    ------
    TypeError, ValueError
        As `linear`; also if grad_out has not the shape of the output.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> x, weight = np.array([[1.0, 2.0]]), np.array([[1.0], [3.0]])
    >>> grad_x, grad_weight, grad_bias = cnnx.linear_backward(np.array([[10.0]]), x, weight)
    >>> grad_x, grad_bias
    (array([[10., 30.]]), array([10.]))
    >>> grad_weight
    array([[10.],
           [20.]])
    """
    return backward(grad_out, x, weight, need)


def backward(
    grad_out: Array, x: Array, weight: Array, need: Sequence[bool], transposed: bool = False
) -> Gradients:
    """Do what `linear_backward` says; of a transposed weight, (out, in), the gradient is so too."""
    grad_out, x, weight = floats(_BACKWARD, grad_out, x, weight)
    stored = weight.shape
    if transposed:
        weight = weight.T
    _check_shapes(x, weight)
    shape = x.shape[0], weight.shape[1]
    require_shape("grad_out", grad_out, shape, "the shape of linear's output")
    need_x, need_weight, need_bias = needed(need)
    if not x.shape[0]:
        return (
            np.zeros_like(x) if need_x else None,
            np.zeros(stored, x.dtype) if need_weight else None,
            np.zeros(weight.shape[1], x.dtype) if need_bias else None,
        )
    backend = _dispatch.backend()
    grad_x = grad_weight = grad_bias = None
    if need_x:
        grad_x = empty(x.shape, x)
        backend.matmul(grad_out, weight.T, None, None, grad_x)
    if need_weight:
        grad_weight = empty(stored, x)
        first, second = (grad_out, x) if transposed else (x, grad_out)
        backend.matmul(first.T, second, None, None, grad_weight)
    if need_bias:
        grad_bias = empty(weight.shape[1:], x)
        backend.conv2d_grad_bias(grad_out.reshape(*shape, 1, 1), grad_bias)
    return grad_x, grad_weight, grad_bias
