"""``cnnx gradcheck``: every layer and loss is in its grid, and what is wrong is named."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest

import cnnx
from cnnx import gradsuite


def test_grid_has_every_layer_loss_and_pair() -> None:
    classes = {name for name in cnnx.layers.__all__ if name not in ("Layer", "Container")}
    others = {"SoftmaxCrossEntropy", "MSELoss", "log_softmax", "conv_forward"}
    assert set(gradsuite.ROWS) == classes | others
    for name, cases in gradsuite.ROWS.items():
        if name in classes:
            assert all(type(case.make()).__name__ == name for case in cases())


def test_quick_grid_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert gradsuite.run(quick=True, plain=True)
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines[3:-1]]
    assert [row[0] for row in rows] == list(gradsuite.ROWS)
    assert {row[-1] for row in rows} == {"ok"}
    found = re.fullmatch(
        r"(\d+) cases on .*numpy.*, ([\d,]+) elements checked in [\d.]+ s: all gradients are right",
        lines[-1],
    )
    assert found and int(found[1]) == sum(int(row[1]) for row in rows)


def break_backward(monkeypatch: pytest.MonkeyPatch, layer: Any, factor: float) -> None:
    right = layer.backward
    monkeypatch.setattr(layer, "backward", lambda self, grad_out: factor * right(self, grad_out))


def test_broken_layer_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        gradsuite, "ROWS", {name: gradsuite.ROWS[name] for name in ("Dense", "AvgPool2D")}
    )
    break_backward(monkeypatch, cnnx.AvgPool2D, 1.001)
    assert not gradsuite.run(quick=True, plain=True)
    text = capsys.readouterr().out
    verdicts = {line.split()[0]: line.split()[-1] for line in text.splitlines()[3:5]}
    assert verdicts == {"Dense": "ok", "AvgPool2D": "WRONG"}
    assert re.search(r"AvgPool2D: AvgPool2D\(.*\) on 1x2x7x6, numpy backend:\ngradcheck of", text)
    assert re.search(r"\d+ WRONG$", text)


def test_layer_that_raises_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: Any, grad_out: Any) -> Any:
        raise ZeroDivisionError("no backward today")

    monkeypatch.setattr(gradsuite, "ROWS", {"Flatten": gradsuite.ROWS["Flatten"]})
    monkeypatch.setattr(cnnx.Flatten, "backward", fail)
    assert not gradsuite.run(quick=True, plain=True)
    text = capsys.readouterr().out
    assert "Flatten: Flatten() on 2x4x7x6: ZeroDivisionError: no backward today" in text


def test_backends_that_differ_are_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A result and its gradient that are consistent, but other than those of the other backend."""
    if cnnx._dispatch.compiled() is None:
        pytest.skip("there is only one backend")
    forward, backward = cnnx.Tanh.forward, cnnx.Tanh.backward

    def factor() -> float:
        return 1.0 if cnnx.config()["backend"] == "numpy" else 1.001

    monkeypatch.setattr(gradsuite, "ROWS", {"Tanh": gradsuite.ROWS["Tanh"]})
    monkeypatch.setattr(cnnx.Tanh, "forward", lambda self, x: factor() * forward(self, x))
    monkeypatch.setattr(
        cnnx.Tanh, "backward", lambda self, grad_out: factor() * backward(self, grad_out)
    )
    assert not gradsuite.run(quick=True, plain=True)
    text = capsys.readouterr().out
    for dtype in ("float32", "float64"):
        assert re.search(rf"{dtype}: compiled and numpy differ in out by 1\.0e-03", text)


def test_without_compiled_kernels_and_without_rich(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cnnx._dispatch, "_compiled", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(gradsuite, "ROWS", {"Dense": gradsuite.ROWS["Dense"]})
    with cnnx.use_backend("numpy"):
        assert gradsuite.run(quick=True)
    text = capsys.readouterr().out
    assert "cases on numpy (the compiled kernels are missing)" in text
    assert re.search(r"^Dense +\d+ .* ok$", text, re.MULTILINE)


def test_rich_table_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(gradsuite, "ROWS", {"SoftmaxCrossEntropy": gradsuite.ROWS["MSELoss"]})
    assert gradsuite.run(quick=True)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)
    assert re.search(r"SoftmaxCrossEntropy +1 .* ok", text)  # not cut off at 80 columns
