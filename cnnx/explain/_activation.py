"""Activations, element by element: A = g(Z), and the derivative taken at Z, not at A."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import numpy as np

from cnnx import functional as F
from cnnx.explain import _arguments, _check
from cnnx.explain._notation import number
from cnnx.explain._steps import Array, Explanation, Step, Sum, Term, at, group_of, panels, total
from cnnx.functional import _arguments as check

_FEW = 9
NAMES = ("relu", "sigmoid", "tanh")
_FORMULAS = {
    "relu": ("A = max(0, Z)", "g'(Z) = 1 where Z > 0, else 0"),
    "sigmoid": ("A = σ(Z) = 1 / (1 + e^{-Z})", "σ'(Z) = A · (1 - A)"),
    "tanh": ("A = tanh(Z)", "tanh'(Z) = 1 - A · A"),
}
_WARNINGS = {
    "relu": "Ask for the sign of Z, not of the gradient. At Z = 0, a kink, 0 is the custom.",
    "sigmoid": "A is the output: σ'(Z) is not σ(A)·(1 - σ(A)), which squashes twice.",
    "tanh": "A is the output: the derivative at Z is 1 - A·A, and not 1 - tanh(A)·tanh(A).",
}


def _marks(z: Array) -> dict[tuple[int, ...], int]:
    """A colour for each element, as long as there are not too many to tell apart."""
    return {index: group_of(index) for index in np.ndindex(z.shape)} if z.size <= _FEW else {}


def value(name: str, z: float) -> float:
    """The activation of one number."""
    if name == "relu":
        return max(0.0, z)
    if name == "tanh":
        return math.tanh(z)
    return 1 / (1 + math.exp(-z)) if z > -700 else 0.0


def slope(name: str, z: float, a: float) -> float:
    """The derivative at z, where the activation is a."""
    if name == "relu":
        return 1.0 if z > 0 else 0.0
    return a * (1 - a) if name == "sigmoid" else 1 - a * a


def forward(name: str | None, z: Array) -> tuple[Array, list[Step]]:
    """The output, and the step that computes it; none without an activation."""
    if name is None:
        return z, []
    a = np.reshape([value(name, float(v)) for v in z.flat], z.shape)
    form = {"relu": "max(0, {})", "sigmoid": "1 / (1 + exp(-({})))", "tanh": "tanh({})"}[name]
    marks = _marks(z)
    sums = tuple(
        Sum(at("A", i, z.shape), (Term((float(z[i]),), marks.get(i, 0)),), float(a[i]), form)
        for i in np.ndindex(z.shape)
    )
    shown = (*panels("Z", z, marks), *panels("A", a, marks, sign="→"))
    text = "The activation takes each element alone. Keep Z or A: backward needs it."
    return a, [
        Step("activation", f"The activation: {name}", text, _FORMULAS[name][0], sums, shown, True)
    ]


def backward(name: str | None, z: Array, a: Array, upstream: Array) -> tuple[Array, list[Step]]:
    """∂L/∂Z for ∂L/∂A, and the step that computes it; none without an activation."""
    if name is None:
        return upstream, []
    slopes = np.reshape(
        [slope(name, float(v), float(w)) for v, w in zip(z.flat, a.flat, strict=True)], z.shape
    )
    marks = _marks(z)
    sums = tuple(
        total(
            at("∂L/∂Z", i, z.shape), [Term((float(upstream[i]), float(slopes[i])), marks.get(i, 0))]
        )
        for i in np.ndindex(z.shape)
    )
    dz = np.reshape([line.value for line in sums], z.shape)
    shown = (
        *panels("Z" if name == "relu" else "A", z if name == "relu" else a, marks),
        *panels("g'(Z)", slopes, marks, sign="→"),
        *panels("∂L/∂A", upstream, marks, sign="⊙"),
        *panels("∂L/∂Z", dz, marks, sign="="),
    )
    text = f"Each gradient is multiplied by the slope at its own Z. {_WARNINGS[name]}"
    formula = f"∂L/∂Z = ∂L/∂A ⊙ g'(Z),   {_FORMULAS[name][1]}"
    return dz, [Step("∂L/∂Z", "Back through the activation", text, formula, sums, shown, True)]


def kernel_backward(name: str | None, z: Array, upstream: Array) -> Array:
    """∂L/∂Z as cnnx computes it."""
    if name is None:
        return upstream
    result: Array = getattr(F, f"{name}_backward")(upstream, z)
    return result


def explain(name: Any, x: Any, grad_out: Any) -> Explanation:
    """The steps of an activation alone."""
    name = check.choice(name, "name", NAMES)
    z = _arguments.numbers("x", x, (1, 2, 3, 4), "one to four dimensions")
    upstream = _arguments.upstream(grad_out, z.shape)
    a, steps = forward(name, z)
    dz, more = backward(name, z, a, upstream)
    run = getattr(F, name)
    kernel = kernel_backward(name, z, upstream)
    first, right = _check.compare_forward("A", a, run(z))
    second, also = _check.compare_gradient("Z", "∂L/∂Z", dz, kernel, run, z, upstream)
    agrees = right and also
    text = (
        f"{name.capitalize()} changes each element alone, so its gradient is a product of two "
        f"numbers, and the slope is taken at Z. {_check.verdict(agrees)}"
    )
    shown = (
        *panels("Z", z),
        *panels("A", a, sign="→"),
        *panels("∂L/∂A", upstream, sign="↩"),
        *panels("∂L/∂Z", dz, sign="→"),
    )
    summary = Step("summary", "In short", text, _FORMULAS[name][1], (), shown, True)
    return Explanation(
        f"{name} on {number(z.size)} numbers",
        (*steps, *more, first, second, summary),
        a,
        MappingProxyType({"x": dz}),
        agrees,
    )
