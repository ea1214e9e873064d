"""PyTorch's layers on cnnx's kernels: outputs and gradients are PyTorch's, and so is the rest."""

from __future__ import annotations

import copy
import doctest
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tolerances
from fresh import printed

torch = pytest.importorskip("torch")
nn = torch.nn

import cnnx.torch  # noqa: E402

# Of the largest number, or of 1: float32 may take Winograd's way, and float64 sums a few hundred
# products in another order, each rounded by 1e-16 of the sum so far.
CLOSE = {torch.float32: tolerances.WINOGRAD, torch.float64: 1e-13}

LAYERS: dict[str, Callable[[], Any]] = {
    "conv": lambda: nn.Conv2d(4, 6, 3),
    "conv strided": lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), bias=False),
    "conv same": lambda: nn.Conv2d(4, 6, 4, padding="same", dilation=(1, 2)),
    "conv valid": lambda: nn.Conv2d(4, 6, 3, padding="valid"),
    "conv depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1),
    "conv reflect": lambda: nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="reflect"),
    "conv replicate": lambda: nn.Conv2d(4, 6, 3, padding="same", padding_mode="replicate"),
    "conv circular": lambda: nn.Conv2d(4, 6, 4, padding="same", padding_mode="circular"),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, 2, padding=1, output_padding=(1, 0)),
    "transposed groups": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, dilation=2, bias=False),
    "linear": lambda: nn.Linear(8, 5),
    "linear plain": lambda: nn.Linear(8, 5, bias=False),
    "linear relu": lambda: nn.Sequential(nn.Linear(8, 5), nn.ReLU()),
    "linear sigmoid": lambda: nn.Sequential(nn.Linear(8, 5), nn.Sigmoid()),
    "linear tanh": lambda: nn.Sequential(nn.Linear(8, 5), nn.Tanh()),
    "max": lambda: nn.MaxPool2d(2),
    "max overlapping": lambda: nn.MaxPool2d((3, 2), stride=(1, 2), padding=1, ceil_mode=True),
    "max dilated": lambda: nn.MaxPool2d(3, stride=2, dilation=2),
    "average": lambda: nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True),
    "average inside": lambda: nn.AvgPool2d((3, 2), padding=(1, 0), count_include_pad=False),
    "global average": lambda: nn.AdaptiveAvgPool2d(1),
    "adaptive average": lambda: nn.AdaptiveAvgPool2d((3, None)),
    "adaptive max": lambda: nn.AdaptiveMaxPool2d((None, 2)),
    "norm": lambda: nn.BatchNorm2d(4),
    "norm eval": lambda: nn.BatchNorm2d(4).eval(),
    "norm plain": lambda: nn.BatchNorm2d(4, affine=False, momentum=None),
    "norm untracked": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "norm untracked eval": lambda: nn.BatchNorm2d(4, track_running_stats=False).eval(),
    "conv relu": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(inplace=True)),
    "conv sigmoid": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.Sigmoid()),
    "conv tanh": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.Tanh()),
    "norm relu": lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()),
    "norm relu6": lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ReLU6(inplace=True)),
    "norm relu eval": lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()).eval(),
}
OURS = tuple(
    f"{name}Backward"
    for name in ("Conv2d", "ConvTranspose2d", "Linear", "MaxPool2d", "AvgPool2d", "BatchNorm2d")
)


def is_ours(out: Any) -> bool:
    """Whether a result came from cnnx: PyTorch's own nodes have other names."""
    node = out.grad_fn
    if "Unflatten" in node.name() or "View" in node.name():  # rows back into a table
        node = node.next_functions[0][0]
    return node.name() in OURS


def pair(make: Callable[[], Any], dtype: Any = torch.float64) -> tuple[Any, Any]:
    """A converted layer, and a copy that is PyTorch's."""
    torch.manual_seed(0)
    layer = make().to(dtype)
    with torch.no_grad():  # away from the ones and zeros that normalisation begins with
        for parameter in layer.parameters():
            parameter.uniform_(-1, 1)
    twin = copy.deepcopy(layer)
    return cnnx.torch.convert(layer), twin


def images(*shape: int, dtype: Any = torch.float64) -> Any:
    return torch.randn(*(shape or (3, 4, 6, 8)), dtype=dtype, requires_grad=True)


def close(mine: Any, theirs: Any) -> None:
    atol = CLOSE.get(theirs.dtype, 0) * max(1.0, float(theirs.detach().abs().max()))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=atol)


def same_step(layer: Any, twin: Any, x: Any, upstream: Any = None) -> Any:
    """Compare outputs, gradients and buffers of one forward and backward; return the output."""
    results = []
    for net in (layer, twin):
        net.zero_grad()
        leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        out = net(leaf)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
        out.backward(weights if upstream is None else upstream(out))
        results.append((out, leaf.grad, [p.grad for p in net.parameters()], list(net.buffers())))
    for mine, theirs in zip(results[0][:2], results[1][:2], strict=True):
        close(mine, theirs)
    for mine, theirs in zip(
        results[0][2] + results[0][3], results[1][2] + results[1][3], strict=True
    ):
        close(mine, theirs)
    return results[0][0]


# What PyTorch says of itself, or of its own use of itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]

# ---------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_same_outputs_and_gradients(name: str, dtype: Any) -> None:
    layer, twin = pair(LAYERS[name], dtype)
    for _ in range(3):  # the running statistics move three times
        out = same_step(layer, twin, images(dtype=dtype))
        assert is_ours(out)


@pytest.mark.parametrize("name", LAYERS)
def test_gradcheck(name: str) -> None:
    layer, _ = pair(LAYERS[name])
    x = images(1, 4, 6, 8)
    parameters = dict(layer.named_parameters())

    def call(x: Any, *values: Any) -> Any:
        state = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(layer, state, (x,))

    assert is_ours(call(x, *parameters.values()))
    assert torch.autograd.gradcheck(call, (x, *parameters.values()))


@pytest.mark.parametrize("name", ["conv", "linear relu", "max overlapping", "average", "norm relu"])
@pytest.mark.parametrize("layout", ["channels_last", "strided", "upstream"])
def test_any_layout(name: str, layout: str) -> None:
    layer, twin = pair(LAYERS[name])
    x = images(3, 4, 6, 8)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        x = images(3, 4, 12, 8)[:, :, ::2]
    upstream = None
    if layout == "upstream":
        upstream = torch.linspace(-1, 1, 4, dtype=x.dtype)[:1, None, None, None].expand_as
    assert is_ours(same_step(layer, twin, x, upstream))


def test_a_net_learns_the_same() -> None:
    """Ten steps of SGD by an optimizer made before the net was converted."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 3),
    ).double()  # fmt: skip
    twin = copy.deepcopy(net)
    x, y = torch.randn(10, 4, 2, 12, 12, dtype=torch.float64), torch.randint(0, 3, (10, 4))
    for model in (net, twin):
        optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
        if model is net:
            cnnx.torch.convert(net)
        for batch, labels in zip(x, y, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch), labels).backward()
            optimizer.step()
    for mine, theirs in zip(net.state_dict().items(), twin.state_dict().items(), strict=True):
        assert mine[0] == theirs[0]
        torch.testing.assert_close(mine[1], theirs[1], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("shape", [(7, 8), (2, 3, 8), (2, 1, 3, 2, 8)])
def test_linear_shapes(shape: tuple[int, ...]) -> None:
    layer, twin = pair(LAYERS["linear"])
    assert is_ours(same_step(layer, twin, images(*shape)))


@pytest.mark.parametrize("make", [nn.MaxPool2d, nn.AdaptiveMaxPool2d])
def test_indices(make: Any) -> None:
    layer, twin = pair(lambda: make(2, return_indices=True))
    x = images()
    mine, theirs = layer(x), twin(x)
    assert torch.equal(mine[0], theirs[0]) and torch.equal(mine[1], theirs[1])
    assert is_ours(mine[0]) and not mine[1].requires_grad
    close(*(torch.autograd.grad(out.square().sum(), x)[0] for out in (mine[0], theirs[0])))


@pytest.mark.parametrize("momentum", [None, 0.0, 0.3, 1.0])
def test_running_statistics(momentum: float | None) -> None:
    layer, twin = pair(lambda: nn.BatchNorm2d(4, momentum=momentum))
    for size in (1, 5, 2):
        with torch.no_grad():
            x = 3 + 2 * torch.randn(size, 4, 3, 5, dtype=torch.float64)
            close(layer(x), twin(x))
        for mine, theirs in zip(layer.buffers(), twin.buffers(), strict=True):
            close(mine, theirs)
    with torch.no_grad():
        close(layer.eval()(x), twin.eval()(x))


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_only_what_is_wanted(needs: tuple[bool, bool]) -> None:
    for name in ("conv relu", "norm", "transposed", "linear tanh"):
        layer, twin = pair(LAYERS[name])
        layer.requires_grad_(needs[1])
        x = images().requires_grad_(needs[0])
        layer(x).sum().backward()
        assert (x.grad is not None) == needs[0]
        assert all((p.grad is not None) == needs[1] for p in layer.parameters())
        twin(y := x.detach().requires_grad_()).sum().backward()
        if needs[0]:
            close(x.grad, y.grad)


# ---------------------------------------------------------------------------- memory


def test_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    from cnnx.torch import _functions

    layer, x, seen = cnnx.torch.convert(nn.Conv2d(4, 6, 3)), images(dtype=torch.float32), []
    forward = _functions._conv.forward

    def watched(*args: Any) -> Any:
        out = forward(*args)
        seen.extend(array.ctypes.data for array in (*args[:3], out))
        return out

    monkeypatch.setattr(_functions._conv, "forward", watched)
    out = layer(x)
    assert seen == [t.data_ptr() for t in (x, layer.weight, layer.bias, out)]


def test_results_own_their_memory() -> None:
    """Recycled buffers serve nobody else while a tensor, or a view of it, lives."""
    layer = cnnx.torch.convert(nn.AvgPool2d(1))
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    view = layer(x)[0, 0, 2:4]
    expected = view.clone()
    for number in range(50):
        layer(torch.full_like(x, number))
    assert torch.equal(view, expected)


def test_changed_in_place_is_noticed() -> None:
    for name in ("conv", "norm", "linear"):
        layer, _ = pair(LAYERS[name])
        x = images().detach().clone()
        out = layer(x)
        x.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()
    layer, _ = pair(LAYERS["conv relu"])
    out = layer(images())
    out.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", LAYERS)
def test_without_gradients(name: str, mode: Any) -> None:
    layer, twin = pair(LAYERS[name])
    with mode():
        x = images()
        out = layer(x)
        assert not out.requires_grad
        close(out, twin(x))


@pytest.mark.parametrize("name", ["conv relu", "linear", "max", "average", "norm"])
def test_second_derivatives_raise(name: str) -> None:
    layer, _ = pair(LAYERS[name])
    x, upstream = images(), torch.ones((), dtype=torch.float64, requires_grad=True)
    out = layer(x)
    (grad,) = torch.autograd.grad(out, x, upstream.expand_as(out), create_graph=True)
    for by in [upstream, *([x] if name in ("conv relu", "norm") else [])]:
        with pytest.raises(RuntimeError, match=r"first derivatives only.*revert"):
            torch.autograd.grad(grad.square().sum(), by, retain_graph=True, allow_unused=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.gradgradcheck(layer, x)


# ---------------------------------------------------------------------------- a module as before


def test_module_is_the_same() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2))
    before = list(net.named_parameters()), list(net.state_dict()), repr(net), [*map(type, net)]
    assert cnnx.torch.convert(net) is net
    after = list(net.named_parameters()), list(net.state_dict()), repr(net), [*map(type, net)]
    assert all(a is b for (_, a), (_, b) in zip(before[0], after[0], strict=True))
    assert before[1:] == after[1:]
    net.load_state_dict(nn.Sequential(*map(copy.deepcopy, net)).state_dict())


def test_there_and_back() -> None:
    net, twin = pair(lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AvgPool2d(2)))
    x = images(2, 1, 8, 8)
    assert is_ours(net(x)) and is_ours(cnnx.torch.convert(net)(x))
    out = cnnx.torch.revert(net)(x)
    assert not is_ours(out) and torch.equal(out, twin(x))
    assert all(vars(a).keys() == vars(b).keys() for a, b in zip(net.modules(), twin.modules()))  # noqa: B905
    assert cnnx.torch.revert(net) is net


@pytest.mark.parametrize("again", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies(again: Callable[[Any], Any]) -> None:
    net, _ = pair(
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.BatchNorm2d(2), nn.ReLU()))
    )
    x = images(2, 1, 6, 6)
    other = again(net)
    expected = net(x)
    assert torch.equal(other(x), expected) and is_ours(other(x))
    with torch.no_grad():
        net[0].weight.zero_()
    assert torch.equal(other(x), expected)  # and not by the first net's weights


def test_hooks_are_called() -> None:
    net, twin = pair(lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()))
    x = images(2, 1, 6, 6)
    seen: list[Any] = []
    handle = net[0].register_forward_hook(lambda module, args, out: seen.append(out))
    out = net(x)
    assert len(seen) == 1 and seen[0].min() < 0  # what comes out of the convolution alone
    close(out, twin(x))
    handle.remove()
    net[1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net(x)
    assert len(seen) == 2 and seen[1].min() < 0
    assert net[0](x).min() < 0  # called alone a layer has nothing behind it


def test_a_layer_in_two_places() -> None:
    relu = nn.ReLU()
    net, twin = pair(lambda: nn.Sequential(nn.Conv2d(4, 4, 1), relu, nn.Tanh(), relu, relu))
    same_step(net, twin, images())


def test_weights_from_elsewhere() -> None:
    def make() -> Any:
        return torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3))

    layer, twin = pair(make)
    assert is_ours(same_step(layer, twin, images()))
    lazy = cnnx.torch.convert(nn.LazyConv2d(2, 3))
    assert is_ours(lazy(images(1, 3, 5, 5, dtype=torch.float32)))


def test_other_forwards_are_left_alone() -> None:
    class Scaled(nn.Conv2d):  # type: ignore[misc, name-defined]
        def forward(self, input: Any) -> Any:
            return 2 * super().forward(input)

    class Shifted(nn.Conv2d):  # type: ignore[misc, name-defined]
        def _conv_forward(self, input: Any, weight: Any, bias: Any) -> Any:
            return 1 + super()._conv_forward(input, weight, bias)

    for kind in (Scaled, Shifted):
        layer, twin = pair(lambda kind=kind: kind(4, 2, 3))
        x = images()
        assert "forward" not in vars(layer) and torch.equal(layer(x), twin(x))


class Plain(nn.Conv2d):  # type: ignore[misc, name-defined]
    """A convolution by another name."""


def test_subclasses_that_compute_the_same() -> None:
    layer, twin = pair(lambda: Plain(4, 2, 3))
    assert is_ours(same_step(layer, twin, images()))


# ---------------------------------------------------------------------------- PyTorch's own


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda: nn.Conv2d(4, 2, 3), torch.randn(4, 6, 6)),
        (lambda: nn.Conv2d(4, 2, 3), torch.randn(0, 4, 6, 6)),
        (lambda: nn.Conv2d(4, 2, 3).bfloat16(), torch.randn(1, 4, 6, 6).bfloat16()),
        (lambda: nn.Conv2d(4, 2, 3).to("meta"), torch.randn(1, 4, 6, 6, device="meta")),
        (lambda: nn.Conv2d(4, 2, 3, dtype=torch.complex64), torch.randn(1, 4, 6, 6) + 0j),
        (lambda: nn.Linear(4, 2), torch.randn(4)),
        (lambda: nn.Linear(4, 2), torch.randn(0, 4)),
        (lambda: nn.MaxPool2d(2), torch.randn(4, 6, 6)),
        (lambda: nn.AvgPool2d(2, divisor_override=3), torch.randn(1, 4, 6, 6)),
        (lambda: nn.AdaptiveAvgPool2d(4), torch.randn(1, 4, 6, 6)),
        (lambda: nn.AdaptiveMaxPool2d(7), torch.randn(1, 4, 6, 6)),
        (lambda: nn.BatchNorm2d(4).bfloat16(), torch.randn(2, 4, 6, 6).bfloat16()),
    ],
)  # fmt: skip
def test_what_cnnx_has_not(make: Callable[[], Any], x: Any) -> None:
    torch.manual_seed(0)
    layer = make()
    twin = copy.deepcopy(layer)
    cnnx.torch.convert(layer)
    mine, theirs = layer(x), twin(x)
    assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
    if mine.device.type != "meta":
        assert torch.equal(mine, theirs)


def test_output_size() -> None:
    layer, twin = pair(lambda: nn.ConvTranspose2d(4, 6, 3, 2))
    x = images()
    assert torch.equal(layer(x, output_size=(14, 18)), twin(x, output_size=(14, 18)))


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda: nn.Conv2d(4, 2, 3), torch.ones(1, 3, 6, 6)),
        (lambda: nn.Conv2d(4, 2, 3), torch.ones(1, 4, 2, 6)),
        (lambda: nn.Conv2d(4, 2, 3), torch.ones(1, 4, 6, 6).double()),
        (lambda: nn.Conv2d(4, 2, 3), torch.ones(1, 4, 6, 6).int()),
        (lambda: nn.Conv2d(4, 2, 3, padding=7, padding_mode="reflect"), torch.ones(1, 4, 6, 6)),
        (lambda: nn.Conv2d(4, 2, 3), torch.ones(6)),
        (lambda: nn.Conv2d(4, 2, 3), [1.0]),
        (lambda: nn.Linear(6, 2), torch.ones(2, 3, 4)),
        (lambda: nn.Linear(6, 2), torch.ones(2, 4)),
        (lambda: nn.MaxPool2d(3, padding=2), torch.ones(1, 4, 6, 6)),
        (lambda: nn.MaxPool2d(9), torch.ones(1, 4, 6, 6)),
        (lambda: nn.AvgPool2d(3, padding=2), torch.ones(1, 4, 6, 6)),
        (lambda: nn.BatchNorm2d(4), torch.ones(1, 4, 1, 1)),
        (lambda: nn.BatchNorm2d(4), torch.ones(2, 3, 5, 5)),
        (lambda: nn.BatchNorm2d(4), torch.ones(2, 4, 5)),
    ],
)  # fmt: skip
def test_errors_are_pytorchs(make: Callable[[], Any], x: Any) -> None:
    twin, layer = make(), cnnx.torch.convert(make())
    with pytest.raises((RuntimeError, ValueError, TypeError)) as theirs:
        twin(x)
    with pytest.raises(theirs.type) as mine:
        layer(x)
    assert str(mine.value) == str(theirs.value)
    tracked = [getattr(net, "num_batches_tracked", None) for net in (layer, twin)]
    assert tracked[0] == tracked[1]


def test_autocast() -> None:
    layer, twin = pair(LAYERS["conv relu"], torch.float32)
    x = images(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mine, theirs = layer(x), twin(x)
    assert mine.dtype is torch.bfloat16 and torch.equal(mine, theirs)


def test_vmap_and_func() -> None:
    layer, twin = pair(LAYERS["conv relu"])
    x = images().detach()
    close(*(torch.vmap(lambda image, f=net: f(image[None])[0])(x) for net in (layer, twin)))
    hessians = [
        torch.func.hessian(lambda x, f=net: f(x).square().sum())(x[:1]) for net in (layer, twin)
    ]
    close(*hessians)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # PyTorch's own use
def test_forward_mode_is_pytorchs() -> None:
    ad, x = torch.autograd.forward_ad, images().detach()
    tangents = []
    for net in pair(LAYERS["conv relu"]):
        with ad.dual_level():
            dual = ad.make_dual(x, torch.ones_like(x))
            tangents.append(ad.unpack_dual(net(dual)).tangent)
    close(*tangents)


def test_traced_is_pytorchs() -> None:
    layer, twin = pair(LAYERS["norm relu eval"])
    x = images().detach()
    close(torch.jit.trace(layer, x)(x), twin(x))
    if torch.__version__.startswith("2.4."):  # whose export knows no partial functions
        cnnx.torch.revert(layer)
    exported = torch.export.export(layer, (x,))
    close(exported.module()(x), twin(x))
    assert "batch_norm" in str(exported.graph)


def test_compiled_is_pytorchs() -> None:
    layer, twin = pair(LAYERS["conv relu"])
    x = images()
    out = torch.compile(layer, backend="eager", fullgraph=True)(x)
    assert torch.equal(out, twin(x))


# ---------------------------------------------------------------------------- the page


def test_page() -> None:
    """The examples of docs/pytorch.md, one after the other."""
    page = Path(__file__).parents[1] / "docs" / "pytorch.md"
    if not page.exists():
        pytest.skip("docs are not here")
    blocks = re.findall(r"(?ms)^```pycon\n(.*?)^```$", page.read_text("utf-8"))
    text = "\n".join(blocks)
    test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(test) == (0, len(test.examples)) and len(test.examples) > 15


# ---------------------------------------------------------------------------- processes


def test_counted_operations_are_pytorchs() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for net in pair(LAYERS["conv relu"]):
        with FlopCounterMode(display=False) as counter:
            net(images()).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_data_loader(tmp_path: Path) -> None:
    # In a process of its own, where no other library's threads are; in a file, for workers that are
    # not forked.
    (tmp_path / "loading.py").write_text("""
import torch, cnnx.torch
from torch import nn

class Filtered(torch.utils.data.Dataset):
    # Images that a converted net has been over, in the process that loads them.
    def __init__(self):
        self.net = cnnx.torch.convert(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2)))
        self.images = torch.randn(12, 1, 40, 40)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, number):
        with torch.no_grad():
            return self.net(self.images[number][None])[0]

def main():
    data = Filtered()
    expected = torch.stack([data[number] for number in range(len(data))])  # threads are started
    head = cnnx.torch.convert(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
    batches = []
    for batch in torch.utils.data.DataLoader(data, batch_size=4, num_workers=2):
        head(batch).sum().backward()
        batches.append(batch)
    print(torch.equal(torch.cat(batches), expected))
""")
    assert printed("import loading; loading.main()", tmp_path) == "True"


def test_import_without_torch(tmp_path: Path) -> None:
    code = """
import sys
import cnnx.torch
assert "torch" not in sys.modules
sys.modules["torch"] = None
try:
    cnnx.torch.convert(1)
except ImportError as error:
    print(error)
"""
    assert "pip install 'cnnx[torch]'" in printed(code, tmp_path)


@pytest.mark.parametrize("value", [3, nn.Conv2d, lambda x: x])
@pytest.mark.parametrize("function", [cnnx.torch.convert, cnnx.torch.revert])
def test_no_module(function: Callable[[Any], Any], value: object) -> None:
    with pytest.raises(TypeError, match=r"module is .*, expected a torch\.nn\.Module"):
        function(value)
