"""How far a result may stand from its reference, by dtype, each number with its reason.

Most tests need none of this: they feed whole numbers (`naive.integers`), whose sums of products are
exact in both dtypes, and compare by bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Issue 2, section 3: the error of a sum of K products, as a share of the largest output, for
# K = C*KH*KW = 64. It grows with sqrt(K), for the roundings of a sum add up like a random walk.
CONV = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-14}

# Winograd's transforms multiply by numbers up to 5 and add up to 36 products: what set_winograd's
# docstring promises, as a share of the largest output. Less than half of it was measured.
WINOGRAD = 2e-5

# Roundings a value may be off by, in half-units of the last place of 1 (its slope likewise). The
# exponential, erf and tanh of a vector library are good to 1 or 2 units (4 half-units), and a sum,
# a quotient and a product come on top; 1 - tanh**2 and the slopes add two of those.
ACTIVATION_ROUNDINGS = {
    "relu": 0,
    "relu6": 0,
    "leaky_relu": 2,
    "sigmoid": 8,
    "tanh": 8,
    "gelu": 10,
    "silu": 10,
}


def conv_bound(expected: Any, terms: int, dtype: Any) -> float:
    """The largest error a sum of `terms` products may have, issue 2's rule."""
    bound = CONV[np.dtype(dtype)] * np.abs(expected).max() * np.sqrt(terms / 64)
    # A result cannot be closer than its own rounding, which is all there is left for few terms:
    # one for each product, one for the bias, one for the store.
    return float(max(bound, 1.5 * np.finfo(dtype).eps * np.abs(expected).max()))


def assert_conv_close(actual: Any, expected: Any, terms: int) -> None:
    """Assert issue 2's accuracy for a result that sums `terms` products."""
    bound = conv_bound(expected, terms, actual.dtype)
    error = np.abs(actual - expected).max()
    assert actual.shape == expected.shape
    assert error <= bound, f"error {error:.3g} > {bound:.3g} in {actual.dtype}, {terms} terms"


def assert_close(actual: Any, expected: Any, roundings: float, scale: float | None = None) -> None:
    """Assert that each element is within `roundings` half-units of its dtype's last place.

    Relative to each element itself, or to `scale` where cancellation makes the element small.
    """
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    eps = float(np.finfo(actual.dtype).eps) / 2
    tiny = float(np.finfo(actual.dtype).tiny)  # below it, a result may be flushed or denormal
    rtol, atol = (roundings * eps, tiny) if scale is None else (0.0, roundings * eps * scale)
    np.testing.assert_allclose(actual.astype(np.float64), expected, rtol=rtol, atol=atol)


def assert_winograd_close(actual: Any, expected: Any, terms: int, high: float) -> None:
    """Assert Winograd's accuracy for sums of `terms` products of whole numbers up to `high`.

    Where chance, or few outputs, left all of them small, their usual size counts: a number of -h..h
    has the deviation h / sqrt(3).
    """
    scale = max(np.abs(expected).max(), np.sqrt(terms) * high**2 / 3)
    error = np.abs(actual - expected).max()
    assert actual.shape == expected.shape
    assert error <= WINOGRAD * scale, f"error {error:.3g} > {WINOGRAD:g} of {scale:.3g}"
