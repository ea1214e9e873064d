"""Batch normalisation over all shards of a batch, wherever they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from cnnx import functional as F
from cnnx.distributed._communicator import Array
from cnnx.distributed._lockstep import Meet
from cnnx.layers import BatchNorm2D


class _Together:
    """The forward and backward of a BatchNorm2D in training, with sums over all shards.

    Sums are taken in float64: they are few, and the mean of a large batch loses nothing.
    """

    def __init__(self, norm: BatchNorm2D, meet: Meet) -> None:
        self._norm, self._meet = norm, meet

    def forward(self, x: Array) -> Array:
        """Normalise by the mean and variance of all shards, and move the running ones by them."""
        norm = self._norm
        axes, pixels = (0, 2, 3), x.shape[0] * x.shape[2] * x.shape[3]
        *sums, count = self._meet(np.append(x.sum(axes, dtype=np.float64), pixels))
        if count == 1:
            raise ValueError(
                f"x has shape {x.shape} and is all of the batch: one pixel a channel has no "
                "variance to train on; give more images"
            )
        mean = np.array(sums) / count
        # About the mean, not as a difference of squares, which would cancel. In float64 too.
        squares = np.square(x - mean.reshape(-1, 1, 1)).sum(axes)
        var = self._meet(squares) / count
        norm._follow("running_mean", mean.astype(x.dtype), 1.0)
        norm._follow("running_var", var.astype(x.dtype), count / (count - 1))
        self._saved = (x, mean.astype(x.dtype), var.astype(x.dtype), count)
        affine = (norm.params.get("weight"), norm.params.get("bias"))
        out: Array = F.batch_norm2d(
            x, *affine, *self._saved[1:3], norm.eps, activation=norm.activation
        )
        return out

    def backward(self, grad_out: Array) -> Array:
        """Let the gradient flow through the mean and the variance of all shards too.

        With z = (x - mean) / s, s = sqrt(var + eps), and g the gradient by weight * z + bias::

            grad_x = weight / s * (g - mean of g - z * mean of (g * z))

        The kernel for constant statistics gives weight / s * g, and the two sums as the gradients
        of bias and weight.
        """
        norm, (x, mean, var, count) = self._norm, self._saved
        weight = norm.params.get("weight")
        grad_x, grad_weight, grad_bias = F.batch_norm2d_backward(
            grad_out,
            x,
            weight,
            mean,
            var,
            norm.eps,
            batch_stats=False,
            bias=norm.params.get("bias"),
            activation=norm.activation,
        )
        if norm.affine:
            norm.grads["weight"], norm.grads["bias"] = grad_weight, grad_bias
        sums = self._meet(np.concatenate([grad_weight, grad_bias]).astype(np.float64)) / count
        along_z, shift = np.split(sums, 2)
        inverse = 1 / np.sqrt(var.astype(np.float64) + norm.eps)
        scale = inverse if weight is None else inverse * weight
        slope, level = (
            column.astype(x.dtype).reshape(-1, 1, 1)
            for column in (scale * along_z * inverse, scale * shift)
        )
        correction = x - mean.reshape(-1, 1, 1)
        correction *= slope
        correction += level
        grad_x -= correction
        return grad_x


@contextmanager
def together(layers: list[Any], meet: Meet) -> Iterator[None]:
    """While it lasts, the batch normalisations among `layers` that train do so over all shards."""
    norms = [layer for layer in layers if type(layer) is BatchNorm2D and layer.training]
    for norm in norms:
        both = _Together(norm, meet)
        vars(norm).update(forward=both.forward, backward=both.backward)
    try:
        yield
    finally:
        for norm in norms:
            del vars(norm)["forward"], vars(norm)["backward"]
