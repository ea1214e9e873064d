"""The Dense layer: every input is linked with every output; the rest is a weighted sum."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np

from cnnx import functional as F
from cnnx.explain import _activation, _arguments
from cnnx.explain._steps import Array, Explanation, Step, panels
from cnnx.explain._weighted import Formulas, Kernels, Link, WeightedSum, X, Z
from cnnx.functional import _arguments as check

_FORMULAS = Formulas(
    "Z[n, o] = Σ_{i} Z^{l-1}[n, i] · W[i, o]",
    "b[o]",
    "∂L/∂W[i, o] = Σ_{n} Z^{l-1}[n, i] · ∂L/∂Z[n, o]",
    "∂L/∂b[o] = Σ_{n} ∂L/∂Z[n, o]",
    "∂L/∂Z^{l-1}[n, i] = Σ_{o} W[i, o] · ∂L/∂Z[n, o]",
)


def explain(x: Any, weight: Any, bias: Any, activation: Any, grad_out: Any) -> Explanation:
    """The steps of a Dense layer, forward and backward."""
    given = _arguments.numbers("x", x, (1, 2), "(features,) or (N, features)")
    rows = given.reshape(1, -1) if given.ndim == 1 else given
    w = _arguments.numbers("weight", weight, (2,), "(in_features, out_features)")
    if w.shape[0] != rows.shape[1]:
        raise ValueError(
            f"weight has shape {w.shape}, expected ({rows.shape[1]}, out_features); "
            f"x has shape {given.shape}"
        )
    b = _arguments.bias(bias, w.shape[1])
    check.choice(activation, "activation", (None, *_activation.NAMES))
    out_shape = (rows.shape[0], w.shape[1])
    _arguments.require_few("the output", out_shape)
    upstream = _arguments.upstream(grad_out, out_shape)
    links = [
        Link((n, o), (i, o), (n, i)) for n, o in np.ndindex(out_shape) for i in range(w.shape[0])
    ]
    story = WeightedSum(
        rows, w, b, links, _FORMULAS, set(), lambda a: a, out_shape, activation, upstream
    )
    steps = [_introduction(story), *story.forward(), *story.backward()]
    checks, agrees = story.checks(rows, _kernels(story, rows))
    gradients = story.gradients
    gradients["x"] = gradients["x"].reshape(given.shape)
    tail = f", {activation}" if activation else ""
    return Explanation(
        f"Dense, {w.shape[0]} inputs, {w.shape[1]} outputs{tail}",
        (*steps, *checks, story.summary(agrees)),
        story.out[0] if given.ndim == 1 else story.out,
        MappingProxyType(gradients),
        agrees,
    )


def _introduction(story: WeightedSum) -> Step:
    text = (
        "Every output is a weighted sum of all inputs, so every input is contained in all outputs. "
        "A row of Z^{l-1} is one image of the batch; a column of W makes one output."
    )
    shown = (
        *panels(X, story.x),
        *panels("W", story.weight, sign="@"),
        *(() if story.bias is None else panels("b", story.bias, sign="+")),
        *panels(Z, np.full(story.out_shape, np.nan), sign="→"),
    )
    formula = "Z = Z^{l-1} @ W" + ("" if story.bias is None else " + b")
    return Step("the layer", "Inputs and weights", text, formula, (), shown, True)


def _kernels(story: WeightedSum, x: Array) -> Kernels:
    """What cnnx computes for the same call."""

    def run(x: Array, w: Array, b: Array | None) -> Array:
        activation: Any = story.activation
        out: Array = F.linear(x, w, b, activation)
        return out

    return Kernels(run, lambda grad_z: F.linear_backward(grad_z, x, story.weight))
