"""Batch normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnx import functional as F
from cnnx.functional import _arguments as check
from cnnx.functional import _optim
from cnnx.functional._norm import ACTIVATIONS, NormActivation
from cnnx.layers.base import Array, Layer, checked_dtype

_X = (("x", 4, check.IMAGES, True),)


class BatchNorm2D(Layer):
    """Bring each channel to mean 0 and variance 1, then scale and shift it.

    ::

        out[:, c] = activation(weight[c] * (x[:, c] - mean[c]) / sqrt(var[c] + eps) + bias[c])

    In training, mean and (biased) variance are those of the batch, and the running ones move
    towards them: running = (1 - momentum) * running + momentum * batch, with the unbiased variance.
    After :meth:`~cnnx.Layer.eval` the running ones are used (Ioffe and Szegedy 2015,
    arXiv:1502.03167).

    Parameters
    ----------
    num_features : int
        Channels, C.
    eps : float
        Added to the variance, so that constant channels do not divide by zero.
    momentum : float
        The share of the new batch in the running statistics, from 0 to 1.
    affine : bool
        Whether there are a weight and a bias.
    activation : {None, "relu", "relu6"}
        Applied as the output is stored, and undone as backward reads it: no pass of its own.
    dtype : {"float32", "float64"}
        Of parameters and running statistics.

    Attributes
    ----------
    params : dict
        "weight" (C,), one, and "bias" (C,), zero; empty without `affine`.
    buffers : dict
        "running_mean" (C,), zero, and "running_var" (C,), one.

    Notes
    -----
    x and the output are (N, C, H, W). In training there must be more than one pixel a channel. An
    infinity or NaN in a channel makes its running statistics useless for good, as in PyTorch;
    ``load_state_dict`` puts others in their place.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> norm = cnnx.BatchNorm2D(1, eps=0, dtype="float64")
    >>> norm(np.array([[[[1.0, 3.0]]]]))
    array([[[[-1.,  1.]]]])
    >>> norm.buffers["running_mean"]  # a tenth of the way to the batch's mean, 2
    array([0.2])
    >>> norm.buffers["running_var"]  # a tenth of the way from 1 to the unbiased variance, 2
    array([1.1])
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        activation: NormActivation = None,
        dtype: str | np.dtype[Any] = "float32",
    ) -> None:
        super().__init__()
        self.num_features = check.integer(num_features, "num_features", 1)
        self.eps = check.number(eps, "eps", 0.0)
        self.momentum = check.number(momentum, "momentum", 0, 1)
        self.affine = check.flag(affine, "affine")
        self.activation = check.choice(activation, "activation", ACTIVATIONS)
        self.dtype = checked_dtype(dtype)
        if self.affine:
            self.params["weight"] = np.ones(self.num_features, self.dtype)
            self.params["bias"] = np.zeros(self.num_features, self.dtype)
        self.grads.update({name: np.zeros_like(array) for name, array in self.params.items()})
        self.buffers["running_mean"] = np.zeros(self.num_features, self.dtype)
        self.buffers["running_var"] = np.ones(self.num_features, self.dtype)

    def forward(self, x: Array) -> Array:
        """Return the normalised x (N, C, H, W); in training, move the running statistics."""
        affine = (self.params.get("weight"), self.params.get("bias"))
        mean, var = self.buffers["running_mean"], self.buffers["running_var"]
        out: Array
        if self.training:
            (x,) = check.floats(_X, x)
            if x.shape[1] != self.num_features:
                raise ValueError(
                    f"x has shape {x.shape}, expected {self.num_features} channels along axis 1"
                )
            for name, kept in (("running_mean", mean), ("running_var", var)):
                check.require_shape(f"buffers[{name!r}]", kept, (self.num_features,))
            pixels = x.shape[0] * x.shape[2] * x.shape[3]
            if pixels == 1:
                raise ValueError(
                    f"x has shape {x.shape}: one pixel a channel has no variance to train on; give "
                    "more images, or call eval()"
                )
            out, mean, var = F.batch_norm2d(
                x, *affine, eps=self.eps, return_stats=True, activation=self.activation
            )
            if pixels:
                self._follow("running_mean", mean, 1.0)
                self._follow("running_var", var, pixels / (pixels - 1))
        else:
            out = F.batch_norm2d(x, *affine, mean, var, self.eps, activation=self.activation)
        self._saved = (x, mean, var, self.training)
        return out

    def _follow(self, name: str, batch: Array, factor: float) -> None:
        """Move a running statistic towards factor * batch, in place.

        In one pass, by a step of gradient descent: running -= rate * (batch - running / factor).
        """
        rate = -self.momentum * factor
        _optim.sgd(self.buffers[name], batch, None, rate, 0.0, -1 / factor, nesterov=False)

    def backward(self, grad_out: Array) -> Array:
        """Return grad_x for grad_out, both (N, C, H, W), and fill `grads`.

        After a forward in training the gradient flows through the batch's mean and variance too;
        after one in eval they are constants.
        """
        x, mean, var, batch_stats = self._recall()
        grad_x, grad_weight, grad_bias = F.batch_norm2d_backward(
            grad_out,
            x,
            self.params.get("weight"),
            mean,
            var,
            self.eps,
            batch_stats,
            bias=self.params.get("bias"),
            activation=self.activation,
        )
        if self.affine:
            self.grads["weight"], self.grads["bias"] = grad_weight, grad_bias
        return grad_x
