"""From layers to an ONNX file: each kind of layer is a small function that writes its nodes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np

from cnnx import layers
from cnnx._files import atomic_write
from cnnx.functional import _arguments as check
from cnnx.onnx._program import Array
from cnnx.onnx._read import onnx_package

_OPSET, _IR = 17, 8  # of 2022, which every runtime in use reads


def save(model: Any, path: str | os.PathLike[str], input_shape: Sequence[int]) -> None:
    """Write a model as an ONNX file, for use by other programs.

    The file computes what the model does after :meth:`~cnnx.Layer.eval`, for batches of any size.
    The model itself stays as it is. The file appears whole or not at all.

    Parameters
    ----------
    model : layer
        A :class:`~cnnx.Sequential`, a :class:`~cnnx.Residual`, or any other layer of cnnx, but no
        layer of your own.
    path : str or os.PathLike
        The file's name.
    input_shape : sequence of int
        The sizes of one image, without the batch: (C, H, W), or (features,).

    Raises
    ------
    ImportError
        If the `onnx` package is not installed.
    TypeError
        If the model has a layer that ONNX has no operators for here; it is named.
    ValueError
        If the model does not take such images.

    Examples
    --------
    >>> import cnnx
    >>> from cnnx.models import lenet5
    >>> net = lenet5((1, 28, 28), rng=0)
    >>> cnnx.onnx.save(net, "lenet5.onnx", (1, 28, 28))  # doctest: +SKIP
    """
    onnx = onnx_package()
    if not isinstance(input_shape, tuple | list):
        raise TypeError(
            f"input_shape is {check.described(input_shape)}, expected the sizes of one image"
        )
    shape = tuple(
        check.integer(size, f"input_shape[{axis}]", 1) for axis, size in enumerate(input_shape)
    )
    writer = _Writer(model)
    helper, kind = onnx.helper, onnx.helper.np_dtype_to_tensor_dtype(writer.dtype)
    name = writer.write(model, "input", "")
    writer.node("Identity", [name], output="output")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(op, takes, gives, **given) for op, takes, gives, given in writer.nodes],
        "cnnx",
        [value("input", kind, ["N", *shape])],
        [value("output", kind, ["N", *_output_shape(model, shape, writer.dtype)])],
        [onnx.numpy_helper.from_array(array, key) for key, array in writer.constants.items()],
    )
    proto = helper.make_model(
        graph,
        producer_name="cnnx",
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR,
    )
    onnx.checker.check_model(proto)
    with atomic_write(path) as file:
        file.write(proto.SerializeToString())


def _output_shape(model: Any, shape: tuple[int, ...], dtype: Any) -> tuple[int, ...]:
    """Return the sizes of an image's output: those that a copy of the model, put to use, gives."""
    twin = deepcopy(model).eval()
    result: tuple[int, ...] = twin.forward(np.zeros((1, *shape), dtype)).shape[1:]
    return result


class _Writer:
    """The nodes and constants so far."""

    def __init__(self, model: Any) -> None:
        kinds = {array.dtype for array in getattr(model, "params", {}).values()}
        if len(kinds) > 1:
            raise ValueError(
                f"the model has parameters of {sorted(map(str, kinds))}, expected one dtype: "
                "model.astype('float32')"
            )
        self.dtype = kinds.pop() if kinds else np.dtype(np.float32)
        self.nodes: list[tuple[str, list[str], list[str], dict[str, Any]]] = []
        self.constants: dict[str, Array] = {}

    def write(self, layer: Any, x: str, prefix: str) -> str:
        """Write a layer that takes the array named x; return the name of what it gives."""
        write = _WRITERS.get(type(layer))
        if write is None or "forward" in vars(layer):
            where = f"layer {prefix.rstrip('.')!r}" if prefix else "the model"
            raise TypeError(
                f"{where} is {check.described(layer)}, expected a layer of cnnx that ONNX has "
                f"operators for: {', '.join(sorted(kind.__name__ for kind in _WRITERS))}"
            )
        return write(self, layer, x, prefix)

    def node(self, op: str, takes: list[str], output: str = "", **attributes: Any) -> str:
        """Write a node; return the name of what it gives."""
        name = output or f"{op}_{len(self.nodes)}"
        given = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append((op, takes, [name], given))
        return name

    def constant(self, name: str, array: Any) -> str:
        """Keep a constant under its name in the model's state."""
        self.constants[name] = np.ascontiguousarray(array)
        return name

    def number(self, name: str, value: float) -> str:
        """Keep a number of the model's dtype."""
        return self.constant(name, np.array(value, self.dtype))


# ---------------------------------------------------------------- each kind of layer


def _sequential(writer: _Writer, layer: layers.Sequential, x: str, prefix: str) -> str:
    for number, child in enumerate(layer.layers):
        x = writer.write(child, x, f"{prefix}{number}.")
    return x


def _residual(writer: _Writer, layer: layers.Residual, x: str, prefix: str) -> str:
    main = writer.write(layer.body, x, f"{prefix}body.")
    way = x if layer.shortcut is None else writer.write(layer.shortcut, x, f"{prefix}shortcut.")
    return _activated(writer, layer, writer.node("Add", [main, way]))


def _activated(writer: _Writer, layer: Any, x: str) -> str:
    """The activation that a layer applies to what it stores."""
    kind = layer.activation
    if kind == "relu6":
        return _relu6(writer, layer, x, "")
    return x if kind is None else writer.node(_ACTIVATIONS[kind], [x])


def _weights(writer: _Writer, layer: Any, prefix: str) -> list[str]:
    return [
        writer.constant(prefix + name, layer.params[name])
        for name in ("weight", "bias")
        if name in layer.params
    ]


def _padding(padding: Any) -> dict[str, Any]:
    """Return any form of padding as attributes."""
    pads = check.padding(padding)
    if pads == "same":
        return {"auto_pad": "SAME_UPPER"}
    top, bottom, left, right = map(int, pads)
    return {"pads": [top, left, bottom, right]}


def _conv(writer: _Writer, layer: layers.Conv2D, x: str, prefix: str) -> str:
    padding = _padding(layer.padding)
    if layer.padding_mode != "zeros":
        mode = {"reflect": "reflect", "replicate": "edge"}.get(layer.padding_mode)
        if mode is None or "pads" not in padding:
            raise TypeError(
                f"layer {prefix.rstrip('.')!r} pads with padding_mode {layer.padding_mode!r} and "
                f"padding {layer.padding!r}, which operator set {_OPSET} of ONNX has not"
            )
        top, left, bottom, right = padding["pads"]
        numbers = np.array([0, 0, top, left, 0, 0, bottom, right], np.int64)
        x = writer.node("Pad", [x, writer.constant(f"{prefix}pads", numbers)], mode=mode)
        padding = {}
    x = writer.node(
        "Conv",
        [x, *_weights(writer, layer, prefix)],
        kernel_shape=list(layer.params["weight"].shape[2:]),
        strides=list(check.pair(layer.stride, "stride")),
        dilations=list(check.pair(layer.dilation, "dilation")),
        group=layer.groups,
        **padding,
    )
    return _activated(writer, layer, x)


def _conv_transpose(writer: _Writer, layer: layers.ConvTranspose2D, x: str, prefix: str) -> str:
    return writer.node(
        "ConvTranspose",
        [x, *_weights(writer, layer, prefix)],
        kernel_shape=list(layer.params["weight"].shape[2:]),
        strides=list(check.pair(layer.stride, "stride")),
        dilations=list(check.pair(layer.dilation, "dilation")),
        output_padding=list(check.pair(layer.output_padding, "output_padding", 0)),
        group=layer.groups,
        **_padding(layer.padding),
    )


def _dense(writer: _Writer, layer: layers.Dense, x: str, prefix: str) -> str:
    return _activated(writer, layer, writer.node("Gemm", [x, *_weights(writer, layer, prefix)]))


def _norm(writer: _Writer, layer: layers.BatchNorm2D, x: str, prefix: str) -> str:
    ones = np.ones(layer.num_features, layer.dtype)
    arrays = {
        "weight": layer.params.get("weight", ones),
        "bias": layer.params.get("bias", 0 * ones),
        "running_mean": layer.buffers["running_mean"],
        "running_var": layer.buffers["running_var"],
    }
    names = [writer.constant(prefix + name, array) for name, array in arrays.items()]
    node = writer.node("BatchNormalization", [x, *names], epsilon=layer.eps)
    return _activated(writer, layer, node)


def _pool(op: str) -> Callable[..., str]:
    def write(writer: _Writer, layer: Any, x: str, prefix: str) -> str:
        window = check.pair(layer.pool_size, "pool_size")
        stride = window if layer.stride is None else check.pair(layer.stride, "stride")
        attributes: dict[str, Any] = {
            "kernel_shape": list(window),
            "strides": list(stride),
            "ceil_mode": int(layer.ceil_mode),
            **_padding(layer.padding),
        }
        if op == "MaxPool":
            attributes["dilations"] = list(check.pair(layer.dilation, "dilation"))
        else:
            attributes["count_include_pad"] = int(layer.count_include_pad)
        return writer.node(op, [x], **attributes)

    return write


def _global_pool(writer: _Writer, layer: Any, x: str, prefix: str) -> str:
    return writer.node("Flatten", [writer.node("GlobalAveragePool", [x])])


def _relu6(writer: _Writer, layer: Any, x: str, prefix: str) -> str:
    return writer.node("Clip", [x, writer.number("zero", 0), writer.number("six", 6)])


def _gelu(writer: _Writer, layer: Any, x: str, prefix: str) -> str:
    """x / 2 * (1 + erf(x / sqrt(2))): a Gelu came with operator set 20."""
    inside = writer.node("Mul", [x, writer.number("sqrt_half", np.sqrt(0.5))])
    twice = writer.node("Add", [writer.node("Erf", [inside]), writer.number("one", 1)])
    half = writer.node("Mul", [x, writer.number("half", 0.5)])
    return writer.node("Mul", [half, twice])


def _silu(writer: _Writer, layer: Any, x: str, prefix: str) -> str:
    return writer.node("Mul", [x, writer.node("Sigmoid", [x])])


def _plain(op: str, *attributes: tuple[str, str]) -> Callable[..., str]:
    """A node by itself, with attributes of the layer under ONNX's names."""

    def write(writer: _Writer, layer: Any, x: str, prefix: str) -> str:
        return writer.node(op, [x], **{name: getattr(layer, own) for own, name in attributes})

    return write


_ACTIVATIONS = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh"}
_WRITERS: dict[type, Callable[..., str]] = {
    layers.AvgPool2D: _pool("AveragePool"),
    layers.BatchNorm2D: _norm,
    layers.Conv2D: _conv,
    layers.ConvTranspose2D: _conv_transpose,
    layers.Dense: _dense,
    layers.Dropout: lambda writer, layer, x, prefix: x,
    layers.Flatten: _plain("Flatten"),
    layers.GELU: _gelu,
    layers.GlobalAvgPool2D: _global_pool,
    layers.LeakyReLU: _plain("LeakyRelu", ("slope", "alpha")),
    layers.MaxPool2D: _pool("MaxPool"),
    layers.ReLU: _plain("Relu"),
    layers.ReLU6: _relu6,
    layers.Residual: _residual,
    layers.Sequential: _sequential,
    layers.SiLU: _silu,
    layers.Sigmoid: _plain("Sigmoid"),
    layers.Softmax: _plain("Softmax", ("axis", "axis")),
    layers.Tanh: _plain("Tanh"),
}
