/* Depthwise convolution by square kernels of 3, 5 and 7, stride 1 and 2, which is also the input gradient of
 * stride 1. Nothing is copied or packed: rows and masks are those of rows.inc.h.
 *
 * A tile of 7 output rows shares the loads of a column of taps, whose weights stay in registers: 7 sums, 7 weights,
 * a mask and a pixel fit 16 of them. Vectors run along the row. Where it is shorter than one, what is stored
 * beyond its end is overwritten by the next row, up to the end of the task's output.
 */
#define TALL 7 /* divides 14, 28, 56 and 112, the usual sizes */

/* Whether a 3x3 kernel of stride 1 meets rows that a vector holds, with a border of one pixel. */
static ALWAYS_INLINE int FN(is_narrow)(const cnnx_conv *p)
{
#if defined(SHUFFLE)
    return p->cols <= VL && p->W == p->cols && p->left == -1;
#else
    return (void)p, 0;
#endif
}

/* Such a row as its three taps see it, loaded once and shifted: 36 ns a plane of 14x14, where three loads, most of
 * which cross a cache line, took 45. */
static ALWAYS_INLINE void FN(three_columns)(const T *row, const FN(integer) *mask, V b[3])
{
#if defined(SHUFFLE)
    const V zero = {0};
    b[1] = FN(masked)(*(const VU *)(row + 1), mask + VL);
    b[0] = FN(masked)(__builtin_shufflevector(zero, b[1], RIGHT), mask); /* nothing beyond the row's end */
    b[2] = __builtin_shufflevector(b[1], zero, LEFT);
    UNROLL for (int q = 0; q < 3; q++) KEEP(b[q]);
#else
    (void)row, (void)mask, (void)b;
#endif
}

/* R output rows of one plane, of which `count` are stored. */
static ALWAYS_INLINE void
FN(depthwise_tile)(const int K, const int S, const int R, const cnnx_conv *p, const T *const *rows, const T *w,
                   T bias, const FN(integer) *mask, int64_t count, T *y, const T *end)
{
    /* Rows of later tiles, which the hardware does not expect, a few at a time, for a core forgets what it cannot
     * queue: 8,96,112,112 of stride 2 takes 3.1 ms without, 1.1 with. Rows of a vector need none of it. */
    const int64_t YW = p->YW, ahead = R * S * S * p->W;
    const int relu = p->activation == CNNX_RELU, wide = K == 3 || p->cols > VL;
    for (int64_t j = 0;; j += VL, mask += K * VL) {
        j = FN(column_of)(j, p->cols);
        V acc[TALL];
        UNROLL for (int i = 0; i < R; i++) acc[i] = bias - (V){0};
        if (K == 3 && S == 1 && FN(is_narrow)(p)) {
            UNROLL for (int r = 0; r < R - 1 + K; r++) {
                V b[3];
                FN(three_columns)(rows[r], mask, b);
                UNROLL for (int q = 0; q < 3; q++)
                    UNROLL for (int i = 0; i < R; i++)
                        if (r - i >= 0 && r - i < K) acc[i] += w[(r - i) * K + q] * b[q];
            }
        } else UNROLL for (int q = 0; q < K; q += S) {
            V weight[7][2];
            UNROLL for (int k = 0; k < K; k++)
                UNROLL for (int e = 0; e < S; e++) {
                    if (q + e == K) break;
                    weight[k][e] = w[k * K + q + e] - (V){0};
                    KEEP(weight[k][e]);
                }
            UNROLL_ROWS for (int r = 0; r < (R - 1) * S + K; r++) {
                V b[2];
                FN(load_columns)(S, rows[r] + j * S + q, b);
                if (wide && r < R * S && q < S * S) PREFETCH(rows[r + K - S] + j * S + q / S * VL + ahead);
                if (wide && r < R && q == 0) PREFETCH(y + j + (r + R) * YW);
                UNROLL for (int e = 0; e < S; e++) {
                    if (q + e == K) break;
                    b[e] = FN(masked)(b[e], mask + (q + e) * VL);
                    KEEP(b[e]);
                    UNROLL for (int i = 0; i < R; i++)
                        if (r - i * S >= 0 && r - i * S < K) acc[i] += weight[r - i * S][e] * b[e];
                }
            }
        }
        if (relu)
            UNROLL for (int i = 0; i < R; i++) acc[i] = FN(relu)(acc[i]);
        T *to = y + j;
        if (count >= R && end - to >= (R - 1) * YW + VL) {
            UNROLL for (int i = 0; i < R; i++) *(VU *)(to + i * YW) = acc[i];
        } else {
            UNROLL for (int i = 0; i < R; i++) {
                if (i >= count) break;
                T row[VL];
                *(VU *)row = acc[i];
                FN(copy)(row, p->cols < VL ? p->cols : VL, to + i * YW);
            }
        }
        if (j + VL >= p->cols) break;
    }
}

typedef void (*FN(depthwise_rows))(const cnnx_conv *, const T *const *, const T *, T, const FN(integer) *,
                                   int64_t, T *, const T *);

#define DEPTHWISE(K, S, R)                                                                            \
    static NOINLINE void FN(depthwise_##K##_##S##_##R)(                                                \
        const cnnx_conv *p, const T *const *rows, const T *w, T bias, const FN(integer) *mask,         \
        int64_t count, T *y, const T *end)                                                             \
    {                                                                                                  \
        FN(depthwise_tile)(K, S, R, p, rows, w, bias, mask, count, y, end);                            \
    }
#define SIZES(S, R) DEPTHWISE(3, S, R) DEPTHWISE(5, S, R) DEPTHWISE(7, S, R)
SIZES(1, 7) SIZES(1, 4) SIZES(2, 7) SIZES(2, 4)
#undef SIZES
#undef DEPTHWISE

static const FN(depthwise_rows) FN(depthwise_tiles)[2][2][3] = {
#define ROW(S, R) {FN(depthwise_3_##S##_##R), FN(depthwise_5_##S##_##R), FN(depthwise_7_##S##_##R)}
    {ROW(1, 7), ROW(1, 4)},
    {ROW(2, 7), ROW(2, 4)},
#undef ROW
};

static int FN(depthwise_rows_plan)(cnnx_conv *p)
{
    const int K = FN(kernel_size)(p);
    const int64_t planes = p->N * p->groups, wanted = 8192; /* output pixels of a task: microseconds */
    p->block = FN(share)(p->rows, wanted / p->cols > TALL ? wanted / p->cols / 28 * 28 + 28 : 28);
    p->blocks = (p->rows + p->block - 1) / p->block;
    p->m_block = FN(share)(planes, p->blocks > 1 ? 1 : wanted / (p->block * p->cols));
    p->m_blocks = (planes + p->m_block - 1) / p->m_block;
    p->tasks = p->m_blocks * p->blocks;
    p->image_width = (p->cols > VL ? p->cols - VL : 0) * p->sw + p->sw * VL + K - 1;
    p->tile_rows = ((p->block > TALL ? p->block : TALL) - 1) * p->sh + K;
    p->image_size = FN(align)(FN(spare_rows)(p->tile_rows, p->W, p->image_width) * p->image_width);
    p->plane = (p->cols + VL - 1) / VL * K * VL;
    p->scratch = (size_t)(p->image_size + p->plane) * sizeof(T) + (size_t)p->tile_rows * sizeof(T *);
    return FN(rows_fit)(p->tile_rows, p->W, p->image_width, p->plane);
}

static int FN(depthwise_plan)(cnnx_conv *p)
{
    if (!FN(is_depthwise)(p)) return 0;
    p->depth = p->taps;
    p->panels = p->packed_size = 0; /* the weights are read as they are */
    return FN(channels_plan)(p, 0) || FN(depthwise_rows_plan)(p);
}

static void FN(depthwise)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv *p = problem;
    if (p->c_step) {
        FN(depthwise_channels)(p, 0, task, scratch);
        return;
    }
    T *spare = scratch;
    FN(integer) *mask = (FN(integer) *)(spare + p->image_size);
    const T **rows = (const T **)(mask + p->plane);
    const int K = FN(kernel_size)(p);
    const int64_t i0 = task % p->blocks * p->block, planes = p->N * p->groups;
    const int64_t count = p->rows - i0 < p->block ? p->rows - i0 : p->block;
    const int64_t first = task / p->blocks * p->m_block;
    const int64_t last = first + p->m_block < planes ? first + p->m_block : planes;
    const int64_t tall = FN(tile_height)(count), most = count > tall ? count : tall;
    const FN(depthwise_rows) tile = FN(depthwise_tiles)[p->sh - 1][tall == 4][K / 2 - 1];
    const FN(rows_of) source = {p->x, planes * p->H * p->W, p->H, p->W, p->left, p->image_width, spare};
    const T *end = (T *)p->y + ((last - 1) * p->rows + i0 + count) * p->cols;
    int64_t order[49] = {0};
    for (int64_t t = 0; t < p->taps; t++) order[(p->dh[t] - p->top) * K + p->dw[t] - p->left] = p->w_tap[t];
    FN(fill)(p->image_width, spare, 0);
    FN(column_masks)(p->cols, p->sw, 1, p->left, p->W, K, 0, mask);
    for (int64_t plane = first; plane < last; plane++) {
        const int64_t g = plane % p->groups;
        const T *weight = (const T *)p->weight + g * p->w_group, bias = p->bias ? ((const T *)p->bias)[g] : 0;
        T *y = (T *)p->y + (plane * p->rows + i0) * p->cols, w[49];
        for (int64_t t = 0; t < p->taps; t++) w[t] = weight[order[t]];
        FN(find_rows)(&source, plane, i0 * p->sh + p->top, (most - 1) * p->sh + K, rows);
        for (int64_t i = 0;; i += tall) {
            if (i + tall > count) i = count > tall ? count - tall : 0;
            tile(p, rows + i * p->sh, w, bias, mask, count - i, y + i * p->cols, end);
            if (i + tall >= count) break;
        }
        if (p->activation > CNNX_RELU) {
            int64_t q = 0;
            for (; q + VL <= count * p->cols; q += VL)
                *(VU *)(y + q) = FN(fused)(*(const VU *)(y + q), p->activation);
            for (; q < count * p->cols; q++) y[q] = FN(activate)(y[q], p->activation);
        }
    }
}
