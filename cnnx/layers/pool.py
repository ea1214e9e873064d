"""Pooling: the maximum or the mean of a window, or the mean of the whole image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnx import _shapes
from cnnx import functional as F
from cnnx.functional import _arguments as check
from cnnx.functional._activation import activation_backward_from_output
from cnnx.functional._arguments import IntOrPair, PaddingLike
from cnnx.layers.base import Array, Layer


class MaxPool2D(Layer):
    """The maximum of each window: out[n, c, i, j] = max of x over the window at (i, j).

    Parameters
    ----------
    pool_size : int or (int, int)
        The window, (height, width).
    stride : int, (int, int) or None
        From window to window; None means `pool_size`.
    padding : int, (int, int), ((top, bottom), (left, right)), "same" or "valid"
        Of minus infinity; smaller than the window.
    dilation : int or (int, int)
        The distance between the pixels of a window.
    ceil_mode : bool
        Whether to keep a last window that begins inside the image and reaches beyond it.

    Notes
    -----
    x is (N, C, H, W) and the output (N, C, H', W'). NaN wins, and of equal values the first, row
    by row. Where windows overlap, a pixel that is the maximum of several gets the gradients of
    all of them, added up; assigning the last one is a frequent mistake.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> pool = cnnx.MaxPool2D(2)
    >>> x = np.array([[1, 3, 2, 1], [4, 2, 0, 5], [3, 1, 4, 2], [2, 0, 3, 6]], float)
    >>> pool(x[None, None])[0, 0]
    array([[4., 5.],
           [3., 6.]])
    >>> pool.max_indices[0, 0, 0].tolist()  # the 4 at (1, 0), the 5 at (1, 3)
    [[1, 0], [1, 3]]
    >>> pool.backward(np.array([[[[0.5, 1.2], [0.8, -0.3]]]]))[0, 0]
    array([[ 0. ,  0. ,  0. ,  0. ],
           [ 0.5,  0. ,  0. ,  1.2],
           [ 0.8,  0. ,  0. ,  0. ],
           [ 0. ,  0. ,  0. , -0.3]])
    """

    def __init__(
        self,
        pool_size: IntOrPair = 2,
        stride: IntOrPair | None = None,
        padding: PaddingLike = 0,
        dilation: IntOrPair = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        _check_window(pool_size, stride, padding, dilation)
        self.pool_size = pool_size
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.ceil_mode = check.flag(ceil_mode, "ceil_mode")

    def forward(self, x: Array) -> Array:
        """Return the maxima (N, C, H', W') of x (N, C, H, W)."""
        window = (self.pool_size, self.stride, self.padding, self.dilation, self.ceil_mode)
        out: Array
        if self.frozen:  # nobody asks where the maxima stood
            self._saved, out = None, F.max_pool2d(x, *window)
            return out
        out, indices = F.max_pool2d(x, *window, return_indices=True)
        self._saved = (indices, x.shape)
        self._maxima, self._x_id = out, id(x)  # for a ReLU before, see relu_of_maxima
        return out

    def backward(self, grad_out: Array) -> Array:
        """Return grad_x (N, C, H, W) for grad_out (N, C, H', W')."""
        indices, shape = self._recall()
        return F.max_pool2d_backward(grad_out, indices, shape)

    def _after_relu(self, grad_out: Array) -> Array:
        """Backward for maxima of a ReLU's output, through the ReLU as well."""
        return self.backward(activation_backward_from_output(grad_out, self._maxima, "relu"))

    @property
    def max_indices(self) -> NDArray[np.int64]:
        """Where the maxima of the last forward stood: (N, C, H', W', 2) int64, row and column."""
        if self._saved is None and not self.frozen:
            raise RuntimeError("MaxPool2D.max_indices came before forward: there are no maxima yet")
        indices, shape = self._recall()
        return np.stack(np.divmod(indices, shape[3]), axis=-1)


class AvgPool2D(Layer):
    """The mean of each window.

    Parameters
    ----------
    pool_size : int or (int, int)
        The window, (height, width).
    stride : int, (int, int) or None
        From window to window; None means `pool_size`.
    padding : int, (int, int), ((top, bottom), (left, right)), "same" or "valid"
        Of zeros; smaller than the window.
    ceil_mode : bool
        Whether to keep a last window that begins inside the image and reaches beyond it.
    count_include_pad : bool
        Whether the padding counts as pixels; False divides by the pixels of the image alone.

    Notes
    -----
    x is (N, C, H, W) and the output (N, C, H', W').

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> pool = cnnx.AvgPool2D(2)
    >>> x = np.array([[1, 3, 2, 1], [4, 2, 0, 5], [3, 1, 4, 2], [2, 0, 3, 6]], float)
    >>> pool(x[None, None])[0, 0]
    array([[2.5 , 2.  ],
           [1.5 , 3.75]])
    >>> pool.backward(np.array([[[[0.5, 1.2], [0.8, -0.3]]]]))[0, 0, ::2, ::2]
    array([[ 0.125,  0.3  ],
           [ 0.2  , -0.075]])
    """

    def __init__(
        self,
        pool_size: IntOrPair = 2,
        stride: IntOrPair | None = None,
        padding: PaddingLike = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__()
        _check_window(pool_size, stride, padding, 1)
        self.pool_size = pool_size
        self.stride = stride
        self.padding = padding
        self.ceil_mode = check.flag(ceil_mode, "ceil_mode")
        self.count_include_pad = check.flag(count_include_pad, "count_include_pad")

    def _options(self) -> tuple[Any, ...]:
        return self.pool_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad

    def forward(self, x: Array) -> Array:
        """Return the means (N, C, H', W') of x (N, C, H, W)."""
        out = F.avg_pool2d(x, *self._options())
        self._saved = (x.shape,)
        return out

    def backward(self, grad_out: Array) -> Array:
        """Return grad_x (N, C, H, W) for grad_out (N, C, H', W')."""
        (shape,) = self._recall()
        return F.avg_pool2d_backward(grad_out, shape, *self._options())


class GlobalAvgPool2D(Layer):
    """The mean of each channel: out[n, c] = mean of x[n, c, :, :].

    Notes
    -----
    x is (N, C, H, W) and the output (N, C).

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> pool = cnnx.GlobalAvgPool2D()
    >>> pool(np.arange(8.0).reshape(1, 2, 2, 2))
    array([[1.5, 5.5]])
    >>> pool.backward(np.array([[4.0, 8.0]]))[0, 1]
    array([[2., 2.],
           [2., 2.]])
    """

    def forward(self, x: Array) -> Array:
        """Return the means (N, C) of x (N, C, H, W)."""
        out = F.global_avg_pool2d(x)
        self._saved = (x.shape,)
        return out

    def backward(self, grad_out: Array) -> Array:
        """Return grad_x (N, C, H, W) for grad_out (N, C)."""
        (shape,) = self._recall()
        return F.global_avg_pool2d_backward(grad_out, shape)


def _check_window(
    pool_size: IntOrPair, stride: IntOrPair | None, padding: PaddingLike, dilation: IntOrPair
) -> None:
    """Raise for a window that fits no image."""
    window = check.pair(pool_size, "pool_size")
    check.pair(pool_size if stride is None else stride, "stride")
    spread, pads = check.pair(dilation, "dilation"), check.padding(padding)
    if pads != "same":  # which never reaches beyond the window
        _shapes.require_window_beyond(pads, window, spread)
