"""cnnx's operations as PyTorch's autograd functions, on the tensors' own memory.

A tensor is given to cnnx as the NumPy array on its memory, and a result becomes the tensor on the
array's. What backward needs is kept by ``save_for_backward``, so that PyTorch notices what was
changed in place in between.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from cnnx import functional as F
from cnnx.functional import _conv, _linear
from cnnx.functional._activation import activation_backward_from_output


def array(tensor: Tensor | None) -> Any:
    """The array on a tensor's memory."""
    return None if tensor is None else tensor.detach().numpy()


def tensor(array: Any) -> Any:
    """The tensor on an array's memory, which it keeps alive."""
    return None if array is None else torch.from_numpy(array)


class _Once(Function):
    """Passes gradients on, and raises where they are to be differentiated by their sources."""

    @staticmethod
    def forward(ctx: Any, sources: int, *tensors: Tensor | None) -> Any:
        return tuple(t if t is None else t.view_as(t) for t in tensors[sources:])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(
            "cnnx computes first derivatives only, and this is a gradient of a gradient; "
            "cnnx.torch.revert(module) brings PyTorch's own layers back, which have both"
        )


def once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a backward so that second derivatives raise.

    PyTorch's ``once_differentiable`` lets those by way of saved tensors pass as zero where the
    gradient that came in is a constant.
    """

    @wraps(backward)
    def wrapped(ctx: Any, *grads: Tensor | None) -> Any:
        with torch.no_grad():
            results = backward(ctx, *grads)
        if not torch.is_grad_enabled():  # but by create_graph=True
            return results
        sources = [t for t in (*grads, *ctx.saved_tensors) if t is not None and t.requires_grad]
        return _Once.apply(len(sources), *sources, *results)

    return wrapped


def _before(activation: Any, grad_out: Any, out: Any) -> Any:
    """The gradient of what went into a fused activation."""
    if activation is None:
        return grad_out
    return activation_backward_from_output(grad_out, out, activation)


class Conv2d(Function):
    """Options are stride, padding, dilation, groups and padding mode."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: Any, activation: Any
    ) -> Tensor:
        arguments: Any = (array(x), array(weight), array(bias), *options, activation)
        out = tensor(_conv.forward(*arguments))
        ctx.save_for_backward(x, weight, None if activation is None else out)
        ctx.options, ctx.activation = options, activation
        return out

    @staticmethod
    @once
    def backward(ctx: Any, grad_out: Tensor) -> Any:
        x, weight, out = map(array, ctx.saved_tensors)
        grad = _before(ctx.activation, array(grad_out), out)
        *options, mode = ctx.options
        need = ctx.needs_input_grad[:3]
        grads = F.conv2d_backward(grad, x, weight, *options, padding_mode=mode, need=need)
        return *map(tensor, grads), None, None


class ConvTranspose2d(Function):
    """Options are stride, padding, output padding, groups and dilation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = options
        return tensor(F.conv_transpose2d(array(x), array(weight), array(bias), *options))

    @staticmethod
    @once
    def backward(ctx: Any, grad_out: Tensor) -> Any:
        x, weight = map(array, ctx.saved_tensors)
        need = ctx.needs_input_grad[:3]
        grads = F.conv_transpose2d_backward(array(grad_out), x, weight, *ctx.options, need=need)
        return *map(tensor, grads), None


class Linear(Function):
    """Of rows: x is (N, in)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, activation: Any
    ) -> Tensor:
        arrays = array(x), array(weight), array(bias)
        out = tensor(_linear.forward(*arrays, activation, transposed=True))
        ctx.save_for_backward(x, weight, None if activation is None else out)
        ctx.activation = activation
        return out

    @staticmethod
    @once
    def backward(ctx: Any, grad_out: Tensor) -> Any:
        x, weight, out = map(array, ctx.saved_tensors)
        grad = _before(ctx.activation, array(grad_out), out)
        need = ctx.needs_input_grad[:3]
        return *map(tensor, _linear.backward(grad, x, weight, need, transposed=True)), None


class MaxPool2d(Function):
    """Returns the maxima and where they stood."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, options: Any) -> tuple[Tensor, Tensor]:
        out, indices = map(tensor, F.max_pool2d(array(x), *options, return_indices=True))
        ctx.save_for_backward(indices)
        ctx.mark_non_differentiable(indices)
        ctx.set_materialize_grads(False)
        ctx.shape = tuple(x.shape)
        return out, indices

    @staticmethod
    @once
    def backward(ctx: Any, grad_out: Tensor | None, _: None) -> Any:
        if grad_out is None:
            return None, None
        (indices,) = map(array, ctx.saved_tensors)
        return tensor(F.max_pool2d_backward(array(grad_out), indices, ctx.shape)), None


class AvgPool2d(Function):
    """Options are those of cnnx's avg_pool2d, in its order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, options: Any) -> Tensor:
        ctx.shape, ctx.options = tuple(x.shape), options
        return tensor(F.avg_pool2d(array(x), *options))

    @staticmethod
    @once
    def backward(ctx: Any, grad_out: Tensor) -> Any:
        return tensor(F.avg_pool2d_backward(array(grad_out), ctx.shape, *ctx.options)), None


class BatchNorm2d(Function):
    """Returns the output; without given statistics also the batch's mean and biased variance."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        eps: float,
        activation: Any,
    ) -> Any:
        arrays = [*map(array, (x, weight, bias, mean, var)), eps, True]
        normed = F.batch_norm2d(*arrays, activation=activation)
        ctx.eps, ctx.activation, ctx.from_batch = eps, activation, mean is None
        ctx.set_materialize_grads(False)
        if not ctx.from_batch:
            ctx.save_for_backward(x, weight, bias, mean, var)
            return tensor(normed[0])
        out, mean, var = map(tensor, normed)
        ctx.save_for_backward(x, weight, bias, mean, var)
        ctx.mark_non_differentiable(mean, var)
        return out, mean, var

    @staticmethod
    @once
    def backward(ctx: Any, grad_out: Tensor | None, *_: None) -> Any:
        if grad_out is None:
            return (None,) * 7
        x, weight, bias, mean, var = map(array, ctx.saved_tensors)
        grads = F.batch_norm2d_backward(
            array(grad_out),
            x,
            weight,
            mean,
            var,
            ctx.eps,
            ctx.from_batch,
            bias=bias,
            activation=ctx.activation,
        )
        wanted = zip(grads, ctx.needs_input_grad, strict=False)
        return *(tensor(grad) if need else None for grad, need in wanted), None, None, None, None
