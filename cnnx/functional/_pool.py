"""Max and average pooling, and their gradients."""

from __future__ import annotations

from typing import Literal, overload

import numpy as np

from cnnx import _dispatch, _shapes
from cnnx.functional._arguments import (
    IMAGES,
    Array,
    IntOrPair,
    PaddingLike,
    empty,
    flag,
    floats,
    images_shape,
    index_array,
    pair,
    require_shape,
)
from cnnx.functional._arguments import (
    padding as parse_padding,
)

_X = (("x", 4, IMAGES, True),)
_GRAD_OUT = (("grad_out", 4, "(N, C, Ho, Wo)", True),)
_NO_DILATION = (1, 1)


def geometry(
    x_shape: _shapes.Shape,
    pool_size: IntOrPair,
    stride: IntOrPair | None,
    padding: PaddingLike,
    dilation: IntOrPair,
    ceil_mode: bool,
) -> tuple[_shapes.Pair, _shapes.Geometry]:
    """Return the window, as far as it meets the image, and shapes and numbers for a kernel."""
    window, spread = pair(pool_size, "pool_size"), pair(dilation, "dilation")
    geometry = _shapes.pool2d(
        x_shape,
        window,
        window if stride is None else pair(stride, "stride"),
        parse_padding(padding),
        spread,
        flag(ceil_mode, "ceil_mode"),
    )
    return _shapes.clipped_window(x_shape, window, geometry.pads, spread), geometry


@overload
def max_pool2d(
    x: Array,
    pool_size: IntOrPair,
    stride: IntOrPair | None = ...,
    padding: PaddingLike = ...,
    dilation: IntOrPair = ...,
    ceil_mode: bool = ...,
    return_indices: Literal[False] = ...,
) -> Array: ...
@overload
def max_pool2d(
    x: Array,
    pool_size: IntOrPair,
    stride: IntOrPair | None = ...,
    padding: PaddingLike = ...,
    dilation: IntOrPair = ...,
    ceil_mode: bool = ...,
    *,
    return_indices: Literal[True],
) -> tuple[Array, Array]: ...
@overload
def max_pool2d(
    x: Array,
    pool_size: IntOrPair,
    stride: IntOrPair | None = ...,
    padding: PaddingLike = ...,
    dilation: IntOrPair = ...,
    ceil_mode: bool = ...,
    return_indices: bool = ...,
) -> Array | tuple[Array, Array]: ...
def max_pool2d(
    x: Array,
    pool_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: PaddingLike = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Array | tuple[Array, Array]:
    """Take the largest pixel of each window.

    The padding is minus infinity and never wins. NaN wins over every number. Of equal values the
    first wins, in row-major order.

    Parameters
    ----------
    x : ndarray of shape (N, C, H, W)
        The images, float32 or float64.
    pool_size : int or (int, int)
        Height and width of the window, in taps.
    stride : int or (int, int), optional
        Step of the window; None means `pool_size`, windows side by side.
    padding : int, (int, int), ((top, bottom), (left, right)), "same" or "valid"
        Pixels added around the image, on each side fewer than the dilated window has.
    dilation : int or (int, int)
        Distance between neighbouring taps of a window.
    ceil_mode : bool
        Also take a last window that sticks out of the padded image, unless it would start behind
        the image.
    return_indices : bool
        Also return where each maximum stood.

    Returns
    -------
    out : ndarray of shape (N, C, Ho, Wo)
        Ho = floor((H + top + bottom - dilation*(KH - 1) - 1) / stride) + 1; ceil with `ceil_mode`.
    indices : ndarray of shape (N, C, Ho, Wo), int64
        ``row * W + column`` of each maximum in its image; only with `return_indices`.

    Raises
    ------
    TypeError
        If x is not a NumPy array of float32 or float64, or a number is no integer.
    ValueError
        If the output has no pixel, the padding is too large, or a dilated window steps over the
        whole image and so has no maximum.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> x = np.array([[1, 3, 2, 1], [4, 2, 0, 5], [3, 1, 4, 2], [2, 0, 3, 6]], float)
    >>> out, indices = cnnx.max_pool2d(x[None, None], 2, return_indices=True)
    >>> out[0, 0]
    array([[4., 5.],
           [3., 6.]])
    >>> indices[0, 0]
    array([[ 4,  7],
           [ 8, 15]])
    """
    (x,) = floats(_X, x)
    window, (out_shape, strides, pads, dilations) = geometry(
        x.shape, pool_size, stride, padding, dilation, ceil_mode
    )
    backend = _dispatch.backend()
    wanted = flag(return_indices, "return_indices")
    out = empty(out_shape, x)
    indices = backend.empty(out_shape, "int64") if wanted else None
    if x.shape[0]:
        backend.max_pool2d(x, window, strides, pads, dilations, out, indices)
    return out if indices is None else (out, indices)


def max_pool2d_backward(
    grad_out: Array, indices: Array, input_shape: tuple[int, int, int, int]
) -> Array:
    """Return the gradient of `max_pool2d` with respect to x: each number goes to its maximum.

    Where windows overlap, one pixel may be the maximum of several of them, and their gradients add
    up.

    Parameters
    ----------
    grad_out : ndarray of shape (N, C, Ho, Wo)
        Gradient of the loss with respect to the output.
    indices : ndarray of int, shape (N, C, Ho, Wo)
        Where the maxima stood, from ``max_pool2d(..., return_indices=True)``.
    input_shape : (N, C, H, W)
        Shape of the forward's x.

    Returns
    -------
    ndarray of shape (N, C, H, W)

    Raises
    ------
    TypeError
        If `grad_out` is not floating point or `indices` not of integers.
    ValueError
        If shapes do not fit each other, or an index is outside 0..H*W-1.

    Notes
    -----
    Two mistakes of a homework that is often copied, for those who compare their loops with this:

    * It *assigns*, ``dX[n, c, row, col] = dout[n, c, i, j]``. That is right only while windows do
      not overlap. With stride < pool_size it must be ``+=``, as by the chain rule: a pixel that won
      two windows moves both outputs.
    * Its worked matrix (the example below) writes the gradient 1.2 of the maximum 5 into row 0, one
      row too high. The 5 stands in row 1, column 3, and the gradient belongs there.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> x = np.array([[1, 3, 2, 1], [4, 2, 0, 5], [3, 1, 4, 2], [2, 0, 3, 6]], float)
    >>> _, indices = cnnx.max_pool2d(x[None, None], 2, return_indices=True)
    >>> upstream = np.array([[[[0.5, 1.2], [0.8, -0.3]]]])
    >>> cnnx.max_pool2d_backward(upstream, indices, (1, 1, 4, 4))[0, 0]
    array([[ 0. ,  0. ,  0. ,  0. ],
           [ 0.5,  0. ,  0. ,  1.2],
           [ 0.8,  0. ,  0. ,  0. ],
           [ 0. ,  0. ,  0. , -0.3]])

    Two overlapping windows with one maximum, 9: it gets the sum.

    >>> x = np.array([[[[1.0, 9.0, 2.0]]]])
    >>> _, indices = cnnx.max_pool2d(x, (1, 2), stride=1, return_indices=True)
    >>> cnnx.max_pool2d_backward(np.array([[[[10.0, 1.0]]]]), indices, x.shape)
    array([[[[ 0., 11.,  0.]]]])
    """
    (grad_out,) = floats(_GRAD_OUT, grad_out)
    shape = images_shape(input_shape, "input_shape")
    indices = index_array(indices, "indices", grad_out.shape)
    require_shape(
        "grad_out", grad_out, (*shape[:2], *grad_out.shape[2:]), f"input_shape is {shape}"
    )
    if 0 in shape[1:] or 0 in grad_out.shape[2:]:
        raise ValueError(
            f"input_shape is {shape} and grad_out has shape {grad_out.shape}, expected every size "
            "but the batch's at least 1"
        )
    grad_x = empty(shape, grad_out)
    if not shape[0]:
        return grad_x
    bad = _dispatch.backend().max_pool2d_backward(grad_out, indices, grad_x)
    if bad >= 0:
        where = tuple(int(i) for i in np.unravel_index(bad, indices.shape))
        raise ValueError(
            f"indices holds {indices[where]} at {where}, expected 0 to H*W - 1 = "
            f"{shape[2]}*{shape[3]} - 1 = {shape[2] * shape[3] - 1}"
        )
    return grad_x


def avg_pool2d(
    x: Array,
    pool_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: PaddingLike = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array:
    """Take the mean of each window; the padding is zero.

    Parameters
    ----------
    x : ndarray of shape (N, C, H, W)
        The images, float32 or float64.
    pool_size : int or (int, int)
        Height and width of the window.
    stride : int or (int, int), optional
        Step of the window; None means `pool_size`, windows side by side.
    padding : int, (int, int), ((top, bottom), (left, right)), "same" or "valid"
        Pixels added around the image, on each side fewer than the window has.
    ceil_mode : bool
        Also take a last window that sticks out of the padded image, unless it would start behind
        the image. What sticks out is not counted.
    count_include_pad : bool
        Divide by all pixels of the window, or only by those inside the image.

    Returns
    -------
    ndarray of shape (N, C, Ho, Wo)
        Ho = floor((H + top + bottom - KH) / stride) + 1; ceil with `ceil_mode`.

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> x = np.array([[1, 3, 2, 1], [4, 2, 0, 5], [3, 1, 4, 2], [2, 0, 3, 6]], float)
    >>> cnnx.avg_pool2d(x[None, None], 2)[0, 0]
    array([[2.5 , 2.  ],
           [1.5 , 3.75]])
    """
    (x,) = floats(_X, x)
    window, (out_shape, strides, pads, _) = geometry(
        x.shape, pool_size, stride, padding, 1, ceil_mode
    )
    include = flag(count_include_pad, "count_include_pad")
    out = empty(out_shape, x)
    if x.shape[0]:
        _dispatch.backend().avg_pool2d(x, window, strides, pads, include, out)
    return out


def avg_pool2d_backward(
    grad_out: Array,
    input_shape: tuple[int, int, int, int],
    pool_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: PaddingLike = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array:
    """Return the gradient of `avg_pool2d` with respect to x: each number is shared out evenly.

    Parameters
    ----------
    grad_out : ndarray of shape (N, C, Ho, Wo)
        Gradient of the loss with respect to the output.
    input_shape : (N, C, H, W)
        Shape of the forward's x.
    pool_size, stride, padding, ceil_mode, count_include_pad
        As they were given to `avg_pool2d`.

    Returns
    -------
    ndarray of shape (N, C, H, W)

    Raises
    ------
    TypeError, ValueError
        As `avg_pool2d`; also if grad_out has not the shape of the output.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> upstream = np.array([[[[0.5, 1.2], [0.8, -0.3]]]])
    >>> cnnx.avg_pool2d_backward(upstream, (1, 1, 4, 4), 2)[0, 0]
    array([[ 0.125,  0.125,  0.3  ,  0.3  ],
           [ 0.125,  0.125,  0.3  ,  0.3  ],
           [ 0.2  ,  0.2  , -0.075, -0.075],
           [ 0.2  ,  0.2  , -0.075, -0.075]])
    """
    (grad_out,) = floats(_GRAD_OUT, grad_out)
    shape = images_shape(input_shape, "input_shape")
    window, (out_shape, strides, pads, _) = geometry(
        shape, pool_size, stride, padding, 1, ceil_mode
    )
    require_shape("grad_out", grad_out, out_shape, "the shape of avg_pool2d's output")
    include = flag(count_include_pad, "count_include_pad")
    grad_x = empty(shape, grad_out)
    if shape[0]:
        _dispatch.backend().avg_pool2d_backward(grad_out, window, strides, pads, include, grad_x)
    return grad_x


def _whole_image(shape: _shapes.Shape) -> _shapes.Pair:
    """Return the window that covers the whole image."""
    return max(shape[2], 1), max(shape[3], 1)


def global_avg_pool2d(x: Array) -> Array:
    """Take the mean of each channel of each image.

    Parameters
    ----------
    x : ndarray of shape (N, C, H, W)
        The images, float32 or float64.

    Returns
    -------
    ndarray of shape (N, C)

    Raises
    ------
    TypeError
        If x is not a NumPy array of float32 or float64.
    ValueError
        If x has not 4 dimensions, or no channel or pixel.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.global_avg_pool2d(np.arange(8.0).reshape(1, 2, 2, 2))
    array([[1.5, 5.5]])
    """
    (x,) = floats(_X, x)
    window, _ = geometry(x.shape, _whole_image(x.shape), None, 0, 1, False)
    out = empty((*x.shape[:2], 1, 1), x)
    if x.shape[0]:
        _dispatch.backend().avg_pool2d(x, window, window, (0, 0, 0, 0), True, out)
    return out.reshape(x.shape[:2])


def global_avg_pool2d_backward(grad_out: Array, input_shape: tuple[int, int, int, int]) -> Array:
    """Return the gradient of `global_avg_pool2d` with respect to x.

    Parameters
    ----------
    grad_out : ndarray of shape (N, C)
        Gradient of the loss with respect to the output.
    input_shape : (N, C, H, W)
        Shape of the forward's x.

    Returns
    -------
    ndarray of shape (N, C, H, W)

    Raises
    ------
    TypeError, ValueError
        As `global_avg_pool2d`; also if grad_out has not the shape of the output.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.global_avg_pool2d_backward(np.array([[1.0, 8.0]]), (1, 2, 1, 2))
    array([[[[0.5, 0.5]],
    <BLANKLINE>
            [[4. , 4. ]]]])
    """
    (grad_out,) = floats((("grad_out", 2, "(N, C)", True),), grad_out)
    shape = images_shape(input_shape, "input_shape")
    window, _ = geometry(shape, _whole_image(shape), None, 0, 1, False)
    require_shape("grad_out", grad_out, shape[:2], "the batch and channels of input_shape")
    grad_x = empty(shape, grad_out)
    if shape[0]:
        _dispatch.backend().avg_pool2d_backward(
            grad_out.reshape(*shape[:2], 1, 1), window, window, (0, 0, 0, 0), True, grad_x
        )
    return grad_x
