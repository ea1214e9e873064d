"""Which backend answers: the compiled kernels or the NumPy fallback.

Both are modules with the same functions (``_fallback`` is the reference of names, arguments and
defaults). The compiled one is taken where it was built; ``CNNX_BACKEND=numpy`` or
:func:`use_backend` choose otherwise. A backend that is asked for by name and missing is an error,
never a silent substitute.
"""

from __future__ import annotations

import importlib
import os
import warnings
from types import ModuleType, TracebackType
from typing import Literal

from cnnx import _fallback, _threads

try:
    with _threads.brief_waits():
        # Not "from cnnx import": without the file, its error speaks of a circular import.
        _compiled: ModuleType | None = importlib.import_module("cnnx._kernels")
    _why_not = ""
except ImportError as error:
    _compiled = None
    _why_not = str(error)

HOW_TO_COMPILE = (
    "install a C compiler (Debian: apt install gcc python3-dev; macOS: xcode-select --install) "
    "and run: pip install --force-reinstall --no-cache-dir cnnx"
)


def _module(name: str, what: str = "backend") -> ModuleType:
    if name == "numpy":
        return _fallback
    if name != "compiled":
        raise ValueError(f"{what} is {name!r}, expected 'compiled' or 'numpy'")
    if _compiled is None:
        raise ImportError(f"the compiled kernels are missing ({_why_not}); {HOW_TO_COMPILE}")
    return _compiled


def _initial() -> ModuleType:
    name = os.environ.get("CNNX_BACKEND", "")
    if name:
        return _module(name, "environment variable CNNX_BACKEND")
    if _compiled is None:
        warnings.warn(
            "cnnx runs on its NumPy fallback, which is many times slower: the compiled kernels "
            f"are missing ({_why_not}). For the fast ones, {HOW_TO_COMPILE}. "
            "CNNX_BACKEND=numpy silences this.",
            RuntimeWarning,
            stacklevel=2,
        )
        return _fallback
    return _compiled


_active = _initial()


def backend() -> ModuleType:
    """Return the module whose functions do the work now."""
    return _active


def backend_name() -> Literal["compiled", "numpy"]:
    """Return the name of the backend that does the work now."""
    return "numpy" if _active is _fallback else "compiled"


def compiled() -> ModuleType | None:
    """Return the compiled module, or None where it was not built."""
    return _compiled


class use_backend:
    """Choose the backend, for good or for a ``with`` block.

    Parameters
    ----------
    name : {"compiled", "numpy"}
        The compiled kernels or the NumPy fallback. The choice holds for the whole process.

    Raises
    ------
    ValueError
        If there is no backend of that name.
    ImportError
        If the compiled kernels are asked for and were not built.

    Examples
    --------
    >>> import numpy as np, cnnx
    >>> with cnnx.use_backend("numpy"):
    ...     cnnx.relu(np.array([-1.0, 2.0]))
    array([0., 2.])
    """

    def __init__(self, name: Literal["compiled", "numpy"]) -> None:
        global _active
        self._module = _module(name)
        self._previous = _active
        _active = self._module

    def __enter__(self) -> None:
        global _active
        if _active is not self._module:  # another choice was made since, or this is a second block
            self._previous = _active
            _active = self._module

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _active
        _active = self._previous
