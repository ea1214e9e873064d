"""The classroom pair: `conv_forward` and `conv_backward`, as homework asks students to write them.

Same names, same order of arguments, same ``(out, cache)``; the loops are gone.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple, NoReturn

from cnnx.functional._activation import activation_backward_from_output
from cnnx.functional._arguments import IMAGES, Array, IntOrPair, PaddingLike, floats, shared
from cnnx.functional._conv import Activation, conv2d, conv2d_backward

_ARRAYS = (("X", 4, IMAGES, True), ("W", 4, "(F, C, KH, KW)", True), ("b", None, "", False))
_NAMES = {  # what errors of the functions used here call what homework calls otherwise
    "x": "X",
    "weight": "W",
    "bias": "b",
    "padding": "pad",
    "grad_out": "dout",
    "conv2d": "conv_forward",
}


class ConvCache(NamedTuple):
    """What `conv_backward` needs of the forward pass. X and W are the caller's own arrays."""

    X: Array
    W: Array
    bias_shape: tuple[int, ...] | None
    stride: IntOrPair
    pad: PaddingLike
    activation: Activation
    out: Array | None  # a copy: students write their loss's gradient over `out`


def conv_forward(
    X: Array,
    W: Array,
    b: Array | None,
    stride: IntOrPair = 1,
    pad: PaddingLike = 0,
    activation: Activation = "relu",
) -> tuple[Array, ConvCache]:
    """Convolve images with filters, add the bias, and apply the activation.

    Parameters
    ----------
    X : ndarray of shape (N, C, H, W)
        The images, float32 or float64.
    W : ndarray of shape (F, C, KH, KW)
        The filters.
    b : ndarray of F numbers, or None
        The bias, of shape (F,), (F, 1), (1, F), (F, 1, 1), ...
    stride : int or (int, int)
        Step of the window.
    pad : int, (int, int), ((top, bottom), (left, right)), "same" or "valid"
        Zeros around the image.
    activation : {"relu", "sigmoid", "tanh", None}
        The activation.

    Returns
    -------
    out : ndarray of shape (N, F, Ho, Wo)
        Ho = floor((H + 2*pad - KH) / stride) + 1.
    cache : object
        For `conv_backward`; not to be read. It refers to X and W and does not copy them: do not
        change them between the two calls.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`; also if b has not F numbers.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> X = np.array([[1, 3, 2, 1], [4, 2, 0, 5], [3, 1, 4, 2], [2, 0, 3, 6]], float)[None, None]
    >>> W = np.array([[[[1.0, 0.0], [0.0, -1.0]]]])
    >>> out, cache = cnnx.conv_forward(X, W, np.zeros((1, 1)))
    >>> out[0, 0]
    array([[0., 3., 0.],
           [3., 0., 0.],
           [3., 0., 0.]])
    """
    X, W, b = shared(X, "X"), shared(W, "W"), shared(b, "b")
    floats(_ARRAYS, X, W, b)
    if (
        X.shape[1] and X.shape[1] != W.shape[1]
    ):  # conv2d would speak of groups, which homework has not
        raise ValueError(
            f"W has shape {W.shape}, expected X's {X.shape[1]} channels along axis 1; X has shape "
            f"{X.shape}"
        )
    bias, bias_shape = b, None
    if b is not None:
        bias, bias_shape = b.reshape(-1), b.shape
        if bias.shape != W.shape[:1] or sum(size > 1 for size in b.shape) > 1:
            raise ValueError(
                f"b has shape {b.shape}, expected one number for each of the {W.shape[0]} filters "
                f"of W, which has shape {W.shape}: (F,), (F, 1), (1, F), ..."
            )
    try:
        out = conv2d(X, W, bias, stride, pad, activation=activation)
    except (TypeError, ValueError) as error:
        _raise_renamed(error)
    kept = None if activation is None else out.copy()
    return out, ConvCache(X, W, bias_shape, stride, pad, activation, kept)


def conv_backward(dout: Array, cache: Any) -> tuple[Array, Array, Array | None]:
    """Return the gradients of `conv_forward` with respect to X, W and b.

    Parameters
    ----------
    dout : ndarray of shape (N, F, Ho, Wo)
        Gradient of the loss with respect to `out`, after the activation.
    cache : object
        What `conv_forward` returned beside `out`.

    Returns
    -------
    dX : ndarray of X's shape
    dW : ndarray of W's shape
    db : ndarray of b's shape, or None where b was None

    Raises
    ------
    TypeError
        If cache does not come from `conv_forward`, or dout is no array of float32 or float64.
    ValueError
        If dout has not the shape of the output.

    Notes
    -----
    For students who compare their own backward passes with these. The windows of a convolution
    overlap, so every loop over them must *accumulate*: ``dX[window] += W[f] * dz``, and likewise
    dW and db. The same holds for max pooling, where a homework that is often copied gets two
    things wrong: its backward pass assigns where overlapping windows must accumulate, and its
    worked 4x4 matrix puts the gradient of the maximum 5 one row too high. The notes of
    `max_pool2d_backward` show both.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> X = np.array([[[[1.0, -2.0], [3.0, 4.0]]]])
    >>> W, b = np.array([[[[2.0]]]]), np.zeros((1, 1))
    >>> out, cache = cnnx.conv_forward(X, W, b)
    >>> dX, dW, db = cnnx.conv_backward(np.ones_like(out), cache)
    >>> dX[0, 0]  # the ReLU lets nothing through where 2 * -2 was negative
    array([[2., 0.],
           [2., 2.]])
    >>> dW, db
    (array([[[[8.]]]]), array([[3.]]))
    """
    if not isinstance(cache, ConvCache):
        raise TypeError(
            f"cache is a {type(cache).__name__}, expected the second result of conv_forward"
        )
    (dout,) = floats((("dout", 4, "(N, F, Ho, Wo)", True),), dout)
    need = True, True, cache.bias_shape is not None
    try:
        if cache.out is not None:
            dout = activation_backward_from_output(dout, cache.out, cache.activation)
        gradients: Any = conv2d_backward(dout, cache.X, cache.W, cache.stride, cache.pad, need=need)
    except (TypeError, ValueError) as error:
        _raise_renamed(error)
    dX, dW, db = gradients
    return dX, dW, None if db is None else db.reshape(cache.bias_shape)


def _raise_renamed(error: TypeError | ValueError) -> NoReturn:
    """Raise the error again, in homework's names."""
    words = "|".join(_NAMES)
    text = re.sub(rf"(?<!')\b({words})\b", lambda word: _NAMES[word[0]], str(error))
    raise type(error)(text) from None
