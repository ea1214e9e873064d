"""The layer of a model: gradients, the frozen form, inputs and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

import cnnx  # noqa: E402
from tests.onnx_models import model_of, onnxruntime_of  # noqa: E402

node = onnx.helper.make_node
RNG = np.random.default_rng(5)


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


KINDS = (
    *("Relu", "Sigmoid", "Tanh", "HardSwish", "Add", "Sub", "Mul", "Sum", "Clip", "Identity"),
    *("conv", "norm", "scale", "shift", "gate", "swish", "concat", "split", "views"),
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


@pytest.mark.parametrize("seed", range(60))
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
