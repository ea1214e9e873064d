/* Depthwise convolution by square kernels of 3, 5 and 7, stride 1 and 2: four output rows at a time share
 * their loads.
 *
 * A row of the image meets up to K rows of the kernel. Here each vector is loaded once for all of the four
 * output rows that want it: 18 loads for the 36 products of a 3x3 kernel. With sizes and
 * stride known to the compiler, everything is unrolled. The copy it reads is that of direct.inc.h.
 */
static ALWAYS_INLINE void
FN(shared_rows)(const int K, const int S, const int n, const cnnx_conv *p, const T *restrict w, T bias,
                int64_t rows, const T *strip, T *restrict y)
{
    const int64_t ld = p->image_width, plane = p->plane, YW = p->YW;
    const int relu = p->activation == CNNX_RELU;
    for (int64_t j = 0;; j += n * VL) {
        if (j + n * VL > p->cols) j = p->cols > n * VL ? p->cols - n * VL : 0;
        const T *from = strip + j;
        V acc[4][2];
        UNROLL for (int i = 0; i < 4; i++)
            UNROLL for (int v = 0; v < n; v++) acc[i][v] = (V){0} + bias;
        UNROLL for (int r = 0; r < 3 * S + K; r++) {
            const T *row = from + r % S * S * plane + r / S * ld;
            UNROLL for (int x = 0; x < K; x++) {
                V b[2];
                UNROLL for (int v = 0; v < n; v++) {
                    b[v] = *(const VU *)(row + x % S * plane + x / S + v * VL);
                    KEEP(b[v]);
                }
                UNROLL for (int i = 0; i < 4; i++)
                    if (r - i * S >= 0 && r - i * S < K)
                        UNROLL for (int v = 0; v < n; v++) acc[i][v] += w[(r - i * S) * K + x] * b[v];
            }
        }
        if (relu)
            UNROLL for (int i = 0; i < 4; i++)
                UNROLL for (int v = 0; v < n; v++) acc[i][v] = FN(relu)(acc[i][v]);
        T *to = y + j;
        if (p->cols >= n * VL && rows >= 4) {
            UNROLL for (int i = 0; i < 4; i++)
                UNROLL for (int v = 0; v < n; v++) *(VU *)(to + i * YW + v * VL) = acc[i][v];
        } else {
            UNROLL for (int i = 0; i < 4; i++) {
                if (i >= rows) break;
                T row[2 * VL] = {0};
                UNROLL for (int v = 0; v < n; v++) *(VU *)(row + v * VL) = acc[i][v];
                FN(copy)(row, p->cols < n * VL ? p->cols : n * VL, to + i * YW);
            }
        }
        if (j + n * VL >= p->cols) break;
    }
}

typedef void (*FN(shared_task))(const cnnx_conv *, const T *, T, int64_t, const T *, T *);

#define SHARED(K, S, n)                                                                               \
    static NOINLINE void FN(shared_##K##_##S##_##n)(const cnnx_conv *p, const T *w, T bias, int64_t rows, \
                                                    const T *strip, T *y)                              \
    {                                                                                                  \
        FN(shared_rows)(K, S, n, p, w, bias, rows, strip, y);                                          \
    }
SHARED(3, 1, 1) SHARED(5, 1, 1) SHARED(7, 1, 1) SHARED(3, 2, 1) SHARED(5, 2, 1) SHARED(7, 2, 1)
SHARED(3, 1, 2) SHARED(5, 1, 2) SHARED(7, 1, 2) SHARED(3, 2, 2) SHARED(5, 2, 2) SHARED(7, 2, 2)
#undef SHARED

static const FN(shared_task) FN(shared_tiles)[2][3][2] = {
#define ROW(K, S) {FN(shared_##K##_##S##_1), FN(shared_##K##_##S##_2)}
    {ROW(3, 1), ROW(5, 1), ROW(7, 1)},
    {ROW(3, 2), ROW(5, 2), ROW(7, 2)},
#undef ROW
};

/* Whether the problem is one of these; it has been through direct_plan. */
static int FN(is_depthwise)(const cnnx_conv *p)
{
    const int64_t K = p->taps == 9 ? 3 : p->taps == 25 ? 5 : p->taps == 49 ? 7 : 0;
    if (!K || p->C != 1 || p->M != 1 || p->sh != p->sw || p->sh > 2 || p->ty != 1 || p->tx != 1) return 0;
    for (int64_t t = 0; t < p->taps; t++)
        if (p->dh[t] - p->top >= K || p->dw[t] - p->left >= K) return 0;
    return 1;
}

/* Output rows 0 .. rows-1 of one channel, the last four moved back to end with them; packed weights in panels of MR, of which one row exists. */
static void FN(depthwise)(const cnnx_conv *p, const T *packed, T bias, int64_t rows, const T *strip, T *y)
{
    const int K = p->taps == 9 ? 3 : p->taps == 25 ? 5 : 7;
    T w[49];
    for (int64_t t = 0; t < p->taps; t++) w[(p->dh[t] - p->top) * K + p->dw[t] - p->left] = packed[t * MR];
    const int64_t vectors = (p->cols + VL - 1) / VL, n = vectors % 2 ? 1 : 2;
    const FN(shared_task) tile = FN(shared_tiles)[p->sh - 1][K / 2 - 1][n - 1];
    for (int64_t i = 0;; i += 4) {
        if (i + 4 > rows) i = rows > 4 ? rows - 4 : 0;
        tile(p, w, bias, rows - i, strip + i * p->image_width, y + i * p->YW);
        if (i + 4 >= rows) break;
    }
}
