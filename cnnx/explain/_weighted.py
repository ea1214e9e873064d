"""Weighted sums, Z = Σ W · Z^{l-1} + b: what convolution and Dense have in common.

Both are a list of links: this output is made of that input times that weight. Read by output the
list gives the forward pass, read by weight ∂L/∂W, read by input ∂L/∂Z^{l-1}. That is the whole of
backpropagation through them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cnnx.explain import _activation, _check
from cnnx.explain._steps import Array, Cell, Panel, Step, Sum, Term, at, group_of, panels, total

X, Z, DX, DW, DB, DZ = "Z^{l-1}", "Z", "∂L/∂Z^{l-1}", "∂L/∂W", "∂L/∂b", "∂L/∂Z"
Index = tuple[int, ...]


@dataclass(frozen=True)
class Link:
    """One product: the output it goes into, its weight, and its input (in the padded array)."""

    out: Index
    weight: Index
    source: Index


@dataclass(frozen=True)
class Formulas:
    """The formulas in the operation's own indices; the bias is a summand of the first."""

    forward: str
    summand: str
    weight: str
    bias: str
    source: str


@dataclass(frozen=True)
class Kernels:
    """The same call by cnnx: forward of (x, weight, bias), and backward of ∂L/∂Z."""

    run: Callable[[Array, Array, Array | None], Array]
    back: Callable[[Array], tuple[Array | None, ...]]


@dataclass
class WeightedSum:
    """The numbers of one call, and the steps that compute them.

    `x` is the padded input, `faint` its padding, which `crop` cuts off. Axis 1 of the output is the
    one along which the bias counts.
    """

    x: Array
    weight: Array
    bias: Array | None
    links: Sequence[Link]
    formulas: Formulas
    faint: set[Cell]
    crop: Callable[[Array], Array]
    out_shape: Index
    activation: str | None
    upstream: Array
    origin: Cell = (0, 0)  # of the image in the padded array
    by_out: dict[Index, list[Link]] = field(default_factory=dict)
    by_weight: dict[Index, list[Link]] = field(default_factory=dict)
    by_source: dict[Index, list[Link]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Sort the links three ways, and make room for the results."""
        for link in self.links:
            self.by_out.setdefault(link.out, []).append(link)
            self.by_weight.setdefault(link.weight, []).append(link)
            self.by_source.setdefault(link.source, []).append(link)
        self.z = np.full(self.out_shape, np.nan)
        self.grad_weight = np.full(self.weight.shape, np.nan)
        self.grad_padded = np.full(self.x.shape, np.nan)
        self.grad_bias = None if self.bias is None else np.full(self.bias.shape, np.nan)

    def forward(self) -> list[Step]:
        """One step for each output."""
        steps: list[Step] = []
        for out, links in self.by_out.items():
            group, name = group_of(out), at(Z, out, self.out_shape)
            terms = [Term((self._x(link), self._w(link)), group) for link in links]
            if self.bias is not None:
                terms.append(Term((float(self.bias[out[1]]),)))
            line = total(name, terms)
            self.z[out] = line.value
            plus, formula = "", self.formulas.forward
            if self.bias is not None:
                plus, formula = " Last comes the bias.", f"{formula} + {self.formulas.summand}"
            text = f"Multiply each input by the weight that lies over it, and add up.{plus}"
            shown = (
                *panels(X, self.x, {link.source: group for link in links}, (), self.faint),
                *panels("W", self.weight, {link.weight: group for link in links}, sign="⊙"),
                *self._bias_panels(out[1], group),
                *panels(Z, self.z, {out: group}, {out}, sign="→"),
            )
            main = len(steps) < 2
            steps.append(Step("forward", name, text, formula, (line,), shown, main))
        self.out, more = _activation.forward(self.activation, self.z)
        return [*steps, *more]

    def backward(self) -> list[Step]:
        """The activation, then the weights, the bias and the inputs, a step for each."""
        self.dz, steps = _activation.backward(self.activation, self.z, self.out, self.upstream)
        return [*steps, *self._weights(), *self._biases(), *self._sources()]

    def _weights(self) -> list[Step]:
        steps: list[Step] = []
        for weight, links in self.by_weight.items():
            name, symbol = at(DW, weight, self.weight.shape), at("W", weight, self.weight.shape)
            marks = {link.out: group_of(link.out) for link in links}
            line = total(name, (Term((self._x(k), self._dz(k)), marks[k.out]) for k in links))
            self.grad_weight[weight] = line.value
            text = (
                "To find the derivative with respect to something, find where its information is "
                f"contained. {symbol} took part in {_count(len(links), 'output')}, times the input "
                "of the same colour."
            )
            touched = {link.source: marks[link.out] for link in links}
            shown = (
                *panels(X, self.x, touched, (), self.faint),
                *panels(DZ, self.dz, marks, sign="⊙"),
                *panels(DW, self.grad_weight, strong={weight}, sign="→"),
            )
            steps.append(Step(DW, name, text, self.formulas.weight, (line,), shown, not steps))
        return steps

    def _biases(self) -> list[Step]:
        if self.bias is None or self.grad_bias is None:
            return []
        steps: list[Step] = []
        for f in range(len(self.bias)):
            outs = [out for out in self.by_out if out[1] == f]
            marks = {out: group_of(out) for out in outs}
            name = f"{DB}[{f}]"
            line = total(name, (Term((float(self.dz[out]),), marks[out]) for out in outs))
            self.grad_bias[f] = line.value
            images = (
                ", over all pixels and all images of the batch"
                if len(self.out_shape) == 4
                else ", over the batch"
            )
            text = (
                f"b[{f}] was added to {_count(len(outs), 'output')}, so its derivative is the sum "
                f"of their gradients{images}."
            )
            shown = (
                *panels(DZ, self.dz, marks),
                *panels(DB, self.grad_bias, strong={(f,)}, sign="→"),
            )
            steps.append(Step(DB, name, text, self.formulas.bias, (line,), shown, f == 0))
        return steps

    def _sources(self) -> list[Step]:
        steps: list[Step] = []
        most = max(map(len, self.by_source.values()))
        met = False
        for source in np.ndindex(self.x.shape):
            links = self.by_source.get(source, [])
            name = self._source_name(source)
            marks = {link.out: group_of(link.out) for link in links}
            line = total(name, (Term((self._w(k), self._dz(k)), marks[k.out]) for k in links))
            self.grad_padded[source] = line.value
            if self._is_padding(source):
                continue
            main, met = len(links) == most and not met, met or len(links) == most
            steps.append(self._source(source, name, links, marks, line, main))
        return [*steps, *self._cropping()]

    def _source(
        self,
        source: Index,
        name: str,
        links: list[Link],
        marks: dict[Index, int],
        line: Sum,
        main: bool,
    ) -> Step:
        if links:
            text = (
                f"This input is contained in {_count(len(links), 'output')}. Each gives its "
                "gradient times the weight that lay over the input there."
            )
        else:
            text = "No window touched this input: nothing depends on it, and its derivative is 0."
        shown: tuple[Panel, ...] = (
            *panels(X, self.x, strong={source}, faint=self.faint),
            *panels("W", self.weight, {k.weight: marks[k.out] for k in links}),
            *panels(DZ, self.dz, marks, sign="⊙"),
            *panels(DX, self._known_gradient(), {}, {source}, self.faint, sign="→"),
        )
        return Step(DX, name, text, self.formulas.source, (line,), shown, main)

    def _known_gradient(self) -> Array:
        """The gradient so far, without the padding's, which a later step shows."""
        result = self.grad_padded.copy()
        for cell in self.faint:
            result[(..., *cell)] = np.nan
        return result

    def _cropping(self) -> list[Step]:
        if not self.faint:
            return []
        text = (
            "The zeros of the padding took part too, so a loop over the windows adds something to "
            "them. They are no inputs: cut them off, and the gradient has the shape of the input."
        )
        shown = (
            *panels(f"{DX}_pad", self.grad_padded, faint=self.faint),
            *panels(DX, self.grad_x, sign="→"),
        )
        formula = f"{DX}[r, c] = {DX}_pad[r + {self.origin[0]}, c + {self.origin[1]}]"
        return [Step(DX, "Crop the padding", text, formula, (), shown, True)]

    def checks(self, x: Array, kernels: Kernels) -> tuple[list[Step], bool]:
        """The sums beside cnnx's results and the numerical gradients."""
        w, b, run = self.weight, self.bias, kernels.run
        step, agrees = _check.compare_forward("A" if self.activation else Z, self.out, run(x, w, b))
        steps = [step]
        trials: list[tuple[str, str, Array | None, Any, Array | None]] = [
            ("W", DW, self.grad_weight, lambda moved: run(x, moved, b), w),
            ("b", DB, self.grad_bias, lambda moved: run(x, w, moved), b),
            (X, DX, self.grad_x, lambda moved: run(moved, w, b), x),
        ]
        grad_z = _activation.kernel_backward(self.activation, self.z, self.upstream)
        grad_x, grad_w, grad_b = kernels.back(grad_z)
        for (name, symbol, ours, f, where), kernel in zip(
            trials, (grad_w, grad_b, grad_x), strict=True
        ):
            if ours is None or kernel is None or where is None:
                continue  # there is no bias
            step, right = _check.compare_gradient(
                name, symbol, ours, kernel, f, where, self.upstream
            )
            steps.append(step)
            agrees &= right
        return steps, agrees

    @property
    def gradients(self) -> dict[str, Array]:
        """All gradients by name."""
        both = {"x": self.grad_x, "weight": self.grad_weight}
        return both if self.grad_bias is None else {**both, "bias": self.grad_bias}

    def summary(self, agrees: bool) -> Step:
        """The whole call on one page."""
        text = (
            "Forward: multiply and add. Backward: every product gives its gradient to both of its "
            "factors, times the other one; what meets is added."
        )
        text += f" {_check.verdict(agrees)}"
        bias = () if self.grad_bias is None else panels(DB, self.grad_bias)
        shown = (
            *panels(Z if self.activation is None else "A", self.out),
            *panels(DZ, self.dz),
            *panels(DW, self.grad_weight),
            *bias,
            *panels(DX, self.grad_x),
        )
        formula = "    ".join((self.formulas.weight, self.formulas.source))
        return Step("summary", "In short", text, formula, (), shown, True)

    @property
    def grad_x(self) -> Array:
        """The gradient of the input, without padding."""
        return self.crop(self.grad_padded)

    def _bias_panels(self, f: int, group: int) -> tuple[Panel, ...]:
        return () if self.bias is None else panels("b", self.bias, {(f,): group}, sign="+")

    def _is_padding(self, source: Index) -> bool:
        return len(source) == 4 and (source[2], source[3]) in self.faint

    def _source_name(self, source: Index) -> str:
        if len(source) == 4:
            source = (*source[:2], source[2] - self.origin[0], source[3] - self.origin[1])
        return at(DX, source, self.x.shape)

    def _x(self, link: Link) -> float:
        return float(self.x[link.source])

    def _w(self, link: Link) -> float:
        return float(self.weight[link.weight])

    def _dz(self, link: Link) -> float:
        return float(self.dz[link.out])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
