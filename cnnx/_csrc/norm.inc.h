/* Sums over a channel: batch normalisation and the bias gradient; a task is one channel.
 *
 * Sums run in VL lanes of T over a stretch of at most 4096 values and then in double: fast, and exact
 * enough that float32 statistics of millions of pixels keep all their digits.
 */
enum { FN(STRETCH) = 4096 };

/* The sum of a[p] over p < n. */
static double FN(sum)(const T *a, int64_t n)
{
    double total = 0;
    for (int64_t q = 0; q < n; q += FN(STRETCH)) {
        const int64_t end = q + FN(STRETCH) < n ? q + FN(STRETCH) : n;
        V lanes = (V){0};
        int64_t p = q;
        for (; p + VL <= end; p += VL) lanes += *(const VU *)(a + p);
        T rest = 0;
        for (; p < end; p++) rest += a[p];
        total += (double)FN(sum_lanes)(lanes) + (double)rest;
    }
    return total;
}

/* The sum of (a[p] - a_shift) * (b[p] - b_shift) over p < n. */
static double FN(sum_product)(const T *a, T a_shift, const T *b, T b_shift, int64_t n)
{
    double total = 0;
    for (int64_t q = 0; q < n; q += FN(STRETCH)) {
        const int64_t end = q + FN(STRETCH) < n ? q + FN(STRETCH) : n;
        V lanes = (V){0};
        int64_t p = q;
        for (; p + VL <= end; p += VL)
            lanes += (*(const VU *)(a + p) - a_shift) * (*(const VU *)(b + p) - b_shift);
        T rest = 0;
        for (; p < end; p++) rest += (a[p] - a_shift) * (b[p] - b_shift);
        total += (double)FN(sum_lanes)(lanes) + (double)rest;
    }
    return total;
}

static void FN(conv_bias)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_norm *p = problem;
    (void)scratch;
    double total = 0;
    for (int64_t n = 0; n < p->N; n++)
        total += FN(sum)((const T *)p->grad + (n * p->C + task) * p->area, p->area);
    ((T *)p->y)[task] = (T)total;
}

static void FN(norm_stats)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_norm *p = problem;
    (void)scratch;
    const double count = (double)p->N * (double)p->area;
    double total = 0, square = 0;
    for (int64_t n = 0; n < p->N; n++)
        total += FN(sum)((const T *)p->x + (n * p->C + task) * p->area, p->area);
    const T mean = (T)(total / count);
    for (int64_t n = 0; n < p->N; n++) {
        const T *x = (const T *)p->x + (n * p->C + task) * p->area;
        square += FN(sum_product)(x, mean, x, mean, p->area);
    }
    ((T *)p->mean)[task] = mean;
    ((T *)p->var)[task] = (T)(square / count);
}

static void FN(norm)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_norm *p = problem;
    (void)scratch;
    const T mean = ((const T *)p->mean)[task];
    const T inverse = (T)(1 / sqrt((double)((const T *)p->var)[task] + p->eps));
    const T scale = p->weight ? ((const T *)p->weight)[task] * inverse : inverse;
    const T shift = p->bias ? ((const T *)p->bias)[task] : 0;
    for (int64_t n = 0; n < p->N; n++) {
        const T *x = (const T *)p->x + (n * p->C + task) * p->area;
        T *y = (T *)p->y + (n * p->C + task) * p->area;
        for (int64_t q = 0; q < p->area; q++) y[q] = (x[q] - mean) * scale + shift;
    }
}

/* grad_x = scale * (g - [mean of g + (x - mean) * inverse^2 * mean of g*(x - mean)]), the bracket only
 * when mean and var came from the batch (Ioffe and Szegedy 2015, section 3). */
static void FN(norm_backward)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_norm *p = problem;
    (void)scratch;
    const double count = (double)p->N * (double)p->area;
    const T mean = ((const T *)p->mean)[task];
    const double inverse = 1 / sqrt((double)((const T *)p->var)[task] + p->eps);
    double total = 0, product = 0;
    for (int64_t n = 0; n < p->N; n++) {
        const int64_t at = (n * p->C + task) * p->area;
        total += FN(sum)((const T *)p->grad + at, p->area);
        product += FN(sum_product)((const T *)p->grad + at, 0, (const T *)p->x + at, mean, p->area);
    }
    ((T *)p->grad_bias)[task] = (T)total;
    ((T *)p->grad_weight)[task] = (T)(product * inverse);
    const T scale = (T)(p->weight ? (double)((const T *)p->weight)[task] * inverse : inverse);
    const T level = p->batch_stats ? (T)(total / count) : 0;
    const T slope = p->batch_stats ? (T)(product * inverse * inverse / count) : 0;
    for (int64_t n = 0; n < p->N; n++) {
        const int64_t at = (n * p->C + task) * p->area;
        const T *x = (const T *)p->x + at, *g = (const T *)p->grad + at;
        T *to = (T *)p->y + at;
        for (int64_t q = 0; q < p->area; q++) to[q] = scale * (g[q] - level - (x[q] - mean) * slope);
    }
}
