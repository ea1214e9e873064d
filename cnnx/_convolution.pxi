"""Convolution: the choice between its algorithms, packed weights that may be kept, and its three gradients.

Included by ``_kernels.pyx``, whose loop, memory and kernel table it uses.
"""

cdef cnnx_shared winograd_on = True


def set_winograd(bint on):
    """Allow Winograd's algorithm, or not; the answer is what held before."""
    global winograd_on
    cdef bint before = winograd_on
    winograd_on = on
    return before


cdef enum:
    BY_SHAPE
    WINOGRAD
    DEPTHWISE
    LANES
    DIRECT
    BROADCAST
    GEMM

ALGORITHMS = ("by shape", "winograd", "depthwise", "lanes", "direct", "broadcast", "gemm")

cdef cnnx_shared wanted = BY_SHAPE, ran = BY_SHAPE


def use_algorithm(name):
    """Take one of ALGORITHMS for convolutions, and return the name of the one before.

    A problem that it refuses goes to "gemm", which is always right: `last_algorithm` says what ran. For
    tests and benchmarks, while no other thread computes.
    """
    global wanted
    before = ALGORITHMS[wanted]
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm is {name!r}, expected one of {ALGORITHMS}")
    wanted = ALGORITHMS.index(name)
    return before


def last_algorithm():
    """Name of the algorithm that the last convolution, or gradient of one, ran by."""
    return ALGORITHMS[ran]


cdef inline bint may(int algorithm, bint pays) noexcept:
    return pays if wanted == BY_SHAPE else wanted == algorithm


cdef bint winograd_pays(const cnnx_kernels *k, const cnnx_conv *p) noexcept:
    """The choice between Winograd and the direct sums, by shape: `python -m benchmarks.choices`.

    The transforms of the pixels are shared by the channels, those of the weights by the pixels: at 12 panels
    of output and input channels and 24 pixels both take the same time, on AVX2 and on AVX-512. What is no 3x3
    kernel of stride 1, the plan weighs itself.
    """
    return (winograd_on and p.C >= 4 and p.M >= 4 and p.C * p.M >= 12 * k.mr
            and p.N * p.rows * p.cols >= 24)


cdef bint chooses_winograd(const cnnx_kernels *k, cnnx_conv *p, int threads) noexcept:
    return (may(WINOGRAD, winograd_pays(k, p)) and k.winograd_plan != NULL
            and k.winograd_plan(p, threads, wanted == WINOGRAD))


cdef bint winograd_weight_pays(const cnnx_kernels *k, const cnnx_conv *p) noexcept:
    """The same for the weight gradient, whose lanes are input channels and which has 36 sums for each 9."""
    return winograd_on and 2 * p.C >= 3 * k.mr and p.M >= 4 and p.N * p.rows * p.cols >= 48


cdef bint direct_pays(const cnnx_kernels *k, const cnnx_conv *p) noexcept:
    """The choice between the direct path and the implicit matrix product, by shape.

    Few output channels do not repay the packing of pixels. The direct path asks for as much again to take the
    phases of strided rows apart, leaves its vectors half empty on rows shorter than 12, and with many input
    channels its copy leaves the first level.
    """
    if p.M <= 4 or p.taps == 1:
        return p.taps > 1
    return p.cols >= 12 and (p.C * p.taps <= 32 or p.C <= 64 and p.M * p.sw <= k.mr)


cdef bint broadcast_pays(const cnnx_kernels *k, const cnnx_conv *p) noexcept:
    """The choice between output channels in the lanes and the implicit matrix product, by shape.

    The product takes the phases of strided rows apart, a tenth to a third of its time. The other one loses as
    much where its panels of channels or its tiles of at least 8 columns are not full.
    """
    return (p.sw > 1 and p.C * p.taps >= 16 and p.cols >= 7
            and 10 * ((p.M + k.nr - 1) // k.nr * k.nr) <= 11 * p.M)


@cython.final
cdef class _Prepared:
    """Packed weights that a frozen layer keeps, and what they were packed for.

    The key is the whole planned problem, sizes, blocks and the weight's address, so that any other problem
    or plan finds its weights packed anew. Whoever keeps the object promises that the weight does not change.
    """
    cdef const cnnx_kernels *kernels
    cdef cnnx_task pack
    cdef cnnx_conv key
    cdef _Block packed
    cdef object weight  # alive, so that no other array comes to lie at its address

    def __reduce__(self):
        return _Prepared, ()  # a copy packs for itself


cdef _Block packed_weights(const cnnx_kernels *k, cnnx_task pack, cnnx_conv *p, int threads,
                           _Prepared kept, weight):
    cdef cnnx_conv key = p[0]
    cdef _Block packed
    key.x = key.bias = key.y = key.packed = key.dh = key.dw = key.w_tap = NULL
    if kept is not None:
        with cython.critical_section(kept):  # without a GIL another thread may be changing it
            if (kept.packed is not None and kept.kernels == k and kept.pack == pack
                    and memcmp(&kept.key, &key, sizeof(cnnx_conv)) == 0):
                return kept.packed
    packed = take(<size_t>p.packed_size * (8 if k == tables[1] else 4))
    p.packed = packed.data
    if p.packed_size:
        run(pack, p, p.groups * p.panels, 0, min(threads, threads_for(MOVE * p.packed_size)))
    if kept is not None:
        with cython.critical_section(kept):
            kept.kernels, kept.pack, kept.key, kept.packed, kept.weight = k, pack, key, packed, weight
    return packed


cdef int run_conv(const cnnx_kernels *k, cnnx_conv *p, _Prepared kept, weight) except -1:
    global ran
    cdef _Block packed
    # Depthwise, a multiplication takes three times as long as elsewhere.
    cdef int64_t cost = 3 if p.C == p.M == 1 else 1
    cdef int threads = threads_for(cost * p.N * p.groups * p.M * p.C * p.taps * p.rows * p.cols)
    cdef cnnx_task pack = k.pack_weights, task
    if chooses_winograd(k, p, threads):
        ran, pack, task = WINOGRAD, k.winograd_weights, k.winograd
    elif may(DEPTHWISE, True) and k.depthwise_plan != NULL and k.depthwise_plan(p):
        ran, task = DEPTHWISE, k.depthwise
    elif may(DIRECT, direct_pays(k, p)) and k.direct_plan(p):
        ran, task = DIRECT, k.direct
    elif (may(BROADCAST, broadcast_pays(k, p)) and k.broadcast_plan != NULL
            and k.broadcast_plan(p, threads)):
        ran, pack, task = BROADCAST, k.broadcast_weights, k.broadcast
    else:
        ran, task = GEMM, k.conv
        k.conv_plan(p, threads)
    packed = packed_weights(k, pack, p, threads, kept, weight)
    p.packed = packed.data
    run(task, p, p.tasks, p.scratch, threads)
    return 0


cdef void describe(cnnx_conv *p, cnp.ndarray x, cnp.ndarray y, int64_t groups,
                   int64_t *taps, int64_t KH, int64_t KW, tuple stride, tuple pads, tuple dilation) except *:
    """Sizes and taps of the forward convolution from x to y; `taps` has room for 3*KH*KW numbers."""
    cdef int64_t kh, kw, t = 0, n = KH * KW
    cdef int64_t dil_h = dilation[0], dil_w = dilation[1], top = pads[0], left = pads[2]
    p.N, p.H, p.W = x.shape[0], x.shape[2], x.shape[3]
    p.groups, p.C, p.M = groups, x.shape[1] // groups, y.shape[1] // groups
    p.rows = p.YH = y.shape[2]
    p.cols = p.YW = y.shape[3]
    p.oy = p.ox = 0
    p.ty = p.tx = 1
    p.sh, p.sw = stride
    p.taps, p.split, p.pairs = n, 0, 0
    p.dh, p.dw, p.w_tap = taps, taps + n, taps + 2 * n
    for kh in range(KH):
        for kw in range(KW):
            taps[t] = kh * dil_h - top
            taps[n + t] = kw * dil_w - left
            taps[2 * n + t] = t
            t += 1


def conv2d(cnp.ndarray x, cnp.ndarray weight, bias, tuple stride, tuple pads, tuple dilation,
           int64_t groups, activation, cnp.ndarray out, _Prepared prepared=None):
    """Fill `out` with act(conv(x, weight) + bias); the packed weights stay in `prepared`."""
    cdef int64_t KH = weight.shape[2], KW = weight.shape[3]
    cdef cnnx_conv p
    memset(&p, 0, sizeof(cnnx_conv))  # keys are compared whole
    cdef _Block taps = take(3 * KH * KW * sizeof(int64_t))
    describe(&p, x, out, groups, <int64_t *>taps.data, KH, KW, stride, pads, dilation)
    p.x, p.weight, p.bias = cnp.PyArray_DATA(x), cnp.PyArray_DATA(weight), data_or_null(bias)
    p.y = cnp.PyArray_DATA(out)
    p.w_in = KH * KW
    p.w_out = p.C * p.w_in
    p.w_group = p.M * p.w_out
    p.activation = ACTIVATIONS[activation]
    run_conv(table(x), &p, prepared, weight)


def prepared():
    """Return an object for `conv2d` to keep packed weights in, from one call to the next."""
    return _Prepared()


cdef void describe_phase(cnnx_conv *p, int64_t *taps, int64_t KH, int64_t KW, tuple pads, tuple dilation,
                         int64_t ph, int64_t pw, bint pairs) except *:
    """Phase (ph, pw) of an input gradient; with `pairs`, that of the next column too."""
    cdef int64_t top = pads[0], left = pads[2], dil_h = dilation[0], dil_w = dilation[1]
    cdef int64_t column, kh, kw, t = 0, n = KH * KW
    p.oy, p.ox, p.pairs = ph, pw, pairs
    for column in range(pw, pw + 1 + pairs):
        p.split = t
        for kh in range(KH):
            if (ph + top - kh * dil_h) % p.ty:
                continue
            for kw in range(KW):
                if (column + left - kw * dil_w) % p.tx == 0:
                    taps[t] = (ph + top - kh * dil_h) // p.ty
                    taps[n + t] = (column + left - kw * dil_w) // p.tx
                    taps[2 * n + t] = kh * KW + kw
                    t += 1
    p.dh, p.dw, p.w_tap, p.taps = taps, taps + n, taps + 2 * n, t
    p.rows, p.cols = (p.YH - ph + p.ty - 1) // p.ty, (p.YW - pw + p.tx - 1) // p.tx


def conv2d_grad_input(cnp.ndarray grad_out, cnp.ndarray weight, bias, tuple stride, tuple pads,
                      tuple dilation, int64_t groups, cnp.ndarray grad_x):
    """Fill `grad_x` with the convolution's input gradient, plus `bias` (a transposed convolution's).

    Pixels of one phase (row and column modulo the stride) meet the same taps of the kernel, so each
    phase is a convolution of stride 1 over the output's gradient.
    """
    global ran
    cdef int64_t KH = weight.shape[2], KW = weight.shape[3], n = KH * KW
    cdef int64_t sh = stride[0], sw = stride[1], top = pads[0], left = pads[2]
    cdef int64_t H = grad_x.shape[2], W = grad_x.shape[3], ph, pw
    cdef cnnx_conv p
    cdef _Block memory = take(3 * n * sizeof(int64_t))
    cdef int64_t *taps = <int64_t *>memory.data
    cdef const cnnx_kernels *k = table(grad_x)
    describe(&p, grad_x, grad_out, groups, taps, KH, KW, stride, pads, dilation)
    p.x, p.weight = cnp.PyArray_DATA(grad_out), cnp.PyArray_DATA(weight)
    p.bias, p.y, p.activation = data_or_null(bias), cnp.PyArray_DATA(grad_x), CNNX_NONE
    if may(DEPTHWISE, True) and k.depthwise_grad_plan != NULL and k.depthwise_grad_plan(&p):
        ran = DEPTHWISE
        run(k.depthwise_grad, &p, p.tasks, p.scratch, threads_for(p.N * groups * n * p.rows * p.cols))
        return
    p.H, p.W, p.C, p.M = grad_out.shape[2], grad_out.shape[3], p.M, p.C
    p.YH, p.YW, p.ty, p.tx = H, W, sh, sw
    p.sh = p.sw = 1
    p.w_out = n
    p.w_in = p.M * n
    p.w_group = p.C * p.w_in
    # Two phases of columns side by side fill whole rows. Winograd takes each alone, if it takes the largest.
    if sw == 2 and W > 1:
        describe_phase(&p, taps, KH, KW, pads, dilation, (sh - top % sh) % sh, (sw - left % sw) % sw, False)
        p.pairs = not (sh <= H and chooses_winograd(k, &p, _threads.get_num_threads()))
    for ph in range(min(sh, H)):
        PyErr_CheckSignals()  # a wide stride has many small phases, none of which looks for itself
        for pw in range(1 if p.pairs else min(sw, W)):
            describe_phase(&p, taps, KH, KW, pads, dilation, ph, pw, p.pairs)
            run_conv(k, &p, None, weight)


def conv2d_grad_weight(cnp.ndarray grad_out, cnp.ndarray x, tuple stride, tuple pads, tuple dilation,
                       int64_t groups, cnp.ndarray grad_weight):
    """Fill `grad_weight` with the convolution's weight gradient."""
    global ran
    cdef int64_t KH = grad_weight.shape[2], KW = grad_weight.shape[3]
    cdef const cnnx_kernels *k = table(x)
    cdef cnnx_conv_weight w
    cdef _Block taps = take(3 * KH * KW * sizeof(int64_t)), partial
    cdef int threads
    cdef cnnx_task task, add = k.conv_weight_sum
    describe(&w.conv, x, grad_out, groups, <int64_t *>taps.data, KH, KW, stride, pads, dilation)
    w.conv.x, w.conv.y = cnp.PyArray_DATA(x), cnp.PyArray_DATA(grad_out)
    w.grad = cnp.PyArray_DATA(grad_weight)
    threads = threads_for(
        w.conv.N * w.conv.rows * w.conv.cols * w.conv.groups * w.conv.M * w.conv.C * KH * KW
    )
    if (may(WINOGRAD, winograd_weight_pays(k, &w.conv)) and k.winograd_weight_plan != NULL
            and k.winograd_weight_plan(&w, wanted == WINOGRAD)):
        ran, task, add = WINOGRAD, k.winograd_weight, k.winograd_weight_sum
    elif may(DEPTHWISE, True) and k.depthwise_weight_plan != NULL and k.depthwise_weight_plan(&w):
        ran, task = DEPTHWISE, k.depthwise_weight
    elif may(LANES, True) and k.lanes_weight_plan(&w, wanted == LANES):
        ran, task = LANES, k.lanes_weight
    elif may(DIRECT, w.conv.C == 1 and w.conv.M <= 4) and k.direct_weight_plan(&w):
        ran, task = DIRECT, k.direct_weight
    else:
        ran, task = GEMM, k.conv_weight
        k.conv_weight_plan(&w)
    if w.pieces > 1:
        if task != k.winograd_weight:
            w.partial_size = <size_t>(w.pieces * groups * w.conv.M * w.conv.depth) * cnp.PyArray_ITEMSIZE(x)
        partial = take(w.partial_size)
        w.partial = partial.data
    run(task, &w, w.tasks, w.scratch, threads)
    if w.pieces > 1:
        run(add, &w, groups * w.conv.M, 0, threads)


def conv2d_grad_bias(cnp.ndarray grad_out, cnp.ndarray grad_bias):
    """Fill `grad_bias` with the sum of `grad_out` over N, H and W."""
    cdef cnnx_norm p
    p.grad, p.y = cnp.PyArray_DATA(grad_out), cnp.PyArray_DATA(grad_bias)
    p.N, p.C, p.area = grad_out.shape[0], grad_out.shape[1], grad_out.shape[2] * grad_out.shape[3]
    p.pieces = 1
    cdef int64_t tasks = p.C if p.area > 1 else (p.C + CNNX_COLUMNS - 1) // CNNX_COLUMNS
    run(table(grad_out).conv_bias, &p, tasks, 0, threads_for(MOVE * p.N * p.C * p.area))
