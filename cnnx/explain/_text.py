"""Steps as text: plain for files, pipes and ``print``; with rich in a terminal, in colour.

Both have the same lines. Brackets mark the cells in focus, an asterisk the chosen one and
parentheses the padding, so that nothing depends on colour.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator

from cnnx.explain._notation import PALETTE, number, pieces
from cnnx.explain._steps import Explanation, Panel, Step

Piece = tuple[str, str]  # text and style: "", "1" to "7" (a group), "bold", "dim", "formula"
Line = list[Piece]

_WIDTH = 100
_MANY = 4  # sums beyond which they are set in columns
_LEGEND = "[ ] in focus, * chosen or written now, ( ) padding, · still empty"


def plain(explanation: Explanation, width: int = _WIDTH) -> str:
    """All steps as plain text."""
    lines = ("".join(text for text, _ in line).rstrip() for line in _lines(explanation, width))
    return "\n".join(lines)


def show(explanation: Explanation) -> None:
    """Print the steps; in colour where rich is installed and someone is looking."""
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        print(plain(explanation), flush=True)
        return
    console = Console()
    if not console.is_terminal:
        print(plain(explanation), flush=True)
        return
    styles = {str(group): f"bold {colour}" for group, colour in enumerate(PALETTE, 1)}
    styles |= {"bold": "bold", "dim": "dim", "formula": "italic", "": ""}
    for line in _lines(explanation, min(max(console.width, 40), 120)):
        text = Text.assemble(*((piece, styles[style]) for piece, style in line))
        console.print(text, no_wrap=True, overflow="ignore", crop=False, highlight=False)
    sys.stdout.flush()


def _lines(explanation: Explanation, width: int) -> Iterator[Line]:
    for line in textwrap.wrap(explanation.title, width):
        yield [(line, "bold")]
    for line in textwrap.wrap(_LEGEND, width):
        yield [(line, "dim")]
    for count, step in enumerate(explanation.steps, 1):
        yield []
        head = f"── {count}/{len(explanation)} · {step.part} "
        yield [(head + "─" * max(0, width - len(head)), "dim")]
        yield from _step(step, width)


def _step(step: Step, width: int) -> Iterator[Line]:
    for line in textwrap.wrap(step.title, width):
        yield [(line, "bold")]
    for line in textwrap.wrap(step.text, width):
        yield [(line, "")]
    if step.formula:
        yield []
        for line in textwrap.wrap(step.formula, width - 4):
            yield [("    ", ""), (line, "formula")]
    if step.panels:
        yield []
        yield from _side_by_side(step.panels, width)
    if step.sums:
        yield []
        lines = [[(text, str(group or "")) for text, group in pieces(one)] for one in step.sums]
        yield from _columns(lines, width) if len(lines) > _MANY else _one_by_one(lines, width)


def _one_by_one(lines: list[Line], width: int) -> Iterator[Line]:
    for line in lines:
        yield from _wrapped(line, width)


def _columns(lines: list[Line], width: int) -> Iterator[Line]:
    """Short sums in columns, to be read downwards."""
    size = max(sum(len(text) for text, _ in line) for line in lines) + 3
    count = (width - 4) // size
    if count < 2:
        yield from _one_by_one(lines, width)
        return
    rows = -(-len(lines) // count)
    yield from _joined([(lines[i : i + rows], size - 3) for i in range(0, len(lines), rows)])


def _wrapped(line: Line, width: int) -> Iterator[Line]:
    """A sum, broken between its terms."""
    current: Line = [("    ", "")]
    used = 4
    for text, style in line:
        if used + len(text) > width and used > 8:
            yield current
            current, used = [("        ", "")], 8
            text = text.lstrip()
        current.append((text, style))
        used += len(text)
    yield current


def _side_by_side(panels: tuple[Panel, ...], width: int) -> Iterator[Line]:
    """Panels in rows, as many in each as fit."""
    row: list[tuple[list[Line], int]] = []
    used = 0
    for one in panels:
        block = _panel(one, signed=bool(row))
        size = max(sum(len(text) for text, _ in line) for line in block)
        if row and used + 3 + size > width - 4:
            yield from _joined(row)
            yield []
            block = _panel(one, signed=False)
            row, used = [], 0
        row.append((block, size))
        used += size + 3
    yield from _joined(row)


def _joined(row: list[tuple[list[Line], int]]) -> Iterator[Line]:
    for number_ in range(max(len(block) for block, _ in row)):
        line: Line = [("    ", "")]
        for block, size in row:
            own = block[number_] if number_ < len(block) else []
            line += own
            line.append((" " * (size - sum(len(text) for text, _ in own) + 3), ""))
        yield line


def _panel(panel: Panel, signed: bool) -> list[Line]:
    sign = panel.sign if signed else ""
    indent = " " * (len(sign) + 2) if sign else ""
    texts = [[number(value) or "·" for value in row] for row in panel.values]
    size = max(len(text) for row in texts for text in row)
    groups, rows, _ = panel.groups, *panel.shape
    block: list[Line] = [[(indent, ""), (panel.name, "bold")]]
    for r, row in enumerate(texts):
        line: Line = [(f"{sign}  " if sign and r == (rows - 1) // 2 else indent, "bold")]
        for c, text in enumerate(row):
            group, strong, faint = (
                groups.get((r, c), 0),
                (r, c) in panel.strong,
                (r, c) in panel.faint,
            )
            left, right = ("[", "]") if group else ("(", ")") if faint else (" ", " ")
            text = f"*{text}" if strong else text
            style = str(group) if group else "bold" if strong else "dim" if faint else ""
            line.append((f"{left}{text:>{size + 1}}{right}", style))
        block.append(line)
    return block
