"""PyTorch's layers with cnnx's kernels behind them: each keeps its class and gets another forward.

A converted layer has an attribute ``forward`` of its own, ``partial(run, operation, layer)``, that
hides its class's. An *operation* takes the layer and its input, and returns the output, or None
where cnnx is not to compute: then :func:`run` goes on to the class's forward. Nothing about a layer
is remembered, so what is changed later (weights, options, mode, dtype, device) counts at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as hooks_of_all

from cnnx import functional as F
from cnnx.torch import _functions

Operation = Callable[..., Any]

_TENSORS = (Tensor, nn.Parameter)  # and no subclass, which may mean anything
_DTYPES = (torch.float32, torch.float64)


def run(operation: Operation, layer: nn.Module, input: Any, *args: Any, **kwargs: Any) -> Any:
    """A converted layer's forward: cnnx's operation, or else the forward of the layer's class."""
    out = None if args or kwargs else _attempt(operation, layer, input)
    return type(layer).forward(layer, input, *args, **kwargs) if out is None else out


def _attempt(operation: Operation, layer: nn.Module, x: Any, *activation: str) -> Any:
    if _elsewhere() or not _suits(x) or not (x.ndim == 4 or (operation is linear and x.ndim > 1)):
        return None
    try:
        return operation(layer, x.contiguous(), *activation)
    except ValueError:  # what cnnx refuses PyTorch can do, or has an error of its own for
        return None


def _elsewhere() -> bool:
    """Whether PyTorch is to see its own operations: to trace, cast, transform or watch them."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0  # such as FlopCounterMode
    )


def _suits(x: Any) -> bool:
    """Whether a tensor is one that cnnx can compute with."""
    return type(x) in _TENSORS and x.numel() > 0 and _is_array(x, x.dtype)


def _is_array(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether a tensor's memory can be had as an array of floats of that dtype."""
    return (
        type(x) in _TENSORS
        and x.dtype is dtype
        and dtype in _DTYPES
        and x.is_cpu
        and x.layout is torch.strided
        and not x.is_neg()
    )


def _all_suit(x: Tensor, *parameters: Tensor | None) -> bool:
    return all(p is None or _is_array(p, x.dtype) for p in parameters)


# ---------------------------------------------------------------- operations


def conv2d(layer: nn.Conv2d, x: Tensor, activation: str | None = None) -> Any:
    """Convolve, with an activation as the result is stored."""
    weight, bias = layer.weight, layer.bias
    if not _all_suit(x, weight, bias):
        return None
    options = (layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)
    return _functions.Conv2d.apply(x, weight, bias, options, activation)


def conv_transpose2d(layer: nn.ConvTranspose2d, x: Tensor) -> Any:
    """Convolve transposed; a call with an output_size is PyTorch's."""
    weight, bias = layer.weight, layer.bias
    if not _all_suit(x, weight, bias):
        return None
    options = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
    return _functions.ConvTranspose2d.apply(x, weight, bias, options)


def linear(layer: nn.Linear, x: Tensor, activation: str | None = None) -> Any:
    """Multiply rows, or tables of rows, with an activation as the result is stored."""
    weight, bias = layer.weight, layer.bias
    if not _all_suit(x, weight, bias):
        return None
    rows = x if x.ndim == 2 else x.flatten(0, -2)
    out = _functions.Linear.apply(rows, weight, bias, activation)
    return out if x.ndim == 2 else out.unflatten(0, x.shape[:-1])


def max_pool2d(layer: nn.MaxPool2d, x: Tensor) -> Any:
    """Take maxima; what PyTorch refuses, more padding than half the window, it shall refuse."""
    window = (layer.kernel_size, layer.stride, layer.padding)
    if not _padding_within_half(*window[::2]):
        return None
    return _maxima(x, (*window, layer.dilation, layer.ceil_mode), layer.return_indices)


def adaptive_max_pool2d(layer: nn.AdaptiveMaxPool2d, x: Tensor) -> Any:
    """Take maxima of windows that lie side by side; others are PyTorch's."""
    window = _even_window(layer.output_size, x)
    return None if window is None else _maxima(x, (window,), layer.return_indices)


def _maxima(x: Tensor, options: tuple[Any, ...], return_indices: bool) -> Any:
    if return_indices or (x.requires_grad and torch.is_grad_enabled()):
        out, indices = _functions.MaxPool2d.apply(x, options)
        return (out, indices) if return_indices else out
    return _functions.tensor(F.max_pool2d(_functions.array(x), *options))


def avg_pool2d(layer: nn.AvgPool2d, x: Tensor) -> Any:
    """Take means, unless by a divisor of one's own."""
    window = (layer.kernel_size, layer.stride, layer.padding)
    if layer.divisor_override is not None or not _padding_within_half(*window[::2]):
        return None
    return _functions.AvgPool2d.apply(x, (*window, layer.ceil_mode, layer.count_include_pad))


def adaptive_avg_pool2d(layer: nn.AdaptiveAvgPool2d, x: Tensor) -> Any:
    """Take means of windows that lie side by side; others are PyTorch's."""
    window = _even_window(layer.output_size, x)
    return None if window is None else _functions.AvgPool2d.apply(x, (window,))


def _pair(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


def _padding_within_half(kernel_size: Any, padding: Any) -> bool:
    pairs = zip(_pair(kernel_size), _pair(padding), strict=True)
    return all(2 * pad <= size for size, pad in pairs)


def _even_window(output_size: Any, x: Tensor) -> tuple[int, int] | None:
    """The window of an adaptive pooling, where one size cuts the image without a rest."""
    window = []
    for size, out in zip(x.shape[2:], _pair(output_size), strict=True):
        parts = size if out is None else out
        if parts < 1 or size % parts:
            return None
        window.append(size // parts)
    return window[0], window[1]


def batch_norm2d(layer: nn.BatchNorm2d, x: Tensor, activation: str | None = None) -> Any:
    """Normalise, and move the running statistics as PyTorch does."""
    mean, var = layer.running_mean, layer.running_var
    parameters = (layer.weight, layer.bias)
    pixels = x.numel() // x.shape[1]
    from_batch = layer.training or mean is None
    if not _all_suit(x, *parameters, mean, var) or (mean is None) != (var is None):
        return None
    if from_batch and pixels == 1:  # an error
        return None
    if not from_batch:
        return _functions.BatchNorm2d.apply(x, *parameters, mean, var, layer.eps, activation)
    out, batch_mean, batch_var = _functions.BatchNorm2d.apply(
        x, *parameters, None, None, layer.eps, activation
    )
    if layer.training and layer.track_running_stats:
        share = 0.0 if layer.momentum is None else layer.momentum
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.add_(1)
            if layer.momentum is None:
                share = 1.0 / float(layer.num_batches_tracked)
        if mean is not None and var is not None:
            with torch.no_grad():
                mean.lerp_(batch_mean, share)
                var.lerp_(batch_var * (pixels / (pixels - 1)), share)
    return out


# ---------------------------------------------------------------- layers in a row

_STORED = {nn.ReLU: "relu", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh"}
_HOOKS_OF_ALL = (  # PyTorch's own function for this is newer than 2.4
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
_FUSED: dict[Operation, dict[type, str]] = {
    conv2d: _STORED,
    linear: _STORED,
    batch_norm2d: {nn.ReLU: "relu", nn.ReLU6: "relu6"},
}


def sequential(layer: nn.Sequential, input: Any) -> Any:
    """One layer after the other, an activation along with the layer before it."""
    if _elsewhere():
        return type(layer).forward(layer, input)
    children = [*layer, None]
    done = None
    for child, after in itertools.pairwise(children):
        if child is done:
            done = None
            continue
        activation = _activation(child, after)
        out = None
        if activation is not None:
            out = _attempt(vars(child)["forward"].args[0], child, input, activation)
        done = None if out is None else after
        input = child(input) if out is None else out
    return input


def _activation(child: nn.Module, after: nn.Module | None) -> str | None:
    """What the next layer does, if this one can do it along, and no hook looks in between."""
    forward = vars(child).get("forward")
    if after is None or forward is None or not _is_ours(forward):
        return None
    name = _FUSED.get(forward.args[0], {}).get(type(after))
    return None if "forward" in vars(after) or _hooked(child) or _hooked(after) else name


def _hooked(layer: nn.Module) -> bool:
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or any(getattr(hooks_of_all, name) for name in _HOOKS_OF_ALL)
    )


# ---------------------------------------------------------------- there and back

_OPERATIONS: dict[type[nn.Module], Operation] = {
    nn.Conv2d: conv2d,
    nn.ConvTranspose2d: conv_transpose2d,
    nn.Linear: linear,
    nn.MaxPool2d: max_pool2d,
    nn.AvgPool2d: avg_pool2d,
    nn.AdaptiveMaxPool2d: adaptive_max_pool2d,
    nn.AdaptiveAvgPool2d: adaptive_avg_pool2d,
    nn.BatchNorm2d: batch_norm2d,
}


def convert(module: nn.Module) -> None:
    """Do what :func:`cnnx.torch.convert` says."""
    for layer in module.modules():
        if "forward" in vars(layer):  # converted before, or by somebody else
            continue
        if isinstance(layer, nn.Sequential) and _runs_as(layer, nn.Sequential):
            vars(layer)["forward"] = partial(sequential, layer)
        for kind, operation in _OPERATIONS.items():
            if isinstance(layer, kind) and _runs_as(layer, kind):
                vars(layer)["forward"] = partial(run, operation, layer)


def revert(module: nn.Module) -> None:
    """Do what :func:`cnnx.torch.revert` says."""
    for layer in module.modules():
        if _is_ours(vars(layer).get("forward")):
            del vars(layer)["forward"]


def _runs_as(layer: nn.Module, kind: Any) -> bool:
    """Whether a layer of a subclass computes as the class does."""
    return all(
        getattr(type(layer), name) is getattr(kind, name)
        for name in ("forward", "_conv_forward")
        if hasattr(kind, name)
    )


def _is_ours(forward: Any) -> bool:
    return isinstance(forward, partial) and forward.func in (run, sequential)
