"""Windows that move over a padded image: where each lies, for pooling and convolution alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cnnx._shapes import Geometry, Pair
from cnnx.explain._arguments import require_few
from cnnx.explain._steps import Array, Cell

_SIDE = 20  # rows or columns of a picture


@dataclass(frozen=True)
class Windows:
    """The windows of one call."""

    geometry: Geometry
    x_shape: tuple[int, ...]
    kernel: Pair

    def __post_init__(self) -> None:
        """Refuse what nobody could follow."""
        top, bottom, left, right = self.geometry.pads
        n, c, h, w = self.x_shape
        require_few(
            "the padded x",
            (n, c, h + top + bottom, w + left + right),
            "pass a smaller x, or a smaller padding",
        )
        require_few("the output", self.geometry.out_shape, "pass a smaller x, or a larger stride")
        if h + top + bottom > _SIDE or w + left + right > _SIDE:
            raise ValueError(
                f"x has shape {self.x_shape}, expected at most {_SIDE} rows and columns, "
                "padding included: pass a part of it, such as x[:1, :1, :6, :6]"
            )

    @property
    def places(self) -> list[Cell]:
        """The positions of the windows, row by row."""
        return list(np.ndindex(self.geometry.out_shape[2:]))

    def taps(self, place: Cell) -> list[tuple[Cell, Cell]]:
        """Each tap of a window: its place in the window, and in the padded image."""
        (step_h, step_w), (spread_h, spread_w) = self.geometry.stride, self.geometry.dilation
        return [
            ((u, v), (place[0] * step_h + u * spread_h, place[1] * step_w + v * spread_w))
            for u in range(self.kernel[0])
            for v in range(self.kernel[1])
        ]

    def pad(self, x: Array, value: float) -> Array:
        """The image with its padding around it."""
        top, bottom, left, right = self.geometry.pads
        return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=value)

    def crop(self, padded: Array) -> Array:
        """The image without its padding."""
        top, _, left, _ = self.geometry.pads
        return padded[:, :, top : top + self.x_shape[2], left : left + self.x_shape[3]]

    @property
    def overlap(self) -> bool:
        """Whether a pixel lies in several windows."""
        cells = [cell for place in self.places for _, cell in self.taps(place)]
        return len(set(cells)) < len(cells)

    @property
    def padded(self) -> bool:
        """Whether there is padding at all."""
        return any(self.geometry.pads)

    @property
    def faint(self) -> set[Cell]:
        """The cells of the padding."""
        frame = np.pad(np.zeros(self.x_shape[2:]), self._frame(), constant_values=1.0)
        return {(int(r), int(c)) for r, c in np.argwhere(frame)}

    def _frame(self) -> tuple[Pair, Pair]:
        top, bottom, left, right = self.geometry.pads
        return (top, bottom), (left, right)

    @property
    def described(self) -> str:
        """Stride, padding and dilation in the homework's letters."""
        (s_h, s_w), (top, bottom, left, right) = self.geometry.stride, self.geometry.pads
        pads = f"({top}, {left})" if (top, left) == (bottom, right) else f"{self._frame()}"
        text = f"stride (S_h, S_w) = ({s_h}, {s_w}), padding (P_h, P_w) = {pads}"
        if self.geometry.dilation != (1, 1):
            text += f", dilation {self.geometry.dilation}"
        return text

    @property
    def size_formula(self) -> str:
        """The output's size in numbers."""
        top, bottom, left, right = self.geometry.pads
        sizes = []
        for axis, pads in ((0, top + bottom), (1, left + right)):
            span = self.geometry.dilation[axis] * (self.kernel[axis] - 1) + 1
            sizes.append(
                f"⌊({self.x_shape[2 + axis]} + {pads} - {span}) / {self.geometry.stride[axis]}⌋ "
                f"+ 1 = {self.geometry.out_shape[2 + axis]}"
            )
        return f"H = {sizes[0]},   W = {sizes[1]}"
