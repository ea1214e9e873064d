"""ONNX files: :func:`load` makes a layer of one, and :func:`save` writes one.

::

    _read       bytes -> Program: parsed, and distrusted
    _program    what a model is then: nodes in an order that can run
    _fold       what depends on constants alone, computed
    _graph      Graph, the layer; forward and backward node by node
    _operators  the table of operators, whose functions are in _images, _elementwise, _arrays and
                _resize, and the gradients in _gradients
    _fuse       a frozen graph in fewer nodes
    _plan       how it runs for one shape of its inputs
    _write      layers -> bytes
    backend     the interface by which the onnx package tests a library

Reading and writing need the `onnx` package, ``pip install "cnnx[onnx]"``; running does not.
"""

from cnnx.onnx._graph import Graph, load
from cnnx.onnx._operators import OPERATORS
from cnnx.onnx._write import save

__all__ = ["OPERATORS", "Graph", "load", "save"]
