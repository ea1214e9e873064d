"""Elementwise activations and softmax, each with its gradient.

Every ``_backward`` takes the gradient of the output and then what the forward took. What a layer
that kept its output needs instead are the two ``*_backward_from_output`` functions, private to the
library like the sum, which is a residual block's.
"""

from __future__ import annotations

from typing import Literal

from cnnx import _dispatch
from cnnx.functional._arguments import Array, choice, empty, floats, number, require_shape

_X = (("x", None, "", True),)
_GRAD_AND_X = (("grad_out", None, "", True), ("x", None, "", True))
_GRAD_AND_Y = (("grad_out", None, "", True), ("y", None, "", True))


def _check_sizes(x: Array) -> None:
    if 0 in x.shape[1:]:
        raise ValueError(
            f"x has shape {x.shape}, expected every size but the first (the batch) at least 1"
        )


def forward(kind: str, x: Array, alpha: float = 0.0) -> Array:
    """Return an activation of x, by its name."""
    (x,) = floats(_X, x)
    _check_sizes(x)
    out = empty(x.shape, x)
    if x.size:
        _dispatch.backend().activation(x, kind, alpha, out)
    return out


def backward(kind: str, grad_out: Array, x: Array, alpha: float = 0.0) -> Array:
    """Return the gradient through an activation of x, by its name."""
    grad_out, x = floats(_GRAD_AND_X, grad_out, x)
    _check_sizes(x)
    require_shape("grad_out", grad_out, x.shape, "the shape of x")
    grad_x = empty(x.shape, x)
    if x.size:
        _dispatch.backend().activation_backward(grad_out, x, kind, alpha, grad_x)
    return grad_x


def activation_backward_from_output(grad_out: Array, y: Array, kind: str | None) -> Array:
    """Return the gradient through an activation of which the output y was kept.

    kind is one of None, "relu", "sigmoid", "tanh": what `conv2d` and `linear` can fuse.
    """
    grad_out, y = floats(_GRAD_AND_Y, grad_out, y)
    require_shape("grad_out", grad_out, y.shape, "the shape of the output")
    if kind is None:
        return grad_out
    choice(kind, "kind", ("relu", "sigmoid", "tanh"))
    grad_x = empty(y.shape, y)
    if y.size:
        _dispatch.backend().activation_backward_from_output(grad_out, y, kind, grad_x)
    return grad_x


def add(
    x: Array, other: Array, activation: Literal["relu"] | None = None, *, names: tuple[str, str]
) -> Array:
    """Return activation(x + other), for arrays of one shape; errors call them by `names`."""
    x, other = floats(tuple((name, None, "", True) for name in names), x, other)
    if x.shape != other.shape:  # NumPy would broadcast, and a kernel read beyond the smaller one
        raise ValueError(
            f"{names[0]} has shape {x.shape} and {names[1]} has shape {other.shape}, expected the "
            "same"
        )
    out = empty(x.shape, x)
    if x.size:
        _dispatch.backend().add(x, other, activation, out)
    return out


# ---------------------------------------------------------------- elementwise


def relu(x: Array) -> Array:
    """Return max(x, 0), elementwise; NaN stays NaN.

    Parameters
    ----------
    x : ndarray
        float32 or float64, of any shape.

    Returns
    -------
    ndarray of x's shape and dtype

    Raises
    ------
    TypeError
        If x is not a NumPy array of float32 or float64.
    ValueError
        If a dimension of x other than the first is zero.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.relu(np.array([-1.0, 0.0, 2.0]))
    array([0., 0., 2.])
    """
    return forward("relu", x)


def relu_backward(grad_out: Array, x: Array) -> Array:
    """Return the gradient of `relu` with respect to x: grad_out where x > 0, and 0 elsewhere.

    At NaN that is 0, as in JAX; PyTorch has grad_out there.

    Parameters
    ----------
    grad_out : ndarray of x's shape
        Gradient of the loss with respect to the output.
    x : ndarray
        What `relu` was given.

    Returns
    -------
    ndarray of x's shape

    Raises
    ------
    TypeError, ValueError
        As `relu`; also if the shapes differ.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.relu_backward(np.array([5.0, 5.0, 5.0]), np.array([-1.0, 0.0, 2.0]))
    array([0., 0., 5.])
    """
    return backward("relu", grad_out, x)


def leaky_relu(x: Array, slope: float = 0.01) -> Array:
    """Return x where x >= 0 and slope * x elsewhere.

    Parameters
    ----------
    x : ndarray
        float32 or float64, of any shape.
    slope : float
        What a negative x is multiplied by.

    Returns
    -------
    ndarray of x's shape and dtype

    Raises
    ------
    TypeError, ValueError
        As `relu`; also if slope is no finite number.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.leaky_relu(np.array([-1.0, 2.0]), slope=0.1)
    array([-0.1,  2. ])
    """
    return forward("leaky_relu", x, number(slope, "slope"))


def leaky_relu_backward(grad_out: Array, x: Array, slope: float = 0.01) -> Array:
    """Return the gradient of `leaky_relu` with respect to x; at 0 it takes the slope.

    Parameters
    ----------
    grad_out : ndarray of x's shape
        Gradient of the loss with respect to the output.
    x, slope
        What `leaky_relu` was given.

    Returns
    -------
    ndarray of x's shape

    Raises
    ------
    TypeError, ValueError
        As `leaky_relu`; also if the shapes differ.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.leaky_relu_backward(np.array([5.0, 5.0]), np.array([-1.0, 2.0]), slope=0.1)
    array([0.5, 5. ])
    """
    return backward("leaky_relu", grad_out, x, number(slope, "slope"))


def relu6(x: Array) -> Array:
    """Return min(max(x, 0), 6), elementwise.

    Parameters
    ----------
    x : ndarray
        float32 or float64, of any shape.

    Returns
    -------
    ndarray of x's shape and dtype

    Raises
    ------
    TypeError, ValueError
        As `relu`.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.relu6(np.array([-1.0, 2.0, 7.0]))
    array([0., 2., 6.])
    """
    return forward("relu6", x)


def relu6_backward(grad_out: Array, x: Array) -> Array:
    """Return the gradient of `relu6` with respect to x: grad_out where 0 < x < 6, else 0.

    Parameters
    ----------
    grad_out : ndarray of x's shape
        Gradient of the loss with respect to the output.
    x : ndarray
        What `relu6` was given.

    Returns
    -------
    ndarray of x's shape

    Raises
    ------
    TypeError, ValueError
        As `relu6`; also if the shapes differ.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.relu6_backward(np.array([5.0, 5.0, 5.0]), np.array([-1.0, 2.0, 7.0]))
    array([0., 5., 0.])
    """
    return backward("relu6", grad_out, x)


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)), elementwise.

    Parameters
    ----------
    x : ndarray
        float32 or float64, of any shape.

    Returns
    -------
    ndarray of x's shape and dtype

    Raises
    ------
    TypeError, ValueError
        As `relu`.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.sigmoid(np.array([-1000.0, 0.0, 1000.0]))
    array([0. , 0.5, 1. ])
    """
    return forward("sigmoid", x)


def sigmoid_backward(grad_out: Array, x: Array) -> Array:
    """Return the gradient of `sigmoid` with respect to x: grad_out * s * (1 - s), s = sigmoid(x).

    Parameters
    ----------
    grad_out : ndarray of x's shape
        Gradient of the loss with respect to the output.
    x : ndarray
        What `sigmoid` was given.

    Returns
    -------
    ndarray of x's shape

    Raises
    ------
    TypeError, ValueError
        As `sigmoid`; also if the shapes differ.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.sigmoid_backward(np.array([4.0]), np.array([0.0]))
    array([1.])
    """
    return backward("sigmoid", grad_out, x)


def tanh(x: Array) -> Array:
    """Return the hyperbolic tangent, elementwise.

    Parameters
    ----------
    x : ndarray
        float32 or float64, of any shape.

    Returns
    -------
    ndarray of x's shape and dtype

    Raises
    ------
    TypeError, ValueError
        As `relu`.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.tanh(np.array([0.0, 1000.0]))
    array([0., 1.])
    """
    return forward("tanh", x)


def tanh_backward(grad_out: Array, x: Array) -> Array:
    """Return the gradient of `tanh` with respect to x: grad_out * (1 - tanh(x)**2).

    Parameters
    ----------
    grad_out : ndarray of x's shape
        Gradient of the loss with respect to the output.
    x : ndarray
        What `tanh` was given.

    Returns
    -------
    ndarray of x's shape

    Raises
    ------
    TypeError, ValueError
        As `tanh`; also if the shapes differ.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.tanh_backward(np.array([4.0]), np.array([0.0]))
    array([4.])
    """
    return backward("tanh", grad_out, x)


def gelu(x: Array) -> Array:
    """Return x * Phi(x), Phi the normal distribution function (exact, no tanh formula).

    Parameters
    ----------
    x : ndarray
        float32 or float64, of any shape.

    Returns
    -------
    ndarray of x's shape and dtype

    Raises
    ------
    TypeError, ValueError
        As `relu`.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.gelu(np.array([-1.0, 0.0, 1.0])).round(4)
    array([-0.1587,  0.    ,  0.8413])
    """
    return forward("gelu", x)


def gelu_backward(grad_out: Array, x: Array) -> Array:
    """Return the gradient of `gelu` with respect to x: grad_out * (Phi(x) + x * phi(x)).

    Parameters
    ----------
    grad_out : ndarray of x's shape
        Gradient of the loss with respect to the output.
    x : ndarray
        What `gelu` was given.

    Returns
    -------
    ndarray of x's shape

    Raises
    ------
    TypeError, ValueError
        As `gelu`; also if the shapes differ.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.gelu_backward(np.array([2.0]), np.array([0.0]))
    array([1.])
    """
    return backward("gelu", grad_out, x)


def silu(x: Array) -> Array:
    """Return x * sigmoid(x), elementwise (also known as swish).

    Parameters
    ----------
    x : ndarray
        float32 or float64, of any shape.

    Returns
    -------
    ndarray of x's shape and dtype

    Raises
    ------
    TypeError, ValueError
        As `relu`.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.silu(np.array([-1.0, 0.0, 1.0])).round(4)
    array([-0.2689,  0.    ,  0.7311])
    """
    return forward("silu", x)


def silu_backward(grad_out: Array, x: Array) -> Array:
    """Return the gradient of `silu` with respect to x: grad_out * s * (1 + x * (1 - s)).

    Parameters
    ----------
    grad_out : ndarray of x's shape
        Gradient of the loss with respect to the output.
    x : ndarray
        What `silu` was given; s is its sigmoid.

    Returns
    -------
    ndarray of x's shape

    Raises
    ------
    TypeError, ValueError
        As `silu`; also if the shapes differ.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.silu_backward(np.array([2.0]), np.array([0.0]))
    array([1.])
    """
    return backward("silu", grad_out, x)
