/* Convolution as an implicit matrix product, forward and input gradient: patches are packed a panel at a
 * time, never stored whole.
 *
 * A task is a block of pixels, numbered over the whole batch, and some panels of weights. For each block of the
 * depth, the rows that the pixels read are copied with their zero border, the phases of a stride side by side
 * (copy_strip). From there a panel of NR pixels is gathered in whole vectors (pack_strip: KC*NR numbers, which stay
 * in the first level) and meets every panel of weights (which stream from the second level). Where few panels would
 * share that gathering, the tiles read the copied rows themselves. Sums wait in scratch between blocks of the depth:
 * the output is written once.
 */
enum {
    FN(BLOCK) = 256 / NR * NR, /* pixels a task, or up to LARGE times as many */
    FN(LARGE) = 4,
    FN(DEEP) = 4,              /* panels a group where they are deeper than KC */
    FN(AHEAD) = 16,            /* most parts of images that are asked for ahead */
    FN(CHANNELS) = 256,        /* output channels a task: BLOCK sums of each are a quarter of the second level */
    FN(STRIP_MOST) = 512 * 1024 / sizeof(T),
    FN(PHASES_MOST) = 32,      /* column phases of a strip; wider strides gather each patch */
};

/* A dense 1x1 convolution sees each plane as one long row: no row ends inside a tile. */
static void FN(flatten)(cnnx_conv *p)
{
    if (p->taps != 1 || p->dh[0] != 0 || p->dw[0] != 0 || p->sh != 1 || p->sw != 1) return;
    if (p->ty != 1 || p->tx != 1) return; /* a phase of an image one column wide has one column as well */
    if (p->H != p->rows || p->W != p->cols || p->YH != p->H || p->YW != p->W) return;
    p->W = p->cols = p->YW = p->H * p->W;
    p->H = p->rows = p->YH = 1;
}

/* Taps of a half of the problem: of the even and of the odd columns where the problem has both (`pairs`), else all. */
static int64_t FN(taps_of)(const cnnx_conv *p, int half)
{
    return !p->pairs ? p->taps : half ? p->taps - p->split : p->split;
}

/* A lone tap on the pixel itself: x is read where it lies. */
static int FN(in_place)(const cnnx_conv *p)
{
    return p->taps == 1 && p->sh == 1 && p->sw == 1 && p->W == p->cols && p->H == p->rows && !p->dh[0] && !p->dw[0];
}

/* Depth that is multiplied at a time: whole channels where they fit, that no copy be made twice. Nothing is copied
 * in place, and sums need not wait for up to twice KC: their panels come from the second level as fast. What waits
 * anyway takes panels that the first level holds. */
static int64_t FN(depth_block)(const cnnx_conv *p, int64_t taps)
{
    if (p->source == CNNX_PLANES) return p->C > 2 * KC ? FN(share)(p->C, KC) : p->C;
    return taps && taps <= KC ? FN(share)(p->C, KC / taps) * taps : KC;
}

/* Where patches come from, and the size of the copy they are gathered from. */
static void FN(conv_source)(cnnx_conv *p)
{
    int64_t bottom, right;
    p->image_size = 0;
    if (p->source == CNNX_PLANES) return;
    p->source = CNNX_PATCHES;
    if (p->taps == 0) return;
    FN(reach)(p, &bottom, &right);
    p->extent_h = (bottom - p->top) / p->sh;
    p->phases_h = p->sh < bottom - p->top + 1 ? p->sh : bottom - p->top + 1;
    p->phases_w = p->sw < right - p->left + 1 ? p->sw : right - p->left + 1;
    p->image_width = p->cols + (right - p->left) / p->sw;
    /* A block of pixels touches so many rows of so many images. */
    const int64_t rows = (p->block + p->line - 2) / p->line + 1, images = (rows + p->rows - 2) / p->rows + 1;
    int64_t channels = 1;
    for (int half = 0; half <= p->pairs; half++) {
        const int64_t taps = FN(taps_of)(p, half);
        const int64_t touched = taps ? (FN(depth_block)(p, taps) + taps - 2) / taps + 1 : 0;
        if (touched > channels) channels = touched;
    }
    const double size = (double)(rows + images * p->extent_h) * (double)p->image_width * (double)channels *
                        (double)p->phases_h * (double)p->phases_w;
    if (p->phases_w > FN(PHASES_MOST) || size > (double)FN(STRIP_MOST)) return;
    p->source = CNNX_WINDOWS;
    p->plane = (rows + images * p->extent_h) * p->image_width + VL; /* what the last row spoils */
    p->image_size = (channels * p->phases_h * p->phases_w * p->plane + p->image_width - p->cols + VL + 15) / 16 * 16;
}

/* Pixels and weights a task: the cut with the shortest longest thread. Packing a panel of pixels is taken as two
 * tiles, and is repeated for each range of output channels; what a task prepares and copies again of the one before
 * is taken as eight. Sums that wait bound both. */
static void FN(conv_cut)(cnnx_conv *p, int64_t large, int threads)
{
    const int64_t channels = p->waits ? FN(CHANNELS) : 4 * FN(CHANNELS);
    const int64_t most = (p->panels * MR + channels - 1) / channels;
    double best = 0;
    for (int64_t m_blocks = most; m_blocks <= p->panels && m_blocks <= most * threads; m_blocks *= 2) {
        const int64_t m_block = (p->panels + m_blocks - 1) / m_blocks;
        int64_t block = large * FN(BLOCK);
        while (p->waits && block > FN(BLOCK) && block * m_block * MR > FN(BLOCK) * FN(CHANNELS)) block -= NR;
        for (; block > 0; block -= NR) {
            const int64_t tasks = p->groups * ((p->pixels + block - 1) / block) * m_blocks;
            const double longest = (double)((tasks + threads - 1) / threads) * (double)(block * (m_block + 2) + 8 * NR);
            if (best > 0 && longest >= best) continue;
            best = longest;
            p->block = block;
            p->m_block = m_block;
        }
        if (threads == 1) break;
    }
    p->blocks = (p->pixels + p->block - 1) / p->block;
    p->m_blocks = (p->panels + p->m_block - 1) / p->m_block;
    p->tasks = p->groups * p->blocks * p->m_blocks;
}

/* Room for a group of panels. */
static int64_t FN(panel_size)(const cnnx_conv *p)
{
    return (p->source == CNNX_PLANES && p->C > KC ? 2 * FN(DEEP) : 1) * KC * NR;
}

/* Lines in which the tiles can read copied rows without packing: rows that run on into the next, or rows of whole
 * vectors, whichever counts fewer columns that do not exist; 0 where packing costs less, 3/5 of a tile a panel. */
static int64_t FN(straight_line)(const cnnx_conv *p)
{
    const int64_t whole = (p->cols + VL - 1) / VL * VL, line = p->image_width < whole ? p->image_width : whole;
    const int64_t area = (p->rows * line + VL - 1) / VL * VL, real = p->rows * p->cols;
    return 5 * (area - real) * p->panels < 3 * real ? line : 0;
}

/* Tasks and copies for lines of so many columns: blocks of more rows copy fewer rows twice, as long as the copy leaves
 * room in the second level. */
static void FN(conv_blocks)(cnnx_conv *p, int64_t line, int64_t area, int threads)
{
    p->line = line;
    p->area = area;
    p->pixels = p->N * area;
    for (int64_t large = FN(LARGE); large > 0; large /= 2) {
        FN(conv_cut)(p, large, threads);
        FN(conv_source)(p);
        if (p->source != CNNX_PATCHES && p->image_size <= FN(STRIP_MOST) / 2) break;
    }
}

static void FN(conv_plan)(cnnx_conv *p, int threads)
{
    FN(flatten)(p);
    p->depth = p->C * p->taps;
    p->panels = (p->M + MR - 1) / MR;
    p->packed_size = p->groups * p->panels * p->depth * MR;
    p->halves = p->pairs;
    p->source = FN(in_place)(p) ? CNNX_PLANES : CNNX_PATCHES;
    p->waits = p->pairs || p->depth > FN(depth_block)(p, p->taps);
    FN(conv_blocks)(p, p->cols, p->rows * p->cols, threads);
    if (p->source == CNNX_WINDOWS) {
        const int64_t line = FN(straight_line)(p);
        if (line) {
            FN(conv_blocks)(p, line, (p->rows * line + VL - 1) / VL * VL, threads);
            if (p->source == CNNX_WINDOWS)
                p->source = CNNX_STRAIGHT;
            else
                FN(conv_blocks)(p, p->cols, p->rows * p->cols, threads);
        }
    }
    const int64_t sums = p->waits ? (1 + p->pairs) * (p->block / NR) * p->m_block : 1;
    p->scratch = (size_t)(FN(panel_size)(p) + VL + sums * MR * NR + p->image_size) * sizeof(T) +
                 (size_t)(p->taps + 2 * KC) * sizeof(int64_t);
}

/* The images and rows of a task's pixels q0 .. q1-1. In the strip the rows of the first image come first, from
 * its row `first_row` on. */
typedef struct {
    int64_t first_image, first_row, last_image, last_row;
} FN(span);

static FN(span) FN(span_of)(const cnnx_conv *p, int64_t q0, int64_t q1)
{
    FN(span) s = {q0 / p->area, q0 % p->area / p->line, (q1 - 1) / p->area, (q1 - 1) % p->area / p->line};
    if (s.last_row >= p->rows) s.last_row = p->rows - 1;
    return s;
}

/* Where row i of image n begins in the strip. */
static inline int64_t FN(strip_row)(const cnnx_conv *p, const FN(span) *s, int64_t n, int64_t i)
{
    if (n == s->first_image) return i - s->first_row;
    return (n - s->first_image) * (p->rows + p->extent_h) - s->first_row + i;
}

/* Rows in whole vectors: up to VL-1 numbers past the end are spoilt (and, by copy_loose, read). */
static ALWAYS_INLINE void FN(copy_loose)(const T *restrict from, int64_t n, T *restrict to)
{
    for (int64_t j = 0; j < n; j += VL) {
        *(VU *)(to + j) = *(const VU *)(from + j);
        PREVENT_MEMCPY;
    }
}

static ALWAYS_INLINE void FN(fill_loose)(int64_t n, T *to)
{
    for (int64_t j = 0; j < n; j += VL) {
        *(VU *)(to + j) = (VU){0};
        PREVENT_MEMCPY;
    }
}

/* A row of stride P into its P phases, columns lo[b] .. hi[b]-1 of them inside the image, first .. last-1 in all of
 * them; `from` is column 0 of the first. log2(P) rounds of dealing even and odd numbers apart; nothing is read from
 * `end` on. */
static ALWAYS_INLINE void FN(deal_row)(const int P, const int phases, const T *from, const int64_t *lo,
                                       const int64_t *hi, int64_t first, int64_t last, const T *end, T *to,
                                       int64_t plane)
{
    int64_t j = first;
#if defined(SHUFFLE)
    for (; j < last && end - (from + P * j) >= P * VL; j += VL) {
        V a[4], d[4];
        UNROLL for (int b = 0; b < P; b++) a[b] = *(const VU *)(from + P * j + b * VL);
        UNROLL for (int round = 1; round < P; round *= 2) {
            UNROLL for (int b = 0; b < P / 2; b++) {
                d[b] = __builtin_shufflevector(a[2 * b], a[2 * b + 1], EVEN);
                d[b + P / 2] = __builtin_shufflevector(a[2 * b], a[2 * b + 1], ODD);
            }
            UNROLL for (int b = 0; b < P; b++) a[b] = d[b];
        }
        UNROLL for (int b = 0; b < phases; b++) *(VU *)(to + b * plane + j) = a[b];
    }
#endif
    UNROLL for (int b = 0; b < phases; b++) {
        for (int64_t i = lo[b]; i < first && i < hi[b]; i++) {
            to[b * plane + i] = from[P * i + b];
            PREVENT_MEMCPY;
        }
        for (int64_t i = j; i < hi[b]; i++) {
            to[b * plane + i] = from[P * i + b];
            PREVENT_MEMCPY;
        }
    }
}

/* Channels c0 .. c1-1 of the rows that the span reads: strip[c][row phase][column phase][row][column]. Each row
 * spoils VL numbers behind it, which the next one covers, or which are nobody's. */
static ALWAYS_INLINE void FN(copy_rows_of)(const int step, const int64_t phases, const cnnx_conv *p, int64_t g,
                                           const FN(span) *s, int64_t c0, int64_t c1, T *restrict strip)
{
    const int64_t width = p->image_width, plane = p->plane, H = p->H, W = p->W, sw = p->sw;
    const int64_t phases_h = p->phases_h, left = p->left;
    const T *end = (const T *)p->x + p->N * p->groups * p->C * H * W;
    int64_t lo[FN(PHASES_MOST)], hi[FN(PHASES_MOST)]; /* columns of a phase inside the image */
    int64_t first = 0, last = width;                  /* and of all phases */
    for (int64_t b = 0; b < phases; b++) {
        lo[b] = left + b < 0 ? (-left - b + sw - 1) / sw : 0;
        hi[b] = left + b < W ? (W - left - b + sw - 1) / sw : 0;
        if (hi[b] > width) hi[b] = width;
        if (lo[b] > hi[b]) lo[b] = hi[b];
        if (lo[b] > first) first = lo[b];
        if (hi[b] < last) last = hi[b];
    }
    for (int64_t c = c0; c < c1; c++)
        for (int64_t n = s->first_image; n <= s->last_image; n++) {
            const int64_t i0 = n == s->first_image ? s->first_row : 0;
            const int64_t i1 = (n == s->last_image ? s->last_row + 1 : p->rows) + p->extent_h;
            const T *image = (const T *)p->x + ((n * p->groups + g) * p->C + c) * H * W;
            T *to = strip + (c - c0) * phases_h * phases * plane + FN(strip_row)(p, s, n, i0) * width;
            for (int64_t i = i0; i < i1; i++, to += width)
                for (int64_t a = 0; a < phases_h; a++) {
                    const int64_t h = i * p->sh + a + p->top;
                    const T *x = image + h * W + left;
                    T *row = to + a * phases * plane;
                    const int inside = h >= 0 && h < H;
                    UNROLL for (int64_t b = 0; b < phases; b++)
                        FN(fill_loose)(inside ? lo[b] : width, row + b * plane);
                    if (!inside) continue;
                    /* The next channel's row: a plane away, where no prefetcher looks. */
                    for (int64_t j = 0; j < W; j += 64 / (int64_t)sizeof(T)) PREFETCH(x + H * W + j);
                    if (step > 1)
                        FN(deal_row)(step, (int)phases, x, lo, hi, first, last, end, row, plane);
                    else if (step == 1 && end - (x + hi[0]) >= VL)
                        FN(copy_loose)(x + lo[0], hi[0] - lo[0], row + lo[0]);
                    else
                        for (int64_t b = 0; b < phases; b++)
                            FN(copy_every)(x + b + lo[b] * sw, sw, hi[b] - lo[b], row + b * plane + lo[b]);
                    UNROLL for (int64_t b = 0; b < phases; b++)
                        FN(fill_loose)(width - hi[b], row + b * plane + hi[b]);
                }
        }
}

static NOINLINE void FN(copy_strip)(const cnnx_conv *p, int64_t g, const FN(span) *s, int64_t c0, int64_t c1, T *strip)
{
    if (p->sw == 1)
        FN(copy_rows_of)(1, 1, p, g, s, c0, c1, strip);
    else if (p->sw == 2 && p->phases_w == 1)
        FN(copy_rows_of)(2, 1, p, g, s, c0, c1, strip);
    else if (p->sw == 2)
        FN(copy_rows_of)(2, 2, p, g, s, c0, c1, strip);
    else if (p->sw == 4 && p->phases_w == 4)
        FN(copy_rows_of)(4, 4, p, g, s, c0, c1, strip);
    else
        FN(copy_rows_of)(0, p->phases_w, p, g, s, c0, c1, strip);
}

/* Copies of one vector each that bring the pixels of a panel together: from `at` in the strip or in x, to column
 * `to`. What a copy brings too much, the next one covers, or the next row of the panel. */
typedef struct {
    int64_t at, to;
} FN(move);

static int FN(find_moves)(const cnnx_conv *p, const FN(span) *s, int64_t q0, int64_t q1, FN(move) *moves)
{
    int count = 0;
    for (int64_t q = q0; q < q1;) {
        const FN(run) r = FN(run_at)(p, q, q1);
        const int64_t at = p->source == CNNX_PLANES ? (r.n * p->groups * p->C * p->H + r.i) * p->W + r.j
                                                    : FN(strip_row)(p, s, r.n, r.i) * p->image_width + r.j;
        for (int64_t j = 0; j < r.len; j += VL) {
            moves[count].at = at + j;
            moves[count++].to = q - q0 + j;
        }
        q += r.len;
    }
    return count;
}

/* A panel of patches: out[k*NR + j], pixels by the moves, k by its offset; VL numbers past the end are spoilt. */
static ALWAYS_INLINE void FN(gather)(const T *from, const int64_t *offset, int64_t kc, const FN(move) *moves,
                                     const int count, T *restrict out)
{
    for (int64_t k = 0; k < kc; k++, out += NR) {
        const T *row = from + offset[k];
        UNROLL for (int m = 0; m < count; m++) *(VU *)(out + moves[m].to) = *(const VU *)(row + moves[m].at);
    }
}

static NOINLINE void FN(pack_strip)(const T *from, const int64_t *offset, int64_t kc, const FN(move) *moves, int count,
                                    T *restrict out)
{
    FN(move) local[4];
    memcpy(local, moves, sizeof local);
    switch (count) {
    case 1: FN(gather)(from, offset, kc, local, 1, out); break;
    case 2: FN(gather)(from, offset, kc, local, 2, out); break;
    case 3: FN(gather)(from, offset, kc, local, 3, out); break;
    case 4: FN(gather)(from, offset, kc, local, 4, out); break;
    default: FN(gather)(from, offset, kc, moves, count, out);
    }
}

/* Places finished sums (MR, NR), which it spoils, at pixels q0 .. q1-1 of channels m .. m+mr-1. */
static NOINLINE void FN(place_tile)(const cnnx_conv *p, int64_t g, int64_t m, int64_t mr, int64_t q0, int64_t q1, T *tile)
{
    const T *bias = p->bias ? (const T *)p->bias + g * p->M + m : NULL;
    const int64_t plane = p->YH * p->YW;
    if (bias || p->activation)
        for (int64_t i = 0; i < mr; i++)
            for (int64_t j = 0; j < NR; j += VL) {
                V *v = (V *)(tile + i * NR + j);
                *v = FN(fused)(*v + (bias ? bias[i] : 0), p->activation);
            }
    for (int64_t q = q0; q < q1;) {
        const FN(run) r = FN(run_at)(p, q, q1);
        T *y = (T *)p->y + ((r.n * p->groups + g) * p->M + m) * plane + (p->oy + r.i * p->ty) * p->YW +
               p->ox + r.j * p->tx;
        const T *from = tile + (q - q0);
        for (int64_t i = 0; i < mr; i++, y += plane, from += NR) {
            if (p->tx == 1)
                FN(copy)(from, r.real, y);
            else
                for (int64_t j = 0; j < r.real; j++) y[j * p->tx] = from[j];
        }
        q += r.len;
    }
}

/* Panels of pixels that are packed before the weights go over them: what the first level holds, or, where it does
 * not hold one, so many that it is worth while to keep a panel of weights there instead. */
static int64_t FN(group_of)(int64_t kc)
{
    return kc > KC ? FN(DEEP) : kc * 2 > KC ? 1 : kc ? KC / kc : FN(BLOCK) / NR;
}

/* Both halves at once, even and odd columns interleaved. */
static NOINLINE void FN(place_pairs)(const cnnx_conv *p, int64_t g, int64_t m, int64_t mr, int64_t q0, int64_t q1,
                                     const T *even, const T *odd)
{
    const T *bias = p->bias ? (const T *)p->bias + g * p->M + m : NULL;
    const int64_t plane = p->YH * p->YW;
    for (int64_t q = q0; q < q1;) {
        const FN(run) r = FN(run_at)(p, q, q1);
        T *y = (T *)p->y + ((r.n * p->groups + g) * p->M + m) * plane + (p->oy + r.i * p->ty) * p->YW + 2 * r.j;
        const int64_t count = p->YW - 2 * r.j < 2 * r.real ? p->YW - 2 * r.j : 2 * r.real;
        for (int64_t i = 0; i < mr; i++, y += plane)
            for (int64_t j = 0; j < r.real; j += VL) {
                const int64_t at = i * NR + (q - q0) + j;
                const T b = bias ? bias[i] : 0;
                T row[2 * VL];
                const int whole = count - 2 * j >= 2 * VL;
                FN(interleave)(*(const VU *)(even + at) + b, *(const VU *)(odd + at) + b, whole ? y + 2 * j : row);
                if (!whole) FN(copy)(row, count - 2 * j, y + 2 * j);
            }
        q += r.len;
    }
}

/* Everything that the steps of a task share. */
typedef struct {
    const cnnx_conv *p;
    int64_t g, begin, end, first_panel, last_panel;
    FN(span) span;
    T *panel, *sums, *strip; /* sums wait here: (half, panel of pixels, panel of weights, MR, NR) */
    int64_t *tap, *offset;
} FN(job);

/* Patches of pixels q0 .. q1-1 at depth k0 .. k0+kc-1. */
static void FN(pack_pixels)(const FN(job) *o, const cnnx_conv *p, int64_t q0, int64_t q1, int64_t k0, int64_t kc, const T *source, T *to)
{
    FN(move) moves[NR + NV + 4]; /* pack_strip reads four at least */
    int count = 0;
    if (p->source != CNNX_PATCHES) {
        const T *end = (const T *)p->x + p->N * p->groups * p->C * p->H * p->W;
        count = FN(find_moves)(p, &o->span, q0, q1, moves);
        if (count && p->source == CNNX_PLANES && end - (source + o->offset[kc - 1] + moves[count - 1].at) < VL)
            count = 0; /* a vector would reach past the end of x */
    }
    if (count) {
        if (q1 - q0 < NR) memset(to, 0, (size_t)(kc * NR) * sizeof(T));
        FN(pack_strip)(source, o->offset, kc, moves, count, to);
    } else {
        FN(pack_patches)(p, o->g, q0, q1, NR, k0, k0 + kc, to, NR);
    }
}

/* A panel of pixels that its tiles read from the strip, and where in the output, from its channel 0, they may store
 * it: `whole` says that each vector is whole there. */
typedef struct {
    const T *from[NV];
    int64_t to[NV];
    int whole;
} FN(vectors);

static FN(vectors) FN(vectors_at)(const FN(job) *o, const cnnx_conv *p, int64_t q0, int64_t q1)
{
    FN(vectors) v;
    const int dense = p->line == p->YW && p->ty == 1 && p->tx == 1; /* each row follows the one before */
    v.whole = q1 - q0 == NR && p->tx == 1 && !p->waits;
    for (int j = 0; j < NV; j++) {
        const int64_t q = q0 + j * VL < q1 ? q0 + j * VL : q0;
        const FN(run) r = FN(run_at)(p, q, q + VL);
        v.from[j] = o->strip + FN(strip_row)(p, &o->span, r.n, r.i) * p->image_width + r.j;
        v.to[j] = ((r.n * p->groups + o->g) * p->M * p->YH + p->oy + r.i * p->ty) * p->YW + p->ox + r.j;
        v.whole &= r.real == VL || (dense && q % p->area + VL <= p->rows * p->cols);
    }
    return v;
}

/* The planes that pixels q0 .. q1-1 at depth k0 .. k0+kc-1 are packed from, to be asked for in so many stretches of
 * tiles. Lines that the panel before has touched are left out. */
static FN(ahead) FN(next_panels)(const FN(job) *o, const cnnx_conv *p, int64_t q0, int64_t q1, int64_t k0, int64_t kc,
                                 int64_t stretches, FN(block) *blocks)
{
    const int64_t plane = p->H * p->W, size = sizeof(T);
    FN(ahead) a = {blocks, blocks, 0, 0};
    for (int64_t q = q0; q < q1 && a.end < blocks + FN(AHEAD);) {
        const FN(run) r = FN(run_at)(p, q, q1);
        const T *x = (const T *)p->x + ((r.n * p->groups + o->g) * p->C + k0) * plane + r.i * p->W + r.j;
        *a.end++ = (FN(block)){(const char *)x + 64 - size, r.len * size, kc, plane * size};
        a.lines += (r.len * size + 63) / 64 * kc;
        q += r.len;
    }
    a.lines = (a.lines + stretches - 1) / stretches;
    return a;
}

/* The products of one half, into the output where nothing has to wait. */
static void FN(conv_half)(const FN(job) *o, int half)
{
    cnnx_conv q = *o->p; /* with the taps of this half */
    const cnnx_conv *p = &q;
    const int64_t first_tap = half ? q.split : 0, area = p->area, plane = p->H * p->W;
    q.taps = FN(taps_of)(o->p, half);
    q.dh += first_tap;
    q.dw += first_tap;
    const int64_t depth = p->C * p->taps, k_block = FN(depth_block)(p, p->taps), m_count = o->last_panel - o->first_panel;
    const int straight = p->source == CNNX_STRAIGHT;
    const int flat = !straight && p->ty == 1 && p->tx == 1 && p->YH == p->rows && p->YW == p->line;
    const int64_t panel_size = p->depth * MR; /* of weights, both halves */
    const T *packed = (const T *)p->packed + o->g * p->panels * panel_size + (half ? p->C * q.split * MR : 0);
    T *sums = o->sums + (half ? p->block / NR * p->m_block * MR * NR : 0);
    const int64_t stride = p->source == CNNX_PLANES ? plane : p->phases_h * p->phases_w * p->plane;

    int64_t k0 = 0;
    do { /* once even when the depth is 0: a phase that no tap reaches is all bias */
        if (k0 && cnnx_stop()) return;
        const int64_t kc = depth - k0 < k_block ? depth - k0 : k_block;
        const int first = k0 == 0, last = k0 + kc == depth;
        const T *source = o->strip;
        if (p->source != CNNX_PATCHES && kc) {
            int64_t c = k0 / p->taps, t = k0 % p->taps, c0 = c;
            for (int64_t k = 0; k < kc; k++) {
                o->offset[k] = (c - c0) * stride + o->tap[first_tap + t];
                if (++t == p->taps) t = 0, c++;
            }
            if (p->source == CNNX_PLANES)
                source = (const T *)p->x + (o->g * p->C + c0) * plane;
            else
                FN(copy_strip)(p, o->g, &o->span, c0, t ? c + 1 : c, o->strip);
        }
        /* As many panels as the first level holds: a short depth then writes long rows of the output. */
        const int64_t group = straight ? NR : FN(group_of)(kc) * NR;
        for (int64_t q0 = o->begin; q0 < o->end; q0 += group) {
            const int64_t q1 = q0 + group < o->end ? q0 + group : o->end;
            FN(vectors) v;
            if (straight) v = FN(vectors_at)(o, p, q0, q1);
            for (int64_t at = q0; at < q1 && kc && !straight; at += NR)
                FN(pack_pixels)(o, p, at, at + NR < q1 ? at + NR : q1, k0, kc, source, o->panel + (at - q0) * kc);
            FN(block) blocks[FN(AHEAD)];
            FN(ahead) ahead = {0};
            const T *weights = packed + o->first_panel * panel_size + k0 * MR;
            if (q1 == o->end && q0 == o->begin) {
                /* Weights that meet few pixels come from memory, at 7.7 GB/s unasked for and at 18.5 asked: the
                 * next panel, and after the last one the first one deeper. */
                const int64_t tiles = (q1 - q0 + NR - 1) / NR, size = sizeof(T);
                blocks[0] = (FN(block)){(const char *)(weights + panel_size), kc * MR * size, m_count - 1,
                                        panel_size * size};
                blocks[1] = (FN(block)){(const char *)(weights + kc * MR), kc * MR * size, !last, 0};
                ahead = (FN(ahead)){m_count > 1 ? blocks : blocks + 1, blocks + 1 + !last, 0, 0};
                ahead.lines = (GEMM_STRETCH * MR * size / 64 + tiles - 1) / tiles;
            } else if (p->source == CNNX_PLANES && kc) {
                const int64_t stretches = (q1 - q0 + NR - 1) / NR * m_count * ((kc + GEMM_STRETCH - 1) / GEMM_STRETCH);
                const int more = q1 < o->end, deeper = !last && !more; /* the next panels, or the first ones deeper */
                const int64_t next = deeper ? o->begin : q1, k = deeper ? k0 + kc : more ? k0 : 0;
                const int64_t beyond = next + group < p->pixels ? next + group : p->pixels;
                ahead = FN(next_panels)(o, p, next, beyond, k, depth - k < kc ? depth - k : kc, stretches, blocks);
            }
            for (int64_t s = 0; s < m_count; s++) {
                const int64_t m = (o->first_panel + s) * MR, mr = p->M - m < MR ? p->M - m : MR;
                const T *a = weights + s * panel_size;
                const T *bias = p->bias ? (const T *)p->bias + o->g * p->M + m : NULL;
                int64_t n = q0 / area, pixel = q0 % area; /* of an image */
                for (int64_t at = q0; at < q1; at += NR, pixel += NR) {
                    while (pixel >= area) pixel -= area, n++;
                    const int64_t to = at + NR < q1 ? at + NR : q1;
                    const T *b = o->panel + (at - q0) * kc;
                    /* All NR pixels of one image, and that image dense: the tile is stored directly. */
                    if (!p->waits && flat && to - at == NR && pixel + NR <= area && mr == MR) {
                        T *y = (T *)p->y + ((n * p->groups + o->g) * p->M + m) * area + pixel;
                        FN(gemm_full)(kc, a, b, y, area, bias, 1, 1, p->activation, &ahead);
                        continue;
                    }
                    T *tile = sums;
                    if (p->waits) tile += ((at - o->begin) / NR * m_count + s) * MR * NR;
                    if (straight) {
                        const int out = v.whole && mr == MR;
                        T *to[NV];
                        const int64_t dense = p->YH * p->YW;
                        for (int j = 0; j < NV; j++) to[j] = out ? (T *)p->y + m * dense + v.to[j] : tile + j * VL;
                        FN(gemm_vectors)(kc, a, v.from, o->offset, to, out ? dense : NR, out ? bias : NULL,
                                         first, out, p->activation, &ahead);
                        if (out) continue;
                    } else if (to - at <= VL) {
                        FN(gemm_narrow)(kc, a, b, tile, first, &ahead);
                    } else {
                        FN(gemm_full)(kc, a, b, tile, NR, NULL, first, 0, CNNX_NONE, &ahead);
                    }
                    if (last && !p->pairs) FN(place_tile)(p, o->g, m, mr, at, to, tile);
                }
            }
        }
        k0 += kc;
    } while (k0 < depth);
}

static void FN(conv)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv *p = problem;
    const int64_t mb = task % p->m_blocks, b = task / p->m_blocks % p->blocks;
    const int64_t waiting = p->block / NR * p->m_block * MR * NR;
    FN(job) o = {.p = p, .g = task / p->m_blocks / p->blocks, .begin = b * p->block, .first_panel = mb * p->m_block};
    o.end = o.begin + p->block < p->pixels ? o.begin + p->block : p->pixels;
    o.last_panel = o.first_panel + p->m_block < p->panels ? o.first_panel + p->m_block : p->panels;
    o.span = FN(span_of)(p, o.begin, o.end);
    o.panel = scratch;
    o.sums = o.panel + FN(panel_size)(p) + VL;
    o.strip = o.sums + (p->waits ? (1 + p->pairs) * waiting : MR * NR);
    o.tap = (int64_t *)(o.strip + p->image_size);
    o.offset = o.tap + p->taps;
    for (int64_t t = 0; t < p->taps; t++) {
        const int64_t h = p->dh[t] - p->top, w = p->dw[t] - p->left;
        o.tap[t] = p->source == CNNX_PLANES || p->source == CNNX_PATCHES ? 0
                                             : (h % p->sh * p->phases_w + w % p->sw) * p->plane +
                                                   h / p->sh * p->image_width + w / p->sw;
    }
    FN(conv_half)(&o, 0);
    if (!p->pairs) return;
    FN(conv_half)(&o, 1);
    const T *even = o.sums;
    for (int64_t at = o.begin; at < o.end; at += NR)
        for (int64_t s = o.first_panel; s < o.last_panel; s++, even += MR * NR)
            FN(place_pairs)(p, o.g, s * MR, p->M - s * MR < MR ? p->M - s * MR : MR, at,
                            at + NR < o.end ? at + NR : o.end, even, even + waiting);
}
