"""Convolution and its transpose, with weights."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from cnnx import _shapes
from cnnx import functional as F
from cnnx.functional import _arguments as check
from cnnx.functional._activation import activation_backward_from_output
from cnnx.functional._arguments import IntOrPair, PaddingLike
from cnnx.functional._conv import (
    _MODES,
    ACTIVATIONS,
    Activation,
    PaddingMode,
    forward,
    prepared,
    transposed_pads,
)
from cnnx.layers.base import Array
from cnnx.layers.weighted import Seed, WeightedLayer


class Conv2D(WeightedLayer):
    """Convolution over images, as every framework means it: cross-correlation.

    With stride s, dilation d and top and left padding p::

        out[n, f, i, j] = activation(bias[f]
            + sum over c, k, l of weight[f, c, k, l] * x[n, c, i*s + k*d - p, j*s + l*d - p])

    Parameters
    ----------
    in_channels, out_channels : int
        C and F; `groups` must divide both.
    kernel_size, stride, dilation : int or (int, int)
        One number for both directions, or (height, width).
    padding : int, (int, int), ((top, bottom), (left, right)), "same" or "valid"
        "same" gives ceil(H / stride) rows, an odd row of padding at the bottom.
    groups : int
        Cut the channels into groups that do not mix; `in_channels` makes it depthwise.
    bias : bool
        Whether to add one number for each output channel.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
        What stands in the padding.
    activation : {None, "relu", "sigmoid", "tanh"}
        Applied as the output is stored, without a second pass over it.
    dtype : {"float32", "float64"}
        Of the parameters.
    rng : None, int or numpy.random.Generator
        Seed of the weights.

    Attributes
    ----------
    params : dict
        "weight" (F, C/groups, KH, KW), He-normal; "bias" (F,), zero.

    Notes
    -----
    x is (N, C, H, W), and the output is (N, F, H', W') with
    H' = floor((H + top + bottom - dilation * (KH - 1) - 1) / stride) + 1.
    With an activation, backward reads the output that forward returned: do not change it.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> conv = cnnx.Conv2D(3, 8, 3, padding=1, activation="relu", rng=0)
    >>> out = conv(np.ones((2, 3, 16, 16), np.float32))
    >>> out.shape
    (2, 8, 16, 16)
    >>> conv.backward(np.ones_like(out)).shape, conv.grads["weight"].shape
    ((2, 3, 16, 16), (8, 3, 3, 3))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: PaddingLike = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        activation: Activation = None,
        dtype: str | np.dtype[Any] = "float32",
        rng: Seed = None,
    ) -> None:
        super().__init__()
        kernel = _check_options(in_channels, out_channels, kernel_size, stride, dilation, groups)
        check.padding(padding)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.groups = groups
        self.padding_mode = check.choice(padding_mode, "padding_mode", _MODES)
        self.activation = check.choice(activation, "activation", ACTIVATIONS)
        shape = (out_channels, in_channels // groups, *kernel)
        self._begin(
            shape, prod(shape[1:]), out_channels if check.flag(bias, "bias") else 0, dtype, rng
        )

    def forward(self, x: Array) -> Array:
        """Return the output (N, F, H', W') for x (N, C, H, W)."""
        kept = None  # of a layer that is not frozen, whatever another thread has left there
        if self.frozen:
            kept = self._kept
            if kept is None:
                kept = self._kept = prepared()
        out = forward(
            x,
            self.params["weight"],
            self.params.get("bias"),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.padding_mode,
            self.activation,
            prepared=kept,
        )
        self._saved = None if self.frozen else (x, out if self.activation else None)
        return out

    def backward(self, grad_out: Array) -> Array:
        """Return grad_x (N, C, H, W) for grad_out (N, F, H', W'), and fill `grads`."""
        _, out = self._recall()
        if self.activation is not None:
            grad_out = activation_backward_from_output(grad_out, out, self.activation)
        return self._before_activation(grad_out)

    def _before_activation(self, grad_out: Array) -> Array:
        """Backward for a gradient that has been through the activation."""
        x, _ = self._recall()
        gradients = F.conv2d_backward(
            grad_out,
            x,
            self.params["weight"],
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            padding_mode=self.padding_mode,
            need=self._need(),
        )
        return self._keep(*gradients)


class ConvTranspose2D(WeightedLayer):
    """Transposed convolution: the input gradient of Conv2D as a layer, to enlarge images.

    With stride s, dilation d and padding p, every input pixel paints the kernel::

        out[n, f, i*s + k*d - p, j*s + l*d - p] += weight[c, f, k, l] * x[n, c, i, j]

    Parameters
    ----------
    in_channels, out_channels : int
        C and F; `groups` must divide both.
    kernel_size, stride, padding, dilation : int or (int, int)
        Those of the convolution whose input gradient this is.
    output_padding : int or (int, int)
        Rows and columns more, at bottom and right: with a stride, several sizes of image have
        convolutions of one size. Less than the larger of `stride` and `dilation`.
    groups : int
        Cut the channels into groups that do not mix.
    bias : bool
        Whether to add one number for each output channel.
    dtype : {"float32", "float64"}
        Of the parameters.
    rng : None, int or numpy.random.Generator
        Seed of the weights.

    Attributes
    ----------
    params : dict
        "weight" (C, F/groups, KH, KW), He-normal; "bias" (F,), zero.

    Notes
    -----
    x is (N, C, H, W), and the output is (N, F, H', W') with
    H' = (H - 1) * stride - 2 * padding + dilation * (KH - 1) + output_padding + 1.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> enlarge = cnnx.ConvTranspose2D(4, 2, 3, stride=2, padding=1, output_padding=1, rng=0)
    >>> enlarge(np.ones((1, 4, 8, 8), np.float32)).shape
    (1, 2, 16, 16)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: PaddingLike = 0,
        output_padding: IntOrPair = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: IntOrPair = 1,
        dtype: str | np.dtype[Any] = "float32",
        rng: Seed = None,
    ) -> None:
        super().__init__()
        kernel = _check_options(in_channels, out_channels, kernel_size, stride, dilation, groups)
        transposed_pads(padding)
        extra = check.pair(output_padding, "output_padding", 0)
        steps, spread = check.pair(stride, "stride"), check.pair(dilation, "dilation")
        _shapes.require_one_convolution(extra, steps, spread)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.output_padding = output_padding
        self.groups = groups
        self.dilation = dilation
        shape = (in_channels, out_channels // groups, *kernel)
        # Of the kernel's pixels only every stride-th meets a given output pixel.
        fan_in = in_channels // groups * prod(kernel) / prod(steps)
        self._begin(shape, fan_in, out_channels if check.flag(bias, "bias") else 0, dtype, rng)

    def forward(self, x: Array) -> Array:
        """Return the output (N, F, H', W') for x (N, C, H, W)."""
        out = F.conv_transpose2d(
            x,
            self.params["weight"],
            self.params.get("bias"),
            self.stride,
            self.padding,
            self.output_padding,
            self.groups,
            self.dilation,
        )
        self._saved = (x,)
        return out

    def backward(self, grad_out: Array) -> Array:
        """Return grad_x (N, C, H, W) for grad_out (N, F, H', W'), and fill `grads`."""
        (x,) = self._recall()
        gradients = F.conv_transpose2d_backward(
            grad_out,
            x,
            self.params["weight"],
            self.stride,
            self.padding,
            self.output_padding,
            self.groups,
            self.dilation,
            need=self._need(),
        )
        return self._keep(*gradients)


def _check_options(
    in_channels: int,
    out_channels: int,
    kernel_size: IntOrPair,
    stride: IntOrPair,
    dilation: IntOrPair,
    groups: int,
) -> tuple[int, int]:
    """Check what both layers have, and return the kernel's height and width."""
    check.integer(groups, "groups", 1)
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if check.integer(channels, name, 1) % groups:
            raise ValueError(f"{name} is {channels}, expected a multiple of groups, {groups}")
    check.pair(stride, "stride")
    check.pair(dilation, "dilation")
    return check.pair(kernel_size, "kernel_size")
