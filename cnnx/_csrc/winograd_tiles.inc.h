/* Winograd's minimal filtering, F(4x4, 3x3) and F(3x3, 4x4): its transforms, and the way of the tiles between
 * images and planes. winograd.inc.h and winograd_weight.inc.h do the sums between them.
 *
 *   Y = A' [ (G g G') . (B' d B) ] A     for each 6x6 input tile d, 4x4 output tile Y (Lavin and Gray 2015)
 *
 * The matrices follow from the points 0, +-a, +-b and infinity. a = 3/4, b = 3/2 gives a quarter of the error
 * of the customary 1 and 2 (1.2e-6 against 4.8e-6 of the largest output at 128 channels): their powers are
 * nearer to 1, and exact in binary.
 *
 * A vector holds VL channels of one pixel, whatever the image's width: images are transposed on the way in
 * and on the way out, and between that the transforms are arithmetic alone. float only.
 */
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

/* One dimension of G g, for a kernel of `taps` 3, or of 4: the pixels of the output's gradient in the weight
 * gradient. */
static ALWAYS_INLINE void FN(kernel_1d)(const int taps, const V *g, V *u)
{
    const V even_a = (1 / NORM_A) * g[0] + (WA2 / NORM_A) * g[2];
    const V even_b = (1 / NORM_B) * g[0] + (WB2 / NORM_B) * g[2];
    V odd_a = (WA / NORM_A) * g[1], odd_b = (WB / NORM_B) * g[1];
    if (taps == 4) {
        odd_a += (WA * WA2 / NORM_A) * g[3];
        odd_b += (WB * WB2 / NORM_B) * g[3];
    }
    u[0] = (1 / NORM_0) * g[0];
    u[1] = even_a + odd_a;
    u[2] = even_a - odd_a;
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = g[taps - 1];
}

/* One dimension of A' m, for `n` results: 4 pixels, or the 3 taps of the weight gradient. */
static ALWAYS_INLINE void FN(result_1d)(const int n, const V *m, V *y)
{
    const V pa = m[1] + m[2], qa = m[1] - m[2];
    const V pb = m[3] + m[4], qb = m[3] - m[4];
    y[0] = m[0] + pa + pb;
    y[1] = WA * qa + WB * qb;
    y[2] = WA2 * pa + WB2 * pb;
    if (n == 4) y[3] = WA * WA2 * qa + WB * WB2 * qb;
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

/* An odd number of cache lines: what lies such a distance apart falls into different cache sets. */
static int64_t FN(odd_lines)(int64_t floats) { return ((floats + 15) / 16 | 1) * 16; }

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
    return 1;
}

/* Blocks of at most `most` tiles: whole rows of tiles where there is room for one, else parts of a row. */
static void FN(cut_tiles)(cnnx_conv *p, int64_t most)
{
    const int64_t rows = p->N * p->tile_rows;
    p->block_cols = FN(share)(p->tile_cols, most);
    p->block_rows = p->block_cols < p->tile_cols ? 1 : FN(share)(rows, most / p->tile_cols);
    p->block = p->block_rows * p->block_cols;
    p->blocks = (rows + p->block_rows - 1) / p->block_rows *
                ((p->tile_cols + p->block_cols - 1) / p->block_cols);
    p->image_size = 6 * (4 * p->block_cols + 2) * VL; /* the pixels of a row of tiles, VL channels */
}

/* A block of tiles: rows r0 .. r1-1, counted over the whole batch, and columns c0 .. c1-1. */
typedef struct {
    int64_t r0, r1, c0, c1;
} FN(tiles);

static FN(tiles) FN(tiles_at)(const cnnx_conv *p, int64_t number)
{
    const int64_t across = (p->tile_cols + p->block_cols - 1) / p->block_cols;
    const int64_t r = number / across * p->block_rows, c = number % across * p->block_cols;
    const int64_t rows = p->N * p->tile_rows;
    return (FN(tiles)){r, r + p->block_rows < rows ? r + p->block_rows : rows, c,
                       c + p->block_cols < p->tile_cols ? c + p->block_cols : p->tile_cols};
}

/* The images that tiles are cut from: planes of H x W, of which `channels` follow x in each image. */
typedef struct {
    const T *x;
    int64_t channels, image, H, W, top, left, tile_rows; /* numbers in an image; see cnnx_conv */
} FN(images);

/* Channels c0 .. c0+count-1 of group g of the input. */
static FN(images) FN(inputs)(const cnnx_conv *p, int64_t g, int64_t c0, int64_t count)
{
    const int64_t area = p->H * p->W;
    return (FN(images)){(const T *)p->x + (g * p->C + c0) * area, count,   p->groups * p->C * area,
                        p->H, p->W, p->top, p->left, p->tile_rows};
}

/* The same of the output's gradient, which has no border. */
static FN(images) FN(gradients)(const cnnx_conv *p, int64_t g, int64_t m0, int64_t count)
{
    const int64_t area = p->rows * p->cols;
    return (FN(images)){(const T *)p->y + (g * p->M + m0) * area, count, p->groups * p->M * area,
                        p->rows, p->cols, 0, 0, p->tile_rows};
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

/* Rows h0 .. h1-1 of VL channels, from column `first` on: row[h - h0] + j*VL is column first + j. Columns
 * outside the image are left as they are: zero. */
static void FN(turn_rows)(const FN(images) *s, const T *x, int64_t channels, int64_t h0, int64_t h1,
                          int64_t first, int64_t width, T *const *row)
{
    const int64_t lo = first < 0 ? -first : 0, hi = s->W - first < width ? s->W - first : width;
    T *to[6];
    int64_t rows = 0, begin = h0 > 0 ? h0 : 0;
    for (int64_t h = h0; h < h1; h++)
        if (h >= 0 && h < s->H && lo < hi) to[rows++] = row[h - h0] + lo * VL;
        else memset(row[h - h0], 0, (size_t)(width * VL) * sizeof(T));
    if (hi - lo == s->W) {
        if (rows) FN(turn_pixels)(s, x, channels, begin * s->W, rows * s->W, s->W, to);
        return;
    }
    for (int64_t r = 0; r < rows; r++)
        FN(turn_pixels)(s, x, channels, (begin + r) * s->W + first + lo, hi - lo, hi - lo, to + r);
}

/* The 36 planes of channels c .. c+VL-1 for a block of tiles: B' d B of the 6x6 tiles of the input, or G y G'
 * of the 4x4 tiles of the output's gradient (`grad`). Tile t goes to v[pos*plane + t*step]. */
static ALWAYS_INLINE void
FN(transform_tiles)(const int grad, const FN(images) *s, int64_t c, FN(tiles) b, T *strip, T *v,
                    int64_t plane, int64_t step)
{
    const int size = grad ? 4 : 6;
    const int64_t width = 4 * (b.c1 - b.c0) + size - 4, first = 4 * b.c0 + s->left;
    const int64_t channels = s->channels - c < VL ? s->channels - c : VL;
    memset(strip, 0, (size_t)(size * width * VL) * sizeof(T));
    for (int64_t r = b.r0; r < b.r1; r++) {
        const T *x = s->x + r / s->tile_rows * s->image + c * s->H * s->W;
        const int64_t h = 4 * (r % s->tile_rows); /* its first two rows are the last two of the tiles above */
        const int kept = !grad && h > 0 && r > b.r0 ? 2 : 0;
        T *row[6];
        for (int i = 0; i < size; i++) row[i] = strip + (h + i) % size * width * VL;
        FN(turn_rows)(s, x, channels, h + s->top + kept, h + s->top + size, first, width, row + kept);
        for (int64_t t = 0; t < b.c1 - b.c0; t++, v += step) {
            V half[6][6], in[6], out[6];
            UNROLL for (int k = 0; k < size; k++) {
                UNROLL for (int i = 0; i < size; i++) in[i] = *(const V *)(row[i] + (4 * t + k) * VL);
                if (grad) FN(kernel_1d)(4, in, out);
                else FN(data_1d)(in, out);
                UNROLL for (int i = 0; i < 6; i++) half[i][k] = out[i];
            }
            UNROLL for (int i = 0; i < 6; i++) {
                if (grad) FN(kernel_1d)(4, half[i], out);
                else FN(data_1d)(half[i], out);
                UNROLL for (int k = 0; k < 6; k++) *(V *)(v + (i * 6 + k) * plane) = out[k];
            }
        }
    }
}

static NOINLINE void
FN(transform_data)(const FN(images) *s, int64_t c, FN(tiles) b, T *strip, T *v, int64_t plane, int64_t step)
{
    FN(transform_tiles)(0, s, c, b, strip, v, plane, step);
}

static NOINLINE void
FN(transform_grad)(const FN(images) *s, int64_t c, FN(tiles) b, T *strip, T *v, int64_t plane, int64_t step)
{
    FN(transform_tiles)(1, s, c, b, strip, v, plane, step);
}

/* n consecutive pixels of VL channels, of which `channels` exist, back into their planes. */
static void FN(turn_back)(const T *pixels, int64_t n, int64_t channels, T *y, int64_t area)
{
    for (int64_t q = 0; q < n; q += VL) {
        if (q + VL > n && n >= VL) q = n - VL; /* some once more */
        const int64_t count = n - q < VL ? n - q : VL;
        V a[VL];
        UNROLL for (int l = 0; l < VL; l++) a[l] = *(const V *)(pixels + (l < count ? q + l : q) * VL);
        FN(turn)(a);
        if (count == VL && channels == VL) {
            UNROLL for (int l = 0; l < VL; l++) *(VU *)(y + l * area + q) = a[l];
            continue;
        }
        for (int64_t l = 0; l < channels; l++) memcpy(y + l * area + q, &a[l], (size_t)count * sizeof(T));
    }
}
