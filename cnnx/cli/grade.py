"""``cnnx grade homework.py``: compare the functions and classes of a file with cnnx."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

_NAMES = (
    "conv_forward",
    "conv_backward",
    "MaxPool2D",
    "AvgPool2D",
    "numerical_gradient",
    "eval_numerical_gradient",
)


def add_parser(commands: Any) -> None:
    """Add the subcommand to argparse's list of them."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "grade",
        help="compare your own loops with cnnx, and say what is wrong and why",
        description="Import a Python file and compare what it defines of "
        f"{', '.join(_NAMES)} with cnnx. The exit status is the verdict. A loop without an end "
        "cannot be graded: stop it with Ctrl-C.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="your homework, a Python file")
    parser.add_argument(
        "--budget", type=float, default=20.0, metavar="SECONDS", help="for all; default: 20"
    )
    parser.add_argument("--plain", action="store_true", help="plain text, also where rich is")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Grade the file; return 1 if something is wrong."""
    import cnnx
    from cnnx.grading import grade

    module = _imported(arguments.file)
    found = {name: getattr(module, name) for name in _NAMES if hasattr(module, name)}
    own = {name: code for name, code in found.items() if code is not getattr(cnnx, name)}
    for name in found.keys() - own.keys():
        print(f"{name} is imported from cnnx, and not graded")
    if not own:
        raise ValueError(f"{arguments.file} defines none of {', '.join(_NAMES)}")
    if "numerical_gradient" in own:
        own.pop("eval_numerical_gradient", None)
    report = grade(**own, budget=arguments.budget)
    print(report) if arguments.plain else report.show()
    return 0 if report else 1


def _imported(file: Path) -> ModuleType:
    """Import a file from anywhere, with its folder on the path for what it imports itself."""
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} is no Python file, expected a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        text = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise ValueError(f"{file} cannot be imported: {text}") from error
    finally:
        sys.path.pop(0)
    return module
