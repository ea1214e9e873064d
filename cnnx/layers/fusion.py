"""Layers of a net that work together, to save passes over the images.

A frozen net has a shorter form, in which a layer with weights takes in what follows it.
In ``eval()`` mode batch normalisation is a scale and a shift of each channel,
``weight * (z - mean) / sqrt(var + eps) + bias``. The convolution before it takes both into its own
weight and bias, once, and the normalisation's pass over the images is gone. An activation is
applied as the layer before it stores.

In training the gradient goes through a ReLU at the maxima that a pooling has taken of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np

from cnnx.layers.activation import ReLU, ReLU6, Sigmoid, SiLU, Tanh
from cnnx.layers.base import Array
from cnnx.layers.conv import Conv2D
from cnnx.layers.dense import Dense
from cnnx.layers.norm import BatchNorm2D
from cnnx.layers.shape import Flatten

_NAMES: dict[type, str] = {
    ReLU: "relu",
    ReLU6: "relu6",
    Sigmoid: "sigmoid",
    SiLU: "silu",
    Tanh: "tanh",
}
_FUSIBLE: dict[type, tuple[str, ...]] = {  # what each layer's kernel can apply as it stores
    Conv2D: ("relu", "relu6", "sigmoid", "silu", "tanh"),
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


def relu_of_maxima(layers: Sequence[Any], number: int) -> bool:
    """Whether the gradient of max pool `number` may go through the ReLU before it as it comes.

    A maximum is above 0 where the pixel is that it was taken from, so a quarter of the numbers tell
    what all of them would. They are read again: what comes next must rely on them as well. Only
    the library's own classes take part, as they are, on what one forward left.
    """
    if not 0 < number < len(layers) - 1:
        return False
    before, pool, after = layers[number - 1 : number + 2]
    if type(after) is Flatten and number + 2 < len(layers):
        after = layers[number + 2]
    return (
        type(after) in (Conv2D, Dense)
        and (type(before) is ReLU or (type(before) is Conv2D and before.activation == "relu"))
        and not ("backward" in vars(before) or "backward" in vars(pool))
        and before._saved is not None
        and pool._saved is not None
        and pool._x_id == id(before._saved[-1])
    )


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
