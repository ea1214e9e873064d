"""Max and average pooling: each window has a small matrix that says what it takes of its pixels.

For the maximum that is the mask, 1 at the first of the largest and 0 elsewhere; for the average it
is 1/area everywhere. Backward multiplies by it, so that both poolings are told by one story.
"""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from cnnx import _shapes
from cnnx import functional as F
from cnnx.explain import _arguments, _check
from cnnx.explain._notation import number
from cnnx.explain._steps import (
    Array,
    Cell,
    Explanation,
    Panel,
    Step,
    Sum,
    Term,
    at,
    group_of,
    panel,
    panels,
    total,
)
from cnnx.explain._windows import Windows
from cnnx.functional import _arguments as check

X, Z, DX, DZ = "Z^{l-1}", "Z", "∂L/∂Z^{l-1}", "∂L/∂Z"
Kind = Literal["max", "avg"]
_FEW = 9  # windows that are all worth showing


def explain(
    kind: Kind, x: Any, pool_size: Any, stride: Any, padding: Any, grad_out: Any
) -> Explanation:
    """The steps of a pooling, forward and backward."""
    given = _arguments.numbers("x", x, (2, 4), "(H, W) or (N, C, H, W)")
    images = given.reshape((1, 1, *given.shape)) if given.ndim == 2 else given
    size = check.pair(pool_size, "pool_size")
    step = size if stride is None else check.pair(stride, "stride")
    pads = check.padding(padding)
    geometry = _shapes.pool2d(images.shape, size, step, pads, (1, 1), False)
    windows = Windows(geometry, images.shape, size)
    upstream = _arguments.upstream(grad_out, geometry.out_shape)
    story = _Story(kind, images, windows, upstream)
    steps = (story.introduction(), *story.forward(), *story.backward())
    checks, agrees = story.checks(size, step, pads)
    gradient = windows.crop(story.gradient).reshape(given.shape)
    name = "Max" if kind == "max" else "Average"
    return Explanation(
        f"{name} pooling, window {size[0]}x{size[1]}, {windows.described}",
        (*steps, *checks, story.summary(agrees)),
        story.out[0, 0] if given.ndim == 2 else story.out,
        MappingProxyType({"x": gradient}),
        agrees,
    )


class _Story:
    """The numbers as they grow, and the steps that show them."""

    def __init__(self, kind: Kind, x: Array, windows: Windows, upstream: Array) -> None:
        self.kind, self.x, self.windows, self.upstream = kind, x, windows, upstream
        self.padded = windows.pad(x, -np.inf if kind == "max" else 0.0)
        self.faint = windows.faint
        self.out = np.full(windows.geometry.out_shape, np.nan)
        self.gradient = np.zeros(self.padded.shape)
        self.shares: dict[tuple[int, ...], Array] = {}  # of each window: mask, or 1/area
        self.letter = "M" if kind == "max" else "1/area"
        self.share_name = "M" if kind == "max" else f"1/area = 1/{np.prod(windows.kernel)}"
        self.by_pixel = np.zeros(x.shape)  # the gradient once more, summed from the other side
        self.met = False  # whether gradients have met in a pixel
        self.few = len(windows.places) * x.shape[0] * x.shape[1] <= _FEW

    def introduction(self) -> Step:
        size = " x ".join(map(str, self.windows.kernel))
        around = "minus infinity" if self.kind == "max" else "zeros"
        text = f"A window of {size} moves over the image, {self.windows.described}."
        if self.windows.padded:
            text += f" The padding around it is {around}."
        does = "its largest number" if self.kind == "max" else "the mean of its numbers"
        text += f" Of each window we keep {does}."
        places = self.windows.places[:1] if self.windows.overlap else self.windows.places
        sheets = list(np.ndindex(self.x.shape[:2]))
        marks = {
            (*sheet, *cell): group_of((*sheet, *place))
            for sheet in sheets
            for place in places
            for _, cell in self.windows.taps(place)
        }
        outs = {
            (*sheet, *place): group_of((*sheet, *place)) for sheet in sheets for place in places
        }
        shown = (
            *panels(X, self.padded, marks, faint=self.faint),
            *panels(Z, self.out, outs, sign="→"),
        )
        formula = self.windows.size_formula
        return Step("the windows", "The image and its windows", text, formula, (), shown, True)

    def colours(self) -> dict[tuple[int, ...], int]:
        """The group of each output."""
        return {index: group_of(index) for index in np.ndindex(self.out.shape)}

    def forward(self) -> list[Step]:
        steps: list[Step] = []
        for sheet in np.ndindex(self.x.shape[:2]):
            for place in self.windows.places:
                steps.append(self._window(sheet, place, self.few or not steps))
        return steps

    def _window(self, sheet: Cell, place: Cell, main: bool) -> Step:
        taps, group = self.windows.taps(place), group_of((*sheet, *place))
        values = [float(self.padded[(*sheet, *cell)]) for _, cell in taps]
        index = (*sheet, *place)
        name = at(Z, index, self.out.shape)
        share = np.zeros(self.windows.kernel)
        strong: set[Cell] = set()
        if self.kind == "max":
            best = max(range(len(values)), key=values.__getitem__)  # the first of equals
            share[taps[best][0]] = 1.0
            strong = {taps[best][1]}
            terms = tuple(Term((value,), group) for value in values)
            result = Sum(name, terms, values[best], "max({})", ", ")
            row, column = self._outside(taps[best][1])
            text = (
                f"The largest of the window is {number(values[best])}, at row {row}, column "
                f"{column}. The mask M remembers where: 1 there, 0 elsewhere."
            )
            if values.count(values[best]) > 1:
                text += " It stands there more than once: the first one, row by row, wins."
            formula = f"{name} = max of the window,   M = 1 at the maximum, 0 elsewhere"
        else:
            share[...] = 1 / len(values)
            terms = tuple(Term((value,), group) for value in values)
            mean = total(name, terms).value / len(values)
            result = Sum(name, terms, mean, f"({{}}) / {len(values)}")
            text = (
                f"Each of the {len(values)} numbers of the window counts 1/area = 1/{len(values)}. "
                + ("The zeros of the padding count as well." if self.windows.padded else "")
            ).strip()
            formula = f"{name} = Σ_{{u,v}} (1 / (K_h · K_w)) · {X}[window at u, v]"
        self.shares[index] = share
        self.out[index] = result.value
        shown = (
            *panels(
                X,
                self.padded,
                {(*sheet, *cell): group for _, cell in taps},
                {(*sheet, *c) for c in strong},
                self.faint,
            ),
            self._share(index, "→" if self.kind == "max" else "⊙"),
            *panels(Z, self.out, {index: group}, {index}, sign="→"),
        )
        return Step(
            "forward", f"Window {place} gives {name}", text, formula, (result,), shown, main
        )

    def _share(self, index: tuple[int, ...], sign: str = "") -> Panel:
        share, group = self.shares[index], group_of(index)
        marks = {(int(r), int(c)): group for r, c in np.argwhere(share)}
        return panel(self.share_name, share, marks, sign=sign)

    def _outside(self, cell: Cell) -> Cell:
        """A cell of the padded image in the coordinates of the image."""
        top, _, left, _ = self.windows.geometry.pads
        return cell[0] - top, cell[1] - left

    def backward(self) -> list[Step]:
        steps = [self._where()]
        for sheet in np.ndindex(self.x.shape[:2]):
            for place in self.windows.places:
                steps.append(self._spread((*sheet, *place), self.few or len(steps) == 1))
        if self.windows.padded:
            steps.append(self._crop())
        return [*steps, *self._rows()]

    def _where(self) -> Step:
        inside = np.zeros(self.x.shape[2:])
        chosen = np.zeros(self.padded.shape)
        counts = np.zeros(self.padded.shape[2:])
        for place in self.windows.places:
            for tap, cell in self.windows.taps(place):
                counts[cell] += 1
                for sheet in np.ndindex(self.x.shape[:2]):
                    chosen[(*sheet, *cell)] += self.shares[(*sheet, *place)][tap] > 0
        inside = self.windows.crop(np.broadcast_to(counts, self.padded.shape))[0, 0]
        text = (
            "To find the derivative with respect to something, find where its information is "
            "contained. Here: in how many windows each pixel lies"
        )
        shown = [panel("windows over each pixel", inside)]
        if self.kind == "max":
            text += (
                ", and how many of them chose it. A pixel that no window chose could change a "
                "little and no output would: its derivative is 0."
            )
            taken = self.windows.crop(chosen)
            marks = {tuple(map(int, i)): 1 for i in np.argwhere(taken)}
            shown += panels("windows that chose it", taken, marks)
        else:
            text += ". Each of these windows holds 1/area of it."
        if self.windows.overlap:
            text += " Windows overlap: what comes from several is added up."
        formula = (
            f"{DX}[r, c] = Σ over the windows that contain it of {self.letter}[u, v] · {DZ}[i, j]"
        )
        outs = self.colours()
        shown += panels(DZ, self.upstream, outs, sign="and")
        return Step(
            "backward", "Where is each pixel contained?", text, formula, (), tuple(shown), True
        )

    def _spread(self, index: tuple[int, ...], main: bool) -> Step:
        sheet, group = index[:2], group_of(index)
        taps = self.windows.taps((index[2], index[3]))
        upstream = float(self.upstream[index])
        sums, overlapped = [], False
        for tap, cell in taps:
            share, before = float(self.shares[index][tap]), float(self.gradient[(*sheet, *cell)])
            if not share:
                continue
            overlapped |= before != 0
            terms = (Term((before,)),) if before else ()
            new = total(
                at(DX, (*sheet, *self._outside(cell)), self.x.shape),
                (*terms, Term((share, upstream), group)),
            )
            self.gradient[(*sheet, *cell)] = new.value
            sums.append(new)
        name = at(DZ, index, self.out.shape)
        text = (
            f"{name} = {number(upstream)} goes to the pixel that was the maximum, by the mask."
            if self.kind == "max"
            else f"{name} = {number(upstream)} is shared out: 1/area to each pixel of the window."
        )
        if overlapped:
            main, self.met = main or not self.met, True  # the first of these is worth showing
            text += " There was something already: add to it (+=), never assign (=)."
        marks = {(*sheet, *cell): group for _, cell in taps}
        strong = {(*sheet, *cell) for tap, cell in taps if self.shares[index][tap] == 1}
        so_far = f"{DX} so far"
        shown = (
            *panels(DZ, self.upstream, {index: group}, {index}),
            self._share(index, "×"),
            *panels(so_far, self.gradient, marks, strong, self.faint, "→"),
        )
        formula = f"{DX}[window] += {self.letter} · {name}"
        return Step("backward", f"{name} goes back", text, formula, tuple(sums), shown, main)

    def _crop(self) -> Step:
        text = (
            "The gradient of the padding belongs to no pixel: it is cut off, and what remains has "
            "the shape of the image."
        )
        top, _, left, _ = self.windows.geometry.pads
        formula = f"{DX}[r, c] = {DX}_pad[r + {top}, c + {left}]"
        shown = (
            *panels(f"{DX}_pad", self.gradient, faint=self.faint),
            *panels(DX, self.windows.crop(self.gradient), sign="→"),
        )
        return Step("backward", "Crop the padding", text, formula, (), shown, True)

    def _rows(self) -> list[Step]:
        """Seen from the pixels: each row's sums over the windows, to hold against the loop's."""
        steps: list[Step] = []
        cropped = self.windows.crop(self.gradient)
        containing: dict[Cell, list[tuple[Cell, Cell]]] = {}
        for place in self.windows.places:
            for tap, cell in self.windows.taps(place):
                containing.setdefault(self._outside(cell), []).append((place, tap))
        for sheet in np.ndindex(self.x.shape[:2]):
            for row in range(self.x.shape[2]):
                sums, marks = [], {}
                for column in range(self.x.shape[3]):
                    terms = []
                    for place, tap in containing.get((row, column), []):
                        index = (*sheet, *place)
                        marks[index] = group_of(index)
                        share = float(self.shares[index][tap])
                        terms.append(Term((share, float(self.upstream[index])), group_of(index)))
                    sums.append(total(at(DX, (*sheet, row, column), self.x.shape), terms))
                self.by_pixel[(*sheet, row)] = [line.value for line in sums]
                focus = {(*sheet, row, column) for column in range(self.x.shape[3])}
                shown = (
                    *panels(DZ, self.upstream, marks),
                    *panels(DX, cropped, strong=focus, sign="→"),
                )
                title = f"The sums of row {row}"
                if self.x.shape[:2] != (1, 1):
                    title += f" of image {sheet[0]}, channel {sheet[1]}"
                text = (
                    "The same numbers, seen from the pixels: one term for each window that "
                    f"contains the pixel, {self.letter} times that window's {DZ}."
                )
                formula = f"{DX}[r, c] = Σ {self.letter}[u, v] · {DZ}[i, j]"
                main = len(steps) == min(1, self.x.shape[2] - 1)  # one of them, not at the border
                steps.append(Step("pixel by pixel", title, text, formula, tuple(sums), shown, main))
        return steps

    def checks(self, size: Any, step: Any, pads: Any) -> tuple[list[Step], bool]:
        padding = pads if isinstance(pads, str) else (pads[:2], pads[2:])
        operation = F.max_pool2d if self.kind == "max" else F.avg_pool2d
        run = partial(operation, pool_size=size, stride=step, padding=padding)
        if self.kind == "max":
            _, indices = F.max_pool2d(self.x, size, step, padding, return_indices=True)
            kernel = F.max_pool2d_backward(self.upstream, indices, self.x.shape)
        else:
            kernel = F.avg_pool2d_backward(self.upstream, self.x.shape, size, step, padding)
        first, right = _check.compare_forward(Z, self.out, run(self.x))
        ours = self.windows.crop(self.gradient)
        second, also = _check.compare_gradient(X, DX, ours, kernel, run, self.x, self.upstream)
        same = np.array_equal(self.by_pixel, ours)  # the same terms in the same order
        return [first, second], right and also and same

    def summary(self, agrees: bool) -> Step:
        text = (
            "Forward: keep the maximum and remember where it stood. Backward: each gradient "
            "returns to that place, and gradients that meet are added."
            if self.kind == "max"
            else "Forward: 1/area of each pixel. Backward: 1/area of each gradient to each pixel "
            "of its window, and gradients that meet are added."
        )
        text += f" {_check.verdict(agrees)}"
        shown = (
            *panels(X, self.x),
            *panels(Z, self.out, sign="→"),
            *panels(DZ, self.upstream, sign="↩"),
            *panels(DX, self.windows.crop(self.gradient), sign="→"),
        )
        return Step(
            "summary",
            "In short",
            text,
            f"{DX}[window] += {self.letter} · {DZ}[i, j]",
            (),
            shown,
            True,
        )
