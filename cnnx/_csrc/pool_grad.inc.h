/* Max and average pooling, backward. Contracts: cnnx_pool in kernels.h.
 *
 * The gradient of a maximum goes to the pixel that its index names, one after the other, for windows may overlap.
 * Of 2x2 and 3x3 windows of stride 2, the usual ones, whole rows of pixels are written, which look at the windows
 * above them. An average's is spread over its window: of stride 1 by the forward's kernels, for then it is a sum of
 * windows itself.
 */
#if defined(__GNUC__)
static ALWAYS_INLINE int FN(any)(FN(integers) v)
{
    FN(integer) any = 0;
    for (int l = 0; l < VL; l++) any |= v[l];
    return any != 0;
}

/* The first n of VL numbers, and of as many indices, which fit integers of T's size. */
static ALWAYS_INLINE V FN(load)(const T *x, int64_t n)
{
    if (n == VL) return *(const VU *)x;
    T numbers[VL] = {0};
    FN(copy)(x, n, numbers);
    return *(const VU *)numbers;
}

static ALWAYS_INLINE FN(integers) FN(narrow)(const int64_t *index, int64_t n)
{
    FN(integer) lanes[VL] = {0};
#if defined(SHUFFLE) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    if (n == VL) {
        const FN(integers) a = *(const FN(loose_integers) *)index;
        if (sizeof(T) == sizeof(int64_t)) return a;
        /* The lower halves. Lane by lane, GCC 12 stores them in pieces, and the load of all waits for those. */
        return __builtin_shufflevector(a, *(const FN(loose_integers) *)(index + VL / 2), EVEN);
    }
#endif
    for (int64_t l = 0; l < n; l++) lanes[l] = (FN(integer))index[l];
    return *(const FN(loose_integers) *)lanes;
}

/* Where `at` is `tap`, g, else 0. */
static ALWAYS_INLINE V FN(where)(const T *g, const FN(integer) *at, FN(integer) tap)
{
    return (V)((FN(integers))(*(const FN(loose_integers) *)at == tap) & *(const FN(loose_integers) *)g);
}

/* Numbers of a row of windows or of pairs of pixels, with a vector's room on both sides. */
static inline int64_t FN(strip)(const cnnx_pool *p) { return FN(align)(p->cols + 4 * VL); }

/* 2x2 windows side by side, a row of them as two rows of pixels, all of which are written once. A phase of the
 * pixels gets a quarter of g (average, index NULL) or g where the index names it (maximum). The answer is 0 where
 * some index names a pixel outside its window; only a caller's own do that. */
static ALWAYS_INLINE int
FN(spread_pairs)(const cnnx_pool *p, const T *grad, const int64_t *index, T *y, const T *end)
{
    const int64_t W = p->W, cols = p->cols, n = cols < VL ? cols : VL;
    FN(integers) twice, counted, wrong = {0};
    for (int l = 0; l < VL; l++) {
        twice[l] = (FN(integer))(2 * l);
        counted[l] = l < n ? -1 : 0;
    }
    for (int64_t i = 0; i < p->rows; i++, y += 2 * W) {
        for (int64_t j = 0;; j += VL) {
            j = FN(column_of)(j, cols);
            const int64_t q = i * cols + j;
            const int64_t enough = p->rows * cols - q >= VL ? VL : n; /* whole vectors where the plane has them */
            const V g = FN(load)(grad + q, enough);
            FN(integers) at = {0}, missed = counted;
            if (index) at = FN(narrow)(index + q, enough) - twice - (FN(integer))(2 * (i * W + j));
            for (int r = 0; r < 2; r++) {
                V even = g / 4, odd = g / 4;
                if (index) {
                    const FN(integers) left = (FN(integers))(at == (FN(integer))(r * W)),
                                       right = (FN(integers))(at == (FN(integer))(r * W + 1));
                    even = (V)((FN(integers))g & left);
                    odd = (V)((FN(integers))g & right);
                    missed &= ~(left | right);
                }
                T *to = y + r * W + 2 * j, row[2 * VL];
                if (end - to >= 2 * VL) {
                    FN(interleave)(even, odd, to);
                } else {
                    FN(interleave)(even, odd, row);
                    FN(copy)(row, 2 * n, to);
                }
            }
            wrong |= missed;
            if (j + VL >= cols) break;
        }
        if (index && FN(any)(wrong)) return 0;
    }
    return 1;
}

/* Windows of 3x3 and stride 2, which share every other row and column of pixels. Each pixel gathers from the windows
 * that it lies in, at most 2x2 of them, in their order; scattering took 6 cycles a window, most of them waiting for
 * the sum that it had just stored. `edge` is 1 where the first window begins outside the image, else 0. The answer
 * is 0 where some index names a pixel outside its window.
 *
 * A row of windows waits as two rows of numbers in scratch, with room on both sides: its gradients and, counted from
 * the window's first pixel, its indices. */
static ALWAYS_INLINE int FN(gather_threes)(const int edge, const cnnx_pool *p, const T *grad, const int64_t *index,
                                           T *y, const T *end, T *scratch)
{
    const int64_t W = p->W, cols = p->cols, pairs = (W + 1) / 2, size = FN(strip)(p);
    const T *upper, *lower = scratch + 2 * size; /* no windows lie above */
    for (int64_t l = 0; l < size; l++) {
        scratch[l] = scratch[2 * size + l] = 0;
        ((FN(integer) *)scratch)[size + l] = ((FN(integer) *)scratch)[3 * size + l] = -1;
    }
    const int64_t n = cols < VL ? cols : VL;
    FN(integers) lane, in_use;
    const FN(integers) none = (FN(integers)){0} - 1;
    for (int l = 0; l < VL; l++) {
        lane[l] = (FN(integer))l;
        in_use[l] = l < n ? -1 : 0;
    }
    /* Between rows i and i+1 of windows lies a row of pixels that both cover; row i covers the one before alone. */
    for (int64_t i = -1; i < p->rows || 2 * i + 1 - edge < p->H; i++) {
        upper = lower;
        T *next = scratch + (i + 1) % 2 * 2 * size;
        lower = next;
        FN(integer) *to = (FN(integer) *)(next + size) + VL;
        FN(integers) wrong = {0};
        for (int64_t j = 0;; j += VL) {
            j = FN(column_of)(j, cols);
            if (i + 1 >= p->rows) { /* nor below */
                *(VU *)(next + VL + j) = (V){0};
                *(FN(loose_integers) *)(to + j) = none;
            } else {
                const int64_t q = (i + 1) * cols + j, enough = p->rows * cols - q >= VL ? VL : n;
                const FN(integers) column = 2 * (lane + (FN(integer))j) - edge;
                const FN(integers) beyond = column + 3 - (FN(integer))W; /* the window's columns in the image: */
                const FN(integers) left = -column & (FN(integers))(column < 0);
                const FN(integers) right = 2 - (beyond & (FN(integers))(beyond > 0));
                FN(integers) at = FN(narrow)(index + q, enough) - column - (FN(integer))((2 * (i + 1) - edge) * W);
                FN(integers) missed = in_use;
                for (int k = 0; k < 3; k++) {
                    const FN(integers) tap = at - (FN(integer))(k * W);
                    missed &= ~(FN(integers))((tap >= left) & (tap <= right));
                }
                wrong |= missed;
                PREFETCH(grad + q + 32 * VL);
                *(VU *)(next + VL + j) = FN(load)(grad + q, enough);
                *(FN(loose_integers) *)(to + j) = (at & in_use) | ~in_use;
            }
            if (j + VL >= cols) break;
        }
        if (FN(any)(wrong)) return 0;
        for (int64_t h = 2 * i + 1 - edge, k = 1; k < 3 && h < p->H; h++, k++) {
            if (h < 0) continue;
            T *row = y + h * W;
            for (int64_t j = 0;; j += VL) {
                j = FN(column_of)(j, pairs);
                V alone = {0}, both = {0};
                for (int below = 0; below < k; below++) {
                    const T *g = (below ? lower : upper) + VL + j;
                    const FN(integer) *at = (const FN(integer) *)(g + size), tap = (FN(integer))((below ? 0 : k) * W);
                    alone += FN(where)(g, at, tap + 1);
                    both += FN(where)(g - 1 + edge, at - 1 + edge, tap + 2);
                    both += FN(where)(g + edge, at + edge, tap);
                }
                T *place = row + 2 * j, numbers[2 * VL];
                const int whole = end - place >= 2 * VL;
                FN(interleave)(edge ? alone : both, edge ? both : alone, whole ? place : numbers);
                if (!whole) FN(copy)(numbers, W - 2 * j < 2 * VL ? W - 2 * j : 2 * VL, place);
                if (j + VL >= pairs) break;
            }
        }
    }
    return 1;
}

/* Average pooling's backward of stride 1 as a forward without its division, of `planes` planes. */
static int FN(mirror)(const cnnx_pool *p, int64_t planes, cnnx_pool *turned)
{
    turned->planes = planes;
    turned->H = p->rows;
    turned->W = p->cols;
    turned->rows = turned->block = p->H;
    turned->cols = p->W;
    turned->top = p->kh - 1 - p->top;
    turned->left = p->kw - 1 - p->left;
    turned->bottom = turned->right = 0;
    turned->indices = NULL;
    return FN(pool_sizes)(turned);
}

/* Stride 1: each pixel is the sum of the windows that it lies in, so the gradients, divided, are pooled in turn. */
static void FN(avg_spread_rows)(const cnnx_pool *p, int64_t first, int64_t last, T *scratch)
{
    cnnx_pool turned = *p;
    const int64_t area = p->rows * p->cols;
    T *divisor = scratch, *divided = divisor + FN(align)(area);
    FN(mirror)(p, last - first, &turned);
    turned.x = divided;
    turned.y = (T *)p->y + first * p->H * p->W;
    for (int64_t i = 0, h = -p->top; i < p->rows; i++, h++)
        for (int64_t j = 0, w = -p->left; j < p->cols; j++, w++) {
            int64_t lo, hi, left, right;
            FN(taps_inside)(h, 1, p->kh, p->H, &lo, &hi);
            FN(taps_inside)(w, 1, p->kw, p->W, &left, &right);
            divisor[i * p->cols + j] = FN(extent)(p, h, p->kh, p->H + p->bottom, hi - lo) *
                                       FN(extent)(p, w, p->kw, p->W + p->right, right - left);
        }
    const T *grad = (const T *)p->x + first * area;
    for (int64_t plane = 0; plane < last - first; plane++, grad += area)
        for (int64_t q = 0; q < area; q++) divided[plane * area + q] = grad[q] / divisor[q];
    T *rest = divided + FN(align)(turned.planes * area);
    FN(pool_planes)(&turned, 0, 0, turned.rows, 0, turned.planes, 0, rest);
}
#endif

static void FN(pool_grad_plan)(cnnx_pool *p, int max)
{
    const int64_t size = p->H * p->W;
    p->m_block = FN(share)(p->planes, 16384 / size);
    p->m_blocks = p->tasks = (p->planes + p->m_block - 1) / p->m_block;
    p->way = CNNX_PLAIN;
    p->scratch = max ? 0 : (size_t)p->W * sizeof(T);
#if defined(__GNUC__)
    const int small = sizeof(T) == 8 || size < INT32_MAX; /* places are counted in integers of T's size */
    const int side_by_side = p->H == 2 * p->rows && p->W == 2 * p->cols;
    if (max) { /* stride 2, as far as sizes tell */
        const int64_t down = p->H - 2 * p->rows, right = p->W - 2 * p->cols;
        if (!small || down * down > 1 || right * right > 1) return;
        const double scratch = 4.0 * (double)(p->cols + 6 * VL) * sizeof(T);
        if (scratch > (double)CNNX_SCRATCH) return;
        p->way = CNNX_PAIRS;
        p->scratch = 4 * (size_t)FN(strip)(p) * sizeof(T);
    } else if (FN(is_whole)(p)) {
        p->way = CNNX_WHOLE;
    } else if (side_by_side && p->kh == 2 && p->kw == 2 && p->sh == 2 && p->sw == 2 && !p->top && !p->left) {
        p->way = CNNX_PAIRS;
    } else if (p->sh == 1 && p->sw == 1 && small) {
        cnnx_pool turned = *p;
        const int64_t area = p->rows * p->cols; /* divisors, and gradients divided */
        if (!FN(mirror)(p, p->m_block, &turned) || (p->m_block + 2) * area > CNNX_SCRATCH / 2 / (int64_t)sizeof(T)) return;
        p->way = CNNX_ROWS;
        p->scratch = turned.scratch + (size_t)(FN(align)(area) + FN(align)(p->m_block * area)) * sizeof(T);
    }
#endif
}

#if defined(__GNUC__)
/* The indices tell which windows they come from: each attempt ends at the first row of windows with another. */
static NOINLINE int FN(gather_windows)(const cnnx_pool *p, const T *grad, const int64_t *index, T *to, const T *end,
                               T *scratch)
{
    const int side_by_side = p->H == 2 * p->rows && p->W == 2 * p->cols;
    return (side_by_side && FN(spread_pairs)(p, grad, index, to, end)) ||
           FN(gather_threes)(1, p, grad, index, to, end, scratch) ||
           FN(gather_threes)(0, p, grad, index, to, end, scratch);
}
#endif

/* The first index outside the image, or -1. */
static int64_t FN(bad_index)(const int64_t *index, int64_t n, int64_t size)
{
    uint64_t bad = 0;
    for (int64_t q = 0; q < n; q++) bad |= (uint64_t)index[q] >= (uint64_t)size;
    for (int64_t q = 0; bad && q < n; q++)
        if ((uint64_t)index[q] >= (uint64_t)size) return q;
    return -1;
}

static void FN(max_pool_backward)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_pool *p = problem;
    (void)scratch;
    const int64_t size = p->H * p->W, windows = p->rows * p->cols, first = task * p->m_block;
    const int64_t last = first + p->m_block < p->planes ? first + p->m_block : p->planes;
    for (int64_t plane = first; plane < last; plane++) {
        const T *grad = (const T *)p->x + plane * windows;
        T *to = (T *)p->y + plane * size;
        const int64_t *index = p->indices + plane * windows, bad = FN(bad_index)(index, windows, size);
        p->bad[plane] = bad < 0 ? -1 : plane * windows + bad;
        if (bad >= 0) continue;
#if defined(__GNUC__)
        if (p->way == CNNX_PAIRS && FN(gather_windows)(p, grad, index, to, (T *)p->y + last * size, scratch)) continue;
#endif
        memset(to, 0, (size_t)size * sizeof(T));
        for (int64_t q = 0; q < windows; q++) to[index[q]] += grad[q];
    }
}

/* A row of windows is spread along the row once, and that is added to each of the rows they cover. */
static void FN(avg_spread_plane)(const cnnx_pool *p, const T *grad, T *to, T *row)
{
    memset(to, 0, (size_t)(p->H * p->W) * sizeof(T));
    for (int64_t i = 0; i < p->rows; i++, grad += p->cols) {
        int64_t i0 = i * p->sh - p->top, klo, khi;
        if (FN(is_long)(p) && cnnx_stop()) return;
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

static void FN(avg_pool_backward)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_pool *p = problem;
    const int64_t size = p->H * p->W, first = task * p->m_block;
    const int64_t last = first + p->m_block < p->planes ? first + p->m_block : p->planes;
#if defined(__GNUC__)
    const T *end = (T *)p->y + last * size;
    if (p->way == CNNX_ROWS) {
        FN(avg_spread_rows)(p, first, last, scratch);
        return;
    }
    const T divisor = p->way == CNNX_WHOLE ? FN(extent)(p, -p->top, p->kh, p->H + p->bottom, p->H) *
                                                 FN(extent)(p, -p->left, p->kw, p->W + p->right, p->W)
                                           : 1;
#endif
    for (int64_t plane = first; plane < last; plane++) {
        const T *grad = (const T *)p->x + plane * p->rows * p->cols;
        T *to = (T *)p->y + plane * size;
#if defined(__GNUC__)
        if (p->way == CNNX_WHOLE) {
            const V share = *grad / divisor - (V){0};
            int64_t q = 0; /* whole vectors, of which the next plane overwrites what is too much */
            for (; q < size && end - (to + q) >= VL; q += VL) *(VU *)(to + q) = share;
            for (; q < size; q++) to[q] = share[0];
            continue;
        }
        if (p->way == CNNX_PAIRS) {
            FN(spread_pairs)(p, grad, NULL, to, end);
            continue;
        }
#endif
        FN(avg_spread_plane)(p, grad, to, scratch);
    }
}
