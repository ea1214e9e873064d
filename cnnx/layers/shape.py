"""Flatten: from images to rows."""

from __future__ import annotations

from math import prod

from cnnx.functional import _arguments as check
from cnnx.layers.base import Array, Layer

_X = (("x", None, "", True),)
_GRAD_OUT = (("grad_out", 2, "(N, features)", True),)


class Flatten(Layer):
    """Make a row of each image: (N, C, H, W) to (N, C*H*W), and any (N, ...) likewise.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> flatten = cnnx.Flatten()
    >>> flatten(np.zeros((2, 3, 4, 4))).shape
    (2, 48)
    >>> flatten.backward(np.zeros((2, 48))).shape
    (2, 3, 4, 4)
    """

    def forward(self, x: Array) -> Array:
        """Return x as (N, C*H*W); the same memory where that is possible."""
        (x,) = check.floats(_X, x)
        if x.ndim == 0:
            raise ValueError("x has shape (), expected (N, ...)")
        self._saved = (x.shape,)
        return x.reshape(self._rows(x.shape))

    def backward(self, grad_out: Array) -> Array:
        """Return grad_out (N, C*H*W) in the shape of x."""
        (shape,) = self._recall()
        (grad_out,) = check.floats(_GRAD_OUT, grad_out)
        check.require_shape("grad_out", grad_out, self._rows(shape))
        return grad_out.reshape(shape)

    @staticmethod
    def _rows(shape: tuple[int, ...]) -> tuple[int, int]:
        return shape[0], prod(shape[1:])
