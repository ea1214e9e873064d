"""The layer that a model becomes: its nodes one after the other, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cnnx.functional._arguments import described
from cnnx.layers.base import Layer
from cnnx.onnx._operators import compiled
from cnnx.onnx._optimise import fold_constants
from cnnx.onnx._program import Array, Input, Node, Program
from cnnx.onnx._read import read

# Which inputs of an operator are trained where they are constants, and which are saved with them.
_TRAINED = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
}
_STATISTICS = {"BatchNormalization": (3, 4)}
# What a node may raise for arrays that do not fit it.
_FAULTS = (ValueError, TypeError, IndexError, OverflowError, ZeroDivisionError)


def load(source: Any) -> Graph:
    """Return the layer that an ONNX model is.

    Parameters
    ----------
    source : str, os.PathLike, bytes or onnx.ModelProto
        A file's path, a file's bytes, or a model that is already parsed. Arrays that stand in other
        files are found beside a path alone.

    Returns
    -------
    Graph
        A layer like any other; ``freeze()`` makes it fast.

    Raises
    ------
    ImportError
        If the `onnx` package is not installed.
    NotImplementedError
        If the model has operators or types that cnnx has not; one error names all operators.
    ValueError
        If the file is no ONNX model, or a damaged or forged one.
    """
    return Graph(read(source))


class Graph(Layer):
    """An ONNX model as a layer; :func:`load` makes it.

    It runs as the file has it: batch normalisation uses the file's statistics and dropout does
    nothing, in :meth:`train` too. After :meth:`freeze` the nodes are fused and nothing is kept for
    backward.

    Attributes
    ----------
    inputs, outputs : tuple of str
        Names, in the order in which :meth:`forward` takes and returns arrays.
    input_shapes : dict of str to tuple
        The sizes that the file gives, None where one is free.
    params : dict
        Weights, biases, scales and slopes of the nodes that have them, under the file's names.
    buffers : dict
        The statistics of batch normalisation.
    """

    training = False

    def __init__(self, program: Program) -> None:
        self._program = program = fold_constants(program)
        self.inputs = tuple(value.name for value in program.inputs)
        self.outputs = tuple(program.outputs)
        self.input_shapes = {value.name: value.shape for value in program.inputs}
        for kinds, arrays in ((_TRAINED, self.params), (_STATISTICS, self.buffers)):
            for node in program.nodes:
                for place in kinds.get(node.op, ()):
                    name = node.inputs[place] if place < len(node.inputs) else ""
                    constant = program.constants.get(name)
                    if constant is not None and constant.dtype.kind == "f":
                        arrays[name] = constant
        self.grads.update({name: np.zeros_like(array) for name, array in self.params.items()})
        self._steps: list[tuple[Node, Callable[..., Any]]] = [
            (node, compiled(node)) for node in program.nodes
        ]

    def forward(self, *inputs: Array) -> Any:
        """Return the output for the inputs, or a tuple where there are several outputs."""
        values = self._given(inputs)
        for node, run in self._steps:
            try:
                results = run(*[values[name] for name in node.inputs])
            except _FAULTS as error:
                raise ValueError(f"{node}: {error}") from error
            if type(results) is not tuple:
                results = (results,)
            for name, result in zip(node.outputs, results):  # noqa: B905
                values[name] = result if type(result) is np.ndarray else np.asarray(result)
        self._saved = (values,)
        found = tuple(values[name] for name in self.outputs)
        return found if len(found) > 1 else found[0]

    def __call__(self, *inputs: Array) -> Any:
        """Return the output for the inputs: the same as :meth:`forward`."""
        return self.forward(*inputs)

    def backward(self, grad_out: Any) -> Any:
        """Return the gradient of the input, or a tuple of the inputs' gradients."""
        raise NotImplementedError

    def _given(self, inputs: Sequence[Array]) -> dict[str, Any]:
        """Return what is there before the first node runs: inputs and constants by name."""
        expected = self._program.inputs
        if len(inputs) != len(expected):
            names = ", ".join(value.name for value in expected)
            raise TypeError(f"{len(inputs)} inputs are given, expected {len(expected)}: {names}")
        values: dict[str, Any] = {"": None, **self._program.constants}
        values.update(self.params)
        values.update(self.buffers)
        for value, array in zip(expected, inputs, strict=True):
            values[value.name] = _checked(value, array)
        return values

    def __repr__(self) -> str:
        """Inputs, outputs and how many nodes there are."""
        shapes = ", ".join(f"{name}: {shape}" for name, shape in self.input_shapes.items())
        count = len(self._program.nodes)
        return f"Graph({shapes} -> {', '.join(self.outputs)}; {count} nodes)"


def _checked(value: Input, array: Any) -> Array:
    """Return an input in the form that the nodes take, or say what is wrong with it."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{value.name} is {described(array)}, expected a NumPy array")
    kinds = "f" if value.dtype.kind == "f" else value.dtype.kind
    if array.dtype.kind not in kinds or array.dtype == np.float16:
        raise TypeError(f"{value.name} is an array of {array.dtype}, expected {value.dtype}")
    if value.shape is not None:
        fits = len(array.shape) == len(value.shape) and all(
            size in (None, given) or axis == 0  # a batch of 1 is often only what was exported
            for axis, (size, given) in enumerate(zip(value.shape, array.shape, strict=True))
        )
        if not fits:
            wanted = tuple("any" if size is None else size for size in value.shape)
            raise ValueError(f"{value.name} has shape {array.shape}, expected {wanted}")
    if value.dtype.kind != "f":
        return np.require(array, value.dtype, ["C", "A", "E"])
    return np.require(array, array.dtype.newbyteorder("="), ["C", "A", "E"])
