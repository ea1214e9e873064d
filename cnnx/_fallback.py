"""The NumPy backend: the same functions as ``_kernels``, written to be read.

Convolution is a loop over the *taps* of the kernel, and nothing else. Tap (k, l) meets one pixel
for each output: together a shifted, strided view of the padded image. With that view,

* forward: the outputs gain weight[:, :, k, l] @ view, a matrix product over the channels;
* input gradient: the pixels of the view gain weight[:, :, k, l].T @ grad_out;
* weight gradient: grad_weight[:, :, k, l] is grad_out @ view.T.

There is no Python loop over images, channels, rows or columns. ``functional`` has checked all
arguments and allocated the results: arrays are C-contiguous, of one dtype, float32 or float64;
`stride`, `dilation` and `pool_size` are (height, width); `pads` is (top, bottom, left, right).
Floating-point warnings are silenced, as the compiled kernels give none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

_Array = NDArray[Any]
_Pair = tuple[int, int]
_Pads = tuple[int, int, int, int]

_quiet = np.errstate  # used as a decorator: @_quiet(all="ignore")


def empty(shape: tuple[int, ...], dtype: Any) -> _Array:
    """Return an uninitialised array for a result."""
    return np.empty(shape, dtype)


# ---------------------------------------------------------------- convolution


def _padded(x: _Array, pads: _Pads, value: float = 0) -> _Array:
    """Return the images (..., H, W) with a border of `value`; x itself where there is no border."""
    if not any(pads):
        return x
    top, bottom, left, right = pads
    *batch, height, width = x.shape
    padded = np.full((*batch, top + height + bottom, left + width + right), value, x.dtype)
    padded[..., top : top + height, left : left + width] = x
    return padded


def _taps(
    padded: _Array, kernel: _Pair, stride: _Pair, dilation: _Pair, out: _Pair
) -> Iterator[tuple[int, int, _Array]]:
    """Yield each tap (k, l) of the kernel with the view of `padded` it meets, of `out` pixels."""
    for k, m in np.ndindex(*kernel):
        top, left = k * dilation[0], m * dilation[1]
        rows = slice(top, top + stride[0] * out[0], stride[0])
        columns = slice(left, left + stride[1] * out[1], stride[1])
        yield k, m, padded[..., rows, columns]


def _tap_matrices(weight: _Array, groups: int) -> _Array:
    """Return the weight as matrices (KH, KW, groups, F/groups, C/groups), one for each tap."""
    filters, channels, kh, kw = weight.shape
    grouped = weight.reshape(groups, filters // groups, channels, kh, kw)
    return np.ascontiguousarray(grouped.transpose(3, 4, 0, 1, 2))


def _group_pixels(images: _Array, groups: int) -> _Array:
    """Return images (N, C, H, W) as matrices (N, groups, C/groups, H*W)."""
    n, c, h, w = images.shape
    return images.reshape(n, groups, c // groups, h * w)


@_quiet(all="ignore")
def conv2d(
    x: _Array,
    weight: _Array,
    bias: _Array | None,
    stride: _Pair,
    pads: _Pads,
    dilation: _Pair,
    groups: int,
    activation: str | None,
    out: _Array,
    prepared: Any = None,
) -> None:
    """Fill `out` (N, F, Ho, Wo) with activation(conv(x, weight) + bias)."""
    matrices = _tap_matrices(weight, groups)
    total = _group_pixels(out, groups)
    total[...] = 0 if bias is None else bias.reshape(groups, -1, 1)
    kernel, hw = weight.shape[2:], out.shape[2:]
    for k, m, view in _taps(_padded(x, pads), kernel, stride, dilation, hw):
        total += matrices[k, m] @ _group_pixels(view, groups)
    if activation is not None:
        out[...] = _ACTIVATIONS[activation](out, 0.0)


def prepared() -> None:
    """Return what `conv2d` keeps from one call to the next for a frozen layer: here nothing."""


@_quiet(all="ignore")
def conv2d_grad_input(
    grad_out: _Array,
    weight: _Array,
    bias: _Array | None,
    stride: _Pair,
    pads: _Pads,
    dilation: _Pair,
    groups: int,
    grad_x: _Array,
) -> None:
    """Fill `grad_x` (N, C, H, W) with the input's gradient, plus `bias` (C,).

    The bias is a transposed convolution's, whose forward pass this is.
    """
    matrices = _tap_matrices(weight, groups).swapaxes(-1, -2)
    grads = _group_pixels(grad_out, groups)
    n, c, h, w = grad_x.shape
    top, bottom, left, right = pads
    padded = np.zeros((n, c, top + h + bottom, left + w + right), grad_x.dtype)
    for k, m, view in _taps(padded, weight.shape[2:], stride, dilation, grad_out.shape[2:]):
        view += (matrices[k, m] @ grads).reshape(view.shape)
    grad_x[...] = padded[:, :, top : top + h, left : left + w]
    if bias is not None:
        grad_x += bias.reshape(-1, 1, 1)


@_quiet(all="ignore")
def conv2d_grad_weight(
    grad_out: _Array,
    x: _Array,
    stride: _Pair,
    pads: _Pads,
    dilation: _Pair,
    groups: int,
    grad_weight: _Array,
) -> None:
    """Fill `grad_weight` (F, C/groups, KH, KW)."""
    grads = _group_pixels(grad_out, groups)
    filters, channels, kh, kw = grad_weight.shape
    total = grad_weight.reshape(groups, filters // groups, channels, kh, kw)
    for k, m, view in _taps(_padded(x, pads), (kh, kw), stride, dilation, grad_out.shape[2:]):
        per_image = grads @ _group_pixels(view, groups).swapaxes(-1, -2)
        total[..., k, m] = per_image.sum(axis=0)


@_quiet(all="ignore")
def conv2d_grad_bias(grad_out: _Array, grad_bias: _Array) -> None:
    """Fill `grad_bias` (F,) with the sum of `grad_out` over images and pixels."""
    grad_bias[...] = grad_out.sum(axis=(0, 2, 3), dtype=np.float64)


@_quiet(all="ignore")
def matmul(a: _Array, b: _Array, bias: _Array | None, activation: str | None, out: _Array) -> None:
    """Fill `out` (M, N) with activation(a @ b + bias); a (M, K) and b (K, N) have any strides."""
    np.matmul(a, b, out=out)
    if bias is not None:
        out += bias
    if activation is not None:
        out[...] = _ACTIVATIONS[activation](out, 0.0)


# ---------------------------------------------------------------- pooling


def _windows(
    x: _Array,
    pool_size: _Pair,
    stride: _Pair,
    pads: _Pads,
    dilation: _Pair,
    out: _Pair,
    value: float,
) -> _Array:
    """Return a view (..., Ho, Wo, KH, KW) of all windows, the padding filled with `value`.

    A last window may stick out of the padded image (ceil_mode): it is filled up too.
    """
    top, bottom, left, right = pads
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, pool_size, strict=True)]
    ends = [(o - 1) * s + span for o, s, span in zip(out, stride, spans, strict=True)]
    bottom = max(bottom, ends[0] - top - x.shape[-2])
    right = max(right, ends[1] - left - x.shape[-1])
    every = sliding_window_view(_padded(x, (top, bottom, left, right), value), spans, axis=(-2, -1))
    return every[..., : ends[0] : stride[0], : ends[1] : stride[1], :: dilation[0], :: dilation[1]][
        ..., : out[0], : out[1], :, :
    ]


@_quiet(all="ignore")
def max_pool2d(
    x: _Array,
    pool_size: _Pair,
    stride: _Pair,
    pads: _Pads,
    dilation: _Pair,
    out: _Array,
    indices: _Array | None,
) -> None:
    """Fill `out` with each window's maximum and `indices` with where it stood, flat in H*W.

    NaN wins, and so does the first of equal values, which is what ``argmax`` has it.
    """
    n, c, h, w = x.shape
    geometry = (pool_size, stride, pads, dilation, out.shape[2:])
    values = _windows(x, *geometry, -np.inf).reshape(*out.shape, -1)
    pixels = np.arange(h * w).reshape(h, w)
    positions = _windows(pixels, *geometry, -1).reshape(*out.shape[2:], -1)
    winner = values.argmax(axis=-1)[..., None]
    where = np.take_along_axis(positions[None, None], winner, axis=-1)[..., 0]
    # In a window of nothing but -inf the padding may come first; the first pixel is meant.
    first = np.take_along_axis(positions, (positions >= 0).argmax(axis=-1)[..., None], axis=-1)
    where = np.where(where < 0, first[..., 0], where)
    out[...] = np.take_along_axis(x.reshape(n, c, h * w), where.reshape(n, c, -1), axis=-1).reshape(
        out.shape
    )
    if indices is not None:
        indices[...] = where


@_quiet(all="ignore")
def max_pool2d_backward(grad_out: _Array, indices: _Array, grad_x: _Array) -> int:
    """Add each gradient to the pixel its maximum came from.

    Returns -1, or the flat position in `indices` of the first index outside the image (`grad_x`
    is undefined then). ``bincount`` adds up where windows overlap and share their maximum; an
    assignment, ``grad_x[..., indices] = grad_out``, would keep only the last of them.
    """
    n, c, h, w = grad_x.shape
    outside = (indices < 0) | (indices >= h * w)
    if outside.any():
        return int(outside.argmax())
    planes = np.arange(n * c).reshape(n, c, 1, 1) * (h * w)
    sums = np.bincount((planes + indices).ravel(), grad_out.ravel(), minlength=grad_x.size)
    grad_x[...] = sums.reshape(grad_x.shape)
    return -1


def _divisors(
    hw: _Pair, pool_size: _Pair, stride: _Pair, pads: _Pads, out: _Pair, count_include_pad: bool
) -> _Array:
    """Return how many pixels of each window count, (Ho, Wo)."""
    counted = _padded(np.ones(hw), pads, 1 if count_include_pad else 0)
    windows = _windows(counted, pool_size, stride, (0, 0, 0, 0), (1, 1), out, 0)
    return np.asarray(windows.sum(axis=(-2, -1)))


@_quiet(all="ignore")
def avg_pool2d(
    x: _Array,
    pool_size: _Pair,
    stride: _Pair,
    pads: _Pads,
    count_include_pad: bool,
    out: _Array,
) -> None:
    """Fill `out` with each window's average.

    The window is clipped to the padded image, and the divisor counts what is left of it, or only
    the image's own pixels.
    """
    geometry = (pool_size, stride, pads)
    windows = _windows(x, *geometry, (1, 1), out.shape[2:], 0)
    divisors = _divisors(x.shape[2:], *geometry, out.shape[2:], count_include_pad)
    out[...] = windows.sum(axis=(-2, -1)) / divisors.astype(x.dtype)


@_quiet(all="ignore")
def avg_pool2d_backward(
    grad_out: _Array,
    pool_size: _Pair,
    stride: _Pair,
    pads: _Pads,
    count_include_pad: bool,
    grad_x: _Array,
) -> None:
    """Fill `grad_x`: each gradient, divided, goes to every pixel of its window.

    First down the windows' rows, then along their columns: KH + KW additions, not KH * KW.
    """
    h, w = grad_x.shape[2:]
    rows, columns = grad_out.shape[2:]
    divisors = _divisors((h, w), pool_size, stride, pads, (rows, columns), count_include_pad)
    height = max(pads[0] + h, (rows - 1) * stride[0] + pool_size[0])
    width = max(pads[2] + w, (columns - 1) * stride[1] + pool_size[1])
    share = grad_out / divisors.astype(grad_x.dtype)
    tall = np.zeros((*grad_out.shape[:2], height, columns), grad_x.dtype)
    for _, _, view in _taps(tall, (pool_size[0], 1), (stride[0], 1), (1, 1), (rows, columns)):
        view += share
    padded = np.zeros((*grad_out.shape[:2], height, width), grad_x.dtype)
    for _, _, view in _taps(padded, (1, pool_size[1]), (1, stride[1]), (1, 1), (height, columns)):
        view += tall
    grad_x[...] = padded[:, :, pads[0] : pads[0] + h, pads[2] : pads[2] + w]


# ---------------------------------------------------------------- activations

# Chebyshev coefficients of exp(z*z) * erfc(z) / t in 2*t - 1, where t = 2 / (2 + z): all z >= 0 in
# one polynomial (after Press et al., Numerical Recipes, section 6.2; computed with 60 digits).
_ERFC = (
    0.57703373861646967, 0.35543692127049847, 0.065095158828786526,
    0.0036711423958366391, -0.0011128447433526325, -0.00016075829915378079,
    3.2780315741731373e-05, 5.4424416455050162e-06, -1.5154665553171482e-06,
    -1.4297608181169865e-07, 8.2346088274194931e-08, -1.2962846852306563e-09,
    -4.1547216310151987e-09, 6.3470582783628112e-10, 1.4320822712256225e-10,
    -6.1603901052045851e-11, 2.0612138554721698e-12, 3.5714931488477042e-12,
    -8.586422843251796e-13, -6.1456002137906301e-14, 7.4187257485966167e-14,
    -1.2895042755032325e-14, -2.3587263857106322e-15, 1.5729349381685912e-15,
    -2.2782966239546465e-16, -6.3123304507564303e-17, 3.5916763531814925e-17,
    -5.049809149847729e-18,
)  # fmt: skip


def _erfc(x: _Array) -> _Array:
    """Return the complementary error function, to double precision, for NumPy has none."""
    z = np.abs(x, dtype=np.float64)
    t = 2 / (2 + z)
    y = 4 * t - 2
    last, before = np.zeros_like(z), np.zeros_like(z)
    for coefficient in _ERFC[:0:-1]:  # Clenshaw's recurrence
        last, before = y * last - before + coefficient, last
    tail = t * np.exp(-z * z) * (0.5 * y * last - before + _ERFC[0])
    return np.asarray(np.where(x < 0, 2 - tail, tail), x.dtype)


def _sigmoid(x: _Array) -> _Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def _normal_cdf(x: _Array) -> _Array:
    return np.asarray(0.5 * _erfc(x * -np.sqrt(0.5).astype(x.dtype)))


def _normal_pdf(x: _Array) -> _Array:
    return np.asarray(np.exp(-0.5 * x * x) * (1 / np.sqrt(2 * np.pi)).astype(x.dtype))


def _silu_derivative(x: _Array) -> _Array:
    s = _sigmoid(x)
    return np.asarray(s * (1 + x * (1 - s)))


_ACTIVATIONS: dict[str, Any] = {
    "relu": lambda x, alpha: np.where(x < 0, 0, x),
    "leaky_relu": lambda x, alpha: np.where(x < 0, alpha * x, x),
    "relu1": lambda x, alpha: np.clip(x, 0, 1),
    "relu6": lambda x, alpha: np.clip(x, 0, 6),
    "sigmoid": lambda x, alpha: _sigmoid(x),
    "tanh": lambda x, alpha: np.tanh(x),
    "gelu": lambda x, alpha: x * _normal_cdf(x),
    "silu": lambda x, alpha: x / (1 + np.exp(-x)),
    "hard_swish": lambda x, alpha: x * np.clip(x + 3, 0, 6) * x.dtype.type(1 / 6),
}

_DERIVATIVES: dict[str, Any] = {  # at the input x
    "relu": lambda x, alpha: x > 0,
    "leaky_relu": lambda x, alpha: np.where(x > 0, 1, alpha).astype(x.dtype),
    "relu6": lambda x, alpha: (x > 0) & (x < 6),
    "sigmoid": lambda x, alpha: _sigmoid(x) * (1 - _sigmoid(x)),
    "tanh": lambda x, alpha: 1 - np.tanh(x) ** 2,
    "gelu": lambda x, alpha: _normal_cdf(x) + x * _normal_pdf(x),
    "silu": lambda x, alpha: _silu_derivative(x),
    "hard_swish": lambda x, alpha: np.where(
        x > -3, np.where(x < 3, x * x.dtype.type(1 / 3) + x.dtype.type(0.5), 1), 0
    ),
}

_DERIVATIVES_FROM_OUTPUT: dict[str, Any] = {
    "relu": lambda y: y > 0,
    "sigmoid": lambda y: y * (1 - y),
    "tanh": lambda y: 1 - y * y,
}


def _chain(grad_out: _Array, derivative: _Array) -> _Array:
    """Return grad_out * derivative; True lets grad_out through, False stops it, even NaN."""
    if derivative.dtype == bool:
        return np.where(derivative, grad_out, 0)
    return np.asarray(grad_out * derivative)


@_quiet(all="ignore")
def activation(x: _Array, kind: str, alpha: float, out: _Array) -> None:
    """Fill `out` with the activation `kind` of x; `alpha` is the leaky ReLU's slope."""
    out[...] = _ACTIVATIONS[kind](x, alpha)


@_quiet(all="ignore")
def activation_backward(
    grad_out: _Array, x: _Array, kind: str, alpha: float, grad_x: _Array
) -> None:
    """Fill `grad_x` with `grad_out` times the derivative at the forward's input x."""
    grad_x[...] = _chain(grad_out, _DERIVATIVES[kind](x, alpha))


@_quiet(all="ignore")
def activation_backward_from_output(grad_out: _Array, y: _Array, kind: str, grad_x: _Array) -> None:
    """Fill `grad_x` with `grad_out` times the derivative, found from the forward's output y."""
    grad_x[...] = _chain(grad_out, _DERIVATIVES_FROM_OUTPUT[kind](y))


@_quiet(all="ignore")
def add(x: _Array, other: _Array, activation: str | None, out: _Array) -> None:
    """Fill `out` with act(x + other); the activation is relu or none."""
    np.add(x, other, out=out)
    if activation is not None:
        out[...] = _ACTIVATIONS[activation](out, 0.0)


@_quiet(all="ignore")
def softmax(x: _Array, log: bool, out: _Array) -> None:
    """Fill `out` with softmax, or its logarithm, of each row of x (rows, classes).

    The row's maximum is taken off first: the result is the same, and nothing overflows.
    """
    shifted = x - x.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    sums = exponentials.sum(axis=1, keepdims=True, dtype=np.float64)
    out[...] = shifted - np.log(sums) if log else exponentials / sums


@_quiet(all="ignore")
def softmax_backward(grad_out: _Array, y: _Array, log: bool, grad_x: _Array) -> None:
    """Fill `grad_x` from the forward's output y, (rows, classes)."""
    if log:
        sums = grad_out.sum(axis=1, keepdims=True, dtype=np.float64)
        grad_x[...] = grad_out - np.exp(y) * sums
    else:
        sums = (grad_out * y).sum(axis=1, keepdims=True, dtype=np.float64)
        grad_x[...] = y * (grad_out - sums)


@_quiet(all="ignore")
def cross_entropy(x: _Array, target: _Array, smoothing: float, loss: _Array, grad_x: _Array) -> int:
    """Fill `loss` (rows,), in float64, and `grad_x`, the gradient of its mean.

    The target is labels (rows,), int64, or a table of x's shape and dtype. Return -1, or the row of
    the first label that is no class; then nothing is filled.
    """
    rows, classes = x.shape
    if target.ndim == 1:
        wrong = np.flatnonzero((target < 0) | (target >= classes))
        if wrong.size:
            return int(wrong[0])
        target = np.arange(classes) == target[:, None]
    wanted = (1 - smoothing) * target + smoothing / classes
    logs = np.empty_like(x)
    softmax(x, True, logs)
    # A class that is ruled out by a score of minus infinity costs nothing where none is wanted.
    terms = np.multiply(wanted, logs, out=np.zeros(x.shape), where=wanted != 0)
    loss[...] = -terms.sum(axis=1)
    grad_x[...] = (np.exp(logs) * wanted.sum(axis=1, keepdims=True) - wanted) / max(rows, 1)
    return -1


# ---------------------------------------------------------------- batch normalisation


def _per_channel(values: _Array) -> _Array:
    """Return values (C,) as (C, 1, 1), to broadcast over (N, C, H, W)."""
    return values.reshape(-1, 1, 1)


@_quiet(all="ignore")
def batch_norm2d_stats(x: _Array, mean: _Array, var: _Array) -> None:
    """Fill `mean` and `var` (C,): the biased variance over images and pixels, in two passes."""
    mean[...] = x.mean(axis=(0, 2, 3), dtype=np.float64)
    var[...] = x.var(axis=(0, 2, 3), dtype=np.float64)


@_quiet(all="ignore")
def batch_norm2d(
    x: _Array,
    weight: _Array | None,
    bias: _Array | None,
    mean: _Array,
    var: _Array,
    eps: float,
    batch_stats: bool,
    activation: str | None,
    out: _Array,
) -> None:
    """Fill `out` with act((x - mean) / sqrt(var + eps) * weight + bias).

    `batch_stats`: mean and var are not known yet; fill them first.
    """
    if batch_stats:
        batch_norm2d_stats(x, mean, var)
    scale = (1 / np.sqrt(var.astype(np.float64) + eps)).astype(x.dtype)
    if weight is not None:
        scale *= weight
    out[...] = (x - _per_channel(mean)) * _per_channel(scale)
    if bias is not None:
        out += _per_channel(bias)
    if activation is not None:
        out[...] = _ACTIVATIONS[activation](out, 0.0)


@_quiet(all="ignore")
def batch_norm2d_backward(
    grad_out: _Array,
    x: _Array,
    weight: _Array | None,
    bias: _Array | None,
    mean: _Array,
    var: _Array,
    eps: float,
    batch_stats: bool,
    activation: str | None,
    grad_x: _Array,
    grad_weight: _Array,
    grad_bias: _Array,
) -> None:
    """Fill the three gradients; `batch_stats` says that mean and var were computed from x.

    The mean and the variance then pass on gradients of their own, and together they take from
    grad_out its mean and its projection on the normalised x (Ioffe and Szegedy 2015, section 3).
    """
    if activation is not None:
        before = np.empty_like(x)
        batch_norm2d(x, weight, bias, mean, var, eps, False, None, before)
        grad_out = _chain(grad_out, _DERIVATIVES[activation](before, 0.0))
    inverse = 1 / np.sqrt(var.astype(np.float64) + eps)
    normalised = (x - _per_channel(mean)) * _per_channel(inverse.astype(x.dtype))
    grad_weight[...] = (grad_out * normalised).sum(axis=(0, 2, 3), dtype=np.float64)
    grad_bias[...] = grad_out.sum(axis=(0, 2, 3), dtype=np.float64)
    if weight is not None:
        inverse *= weight
    grad_x[...] = grad_out
    if batch_stats:
        count = x.size // x.shape[1]
        grad_x -= _per_channel(grad_bias / count)
        grad_x -= normalised * _per_channel(grad_weight / count)
    grad_x *= _per_channel(inverse.astype(x.dtype))


# ---------------------------------------------------------------- optimizers


@_quiet(all="ignore")
def sgd(
    param: _Array,
    grad: _Array,
    velocity: _Array | None,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """Make one step of SGD: change `param` and `velocity` (None without momentum) in place."""
    if weight_decay:
        grad = grad + weight_decay * param
    if velocity is not None:  # zeros before the first step, which makes it grad there
        velocity *= momentum
        velocity += grad
        grad = grad + momentum * velocity if nesterov else velocity
    param -= lr * grad


@_quiet(all="ignore")
def adam(
    param: _Array,
    grad: _Array,
    mean: _Array,
    square: _Array,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    step: int,
) -> None:
    """Make Adam's step number `step`: change `param`, `mean` and `square` in place."""
    if weight_decay and decoupled:
        param *= 1 - lr * weight_decay
    elif weight_decay:
        grad = grad + weight_decay * param
    mean += (1 - beta1) * (grad - mean)
    square *= beta2
    square += (1 - beta2) * np.square(grad)
    root = np.sqrt(square)
    root /= (1 - beta2**step) ** 0.5
    root += eps
    param -= lr / (1 - beta1**step) * (mean / root)
