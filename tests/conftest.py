"""What every test file shares: the backend, the instruction set and the dtype a test runs with.

A test that asks for `backend` runs on the compiled kernels and on the NumPy fallback; one that
asks for `implementation` runs on the fallback and on the compiled kernels in every instruction set
this CPU has; one that asks for `isa` runs on the compiled kernels alone. Where the kernels were not
built, their runs are skipped, and the skip says why.

`implementation` and `isa` keep Winograd's algorithm off: it rounds, and without it whole numbers
give results that can be compared by bits. What it rounds is held in test_accuracy.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # naive, calls and tolerances are no tests

with warnings.catch_warnings():
    # Without the compiled kernels the import warns, and warnings are errors here. The skips say it.
    warnings.simplefilter("ignore", RuntimeWarning)
    import cnnx
    from cnnx import _threads

KERNELS: ModuleType | None
try:
    from cnnx import _kernels as KERNELS
except ImportError as error:
    KERNELS = None
    WHY_NOT = f"cnnx._kernels cannot be imported: {error}"

needs_kernels = pytest.mark.skipif(KERNELS is None, reason="the compiled kernels are missing")
needs_tight_memory = pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""),
    reason="AddressSanitizer takes terabytes of address space, and larger stacks",
)

ISAS: tuple[str, ...] = () if KERNELS is None else tuple(KERNELS.available_isas())

# The same examples on every run, so that a red test is red for everybody. To look for new ones:
# HYPOTHESIS_PROFILE=explore. The fixtures choose a backend, which holds for all of the examples.
hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,  # the machine's other work decides how long an example takes
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.register_profile(
    "explore",
    hypothesis.settings.get_profile("repeatable"),
    derandomize=False,
    max_examples=2000,
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="run what takes minutes or gigabytes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--run-slow"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def _compiled(name: str) -> Any:
    """A parameter that needs the compiled kernels."""
    if KERNELS is not None:
        return name
    return pytest.param(name, marks=pytest.mark.skip(reason=WHY_NOT))


def has_winograd() -> bool:
    """Whether this build has Winograd: its compiler must have vector shuffles."""
    if KERNELS is None:
        return False
    before = KERNELS.use_algorithm("winograd")
    cnnx.conv2d(np.zeros((1, 16, 8, 8), np.float32), np.zeros((16, 16, 3, 3), np.float32))
    KERNELS.use_algorithm(before)
    return bool(KERNELS.last_algorithm() == "winograd")


@contextmanager
def forced_isa(name: str) -> Iterator[None]:
    """The compiled kernels in one instruction set."""
    assert KERNELS is not None
    with cnnx.use_backend("compiled"):
        previous, winograd = KERNELS.use_isa(name), KERNELS.set_winograd(False)
        try:
            yield
        finally:
            KERNELS.use_isa(previous)
            KERNELS.set_winograd(winograd)


def in_threads(jobs: list[Callable[[], object]]) -> None:
    """Run jobs at once, from one signal on, and raise what they raise."""
    barrier = threading.Barrier(len(jobs))

    def run(job: Callable[[], object]) -> None:
        barrier.wait(60)
        job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        for future in [pool.submit(run, job) for job in jobs]:
            future.result(timeout=120)


@pytest.fixture(autouse=True)
def threads_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test sets holds for it alone."""
    monkeypatch.setattr(_threads, "_num_threads", _threads._num_threads)
    monkeypatch.setattr(_threads, "_reason", _threads._reason)


@pytest.fixture
def compiled() -> Iterator[ModuleType]:
    """The compiled kernels, in use."""
    assert KERNELS is not None
    with cnnx.use_backend("compiled"):
        yield KERNELS


@pytest.fixture(params=[_compiled("compiled"), "numpy"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend in turn: "compiled", "numpy"."""
    with cnnx.use_backend(request.param):
        yield request.param


@pytest.fixture(params=[*ISAS] or [_compiled("compiled")])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The compiled kernels in each instruction set of this CPU in turn."""
    with forced_isa(request.param):
        yield request.param


@pytest.fixture(params=["numpy", *(ISAS or [_compiled("compiled")])])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """The NumPy fallback, then the compiled kernels in each instruction set in turn."""
    if request.param == "numpy":
        with cnnx.use_backend("numpy"):
            yield "numpy"
    else:
        with forced_isa(request.param):
            yield request.param


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Any:
    """Both dtypes in turn."""
    return request.param


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(20260101)
