"""The gradient checker itself; ``cnnx gradcheck``'s grid is in test_gradcheck_grid.

Functions here are simple enough that their gradients are known by hand. That wrong backward passes
of real layers are caught is the subject of test_sabotage.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import cnnx
from cnnx import functional as F
from cnnx.gradcheck import GradcheckEntry

# With step 1e-5 a difference of numbers of size s rounds by 1e-16 * s / 1e-5 = 1e-11 * s, and the
# third derivative d adds d * 1e-10 / 6. Both are below 1e-9 for the polynomials here.
ATOL = 1e-9


# ---------------------------------------------------------------- numerical_gradient


def test_numerical_gradient_of_polynomials() -> None:
    x = np.array([[1.0, -2.0], [0.5, 3.0]])
    assert_allclose(cnnx.numerical_gradient(lambda x: (x**2).sum(), x), 2 * x, atol=ATOL)
    assert_allclose(cnnx.numerical_gradient(lambda x: x**3, x), 3 * x**2, atol=ATOL)


def test_upstream_gradient_weights_the_outputs() -> None:
    x, grad_out = np.array([1.0, 2.0, 3.0]), np.array([1.0, 10.0, -1.0])
    matrix = np.arange(9.0).reshape(3, 3)
    gradient = cnnx.numerical_gradient(lambda x: matrix @ x, x, grad_out)
    assert_allclose(gradient, matrix.T @ grad_out, atol=100 * ATOL)  # sums of size 100
    assert_array_equal(
        cnnx.eval_numerical_gradient(lambda x: matrix @ x, x, grad_out, 1e-5), gradient
    )


def test_a_number_is_an_array_too() -> None:
    x = np.array(3.0)
    gradient = cnnx.numerical_gradient(lambda x: float(x) ** 2, x)
    assert gradient.shape == () and gradient == pytest.approx(6, abs=ATOL)


def test_function_may_ignore_its_argument() -> None:
    """The classroom's lambdas close over the array, which is moved in place."""
    x = np.array([1.0, 2.0])
    gradient = cnnx.numerical_gradient(lambda _: 5 * x, x, np.array([1.0, 2.0]))
    assert_allclose(gradient, [5, 10], atol=ATOL)


def test_function_may_return_x_itself() -> None:
    x = np.array([1.0, 2.0])
    assert_allclose(cnnx.numerical_gradient(lambda x: x, x), [1, 1], atol=ATOL)


def test_view_is_moved_in_place() -> None:
    whole = np.arange(6.0).reshape(2, 3)
    gradient = cnnx.numerical_gradient(lambda _: whole**2, whole[:, ::2])
    assert_allclose(gradient, 2 * whole[:, ::2], atol=ATOL)


def test_float32_divides_by_the_step_taken() -> None:
    x = np.array([1.0, 3.0], np.float32)
    gradient = cnnx.numerical_gradient(lambda x: 2 * x.astype(np.float64), x, h=1e-3)
    assert gradient.dtype == np.float32
    assert_array_equal(gradient, [2, 2])  # a step of 1e-3 would have been off by 1e-5


def test_x_is_restored_to_the_bit_after_an_exception() -> None:
    x = np.array([0.1, 0.2, 0.3])
    before, calls = x.copy(), []

    def f(x: Any) -> Any:
        calls.append(x.copy())
        if len(calls) == 4:
            raise ZeroDivisionError
        return x

    with pytest.raises(ZeroDivisionError):
        cnnx.numerical_gradient(f, x)
    assert_array_equal(x, before)
    assert not np.array_equal(calls[-1], before)  # it had indeed been moved


@pytest.mark.parametrize(
    ("f", "x", "options", "error", "message"),
    [
        (3, np.ones(2), {}, TypeError, "f is a int, expected a function of x"),
        (np.sum, [1.0], {}, TypeError, "x is a list, expected an array"),
        (np.sum, np.ones(2, int), {}, TypeError, r"x has dtype int\d+.*x.astype\(np.float64\)"),
        (np.sum, np.broadcast_to(1.0, 2), {}, ValueError, "x is read-only"),
        (np.sum, np.ones(2), {"h": 0.0}, ValueError, "h is 0.0, expected a finite number above 0"),
        (np.sum, np.ones(2), {"h": "1"}, TypeError, "h is '1' .str., expected a number"),
        (
            np.sum,
            np.ones(2),
            {"h": np.nan},
            ValueError,
            "h is nan, expected a finite number above 0",
        ),
        (np.sum, np.array([0.0, 1e13]), {}, ValueError, r"lost in rounding beside x\[1\] = 1\d"),
        (lambda x: (x, None), np.ones(2), {}, TypeError, "f returned a tuple"),
        (
            np.square,
            np.ones(2),
            {"grad_out": np.ones(3)},
            ValueError,
            r"grad_out has shape \(3,\), expected the shape of f\(x\), \(2,\)",
        ),
    ],
)
def test_wrong_calls_of_numerical_gradient(
    f: Any, x: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        cnnx.numerical_gradient(f, x, **options)


# ---------------------------------------------------------------- gradcheck of functions


X = np.array([[1.0, -2.0, 0.5], [3.0, -0.25, 2.0]])


def test_right_and_wrong_function() -> None:
    assert cnnx.gradcheck(np.square, X, backward=lambda grad_out, x: 2 * x * grad_out)
    report = cnnx.gradcheck(np.square, X, backward=lambda grad_out, x: 3 * x * grad_out)
    assert not report
    # Claimed is 3/2 of the truth everywhere, and that is a third of the larger one.
    assert report.worst.error == pytest.approx(1 / 3, abs=1e-6)
    assert report.worst.analytic == pytest.approx(1.5 * report.worst.numeric, rel=1e-6)


def test_index_of_the_worst_element() -> None:
    def backward(grad_out: Any, x: Any) -> Any:
        gradient = 2 * x * grad_out
        gradient[0, 1] *= 1.01
        gradient[1, 2] *= 1.5
        return gradient

    entry = cnnx.gradcheck(np.square, X, backward=backward).worst
    assert entry.index == (1, 2)
    assert entry.checked == X.size and entry.shape == X.shape


def test_several_inputs_are_told_apart() -> None:
    def product(left: Any, right: Any, power: int) -> Any:
        return left * right**power

    def backward(grad_out: Any, left: Any, right: Any, power: int) -> Any:
        return grad_out * right**power, grad_out * left * right ** (power - 1)  # a power is missing

    report = cnnx.gradcheck(product, X, X + 1, 2, backward=backward)
    assert [entry.name for entry in report.entries] == ["left", "right"]
    assert report["left"].passed and not report["right"].passed
    with pytest.raises(KeyError, match="'power' is not among"):
        report["power"]


def test_none_means_not_checked() -> None:
    report = cnnx.gradcheck(
        np.multiply, X, X, backward=lambda grad_out, left, right: (grad_out * right, None)
    )
    assert report
    assert [entry.checked for entry in report.entries] == [X.size, 0]
    assert "not checked, for backward returned None" in str(report)
    with pytest.raises(ValueError, match="there is no gradient to check"):
        cnnx.gradcheck(np.square, X, backward=lambda grad_out, x: None)


def test_function_with_cache() -> None:
    def forward(x: Any) -> Any:
        out = np.exp(x)
        return out, out

    assert cnnx.gradcheck(forward, X, backward=lambda grad_out, cache: grad_out * cache)
    assert not cnnx.gradcheck(forward, X, backward=lambda grad_out, cache: grad_out * (1 + cache))


def test_public_functions_know_their_backward(backend: str, rng: np.random.Generator) -> None:
    x, weight, bias = rng.normal(size=(2, 2, 5, 4)), rng.normal(size=(3, 2, 3, 2)), np.ones(3)
    assert cnnx.gradcheck(partial(F.conv2d, stride=2, padding=1), x, weight, bias)
    assert cnnx.gradcheck(partial(F.max_pool2d, pool_size=2, stride=1), x)
    assert cnnx.gradcheck(partial(F.avg_pool2d, pool_size=3, padding=1), x)
    assert cnnx.gradcheck(partial(F.conv_forward, stride=2, pad=1), x, weight, bias)
    assert cnnx.gradcheck(F.gelu, x)
    with pytest.raises(ValueError, match="and relu_backward is no function of"):
        cnnx.gradcheck(F.relu_backward, X, X)
    with pytest.raises(ValueError, match="activation is 'relu': conv2d_backward does not know"):
        cnnx.gradcheck(partial(F.conv2d, activation="relu"), x, weight)


def test_inputs_are_left_alone() -> None:
    x = X.astype(np.float32)
    before = x.copy()
    assert cnnx.gradcheck(np.square, x, backward=lambda grad_out, x: 2 * x * grad_out)
    assert_array_equal(x, before)
    assert x.dtype == np.float32


@pytest.mark.parametrize("claim", [np.nan, np.inf, -np.inf])
def test_gradient_that_is_no_number_fails(claim: float) -> None:
    report = cnnx.gradcheck(lambda x: x * x, X, backward=lambda grad_out, x: np.full_like(x, claim))
    assert not report and report["x"].error == np.inf


def test_gradient_of_another_shape_fails() -> None:
    report = cnnx.gradcheck(np.square, X, backward=lambda grad_out, x: grad_out.T)
    assert not report
    assert "the gradient has shape (3, 2), expected (2, 3)" in str(report)


def test_raise_on_failure() -> None:
    wrong = partial(cnnx.gradcheck, np.square, X, backward=lambda grad_out, x: x * grad_out)
    with pytest.raises(cnnx.GradcheckError, match="gradcheck of square: FAILED") as caught:
        wrong(raise_on_failure=True)
    assert isinstance(caught.value, AssertionError)
    assert caught.value.report == wrong()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((np.square, X), {}, ValueError, "backward is None, and square is no function of cnnx"),
        ((np.square, X), {"eps": 0}, ValueError, "eps is 0, expected a finite number above 0"),
        ((np.square, X), {"rtol": -1}, ValueError, "rtol is -1, expected a finite number above 0"),
        ((np.square, X), {"rtol": np.inf}, ValueError, "rtol is inf, expected a finite number"),
        ((np.square, X), {"atol": np.nan}, ValueError, "atol is nan, expected a finite number"),
        ((np.square, X), {"eps": "1e-5"}, TypeError, "eps is '1e-5' .str., expected a number"),
        ((np.square, X), {"max_elements": 2.5}, TypeError, "max_elements is 2.5"),
        ((np.square, X), {"seed": -1}, ValueError, "seed is -1, expected an integer from 0"),
        ((np.square, X), {"max_elements": 0}, ValueError, "max_elements is 0"),
        ((F.relu, X.astype(int)), {}, TypeError, r"input 0 has dtype int\d+, expected float32"),
        ((F.relu, 3), {}, TypeError, "inputs are int, expected at least one float array"),
        ((F.relu, X[:0]), {}, ValueError, r"input 0 has shape \(0, 3\): no element to check"),
        ((cnnx.ReLU, X), {}, TypeError, "expected an object with forward and backward"),
        ((cnnx.ReLU(), X), {"backward": F.relu}, ValueError, "backward is for functions"),
        (
            (np.multiply, X, X),
            {"backward": lambda grad_out, a, b: grad_out},
            ValueError,
            "backward returned 1 gradients, expected 2",
        ),
        (
            (lambda x: x.astype(np.float32), X),
            {"backward": lambda grad_out, x: grad_out},
            TypeError,
            "forward returned dtype float32 for float64 inputs",
        ),
    ],
)
def test_wrong_calls_of_gradcheck(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        cnnx.gradcheck(*arguments, **options)


def test_forward_must_be_a_function() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="forward gave two results for one input"):
        cnnx.gradcheck(lambda x: x * rng.random(), X, backward=lambda grad_out, x: grad_out)

    def spoil(x: Any) -> Any:
        x += 1
        return x * x

    with pytest.raises(ValueError, match="forward changed x"):
        cnnx.gradcheck(spoil, X, backward=lambda grad_out, x: 2 * x * grad_out)


# ---------------------------------------------------------------- kinks


def test_relu_at_zero_is_marked_and_passes() -> None:
    x = np.array([0.0, 1.0, -1.0, 0.0])
    report = cnnx.gradcheck(cnnx.ReLU(), x)
    assert report and report["x"].kinks == 2
    assert "2 of 4 elements stand on a kink" in str(report)


def test_any_slope_between_the_two_sides_is_right_at_a_kink() -> None:
    x = np.array([0.0, 1.0, -1.0])
    for at_zero, right in ((0.0, True), (0.5, True), (1.0, True), (1.5, False), (-0.1, False)):
        slope = partial(np.interp, xp=[-1e-9, 0, 1e-9], fp=[0, at_zero, 1])
        report = cnnx.gradcheck(
            lambda x: np.maximum(x, 0), x, backward=lambda grad_out, x, s=slope: grad_out * s(x)
        )
        assert bool(report) == right


def test_ties_in_max_windows_pass(backend: str) -> None:
    """Whole numbers tie in most windows; only the first of equals gets the gradient."""
    x = np.random.default_rng(0).integers(0, 3, (2, 2, 6, 6)).astype(float)
    report = cnnx.gradcheck(cnnx.MaxPool2D(3, 1), x)
    assert report and report["x"].kinks > 20
    constant = cnnx.gradcheck(cnnx.MaxPool2D(2), np.zeros((1, 1, 4, 4)))
    assert constant and constant["x"].kinks == 16


def test_wrong_gradient_at_ties_is_caught() -> None:
    """Each of two equals alone may have all of the gradient, but both of them may not."""
    pool, x = cnnx.MaxPool2D(2), np.zeros((1, 1, 4, 4))
    pool.backward = lambda grad_out: grad_out.repeat(2, 2).repeat(2, 3)
    assert not cnnx.gradcheck(pool, x)


@pytest.mark.parametrize("distance", [0.0, 1e-9, 1e-7, 3e-6, 1e-5, 1e-4])
@pytest.mark.parametrize("side", [-1, 1])
def test_error_cannot_hide_beside_a_kink(distance: float, side: int) -> None:
    """All inputs near the kink of |x|, where a first difference straddles it."""
    x = side * np.array([distance, 2 * distance, 0.5 * distance])

    def check(factor: float) -> Any:
        backward = lambda grad_out, x: factor * np.sign(x) * grad_out  # noqa: E731
        return cnnx.gradcheck(np.abs, x, backward=backward)

    assert check(1)
    assert not check(1.001)
    assert not check(0.999)
    assert not check(-1)


@pytest.mark.parametrize("distance", [2e-8, 5e-8, 5e-7, 5e-6])
@pytest.mark.parametrize("jump", [1e-5, 1e-4, 5e-4, 1e-2, 1.0])
def test_small_kink_beside_a_steep_slope(jump: float, distance: float) -> None:
    """A deep net has thousands of kinks near each point, each a small part of the slope.

    The steps that reach across this one measure 100 + jump / 2 at most. That is close to the right
    slope, and yet not it.
    """

    def f(x: Any) -> Any:
        return 100 * (x + jump * np.maximum(x - distance, 0))

    x = np.zeros(3)
    assert cnnx.gradcheck(f, x, backward=lambda grad_out, x: 100 * grad_out)
    assert not cnnx.gradcheck(f, x, backward=lambda grad_out, x: 100.01 * grad_out)
    assert not cnnx.gradcheck(f, x, backward=lambda grad_out, x: 99.99 * grad_out)


# ---------------------------------------------------------------- gradcheck of layers


def test_layer_is_the_same_afterwards(rng: np.random.Generator) -> None:
    model = cnnx.Sequential(
        cnnx.Conv2D(2, 3, 3, rng=0), cnnx.BatchNorm2D(3), cnnx.ReLU(), cnnx.Dropout(0.5, rng=1)
    )
    x = rng.normal(size=(2, 2, 5, 5)).astype(np.float32)
    model.backward(model(x))
    generator = model[3].rng
    arrays = {**model.params, **model.grads, **model.buffers}
    values = {id(array): array.copy() for array in arrays.values()}
    state = generator.bit_generator.state

    assert cnnx.gradcheck(model, x)

    assert generator.bit_generator.state == state
    for name, array in {**model.params, **model.grads, **model.buffers}.items():
        assert array is arrays[name] and array.dtype == np.float32
        assert_array_equal(array, values[id(array)])
    assert_array_equal(model.backward(np.ones((2, 3, 3, 3), np.float32)).shape, x.shape)


def test_layer_is_restored_after_an_exception() -> None:
    layer, x = cnnx.Dense(3, 2, rng=0), np.ones((2, 3))
    weight = layer.params["weight"]
    before = weight.copy()

    def fail(grad_out: Any) -> Any:
        raise ZeroDivisionError

    layer.backward = fail
    with pytest.raises(ZeroDivisionError):
        cnnx.gradcheck(layer, x)
    assert layer.params["weight"] is weight
    assert_array_equal(weight, before)
    assert_array_equal(x, 1)


def test_frozen_layer_is_checked_with_its_moving_weights(rng: np.random.Generator) -> None:
    layer = cnnx.Conv2D(2, 3, 3, rng=0).freeze()
    assert cnnx.gradcheck(layer, rng.normal(size=(1, 2, 5, 5)))
    assert layer.frozen


def test_mode_is_kept(rng: np.random.Generator) -> None:
    layer, x = cnnx.Dropout(0.5, rng=0), np.ones((4, 5))
    assert cnnx.gradcheck(layer, x) and layer.training
    assert cnnx.gradcheck(layer.eval(), x) and not layer.training


class Square:
    """A student's layer: no base class, params and grads as plain dicts."""

    def __init__(self) -> None:
        self.params = {"scale": np.array([2.0])}
        self.grads: dict[str, Any] = {}

    def forward(self, x: Any) -> Any:
        self.x = x
        return self.params["scale"] * x**2

    def backward(self, grad_out: Any) -> Any:
        self.grads["scale"] = np.array([(grad_out * self.x**2).sum()])
        return grad_out * self.params["scale"] * 2 * self.x


def test_duck_typed_layer() -> None:
    assert [entry.name for entry in cnnx.gradcheck(Square(), X).entries] == ["x", "scale"]

    class Wrong(Square):
        def backward(self, grad_out: Any) -> Any:
            return super().backward(grad_out) / 2

    report = cnnx.gradcheck(Wrong(), X)
    assert not report["x"].passed and report["scale"].passed


def test_missing_gradient_of_a_parameter_fails() -> None:
    layer = Square()
    layer.backward = lambda grad_out: grad_out * 4 * layer.x
    report = cnnx.gradcheck(layer, X)
    assert report["x"].passed and not report["scale"].passed
    assert "scale: backward left no gradient" in str(report)


def test_layer_around_a_layer() -> None:
    class Doubled:
        def __init__(self, layer: Any) -> None:
            self.layer = layer
            self.forward = layer.forward  # bound: it must go on speaking to this very layer

        def backward(self, grad_out: Any) -> Any:
            return 2 * self.layer.backward(grad_out)

    dense = cnnx.Dense(3, 2, rng=0)
    assert not cnnx.gradcheck(Doubled(dense), X)
    wrapped = Doubled(dense)
    wrapped.backward = dense.backward
    assert cnnx.gradcheck(wrapped, X)


def test_random_layer_with_numpys_global_generator() -> None:
    """Homework draws its masks from np.random itself."""

    class Mask:
        def forward(self, x: Any) -> Any:
            self.mask = np.random.rand(*x.shape) < 0.5  # noqa: NPY002
            return x * self.mask

        def backward(self, grad_out: Any) -> Any:
            return grad_out * self.mask

    np.random.seed(3)  # noqa: NPY002
    expected = np.random.RandomState(3).rand(2)
    assert cnnx.gradcheck(Mask(), X)
    assert_array_equal(np.random.rand(2), expected)  # noqa: NPY002 - and it draws on from where it was


def test_large_arrays_are_sampled() -> None:
    dense = cnnx.Dense(100, 50, rng=0)
    report = cnnx.gradcheck(dense, np.random.default_rng(0).normal(size=(2, 100)), max_elements=90)
    assert report
    assert {e.name: e.checked for e in report.entries} == {"x": 30, "weight": 30, "bias": 30}
    assert "30 of 5000 elements alone, all of them along random directions" in str(report)


def test_same_seed_same_report() -> None:
    dense, x = cnnx.Dense(20, 30, rng=0), np.random.default_rng(0).normal(size=(4, 20))
    check = partial(cnnx.gradcheck, dense, x, max_elements=50)
    assert str(check(seed=1)) == str(check(seed=1)) != str(check(seed=2))


def test_printed_report() -> None:
    entries = (
        GradcheckEntry("x", (2, 3), 6, 1, 1e-9, (0, 1), 1.5, 1.5, True, "a remark"),
        GradcheckEntry("scale", (), 1, 0, 0.5, (), 1.0, 2.0, False),
    )
    report = cnnx.GradcheckReport("Square", entries, 1e-6)
    lines = str(report).splitlines()
    assert lines[0] == "gradcheck of Square: FAILED (relative error at most 1e-06)"
    assert lines[1].split() == [
        "gradient", "of", "shape", "checked", "kinks", "worst", "error", "at", "analytic",
        "numeric",
    ]  # fmt: skip
    assert lines[2].split() == ["x", "2x3", "6/6", "1", "1.0e-09", "(0,", "1)", "1.5", "1.5", "ok"]
    assert lines[3].split() == ["scale", "number", "1/1", "0", "5.0e-01", "()", "1", "2", "WRONG"]
    assert lines[4:] == ["x: a remark"]
    assert report.worst is entries[1] and not report


# ---------------------------------------------------------------------------- large numbers

LARGE: dict[str, tuple[Callable[[], cnnx.Layer], tuple[int, ...]]] = {
    "Dense": (lambda: cnnx.Dense(6, 3, dtype="float64", rng=0), (4, 6)),
    "Dense, many": (lambda: cnnx.Dense(60, 40, dtype="float64", rng=0), (9, 60)),
    "Conv2D": (lambda: cnnx.Conv2D(2, 3, 3, padding=1, dtype="float64", rng=0), (2, 2, 5, 5)),
    "relu": (lambda: cnnx.Conv2D(2, 3, 3, activation="relu", dtype="float64", rng=0), (2, 2, 5, 5)),
    "BatchNorm2D": (lambda: cnnx.BatchNorm2D(3, dtype="float64"), (4, 3, 3, 3)),
    "MaxPool2D": (lambda: cnnx.MaxPool2D(2), (2, 3, 6, 6)),
}


def _wrong_by(layer: cnnx.Layer, name: str, share: float) -> cnnx.Layer:
    """The layer, with one element of a gradient wrong by a share of the largest."""
    right = layer.backward

    def backward(grad_out: Any) -> Any:
        grad_x = right(grad_out)
        gradient = grad_x if name == "x" else layer.grads[name]
        gradient.flat[gradient.size // 2] += share * np.abs(gradient).max()
        return grad_x

    layer.backward = backward  # type: ignore[method-assign]
    return layer


@pytest.mark.parametrize("scale", [1e3, 1e5, 1e6, 1e7])
@pytest.mark.parametrize("name", LARGE)
def test_large_inputs(name: str, scale: float) -> None:
    # A bias of 0.1 moves outputs of 1e6 by 1e-5 and less, and their last place is 1e-10: a slope's
    # error is 1e-5 then, ten times the tolerance.
    make, shape = LARGE[name]
    atol = 1e-9 / scale  # a normalised input's gradient is as small as the input is large
    x = scale * np.random.default_rng(0).standard_normal(shape)
    for max_elements in (10_000, 20):  # all of them alone; few, and all together
        report = cnnx.gradcheck(make(), x, max_elements=max_elements, atol=atol)
        assert report, report
    for gradient in ["x", *make().params]:
        assert not cnnx.gradcheck(_wrong_by(make(), gradient, 1e-4), x, atol=atol)
