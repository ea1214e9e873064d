"""What a notebook shows of layers and reports: a plain HTML table in the notebook's own style."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

_OUTPUTS = {
    "Conv2D": "(N, F, ⌊(H + 2P_h - D_h (K_h - 1) - 1) / S_h⌋ + 1, likewise W)",
    "ConvTranspose2D": "(N, F, (H - 1) S_h - 2P_h + D_h (K_h - 1) + 1 + extra, likewise W)",
    "MaxPool2D": "(N, C, ⌊(H + 2P_h - D_h (K_h - 1) - 1) / S_h⌋ + 1, likewise W)",
    "AvgPool2D": "(N, C, ⌊(H + 2P_h - K_h) / S_h⌋ + 1, likewise W)",
    "GlobalAvgPool2D": "(N, C)",
    "Flatten": "(N, C·H·W)",
    "Dense": "(N, out_features)",
    **dict.fromkeys(
        (
            "ReLU",
            "LeakyReLU",
            "ReLU6",
            "Sigmoid",
            "Tanh",
            "GELU",
            "SiLU",
            "Softmax",
            "BatchNorm2D",
            "Dropout",
        ),
        "as the input",
    ),
}
_FAILED = "#D55E00"  # vermilion, which colour-blind readers tell from the rest


def html_table(
    title: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    notes: Iterable[str] = (),
    failed: Iterable[int] = (),
) -> str:
    """Return a table with its title above and notes below; `failed` rows stand out."""
    wrong = set(failed)
    head = "".join(f'<th scope="col" style="text-align:left">{escape(text)}</th>' for text in heads)
    body = []
    for number, row in enumerate(rows):
        style = "text-align:left"
        if number in wrong:
            style += f";color:{_FAILED};font-weight:bold"
        cells = "".join(f'<td style="{style}">{escape(text)}</td>' for text in row)
        body.append(f"<tr>{cells}</tr>")
    below = "".join(f"<p>{escape(note)}</p>" for note in notes)
    caption = f'<caption style="text-align:left;font-weight:bold">{escape(title)}</caption>'
    inside = f"{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
    return f"<table>{inside}</table>{below}"


def layer_table(layer: Any) -> str:
    """Return the table of a layer, or of the layers inside a container, one a row."""
    rows, total = [], 0
    for name, one in _leaves(layer):
        params = getattr(one, "params", {})
        total += sum(array.size for array in params.values())
        shapes = ", ".join(f"{key} {array.shape}" for key, array in params.items())
        count = f"{sum(array.size for array in params.values()):,}"
        output = _OUTPUTS.get(type(one).__name__, "")
        rows.append((name, repr(one), shapes, count, output))
    title = f"{type(layer).__name__}: {total:,} parameters"
    return html_table(title, ("", "layer", "parameters", "numbers", "output"), rows)


def _leaves(layer: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    children = layer.children() if hasattr(layer, "children") else {}
    if not children:
        yield prefix, layer
    for name, child in children.items():
        yield from _leaves(child, f"{prefix}.{name}" if prefix else name)
