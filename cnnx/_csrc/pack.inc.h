/* Packers: they bring weights, patches and plain matrices into the panels that the tiles read. */

/* Lists of lanes for __builtin_shufflevector. */
#if defined(SHUFFLE)
#if VECTOR_BYTES / SIZE == 2
#define LOW 0, 2
#define HIGH 1, 3
#define EVEN 0, 2
#define ODD 1, 3
#define LEFT 1, 2
#define RIGHT 1, 2
#elif VECTOR_BYTES / SIZE == 4
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#define EVEN 0, 2, 4, 6
#define ODD 1, 3, 5, 7
#define LEFT 1, 2, 3, 4
#define RIGHT 3, 4, 5, 6
#elif VECTOR_BYTES / SIZE == 8
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ODD 1, 3, 5, 7, 9, 11, 13, 15
#define LEFT 1, 2, 3, 4, 5, 6, 7, 8
#define RIGHT 7, 8, 9, 10, 11, 12, 13, 14
#else
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define LEFT 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16
#define RIGHT 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
#endif
#endif

/* The same within pieces of 16 bytes, and for such pieces. */
#if defined(SHUFFLE)
#if VECTOR_BYTES == 16 && SIZE == 4
#define LOW_WITHIN 0, 4, 1, 5
#define HIGH_WITHIN 2, 6, 3, 7
#define EVEN_PIECES LOW /* no pair */
#define ODD_PIECES HIGH
#elif VECTOR_BYTES == 16 && SIZE == 8
#define LOW_WITHIN 0, 2
#define HIGH_WITHIN 1, 3
#define EVEN_PIECES LOW /* no pair */
#define ODD_PIECES HIGH
#elif VECTOR_BYTES == 32 && SIZE == 4
#define LOW_WITHIN 0, 8, 1, 9, 4, 12, 5, 13
#define HIGH_WITHIN 2, 10, 3, 11, 6, 14, 7, 15
#define EVEN_PIECES 0, 1, 2, 3, 8, 9, 10, 11
#define ODD_PIECES 4, 5, 6, 7, 12, 13, 14, 15
#elif VECTOR_BYTES == 32 && SIZE == 8
#define LOW_WITHIN 0, 4, 2, 6
#define HIGH_WITHIN 1, 5, 3, 7
#define EVEN_PIECES 0, 1, 4, 5
#define ODD_PIECES 2, 3, 6, 7
#elif VECTOR_BYTES == 64 && SIZE == 4
#define LOW_WITHIN 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29
#define HIGH_WITHIN 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31
#define EVEN_PIECES 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27
#define ODD_PIECES 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31
#elif VECTOR_BYTES == 64 && SIZE == 8
#define LOW_WITHIN 0, 8, 2, 10, 4, 12, 6, 14
#define HIGH_WITHIN 1, 9, 3, 11, 5, 13, 7, 15
#define EVEN_PIECES 0, 1, 4, 5, 8, 9, 12, 13
#define ODD_PIECES 2, 3, 6, 7, 10, 11, 14, 15
#endif
#endif

/* MR rows of VL numbers that follow each other at `ld` become VL columns of MR: to[k*MR + i] = from[i*ld + k].
 * log2(MR) rounds of a perfect shuffle: row i is dealt together with row i + MR/2. */
static ALWAYS_INLINE void FN(transpose_panel)(const T *restrict from, int64_t ld, T *restrict to)
{
#if defined(SHUFFLE)
    V a[MR], b[MR];
    UNROLL for (int i = 0; i < MR; i++) a[i] = *(const VU *)(from + i * ld);
    UNROLL for (int round = 1; round < MR; round *= 2) {
        UNROLL for (int i = 0; i < MR / 2; i++) {
            b[2 * i] = __builtin_shufflevector(a[i], a[i + MR / 2], LOW);
            b[2 * i + 1] = __builtin_shufflevector(a[i], a[i + MR / 2], HIGH);
        }
        UNROLL for (int i = 0; i < MR; i++) a[i] = b[i];
    }
    UNROLL for (int i = 0; i < MR; i++) *(VU *)(to + i * VL) = a[i];
#else
    for (int k = 0; k < VL; k++)
        for (int i = 0; i < MR; i++) to[k * MR + i] = from[i * ld + k];
#endif
}

/* Panels of MR numbers: out[k*MR + i] = x[i*step + k*along] for i < n, zero from there on. */
static void FN(pack_rows)(const T *restrict x, int64_t step, int64_t along, int64_t n, int64_t kc, T *restrict out)
{
    int64_t k = 0;
    if (along == 1 && n == MR)
        for (; k + VL <= kc; k += VL) FN(transpose_panel)(x + k, step, out + k * MR);
    for (; k < kc; k++) {
        for (int64_t i = 0; i < n; i++) out[k * MR + i] = x[i * step + k * along];
        for (int64_t i = n; i < MR; i++) out[k * MR + i] = 0;
    }
}

/* Weights into panels of MR output channels: packed[g][panel][k][i], contract in kernels.h. */
static void FN(pack_weights)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_conv *p = problem;
    (void)scratch;
    const int64_t g = task / p->panels, panel = task % p->panels;
    const int64_t m0 = panel * MR, mr = p->M - m0 < MR ? p->M - m0 : MR;
    const T *w = (const T *)p->weight + g * p->w_group + m0 * p->w_out;
    T *out = (T *)p->packed + task * p->depth * MR;
    int dense = !p->halves && p->w_in == p->taps; /* the forward's weights lie in the order of the depth */
    for (int64_t t = 0; t < p->taps; t++) dense &= p->w_tap[t] == t;
    if (dense) {
        FN(pack_rows)(w, p->w_out, 1, mr, p->depth, out);
        return;
    }
    for (int half = 0; half <= p->halves; half++) {
        const int64_t begin = half ? p->split : 0, end = p->halves && !half ? p->split : p->taps;
        for (int64_t c = 0; c < p->C; c++)
            for (int64_t t = begin; t < end; t++, out += MR) {
                const T *from = w + c * p->w_in + p->w_tap[t];
                if (p->w_out == 1 && mr == MR) { /* the input gradient of 1x1 */
                    PREFETCH(from + 16 * p->w_in);
                    memcpy(out, from, MR * sizeof(T));
                    continue;
                }
                for (int64_t i = 0; i < mr; i++) out[i] = from[i * p->w_out];
                for (int64_t i = mr; i < MR; i++) out[i] = 0;
            }
    }
}

/* How far the taps reach: top, left into the problem, the last row and column into bottom, right. */
static void FN(reach)(cnnx_conv *p, int64_t *bottom, int64_t *right)
{
    p->top = *bottom = p->dh[0];
    p->left = *right = p->dw[0];
    for (int64_t t = 1; t < p->taps; t++) {
        if (p->dh[t] < p->top) p->top = p->dh[t];
        if (p->dh[t] > *bottom) *bottom = p->dh[t];
        if (p->dw[t] < p->left) p->left = p->dw[t];
        if (p->dw[t] > *right) *right = p->dw[t];
    }
}

/* The largest block not above `most` that cuts n without a small rest. */
static int64_t FN(share)(int64_t n, int64_t most)
{
    if (most < 1) most = 1;
    const int64_t blocks = n > most ? (n + most - 1) / most : 1;
    return (n + blocks - 1) / blocks;
}

/* Pixels of one output row: flattened pixels q .. q+len-1 are (n, i, j .. j+len-1), of which the first `real` exist. */
typedef struct {
    int64_t n, i, j, len, real;
} FN(run);

static inline FN(run) FN(run_at)(const cnnx_conv *p, int64_t q, int64_t end)
{
    FN(run) r;
    const int64_t pixel = q % p->area;
    r.n = q / p->area;
    r.i = pixel / p->line;
    r.j = pixel % p->line;
    r.len = p->line - r.j < end - q ? p->line - r.j : end - q;
    if (r.len > p->area - pixel) r.len = p->area - pixel; /* past the last row */
    r.real = p->cols - r.j < r.len ? p->cols - r.j : r.len;
    if (r.real < 0 || r.i >= p->rows) r.real = 0;
    return r;
}

/* Patches, implicit im2col: out[(k - k0)*ld + (q - q0)] = x at tap t of channel c, k = c*taps + t, for
 * q0 <= q < q1 and k0 <= k < k1; columns up to `width` are zero. Where a tap falls outside the
 * image is worked out once for a row of pixels and serves every channel. */
static void FN(pack_patches)(const cnnx_conv *p, int64_t g, int64_t q0, int64_t q1, int64_t width,
                             int64_t k0, int64_t k1, T *restrict out, int64_t ld)
{
    const int64_t plane = p->H * p->W, taps = p->taps;
    for (int64_t q = q0; q < q1;) {
        const FN(run) r = FN(run_at)(p, q, q1);
        const T *x = (const T *)p->x + (r.n * p->groups + g) * p->C * plane;
        /* From the tap of k0 on, round and round: a large kernel has more of them than a block of the depth. */
        for (int64_t s = 0, t = k0 % taps; s < taps && s < k1 - k0; s++, t = t + 1 == taps ? 0 : t + 1) {
            const int64_t h = r.i * p->sh + p->dh[t], w = r.j * p->sw + p->dw[t];
            int64_t lo = 0, hi = 0; /* pixels lo .. hi-1 of the run lie inside the image */
            if (h >= 0 && h < p->H) {
                lo = w < 0 ? (-w + p->sw - 1) / p->sw : 0;
                hi = w < p->W ? (p->W - w + p->sw - 1) / p->sw : 0;
                if (hi > r.len) hi = r.len;
                if (lo > r.len) lo = r.len;
                if (hi < lo) hi = lo;
            } else {
                lo = hi = r.len;
            }
            const int64_t c0 = (k0 - t + taps - 1) / taps; /* first c with c*taps + t >= k0 */
            T *to = out + (c0 * taps + t - k0) * ld + (q - q0);
            const T *from = x + c0 * plane + h * p->W + w;
            for (int64_t c = c0; c * taps + t < k1; c++, to += taps * ld, from += plane) {
                if (p->sw == 1 && lo == 0 && hi == NR && r.len == NR) {
                    UNROLL for (int j = 0; j < NV; j++)
                        *(VU *)(to + j * VL) = *(const VU *)(from + j * VL);
                    continue;
                }
                for (int64_t j = 0; j < lo; j++) to[j] = 0;
                if (p->sw == 1)
                    for (int64_t j = lo; j < hi; j++) to[j] = from[j];
                else
                    for (int64_t j = lo; j < hi; j++) to[j] = from[j * p->sw];
                for (int64_t j = hi; j < r.len; j++) to[j] = 0;
            }
        }
        q += r.len;
    }
    for (int64_t k = 0; k < k1 - k0 && q1 - q0 < width; k++)
        for (int64_t j = q1 - q0; j < width; j++) out[k * ld + j] = 0;
}

/* Copies of short rows: cheaper than a call of memcpy. */
static ALWAYS_INLINE void FN(copy)(const T *restrict from, int64_t n, T *restrict to)
{
    int64_t j = 0;
    for (; j + VL <= n; j += VL) {
        *(VU *)(to + j) = *(const VU *)(from + j);
        PREVENT_MEMCPY;
    }
    if (VL > 8 && n & 8) {
        memcpy(to + j, from + j, 8 * sizeof(T));
        j += 8;
    }
    if (VL > 4 && n & 4) {
        memcpy(to + j, from + j, 4 * sizeof(T));
        j += 4;
    }
    for (; j < n; j++) {
        to[j] = from[j];
        PREVENT_MEMCPY;
    }
}

static ALWAYS_INLINE void FN(fill)(int64_t n, T *to, T value)
{
    int64_t j = 0;
    for (; j + VL <= n; j += VL) {
        *(VU *)(to + j) = (VU){0} + value;
        PREVENT_MEMCPY;
    }
    for (; j < n; j++) {
        to[j] = value;
        PREVENT_MEMCPY;
    }
}

static inline void FN(copy_every)(const T *restrict from, int64_t step, int64_t n, T *restrict to)
{
    if (step == 1)
        FN(copy)(from, n, to);
    else if (step == 2) /* a constant the compiler can make shuffles of */
        for (int64_t j = 0; j < n; j++) to[j] = from[2 * j];
    else
        for (int64_t j = 0; j < n; j++) to[j] = from[step * j];
}

/* The numbers of even place of two vectors one after the other. */
static ALWAYS_INLINE V FN(even)(V a, V b)
{
#if defined(SHUFFLE)
    return __builtin_shufflevector(a, b, EVEN);
#else
    T both[2 * VL], even[VL];
    *(VU *)both = a;
    *(VU *)(both + VL) = b;
    for (int l = 0; l < VL; l++) even[l] = both[2 * l];
    return *(VU *)even;
#endif
}

/* The numbers of even and of odd place, for n of each, a multiple of VL. */
static ALWAYS_INLINE void FN(deal)(const T *restrict from, int64_t n, T *restrict even, T *restrict odd)
{
    for (int64_t j = 0; j < n; j += VL) {
#if defined(SHUFFLE)
        const V a = *(const VU *)(from + 2 * j), b = *(const VU *)(from + 2 * j + VL);
        *(VU *)(even + j) = __builtin_shufflevector(a, b, EVEN);
        *(VU *)(odd + j) = __builtin_shufflevector(a, b, ODD);
#else
        for (int64_t l = j; l < j + VL; l++) {
            even[l] = from[2 * l];
            odd[l] = from[2 * l + 1];
        }
#endif
    }
}

/* Even and odd numbers back together. */
static ALWAYS_INLINE void FN(interleave)(V even, V odd, T *to)
{
#if defined(SHUFFLE)
    *(VU *)to = __builtin_shufflevector(even, odd, LOW);
    *(VU *)(to + VL) = __builtin_shufflevector(even, odd, HIGH);
#else
    T a[VL], b[VL];
    *(VU *)a = even;
    *(VU *)b = odd;
    for (int l = 0; l < VL; l++) {
        to[2 * l] = a[l];
        to[2 * l + 1] = b[l];
    }
#endif
}

/* A square of VL rows becomes one of VL columns, in place.
 *
 * log2(VL) rounds that deal rows out in pairs, first their numbers within 16 bytes and then those pieces: 16 x 16 floats
 * take 27 ns, and 47 by shuffles that cross the pieces each time. */
static ALWAYS_INLINE void FN(transpose_square)(V a[VL])
{
#if defined(SHUFFLE)
    V b[VL];
    const int few = 16 / SIZE, pieces = VL / few; /* numbers in a piece */
    UNROLL for (int r = 0; r < VL; r++) KEEP(a[r]); /* else both halves of a pair load it */
    UNROLL for (int round = 1; round < few; round *= 2) {
        UNROLL for (int q = 0; q < VL; q += few)
            UNROLL for (int r = 0; r < few / 2; r++) {
                b[q + 2 * r] = __builtin_shufflevector(a[q + r], a[q + r + few / 2], LOW_WITHIN);
                b[q + 2 * r + 1] = __builtin_shufflevector(a[q + r], a[q + r + few / 2], HIGH_WITHIN);
            }
        UNROLL for (int r = 0; r < VL; r++) a[r] = b[r];
    }
    UNROLL for (int round = 1; round < pieces; round *= 2) {
        UNROLL for (int q = 0; q < few; q++)
            UNROLL for (int r = 0; r < pieces / 2; r++) {
                const int i = q + 2 * r * few;
                b[q + r * few] = __builtin_shufflevector(a[i], a[i + few], EVEN_PIECES);
                b[q + (r + pieces / 2) * few] = __builtin_shufflevector(a[i], a[i + few], ODD_PIECES);
            }
        UNROLL for (int r = 0; r < VL; r++) a[r] = b[r];
    }
#else
    T b[VL][VL];
    for (int r = 0; r < VL; r++)
        for (int l = 0; l < VL; l++) b[l][r] = ((const T *)&a[r])[l];
    for (int r = 0; r < VL; r++) a[r] = *(const VU *)b[r];
#endif
}

/* Transposition: to[q*ldo + r] = from[r*ld + q] for q < n and r < rows, zero for rows <= r < VL. */
static void FN(transpose)(const T *restrict from, int64_t ld, int64_t rows, int64_t n, T *restrict to,
                          int64_t ldo)
{
    int64_t q = 0;
    for (; q + VL <= n; q += VL, from += VL, to += VL * ldo) {
        V a[VL];
        UNROLL for (int r = 0; r < VL; r++) {
            a[r] = (V){0};
            if (r < rows) a[r] = *(const VU *)(from + r * ld);
        }
        FN(transpose_square)(a);
        UNROLL for (int r = 0; r < VL; r++) *(VU *)(to + r * ldo) = a[r];
    }
    for (; q < n; q++, from++, to += ldo)
        for (int64_t r = 0; r < VL; r++) to[r] = r < rows ? from[r * ld] : 0;
}
