"""The grid behind ``cnnx gradcheck``: every layer, many configurations, both backends.

A row of the table is a layer, a case one configuration of it with the shape of an input. Each case
is compared three times: its gradients with central differences, in float64 on the compiled kernels
and on the NumPy fallback; and the results of the two with each other, in float64 and float32.
To check one more configuration, add it to its layer's function; one more layer, to ``ROWS``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cnnx
from cnnx import _dispatch

__all__ = ["run"]

Array = NDArray[Any]

# Largest difference between the backends, as a share of a tensor's largest element: 400 units of
# the last place. Both round, each in an order of its own; a sum of the grid has up to 150 terms, so
# that is some 12 units of the terms, and the sum may be 30 times smaller than they are.
_AGREE = {"float32": 5e-5, "float64": 1e-13}
_QUICK = 11  # of the cases every eleventh: a prime, so that no option of a grid is always left out


@dataclass(frozen=True)
class Case:
    """One configuration: how to make the layer, and the shapes of its inputs."""

    make: Callable[[], Any]
    shapes: tuple[tuple[int, ...], ...]
    note: str = ""  # what the layer's repr does not show
    scale: float = 1.0  # standard deviation of the inputs


# ---------------------------------------------------------------- the grid

_IMAGE = (2, 4, 7, 6)
_PLANES = (1, 2, 7, 6)
_STRIDES = (1, 2, 3, (2, 1), (1, 3))
_CORNERS = ((1, 0), (0, 1))  # padding at the top and at the right only


def _grid(layer: Callable[..., Any], *shape: int, **choices: tuple[Any, ...]) -> Iterator[Case]:
    """All combinations of the choices."""
    for values in product(*choices.values()):
        options = dict(zip(choices, values, strict=True))
        yield Case(lambda options=options: layer(**options), (shape,))  # type: ignore[misc]


def _conv(**fixed: Any) -> Callable[..., cnnx.Conv2D]:
    return lambda **options: cnnx.Conv2D(**fixed, **options, rng=0)


def _conv2d() -> Iterator[Case]:
    paddings = (0, 1, (2, 0), _CORNERS, "same")
    plain = _conv(in_channels=2, out_channels=3, kernel_size=(3, 2))
    yield from _grid(plain, 1, 2, 7, 6, stride=_STRIDES, padding=paddings, dilation=(1, 2, (1, 2)))
    square = _conv(in_channels=4, out_channels=4, padding=1)
    yield from _grid(square, *_IMAGE, kernel_size=(1, 3), stride=(1, 2), groups=(1, 2, 4))
    yield from _grid(
        _conv(in_channels=3, out_channels=6, kernel_size=3, groups=3),
        2, 3, 5, 7, stride=(1, 2, (1, 2)), padding=(0, 1, _CORNERS), bias=(True, False),
    )  # fmt: skip
    yield from _grid(
        _conv(in_channels=2, out_channels=3, kernel_size=3),
        2, 2, 6, 5,
        padding_mode=("zeros", "reflect", "replicate", "circular"),
        padding=(1, ((1, 2), (0, 3)), "same"),
        activation=(None, "relu", "sigmoid", "tanh"),
    )  # fmt: skip
    # A kernel larger than the image; a single pixel; more channels than any tile is wide.
    yield from _grid(_conv(in_channels=2, out_channels=2, kernel_size=5, padding=2), 1, 2, 3, 2)
    yield from _grid(_conv(in_channels=3, out_channels=2, kernel_size=3, padding=1), 3, 3, 1, 1)
    yield from _grid(_conv(in_channels=17, out_channels=9, kernel_size=3), 1, 17, 3, 11)


def _conv_transpose2d() -> Iterator[Case]:
    def layer(**options: Any) -> cnnx.ConvTranspose2D:
        return cnnx.ConvTranspose2D(2, 4, (3, 2), **options, rng=0)

    yield from _grid(
        layer, 2, 2, 4, 3, stride=_STRIDES, padding=(0, (1, 0), _CORNERS), dilation=(1, (1, 2))
    )
    yield from _grid(
        layer, 2, 2, 3, 4, stride=(2, 3), padding=(0, 1), output_padding=(0, 1, (0, 1)),
        groups=(1, 2), bias=(True, False),
    )  # fmt: skip


def _max_pool2d() -> Iterator[Case]:
    yield from _grid(
        cnnx.MaxPool2D, *_PLANES, pool_size=(2, 3, (2, 3)), stride=(None, *_STRIDES),
        padding=(0, 1, _CORNERS), ceil_mode=(False, True),
    )  # fmt: skip
    yield from _grid(
        cnnx.MaxPool2D, *_IMAGE, pool_size=(2, 3), stride=(1, (1, 2)), padding=(0, "same"),
        dilation=(2, (1, 2)), ceil_mode=(False, True),
    )  # fmt: skip


def _avg_pool2d() -> Iterator[Case]:
    yield from _grid(
        cnnx.AvgPool2D, *_PLANES, pool_size=(2, 3, (2, 3)), stride=(None, *_STRIDES),
        padding=(0, 1, _CORNERS), ceil_mode=(False, True), count_include_pad=(True, False),
    )  # fmt: skip


def _global_avg_pool2d() -> Iterator[Case]:
    yield from _grid(cnnx.GlobalAvgPool2D, *_IMAGE)
    yield from _grid(cnnx.GlobalAvgPool2D, 3, 1, 1, 5)


def _flatten() -> Iterator[Case]:
    yield from _grid(cnnx.Flatten, *_IMAGE)
    yield from _grid(cnnx.Flatten, 3, 5)


def _dense() -> Iterator[Case]:
    activations = (None, "relu", "sigmoid", "tanh")
    for batch, inner, outer in ((4, 7, 5), (1, 1, 3), (9, 17, 1)):
        yield from _grid(
            cnnx.Dense, batch, inner, in_features=(inner,), out_features=(outer,),
            bias=(True, False), activation=activations, rng=(0,),
        )  # fmt: skip


def _elementwise(layer: Callable[..., Any], **choices: tuple[Any, ...]) -> Iterator[Case]:
    for shape in (_IMAGE, (5, 11)):
        for case in _grid(layer, *shape, **choices):
            yield replace(case, scale=4.0)  # to either side of ReLU6's ceiling, and into the tails


def _softmax() -> Iterator[Case]:
    yield from _grid(cnnx.Softmax, 4, 7)
    yield from _grid(cnnx.Softmax, *_IMAGE, axis=(0, 1, -1))


def _batch_norm2d() -> Iterator[Case]:
    def after_training(**options: Any) -> cnnx.BatchNorm2D:
        layer = cnnx.BatchNorm2D(**options).eval()
        layer.buffers["running_mean"] += np.linspace(-1, 1, 4, dtype=np.float32)
        layer.buffers["running_var"] *= np.linspace(0.5, 2, 4, dtype=np.float32)
        return layer

    for layer, note in ((cnnx.BatchNorm2D, "train"), (after_training, "eval")):
        for shape in (_IMAGE, (3, 4, 1, 5)):
            choices = {"num_features": (4,), "eps": (1e-5, 0.1), "affine": (True, False)}
            for case in _grid(layer, *shape, **choices):
                yield replace(case, note=note)
        for case in _grid(layer, *_IMAGE, num_features=(4,), activation=("relu", "relu6")):
            yield replace(case, note=note, scale=4.0)


def _dropout() -> Iterator[Case]:
    yield from _grid(cnnx.Dropout, *_IMAGE, p=(0.3, 0.8, 0.0), rng=(0,))
    yield Case(lambda: cnnx.Dropout(0.5, rng=0).eval(), (_IMAGE,), "eval")


def _body(channels: int, out: int, stride: int = 1) -> cnnx.Sequential:
    return cnnx.Sequential(
        cnnx.Conv2D(channels, out, 3, stride, 1, bias=False, rng=0),
        cnnx.BatchNorm2D(out),
        cnnx.ReLU(),
        cnnx.Conv2D(out, out, 3, padding=1, rng=1),
    )


def _sequential() -> Iterator[Case]:
    yield Case(lambda: _body(4, 3), (_IMAGE,))
    yield Case(
        lambda: cnnx.Sequential(
            cnnx.Conv2D(4, 3, 3, activation="relu", rng=0),
            cnnx.MaxPool2D(3, 1),
            cnnx.Flatten(),
            cnnx.Dense(18, 5, activation="tanh", rng=1),
            cnnx.Dropout(0.3, rng=2),
            cnnx.Dense(5, 2, rng=3),
        ),
        (_IMAGE,),
    )
    yield Case(cnnx.Sequential, ((3, 4),))


def _residual() -> Iterator[Case]:
    yield Case(lambda: cnnx.Residual(_body(4, 4)), (_IMAGE,))
    yield Case(lambda: cnnx.Residual(cnnx.Sigmoid()), (_IMAGE,))
    yield Case(lambda: cnnx.Residual(_body(4, 4), activation="relu"), (_IMAGE,))
    yield Case(lambda: cnnx.Residual(_body(4, 2, 2), cnnx.Conv2D(4, 2, 1, 2, rng=2)), (_IMAGE,))
    yield Case(lambda: cnnx.Residual(_body(4, 4).eval(), cnnx.Residual(cnnx.Tanh())), (_IMAGE,))


@dataclass
class _OfTarget:
    """A loss as a layer: a function of the prediction alone."""

    loss: Any
    target: Array

    def forward(self, x: Array) -> Array:
        return np.asarray(self.loss.forward(x, self.target), x.dtype)

    def backward(self, grad_out: Array) -> Array:
        return np.asarray(grad_out * self.loss.backward())


def _softmax_cross_entropy() -> Iterator[Case]:
    labels = np.array([2, 0, 2, 1])
    for target in (labels, np.full((4, 3), 0.25) + 0.25 * np.eye(3)[labels]):
        yield from _grid(
            lambda target=target, **options: _OfTarget(cnnx.SoftmaxCrossEntropy(**options), target),
            4, 3, label_smoothing=(0.0, 0.1, 1.0),
        )  # fmt: skip


def _mse_loss() -> Iterator[Case]:
    for shape in ((4, 3), _IMAGE):
        target = np.linspace(-2, 2, int(np.prod(shape))).reshape(shape)
        yield from _grid(lambda target=target: _OfTarget(cnnx.MSELoss(), target), *shape)


@dataclass
class _LogSoftmax:
    """The function and its backward as a layer."""

    axis: int

    def forward(self, x: Array) -> Array:
        self._x = x
        return cnnx.log_softmax(x, self.axis)

    def backward(self, grad_out: Array) -> Array:
        return cnnx.log_softmax_backward(grad_out, self._x, self.axis)


def _log_softmax() -> Iterator[Case]:
    yield from _grid(_LogSoftmax, *_IMAGE, axis=(0, 1, -1))


@dataclass
class _ClassroomConv:
    """The pair conv_forward and conv_backward as a layer with three inputs."""

    stride: Any
    pad: Any
    activation: Any

    def forward(self, x: Array, weight: Array, bias: Array) -> Array:
        out, self._cache = cnnx.conv_forward(
            x, weight, bias, self.stride, self.pad, self.activation
        )
        return out

    def backward(self, grad_out: Array) -> tuple[Array, Array, Array | None]:
        return cnnx.conv_backward(grad_out, self._cache)


def _conv_forward() -> Iterator[Case]:
    for case in _grid(
        _ClassroomConv, 2, 2, 5, 4,
        stride=(1, 2, 3, (2, 1)), pad=(0, 1, "same"), activation=(None, "relu", "sigmoid", "tanh"),
    ):  # fmt: skip
        yield replace(case, shapes=(*case.shapes, (3, 2, 3, 3), (3,)))


ROWS: dict[str, Callable[[], Iterator[Case]]] = {
    "Conv2D": _conv2d,
    "ConvTranspose2D": _conv_transpose2d,
    "MaxPool2D": _max_pool2d,
    "AvgPool2D": _avg_pool2d,
    "GlobalAvgPool2D": _global_avg_pool2d,
    "Flatten": _flatten,
    "Dense": _dense,
    "ReLU": lambda: _elementwise(cnnx.ReLU),
    "LeakyReLU": lambda: _elementwise(cnnx.LeakyReLU, slope=(0.01, 0.3)),
    "ReLU6": lambda: _elementwise(cnnx.ReLU6),
    "Sigmoid": lambda: _elementwise(cnnx.Sigmoid),
    "Tanh": lambda: _elementwise(cnnx.Tanh),
    "GELU": lambda: _elementwise(cnnx.GELU),
    "SiLU": lambda: _elementwise(cnnx.SiLU),
    "Softmax": _softmax,
    "BatchNorm2D": _batch_norm2d,
    "Dropout": _dropout,
    "Sequential": _sequential,
    "Residual": _residual,
    "SoftmaxCrossEntropy": _softmax_cross_entropy,
    "MSELoss": _mse_loss,
    "log_softmax": _log_softmax,
    "conv_forward": _conv_forward,
}


# ---------------------------------------------------------------- the run


@dataclass
class _Row:
    """What was found about one layer."""

    name: str
    cases: int = 0
    elements: int = 0
    worst: dict[str, float] = field(default_factory=dict)  # by tensor, then by dtype
    failures: list[str] = field(default_factory=list)

    def note(self, column: str, error: float) -> None:
        self.worst[column] = max(error, self.worst.get(column, 0.0))


def run(quick: bool = False, plain: bool = False) -> bool:
    """Check the gradients of every layer over a grid, print a table, and return the verdict.

    Parameters
    ----------
    quick : bool
        Whether to check a part of the grid only, of each layer at least one case.
    plain : bool
        Whether to print plain text also where rich is installed.

    Returns
    -------
    bool
        Whether every gradient was right and the backends agreed. Where the compiled kernels were
        not built, only the fallback is checked, and the last line says so.
    """
    started = time.perf_counter()
    backends = ["numpy"] if _dispatch.compiled() is None else ["compiled", "numpy"]
    rows = []
    with _table(plain) as add:
        for name, cases in ROWS.items():
            rows.append(_checked(name, list(cases())[:: _QUICK if quick else 1], backends))
            add(_cells(rows[-1]), bool(rows[-1].failures))
    failures = [failure for row in rows for failure in row.failures]
    for failure in failures:
        print(f"\n{failure}")
    print(
        f"{sum(row.cases for row in rows)} cases on {' and '.join(backends)}"
        f"{'' if len(backends) > 1 else ' (the compiled kernels are missing)'}, "
        f"{sum(row.elements for row in rows):,} elements checked "
        f"in {time.perf_counter() - started:.1f} s: "
        f"{f'{len(failures)} WRONG' if failures else 'all gradients are right'}"
    )
    return not failures


def _checked(name: str, cases: list[Case], backends: list[str]) -> _Row:
    row = _Row(name)
    for case in cases:
        row.cases += 1
        try:
            for backend in backends:
                with cnnx.use_backend(backend):  # type: ignore[arg-type]
                    _check_gradients(row, case, backend)
            if len(backends) > 1:
                _check_agreement(row, case, backends)
        except Exception as error:  # the other cases are still worth knowing
            row.failures.append(f"{_title(name, case)}: {type(error).__name__}: {error}")
    return row


def _check_gradients(row: _Row, case: Case, backend: str) -> None:
    report = cnnx.gradcheck(*_made(case, "float64"))
    for entry in report.entries:
        row.elements += entry.checked
        row.note(entry.name.rpartition(".")[2], entry.error)
    if not report:
        row.failures.append(f"{_title(row.name, case)}, {backend} backend:\n{report}")


def _check_agreement(row: _Row, case: Case, backends: list[str]) -> None:
    for dtype, tolerance in _AGREE.items():
        found = []
        for backend in backends:
            with cnnx.use_backend(backend):  # type: ignore[arg-type]
                found.append(_results(*_made(case, dtype)))
        for name, ours in found[0].items():
            theirs = found[1][name]
            scale = float(np.abs(theirs).max(initial=0.0))
            apart = float(np.abs(ours - theirs).max(initial=0.0))
            difference = apart / max(scale, float(np.finfo(dtype).tiny))
            row.note(dtype, difference)
            if not difference <= tolerance:
                row.failures.append(
                    f"{_title(row.name, case)}, {dtype}: {' and '.join(backends)} differ in {name} "
                    f"by {difference:.1e} of its largest element, expected at most {tolerance:g}"
                )


def _made(case: Case, dtype: str) -> tuple[Any, ...]:
    """The layer, with no parameter at its initial 0 or 1, and its inputs."""
    rng = np.random.default_rng(1)
    layer = case.make()
    for array in getattr(layer, "params", {}).values():
        array += 0.3 * rng.standard_normal(array.shape)
    if isinstance(layer, cnnx.Layer):
        layer.astype(dtype)
    return layer, *(
        (case.scale * rng.standard_normal(shape)).astype(dtype) for shape in case.shapes
    )


def _results(layer: Any, *inputs: Array) -> dict[str, Array]:
    """The output of a layer, and all gradients for a random upstream one."""
    out = layer.forward(*inputs)
    grad_out = np.random.default_rng(2).standard_normal(out.shape).astype(out.dtype)
    grads = layer.backward(grad_out)
    grads = grads if isinstance(grads, tuple) else (grads,)
    named = {f"grad_{number}": grad for number, grad in enumerate(grads)}
    return {"out": out, **named, **getattr(layer, "grads", {})}


def _title(name: str, case: Case) -> str:
    shapes = ", ".join("x".join(map(str, shape)) for shape in case.shapes)
    note = f", {case.note}" if case.note else ""
    return f"{name}: {case.make()!r} on {shapes}{note}"


# ---------------------------------------------------------------- the table

_ERRORS = ("x", "weight", "bias", "float32", "float64")
_HEADS = ("layer", "cases", *_ERRORS, "")
_CAPTION = (
    "Worst relative error of the gradients by x, weight and bias, and in float32 and float64 the\n"
    "largest difference between the compiled kernels and the NumPy fallback."
)


def _cells(row: _Row) -> list[str]:
    errors = [f"{row.worst[name]:.0e}" if name in row.worst else "" for name in _ERRORS]
    return [row.name, str(row.cases), *errors, "WRONG" if row.failures else "ok"]


@contextmanager
def _table(plain: bool) -> Iterator[Callable[[list[str], bool], None]]:
    """A table that grows by a row with each call of the value; rich's only in a terminal."""
    print(_CAPTION)
    try:
        from rich.console import Console
    except ImportError:
        plain = True
    if plain or not (console := Console()).is_terminal:
        width = max(map(len, ROWS))

        def show(cells: list[str], failed: bool = False) -> None:
            name, *others = cells
            print(f"{name:{width}}{''.join(f'{cell:>9}' for cell in others)}".rstrip(), flush=True)

        show(list(_HEADS))
        yield show
        return

    from rich.live import Live
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for number, head in enumerate(_HEADS):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    # A console of our own: rich's common one is what it was when somebody first used it.
    with Live(table, console=console, vertical_overflow="visible"):
        yield lambda cells, failed: table.add_row(*cells, style="bold red" if failed else "")
