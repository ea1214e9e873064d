"""When is a result right? Shapes, then values; what is wrong is said in one exact line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnx.grading.cases import Array, Arrays, Case

# Of the largest expected value, or of 1. Loops in float32 round each of a few hundred terms by
# 6e-8; a central difference with h = 1e-5 rounds f's 1e-16 up to 1e-10, and cuts off about as
# much. One-sided differences are wrong by about 3e-5 here, and every other mistake by far more.
_TOLERANCES = {"float32": 1e-4, "float64": 1e-9, "gradient": 1e-6}


@dataclass(frozen=True)
class Fault:
    """What is wrong with one call.

    Attributes
    ----------
    kind : str
        "raises", "returned", "shape", "values", "modified" or "reused".
    where : str
        The result or argument, or the exception's class.
    text : str
        A sentence.
    """

    kind: str
    where: str
    text: str


def tolerance(got: Array, expected: Array, case: Case) -> float:
    """How far a result may be from what is expected."""
    kind = "gradient" if "x" in case.arrays else "float64"
    used = [array for array in (got, *case.arrays.values()) if array.dtype.kind == "f"]
    if any(array.dtype.itemsize < 8 for array in used):
        kind = "float32"
    return _TOLERANCES[kind] * max(1.0, float(np.abs(expected).max(initial=0.0)))


def matches(got: Any, expected: Array, case: Case) -> bool:
    """Whether a result is as expected, in shape and values."""
    array = _numbers(got)
    if array is None or array.shape != expected.shape:
        return False
    return not bool(_wrong(array, expected, case).any())


def _numbers(value: Any) -> Array | None:
    """A student's result as an array; None where it is none of numbers."""
    try:
        array = np.asarray(value)
    except Exception:  # rows of several lengths, or an object's own __array__
        return None
    return array if array.dtype.kind in "fiub" else None


def _wrong(got: Array, expected: Array, case: Case) -> Array:
    limit = tolerance(got, expected, case)
    with np.errstate(all="ignore"):
        close = np.abs(got.astype(np.float64) - expected) <= limit  # never true for NaN
    return np.asarray(~close)


def faults_of(outputs: dict[str, Any], expected: Arrays, case: Case) -> list[Fault]:
    """Return what is wrong with the results, in the order in which they are returned."""
    faults = []
    for name, want in expected.items():
        if name in outputs:
            fault = _fault(name, outputs[name], want, case)
            faults += [fault] if fault else []
    return faults


def _fault(name: str, value: Any, want: Array, case: Case) -> Fault | None:
    if value is None:
        return Fault("returned", name, f"{name} is None, expected an array of shape {want.shape}")
    got = _numbers(value)
    if got is None:
        kind = type(value).__name__
        return Fault("returned", name, f"{name} is a {kind}, expected an array of numbers")
    if got.shape != want.shape:
        text = f"{name} has shape {got.shape}, expected {want.shape}"
        return Fault("shape", name, text)
    wrong = _wrong(got, want, case)
    if not wrong.any():
        return None
    index = tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape))
    elements = f"{int(wrong.sum())} of {wrong.size} elements"
    text = (
        f"{name} is wrong in {elements}, first at {list(index)}: expected {want[index]:.6g}, "
        f"got {got[index]:.6g}"
    )
    if got.dtype.kind == "f" and np.isnan(got).any():
        text += f" ({int(np.isnan(got).sum())} are NaN: an array from np.empty, or 0 / 0?)"
    if got.dtype.kind in "iu" and name != "max_indices":
        text += f" (its dtype is {got.dtype}, which holds no fractions)"
    return Fault("values", name, text)
