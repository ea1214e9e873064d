/* Convolution by Winograd's F(4x4, 3x3): 3x3 kernels of stride 1 with a quarter of the products.
 *
 * Each of the 36 positions is a matrix product:
 *
 *   products[pos] (tiles x M) = V[pos] (tiles x C) * U[pos] (C x M)
 *
 * A task takes a block of tiles and a range of output channels through all three steps, in memory that stays
 * in the second or third level.
 *
 * U is four times as large as the weights. Where it serves many blocks it is made once; where there are few,
 * each task makes a part of it, uses it up while it is in the second level, and makes the next (`fused`):
 * with the 38 MB of 512 x 512 channels written and read, one image of 7x7 took 2.4 ms instead of 0.94.
 */
enum { KERNEL = (9 + VL - 1) / VL * VL }; /* numbers in the vectors that a kernel's 9 lie in */

/* How V, U and the products lie: v[pos*v_plane + tile*v_tile + c], products[pos*p_plane + tile*p_tile + i],
 * u[pos*u_plane + (panel*channels + c)*WN + i]. */
typedef struct {
    int64_t v_tile, v_plane, u_plane, p_tile, p_plane;
} FN(layout);

static FN(layout) FN(layout_of)(const cnnx_conv *p)
{
    const int64_t tiles = (p->block + ROWS - 1) / ROWS * ROWS;
    FN(layout) l;
    l.v_tile = FN(odd_lines)(p->C);
    l.v_plane = FN(odd_lines)(tiles * l.v_tile);
    l.u_plane = FN(odd_lines)((p->fused ? p->m_step * p->c_step : p->panels * p->C) * WN);
    l.p_tile = FN(odd_lines)(p->m_step * WN);
    l.p_plane = FN(odd_lines)(tiles * l.p_tile);
    return l;
}

static int FN(winograd_plan)(cnnx_conv *p, int threads)
{
    if (!FN(winograd_tiles)(p)) return 0;
    p->panels = (p->M + WN - 1) / WN;
    /* At most 128 tiles, and 16 MiB for V: from 64 to 200 tiles the time hardly changes, unless
     * U is made once more. Of these the block with the shortest longest thread. */
    int64_t most = (4 << 20) / (36 * p->C), best = 0, chosen = 0;
    if (most > 128) most = 128;
    if (most < WM) most = WM;
    for (int64_t block = most / 2; block <= most; block++) {
        FN(cut_tiles)(p, block);
        const int64_t longest = (p->groups * p->blocks + threads - 1) / threads * ((p->block + WM - 1) / WM);
        if (best == 0 || longest <= best) {
            best = longest;
            chosen = block;
        }
    }
    FN(cut_tiles)(p, chosen);
    /* Few blocks: threads share the output channels, each transforming the same tiles. */
    const int64_t all = p->groups * p->blocks;
    int64_t split = all < threads ? (threads + all - 1) / all : all % threads && all <= 2 * threads ? 2 : 1;
    if (split > p->panels) split = p->panels;
    p->m_block = (p->panels + split - 1) / split;
    p->m_blocks = (p->panels + p->m_block - 1) / p->m_block;
    p->tasks = all * p->m_blocks;
    /* Parts of U of 32 output channels and 128 of the input, 576 KiB; else the products of 128 channels. */
    p->fused = p->blocks <= 3 || p->blocks <= threads;
    p->m_step = (p->fused ? 32 : 128) / WN;
    if (p->m_step > p->m_block) p->m_step = p->m_block;
    p->c_step = p->fused && p->C > 128 ? 128 : p->C;
    const FN(layout) l = FN(layout_of)(p);
    p->packed_size = p->fused ? 0 : p->groups * 36 * l.u_plane;
    const int64_t planes = l.v_plane + l.p_plane + (p->fused ? l.u_plane : 0);
    p->scratch = (size_t)(36 * planes + p->image_size) * sizeof(T);
    return p->scratch <= 64 << 20;
}

/* U = G g G' of one panel of output channels and channels c0 .. c1-1: u[pos*plane + (c - c0)*WN + i]. */
static void FN(transform_weights)(const cnnx_conv *p, int64_t g, int64_t panel, int64_t c0, int64_t c1, T *u,
                                  int64_t plane)
{
    const T *w = (const T *)p->weight + g * p->w_group;
    const T *last = w + (p->M - 1) * p->w_out + (p->C - 1) * p->w_in + 9 - KERNEL;
    for (int64_t i = 0; i < WN && panel * WN + i < p->M; i += VL) {
        const T *kernel[VL];
        for (int64_t l = 0, m = panel * WN + i; l < VL; l++, m++)
            kernel[l] = w + (m < p->M ? m : p->M - 1) * p->w_out;
        for (int64_t c = c0; c < c1; c++) {
            V tap[KERNEL], a[VL], in[3], out[6], half[6][3];
            for (int part = 0; part < KERNEL; part += VL) {
                UNROLL for (int l = 0; l < VL; l++) {
                    const T *from = kernel[l] + c * p->w_in;
                    T copy[KERNEL];
                    PREFETCH(from + 8 * p->w_in); /* halves the time: VL streams, too many for the hardware */
                    if (from > last) { /* never beyond the weights */
                        memcpy(copy, from, 9 * sizeof(T));
                        from = copy;
                    }
                    a[l] = *(const VU *)(from + part);
                }
                FN(turn)(a);
                UNROLL for (int l = 0; l < VL; l++) tap[part + l] = a[l];
            }
            UNROLL for (int k = 0; k < 3; k++) {
                UNROLL for (int r = 0; r < 3; r++) in[r] = tap[p->tap[3 * r + k]];
                FN(kernel_1d)(3, in, out);
                UNROLL for (int r = 0; r < 6; r++) half[r][k] = out[r];
            }
            UNROLL for (int r = 0; r < 6; r++) {
                FN(kernel_1d)(3, half[r], out);
                T *to = u + r * 6 * plane + (c - c0) * WN + i;
                UNROLL for (int k = 0; k < 6; k++) *(V *)(to + k * plane) = out[k];
            }
        }
    }
}

/* task < groups*panels: packed[g][pos][panel][c][i]. */
static void FN(winograd_weights)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv *p = problem;
    (void)scratch;
    const int64_t g = task / p->panels, panel = task % p->panels, plane = FN(layout_of)(p).u_plane;
    FN(transform_weights)(p, g, panel, 0, p->C, (T *)p->packed + g * 36 * plane + panel * p->C * WN, plane);
}

/* The tiles of WM rows, or half as many, and WV vectors; and, for the last VL channels, of one vector. */
#define TILE(name, rows, n)                                                                            \
    static NOINLINE void                                                                               \
    FN(name)(int64_t kc, const T *a, int64_t lda, const T *b, T *c, int64_t ldc, int first)            \
    {                                                                                                  \
        FN(plane_tile)(rows, n, kc, a, lda, 1, b, c, ldc, first);                                      \
    }
TILE(full_tile, WM, WV)
TILE(low_tile, WM / 2, WV)
TILE(narrow_tile, ROWS, 1)
TILE(small_tile, ROWS / 2, 1)
#undef TILE

/* products (+)= V * U for panels s0 .. s1-1 and channels c0 .. c1-1, where u begins. */
static void FN(winograd_product)(const cnnx_conv *p, const FN(layout) *l, int64_t s0, int64_t s1, int64_t c0,
                                 int64_t c1, int64_t tiles, const T *v, const T *u, T *products)
{
    for (int pos = 0; pos < 36; pos++, v += l->v_plane, u += l->u_plane, products += l->p_plane)
        for (int64_t c = c0; c < c1; c += KC)
            for (int64_t s = s0; s < s1; s++) {
                const int narrow = p->M - s * WN <= VL, high = narrow ? ROWS : WM;
                for (int64_t t = 0; t < tiles; t += high) {
                    const int low = tiles - t <= high / 2;
                    (narrow ? low ? FN(small_tile) : FN(narrow_tile) : low ? FN(low_tile) : FN(full_tile))(
                        c1 - c < KC ? c1 - c : KC, v + t * l->v_tile + c, l->v_tile,
                        u + ((s - s0) * (c1 - c0) + c - c0) * WN, products + t * l->p_tile + (s - s0) * WN,
                        l->p_tile, c == 0);
                }
            }
}

/* Y = A' m A of VL output channels from m, of which `channels` exist, with bias and activation. */
static void FN(winograd_out)(const cnnx_conv *p, const FN(layout) *l, int64_t g, int64_t m, FN(tiles) b,
                             const T *products, T *pixels)
{
    const int64_t channels = p->M - m < VL ? p->M - m : VL, area = p->rows * p->cols, j0 = 4 * b.c0;
    const int64_t cols = p->cols - j0 < 4 * (b.c1 - b.c0) ? p->cols - j0 : 4 * (b.c1 - b.c0);
    T lane[VL] = {0};
    for (int64_t c = 0; p->bias && c < channels; c++) lane[c] = ((const T *)p->bias)[g * p->M + m + c];
    const V bias = *(const VU *)lane;
    for (int64_t r = b.r0; r < b.r1; r++) {
        const int64_t i0 = 4 * (r % p->tile_rows), rows = p->rows - i0 < 4 ? p->rows - i0 : 4;
        for (int64_t t = 0; t < b.c1 - b.c0; t++, products += l->p_tile) {
            V half[4][6], in[6], y[4];
            UNROLL for (int k = 0; k < 6; k++) {
                UNROLL for (int i = 0; i < 6; i++) in[i] = *(const V *)(products + (i * 6 + k) * l->p_plane);
                FN(result_1d)(4, in, y);
                UNROLL for (int i = 0; i < 4; i++) half[i][k] = y[i];
            }
            const int64_t width = cols - 4 * t < 4 ? cols - 4 * t : 4;
            T *to = pixels + 4 * t * VL;
            UNROLL for (int i = 0; i < 4; i++, to += cols * VL) {
                if (i == rows) break;
                FN(result_1d)(4, half[i], y);
                UNROLL for (int j = 0; j < 4; j++) {
                    y[j] += bias;
                    if (p->activation == CNNX_RELU) y[j] = FN(relu)(y[j]);
                    if (j < width) *(V *)(to + j * VL) = y[j];
                }
            }
        }
        if (p->activation > CNNX_RELU)
            for (T *pixel = pixels; pixel < pixels + rows * cols * VL; pixel += VL)
                *(V *)pixel = FN(fused)(*(const V *)pixel, p->activation);
        T *y = (T *)p->y + ((r / p->tile_rows * p->groups + g) * p->M + m) * area + i0 * p->cols + j0;
        if (cols == p->cols) FN(turn_back)(pixels, rows * cols, channels, y, area);
        else
            for (int64_t i = 0; i < rows; i++)
                FN(turn_back)(pixels + i * cols * VL, cols, channels, y + i * p->cols, area);
    }
}

/* One block of tiles and m_block panels of output channels. */
static void FN(winograd)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv *p = problem;
    const FN(layout) l = FN(layout_of)(p);
    const int64_t g = task / p->m_blocks / p->blocks, first = task % p->m_blocks * p->m_block;
    const int64_t last = first + p->m_block < p->panels ? first + p->m_block : p->panels;
    const FN(tiles) b = FN(tiles_at)(p, task / p->m_blocks % p->blocks);
    const int64_t tiles = (b.r1 - b.r0) * (b.c1 - b.c0);
    T *strip = scratch, *v = strip + p->image_size, *products = v + 36 * l.v_plane;
    T *own = products + 36 * l.p_plane;

    const FN(images) x = FN(inputs)(p, g, 0, p->C);
    for (int64_t c = 0; c < p->C; c += VL) FN(transform_data)(&x, c, b, strip, v + c, l.v_plane, l.v_tile);
    for (int64_t s0 = first; s0 < last; s0 += p->m_step) {
        const int64_t s1 = s0 + p->m_step < last ? s0 + p->m_step : last;
        for (int64_t c0 = 0; c0 < p->C; c0 += p->c_step) {
            const int64_t c1 = c0 + p->c_step < p->C ? c0 + p->c_step : p->C;
            const T *u = p->fused ? own : (const T *)p->packed + g * 36 * l.u_plane + s0 * p->C * WN;
            for (int64_t s = s0; p->fused && s < s1; s++)
                FN(transform_weights)(p, g, s, c0, c1, own + (s - s0) * (c1 - c0) * WN, l.u_plane);
            FN(winograd_product)(p, &l, s0, s1, c0, c1, tiles, v, u, products);
        }
        for (int64_t m = s0 * WN; m < s1 * WN && m < p->M; m += VL)
            FN(winograd_out)(p, &l, g, m, b, products + m - s0 * WN, strip);
    }
}
