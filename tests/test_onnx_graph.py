"""The layer of a model: gradients, the frozen form, inputs and errors."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

import cnnx  # noqa: E402
from cnnx.onnx import _graph  # noqa: E402
from tests.onnx_models import model_of, onnxruntime_of  # noqa: E402

node = onnx.helper.make_node
RNG = np.random.default_rng(5)
ONE = np.ones((1, 1, 1, 1), np.float32)


def array(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def one(op: str, constants: dict[str, Any] | None = None, **attributes: Any) -> Any:
    """A node of one operator between x and y, with constants as its other inputs."""
    constants = constants or {}
    names = [name if value is not None else "" for name, value in constants.items()]
    kept = {name: np.asarray(value) for name, value in constants.items() if value is not None}
    return [node(op, ["x", *names], ["y"], **attributes)], kept


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


IMAGE = (2, 4, 5, 6)
# Each operator that has a gradient, in the forms that take another way through the code.
NODES = {
    "conv": one("Conv", {"w": array(6, 2, 3, 3), "b": array(6)}, group=2, pads=[1, 0, 2, 1]),
    "scale and shift before a conv of groups": (
        [
            node("Conv", ["x", "v"], ["c"]),
            node("Sigmoid", ["c"], ["r"]),
            node("Mul", ["r", "s"], ["m"]),
            node("Add", ["m", "t"], ["a"]),
            node("Conv", ["a", "w", "b"], ["y"], group=2),
        ],
        {
            **{"v": array(4, 4, 1, 1), "s": array(4, 1, 1), "t": array(4, 1, 1)},
            **{"w": array(6, 2, 2, 1), "b": array(6)},
        },
    ),
    "scale and shift before a conv with padding": (
        [
            node("Conv", ["x", "v"], ["c"]),
            node("Sigmoid", ["c"], ["r"]),
            node("Add", ["r", "t"], ["a"]),
            node("Conv", ["a", "w"], ["y"], pads=[0, 0, 0, 1]),
        ],
        {"v": array(4, 4, 1, 1), "t": array(4, 1, 1), "w": array(3, 4, 1, 1)},
    ),
    "conv same upper": one("Conv", {"w": array(3, 4, 2, 3)}, auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv same lower": one("Conv", {"w": array(3, 4, 2, 2)}, auto_pad="SAME_LOWER"),
    "conv transpose": one("ConvTranspose", {"w": array(4, 3, 3, 3)}, strides=[2, 2], pads=[1] * 4),
    "conv transpose shape": one(
        "ConvTranspose", {"w": array(4, 3, 3, 3)}, strides=[2, 2], output_shape=[10, 12]
    ),
    "max pool": one("MaxPool", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]),
    "average pool": one("AveragePool", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]),
    "average pool counted": one(
        "AveragePool", kernel_shape=[2, 2], pads=[1, 1, 0, 0], count_include_pad=1
    ),
    "global average pool": one("GlobalAveragePool"),
    "batch normalization": one(
        "BatchNormalization",
        {"s": array(4), "b": array(4), "mean": array(4), "var": np.abs(array(4)) + 1},
    ),
    "lrn": one("LRN", size=3, alpha=0.5, beta=0.6, bias=1.5),
    "lrn even": one("LRN", size=4, alpha=0.5),
    "lrn of more than the channels": one("LRN", size=9, alpha=0.5),
    "prelu": one("PRelu", {"slope": array(4, 1, 1)}),
    "leaky relu": one("LeakyRelu", alpha=0.3),
    "relu": one("Relu"),
    "sigmoid": one("Sigmoid"),
    "tanh": one("Tanh"),
    "hard sigmoid": one("HardSigmoid", alpha=0.3, beta=0.4),
    "hard swish": one("HardSwish"),
    "clip": one("Clip", {"low": np.float32(-0.4), "high": np.float32(0.7)}),
    "clip above": one("Clip", {"low": None, "high": np.float32(0.7)}),
    "softmax": one("Softmax", axis=1),
    "log softmax": one("LogSoftmax", axis=3),
    "add": one("Add", {"c": array(4, 1, 1)}),
    "sub": one("Sub", {"c": array(6)}),
    "mul": one("Mul", {"c": array(4, 1, 1)}),
    "div": one("Div", {"c": array(5, 1) + 3}),
    "pow": one("Pow", {"c": np.float32(3.0)}),
    "square": one("Pow", {"c": np.float32(2.0)}),
    "exp": one("Exp"),
    "neg": one("Neg"),
    "abs": one("Abs"),
    "flatten": one("Flatten", axis=2),
    "reshape": one("Reshape", {"shape": ints(0, -1, 3)}),
    "transpose": one("Transpose", perm=[2, 0, 3, 1]),
    "transpose all": one("Transpose"),
    "unsqueeze": one("Unsqueeze", {"axes": ints(0, -1)}),
    "slice": one("Slice", {"s": ints(4, 0), "e": ints(-100, 3), "a": ints(2, 3), "t": ints(-2, 2)}),
    "gather": one("Gather", {"i": ints(3, 0, 3, -1)}, axis=1),
    "pad": one("Pad", {"p": ints(0, 0, 1, 2, 0, 1, 0, -1)}),
    "reduce mean": one("ReduceMean", axes=[1, -1], keepdims=0),
    "reduce mean all": one("ReduceMean"),
    "resize nearest": one(
        "Resize", {"r": None, "s": np.array([1, 1, 1.7, 0.6], np.float32)}, mode="nearest"
    ),
    "resize twice": one(
        "Resize",
        {"r": None, "s": np.array([1, 1, 2, 2], np.float32)},
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    "resize linear": one("Resize", {"r": None, "s": None, "z": ints(2, 4, 8, 7)}, mode="linear"),
    "resize cubic": one("Resize", {"r": None, "s": None, "z": ints(2, 4, 8, 3)}, mode="cubic"),
    "expand": one("Expand", {"shape": ints(3, 1, 1, 1, 1)}),
    "cast": one("Cast", to=11),
    "identity": one("Identity"),
    "dropout": one("Dropout"),
    "concat": ([node("Relu", ["x"], ["r"]), node("Concat", ["x", "r", "x"], ["y"], axis=1)], {}),
    "split": (
        [
            node("Split", ["x"], ["a", "b"], axis=1),
            node("Mul", ["a", "b"], ["y"]),
        ],
        {},
    ),
    "split unused": (
        [node("Split", ["x", "n"], ["a", "b"], axis=3), node("Tanh", ["b"], ["y"])],
        {"n": ints(4, 2)},
    ),
    "squeeze": (
        [node("GlobalAveragePool", ["x"], ["g"]), node("Squeeze", ["g", "a"], ["y"])],
        {"a": ints(-1, 2)},
    ),
    "gemm": (
        [node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "w", "b"], ["y"], transB=1)],
        {"w": array(3, 120), "b": array(3)},
    ),
    "gemm scaled": (
        [
            node("Flatten", ["x"], ["f"]),
            node("Gemm", ["f", "w", "b"], ["y"], transA=1, alpha=0.5, beta=2.0),
        ],
        {"w": array(2, 3), "b": array(120, 1)},
    ),
    "matmul": ([node("MatMul", ["x", "w"], ["y"])], {"w": array(6, 3)}),
    "matmul from the left": ([node("MatMul", ["w", "x"], ["y"])], {"w": array(3, 5)}),
    "one array twice": (
        [
            node("Sigmoid", ["x"], ["s"]),
            node("Mul", ["x", "s"], ["m"]),
            node("Add", ["m", "x"], ["t"]),
            node("Sum", ["t", "s", "t"], ["y"]),
        ],
        {},
    ),
}


def graph_of(name: str) -> tuple[Any, bytes]:
    nodes, constants = NODES[name]
    opset = 14 if "reduce" in name else 17
    data = model_of(nodes, {"x": IMAGE}, ["y"], constants, opset=opset)
    return cnnx.onnx.load(data), data


def image(dtype: str = "float32") -> np.ndarray:
    # Away from kinks and ties: the gradients of a clip or a maximum are checked elsewhere there.
    return np.random.default_rng(9).permutation(240).reshape(IMAGE).astype(dtype) / 60 - 1.997


@pytest.mark.parametrize("name", NODES)
def test_gradient(name):
    graph, _ = graph_of(name)
    assert cnnx.gradcheck(graph.astype("float64"), image("float64"))


# ONNX Runtime takes odd sizes of LRN alone, and the model says that what it casts is float32.
@pytest.mark.parametrize("name", sorted(NODES.keys() - {"cast", "lrn even"}))
def test_forward_and_frozen_forward_agree_with_onnxruntime(name):
    pytest.importorskip("onnxruntime")
    graph, data = graph_of(name)
    x = image()
    want = onnxruntime_of(data, x)
    # Sums of up to 120 products of numbers about 2, in float32.
    close = {"rtol": 1e-5, "atol": 2e-5}
    np.testing.assert_allclose(graph(x), want, **close)
    graph.freeze()
    np.testing.assert_allclose(graph(x), want, **close)  # makes the plan
    np.testing.assert_allclose(graph(x), want, **close)  # runs it


def test_numbers_that_become_sizes_are_looked_at_on_every_call():
    nodes = [node("Cast", ["n"], ["sizes"], to=7), node("Reshape", ["x", "sizes"], ["y"])]
    graph = cnnx.onnx.load(model_of(nodes, {"x": (2, 6), "n": (2,)}, ["y"])).freeze()
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    for sizes in ((3, 4), (12, 1), (-1, 2)):
        y = graph(x, np.array(sizes, np.float32))
        np.testing.assert_array_equal(y, x.reshape(sizes))


def typed(op: str, out: Any, *arrays: np.ndarray, last: str = "") -> Any:
    """A graph of one operator, or of two, and the arrays of any type that it takes."""
    kinds = [onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for array in arrays]
    values = [
        onnx.helper.make_tensor_value_info(f"x{number}", kind, list(array.shape))
        for number, (kind, array) in enumerate(zip(kinds, arrays, strict=True))
    ]
    nodes = [node(op, [value.name for value in values], ["a" if last else "y"])]
    nodes += [node(last, ["a"], ["y"])] if last else []
    y = onnx.helper.make_tensor_value_info("y", kinds[0], out)
    graph = onnx.helper.make_graph(nodes, "test", values, [y])
    sets = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=sets, ir_version=8)
    return cnnx.onnx.load(model), arrays


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_a_sum_of_integers_with_relu_can_be_frozen(dtype):
    x = np.arange(-6, 6, dtype=dtype)
    graph, arrays = typed("Add", (12,), x, x, last="Relu")
    for found in (graph(*arrays), graph.freeze()(*arrays), graph(*arrays)):
        np.testing.assert_array_equal(found, np.maximum(x + x, 0), strict=True)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8"])
def test_a_division_of_integers_drops_the_fraction(dtype):
    kind = np.iinfo(dtype)
    pairs = [(a, b) for a in (kind.min, kind.max, 7, 6) for b in (1, 2, 3)]
    pairs += [(-7, 2), (7, -2), (-7, -2), (kind.min, -2)] if kind.min else []
    x, y = np.array(pairs, dtype).T
    graph, arrays = typed("Div", None, np.ascontiguousarray(x), np.ascontiguousarray(y))
    want = [abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1) for a, b in pairs]  # Python's ints
    np.testing.assert_array_equal(graph(*arrays), np.array(want, dtype), strict=True)


@pytest.mark.parametrize("op", ["HardSwish", "Sigmoid", "Erf"])
def test_an_activation_of_integers_is_one_clear_error(op):
    graph, arrays = typed(op, (3,), ints(1, 2, 3))
    with pytest.raises(ValueError, match=f"{op} 'y': x is an array of int64"):
        graph(*arrays)


def test_a_square_has_the_dimensions_of_both():
    graph, arrays = typed("Pow", (1, 3), array(3), np.full((1, 1), 2, np.float32))
    assert graph(*arrays).shape == (1, 3)


EMPTY = {
    "flatten": one("Flatten"),
    "flatten from the back": one("Flatten", axis=-1),
    "softmax of old sets": one("Softmax", axis=1),
    "log softmax of old sets": one("LogSoftmax", axis=2),
    "normalisation of rows": one("BatchNormalization", {name: np.ones(4, "f") for name in "sbmv"}),
    "resize": one("Resize", {"r": None, "s": np.float32([1, 1, 2, 2.6])}, mode="linear"),
    "softmax along the images": one("Softmax", axis=0),
    "mean of rows": one("ReduceMean", axes=[1]),
}


@pytest.mark.parametrize("name", EMPTY)
def test_no_images_keep_their_other_sizes(name):
    nodes, constants = EMPTY[name]
    shape = (4, 5) if "rows" in name else (4, 5, 6)
    graph = cnnx.onnx.load(model_of(nodes, {"x": ("N", *shape)}, ["y"], constants, opset=11))
    for _ in range(2):
        want = graph(np.ones((2, *shape), np.float32)).shape
        y = graph(np.zeros((0, *shape), np.float32))
        assert y.shape == (0, *want[1:])
        if not graph.frozen:
            assert graph.backward(y).shape == (0, *shape)
        graph.freeze()


ZEROS = {
    "gemm of no images": (*one("Gemm", {"w": array(5, 3), "b": array(3)}), (0, 5)),
    "gemm without columns": (*one("Gemm", {"w": array(5, 0)}), (2, 5)),
    "gemm of nothing": (*one("Gemm", {"w": array(0, 3), "b": array(3)}), (2, 0)),
    "stack of nothing": (*one("MatMul", {"w": array(0, 3)}), (2, 4, 0)),
    "softmax along none": (*one("Softmax", axis=0), (0, 5)),
    "mean of none": (*one("ReduceMean", axes=[0]), (0, 5)),
    "mean of all none": (*one("ReduceMean", keepdims=0), (3, 0)),
    "resize of none": (*one("Resize", {"r": None, "s": np.float32([1, 1, 2, 3])}), (0, 2, 3, 4)),
    "resize to sizes": (
        *one("Resize", {"r": None, "s": None, "z": ints(0, 2, 9, 2)}, mode="linear"),
        (0, 2, 3, 4),
    ),
}


@pytest.mark.parametrize("name", ZEROS)
def test_arrays_of_no_numbers_are_as_onnxruntime_has_them(name):
    pytest.importorskip("onnxruntime")
    nodes, constants, shape = ZEROS[name]
    file = model_of(nodes, {"x": [None] * len(shape)}, ["y"], constants)
    x = np.zeros(shape, np.float32)
    want = onnxruntime_of(file, x)
    graph = cnnx.onnx.load(file)
    for _ in range(2):
        for _ in range(2):
            np.testing.assert_array_equal(graph(x), want)  # its shape too, before broadcasting
            assert graph(x).shape == want.shape
        graph.freeze()


@pytest.mark.parametrize("scale", [2.6, 1.3, 0.7, 2.3, 3.7])
def test_the_size_of_a_resized_image_is_onnxruntimes(scale):
    """In float32, 2.6 is less than 2.6, and yet 5 times that is 13."""
    pytest.importorskip("onnxruntime")
    nodes, constants = one("Resize", {"r": None, "s": np.float32([1, 1, 1, scale])})
    nodes[0].attribute.append(
        onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric")
    )
    nodes[0].attribute.append(onnx.helper.make_attribute("nearest_mode", "floor"))
    file = model_of(nodes, {"x": [1, 1, 1, None]}, ["y"], constants)
    graph = cnnx.onnx.load(file)
    for size in (
        5,
        10,
        15,
        20,
        25,
        26,
        50,
        99,
    ):  # where the size stays, ONNX Runtime returns x, whatever the scale
        x = np.arange(size, dtype=np.float32).reshape(1, 1, 1, size)
        want = onnxruntime_of(file, x)
        assert graph(x).shape == want.shape
        np.testing.assert_array_equal(graph(x), want)


def test_another_float_type_is_one_clear_error():
    nodes, constants = one("Gemm", {"w": array(4, 3)})
    graph = cnnx.onnx.load(model_of(nodes, {"x": (None, 4)}, ["y"], constants))
    x = np.zeros((2, 4))
    message = r"x is an array of float64, expected float32; cast it: x.astype\(np.float32\)"
    for _ in range(2):
        with pytest.raises(TypeError, match=message):
            graph(x)
        graph.freeze()
    assert cnnx.onnx.load(model_of(nodes, {"x": (None, 4)}, ["y"], constants)).astype("float64")(
        x
    ).dtype == np.dtype("float64")
    pool = one("MaxPool", kernel_shape=[2, 2])[0]
    without = cnnx.onnx.load(model_of(pool, {"x": IMAGE}, ["y"]))
    assert without(np.zeros(IMAGE)).dtype == np.dtype("float64")


def normal(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Batch normalisation by the batch's own statistics, without a shift."""
    axes = (0, 2, 3)
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5) * scale


# What takes an activation along, in the forms that another way than the kernel's computes: the
# attributes, the shapes of x and of the constants, and the formula.
STORED = {
    "gemm alpha": ("Gemm", {"alpha": 0.5}, (3, 4), [(4, 5)], lambda x, w: 0.5 * (x @ w)),
    "gemm beta": ("Gemm", {"beta": 2.0}, (3, 4), [(4, 5), (5,)], lambda x, w, b: x @ w + 2 * b),
    "gemm row": ("Gemm", {}, (3, 4), [(4, 5), (1, 5)], lambda x, w, b: x @ w + b),
    "gemm table": ("Gemm", {}, (3, 4), [(4, 5), (3, 5)], lambda x, w, b: x @ w + b),
    "matmul stack": ("MatMul", {}, (2, 3, 4), [(2, 4, 5)], lambda x, w: x @ w),
    "matmul vector": ("MatMul", {}, (4,), [(4, 5)], lambda x, w: x @ w),
    "norm training": (
        *("BatchNormalization", {"training_mode": 1}, (2, 3, 4, 4), [(3,)] * 4),
        lambda x, scale, bias, *_: normal(x, scale.reshape(3, 1, 1)) + bias.reshape(3, 1, 1),
    ),
}


@pytest.mark.parametrize("name", STORED)
def test_an_activation_is_not_lost_where_the_kernel_does_not_store(name):
    op, attributes, shape, shapes, formula = STORED[name]
    rng = np.random.default_rng(3)
    x, *constants = (rng.standard_normal(s).astype(np.float32) for s in (shape, *shapes))
    given = {f"c{number}": constant for number, constant in enumerate(constants)}
    kinds = {"Relu": lambda y: np.maximum(y, 0), "Sigmoid": lambda y: 1 / (1 + np.exp(-y))}
    for last in ("Relu",) if op == "BatchNormalization" else kinds:
        nodes = [node(op, ["x", *given], ["a"], **attributes), node(last, ["a"], ["y"])]
        graph = cnnx.onnx.load(model_of(nodes, {"x": shape}, ["y"], given)).freeze()
        want = kinds[last](formula(x.astype(np.float64), *constants))
        for _ in range(2):  # the call that makes the plan, and one by it
            np.testing.assert_allclose(graph(x), want, rtol=1e-5, atol=1e-5)  # of sums of 4 and 32


def test_a_row_added_to_a_product_with_a_vector_is_not_lost():
    w, b, x = array(4, 5), array(5), array(4)
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Add", ["a", "b"], ["y"])]
    graph = cnnx.onnx.load(model_of(nodes, {"x": (4,)}, ["y"], {"w": w, "b": b})).freeze()
    np.testing.assert_allclose(graph(x), x @ w + b, rtol=1e-5, atol=1e-5)


def test_a_row_may_be_a_view():
    w, c, x = array(3, 4), array(8), array(2, 3)
    constants = {"w": w, "s": ints(-1), "e": ints(-(2**31)), "a": ints(0), "d": ints(-2)}
    nodes = [node("Slice", ["c", "s", "e", "a", "d"], ["row"])]
    nodes += [node("Gemm", ["x", "w", "row"], ["y"])]
    graph = cnnx.onnx.load(model_of(nodes, {"x": (2, 3), "c": (8,)}, ["y"], constants))
    for found in (graph(x, c), graph.freeze()(x, c), graph(x, c)):
        np.testing.assert_allclose(found, x @ w + c[::-2], rtol=1e-5, atol=1e-5)


def test_a_bias_that_comes_as_an_input_is_looked_at_on_every_call():
    nodes = [node("Conv", ["x", "w", "b"], ["y"])]
    shapes = {"x": IMAGE, "b": ("N",)}
    graph = cnnx.onnx.load(model_of(nodes, shapes, ["y"], {"w": array(6, 4, 1, 1)})).freeze()
    x, bias = image(), array(6)
    for _ in range(2):
        want = graph(x, 0 * bias) + bias[:, None, None]
        np.testing.assert_allclose(graph(x, bias), want, rtol=0, atol=1e-6)  # one rounding
    with pytest.raises(ValueError, match="bias has shape"):
        graph(x, bias[:3])


KINDS = (
    *("Relu", "Sigmoid", "Tanh", "HardSwish", "Add", "Sub", "Mul", "Sum", "Clip", "Identity"),
    *("conv", "norm", "scale", "shift", "gate", "swish", "concat", "split", "views"),
    *("cut", "excited", "larger", "pool", "turned"),
)


def random_graph(rng: np.random.Generator) -> tuple[bytes, int]:
    """A model of random nodes between arrays of one shape, with more than one taker each."""
    names, nodes, constants, n = ["x"], [], {}, int(rng.integers(1, 3))
    for i in range(int(rng.integers(4, 16))):
        pick = lambda: names[-1 - int(rng.integers(min(3, len(names))))]  # noqa: E731
        y, a, b = f"t{i}", pick(), pick()
        kind = rng.choice(KINDS)
        channels = rng.uniform(0.5, 1.5, (4, 1, 1)).astype(np.float32)
        if kind in ("Add", "Sub", "Mul"):
            nodes.append(node(kind, [a, b], [y]))
        elif kind == "Sum":
            nodes.append(node("Sum", [a, b, a], [y]))
        elif kind == "Clip":
            constants[f"low{i}"], constants[f"high{i}"] = np.float32(0), np.float32(6)
            nodes.append(node("Clip", [a, f"low{i}", f"high{i}"], [y]))
        elif kind == "conv":
            constants[f"w{i}"] = rng.standard_normal((4, 4, 3, 3)).astype(np.float32) / 4
            nodes.append(node("Conv", [a, f"w{i}"], [y], pads=[1] * 4))
        elif kind == "norm":
            names4 = [f"{part}{i}" for part in ("scale", "bias", "mean", "var")]
            constants.update({name: channels.ravel() for name in names4})
            nodes.append(node("BatchNormalization", [a, *names4], [y]))
        elif kind in ("scale", "shift"):
            constants[f"c{i}"] = channels
            nodes.append(node({"scale": "Mul", "shift": "Add"}[kind], [f"c{i}", a], [y]))
        elif kind == "gate":
            nodes += [node("Sigmoid", [a], [f"g{i}"]), node("Mul", [f"g{i}", a], [y])]
        elif kind == "swish":
            values = {f"three{i}": 3, f"zero{i}": 0, f"six{i}": 6, f"sixth{i}": 6}
            constants.update({name: np.float32(value) for name, value in values.items()})
            three, zero, six, sixth = values
            nodes += [
                node("Add", [a, three], [f"a{i}"]),
                node("Clip", [f"a{i}", zero, six], [f"b{i}"]),
                node("Mul", [a, f"b{i}"], [f"d{i}"]),
                node("Div", [f"d{i}", sixth], [y]),
            ]
        elif kind == "concat":  # of halves, so that the shape stays
            constants[f"n{i}"] = ints(2, 2)
            nodes += [
                node("Split", [a, f"n{i}"], [f"a{i}", f"b{i}"], axis=1),
                node("Neg", [f"b{i}"], [f"d{i}"]),
                node("Concat", [f"d{i}", f"a{i}"], [y], axis=1),
            ]
        elif kind == "cut":
            constants[f"w{i}"] = rng.standard_normal((4, 4, 1, 1)).astype(np.float32)
            nodes += [
                node("Conv", [a, f"w{i}"], [f"a{i}"]),
                node("HardSigmoid", [f"a{i}"], [y], alpha=0.3, beta=0.4),
            ]
        elif kind == "excited":
            nodes += [
                node("GlobalAveragePool", [a], [f"a{i}"]),
                node("Tanh", [f"a{i}"], [f"b{i}"]),
                node("Mul", rng.permutation([b, f"b{i}"]).tolist(), [y]),
            ]
        elif kind == "larger":  # and back to the size it was
            constants[f"n{i}"] = np.array([1, 1, 2, 3], np.float32)
            attributes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            nodes += [
                node("Resize", [a, "", f"n{i}"], [f"a{i}"], **attributes),
                node("AveragePool", [f"a{i}"], [y], kernel_shape=[2, 3], strides=[2, 3]),
            ]
        elif kind == "pool":
            constants[f"n{i}"] = ints(4, 4)
            nodes += [
                node("MaxPool", [a], [f"a{i}"], kernel_shape=[3, 3], pads=[1] * 4),
                node("Concat", [f"a{i}", b], [f"b{i}"], axis=1),
                node("MaxPool", [f"b{i}"], [f"d{i}"], kernel_shape=[1, 1]),
                node("Split", [f"d{i}", f"n{i}"], [y, f"e{i}"], axis=1),
            ]
        elif kind == "turned":  # an elementwise result lies like its input, until it is placed
            nodes += [
                node("Transpose", [a], [f"a{i}"], perm=[0, 1, 3, 2]),
                node("Abs", [f"a{i}"], [f"b{i}"]),
                node("Transpose", [f"b{i}"], [f"d{i}"], perm=[0, 1, 3, 2]),
                node("MaxPool", [f"d{i}"], [y], kernel_shape=[3, 3], pads=[1] * 4),
            ]
        elif kind == "split":
            constants[f"w{i}"] = rng.standard_normal((4, 8, 1, 1)).astype(np.float32) / 3
            nodes += [
                node("Concat", [a, b], [f"both{i}"], axis=1),
                node("Conv", [f"both{i}", f"w{i}"], [y]),
            ]
        elif kind == "views":
            constants[f"s{i}"] = ints(0, 4, 3, 3)
            nodes += [
                node("Transpose", [a], [f"a{i}"], perm=[0, 1, 3, 2]),
                node("Reshape", [f"a{i}", f"s{i}"], [y]),
            ]
        else:
            nodes.append(node(kind, [a], [y]))
        names.append(y)
    outputs = list(dict.fromkeys([names[-1], names[len(names) // 2]]))
    return model_of(nodes, {"x": ("N", 4, 3, 3)}, outputs, constants), n


@pytest.mark.parametrize("seed", range(100))
def test_a_random_graph_is_the_same_when_it_is_frozen(seed):
    rng = np.random.default_rng(seed)
    data, n = random_graph(rng)
    graph, x = cnnx.onnx.load(data), rng.standard_normal((n, 4, 3, 3)).astype(np.float32)
    before = x.copy()
    want = graph(x)
    want = [y.copy() for y in (want if isinstance(want, tuple) else (want,))]
    graph.freeze()
    for _ in range(3):
        found = graph(x)
        found = found if isinstance(found, tuple) else (found,)
        for one, other in zip(found, want, strict=True):
            # Folded scales round otherwise, and up to 15 nodes multiply what that makes.
            assert np.abs(one - other).max() <= 1e-4 * max(1.0, np.abs(other).max())
        for one in found:
            if not np.shares_memory(one, x):  # a graph may return its input as it came
                one[...] = 99  # the caller's own
    np.testing.assert_array_equal(x, before)


def padded_conv(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """A 1x1 convolution of x with one more row above, two below, three columns left, four right."""
    return np.einsum("nchw,fc->nfhw", np.pad(x, ((0, 0), (0, 0), (1, 2), (3, 4))), w[:, :, 0, 0])


W, ROW = RNG.integers(-3, 4, (5, 4, 1, 1)).astype(np.float32), array(6)
SQUARE = array(6, 6)
# Nodes that a frozen graph makes one of, and what they are.
FUSED: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "padding before a convolution": (
        [node("Pad", ["x", "n"], ["p"]), node("Conv", ["p", "w"], ["y"], pads=[0, 1, 0, 1])],
        {"n": ints(0, 0, 1, 2, 0, 0, 2, 3), "w": W},
        lambda x: padded_conv(x, W),
    ),
    "a row after a product": (
        [node("MatMul", ["x", "w"], ["p"]), node("Add", ["p", "b"], ["y"])],
        {"w": SQUARE, "b": ROW},
        lambda x: x @ SQUARE + ROW,
    ),
    "hard sigmoid after a convolution": (
        [node("Conv", ["x", "w", "b"], ["c"]), node("HardSigmoid", ["c"], ["y"], alpha=0.1)],
        {"w": W, "b": ROW[:5]},
        lambda x: np.clip(
            0.1 * (np.einsum("nchw,fc->nfhw", x, W[:, :, 0, 0]) + ROW[:5, None, None]) + 0.5, 0, 1
        ),
    ),
    "hard swish, divided last": (
        [
            node("Add", ["x", "three"], ["s"]),
            node("Clip", ["s", "low", "high"], ["c"]),
            node("Mul", ["x", "c"], ["m"]),
            node("Div", ["m", "high"], ["y"]),
        ],
        {n: np.float32(v) for n, v in (("three", 3), ("low", 0), ("high", 6))},
        lambda x: x * np.clip(x + 3, 0, 6) / 6,
    ),
    "hard swish, divided first": (
        [
            node("Add", ["x", "three"], ["s"]),
            node("Clip", ["s", "low", "high"], ["c"]),
            node("Div", ["c", "high"], ["d"]),
            node("Mul", ["d", "x"], ["y"]),
        ],
        {n: np.float32(v) for n, v in (("three", 3), ("low", 0), ("high", 6))},
        lambda x: x * (np.clip(x + 3, 0, 6) / 6),
    ),
}


@pytest.mark.parametrize("name", FUSED)
def test_what_a_frozen_graph_fuses(name):
    nodes, constants, formula = FUSED[name]
    x = RNG.integers(-5, 6, (2, 6) if "product" in name else IMAGE).astype(np.float32)
    graph = cnnx.onnx.load(model_of(nodes, {"x": x.shape}, ["y"], constants)).freeze()
    want = formula(x.astype(np.float64))
    # Sums of six products of numbers up to 5; the others are exact or round twice.
    assert np.abs(graph(x) - want).max() <= 1e-6 * np.abs(want).max()


def test_weights_loaded_while_another_thread_fuses(monkeypatch):
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Mul", ["c", "two"], ["y"])]  # which become one
    constants = {"w": ONE, "two": 2 * ONE}
    graph = cnnx.onnx.load(model_of(nodes, {"x": ONE.shape}, ["y"], constants)).freeze()
    begun, loaded, fuse = threading.Event(), threading.Event(), _graph.fuse

    def slow(program: Any) -> Any:
        fused = fuse(program)
        begun.set()
        assert loaded.wait(60)
        return fused

    monkeypatch.setattr(_graph, "fuse", slow)
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(graph, ONE)
        assert begun.wait(60)
        graph.load_state_dict({"w": 7 * ONE})
        loaded.set()
        early.result()
    assert graph(ONE).item() == 14


@pytest.mark.parametrize(
    ("op", "constants"),
    [("Clip", {"low": np.float32(0), "high": np.float32(6)}), ("HardSigmoid", {}), ("Relu", {})],
)
def test_what_a_limit_stops_may_be_no_number(op, constants):
    nodes, kept = one(op, constants)
    graph = cnnx.onnx.load(model_of(nodes, {"x": (1, 3)}, ["y"], kept))
    graph(np.array([[-4, 1, -4]], np.float32))
    grad = graph.backward(np.array([[np.inf, np.inf, np.nan]], np.float32))
    assert grad.tolist() == [[0, np.inf, 0]]
