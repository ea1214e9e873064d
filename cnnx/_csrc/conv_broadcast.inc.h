/* Strided convolution with output channels in the lanes: a number of x, broadcast, meets vectors of weights.
 *
 * Nothing of x is packed, and a stride costs nothing, where the implicit matrix product must take apart the phases of
 * each row. (Without a stride the product is faster.) Sums lie pixel by pixel, so they wait in scratch until the depth is done, and are transposed into the
 * output. A task is some rows of one image, or all of them for some channels.
 */
enum {
    FN(WIDE) = 2 * VL,                       /* channels of a panel of weights */
    FN(PIXELS) = 14,                         /* of the widest tile: 28 of 32 registers are sums, and 2 weights */
    FN(SUMS_MOST) = 256 * 1024 / sizeof(T),  /* waiting sums, weights at a time: each a quarter of the second level */
    FN(CLOSE) = 2 * FN(SUMS_MOST),           /* weights that stay there */
};

/* acc[i][channel] = sum over k of x[offset[k] + i*step] * w[k][channel], onto what is in `sums` or, at first, the bias. */
static ALWAYS_INLINE void
FN(broadcast_tile)(const int n, const int step, int64_t kc, const T *restrict w, const T *restrict x,
                   const int64_t *restrict offset, const T *bias, T *restrict sums)
{
    V acc[FN(PIXELS)][2];
    UNROLL for (int i = 0; i < n; i++)
        UNROLL for (int j = 0; j < 2; j++)
            acc[i][j] = bias ? *(const VU *)(bias + j * VL) : *(const VU *)(sums + (i * 2 + j) * VL);
    for (int64_t k = 0; k < kc; k++, w += FN(WIDE)) {
        const T *at = x + offset[k];
        const V w0 = *(const VU *)w, w1 = *(const VU *)(w + VL);
        UNROLL for (int i = 0; i < n; i++) {
            acc[i][0] += at[i * step] * w0;
            acc[i][1] += at[i * step] * w1;
        }
    }
    UNROLL for (int i = 0; i < n; i++)
        UNROLL for (int j = 0; j < 2; j++) *(VU *)(sums + (i * 2 + j) * VL) = acc[i][j];
}

typedef void (*FN(broadcast_task))(int64_t, const T *, const T *, const int64_t *, const T *, T *);

#define TILE(n, step)                                                                                          \
    static NOINLINE void FN(broadcast_##n##_##step)(int64_t kc, const T *w, const T *x, const int64_t *offset, \
                                                    const T *bias, T *sums)                                    \
    {                                                                                                          \
        FN(broadcast_tile)(n, step, kc, w, x, offset, bias, sums);                                             \
    }
TILE(8, 2) TILE(8, 4) TILE(11, 2) TILE(11, 4) TILE(14, 2) TILE(14, 4)
#undef TILE

static const int64_t FN(broadcast_sizes)[] = {8, 11, 14};
static const FN(broadcast_task) FN(broadcast_tiles)[][2] = {
#define ROW(n) {FN(broadcast_##n##_2), FN(broadcast_##n##_4)}
    ROW(8), ROW(11), ROW(14),
#undef ROW
};

/* The size of tile that computes the fewest pixels of a row: the last one runs on past its end. */
static int FN(broadcast_size)(int64_t cols)
{
    int best = 0;
    int64_t least = 0;
    for (int s = 2; s >= 0; s--) {
        const int64_t size = FN(broadcast_sizes)[s], count = (cols + size - 1) / size * size;
        if (least && count >= least) continue;
        least = count;
        best = s;
    }
    return best;
}

/* The problem whose copy, of stride 1, has every number that the pixels read. */
static cnnx_conv FN(undealt)(const cnnx_conv *p)
{
    cnnx_conv q = *p;
    q.rows = (p->rows - 1) * p->sh + 1;
    q.cols = (p->line - 1) * p->sw + 1;
    q.sh = q.sw = q.phases_h = q.phases_w = 1;
    return q;
}

/* Numbers that a call reads and writes exceed what a last cache usually holds. */
static int FN(streams)(int64_t numbers) { return numbers > (int64_t)(24 << 20) / (int64_t)sizeof(T); }

/* Panels a task that takes all rows of an image; 0 where blocks of rows with all panels read less. Such blocks read
 * the weights again, which costs where those leave the second level (1024 x 2048 over 7 rows: 2.1 ms, now 1.2), and
 * blocks of panels the image. */
static int64_t FN(broadcast_panels)(const cnnx_conv *p, int threads)
{
    const int64_t weights = p->panels * FN(WIDE) * p->depth, fit = FN(SUMS_MOST) / (p->rows * p->line * FN(WIDE));
    if (weights <= FN(CLOSE) || fit == 0) return 0;
    int64_t blocks = (p->panels + fit - 1) / fit;
    if (p->N * p->groups < threads) blocks = (blocks + threads - 1) / threads * threads;
    return 4 * blocks * p->C * p->H * p->W > p->rows * weights ? 0 : (p->panels + blocks - 1) / blocks;
}

static int FN(broadcast_plan)(cnnx_conv *p, int threads)
{
    if (p->taps == 0 || p->rows * p->cols == 0 || (p->sw != 2 && p->sw != 4)) return 0;
    if (p->ty != 1 || p->tx != 1 || p->w_in != p->taps) return 0;
    for (int64_t t = 0; t < p->taps; t++)
        if (p->w_tap[t] != t) return 0; /* a forward convolution */
    int64_t bottom, right;
    FN(reach)(p, &bottom, &right);
    const int64_t size = FN(broadcast_sizes)[FN(broadcast_size)(p->cols)];
    p->line = (p->cols + size - 1) / size * size;
    /* Without a border x is read as it lies, unless the last tile would run past its end. */
    const int in_place = p->taps == 1 && !p->dh[0] && !p->dw[0] && (p->cols - 1) * p->sw < p->W &&
                         (p->rows - 1) * p->sh * p->W + (p->line - 1) * p->sw < p->H * p->W;
    p->panels = (p->M + FN(WIDE) - 1) / FN(WIDE);
    p->depth = p->C * p->taps;
    p->packed_size = p->groups * p->panels * p->depth * FN(WIDE);
    p->source = in_place ? CNNX_PLANES : CNNX_WINDOWS;
    const int64_t some = FN(broadcast_panels)(p, threads);
    p->m_block = some ? some : p->panels;
    p->m_blocks = (p->panels + p->m_block - 1) / p->m_block;
    const int64_t channels = p->m_block * FN(WIDE);
    const int64_t most = (double)p->taps * (double)channels > FN(SUMS_MOST) ? 1 : FN(SUMS_MOST) / (p->taps * channels);
    p->c_step = FN(share)(p->C, most); /* input channels at a time */
    int64_t rows = FN(SUMS_MOST) / (p->line * channels);
    while (!some && rows > 1 && p->N * p->groups * ((p->rows + rows - 1) / rows) < 4 * threads) rows /= 2;
    p->extent_h = bottom - p->top;
    p->image_width = (p->line - 1) * p->sw + 1 + right - p->left;
    p->image_size = 0;
    for (;; rows /= 2) {
        p->block = rows > 1 ? FN(share)(p->rows, rows) : 1;
        p->tile_rows = (p->block - 1) * p->sh + 1 + p->extent_h;
        const double copy = (double)p->tile_rows * (double)p->image_width * (double)p->c_step;
        if (in_place || copy <= FN(STRIP_MOST)) break;
        if (p->block == 1) return 0;
    }
    if (!in_place) {
        p->plane = p->tile_rows * p->image_width + VL;
        p->image_size = (p->c_step * p->plane + VL + 15) / 16 * 16; /* behind it lie integers of 8 bytes */
    }
    p->stream = FN(streams)(p->N * p->groups * (p->C * p->H * p->W + p->M * p->rows * p->cols));
    p->blocks = (p->rows + p->block - 1) / p->block;
    p->tasks = p->N * p->groups * p->blocks * p->m_blocks;
    p->scratch = (size_t)(p->block * p->line * channels + VL * FN(WIDE) + channels + VL * VL + p->image_size) * sizeof(T) +
                 (size_t)(p->c_step * p->taps) * sizeof(int64_t);
    return p->scratch <= CNNX_SCRATCH;
}

/* Weights into panels: packed[g][panel][k][channel], zero for channels past M. */
static void FN(broadcast_weights)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv *p = problem;
    (void)scratch;
    const int64_t g = task / p->panels, m0 = task % p->panels * FN(WIDE);
    T *out = (T *)p->packed + task * p->depth * FN(WIDE);
    for (int64_t j = 0; j < FN(WIDE); j += VL) {
        const int64_t left = p->M - m0 - j, rows = left < 0 ? 0 : left < VL ? left : VL;
        const T *from = (const T *)p->weight + g * p->w_group + (rows ? m0 + j : 0) * p->w_out;
        FN(transpose)(from, p->w_out, rows, p->depth, out + j, FN(WIDE));
    }
}

/* The finished sums of n pixels and mr channels into a row of each channel's plane. */
static void FN(broadcast_store)(const cnnx_conv *p, const T *sums, int64_t pixels, int64_t mr, T *turned, T *y)
{
    const int64_t area = p->YH * p->YW;
    for (int64_t q = 0; q < pixels; q += VL, sums += VL * FN(WIDE))
        for (int64_t m = 0; m < mr; m += VL) {
            const int64_t n = pixels - q < VL ? pixels - q : VL, channels = mr - m < VL ? mr - m : VL;
            FN(transpose)(sums + m, FN(WIDE), n, VL, turned, VL);
            for (int64_t c = 0; c < channels; c++) {
                V v = *(const VU *)(turned + c * VL);
                if (p->activation) v = FN(fused)(v, p->activation);
                T *to = y + (m + c) * area + q;
                if (n < VL)
                    FN(copy)((const T *)&v, n, to);
                else if (p->stream && (uintptr_t)to % VECTOR_BYTES == 0)
                    STREAM((V *)to, v);
                else
                    *(VU *)to = v;
            }
        }
}

static void FN(broadcast)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv *p = problem;
    const cnnx_conv copied = FN(undealt)(p);
    const int64_t f0 = task % p->m_blocks * p->m_block, count = p->panels - f0 < p->m_block ? p->panels - f0 : p->m_block;
    const int64_t cut = task / p->m_blocks, image = cut / p->blocks, n = image / p->groups, g = image % p->groups;
    const int64_t i0 = cut % p->blocks * p->block, rows = p->rows - i0 < p->block ? p->rows - i0 : p->block;
    const int64_t channels = count * FN(WIDE), plane = p->H * p->W;
    const int s = FN(broadcast_size)(p->cols), in_place = p->source == CNNX_PLANES;
    const int64_t size = FN(broadcast_sizes)[s], panel = p->block * p->line * FN(WIDE); /* of sums */
    const FN(broadcast_task) tile = FN(broadcast_tiles)[s][p->sw == 4];
    T *sums = scratch, *bias = sums + count * panel + VL * FN(WIDE), *turned = bias + channels, *strip = turned + VL * VL;
    int64_t *offset = (int64_t *)(strip + p->image_size);
    for (int64_t m = 0; m < channels; m++) {
        const int64_t at = f0 * FN(WIDE) + m;
        bias[m] = p->bias && at < p->M ? ((const T *)p->bias)[g * p->M + at] : 0;
    }
    const int64_t c_plane = in_place ? plane : p->plane, ld = in_place ? p->W : p->image_width;
    for (int64_t c = 0, k = 0; c < p->c_step; c++)
        for (int64_t t = 0; t < p->taps; t++)
            offset[k++] = c * c_plane + (p->dh[t] - p->top) * ld + p->dw[t] - p->left;
    const int64_t passes = rows * (p->line / size);
    const int far = p->panels * p->depth * FN(WIDE) > FN(CLOSE);
    const FN(span) span = {n, i0 * p->sh, n, (i0 + rows - 1) * p->sh};
    for (int64_t c = 0; c < p->C; c += p->c_step) {
        if (c && cnnx_stop()) return;
        const int64_t end = c + p->c_step < p->C ? c + p->c_step : p->C, kc = (end - c) * p->taps;
        const T *source = strip, *after = strip; /* what comes after this block */
        if (in_place) {
            source = (const T *)p->x + (image * p->C + c) * plane + i0 * p->sh * p->W;
            if (end < p->C)
                after = source + (end - c) * plane;
            else if (cut + 1 < p->tasks / p->m_blocks)
                after = i0 + rows < p->rows ? source - c * plane + rows * p->sh * p->W
                                            : (const T *)p->x + (image + 1) * p->C * plane;
        } else {
            FN(copy_strip)(&copied, g, &span, c, end, strip);
        }
        const int64_t lines = far && end < p->C ? kc * FN(WIDE) * (int64_t)sizeof(T) / 64 : 0;
        for (int64_t i = 0, pass = 0; i < rows; i++)
            for (int64_t j = 0; j < p->line; j += size, pass++) {
                const T *x = source + i * p->sh * ld + j * p->sw;
                const T *w = (const T *)p->packed + ((g * p->panels + f0) * p->depth + c * p->taps) * FN(WIDE);
                const T *next = j + size < p->line ? x + size * p->sw : i + 1 < rows ? x + p->sh * ld - j * p->sw : after;
                T *to = sums + (i * p->line + j) * FN(WIDE);
                for (int64_t f = 0; f < count; f++, w += p->depth * FN(WIDE), to += panel) {
                    /* The next channels' weights, a part in each pass over these. */
                    for (int64_t l = lines * pass / passes; l < lines * (pass + 1) / passes; l++)
                        PREFETCH_FAR((const char *)(w + kc * FN(WIDE)) + l * 64);
                    /* What the next tile reads: each channel's pixels lie a plane apart, where no prefetcher looks. */
                    for (int64_t k = kc * f / count; in_place && k < kc * (f + 1) / count; k++)
                        for (int64_t l = 0; l < size * p->sw; l += 64 / (int64_t)sizeof(T)) PREFETCH_FAR(next + offset[k] + l);
                    tile(kc, w, x, offset, c ? NULL : bias + f * FN(WIDE), to);
                }
            }
    }
    const int dense = p->line == p->cols; /* each row follows the one before */
    for (int64_t f = 0; f < count; f++) {
        const int64_t m = (f0 + f) * FN(WIDE), mr = p->M - m < FN(WIDE) ? p->M - m : FN(WIDE);
        T *y = (T *)p->y + (image * p->M + m) * p->YH * p->YW + i0 * p->cols;
        for (int64_t i = 0; i < (dense ? 1 : rows); i++)
            FN(broadcast_store)(p, sums + f * panel + i * p->line * FN(WIDE), dense ? rows * p->cols : p->cols, mr,
                                turned, y + i * p->cols);
    }
    if (p->stream) STREAMED;
}
