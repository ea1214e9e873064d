"""Damaged and forged models: one clear error, nothing read from elsewhere, no memory taken."""

from __future__ import annotations

import pickle
import resource
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

import cnnx  # noqa: E402
from tests.onnx_models import LIGHT, model_of  # noqa: E402

node, helper = onnx.helper.make_node, onnx.helper
X = {"x": (1, 1, 4, 4)}
HUGE = np.array([2**20, 2**20, 2**20], np.int64)


def proto(data: bytes) -> onnx.ModelProto:
    return onnx.load_from_string(data)


@pytest.fixture
def little_memory():
    """A limit on what the process may take: 3 GiB more than it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 3 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x00" * 100, b"\xff" * 1000, b"PK\x03\x04 zip"])
def test_what_is_no_model(data):
    with pytest.raises(ValueError, match="not an ONNX model"):
        cnnx.onnx.load(data)


@pytest.mark.parametrize("source", [None, 3, [], np.zeros(3)])
def test_what_is_no_source(source):
    with pytest.raises(TypeError, match="source is"):
        cnnx.onnx.load(source)


def test_a_missing_file_is_told_as_by_open(tmp_path):
    with pytest.raises(FileNotFoundError):
        cnnx.onnx.load(tmp_path / "no.onnx")


def test_all_unknown_operators_are_named_at_once():
    nodes = [
        node("Mystery", ["x"], ["a"]),
        node("Einsum", ["a"], ["b"], equation="ij->ji"),
        node("Mystery", ["b"], ["c"]),
        node("Relu", ["c"], ["d"], domain="com.example"),
        node("Relu", ["d"], ["y"]),
    ]
    with pytest.raises(NotImplementedError) as error:
        cnnx.onnx.load(model_of(nodes, X, ["y"]))
    text = str(error.value)
    assert "Einsum (1), Mystery (2), com.example.Relu (1)" in text


def test_control_flow_with_a_graph_inside_is_unknown():
    inner = proto(model_of([node("Relu", ["x"], ["y"])], X, ["y"])).graph
    nodes = [node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)]
    with pytest.raises(NotImplementedError, match=r"If \(1\)"):
        cnnx.onnx.load(model_of(nodes, X, ["y"]))


GRAPHS = {
    "a cycle": ([node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["a"])], "a", "cycle"),
    "a node that feeds itself": ([node("Add", ["x", "a"], ["a"])], "a", "cycle"),
    "an input from nowhere": ([node("Relu", ["nowhere"], ["y"])], "y", "nothing gives"),
    "an output from nowhere": ([node("Relu", ["x"], ["y"])], "z", "given by nothing"),
    "two givers": ([node("Relu", ["x"], ["y"]), node("Tanh", ["x"], ["y"])], "y", "already given"),
    "an input given again": ([node("Relu", ["x"], ["x"])], "x", "already given"),
    "no result": ([node("Relu", ["x"], [])], "x", "gives nothing"),
    "strides of one number": (
        [node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[1])],
        "y",
        "two integers",
    ),
    "negative pads": (
        [node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], pads=[-1, 0, 0, 0])],
        "y",
        "pads",
    ),
    "a string for a number": ([node("LeakyRelu", ["x"], ["y"], alpha="much")], "y", "LeakyRelu"),
    "a graph as attribute": (
        [node("Relu", ["x"], ["y"], body=helper.make_graph([], "g", [], []))],
        "y",
        "kind GRAPH",
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_that_cannot_run(name):
    nodes, output, words = GRAPHS[name]
    with pytest.raises((ValueError, NotImplementedError), match=words):
        cnnx.onnx.load(model_of(nodes, X, [output]))


GIGANTIC = {
    "ConstantOfShape": ([node("ConstantOfShape", ["n"], ["y"])], {"n": HUGE}),
    "Expand": ([node("Expand", ["x", "n"], ["y"])], {"n": np.array([2**31, 1, 4, 4])}),
    "Range": (
        [node("Range", ["a", "b", "c"], ["y"])],
        {"a": np.array(0), "b": np.array(2**62), "c": np.array(1)},
    ),
    "Pad": ([node("Pad", ["x", "n"], ["y"])], {"n": np.array([0] * 7 + [2**40])}),
    "Resize": (
        [node("Resize", ["x", "", "s"], ["y"])],
        {"s": np.array([1, 1, 1e5, 1e5], np.float32)},
    ),
    "MaxPool": (
        [node("MaxPool", ["x"], ["y"], kernel_shape=[2**30] * 2, pads=[2**30 - 1] * 4)],
        {},
    ),
}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's account")
@pytest.mark.parametrize("name", GIGANTIC)
def test_gigantic_shapes(name, little_memory):
    nodes, constants = GIGANTIC[name]
    with pytest.raises(ValueError, match=r"GiB|elements|output"):
        cnnx.onnx.load(model_of(nodes, X, ["y"], constants))(np.zeros((1, 1, 4, 4), np.float32))


def test_constants_that_are_gigantic_together(monkeypatch):
    monkeypatch.setattr("cnnx.onnx._fold.LARGEST", 1000)
    nodes = [node("ConstantOfShape", ["n"], [f"c{i}"]) for i in range(9)]
    nodes.append(node("Sum", ["x", *(f"c{i}" for i in range(9))], ["y"]))
    for size, refused in ((1, False), (100, True)):
        data = model_of(nodes, {"x": (1,)}, ["y"], {"n": np.array([size])})
        if refused:
            with pytest.raises(ValueError, match="constants take more than"):
                cnnx.onnx.load(data)
        else:
            cnnx.onnx.load(data)


def test_a_row_of_smaller_numbers_is_not_read_beyond_its_end():
    data = model_of(
        [node("Gemm", ["x", "w", "c"], ["y"])],
        {"x": (2, 3)},
        ["y"],
        {"w": np.zeros((3, 4)), "c": np.ones(4, np.float32)},  # as float64 it would end halfway
    )
    with pytest.raises(ValueError, match="C is float32 of shape"):
        cnnx.onnx.load(data)(np.ones((2, 3)))


def test_a_tensor_that_says_it_is_gigantic():
    model = proto(model_of([node("Add", ["x", "c"], ["y"])], X, ["y"], {"c": np.ones(1, "f4")}))
    model.graph.initializer[0].dims[:] = [2**40, 2**40]
    with pytest.raises(ValueError, match=r"'c'.*GiB"):
        cnnx.onnx.load(model)
    model.graph.initializer[0].dims[:] = [-1]
    with pytest.raises(ValueError, match="'c'"):
        cnnx.onnx.load(model)


def test_a_tensor_with_too_few_numbers():
    model = proto(model_of([node("Add", ["x", "c"], ["y"])], X, ["y"], {"c": np.ones(1, "f4")}))
    model.graph.initializer[0].dims[:] = [3]
    with pytest.raises(ValueError, match=r"'c' of shape \(3,\) has 4 bytes, expected 12"):
        cnnx.onnx.load(model)


# ---------------------------------------------------------------- arrays in other files


def with_external(folder: Path, location: str, **more: int) -> Path:
    model = proto(model_of([node("Add", ["x", "c"], ["y"])], X, ["y"], {"c": np.ones(4, "f4")}))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_arrays_in_the_model_s_folder_are_read(tmp_path):
    (tmp_path / "data").write_bytes(bytes(8) + np.arange(4, dtype="<f4").tobytes())
    graph = cnnx.onnx.load(with_external(tmp_path, "data", offset=8, length=16))
    want = np.broadcast_to(np.arange(4.0), (1, 1, 4, 4))
    np.testing.assert_array_equal(graph(np.zeros((1, 1, 4, 4), np.float32)), want)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "link", "sub/../../secret", ""])
def test_nothing_outside_the_folder_is_read(location, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(16))
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="outside the model's folder"):
        cnnx.onnx.load(with_external(folder, location))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"offset": 100}, "which has 16"),
        ({"offset": -4}, "bytes -4"),
        ({"length": 2**60}, "which has 16"),
        ({"length": 8}, "8 bytes, expected 16"),
        ({"offset": "x"}, "stands at"),
    ],
)
def test_a_place_that_the_other_file_has_not(more, words, tmp_path):
    (tmp_path / "data").write_bytes(bytes(16))
    with pytest.raises(ValueError, match=words):
        cnnx.onnx.load(with_external(tmp_path, "data", **more))


def test_a_folder_is_no_array_and_bytes_have_no_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    path = with_external(tmp_path, "sub")
    with pytest.raises(ValueError, match="no file"):
        cnnx.onnx.load(path)
    with pytest.raises(ValueError, match="by its path"):
        cnnx.onnx.load(path.read_bytes())


# ---------------------------------------------------------------- random damage


def test_a_damaged_file_is_an_error_of_the_documented_kinds_or_still_a_model():
    data = bytearray((LIGHT / "light_squeezenet.onnx").read_bytes())
    rng = np.random.default_rng(0)
    refused = loaded = 0
    for _ in range(40):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 2):
            damaged[place] = rng.integers(0, 256)
        try:
            cnnx.onnx.load(bytes(damaged))
            loaded += 1
        except (ValueError, NotImplementedError):
            refused += 1
    assert refused > 5 and loaded > 5  # both ways were tried


# ---------------------------------------------------------------- wrong calls


def graph() -> cnnx.onnx.Graph:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Relu", ["c"], ["y"])]
    weight = np.ones((1, 1, 3, 3), np.float32)
    return cnnx.onnx.load(model_of(nodes, {"x": ("N", 1, 4, 4)}, ["y"], {"w": weight}))


@pytest.mark.parametrize("freeze", [False, True])
def test_wrong_inputs(freeze):
    model = graph().freeze() if freeze else graph()
    good = np.zeros((2, 1, 4, 4), np.float32)
    assert model(good).shape == (2, 1, 2, 2)
    assert model(np.zeros((0, 1, 4, 4), np.float32)).shape == (0, 1, 2, 2)
    assert np.isnan(model(np.full_like(good, np.nan))).all()
    for x, error, words in (
        (np.zeros((2, 3, 4, 4), np.float32), ValueError, r"x has shape \(2, 3, 4, 4\)"),
        (np.zeros((1, 4, 4), np.float32), ValueError, "x has shape"),
        (np.zeros((2, 1, 4, 4), np.int64), TypeError, "int64"),
        (np.zeros((2, 1, 4, 4), np.float16), TypeError, "float16"),
        ([[1.0]], TypeError, "expected a NumPy array"),
    ):
        with pytest.raises(error, match=words):
            model(x)
    with pytest.raises(TypeError, match="2 inputs are given, expected 1: x"):
        model(good, good)


def test_backward_before_forward_and_of_a_frozen_graph():
    with pytest.raises(RuntimeError, match="before forward"):
        graph().backward(np.zeros((1, 1, 2, 2), np.float32))
    model = graph().freeze()
    model(np.zeros((1, 1, 4, 4), np.float32))
    with pytest.raises(RuntimeError, match="frozen"):
        model.backward(np.zeros((1, 1, 2, 2), np.float32))


def test_inputs_stay_as_they_are_and_results_are_the_caller_s():
    nodes = [
        node("Identity", ["x"], ["i"]),
        node("Add", ["i", "c"], ["a"]),
        node("Clip", ["a", "", "c"], ["y"]),
    ]
    model = cnnx.onnx.load(model_of(nodes, X, ["y"], {"c": np.ones((), "f4")})).freeze()
    x = np.full((1, 1, 4, 4), -3.0, np.float32)
    for _ in range(3):
        y = model(x)
        assert (y == -2).all() and (x == -3).all()
        y[...] = 7


def test_a_graph_can_be_pickled():
    model = graph()
    x = np.random.default_rng(0).standard_normal((2, 1, 4, 4), np.float32)
    want = model(x)
    for one in (model, model.freeze(), model.unfreeze()):
        np.testing.assert_array_equal(one(x), want)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(one))(x), want)
