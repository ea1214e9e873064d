"""What an explanation consists of: steps with sums and small matrices, all immutable.

An operation writes steps and knows no picture; a renderer draws steps and knows no operation. What
ties them together is the *group*: 0 is plain, and the same number anywhere in a step (a window, its
gradient, a term of the sum) is drawn in the same colour.

Names and formulas are plain text with a little TeX: ``Z^{l-1}`` and ``S_h`` are drawn raised and
lowered where the medium can.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

COLOURS = 7  # groups from 1 on
Array = NDArray[Any]
Cell = tuple[int, int]


@dataclass(frozen=True)
class Term:
    """One term of a sum: its factors, and the group of what it belongs to."""

    factors: tuple[float, ...]
    group: int = 0

    @property
    def value(self) -> float:
        """The product."""
        return math.prod(self.factors)


@dataclass(frozen=True)
class Sum:
    """One number and where it comes from: the terms in figures, and what they make.

    Attributes
    ----------
    name : str
        What is computed, such as "Z[0, 1]".
    terms : tuple of Term
        What it is computed from.
    value : float
        The result.
    form, joint : str
        How the terms are written: a sum without more; ``"max({})"`` and ``", "`` for a maximum.
    """

    name: str
    terms: tuple[Term, ...]
    value: float
    form: str = "{}"
    joint: str = " + "


@dataclass(frozen=True)
class Panel:
    """A small matrix with a name; None is a cell that is still empty.

    Attributes
    ----------
    name : str
        What it is, such as "Z^{l-1}".
    values : tuple of tuples of float or None
        Its rows.
    marks : mapping of (row, column) to group
        The cells in focus.
    strong : frozenset of (row, column)
        The cells that were chosen, or are written now.
    faint : frozenset of (row, column)
        The cells of the padding.
    sign : str
        What stands between the panel before and this one, such as "=".
    """

    name: str
    values: tuple[tuple[float | None, ...], ...]
    marks: tuple[tuple[Cell, int], ...] = ()
    strong: frozenset[Cell] = frozenset()
    faint: frozenset[Cell] = frozenset()
    sign: str = ""

    @property
    def shape(self) -> Cell:
        """Rows and columns."""
        return len(self.values), len(self.values[0])

    @property
    def groups(self) -> dict[Cell, int]:
        """The groups of the marked cells."""
        return dict(self.marks)

    @property
    def largest(self) -> float:
        """The largest finite absolute value: the dark end of the heat map."""
        sizes = [abs(v) for row in self.values for v in row if v is not None and math.isfinite(v)]
        return max(sizes, default=0.0) or 1.0


@dataclass(frozen=True)
class Step:
    """One thought: a title, a sentence or two, the formula, its numbers, and the matrices.

    Attributes
    ----------
    part : str
        The chapter, such as "forward" or "∂L/∂W".
    title, text, formula : str
        What happens, why, and in which notation.
    sums : tuple of Sum
        The formula with its real numbers.
    panels : tuple of Panel
        The matrices.
    main : bool
        Whether the step is among the highlights: the first of many that are alike, for example.
    """

    part: str
    title: str
    text: str
    formula: str = ""
    sums: tuple[Sum, ...] = ()
    panels: tuple[Panel, ...] = ()
    main: bool = False


@dataclass(frozen=True)
class Explanation:
    """An operation, forward and backward, in steps.

    Print it, ``show()`` it in a terminal, ``save()`` it, or let a notebook display it. A slice,
    such as ``explanation[2:5]``, is an explanation of these steps.

    Attributes
    ----------
    title : str
        What is explained.
    steps : tuple of Step
        The steps.
    forward : ndarray
        The output, computed by the sums that the steps show.
    backward : mapping of str to ndarray
        The gradients, from the sums as well: "x", and "weight" and "bias" where there are such.
    agrees : bool
        Whether the sums agree with cnnx's own kernels, and with the numerical gradient except
        where the function has a kink.
    """

    title: str
    steps: tuple[Step, ...]
    forward: Array = field(repr=False)
    backward: Mapping[str, Array] = field(repr=False)
    agrees: bool

    def __len__(self) -> int:
        """Return how many steps there are."""
        return len(self.steps)

    def __iter__(self) -> Iterator[Step]:
        """Go through the steps."""
        return iter(self.steps)

    @overload
    def __getitem__(self, number: int) -> Step: ...
    @overload
    def __getitem__(self, number: slice) -> Explanation: ...
    def __getitem__(self, number: int | slice) -> Step | Explanation:
        """Return a step, or an explanation of some of the steps."""
        if isinstance(number, slice):
            return replace(self, steps=self.steps[number])
        return self.steps[number]

    @property
    def highlights(self) -> Explanation:
        """The main steps only: of many that are alike, the first."""
        return replace(self, steps=tuple(step for step in self.steps if step.main))

    def __str__(self) -> str:
        """The steps as plain text."""
        from cnnx.explain._text import plain

        return plain(self)

    def __repr__(self) -> str:
        """What it is; print it for the steps."""
        verdict = "agrees" if self.agrees else "DISAGREES"
        return f"<Explanation: {self.title}, {len(self)} steps, {verdict}>"

    def _repr_html_(self) -> str:
        """The page with the slider, in a frame."""
        from cnnx.explain._html import frame

        return frame(self)

    def show(self) -> None:
        """Print the steps: in colour in a terminal where rich is installed, plain otherwise."""
        from cnnx.explain._text import show

        show(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the steps to a file, whole or not at all.

        Parameters
        ----------
        path : path
            The suffix decides: ``.html`` is one page with a slider that needs no network,
            ``.png`` and ``.svg`` one picture of all steps, ``.pdf`` one page a step, ``.txt``
            plain text. Pictures need matplotlib.

        Raises
        ------
        ValueError
            If the suffix is another one, there are no steps, or too many for one picture.
        ImportError
            If matplotlib is missing and a picture is wanted.
        """
        from cnnx.explain._save import save

        save(self, path)


# ---------------------------------------------------------------- short ways to make them


def total(name: str, terms: Iterable[Term]) -> Sum:
    """A sum, added up term by term in plain floats."""
    terms = tuple(terms)
    value = 0.0
    for term in terms:
        value += term.value
    return Sum(name, terms, value)


def panel(
    name: str,
    matrix: Array,
    marks: Mapping[Cell, int] | None = None,
    strong: Iterable[Cell] = (),
    faint: Iterable[Cell] = (),
    sign: str = "",
) -> Panel:
    """A panel of a matrix, in which NaN is an empty cell."""
    rows = tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in matrix)
    groups = tuple(sorted((marks or {}).items()))
    return Panel(name, rows, groups, frozenset(strong), frozenset(faint), sign)


def panels(
    name: str,
    array: Array,
    marks: Mapping[tuple[int, ...], int] | None = None,
    strong: Iterable[tuple[int, ...]] = (),
    faint: Iterable[Cell] = (),
    sign: str = "",
    whole: bool = False,
) -> tuple[Panel, ...]:
    """Panels of an array of any dimension: one for each matrix of its last two axes.

    Where there are several, only those with something in focus are shown, if there are such, unless
    the `whole` array is wanted; then each gets the sign.
    """
    marks, strong = dict(marks or {}), set(strong)
    array = np.asarray(array)
    while array.ndim < 2:  # a row
        array = array[None]
        marks = {(0, *index): group for index, group in marks.items()}
        strong = {(0, *index) for index in strong}
    sheets = list(np.ndindex(array.shape[:-2]))
    focus = [s for s in sheets if any(index[:-2] == s for index in (*marks, *strong))]
    result: list[Panel] = []
    for sheet in sheets if whole else focus or sheets:
        label = f"{name}[{', '.join(map(str, sheet))}]" if len(sheets) > 1 else name
        own = {(i[-2], i[-1]): group for i, group in marks.items() if i[:-2] == sheet}
        chosen = {(i[-2], i[-1]) for i in strong if i[:-2] == sheet}
        result.append(
            panel(label, array[sheet], own, chosen, faint, sign if whole or not result else "")
        )
    return tuple(result)


def at(name: str, index: Iterable[int], shape: tuple[int, ...]) -> str:
    """The name of an element; leading axes of size 1 are left out."""
    index = list(index)
    while len(index) > 2 and shape[-len(index)] == 1:
        index = index[1:]
    return f"{name}[{', '.join(map(str, index))}]"


def group_of(index: Iterable[int]) -> int:
    """The colour group of an output: neighbours, and neighbouring channels, differ."""
    *lead, row, column = (0, 0, *index)
    return 1 + (5 * sum(lead) + 3 * row + column) % COLOURS
