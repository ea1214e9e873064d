"""Batch normalisation of images, and its gradients: pure functions, no running statistics."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from cnnx import _dispatch
from cnnx.functional._arguments import (
    IMAGES,
    Array,
    choice,
    empty,
    flag,
    floats,
    number,
    require_shape,
)

NormActivation = Literal["relu", "relu6"] | None

ACTIVATIONS = (None, "relu", "relu6")  # what can be fused: those whose slope costs next to nothing

_PARAMETERS = tuple((name, 1, "(C,)", False) for name in ("weight", "bias", "mean", "var"))
_FORWARD = (("x", 4, IMAGES, True), *_PARAMETERS)
_BACKWARD = (
    ("grad_out", 4, IMAGES, True),
    ("x", 4, IMAGES, True),
    *_PARAMETERS,
)


def _check_shapes(x: Array, **parameters: Array | None) -> None:
    if 0 in x.shape[1:]:
        raise ValueError(f"x has shape {x.shape}, expected every size but the batch's at least 1")
    channels = x.shape[1:2]
    for name, array in parameters.items():
        if array is not None and array.shape != channels:
            require_shape(name, array, channels, "one number for each channel of x")
    if (parameters["mean"] is None) != (parameters["var"] is None):
        given = "var" if parameters["mean"] is None else "mean"
        raise ValueError(f"only {given} is given, expected both mean and var or neither")


def _no_stats(x: Array) -> tuple[Array, Array]:
    """Room for the mean and the variance; zeros for an empty batch, where there is none."""
    return np.zeros(x.shape[1], x.dtype), np.zeros(x.shape[1], x.dtype)


def batch_norm2d(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    mean: Array | None = None,
    var: Array | None = None,
    eps: float = 1e-5,
    return_stats: bool = False,
    *,
    activation: NormActivation = None,
) -> Any:
    """Return activation((x - mean) / sqrt(var + eps) * weight + bias), channel by channel.

    Parameters
    ----------
    x : ndarray of shape (N, C, H, W)
        The images, float32 or float64.
    weight, bias : ndarray of shape (C,), optional
        Scale and shift; without them 1 and 0.
    mean, var : ndarray of shape (C,), optional
        The statistics to normalise with; without them those of x itself, over images and pixels
        (the biased variance).
    eps : float
        Added to the variance.
    return_stats : bool
        Also return mean and var.
    activation : {None, "relu", "relu6"}
        Applied to the result while it is stored.

    Returns
    -------
    out : ndarray of shape (N, C, H, W)
    mean, var : ndarray of shape (C,)
        What x was normalised with; only with `return_stats`. Zeros for an empty batch without
        given statistics.

    Raises
    ------
    TypeError
        If an array is not a NumPy array of float32 or float64, or eps no number.
    ValueError
        If shapes do not fit each other, only one of mean and var is given, eps is negative, or the
        activation is unknown.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> x = np.array([1.0, 3.0]).reshape(1, 1, 1, 2)
    >>> out, mean, var = cnnx.batch_norm2d(x, eps=0.0, return_stats=True)
    >>> out.ravel(), mean, var
    (array([-1.,  1.]), array([2.]), array([1.]))
    """
    x, weight, bias, mean, var = floats(_FORWARD, x, weight, bias, mean, var)
    _check_shapes(x, weight=weight, bias=bias, mean=mean, var=var)
    eps = number(eps, "eps", 0)
    with_stats = flag(return_stats, "return_stats")
    choice(activation, "activation", ACTIVATIONS)
    out, from_batch = empty(x.shape, x), mean is None
    if from_batch:
        mean, var = _no_stats(x)
    if x.shape[0]:
        _dispatch.backend().batch_norm2d(
            x, weight, bias, mean, var, eps, from_batch, activation, out
        )
    return (out, mean, var) if with_stats else out


def batch_norm2d_backward(
    grad_out: Array,
    x: Array,
    weight: Array | None = None,
    mean: Array | None = None,
    var: Array | None = None,
    eps: float = 1e-5,
    batch_stats: bool | None = None,
    *,
    bias: Array | None = None,
    activation: NormActivation = None,
) -> tuple[Array, Array, Array]:
    """Return the gradients of `batch_norm2d` with respect to x, weight and bias.

    Parameters
    ----------
    grad_out : ndarray of shape (N, C, H, W)
        Gradient of the loss with respect to the output.
    x, weight, mean, var, eps
        What `batch_norm2d` was given.
    batch_stats : bool, optional
        Whether mean and var depend on x, so that the gradient flows through them too. None: they
        do when they are left out, and are constants when they are given. True with given ones:
        they are those of x, kept from the forward, which saves computing them again.
    bias, activation
        What `batch_norm2d` was given. With an activation, grad_out is the gradient with respect to
        what came out of it, and the bias tells where it let the numbers through.

    Returns
    -------
    grad_x : ndarray of shape (N, C, H, W)
    grad_weight, grad_bias : ndarray of shape (C,)
        Also when the forward had no weight or bias: then those of a weight of 1 and a bias of 0.

    Raises
    ------
    TypeError, ValueError
        As `batch_norm2d`; also if grad_out has not x's shape, or batch_stats is False and no
        statistics are given.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> x = np.array([1.0, 3.0, 5.0]).reshape(3, 1, 1, 1)
    >>> grad_out = np.ones_like(x)  # a shift of the output: the normalisation takes it away again
    >>> grad_x, grad_weight, grad_bias = cnnx.batch_norm2d_backward(grad_out, x)
    >>> grad_x.ravel(), grad_weight, grad_bias
    (array([0., 0., 0.]), array([0.]), array([3.]))
    """
    grad_out, x, weight, bias, mean, var = floats(_BACKWARD, grad_out, x, weight, bias, mean, var)
    _check_shapes(x, weight=weight, bias=bias, mean=mean, var=var)
    require_shape("grad_out", grad_out, x.shape, "the shape of x")
    eps = number(eps, "eps", 0)
    choice(activation, "activation", ACTIVATIONS)
    from_batch = mean is None if batch_stats is None else flag(batch_stats, "batch_stats")
    if mean is None or var is None:
        if not from_batch:
            raise ValueError("batch_stats is False, expected mean and var to be given then")
        mean, var = _no_stats(x)
        if x.shape[0]:
            _dispatch.backend().batch_norm2d_stats(x, mean, var)
    grad_x = empty(x.shape, x)
    if not x.shape[0]:
        return grad_x, np.zeros(x.shape[1], x.dtype), np.zeros(x.shape[1], x.dtype)
    grad_weight, grad_bias = empty(x.shape[1:2], x), empty(x.shape[1:2], x)
    _dispatch.backend().batch_norm2d_backward(
        grad_out,
        x,
        weight,
        bias,
        mean,
        var,
        eps,
        from_batch,
        activation,
        grad_x,
        grad_weight,
        grad_bias,
    )
    return grad_x, grad_weight, grad_bias
