"""The table of operators: by each name, what makes of a node the function that computes it."""

from __future__ import annotations

from collections.abc import Callable

from cnnx.onnx import _arrays as arrays
from cnnx.onnx import _elementwise as elementwise
from cnnx.onnx import _images as images
from cnnx.onnx._images import Run
from cnnx.onnx._program import Node
from cnnx.onnx._resize import resize

OPERATORS: dict[str, Callable[[Node], Run]] = {
    "Abs": elementwise.ufunc,
    "Add": elementwise.add,
    "AveragePool": images.average_pool,
    "BatchNormalization": images.batch_normalization,
    "Cast": arrays.cast,
    "Ceil": elementwise.ufunc,
    "Clip": elementwise.clip,
    "Concat": arrays.concat,
    "Constant": arrays.constant,
    "ConstantOfShape": arrays.constant_of_shape,
    "Conv": images.conv,
    "ConvTranspose": images.conv_transpose,
    "Div": elementwise.div,
    "Dropout": arrays.identity,
    "Erf": elementwise.erf,
    "Exp": elementwise.ufunc,
    "Expand": arrays.expand,
    "Flatten": arrays.flatten,
    "Floor": elementwise.ufunc,
    "Gather": arrays.gather,
    "Gemm": images.gemm,
    "GlobalAveragePool": images.global_average_pool,
    "HardSigmoid": elementwise.hard_sigmoid,
    "HardSwish": elementwise.activation,
    "Identity": arrays.identity,
    "LRN": images.lrn,
    "LeakyRelu": elementwise.leaky_relu,
    "Log": elementwise.ufunc,
    "LogSoftmax": images.softmax,
    "MatMul": images.matmul,
    "Max": elementwise.extreme,
    "MaxPool": images.max_pool,
    "Min": elementwise.extreme,
    "Mul": elementwise.ufunc,
    "Neg": elementwise.ufunc,
    "PRelu": elementwise.prelu,
    "Pad": arrays.pad,
    "Pow": elementwise.power,
    "Range": arrays.range_,
    "ReduceMean": arrays.reduce_mean,
    "Relu": elementwise.activation,
    "Reshape": arrays.reshape,
    "Resize": resize,
    "Shape": arrays.shape,
    "Sigmoid": elementwise.activation,
    "Slice": arrays.slice_,
    "Softmax": images.softmax,
    "Split": arrays.split,
    "Sqrt": elementwise.ufunc,
    "Squeeze": arrays.squeeze,
    "Sub": elementwise.ufunc,
    "Sum": elementwise.add,
    "Tanh": elementwise.activation,
    "Transpose": arrays.transpose,
    "Unsqueeze": arrays.unsqueeze,
}
# What the optimiser makes of several nodes, which no file has.
FUSED: dict[str, Callable[[Node], Run]] = {"SiLU": elementwise.activation}


def compiled(node: Node) -> Run:
    """Return the function that computes a node."""
    make = OPERATORS.get(node.op) or FUSED[node.op]
    try:
        return make(node)
    except (TypeError, KeyError, OverflowError, ValueError) as error:
        if str(error).startswith(str(node)):
            raise
        raise ValueError(f"{node} has attributes that it cannot have: {error!r}") from error
