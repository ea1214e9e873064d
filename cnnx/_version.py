"""The version, as the installed package's metadata has it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("cnnx")
except PackageNotFoundError:  # a source tree on sys.path, not installed
    __version__ = "0+unknown"
