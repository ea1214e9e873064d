"""PyTorch's own test inputs for the operations that cnnx has too, and the calls PyTorch refuses.

``op_db`` is PyTorch's table of operations, each with samples and with wrong calls (it needs
``expecttest``). Every sample gives the same output and the same gradients here, or is refused with
a ValueError or TypeError for a reason listed below; every call that PyTorch refuses is refused.
Where cnnx defines more than PyTorch, such as padding of more than half a pooling window, ``op_db``
has no wrong call.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import numpy as np
import pytest
import tolerances

torch = pytest.importorskip("torch")

from cnnx import functional as F  # noqa: E402

profile = hypothesis.settings.get_current_profile_name()
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, of its own modules
        OP_DB = pytest.importorskip(
            "torch.testing._internal.common_methods_invocations",
            reason="PyTorch's table of operations cannot be imported (it needs expecttest)",
            exc_type=ImportError,
        ).op_db
finally:
    hypothesis.settings.load_profile(profile)  # PyTorch's tests load one of their own

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch's, of its own samples

# As in test_torch: float32 may take Winograd's way, float64 sums in another order.
CLOSE = {torch.float32: tolerances.WINOGRAD, torch.float64: 1e-13}

Result = tuple[Any, Callable[[Any], Any]]  # outputs, and gradients of an upstream gradient


# ---------------------------------------------------------------------------- the same by cnnx


def conv2d(x: Any, weight: Any, bias: Any = None, **options: Any) -> Result:
    out = F.conv2d(x, weight, bias, **options)
    return out, lambda g: F.conv2d_backward(g, x, weight, **options)


def conv_transpose2d(x: Any, weight: Any, bias: Any = None, **options: Any) -> Result:
    out = F.conv_transpose2d(x, weight, bias, **options)
    return out, lambda g: F.conv_transpose2d_backward(g, x, weight, **options)


def max_pool2d(x: Any, kernel_size: Any, return_indices: bool = False, **options: Any) -> Result:
    out, indices = F.max_pool2d(x, kernel_size, return_indices=True, **options)
    outputs = (out, indices) if return_indices else out
    return outputs, lambda g: (F.max_pool2d_backward(g, indices, x.shape),)


def avg_pool2d(
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> Result:
    window = (kernel_size, None if stride == () else stride, padding, ceil_mode, count_include_pad)
    extra = {} if divisor_override is None else {"divisor_override": divisor_override}
    out = F.avg_pool2d(x, *window, **extra)
    return out, lambda g: (F.avg_pool2d_backward(g, x.shape, *window),)


def global_avg_pool2d(x: Any, output_size: int) -> Result:
    out = F.global_avg_pool2d(x)[:, :, None, None]
    return out, lambda g: (F.global_avg_pool2d_backward(g[:, :, 0, 0], x.shape),)


def batch_norm(
    x: Any, mean: Any, var: Any, weight: Any = None, bias: Any = None, **options: Any
) -> Result:
    options.pop("momentum", None)  # of the running statistics, which are the layer's
    if options.pop("training", False):
        mean = var = None
    out = F.batch_norm2d(x, weight, bias, mean, var, **options)

    def backward(g: Any) -> Any:
        grad_x, grad_weight, grad_bias = F.batch_norm2d_backward(g, x, weight, mean, var, **options)
        return grad_x, None, None, grad_weight, grad_bias

    return out, backward


def linear(x: Any, weight: Any, bias: Any = None) -> Result:
    out = F.linear(x, weight.T, bias)

    def backward(g: Any) -> Any:
        grad_x, grad_weight, grad_bias = F.linear_backward(g, x, weight.T)
        return grad_x, None if grad_weight is None else grad_weight.T, grad_bias

    return out, backward


def mm(x: Any, weight: Any) -> Result:
    return F.linear(x, weight), lambda g: F.linear_backward(g, x, weight)


def softmax(x: Any, axis: int, dtype: Any = None) -> Result:
    return F.softmax(x, axis), lambda g: (F.softmax_backward(g, x, axis),)


def log_softmax(x: Any, axis: int, dtype: Any = None) -> Result:
    return F.log_softmax(x, axis), lambda g: (F.log_softmax_backward(g, x, axis),)


def elementwise(name: str) -> Callable[..., Result]:
    forward, backward = getattr(F, name), getattr(F, f"{name}_backward")
    return lambda x: (forward(x), lambda g: (backward(g, x),))


# ---------------------------------------------------------------------------- what it refuses


def not_4d(x: Any, *args: Any, **kwargs: Any) -> str | None:
    return None if x.ndim == 4 else "a single image without a batch, or no images"


def not_rows(x: Any, *args: Any, **kwargs: Any) -> str | None:
    return None if x.ndim == 2 else "one row, or a batch of tables: reshape to (N, in)"


def own_divisor(x: Any, *args: Any, **kwargs: Any) -> str | None:
    divisor = args[5] if len(args) > 5 else kwargs.get("divisor_override")
    return not_4d(x) or (None if divisor is None else "a divisor of one's own, which cnnx has not")


def empty(x: Any, *args: Any, **kwargs: Any) -> str | None:
    return "a size of zero that is not the batch's" if 0 in x.shape[1:] else None


def no_class(x: Any, *args: Any, **kwargs: Any) -> str | None:
    return empty(x) or (None if x.ndim else "a single number, which has no axis of classes")


def no_sum(x: Any, weight: Any) -> str | None:
    return "a sum of no products" if 0 in weight.shape else None


# By the name in op_db: the call, what is refused and why, and how many samples must be compared,
# so that the test cannot pass by refusing all of them.
OPERATIONS: dict[str, tuple[Callable[..., Result], Callable[..., str | None], int]] = {
    "nn.functional.conv2d": (conv2d, not_4d, 15),
    "nn.functional.conv_transpose2d": (conv_transpose2d, not_4d, 6),
    "nn.functional.max_pool2d": (max_pool2d, not_4d, 500),
    "nn.functional.avg_pool2d": (avg_pool2d, own_divisor, 7),
    "nn.functional.adaptive_avg_pool2d": (global_avg_pool2d, not_4d, 5),
    "nn.functional.batch_norm": (batch_norm, not_4d, 2),
    "nn.functional.linear": (linear, not_rows, 8),
    "mm": (mm, no_sum, 2),
    "nn.functional.relu": (elementwise("relu"), empty, 4),
    "nn.functional.relu6": (elementwise("relu6"), empty, 2),
    "nn.functional.silu": (elementwise("silu"), empty, 2),
    "sigmoid": (elementwise("sigmoid"), empty, 2),
    "tanh": (elementwise("tanh"), empty, 1),
    "softmax": (softmax, no_class, 5),
    "log_softmax": (log_softmax, no_class, 5),
}


def operation(name: str) -> Any:
    return next(op for op in OP_DB if op.name == name)


def samples(op: Any, dtype: Any) -> Iterator[Any]:
    """PyTorch's samples, and those with an option that cnnx has not once more without it."""
    for sample in op.sample_inputs("cpu", dtype, requires_grad=True):
        if op.name.endswith("adaptive_avg_pool2d"):
            sample.args = (1,)
        yield sample
        if op.name.endswith(".avg_pool2d") and own_divisor(sample.input, *sample.args):
            sample.args = sample.args[:5]
            yield sample


def plain(value: Any) -> Any:
    """An argument for cnnx: an array for a tensor, a number for a tuple of one."""
    if isinstance(value, torch.Tensor):
        return value.detach().numpy().copy()
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def call(function: Callable[..., Result], sample: Any) -> Result:
    arguments = map(plain, (sample.input, *sample.args))
    return function(*arguments, **{name: plain(value) for name, value in sample.kwargs.items()})


def close(mine: Any, theirs: Any) -> None:
    theirs = theirs.detach()
    atol = CLOSE.get(theirs.dtype, 0) * max(1.0, float(theirs.abs().max()) if theirs.numel() else 0)
    torch.testing.assert_close(torch.from_numpy(np.asarray(mine)), theirs, rtol=0, atol=atol)


def compare(op: Any, function: Callable[..., Result], sample: Any) -> None:
    outputs, backward = call(function, sample)
    leaves = [
        value.detach().clone().requires_grad_(value.requires_grad)
        if isinstance(value, torch.Tensor)
        else value
        for value in (sample.input, *sample.args)
    ]
    expected = op(*leaves, **sample.kwargs)
    if isinstance(expected, tuple):
        assert np.array_equal(outputs[1], expected[1].numpy())
        outputs, expected = outputs[0], expected[0]
    close(outputs, expected)
    upstream = torch.linspace(-1, 1, expected.numel(), dtype=expected.dtype).reshape(expected.shape)
    wanted = [n for n, leaf in enumerate(leaves) if getattr(leaf, "requires_grad", False)]
    grads = torch.autograd.grad(expected, [leaves[n] for n in wanted], upstream)
    mine = backward(upstream.numpy())
    for n, grad in zip(wanted, grads, strict=True):
        close(mine[n], grad)


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("compiled", torch.float32), ("compiled", torch.float64), ("numpy", torch.float64)],
    indirect=["backend"],
    ids=str,
)
@pytest.mark.parametrize("name", OPERATIONS)
def test_samples(name: str, dtype: Any, backend: str) -> None:
    function, why_not, least = OPERATIONS[name]
    op, compared = operation(name), 0
    for sample in samples(op, dtype):
        if why_not(sample.input, *sample.args, **sample.kwargs):
            with pytest.raises((ValueError, TypeError)):
                call(function, sample)
        else:
            compare(op, function, sample)
            compared += 1
    assert compared >= least


def wrong_calls(op: Any) -> Iterator[Any]:
    """PyTorch's wrong calls; of those with one image also the same of a batch.

    Else it would be the missing batch that is refused here.
    """
    for error in op.error_inputs("cpu"):
        yield error.sample_input
        if op.name.endswith("pool2d") and error.sample_input.input.ndim == 3:
            yield type(error.sample_input)(
                torch.ones(1, 1, 49, 49),
                args=error.sample_input.args,
                kwargs=error.sample_input.kwargs,
            )


def refuses(function: Callable[[], Any]) -> bool:
    try:
        function()
    except (RuntimeError, ValueError, TypeError):
        return True
    return False


@pytest.mark.parametrize("name", ["conv2d", "max_pool2d", "avg_pool2d"])
def test_wrong_calls(name: str) -> None:
    function, op, refused = (
        OPERATIONS[f"nn.functional.{name}"][0],
        operation(f"nn.functional.{name}"),
        0,
    )
    for sample in wrong_calls(op):
        if refuses(lambda sample=sample: op(sample.input, *sample.args, **sample.kwargs)):
            with pytest.raises((ValueError, TypeError)):
                call(function, sample)
            refused += 1
    assert refused >= 5


def test_all_wrong_calls_are_tried() -> None:
    """The others have none, or, as the adaptive mean, of what cnnx has no argument for."""
    with_calls = {name for name in OPERATIONS if operation(name).error_inputs_func is not None}
    assert with_calls == {
        f"nn.functional.{name}"
        for name in ("conv2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d")
    }
