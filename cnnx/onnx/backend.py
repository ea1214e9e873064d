"""The interface by which the onnx package's own tests run a library: ``onnx.backend.base``.

``import cnnx.onnx.backend as backend``, then ``backend.prepare(model).run([x])``. Unlike the rest
of `cnnx.onnx` it cannot be imported without the `onnx` package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto
from onnx.backend.base import Backend, BackendRep

from cnnx.onnx._graph import Graph, load


class Prepared(BackendRep):
    """A model that is ready to run."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return all outputs for all inputs, in the model's order."""
        given = inputs if isinstance(inputs, Sequence) else (inputs,)
        results = self.graph(*(np.asarray(array) for array in given))
        return results if isinstance(results, tuple) else (results,)


class CnnxBackend(Backend):
    """Runs models on the CPU by :func:`cnnx.onnx.load`, frozen."""

    @classmethod
    def prepare(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> Prepared:
        """Return a model that is ready to run."""
        super().prepare(model, device, **kwargs)  # the package's own check
        return Prepared(load(model).freeze())

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether this is the CPU."""
        return device == "CPU"


prepare = CnnxBackend.prepare
run_model = CnnxBackend.run_model
supports_device = CnnxBackend.supports_device
