"""The smallest case that still fails, found greedily: what can be taken away is taken away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from cnnx.grading.cases import Array, Case, with_dout
from cnnx.grading.textbook import compute


def shrink(case: Case, fails: Callable[[Case], bool], deadline: float) -> Case:
    """Return a smaller case for which `fails` is true; as it stands when the time is over.

    Parameters
    ----------
    case : Case
        A case that fails.
    fails : callable
        Whether a case fails in the same way.
    deadline : float
        In the time of ``time.monotonic()``.
    """
    tried: set[bytes] = set()
    smaller: Case | None = case
    while smaller is not None:
        case, smaller = smaller, None
        for candidate in _candidates(case):
            if time.monotonic() > deadline:
                return case
            key = _key(candidate)
            if key not in tried and _is_fair(candidate, case):
                tried.add(key)
                if fails(candidate):
                    smaller = candidate
                    break
    return case


def _key(case: Case) -> bytes:
    arrays = [f"{array.shape}".encode() + array.tobytes() for array in case.arrays.values()]
    return b"|".join([*arrays, repr(case.options).encode()])


def _candidates(case: Case) -> Iterator[Case]:
    """Cases that are smaller or simpler by one step, the largest steps first."""
    if "x" in case.arrays:
        x, dout = case.arrays["x"].ravel(), case.arrays["dout"].ravel()
        for size in _lower(x.size):
            yield Case({"x": x[:size], "dout": dout[:size]}, case.options)
        yield from _simpler_values(case)
        return
    X = case.arrays["X"]
    if case.options.get("activation"):
        yield Case(case.arrays, {**case.options, "activation": None})
    for name, simplest in (("stride", 1), ("pad", 0)):
        if name in case.options and case.options[name] != simplest:
            for value in sorted({simplest, case.options[name] - 1}):
                yield from _rebuilt(case, {}, **{name: value})
    yield from _smaller_windows(case)
    for axis in range(4):
        for part in _parts(X.shape[axis]):
            arrays = {"X": X.take(part, axis)}
            if axis == 1 and "W" in case.arrays:
                arrays["W"] = case.arrays["W"].take(part, axis)
            yield from _rebuilt(case, arrays)
    for part in _parts(min(X.shape[2:])):  # some mistakes show in squares only
        yield from _rebuilt(case, {"X": X.take(part, 2).take(part, 3)})
    if "W" in case.arrays:
        for part in _parts(len(case.arrays["W"])):
            W, b = case.arrays["W"].take(part, 0), case.arrays["b"].ravel()[part]
            yield from _rebuilt(case, {"W": W, "b": b})
    yield from _simpler_values(case)


def _smaller_windows(case: Case) -> Iterator[Case]:
    if "W" not in case.arrays:
        for size in _lower(case.options["pool_size"]):
            yield from _rebuilt(case, {}, pool_size=size)
        return
    W = case.arrays["W"]
    for axis in (2, 3):
        for part in _parts(W.shape[axis]):
            yield from _rebuilt(case, {"W": W.take(part, axis)})
    for part in _parts(min(case.window)):
        yield from _rebuilt(case, {"W": W.take(part, 2).take(part, 3)})


def _parts(size: int) -> Iterator[range]:
    """Beginnings and ends, the shortest first."""
    for length in _lower(size):
        yield range(length)
        yield range(size - length, size)


def _lower(size: int) -> list[int]:
    return sorted({1, size // 2, size - 1} - {0, size})


def _rebuilt(case: Case, arrays: dict[str, Array], **options: Any) -> Iterator[Case]:
    kept = {name: array for name, array in case.arrays.items() if name != "dout"}
    changed = with_dout({**kept, **arrays}, {**case.options, **options}, case.arrays["dout"])
    if changed is not None:
        yield changed


def _simpler_values(case: Case) -> Iterator[Case]:
    """Small whole numbers in the place of others; then halves."""
    for name, array in case.arrays.items():
        counted = np.arange(1, array.size + 1).reshape(array.shape)
        ranks = array.ravel().argsort(kind="stable").argsort().reshape(array.shape) + 1
        forms: list[Array] = [counted, ranks, ranks - array.size - 1]
        if array.dtype.kind == "f":
            forms += [counted - 0.5, array.round(), np.floor(array)]
        if name in ("dout", "b"):
            forms.insert(0, np.full_like(counted, name == "dout"))
        for form in forms:
            if np.array_equal(form, array):
                break
            yield Case({**case.arrays, name: form.astype(array.dtype)}, case.options)


def _is_fair(case: Case, before: Case) -> bool:
    """Whether no kink or tie is new in the case: on these another gradient can be right, too."""
    if case.options.get("activation") == "relu":
        plain = Case(case.arrays, {**case.options, "activation": None})
        return bool((np.abs(compute("conv_forward", plain)["out"]) > 1e-6).all())
    if "pool_size" in case.options:
        return _distinct(case) or not _distinct(before)
    return True


def _distinct(case: Case) -> bool:
    X = case.arrays["X"]
    return bool(np.unique(X).size == X.size)
