"""The course of a grading: run the grid, shrink the first failure, explain it, take the times."""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median
from typing import Any

from cnnx import functional
from cnnx.gradcheck import numerical_gradient
from cnnx.grading.cases import (
    BACKWARD,
    GRADIENT,
    Arrays,
    Case,
    grid,
    middle_sized,
)
from cnnx.grading.comparison import Fault, faults_of, matches
from cnnx.grading.mistakes import BY_NAME, Evidence, Mistake, find
from cnnx.grading.report import CaseGrade, Failure, GradeError, GradeReport, Speed, SubjectGrade
from cnnx.grading.shrinking import shrink
from cnnx.grading.signatures import SignatureError
from cnnx.grading.subjects import Observation, Subject
from cnnx.grading.textbook import compute
from cnnx.layers import AvgPool2D, MaxPool2D

_OURS: dict[str, Any] = {
    "conv_forward": functional.conv_forward,
    BACKWARD: (functional.conv_forward, functional.conv_backward),
    "MaxPool2D": MaxPool2D,
    "AvgPool2D": AvgPool2D,
    GRADIENT: numerical_gradient,
}
_LONGEST_TIMING = 0.5  # seconds that one call may take to be repeated


def grade(
    conv_forward: Any = None,
    conv_backward: Any = None,
    MaxPool2D: Any = None,
    AvgPool2D: Any = None,
    numerical_gradient: Any = None,
    *,
    eval_numerical_gradient: Any = None,
    budget: float = 20.0,
    seed: int = 0,
    raise_on_failure: bool = False,
) -> GradeReport:
    """Compare your own loops with cnnx over a grid of shapes, and say what is wrong and why.

    Parameters
    ----------
    conv_forward : callable, optional
        ``conv_forward(X, W, b, stride, pad, activation) -> (out, cache)``.
    conv_backward : callable, optional
        ``conv_backward(dout, cache) -> (dX, dW, db)``, with the cache of your `conv_forward`.
    MaxPool2D, AvgPool2D : class, optional
        Made by ``(pool_size, stride)``, with ``forward(X)`` and ``backward(dout)``. Where
        ``max_indices`` is an array (N, C, Ho, Wo, 2) of row and column, it is compared too.
    numerical_gradient, eval_numerical_gradient : callable, optional
        ``(f, x, df, h) -> gradient`` of ``sum(f(x) * df)``; either name.
    budget : float
        Seconds for all; cases that do not fit in are not run, and the report says how many did. A
        single call cannot be interrupted, so a loop without an end must be stopped by Ctrl-C.
    seed : int
        Of the numbers in the arrays.
    raise_on_failure : bool
        Whether to raise when something is wrong.

    Returns
    -------
    GradeReport
        True when all is right; print it, or ``show()`` it.

    Raises
    ------
    GradeError
        If something is wrong and `raise_on_failure` is set; it carries the report.
    ValueError
        If there is nothing to grade, or a `conv_backward` without the `conv_forward` whose cache
        it takes.

    Notes
    -----
    Parameters may stand in any order under these names or the usual other ones (``padding``,
    ``kernel``); unknown names are taken by their position. Of what a signature lacks only the
    neutral value is graded, such as pad 0. A hint is given only where a well-known mistake, put
    into the formulas, gives exactly the wrong result.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> class Pool(cnnx.MaxPool2D):  # a backward that assigns instead of accumulating
    ...     def backward(self, dout):
    ...         dX = np.zeros(self._saved[1])
    ...         for n, c, i, j in np.ndindex(dout.shape):
    ...             row, column = self.max_indices[n, c, i, j]
    ...             dX[n, c, row, column] = dout[n, c, i, j]
    ...         return dX
    >>> class PoolOfIntegers(Pool):
    ...     def forward(self, X):
    ...         return super().forward(X.astype(float))
    >>> report = cnnx.grade(MaxPool2D=PoolOfIntegers)
    >>> bool(report)
    False
    >>> report.failures["MaxPool2D"].mistakes[0].name
    'assigned instead of accumulated'
    """
    if conv_backward is not None and conv_forward is None:
        raise ValueError(
            "conv_backward came without conv_forward: it needs the cache that your conv_forward "
            "returns, so pass both"
        )
    if numerical_gradient is not None and eval_numerical_gradient is not None:
        raise ValueError("numerical_gradient came under both of its names, expected one of them")
    if not budget > 0:
        raise ValueError(f"budget is {budget}, expected a number of seconds above 0")
    gradient = eval_numerical_gradient if numerical_gradient is None else numerical_gradient
    pair = None if conv_backward is None else (conv_forward, conv_backward)
    codes = {
        "conv_forward": conv_forward,
        BACKWARD: pair,
        "MaxPool2D": MaxPool2D,
        "AvgPool2D": AvgPool2D,
        GRADIENT: gradient,
    }
    codes = {name: code for name, code in codes.items() if code is not None}
    if not codes:
        raise ValueError(f"there is nothing to grade, expected at least one of {', '.join(_OURS)}")
    share = budget / len(codes)
    grades = {name: _graded(name, codes[name], share, seed) for name in codes}
    if BACKWARD in grades and not grades["conv_forward"].passed:
        remark = "conv_forward, whose cache it takes, is not right yet; mend that first"
        remarks = (*grades[BACKWARD].remarks, remark)
        grades[BACKWARD] = replace(grades[BACKWARD], remarks=remarks)
    report = GradeReport(tuple(grades.values()))
    if raise_on_failure and not report:
        raise GradeError(report)
    return report


def expected(name: str, case: Case) -> Arrays:
    """Return the right results: the textbook's, which cnnx must confirm."""
    results = compute(name, case)
    outputs = {
        "conv_forward": ("out",), BACKWARD: ("dX", "dW", "db"),
        "MaxPool2D": ("out", "max_indices", "dX"),
    }.get(name, tuple(results))  # fmt: skip
    confirmed = Subject(name, _OURS[name]).run(case.as_floats())
    for output in outputs:
        if not matches(confirmed[output], results[output], case):
            raise RuntimeError(f"cnnx and its textbook differ in {output} of {name}({case})")
    return {output: results[output] for output in outputs}


def _graded(name: str, code: Any, seconds: float, seed: int) -> SubjectGrade:
    started = time.monotonic()
    cases = grid(name, seed)
    try:
        subject = Subject(name, code)
    except SignatureError as error:
        return SubjectGrade(name, (), len(cases), (str(error),))
    remarks = [f"has no parameter {p}: only its neutral value is graded" for p in subject.missing]
    possible = [case for case in cases if subject.takes(case)]
    grades: list[CaseGrade] = []
    evidence: list[Evidence] = []
    printed = ""
    for number, case in enumerate(possible):
        if number and time.monotonic() - started > 0.6 * seconds:
            remarks.append(
                f"the time was over after {number} of {len(possible)} cases; give it more: budget="
            )
            break
        seen, wrong = _look(subject, case)
        if not wrong and number == 0 and (reused := subject.reuses(case)):
            wrong = [reused]
        printed = printed or seen.printed
        grades.append(CaseGrade(subject.adapted(case), tuple(wrong)))
        evidence.append(_evidence(subject, case, seen, wrong))
    if printed:
        remarks.append(f"prints while it computes, which takes time: {printed.splitlines()[0]!r}")
    failure = None
    first = next((grade for grade in grades if not grade.passed), None)
    if first is not None:
        deadline = started + 0.85 * seconds
        failure = _failure(subject, first, evidence, deadline)
    speed = None if name == GRADIENT else _speed(subject, started + seconds)
    return SubjectGrade(name, tuple(grades), len(cases), tuple(remarks), failure, speed)


def _look(subject: Subject, case: Case) -> tuple[Observation, list[Fault]]:
    """Run a case and compare."""
    seen = subject.observe(case)
    wanted = expected(subject.name, subject.adapted(case))
    return seen, seen.faults + faults_of(seen.outputs, wanted, case)


def _evidence(subject: Subject, case: Case, seen: Observation, faults: list[Fault]) -> Evidence:
    wrong = tuple(fault.where for fault in faults if fault.kind in ("shape", "values"))
    return Evidence(subject.adapted(case), seen.outputs, wrong)


def _failure(
    subject: Subject, first: CaseGrade, others: list[Evidence], deadline: float
) -> Failure:
    """Shrink the first failing case, and look for the mistakes that give its result."""
    way = {(fault.kind, fault.where) for fault in first.faults[:1]}
    case = first.case
    if first.faults[0].kind != "reused":

        def fails(candidate: Case) -> bool:
            _, faults = _look(subject, candidate)
            return any((fault.kind, fault.where) in way for fault in faults)

        case = subject.adapted(shrink(case, fails, deadline))
    seen, faults = _look(subject, case)
    faults = faults or list(first.faults)
    evidence = _evidence(subject, case, seen, faults)
    mistakes = find(subject.name, evidence, others)
    mistakes += [m for m in _told_by_exception(faults, case) if m not in mistakes]
    return Failure(
        case,
        tuple(faults),
        expected(subject.name, case),
        {name: seen.outputs[name] for name in evidence.wrong},
        tuple(mistakes),
    )


def _told_by_exception(faults: list[Fault], case: Case) -> list[Mistake]:
    """NumPy itself says so when floats are added into an array of integers."""
    cast = any(fault.where == "UFuncTypeError" for fault in faults)
    return [BY_NAME["integer dtype"]] if cast and case.is_integer() else []


def _speed(subject: Subject, deadline: float) -> Speed | None:
    """The medians of a few calls; None where there is no time or the code raises."""
    case = middle_sized(subject.name)
    if not subject.takes(case):
        case = Case(case.arrays, {**case.options, "pad": 0, "activation": None})
    if not subject.takes(case) or case.output_size() != case.arrays["dout"].shape[2:]:
        return None
    yours: list[float] = []
    while len(yours) < 3 and (not yours or max(yours) < _LONGEST_TIMING):
        if time.monotonic() > deadline:
            break
        seen = subject.observe(case)
        if seen.faults and seen.faults[0].kind != "modified":
            return None
        yours.append(seen.seconds)
    if not yours:
        return None
    ours = Subject(subject.name, _OURS[subject.name])
    times = [ours.observe(case).seconds for _ in range(9)]
    return Speed(case, median(yours), median(times))
