"""A layer object, and a whole net: each layer's story in turn, tied together by the chain rule.

What one layer's sums give is what the next one takes, forward and backward, so that the chain holds
from the loss to the first weight. Layers without a story of their own are told by their input,
output and gradients.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from cnnx._gradcheck.subject import is_layer
from cnnx.explain import _activation, _arguments, _check, _convolution, _dense, _pooling
from cnnx.explain._steps import Array, Explanation, Step, Sum, Term, group_of, panels, total
from cnnx.layers import AvgPool2D, Conv2D, Dense, MaxPool2D, ReLU, Sequential, Sigmoid, Tanh
from cnnx.layers.base import arrays_of, convert
from cnnx.losses import MSELoss, SoftmaxCrossEntropy

_FORWARD = {"the windows", "the layer", "forward", "activation"}
_ENDS = {"check", "summary"}


def explain_layer(layer: Any, x: Any, grad_out: Any) -> Explanation:
    """One layer, with its own parameters, in float64."""
    if not is_layer(layer):
        raise TypeError(
            f"layer is a {type(layer).__name__}, expected an object with forward and backward"
        )
    params = arrays_of(layer, "params")
    if type(layer) is Conv2D and layer.groups == 1 and layer.padding_mode == "zeros":
        window = (layer.stride, layer.padding, layer.dilation, layer.activation)
        return _convolution.explain(x, params["weight"], params.get("bias"), *window, grad_out)
    if type(layer) is Dense:
        weights = (params["weight"], params.get("bias"))
        return _dense.explain(x, *weights, layer.activation, grad_out)
    if type(layer) is MaxPool2D and not layer.ceil_mode and layer.dilation in (1, (1, 1)):
        return _pooling.explain("max", x, layer.pool_size, layer.stride, layer.padding, grad_out)
    if type(layer) is AvgPool2D and not layer.ceil_mode and layer.count_include_pad:
        return _pooling.explain("avg", x, layer.pool_size, layer.stride, layer.padding, grad_out)
    if isinstance(layer, ReLU | Sigmoid | Tanh):
        return _activation.explain(layer.kind, x, grad_out)
    return _other(layer, x, grad_out)


def _other(layer: Any, x: Any, grad_out: Any) -> Explanation:
    """A layer without a story of its own: what goes in and out, forward and backward."""
    layer = _borrowed(layer)
    x = _arguments.numbers("x", x, (1, 2, 3, 4), "one to four dimensions")
    out = np.array(layer.forward(x.copy()))
    _arguments.require_few("the output", out.shape)
    upstream = _arguments.upstream(grad_out, out.shape)
    grad_x = np.array(layer.backward(upstream.copy()))
    grads = {name: np.array(array) for name, array in arrays_of(layer, "grads").items()}
    name = type(layer).__name__
    moved = out.size == x.size and np.array_equal(out.ravel(), x.ravel())
    text = (
        "The numbers stay as they are; only the shape changes, from "
        f"{x.shape} to {out.shape}. So the gradients only change their shape back."
        if moved
        else f"What goes into {name}, and what comes out."
    )
    forward = (*panels("Z^{l-1}", x), *panels("Z", out, sign="→"))
    back = (*panels("∂L/∂Z", upstream), *panels("∂L/∂Z^{l-1}", grad_x, sign="→"))
    steps = [
        Step("forward", f"{name} forward", text, panels=forward, main=True),
        Step(
            "backward",
            f"{name} backward",
            f"What comes back through {name}.",
            panels=back,
            main=True,
        ),
    ]
    checks, agrees = _checks(layer, x, upstream, lambda out: out, {"x": grad_x, **grads})
    gradients = MappingProxyType({"x": grad_x, **grads})
    return Explanation(name, (*steps, *checks), out, gradients, agrees)


def explain_model(model: Any, x: Any, y: Any, loss: Any) -> Explanation:
    """Every layer forward, the loss, every layer backward."""
    if not is_layer(model):
        raise TypeError(f"model is a {type(model).__name__}, expected a Sequential or a layer")
    net = _borrowed(model)
    layers = list(net.layers) if isinstance(net, Sequential) else [net]
    names = [f"layer {number}, {type(layer).__name__}" for number, layer in enumerate(layers)]
    x = _arguments.numbers("x", x, (1, 2, 3, 4), "a batch, such as (N, C, H, W)")
    inputs = [x]
    for layer, name in zip(layers, names, strict=True):
        with _told(name):
            inputs.append(explain_layer(layer, inputs[-1], None).forward)
    loss_step, upstream, measure = _loss(inputs[-1], y, loss)

    stories: list[Explanation] = []
    gradients = [upstream]
    for layer, value in zip(reversed(layers), reversed(inputs[:-1]), strict=True):
        stories.insert(0, explain_layer(layer, value, gradients[0]))
        gradients.insert(0, stories[0].backward["x"])
    forward, backward = [], []
    for story, name in zip(stories, names, strict=True):
        forward += _chapter(name, [s for s in story.steps if s.part in _FORWARD])
    for story, name in zip(reversed(stories), reversed(names), strict=True):
        backward += _chapter(name, [s for s in story.steps if s.part not in _FORWARD | _ENDS])
    found = {"x": gradients[0]}
    for number, story in enumerate(stories):
        prefix = f"{number}." if isinstance(net, Sequential) else ""
        found |= {f"{prefix}{key}": g for key, g in story.backward.items() if key != "x"}
    checks, agrees = _checks(net, x, upstream, measure, found)
    agrees &= all(story.agrees for story in stories)
    steps = [
        _overview(names, inputs),
        *forward,
        *loss_step,
        *backward,
        _chain(names, gradients, agrees),
        *checks,
    ]
    kinds = ", ".join(type(layer).__name__ for layer in layers)
    return Explanation(f"A net: {kinds}", tuple(steps), inputs[-1], MappingProxyType(found), agrees)


class _told:
    """Says in which layer of a net an error arose."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Put the layer's name before the message."""
        if isinstance(error, ValueError):
            raise ValueError(f"in {self.name}: {error}") from error


def _borrowed(layer: Any) -> Any:
    """A copy to try things with: in float64, and as after training, so that Dropout rests."""
    result = copy.deepcopy(layer)
    for method in ("unfreeze", "eval"):
        if hasattr(result, method):
            getattr(result, method)()
    convert(result, np.dtype(np.float64))
    return result


def _chapter(name: str, steps: list[Step]) -> list[Step]:
    """A layer's steps under its name, with one main step a part: a net has many."""
    seen: set[str] = set()
    chapter = []
    for step in steps:
        main = step.main and step.part not in seen
        seen.add(step.part)
        chapter.append(replace(step, part=f"{name}: {step.part}", main=main))
    return chapter


def _overview(names: list[str], inputs: list[Array]) -> Step:
    shapes = " → ".join(str(value.shape) for value in inputs)
    text = (
        f"The output of each layer is the input of the next: {shapes}. Then the loss makes one "
        "number of the last output, and its gradient goes the same way back."
    )
    shown = [*panels("x", inputs[0])]
    for name, value in zip(names, inputs[1:], strict=True):
        shown += panels(f"after {name.partition(', ')[2]}", value, sign="→")
    return Step(
        "the net", "The way forward", text, "Z^{l} = layer_{l}(Z^{l-1})", (), tuple(shown), True
    )


def _chain(names: list[str], gradients: list[Array], agrees: bool) -> Step:
    text = (
        "Each layer turned ∂L/∂(its output) into ∂L/∂(its input): the chain rule, a layer at a "
        f"time. {_check.verdict(agrees)}"
    )
    shown = [*panels("∂L/∂(output)", gradients[-1])]
    for name, value in zip(reversed(names), reversed(gradients[:-1]), strict=True):
        shown += panels(f"before {name.partition(', ')[2]}", value, sign="→")
    return Step(
        "the chain",
        "The way back",
        text,
        "∂L/∂Z^{l-1} = ∂L/∂Z^{l} · ∂Z^{l}/∂Z^{l-1}",
        (),
        tuple(shown),
        True,
    )


def _loss(pred: Array, y: Any, loss: Any) -> tuple[list[Step], Array, Callable[[Array], Any]]:
    """The loss's step, its gradient, and the function to differentiate numerically."""
    if y is None:
        if loss is not None:
            raise ValueError("y is None, expected a target for the loss")
        return [], _arguments.upstream(None, pred.shape), lambda out: out
    target = np.asarray(y)
    if loss is None:
        loss = (
            SoftmaxCrossEntropy() if target.dtype.kind in "iu" and target.ndim == 1 else MSELoss()
        )
    value = loss.forward(pred, target)
    gradient = np.array(loss.backward())
    name = type(loss).__name__
    text = f"{name} of the batch is L = {value:.4f}. Its gradient is what the last layer gets."
    if type(loss) is SoftmaxCrossEntropy and target.ndim == 1 and loss.label_smoothing == 0:
        step, gradient = _cross_entropy(pred, target, text)
    else:
        shown = (*panels("output", pred), *panels("∂L/∂output", gradient, sign="→"))
        step = Step("loss", name, text, panels=shown, main=True)

    def measure(out: Array) -> Any:
        return loss.forward(out, target)

    return [step], gradient, measure


def _cross_entropy(pred: Array, target: Array, text: str) -> tuple[Step, Array]:
    count, classes = pred.shape
    p = np.empty(pred.shape)
    for n in range(count):
        top = max(map(float, pred[n]))
        powers = [math.exp(float(v) - top) for v in pred[n]]
        p[n] = [power / sum(powers) for power in powers]
    t = np.eye(classes)[target]
    marks = {index: group_of(index) for index in np.ndindex(p.shape)}
    chosen = {(n, int(k)) for n, k in enumerate(target)}
    logs = total(
        "L", (Term((-1 / count, math.log(p[index])), group_of(index)) for index in sorted(chosen))
    )
    sums = [
        Sum(
            f"∂L/∂Z[{n}, {k}]",
            (Term((float(p[n, k]),), marks[n, k]), Term((-float(t[n, k]),))),
            float(p[n, k] - t[n, k]) / count,
            "{}" if count == 1 else f"({{}}) / {count}",
        )
        for n, k in np.ndindex(p.shape)
    ]
    gradient = np.reshape([line.value for line in sums], p.shape)
    shown = (
        *panels("Z, the scores", pred, marks),
        *panels("p = softmax(Z)", p, marks, chosen, sign="→"),
        *panels("t", t, sign="-"),
        *panels("∂L/∂Z", gradient, marks, sign="="),
    )
    formula = "L = -(1/N) Σ_{n} ln p[n, t_{n}],   ∂L/∂Z = (p - t) / N"
    return Step("loss", "SoftmaxCrossEntropy", text, formula, (logs, *sums), shown, True), gradient


def _checks(
    net: Any, x: Array, upstream: Array, measure: Callable[[Array], Any], found: dict[str, Array]
) -> tuple[list[Step], bool]:
    """All gradients of the net beside cnnx's, and beside central differences of the whole."""

    def run(moved: Array) -> Any:
        return measure(net.forward(moved))

    scalar = np.ndim(run(x)) == 0
    weighting = np.ones(()) if scalar else upstream
    net.forward(x)
    kernel = {"x": np.array(net.backward(upstream))}
    kernel |= {name: np.array(grad) for name, grad in arrays_of(net, "grads").items()}
    params, steps, agrees = arrays_of(net, "params"), [], True
    for name, ours in found.items():
        array = x if name == "x" else params[name]
        before = array.copy()

        def f(moved: Array, name: str = name, array: Array = array) -> Any:
            if name == "x":
                return run(moved)
            array[...] = moved
            return run(x)

        step, right = _check.compare_gradient(
            name, f"∂L/∂{name}", ours, kernel[name], f, before, weighting
        )
        array[...] = before
        steps.append(step)
        agrees &= right
    return steps, agrees
