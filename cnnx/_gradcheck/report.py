"""What ``gradcheck`` found: one entry for each array, a verdict, and a table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cnnx._notebook import html_table

_HEADS = (
    "gradient of", "shape", "checked", "kinks", "worst error", "at", "analytic", "numeric", "",
)  # fmt: skip


@dataclass(frozen=True)
class GradcheckEntry:
    """What was found for one array.

    Attributes
    ----------
    name : str
        "x" for a layer's input, else the parameter's name, such as "0.weight".
    shape : tuple of int
        Its shape.
    checked : int
        How many of its elements were moved alone; all of them together along random directions.
    kinks : int
        How many of these stood on a kink.
    error : float
        The worst relative error.
    index : tuple of int or None
        Where it is; None where there is no one element, but a sum is wrong.
    analytic, numeric : float
        The gradient claimed by backward and the measured one, there.
    passed : bool
        Whether the error is within the tolerance.
    note : str
        What else there is to say.
    """

    name: str
    shape: tuple[int, ...]
    checked: int = 0
    kinks: int = 0
    error: float = 0.0
    index: tuple[int, ...] | None = None
    analytic: float = float("nan")
    numeric: float = float("nan")
    passed: bool = True
    note: str = ""


@dataclass(frozen=True)
class GradcheckReport:
    """The result of :func:`gradcheck`: true when every gradient passed, a table when printed.

    Attributes
    ----------
    name : str
        What was checked.
    entries : tuple of GradcheckEntry
        One for each input and parameter; ``report["0.weight"]`` finds one by name.
    rtol : float
        The relative error that passes.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> x = np.array([0.5, -1.5])
    >>> report = cnnx.gradcheck(np.square, x, backward=lambda grad_out, x: grad_out * x)  # no 2
    >>> bool(report)
    False
    >>> worst = report.worst
    >>> round(worst.analytic / worst.numeric, 6)
    0.5
    """

    name: str
    entries: tuple[GradcheckEntry, ...]
    rtol: float

    @property
    def passed(self) -> bool:
        """Whether every gradient passed."""
        return all(entry.passed for entry in self.entries)

    @property
    def worst(self) -> GradcheckEntry:
        """The entry with the largest relative error."""
        return max(self.entries, key=lambda entry: (not entry.passed, entry.error))

    def __bool__(self) -> bool:
        """Whether every gradient passed."""
        return self.passed

    def __getitem__(self, name: str) -> GradcheckEntry:
        """Return the entry of an input or parameter."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise KeyError(f"{name!r} is not among {[entry.name for entry in self.entries]}")

    def __str__(self) -> str:
        """The table as text."""
        rows = [_HEADS, *self._rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [self._title()]
        lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join(lines + self._notes())

    def _repr_html_(self) -> str:
        """The table for notebooks."""
        failed = [number for number, entry in enumerate(self.entries) if not entry.passed]
        return html_table(self._title(), _HEADS, self._rows(), self._notes(), failed)

    def _title(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        return f"gradcheck of {self.name}: {verdict} (relative error at most {self.rtol:g})"

    def _notes(self) -> list[str]:
        return [f"{entry.name}: {entry.note}" for entry in self.entries if entry.note]

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        for e in self.entries:
            where = "" if e.index is None else str(e.index)
            shape = "x".join(map(str, e.shape)) or "number"
            values = (f"{e.error:.1e}", where, f"{e.analytic:.9g}", f"{e.numeric:.9g}")
            verdict = "ok" if e.passed else "WRONG"
            size = int(np.prod(e.shape, dtype=np.int64))
            rows.append((e.name, shape, f"{e.checked}/{size}", str(e.kinks), *values, verdict))
        return rows


class GradcheckError(AssertionError):
    """Raised by ``gradcheck(..., raise_on_failure=True)``; its `report` says what is wrong.

    Parameters
    ----------
    report : GradcheckReport
        What was found; it is the message, and the attribute `report`.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> def wrong(grad_out, x):
    ...     return grad_out * x  # the gradient of x**2 without its 2
    >>> try:
    ...     cnnx.gradcheck(np.square, np.ones(3), backward=wrong, raise_on_failure=True)
    ... except cnnx.GradcheckError as error:
    ...     print(error.report["x"].passed)
    False
    """

    def __init__(self, report: GradcheckReport) -> None:
        super().__init__(report)
        self.report = report
