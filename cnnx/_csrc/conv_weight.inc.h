/* Weight gradient as a sum of outer products, one for each pixel.
 *
 * The output's gradient is transposed into panels (pixel, WN output channels), whose vectors meet one number
 * of the input after the other: tap t of channel c at that pixel. These numbers need no packing, for a
 * scalar can be read from anywhere: a zero-padded copy of the chunk's part of the image serves all taps.
 * So each number is moved once or twice and then used C*taps or M times, and the sums stay in registers
 * for a whole chunk of KC pixels. One panel at a time is transposed, into the first level, right before its tiles.
 *
 * The tiles run at 95 % of the peak; what remains is memory, and so they ask for what the next chunk will read.
 *
 * Only where stride or dilation make that copy much larger than the pixels that are used, patches are
 * packed instead, a row for each (c, t).
 */
#define WN (WV * VL) /* output channels in a panel */
#define LONE 12      /* numbers of the input that meet a lone vector of them */
#define STRETCH 32   /* pixels between two looks ahead: with 16 or 64 some layers lost 3 to 5 % */
enum { FN(WINDOW) = 128 * 1024 / sizeof(T) }; /* of the copy; with a panel it stays in the second level */

typedef struct { /* consecutive pixels of a chunk */
    int64_t at, len;
} FN(stretch);

/* A 1x1 convolution's x and y may change places: so the fewer channels are transposed, which costs as much as
 * five multiply-adds for each, and those that fill the lanes. */
static int64_t FN(pixel_cost)(int64_t numbers, int64_t lanes)
{
    return (lanes + VL - 1) / VL * VL * numbers + 5 * lanes;
}

/* Chunks are part of a row, or some rows, or some images: consecutive pixels in each case. */
static void FN(conv_weight_plan)(cnnx_conv_weight *w)
{
    cnnx_conv *p = &w->conv;
    int64_t bottom, right;
    FN(flatten)(p);
    FN(reach)(p, &bottom, &right);
    p->line = p->cols;
    p->area = p->rows * p->cols;
    p->pixels = p->N * p->area;
    p->depth = p->C * p->taps;
    w->chunk_cols = FN(share)(p->cols, KC);
    w->chunk_rows = w->chunk_cols < p->cols ? 1 : FN(share)(p->rows, KC / p->cols);
    w->chunk_images = w->chunk_rows < p->rows ? 1 : FN(share)(p->N, KC / (p->rows * w->chunk_cols));
    w->chunks = (p->N + w->chunk_images - 1) / w->chunk_images *
                ((p->rows + w->chunk_rows - 1) / w->chunk_rows) *
                ((p->cols + w->chunk_cols - 1) / w->chunk_cols);
    /* Rows and columns that a stride steps over are left out of the copy. */
    w->extent_h = bottom - p->top + 1;
    w->extent_w = right - p->left + 1;
    w->step_h = p->sh < w->extent_h ? p->sh : w->extent_h;
    w->step_w = p->sw < w->extent_w ? p->sw : w->extent_w;
    w->window_rows = (w->chunk_rows - 1) * w->step_h + w->extent_h;
    w->window_cols = (w->chunk_cols - 1) * w->step_w + w->extent_w;
    w->source = FN(in_place)(p)                                                  ? CNNX_PLANES
                : w->window_rows > FN(WINDOW) / w->window_cols / w->chunk_images ? CNNX_PATCHES
                                                                                 : CNNX_WINDOWS;
    w->swapped = w->source == CNNX_PLANES && FN(pixel_cost)(p->M, p->C) < FN(pixel_cost)(p->C, p->M);
    if (w->swapped) {
        const void *x = p->x;
        const int64_t C = p->C;
        p->x = p->y;
        p->y = (void *)x;
        p->C = p->depth = p->M;
        p->M = C;
    }
    if (w->source == CNNX_PATCHES) {
        w->k_block = FN(share)(p->depth, 192);
        w->x_size = w->k_block * KC;
    } else if (w->source == CNNX_PLANES) {
        w->k_block = FN(share)(p->depth, 256);
        w->x_size = 0;
    } else {
        const int64_t window = w->chunk_images * w->window_rows * w->window_cols;
        const int64_t most = FN(WINDOW) / window < 512 / p->taps ? FN(WINDOW) / window : 512 / p->taps;
        w->k_block = FN(share)(p->C, most) * p->taps;
        w->x_size = w->k_block / p->taps * window;
    }
    const int64_t wide = 32768 / w->k_block > 128 ? 32768 / w->k_block : 128;
    w->m_block = FN(share)((p->M + WN - 1) / WN, wide / WN) * WN;
    w->m_blocks = (p->M + w->m_block - 1) / w->m_block;
    w->k_blocks = (p->depth + w->k_block - 1) / w->k_block;
    /* Enough pieces that 16 tasks can be had, as long as they are worth adding up and the partial sums stay
     * below 4 Mi elements. */
    const int64_t outputs = p->groups * w->m_blocks * w->k_blocks;
    const int64_t size = p->groups * p->M * p->depth;
    int64_t pieces = (16 + outputs - 1) / outputs;
    if (pieces > w->chunks / 4) pieces = w->chunks / 4;
    if (pieces > (4 << 20) / size) pieces = (4 << 20) / size;
    w->pieces = pieces > 1 ? pieces : 1;
    w->tasks = w->pieces * outputs;
    w->x_size = (w->x_size + VL + 15) / 16 * 16;
    w->scratch = (size_t)(WN * KC + w->m_block * w->k_block + w->x_size) * sizeof(T) +
                 (size_t)w->k_block * sizeof(int64_t) + KC * sizeof(FN(stretch)) +
                 2 * KC * sizeof(FN(block));
}

/* Pixels of one chunk: images n0 .. n1-1, rows i0 .. i1-1, columns j0 .. j1-1, numbered from q0. */
typedef struct {
    int64_t n0, n1, i0, i1, j0, j1, q0, pixels;
} FN(chunk);

static FN(chunk) FN(chunk_at)(const cnnx_conv_weight *w, int64_t number)
{
    const cnnx_conv *p = &w->conv;
    const int64_t across = (p->cols + w->chunk_cols - 1) / w->chunk_cols;
    const int64_t down = (p->rows + w->chunk_rows - 1) / w->chunk_rows;
    FN(chunk) c;
    c.j0 = number % across * w->chunk_cols;
    c.i0 = number / across % down * w->chunk_rows;
    c.n0 = number / across / down * w->chunk_images;
    c.j1 = c.j0 + w->chunk_cols < p->cols ? c.j0 + w->chunk_cols : p->cols;
    c.i1 = c.i0 + w->chunk_rows < p->rows ? c.i0 + w->chunk_rows : p->rows;
    c.n1 = c.n0 + w->chunk_images < p->N ? c.n0 + w->chunk_images : p->N;
    c.q0 = (c.n0 * p->rows + c.i0) * p->cols + c.j0;
    c.pixels = (c.n1 - c.n0) * (c.i1 - c.i0) * (c.j1 - c.j0);
    return c;
}

/* The output's gradient of WN channels from m0 on: out[q*WN + i], zero from channel m1 on. */
static void FN(transpose_grad)(const cnnx_conv_weight *w, const FN(chunk) *c, int64_t g, int64_t m0, int64_t m1, T *out)
{
    const cnnx_conv *p = &w->conv;
    const int64_t plane = p->rows * p->cols;
    for (int64_t m = m0; m < m1; m += VL, out += VL) {
        T *to = out;
        for (int64_t q = c->q0; q < c->q0 + c->pixels;) {
            const int64_t rest = c->q0 + c->pixels - q, here = plane - q % plane;
            const int64_t n = rest < here ? rest : here;
            const T *from = (const T *)p->y + (q / plane * p->groups * p->M + g * p->M + m) * plane + q % plane;
            FN(transpose)(from, plane, m1 - m < VL ? m1 - m : VL, n, to, WN);
            to += n * WN;
            q += n;
        }
    }
}

/* One row of the copy: count numbers, of which lo .. hi-1 are every step-th from x on and the others zero. Whole
 * vectors where x has that many numbers: what they write past the row, the next one overwrites. */
static ALWAYS_INLINE void FN(window_row)(const T *restrict x, int64_t step, int64_t lo, int64_t hi, int64_t count,
                                         const T *end, T *restrict to)
{
    if (step > 2 || (hi - lo + VL) * step > end - x) {
        FN(fill)(lo, to, 0);
        FN(copy_every)(x, step, hi - lo, to + lo);
    } else {
        for (int64_t j = 0; j < lo; j += VL) {
            *(VU *)(to + j) = (V){0};
            PREVENT_MEMCPY;
        }
        for (int64_t j = 0; j < hi - lo; j += VL) {
            V v = *(const VU *)(x + j * step);
            if (step == 2) v = FN(even)(v, *(const VU *)(x + 2 * j + VL));
            *(VU *)(to + lo + j) = v;
            PREVENT_MEMCPY;
        }
    }
    for (int64_t j = hi; j < count; j += VL) {
        *(VU *)(to + j) = (V){0};
        PREVENT_MEMCPY;
    }
}

/* The chunk's part of the image with its border of zeros, channels c0 .. c1-1 one after the other, and a vector
 * of anything. */
static void FN(copy_window)(const cnnx_conv_weight *w, const FN(chunk) *c, int64_t g, int64_t c0,
                            int64_t c1, T *restrict out)
{
    const cnnx_conv *p = &w->conv;
    const T *end = (const T *)p->x + p->N * p->groups * p->C * p->H * p->W;
    /* Consecutive rows, or, where the stride is larger than what the taps see, what they see of each step; and
     * consecutive columns, or one copy with a step for each column that they see. */
    const int64_t tall = w->step_h < p->sh ? w->extent_h : w->window_rows;
    const int64_t step = w->step_w < p->sw ? p->sw : 1, copies = w->step_w < p->sw ? w->extent_w : 1;
    const int64_t H = p->H, W = p->W, sh = p->sh;
    const int64_t width = w->window_cols, height = w->window_rows, count = width / copies;
    for (int64_t b = 0; b < copies; b++) {
        const int64_t from = c->j0 * p->sw + p->left + b; /* column of the image that the copy begins with */
        int64_t lo = from < 0 ? (-from + step - 1) / step : 0, hi = from < W ? (W - from + step - 1) / step : 0;
        if (lo > count) lo = count;
        if (hi > count) hi = count;
        if (hi < lo) hi = lo;
        T *to = out + b;
        for (int64_t channel = c0; channel < c1; channel++)
            for (int64_t n = c->n0; n < c->n0 + w->chunk_images; n++) {
                const T *x = (const T *)p->x + ((n * p->groups + g) * p->C + channel) * H * W + from + lo * step;
                int64_t top = c->i0 * sh + p->top;
                for (int64_t r = 0; r < height; r += tall, top += sh)
                    for (int64_t h = top; h < top + tall; h++, to += width) {
                        const int inside = n < c->n1 && h >= 0 && h < H;
                        const int64_t last = inside ? hi : lo;
                        if (copies > 1)
                            for (int64_t j = 0; j < count; j++)
                                to[j * copies] = j >= lo && j < last ? x[h * W + (j - lo) * step] : 0;
                        else if (step == 1)
                            FN(window_row)(x + h * W, 1, lo, last, count, end, to);
                        else if (step == 2)
                            FN(window_row)(x + h * W, 2, lo, last, count, end, to);
                        else
                            FN(window_row)(x + h * W, step, lo, last, count, end, to);
                    }
            }
    }
}

/* acc[k][i] += sum over stretches r and j < len of x[offset[k] + r.at + j*step] * grad[(pixel of r, j)*WN + i],
 * for m numbers k and n vectors of output channels i. */
static ALWAYS_INLINE void
FN(outer)(const int m, const int n, const T *x, const int64_t *offset, const FN(stretch) *run, int64_t runs,
          int64_t step, const T *restrict grad, T *restrict acc, FN(ahead) *ahead)
{
    V c[LONE][WV];
    const T *from[LONE];
    UNROLL for (int k = 0; k < m; k++) from[k] = x + offset[k];
    UNROLL for (int k = 0; k < m; k++)
        UNROLL for (int v = 0; v < n; v++) c[k][v] = (V){0};
    for (int64_t r = 0; r < runs; r++) {
        const int64_t len = run[r].len;
        int64_t at = run[r].at;
        FN(ask)(ahead);
        for (int64_t j = 0; j < len; j++, at += step, grad += WN) {
            V b[WV];
            UNROLL for (int v = 0; v < n; v++) b[v] = *(const V *)(grad + v * VL);
            UNROLL for (int k = 0; k < m; k++) {
                const T a = from[k][at];
                UNROLL for (int v = 0; v < n; v++) c[k][v] += a * b[v];
            }
        }
    }
    UNROLL for (int k = 0; k < m; k++)
        UNROLL for (int v = 0; v < n; v++) *(V *)(acc + k * WN + v * VL) += c[k][v];
}

typedef void (*FN(outer_tile))(const T *, const int64_t *, const FN(stretch) *, int64_t, int64_t, const T *, T *,
                               FN(ahead) *);

#define OUTER(m, n)                                                                                   \
    static NOINLINE void FN(outer_##m##_##n)(const T *x, const int64_t *offset, const FN(stretch) *run, \
                                             int64_t runs, int64_t step, const T *grad, T *acc,        \
                                             FN(ahead) *ahead)                                         \
    {                                                                                                  \
        FN(outer)(m, n, x, offset, run, runs, step, grad, acc, ahead);                                 \
    }
OUTER(1, 1) OUTER(2, 1) OUTER(3, 1) OUTER(4, 1) OUTER(5, 1) OUTER(6, 1)
OUTER(7, 1) OUTER(8, 1) OUTER(9, 1) OUTER(10, 1) OUTER(11, 1) OUTER(12, 1)
OUTER(1, 2) OUTER(2, 2) OUTER(3, 2) OUTER(4, 2) OUTER(5, 2) OUTER(6, 2)
#if WM == 8
OUTER(7, 2) OUTER(8, 2)
#endif
#undef OUTER

/* By the number of vectors and the numbers of the input: every remainder has a tile of its own. A lone vector
 * takes more numbers, or its accumulators would wait for each other: 250 GFLOP/s instead of 205. */
static const FN(outer_tile) FN(outer_tiles)[WV][LONE] = {
    {FN(outer_1_1), FN(outer_2_1), FN(outer_3_1), FN(outer_4_1), FN(outer_5_1), FN(outer_6_1), FN(outer_7_1),
     FN(outer_8_1), FN(outer_9_1), FN(outer_10_1), FN(outer_11_1), FN(outer_12_1)},
    {FN(outer_1_2), FN(outer_2_2), FN(outer_3_2), FN(outer_4_2), FN(outer_5_2), FN(outer_6_2),
#if WM == 8
     FN(outer_7_2), FN(outer_8_2),
#endif
    },
};

/* The memory that chunk c will read: rows of channels c0 .. c1-1 of x, pixels of channels m0 .. m1-1 of y; dealt out to
 * so many stretches. */
static FN(ahead) FN(look_ahead)(const cnnx_conv_weight *w, const FN(chunk) *c, int64_t g, int64_t c0, int64_t c1,
                                int64_t m0, int64_t m1, int64_t stretches, FN(block) *blocks)
{
    const cnnx_conv *p = &w->conv;
    const int64_t area = p->H * p->W, plane = p->rows * p->cols, size = sizeof(T);
    /* Rows that a stride steps over are left out, and the rest of rows of which a chunk has a part: without a part,
     * rows lie together. */
    const int part = w->source != CNNX_PLANES && w->chunk_cols < p->cols;
    const int64_t rows = w->step_h < p->sh ? c->i1 - c->i0 : 1;
    const int64_t reach = (c->i1 - c->i0 - rows) * p->sh + w->extent_h, lines = !part ? 1 : reach < KC ? reach : KC;
    FN(ahead) a = {blocks, blocks, 0, 0};
    for (int64_t n = c->n0; n < c->n1; n++) {
        const T *x = (const T *)p->x + ((n * p->groups + g) * p->C + c0) * area;
        const T *y = (const T *)p->y + ((n * p->groups + g) * p->M + m0) * plane + c->i0 * p->cols + c->j0;
        for (int64_t i = 0; i < rows * lines; i++) {
            int64_t begin = ((c->i0 + i / lines) * p->sh + p->top + i % lines) * p->W, end = begin + reach * p->W;
            if (part) begin += c->j0 * p->sw + p->left, end = begin + (c->j1 - c->j0 - 1) * p->sw + w->extent_w;
            if (w->source == CNNX_PLANES) begin = c->j0, end = c->j1;
            if (begin < 0) begin = 0;
            if (end > area) end = area;
            if (begin < end)
                *a.end++ = (FN(block)){(const char *)(x + begin), (end - begin) * size, c1 - c0, area * size};
        }
        *a.end++ = (FN(block)){(const char *)y, c->pixels / (c->n1 - c->n0) * size, m1 - m0, plane * size};
    }
    for (const FN(block) *b = blocks; b < a.end; b++) a.lines += (b->bytes + 63) / 64 * b->rows;
    a.lines = (a.lines + stretches - 1) / stretches;
    return a;
}

static void FN(conv_weight)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv_weight *w = problem;
    const cnnx_conv *p = &w->conv;
    const int64_t kb = task % w->k_blocks, mb = task / w->k_blocks % w->m_blocks,
                  g = task / w->k_blocks / w->m_blocks % p->groups,
                  piece = task / w->k_blocks / w->m_blocks / p->groups;
    const int64_t m0 = mb * w->m_block, k0 = kb * w->k_block;
    const int64_t m1 = m0 + w->m_block < p->M ? m0 + w->m_block : p->M;
    const int64_t k1 = k0 + w->k_block < p->depth ? k0 + w->k_block : p->depth;
    const int64_t panels = (m1 - m0 + WN - 1) / WN, depth = k1 - k0;
    T *grad = scratch, *acc = grad + WN * KC, *x = acc + w->m_block * w->k_block;
    int64_t *offset = (int64_t *)(x + w->x_size);
    FN(stretch) *run = (FN(stretch) *)(offset + w->k_block);
    FN(block) *blocks = (FN(block) *)(run + KC);

    const int64_t window = w->window_rows * w->window_cols, plane = p->H * p->W;
    for (int64_t k = 0; k < depth; k++) {
        const int64_t t = k % p->taps; /* windows: k0 begins a channel */
        offset[k] = w->source == CNNX_PATCHES  ? k * KC
                    : w->source == CNNX_PLANES ? k * plane
                                               : k / p->taps * w->chunk_images * window +
                                                     (p->dh[t] - p->top) * w->window_cols + p->dw[t] - p->left;
    }
    for (int64_t i = 0; i < panels * depth * WN; i++) acc[i] = 0;

    const int64_t end = (piece + 1) * w->chunks / w->pieces;
    for (int64_t number = piece * w->chunks / w->pieces; number < end; number++) {
        const FN(chunk) c = FN(chunk_at)(w, number);
        const T *from = x;
        if (cnnx_stop()) return;
        int64_t runs = 0, step = 1;
        if (w->source == CNNX_PATCHES) {
            FN(pack_patches)(p, g, c.q0, c.q0 + c.pixels, c.pixels, k0, k1, x, KC);
        } else if (w->source == CNNX_PLANES) {
            from = (const T *)p->x + ((c.n0 * p->groups + g) * p->C + k0) * plane + c.i0 * p->W + c.j0;
        } else {
            FN(copy_window)(w, &c, g, k0 / p->taps, k1 / p->taps, x);
            step = w->step_w;
        }
        for (int64_t n = 0; n < c.n1 - c.n0; n++)
            for (int64_t i = 0; i < c.i1 - c.i0; i++)
                for (int64_t j = 0; j < c.j1 - c.j0; j += STRETCH) {
                    run[runs].at = w->source == CNNX_PATCHES  ? (n * (c.i1 - c.i0) + i) * (c.j1 - c.j0) + j
                                   : w->source == CNNX_PLANES ? n * p->groups * p->C * plane + i * p->W + j
                                                              : n * window + i * w->step_h * w->window_cols + j * step;
                    run[runs++].len = c.j1 - c.j0 - j < STRETCH ? c.j1 - c.j0 - j : STRETCH;
                }
        FN(ahead) ahead = {blocks, blocks, 0, 0};
        if (number + 1 < end) {
            const FN(chunk) next = FN(chunk_at)(w, number + 1);
            ahead = FN(look_ahead)(w, &next, g, k0 / p->taps, (k1 + p->taps - 1) / p->taps, m0, m1,
                                   panels * ((depth + WM - 1) / WM) * runs, blocks);
        }
        for (int64_t m = m0; m < m1; m += WN) {
            const int vectors = m1 - m > VL ? WV : 1;
            const int64_t tile = FN(share)(depth, vectors == 1 ? LONE : WM);
            FN(transpose_grad)(w, &c, g, m, m1 - m < WN ? m1 : m + WN, grad);
            for (int64_t k = 0; k < depth; k += tile) {
                const int64_t n = depth - k < tile ? depth - k : tile;
                FN(outer_tiles)[vectors - 1][n - 1](from, offset + k, run, runs, step, grad,
                                                    acc + ((m - m0) / WN * depth + k) * WN, &ahead);
            }
        }
    }
    T *out = w->pieces > 1 ? (T *)w->partial + piece * p->groups * p->M * p->depth : (T *)w->grad;
    out += g * p->M * p->depth;
    if (w->swapped) {
        for (int64_t k = 0; k < depth; k++)
            for (int64_t m = m0; m < m1; m += WN)
                FN(copy)(acc + ((m - m0) / WN * depth + k) * WN, m1 - m < WN ? m1 - m : WN, out + (k0 + k) * p->M + m);
        return;
    }
    for (int64_t m = m0; m < m1; m += VL) {
        const int64_t n = m1 - m < VL ? m1 - m : VL;
        const T *sums = acc + (m - m0) / WN * depth * WN + (m - m0) % WN;
        int64_t k = 0;
        for (; k + VL <= depth; k += VL)
            FN(transpose)(sums + k * WN, WN, VL, n, out + m * p->depth + k0 + k, p->depth);
        for (; k < depth; k++)
            for (int64_t i = 0; i < n; i++) out[(m + i) * p->depth + k0 + k] = sums[k * WN + i];
    }
}

static void FN(conv_weight_sum)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv_weight *w = problem;
    (void)scratch;
    const int64_t depth = w->conv.depth, size = w->conv.groups * w->conv.M * depth;
    T *to = (T *)w->grad + task * depth;
    const T *from = (const T *)w->partial + task * depth;
    int64_t k = 0;
    for (; k + VL <= depth; k += VL) {
        V sum = *(const VU *)(from + k);
        for (int64_t s = 1; s < w->pieces; s++) sum += *(const VU *)(from + s * size + k);
        *(VU *)(to + k) = sum;
    }
    for (; k < depth; k++) {
        T sum = from[k];
        for (int64_t s = 1; s < w->pieces; s++) sum += from[s * size + k];
        to[k] = sum;
    }
}
