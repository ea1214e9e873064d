"""No call leaves memory behind, whether it returns or raises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import leaks
import pytest

import cnnx

WATCHED = any(tool in os.environ.get("LD_PRELOAD", "") for tool in ("asan", "vgpreload"))


@pytest.mark.skipif(not leaks.AVAILABLE, reason="this system has no /proc")
@pytest.mark.skipif(WATCHED, reason="a sanitizer keeps what was freed")
def test_memory_does_not_grow(tmp_path: Path) -> None:
    # In a process of its own, where nothing else grows. An array that is lost takes 200 bytes with
    # its block, and 6000 of them are over the limit.
    command = [sys.executable, leaks.__file__, "--calls", "6000"]
    environment = {**os.environ, "PYTHONPATH": str(Path(cnnx.__file__).parents[1])}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
