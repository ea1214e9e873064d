"""The optimizers' steps on one parameter, in place; the public face is :mod:`cnnx.optim`."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from cnnx import _dispatch, _fallback
from cnnx.functional._arguments import Array

_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def _backend(param: Array, *others: Array | None) -> ModuleType:
    """Return who does the work: NumPy wherever the arrays are not plain ones of one dtype."""
    for array in (param, *others):
        if array is not None and not (
            array.dtype is param.dtype and param.dtype in _DTYPES and array.flags.carray
        ):
            return _fallback
    return _dispatch.backend()


def sgd(
    param: Array,
    grad: Array,
    velocity: Array | None,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """Make one step of :class:`cnnx.SGD`."""
    backend = _backend(param, grad, velocity)
    backend.sgd(param, grad, velocity, lr, momentum, weight_decay, nesterov)


def adam(
    param: Array,
    grad: Array,
    mean: Array,
    square: Array,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
    step: int,
) -> None:
    """Make one step of :class:`cnnx.Adam`, or decoupled of :class:`cnnx.AdamW`."""
    backend = _backend(param, grad, mean, square)
    backend.adam(param, grad, mean, square, lr, *betas, eps, weight_decay, decoupled, step)
