"""Operators that move numbers or tell shapes: they compute nothing.

Each function takes a node, reads its attributes once, and returns the function that runs. What was
an attribute in earlier operator sets and is an input in later ones, such as `axes`, is taken as it
comes. Where the result can be a view of the input it is one.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from cnnx.onnx._images import Run
from cnnx.onnx._program import DTYPES, Array, Node, require_room


def integers(values: Any) -> list[int]:
    """Return a list of integers from an input or an attribute."""
    return [int(value) for value in np.asarray(values).reshape(-1)]


def axes_of(node: Node, given: Array | None) -> list[int] | None:
    """Return `axes`, an input or an attribute; None where it is left out."""
    axes = node.get("axes") if given is None else given
    return None if axes is None else integers(axes)


def _normal(axes: list[int], ndim: int) -> list[int]:
    """Return axes counted from the front."""
    for axis in axes:
        if not -ndim <= axis < ndim:
            raise ValueError(f"axis is {axis}, of {ndim} dimensions")
    return [axis % ndim for axis in axes]


def constant(node: Node) -> Run:
    """The value that stands in the node."""
    for name, dtype in (
        ("value", None),
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if name in node.attributes:
            value = np.asarray(node.attributes[name], dtype)
            return lambda: value
    raise NotImplementedError(f"{node}: cnnx reads a constant of numbers only")


def constant_of_shape(node: Node) -> Run:
    """An array of one number."""
    value = node.get("value", np.zeros(1, np.float32))
    if value.size != 1:
        raise ValueError(f"{node}: value has shape {value.shape}, expected one number")

    def run(shape: Array) -> Array:
        sizes = integers(shape)
        require_room(sizes, value.itemsize)
        return np.full(sizes, value.reshape(()), value.dtype)

    return run


def identity(node: Node) -> Run:
    """The input itself; for Dropout, which drops nothing here, with a mask of ones if wanted."""
    mask = len(node.outputs) > 1 and bool(node.outputs[1])

    def run(x: Array, ratio: Array | None = None, training: Array | None = None) -> Any:
        if training is not None and training.any():
            raise NotImplementedError("cnnx runs no dropout in training mode from a file")
        return (x, np.ones(x.shape, bool)) if mask else x

    return run


def cast(node: Node) -> Run:
    """The same numbers in another type."""
    to = node.get("to")
    if to not in DTYPES:
        raise NotImplementedError(f"{node}: cnnx does not compute with the data type {to}")
    dtype = DTYPES[to].newbyteorder("=")
    return lambda x: x.astype(dtype, copy=False)


# ---------------------------------------------------------------- shapes


def shape(node: Node) -> Run:
    """The sizes of an array, or some of them."""
    part = slice(node.get("start", 0), node.get("end"))
    return lambda x: np.array(x.shape[part], np.int64)


def reshape(node: Node) -> Run:
    """Another shape: 0 keeps a size, and -1 is what the others leave."""
    keeps, fixed = not node.get("allowzero", 0), node.get("shape")

    def run(x: Array, wanted: Array | None = None) -> Array:
        sizes = integers(fixed if wanted is None else wanted)
        if keeps:
            if any(size == 0 and axis >= x.ndim for axis, size in enumerate(sizes)):
                raise ValueError(f"x of shape {x.shape} cannot keep sizes for {sizes}")
            sizes = [size or x.shape[axis] for axis, size in enumerate(sizes)]
        return x.reshape(sizes)

    return run


def flatten(node: Node) -> Run:
    """A matrix, whose rows are the dimensions before `axis`."""
    axis = node.get("axis", 1)

    def run(x: Array) -> Array:
        if not -x.ndim <= axis <= x.ndim:
            raise ValueError(f"axis is {axis}, of {x.ndim} dimensions")
        sizes, place = x.shape, axis % x.ndim if axis < 0 else axis
        return x.reshape(prod(sizes[:place]), prod(sizes[place:]))

    return run


def squeeze(node: Node) -> Run:
    """Without some dimensions of size 1."""

    def run(x: Array, given: Array | None = None) -> Array:
        axes = axes_of(node, given)
        return np.squeeze(x, None if axes is None else tuple(_normal(axes, x.ndim)))

    return run


def unsqueeze(node: Node) -> Run:
    """With more dimensions of size 1."""

    def run(x: Array, given: Array | None = None) -> Array:
        axes = axes_of(node, given) or []
        return np.expand_dims(x, tuple(_normal(axes, x.ndim + len(axes))))

    return run


def transpose(node: Node) -> Run:
    """Another order of the dimensions."""
    order = node.get("perm")
    return lambda x: np.transpose(x, order)


def expand(node: Node) -> Run:
    """Repeated along dimensions of size 1."""

    def run(x: Array, wanted: Array) -> Array:
        sizes = np.broadcast_shapes(x.shape, tuple(integers(wanted)))
        require_room(sizes, x.itemsize)
        return np.broadcast_to(x, sizes)

    return run


# ---------------------------------------------------------------- parts


def concat(node: Node) -> Run:
    """Arrays one after the other along an axis."""
    axis = node.get("axis")
    if not isinstance(axis, int):
        raise ValueError(f"{node}: axis is missing")
    return lambda *arrays: np.concatenate(arrays, axis)


def split_sizes(node: Node, size: int, given: Array | None) -> list[int]:
    """Return the sizes of the parts of a dimension."""
    sizes = node.get("split") if given is None else given
    if sizes is None:
        parts = len(node.outputs)
        chunk = -(-size // parts)
        sizes = [max(0, min(chunk, size - part * chunk)) for part in range(parts)]
    sizes = integers(sizes)
    if sum(sizes) != size or min(sizes) < 0 or len(sizes) != len(node.outputs):
        raise ValueError(f"parts of {sizes} do not make {size}")
    return sizes


def split(node: Node) -> Run:
    """Parts of an array along an axis."""
    axis = node.get("axis", 0)

    def run(x: Array, given: Array | None = None) -> Any:
        (along,) = _normal([axis], x.ndim)
        sizes = split_sizes(node, x.shape[along], given)
        parts = np.split(x, np.cumsum(sizes)[:-1], along)
        return tuple(parts) if len(parts) > 1 else parts[0]

    return run


def slices(node: Node, ndim: int, *given: Array | None) -> tuple[slice, ...]:
    """Return what a Slice takes of each dimension; `given` are starts, ends, axes and steps."""
    starts, ends, axes, steps = (
        node.get(name) if value is None else value
        for name, value in zip(("starts", "ends", "axes", "steps"), given, strict=True)
    )
    starts, ends = integers(starts), integers(ends)
    axes = list(range(len(starts))) if axes is None else _normal(integers(axes), ndim)
    steps = [1] * len(starts) if steps is None else integers(steps)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise ValueError(f"starts {starts}, ends {ends}, axes {axes} and steps {steps} do not fit")
    if axes and max(axes) >= ndim:
        raise ValueError(f"axes are {axes}, of {ndim} dimensions")
    result = [slice(None)] * ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        result[axis] = slice(start, end, step)
    return tuple(result)


def slice_(node: Node) -> Run:
    """A part of an array, from start to end in steps, along each axis."""

    def run(x: Array, *given: Array | None) -> Array:
        padded = (*given, None, None, None, None)[:4]
        result: Array = x[slices(node, x.ndim, *padded)]
        return result

    return run


def gather(node: Node) -> Run:
    """The entries of an axis that an array of numbers names."""
    axis = node.get("axis", 0)

    def run(x: Array, indices: Array) -> Array:
        (along,) = _normal([axis], x.ndim)
        require_room((*x.shape[:along], *indices.shape, *x.shape[along + 1 :]), x.itemsize)
        try:
            result: Array = np.asarray(np.take(x, indices, along))
            return result
        except IndexError as error:
            raise ValueError(f"the indices do not fit x of shape {x.shape}: {error}") from None

    return run


def range_(node: Node) -> Run:
    """start, start + delta, and so on below the limit."""

    def run(start: Array, limit: Array, delta: Array) -> Array:
        if not np.all(delta):
            raise ValueError("delta is 0")
        first, end, step = (value.reshape(()) for value in (start, limit, delta))
        count = max(0.0, float(np.ceil((float(end) - float(first)) / float(step))))
        require_room((int(count),) if count < 2**62 else (2**62,), start.itemsize)
        result: Array = first + np.arange(int(count), dtype=start.dtype) * step
        return result.astype(start.dtype)

    return run


# ---------------------------------------------------------------- padding, means


def pad(node: Node) -> Run:
    """A border of one number, of mirrored or repeated pixels; negative sizes cut off."""
    mode, fixed, fill = node.get("mode", "constant"), node.get("pads"), node.get("value", 0.0)
    modes = {"constant": "constant", "reflect": "reflect", "edge": "edge", "wrap": "wrap"}
    if mode not in modes:
        raise NotImplementedError(f"{node}: mode is {mode!r}, expected one of {sorted(modes)}")

    def run(
        x: Array,
        given: Array | None = None,
        value: Array | None = None,
        axes: Array | None = None,
    ) -> Array:
        pads = integers(fixed if given is None else given)
        along = list(range(x.ndim)) if axes is None else _normal(integers(axes), x.ndim)
        if len(pads) != 2 * len(along):
            raise ValueError(f"pads are {pads}, expected {2 * len(along)}")
        widths = [(0, 0)] * x.ndim
        for number, axis in enumerate(along):
            before, after = pads[number], pads[number + len(along)]
            x = np.moveaxis(np.moveaxis(x, axis, 0)[max(0, -before) :], 0, axis)
            x = np.moveaxis(np.moveaxis(x, axis, 0)[: x.shape[axis] + min(0, after)], 0, axis)
            widths[axis] = (max(0, before), max(0, after))
        sizes = (size + sum(width) for size, width in zip(x.shape, widths, strict=True))
        require_room(sizes, x.itemsize)
        if mode != "constant":
            return np.pad(x, widths, mode=mode)
        border = fill if value is None else value.reshape(())
        return np.pad(x, widths, constant_values=border)

    return run


def reduce_mean(node: Node) -> Run:
    """The mean over some axes, or all."""
    keep, nothing = bool(node.get("keepdims", 1)), bool(node.get("noop_with_empty_axes", 0))

    def run(x: Array, given: Array | None = None) -> Any:
        axes = axes_of(node, given)
        if not axes:
            if nothing:
                return x
            axes = list(range(x.ndim))
        function = np.mean if x.size else np.sum  # 0 of no numbers, as ONNX Runtime has it
        return function(x, tuple(_normal(axes, x.ndim)), x.dtype, keepdims=keep)

    return run
