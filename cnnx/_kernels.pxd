"""What the kernels in C offer to ``_kernels``: the problems, and the table of one instruction set.

``_csrc/kernels.h`` says what each field means.
"""

from libc.stdint cimport int64_t, uint64_t


cdef extern from "_csrc/kernels.h" nogil:
    ctypedef void (*cnnx_task)(const void *problem, int64_t task, void *scratch) noexcept nogil

    enum:
        CNNX_NONE
        CNNX_RELU
        CNNX_SIGMOID
        CNNX_TANH
        CNNX_LEAKY_RELU
        CNNX_RELU6
        CNNX_GELU
        CNNX_SILU
        CNNX_HARD_SWISH
        CNNX_RELU1
        CNNX_CHUNK
        CNNX_COLUMNS

    ctypedef struct cnnx_conv:
        const void *x
        const void *weight
        const void *bias
        void *y
        void *packed
        int64_t N, groups, M, C, H, W, rows, cols, sh, sw, YH, YW, oy, ox, ty, tx, taps, split
        int pairs
        const int64_t *dh
        const int64_t *dw
        const int64_t *w_tap
        int64_t w_group, w_out, w_in
        int activation
        int64_t pixels, depth, panels, packed_size, tasks
        size_t scratch

    ctypedef struct cnnx_conv_weight:
        cnnx_conv conv
        void *grad
        void *partial
        int64_t pieces, tasks
        size_t scratch
        size_t partial_size

    ctypedef struct cnnx_matmul:
        const void *a
        const void *b
        const void *bias
        void *out
        int64_t M, N, K, a_row, a_col, b_row, b_col
        int activation
        int64_t tasks
        size_t scratch

    ctypedef struct cnnx_pool:
        const void *x
        void *y
        int64_t *indices
        int64_t planes, H, W, rows, cols, kh, kw, sh, sw, dh, dw, top, bottom, left, right
        int count_include_pad
        int64_t *bad
        int64_t tasks
        size_t scratch

    ctypedef struct cnnx_elementwise:
        const void *x
        const void *other
        void *y
        int64_t n
        int kind, from_output
        double alpha

    ctypedef struct cnnx_softmax:
        const void *x
        const void *grad
        void *y
        int64_t rows, classes
        int log
        const int64_t *labels
        double *loss
        double smoothing

    ctypedef struct cnnx_optim:
        void *param
        void *velocity
        void *mean
        void *square
        const void *grad
        int64_t n
        double lr, decay, momentum, beta1, beta2, eps, shrink, root
        int nesterov

    ctypedef struct cnnx_norm:
        const void *x
        const void *grad
        const void *weight
        const void *bias
        void *mean
        void *var
        void *y
        void *grad_weight
        void *grad_bias
        int64_t N, C, area
        double eps
        int batch_stats, activation
        double *sums
        int64_t pieces, tasks

    ctypedef struct cnnx_kernels:
        const char *isa
        int mr, nr, kc
        void (*conv_plan)(cnnx_conv *, int) noexcept
        void (*conv_weight_plan)(cnnx_conv_weight *) noexcept
        void (*matmul_plan)(cnnx_matmul *, int) noexcept
        void (*pool_plan)(cnnx_pool *, int) noexcept
        void (*pool_grad_plan)(cnnx_pool *, int) noexcept
        int (*winograd_plan)(cnnx_conv *, int, int) noexcept
        cnnx_task winograd_weights, winograd
        int (*winograd_weight_plan)(cnnx_conv_weight *, int) noexcept
        cnnx_task winograd_weight, winograd_weight_sum
        int (*depthwise_plan)(cnnx_conv *) noexcept
        cnnx_task depthwise
        int (*depthwise_grad_plan)(cnnx_conv *) noexcept
        cnnx_task depthwise_grad
        int (*depthwise_weight_plan)(cnnx_conv_weight *) noexcept
        cnnx_task depthwise_weight
        int (*broadcast_plan)(cnnx_conv *, int) noexcept
        cnnx_task broadcast_weights, broadcast
        int (*direct_plan)(cnnx_conv *) noexcept
        int (*direct_weight_plan)(cnnx_conv_weight *) noexcept
        int (*lanes_weight_plan)(cnnx_conv_weight *, int) noexcept
        cnnx_task direct, direct_weight, lanes_weight
        cnnx_task pack_weights, conv, conv_weight, conv_weight_sum, conv_bias, matmul
        cnnx_task max_pool, max_pool_backward, avg_pool, avg_pool_backward
        cnnx_task activation, activation_backward, add
        cnnx_task softmax, softmax_backward, cross_entropy, sgd, adam
        void (*norm_plan)(cnnx_norm *) noexcept
        cnnx_task norm_sums, norm, norm_backward_sums, norm_backward

    ctypedef struct cnnx_pool_stats:
        size_t in_use, cached, peak, limit
        uint64_t hits, misses

    int cnnx_isa_count()
    const char *cnnx_isa_name(int)
    int cnnx_isa_supported(int)
    const cnnx_kernels *cnnx_isa_kernels(int, int)
    void *cnnx_take(size_t)
    void cnnx_give(void *)
    void cnnx_pool_empty()
    cnnx_pool_stats cnnx_pool_read()


cdef extern from "_csrc/watch.h" nogil:
    ctypedef struct cnnx_watch:
        int on, exact, stopped
        int64_t step
        double asked
    ctypedef struct cnnx_watching:
        pass
    cnnx_watching cnnx_enter(cnnx_watch *watch, int own)
    void cnnx_leave(cnnx_watching before)
    int64_t cnnx_look(cnnx_watch *watch)

cdef extern from "_csrc/team.h" nogil:
    int cnnx_team(int wanted)
