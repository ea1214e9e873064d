"""Each well-known mistake, put into a right homework, is found, shrunk and told."""

from pathlib import Path

import pytest
from grading.mutants import MUTANTS

import cnnx
from cnnx.grading import CATALOGUE

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
