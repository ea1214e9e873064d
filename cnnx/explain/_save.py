"""Explanations as files: the suffix decides, and a file appears whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from cnnx._files import atomic_write

if TYPE_CHECKING:
    from cnnx.explain._steps import Explanation

SUFFIXES = (".html", ".png", ".svg", ".pdf", ".txt")


def require_suffix(path: str | os.PathLike[str], name: str = "path") -> str:
    """Return the suffix in lower case, if it is one that can be written."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{name} is {os.fspath(path)!r}, expected a name that ends in {', '.join(SUFFIXES)}"
        )
    return suffix


def save(explanation: Explanation, path: str | os.PathLike[str]) -> None:
    """Write an explanation to a file."""
    suffix = require_suffix(path)
    if not explanation.steps:
        raise ValueError(f"there are no steps to write to {os.fspath(path)!r}")
    if suffix == ".html":
        from cnnx.explain._html import page

        data = page(explanation).encode()
    elif suffix == ".txt":
        data = f"{explanation}\n".encode()
    else:
        from cnnx.explain._image import draw

        data = draw(explanation, suffix[1:])
    with atomic_write(path) as file:
        file.write(data)
