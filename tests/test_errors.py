"""Wrong calls of functions: the right exception, raised before a kernel starts, whose text helps.

Each text must name the argument, show what came and say what was expected; the strings beside each
wrong call are what must stand in it. All of it runs on a backend without kernels, so that a call
which is not refused in time fails. Layers and what trains them are in test_errors_objects.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from calls import BATCHED, CALLS, Call, call_id
from numpy.testing import assert_array_equal
from texts import assert_says, refuses

import cnnx
from cnnx import _dispatch

each_call = pytest.mark.parametrize("call", CALLS, ids=call_id)
BASE = {call_id(call): call for call in CALLS}


class NoKernels:
    """A backend that hands out memory and starts nothing."""

    empty = staticmethod(np.empty)

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the kernel {name} was started")


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "_active", NoKernels())


def zeros(*shape: int, dtype: Any = np.float64) -> Any:
    return np.zeros(shape, dtype)


def refused(error: type[Exception], call: Call, changes: dict[str, Any], *parts: str) -> None:
    """Assert that the call with those changes raises, and that its text has the parts."""
    arguments = {**call.arrays(np.float64), **call.options, **changes}
    refuses(error, lambda: getattr(cnnx, call.name)(**arguments), *parts)


def test_no_kernels_would_tell(no_kernels: None) -> None:
    # The fixture does what the tests below trust it to.
    with pytest.raises(AssertionError, match="the kernel conv2d was started"):
        cnnx.conv2d(zeros(1, 1, 2, 2), zeros(1, 1, 1, 1))


# ---------------------------------------------------------------------------- dtypes

FORBIDDEN = {
    "int64": np.int64,
    "uint8": np.uint8,
    "bool": np.bool_,
    "complex128": np.complex128,
    "complex64": np.complex64,
    "object": object,
    "float16": np.float16,
    "longdouble": np.longdouble,
}


@pytest.mark.parametrize("forbidden", FORBIDDEN)
@each_call
def test_dtype(call: Call, forbidden: str, no_kernels: None) -> None:
    arrays = call.arrays(np.float64)
    for argument, array in arrays.items():
        wrong = array.astype(FORBIDDEN[forbidden])
        cast = f"{argument}{'.real' if wrong.dtype.kind == 'c' else ''}.astype(np.float32)"
        refused(TypeError, call, {argument: wrong}, argument, str(wrong.dtype), cast)


@each_call
def test_not_an_array(call: Call, no_kernels: None) -> None:
    arrays = call.arrays(np.float64)
    for argument, array in arrays.items():
        refused(TypeError, call, {argument: array.tolist()}, argument, "list", "NumPy array")
        refused(TypeError, call, {argument: 1.5}, argument, "1.5", "float")
        refused(TypeError, call, {argument: memoryview(array)}, argument, "memoryview")


@pytest.mark.parametrize("argument", ["x", "weight"])
def test_none_is_no_array(argument: str, no_kernels: None) -> None:
    refused(TypeError, BASE["conv2d"], {argument: None}, argument, "None")


def test_masked_array(no_kernels: None) -> None:
    # It would lose its mask without a word.
    x = np.ma.masked_array(zeros(2, 4, 7, 6), mask=True)
    refused(TypeError, BASE["relu"], {"x": x}, "x", "masked", "filled")
    hidden = np.ma.masked_array([0, 1], mask=[False, True])
    one = np.ones((1, 1, 1, 2))
    for name, call in (
        ("target", lambda: cnnx.SoftmaxCrossEntropy()(np.ones((2, 3)), hidden)),
        (
            "indices",
            lambda: cnnx.max_pool2d_backward(one, hidden.reshape(one.shape), one.shape),
        ),
        ("state['bias']", lambda: cnnx.Dense(1, 2).load_state_dict({"bias": hidden}, False)),
        ("out", lambda: cnnx.conv2d(one, one[..., :1], out=np.ma.masked_array(one, mask=True))),
    ):
        with pytest.raises(TypeError, match=rf"{re.escape(name)} is a masked array"):
            call()


# ---------------------------------------------------------------------------- dimensions

# Of the functions of x alone, those that do not take arrays of any shape.
IMAGES_ONLY = ("max_pool", "avg_pool", "global_avg_pool")


@each_call
def test_dimensions(call: Call, no_kernels: None) -> None:
    for argument, shape in call.shapes.items():
        if set(call.shapes) == {"x"} and not call.name.startswith(IMAGES_ONLY):
            continue  # of any shape
        wrong = zeros(7) if argument == "b" else zeros(*shape, 1)  # b may have more dimensions
        refused(ValueError, call, {argument: wrong}, argument, str(wrong.shape))


@each_call
def test_zero_sizes(call: Call, no_kernels: None) -> None:
    # Only the batch may be empty.
    for argument, shape in call.shapes.items():
        for axis in range(len(shape)):
            if argument in BATCHED and axis == 0:
                continue
            hollow = zeros(*(0 if a == axis else size for a, size in enumerate(shape)))
            # Where other arrays tell the size, the text may hold this one against them.
            alone = argument in ("x", "X") and "grad_out" not in call.shapes
            parts = ("0", "at least 1") if alone else ("0",)
            refused(ValueError, call, {argument: hollow}, *parts)


@pytest.mark.parametrize(
    "call",
    [c for c in CALLS if not c.name.startswith(("conv", "max", "linear"))],
    ids=call_id,
)
def test_zero_channels_or_classes_throughout(call: Call, no_kernels: None) -> None:
    # Shapes that fit each other, and yet there is nothing there.
    changes: dict[str, Any] = {
        argument: zeros(shape[0], 0, *shape[2:]) if len(shape) > 1 else zeros(0)
        for argument, shape in call.shapes.items()
    }
    if "input_shape" in call.options:
        changes["input_shape"] = (2, 0, 7, 6)
    refused(ValueError, call, changes, "at least 1")


@pytest.mark.parametrize("name", ["max_pool2d_backward", "avg_pool2d_backward"])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_zero_sizes_of_input_shape(name: str, axis: int, no_kernels: None) -> None:
    shape = tuple(0 if a == axis else size for a, size in enumerate((2, 4, 7, 6)))
    changes: dict[str, Any] = {"input_shape": shape}
    if axis == 1:
        changes["grad_out"] = zeros(2, 0, 4, 3)
        if name == "max_pool2d_backward":
            changes["indices"] = zeros(2, 0, 4, 3, dtype=np.int64)
    refused(ValueError, BASE[name], changes, str(0), "at least 1")


# ---------------------------------------------------------------------------- shapes and numbers

BIG = 2**31 - 1
SIZE_FORMULA = "floor((H + top + bottom - KH) / stride) + 1"
# Function (see BASE), what is changed in its valid call, what stands in the text.
VALUE_ERRORS: list[tuple[Any, ...]] = [
    # --- shapes that do not fit each other
    ("conv2d", {"weight": zeros(6, 3, 3, 2)}, "weight", "(6, 3, 3, 2)", "4 / 2", "groups"),
    ("conv2d", {"groups": 3}, "groups", "3", "(6, 2, 3, 2)", "(2, 4, 7, 6)"),
    ("conv2d", {"weight": zeros(5, 2, 3, 2), "bias": None}, "groups", "2", "5", "divisor"),
    ("conv2d", {"bias": zeros(5)}, "bias", "(5,)", "(6,)"),
    (
        "conv2d_backward",
        {"grad_out": zeros(2, 6, 3, 6)},
        "grad_out",
        "(2, 6, 3, 6)",
        "(2, 6, 3, 7)",
    ),
    (
        "conv2d_backward",
        {"grad_out": zeros(1, 6, 3, 7)},
        "grad_out",
        "(1, 6, 3, 7)",
        "(2, 6, 3, 7)",
    ),
    ("conv2d_backward", {"stride": 1}, "grad_out", "(2, 6, 3, 7)", "(2, 6, 6, 7)"),
    ("conv_transpose2d", {"weight": zeros(3, 3, 3, 2)}, "weight", "(3, 3, 3, 2)", "4"),
    ("conv_transpose2d", {"groups": 3}, "groups", "3", "4", "divisor"),
    ("conv_transpose2d", {"bias": zeros(3)}, "bias", "(3,)", "(6,)"),
    (
        "conv_transpose2d_backward",
        {"grad_out": zeros(2, 6, 8, 4)},
        "grad_out",
        "(2, 6, 8, 4)",
        "(2, 6, 8, 5)",
    ),
    (
        "max_pool2d_backward",
        {"grad_out": zeros(2, 4, 4, 2)},
        "indices",
        "(2, 4, 4, 3)",
        "(2, 4, 4, 2)",
    ),
    (
        "max_pool2d_backward",
        {"input_shape": (2, 3, 7, 6)},
        "grad_out",
        "(2, 4, 4, 3)",
        "(2, 3, 4, 3)",
        "input_shape",
    ),
    (
        "max_pool2d_backward",
        {"input_shape": (3, 4, 7, 6)},
        "grad_out",
        "(2, 4, 4, 3)",
        "(3, 4, 4, 3)",
        "input_shape",
    ),
    ("max_pool2d_backward", {"input_shape": (4, 7, 6)}, "input_shape", "(4, 7, 6)", "(N, C, H, W)"),
    (
        "avg_pool2d_backward",
        {"grad_out": zeros(2, 4, 3, 3)},
        "grad_out",
        "(2, 4, 3, 3)",
        "(2, 4, 4, 3)",
    ),
    ("avg_pool2d_backward", {"input_shape": (2, 4, -7, 6)}, "input_shape", "-7"),
    ("global_avg_pool2d_backward", {"grad_out": zeros(2, 5)}, "grad_out", "(2, 5)", "(2, 4)"),
    ("linear", {"weight": zeros(5, 3)}, "weight", "(5, 3)", "(5, 4)", "x"),
    ("linear", {"bias": zeros(4)}, "bias", "(4,)", "(3,)"),
    ("linear_backward", {"grad_out": zeros(5, 4)}, "grad_out", "(5, 4)", "(5, 3)"),
    ("relu_backward", {"grad_out": zeros(2, 4, 7, 5)}, "grad_out", "(2, 4, 7, 5)", "(2, 4, 7, 6)"),
    ("softmax_backward", {"grad_out": zeros(5, 6)}, "grad_out", "(5, 6)", "(5, 7)"),
    ("softmax", {"axis": 2}, "axis", "2", "(5, 7)"),
    ("softmax", {"axis": -3}, "axis", "-3"),
    ("softmax", {"x": np.array(1.0)}, "x", "()", "axis"),
    ("batch_norm2d", {"weight": zeros(3)}, "weight", "(3,)", "(4,)"),
    ("batch_norm2d", {"bias": zeros(5)}, "bias", "(5,)", "(4,)"),
    ("batch_norm2d", {"mean": zeros(4)}, "mean", "var", "both"),
    ("batch_norm2d", {"var": zeros(4)}, "mean", "var", "both"),
    ("batch_norm2d", {"eps": -1.0}, "eps", "-1", "0"),
    ("batch_norm2d", {"eps": float("nan")}, "eps", "nan"),
    ("batch_norm2d-given-stats", {"mean": zeros(3)}, "mean", "(3,)", "(4,)"),
    (
        "batch_norm2d_backward",
        {"grad_out": zeros(2, 4, 7, 5)},
        "grad_out",
        "(2, 4, 7, 5)",
        "(2, 4, 7, 6)",
    ),
    ("batch_norm2d_backward", {"batch_stats": False}, "batch_stats", "False", "mean"),
    ("leaky_relu", {"slope": float("inf")}, "slope", "inf", "finite"),
    ("conv_forward", {"b": zeros(5)}, "b", "(5,)", "6"),
    # --- an output without a pixel shows the formula and its numbers
    (
        "conv2d",
        {"x": zeros(2, 4, 1, 6)},
        "no pixel",
        SIZE_FORMULA,
        "floor((1 + 1 + 0 - 3) / 2) + 1",
        "0",
    ),
    (
        "conv2d",
        {"dilation": (5, 1)},
        "no pixel",
        "dilation*(KH - 1) - 1",
        "floor((7 + 1 + 0 - 5*(3 - 1) - 1) / 2)",
    ),
    ("conv2d", {"dilation": (1, 9)}, "no pixel", "width", "floor((6 + 1 + 1 - 9*(2 - 1) - 1) / 1)"),
    (
        "max_pool2d",
        {"pool_size": 10, "padding": 0},
        "no pixel",
        SIZE_FORMULA,
        "(7 + 0 + 0 - 10) / 2",
    ),
    ("max_pool2d", {"pool_size": 10, "padding": 0, "ceil_mode": True}, "no pixel", "ceil("),
    (
        "avg_pool2d",
        {"pool_size": (1, 9), "padding": 0},
        "no pixel",
        "width",
        "(6 + 0 + 0 - 9) / 2",
    ),
    (
        "conv_transpose2d",
        {"padding": 5},
        "no pixel",
        "(H - 1)*stride + dilation*(KH - 1) + 1 - top - bottom + output_padding",
        "(4 - 1)*2 + 1*(3 - 1) + 1 - 5 - 5 + 1",
    ),
    # --- stride
    ("conv2d", {"stride": 0}, "stride", "0", "from 1"),
    ("conv2d", {"stride": -1}, "stride", "-1", "from 1"),
    ("conv2d", {"stride": (1, 0)}, "stride[1]", "0", "from 1"),
    ("conv2d", {"stride": (1, 2, 3)}, "stride", "(1, 2, 3)", "(height, width)"),
    ("conv2d", {"stride": ()}, "stride", "()", "(height, width)"),
    ("conv_transpose2d", {"stride": 0}, "stride", "0", "from 1"),
    ("max_pool2d", {"stride": 0}, "stride", "0", "from 1"),
    ("avg_pool2d", {"stride": (2, -2)}, "stride[1]", "-2", "from 1"),
    ("conv_forward", {"stride": 0}, "stride", "0", "from 1"),
    # --- dilation
    ("conv2d", {"dilation": 0}, "dilation", "0", "from 1"),
    ("conv2d", {"dilation": (1, -2)}, "dilation[1]", "-2", "from 1"),
    ("conv_transpose2d", {"dilation": 0}, "dilation", "0", "from 1"),
    ("max_pool2d", {"dilation": 0}, "dilation", "0", "from 1"),
    # --- groups
    ("conv2d", {"groups": 0}, "groups", "0", "from 1"),
    ("conv2d", {"groups": -2}, "groups", "-2", "from 1"),
    # --- padding
    ("conv2d", {"padding": -1}, "padding", "-1", "from 0"),
    ("conv2d", {"padding": "full"}, "padding", "'full'", "'same'", "'valid'"),
    ("conv2d", {"padding": (1, 2, 3)}, "padding", "(1, 2, 3)", "((top, bottom), (left, right))"),
    ("conv2d", {"padding": ((1, 2), (0, -3))}, "padding[1]", "-3", "from 0"),
    ("conv2d", {"padding": ((1, 2, 3), (0, 0))}, "padding[0]", "(1, 2, 3)", "(top, bottom)"),
    ("conv_transpose2d", {"padding": "same"}, "padding", "'same'", "integers"),
    ("conv_transpose2d", {"padding": -1}, "padding", "-1", "from 0"),
    ("conv_forward", {"pad": -1}, "pad", "-1", "from 0"),
    # --- output_padding: smaller than the larger of stride and dilation
    ("conv_transpose2d", {"output_padding": 2}, "output_padding", "2", "stride 2", "dilation 1"),
    ("conv_transpose2d", {"output_padding": (0, 2)}, "output_padding", "2", "width"),
    ("conv_transpose2d", {"output_padding": -1}, "output_padding", "-1", "from 0"),
    ("conv_transpose2d_backward", {"output_padding": 3}, "output_padding", "3", "stride 2"),
    # --- padding modes
    ("conv2d", {"padding_mode": "wrap"}, "padding_mode", "'wrap'", "'zeros'", "'circular'"),
    ("conv2d", {"padding_mode": None}, "padding_mode", "None", "'zeros'"),
    (
        "conv2d",
        {"padding_mode": "reflect", "padding": (7, 0)},
        "padding",
        "7",
        "6",
        "height",
        "'reflect'",
    ),
    (
        "conv2d",
        {"padding_mode": "reflect", "padding": ((0, 0), (0, 6))},
        "padding",
        "6",
        "5",
        "width",
        "'reflect'",
    ),
    (
        "conv2d",
        {"padding_mode": "circular", "padding": (8, 0)},
        "padding",
        "8",
        "7",
        "height",
        "'circular'",
    ),
    ("conv2d_backward", {"padding_mode": "mirror"}, "padding_mode", "'mirror'", "'reflect'"),
    # --- activation
    ("conv2d", {"activation": "gelu"}, "activation", "'gelu'", "'relu'", "'tanh'", "None"),
    ("linear", {"activation": "softmax"}, "activation", "'softmax'", "'relu'"),
    ("conv_forward", {"activation": "Relu"}, "activation", "'Relu'", "'relu'"),
    # --- need
    ("conv2d_backward", {"need": (True, True)}, "need", "(True, True)", "three"),
    ("conv_transpose2d_backward", {"need": True}, "need", "True", "three"),
    ("linear_backward", {"need": ()}, "need", "()", "three"),
    # --- windows; their padding is smaller than the dilated window on every side
    ("max_pool2d", {"pool_size": 0}, "pool_size", "0", "from 1"),
    ("max_pool2d", {"pool_size": (2, 0)}, "pool_size[1]", "0", "from 1"),
    ("avg_pool2d", {"pool_size": -2}, "pool_size", "-2", "from 1"),
    ("max_pool2d", {"padding": 3}, "padding", "3", "less than", "1*(3 - 1) + 1 = 3"),
    ("max_pool2d", {"padding": ((0, 3), (0, 0))}, "padding", "3", "bottom", "height"),
    ("max_pool2d", {"padding": ((0, 0), (3, 0))}, "padding", "3", "left", "width"),
    ("max_pool2d", {"padding": (0, 5), "dilation": 2}, "padding", "5", "2*(3 - 1) + 1 = 5"),
    ("avg_pool2d", {"padding": (0, 4)}, "padding", "4", "less than", "3"),
    ("avg_pool2d_backward", {"padding": 3}, "padding", "3", "less than"),
    ("max_pool2d", {"padding": -1}, "padding", "-1", "from 0"),
    ("max_pool2d", {"padding": "full"}, "padding", "'full'", "'same'"),
    # --- sizes whose products would not fit in 64 bits: memory would be too small, not missing
    ("conv2d", {"stride": BIG, "padding": BIG}, "padded x", "4294967301", "2**40"),
    ("conv2d", {"stride": BIG, "padding": BIG, "dilation": BIG}, "padded x", "2**40"),
    ("conv2d", {"padding": (2**20, 2**20)}, "output", "2**40"),
    ("conv_transpose2d", {"stride": BIG}, "output", "2**40"),
    (
        "conv_transpose2d",
        {"stride": BIG, "padding": BIG},
        "output",
        "before its padding is cut off",
        "2**40",
    ),
    ("max_pool2d", {"pool_size": BIG, "stride": BIG, "padding": BIG - 1}, "padded x", "2**40"),
    ("avg_pool2d", {"pool_size": BIG, "stride": BIG, "padding": BIG - 1}, "padded x", "2**40"),
    ("max_pool2d_backward", {"input_shape": (2, 4, BIG, BIG)}, "input_shape", "2**40"),
    ("avg_pool2d_backward", {"input_shape": (2, 4, BIG, BIG)}, "input_shape", "2**40"),
    ("global_avg_pool2d_backward", {"input_shape": (2, 4, BIG, BIG)}, "input_shape", "2**40"),
    # a dilated window whose taps all miss the image has no maximum
    (
        "max_pool2d",
        {
            "x": zeros(1, 1, 1, 9),
            "pool_size": (2, 1),
            "padding": (1, 0),
            "dilation": 2,
            "stride": 1,
        },
        "dilation",
        "2",
        "height",
        "-1",
        "0 to 0",
    ),
]

TYPE_ERRORS: list[tuple[Any, ...]] = [
    # --- shapes that do not fit each other
    ("max_pool2d_backward", {"input_shape": 7}, "input_shape", "7", "(N, C, H, W)"),
    ("max_pool2d_backward", {"indices": zeros(2, 4, 4, 3)}, "indices", "float64", "integers"),
    ("max_pool2d_backward", {"indices": [[0]]}, "indices", "list", "integers"),
    (
        "max_pool2d_backward",
        {"indices": zeros(2, 4, 4, 3, dtype=bool)},
        "indices",
        "bool",
        "integers",
    ),
    ("avg_pool2d_backward", {"input_shape": (2, 4, 7.0, 6)}, "input_shape", "7.0", "integer"),
    ("softmax", {"axis": 0.5}, "axis", "0.5", "integer"),
    ("batch_norm2d", {"eps": "small"}, "eps", "small", "number"),
    ("leaky_relu", {"slope": "0.1"}, "slope", "'0.1'", "number"),
    # --- stride
    ("conv2d", {"stride": 1.5}, "stride", "1.5", "integer"),
    ("conv2d", {"stride": 2.0}, "stride", "2.0", "integer"),
    ("conv2d", {"stride": "2"}, "stride", "'2'", "integer"),
    ("conv2d", {"stride": None}, "stride", "None", "integer"),
    ("conv2d", {"stride": True}, "stride", "True", "integer"),
    ("conv2d", {"stride": (1, 2.5)}, "stride[1]", "2.5", "integer"),
    # --- dilation
    ("max_pool2d", {"dilation": 1.0}, "dilation", "1.0", "integer"),
    # --- groups
    ("conv2d", {"groups": (2, 2)}, "groups", "(2, 2)", "integer"),
    # --- yes or no
    ("max_pool2d", {"ceil_mode": "no"}, "ceil_mode", "'no'", "True or False"),
    ("max_pool2d", {"return_indices": np.array([1, 2])}, "return_indices", "True or False"),
    ("avg_pool2d", {"ceil_mode": None}, "ceil_mode", "None", "True or False"),
    ("avg_pool2d", {"count_include_pad": zeros(2)}, "count_include_pad", "True or False"),
    ("avg_pool2d_backward", {"count_include_pad": 2}, "count_include_pad", "2", "True or False"),
    ("batch_norm2d", {"return_stats": "yes"}, "return_stats", "'yes'", "True or False"),
    ("batch_norm2d_backward", {"batch_stats": 0.0}, "batch_stats", "0.0", "True or False"),
    ("conv2d_backward", {"need": (True, "no", True)}, "need[1]", "'no'", "True or False"),
    # --- padding
    ("conv2d", {"padding": 0.5}, "padding", "0.5", "integer"),
    ("conv2d", {"padding": None}, "padding", "None", "integer"),
    ("conv2d", {"padding": (1, "same")}, "padding[1]", "'same'", "integer"),
    # --- padding modes
    ("conv2d", {"padding_mode": 0}, "padding_mode", "0", "'zeros'"),
    # --- activation
    ("conv2d", {"activation": np.tanh}, "activation", "'relu'"),
    # --- windows; their padding is smaller than the dilated window on every side
    ("max_pool2d", {"pool_size": 2.0}, "pool_size", "2.0", "integer"),
    ("max_pool2d", {"pool_size": None}, "pool_size", "None", "integer"),
]


def row_id(row: tuple[Any, ...]) -> str:
    name, changes, *parts = row
    return f"{name}-{'-'.join(changes)}-{parts[1]}"


@pytest.mark.parametrize("row", VALUE_ERRORS, ids=row_id)
def test_value_error(row: tuple[Any, ...], no_kernels: None) -> None:
    name, changes, *parts = row
    refused(ValueError, BASE[name], changes, *parts)


@pytest.mark.parametrize("row", TYPE_ERRORS, ids=row_id)
def test_type_error(row: tuple[Any, ...], no_kernels: None) -> None:
    name, changes, *parts = row
    refused(TypeError, BASE[name], changes, *parts)


@pytest.mark.parametrize("call", CALLS, ids=call_id)
def test_unknown_argument(call: Call, no_kernels: None) -> None:
    refused(TypeError, call, {"colour": 1}, "colour")


# ---------------------------------------------------------------------------- indices


@pytest.mark.parametrize("wrong", [-1, 42, 43, 2**40, -(2**62), 2**63 - 1])
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (1, 3, 3, 2), (0, 2, 1, 1)])
def test_index_out_of_range(wrong: int, place: tuple[int, ...], implementation: str) -> None:
    # Here the kernel itself looks: a pass over the indices before it would cost as much again.
    call = BASE["max_pool2d_backward"]
    indices = call.options["indices"].copy()
    indices[place] = wrong
    refused(
        ValueError, call, {"indices": indices}, "indices", str(wrong), str(place), "7*6 - 1 = 41"
    )


def test_first_index_out_of_range_is_named(implementation: str) -> None:
    # Whichever thread finds one first, the text is the same.
    call = BASE["max_pool2d_backward"]
    indices = call.options["indices"].copy()
    indices[1, 3, 3, 2] = indices[0, 1, 2, 0] = indices[0, 1, 2, 1] = 99
    for _ in range(5):
        refused(ValueError, call, {"indices": indices}, "99 at (0, 1, 2, 0)")


def test_unsigned_index_out_of_range(backend: str) -> None:
    # 2**64 - 1 read as int64 would be -1; read as an offset it would be anywhere.
    indices = np.full((1, 1, 1, 1), 2**64 - 1, np.uint64)
    with pytest.raises(ValueError, match="indices holds"):
        cnnx.max_pool2d_backward(np.ones((1, 1, 1, 1)), indices, (1, 1, 2, 2))


# ---------------------------------------------------------------------------- out=


def conv_into(out: Any) -> Any:
    return cnnx.conv2d(zeros(2, 3, 6, 5), zeros(4, 3, 3, 3), out=out)


READ_ONLY = zeros(2, 4, 4, 3)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("out", "error", "parts"),
    [
        (zeros(2, 4, 4, 4), ValueError, ("(2, 4, 4, 4)", "(2, 4, 4, 3)")),
        (zeros(2, 4, 12), ValueError, ("(2, 4, 12)", "(2, 4, 4, 3)")),
        (zeros(2, 4, 4, 3, dtype=np.float32), ValueError, ("float32", "float64")),
        (zeros(2, 4, 4, 3, dtype=np.int64), ValueError, ("int64", "float64")),
        (zeros(2, 4, 4, 3, dtype=">f8"), ValueError, (">f8", "float64")),
        (zeros(2, 4, 3, 4).transpose(0, 1, 3, 2), ValueError, ("strides", "C-contiguous")),
        (zeros(2, 4, 4, 6)[..., ::2], ValueError, ("strides", "C-contiguous")),
        (READ_ONLY, ValueError, ("writeable=False", "writeable")),
        (zeros(2, 4, 4, 3).tolist(), TypeError, ("list", "NumPy array")),
    ],
    ids=["shape", "dimensions", "float32", "int64", "swapped", "transposed", "strided", "read_only",
         "list"],
)  # fmt: skip
def test_out(out: Any, error: type[Exception], parts: Any, no_kernels: None) -> None:
    with pytest.raises(error) as caught:
        conv_into(out)
    assert_says(str(caught.value), "out", *parts)


@pytest.mark.parametrize("argument", ["x", "weight", "bias"])
@pytest.mark.parametrize("form", ["contiguous", "swapped"])
def test_out_shares_memory(argument: str, form: str, no_kernels: None) -> None:
    # Also where the input is copied on the way: its owner would still see it overwritten.
    arrays = {"x": zeros(2, 3, 6, 5), "weight": zeros(4, 3, 3, 3), "bias": zeros(4)}
    memory = zeros(300)
    size = arrays[argument].size
    out = memory[:96].reshape(2, 4, 4, 3)
    shared = memory[96 - size // 2 : 96 - size // 2 + size]
    if form == "swapped":
        shared = shared.view(">f8")
    arrays[argument] = shared.reshape(arrays[argument].shape)
    with pytest.raises(ValueError, match="out shares memory"):
        cnnx.conv2d(**arrays, out=out)


def test_out_beside_an_input_is_fine(backend: str) -> None:
    # Interleaved in one buffer, and yet not one byte in common.
    memory = np.ones(90 * 2 + 96)
    x, out = memory[:180].reshape(2, 3, 6, 5), memory[180:].reshape(2, 4, 4, 3)
    assert cnnx.conv2d(x, np.ones((4, 3, 3, 3)), out=out) is out
    assert_array_equal(out, np.full((2, 4, 4, 3), 27))
    assert_array_equal(x, np.ones((2, 3, 6, 5)))


def test_refused_out_is_untouched(backend: str) -> None:
    out = np.full((2, 4, 4, 4), 7.0)
    with pytest.raises(ValueError, match="out has shape"):
        conv_into(out)
    assert_array_equal(out, np.full((2, 4, 4, 4), 7.0))


# ---------------------------------------------------------------------------- the empty batch


@each_call
def test_empty_batch(call: Call, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    full = call(call.arrays(dtype))
    arrays = {
        name: array[:0] if name in BATCHED else array for name, array in call.arrays(dtype).items()
    }
    options = dict(call.options)
    if "indices" in options:
        options["indices"] = options["indices"][:0]
    if "input_shape" in options:
        options["input_shape"] = (0, *options["input_shape"][1:])
    monkeypatch.setattr(_dispatch, "_active", NoKernels())
    empty = Call(call.name, call.shapes, options)(arrays)
    for position, (result, known) in enumerate(zip(empty, full, strict=True)):
        assert result.dtype == known.dtype
        if call.name.endswith("_backward") and position > 0:
            assert_array_equal(result, np.zeros(known.shape))  # a parameter's: nothing was summed
        else:
            assert result.shape == (0, *known.shape[1:])


def test_empty_batch_of_the_classroom(no_kernels: None) -> None:
    out, cache = cnnx.conv_forward(zeros(0, 3, 5, 5), zeros(4, 3, 3, 3), zeros(4), 1, 1)
    assert out.shape == (0, 4, 5, 5)
    grad_x, grad_weight, grad_bias = cnnx.conv_backward(out, cache)
    assert grad_x.shape == (0, 3, 5, 5)
    assert_array_equal(grad_weight, zeros(4, 3, 3, 3))
    assert_array_equal(grad_bias, zeros(4))


def test_empty_batch_into_out(no_kernels: None) -> None:
    out = zeros(0, 4, 3, 3)
    assert cnnx.conv2d(zeros(0, 3, 5, 5), zeros(4, 3, 3, 3), out=out) is out
