"""Dropout."""

from __future__ import annotations

import numpy as np

from cnnx.functional import _arguments as check
from cnnx.layers.base import Array, Layer
from cnnx.layers.weighted import Seed

_X = (("x", None, "", True),)
_GRAD_OUT = (("grad_out", None, "", True),)


class Dropout(Layer):
    """In training, set each element to 0 with probability p, and divide the others by 1 - p.

    The division keeps the expected value, so that after :meth:`~cnnx.Layer.eval` the layer is the
    identity (Srivastava et al. 2014, JMLR 15; this form is called inverted dropout).

    Parameters
    ----------
    p : float
        From 0 (inclusive) to 1 (exclusive).
    rng : None, int or numpy.random.Generator
        Seed of the masks. Each forward in training draws a new one; a seed gives the same sequence,
        in either dtype.

    Notes
    -----
    x and the output have the same shape, which may be any.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> drop = cnnx.Dropout(0.5, rng=0)
    >>> out = drop(np.ones(1000))
    >>> np.unique(out)
    array([0., 2.])
    >>> bool(np.array_equal(drop.backward(np.ones(1000)), out))
    True
    >>> drop.eval()(np.array([3.0]))
    array([3.])
    """

    def __init__(self, p: float = 0.5, rng: Seed = None) -> None:
        super().__init__()
        self.p = check.number(p, "p", 0, below=1)
        self.rng = check.generator(rng)

    def forward(self, x: Array) -> Array:
        """Return x with elements dropped; x itself after :meth:`~cnnx.Layer.eval`."""
        (x,) = check.floats(_X, x)
        if not self.training or self.p == 0:
            self._saved = (x.shape, None)
            return x
        kept = self.rng.random(x.shape, dtype=np.float32) >= self.p
        mask = kept * x.dtype.type(1 / (1 - self.p))
        self._saved = (x.shape, mask)
        out: Array = x * mask
        return out

    def backward(self, grad_out: Array) -> Array:
        """Return grad_out where elements were kept, divided by 1 - p, and 0 elsewhere."""
        shape, mask = self._recall()
        (grad_out,) = check.floats(_GRAD_OUT, grad_out)
        check.require_shape("grad_out", grad_out, shape)
        return grad_out if mask is None else grad_out * mask
