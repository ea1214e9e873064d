"""Losses: hand values, the formulas with `math`, central differences, and wrong calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import cnnx


def cross_entropy(pred: Any, target: Any, smoothing: float = 0.0) -> float:
    """The docstring's formula on probabilities, element by element."""
    total, (count, classes) = 0.0, pred.shape
    for n in range(count):
        normaliser = math.log(math.fsum(math.exp(score) for score in pred[n]))
        for k in range(classes):
            wanted = (1 - smoothing) * target[n, k] + smoothing / classes
            total -= wanted * (pred[n, k] - normaliser)
    return total / count


def central_difference(f: Callable[[], float], array: Any) -> Any:
    """The gradient of f by an array it reads, one element at a time."""
    step, gradient = 1e-6, np.zeros(array.shape)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + step
        above = f()
        array[index] = kept - step
        gradient[index] = (above - f()) / (2 * step)
        array[index] = kept
    return gradient


def test_cross_entropy_by_hand(backend: str, dtype: Any) -> None:
    # exp(pred) is (1, 3) and (1, 1): probabilities 1/4, 3/4 and 1/2, 1/2.
    pred = np.log(np.array([[1, 3], [1, 1]], dtype))
    loss = cnnx.SoftmaxCrossEntropy()
    value = loss.forward(pred, np.array([1, 0]))
    assert type(value) is float
    # log and exp of numbers near 1: a few roundings, each half a unit in the last place.
    close = 8 * float(np.finfo(dtype).eps)
    assert value == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=close)
    grad = loss.backward()
    assert grad.dtype == dtype
    assert_allclose(grad, [[1 / 8, -1 / 8], [-1 / 4, 1 / 4]], rtol=close)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("kind", ["labels", "one-hot", "probabilities", "weights"])
def test_cross_entropy_is_its_formula(backend: str, rng: Any, kind: str, smoothing: float) -> None:
    pred = 3 * rng.standard_normal((5, 4))
    labels = np.array([3, 0, 2, 2, 1])
    table = np.eye(4)[labels]
    if kind in ("probabilities", "weights"):
        table = rng.random((5, 4))
        if kind == "probabilities":
            table /= table.sum(axis=1, keepdims=True)
    target = labels if kind == "labels" else table
    loss = cnnx.SoftmaxCrossEntropy(smoothing)
    value = loss(pred, target)
    assert value == pytest.approx(cross_entropy(pred, table, smoothing), rel=1e-14)  # 20 terms
    numeric = central_difference(lambda: cross_entropy(pred, table, smoothing), pred)
    # A value near 5 is rounded to 1e-15 or so, which over 2e-6 leaves 1e-9.
    assert_allclose(loss.backward(), numeric, rtol=0, atol=3e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_of_many_classes(implementation: str, rng: Any, smoothing: float) -> None:
    # More classes than a vector has lanes, and a rest; labels and their table are one target.
    pred, labels = 3 * rng.standard_normal((9, 37)), rng.integers(0, 37, 9)
    by_label, by_table = cnnx.SoftmaxCrossEntropy(smoothing), cnnx.SoftmaxCrossEntropy(smoothing)
    value = by_label(pred, labels)
    assert value == pytest.approx(cross_entropy(pred, np.eye(37)[labels], smoothing), rel=1e-13)
    assert by_table(pred, np.eye(37)[labels]) == pytest.approx(value, rel=1e-13)
    assert_allclose(by_label.backward(), by_table.backward(), rtol=0, atol=1e-15)  # of at most 1/9


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.int64, np.uint64])
def test_labels_of_every_integer_dtype(kind: Any) -> None:
    pred = np.log(np.array([[1.0, 3.0]]))
    assert cnnx.SoftmaxCrossEntropy()(pred, np.array([1], kind)) == pytest.approx(math.log(4 / 3))


def test_one_hot_of_integers_and_booleans() -> None:
    pred = np.log(np.array([[1.0, 3.0]]))
    for table in (np.array([[0, 1]]), np.array([[False, True]])):
        value = cnnx.SoftmaxCrossEntropy()(pred, table)
        assert value == pytest.approx(math.log(4 / 3))


def test_double_targets_do_not_make_the_gradient_double() -> None:
    # np.eye makes float64; were the gradient that, the whole backward would be.
    pred = np.zeros((2, 3), np.float32)
    loss = cnnx.SoftmaxCrossEntropy(0.1)
    loss(pred, np.eye(3)[[0, 1]])
    assert loss.backward().dtype == np.float32
    mean = cnnx.MSELoss()
    mean(pred, np.eye(3)[[0, 1]])
    assert mean.backward().dtype == np.float32


def test_large_scores_do_not_overflow(backend: str, dtype: Any) -> None:
    loss = cnnx.SoftmaxCrossEntropy()
    pred = np.array([[1000, -1000, 999]], dtype)
    assert loss(pred, np.array([1])) == pytest.approx(2000 + math.log1p(math.exp(-1)), rel=1e-6)
    first, last = 1 / (1 + math.exp(-1)), 1 / (1 + math.e)
    assert_allclose(loss.backward(), [[first, -1, last]], rtol=1e-6)  # float32's eps is 1.2e-7


def test_a_class_that_is_ruled_out_costs_nothing(backend: str) -> None:
    loss = cnnx.SoftmaxCrossEntropy()
    assert loss(np.array([[0.0, -np.inf, 0.0]]), np.array([2])) == pytest.approx(math.log(2))
    assert_allclose(loss.backward(), [[0.5, 0, -0.5]], rtol=1e-15)
    assert loss(np.array([[0.0, -np.inf]]), np.array([1])) == math.inf


def test_mean_squared_error_by_hand(dtype: Any) -> None:
    loss = cnnx.MSELoss()
    pred, target = np.array([[1, 2], [3, 4]], dtype), np.array([[1, 4], [0, 8]], dtype)
    assert loss(pred, target) == (0 + 4 + 9 + 16) / 4
    grad = loss.backward()
    assert grad.dtype == dtype
    assert_array_equal(grad, np.array([[0, -1], [1.5, -2]], dtype))


def test_an_empty_batch_costs_nothing() -> None:
    for loss in (cnnx.SoftmaxCrossEntropy(), cnnx.MSELoss()):
        assert loss(np.zeros((0, 3)), np.zeros((0, 3))) == 0
        assert loss.backward().shape == (0, 3)
    assert cnnx.SoftmaxCrossEntropy()(np.zeros((0, 3)), np.zeros(0, int)) == 0


def test_arguments_are_not_modified() -> None:
    pred, target = np.ones((2, 3)), np.ones((2, 3))
    pred.flags.writeable = target.flags.writeable = False
    for loss in (cnnx.SoftmaxCrossEntropy(0.1), cnnx.MSELoss()):
        loss(pred, target)
        loss.backward()
    assert_array_equal(pred, np.ones((2, 3)))
    assert_array_equal(target, np.ones((2, 3)))


@pytest.mark.parametrize("loss", [cnnx.SoftmaxCrossEntropy(), cnnx.MSELoss()])
def test_the_gradient_is_the_caller_s(loss: Any) -> None:
    loss(np.eye(3), np.ones((3, 3)) / 3)
    first = loss.backward()
    known = first.copy()
    first *= 0.5
    assert_array_equal(loss.backward(), known)


@pytest.mark.parametrize("loss", [cnnx.SoftmaxCrossEntropy(), cnnx.MSELoss()])
def test_backward_before_forward(loss: Any) -> None:
    with pytest.raises(RuntimeError, match=f"{type(loss).__name__}.backward came before forward"):
        loss.backward()


PRED = np.zeros((2, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: cnnx.SoftmaxCrossEntropy()(PRED, np.array([0, 3])),
            ValueError,
            r"target\[1\] is 3, expected a class from 0 to 2",
        ),
        (
            lambda: cnnx.SoftmaxCrossEntropy()(PRED, np.array([-1, 0])),
            ValueError,
            r"target\[0\] is -1, expected a class from 0 to 2",
        ),
        (
            lambda: cnnx.SoftmaxCrossEntropy()(PRED, np.array([0, 1, 2])),
            ValueError,
            r"target has shape \(3,\), expected \(2,\) labels or \(2, 3\) probabilities",
        ),
        (
            lambda: cnnx.SoftmaxCrossEntropy()(PRED, np.array([0.0, 1.0])),
            TypeError,
            r"target has dtype float64, expected integer labels: target\.astype\(np\.int64\)",
        ),
        (
            lambda: cnnx.SoftmaxCrossEntropy()(PRED, np.zeros((2, 3), complex)),
            TypeError,
            "target has dtype complex128, expected probabilities",
        ),
        (
            lambda: cnnx.SoftmaxCrossEntropy()(np.zeros(3), np.array([0])),
            ValueError,
            r"pred has shape \(3,\), expected 2 dimensions \(N, K\)",
        ),
        (
            lambda: cnnx.SoftmaxCrossEntropy()(np.zeros((2, 0)), np.array([0, 0])),
            ValueError,
            r"pred has shape \(2, 0\), expected \(N, K\)",
        ),
        (
            lambda: cnnx.SoftmaxCrossEntropy()(np.zeros((2, 3), int), np.array([0, 0])),
            TypeError,
            "pred.*int64.*float32",
        ),
        (
            lambda: cnnx.SoftmaxCrossEntropy(label_smoothing=1.5),
            ValueError,
            "label_smoothing is 1.5, expected a finite number from 0 to 1",
        ),
        (
            lambda: cnnx.MSELoss()(PRED, np.zeros((2, 1))),
            ValueError,
            r"target has shape \(2, 1\), expected \(2, 3\)",
        ),
        (lambda: cnnx.MSELoss()(PRED, np.zeros((2, 3), int)), TypeError, "target.*int64.*float32"),
    ],
)
def test_wrong_calls(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
