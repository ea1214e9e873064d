/* Max and average pooling, forward and backward. Contracts: cnnx_pool in kernels.h.
 *
 * A window is a convolution's. So the forwards read direct.inc.h's copy of the rows, with a border of minus
 * infinity or zero and with the columns of a stride dealt apart: vectors run along the output's row, whatever
 * the stride, dilation and padding. Where that does not serve, a task is one plane and the loops are plain.
 */
static void FN(pool_plan)(cnnx_pool *p)
{
    p->tasks = p->planes;
    p->scratch = 0;
    p->rowwise = 0;
#if defined(__GNUC__)
    cnnx_conv *c = &p->conv;
    c->N = c->C = c->M = c->ty = c->tx = 1;
    c->groups = p->planes;
    c->H = p->H;
    c->W = p->W;
    c->rows = c->YH = p->rows;
    c->cols = c->YW = p->cols;
    c->sh = p->sh;
    c->sw = p->sw;
    /* Places in a window are counted in integers of T's size; one window across has no row to run along. */
    if (p->cols == 1 || (double)p->kh * (double)p->dh * (double)p->W > 2e9 || !FN(direct_plan)(c)) return;
    p->rowwise = 1;
    p->tasks = c->tasks;
    p->scratch = c->scratch + (size_t)(p->cols + VL) * sizeof(T);
#endif
}

/* Taps k of a window starting at `start` that fall into 0 .. size-1: lo .. hi-1. */
static inline void FN(taps_inside)(int64_t start, int64_t step, int64_t taps, int64_t size,
                                   int64_t *lo, int64_t *hi)
{
    *lo = start < 0 ? (-start + step - 1) / step : 0;
    *hi = size > start ? (size - start + step - 1) / step : 0;
    if (*hi > taps) *hi = taps;
}

/* How much of a window from i0 on counts in the average, one way: it is clipped to the padded image (which
 * ends at `end`), as in PyTorch and ONNX, or to the image itself, where `inside` of its pixels are. */
static inline T FN(extent)(const cnnx_pool *p, int64_t i0, int64_t taps, int64_t end, int64_t inside)
{
    if (!p->count_include_pad) return (T)inside;
    return (T)(i0 + taps < end ? taps : end - i0);
}

/* The first of equal values wins, in row-major order, and so does the first NaN. */
static void FN(max_plane)(const cnnx_pool *p, int64_t task)
{
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

static void FN(avg_plane)(const cnnx_pool *p, int64_t task)
{
    const T *x = (const T *)p->x + task * p->H * p->W;
    T *y = (T *)p->y + task * p->rows * p->cols;
    for (int64_t i = 0; i < p->rows; i++) {
        int64_t i0 = i * p->sh - p->top, klo, khi;
        FN(taps_inside)(i0, 1, p->kh, p->H, &klo, &khi);
        const T height = FN(extent)(p, i0, p->kh, p->H + p->bottom, khi - klo);
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
            y[i * p->cols + j] = sum / (FN(extent)(p, j0, p->kw, p->W + p->right, lhi - llo) * height);
        }
    }
}

#if defined(__GNUC__)
/* One row of maxima. They begin as minus infinity in the first pixel inside the image, `first` from the
 * window's corner, which itself is at `corner` for window 0; a border of minus infinity never beats that. */
static ALWAYS_INLINE void
FN(max_row)(const int indexed, const cnnx_pool *p, const T *strip, const int64_t *offset,
            const FN(integer) *first, FN(integer) above, int64_t corner, T *y, int64_t *indices)
{
    for (int64_t j = 0;; j += VL) {
        if (j + VL > p->cols) j = p->cols > VL ? p->cols - VL : 0;
        V best = (V){0} - INFINITY;
        FN(integers) at = {0};
        if (indexed) at = *(const FN(loose_integers) *)(first + j) + above;
        for (int64_t k = 0, t = 0; k < p->kh; k++) {
            FN(integer) place = (FN(integer))(k * p->dh * p->W);
            for (int64_t l = 0; l < p->kw; l++, t++, place += (FN(integer))p->dw) {
                const V v = *(const VU *)(strip + offset[t] + j);
                const FN(integers) take = (FN(integers))(~(v <= best) & (best == best)); /* the first NaN wins */
                best = FN(select)(take, v, best);
                if (indexed) at = (take & place) | (~take & at);
            }
        }
        const int64_t count = p->cols < VL ? p->cols : VL;
        T maxima[VL];
        *(VU *)(count < VL ? maxima : y + j) = best;
        if (count < VL) FN(copy)(maxima, count, y);
        if (indexed) {
            FN(integer) spots[VL];
            int64_t flat[VL];
            *(FN(loose_integers) *)spots = at;
            for (int64_t l = 0; l < VL; l++) flat[l] = corner + (j + l) * p->sw + spots[l];
            memcpy(indices + j, flat, (size_t)count * sizeof(int64_t));
        }
        if (j + VL >= p->cols) break;
    }
}

/* One row of averages: a sum of row sums, for the error of a 7x7 window then is that of 7 + 7 terms. */
static ALWAYS_INLINE void FN(avg_row)(const cnnx_pool *p, const T *strip, const int64_t *offset, const T *width,
                                      T height, T *y)
{
    for (int64_t j = 0;; j += VL) {
        if (j + VL > p->cols) j = p->cols > VL ? p->cols - VL : 0;
        V sum = {0};
        for (int64_t k = 0, t = 0; k < p->kh; k++) {
            V part = {0};
            for (int64_t l = 0; l < p->kw; l++, t++) part += *(const VU *)(strip + offset[t] + j);
            sum += part;
        }
        sum /= *(const VU *)(width + j) * height;
        T averages[VL];
        *(VU *)(p->cols < VL ? averages : y + j) = sum;
        if (p->cols < VL) FN(copy)(averages, p->cols, y);
        if (j + VL >= p->cols) break;
    }
}

static NOINLINE void FN(pool_rows)(const cnnx_pool *p, int64_t task, void *scratch, int max)
{
    const cnnx_conv *c = &p->conv;
    T *strip = scratch;
    int64_t *offset = (int64_t *)(strip + c->image_size);
    T *width = (T *)(offset + c->depth);
    FN(integer) *first = (FN(integer) *)width;
    const int64_t i0 = task % c->blocks * c->block, begin = task / c->blocks * c->m_block;
    const int64_t rows = p->rows - i0 < c->block ? p->rows - i0 : c->block;
    const int64_t end = begin + c->m_block < p->planes ? begin + c->m_block : p->planes;
    FN(direct_offsets)(c, offset);
    for (int64_t j = 0; j < p->cols + VL; j++) {
        const int64_t j0 = j * p->sw - p->left;
        int64_t lo = 0, hi = 1;
        if (j < p->cols) FN(taps_inside)(j0, p->dw, p->kw, p->W, &lo, &hi);
        if (max)
            first[j] = (FN(integer))(lo * p->dw);
        else
            width[j] = j < p->cols ? FN(extent)(p, j0, p->kw, p->W + p->right, hi - lo) : 1;
    }
    for (int64_t plane = begin; plane < end; plane++) {
        T *y = (T *)p->y + (plane * p->rows + i0) * p->cols;
        int64_t *indices = p->indices ? p->indices + (plane * p->rows + i0) * p->cols : NULL;
        FN(copy_rows)(c, plane, i0, rows, strip, max ? -(T)INFINITY : 0);
        for (int64_t i = 0; i < rows; i++, y += p->cols) {
            const int64_t h = (i0 + i) * p->sh - p->top;
            const T *row = strip + i * c->image_width;
            int64_t lo, hi;
            FN(taps_inside)(h, p->dh, p->kh, p->H, &lo, &hi);
            if (!max)
                FN(avg_row)(p, row, offset, width, FN(extent)(p, h, p->kh, p->H + p->bottom, hi - lo), y);
            else if (indices)
                FN(max_row)(1, p, row, offset, first, (FN(integer))(lo * p->dh * p->W), h * p->W - p->left, y,
                            indices + i * p->cols);
            else
                FN(max_row)(0, p, row, offset, first, 0, 0, y, NULL);
        }
    }
}
#else
static void FN(pool_rows)(const cnnx_pool *p, int64_t task, void *scratch, int max)
{
    (void)p, (void)task, (void)scratch, (void)max;
}
#endif

static void FN(max_pool)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_pool *p = problem;
    if (p->rowwise)
        FN(pool_rows)(p, task, scratch, 1);
    else
        FN(max_plane)(p, task);
}

static void FN(avg_pool)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_pool *p = problem;
    if (p->rowwise)
        FN(pool_rows)(p, task, scratch, 0);
    else
        FN(avg_plane)(p, task);
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

/* A row of windows is spread along the row once, and that is added to each of the rows they cover. */
static void FN(avg_pool_backward)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_pool *p = problem;
    const T *grad = (const T *)p->x + task * p->rows * p->cols;
    T *to = (T *)p->y + task * p->H * p->W, *row = scratch;
    memset(to, 0, (size_t)(p->H * p->W) * sizeof(T));
    for (int64_t i = 0; i < p->rows; i++, grad += p->cols) {
        int64_t i0 = i * p->sh - p->top, klo, khi;
        FN(taps_inside)(i0, 1, p->kh, p->H, &klo, &khi);
        const T height = FN(extent)(p, i0, p->kh, p->H + p->bottom, khi - klo);
        for (int64_t j = 0; j < p->W; j++) row[j] = 0;
        for (int64_t j = 0, j0 = -p->left; j < p->cols; j++, j0 += p->sw) {
            const int64_t lo = j0 < 0 ? 0 : j0, hi = j0 + p->kw < p->W ? j0 + p->kw : p->W;
            const T g = grad[j] / (FN(extent)(p, j0, p->kw, p->W + p->right, hi - lo) * height);
            for (int64_t l = lo; l < hi; l++) {
                row[l] += g;
                PREVENT_MEMCPY; /* nor vectors: windows are short */
            }
        }
        for (int64_t k = klo; k < khi; k++)
            for (int64_t j = 0; j < p->W; j++) to[(i0 + k) * p->W + j] += row[j];
    }
}
