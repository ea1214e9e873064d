/* Weight gradient by Winograd's F(3x3, 4x4), with the roles of tile and kernel exchanged:
 *
 *   dW = A' [ sum over tiles of (G y G') . (B' d B) ] A     with y the 4x4 tile of the output's gradient
 *
 * Each of the 36 positions is a matrix product over the tiles:
 *
 *   sums[pos] (M x C) = grad[pos]' (M x tiles) * data[pos] (tiles x C)
 *
 * A task takes m_block output channels, k_block input channels and a piece of the tiles, and goes through it
 * in blocks whose planes stay in the nearer caches. It needs no other task's transforms. Some are made by
 * several tasks; but a transform is about a fifteenth of its products with 128 channels, and no thread waits.
 *
 * Planes: grad[pos*grad_plane + tile*grad_tile + m], data[pos*data_plane + (panel*block + tile)*WN + c],
 * sums[panel*36*sum_plane + pos*sum_plane + m*WN + c], the panels being those of input channels.
 */
static int64_t FN(grad_tile)(const cnnx_conv_weight *w) { return FN(odd_lines)(w->m_block + ROWS); }

static int FN(winograd_weight_plan)(cnnx_conv_weight *w)
{
    cnnx_conv *p = &w->conv;
    if (!FN(winograd_tiles)(p)) return 0;
    p->depth = p->C * 9;
    FN(cut_tiles)(p, 128);
    w->k_block = FN(share)((p->C + WN - 1) / WN, 128 / WN) * WN;
    w->k_blocks = (p->C + w->k_block - 1) / w->k_block;
    /* Pieces of at least 192 tiles, and about 16 tasks. A lone task is cut along the output channels. */
    int64_t pieces = p->N * p->tile_rows * p->tile_cols / 192, outputs;
    for (int64_t most = 128;; most /= 2) {
        w->m_block = FN(share)((p->M + VL - 1) / VL, most / VL) * VL;
        w->m_blocks = (p->M + w->m_block - 1) / w->m_block;
        outputs = p->groups * w->m_blocks * w->k_blocks;
        if (outputs > 1 || pieces > 1 || most <= 32) break;
    }
    if (pieces > 16 / outputs) pieces = 16 / outputs;
    if (pieces < 1) pieces = 1;
    w->piece = (p->blocks + pieces - 1) / pieces;
    w->pieces = (p->blocks + w->piece - 1) / w->piece;
    w->tasks = w->pieces * outputs;
    w->data_plane = FN(odd_lines)(p->block * w->k_block);
    w->grad_plane = FN(odd_lines)(p->block * FN(grad_tile)(w));
    w->sum_plane = FN(odd_lines)((w->m_block + ROWS) * WN);
    /* Sums lie in `partial` where there are pieces; else one panel's are enough for a task of one block. */
    const int64_t panel = 36 * w->sum_plane, sums = w->k_block / WN * panel;
    const int64_t own = w->pieces > 1 ? 0 : w->piece > 1 ? sums : panel;
    w->partial_size = (size_t)(w->tasks * sums) * sizeof(T);
    w->scratch = (size_t)(36 * (w->data_plane + w->grad_plane) + own + p->image_size) * sizeof(T);
    return w->scratch <= 64 << 20;
}

/* The 3x3 kernels from at most WN input channels c0 .. to output channel m: A' s A, s being the sum of
 * `pieces` sums, `step` apart. */
static void FN(winograd_taps)(const cnnx_conv_weight *w, int64_t g, int64_t m, int64_t c0, const T *sums,
                              int64_t pieces, int64_t step)
{
    const cnnx_conv *p = &w->conv;
    T *out = (T *)w->grad + ((g * p->M + m) * p->C + c0) * 9;
    for (int64_t c = 0; c < WN && c0 + c < p->C; c += VL) {
        V half[3][6], in[6], y[3], tap[KERNEL];
        T kernel[VL][KERNEL];
        UNROLL for (int k = 0; k < 6; k++) {
            UNROLL for (int r = 0; r < 6; r++) {
                const T *from = sums + (r * 6 + k) * w->sum_plane + c;
                in[r] = *(const V *)from;
                for (int64_t s = 1; s < pieces; s++) in[r] += *(const V *)(from + s * step);
            }
            FN(result_1d)(3, in, y);
            UNROLL for (int i = 0; i < 3; i++) half[i][k] = y[i];
        }
        UNROLL for (int i = 0; i < 3; i++) {
            FN(result_1d)(3, half[i], y);
            UNROLL for (int j = 0; j < 3; j++) tap[p->tap[i * 3 + j]] = y[j];
        }
        for (int t = 9; t < KERNEL; t++) tap[t] = (V){0};
        for (int part = 0; part < KERNEL; part += VL) {
            FN(turn)(tap + part);
            UNROLL for (int l = 0; l < VL; l++) *(VU *)(kernel[l] + part) = tap[part + l];
        }
        for (int64_t l = 0; l < VL && c0 + c + l < p->C; l++)
            memcpy(out + (c + l) * 9, kernel[l], 9 * sizeof(T));
    }
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
    const int64_t grad_tile = FN(grad_tile)(w), panel = 36 * w->sum_plane;
    T *strip = scratch, *data = strip + p->image_size, *grad = data + 36 * w->data_plane;
    T *sums = w->pieces > 1 ? (T *)w->partial + task * (w->k_block / WN) * panel : grad + 36 * w->grad_plane;
    const int64_t next = w->pieces > 1 || w->piece > 1 ? panel : 0;
    for (int64_t number = first; number < last; number++) {
        const FN(tiles) b = FN(tiles_at)(p, number);
        const int64_t tiles = (b.r1 - b.r0) * (b.c1 - b.c0);
        for (int64_t c = 0; c < x.channels; c += VL)
            FN(transform_data)(&x, c, b, strip, data + c / WN * p->block * WN + c % WN, w->data_plane, WN);
        for (int64_t m = 0; m < y.channels; m += VL)
            FN(transform_grad)(&y, m, b, strip, grad + m, w->grad_plane, grad_tile);
        for (int64_t c = 0; c < x.channels; c += WN) {
            T *sum = sums + c / WN * next;
            const int narrow = x.channels - c <= VL;
            for (int pos = 0; pos < 36; pos++)
                for (int64_t m = 0; m < y.channels; m += narrow ? ROWS : WM)
                    (narrow ? FN(narrow_sums) : FN(wide_sums))(
                        tiles, grad + pos * w->grad_plane + m, grad_tile,
                        data + pos * w->data_plane + c * p->block, sum + pos * w->sum_plane + m * WN,
                        number == first);
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
    const int64_t g = task / p->M, m = task % p->M, panel = 36 * w->sum_plane, panels = w->k_block / WN;
    const int64_t first = (g * w->m_blocks + m / w->m_block) * w->k_blocks * panels; /* panels before m's */
    const int64_t step = w->tasks / w->pieces * panels * panel;
    const T *sums = (const T *)w->partial + first * panel + m % w->m_block * WN;
    for (int64_t c = 0; c < p->C; c += WN, sums += panel)
        FN(winograd_taps)(w, g, m, c, sums, w->pieces, step);
}
