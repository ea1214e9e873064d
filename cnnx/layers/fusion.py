"""A frozen net's shorter form: a layer with weights takes in what follows it.

In ``eval()`` mode batch normalisation is a scale and a shift of each channel,
``weight * (z - mean) / sqrt(var + eps) + bias``. The convolution before it takes both into its own
weight and bias, once, and the normalisation's pass over the images is gone. An activation is
applied as the layer before it stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np

from cnnx.layers.activation import ReLU, ReLU6, Sigmoid, Tanh
from cnnx.layers.base import Array
from cnnx.layers.conv import Conv2D
from cnnx.layers.dense import Dense
from cnnx.layers.norm import BatchNorm2D

_NAMES: dict[type, str] = {ReLU: "relu", ReLU6: "relu6", Sigmoid: "sigmoid", Tanh: "tanh"}
_FUSIBLE: dict[type, tuple[str, ...]] = {  # what each layer's kernel can apply as it stores
    Conv2D: ("relu", "relu6", "sigmoid", "tanh"),
    Dense: ("relu", "sigmoid", "tanh"),
    BatchNorm2D: ("relu", "relu6"),
}


def fused(layers: Sequence[Any]) -> list[Any]:
    """Return layers that compute the same, each with those that it can take in.

    Only the library's own classes take part, as they are: not a subclass, nor an object with a
    forward of its own, nor a layer that was taken out of the frozen state.
    """
    result: list[Any] = []
    for layer in layers:
        last: Any = result[-1] if result else None
        if not (_plain(last) and _plain(layer) and getattr(last, "activation", "") is None):
            result.append(layer)
        elif _NAMES.get(type(layer)) in _FUSIBLE[type(last)]:
            result[-1] = _again(last, last.params, _NAMES[type(layer)])
        elif (
            type(last) is Conv2D
            and type(layer) is BatchNorm2D
            and layer.num_features == last.out_channels
        ):
            result[-1] = _folded(last, layer)
        else:
            result.append(layer)
    return result


def _plain(layer: Any) -> bool:
    """Whether this is a frozen layer of a class known here, with the forward of its class."""
    known = type(layer) in _FUSIBLE or type(layer) in _NAMES
    return known and layer.frozen and "forward" not in vars(layer)


def _again(layer: Any, params: dict[str, Array], activation: str | None) -> Any:
    """The same layer with other parameters and another activation."""
    result = copy(layer)
    result.params, result.activation, result._kept = params, activation, None
    return result


def _folded(conv: Conv2D, norm: BatchNorm2D) -> Any:
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
