"""From an ONNX file to a program: parse it, distrust it, and say in one error what is wrong.

A file may come from anywhere. What it points to outside itself must lie in its own folder, its
arrays must have the bytes that their shapes ask for, and every operator must be known before
anything runs. The `onnx` package parses; it is imported here and in `_write`, when it is needed.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from cnnx.functional._arguments import described
from cnnx.onnx._operators import OPERATORS
from cnnx.onnx._program import (
    DTYPES,
    Array,
    Input,
    Node,
    Program,
    in_order,
    needed,
    require_room,
)

_OPSETS = (6, 28)  # 28 is the newest whose definitions were compared with what is done here
# Before operator set 7 these had no broadcasting but one by attributes.
_BROADCAST = ("Add", "Sub", "Mul", "Div", "Pow")


def onnx_package() -> Any:
    """Return the `onnx` package, or say how to get it."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            "ONNX files need a package that is not installed: pip install 'cnnx[onnx]'"
        ) from error
    return onnx


def read(source: Any) -> Program:
    """Return the program of a file's path, of a file's bytes, or of a parsed model."""
    onnx = onnx_package()
    folder, model = None, source
    if not isinstance(source, onnx.ModelProto):
        if isinstance(source, bytes | bytearray | memoryview):
            data = bytes(source)
        else:
            try:
                path = Path(os.fsdecode(source))
            except TypeError:
                raise TypeError(
                    f"source is {described(source)}, expected a file name, a file's bytes or an "
                    "onnx.ModelProto"
                ) from None
            folder, data = path.parent, path.read_bytes()
        model = onnx.ModelProto()
        try:
            model.ParseFromString(data)
        except Exception as error:  # of protobuf's several kinds
            raise ValueError(f"this is not an ONNX model: {error}") from error
    if not model.graph.node and not model.graph.output:
        raise ValueError("this is not an ONNX model: it has no nodes and no outputs")
    _require_known(model)
    return _program(model, folder)


def _require_known(model: Any) -> None:
    """Raise one error that names all operators that are missing."""
    missing: Counter[str] = Counter()
    for node in model.graph.node:
        plain = node.domain in ("", "ai.onnx")
        if not plain or node.op_type not in OPERATORS:
            missing[node.op_type if plain else f"{node.domain}.{node.op_type}"] += 1
    if missing:
        names = ", ".join(f"{name} ({count})" for name, count in sorted(missing.items()))
        raise NotImplementedError(
            f"cnnx has no operator for {names}, with the number of nodes of each; "
            f"it has {', '.join(sorted(OPERATORS))}"
        )


def _opset(model: Any) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    version = versions[0] if versions else 1
    least, most = _OPSETS
    if not least <= version <= most:
        raise ValueError(f"the model's operator set is {version}, expected {least} to {most}")
    return int(version)


def _program(model: Any, folder: Path | None) -> Program:
    graph, opset = model.graph, _opset(model)
    if graph.sparse_initializer:
        raise NotImplementedError("the model has sparse initializers, which cnnx does not read")
    constants = {}
    for tensor in graph.initializer:
        if tensor.name in constants:
            raise ValueError(f"the initializer {tensor.name!r} is there twice")
        constants[tensor.name] = to_array(tensor, folder)
    inputs = [_input(value) for value in graph.input if value.name not in constants]
    names = [value.name for value in inputs]
    if len({*names}) < len(names):
        raise ValueError(f"the model has two inputs of one name among {names}")
    nodes = [_node(node, opset, folder) for node in graph.node]
    nodes = in_order(nodes, [*constants, *names])
    outputs = [value.name for value in graph.output]
    if not outputs:
        raise ValueError("the model has no outputs")
    given = {*constants, *names, *(name for node in nodes for name in node.outputs)}
    for name in outputs:
        if name not in given:
            raise ValueError(f"the model's output {name!r} is given by nothing")
    return Program(inputs, outputs, constants, needed(nodes, outputs))


def _input(value: Any) -> Input:
    kind = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type" or kind.elem_type not in DTYPES:
        raise NotImplementedError(
            f"the input {value.name!r} is no tensor of a type that cnnx computes with "
            f"(type {kind.elem_type})"
        )
    shape = None
    if kind.HasField("shape"):
        sizes = [size.dim_value for size in kind.shape.dim]
        shape = tuple(size if size > 0 else None for size in sizes)
    return Input(value.name, DTYPES[kind.elem_type], shape)


def _node(proto: Any, opset: int, folder: Path | None) -> Node:
    node = Node(
        proto.op_type, list(proto.input), list(proto.output), {}, name=proto.name, opset=opset
    )
    if not any(node.outputs):
        raise ValueError(f"a node {node.op} gives nothing")
    for attribute in proto.attribute:
        node.attributes[attribute.name] = _attribute(node, attribute, folder)
    if node.op in _BROADCAST and node.get("broadcast"):
        raise NotImplementedError(f"{node}: cnnx broadcasts as from operator set 7 on; convert it")
    return node


def _attribute(node: Node, proto: Any, folder: Path | None) -> Any:
    """Return an attribute's value: a number, a string, a list of those, or an array."""
    kind = proto.AttributeType.Name(proto.type)
    if kind == "FLOAT":
        return float(proto.f)
    if kind == "INT":
        return int(proto.i)
    if kind == "STRING":
        return proto.s.decode("utf-8", "replace")
    if kind in ("FLOATS", "INTS"):
        return list(proto.floats if kind == "FLOATS" else proto.ints)
    if kind == "STRINGS":
        return [text.decode("utf-8", "replace") for text in proto.strings]
    if kind == "TENSOR":
        return to_array(proto.t, folder)
    raise NotImplementedError(f"{node}: the attribute {proto.name!r} is of the kind {kind}")


# ---------------------------------------------------------------- tensors


def to_array(tensor: Any, folder: Path | None) -> Array:
    """Return a tensor's numbers, which must be as many as its shape says."""
    name, shape = tensor.name, tuple(tensor.dims)
    if tensor.data_type not in DTYPES:
        raise NotImplementedError(
            f"the tensor {name!r} has the data type {tensor.data_type}, which cnnx does not "
            "compute with"
        )
    dtype = DTYPES[tensor.data_type]
    try:
        require_room(shape, dtype.itemsize)
    except ValueError as error:
        raise ValueError(f"the tensor {name!r}: {error}") from None
    if tensor.data_location == 1:  # EXTERNAL
        flat = np.frombuffer(_external(tensor, folder), np.uint8)
    elif tensor.HasField("raw_data"):
        flat = np.frombuffer(tensor.raw_data, np.uint8)
    else:
        flat = _typed(tensor, dtype).view(np.uint8)
    wanted = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if flat.size != wanted:
        raise ValueError(
            f"the tensor {name!r} of shape {shape} has {flat.size} bytes, expected {wanted}"
        )
    array: Array = np.array(flat.view(dtype).reshape(shape), dtype=dtype.newbyteorder("="))
    return array


def _typed(tensor: Any, dtype: np.dtype[Any]) -> Array:
    """The numbers of a tensor that has them one by one, in the field of their type."""
    fields = {"f8": "double_data", "f4": "float_data", "i8": "int64_data"}
    fields |= {"u4": "uint64_data", "u8": "uint64_data"}
    numbers = getattr(tensor, fields.get(dtype.str[1:], "int32_data"))
    # The smaller types stand in 32-bit fields; what does not fit into them is no such number.
    return np.array(numbers, np.int64 if dtype.itemsize < 4 else dtype).astype(dtype)


def _external(tensor: Any, folder: Path | None) -> bytes:
    """Return the bytes of a tensor that stands in another file, of the model's own folder."""
    name = tensor.name
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if folder is None:
        raise ValueError(
            f"the tensor {name!r} stands in another file, and a model of bytes has no folder; "
            "load it by its path"
        )
    place = entries.get("location", "")
    root = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(root, place))
    if not place or os.path.isabs(place) or os.path.commonpath([root, path]) != root:
        raise ValueError(f"the tensor {name!r} stands in {place!r}, outside the model's folder")
    if not os.path.isfile(path):
        raise ValueError(f"the tensor {name!r} stands in {place!r}, which is no file")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
    except ValueError:
        raise ValueError(f"the tensor {name!r} stands at {entries}") from None
    size = os.path.getsize(path)
    length = size - offset if length < 0 else length
    if offset < 0 or length < 0 or offset + length > size:
        raise ValueError(
            f"the tensor {name!r} stands at bytes {offset} to {offset + length} of {place!r}, "
            f"which has {size}"
        )
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)
