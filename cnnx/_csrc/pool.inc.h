/* Max and average pooling, forward and backward; a task is one plane. Contracts: cnnx_pool in kernels.h. */

/* Taps k of a window starting at `start` that fall into 0 .. size-1: lo .. hi-1. */
static inline void FN(taps_inside)(int64_t start, int64_t step, int64_t taps, int64_t size,
                                   int64_t *lo, int64_t *hi)
{
    *lo = start < 0 ? (-start + step - 1) / step : 0;
    *hi = size > start ? (size - start + step - 1) / step : 0;
    if (*hi > taps) *hi = taps;
}

/* The first of equal values wins, in row-major order, and so does the first NaN. */
static void FN(max_pool)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_pool *p = problem;
    (void)scratch;
    const T *x = (const T *)p->x + task * p->H * p->W;
    T *y = (T *)p->y + task * p->rows * p->cols;
    int64_t *indices = p->indices ? p->indices + task * p->rows * p->cols : NULL;
    for (int64_t i = 0; i < p->rows; i++) {
        int64_t i0 = i * p->sh - p->top, klo, khi;
        FN(taps_inside)(i0, p->dh, p->kh, p->H, &klo, &khi);
        for (int64_t j = 0; j < p->cols; j++) {
            int64_t j0 = j * p->sw - p->left, llo, lhi;
            FN(taps_inside)(j0, p->dw, p->kw, p->W, &llo, &lhi);
            int64_t at = (i0 + klo * p->dh) * p->W + j0 + llo * p->dw;
            T best = x[at];
            for (int64_t k = klo; k < khi; k++)
                for (int64_t l = llo; l < lhi; l++) {
                    const int64_t from = (i0 + k * p->dh) * p->W + j0 + l * p->dw;
                    const T v = x[from];
                    if (v > best || (v != v && best == best)) {
                        best = v;
                        at = from;
                    }
                }
            y[i * p->cols + j] = best;
            if (indices) indices[i * p->cols + j] = at;
        }
    }
}

static void FN(max_pool_backward)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_pool *p = problem;
    (void)scratch;
    const int64_t size = p->H * p->W, windows = p->rows * p->cols;
    const T *grad = (const T *)p->x + task * windows;
    T *to = (T *)p->y + task * size;
    const int64_t *indices = p->indices + task * windows;
    p->bad[task] = -1;
    memset(to, 0, (size_t)size * sizeof(T));
    for (int64_t q = 0; q < windows; q++) {
        if (indices[q] < 0 || indices[q] >= size) {
            p->bad[task] = task * windows + q;
            return;
        }
        to[indices[q]] += grad[q]; /* windows overlap: accumulate */
    }
}

/* How many pixels of the window count in the average: it is clipped to the padded image, as in PyTorch
 * and ONNX, or to the image itself. */
static inline T FN(area)(const cnnx_pool *p, int64_t i0, int64_t j0, int64_t inside)
{
    if (!p->count_include_pad) return (T)inside;
    const int64_t i1 = i0 + p->kh < p->H + p->bottom ? i0 + p->kh : p->H + p->bottom;
    const int64_t j1 = j0 + p->kw < p->W + p->right ? j0 + p->kw : p->W + p->right;
    return (T)((i1 - i0) * (j1 - j0));
}

static void FN(avg_pool)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_pool *p = problem;
    (void)scratch;
    const T *x = (const T *)p->x + task * p->H * p->W;
    T *y = (T *)p->y + task * p->rows * p->cols;
    for (int64_t i = 0; i < p->rows; i++) {
        int64_t i0 = i * p->sh - p->top, klo, khi;
        FN(taps_inside)(i0, 1, p->kh, p->H, &klo, &khi);
        for (int64_t j = 0; j < p->cols; j++) {
            int64_t j0 = j * p->sw - p->left, llo, lhi;
            FN(taps_inside)(j0, 1, p->kw, p->W, &llo, &lhi);
            T sum = 0;
            for (int64_t k = klo; k < khi; k++) {
                const T *row = x + (i0 + k) * p->W + j0;
                T part = 0; /* a sum of row sums: the error of a 7x7 window stays that of 7 + 7 terms */
                for (int64_t l = llo; l < lhi; l++) part += row[l];
                sum += part;
            }
            y[i * p->cols + j] = sum / FN(area)(p, i0, j0, (khi - klo) * (lhi - llo));
        }
    }
}

static void FN(avg_pool_backward)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_pool *p = problem;
    (void)scratch;
    const T *grad = (const T *)p->x + task * p->rows * p->cols;
    T *to = (T *)p->y + task * p->H * p->W;
    memset(to, 0, (size_t)(p->H * p->W) * sizeof(T));
    for (int64_t i = 0; i < p->rows; i++) {
        int64_t i0 = i * p->sh - p->top, klo, khi;
        FN(taps_inside)(i0, 1, p->kh, p->H, &klo, &khi);
        for (int64_t j = 0; j < p->cols; j++) {
            int64_t j0 = j * p->sw - p->left, llo, lhi;
            FN(taps_inside)(j0, 1, p->kw, p->W, &llo, &lhi);
            const T g = grad[i * p->cols + j] / FN(area)(p, i0, j0, (khi - klo) * (lhi - llo));
            for (int64_t k = klo; k < khi; k++)
                for (int64_t l = llo; l < lhi; l++) to[(i0 + k) * p->W + j0 + l] += g;
        }
    }
}
