"""The layouts an array may have in memory, each a function from an array to an equal one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def _negative(array: Any) -> Any:
    return array[(slice(None, None, -1),) * array.ndim].copy()[
        (slice(None, None, -1),) * array.ndim
    ]


def _spread(array: Any) -> Any:
    """Every second element of an array twice as wide; NaN stands between."""
    wide = np.full((*array.shape[:-1], array.shape[-1] * 2), np.nan, array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def _window(array: Any) -> Any:
    """The inside of an array with a rim of NaN."""
    inside = (slice(1, -1),) * array.ndim
    framed = np.full([size + 2 for size in array.shape], np.nan, array.dtype)
    framed[inside] = array
    return framed[inside]


def _read_only(array: Any) -> Any:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def _misaligned(array: Any) -> Any:
    buffer = np.zeros(array.nbytes + 1, np.uint8)
    moved = buffer[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    assert not moved.flags.aligned
    return moved


def _swapped(array: Any) -> Any:
    swapped = array.astype(array.dtype.newbyteorder("S"))
    assert not swapped.dtype.isnative
    return swapped


class Subclass(np.ndarray):
    """An array with another name."""


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "fortran": np.asfortranarray,
    "negative_strides": _negative,
    "every_second_element": _spread,
    "inside_of_a_frame": _window,
    "read_only": _read_only,
    "misaligned": _misaligned,
    "byte_swapped": _swapped,
    "subclass": lambda array: array.copy().view(Subclass),
}
