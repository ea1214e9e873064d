"""Types of the compiled backend. Contracts: ``_fallback`` (NumPy) and ``_csrc/kernels.h`` (C)."""

from typing import Any

from numpy.typing import NDArray

_Array = NDArray[Any]
_Pair = tuple[int, int]
_Pads = tuple[int, int, int, int]

def available_isas() -> list[str]: ...
def isa() -> str: ...
def use_isa(name: str) -> str: ...
def set_winograd(on: bool) -> bool: ...

ALGORITHMS: tuple[str, ...]

def use_algorithm(name: str) -> str: ...
def last_algorithm() -> str: ...
def build_info() -> dict[str, Any]: ...
def memory_stats() -> dict[str, int]: ...
def empty_cache() -> None: ...
def empty(shape: tuple[int, ...], dtype: object) -> _Array: ...
def conv2d(
    x: _Array,
    weight: _Array,
    bias: _Array | None,
    stride: _Pair,
    pads: _Pads,
    dilation: _Pair,
    groups: int,
    activation: str | None,
    out: _Array,
    prepared: Any = None,
) -> None: ...
def prepared() -> Any: ...
def conv2d_grad_input(
    grad_out: _Array,
    weight: _Array,
    bias: _Array | None,
    stride: _Pair,
    pads: _Pads,
    dilation: _Pair,
    groups: int,
    grad_x: _Array,
) -> None: ...
def conv2d_grad_weight(
    grad_out: _Array,
    x: _Array,
    stride: _Pair,
    pads: _Pads,
    dilation: _Pair,
    groups: int,
    grad_weight: _Array,
) -> None: ...
def conv2d_grad_bias(grad_out: _Array, grad_bias: _Array) -> None: ...
def matmul(
    a: _Array, b: _Array, bias: _Array | None, activation: str | None, out: _Array
) -> None: ...
def max_pool2d(
    x: _Array,
    pool_size: _Pair,
    stride: _Pair,
    pads: _Pads,
    dilation: _Pair,
    out: _Array,
    indices: _Array | None,
) -> None: ...
def max_pool2d_backward(grad_out: _Array, indices: _Array, grad_x: _Array) -> int: ...
def avg_pool2d(
    x: _Array,
    pool_size: _Pair,
    stride: _Pair,
    pads: _Pads,
    count_include_pad: bool,
    out: _Array,
) -> None: ...
def avg_pool2d_backward(
    grad_out: _Array,
    pool_size: _Pair,
    stride: _Pair,
    pads: _Pads,
    count_include_pad: bool,
    grad_x: _Array,
) -> None: ...
def activation(x: _Array, kind: str, alpha: float, out: _Array) -> None: ...
def activation_backward(
    grad_out: _Array, x: _Array, kind: str, alpha: float, grad_x: _Array
) -> None: ...
def activation_backward_from_output(
    grad_out: _Array, y: _Array, kind: str, grad_x: _Array
) -> None: ...
def add(x: _Array, other: _Array, activation: str | None, out: _Array) -> None: ...
def softmax(x: _Array, log: bool, out: _Array) -> None: ...
def softmax_backward(grad_out: _Array, y: _Array, log: bool, grad_x: _Array) -> None: ...
def cross_entropy(
    x: _Array, target: _Array, smoothing: float, loss: _Array, grad_x: _Array
) -> int: ...
def batch_norm2d_stats(x: _Array, mean: _Array, var: _Array) -> None: ...
def batch_norm2d(
    x: _Array,
    weight: _Array | None,
    bias: _Array | None,
    mean: _Array,
    var: _Array,
    eps: float,
    batch_stats: bool,
    activation: str | None,
    out: _Array,
) -> None: ...
def batch_norm2d_backward(
    grad_out: _Array,
    x: _Array,
    weight: _Array | None,
    bias: _Array | None,
    mean: _Array,
    var: _Array,
    eps: float,
    batch_stats: bool,
    activation: str | None,
    grad_x: _Array,
    grad_weight: _Array,
    grad_bias: _Array,
) -> None: ...
def sgd(
    param: _Array,
    grad: _Array,
    velocity: _Array | None,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None: ...
def adam(
    param: _Array,
    grad: _Array,
    mean: _Array,
    square: _Array,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    step: int,
) -> None: ...
