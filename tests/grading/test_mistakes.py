"""Each well-known mistake, put into a right homework, is found, shrunk and told."""

from pathlib import Path

import numpy as np
import pytest
from grading.mutants import MUTANTS

import cnnx
from cnnx.grading import CATALOGUE
from cnnx.grading.cases import grid
from cnnx.grading.textbook import compute

HOMEWORK = Path(__file__).with_name("homework.py").read_text()


def names_of(mutant):
    return f"{mutant[1]}-{mutant[0]}"


def graded(old, new, subject):
    assert HOMEWORK.count(old) >= 1, "the mutant's text is not in the homework"
    space = {}
    exec(HOMEWORK.replace(old, new), space)
    wanted = ["conv_forward", subject] if subject == "conv_backward" else [subject]
    space["numerical_gradient"] = space["eval_numerical_gradient"]
    return cnnx.grade(**{name: space[name] for name in wanted})


@pytest.mark.parametrize("mutant", MUTANTS, ids=names_of)
def test_a_mistake_is_caught_shrunk_and_told(mutant):
    name, subject, old, new, image, window = mutant
    report = graded(old, new, subject)
    assert not report
    failure = report.failures[subject]
    assert [mistake.name for mistake in failure.mistakes] == [name], str(report)
    case = failure.case
    assert case.arrays.get("X", case.arrays.get("x")).shape == image, str(failure)
    if window is not None:
        size = case.options["pool_size"] if "2D" in subject else case.arrays["W"].shape
        assert size == window, str(failure)


def test_every_mistake_of_the_catalogue_has_a_mutant():
    proved = {(mutant[0], mutant[1]) for mutant in MUTANTS}
    assert {name for name, _ in proved} == {mistake.name for mistake in CATALOGUE}


def differs(subject, case, slip):
    right = compute(subject, case)
    try:
        wrong = compute(subject, case, slip)
    except (ValueError, IndexError):
        return True
    return any(not np.array_equal(right[name], wrong[name]) for name in wrong)


def test_every_slip_changes_the_textbook():
    """A slip whose name is misspelt in one of the two places would prove nothing."""
    for mistake in CATALOGUE:
        for slip in mistake.slips:
            changed = [
                subject
                for subject in mistake.subjects
                if any(differs(subject, case, slip) for case in grid(subject))
            ]
            assert changed, slip
