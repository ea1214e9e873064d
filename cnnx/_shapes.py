"""Sizes: the only place with output-size and padding formulas.

Everything here is plain integer arithmetic on shapes, so a call's geometry is worked out once and
then remembered (``lru_cache``): a training loop asks for the same few shapes for ever. Wrong shapes
are a ``ValueError`` that shows the formula with its numbers. Arguments come in the one form that
``functional._arguments`` brings them to: pairs of int, ``pads`` as (top, bottom, left, right).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
Pair = tuple[int, int]
Pads = tuple[int, int, int, int]
Padding = Pads | Literal["same"]

_AXES = (("height", "H", "top", "bottom"), ("width", "W", "left", "right"))
_NUMPY_MODES: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
_LARGEST = 2**40  # elements; products of sizes below it cannot overflow 64 bits


class Geometry(NamedTuple):
    """What the shapes and options of a call come to."""

    out_shape: tuple[int, int, int, int]
    stride: Pair
    pads: Pads
    dilation: Pair


# ---------------------------------------------------------------- the formulas, along one axis


def window_span(kernel: int, dilation: int) -> int:
    """Pixels from the first tap of a dilated window to its last, both counted."""
    return dilation * (kernel - 1) + 1


def output_size(
    size: int, kernel: int, stride: int, before: int, after: int, dilation: int, ceil: bool = False
) -> int:
    """Number of windows that fit along an axis; with `ceil` also a last one that sticks out.

    A last window that would start behind the image, in the padding, is dropped: it would see no
    pixel.
    """
    room = size + before + after - window_span(kernel, dilation)
    if not ceil:
        return room // stride + 1
    count = -(-room // stride) + 1
    return count - 1 if (count - 1) * stride >= size + before else count


def transposed_size(
    size: int, kernel: int, stride: int, before: int, after: int, dilation: int, extra: int
) -> int:
    """Size whose convolution gives `size`, the inverse of `output_size`; `extra` picks one."""
    return (size - 1) * stride + window_span(kernel, dilation) - before - after + extra


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> Pair:
    """Least padding that gives ceil(size / stride) windows, the odd pixel after the image."""
    windows = -(-size // stride)
    total = max(0, (windows - 1) * stride + window_span(kernel, dilation) - size)
    return total // 2, total - total // 2


def clipped_window(x_shape: Shape, kernel: Pair, pads: Pads, dilation: Pair) -> Pair:
    """Taps of a window that lie in the padded image.

    Only a window of `ceil_mode` can be larger than that, and then it is the only one along its
    axis, so the others change nothing; but 2**30 of them would fill the memory.
    """
    taps = []
    for axis in (0, 1):
        padded = x_shape[2 + axis] + pads[2 * axis] + pads[2 * axis + 1]
        taps.append(min(kernel[axis], (padded - 1) // dilation[axis] + 1))
    return taps[0], taps[1]


@lru_cache(maxsize=256)
def padding_index(size: int, before: int, after: int, mode: str) -> NDArray[np.intp]:
    """Which pixel of an axis stands at each position of the padded axis (read-only)."""
    index = np.pad(np.arange(size), (before, after), mode=_NUMPY_MODES[mode])
    index.flags.writeable = False
    return index


# ---------------------------------------------------------------- the geometry of whole calls


def _require_pixels(
    x_shape: Shape,
    axis: int,
    kernel: int,
    stride: int,
    pads: Pair,
    dilation: int,
    ceil: bool,
    out: int,
) -> None:
    """Raise where an image, a window or an output has no pixel, and show the formula."""
    size = x_shape[2 + axis]
    if size >= 1 and kernel >= 1 and out >= 1:
        return
    name, letter, before, after = _AXES[axis]
    divided = "ceil({} / {})" if ceil else "floor({} / {})"
    span, span_here = f"K{letter}", f"{kernel}"
    if dilation != 1:
        span, span_here = f"dilation*(K{letter} - 1) - 1", f"{dilation}*({kernel} - 1) - 1"
    formula = divided.format(f"({letter} + {before} + {after} - {span})", "stride")
    numbers = divided.format(f"({size} + {pads[0]} + {pads[1]} - {span_here})", stride)
    lacking = "input" if size < 1 else "window" if kernel < 1 else "output"
    raise ValueError(
        f"the {lacking} has no pixel: x has shape {x_shape}, {name} {letter} is {size}, window "
        f"K{letter} is {kernel}, output {name} is {formula} + 1 = {numbers} + 1 = {out}, "
        "expected each at least 1"
    )


def _require_sizes(name: str, shape: Shape, axes: tuple[int, ...]) -> None:
    if any(shape[axis] < 1 for axis in axes):
        letters = ", ".join(f"axis {axis}" for axis in axes)
        raise ValueError(f"{name} has shape {shape}, expected a size of at least 1 along {letters}")


def require_room(what: str, shape: Shape, pads: Pads = (0, 0, 0, 0)) -> None:
    """Raise where an array, or one with `pads` around its images, would have too many elements."""
    n, c, h, w = shape
    padded = n, c, h + pads[0] + pads[1], w + pads[2] + pads[3]
    if math.prod(padded) > _LARGEST:
        raise ValueError(f"{what} would have shape {padded}, more than 2**40 elements")


def _windows(
    x_shape: Shape, kernel: Shape, stride: Pair, padding: Padding, dilation: Pair, ceil: bool
) -> tuple[Pair, Pads]:
    """Output height and width, and the padding in pixels."""
    sizes, pads = [], []
    for axis in (0, 1):
        along = x_shape[2 + axis], kernel[axis], stride[axis]
        before, after = (
            same_padding(*along, dilation[axis])
            if padding == "same"
            else padding[2 * axis : 2 * axis + 2]
        )
        out = output_size(*along, before, after, dilation[axis], ceil)
        _require_pixels(x_shape, axis, *along[1:], (before, after), dilation[axis], ceil, out)
        sizes.append(out)
        pads += [before, after]
    return (sizes[0], sizes[1]), (pads[0], pads[1], pads[2], pads[3])


@lru_cache(maxsize=1024)
def conv2d(
    x_shape: Shape, w_shape: Shape, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> Geometry:
    """Geometry of a convolution of x (N, C, H, W) with weight (F, C/groups, KH, KW)."""
    _require_sizes("x", x_shape, (1,))
    _require_sizes("weight", w_shape, (0, 1))
    if w_shape[1] * groups != x_shape[1]:
        raise ValueError(
            f"weight has shape {w_shape} and groups is {groups}, expected "
            f"x's channels / groups = {x_shape[1]} / {groups} along weight's axis 1; "
            f"x has shape {x_shape}"
        )
    if w_shape[0] % groups:
        raise ValueError(
            f"groups is {groups}, expected a divisor of weight's {w_shape[0]} output channels; "
            f"weight has shape {w_shape}"
        )
    hw, pads = _windows(x_shape, w_shape[2:], stride, padding, dilation, False)
    out_shape = (x_shape[0], w_shape[0], *hw)
    require_room("the output", out_shape)
    require_room("the padded x", x_shape, pads)
    return Geometry(out_shape, stride, pads, dilation)


def require_one_convolution(output_padding: Pair, stride: Pair, dilation: Pair) -> None:
    """Raise where `output_padding` asks for more than the sizes whose convolution is the same."""
    for axis, (name, *_) in enumerate(_AXES):
        extra, step, spread = output_padding[axis], stride[axis], dilation[axis]
        if extra >= max(step, spread):
            raise ValueError(
                f"output_padding is {extra} along the {name}, expected less than the larger of "
                f"stride {step} and dilation {spread}"
            )


@lru_cache(maxsize=1024)
def conv_transpose2d(
    x_shape: Shape,
    w_shape: Shape,
    stride: Pair,
    pads: Pads,
    output_padding: Pair,
    dilation: Pair,
    groups: int,
) -> Geometry:
    """Geometry of a transposed convolution of x (N, C, H, W) with weight (C, F/groups, KH, KW)."""
    _require_sizes("x", x_shape, (1, 2, 3))
    _require_sizes("weight", w_shape, (0, 1, 2, 3))
    if w_shape[0] != x_shape[1]:
        raise ValueError(
            f"weight has shape {w_shape}, expected x's {x_shape[1]} channels along axis 0; "
            f"x has shape {x_shape}"
        )
    if w_shape[0] % groups:
        raise ValueError(
            f"groups is {groups}, expected a divisor of x's {x_shape[1]} channels; "
            f"x has shape {x_shape}"
        )
    require_one_convolution(output_padding, stride, dilation)
    sizes = []
    for axis, (name, letter, before, after) in enumerate(_AXES):
        size, kernel, step, spread = (
            x_shape[2 + axis],
            w_shape[2 + axis],
            stride[axis],
            dilation[axis],
        )
        extra, (first, last) = output_padding[axis], pads[2 * axis : 2 * axis + 2]
        out = transposed_size(size, kernel, step, first, last, spread, extra)
        if out < 1:
            raise ValueError(
                f"the output has no pixel: x has shape {x_shape}, output {name} is "
                f"({letter} - 1)*stride + "
                f"dilation*(K{letter} - 1) + 1 - {before} - {after} + output_padding = "
                f"({size} - 1)*{step} + {spread}*({kernel} - 1) + 1 - {first} - {last} + {extra} "
                f"= {out}, expected at least 1"
            )
        sizes.append(out)
    out_shape = (x_shape[0], w_shape[1] * groups, sizes[0], sizes[1])
    require_room("the output, before its padding is cut off,", out_shape, pads)
    return Geometry(out_shape, stride, pads, dilation)


def require_window_beyond(pads: Pads, pool_size: Pair, dilation: Pair) -> None:
    """Raise where a window could lie in the padding alone."""
    for axis, (name, _, before, after) in enumerate(_AXES):
        span = window_span(pool_size[axis], dilation[axis])
        for side, pad in ((before, pads[2 * axis]), (after, pads[2 * axis + 1])):
            if pad >= span:
                raise ValueError(
                    f"padding is {pad} at the {side}, expected less than the window's {name}: "
                    f"dilation*(pool_size - 1) + 1 = "
                    f"{dilation[axis]}*({pool_size[axis]} - 1) + 1 = {span}"
                )


def _require_pixel_in_window(
    axis: int, size: int, kernel: int, stride: int, before: int, dilation: int, out: int
) -> None:
    """Raise where a dilated max window steps over the whole image: its maximum would be nowhere."""
    if dilation <= size:
        return
    for start in range(-before, out * stride - before, stride):
        skipped = max(0, -(start // dilation))  # taps before the image
        if skipped >= kernel or start + skipped * dilation >= size:
            raise ValueError(
                f"dilation is {dilation} along the {_AXES[axis][0]}: the window of {kernel} taps "
                f"from position {start} on steps over the whole image, positions 0 to {size - 1}"
            )


@lru_cache(maxsize=1024)
def pool2d(
    x_shape: Shape, pool_size: Pair, stride: Pair, padding: Padding, dilation: Pair, ceil: bool
) -> Geometry:
    """Geometry of max and average pooling of x (N, C, H, W)."""
    _require_sizes("x", x_shape, (1,))
    hw, pads = _windows(x_shape, pool_size, stride, padding, dilation, ceil)
    require_window_beyond(pads, pool_size, dilation)
    for axis in (0, 1):
        _require_pixel_in_window(
            axis,
            x_shape[2 + axis],
            pool_size[axis],
            stride[axis],
            pads[2 * axis],
            dilation[axis],
            hw[axis],
        )
    out_shape = (x_shape[0], x_shape[1], *hw)
    require_room("the output", out_shape)
    require_room("the padded x", x_shape, pads)
    return Geometry(out_shape, stride, pads, dilation)
