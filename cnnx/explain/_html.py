"""Steps as one HTML page with a slider: no network is needed, and no script to see all steps."""

from __future__ import annotations

from html import escape
from importlib.resources import files

from cnnx.explain._notation import PALETTE, number, pieces, symbols
from cnnx.explain._steps import Explanation, Panel, Step, Sum

_MANY = 4  # sums beyond which they are set in columns


def page(explanation: Explanation) -> str:
    """The whole page."""
    template = files("cnnx.explain").joinpath("page.html").read_text("utf-8")
    rgb = [" ".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5)) for colour in PALETTE]
    colours = "\n".join(f"  --g{group}: {value};" for group, value in enumerate(rgb, 1))
    parts = {
        "title": escape(explanation.title),
        "heading": _symbols(explanation.title),
        "colours": colours,
        "count": str(len(explanation)),
        "steps": "\n".join(map(_step, explanation.steps)),
    }
    for name, text in parts.items():
        template = template.replace("{{" + name + "}}", text)
    return template


def frame(explanation: Explanation) -> str:
    """The page in a frame of its own, for notebooks: its styles and keys touch nothing else."""
    source = escape(page(explanation), quote=True)
    title = escape(explanation.title, quote=True)
    style = "width:100%;height:640px;border:1px solid #8886;border-radius:8px"
    return f'<iframe srcdoc="{source}" title="{title}" style="{style}"></iframe>'


def _step(step: Step) -> str:
    chapter, colon, rest = step.part.partition(": ")
    rest = colon + rest
    parts = [
        f'<section class="step" data-chapter="{escape(chapter)}">',
        f'<p class="part"><span class="chapter">{_symbols(chapter)}</span>{_symbols(rest)}</p>',
        f"<h2>{_symbols(step.title)}</h2>",
        f'<p class="text">{_symbols(step.text)}</p>',
    ]
    if step.formula:
        parts.append(f'<p class="formula">{_symbols(step.formula)}</p>')
    if step.panels:
        parts.append(f'<div class="panels">{"".join(map(_panel, step.panels))}</div>')
    if step.sums:
        many = " many" if len(step.sums) > _MANY else ""
        parts.append(f'<ul class="sums{many}">{"".join(map(_sum, step.sums))}</ul>')
    return "\n".join([*parts, "</section>"])


def _sum(line: Sum) -> str:
    spans = []
    for text, group in pieces(line):
        marked = _symbols(_minus(text))
        spans.append(f'<b style="--g:var(--g{group})">{marked}</b>' if group else marked)
    return f"<li>{''.join(spans)}</li>"


def _panel(panel: Panel) -> str:
    sign = (
        f'<span class="sign" aria-hidden="true">{escape(panel.sign)}</span>' if panel.sign else ""
    )
    groups, rows = panel.groups, []
    for r, row in enumerate(panel.values):
        cells = "".join(
            _cell(value, panel, (r, c), groups.get((r, c), 0)) for c, value in enumerate(row)
        )
        rows.append(f"<tr>{cells}</tr>")
    widest = max(len(number(value)) for row in panel.values for value in row)
    table = (
        f'<table style="--w:{0.6 * widest:.1f}">'
        f"<caption>{_symbols(panel.name)}</caption>{''.join(rows)}</table>"
    )
    return f'<div class="panel">{sign}<div class="scroll">{table}</div></div>'


def _cell(value: float | None, panel: Panel, cell: tuple[int, int], group: int) -> str:
    kinds = {
        "in": bool(group),
        "strong": cell in panel.strong,
        "faint": cell in panel.faint,
        "empty": value is None,
    }
    classes = " ".join(name for name, holds in kinds.items() if holds)
    heat = 0.0 if value is None else min(1.0, abs(value) / panel.largest)
    colour = f";--g:var(--g{group})" if group else ""
    return f'<td class="{classes}" style="--h:{heat:.2f}{colour}">{_minus(number(value))}</td>'


def _minus(text: str) -> str:
    """Hyphens as minus signs, except in e-10."""
    return (
        text.replace("e-", "e\0").replace("-", "−").replace("\0", "-").replace("Z^{l−1}", "Z^{l-1}")
    )


def _symbols(text: str) -> str:
    return "".join(
        f"<{tag}>{escape(piece)}</{tag}>" if tag else escape(piece) for piece, tag in symbols(text)
    )
