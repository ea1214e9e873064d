"""Check your own code: :func:`cnnx.grade` compares a student's loops with cnnx.

::

    grader        the course: grid, first failure, hint, times
      |-- cases        what is tried
      |-- signatures   which of the student's parameters is which
      |-- subjects     how the student's code is called, whatever it does
      |-- textbook     the right results, and those of each well-known mistake
      |-- comparison   right or wrong, in one line
      |-- shrinking    the smallest case that still fails
      |-- mistakes     the catalogue of hints
      `-- report       what the student and the teacher see
"""

from cnnx.grading.cases import Case
from cnnx.grading.comparison import Fault
from cnnx.grading.grader import grade
from cnnx.grading.mistakes import CATALOGUE, Mistake
from cnnx.grading.report import CaseGrade, Failure, GradeError, GradeReport, Speed, SubjectGrade

__all__ = [
    "CATALOGUE",
    "Case",
    "CaseGrade",
    "Failure",
    "Fault",
    "GradeError",
    "GradeReport",
    "Mistake",
    "Speed",
    "SubjectGrade",
    "grade",
]
