/* Plain matrix products: Dense, forward and backward.
 *
 * Panels of a, for all rows of a task, then one panel of b after the other are packed for the register tile; a
 * transposed operand is transposed on the way, in blocks of vectors. Sums are gathered in the output itself. Where
 * a has only a few rows (a batch of one) b is read once, in the order of its memory, and nothing is packed: such a
 * product is bound by memory.
 */
enum { FN(ROWS) = 32 * MR, FN(FEW) = MR / 2, FN(AT_ONCE) = 4 };

static void FN(matmul_plan)(cnnx_matmul *p, int threads)
{
    const int64_t m_tiles = (p->M + MR - 1) / MR, n_tiles = (p->N + NR - 1) / NR;
    p->few = p->M <= FN(FEW) && (p->b_col == 1 || (p->b_row == 1 && p->a_col == 1));
    double best = 0;
    /* The cut with the shortest longest thread; packing is taken as a third of a tile for a panel of a, one for b. */
    for (int64_t m = m_tiles < FN(ROWS) / MR ? m_tiles : FN(ROWS) / MR; m > 0; m /= 2) {
        for (int64_t parts = 1; parts <= n_tiles && parts <= 8 * threads; parts++) {
            const int64_t n = (n_tiles + parts - 1) / parts;
            const int64_t tasks = (m_tiles + m - 1) / m * ((n_tiles + n - 1) / n);
            const double longest = (double)((tasks + threads - 1) / threads) * ((double)(m * n) + (double)m / 3 + (double)n);
            if (best > 0 && longest >= best) continue;
            best = longest;
            p->m_block = m * MR;
            p->n_block = n * NR;
        }
        if (threads == 1) break;
    }
    p->m_blocks = (p->M + p->m_block - 1) / p->m_block;
    p->n_blocks = (p->N + p->n_block - 1) / p->n_block;
    p->tasks = p->m_blocks * p->n_blocks;
    p->scratch = (size_t)(p->few ? p->M * p->n_block : KC * NR + MR * NR + KC * p->m_block) * sizeof(T);
}

/* Panels of NR: out[k*NR + j] = x[j*step + k*along] for j < n, zero from there on. */
static void FN(pack_columns)(const T *restrict x, int64_t step, int64_t along, int64_t n, int64_t kc, T *restrict out)
{
    if (n < NR) memset(out, 0, (size_t)(kc * NR) * sizeof(T));
    if (step == 1 && n == NR)
        for (int64_t k = 0; k < kc; k++)
            UNROLL for (int j = 0; j < NR; j += VL) *(V *)(out + k * NR + j) = *(const VU *)(x + k * along + j);
    else if (step == 1)
        for (int64_t k = 0; k < kc; k++) FN(copy)(x + k * along, n, out + k * NR);
    else if (along == 1)
        for (int64_t j = 0; j < n; j += VL)
            FN(transpose)(x + j * step, step, n - j < VL ? n - j : VL, kc, out + j, NR);
    else
        for (int64_t k = 0; k < kc; k++)
            for (int64_t j = 0; j < n; j++) out[k * NR + j] = x[j * step + k * along];
}

/* out[i][j] += a[i][k .. k+depth-1] @ b[k .. k+depth-1][j] for rows i of a and j < n. */
static ALWAYS_INLINE void FN(add_rows)(const int rows, const int depth, const cnnx_matmul *p, int64_t i, int64_t k,
                                       int64_t n, const T *b, T *out)
{
    T a[2][FN(AT_ONCE)];
    int64_t j = 0;
    for (int r = 0; r < rows; r++)
        for (int d = 0; d < depth; d++) a[r][d] = ((const T *)p->a)[(i + r) * p->a_row + (k + d) * p->a_col];
    for (; j + VL <= n; j += VL) {
        V v[2];
        UNROLL for (int r = 0; r < rows; r++) v[r] = *(const VU *)(out + r * n + j);
        UNROLL for (int d = 0; d < depth; d++) {
            V x = *(const VU *)(b + d * p->b_row + j);
            KEEP(x);
            UNROLL for (int r = 0; r < rows; r++) v[r] += a[r][d] * x;
        }
        UNROLL for (int r = 0; r < rows; r++) *(VU *)(out + r * n + j) = v[r];
    }
    for (; j < n; j++)
        for (int d = 0; d < depth; d++)
            for (int r = 0; r < rows; r++) out[r * n + j] += a[r][d] * b[d * p->b_row + j];
}

/* out[r] = a . row r of b for rows r, which are `ld` apart: sums in the lanes of a vector, added in a fixed order. */
static ALWAYS_INLINE void FN(dot_rows)(const int rows, const T *a, const T *b, int64_t ld, int64_t n, T *out)
{
    V sum[FN(AT_ONCE)];
    int64_t k = 0;
    UNROLL for (int r = 0; r < rows; r++) sum[r] = (V){0};
    for (; k + VL <= n; k += VL)
        UNROLL for (int r = 0; r < rows; r++) sum[r] += *(const VU *)(a + k) * *(const VU *)(b + r * ld + k);
    UNROLL for (int r = 0; r < rows; r++) out[r] = FN(sum_lanes)(sum[r]);
    for (; k < n; k++)
        for (int r = 0; r < rows; r++) out[r] += a[k] * b[r * ld + k];
}

/* Columns n0 .. n1-1 of a few rows. They are summed up in `out`, scratch: in the output two threads would write to
 * one cache line, where their columns meet, for every few numbers of b: 4,1280 @ 1280,1000 took 220 us so. */
static void FN(matmul_few)(const cnnx_matmul *p, int64_t n0, int64_t n1, T *out)
{
    const T *b = (const T *)p->b + n0, *bias = p->bias;
    const int64_t n = n1 - n0;
    for (int64_t i = 0; i < p->M; i++)
        for (int64_t j = 0; j < n; j++) out[i * n + j] = bias ? bias[n0 + j] : 0;
    int64_t k = 0, j = 0;
    if (p->b_col != 1) {
        for (int64_t i = 0; i < p->M; i++) {
            const T *a = (const T *)p->a + i * p->a_row;
            T dots[FN(AT_ONCE)];
            for (j = 0; j < n; j += FN(AT_ONCE)) {
                const int64_t rows = n - j < FN(AT_ONCE) ? n - j : FN(AT_ONCE);
                const T *rows_of_b = (const T *)p->b + (n0 + j) * p->b_col;
                if (rows == FN(AT_ONCE))
                    FN(dot_rows)(FN(AT_ONCE), a, rows_of_b, p->b_col, p->K, dots);
                else
                    for (int64_t r = 0; r < rows; r++) FN(dot_rows)(1, a, rows_of_b + r * p->b_col, 0, p->K, dots + r);
                for (int64_t r = 0; r < rows; r++) out[i * n + j + r] += dots[r];
            }
        }
        k = p->K;
    }
    for (; k + FN(AT_ONCE) <= p->K; k += FN(AT_ONCE)) {
        const T *from = b + k * p->b_row;
        for (int64_t i = 0; i + 1 < p->M; i += 2) FN(add_rows)(2, FN(AT_ONCE), p, i, k, n, from, out + i * n);
        if (p->M % 2) FN(add_rows)(1, FN(AT_ONCE), p, p->M - 1, k, n, from, out + (p->M - 1) * n);
    }
    for (; k < p->K; k++)
        for (int64_t i = 0; i < p->M; i++) FN(add_rows)(1, 1, p, i, k, n, b + k * p->b_row, out + i * n);
    for (int64_t i = 0; i < p->M; i++) {
        if (p->activation) FN(activate_row)(out + i * n, n, p->activation);
        FN(copy)(out + i * n, n, (T *)p->out + i * p->N + n0);
    }
}

static void FN(matmul)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_matmul *p = problem;
    const int64_t m0 = task % p->m_blocks * p->m_block, n0 = task / p->m_blocks * p->n_block;
    const int64_t m1 = m0 + p->m_block < p->M ? m0 + p->m_block : p->M;
    const int64_t n1 = n0 + p->n_block < p->N ? n0 + p->n_block : p->N;
    T *panel = scratch, *tile = panel + KC * NR, *rows = tile + MR * NR;
    const T *a = p->a, *b = p->b, *bias = p->bias;
    FN(ahead) ahead = {0}; /* nothing: prefetchers follow these panels */
    if (p->few) {
        FN(matmul_few)(p, n0, n1, scratch);
        return;
    }
    if (bias)
        for (int64_t m = m0; m < m1; m++) FN(copy)(bias + n0, n1 - n0, (T *)p->out + m * p->N + n0);
    for (int64_t k0 = 0; k0 < p->K; k0 += KC) {
        if (k0 && cnnx_stop()) return;
        const int64_t kc = p->K - k0 < KC ? p->K - k0 : KC;
        const int first = k0 == 0 && !bias, last = k0 + kc == p->K;
        for (int64_t m = m0; m < m1; m += MR)
            FN(pack_rows)(a + m * p->a_row + k0 * p->a_col, p->a_row, p->a_col, m1 - m < MR ? m1 - m : MR, kc,
                          rows + (m - m0) * kc);
        for (int64_t n = n0; n < n1; n += NR) {
            const int64_t nr = n1 - n < NR ? n1 - n : NR;
            FN(pack_columns)(b + n * p->b_col + k0 * p->b_row, p->b_col, p->b_row, nr, kc, panel);
            for (int64_t m = m0; m < m1; m += MR) {
                const int64_t mr = m1 - m < MR ? m1 - m : MR;
                T *out = (T *)p->out + m * p->N + n;
                if (mr == MR && nr == NR) {
                    FN(gemm_full)(kc, rows + (m - m0) * kc, panel, out, p->N, NULL, first, last, p->activation,
                                  &ahead);
                    continue;
                }
                for (int64_t i = 0; i < mr && !first; i++) FN(copy)(out + i * p->N, nr, tile + i * NR);
                FN(gemm_full)(kc, rows + (m - m0) * kc, panel, tile, NR, NULL, first, last, p->activation,
                                  &ahead);
                for (int64_t i = 0; i < mr; i++) FN(copy)(tile + i * NR, nr, out + i * p->N);
            }
        }
    }
}
