"""The gradients of the operators that have one.

Each function takes a node and returns the function that computes the gradients of its inputs, from
a :class:`Call`: what one forward took and gave, and the gradient of the loss by its output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np

from cnnx import functional as F
from cnnx.functional._activation import backward as activation_backward
from cnnx.onnx import _arrays as arrays
from cnnx.onnx import _images as images
from cnnx.onnx._elementwise import slopes
from cnnx.onnx._program import Array, Node
from cnnx.onnx._resize import resize_backward


@dataclass
class Call:
    """One run of a node, for its gradients; a gradient that nothing needs is None."""

    grads: Sequence[Any]  # of the outputs
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    need: Sequence[bool]  # of the inputs' gradients

    @property
    def grad(self) -> Array:
        """The gradient of the first output, which is the only one for most nodes."""
        result: Array = self.grads[0]
        return result

    @property
    def x(self) -> Array:
        """The first input."""
        result: Array = self.inputs[0]
        return result


Gradient = Callable[[Call], Sequence[Any]]


def summed(grad: Array, shape: tuple[int, ...]) -> Array:
    """Return the gradient of an array that was broadcast: summed over where it was repeated."""
    if grad.shape == shape:
        return grad
    grad = grad.sum(tuple(range(grad.ndim - len(shape))))
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1 and grad.shape[axis] != 1)
    return np.asarray(grad.sum(axes, keepdims=True))


# ---------------------------------------------------------------- with weights


def _conv(node: Node) -> Gradient:
    strides, dilations = images.pair(node, "strides"), images.pair(node, "dilations")
    pads, groups = images.window_pads(node), node.get("group", 1)

    def run(call: Call) -> Sequence[Any]:
        x, weight = call.inputs[:2]
        need = (*call.need, False)[:3]
        padding = pads(x.shape, weight.shape[2:])
        return F.conv2d_backward(
            call.grad, x, weight, strides, padding, dilations, groups, need=need
        )

    return run


def _conv_transpose(node: Node) -> Gradient:
    strides, dilations = images.pair(node, "strides"), images.pair(node, "dilations")
    geometry, groups = images.transposed_geometry(node), node.get("group", 1)

    def run(call: Call) -> Sequence[Any]:
        x, weight = call.inputs[:2]
        pads, extra = geometry(x.shape, weight.shape[2:])
        need = (*call.need, False)[:3]
        return F.conv_transpose2d_backward(
            call.grad, x, weight, strides, pads, extra, groups, dilations, need=need
        )

    return run


def _gemm(node: Node) -> Gradient:
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    transpose_a, transpose_b = node.get("transA", 0), node.get("transB", 0)

    def run(call: Call) -> Sequence[Any]:
        a, b, *rest = call.inputs
        left, right = (a.T if transpose_a else a), (b.T if transpose_b else b)
        grad = call.grad if alpha == 1.0 else call.grad * alpha
        grad_a = images.product(grad, right.T) if call.need[0] else None
        grad_b = images.product(np.ascontiguousarray(left.T), grad) if call.need[1] else None
        result = [
            grad_a.T if transpose_a and grad_a is not None else grad_a,
            grad_b.T if transpose_b and grad_b is not None else grad_b,
        ]
        if rest and rest[0] is not None:
            result.append(summed(call.grad * beta, rest[0].shape))
        return result

    return run


def _matmul(node: Node) -> Gradient:
    def run(call: Call) -> Sequence[Any]:
        a, b = call.inputs
        if a.ndim < 2 or b.ndim < 2:
            raise NotImplementedError(f"{node}: cnnx has no gradient of a product with a vector")
        grad_a = summed(call.grad @ np.swapaxes(b, -1, -2), a.shape) if call.need[0] else None
        grad_b = summed(np.swapaxes(a, -1, -2) @ call.grad, b.shape) if call.need[1] else None
        return grad_a, grad_b

    return run


def _batch_normalization(node: Node) -> Gradient:
    eps = node.get("epsilon", 1e-5)
    if node.get("training_mode", 0):
        raise NotImplementedError(f"{node}: cnnx has no gradient with training_mode = 1")

    def run(call: Call) -> Sequence[Any]:
        x, scale, _, mean, var = call.inputs
        shape = x.shape if x.ndim == 4 else (*x.shape[:2], prod(x.shape[2:]), 1)
        grad_x, grad_scale, grad_bias = F.batch_norm2d_backward(
            call.grad.reshape(shape), x.reshape(shape), scale, mean, var, eps, False
        )
        return grad_x.reshape(x.shape), grad_scale, grad_bias

    return run


def _prelu(node: Node) -> Gradient:
    def run(call: Call) -> Sequence[Any]:
        x, slope = call.inputs
        steep = slopes(node, x, slope)
        below = summed(call.grad * np.minimum(x, 0), steep.shape)
        return np.where(x > 0, call.grad, call.grad * steep), below.reshape(slope.shape)

    return run


# ---------------------------------------------------------------- windows and channels


def _max_pool(node: Node) -> Gradient:
    kernel, strides = images.pair(node, "kernel_shape"), images.pair(node, "strides")
    pads, dilations = images.window_pads(node), images.pair(node, "dilations")
    ceil = bool(node.get("ceil_mode", 0))

    def run(call: Call) -> Sequence[Any]:
        window = (kernel, strides, pads(call.x.shape, kernel), dilations, ceil)
        _, indices = F.max_pool2d(call.x, *window, return_indices=True)
        return (F.max_pool2d_backward(call.grad, indices, call.x.shape),)

    return run


def _average_pool(node: Node) -> Gradient:
    kernel, strides = images.pair(node, "kernel_shape"), images.pair(node, "strides")
    pads, ceil = images.window_pads(node), bool(node.get("ceil_mode", 0))
    counted = bool(node.get("count_include_pad", 0))

    def run(call: Call) -> Sequence[Any]:
        shape = call.x.shape
        padding = pads(shape, kernel)
        return (F.avg_pool2d_backward(call.grad, shape, kernel, strides, padding, ceil, counted),)

    return run


def _global_average_pool(node: Node) -> Gradient:
    def run(call: Call) -> Sequence[Any]:
        grad = call.grad.reshape(call.x.shape[:2])
        return (F.global_avg_pool2d_backward(grad, call.x.shape),)

    return run


def _lrn(node: Node) -> Gradient:
    # y[c] = x[c] * s[c]**-beta with s the sum over c's neighbours, so that x[c] also stands in the
    # sums of those whose neighbour it is: the same window, mirrored.
    size, alpha = node.get("size"), node.get("alpha", 1e-4)
    beta, bias = node.get("beta", 0.75), node.get("bias", 1.0)

    def window(x: Array, before: int, after: int) -> Array:
        padded = np.pad(x, ((0, 0), (before, after)) + ((0, 0),) * (x.ndim - 2))
        total: Array = sum(padded[:, k : k + x.shape[1]] for k in range(before + after + 1))  # type: ignore[assignment]
        return total

    def run(call: Call) -> Sequence[Any]:
        x, before, after = call.x, (size - 1) // 2, size // 2
        base = bias + alpha / size * window(x * x, before, after)
        mixed = window(call.grad * x * base ** (-beta - 1), after, before)
        return (call.grad * base**-beta - 2 * alpha * beta / size * x * mixed,)

    return run


def _softmax(node: Node) -> Gradient:
    axis, flat = node.get("axis", -1 if node.opset >= 13 else 1), node.opset < 13
    backward = {"Softmax": F.softmax_backward, "LogSoftmax": F.log_softmax_backward}[node.op]

    def run(call: Call) -> Sequence[Any]:
        grad, x = call.grad, call.x
        if not x.size:
            return (grad,)
        if not flat or axis in (-1, x.ndim - 1):
            return (backward(grad, x, axis),)
        place = axis % x.ndim
        rows = prod(x.shape[:place]), prod(x.shape[place:])
        return (backward(grad.reshape(rows), x.reshape(rows), -1).reshape(x.shape),)

    return run


# ---------------------------------------------------------------- element by element


def _elementwise(slope: Callable[[Node, Call], Any]) -> Callable[[Node], Gradient]:
    """An operator of one array, by the slope that its gradient is multiplied with."""
    return lambda node: lambda call: (call.grad * slope(node, call),)


def _function(backward: Callable[[Array, Array], Array]) -> Callable[[Node], Gradient]:
    """An activation that cnnx has a gradient of."""
    return lambda node: lambda call: (backward(call.grad, call.x),)


def _between(grad: Array, x: Array, low: Any, high: Any) -> Array:
    """Return the gradient where low < x < high, and 0 elsewhere, also where it is no number."""
    inside = np.ones(x.shape, bool)
    if low is not None:
        inside &= x > low
    if high is not None:
        inside &= x < high
    return np.where(inside, grad, grad.dtype.type(0))


def _clip(node: Node) -> Gradient:
    def run(call: Call) -> Sequence[Any]:
        low, high = (*call.inputs[1:], None, None)[:2]
        low = node.get("min") if low is None else low
        high = node.get("max") if high is None else high
        return (_between(call.grad, call.x, low, high),)

    return run


def _hard_sigmoid(node: Node) -> Gradient:
    alpha, beta = node.get("alpha", 0.2), node.get("beta", 0.5)
    return lambda call: (
        _between(call.grad * call.x.dtype.type(alpha), alpha * call.x + beta, 0, 1),
    )


def _broadcast(
    parts: Callable[[Array, Sequence[Any]], Sequence[Any]],
) -> Callable[[Node], Gradient]:
    """An operator of several arrays with broadcasting, by its gradients before they are summed."""

    def run(call: Call) -> Sequence[Any]:
        grads = parts(call.grad, call.inputs)
        return [summed(g, x.shape) for g, x in zip(grads, call.inputs, strict=True)]

    return lambda node: run


def _pow(node: Node) -> Gradient:
    def run(call: Call) -> Sequence[Any]:
        x, power = call.inputs
        if call.need[1]:
            raise NotImplementedError(f"{node}: cnnx has no gradient of the exponent")
        return summed(call.grad * power * x ** (power - 1), x.shape).astype(x.dtype), None

    return run


# ---------------------------------------------------------------- moved numbers


def _reshaped(node: Node) -> Gradient:
    return lambda call: (call.grad.reshape(call.x.shape),)


def _transpose(node: Node) -> Gradient:
    order = node.get("perm")
    return lambda call: (np.transpose(call.grad, None if order is None else np.argsort(order)),)


def _concat(node: Node) -> Gradient:
    axis = node.get("axis")

    def run(call: Call) -> Sequence[Any]:
        ends = np.cumsum([x.shape[axis] for x in call.inputs])[:-1]
        return np.split(call.grad, ends, axis)

    return run


def _split(node: Node) -> Gradient:
    axis = node.get("axis", 0)

    def run(call: Call) -> Sequence[Any]:
        parts = zip(call.grads, call.outputs, strict=True)
        return (np.concatenate([np.zeros_like(y) if g is None else g for g, y in parts], axis),)

    return run


def _slice(node: Node) -> Gradient:
    def run(call: Call) -> Sequence[Any]:
        grad = np.zeros_like(call.x)
        padded = (*call.inputs[1:], None, None, None, None)[:4]
        grad[arrays.slices(node, call.x.ndim, *padded)] = call.grad
        return (grad,)

    return run


def _gather(node: Node) -> Gradient:
    axis = node.get("axis", 0)

    def run(call: Call) -> Sequence[Any]:
        grad = np.zeros_like(call.x)
        np.add.at(grad, (slice(None),) * (axis % grad.ndim) + (call.inputs[1],), call.grad)
        return (grad,)

    return run


def _pad(node: Node) -> Gradient:
    if node.get("mode", "constant") != "constant":
        raise NotImplementedError(f"{node}: cnnx has a gradient of mode 'constant' alone")
    run = arrays.pad(node)

    def backward(call: Call) -> Sequence[Any]:
        # Where each number went: the border has the number -1, and takes its gradient with it.
        numbers = np.arange(call.x.size).reshape(call.x.shape)
        given = (*call.inputs[1:], None, None, None)[:3]
        places = run(numbers, given[0], np.array(-1), given[2])
        grad = np.zeros_like(call.x)
        grad.ravel()[places[places >= 0]] = call.grad[places >= 0]
        return (grad,)

    return backward


def _reduce_mean(node: Node) -> Gradient:
    def run(call: Call) -> Sequence[Any]:
        given = call.inputs[1] if len(call.inputs) > 1 else None
        axes = arrays.axes_of(node, given)
        if not axes:
            if node.get("noop_with_empty_axes", 0):
                return (call.grad,)
            axes = list(range(call.x.ndim))
        axes = [axis % call.x.ndim for axis in axes]
        shape = [1 if axis in axes else size for axis, size in enumerate(call.x.shape)]
        grad = call.grad.reshape(shape) / (call.x.size // max(1, call.grad.size))
        return (np.broadcast_to(grad, call.x.shape).astype(call.x.dtype),)

    return run


GRADIENTS: dict[str, Callable[[Node], Gradient]] = {
    "Abs": _elementwise(lambda node, call: np.sign(call.x)),
    "Add": _broadcast(lambda grad, inputs: [grad] * len(inputs)),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": lambda node: lambda call: (call.grad.astype(call.x.dtype),),
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _broadcast(lambda grad, xy: (grad / xy[1], -grad * xy[0] / (xy[1] * xy[1]))),
    "Dropout": _reshaped,
    "Erf": _elementwise(lambda node, call: 2 / np.sqrt(np.pi) * np.exp(-(call.x**2))),
    "Exp": _elementwise(lambda node, call: call.outputs[0]),
    "Expand": lambda node: lambda call: (summed(call.grad, call.x.shape),),
    "Flatten": _reshaped,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _function(partial(activation_backward, "hard_swish")),
    "Identity": _reshaped,
    "LRN": _lrn,
    "LeakyRelu": lambda node: (
        lambda call: (F.leaky_relu_backward(call.grad, call.x, float(node.get("alpha", 0.01))),)
    ),
    "Log": _elementwise(lambda node, call: 1 / call.x),
    "LogSoftmax": _softmax,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _broadcast(lambda grad, xy: (grad * xy[1], grad * xy[0])),
    "Neg": _elementwise(lambda node, call: call.x.dtype.type(-1)),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _pow,
    "ReduceMean": _reduce_mean,
    "Relu": _function(F.relu_backward),
    "Reshape": _reshaped,
    "Resize": resize_backward,
    "Sigmoid": _function(F.sigmoid_backward),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": _elementwise(lambda node, call: 0.5 / call.outputs[0]),
    "Squeeze": _reshaped,
    "Sub": _broadcast(lambda grad, inputs: (grad, -grad)),
    "Sum": _broadcast(lambda grad, inputs: [grad] * len(inputs)),
    "Tanh": _function(F.tanh_backward),
    "Transpose": _transpose,
    "Unsqueeze": _reshaped,
}
