"""Resize: images of another size, from the nearest pixels or from a weighted mean of neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cnnx.functional._arguments import empty
from cnnx.onnx._images import Run
from cnnx.onnx._program import Array, Node, require_room

Coordinates = Callable[[Array, float, int, int], Array]

# Where in the input the pixel i of the output stands: of the scale and both lengths.
_COORDINATES: dict[str, Coordinates] = {
    "half_pixel": lambda i, scale, size, out: (i + 0.5) / scale - 0.5,
    "asymmetric": lambda i, scale, size, out: i / scale,
    "align_corners": lambda i, scale, size, out: (
        i * ((size - 1) / (scale * size - 1)) if scale * size > 1 else i * 0.0
    ),
    "pytorch_half_pixel": lambda i, scale, size, out: ((i + 0.5) / scale - 0.5) * (out > 1),
    "half_pixel_symmetric": lambda i, scale, size, out: (
        size / 2 * (1 - out / (scale * size)) + (i + 0.5) / scale - 0.5
    ),
}
_NEAREST: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def resize(node: Node) -> Run:
    """Images of another size, given as sizes or as scales."""
    taps_of, repeats = _taps(node), _repeats(node)

    def run(x: Array, *given: Array | None) -> Array:
        axes = _sizes(node, x, given)
        if not x.size:
            sizes = {axis: out for axis, out, _ in axes}
            return np.empty([sizes.get(axis, n) for axis, n in enumerate(x.shape)], x.dtype)
        for axis, out, scale in reversed(axes):  # the last: long rows to copy
            size = x.shape[axis]
            if out == size and scale == 1:
                continue
            if repeats and scale == int(scale):
                x = repeated(x, axis, int(scale))
                continue
            parts = []
            for index, weight in taps_of(size, out, scale):
                part = x.take(index, axis)
                if weight is not None:
                    part *= weight.astype(x.dtype).reshape(-1, *[1] * (x.ndim - axis - 1))
                parts.append(part)
            x = sum(parts[1:], parts[0])
        return x

    return run


def resize_backward(node: Node) -> Any:
    """Each gradient goes to the pixels that its pixel was made of, in the same shares."""
    taps_of = _taps(node)

    def run(call: Any) -> Any:
        x, grad = call.x, call.grad
        if not x.size:
            return (np.zeros_like(x),)
        for axis, out, scale in _sizes(node, x, call.inputs[1:]):
            size = x.shape[axis]
            if out == size and scale == 1:
                continue
            moved = np.moveaxis(grad, axis, 0)
            back = np.zeros((size, *moved.shape[1:]), x.dtype)
            for index, weight in taps_of(size, out, scale):
                share: Any = 1 if weight is None else weight.astype(x.dtype)
                np.add.at(back, index, (moved.T * share).T)
            grad = np.moveaxis(back, 0, axis)
        return (grad,)

    return run


def whole_scales(node: Node, x: Array, given: Sequence[Array | None]) -> list[tuple[int, int]]:
    """Return the axes whose entries are repeated, and how often, if that is all; else nothing."""
    if not _repeats(node):
        return []
    found = [(axis, scale) for axis, _, scale in reversed(_sizes(node, x, given)) if scale != 1]
    whole = all(scale == int(scale) for _, scale in found)
    return [(axis, int(scale)) for axis, scale in found] if whole else []


def _sizes(node: Node, x: Array, given: Sequence[Array | None]) -> list[tuple[int, int, float]]:
    """Return each axis that is resized, its new length, and the scale."""
    roi, scales, sizes = (*given, None, None, None)[:3]
    if node.opset < 11:  # x, scales
        scales = roi
    chosen = node.get("axes")
    axes = [axis % x.ndim for axis in chosen] if chosen else list(range(x.ndim))
    lengths = [x.shape[axis] for axis in axes]
    if sizes is not None and sizes.size == len(axes):
        outs = [int(size) for size in sizes.reshape(-1)]
        factors = [out / max(1, length) for out, length in zip(outs, lengths, strict=True)]
    elif scales is not None and scales.size == len(axes):
        factors = [float(scale) for scale in scales.reshape(-1)]
        if not all(0 < factor < 2**31 for factor in factors):
            raise ValueError(f"scales are {factors}")
        # In float32, as ONNX Runtime: 2.6 in float32 is below 2.6, and 5 * 2.6 must be 13.
        outs = [int(np.float32(f) * np.float32(n)) for f, n in zip(factors, lengths, strict=True)]
    else:
        raise ValueError(f"neither {len(axes)} sizes nor {len(axes)} scales are given")
    shape = list(x.shape)
    for axis, out in zip(axes, outs, strict=True):
        shape[axis] = out
    if any((out < 1) != (size == 0) for out, size in zip(shape, x.shape, strict=True)):
        raise ValueError(f"the output would have the shape {tuple(shape)}")
    require_room(shape, x.itemsize)
    return list(zip(axes, outs, factors, strict=True))


def _taps(node: Node) -> Callable[[int, int, float], list[tuple[Array, Array | None]]]:
    """Return what gives, for a length, the new one and the scale, the pixels and their weights."""
    mode = node.get("mode", "nearest")
    position = _choice(node, "coordinate_transformation_mode", "half_pixel", _COORDINATES)
    rounded = _choice(node, "nearest_mode", "round_prefer_floor", _NEAREST)
    taps = {"nearest": 1, "linear": 2, "cubic": 4}.get(mode, 0)
    policy = node.get("keep_aspect_ratio_policy", "stretch")
    if not taps or node.get("antialias") or node.get("exclude_outside") or policy != "stretch":
        raise NotImplementedError(
            f"{node}: cnnx resizes with mode nearest, linear or cubic, without antialias, "
            "exclude_outside and keep_aspect_ratio_policy"
        )
    cubic = float(node.get("cubic_coeff_a", -0.75))

    def run(size: int, out: int, scale: float) -> list[tuple[Array, Array | None]]:
        if mode == "nearest":  # in float32, as ONNX Runtime: which of two is nearer may hang on it
            where = position(np.arange(out, dtype=np.float32), np.float32(scale), size, out)
            return [(rounded(where).clip(0, size - 1).astype(np.int64), None)]
        where = position(np.arange(out, dtype=np.float64), scale, size, out)
        first = np.floor(where)
        begin = first.astype(np.int64) - (taps // 2 - 1)
        return [
            ((begin + tap).clip(0, size - 1), weight)
            for tap, weight in enumerate(_weights(where - first, taps, cubic))
        ]

    return run


def _choice(node: Node, name: str, default: str, table: dict[str, Any]) -> Any:
    # Before operator set 11 there was only one way.
    value = node.get(name, default)
    if node.opset < 11:
        value = "asymmetric" if table is _COORDINATES else "floor"
    if value not in table:
        raise NotImplementedError(
            f"{node}: {name} is {value!r}, expected one of {', '.join(table)}"
        )
    return table[value]


def _repeats(node: Node) -> bool:
    """Whether a scale that is a whole number repeats each pixel so many times, in their order."""
    way = node.get("coordinate_transformation_mode", "half_pixel")
    nearest = node.get("nearest_mode", "round_prefer_floor")
    if node.get("mode", "nearest") != "nearest":
        return False
    if node.opset < 11 or (way == "asymmetric" and nearest == "floor"):
        return True
    return bool(way == "half_pixel" and nearest.startswith("round"))


def repeated(x: Array, axis: int, times: int) -> Array:
    """Return x with each entry of an axis repeated: np.repeat in half its time or less."""
    shape = (*x.shape[:axis], times * x.shape[axis], *x.shape[axis + 1 :])
    recycled = x.dtype.char in "fd" and len(shape) <= 8  # fresh memory costs more than the copies
    return repeat(x, axis, times, empty(shape, x) if recycled else np.empty(shape, x.dtype))


def repeat(x: Array, axis: int, times: int, out: Array) -> Array:
    """Fill `out` with x, each entry of an axis repeated."""
    parts = out.reshape(*x.shape[: axis + 1], times, *x.shape[axis + 1 :])
    for number in range(times):
        parts[(slice(None),) * (axis + 1) + (number,)] = x
    return out


def _weights(part: Array, taps: int, a: float) -> list[Array]:
    """The weights of the neighbours of a point that lies `part` behind the one before it."""
    if taps == 2:
        return [1 - part, part]
    # Keys' kernel, at the distances 1 + part, part, 1 - part and 2 - part.
    near = [part, 1 - part]
    far = [1 + part, 2 - part]
    inner = [((a + 2) * d - (a + 3)) * d * d + 1 for d in near]
    outer = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in far]
    return [outer[0], inner[0], inner[1], outer[1]]
