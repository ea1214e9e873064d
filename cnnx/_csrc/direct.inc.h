/* Direct convolution, nothing packed: for depthwise layers and those with few input or output channels.
 *
 * Rows of an image are copied with their zero border, and columns (rows) that belong to different phases of
 * the stride into planes of their own. Then, whatever the stride and dilation, channel c under tap t of
 * output pixel (i, j) lies at i*ld + j + offset[c, t]: every load is contiguous, and the copy stays in
 * the first level. It pays where an implicit matrix product would pack each pixel only to
 * multiply it a few times.
 *
 * The problem is cnnx_conv (forward and input gradient) or cnnx_conv_weight.
 */
enum { FN(STRIP) = 20 * 1024 / sizeof(T) }; /* of the first level's 32 KiB */

static int FN(direct_plan)(cnnx_conv *p)
{
    if (p->taps == 0) return 0;
    int64_t bottom, right;
    FN(reach)(p, &bottom, &right);
    const int64_t extent_h = (bottom - p->top) / p->sh, extent_w = (right - p->left) / p->sw;
    p->depth = p->C * p->taps;
    p->panels = (p->M + MR - 1) / MR;
    p->packed_size = p->groups * p->panels * p->depth * MR;
    /* Phases that no tap uses are left out; a row has room for its last tile. */
    p->phases_h = p->sh < bottom - p->top + 1 ? p->sh : bottom - p->top + 1;
    p->phases_w = p->sw < right - p->left + 1 ? p->sw : right - p->left + 1;
    p->image_width = p->cols + extent_w + NR;
    const int64_t row = p->C * p->phases_h * p->phases_w * p->image_width;
    int64_t block = FN(STRIP) / row - extent_h;
    if (block < 4) block = 4; /* or the rows shared by blocks would be copied too often */
    if (block > p->rows) block = p->rows;
    p->block = block;
    p->blocks = (p->rows + block - 1) / block;
    p->tile_rows = block + extent_h; /* rows of a plane of the copy */
    p->plane = p->tile_rows * p->image_width;
    p->image_size = (row * p->tile_rows + 15) / 16 * 16;
    p->tasks = p->N * p->groups * p->blocks;
    p->scratch = (size_t)(p->image_size + p->depth + 16) * sizeof(T) + (size_t)p->depth * sizeof(int64_t);
    return 1;
}

/* Where each (c, t) lies in the copy, from the output pixel's own place. */
static void FN(direct_offsets)(const cnnx_conv *p, int64_t *offset)
{
    for (int64_t c = 0; c < p->C; c++)
        for (int64_t t = 0; t < p->taps; t++) {
            const int64_t h = p->dh[t] - p->top, w = p->dw[t] - p->left;
            const int64_t plane = (c * p->phases_h + h % p->sh) * p->phases_w + w % p->sw;
            *offset++ = plane * p->plane + h / p->sh * p->image_width + w / p->sw;
        }
}

/* Copies what output rows i0 .. i0+n-1 of image n, group g read, row after row of the image: a prefetcher
 * follows that, and not a walk through one phase after the other. */
static void FN(copy_rows)(const cnnx_conv *p, int64_t image, int64_t i0, int64_t n, T *strip)
{
    const int64_t rows = n + p->tile_rows - p->block;
    for (int64_t c = 0; c < p->C; c++)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t a = 0; a < p->phases_h; a++) {
                const int64_t h = (i0 + r) * p->sh + a + p->top;
                const T *x = (const T *)p->x + ((image * p->C + c) * p->H + h) * p->W;
                T *to = strip + (c * p->phases_h + a) * p->phases_w * p->plane + r * p->image_width;
                for (int64_t b = 0; b < p->phases_w; b++, to += p->plane) {
                    const int64_t w = b + p->left; /* column j of this phase is w + j*sw of the image */
                    int64_t lo = 0, hi = 0;        /* columns lo .. hi-1 lie inside */
                    if (h >= 0 && h < p->H) {
                        lo = w < 0 ? (-w + p->sw - 1) / p->sw : 0;
                        hi = w < p->W ? (p->W - w + p->sw - 1) / p->sw : 0;
                        if (hi > p->image_width) hi = p->image_width;
                        if (lo > hi) lo = hi;
                    }
                    for (int64_t j = 0; j < lo; j++) to[j] = 0;
                    if (hi > lo) FN(copy_every)(x + w + lo * p->sw, p->sw, hi - lo, to + lo);
                    for (int64_t j = hi; j < p->image_width; j++) to[j] = 0;
                }
            }
}

/* Columns j0 .. j1-1 of `rows` output rows, m output channels x n vectors at a time, the first mr of the
 * channels existing. Weights are w[k*m + i]; y is output pixel (0, 0) of the first channel. */
static ALWAYS_INLINE void
FN(direct_rows)(const int m, const int n, const cnnx_conv *p, const T *restrict w, const T *strip,
                const int64_t *restrict offset, const T *bias, T *y, int64_t rows, int64_t mr, int64_t j0,
                int64_t j1)
{
    const int64_t area = p->YH * p->YW, depth = p->depth, step = p->tx;
    const int relu = p->activation == CNNX_RELU;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = j0; j < j1; j += n * VL) {
            const T *row = strip + i * p->image_width + j;
            T *to = y + i * p->ty * p->YW + j * step;
            V acc[8][4];
            UNROLL for (int r = 0; r < m; r++)
                UNROLL for (int v = 0; v < n; v++) acc[r][v] = (V){0} + (bias && r < mr ? bias[r] : 0);
            for (int64_t k = 0; k < depth; k++) {
                const T *from = row + offset[k];
                V b[4];
                UNROLL for (int v = 0; v < n; v++) b[v] = *(const VU *)(from + v * VL);
                UNROLL for (int r = 0; r < m; r++)
                    UNROLL for (int v = 0; v < n; v++) acc[r][v] += w[k * m + r] * b[v];
            }
            if (relu)
                UNROLL for (int r = 0; r < m; r++)
                    UNROLL for (int v = 0; v < n; v++) acc[r][v] = FN(relu)(acc[r][v]);
            const int64_t count = j1 - j;
            if (step == 1 && count >= n * VL && mr == m) {
                UNROLL for (int r = 0; r < m; r++)
                    UNROLL for (int v = 0; v < n; v++) *(VU *)(to + r * area + v * VL) = acc[r][v];
            } else {
                T tile[8][4 * VL];
                UNROLL for (int r = 0; r < m; r++)
                    UNROLL for (int v = 0; v < n; v++) *(VU *)(tile[r] + v * VL) = acc[r][v];
                for (int64_t r = 0; r < mr; r++)
                    for (int64_t v = 0; v < n * VL && v < count; v++) to[r * area + v * step] = tile[r][v];
            }
        }
}

#define DIRECT(name, m, n)                                                                              \
    static NOINLINE void FN(name)(const cnnx_conv *p, const T *w, const T *strip, const int64_t *offset, \
                                  const T *bias, T *y, int64_t rows, int64_t mr, int64_t j0, int64_t j1) \
    {                                                                                                   \
        FN(direct_rows)(m, n, p, w, strip, offset, bias, y, rows, mr, j0, j1);                          \
    }
DIRECT(direct_wide, MR, NV)
DIRECT(direct_narrow, MR, 1)
DIRECT(direct_one_wide, 1, 4)
DIRECT(direct_one_narrow, 1, 1)
#undef DIRECT

static void FN(direct)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv *p = problem;
    T *strip = scratch, *one = strip + p->image_size;
    int64_t *offset = (int64_t *)(one + (p->depth + 1) / 2 * 2);
    const int64_t b = task % p->blocks, image = task / p->blocks, g = image % p->groups;
    const int64_t i0 = b * p->block, area = p->YH * p->YW;
    const int64_t rows = p->rows - i0 < p->block ? p->rows - i0 : p->block;
    const int single = p->M == 1; /* depthwise: the panel's other rows would be zeros */
    const int64_t wide = single ? 4 * VL : NR;
    /* Whole wide tiles, and one more where the rest would fill half of it; narrow ones for what is left. */
    int64_t middle = p->cols / wide * wide;
    if (p->cols - middle > wide / 2) middle = p->cols;
    FN(direct_offsets)(p, offset);
    FN(copy_rows)(p, image, i0, rows, strip);
    for (int64_t s = 0; s < p->panels; s++) {
        const int64_t m = s * MR, mr = p->M - m < MR ? p->M - m : MR;
        const T *w = (const T *)p->packed + (g * p->panels + s) * p->depth * MR;
        const T *bias = p->bias ? (const T *)p->bias + g * p->M + m : NULL;
        T *y = (T *)p->y + (image * p->M + m) * area + (p->oy + i0 * p->ty) * p->YW + p->ox;
        if (single) {
            for (int64_t k = 0; k < p->depth; k++) one[k] = w[k * MR];
            FN(direct_one_wide)(p, one, strip, offset, bias, y, rows, 1, 0, middle);
            FN(direct_one_narrow)(p, one, strip, offset, bias, y, rows, 1, middle, p->cols);
        } else {
            FN(direct_wide)(p, w, strip, offset, bias, y, rows, mr, 0, middle);
            FN(direct_narrow)(p, w, strip, offset, bias, y, rows, mr, middle, p->cols);
        }
        if (p->activation > CNNX_RELU)
            for (int64_t r = 0; r < mr; r++)
                for (int64_t i = 0; i < rows; i++)
                    for (int64_t j = 0; j < p->cols; j++) {
                        T *to = y + r * area + i * p->ty * p->YW + j * p->tx;
                        *to = FN(activate)(*to, p->activation);
                    }
    }
}

/* Weight gradient: sums over a row's pixels in the lanes of n accumulators, one for each (c, t). */
static ALWAYS_INLINE void
FN(direct_sums)(const int n, const cnnx_conv *p, int64_t rows, const T *dy, const T *strip,
                const int64_t *offset, T *sums)
{
    V acc[12];
    UNROLL for (int k = 0; k < n; k++) acc[k] = *(const VU *)(sums + k * VL);
    for (int64_t i = 0; i < rows; i++, dy += p->cols, strip += p->image_width) {
        int64_t j = 0;
        for (; j + VL <= p->cols; j += VL) {
            const V d = *(const VU *)(dy + j);
            UNROLL for (int k = 0; k < n; k++) acc[k] += d * *(const VU *)(strip + offset[k] + j);
        }
        if (j < p->cols) {
            T last[VL];
            for (int64_t l = 0; l < VL; l++) last[l] = j + l < p->cols ? dy[j + l] : 0;
            const V d = *(const VU *)last;
            UNROLL for (int k = 0; k < n; k++) acc[k] += d * *(const VU *)(strip + offset[k] + j);
        }
    }
    UNROLL for (int k = 0; k < n; k++) *(VU *)(sums + k * VL) = acc[k];
}

#define DIRECT(name, n)                                                                              \
    static NOINLINE void FN(name)(const cnnx_conv *p, int64_t rows, const T *dy, const T *strip,     \
                                  const int64_t *offset, T *sums)                                    \
    {                                                                                                \
        FN(direct_sums)(n, p, rows, dy, strip, offset, sums);                                        \
    }
DIRECT(direct_sums_9, 9)
DIRECT(direct_sums_5, 5)
DIRECT(direct_sums_1, 1)
#undef DIRECT

/* A task is one group's share of one piece of the batch; pieces depend on the shape alone. */
static int FN(direct_weight_plan)(cnnx_conv_weight *w)
{
    cnnx_conv *p = &w->conv;
    if (!FN(direct_plan)(p)) return 0;
    int64_t pieces = (32 + p->groups - 1) / p->groups;
    if (pieces > p->N) pieces = p->N;
    w->piece = (p->N + pieces - 1) / pieces;
    w->pieces = (p->N + w->piece - 1) / w->piece;
    w->tasks = w->pieces * p->groups;
    w->scratch = (size_t)(p->image_size + p->M * p->depth * VL + 16) * sizeof(T) +
                 (size_t)p->depth * sizeof(int64_t);
    return 1;
}

static void FN(direct_weight)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv_weight *q = problem;
    const cnnx_conv *p = &q->conv;
    const int64_t g = task % p->groups, piece = task / p->groups, size = p->M * p->depth;
    T *strip = scratch, *sums = strip + p->image_size;
    int64_t *offset = (int64_t *)(sums + (size * VL + 1) / 2 * 2);
    T *to = (q->pieces > 1 ? (T *)q->partial + piece * p->groups * size : (T *)q->grad) + g * size;
    FN(direct_offsets)(p, offset);
    for (int64_t k = 0; k < size; k++) to[k] = 0;
    const int64_t end = (piece + 1) * q->piece < p->N ? (piece + 1) * q->piece : p->N;
    for (int64_t n = piece * q->piece; n < end; n++) {
        for (int64_t k = 0; k < size * VL; k++) sums[k] = 0;
        for (int64_t i0 = 0; i0 < p->rows; i0 += p->block) {
            const int64_t rows = p->rows - i0 < p->block ? p->rows - i0 : p->block;
            FN(copy_rows)(p, n * p->groups + g, i0, rows, strip);
            for (int64_t m = 0; m < p->M; m++) {
                const T *dy = (const T *)p->y + (((n * p->groups + g) * p->M + m) * p->rows + i0) * p->cols;
                T *sum = sums + m * p->depth * VL;
                int64_t k = 0;
                for (; k + 9 <= p->depth; k += 9)
                    FN(direct_sums_9)(p, rows, dy, strip, offset + k, sum + k * VL);
                for (; k + 5 <= p->depth; k += 5)
                    FN(direct_sums_5)(p, rows, dy, strip, offset + k, sum + k * VL);
                for (; k < p->depth; k++)
                    FN(direct_sums_1)(p, rows, dy, strip, offset + k, sum + k * VL);
            }
        }
        for (int64_t k = 0; k < size; k++) to[k] += FN(sum_lanes)(*(const VU *)(sums + k * VL));
    }
}
