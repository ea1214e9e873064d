"""Nodes that ask what cannot be, or what cnnx has not: each is one error that says which."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

import cnnx  # noqa: E402
from tests.onnx_models import model_of  # noqa: E402

node, helper, FLOAT = onnx.helper.make_node, onnx.helper, onnx.TensorProto.FLOAT


def ints(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


def window(op: str, **attributes: Any) -> Any:
    return node(op, ["x"], ["y"], kernel_shape=[2, 2], **attributes)


TWO_NUMBERS = helper.make_tensor("v", FLOAT, [2], [1.0, 2.0])
KERNEL = np.ones((1, 1, 3, 3), np.float32)
# The node, constants, and what the error says. x has the shape (1, 1, 4, 4).
NODES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "split of no axis": (node("Split", ["x"], ["y"], axis=7), {}, "axis is 7, of 4 dimensions"),
    "split into too much": (
        node("Split", ["x", "n"], ["y", "z"], axis=2),
        {"n": ints(3, 3)},
        r"parts of \[3, 3\] do not make 4",
    ),
    "flatten at no axis": (node("Flatten", ["x"], ["y"], axis=9), {}, "axis is 9, of 4 dimensions"),
    "a text": (node("Constant", [], ["y"], value_string="a"), {}, "numbers only"),
    "filled with two numbers": (
        node("ConstantOfShape", ["n"], ["y"], value=TWO_NUMBERS),
        {"n": ints(3)},
        r"value has shape \(2,\), expected one number",
    ),
    "dropout that drops": (
        node("Dropout", ["x", "r", "t"], ["y"]),
        {"r": np.array(0.5, np.float32), "t": np.array(True)},
        "no dropout in training mode",
    ),
    "cast to text": (node("Cast", ["x"], ["y"], to=8), {}, "data type 8"),
    "a size kept of no axis": (
        node("Reshape", ["x", "n"], ["y"]), {"n": ints(0, 0, 0, 0, 0)}, "cannot keep sizes",
    ),
    "joined along nothing": (node("Concat", ["x", "x"], ["y"]), {}, "axis is missing"),
    "slice of unequal ends": (
        node("Slice", ["x", "a", "b"], ["y"]), {"a": ints(0), "b": ints(1, 2)}, "do not fit",
    ),
    "slice by steps of 0": (
        node("Slice", ["x", "a", "b", "c", "d"], ["y"]),
        {"a": ints(0), "b": ints(1), "c": ints(0), "d": ints(0)},
        "do not fit",
    ),
    "slice of five axes": (
        node("Slice", ["x", "a", "b"], ["y"]),
        {"a": ints(*[0] * 5), "b": ints(*[1] * 5)},
        "of 4 dimensions",
    ),
    "gather beyond the end": (
        node("Gather", ["x", "n"], ["y"], axis=2), {"n": ints(4)}, "the indices do not fit",
    ),
    "a range in steps of 0": (
        node("Range", ["a", "b", "c"], ["y"]),
        {"a": np.array(0), "b": np.array(5), "c": np.array(0)},
        "delta is 0",
    ),
    "padding of another mode": (
        node("Pad", ["x", "n"], ["y"], mode="odd"), {"n": ints(*[0] * 8)}, "mode is 'odd'",
    ),
    "padding by itself of another kind": (window("MaxPool", auto_pad="SAME"), {}, "auto_pad is"),
    "a mean with gaps": (
        window("AveragePool", dilations=[2, 2]), {}, "no average pooling with dilations",
    ),
    "a kernel of another size": (
        node("Conv", ["x", "k"], ["y"], kernel_shape=[5, 5]), {"k": KERNEL}, "kernel_shape is",
    ),
    "no channels side by side": (node("LRN", ["x"], ["y"], size=0), {}, "size is 0"),
    "a product that does not fit": (
        node("Gemm", ["a", "b"], ["y"]),
        {"a": np.ones((2, 3), np.float32), "b": np.ones((4, 2), np.float32)},
        r"\(2, 3\)",
    ),
    "whole numbers over 0": (
        node("Div", ["a", "b"], ["y"]), {"a": ints(4), "b": ints(0)}, "division of integers by 0",
    ),
    "resized by 0": (
        node("Resize", ["x", "", "s"], ["y"]),
        {"s": np.array([1, 1, 0, 1], np.float32)},
        "scales are",
    ),
    "resized by two numbers": (
        node("Resize", ["x", "", "s"], ["y"]), {"s": np.ones(2, np.float32)}, "4 scales are given",
    ),
    "resized to nothing": (
        node("Resize", ["x", "", "s"], ["y"]),
        {"s": np.array([1, 1, 0.1, 1], np.float32)},
        "the output would have the shape",
    ),
    "resized by another rule": (
        node("Resize", ["x", "", "s"], ["y"], coordinate_transformation_mode="odd"),
        {"s": np.array([1, 1, 2, 2], np.float32)},
        "odd",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NODES)
def test_a_node_that_cannot_run(name: str) -> None:
    asked, constants, words = NODES[name]
    with pytest.raises((ValueError, NotImplementedError), match=words):
        # Some of it is seen when the model is read, some by the numbers that come.
        cnnx.onnx.load(model_of([asked], {"x": (1, 1, 4, 4)}, ["y"], constants))(
            np.ones((1, 1, 4, 4), np.float32)
        )


def forged(change: Any, opset: int = 17) -> bytes:
    """A model of one Add, changed in its parts."""
    data = model_of(
        [node("Add", ["x", "c"], ["y"])], {"x": (3,)}, ["y"], {"c": np.ones(3, np.float32)}, opset
    )
    proto = onnx.load_from_string(data)
    change(proto.graph)
    return proto.SerializeToString()


def sparse(graph: Any) -> None:
    values = helper.make_tensor("s", FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", onnx.TensorProto.INT64, [1], [0])
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3]))


def of_texts(graph: Any) -> None:
    graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.STRING


FORGED: dict[str, tuple[Any, str]] = {
    "a sparse array": (sparse, "sparse initializers"),
    "a constant twice": (lambda g: g.initializer.append(g.initializer[0]), "is there twice"),
    "an input twice": (lambda g: g.input.append(g.input[0]), "two inputs of one name"),
    "no outputs": (lambda g: g.output.pop(), "no outputs"),
    "an input of texts": (of_texts, "of a type that cnnx computes with"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_graph_that_is_refused(name: str) -> None:
    change, words = FORGED[name]
    with pytest.raises((ValueError, NotImplementedError), match=words):
        cnnx.onnx.load(forged(change))


@pytest.mark.parametrize("opset", [1, 99])
def test_operator_sets_too_old_and_too_new(opset: int) -> None:
    with pytest.raises(ValueError, match=f"operator set is {opset}, expected"):
        cnnx.onnx.load(forged(lambda graph: None, opset))


def test_a_number_of_gradients_that_does_not_fit() -> None:
    model = cnnx.onnx.load(forged(lambda graph: None))
    y = model(np.zeros(3, np.float32))
    np.testing.assert_array_equal(y, np.ones(3))
    with pytest.raises(TypeError, match="2 gradients are given, expected 1"):
        model.backward((y, y))
