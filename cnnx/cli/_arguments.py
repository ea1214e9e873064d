"""Whole numbers on the command line, with errors that say which are allowed."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def whole(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """Return what reads an option that is an integer from `least` to `most`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer from {least} to {most}")
        return number

    return read


natural, positive = whole(0), whole(1)
