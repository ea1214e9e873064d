"""CNN layers for NumPy arrays on the CPU: fast, small, and every gradient checked.

The way of the data is the way of the imports, one direction, no circle::

    layers, losses, optim          classes with params and grads; they know no kernel
        |
    functional                     checks arguments, allocates results; plain functions
        |
    _dispatch                      which backend answers
        |                 \\
    _kernels (Cython)      _fallback (NumPy)
        |                          the same functions; the fallback is the readable one
    _csrc (C)                      one table of kernels per instruction set

``gradcheck``, ``grading``, ``explain``, ``training``, ``distributed``, ``serialization``,
``onnx`` and ``cli`` stand on the public surface, like any user's code would; ``grading``,
``explain`` and ``onnx`` are imported when they are first asked for. ``_shapes`` is the only
place with output-size formulas.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING
from typing import Any as _Any

from cnnx import functional, layers
from cnnx._config import config, empty_cache, memory_stats, set_winograd, show_config
from cnnx._dispatch import use_backend
from cnnx._threads import get_num_threads, set_num_threads
from cnnx._version import __version__
from cnnx.functional import *  # noqa: F403
from cnnx.gradcheck import (
    GradcheckError,
    GradcheckReport,
    eval_numerical_gradient,
    gradcheck,
    numerical_gradient,
)
from cnnx.layers import *  # noqa: F403
from cnnx.losses import MSELoss, SoftmaxCrossEntropy
from cnnx.optim import SGD, Adam, AdamW, CosineLR, StepLR
from cnnx.serialization import load, save
from cnnx.training import History, fit

if TYPE_CHECKING:
    from cnnx import explain as explain
    from cnnx import onnx as onnx
    from cnnx.grading import grade as grade

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CosineLR",
    "GradcheckError",
    "GradcheckReport",
    "History",
    "MSELoss",
    "SoftmaxCrossEntropy",
    "StepLR",
    "__version__",
    "config",
    "empty_cache",
    "eval_numerical_gradient",
    "explain",
    "fit",
    "functional",
    "get_num_threads",
    "gradcheck",
    "grade",
    "layers",
    "load",
    "memory_stats",
    "numerical_gradient",
    "save",
    "set_num_threads",
    "set_winograd",
    "show_config",
    "use_backend",
    *functional.__all__,
    *layers.__all__,
]


def __getattr__(name: str) -> _Any:
    """Import what most programs never use when it is first asked for."""
    if name in ("explain", "onnx"):
        return _import_module(f"cnnx.{name}")
    if name == "grade":
        return _import_module("cnnx.grading").grade
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
