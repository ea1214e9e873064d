"""What is tried: a grid of calls, from the simplest to the strangest.

The first failing case is the one that a student sees, so the order matters: one window size, one
channel and no activation come before strides, pads and batches, and odd values come last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = dict[str, Array]

BACKWARD = "conv_backward"
CONVOLUTIONS = ("conv_forward", BACKWARD)
POOLS = ("MaxPool2D", "AvgPool2D")
GRADIENT = "numerical_gradient"


@dataclass(frozen=True)
class Case:
    """One call: the arrays and the options that it is made with.

    Attributes
    ----------
    arrays : dict of str to ndarray
        Under the classroom's names: X, W, b and the upstream gradient dout.
    options : dict
        stride, pad and activation; pool_size and stride; or the function to differentiate.
    """

    arrays: Arrays
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """The case in a line."""
        shapes = [f"{name} {self.arrays[name].shape}" for name in self.arrays if name in "XWx"]
        options = [f"{name}={value!r}" for name, value in self.options.items()]
        return ", ".join([*shapes, *options, next(iter(self.arrays.values())).dtype.name])

    @property
    def window(self) -> tuple[int, int]:
        """The height and width of what slides over the image."""
        if "W" in self.arrays:
            height, width = self.arrays["W"].shape[2:]
            return height, width
        return self.options["pool_size"], self.options["pool_size"]

    def output_size(self) -> tuple[int, int]:
        """How many rows and columns come out; below 1 where the window does not fit."""
        pad, stride = self.options.get("pad", 0), self.options["stride"]
        image = self.arrays["X"].shape[2:]
        rows, columns = (
            (size + 2 * pad - window) // stride + 1
            for size, window in zip(image, self.window, strict=True)
        )
        return rows, columns

    def is_integer(self) -> bool:
        """Whether the images are whole numbers by their dtype."""
        return next(iter(self.arrays.values())).dtype.kind == "i"

    def as_floats(self) -> Case:
        """Return the case with arrays that cnnx takes."""
        if not self.is_integer():
            return self
        arrays = {name: array.astype(np.float64) for name, array in self.arrays.items()}
        return Case(arrays, self.options)


def with_dout(arrays: Arrays, options: dict[str, Any], dout: Array) -> Case | None:
    """Return a case whose upstream gradient has the output's shape; None if no window fits."""
    case = Case({**arrays, "dout": dout}, options)
    rows, columns = case.output_size()
    if min(rows, columns) < 1:
        return None
    channels = arrays["W"].shape[0] if "W" in arrays else arrays["X"].shape[1]
    shape = (len(arrays["X"]), channels, rows, columns)
    return Case({**arrays, "dout": np.resize(dout, shape)}, options)


# N, C, H, W, F, KH, KW, stride, pad, activation, dtype of X
_CONVOLUTIONS: tuple[tuple[int, int, int, int, int, int, int, int, int, str | None, str], ...] = (
    (1, 1, 4, 4, 1, 2, 2, 1, 0, None, "float64"),
    (1, 1, 4, 5, 1, 3, 2, 1, 0, None, "float64"),
    (1, 2, 4, 4, 1, 2, 2, 1, 0, None, "float64"),
    (1, 2, 4, 4, 3, 2, 2, 1, 0, None, "float64"),
    (2, 1, 4, 4, 1, 2, 2, 1, 0, None, "float64"),
    (2, 2, 5, 4, 3, 3, 3, 1, 1, None, "float64"),
    (1, 1, 6, 6, 1, 2, 2, 2, 0, None, "float64"),
    (2, 2, 7, 5, 2, 3, 3, 2, 1, None, "float64"),
    (2, 2, 5, 5, 2, 3, 3, 1, 1, "relu", "float64"),
    (2, 2, 5, 5, 2, 3, 3, 1, 1, "sigmoid", "float64"),
    (2, 2, 5, 5, 2, 3, 3, 1, 1, "tanh", "float64"),
    (3, 3, 6, 5, 2, 3, 2, 2, 1, "relu", "float64"),
    (1, 1, 3, 3, 2, 1, 1, 1, 0, None, "float64"),  # each window one pixel
    (2, 2, 3, 4, 2, 3, 4, 1, 0, "tanh", "float64"),  # the window is the image
    (1, 2, 7, 8, 2, 2, 2, 3, 0, None, "float64"),  # pixels between the windows
    (2, 1, 6, 6, 2, 3, 3, 2, 0, "sigmoid", "float64"),  # the last row fills no window
    (1, 1, 3, 4, 1, 2, 3, 1, 2, None, "float64"),  # more than half of the windows is pad
    (2, 3, 5, 6, 4, 3, 3, 1, 1, "relu", "float32"),
    (2, 2, 7, 6, 2, 3, 2, 2, 1, "tanh", "float32"),
    (1, 1, 4, 4, 1, 2, 2, 1, 0, None, "int64"),
    (2, 2, 4, 5, 2, 3, 3, 1, 1, None, "int64"),
)

# N, C, H, W, pool_size, stride, values, dtype of X
_POOLS: tuple[tuple[int, int, int, int, int, int, str, str], ...] = (
    (1, 1, 4, 4, 2, 2, "any", "float64"),
    (1, 1, 4, 6, 2, 2, "any", "float64"),
    (2, 3, 4, 6, 2, 2, "any", "float64"),
    (1, 1, 4, 4, 2, 1, "any", "float64"),  # windows overlap
    (2, 2, 5, 7, 3, 1, "any", "float64"),
    (2, 2, 7, 5, 3, 2, "any", "float64"),
    (1, 2, 5, 5, 2, 2, "any", "float64"),  # the last row fills no window
    (1, 2, 7, 8, 2, 3, "any", "float64"),  # pixels between the windows
    (2, 1, 3, 4, 1, 1, "any", "float64"),
    (1, 2, 4, 4, 4, 4, "any", "float64"),
    (2, 2, 4, 6, 2, 2, "negative", "float64"),
    (2, 2, 5, 5, 3, 2, "negative", "float64"),
    (2, 2, 6, 6, 3, 2, "any", "float32"),
    (2, 2, 4, 6, 2, 2, "any", "int64"),
    (1, 2, 5, 5, 3, 2, "any", "int64"),
    (1, 1, 4, 4, 2, 2, "ties", "float64"),
    (2, 2, 5, 5, 3, 2, "ties", "float64"),
)


def grid(subject: str, seed: int = 0) -> list[Case]:
    """Return the cases of a subject, the same in every run with the same seed."""
    rng = np.random.default_rng(seed)
    if subject in CONVOLUTIONS:
        return [_convolution(rng, *row) for row in _CONVOLUTIONS]
    if subject in POOLS:
        return [_pool(rng, *row) for row in _POOLS]
    shapes = (3,), (2, 3), (2, 1, 3, 2)
    return [
        Case({"x": _values(rng, shape), "dout": _values(rng, shape)}, {"f": f})
        for f in ("cube", "running sum", "itself")
        for shape in shapes
    ]


def middle_sized(subject: str) -> Case:
    """Return the case that times are measured on: loops take some hundredths of a second."""
    rng = np.random.default_rng(0)
    if subject in CONVOLUTIONS:
        return _convolution(rng, 2, 3, 16, 16, 4, 3, 3, 1, 1, "relu", "float32")
    return _pool(rng, 4, 8, 32, 32, 2, 2, "any", "float32")


def _values(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    """Numbers of three digits with a fraction and either sign, none of them zero or alike."""
    size = int(np.prod(shape))
    steps = rng.permutation(np.arange(1, size + 1)) * (3.0 / size)
    values = (steps * rng.choice([-1, 1], size)).round(4) + 0.003
    return np.asarray(values.reshape(tuple(shape)))


def _convolution(
    rng: np.random.Generator,
    n: int, c: int, h: int, w: int, f: int, kh: int, kw: int,
    stride: int, pad: int, activation: str | None, dtype: str,
) -> Case:  # fmt: skip
    X, W, b = _values(rng, (n, c, h, w)), _values(rng, (f, c, kh, kw)), _values(rng, (f,))
    if dtype == "int64":
        X = np.asarray(rng.integers(-9, 10, X.shape))
    arrays = {"X": X.astype(dtype)}
    rest = "float64" if dtype == "int64" else dtype
    arrays |= {"W": W.astype(rest), "b": b.astype(rest)}
    dout = _values(rng, (n, f, h + 2 * pad, w + 2 * pad)).astype(rest)
    case = with_dout(arrays, {"stride": stride, "pad": pad, "activation": activation}, dout)
    assert case is not None  # the sizes drawn have an output  # nosec B101
    return case


def _pool(
    rng: np.random.Generator, n: int, c: int, h: int, w: int,
    pool_size: int, stride: int, values: str, dtype: str,
) -> Case:  # fmt: skip
    X = _values(rng, (n, c, h, w))
    if values == "negative":
        X = -abs(X)
    elif values == "ties":
        X = rng.integers(0, 3, X.shape).astype(np.float64)
    elif dtype == "int64":
        X = rng.permutation(np.arange(X.size)).reshape(X.shape) - X.size // 2
    rest = "float64" if dtype == "int64" else dtype
    dout = _values(rng, (n, c, h, w)).astype(rest)
    case = with_dout({"X": X.astype(dtype)}, {"pool_size": pool_size, "stride": stride}, dout)
    assert case is not None  # the sizes drawn have an output  # nosec B101
    return case
