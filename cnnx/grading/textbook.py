"""The formulas as a textbook has them, in float64, and what they give with one slip in them.

Every subject is written once, as a loop over windows. A *slip* is the name of one well-known
mistake; it changes the formula in the very place where students do. Without a slip the result is
what a student's is compared with; with one it is evidence: :mod:`cnnx.grading.mistakes` gives a
hint only if a student's wrong result is what the slip gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cnnx.grading.cases import CONVOLUTIONS, Array, Arrays, Case

Place = tuple[int, int, tuple[slice, slice, slice, slice]]
_ALL = slice(None)


def compute(subject: str, case: Case, slip: str = "") -> Arrays:
    """Return a subject's results by name; a slip may make it fail, as it would the student."""
    if subject in CONVOLUTIONS:
        return _convolution(case, slip)
    if subject == "MaxPool2D":
        return _max_pool(case, slip)
    return _avg_pool(case, slip) if subject == "AvgPool2D" else _gradient(case, slip)


def _windows(
    case: Case, step: int, window: tuple[int, int], size: tuple[int, int], swapped: bool = False
) -> Iterator[Place]:
    """Every output's row and column, and its window in the padded image."""
    kh, kw = window
    for i in range(size[0]):
        for j in range(size[1]):
            top, left = (j * step, i * step) if swapped else (i * step, j * step)
            yield i, j, (_ALL, _ALL, slice(top, top + kh), slice(left, left + kw))


def _size(case: Case, slip: str) -> tuple[int, int]:
    rows, columns = case.output_size()
    return (rows - 1, columns - 1) if slip == "size without + 1" else (rows, columns)


def _floats(case: Case, *names: str) -> list[Array]:
    return [np.asarray(case.arrays[name], np.float64) for name in names]


# ---------------------------------------------------------------- convolution


def _convolution(case: Case, slip: str) -> Arrays:
    X, W, b, dout = _floats(case, "X", "W", "b", "dout")
    padded = _padded(X, case.options["pad"])
    Z = _scores(case, padded, W, b, slip)
    out = _activate(Z, None if slip == "no activation" else case.options["activation"])
    if slip == "truncated":
        out = np.trunc(out)
    if slip == "truncated before activation":
        out = _activate(np.trunc(Z), case.options["activation"])
    result = {"out": out}
    if Z.shape == dout.shape:
        dZ = _before_activation(dout, Z, case.options["activation"], slip)
        result |= _conv_gradients(case, X, padded, W, dZ, slip)
    return result


def _conv_gradients(case: Case, X: Array, padded: Array, W: Array, dZ: Array, slip: str) -> Arrays:
    """dX, dW and db from dZ: each window's share is added up."""
    stride, pad = case.options["stride"], case.options["pad"]
    dX, dW, db = np.zeros_like(padded), np.zeros_like(W), dZ.sum(axis=(0, 2, 3))
    if slip == "flipped in backward":
        W = W[:, :, ::-1, ::-1]
    if slip == "channels reversed in backward":
        W = W[:, ::-1]
    swapped = slip == "rows and columns swapped in backward"
    step = 1 if slip == "stride ignored in backward" else stride
    for i, j, window in _windows(case, step, case.window, dZ.shape[2:], swapped):
        dz, patch = dZ[:, :, i, j], padded[window]
        if slip == "assigned, filter by filter":
            dX[window] = np.einsum("n,chw->nchw", dz[:, -1], W[-1])
            dW[...] = np.einsum("f,chw->fchw", dz[-1], patch[-1])
        elif slip == "assigned":
            dX[window] = np.einsum("nf,fchw->nchw", dz, W)
            dW[...] = np.einsum("nf,nchw->fchw", dz, patch)
        elif slip == "truncated at each step":
            for f in range(len(W)):
                dX[window] = np.trunc(dX[window] + np.einsum("n,chw->nchw", dz[:, f], W[f]))
        else:
            dX[window] += np.einsum("nf,fchw->nchw", dz, W)
            dW += np.einsum("nf,nchw->fchw", dz, patch)
    if slip == "truncated at each step, filter by filter":
        dX[...] = 0
        for f in range(len(W)):
            for i, j, window in _windows(case, stride, case.window, dZ.shape[2:]):
                part = np.einsum("n,chw->nchw", dZ[:, f, i, j], W[f])
                dX[window] = np.trunc(dX[window] + part)
    if slip == "flipped in backward":
        dW = dW[:, :, ::-1, ::-1]
    if slip == "channels reversed in backward":
        dW = dW[:, ::-1]
    dX = _cropped(dX, X, pad, slip)
    dW, db = _over_the_batch(dW, db, dZ, padded, case, slip)
    return {"dX": np.trunc(dX) if slip == "truncated" else dX, "dW": dW, "db": db}


def _padded(X: Array, pad: int) -> Array:
    return np.pad(X, ((0, 0), (0, 0), (pad, pad), (pad, pad)))


def _scores(case: Case, padded: Array, W: Array, b: Array, slip: str) -> Array:
    """Z, the output before the activation."""
    stride, size = case.options["stride"], _size(case, slip)
    if slip == "pad ignored":
        pad = case.options["pad"]
        padded = padded[:, :, pad : padded.shape[2] - pad, pad : padded.shape[3] - pad]
        kh, kw = case.window
        size = (padded.shape[2] - kh) // stride + 1, (padded.shape[3] - kw) // stride + 1
    if slip == "flipped":
        W = W[:, :, ::-1, ::-1]
    if slip == "channels reversed":
        W = W[:, ::-1]
    if slip == "first channel only":
        padded, W = padded[:, :1], W[:, :1]
    if slip == "last channel only":
        padded, W = padded[:, -1:], W[:, -1:]
    Z = np.zeros((len(padded), len(W), *size))
    step = 1 if slip == "stride ignored" else stride
    swapped = slip == "rows and columns swapped"
    for i, j, window in _windows(case, step, case.window, size, swapped):
        Z[:, :, i, j] = np.einsum("nchw,fchw->nf", padded[window], W)
        if slip == "truncated at each step":
            Z[:, :, i, j] = 0
            for c, ki, kj in np.ndindex(W.shape[1:]):
                terms = np.outer(padded[window][:, c, ki, kj], W[:, c, ki, kj])
                Z[:, :, i, j] = np.trunc(Z[:, :, i, j] + terms)
            Z[:, :, i, j] = np.trunc(Z[:, :, i, j] + b)
    if slip == "truncated at each step":
        return Z
    if slip == "bias once a channel":
        b = padded.shape[1] * b
    return Z if slip == "no bias" else np.asarray(Z + b.reshape(-1, 1, 1))


def _activate(Z: Array, activation: str | None) -> Array:
    if activation == "relu":
        return np.asarray(np.maximum(Z, 0))
    if activation == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-Z)))
    return np.asarray(np.tanh(Z)) if activation == "tanh" else Z


def _before_activation(dout: Array, Z: Array, activation: str | None, slip: str) -> Array:
    """dZ = dout times the activation's derivative at Z."""
    if slip == "activation ignored in backward" or activation is None:
        return dout
    if slip == "derivative at dout":
        Z = dout
    at = _activate(Z, activation)
    if slip == "output taken for Z":
        at = _activate(at, activation)
    if slip == "Z taken for output":
        at = Z
    derivatives = {"relu": at > 0, "sigmoid": at * (1 - at), "tanh": 1 - at**2}
    derivative = derivatives[activation].astype(np.float64)
    return derivative if slip == "dout forgotten" else np.asarray(dout * derivative)


def _cropped(dX: Array, X: Array, pad: int, slip: str) -> Array:
    h, w = X.shape[2:]
    if slip == "not cropped":
        return dX
    if slip == "cropped at the end only":
        return dX[:, :, :h, :w]
    if slip == "cropped at the start only":
        return dX[:, :, pad:, pad:]
    if slip == "cropped by minus pad":
        return dX[:, :, pad:-pad, pad:-pad]
    return dX[:, :, pad : pad + h, pad : pad + w]


def _over_the_batch(
    dW: Array, db: Array, dZ: Array, padded: Array, case: Case, slip: str
) -> tuple[Array, Array]:
    """dW and db with the slips of their sums; db in the shape of b."""
    shape = case.arrays["b"].shape
    which = {"last image only": -1, "first image only": 0}.get(slip)
    if which is not None:
        dW, db = np.zeros_like(dW), dZ[which].sum(axis=(1, 2))
        for i, j, window in _windows(case, case.options["stride"], case.window, dZ.shape[2:]):
            dW += np.einsum("f,chw->fchw", dZ[which, :, i, j], padded[window][which])
    elif slip == "mean over the batch":
        dW, db = dW / len(dZ), db / len(dZ)
    elif slip == "mean over all":
        dW, db = dW / (dZ.size / len(dW)), dZ.mean(axis=(0, 2, 3))
    elif slip == "bias per image":
        return dW, dZ.sum(axis=(2, 3))
    elif slip == "bias per pixel":
        return dW, dZ.sum(axis=0)
    elif slip in _BIAS_SHAPES:
        return dW, db.reshape(_BIAS_SHAPES[slip])
    elif slip in ("assigned", "assigned, filter by filter", "bias of the last pixel"):
        db = dZ[:, :, -1, -1].sum(axis=0) if slip == "assigned" else dZ[-1, :, -1, -1]
    elif slip == "bias of the last pixel, over the batch":
        db = dZ[:, :, -1, -1].sum(axis=0)
    elif slip == "bias before the activation":
        db = np.asarray(case.arrays["dout"], np.float64).sum(axis=(0, 2, 3))
    return dW, db.reshape(shape)


_BIAS_SHAPES = {
    "bias as a column": (-1, 1),
    "bias as a row": (1, -1),
    "bias with all axes": (1, -1, 1, 1),
}


# ---------------------------------------------------------------- pooling


def _max_pool(case: Case, slip: str) -> Arrays:
    X, dout = _floats(case, "X", "dout")
    size, stride, n, c = _size(case, slip), case.options["stride"], *np.indices(X.shape[:2])
    out, dX = np.zeros((*X.shape[:2], *size)), np.zeros_like(X)
    indices = np.zeros((*out.shape, 2))
    step = 1 if slip == "stride ignored" else stride
    swapped = slip == "rows and columns swapped"
    side = case.options["pool_size"]
    for i, j, window in _windows(case, step, case.window, size, swapped):
        flat = X[window].reshape(*X.shape[:2], -1)
        chosen = flat.argmax(axis=-1)
        if slip == "last of equals":
            chosen = flat.shape[-1] - 1 - flat[..., ::-1].argmax(axis=-1)
        rows, columns = np.divmod(chosen, side)
        if slip != "position in the window":
            rows, columns = rows + window[2].start, columns + window[3].start
        best = flat.max(axis=-1)
        if slip.startswith("maximum starts at 0"):
            corner = slip.endswith("corner")
            rows = np.where(best > 0, rows, window[2].start if corner else 0)
            columns = np.where(best > 0, columns, window[3].start if corner else 0)
            best = np.maximum(best, 0)
        if slip == "row and column swapped":
            rows, columns = columns, rows
        out[:, :, i, j], indices[:, :, i, j] = best, np.stack([rows, columns], axis=-1)
        if out.shape != dout.shape:
            continue
        passed = dout[:, :, i, j]
        if slip == "assigned":
            dX[n, c, rows, columns] = passed
        elif slip == "window assigned":
            dX[window] = 0
            dX[n, c, rows, columns] = passed
        elif slip == "every equal":
            dX[window] += (X[window] == best[..., None, None]) * passed[..., None, None]
        elif slip == "shared among equals":
            equal = X[window] == best[..., None, None]
            dX[window] += equal * (passed / equal.sum(axis=(2, 3)))[..., None, None]
        elif slip == "stride ignored in backward":
            place = (_ALL, _ALL, slice(i, i + side), slice(j, j + side))
            dX[place] += (X[window] == best[..., None, None]) * passed[..., None, None]
        elif slip == "dout forgotten":
            dX[n, c, rows, columns] += 1
        else:
            dX[n, c, rows, columns] += passed
            if slip == "truncated at each step":
                dX = np.trunc(dX)
    return {"out": out, "max_indices": indices, "dX": np.trunc(dX) if slip == "truncated" else dX}


def _avg_pool(case: Case, slip: str) -> Arrays:
    X, dout = _floats(case, "X", "dout")
    size, stride, side = _size(case, slip), case.options["stride"], case.options["pool_size"]
    out, dX = np.zeros((*X.shape[:2], *size)), np.zeros_like(X)
    wrong = {"not divided": 1, "divided by the side": side, "divided by the stride": stride**2}
    wrong |= {"divided by the outputs": size[0] * size[1]}
    divisor = wrong.get(slip, side * side)
    ignored = slip == "stride ignored"
    for i, j, window in _windows(
        case, 1 if ignored else stride, case.window, size, slip == "rows and columns swapped"
    ):
        out[:, :, i, j] = X[window].sum(axis=(2, 3)) / divisor
        if out.shape != dout.shape:
            continue
        share = (dout[:, :, i, j] / divisor)[..., None, None]
        if slip == "stride ignored in backward":
            window = (_ALL, _ALL, slice(i, i + side), slice(j, j + side))
        if slip in ("assigned", "window assigned"):
            dX[window] = share
        elif slip == "truncated at each step":
            dX[window] = np.trunc(dX[window] + share)
        elif slip == "dout forgotten":
            dX[window] += 1 / divisor
        else:
            dX[window] += share
    if slip == "truncated":
        out, dX = np.trunc(out), np.trunc(dX)
    return {"out": out, "dX": dX}


# ---------------------------------------------------------------- numerical gradients

FUNCTIONS: dict[str, Any] = {
    "cube": lambda x: x**3,
    "running sum": lambda x: np.cumsum(x).reshape(x.shape),
    "itself": lambda x: x,  # the very array, whose elements go on moving
}
STEP = 1e-5


def _gradient(case: Case, slip: str) -> Arrays:
    x, dout = _floats(case, "x", "dout")
    if slip == "dout forgotten":
        dout = np.ones_like(x)
    kind = case.options["f"]
    if kind == "cube":
        differences = {
            "forward difference": (FUNCTIONS["cube"](x + STEP) - FUNCTIONS["cube"](x)) / STEP,
            "backward difference": (FUNCTIONS["cube"](x) - FUNCTIONS["cube"](x - STEP)) / STEP,
        }
        gradient = dout * differences.get(slip, 3 * x**2)
    elif kind == "running sum":
        gradient = np.cumsum(dout.ravel()[::-1])[::-1].reshape(x.shape)
        if slip == "own element only":
            gradient = dout.copy()
    else:
        gradient = np.zeros_like(x) if slip == "view" else dout.copy()
    factor = {"not halved": 2.0, "halved twice": 0.5, "sign": -1.0}.get(slip, 1.0)
    return {"gradient": gradient * factor}
