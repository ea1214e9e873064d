"""Central differences that know a kink when they meet one: the measuring part of ``gradcheck``.

Along a line through a point, a function has a slope ahead of it and one behind it. The gap between
the two tells a smooth function from a kink (a ReLU at 0, a tie in a max window):

* where the function is smooth, the gap is h * f'' and shrinks with the step h;
* at a kink, the gap is the jump of the slope, and stays as it is however small h becomes;
* at a kink near the point, it stays until h is smaller than the distance, and is gone then.

So a suspicious slope is measured again with ever smaller steps, down to a thousandth of the first.
If the gap goes, the slope found there is what the gradient must agree with: an error cannot hide
behind a kink nearby. If the gap stays, the point is on the kink, and all that can be asked of the
gradient is to lie between the two slopes, a subgradient. Outputs are held apart until then, for at
a kink each of them may choose a slope of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_SHRINK = (1e-1, 1e-2, 1e-3)  # of the first step, where its slope is in doubt
_WIDER = (1e1, 1e2, 1e3, 1e4, 1e5)  # times the first step, where rounding drowns the slope
_CLEAR_GAP = 1e-3  # a smaller gap, as a share of the slope, raises no doubt if the slope agrees
_ROUNDING = 4  # units of an output's last place: a smaller difference means nothing
_MOST_NOISE = 1e-6  # share of the largest gradient beyond which rounding excuses nothing
_EPS = float(np.finfo(np.float64).eps)


class Line:
    """A line through the point: one element of an array, or a direction for the whole of it."""

    def __init__(self, array: Array, along: tuple[int, ...] | Array) -> None:
        self._array = array
        self._along = along
        self._origin = array[along] if isinstance(along, tuple) else array.copy()
        # 1e-5 beside 1e6 would be lost in rounding.
        self.scale = max(1.0, abs(float(self._origin))) if isinstance(along, tuple) else 1.0

    def move(self, t: float) -> float:
        """Go to t on the line, in place; return the t really reached, for x + t is rounded."""
        if isinstance(self._along, tuple):
            self._array[self._along] = self._origin + t
            return float(self._array[self._along] - self._origin)
        self._array[...] = self._origin + t * self._along
        return t

    def restore(self) -> None:
        """Go back to the point, to the last bit."""
        self._array[self._along if isinstance(self._along, tuple) else ...] = self._origin


class Slope(NamedTuple):
    """What was claimed and what was measured along one line."""

    claimed: float
    measured: float  # at a kink, the nearest slope between the two of its sides
    error: float  # relative; infinite where one of them is not a number
    kink: bool


class _Level(NamedTuple):
    """The slopes measured with one step."""

    central: float
    low: float  # the sums over the outputs of the smaller of their two slopes, and of the larger
    high: float
    noise: float  # what rounding can have done to `central`

    @property
    def gap(self) -> float:
        return self.high - self.low


class Point:
    """A function at one point, seen through an upstream gradient.

    Parameters
    ----------
    forward : callable
        Returns the function's output, float64, for the present contents of its arrays.
    grad_out : ndarray
        The upstream gradient, in the shape of the output.
    step, rtol, atol : float
        The first step of the differences; the relative and absolute tolerance.
    """

    def __init__(
        self, forward: Callable[[], Array], grad_out: Array, step: float, rtol: float, atol: float
    ) -> None:
        self._forward = forward
        self._grad_out = grad_out.ravel()
        self._step, self._rtol, self._atol = step, rtol, atol
        self._base = self._output()
        with np.errstate(all="ignore"):
            self._typical = float(np.sqrt(np.mean(np.square(self._base))))

    def slope(self, line: Line, claimed: float, largest: float) -> Slope:
        """Measure the slope along a line, and compare it with the claimed one.

        `largest` is the largest slope to expect; it bounds how much rounding may excuse.
        """
        try:
            with np.errstate(all="ignore"):
                return self._judged(line, claimed, _MOST_NOISE * max(1.0, largest))
        finally:
            line.restore()

    def _judged(self, line: Line, claimed: float, most_noise: float) -> Slope:
        def compared(measured: float, noise: float, kink: bool = False) -> Slope:
            difference = abs(claimed - measured)
            floor = (self._atol + min(noise, most_noise)) / self._rtol
            error = difference / max(abs(claimed), abs(measured), floor) if difference else 0.0
            return Slope(claimed, measured, error if np.isfinite(error) else np.inf, kink)

        first = self._level(line, self._step * line.scale)
        at_once = compared(first.central, first.noise)
        size = max(abs(claimed), abs(first.central))
        if at_once.error <= self._rtol and first.gap <= _CLEAR_GAP * size + 4 * first.noise:
            return at_once
        if first.noise > most_noise:
            # The error of a difference is eps * f / h: outputs of 1e6 move by less than their last
            # places tell. A wider step has less of it, but more of the function's curvature and
            # kinks; so it may acquit where it agrees within the tolerance, and never convicts.
            for share in _WIDER:
                wide = self._level(line, self._step * line.scale * share)
                agreed = compared(wide.central, wide.noise)
                size = max(abs(claimed), abs(wide.central))
                if agreed.error <= self._rtol and wide.gap <= _CLEAR_GAP * size + 4 * wide.noise:
                    return agreed

        finer = [self._level(line, self._step * line.scale * share) for share in _SHRINK]
        levels = [first, *finer]
        # A tenth of the step leaves a tenth of a smooth function's gap; 0.2 is halfway to a doubt.
        shrinking = [b.gap <= 0.2 * a.gap + 4 * b.noise for a, b in pairwise(levels)]
        before, last = levels[-2:]
        size = max(abs(claimed), abs(last.low), abs(last.high))
        matters = last.gap > self._rtol * size + self._atol + 4 * last.noise
        is_jump = last.gap > 5 * before.gap  # of the function itself: it has no slope there
        if matters and not is_jump and not (shrinking[-1] and shrinking[-2]):
            return compared(min(max(claimed, last.low), last.high), last.noise, kink=True)

        # Smooth, at least from some step on: there the gap shrinks with the step, or is but noise.
        # A gap that shrinks to much less than a tenth had a kink in it, which the step left behind,
        # and every larger step has that kink in it too.
        steady = [
            s and b.gap >= 0.05 * a.gap - 4 * b.noise
            for s, (a, b) in zip(shrinking, pairwise(levels), strict=True)
        ]
        start = next(k for k in range(len(levels)) if all(steady[k:]))
        # Of the measurements from there on, two neighbours that agree best are neither truncated
        # nor drowned in rounding.
        if start == len(levels) - 1:
            return compared(last.central, last.noise)
        pairs = list(pairwise(levels[start:]))
        apart = [abs(a.central - b.central) for a, b in pairs]
        best = int(np.argmin(apart))
        chosen = pairs[best][0]
        return compared(chosen.central, max(chosen.noise, apart[best]))

    def _output(self) -> Array:
        return self._forward().flatten()  # copied, for it may be a view of the array that moves

    def _level(self, line: Line, h: float) -> _Level:
        ahead = line.move(h)
        plus = self._output()
        behind = line.move(-h)
        minus = self._output()
        # Where nothing changed there is nothing to add, not even rounding. NaN counts as changed.
        moved = np.flatnonzero(~((plus == self._base) & (minus == self._base)))
        upstream, here = self._grad_out[moved], self._base[moved]
        plus, minus = plus[moved], minus[moved]
        right, left = upstream * (plus - here) / ahead, upstream * (minus - here) / behind
        size = np.maximum(np.maximum(np.abs(plus), np.abs(minus)), self._typical)
        return _Level(
            central=float((upstream * (plus - minus)).sum() / (ahead - behind)),
            low=float(np.minimum(right, left).sum()),
            high=float(np.maximum(right, left).sum()),
            noise=float(_ROUNDING * _EPS * (np.abs(upstream) * size).sum() / h),
        )
