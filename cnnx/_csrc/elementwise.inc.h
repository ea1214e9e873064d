/* Activations and softmax, forward and backward. Formulas are beside the public functions. */

#define SQRT1_2 ((T)0.70710678118654752440)
#define INV_SQRT_2PI ((T)0.39894228040143267794)

static inline T FN(sigmoid)(T v) { return 1 / (1 + EXP(-v)); }

static inline T FN(apply)(T v, int kind, T alpha)
{
    switch (kind) {
    case CNNX_LEAKY_RELU: return v < 0 ? alpha * v : v;
    case CNNX_RELU6: return v < 0 ? 0 : v > 6 ? 6 : v;
    case CNNX_GELU: return (T)0.5 * v * ERFC(-v * SQRT1_2); /* erfc keeps its digits far below zero */
    case CNNX_SILU: return v / (1 + EXP(-v));
    default: return FN(activate)(v, kind);
    }
}

/* Derivative at the input v. */
static inline T FN(derivative)(T v, int kind, T alpha)
{
    switch (kind) {
    case CNNX_RELU: return v > 0 ? 1 : 0;
    case CNNX_LEAKY_RELU: return v > 0 ? 1 : alpha;
    case CNNX_RELU6: return v > 0 && v < 6 ? 1 : 0;
    case CNNX_SIGMOID: { const T s = FN(sigmoid)(v); return s * (1 - s); }
    case CNNX_TANH: { const T t = TANH(v); return 1 - t * t; }
    case CNNX_GELU:
        return (T)0.5 * ERFC(-v * SQRT1_2) + v * INV_SQRT_2PI * EXP(-(T)0.5 * v * v);
    case CNNX_SILU: { const T s = FN(sigmoid)(v); return s * (1 + v * (1 - s)); }
    default: return 1;
    }
}

/* Derivative from the output y, which is what a fused layer has kept. */
static inline T FN(derivative_from_output)(T y, int kind)
{
    switch (kind) {
    case CNNX_RELU: return y > 0 ? 1 : 0;
    case CNNX_SIGMOID: return y * (1 - y);
    case CNNX_TANH: return 1 - y * y;
    default: return 1;
    }
}

static inline int64_t FN(chunk_end)(const cnnx_elementwise *p, int64_t task)
{
    const int64_t end = (task + 1) * CNNX_CHUNK;
    return end < p->n ? end : p->n;
}

static void FN(activation)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_elementwise *p = problem;
    (void)scratch;
    const T *x = p->x, alpha = (T)p->alpha;
    T *y = p->y;
    const int64_t begin = task * CNNX_CHUNK, end = FN(chunk_end)(p, task);
    if (p->kind == CNNX_RELU) /* the one without a call in its loop: it vectorises */
        for (int64_t i = begin; i < end; i++) y[i] = x[i] < 0 ? 0 : x[i];
    else
        for (int64_t i = begin; i < end; i++) y[i] = FN(apply)(x[i], p->kind, alpha);
}

static void FN(activation_backward)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_elementwise *p = problem;
    (void)scratch;
    const T *x = p->x, *g = p->grad, alpha = (T)p->alpha;
    T *y = p->y;
    const int64_t begin = task * CNNX_CHUNK, end = FN(chunk_end)(p, task);
    if (p->kind == CNNX_RELU) /* input and output have the same sign */
        for (int64_t i = begin; i < end; i++) y[i] = x[i] > 0 ? g[i] : 0;
    else if (p->from_output)
        for (int64_t i = begin; i < end; i++) y[i] = g[i] * FN(derivative_from_output)(x[i], p->kind);
    else
        for (int64_t i = begin; i < end; i++) y[i] = g[i] * FN(derivative)(x[i], p->kind, alpha);
}

static void FN(softmax)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_softmax *p = problem;
    (void)scratch;
    const T *x = (const T *)p->x + task * p->classes;
    T *y = (T *)p->y + task * p->classes;
    T top = x[0];
    double sum = 0;
    for (int64_t k = 1; k < p->classes; k++)
        if (x[k] > top) top = x[k];
    for (int64_t k = 0; k < p->classes; k++) {
        const T e = EXP(x[k] - top);
        y[k] = p->log ? x[k] - top : e;
        sum += e;
    }
    if (p->log) {
        const T shift = (T)log(sum);
        for (int64_t k = 0; k < p->classes; k++) y[k] -= shift;
    } else {
        const T scale = (T)sum;
        for (int64_t k = 0; k < p->classes; k++) y[k] /= scale;
    }
}

static void FN(softmax_backward)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_softmax *p = problem;
    (void)scratch;
    const T *y = (const T *)p->x + task * p->classes, *g = (const T *)p->grad + task * p->classes;
    T *to = (T *)p->y + task * p->classes;
    double sum = 0;
    for (int64_t k = 0; k < p->classes; k++) sum += p->log ? (double)g[k] : (double)g[k] * (double)y[k];
    const T total = (T)sum;
    for (int64_t k = 0; k < p->classes; k++)
        to[k] = p->log ? g[k] - EXP(y[k]) * total : y[k] * (g[k] - total);
}
