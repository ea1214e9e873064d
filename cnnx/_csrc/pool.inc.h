/* Max and average pooling, forward. Contracts: cnnx_pool in kernels.h.
 *
 * Rows are read where they are, as by depthwise convolution (rows.inc.h), and columns beside the image are
 * replaced by minus infinity or zero: vectors run along the output's row. The usual windows have their sizes
 * compiled in. An average of the whole image is a sum along memory. What is left, a single window across a
 * larger image, and compilers without vectors, has plain loops.
 */
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

/* Whether a window takes so long that cnnx_stop costs nothing beside it. */
static inline int FN(is_long)(const cnnx_pool *p) { return (double)p->kh * (double)p->kw > 4096; }

/* The first of equal values wins, in row-major order, and so does the first NaN. Rows first .. end-1 of windows. */
static void FN(max_plane)(const cnnx_pool *p, int64_t plane, int64_t first, int64_t end)
{
    const T *x = (const T *)p->x + plane * p->H * p->W;
    T *y = (T *)p->y + plane * p->rows * p->cols;
    int64_t *indices = p->indices ? p->indices + plane * p->rows * p->cols : NULL;
    for (int64_t i = first; i < end; i++) {
        int64_t i0 = i * p->sh - p->top, klo, khi;
        FN(taps_inside)(i0, p->dh, p->kh, p->H, &klo, &khi);
        for (int64_t j = 0; j < p->cols; j++) {
            int64_t j0 = j * p->sw - p->left, llo, lhi;
            FN(taps_inside)(j0, p->dw, p->kw, p->W, &llo, &lhi);
            if (FN(is_long)(p) && cnnx_stop()) return;
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

static void FN(avg_plane)(const cnnx_pool *p, int64_t plane, int64_t first, int64_t end)
{
    const T *x = (const T *)p->x + plane * p->H * p->W;
    T *y = (T *)p->y + plane * p->rows * p->cols;
    for (int64_t i = first; i < end; i++) {
        int64_t i0 = i * p->sh - p->top, klo, khi;
        FN(taps_inside)(i0, 1, p->kh, p->H, &klo, &khi);
        const T height = FN(extent)(p, i0, p->kh, p->H + p->bottom, khi - klo);
        for (int64_t j = 0; j < p->cols; j++) {
            int64_t j0 = j * p->sw - p->left, llo, lhi;
            FN(taps_inside)(j0, 1, p->kw, p->W, &llo, &lhi);
            T sum = 0;
            if (FN(is_long)(p) && cnnx_stop()) return;
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
/* VL numbers a step apart. S is the step where the compiler knows it, and b[1] then the numbers between. */
static ALWAYS_INLINE void FN(load_window)(const int S, int64_t step, const T *x, V b[2])
{
    if (S) {
        FN(load_columns)(S, x, b);
    } else if (step == 1) {
        b[0] = *(const VU *)x;
    } else {
        T lanes[VL];
        for (int l = 0; l < VL; l++) lanes[l] = x[l * step];
        b[0] = *(const VU *)lanes;
    }
}

/* Where v beats the best so far: the first of equals wins, and so does the first NaN. */
static ALWAYS_INLINE void FN(take)(const int indexed, V v, FN(integers) from, V *best, FN(integers) *at)
{
    const FN(integers) take = (FN(integers))(~(v <= *best) & (*best == *best));
    *best = FN(select)(take, v, *best);
    if (indexed) *at = (take & from) | (~take & *at);
}

/* Tables of a row of windows, for each vector v of it: the columns' masks (kw vectors), the first column inside
 * the image (maximum) or how many columns count (average). */
typedef struct {
    const FN(integer) *mask, *first;
    const T *width;
} FN(pool_tables);

/* The kernels: rows i0 .. i0 + count-1 of windows in one plane, K x K of stride S where the compiler knows them,
 * else 0; rows[0] is the first that they reach. What a vector has too much, the next row overwrites. */

/* Maxima begin with the first pixel inside the image; a border of minus infinity never beats that. */
static ALWAYS_INLINE void
FN(max_windows)(const int indexed, const int K, const int S, const cnnx_pool *p, const T *const *rows,
                const FN(pool_tables) *tables, int64_t i0, int64_t count, T *y, int64_t *indices, const T *end)
{
    const int64_t kw = K ? K : p->kw, kh = K ? K : p->kh, dh = S ? 1 : p->dh, dw = S ? 1 : p->dw;
    const int64_t sh = S ? S : p->sh, sw = S ? S : p->sw, cols = p->cols, W = p->W;
    FN(integers) lane;
    for (int l = 0; l < VL; l++) lane[l] = (FN(integer))(l * sw);
    for (int64_t i = 0; i < count; i++, rows += sh, y += cols, indices += indexed ? cols : 0) {
        const FN(integer) *mask = tables->mask, *first = tables->first;
        const int64_t h = (i0 + i) * sh - p->top;
        int64_t lo, hi;
        FN(taps_inside)(h, dh, kh, p->H, &lo, &hi);
        for (int64_t j = 0;; j += VL, first += VL, mask += kw * VL) {
            j = FN(column_of)(j, cols);
            if (!K && FN(is_long)(p) && cnnx_stop()) return;
            V best = {0};
            FN(integers) at = {0};
            const FN(integers) column = lane + (FN(integer))(j * sw - p->left);
            for (int64_t k = 0; k < kh; k++) {
                if (k < lo || k >= hi) continue;
                const T *x = rows[k * dh] + j * sw;
                V part = {0};
                FN(integers) place = *(const FN(loose_integers) *)first;
                if (S) UNROLL for (int e = 0; e < S * S; e++) PREFETCH(x + e / S * W + e % S * VL + 8 * W);
                for (int64_t q = 0; q < kw; q += S ? S : 1) {
                    V b[2];
                    FN(load_window)(S, sw, x + q * dw, b);
                    for (int e = 0; e < (S ? S : 1); e++) {
                        if (q + e == kw) break;
                        const FN(integers) inside = *(const FN(loose_integers) *)(mask + (q + e) * VL);
                        b[e] = FN(select)(inside, b[e], (V){0} - INFINITY);
                        if (q + e == 0)
                            part = b[e];
                        else
                            FN(take)(indexed, b[e], column + (FN(integer))((q + e) * dw), &part, &place);
                    }
                }
                place += (FN(integer))((h + k * dh) * W);
                if (k == lo) {
                    best = part;
                    at = place;
                } else {
                    FN(take)(indexed, part, place, &best, &at);
                }
            }
            FN(integer) spots[VL];
            if (indexed) *(FN(loose_integers) *)spots = at;
            if (end - (y + j) >= VL) {
                *(VU *)(y + j) = best;
                if (indexed)
                    for (int l = 0; l < VL; l++) indices[j + l] = spots[l];
            } else {
                T numbers[VL];
                *(VU *)numbers = best;
                FN(copy)(numbers, end - (y + j), y + j);
                if (indexed)
                    for (int64_t l = 0; l < end - (y + j); l++) indices[j + l] = spots[l];
            }
            if (j + VL >= cols) break;
        }
    }
}

/* Averages, or sums where there is no width: of column sums, for the error of a 7x7 window then is that of 7 + 7
 * terms. */
static ALWAYS_INLINE void
FN(avg_windows)(const int K, const int S, const cnnx_pool *p, const T *const *rows, const FN(pool_tables) *tables,
                int64_t i0, int64_t count, T *y, const T *end)
{
    const int64_t kw = K ? K : p->kw, kh = K ? K : p->kh, sh = S ? S : p->sh, sw = S ? S : p->sw, cols = p->cols;
    for (int64_t i = 0; i < count; i++, rows += sh, y += cols) {
        const FN(integer) *mask = tables->mask;
        const T *width = tables->width;
        const int64_t h = (i0 + i) * sh - p->top;
        int64_t lo, hi;
        FN(taps_inside)(h, 1, kh, p->H, &lo, &hi);
        const T height = FN(extent)(p, h, kh, p->H + p->bottom, hi - lo);
        for (int64_t j = 0;; j += VL, mask += kw * VL) {
            j = FN(column_of)(j, cols);
            if (!K && FN(is_long)(p) && cnnx_stop()) return;
            V sum = {0};
            for (int64_t q = 0; q < kw; q += S ? S : 1) {
                V part[2] = {{0}, {0}}, b[2];
                for (int64_t k = 0; k < kh; k++) { /* above and below the image are rows of zeros */
                    FN(load_window)(S, sw, rows[k] + j * sw + q, b);
                    for (int e = 0; e < (S ? S : 1); e++) part[e] += b[e];
                }
                for (int e = 0; e < (S ? S : 1) && q + e < kw; e++)
                    sum += FN(masked)(part[e], mask + (q + e) * VL);
            }
            if (width) {
                sum /= *(const VU *)width * height;
                width += VL;
            }
            if (end - (y + j) >= VL) {
                *(VU *)(y + j) = sum;
            } else {
                T numbers[VL];
                *(VU *)numbers = sum;
                FN(copy)(numbers, end - (y + j), y + j);
            }
            if (j + VL >= cols) break;
        }
    }
}

typedef void (*FN(pool_tile))(const cnnx_pool *, const T *const *, const FN(pool_tables) *, int64_t, int64_t, T *,
                              int64_t *, const T *);

#define POOL(name, K, S, call)                                                                         \
    static NOINLINE void FN(pool_##name##_##K##_##S)(                                                   \
        const cnnx_pool *p, const T *const *rows, const FN(pool_tables) *tables, int64_t i0, int64_t count, \
        T *y, int64_t *indices, const T *end)                                                          \
    {                                                                                                  \
        (void)indices;                                                                                 \
        call;                                                                                          \
    }
#define POOLS(K, S)                                                                                    \
    POOL(avg, K, S, FN(avg_windows)(K, S, p, rows, tables, i0, count, y, end))                         \
    POOL(max, K, S, FN(max_windows)(0, K, S, p, rows, tables, i0, count, y, NULL, end))                \
    POOL(indexed, K, S, FN(max_windows)(1, K, S, p, rows, tables, i0, count, y, indices, end))
POOLS(0, 0) POOLS(2, 2) POOLS(3, 1) POOLS(3, 2)
#undef POOLS
#undef POOL

static const FN(pool_tile) FN(pool_tiles)[4][3] = {
#define ROW(K, S) {FN(pool_avg_##K##_##S), FN(pool_max_##K##_##S), FN(pool_indexed_##K##_##S)}
    ROW(0, 0), ROW(2, 2), ROW(3, 1), ROW(3, 2),
#undef ROW
};

static FN(pool_tile) FN(choose_tile)(const cnnx_pool *p, int max)
{
    int window = 0;
    if (p->kh == p->kw && p->sh == p->sw && p->dh == 1 && p->dw == 1)
        window = p->kw == 2 && p->sw == 2 ? 1 : p->kw == 3 && p->sw == 1 ? 2 : p->kw == 3 && p->sw == 2 ? 3 : 0;
    return FN(pool_tiles)[window][max ? 1 + (p->indices != NULL) : 0];
}

/* Sizes of the tables and of the copies of rows; 0 where they are too large. */
static int FN(pool_sizes)(cnnx_pool *p)
{
    const double reach = (double)(p->cols + VL) * (double)p->sw + (double)p->kw * (double)p->dw;
    const double table = (double)p->block * (double)p->sh + (double)p->kh * (double)p->dh;
    const double spare = 2 * (reach / (double)p->W + 2), strip = (double)(p->cols + VL);
    if (((table < spare ? table : spare) + 1) * reach * sizeof(T) + table * sizeof(T *) +
            strip * (double)(p->kw + 2) * sizeof(T) > CNNX_SCRATCH / 2)
        return 0;
    const int64_t over = (p->cols > VL ? p->cols - VL : 0) * p->sw, strips = (p->cols + VL - 1) / VL;
    /* A window of stride 2 loads pairs. */
    p->reach = over + (p->kw - 1) * p->dw + VL * p->sw;
    p->table_rows = (p->block - 1) * p->sh + (p->kh - 1) * p->dh + 1;
    p->image_size = FN(align)(FN(spare_rows)(p->table_rows, p->W, p->reach) * p->reach);
    p->mask_size = strips * p->kw * VL;
    p->scratch = (size_t)(p->image_size + p->mask_size + 2 * strips * VL) * sizeof(T) +
                 (size_t)p->table_rows * sizeof(T *);
    return 1;
}

/* Rows i0 .. i0 + count-1 of windows of planes first .. last-1. */
static void FN(pool_planes)(const cnnx_pool *p, int max, int64_t i0, int64_t count, int64_t first, int64_t last,
                            int divide, void *scratch)
{
    T *spare = scratch, *width = spare + p->image_size;
    const int64_t strips = (p->cols + VL - 1) / VL;
    FN(integer) *mask = (FN(integer) *)(width + strips * VL), *begin = mask + p->mask_size;
    const T **rows = (const T **)(begin + strips * VL);
    const FN(pool_tables) tables = {mask, begin, divide ? width : NULL};
    const FN(rows_of) source = {p->x, p->planes * p->H * p->W, p->H, p->W, -p->left, p->reach, spare};
    const FN(pool_tile) tile = FN(choose_tile)(p, max);
    const T *end = (T *)p->y + ((last - 1) * p->rows + i0 + count) * p->cols;
    FN(fill)(p->reach, spare, 0);
    FN(column_masks)(p->cols, p->sw, p->dw, -p->left, p->W, p->kw, 0, mask);
    for (int64_t v = 0; v < strips; v++)
        for (int64_t l = 0; l < VL; l++) {
            const int64_t j = FN(column_of)(v * VL, p->cols) + l, j0 = j * p->sw - p->left;
            int64_t lo = 0, hi = 1;
            if (j < p->cols) FN(taps_inside)(j0, p->dw, p->kw, p->W, &lo, &hi);
            begin[v * VL + l] = (FN(integer))(j0 + lo * p->dw);
            width[v * VL + l] = j < p->cols ? FN(extent)(p, j0, p->kw, p->W + p->right, hi - lo) : 1;
        }
    for (int64_t plane = first; plane < last; plane++) {
        FN(find_rows)(&source, plane, i0 * p->sh - p->top, (count - 1) * p->sh + (p->kh - 1) * p->dh + 1, rows);
        const int64_t at = (plane * p->rows + i0) * p->cols;
        tile(p, rows, &tables, i0, count, (T *)p->y + at, p->indices ? p->indices + at : NULL, end);
    }
}

/* Sums in lanes of VL planes of 7x7, the usual size at the end of a network, which are 49 whole vectors: each plane
 * is the vectors that it touches, its first and last masked. Loads from a plane's own beginning cross cache
 * lines, and loops of three rounds cost more than they add up: 1.7 ns a plane, which took 2.7. */
static ALWAYS_INLINE void FN(sum_sevens)(const T *x, const FN(integer) *edge, V sums[VL])
{
    UNROLL for (int l = 0; l < VL; l++) {
        const int from = l * 49 / VL, to = (l * 49 + 48) / VL;
        V sum = FN(masked)(*(const VU *)(x + from * VL), edge + VL - l * 49 % VL);
        UNROLL for (int v = from + 1; v < to; v++) sum += *(const VU *)(x + v * VL);
        FN(prefetch)(x + (2 * VL + l) * 49, 49);
        sums[l] = sum + FN(masked)(*(const VU *)(x + to * VL), edge + 2 * VL - ((l * 49 + 48) % VL + 1));
    }
}

/* Averages of planes first .. last-1 as a whole, VL at a time: sums of 16 vectors, lest long ones lose digits. */
static void FN(avg_whole)(const cnnx_pool *p, int64_t first, int64_t last)
{
    const int64_t n = p->H * p->W, rest = n % VL;
    const T *end = (const T *)p->x + p->planes * n;
    const T divisor = FN(extent)(p, -p->top, p->kh, p->H + p->bottom, p->H) *
                      FN(extent)(p, -p->left, p->kw, p->W + p->right, p->W);
    FN(integer) edge[3 * VL]; /* from lane l on: edge + VL - l; lanes before it: edge + 2*VL - l */
    for (int l = 0; l < 3 * VL; l++) edge[l] = l / VL == 1 ? -1 : 0;
    const FN(integer) *mask = edge + 2 * VL - rest;
    for (int64_t plane = first; plane < last; plane += VL) {
        const int64_t count = last - plane < VL ? last - plane : VL;
        V sums[VL];
        if (n == 49 && count == VL) {
            FN(sum_sevens)((const T *)p->x + plane * n, edge, sums);
            *(VU *)((T *)p->y + plane) = FN(sum_each)(sums) / divisor;
            continue;
        }
        for (int64_t l = 0; l < count; l++) {
            const T *x = (const T *)p->x + (plane + l) * n, *whole = x + n - rest;
            V sum = {0};
            if (rest && end - whole >= VL) {
                sum = FN(masked)(*(const VU *)whole, mask);
            } else if (rest) {
                T lanes[VL] = {0};
                memcpy(lanes, whole, (size_t)rest * sizeof(T));
                sum = *(const VU *)lanes;
            }
            for (; whole - x > 16 * VL; x += 16 * VL) {
                V part = {0};
                for (int64_t q = 0; q < 16 * VL; q += VL) part += *(const VU *)(x + q);
                sum += part;
            }
            for (; x < whole; x += VL) sum += *(const VU *)x;
            sums[l] = sum;
        }
        for (int64_t l = count; l < VL; l++) sums[l] = (V){0};
        T averages[VL], *y = (T *)p->y + plane;
        *(VU *)(count < VL ? averages : y) = FN(sum_each)(sums) / divisor;
        if (count < VL) memcpy(y, averages, (size_t)count * sizeof(T));
    }
}
#endif

/* Whether one window sees the whole image. */
static inline int FN(is_whole)(const cnnx_pool *p)
{
    return p->rows == 1 && p->cols == 1 && p->kh - p->top >= p->H && p->kw - p->left >= p->W;
}

static void FN(pool_plan)(cnnx_pool *p, int max)
{
    const int64_t size = p->H * p->W; /* numbers of a task, fewer where windows are large: microseconds */
    p->way = CNNX_PLAIN;
    p->block = FN(share)(p->rows, 16384 / p->W / p->sh + 4);
    p->scratch = 0;
#if defined(__GNUC__)
    /* Indices are counted in integers of T's size. */
    const int small = sizeof(T) == 8 || size < INT32_MAX || !(max && p->indices);
    if (!max && FN(is_whole)(p)) {
        p->way = CNNX_WHOLE;
    } else if (p->cols > 1 && small && FN(pool_sizes)(p)) {
        p->way = CNNX_ROWS;
    }
#endif
    p->blocks = (p->rows + p->block - 1) / p->block;
    const double window = p->way == CNNX_WHOLE ? 1 : (double)p->kh * (double)p->kw;
    const int64_t most = window > 9 ? (int64_t)(9 * 16384 / window) : 16384;
    p->m_block = FN(share)(p->planes, p->blocks > 1 ? 1 : most / size);
    if (p->way == CNNX_WHOLE) p->m_block = (p->m_block + VL - 1) / VL * VL;
    p->m_blocks = (p->planes + p->m_block - 1) / p->m_block;
    p->tasks = p->blocks * p->m_blocks;
}

static ALWAYS_INLINE void FN(pool)(const int max, const cnnx_pool *p, int64_t task, void *scratch)
{
    const int64_t i0 = task % p->blocks * p->block, first = task / p->blocks * p->m_block;
    const int64_t count = p->rows - i0 < p->block ? p->rows - i0 : p->block;
    const int64_t last = first + p->m_block < p->planes ? first + p->m_block : p->planes;
    (void)scratch, (void)count;
#if defined(__GNUC__)
    if (p->way == CNNX_ROWS) {
        FN(pool_planes)(p, max, i0, count, first, last, !max, scratch);
        return;
    }
    if (p->way == CNNX_WHOLE) {
        FN(avg_whole)(p, first, last);
        return;
    }
#endif
    for (int64_t plane = first; plane < last; plane++)
        if (max)
            FN(max_plane)(p, plane, i0, i0 + count);
        else
            FN(avg_plane)(p, plane, i0, i0 + count);
}

static void FN(max_pool)(const void *problem, int64_t task, void *scratch)
{
    FN(pool)(1, problem, task, scratch);
}

static void FN(avg_pool)(const void *problem, int64_t task, void *scratch)
{
    FN(pool)(0, problem, task, scratch);
}
