# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=True, embedsignature.format=python, freethreading_compatible=True
"""The compiled backend: the boundary between NumPy arrays and the kernels in C, and every thread.

Each function fills in a *problem* (a C struct, see ``_csrc/kernels.h``), lets the kernel table of the
chosen instruction set cut it into tasks, and runs the tasks in :func:`run`, the only parallel loop
of the package. Names, arguments and defaults are those of ``_fallback``; ``functional`` has checked
the arguments.
"""

import os
import sys
import threading

from cnnx import _threads

cimport cython
cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport PyThread_get_thread_ident
from cython.parallel cimport prange
from libc.float cimport DBL_MIN, FLT_MIN
from libc.stdint cimport INT64_MAX, int64_t
from libc.string cimport memcmp, memset

cnp.import_array()


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
    typedef volatile int cnnx_shared;
    #else
    typedef _Atomic int cnnx_shared;
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
    ctypedef int cnnx_shared  # that Python's threads may set while others read it, where there is no GIL


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
    """The most threads that OpenMP leaves us: 1 where there is none, fewer while threadpoolctl limits it.

    That lowers OpenMP's number for the calling thread, which is all that there is to see. Another
    library may do the same for itself, where both have one OpenMP: torch.set_num_threads does, with
    every libgomp of that name. So the number means us only where threadpoolctl is loaded. What it was
    at import is no limit: the user may ask cnnx for more threads than there are CPUs.
    """
    if cnnx_openmp == 0:
        return 1
    cdef int now = cnnx_openmp_threads()
    return now if now < openmp_at_import and "threadpoolctl" in sys.modules else _threads.MOST


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


cdef int run(cnnx_task task, const void *problem, int64_t tasks, size_t scratch, int threads,
             bint exact=False) except -1:
    """Run all tasks of a problem, each with its own scratch; a signal's exception ends it early.

    Numbers too small to be normal are zero to the tasks (see ``_csrc/flush.h``), unless these are
    `exact`: what compares and moves is no slower by them, and picks the largest of them too.

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
    watch.exact = exact
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
    cdef cnp.npy_intp dims[64]  # NumPy's own limit
    cdef int i, ndim = len(shape), typenum
    cdef size_t size
    cdef _Block block
    if ndim > 64:
        raise ValueError(f"shape has {ndim} dimensions, expected at most 64")
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


# ---------------------------------------------------------------- convolution and dense layers

cdef dict ACTIVATIONS = {
    None: CNNX_NONE, "relu": CNNX_RELU, "sigmoid": CNNX_SIGMOID, "tanh": CNNX_TANH,
    "leaky_relu": CNNX_LEAKY_RELU, "relu6": CNNX_RELU6, "gelu": CNNX_GELU, "silu": CNNX_SILU,
    "hard_swish": CNNX_HARD_SWISH, "relu1": CNNX_RELU1,
}


cdef inline void *data_or_null(object array) noexcept:
    return NULL if array is None else cnp.PyArray_DATA(<cnp.ndarray>array)


include "_convolution.pxi"


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
    run(table(x).max_pool, &p, p.tasks, p.scratch, threads_for(MOVE * work), exact=True)


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
    cdef bint moves = p.kind in (CNNX_NONE, CNNX_RELU, CNNX_LEAKY_RELU, CNNX_RELU6, CNNX_HARD_SWISH)
    cdef int64_t cost = MOVE if moves else CALL
    cdef bint exact = p.kind in (CNNX_NONE, CNNX_RELU, CNNX_RELU6)  # which compare, and move or add
    return run(task, p, (p.n + CNNX_CHUNK - 1) // CNNX_CHUNK, 0, threads_for(cost * p.n), exact)


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


cdef double not_flushed(double eps, double least) noexcept:
    """An eps that is divided by must not be taken for zero: at least the smallest normal number."""
    return least if 0 < eps < least else eps


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
    p.weight, p.bias, p.y = data_or_null(weight), data_or_null(bias), cnp.PyArray_DATA(out)
    p.eps, p.batch_stats, p.activation = not_flushed(eps, DBL_MIN), batch_stats, ACTIVATIONS[activation]
    run_norm(&p, x, mean, var, table(x).norm_sums if batch_stats else NULL, table(x).norm)


def batch_norm2d_backward(cnp.ndarray grad_out, cnp.ndarray x, weight, bias, cnp.ndarray mean,
                          cnp.ndarray var, double eps, bint batch_stats, activation, cnp.ndarray grad_x,
                          cnp.ndarray grad_weight, cnp.ndarray grad_bias):
    """Fill the three gradients; `batch_stats`: mean and var depend on x."""
    cdef cnnx_norm p
    p.grad, p.weight, p.y = cnp.PyArray_DATA(grad_out), data_or_null(weight), cnp.PyArray_DATA(grad_x)
    p.bias, p.activation = data_or_null(bias), ACTIVATIONS[activation]
    p.grad_weight, p.grad_bias = cnp.PyArray_DATA(grad_weight), cnp.PyArray_DATA(grad_bias)
    p.eps, p.batch_stats = not_flushed(eps, DBL_MIN), batch_stats
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
    p.beta1, p.beta2 = beta1, beta2
    p.eps = not_flushed(eps, FLT_MIN if cnp.PyArray_TYPE(param) == cnp.NPY_FLOAT32 else DBL_MIN)
    p.lr, p.root = lr / (1 - beta1 ** step), (1 - beta2 ** step) ** 0.5
    p.decay = 0 if decoupled else weight_decay
    p.shrink = 1 - lr * weight_decay if decoupled else 1
    run_optim(table(param).adam, &p, param, grad)
