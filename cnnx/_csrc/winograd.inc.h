/* Winograd's minimal filtering F(4x4, 3x3): 3x3 convolutions of stride 1 with a quarter of the products.
 *
 *   Y = A' [ (G g G') . (B' d B) ] A     for each 6x6 input tile d, 4x4 output tile Y (Lavin and Gray 2015)
 *
 * summed over channels, so that each of the 36 positions is a matrix product for the register tile:
 * M[pos] (M x tiles) = U[pos] (M x C) * V[pos] (C x tiles). Tiles are numbered over the whole batch; a task
 * takes a block of them and a range of output channels through all three steps, in memory that stays in
 * the second or third level.
 *
 * The matrices follow from the points 0, +-a, +-b and infinity. a = 3/4, b = 3/2 gives a quarter of the error
 * of the customary 1 and 2 (1.2e-6 against 4.8e-6 of the largest output at 128 channels): their powers are
 * nearer to 1, and exact in binary.
 *
 * float only, vectors of 8 on every instruction set: a row of a tile, or 8 tiles.
 */
typedef float FN(V8) __attribute__((vector_size(32)));
typedef float FN(V8U) __attribute__((vector_size(32), aligned(4), may_alias));
typedef float FN(V4U) __attribute__((vector_size(16), aligned(4), may_alias));
#define V8 FN(V8)
#define LOAD8(p) ((V8) * (const FN(V8U) *)(p))
#define STORE8(p, v) (*(FN(V8U) *)(p) = (FN(V8U))(v))

#define WA 0.75f
#define WB 1.5f
#define WA2 (WA * WA)
#define WB2 (WB * WB)
#define NORM_0 (WA2 * WB2)             /* products of the differences to the other points: rows of G */
#define NORM_A (2 * WA2 * (WA2 - WB2))
#define NORM_B (2 * WB2 * (WB2 - WA2))

/* The 36 planes must not lie a power of two apart, or they fall into the same cache sets. */
enum { PLANE_PAD = 80 };

/* One dimension of B' d, written by its common terms. */
static ALWAYS_INLINE void FN(data_1d)(const V8 *d, V8 *o)
{
    const V8 even_a = d[4] - WB2 * d[2], odd_a = WA * d[3] - WA * WB2 * d[1];
    const V8 even_b = d[4] - WA2 * d[2], odd_b = WB * d[3] - WA2 * WB * d[1];
    o[0] = NORM_0 * d[0] - (WA2 + WB2) * d[2] + d[4];
    o[1] = even_a + odd_a;
    o[2] = even_a - odd_a;
    o[3] = even_b + odd_b;
    o[4] = even_b - odd_b;
    o[5] = NORM_0 * d[1] - (WA2 + WB2) * d[3] + d[5];
}

/* One dimension of G g. */
static ALWAYS_INLINE void FN(weight_1d)(const V8 *g, V8 *u)
{
    const V8 even_a = (1 / NORM_A) * g[0] + (WA2 / NORM_A) * g[2], odd_a = (WA / NORM_A) * g[1];
    const V8 even_b = (1 / NORM_B) * g[0] + (WB2 / NORM_B) * g[2], odd_b = (WB / NORM_B) * g[1];
    u[0] = (1 / NORM_0) * g[0];
    u[1] = even_a + odd_a;
    u[2] = even_a - odd_a;
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = g[2];
}

/* One dimension of G y for the weight gradient, where the 4 pixels of the output's gradient are the filter. */
static ALWAYS_INLINE void FN(grad_1d)(const V8 *g, V8 *u)
{
    const V8 even_a = (1 / NORM_A) * g[0] + (WA2 / NORM_A) * g[2];
    const V8 odd_a = (WA / NORM_A) * g[1] + (WA * WA2 / NORM_A) * g[3];
    const V8 even_b = (1 / NORM_B) * g[0] + (WB2 / NORM_B) * g[2];
    const V8 odd_b = (WB / NORM_B) * g[1] + (WB * WB2 / NORM_B) * g[3];
    u[0] = (1 / NORM_0) * g[0];
    u[1] = even_a + odd_a;
    u[2] = even_a - odd_a;
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = g[3];
}

/* One dimension of A' m. */
static ALWAYS_INLINE void FN(out_1d)(const V8 *m, V8 *y)
{
    const V8 pa = m[1] + m[2], qa = m[1] - m[2];
    const V8 pb = m[3] + m[4], qb = m[3] - m[4];
    y[0] = m[0] + pa + pb;
    y[1] = WA * qa + WB * qb;
    y[2] = WA2 * pa + WB2 * pb;
    y[3] = WA * WA2 * qa + WB * WB2 * qb + m[5];
}

/* 8x8 transposition; columns 6 and 7 are not wanted. */
static ALWAYS_INLINE void FN(transpose_8x6)(const float *rows, V8 *col)
{
#define MIX(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
    V8 t[8], u[8];
    UNROLL for (int i = 0; i < 4; i++) {
        const V8 a = LOAD8(rows + 16 * i), b = LOAD8(rows + 16 * i + 8);
        t[2 * i] = MIX(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
        t[2 * i + 1] = MIX(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    }
    UNROLL for (int i = 0; i < 2; i++) {
        u[4 * i] = MIX(t[4 * i], t[4 * i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
        u[4 * i + 1] = MIX(t[4 * i], t[4 * i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        u[4 * i + 2] = MIX(t[4 * i + 1], t[4 * i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
        u[4 * i + 3] = MIX(t[4 * i + 1], t[4 * i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
    }
    UNROLL for (int i = 0; i < 4; i++) col[i] = MIX(u[i], u[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    UNROLL for (int i = 0; i < 2; i++) col[4 + i] = MIX(u[i], u[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
}

/* Refuses (0) what is not a 3x3 kernel of stride and dilation 1 onto a dense image. */
static int FN(winograd_tiles)(cnnx_conv *p)
{
    if (p->taps != 9 || p->sh != 1 || p->sw != 1 || p->ty != 1 || p->tx != 1) return 0;
    int64_t top = p->dh[0] < p->dh[8] ? p->dh[0] : p->dh[8];
    int64_t left = p->dw[0] < p->dw[8] ? p->dw[0] : p->dw[8];
    int64_t tap[9] = {0};
    for (int t = 0; t < 9; t++) {
        const int64_t r = p->dh[t] - top, c = p->dw[t] - left;
        if (r < 0 || r > 2 || c < 0 || c > 2) return 0;
        tap[r * 3 + c] = p->w_tap[t];
    }
    memcpy(p->tap, tap, sizeof tap);
    p->top = top;
    p->left = left;
    p->tile_rows = (p->rows + 3) / 4;
    p->tile_cols = (p->cols + 3) / 4;
    p->pixels = p->N * p->tile_rows * p->tile_cols;
    p->image_width = 4 * p->tile_cols + 8;
    return 1;
}

/* Floats for the rows that a block of tiles reads: they lie in at most block/tile_cols + 2 rows of tiles, and
 * each image adds two rows of pixels. */
static int64_t FN(strip_size)(const cnnx_conv *p, int64_t block)
{
    const int64_t rows = 4 * (block / p->tile_cols + 2) + 2 * (block / (p->tile_rows * p->tile_cols) + 2);
    return (rows * p->image_width + 8 + 15) / 16 * 16;
}

static int FN(winograd_plan)(cnnx_conv *p, int threads)
{
    if (!FN(winograd_tiles)(p)) return 0;
    p->panels = (p->M + MR - 1) / MR;
    p->plane = p->panels * p->C * MR + PLANE_PAD;
    p->packed_size = p->groups * 36 * p->plane;
    /* The block with the shortest longest thread, of at most 96 tiles, and 8 MiB for both its planes. */
    int64_t best = 0, limit = (2 << 20) / (36 * (p->C + p->panels * MR));
    if (limit > 96) limit = 96;
    for (int64_t block = NR; block <= limit || block == NR; block += NR) {
        const int64_t blocks = p->groups * ((p->pixels + block - 1) / block);
        const int64_t longest = (blocks + threads - 1) / threads * block;
        if (best == 0 || longest <= best) {
            best = longest;
            p->block = block;
        }
    }
    p->blocks = (p->pixels + p->block - 1) / p->block;
    /* Few blocks: threads share the output channels, each transforming the same tiles. */
    int64_t split = threads > 1 && p->groups * p->blocks < 2 * threads ? threads : 1;
    if (split > p->panels) split = p->panels;
    p->m_block = (p->panels + split - 1) / split;
    p->m_blocks = (p->panels + p->m_block - 1) / p->m_block;
    p->tasks = p->groups * p->blocks * p->m_blocks;
    p->image_size = FN(strip_size)(p, p->block);
    p->scratch = ((size_t)(36 * (p->C * p->block + PLANE_PAD)) +
                  (size_t)(36 * (p->m_block * MR * p->block + PLANE_PAD)) + (size_t)p->image_size) *
                     sizeof(float) +
                 (size_t)p->block * sizeof(int64_t);
    return 1;
}

/* task < groups*panels: U = G g G' of MR output channels, packed[g][pos][panel][c][i]. */
static void FN(winograd_weights)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv *p = problem;
    (void)scratch;
    const int64_t g = task / p->panels, panel = task % p->panels, m0 = panel * MR;
    const float *w = (const float *)p->weight + g * p->w_group + m0 * p->w_out;
    float *out = (float *)p->packed + g * 36 * p->plane + panel * p->C * MR;
    const int64_t total = p->C * MR;
    for (int64_t e = 0; e < total; e += 8) { /* 8 pairs (c, i), in the order of the panel */
        float raw[9][8];
        const int64_t lanes = total - e < 8 ? total - e : 8;
        for (int64_t l = 0; l < 8; l++) {
            const int64_t c = (e + l) / MR, i = (e + l) % MR;
            const int exists = l < lanes && m0 + i < p->M;
            const float *from = w + (exists ? i * p->w_out + c * p->w_in : 0);
            for (int t = 0; t < 9; t++) raw[t][l] = exists ? from[p->tap[t]] : 0;
        }
        V8 in[3], column[6], half[6][3], u[6];
        UNROLL for (int c = 0; c < 3; c++) {
            UNROLL for (int r = 0; r < 3; r++) in[r] = LOAD8(raw[3 * r + c]);
            FN(weight_1d)(in, column);
            UNROLL for (int r = 0; r < 6; r++) half[r][c] = column[r];
        }
        UNROLL for (int r = 0; r < 6; r++) {
            FN(weight_1d)(half[r], u);
            UNROLL for (int c = 0; c < 6; c++) {
                float *to = out + (r * 6 + c) * p->plane + e;
                if (lanes == 8) STORE8(to, u[c]);
                else memcpy(to, &u[c], (size_t)lanes * sizeof(float));
            }
        }
    }
}

/* Rows of one image that tiles of rows r0 .. r1-1 read, with their zero border. */
static void FN(copy_tiles)(const cnnx_conv *p, const float *x, int64_t r0, int64_t r1, float *to)
{
    const int64_t width = p->image_width;
    const int64_t lo = p->left < 0 ? -p->left : 0;               /* columns lo .. hi-1 are inside */
    int64_t hi = p->W - p->left < width ? p->W - p->left : width;
    if (hi < lo) hi = lo;
    for (int64_t h = 4 * r0 + p->top; h < 4 * r1 + 2 + p->top; h++, to += width) {
        if (h < 0 || h >= p->H) {
            memset(to, 0, (size_t)width * sizeof(float));
            continue;
        }
        for (int64_t j = 0; j < lo && j < width; j++) to[j] = 0;
        const float *from = x + h * p->W + p->left;
        for (int64_t j = lo; j < hi; j++) to[j] = from[j];
        for (int64_t j = hi; j < width; j++) to[j] = 0;
    }
}

/* The 36 transformed planes of tiles q0 .. q0+tiles-1, channels c0 .. c1-1 of group g: v[pos][panel][c][lane].
 * Either B' d B of the 6x6 input tiles, or G' y G of 4x4 tiles of the output's gradient (`grad`). */
static ALWAYS_INLINE void
FN(winograd_planes)(const cnnx_conv *p, const int grad, int64_t g, int64_t c0, int64_t c1, int64_t q0,
                    int64_t tiles, float *v, int64_t plane, float *image, int64_t *at)
{
    const int64_t per_image = p->tile_rows * p->tile_cols;
    for (int64_t c = c0; c < c1; c++) {
        float *strip = image;
        for (int64_t q = q0; q < q0 + tiles;) {
            const int64_t n = q / per_image, first = q % per_image;
            int64_t last = first + (q0 + tiles - q); /* one past */
            if (last > per_image) last = per_image;
            const int64_t r0 = first / p->tile_cols, r1 = (last + p->tile_cols - 1) / p->tile_cols;
            const float *x = (const float *)p->x + ((n * p->groups + g) * p->C + c) * p->H * p->W;
            FN(copy_tiles)(p, x, r0, r1, strip);
            if (c == c0)
                for (int64_t t = first; t < last; t++)
                    at[q - q0 + t - first] = (strip - image) + 4 * (t / p->tile_cols - r0) * p->image_width +
                                             4 * (t % p->tile_cols);
            strip += (4 * (r1 - r0) + 2) * p->image_width;
            q += last - first;
        }
        for (int64_t t = 0; t < tiles; t += 8) {
            float rows[6][8][8]; /* row of the half-transformed tile, tile, column */
            for (int64_t l = 0; l < 8; l++) {
                const float *d = image + at[t + l < tiles ? t + l : tiles - 1];
                V8 in[6], out[6];
                for (int r = 0; r < (grad ? 4 : 6); r++) in[r] = LOAD8(d + r * p->image_width);
                if (grad) FN(grad_1d)(in, out);
                else FN(data_1d)(in, out);
                UNROLL for (int r = 0; r < 6; r++) STORE8(rows[r][l], out[r]);
            }
            float *to = v + (t / NR * p->C + c) * NR + t % NR;
            for (int r = 0; r < 6; r++) {
                V8 col[6], out[6];
                FN(transpose_8x6)(rows[r][0], col);
                if (grad) FN(grad_1d)(col, out);
                else FN(data_1d)(col, out);
                UNROLL for (int k = 0; k < 6; k++) STORE8(to + (r * 6 + k) * plane, out[k]);
            }
        }
    }
}

static NOINLINE void FN(winograd_data)(const cnnx_conv *p, int64_t g, int64_t c0, int64_t c1, int64_t q0,
                                       int64_t tiles, float *v, int64_t plane, float *image, int64_t *at)
{
    FN(winograd_planes)(p, 0, g, c0, c1, q0, tiles, v, plane, image, at);
}

/* Y = A' m A of one output channel for tiles q0 .., with bias and activation. m: products[pos] + tile. */
static void FN(winograd_out)(const cnnx_conv *p, int64_t g, int64_t m, int64_t q0, int64_t tiles,
                             const float *products, int64_t plane)
{
    const int64_t per_image = p->tile_rows * p->tile_cols, area = p->rows * p->cols;
    const float bias = p->bias ? ((const float *)p->bias)[g * p->M + m] : 0;
    for (int64_t t = 0; t < tiles; t += 8) {
        V8 half[4][6];
        UNROLL for (int k = 0; k < 6; k++) {
            V8 in[6], y[4];
            UNROLL for (int r = 0; r < 6; r++) in[r] = LOAD8(products + (r * 6 + k) * plane + t);
            FN(out_1d)(in, y);
            UNROLL for (int i = 0; i < 4; i++) half[i][k] = y[i];
        }
        float pixel[4][8][4]; /* row of the tile, tile, column */
        UNROLL for (int i = 0; i < 4; i++) {
            V8 y[4];
            FN(out_1d)(half[i], y);
            UNROLL for (int j = 0; j < 4; j++) {
                y[j] += bias;
                if (p->activation == CNNX_RELU) y[j] = (V8)((__typeof__(y[j] < y[j]))y[j] & ~(y[j] < (V8){0}));
            }
            const V8 a = MIX(y[0], y[1], 0, 8, 1, 9, 4, 12, 5, 13), b = MIX(y[2], y[3], 0, 8, 1, 9, 4, 12, 5, 13);
            const V8 c = MIX(y[0], y[1], 2, 10, 3, 11, 6, 14, 7, 15), d = MIX(y[2], y[3], 2, 10, 3, 11, 6, 14, 7, 15);
            const V8 t04 = MIX(a, b, 0, 1, 8, 9, 4, 5, 12, 13), t15 = MIX(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
            const V8 t26 = MIX(c, d, 0, 1, 8, 9, 4, 5, 12, 13), t37 = MIX(c, d, 2, 3, 10, 11, 6, 7, 14, 15);
            STORE8(pixel[i][0], MIX(t04, t15, 0, 1, 2, 3, 8, 9, 10, 11));
            STORE8(pixel[i][2], MIX(t26, t37, 0, 1, 2, 3, 8, 9, 10, 11));
            STORE8(pixel[i][4], MIX(t04, t15, 4, 5, 6, 7, 12, 13, 14, 15));
            STORE8(pixel[i][6], MIX(t26, t37, 4, 5, 6, 7, 12, 13, 14, 15));
        }
        for (int64_t l = 0; l < 8 && t + l < tiles; l++) {
            const int64_t q = q0 + t + l, n = q / per_image, r = q % per_image / p->tile_cols,
                          c = q % p->tile_cols;
            const int64_t h = p->rows - 4 * r < 4 ? p->rows - 4 * r : 4;
            const int64_t w = p->cols - 4 * c < 4 ? p->cols - 4 * c : 4;
            float *y = (float *)p->y + ((n * p->groups + g) * p->M + m) * area + 4 * r * p->cols + 4 * c;
            for (int64_t i = 0; i < h; i++, y += p->cols) {
                if (p->activation > CNNX_RELU)
                    for (int j = 0; j < 4; j++) pixel[i][l][j] = FN(activate)(pixel[i][l][j], p->activation);
                if (w == 4) *(FN(V4U) *)y = *(const FN(V4U) *)pixel[i][l];
                else
                    for (int64_t j = 0; j < w; j++) y[j] = pixel[i][l][j];
            }
        }
    }
}

static void FN(winograd)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv *p = problem;
    const int64_t mb = task % p->m_blocks, b = task / p->m_blocks % p->blocks, g = task / p->m_blocks / p->blocks;
    const int64_t q0 = b * p->block, tiles = p->pixels - q0 < p->block ? p->pixels - q0 : p->block;
    const int64_t first_panel = mb * p->m_block;
    const int64_t last_panel = first_panel + p->m_block < p->panels ? first_panel + p->m_block : p->panels;
    const int64_t v_plane = p->C * p->block + PLANE_PAD, m_plane = p->m_block * MR * p->block + PLANE_PAD;
    float *v = scratch, *products = v + 36 * v_plane, *image = products + 36 * m_plane;
    int64_t *at = (int64_t *)(image + p->image_size);
    const float *u = (const float *)p->packed + g * 36 * p->plane;

    FN(winograd_data)(p, g, 0, p->C, q0, tiles, v, v_plane, image, at);
    for (int pos = 0; pos < 36; pos++)
        for (int64_t c0 = 0; c0 < p->C; c0 += KC) {
            const int64_t kc = p->C - c0 < KC ? p->C - c0 : KC;
            for (int64_t t = 0; t < tiles; t += NR)
                for (int64_t s = first_panel; s < last_panel; s++)
                    FN(gemm_full)(kc, u + pos * p->plane + (s * p->C + c0) * MR,
                                  v + pos * v_plane + (t / NR * p->C + c0) * NR,
                                  products + pos * m_plane + (s - first_panel) * MR * p->block + t, p->block,
                                  NULL, c0 == 0, 0, CNNX_NONE);
        }
    for (int64_t m = first_panel * MR; m < last_panel * MR && m < p->M; m++)
        FN(winograd_out)(p, g, m, q0, tiles, products + (m - first_panel * MR) * p->block, m_plane);
}

/* Weight gradient by F(3x3, 4x4), the same points with the roles changed:
 *
 *   dW = A' [ sum over tiles of (G y G') . (B' d B) ] A     with y the 4x4 tile of the output's gradient
 *
 * Tiles go through in chunks of `piece`: first all channels of x and of the gradient are transformed, then
 * each position adds one matrix product over the tiles of the chunk. The sums run over chunks in order.
 */
static int FN(winograd_weight_plan)(cnnx_conv_weight *w)
{
    cnnx_conv *p = &w->conv;
    if (!FN(winograd_tiles)(p)) return 0;
    p->depth = p->C * 9;
    w->sum_rows = (p->M + MR - 1) / MR * MR;
    w->sum_cols = (p->C + NR - 1) / NR * NR;
    const int64_t sums = 36 * (w->sum_rows * w->sum_cols + PLANE_PAD);
    if (sums > 12 << 20) return 0; /* 48 MiB: the bound on scratch */
    /* Both transforms of a chunk in a part of the third level, 8 MiB. */
    int64_t piece = (2 << 20) / (36 * (p->M + p->C)) / NR * NR;
    if (piece < NR) piece = NR;
    if (piece > 480 / NR * NR) piece = 480 / NR * NR;
    if (piece > p->pixels) piece = (p->pixels + NR - 1) / NR * NR;
    w->piece = piece;
    w->pieces = (p->pixels + piece - 1) / piece;
    w->data_plane = p->C * piece + PLANE_PAD;
    w->grad_plane = p->M * piece + PLANE_PAD;
    w->sum_plane = w->sum_rows * w->sum_cols + PLANE_PAD;
    w->shared = (size_t)(36 * (w->data_plane + w->grad_plane + w->sum_plane));
    p->image_size = FN(strip_size)(p, piece);
    const size_t strip = (size_t)p->image_size * sizeof(float) + (size_t)piece * sizeof(int64_t);
    const size_t panels = (size_t)(piece * (w->sum_rows + NR)) * sizeof(float);
    w->scratch = strip > panels ? strip : panels;
    return 1;
}

/* task < C + M: one channel of x, or of the gradient, in the chunk. */
static void FN(winograd_weight_planes)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv_weight *w = problem;
    const cnnx_conv *p = &w->conv;
    const int64_t q0 = w->chunk * w->piece, tiles = p->pixels - q0 < w->piece ? p->pixels - q0 : w->piece;
    float *image = scratch, *data = w->partial, *grad = data + 36 * w->data_plane;
    int64_t *at = (int64_t *)(image + p->image_size);
    if (task < p->C) {
        FN(winograd_planes)(p, 0, w->group, task, task + 1, q0, tiles, data, w->data_plane, image, at);
        return;
    }
    cnnx_conv y = *p; /* the gradient as an image of its own, with no border */
    y.x = p->y;
    y.C = p->M;
    y.H = p->rows;
    y.W = p->cols;
    y.top = y.left = 0;
    FN(winograd_planes)(&y, 1, w->group, task - p->C, task - p->C + 1, q0, tiles, grad, w->grad_plane, image, at);
}

/* task < 36: one position's sums += its gradient planes times its data planes. */
static void FN(winograd_weight_product)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv_weight *w = problem;
    const cnnx_conv *p = &w->conv;
    const int64_t q0 = w->chunk * w->piece, tiles = p->pixels - q0 < w->piece ? p->pixels - q0 : w->piece;
    const float *data = (const float *)w->partial + task * w->data_plane;
    const float *grad = (const float *)w->partial + 36 * w->data_plane + task * w->grad_plane;
    float *sums = (float *)w->partial + 36 * (w->data_plane + w->grad_plane) + task * w->sum_plane;
    float *panel = scratch, *rows = panel + w->piece * NR;
    for (int64_t m = 0; m < p->M; m += MR)
        for (int64_t t = 0; t < tiles; t += NR)
            FN(pack_panel)(grad + (t / NR * p->M + m) * NR, NR, 1, p->M - m < MR ? p->M - m : MR,
                           tiles - t < NR ? tiles - t : NR, MR, rows + (m * tiles + t * MR));
    for (int64_t c = 0; c < p->C; c += NR) {
        for (int64_t t = 0; t < tiles; t += NR)
            FN(pack_panel)(data + (t / NR * p->C + c) * NR, NR, 1, p->C - c < NR ? p->C - c : NR,
                           tiles - t < NR ? tiles - t : NR, NR, panel + t * NR);
        for (int64_t k = 0; k < tiles; k += KC) {
            const int64_t kc = tiles - k < KC ? tiles - k : KC;
            for (int64_t m = 0; m < p->M; m += MR)
                FN(gemm_full)(kc, rows + m * tiles + k * MR, panel + k * NR, sums + m * w->sum_cols + c,
                              w->sum_cols, NULL, w->chunk == 0 && k == 0, 0, CNNX_NONE);
        }
    }
}

/* One dimension of A' m for a 3-tap result. */
static ALWAYS_INLINE void FN(taps_1d)(const V8 *m, V8 *y)
{
    const V8 pa = m[1] + m[2], qa = m[1] - m[2], pb = m[3] + m[4], qb = m[3] - m[4];
    y[0] = m[0] + pa + pb;
    y[1] = WA * qa + WB * qb;
    y[2] = WA2 * pa + WB2 * pb + m[5];
}

/* task < M: the 3x3 kernels of one output channel from their sums. */
static void FN(winograd_weight_out)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv_weight *w = problem;
    const cnnx_conv *p = &w->conv;
    (void)scratch;
    const float *sums = (const float *)w->partial + 36 * (w->data_plane + w->grad_plane) + task * w->sum_cols;
    float *out = (float *)w->grad + (w->group * p->M + task) * p->C * 9;
    for (int64_t c = 0; c < p->C; c += 8) {
        V8 half[3][6], y[3];
        float taps[9][8];
        UNROLL for (int k = 0; k < 6; k++) {
            V8 in[6];
            UNROLL for (int r = 0; r < 6; r++) in[r] = LOAD8(sums + (r * 6 + k) * w->sum_plane + c);
            FN(taps_1d)(in, y);
            UNROLL for (int i = 0; i < 3; i++) half[i][k] = y[i];
        }
        UNROLL for (int i = 0; i < 3; i++) {
            FN(taps_1d)(half[i], y);
            UNROLL for (int j = 0; j < 3; j++) STORE8(taps[i * 3 + j], y[j]);
        }
        for (int64_t l = 0; l < 8 && c + l < p->C; l++)
            for (int t = 0; t < 9; t++) out[(c + l) * 9 + p->tap[t]] = taps[t][l];
    }
}
