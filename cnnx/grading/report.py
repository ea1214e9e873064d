"""What ``grade`` found: a verdict, a line for each subject, and the smallest case that fails."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from cnnx.grading.cases import Arrays, Case
from cnnx.grading.comparison import Fault
from cnnx.grading.mistakes import Mistake


@dataclass(frozen=True)
class CaseGrade:
    """Right or wrong for one call.

    Attributes
    ----------
    case : Case
        Its arrays and options.
    faults : tuple of Fault
        What is wrong; empty when all is right.
    """

    case: Case
    faults: tuple[Fault, ...]

    @property
    def passed(self) -> bool:
        """Whether all is right."""
        return not self.faults


@dataclass(frozen=True)
class Failure:
    """The smallest case that still fails.

    Attributes
    ----------
    case : Case
        The inputs.
    faults : tuple of Fault
        What is wrong there.
    expected, actual : dict of str to ndarray
        The right results, and the student's that are wrong.
    mistakes : tuple of Mistake
        The well-known mistakes that give exactly these wrong results; may be empty.
    """

    case: Case
    faults: tuple[Fault, ...]
    expected: Arrays
    actual: dict[str, Any]
    mistakes: tuple[Mistake, ...]

    @property
    def hints(self) -> tuple[str, ...]:
        """What to tell the student."""
        return tuple(mistake.hint for mistake in self.mistakes)

    def __str__(self) -> str:
        """The failure with its numbers."""
        lines = [f"smallest failing case: {self.case}"]
        lines += [f"  {fault.text}" for fault in self.faults]
        lines += [f"  hint: {hint}" for hint in self.hints]
        inputs = dict(self.case.arrays)
        if set(self.actual) <= {"out", "max_indices"}:
            inputs.pop("dout", None)  # what is wrong happened before
        lines += [_array(name, array) for name, array in inputs.items()]
        for name, array in self.actual.items():
            lines += [_array(f"expected {name}", self.expected[name])]
            lines += [_array(f"your {name}", array)]
        return "\n".join(lines)


@dataclass(frozen=True)
class Speed:
    """Times of one and the same call, in seconds."""

    case: Case
    yours: float
    ours: float

    @property
    def factor(self) -> float:
        """How many times faster cnnx is."""
        return self.yours / self.ours


@dataclass(frozen=True)
class SubjectGrade:
    """All about one function or class.

    Attributes
    ----------
    name : str
        Its classroom name.
    cases : tuple of CaseGrade
        One for each case that ran.
    planned : int
        How many cases there are; fewer ran where the time was over or a parameter is missing.
    remarks : tuple of str
        What else there is to say.
    failure : Failure or None
        The smallest failing case.
    speed : Speed or None
        The times, where they could be measured.
    """

    name: str
    cases: tuple[CaseGrade, ...]
    planned: int
    remarks: tuple[str, ...] = ()
    failure: Failure | None = None
    speed: Speed | None = None

    @property
    def passed(self) -> bool:
        """Whether at least one case ran, and all that ran are right."""
        return bool(self.cases) and all(case.passed for case in self.cases)

    @property
    def right(self) -> int:
        """How many cases are right."""
        return sum(case.passed for case in self.cases)

    def row(self) -> tuple[str, str, str, str]:
        """The line of the table."""
        verdict = "right" if self.passed else "WRONG"
        count = f"{self.right} of {len(self.cases)}"
        return self.name, verdict, count, f"{self.speed.factor:,.0f} x" if self.speed else ""


@dataclass(frozen=True)
class GradeReport:
    """The result of :func:`cnnx.grade`: true when all is right, text when printed.

    Attributes
    ----------
    subjects : tuple of SubjectGrade
        One for each function and class; ``report["conv_forward"]`` finds one by name.
    """

    subjects: tuple[SubjectGrade, ...]

    @property
    def passed(self) -> bool:
        """Whether everything is right."""
        return all(subject.passed for subject in self.subjects)

    @property
    def cases(self) -> tuple[CaseGrade, ...]:
        """All cases that ran."""
        return tuple(case for subject in self.subjects for case in subject.cases)

    @property
    def failures(self) -> dict[str, Failure]:
        """The smallest failing case of each subject that has one."""
        return {s.name: s.failure for s in self.subjects if s.failure is not None}

    @property
    def hints(self) -> dict[str, tuple[str, ...]]:
        """The hints of each subject that has a failure."""
        return {name: failure.hints for name, failure in self.failures.items()}

    def __bool__(self) -> bool:
        """Whether everything is right."""
        return self.passed

    def __getitem__(self, name: str) -> SubjectGrade:
        """Return what was found for one function or class."""
        for subject in self.subjects:
            if subject.name == name:
                return subject
        raise KeyError(f"{name!r} is not among {[subject.name for subject in self.subjects]}")

    def __str__(self) -> str:
        """The report as text."""
        rows = [_HEADS, *(subject.row() for subject in self.subjects)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, *self._details()])

    def _details(self) -> list[str]:
        lines: list[str] = []
        for subject in self.subjects:
            lines += [f"{subject.name}: {remark}" for remark in subject.remarks]
        for subject in self.subjects:
            if subject.failure is not None:
                lines += ["", f"{subject.name}, {subject.failure}", *_others(subject)]
        right = sum(subject.passed for subject in self.subjects)
        verdict = "all right" if self else f"{right} of {len(self.subjects)} right"
        return [*lines, "", verdict]

    def show(self) -> None:
        """Print the report, with a coloured table where rich is installed, in a terminal."""
        try:
            from rich.console import Console
            from rich.table import Table
        except ImportError:
            print(self)
            return
        if not sys.stdout.isatty():
            print(self)
            return
        table = Table(*_HEADS)
        for subject in self.subjects:
            table.add_row(*subject.row(), style="green" if subject.passed else "red")
        console = Console()
        console.print(table)
        console.print("\n".join(self._details()), markup=False, highlight=False)

    def _repr_html_(self) -> str:
        """The report for a notebook."""
        cells = "".join(
            "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in subject.row()) + "</tr>"
            for subject in self.subjects
        )
        heads = "".join(f"<th>{head}</th>" for head in _HEADS)
        details = escape("\n".join(self._details()))
        return f"<table><tr>{heads}</tr>{cells}</table><pre>{details}</pre>"


_LISTED = 4
_HEADS = ("graded", "verdict", "cases right", "cnnx is faster by")


class GradeError(AssertionError):
    """Raised by ``grade(..., raise_on_failure=True)``; its `report` says what is wrong."""

    def __init__(self, report: GradeReport) -> None:
        super().__init__(report)
        self.report = report


def _others(subject: SubjectGrade) -> list[str]:
    """The failing cases of the grid, the first few."""
    failed = [grade for grade in subject.cases if not grade.passed]
    if len(failed) == len(subject.cases):
        return []
    lines = []
    for grade in failed[:_LISTED]:
        where = ", ".join(fault.where for fault in grade.faults)
        lines.append(f"  wrong too ({where}): {grade.case}")
    more = len(failed) - _LISTED
    return [*lines, f"  and {more} more"] if more > 0 else lines


def _array(name: str, value: Any) -> str:
    """An array under its name, without needless zeros."""
    if not isinstance(value, np.ndarray):
        return f"  {name} = {value!r}"
    shown = {"float_kind": lambda number: f"{number:.6g}"}
    printed = np.array2string(value, threshold=200, formatter=shown)  # type: ignore[arg-type]
    if "\n" not in printed or value.size <= 8:
        return f"  {name} = {' '.join(printed.split())}"
    return f"  {name} =\n    " + printed.replace("\n", "\n    ")
