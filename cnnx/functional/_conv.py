"""Convolution, transposed convolution, and their gradients.

One geometry serves all of them: a transposed convolution *is* the input gradient of the convolution
that has the same weight, so each of the two is built from the other's three kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from cnnx import _dispatch, _shapes
from cnnx.functional._arguments import (
    IMAGES,
    Array,
    IntOrPair,
    PaddingLike,
    choice,
    empty,
    floats,
    integer,
    needed,
    output,
    pair,
    require_shape,
)
from cnnx.functional._arguments import (
    padding as parse_padding,
)

Activation = Literal["relu", "sigmoid", "tanh"] | None
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Gradients = tuple[Array | None, Array | None, Array | None]

ACTIVATIONS = (None, "relu", "sigmoid", "tanh")  # what can be fused into the store of a result
_MODES = ("zeros", "reflect", "replicate", "circular")
_NO_PADS = (0, 0, 0, 0)

_X = ("x", 4, IMAGES, True)
_GRAD_OUT = ("grad_out", 4, "(N, F, Ho, Wo)", True)
_WEIGHT = ("weight", 4, "(F, C/groups, KH, KW)", True)
_WEIGHT_T = ("weight", 4, "(C, F/groups, KH, KW)", True)
_BIAS = ("bias", 1, "(F,)", False)


# ---------------------------------------------------------------- padding modes


def _check_mode(mode: str, x_shape: _shapes.Shape, pads: _shapes.Pads) -> None:
    for axis, name in enumerate(("height", "width")):
        size, pad = x_shape[2 + axis], max(pads[2 * axis : 2 * axis + 2])
        most = {"reflect": size - 1, "circular": size}.get(mode, pad)
        if pad > most:
            raise ValueError(
                f"padding is {pad} along the {name}, expected at most {most} with padding_mode "
                f"{mode!r} and x of shape {x_shape}"
            )


def _extend(x: Array, pads: _shapes.Pads, mode: str) -> Array:
    """Return x with its border filled from its own pixels."""
    for axis in (2, 3):
        before, after = pads[2 * axis - 4 : 2 * axis - 2]
        if before or after:
            index = _shapes.padding_index(x.shape[axis], before, after, mode)
            x = np.ascontiguousarray(x.take(index, axis=axis))
    return x


def _fold(grad: Array, pads: _shapes.Pads, mode: str, out_shape: _shapes.Shape) -> Array:
    """Adjoint of `_extend`: each border gradient is added to the pixel it was read from."""
    for axis in (3, 2):
        size, (before, after) = out_shape[axis], pads[2 * axis - 4 : 2 * axis - 2]
        if before or after:
            index = _shapes.padding_index(size, before, after, mode)
            grad = np.moveaxis(grad, axis, 0)
            folded = grad[before : before + size].copy()
            # Not np.add.at, which raises a SystemError where memory lacks.
            for at in (*range(before), *range(before + size, before + size + after)):
                folded[index[at]] += grad[at]
            grad = np.moveaxis(folded, 0, axis)
    return np.ascontiguousarray(grad)


# ---------------------------------------------------------------- convolution


def prepared() -> Any:
    """Return an object for a frozen layer's packed weights."""
    return _dispatch.backend().prepared()


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: IntOrPair = 1,
    padding: PaddingLike = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    activation: Activation = None,
    out: Array | None = None,
) -> Array:
    """Convolve images with a bank of filters (cross-correlation: the filters are not flipped).

    ``out[n, f, i, j] = activation(bias[f] + sum over c, k, l of``
    ``weight[f, c, k, l] * x[n, c, i*stride + k*dilation - top, j*stride + l*dilation - left])``

    Parameters
    ----------
    x : ndarray of shape (N, C, H, W)
        The images, float32 or float64.
    weight : ndarray of shape (F, C/groups, KH, KW)
        The filters.
    bias : ndarray of shape (F,), optional
        Added to every pixel of an output channel.
    stride : int or (int, int)
        Step of the window, for both directions or (height, width).
    padding : int, (int, int), ((top, bottom), (left, right)), "same" or "valid"
        Pixels added around the image. "valid" adds none; "same" adds what gives
        ceil(size / stride) outputs, the odd pixel at the bottom and at the right.
    dilation : int or (int, int)
        Distance between neighbouring taps of a filter.
    groups : int
        Input and output channels are cut into that many groups, each convolved on its own;
        groups = C is a depthwise convolution.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
        What the added pixels hold. "reflect" needs padding < size, "circular" padding <= size.
    activation : {None, "relu", "sigmoid", "tanh"}
        Applied to the result while it is stored.
    out : ndarray of shape (N, F, Ho, Wo), optional
        Filled and returned instead of a new array: of the result's dtype, writeable,
        C-contiguous, sharing no memory with the inputs.

    Returns
    -------
    ndarray of shape (N, F, Ho, Wo)
        Ho = floor((H + top + bottom - dilation*(KH - 1) - 1) / stride) + 1, and so for Wo. The
        dtype is that of the inputs, float64 where they are mixed.

    Raises
    ------
    TypeError
        If an array is not a NumPy array of float32 or float64, or a number is no integer.
    ValueError
        If shapes do not fit each other, the output has no pixel, or an option is out of range.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> cnnx.conv2d(x, np.ones((1, 1, 2, 2)), np.array([0.5]))
    array([[[[ 8.5, 12.5],
             [20.5, 24.5]]]])
    >>> cnnx.conv2d(x, np.ones((5, 1, 3, 3)), stride=2, padding="same").shape
    (1, 5, 2, 2)
    """
    choice(activation, "activation", ACTIVATIONS)
    choice(padding_mode, "padding_mode", _MODES)
    return forward(
        x, weight, bias, stride, padding, dilation, groups, padding_mode, activation, out
    )


def forward(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: IntOrPair,
    padding: PaddingLike,
    dilation: IntOrPair,
    groups: int,
    padding_mode: str,
    activation: str | None,
    out: Array | None = None,
    prepared: Any = None,
) -> Array:
    """Do what `conv2d` says; a frozen layer keeps its packed weights in `prepared`.

    The activation may also be "relu1", "relu6", "silu" or "hard_swish" here.
    """
    arrays = x, weight, bias
    x, weight, bias = floats((_X, _WEIGHT, _BIAS), x, weight, bias)
    groups = integer(groups, "groups", 1)
    out_shape, strides, pads, dilations = _shapes.conv2d(
        x.shape,
        weight.shape,
        pair(stride, "stride"),
        parse_padding(padding),
        pair(dilation, "dilation"),
        groups,
    )
    if bias is not None:
        require_shape("bias", bias, (out_shape[1],), "one number for each filter")
    if padding_mode != "zeros":
        _check_mode(padding_mode, x.shape, pads)
    out = empty(out_shape, x) if out is None else output(out, out_shape, x, *arrays)
    if not x.shape[0]:
        return out
    if padding_mode != "zeros":
        x, pads = _extend(x, pads, padding_mode), _NO_PADS
    _dispatch.backend().conv2d(
        x, weight, bias, strides, pads, dilations, groups, activation, out, prepared
    )
    return out


def conv2d_backward(
    grad_out: Array,
    x: Array,
    weight: Array,
    stride: IntOrPair = 1,
    padding: PaddingLike = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    need: Sequence[bool] = (True, True, True),
) -> Gradients:
    """Return the gradients of `conv2d` with respect to x, weight and bias.

    Parameters
    ----------
    grad_out : ndarray of shape (N, F, Ho, Wo)
        Gradient of the loss with respect to the convolution's output, before any activation.
    x, weight, stride, padding, dilation, groups, padding_mode
        As they were given to `conv2d`.
    need : three bool
        Which gradients to compute. The others are None and cost nothing: a net's first layer
        needs no gradient of its images.

    Returns
    -------
    grad_x : ndarray of shape (N, C, H, W) or None
    grad_weight : ndarray of shape (F, C/groups, KH, KW) or None
    grad_bias : ndarray of shape (F,) or None

    Raises
    ------
    TypeError, ValueError
        As `conv2d`; also if grad_out has not the shape of the output.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> x, weight = np.arange(9.0).reshape(1, 1, 3, 3), np.ones((1, 1, 2, 2))
    >>> grad_x, grad_weight, grad_bias = cnnx.conv2d_backward(np.ones((1, 1, 2, 2)), x, weight)
    >>> grad_x[0, 0]  # how many windows saw each pixel
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    >>> grad_weight[0, 0]  # the sum of the pixels each tap met
    array([[ 8., 12.],
           [20., 24.]])
    >>> grad_bias
    array([4.])
    """
    grad_out, x, weight = floats((_GRAD_OUT, _X, _WEIGHT), grad_out, x, weight)
    groups = integer(groups, "groups", 1)
    out_shape, strides, pads, dilations = _shapes.conv2d(
        x.shape,
        weight.shape,
        pair(stride, "stride"),
        parse_padding(padding),
        pair(dilation, "dilation"),
        groups,
    )
    require_shape("grad_out", grad_out, out_shape, "the shape of conv2d's output")
    choice(padding_mode, "padding_mode", _MODES)
    if padding_mode != "zeros":
        _check_mode(padding_mode, x.shape, pads)
    need_x, need_weight, need_bias = needed(need)
    grad_x = grad_weight = grad_bias = None
    if not x.shape[0]:
        return (
            np.zeros_like(x) if need_x else None,
            np.zeros_like(weight) if need_weight else None,
            np.zeros(weight.shape[0], x.dtype) if need_bias else None,
        )
    backend, image_shape, image_pads = _dispatch.backend(), x.shape, pads
    if padding_mode != "zeros":
        x, pads = _extend(x, pads, padding_mode), _NO_PADS
    if need_x:
        grad_x = empty(x.shape, x)
        backend.conv2d_grad_input(grad_out, weight, None, strides, pads, dilations, groups, grad_x)
        if padding_mode != "zeros":
            grad_x = _fold(grad_x, image_pads, padding_mode, image_shape)
    if need_weight:
        grad_weight = empty(weight.shape, x)
        backend.conv2d_grad_weight(grad_out, x, strides, pads, dilations, groups, grad_weight)
    if need_bias:
        grad_bias = empty((weight.shape[0],), x)
        backend.conv2d_grad_bias(grad_out, grad_bias)
    return grad_x, grad_weight, grad_bias


# ---------------------------------------------------------------- transposed convolution


def transposed_pads(padding: PaddingLike) -> _shapes.Pads:
    """Return a transposed convolution's padding as (top, bottom, left, right)."""
    pads = parse_padding(padding)
    if isinstance(pads, str):
        raise ValueError(
            f"padding is {padding!r}, expected integers: many sizes have the same 'same' "
            "convolution, so a transposed one cannot tell which is meant"
        )
    return pads


def conv_transpose2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: IntOrPair = 1,
    padding: PaddingLike = 0,
    output_padding: IntOrPair = 0,
    groups: int = 1,
    dilation: IntOrPair = 1,
) -> Array:
    """Paint each pixel of x, times the filter, into a larger image: `conv2d`'s input gradient.

    Parameters
    ----------
    x : ndarray of shape (N, C, H, W)
        The images, float32 or float64.
    weight : ndarray of shape (C, F/groups, KH, KW)
        The filters, laid out as those of the convolution whose gradient this is.
    bias : ndarray of shape (F,), optional
        Added to every pixel of an output channel.
    stride, dilation : int or (int, int)
        Those of the convolution: here the distance between painted filters, and between their taps.
    padding : int, (int, int) or ((top, bottom), (left, right))
        Pixels cut off the rim of the result.
    output_padding : int or (int, int)
        Rows and columns added at the bottom and right, less than the larger of stride and
        dilation: several image sizes give the same convolution, and this picks one.
    groups : int
        As in `conv2d`.

    Returns
    -------
    ndarray of shape (N, F, Ho, Wo)
        Ho = (H - 1)*stride + dilation*(KH - 1) + 1 - top - bottom + output_padding.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> x = np.array([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> cnnx.conv_transpose2d(x, np.ones((1, 1, 2, 2)))[0, 0]
    array([[ 1.,  3.,  2.],
           [ 4., 10.,  6.],
           [ 3.,  7.,  4.]])
    """
    x, weight, bias = floats((_X, _WEIGHT_T, _BIAS), x, weight, bias)
    groups = integer(groups, "groups", 1)
    out_shape, strides, pads, dilations = _shapes.conv_transpose2d(
        x.shape,
        weight.shape,
        pair(stride, "stride"),
        transposed_pads(padding),
        pair(output_padding, "output_padding", 0),
        pair(dilation, "dilation"),
        groups,
    )
    if bias is not None:
        require_shape("bias", bias, (out_shape[1],), "one number for each output channel")
    out = empty(out_shape, x)
    if x.shape[0]:
        _dispatch.backend().conv2d_grad_input(
            x, weight, bias, strides, pads, dilations, groups, out
        )
    return out


def conv_transpose2d_backward(
    grad_out: Array,
    x: Array,
    weight: Array,
    stride: IntOrPair = 1,
    padding: PaddingLike = 0,
    output_padding: IntOrPair = 0,
    groups: int = 1,
    dilation: IntOrPair = 1,
    *,
    need: Sequence[bool] = (True, True, True),
) -> Gradients:
    """Return the gradients of `conv_transpose2d` with respect to x, weight and bias.

    Parameters
    ----------
    grad_out : ndarray of shape (N, F, Ho, Wo)
        Gradient of the loss with respect to the output.
    x, weight, stride, padding, output_padding, groups, dilation
        As they were given to `conv_transpose2d`.
    need : three bool
        Which gradients to compute; the others are None.

    Returns
    -------
    grad_x : ndarray of shape (N, C, H, W) or None
        A plain convolution of grad_out with the same weight.
    grad_weight : ndarray of shape (C, F/groups, KH, KW) or None
    grad_bias : ndarray of shape (F,) or None

    Raises
    ------
    TypeError, ValueError
        As `conv_transpose2d`; also if grad_out has not the shape of the output.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> x, weight = np.ones((1, 1, 2, 2)), np.arange(4.0).reshape(1, 1, 2, 2)
    >>> grad_x, grad_weight, grad_bias = cnnx.conv_transpose2d_backward(
    ...     np.ones((1, 1, 3, 3)), x, weight)
    >>> grad_x[0, 0]
    array([[6., 6.],
           [6., 6.]])
    """
    grad_out, x, weight = floats((_GRAD_OUT, _X, _WEIGHT_T), grad_out, x, weight)
    groups = integer(groups, "groups", 1)
    out_shape, strides, pads, dilations = _shapes.conv_transpose2d(
        x.shape,
        weight.shape,
        pair(stride, "stride"),
        transposed_pads(padding),
        pair(output_padding, "output_padding", 0),
        pair(dilation, "dilation"),
        groups,
    )
    require_shape("grad_out", grad_out, out_shape, "the shape of conv_transpose2d's output")
    need_x, need_weight, need_bias = needed(need)
    grad_x = grad_weight = grad_bias = None
    if not x.shape[0]:
        return (
            np.zeros_like(x) if need_x else None,
            np.zeros_like(weight) if need_weight else None,
            np.zeros(out_shape[1], x.dtype) if need_bias else None,
        )
    backend = _dispatch.backend()
    if need_x:
        grad_x = empty(x.shape, x)
        backend.conv2d(grad_out, weight, None, strides, pads, dilations, groups, None, grad_x)
    if need_weight:
        grad_weight = empty(weight.shape, x)
        backend.conv2d_grad_weight(x, grad_out, strides, pads, dilations, groups, grad_weight)
    if need_bias:
        grad_bias = empty((out_shape[1],), x)
        backend.conv2d_grad_bias(grad_out, grad_bias)
    return grad_x, grad_weight, grad_bias
