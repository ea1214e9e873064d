"""Single layers: what they compute, what they keep, and how they answer to wrong calls.

Forward is compared with the loops of `naive` or a formula, backward with central differences that
are written out here. Containers and the state of models have test_containers.py.
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import naive
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import cnnx

IMAGE = (2, 4, 5, 6)

# Each class of layer, at least once: name, maker, input shape. All in float64.
LAYERS: list[tuple[str, Callable[[], Any], tuple[int, ...]]] = [
    ("Conv2D", lambda: cnnx.Conv2D(4, 3, 3, padding=1, dtype="float64", rng=1), IMAGE),
    (
        "Conv2D-options",
        lambda: cnnx.Conv2D(
            4,
            6,
            (3, 2),
            (2, 1),
            ((1, 0), (2, 1)),
            (1, 2),
            2,
            False,
            "reflect",
            dtype="float64",
            rng=1,
        ),
        IMAGE,
    ),
    *(
        (
            f"Conv2D-{kind}",
            lambda kind=kind: cnnx.Conv2D(4, 3, 3, activation=kind, dtype="float64", rng=1),
            IMAGE,
        )
        for kind in ("relu", "sigmoid", "tanh")
    ),
    (
        "ConvTranspose2D",
        lambda: cnnx.ConvTranspose2D(4, 6, 3, 2, 1, 1, groups=2, dtype="float64", rng=1),
        IMAGE,
    ),
    (
        "ConvTranspose2D-no-bias",
        lambda: cnnx.ConvTranspose2D(4, 2, 2, bias=False, dilation=2, dtype="float64", rng=1),
        IMAGE,
    ),
    ("MaxPool2D", lambda: cnnx.MaxPool2D(3, 2, 1), IMAGE),
    ("MaxPool2D-dilated", lambda: cnnx.MaxPool2D(2, 1, 0, 2, ceil_mode=True), IMAGE),
    ("AvgPool2D", lambda: cnnx.AvgPool2D(3, 2, 1, True, count_include_pad=False), IMAGE),
    ("GlobalAvgPool2D", cnnx.GlobalAvgPool2D, IMAGE),
    ("Dense", lambda: cnnx.Dense(7, 3, dtype="float64", rng=1), (4, 7)),
    ("Dense-tanh", lambda: cnnx.Dense(7, 3, False, "tanh", dtype="float64", rng=1), (4, 7)),
    ("Flatten", cnnx.Flatten, IMAGE),
    *((name, getattr(cnnx, name), IMAGE) for name in ("ReLU", "ReLU6", "Sigmoid", "Tanh")),
    *((name, getattr(cnnx, name), (3, 5)) for name in ("LeakyReLU", "GELU", "SiLU", "Softmax")),
    ("Softmax-axis", lambda: cnnx.Softmax(axis=1), IMAGE),
    ("BatchNorm2D", lambda: cnnx.BatchNorm2D(4, dtype="float64"), IMAGE),
    ("BatchNorm2D-plain", lambda: cnnx.BatchNorm2D(4, affine=False, dtype="float64"), IMAGE),
    (
        "BatchNorm2D-relu",
        lambda: cnnx.BatchNorm2D(4, activation="relu", dtype="float64"),
        IMAGE,
    ),
    ("Dropout", lambda: cnnx.Dropout(0.3, rng=1), IMAGE),
    (
        "Sequential",
        lambda: cnnx.Sequential(cnnx.Flatten(), cnnx.Dense(120, 3, dtype="float64", rng=1)),
        IMAGE,
    ),
    (
        "Residual",
        lambda: cnnx.Residual(
            cnnx.Conv2D(4, 2, 3, padding=1, dtype="float64", rng=1),
            cnnx.Conv2D(4, 2, 1, dtype="float64", rng=2),
        ),
        IMAGE,
    ),
]


@pytest.fixture(params=LAYERS, ids=[name for name, _, _ in LAYERS])
def case(request: pytest.FixtureRequest, rng: np.random.Generator) -> tuple[Any, Any]:
    """A fresh layer with no zero among its parameters, and an input for it."""
    _, make, shape = request.param
    layer = make()
    for param in layer.params.values():
        param += 0.1 * rng.standard_normal(param.shape)
    return layer, 2 * rng.standard_normal(shape)


def test_table_has_every_layer() -> None:
    classes = {name for name in cnnx.layers.__all__ if name not in ("Layer", "Container")}
    assert {name.split("-")[0] for name, _, _ in LAYERS} == classes


def test_a_refused_forward_changes_nothing(case: tuple[Any, Any]) -> None:
    layer, x = case
    out = layer(x)
    known = layer.backward(out)
    state = layer.state_dict()
    with pytest.raises(TypeError, match="int64"):
        layer(x.astype(np.int64))
    assert_array_equal(layer.backward(out), known)
    for name, array in layer.state_dict().items():
        assert_array_equal(array, state[name])


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


def loss_of(layer: Any, x: Any, grad_out: Any) -> Callable[[], float]:
    """sum(layer(x) * grad_out), the same on every call though layers draw and follow statistics."""
    return lambda: float((copy.deepcopy(layer).forward(x) * grad_out).sum())


def check_gradients(layer: Any, x: Any, rng: np.random.Generator) -> None:
    start = copy.deepcopy(layer)
    grad_out = rng.standard_normal(layer.forward(x).shape)
    grad_x = layer.backward(grad_out)
    # A difference of two sums of some hundred terms of size 1, each rounded to 1e-16, over 2e-6:
    # some 1e-9 are lost; the curvature's share, step**2, is far below. A wrong term is of size 1.
    assert_allclose(grad_x, central_difference(loss_of(start, x, grad_out), x), rtol=0, atol=3e-8)
    for name, param in start.params.items():
        numeric = central_difference(loss_of(start, x, grad_out), param)
        assert_allclose(layer.grads[name], numeric, rtol=1e-8, atol=3e-8, err_msg=name)


def test_gradients(case: tuple[Any, Any], rng: np.random.Generator) -> None:
    check_gradients(*case, rng)


def test_gradients_in_eval(case: tuple[Any, Any], rng: np.random.Generator) -> None:
    layer, x = case
    for name, buffer in layer.buffers.items():
        buffer += 0.5 if name == "running_var" else -0.3
    check_gradients(layer.eval(), x, rng)


# ---------------------------------------------------------------- rules for every layer


def test_params_and_grads_have_the_same_keys_always(case: tuple[Any, Any]) -> None:
    layer, x = case
    for _ in range(2):
        assert layer.params.keys() == layer.grads.keys()
        for name, param in layer.params.items():
            assert layer.grads[name].shape == param.shape
            assert layer.grads[name].dtype == param.dtype
        layer.backward(np.ones_like(layer(x)))


def test_grads_are_filled_anew(case: tuple[Any, Any]) -> None:
    layer, x = case
    layer.eval()  # without a new dropout mask
    out = layer(x)
    layer.backward(np.ones_like(out))
    once = {name: grad.copy() for name, grad in layer.grads.items()}
    layer.backward(np.ones_like(out))
    for name, grad in layer.grads.items():
        assert_array_equal(grad, once[name])


def test_backward_before_forward(case: tuple[Any, Any]) -> None:
    layer, x = case
    with pytest.raises(RuntimeError, match=r"\.backward came before forward"):
        layer.backward(x)


def test_inputs_are_never_modified(case: tuple[Any, Any]) -> None:
    layer, x = case
    x.flags.writeable = False
    grad_out = np.ones_like(layer.forward(x))
    grad_out.flags.writeable = False
    before = grad_out.copy(), {name: param.copy() for name, param in layer.params.items()}
    layer.backward(grad_out)
    assert_array_equal(grad_out, before[0])
    for name, param in layer.params.items():
        assert_array_equal(param, before[1][name])


def test_call_is_forward(case: tuple[Any, Any]) -> None:
    layer, x = case
    assert_array_equal(copy.deepcopy(layer)(x), layer.forward(x))


def test_integers_are_refused(case: tuple[Any, Any]) -> None:
    layer, x = case
    with pytest.raises(TypeError, match=r"int64.*float32"):
        layer(x.astype(np.int64))


def test_empty_batch(case: tuple[Any, Any]) -> None:
    layer, x = case
    expected = layer.forward(x).shape[1:]
    buffers = {name: buffer.copy() for name, buffer in layer.buffers.items()}
    out = layer.forward(x[:0])
    assert out.shape == (0, *expected)
    assert layer.backward(np.ones_like(out)).shape == (0, *x.shape[1:])
    for name, grad in layer.grads.items():
        assert_array_equal(grad, np.zeros(layer.params[name].shape))
    for name, buffer in layer.buffers.items():
        assert_array_equal(buffer, buffers[name])


def test_changing_parameters_in_place_is_honoured(case: tuple[Any, Any]) -> None:
    layer, x = case
    layer.eval()
    first = layer(x).copy()
    for param in layer.params.values():
        param *= 1.5
    fresh = copy.deepcopy(layer)
    fresh._saved = None
    assert_array_equal(layer(x), fresh(x))
    if layer.params:
        assert not np.array_equal(layer(x), first)
        for param in layer.params.values():
            param[...] = 0
        out = layer(x)
        # With weight and bias 0, only a sigmoid is left of any layer that has parameters.
        assert_array_equal(out, np.full_like(out, 0.5 if "sigmoid" in repr(layer) else 0))


def test_deep_copies_and_pickles_are_independent(case: tuple[Any, Any]) -> None:
    layer, x = case
    expected = copy.deepcopy(layer).forward(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        for param in twin.params.values():
            param += 1
        assert twin.params.keys() == layer.params.keys()
    assert_array_equal(layer.forward(x), expected)


def test_astype_converts_everything(case: tuple[Any, Any]) -> None:
    layer, x = case
    before = layer.state_dict()
    assert layer.astype("float32") is layer
    for arrays in (layer.params, layer.grads, layer.buffers):
        assert {array.dtype for array in arrays.values()} <= {np.dtype(np.float32)}
    for name, array in layer.state_dict().items():
        assert_array_equal(array, before[name].astype(np.float32))
    out = layer(x.astype(np.float32))
    assert out.dtype == layer.backward(out).dtype == np.float32
    with pytest.raises(ValueError, match="dtype is 'int8', expected 'float32' or 'float64'"):
        layer.astype("int8")


# ---------------------------------------------------------------- convolution and dense


def test_conv2d_is_the_sum_of_the_docstring(backend: str, dtype: Any, rng: Any) -> None:
    layer = cnnx.Conv2D(4, 6, (3, 2), (2, 1), ((1, 0), (2, 1)), (1, 2), 2, dtype=dtype)
    layer.params["weight"][...] = naive.integers(rng, (6, 2, 3, 2))
    layer.params["bias"][...] = naive.integers(rng, (6,))
    x = naive.integers(rng, IMAGE, dtype)
    expected = naive.conv2d(x, *layer.params.values(), (2, 1), (1, 0, 2, 1), (1, 2), 2)
    assert_array_equal(layer(x), expected)  # whole numbers: exact
    layer.padding_mode = "replicate"
    framed = np.pad(x, ((0, 0), (0, 0), (1, 0), (2, 1)), mode="edge")
    expected = naive.conv2d(framed, *layer.params.values(), (2, 1), (0, 0, 0, 0), (1, 2), 2)
    assert_array_equal(layer(x), expected)


def test_conv_transpose2d_is_the_sum_of_the_docstring(backend: str, dtype: Any, rng: Any) -> None:
    layer = cnnx.ConvTranspose2D(4, 6, (3, 2), (2, 3), (1, 0), (1, 2), 2, dtype=dtype)
    layer.params["weight"][...] = naive.integers(rng, (4, 3, 3, 2))
    layer.params["bias"][...] = naive.integers(rng, (6,))
    x = naive.integers(rng, IMAGE, dtype)
    expected = naive.conv_transpose2d(
        x, *layer.params.values(), (2, 3), (1, 1, 0, 0), output_padding=(1, 2), groups=2
    )
    assert_array_equal(layer(x), expected)


def test_dense_by_hand(backend: str, dtype: Any) -> None:
    layer = cnnx.Dense(2, 3, activation="relu", dtype=dtype)
    layer.params["weight"][...] = [[1, 2, 3], [4, 5, -6]]
    layer.params["bias"][...] = [10, 20, 30]
    assert_array_equal(layer(np.array([[1, 10]], dtype)), np.array([[51, 72, 0]], dtype))
    grad_x = layer.backward(np.array([[1, 2, 100]], dtype))  # the relu stops the 100
    assert_array_equal(grad_x, np.array([[1 + 4, 4 + 10]], dtype))
    assert_array_equal(layer.grads["weight"], np.array([[1, 2, 0], [10, 20, 0]], dtype))
    assert_array_equal(layer.grads["bias"], np.array([1, 2, 0], dtype))


@pytest.mark.parametrize(
    ("layer", "shape", "fan_in"),
    [
        (cnnx.Conv2D(64, 32, (3, 5), groups=2, rng=5), (32, 32, 3, 5), 32 * 15),
        (cnnx.ConvTranspose2D(64, 32, 4, 2, groups=2, rng=5), (64, 16, 4, 4), 32 * 16 / 4),
        (cnnx.Dense(300, 100, rng=5), (300, 100), 300),
    ],
    ids=["Conv2D", "ConvTranspose2D", "Dense"],
)
def test_he_initialisation(layer: Any, shape: tuple[int, ...], fan_in: float) -> None:
    weight, bias = layer.params["weight"], layer.params["bias"]
    assert weight.shape == shape
    assert weight.dtype == np.float32
    assert_array_equal(bias, np.zeros_like(bias))
    deviation = math.sqrt(2 / fan_in)
    # Of n normal numbers the sample's deviation is off by 1 / sqrt(2n) of itself, the mean by
    # deviation / sqrt(n): four such, for a seed that is fixed.
    assert weight.std() == pytest.approx(deviation, rel=4 / math.sqrt(2 * weight.size))
    assert abs(weight.mean()) < 4 * deviation / math.sqrt(weight.size)
    # Normal, not uniform: 4.6% lie beyond two deviations, and some beyond three.
    assert np.mean(np.abs(weight) > 2 * deviation) == pytest.approx(0.0455, abs=0.01)
    assert np.abs(weight).max() > 3 * deviation


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: cnnx.Conv2D(3, 4, 3, **options),
        lambda **options: cnnx.ConvTranspose2D(3, 4, 3, **options),
        lambda **options: cnnx.Dense(3, 4, **options),
    ],
    ids=["Conv2D", "ConvTranspose2D", "Dense"],
)
def test_seeds(make: Callable[..., Any]) -> None:
    single, double = make(rng=7), make(rng=7, dtype="float64")
    weight = single.params["weight"]
    assert weight.tobytes() == make(rng=7).params["weight"].tobytes()
    assert_array_equal(weight, double.params["weight"].astype(np.float32))
    assert weight.tobytes() != make(rng=8).params["weight"].tobytes()
    assert make().params["weight"].tobytes() != make().params["weight"].tobytes()
    stream = np.random.default_rng(7)  # one generator for many layers: each draws its own
    assert weight.tobytes() == make(rng=stream).params["weight"].tobytes()
    assert weight.tobytes() != make(rng=stream).params["weight"].tobytes()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cnnx.Conv2D(0, 1, 3), "in_channels is 0, expected an integer from 1"),
        (lambda: cnnx.Conv2D(4, 6, 3, groups=4), "out_channels is 6, expected a multiple of gr"),
        (lambda: cnnx.Conv2D(1, 1, (3, 3, 3)), r"kernel_size is \(3, 3, 3\) "),
        (lambda: cnnx.Conv2D(1, 1, 0), "kernel_size is 0, expected an integer from 1"),
        (lambda: cnnx.Conv2D(1, 1, 1, stride=0), "stride is 0, expected an integer from 1"),
        (lambda: cnnx.Conv2D(1, 1, 1, padding=-1), "padding is -1, expected an integer from 0"),
        (lambda: cnnx.Conv2D(1, 1, 1, dilation=(1, 0)), r"dilation\[1\] is 0, expected"),
        (lambda: cnnx.Conv2D(1, 1, 1, padding_mode="zero"), "padding_mode is 'zero', expected one"),
        (lambda: cnnx.Conv2D(1, 1, 1, activation="relu6"), "activation is 'relu6', expected one"),
        (lambda: cnnx.Conv2D(1, 1, 1, dtype="float16"), "dtype is 'float16', expected 'float32'"),
        (lambda: cnnx.Conv2D(1, 1, 1, dtype="single precision"), "dtype is 'single precision'"),
        (lambda: cnnx.ConvTranspose2D(3, 1, 3, groups=2), "in_channels is 3, expected a multiple"),
        (lambda: cnnx.ConvTranspose2D(1, 1, 3, output_padding=-1), "output_padding is -1"),
        (lambda: cnnx.MaxPool2D(0), "pool_size is 0, expected an integer from 1"),
        (lambda: cnnx.MaxPool2D(2, dilation=0), "dilation is 0, expected an integer from 1"),
        (lambda: cnnx.AvgPool2D(2, 0), "stride is 0, expected an integer from 1"),
        (lambda: cnnx.AvgPool2D(2, padding="some"), "padding is 'some', expected 'same'"),
        (lambda: cnnx.Dense(3, -1), "out_features is -1, expected an integer from 1"),
        (lambda: cnnx.Dense(3, 1, activation="softmax"), "activation is 'softmax', expected one"),
        (lambda: cnnx.LeakyReLU(math.inf), "slope is inf, expected a finite number"),
        (lambda: cnnx.BatchNorm2D(0), "num_features is 0, expected an integer from 1"),
        (lambda: cnnx.BatchNorm2D(1, eps=-1.0), "eps is -1.0, expected a finite number"),
        (lambda: cnnx.BatchNorm2D(1, momentum=math.nan), "momentum is nan, expected a finite"),
        (lambda: cnnx.Dropout(1), "p is 1, expected a finite number from 0 to below 1"),
        (lambda: cnnx.Dropout(math.nan), "p is nan, expected a finite number from 0"),
    ],
)
def test_wrong_options_are_refused_at_once(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_sizes_that_are_no_integers() -> None:
    with pytest.raises(TypeError, match=r"out_channels is 2\.5 \(float\), expected an integer"):
        cnnx.Conv2D(1, 2.5, 3)  # type: ignore[arg-type]


def test_repr_shows_what_was_chosen() -> None:
    conv = cnnx.Conv2D(1, 8, 3, padding="same", bias=False, dtype="float64", rng=0)
    assert repr(conv) == (
        "Conv2D(in_channels=1, out_channels=8, kernel_size=3, padding='same', bias=False, "
        "dtype='float64')"
    )
    assert repr(cnnx.Dropout(0.25, rng=0)) == "Dropout(p=0.25)"
    assert repr(cnnx.ReLU()) == "ReLU()"


# ---------------------------------------------------------------- pooling and activations

MATRIX = np.array([[1, 3, 2, 1], [4, 2, 0, 5], [3, 1, 4, 2], [2, 0, 3, 6]])[None, None]


def test_max_indices_of_the_classroom(backend: str, dtype: Any) -> None:
    pool = cnnx.MaxPool2D(2, 2)
    with pytest.raises(RuntimeError, match="max_indices came before forward"):
        _ = pool.max_indices
    assert_array_equal(pool(MATRIX.astype(dtype))[0, 0], [[4, 5], [3, 6]])
    assert pool.max_indices.dtype == np.int64
    assert_array_equal(pool.max_indices[0, 0], [[[1, 0], [1, 3]], [[2, 0], [3, 3]]])
    assert_array_equal(
        pool.backward(np.array([[[[1, 2], [3, 4]]]], dtype))[0, 0],
        [[0, 0, 0, 0], [1, 0, 0, 2], [3, 0, 0, 0], [0, 0, 0, 4]],
    )


def test_max_indices_count_in_the_unpadded_image(backend: str, rng: np.random.Generator) -> None:
    x = rng.permutation(120).astype(float).reshape(2, 2, 5, 6)  # no two alike
    pool = cnnx.MaxPool2D((2, 3), 2, 1, (2, 1))
    out, where = pool(x), pool.max_indices
    assert where.shape == (*out.shape, 2)
    for n, c, i, j in np.ndindex(out.shape):
        rows = [r for r in (2 * i - 1, 2 * i + 1) if 0 <= r < 5]
        columns = [s for s in range(2 * j - 1, 2 * j + 2) if 0 <= s < 6]
        window = {x[n, c, r, s]: [r, s] for r in rows for s in columns}
        assert out[n, c, i, j] == max(window)
        assert where[n, c, i, j].tolist() == window[max(window)]


def test_overlapping_maxima_add_up(backend: str) -> None:
    pool = cnnx.MaxPool2D(2, 1)
    pool(np.array([[[[0.0, 0, 0], [0, 9, 0], [0, 0, 0]]]]))
    grad_x = pool.backward(np.array([[[[1.0, 2], [4, 8]]]]))
    assert_array_equal(grad_x[0, 0], [[0, 0, 0], [0, 15, 0], [0, 0, 0]])


def test_average_pools_by_hand(backend: str, dtype: Any) -> None:
    x = MATRIX.astype(dtype)
    assert_array_equal(cnnx.AvgPool2D(2)(x)[0, 0], [[2.5, 2], [1.5, 3.75]])
    corner = cnnx.AvgPool2D(2, padding=1, count_include_pad=False)(x)[0, 0]
    assert_array_equal(corner, [[1, 2.5, 1], [3.5, 1.75, 3.5], [2, 1.5, 6]])
    assert_array_equal(cnnx.AvgPool2D(2, padding=1)(x)[0, 0, 0], [0.25, 1.25, 0.25])
    assert_array_equal(cnnx.GlobalAvgPool2D()(x), [[39 / 16]])


FORMULAS: dict[str, Callable[[float], float]] = {
    "ReLU": lambda v: max(v, 0.0),
    "ReLU6": lambda v: min(max(v, 0.0), 6.0),
    "LeakyReLU": lambda v: v if v > 0 else 0.01 * v,
    "Sigmoid": lambda v: 1 / (1 + math.exp(-v)),
    "Tanh": math.tanh,
    "GELU": lambda v: v * (1 + math.erf(v / math.sqrt(2))) / 2,
    "SiLU": lambda v: v / (1 + math.exp(-v)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_activations_are_their_formulas(backend: str, name: str) -> None:
    values = [-9.0, -2.5, -1.0, -1e-3, 0.0, 1e-3, 0.5, 1.0, 5.9, 6.1, 40.0]
    expected = [FORMULAS[name](value) for value in values]
    # In float64, exp and erf are good to a few units in the last place; GELU's 1 + erf(-9/sqrt 2)
    # cancels to nothing, which is what atol is for.
    assert_allclose(getattr(cnnx, name)()(np.array(values)), expected, rtol=1e-14, atol=1e-15)


def test_softmax_is_its_formula(backend: str) -> None:
    x = np.array([[[0.0, 1.0], [2.0, 3.0]], [[-1.0, 700.0], [800.0, 0.0]]])
    for axis in (-1, 1, 0):
        expected = np.zeros_like(x)
        for index in np.ndindex(x.shape):
            line = list(index)
            line[axis] = slice(None)  # type: ignore[call-overload]
            expected[index] = 1 / sum(math.exp(min(v - x[index], 700)) for v in x[tuple(line)])
        # A few roundings; 1e-300 is nothing beside a probability.
        assert_allclose(cnnx.Softmax(axis)(x), expected, rtol=1e-14, atol=1e-300)


def test_flatten_is_row_major_and_goes_back() -> None:
    x = np.arange(24.0).reshape(2, 3, 2, 2)
    flatten = cnnx.Flatten()
    assert_array_equal(flatten(x), np.arange(24.0).reshape(2, 12))
    assert_array_equal(flatten.backward(flatten(x)), x)
    with pytest.raises(ValueError, match=r"grad_out has shape \(2, 11\), expected \(2, 12\)"):
        flatten.backward(np.zeros((2, 11)))
    with pytest.raises(ValueError, match=r"x has shape \(\), expected"):
        flatten(np.array(1.0))


# ---------------------------------------------------------------- batch normalisation and dropout


def test_batch_norm_in_training_and_after(backend: str, rng: np.random.Generator) -> None:
    norm = cnnx.BatchNorm2D(3, eps=1e-3, momentum=0.25, dtype="float64")
    norm.params["weight"][...] = [1, 2, 3]
    norm.params["bias"][...] = [4, 5, 6]
    running = norm.buffers["running_mean"], norm.buffers["running_var"]
    mean, var = [0.0] * 3, [1.0] * 3
    for _ in range(3):
        x = rng.standard_normal((2, 3, 4, 5)) + 7
        out = norm(x)
        for c in range(3):
            pixels = x[:, c].ravel().tolist()
            m = math.fsum(pixels) / 40
            v = math.fsum((pixel - m) ** 2 for pixel in pixels) / 40
            expected = (c + 1) * (x[:, c] - m) / math.sqrt(v + 1e-3) + c + 4
            assert_allclose(out[:, c], expected, rtol=0, atol=1e-13)  # tens of roundings near 10
            mean[c] = 0.75 * mean[c] + 0.25 * m
            var[c] = 0.75 * var[c] + 0.25 * v * 40 / 39
    assert norm.buffers["running_mean"] is running[0]
    assert norm.buffers["running_var"] is running[1]
    assert_allclose(running[0], mean, rtol=1e-13)  # 40 additions each
    assert_allclose(running[1], var, rtol=1e-13)
    out = norm.eval()(x)
    for c in range(3):
        expected = (c + 1) * (x[:, c] - mean[c]) / math.sqrt(var[c] + 1e-3) + c + 4
        assert_allclose(out[:, c], expected, rtol=0, atol=1e-13)
    assert_allclose(running[0], mean, rtol=1e-13)  # eval did not move them
    norm.train()(x)
    assert not np.allclose(running[0], mean, rtol=1e-13)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("channels", [2, 4])
def test_batch_norm_counts_the_channels(channels: int, affine: bool) -> None:
    # Without weight and bias nothing else of the call tells how many there must be.
    norm = cnnx.BatchNorm2D(3, affine=affine)
    x = np.ones((2, channels, 5, 5), np.float32)
    for mode in (norm.train(), norm.eval()):
        with pytest.raises(ValueError, match=r"shape .*expected"):
            mode(x)
    assert norm.buffers["running_mean"].tolist() == [0] * 3
    norm.buffers["running_var"] = np.ones(2, np.float32)
    with pytest.raises(ValueError, match=r"buffers\['running_var'\] has shape \(2,\), expected"):
        norm.train()(np.ones((2, 3, 5, 5), np.float32))
    assert norm.buffers["running_mean"].tolist() == [0] * 3


def test_batch_norm_needs_two_pixels_to_train_on() -> None:
    norm = cnnx.BatchNorm2D(2)
    x = np.ones((1, 2, 1, 1), np.float32)
    with pytest.raises(ValueError, match=r"x has shape \(1, 2, 1, 1\): one pixel a channel"):
        norm(x)
    assert norm.eval()(x).shape == (1, 2, 1, 1)
    with pytest.raises(ValueError, match=r"x has shape \(3, 2\)"):
        norm.train()(np.ones((3, 2), np.float32))


def test_dropout_drops_and_scales(dtype: Any) -> None:
    drop = cnnx.Dropout(0.2, rng=3)
    x = np.arange(1, 10001, dtype=dtype)
    out = drop(x)
    assert out.dtype == dtype
    kept = out != 0
    assert_array_equal(out[kept], x[kept] * dtype(1 / 0.8))
    # 10,000 draws: the share deviates by sqrt(0.2 * 0.8 / 10000) = 0.004; four such.
    assert 1 - kept.mean() == pytest.approx(0.2, abs=0.016)
    assert_array_equal(drop.backward(x), out)
    second = drop(x)
    assert not np.array_equal(second, out)
    again = cnnx.Dropout(0.2, rng=3)
    assert_array_equal(again(x.astype(np.float32)) != 0, kept)  # one seed, one sequence
    assert_array_equal(again(x), second)


def test_dropout_does_nothing_after_eval() -> None:
    drop, x = cnnx.Dropout(0.9, rng=3), np.arange(5.0)
    assert_array_equal(drop.eval()(x), x)
    assert_array_equal(drop.backward(x), x)
    fresh = cnnx.Dropout(0.9, rng=3)
    assert_array_equal(drop.train()(x), fresh(x))  # eval drew no numbers
    assert_array_equal(cnnx.Dropout(0.0)(x), x)


def test_fused_activations_are_the_layers_apart(backend: str, rng: np.random.Generator) -> None:
    x, grad_out = rng.standard_normal((2, 3, 4, 5, 6))
    for kind, layer in (("relu", cnnx.ReLU), ("relu6", cnnx.ReLU6)):
        fused = cnnx.BatchNorm2D(4, activation=kind, dtype="float64")
        apart = cnnx.Sequential(cnnx.BatchNorm2D(4, dtype="float64"), layer())
        fused.params["weight"] *= 5  # beyond ReLU6's ceiling
        apart.params["0.weight"] *= 5
        assert_array_equal(fused(x), apart(x))
        assert_array_equal(fused.backward(grad_out), apart.backward(grad_out))
        assert_array_equal(fused.grads["weight"], apart.grads["0.weight"])
    with pytest.raises(
        ValueError, match="activation is 'tanh', expected one of None, 'relu', 'relu6'"
    ):
        cnnx.BatchNorm2D(4, activation="tanh")  # type: ignore[arg-type]


def test_no_gradient_for_images_that_need_none(rng: np.random.Generator) -> None:
    model = cnnx.Sequential(
        cnnx.Sequential(cnnx.Conv2D(2, 3, 3)), cnnx.Flatten(), cnnx.Dense(12, 2)
    )
    x = rng.standard_normal((2, 2, 4, 4)).astype(np.float32)
    out = model(x)
    assert model.backward(out).shape == x.shape
    known = {name: grad.copy() for name, grad in model.grads.items()}
    model.needs_input_grad = False
    assert model.backward(out) is None
    for name, grad in model.grads.items():
        assert_array_equal(grad, known[name])
    assert model[2].needs_input_grad
    model.needs_input_grad = True
    assert model.backward(out).shape == x.shape
    foreign = cnnx.Sequential()
    foreign.needs_input_grad = False  # nobody to tell
    assert foreign.needs_input_grad
