/* Weight gradient as a sum of outer products, one for each pixel.
 *
 * The output's gradient is transposed into panels (pixel, WN output channels), whose vectors meet one number
 * of the input after the other: tap t of channel c at that pixel. These numbers need no packing, for a
 * scalar can be read from anywhere: a zero-padded copy of the chunk's part of the image serves all taps.
 * So each number is moved once or twice and then used C*taps or M times, and the sums stay in registers
 * for a whole chunk of KC pixels.
 *
 * Only where stride or dilation make that copy much larger than the pixels that are used, patches are
 * packed instead, a row for each (c, t).
 */
#define WN (WV * VL) /* output channels in a panel */
enum { FN(WINDOW) = 128 * 1024 / sizeof(T) }; /* of the copy; with a panel it stays in the second level */

/* Chunks are part of a row, or some rows, or some images: consecutive pixels in each case. */
/* Chunks are part of a row, or some rows, or some images: consecutive pixels in each case. */
static void FN(conv_weight_plan)(cnnx_conv_weight *w)
{
    cnnx_conv *p = &w->conv;
    int64_t bottom, right;
    FN(flatten)(p);
    FN(reach)(p, &bottom, &right);
    p->pixels = p->N * p->rows * p->cols;
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
    /* A flattened 1x1 convolution has no border and needs no copy. */
    w->source = p->taps == 1 && p->W == p->cols && p->H == p->rows && p->top == 0 && p->left == 0 ? CNNX_PLANES
                : w->window_rows > FN(WINDOW) / w->window_cols / w->chunk_images               ? CNNX_PATCHES
                                                                                               : CNNX_WINDOWS;
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
    w->m_block = FN(share)((p->M + WN - 1) / WN, 128 / WN) * WN;
    w->m_blocks = (p->M + w->m_block - 1) / w->m_block;
    w->k_blocks = (p->depth + w->k_block - 1) / w->k_block;
    /* Enough pieces that 32 tasks can be had, as long as they are worth adding up and the partial sums stay
     * below 4 Mi elements. */
    const int64_t outputs = p->groups * w->m_blocks * w->k_blocks;
    const int64_t size = p->groups * p->M * p->depth;
    int64_t pieces = (32 + outputs - 1) / outputs;
    if (pieces > w->chunks / 4) pieces = w->chunks / 4;
    if (pieces > (4 << 20) / size) pieces = (4 << 20) / size;
    w->piece = FN(share)(w->chunks, pieces > 1 ? (w->chunks + pieces - 1) / pieces : w->chunks);
    w->pieces = (w->chunks + w->piece - 1) / w->piece;
    w->tasks = w->pieces * outputs;
    w->x_size = (w->x_size + 15) / 16 * 16;
    w->scratch = (size_t)(w->m_block * (KC + w->k_block) + w->x_size) * sizeof(T) +
                 (size_t)(w->k_block + KC) * sizeof(int64_t);
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

/* The output's gradient in panels: out[(panel*KC + q)*WN + i] for channels m0 .. m0 + m_block-1. */
static void FN(transpose_grad)(const cnnx_conv_weight *w, const FN(chunk) *c, int64_t g, int64_t m0, T *out)
{
    const cnnx_conv *p = &w->conv;
    const int64_t plane = p->rows * p->cols;
    for (int64_t m = 0; m < w->m_block; m += VL) {
        T *to = out + m / WN * KC * WN + m % WN;
        const int64_t mr = p->M - m0 - m < VL ? p->M - m0 - m : VL;
        for (int64_t q = c->q0; q < c->q0 + c->pixels;) {
            const int64_t rest = c->q0 + c->pixels - q, here = plane - q % plane;
            const int64_t n = rest < here ? rest : here;
            const T *from = (const T *)p->y + (q / plane * p->groups * p->M + g * p->M + m0 + m) * plane +
                            q % plane;
            FN(transpose)(from, plane, mr > 0 ? mr : 0, n, to, WN);
            to += n * WN;
            q += n;
        }
    }
}

/* The chunk's part of the image with its border of zeros, channels c0 .. c1-1 one after the other. */
static void FN(copy_window)(const cnnx_conv_weight *w, const FN(chunk) *c, int64_t g, int64_t c0,
                            int64_t c1, T *restrict out)
{
    const cnnx_conv *p = &w->conv;
    const int64_t first = c->j0 * p->sw + p->left; /* column of the image that the copy begins with */
    /* One copy of consecutive columns, or, where the stride is larger than what the taps see, one for each
     * of their columns with a step. */
    const int64_t step = w->step_w < p->sw ? p->sw : 1, copies = w->step_w < p->sw ? w->extent_w : 1;
    for (int64_t channel = c0; channel < c1; channel++)
        for (int64_t n = c->n0; n < c->n0 + w->chunk_images; n++)
            for (int64_t r = 0; r < w->window_rows; r++, out += w->window_cols) {
                const int64_t i = w->step_h < p->sh ? r / w->extent_h : 0;
                const int64_t h = (c->i0 + i) * p->sh + p->top + r - i * w->extent_h;
                const int inside = n < c->n1 && h >= 0 && h < p->H;
                const T *x = (const T *)p->x + ((n * p->groups + g) * p->C + channel) * p->H * p->W + h * p->W;
                for (int64_t b = 0; b < copies; b++) {
                    const int64_t from = first + b, count = w->window_cols / copies;
                    int64_t lo = from < 0 ? (-from + step - 1) / step : 0;
                    int64_t hi = from < p->W ? (p->W - from + step - 1) / step : 0;
                    if (hi > count) hi = count;
                    if (hi < lo || !inside) lo = hi = 0;
                    T *to = out + b;
                    for (int64_t j = 0; j < lo; j++) to[j * copies] = 0;
                    if (copies == 1)
                        FN(copy_every)(x + from + lo * step, step, hi - lo, to + lo);
                    else
                        for (int64_t j = lo; j < hi; j++) to[j * copies] = x[from + j * step];
                    for (int64_t j = hi; j < count; j++) to[j * copies] = 0;
                }
            }
}

/* acc[k][i] += sum over runs r and j < len of x[offset[k] + run[r] + j*step] * grad[(r*len + j)*WN + i], for
 * m numbers k and n vectors of output channels i. */
static ALWAYS_INLINE void
FN(outer)(const int m, const int n, const T *x, const int64_t *offset, const int64_t *run, int64_t runs,
          int64_t len, int64_t step, const T *restrict grad, T *restrict acc)
{
    V c[WM][WV];
    const T *from[WM];
    UNROLL for (int k = 0; k < m; k++) from[k] = x + offset[k];
    UNROLL for (int k = 0; k < m; k++)
        UNROLL for (int v = 0; v < n; v++) c[k][v] = (V){0};
    for (int64_t r = 0; r < runs; r++) {
        int64_t at = run[r];
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

typedef void (*FN(outer_tile))(const T *, const int64_t *, const int64_t *, int64_t, int64_t, int64_t,
                               const T *, T *);

#define OUTER(m, n)                                                                                   \
    static NOINLINE void FN(outer_##m##_##n)(const T *x, const int64_t *offset, const int64_t *run,    \
                                             int64_t runs, int64_t len, int64_t step, const T *grad,   \
                                             T *acc)                                                   \
    {                                                                                                  \
        FN(outer)(m, n, x, offset, run, runs, len, step, grad, acc);                                   \
    }
OUTER(1, 1) OUTER(2, 1) OUTER(3, 1) OUTER(4, 1) OUTER(5, 1) OUTER(6, 1)
OUTER(1, 2) OUTER(2, 2) OUTER(3, 2) OUTER(4, 2) OUTER(5, 2) OUTER(6, 2)
#if WM == 8
OUTER(7, 1) OUTER(8, 1) OUTER(7, 2) OUTER(8, 2)
#endif
#undef OUTER

/* By the number of vectors and the numbers of the input: every remainder has a tile of its own. */
static const FN(outer_tile) FN(outer_tiles)[WV][WM] = {
#define ROW(n)                                                                                        \
    FN(outer_1_##n), FN(outer_2_##n), FN(outer_3_##n), FN(outer_4_##n), FN(outer_5_##n), FN(outer_6_##n)
#if WM == 8
    {ROW(1), FN(outer_7_1), FN(outer_8_1)}, {ROW(2), FN(outer_7_2), FN(outer_8_2)},
#else
    {ROW(1)}, {ROW(2)},
#endif
#undef ROW
};

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
    const int64_t panels = (m1 - m0 + WN - 1) / WN, depth = k1 - k0, tile = FN(share)(depth, WM);
    T *grad = scratch, *acc = grad + w->m_block * KC, *x = acc + w->m_block * w->k_block;
    int64_t *offset = (int64_t *)(x + w->x_size), *run = offset + w->k_block;

    const int64_t window = w->window_rows * w->window_cols, plane = p->H * p->W;
    for (int64_t k = 0; k < depth; k++) {
        const int64_t t = k % p->taps; /* windows: k0 begins a channel */
        offset[k] = w->source == CNNX_PATCHES  ? k * KC
                    : w->source == CNNX_PLANES ? k * plane
                                               : k / p->taps * w->chunk_images * window +
                                                     (p->dh[t] - p->top) * w->window_cols + p->dw[t] - p->left;
    }
    for (int64_t i = 0; i < panels * depth * WN; i++) acc[i] = 0;

    const int64_t end = (piece + 1) * w->piece < w->chunks ? (piece + 1) * w->piece : w->chunks;
    for (int64_t number = piece * w->piece; number < end; number++) {
        const FN(chunk) c = FN(chunk_at)(w, number);
        const T *from = x;
        int64_t runs = 0, len = c.j1 - c.j0, step = 1;
        FN(transpose_grad)(w, &c, g, m0, grad);
        if (w->source == CNNX_PATCHES) {
            FN(pack_patches)(p, g, c.q0, c.q0 + c.pixels, c.pixels, k0, k1, x, KC);
            len = c.pixels;
            run[runs++] = 0;
        } else if (w->source == CNNX_PLANES) {
            from = (const T *)p->x + ((c.n0 * p->groups + g) * p->C + k0) * plane + c.i0 * p->W + c.j0;
            for (int64_t n = 0; n < c.n1 - c.n0; n++)
                for (int64_t i = 0; i < c.i1 - c.i0; i++) run[runs++] = n * p->groups * p->C * plane + i * p->W;
        } else {
            FN(copy_window)(w, &c, g, k0 / p->taps, k1 / p->taps, x);
            step = w->step_w;
            for (int64_t n = 0; n < c.n1 - c.n0; n++)
                for (int64_t i = 0; i < c.i1 - c.i0; i++)
                    run[runs++] = n * window + i * w->step_h * w->window_cols;
        }
        for (int64_t s = 0; s < panels; s++) {
            const int vectors = m1 - m0 - s * WN > VL ? WV : 1;
            for (int64_t k = 0; k < depth; k += tile) {
                const int64_t n = depth - k < tile ? depth - k : tile;
                FN(outer_tiles)[vectors - 1][n - 1](from, offset + k, run, runs, len, step, grad + s * KC * WN,
                                                    acc + (s * depth + k) * WN);
            }
        }
    }
    T *out = w->pieces > 1 ? (T *)w->partial + piece * p->groups * p->M * p->depth : (T *)w->grad;
    out += (g * p->M + m0) * p->depth + k0;
    for (int64_t m = 0; m < m1 - m0; m += VL) {
        const int64_t n = m1 - m0 - m < VL ? m1 - m0 - m : VL;
        const T *sums = acc + m / WN * depth * WN + m % WN;
        int64_t k = 0;
        for (; k + VL <= depth; k += VL)
            FN(transpose)(sums + k * WN, WN, VL, n, out + m * p->depth + k, p->depth);
        for (; k < depth; k++)
            for (int64_t i = 0; i < n; i++) out[(m + i) * p->depth + k] = sums[k * WN + i];
    }
}

static void FN(conv_weight_sum)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv_weight *w = problem;
    (void)scratch;
    const int64_t depth = w->conv.depth, size = w->conv.groups * w->conv.M * depth;
    T *to = (T *)w->grad + task * depth;
    const T *from = (const T *)w->partial + task * depth;
    for (int64_t k = 0; k < depth; k++) {
        T sum = from[k];
        for (int64_t s = 1; s < w->pieces; s++) sum += from[s * size + k];
        to[k] = sum;
    }
}
