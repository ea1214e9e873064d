"""The fully connected layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnx import functional as F
from cnnx.functional import _arguments as check
from cnnx.functional._activation import activation_backward_from_output
from cnnx.functional._conv import ACTIVATIONS, Activation
from cnnx.layers.base import Array
from cnnx.layers.weighted import Seed, WeightedLayer


class Dense(WeightedLayer):
    """Fully connected: out = activation(x @ weight + bias).

    Parameters
    ----------
    in_features, out_features : int
        The columns of x and of the output.
    bias : bool
        Whether to add one number for each column of the output.
    activation : {None, "relu", "sigmoid", "tanh"}
        Applied as the output is stored, without a second pass over it.
    dtype : {"float32", "float64"}
        Of the parameters.
    rng : None, int or numpy.random.Generator
        Seed of the weights.

    Attributes
    ----------
    params : dict
        "weight" (in_features, out_features), He-normal, the transpose of PyTorch's; "bias"
        (out_features,), zero.

    Notes
    -----
    x is (N, in_features) and the output (N, out_features); :class:`Flatten` makes rows of images.
    With an activation, backward reads the output that forward returned: do not change it.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> dense = cnnx.Dense(2, 1, dtype="float64")
    >>> dense.params["weight"][...] = [[2.0], [3.0]]
    >>> dense(np.array([[10.0, 100.0]]))
    array([[320.]])
    >>> dense.backward(np.array([[1.0]]))
    array([[2., 3.]])
    >>> dense.grads["weight"]
    array([[ 10.],
           [100.]])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: Activation = None,
        dtype: str | np.dtype[Any] = "float32",
        rng: Seed = None,
    ) -> None:
        super().__init__()
        self.in_features = check.integer(in_features, "in_features", 1)
        self.out_features = check.integer(out_features, "out_features", 1)
        self.activation = check.choice(activation, "activation", ACTIVATIONS)
        shape = (self.in_features, self.out_features)
        biases = self.out_features if check.flag(bias, "bias") else 0
        self._begin(shape, self.in_features, biases, dtype, rng)

    def forward(self, x: Array) -> Array:
        """Return the output (N, out_features) for x (N, in_features)."""
        out = F.linear(x, self.params["weight"], self.params.get("bias"), self.activation)
        self._saved = (x, out if self.activation else None)
        return out

    def backward(self, grad_out: Array) -> Array:
        """Return grad_x (N, in_features) for grad_out (N, out_features), and fill `grads`."""
        x, out = self._recall()
        if self.activation is not None:
            grad_out = activation_backward_from_output(grad_out, out, self.activation)
        return self._keep(*F.linear_backward(grad_out, x, self.params["weight"], self._need()))
