"""The operations as plain functions, each with its ``_backward``.

Every ``_backward`` takes ``grad_out``, the gradient of the loss with respect to the output, and
then what the forward pass took (pooling: what its gradient depends on). It returns the gradients in
the order of the forward's arguments. The functions check their arguments, allocate the results, and
leave the work to a backend; nothing is kept from one call to the next.

Arrays are (N, C, H, W), float32 or float64. Whatever their layout in memory, the answer is right;
C-contiguous arrays are not copied. Other libraries' arrays on the CPU, all that have
``__dlpack__``, are taken where they lie like NumPy's. Results are NumPy's, which have it too.
"""

from cnnx.functional._activation import (
    gelu,
    gelu_backward,
    leaky_relu,
    leaky_relu_backward,
    relu,
    relu6,
    relu6_backward,
    relu_backward,
    sigmoid,
    sigmoid_backward,
    silu,
    silu_backward,
    tanh,
    tanh_backward,
)
from cnnx.functional._classroom import conv_backward, conv_forward
from cnnx.functional._conv import (
    conv2d,
    conv2d_backward,
    conv_transpose2d,
    conv_transpose2d_backward,
)
from cnnx.functional._linear import linear, linear_backward
from cnnx.functional._norm import batch_norm2d, batch_norm2d_backward
from cnnx.functional._pool import (
    avg_pool2d,
    avg_pool2d_backward,
    global_avg_pool2d,
    global_avg_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
)
from cnnx.functional._softmax import (
    log_softmax,
    log_softmax_backward,
    softmax,
    softmax_backward,
)

__all__ = [
    "conv2d",
    "conv2d_backward",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "global_avg_pool2d",
    "global_avg_pool2d_backward",
    "linear",
    "linear_backward",
    "relu",
    "relu_backward",
    "leaky_relu",
    "leaky_relu_backward",
    "relu6",
    "relu6_backward",
    "sigmoid",
    "sigmoid_backward",
    "tanh",
    "tanh_backward",
    "gelu",
    "gelu_backward",
    "silu",
    "silu_backward",
    "softmax",
    "softmax_backward",
    "log_softmax",
    "log_softmax_backward",
    "batch_norm2d",
    "batch_norm2d_backward",
    "conv_forward",
    "conv_backward",
]
