"""What a node does once its shapes are known: one call with nothing left to find out or to check.

The first run of a plan has checked everything, and what depends on shapes, dtypes and layouts
holds for each later one. A function here takes a node and the arrays of that run. Those of
``FILLS`` return what fills an array, ``f(*inputs, out=out)``, those of ``VIEWS`` what looks at its
input in another way, ``f(x, ...)``; None says that the node goes its checked way each time. A
kernel takes C-contiguous arrays of one dtype, float32 or float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from cnnx import _dispatch
from cnnx.functional._pool import geometry
from cnnx.onnx._arrays import slices, split_sizes
from cnnx.onnx._images import pair, window_pads
from cnnx.onnx._program import Array, Node
from cnnx.onnx._resize import repeat, repeated, whole_scales

Call = Callable[..., Any] | None

_RESHAPED = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
_KINDS = {
    "HardSwish": "hard_swish",
    "LeakyRelu": "leaky_relu",
    "Relu": "relu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
}


def fills(node: Node, inputs: Sequence[Any], result: Array, known: bool) -> Call:
    """Return the function that fills an array with a node's result, or None.

    `known` says that the inputs will lie in memory as they do now; else no kernel may take them.
    """
    make = FILLS.get(node.op)
    if make is None or not result.size or result.dtype.char not in "fd" or not result.flags.carray:
        return None
    return make(node, result, *inputs) if known or make in (_copied, _resize) else None


def views(node: Node, inputs: Sequence[Any], results: Sequence[Array]) -> Call:
    """Return the function that looks at the first input as a node does, or None."""
    if node.op in _RESHAPED and np.may_share_memory(inputs[0], results[0]):
        shape = results[0].shape
        return lambda x, *given: x.reshape(shape)
    make = VIEWS.get(node.op)
    return None if make is None else make(node, *inputs)


def _ready(result: Array, *arrays: Array | None) -> bool:
    """Whether a kernel takes these arrays as they are."""
    return all(
        array is None or (array.dtype is result.dtype and array.flags.carray)
        for array in (result, *arrays)
    )


# ---------------------------------------------------------------- kernels


def _conv(node: Node, y: Array, x: Array, weight: Array, bias: Array | None = None) -> Call:
    (kept,) = node.get("frozen", (None,))
    if not _ready(y, x, weight, bias):
        return None
    strides, dilations, groups = (
        pair(node, "strides"),
        pair(node, "dilations"),
        node.get("group", 1),
    )
    (top, bottom), (left, right) = window_pads(node)(x.shape, weight.shape[2:])
    rest = strides, (top, bottom, left, right), dilations, groups, node.get("activation")

    def run(x: Array, weight: Array, bias: Array | None = None, *, out: Array) -> Array:
        _dispatch.backend().conv2d(x, weight, bias, *rest, out, kept)
        return out

    return run


def _pool(node: Node, y: Array, x: Array) -> Call:
    kernel, strides, dilations = (
        pair(node, name) for name in ("kernel_shape", "strides", "dilations")
    )
    if not _ready(y, x) or (node.op == "MaxPool" and any(node.outputs[1:])):
        return None
    pads, ceil = window_pads(node)(x.shape, kernel), bool(node.get("ceil_mode", 0))
    window, (_, strides, sides, dilations) = geometry(
        x.shape, kernel, strides, pads, dilations, ceil
    )
    counted = bool(node.get("count_include_pad", 0))

    def largest(x: Array, *, out: Array) -> Array:
        _dispatch.backend().max_pool2d(x, window, strides, sides, dilations, out, None)
        return out

    def mean(x: Array, *, out: Array) -> Array:
        _dispatch.backend().avg_pool2d(x, window, strides, sides, counted, out)
        return out

    return largest if node.op == "MaxPool" else mean


def _global_average_pool(node: Node, y: Array, x: Array) -> Call:
    window = x.shape[2:]

    def run(x: Array, *, out: Array) -> Array:
        _dispatch.backend().avg_pool2d(x, window, window, (0, 0, 0, 0), True, out)
        return out

    return run if _ready(y, x) and len(window) == 2 else None


def _batch_normalization(node: Node, y: Array, x: Array, *numbers: Array) -> Call:
    eps, activation = node.get("epsilon", 1e-5), node.get("activation")

    def run(x: Array, *numbers: Array, out: Array) -> Array:
        _dispatch.backend().batch_norm2d(x, *numbers, eps, False, activation, out)
        return out

    fit = x.ndim == 4 and not node.get("training_mode", 0) and _ready(y, x, *numbers)
    return run if fit else None


def _activation(node: Node, y: Array, x: Array) -> Call:
    kind, alpha = _KINDS[node.op], float(node.get("alpha", 0.01))

    def run(x: Array, *, out: Array) -> Array:
        _dispatch.backend().activation(x, kind, alpha, out)
        return out

    return run if _ready(y, x) else None


def _sum(node: Node, y: Array, *terms: Array) -> Call:
    activation = node.get("activation")

    def run(first: Array, second: Array, *, out: Array) -> Array:
        _dispatch.backend().add(first, second, activation, out)
        return out

    alike = len(terms) == 2 and terms[0].shape == terms[1].shape == y.shape
    return run if alike and _ready(y, *terms) else None


def _scaled(node: Node, y: Array, *factors: Array) -> Call:
    """One image times a number for each channel: a normalisation without its statistics."""
    large = 0 if factors[0].shape == y.shape else 1
    x, scale = factors[large], factors[1 - large]
    fit = y.ndim == 4 and len(y) == 1 and x.shape == y.shape and scale.shape == (*y.shape[:2], 1, 1)
    if not fit or not _ready(y, *factors):
        return None
    mean, var = np.zeros(y.shape[1], y.dtype), np.ones(y.shape[1], y.dtype)

    def run(*factors: Array, out: Array) -> Array:
        scale = factors[1 - large].reshape(-1)
        _dispatch.backend().batch_norm2d(
            factors[large], scale, None, mean, var, 0.0, False, None, out
        )
        return out

    return run


def _product(node: Node, y: Array, a: Array, b: Array, bias: Array | None = None) -> Call:
    activation = node.get("activation")
    plain = node.op == "MatMul" or (
        node.get("alpha", 1.0) == node.get("beta", 1.0) == 1.0
        and not (node.get("transA", 0) or node.get("transB", 0))
        and (bias is None or bias.shape == b.shape[1:])
    )
    if not plain or b.ndim != 2 or a.ndim < 2 or not _ready(y, a, b, bias):
        return None
    rows, columns = (-1, a.shape[-1]), (-1, b.shape[1])

    def run(a: Array, b: Array, bias: Array | None = None, *, out: Array) -> Array:
        _dispatch.backend().matmul(a.reshape(rows), b, bias, activation, out.reshape(columns))
        return out

    return run


def _softmax(node: Node, y: Array, x: Array) -> Call:
    axis, log = node.get("axis", -1 if node.opset >= 13 else 1), node.op == "LogSoftmax"
    # Up to operator set 12 all from that axis on are one.
    last = axis % x.ndim if node.opset < 13 else x.ndim - 1
    if not _ready(y, x) or axis % x.ndim != last:
        return None
    rows = (-1, prod(x.shape[last:]))

    def run(x: Array, *, out: Array) -> Array:
        _dispatch.backend().softmax(x.reshape(rows), log, out.reshape(rows))
        return out

    return run


def _copied(node: Node, y: Array, x: Array, *given: Array | None) -> Call:
    """What looks at its input in another way has to copy one that is not C-contiguous."""
    shape = x.shape

    def run(x: Array, *given: Array | None, out: Array) -> Array:
        out.reshape(shape)[...] = x
        return out

    return None if np.may_share_memory(x, y) else run


def _resize(node: Node, y: Array, x: Array, *given: Array | None) -> Call:
    scales = whole_scales(node, x, given)
    if not scales or x.dtype != y.dtype or x.ndim > 8:
        return None

    def run(x: Array, *given: Array | None, out: Array) -> Array:
        for axis, times in scales[:-1]:
            x = repeated(x, axis, times)
        return repeat(x, *scales[-1], out)

    return run


FILLS: dict[str, Callable[..., Call]] = {
    **dict.fromkeys(("Add", "Sum"), _sum),
    **dict.fromkeys(("AveragePool", "MaxPool"), _pool),
    **dict.fromkeys(_RESHAPED, _copied),
    **dict.fromkeys(("Gemm", "MatMul"), _product),
    **dict.fromkeys(("LogSoftmax", "Softmax"), _softmax),
    **dict.fromkeys(_KINDS, _activation),
    "BatchNormalization": _batch_normalization,
    "Conv": _conv,
    "GlobalAveragePool": _global_average_pool,
    "Mul": _scaled,
    "Resize": _resize,
}

# ---------------------------------------------------------------- views


def _split(node: Node, x: Array, given: Array | None = None) -> Call:
    axis = node.get("axis", 0) % x.ndim
    ends = np.cumsum(split_sizes(node, x.shape[axis], given)).tolist()
    front = (slice(None),) * axis
    parts = [(*front, slice(begin, end)) for begin, end in zip([0, *ends], ends, strict=False)]
    if len(parts) == 1:
        return lambda x, *given: x
    return lambda x, *given: tuple([x[part] for part in parts])


def _slice(node: Node, x: Array, *given: Array | None) -> Call:
    part = slices(node, x.ndim, *(*given, None, None, None, None)[:4])
    return lambda x, *given: x[part]


def _transpose(node: Node, x: Array) -> Call:
    order = node.get("perm") or range(x.ndim)[::-1]
    return lambda x: x.transpose(order)


VIEWS: dict[str, Callable[..., Call]] = {
    "Slice": _slice,
    "Split": _split,
    "Transpose": _transpose,
}
