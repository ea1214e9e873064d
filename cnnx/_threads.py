"""How many threads the kernels use, and why that many.

The number is, in this order: what :func:`set_num_threads` said, the environment variable
``CNNX_NUM_THREADS``, ``OMP_NUM_THREADS``, or the CPUs this process may use: its affinity mask, cut
down by a cgroup quota (a container with half a CPU must not start 64 threads).
"""

from __future__ import annotations

import math
import operator
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
MOST = 1024  # where OpenMP cannot start a thread it ends the whole process


def _cgroup_quota() -> float | None:
    """CPUs the control groups grant, or None where none of them sets a limit.

    A group has no more than its ancestors have, so the least quota on the way to the root holds.
    """
    quotas = [_quota(folder) for folder in _cgroup_folders()]
    return min((quota for quota in quotas if quota is not None), default=None)


def _cgroup_folders() -> Iterator[Path]:
    """This process's group and its ancestors, in each hierarchy that may limit the CPU."""
    yield from (_CGROUP, _CGROUP / "cpu")  # where a container sees its own group
    try:
        lines = _OWN_CGROUP.read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        fields = line.split(":", 2)
        if len(fields) != 3:  # an imitation of Linux may write what it likes
            continue
        _, controllers, path = fields
        parts = Path(path.lstrip("/")).parts
        if ".." in parts:  # outside of this cgroup namespace: not ours to see
            continue
        if not controllers:  # version 2, alone or beside version 1
            roots = [_CGROUP, _CGROUP / "unified"]
        elif "cpu" in controllers.split(","):
            roots = [_CGROUP / "cpu", _CGROUP / controllers]
        else:
            continue
        for root in roots:
            for depth in range(len(parts) + 1):
                yield root.joinpath(*parts[:depth])


def _quota(folder: Path) -> float | None:
    """CPUs that one group grants by itself: version 2 has one file, version 1 two."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        pass
    try:
        quota_us = int((folder / "cpu.cfs_quota_us").read_text())
        period_us = int((folder / "cpu.cfs_period_us").read_text())
        return quota_us / period_us if quota_us > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def why_usable() -> str:
    """What :func:`usable_cpus` went by, in a few words."""
    quota = _cgroup_quota()
    affinity = (
        f"affinity to {len(os.sched_getaffinity(0))} CPUs of {os.cpu_count()}"
        if hasattr(os, "sched_getaffinity")
        else f"{os.cpu_count()} CPUs"
    )
    return f"{affinity}, {'no cgroup quota' if quota is None else f'cgroup quota {quota:g}'}"


def usable_cpus() -> int:
    """CPUs this process may use, by affinity and control group."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity call
        cpus = os.cpu_count() or 1
    quota = _cgroup_quota()
    return cpus if quota is None else max(1, min(cpus, math.ceil(quota)))


def _from_environment(name: str) -> int | None:
    text = os.environ.get(name, "").split(",")[0].strip()  # OMP_NUM_THREADS may be a list: "4,2"
    if not text:
        return None
    if not text.isdecimal() or not 1 <= int(text) <= MOST:
        if name == "CNNX_NUM_THREADS":
            raise ValueError(
                f"environment variable {name} is {text!r}, expected an integer from 1 to {MOST}"
            )
        return None  # not ours to judge
    return int(text)


def _initial() -> tuple[int, str]:
    for name in ("CNNX_NUM_THREADS", "OMP_NUM_THREADS"):
        n = _from_environment(name)
        if n is not None:
            return n, name
    return usable_cpus(), "CPUs this process may use"


_num_threads, _reason = _initial()
_forked = False


def _no_limit() -> int:
    return MOST


most_threads: Callable[[], int] = _no_limit  # the compiled kernels put what OpenMP allows here


@contextmanager
def brief_waits() -> Iterator[None]:
    """While GNU OpenMP is loaded: let its threads soon sleep where they wait for each other.

    By themselves they spin for milliseconds, and where another process wants the CPU they spin away
    the very time that the thread they wait for would need: beside one busy process, a layer of
    20 us took 16 ms on two threads, and takes 0.1 ms so (benchmarks.overhead). They still wait for
    some 60 us, longer than Python takes from one layer to the next: with a quarter of that a
    training step took 3 to 5 % more, for waking a thread. What the user has set holds, and the
    environment is left as it was.
    """
    if "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ:
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = "4000"
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


def set_num_threads(n: int) -> None:
    """Set how many threads the kernels use.

    Results do not depend on it: they are the same to the last bit for every number of threads.

    Parameters
    ----------
    n : int
        From 1 to 1024. More than the machine has is allowed, and slow.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is not from 1 to 1024.

    Warns
    -----
    RuntimeWarning
        If this process was forked from another: OpenMP's threads do not survive that, so it goes on
        with one thread. Processes that are spawned have no such limit.

    Examples
    --------
    >>> import cnnx
    >>> before = cnnx.get_num_threads()
    >>> cnnx.set_num_threads(1)
    >>> cnnx.get_num_threads()
    1
    >>> cnnx.set_num_threads(before)
    """
    global _num_threads, _reason
    expected = f"expected an integer from 1 to {MOST}"
    if isinstance(n, bool):
        raise TypeError(f"n is {n!r}, {expected}")
    try:
        value = operator.index(n)
    except TypeError:
        raise TypeError(f"n is {n!r} ({type(n).__name__}), {expected}") from None
    if not 1 <= value <= MOST:
        raise ValueError(f"n is {value}, {expected}")
    if _forked and value > 1:
        warnings.warn(
            f"n is {value}, but a forked process computes with one thread, for OpenMP's threads do "
            "not survive a fork; start it with multiprocessing's spawn instead",
            RuntimeWarning,
            stacklevel=2,
        )
        return
    _num_threads, _reason = value, "set_num_threads"


def get_num_threads() -> int:
    """Return how many threads the kernels use.

    It is 1 where they were built without OpenMP, and fewer than what was set while threadpoolctl
    limits OpenMP.

    Examples
    --------
    >>> import cnnx
    >>> cnnx.get_num_threads() >= 1
    True
    """
    return min(_num_threads, most_threads())


def reason() -> str:
    """Where the present number of threads comes from, in a few words."""
    if most_threads() < _num_threads:
        return f"as OpenMP allows; {_num_threads} by {_reason}"
    return _reason


def _after_fork_in_child() -> None:
    # GNU OpenMP's worker threads do not survive a fork, and its next parallel region would wait
    # for them for ever. One thread never enters the pool, and gives the same bits.
    global _num_threads, _reason, _forked
    _forked = True
    _num_threads, _reason = 1, "forked child: OpenMP's threads do not survive a fork"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
