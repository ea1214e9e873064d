/* Depthwise convolution of small images, and its gradients, with channels in the lanes of the vectors.
 *
 * The planes of VL channels are transposed into a copy with a border of zeros, (row, column, channel), where a tap is
 * a whole vector: there are no masks, no rows shorter than a vector, and no lanes to add up. Results are
 * transposed back. 8 images of 1152 planes of 7x7 take 191 us under a 5x5 kernel, and 412 by their rows
 * (depthwise.inc.h).
 *
 * The input gradient is a convolution of the output's gradient, between whose columns there are zeros for the
 * columns that a stride steps over. Rows of the same phase, modulo the stride, meet the same rows of the kernel.
 */
#define UNROLL_ROWS _Pragma("GCC unroll 19") /* as many as 7 results of stride 2 meet with a 7x7 kernel */

/* Whether a problem is depthwise convolution by a square kernel of 3, 5 or 7, stride 1 or 2. */
static int FN(is_depthwise)(cnnx_conv *p)
{
    int64_t bottom, right;
    if (p->C != 1 || p->M != 1 || p->sh != p->sw || p->sh > 2 || p->ty != 1 || p->tx != 1) return 0;
    if (p->taps != 9 && p->taps != 25 && p->taps != 49) return 0;
    FN(reach)(p, &bottom, &right);
    const int64_t reach = p->taps == 9 ? 2 : p->taps == 25 ? 4 : 6;
    return bottom - p->top == reach && right - p->left == reach;
}

static inline int FN(kernel_size)(const cnnx_conv *p) { return p->taps == 9 ? 3 : p->taps == 25 ? 5 : 7; }

/* Rows, or columns, of a tile: seven, or four where they waste less. */
static inline int64_t FN(tile_height)(int64_t rows)
{
    return (rows + 6) / 7 * 7 > (rows + 3) / 4 * 5 ? 4 : 7;
}

enum { FN(CHANNELS_MOST) = 160 << 10 }; /* bytes of the copies: what leaves room in the second level */

/* An image that is read, its copy, and one that is written. */
typedef struct {
    int64_t H, W, spread;         /* of the image, and from one of its columns to the next in the copy */
    int64_t top, left, tall, wide; /* where in the image the copy begins; its size */
    int64_t rows, cols, across;   /* of the result; columns that tiles fill */
    int64_t phases, step;         /* of its rows; rows of the copy from one row of a phase to the next */
    int64_t first[3];             /* of the kernel's rows, put in order of phases, the first of each */
    int64_t offset[7], tap[49];   /* of each, where it meets the copy for the first result; where a weight goes */
} FN(channels);

static FN(channels) FN(channels_of)(const cnnx_conv *p, int back)
{
    const int K = FN(kernel_size)(p);
    FN(channels) g = {p->H, p->W, 1, 0, 0, p->H, 0, p->rows, p->cols, 0, 1, p->sh, {0}, {0}, {0}};
    int64_t place[7], top = p->top, left = p->left, slot = 0;
    if (back) {
        g = (FN(channels)){p->rows, p->cols, p->sw, 0, 0, p->rows, 0, p->H, p->W, 0, p->sh, 1, {0}, {0}, {0}};
        top = 1 - K - top;
        left = 1 - K - left;
    }
    for (int64_t f = 0; f < g.phases; f++) {
        for (int64_t k = 0; k < K; k++) {
            if ((top + k + f) % g.phases) continue;
            const int64_t row = (top + k + f) / g.phases;
            const int64_t end = (g.rows - 1 - f) / g.phases * g.step + row + 1;
            if (row < g.top) g.top = row;
            if (end > g.tall) g.tall = end;
            place[k] = slot;
            g.offset[slot++] = row;
        }
        g.first[f + 1] = slot;
    }
    const int64_t R = FN(tile_height)(g.cols), step = back ? 1 : p->sw;
    g.across = g.cols > R ? g.cols : R;
    g.left = left < 0 ? left : 0;
    const int64_t right = (g.W - 1) * g.spread + 1, reach = left + (g.across - 1) * step + K;
    g.wide = (right > reach ? right : reach) - g.left;
    g.tall -= g.top;
    for (int64_t k = 0; k < K; k++) g.offset[k] = ((g.offset[k] - g.top) * g.wide + left - g.left) * VL;
    for (int64_t t = 0; t < p->taps; t++) {
        const int64_t k = (back ? -p->dh[t] : p->dh[t]) - top, l = (back ? -p->dw[t] : p->dw[t]) - left;
        g.tap[p->w_tap[t]] = (place[k] * K + l) * VL;
    }
    return g;
}

/* Where each pixel of an image lies in a copy whose rows have `wide` vectors. */
static void FN(channels_places)(int64_t rows, int64_t cols, int64_t wide, int64_t spread, int64_t from, int64_t *to)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) *to++ = (from + i * wide + j * spread) * VL;
}

/* Planes of n numbers each go into lanes, number q to to[place[q]]. */
static ALWAYS_INLINE void
FN(channels_in)(const T *x, int64_t n, const int64_t lanes, const int64_t *place, T *to)
{
    if (n < VL) {
        for (int64_t r = 0; r < lanes; r++)
            for (int64_t q = 0; q < n; q++) to[place[q] + r] = x[r * n + q];
        return;
    }
    for (int64_t j = 0;; j += VL) {
        j = FN(column_of)(j, n);
        V a[VL];
        UNROLL for (int r = 0; r < VL; r++) {
            a[r] = (V){0};
            if (r < lanes) a[r] = *(const VU *)(x + r * n + j);
        }
        FN(transpose_square)(a);
        UNROLL for (int q = 0; q < VL; q++) *(VU *)(to + place[j + q]) = a[q];
        if (j + VL >= n) break;
    }
}

/* And back. */
static ALWAYS_INLINE void
FN(channels_out)(const T *from, const int64_t *place, int64_t n, const int64_t lanes, T *y)
{
    if (n < VL) {
        for (int64_t r = 0; r < lanes; r++)
            for (int64_t q = 0; q < n; q++) y[r * n + q] = from[place[q] + r];
        return;
    }
    for (int64_t j = 0;; j += VL) {
        j = FN(column_of)(j, n);
        V a[VL];
        UNROLL for (int q = 0; q < VL; q++) a[q] = *(const VU *)(from + place[j + q]);
        FN(transpose_square)(a);
        UNROLL for (int r = 0; r < VL; r++)
            if (r < lanes) *(VU *)(y + r * n + j) = a[r];
        if (j + VL >= n) break;
    }
}

static NOINLINE void FN(to_lanes)(const T *x, int64_t n, int64_t lanes, const int64_t *place, T *to)
{
    if (lanes == VL)
        FN(channels_in)(x, n, VL, place, to);
    else
        FN(channels_in)(x, n, lanes, place, to);
}

static NOINLINE void FN(from_lanes)(const T *from, const int64_t *place, int64_t n, int64_t lanes, T *y)
{
    if (lanes == VL)
        FN(channels_out)(from, place, n, VL, y);
    else
        FN(channels_out)(from, place, n, lanes, y);
}

/* The results of phase f, in tiles of R columns: the sums stay in registers, and a row's weights. */
static ALWAYS_INLINE void
FN(channels_tile)(const int K, const int S, const int R, const FN(channels) *g, int64_t f, const T *copy, const T *w,
                  const T *bias, T *out)
{
    const int64_t rows = g->rows, cols = g->cols, across = g->across, step = g->step * g->wide * VL;
    const int64_t phases = g->phases, k0 = g->first[f], k1 = g->first[f + 1];
    for (int64_t i = f; i < rows; i += phases, copy += step)
        for (int64_t j = 0;; j += R) {
            if (j + R > cols) j = across - R;
            V acc[7];
            UNROLL for (int r = 0; r < R; r++) acc[r] = *(const VU *)bias;
            for (int64_t k = k0; k < k1; k++) {
                const T *x = copy + g->offset[k] + j * S * VL;
                V weight[7];
                UNROLL for (int q = 0; q < K; q++) {
                    weight[q] = *(const VU *)(w + (k * K + q) * VL);
                    KEEP(weight[q]);
                }
                UNROLL_ROWS for (int c = 0; c < (R - 1) * S + K; c++) {
                    V b = *(const VU *)(x + c * VL);
                    KEEP(b);
                    UNROLL for (int r = 0; r < R; r++)
                        if (c - r * S >= 0 && c - r * S < K) acc[r] += weight[c - r * S] * b;
                }
            }
            UNROLL for (int r = 0; r < R; r++) *(VU *)(out + (i * across + j + r) * VL) = acc[r];
            if (j + R >= cols) break;
        }
}

typedef void (*FN(channels_rows))(const FN(channels) *, int64_t, const T *, const T *, const T *, T *);

#define CHANNELS(K, S, R)                                                                              \
    static NOINLINE void FN(channels_##K##_##S##_##R)(const FN(channels) *g, int64_t f, const T *copy, \
                                                      const T *w, const T *bias, T *out)               \
    {                                                                                                  \
        FN(channels_tile)(K, S, R, g, f, copy, w, bias, out);                                          \
    }
#define SIZES(R)                                                                                       \
    CHANNELS(3, 1, R) CHANNELS(5, 1, R) CHANNELS(7, 1, R)                                              \
    CHANNELS(3, 2, R) CHANNELS(5, 2, R) CHANNELS(7, 2, R)
#define ROW(R)                                                                                         \
    {                                                                                                  \
        {FN(channels_3_1_##R), FN(channels_5_1_##R), FN(channels_7_1_##R)},                            \
        {FN(channels_3_2_##R), FN(channels_5_2_##R), FN(channels_7_2_##R)},                            \
    }
SIZES(4) SIZES(7)
static const FN(channels_rows) FN(channels_tiles)[][2][3] = {ROW(4), ROW(7)};
#undef ROW
#undef SIZES
#undef CHANNELS

/* For a convolution that is depthwise; `back`: for its input gradient. A task is some images of some channels. */
static int FN(channels_plan)(cnnx_conv *p, int back)
{
    p->c_step = 0;
    /* Rows that fill their vectors are faster, from 14x14 on under a 3x3 kernel (8,576,14,14: 186 us against 235) or
     * a stride of 2 (8,240,28,28 5x5: 218 against 285), from 28x28 on under a larger one (8,384,14,14 7x7: 395
     * against 327). With vectors of 8 the gradient that spreads 7x7 over 14x14 is slower (278 against 315). */
    const int64_t widest = back ? 7 : p->taps == 9 || p->sh > 1 ? 12 : 20;
    if (p->groups < VL || p->cols > widest || (back && VECTOR_BYTES < 64)) return 0;
    const FN(channels) g = FN(channels_of)(p, back);
    const double bytes = ((double)g.tall * (double)g.wide + (double)g.rows * (double)g.across) * VECTOR_BYTES;
    if (bytes > (double)FN(CHANNELS_MOST)) return 0;
    const int64_t most = 8192 / (VL * (g.H * g.W > g.rows * g.cols ? g.H * g.W : g.rows * g.cols));
    const int64_t vectors = (p->groups + VL - 1) / VL;
    p->c_step = VL;
    p->image_size = g.tall * g.wide * VL;
    p->plane = g.rows * g.across * VL;
    p->m_block = FN(share)(p->N, most > 4 ? most : 4); /* images share transposed weights */
    p->m_blocks = (p->N + p->m_block - 1) / p->m_block;
    p->block = FN(share)(vectors, most / p->m_block) * VL;
    p->blocks = (p->groups + p->block - 1) / p->block;
    p->tasks = p->m_blocks * p->blocks;
    p->scratch = (size_t)(p->image_size + p->plane + (p->taps + 1) * VL) * sizeof(T) +
                 (size_t)(g.H * g.W + g.rows * g.cols) * sizeof(int64_t);
    return 1;
}

static void FN(depthwise_channels)(const cnnx_conv *p, int back, int64_t task, void *scratch)
{
    const FN(channels) g = FN(channels_of)(p, back);
    T *copy = scratch, *out = copy + p->image_size, *w = out + p->plane, *bias = w + p->taps * VL;
    int64_t *from = (int64_t *)(bias + VL), *to = from + g.H * g.W;
    const int seven = FN(tile_height)(g.cols) == 7;
    const FN(channels_rows) tile =
        FN(channels_tiles)[seven][back ? 0 : p->sh - 1][FN(kernel_size)(p) / 2 - 1];
    const int64_t c0 = task % p->blocks * p->block, n0 = task / p->blocks * p->m_block;
    const int64_t c1 = c0 + p->block < p->groups ? c0 + p->block : p->groups;
    const int64_t n1 = n0 + p->m_block < p->N ? n0 + p->m_block : p->N;
    FN(fill)(p->image_size, copy, 0);
    FN(fill)((p->taps + 1) * VL, w, 0);
    FN(channels_places)(g.H, g.W, g.wide, g.spread, -g.top * g.wide - g.left, from);
    FN(channels_places)(g.rows, g.cols, g.across, 1, 0, to);
    for (int64_t c = c0; c < c1; c += VL) {
        const int64_t lanes = c1 - c < VL ? c1 - c : VL;
        FN(to_lanes)((const T *)p->weight + c * p->taps, p->taps, lanes, g.tap, w);
        if (p->bias) FN(copy)((const T *)p->bias + c, lanes, bias);
        for (int64_t n = n0; n < n1; n++) {
            const int64_t plane = n * p->groups + c;
            FN(to_lanes)((const T *)p->x + plane * g.H * g.W, g.H * g.W, lanes, from, copy);
            for (int64_t f = 0; f < g.phases; f++) tile(&g, f, copy, w, bias, out);
            if (p->activation) FN(activate_row)(out, p->plane, p->activation);
            FN(from_lanes)(out, to, g.rows * g.cols, lanes, (T *)p->y + plane * g.rows * g.cols);
        }
    }
}

/* Weight gradient: acc[k][l] += the output's gradient times what tap l of the kernel's row k sees, for n rows of the
 * kernel and R pixels. */
static ALWAYS_INLINE void
FN(channels_outer)(const int K, const int S, const int n, const int R, const T *x, int64_t row, const T *dy, V acc[5][7])
{
    V d[7];
    UNROLL for (int r = 0; r < R; r++) d[r] = *(const VU *)(dy + r * VL);
    UNROLL for (int k = 0; k < n; k++)
        UNROLL_ROWS for (int c = 0; c < (R - 1) * S + K; c++) {
            V b = *(const VU *)(x + k * row + c * VL);
            KEEP(b);
            UNROLL for (int r = 0; r < R; r++)
                if (c - r * S >= 0 && c - r * S < K) acc[k][c - r * S] += d[r] * b;
        }
}

/* The same for rows i0 to i1 of a block of channels, the sums of as many of the kernel's rows as fit in registers. */
static ALWAYS_INLINE void
FN(channels_sums)(const int K, const int S, const FN(channels) *g, int64_t i0, int64_t i1, const T *copy, const T *dy,
                  T *sums)
{
    const int most = K == 3 || VECTOR_BYTES == 64 ? 3 : K == 5 ? 2 : 1;
    const int64_t row = g->wide * VL, cols = g->cols;
    UNROLL for (int k = 0; k < K; k += most) {
        const int n = K - k < most ? K - k : most;
        V acc[5][7];
        UNROLL for (int a = 0; a < n; a++)
            UNROLL for (int b = 0; b < K; b++) acc[a][b] = (V){0};
        for (int64_t i = i0; i < i1; i++) {
            const T *x = copy + i * S * row + g->offset[k], *d = dy + i * cols * VL;
            int64_t j = 0;
            for (; j + 7 <= cols; j += 7) FN(channels_outer)(K, S, n, 7, x + j * S * VL, row, d + j * VL, acc);
            for (; j < cols; j++) FN(channels_outer)(K, S, n, 1, x + j * S * VL, row, d + j * VL, acc);
        }
        UNROLL for (int a = 0; a < n; a++)
            UNROLL for (int b = 0; b < K; b++) *(VU *)(sums + ((k + a) * K + b) * VL) += acc[a][b];
    }
}

typedef void (*FN(channels_rows_sums))(const FN(channels) *, int64_t, int64_t, const T *, const T *, T *);

#define SUMS(K, S)                                                                                     \
    static NOINLINE void FN(channels_sums_##K##_##S)(const FN(channels) *g, int64_t i0, int64_t i1, const T *copy, \
                                                     const T *dy, T *sums)           \
    {                                                                                                  \
        FN(channels_sums)(K, S, g, i0, i1, copy, dy, sums);                                     \
    }
SUMS(3, 1) SUMS(5, 1) SUMS(7, 1) SUMS(3, 2) SUMS(5, 2) SUMS(7, 2)
#undef SUMS

static const FN(channels_rows_sums) FN(channels_sums_of)[2][3] = {
    {FN(channels_sums_3_1), FN(channels_sums_5_1), FN(channels_sums_7_1)},
    {FN(channels_sums_3_2), FN(channels_sums_5_2), FN(channels_sums_7_2)},
};

/* A task is some blocks of channels of one piece of the batch; pieces depend on the shape alone. */
static int FN(channels_weight_plan)(cnnx_conv_weight *q)
{
    cnnx_conv *p = &q->conv;
    p->c_step = 0;
    /* Rows have lanes to add up, so they are slower up to larger images: 8,240,28,28 of stride 2 takes 719 us by rows
     * and 345 here under a 7x7 kernel. Under a 3x3 one they are as fast at 14x14. */
    if (p->groups < VL || p->cols > (p->taps == 9 ? 12 : 28)) return 0;
    const FN(channels) g = FN(channels_of)(p, 0);
    const int64_t area = p->rows * p->cols, vectors = (p->groups + VL - 1) / VL;
    if (((double)g.tall * (double)g.wide + (double)area) * VECTOR_BYTES > FN(CHANNELS_MOST)) return 0;
    const int64_t pieces = 32 / vectors + 1;
    p->c_step = VL;
    p->image_size = g.tall * g.wide * VL;
    p->plane = area * VL;
    q->piece = FN(share)(p->N, (p->N + pieces - 1) / pieces);
    q->pieces = (p->N + q->piece - 1) / q->piece;
    p->m_block = FN(share)(vectors, 8192 / (q->piece * area * VL)) * VL;
    p->m_blocks = (p->groups + p->m_block - 1) / p->m_block;
    q->tasks = q->pieces * p->m_blocks;
    q->scratch = (size_t)(p->image_size + p->plane + p->taps * VL) * sizeof(T) +
                 (size_t)(p->H * p->W + area) * sizeof(int64_t);
    return 1;
}

static void FN(channels_weight)(const cnnx_conv_weight *q, int64_t task, void *scratch)
{
    const cnnx_conv *p = &q->conv;
    const FN(channels) g = FN(channels_of)(p, 0);
    const int64_t size = p->H * p->W, area = p->rows * p->cols;
    T *copy = scratch, *d = copy + p->image_size, *sums = d + p->plane;
    int64_t *from = (int64_t *)(sums + p->taps * VL), *to = from + size;
    const int64_t piece = task / p->m_blocks, c0 = task % p->m_blocks * p->m_block;
    const int64_t c1 = c0 + p->m_block < p->groups ? c0 + p->m_block : p->groups;
    const int64_t n0 = piece * q->piece, n1 = n0 + q->piece < p->N ? n0 + q->piece : p->N;
    const int64_t few = 256 / p->cols > 1 ? 256 / p->cols : 1; /* rows in a sum: long ones of one sign lose digits */
    T *grad = q->pieces > 1 ? (T *)q->partial + piece * p->groups * p->taps : (T *)q->grad;
    FN(fill)(p->image_size + p->plane, copy, 0);
    FN(channels_places)(p->H, p->W, g.wide, 1, -g.top * g.wide - g.left, from);
    FN(channels_places)(p->rows, p->cols, p->cols, 1, 0, to);
    for (int64_t c = c0; c < c1; c += VL) {
        const int64_t lanes = c1 - c < VL ? c1 - c : VL;
        FN(fill)(p->taps * VL, sums, 0);
        for (int64_t n = n0; n < n1; n++) {
            const int64_t plane = n * p->groups + c;
            FN(to_lanes)((const T *)p->x + plane * size, size, lanes, from, copy);
            FN(to_lanes)((const T *)p->y + plane * area, area, lanes, to, d);
            for (int64_t i = 0; i < p->rows; i += few)
                FN(channels_sums_of)[p->sh - 1][FN(kernel_size)(p) / 2 - 1](
                    &g, i, i + few < p->rows ? i + few : p->rows, copy, d, sums);
        }
        FN(from_lanes)(sums, g.tap, p->taps, lanes, grad + c * p->taps);
    }
}
