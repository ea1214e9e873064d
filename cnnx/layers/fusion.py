"""A frozen net's shorter form: a convolution, a normalisation and an activation become one layer.

In ``eval()`` mode batch normalisation is a scale and a shift of each channel,
``weight * (z - mean) / sqrt(var + eps) + bias``. The convolution before it takes both into its own
weight and bias, once, and the normalisation's pass over the images is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np

from cnnx.layers.activation import ReLU, ReLU6, Sigmoid, Tanh
from cnnx.layers.base import Array
from cnnx.layers.conv import Conv2D
from cnnx.layers.norm import BatchNorm2D

_ACTIVATIONS: dict[type, str] = {ReLU: "relu", ReLU6: "relu6", Sigmoid: "sigmoid", Tanh: "tanh"}


def fused(layers: Sequence[Any]) -> list[Any]:
    """Return layers that compute the same, each :class:`Conv2D` with what follows it in one.

    Only the library's own classes take part, as they are: not a subclass, nor an object with a
    forward of its own, nor a layer that was taken out of the frozen state.
    """
    result: list[Any] = []
    for layer in layers:
        conv: Any = result[-1] if result else None
        kind = type(layer)
        if not (_plain(conv, Conv2D) and conv.activation is None and _plain(layer, kind)):
            result.append(layer)
        elif kind is BatchNorm2D and layer.num_features == conv.out_channels:
            result[-1] = _folded(conv, layer)
        elif kind in _ACTIVATIONS:
            result[-1] = _again(conv, conv.params, _ACTIVATIONS[kind])
        else:
            result.append(layer)
    return result


def _plain(layer: Any, kind: type) -> Any:
    return type(layer) is kind and getattr(layer, "frozen", False) and "forward" not in vars(layer)


def _again(conv: Conv2D, params: dict[str, Array], activation: Any) -> Conv2D:
    """The same convolution with other parameters and another activation."""
    result = copy(conv)
    result.params, result.activation, result._kept = params, activation, None
    return result


def _folded(conv: Conv2D, norm: BatchNorm2D) -> Conv2D:
    """The convolution with the normalisation in its weight and bias."""
    mean, var = (norm.buffers[name].astype(np.float64) for name in ("running_mean", "running_var"))
    scale = norm.params.get("weight", 1.0) / np.sqrt(var + norm.eps)
    bias = norm.params.get("bias", 0.0) + (conv.params.get("bias", 0.0) - mean) * scale
    weight = conv.params["weight"]
    params = {
        "weight": (weight * scale.reshape(-1, 1, 1, 1)).astype(weight.dtype),
        "bias": bias.astype(weight.dtype),
    }
    return _again(conv, params, norm.activation)
