"""The layer that a model becomes: its nodes one after the other, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cnnx.functional import _arguments as check
from cnnx.functional._arguments import described
from cnnx.layers.base import Layer
from cnnx.onnx._fold import fold_constants
from cnnx.onnx._fuse import fuse
from cnnx.onnx._gradients import GRADIENTS, Call
from cnnx.onnx._operators import compiled
from cnnx.onnx._plan import Plan, call
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
_PLANS = 16  # shapes of inputs whose plans a frozen graph keeps


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
    nothing, in :meth:`~cnnx.Layer.train` too. After :meth:`~cnnx.Layer.freeze` the nodes are fused
    and nothing is kept for backward.

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
        self._compile()

    def _compile(self) -> None:
        self._steps: list[tuple[Node, Callable[..., Any]]] = [
            (node, compiled(node)) for node in self._program.nodes
        ]

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without the functions made of the nodes, and what they kept."""
        return {**vars(self), "_steps": None, "_kept": None, "_saved": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the functions again."""
        vars(self).update(state)
        self._compile()

    def forward(self, *inputs: Array) -> Any:
        """Return the output for the inputs, or a tuple where there are several outputs."""
        given = self._checked(inputs)
        with np.errstate(all="ignore"):  # infinities and NaN come out as the formulas have them
            found = self._infer(given) if self.frozen else self._run(given)
        return found if len(found) > 1 else found[0]

    def _run(self, given: list[Array]) -> tuple[Array, ...]:
        """Run node by node, and keep every array for backward."""
        values: dict[str, Any] = {"": None, **self._program.constants}
        values.update(self.params)
        values.update(self.buffers)
        values.update(zip(self.inputs, given, strict=True))
        for node, run in self._steps:
            results = call(node, run, [values[name] for name in node.inputs])
            values.update(zip(node.outputs, results, strict=False))
        self._saved = (values,)
        return tuple(values[name] for name in self.outputs)

    def _infer(self, given: list[Array]) -> tuple[Array, ...]:
        """Run the plan for these shapes, which is made now where there is none."""
        self._saved = None
        since, kept = self._since, self._kept
        if kept is None or kept[0] is not since:  # a thread may just have made it of old weights
            constants = {**self._program.constants, **self.params, **self.buffers}
            program = fuse(replace(self._program, constants=constants))
            kept = since, program, [compiled(node) for node in program.nodes], {}
            self._kept = kept
        _, program, runs, plans = kept
        key = tuple((array.shape, array.dtype.char) for array in given)
        known: Plan | None = plans.get(key)
        if known is not None:
            return known.run(given)
        plan = Plan(program, runs, given)
        found, plan.results = plan.results, ()
        if plan.repeats:
            if len(plans) >= _PLANS:
                plans.clear()
            plans[key] = plan
        return found

    def __call__(self, *inputs: Array) -> Any:
        """Return the output for the inputs: the same as :meth:`forward`."""
        return self.forward(*inputs)

    def backward(self, grad_out: Any) -> Any:
        """Return the gradient of the input, or a tuple of the inputs' gradients; fill `grads`.

        Parameters
        ----------
        grad_out : ndarray, or a tuple of them
            The gradients of the outputs of the last :meth:`forward`, each in its shape.

        Raises
        ------
        NotImplementedError
            If a gradient reaches an operator that has none here.
        """
        (values,) = self._recall()
        given = grad_out if isinstance(grad_out, tuple) else (grad_out,)
        if len(given) != len(self.outputs):
            raise TypeError(f"{len(given)} gradients are given, expected {len(self.outputs)}")
        grads: dict[str, Any] = {}
        for name, grad in zip(self.outputs, given, strict=True):
            _put(grads, name, check.floating("grad_out", grad, values[name].shape))
        images = [
            value.name for value in self._program.inputs if values[value.name].dtype.kind == "f"
        ]
        wanted = {*self.params, *(images if self.needs_input_grad else ())}
        for node in self._program.nodes:
            if not wanted.isdisjoint(node.inputs):
                wanted.update(node.outputs)
        for node in reversed(self._program.nodes):
            outs = [grads.pop(name, None) for name in node.outputs]
            need = [name in wanted and values[name].dtype.kind == "f" for name in node.inputs]
            if not any(need) or all(grad is None for grad in outs):
                continue
            if node.op not in GRADIENTS:
                raise NotImplementedError(f"{node}: cnnx has no gradient of this operator")
            inputs = [values[name] for name in node.inputs]
            outputs = [values.get(name) for name in node.outputs]
            with np.errstate(all="ignore"):
                found = GRADIENTS[node.op](node)(Call(outs, inputs, outputs, need))
            for name, needed, grad in zip(node.inputs, need, found, strict=False):
                if needed and grad is not None:
                    _put(grads, name, grad)
        for name, param in self.params.items():
            self.grads[name] = grads[name] if name in grads else np.zeros_like(param)
        if not self.needs_input_grad:
            return None
        back = tuple(
            grads[name] if name in grads else np.zeros_like(values[name]) for name in images
        )
        return back if len(back) > 1 else back[0]

    def _checked(self, inputs: Sequence[Array]) -> list[Array]:
        """Return the inputs in the form that the nodes take."""
        expected = self._program.inputs
        if len(inputs) != len(expected):
            names = ", ".join(value.name for value in expected)
            raise TypeError(f"{len(inputs)} inputs are given, expected {len(expected)}: {names}")
        given = [_checked(value, array) for value, array in zip(expected, inputs, strict=True)]
        for value, array in zip(expected, given, strict=True):
            if array.dtype != value.dtype:
                self._require_float_type(value, array)
        return given

    def _require_float_type(self, value: Input, array: Array) -> None:
        """Raise unless an input's float type, which is not the file's, is that of the parameters.

        They may have been cast since, as for a gradient check; a graph without any takes both.
        """
        kinds = {param.dtype for param in self.params.values()}
        if kinds and array.dtype not in kinds:
            raise TypeError(
                f"{value.name} is an array of {array.dtype}, expected {value.dtype}; cast it: "
                f"{value.name}.astype(np.{value.dtype})"
            )

    def __repr__(self) -> str:
        """Inputs, outputs and how many nodes there are."""
        shapes = ", ".join(f"{name}: {shape}" for name, shape in self.input_shapes.items())
        count = len(self._program.nodes)
        return f"Graph({shapes} -> {', '.join(self.outputs)}; {count} nodes)"


def _put(grads: dict[str, Any], name: str, grad: Array) -> None:
    """Add a gradient to those that came to a name by other ways."""
    grads[name] = grads[name] + grad if name in grads else np.ascontiguousarray(grad)


def _checked(value: Input, array: Any) -> Array:
    """Return an input in the form that the nodes take, or say what is wrong with it."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{value.name} is {described(array)}, expected a NumPy array")
    if array.dtype.kind != value.dtype.kind or array.dtype == np.float16:
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
