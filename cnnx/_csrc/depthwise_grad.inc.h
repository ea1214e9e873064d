/* Depthwise convolution, the gradients by weight and, for a stride of 2, by input. (That of stride 1 is a
 * convolution.) They stand on the rows and masks of depthwise.inc.h.
 */
/* Input gradient of stride 2, all four phases at once, R pairs of rows and VL pairs of columns. Of the output's
 * gradient the pair t meets rows t + c .. t + c + n-1, n = (K + 1)/2; its row f (0 or 1) meets
 * row r of them under tap 2*(n - 1 - r) + f - K/2%2, if there is one. And so do columns. */
static ALWAYS_INLINE void
FN(depthwise_pairs)(const int K, const int R, const cnnx_conv *p, const T *const *rows, const T *w, T bias,
                    const FN(integer) *mask, int64_t count, T *y, const T *end)
{
    const int n = (K + 1) / 2, odd = K / 2 % 2;
    const int64_t pairs = (p->W + 1) / 2, W = p->W;
    for (int64_t j = 0;; j += VL, mask += n * VL) {
        j = FN(column_of)(j, pairs);
        V acc[4][2][2];
        UNROLL for (int i = 0; i < R; i++)
            UNROLL for (int f = 0; f < 2; f++)
                UNROLL for (int e = 0; e < 2; e++) acc[i][f][e] = bias - (V){0};
        UNROLL for (int s = 0; s < n; s++)
            UNROLL for (int r = 0; r < R - 1 + n; r++) {
                V b = FN(masked)(*(const VU *)(rows[r] + j + s), mask + s * VL);
                KEEP(b);
                UNROLL for (int i = 0; i < R; i++)
                    UNROLL for (int f = 0; f < 2; f++)
                        UNROLL for (int e = 0; e < 2; e++) {
                            const int kh = 2 * (n - 1 - r + i) + f - odd, kw = 2 * (n - 1 - s) + e - odd;
                            if (r >= i && r - i < n && kh >= 0 && kh < K && kw >= 0 && kw < K)
                                acc[i][f][e] += w[kh * K + kw] * b;
                        }
            }
        const int alone = pairs <= VL; /* the next row comes later, and overwrites what is too much */
        UNROLL for (int i = 0; i < R; i++)
            UNROLL for (int f = 0; f < 2; f++) {
                T *to = y + (2 * i + f) * W + 2 * j;
                if (2 * i + f >= count) break;
                if (end - to >= 2 * VL && (alone || 2 * (j + VL) <= W)) {
                    FN(interleave)(acc[i][f][0], acc[i][f][1], to);
                } else {
                    T row[2 * VL];
                    FN(interleave)(acc[i][f][0], acc[i][f][1], row);
                    FN(copy)(row, W - 2 * j < 2 * VL ? W - 2 * j : 2 * VL, to);
                }
            }
        if (j + VL >= pairs) break;
    }
}

#define PAIRS(K)                                                                                       \
    static NOINLINE void FN(depthwise_pairs_##K)(const cnnx_conv *p, const T *const *rows, const T *w, T bias, \
                                                 const FN(integer) *mask, int64_t count, T *y, const T *end) \
    {                                                                                                  \
        FN(depthwise_pairs)(K, 2, p, rows, w, bias, mask, count, y, end);                              \
    }
PAIRS(3) PAIRS(5) PAIRS(7)
#undef PAIRS

/* The problem is the forward's, but x is the output's gradient (read) and y the input's (written). */
static int FN(depthwise_grad_plan)(cnnx_conv *p)
{
    if (p->sh != 2 || !FN(is_depthwise)(p)) return 0;
    if (FN(channels_plan)(p, 1)) return 1;
    const int K = FN(kernel_size)(p), n = (K + 1) / 2;
    if ((p->top + K / 2) % 2 || (p->left + K / 2) % 2) return 0; /* taps would fall to the other phases */
    const int64_t planes = p->N * p->groups, pairs = (p->W + 1) / 2, down = (p->H + 1) / 2;
    p->block = FN(share)(down, 2048 / pairs > 4 ? 2048 / pairs / 4 * 4 : 4);
    p->blocks = (down + p->block - 1) / p->block;
    /* Planes in blocks go one by one: what a short row writes beyond its end would be another task's. */
    p->m_block = FN(share)(planes, p->blocks > 1 ? 1 : 2048 / (p->block * pairs));
    p->m_blocks = (planes + p->m_block - 1) / p->m_block;
    p->tasks = p->m_blocks * p->blocks;
    p->image_width = (pairs > VL ? pairs : VL) + n - 1;
    p->tile_rows = (p->block > 2 ? p->block : 2) - 1 + n;
    p->image_size = FN(align)(FN(spare_rows)(p->tile_rows, p->cols, p->image_width) * p->image_width);
    p->plane = (pairs + VL - 1) / VL * n * VL;
    p->scratch = (size_t)(p->image_size + p->plane) * sizeof(T) + (size_t)p->tile_rows * sizeof(T *);
    return FN(rows_fit)(p->tile_rows, p->cols, p->image_width, p->plane);
}

static void FN(depthwise_grad)(const void *problem, int64_t task, void *scratch)
{
    static const FN(depthwise_rows) tiles[] = {FN(depthwise_pairs_3), FN(depthwise_pairs_5), FN(depthwise_pairs_7)};
    const cnnx_conv *p = problem;
    if (p->c_step) {
        FN(depthwise_channels)(p, 1, task, scratch);
        return;
    }
    T *spare = scratch;
    FN(integer) *mask = (FN(integer) *)(spare + p->image_size);
    const T **rows = (const T **)(mask + p->plane);
    const int K = FN(kernel_size)(p), n = (K + 1) / 2;
    const int64_t top = (1 - p->top) / 2 - K / 2, left = (1 - p->left) / 2 - K / 2; /* the kernel's c */
    const int64_t pairs = (p->W + 1) / 2, down = (p->H + 1) / 2, planes = p->N * p->groups;
    const int64_t i0 = task % p->blocks * p->block, first = task / p->blocks * p->m_block;
    const int64_t count = down - i0 < p->block ? down - i0 : p->block;
    const int64_t last = first + p->m_block < planes ? first + p->m_block : planes;
    const int64_t bottom = 2 * (i0 + count) < p->H ? 2 * (i0 + count) : p->H;
    const FN(rows_of) source = {p->x, planes * p->rows * p->cols, p->rows, p->cols, left, p->image_width, spare};
    const T *end = (T *)p->y + ((last - 1) * p->H + bottom) * p->W;
    FN(fill)(p->image_width, spare, 0);
    FN(column_masks)(pairs, 1, 1, left, p->cols, n, 0, mask);
    for (int64_t plane = first; plane < last; plane++) {
        const int64_t g = plane % p->groups;
        const T *w = (const T *)p->weight + g * p->taps, bias = p->bias ? ((const T *)p->bias)[g] : 0;
        FN(find_rows)(&source, plane, i0 + top, (count > 2 ? count : 2) - 1 + n, rows);
        for (int64_t i = 0;; i += 2) {
            if (i + 2 > count) i = count > 2 ? count - 2 : 0;
            const int64_t h = 2 * (i0 + i);
            T *y = (T *)p->y + (plane * p->H + h) * p->W;
            tiles[K / 2 - 1](p, rows + i, w, bias, mask, bottom - h, y, end);
            if (i + 2 >= count) break;
        }
    }
}

/* Weight gradient: acc[k][l] += dy times what tap (k, l) of n rows of the kernel sees, in lanes, for R rows of dy. */
static ALWAYS_INLINE void
FN(depthwise_outer)(const int K, const int S, const int n, const int R, const cnnx_conv *p, const T *const *x,
                    const T *const *dy, int64_t j, const FN(integer) *mask, V acc[5][7])
{
    V d[TALL];
    UNROLL for (int i = 0; i < R; i++) d[i] = FN(masked)(*(const VU *)(dy[i] + j), mask + K * VL);
    if (K == 3 && S == 1 && n == 3 && FN(is_narrow)(p)) {
        UNROLL for (int r = 0; r < R - 1 + n; r++) {
            V b[3];
            FN(three_columns)(x[r], mask, b);
            UNROLL for (int q = 0; q < 3; q++)
                UNROLL for (int i = 0; i < R; i++)
                    if (r - i >= 0 && r - i < n) acc[r - i][q] += d[i] * b[q];
        }
        return;
    }
    UNROLL for (int q = 0; q < K; q += S)
        UNROLL for (int r = 0; r < (R - 1) * S + n; r++) {
            V b[2];
            FN(load_columns)(S, x[r] + j * S + q, b);
            UNROLL for (int e = 0; e < S; e++) {
                if (q + e == K) break;
                b[e] = FN(masked)(b[e], mask + (q + e) * VL);
                KEEP(b[e]);
                UNROLL for (int i = 0; i < R; i++)
                    if (r - i * S >= 0 && r - i * S < n) acc[r - i * S][q + e] += d[i] * b[e];
            }
        }
}

/* The same for `rows` rows, the sums in registers: of all the kernel's rows, or of some at a time. */
static ALWAYS_INLINE void
FN(depthwise_sums)(const int K, const int S, const cnnx_conv *p, int64_t rows, const T *const *x,
                   const T *const *dy, const FN(integer) *mask, T *sums)
{
    const int wide = VECTOR_BYTES == 64; /* 32 registers, not 16 */
    const int most = K == 3 ? 3 : K == 5 ? (wide ? 5 : 2) : wide ? 3 : 1, R = wide && K != 5 ? 7 : 4;
    for (int64_t j = 0;; j += VL, mask += (K + 1) * VL) {
        j = FN(column_of)(j, p->cols);
        UNROLL for (int k = 0; k < K; k += most) {
            const int n = K - k < most ? K - k : most;
            V acc[5][7];
            UNROLL for (int a = 0; a < n; a++)
                UNROLL for (int b = 0; b < K; b++) acc[a][b] = *(const VU *)(sums + ((k + a) * K + b) * VL);
            int64_t i = 0;
            for (; i + R <= rows; i += R) {
                if (j == 0 && k == 0) {
                    FN(prefetch)(x[i * S + K - 1] + R * S * p->W, R * S * p->W);
                    FN(prefetch)(dy[i] + R * p->cols, R * p->cols);
                }
                FN(depthwise_outer)(K, S, n, R, p, x + i * S + k, dy + i, j, mask, acc);
            }
            for (; i < rows; i++) FN(depthwise_outer)(K, S, n, 1, p, x + i * S + k, dy + i, j, mask, acc);
            UNROLL for (int a = 0; a < n; a++)
                UNROLL for (int b = 0; b < K; b++) *(VU *)(sums + ((k + a) * K + b) * VL) = acc[a][b];
        }
        if (j + VL >= p->cols) break;
    }
}

typedef void (*FN(depthwise_rows_sums))(const cnnx_conv *, int64_t, const T *const *, const T *const *,
                                        const FN(integer) *, T *);

#define SUMS(K, S)                                                                                     \
    static NOINLINE void FN(depthwise_sums_##K##_##S)(const cnnx_conv *p, int64_t rows, const T *const *x, \
                                                      const T *const *dy, const FN(integer) *mask, T *sums) \
    {                                                                                                  \
        FN(depthwise_sums)(K, S, p, rows, x, dy, mask, sums);                                          \
    }
SUMS(3, 1) SUMS(5, 1) SUMS(7, 1) SUMS(3, 2) SUMS(5, 2) SUMS(7, 2)
#undef SUMS

static const FN(depthwise_rows_sums) FN(depthwise_sums_of)[2][3] = {
    {FN(depthwise_sums_3_1), FN(depthwise_sums_5_1), FN(depthwise_sums_7_1)},
    {FN(depthwise_sums_3_2), FN(depthwise_sums_5_2), FN(depthwise_sums_7_2)},
};

/* A task is some groups' share of one piece: of some images or, where there are few planes, of some blocks of rows. */
static int FN(depthwise_weight_plan)(cnnx_conv_weight *q)
{
    cnnx_conv *p = &q->conv;
    if (!FN(is_depthwise)(p)) return 0;
    p->depth = p->taps;
    if (FN(channels_weight_plan)(q)) return 1;
    if (!FN(depthwise_rows_plan)(p)) return 0;
    const int64_t pieces = 32 / p->groups + 1;
    q->piece = FN(share)(p->N, (p->N + pieces - 1) / pieces);
    if (q->piece > 8192 / (p->rows * p->cols) + 1) q->piece = 8192 / (p->rows * p->cols) + 1;
    p->m_block = FN(share)(p->groups, 8192 / (q->piece * p->rows * p->cols));
    const int64_t planes = p->N * p->groups, parts = q->piece == 1 && planes < 16 ? (15 + planes) / planes : 1;
    q->chunks = p->N * p->blocks;
    q->piece = parts > 1 ? FN(share)(p->blocks, (p->blocks + parts - 1) / parts) : q->piece * p->blocks;
    q->pieces = (q->chunks + q->piece - 1) / q->piece;
    p->m_blocks = (p->groups + p->m_block - 1) / p->m_block;
    q->tasks = q->pieces * p->m_blocks;
    q->x_size = FN(align)(FN(spare_rows)(p->block, p->cols, VL) * (p->cols > VL ? p->cols : VL));
    p->plane += (p->cols + VL - 1) / VL * VL; /* masks of dy */
    q->scratch = (size_t)(p->image_size + q->x_size + p->plane + (p->taps + VL) * VL) * sizeof(T) +
                 (size_t)(p->tile_rows + p->block) * sizeof(T *);
    return 1;
}

static void FN(depthwise_weight)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv_weight *q = problem;
    const cnnx_conv *p = &q->conv;
    if (p->c_step) {
        FN(channels_weight)(q, task, scratch);
        return;
    }
    T *spare = scratch, *dy_spare = spare + p->image_size, *sums = dy_spare + q->x_size;
    FN(integer) *mask = (FN(integer) *)(sums + (p->taps + VL) * VL);
    const T **x = (const T **)(mask + p->plane), **dy = x + p->tile_rows;
    const int K = FN(kernel_size)(p);
    const int64_t piece = task / p->m_blocks, g0 = task % p->m_blocks * p->m_block, planes = p->N * p->groups;
    const int64_t g1 = g0 + p->m_block < p->groups ? g0 + p->m_block : p->groups;
    const int64_t last = (piece + 1) * q->piece < q->chunks ? (piece + 1) * q->piece : q->chunks;
    const FN(rows_of) source = {p->x, planes * p->H * p->W, p->H, p->W, p->left, p->image_width, spare};
    const FN(rows_of) grads = {p->y, planes * p->rows * p->cols, p->rows, p->cols, 0,
                               p->cols > VL ? p->cols : VL, dy_spare};
    T *to = (q->pieces > 1 ? (T *)q->partial + piece * p->groups * p->taps : (T *)q->grad) + g0 * p->taps;
    FN(fill)(source.reach, spare, 0);
    FN(column_masks)(p->cols, p->sw, 1, p->left, p->W, K, 1, mask);
    for (int64_t g = g0; g < g1; g++, to += p->taps) {
        int64_t terms = 0; /* in a lane since the lanes were added up: long sums of one sign lose digits */
        for (int64_t k = 0; k < p->taps; k++) to[k] = 0;
        for (int64_t number = piece * q->piece; number < last; number++) {
            const int64_t plane = number / p->blocks * p->groups + g, i0 = number % p->blocks * p->block;
            const int64_t rows = p->rows - i0 < p->block ? p->rows - i0 : p->block;
            if (terms == 0) FN(fill)((p->taps + VL) * VL, sums, 0);
            FN(find_rows)(&source, plane, i0 * p->sh + p->top, (rows - 1) * p->sh + K, x);
            FN(find_rows)(&grads, plane, i0, rows, dy);
            FN(depthwise_sums_of)[p->sh - 1][K / 2 - 1](p, rows, x, dy, mask, sums);
            terms += rows * ((p->cols + VL - 1) / VL);
            if (terms < 256 && number + 1 < last) continue;
            for (int64_t k0 = 0; k0 < p->taps; k0 += VL) {
                V lanes[VL];
                UNROLL for (int l = 0; l < VL; l++) lanes[l] = *(const VU *)(sums + (k0 + l) * VL);
                T added[VL];
                *(VU *)added = FN(sum_each)(lanes);
                for (int64_t l = 0; l < VL && k0 + l < p->taps; l++) to[k0 + l] += added[l];
            }
            terms = 0;
        }
    }
}
#undef TALL
#undef UNROLL_ROWS
