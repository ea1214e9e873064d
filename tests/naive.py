"""The oracle: plain Python loops in float64, slow and obvious, that share nothing with the package.

Each operation is written once, as its definition reads: convolution is seven loops around one
multiplication, and its gradients scatter each product back along the very same seven loops.
Everything here is float64, or np.longdouble where the inputs are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Pair = tuple[int, int]
Pads = tuple[int, int, int, int]  # top, bottom, left, right


def integers(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = np.float64, high: int = 3
) -> Any:
    """Whole numbers in -high..high: their sums of products are exact, so results compare by bits.

    In float32 that holds as long as every partial sum stays below 2**24.
    """
    return rng.integers(-high, high + 1, shape).astype(dtype)


def _zeros(shape: tuple[int, ...], *inputs: Any) -> Any:
    return np.zeros(shape, np.result_type(np.float64, *inputs))


def conv_size(size: int, kernel: int, stride: int, before: int, after: int, dilation: int) -> int:
    """Count the window positions one by one."""
    count, start = 0, -before
    while start + dilation * (kernel - 1) < size + after:
        count, start = count + 1, start + stride
    return count


def same_pads(size: int, kernel: int, stride: int, dilation: int) -> Pair:
    """The smallest padding that gives ceil(size / stride) outputs, the odd pixel after."""
    wanted = sum(1 for _ in range(0, size, stride))
    total = 0
    while conv_size(size, kernel, stride, 0, total, dilation) < wanted:
        total += 1
    return total // 2, total - total // 2


def source(position: int, size: int, mode: str) -> int | None:
    """Which pixel stands at a position of the padded image; None where it is a zero."""
    if 0 <= position < size:
        return position
    if mode == "zeros":
        return None
    if mode == "replicate":
        return 0 if position < 0 else size - 1
    if mode == "circular":
        return position % size
    assert mode == "reflect"
    return -position if position < 0 else 2 * (size - 1) - position


def _conv_taps(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    stride: Pair,
    pads: Pads,
    dilation: Pair,
    groups: int,
    mode: str,
) -> Iterator[tuple[Any, Any, Any]]:
    """The seven loops: every (output, input, weight) index triple of a convolution."""
    images, channels, height, width = x_shape
    filters, group_channels, kernel_h, kernel_w = w_shape
    assert group_channels * groups == channels and filters % groups == 0
    out_h = conv_size(height, kernel_h, stride[0], pads[0], pads[1], dilation[0])
    out_w = conv_size(width, kernel_w, stride[1], pads[2], pads[3], dilation[1])
    for n in range(images):
        for f in range(filters):
            group = f // (filters // groups)
            for i in range(out_h):
                for j in range(out_w):
                    for c in range(group_channels):
                        for ki in range(kernel_h):
                            for kj in range(kernel_w):
                                r = source(i * stride[0] - pads[0] + ki * dilation[0], height, mode)
                                s = source(j * stride[1] - pads[2] + kj * dilation[1], width, mode)
                                if r is not None and s is not None:
                                    channel = group * group_channels + c
                                    yield (n, f, i, j), (n, channel, r, s), (f, c, ki, kj)


def conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Pair = (1, 1),
    pads: Pads = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    mode: str = "zeros",
) -> Any:
    """Cross-correlation of x (N, C, H, W) with weight (F, C / groups, KH, KW)."""
    shape = (
        x.shape[0],
        weight.shape[0],
        conv_size(x.shape[2], weight.shape[2], stride[0], pads[0], pads[1], dilation[0]),
        conv_size(x.shape[3], weight.shape[3], stride[1], pads[2], pads[3], dilation[1]),
    )
    out = _zeros(shape, x, weight)
    if bias is not None:
        for f in range(shape[1]):
            out[:, f] = bias[f]
    for o, i, w in _conv_taps(x.shape, weight.shape, stride, pads, dilation, groups, mode):
        out[o] += x[i] * weight[w]
    return out


def conv2d_backward(
    grad_out: Any,
    x: Any,
    weight: Any,
    stride: Pair = (1, 1),
    pads: Pads = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    mode: str = "zeros",
) -> tuple[Any, Any, Any]:
    """The gradients of sum(grad_out * conv2d(...)) in x, weight and bias."""
    grad_x, grad_weight = _zeros(x.shape, x), _zeros(weight.shape, weight)
    for o, i, w in _conv_taps(x.shape, weight.shape, stride, pads, dilation, groups, mode):
        grad_x[i] += grad_out[o] * weight[w]
        grad_weight[w] += grad_out[o] * x[i]
    grad_bias = _zeros((weight.shape[0],), grad_out)
    for n, f, i, j in np.ndindex(*grad_out.shape):
        grad_bias[f] += grad_out[n, f, i, j]
    return grad_x, grad_weight, grad_bias


def _transpose_taps(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    out_hw: Pair,
    stride: Pair,
    pads: Pads,
    dilation: Pair,
    groups: int,
) -> Iterator[tuple[Any, Any, Any]]:
    """Every (output, input, weight) index triple of a transposed convolution."""
    images, channels, height, width = x_shape
    group_filters = w_shape[1]
    for n in range(images):
        for c in range(channels):
            group = c // (channels // groups)
            for r in range(height):
                for s in range(width):
                    for f in range(group_filters):
                        for ki in range(w_shape[2]):
                            for kj in range(w_shape[3]):
                                i = r * stride[0] - pads[0] + ki * dilation[0]
                                j = s * stride[1] - pads[2] + kj * dilation[1]
                                if 0 <= i < out_hw[0] and 0 <= j < out_hw[1]:
                                    out = (n, group * group_filters + f, i, j)
                                    yield out, (n, c, r, s), (c, f, ki, kj)


def _transpose_size(
    size: int, kernel: int, stride: int, before: int, after: int, dilation: int, extra: int
) -> int:
    """Where the last input pixel's last tap falls, less the padding, and what is asked for more."""
    return (size - 1) * stride + dilation * (kernel - 1) + 1 - before - after + extra


def conv_transpose2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Pair = (1, 1),
    pads: Pads = (0, 0, 0, 0),
    output_padding: Pair = (0, 0),
    groups: int = 1,
    dilation: Pair = (1, 1),
) -> Any:
    """Each pixel of x (N, C, H, W) paints weight (C, F / groups, KH, KW) into the output."""
    height, width = (
        _transpose_size(
            x.shape[2 + a], weight.shape[2 + a], stride[a], *pads[2 * a : 2 * a + 2],
            dilation[a], output_padding[a],
        )
        for a in (0, 1)
    )  # fmt: skip
    out = _zeros((x.shape[0], weight.shape[1] * groups, height, width), x, weight)
    if bias is not None:
        for f in range(out.shape[1]):
            out[:, f] = bias[f]
    for o, i, w in _transpose_taps(
        x.shape, weight.shape, (height, width), stride, pads, dilation, groups
    ):
        out[o] += x[i] * weight[w]
    return out


def conv_transpose2d_backward(
    grad_out: Any,
    x: Any,
    weight: Any,
    stride: Pair = (1, 1),
    pads: Pads = (0, 0, 0, 0),
    groups: int = 1,
    dilation: Pair = (1, 1),
) -> tuple[Any, Any, Any]:
    """The gradients of sum(grad_out * conv_transpose2d(...)) in x, weight and bias."""
    grad_x, grad_weight = _zeros(x.shape, x), _zeros(weight.shape, weight)
    for o, i, w in _transpose_taps(
        x.shape, weight.shape, grad_out.shape[2:], stride, pads, dilation, groups
    ):
        grad_x[i] += grad_out[o] * weight[w]
        grad_weight[w] += grad_out[o] * x[i]
    return grad_x, grad_weight, grad_out.sum(axis=(0, 2, 3))


# ---------------------------------------------------------------------------- a loop over the taps
#
# The same for images too large for seven loops: one product of matrices for each tap of the kernel
# and each group. `test_fuzz` holds these against the seven.


def _positions(
    size: int, out: int, kernel: int, stride: int, before: int, dilation: int, mode: str
) -> Any:
    """For each tap and output of an axis, which pixel it meets; `size` where that is a zero."""
    table = np.full((kernel, out), size)
    for k, i in np.ndindex(kernel, out):
        pixel = source(i * stride - before + k * dilation, size, mode)
        table[k, i] = size if pixel is None else pixel
    return table


def _tap_tables(
    x: Any, weight: Any, out_hw: Pair, stride: Pair, pads: Pads, dilation: Pair, mode: str
) -> tuple[Any, Any]:
    rows, columns = (
        _positions(
            x.shape[2 + a], out_hw[a], weight.shape[2 + a], stride[a], pads[2 * a], dilation[a],
            mode,
        )
        for a in (0, 1)
    )  # fmt: skip
    return rows, columns


def _groups(groups: int, *channels: int) -> Iterator[tuple[slice, ...]]:
    """For each group, its part of each of these numbers of channels."""
    for g in range(groups):
        yield tuple(slice(g * c // groups, (g + 1) * c // groups) for c in channels)


def conv2d_by_taps(
    x: Any,
    weight: Any,
    bias: Any,
    out_hw: Pair,
    stride: Pair = (1, 1),
    pads: Pads = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    mode: str = "zeros",
) -> Any:
    """What `conv2d` gives; only the first out_hw outputs."""
    rows, columns = _tap_tables(x, weight, out_hw, stride, pads, dilation, mode)
    framed = np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1)))  # the zero that the tables name
    out = _zeros((x.shape[0], weight.shape[0], *out_hw), x, weight)
    if bias is not None:
        out += np.reshape(bias, (-1, 1, 1))
    for k, m in np.ndindex(*weight.shape[2:]):
        pixels = framed[:, :, rows[k]][:, :, :, columns[m]]
        for inner, outer in _groups(groups, x.shape[1], weight.shape[0]):
            product = np.tensordot(weight[outer, :, k, m], pixels[:, inner], (1, 1))
            out[:, outer] += np.moveaxis(product, 0, 1)
    return out


def conv2d_backward_by_taps(
    grad_out: Any,
    x: Any,
    weight: Any,
    stride: Pair = (1, 1),
    pads: Pads = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    mode: str = "zeros",
) -> tuple[Any, Any, Any]:
    """What `conv2d_backward` gives."""
    rows, columns = _tap_tables(x, weight, grad_out.shape[2:], stride, pads, dilation, mode)
    framed = np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1)))
    grad_x, grad_weight = _zeros(framed.shape, x), _zeros(weight.shape, weight)
    for k, m in np.ndindex(*weight.shape[2:]):
        pixels = framed[:, :, rows[k]][:, :, :, columns[m]]
        for inner, outer in _groups(groups, x.shape[1], weight.shape[0]):
            axes = (0, 2, 3)
            grad_weight[outer, :, k, m] = np.tensordot(
                grad_out[:, outer], pixels[:, inner], (axes, axes)
            )
            spread = np.moveaxis(
                np.tensordot(weight[outer, :, k, m], grad_out[:, outer], (0, 1)), 0, 1
            )
            np.add.at(grad_x[:, inner], np.s_[:, :, rows[k][:, None], columns[m]], spread)
    return grad_x[:, :, :-1, :-1], grad_weight, grad_out.sum(axis=(0, 2, 3))


def pool_size(
    size: int, window: int, stride: int, before: int, after: int, dilation: int, ceil_mode: bool
) -> int:
    """Number of windows; in ceil_mode a last one that would start behind the image is dropped."""
    span = size + before + after - dilation * (window - 1) - 1
    if not ceil_mode:
        return span // stride + 1
    count = -(-span // stride) + 1
    return count - 1 if (count - 1) * stride - before >= size else count


def _windows(
    x_shape: tuple[int, ...],
    window: Pair,
    stride: Pair,
    pads: Pads,
    dilation: Pair,
    ceil_mode: bool,
) -> tuple[tuple[int, ...], Iterator[tuple[Any, list[Pair]]]]:
    """The output's shape, and for every output its index and its taps' positions (row, column)."""
    images, channels, height, width = x_shape
    out_h = pool_size(height, window[0], stride[0], pads[0], pads[1], dilation[0], ceil_mode)
    out_w = pool_size(width, window[1], stride[1], pads[2], pads[3], dilation[1], ceil_mode)
    shape = (images, channels, out_h, out_w)

    def walk() -> Iterator[tuple[Any, list[Pair]]]:
        for n, c, i, j in np.ndindex(*shape):
            top, left = i * stride[0] - pads[0], j * stride[1] - pads[2]
            yield (
                (n, c, i, j),
                [
                    (top + ki * dilation[0], left + kj * dilation[1])
                    for ki in range(window[0])
                    for kj in range(window[1])
                ],
            )

    return shape, walk()


def max_pool2d(
    x: Any,
    window: Pair,
    stride: Pair,
    pads: Pads = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> tuple[Any, Any]:
    """The first largest pixel of each window, and where it stands in the flattened image."""
    height, width = x.shape[2:]
    shape, windows = _windows(x.shape, window, stride, pads, dilation, ceil_mode)
    out, indices = _zeros(shape, x), np.zeros(shape, np.int64)
    for o, taps in windows:
        best = None
        for r, s in taps:
            if 0 <= r < height and 0 <= s < width:
                value = x[o[0], o[1], r, s]
                if best is None or value > best or (np.isnan(value) and not np.isnan(best)):
                    best, indices[o] = value, r * width + s
        assert best is not None, f"window {o} holds no pixel"
        out[o] = best
    return out, indices


def max_pool2d_backward(grad_out: Any, indices: Any, input_shape: tuple[int, ...]) -> Any:
    """Each gradient goes where its maximum stood; windows that overlap add up."""
    grad_x = _zeros(input_shape, grad_out)
    for n, c, i, j in np.ndindex(*grad_out.shape):
        row, column = divmod(int(indices[n, c, i, j]), input_shape[3])
        grad_x[n, c, row, column] += grad_out[n, c, i, j]
    return grad_x


def _avg_parts(
    x_shape: tuple[int, ...], window: Pair, stride: Pair, pads: Pads, ceil: bool, include_pad: bool
) -> tuple[tuple[int, ...], Iterator[tuple[Any, list[Pair], int]]]:
    """For every output: its index, its pixels in the image, and the divisor."""
    height, width = x_shape[2:]
    shape, windows = _windows(x_shape, window, stride, pads, (1, 1), ceil)

    def walk() -> Iterator[tuple[Any, list[Pair], int]]:
        for o, taps in windows:
            inside = [(r, s) for r, s in taps if 0 <= r < height and 0 <= s < width]
            padded = [
                (r, s)
                for r, s in taps
                if -pads[0] <= r < height + pads[1] and -pads[2] <= s < width + pads[3]
            ]
            yield o, inside, len(padded) if include_pad else len(inside)

    return shape, walk()


def avg_pool2d(
    x: Any,
    window: Pair,
    stride: Pair,
    pads: Pads = (0, 0, 0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Any:
    """The mean of each window, the padding counted as zeros or not at all."""
    shape, parts = _avg_parts(x.shape, window, stride, pads, ceil_mode, count_include_pad)
    out = _zeros(shape, x)
    for o, inside, divisor in parts:
        for r, s in inside:
            out[o] += x[o[0], o[1], r, s]
        out[o] /= divisor
    return out


def avg_pool2d_backward(
    grad_out: Any,
    input_shape: tuple[int, ...],
    window: Pair,
    stride: Pair,
    pads: Pads = (0, 0, 0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Any:
    """Each gradient is shared out evenly over its window."""
    _, parts = _avg_parts(input_shape, window, stride, pads, ceil_mode, count_include_pad)
    grad_x = _zeros(input_shape, grad_out)
    for o, inside, divisor in parts:
        for r, s in inside:
            grad_x[o[0], o[1], r, s] += grad_out[o] / divisor
    return grad_x


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """x (N, in) times weight (in, out), three loops."""
    out = _zeros((x.shape[0], weight.shape[1]), x, weight)
    for n, o in np.ndindex(*out.shape):
        out[n, o] = 0.0 if bias is None else bias[o]
        for i in range(x.shape[1]):
            out[n, o] += x[n, i] * weight[i, o]
    return out


# ---------------------------------------------------------------------------- formulas


def _sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v)) if v >= 0 else math.exp(v) / (1 + math.exp(v))


def _normal_cdf(v: float) -> float:
    return 0.5 * math.erfc(-v / math.sqrt(2))


def _normal_pdf(v: float) -> float:
    return math.exp(-v * v / 2) / math.sqrt(2 * math.pi)


def _silu_slope(v: float) -> float:
    return _sigmoid(v) * (1 + v * (1 - _sigmoid(v)))


ACTIVATIONS: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    # name: value and slope at v
    "relu": (lambda v: max(v, 0.0), lambda v: float(v > 0)),
    "leaky_relu": (lambda v: v if v > 0 else 0.01 * v, lambda v: 1.0 if v > 0 else 0.01),
    "relu6": (lambda v: min(max(v, 0.0), 6.0), lambda v: float(0 < v < 6)),
    "sigmoid": (_sigmoid, lambda v: _sigmoid(v) * _sigmoid(-v)),
    "tanh": (math.tanh, lambda v: 1 / math.cosh(v) ** 2),
    "gelu": (lambda v: v * _normal_cdf(v), lambda v: _normal_cdf(v) + v * _normal_pdf(v)),
    "silu": (lambda v: v * _sigmoid(v), _silu_slope),
}


def softmax(x: Any, log: bool = False) -> Any:
    """Of each row, or its logarithm, with the largest number taken off first."""
    out = _zeros(x.shape, x)
    for row in range(len(x)):
        shifted = x[row] - x[row].max()
        total = sum(np.exp(shifted))
        out[row] = shifted - np.log(total) if log else np.exp(shifted) / total
    return out


def softmax_backward(grad_out: Any, x: Any, log: bool = False) -> Any:
    """The gradient of sum(grad_out * softmax(x, log)), with the whole Jacobian of each row."""
    grad_x, y = _zeros(x.shape, x), softmax(x)
    for row, k, j in np.ndindex(*x.shape, x.shape[1]):
        slope = (k == j) - y[row, j]  # d log y[k] / d x[j]
        grad_x[row, j] += grad_out[row, k] * (slope if log else y[row, k] * slope)
    return grad_x


def cross_entropy(x: Any, target: Any, smoothing: float) -> tuple[Any, Any]:
    """The mean over rows of -sum(t * log(softmax(x))) and its gradient; t is the smooth target."""
    wanted = (1 - smoothing) * target + smoothing / x.shape[1]
    share = wanted / len(x)
    return -sum((share * softmax(x, log=True)).ravel()), softmax_backward(-share, x, log=True)


def batch_norm2d(
    x: Any, weight: Any, bias: Any, mean: Any = None, var: Any = None, eps: float = 1e-5
) -> tuple[Any, Any, Any]:
    """(x - mean) / sqrt(var + eps) * weight + bias, and the mean and (biased) variance it took."""
    out, means, variances = _zeros(x.shape, x), _zeros(x.shape[1:2], x), _zeros(x.shape[1:2], x)
    for c in range(x.shape[1]):
        pixels = x[:, c]
        means[c] = pixels.mean() if mean is None else mean[c]
        variances[c] = ((pixels - means[c]) ** 2).mean() if var is None else var[c]
        out[:, c] = (pixels - means[c]) / np.sqrt(variances[c] + eps) * weight[c] + bias[c]
    return out, means, variances


def batch_norm2d_backward(
    grad_out: Any, x: Any, weight: Any, mean: Any = None, var: Any = None, eps: float = 1e-5
) -> tuple[Any, Any, Any]:
    """The gradients in x, weight and bias; without mean and var they are x's own, and depend on it.

    With u = (x - mean) / root the chain rule goes through the variance and the mean one by one.
    """
    _, means, variances = batch_norm2d(x, weight, weight, mean, var, eps)
    grad_x, grad_weight, grad_bias = (_zeros(a.shape, x) for a in (x, weight, weight))
    for c in range(x.shape[1]):
        root = np.sqrt(variances[c] + eps)
        centred, grad = x[:, c] - means[c], grad_out[:, c] * weight[c]
        grad_weight[c], grad_bias[c] = (grad_out[:, c] * centred / root).sum(), grad_out[:, c].sum()
        grad_centred = grad / root
        if mean is None:
            grad_var = (grad * centred).sum() * -0.5 / root**3
            grad_centred += grad_var * 2 * centred / centred.size
            grad_centred -= grad_centred.mean()  # what the mean takes off
        grad_x[:, c] = grad_centred
    return grad_x, grad_weight, grad_bias


def complex_step(f: Callable[[Any], Any], x: Any, grad_out: Any) -> Any:
    """The gradient of sum(grad_out * f(x)), exact to rounding, for a smooth f that takes complex x.

    f(x + ih) = f(x) + ih f'(x) + O(h**2), and with h = 1e-30 the square vanishes: no difference of
    nearly equal numbers is ever taken (Squire and Trapp, SIAM Review 40, 1998).
    """
    h = 1e-30
    gradient = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        moved = x.astype(np.complex128)
        moved[index] += 1j * h
        gradient[index] = (grad_out * f(moved).imag).sum() / h
    return gradient
