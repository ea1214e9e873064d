"""Backward passes that are wrong on purpose: the gradient check has to catch each of them.

Two tables: faults that any gradient of any layer can have, and the mistakes people make in one
particular layer. Every layer of the tables is first shown to pass while it is healthy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import cnnx
from cnnx import functional as F

Make = Callable[[], Any]
Subject = tuple[str, Make, tuple[int, ...]]

SHIFTED = ((1, 2), (2, 1))  # a padding that can be moved by one pixel and stay a padding

CONVOLUTIONS: list[Subject] = [
    ("conv", lambda: cnnx.Conv2D(2, 3, 3, padding=SHIFTED, rng=0), (2, 2, 5, 4)),
    (
        "conv-strided-groups",
        lambda: cnnx.Conv2D(4, 6, (3, 2), (2, 3), SHIFTED, groups=2, rng=0),
        (2, 4, 7, 6),
    ),
    (
        "conv-depthwise-dilated",
        lambda: cnnx.Conv2D(3, 6, 3, 2, SHIFTED, (1, 2), groups=3, rng=0),
        (2, 3, 6, 7),
    ),
]
TRANSPOSED: list[Subject] = [
    ("transposed", lambda: cnnx.ConvTranspose2D(2, 3, 3, 2, 1, 1, rng=0), (2, 2, 4, 3)),
    (
        "transposed-groups",
        lambda: cnnx.ConvTranspose2D(4, 6, (2, 3), (1, 2), (1, 0), groups=2, rng=0),
        (3, 4, 3, 4),
    ),
]
OVERLAPPING_MAX: list[Subject] = [
    ("max-3-1", lambda: cnnx.MaxPool2D(3, 1), (2, 2, 6, 5)),
    ("max-3-2-padded", lambda: cnnx.MaxPool2D(3, 2, 1), (1, 3, 7, 7)),
    ("max-2x3-dilated", lambda: cnnx.MaxPool2D((2, 3), 1, 0, (2, 1)), (2, 1, 7, 6)),
]
PADDED_AVG: list[Subject] = [
    (
        "avg-3-2-padded",
        lambda: cnnx.AvgPool2D(3, 2, 1, count_include_pad=False),
        (2, 2, 7, 6),
    ),
    (
        "avg-2-ceil",
        lambda: cnnx.AvgPool2D((3, 2), (1, 2), (1, 0), ceil_mode=True, count_include_pad=False),
        (1, 2, 5, 7),
    ),
]
DENSE: list[Subject] = [
    ("dense", lambda: cnnx.Dense(7, 3, rng=0), (4, 7)),
    ("dense-tanh", lambda: cnnx.Dense(5, 5, activation="tanh", rng=0), (3, 5)),
]
NORMS: list[Subject] = [
    ("norm", lambda: cnnx.BatchNorm2D(3), (2, 3, 4, 5)),
    ("norm-flat", lambda: cnnx.BatchNorm2D(2), (5, 2, 1, 2)),
]
ACTIVATIONS: list[Subject] = [
    (name, getattr(cnnx, name), shape)
    for name in ("ReLU", "ReLU6", "Sigmoid", "Tanh", "GELU", "SiLU", "Softmax")
    for shape in ((3, 7), (2, 2, 3, 4))
] + [("LeakyReLU", partial(cnnx.LeakyReLU, 0.2), (4, 9))]


class OfTarget:
    """A loss as a layer."""

    def __init__(self, loss: Any, target: Any) -> None:
        self.loss, self.target = loss, target

    def forward(self, x: Any) -> Any:
        return np.float64(self.loss.forward(x, self.target))

    def backward(self, grad_out: Any) -> Any:
        return grad_out * self.loss.backward()


LABELS = np.array([1, 0, 3, 1, 2])
LOSSES: list[Subject] = [
    ("entropy", lambda: OfTarget(cnnx.SoftmaxCrossEntropy(), LABELS), (5, 4)),
    ("entropy-smooth", lambda: OfTarget(cnnx.SoftmaxCrossEntropy(0.1), LABELS), (5, 6)),
]
RESIDUALS: list[Subject] = [
    ("residual", lambda: cnnx.Residual(cnnx.Conv2D(2, 2, 3, padding=1, rng=0)), (2, 2, 4, 3)),
    (
        "residual-shortcut",
        lambda: cnnx.Residual(
            # Without a bias: the mean that the norm takes off makes its gradient 0, true or false.
            cnnx.Sequential(
                cnnx.Conv2D(2, 3, 3, 2, 1, bias=False, rng=0), cnnx.BatchNorm2D(3), cnnx.ReLU()
            ),
            cnnx.Conv2D(2, 3, 1, 2, rng=1),
        ),
        (2, 2, 5, 6),
    ),
]
ALL = [
    *CONVOLUTIONS,
    *TRANSPOSED,
    *OVERLAPPING_MAX,
    *PADDED_AVG,
    *DENSE,
    *NORMS,
    *ACTIVATIONS,
    *LOSSES,
    *RESIDUALS,
]


def ids(table: list[Any]) -> list[str]:
    return [f"{row[0]}-{'x'.join(map(str, row[2]))}" for row in table]


def built(make: Make, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """The layer with no parameter at 0 or 1, where a missing factor or term would not show."""
    rng = np.random.default_rng(7)
    layer = make()
    for array in getattr(layer, "params", {}).values():
        array += 0.4 * rng.standard_normal(array.shape)
    # ReLU6 bends at 6, which numbers of spread 1 never reach.
    return layer, rng.standard_normal(shape) * (5 if isinstance(layer, cnnx.ReLU6) else 1)


@pytest.mark.parametrize("subject", ALL, ids=ids(ALL))
def test_healthy_layers_pass(subject: Subject, backend: str) -> None:
    layer, x = built(*subject[1:])
    report = cnnx.gradcheck(layer, x)
    assert report, str(report)


# ---------------------------------------------------------------- faults of any gradient


def scaled(gradient: Any) -> Any:
    return 1.001 * gradient


def negated(gradient: Any) -> Any:
    return -gradient


def shifted(gradient: Any) -> Any:
    """Every number one place too far."""
    return np.roll(gradient.ravel(), 1).reshape(gradient.shape)


def truncated(gradient: Any) -> Any:
    """The last number was forgotten."""
    gradient = gradient.copy()
    gradient[np.unravel_index(np.flatnonzero(gradient)[-1], gradient.shape)] = 0
    return gradient


def offset(gradient: Any) -> Any:
    return gradient + 1e-4 * np.abs(gradient).max()


def not_a_number(gradient: Any) -> Any:
    gradient = gradient.copy()
    gradient.flat[0] = np.nan
    return gradient


@pytest.mark.parametrize(
    "fault", [scaled, negated, shifted, truncated, offset, not_a_number], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("subject", ALL, ids=ids(ALL))
def test_fault_of_one_gradient_is_caught(subject: Subject, fault: Callable[[Any], Any]) -> None:
    """One tensor at a time is wrong, and the report blames that one and no other."""
    layer, x = built(*subject[1:])
    right = layer.backward
    for name in ("x", *getattr(layer, "params", {})):

        def wrong(grad_out: Any, name: str = name) -> Any:
            grad_x = right(grad_out)
            if name == "x":
                return fault(grad_x)
            layer.grads[name] = fault(layer.grads[name])
            return grad_x

        layer.backward = wrong
        report = cnnx.gradcheck(layer, x)
        assert {entry.name for entry in report.entries if not entry.passed} == {name}


@pytest.mark.parametrize("factor", [0.0, -1.0, 1.01, 2.0])
@pytest.mark.parametrize("position", [0, 12345, 36863])
def test_one_wrong_element_of_a_large_weight_is_found(factor: float, position: int) -> None:
    """Of 36864 elements some thousand are moved alone: the directions must show the others."""
    layer, x = built(lambda: cnnx.Conv2D(64, 64, 3, rng=0), (1, 64, 3, 3))
    right = layer.backward

    def wrong(grad_out: Any) -> Any:
        grad_x = right(grad_out)
        layer.grads["weight"].flat[position] *= factor
        return grad_x

    assert cnnx.gradcheck(layer, x, max_elements=300)
    layer.backward = wrong
    report = cnnx.gradcheck(layer, x, max_elements=300)
    assert not report["weight"].passed
    assert report["weight"].index == np.unravel_index(position, (64, 64, 3, 3))
    assert report["x"].passed and report["bias"].passed


# ---------------------------------------------------------------- mistakes in one kind of layer
#
# Each takes the layer, its right backward and grad_out. It returns a wrong grad_x, or spoils grads.

Mistake = Callable[[Any, Callable[[Any], Any], Any], Any]


def derivative_at(layer: Any, grad_out: Any, **options: Any) -> tuple[Any, ...]:
    """Conv2D's gradients with other options than the forward's."""
    given = {
        name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")
    } | options
    return F.conv2d_backward(grad_out, layer._saved[0], layer.params["weight"], **given)


def padding_off_by_one(layer: Any, right: Any, grad_out: Any) -> Any:
    (top, bottom), columns = layer.padding
    moved = ((top + 1, bottom - 1), columns)
    grad_x, layer.grads["weight"], layer.grads["bias"] = derivative_at(
        layer, grad_out, padding=moved
    )
    return grad_x


def stride_ignored(layer: Any, right: Any, grad_out: Any) -> Any:
    """The outputs' gradients are painted side by side instead of `stride` apart."""
    right(grad_out)
    image = layer._saved[0].shape
    kernel, dilation = layer.params["weight"].shape[2:], np.broadcast_to(layer.dilation, 2)
    small = [grad_out.shape[2 + a] + dilation[a] * (kernel[a] - 1) for a in (0, 1)]
    dense = np.zeros((*image[:2], *small))
    grad = F.conv2d_backward(
        grad_out, dense, layer.params["weight"], 1, 0, layer.dilation, layer.groups
    )[0]
    grad_x = np.zeros(image)
    rows, columns = min(small[0], image[2]), min(small[1], image[3])
    grad_x[:, :, :rows, :columns] = grad[:, :, :rows, :columns]
    return grad_x


def bias_of_first_image(layer: Any, right: Any, grad_out: Any) -> Any:
    grad_x = right(grad_out)
    first = grad_out[0]
    layer.grads["bias"] = first.sum(axis=(1, 2)) if first.ndim == 3 else first
    return grad_x


def weight_of_last_image(layer: Any, right: Any, grad_out: Any) -> Any:
    """Assigned in the loop over the batch, and not added."""
    grad_x = right(grad_out)
    only_last = np.zeros_like(grad_out)
    only_last[-1] = grad_out[-1]
    right(only_last)
    kept = layer.grads["weight"]
    right(grad_out)
    layer.grads["weight"] = kept
    return grad_x


def mean_over_batch(layer: Any, right: Any, grad_out: Any) -> Any:
    grad_x = right(grad_out)
    layer.grads["weight"] = layer.grads["weight"] / len(grad_out)
    return grad_x


def kernel_flipped(layer: Any, right: Any, grad_out: Any) -> Any:
    grad_x = right(grad_out)
    layer.grads["weight"] = layer.grads["weight"][:, :, ::-1, ::-1]
    return grad_x


def max_assigned(layer: Any, right: Any, grad_out: Any) -> Any:
    indices, shape = layer._saved
    grad_x = np.zeros((*shape[:2], shape[2] * shape[3]))
    flat = indices.reshape(*shape[:2], -1)
    np.put_along_axis(grad_x, flat, grad_out.reshape(flat.shape), axis=2)
    return grad_x.reshape(shape)


def max_one_row_too_high(layer: Any, right: Any, grad_out: Any) -> Any:
    return np.roll(right(grad_out), -1, axis=2)


def max_one_window_late(layer: Any, right: Any, grad_out: Any) -> Any:
    return right(np.roll(grad_out, 1, axis=3))


def avg_counts_padding(layer: Any, right: Any, grad_out: Any) -> Any:
    return F.avg_pool2d_backward(
        grad_out, layer._saved[0], layer.pool_size, layer.stride, layer.padding, layer.ceil_mode
    )


def avg_without_division(layer: Any, right: Any, grad_out: Any) -> Any:
    return right(grad_out) * np.prod(np.broadcast_to(layer.pool_size, 2))


def norm_constant_statistics(layer: Any, right: Any, grad_out: Any) -> Any:
    right(grad_out)
    _, _, var, _ = layer._saved
    scale = layer.params["weight"] / np.sqrt(var + layer.eps)
    return grad_out * scale[:, None, None]


def norm_without_variance_term(layer: Any, right: Any, grad_out: Any) -> Any:
    constant = norm_constant_statistics(layer, right, grad_out)
    return constant - constant.mean(axis=(0, 2, 3), keepdims=True)


def norm_without_weight(layer: Any, right: Any, grad_out: Any) -> Any:
    return right(grad_out) / layer.params["weight"][:, None, None]


def norm_unbiased_variance(layer: Any, right: Any, grad_out: Any) -> Any:
    x, mean, var, batch = layer._saved
    pixels = x.size / x.shape[1]
    layer._saved = (x, mean, var * pixels / (pixels - 1), batch)
    return right(grad_out)


def activation_forgotten(layer: Any, right: Any, grad_out: Any) -> Any:
    """The slope of the fused activation is left out."""
    x, _ = layer._saved
    return F.linear_backward(grad_out, x, layer.params["weight"])[0]


def passed_on(layer: Any, right: Any, grad_out: Any) -> Any:
    return grad_out.copy()


def entropy_without_mean(layer: Any, right: Any, grad_out: Any) -> Any:
    return right(grad_out) * len(LABELS)


def entropy_without_target(layer: Any, right: Any, grad_out: Any) -> Any:
    grad_x = right(grad_out)
    return grad_x + grad_out * np.eye(grad_x.shape[1])[LABELS] / len(LABELS)


def without_shortcut(layer: Any, right: Any, grad_out: Any) -> Any:
    right(grad_out)
    return layer.body.backward(grad_out)


def without_body(layer: Any, right: Any, grad_out: Any) -> Any:
    right(grad_out)
    return grad_out if layer.shortcut is None else layer.shortcut.backward(grad_out)


MISTAKES: list[tuple[list[Subject], list[Mistake]]] = [
    (CONVOLUTIONS, [padding_off_by_one, bias_of_first_image, weight_of_last_image]),
    (CONVOLUTIONS, [mean_over_batch, kernel_flipped]),
    (CONVOLUTIONS[1:], [stride_ignored]),
    (TRANSPOSED, [bias_of_first_image, weight_of_last_image, mean_over_batch, kernel_flipped]),
    (OVERLAPPING_MAX, [max_assigned, max_one_row_too_high, max_one_window_late]),
    (PADDED_AVG, [avg_counts_padding, avg_without_division]),
    (DENSE, [bias_of_first_image, weight_of_last_image, mean_over_batch]),
    (DENSE[1:], [activation_forgotten]),
    (NORMS, [norm_constant_statistics, norm_without_variance_term, norm_without_weight]),
    (NORMS, [norm_unbiased_variance]),
    (ACTIVATIONS, [passed_on]),
    (LOSSES, [entropy_without_mean, entropy_without_target]),
    (RESIDUALS, [without_shortcut, without_body]),
]
PAIRS = [
    pytest.param(subject, mistake, id=f"{mistake.__name__}-{ids([subject])[0]}")
    for subjects, mistakes in MISTAKES
    for mistake in mistakes
    for subject in subjects
]


@pytest.mark.parametrize(("subject", "mistake"), PAIRS)
def test_mistake_is_caught(subject: Subject, mistake: Mistake) -> None:
    layer, x = built(*subject[1:])
    layer.backward = partial(mistake, layer, layer.backward)
    assert not cnnx.gradcheck(layer, x)


# The derivatives as they are often written, each wrong in one place.
SLOPES: list[tuple[str, Callable[[Any, Any], Any]]] = [
    ("ReLU", lambda x, y: np.where(x > -0.5, 1, 0)),
    ("ReLU6", lambda x, y: np.where(x > 0, 1, 0)),
    ("LeakyReLU", lambda x, y: np.where(x > 0, 1, 0)),
    ("Sigmoid", lambda x, y: y),
    ("Sigmoid", lambda x, y: x * (1 - x)),
    ("Tanh", lambda x, y: 1 - x**2),
    ("Tanh", lambda x, y: 1 - y),
    # The approximation with tanh: its slope is off by less than a thousandth.
    ("GELU", lambda x, y: _tanh_gelu_slope(x)),
    ("SiLU", lambda x, y: 1 / (1 + np.exp(-x))),
    ("Softmax", lambda x, y: y * (1 - y)),  # the diagonal of the Jacobian only
]


def _tanh_gelu_slope(x: Any) -> Any:
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    slope = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    return 0.5 * (1 + np.tanh(inner)) + 0.5 * x * slope / np.cosh(inner) ** 2


@pytest.mark.parametrize("shape", [(3, 7), (2, 3, 4, 5)])
@pytest.mark.parametrize(("name", "slope"), SLOPES)
def test_wrong_slope_is_caught(
    name: str, slope: Callable[[Any, Any], Any], shape: tuple[int, ...]
) -> None:
    layer, x = built(getattr(cnnx, name), shape)
    right = layer.forward

    def forward(x: Any) -> Any:
        layer.x, layer.y = x, right(x)
        return layer.y

    layer.forward = forward
    assert cnnx.gradcheck(layer, x)
    layer.backward = lambda grad_out: grad_out * slope(layer.x, layer.y)
    assert not cnnx.gradcheck(layer, x)


# ---------------------------------------------------------------- stale caches


class Stale:
    """A layer whose backward knows the input and the parameters of another forward than the last.

    Parameters
    ----------
    layer : layer
    which : int
        Of all forwards so far: 0 for the first one, -2 for the last but one, -1 for the right one.
    """

    def __init__(self, layer: Any, which: int) -> None:
        self.layer, self.which = layer, which
        self.history: tuple[Any, ...] = ()

    @property
    def params(self) -> dict[str, Any]:
        return getattr(self.layer, "params", {})

    @property
    def grads(self) -> dict[str, Any]:
        return getattr(self.layer, "grads", {})

    def forward(self, x: Any) -> Any:
        state = x.copy(), {name: array.copy() for name, array in self.params.items()}
        self.history = (*self.history, state)
        return self.layer.forward(x)

    def backward(self, grad_out: Any) -> Any:
        x, params = self.history[max(self.which, -len(self.history))]
        now = {name: array.copy() for name, array in self.params.items()}
        for name, array in self.params.items():
            array[...] = params[name]
        self.layer.forward(x)
        grad_x = self.layer.backward(grad_out)
        for name, array in self.params.items():
            array[...] = now[name]
        return grad_x


# A max pool's gradient is the same at any point near enough: there a stale cache is no fault.
CACHING = [*CONVOLUTIONS, *TRANSPOSED, *DENSE, *NORMS, *ACTIVATIONS[4:14], *LOSSES]


@pytest.mark.parametrize("which", [0, -2])
@pytest.mark.parametrize("subject", CACHING, ids=ids(CACHING))
def test_stale_cache_is_caught(subject: Subject, which: int) -> None:
    layer, x = built(*subject[1:])
    assert cnnx.gradcheck(Stale(layer, -1), x)
    assert not cnnx.gradcheck(Stale(layer, which), x)


class Accumulating(cnnx.Dense):
    """Adds to its gradients: right once, and wrong on every later step."""

    def backward(self, grad_out: Any) -> Any:
        before = {name: array.copy() for name, array in self.grads.items()}
        grad_x = super().backward(grad_out)
        for name, array in before.items():
            self.grads[name] = self.grads[name] + array
        return grad_x


def test_accumulating_gradients_are_caught() -> None:
    report = cnnx.gradcheck(Accumulating(3, 2, rng=0), np.arange(6.0).reshape(2, 3))
    assert not report
    assert "a second backward gave another gradient" in str(report)
