"""The one boundary where arguments are checked and brought to the form that the backends trust.

Each helper takes an argument with its name and either returns it in canonical form or raises a
``TypeError`` or ``ValueError`` that says what came and what was expected. The quick way through
each helper is short, because every call of the library takes it.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from inspect import signature
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnx import _dispatch
from cnnx._shapes import Padding, Pair, Shape, require_room

Array = NDArray[Any]
IntOrPair = int | Sequence[int]
PaddingLike = int | str | Sequence[int] | Sequence[Sequence[int]]
# Of each array of a call: its name, its dimensions (None: any), their layout, and whether it must
# be given.
Signature = tuple[tuple[str, int | None, str, bool], ...]

IMAGES = "(N, C, H, W)"
_LARGEST = 2**31 - 1  # so that sizes times strides stay within 64 bits
_ARRAY = np.ndarray
_FLOAT32, _FLOAT64, _INT64 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int64)
_DTYPE_NAMES = {"f": "float32", "d": "float64"}


# ---------------------------------------------------------------- arrays


def floats(signature: Signature, *values: object) -> Any:
    """Bring the arrays of a call to one float dtype, C-contiguous, aligned and native.

    float32 beside float64 becomes float64. Arrays that are in order already are returned as they
    are, never copied; None stays None where it may be left out.
    """
    dtype = getattr(values[0], "dtype", None)
    if dtype is not _FLOAT32 and dtype is not _FLOAT64:
        return _to_floats(signature, values)
    for (_, ndim, _, required), value in zip(signature, values):  # noqa: B905 (strict costs 0.1 us)
        if type(value) is _ARRAY:
            if (
                value.dtype is dtype
                and (value.ndim == ndim or ndim is None)
                and value.flags.carray  # C-contiguous, aligned and writeable
            ):
                continue
        elif value is None and not required:
            continue
        return _to_floats(signature, values)
    return values


def _to_floats(signature: Signature, values: tuple[object, ...]) -> tuple[Array | None, ...]:
    """The long way of `floats`: check each array, and convert what is not in order."""
    values = tuple(shared(value, name) for (name, *_), value in zip(signature, values, strict=True))
    for (name, ndim, layout, required), value in zip(signature, values, strict=True):
        if value is None and not required:
            continue
        if not isinstance(value, np.ndarray) or value.dtype.char not in _DTYPE_NAMES:
            raise TypeError(_not_floats(name, value))
        unmasked(name, value)
        if ndim is not None and value.ndim != ndim:
            raise ValueError(f"{name} has shape {value.shape}, expected {ndim} dimensions {layout}")
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    dtype = np.float64 if any(array.dtype.char == "d" for array in arrays) else np.float32
    return tuple(
        np.require(value, dtype, ["C", "A", "E"]) if isinstance(value, np.ndarray) else None
        for value in values
    )


def unmasked(name: str, value: object) -> Array:
    """Return a value as an array, unless it has a mask, which would be ignored."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, expected a plain one: {name}.filled(0)")
    return np.asarray(value)


def shared(value: object, name: str) -> Any:
    """Return the NumPy array on the memory of another library's; what is none stays as it is."""
    if isinstance(value, np.ndarray) or not hasattr(type(value), "__dlpack__"):
        return value
    try:
        return np.from_dlpack(value)  # type: ignore[arg-type]
    except Exception as error:  # each library has errors of its own
        raise TypeError(
            f"{name} is {described(value)}, whose numbers NumPy cannot have: {error}"
        ) from error


def _not_floats(name: str, value: object) -> str:
    if not isinstance(value, np.ndarray):
        return f"{name} is {described(value)}, expected a NumPy array of float32 or float64"
    remedy = f"{name}.real" if value.dtype.kind == "c" else name
    return (
        f"{name} is an array of {value.dtype}, expected float32 or float64; "
        f"cast it: {remedy}.astype(np.float32)"
    )


def described(value: object) -> str:
    """Return a value for an error message: short ones in full, others by their type."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text, kind = repr(value), type(value).__name__
    if len(text) <= 60 and not text.startswith("<"):  # as in <object at 0x7f...>
        return f"{text} ({kind})"
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def floating(name: str, value: object, shape: Shape | None = None) -> Array:
    """Bring one array of floats to order, and check its shape if one is given."""
    (array,) = floats(((name, None, "", True),), value)
    if shape is not None:
        require_shape(name, array, shape)
    result: Array = array
    return result


def index_array(value: object, name: str, shape: Shape) -> Array:
    """Bring an array of indices to C-contiguous, native int64."""
    if (
        type(value) is _ARRAY
        and value.dtype is _INT64
        and value.shape == shape
        and value.flags.carray
    ):
        return value
    value = shared(value, name)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
        what = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else described(value)
        raise TypeError(f"{name} is {what}, expected a NumPy array of integers (int64)")
    unmasked(name, value)
    require_shape(name, value, shape, "the shape of grad_out")
    if value.dtype.kind == "u" and value.dtype.itemsize == 8:
        value = np.minimum(value, np.uint64(2**63 - 1))  # what does not fit stays out of range
    return np.require(value, np.int64, ["C", "A", "E"])


def require_shape(name: str, array: Array, shape: Shape, why: str = "") -> None:
    """Raise unless the array has the shape."""
    if array.shape != shape:
        reason = f" ({why})" if why else ""
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}{reason}")


def empty(shape: Shape, like: Array) -> Array:
    """Return a new array for a result, of the dtype of `like`."""
    out: Array = _dispatch.backend().empty(shape, _DTYPE_NAMES[like.dtype.char])
    return out


def output(out: object, shape: Shape, like: Array, *inputs: object) -> Array:
    """Check the array a caller wants filled."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out is {described(out)}, expected a NumPy array")
    if isinstance(out, np.ma.MaskedArray):  # what stands behind its mask would not show
        raise TypeError("out is a masked array, expected a plain one")
    if out.dtype != like.dtype or not out.dtype.isnative:
        raise ValueError(f"out is an array of {out.dtype!r}, expected {like.dtype!r}")
    require_shape("out", out, shape)
    if not (out.flags.c_contiguous and out.flags.aligned and out.flags.writeable):
        raise ValueError(
            f"out has strides {out.strides} and writeable={out.flags.writeable}, expected a "
            "writeable, aligned, C-contiguous array"
        )
    arrays = (shared(a, "an input") for a in inputs)
    if any(isinstance(a, np.ndarray) and np.shares_memory(out, a) for a in arrays):
        raise ValueError("out shares memory with an input, expected an array of its own")
    return out


# ---------------------------------------------------------------- numbers


def integer(value: object, name: str, least: int, most: float = _LARGEST) -> int:
    """Return an integer argument as an int."""
    if type(value) is int and least <= value <= most:
        return value
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {described(value)}, expected an integer")
    if not least <= number <= most:
        limits = f"from {least}" + (f" to {most}" if most < np.inf else "")
        raise ValueError(f"{name} is {number}, expected an integer {limits}")
    return number


def _sequence(value: object) -> tuple[Any, ...] | None:
    """Return the items of a list, tuple or array; None for anything else."""
    if isinstance(value, tuple):
        return value
    if isinstance(value, np.ndarray) and value.ndim:
        value = value.tolist()
    return tuple(value) if isinstance(value, list) else None


def pair(value: object, name: str, least: int = 1, form: str = "(height, width)") -> Pair:
    """Return an int, or two of them, as two."""
    if type(value) is int and least <= value <= _LARGEST:
        return value, value
    if type(value) is tuple and len(value) == 2:
        first, second = value
        if type(first) is type(second) is int and least <= min(value) <= max(value) <= _LARGEST:
            return first, second
    items = _sequence(value)
    if items is None:
        number = integer(value, name, least)
        return number, number
    if len(items) != 2:
        raise ValueError(f"{name} is {described(value)}, expected an integer or {form}")
    return integer(items[0], f"{name}[0]", least), integer(items[1], f"{name}[1]", least)


def padding(value: object, name: str = "padding") -> Padding:
    """Return any form of padding as (top, bottom, left, right), or as "same"."""
    if type(value) is int and 0 <= value <= _LARGEST:
        return value, value, value, value
    if isinstance(value, str):
        if value == "same":
            return "same"
        if value == "valid":
            return 0, 0, 0, 0
        raise ValueError(f"{name} is {value!r}, expected 'same' or 'valid' (or integers)")
    items = _sequence(value)
    if items is None:
        number = integer(value, name, 0)
        return number, number, number, number
    if len(items) != 2:
        raise ValueError(
            f"{name} is {described(value)}, expected an integer, (height, width), "
            "((top, bottom), (left, right)), 'same' or 'valid'"
        )
    rows = pair(items[0], f"{name}[0]", 0, "(top, bottom)")
    columns = pair(items[1], f"{name}[1]", 0, "(left, right)")
    return rows + columns


def images_shape(value: object, name: str) -> tuple[int, int, int, int]:
    """Return the shape (N, C, H, W) of a forward pass's input."""
    items = _sequence(value)
    if items is None:
        raise TypeError(f"{name} is {described(value)}, expected a tuple {IMAGES}")
    if len(items) != 4:
        raise ValueError(f"{name} is {described(value)}, expected 4 sizes {IMAGES}")
    n, c, h, w = (integer(item, f"{name}[{axis}]", 0) for axis, item in enumerate(items))
    require_room(f"by {name}, the result", (n, c, h, w))
    return n, c, h, w


def number(
    value: object,
    name: str,
    least: float = -np.inf,
    most: float = np.inf,
    below: float = np.inf,
    above: float = -np.inf,
) -> float:
    """Return a real, finite number as a float."""
    if type(value) is float and least <= value <= most and above < value < below:
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {described(value)}, expected a number")
    try:
        result = float(value)
    except OverflowError:  # an int of 400 digits
        result = np.inf
    if not (np.isfinite(result) and least <= result <= most and above < result < below):
        limits = "" if above == -np.inf else f" above {above:g}"
        limits += "" if least == -np.inf else f" from {least:g}"
        limits += "" if most == np.inf else f" to {most:g}"
        limits += "" if below == np.inf else f" to below {below:g}"
        raise ValueError(f"{name} is {value}, expected a finite number{limits}")
    return result


def choice(value: object, name: str, choices: tuple[str | None, ...]) -> Any:
    """Return one of a few names."""
    if value is None or isinstance(value, str):
        if value in choices:
            return value
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, choices))}")
    raise TypeError(
        f"{name} is {described(value)}, expected one of {', '.join(map(repr, choices))}"
    )


def flag(value: object, name: str) -> bool:
    """Return a yes or no; 0 and 1 will do, as ONNX has them."""
    if value is True or value is False:
        return value
    if not (isinstance(value, bool | np.bool_) or (type(value) is int and value in (0, 1))):
        raise TypeError(f"{name} is {described(value)}, expected True or False")
    return bool(value)


def needed(need: object) -> tuple[bool, bool, bool]:
    """Return which of three gradients are wanted."""
    if type(need) is tuple and len(need) == 3 and {*map(type, need)} == {bool}:
        return need
    items = _sequence(need)
    if items is None or len(items) != 3:
        raise ValueError(f"need is {described(need)}, expected three booleans (x, weight, bias)")
    return flag(items[0], "need[0]"), flag(items[1], "need[1]"), flag(items[2], "need[2]")


# ---------------------------------------------------------------- objects


def generator(value: object, name: str = "rng") -> np.random.Generator:
    """Return a generator of random numbers: the one given, or one that a seed or None begins."""
    wrong: type[Exception] = TypeError
    if not isinstance(value, bool):
        try:
            return np.random.default_rng(value)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            wrong = type(error)
    raise wrong(
        f"{name} is {described(value)}, expected None, an integer from 0 or a "
        "numpy.random.Generator"
    )


def methods(
    value: object, name: str, wanted: Mapping[str, tuple[str, ...]], example: str = ""
) -> None:
    """Raise unless an object has the methods, each of which can be called with those arguments."""
    for method, arguments in wanted.items():
        function = getattr(value, method, None)
        if not isinstance(value, type) and callable(function):
            try:
                signature(function).bind(*arguments)
                continue
            except ValueError:  # a function in C that does not tell
                continue
            except TypeError:
                pass
        text = " and ".join(f"{name}({', '.join(names)})" for name, names in wanted.items())
        raise TypeError(
            f"{name} is {described(value)}, expected an object with {text}"
            + (f", such as {example}" if example else "")
        )


def path(value: object, name: str = "path") -> str:
    """Return the name of a file or folder as a string."""
    try:
        return os.fsdecode(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"{name} is {described(value)}, expected a file name: a str or an os.PathLike"
        ) from None
