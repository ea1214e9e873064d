"""A fresh interpreter: for what is decided at import, and for what might hang or crash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cnnx

CHOICES = (
    "CNNX_BACKEND",
    "CNNX_ISA",
    "CNNX_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
)
TIMEOUT = 120  # seconds; each takes about one, and a hang is what some of them look for


def python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code on the cnnx under test, with no choice in the environment but the given ones."""
    inherited = {name: value for name, value in os.environ.items() if name not in CHOICES}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,  # not the checkout: its cnnx need not be the one under test
        env={**inherited, "PYTHONPATH": str(Path(cnnx.__file__).parents[1]), **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def printed(code: str, folder: Path, **environment: str) -> str:
    """What code prints; it must not fail."""
    done = python(code, folder, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def complaint(code: str, folder: Path, **environment: str) -> str:
    """The one error that ends code: its last line, and no other error before it."""
    done = python(code, folder, **environment)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("Traceback") == 1, done.stderr
    return done.stderr.strip().splitlines()[-1]
