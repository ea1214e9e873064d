"""Random calls of every operation, forward and gradients, against plain loops in float64.

hypothesis draws the shapes and options, the layout of each array in memory, the dtype, the backend,
the instruction set, the algorithm and the number of threads. Whatever the call, four things must
hold: the numbers are the oracle's, one thread gives the same bits, no input is modified, and
nothing beyond an array is touched (some stand beside an unmapped page).

`test_fuzz` runs some hundred calls of each, the same every time. To look for new ones:
``python -m tests.fuzz --minutes 30``. It ends at the first failure, as small as it can be made.
Of a crash nothing is left but Python's stack: the same --seed with --trace tells the case before.
"""

from __future__ import annotations

import argparse
import faulthandler
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

import hypothesis
import naive
import numpy as np
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from setting import Setting, settings
from strategies import (
    ALL_MODES,
    LARGE_WINDOWS,
    LONG,
    SIZES,
    Conv,
    Pool,
    Transposed,
    convolutions,
    poolings,
    seeds,
    transposed_convolutions,
)
from tolerances import ACTIVATION_ROUNDINGS, assert_close, assert_winograd_close

import cnnx


def wide(arrays: Any) -> list[Any]:
    """For the oracle: float64, or more where the results are float64 themselves and not exact."""
    return [a.astype(np.longdouble if a.dtype.itemsize == 8 else np.float64) for a in arrays]


# ---------------------------------------------------------------------------- convolution

LOOPS = 20_000  # products; up to here the oracle is the seven loops themselves


def _numbers(setting: Setting, *arrays: Any) -> list[Any]:
    """Whole numbers that fill the dtype: float64's would not survive in float32."""
    return setting.placed(*(a * (8193.0 if setting.dtype == np.float64 else 1.0) for a in arrays))


def _exact(*arrays: Any) -> list[Any]:
    return [array.astype(np.float64) for array in arrays]


def _assert_sum(setting: Setting, actual: Any, expected: Any, terms: int, high: float) -> None:
    if setting.by_winograd:
        assert_winograd_close(actual, expected, terms, high)
    else:
        assert_array_equal(actual, expected)


def _each_need(backward: Callable[..., Any]) -> Callable[..., Any]:
    """All three gradients at once; each alone must be the same."""

    def call(*arrays: Any, **options: Any) -> Any:
        gradients = backward(*arrays, **options)
        for i in range(3):
            need = tuple(i == j for j in range(3))
            alone = backward(*arrays, **options, need=need)
            assert [gradient is not None for gradient in alone] == list(need)
            assert_array_equal(alone[i], gradients[i])
        return gradients

    return call


def check_conv2d(case: Conv, setting: Setting) -> None:
    x, weight, bias, grad_out = _numbers(setting, case.x, case.weight, case.bias, case.grad_out)
    (out,) = setting.results(lambda *a: cnnx.conv2d(*a, **case.options), x, weight, bias)
    filled = np.full_like(out, np.nan)
    with setting.chosen():
        assert cnnx.conv2d(x, weight, bias, **case.options, out=filled) is filled
    assert_array_equal(filled, out)
    gradients = setting.results(
        lambda *a: _each_need(cnnx.conv2d_backward)(*a, **case.options), grad_out, x, weight
    )
    high = max(np.abs(a).max() for a in (x, weight, bias, grad_out))
    x, weight, bias, grad_out = _exact(x, weight, bias, grad_out)
    if grad_out.size * weight[0].size <= LOOPS:
        expected = naive.conv2d(x, weight, bias, *case.geometry)
        known = naive.conv2d_backward(grad_out, x, weight, *case.geometry)
    else:
        expected = naive.conv2d_by_taps(x, weight, bias, grad_out.shape[2:], *case.geometry)
        known = naive.conv2d_backward_by_taps(grad_out, x, weight, *case.geometry)
    for actual, right in zip((out, *gradients[:2]), (expected, *known[:2]), strict=True):
        _assert_sum(setting, actual, right, case.terms, high)
    assert_array_equal(gradients[2], known[2])  # no product, and never by Winograd


def check_conv_layer(case: Conv, setting: Setting, activation: str, frozen: bool) -> None:
    """The layer: a fused activation, its gradient from the output, packed weights that are kept."""
    setting = setting._replace(dtypes=(setting.dtype,))
    terms = case.weight[0].size
    deviation = np.sqrt(terms) * np.abs(case.x).max() * np.abs(case.weight).max() / 3
    scale = 2.0 ** -np.round(np.log2(max(1, deviation)))  # exact; the outputs are about 1
    x, weight, bias, grad_out = setting.placed(
        case.x, case.weight * scale, case.bias * scale, case.grad_out
    )
    layer = cnnx.Conv2D(
        x.shape[1], len(bias), weight.shape[2:], case.stride, case.options["padding"],
        case.dilation, case.groups, padding_mode=case.mode, activation=activation,
        dtype=setting.dtype.name, rng=0,
    )  # fmt: skip

    def call(x: Any, weight: Any, bias: Any, grad_out: Any) -> tuple[Any, ...]:
        layer.params["weight"][...], layer.params["bias"][...] = weight, bias
        if frozen:
            layer.freeze()
            layer.forward(x)
            out = layer.forward(x)
            layer.unfreeze()
            assert_array_equal(layer.forward(x), out)
        out = layer.forward(x)
        return out, layer.backward(grad_out), layer.grads["weight"], layer.grads["bias"]

    out, *gradients = setting.results(call, x, weight, bias, grad_out)
    x, weight, bias, grad_out = _exact(x, weight, bias, grad_out)
    plain = naive.conv2d_by_taps(x, weight, bias, grad_out.shape[2:], *case.geometry)
    value, _ = naive.ACTIVATIONS[activation]
    expected = np.array([value(v) for v in plain.ravel()]).reshape(plain.shape)
    eps = np.finfo(setting.dtype).eps / 2
    if setting.by_winograd:
        high = np.sqrt(np.abs(x).max() * np.abs(weight).max())
        assert_winograd_close(out, expected, terms, high)  # no activation is steeper than 1
    else:
        # z is exact; an exponential, a sum and a quotient are a few roundings, of values up to 1.
        assert_close(out, expected, ACTIVATION_ROUNDINGS[activation], scale=1.0)
    # The layer finds the slope from its output, whatever that was rounded to.
    y = out.astype(np.float64)
    slopes = {"relu": (y > 0) * 1.0, "sigmoid": y * (1 - y), "tanh": 1 - y * y}
    inner = grad_out * slopes[activation]
    known = naive.conv2d_backward_by_taps(inner, x, weight, *case.geometry)
    # Every product and sum rounds once, the slope three times, at most the sum of all magnitudes.
    sizes = naive.conv2d_backward_by_taps(
        np.abs(grad_out), np.abs(x), np.abs(weight), *case.geometry
    )
    for actual, right, size in zip(gradients, known, sizes, strict=True):
        bound = (case.terms + 4) * eps * size.max()
        if setting.by_winograd:
            bound = max(bound, 2e-5 * size.max())
        assert np.abs(actual - right).max() <= bound


def check_conv_transpose2d(case: Transposed, setting: Setting) -> None:
    x, weight, bias, grad_out = _numbers(setting, case.x, case.weight, case.bias, case.grad_out)
    (out,) = setting.results(lambda *a: cnnx.conv_transpose2d(*a, **case.options), x, weight, bias)
    gradients = setting.results(
        lambda *a: _each_need(cnnx.conv_transpose2d_backward)(*a, **case.options),
        grad_out,
        x,
        weight,
    )
    high = max(np.abs(a).max() for a in (x, weight, bias, grad_out))
    terms = max(x[:, 0].size, grad_out[:, 0].size, weight[:, 0].size, weight[0].size)
    x, weight, bias, grad_out = _exact(x, weight, bias, grad_out)
    geometry = (case.stride, case.pads, case.dilation, case.groups)
    if x.size * weight[0].size <= LOOPS:
        expected = naive.conv_transpose2d(x, weight, bias, *case.geometry)
        known = naive.conv_transpose2d_backward(
            grad_out, x, weight, case.stride, case.pads, case.groups, case.dilation
        )
    else:  # it is the input gradient of a convolution from its output to its input
        blank = np.zeros_like(grad_out)
        expected = naive.conv2d_backward_by_taps(x, blank, weight, *geometry)[0]
        expected += bias[:, None, None]
        known = (
            naive.conv2d_by_taps(grad_out, weight, None, x.shape[2:], *geometry),
            naive.conv2d_backward_by_taps(x, grad_out, weight, *geometry)[1],
            grad_out.sum(axis=(0, 2, 3)),
        )
    for actual, right in zip((out, *gradients[:2]), (expected, *known[:2]), strict=True):
        _assert_sum(setting, actual, right, terms, high)
    assert_array_equal(gradients[2], known[2])


# ---------------------------------------------------------------------------- pooling


def check_max_pool2d(case: Pool, setting: Setting, with_nan: bool) -> None:
    (x,) = setting.placed(np.where(case.x == 3, np.nan, case.x) if with_nan else case.x)
    options = {**case.options, "dilation": case.dilation}
    out, indices = setting.results(lambda a: cnnx.max_pool2d(a, **options, return_indices=True), x)
    (alone,) = setting.results(lambda a: cnnx.max_pool2d(a, **options), x)
    expected, where = naive.max_pool2d(
        x.astype(np.float64), case.window, case.stride, case.pads, case.dilation, case.ceil_mode
    )
    assert_array_equal(out, expected)
    assert_array_equal(alone, expected)
    assert_array_equal(indices, where)
    (grad_out,) = setting.placed(np.arange(1.0, out.size + 1).reshape(out.shape))
    (grad_x,) = setting.results(lambda g: cnnx.max_pool2d_backward(g, indices, x.shape), grad_out)
    assert_array_equal(grad_x, naive.max_pool2d_backward(grad_out.astype(float), where, x.shape))


def check_avg_pool2d(case: Pool, setting: Setting, include_pad: bool) -> None:
    (x,) = setting.placed(case.x)
    options = {**case.options, "count_include_pad": include_pad}
    rest = (case.window, case.stride, case.pads, case.ceil_mode, include_pad)
    (out,) = setting.results(lambda a: cnnx.avg_pool2d(a, **options), x)
    # The sums are exact; a division, or a multiplication by a rounded reciprocal, rounds twice.
    assert_close(out, naive.avg_pool2d(x.astype(np.float64), *rest), roundings=3)
    (grad_out,) = setting.placed(np.arange(out.size).reshape(out.shape) % 7 - 3.0)
    (grad_x,) = setting.results(lambda g: cnnx.avg_pool2d_backward(g, x.shape, **options), grad_out)
    # A pixel adds up the quotients of the windows that see it, each rounded, each sum once more.
    windows = np.prod([-(-case.window[a] // case.stride[a]) for a in (0, 1)])
    known = naive.avg_pool2d_backward(grad_out.astype(np.float64), x.shape, *rest)
    assert_close(grad_x, known, roundings=3 + 2 * windows, scale=3.0 * windows)


def check_global_avg_pool2d(shape: tuple[int, ...], seed: int, setting: Setting) -> None:
    rng = np.random.default_rng(seed)
    x, grad_out = setting.placed(naive.integers(rng, shape), naive.integers(rng, shape[:2]))
    (out,) = setting.results(cnnx.global_avg_pool2d, x)
    exact = naive.avg_pool2d(x.astype(np.float64), shape[2:], (1, 1))[:, :, 0, 0]
    assert_close(out, exact, roundings=3)  # as above
    (grad_x,) = setting.results(lambda g: cnnx.global_avg_pool2d_backward(g, shape), grad_out)
    known = naive.avg_pool2d_backward(
        grad_out.astype(np.float64)[:, :, None, None], shape, shape[2:], (1, 1)
    )
    assert_close(grad_x, known, roundings=3)


# ---------------------------------------------------------------------------- the rest


def check_linear(
    sizes: tuple[int, int, int], seed: int, setting: Setting, activation: str | None
) -> None:
    rows, inner, columns = sizes
    rng = np.random.default_rng(seed)
    shapes = ((rows, inner), (inner, columns), (columns,), (rows, columns))
    x, weight, bias, grad_out = _numbers(
        setting, *(naive.integers(rng, s, high=60) for s in shapes)
    )
    (out,) = setting.results(cnnx.linear, x, weight, bias)
    (fused,) = setting.results(lambda *a: cnnx.linear(*a, activation=activation), x, weight, bias)
    gradients = setting.results(
        lambda *a: _each_need(cnnx.linear_backward)(*a), grad_out, x, weight
    )
    x, weight, bias, grad_out = _exact(x, weight, bias, grad_out)
    if x.size * columns <= LOOPS:
        expected = naive.linear(x, weight, bias)
        known = [naive.linear(grad_out, weight.T), naive.linear(x.T, grad_out)]
    else:
        expected, known = x @ weight + bias, [grad_out @ weight.T, x.T @ grad_out]
    for actual, right in zip((out, *gradients), (expected, *known, sum(grad_out)), strict=True):
        assert_array_equal(actual, right)
    if activation is not None:
        value = naive.ACTIVATIONS[activation][0]
        right = np.array([value(v) for v in expected.ravel()]).reshape(expected.shape)
        assert_close(fused, right, ACTIVATION_ROUNDINGS[activation], scale=max(1.0, right.max()))


def check_activation(name: str, size: int, spread: float, seed: int, setting: Setting) -> None:
    rng = np.random.default_rng(seed)
    x, grad_out = setting.placed(
        rng.standard_normal(size) * rng.choice([0.01, 1.0, spread], size), rng.standard_normal(size)
    )
    (y,) = setting.results(getattr(cnnx, name), x)
    (grad_x,) = setting.results(getattr(cnnx, f"{name}_backward"), grad_out, x)
    value, slope = naive.ACTIVATIONS[name]
    numbers = x.astype(np.float64).tolist()
    largest = max(1.0, float(np.abs(x).max()))
    assert_close(y, np.array([value(v) for v in numbers]), ACTIVATION_ROUNDINGS[name], largest)
    expected = grad_out.astype(np.float64) * np.array([slope(v) for v in numbers])
    scale = largest * float(np.abs(grad_out).max())
    assert_close(grad_x, expected, 2 * ACTIVATION_ROUNDINGS[name] + 2, scale)


def check_softmax(log: bool, sizes: tuple[int, int], seed: int, setting: Setting) -> None:
    rng = np.random.default_rng(seed)
    setting = setting._replace(dtypes=setting.dtypes[:1])
    x, grad_out = setting.placed(3 * rng.standard_normal(sizes), rng.standard_normal(sizes))
    name = "log_softmax" if log else "softmax"
    (y,) = setting.results(getattr(cnnx, name), x)
    (grad_x,) = setting.results(getattr(cnnx, f"{name}_backward"), grad_out, x)
    x, grad_out = wide((x, grad_out))
    expected = naive.softmax(x, log)
    # As in test_activations: the shift x - max rounds at the scale of 12 or more, the rest adds up.
    scale = max(12.0, float(np.abs(x).max())) if log else float(expected.max())
    assert_close(y, expected.astype(np.float64), 16 + np.sqrt(sizes[1]), scale)
    scale = float(np.abs(grad_out).max()) * (sizes[1] if log else 1)
    known = naive.softmax_backward(grad_out, x, log).astype(np.float64)
    assert_close(grad_x, known, 32 + np.sqrt(sizes[1]), scale)


def check_cross_entropy(
    labels: bool, smoothing: float, sizes: tuple[int, int], seed: int, setting: Setting
) -> None:
    rng = np.random.default_rng(seed)
    setting = setting._replace(dtypes=setting.dtypes[:1])
    rows, classes = sizes
    (x,) = setting.placed(3 * rng.standard_normal(sizes))
    target = rng.integers(0, classes, rows)
    (table,) = setting.placed(np.eye(classes)[target])
    given = target.astype(rng.choice(["i1", "u2", ">i8"])) if labels else table

    def call(x: Any, given: Any) -> tuple[Any, Any]:
        loss = cnnx.SoftmaxCrossEntropy(smoothing)
        return np.float64(loss.forward(x, given)), loss.backward()

    loss, grad = setting.results(call, x, given)
    (x,) = wide((x,))
    wanted = np.eye(classes)[target] if labels else table.astype(x.dtype)
    expected, known = naive.cross_entropy(x, wanted, smoothing)
    # Each row's loss is a sum of logarithms that are no larger than the range of the scores.
    eps = np.finfo(setting.dtype).eps / 2
    reach = 12.0 + float(np.abs(x).max())
    assert abs(loss - expected) <= (16 + np.sqrt(classes)) * eps * reach
    assert_close(grad, known.astype(np.float64), 32 + np.sqrt(classes), 2.0 / rows)


def check_batch_norm2d(
    shape: tuple[int, ...], seed: int, setting: Setting, given: bool, activation: str | None,
    eps: float,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    column = (shape[1], 1, 1)
    images = rng.standard_normal(shape) * rng.uniform(0.5, 2, column)
    images += 3 * rng.standard_normal(column)
    x, grad_out, weight, bias = setting.placed(
        images, rng.standard_normal(shape), *rng.standard_normal((2, shape[1]))
    )
    mean, var = (
        a.astype(setting.dtype)
        for a in (rng.standard_normal(shape[1]), rng.uniform(0.3, 2, shape[1]))
    )
    stats = {"mean": mean, "var": var} if given else {}
    options = {"eps": eps, "activation": activation}
    out, mean, var = setting.results(
        lambda *a: cnnx.batch_norm2d(*a, **stats, **options, return_stats=True), x, weight, bias
    )
    gradients = setting.results(
        lambda g, x, w, b: cnnx.batch_norm2d_backward(g, x, w, bias=b, **stats, **options),
        grad_out, x, weight, bias,
    )  # fmt: skip
    x, grad_out, weight, bias = wide((x, grad_out, weight, bias))
    statistics = wide(stats.values())
    plain, known_mean, known_var = naive.batch_norm2d(x, weight, bias, *statistics, eps=eps)
    count = x[:, 0].size
    slack = 16 + 2 * float(np.sqrt(count))  # a sum one by one is a random walk of roundings
    size = float(np.abs(x).max())
    root = float(np.sqrt((known_var + eps).min()))
    assert_close(mean, known_mean.astype(np.float64), slack, size)
    assert_close(var, known_var.astype(np.float64), slack, size**2)
    # x - mean cancels: its error is that of the numbers before, times weight / root.
    steepest = float(np.abs(weight).max()) / root
    scale = (size + 1) * steepest + float(np.abs(bias).max())
    if activation is not None:
        expected = np.clip(plain, 0, 6 if activation == "relu6" else np.inf)
        # At a kink the two may fall on different sides.
        near = (
            np.abs(plain - np.clip(np.round(plain / 6), 0, 1) * 6)
            <= slack * scale * np.finfo(out.dtype).eps
        )
        if near.any():
            return
        grad_out = grad_out * ((plain > 0) & (plain < (6 if activation == "relu6" else np.inf)))
    else:
        expected = plain
    assert_close(out, expected.astype(np.float64), slack, scale)
    known = naive.batch_norm2d_backward(grad_out, x, weight, *statistics, eps=eps)
    # The normalised x, up to `furthest`, carries the error of the cancellation, size / root.
    furthest = float(np.abs(x - known_mean[:, None, None]).max()) / root
    each = float(np.abs(grad_out).max()) * (1 + furthest) * (1 + size / root)
    scales = (steepest * each, count * each, count * float(np.abs(grad_out).max()))
    for actual, right, scale in zip(gradients, known, scales, strict=True):
        assert_close(actual, right.astype(np.float64), slack, scale)


# ---------------------------------------------------------------------------- the search

_large = [convolutions(ALL_MODES, sizes, large_numbers=True) for sizes in SIZES]
_rows = st.tuples(st.integers(1, 9), st.integers(1, 60))
_images = st.tuples(*[st.integers(1, n) for n in (12, 6, 14, 40)])
_sizes = st.one_of(st.integers(1, 70), st.integers(1, 70), st.integers(1000, 40_000))
_pool = {
    "planes": st.tuples(st.integers(1, 2), st.integers(1, 4)),
    "hw": st.one_of(
        st.tuples(st.integers(1, 9), st.integers(1, 20)),
        st.tuples(st.integers(1, 14), st.integers(1, 70)),
        LONG,
    ),
    "windows": LARGE_WINDOWS,
}  # fmt: skip

CHECKS: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "conv2d": (check_conv2d, {"case": st.one_of(_large)}),
    "Conv2D": (
        check_conv_layer,
        {
            "case": st.one_of([convolutions(ALL_MODES, sizes) for sizes in SIZES]),
            "activation": st.sampled_from(["relu", "sigmoid", "tanh"]),
            "frozen": st.booleans(),
        },
    ),
    "conv_transpose2d": (
        check_conv_transpose2d,
        {"case": st.one_of([transposed_convolutions(s, large_numbers=True) for s in SIZES])},
    ),
    "max_pool2d": (
        check_max_pool2d,
        {"case": poolings(most_dilation=3, **_pool), "with_nan": st.booleans()},
    ),
    "avg_pool2d": (check_avg_pool2d, {"case": poolings(**_pool), "include_pad": st.booleans()}),
    "global_avg_pool2d": (check_global_avg_pool2d, {"shape": _images, "seed": seeds}),
    "linear": (
        check_linear,
        {
            "sizes": st.one_of(
                st.tuples(*[st.integers(1, n) for n in (9, 40, 30)]),
                st.tuples(*[st.integers(1, n) for n in (200, 700, 150)]),
            ),
            "seed": seeds,
            "activation": st.sampled_from([None, "relu", "sigmoid", "tanh"]),
        },
    ),
    "activation": (
        check_activation,
        {
            "name": st.sampled_from(list(naive.ACTIVATIONS)),
            "size": _sizes,
            "spread": st.sampled_from([1.0, 4.0, 60.0]),
            "seed": seeds,
        },
    ),
    "softmax": (check_softmax, {"log": st.booleans(), "sizes": _rows, "seed": seeds}),
    "cross_entropy": (
        check_cross_entropy,
        {
            "labels": st.booleans(),
            "smoothing": st.sampled_from([0.0, 0.1, 1.0]),
            "sizes": _rows,
            "seed": seeds,
        },
    ),
    "batch_norm2d": (
        check_batch_norm2d,
        {
            "shape": _images,
            "seed": seeds,
            "given": st.booleans(),
            "activation": st.sampled_from([None, "relu", "relu6"]),
            "eps": st.sampled_from([1e-5, 1e-3, 1.0]),
        },
    ),
}


def search(name: str, seen: Callable[[Any], None] = lambda case: None) -> Any:
    """The check of an operation as a hypothesis test; `seen` is told of each case beforehand."""
    check, strategies = CHECKS[name]

    def run(**case: Any) -> None:
        seen(case)
        check(**case)

    run.__name__ = run.__qualname__ = name
    return hypothesis.given(setting=settings, **strategies)(run)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("--only", choices=CHECKS, action="append", help="these operations alone")
    parser.add_argument("--trace", action="store_true", help="print each case before it runs")
    given = parser.parse_args()
    faulthandler.enable()
    warnings.simplefilter("error")
    until, counts, turn = time.monotonic() + 60 * given.minutes, Counter[str](), 0
    print(f"--seed {given.seed}", flush=True)

    class Over(BaseException):
        """The time is up; no failure of the case."""

    while time.monotonic() < until:
        for name in given.only or CHECKS:

            def seen(case: Any, name: str = name) -> None:
                if time.monotonic() > until:
                    raise Over
                counts[name] += 1
                if given.trace:
                    print(name, case, flush=True)

            test = hypothesis.seed(given.seed + turn)(search(name, seen))
            profile = hypothesis.settings(
                max_examples=100, deadline=None, database=None, derandomize=False,
                suppress_health_check=list(hypothesis.HealthCheck), print_blob=False,
            )  # fmt: skip
            try:
                profile(test)()
            except Over:
                break
            except Exception:
                print(f"{name} failed after {sum(counts.values())} cases, --seed {given.seed}")
                raise
        turn += 1
    for name, count in counts.items():
        print(f"{count:9} {name}")
    print(f"{sum(counts.values()):9} cases, none failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
