/* Weight gradient with the pixels of a row in a vector's lanes, where few channels make the transposition of the
 * other kernel too dear or leave its lanes empty.
 *
 * A vector of the output's gradient meets the input's under each tap, both as they lie in memory, on the direct
 * convolution's copy of some rows (direct.inc.h): a tile of LANES_M output channels by LANES_K numbers (c, t). Each
 * lane sums up pixels of its own; the lanes are added up at the end of a piece.
 */
#if WM == 8 /* 32 registers */
#define LANES_M 4
#else
#define LANES_M 2
#endif
#define LANES_K 6

static int FN(lanes_weight_plan)(cnnx_conv_weight *w, int always)
{
    cnnx_conv *p = &w->conv;
    int64_t bottom, right;
    if (p->cols < VL || !FN(direct_plan)(p)) return 0;
    FN(reach)(p, &bottom, &right);
    /* In multiply-adds a pixel: lanes that a row's end leaves empty, and half as much again for the short loops,
     * against lanes that the output channels leave empty and the transposition, which costs as much as four. */
    const int64_t across = (p->cols + VL - 1) / VL * VL, wide = (p->M + VL - 1) / VL * VL;
    if (!always && 3 * p->M * p->depth * across > 2 * (wide * p->depth + 4 * p->M) * p->cols) return 0;
    if (p->M * p->depth * VL > FN(WINDOW)) return 0;
    /* As many rows as keep LANES_M channels of the gradient in the first level. */
    const int64_t row = p->C * p->phases_h * p->phases_w * p->image_width;
    int64_t most = 1024 / p->cols;
    if (most > FN(WINDOW) / row - p->extent_h) most = FN(WINDOW) / row - p->extent_h;
    if (most < 1) return 0;
    p->block = FN(share)(p->rows, most);
    p->blocks = (p->rows + p->block - 1) / p->block;
    p->plane = (p->block + p->extent_h) * p->image_width + VL;
    p->image_size = (p->C * p->phases_h * p->phases_w * p->plane + 15) / 16 * 16;
    w->source = CNNX_WINDOWS;
    w->chunk_cols = p->cols;
    w->step_h = p->phases_h;
    w->extent_h = bottom - p->top + 1;
    w->chunks = p->N * p->blocks;
    w->pieces = (16 + p->groups - 1) / p->groups;
    if (w->pieces > w->chunks / 4) w->pieces = w->chunks / 4;
    if (w->pieces < 1) w->pieces = 1;
    w->tasks = w->pieces * p->groups;
    w->scratch = (size_t)(p->image_size + p->M * p->depth * VL + VL * VL) * sizeof(T) +
                 (size_t)p->depth * sizeof(int64_t) + (size_t)(p->block + 1) * sizeof(FN(block));
    return 1;
}

/* sums[(r*depth + k)*VL ..] += the lanes' sums over rows and columns of y[r*plane + i*cols + j] *
 * strip[offset[k] + i*image_width + j], for m channels r and n numbers k. */
static ALWAYS_INLINE void
FN(lanes)(const int m, const int n, const cnnx_conv *p, int64_t rows, const T *y, const T *strip,
          const int64_t *offset, T *sums, FN(ahead) *ahead)
{
    const int64_t cols = p->cols, whole = cols / VL * VL, plane = p->rows * cols, ld = p->image_width, depth = p->depth;
    V c[LANES_M][LANES_K];
    const T *from[LANES_K];
    UNROLL for (int k = 0; k < n; k++) from[k] = strip + offset[k];
    UNROLL for (int r = 0; r < m; r++)
        UNROLL for (int k = 0; k < n; k++) c[r][k] = (V){0};
#if defined(__GNUC__)
    FN(mask) mask; /* of the lanes that the last vector of a row, which ends with it, adds */
    for (int l = 0; l < VL; l++) mask[l] = l < VL - (cols - whole) ? 0 : -1;
#endif
    for (int64_t i = 0; i < rows; i++, y += cols) {
        int64_t at = i * ld;
        FN(ask)(ahead);
        for (int64_t j = 0; j < whole; j += VL, at += VL) {
            V d[LANES_M];
            UNROLL for (int r = 0; r < m; r++) d[r] = *(const VU *)(y + r * plane + j);
            UNROLL for (int k = 0; k < n; k++) {
                V a = *(const VU *)(from[k] + at);
                KEEP(a); /* loaded once: most of these vectors cross a cache line, and count double */
                UNROLL for (int r = 0; r < m; r++) c[r][k] += a * d[r];
            }
        }
#if defined(__GNUC__)
        if (whole < cols) {
            const int64_t j = cols - VL;
            V d[LANES_M];
            UNROLL for (int r = 0; r < m; r++) d[r] = (V)((FN(mask))*(const VU *)(y + r * plane + j) & mask);
            UNROLL for (int k = 0; k < n; k++) { /* x is masked as well: zero times infinity is not zero */
                V a = (V)((FN(mask))*(const VU *)(from[k] + i * ld + j) & mask);
                UNROLL for (int r = 0; r < m; r++) c[r][k] += a * d[r];
            }
        }
#endif
    }
    UNROLL for (int r = 0; r < m; r++)
        UNROLL for (int k = 0; k < n; k++) *(VU *)(sums + (r * depth + k) * VL) += c[r][k];
}

typedef void (*FN(lanes_tile))(const cnnx_conv *, int64_t, const T *, const T *, const int64_t *, T *,
                               FN(ahead) *);

#define LANES(m, n)                                                                                   \
    static NOINLINE void FN(lanes_##m##_##n)(const cnnx_conv *p, int64_t rows, const T *y, const T *strip, \
                                             const int64_t *offset, T *sums, FN(ahead) *ahead)         \
    {                                                                                                  \
        FN(lanes)(m, n, p, rows, y, strip, offset, sums, ahead);                                       \
    }
#define ROW(m)                                                                                        \
    LANES(m, 1) LANES(m, 2) LANES(m, 3) LANES(m, 4) LANES(m, 5) LANES(m, 6)
ROW(1) ROW(2)
#if LANES_M == 4
ROW(3) ROW(4)
#endif
#undef ROW
#undef LANES

static const FN(lanes_tile) FN(lanes_tiles)[LANES_M][LANES_K] = {
#define ROW(m)                                                                                        \
    {FN(lanes_##m##_1), FN(lanes_##m##_2), FN(lanes_##m##_3), FN(lanes_##m##_4), FN(lanes_##m##_5), FN(lanes_##m##_6)}
    ROW(1), ROW(2),
#if LANES_M == 4
    ROW(3), ROW(4),
#endif
#undef ROW
};

/* A chunk is rows of an image. */
static FN(chunk) FN(rows_at)(const cnnx_conv *p, int64_t number)
{
    FN(chunk) c = {.n0 = number / p->blocks, .i0 = number % p->blocks * p->block, .j1 = p->cols};
    c.n1 = c.n0 + 1;
    c.i1 = c.i0 + p->block < p->rows ? c.i0 + p->block : p->rows;
    c.pixels = (c.i1 - c.i0) * p->cols;
    return c;
}

/* A task is one group's share of one piece. */
static void FN(lanes_weight)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv_weight *w = problem;
    const cnnx_conv *p = &w->conv;
    const int64_t g = task % p->groups, piece = task / p->groups, size = p->M * p->depth;
    const int64_t plane = p->rows * p->cols;
    const int64_t m_tile = FN(share)(p->M, LANES_M), k_tile = FN(share)(p->depth, LANES_K);
    const int64_t tiles = (p->M + m_tile - 1) / m_tile * ((p->depth + k_tile - 1) / k_tile);
    T *strip = scratch, *sums = strip + p->image_size, *turned = sums + size * VL;
    int64_t *offset = (int64_t *)(turned + VL * VL);
    FN(block) *blocks = (FN(block) *)(offset + p->depth);
    FN(direct_offsets)(p, offset);
    for (int64_t k = 0; k < size * VL; k++) sums[k] = 0;
    const int64_t last = (piece + 1) * w->chunks / w->pieces;
    for (int64_t number = piece * w->chunks / w->pieces; number < last; number++) {
        if (cnnx_stop()) return;
        const FN(chunk) c = FN(rows_at)(p, number);
        const int64_t image = c.n0 * p->groups + g, rows = c.i1 - c.i0;
        const T *y = (const T *)p->y + image * p->M * plane + c.i0 * p->cols;
        FN(ahead) ahead = {blocks, blocks, 0, 0};
        if (number + 1 < last) {
            const FN(chunk) next = FN(rows_at)(p, number + 1);
            ahead = FN(look_ahead)(w, &next, g, 0, p->C, 0, p->M, tiles * rows, blocks);
        }
        FN(copy_rows)(p, image, c.i0, rows, strip, 0);
        for (int64_t m = 0; m < p->M; m += m_tile)
            for (int64_t k = 0; k < p->depth; k += k_tile)
                FN(lanes_tiles)[(p->M - m < m_tile ? p->M - m : m_tile) - 1]
                               [(p->depth - k < k_tile ? p->depth - k : k_tile) - 1](
                    p, rows, y + m * plane, strip, offset + k, sums + (m * p->depth + k) * VL, &ahead);
    }
    T *to = (w->pieces > 1 ? (T *)w->partial + piece * p->groups * size : (T *)w->grad) + g * size;
    for (int64_t k = 0; k < size; k += VL) {
        const int64_t n = size - k < VL ? size - k : VL;
        FN(transpose)(sums + k * VL, VL, n, VL, turned, VL);
        V sum = *(const VU *)turned;
        for (int l = 1; l < VL; l++) sum += *(const VU *)(turned + l * VL);
        if (n == VL)
            *(VU *)(to + k) = sum;
        else
            FN(copy)((const T *)&sum, n, to + k);
    }
}
