"""ONNX files: :func:`load` makes a layer of one, and :func:`save` writes one.

::

    _read       bytes -> Program, checked
    _operators  what each operator computes: a table of small functions
    _optimise   constants folded, nodes fused
    _graph      Graph, the layer
    _write      layers -> bytes

Reading and writing need the `onnx` package, ``pip install "cnnx[onnx]"``; running does not.
"""

from cnnx.onnx._graph import Graph, load

__all__ = ["Graph", "load"]
