"""``cnnx explain``: a worked example of a layer, forward and backward, step by step."""

from __future__ import annotations

import argparse
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cnnx.cli._arguments import natural, whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cnnx.explain import Explanation

_WINDOWS = {"max-pool", "avg-pool", "conv", "net"}  # what has windows
_ACTIVATED = {"conv", "dense", "net"}  # what may have an activation behind it
_ACTIVATIONS = ("relu", "sigmoid", "tanh")
_SUBJECTS = ("max-pool", "avg-pool", "conv", "dense", *_ACTIVATIONS, "net")
_SIZES = {"dense": 3, "relu": 3, "sigmoid": 3, "tanh": 3, "net": 5}
_SEEDS = {"net": 18}  # every maximum passes the ReLU, so all weights get a gradient
_LARGEST = 12  # rows; more are no longer an example
_PICTURES = {".png", ".svg"}

# The homework's example, and its gradient.
_IMAGE = [[1, 3, 2, 1], [4, 2, 0, 5], [3, 1, 4, 2], [2, 0, 3, 6]]
_GRADIENT = [[0.5, 1.2], [0.8, -0.3]]


def add_parser(commands: Any) -> None:
    """Add the subcommand to argparse's list of them."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "explain",
        help="show step by step what a layer computes, forward and backward",
        description="Show what a layer computes, forward and backward, on a small example with "
        "real numbers, and compare with cnnx's kernels and the numerical gradient. The terminal "
        "and pictures get the main steps, pages and text files every step. For your own numbers "
        "there is cnnx.explain in Python.",
        epilog="examples: cnnx explain; cnnx explain conv --padding 1 --activation relu; "
        "cnnx explain max-pool --pool-size 3 --stride 1 --save steps.html --save steps.png",
    )
    option, size = parser.add_argument, whole(1, _LARGEST)
    what = f"one of {', '.join(_SUBJECTS)}; default: max-pool"
    option("what", nargs="?", choices=_SUBJECTS, default="max-pool", metavar="WHAT", help=what)
    option("--size", type=size, metavar="N", help="rows and columns; of dense, the inputs")
    window = "--pool-size", "--kernel-size"
    option(*window, dest="window", type=size, metavar="N", help="of the window; default: 2")
    option("--stride", type=size, metavar="N", help="default: the window for pooling, else 1")
    option("--padding", type=natural, metavar="N", help="default: 0")
    option("--activation", choices=_ACTIVATIONS, help="of conv, dense, or the net's convolution")
    option("--seed", type=natural, metavar="N", help="of the numbers; without it, a known image")
    saved = "write .html, .png, .svg, .pdf or .txt instead of printing; may be repeated"
    option("--save", action="append", default=[], type=Path, metavar="FILE", help=saved)
    option("--all", action="store_true", help="every step, in the terminal and in pictures too")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Explain; return 1 if the sums do not agree with cnnx or the numerical gradient."""
    from cnnx.explain._save import require_suffix

    for file in arguments.save:  # nothing is written before all that can be mistyped has been read
        require_suffix(file, "--save")
        if not file.resolve().parent.is_dir():
            raise ValueError(f"--save is {str(file)!r}, but there is no folder {file.parent}")
    explanation = _explained(arguments)
    short = explanation if arguments.all else explanation.highlights
    for file in arguments.save:
        try:
            (short if file.suffix.lower() in _PICTURES else explanation).save(file)
        except ImportError as error:
            raise ValueError(str(error)) from error
        print(f"wrote {file}")
    if not arguments.save:
        try:
            _print(short, len(explanation) - len(short), arguments.what)
        except BrokenPipeError:  # the reader, head for example, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + 13  # SIGPIPE
    return 0 if explanation.agrees else 1


def _print(explanation: Explanation, left_out: int, what: str) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows no ∂
    explanation.show()
    if left_out:
        print(
            f"\n{left_out} more steps, alike: cnnx explain {what} --all, or with a slider: "
            f"cnnx explain {what} --save {what}.html",
            flush=True,
        )


def _explained(arguments: argparse.Namespace) -> Explanation:
    """The example, from the options and their defaults."""
    from cnnx import explain

    what: str = arguments.what
    _refuse(arguments)
    size = arguments.size or _SIZES.get(what, 4)
    window, padding = arguments.window or 2, arguments.padding or 0
    seed = _SEEDS.get(what, 0) if arguments.seed is None else arguments.seed
    rng = np.random.default_rng(seed)
    if what in _ACTIVATIONS:
        return explain.activation(what, rng.integers(-3, 4, (size, size)))
    if what == "dense":
        x, weight = rng.integers(-3, 4, (2, size)), rng.integers(-2, 3, (size, 2))
        return explain.linear(x, weight, [1, -1], arguments.activation)
    if what == "net":
        return _net(arguments, size, window, rng)
    own = arguments.seed is not None or size != 4
    x = rng.integers(0, 10, (size, size)) if own else np.array(_IMAGE)
    if what == "conv":
        weight = rng.integers(-2, 3, (window, window))
        stride = arguments.stride or 1
        return explain.conv2d(x, weight, 1, stride, padding, activation=arguments.activation)
    stride = arguments.stride or window
    lecture = not own and (window, stride, padding) == (2, 2, 0)
    pool = explain.max_pool2d if what == "max-pool" else explain.avg_pool2d
    return pool(x, window, stride, padding, _GRADIENT if lecture else None)


def _net(
    arguments: argparse.Namespace, size: int, window: int, rng: np.random.Generator
) -> Explanation:
    """Convolution, max pooling, Dense, and the loss of one image."""
    import cnnx

    activation: Any = arguments.activation or "relu"
    options = (arguments.stride or 1, arguments.padding or 0)
    conv = cnnx.Conv2D(1, 1, window, *options, activation=activation, rng=rng)
    features = cnnx.Sequential(conv, cnnx.MaxPool2D(2), cnnx.Flatten())
    x: NDArray[Any] = rng.normal(size=(1, 1, size, size)).round(1)
    inputs = features(x).shape[1]
    net = cnnx.Sequential(*features, cnnx.Dense(inputs, 2, rng=rng))
    for weight in net.params.values():
        weight[...] = weight.round(2)
    return cnnx.explain.model(net, x, [1])


def _refuse(arguments: argparse.Namespace) -> None:
    """Raise for an option that means nothing here."""
    what = arguments.what
    for name, value, those in (
        ("--pool-size", arguments.window, _WINDOWS),
        ("--stride", arguments.stride, _WINDOWS),
        ("--padding", arguments.padding, _WINDOWS),
        ("--activation", arguments.activation, _ACTIVATED),
    ):
        if value is not None and what not in those:
            raise ValueError(
                f"{name} means nothing for {what}, only for {', '.join(sorted(those))}"
            )
