"""The proof at the end: the shown sums beside cnnx's kernels and the numerical gradient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cnnx.explain._steps import Array, Step, panels
from cnnx.gradcheck import numerical_gradient

# float64 throughout. The kernels add the same few products in another order: some 1e-16 of the
# largest one. Central differences of step 1e-5 miss by about 1e-10 of it, from rounding and h**2.
_KERNEL, _NUMERICAL = 1e-12, 1e-6


def compare_forward(name: str, ours: Array, kernel: Array) -> tuple[Step, bool]:
    """The output from the sums beside that of the compiled kernels."""
    agrees = _far(ours, kernel) <= _KERNEL
    shown = (
        *panels(name, ours),
        *panels("cnnx", kernel, sign="=" if agrees else "≠"),
    )
    return Step(
        "check",
        f"{name} beside cnnx",
        f"The kernels must give the numbers of the sums. {_verdict(ours, kernel, agrees)}",
        panels=shown,
    ), agrees


def compare_gradient(
    name: str,
    symbol: str,
    ours: Array,
    kernel: Array,
    f: Callable[[Array], Array],
    x: Array,
    g: Array,
) -> tuple[Step, bool]:
    """A gradient from the sums beside the kernel's and the numerical one."""
    x = x.copy()
    numerical = numerical_gradient(f, x, g)
    kinks = _kinks(f, x, g, np.abs(ours - numerical) > _NUMERICAL * _scale(ours))
    smooth = np.where(kinks, 0.0, ours)  # where central differences say something
    exact = _far(ours, kernel) <= _KERNEL
    close = _far(smooth, np.where(kinks, 0.0, numerical)) <= _NUMERICAL
    agrees = exact and close
    text = (
        f"Move each element of {name} by h = 0.00001 forth and back, run forward twice, and divide "
        f"the change of the loss by 2h. {_verdict(smooth, np.where(kinks, 0.0, numerical), agrees)}"
    )
    if kinks.any():
        places = [str(tuple(map(int, index))) for index in np.argwhere(kinks)]
        more = f" and {len(places) - 3} more places" if len(places) > 3 else ""
        where = ", ".join(places[:3]) + more
        text += (
            f" At {where} the function has a kink (a tie, or a ReLU at 0): two slopes meet there, "
            "and central differences take their mean. That says nothing against the sum."
        )
    marks = {tuple(map(int, index)): 6 for index in np.argwhere(kinks)}
    beside = zip(
        panels(symbol, ours, whole=True),
        panels("cnnx", kernel, sign="=" if exact else "≠", whole=True),
        panels("numerical", numerical, marks, sign="≈" if close else "≠", whole=True),
        panels("difference", np.abs(ours - numerical), marks, whole=True),
        strict=True,
    )
    shown = tuple(one for four in beside for one in four)
    formula = f"{symbol} ≈ (L({name} + h) - L({name} - h)) / 2h"
    return Step(
        "check", f"{symbol} beside the numerical gradient", text, formula, (), shown, True
    ), agrees


def verdict(agrees: bool) -> str:
    """The last word of a summary."""
    if agrees:
        return "The sums agree with cnnx and with the numerical gradient."
    return "Something does NOT agree: see the checks."


def _kinks(f: Callable[[Array], Array], x: Array, g: Array, doubtful: Array) -> Array:
    """Where, among the doubtful elements, the slopes of the two sides differ."""
    kinks, h = np.zeros(x.shape, bool), 1e-5
    for found in np.argwhere(doubtful):
        index, values = tuple(found), []
        for step in (-h, 0.0, h):
            moved = x.copy()
            moved[index] += step
            values.append(float((f(moved) * g).sum()))
        left, right = values[1] - values[0], values[2] - values[1]
        kinks[index] = abs(right - left) > 1e-3 * max(abs(left), abs(right))
    return kinks


def _verdict(ours: Array, other: Array, agrees: bool) -> str:
    far = float(np.abs(ours - other).max())
    amount = "They are equal" if far == 0 else f"The largest difference is {far:.0e}"
    return f"{amount}." if agrees else f"{amount}: they do NOT agree."


def _scale(array: Array) -> float:
    return max(1.0, float(np.abs(array).max()))


def _far(ours: Array, other: Array) -> float:
    return float(np.abs(ours - other).max()) / _scale(ours)
