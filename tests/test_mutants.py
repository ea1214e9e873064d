"""The list of mutants fits the code: `python -m tools.mutate` finds each in its place."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("tomllib")  # of Python 3.11


def test_every_mutant_has_its_place() -> None:
    spec = importlib.util.spec_from_file_location("mutate", ROOT / "tools" / "mutate.py")
    assert spec is not None and spec.loader is not None
    mutate = sys.modules["mutate"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutate)
    entries = mutate.mutants()
    assert len(entries) >= 50
    for mutant in entries:
        mutate.span(mutant, (ROOT / mutant["file"]).read_text(encoding="utf-8"))
        assert mutant["old"] != mutant["new"] and mutant["breaks"]
        assert mutant["tests"]
        for name in mutant["tests"]:
            assert (ROOT / name).is_file()
