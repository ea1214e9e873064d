/* Convolution as an implicit matrix product, forward and input gradient: patches are packed a panel at a
 * time, never stored whole.
 *
 * For each block of KC of the depth and each panel of NR pixels, the
 * patches are packed (KC*NR floats: they stay in the first-level cache) and meet every panel of weights
 * (which stream from the second level). A tile of pixels may run over the end of a row or
 * of an image: then it goes through a small buffer. So 7x7 images fill the tiles too.
 */

/* A dense 1x1 convolution sees each plane as one long row: no row ends inside a tile. */
static void FN(flatten)(cnnx_conv *p)
{
    if (p->taps != 1 || p->dh[0] != 0 || p->dw[0] != 0 || p->sh != 1 || p->sw != 1) return;
    if (p->H != p->rows || p->W != p->cols || p->YH != p->H || p->YW != p->W) return;
    p->W = p->cols = p->YW = p->H * p->W;
    p->H = p->rows = p->YH = 1;
}

static void FN(conv_plan)(cnnx_conv *p, int threads)
{
    FN(flatten)(p);
    p->pixels = p->N * p->rows * p->cols;
    p->depth = p->C * p->taps;
    p->panels = (p->M + MR - 1) / MR;
    p->packed_size = p->groups * p->panels * p->depth * MR;
    /* 240 pixels keep one block of the output (M*240 floats) near the core between blocks of the
     * depth; fewer where that would leave threads without work. */
    const int64_t wanted = 4 * threads;
    int64_t block = (240 + NR - 1) / NR * NR;
    while (block > 2 * NR && p->groups * ((p->pixels + block - 1) / block) < wanted) block -= NR;
    p->block = block;
    p->blocks = (p->pixels + block - 1) / block;
    /* Splitting output channels packs the same patches again: only when pixels do not suffice. */
    int64_t split = 1;
    if (threads > 1 && p->groups * p->blocks < threads)
        split = (wanted + p->groups * p->blocks - 1) / (p->groups * p->blocks);
    if (split > p->panels) split = p->panels;
    p->m_block = (p->panels + split - 1) / split;
    p->m_blocks = (p->panels + p->m_block - 1) / p->m_block;
    p->tasks = p->groups * p->blocks * p->m_blocks;
    p->scratch = ((size_t)KC * NR + (size_t)MR * NR) * sizeof(T);
}

/* Places a finished tile buffer (MR, NR) at pixels q0 .. q1-1 of channels m .. m+mr-1. */
static void FN(scatter_tile)(const cnnx_conv *p, int64_t g, int64_t m, int64_t mr, int64_t q0,
                             int64_t q1, const T *tile, int first, int last)
{
    const T *bias = p->bias ? (const T *)p->bias + g * p->M + m : NULL;
    const int64_t plane = p->YH * p->YW;
    for (int64_t q = q0; q < q1;) {
        const FN(run) r = FN(run_at)(p, q, q1);
        T *y = (T *)p->y + ((r.n * p->groups + g) * p->M + m) * plane + (p->oy + r.i * p->ty) * p->YW +
               p->ox + r.j * p->tx;
        for (int64_t i = 0; i < mr; i++, y += plane)
            for (int64_t j = 0; j < r.len; j++) {
                T v = tile[i * NR + (q - q0) + j];
                T *to = y + j * p->tx;
                if (!first) v += *to;
                else if (bias) v += bias[i];
                *to = last ? FN(activate)(v, p->activation) : v;
            }
        q += r.len;
    }
}

static void FN(conv)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv *p = problem;
    T *panel = scratch, *tile = panel + KC * NR;
    const int64_t mb = task % p->m_blocks, b = task / p->m_blocks % p->blocks,
                  g = task / p->m_blocks / p->blocks;
    const int64_t begin = b * p->block, plane = p->rows * p->cols;
    const int64_t end = begin + p->block < p->pixels ? begin + p->block : p->pixels;
    const int64_t first_panel = mb * p->m_block;
    const int64_t last_panel =
        first_panel + p->m_block < p->panels ? first_panel + p->m_block : p->panels;
    const int flat = p->ty == 1 && p->tx == 1 && p->YH == p->rows && p->YW == p->cols;
    const T *packed = (const T *)p->packed + g * p->panels * p->depth * MR;

    int64_t k0 = 0;
    do { /* once even when the depth is 0: a phase that no tap reaches is all bias */
        const int64_t kc = p->depth - k0 < KC ? p->depth - k0 : KC;
        const int first = k0 == 0, last = k0 + kc == p->depth;
        for (int64_t q0 = begin; q0 < end; q0 += NR) {
            const int64_t q1 = q0 + NR < end ? q0 + NR : end;
            const int64_t n = q0 / plane;
            /* All NR pixels of one image, and that image dense: the tile is stored directly. */
            const int whole = flat && q1 - q0 == NR && (q1 - 1) / plane == n;
            FN(pack_patches)(p, g, q0, q1, NR, k0, k0 + kc, panel, NR);
            for (int64_t s = first_panel; s < last_panel; s++) {
                const int64_t m = s * MR, mr = p->M - m < MR ? p->M - m : MR;
                const T *a = packed + (s * p->depth + k0) * MR;
                if (whole && mr == MR) {
                    T *y = (T *)p->y + ((n * p->groups + g) * p->M + m) * plane + q0 % plane;
                    const T *bias = p->bias ? (const T *)p->bias + g * p->M + m : NULL;
                    FN(gemm_full)(kc, a, panel, y, plane, bias, first, last, p->activation);
                } else {
                    FN(gemm_edge)(kc, a, panel, tile);
                    FN(scatter_tile)(p, g, m, mr, q0, q1, tile, first, last);
                }
            }
        }
        k0 += kc;
    } while (k0 < p->depth);
}
