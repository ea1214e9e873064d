/* Weight gradient by Winograd's algorithm, F(3x3, 4x4), with the roles of tile and kernel exchanged:
 *
 *   dW = A' [ sum over tiles of (G y G') . (B' d B) ] A     with y the 4x4 tile of the output's gradient
 *
 * Each of the 36 positions is a matrix product over the tiles, for each part of the kernel that has it:
 *
 *   sums[pos] (M x C) = grad[pos]' (M x tiles) * data[pos] (tiles x C)
 *
 * A task takes m_block output channels, k_block input channels and a piece of the tiles, and goes through it
 * in blocks whose planes stay in the nearer caches. It needs no other task's transforms. Some are made by
 * several tasks; but a transform is about a fifteenth of its products with 128 channels, and no thread waits.
 *
 * Planes: grad[pos*grad_plane + tile*grad_tile + m],
 * data[pos*data_plane + (part*k_block + panel*WN)*block + tile*WN + c],
 * sums[((panel*parts + part)*points + pos)*sum_plane + m*WN + c], the panels being those of input channels.
 */
static int64_t FN(grad_tile)(const cnnx_conv_weight *w) { return FN(odd_lines)(w->m_block + ROWS); }

static int FN(winograd_weight_plan)(cnnx_conv_weight *w, int forced)
{
    cnnx_conv *p = &w->conv;
    if (!FN(winograd_tiles)(p, forced)) return 0;
    p->depth = p->C * p->taps;
    FN(cut_tiles)(p, 128);
    w->k_block = FN(share)((p->C + WN - 1) / WN, 128 / WN) * WN;
    w->k_blocks = (p->C + w->k_block - 1) / w->k_block;
    /* Pieces of at least 192 tiles, and about 16 tasks. A lone task is cut along the output channels. */
    int64_t pieces = p->N * p->axis[0].tiles * p->axis[1].tiles / 192, outputs;
    for (int64_t most = 128;; most /= 2) {
        w->m_block = FN(share)((p->M + VL - 1) / VL, most / VL) * VL;
        w->m_blocks = (p->M + w->m_block - 1) / w->m_block;
        outputs = p->groups * w->m_blocks * w->k_blocks;
        if (outputs > 1 || pieces > 1 || most <= 32) break;
    }
    w->sum_plane = FN(odd_lines)((w->m_block + ROWS) * WN);
    const int64_t panel = p->parts * p->points * w->sum_plane, sums = w->k_block / WN * panel;
    const int64_t room = CNNX_SCRATCH / (outputs * sums * (int64_t)sizeof(T)); /* for the sums of all tasks */
    if (pieces > 16 / outputs) pieces = 16 / outputs;
    if (pieces > room) pieces = room;
    if (pieces < 1) pieces = 1;
    w->piece = (p->blocks + pieces - 1) / pieces;
    w->pieces = (p->blocks + w->piece - 1) / w->piece;
    w->tasks = w->pieces * outputs;
    w->data_plane = FN(odd_lines)(p->parts * p->block * w->k_block);
    w->grad_plane = FN(odd_lines)(p->block * FN(grad_tile)(w));
    /* Sums lie in `partial` where there are pieces; else one panel's are enough for a task of one block. */
    const int64_t own = w->pieces > 1 ? 0 : w->piece > 1 ? sums : panel;
    w->partial_size = (size_t)(w->tasks * sums) * sizeof(T);
    w->scratch = (size_t)(p->points * (w->data_plane + w->grad_plane) + own + p->image_size) * sizeof(T);
    return w->scratch <= 64 << 20;
}

/* The kernels from at most WN input channels c0 .. to output channel m: A' s A for each part, of n x n taps
 * or, where not `two`, n, s being the sum of `pieces` sums, `step` apart. */
static ALWAYS_INLINE void
FN(part_taps)(const int two, const int n, const int64_t taps, const int64_t parts, const cnnx_conv_weight *w,
              int64_t g, int64_t m, int64_t c0, const T *sums, int64_t pieces, int64_t step)
{
    const cnnx_conv *p = &w->conv;
    const int columns = two ? 6 : 1, across = two ? n : 1;
    const int64_t room = FN(kernel_room)(taps);
    T *out = (T *)w->grad + ((g * p->M + m) * p->C + c0) * taps;
    for (int64_t c = 0; c < WN && c0 + c < p->C; c += VL) {
        V added[36], half[4][6], in[6], y[4], tap[CNNX_TAPS + VL];
        T kernel[VL * (CNNX_TAPS + VL)];
        const unsigned char *place = p->place;
        const T *sum = sums + c;
        for (int64_t part = 0; part < parts; part++, place += n * n, sum += p->points * w->sum_plane) {
            const T *from = sum;
            int64_t plane = w->sum_plane;
            if (pieces > 1) {
                from = (T *)added;
                plane = VL;
                for (int pos = 0; pos < (two ? 36 : 6); pos++) {
                    added[pos] = *(const V *)(sum + pos * w->sum_plane);
                    for (int64_t s = 1; s < pieces; s++)
                        added[pos] += *(const V *)(sum + pos * w->sum_plane + s * step);
                }
            }
            UNROLL_COLUMNS for (int k = 0; k < columns; k++) {
                UNROLL for (int r = 0; r < 6; r++) in[r] = *(const V *)(from + (two ? r * 6 + k : r) * plane);
                FN(result_1d)(n, in, y);
                UNROLL for (int i = 0; i < n; i++) half[i][k] = y[i];
            }
            UNROLL for (int i = 0; i < n; i++) {
                if (two) FN(result_1d)(n, half[i], y);
                else y[0] = half[i][0];
                UNROLL_COLUMNS for (int j = 0; j < across; j++) tap[place[two ? i * n + j : i]] = y[j];
            }
        }
        for (int64_t part = 0; part < room; part += VL) {
            V a[VL];
            UNROLL for (int l = 0; l < VL; l++) a[l] = tap[part + l < taps ? part + l : 0];
            FN(turn)(a);
            UNROLL for (int l = 0; l < VL; l++) *(VU *)(kernel + l * room + part) = a[l];
        }
        for (int64_t l = 0; l < VL && c0 + c + l < p->C; l++)
            memcpy(out + (c + l) * taps, kernel + l * room, (size_t)taps * sizeof(T));
    }
}

#define TAPS(name, two, n, taps, parts)                                                                \
    static NOINLINE void FN(name)(const cnnx_conv_weight *w, int64_t g, int64_t m, int64_t c0,         \
                                  const T *sums, int64_t pieces, int64_t step)                         \
    {                                                                                                  \
        FN(part_taps)(two, n, taps, parts, w, g, m, c0, sums, pieces, step);                           \
    }
TAPS(taps_9, 1, 3, 9, 1)
TAPS(taps_33, 1, 3, w->conv.taps, w->conv.parts)
TAPS(taps_22, 1, 2, w->conv.taps, w->conv.parts)
TAPS(taps_3, 0, 3, w->conv.taps, w->conv.parts)
TAPS(taps_4, 0, 4, w->conv.taps, w->conv.parts)
#undef TAPS

static void FN(winograd_taps)(const cnnx_conv_weight *w, int64_t g, int64_t m, int64_t c0, const T *sums,
                              int64_t pieces, int64_t step)
{
    static void (*const forms[])(const cnnx_conv_weight *, int64_t, int64_t, int64_t, const T *, int64_t,
                                 int64_t) = {FN(taps_33), FN(taps_22), FN(taps_3), FN(taps_4)};
    const int plain = w->conv.taps == 9 && w->conv.parts == 1;
    (plain ? FN(taps_9) : forms[FN(form)(&w->conv)])(w, g, m, c0, sums, pieces, step);
}

static NOINLINE void
FN(wide_sums)(int64_t tiles, const T *grad, int64_t grad_tile, const T *data, T *sums, int first)
{
    FN(plane_tile)(WM, WV, tiles, grad, 1, grad_tile, data, sums, WN, first);
}

static NOINLINE void
FN(narrow_sums)(int64_t tiles, const T *grad, int64_t grad_tile, const T *data, T *sums, int first)
{
    FN(plane_tile)(ROWS, 1, tiles, grad, 1, grad_tile, data, sums, WN, first);
}

static void FN(winograd_weight)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv_weight *w = problem;
    const cnnx_conv *p = &w->conv;
    const int64_t k0 = task % w->k_blocks * w->k_block, m0 = task / w->k_blocks % w->m_blocks * w->m_block;
    const int64_t g = task / w->k_blocks / w->m_blocks % p->groups;
    const int64_t first = task / w->k_blocks / w->m_blocks / p->groups * w->piece;
    const int64_t last = first + w->piece < p->blocks ? first + w->piece : p->blocks;
    const FN(images) x = FN(inputs)(p, g, k0, p->C - k0 < w->k_block ? p->C - k0 : w->k_block);
    const FN(images) y = FN(gradients)(p, g, m0, p->M - m0 < w->m_block ? p->M - m0 : w->m_block);
    const int64_t grad_tile = FN(grad_tile)(w), panel = p->parts * p->points * w->sum_plane;
    T *strip = scratch, *data = strip + p->image_size, *grad = data + p->points * w->data_plane;
    T *own = grad + p->points * w->grad_plane;
    T *sums = w->pieces > 1 ? (T *)w->partial + task * (w->k_block / WN) * panel : own;
    const int form = FN(form)(p);
    const int64_t next = w->pieces > 1 || w->piece > 1 ? panel : 0;
    for (int64_t number = first; number < last; number++) {
        if (cnnx_stop()) return;
        const FN(tiles) b = FN(tiles_at)(p, number);
        const int64_t tiles = (b.r1 - b.r0) * (b.c1 - b.c0);
        for (int64_t c = 0; c < x.channels; c += VL)
            FN(transform_data)[form](&x, c, b, strip, data + c / WN * p->block * WN + c % WN, w->data_plane,
                                     WN, p->block * w->k_block);
        for (int64_t m = 0; m < y.channels; m += VL)
            FN(transform_grad)[form](&y, m, b, strip, grad + m, w->grad_plane, grad_tile, 0);
        for (int64_t c = 0; c < x.channels; c += WN) {
            T *sum = sums + c / WN * next;
            const int narrow = x.channels - c <= VL;
            for (int64_t part = 0; part < p->parts; part++)
                for (int64_t pos = 0; pos < p->points; pos++) {
                    if (!FN(meets)(p, part, pos)) continue;
                    const T *from = data + pos * w->data_plane + (part * w->k_block + c) * p->block;
                    for (int64_t m = 0; m < y.channels; m += narrow ? ROWS : WM)
                        (narrow ? FN(narrow_sums) : FN(wide_sums))(
                            tiles, grad + pos * w->grad_plane + m, grad_tile, from,
                            sum + (part * p->points + pos) * w->sum_plane + m * WN, number == first);
                }
            if (w->pieces == 1 && number + 1 == last)
                for (int64_t m = 0; m < y.channels; m++)
                    FN(winograd_taps)(w, g, m0 + m, k0 + c, sum + m * WN, 1, 0);
        }
    }
}

/* task < groups*M: the kernels to one output channel from the sums of all pieces. */
static void FN(winograd_weight_sum)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv_weight *w = problem;
    const cnnx_conv *p = &w->conv;
    (void)scratch;
    const int64_t g = task / p->M, m = task % p->M, panels = w->k_block / WN;
    const int64_t panel = p->parts * p->points * w->sum_plane;
    const int64_t first = (g * w->m_blocks + m / w->m_block) * w->k_blocks * panels; /* panels before m's */
    const int64_t step = w->tasks / w->pieces * panels * panel;
    const T *sums = (const T *)w->partial + first * panel + m % w->m_block * WN;
    for (int64_t c = 0; c < p->C; c += WN, sums += panel)
        FN(winograd_taps)(w, g, m, c, sums, w->pieces, step);
}
