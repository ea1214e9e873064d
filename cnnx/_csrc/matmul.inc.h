/* Plain matrix products: Dense, forward and backward.
 *
 * Where both operands run along the reduction (x @ w.T of two C-ordered arrays), inner products read
 * them in place. Otherwise panels of b, then of a, are packed for the outer-product tile.
 */

static void FN(matmul_plan)(cnnx_matmul *p, int threads)
{
    p->inner = p->a_col == 1 && p->b_row == 1 && p->K > 1;
    /* 64 rows of panels stay in the second level while a panel of b is in the first. */
    const int64_t mt = p->inner ? DOT_M : MR, nt = p->inner ? DOT_N : NR;
    int64_t n_block = (p->inner ? 32 : 8) * nt, m_block = 64 * mt;
    const int64_t wanted = 4 * threads;
#define BLOCKS(n, b) (((n) + (b) - 1) / (b))
    while (n_block > nt && BLOCKS(p->M, m_block) * BLOCKS(p->N, n_block) < wanted) n_block -= nt;
    while (threads > 1 && m_block > 4 * mt &&
           BLOCKS(p->M, m_block) * BLOCKS(p->N, n_block) < threads)
        m_block /= 2;
    p->m_block = m_block;
    p->n_block = n_block;
    p->m_blocks = BLOCKS(p->M, m_block);
    p->n_blocks = BLOCKS(p->N, n_block);
#undef BLOCKS
    p->tasks = p->m_blocks * p->n_blocks;
    p->scratch = ((size_t)KC * (size_t)(NR + m_block) + (size_t)MR * NR) * sizeof(T);
}

/* out[m .. m+mr-1, n .. n+nr-1] from a tile buffer with rows of `ld`. */
static void FN(place)(const cnnx_matmul *p, int64_t m, int64_t mr, int64_t n, int64_t nr,
                      const T *tile, int64_t ld, int first, int last)
{
    const T *bias = p->bias;
    for (int64_t i = 0; i < mr; i++)
        for (int64_t j = 0; j < nr; j++) {
            T *to = (T *)p->out + (m + i) * p->N + n + j;
            T v = tile[i * ld + j];
            if (!first) v += *to;
            else if (bias) v += bias[n + j];
            *to = last ? FN(activate)(v, p->activation) : v;
        }
}

static void FN(matmul_inner)(const cnnx_matmul *p, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                             T *tile)
{
    const T *a = p->a, *b = p->b;
    for (int64_t n = n0; n < n1; n += DOT_N)
        for (int64_t m = m0; m < m1; m += DOT_M) {
            const int64_t mr = m1 - m < DOT_M ? m1 - m : DOT_M;
            const int64_t nr = n1 - n < DOT_N ? n1 - n : DOT_N;
            /* At the edge the last rows are read again (stride 0 would do too): nothing lies past them. */
            for (int64_t k0 = 0; k0 < p->K; k0 += 4 * KC) {
                const int64_t kc = p->K - k0 < 4 * KC ? p->K - k0 : 4 * KC;
                if (mr == DOT_M && nr == DOT_N)
                    FN(dot_tile)(kc, a + m * p->a_row + k0, p->a_row, b + n * p->b_col + k0, p->b_col,
                                 tile);
                else
                    for (int64_t i = 0; i < mr; i++)
                        for (int64_t j = 0; j < nr; j++) {
                            T one[DOT_M * DOT_N];
                            FN(dot_tile)(kc, a + (m + i) * p->a_row + k0, 0,
                                         b + (n + j) * p->b_col + k0, 0, one);
                            tile[i * DOT_N + j] = one[0];
                        }
                FN(place)(p, m, mr, n, nr, tile, DOT_N, k0 == 0, k0 + kc == p->K);
            }
        }
}

static void FN(matmul)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_matmul *p = problem;
    const int64_t m0 = task % p->m_blocks * p->m_block, n0 = task / p->m_blocks * p->n_block;
    const int64_t m1 = m0 + p->m_block < p->M ? m0 + p->m_block : p->M;
    const int64_t n1 = n0 + p->n_block < p->N ? n0 + p->n_block : p->N;
    T *panel = scratch, *tile = panel + KC * NR, *rows = tile + MR * NR;
    const T *a = p->a, *b = p->b;
    if (p->inner) {
        FN(matmul_inner)(p, m0, m1, n0, n1, tile);
        return;
    }
    for (int64_t k0 = 0; k0 < p->K; k0 += KC) {
        const int64_t kc = p->K - k0 < KC ? p->K - k0 : KC;
        const int first = k0 == 0, last = k0 + kc == p->K;
        for (int64_t m = m0; m < m1; m += MR)
            FN(pack_panel)(a + m * p->a_row + k0 * p->a_col, p->a_row, p->a_col,
                           m1 - m < MR ? m1 - m : MR, kc, MR, rows + (m - m0) * kc);
        for (int64_t n = n0; n < n1; n += NR) {
            const int64_t nr = n1 - n < NR ? n1 - n : NR;
            FN(pack_panel)(b + n * p->b_col + k0 * p->b_row, p->b_col, p->b_row, nr, kc, NR, panel);
            for (int64_t m = m0; m < m1; m += MR) {
                const int64_t mr = m1 - m < MR ? m1 - m : MR;
                const T *ap = rows + (m - m0) * kc;
                if (mr == MR && nr == NR && !p->bias) {
                    FN(gemm_full)(kc, ap, panel, (T *)p->out + m * p->N + n, p->N, NULL, first, last,
                                  p->activation);
                } else {
                    FN(gemm_edge)(kc, ap, panel, tile);
                    FN(place)(p, m, mr, n, nr, tile, NR, first, last);
                }
            }
        }
    }
}
