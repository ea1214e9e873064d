/* Batch normalisation, and the sums over a channel that it and the bias gradient need; a task is one channel.
 *
 * Memory is the cost, so each number is brought in as seldom as it can be: statistics are made of blocks
 * that stay in the first level while they are gone through twice, first for the mean, then about it; a
 * channel of usual size stays in the second level from its statistics to its result. Sums run in
 * vectors over a block and then in double: float32 statistics of millions of pixels keep all their digits.
 */
enum { FN(NORM_BLOCK) = 4096 };

/* A channel's numbers: `rows` rows of `width`, `step` apart. One row an image. */
typedef struct {
    int64_t rows, width, step;
} FN(norm_rows);

static inline FN(norm_rows) FN(norm_channel)(const cnnx_norm *p)
{
    return (FN(norm_rows)){p->N, p->area, p->C * p->area};
}

/* The part of a channel from row r and place q on that makes up a block; of whole rows, where they are short. */
static inline FN(norm_rows) FN(norm_block)(FN(norm_rows) all, int64_t r, int64_t q)
{
    FN(norm_rows) b = {1, all.width - q, all.step};
    if (b.width > FN(NORM_BLOCK)) b.width = FN(NORM_BLOCK);
    if (all.width < FN(NORM_BLOCK)) b.rows = FN(NORM_BLOCK) / all.width;
    if (b.rows > all.rows - r) b.rows = all.rows - r;
    return b;
}

/* A block with rows shorter than a vector is brought together as one row in `flat`, and zeros up to the next
 * full vector: 2x2 images are four times as fast so. */
static inline FN(norm_rows) FN(bring)(const T **from, FN(norm_rows) b, T *flat)
{
    if (b.width >= VL) return b;
    int64_t n = 0;
    for (int64_t r = 0; r < b.rows; r++)
        for (int64_t q = 0; q < b.width; q++) flat[n++] = (*from)[r * b.step + q];
    for (int64_t q = n; q % VL; q++) flat[q] = 0;
    *from = flat;
    return (FN(norm_rows)){1, n, n};
}

static inline void FN(put_back)(const T *from, FN(norm_rows) b, T *to)
{
    for (int64_t r = 0; r < b.rows; r++, to += b.step)
        for (int64_t q = 0; q < b.width; q++) to[q] = *from++;
}

/* The first n < VL numbers, and `fill` in the other lanes. */
static inline V FN(row_start)(const T *a, int64_t n, T fill)
{
    T lane[VL];
    for (int64_t l = 0; l < VL; l++) lane[l] = l < n ? a[l] : fill;
    return *(const VU *)lane;
}

/* v, with 0 in the lanes below `first`. */
static inline V FN(lanes_from)(V v, int64_t first)
{
#if defined(__GNUC__)
    V lane;
    for (int l = 0; l < VL; l++) lane[l] = (T)l;
    return (V)((FN(mask))v & (lane >= (V){0} + (T)first));
#else
    return first ? 0 : v;
#endif
}

/* What a channel's numbers go through: z = (x - mean) * scale + shift, then the activation. */
typedef struct {
    T mean, scale, shift;
} FN(norm_line);

static inline FN(norm_line) FN(norm_line_of)(const cnnx_norm *p, int64_t c)
{
    const double inverse = 1 / sqrt((double)((const T *)p->var)[c] + p->eps);
    const T scale = p->weight ? ((const T *)p->weight)[c] * (T)inverse : (T)inverse;
    return (FN(norm_line)){((const T *)p->mean)[c], scale, p->bias ? ((const T *)p->bias)[c] : 0};
}

/* The gradient by z: the output's, where the activation lets it through. */
static ALWAYS_INLINE V FN(by_z)(V x, V g, FN(norm_line) line, const int kind)
{
    if (kind == CNNX_NONE) return g;
    return g * FN(slope_vector)((x - line.mean) * line.scale + line.shift, kind, 0);
}

/* sums[0] = sum of u, sums[1] = sum of u*v over a block, with v = x - mean, and u = v, or without a null g the
 * gradient by z. */
static ALWAYS_INLINE void
FN(norm_sums)(const T *x, const T *g, FN(norm_rows) b, FN(norm_line) line, const int kind, double sums[2])
{
    V u[4], uv[4];
    UNROLL for (int l = 0; l < 4; l++) u[l] = uv[l] = (V){0};
#define ADD(l, x_vector, g_vector, keep)                                                               \
    {                                                                                                  \
        const V a = x_vector, v = keep(a - line.mean);                                                 \
        const V w = g ? keep(FN(by_z)(a, g_vector, line, kind)) : v;                                 \
        u[l] += w;                                                                                     \
        uv[l] += w * v;                                                                                \
    }
    for (int64_t r = 0; r < b.rows; r++, x += b.step, g = g ? g + b.step : NULL) {
        int64_t q = 0;
        for (; q + 4 * VL <= b.width; q += 4 * VL)
            UNROLL for (int l = 0; l < 4; l++)
                ADD(l, *(const VU *)(x + q + l * VL), *(const VU *)(g + q + l * VL), )
        for (; q + VL <= b.width; q += VL) ADD(0, *(const VU *)(x + q), *(const VU *)(g + q), )
        if (q == b.width) continue;
        if (q > 0) { /* the row's last vector, without the lanes that are in already */
            const int64_t last = b.width - VL;
#define NEW(v) FN(lanes_from)(v, q - last)
            ADD(0, *(const VU *)(x + last), *(const VU *)(g + last), NEW)
#undef NEW
        } else { /* the lanes beyond the row add 0 */
            ADD(0, FN(row_start)(x, b.width, line.mean), FN(row_start)(g, b.width, 0), )
        }
    }
#undef ADD
    sums[0] = (double)FN(sum_lanes)((u[0] + u[1]) + (u[2] + u[3]));
    sums[1] = (double)FN(sum_lanes)((uv[0] + uv[1]) + (uv[2] + uv[3]));
}

/* The same for an area of 1, a matrix (N, C): channels lie side by side. */
static void FN(column_sums)(const cnnx_norm *p, int64_t task)
{
    const int64_t c = task * CNNX_COLUMNS, n = p->C - c < CNNX_COLUMNS ? p->C - c : CNNX_COLUMNS;
    double total[CNNX_COLUMNS] = {0};
    for (int64_t r = 0; r < p->N;) {
        const int64_t end = r + 256 < p->N ? r + 256 : p->N;
        T sum[CNNX_COLUMNS] = {0};
        for (; r < end; r++) {
            const T *g = (const T *)p->grad + r * p->C + c;
            for (int64_t k = 0; k < n; k++) sum[k] += g[k];
        }
        for (int64_t k = 0; k < n; k++) total[k] += (double)sum[k];
    }
    for (int64_t k = 0; k < n; k++) ((T *)p->y)[c + k] = (T)total[k];
}

static void FN(conv_bias)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_norm *p = problem;
    (void)scratch;
    if (p->area == 1) {
        FN(column_sums)(p, task);
        return;
    }
    const FN(norm_rows) all = FN(norm_channel)(p);
    const T *g = (const T *)p->grad + task * p->area;
    double total = 0, sums[2];
    T flat[FN(NORM_BLOCK)];
    FN(norm_rows) b;
    for (int64_t r = 0; r < all.rows; r += b.rows)
        for (int64_t q = 0; q < all.width; q += b.width) {
            b = FN(norm_block)(all, r, q);
            const T *from = g + r * all.step + q;
            const FN(norm_rows) row = FN(bring)(&from, b, flat);
            FN(norm_sums)(from, NULL, row, (FN(norm_line)){0}, CNNX_NONE, sums);
            total += sums[0];
        }
    ((T *)p->y)[task] = (T)total;
}

/* Blocks are put together as Chan, Golub and LeVeque have it (1983): the squares about the mean of both are
 * those about each one's mean, and the distance between the means. */
static void FN(norm_stats)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_norm *p = problem;
    (void)scratch;
    const FN(norm_rows) all = FN(norm_channel)(p);
    const T *x = (const T *)p->x + task * p->area;
    double count = 0, mean = 0, square = 0, sums[2];
    T flat[FN(NORM_BLOCK)];
    FN(norm_rows) b;
    for (int64_t r = 0; r < all.rows; r += b.rows)
        for (int64_t q = 0; q < all.width; q += b.width) {
            b = FN(norm_block)(all, r, q);
            const T *from = x + r * all.step + q;
            const FN(norm_rows) row = FN(bring)(&from, b, flat);
            const double n = (double)b.rows * (double)b.width;
            FN(norm_sums)(from, NULL, row, (FN(norm_line)){0}, CNNX_NONE, sums);
            const T about = (T)(sums[0] / n);
            FN(norm_sums)(from, NULL, row, (FN(norm_line)){.mean = about}, CNNX_NONE, sums);
            const double rest = sums[0] / n; /* what rounding took off the mean */
            const double distance = (double)about + rest - mean;
            square += sums[1] - sums[0] * rest + distance * distance * (count * n / (count + n));
            count += n;
            mean += distance * (n / count);
        }
    ((T *)p->mean)[task] = (T)mean;
    ((T *)p->var)[task] = (T)(square / count);
}

/* y = z, of one row. Its last vector may overlap the one before, and makes the same numbers twice. */
static ALWAYS_INLINE void FN(norm_row)(const T *x, int64_t n, FN(norm_line) line, const int kind, T *y)
{
#define Z(at)                                                                                          \
    {                                                                                                  \
        const V v = (*(const VU *)(x + (at)) - line.mean) * line.scale + line.shift;                   \
        *(VU *)(y + (at)) = FN(activate_vector)(v, kind, 0);                                           \
    }
    int64_t q = 0;
    for (; q + VL <= n; q += VL) Z(q)
    if (q < n) Z(n - VL)
#undef Z
}

static ALWAYS_INLINE void FN(norm_kind)(const cnnx_norm *p, int64_t task, const int kind)
{
    const FN(norm_rows) all = FN(norm_channel)(p);
    const FN(norm_line) line = FN(norm_line_of)(p, task);
    const T *x = (const T *)p->x + task * p->area;
    T *y = (T *)p->y + task * p->area, flat[FN(NORM_BLOCK)];
    FN(norm_rows) b = {.rows = 1};
    for (int64_t r = 0; r < all.rows; r += b.rows) {
        const T *from = x + r * all.step;
        if (all.width >= VL) {
            FN(norm_row)(from, all.width, line, kind, y + r * all.step);
            continue;
        }
        b = FN(norm_block)(all, r, 0);
        const int64_t n = FN(bring)(&from, b, flat).width;
        FN(norm_row)(flat, (n + VL - 1) / VL * VL, line, kind, flat);
        FN(put_back)(flat, b, y + r * all.step);
    }
}

static void FN(norm)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_norm *p = problem;
    if (p->batch_stats) FN(norm_stats)(problem, task, scratch);
    switch (p->activation) {
    case CNNX_RELU: FN(norm_kind)(p, task, CNNX_RELU); return;
    case CNNX_RELU6: FN(norm_kind)(p, task, CNNX_RELU6); return;
    default: FN(norm_kind)(p, task, CNNX_NONE);
    }
}

/* to = scale * (g - level - (x - mean) * slope), of one row, g being the gradient by z. */
typedef struct {
    T scale, level, slope;
} FN(norm_gradient);

static ALWAYS_INLINE void
FN(norm_grad_row)(const T *x, const T *g, int64_t n, FN(norm_line) line, FN(norm_gradient) s,
                  const int kind, T *to)
{
#define GRAD(at)                                                                                       \
    {                                                                                                  \
        const V a = *(const VU *)(x + (at)), by_z = FN(by_z)(a, *(const VU *)(g + (at)), line, kind); \
        *(VU *)(to + (at)) = s.scale * (by_z - s.level - (a - line.mean) * s.slope);                   \
    }
    int64_t q = 0;
    for (; q + VL <= n; q += VL) GRAD(q)
    if (q < n) GRAD(n - VL)
#undef GRAD
}

/* grad_x = scale * (g - [mean of g + (x - mean) * inverse^2 * mean of g*(x - mean)]), the bracket only
 * when mean and var came from the batch (Ioffe and Szegedy 2015, section 3). */
static ALWAYS_INLINE void FN(norm_backward_kind)(const cnnx_norm *p, int64_t task, const int kind)
{
    const FN(norm_rows) all = FN(norm_channel)(p);
    const FN(norm_line) line = FN(norm_line_of)(p, task);
    const T *x = (const T *)p->x + task * p->area, *g = (const T *)p->grad + task * p->area;
    T *to = (T *)p->y + task * p->area, flat_x[FN(NORM_BLOCK)], flat_g[FN(NORM_BLOCK)];
    double total = 0, product = 0, sums[2];
    FN(norm_rows) b;
    for (int64_t r = 0; r < all.rows; r += b.rows)
        for (int64_t q = 0; q < all.width; q += b.width) {
            const int64_t at = r * all.step + q;
            const T *from_x = x + at, *from_g = g + at;
            b = FN(norm_block)(all, r, q);
            const FN(norm_rows) row = FN(bring)(&from_x, b, flat_x);
            FN(bring)(&from_g, b, flat_g);
            FN(norm_sums)(from_x, from_g, row, line, kind, sums);
            total += sums[0];
            product += sums[1];
        }
    const double count = (double)p->N * (double)p->area;
    const double inverse = 1 / sqrt((double)((const T *)p->var)[task] + p->eps);
    ((T *)p->grad_bias)[task] = (T)total;
    ((T *)p->grad_weight)[task] = (T)(product * inverse);
    FN(norm_gradient) s = {(T)(p->weight ? (double)((const T *)p->weight)[task] * inverse : inverse), 0, 0};
    if (p->batch_stats) {
        s.level = (T)(total / count);
        s.slope = (T)(product * inverse * inverse / count);
    }
    b.rows = 1;
    for (int64_t r = 0; r < all.rows; r += b.rows) {
        const int64_t at = r * all.step;
        const T *from_x = x + at, *from_g = g + at;
        if (all.width >= VL) {
            FN(norm_grad_row)(from_x, from_g, all.width, line, s, kind, to + at);
            continue;
        }
        b = FN(norm_block)(all, r, 0);
        const int64_t n = FN(bring)(&from_x, b, flat_x).width;
        FN(bring)(&from_g, b, flat_g);
        FN(norm_grad_row)(flat_x, flat_g, (n + VL - 1) / VL * VL, line, s, kind, flat_x);
        FN(put_back)(flat_x, b, to + at);
    }
}

static void FN(norm_backward)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_norm *p = problem;
    (void)scratch;
    switch (p->activation) {
    case CNNX_RELU: FN(norm_backward_kind)(p, task, CNNX_RELU); return;
    case CNNX_RELU6: FN(norm_backward_kind)(p, task, CNNX_RELU6); return;
    default: FN(norm_backward_kind)(p, task, CNNX_NONE);
    }
}
