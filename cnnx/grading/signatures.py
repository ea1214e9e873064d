"""Which of a student's parameters is which: by name, in any order, or else by position."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_X = ("x", "input", "inputs", "image", "images", "a_prev", "z_prev", "data")
_STRIDE = ("stride", "strides", "s", "step")
# The classroom's parameters in their order, each with other names that students give it.
_PARAMETERS: dict[str, dict[str, tuple[str, ...]]] = {
    "conv_forward": {
        "X": _X,
        "W": ("w", "weight", "weights", "kernel", "kernels", "filter", "filters"),
        "b": ("b", "bias", "biases"),
        "stride": _STRIDE,
        "pad": ("pad", "padding", "p"),
        "activation": ("activation", "act", "activation_function", "nonlinearity"),
    },
    "conv_backward": {
        "dout": ("dout", "grad_out", "dz", "da", "dy", "grad", "upstream"),
        "cache": ("cache", "caches"),
    },
    "pool": {
        "pool_size": (
            "pool_size",
            "size",
            "kernel_size",
            "window",
            "window_size",
            "k",
            "f",
            "pool",
        ),
        "stride": _STRIDE,
    },
    "numerical_gradient": {
        "f": ("f", "func", "function", "fn", "forward"),
        "x": _X,
        "df": ("df", "dout", "grad_out", "dy", "grad", "upstream"),
        "h": ("h", "eps", "epsilon", "delta", "step"),
    },
}
_OPTIONAL = ("stride", "pad", "activation", "h", "b")  # without them there are fewer cases
EXPECTED = {
    "conv_forward": "conv_forward(X, W, b, stride, pad, activation)",
    "conv_backward": "conv_backward(dout, cache)",
    "MaxPool2D": "MaxPool2D(pool_size, stride)",
    "AvgPool2D": "AvgPool2D(pool_size, stride)",
    "numerical_gradient": "numerical_gradient(f, x, df, h)",
}


class SignatureError(ValueError):
    """A function that cannot be called as the classroom's; the message says how it should be."""


@dataclass(frozen=True)
class Call:
    """A student's function behind the classroom's names."""

    function: Callable[..., Any]
    names: dict[str, str]  # the classroom's name of a parameter: the student's
    positional: tuple[str, ...]  # of the classroom's names, those that go without a name

    def __call__(self, **values: Any) -> Any:
        """Call the function with what it takes of the values."""
        first = [values[name] for name in self.positional if name in values]
        rest = {
            own: values[name]
            for name, own in self.names.items()
            if name in values and name not in self.positional
        }
        return self.function(*first, **rest)


def fitted(function: Any, subject: str) -> Call:
    """Return a call of the student's function or class by the classroom's names.

    Raises
    ------
    SignatureError
        If the parameters do not fit.
    """
    known = _PARAMETERS["pool" if subject.endswith("2D") else subject]
    if not callable(function):
        kind = type(function).__name__
        raise SignatureError(f"{subject} is a {kind}, expected {EXPECTED[subject]}")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # written in C: no names to go by
        return Call(function, dict.fromkeys(known, ""), tuple(known))
    kinds = {parameter.kind for parameter in parameters}
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return Call(function, dict.fromkeys(known, ""), tuple(known))
    named = [p for p in parameters if p.kind != inspect.Parameter.VAR_KEYWORD]
    names: dict[str, str] = {}
    for name, aliases in known.items():
        found = [p for p in named if p.name.lower() in aliases and p.name not in names.values()]
        exact = [p for p in found if p.name == name]
        if found:
            names[name] = (exact or found)[0].name
    for parameter in named:  # names of his own: they stand for what is left, in order
        left = [name for name in known if name not in names]
        if parameter.name in names.values() or parameter.default is not parameter.empty:
            continue
        if not left:
            raise _misfit(function, subject, f"there is no value for {parameter.name}")
        names[left[0]] = parameter.name
    if inspect.Parameter.VAR_KEYWORD in kinds:
        names = {name: name for name in known} | names
    missing = [name for name in known if name not in names and name not in _OPTIONAL]
    if missing:
        raise _misfit(function, subject, f"there is no parameter for {', '.join(missing)}")
    unnamed = [p.name for p in named if p.kind == inspect.Parameter.POSITIONAL_ONLY]
    order = {own: name for name, own in names.items()}
    return Call(function, names, tuple(order[own] for own in unnamed if own in order))


def _misfit(function: Any, subject: str, why: str) -> SignatureError:
    name = getattr(function, "__name__", subject)
    return SignatureError(
        f"{name}{inspect.signature(function)} cannot be called: {why}; expected "
        f"{EXPECTED[subject]}, in any order under these names"
    )
