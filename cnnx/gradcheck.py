"""Is this gradient right? Central differences, and a report that says where it is wrong.

:func:`numerical_gradient` measures the gradient of any function by moving each element of an
array a little forth and back. :func:`gradcheck` measures like that every gradient that a layer, or
a function with its backward, claims, and compares. It looks twice at kinks
(``_gradcheck.differences`` says how), so that neither a right gradient is blamed for one nor a
wrong one hides behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnx._gradcheck.comparison import Settings, compare
from cnnx._gradcheck.differences import Line
from cnnx._gradcheck.report import GradcheckEntry, GradcheckError, GradcheckReport
from cnnx._gradcheck.subject import borrowed_layer, function_subject, is_layer
from cnnx.functional import _arguments as check

__all__ = [
    "GradcheckEntry",
    "GradcheckError",
    "GradcheckReport",
    "eval_numerical_gradient",
    "gradcheck",
    "numerical_gradient",
]

Array = NDArray[Any]


def numerical_gradient(
    f: Callable[[Array], Any], x: Array, grad_out: Array | None = None, h: float = 1e-5
) -> Array:
    """Measure the gradient of ``sum(f(x) * grad_out)`` by x with central differences.

    ::

        gradient[i] = sum(grad_out * (f(x + h e_i) - f(x - h e_i))) / (2 h)

    Parameters
    ----------
    f : callable
        Takes x and returns a number or an array; anything that f computes from x must be computed
        anew in each call. It may also ignore its argument and use the very array x.
    x : ndarray, float32 or float64
        Where to measure. Its elements are moved in place, one by one, and put back exactly,
        even if f raises.
    grad_out : ndarray, optional
        The upstream gradient, in the shape of f(x); None means ones: the gradient of f(x).sum().
    h : float
        The step. The error is about h**2 from the function's third derivative, and about
        1e-16 / h (float64) from rounding. What is divided by is the step that x really took.

    Returns
    -------
    ndarray
        In the shape and dtype of x.

    Raises
    ------
    TypeError
        If x is not a float array, or f returns a tuple.
    ValueError
        If x is read-only, grad_out has another shape than f(x), or h is lost in rounding beside x.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> x = np.array([1.0, 2.0, 3.0])
    >>> cnnx.numerical_gradient(lambda x: (x**2).sum(), x).round(6)
    array([2., 4., 6.])
    """
    _check_differentiable(f, x, h)
    upstream = None if grad_out is None else np.asarray(grad_out, np.float64)
    gradient = np.zeros(x.shape, x.dtype)
    for index in np.ndindex(x.shape):
        line = Line(x, index)
        try:
            ahead = line.move(h)
            plus = _as_output(f(x), upstream)
            behind = line.move(-h)
            minus = _as_output(f(x), upstream)
        finally:
            line.restore()
        if ahead == behind:
            raise ValueError(
                f"h is {h}, which is lost in rounding beside x{list(index)} = {x[index]}; expected "
                f"a larger step, or float64 (x has dtype {x.dtype})"
            )
        change = plus - minus if upstream is None else (plus - minus) * upstream
        gradient[index] = change.sum() / (ahead - behind)
    return gradient


def eval_numerical_gradient(
    f: Callable[[Array], Any], x: Array, df: Array | None = None, h: float = 1e-5
) -> Array:
    """Do what :func:`numerical_gradient` does, under the classroom's name for it.

    Parameters
    ----------
    f : callable
        Takes x and returns a number or an array.
    x : ndarray, float32 or float64
        Where to measure; moved in place and put back.
    df : ndarray, optional
        The upstream gradient, in the shape of f(x); None means ones.
    h : float
        The step.

    Returns
    -------
    ndarray
        In the shape and dtype of x.

    Raises
    ------
    TypeError, ValueError
        As :func:`numerical_gradient`.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> x, df = np.array([0.0, 1.0]), np.array([1.0, 10.0])
    >>> cnnx.eval_numerical_gradient(lambda x: x**3, x, df).round(6)
    array([ 0., 30.])
    """
    return numerical_gradient(f, x, df, h)


def _check_differentiable(f: Any, x: Any, h: float) -> None:
    if not callable(f):
        raise TypeError(f"f is a {type(f).__name__}, expected a function of x")
    if not isinstance(x, np.ndarray):
        raise TypeError(f"x is a {type(x).__name__}, expected an array")
    if x.dtype.kind != "f":
        raise TypeError(
            f"x has dtype {x.dtype}, which cannot take a step of {h}; use x.astype(np.float64)"
        )
    if not x.flags.writeable:
        raise ValueError("x is read-only, expected an array whose elements can be moved")
    check.number(h, "h", above=0)


def _as_output(out: Any, upstream: Array | None) -> Array:
    """A copy of what f returned, for it may be a view of the x that will move."""
    if isinstance(out, tuple):
        raise TypeError("f returned a tuple, expected one array or number: return its first item")
    result = np.array(out, np.float64)
    if upstream is not None and upstream.shape != result.shape:
        raise ValueError(
            f"grad_out has shape {upstream.shape}, expected the shape of f(x), {result.shape}"
        )
    return result


def gradcheck(
    layer_or_function: Any,
    *inputs: Any,
    backward: Callable[..., Any] | None = None,
    eps: float = 1e-5,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    max_elements: int = 2000,
    seed: int = 0,
    raise_on_failure: bool = False,
) -> GradcheckReport:
    """Compare the gradients of a layer or function with central differences, in float64.

    Parameters
    ----------
    layer_or_function : layer or callable
        Any object with forward and backward, and with `params` and `grads` where it has parameters:
        its input's and all its parameters' gradients are checked, in the mode (train or eval) it
        is in. The layer is the same afterwards, whatever its dtype. Or a function of arrays.
    *inputs
        What it is called with. The float arrays among them are copied, as float64; the rest (None,
        numbers, ...) is passed on as it is.
    backward : callable, optional
        For a function: ``backward(grad_out, *inputs)`` returns the gradient of each array among the
        inputs, None for one not to be checked. Where the function returns (out, cache), as the
        classroom's do, it is called as ``backward(grad_out, cache)``. The functions of
        ``cnnx.functional`` need none, with their options bound by ``functools.partial``.
    eps : float
        The first step of the differences; for x beyond 1 it grows with x. Where there is a doubt,
        smaller ones follow.
    rtol, atol : float
        The relative error that passes; an absolute difference that always does.
    max_elements : int
        How many elements, of all arrays together, are moved one by one. Of larger arrays a sample
        is, and all of their elements together along random directions: that shows
        a single wrong one too, and bisection then finds it.
    seed : int
        Of the upstream gradient, the sample and the directions.
    raise_on_failure : bool
        Whether to raise when a gradient is wrong.

    Returns
    -------
    GradcheckReport
        True when all passed; print it for the table.

    Raises
    ------
    GradcheckError
        If a gradient is wrong and `raise_on_failure` is set; it carries the report.
    TypeError
        If there is nothing that could be checked: a class, integer arrays, float32 outputs.
    ValueError
        If the forward changes its input, or gives two results for one input.

    Notes
    -----
    At a kink (a ReLU at 0, a tie in a max window) a gradient passes if it lies between the slopes
    of the two sides, and if it is right at a point nearby. Where kinks stand one behind the other,
    in a net of several layers, backward may rightly leave that interval; then the point nearby
    decides.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> x = np.random.default_rng(0).normal(size=(2, 3, 5, 5))
    >>> model = cnnx.Sequential(cnnx.Conv2D(3, 4, 3, rng=0), cnnx.ReLU(), cnnx.MaxPool2D(2))
    >>> bool(cnnx.gradcheck(model, x))
    True
    >>> report = cnnx.gradcheck(np.sin, x, backward=lambda grad_out, x: -grad_out * np.cos(x))
    >>> bool(report)
    False
    >>> report["x"].index is not None
    True
    """
    settings = Settings(
        check.number(eps, "eps", above=0),
        check.number(rtol, "rtol", above=0),
        check.number(atol, "atol", 0),
        check.integer(max_elements, "max_elements", 1, np.inf),
        check.integer(seed, "seed", 0, np.inf),
    )
    check.flag(raise_on_failure, "raise_on_failure")
    if is_layer(layer_or_function):
        if backward is not None:
            raise ValueError("backward is for functions; a layer has its own")
        with borrowed_layer(layer_or_function, inputs) as subject:
            report = compare(subject, settings)
    elif callable(layer_or_function) and not isinstance(layer_or_function, type):
        report = compare(function_subject(layer_or_function, inputs, backward), settings)
    else:
        raise TypeError(
            f"layer_or_function is {layer_or_function!r}, expected an object with forward and "
            "backward, or a function"
        )
    if raise_on_failure and not report:
        raise GradcheckError(report)
    return report
