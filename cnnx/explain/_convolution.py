"""Convolution: the links of a window that moves, the rest is a weighted sum."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np

from cnnx import _shapes
from cnnx import functional as F
from cnnx.explain import _activation, _arguments
from cnnx.explain._steps import Array, Explanation, Step, group_of, panels
from cnnx.explain._weighted import DX, Formulas, Kernels, Link, WeightedSum, X, Z
from cnnx.explain._windows import Windows
from cnnx.functional import _arguments as check


def explain(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    activation: Any,
    grad_out: Any,
) -> Explanation:
    """The steps of a convolution, forward and backward."""
    given = _arguments.numbers("x", x, (2, 4), "(H, W) or (N, C, H, W)")
    filters = _arguments.numbers("weight", weight, (2, 4), "(KH, KW) or (F, C, KH, KW)")
    images = given.reshape((1, 1, *given.shape)) if given.ndim == 2 else given
    w = filters.reshape((1, 1, *filters.shape)) if filters.ndim == 2 else filters
    b = _arguments.bias(bias, w.shape[0])
    check.choice(activation, "activation", (None, *_activation.NAMES))
    step, pads = check.pair(stride, "stride"), check.padding(padding)
    spread = check.pair(dilation, "dilation")
    geometry = _shapes.conv2d(images.shape, w.shape, step, pads, spread, 1)
    windows = Windows(geometry, images.shape, (w.shape[2], w.shape[3]))
    upstream = _arguments.upstream(grad_out, geometry.out_shape)
    top, _, left, _ = geometry.pads
    story = WeightedSum(
        windows.pad(images, 0.0),
        w,
        b,
        [
            Link((n, f, *place), (f, c, *tap), (n, c, *cell))
            for n, f in np.ndindex(images.shape[0], w.shape[0])
            for place in windows.places
            for c in range(w.shape[1])
            for tap, cell in windows.taps(place)
        ],
        _formulas(images.shape, w.shape, windows.padded),
        windows.faint,
        windows.crop,
        geometry.out_shape,
        activation,
        upstream,
        (top, left),
    )
    steps = [_introduction(story, windows), *story.forward(), *story.backward()]
    options = (step, pads if isinstance(pads, str) else (pads[:2], pads[2:]), spread)
    checks, agrees = story.checks(images, _kernels(story, images, options))
    gradients = story.gradients
    gradients["x"] = gradients["x"].reshape(given.shape)
    gradients["weight"] = gradients["weight"].reshape(filters.shape)
    size, tail = f"{w.shape[2]}x{w.shape[3]}", f", {activation}" if activation else ""
    return Explanation(
        f"Convolution, kernel {size}, {windows.described}{tail}",
        (*steps, *checks, story.summary(agrees)),
        story.out[0, 0] if given.ndim == filters.ndim == 2 else story.out,
        MappingProxyType(gradients),
        agrees,
    )


def _introduction(story: WeightedSum, windows: Windows) -> Step:
    size = " x ".join(map(str, windows.kernel))
    text = f"The {size} weights move over the image, {windows.described}."
    if windows.padded:
        text += " The padding around it is zeros."
    text += (
        " Every output is one window of the image times the same weights: that is weight sharing."
    )
    first = (0, 0, *windows.places[0])
    marks = {link.source: group_of(first) for link in story.by_out[first]}
    shown = (
        *panels(X, story.x, marks, faint=story.faint),
        *panels("W", story.weight, sign="∗"),
        *(() if story.bias is None else panels("b", story.bias, sign="+")),
        *panels(Z, np.full(story.out_shape, np.nan), {first: group_of(first)}, sign="→"),
    )
    return Step(
        "the windows", "The image and the weights", text, windows.size_formula, (), shown, True
    )


def _kernels(story: WeightedSum, x: Array, options: tuple[Any, ...]) -> Kernels:
    """What cnnx computes for the same call."""

    def run(x: Array, w: Array, b: Array | None) -> Array:
        activation: Any = story.activation
        out: Array = F.conv2d(x, w, b, *options, activation=activation)
        return out

    def back(grad_z: Array) -> tuple[Array | None, ...]:
        return F.conv2d_backward(grad_z, x, story.weight, *options)

    return Kernels(run, back)


def _formulas(x_shape: tuple[int, ...], w_shape: tuple[int, ...], padded: bool) -> Formulas:
    """The formulas, without the indices of axes of size 1 that the names leave out as well."""
    batch, filters, channels = x_shape[0] > 1, w_shape[0] > 1, w_shape[1] > 1
    z = "n, f, " if batch else "f, " if filters else ""
    c = "n, c, " if batch else "c, " if channels else ""
    w = f"W[{'f, c, ' if filters else 'c, ' if channels else ''}u, v]"
    place = f"[{c}i·S_h + u, j·S_w + v]"
    pad, over = "_pad" if padded else "", "n," if batch else ""
    b = "b[f]" if filters else "b[0]"
    return Formulas(
        f"Z[{z}i, j] = Σ_{{{'c,' if channels else ''}u,v}} {X}{pad}{place} · {w}",
        f"{b}",
        f"∂L/∂{w} = Σ_{{{over}i,j}} {X}{pad}{place} · ∂L/∂Z[{z}i, j]",
        f"∂L/∂{b} = Σ_{{{over}i,j}} ∂L/∂Z[{z}i, j]",
        f"{DX}{pad}{place} += {w} · ∂L/∂Z[{z}i, j]",
    )
