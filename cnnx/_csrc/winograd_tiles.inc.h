/* Winograd's minimal filtering with six points: its transforms, the choice of tiles, and the way of the tiles
 * between images and planes. winograd.inc.h and winograd_weight.inc.h do the sums between them.
 *
 *   Y = A' [ (G g G') . (B' d B) ] A     for each 6x6 input tile d, 4x4 output tile Y (Lavin and Gray 2015)
 *
 * The six points serve every F(tile, taps) with tile + taps = 7, in two dimensions or in one, and B is the
 * same for all. Other kernels become these: a dilated one sees interleaved images, each with a 3x3 kernel of
 * its own; a large one is cut into parts of 3 taps, whose products are added before they are transformed back;
 * a strided one into a part for each phase of the input. A part of a tap less is spared the products of a
 * point: 3x3 of stride 2 takes (5 + 4)^2 for 16 pixels instead of 144, 5x5 takes (6 + 5)^2 instead of 400.
 *
 * The matrices follow from the points 0, +-a, +-b and infinity. a = 3/4, b = 3/2 gives a quarter of the error
 * of the customary 1 and 2 (1.2e-6 against 4.8e-6 of the largest output at 128 channels): their powers are
 * nearer to 1, and exact in binary.
 *
 * A vector holds VL channels of one pixel, whatever the image's width: images are transposed on the way in
 * and on the way out, and between that the transforms are arithmetic alone. float only.
 */
/* Over the columns of a tile. AVX-512 gains 6 to 9 % of a whole 3x3 layer from it; with 16 registers, which hold less
 * than half of a tile, a layer took 0.98 to 1.06 of its time. */
#if VECTOR_BYTES == 64
#define UNROLL_COLUMNS UNROLL
#else
#define UNROLL_COLUMNS
#endif
#define ROWS (2 * WM) /* of a tile of one vector; planes have room for a multiple */
#define WA 0.75f
#define WB 1.5f
#define WA2 (WA * WA)
#define WB2 (WB * WB)
#define NORM_0 (WA2 * WB2)             /* products of the differences to the other points: rows of G */
#define NORM_A (2 * WA2 * (WA2 - WB2))
#define NORM_B (2 * WB2 * (WB2 - WA2))

/* One dimension of B' d, written by its common terms. */
static ALWAYS_INLINE void FN(data_1d)(const V *d, V *o)
{
    const V even_a = d[4] - WB2 * d[2], odd_a = WA * d[3] - WA * WB2 * d[1];
    const V even_b = d[4] - WA2 * d[2], odd_b = WB * d[3] - WA2 * WB * d[1];
    o[0] = NORM_0 * d[0] - (WA2 + WB2) * d[2] + d[4];
    o[1] = even_a + odd_a;
    o[2] = even_a - odd_a;
    o[3] = even_b + odd_b;
    o[4] = even_b - odd_b;
    o[5] = NORM_0 * d[1] - (WA2 + WB2) * d[3] + d[5];
}

/* One dimension of G g, for 2 to 5 `taps` of a kernel or, in the weight gradient, pixels of the output's
 * gradient. */
static ALWAYS_INLINE void FN(kernel_1d)(const int taps, const V *g, V *u)
{
    V even_a, even_b, odd_a = (WA / NORM_A) * g[1], odd_b = (WB / NORM_B) * g[1];
    if (taps == 2) {
        even_a = (1 / NORM_A) * g[0];
        even_b = (1 / NORM_B) * g[0];
    } else {
        even_a = (1 / NORM_A) * g[0] + (WA2 / NORM_A) * g[2];
        even_b = (1 / NORM_B) * g[0] + (WB2 / NORM_B) * g[2];
    }
    if (taps > 3) {
        odd_a += (WA * WA2 / NORM_A) * g[3];
        odd_b += (WB * WB2 / NORM_B) * g[3];
    }
    if (taps > 4) {
        even_a += (WA2 * WA2 / NORM_A) * g[4];
        even_b += (WB2 * WB2 / NORM_B) * g[4];
    }
    u[0] = (1 / NORM_0) * g[0];
    u[1] = even_a + odd_a;
    u[2] = even_a - odd_a;
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = g[taps - 1];
}

/* One dimension of A' m, for `n` results, 2 to 5: pixels, or taps of the weight gradient. */
static ALWAYS_INLINE void FN(result_1d)(const int n, const V *m, V *y)
{
    const V pa = m[1] + m[2], qa = m[1] - m[2];
    const V pb = m[3] + m[4], qb = m[3] - m[4];
    y[0] = m[0] + pa + pb;
    y[1] = WA * qa + WB * qb;
    if (n > 2) y[2] = WA2 * pa + WB2 * pb;
    if (n > 3) y[3] = WA * WA2 * qa + WB * WB2 * qb;
    if (n > 4) y[4] = WA2 * WA2 * pa + WB2 * WB2 * pb;
    y[n - 1] += m[5];
}

/* a[i] lane j becomes a[j] lane i: log2(VL) rounds of a perfect shuffle, see transpose. */
static ALWAYS_INLINE void FN(turn)(V *a)
{
    V b[VL];
    UNROLL for (int round = 1; round < VL; round *= 2) {
        UNROLL for (int r = 0; r < VL / 2; r++) {
            b[2 * r] = __builtin_shufflevector(a[r], a[r + VL / 2], LOW);
            b[2 * r + 1] = __builtin_shufflevector(a[r], a[r + VL / 2], HIGH);
        }
        UNROLL for (int r = 0; r < VL; r++) a[r] = b[r];
    }
}

/* c[i*ldc + j] (+)= sum over k < kc of a[i*a_row + k*a_col] * b[k*WN + j] for i < rows and n vectors j: the
 * register tile whose scalars are read where the transform left them. A sum that goes on from c has the bits
 * of one that was never cut. */
static ALWAYS_INLINE void
FN(plane_tile)(const int rows, const int n, int64_t kc, const T *restrict a, int64_t a_row, int64_t a_col,
               const T *restrict b, T *restrict c, int64_t ldc, int first)
{
    V acc[ROWS][WV];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < n; j++) acc[i][j] = first ? (V){0} : *(const V *)(c + i * ldc + j * VL);
    for (int64_t k = 0; k < kc; k++, a += a_col, b += WN) {
        V bk[WV];
        UNROLL for (int j = 0; j < n; j++) bk[j] = *(const V *)(b + j * VL);
        UNROLL for (int i = 0; i < rows; i++)
            UNROLL for (int j = 0; j < n; j++) acc[i][j] += a[i * a_row] * bk[j];
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < n; j++) *(V *)(c + i * ldc + j * VL) = acc[i][j];
}

enum { STRIP = 32 }; /* rows that a row of tiles may reach over */
static int64_t FN(strip_rows)(const cnnx_axis *h) { return (h->reach - 1) / h->phases + 1; }

/* An odd number of cache lines: what lies such a distance apart falls into different cache sets. */
static int64_t FN(odd_lines)(int64_t floats) { return ((floats + 15) / 16 | 1) * 16; }

/* Cuts a dimension: `size` taps that begin at pixel `first` and lie `apart`, for `count` results. With as many
 * taps as a part has, or one or two less, a part needs 6, 5 or 4 products a tile: the outermost points are
 * there for the first and the last tap. 0 where it cannot be cut. */
static int FN(cut_axis)(cnnx_axis *a, int64_t tile, int64_t size, int64_t first, int64_t apart, int64_t stride,
                        int64_t count)
{
    const int64_t taps = tile > 1 ? 7 - tile : 1;
    int64_t low = 0, high = 0;
    if ((stride > 1 && apart > 1) || apart > 16 || stride > 16 || (tile == 1 && size > 1)) return 0;
    memset(a, 0, sizeof *a);
    a->size = size;
    a->tap_step = stride;
    a->tile = tile;
    a->points = tile > 1 ? 6 : 1;
    a->phases = apart;
    a->gap = apart * stride;
    a->tiles = apart * (((count + apart - 1) / apart + tile - 1) / tile);
    for (int64_t phase = 0; phase < stride && phase < size; phase++)
        for (int64_t tap = phase; tap < size; tap += taps * stride, a->parts++) {
            const int64_t left = (size - tap + stride - 1) / stride, spare = left < taps ? taps - left : 0;
            const int64_t lead = spare > 1; /* zeros before the first tap */
            if (a->parts == CNNX_PARTS) return 0;
            a->part[a->parts].tap = tap - lead * stride;
            a->part[a->parts].start = (tap - lead * stride) * apart;
            a->part[a->parts].low = lead;
            a->part[a->parts].high = a->points - (spare > 0);
            if (a->part[a->parts].start < low) low = a->part[a->parts].start;
            if (a->part[a->parts].start > high) high = a->part[a->parts].start;
        }
    for (int64_t i = 0; i < a->parts; i++) a->part[i].start -= low;
    a->begin = first + low;
    a->reach = high - low + (a->points - 1) * a->gap + 1;
    return 1;
}

/* Positions of all parts. */
static int64_t FN(axis_positions)(const cnnx_axis *a)
{
    int64_t sum = 0;
    for (int64_t i = 0; i < a->parts; i++) sum += a->part[i].high - a->part[i].low;
    return sum;
}

/* Products of a tile with one channel. */
static int64_t FN(positions)(const cnnx_conv *p)
{
    return FN(axis_positions)(&p->axis[0]) * FN(axis_positions)(&p->axis[1]);
}

/* The kernel's numbers in the vectors that hold them; the next place is that of taps outside the kernel. */
static ALWAYS_INLINE int64_t FN(kernel_room)(int64_t taps) { return (taps + VL - 1) / VL * VL; }

/* Where each part of the kernel finds its taps: tap e of a part or, in two dimensions, (e / n, e % n), is
 * place[part*n*n + e]. `order` has the kernel's by row and column. */
static void FN(find_taps)(cnnx_conv *p, const unsigned char *order)
{
    const cnnx_axis *h = &p->axis[0], *w = &p->axis[1];
    const int64_t down = h->points > 1 ? 7 - h->tile : 1, across = w->points > 1 ? 7 - w->tile : 1;
    const int64_t n = down > across ? down : across;
    for (int64_t part = 0; part < p->parts; part++)
        for (int64_t i = 0; i < down; i++)
            for (int64_t j = 0; j < across; j++) {
                const int64_t r = h->part[part / w->parts].tap + i * h->tap_step;
                const int64_t c = w->part[part % w->parts].tap + j * w->tap_step;
                const int inside = i >= h->part[part / w->parts].low && r < h->size &&
                                   j >= w->part[part % w->parts].low && c < w->size;
                p->place[part * n * n + i * across + j] =
                    inside ? order[r * w->size + c] : (unsigned char)FN(kernel_room)(p->span);
            }
}

/* Of arrays of functions, that for F(4x4, 3x3), F(5x5, 2x2), F(4, 3) or F(3, 4). */
static int FN(form)(const cnnx_conv *p)
{
    const int64_t tile = p->axis[0].tile * p->axis[1].tile;
    return tile == 16 ? 0 : tile == 25 ? 1 : tile == 4 ? 2 : 3;
}

/* Whether it is faster than the direct sum, with `products` of an image and a channel of each side, by the time
 * of a vector's multiply-add: 300 cycles for the transform of 36 vectors to or from a tile, half as much for
 * those of a kernel, and sums at five sixths of the direct ones' rate, for what they read lies further away.
 * Strided, 64,16,32,32 -> 32 would take 1.1 ms instead of 0.95; 8,256,28,28 -> 256 takes 7.0, not 7.7. */
static int FN(fewer_sums)(const cnnx_conv *p, double products)
{
    const double c = (double)p->C, vectors = (double)((p->C + VL - 1) / VL), m = (double)((p->M + VL - 1) / VL);
    const double tiles = (double)(p->axis[0].tiles * p->axis[1].tiles), parts = (double)p->parts;
    const double pixels = (double)(p->rows * p->cols), panels = (double)((p->M + MR - 1) / MR * MR) / VL;
    const double transforms = tiles * (parts * vectors + m) + 0.5 * parts * c * m / (double)p->N;
    const double sums = 1.2 * products * c * m;
    return sums + 600. / 36 * (double)p->points * transforms <= pixels * (double)p->taps * c * panels;
}

/* Refuses (0) kernels that lie in no grid and, unless `forced`, what would be no faster. */
static int FN(winograd_tiles)(cnnx_conv *p, int forced)
{
    unsigned char order[CNNX_TAPS];
    int64_t across = 1, n = p->taps;
    if (n < 2 || n > CNNX_TAPS || p->pairs) return 0;
    while (across < n && p->dh[across] == p->dh[0]) across++;
    const int64_t down = n / across;
    const int64_t gap_h = down > 1 ? p->dh[across] - p->dh[0] : 1;
    const int64_t gap_w = across > 1 ? p->dw[1] - p->dw[0] : 1;
    const int64_t apart_h = gap_h < 0 ? -gap_h : gap_h, apart_w = gap_w < 0 ? -gap_w : gap_w;
    if (down * across != n || apart_h == 0 || apart_w == 0) return 0;
    p->span = 0;
    for (int64_t t = 0; t < n; t++) {
        if (p->w_tap[t] >= p->span) p->span = p->w_tap[t] + 1;
        const int64_t i = t / across, j = t % across;
        if (p->dh[t] != p->dh[0] + i * gap_h || p->dw[t] != p->dw[0] + j * gap_w) return 0;
        order[(gap_h < 0 ? down - 1 - i : i) * across + (gap_w < 0 ? across - 1 - j : j)] =
            (unsigned char)p->w_tap[t];
    }
    const int64_t top = gap_h < 0 ? p->dh[n - 1] : p->dh[0], left = gap_w < 0 ? p->dw[n - 1] : p->dw[0];
    const int two = down > 1 && across > 1, small = down <= 2 * p->sh && across <= 2 * p->sw;
    double fewest = 0;
    cnnx_axis h, w;
    for (int64_t tile = two && small ? 5 : 4; tile >= (two ? 4 : 3); tile--) {
        if (!FN(cut_axis)(&h, down > 1 ? tile : 1, down, top, apart_h, p->sh, p->rows) ||
            !FN(cut_axis)(&w, across > 1 ? tile : 1, across, left, apart_w, p->sw, p->cols))
            continue;
        const double products = (double)h.tiles * (double)w.tiles *
                                (double)(FN(axis_positions)(&h) * FN(axis_positions)(&w));
        if (fewest > 0 && products >= fewest) continue;
        fewest = products;
        p->axis[0] = h;
        p->axis[1] = w;
    }
    if (fewest == 0 || p->span > CNNX_TAPS || FN(strip_rows)(&p->axis[0]) > STRIP) return 0;
    p->points = p->axis[0].points * p->axis[1].points;
    p->parts = p->axis[0].parts * p->axis[1].parts;
    if (p->parts > 16) return 0;
    FN(find_taps)(p, order);
    const int plain = n == 9 && two && p->sh == 1 && p->sw == 1 && apart_h == 1 && apart_w == 1;
    return forced || plain || FN(fewer_sums)(p, fewest);
}

/* Blocks of at most `most` tiles: whole rows of tiles where there is room for one, else parts of a row, with
 * all phases. */
static void FN(cut_tiles)(cnnx_conv *p, int64_t most)
{
    const cnnx_axis *h = &p->axis[0], *w = &p->axis[1];
    const int64_t rows = p->N * h->tiles, share = FN(share)(w->tiles / w->phases, most / w->phases);
    p->block_cols = share * w->phases;
    p->block_rows = p->block_cols < w->tiles ? 1 : FN(share)(rows, most / w->tiles);
    p->block = p->block_rows * p->block_cols;
    p->blocks = (rows + p->block_rows - 1) / p->block_rows * ((w->tiles + p->block_cols - 1) / p->block_cols);
    /* the pixels of a row of tiles, VL channels, as they come or as they go */
    const int64_t in = FN(strip_rows)(h) * ((share - 1) * w->tile * w->gap + w->phases - 1 + w->reach);
    const int64_t out = h->tile * share * w->tile * w->phases;
    p->image_size = (in > out ? in : out) * VL;
}

/* A block of tiles: rows r0 .. r1-1, counted over the whole batch, and columns c0 .. c1-1. */
typedef struct {
    int64_t r0, r1, c0, c1;
} FN(tiles);

static FN(tiles) FN(tiles_at)(const cnnx_conv *p, int64_t number)
{
    const int64_t cols = p->axis[1].tiles, across = (cols + p->block_cols - 1) / p->block_cols;
    const int64_t r = number / across * p->block_rows, c = number % across * p->block_cols;
    const int64_t rows = p->N * p->axis[0].tiles;
    return (FN(tiles)){r, r + p->block_rows < rows ? r + p->block_rows : rows, c,
                       c + p->block_cols < cols ? c + p->block_cols : cols};
}

/* A row of tiles: the t-th of a phase of an image. */
typedef struct {
    int64_t image, phase, t;
} FN(tile_row);

static FN(tile_row) FN(tile_row_at)(const cnnx_axis *h, int64_t r)
{
    const int64_t each = h->tiles / h->phases;
    return (FN(tile_row)){r / h->tiles, r % h->tiles / each, r % each};
}

static ALWAYS_INLINE void FN(next_tile_row)(const cnnx_axis *h, int64_t each, FN(tile_row) *at)
{
    if (++at->t < each) return;
    at->t = 0;
    if (++at->phase < h->phases) return;
    at->phase = 0;
    at->image++;
}

/* The images that tiles are cut from: planes of H x W, of which `channels` follow x in each image. */
typedef struct {
    const T *x;
    int64_t channels, image, H, W; /* numbers in an image */
    cnnx_axis h, w;
} FN(images);

/* Channels c0 .. c0+count-1 of group g of the input. */
static FN(images) FN(inputs)(const cnnx_conv *p, int64_t g, int64_t c0, int64_t count)
{
    const int64_t area = p->H * p->W;
    return (FN(images)){(const T *)p->x + (g * p->C + c0) * area, count, p->groups * p->C * area, p->H, p->W,
                        p->axis[0], p->axis[1]};
}

/* The same of the output's gradient, which has neither border nor stride nor parts. */
static FN(images) FN(gradients)(const cnnx_conv *p, int64_t g, int64_t m0, int64_t count)
{
    const int64_t area = p->rows * p->cols;
    FN(images) s = {(const T *)p->y + (g * p->M + m0) * area, count, p->groups * p->M * area, p->rows, p->cols,
                    p->axis[0], p->axis[1]};
    for (cnnx_axis *a = &s.h; a; a = a == &s.h ? &s.w : NULL) {
        a->gap = a->phases;
        a->begin = 0;
        a->reach = (a->tile - 1) * a->gap + 1;
        a->parts = 1;
        a->part[0].start = a->part[0].low = 0;
        a->part[0].high = a->points;
    }
    return s;
}

/* Pixels `at` .. at+n-1 of the planes of VL channels, transposed: pixel w of the h-th `cols` goes to
 * row[h] + w*VL. Lanes without a channel repeat the last. */
static void FN(turn_pixels)(const FN(images) *s, const T *x, int64_t channels, int64_t at, int64_t n,
                            int64_t cols, T *const *row)
{
    const int64_t area = s->H * s->W;
    const T *plane[VL];
    for (int64_t l = 0; l < VL; l++) plane[l] = x + (l < channels ? l : channels - 1) * area + at;
    for (int64_t q = 0, h = 0, w = 0; q < n; q += VL) {
        V a[VL];
        int64_t from = q, count = n - q < VL ? n - q : VL;
        if (area < VL) {
            T pixels[VL] = {0};
            UNROLL for (int l = 0; l < VL; l++) {
                for (int64_t i = 0; i < count; i++) pixels[i] = plane[l][q + i];
                a[l] = *(const VU *)pixels;
            }
        } else { /* the last vector begins earlier rather than end beyond the plane */
            if (at + from + VL > area) from = area - VL - at;
            UNROLL for (int l = 0; l < VL; l++) {
                a[l] = *(const VU *)(plane[l] + from);
                PREFETCH(plane[l] + from + n); /* the next rows: VL streams are too many for the hardware */
            }
        }
        FN(turn)(a);
        if (w + VL <= cols && from == q) {
            UNROLL for (int l = 0; l < VL; l++) *(V *)(row[h] + (w + l) * VL) = a[l];
            w += VL;
            if (w == cols) {
                w = 0;
                h++;
            }
            continue;
        }
        for (int64_t i = q - from; count > 0; i++, count--) {
            *(V *)(row[h] + w * VL) = a[i];
            if (++w == cols) {
                w = 0;
                h++;
            }
        }
    }
}

/* `count` rows h, h + step, .. of VL channels, from column `first` on: row[i] + j*VL is column first + j.
 * Columns outside the image are left as they are: zero. */
static void FN(turn_rows)(const FN(images) *s, const T *x, int64_t channels, int64_t h, int64_t step,
                          int64_t count, int64_t first, int64_t width, T *const *row)
{
    const int64_t lo = first < 0 ? -first : 0, hi = s->W - first < width ? s->W - first : width;
    T *to[STRIP];
    int64_t rows = 0, begin = h;
    for (int64_t i = 0; i < count; i++, h += step) {
        if (h < 0 || h >= s->H || lo >= hi) {
            memset(row[i], 0, (size_t)(width * VL) * sizeof(T));
            continue;
        }
        if (rows == 0) begin = h;
        to[rows++] = row[i] + lo * VL;
    }
    if (hi - lo == s->W && step == 1) {
        if (rows) FN(turn_pixels)(s, x, channels, begin * s->W, rows * s->W, s->W, to);
        return;
    }
    for (int64_t r = 0; r < rows; r++)
        FN(turn_pixels)(s, x, channels, (begin + r * step) * s->W + first + lo, hi - lo, hi - lo, to + r);
}

/* out[k] to position k of a row, except the first and the last where `left` and `right` are not their own:
 * these are overwritten. */
static ALWAYS_INLINE void FN(store_row)(const V *out, T *to, int64_t plane, int64_t left, int64_t right)
{
    *(V *)(to + left) = out[0];
    *(V *)(to + right) = out[5];
    UNROLL for (int k = 1; k < 5; k++) *(V *)(to + k * plane) = out[k];
}

/* The planes of channels c .. c+VL-1 for a block of tiles, tile t going to v[pos*plane + t*step], part s to
 * part_step more: B' d B of the input, or G y G' of the output's gradient where `size`, a tile's pixels, is
 * less than 6. One dimension alone where not `two`. */
static ALWAYS_INLINE void
FN(transform_tiles)(const int two, const int size, const FN(images) *s, int64_t c, FN(tiles) b, T *strip, T *v,
                    int64_t plane, int64_t step, int64_t part_step)
{
    const cnnx_axis *h = &s->h, *w = &s->w;
    const int tall = two || h->points > 1, columns = two ? size : 1;
    const int64_t unit = h->phases, rows = FN(strip_rows)(h), step_h = tall ? h->gap / unit : 0;
    const int64_t each = h->tiles / unit, advance = h->tile * h->gap / unit, across = w->tile * w->gap;
    const int64_t step_w = tall ? 0 : w->gap, first = b.c0 / w->phases * across + w->begin;
    const int64_t width = ((b.c1 - 1) / w->phases - b.c0 / w->phases) * across + w->phases - 1 + w->reach;
    const int64_t channels = s->channels - c < VL ? s->channels - c : VL;
    memset(strip, 0, (size_t)(rows * width * VL) * sizeof(T));
    FN(tile_row) place = FN(tile_row_at)(h, b.r0);
    for (int64_t r = b.r0; r < b.r1; r++, FN(next_tile_row)(h, each, &place)) {
        const T *x = s->x + place.image * s->image + c * s->H * s->W;
        const int64_t above = place.t * advance; /* its first rows are the last of the tiles above */
        const int64_t kept = place.t > 0 && r > b.r0 && rows > advance ? rows - advance : 0;
        T *row[STRIP];
        for (int64_t i = 0, slot = above % rows; i < rows; i++) {
            row[i] = strip + slot * width * VL;
            if (++slot == rows) slot = 0;
        }
        FN(turn_rows)(s, x, channels, h->begin + (above + kept) * unit + place.phase, unit, rows - kept, first,
                      width, row + kept);
        for (int64_t part = 0, i0 = 0, j0 = 0; part < h->parts * w->parts; part++) {
            const int64_t low = tall ? h->part[i0].low : w->part[j0].low;
            const int64_t high = tall ? h->part[i0].high : w->part[j0].high;
            const int64_t left = w->part[j0].low * plane, right = (w->part[j0].high - 1) * plane;
            T **begin = row + (unit > 1 ? h->part[i0].start / unit : h->part[i0].start);
            const T *at[6];
            for (int i = 0; i < size; i++)
                at[i] = begin[i * step_h] + (w->part[j0].start + i * step_w) * VL;
            if (++j0 == w->parts) {
                j0 = 0;
                i0++;
            }
            T *to = v + part * part_step;
            for (int64_t t = b.c0, q = 0, pixel = 0; t < b.c1; t++, to += step) {
                V half[6][6], in[6], out[6];
                UNROLL_COLUMNS for (int k = 0; k < columns; k++) {
                    const int64_t from = (pixel + k * w->gap) * VL;
                    UNROLL for (int i = 0; i < size; i++) in[i] = *(const V *)(at[i] + from);
                    if (size < 6) FN(kernel_1d)(size, in, out);
                    else FN(data_1d)(in, out);
                    UNROLL for (int i = 0; i < 6; i++) {
                        KEEP(out[i]); /* or it moves to where it is used, and its products are not fused */
                        half[i][k] = out[i];
                    }
                }
                UNROLL for (int i = 0; i < 6; i++) {
                    if (i < low || i >= high) continue;
                    if (!two) {
                        *(V *)(to + i * plane) = half[i][0];
                        continue;
                    }
                    if (size < 6) FN(kernel_1d)(size, half[i], out);
                    else FN(data_1d)(half[i], out);
                    FN(store_row)(out, to + i * 6 * plane, plane, left, right);
                }
                pixel++;
                if (++q == w->phases) {
                    q = 0;
                    pixel += across - w->phases;
                }
            }
        }
        v += (b.c1 - b.c0) * step;
    }
}

#define TRANSFORM(name, two, size)                                                                     \
    static NOINLINE void FN(name)(const FN(images) *s, int64_t c, FN(tiles) b, T *strip, T *v,         \
                                  int64_t plane, int64_t step, int64_t part_step)                      \
    {                                                                                                  \
        FN(transform_tiles)(two, size, s, c, b, strip, v, plane, step, part_step);                     \
    }
TRANSFORM(data_66, 1, 6)
TRANSFORM(data_6, 0, 6)
TRANSFORM(grad_44, 1, 4)
TRANSFORM(grad_55, 1, 5)
TRANSFORM(grad_4, 0, 4)
TRANSFORM(grad_3, 0, 3)
#undef TRANSFORM
typedef void FN(transform)(const FN(images) *, int64_t, FN(tiles), T *, T *, int64_t, int64_t, int64_t);
static FN(transform) *const FN(transform_data)[] = {FN(data_66), FN(data_66), FN(data_6), FN(data_6)};
static FN(transform) *const FN(transform_grad)[] = {FN(grad_44), FN(grad_55), FN(grad_4), FN(grad_3)};

/* n consecutive pixels of VL channels, of which `channels` exist, back into their planes, `step` apart. */
static void FN(turn_back)(const T *pixels, int64_t n, int64_t channels, T *y, int64_t area, int64_t step)
{
    for (int64_t q = 0; q < n; q += VL) {
        if (q + VL > n && n >= VL) q = n - VL; /* some once more */
        const int64_t count = n - q < VL ? n - q : VL;
        V a[VL];
        UNROLL for (int l = 0; l < VL; l++) a[l] = *(const V *)(pixels + (l < count ? q + l : q) * VL);
        FN(turn)(a);
        if (count == VL && channels == VL && step == 1) {
            UNROLL for (int l = 0; l < VL; l++) *(VU *)(y + l * area + q) = a[l];
            continue;
        }
        for (int64_t l = 0; l < channels; l++) {
            if (step == 1) memcpy(y + l * area + q, &a[l], (size_t)count * sizeof(T));
            else
                for (int64_t i = 0; i < count; i++) y[l * area + (q + i) * step] = a[l][i];
        }
    }
}
