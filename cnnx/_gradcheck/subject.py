"""What ``gradcheck`` checks, in one form: arrays, a forward over them, and the claimed gradients.

A layer is borrowed, not copied: it may be wrapped or have a method replaced by a function
that still speaks to this very object. While it is borrowed its arrays are float64 and its random
numbers repeat; afterwards every attribute and every number is what it was.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnx import functional

Array = NDArray[Any]


@dataclass(frozen=True)
class Subject:
    """Arrays to differentiate by, and the functions of their present contents."""

    name: str
    arrays: dict[str, Array]
    forward: Callable[[], Array]
    backward: Callable[[Array], dict[str, Any]]  # gradients by name, for the last forward
    is_nested: bool = False  # several layers, one behind the other
    may_decline: bool = False  # None as a gradient means that there is none to check


def is_layer(thing: Any) -> bool:
    """Whether it is an object with forward and backward (and not a class of such)."""
    methods = (getattr(thing, name, None) for name in ("forward", "backward"))
    return not isinstance(thing, type) and all(map(callable, methods))


def copied_inputs(inputs: tuple[Any, ...]) -> list[Any]:
    """Return the inputs with every array as a float64 copy.

    Raises
    ------
    TypeError
        If an array is not of a floating-point dtype.
    ValueError
        If an array is empty, so that there would be nothing to check, or there is no array.
    """
    copies = list(inputs)
    for number, value in enumerate(inputs):
        if not isinstance(value, np.ndarray):
            continue
        if value.dtype.kind != "f":
            raise TypeError(
                f"input {number} has dtype {value.dtype}, expected float32 or float64: use "
                "x.astype(np.float64), or put a constant into the function: lambda x: f(x, labels)"
            )
        if value.size == 0:
            raise ValueError(f"input {number} has shape {value.shape}: no element to check")
        copies[number] = np.array(value, np.float64, order="C")
    if not any(isinstance(value, np.ndarray) for value in inputs):
        kinds = ", ".join(type(value).__name__ for value in inputs) or "nothing"
        raise TypeError(f"inputs are {kinds}, expected at least one float array")
    return copies


# ---------------------------------------------------------------- layers


@contextmanager
def borrowed_layer(layer: Any, inputs: tuple[Any, ...]) -> Iterator[Subject]:
    """Lend a layer as a subject, in float64, and put back everything afterwards."""
    work = copied_inputs(inputs)
    with _borrowed(layer) as rewind:
        if getattr(layer, "frozen", False) and hasattr(layer, "unfreeze"):
            layer.unfreeze()  # it might go on with packed weights and miss that they move
        params = dict(getattr(layer, "params", None) or {})
        for key, array in params.items():
            if array.dtype != np.float64:
                raise TypeError(
                    f"params[{key!r}] has dtype {array.dtype} and cannot be exchanged from "
                    "outside; build the layer in float64"
                )
        names = ["x"] if len(inputs) == 1 else _names(layer.forward, len(inputs))
        floats = [n for n, value in enumerate(work) if isinstance(value, np.ndarray)]

        def forward() -> Array:
            rewind()
            return _output(layer.forward(*work))

        def backward(grad_out: Array) -> dict[str, Any]:
            gradients = _aligned(layer.backward(grad_out), work)
            found = {names[n]: gradients[n] for n in floats}
            grads = getattr(layer, "grads", None) or {}
            return found | {key: grads.get(key) for key in params}

        yield Subject(
            name=type(layer).__name__,
            arrays={names[n]: work[n] for n in floats} | params,
            forward=forward,
            backward=backward,
            is_nested=_count_leaves(layer) > 1,
        )


@contextmanager
def _borrowed(layer: Any) -> Iterator[Callable[[], None]]:
    """Exchange a layer's arrays for float64 ones; the value rewinds its random generators."""
    holders = [vars(thing) if is_layer(thing) else thing for thing in _walk(layer, {})]
    contents = [holder.copy() for holder in holders]
    kept: dict[int, tuple[Array, Array]] = {}
    exchanged: dict[int, Array] = {}
    generators: list[tuple[Any, Any]] = []
    for holder in holders:
        for key, value in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
            if isinstance(value, np.random.Generator):
                generators.append((value.bit_generator, value.bit_generator.state))
            elif isinstance(value, np.ndarray):
                if value.dtype.kind == "f" and value.dtype != np.float64:
                    holder[key] = exchanged.setdefault(id(value), value.astype(np.float64))
                else:
                    kept[id(value)] = value, value.copy()
            elif key == "dtype":
                holder[key] = np.dtype(np.float64)
    legacy = np.random.get_state()  # noqa: NPY002 - a student's dropout may well draw from it
    rewinds = 0
    draws_legacy = True

    def rewind() -> None:
        nonlocal rewinds, draws_legacy
        for generator, state in generators:
            generator.state = state
        # Setting it takes as long as the forward of a small layer: one forward shows who needs it.
        if rewinds == 1:
            now = np.random.get_state()  # noqa: NPY002
            draws_legacy = not all(map(np.array_equal, now, legacy))
        if draws_legacy:
            np.random.set_state(legacy)  # noqa: NPY002
        rewinds += 1

    try:
        yield rewind
    finally:
        draws_legacy = True
        rewind()
        for holder, content in zip(holders, contents, strict=True):
            holder.clear()
            holder.update(content) if isinstance(holder, dict) else holder.extend(content)
        for array, values in kept.values():
            if array.flags.writeable:
                array[...] = values


def _walk(thing: Any, seen: dict[int, Any]) -> Iterator[Any]:
    """Go through a layer, the layers inside it, and their dicts and lists."""
    if id(thing) in seen:
        return
    seen[id(thing)] = thing
    if is_layer(thing) and hasattr(thing, "__dict__"):
        yield thing
        inside = list(vars(thing).values())
    elif isinstance(thing, dict | list | tuple):
        if not isinstance(thing, tuple):
            yield thing
        inside = list(thing.values() if isinstance(thing, dict) else thing)
    else:
        return
    for value in inside:
        yield from _walk(value, seen)


def _count_leaves(layer: Any) -> int:
    """How many layers there are that have no layer inside."""
    layers = [thing for thing in _walk(layer, {}) if is_layer(thing)]
    return sum(
        not any(is_layer(inner) for inner in _walk(list(vars(outer).values()), {}))
        for outer in layers
    )


# ---------------------------------------------------------------- functions


def function_subject(
    function: Callable[..., Any], inputs: tuple[Any, ...], backward: Callable[..., Any] | None
) -> Subject:
    """Return a function of arrays as a subject.

    Without `backward`, the function must be one of :mod:`cnnx.functional`, perhaps with options
    bound by ``functools.partial``. A function that returns (out, cache) has a backward that takes
    (grad_out, cache), any other one that takes (grad_out, *inputs).

    Raises
    ------
    ValueError
        If there is no backward, or it returns another number of gradients.
    """
    work = copied_inputs(inputs)
    names = _names(function, len(inputs))
    arrays = {names[n]: value for n, value in enumerate(work) if isinstance(value, np.ndarray)}
    name = _function_name(function)
    if backward is None and _is_public(function, name):
        if name == "conv_forward":
            backward = functional.conv_backward
        elif hasattr(functional, f"{name}_backward"):
            return Subject(name, arrays, *_known_pair(function, name, work), may_decline=True)
    if backward is None:
        raise ValueError(
            f"backward is None, and {name} is no function of cnnx.functional with a backward of "
            "its own; pass backward=, a function of (grad_out, *inputs) that returns the gradients"
        )
    cache: list[Any] = []

    def forward() -> Array:
        result = function(*work)
        if isinstance(result, tuple) and len(result) == 2:
            result, cache[:] = result[0], [result[1]]
        return _output(result)

    def gradients(grad_out: Array) -> dict[str, Any]:
        result = backward(grad_out, *(cache or work))
        found = dict(zip(names, _aligned(result, work), strict=True))
        return {key: found[key] for key in arrays}

    return Subject(name, arrays, forward, gradients, may_decline=True)


def _function_name(function: Any) -> str:
    if isinstance(function, partial):
        return _function_name(function.func)
    return str(getattr(function, "__name__", type(function).__name__))


def _is_public(function: Any, name: str) -> bool:
    inner = function.func if isinstance(function, partial) else function
    return getattr(functional, name, None) is inner


def _known_pair(
    function: Callable[..., Any], name: str, work: list[Any]
) -> tuple[Callable[[], Array], Callable[[Array], dict[str, Any]]]:
    """The forward and backward of a public function, whose arguments go by the same names."""
    bound = inspect.signature(function).bind(*work)
    bound.apply_defaults()
    options = bound.arguments
    pair = getattr(functional, f"{name}_backward")
    wanted = list(inspect.signature(pair).parameters)
    if options.get("activation") is not None and "activation" not in wanted:
        raise ValueError(
            f"activation is {options['activation']!r}: {name}_backward does not know it; check the "
            "layer instead, which does"
        )

    def forward() -> Array:
        result = function(*work)
        return _output(result[0] if isinstance(result, tuple) else result)

    def gradients(grad_out: Array) -> dict[str, Any]:
        known = {**options, "grad_out": grad_out, "input_shape": work[0].shape}
        if "indices" in wanted:
            known["indices"] = function(*work, return_indices=True)[1]
        result = pair(**{key: known[key] for key in wanted if key in known})
        found = result if isinstance(result, tuple) else (result,)
        return dict(zip(options, found, strict=False))  # x, weight, bias; options have none

    return forward, gradients


# ---------------------------------------------------------------- both


def _output(out: Any) -> Array:
    """The output as an array, which must have kept the precision of float64."""
    result = np.asarray(out)
    if result.dtype != np.float64:
        raise TypeError(
            f"forward returned dtype {result.dtype} for float64 inputs; central differences need "
            "float64 all the way"
        )
    return result


def _aligned(result: Any, inputs: list[Any]) -> list[Any]:
    """The gradients that a backward returned, one for each input; None beside what is no array."""
    gradients = list(result) if isinstance(result, tuple | list) else [result]
    arrays = [n for n, value in enumerate(inputs) if isinstance(value, np.ndarray)]
    if arrays[-1] < len(gradients) <= len(inputs):
        return gradients + [None] * (len(inputs) - len(gradients))
    if len(gradients) == len(arrays):
        found = dict(zip(arrays, gradients, strict=True))
        return [found.get(n) for n in range(len(inputs))]
    raise ValueError(
        f"backward returned {len(gradients)} gradients, expected {len(arrays)}: one for each array "
        "among the inputs, None where there is none"
    )


def _names(function: Callable[..., Any], count: int) -> list[str]:
    """What the function calls its first arguments."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some callables from C have no signature
        parameters = {}.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return names[:count] if len(names) >= count else [f"input {n}" for n in range(count)]
