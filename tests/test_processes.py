"""Forks and other processes, the end of the interpreter, and signals."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import needs_kernels
from fresh import printed, python
from numpy.testing import assert_array_equal

import cnnx

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

PROBLEM = """
import os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
import numpy as np, cnnx
rng = np.random.default_rng(0)
x, weight = rng.normal(size=(4, 16, 40, 40)), rng.normal(size=(16, 16, 3, 3))
cnnx.set_num_threads(2)
"""


@needs_kernels
@needs_fork
def test_fork_after_use(tmp_path: Path) -> None:
    # OpenMP's threads are not in the child, which must not wait for them.
    code = (
        PROBLEM
        + """
expected = cnnx.conv2d(x, weight)
child = os.fork()
if not child:
    same = np.array_equal(cnnx.conv2d(x, weight), expected)
    cnnx.conv2d_backward(expected, x, weight)
    print("same" if same else "other", cnnx.config()["threads"], flush=True)
    os._exit(0)
status = os.waitpid(child, 0)[1]
print(status, np.array_equal(cnnx.conv2d(x, weight), expected), cnnx.get_num_threads())
"""
    )
    child, parent = printed(code, tmp_path).splitlines()
    assert child == "same 1 (forked child: OpenMP's threads do not survive a fork)"
    assert parent == "0 True 2"


@needs_kernels
@needs_fork
def test_more_threads_in_a_forked_child(tmp_path: Path) -> None:
    # They would hang it: it stays with one, and says so.
    code = (
        PROBLEM
        + """
expected = cnnx.conv2d(x, weight)
child = os.fork()
if not child:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cnnx.set_num_threads(1)
        cnnx.set_num_threads(2)
    print(len(caught), caught[0].category.__name__, caught[0].message)
    print(cnnx.get_num_threads(), np.array_equal(cnnx.conv2d(x, weight), expected), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
    )
    warning, result = printed(code, tmp_path).splitlines()
    assert warning.startswith("1 RuntimeWarning n is 2, but a forked process computes with one")
    assert "spawn" in warning
    assert result == "1 True"


@needs_kernels
@needs_fork
def test_fork_while_others_compute(tmp_path: Path) -> None:
    # The memory pool's lock may be held by a thread that is not in the child.
    code = (
        PROBLEM
        + """
expected, stop = cnnx.relu(x), False
def compute():
    while not stop: cnnx.relu(x)
threads = [threading.Thread(target=compute) for _ in range(3)]
for thread in threads: thread.start()
statuses = set()
for _ in range(30):
    child = os.fork()
    if not child:
        os._exit(0 if np.array_equal(cnnx.relu(x), expected) else 1)
    statuses.add(os.waitpid(child, 0)[1])
stop = True
for thread in threads: thread.join()
print(statuses)
"""
    )
    assert printed(code, tmp_path) == "{0}"


def test_processes_that_are_spawned() -> None:
    rng = np.random.default_rng(0)
    work = [(rng.normal(size=(2, 8, 20, 20)), rng.normal(size=(8, 8, 3, 3))) for _ in range(3)]
    expected = [cnnx.conv2d(x, weight) for x, weight in work]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        actual = pool.starmap_async(cnnx.conv2d, work).get(timeout=120)
    for result, known in zip(actual, expected, strict=True):
        assert_array_equal(result, known)


def test_exit_with_live_arrays(tmp_path: Path) -> None:
    # At the end of the process arrays die in any order, after the modules too.
    code = (
        PROBLEM
        + """
class Keeper:
    pass
keeper = Keeper()
keeper.itself, keeper.arrays = keeper, [cnnx.conv2d(x, weight) for _ in range(5)]
sys.kept = cnnx.conv2d(x, weight)[0]
"""
    )
    done = python(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
