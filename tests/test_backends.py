"""Two backends, one behaviour: the same functions and the same answers, by every algorithm.

What the results should be is held elsewhere, for each backend; here they are held against each
other, on sizes too large for plain loops, and a choice of algorithm must show that it was followed.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import naive
import numpy as np
import pytest
from conftest import ISAS, KERNELS, forced_isa, has_winograd, needs_kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from tolerances import assert_close

import cnnx
from cnnx import _config, _dispatch, _fallback

KERNELS_MODULE: Any = KERNELS

# What the compiled kernels have beside the functions of a backend.
CONTROL = {
    "available_isas",
    "isa",
    "use_isa",
    "build_info",
    "set_winograd",
    "use_algorithm",
    "last_algorithm",
    "memory_stats",
    "empty_cache",
}


# ---------------------------------------------------------------------------- the same functions


def functions(module: ModuleType) -> dict[str, list[tuple[str, Any]]]:
    """The public functions a module defines: names and defaults of their arguments."""
    return {
        name: [(p.name, p.default) for p in inspect.signature(value).parameters.values()]
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and getattr(value, "__module__", "") == module.__name__
    }


@needs_kernels
def test_same_functions_with_the_same_arguments() -> None:
    compiled = functions(KERNELS_MODULE)
    assert set(compiled) >= CONTROL
    assert {name: compiled[name] for name in set(compiled) - CONTROL} == functions(_fallback)


def test_stub_has_the_same_functions() -> None:
    # A stub is read by type checkers alone: nothing else would notice that it drifted.
    tree = ast.parse(Path(_fallback.__file__).with_name("_kernels.pyi").read_text())
    stub = {
        node.name: [argument.arg for argument in node.args.args]
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }
    real = functions(_fallback if KERNELS is None else KERNELS_MODULE)
    if KERNELS is None:
        stub = {name: names for name, names in stub.items() if name not in CONTROL}
    assert stub == {name: [argument for argument, _ in real[name]] for name in real}


# ---------------------------------------------------------------------------- the same answers


@pytest.fixture(params=ISAS or ["none"])
def compiled_isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set of this CPU in turn."""
    if KERNELS is None:
        pytest.skip("the compiled kernels are missing")
    return str(request.param)


def on_both(isa: str, name: str, *arguments: Any, **options: Any) -> Iterator[tuple[Any, Any]]:
    """The results of a function on the compiled kernels beside those of the fallback."""
    function = getattr(cnnx, name)
    with forced_isa(isa):
        compiled = function(*arguments, **options)
    with cnnx.use_backend("numpy"):
        plain = function(*arguments, **options)
    if not isinstance(compiled, tuple):
        compiled, plain = (compiled,), (plain,)
    yield from zip(compiled, plain, strict=True)


def assert_same(pairs: Iterator[tuple[Any, Any]]) -> None:
    """Assert equal bits, dtypes and shapes."""
    for compiled, plain in pairs:
        assert compiled.dtype == plain.dtype
        assert_array_equal(compiled, plain, strict=True)


def same_within(pairs: Iterator[tuple[Any, Any]], roundings: float, scale: float) -> None:
    for compiled, plain in pairs:
        assert compiled.dtype == plain.dtype
        assert_close(compiled, plain.astype(np.float64), roundings=2 * roundings, scale=scale)


class Geometry:
    """Strategies for geometries beyond the loops' reach: several tiles, panels and vectors."""

    dtypes = st.sampled_from([np.float32, np.float64])
    images = st.integers(1, 3)
    sizes = st.integers(1, 40)
    steps = st.tuples(st.integers(1, 3), st.integers(1, 3))
    pads = st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * 2)


@st.composite
def convolutions(draw: st.DrawFn, largest: int = 40) -> tuple[Any, Any, Any, dict[str, Any]]:
    """x, weight, bias, and options with which there is an output."""
    dtype = draw(Geometry.dtypes)
    groups = draw(st.sampled_from([1, 1, 1, 2, 5]))
    # Up to 4 channels, 8 and more: each is an algorithm of its own.
    channels, filters = (draw(st.sampled_from([1, 2, 4, 5, 8, 17, 33])) for _ in range(2))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (2, 5), (7, 4), (1, 3)]))
    dilation, pads = draw(Geometry.steps), draw(Geometry.pads)
    size = [
        draw(st.integers(max(1, (k - 1) * d + 1 - sum(p)), largest))
        for k, d, p in zip(kernel, dilation, pads, strict=True)
    ]
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x = naive.integers(rng, (draw(Geometry.images), channels * groups, *size), dtype)
    weight = naive.integers(rng, (filters * groups, channels, *kernel), dtype)
    bias = draw(st.sampled_from([None, naive.integers(rng, weight.shape[:1], dtype)]))
    stride = draw(Geometry.steps)
    options = {"stride": stride, "padding": pads, "dilation": dilation, "groups": groups}
    return x, weight, bias, options


@st.composite
def depthwise(draw: st.DrawFn) -> tuple[Any, Any, Any, dict[str, Any]]:
    """The same for depthwise convolution by square kernels; also planes cut into several tasks."""
    dtype = draw(Geometry.dtypes)
    channels, images = draw(st.sampled_from([(1, 1), (3, 2), (1, 5), (50, 3)]))
    k, stride = draw(st.sampled_from([3, 5, 7])), draw(st.sampled_from([1, 2]))
    pads = draw(st.tuples(*[st.tuples(st.integers(0, k + 1), st.integers(0, k + 1))] * 2))
    largest = 30 if channels == 50 else 150
    size = [draw(st.integers(max(1, k - sum(p)), largest)) for p in pads]
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    # Few whole numbers, for a weight's gradient sums up to 5*150*150 products below 2**24.
    x = naive.integers(rng, (images, channels, *size), dtype)
    weight = naive.integers(rng, (channels, 1, k, k), dtype)
    bias = draw(st.sampled_from([None, naive.integers(rng, (channels,), dtype)]))
    return x, weight, bias, {"stride": stride, "padding": pads, "groups": channels}


@settings(max_examples=80)
@given(problem=convolutions() | depthwise(), relu=st.booleans())
def test_convolution(compiled_isa: str, problem: Any, relu: bool) -> None:
    x, weight, bias, options = problem
    activation = "relu" if relu else None
    assert_same(on_both(compiled_isa, "conv2d", x, weight, bias, activation=activation, **options))
    shape = cnnx.conv2d(x, weight, **options).shape
    grad_out = naive.integers(np.random.default_rng(1), shape, x.dtype)
    assert_same(on_both(compiled_isa, "conv2d_backward", grad_out, x, weight, **options))


@settings(max_examples=30)
@given(problem=convolutions(largest=20))  # strides enlarge it
def test_transposed_convolution(compiled_isa: str, problem: Any) -> None:
    # The convolution's output is the transposed one's input, and its weight is already laid out.
    image, weight, _, options = problem
    shape = cnnx.conv2d(image, weight, **options).shape
    x = naive.integers(np.random.default_rng(2), shape, image.dtype)
    span = [(w - 1) * d for w, d in zip(weight.shape[2:], options["dilation"], strict=True)]
    reach = [(n - 1) * s for n, s in zip(x.shape[2:], options["stride"], strict=True)]
    cut = [max(sum(p) - a - b, 0) for p, a, b in zip(options["padding"], span, reach, strict=True)]
    if any(cut):  # what is cut off the rim would leave nothing
        options = {**options, "padding": 0}
    bias = naive.integers(np.random.default_rng(3), (weight.shape[1] * options["groups"],), x.dtype)
    assert_same(on_both(compiled_isa, "conv_transpose2d", x, weight, bias, **options))
    shape = cnnx.conv_transpose2d(x, weight, **options).shape
    grad_out = naive.integers(np.random.default_rng(4), shape, x.dtype)
    assert_same(on_both(compiled_isa, "conv_transpose2d_backward", grad_out, x, weight, **options))


@settings(max_examples=60)
@given(data=st.data())
def test_pooling(compiled_isa: str, data: st.DataObject) -> None:
    window = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    pads = tuple((min(a, k - 1), min(b, k - 1)) for (a, b), k in zip(
        data.draw(Geometry.pads), window, strict=True
    ))  # fmt: skip
    size = tuple(data.draw(st.integers(k, 40)) for k in window)
    shape = (data.draw(Geometry.images), data.draw(st.integers(1, 9)), *size)
    x = naive.integers(np.random.default_rng(5), shape, data.draw(Geometry.dtypes))
    options: dict[str, Any] = {
        "pool_size": window,
        "stride": data.draw(Geometry.steps),
        "padding": pads,
        "ceil_mode": data.draw(st.booleans()),
    }
    with cnnx.use_backend("numpy"):
        out, indices = cnnx.max_pool2d(x, return_indices=True, **options)
    assert_same(on_both(compiled_isa, "max_pool2d", x, return_indices=True, **options))
    grad_out = naive.integers(np.random.default_rng(6), out.shape, x.dtype)
    assert_same(on_both(compiled_isa, "max_pool2d_backward", grad_out, indices, shape))
    options["count_include_pad"] = data.draw(st.booleans())
    # Sums of whole numbers are exact; then one division each, and where windows overlap the
    # gradient adds up to 25 quotients of at most 3.
    same_within(on_both(compiled_isa, "avg_pool2d", x, **options), 1, 3)
    pairs = on_both(compiled_isa, "avg_pool2d_backward", grad_out, shape, **options)
    same_within(pairs, 25, 25 * 3)


@settings(max_examples=30)
@given(
    rows=st.integers(1, 70),
    inside=st.integers(1, 300),
    columns=st.integers(1, 70),
    dtype=Geometry.dtypes,
)
def test_linear(compiled_isa: str, rows: int, inside: int, columns: int, dtype: Any) -> None:
    rng = np.random.default_rng(7)
    x, weight = (naive.integers(rng, shape, dtype) for shape in ((rows, inside), (inside, columns)))
    bias, grad_out = (naive.integers(rng, shape, dtype) for shape in ((columns,), (rows, columns)))
    assert_same(on_both(compiled_isa, "linear", x, weight, bias, activation="relu"))
    assert_same(on_both(compiled_isa, "linear_backward", grad_out, x, weight))


@settings(max_examples=30)
@given(shape=st.tuples(Geometry.images, st.integers(1, 9), Geometry.sizes, Geometry.sizes))
@pytest.mark.parametrize(
    "name", ["relu", "leaky_relu", "relu6", "sigmoid", "tanh", "gelu", "silu", "softmax"]
)
def test_elementwise(compiled_isa: str, name: str, dtype: Any, shape: Any) -> None:
    rng = np.random.default_rng(8)
    x, grad_out = (rng.uniform(-8, 8, shape).astype(dtype) for _ in range(2))
    # Both are within a few roundings of the truth: test_activations holds each to it. Of the
    # largest value there is, 8, for the derivatives lose digits where they are near 0.
    same_within(on_both(compiled_isa, name, x), 4, 8)
    same_within(on_both(compiled_isa, f"{name}_backward", grad_out, x), 8, 8)


@settings(max_examples=30)
@given(
    shape=st.tuples(Geometry.images, st.integers(1, 9), st.integers(2, 40), Geometry.sizes),
    dtype=Geometry.dtypes,
)
def test_batch_norm(compiled_isa: str, shape: Any, dtype: Any) -> None:
    rng = np.random.default_rng(9)
    x, grad_out = (rng.uniform(-3, 3, shape).astype(dtype) for _ in range(2))
    weight, bias = (rng.uniform(1, 2, shape[1]).astype(dtype) for _ in range(2))
    # eps keeps 1/sqrt(var) below 1: the error of the mean, of numbers up to 3, grows at most by the
    # weight of 2.
    options = {"eps": 1.0, "return_stats": True}
    same_within(on_both(compiled_isa, "batch_norm2d", x, weight, bias, **options), 8, 9)
    count = shape[0] * shape[2] * shape[3]
    # Sums of `count` products of at most 3*6.
    pairs = on_both(compiled_isa, "batch_norm2d_backward", grad_out, x, weight, eps=1.0)
    same_within(pairs, 8, 18 * np.sqrt(count))


# ---------------------------------------------------------------------------- Winograd


@pytest.fixture
def winograd_as_before() -> Iterator[None]:
    before = KERNELS.set_winograd(True) if KERNELS else True
    yield
    cnnx.set_winograd(before)


# Images, channels, size, filters, padding. In each of them all three of its forms run.
WINOGRAD = [(2, 24, 14, 24, 1), (1, 40, 22, 33, 0), (7, 32, 7, 64, 1), (2, 256, 14, 25, 1)]


def three_by_three(case: Any, dtype: Any, values: Any) -> tuple[Any, Any, Any, dict[str, Any]]:
    """x, weight, grad_out and options of a convolution, filled by `values`."""
    images, channels, size, filters, pad = case
    out = size + 2 * pad - 2
    shapes = (
        (images, channels, size, size),
        (filters, channels, 3, 3),
        (images, filters, out, out),
    )
    x, weight, grad_out = (values(shape).astype(dtype) for shape in shapes)
    return x, weight, grad_out, {"padding": pad}


def results(x: Any, weight: Any, grad_out: Any, options: dict[str, Any]) -> list[Any]:
    """The output and the two large gradients: each has a Winograd form."""
    forward = cnnx.conv2d(x, weight, **options)
    grad_x, grad_weight, _ = cnnx.conv2d_backward(grad_out, x, weight, **options)
    return [forward, grad_x, grad_weight]


@pytest.mark.parametrize("case", WINOGRAD, ids=str)
def test_winograd_error(case: Any, winograd_as_before: None, rng: np.random.Generator) -> None:
    problem = three_by_three(case, np.float32, lambda shape: rng.normal(size=shape))
    with cnnx.use_backend("numpy"):
        x, weight, grad_out = (array.astype(np.float64) for array in problem[:3])
        truth = results(x, weight, grad_out, problem[3])
    cnnx.set_winograd(True)
    for actual, known in zip(results(*problem), truth, strict=True):
        # What set_winograd's docstring promises.
        assert np.abs(actual - known).max() <= 2e-5 * np.abs(known).max()


# Where the kernels' loops end: images just above and below whole tiles, and up to 48 tiles around
# register tiles of 3 to 16 rows; channels and filters around vectors, and pairs, of 4, 8 and 16.
BOUNDARIES = [
    *((images, 12, size, 16, 1) for size in (4, 5, 7, 8, 9, 12, 13, 16) for images in (1, 2, 3)),
    *((1, 17, 8, filters, 1) for filters in (6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 65)),
    *((2, channels, 9, 8, 0) for channels in (12, 13, 15, 16, 17, 31, 33, 63, 129, 257)),
]


@needs_kernels
@pytest.mark.parametrize("case", BOUNDARIES, ids=str)
def test_winograd_boundaries(case: Any, winograd_as_before: None, rng: np.random.Generator) -> None:
    problem = three_by_three(case, np.float32, lambda shape: rng.normal(size=shape))
    with cnnx.use_backend("numpy"):
        x, weight, grad_out = (array.astype(np.float64) for array in problem[:3])
        truth = results(x, weight, grad_out, problem[3])
    cnnx.set_winograd(True)
    assert KERNELS
    isa, threads = KERNELS.isa(), cnnx.get_num_threads()
    try:
        for name in KERNELS.available_isas():
            KERNELS.use_isa(name)
            cnnx.set_num_threads(1)
            one = results(*problem)
            for actual, known in zip(one, truth, strict=True):
                # What set_winograd's docstring promises.
                assert np.abs(actual - known).max() <= 2e-5 * np.abs(known).max(), name
            for count in (2, 3, 16):
                cnnx.set_num_threads(count)
                assert_same(zip(results(*problem), one, strict=True))
    finally:
        KERNELS.use_isa(isa)
        cnnx.set_num_threads(threads)


@needs_kernels
@pytest.mark.parametrize("case", WINOGRAD, ids=str)
def test_without_winograd_the_direct_path(
    case: Any, winograd_as_before: None, rng: np.random.Generator
) -> None:
    # Whole numbers are exact on every direct path, and Winograd's transforms round: so the bits
    # tell which of the two ran.
    problem = three_by_three(case, np.float32, lambda shape: rng.integers(-3, 4, shape))
    with cnnx.use_backend("numpy"):
        exact = results(*problem)
    cnnx.set_winograd(False)
    assert_same(zip(results(*problem), exact, strict=True))
    cnnx.set_winograd(True)
    rounded = [not np.array_equal(a, b) for a, b in zip(results(*problem), exact, strict=True)]
    if not any(rounded):
        pytest.skip("this build has no Winograd (its compiler has no vector shuffles)")
    assert all(rounded), "a Winograd form of forward, grad_x or grad_weight did not run"


def test_float64_never_takes_winograd(
    backend: str, winograd_as_before: None, rng: np.random.Generator
) -> None:
    problem = three_by_three(WINOGRAD[1], np.float64, lambda shape: rng.normal(size=shape))
    cnnx.set_winograd(False)
    direct = results(*problem)
    cnnx.set_winograd(True)
    assert_same(zip(results(*problem), direct, strict=True))


def test_winograd_on_the_fallback(winograd_as_before: None, rng: np.random.Generator) -> None:
    # Taken and kept for the kernels; the fallback itself computes the same either way.
    problem = three_by_three(WINOGRAD[0], np.float32, lambda shape: rng.normal(size=shape))
    with cnnx.use_backend("numpy"):
        direct = results(*problem)
        for on in (False, True):
            cnnx.set_winograd(on)
            assert_same(zip(results(*problem), direct, strict=True))
    if KERNELS is not None:
        assert KERNELS.set_winograd(True) is True


@needs_kernels
def test_winograd_is_remembered(winograd_as_before: None) -> None:
    for on in (False, True, True, False):
        cnnx.set_winograd(on)
        assert KERNELS_MODULE.set_winograd(on) == on


def test_memory_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "_compiled", None)
    cnnx.empty_cache()
    assert set(cnnx.memory_stats().values()) == {0}


@pytest.mark.parametrize("value", [1, 0, None, "on", "False"])
def test_winograd_takes_true_or_false(value: Any) -> None:
    with pytest.raises(TypeError, match=r"on is .*, expected True or False"):
        cnnx.set_winograd(value)


def test_winograd_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "_compiled", None)
    _config.set_winograd(False)  # nothing to tell, and no error
    with pytest.raises(TypeError, match="on is 1"):
        _config.set_winograd(1)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------- a forced algorithm


@pytest.fixture
def algorithm_as_before() -> Iterator[None]:
    yield
    KERNELS_MODULE.use_algorithm("by shape")


# Images, input channels, size, filters, kernel, groups; and which of forward, grad_x and
# grad_weight the algorithm takes.
FORCED = [
    ("direct", (2, 3, 11, 5, 3, 1), (True, True, True)),
    ("direct", (1, 12, 19, 24, 5, 1), (True, True, True)),
    ("gemm", (2, 1, 11, 4, 3, 1), (True, True, True)),
    ("gemm", (2, 6, 11, 6, 3, 6), (True, True, True)),
    ("depthwise", (2, 6, 11, 6, 3, 6), (True, True, True)),
    ("depthwise", (2, 6, 11, 6, 3, 1), (False, False, False)),
    ("lanes", (2, 12, 21, 12, 3, 1), (False, False, True)),
    ("winograd", (2, 3, 11, 5, 3, 1), (True, True, True)),
    ("winograd", (2, 3, 11, 5, 1, 1), (False, False, False)),
]


@needs_kernels
@pytest.mark.parametrize(("name", "case", "takes"), FORCED, ids=str)
def test_forced_algorithm(
    name: str,
    case: Any,
    takes: tuple[bool, ...],
    isa: str,
    algorithm_as_before: None,
    rng: np.random.Generator,
) -> None:
    images, channels, size, filters, kernel, groups = case
    x = rng.integers(-3, 4, (images, channels, size, size)).astype(np.float32)
    weight = rng.integers(-3, 4, (filters, channels // groups, kernel, kernel)).astype(np.float32)
    options: dict[str, Any] = {"padding": kernel // 2, "groups": groups}
    with cnnx.use_backend("numpy"):
        grad_out = rng.integers(-3, 4, cnnx.conv2d(x, weight, **options).shape).astype(np.float32)
        exact = results(x, weight, grad_out, options)
    assert KERNELS_MODULE.use_algorithm(name) == "by shape"
    ran, actual = [], []
    for need in ((True, False, False), (False, True, False)):
        gradients = cnnx.conv2d_backward(grad_out, x, weight, **options, need=need)
        ran.append(KERNELS_MODULE.last_algorithm())
        actual.append(next(gradient for gradient in gradients if gradient is not None))
    actual.insert(0, cnnx.conv2d(x, weight, **options))
    ran.insert(0, KERNELS_MODULE.last_algorithm())
    if name == "winograd" and not has_winograd():
        pytest.skip("this build has no Winograd (its compiler has no vector shuffles)")
    if (name, isa) == ("depthwise", "baseline"):
        takes = (False, False, False)  # it has no tiles for it (isa_baseline.c)
    assert ran == [name if taken else "gemm" for taken in takes]
    if ran[0] == "winograd":  # it rounds: what set_winograd's docstring promises
        for mine, known in zip(actual, exact, strict=True):
            assert np.abs(mine - known).max() <= 2e-5 * np.abs(known).max()
    else:
        assert_same(zip(actual, exact, strict=True))


@needs_kernels
def test_unknown_algorithm() -> None:
    with pytest.raises(ValueError, match="fft"):
        KERNELS_MODULE.use_algorithm("fft")
