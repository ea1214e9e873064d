"""Arrays that stand directly before or behind a page that may not be touched.

Whatever reads or writes one byte too far ends the process at that very instruction; a read would
show in no comparison of results. `results_on_guard_pages` puts what the kernels return there as
well, in place of the pool of recycled memory.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import numpy as np
from conftest import KERNELS

AVAILABLE = sys.platform == "linux"
_NOTHING = 0  # PROT_NONE


def guarded(array: Any, behind: bool) -> Any:
    """A copy that ends where an unmapped page begins or, if `behind`, begins where one ends."""
    page = mmap.PAGESIZE
    inside = -(-max(array.nbytes, 1) // page) * page
    memory = mmap.mmap(-1, inside + 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for guard in (address, address + page + inside):
        if protect(ctypes.c_void_p(guard), ctypes.c_size_t(page), _NOTHING):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    start = page if behind else page + inside - array.nbytes
    copy = np.frombuffer(memory, array.dtype, array.size, start).reshape(array.shape)
    copy[...] = array
    return copy


def before_a_guard(array: Any) -> Any:
    return guarded(array, behind=False)


def behind_a_guard(array: Any) -> Any:
    return guarded(array, behind=True)


@contextmanager
def results_on_guard_pages(sides: tuple[bool, ...] = (False, True)) -> Iterator[None]:
    """Results of the compiled kernels, one after the other, on these sides of an unmapped page."""
    assert KERNELS is not None
    kernels, side, plain = KERNELS, cycle(sides), KERNELS.empty

    def empty(shape: tuple[int, ...], dtype: Any) -> Any:
        # Results are to be written: NaN, or the smallest integer, where a kernel did not.
        blank = np.empty(shape, dtype)
        blank.fill(np.nan if blank.dtype.kind == "f" else np.iinfo(blank.dtype).min)
        return guarded(blank, next(side))

    kernels.empty = empty  # type: ignore[attr-defined]
    try:
        yield
    finally:
        kernels.empty = plain  # type: ignore[attr-defined]
