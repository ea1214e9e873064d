"""Operators that compute each number by itself, with NumPy's broadcasting where they have two.

Each function takes a node, reads its attributes once, and returns the function that computes. The
result may be put into an array that is given as `out`, which may be one of the inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnx import _dispatch
from cnnx import functional as F
from cnnx.functional._arguments import empty, floating
from cnnx.onnx._images import Run
from cnnx.onnx._program import Array, Node

_UFUNCS = {
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Sqrt": np.sqrt,
    "Exp": np.exp,
    "Log": np.log,
    "Abs": np.abs,
    "Neg": np.negative,
    "Floor": np.floor,
    "Ceil": np.ceil,
}
IN_PLACE = frozenset({*_UFUNCS, "Add", "Sum", "Div", "Clip", "HardSigmoid"})


def ufunc(node: Node) -> Run:
    """What a function of NumPy computes."""
    function = _UFUNCS[node.op]

    def run(*inputs: Array, out: Array | None = None) -> Any:
        return function(*inputs, out=out)

    return run


def add(node: Node) -> Run:
    """The sum of two arrays or more; the attribute "activation" is the optimiser's."""
    activation = node.get("activation")

    def run(first: Array, *others: Array, out: Array | None = None) -> Any:
        for number, other in enumerate(others):
            if activation and number == len(others) - 1 and _alike(first, other):
                to = empty(first.shape, first) if out is None else out
                _dispatch.backend().add(first, other, activation, to)
                return to
            first = np.add(first, other, out=out)
        return np.maximum(first, 0, out=out) if activation else first

    return run


def _alike(x: Array, y: Array) -> bool:
    """Whether the kernel of sums takes two arrays."""
    return (
        x.shape == y.shape
        and x.dtype is y.dtype
        and x.dtype.kind == "f"
        and x.flags.c_contiguous
        and y.flags.c_contiguous
    )


def div(node: Node) -> Run:
    """x / y; of integers the quotient without its fraction."""

    def run(x: Array, y: Array, out: Array | None = None) -> Any:
        if x.dtype.kind == "f":
            return np.divide(x, y, out=out)
        if not np.all(y):
            raise ValueError("a division of integers by 0")
        return x // y + ((x % y != 0) & ((x < 0) != (y < 0)))  # -128 has no magnitude in int8

    return run


def power(node: Node) -> Run:
    """x ** y, in the dtype of x."""

    def run(x: Array, y: Array) -> Array:
        if y.size == 1 and y.ndim <= x.ndim and float(y.reshape(())) == 2.0:
            return np.multiply(x, x)
        return np.power(x, y).astype(x.dtype)

    return run


def extreme(node: Node) -> Run:
    """The smallest, or the largest, of several."""
    function = {"Min": np.minimum, "Max": np.maximum}[node.op]

    def run(first: Array, *others: Array) -> Any:
        for other in others:
            first = function(first, other)
        return first

    return run


# ---------------------------------------------------------------- activations


def activation(node: Node) -> Run:
    """Those that have no attributes."""
    return {"Relu": relu, "Sigmoid": F.sigmoid, "Tanh": F.tanh, "SiLU": F.silu}[node.op]


def relu(x: Array) -> Array:
    """max(x, 0), of integers too."""
    return F.relu(x) if x.dtype.kind == "f" else np.maximum(x, 0)


def erf(node: Node) -> Run:
    """The error function, from the kernel of gelu: erf(x) = 2 gelu(z) / z - 1, z = sqrt(2) x."""

    def run(x: Array) -> Any:
        z = np.clip(x * np.sqrt(2).astype(x.dtype), -30, 30)  # beyond, it is 1 to the last bit
        return np.where(z == 0, z, 2 * F.gelu(z) / np.where(z == 0, 1, z) - 1)

    return run


def leaky_relu(node: Node) -> Run:
    """x, or alpha * x where x is negative."""
    alpha = float(node.get("alpha", 0.01))
    return lambda x: F.leaky_relu(x, alpha)


def prelu(node: Node) -> Run:
    """x, or slope * x where x is negative."""

    def run(x: Array, slope: Array) -> Array:
        low = np.minimum(x, 0)
        low *= slopes(node, x, slope)
        low += np.maximum(x, 0)
        return low

    return run


def slopes(node: Node, x: Array, slope: Array) -> Array:
    """Return the slopes in a shape that x's broadcasts; before operator set 7 one a channel."""
    if node.opset >= 7 or slope.ndim != 1:
        return slope
    return slope.reshape(-1, *[1] * (x.ndim - 2))


def clip(node: Node) -> Run:
    """min(max(x, low), high), either of which may be missing."""
    lowest, highest = node.get("min"), node.get("max")

    def run(
        x: Array, low: Array | None = None, high: Array | None = None, out: Array | None = None
    ) -> Any:
        least = lowest if low is None else low.astype(x.dtype)
        most = highest if high is None else high.astype(x.dtype)
        if least is None and most is None:
            return x
        return np.clip(x, least, most, out=out)

    return run


def hard_sigmoid(node: Node) -> Run:
    """A line of slope alpha through beta, cut at 0 and 1."""
    alpha, beta = float(node.get("alpha", 0.2)), float(node.get("beta", 0.5))

    def run(x: Array, out: Array | None = None) -> Any:
        out = np.multiply(x, alpha, out=out)
        out += beta
        return np.clip(out, 0, 1, out=out)

    return run


def hard_swish(node: Node) -> Run:
    """x times its hard sigmoid, of slope 1/6."""

    def run(x: Array) -> Any:
        x = floating("x", x)
        gate = empty(x.shape, x)
        np.add(x, 3, out=gate)
        np.clip(gate, 0, 6, out=gate)  # a third of the time of maximum and minimum with a number
        gate *= 1 / 6
        gate *= x
        return gate

    return run
