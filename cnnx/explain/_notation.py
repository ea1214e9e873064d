"""How numbers, sums and symbols are written, and the colours: the same in every rendering."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from cnnx.explain._steps import Sum, Term

# Okabe and Ito's palette, which colour-blind readers can tell apart, in the order of the groups
# 1 to 7. https://jfly.uni-koeln.de/color/
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A800")

_RAISED = re.compile(r"\^\{([^}]*)\}|_\{([^}]*)\}|_(h|w|pad)\b")


def number(value: float | None) -> str:
    """A number in six or seven characters; an empty cell is nothing."""
    if value is None:
        return ""
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    if abs(value) < 5e-4 or abs(value) >= 1e6:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    places = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".")


def term(one: Term) -> str:
    """The factors with a dot between; negative ones after the first in parentheses."""
    first, *others = map(number, one.factors)
    return " · ".join(
        [first, *(f"({other})" if other.startswith("-") else other for other in others)]
    )


def pieces(line: Sum) -> Iterator[tuple[str, int]]:
    """The whole equation, cut into pieces with the group of each."""
    before, _, after = line.form.partition("{}")
    yield f"{line.name} = {before}", 0
    adding = line.joint == " + "
    for place, one in enumerate(line.terms):
        text = term(one)
        negative = adding and place > 0 and text.startswith("-")
        if place:
            yield line.joint, 0
        yield f"({text})" if negative and len(one.factors) == 1 else text, one.group
    if not line.terms:
        yield "0", 0
    yield after, 0
    if (
        adding
        and after == ""
        and len(line.terms) > 1
        and any(len(t.factors) > 1 for t in line.terms)
    ):
        yield " = ", 0
        for place, one in enumerate(line.terms):
            text = number(one.value)
            if place:
                yield " + ", 0
            yield f"({text})" if place and text.startswith("-") else text, one.group
    single = len(line.terms) == 1 and len(line.terms[0].factors) == 1
    if line.form != "{}" or (line.terms and not single):
        yield f" = {number(line.value)}", 0


def symbols(text: str) -> Iterator[tuple[str, str]]:
    """A name or formula in pieces: (text, "" or "sup" or "sub")."""
    end = 0
    for found in _RAISED.finditer(text):
        if found.start() > end:
            yield text[end : found.start()], ""
        raised, braced, short = found.groups()
        yield (raised, "sup") if raised is not None else (braced or short, "sub")
        end = found.end()
    if end < len(text):
        yield text[end:], ""
