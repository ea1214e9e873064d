"""Activations as layers: elementwise functions, and softmax.

ReLU, sigmoid, tanh and softmax keep their output for backward, for their derivative can be read
from it, and the next layer keeps the same array as its input; the others keep their input.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from cnnx import functional as F
from cnnx.functional import _arguments as check
from cnnx.functional._activation import activation_backward_from_output
from cnnx.functional._softmax import softmax_backward_from_output
from cnnx.layers.base import Array, Layer


class _FromOutput(Layer):
    """An activation whose derivative is a function of its output."""

    kind: ClassVar[Literal["relu", "sigmoid", "tanh"]]

    def forward(self, x: Array) -> Array:
        """Return the activation of each element of x, an array of any shape."""
        out: Array = getattr(F, self.kind)(x)
        self._saved = (out,)
        return out

    def backward(self, grad_out: Array) -> Array:
        """Return grad_x for grad_out, both in the shape of x."""
        (out,) = self._recall()
        return activation_backward_from_output(grad_out, out, self.kind)

    def _before_activation(self, grad_out: Array) -> Array:
        """Backward for a gradient that has been through the activation."""
        return grad_out


class _FromInput(Layer):
    """An activation whose derivative is a function of its input."""

    kind: ClassVar[Literal["relu6", "gelu", "silu"]]

    def forward(self, x: Array) -> Array:
        """Return the activation of each element of x, an array of any shape."""
        out: Array = getattr(F, self.kind)(x)
        self._saved = (x,)
        return out

    def backward(self, grad_out: Array) -> Array:
        """Return grad_x for grad_out, both in the shape of x."""
        (x,) = self._recall()
        grad_x: Array = getattr(F, f"{self.kind}_backward")(grad_out, x)
        return grad_x


class ReLU(_FromOutput):
    """The rectified linear unit, max(x, 0), for arrays of any shape; the slope at 0 is 0.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> relu = cnnx.ReLU()
    >>> relu(np.array([-2.0, 0.0, 3.0]))
    array([0., 0., 3.])
    >>> relu.backward(np.array([1.0, 1.0, 1.0]))
    array([0., 0., 1.])
    """

    kind = "relu"


class Sigmoid(_FromOutput):
    """The logistic function, 1 / (1 + exp(-x)), for arrays of any shape.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.Sigmoid()(np.array([0.0]))
    array([0.5])
    """

    kind = "sigmoid"


class Tanh(_FromOutput):
    """The hyperbolic tangent, for arrays of any shape.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.Tanh()(np.array([0.0]))
    array([0.])
    """

    kind = "tanh"


class ReLU6(_FromInput):
    """ReLU with a ceiling, min(max(x, 0), 6), for arrays of any shape.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.ReLU6()(np.array([-1.0, 2.0, 9.0]))
    array([0., 2., 6.])
    """

    kind = "relu6"


class GELU(_FromInput):
    """The Gaussian error linear unit, x * Phi(x), for arrays of any shape.

    Phi is the distribution function of the standard normal; it is computed exactly, by erf, and
    not by the approximation with tanh.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.GELU()(np.array([0.0, 1.0])).round(4)
    array([0.    , 0.8413])
    """

    kind = "gelu"


class SiLU(_FromInput):
    """The sigmoid linear unit or swish, x / (1 + exp(-x)), for arrays of any shape.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.SiLU()(np.array([0.0, 1.0])).round(4)
    array([0.    , 0.7311])
    """

    kind = "silu"


class LeakyReLU(Layer):
    """ReLU that lets a little through: x where x > 0, slope * x elsewhere, for any shape.

    Parameters
    ----------
    slope : float
        The slope for negative x, and at 0.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> leaky = cnnx.LeakyReLU(0.5)
    >>> leaky(np.array([-2.0, 3.0]))
    array([-1.,  3.])
    >>> leaky.backward(np.array([1.0, 1.0]))
    array([0.5, 1. ])
    """

    def __init__(self, slope: float = 0.01) -> None:
        super().__init__()
        self.slope = check.number(slope, "slope")

    def forward(self, x: Array) -> Array:
        """Return the activation of each element of x, an array of any shape."""
        out = F.leaky_relu(x, self.slope)
        self._saved = (x,)
        return out

    def backward(self, grad_out: Array) -> Array:
        """Return grad_x for grad_out, both in the shape of x."""
        (x,) = self._recall()
        return F.leaky_relu_backward(grad_out, x, self.slope)


class Softmax(Layer):
    """Probabilities from scores: out_k = exp(x_k) / sum over j of exp(x_j), along an axis.

    To train a classifier, leave it out: :class:`cnnx.SoftmaxCrossEntropy` contains it, and is exact
    where a probability would have been rounded to 0.

    Parameters
    ----------
    axis : int
        The axis whose elements sum to 1 in the output.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> cnnx.Softmax()(np.log(np.array([[1.0, 3.0]])))
    array([[0.25, 0.75]])
    """

    def __init__(self, axis: int = -1) -> None:
        super().__init__()
        self.axis = check.integer(axis, "axis", -(2**31))

    def forward(self, x: Array) -> Array:
        """Return the probabilities, in the shape of x."""
        out = F.softmax(x, self.axis)
        self._saved = (out,)
        return out

    def backward(self, grad_out: Array) -> Array:
        """Return grad_x for grad_out, both in the shape of x."""
        (out,) = self._recall()
        return softmax_backward_from_output(grad_out, out, self.axis, log=False)
