/* Convolution by Winograd's algorithm: 3x3 kernels of stride 1 with a quarter of the products, others by parts.
 *
 * Each of the 36 positions of a tile is a matrix product; parts of the kernel are like more channels:
 *
 *   products[pos] (tiles x M) = sum over parts that have the position of V[pos] (tiles x C) * U[pos] (C x M)
 *
 * A task takes a block of tiles and a range of output channels through all three steps, in memory that stays
 * in the second or third level.
 *
 * U is four times as large as the weights, or six. Where it serves many blocks it is made once; where there are
 * few, each task makes a part of it, uses it up while it is in the second level, and makes the next (`fused`):
 * with the 38 MB of 512 x 512 channels written and read, one image of 7x7 took 2.4 ms instead of 0.94.
 *
 * The sum goes over chunks of c_step channels, and in a chunk part by part. With one part its bits are those
 * of a sum that was never cut, fused or not; with several it is the shape that decides between the two.
 */

/* How V, U and the products lie: c is the channel in its chunk of c_step, of which U holds one, of d channels.
 * v[pos*v_plane + tile*v_tile + (chunk*parts + part)*v_part + c],
 * u[pos*u_plane + ((panel*parts + part)*d + c)*WN + i], products[pos*p_plane + tile*p_tile + i]. */
typedef struct {
    int64_t v_part, v_tile, v_plane, u_plane, p_tile, p_plane;
} FN(layout);

static FN(layout) FN(layout_of)(const cnnx_conv *p)
{
    const int64_t tiles = (p->block + ROWS - 1) / ROWS * ROWS;
    FN(layout) l;
    l.v_part = (p->c_step + VL - 1) / VL * VL;
    l.v_tile = FN(odd_lines)((p->C + p->c_step - 1) / p->c_step * p->parts * l.v_part);
    l.v_plane = FN(odd_lines)(tiles * l.v_tile);
    l.u_plane = FN(odd_lines)((p->fused ? p->m_step * p->c_step : p->panels * p->C) * p->parts * WN);
    l.p_tile = FN(odd_lines)(p->m_step * WN);
    l.p_plane = FN(odd_lines)(tiles * l.p_tile);
    return l;
}

/* Tiles a block, at most `most`, where blocks are fewer than threads, which then share the tiles, each transforming all
 * weights, or the output channels, each transforming all tiles: as the longest of them is shorter. A transform takes
 * as long as 12 products a point. */
static int64_t FN(shared_tiles)(const cnnx_conv *p, int threads, int64_t most)
{
    const int64_t tiles = p->N * p->axis[0].tiles * p->axis[1].tiles;
    int64_t best = 0, chosen = p->block;
    for (int64_t blocks = 1; blocks <= threads && blocks * WM < tiles + WM; blocks++) {
        const int64_t block = ((tiles + blocks - 1) / blocks + WM - 1) / WM * WM;
        if (block > most) continue; /* V would be too large */
        const int64_t all = p->groups * ((tiles + block - 1) / block), split = (threads + all - 1) / all;
        const int64_t m_block = split < p->panels ? (p->panels + split - 1) / split : 1;
        const int64_t tasks = all * ((p->panels + m_block - 1) / m_block), channels = m_block * WN;
        const int64_t longest = (tasks + threads - 1) / threads * (block * channels + 12 * (block + channels));
        if (best == 0 || longest < best) {
            best = longest;
            chosen = block;
        }
    }
    return chosen;
}

static int FN(winograd_plan)(cnnx_conv *p, int threads, int forced)
{
    if (!FN(winograd_tiles)(p, forced)) return 0;
    p->panels = (p->M + WN - 1) / WN;
    /* At most 128 tiles, and 16 MiB for V: from 64 to 200 tiles the time hardly changes, unless
     * U is made once more. Of these the block with the shortest longest thread. */
    int64_t most = (4 << 20) / (p->points * p->parts * p->C), best = 0, chosen = 0;
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
    int64_t all = p->groups * p->blocks, split = all % threads && all <= 2 * threads ? 2 : 1;
    if (all < threads) {
        FN(cut_tiles)(p, FN(shared_tiles)(p, threads, most));
        all = p->groups * p->blocks;
        split = (threads + all - 1) / all;
    }
    if (split > p->panels) split = p->panels;
    p->m_block = (p->panels + split - 1) / split;
    p->m_blocks = (p->panels + p->m_block - 1) / p->m_block;
    p->tasks = all * p->m_blocks;
    /* Parts of U of 32 output channels and 128 of the input, 576 KiB; else the products of 128 channels. The
     * order of a sum over several parts is another where it is fused: no number of threads may decide that. */
    const int64_t tiles = p->N * p->axis[0].tiles * p->axis[1].tiles;
    p->fused = p->parts > 1 ? tiles <= 3 * most : p->blocks <= 3 || p->blocks <= threads;
    p->m_step = (p->fused ? 32 : 128) / WN;
    if (p->m_step > p->m_block) p->m_step = p->m_block;
    const int64_t deep = 128 * p->points / FN(positions)(p) / VL * VL;
    p->c_step = p->fused && p->C > deep ? deep > VL ? deep : VL : p->C;
    const FN(layout) l = FN(layout_of)(p);
    p->packed_size = p->fused ? 0 : p->groups * p->points * l.u_plane;
    const int64_t planes = l.v_plane + l.p_plane + (p->fused ? l.u_plane : 0);
    p->scratch = (size_t)(p->points * planes + p->image_size) * sizeof(T);
    return p->scratch <= 64 << 20;
}

/* U = G g G' of one panel of output channels and a chunk of channels c0 .. c1-1, of parts of n x n taps or,
 * where not `two`, n: u[pos*plane + (part*(c1 - c0) + c - c0)*WN + i]. */
static ALWAYS_INLINE void
FN(weight_tiles)(const int two, const int n, const int64_t taps, const int64_t parts, const cnnx_conv *p,
                 int64_t g, int64_t panel, int64_t c0, int64_t c1, T *u, int64_t plane)
{
    const cnnx_axis *h = &p->axis[0], *w = &p->axis[1];
    const int tall = two || h->points > 1, columns = two ? n : 1;
    const int64_t room = FN(kernel_room)(taps);
    const T *weight = (const T *)p->weight + g * p->w_group;
    const T *last = weight + (p->M - 1) * p->w_out + (p->C - 1) * p->w_in + taps - room;
    for (int64_t i = 0; i < WN && panel * WN + i < p->M; i += VL) {
        const T *kernel[VL];
        for (int64_t l = 0, m = panel * WN + i; l < VL; l++, m++)
            kernel[l] = weight + (m < p->M ? m : p->M - 1) * p->w_out;
        for (int64_t c = c0; c < c1; c++) {
            V tap[CNNX_TAPS + VL], a[VL], in[4], out[6], half[6][4];
            tap[room] = (V){0};
            for (int64_t part = 0; part < room; part += VL) {
                UNROLL for (int l = 0; l < VL; l++) {
                    const T *from = kernel[l] + c * p->w_in;
                    T copy[CNNX_TAPS + VL];
                    PREFETCH(from + 8 * p->w_in + part); /* halves the time: streams are too many */
                    if (from > last) { /* never beyond the weights */
                        memcpy(copy, from, (size_t)taps * sizeof(T));
                        from = copy;
                    }
                    a[l] = *(const VU *)(from + part);
                }
                FN(turn)(a);
                UNROLL for (int l = 0; l < VL; l++) tap[part + l] = a[l];
            }
            const unsigned char *place = p->place;
            T *to = u + (c - c0) * WN + i;
            for (int64_t part = 0; part < parts; part++, place += n * n, to += (c1 - c0) * WN) {
                const int64_t i0 = part / w->parts, j0 = part % w->parts;
                const int64_t low = tall ? h->part[i0].low : w->part[j0].low;
                const int64_t high = tall ? h->part[i0].high : w->part[j0].high;
                const int64_t left = w->part[j0].low * plane, right = (w->part[j0].high - 1) * plane;
                UNROLL_COLUMNS for (int k = 0; k < columns; k++) {
                    UNROLL for (int r = 0; r < n; r++) in[r] = tap[place[two ? n * r + k : r]];
                    FN(kernel_1d)(n, in, out);
                    UNROLL for (int r = 0; r < 6; r++) {
                        KEEP(out[r]);
                        half[r][k] = out[r];
                    }
                }
                UNROLL for (int r = 0; r < 6; r++) {
                    if (r < low || r >= high) continue;
                    if (!two) {
                        *(V *)(to + r * plane) = half[r][0];
                        continue;
                    }
                    FN(kernel_1d)(n, half[r], out);
                    FN(store_row)(out, to + r * 6 * plane, plane, left, right);
                }
            }
        }
    }
}

#define WEIGHTS(name, two, n, taps, parts)                                                             \
    static NOINLINE void FN(name)(const cnnx_conv *p, int64_t g, int64_t panel, int64_t c0,            \
                                  int64_t c1, T *u, int64_t plane)                                     \
    {                                                                                                  \
        FN(weight_tiles)(two, n, taps, parts, p, g, panel, c0, c1, u, plane);                          \
    }
WEIGHTS(weights_9, 1, 3, 9, 1)
WEIGHTS(weights_33, 1, 3, p->span, p->parts)
WEIGHTS(weights_22, 1, 2, p->span, p->parts)
WEIGHTS(weights_3, 0, 3, p->span, p->parts)
WEIGHTS(weights_4, 0, 4, p->span, p->parts)
#undef WEIGHTS

static void FN(transform_weights)(const cnnx_conv *p, int64_t g, int64_t panel, int64_t c0, int64_t c1, T *u,
                                  int64_t plane)
{
    static void (*const forms[])(const cnnx_conv *, int64_t, int64_t, int64_t, int64_t, T *, int64_t) = {
        FN(weights_33), FN(weights_22), FN(weights_3), FN(weights_4)};
    const int plain = p->taps == 9 && p->span == 9 && p->parts == 1;
    (plain ? FN(weights_9) : forms[FN(form)(p)])(p, g, panel, c0, c1, u, plane);
}

/* task < groups*panels: packed[g][pos][panel][part][c][i]. */
static void FN(winograd_weights)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv *p = problem;
    (void)scratch;
    const int64_t g = task / p->panels, panel = task % p->panels, plane = FN(layout_of)(p).u_plane;
    FN(transform_weights)(p, g, panel, 0, p->C,
                          (T *)p->packed + g * p->points * plane + panel * p->parts * p->C * WN, plane);
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

/* Whether a part has products at a position. */
static int FN(meets)(const cnnx_conv *p, int64_t part, int64_t pos)
{
    const cnnx_axis *h = &p->axis[0], *w = &p->axis[1];
    const int64_t r = part / w->parts, c = part % w->parts, i = pos / w->points, k = pos % w->points;
    return i >= h->part[r].low && i < h->part[r].high && k >= w->part[c].low && k < w->part[c].high;
}

/* Whether any has: a kernel of fewer taps than a part leaves some out. */
static int FN(met)(const cnnx_conv *p, int64_t pos)
{
    int64_t part = 0;
    while (part < p->parts && !FN(meets)(p, part, pos)) part++;
    return part < p->parts;
}

/* products (+)= V * U for panels s0 .. s1-1 and channels c0 .. c1-1 of all parts, where u begins. */
static void FN(winograd_product)(const cnnx_conv *p, const FN(layout) *l, int64_t s0, int64_t s1, int64_t c0,
                                 int64_t c1, int64_t tiles, const T *v, const T *u, T *products)
{
    const int64_t deep = c1 - c0;
    const int joined = deep == l->v_part; /* neighbouring parts lie like one of more channels */
    for (int64_t pos = 0; pos < p->points; pos++, v += l->v_plane, u += l->u_plane, products += l->p_plane) {
        int first = c0 == 0;
        if (first && !FN(met)(p, pos))
            for (int64_t t = 0; t < tiles; t++)
                memset(products + t * l->p_tile, 0, (size_t)((s1 - s0) * WN) * sizeof(T));
        for (int64_t part = 0, run = 1; part < p->parts; part += run, run = 1) {
            if (!FN(meets)(p, part, pos)) continue;
            while (joined && part + run < p->parts && FN(meets)(p, part + run, pos)) run++;
            for (int64_t c = 0; c < run * deep; c += KC, first = 0)
                for (int64_t s = s0; s < s1; s++) {
                    const int narrow = p->M - s * WN <= VL, high = narrow ? ROWS : WM;
                    for (int64_t t = 0; t < tiles; t += high) {
                        const int low = tiles - t <= high / 2;
                        (narrow ? low ? FN(small_tile) : FN(narrow_tile) : low ? FN(low_tile) : FN(full_tile))(
                            run * deep - c < KC ? run * deep - c : KC,
                            v + t * l->v_tile + (c0 / p->c_step * p->parts + part) * l->v_part + c, l->v_tile,
                            u + (((s - s0) * p->parts + part) * deep + c) * WN,
                            products + t * l->p_tile + (s - s0) * WN, l->p_tile, first);
                    }
                }
        }
    }
}

/* Y = A' m A of VL output channels from m, of which `channels` exist, with bias and activation; tiles of
 * n x n pixels or, where not `two`, n. */
static ALWAYS_INLINE void
FN(out_tiles)(const int two, const int n, const cnnx_conv *p, const FN(layout) *l, int64_t g, int64_t m,
              FN(tiles) b, const T *products, T *pixels)
{
    const cnnx_axis *h = &p->axis[0], *w = &p->axis[1];
    const int tall = two || h->points > 1, columns = two ? 6 : 1, across = two ? n : 1;
    const int64_t channels = p->M - m < VL ? p->M - m : VL, area = p->YH * p->YW, each = h->tiles / h->phases;
    const int64_t j0 = b.c0 * w->tile, all = (b.c1 - b.c0) * w->tile;
    const int64_t cols = p->cols - j0 < all ? p->cols - j0 : all;
    T lane[VL] = {0};
    for (int64_t c = 0; p->bias && c < channels; c++) lane[c] = ((const T *)p->bias)[g * p->M + m + c];
    const V bias = *(const VU *)lane;
    FN(tile_row) place = FN(tile_row_at)(h, b.r0);
    for (int64_t r = b.r0; r < b.r1; r++, FN(next_tile_row)(h, each, &place)) {
        const int64_t i0 = place.t * h->tile * h->phases + place.phase;
        const int64_t left = h->phases > 1 ? (p->rows - i0 + h->phases - 1) / h->phases : p->rows - i0;
        const int64_t rows = left < h->tile ? left : h->tile;
        for (int64_t t = b.c0, q = 0, col = 0; t < b.c1; t++, products += l->p_tile) {
            V half[5][6], in[6], y[5];
            UNROLL_COLUMNS for (int k = 0; k < columns; k++) {
                UNROLL for (int i = 0; i < 6; i++)
                    in[i] = *(const V *)(products + (two ? i * 6 + k : i) * l->p_plane);
                FN(result_1d)(n, in, y);
                UNROLL for (int i = 0; i < n; i++) half[i][k] = y[i];
            }
            UNROLL for (int i = 0; i < n; i++) {
                if (tall && i >= rows) break;
                if (two) FN(result_1d)(n, half[i], y);
                else y[0] = half[i][0];
                UNROLL_COLUMNS for (int j = 0; j < across; j++) {
                    y[j] += bias;
                    if (p->activation == CNNX_RELU) y[j] = FN(relu)(y[j]);
                    const int64_t down = tall ? i : 0, at = col + (two ? j : tall ? 0 : i) * w->phases;
                    if (at < cols) *(V *)(pixels + (down * cols + at) * VL) = y[j];
                }
            }
            col++;
            if (++q == w->phases) {
                q = 0;
                col += (w->tile - 1) * w->phases;
            }
        }
        if (p->activation > CNNX_RELU)
            for (T *pixel = pixels; pixel < pixels + rows * cols * VL; pixel += VL)
                *(V *)pixel = FN(fused)(*(const V *)pixel, p->activation);
        T *y = (T *)p->y + ((place.image * p->groups + g) * p->M + m) * area;
        y += (p->oy + i0 * p->ty) * p->YW + p->ox + j0 * p->tx;
        if (rows <= 0) continue; /* of a phase that has fewer */
        if (cols == p->YW && h->phases * p->ty == 1) FN(turn_back)(pixels, rows * cols, channels, y, area, 1);
        else
            for (int64_t i = 0; i < rows; i++, y += h->phases * p->ty * p->YW)
                FN(turn_back)(pixels + i * cols * VL, cols, channels, y, area, p->tx);
    }
}

#define OUT(name, two, n)                                                                              \
    static NOINLINE void FN(name)(const cnnx_conv *p, const FN(layout) *l, int64_t g, int64_t m,       \
                                  FN(tiles) b, const T *products, T *pixels)                           \
    {                                                                                                  \
        FN(out_tiles)(two, n, p, l, g, m, b, products, pixels);                                        \
    }
OUT(out_44, 1, 4)
OUT(out_55, 1, 5)
OUT(out_4, 0, 4)
OUT(out_3, 0, 3)
#undef OUT
static void (*const FN(winograd_out)[])(const cnnx_conv *, const FN(layout) *, int64_t, int64_t, FN(tiles),
                                        const T *, T *) = {FN(out_44), FN(out_55), FN(out_4), FN(out_3)};

/* One block of tiles and m_block panels of output channels. */
static void FN(winograd)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv *p = problem;
    const FN(layout) l = FN(layout_of)(p);
    const int64_t g = task / p->m_blocks / p->blocks, first = task % p->m_blocks * p->m_block;
    const int64_t last = first + p->m_block < p->panels ? first + p->m_block : p->panels;
    const FN(tiles) b = FN(tiles_at)(p, task / p->m_blocks % p->blocks);
    const int64_t tiles = (b.r1 - b.r0) * (b.c1 - b.c0);
    const int form = FN(form)(p);
    T *strip = scratch, *v = strip + p->image_size, *products = v + p->points * l.v_plane;
    T *own = products + p->points * l.p_plane;

    const FN(images) x = FN(inputs)(p, g, 0, p->C);
    for (int64_t c = 0; c < p->C; c += VL)
        FN(transform_data)[form](&x, c, b, strip, v + c / p->c_step * p->parts * l.v_part + c % p->c_step,
                                 l.v_plane, l.v_tile, l.v_part);
    for (int64_t s0 = first; s0 < last; s0 += p->m_step) {
        const int64_t s1 = s0 + p->m_step < last ? s0 + p->m_step : last;
        if (cnnx_stop()) return;
        for (int64_t c0 = 0; c0 < p->C; c0 += p->c_step) {
            const int64_t c1 = c0 + p->c_step < p->C ? c0 + p->c_step : p->C;
            const T *packed = (const T *)p->packed + g * p->points * l.u_plane + s0 * p->parts * p->C * WN;
            const T *u = p->fused ? own : packed;
            for (int64_t s = s0; p->fused && s < s1; s++)
                FN(transform_weights)(p, g, s, c0, c1, own + (s - s0) * p->parts * (c1 - c0) * WN, l.u_plane);
            FN(winograd_product)(p, &l, s0, s1, c0, c1, tiles, v, u, products);
        }
        for (int64_t m = s0 * WN; m < s1 * WN && m < p->M; m += VL)
            FN(winograd_out)[form](p, &l, g, m, b, products + m - s0 * WN, strip);
    }
}
