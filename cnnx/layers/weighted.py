"""What the layers with a weight and a bias share: how both begin, and where gradients go."""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnx.functional import _arguments as check
from cnnx.layers.base import Array, Layer, checked_dtype

Seed = int | np.random.Generator | None


def he_normal(
    shape: tuple[int, ...], fan_in: float, dtype: np.dtype[Any], rng: Seed = None
) -> Array:
    """Return weights drawn from a normal distribution of variance 2 / fan_in.

    That keeps the size of the values from layer to layer when each is followed by a ReLU, which
    halves the mean square (He et al. 2015, arXiv:1502.01852, section 2.2).

    Parameters
    ----------
    shape : tuple of int
        The shape of the weights.
    fan_in : float
        How many products one output sums up.
    dtype : dtype
        Of the result. The numbers are drawn in float64 and rounded: one seed, one net.
    rng : None, int or numpy.random.Generator
        A seed, or where to draw from; None is different each time.
    """
    numbers = check.generator(rng).standard_normal(shape)
    weights: Array = (numbers * np.sqrt(2.0 / fan_in)).astype(dtype)
    return weights


class WeightedLayer(Layer):
    """Base class of the layers that have "weight" and, if wanted, "bias" among their params."""

    dtype: np.dtype[Any]

    def _begin(
        self,
        shape: tuple[int, ...],
        fan_in: float,
        biases: int,
        dtype: str | np.dtype[Any],
        rng: Seed,
    ) -> None:
        """Draw the weight, and let the biases, if there are any, and the gradients be zero."""
        self.dtype = checked_dtype(dtype)
        self.params["weight"] = he_normal(shape, fan_in, self.dtype, rng)
        if biases:
            self.params["bias"] = np.zeros(biases, self.dtype)
        self.grads.update({name: np.zeros_like(array) for name, array in self.params.items()})

    def _need(self) -> tuple[bool, bool, bool]:
        """Which gradients backward wants: x, weight, bias."""
        return self.needs_input_grad, True, "bias" in self.params

    def _keep(self, grad_x: Array | None, weight: Array | None, bias: Array | None) -> Array:
        """Put the gradients of weight and bias into `grads`, and return that of x, if any."""
        assert weight is not None  # `_need` says so  # nosec B101
        self.grads["weight"] = weight
        if bias is not None:
            self.grads["bias"] = bias
        return grad_x  # type: ignore[return-value]  # None for him who wanted none
