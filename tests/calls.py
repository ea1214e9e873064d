"""One valid call of every public function: the table the layout, error and thread tests walk.

A function that is missing here fails `test_layouts.test_table_is_complete`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

import cnnx

BATCHED = ("x", "X", "grad_out")  # their first axis counts images


@dataclass(frozen=True)
class Call:
    """A function's name, the shapes of its floating-point arrays, and its other arguments."""

    name: str
    shapes: dict[str, tuple[int, ...]]
    options: dict[str, Any] = field(default_factory=dict)

    def arrays(self, dtype: Any) -> dict[str, Any]:
        """Whole numbers of that dtype, the same on every call; variances are positive."""
        rng = np.random.default_rng(len(self.name))
        arrays = {}
        for argument, shape in self.shapes.items():
            array = rng.integers(-3, 4, shape).astype(dtype)
            arrays[argument] = np.abs(array) + 1 if argument == "var" else array
        return arrays

    def __call__(self, arrays: dict[str, Any]) -> list[Any]:
        """The arrays the call returns."""
        result = getattr(cnnx, self.name)(**arrays, **self.options)
        if self.name == "conv_forward":
            return [result[0]]  # the cache is the library's own business
        return list(result) if isinstance(result, tuple) else [result]


_IMAGE = (2, 4, 7, 6)
_CONV = {"stride": (2, 1), "padding": ((1, 0), (1, 1)), "groups": 2}  # -> (2, 6, 3, 7)
_TRANSPOSE = {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}  # -> (2, 6, 8, 5)
_POOL = {"pool_size": 3, "stride": 2, "padding": 1}  # -> (2, 4, 4, 3)

CALLS = [
    Call("conv2d", {"x": _IMAGE, "weight": (6, 2, 3, 2), "bias": (6,)}, _CONV),
    Call("conv2d_backward", {"grad_out": (2, 6, 3, 7), "x": _IMAGE, "weight": (6, 2, 3, 2)}, _CONV),
    Call("conv_transpose2d", {"x": (2, 4, 4, 3), "weight": (4, 3, 3, 2), "bias": (6,)}, _TRANSPOSE),
    Call(
        "conv_transpose2d_backward",
        {"grad_out": (2, 6, 8, 5), "x": (2, 4, 4, 3), "weight": (4, 3, 3, 2)},
        _TRANSPOSE,
    ),
    Call("max_pool2d", {"x": _IMAGE}, {**_POOL, "return_indices": True}),
    Call(
        "max_pool2d_backward",
        {"grad_out": (2, 4, 4, 3)},
        {"indices": np.arange(2 * 4 * 4 * 3).reshape(2, 4, 4, 3) * 5 % 42, "input_shape": _IMAGE},
    ),
    Call("avg_pool2d", {"x": _IMAGE}, _POOL),
    Call("avg_pool2d_backward", {"grad_out": (2, 4, 4, 3)}, {"input_shape": _IMAGE, **_POOL}),
    Call("global_avg_pool2d", {"x": _IMAGE}),
    Call("global_avg_pool2d_backward", {"grad_out": (2, 4)}, {"input_shape": _IMAGE}),
    Call("linear", {"x": (5, 4), "weight": (4, 3), "bias": (3,)}),
    Call("linear_backward", {"grad_out": (5, 3), "x": (5, 4), "weight": (4, 3)}),
    *(
        call
        for name in ("relu", "leaky_relu", "relu6", "sigmoid", "tanh", "gelu", "silu")
        for call in (
            Call(name, {"x": _IMAGE}),
            Call(f"{name}_backward", {"grad_out": _IMAGE, "x": _IMAGE}),
        )
    ),
    *(
        call
        for name in ("softmax", "log_softmax")
        for call in (
            Call(name, {"x": (5, 7)}),
            Call(f"{name}_backward", {"grad_out": (5, 7), "x": (5, 7)}),
        )
    ),
    Call("batch_norm2d", {"x": _IMAGE, "weight": (4,), "bias": (4,)}),
    Call("batch_norm2d", {"x": _IMAGE, "weight": (4,), "bias": (4,), "mean": (4,), "var": (4,)}),
    Call("batch_norm2d_backward", {"grad_out": _IMAGE, "x": _IMAGE, "weight": (4,)}),
    Call(
        "batch_norm2d_backward",
        {"grad_out": _IMAGE, "x": _IMAGE, "weight": (4,), "mean": (4,), "var": (4,)},
    ),
    Call("conv_forward", {"X": _IMAGE, "W": (6, 4, 3, 2), "b": (6,)}, {"stride": 2, "pad": 1}),
]


def call_id(call: Call) -> str:
    """The function's name, and whether the statistics are given."""
    return call.name + ("-given-stats" if "mean" in call.shapes else "")
