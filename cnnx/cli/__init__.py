"""The command ``cnnx``: one subcommand a verb, the larger ones in files of their own.

Exit status: 0 when all went well, 1 when a gradient check, a grading or the check of an explanation
failed, 2 for a wrong call or a damaged file, 130 after Ctrl-C (128 plus the number of the signal,
as shells have it).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from cnnx._version import __version__
from cnnx.cli import explain, grade, train

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments, without the name of the program. None takes them from the command line.

    Returns
    -------
    int
        The exit status.

    Raises
    ------
    SystemExit
        From argparse, after ``--help``, ``--version`` or a wrong option.

    Examples
    --------
    >>> from cnnx.cli import main
    >>> main(["info"])  # doctest: +ELLIPSIS
    cnnx ...
    0
    """
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except KeyboardInterrupt as interrupt:
        print(f"\n{interrupt}" if str(interrupt) else "\ninterrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"cnnx {arguments.command}: {error}", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cnnx",
        description="CNN layers for NumPy arrays on the CPU, with gradients you can check.",
    )
    parser.add_argument("--version", action="version", version=f"cnnx {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="say what is installed and what it has chosen")
    info.add_argument("--json", action="store_true", help="as JSON, for programs")
    info.set_defaults(run=_info)

    gradcheck = commands.add_parser(
        "gradcheck", help="compare the gradients of every layer with central differences"
    )
    gradcheck.add_argument("--quick", action="store_true", help="a part of the grid only")
    gradcheck.add_argument("--plain", action="store_true", help="a plain table, also where rich is")
    gradcheck.set_defaults(run=_gradcheck)

    grade.add_parser(commands)
    explain.add_parser(commands)
    train.add_parser(commands)
    return parser


def _info(arguments: argparse.Namespace) -> int:
    import cnnx

    if arguments.json:
        print(json.dumps(cnnx.config(), indent=2))
    else:
        cnnx.show_config()
    return 0


def _gradcheck(arguments: argparse.Namespace) -> int:
    from cnnx import gradsuite

    return 0 if gradsuite.run(quick=arguments.quick, plain=arguments.plain) else 1
