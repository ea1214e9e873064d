"""The layers that are measured: one table, by class, with the nets they come from."""

from __future__ import annotations

from typing import NamedTuple


class Conv(NamedTuple):
    """One convolution: x (n, c, h, w) -> f channels, kernel (kh, kw)."""

    n: int
    c: int
    h: int
    w: int
    f: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1
    groups: int = 1

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        def size(i: int, k: int, p: int) -> int:
            return (i + 2 * p - self.dilation * (k - 1) - 1) // self.stride + 1

        return (
            self.n,
            self.f,
            size(self.h, self.kernel[0], self.padding[0]),
            size(self.w, self.kernel[1], self.padding[1]),
        )

    @property
    def flops(self) -> int:
        """Of the direct algorithm, forward: two for each multiply-add."""
        n, f, ho, wo = self.out_shape
        return 2 * n * f * ho * wo * (self.c // self.groups) * self.kernel[0] * self.kernel[1]

    @property
    def rate(self) -> tuple[str, float, float]:
        """A unit, and how many of them the forward and the backward pass are, a second."""
        return "GFLOP/s", self.flops / 1e9, 2 * self.flops / 1e9

    def __str__(self) -> str:
        text = f"{self.n},{self.c},{self.h},{self.w}->{self.f} {self.kernel[0]}x{self.kernel[1]}"
        if self.stride > 1:
            text += f" s{self.stride}"
        if self.dilation > 1:
            text += f" d{self.dilation}"
        if self.groups > 1:
            text += f" g{self.groups}"
        return text


class Pool(NamedTuple):
    """One pooling: x (n, c, hw, hw), window `size`; size 0 is the whole image."""

    kind: str
    n: int
    c: int
    hw: int
    size: int
    stride: int = 1
    padding: int = 0

    @property
    def rate(self) -> tuple[str, float, float]:
        """As a convolution's, in bytes of the image and of what it is pooled to."""
        out = (self.hw + 2 * self.padding - self.size) // self.stride + 1 if self.size else 1
        gigabytes = 4 * self.n * self.c * (self.hw**2 + out**2) / 1e9
        return "GB/s", gigabytes, gigabytes

    def __str__(self) -> str:
        window = f"{self.size}x{self.size} s{self.stride}" if self.size else "global"
        return f"{self.n},{self.c},{self.hw},{self.hw} {self.kind} {window}"


def _square(n, c, hw, f, k, stride=1, padding=None, dilation=1, groups=1):  # type: ignore[no-untyped-def]
    pad = dilation * (k - 1) // 2 if padding is None else padding
    return Conv(n, c, hw, hw, f, (k, k), stride, (pad, pad), dilation, groups)


CONVS: dict[str, list[Conv]] = {
    "3x3, 64 to 512 channels": [
        *(_square(n, 64, 56, 64, 3) for n in (1, 8, 64)),
        *(_square(n, 128, 28, 128, 3) for n in (1, 8, 64)),
        *(_square(n, 256, 14, 256, 3) for n in (1, 8, 64)),
        *(_square(n, 512, 7, 512, 3) for n in (1, 8, 64)),
        _square(4, 512, 14, 512, 3),
        _square(4, 64, 224, 64, 3),
        _square(4, 256, 56, 256, 3),
        _square(64, 64, 32, 64, 3),
        _square(64, 128, 16, 128, 3),
    ],
    "1x1": [
        _square(8, 64, 56, 256, 1),
        _square(8, 256, 56, 64, 1),
        _square(8, 512, 28, 128, 1),
        _square(8, 1024, 14, 256, 1),
        _square(8, 512, 7, 2048, 1),
        _square(8, 256, 56, 512, 1, stride=2),
        _square(4, 24, 56, 144, 1),
        _square(4, 144, 56, 24, 1),
        _square(4, 320, 7, 1280, 1),
    ],
    "other dense": [
        _square(16, 64, 27, 192, 5),
        _square(8, 128, 56, 128, 3, stride=2),
        _square(8, 256, 28, 256, 3, stride=2),
        _square(8, 128, 28, 128, 3, dilation=2),
        Conv(8, 128, 17, 17, 128, (1, 7), 1, (0, 3)),
        Conv(8, 128, 17, 17, 128, (7, 1), 1, (3, 0)),
        Conv(8, 32, 81, 200, 32, (20, 5), 2, (10, 2)),
    ],
    "1 to 4 input channels": [
        _square(64, 1, 28, 32, 3),
        _square(64, 1, 28, 6, 5),
        _square(64, 3, 32, 64, 3),
        _square(8, 3, 224, 64, 7, stride=2),
        _square(4, 3, 224, 64, 3),
        _square(8, 3, 224, 32, 3, stride=2),
        _square(8, 3, 224, 64, 11, stride=4, padding=2),
    ],
    "depthwise and grouped": [
        _square(8, 32, 112, 32, 3, groups=32),
        _square(8, 96, 112, 96, 3, stride=2, groups=96),
        _square(8, 144, 56, 144, 3, groups=144),
        _square(8, 576, 14, 576, 3, groups=576),
        _square(8, 240, 28, 240, 5, stride=2, groups=240),
        _square(8, 672, 14, 672, 5, groups=672),
        _square(8, 96, 56, 96, 7, groups=96),
        _square(8, 128, 56, 128, 3, groups=32),
        _square(8, 240, 28, 240, 1, groups=3),
    ],
    "8 to 32 channels": [
        _square(64, 16, 32, 16, 3),
        _square(64, 32, 16, 32, 3),
        _square(64, 16, 32, 32, 3, stride=2),
        _square(64, 6, 14, 16, 5, padding=0),
        _square(1, 16, 32, 16, 3),
    ],
    "tiny calls": [
        _square(1, 3, 8, 8, 3),
    ],
}

POOLS: list[Pool] = [
    Pool("max", 8, 64, 112, 3, 2, 1),
    Pool("max", 8, 64, 56, 2, 2),
    Pool("max", 64, 32, 28, 2, 2),
    Pool("max", 8, 192, 28, 3, 1, 1),
    Pool("avg", 8, 64, 56, 2, 2),
    Pool("avg", 8, 480, 14, 3, 1, 1),
    Pool("avg", 8, 2048, 7, 7),
    Pool("avg", 8, 2048, 7, 0),
]

# Section 4 of the design: what the first version is compared on.
DESIGN: list[Conv] = [
    _square(8, 128, 28, 128, 3),
    _square(4, 512, 14, 512, 3),
    _square(8, 1024, 14, 256, 1),
    _square(8, 128, 56, 128, 3, stride=2),
    _square(16, 64, 27, 192, 5),
    _square(8, 3, 224, 64, 7, stride=2),
    _square(4, 3, 224, 64, 3),
    _square(8, 144, 56, 144, 3, groups=144),
    _square(8, 96, 112, 96, 3, stride=2, groups=96),
]
