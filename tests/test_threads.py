"""How many threads the kernels use, and why that many."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import needs_kernels
from fresh import complaint, printed
from numpy.testing import assert_array_equal

import cnnx
from cnnx import _threads

THREADS = "import cnnx; print(cnnx.get_num_threads(), cnnx.config()['threads'])"


@pytest.mark.parametrize("n", [1, 3, 1024, np.int64(2)])
def test_set_and_get(n: Any) -> None:
    assert cnnx.set_num_threads(n) is None  # type: ignore[func-returns-value]
    assert cnnx.get_num_threads() == n
    assert type(cnnx.get_num_threads()) is int
    assert cnnx.config()["threads"] == f"{n} (set_num_threads)"


@pytest.mark.parametrize("n", [0, -1, -(2**40), 1025, 2**31, 10**30])
def test_wrong_numbers(n: int) -> None:
    before = cnnx.get_num_threads()
    with pytest.raises(ValueError, match=f"n is {n}, expected an integer from 1 to 1024"):
        cnnx.set_num_threads(n)
    assert cnnx.get_num_threads() == before


@pytest.mark.parametrize("n", [1.0, 2.5, "2", None, True, np.float64(2), [2], np.ones(2)], ids=repr)
def test_wrong_types(n: Any) -> None:
    before = cnnx.get_num_threads()
    with pytest.raises(TypeError, match=r"n is .*, expected an integer from 1 to 1024"):
        cnnx.set_num_threads(n)
    assert cnnx.get_num_threads() == before


def test_variable_of_cnnx_comes_first(tmp_path: Path) -> None:
    both = {"CNNX_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}
    assert printed(THREADS, tmp_path, **both) == "3 3 (CNNX_NUM_THREADS)"
    assert printed(THREADS, tmp_path, **both | {"CNNX_NUM_THREADS": ""}) == "5 5 (OMP_NUM_THREADS)"


def test_variable_of_openmp(tmp_path: Path) -> None:
    # A list gives the threads of each level of nesting; the first is meant.
    assert printed(THREADS, tmp_path, OMP_NUM_THREADS="4,2") == "4 4 (OMP_NUM_THREADS)"


def test_without_variables_the_usable_cpus(tmp_path: Path) -> None:
    usable = _threads.usable_cpus()
    assert printed(THREADS, tmp_path) == f"{usable} {usable} (CPUs this process may use)"


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "1025", "9" * 30, "²"])
def test_wrong_variable(text: str, tmp_path: Path) -> None:
    expected = (
        f"ValueError: environment variable CNNX_NUM_THREADS is {text!r}, "
        "expected an integer from 1 to 1024"
    )
    code = "import sys; sys.stderr.reconfigure(encoding='utf-8'); " + THREADS
    # Through ascii, for consoles differ.
    assert ascii(complaint(code, tmp_path, CNNX_NUM_THREADS=text)) in (
        ascii(expected),
        ascii(expected.encode().decode("latin-1")),
    )


@pytest.mark.parametrize("text", ["0", "-1", "many", "9" * 30, "²"])
def test_wrong_variable_of_another(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # OMP_NUM_THREADS is not ours to judge: OpenMP itself warns of it.
    monkeypatch.delenv("CNNX_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert _threads._initial() == (_threads.usable_cpus(), "CPUs this process may use")


def cpus(monkeypatch: pytest.MonkeyPatch, count: int, group: Path) -> int:
    """What usable_cpus says in a process of `count` CPUs in that control group."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(count), raising=False)
    monkeypatch.setattr(_threads, "_CGROUP", group)
    return _threads.usable_cpus()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("250000 100000\n", 3),  # two and a half: the third is there half of the time
        ("50000 100000\n", 1),
        ("3200000 100000\n", 8),
        ("nonsense\n", 8),
        ("", 8),
    ],
)
def test_control_group(
    text: str, expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cpus(monkeypatch, 8, tmp_path) == expected


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [("-1", "100000", 8), ("300000", "100000", 3), ("10000", "100000", 1), ("300000", "0", 8)],
)
def test_control_group_of_the_first_version(
    quota: str, period: str, expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text(period)
    assert cpus(monkeypatch, 8, tmp_path) == expected


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/user/job\n", {"user/job/cpu.max": "300000 100000"}, 3),
        ("0::/user/job\n", {"user/cpu.max": "200000 100000", "user/job/cpu.max": "max 100000"}, 2),
        ("0::/user/job\n", {"cpu.max": "500000 100000", "user/job/cpu.max": "600000 100000"}, 5),
        ("0::/user/job\n", {"user/other/cpu.max": "100000 100000"}, 8),  # not an ancestor
        ("0::/../job\n", {"job/cpu.max": "100000 100000"}, 8),
        ("1:name=systemd:/\n0::/job\n", {"unified/job/cpu.max": "400000 100000"}, 4),
        ("4:cpu,cpuacct:/a/b\n", {"cpu,cpuacct/a/cpu.cfs_quota_us": "200000"}, 2),
        ("4:cpu:/a/b\n", {"cpu/a/b/cpu.cfs_quota_us": "300000"}, 3),
        ("4:cpuset:/a\n", {"cpuset/a/cpu.cfs_quota_us": "100000"}, 8),
        ("", {"cpu.max": "100000 100000"}, 1),
        ("nonsense\n\n0::/job\n", {"job/cpu.max": "300000 100000"}, 3),
    ],
)
def test_least_quota_of_the_group_and_its_ancestors(
    own: str,
    limits: dict[str, str],
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(_threads, "_OWN_CGROUP", tmp_path / "own")
    for name, text in limits.items():
        file = tmp_path / "tree" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        if file.name == "cpu.cfs_quota_us":
            file.with_name("cpu.cfs_period_us").write_text("100000")
    assert cpus(monkeypatch, 8, tmp_path / "tree") == expected


@needs_kernels
def test_threadpoolctl_limits_the_kernels(tmp_path: Path) -> None:
    pytest.importorskip("threadpoolctl")
    code = """
import cnnx, threadpoolctl
cnnx.set_num_threads(4)
with threadpoolctl.threadpool_limits(1):
    print(cnnx.get_num_threads(), cnnx.config()["threads"])
print(cnnx.get_num_threads(), cnnx._kernels.build_info()["openmp"] > 0)
"""
    lines = printed(code, tmp_path, OMP_NUM_THREADS="2").splitlines()
    if lines[1].endswith("False"):
        pytest.skip("built without OpenMP")
    assert lines == ["1 1 (as OpenMP allows; 4 by set_num_threads)", "4 True"]


@needs_kernels
def test_one_thread_without_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    # Such a build answers so by itself; here the kernels' answer is put in its place.
    monkeypatch.setattr(_threads, "most_threads", lambda: 1)
    monkeypatch.setattr(_threads, "_num_threads", 3)
    assert cnnx.get_num_threads() == 1


def test_affinity_without_control_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cpus(monkeypatch, 5, tmp_path) == 5


def test_system_without_affinity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(_threads, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert _threads.usable_cpus() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert _threads.usable_cpus() == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_affinity_is_read_at_import(tmp_path: Path) -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); " + THREADS
    assert printed(code, tmp_path) == "1 1 (CPUs this process may use)"


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_spinning_is_the_users_to_set(name: str, tmp_path: Path) -> None:
    code = f"import os, cnnx; print(os.environ.get({name!r}), os.environ.get('GOMP_SPINCOUNT'))"
    assert printed(code, tmp_path) == "None None"
    assert printed(code, tmp_path, **{name: "7"}).split()[0] == "7"


def test_brief_waits_while_openmp_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    with suppress(ImportError), _threads.brief_waits():
        assert int(os.environ["GOMP_SPINCOUNT"]) > 0
        raise ImportError("no kernels")
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    with _threads.brief_waits():
        assert os.environ["GOMP_SPINCOUNT"] == "7"
    assert os.environ["GOMP_SPINCOUNT"] == "7"


@needs_kernels
def test_small_calls_stay_on_one_thread(
    compiled: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads() -> int:
        raise AssertionError("a call of nine pixels asked for threads")

    monkeypatch.setattr(_threads, "get_num_threads", threads)
    x = np.ones((1, 1, 3, 3))
    assert_array_equal(cnnx.conv2d(x, x), [[[[9]]]])
    assert_array_equal(cnnx.relu(x), x)


@needs_kernels
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="this system has no /proc")
def test_threads_are_started(tmp_path: Path) -> None:
    # In a process of its own, where NumPy's threads are none: the only others are ours.
    code = """
import os, numpy as np, cnnx
from cnnx import _kernels
def running(): return len(os.listdir("/proc/self/task"))
x = np.ones((8, 8, 64, 64), np.float32)
before = running()
cnnx.set_num_threads(1); cnnx.relu(x)
alone = running() - before
cnnx.set_num_threads(4); cnnx.relu(x)
print(alone, running() - before, _kernels.build_info()["openmp"] > 0)
"""
    alone, started, openmp = printed(code, tmp_path, OPENBLAS_NUM_THREADS="1").split()
    assert alone == "0"
    assert started == ("3" if openmp == "True" else "0")
