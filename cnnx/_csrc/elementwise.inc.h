/* Activations as operations of their own, sums of two arrays, and softmax; forward and backward. */

static inline int64_t FN(chunk_end)(const cnnx_elementwise *p, int64_t task)
{
    const int64_t end = (task + 1) * CNNX_CHUNK;
    return end < p->n ? end : p->n;
}

/* The loop over a chunk for each kind; the last numbers go through a vector of their own. */
#define EACH_VECTOR(call)                                                                              \
    for (int64_t i = begin; i < end; i += VL) {                                                        \
        const int64_t n = end - i < VL ? end - i : VL;                                                 \
        T lanes[2][VL] = {{0}};                                                                        \
        if (n < VL) {                                                                                  \
            memcpy(lanes[0], x + i, (size_t)n * sizeof(T));                                            \
            if (g) memcpy(lanes[1], g + i, (size_t)n * sizeof(T));                                     \
        }                                                                                              \
        const V v = *(const VU *)(n < VL ? lanes[0] : x + i);                                          \
        const V grad = g ? FN(at_once)(n < VL ? lanes[1] : g + i) : (V){0};                            \
        (void)grad;                                                                                    \
        *(VU *)(n < VL ? lanes[0] : y + i) = call;                                                     \
        if (n < VL) memcpy(y + i, lanes[0], (size_t)n * sizeof(T));                                    \
    }                                                                                                  \
    return

#define EACH_KIND(call)                                                                                \
    switch (p->kind) {                                                                                 \
    case CNNX_RELU: EACH_VECTOR(call(CNNX_RELU));                                                      \
    case CNNX_LEAKY_RELU: EACH_VECTOR(call(CNNX_LEAKY_RELU));                                          \
    case CNNX_RELU6: EACH_VECTOR(call(CNNX_RELU6));                                                    \
    case CNNX_SIGMOID: EACH_VECTOR(call(CNNX_SIGMOID));                                                \
    case CNNX_TANH: EACH_VECTOR(call(CNNX_TANH));                                                      \
    case CNNX_GELU: EACH_VECTOR(call(CNNX_GELU));                                                      \
    case CNNX_SILU: EACH_VECTOR(call(CNNX_SILU));                                                      \
    case CNNX_HARD_SWISH: EACH_VECTOR(call(CNNX_HARD_SWISH));                                          \
    }

static void FN(activation)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_elementwise *p = problem;
    (void)scratch;
    const T *x = p->x, *g = NULL, alpha = (T)p->alpha;
    T *y = p->y;
    const int64_t begin = task * CNNX_CHUNK, end = FN(chunk_end)(p, task);
#define CALL(kind) FN(activate_vector)(v, kind, alpha)
    EACH_KIND(CALL)
#undef CALL
}

static void FN(activation_backward)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_elementwise *p = problem;
    (void)scratch;
    const T *x = p->x, *g = p->other, alpha = (T)p->alpha;
    T *y = p->y;
    const int64_t begin = task * CNNX_CHUNK, end = FN(chunk_end)(p, task);
    if (p->from_output) {
#define CALL(kind) FN(grad_from_output)(grad, v, kind)
        switch (p->kind) { /* those that a layer fuses */
        case CNNX_RELU: EACH_VECTOR(CALL(CNNX_RELU));
        case CNNX_SIGMOID: EACH_VECTOR(CALL(CNNX_SIGMOID));
        case CNNX_TANH: EACH_VECTOR(CALL(CNNX_TANH));
        }
#undef CALL
    } else {
#define CALL(kind) FN(grad_vector)(grad, v, kind, alpha)
        EACH_KIND(CALL)
#undef CALL
    }
}

static void FN(add)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_elementwise *p = problem;
    (void)scratch;
    const T *x = p->x, *g = p->other;
    T *y = p->y;
    const int64_t begin = task * CNNX_CHUNK, end = FN(chunk_end)(p, task);
    if (p->kind == CNNX_RELU) {
        EACH_VECTOR(FN(relu)(v + grad));
    }
    EACH_VECTOR(v + grad);
}
#undef EACH_KIND
#undef EACH_VECTOR

/* The largest of n numbers; where one of them is NaN, any, for the sum of exponentials is NaN then. */
static T FN(largest)(const T *x, int64_t n)
{
    T top = x[0];
    int64_t k = 0;
    if (n >= VL) {
        V most = *(const VU *)x;
        for (k = VL; k + VL <= n; k += VL) most = FN(larger)(most, *(const VU *)(x + k));
        T lane[VL];
        *(VU *)lane = most;
        for (int l = 0; l < VL; l++)
            if (lane[l] > top) top = lane[l];
    }
    for (; k < n; k++)
        if (x[k] > top) top = x[k];
    return top;
}

/* The sum of exp(x[k] - top), which y keeps. Vectors add up 64 numbers a lane, doubles the rest. */
static double FN(exponentials)(const T *x, int64_t n, T top, T *y)
{
    double total = 0;
    int64_t k = 0;
    while (k + VL <= n) {
        V sum = {0};
        for (int64_t end = k + 64 * VL; k + VL <= n && k < end; k += VL) {
            const V e = FN(exp)(*(const VU *)(x + k) - top);
            *(VU *)(y + k) = e;
            sum += e;
        }
        total += (double)FN(sum_lanes)(sum);
    }
    if (k == n) return total;
    T lane[VL] = {0};
    memcpy(lane, x + k, (size_t)(n - k) * sizeof(T));
    *(VU *)lane = FN(exp)(*(const VU *)lane - top);
    memcpy(y + k, lane, (size_t)(n - k) * sizeof(T));
    for (int64_t l = 0; l < n - k; l++) total += (double)lane[l];
    return total;
}

static void FN(softmax)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_softmax *p = problem;
    (void)scratch;
    const T *x = (const T *)p->x + task * p->classes, top = FN(largest)(x, p->classes);
    T *y = (T *)p->y + task * p->classes;
    const double sum = FN(exponentials)(x, p->classes, top, y);
    if (p->log) {
        const T shift = (T)log(sum);
        for (int64_t k = 0; k < p->classes; k++) y[k] = x[k] - top - shift;
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

static void FN(cross_entropy)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_softmax *p = problem;
    (void)scratch;
    const T *x = (const T *)p->x + task * p->classes;
    T *y = (T *)p->y + task * p->classes;
    const T top = FN(largest)(x, p->classes);
    const double sum = FN(exponentials)(x, p->classes, top, y), shift = (double)top + log(sum);
    const double rows = (double)p->rows, kept = 1 - p->smoothing, even = p->smoothing / (double)p->classes;
    if (p->labels && even == 0) { /* most classes are not wanted at all */
        const int64_t label = p->labels[task];
        const T scale = (T)(1 / (sum * rows));
        for (int64_t k = 0; k < p->classes; k++) y[k] *= scale;
        y[label] -= (T)(1 / rows);
        p->loss[task] = shift - (double)x[label];
        return;
    }
    const int64_t label = p->labels ? p->labels[task] : -1;
    const T *table = p->labels ? NULL : (const T *)p->grad + task * p->classes;
    double loss = 0, total = 0;
    for (int64_t pass = 0; pass < 2; pass++) { /* the gradient needs the total */
        const T scale = (T)(total / (sum * rows));
        for (int64_t k = 0; k < p->classes; k++) {
            const double wanted = kept * (table ? (double)table[k] : k == label) + even;
            if (pass) {
                y[k] = y[k] * scale - (T)(wanted / rows);
            } else {
                if (wanted != 0) loss += wanted * (shift - (double)x[k]); /* a score ruled out is infinite */
                total += wanted;
            }
        }
    }
    p->loss[task] = loss;
}
