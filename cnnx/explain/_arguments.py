"""What can be explained: a few finite numbers. The rest is refused, with what to do instead."""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnx.explain._steps import Array

MOST = 144  # numbers in one matrix or array that a reader can still follow
_CROPS = {2: "[:4, :8]", 4: "[:1, :1, :6, :6]"}


def numbers(name: str, value: Any, ndims: tuple[int, ...], layout: str) -> Array:
    """Return lists or arrays of real numbers as a new float64 array, if it is small enough."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} has dtype {array.dtype}, expected real numbers")
    if array.ndim not in ndims:
        raise ValueError(f"{name} has shape {array.shape}, expected {layout}")
    if array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}, expected at least one number")
    require_few(name, array.shape)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has a NaN or an infinity, expected finite numbers")
    return np.array(array, np.float64)


def bias(value: Any, outputs: int) -> Array | None:
    """Return one number for each output; None where there is no bias."""
    if value is None:
        return None
    array = numbers("bias", value, (0, 1), f"({outputs},)").reshape(-1)
    if array.shape != (outputs,):
        raise ValueError(
            f"bias has shape {array.shape}, expected ({outputs},), one for each output"
        )
    return array


def require_few(name: str, shape: tuple[int, ...], remedy: str = "") -> None:
    """Raise where an array has too many numbers to look at."""
    size = int(np.prod(shape, dtype=np.int64))
    if size > MOST:
        crop = _CROPS.get(len(shape), f"[:{MOST}]")
        raise ValueError(
            f"{name} has shape {shape}, {size:,} numbers; an explanation shows at most {MOST} of "
            f"each array: {remedy or f'pass a part of it, such as {name}{crop}'}"
        )


def upstream(value: Any, shape: tuple[int, ...]) -> Array:
    """Return grad_out; by default 1, 2, 3, ... so that one can see where each number went."""
    if value is None:
        return np.arange(1.0, 1.0 + np.prod(shape)).reshape(shape)
    array = numbers("grad_out", value, tuple(range(5)), f"{shape}")
    if array.ndim == 2 and len(shape) == 4 and shape[:2] == (1, 1):
        array = array[None, None]
    if array.shape != shape:
        raise ValueError(f"grad_out has shape {array.shape}, expected {shape}, that of the output")
    return array
