/* The register tile.
 *
 * gemm_tile:  for nv of its NV vectors, acc[i][j] = sum over k < kc of a[k*MR + i] * b[k][j]
 *   a: (kc, MR) panel. Vector v of row k of b lies at b[v] + k*NR, which is a packed (kc, NR) panel, or at
 *   b[v] + offset[k]. MR x NV vectors of accumulators stay in registers: 4 x 3 of 8 floats for AVX2, 12 of its
 *   16 registers, which covers the 2 x 4 cycles that two FMA units need in flight.
 *
 * Edges: callers pad panels with zeros and store only the part that exists.
 */

typedef struct { /* a block of memory: rows of so many bytes, a step of bytes apart */
    const char *at;
    int64_t bytes, rows, step;
} FN(block);

/* What will be read next, asked for a few cache lines at each stretch of each tile: so the memory's latency hides
 * behind arithmetic. All at once they would keep the tiles' own loads waiting. */
typedef struct {
    FN(block) *block, *end;
    int64_t byte, lines; /* how far in the row; lines at a stretch */
} FN(ahead);

static ALWAYS_INLINE void FN(ask)(FN(ahead) *a)
{
    for (int64_t l = 0; l < a->lines && a->block < a->end; l++) {
        PREFETCH_FAR(a->block->at + a->byte);
        a->byte += 64;
        if (a->byte < a->block->bytes) continue;
        a->byte = 0;
        a->block->at += a->block->step;
        if (--a->block->rows == 0) a->block++;
    }
}

#define GEMM_STRETCH 16 /* steps of the depth between two looks ahead */

static ALWAYS_INLINE void
FN(gemm_tile)(const int packed, const int nv, int64_t kc, const T *restrict a, const T *const *b, const int64_t *offset,
              V acc[MR][NV], FN(ahead) *ahead)
{
    V c[MR][NV];
    const T *from[NV];
    UNROLL for (int j = 0; j < nv; j++) from[j] = b[j];
    UNROLL for (int i = 0; i < MR; i++)
        UNROLL for (int j = 0; j < nv; j++) c[i][j] = (V){0};
    for (int64_t k = 0; k < kc;) {
        const int64_t end = kc - k < GEMM_STRETCH ? kc : k + GEMM_STRETCH;
        FN(ask)(ahead);
        for (; k < end; k++, a += MR) {
            const int64_t at = packed ? k * NR : offset[k];
            V bk[NV];
            UNROLL for (int j = 0; j < nv; j++) bk[j] = *(const VU *)(from[j] + at);
            UNROLL for (int i = 0; i < MR; i++)
                UNROLL for (int j = 0; j < nv; j++) c[i][j] += a[i] * bk[j];
        }
    }
    UNROLL for (int i = 0; i < MR; i++)
        UNROLL for (int j = 0; j < nv; j++) acc[i][j] = c[i][j];
}

/* Vector v of row i, at c[v] + i*ldc, = act(acc[i][v] + start), start being bias[i] or 0 for the first block of the
 * depth and what lies there after that; act only where `last`. */
static ALWAYS_INLINE void
FN(store_tile)(V acc[MR][NV], T *const *c, int64_t ldc, const T *bias, int first, int last, int activation)
{
    /* One question for all vectors: asked for each, they cost a short tile a tenth of its time. */
    if (!first) {
        UNROLL for (int i = 0; i < MR; i++)
            UNROLL for (int j = 0; j < NV; j++) acc[i][j] += *(const VU *)(c[j] + i * ldc);
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
        UNROLL for (int j = 0; j < NV; j++) *(VU *)(c[j] + i * ldc) = acc[i][j];
    if (last && activation > CNNX_RELU && activation != CNNX_RELU6)
        for (int i = 0; i < MR; i++)
            for (int j = 0; j < NV; j++) {
                T *p = c[j] + i * ldc;
                *(VU *)p = FN(fused)(*(const VU *)p, activation);
            }
}

/* One tile of packed panels straight into c, all of it existing. */
static NOINLINE void
FN(gemm_full)(int64_t kc, const T *a, const T *b, T *c, int64_t ldc, const T *bias, int first,
              int last, int activation, FN(ahead) *ahead)
{
    V acc[MR][NV];
    const T *from[NV];
    T *to[NV];
    UNROLL for (int j = 0; j < NV; j++) {
        from[j] = b + j * VL;
        to[j] = c + j * VL;
    }
    FN(gemm_tile)(1, NV, kc, a, from, NULL, acc, ahead);
    FN(store_tile)(acc, to, ldc, bias, first, last, activation);
}

/* Only the first vector of each row, into rows of NR numbers: few pixels, as in the last layers of a small net. */
static NOINLINE void
FN(gemm_narrow)(int64_t kc, const T *a, const T *b, T *c, int first, FN(ahead) *ahead)
{
    V acc[MR][NV];
    FN(gemm_tile)(1, 1, kc, a, &b, NULL, acc, ahead);
    UNROLL for (int i = 0; i < MR; i++) *(VU *)(c + i * NR) = first ? acc[i][0] : acc[i][0] + *(VU *)(c + i * NR);
}

/* The same from vectors that lie anywhere to vectors anywhere. */
static NOINLINE void
FN(gemm_vectors)(int64_t kc, const T *a, const T *const *b, const int64_t *offset, T *const *c, int64_t ldc,
                 const T *bias, int first, int last, int activation, FN(ahead) *ahead)
{
    V acc[MR][NV];
    FN(gemm_tile)(0, NV, kc, a, b, offset, acc, ahead);
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
