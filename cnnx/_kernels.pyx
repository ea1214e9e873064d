# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=True, embedsignature.format=python
"""The compiled backend: the boundary between NumPy arrays and the kernels in C, and every thread.

Each function fills in a *problem* (a C struct, see ``_csrc/kernels.h``), lets the kernel table of the
chosen instruction set cut it into tasks, and runs the tasks in :func:`run`, the only parallel loop
of the package. Names, arguments and defaults are those of ``_fallback``; ``functional`` has checked
the arguments.
"""

import os
import threading

from cnnx import _threads

cimport cython
cimport numpy as cnp
from cpython.pythread cimport PyThread_get_thread_ident
from cython.parallel cimport prange
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.string cimport memcmp, memset

cnp.import_array()


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

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    static const int cnnx_openmp = _OPENMP;
    static int cnnx_openmp_threads(void) { return omp_get_max_threads(); }
    #else
    static const int cnnx_openmp = 0;
    static int cnnx_openmp_threads(void) { return 1; }
    #endif
    #ifndef CNNX_FLAGS
    #define CNNX_FLAGS "unknown"
    #endif
    #if defined(__clang__)
    #define CNNX_COMPILER __VERSION__
    #elif defined(__GNUC__)
    #define CNNX_COMPILER "gcc " __VERSION__
    #elif defined(_MSC_VER)
    #define CNNX_TEXT(x) #x
    #define CNNX_TEXT_OF(x) CNNX_TEXT(x)
    #define CNNX_COMPILER "MSVC " CNNX_TEXT_OF(_MSC_VER)
    #else
    #define CNNX_COMPILER "unknown"
    #endif
    #if defined(_MSC_VER) && !defined(__clang__)
    #include <intrin.h>
    static int64_t cnnx_add(int64_t *counter, int64_t n) { return _InterlockedExchangeAdd64(counter, n); }
    #else
    static int64_t cnnx_add(int64_t *counter, int64_t n)
    {
        return __atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
    }
    #endif
    """
    const int cnnx_openmp
    int cnnx_openmp_threads()
    const char *CNNX_COMPILER
    const char *CNNX_FLAGS
    int64_t cnnx_add(int64_t *counter, int64_t n) nogil

cdef extern from "_csrc/watch.h" nogil:
    ctypedef struct cnnx_watch:
        int on, stopped
        int64_t step
        double asked
    ctypedef struct cnnx_watching:
        pass
    cnnx_watching cnnx_enter(cnnx_watch *watch, int own)
    void cnnx_leave(cnnx_watching before)
    int64_t cnnx_look(cnnx_watch *watch)

cdef extern from "_csrc/team.h" nogil:
    int cnnx_team(int wanted)


# ---------------------------------------------------------------- instruction sets

cdef const cnnx_kernels *tables[2]
cdef str chosen = ""


def available_isas():
    """Names of the instruction sets that this CPU can run, from the plainest to the widest."""
    return [cnnx_isa_name(i).decode() for i in range(cnnx_isa_count()) if cnnx_isa_supported(i)]


def isa():
    """Name of the instruction set whose kernels run now."""
    return tables[0].isa.decode()


def use_isa(name):
    """Take the kernels of instruction set `name` and return the name of the one before.

    For tests and benchmarks, while no other thread computes.
    """
    global chosen
    cdef int i
    before = chosen
    for i in range(cnnx_isa_count()):
        if cnnx_isa_name(i).decode() == name and cnnx_isa_supported(i):
            tables[0] = cnnx_isa_kernels(i, 0)
            tables[1] = cnnx_isa_kernels(i, 1)
            chosen = name
            return before
    raise ValueError(f"instruction set is {name!r}, expected one of {available_isas()}")


def tile(dtype):
    """Register tile (MR output channels, NR pixels) of the present kernels for `dtype`."""
    cdef const cnnx_kernels *k = tables[dtype == "float64"]
    return k.mr, k.nr


def build_info():
    """What was compiled in, by what: OpenMP's version is a date (0: built without threads)."""
    return {
        "compiler": CNNX_COMPILER.decode(),
        "flags": CNNX_FLAGS.decode(),
        "openmp": cnnx_openmp,
        "instruction sets": [cnnx_isa_name(i).decode() for i in range(cnnx_isa_count())],
    }


def _initial_isa():
    name = os.environ.get("CNNX_ISA")
    if not name:
        return available_isas().pop()
    if name not in available_isas():
        # A RuntimeError, not an ImportError: the fallback must not stand in for what was forced.
        raise RuntimeError(
            f"environment variable CNNX_ISA is {name!r}, expected one of {available_isas()} "
            "(what this build and this CPU have)"
        )
    return name


use_isa(_initial_isa())


cdef inline const cnnx_kernels *table(cnp.ndarray x) noexcept:
    return tables[cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT64]


# ---------------------------------------------------------------- threads and memory

cdef enum:
    SMALL = 1 << 20  # multiply-adds that one thread has done before a second one pays: about 20 us
    MOVE = 8         # cost of a number that is only read and written, in multiply-adds
    CALL = 32        # of one that goes through exp or tanh
    COUNTER = 16     # from one thread's counter to the next, two cache lines


# The thread that Python hands signals to: the main one, and after a fork the one that forked.
cdef unsigned long signalled


def _find_signalled():
    global signalled
    signalled = threading.main_thread().ident


_find_signalled()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_find_signalled)


cdef int openmp_at_import = cnnx_openmp_threads()


def _most_threads():
    """The most threads that OpenMP leaves us: 1 where there is none, fewer while it is limited.

    threadpoolctl and omp_set_num_threads lower OpenMP's number for the calling thread. Its number
    at import is no limit: the user may ask cnnx for more threads than there are CPUs.
    """
    cdef int now = cnnx_openmp_threads()
    return now if now < openmp_at_import or cnnx_openmp == 0 else _threads.MOST


_threads.most_threads = _most_threads


cdef int threads_for(int64_t work) except -1:
    return 1 if work < SMALL else _threads.get_num_threads()


cdef void share(cnnx_task task, const void *problem, int64_t tasks, int64_t *counters, int64_t mine,
                int64_t threads, void *scratch, cnnx_watch *watch) noexcept nogil:
    """Run the tasks of thread `mine`, in their order, and then what is left of the other threads'."""
    cdef int64_t step, owner, end, t, until_look = INT64_MAX if mine else 1
    cdef cnnx_watching before = cnnx_enter(watch, mine == 0)
    for step in range(threads):
        owner = (mine + step) % threads
        end = tasks * (owner + 1) // threads
        while True:
            t = cnnx_add(counters + owner * COUNTER, 1)
            if t >= end:
                break
            until_look -= 1
            if until_look == 0:
                until_look = cnnx_look(watch)
                if until_look == 0:
                    for owner in range(threads):
                        cnnx_add(counters + owner * COUNTER, tasks)  # nothing is left to anybody
                    cnnx_leave(before)
                    return
            task(problem, t, scratch)
            if watch.stopped:
                until_look = 1
    cnnx_leave(before)


cdef int run(cnnx_task task, const void *problem, int64_t tasks, size_t scratch, int threads) except -1:
    """Run all tasks of a problem, each with its own scratch; a signal's exception ends it early.

    A thread begins with a range of its own, so that from layer to layer it meets the images that lie in
    its caches: two cores that share none relu'd 64,16,32,32 in 0.36 ms in turns, one alone in 0.07.
    """
    cdef int team = threads
    cdef int64_t t, first = 0, end
    cdef size_t stride = (scratch + 127) // 128 * 128  # a cache line pair between threads
    cdef char *memory = NULL
    cdef int64_t *counters
    cdef cnnx_watch watch
    cdef cnnx_watching before
    if threads > tasks:
        threads = <int>tasks
    if threads < 1:
        return 0
    cdef size_t size = stride * <size_t>threads + (COUNTER * sizeof(int64_t) * threads if threads > 1 else 0)
    if size:
        memory = <char *>cnnx_take(size)
        if memory == NULL:
            raise MemoryError(f"cannot allocate {size} bytes of scratch")
    if threads > 1:
        # Those without a task are in the team as well: GNU OpenMP would end them, and start others for
        # the next call. Regions of 2 and 8 threads in turns took 0.41 ms, of 8 and 8 0.17.
        team = cnnx_team(team)
        threads = min(threads, team)
    watch.step = watch.stopped = 0
    watch.asked = 0
    watch.on = PyThread_get_thread_ident() == signalled
    with nogil:
        if threads == 1:
            before = cnnx_enter(&watch, True)
            while first < tasks:
                end = first + min(cnnx_look(&watch), tasks - first)
                if end == first:
                    break
                for t in range(first, end):
                    task(problem, t, memory)
                first = end
            cnnx_leave(before)
        else:
            counters = <int64_t *>(memory + stride * <size_t>threads)
            for t in range(threads):
                counters[t * COUNTER] = tasks * t // threads
            for t in prange(threads, num_threads=team, schedule="static", chunksize=1):
                share(task, problem, tasks, counters, t, threads, memory + stride * <size_t>t, &watch)
    cnnx_give(memory)
    return -1 if watch.stopped else 0


@cython.final
cdef class _Block:
    """Owner of one block of recycled memory: gives it back when the last array on it dies."""
    cdef void *data

    def __dealloc__(self):
        cnnx_give(self.data)


cdef _Block take(size_t size):
    cdef _Block block = _Block.__new__(_Block)
    block.data = cnnx_take(size)
    if block.data == NULL:
        raise MemoryError(f"cannot allocate {size} bytes")
    return block


def empty(tuple shape, dtype):
    """Uninitialised C-contiguous array, 64-byte aligned, in recycled memory."""
    cdef cnp.npy_intp dims[8]
    cdef int i, ndim = len(shape), typenum
    cdef size_t size
    cdef _Block block
    if dtype == "float32":
        typenum = cnp.NPY_FLOAT32
    else:
        typenum = cnp.NPY_FLOAT64 if dtype == "float64" else cnp.NPY_INT64
    size = 4 if typenum == cnp.NPY_FLOAT32 else 8
    for i in range(ndim):
        dims[i] = shape[i]
        size *= <size_t>dims[i]
    block = take(size)
    cdef cnp.ndarray array = cnp.PyArray_SimpleNewFromData(ndim, dims, typenum, block.data)
    cnp.set_array_base(array, block)
    return array


def memory_stats():
    """State of the pool of recycled memory, in bytes and counts."""
    cdef cnnx_pool_stats s = cnnx_pool_read()
    return {
        "in_use": s.in_use, "cached": s.cached, "peak": s.peak, "limit": s.limit,
        "hits": s.hits, "misses": s.misses,
    }


def empty_cache():
    """Return the memory that is kept for reuse to the system."""
    with nogil:
        cnnx_pool_empty()


# ---------------------------------------------------------------- convolution

cdef dict ACTIVATIONS = {
    None: CNNX_NONE, "relu": CNNX_RELU, "sigmoid": CNNX_SIGMOID, "tanh": CNNX_TANH,
    "leaky_relu": CNNX_LEAKY_RELU, "relu6": CNNX_RELU6, "gelu": CNNX_GELU, "silu": CNNX_SILU,
}


cdef inline void *data_or_null(object array) noexcept:
    return NULL if array is None else cnp.PyArray_DATA(<cnp.ndarray>array)


cdef bint winograd_on = True


def set_winograd(bint on):
    """Allow Winograd's algorithm, or not; the answer is what held before."""
    global winograd_on
    before = winograd_on
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

cdef int wanted = BY_SHAPE, ran = BY_SHAPE


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
    if (kept is not None and kept.packed is not None and kept.kernels == k and kept.pack == pack
            and memcmp(&kept.key, &key, sizeof(cnnx_conv)) == 0):
        return kept.packed
    packed = take(<size_t>p.packed_size * (8 if k == tables[1] else 4))
    p.packed = packed.data
    if p.packed_size:
        run(pack, p, p.groups * p.panels, 0, min(threads, threads_for(MOVE * p.packed_size)))
    if kept is not None:
        kept.kernels, kept.pack, kept.key, kept.packed, kept.weight = k, pack, key, packed, weight
    return packed


cdef int run_conv(const cnnx_kernels *k, cnnx_conv *p, _Prepared kept, weight) except -1:
    global ran
    cdef _Block packed
    cdef int threads = threads_for(p.N * p.groups * p.M * p.C * p.taps * p.rows * p.cols)
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
            for kw in range(KW):
                if (ph + top - kh * dil_h) % p.ty == 0 and (column + left - kw * dil_w) % p.tx == 0:
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


def matmul(cnp.ndarray a, cnp.ndarray b, bias, activation, cnp.ndarray out):
    """Fill `out` with act(a @ b + bias)."""
    cdef const cnnx_kernels *k = table(out)
    cdef cnnx_matmul p
    cdef int64_t size = cnp.PyArray_ITEMSIZE(out)
    p.a, p.b, p.bias = cnp.PyArray_DATA(a), cnp.PyArray_DATA(b), data_or_null(bias)
    p.out = cnp.PyArray_DATA(out)
    p.M, p.N, p.K = out.shape[0], out.shape[1], a.shape[1]
    p.a_row, p.a_col = cnp.PyArray_STRIDE(a, 0) // size, cnp.PyArray_STRIDE(a, 1) // size
    p.b_row, p.b_col = cnp.PyArray_STRIDE(b, 0) // size, cnp.PyArray_STRIDE(b, 1) // size
    p.activation = ACTIVATIONS[activation]
    cdef int threads = threads_for(p.M * p.N * p.K)
    k.matmul_plan(&p, threads)
    run(k.matmul, &p, p.tasks, p.scratch, threads)


# ---------------------------------------------------------------- pooling

cdef int64_t describe_pool(cnnx_pool *p, cnp.ndarray image, cnp.ndarray pooled, tuple pool_size,
                           tuple stride, tuple pads, tuple dilation) except -1:
    p.planes = image.shape[0] * image.shape[1]
    p.H, p.W, p.rows, p.cols = image.shape[2], image.shape[3], pooled.shape[2], pooled.shape[3]
    p.kh, p.kw = pool_size
    p.sh, p.sw = stride
    p.dh, p.dw = dilation
    p.top, p.bottom, p.left, p.right = pads
    return p.planes * (p.rows * p.cols * p.kh * p.kw + p.H * p.W)


def max_pool2d(cnp.ndarray x, tuple pool_size, tuple stride, tuple pads, tuple dilation,
               cnp.ndarray out, indices):
    """Fill `out` with each window's maximum and `indices` (or None) with where it stood."""
    cdef cnnx_pool p
    cdef int64_t work = describe_pool(&p, x, out, pool_size, stride, pads, dilation)
    p.x, p.y, p.indices = cnp.PyArray_DATA(x), cnp.PyArray_DATA(out), <int64_t *>data_or_null(indices)
    table(x).pool_plan(&p, 1)
    run(table(x).max_pool, &p, p.tasks, p.scratch, threads_for(MOVE * work))


def max_pool2d_backward(cnp.ndarray grad_out, cnp.ndarray indices, cnp.ndarray grad_x):
    """Add each gradient to the pixel it came from; -1, or the position of the first bad index."""
    cdef cnnx_pool p
    cdef int64_t t
    cdef int64_t work = describe_pool(&p, grad_x, grad_out, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1))
    cdef _Block bad = take(p.planes * sizeof(int64_t))
    p.x, p.y = cnp.PyArray_DATA(grad_out), cnp.PyArray_DATA(grad_x)
    p.indices = <int64_t *>cnp.PyArray_DATA(indices)
    p.bad = <int64_t *>bad.data
    table(grad_x).pool_grad_plan(&p, 1)
    run(table(grad_x).max_pool_backward, &p, p.tasks, p.scratch, threads_for(MOVE * work))
    for t in range(p.planes):
        if p.bad[t] >= 0:
            return p.bad[t]
    return -1


def avg_pool2d(cnp.ndarray x, tuple pool_size, tuple stride, tuple pads, bint count_include_pad,
               cnp.ndarray out):
    """Fill `out` with each window's average."""
    cdef cnnx_pool p
    cdef int64_t work = describe_pool(&p, x, out, pool_size, stride, pads, (1, 1))
    p.x, p.y, p.count_include_pad = cnp.PyArray_DATA(x), cnp.PyArray_DATA(out), count_include_pad
    table(x).pool_plan(&p, 0)
    run(table(x).avg_pool, &p, p.tasks, p.scratch, threads_for(MOVE * work))


def avg_pool2d_backward(cnp.ndarray grad_out, tuple pool_size, tuple stride, tuple pads,
                        bint count_include_pad, cnp.ndarray grad_x):
    """Spread each gradient evenly over its window."""
    cdef cnnx_pool p
    cdef int64_t work = describe_pool(&p, grad_x, grad_out, pool_size, stride, pads, (1, 1))
    p.x, p.y = cnp.PyArray_DATA(grad_out), cnp.PyArray_DATA(grad_x)
    p.count_include_pad = count_include_pad
    table(grad_x).pool_grad_plan(&p, 0)
    run(table(grad_x).avg_pool_backward, &p, p.tasks, p.scratch, threads_for(MOVE * work))


# ---------------------------------------------------------------- elementwise, softmax, norm, optimizers

cdef int run_elementwise(cnnx_task task, cnnx_elementwise *p, cnp.ndarray x, cnp.ndarray y, kind,
                         double alpha) except -1:
    p.x, p.y = cnp.PyArray_DATA(x), cnp.PyArray_DATA(y)
    p.n, p.kind, p.alpha = cnp.PyArray_SIZE(x), ACTIVATIONS[kind], alpha
    cdef int64_t cost = MOVE if p.kind in (CNNX_NONE, CNNX_RELU, CNNX_LEAKY_RELU, CNNX_RELU6) else CALL
    return run(task, p, (p.n + CNNX_CHUNK - 1) // CNNX_CHUNK, 0, threads_for(cost * p.n))


def activation(cnp.ndarray x, kind, double alpha, cnp.ndarray out):
    """Fill `out` with the activation `kind` of x."""
    cdef cnnx_elementwise p
    run_elementwise(table(x).activation, &p, x, out, kind, alpha)


def activation_backward(cnp.ndarray grad_out, cnp.ndarray x, kind, double alpha, cnp.ndarray grad_x):
    """Fill `grad_x` with `grad_out` times the derivative at the forward's input x."""
    cdef cnnx_elementwise p
    p.other, p.from_output = cnp.PyArray_DATA(grad_out), 0
    run_elementwise(table(x).activation_backward, &p, x, grad_x, kind, alpha)


def activation_backward_from_output(cnp.ndarray grad_out, cnp.ndarray y, kind, cnp.ndarray grad_x):
    """Fill `grad_x` with `grad_out` times the derivative, found from the forward's output y."""
    cdef cnnx_elementwise p
    p.other, p.from_output = cnp.PyArray_DATA(grad_out), 1
    run_elementwise(table(y).activation_backward, &p, y, grad_x, kind, 0)


def add(cnp.ndarray x, cnp.ndarray other, activation, cnp.ndarray out):
    """Fill `out` with act(x + other); the activation is relu or none."""
    cdef cnnx_elementwise p
    p.other = cnp.PyArray_DATA(other)
    run_elementwise(table(x).add, &p, x, out, activation, 0)


def softmax(cnp.ndarray x, bint log, cnp.ndarray out):
    """Fill `out` with the softmax, or its logarithm, of each row of x (rows, classes)."""
    cdef cnnx_softmax p
    p.x, p.y = cnp.PyArray_DATA(x), cnp.PyArray_DATA(out)
    p.rows, p.classes, p.log = x.shape[0], x.shape[1], log
    run(table(x).softmax, &p, p.rows, 0, threads_for(CALL * p.rows * p.classes))


def softmax_backward(cnp.ndarray grad_out, cnp.ndarray y, bint log, cnp.ndarray grad_x):
    """Fill `grad_x` with the gradient, found from the forward's output y."""
    cdef cnnx_softmax p
    p.x, p.grad, p.y = cnp.PyArray_DATA(y), cnp.PyArray_DATA(grad_out), cnp.PyArray_DATA(grad_x)
    p.rows, p.classes, p.log = y.shape[0], y.shape[1], log
    run(table(y).softmax_backward, &p, p.rows, 0, threads_for(CALL * p.rows * p.classes))


def cross_entropy(cnp.ndarray x, cnp.ndarray target, double smoothing, cnp.ndarray loss,
                  cnp.ndarray grad_x):
    """Fill `loss` (rows,), float64, and `grad_x`, of its mean; -1, or the row of the first bad label.

    The target is labels (rows,), int64, or a table of x's shape and dtype.
    """
    cdef cnnx_softmax p
    cdef int64_t row
    p.x, p.y, p.rows, p.classes = cnp.PyArray_DATA(x), cnp.PyArray_DATA(grad_x), x.shape[0], x.shape[1]
    p.loss, p.smoothing, p.labels = <double *>cnp.PyArray_DATA(loss), smoothing, NULL
    if cnp.PyArray_NDIM(target) == 1:
        p.labels = <int64_t *>cnp.PyArray_DATA(target)
        for row in range(p.rows):
            if not 0 <= p.labels[row] < p.classes:
                return row
    p.grad = cnp.PyArray_DATA(target)
    run(table(x).cross_entropy, &p, p.rows, 0, threads_for(CALL * p.rows * p.classes))
    return -1


cdef int run_norm(cnnx_norm *p, cnp.ndarray x, cnp.ndarray mean, cnp.ndarray var, cnnx_task sums,
                  cnnx_task task) except -1:
    """Run `sums` (NULL where there is nothing to sum up) and `task`."""
    p.x, p.mean, p.var = cnp.PyArray_DATA(x), cnp.PyArray_DATA(mean), cnp.PyArray_DATA(var)
    p.N, p.C, p.area = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    table(x).norm_plan(p)
    cdef int threads = threads_for(MOVE * p.N * p.C * p.area)
    cdef _Block pieces = take(2 * p.pieces * p.C * sizeof(double))
    p.sums = <double *>pieces.data
    if sums != NULL and p.pieces > 1:
        run(sums, p, p.tasks, 0, threads)
    return run(task, p, p.tasks, 0, threads)


def batch_norm2d_stats(cnp.ndarray x, cnp.ndarray mean, cnp.ndarray var):
    """Fill `mean` and `var` (biased) of each channel."""
    cdef cnnx_norm p
    p.y, p.batch_stats = NULL, True
    run_norm(&p, x, mean, var, table(x).norm_sums, table(x).norm)


def batch_norm2d(cnp.ndarray x, weight, bias, cnp.ndarray mean, cnp.ndarray var, double eps,
                 bint batch_stats, activation, cnp.ndarray out):
    """Fill `out` with act((x - mean) / sqrt(var + eps) * weight + bias), both statistics too if asked."""
    cdef cnnx_norm p
    p.weight, p.bias, p.y, p.eps = data_or_null(weight), data_or_null(bias), cnp.PyArray_DATA(out), eps
    p.batch_stats, p.activation = batch_stats, ACTIVATIONS[activation]
    run_norm(&p, x, mean, var, table(x).norm_sums if batch_stats else NULL, table(x).norm)


def batch_norm2d_backward(cnp.ndarray grad_out, cnp.ndarray x, weight, bias, cnp.ndarray mean,
                          cnp.ndarray var, double eps, bint batch_stats, activation, cnp.ndarray grad_x,
                          cnp.ndarray grad_weight, cnp.ndarray grad_bias):
    """Fill the three gradients; `batch_stats`: mean and var depend on x."""
    cdef cnnx_norm p
    p.grad, p.weight, p.y = cnp.PyArray_DATA(grad_out), data_or_null(weight), cnp.PyArray_DATA(grad_x)
    p.bias, p.activation = data_or_null(bias), ACTIVATIONS[activation]
    p.grad_weight, p.grad_bias = cnp.PyArray_DATA(grad_weight), cnp.PyArray_DATA(grad_bias)
    p.eps, p.batch_stats = eps, batch_stats
    run_norm(&p, x, mean, var, table(x).norm_backward_sums, table(x).norm_backward)


cdef int run_optim(cnnx_task task, cnnx_optim *p, cnp.ndarray param, cnp.ndarray grad) except -1:
    p.param, p.grad, p.n = cnp.PyArray_DATA(param), cnp.PyArray_DATA(grad), cnp.PyArray_SIZE(param)
    return run(task, p, (p.n + CNNX_CHUNK - 1) // CNNX_CHUNK, 0, threads_for(MOVE * p.n))


def sgd(cnp.ndarray param, cnp.ndarray grad, velocity, double lr, double momentum, double weight_decay,
        bint nesterov):
    """Make one step of SGD: change `param` and `velocity` (None without momentum) in place."""
    cdef cnnx_optim p
    p.velocity, p.lr, p.momentum = data_or_null(velocity), lr, momentum
    p.decay, p.nesterov = weight_decay, nesterov
    run_optim(table(param).sgd, &p, param, grad)


def adam(cnp.ndarray param, cnp.ndarray grad, cnp.ndarray mean, cnp.ndarray square, double lr, double beta1,
         double beta2, double eps, double weight_decay, bint decoupled, int64_t step):
    """Make Adam's step number `step`: change `param`, `mean` and `square` in place."""
    cdef cnnx_optim p
    p.mean, p.square = cnp.PyArray_DATA(mean), cnp.PyArray_DATA(square)
    p.beta1, p.beta2, p.eps = beta1, beta2, eps
    p.lr, p.root = lr / (1 - beta1 ** step), (1 - beta2 ** step) ** 0.5
    p.decay = 0 if decoupled else weight_decay
    p.shrink = 1 - lr * weight_decay if decoupled else 1
    run_optim(table(param).adam, &p, param, grad)
