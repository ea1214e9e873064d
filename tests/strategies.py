"""What hypothesis draws the tests' calls from: convolutions and poolings that have an output.

Arrays hold whole numbers, whose sums of products are exact, so that results compare by bits. The
default sizes are small enough for plain loops; `fuzz` draws from larger ones, which reach every
path of the kernels.
"""

from __future__ import annotations

import sys
from math import isqrt, prod
from typing import Any, NamedTuple

import naive
import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

small = st.integers(1, 3)
pairs = st.tuples(small, small)
seeds = st.integers(0, 2**32 - 1)

ALL_MODES = ("zeros", "zeros", "reflect", "replicate", "circular")
PRODUCTS = 2**23  # the most that one call of the oracle is asked to add up


def described(case: Any) -> str:
    """A named tuple with the shapes of its arrays in place of their numbers."""
    fields = (
        f"{name}={value.shape if isinstance(value, np.ndarray) else value!r}"
        for name, value in case._asdict().items()
    )
    return f"{type(case).__name__}({', '.join(fields)})"


def called(case: Any, *names: str, **options: Any) -> dict[str, Any]:
    """The named fields of a case as options of a call, and its `pads` in the form of an option."""
    top, bottom, left, right = case.pads
    fields = {name: getattr(case, name) for name in names}
    return {"padding": ((top, bottom), (left, right)), **fields, **options}


def exact_high(terms: int) -> int:
    """The largest whole numbers whose sum of so many products is exact in float32."""
    return max(1, min(1000, isqrt(2**24 // (terms + 1)) - 1))


# ---------------------------------------------------------------------------- convolution


class Sizes(NamedTuple):
    """Strategies for the sizes of a convolution; inner and outer are the channels of a group."""

    images: Any = st.integers(1, 2)
    groups: Any = small
    inner: Any = st.integers(1, 2)
    outer: Any = small
    hw: Any = st.tuples(st.integers(1, 7), st.integers(1, 7))
    kernel: Any = pairs
    stride: Any = pairs
    dilation: Any = st.tuples(st.integers(1, 2), small)
    padding: Any = st.integers(0, 3)


_square = st.integers(1, 7).map(lambda k: (k, k))
_any_kernel = st.one_of(
    pairs,
    _square,
    st.tuples(st.integers(1, 9), st.just(1)),
    st.tuples(st.just(1), st.integers(1, 9)),
)  # fmt: skip
_plain = st.just((1, 1))
LONG = st.tuples(st.integers(1, 1500), st.integers(1, 30))
_steps = st.one_of(_plain, st.just((2, 2)), pairs)
# Each reaches the kernels made for such layers: their blocks, their borders, what is left over.
SIZES = (
    Sizes(),
    Sizes(st.integers(1, 3), st.integers(1, 2), st.integers(1, 90), st.integers(1, 90),
          st.tuples(st.integers(1, 16), st.integers(1, 16)), _any_kernel, _steps, _steps),
    Sizes(st.integers(1, 3), st.integers(1, 2), st.integers(1, 6), st.integers(1, 40),
          st.tuples(st.integers(1, 50), st.integers(1, 100)), _any_kernel, _steps, _steps),
    Sizes(st.integers(1, 4), st.integers(1, 1), st.integers(4, 60), st.integers(4, 60),
          st.tuples(st.integers(3, 30), st.integers(3, 30)), st.just((3, 3)), _plain, _plain),
    Sizes(st.integers(1, 3), st.integers(1, 40), st.just(1), st.integers(1, 2),
          st.tuples(st.integers(1, 40), st.integers(1, 40)), _square, _steps, _plain),
    # So tall or so wide that planes are cut into blocks of rows, which several of them share.
    Sizes(st.integers(1, 2), st.integers(1, 4), st.just(1), st.integers(1, 2),
          st.one_of(LONG, LONG.map(lambda hw: hw[::-1])), _square, _steps, _plain),
    # Taps so far apart that no copy of the rows between them is made.
    Sizes(st.integers(1, 2), st.integers(1, 2), st.integers(1, 30), st.integers(1, 20),
          st.tuples(st.integers(1, 40), st.integers(1, 90)), st.one_of(pairs, _square),
          st.tuples(st.integers(1, 3), st.integers(1, 40)),
          st.tuples(st.integers(1, 120), st.integers(1, 120)), st.integers(0, 120)),
)  # fmt: skip


class Conv(NamedTuple):
    """A convolution that has an output, with whole-number arrays."""

    x: Any
    weight: Any
    bias: Any
    grad_out: Any
    stride: naive.Pair
    pads: naive.Pads
    dilation: naive.Pair
    groups: int
    mode: str

    __repr__ = described

    @property
    def options(self) -> dict[str, Any]:
        """As conv2d wants them."""
        return called(self, "stride", "dilation", "groups", padding_mode=self.mode)

    @property
    def geometry(self) -> tuple[Any, ...]:
        """As the loops want them."""
        return self.stride, self.pads, self.dilation, self.groups, self.mode

    @property
    def terms(self) -> int:
        """The most products that one number of the output or of a gradient adds up."""
        images, filters, *out_hw = self.grad_out.shape
        taps = prod(self.weight.shape[2:])
        # A border pixel of the image stands at up to four places of the padded one along each axis.
        copies = 1 if self.mode == "zeros" else 16
        per_pixel = filters // self.groups * taps * copies
        return max(self.weight.shape[1] * taps, per_pixel, images * prod(out_hw))


@st.composite
def convolutions(
    draw: st.DrawFn,
    modes: tuple[str, ...] = ("zeros",),
    sizes: Sizes = SIZES[0],
    large_numbers: bool = False,
) -> Conv:
    mode = draw(st.sampled_from(modes))
    groups = draw(sizes.groups)
    stride, dilation, kernel = draw(sizes.stride), draw(sizes.dilation), draw(sizes.kernel)
    hw = draw(sizes.hw)
    pads = []
    for size in (hw[0], hw[0], hw[1], hw[1]):
        most = {"reflect": size - 1, "circular": size}.get(mode, sys.maxsize)
        pads.append(min(most, draw(sizes.padding)))
    out_hw = [
        naive.conv_size(hw[a], kernel[a], stride[a], pads[2 * a], pads[2 * a + 1], dilation[a])
        for a in (0, 1)
    ]
    assume(min(out_hw) >= 1)
    images, inner, outer = draw(sizes.images), draw(sizes.inner), draw(sizes.outer)
    assume(images * prod(out_hw) * groups * outer * inner * prod(kernel) <= PRODUCTS)
    rng = np.random.default_rng(draw(seeds))
    geometry = (stride, (pads[0], pads[1], pads[2], pads[3]), dilation, groups, mode)
    shapes = (
        (images, groups * inner, *hw),
        (groups * outer, inner, *kernel),
        (groups * outer,),
        (images, groups * outer, *out_hw),
    )
    high = 3
    if large_numbers:
        high = exact_high(Conv(*map(np.empty, shapes), *geometry).terms)
    return Conv(*(naive.integers(rng, shape, high=high) for shape in shapes), *geometry)


class Transposed(NamedTuple):
    """A transposed convolution that has an output, with whole-number arrays."""

    x: Any
    weight: Any
    bias: Any
    grad_out: Any
    stride: naive.Pair
    pads: naive.Pads
    extra: naive.Pair
    groups: int
    dilation: naive.Pair

    __repr__ = described

    @property
    def options(self) -> dict[str, Any]:
        """As conv_transpose2d wants them."""
        return {
            "stride": self.stride,
            "padding": (self.pads[:2], self.pads[2:]),
            "output_padding": self.extra,
            "groups": self.groups,
            "dilation": self.dilation,
        }

    @property
    def geometry(self) -> tuple[Any, ...]:
        """As the loops want them."""
        return self.stride, self.pads, self.extra, self.groups, self.dilation


_TRANSPOSED = Sizes(st.just(2), st.integers(1, 2), st.just(2), small, pairs, pairs, pairs, pairs)


@st.composite
def transposed_convolutions(
    draw: st.DrawFn,
    sizes: Sizes = _TRANSPOSED,
    large_numbers: bool = False,
) -> Transposed:
    hw, kernel, stride, dilation = map(draw, (sizes.hw, sizes.kernel, sizes.stride, sizes.dilation))
    images, groups, inner, outer = map(draw, (sizes.images, sizes.groups, sizes.inner, sizes.outer))
    extra = tuple(draw(st.integers(0, max(stride[a], dilation[a]) - 1)) for a in (0, 1))
    full = [(hw[a] - 1) * stride[a] + dilation[a] * (kernel[a] - 1) + 1 for a in (0, 1)]
    pads = [draw(sizes.padding) for _ in range(4)]
    out_hw = [full[a] - pads[2 * a] - pads[2 * a + 1] + extra[a] for a in (0, 1)]
    assume(min(out_hw) >= 1)
    assume(images * groups * inner * outer * prod(kernel) * prod(hw) <= PRODUCTS)
    assume(images * groups * outer * prod(out_hw) <= PRODUCTS)
    rng = np.random.default_rng(draw(seeds))
    terms = max(max(inner, outer) * prod(kernel), images * prod(hw), images * prod(out_hw))
    high = exact_high(terms) if large_numbers else 3
    shapes = (
        (images, inner * groups, *hw),
        (inner * groups, outer, *kernel),
        (outer * groups,),
        (images, outer * groups, *out_hw),
    )
    return Transposed(
        *(naive.integers(rng, shape, high=high) for shape in shapes),
        stride,
        (pads[0], pads[1], pads[2], pads[3]),
        (extra[0], extra[1]),
        groups,
        dilation,
    )


# ---------------------------------------------------------------------------- pooling


class Pool(NamedTuple):
    """A pooling that has an output and in which every window sees a pixel."""

    x: Any
    window: naive.Pair
    stride: naive.Pair
    pads: naive.Pads
    dilation: naive.Pair
    ceil_mode: bool

    __repr__ = described

    @property
    def options(self) -> dict[str, Any]:
        """As both poolings want them."""
        return called(self, "stride", "ceil_mode", pool_size=self.window)


LARGE_WINDOWS = st.one_of(
    pairs, st.sampled_from([(2, 2), (3, 3)]), st.tuples(*[st.integers(1, 8)] * 2)
)


_PLANES = st.just((2, 2))
_POOL_HW = st.tuples(st.integers(1, 9), st.integers(1, 20))


@st.composite
def poolings(
    draw: st.DrawFn,
    most_dilation: int = 1,
    planes: Any = _PLANES,
    hw: Any = _POOL_HW,
    windows: Any = pairs,
) -> Pool:
    size, images_and_channels = draw(hw), draw(planes)
    window, stride = draw(windows), draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, most_dilation), st.integers(1, most_dilation)))
    ceil_mode = draw(st.booleans())
    pads = [draw(st.integers(0, dilation[a] * (window[a] - 1))) for a in (0, 0, 1, 1)]
    for a in (0, 1):
        assume(dilation[a] <= size[a])  # or a dilated window could step over the whole image
        rest = (*pads[2 * a : 2 * a + 2], dilation[a], ceil_mode)
        assume(naive.pool_size(size[a], window[a], stride[a], *rest) >= 1)
    rng = np.random.default_rng(draw(seeds))
    x = naive.integers(rng, (*images_and_channels, *size))
    return Pool(x, window, stride, (pads[0], pads[1], pads[2], pads[3]), dilation, ceil_mode)
