"""Grade as a whole: a right homework passes, and whatever else comes ends in a clear line."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from grading import homework  # beside this file

import cnnx
from cnnx import cli
from cnnx.grading import Case, GradeError
from cnnx.grading.cases import CONVOLUTIONS, POOLS, grid
from cnnx.grading.grader import expected

FILE = Path(__file__).with_name("homework.py")
WHOLE = {
    "conv_forward": homework.conv_forward,
    "conv_backward": homework.conv_backward,
    "MaxPool2D": homework.MaxPool2D,
    "AvgPool2D": homework.AvgPool2D,
    "eval_numerical_gradient": homework.eval_numerical_gradient,
}


def lines_of(report, name):
    return [fault.text for fault in report.failures[name].faults]


# ---- right


def test_a_right_homework_passes():
    report = cnnx.grade(**WHOLE)
    assert report, str(report)
    assert report.passed
    assert not report.failures
    assert len(report.cases) == sum(subject.planned for subject in report.subjects)
    assert report["MaxPool2D"].speed.factor > 5  # hundreds, but the machine may be busy
    assert str(report).endswith("all right")


def test_the_library_passes_its_own_grading_where_it_takes_the_dtype():
    """An engine, not loops: only the integer images are refused, with cnnx's own words."""
    report = cnnx.grade(cnnx.conv_forward, cnnx.conv_backward, cnnx.MaxPool2D, cnnx.AvgPool2D)
    for case in report.cases:
        assert case.passed != case.case.is_integer()


@pytest.mark.parametrize("subject", [*CONVOLUTIONS, *POOLS, "numerical_gradient"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_textbook_and_library_agree_on_the_grid(subject, seed, backend):
    for case in grid(subject, seed):
        assert expected(subject, case)  # raises where they differ


def test_any_subset():
    assert [s.name for s in cnnx.grade(MaxPool2D=homework.MaxPool2D).subjects] == ["MaxPool2D"]


# ---- signatures


def test_names_and_order_may_differ():
    def forward(image, kernel, bias, activation, padding, strides):
        return homework.conv_forward(image, kernel, bias, strides, padding, activation)

    assert cnnx.grade(conv_forward=forward)


def test_unknown_names_go_by_position():
    def forward(one, two, three, four, five, six):
        return homework.conv_forward(one, two, three, four, five, six)

    class Pool(homework.MaxPool2D):
        def __init__(self, first, /, second):
            super().__init__(first, second)

    assert cnnx.grade(conv_forward=forward, MaxPool2D=Pool)


def test_a_missing_option_leaves_its_neutral_value():
    def forward(X, W, b, stride):
        return homework.conv_forward(X, W, b, stride, 0, None)

    report = cnnx.grade(conv_forward=forward)
    assert report
    graded = report["conv_forward"]
    assert len(graded.cases) < graded.planned
    assert "has no parameter pad: only its neutral value is graded" in graded.remarks


def test_pairs_and_columns_of_biases():
    def forward(X, W, b, stride, pad, activation):
        (s, _), (p, _) = stride, pad
        assert b.shape == (len(W), 1)
        return homework.conv_forward(X, W, b[:, 0], s, p, activation)

    assert cnnx.grade(conv_forward=forward)


@pytest.mark.parametrize("shape", [(-1, 1), (1, -1), (-1, 1, 1)])
def test_a_wrong_homework_with_another_bias_is_shrunk_too(shape):
    def forward(X, W, b, stride, pad, activation):
        assert b.shape == np.reshape(b, shape).shape
        assert b.ndim == len(shape)
        out, cache = homework.conv_forward(X, W, b.ravel(), stride, pad, activation)
        return out - b.reshape(-1, 1, 1) * (activation is None), cache

    failure = cnnx.grade(conv_forward=forward).failures["conv_forward"]
    assert [mistake.name for mistake in failure.mistakes] == ["no bias"]
    assert failure.case.arrays["b"].shape == np.ones(1).reshape(shape).shape


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (lambda X, W: None, "there is no parameter for"),
        (lambda X, W, b, stride, pad, activation, more: None, "there is no value for more"),
        (7, "conv_forward is a int, expected conv_forward(X, W, b, stride, pad, activation)"),
    ],
)
def test_a_signature_that_does_not_fit_is_told(code, line):
    if line.startswith("there is no parameter"):
        code = lambda X: None  # noqa: E731
    report = cnnx.grade(conv_forward=code)
    assert not report
    assert line in report["conv_forward"].remarks[0]
    assert "expected conv_forward(X, W, b, stride, pad, activation)" in str(report)


def test_wrong_calls():
    with pytest.raises(ValueError, match="conv_backward came without conv_forward"):
        cnnx.grade(conv_backward=homework.conv_backward)
    with pytest.raises(ValueError, match="nothing to grade"):
        cnnx.grade()
    with pytest.raises(ValueError, match="both of its names"):
        cnnx.grade(numerical_gradient=len, eval_numerical_gradient=len)
    with pytest.raises(ValueError, match="budget is 0"):
        cnnx.grade(MaxPool2D=homework.MaxPool2D, budget=0)


# ---- code that misbehaves


def test_an_exception_is_told_with_its_line():
    def forward(X, W, b, stride, pad, activation):
        return X[0, 0, 99, 99]

    (line,) = lines_of(cnnx.grade(conv_forward=forward), "conv_forward")
    assert line.startswith("raises IndexError: index 99 is out of bounds")
    assert "test_grade.py, line " in line
    assert line.endswith("in forward: return X[0, 0, 99, 99]")


@pytest.mark.parametrize("error", [SystemExit(3), RecursionError("deep"), MemoryError()])
def test_any_exception(error):
    def forward(X, W, b, stride, pad, activation):
        raise error

    (line,) = lines_of(cnnx.grade(conv_forward=forward), "conv_forward")
    assert type(error).__name__ in line


@pytest.mark.parametrize(
    ("result", "line"),
    [
        (None, "conv_forward returned None, expected (out, cache)"),
        ((1, 2, 3), "conv_forward returned a tuple of 3, expected (out, cache)"),
        ((None, 0), "out is None, expected an array of shape (1, 1, 1, 1)"),
        (("text", 0), "out is a str, expected an array of numbers"),
        (([[1], [1, 2]], 0), "out is a list, expected an array of numbers"),
        ((np.zeros(3), 0), "out has shape (3,), expected (1, 1, 1, 1)"),
    ],
)
def test_results_of_another_form(result, line):
    report = cnnx.grade(conv_forward=lambda X, W, b, stride, pad, activation: result)
    assert lines_of(report, "conv_forward") == [line]


def test_nan_is_told():
    def forward(X, W, b, stride, pad, activation):
        out, cache = homework.conv_forward(X, W, b, stride, pad, activation)
        return out * np.nan, cache

    (line,) = lines_of(cnnx.grade(conv_forward=forward), "conv_forward")
    assert "1 are NaN" in line


def test_inputs_changed_in_place():
    def backward(dout, cache):
        gradients = homework.conv_backward(dout, cache)
        dout *= 2
        return gradients

    report = cnnx.grade(conv_forward=homework.conv_forward, conv_backward=backward)
    (line,) = lines_of(report, "conv_backward")
    assert line == "dout was changed in place; work on a copy, the caller still needs it"


def test_one_array_returned_twice():
    kept = {}

    def forward(X, W, b, stride, pad, activation):
        out, cache = homework.conv_forward(X, W, b, stride, pad, activation)
        buffer = kept.setdefault(out.shape, np.empty(out.shape))
        buffer[...] = out
        return buffer, cache

    report = cnnx.grade(conv_forward=forward)
    assert "out of the first call changed in the second" in lines_of(report, "conv_forward")[0]


def test_printing_is_caught(capsys):
    def forward(X, W, b, stride, pad, activation):
        print("here", X.shape)
        return homework.conv_forward(X, W, b, stride, pad, activation)

    report = cnnx.grade(conv_forward=forward)
    assert report
    assert capsys.readouterr().out == ""
    assert "prints while it computes" in report["conv_forward"].remarks[0]


def test_methods_that_are_missing():
    class Pool:
        def __init__(self, pool_size, stride):
            pass

        def forward(self, X):
            return X

    (line,) = lines_of(cnnx.grade(AvgPool2D=Pool), "AvgPool2D")
    assert line == "AvgPool2D has no method backward, expected forward and backward"


def test_a_budget_that_is_too_small_is_told():
    def forward(X, W, b, stride, pad, activation):
        return homework.conv_forward(X, W, b, stride, pad, activation)

    report = cnnx.grade(conv_forward=forward, budget=1e-6)
    assert len(report["conv_forward"].cases) == 1
    assert "the time was over after 1 of 21 cases" in report["conv_forward"].remarks[0]


def test_a_mistake_that_is_not_known_gets_no_hint():
    def forward(X, W, b, stride, pad, activation):
        out, cache = homework.conv_forward(X, W, b, stride, pad, activation)
        return out + 0.123, cache

    report = cnnx.grade(conv_forward=forward)
    assert report.hints == {"conv_forward": ()}
    assert "hint" not in str(report)


def test_two_mistakes_get_two_hints():
    def backward(dout, cache):
        dX, dW, db = homework.conv_backward(dout, cache)
        return dX[:, ::-1], dW, dout[-1].sum(axis=(1, 2)) + 0 * db

    report = cnnx.grade(conv_forward=homework.conv_forward, conv_backward=backward)
    failure = report.failures["conv_backward"]
    assert [mistake.name for mistake in failure.mistakes] == ["channels mixed up"]
    assert "wrong too (db)" in str(report)


def test_a_coincidence_on_a_small_case_is_no_hint():
    """db has two shapes too many: on one image and filter that looks like a sum that is missing."""

    def backward(dout, cache):
        dX, dW, db = homework.conv_backward(dout, cache)
        return dX, dW, np.tile(db, (len(db), 1))

    report = cnnx.grade(conv_forward=homework.conv_forward, conv_backward=backward)
    assert report.hints == {"conv_backward": ()}


def test_a_slow_homework_keeps_to_its_budget():
    def forward(X, W, b, stride, pad, activation):
        time.sleep(0.02)
        return homework.conv_forward(X, W, b, stride, pad, activation)[0] + 1, None

    started = time.monotonic()
    report = cnnx.grade(conv_forward=forward, budget=0.4)
    assert time.monotonic() - started < 5  # ten times the budget: the machine may be busy
    assert not report
    assert len(report["conv_forward"].cases) < 21


# ---- the report


@pytest.fixture
def failed():
    return cnnx.grade(
        conv_forward=homework.conv_forward,
        conv_backward=lambda dout, cache: (*homework.conv_backward(dout, cache)[:2], dout.sum(0)),
    )


def test_report_for_scripts(failed):
    failure = failed.failures["conv_backward"]
    assert isinstance(failure.case, Case)
    assert failure.mistakes[0].name in failed["conv_backward"].failure.mistakes[0].name
    assert failed.hints["conv_backward"]
    assert failure.expected["db"].shape == (1,)
    assert "db" in failure.actual
    assert failed["conv_forward"].passed
    with pytest.raises(KeyError, match="is not among"):
        failed["Dense"]


def test_report_as_text_and_html(failed, capsys):
    text = str(failed)
    for part in ("smallest failing case", "hint: ", "expected db", "your db", "1 of 2 right"):
        assert part in text
    html = failed._repr_html_()
    assert html.startswith("<table>")
    assert "expected db" in html
    failed.show()  # no terminal: plain
    assert capsys.readouterr().out == text + "\n"


def test_report_in_colour(failed, capsys, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    failed.show()
    shown = capsys.readouterr().out
    assert "conv_backward" in shown
    assert "1 of 2 right" in shown


def test_raise_on_failure():
    with pytest.raises(GradeError, match="WRONG") as caught:
        cnnx.grade(MaxPool2D=lambda pool_size, stride: None, raise_on_failure=True)
    assert not caught.value.report


# ---- the command


def test_command(capsys):
    assert cli.main(["grade", str(FILE), "--plain"]) == 0
    assert "all right" in capsys.readouterr().out


def test_command_on_a_mistake(tmp_path, capsys):
    file = tmp_path / "my work.py"
    file.write_text(FILE.read_text().replace("best = -np.inf", "best = 0"))
    assert cli.main(["grade", str(file)]) == 1
    assert "the search for the maximum starts at 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file"),
        ("x = 1\n", "defines none of conv_forward"),
        ("def broken(:\n", "cannot be imported: SyntaxError"),
        ("raise SystemExit(0)\n", "cannot be imported: SystemExit"),
        ("def conv_backward(dout, cache): pass\n", "conv_backward came without conv_forward"),
        ("from cnnx import MaxPool2D\n", "defines none of"),
    ],
)
def test_command_on_what_is_no_homework(tmp_path, capsys, text, message):
    file = tmp_path / "homework.py"
    if text is not None:
        file.write_text(text)
    assert cli.main(["grade", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cnnx grade: ")
    assert message in error
    assert error.count("\n") == 1


def test_importing_cnnx_imports_no_grading():
    code = "import cnnx, sys; assert 'cnnx.grading' not in sys.modules; cnnx.grade"
    folder = Path(cnnx.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
