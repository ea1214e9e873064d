/* The register tile of packed panels.
 *
 * gemm_tile:  acc[i][j] = sum over k < kc of a[k*MR + i] * b[k*NR + j]
 *   a: (kc, MR) panel, b: (kc, NR) panel, aligned to a vector. MR x NV vectors of accumulators stay in
 *   registers: 4 x 3 of 8 floats for AVX2, 12 of its 16 registers, which covers the 2 x 4 cycles
 *   that two FMA units need in flight.
 *
 * Edges: callers pad panels with zeros and store only the part that exists.
 */

static ALWAYS_INLINE void
FN(gemm_tile)(int64_t kc, const T *restrict a, const T *restrict b, V acc[MR][NV])
{
    V c[MR][NV];
    UNROLL for (int i = 0; i < MR; i++)
        UNROLL for (int j = 0; j < NV; j++) c[i][j] = (V){0};
    for (int64_t k = 0; k < kc; k++, a += MR, b += NR) {
        V bk[NV];
        UNROLL for (int j = 0; j < NV; j++) bk[j] = *(const V *)(b + j * VL);
        UNROLL for (int i = 0; i < MR; i++)
            UNROLL for (int j = 0; j < NV; j++) c[i][j] += a[i] * bk[j];
    }
    UNROLL for (int i = 0; i < MR; i++)
        UNROLL for (int j = 0; j < NV; j++) acc[i][j] = c[i][j];
}

/* c[i*ldc + j] = act(acc[i][j] + start), start being bias[i] or 0 for the first block of the depth and
 * c itself after that; act only where `last`. */
static ALWAYS_INLINE void
FN(store_tile)(V acc[MR][NV], T *c, int64_t ldc, const T *bias, int first, int last, int activation)
{
    /* One question for all vectors: asked for each, they cost a short tile a tenth of its time. */
    if (!first) {
        UNROLL for (int i = 0; i < MR; i++)
            UNROLL for (int j = 0; j < NV; j++) acc[i][j] += *(const VU *)(c + i * ldc + j * VL);
    } else if (bias) {
        UNROLL for (int i = 0; i < MR; i++)
            UNROLL for (int j = 0; j < NV; j++) acc[i][j] += bias[i];
    }
    if (last && activation == CNNX_RELU) {
        UNROLL for (int i = 0; i < MR; i++)
            UNROLL for (int j = 0; j < NV; j++) acc[i][j] = FN(relu)(acc[i][j]);
    } else if (last && activation == CNNX_RELU6) {
        UNROLL for (int i = 0; i < MR; i++)
            UNROLL for (int j = 0; j < NV; j++) acc[i][j] = FN(relu6)(acc[i][j]);
    }
    UNROLL for (int i = 0; i < MR; i++)
        UNROLL for (int j = 0; j < NV; j++) *(VU *)(c + i * ldc + j * VL) = acc[i][j];
    if (last && activation > CNNX_RELU && activation != CNNX_RELU6)
        for (int i = 0; i < MR; i++)
            for (int j = 0; j < NV; j++) {
                T *p = c + i * ldc + j * VL;
                *(VU *)p = FN(fused)(*(const VU *)p, activation);
            }
}

/* One tile straight into c, all of it existing. */
static NOINLINE void
FN(gemm_full)(int64_t kc, const T *a, const T *b, T *c, int64_t ldc, const T *bias, int first,
              int last, int activation)
{
    V acc[MR][NV];
    FN(gemm_tile)(kc, a, b, acc);
    FN(store_tile)(acc, c, ldc, bias, first, last, activation);
}

static inline T FN(sum_lanes)(V v)
{
    T lane[VL];
    *(VU *)lane = v;
    for (int w = VL / 2; w > 0; w /= 2)
        for (int i = 0; i < w; i++) lane[i] += lane[i + w];
    return lane[0];
}
