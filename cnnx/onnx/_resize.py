"""Resize: images of another size, from the nearest pixels or from a weighted mean of neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cnnx.onnx._images import Run
from cnnx.onnx._program import Array, Node, require_room

Coordinates = Callable[[Array, float, int, int], Array]

# Where in the input the pixel i of the output stands: of the scale and both lengths.
_COORDINATES: dict[str, Coordinates] = {
    "half_pixel": lambda i, scale, size, out: (i + 0.5) / scale - 0.5,
    "asymmetric": lambda i, scale, size, out: i / scale,
    "align_corners": lambda i, scale, size, out: i * ((size - 1) / max(1, out - 1)),
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
    mode = node.get("mode", "nearest")
    position = _choice(node, "coordinate_transformation_mode", "half_pixel", _COORDINATES)
    rounded = _choice(node, "nearest_mode", "round_prefer_floor", _NEAREST)
    taps = {"nearest": 1, "linear": 2, "cubic": 4}.get(mode)
    policy = node.get("keep_aspect_ratio_policy", "stretch")
    if taps is None or node.get("antialias") or node.get("exclude_outside") or policy != "stretch":
        raise NotImplementedError(
            f"{node}: cnnx resizes with mode nearest, linear or cubic, without antialias, "
            "exclude_outside and keep_aspect_ratio_policy"
        )
    cubic = float(node.get("cubic_coeff_a", -0.75))
    chosen = node.get("axes")

    def one_axis(x: Array, axis: int, out: int, scale: float) -> Array:
        size = x.shape[axis]
        if out == size and scale == 1:
            return x
        if mode == "nearest" and out == size * scale and _repeats(node, scale):
            return np.repeat(x, int(scale), axis)
        where = position(np.arange(out, dtype=np.float64), scale, size, out)
        if mode == "nearest":
            index = rounded(where).clip(0, size - 1).astype(np.int64)
            return np.asarray(x.take(index, axis))
        first = np.floor(where)
        part = where - first
        begin = first.astype(np.int64) - (taps // 2 - 1)
        total: Any = 0
        for tap, weight in enumerate(_weights(part, taps, cubic)):
            index = (begin + tap).clip(0, size - 1)
            columns = weight.astype(x.dtype).reshape(-1, *[1] * (x.ndim - axis - 1))
            total = total + x.take(index, axis) * columns
        result: Array = total
        return result

    def run(
        x: Array,
        roi: Array | None = None,
        scales: Array | None = None,
        sizes: Array | None = None,
    ) -> Array:
        if node.opset < 11:  # x, scales
            roi, scales = None, roi
        axes = [axis % x.ndim for axis in chosen] if chosen else list(range(x.ndim))
        lengths = [x.shape[axis] for axis in axes]
        if sizes is not None and sizes.size:
            outs = [int(size) for size in sizes.reshape(-1)]
            factors = [out / length for out, length in zip(outs, lengths, strict=True)]
        elif scales is not None and scales.size == len(axes):
            factors = [float(scale) for scale in scales.reshape(-1)]
            if not all(0 < factor < 2**31 for factor in factors):
                raise ValueError(f"scales are {factors}")
            outs = [int(np.floor(f * size)) for f, size in zip(factors, lengths, strict=True)]
        else:
            raise ValueError(f"neither sizes nor {len(axes)} scales are given")
        shape = list(x.shape)
        for axis, out in zip(axes, outs, strict=True):
            shape[axis] = out
        if min(shape) < 1:
            raise ValueError(f"the output would have the shape {tuple(shape)}")
        require_room(shape, x.itemsize)
        for axis, out, factor in zip(axes, outs, factors, strict=True):
            x = one_axis(x, axis, out, factor)
        return x

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


def _repeats(node: Node, scale: float) -> bool:
    """Whether each pixel is repeated `scale` times, a whole number, in its order."""
    way = node.get("coordinate_transformation_mode", "half_pixel")
    nearest = node.get("nearest_mode", "round_prefer_floor")
    if scale != int(scale):
        return False
    if node.opset < 11 or (way == "asymmetric" and nearest == "floor"):
        return True
    return bool(way == "half_pixel" and nearest.startswith("round"))


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
