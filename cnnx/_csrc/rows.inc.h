/* What depthwise convolution and pooling stand on: the rows of a plane, read where they are, masks for the
 * columns beside the image, and sums of lanes.
 *
 * Copying the rows with their border cost more than the arithmetic on small planes. Instead the kernels take a
 * table of pointers to rows: of the image, of a row of zeros above and below it, and of copies of those few
 * rows beside which a vector would leave the array.
 */
#if defined(__GNUC__)
static inline int64_t FN(align)(int64_t n) { return (n + 15) / 16 * 16; }

/* Where the rows of a plane may be read: `reach` numbers from column `left` on. */
typedef struct {
    const T *data;
    int64_t size, H, W, left, reach;
    T *spare; /* a row of zeros, then room for copies */
} FN(rows_of);

/* rows[r] = row h0 + r of a plane, from column `left` on, for r < n. */
static void FN(find_rows)(const FN(rows_of) *s, int64_t plane, int64_t h0, int64_t n, const T **rows)
{
    const int64_t lo = h0 < 0 ? -h0 : 0, hi = s->H - h0 < n ? s->H - h0 : n;
    const int64_t at = (plane * s->H + h0) * s->W + s->left;
    for (int64_t r = 0; r < n; r++) rows[r] = s->spare;
    if (lo >= hi) return;
    if (at + lo * s->W >= 0 && at + (hi - 1) * s->W + s->reach <= s->size) {
        for (int64_t r = lo; r < hi; r++) rows[r] = s->data + (at + r * s->W);
        return;
    }
    T *to = s->spare;
    for (int64_t r = lo; r < hi; r++) {
        const int64_t from = at + r * s->W;
        rows[r] = s->data + from;
        if (from >= 0 && from + s->reach <= s->size) continue;
        rows[r] = to += s->reach;
        for (int64_t c = 0; c < s->reach; c++) {
            const int64_t w = s->left + c;
            to[c] = w >= 0 && w < s->W ? s->data[from + c] : 0;
        }
    }
}

/* Rows that a plane can need copies of, and the row of zeros. */
static int64_t FN(spare_rows)(int64_t n, int64_t W, int64_t reach)
{
    const int64_t most = 2 * (reach / W + 2);
    return 1 + (n < most ? n : most);
}

/* Whether tables and copies of so many rows, numbers of a row and columns of masks stay within a task's scratch. */
static inline int FN(rows_fit)(int64_t rows, int64_t W, int64_t reach, int64_t masks)
{
    const double spare = 2 * ((double)reach / (double)W + 2), copies = spare < (double)rows ? spare : (double)rows;
    return ((copies + 1) * (double)reach + (double)masks) * sizeof(T) <= CNNX_SCRATCH / 2;
}

/* Where the vector from output j on begins in a row of n: the last one moves back to end with the row. */
static inline int64_t FN(column_of)(int64_t j, int64_t n)
{
    return j + VL <= n ? j : n > VL ? n - VL : 0;
}

/* For each vector of a row of n outputs the lanes whose taps lie inside the image: mask[(vector*K + k)*VL + lane]
 * for column j*step + k*dilation + left of W. `once`: lanes that the vector before has computed already are left
 * out, and a mask of that alone follows the K. */
static void FN(column_masks)(int64_t n, int64_t step, int64_t dilation, int64_t left, int64_t W, int64_t K,
                             int once, FN(integer) *mask)
{
    for (int64_t v = 0; v * VL < n; v++) {
        const int64_t j = FN(column_of)(v * VL, n), first = once ? v * VL : j;
        for (int64_t k = 0; k < K + once; k++, mask += VL)
            for (int64_t l = 0; l < VL; l++) {
                const int64_t w = (j + l) * step + k * dilation + left;
                mask[l] = j + l >= first && j + l < n && (k == K || (w >= 0 && w < W)) ? -1 : 0;
            }
    }
}

/* VL numbers from x on, or as many pairs dealt apart. */
static ALWAYS_INLINE void FN(load_columns)(const int S, const T *x, V b[2])
{
    b[0] = *(const VU *)x;
    if (S == 1) return;
    b[1] = *(const VU *)(x + VL);
#if defined(SHUFFLE)
    const V even = __builtin_shufflevector(b[0], b[1], EVEN), odd = __builtin_shufflevector(b[0], b[1], ODD);
    b[0] = even;
    b[1] = odd;
#else
    for (int l = 0; l < VL; l++) {
        b[0][l] = x[2 * l];
        b[1][l] = x[2 * l + 1];
    }
#endif
}

static ALWAYS_INLINE V FN(masked)(V v, const FN(integer) *mask)
{
    return (V)((FN(integers))v & *(const FN(loose_integers) *)mask);
}

static ALWAYS_INLINE void FN(prefetch)(const T *x, int64_t n)
{
    for (int64_t l = 0; l < n; l += 64 / (int64_t)sizeof(T)) PREFETCH(x + l);
}

/* Lane i of the answer is the sum of a[i]'s lanes. Each round adds the halves of pairs of vectors, dealt together. */
static ALWAYS_INLINE V FN(sum_each)(V a[VL])
{
#if defined(SHUFFLE)
    UNROLL for (int n = VL / 2; n > 0; n /= 2)
        UNROLL for (int r = 0; r < n; r++)
            a[r] = __builtin_shufflevector(a[r], a[r + n], LOW) + __builtin_shufflevector(a[r], a[r + n], HIGH);
    return a[0];
#else
    T sums[VL];
    for (int r = 0; r < VL; r++) sums[r] = FN(sum_lanes)(a[r]);
    return *(const VU *)sums;
#endif
}
#endif
