"""Steps as a picture: cards with heat maps, drawn by matplotlib in inches on one sheet.

All sizes are measured before anything is drawn, so that no text runs into another. matplotlib is
imported only here, and without pyplot, so a user's own figures and backend stay as they are.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cnnx.explain._notation import PALETTE, number, pieces, symbols
from cnnx.explain._steps import Explanation, Panel, Step, Sum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _SOFT, _LINE = "#1b1d21", "#5c626c", "#d9dbdf"
_CARD, _MARGIN, _INSET, _GAP = 8.6, 0.3, 0.22, 0.22  # inches
_CELL, _CAPTION, _SIGN = 0.36, 0.25, 0.34
_DPI = 130
_MOST = 60  # steps; some 15 megapixels
_SIZES = {
    "part": 8,
    "title": 12.5,
    "text": 9.5,
    "formula": 9.5,
    "sum": 9.5,
    "cell": 9,
    "name": 9,
    "head": 14,
}


def draw(explanation: Explanation, form: str) -> bytes:
    """The picture's file: "png" or "svg" of all steps on one sheet, "pdf" with one page a step."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "cnnx[demo]"') from error
    if form != "pdf" and len(explanation) > _MOST:
        raise ValueError(
            f"a picture has room for {_MOST} steps, and there are {len(explanation)}: save the "
            "explanation's highlights, a slice of it, or .html"
        )
    stream = io.BytesIO()
    # Fixed names and no date: the same steps give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "cnnx", "font.family": "DejaVu Sans"}):
        if form == "pdf":
            from matplotlib.backends.backend_pdf import PdfPages

            with PdfPages(stream, metadata={"CreationDate": None}) as book:
                for place in range(len(explanation)):
                    book.savefig(sheet(explanation[place : place + 1], place + 1))
        else:
            metadata = {"Date": None} if form == "svg" else None
            sheet(explanation).savefig(stream, format=form, dpi=_DPI, metadata=metadata)
    return stream.getvalue()


def sheet(explanation: Explanation, first: int = 1) -> Figure:
    """One figure with a card for each step, row by row; `first` is the first one's number."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cards = [_Card(step, str(first + place)) for place, step in enumerate(explanation.steps)]
    columns = 1 if len(cards) < 3 else 2 if len(cards) < 25 else 3
    rows = [cards[i : i + columns] for i in range(0, len(cards), columns)]
    heights = [max(card.height for card in row) for row in rows]
    width = 2 * _MARGIN + columns * _CARD + (columns - 1) * _GAP
    head = list(_broken(explanation.title, width - 2 * _MARGIN, _SIZES["head"], "bold"))
    top = _MARGIN + 0.3 * len(head) + 0.1
    height = top + sum(heights) + _GAP * (len(rows) - 1) + _MARGIN
    figure = Figure(figsize=(width, height), facecolor="#f6f6f4")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    pen = _Pen(axes)
    for place, line in enumerate(head):
        pen.text(_MARGIN, _MARGIN + 0.15 + 0.3 * place, line, _SIZES["head"], weight="bold")
    y = top
    for row, tall in zip(rows, heights, strict=True):
        for place, card in enumerate(row):
            card.draw(pen, _MARGIN + place * (_CARD + _GAP), y, tall)
        y += tall + _GAP
    return figure


# ---------------------------------------------------------------- one card


class _Card:
    """A step, measured: lists of lines that fit, and panels in rows that fit."""

    def __init__(self, step: Step, label: str) -> None:
        room = _CARD - 2 * _INSET
        self.step, self.label = step, label
        self.title = list(_broken(step.title, room, _SIZES["title"], "bold"))
        self.text = list(_broken(step.text, room, _SIZES["text"]))
        self.formula = list(_broken(step.formula, room, _SIZES["formula"]))
        self.sums = [_chips(line) for line in step.sums]
        widest = max((sum(chip.width for chip in line) for line in self.sums), default=1.0)
        self.columns = max(1, int(room // (widest + 0.3))) if len(self.sums) > 4 else 1
        self.sums = [part for line in self.sums for part in _rows_of(line, room)]
        self.per_column = math.ceil(len(self.sums) / self.columns)
        self.rows = list(_fitting([_Block(panel) for panel in step.panels], room))
        self.height = (
            2 * _INSET
            + 0.16
            + 0.26 * len(self.title)
            + 0.19 * len(self.text)
            + (0.08 + 0.2 * len(self.formula) if self.formula else 0)
            + sum(max(block.height for block in row) + 0.16 for row in self.rows)
            + (0.1 + 0.24 * self.per_column if self.sums else 0)
        )

    def draw(self, pen: _Pen, left: float, top: float, tall: float) -> None:
        """Draw it with its upper left corner there."""
        pen.box(left, top, _CARD, tall, face="white", edge=_LINE, radius=0.1)
        x, y = left + _INSET, top + _INSET
        pen.text(x, y + 0.06, f"{self.label} · {self.step.part}", _SIZES["part"], _SOFT)
        y += 0.16
        for line in self.title:
            pen.text(x, y + 0.14, line, _SIZES["title"], weight="bold")
            y += 0.26
        for line in self.text:
            pen.text(x, y + 0.1, line, _SIZES["text"])
            y += 0.19
        if self.formula:
            y += 0.08
        for line in self.formula:
            pen.text(x, y + 0.1, line, _SIZES["formula"], _SOFT, style="italic")
            y += 0.2
        for row in self.rows:
            y += 0.16
            across = x
            for place, block in enumerate(row):
                across += block.draw(pen, across, y, signed=place > 0)
            y += max(block.height for block in row)
        if self.sums:
            y += 0.1
        width = (_CARD - 2 * _INSET) / self.columns
        for place, chips in enumerate(self.sums):
            column, line_number = divmod(place, self.per_column)
            across = x + column * width
            for chip in chips:
                across += chip.draw(pen, across, y + 0.24 * line_number + 0.12)


@dataclass
class _Block:
    """A panel and the sign before it, measured."""

    panel: Panel

    def __post_init__(self) -> None:
        """Measure; a matrix wider than the card is drawn smaller."""
        rows, columns = self.panel.shape
        widest = max(
            _width(_figures(value), _SIZES["cell"]) for row in self.panel.values for value in row
        )
        self.cell = max(_CELL, widest + 0.12)
        self.scale = min(1.0, (_CARD - 2 * _INSET) / (columns * self.cell))
        self.cell *= self.scale
        name = _width(self.panel.name, _SIZES["name"], "bold")
        self.sign = max(_SIGN, _width(self.panel.sign, 11) + 0.2) if self.panel.sign else 0.24
        self.width = max(columns * self.cell, name)
        self.height = _CAPTION + rows * _CELL

    def draw(self, pen: _Pen, left: float, top: float, signed: bool) -> float:
        """Draw it, and return how far it reaches."""
        panel, groups = self.panel, self.panel.groups
        start = left + (self.sign if signed else 0)
        if signed:
            pen.text(
                left + self.sign / 2,
                top + (self.height + _CAPTION) / 2,
                panel.sign,
                11,
                _SOFT,
                align="center",
            )
        pen.text(start + 0.02, top + 0.1, panel.name, _SIZES["name"], weight="bold")
        for r, row in enumerate(panel.values):
            for c, value in enumerate(row):
                x, y = start + c * self.cell, top + _CAPTION + r * _CELL
                group, strong = groups.get((r, c), 0), (r, c) in panel.strong
                faint = (r, c) in panel.faint
                heat = 0.0 if value is None else min(1.0, abs(value) / panel.largest)
                face, alpha = (
                    (PALETTE[group - 1], 0.2 + 0.4 * heat)
                    if group
                    else ("#80848c", 0.06 + 0.28 * heat)
                )
                if value is None or (faint and not group):
                    face, alpha = "white", 1.0
                edge = (
                    _INK
                    if strong
                    else PALETTE[group - 1]
                    if group
                    else _LINE
                    if value is None or faint
                    else "none"
                )
                pen.box(
                    x + 0.015,
                    y + 0.015,
                    self.cell - 0.03,
                    _CELL - 0.03,
                    face,
                    edge,
                    0.04,
                    alpha,
                    1.4 if strong or group else 0.9,
                    "--" if faint and not strong else "-",
                )
                pen.text(
                    x + self.cell / 2,
                    y + _CELL / 2,
                    _figures(value),
                    _SIZES["cell"] * self.scale,
                    _SOFT if faint and not group else _INK,
                    weight="bold" if strong else "normal",
                    align="center",
                )
        return start - left + self.width


@dataclass
class _Chip:
    """A piece of a sum; one of a group has that group's colour behind it."""

    text: str
    group: int

    def __post_init__(self) -> None:
        self.width = _width(self.text, _SIZES["sum"]) + (0.06 if self.group else 0)

    def draw(self, pen: _Pen, left: float, middle: float) -> float:
        """Draw it, and return its width."""
        if self.group:
            pen.box(
                left + 0.005,
                middle - 0.095,
                self.width - 0.01,
                0.19,
                PALETTE[self.group - 1],
                "none",
                0.03,
                0.32,
            )
        pen.text(left + (0.03 if self.group else 0), middle, self.text, _SIZES["sum"])
        return self.width


def _chips(line: Sum) -> list[_Chip]:
    return [_Chip(_minus(text), group) for text, group in pieces(line) if text]


def _rows_of(chips: list[_Chip], room: float) -> Iterator[list[_Chip]]:
    """A sum in lines that fit, broken between its pieces."""
    row: list[_Chip] = []
    used = 0.0
    for chip in chips:
        if row and used + chip.width > room:
            yield row
            row, used = [_Chip("     ", 0)], 0.25
        row.append(chip)
        used += chip.width
    yield row


def _fitting(blocks: list[_Block], room: float) -> Iterator[list[_Block]]:
    row: list[_Block] = []
    used = 0.0
    for block in blocks:
        if row and used + block.sign + block.width > room:
            yield row
            row, used = [], 0.0
        used += block.width + (block.sign if row else 0)
        row.append(block)
    if row:
        yield row


# ---------------------------------------------------------------- measuring and drawing


class _Pen:
    """Boxes and text on axes whose unit is the inch."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        colour: str = _INK,
        *,
        weight: str = "normal",
        style: str = "normal",
        align: str = "left",
    ) -> None:
        """Write a line whose middle is at y."""
        if text:
            self.axes.text(
                x,
                y,
                _mathtext(text),
                fontsize=size,
                color=colour,
                fontweight=weight,
                fontstyle=style,
                ha=align,
                va="center_baseline",
            )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        face: str,
        edge: str,
        radius: float,
        alpha: float = 1.0,
        line: float = 0.9,
        dash: str = "-",
    ) -> None:
        """Draw a rectangle with round corners."""
        from matplotlib.colors import to_rgba
        from matplotlib.patches import FancyBboxPatch

        shape = f"round,pad=0,rounding_size={radius}"
        colour = to_rgba(face, alpha)
        self.axes.add_patch(
            FancyBboxPatch((x, y), width, height, shape, fc=colour, ec=edge, lw=line, ls=dash)
        )


def _figures(value: float | None) -> str:
    return _minus(number(value))


def _minus(text: str) -> str:
    return text.replace("e-", "e\0").replace("-", "−").replace("\0", "-").replace("{l−1}", "{l-1}")


def _mathtext(text: str) -> str:
    """Raised and lowered letters in matplotlib's TeX; the rest stays text."""
    signs = {"sup": "^", "sub": "_", "": ""}
    return "".join(
        f"${signs[kind]}{{\\mathregular{{{piece.replace('-', '−')}}}}}$"
        if kind
        else piece.replace("$", r"\$")
        for piece, kind in symbols(text)
    )


def _width(text: str, size: float, weight: str = "normal") -> float:
    """The width of a line in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    if not text:
        return 0.0
    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    shown = _mathtext(text)
    measured: Any = text_to_path.get_text_width_height_descent(shown, font, "$" in shown)
    return float(measured[0]) / 72


def _broken(text: str, room: float, size: float, weight: str = "normal") -> Iterator[str]:
    """A text in lines that fit."""
    line = ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if line and _width(longer, size, weight) > room:
            yield line
            longer = word
        line = longer
    if line:
        yield line
