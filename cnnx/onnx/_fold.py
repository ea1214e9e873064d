"""Constants folded: what depends on nothing else is computed when a model is loaded."""

from __future__ import annotations

import numpy as np

from cnnx.onnx._operators import compiled
from cnnx.onnx._plan import call
from cnnx.onnx._program import LARGEST, Program, needed


def fold_constants(program: Program) -> Program:
    """Compute all nodes that depend on constants alone, and forget the constants nothing takes."""
    constants, nodes, total = dict(program.constants), [], 0
    for node in program.nodes:
        if not all(name in constants for name in node.inputs if name):
            compiled(node)  # so that a fault in an attribute is found now
            nodes.append(node)
            continue
        given = [constants[name] if name else None for name in node.inputs]
        results = call(node, compiled(node), given)
        for name, result in zip(node.outputs, results, strict=False):
            constants[name] = result if result.flags.carray else np.array(result, order="C")
            total += result.nbytes
        if total > LARGEST:
            raise ValueError(f"{node}: the model's constants take more than {LARGEST >> 30} GiB")
    nodes = needed(nodes, program.outputs)
    wanted = {*program.outputs, *(name for node in nodes for name in node.inputs)}
    constants = {name: array for name, array in constants.items() if name in wanted}
    return Program(program.inputs, program.outputs, constants, nodes)
