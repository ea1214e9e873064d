"""The walk over all elements: at the point, and beside it for what stood on a kink there.

Of large arrays only a sample of elements is moved one by one. All of their elements are moved
together along random directions, to which a single wrong element contributes
too, and bisection then finds the element.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnx._gradcheck.differences import Line, Point, Slope
from cnnx._gradcheck.report import GradcheckEntry, GradcheckReport
from cnnx._gradcheck.subject import Subject

Array = NDArray[Any]
Index = tuple[int, ...]
Finding = tuple[Index | None, Slope]  # None: along a direction

_DIRECTIONS = 2  # random ones; a wrong gradient passes one of them with probability 0
_NOTHING = Slope(np.nan, np.nan, 0.0, False)  # an array without elements has no error
_ASIDE = 1e-3  # how far off a kink is checked again, by chance not on another one


@dataclass(frozen=True)
class Settings:
    """The arguments of gradcheck that say how to compare."""

    eps: float
    rtol: float
    atol: float
    max_elements: int
    seed: int


def compare(subject: Subject, settings: Settings) -> GradcheckReport:
    """Compare every gradient that the subject claims with the measured one."""
    rng = np.random.default_rng(settings.seed)
    _forward_elsewhere(subject, settings.eps, rng)
    grad_out = _upstream(subject, rng)
    _forward_elsewhere(subject, settings.eps, rng)
    claims, notes = _claims(subject, grad_out)
    arrays = {name: subject.arrays[name] for name in claims}
    if not claims and not any(notes.values()):
        raise ValueError("backward returned None for every input: there is no gradient to check")
    elements = _chosen(arrays, settings.max_elements, rng)
    sampled = {name for name, array in arrays.items() if len(elements[name]) < array.size}

    def survey(
        claims: dict[str, Array], elements: dict[str, list[Index]], whole: set[str]
    ) -> dict[str, list[Finding]]:
        """The findings of some elements and of some arrays as a whole, at the present point."""
        point = Point(subject.forward, grad_out, settings.eps, settings.rtol, settings.atol)
        found: dict[str, list[Finding]] = {}
        for name, indices in elements.items():
            walk = _Walk(point, arrays[name], claims[name], settings.rtol)
            found[name] = [(index, walk.element(index)) for index in indices]
            if name in whole or any(slope.kink for _, slope in found[name]):
                wrong = any(slope.error > settings.rtol for _, slope in found[name])
                found[name] += walk.directions(rng, locate=not wrong)
        return found

    found = survey(claims, elements, sampled)
    on_kink = {
        name: [index for index, slope in findings if slope.kink] for name, findings in found.items()
    }
    kinks = {name: [i for i in found if i is not None] for name, found in on_kink.items()}
    if subject.is_nested:  # see Notes in gradcheck: there the interval says nothing
        found = {name: [f for f in findings if not f[1].kink] for name, findings in found.items()}
    again = {name: kinks[name] for name in kinks if on_kink[name]}
    if again:
        with _moved_aside(arrays, rng, _ASIDE):
            beside, _ = _claims(subject, grad_out)
            for name, findings in survey(beside, again, set(again)).items():
                found[name] += findings

    entries = []
    for name, array in subject.arrays.items():
        if name not in claims:
            failed = bool(notes[name])
            note = notes[name] or "not checked, for backward returned None"
            error = np.inf if failed else 0.0
            entries.append(
                GradcheckEntry(name, array.shape, error=error, passed=not failed, note=note)
            )
            continue
        index, worst = max(
            found[name], key=lambda finding: finding[1].error, default=(None, _NOTHING)
        )
        entries.append(
            GradcheckEntry(
                name,
                array.shape,
                checked=len(elements[name]),
                kinks=len(kinks[name]),
                error=worst.error,
                index=index,
                analytic=worst.claimed,
                numeric=worst.measured,
                passed=worst.error <= settings.rtol,
                note=_note(array.size, len(elements[name]), len(kinks[name])),
            )
        )
    return GradcheckReport(subject.name, tuple(entries), settings.rtol)


class _Walk:
    """One array at one point: its elements, and all of it along directions."""

    def __init__(self, point: Point, array: Array, claimed: Array, rtol: float) -> None:
        self._point, self._array, self._claimed, self._rtol = point, array, claimed, rtol
        self._largest = float(np.abs(claimed).max(initial=0.0))
        # Along a direction each element moves by as much as it is large; equal ones stay equal.
        self._sizes = np.maximum(1.0, np.abs(array))
        self._norm = float(np.sqrt(np.square(claimed * self._sizes).sum()))

    def element(self, index: Index) -> Slope:
        return self._point.slope(
            Line(self._array, index), float(self._claimed[index]), self._largest
        )

    def direction(self, along: Array) -> Slope:
        along = along * self._sizes
        claimed = float((self._claimed * along).sum())
        return self._point.slope(Line(self._array, along), claimed, self._norm)

    def directions(self, rng: np.random.Generator, locate: bool) -> Iterator[Finding]:
        """Random directions, and the one along which all elements grow alike.

        The last one is for ties: they stay ties on it, so that the gradient is exactly known. A
        gradient that went to all the tied elements at once is valid for each of them alone.
        """
        shape = self._array.shape
        for _ in range(_DIRECTIONS):
            along = _random(rng, shape)
            slope = self.direction(along)
            if locate and slope.error > self._rtol:
                index = self._worst_element(along)
                alone = self.element(index)
                yield (index, alone) if alone.error > self._rtol else (None, slope)
            else:
                yield None, slope
        yield None, self.direction(np.ones(shape))

    def _worst_element(self, along: Array) -> Index:
        """Halve the elements again and again, and keep the half that is farther off."""

        def off(positions: NDArray[np.intp]) -> float:
            part = np.zeros(self._array.size)
            part[positions] = along.ravel()[positions]
            slope = self.direction(part.reshape(self._array.shape))
            return abs(slope.claimed - slope.measured)

        positions = np.arange(self._array.size)
        while len(positions) > 1:
            positions = max(np.array_split(positions, 2), key=off)
        return _index(positions[0], self._array.shape)


def _index(position: np.intp, shape: tuple[int, ...]) -> Index:
    return tuple(map(int, np.unravel_index(position, shape))) if shape else ()


def _forward_elsewhere(subject: Subject, eps: float, rng: np.random.Generator) -> None:
    """Fill every cache with a point nearby: a backward that reads an old one will be wrong."""
    with np.errstate(all="ignore"), _moved_aside(subject.arrays, rng, 10 * eps):
        subject.forward()


def _upstream(subject: Subject, rng: np.random.Generator) -> Array:
    """A random upstream gradient, once the forward has proved dependable."""
    before = {name: array.copy() for name, array in subject.arrays.items()}
    out = subject.forward().copy()
    again = subject.forward()
    for name, array in subject.arrays.items():
        if not np.array_equal(array, before[name], equal_nan=True):
            raise ValueError(f"forward changed {name}, expected it to leave its inputs alone")
    if not np.array_equal(out, again, equal_nan=True):
        raise ValueError(
            "forward gave two results for one input, expected the same: fix its random numbers (a "
            "numpy.random.Generator that a layer keeps as an attribute is rewound)"
        )
    return _random(rng, out.shape)


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Random numbers of either sign, none near 0, where it would hide what it multiplies."""
    return np.asarray(rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape))


def _claims(subject: Subject, grad_out: Array) -> tuple[dict[str, Array], dict[str, str]]:
    """The gradients that can be compared by name; of the others, what is wrong with them."""
    claims, notes = {}, {}
    subject.forward()
    gradients = {
        name: None if gradient is None else np.array(gradient)
        for name, gradient in subject.backward(grad_out.copy()).items()
    }
    subject.forward()
    again = subject.backward(grad_out.copy())
    for name, array in subject.arrays.items():
        gradient, shape = gradients.get(name), array.shape
        if gradient is None:
            notes[name] = "" if subject.may_decline else "backward left no gradient"
        elif np.shape(gradient) != shape:
            notes[name] = f"the gradient has shape {np.shape(gradient)}, expected {shape}"
        elif not _same(gradient, again.get(name)):
            notes[name] = (
                "a second backward gave another gradient: does it add to the first, or draw?"
            )
        else:
            claims[name] = np.array(gradient, np.float64)
    return claims, notes


def _same(first: Array, second: Array | None) -> bool:
    # Not to the bit: a user's own threads may sum in another order.
    return second is not None and np.allclose(first, second, rtol=1e-9, atol=0, equal_nan=True)


def _chosen(
    arrays: dict[str, Array], total: int, rng: np.random.Generator
) -> dict[str, list[Index]]:
    """The elements to move one by one: all of the small arrays, samples of the large ones."""
    chosen = {}
    for number, name in enumerate(sorted(arrays, key=lambda name: arrays[name].size)):
        array = arrays[name]
        count = min(array.size, max(1, total // (len(arrays) - number)))
        total -= count
        positions = np.sort(rng.choice(array.size, count, replace=False))
        chosen[name] = [_index(position, array.shape) for position in positions]
    return {name: chosen[name] for name in arrays}


@contextmanager
def _moved_aside(
    arrays: dict[str, Array], rng: np.random.Generator, distance: float
) -> Iterator[None]:
    """Go to a random point nearby."""
    before = {name: array.copy() for name, array in arrays.items()}
    try:
        for array in arrays.values():
            array += distance * np.maximum(1, np.abs(array)) * _random(rng, array.shape)
        yield
    finally:
        for name, array in arrays.items():
            array[...] = before[name]


def _note(size: int, checked: int, kinks: int) -> str:
    notes = []
    if checked < size:
        notes.append(f"{checked} of {size} elements alone, all of them along random directions")
    if kinks:
        notes.append(
            f"{kinks} of {checked} elements stand on a kink, where a gradient need only lie "
            "between the slopes of the two sides; they were checked again at a point nearby"
        )
    return "; ".join(notes)
