"""What this installation is and what it has chosen: for ``cnnx info`` and bug reports."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

from cnnx import _dispatch, _threads
from cnnx._version import __version__

_FAST_HINT = "; " + _dispatch.HOW_TO_COMPILE


def config() -> dict[str, Any]:
    """Return the configuration as a dict of plain values.

    Examples
    --------
    >>> import cnnx
    >>> cnnx.config()["backend"] in ("compiled", "numpy")
    True
    """
    kernels = _dispatch.compiled()
    facts: dict[str, Any] = {
        "cnnx": __version__,
        "python": platform.python_version(),
        "numpy": f"{np.__version__} ({_blas()})",
        "platform": f"{sys.platform} {platform.machine()}",
        "CPU": _cpu(),
        "caches": _caches(),
        "backend": _dispatch.backend_name(),
    }
    if kernels is None:
        facts["compiled kernels"] = "missing" + _FAST_HINT
    else:
        build = kernels.build_info()
        facts["instruction set"] = kernels.isa()
        facts["instruction sets here"] = ", ".join(kernels.available_isas())
        facts["instruction sets built"] = ", ".join(build["instruction sets"])
        facts["compiler"] = build["compiler"]
        facts["compiler flags"] = build["flags"]
        facts["OpenMP"] = build["openmp"] or "none: the compiler had no OpenMP, one thread only"
        facts["OpenMP runtimes loaded"] = _openmp_runtimes()
        facts["memory pool"] = ", ".join(f"{k} {v:,}" for k, v in memory_stats().items())
    facts["threads"] = f"{_threads.get_num_threads()} ({_threads.reason()})"
    facts["CPUs usable"] = _threads.usable_cpus()
    facts["CPUs usable by"] = _threads.why_usable()
    variables = ("CNNX_BACKEND", "CNNX_ISA", "CNNX_NUM_THREADS", "OMP_NUM_THREADS")
    facts["environment"] = (
        ", ".join(f"{v}={os.environ[v]}" for v in variables if v in os.environ) or "nothing set"
    )
    return facts


def _blas() -> str:
    """Name and version of the BLAS that NumPy was built with, as far as NumPy says."""
    try:
        facts: Any = np.show_config(mode="dicts")
        blas = facts["Build Dependencies"]["blas"]
        return f"{blas['name']} {blas['version']}"
    except (TypeError, KeyError):  # NumPy 1.25 and older, or a build without BLAS
        return "BLAS unknown"


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _caches() -> str:
    """The first CPU's caches, as Linux tells them."""
    found = []
    try:
        for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
            level, kind, size = (
                (folder / name).read_text().strip() for name in ("level", "type", "size")
            )
            found.append(f"L{level} {kind.lower()} {size}")
    except OSError:
        pass
    return ", ".join(found) or "unknown"


def _openmp_runtimes() -> str:
    """Files of the OpenMP runtimes in this process: two of them are a common cause of trouble."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return "unknown"
    files = {line[line.index("/") :] for line in lines if "/" in line}
    names = ("libgomp", "libomp", "libiomp")
    return ", ".join(sorted(f for f in files if Path(f).name.startswith(names))) or "none"


def show_config() -> None:
    """Print the configuration, one fact a line: what a bug report needs.

    Examples
    --------
    >>> import cnnx
    >>> cnnx.show_config()  # doctest: +ELLIPSIS
    cnnx ...
    """
    facts = config()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {value}")


def memory_stats() -> dict[str, int]:
    """Return the state of the memory that results and scratch come from.

    Fresh memory is slow, so what an array leaves behind when it dies is kept for the next one of
    about that size. At most `limit` bytes are kept, and not those of sizes that are asked for no
    longer.

    Returns
    -------
    dict
        "in_use", "cached" and "peak" (the most that was in use), "limit": bytes. "hits" and
        "misses": how often a block was there, and how often the system was asked. All zeros
        without the compiled kernels, for then all memory is NumPy's.

    See Also
    --------
    empty_cache : Return what is kept to the system.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> x = np.zeros((1, 4, 64, 64), np.float32)
    >>> before = cnnx.memory_stats()["in_use"]
    >>> out = cnnx.relu(x)
    >>> cnnx.memory_stats()["in_use"] - before in (81920, 0)  # 0: NumPy's own memory
    True
    >>> del out
    >>> cnnx.memory_stats()["in_use"] == before
    True
    """
    kernels = _dispatch.compiled()
    if kernels is None:
        return dict.fromkeys(("in_use", "cached", "peak", "limit", "hits", "misses"), 0)
    stats: dict[str, int] = kernels.memory_stats()
    return stats


def empty_cache() -> None:
    """Return the memory that is kept for coming results to the system.

    Arrays that live are not touched. Worth its price before work that needs memory for something
    else; the next results are slower.

    Examples
    --------
    >>> import cnnx
    >>> cnnx.empty_cache()
    >>> cnnx.memory_stats()["cached"]
    0
    """
    kernels = _dispatch.compiled()
    if kernels is not None:
        kernels.empty_cache()


def set_winograd(on: bool) -> None:
    """Allow Winograd's algorithm for convolutions in float32, or not.

    A 3x3 kernel of stride 1 takes a quarter of the multiplications by it, a 5x5 kernel a third. It
    is on from the start, and chosen where it is faster. Its rounding error stays
    below 2e-5 of the largest output; the direct path's is several times smaller. A NaN or an
    infinity reaches all outputs of the tiles that it touches, where the direct sum keeps it to the
    outputs whose window holds it. float64 never uses it, so gradient checks do not depend on this.

    Parameters
    ----------
    on : bool
        Whether Winograd may be chosen. The NumPy fallback never does.

    Examples
    --------
    >>> import cnnx
    >>> cnnx.set_winograd(False)
    >>> cnnx.set_winograd(True)

    References
    ----------
    A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.
    """
    if not isinstance(on, bool | np.bool_):
        raise TypeError(f"on is {on!r} ({type(on).__name__}), expected True or False")
    kernels = _dispatch.compiled()
    if kernels is not None:
        kernels.set_winograd(on)
