"""ONNX models for the tests: small ones made here, and those that the `onnx` package ships.

The package's light models have the nodes of known nets, and weights that are one number each, so
that their outputs are nearly constant. :func:`with_weights` gives them numbers that tell mistakes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


def model_of(
    nodes: list[Any],
    inputs: dict[str, Any],
    outputs: list[str],
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 17,
) -> bytes:
    """Return the file of a few nodes; `inputs` are shapes of float32 arrays by name."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return model.SerializeToString()


def with_weights(path: Path, seed: int = 0) -> bytes:
    """Return a light model whose weights are random: He-normal, scales and variances about 1."""
    model, rng = onnx.load(path), np.random.default_rng(seed)
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    takers: dict[str, tuple[str, int]] = {}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            takers.setdefault(name, (node.op_type, place))
    kept = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        (name,), shape = node.output, tuple(shapes[node.input[0]])
        op, place = takers.get(name, ("", 0))
        array = rng.uniform(-0.1, 0.1, shape)
        if op in ("Conv", "Gemm") and place == 1:
            array = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif (op == "BatchNormalization" and place in (1, 4)) or op == "Unsqueeze":
            array += 0.9
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model.SerializeToString()


def onnxruntime_of(data: bytes, x: np.ndarray) -> np.ndarray:
    """Return what ONNX Runtime gives for a model of one input and one output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # whose threads would go on waiting on all cores
    session = onnxruntime.InferenceSession(data, options)
    (result,) = session.run(None, {session.get_inputs()[0].name: x})
    return result
