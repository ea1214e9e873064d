/* Direct convolution, nothing packed: for layers with few input or output channels.
 *
 * Rows of an image are copied with their zero border, and columns (rows) that belong to different phases of
 * the stride into planes of their own. Then, whatever the stride and dilation, channel c under tap t of
 * output pixel (i, j) lies at i*ld + j + offset[c, t]: every load is contiguous, and the copy stays in
 * the first level. It pays where an implicit matrix product would pack each pixel only to
 * multiply it a few times.
 *
 * The problem is cnnx_conv (forward and input gradient) or cnnx_conv_weight.
 */
enum {
    FN(STRIP) = 20 * 1024 / sizeof(T), /* of the first level's 32 KiB */
    FN(MANY) = 1024,                   /* a depth beside which cnnx_stop costs nothing */
};
#define PHASES 8 /* most column phases; a larger stride is left to the implicit matrix product */

static int FN(direct_plan)(cnnx_conv *p)
{
    if (p->taps == 0 || (p->pairs && p->M > 4)) return 0;
    int64_t bottom, right;
    FN(reach)(p, &bottom, &right);
    const int64_t extent_h = p->extent_h = (bottom - p->top) / p->sh, extent_w = (right - p->left) / p->sw;
    p->depth = p->C * p->taps;
    p->panels = (p->M + MR - 1) / MR;
    p->packed_size = p->groups * p->panels * p->depth * MR;
    /* Phases that no tap uses are left out; a row has room for its last tile. */
    p->phases_h = p->sh < bottom - p->top + 1 ? p->sh : bottom - p->top + 1;
    p->phases_w = p->sw < right - p->left + 1 ? p->sw : right - p->left + 1;
    if (p->phases_w > PHASES) return 0;
    p->image_width = (p->cols + VL - 1) / VL * VL + extent_w;
    const double planes = (double)p->C * (double)p->phases_h * (double)p->phases_w;
    if (planes * (double)p->image_width * (double)(4 + extent_h) * sizeof(T) + (double)p->depth * sizeof(int64_t) >
        CNNX_SCRATCH / 2)
        return 0; /* the smallest block; a larger one is bounded by STRIP */
    const int64_t row = p->C * p->phases_h * p->phases_w * p->image_width;
    int64_t block = FN(STRIP) / row - extent_h;
    if (block < 4) block = 4; /* or the rows shared by blocks would be copied too often */
    if (block > p->rows) block = p->rows;
    p->block = block;
    p->blocks = (p->rows + block - 1) / block;
    p->tile_rows = (block > 4 ? block : 4) + extent_h; /* rows of a plane of the copy: four for any tile */
    p->plane = p->tile_rows * p->image_width + VL; /* room for the last row's last vector */
    p->image_size = (p->C * p->phases_h * p->phases_w * p->plane + 15) / 16 * 16;
    p->halves = 0;
    /* Enough small planes in a task to be worth its preparations. */
    p->m_block = 4096 / (block * p->cols * p->C) + 1;
    p->m_blocks = (p->N * p->groups + p->m_block - 1) / p->m_block;
    p->tasks = p->m_blocks * p->blocks;
    p->scratch = (size_t)p->image_size * sizeof(T) + (size_t)p->depth * sizeof(int64_t);
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

/* Copies what output rows i0 .. i0+n-1 of an image and group read, with its border, row after row of the image: a prefetcher
 * follows that, and not a walk through one phase after the other. */
static void FN(copy_rows)(const cnnx_conv *p, int64_t image, int64_t i0, int64_t n, T *strip, T border)
{
    const int64_t rows = n + p->extent_h, width = p->image_width, phases = p->phases_w;
    int64_t lo[PHASES] = {0}, hi[PHASES] = {0}; /* columns lo .. hi-1 of a phase lie inside the image */
    for (int64_t b = 0; b < phases; b++) {
        const int64_t w = b + p->left; /* column j of this phase is w + j*sw of the image */
        lo[b] = w < 0 ? (-w + p->sw - 1) / p->sw : 0;
        hi[b] = w < p->W ? (p->W - w + p->sw - 1) / p->sw : 0;
        if (hi[b] > width) hi[b] = width;
        if (lo[b] > hi[b]) lo[b] = hi[b];
    }
    /* Whole vectors, where a row has another behind it: what they bring too much, the border covers. */
    const T *end = (const T *)p->x + p->N * p->groups * p->C * p->H * p->W;
    const int deal = p->sw == 2 && phases == 2;
    int64_t both = lo[0], count = hi[0] - both; /* columns that both phases have */
    if (deal) {
        both = lo[0] > lo[1] ? lo[0] : lo[1];
        count = (hi[0] < hi[1] ? hi[0] : hi[1]) - both;
    }
    count = count > 0 ? (count + VL - 1) / VL * VL : 0;
    for (int64_t c = 0; c < p->C; c++)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t a = 0; a < p->phases_h; a++) {
                const int64_t h = (i0 + r) * p->sh + a + p->top;
                const T *x = (const T *)p->x + ((image * p->C + c) * p->H + h) * p->W;
                T *to = strip + (c * p->phases_h + a) * phases * p->plane + r * width;
                if (h < 0 || h >= p->H) {
                    for (int64_t b = 0; b < phases; b++) FN(fill)(width, to + b * p->plane, border);
                    continue;
                }
                /* The next rows, which the prefetcher forgets about while the tiles compute. */
                for (int64_t l = 0; l < p->W * (int64_t)sizeof(T); l += 64) PREFETCH((const char *)(x + 8 * p->W) + l);
                int64_t done = 0;
                if (end - (x + p->W) >= 2 * VL) {
                    done = p->sw == 1 || deal ? count : 0;
                    if (deal)
                        FN(deal)(x + p->left + 2 * both, count, to + both, to + both + p->plane);
                    else
                        for (int64_t j = 0; j < done; j += VL)
                            *(VU *)(to + both + j) = *(const VU *)(x + p->left + both + j);
                }
                for (int64_t b = 0; b < phases; b++, to += p->plane) {
                    const T *from = x + b + p->left;
                    int64_t begin = lo[b];
                    FN(fill)(begin, to, border);
                    if (done) {
                        if (begin < both) to[begin] = from[begin * p->sw];
                        begin = both + done < hi[b] ? both + done : hi[b];
                    }
                    FN(copy_every)(from + begin * p->sw, p->sw, hi[b] - begin, to + begin);
                    FN(fill)(width - hi[b], to + hi[b], border);
                }
            }
}

/* One tile: m output channels x r rows x n vectors, of which `mr` channels, `rows` rows and `count` columns
 * are stored. Weights are w[k*MR + i]; `from` and `to` are its first pixel in the copy and in the first
 * channel of the output. */
static ALWAYS_INLINE void
FN(direct_tile)(const int m, const int r, const int n, const cnnx_conv *p, const T *restrict w,
                const int64_t *restrict offset, const T *bias, int64_t mr, int64_t rows, int64_t count, const T *from, T *to)
{
    const int64_t area = p->YH * p->YW, depth = p->depth, step = p->tx, ld = p->image_width;
    V acc[8][4][4];
    UNROLL for (int c = 0; c < m; c++)
        UNROLL for (int i = 0; i < r; i++)
            UNROLL for (int v = 0; v < n; v++) acc[c][i][v] = (V){0} + (bias && c < mr ? bias[c] : 0);
    for (int64_t k = 0; k < depth; k++) {
        const T *x = from + offset[k];
        UNROLL for (int i = 0; i < r; i++) {
            V b[4];
            UNROLL for (int v = 0; v < n; v++) b[v] = *(const VU *)(x + i * ld + v * VL);
            UNROLL for (int c = 0; c < m; c++)
                UNROLL for (int v = 0; v < n; v++) acc[c][i][v] += w[k * MR + c] * b[v];
        }
    }
    if (p->activation == CNNX_RELU)
        UNROLL for (int c = 0; c < m; c++)
            UNROLL for (int i = 0; i < r; i++)
                UNROLL for (int v = 0; v < n; v++) acc[c][i][v] = FN(relu)(acc[c][i][v]);
    UNROLL for (int c = 0; c < m; c++)
        UNROLL for (int i = 0; i < r; i++) {
            T *y = to + c * area + i * p->ty * p->YW;
            if ((m == 8 && c >= mr) || i >= rows) break;
            if (step == 1 && count >= n * VL) {
                UNROLL for (int v = 0; v < n; v++) *(VU *)(y + v * VL) = acc[c][i][v];
            } else {
                T row[4 * VL] = {0};
                UNROLL for (int v = 0; v < n; v++) *(VU *)(row + v * VL) = acc[c][i][v];
                const int64_t width = count < n * VL ? count : n * VL;
                if (step == 1)
                    FN(copy)(row, width, y);
                else
                    for (int64_t j = 0; j < width; j++) y[j * step] = row[j];
            }
        }
}

typedef void (*FN(direct_task))(const cnnx_conv *, const T *, const int64_t *, const T *, int64_t, int64_t,
                                int64_t, const T *, T *);

/* A lone channel takes several rows, for a chain of four accumulators would wait for itself; so do eight channels of
 * a lone vector, whose weights would be loaded once for each multiply-add. */
#define DIRECT(m, r, n)                                                                               \
    static NOINLINE void FN(direct_##m##_##n)(const cnnx_conv *p, const T *w, const int64_t *offset,   \
                                              const T *bias, int64_t mr, int64_t rows, int64_t count,  \
                                              const T *from, T *to)                                    \
    {                                                                                                  \
        FN(direct_tile)(m, r, n, p, w, offset, bias, mr, rows, count, from, to);                       \
    }
DIRECT(1, 4, 1) DIRECT(1, 2, 2) DIRECT(1, 1, 3) DIRECT(1, 1, 4)
DIRECT(2, 1, 1) DIRECT(2, 1, 2) DIRECT(2, 1, 3) DIRECT(2, 1, 4)
DIRECT(3, 1, 1) DIRECT(3, 1, 2) DIRECT(3, 1, 3) DIRECT(3, 1, 4)
DIRECT(4, 1, 1) DIRECT(4, 1, 2) DIRECT(4, 1, 3)
#if MR == 8
DIRECT(8, 2, 1) DIRECT(8, 1, 2) DIRECT(8, 1, 3)
#endif
#undef DIRECT

static const FN(direct_task) FN(direct_tiles)[][4] = {
#define ROW(m) FN(direct_##m##_1), FN(direct_##m##_2), FN(direct_##m##_3)
    {ROW(1), FN(direct_1_4)}, {ROW(2), FN(direct_2_4)}, {ROW(3), FN(direct_3_4)}, {ROW(4)},
#if MR == 8
    {ROW(8)},
#endif
#undef ROW
};

/* The input gradient of a stride of 2 along a row: both column phases at once, that the stores be contiguous.
 * Taps below `split` belong to the even columns. m output channels x r rows x 2*VL columns. */
static ALWAYS_INLINE void
FN(pair_tile)(const int m, const int r, const cnnx_conv *p, const T *restrict w, const int64_t *restrict offset,
              const T *bias, int64_t rows, int64_t count, const T *from, T *to)
{
    const int64_t area = p->YH * p->YW, ld = p->image_width;
    V acc[4][4][2];
    UNROLL for (int c = 0; c < m; c++)
        UNROLL for (int i = 0; i < r; i++)
            UNROLL for (int v = 0; v < 2; v++) acc[c][i][v] = (V){0} + (bias ? bias[c] : 0);
    for (int64_t ch = 0; ch < p->C; ch++) {
        int64_t t = 0;
        for (; t < p->split; t++, w += MR) {
            const T *x = from + *offset++;
            UNROLL for (int i = 0; i < r; i++) {
                const V b = *(const VU *)(x + i * ld);
                UNROLL for (int c = 0; c < m; c++) acc[c][i][0] += w[c] * b;
            }
        }
        for (; t < p->taps; t++, w += MR) {
            const T *x = from + *offset++;
            UNROLL for (int i = 0; i < r; i++) {
                const V b = *(const VU *)(x + i * ld);
                UNROLL for (int c = 0; c < m; c++) acc[c][i][1] += w[c] * b;
            }
        }
    }
    UNROLL for (int c = 0; c < m; c++)
        UNROLL for (int i = 0; i < r; i++) {
            T row[2 * VL], *y = to + c * area + i * p->ty * p->YW;
            if (i >= rows) break;
            FN(interleave)(acc[c][i][0], acc[c][i][1], count >= 2 * VL ? y : row);
            if (count < 2 * VL) FN(copy)(row, count, y);
        }
}

typedef void (*FN(pair_task))(const cnnx_conv *, const T *, const int64_t *, const T *, int64_t, int64_t,
                              const T *, T *);

#define PAIR(m, r)                                                                                    \
    static NOINLINE void FN(pair_##m)(const cnnx_conv *p, const T *w, const int64_t *offset, const T *bias, \
                                      int64_t rows, int64_t count, const T *from, T *to)               \
    {                                                                                                  \
        FN(pair_tile)(m, r, p, w, offset, bias, rows, count, from, to);                                \
    }
PAIR(1, 4) PAIR(2, 2) PAIR(3, 2) PAIR(4, 1)
#undef PAIR

static void FN(pair_panel)(const cnnx_conv *p, const T *w, const int64_t *offset, const T *bias, int64_t rows,
                           const T *strip, T *y)
{
    static const FN(pair_task) tiles[] = {FN(pair_1), FN(pair_2), FN(pair_3), FN(pair_4)};
    const int64_t tall = p->M == 1 ? 4 : p->M == 4 ? 1 : 2;
    for (int64_t i = 0;; i += tall) {
        if (i + tall > rows) i = rows > tall ? rows - tall : 0;
        if (p->depth > FN(MANY) && cnnx_stop()) return;
        for (int64_t j = 0;; j += VL) {
            if (j + VL > p->cols) j = p->cols > VL ? p->cols - VL : 0;
            tiles[p->M - 1](p, w, offset, bias, rows - i, p->YW - 2 * j, strip + i * p->image_width + j,
                            y + i * p->ty * p->YW + 2 * j);
            if (j + VL >= p->cols) break;
        }
        if (i + tall >= rows) break;
    }
}

/* Output rows 0 .. rows-1 of the mr channels of a panel, in tiles of as many vectors as waste the fewest
 * columns. The last tile of a row moves back to end with it, and so do the last rows of several: computing
 * some pixels twice is cheaper than edges. */
static void FN(direct_panel)(const cnnx_conv *p, const T *w, const int64_t *offset, const T *bias, int64_t mr,
                             int64_t rows, const T *strip, T *y)
{
    const FN(direct_task) *tiles = FN(direct_tiles)[mr <= 4 ? mr - 1 : 4];
    int64_t n = 1;
    for (int64_t v = 2; v <= (mr < 4 ? 4 : 3) && v * VL <= p->cols; v++)
        if ((p->cols + v * VL - 1) / (v * VL) * v <= (p->cols + n * VL - 1) / (n * VL) * n) n = v;
    const int64_t tall = mr == 1 && n <= 2 ? 4 / n : mr > 4 && n == 1 ? 2 : 1;
    for (int64_t i = 0;; i += tall) {
        if (i + tall > rows) i = rows > tall ? rows - tall : 0;
        if (p->depth > FN(MANY) && cnnx_stop()) return;
        for (int64_t j = 0;; j += n * VL) {
            if (j + n * VL > p->cols) j = p->cols > n * VL ? p->cols - n * VL : 0;
            tiles[n - 1](p, w, offset, bias, mr, rows - i, p->cols - j, strip + i * p->image_width + j,
                         y + i * p->ty * p->YW + j * p->tx);
            if (j + n * VL >= p->cols) break;
        }
        if (i + tall >= rows) break;
    }
}

/* Output rows i0 .. i0+rows-1 of one image and group. */
static void FN(direct_image)(const cnnx_conv *p, int64_t image, int64_t i0, int64_t rows, T *strip,
                             const int64_t *offset)
{
    const int64_t g = image % p->groups, area = p->YH * p->YW;
    FN(copy_rows)(p, image, i0, rows, strip, 0);
    for (int64_t s = 0; s < p->panels; s++) {
        const int64_t m = s * MR, mr = p->M - m < MR ? p->M - m : MR;
        const T *w = (const T *)p->packed + (g * p->panels + s) * p->depth * MR;
        const T *bias = p->bias ? (const T *)p->bias + g * p->M + m : NULL;
        T *y = (T *)p->y + (image * p->M + m) * area + (p->oy + i0 * p->ty) * p->YW + p->ox;
        if (p->pairs)
            FN(pair_panel)(p, w, offset, bias, rows, strip, y);
        else
            FN(direct_panel)(p, w, offset, bias, mr, rows, strip, y);
        if (p->activation > CNNX_RELU) /* only a forward has one: it is dense, and rows lie together */
            for (int64_t r = 0; r < mr; r++) FN(activate_row)(y + r * area, rows * p->cols, p->activation);
    }
}

static void FN(direct)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv *p = problem;
    T *strip = scratch;
    int64_t *offset = (int64_t *)(strip + p->image_size);
    const int64_t i0 = task % p->blocks * p->block, images = p->N * p->groups;
    const int64_t rows = p->rows - i0 < p->block ? p->rows - i0 : p->block;
    const int64_t first = task / p->blocks * p->m_block;
    const int64_t last = first + p->m_block < images ? first + p->m_block : images;
    FN(direct_offsets)(p, offset);
    for (int64_t image = first; image < last; image++) FN(direct_image)(p, image, i0, rows, strip, offset);
}

/* Weight gradient: sums over a row's pixels in the lanes of n accumulators, one for each (c, t). A vector that
 * reaches over the end of its row is masked; `end` is that of all gradients, which none may read across. */
static ALWAYS_INLINE void
FN(direct_sums)(const int n, const cnnx_conv *p, int64_t rows, const T *dy, const T *end, const T *strip,
                const int64_t *offset, T *sums)
{
    V acc[12];
    const int64_t whole = p->cols / VL * VL, rest = p->cols - whole;
    UNROLL for (int k = 0; k < n; k++) acc[k] = *(const VU *)(sums + k * VL);
#if defined(__GNUC__)
    FN(mask) mask;
    for (int l = 0; l < VL; l++) mask[l] = l < rest ? -1 : 0;
#endif
    for (int64_t i = 0; i < rows; i++, dy += p->cols, strip += p->image_width) {
        for (int64_t j = 0; j < whole; j += VL) {
            const V d = *(const VU *)(dy + j);
            UNROLL for (int k = 0; k < n; k++) acc[k] += d * *(const VU *)(strip + offset[k] + j);
        }
#if defined(__GNUC__)
        if (rest) {
            V d;
            if (end - dy - whole >= VL) {
                d = *(const VU *)(dy + whole);
            } else {
                T last[VL] = {0};
                memcpy(last, dy + whole, (size_t)rest * sizeof(T));
                d = *(const VU *)last;
            }
            d = (V)((FN(mask))d & mask);
            UNROLL for (int k = 0; k < n; k++) acc[k] += d * *(const VU *)(strip + offset[k] + whole);
        }
#endif
    }
    UNROLL for (int k = 0; k < n; k++) *(VU *)(sums + k * VL) = acc[k];
}

typedef void (*FN(sums_task))(const cnnx_conv *, int64_t, const T *, const T *, const T *, const int64_t *, T *);

#define SUMS(n)                                                                                       \
    static NOINLINE void FN(direct_sums_##n)(const cnnx_conv *p, int64_t rows, const T *dy, const T *end, \
                                             const T *strip, const int64_t *offset, T *sums)           \
    {                                                                                                  \
        FN(direct_sums)(n, p, rows, dy, end, strip, offset, sums);                                     \
    }
SUMS(1) SUMS(2) SUMS(3) SUMS(4) SUMS(5) SUMS(6) SUMS(7) SUMS(8) SUMS(9) SUMS(10) SUMS(11) SUMS(12)
#undef SUMS
static const FN(sums_task) FN(sums_tasks)[12] = {
    FN(direct_sums_1), FN(direct_sums_2), FN(direct_sums_3),  FN(direct_sums_4),
    FN(direct_sums_5), FN(direct_sums_6), FN(direct_sums_7),  FN(direct_sums_8),
    FN(direct_sums_9), FN(direct_sums_10), FN(direct_sums_11), FN(direct_sums_12),
};

/* A task is one group's share of one piece: of some images or, where they are fewer than tasks, of some blocks of
 * rows, as long as they are worth a sum of their own and all sums stay below 4 Mi numbers. */
static int FN(direct_weight_plan)(cnnx_conv_weight *w)
{
    cnnx_conv *p = &w->conv;
    if (!FN(direct_plan)(p)) return 0;
    const int64_t wanted = (32 + p->groups - 1) / p->groups, sums = p->groups * p->M * p->depth;
    const double image = (double)(p->rows * p->cols) * (double)(p->M * p->depth); /* multiply-adds: 2^22 are 50 us */
    w->chunks = p->N * p->blocks;
    if (wanted <= p->N) {
        w->piece = (p->N + wanted - 1) / wanted * p->blocks;
    } else {
        int64_t parts = (wanted + p->N - 1) / p->N;
        if ((double)parts > image / (1 << 22)) parts = (int64_t)(image / (1 << 22));
        if (parts > (4 << 20) / (p->N * sums)) parts = (4 << 20) / (p->N * sums);
        if (parts < 1) parts = 1;
        w->piece = (p->blocks + parts - 1) / parts;
    }
    w->pieces = (w->chunks + w->piece - 1) / w->piece;
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
    const int64_t plane = p->rows * p->cols, tile = FN(share)(p->depth, 12);
    const T *end = (const T *)p->y + p->N * p->groups * p->M * plane;
    T *strip = scratch, *sums = strip + p->image_size;
    int64_t *offset = (int64_t *)(sums + (size * VL + 1) / 2 * 2);
    T *to = (q->pieces > 1 ? (T *)q->partial + piece * p->groups * size : (T *)q->grad) + g * size;
    FN(direct_offsets)(p, offset);
    for (int64_t k = 0; k < size; k++) to[k] = 0;
    const int64_t last = (piece + 1) * q->piece < q->chunks ? (piece + 1) * q->piece : q->chunks;
    int64_t terms = 0; /* summed up in a lane since the lanes were added up: long sums of one sign lose digits */
    for (int64_t number = piece * q->piece; number < last; number++) {
        const int64_t image = number / p->blocks * p->groups + g, i0 = number % p->blocks * p->block;
        const int64_t rows = p->rows - i0 < p->block ? p->rows - i0 : p->block;
        if (cnnx_stop()) return;
        if (terms == 0)
            for (int64_t k = 0; k < size * VL; k++) sums[k] = 0;
        FN(copy_rows)(p, image, i0, rows, strip, 0);
        for (int64_t m = 0; m < p->M; m++) {
            const T *dy = (const T *)p->y + (image * p->M + m) * plane + i0 * p->cols;
            for (int64_t k = 0; k < p->depth; k += tile)
                FN(sums_tasks)[(p->depth - k < tile ? p->depth - k : tile) - 1](
                    p, rows, dy, end, strip, offset + k, sums + (m * p->depth + k) * VL);
        }
        terms += rows * ((p->cols + VL - 1) / VL);
        if (terms >= 256 || number + 1 == last) {
            for (int64_t k = 0; k < size; k++) to[k] += FN(sum_lanes)(*(const VU *)(sums + k * VL));
            terms = 0;
        }
    }
}
